"""Learners of fastai's other applications, and loaders of other kinds, do with a memory what they do without: a memory
that watches changes no number, and with 'add' all works that works without"""
import random, warnings
import numpy as np, pandas as pd, pytest, torch
from fastai.tabular.all import (Categorify, CategoryBlock, FillMissing, Normalize, RegressionBlock,
                                TabularDataLoaders, tabular_learner)
from fastai.text.all import AWD_LSTM, TextDataLoaders, awd_lstm_clas_config, text_classifier_learner
from fastai.vision.all import (CrossEntropyLossFlat, DataBlock, DataLoader, DataLoaders, ImageBlock, Learner, MaskBlock,
                               MSELossFlat, PILImage, PILMask, PointBlock, RandomSplitter, TfmdDL, accuracy,
                               load_learner, resnet18, set_seed, unet_learner, vision_learner)
from sklearn.datasets import load_diabetes, load_digits, load_sample_image, load_wine
from helpers.learners import plain_part, quietly, same, snap
from memo.banks.slots import SlotBank
from memo.data.tensors import TensorDL
from memo.models.small import small_cnn
from memo.training.memory_callback import MemoryCallback

# learners: loaders, learner, an item to predict, and where a memory sits if not where it goes by itself

def table(path, d, block, n_out):
    df = pd.DataFrame(d.data[:,:5], columns=list('abcde')).sample(frac=1, random_state=0, ignore_index=True)
    df['y'] = pd.Series(d.target).sample(frac=1, random_state=0, ignore_index=True)
    df['kind'] = (df.a>df.a.median()).map({True:'much', False:'little'}).astype('object')
    dls = TabularDataLoaders.from_df(df, path, procs=[Categorify,FillMissing,Normalize], cat_names=['kind'],
                                     cont_names=list('abcde'), y_names='y', y_block=block, bs=32,
                                     valid_idx=list(range(130,170)))
    return dls,lambda cbs: tabular_learner(dls, layers=[16,8], n_out=n_out, cbs=cbs, path=path),df.iloc[0],None

def text(path):
    words,rng = 'good bad fine poor movie film great awful'.split(),np.random.RandomState(0)
    df = pd.DataFrame(dict(text=[' '.join(rng.choice(words, rng.randint(4, 20))) for _ in range(100)]))
    df['label'] = ['up' if t.count('g')>t.count('b') else 'down' for t in df.text]
    df['valid'] = df.index>=70
    dls = TextDataLoaders.from_df(df, path, text_col='text', label_col='label', valid_col='valid', bs=16, seq_len=32,
                                  num_workers=0)
    config = dict(awd_lstm_clas_config, emb_sz=16, n_hid=24, n_layers=2)
    def make(cbs): return text_classifier_learner(dls, AWD_LSTM, pretrained=False, config=config.copy(), cbs=cbs,
                                                  path=path, metrics=accuracy)
    return dls,make,df.text[0],None

def crops(path):
    "Parts of a photograph, and which of their pixels are bright"
    path = path/'crops'
    path.mkdir(exist_ok=True)
    a = load_sample_image('china.jpg')
    for i in range(24):
        x,y = 64*(i%6),32*(i//6)
        c = np.ascontiguousarray(a[y:y+32,x:x+32])
        PILImage.create(c).save(path/f'i{i}.png')
        PILMask.create((c[...,0]>127).astype(np.uint8)).save(path/f'm{i}.png')
    return sorted(path.glob('i*.png'))

def mask_of(f): return f.with_name(f.name.replace('i', 'm', 1))
def brightest(f):
    a = np.asarray(PILImage.create(f)).sum(2)
    return torch.tensor([[float(a.argmax()%32),float(a.argmax()//32)]])

def pictures(path, block, get_y, make, at):
    fs = crops(path)
    dls = DataBlock((ImageBlock,block), get_y=get_y, splitter=RandomSplitter(seed=1)).dataloaders(fs, path=path, bs=8,
                                                                                                 num_workers=0)
    return dls,lambda cbs: make(dls, resnet18, pretrained=False, cbs=cbs, path=path),fs[0],at

def points(dls, arch, **kw): return vision_learner(dls, arch, n_out=2, y_range=(-1,1), loss_func=MSELossFlat(), **kw)

kinds = dict(classes=lambda p: table(p, load_wine(), CategoryBlock(), 3),
             number=lambda p: table(p, load_diabetes(), RegressionBlock(), 1), text=text,
             masks=lambda p: pictures(p, MaskBlock(codes=['dark','bright']), mask_of, unet_learner, 'layers.4'),
             points=lambda p: pictures(p, PointBlock, brightest, points, None))

def steps(learn, item, path):
    "What comes of all that one does with a learner: a value, or the error"
    new,res = None,{}
    def loaded():
        nonlocal new
        new = load_learner(path/'l.pkl')
    def do(name, f):
        try: res[name] = f()
        except Exception as e: res[name] = type(e)
    set_seed(1)
    for dl in learn.dls.loaders: dl.rng = random.Random(3)
    do('fit', lambda: quietly(learn, 'fit', 1, 1e-3))
    do('fine_tune', lambda: quietly(learn, 'fine_tune', 1, 1e-3))
    do('preds', lambda: quietly(learn, 'get_preds')[0])
    do('validate', lambda: quietly(learn, 'validate'))
    do('predict', lambda: quietly(learn, 'predict', item)[2])
    do('results', lambda: quietly(learn, 'show_results', max_n=2))
    do('export', lambda: learn.export('l.pkl'))
    do('load_learner', loaded)
    do('loaded', lambda: quietly(new, 'predict', item)[2])
    return res,plain_part(snap(learn.model))

def done(kind, path, head):
    dls,make,item,at = kinds[kind](path)
    set_seed(0)
    learn = make([] if head=='plain' else MemoryCallback(SlotBank(64, policy='fifo'), head=head, at=at))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return *steps(learn, item, path),learn

@pytest.fixture(scope='module')
def without(tmp_path_factory):
    "By kind: what comes of it without a memory"
    made = {}
    def _without(kind):
        if kind not in made: made[kind] = done(kind, tmp_path_factory.mktemp(kind), 'plain')
        return made[kind]
    return _without

def equal(a, b):
    if isinstance(a, torch.Tensor): return torch.equal(a.as_subclass(torch.Tensor), b.as_subclass(torch.Tensor))
    if isinstance(a, (list,tuple)) or hasattr(a, 'items') and not isinstance(a, type): return list(a)==list(b)
    return a==b if a is None or isinstance(a, type) else True

slow = [pytest.param(k, marks=pytest.mark.slow) if k in ('masks','points') else k for k in kinds]

@pytest.mark.parametrize('kind', slow)
def test_a_memory_that_watches_changes_nothing(without, tmp_path, kind):
    was,state,_ = without(kind)
    got,now,learn = done(kind, tmp_path, None)
    assert {k for k in was if not equal(was[k], got[k])}==set() and same(state, now)
    assert len(learn.memory.bank)>0

@pytest.mark.parametrize('kind', slow)
def test_what_works_without_works_with_a_memory_that_is_read(without, tmp_path, kind):
    was,state,_ = without(kind)
    got,now,learn = done(kind, tmp_path, 'add')
    failed = {k for k,v in got.items() if isinstance(v, type) and issubclass(v, Exception)}
    assert failed=={k for k,v in was.items() if isinstance(v, type) and issubclass(v, Exception)}
    assert len(learn.memory.bank)>0 and not same(state, now) and got['preds'].isfinite().all()
    assert 'fit' not in failed and 'preds' not in failed

# loaders

d = load_digits()
X,Y = torch.from_numpy(d.images/16).float()[:150,None],torch.from_numpy(d.target).long()[:150]

class Stream(torch.utils.data.IterableDataset):
    def __iter__(self): return iter(zip(X, Y))

class Known(Stream):
    def __len__(self): return len(X)

class Delegates:
    "Somebody's wrapper of a loader"
    def __init__(self, dl): self.dl = dl
    def __getattr__(self, k):
        if k=='dl' or k.startswith('__'): raise AttributeError(k)
        return getattr(self.dl, k)
    def __iter__(self): return iter(self.dl)
    def __len__(self): return len(self.dl)

class Passes(Delegates):
    "One that hands the batches on itself"
    def __iter__(self): yield from self.dl

def tensors(): return TensorDL(X, Y, bs=32, shuffle=True, vocab=list(range(10)))
pairs = list(zip(X, Y))
of_loaders = dict(
    stream=lambda: DataLoader(Stream(), bs=32, n=150, num_workers=0),
    stream_tfmd=lambda: TfmdDL(Stream(), bs=32, n=150, num_workers=0),
    stream_drop=lambda: DataLoader(Stream(), bs=32, n=150, num_workers=0, drop_last=True),
    known=lambda: DataLoader(Known(), bs=32, num_workers=0, n=150),
    torch_known=lambda: torch.utils.data.DataLoader(Known(), batch_size=32),
    torch=lambda: torch.utils.data.DataLoader(pairs, batch_size=32, shuffle=True),
    wrapped=lambda: Delegates(tensors()), passes=lambda: Passes(tensors()),
    twice=lambda: Delegates(Delegates(tensors())),
    wrapped_torch=lambda: Delegates(torch.utils.data.DataLoader(pairs, batch_size=32, shuffle=True)),
    wrapped_stream=lambda: Delegates(DataLoader(Stream(), bs=32, n=150, num_workers=0)),
    wrapped_fastai=lambda: Passes(DataLoader(pairs, bs=32, shuffle=True, num_workers=0)),
    batches=lambda: [(X[i:i+32],Y[i:i+32]) for i in range(0, 150, 32)])

def fitted(kind, head, path):
    set_seed(0)
    learn = Learner(DataLoaders(of_loaders[kind](), tensors()), small_cnn(1, 10), loss_func=CrossEntropyLossFlat(),
                    metrics=accuracy, path=path,
                    cbs=[] if head=='plain' else MemoryCallback(SlotBank(200, policy='fifo'), head=head))
    set_seed(1)
    random.seed(1)
    for dl in learn.dls.loaders:
        if hasattr(dl, 'rng'): dl.rng.seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        quietly(learn, 'fit', 1, 1e-2)
        quietly(learn, 'fit_one_cycle', 1, 1e-2)
        return learn,quietly(learn, 'get_preds')[0],quietly(learn, 'validate', ds_idx=0)

rare = 'stream_tfmd stream_drop known twice wrapped_torch wrapped_fastai'.split()

@pytest.mark.parametrize('kind', [pytest.param(k, marks=pytest.mark.slow) if k in rare else k for k in of_loaders])
def test_loaders_of_other_kinds_train_as_without(tmp_path, kind):
    a,p,v = fitted(kind, 'plain', tmp_path)
    b,q,w = fitted(kind, None, tmp_path)
    assert same(snap(a.model), plain_part(snap(b.model))) and torch.equal(p, q) and list(v)==list(w)
    # items that are known keep their row in the second epoch
    rows = 150 if kind in ('wrapped','passes','wrapped_fastai') else 200
    assert len(b.memory.bank)==rows
    for head in ('add','vote'):
        c,q,w = fitted(kind, head, tmp_path)
        assert q.isfinite().all() and len(c.memory.bank)==rows and len(w)==2
