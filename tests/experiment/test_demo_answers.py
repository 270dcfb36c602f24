"What the page of memo-demo shows: the learner's own answers and what its memory recalled, for files of all kinds"
import io, json, re, shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np, pytest, torch
from data.test_findings_csv import make_chexpert
from fastai.vision.all import (DataLoaders, ImageDataLoaders, Learner, MSELossFlat, Resize, get_image_files,
                               load_learner, noop, set_seed)
from helpers.errors import err
from helpers.runs import TWO_MEMORIES, of_a_run
from PIL import Image
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.data.image_tables import image_csv
from memo.data.tensors import TensorDL, TensorSet
from memo.experiment import run as ex
from memo.experiment.again import load_run
from memo.experiment.config import load_config
from memo.experiment.demo import answer_or_line, demo_answer, demo_html
from memo.models.small import small_cnn
from memo.training.memory_callback import MemoryCallback

pytestmark = pytest.mark.usefixtures('unrendered')

_,run,copy = of_a_run(TWO_MEMORIES)

@pytest.fixture(scope='module')
def learn(run): return load_run(run)

@pytest.fixture(scope='module')
def digits(learn, tmp_path_factory):
    d = tmp_path_factory.mktemp('digits')
    xs = learn.dls[2].dataset.x[:12]
    for i,x in enumerate(xs): Image.fromarray(x[0].numpy()).save(d/f'{i}.png')
    return [d/f'{i}.png' for i in range(len(xs))],xs

def opened(b): return np.array(Image.open(io.BytesIO(b)).convert('L')).astype(int)
def text(h): return re.sub(r'(?s:<style>.*?</style>)|<[^>]+>', ' ', h)

def test_answers_and_cases_are_the_learners(learn, digits):
    dl,same = learn.dls.test_dl(digits[1]),0
    with learn.no_bar(), learn.no_logging():
        on,_ = learn.get_preds(dl=dl)
        with learn.near.off(): off,_ = learn.get_preds(dl=dl)
    r = learn.recall(digits[1], memory='near')
    items = learn.dls.train.dataset.item_ids()
    for i,p in enumerate(digits[0]):
        a = demo_answer(learn, p, 'near')
        torch.testing.assert_close(a.p, on[i], atol=1e-5, rtol=0)
        torch.testing.assert_close(a.before, off[i], atol=1e-5, rtol=0)
        assert a.thresholds is None and a.names==[str(o) for o in range(10)] and len(a.cases)==6 and a.reads==8
        for j,c in enumerate(a.cases):
            assert c.label==str(int(r.row_label[i,j])) and c.weight==pytest.approx(float(r.weight[i,j]), abs=1e-5)
            x = learn.dls.train.dataset.x[int((items==r.row_item[i,j]).nonzero()[0,0]),0]
            assert np.abs(opened(c.image)-x.numpy()).max()<=1
        assert np.abs(opened(a.image)-digits[1][i,0].numpy()).max()<=1
        same += int(a.p.argmax()==a.before.argmax())
    assert (on-off).abs().max()>.05 and same<=12

def test_the_page_says_them(learn, digits):
    for p in digits[0][:4]:
        a = demo_answer(learn, p, 'near')
        h,best = demo_html(a),int(a.p.argmax())
        assert f'<b>{best}</b> {a.p[best]:.2f}' in h and f'<b>{int(a.before.argmax())}</b> {a.before.max():.2f}' in h
        assert h.count('<figure')==7 and h.count('class="same"')==sum(c.label==str(best) for c in a.cases)
        assert all(f'similarity {c.similarity:.2f}' in h and f'weight {c.weight:.2f}' in h for c in a.cases)
        assert ('changes' in h)==(best!=int(a.before.argmax())) and 'http' not in h and h.count('data:image/png')==7

def test_eight_threads(learn, digits):
    want = [demo_html(demo_answer(learn, p, 'near')) for p in digits[0]]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda p: answer_or_line(learn, p, 'near'), digits[0]*3))
    assert got==want*3

def test_what_is_no_image_is_a_line(learn, tmp_path):
    whole = io.BytesIO()
    Image.new('L', (40,40)).save(whole, 'png')
    files = dict(empty=b'', text=b'no image', cut=whole.getvalue()[:-30], html=b'<script>alert(1)</script>')
    for k,b in files.items():
        (tmp_path/f'{k}<i>.png').write_bytes(b)
        s = answer_or_line(learn, tmp_path/f'{k}<i>.png', 'near')
        assert 'This is no image that can be read' in s and str(tmp_path) not in s and '<i>' not in s
        assert len(text(s).strip().splitlines())==1
    assert 'No image yet' in answer_or_line(learn, None)
    assert '2 memories' in answer_or_line(learn, io_png(tmp_path))
    assert 'cases' in answer_or_line(learn, io_png(tmp_path), 'near')       # another one is answered afterwards

def io_png(d, mode='L', size=(50,30), name='grey.png'):
    Image.new(mode, size, 99 if mode=='L' else (90,120,30)).save(d/name)
    return d/name

def test_photographs_of_any_size_and_colour(learn, tmp_path):
    for mode,size,name in (('RGB',(90,40),'a.jpg'), ('L',(3,50),'b.png'), ('RGB',(8,8),'c.webp'), ('L',(90,9),'d.tif')):
        a = demo_answer(learn, io_png(tmp_path, mode, size, name), 'near')
        assert opened(a.image).shape==(8,8) and a.p.sum()==pytest.approx(1, abs=1e-4)

FINDINGS = '''
name: films
seeds: [0]
data: {{name: chexpert, root: {root}, findings: [Edema, Pleural Effusion], uncertain: ignore, missing: zeros,
  valid: 0.3, size: 32, channels: 1, workers: 0, preload: {preload}, check: true, fit: squash}}
model: {{name: chest, arch: {arch}, hidden: 32}}
memory: {{size: 64, policy: fifo, head: vote, k: 5}}
evaluation: {{threshold: f1}}
train: {{epochs: 2, lr: 1e-2, bs: 16, frozen: {frozen}}}
'''

@pytest.mark.parametrize('frozen,preload', [('false','true'), ('false','false'),
                                            pytest.param('true','true', marks=pytest.mark.slow)])
def test_findings_have_their_thresholds(frozen, preload, request, tmp_path):
    "Files of a set; a frozen network whose learner is of features"
    arch = 'tile_cnn'
    if frozen=='true':
        request.getfixturevalue('lite0_weights')
        arch = 'tf_efficientnet_lite0, pretrained: true'
    make_chexpert(tmp_path/'set')
    root = json.dumps(str(tmp_path/'set'))
    (tmp_path/'e.yaml').write_text(FINDINGS.format(root=root, frozen=frozen, preload=preload, arch=arch))
    ex.run_experiment(load_config(tmp_path/'e.yaml', [f'runs={json.dumps(str(tmp_path/"runs"))}']), log=noop)
    learn = load_run(tmp_path/'runs/films')
    film = next(iter(sorted((tmp_path/'set').rglob('*.jpg'))))
    new = shutil.copy(film, tmp_path/'new.jpg')
    a = demo_answer(learn, new)
    assert a.thresholds.tolist()==learn.thresholds.tolist()!=[.5,.5] and len(a.cases)==5
    assert all(c.image is not None and c.y.shape==(2,) for c in a.cases) and a.names==['Edema','Pleural Effusion']
    h = demo_html(a)
    for n,p,t in zip(a.names, a.p, a.thresholds):
        assert f'{n}<br><small>{"found" if p>t else "not found"} (above {t:.2f})' in h
    with learn.no_bar(): own = None if frozen=='true' else learn.predict(new)
    if own is not None:
        torch.testing.assert_close(a.p, own[2].as_subclass(torch.Tensor), atol=1e-4, rtol=0)
        said = re.search('with memory:<br>(.*?)</p>', h)[1]
        assert re.findall('<b>(.*?)</b>', said)==([*own[0]] or ['nothing found'])

@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    d,rng = tmp_path_factory.mktemp('photos'),np.random.default_rng(0)
    for i in range(24):
        a = rng.integers(0, 90, (40,40,3), dtype=np.uint8)
        a[...,i%2] += 150
        Image.fromarray(a).save(d/f'{("red","<b>green")[i%2]}_{i}.png')
    return d

def image_folder_of(d):
    rows = ''.join(f'{p.name},{p.name.rpartition("_")[0]}\n' for p in sorted(d.glob('*.png')))
    (d/'t.csv').write_text('image,label\n'+rows)
    return image_csv(d/'t.csv', d, size=32, workers=0, bs=8, valid=.25, test=0, device='cpu', preload=False)

def trained(dls, n=2, keep=None, **kwargs):
    set_seed(0)
    learn = Learner(dls, small_cnn(3, n), cbs=MemoryCallback(SlotBank(64), head='vote', k=4, keep=keep), **kwargs)
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2)
    return learn

def test_loaders_of_fastai_and_an_export_without_data(photos, tmp_path):
    "An export holds no training image, so none is shown, but for thumbnails that it was asked to keep"
    dls = ImageDataLoaders.from_path_func(photos, get_image_files(photos), lambda o: o.name.rpartition('_')[0], bs=8,
                                          item_tfms=Resize(32), num_workers=0, seed=0)
    new = shutil.copy(next(photos.glob('red*')), tmp_path/'new.png')
    for keep in (None,'thumbnails'):
        learn = trained(dls, keep=keep)
        a = demo_answer(learn, new)
        assert a.names[a.p.argmax()]=='red' and all(c.image for c in a.cases) and '<b>green<' not in demo_html(a)
        learn.path = tmp_path
        learn.export()
        alone = load_learner(tmp_path/'export.pkl')
        b = demo_answer(alone, new)
        torch.testing.assert_close(b.p, a.p)
        assert all((c.image is None)==(keep is None) for c in b.cases) and len(b.cases)==4
        assert ('its picture' in demo_html(b))==(keep is None)

@pytest.mark.parametrize('lost', ['all','one','damaged'])
def test_training_images_that_are_gone_are_not_shown_and_not_named(photos, tmp_path, capsys, lost):
    "Where their folder is no longer there, each answer named the file of a patient"
    shutil.copytree(photos, tmp_path/'Klinikum')
    dls = image_folder_of(tmp_path/'Klinikum')
    learn,new = trained(dls),shutil.copy(next(photos.glob('red*')), tmp_path/'new.png')
    want = demo_answer(learn, new)
    first = learn.recall([new]).row_item[0,0]
    files = sorted((tmp_path/'Klinikum').glob('*.png'))
    at = dls.train.dataset.item_ids().tolist().index(int(first))
    gone = files if lost=='all' else [Path(dls.train.dataset.x.paths[at])]
    for p in gone: p.write_bytes(p.read_bytes()[:99]) if lost=='damaged' else p.unlink()
    a = demo_answer(learn, new)
    torch.testing.assert_close(a.p, want.p)
    assert [c.label for c in a.cases]==[c.label for c in want.cases]
    assert sum(c.image is None for c in a.cases)==(4 if lost=='all' else 1) and a.cases[0].image is None
    h = answer_or_line(learn, new)
    assert 'its picture' in h and 'Klinikum' not in h and '_' not in text(h)
    assert 'Klinikum' in capsys.readouterr().err        # whoever serves the page sees it

def test_no_line_names_another_file(learn, tmp_path, monkeypatch, capsys):
    def gone(*_): raise MemoError('cannot read the image /clinic/patient_7.png: no such file')
    monkeypatch.setattr('memo.experiment.demo.demo_answer', gone)
    h = answer_or_line(learn, io_png(tmp_path), 'near')
    assert 'cannot be answered' in h and 'patient' not in h and 'patient_7' in capsys.readouterr().err

def test_points_are_no_images(tmp_path):
    dls = DataLoaders(*(TensorDL(dataset=TensorSet(torch.rand(24, 7), torch.arange(24)%2), bs=8) for _ in range(2)))
    learn = Learner(dls, torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2)),
                    cbs=MemoryCallback(SlotBank(64), head='vote'))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    e = err(demo_answer, learn, io_png(tmp_path))
    assert 'a learner of images is needed; items of this one are (7,) numbers' in e

def float_dls(lo=0., hi=1., y=None):
    x = torch.rand(24, 3, 12, 16)*(hi-lo)+lo
    y = torch.arange(24)%2 if y is None else y
    return DataLoaders(*(TensorDL(dataset=TensorSet(x, y), bs=8, drop_last=i==0) for i in range(2)))

def test_images_in_memory_as_numbers(tmp_path):
    "Those within 0..1 are pixels, of any shape; of others nothing says what they are"
    rgb = np.random.default_rng(1).integers(0, 256, (12,16,3), dtype=np.uint8)
    Image.fromarray(rgb).resize((160,120), Image.Resampling.NEAREST).save(tmp_path/'a.png')
    a = demo_answer(trained(float_dls()), tmp_path/'a.png')
    assert Image.open(io.BytesIO(a.image)).size==(16,12)
    with pytest.raises(MemoError, match='numbers from -1'): demo_answer(trained(float_dls(-1)), tmp_path/'a.png')

def test_mistakes(learn, digits, tmp_path):
    p = io_png(tmp_path)
    assert 'near, early' in err(demo_answer, learn, p) and 'nera' in err(demo_answer, learn, p, 'nera')
    plain = Learner(float_dls(), small_cnn(3, 2))
    assert 'no memory' in err(demo_answer, plain, p)
    new = Learner(float_dls(), small_cnn(3, 2), cbs=MemoryCallback(SlotBank(64), head='vote'))
    assert 'is empty' in err(demo_answer, new, p)
    y = torch.rand(24, 1)
    number = Learner(float_dls(y=y), small_cnn(3, 1), loss_func=MSELossFlat(),
                     cbs=MemoryCallback(SlotBank(64), head='watch'))
    with number.no_bar(), number.no_logging(): number.fit(1)
    assert 'classes or findings' in err(demo_answer, number, p)
