"memo/ and README.md are what the notebooks export, and the notebooks are clean"
import shutil
import pytest

def _files(d):
    skip = {'__pycache__','.ipynb_checkpoints'}
    return {p.relative_to(d):p.read_bytes() for p in sorted(d.rglob('*')) if p.is_file() and not skip & set(p.parts)}

@pytest.fixture(scope='module')
def fresh(repo, tool, python, tmp_path_factory):
    """A copy of the notebooks, exported and cleaned, and the index of their parts; of memo/ only what is written
    by hand is copied"""
    d = tmp_path_factory.mktemp('sync')
    for f in ('pyproject.toml','setup.cfg','settings.ini'): shutil.copy(repo/f, d)
    shutil.copytree(repo/'nbs', d/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints','runs'))
    (d/'memo').mkdir()
    (d/'memo'/'banks').mkdir()
    for f in ('__init__.py','all.py','banks/__init__.py'): shutil.copy(repo/'memo'/f, d/'memo'/f)
    for c in ('nbdev-export','nbdev-clean'):
        r = tool(c, cwd=d)
        assert r.returncode == 0, f'{c}: {r.stdout}{r.stderr}'
    r = python('-m', 'memo.registry', cwd=d)     # the index of parts, made from nothing
    assert r.returncode == 0, r.stderr
    return d

def _same(want, got, fix):
    bad = sorted(str(f) for f in want.keys()|got.keys() if want.get(f) != got.get(f))
    assert not bad, f'out of step: {", ".join(bad)}; {fix}'

def test_memo_is_exported(repo, fresh): _same(_files(fresh/'memo'), _files(repo/'memo'), 'run make sync')
def test_notebooks_are_clean(repo, fresh):
    nbs = lambda d: {k:v for k,v in _files(d/'nbs').items() if k.suffix == '.ipynb'}
    _same(nbs(fresh), nbs(repo), 'run make sync')

def test_readme_is_exported(repo, python, tmp_path):
    to = f'--output-dir={tmp_path}','--output=README'
    r = python('-m', 'nbconvert', '--to', 'markdown', repo/'nbs/index.ipynb', *to, cold=True)
    assert r.returncode == 0, r.stderr
    f = tmp_path/'README.md'
    f.write_text(f.read_text(encoding='utf-8').replace('](../', ']('), encoding='utf-8')     # as `make sync` does
    new = _files(tmp_path)
    _same(new, {k:(repo/k).read_bytes() for k in new if (repo/k).exists()}, 'run make sync')
