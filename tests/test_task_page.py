"""The lines of the page of tasks (nbs/56_tasks.ipynb) do what they say, as they stand, in a folder with a tree of
images and a table. A task that is added to the page is run by `python_lines`; its test says what has to come of it"""
import gzip, json, os, re, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from conftest import _port, root
from helpers.hub import FakeHub

pytestmark = pytest.mark.slow
page = ''.join('\n\n'+''.join(c['source']) for c in json.loads((root/'nbs/56_tasks.ipynb').read_text('utf-8'))['cells'])

def blocks(text): return re.findall(r'^```(\w+)\n(.*?)^```$', text, re.M | re.S)

tasks = {t:blocks(s) for t,s in re.findall(r'^## (.*?)\n(.*?)(?=^## |\Z)', page, re.M | re.S)}
start = blocks(page.split('\n## ')[0])[0][1]
def lines(task, kind): return [s.strip() if kind=='bash' else s for k,s in tasks[task] if k==kind]

folder,table,see,compare = ('Train with a memory on a folder of images','On a table','See what it recalls',
                            'Compare with and without')
errors,gone,share = 'Find label errors','Forget a patient','Share'
def test_each_is_short():
    assert {folder,table,see,compare,errors,gone,share,'Resume','Serve','Use two GPUs'}<=tasks.keys()
    for t,bs in tasks.items():
        assert bs, t
        for kind,s in bs:
            most = 1 if kind=='bash' and t!='Serve' else 8
            assert len([o for o in s.splitlines() if o.strip()])<=most, (t, s)

@pytest.fixture(scope='module')
def at(tmp_path_factory, fashion_root):
    "Clothes, some rare: `pictures/train/CLASS`, valid and test likewise, a table with three images a patient"
    x,y = (np.frombuffer(gzip.decompress((fashion_root/f't10k-{k}-ubyte.gz').read_bytes()), np.uint8, offset=n)
           for k,n in (('images-idx3',16), ('labels-idx1',8)))
    x,to,rows = x.reshape(-1, 28, 28),tmp_path_factory.mktemp('at'),['file,kind,patient']
    for c,n in enumerate((130,80,60,40,30,25,24,22,20,18)):
        for i,im in enumerate(x[y==c][:n]):
            p = Path('pictures')/('test' if i<5 else 'valid' if i<15 else 'train')/f'class{c}'/f'{i}.png'
            (to/p).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(im).save(to/p)
            rows.append(f'{p},class{c},p{len(rows)//3}')
    (to/'labels.csv').write_text('\n'.join(rows))
    return to

def shell(line, at, **env):
    "A line of the page, where memo's commands are installed; what it says goes to files, which a service keeps open"
    env = os.environ | dict(PATH=f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}', **env)
    with open(at/'out.txt', 'w') as out, open(at/'err.txt', 'w') as e:
        return subprocess.Popen(['bash','-c',line], cwd=at, env=env, stdout=out, stderr=e, start_new_session=True)

def done(line, at, **env):
    p = shell(line, at, **env)
    try: p.wait(400)
    finally: ended(p)
    assert p.returncode==0, (at/'err.txt').read_text()[-2000:]
    return (at/'out.txt').read_text()

def ended(p, how=signal.SIGKILL):
    "A process of `shell` with all that it has started"
    try: os.killpg(p.pid, how)
    except ProcessLookupError: pass
    p.wait(20)

def accuracies(txt): return [float(o) for o in re.findall(r'\[[\d.]+, ([\d.]+)\]', txt)]

@pytest.fixture(scope='module')
def said(at, python):
    "What each task in Python prints: all but those that need a run or a Hub, in the page's order, in one process"
    code = start+''.join(f'print("##", {t!r})\n{s}' for t in tasks for s in lines(t, 'python')
                         if 'load_run' not in s and t!=share)
    r = python('-c', code, cwd=at, timeout=400)
    assert r.returncode==0, r.stderr[-2000:]
    got = re.split(r'^## (.*)\n', r.stdout, flags=re.M)
    return dict(zip(got[1::2], got[2::2]))

def test_on_a_folder(said):
    on,off = accuracies(said[folder])
    assert on>.2 and off>.1

def test_on_a_table(said): assert accuracies(said[table])[0]>.2

def test_what_it_recalls(said, at):
    assert see in said
    for o in ('recalled','rescued'): assert Image.open(at/f'{o}.png').width>200

def test_compared(said, at):
    assert re.search(r'^few +\d', said[compare], re.M) and 'class9' in said[compare]
    assert Image.open(at/'compared.png').width>200

def test_label_errors(said):
    "Five rows with what they are, and should be; the first of them is taught"
    assert len(re.findall(r'^\d +\S*pictures/\S+ +class\d +class\d$', said[errors], re.M))==5, said[errors]

def test_a_patient_is_forgotten(said):
    n = int(re.search(r'(\d+) rows went out of the memory', said[gone])[1])
    assert 1<=n<=3 and 'do not forget' in said[gone]

@pytest.fixture(scope='module')
def run(at):
    "The experiment of the page, killed after its first checkpoint and resumed by the page's line"
    (at/'mine.yaml').write_text(lines(folder, 'yaml')[0])
    p = shell(lines(folder, 'bash')[0], at)
    try:
        until = time.time()+200
        def written(): return [*at.glob('runs/mine/checkpoints/*_e[1-9]*.pt')]      # after an epoch
        while not written() and p.poll() is None and time.time()<until: time.sleep(.05)
    finally: ended(p)
    assert p.returncode==-signal.SIGKILL, (at/'err.txt').read_text()[-2000:]
    assert not (at/'runs/mine/metrics.json').exists()
    return done(lines('Resume', 'bash')[0], at)

def test_resumed(run, at):
    assert 'plain network + memory' in run and (at/'runs/mine/report.html').stat().st_size>2_000
    assert 'train 10/10' in run and 'train 1/10' not in run

def test_an_experiment_on_a_table(run, at):
    (at/'table.yaml').write_text(lines(table, 'yaml')[0])
    assert 'plain network + memory' in done(lines(table, 'bash')[0]+' train.epochs=1', at)
    assert json.loads((at/'runs/table/metrics.json').read_text())

def test_two_processes(run, at):
    gpus,cpus = lines('Use two GPUs', 'bash')
    assert cpus=='ACCELERATE_USE_CPU=true '+gpus
    line = cpus.replace(' -m ', f' --main_process_port {_port()} -m ')+' train.epochs=1'
    out = done(line, at, CUDA_VISIBLE_DEVICES='')
    assert 'plain network + memory' in out and json.loads((at/'runs/two/metrics.json').read_text())

def test_shared(run, at, python, tmp_path):
    "With a Hub on the loopback; what comes back answers as the run does"
    hub = FakeHub()
    new = next(at.glob('pictures/test/class3/*.png'))
    (at/'new.png').write_bytes(new.read_bytes())
    env = dict(HF_ENDPOINT=hub.url, HF_TOKEN=hub.token, HF_HOME=str(tmp_path), HF_HUB_DISABLE_XET='1',
               HF_HUB_OFFLINE='0')
    more = "print('##', load_run('runs/mine').predict('new.png')[0])"
    try: r = python('-c', start+''.join(lines(share, 'python'))+more, cwd=at, env=env, cold=True)
    finally: hub.close()
    assert r.returncode==0, r.stderr[-2000:]
    assert hub.repos['me/mine']['private'] and 'comparison.png' in hub.files('me/mine')
    assert re.search(r"^\('(\w+)'", r.stdout, re.M)[1]==re.search(r'^## (\w+)', r.stdout, re.M)[1]

def test_served(run, at, repo, python):
    for o in ('fastapi','uvicorn','onnxruntime','onnxscript'): pytest.importorskip(o)
    new = next(at.glob('pictures/test/class3/*.png'))
    r = python('-c', start+lines('Serve', 'python')[0]+f'print("##", learn.predict({str(new)!r})[0])', cwd=at)
    assert r.returncode==0, r.stderr[-2000:]
    (at/'service.py').write_bytes((repo/'experiments/serve/service.py').read_bytes())
    (at/'new.png').write_bytes(new.read_bytes())
    out = done(lines('Serve', 'bash')[0].replace('8000', str(_port())), at)
    got = json.loads(re.search(r'{"answers".*}', out)[0])      # between lines of uvicorn's
    assert got['answers'][0]['name']==re.search(r'^## (\w+)', r.stdout, re.M)[1]
