"Memories behind one that adds rows to a batch: those are no items, nobody stores them or looks them up"
import random, warnings
import pytest, torch
from fastai.vision.all import Callback, Learner, set_seed
from torch.utils.checkpoint import checkpoint
from helpers.learners import quietly, same, snap
from helpers.tensors import close
from memo.banks.classes import ClassBank
from memo.banks.slots import SlotBank
from memo.data.longtail import digits_lt
from memo.models.small import small_cnn
from memo.training.memory_callback import MemoryCallback

@pytest.fixture(scope='module')
def dls(): return digits_lt(seed=0, n_max=40, ratio=8, valid=6, test=10)

def replay(name='rare', **kw): return MemoryCallback(ClassBank(10, capacity=16), head='replay', name=name, **kw)
def slots(head='watch', **kw): return MemoryCallback(SlotBank(512, policy='fifo'), head=head, name='near', **kw)

def trained(dls, cbs, model=lambda: small_cnn(1, 10), epochs=2):
    set_seed(0, reproducible=True)
    dls.train.rng = random.Random(0)
    learn = Learner(dls, model(), cbs=cbs)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        quietly(learn, 'fit', epochs, 1e-2)
    return learn

def items(learn): return learn.near.bank.items[:len(learn.near.bank)].tolist()

@pytest.mark.parametrize('head', ['watch','vote','density'])
@pytest.mark.parametrize('order', [1,-1])
def test_each_item_is_stored_once_whoever_comes_first(dls, head, order):
    learn = trained(dls, [slots(head),replay()][::order])
    assert len(learn.near.bank)==len(dls.train.dataset)==len(set(items(learn)))
    assert len(learn.rare.bank)>0

def test_a_watching_memory_behind_it_changes_nothing(dls):
    a,b = trained(dls, [replay()]),trained(dls, [replay(),slots()])
    a,b = snap(a.model),snap(b.model)
    assert same(a, {k:v for k,v in b.items() if k in a}) and len(b)>len(a)

@pytest.mark.parametrize('order', [1,-1])
def test_a_memory_that_changes_features_behind_it(dls, order):
    "Own rows are hidden as without a replay, and what is added passes it by"
    seen = []
    learn = trained(dls, [replay(),slots('add')][::order])
    head = learn.near.head
    was = head.bank.read
    def read(z, k, item=None, group=None, **kw):
        seen.append((len(z), None if item is None else len(item)))
        return was(z, k, item=item, group=group, **kw)
    head.bank.read = read
    quietly(learn, 'fit', 1, 1e-2)
    assert seen and all(n==m for n,m in seen if m is not None) and any(m for _,m in seen)
    assert len(learn.near.bank)==len(dls.train.dataset)

class Late(Callback):
    "Has the batch's targets come after the forward"
    order = -20
    def before_batch(self):
        if self.training: self.kept,self.learn.yb = self.yb,()
    def after_pred(self):
        if self.training: self.learn.yb = self.kept

def test_targets_that_come_after_the_forward(dls):
    a,b = (trained(dls, [replay(),*more]) for more in ((),(Late(),)))
    assert same(snap(a.model), snap(b.model)) and len(b.rare.bank)>10

def test_two_replays_in_a_row(dls):
    learn = trained(dls, [replay('one'),replay('two'),slots()])
    assert len(learn.near.bank)==len(dls.train.dataset)

def test_under_activation_checkpointing(dls):
    class Checkpointed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_cnn(1, 10)
        def forward(self, x): return checkpoint(self.net, x, use_reentrant=False)
    a = trained(dls, [replay(),slots('add')])
    b = trained(dls, [replay(),slots('add')], Checkpointed)
    for p,q in zip(a.model.parameters(), b.model.parameters()): close(p, q, 1e-5)
