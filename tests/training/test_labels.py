"What is no class number and no 0/1 target is no label, whatever its shape; what memory cannot use trains as without it"
import random, warnings
import pytest, torch
from fastai.callback.mixup import MixUp
from fastai.data.core import DataLoaders, TfmdDL

from fastai.learner import Learner
from fastai.losses import (BCELossFlat, BCEWithLogitsLossFlat, CrossEntropyLossFlat, FocalLossFlat,
                           LabelSmoothingCrossEntropyFlat, L1LossFlat, MSELossFlat)
from fastai.torch_core import Module, set_seed
from fastai.callback.core import Callback
from functools import partial
from sklearn.datasets import load_digits
from torch import nn, tensor
from torch.nn import functional as F
from helpers.learners import plain_part, quietly, same, snap
from memo.banks.classes import ClassBank
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.data.tensors import TensorDL, TensorSet
from memo.training.labels import Targets, read_targets
from memo.training.loss_reading import loss_gradient, loss_scale
from memo.training.losses import AsymmetricLoss, LogitAdjustedCE, SigmoidFocalLoss, pos_weights
from memo.training.memory_callback import MemoryCallback

_d = load_digits()
X,Y = torch.from_numpy(_d.images/16).float()[:,None],torch.from_numpy(_d.target).long()
N,NV = 192,64
light = X.mean((1,2,3))
findings = torch.stack([Y%2==0, Y>4, Y%3==0], 1).float()
onehot = F.one_hot(Y, 10).float()
numbers = torch.stack([light*2, Y/5.], 1)

def masked(v, every=7, col=1):
    res = findings.clone()
    res[::every,col] = v
    return res
def some_ignored(i=-100):
    res = Y.clone()
    res[::5] = i
    return res

def loaders(*ys, c=None, vocab=None, bs=32):
    "Items of an image and targets; fastai's loaders"
    items = [(X[i],*(y[i] if torch.is_tensor(y) else y(i) for y in ys)) for i in range(N+NV)]
    dls = DataLoaders(TfmdDL(items[:N], bs=bs, shuffle=True), TfmdDL(items[N:], bs=bs), device='cpu')
    dls.n_inp = 1
    if c is not None: dls.c = c
    if vocab is not None: dls.vocab = vocab
    return dls

def net(c, *end): return nn.Sequential(nn.Flatten(), nn.Linear(64,24), nn.ReLU(), nn.Linear(24,c), *end)

def learner(dls, model, loss, memory=None, cbs=(), **kw):
    set_seed(0)
    model = model() if callable(model) and not isinstance(model, nn.Module) else model
    dls.train.rng = random.Random(0)
    set_seed(1)
    return Learner(dls, model, loss_func=loss, cbs=[*cbs, *([] if memory is None else [memory])], **kw)

def said(learn, f, *args):
    "What is said of the memory meanwhile"
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        quietly(learn, f, *args)
    return [str(w.message) for w in ws if str(w.message).startswith('memory')]

def slots(head, **kw): return MemoryCallback(SlotBank(2*N, policy='fifo'), head=head, **kw)
def classes(head=None, c=10): return MemoryCallback(ClassBank(c, capacity=8), head=head)

def masked_bce(p, y):
    ok = (y==0)|(y==1)
    return F.binary_cross_entropy_with_logits(p[ok], y[ok])
def two_losses(p, a, b): return F.cross_entropy(p[:,:10], a) + F.cross_entropy(p[:,10:], b)
def pinball(p, y): return torch.maximum(.9*(y[:,None]-p), .1*(p-y[:,None])).mean()
def pixels(i): return (X[i,0]>.5).long()
def pixel_net(): return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))

# name -> loaders, network, loss: no head can use these targets as labels
useless = dict(
    two_numbers=(lambda: loaders(numbers), lambda: net(2), MSELossFlat()),
    two_numbers_l1=(lambda: loaders(numbers), lambda: net(2), L1LossFlat()),
    zeros_and_ones_as_numbers=(lambda: loaders(findings), lambda: net(3), F.mse_loss),
    counts_that_begin_as_zeros_and_ones=(lambda: loaders(findings.cumsum(0).clamp(max=4).sub(3).clamp(min=0)),
                                         lambda: net(3), nn.PoissonNLLLoss()),
    one_number=(lambda: loaders(light[:,None]), lambda: net(1), F.smooth_l1_loss),
    a_number_an_item=(lambda: loaders(light), lambda: net(1), MSELossFlat()),
    whole_numbers=(lambda: loaders((light*100).long()), lambda: net(3), pinball),
    two_targets=(lambda: loaders(Y, Y.gt(4).long(), c=[10,2]), lambda: net(12), two_losses),
    pixel_classes=(lambda: loaders(pixels, c=2, vocab=['back','ink']), pixel_net, CrossEntropyLossFlat(axis=1)))

def _without(make, model, loss, memory, cbs=()):
    "States of the network after the same training with a memory and without"
    got = []
    for m in (memory, None):
        learn = learner(make(), model, loss, m, [o() for o in cbs])
        words = said(learn, 'fit', 2, 1e-2)
        got.append(plain_part(snap(learn.model)))
        if m is not None: mine,first = learn,words
    assert same(*got)
    return mine,first

@pytest.mark.parametrize('name', useless)
def test_no_labels_and_the_vote_is_refused_before_a_step(name):
    make,model,loss = useless[name]
    at = dict(at='2') if name=='pixel_classes' else {}
    learn,words = _without(make, model, loss, slots(None, **at))
    assert len(learn.memory.bank)==N and learn.memory.bank.labels is None and words==[]
    learn = learner(make(), model, loss, slots('vote', **at))
    was = snap(learn.model)
    with pytest.raises(MemoError, match="memory 'memory': a VoteHead works by the labels of its rows, but ") as e:
        quietly(learn, 'fit', 1, 1e-2)
    assert '\n' not in str(e.value) and same(plain_part(was), plain_part(snap(learn.model)))
    assert not len(learn.memory.bank)
    learn.remove_cb(learn.memory)
    quietly(learn, 'fit', 1, 1e-2)          # and it goes on as any

@pytest.mark.parametrize('name', ['two_numbers','one_number','two_targets'])
def test_add_stores_features_without_labels(name):
    make,model,loss = useless[name]
    learn = learner(make(), model, loss, slots('add'))
    assert said(learn, 'fit', 2, 1e-2)==[]
    assert len(learn.memory.bank)==N and learn.memory.bank.labels is None

@pytest.mark.parametrize('name', ['two_numbers','two_targets','a_number_an_item'])
def test_a_bank_that_files_by_label_stores_nothing_and_says_so_once(name):
    make,model,loss = useless[name]
    learn,words = _without(make, model, loss, classes())
    assert len(learn.memory.bank)==0
    assert len(words)==1 and 'a ClassBank files rows by label, but ' in words[0] and 'nothing is stored' in words[0]
    for head in ('replay','prototype','lda'):
        with pytest.raises(MemoError, match='works by the labels of its rows'):
            quietly(learner(make(), model, loss, classes(head)), 'fit', 1)

def test_numbers_of_memos_own_loaders_are_no_findings():
    dls = DataLoaders(*[TensorDL(dataset=TensorSet(X[i], numbers[i], torch.arange(len(X))[i], None, s), bs=32,
                                 shuffle=not s) for s,i in enumerate((slice(0, N),slice(N, N+NV)))], device='cpu')
    learn = learner(dls, lambda: net(2), MSELossFlat(), slots('add'))
    quietly(learn, 'fit', 1)
    assert len(learn.memory.bank)==N and learn.memory.bank.labels is None

# findings that are masked

@pytest.mark.parametrize('v,word', [(-1.,'-1'), (float('nan'),'NaN'), (2.,'2')])
def test_masked_findings(v, word):
    "Column and count; a head that needs no label goes on, and such rows have none"
    def make(): return loaders(masked(v), vocab=['even','large','third'])
    learn,words = _without(make, lambda: net(3), masked_bce, slots(None))
    y = learn.memory.bank.labels[:N]
    assert int((y<0).all(1).sum())==len(range(0, N, 7)) and bool(((y==0)|(y==1)|(y<0).all(1)[:,None]).all())
    assert len(words)==1 and f"in column 1 (large) are {word}" in words[0] and 'no label' in words[0]
    learn = learner(make(), lambda: net(3), masked_bce, slots('vote'))
    was = snap(learn.model)
    with pytest.raises(MemoError, match=rf'\d+ of 32 in column 1 \(large\) are {word}'): quietly(learn, 'fit', 1)
    assert same(was, snap(learn.model))

def test_masked_findings_that_come_late():
    "Where the first batch has none: all targets are looked at if they lie in one tensor, else such rows do not vote"
    y = findings.clone()
    y[N-20:N,2] = -1
    def of(y): return [TensorDL(dataset=TensorSet(X[i], y[i], torch.arange(len(X))[i], list('abc'), s), bs=32)
                       for s,i in enumerate((slice(0, N),slice(N, N+NV)))]
    with pytest.raises(MemoError, match=rf'20 of {N} in column 2 \(c\) are -1'):
        quietly(learner(DataLoaders(*of(y), device='cpu'), lambda: net(3), masked_bce, slots('vote')), 'fit', 1)
    dls = loaders(y)
    dls.train.shuffle = False
    learn = learner(dls, lambda: net(3), masked_bce, slots('vote'))
    words = said(learn, 'fit', 2, 1e-2)
    assert len(words)==1 and 'in column 2 are -1' in words[0]
    assert int((learn.memory.bank.labels[:N]<0).all(1).sum())==20
    assert bool(quietly(learn, 'get_preds')[0].isfinite().all())

def test_a_vote_is_fitted_to_items_that_have_a_label():
    "In validation too; asked for by name, masked findings are refused with their count"
    y = findings.clone()
    y[N:N+10,0] = float('nan')
    learn = learner(loaders(y), lambda: net(3), masked_bce, slots('vote'))
    quietly(learn, 'fit', 1, 1e-2)
    assert bool(learn.memory.head.weight.isfinite())
    with pytest.raises(MemoError, match='10 of 64 in column 0 are NaN'): learn.memory.fit()

# items that the loss leaves out

@pytest.mark.parametrize('i,loss', [(-100,CrossEntropyLossFlat()), (-1,nn.CrossEntropyLoss(ignore_index=-1)),
    (255,partial(F.cross_entropy, ignore_index=255)), (3,CrossEntropyLossFlat(ignore_index=3)),
    (-100,FocalLossFlat()), (-100,lambda o,y: F.cross_entropy(o, y))])
@pytest.mark.parametrize('make_memory', [lambda: slots(None), classes, lambda: slots('add'), lambda: slots('vote')])
def test_ignored_items_are_not_stored(i, loss, make_memory):
    y,cb = some_ignored(i),make_memory()
    def make(): return loaders(y, c=10)
    trains = type(cb._head).trains
    if trains: quietly(learn := learner(make(), lambda: net(10), loss, cb), 'fit', 2, 1e-2)
    else: learn,words = _without(make, lambda: net(10), loss, cb)
    bank,kept = learn.memory.bank,(y[:N]!=i)
    if hasattr(bank, 'size'): assert len(bank)==int(kept.sum())
    labels = bank.rows()[2] if bank.labels is not None else bank.counts.nonzero().flatten()
    assert int(labels.min())>=0 and (not 0<=i<10 or i not in labels[:len(bank)].tolist())
    learn.memory.collect(learn.dls.valid)
    if learn.memory.head.mixes: assert 0<learn.memory.fit()['weight']<1

def test_hits_are_those_of_labelled_items():
    y = some_ignored()
    learn = learner(loaders(y, c=10), lambda: net(10), CrossEntropyLossFlat(), slots('vote'))
    quietly(learn, 'fit', 3, 1e-2)
    got = learn.memory.collect(learn.dls.valid)
    read = learn.memory.head.recall(got.z)
    ok = got.y>=0
    hit = (learn.memory.bank.labels[read.index[:,0]]==got.y)[ok].float().mean()
    row = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    assert row["memory_hit"]==pytest.approx(float(hit))

# parts of several items

class Smooth(Callback):
    run_valid = False
    def before_batch(self): self.learn.yb = (F.one_hot(self.y, 10).float()*.9+.01,)
class OwnMixUp(Callback):
    run_valid = False
    def before_batch(self):
        i = torch.arange(len(self.y)-1, -1, -1)
        self.learn.xb = (.7*self.x+.3*self.x[i],)
        self.learn.yb = (.7*F.one_hot(self.y, 10)+.3*F.one_hot(self.y[i], 10),)
class OwnCutMix(Callback):
    "Pastes, and hands both labels and the share to the loss"
    run_valid = False
    def before_batch(self):
        i,x = torch.arange(len(self.y)-1, -1, -1),self.x.clone()
        x[...,:3] = x[i][...,:3]
        self.learn.xb,self.learn.yb = (x,),(self.y,self.y[i],.6)
def pasted(p, y, z=None, share=1.): return F.cross_entropy(p, y) if z is None else (
    share*F.cross_entropy(p, y)+(1-share)*F.cross_entropy(p, z))
class Sometimes(OwnMixUp):
    def before_batch(self):
        if self.iter%2: super().before_batch()

@pytest.mark.parametrize('cb,loss', [(Smooth,nn.CrossEntropyLoss()), (OwnMixUp,F.cross_entropy), (OwnCutMix,pasted)])
@pytest.mark.parametrize('head', [None,'add','vote'])
def test_mixed_by_a_callback_of_ones_own(cb, loss, head):
    def make(): return loaders(Y, c=10)
    if head is None: learn,words = _without(make, lambda: net(10), loss, slots(None), [cb])
    else: words = said(learn := learner(make(), lambda: net(10), loss, slots(head), [cb()]), 'fit', 2, 1e-2)
    assert len(learn.memory.bank)==0 and learn.memory.bank.labels is None
    words = [o for o in words if 'several' in o]
    assert len(words)==1 and 'nothing is stored of such batches' in words[0]

def test_mixed_now_and_then():
    learn = learner(loaders(Y, c=10), lambda: net(10), F.cross_entropy, slots('vote'), [Sometimes()])
    words = said(learn, 'fit', 1, 1e-2)
    assert len(learn.memory.bank)==N//2 and learn.memory.bank.labels.ndim==1 and any('several' in o for o in words)

def test_soft_targets_of_the_loader_and_classes_as_zeros_and_a_one():
    learn = learner(loaders(onehot*.9+.01, c=10), lambda: net(10), nn.CrossEntropyLoss(), slots('vote'))
    words = said(learn, 'fit', 2, 1e-2)
    assert len(words)==1 and len(learn.memory.bank)==0
    learn = learner(loaders(onehot, c=10), lambda: net(10), nn.CrossEntropyLoss(), slots('vote'))
    assert said(learn, 'fit', 2, 1e-2)==[]
    bank = learn.memory.bank
    assert len(bank)==N and bank.labels.ndim==1 and bank.class_counts().tolist()==Y[:N].bincount().tolist()
    with pytest.raises(MemoError, match='one class number an item'):
        quietly(learner(loaders(onehot, c=10), lambda: net(10), nn.CrossEntropyLoss(), classes('replay')), 'fit', 2)
    soft = findings*.8+.1
    learn = learner(loaders(soft), lambda: net(3), BCEWithLogitsLossFlat(), slots('vote'))
    assert len(said(learn, 'fit', 1))==1 and len(learn.memory.bank)==0

# how a loss reads outputs

def g(n=0): return torch.Generator().manual_seed(n)
def read(out, y, loss, c=None): return read_targets(out, (y,), _grad(loss, out, y), c, loss)
def _grad(loss, out, *y):
    o = out.clone().requires_grad_()
    return loss_gradient(loss(o, *y), o)

class ArcFace(Module):
    def forward(self, o, y):
        m = F.one_hot(y, o.shape[1])*.3
        return F.cross_entropy(30*torch.cos(torch.acos(o.clamp(-.999, .999))+m), y)

counts = [100,50,20,10,5]
@pytest.mark.parametrize('loss', [F.cross_entropy, CrossEntropyLossFlat(), LabelSmoothingCrossEntropyFlat(),
    FocalLossFlat(), nn.CrossEntropyLoss(label_smoothing=.1), LogitAdjustedCE(counts),
    nn.CrossEntropyLoss(weight=tensor([1.,2,3,4,5])),
    nn.MultiMarginLoss(), lambda o,y: F.cross_entropy(o, y)+.01*o.square().mean()])
@pytest.mark.parametrize('size', [.01,1.,8.])
def test_losses_of_class_numbers(loss, size):
    o,y = torch.randn(32, 5, generator=g())*size,torch.arange(32)%5
    t = read(o, y, loss)
    assert (t.kind,t.outputs,t.unmixed)==('classes','logits',None)

@pytest.mark.parametrize('c,s', [(5,16.), (5,64.), (5,.1), (2,16.), (2,5.)])
@pytest.mark.parametrize('weight', [None,[1.,3,1,1,1]])
def test_outputs_that_the_loss_multiplies(c, s, weight):
    o,y = F.normalize(torch.randn(48, c, generator=g())),torch.arange(48)%c
    w = None if weight is None else tensor(weight[:c])
    gr = _grad(lambda o,y: F.cross_entropy(s*o, y, w), o, y)
    assert loss_scale(o, gr, y)==pytest.approx(s, rel=.05)
    assert 'multiplies the model' in read(o, y, lambda o,y: F.cross_entropy(s*o, y, w)).unmixed

def focal(o, y, gamma=2):
    ce = F.cross_entropy(o, y, reduction='none')
    return ((1-(-ce).exp())**gamma*ce).mean()
def one_against_all(o, y): return F.binary_cross_entropy_with_logits(o, F.one_hot(y, o.shape[1]).float())
def bootstrapped(o, y):
    l = o.log_softmax(1)
    return -(.8*l.gather(1, y[:,None])[:,0] + .2*(l.exp()*l).sum(1)).mean()

@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss(label_smoothing=.3), focal, partial(focal, gamma=5),
    one_against_all, bootstrapped, nn.MultiMarginLoss()])
@pytest.mark.parametrize('c', [2,3,10])
@pytest.mark.parametrize('size', [0.,.01,.1,1.])
def test_losses_that_look_as_if_they_multiplied(loss, c, size):
    "Those of outputs that are small as yet, and those that say nothing of how they read outputs"
    for n in (2,4,64):
        o,y = torch.randn(n, c, generator=g(n))*size,torch.randint(c, (n,), generator=g(n))
        assert read(o, y, loss).unmixed is None

@pytest.mark.parametrize('y', [[0.],[1.],[1.,0.],[1.,1.]])
def test_one_logit_of_an_item_or_two_is_no_probability(y):
    o,y = tensor([[.3],[.8]])[:len(y)],tensor(y)[:,None]
    assert read(o, y, nn.BCEWithLogitsLoss()).outputs=='logits'
    assert read(o, y, nn.BCELoss()).outputs=='probabilities'
    assert read(o*0, y, nn.BCEWithLogitsLoss()).outputs=='logits'

@pytest.mark.parametrize('size', [0.,.01])
def test_smoothed_findings_of_small_outputs_are_no_probabilities(size):
    o,y = torch.rand(16, 3, generator=g())*size,findings[:16]*.9+.05
    assert (t := read(o, y, nn.BCEWithLogitsLoss())).kind=='findings' and t.outputs=='logits'
    assert read(o.sigmoid(), y, nn.BCELoss()).outputs=='probabilities'

@pytest.mark.parametrize('loss', [nn.MSELoss(), nn.SmoothL1Loss()])
def test_shares_that_a_layer_of_zeros_begins_with(loss):
    for c in (1,3): assert read(torch.zeros(16, c), torch.rand(16, c, generator=g()), loss).kind is None

class Cosines(CrossEntropyLossFlat):
    "Says by its activation what it does with outputs"
    def __init__(self, s): super().__init__(); self.s = s
    def __call__(self, o, y): return super().__call__(o*self.s, y)
    def activation(self, o): return super().activation(o*self.s)

@pytest.mark.parametrize('s', [16.,30.])
@pytest.mark.parametrize('c', [2,10])
def test_a_loss_that_says_that_it_multiplies(s, c):
    o,y = F.normalize(torch.randn(48, c, generator=g())),torch.arange(48)%c
    assert 'multiplies the model' in read(o, y, Cosines(s)).unmixed
    assert read(o, y, Cosines(1.)).unmixed is None

def test_a_margin_and_an_embedding():
    o,y = F.normalize(torch.randn(48, 10, generator=g())),torch.arange(48)%10
    assert 'multiplies the model' in read(o, y, ArcFace()).unmixed
    e = torch.randn(48, 16, generator=g(1))
    def pull(o, y): return (torch.cdist(o, o)*(2*(y[:,None]==y)-1.)).mean()
    t = read(e, y, pull, c=10)
    assert t.kind=='classes' and t.n==10 and 'scores of the classes' in t.unmixed
    assert read(e, y, pull).kind is None

@pytest.mark.parametrize('loss', [F.binary_cross_entropy_with_logits, BCEWithLogitsLossFlat(), SigmoidFocalLoss(),
    AsymmetricLoss(), nn.BCEWithLogitsLoss(pos_weight=tensor([1.,5,9])), nn.MultiLabelSoftMarginLoss()])
@pytest.mark.parametrize('size', [0.,.01,1.,8.])
def test_losses_of_findings(loss, size):
    o,y = torch.randn(32, 3, generator=g())*size,findings[:32]
    t = read(o, y, loss)
    assert (t.kind,t.outputs)==('findings','logits')

def test_probabilities():
    o,y = torch.randn(32, 3, generator=g()),findings[:32]
    for f in (F.binary_cross_entropy, BCELossFlat()):
        t = read(o.sigmoid(), y, f)
        assert (t.kind,t.outputs)==('findings','probabilities')
    assert read(o.sigmoid(), y, F.mse_loss).kind is None
    p,c = o.softmax(1),torch.arange(32)%3
    for f in (lambda p,y: F.nll_loss(p.log(), y), CrossEntropyLossFlat()):
        t = read(p, c, f)
        assert (t.kind,t.outputs)==('classes','probabilities')
    assert read(o.log_softmax(1), c, nn.NLLLoss()).outputs=='logits'

@pytest.mark.parametrize('yb', [(), (tensor([1]),tensor([2])), ([1,2],), ({'boxes':1},), (None,)])
def test_targets_that_are_no_tensor(yb): assert read_targets(torch.zeros(2, 2), yb).kind is None

def test_looking_leaves_the_loss_as_it_was():
    o = torch.randn(4, 3, generator=g(), requires_grad=True)
    loss = F.cross_entropy(o*2, tensor([0,1,2,0]))
    loss_gradient(loss, o)
    loss.backward()
    assert torch.allclose(o.grad, 2*((o*2).softmax(1)-F.one_hot(tensor([0,1,2,0]), 3)).detach()/4)
    assert loss_gradient(loss.detach(), o) is None
    assert loss_gradient(torch.tensor(float('nan'), requires_grad=True), o) is None

def test_decided_once_a_fit(monkeypatch):
    "And again in the next one, which may have another loss"
    import memo.training.labels as labels
    n,was = [],labels.read_targets
    monkeypatch.setattr(labels, 'read_targets', lambda *args: n.append(1) or was(*args))
    learn = learner(loaders(findings), lambda: net(3), BCEWithLogitsLossFlat(), slots('add'))
    quietly(learn, 'fit', 2)
    assert len(n)==1 and learn.memory.bank.labels.shape[1]==3
    learn.memory.bank.reset()
    learn.loss_func = MSELossFlat()
    quietly(learn, 'fit', 1)
    assert len(n)==2 and (learn.memory.bank.labels is None or bool((learn.memory.bank.labels<0).all()))

@pytest.mark.parametrize('v', [float('nan'),.5])
def test_weights_of_masked_findings(v):
    with pytest.raises(MemoError, match=rf'of {N+NV} in column 1 are '): pos_weights(masked(v)[:N+NV])

# a bank that was filled before

@pytest.mark.parametrize('first,then,say', [
    ((Y,10,CrossEntropyLossFlat()),(findings,3,BCEWithLogitsLossFlat()),'targets'),
    ((findings,3,BCEWithLogitsLossFlat()),(Y,10,CrossEntropyLossFlat()),'class numbers'),
    ((findings,3,BCEWithLogitsLossFlat()),(findings[:,:2],2,BCEWithLogitsLossFlat()),'2 classes, this bank has 3')])
@pytest.mark.parametrize('head', ['add','vote'])
def test_labels_of_another_kind_than_the_banks(first, then, say, head):
    "Refused before the first step, not in its middle"
    bank,(y,c,loss) = SlotBank(2*N, policy='fifo'),first
    learn = learner(loaders(y, c=c), lambda: net(c), loss, MemoryCallback(bank, head=head))
    quietly(learn, 'fit', 1)
    learn.memory.detach()
    y,c,loss = then
    learn = learner(loaders(y), lambda: net(c), loss, MemoryCallback(bank, head=head))
    was = snap(learn.model)
    with pytest.raises(MemoError, match=say): quietly(learn, 'fit', 1)
    assert same(was, snap(learn.model))

class Two(nn.Module):
    "A network with a second output, as a tuple or a dict"
    def __init__(self, kind):
        super().__init__()
        self.body,self.fc,self.kind = nn.Sequential(nn.Flatten(), nn.Linear(64,24), nn.ReLU()),nn.Linear(24,3),kind
    def forward(self, x):
        z = self.body(x)
        return (self.fc(z),z.mean()) if self.kind is tuple else dict(logits=self.fc(z), size=z.mean())

@pytest.mark.parametrize('kind', [tuple,dict])
def test_outputs_of_several_parts(kind):
    "Findings and numbers are told apart there too"
    def of(loss): return lambda o,y: loss(o[0] if kind is tuple else o['logits'], y)
    for loss,labelled in ((F.binary_cross_entropy_with_logits,True), (F.mse_loss,False)):
        learn = learner(loaders(findings), lambda: Two(kind), of(loss), slots(None))
        quietly(learn, 'fit', 1)
        assert len(learn.memory.bank)==N and (learn.memory.bank.labels is not None)==labelled
