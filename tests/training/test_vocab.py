"Phases of a training number their classes alike, or it is said before training"
import pytest, torch
from fastai.callback.schedule import *
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.torch_core import set_seed
from sklearn.datasets import load_digits
from helpers.learners import quietly, same, snap
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.data.tensors import TensorDL, TensorSet
from memo.models.small import small_cnn
from memo.training.memory_callback import MemoryCallback
from memo.training.stages import Stage, fit_stages
from memo.training.vocab import check_phases, other_class, plain_vocab

_d = load_digits()
X,Y = torch.from_numpy(_d.images*(255/16)).round().byte()[:,None],torch.from_numpy(_d.target).long()

def digits(names):
    "Digits whose classes are called and numbered so"
    i = torch.tensor([names.index(str(int(y))) if str(int(y)) in names else -1 for y in Y])
    at = (i>=0).nonzero().flatten()
    def dl(s, at): return TensorDL(dataset=TensorSet(X[at], i[at], at, names, s), bs=32, shuffle=not s)
    return DataLoaders(dl(0, at[:128]), dl(1, at[128:192]), device='cpu')

up,down = list('0123456789'),list('9876543210')
def learner(dls, bank=None, head=None):
    set_seed(0)
    return Learner(dls, small_cnn(1, 10), cbs=MemoryCallback(SlotBank(256, policy='fifo') if bank is None else bank,
                                                             head=head))

@pytest.mark.parametrize('head', [None,'vote'])
def test_two_phases(head):
    learn = learner(digits(up), head=head)
    was = snap(learn.model)
    with pytest.raises(MemoError, match=r"class 0 is '0' in stage phase1.frozen, '9' in stage phase2: .*same vocab"):
        quietly(learn, 'fit_two_phase', digits(up), digits(down), epochs=(1,1), freeze_epochs=1)
    assert same(was, snap(learn.model))
    quietly(learn, 'fit_two_phase', digits(up), digits(up), epochs=(1,1), freeze_epochs=1)

def test_a_stage_without_loaders_has_those_of_the_learner():
    learn = learner(digits(up))
    with pytest.raises(MemoError, match='stage b'):
        quietly(learn, fit_stages, learn, [Stage('a', 1, 1e-3), Stage('b', 1, 1e-3, dls=digits(down))])

def test_two_and_two_that_differ_in_what_a_third_lacks():
    check_phases([('a',['x','y']), ('b',['x','y','z']), ('c',['x']), ('d',None)])
    with pytest.raises(MemoError, match="class 1 is 'y' in a, 'w' in c"):
        check_phases([('a',['x','y']), ('b',['x']), ('c',['x','w'])])

@pytest.mark.parametrize('a,b,i', [
    (up,down,0), (up,up[:7],None), (up[:7],up,None), (['a'],None,None), ([1,2],['1','2'],None),
    ([['x','y'],['cat','dog']],[['x','y'],['dog','cat']],0), ([['x','y'],['cat']],[['x','q'],['cat']],1),
    (['cat','dog'],['cat','Dog'],1)])
def test_where_two_differ(a, b, i):
    got = other_class(a, b)
    assert (got is None)==(i is None) and (got is None or got[0]==i)

def test_text_and_tabular_vocabularies():
    "A text learner has two, one of tokens: other tokens are other numbers too"
    import pandas as pd
    from fastai.text.all import TextDataLoaders
    df = pd.DataFrame(dict(text=['a good film indeed','a bad film','good good','bad bad'], label=list('pnpn')))
    def make(d): return TextDataLoaders.from_df(d, text_col='text', label_col='label', valid_pct=.5, bs=1, seed=0,
                                                min_freq=1, is_lm=False)
    a = make(df)
    b = make(df.assign(text=df.text.str.replace('good', 'great great great')))
    assert other_class(a, a) is None and other_class(a, b) is not None

def test_loaders_without_a_vocabulary():
    dls = DataLoaders(*[torch.utils.data.DataLoader(list(zip(X[:4].float(), Y[:4])), batch_size=2) for _ in range(2)])
    assert plain_vocab(dls) is None and other_class(dls, up) is None
