"The example service: a process without torch, fastai or memo that answers images as the learner does"
import importlib.util, io, json, logging, os, socket, struct, subprocess, sys, time, urllib.error, urllib.request
import warnings, zlib
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
    def __init__(self, repo, model, tmp, *args, **env):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            self.port = s.getsockname()[1]
        for o in ('torch','fastai','memo'): (tmp/f'{o}.py').write_text('raise ImportError("not here")')
        env = os.environ | env | dict(MODEL=str(model), PYTHONPATH=f'{tmp}{os.pathsep}{repo/"experiments/serve"}')
        self.p = subprocess.Popen([sys.executable, '-m', 'uvicorn', 'service:app', '--port', str(self.port),
                                   '--log-level', 'warning', *args], env=env, cwd=tmp)
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

@pytest.fixture(scope='module')
def exported(learner, tmp_path_factory):
    "The learner's file; nothing of how torch and onnx go about it is said"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        heard,log = [],logging.getLogger('onnx_ir')
        log.addHandler(h := logging.Handler())
        h.emit = lambda r: heard.append(r.getMessage())
        try: path = export_model(learner, tmp_path_factory.mktemp('exported')/'model.onnx')
        finally: log.removeHandler(h)
    assert not heard and not [o for o in told if 'side effects' in str(o.message)]
    return path

def files(tmp, n=24):
    for i,(_,im) in enumerate(cuts(n, 9)):
        im.save(tmp/f'new{i}.{("png","jpg")[i%2]}')
        yield tmp/f'new{i}.{("png","jpg")[i%2]}'

def test_answers_of_eight_threads_are_the_learners(repo, learner, exported, tmp_path):
    ps = [*files(tmp_path)]
    with learner.no_bar(): want = [learner.predict(p) for p in ps]
    with Served(repo, exported, tmp_path) as s:
        with ThreadPoolExecutor(8) as ex: got = [*ex.map(lambda p: post(s.port, p.read_bytes()), ps*3)]
        for o in (b'', b'GIF89a', ps[0].read_bytes()[:400]):
            with pytest.raises(urllib.error.HTTPError) as e: post(s.port, o)
            assert e.value.code==400 and 'not an image' in json.load(e.value)['detail']
        assert post(s.port, None, 'about')['memories']['memory']['rows']==34
    assert len({json.dumps(o) for o in got})>20
    for a,w in zip(got, want*3): same(a, w, learner)

def same(got, want, learn):
    "A service's answer, and the learner's"
    assert got['answers'][0]['name']==want[0]
    of = {o['name']:o['probability'] for o in got['answers']}
    np.testing.assert_allclose([of[o] for o in learn.dls.vocab], want[2], atol=1e-4)

def odd_files(tmp, im):
    "An image in forms that people have"
    turned,wide = Image.Exif(),np.asarray(im).astype('>u2')*257
    turned[0x0112] = 6
    for mode in ('L','LA','RGBA','P','1'): im.convert(mode).save(tmp/f'{mode}.png')
    im.convert('CMYK').save(tmp/'cmyk.jpg')
    im.save(tmp/'turned.jpg', exif=turned)
    im.save(tmp/'moving.gif', save_all=True, append_images=[im.rotate(90)])
    im.save(tmp/'image.webp')
    im.crop((0, 0, 116, 80)).resize((116,125)).save(tmp/'rounded.png')  # 116/56*56 is above 116
    def part(kind, b): return struct.pack('>I', len(b))+kind+b+struct.pack('>I', zlib.crc32(kind+b))
    rows = zlib.compress(b''.join(b'\0'+o.tobytes() for o in wide))        # Pillow writes none of 16 bits in colour
    head = struct.pack('>IIBBBBB', *im.size, 16, 2, 0, 0, 0)
    (tmp/'sixteen.png').write_bytes(b'\x89PNG\r\n\x1a\n'+part(b'IHDR', head)+part(b'IDAT', rows)+part(b'IEND', b''))
    return sorted(tmp.iterdir())

def refused(port, b, **headers):
    "Status and reason, which are told however much was sent"
    r = urllib.request.Request(f'http://127.0.0.1:{port}/predict', data=b, headers=headers)
    with pytest.raises(urllib.error.HTTPError) as e: urllib.request.urlopen(r, timeout=60)
    return e.value.code,json.load(e.value)['detail']

def png(im):
    im.save(b := io.BytesIO(), 'png')
    return b.getvalue()

def test_odd_files_two_processes_and_what_is_too_large(repo, learner, exported, tmp_path):
    (tmp_path/'odd').mkdir()
    ps = odd_files(tmp_path/'odd', Image.fromarray(load_sample_images().images[0][:90,:130]))
    with learner.no_bar(): want = [learner.predict(p) for p in ps]
    with Served(repo, exported, tmp_path, '--workers', '2', MAX_MB='1', MAX_MEGAPIXELS='2') as s:
        for p,w in zip(ps, want): same(post(s.port, p.read_bytes()), w, learner)
        head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        field = head+ps[0].read_bytes()+b'\r\n--x--'
        for o in (b'', b'no image', field):
            code,why = refused(s.port, o, **{'Content-Type':'multipart/form-data; boundary=x'})
            assert code==400 and '--data-binary' in why and '0x' not in why
        code,why = refused(s.port, png(Image.new('I;16', (9,9))))
        assert code==400 and 'mode I;16: 8 bits a channel are accepted' in why
        assert refused(s.port, os.urandom(30_000_000))==(413, '30 MB: 1 are accepted')
        assert refused(s.port, png(Image.new('1', (20_000,20_000))))[0]==413        # a small file
        same(post(s.port, ps[0].read_bytes()), want[0], learner)

@pytest.mark.parametrize('change,why', [(None, 'no such file'), ({}, 'not written by export_model'),
    (dict(image=None), 'write prepared()'), (dict(activation=None), 'write probabilities()')])
def test_what_cannot_be_served_is_one_line_at_the_start(repo, exported, tmp_path, monkeypatch, change, why):
    import onnx
    path = tmp_path/'model.onnx'
    if change is not None:
        m = onnx.load(exported)
        about = json.loads(m.metadata_props[0].value)
        del m.metadata_props[:]
        if change: m.metadata_props.add(key='memo', value=json.dumps(about | change))
        onnx.save(m, path)
    monkeypatch.setenv('MODEL', str(path))
    spec = importlib.util.spec_from_file_location('service_at_the_start', repo/'experiments/serve/service.py')
    with pytest.raises(SystemExit) as e: spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert why in str(e.value) and '\n' not in str(e.value)

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
