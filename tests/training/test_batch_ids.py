"Whose row it is: ids come out of the loader with the sample, travel with the batch, and mean one item of one set"
import random, warnings
from operator import itemgetter
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from fastai.data.load import SkipItemException
from fastai.vision.all import (Callback, ColReader, CrossEntropyLossFlat, DataBlock, DataLoaders, Datasets, ImageBlock,
                               CategoryBlock, ImageDataLoaders, ItemTransform, Learner, MixUp, PILImageBW,
                               RandomSplitter, RegressionBlock,
                               SGD, TfmdDL, ToTensor, Transform, WeightedDL, accuracy, noop, nn, set_seed, tensor)
from hypothesis import given, settings, strategies as st
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from memo.banks.base import Bank
from memo.banks.slots import SlotBank
from memo.training.batch_ids import *
from memo.training.tracing import *
from memo.training.memory_callback import MemoryCallback
from memo.banks.classes import ClassBank
from memo.training.collect import *
from memo.data.samplers import BalancedDL
from memo.data.tensors import TensorDL, TensorSet
from memo.data.longtail import digits_lt
from memo.models.small import small_cnn
from memo.data.items import *
from sklearn.datasets import load_digits

d = load_digits()
X,Y = torch.from_numpy(d.images/16).float()[:,None],torch.from_numpy(d.target).long()
N = 60

def net(): return nn.Sequential(nn.Flatten(), nn.Linear(64,16), nn.ReLU(), nn.Linear(16,10))

class Truth(Callback):
    """Checks each stored row: its feature is what the network's body made of the item that it names, in the step
    in which it was written"""
    order = 10**7
    def __init__(self, ids, x, y): self.of,self.x,self.y,self.checked = {int(i):k for k,i in enumerate(ids)},x,y,0
    def before_step(self):
        for m in self.learn.memory._fits[-1].memories:
            for z,y,_,item,_ in m.kept:
                if item is None: continue
                for zi,yi,i in zip(z, y, item.tolist()):
                    if i<0: continue
                    k = self.of[i]
                    with torch.no_grad(): want = self.learn.model[:3](self.x[k][None].to(z.device))[0]
                    assert torch.allclose(zi, want,
                                          atol=1e-5) and int(yi)==int(
                                              self.y[k]), f'a row is said to be item {k}, and is not'
                    self.checked += 1

def run(dls, ids, *cbs, n=1, x=X, y=Y):
    set_seed(0)
    learn = Learner(dls, net(), loss_func=CrossEntropyLossFlat(), opt_func=SGD, metrics=accuracy,
                    cbs=[MemoryCallback(SlotBank(500, policy='fifo'), head=None), Truth(ids, x, y), *cbs])
    with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-3)
    return learn

def loaders(**kw):
    train = TfmdDL([(X[i],Y[i]) for i in range(N)], bs=16, shuffle=True, **kw)
    return DataLoaders(train, TfmdDL([(X[i],Y[i]) for i in range(N,N+20)], bs=16), device='cpu')
def ids_of(dls): return item_ids(dls.train)

# out of the loader

class skip(ItemTransform):
    def encodes(self, o):
        if int(o[1])%3==1: raise SkipItemException
        return o
def by_brightness(b): return sorted(b, key=lambda o: float(o[0].sum()))
def in_place(b):
    b.sort(key=lambda o: float(o[0].sum()))
    return b
def rebuilt(b): return [(o[0].clone(),*o[1:]) for o in sorted(b, key=lambda o: -float(o[0].sum()))]
def fewer(b): return b[::2]
def twice(b): return b+b[:3]
def unknown(b): return [(o[0].clone(),o[1].clone()) for o in reversed(b)]

@pytest.mark.parametrize('workers', [0, pytest.param(2, marks=pytest.mark.nightly)])
@pytest.mark.parametrize('kw',
                         [{}, dict(after_item=skip), dict(before_batch=by_brightness), dict(before_batch=in_place),
                          dict(before_batch=rebuilt), dict(before_batch=fewer), dict(before_batch=twice),
                          dict(after_item=skip, before_batch=rebuilt),
                                dict(drop_last=True)], ids=lambda o: '-'.join(getattr(v, '__name__', str(v))
                                    for v in o.values()) if isinstance(o, dict) else str(o))
def test_loaders_that_skip_sort_and_regroup(kw, workers):
    dls = loaders(num_workers=workers, **kw)
    learn = run(dls, ids_of(dls), n=2)
    assert learn.truth.checked>=2*16
    assert (learn.memory.bank.items[:len(learn.memory.bank)]>=0).all()

def test_samples_that_cannot_be_told_are_nobodys():
    dls = loaders(before_batch=unknown)
    learn = run(dls, ids_of(dls))
    assert learn.truth.checked==0 and len(learn.memory.bank)==N and (learn.memory.bank.items==-1).all()

def test_the_same_numbers_are_drawn():
    "A traced loader is the loader itself: order, augmentation and the state of its generator"
    a,b = loaders(),loaders()
    a.train.rng,b.train.rng = random.Random(3),random.Random(3)
    for _ in range(2):
        one,two = [o[1] for o in a.train],[o[1] for o in Traced(b.train)]
        assert all(torch.equal(p, q) for p,q in zip(one,
                                                    two)) and len(one)==len(two) and a.train.rng.getstate(
                                                        )==b.train.rng.getstate()

@pytest.mark.parametrize('make',
                         [lambda ds: TensorDL(dataset=ds, bs=16, shuffle=True),
                          lambda ds: BalancedDL(dataset=ds, bs=16, shuffle=True),
                          lambda ds: TensorDL(dataset=ds, bs=16, shuffle=True, num_workers=2),
                                  lambda ds: WeightedDL(ds, bs=16, wgts=np.arange(N)+1.)])
def test_other_loaders(make):
    ds = TensorSet(X[:N], Y[:N])
    dls = DataLoaders(make(ds), TensorDL(X[N:N+20], Y[N:N+20]), device='cpu')
    learn = run(dls, item_ids(ds), n=2)
    assert learn.truth.checked>=2*(N//16)*16

def test_a_loader_of_another_kind_is_said_once():
    from torch.utils.data import DataLoader
    dls = DataLoaders(DataLoader(TensorDataset(X[:N], Y[:N]), batch_size=16, shuffle=True),
                      DataLoader(TensorDataset(X[N:80], Y[N:80]), batch_size=16), device='cpu')
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        learn = run(dls, [], n=3)
    assert sum('is not fastai' in str(o.message) for o in w)==1
    assert len(learn.memory.bank)==3*N and (learn.memory.bank.items==-1)[:3*N].all()

# with the batch

class Changes(Callback):
    "Does something to a batch before it is used; says so or not"
    order = 5
    def __init__(self, f, say=False): self.f,self.say = f,say
    def before_batch(self):
        if not self.training: return
        i = self.f(len(self.y))
        self.learn.xb,self.learn.yb = (self.x[i],),(self.y[i],)
        if self.say: self.learn.reindex(i)

ways = dict(thin=lambda n: torch.arange(0, n, 2), permute=lambda n: torch.randperm(n),
            double=lambda n: torch.arange(2*n)%n,
            pad=lambda n: torch.cat([torch.arange(n), torch.zeros(3, dtype=torch.long)]),
            one=lambda n: torch.tensor([n-1]),
            same=lambda n: torch.arange(n))

@pytest.mark.parametrize('say', [False,True])
@pytest.mark.parametrize('way', ways)
def test_batches_that_are_thinned_permuted_doubled(way, say):
    dls = loaders()
    learn = run(dls, ids_of(dls), Changes(ways[way], say), n=2)
    b = learn.memory.bank
    assert learn.truth.checked>0 and (b.items[:len(b)]>=0).all()

def test_an_augmentation_keeps_its_ids():
    class Noise(Callback):
        def before_batch(self): self.learn.xb = (self.x+.01*torch.randn_like(self.x),)
    dls = loaders()
    set_seed(0)
    learn = Learner(dls, net(), loss_func=CrossEntropyLossFlat(),
                    cbs=[MemoryCallback(SlotBank(100, policy='fifo'), head=None), Noise()])
    with warnings.catch_warnings(), learn.no_bar(), learn.no_logging():
        warnings.simplefilter('error', UserWarning)
        learn.fit(2)
    assert len(learn.memory.bank)==N

class InPlace(Callback):
    order = 5
    def before_batch(self):
        if not self.training: return
        i = torch.randperm(len(self.y))
        self.x[:],self.y[:] = self.x[i].clone(),self.y[i].clone()

def test_a_batch_permuted_in_place():
    dls = loaders()
    learn = run(dls, ids_of(dls), InPlace(), n=2)
    assert learn.truth.checked==2*N

class Strange(Callback):
    "New rows with other targets, or other ones in front"
    order = 5
    def __init__(self, how): self.how = how
    def before_batch(self):
        if not self.training: return
        if self.how=='new': self.learn.xb,self.learn.yb = (torch.rand_like(self.x),),((self.y+1)%10,)
        if self.how=='in front':
            self.learn.xb,self.learn.yb = (torch.cat([torch.rand_like(self.x), self.x]),
                                           ),(torch.cat([(self.y+1)%10, self.y]),)
        if self.how=='wrong number': self.learn.reindex([0,1])
        if self.how=='joined':
            self.learn.xb = ((self.x+self.x.flip(0))/2,)
            self.learn.reindex(torch.full((len(self.y),), -1))

@pytest.mark.parametrize('how,own,warned',
                         [('new',0,True), ('in front',N,True), ('wrong number',0,True), ('joined',0,False)])
def test_strange_rows_are_nobodys(how, own, warned):
    dls = loaders()
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        learn = run(dls, ids_of(dls), Strange(how), n=2)
    said = [str(o.message) for o in w if 'nobody' in str(o.message)]
    assert len(said)==warned
    b = learn.memory.bank
    assert int((b.items[:len(b)]>=0).sum())==own and learn.truth.checked==2*own

def test_item_and_group_are_of_the_batch_in_flight():
    seen = []
    class Look(Callback):
        def after_loss(self):
            seen.append((self.training, self.learn.item.clone(), self.learn.group.clone(), len(self.y)))
    ds = [TensorSet(X[a:b], Y[a:b], items=torch.arange(a,b)) for a,b in ((0,N),(N,80))]
    dls = DataLoaders(TensorDL(dataset=ds[0], bs=16, shuffle=True), TensorDL(dataset=ds[1], bs=16), device='cpu')
    learn = Learner(dls, net(), loss_func=CrossEntropyLossFlat(),
                    cbs=[MemoryCallback(SlotBank(100), head='add', group=lambda o: int(o)//7), Look()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    train = torch.cat([i for t,i,_,_ in seen if t])
    assert sorted(train.tolist())==list(range(N)) and torch.cat([i for t,
        i,_,_ in seen if not t]).tolist()==list(range(N,80))
    groups = {int(i):int(g) for _,a,b,_ in seen for i,g in zip(a, b)}
    assert all((groups[i]==groups[j])==(i//7==j//7) for i in range(80) for j in range(80))
    assert getattr(learn, 'item', None) is None
    learn.memory.detach()
    learn.add_cb(BatchIds())        # by itself, for whoever needs ids
    seen.clear()
    learn.remove_cb(Look)
    class Own(Callback):
        def after_loss(self): seen.append(self.learn.item)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=Own())
    assert len(torch.cat(seen))==80

@settings(max_examples=25)
@given(n=st.integers(1,12), seed=st.integers(0,999),
       dtype=st.sampled_from([torch.float32,torch.uint8,torch.float16,torch.bool,torch.int64]))
def test_marks_find_rows(n, seed, dtype):
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 2, (n,3,70),
                      generator=g).to(dtype) if dtype==torch.bool else (torch.rand(n,3,70, generator=g)*200).to(dtype)
    i = torch.randint(0, n, (7,), generator=g)
    assert torch.equal(row_marks(x[i]), row_marks(x)[i])
    assert len(row_marks(x).unique())==len(x.flatten(1).unique(dim=0))

# one item of one set

def test_another_split_recalls_its_own_items(tmp_path):
    "A bank goes to another random split of the same set: rekey puts no feature under another item's label"
    whole = TensorDataset(X[:400], Y[:400])
    def split(seed):
        p = torch.randperm(400, generator=torch.Generator().manual_seed(seed))
        return DataLoaders(*(TfmdDL(Subset(whole, o.tolist()), bs=32, shuffle=i==0)
                             for i,o in enumerate((p[:300], p[300:]))), device='cpu')
    set_seed(0)
    learn = Learner(split(0), net(), loss_func=CrossEntropyLossFlat(),
                    cbs=MemoryCallback(SlotBank(300, policy='fifo'), head='vote'))
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    learn.memory.bank.save(tmp_path/'b.safetensors')
    again = Learner(split(1), net(), loss_func=CrossEntropyLossFlat(),
                    cbs=MemoryCallback(Bank.load(tmp_path/'b.safetensors'), head='vote'))
    bank,ids = again.memory.bank,item_ids(whole)
    n = again.memory.rekey()
    place = {int(k):i for i,k in enumerate(ids)}
    assert n>150 and all(int(y)==int(Y[place[int(i)]]) for y,i in zip(bank.labels[:300], bank.items[:300]))

def test_two_phases_on_disjoint_subsets():
    whole = TensorDataset(X[:200], Y[:200])
    one,two = (DataLoaders(TfmdDL(Subset(whole, list(r)), bs=20, shuffle=True), TfmdDL(Subset(whole, list(r)), bs=20),
                           device='cpu') for r in (range(100), range(100,200)))
    set_seed(0)
    learn = Learner(one, net(), loss_func=CrossEntropyLossFlat(),
                    cbs=MemoryCallback(SlotBank(200, policy='fifo'), head=None))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        learn.dls = two
        learn.fit(1)
    assert len(learn.memory.bank)==200 and set(learn.memory.bank.items.tolist())==set(item_ids(whole).tolist())

class Own(Dataset):
    def __init__(self, lo, hi, fold=0): self.x,self.y,self.fold = X[lo:hi].clone(),Y[lo:hi].clone(),fold
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i],self.y[i]

class Closed(Own):
    def __init__(self, *a):
        super().__init__(*a)
        self.file = open(__file__)

def test_own_data_sets():
    a,b = Own(0,50),Own(50,100)
    assert torch.equal(item_ids(a),
                       item_ids(Own(0,50))) and not set(item_ids(a).tolist()) & set(item_ids(b).tolist()) and not set(
                           item_ids(a).tolist()) & set(item_ids(Own(0,50,1)).tolist())
    c = Closed(0,50)
    assert torch.equal(item_ids(c),
                       item_ids(c)) and not set(item_ids(c).tolist()) & set(item_ids(Closed(0,50)).tolist())
    was = item_ids(a).clone()
    a.x[:] = a.x.flip(0)
    assert not set(was.tolist()) & set(item_ids(a).tolist()), 'changed in place: other items'
    assert torch.equal(item_ids(ConcatDataset([a,b])), torch.cat([item_ids(a),item_ids(b)]))
    assert all((item_ids(o)>=2**32).all() for o in (a,b,c))

@pytest.mark.parametrize('cold', [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_another_process(python, repo, cold):
    "Digests are the same there; a set that cannot be digested has other ids"
    src = (f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_batch_ids import "
           "*\nprint(item_ids(Own(0,5)).tolist()); print(item_ids(Closed(0,5)).tolist()); "
           "print(item_ids(TensorDataset(X[:5],Y[:5])).tolist())")
    r = python('-W', 'ignore', '-c', src, cwd=repo, cold=cold)
    own,closed,tensors = map(eval, r.stdout.strip().splitlines()[-3:])
    assert own==item_ids(Own(0,5)).tolist() and tensors==item_ids(TensorDataset(X[:5],
        Y[:5])).tolist() and not set(closed) & set(item_ids(Closed(0,5)).tolist())

def test_sorting_a_list_in_place_moves_its_ids():
    items = [Path(f'{i}.png') for i in (3,1,2)]
    ds = Datasets(items, [noop])
    was = dict(zip(map(str, ds.items), item_ids(ds).tolist()))
    ds.items.sort()
    assert dict(zip(map(str, ds.items), item_ids(ds).tolist()))==was

def test_duplicates_are_one_item(tmp_path):
    "Oversampled files do not find themselves"
    fs = []
    for i in range(12):
        PILImageBW.create((X[i,0].numpy()*255).astype(np.uint8)).save(tmp_path/f'{i}.png')
        fs.append(tmp_path/f'{i}.png')
    rare = fs[:2]*3
    dls = ImageDataLoaders.from_lists(tmp_path, fs+rare, Y[:12].tolist()+Y[:2].tolist()*3, valid_pct=.2, seed=0, bs=4,
                                      num_workers=0)
    ids = dict(zip(map(str, dls.train_ds.items), item_ids(dls.train).tolist())) if not isinstance(dls.train_ds.items[0],
        tuple) else {str(o[0]):i for o,i in zip(dls.train_ds.items, item_ids(dls.train).tolist())}
    both = [(str(o[0]) if isinstance(o, tuple) else str(o)) for o in dls.train_ds.items]
    assert len(set(item_ids(dls.train).tolist()))==len(set(both))<len(both)

def frame(): return pd.DataFrame(dict(file=[f'{i}.png' for i in range(8)], label=[0,1]*4, site=list('abcdabcd')))

@pytest.mark.parametrize('getter',
                         [ColReader('file'), ColReader('file', pref='x/'), lambda r: r['file'],
                          lambda r: Path('d')/r.file])
def test_a_data_frame_that_gets_a_column_or_a_corrected_label(getter):
    df = frame()
    def ids(df): return item_ids(Datasets(df, [[getter], [ColReader('label')]]))
    was = ids(df)
    assert torch.equal(ids(df.assign(new=3.5, label=1-df.label)), was) and len(was.unique())==8
    assert torch.equal(ids(df.iloc[::-1]), was.flip(0))

def test_by_a_column_or_a_function():
    df = frame()
    ds = Datasets(df, [[ColReader('file')], [ColReader('label')]])
    assert len(item_ids(ds, 'site').unique())==4 and torch.equal(item_ids(ds, 'site'), item_ids(ds, lambda r: r.site))
    from memo.core import MemoError
    with pytest.raises(MemoError, match='no data frame with that column'): item_ids(ds, 'sight')

def test_old_positions_are_nobodys(tmp_path):
    "A bank of version 0.1, whose items were positions in some list"
    import json
    from safetensors.torch import load_file, save_file
    b = SlotBank(8, policy='fifo')
    b.write(torch.randn(4, 3), item=torch.tensor([3, 2**40, 7, -1]))
    b.save(tmp_path/'new.safetensors')
    assert Bank.load(tmp_path/'new.safetensors').items[:4].tolist()==[3, 2**40, 7,
        -1], 'numbers that a user gave himself stay'
    sd = load_file(tmp_path/'new.safetensors')
    old = {k:v for k,v in json.loads(b.describe()).items() if k!='ids'}
    sd['_extra_state'] = torch.frombuffer(bytearray(json.dumps(old), 'utf8'), dtype=torch.uint8)
    save_file(sd, tmp_path/'old.safetensors', metadata=dict(memo=json.dumps(old)))
    with pytest.warns(UserWarning, match='2 rows of a saved bank name their items by position'):
        again = Bank.load(tmp_path/'old.safetensors')
    assert again.items[:4].tolist()==[-1, 2**40, -1, -1]

def test_lists_of_objects():
    "A list has no place to keep its ids; they stay while it does"
    from PIL import Image
    ims = [Image.fromarray((X[i,0].numpy()*255).astype(np.uint8)) for i in range(6)]
    a = [(im,int(y)) for im,y in zip(ims, Y)]
    assert torch.equal(item_ids(a), item_ids([(im.copy(),y) for im,y in a]))
    class Thing:
        __slots__ = ('f',)
    b = [Thing() for _ in range(5)]
    for o in b: o.f = open(__file__)
    was = item_ids(b)
    assert torch.equal(item_ids(b), was) and not set(item_ids(list(b)).tolist()) & set(was.tolist())
    for _ in range(40): item_ids([Thing()])
    b.reverse()
    assert not set(item_ids(b).tolist()) & set(was.tolist()), 'in another order: other items, rather than wrong ones'

class Counts(Own):
    "Counts and remembers what it is asked for, as many sets do"
    def __init__(self, *a):
        super().__init__(*a)
        self.cache = {}
    n = 0
    def __getitem__(self, i):
        self.n += 1
        return self.cache.setdefault(i, super().__getitem__(i))

def test_a_set_that_counts_keeps_its_ids():
    ds = Counts(0, 50)
    dls = DataLoaders(TfmdDL(ds, bs=10, shuffle=True), TfmdDL(Own(50,70), bs=10), device='cpu')
    set_seed(0)
    learn = Learner(dls, net(), loss_func=CrossEntropyLossFlat(),
                    cbs=MemoryCallback(SlotBank(200, policy='fifo'), head='vote'))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        learn.fit(1)
    assert len(learn.memory.bank)==50 and learn.memory.rekey()==50
    r = learn.recall(ds_idx=0, n=20)
    assert not (r.row_item==r.item[:,None]).any()

class Augmented(Own):
    def __getitem__(self, i): return self.x[i]+.1*torch.randn_like(self.x[i]),self.y[i]

@pytest.mark.parametrize('wrap', [lambda d: d, lambda d: Subset(d, range(40))])
def test_looking_at_a_set_draws_nothing(wrap):
    "A watching memory leaves a run's random numbers alone"
    def go(cbs):
        dls = DataLoaders(TfmdDL(wrap(Augmented(0,50)), bs=10, shuffle=True), TfmdDL(Own(50,70), bs=10), device='cpu')
        set_seed(0)
        dls.train.rng = random.Random(0)
        learn = Learner(dls, net(), loss_func=CrossEntropyLossFlat(), cbs=cbs)
        set_seed(0)
        with learn.no_bar(), learn.no_logging(): learn.fit(2)
        return learn.model.state_dict()
    a,b = go(None),go(MemoryCallback(SlotBank(50), head=None))
    assert all(torch.equal(v, b[k]) for k,v in a.items())

def test_two_items_that_change_places():
    items = [(X[i],Y[i]) for i in range(200)]
    was = item_ids(items)
    items[77],items[78] = items[78],items[77]
    assert torch.equal(item_ids(items)[[77,78]], was[[78,77]])
    pairs = [(i,i%3) for i in range(200)]       # numbers mean something within one set only
    was = item_ids(pairs)
    pairs[77],pairs[78] = pairs[78],pairs[77]
    assert not set(item_ids(pairs).tolist()) & set(was.tolist())
    paths = Datasets([Path(f'{i}.png') for i in range(200)], [noop])
    was = item_ids(paths).clone()
    paths.items[77],paths.items[78] = paths.items[78],paths.items[77]
    assert torch.equal(item_ids(paths)[[77,78]], was[[78,77]])

def reads(x):
    class G(Dataset):
        def __len__(self): return len(x)
        def __getitem__(self, i): return x[i],Y[i]
    return G()
glob = X[:50].clone()
class Glob(Dataset):
    def __len__(self): return 50
    def __getitem__(self, i): return glob[i],Y[i]

def test_sets_that_read_what_is_outside_of_them():
    global glob
    a,b = item_ids(reads(X[:50])),item_ids(reads(X[50:100]))
    assert not set(a.tolist()) & set(b.tolist()) and torch.equal(item_ids(reads(X[:50].clone())), a)
    a,glob = item_ids(Glob()),X[50:100].clone()
    assert not set(a.tolist()) & set(item_ids(Glob()).tolist())

def test_rekey_puts_no_feature_under_another_label():
    b = SlotBank(8, policy='fifo')
    b.write(torch.zeros(4,3)+1, torch.tensor([0,1,2,3]), item=torch.arange(4))
    with pytest.warns(UserWarning, match='2 of 4 stored rows have another label'):
        n = b.rekey(torch.full((4,3), 5.), torch.arange(4), torch.tensor([0,1,3,2]))
    assert n==2 and b.features[:4,0].tolist()==[5,5,1,1]

def test_inputs_that_are_alike_say_nothing():
    """Categories of a table: rows of several items look the same there; all inputs are looked at, and what is
    still alike is nobody's"""
    cat,cont,y = torch.zeros(30, 2, dtype=torch.long),torch.arange(30.)[:,None].repeat(1,3),torch.arange(30)%5
    rows = _rows((cat, cont), (y,))
    i = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rows.places((cat[i], cont[i]), (y[i],), torch.arange(30)), i)
    alike = _rows((cat,), (y,))
    assert (alike.places((cat[i],), (y[i],), torch.arange(30))==-1).all()
    assert torch.equal(alike.places((cat+1,), (y,), torch.arange(30)), torch.arange(30)), 'an augmentation'
    twice = torch.tensor([7,7,8])
    same = _rows((cont[[0,0,1]],), (y[:3],))
    assert same.places((cont[[1,0]],), (y[[2,0]],), twice).tolist()==[2,
        0], 'one item that is twice in a batch is that item'

def _rows(xb, yb):
    from memo.training.tracing import _Rows
    return _Rows(list(xb), yb)

@pytest.mark.parametrize('lay', ['plain','channels last','transposed','every other','half','offset'])
def test_written_to_where_torch_does_not_see_it(lay):
    "Through numpy, in batches of any layout in memory"
    x = torch.arange(4*3*8*8.).reshape(4,3,8,8)
    x = {'channels last':lambda: x.contiguous(memory_format=torch.channels_last), 'transposed':lambda: x.transpose(2,3),
         'every other':lambda: x.repeat_interleave(2, 0)[::2], 'half':x.half,
         'offset':lambda: torch.cat([x,x])[2:6]}.get(lay, lambda: x)()
    y = torch.arange(4)
    rows = _rows((x,), (y,))
    assert rows.same([x], (y,)) and rows.same([x], (y,))
    x.numpy()[:] = x.numpy()[[1,0,2,3]].copy()
    assert not rows.same([x], (y,))
    assert rows.places((x,), (y,), torch.arange(4)).tolist()==[1,0,2,3]

# several callbacks, several inputs, other loaders in the middle

class Also(Changes): order = 6
@pytest.mark.parametrize('first,second', [(False,True), (True,False), (True,True)])
def test_one_says_so_and_another_does_not(first, second):
    "What is declared does not switch the watch off"
    dls = loaders()
    learn = run(dls, ids_of(dls), Changes(ways['thin'] if first else ways['permute'], first),
                Also(ways['permute'], second), n=2)
    assert learn.truth.checked>0

def test_permuted_where_torch_does_not_see_it():
    class Sly(Callback):
        order = 5
        def before_batch(self):
            if not self.training: return
            i = torch.randperm(len(self.y))
            self.x.data.copy_(self.x.data[i].clone())
            self.y.numpy()[:] = self.y.numpy()[i.numpy()].copy()
    dls = loaders()
    learn = run(dls, ids_of(dls), Sly(), n=2)
    assert learn.truth.checked==2*N

@pytest.mark.parametrize('event', ['before_batch','after_pred','after_batch'])
@pytest.mark.parametrize('how', ['next','all','new'])
def test_another_batch_in_the_middle(event, how):
    "A callback that takes batches of the loader that runs"
    class Takes(Callback):
        order = 20
        def _go(self):
            if not self.training: return
            if how=='next': next(iter(self.learn.dl))
            if how=='all': list(self.dls.train)
            if how=='new': next(iter(self.learn.dl.new()))
    setattr(Takes, event, lambda self: self._go())
    dls = loaders()
    learn = run(dls, ids_of(dls), Takes(), n=2)
    assert learn.truth.checked==2*N and int(learn.memory.bank.updates)==2*len(dls.train)

@pytest.mark.parametrize('i,say',
                         [(torch.ones(3), 'from 0 to'), ([], 'from 0 to'), ([99]*16, 'from 0 to'),
                          ([-2]*16, 'from 0 to'), ('late', 'in before_batch')])
def test_reindex_that_cannot_be(i, say):
    from memo.core import MemoError
    class Say(Callback):
        def before_batch(self):
            self.learn.reindex(i if not isinstance(i, torch.Tensor) else 17+i) if not isinstance(i, str) else None
        def after_pred(self): self.learn.reindex([0]*len(self.y)) if isinstance(i, str) else None
    dls = loaders()
    with pytest.raises(MemoError, match=say): run(dls, ids_of(dls), Say())

def test_which_rows_were_kept():
    class Keep(Callback):
        order = 5
        def before_batch(self):
            if not self.training: return
            keep = self.x.flatten(1).sum(1)>self.x.sum()/len(self.x)
            self.learn.xb,self.learn.yb = (self.x[keep],),(self.y[keep],)
            self.learn.reindex(keep)
    dls = loaders()
    learn = run(dls, ids_of(dls), Keep())
    assert 10<learn.truth.checked<N

def test_an_item_is_all_its_inputs():
    user,item,y = torch.arange(12)//4,torch.arange(12)%4,torch.arange(12)%2
    assert len(item_ids(TensorDataset(user, item, y)).unique())==12 and len(item_ids(TensorDataset(user,
        y)).unique())==3
    df = pd.DataFrame(dict(a=['x','x','y'], b=['1','2','1'], y=[0,1,0]))
    two = Datasets(df, [[ColReader('a')], [ColReader('b')], [ColReader('y')]], n_inp=2)
    assert len(item_ids(two).unique())==3 and torch.equal(item_ids(two),
                                                          item_ids(Datasets(df.assign(y=1),
                                                              [[ColReader('a')], [ColReader('b')], [ColReader('y')]],
                                                              n_inp=2)))

def test_columns_by_number_are_columns():
    "Not the index of the frame"
    def ids(df): return item_ids(Datasets(df, [[ColReader(0)], [ColReader(1)]]))
    a,b = frame()[['file','label']],frame()[['file','label']].assign(file=[f'other{i}' for i in range(8)])
    assert not set(ids(a).tolist()) & set(ids(b).tolist()) and torch.equal(ids(a.set_index(np.arange(8)+50)), ids(a))

def test_a_getter_that_opens_or_draws_is_tried_once():
    asked = []
    def get(o):
        asked.append(o)
        torch.rand(1); random.random(); np.random.rand()
        return np.zeros(3)
    ds = Datasets([f'{i}.npy' for i in range(9)], [[get], [noop]])
    asked.clear()
    was = torch.get_rng_state(),random.getstate()
    ids = item_ids(ds)
    assert len(asked)==1 and torch.equal(torch.get_rng_state(),
                                         was[0]) and random.getstate()==was[1] and torch.equal(ids,
                                             torch.tensor([hash63(f'{i}.npy') for i in range(9)]))

def test_samples_that_share_a_part():
    "One label object for all of a class; samples made anew around the same inputs"
    ys = [torch.tensor(i) for i in range(10)]
    items = [(X[i],ys[int(Y[i])]) for i in range(N)]
    train = TfmdDL(items, bs=16, shuffle=True, before_batch=lambda b: [(o[0],o[1]) for o in reversed(b)])
    dls = DataLoaders(train, TfmdDL(items[:20], bs=16), device='cpu')
    learn = run(dls, item_ids(dls.train))
    assert learn.truth.checked==N

def test_unknown_samples_are_said():
    dls = loaders(before_batch=unknown)
    with pytest.warns(UserWarning, match='makes samples anew'): run(dls, ids_of(dls))

def test_rows_of_a_table():
    "By what stands in them, not by its code; two people may be alike"
    from fastai.tabular.all import Categorify, TabularPandas
    def ids(df):
        return item_ids(TabularPandas(df, [Categorify], cat_names=['a','b'], y_names='y').dataloaders(bs=4).train)
    df = pd.DataFrame(dict(a=list('xxyyzz'), b=list('uvuvuu'), y=[0,1]*3))
    assert len(ids(df).unique())==6 and torch.equal(ids(df.assign(y=[1,0]*3)), ids(df))
    assert not set(ids(df).tolist()) & set(ids(df.assign(a=list('ppqqrr'))).tolist())

# rows that are moved where nobody says so

def by_label(b):
    from fastai.data.load import fa_collate
    return fa_collate(sorted(b, key=lambda o: (int(o[1]), float(o[0].sum()))))
def backwards(b):
    from fastai.data.load import fa_collate
    return fa_collate(b[::-1])
def in_their_order(b): return torch.stack([o[0]*2 for o in b])/2,torch.stack([o[1] for o in b])
def padded(b): return torch.nn.functional.pad(torch.stack([o[0] for o in b]), (0,0,0,0)),torch.stack([o[1] for o in b])

@pytest.mark.parametrize('workers', [0,1])
@pytest.mark.parametrize('collate,known', [(by_label,False), (backwards,False), (in_their_order,True), (padded,True)])
def test_a_collate_function_of_ones_own(collate, known, workers):
    "One that moves rows makes them nobody's, with a word; one that leaves them where they are changes nothing"
    dls = loaders(create_batch=collate, num_workers=workers)
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        learn = run(dls, ids_of(dls))
    items = learn.memory.bank.items[:len(learn.memory.bank)]
    assert len(items)==N and bool((items>=0).all())==known and bool((items==-1).all())!=known
    assert learn.truth.checked==(N if known else 0)
    assert any('made samples anew' in str(o.message) or 'makes samples anew' in str(o.message) for o in w)!=known

class Sorts(Transform):
    "A batch transform that sorts, and makes targets anew"
    def encodes(self, o): return o
    def __call__(self, b, **kw):
        i = b[0].flatten(1).sum(1).argsort()
        return tuple(o[i] for o in b)
class Thins(Sorts):
    def __call__(self, b, **kw): return tuple(o[1::2] for o in b)
class Brighter(Sorts):
    def __call__(self, b, **kw): return b[0]+1e-7,*b[1:]
class Relabels(Sorts):
    def __call__(self, b, **kw): return b[0],b[1].clone()

@pytest.mark.parametrize('tfm', [Sorts,Thins,Brighter,Relabels])
def test_batch_transforms(tfm):
    dls = loaders(after_batch=tfm())
    learn = run(dls, ids_of(dls), n=2)
    assert learn.truth.checked==2*(N//2 if tfm is Thins else N)

def test_items_that_change_between_two_epochs():
    "Other negatives in each epoch: rows are those of the files that were read"
    files = [Path(f'{i}.png') for i in range(N)]
    ds = Datasets(files[:40], [[noop,lambda p: X[int(p.stem)]], [lambda p: Y[int(p.stem)]]])
    class Others(Callback):
        def before_epoch(self):
            for tl in self.dls.train.dataset.tls: tl.items[:] = [files[(k+7*self.epoch)%N] for k in range(40)]
    dls = DataLoaders(TfmdDL(ds, bs=10, shuffle=True), TfmdDL(ds, bs=10), device='cpu')
    learn = run(dls, [hash63(p) for p in files], Others(), n=3)
    assert learn.truth.checked==120 and len(learn.memory.bank.items[:len(learn.memory.bank)].unique())==40+2*7

class Mines(Callback):
    "Hard examples only, or all of them in another order"
    order = 60
    def __init__(self, how): self.how = how
    def after_pred(self):
        if not self.training: return
        n = len(self.y)
        i = torch.arange(1, n, 2) if self.how=='half' else torch.arange(n-1, -1,
            -1) if self.how=='reversed' else torch.arange(n)
        self.learn.pred,self.learn.yb = self.pred[i],(self.y[i],)

@pytest.mark.parametrize('how', ['half','reversed','as they are'])
def test_equal_outputs_say_nothing(how):
    "A last layer of zeros answers alike to all: which rows the loss was of cannot be told by that"
    dls = loaders()
    set_seed(0)
    m = net()
    for p in m[3].parameters(): nn.init.zeros_(p)
    truth = Truth(ids_of(dls), X, Y)
    learn = Learner(dls, m, loss_func=CrossEntropyLossFlat(), opt_func=SGD,
                    cbs=[MemoryCallback(SlotBank(500, policy='fifo'), head=None), truth, Mines(how)])
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        learn.fit(1, 0.)        # all batches
    assert truth.checked==(N if how=='as they are' else 0) and any('which is whose is not known' in str(o.message)
        for o in w)!=(how=='as they are')
    learn = run(dls, ids_of(dls), Mines(how))        # outputs that differ: they can
    assert learn.truth.checked==(sum(n//2 for n in (16,16,16,12)) if how=='half' else N)

@pytest.mark.parametrize('event', ['before_batch','after_pred','after_batch'])
@pytest.mark.parametrize('how', ['whole','cut short','first batch','error'])
def test_a_validation_in_the_middle_of_a_batch(event, how):
    "However it ends, the training goes on where it was"
    from fastai.callback.training import ShortEpochCallback
    from fastai.callback.core import CancelValidException
    class Stops(Callback):
        def before_batch(self):
            if how=='first batch': raise CancelValidException
            if how=='error': raise ZeroDivisionError('in the middle')
    class Looks(Callback):
        order,busy = 70,False
        def _go(self):
            if not self.training or self.iter!=1 or self.busy: return
            l = self.learn
            self.busy,kept = True,(l.dl,l.xb,l.yb,l.pred,l.loss,l.iter,l.n_iter,l.training)
            try:
                with l.no_bar(), l.no_logging():
                    l.validate(cbs={'whole':None, 'cut short':ShortEpochCallback(.3)}.get(how, Stops()))
            except ZeroDivisionError: pass
            l.dl,l.xb,l.yb,l.pred,l.loss,l.iter,l.n_iter,l.training = kept
            l.model.train()
            self.busy = False
    setattr(Looks, event, lambda self: self._go())
    dls = loaders()
    dls.valid.bs = 4
    learn = run(dls, ids_of(dls), Looks(), n=2)
    assert int(learn.memory.bank.updates)==2*len(dls.train) and learn.truth.checked==2*N and not isinstance(learn.dl,
        Traced)

class Overrides(Callback):
    "Sees its events in a way of its own"
    order = 5
    def __call__(self, event_name):
        if event_name!='before_batch' or not self.training: return
        i = torch.randperm(len(self.y))
        self.learn.xb,self.learn.yb = (self.x[i],),(self.y[i],)

@pytest.mark.parametrize('how', ['method','function','overrides'])
def test_whoever_changes_a_batch_is_seen(how):
    "Rows are watched where anybody could move them"
    def moved(learn):
        i = torch.randperm(len(learn.y))
        learn.xb,learn.yb = (learn.x[i],),(learn.y[i],)
    class Moves(Callback):
        def before_batch(self): moved(self.learn) if self.training else None
    cb = Moves() if how=='method' else Overrides() if how=='overrides' else Callback()
    if how=='function': cb.before_batch = lambda: moved(cb.learn) if cb.learn.training else None
    dls = loaders()
    learn = run(dls, ids_of(dls), cb, n=2)
    assert learn.truth.checked==2*N

# names

def test_what_names_an_item():
    "Arrays by their content, whole numbers alike whether a column has a gap or not; nothing of the run is drawn"
    ims = [torch.rand(40, 40) for _ in range(30)]
    ds = [(o,0) for o in ims]
    for f in (lambda o: o, lambda o: o.numpy(), lambda o: (o*255).byte()):
        assert len(named_by(type('S', (), dict(items=ims, __len__=len))(), f).unique())==30
    a = pd.DataFrame(dict(image=list('abcd'), patient=[1,2,3,1]))
    b = pd.DataFrame(dict(image=list('abcde'), patient=[1,2,3,1,None]))
    one,two = (item_ids(Datasets(o, [[ColReader('image')]]), 'patient') for o in (a,b))
    assert torch.equal(one, two[:4]) and int(two[4])==-1
    class Draws(Dataset):
        def __len__(self): return 5
        def __getitem__(self, i): return torch.rand(3)+i,0
    torch.manual_seed(0)
    was = torch.get_rng_state()
    named_by(Draws(), lambda o: int(o[0]))
    assert torch.equal(torch.get_rng_state(), was)

def test_numbers_that_a_getter_gives():
    "Labels and other columns may change, as they may where the getter gives names"
    df = pd.DataFrame(dict(image=np.arange(N), label=Y[:N].numpy()))
    def ids(df): return item_ids(Datasets(df, [[ColReader('image')], [ColReader('label')]]))
    was,other = ids(df),df.copy()
    other.loc[0,'label'] += 1
    assert torch.equal(was, ids(df.copy())) and torch.equal(was, ids(other)) and torch.equal(was,
        ids(df.assign(more=1.5)))
    other.loc[0,'image'] = 999
    assert not (was==ids(other)).any(), 'numbers mean something within one set only'

def test_a_getter_that_skips():
    "Items that are skipped are skipped with a memory too"
    def image(i):
        if i==3: raise SkipItemException
        return i
    ds = Datasets(list(range(12)), [[image,lambda i: X[i]], [lambda i: Y[i]]])
    dls = DataLoaders(TfmdDL(ds, bs=4, shuffle=True), TfmdDL(ds, bs=4), device='cpu')
    learn = run(dls, item_ids(ds), x=X[:12], y=Y[:12])
    assert learn.truth.checked==11
