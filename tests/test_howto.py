"""What the pages of the site say (nbs/site/howto, nbs/site/systems) is so: their lines run as they stand, in a folder
with images, tables and arrays of Fashion-MNIST; messages, links and names are there"""
import gzip, os, re, signal, subprocess, sys
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from conftest import _port, root

site = root/'nbs/site'
howtos = 'my_data several_gpus following serving sharing forgetting'.split()
systems = 'chestxray tailbank dual_path hopfield memory_linear'.split()
paths = [*(site/f'howto/{o}.md' for o in howtos), *(site/f'systems/{o}.md' for o in systems)]
text = {p.stem:p.read_text(encoding='utf-8') for p in paths}
def blocks(page, kind): return re.findall(rf'^```{kind}\n(.*?)^```$', text[page], re.M | re.S)

classes = dict(bag=(8,120), sandal=(5,60), shirt=(6,30), trainer=(7,12))

def build(to, source):
    """Clothes, some rare: `pictures/CLASS`, a table of them with patients, films with two findings of which one is not
    always known, arrays, a new picture"""
    x,y = (np.frombuffer(gzip.decompress((source/f't10k-{k}-ubyte.gz').read_bytes()), np.uint8, offset=n)
           for k,n in (('images-idx3',16), ('labels-idx1',8)))
    x = np.pad(x.reshape(-1, 28, 28), [(0,0),(2,2),(2,2)])
    rows,films,of = ['file,kind,patient'],['image,patient,Edema,Mass'],[]
    (to/'films').mkdir()
    for name,(c,n) in classes.items():
        (to/'pictures'/name).mkdir(parents=True)
        for i,at in enumerate(np.flatnonzero(y==c)[:n]):
            Image.fromarray(x[at]).save(to/f'pictures/{name}/{i}.png')
            Image.fromarray(x[at]).save(to/f'films/{name}_{i}.png')
            rows.append(f'pictures/{name}/{i}.png,{name},p{len(rows)//2}')
            films.append(f'{name}_{i}.png,p{len(films)//2},{-1 if i%9==8 else int(c in (8,6))},{int(c in (6,7))}')
            of.append(at)
    (to/'labels.csv').write_text('\n'.join(rows))
    (to/'films/findings.csv').write_text('\n'.join(films))
    np.savez(to/'arrays.npz', x=x[of], y=np.repeat(range(len(classes)), [n for _,n in classes.values()]))
    Image.fromarray(x[np.flatnonzero(y==5)[200]]).save(to/'new.png')
    return to

@pytest.fixture
def at(tmp_path, fashion_root): return build(tmp_path, fashion_root)

# worker processes of the loaders cost more than all the rest here, and change nothing
PRELUDE = '''
import fastai.data.load as _load
_was = _load.DataLoader.__init__
def _init(self, *args, num_workers=0, **kwargs): _was(self, *args, num_workers=0, **kwargs)
_load.DataLoader.__init__ = _init
from fastai.vision.all import defaults,set_seed
set_seed(0)
'''

def lines(page): return [b for b in blocks(page, 'python') if not re.match(r'# \w+\.py\n', b)]

def run(page, at, python, code=str):
    "Run a page's blocks in one process; what each prints"
    said = PRELUDE+''.join(f'print("##")\n{code(b)}' for b in lines(page))
    r = python('-c', said, cwd=at, timeout=500)
    assert r.returncode==0, r.stderr[-3000:]
    return r.stdout.split('##\n')[1:]

def test_blocks_are_short():
    assert sum(len(lines(o)) for o in howtos)>12
    long = [(p, b) for p in text for k in ('python','sh','yaml') for b in blocks(p, k)
            if len([o for o in b.splitlines() if o.strip()])>8]
    assert not long, long

def shell(page, at, i, path=root):
    "A command of a page, where memo's commands are installed; without a GPU"
    line = blocks(page, 'sh')[i].strip()
    line = line.replace('accelerate launch', f'accelerate launch --main_process_port {_port()}')
    line = line.replace('torchrun', f'torchrun --master_port {_port()}')
    bins = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    env = os.environ | dict(PATH=bins, PYTHONPATH=str(path), CUDA_VISIBLE_DEVICES='', ACCELERATE_USE_CPU='true')
    p = subprocess.Popen(['bash','-c',line], cwd=at, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         start_new_session=True)
    try: out,err = p.communicate(timeout=500)
    finally:
        try: os.killpg(p.pid, signal.SIGKILL)
        except ProcessLookupError: pass
    assert p.returncode==0, out[-1000:]+err[-3000:]
    return out

def files(page, at):
    "Write the files that a page's blocks are, by the names in their first lines"
    for k in ('yaml','python'):
        found = re.findall(rf'^```{k}\n# (\w+\.\w+)\n(.*?)^```$', text[page], re.M | re.S)
        for name,b in found: (at/name).write_text(b)

@pytest.mark.slow
def test_my_data(at, python):
    folder,rare,tail,table,films,arrays = run('my_data', at, python)
    assert "{'bag': 84, 'sandal': 42, 'shirt': 21, 'trainer': 9}" in folder
    assert re.search(r'^few +\d', rare, re.M) and "'bag': 40, 'sandal': 19, 'shirt': 9, 'trainer': 4" in tail
    for o in (table,films): assert re.search(r'^\[[\d.]+, [\d.]+\]$', o, re.M), o
    files('my_data', at)
    assert 'plain network + memory' in shell('my_data', at, 0)
    assert (at/'runs/mine/report.html').exists() and (at/'runs/mine/model.safetensors').exists()

def test_what_goes_wrong(at, monkeypatch):
    "Each message of the table is what is said"
    from fastai.vision.all import Learner, MSELossFlat, nn
    from memo.all import MemoError, MemoryCallback, SlotBank, TensorDL, findings_csv, image_csv, image_folder
    import torch
    from fastai.vision.all import DataLoaders
    monkeypatch.chdir(at)
    def empty():
        (at/'pictures/empty').mkdir()
        image_folder('pictures')
    def twice():
        (at/'two.csv').write_text((at/'labels.csv').read_text()+'\npictures/bag/0.png,shirt,p0')
        image_csv('two.csv', root='.', image='file', label='kind')
    films = dict(csv='findings.csv', patient='patient')
    def numbers():
        dls = DataLoaders(*[TensorDL(torch.rand(8, 4), torch.rand(8), bs=4)]*2)
        learn = Learner(dls, nn.Linear(4, 1), MSELossFlat(), cbs=MemoryCallback(SlotBank(8), head='vote'))
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
    wrong = [lambda: image_folder('photos'), empty,
             lambda: image_csv('labels.csv', root='.', image='file', label='class'),
             lambda: image_csv(at/'labels.csv', root='films', image='file', label='kind'), twice,
             lambda: findings_csv('films', findings=['Edema','Mass'], **films),
             lambda: findings_csv('films', findings=['Edma','Mass'], **films), numbers]
    said = re.findall(r'^\| [^|`]+ \| `(.*)` \|$', text['my_data'], re.M)
    assert len(said)==len(wrong)
    for f,message in zip(wrong, said):
        with pytest.raises(MemoError) as e: f()
        assert re.search('.*'.join(map(re.escape, message.split('...'))), str(e.value)), (message, str(e.value))

@pytest.mark.slow
def test_serving(at, python):
    for o in ('onnxruntime','onnxscript','fastapi'): pytest.importorskip(o)
    _,loaded,onnx,about,found = run('serving', at, python)
    probs = [float(o) for o in re.search(r'^\w+ \[(.*)\]', loaded, re.M)[1].split(', ')]
    got = [float(o) for o in re.findall(r'\d\.\d+(?:e-\d+)?', re.search(r'\[\[(.*?)\]\]', onnx, re.S)[1])]
    np.testing.assert_allclose(got, probs, atol=2e-3)
    assert "['bag', 'sandal', 'shirt', 'trainer'] softmax" in about and "'size': [56, 56]" in about
    assert 'tensor([' in found
    served = shell('serving', at, 0, root/'experiments/serve')
    assert "'found'" in served and "'Edema'" in served

@pytest.mark.slow
def test_sharing(at, python):
    _,again = run('sharing', at, python)
    assert re.search(r"\('(bag|sandal|shirt|trainer)'", again) and 'SlotBank(' in again
    said = re.findall(r'^\| `([\w.]+)` \|', text['sharing'], re.M)
    assert {*said}=={o.name for o in (at/'shared').iterdir()}

@pytest.mark.slow
def test_following(at, python):
    files('following', at)
    said = shell('following', at, 0)
    assert 'plain network + memory' in said and 'finished before' in said
    d = at/'runs/seen'
    assert (d/'epochs.csv').read_text().count('\n')==4 and len([*d.glob('tensorboard/events*')])==1
    mine, = run('following', at, python)
    assert [o.split()[1] for o in mine.strip().splitlines()[-3:]]==['1','2','3']

@pytest.mark.slow
def test_forgetting(at, python):
    _,gone,old,served,taught = run('forgetting', at, python)
    assert "2 rows went out of the memory 'memory'" in gone and 'do not forget' in gone and 'before.pkl' in gone
    assert 'before.pkl' in old and not (at/'before.pkl').exists() and (at/'after.pkl').exists()
    assert "2 rows went out of the memory 'memory'" in served and 'after.pkl' in served
    assert 'Edema|Mass' in taught and (at/'bank.safetensors').exists()
    code = '''
from memo.all import *
from fastai.vision.all import load_learner
print(load_learner('after.pkl').memory.forget(group='p31', where='.'))'''
    r = python('-c', code, cwd=at)
    assert r.returncode==0 or 'nobody knows' in r.stderr, r.stderr[-2000:]
    assert 'after.pkl' not in r.stdout

@pytest.mark.slow
def test_several_processes(at):
    files('several_gpus', at)
    for i,name in ((0,'two'), (1,'again')):
        out = shell('several_gpus', at, i)
        assert 'plain network + memory' in out and (at/f'runs/{name}/report.html').exists()
    a,b = ((at/f'runs/{o}/predictions.csv').read_bytes() for o in ('two','again'))
    assert a==b
    shell('several_gpus', at, 2)
    assert (at/'model.pkl').exists()
    (at/'runs/again/metrics.json').unlink()
    shell('several_gpus', at, 3)
    assert (at/'runs/again/predictions.csv').read_bytes()==a and (at/'runs/again/metrics.json').exists()

def shorter(b):
    "The lines of a system, trained for an epoch"
    b = re.sub(r'fit_one_cycle\(\d+', 'fit_one_cycle(1', b)
    return b.replace('epochs=(20,5)', 'epochs=(1,1)').replace("modes('CDI')", "modes('CDI', n=100)")

@pytest.mark.slow
@pytest.mark.parametrize('page', systems)
def test_system(page, at, python):
    "Names and arguments are those of the code, and what is asked for comes out"
    if page=='chestxray':
        from memo.data.chest_standin import chest_tree
        chest_tree(at/'ChestX-ray14', patients=80)
    said = run(page, at, python, shorter)
    assert len(said)>=1
    if page=='tailbank': assert (at/'tail.json').exists()
    if page=='memory_linear': assert 'average accuracy' in said[0] and 'MemoryLinear' in said[1]
    if page=='dual_path': assert 'coverage' in said[0]

@pytest.mark.parametrize('page', text)
def test_links_and_commands(page):
    "Links lead to files, commands name experiments that ship, and a page is what it is to be"
    at = next(p for p in paths if p.stem==page)
    found = [o for o in re.findall(r'\]\(([^)#\s]+)', re.sub(r'```.*?```|`[^`\n]*`', '', text[page], flags=re.S))
             if not re.match(r'\w+:', o)]
    assert found and not [o for o in found if not (at.parent/o).exists()], found
    named = re.findall(r'^memo-train ([a-z0-9_/]+)(?=\s)(?!\.yaml)', text[page], re.M)
    assert not [o for o in named if not (root/f'experiments/{o}.yaml').exists()]
    if page in systems:
        assert 30<=len(text[page].splitlines())<=60
        heads = re.findall(r'^## (.*)', text[page], re.M)
        assert len(heads)==4 and 'otherwise' in heads[1] and heads[2:]==['What memo does','What was measured here']
        assert '../../../experiments/' in text[page] and '../../../benchmarks/' in text[page]
