"Run by test_distributed.py on two gloo ranks: trains with `distrib_ctx`, and leaves in OUT what every rank has"
import random, sys, torch
from fastai.distributed import DistributedDL, num_distrib, rank_distrib
from fastai.vision.all import Callback, CancelStepException, DataLoaders, GradientAccumulation, Learner, accuracy, nn
from fastai.vision.all import set_seed
from sklearn.datasets import load_digits
from memo.banks.slots import SlotBank
from memo.banks.classes import ClassBank
from memo.banks.key_value import TrainableBank
from memo.training.memory_callback import MemoryCallback
from memo.heads.base import MemoryHead
from memo.data.tensors import TensorDL, TensorSet

def _broadcast(self, t, rank):
    "fastai's calls .cuda(), as nccl needs"
    t = torch.tensor(t)
    torch.distributed.broadcast(t, rank)
    return t.tolist()
DistributedDL._broadcast = _broadcast

d = load_digits()
X,Y = torch.from_numpy(d.images*(255/16)).round().byte()[:,None],torch.from_numpy(d.target).long()
key = {x.float().div(255).numpy().tobytes():i for i,x in enumerate(X)}
def who(xb): return torch.tensor([key[x.numpy().tobytes()] for x in xb.detach().as_subclass(torch.Tensor).contiguous()])

N = 133                                    # odd: the last item of an epoch comes twice
def dls():
    ids = torch.arange(len(X))
    def mk(i, s, **kw): return TensorDL(dataset=TensorSet(X[i], Y[i], ids[i], list(range(10)), s), bs=16, **kw)
    res = DataLoaders(mk(slice(0,N), 0, shuffle=True), mk(slice(1000,1041), 1), device='cpu')
    res.train.rng = random.Random(rank_distrib())      # rank 0's order counts
    return res

class Seen(Callback):
    """What this rank trained on: features before the memory, seen by a hook of its own; items and labels by the
    images themselves"""
    order,run_valid = 100,False
    def __init__(self): self.steps,self.now,self.own = [],[],0
    def before_fit(self): self.now = []
    def _last(self): return [m for m in self.model.modules() if isinstance(m, nn.Linear)][-1]
    def before_batch(self):
        self.hook = self._last().register_forward_pre_hook(lambda m,a: setattr(self, 'f', a[0].detach().clone()),
                                                           prepend=True)
    def after_pred(self):
        self.hook.remove()
        head,i = self.learn.memory.head,who(self.xb[0])
        if (read := self.learn.batch_ids.step.seen(head).read) is not None:
            found = head.bank.items.flatten()[read.index.clamp(min=0)].masked_fill(read.index<0, -2)
            assert not (found==i[:,None]).any(), 'a query found its own item'
            self.own += torch.isin(i, head.bank.items).sum().item()
        # replayed rows come behind the batch's
        self.now.append((self.f, Y[i], self.pred.detach()[:len(i)].clone(), i, i//7))
    def after_cancel_step(self): self.now = []
    def after_batch(self):
        if self.now and not getattr(self.learn, 'held', False):
            self.steps.append([torch.cat(o) for o in zip(*self.now)])
            self.now = []

class Micro(Callback):
    "Tells `Seen` which batches gradient accumulation holds back"
    order = 99
    def before_batch(self): self.learn.held = True
    def before_step(self): self.learn.held = False

class Overflow(Callback):
    order,run_valid = 10,False
    def before_step(self):
        if self.iter==1: raise CancelStepException

banks = dict(rarity=lambda: SlotBank(60, policy='rarity', momentum=.5), fifo=lambda: SlotBank(60, policy='fifo'),
             reservoir=lambda: SlotBank(40, policy='reservoir', seed=3),
             hard=lambda: SlotBank(50, policy='hard'), ClassBank=lambda: ClassBank(10, capacity=6))

def net(bn):
    return nn.Sequential(nn.Flatten(), nn.Linear(64,24), nn.BatchNorm1d(24) if bn else nn.Identity(), nn.ReLU(),
                         nn.Linear(24,10))

def one(name, head, how=()):
    "Train on this rank; give what it holds"
    set_seed(0)
    cbs = [MemoryCallback(banks[name](), head=head, group=lambda o: int(o)//7 if 'group' in how else int(o)),Seen()]
    if 'accumulate' in how: cbs += [GradientAccumulation(20),Micro()]
    if 'overflow' in how: cbs.append(Overflow())
    learn = Learner(dls(), net('bn' in how), metrics=accuracy, cbs=cbs)
    with learn.no_bar(), learn.no_logging(), learn.distrib_ctx(sync_bn=False):
        learn.fit(2, 1e-2)
        learn.fit_one_cycle(1, 1e-2)
        names,values = list(learn.recorder.metric_names),[list(o) for o in learn.recorder.values]
        again = list(map(float, learn.validate()))      # what the kept mixture gives
    return dict(again=again, model=learn.model.state_dict(), steps=learn.seen.steps, own=learn.seen.own,
                names=names, values=values, grouped='group' in how)

class Pull(MemoryHead):
    "Learned class rows, and a loss of its own"
    def build(self, dim, n_classes): self.centres = nn.Parameter(torch.zeros(n_classes, dim))
    def loss(self, z, y): return (z-self.centres[y]).pow(2).mean()

class Near(MemoryHead):
    "Features near to rows of their class"
    def loss(self, z, y): return self.bank.contrastive(z, y, item=self.own(len(z))[0])

def several():
    "Memories in one model, of which one has class rows to learn, and one, empty at first, learns its own rows"
    set_seed(0)
    learn = Learner(dls(), net(False), metrics=accuracy, cbs=[MemoryCallback(ClassBank(10, capacity=6), name='rare'),
        MemoryCallback(SlotBank(60, policy='fifo'), head='add', at='1', name='early'),
        MemoryCallback(SlotBank(200, policy='fifo'), head='vote'),
        MemoryCallback(SlotBank(20), head=Pull, at='3', name='pull', loss_weight=.2),
        MemoryCallback(TrainableBank(30), head=Near, name='near', loss_weight=.2),
        MemoryCallback(TrainableBank(30), head=None, name='still')])        # of which no loss looks at the rows
    with learn.no_bar(), learn.no_logging(), learn.distrib_ctx(sync_bn=False): learn.fit(2, 1e-2)
    return dict(model=learn.model.state_dict(), names=list(learn.recorder.metric_names),
                values=[list(o) for o in learn.recorder.values],
                items={n:o.bank.items.flatten().tolist() for n,o in learn.memories.items()},
                seen={n:int(o.bank.updates) for n,o in learn.memories.items()})

if __name__=='__main__':
    out = sys.argv[1]
    res = {'several':several()}
    for name,head,*how in [('fifo','add'), ('rarity','add','group'), ('reservoir','vote'), ('hard',None),
                           ('ClassBank',None), ('ClassBank','vote'), ('ClassBank','replay'),
                           ('fifo','vote','accumulate'), ('fifo','add','overflow'), ('reservoir','add','bn')]:
        res['-'.join(map(str, (name,head,*how)))] = one(name, head, how)
    assert num_distrib()==2, num_distrib()
    torch.save(res, f'{out}/rank{rank_distrib()}.pt')
    torch.distributed.destroy_process_group()
