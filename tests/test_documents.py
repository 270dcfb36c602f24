"""What README, the pages of the experiments and CITATION.cff say is so: lines that run, links, commands and
modules that are there"""
import configparser, re
import pytest, yaml

def _pages(repo):
    return [*(repo/o for o in ('README.md','CONTRIBUTING.md','CHANGELOG.md')),
            *sorted(repo.glob('experiments/**/README.md')), repo/'benchmarks/README.md']

@pytest.mark.slow
def test_readme_runs(repo, python, tmp_path):
    """README's eight lines, with a seed, in an empty folder: the memory makes the answers better, by about what
    their comments say"""
    code = re.search(r'```python\n(.*?)```', (repo/'README.md').read_text(encoding='utf-8'), re.S)[1]
    assert len([o for o in code.splitlines() if o.strip()])==8
    said = [float(o) for o in re.findall(r'# .*about (\.\d+)', code)]
    seed = 'from fastai.vision.all import set_seed; set_seed(0)\n'
    r = python('-c', seed+code, cwd=tmp_path, timeout=300)
    assert r.returncode==0, r.stderr[-2000:]
    got = [float(a) for a in re.findall(r'(?:with memory|without) \[[\d.]+, ([\d.]+)\]', r.stdout)]
    assert len(got)==len(said)==2 and got[0]>got[1]+.01, (got, said)
    assert all(abs(a-b)<.03 for a,b in zip(got, said)), (got, said)

@pytest.mark.slow
def test_readme_early_exit_runs(repo, python, tmp_path):
    "The lines of the memory that answers by itself, trained shorter"
    first,code,*_ = re.findall(r'```python\n(.*?)```', (repo/'README.md').read_text(encoding='utf-8'), re.S)
    assert 'fit_one_cycle(12,' in code
    code = code.replace('fit_one_cycle(12,', 'fit_one_cycle(1,')
    code = code.replace('learn.dls[2])', 'learn.dls[2], n=16, rounds=1)')
    r = python('-c', '\n'.join(first.splitlines()[:2])+'\n'+code, cwd=tmp_path, timeout=300)
    assert r.returncode==0 and 'x as fast' in r.stdout, r.stderr[-2000:]

@pytest.mark.slow
def test_readme_few_shots_run(repo, python, tmp_path):
    "The lines of five images a class, on a folder of real images, without weights to fetch"
    from PIL import Image
    from sklearn.datasets import load_digits
    d = load_digits()
    for c in (1,4,7):
        for i,im in enumerate(d.images[d.target==c][:8]):
            to = tmp_path/'pictures'/('train' if i<6 else 'valid')/str(c)
            to.mkdir(parents=True, exist_ok=True)
            Image.fromarray((im*15.9).astype('uint8')).convert('RGB').save(to/f'{i}.png')
    first,_,code,_ = re.findall(r'```python\n(.*?)```', (repo/'README.md').read_text(encoding='utf-8'), re.S)
    assert 'pretrained=True' in code and 'fit_one_cycle(30,' in code
    code = code.replace('pretrained=True', 'pretrained=False').replace('fit_one_cycle(30,', 'fit_one_cycle(1,')
    code += 'print(len(learn.memory.bank), learn.memory.head.grid)'
    r = python('-c', '\n'.join(first.splitlines()[:2])+'\n'+code, cwd=tmp_path, timeout=300)
    assert r.returncode==0 and '15 (14, 14)' in r.stdout, r.stderr[-2000:]

@pytest.mark.slow
def test_readme_stream_runs(repo, python, tmp_path):
    "The lines of classes that arrive one after another: replay and class statistics keep what is forgotten without"
    first,*_,code = re.findall(r'```python\n(.*?)```', (repo/'README.md').read_text(encoding='utf-8'), re.S)
    assert len([o for o in code.splitlines() if o.strip()])<=15
    r = python('-c', '\n'.join(first.splitlines()[:2])+'\n'+code, cwd=tmp_path, timeout=300)
    assert r.returncode==0, r.stderr[-2000:]
    got = [float(o) for o in re.findall(r'average accuracy ([\d.]+)', r.stdout)]
    assert len(got)==3 and min(got[1:])>got[0]+.3, got
    assert (tmp_path/'stream.png').read_bytes()[:8]==b'\x89PNG\r\n\x1a\n'

def _links(page):
    "Relative links and pictures, without what is in code"
    text = re.sub(r'```.*?```|`[^`\n]*`', '', page.read_text(encoding='utf-8'), flags=re.S)
    return [o for o in re.findall(r'\]\(([^)#\s]+)', text) if not re.match(r'\w+:', o)]

def test_links(repo):
    bad = [f'{p.relative_to(repo)}: {o}' for p in _pages(repo) for o in _links(p) if not (p.parent/o).exists()]
    assert not bad, bad
    assert all(_links(p) for p in (repo/'README.md', repo/'experiments/README.md'))

def test_readme_picture(repo):
    "One picture, small, at the same place for README and the notebook that README is made from"
    found = re.findall(r'!\[(.+?)\]\((.+?)\)', (repo/'README.md').read_text(encoding='utf-8'))
    found = [o for o in found if not o[1].startswith('https://img.shields.io/')]       # badges
    assert len(found)==1
    (alt,path), = found
    png = repo/path
    assert alt and png.read_bytes()[:8]==b'\x89PNG\r\n\x1a\n' and png.stat().st_size<120_000
    assert f'(../{path})' in (repo/'nbs/index.ipynb').read_text(encoding='utf-8')

def test_commands(repo):
    "Experiments that a page names are there"
    bad = []
    for p in _pages(repo):
        text = p.read_text(encoding='utf-8')
        names = [f'experiments/{o}.yaml' for o in re.findall(r'\bmemo-train ([a-z0-9_/]+)(?=[\s`])', text)]
        files = re.findall(r'\bmemo-train (experiments/[\w/*]+\.yaml)', text)
        bad += [f'{p.relative_to(repo)}: {o}' for o in names+files if not list(repo.glob(o))]
    assert not bad, bad

def test_every_command_is_told(repo):
    "README names each command that setup.cfg installs, and python -m memo.cli knows it"
    cfg = configparser.ConfigParser()
    cfg.read(repo/'setup.cfg', encoding='utf-8')
    names = re.findall(r'^(memo-\w+) =', cfg['options.entry_points']['console_scripts'].strip(), re.M)
    text,cli = ((repo/o).read_text(encoding='utf-8') for o in ('README.md','memo/cli.py'))
    known = re.search(r'names = dict\((.*?)\)', cli, re.S)[1]
    lost = [n for n in names if f'`{n}`' not in text or f'={n.replace("-", "_")}' not in known]
    assert len(names)>5 and not lost, lost

def test_modules(repo):
    "Modules that the pages name are there; of the changes those that are there now, not what was"
    bad = []
    for p in _pages(repo):
        text = p.read_text(encoding='utf-8')
        if p.name=='CHANGELOG.md': text = re.sub(r'^\| .*? \| ', '', text, flags=re.M)
        for o in set(re.findall(r'`memo\.([\w.]+)', text)):
            parts = o.split('.')
            if not any((repo/'memo'/'/'.join(parts[:i])).with_suffix('.py').is_file() for i in range(1, len(parts)+1)):
                bad.append(f'{p.name}: memo.{o}')
    assert not bad, bad

def test_citation(repo):
    "CITATION.cff, setup.cfg, the package and LICENSE agree"
    import memo
    cff = yaml.safe_load((repo/'CITATION.cff').read_text(encoding='utf-8'))
    cfg = configparser.ConfigParser()
    cfg.read(repo/'setup.cfg', encoding='utf-8')
    m = cfg['metadata']
    assert m['version']=='attr: memo.__version__' and cff['version']==memo.__version__
    assert cff['license']==m['license']=='Apache-2.0' and 'Apache License' in (repo/'LICENSE').read_text(
        encoding='utf-8')[:400]
    assert [o['name'] for o in cff['authors']]==[m['author']]
    assert f'Repository = "{cff["repository-code"]}"' in (repo/'pyproject.toml').read_text(encoding='utf-8')
