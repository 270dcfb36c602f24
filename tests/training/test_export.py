"Every storage and text of an exported learner read back, for each kind of loader"
import copy
import pickletools
import re
import warnings
import zipfile
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import (AccumMetric, BCEWithLogitsLossFlat, Callback, Categorize, CategoryBlock, DataBlock,
    DataLoaders, CrossEntropyLossFlat, Datasets, F, F1Score, GrandparentSplitter, ImageBlock, ImageDataLoaders,
    IntToFloatTensor, Learner, Path, PILImage, TensorImage, ToTensor, WeightedDL, accuracy, load_learner, nn, noop,
    partial, resnet18, set_seed, to_device)
from PIL import Image
from sklearn.datasets import load_digits
from helpers.errors import err
from helpers.learners import quietly
from memo.banks.classes import ClassBank
from memo.banks.slots import SlotBank
from memo.data.features import features_dls
from memo.data.images import FileImages
from memo.data.items import item_ids
from memo.data.samplers import BalancedDL
from memo.data.tensors import TensorDL, TensorSet
from memo.training.export import LeftOut, NoItems, brings_data, is_named
from memo.training.memory_callback import MemoryCallback

N,cut = 60,48
d = load_digits()
Y = d.target[:N]
# every image has pixels of its own, from 100 on
X = (d.images[:N]*8).astype(np.uint8)+100
X[:,0,:] = np.arange(N)[:,None]%50+200
names = [f'private{i:04d}' for i in range(N)]
patients = [f'Patient_{i//3:03d}' for i in range(N)]
groups = torch.arange(N)//3 + 10**15

@pytest.fixture(scope='module')
def root(tmp_path_factory):
    r = tmp_path_factory.mktemp('hospital')
    for i in range(N):
        p = r/'im'/('train' if i<cut else 'valid')/f'c{Y[i]%4}'/f'{names[i]}.png'
        p.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.stack([X[i]]*3, 2)).save(p)
    return r

def out(root): return root.parent/'models'
def files(root): return sorted((root/'im').rglob('*.png'), key=lambda o: o.name)
def label(f): return f.parent.name

class Own(torch.utils.data.Dataset):
    def __init__(self, x, y): self.x,self.y = x,y
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i],self.y[i]
class Emptied(Own):
    "A view of the rest stays in it"
    def new_empty(self): return Emptied(self.x[:0], self.y[:0])
class Copied(Own):
    "What others keep on it stays on it"
    def new_empty(self):
        res = copy.copy(self)
        res.x,res.y = self.x[:0],self.y[:0]
        return res

x3,y4 = torch.from_numpy(X).float()[:,None].repeat(1, 3, 1, 1),torch.from_numpy(Y%4).long()
parts = slice(0, cut),slice(cut, N)
kw = dict(bs=8, num_workers=0)
at = [list(range(cut)),list(range(cut, N))]

def sets(x, y=y4, cls=TensorDL, **more):
    def ds(i, s): return TensorSet(x[s], y[s], vocab='abcd', split_idx=i, groups=groups[s], **more)
    return DataLoaders(cls(dataset=ds(0, parts[0]), bs=8, shuffle=True), TensorDL(dataset=ds(1, parts[1]), bs=8))

def own(cls): return lambda root: DataLoaders.from_dsets(*[cls(x3[s], y4[s]) for s in parts], **kw)
def frame(root): return pd.DataFrame(dict(fn=list(map(str, files(root))), label=[label(f) for f in files(root)],
                                          patient=patients, valid=[i>=cut for i in range(N)]))
def block(**more):
    return DataBlock((ImageBlock,CategoryBlock), get_items=files, get_y=label, splitter=GrandparentSplitter(), **more)
def datasets(root, **more):
    dss = Datasets(files(root), [[PILImage.create],[label,Categorize(vocab=['c0','c1','c2','c3'])]], splits=at)
    return dss.dataloaders(after_item=ToTensor, after_batch=IntToFloatTensor, **kw, **more)
def ordered(root):
    dls = datasets(root)
    dls.train.get_idxs = (torch.arange(cut)+1000).sub(1000).tolist
    return dls
def texts(root):
    from fastai.text.all import TextDataLoaders
    df = pd.DataFrame(dict(text=[f'{n} was seen by nobody else' for n in names], label=[f'c{i}' for i in Y%4],
                           valid=[i>=cut for i in range(N)]))
    return TextDataLoaders.from_df(df, text_col='text', label_col='label', valid_col='valid', seq_len=8, **kw)
def text_files(root):
    from fastai.text.all import TextDataLoaders
    for i,f in enumerate(files(root)):
        p = root/'txt'/f.relative_to(root/'im').with_suffix('.txt')
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_text('a b c d e f g h '*(1+i%4))
    return TextDataLoaders.from_folder(root/'txt', train='train', valid='valid', **kw)
def tabular(root):
    from fastai.tabular.all import Categorify, Normalize, TabularDataLoaders
    df = pd.DataFrame(dict(who=patients, kind=[f'k{i%3}' for i in range(N)], a=X[:,0,0]+X[:,3,3]*1.7,
                           y=[f'c{i}' for i in Y%4]))
    return TabularDataLoaders.from_df(df, procs=[Categorify,Normalize], cat_names=['kind'], cont_names=['a'],
                                      y_names='y', y_block=CategoryBlock, valid_idx=at[1], **kw)
def cached(root):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 24))
    return features_dls(net, sets(x3), root/'cache', bs=8)

kinds = dict(
    tensors=lambda r: sets(torch.from_numpy(X)[:,None]), balanced=lambda r: sets(x3, cls=BalancedDL),
    findings=lambda r: sets(x3, F.one_hot(y4).float()),
    lazy=lambda r: sets(FileImages(files(r), 8, 3)), preload=lambda r: sets(FileImages(files(r), 8, 3).load(),
                                                                            files=FileImages(files(r), 8, 3)),
    cached=cached,
    from_folder=lambda r: ImageDataLoaders.from_folder(r/'im', valid='valid', **kw),
    from_df=lambda r: ImageDataLoaders.from_df(frame(r), path='/', fn_col='fn', label_col='label', valid_col='valid',
                                               **kw),
    from_lists=lambda r: ImageDataLoaders.from_lists(r, files(r), [label(f) for f in files(r)], seed=1, **kw),
    block=lambda r: block().dataloaders(r, **kw),
    weighted=lambda r: block().dataloaders(r, dl_type=WeightedDL, wgts=np.arange(cut)+1., **kw),
    datasets=datasets, order=ordered,
    own=own(Own), emptied=own(Emptied), copied=own(Copied),
    subset=lambda r: DataLoaders.from_dsets(*[torch.utils.data.Subset(Own(x3, y4), i) for i in at], **kw),
    torch=lambda r: DataLoaders.from_dsets(*[torch.utils.data.TensorDataset(x3[s], y4[s]) for s in parts], **kw),
    texts=texts, text_files=text_files, tabular=tabular)

class Net(nn.Module):
    "Takes images, features, texts or tables"
    def __init__(self, dls):
        super().__init__()
        xs = dls.one_batch()[:-1]
        self.mean = xs[0].ndim==4
        n = xs[0].shape[1] if self.mean else sum(o.shape[1] for o in xs)
        self.words = nn.Embedding(200, 8) if len(xs)==1 and not xs[0].is_floating_point() and not self.mean else None
        self.mid,self.last = nn.Linear(n if self.words is None else 8, 6),nn.Linear(6, 4)
    def forward(self, *xs):
        if self.words is not None: x = self.words(xs[0].clamp(max=199)).mean(1)
        else: x = torch.cat([o.float() for o in xs], 1)
        return self.last(self.mid(x.mean((2,3)) if self.mean else x).relu())

def made(dls, root, bank=None, head='vote', **more):
    set_seed(0)
    multi = dls.one_batch()[-1].is_floating_point()
    loss = BCEWithLogitsLossFlat() if multi else CrossEntropyLossFlat()
    return Learner(dls, Net(dls), loss_func=loss, metrics=[] if multi else [accuracy,F1Score(average='macro')],
                   path=out(root), cbs=MemoryCallback(bank or SlotBank(8, policy='fifo'), head=head, k=3, **more))

def exported(learn, name='e.pkl'):
    learn.path.mkdir(exist_ok=True)
    learn.export(name)
    return learn.path/name

def pieces(path):
    "Texts of the pickle, its bytes, and the storages beside it"
    with zipfile.ZipFile(path) as z:
        raw = b''.join(z.read(o) for o in z.namelist() if o.endswith('data.pkl'))
        storages = [z.read(o) for o in z.namelist() if '/data/' in o]
    return {str(a) for _,a,_ in pickletools.genops(raw) if isinstance(a, str)},raw,storages

def check(path, learn, ids):
    found,raw,storages = pieces(path)
    everything = raw+b''.join(storages)
    said = [o for o in found if re.search(r'private\d|Patient_|hospital', o)]     # a path is pickled in parts
    assert not said, said[:3]
    for n in ('private','Patient_'): assert n.encode('utf-32-le') not in raw
    for i in (0, 20, cut, N-1):     # whole rows of pixels of each set
        for t in ('uint8','float32'): assert X[i].astype(t).tobytes()[:64] not in everything, f'pixels of {i}'
    for s in parts:
        for t in ('int64','uint8','float32'): assert (Y[s]%4).astype(t).tobytes() not in everything, 'labels'
    state = [v for v in learn.model.state_dict().values()]
    room = sum(v.nbytes for v in state)+4*sum(v.nbytes for v in state if v.ndim==0)+3000    # metrics, statistics
    assert sum(map(len, storages))<room, (sum(map(len, storages)), room)
    bank = {*learn.memory.bank.items.flatten().tolist()}
    other = [i for i in ids if i not in bank]
    assert not any(int(i).to_bytes(8, 'little') in everything for i in other), 'ids of items that are not stored'

@pytest.mark.parametrize('kind', kinds)
def test_export_holds_no_data(kind, root):
    dls = kinds[kind](root)
    n = len(dls.train_ds)
    learn = made(dls, root)
    ids = [i for dl in dls.loaders for i in item_ids(dl).tolist()]      # and keeps them on the set
    check(exported(learn), learn, ids)
    quietly(learn, learn.fit, 1, 1e-2)
    quietly(learn, learn.recall, n=3)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*names items')
        path = exported(learn)
    check(path, learn, ids)
    assert len(learn.dls.train_ds)==n and learn.dls is dls
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        new = load_learner(path)
    assert len(new.memory.bank)==8 and len(new.dls.train_ds)==len(new.dls.valid_ds)==0 and len(new.dls.loaders)==2
    assert getattr(new.dls, 'vocab', None)==getattr(dls, 'vocab', None)
    b = to_device(dls.valid.one_batch()[:-1], 'cpu')
    with torch.no_grad(): assert torch.equal(learn.model.cpu().eval()(*b), new.model.eval()(*b))
    new.path = out(root)
    check(exported(new, 'again.pkl'), learn, ids)
    learn.save('s', with_opt=False)
    for o in torch.load(out(root)/'models/s.pth', weights_only=True).values():
        assert o.untyped_storage().nbytes()==o.nbytes

def test_the_folder_of_the_data_stays(root):
    "Where it is the learner's too; a folder of its own goes along"
    learn = Learner(kinds['from_folder'](root), resnet18(num_classes=4), path=None,
                    cbs=MemoryCallback(SlotBank(8), head=None))
    assert learn.path==root/'im'
    learn.export('e.pkl')
    check(root/'im/e.pkl', learn, [])
    assert load_learner(root/'im/e.pkl').path==Path('.') and learn.path==root/'im'
    assert load_learner(exported(made(sets(x3), root))).path==out(root)

def test_what_metrics_gathered_stays(root):
    learn = made(sets(x3), root)
    quietly(learn, learn.fit, 1, 1e-2)
    m, = [o for o in learn.metrics if isinstance(o, AccumMetric)]
    assert len(m.targs) and sum(map(len, m.targs))==N-cut
    new = load_learner(exported(learn))
    o, = [o for o in new.metrics if isinstance(o, AccumMetric)]
    assert len(o.targs)==len(o.preds)==0 and sum(map(len, m.targs))==N-cut
    assert new.metrics[1].name==m.name

def of_text(f): return str(f)
def test_functions_that_name_items(root):
    "Are left out where they would bring what they look into, and are asked for before training"
    table = {str(f):p for f,p in zip(files(root), patients)}
    dls = block().dataloaders(root, **kw)
    learn = made(dls, root, group=lambda f: table[str(f)], item=str)
    quietly(learn, learn.fit, 1, 1e-2)
    assert copy.deepcopy(learn.batch_ids).by_group is not None and not isinstance(learn.batch_ids.by_group, LeftOut)
    path = exported(learn)
    check(path, learn, [])
    new = load_learner(path)
    assert isinstance(new.batch_ids.by_group, LeftOut) and new.batch_ids.by_item is str
    quietly(new, new.predict, files(root)[0])
    r = quietly(new, new.recall, files(root)[-2:])
    assert r.row_item.shape==(2,3)
    new.dls = dls
    assert 'by_group' in err(quietly, new, new.fit, 1)
    new.batch_ids.by_group = of_text
    quietly(new, new.fit, 1, 1e-2)

n_digits,table_here = 2,{'a':1}
@pytest.mark.parametrize('f,brings', [
    (of_text,False), (lambda o: str(o)[:n_digits],False), (partial(round, ndigits=1),False),
    (lambda o: re.sub('a', 'b', str(o)),False), (table_here.get,True), (lambda o: table_here[o],True),
    (Own(1, 2),True), (lambda o: [k for k in str(o) if (lambda: table_here)()],True),
    (partial(getattr, table_here),True), (lambda o, t=frozenset('ab'): o in t,True), (lambda o, *, t=X: o in t,True)])
def test_what_brings_data(f, brings): assert brings_data(f)==brings

def test_a_closure_over_a_number_stays(root):
    n = len(str(root))
    learn = made(block().dataloaders(root, **kw), root, group=lambda f: str(f)[n:n+14])
    quietly(learn, learn.fit, 1, 1e-2)
    new = load_learner(exported(learn))
    assert new.batch_ids.by_group(files(root)[0])==str(files(root)[0])[n:n+14]

def test_a_column_stays(root):
    learn = made(kinds['from_df'](root), root, group='patient')
    quietly(learn, learn.fit, 1, 1e-2)
    new = load_learner(exported(learn))
    assert new.batch_ids.by_group=='patient' and new.memory.group=='patient'

def test_what_the_user_s_functions_hold_is_said(root):
    table = {f.name:label(f) for f in files(root)}
    dls = ImageDataLoaders.from_name_func(root, files(root), lambda o: table[Path(o).name], seed=1, **kw)
    learn = made(dls, root)
    with pytest.warns(UserWarning, match='names items of the data set .*private'): exported(learn)

@pytest.mark.parametrize('make', [lambda big: nn.Parameter(big[3:4]), lambda big: big[:0], lambda big: big[::7],
                                  lambda big: TensorImage(big[5:6]), lambda big: [big[1],dict(a=big[2])]])
def test_a_view_of_data_anywhere_in_a_learner(make, root):
    learn = made(sets(x3), root)
    big = torch.arange(100_000.).view(100, 1000)
    learn.something = make(big)
    path = exported(learn)
    assert sum(map(len, pieces(path)[2]))<70_000
    new,old = load_learner(path).something,learn.something
    if isinstance(old, list): assert torch.equal(new[0], old[0]) and torch.equal(new[1]['a'], old[1]['a'])
    else: assert torch.equal(new, old) and type(new) is type(old) and new.requires_grad==old.requires_grad

def test_tensors_that_are_shared_stay_shared(root):
    learn = made(sets(x3), root)
    learn.model.tied = learn.model.last
    new = load_learner(exported(learn))
    assert new.model.tied.weight is new.model.last.weight

@pytest.mark.parametrize('pickler', ['cloudpickle','pickle'])
def test_other_picklers(pickler, root):
    import importlib
    learn = made(sets(x3), root)
    learn.path.mkdir(exist_ok=True)
    learn.export('p.pkl', pickle_module=importlib.import_module(pickler))
    check(out(root)/'p.pkl', learn, [])

class ExportEach(Callback):
    order = 70
    def after_epoch(self): self.learn.export(f'in{self.epoch}.pkl')

def test_in_the_middle_of_a_fit(root):
    "The fit goes on as without it"
    def go(cbs):
        set_seed(0)
        learn = made(sets(x3), root, ClassBank(4, 4))
        learn.path.mkdir(exist_ok=True)
        quietly(learn, learn.fit, 2, 1e-2, cbs=cbs)
        return learn
    a,b = go([]),go([ExportEach()])
    assert all(torch.equal(v, b.model.state_dict()[k]) for k,v in a.model.state_dict().items())
    assert a.recorder.values==b.recorder.values
    check(out(root)/'in0.pkl', b, [])

class Stop(Callback):
    order = 90
    def __init__(self, event): setattr(self, event, self.stop)
    def stop(self): raise KeyboardInterrupt

@pytest.mark.parametrize('event', ['after_batch','before_validate','after_epoch'])
@pytest.mark.parametrize('pickler', ['cloudpickle','pickle'])
def test_after_a_fit_that_was_interrupted(event, pickler, root):
    import importlib
    learn = made(sets(x3), root)
    learn.path.mkdir(exist_ok=True)
    with pytest.raises(KeyboardInterrupt): quietly(learn, learn.fit, 2, 1e-2, cbs=Stop(event))
    names = learn.metrics.attrgot('name')
    learn.export('i.pkl', pickle_module=importlib.import_module(pickler))
    check(out(root)/'i.pkl', learn, [])
    assert [m.name for m in load_learner(out(root)/'i.pkl').metrics]==['accuracy','f1_score']
    assert learn.metrics.attrgot('name')==names

def test_an_export_that_fails_changes_nothing(root):
    learn = made(sets(x3), root)
    quietly(learn, learn.fit, 1, 1e-2)
    dls,opt,learn.bad = learn.dls,learn.opt,(o for o in 'ab')
    with pytest.raises(TypeError): exported(learn)
    assert learn.dls is dls and learn.opt is opt
    del learn.bad
    quietly(learn, learn.fit, 1, 1e-2)

def test_without_a_memory_it_is_fastai_s(root):
    learn = Learner(sets(x3), nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), path=out(root))
    exported(learn)
    learn = Learner(own(Own)(root), nn.Linear(2, 2), loss_func=noop, path=out(root))
    with pytest.raises(AttributeError): exported(learn)

def test_ids_are_kept_on_a_set_and_in_copies_of_it():
    import pickle
    ds = Own([object() for _ in range(5)], [0]*5)       # nothing that could be digested
    ids = item_ids(ds)
    assert torch.equal(item_ids(ds), ids) and '_memo_ids' in vars(ds)
    assert torch.equal(item_ids(copy.deepcopy(ds)), ids)
    ds = Own(x3, y4)
    ids = item_ids(ds)
    assert len(pickle.dumps(ds))-len(pickle.dumps(Own(x3, y4)))<300
    assert torch.equal(item_ids(pickle.loads(pickle.dumps(ds))), ids)

def test_no_items():
    ds = NoItems('ab')
    assert len(ds)==0 and ds.vocab=='ab' and list(ds)==[] and ds.new_empty() is ds and not hasattr(NoItems(), 'vocab')
    assert is_named(Path.exists) and not is_named(partial(str, 1)) and not is_named(Own(1, 2))
