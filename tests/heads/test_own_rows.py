"A head of one's own that adds rows, because it says so"
import torch
from fastai.vision.all import Callback, CrossEntropyLossFlat, Learner, SGD, set_seed
from torch import nn
from memo.banks.slots import SlotBank
from memo.data.longtail import digits_lt
from memo.heads.base import MemoryHead
from memo.training.memory_callback import MemoryCallback

class Twice(MemoryHead):
    "Sends each feature of a training step to the classifier twice"
    adds_rows = trains = True
    def fuse(self, x, z):
        s = self.step
        if s is None or not (s.open and s.adds and self.learning): return x
        self._note(added=s.yb[0])
        return torch.cat([x, x])

class Rows(Callback):
    order,run_valid = 100,False
    def __init__(self): self.seen = []
    def after_pred(self): self.seen.append((len(self.pred),len(self.y),len(self.x)))

def test_a_head_of_ones_own_adds_rows():
    "Each row twice is the mean over them once: what is trained is the same, and the classes of the rows are known"
    def trained(*cbs):
        set_seed(0)
        dls = digits_lt(n_max=20, ratio=4, valid=4, test=4, size=8, bs=16)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64,16), nn.ReLU(), nn.Linear(16,10))
        learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), opt_func=SGD, cbs=cbs)
        with learn.no_bar(), learn.no_logging(): learn.fit(2, .1)
        return learn
    a,b = trained(),trained(MemoryCallback(SlotBank(32, policy='fifo'), head=Twice), rows := Rows())
    assert rows.seen and all(p==y==2*x for p,y,x in rows.seen)
    for k,v in a.model.state_dict().items():
        torch.testing.assert_close(v, b.model.state_dict()[k], atol=1e-5, rtol=1e-4)
    assert len(b.memory.bank)==32 and (b.memory.bank.items>=0).all()
