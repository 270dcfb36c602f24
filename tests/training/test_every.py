"`every=N`: the features of each N-th batch are written, counted over the epochs of a fit"
import pytest, torch
from fastai.vision.all import Callback, GradientAccumulation
from contracts.made import learner
from helpers.errors import err
from helpers.learners import plain_part, quietly, same, snap
from memo.banks.classes import ClassBank
from memo.banks.slots import SlotBank
from memo.training.memory_callback import MemoryCallback

class Batches(Callback):
    "The items of each training batch"
    order = 10**7
    def __init__(self): self.items = []
    def before_batch(self):
        if self.training: self.items.append(self.learn.item.clone())

def writes(bank):
    got,write = [],bank.write
    def spy(x, y=None, logits=None, item=None, group=None):
        got.append(item.clone())
        return write(x, y, logits, item, group)
    bank.write = spy
    return got

@pytest.mark.parametrize('make', [lambda: SlotBank(64, policy='fifo'), lambda: ClassBank(10, capacity=8)])
@pytest.mark.parametrize('n', [1, 2, 3, 4, 7, 100])
def test_each_nth_batch(n, make):
    learn = learner(make(), None, every=n)
    got,seen = writes(learn.memory.bank),Batches()
    for _ in range(2):      # each fit begins with its first batch
        got.clear(); seen.items.clear()
        quietly(learn, 'fit', 3, cbs=seen)
        want = seen.items[::n]
        assert len(seen.items)==9 and len(got)==len(want) and all(torch.equal(a, b) for a,b in zip(got, want))

def test_the_training_is_the_same():
    a,b = (learner(ClassBank(10, capacity=8), None, every=n) for n in (1, 5))
    for o in (a,b): quietly(o, 'fit', 3)
    assert same(plain_part(snap(a.model)), plain_part(snap(b.model)))
    assert int(a.memory.bank.updates)==9 and int(b.memory.bank.updates)==2

def test_resumed_in_the_middle():
    "Which batches are written hangs on the epoch, not on what this process has done"
    part = learner(SlotBank(64, policy='fifo'), None, every=4)
    got,seen = writes(part.memory.bank),Batches()
    quietly(part, 'fit', 3, start_epoch=1, cbs=seen)
    # batches 4 and 8 of 0 to 8
    assert len(seen.items)==6 and [o.tolist() for o in got]==[seen.items[i].tolist() for i in (1, 5)]

@pytest.mark.parametrize('n', [2, 3])
def test_with_accumulated_batches(n):
    learn = learner(SlotBank(64, policy='fifo'), None, every=n)
    got,seen = writes(learn.memory.bank),Batches()
    quietly(learn, 'fit', 2, cbs=[seen, GradientAccumulation(32)])
    assert torch.equal(torch.cat(got), torch.cat(seen.items[::n]))

def test_each_memory_has_its_own():
    learn = learner(SlotBank(64, policy='fifo'), None)
    learn.add_cb(MemoryCallback(ClassBank(10, capacity=8), name='rare', every=3))
    quietly(learn, 'fit', 2)
    assert int(learn.memory.bank.updates)==6 and int(learn.rare.bank.updates)==2

def test_no_such_number():
    for n in (0, -1, 1.5, 'two', None): assert 'every' in err(MemoryCallback, SlotBank(4), every=n)
