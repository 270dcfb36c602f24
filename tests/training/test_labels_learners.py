"The learners that fastai makes, with a memory and without: tables, several targets, accumulated batches"
import random
import numpy as np, pandas as pd, pytest, torch
from fastai.callback.training import GradientAccumulation
from fastai.data.block import CategoryBlock, DataBlock, RegressionBlock, TransformBlock
from fastai.data.transforms import IndexSplitter
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.tabular.all import Categorify, TabularDataLoaders, tabular_learner
from fastai.torch_core import set_seed
from fastcore.foundation import L
from fasttransform import ItemTransform
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from helpers.learners import plain_part, quietly, same, snap
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.training.memory_callback import MemoryCallback

_d = load_digits()
N,NV = 160,48

def table(target):
    df = pd.DataFrame(_d.data[:N+NV, ::4].astype(np.float32), columns=[f'x{i}' for i in range(16)])
    df['kind'] = pd.Series(_d.target[:N+NV]%3).map({0:'a',1:'b',2:'c'})
    df['light'],df['even'] = _d.images[:N+NV].mean((1,2))/8,(_d.target[:N+NV]%2==0)
    df['many'] = _d.target[:N+NV]
    block = dict(light=RegressionBlock, even=CategoryBlock, many=CategoryBlock)[target]()
    return TabularDataLoaders.from_df(df, procs=[Categorify], cat_names=['kind'], y_names=target, y_block=block,
                                      cont_names=[f'x{i}' for i in range(16)], valid_idx=list(range(N, N+NV)), bs=32,
                                      device='cpu')

def tabular(target, head, **kw):
    set_seed(0)
    dls = table(target)
    dls.train.rng = random.Random(0)
    cbs = [] if head=='plain' else [MemoryCallback(SlotBank(2*N, policy='fifo'), head=head)]
    learn = tabular_learner(dls, layers=[32,16], cbs=cbs, **kw)
    set_seed(1)
    quietly(learn, 'fit', 2, 1e-2)
    return learn

def test_a_table_of_numbers():
    "Regression with [B,1] targets"
    watched = tabular('light', None)
    assert same(plain_part(snap(watched.model)), snap(tabular('light', 'plain').model))
    for bank in (watched.memory.bank,tabular('light', 'add').memory.bank): assert len(bank)>0 and bank.labels is None
    with pytest.raises(MemoError, match='regression'): tabular('light', 'vote')

@pytest.mark.parametrize('target,c', [('even',2), ('many',10)])
@pytest.mark.parametrize('head', ['add','vote'])
def test_a_table_of_classes(target, c, head):
    "Class numbers are int8 [B,1] there"
    bank = tabular(target, head).memory.bank
    assert bank.labels.ndim==1 and bank.n_classes==c and int(bank.labels[:len(bank)].min())==0

def digit(i): return _d.images[i].astype(np.float32)/16
def tensor_of(i): return torch.from_numpy(digit(int(i)))[None]
def which(i): return int(_d.target[int(i)])
def is_large(i): return 'large' if which(i)>4 else 'small'
def both(i): return [digit(int(i)).mean()*2, which(i)/5]

def block(blocks, get_y, n_inp=1):
    b = DataBlock((TransformBlock(type_tfms=[tensor_of]),*blocks), n_inp=n_inp, get_y=get_y,
                  splitter=IndexSplitter(range(N, N+NV)))
    dls = b.dataloaders(list(range(N+NV)), bs=32, device='cpu', num_workers=0)
    dls.train.rng = random.Random(0)
    return dls

def net(c): return nn.Sequential(nn.Flatten(), nn.Linear(64,24), nn.ReLU(), nn.Linear(24,c))

def fitted(make, model, head, cbs=(), **kw):
    set_seed(0)
    dls,m = make(),model()
    set_seed(1)
    mine = [] if head=='plain' else [MemoryCallback(SlotBank(2*N, policy='fifo'), head=head)]
    learn = Learner(dls, m, cbs=[*mine,*cbs], **kw)
    quietly(learn, 'fit', 2, 1e-2)
    return learn

def two(p, a, b): return F.cross_entropy(p[:,:10], a) + F.cross_entropy(p[:,10:], b)

@pytest.mark.parametrize('make,c,kw', [
    (lambda: block([CategoryBlock,CategoryBlock], [which,is_large]), 12, dict(loss_func=two)),
    (lambda: block([RegressionBlock(n_out=2)], both), 2, {}),
    (lambda: block([CategoryBlock,RegressionBlock], [which,lambda i: digit(int(i)).mean()]), 11,
     dict(loss_func=lambda p,a,b: F.cross_entropy(p[:,:10], a)+F.mse_loss(p[:,10], b)))])
def test_targets_of_blocks_that_are_no_labels(make, c, kw):
    assert c==2 or isinstance(make().c, (list,L,tuple))
    watched,plain = (fitted(make, lambda: net(c), head, **kw) for head in (None,'plain'))
    assert same(plain_part(snap(watched.model)), snap(plain.model))
    assert len(watched.memory.bank)==N and watched.memory.bank.labels is None
    assert fitted(make, lambda: net(c), 'add', **kw).memory.bank.labels is None
    with pytest.raises(MemoError, match='memory') as e: fitted(make, lambda: net(c), 'vote', **kw)
    assert '\n' not in str(e.value)

class Unlabelled(ItemTransform):
    "A third of the items has no label yet"
    def encodes(self, b):
        y = b[1].clone()
        y[::3] = -100
        return b[0],y

@pytest.mark.parametrize('cbs', [lambda: [GradientAccumulation(64)], lambda: [GradientAccumulation(48)]])
@pytest.mark.parametrize('head', ['add','vote'])
def test_accumulated_batches_of_which_some_items_are_ignored(cbs, head):
    def make():
        dls = block([CategoryBlock], which)
        dls.train.after_batch.add(Unlabelled())
        return dls
    learn = fitted(make, lambda: net(10), head, cbs(), loss_func=CrossEntropyLossFlat())
    bank = learn.memory.bank
    assert 0<len(bank)<2*N and int(bank.labels[:len(bank)].min())>=0

def test_nothing_is_asked_of_a_loss_twice():
    "A loss with a memory of its own (averages, a count of its calls) is called as often as without"
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.n = 0
        def forward(self, p, y):
            self.n += 1
            return F.cross_entropy(p, y)
    got = []
    for head in ('plain',None,'add','vote'):
        loss = Counting()
        fitted(lambda: block([CategoryBlock], which), lambda: net(10), head, loss_func=loss)
        got.append(loss.n)
    assert len(set(got))==1
