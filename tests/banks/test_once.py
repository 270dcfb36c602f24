"An item that comes again: with the same feature it has its row, with `once` it has one whatever it comes as"
import copy, random
import numpy as np, pytest, scipy.stats, torch
from fastai.data.all import DataLoaders
from fastai.learner import Learner
from fastai.vision.all import CrossEntropyLossFlat, set_seed
from hypothesis import given, settings, strategies as st
from sklearn.datasets import load_digits
from torch import nn
from toys.bank import Ring
from helpers.learners import quietly
from helpers.tensors import gen
from memo.banks.base import Bank
from memo.banks.classes import ClassBank, dtypes
from memo.banks.exchange import bank_from_json
from memo.banks.slots import SlotBank
from memo.data.tensors import TensorDL, TensorSet
from memo.training.memory_callback import MemoryCallback

_d = load_digits()
X,Y = torch.from_numpy(_d.data).float()/16,torch.from_numpy(_d.target).long()
# ten images of a nine, all of the others
AT = torch.cat([(Y==9).nonzero()[:10,0], (Y!=9).nonzero()[:,0]])

def epochs(b, n, x=X, y=Y, at=AT, bs=64, seed=0, noise=0.):
    g = gen(seed)
    for _ in range(n):
        for i in torch.randperm(len(at), generator=g).split(bs):
            o = at[i]
            slot = b.write(x[o]*(1+noise*torch.randn(len(o), 1, generator=g)), y[o], item=o)
            some = slot>=0
            assert torch.equal(b.rows()[3][slot[some]], o[some])
    return b

def kept(b, c):
    _,_,y,item,_,valid = b.rows()
    return item[(y==c) if valid is None else (y==c) & valid]

def is_sound(b):
    "Counts and rows go together, and a row is of the item it names"
    f,valid,y,item,_,ok = b.rows()
    assert len(b)==int(ok.sum())==int(b.count)==int(b.class_counts().sum())
    assert torch.equal((item>=0).view(b.n_classes, -1).sum(1), b.class_counts())

@pytest.mark.parametrize('dtype', dtypes)
@pytest.mark.parametrize('once', [None, True, False])
def test_images_without_views_are_stored_once(once, dtype):
    "It was: 170 rows of ten images, and 111 of the 178 of a frequent class where all of them fit"
    b = epochs(ClassBank(10, capacity=190, once=once, dtype=dtype), 4, bs=128)
    for c in range(10):
        assert sorted(kept(b, c).tolist())==sorted(AT[Y[AT]==c].tolist())
    assert torch.equal(b.item_counts(), torch.bincount(Y[AT])) and torch.equal(b.counts, 4*torch.bincount(Y[AT]))
    assert int(b.seen)==4*len(AT) and int(b.replaced)==0
    is_sound(b)

@pytest.mark.parametrize('once', [None, True])
def test_displaced_items_come_again(once):
    "Their rows were given up: they may have one again, nobody has two, and no item has better chances than another"
    hits,runs,k = torch.zeros(len(X)),25,40
    for seed in range(runs):
        b = epochs(ClassBank(10, capacity=k, once=once, seed=seed), 3, bs=128, seed=seed, noise=1e-6*(seed%2))
        for c in range(10):
            i = kept(b, c)
            assert len(i)==len(i.unique())==min(k, int((Y[AT]==c).sum()))
            hits[i] += 1
        is_sound(b)
    for c in range(9):
        o,p = hits[AT[Y[AT]==c]].numpy(),k/int((Y==c).sum())
        z = ((o-runs*p)**2).sum()/(runs*p*(1-p))*(1-1/len(o))
        assert scipy.stats.chi2.sf(z, len(o)-1)>1e-3

def test_once_is_the_newest_view():
    b,views = ClassBank(10, capacity=64, once=True),ClassBank(10, capacity=64)
    for i in range(5):
        for o in (b,views): o.write(X[:60]+i, Y[:60], item=torch.arange(60))
    assert len(b)==60 and len(views)==300 and not b.views and views.views
    at = torch.cat([kept(b, c) for c in range(10)])
    f,n,_,item,_,ok = b.rows()
    assert torch.allclose(f[ok]*b.norms.flatten()[ok][:,None], X[item[ok]]+4, atol=1e-4) and len(at)==60
    assert torch.equal(views.item_counts(), b.item_counts())

def test_rounding_is_no_view_and_length_is():
    for dtype in dtypes:
        b = ClassBank(10, capacity=64, dtype=dtype)
        b.write(X[:60], Y[:60], item=torch.arange(60))
        b.write(X[:60]*(1+1e-6), Y[:60], item=torch.arange(60))
        assert len(b)==60
        b.write(X[:60]*1.1, Y[:60], item=torch.arange(60))
        assert len(b)==120

@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=20), min_size=1, max_size=8), st.integers(1, 5),
       st.sampled_from([None, True]), st.booleans(), st.integers(0, 9))
def test_any_sequence_of_offers(batches, capacity, once, multi, seed):
    "Copies in a batch, in later batches, of items that have or had a row"
    b = ClassBank(3, capacity=capacity, once=once, seed=seed)
    y = torch.arange(12)%3
    if multi: y = torch.stack([torch.arange(12)%3==0, torch.arange(12)%2==0, torch.arange(12)>3], 1).float()
    for o in batches:
        i = torch.tensor(o)
        slot = b.write(X[i], y[i], item=i)
        at = slot>=0
        who = i[:,None].expand_as(slot) if multi else i
        assert torch.equal(b.items.flatten()[slot[at]], who[at]) and len(slot[at].unique())==int(at.sum())
        if len(b)==0: continue
        is_sound(b)
        for c in range(3): assert len(kept(b, c))==len(kept(b, c).unique())
    seen = torch.tensor([o for bs in batches for o in bs]).unique()
    n = y[seen].sum(0) if multi else torch.bincount(y[seen], minlength=3)
    assert torch.equal(b.class_counts(), n.long().clamp(max=capacity))
    assert torch.equal(b.item_counts(), b.class_counts())

def test_views_in_turn_within_a_batch():
    "As of an oversampled image that is flipped or not: two views, not three rows"
    x = torch.stack([X[0],X[0].flip(0),X[0],X[1],X[0].flip(0)])
    b = ClassBank(10, capacity=8)
    slot = b.write(x, torch.tensor([0,0,0,1,0]), item=torch.tensor([7,7,7,8,7]))
    assert len(b)==3 and (slot>=0).tolist()==[False,False,True,True,True]
    b.write(x, torch.tensor([0,0,0,1,0]), item=torch.tensor([7,7,7,8,7]))
    assert len(b)==3

def test_rows_of_nobody_are_rows():
    "Without ids, or with unknown ones, the same feature may be two images"
    for item in (None, torch.full((20,), -1)):
        b = ClassBank(10, capacity=8)
        for _ in range(2): b.write(X[:20], Y[:20], item=item)
        assert len(b)==40 and b.item_counts().sum()==0

@pytest.mark.parametrize('momentum', [0., .9])
def test_slots_with_momentum(momentum):
    b = epochs(SlotBank(2000, policy='fifo', momentum=momentum), 3)
    assert sorted(b.items[:len(b)].tolist())==sorted(AT.tolist())
    assert torch.allclose(b.features[:len(b)], X[b.items[:len(b)]], atol=1e-5)

def test_two_processes_are_one():
    "Each applies the gathered batch, with what a sampler adds to make the batches even"
    banks = [ClassBank(10, capacity=30) for _ in range(2)]
    g = gen(1)
    for _ in range(3):
        at = torch.randperm(500, generator=g)
        at = torch.cat([at,at[:12]])        # padded to whole batches
        for i in at.split(64):
            for b in banks: b.write(X[i], Y[i], item=i)
    assert all(torch.equal(p, q) for p,q in zip(banks[0].buffers(), banks[1].buffers()))
    is_sound(banks[0])
    assert all(len(kept(banks[0], c))==len(kept(banks[0], c).unique()) for c in range(10))

def test_saved_and_gone_on_with(tmp_path):
    b = epochs(ClassBank(10, capacity=30, once=True), 2)
    b.save(tmp_path/'b.safetensors')
    new = Bank.load(tmp_path/'b.safetensors')
    assert new.once and not new.views and torch.equal(new.offers, b.offers)
    epochs(new, 1, seed=5); epochs(b, 1, seed=5)
    assert all(torch.equal(p, q) for p,q in zip(new.buffers(), b.buffers()))
    b.to_json(tmp_path/'b.json')
    again = bank_from_json(tmp_path/'b.json')
    assert torch.equal(again.offers, b.offers) and torch.equal(again.counts, b.counts) and len(again)==len(b)

def frozen_learner(bank, oversample=False):
    at = torch.cat([AT[:60], *([AT[:5]]*6)]) if oversample else AT[:120]
    set_seed(0)
    mk = lambda i,**kw: TensorDL(dataset=TensorSet(X[at], Y[at], at+10**12, list(range(10)), i), bs=16, **kw)
    dls = DataLoaders(mk(0, shuffle=True), mk(1), device='cpu')
    dls.train.rng = random.Random(0)
    return Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), loss_func=CrossEntropyLossFlat(),
                   cbs=MemoryCallback(bank, head=None))

@pytest.mark.parametrize('oversample', [False, True])
@pytest.mark.parametrize('bank', [lambda: ClassBank(10, capacity=64), lambda: ClassBank(10, capacity=3),
                                  lambda: SlotBank(64, policy='fifo'), lambda: Ring(64)])
def test_a_training_on_features(bank, oversample):
    learn = frozen_learner(bank(), oversample)
    quietly(learn, 'fit', 3)
    b = learn.memory.bank
    item = b.rows()[3] if b.rows()[5] is None else b.rows()[3][b.rows()[5]]
    assert len(item)==len(b)==len(item.unique())>10
    if isinstance(b, ClassBank): assert int(b.seen)==3*len(learn.dls.train_ds)

# the rest of a class bank: how it is filled and averaged
class Newest(ClassBank):
    "The last rows of each class"
    def place(self, y, n): return (n-1)%self.capacity

class Means(ClassBank):
    "Plain means"
    def share(self, n, total): return 1/n

def test_another_sample_in_a_line(tmp_path):
    b = Newest(10, capacity=5)
    for i in torch.arange(300).split(32): b.write(X[i], Y[i], item=i)
    for c in range(10): assert sorted(kept(b, c).tolist())==(Y[:300]==c).nonzero()[-5:,0].tolist()
    b.save(tmp_path/'b.safetensors')
    assert type(Bank.load(tmp_path/'b.safetensors', kinds=[Newest])) is Newest

def test_nothing_is_stored_behind_the_capacity():
    class Odd(ClassBank):
        def place(self, y, n): return torch.where(n%2==0, n//2-1, self.capacity)
    b = Odd(10, capacity=200)
    slot = b.write(X[:100], Y[:100], item=torch.arange(100))
    assert int((slot>=0).sum())==sum(int((Y[:100]==c).sum())//2 for c in range(10))

def test_another_prototype_in_a_line():
    b = Means(10, capacity=5)
    for i in torch.arange(300).split(32): b.write(X[i], Y[i])
    u = torch.nn.functional.normalize(X[:300])
    want = torch.stack([u[Y[:300]==c].mean(0) for c in range(10)])
    assert torch.allclose(b.prototypes(), want, atol=1e-6)

def test_the_published_start():
    "The first feature is the prototype, then (1-a) M + a f, never divided by anything"
    b,ema,n = ClassBank(10, capacity=5, rate='published'),torch.zeros(10, 64).double(),[0]*10
    for i in torch.arange(300).split(32): b.write(X[i], Y[i])
    for i,(x,c) in enumerate(zip(torch.nn.functional.normalize(X[:300].double()), Y[:300].tolist())):
        n[c] += 1
        a = min(max(.1/(n[c]/(i+1)+1e-6), .01), .5)
        ema[c] = x if n[c]==1 else (1-a)*ema[c]+a*x
    assert torch.allclose(b.prototypes().double(), ema, atol=1e-5) and torch.allclose(b.mass, torch.ones(10))
    one = ClassBank(10, capacity=5, rate='published')
    for i in range(300): one.write(X[i:i+1], Y[i:i+1])
    assert torch.allclose(one.prototypes(), b.prototypes(), atol=1e-5)

@pytest.mark.parametrize('once', [None, True])
def test_two_views_of_a_whole_set_in_one_write(once):
    "A table of all rows by all would take hundreds of gigabytes"
    n = 500_000
    b = ClassBank(10, 8, 4, once=once)
    b.write(torch.randn(n, 4), torch.arange(n//2).repeat(2)%10, item=torch.arange(n//2).repeat(2))
    assert int(b.counts.sum())==n and int(b.offers.sum())==(n//2 if once else n)
