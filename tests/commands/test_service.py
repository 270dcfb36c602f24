"The example service: a process without torch, fastai or memo that answers images as the learner does"
import json, os, socket, subprocess, sys, time, urllib.error, urllib.request
from concurrent.futures import ThreadPoolExecutor
import numpy as np, pytest, torch
from fastai.vision.all import BCEWithLogitsLossFlat, Learner, resnet18, set_seed
from PIL import Image
from sklearn.datasets import load_sample_images
from memo.banks.slots import SlotBank
from memo.data.findings_csv import findings_csv
from memo.data.image_folders import image_folder
from memo.training.export_model import export_model
from memo.training.memory_callback import MemoryCallback

for o in ('fastapi','uvicorn','onnxruntime','onnxscript'): pytest.importorskip(o)

def post(port, b, path='predict'):
    r = urllib.request.Request(f'http://127.0.0.1:{port}/{path}', data=b, method='POST' if b is not None else 'GET')
    with urllib.request.urlopen(r, timeout=60) as f: return json.load(f)

class Served:
    "The service on a free port, with modules of training made impossible to import"
    def __init__(self, repo, model, tmp):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            self.port = s.getsockname()[1]
        for o in ('torch','fastai','memo'): (tmp/f'{o}.py').write_text('raise ImportError("not here")')
        env = os.environ | dict(MODEL=str(model), PYTHONPATH=f'{tmp}{os.pathsep}{repo/"experiments/serve"}')
        self.p = subprocess.Popen([sys.executable, '-m', 'uvicorn', 'service:app', '--port', str(self.port),
                                   '--log-level', 'warning'], env=env, cwd=tmp)
    def __enter__(self):
        for _ in range(600):
            try: return self if post(self.port, None, 'about') else self
            except (urllib.error.URLError,ConnectionError):
                assert self.p.poll() is None, 'the service has ended'
                time.sleep(.1)
    def __exit__(self, *_):
        self.p.terminate()
        self.p.wait(20)

def cuts(n, seed=0):
    rng,ims = np.random.default_rng(seed),load_sample_images().images
    for i in range(n):
        h,w = rng.integers(40, 300, 2)
        yield i%2,Image.fromarray(ims[i%2][:h,:w])

@pytest.fixture(scope='module')
def learner(tmp_path_factory):
    root = tmp_path_factory.mktemp('photos')
    for i,(c,im) in enumerate(cuts(48)):
        p = root/('china','flower')[c]/f'{i}.png'
        p.parent.mkdir(exist_ok=True)
        im.save(p)
    set_seed(0)
    learn = Learner(image_folder(root, size=56, bs=8, workers=0, device='cpu'), resnet18(num_classes=2),
                    cbs=MemoryCallback(SlotBank(64, policy='fifo'), head='vote'))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    return learn

def files(tmp, n=24):
    for i,(_,im) in enumerate(cuts(n, 9)):
        im.save(tmp/f'new{i}.{("png","jpg")[i%2]}')
        yield tmp/f'new{i}.{("png","jpg")[i%2]}'

def test_answers_of_eight_threads_are_the_learners(repo, learner, tmp_path):
    ps = [*files(tmp_path)]
    with learner.no_bar(): want = [learner.predict(p) for p in ps]
    with Served(repo, export_model(learner, tmp_path/'model.onnx'), tmp_path) as s:
        with ThreadPoolExecutor(8) as ex: got = [*ex.map(lambda p: post(s.port, p.read_bytes()), ps*3)]
        for o in (b'', b'GIF89a', ps[0].read_bytes()[:400]):
            with pytest.raises(urllib.error.HTTPError) as e: post(s.port, o)
            assert e.value.code==400 and 'not an image' in json.load(e.value)['detail']
        assert post(s.port, None, 'about')['memories']['memory']['rows']==34
    assert len({json.dumps(o) for o in got})>20
    for a,(name,_,p) in zip(got, want*3):
        assert a['answers'][0]['name']==name
        of = {o['name']:o['probability'] for o in a['answers']}
        np.testing.assert_allclose([of[o] for o in learner.dls.vocab], p, atol=1e-4)

def test_findings_and_their_thresholds(repo, tmp_path):
    (tmp_path/'films').mkdir()
    rows = ['image,who,even,third']
    for i,(_,im) in enumerate(cuts(60)):
        im.save(tmp_path/f'films/{i}.png')
        rows.append(f'{i}.png,p{i//3},{(i+1)%2},{int(i%3==0)}')
    (tmp_path/'own.csv').write_text('\n'.join(rows))
    dls = findings_csv(tmp_path, 'own.csv', findings=['even','third'], patient='who', size=32, bs=8, workers=0,
                       device='cpu')
    learn = Learner(dls, resnet18(num_classes=2), loss_func=BCEWithLogitsLossFlat(),
                    cbs=MemoryCallback(SlotBank(64, policy='fifo'), head='vote'))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    learn.thresholds = torch.tensor([.2,.9])
    ps = [*files(tmp_path, 6)]
    with learn.no_bar(): want = [learn.predict(p)[2] for p in ps]
    with Served(repo, export_model(learn, tmp_path/'model.onnx'), tmp_path) as s:
        for p,w in zip(ps, want):
            got = {o['name']:o for o in post(s.port, p.read_bytes())['answers']}
            np.testing.assert_allclose([got['even']['probability'],got['third']['probability']], w, atol=1e-4)
            assert [got['even']['found'],got['third']['found']]==[bool(w[0]>.2),bool(w[1]>.9)]
