"Probabilities in, probabilities out; what cannot be mixed is refused"
import copy, random
import pytest, torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner, load_learner
from fastai.losses import BCELossFlat, BCEWithLogitsLossFlat, CrossEntropyLossFlat
from fastai.torch_core import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from helpers.learners import quietly
from memo.banks.classes import ClassBank
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.data.tensors import TensorDL, TensorSet
from memo.evaluation.tasks import Multiclass, Multilabel
from memo.heads.attach import attach, memories
from memo.heads.base import MemoryHead
from memo.heads.mixture import LDAHead, PrototypeHead, VoteHead
from memo.heads.outputs import as_logits, as_outputs
from memo.models.small import small_cnn
from memo.training.memory_callback import MemoryCallback

_d = load_digits()
X,Y = torch.from_numpy(_d.images*(255/16)).round().byte()[:,None],torch.from_numpy(_d.target).long()
N,NV = 256,96
findings = torch.stack([Y%2==0, Y>4, Y%3==0], 1).float()

def digits(y, vocab=None):
    def dl(s, i):
        return TensorDL(dataset=TensorSet(X[i], y[i], torch.arange(len(X))[i], vocab, s), bs=32, shuffle=not s)
    dls = DataLoaders(dl(0, slice(0, N)), dl(1, slice(N, N+NV)), dl(2, slice(N+NV, N+2*NV)), device='cpu')
    dls.train.rng = random.Random(0)
    return dls

class Flat(nn.Module):
    def forward(self, x): return x.squeeze(1)

large = Y.gt(4).long()
# name -> targets, classes, what the model ends in, loss, what makes probabilities of outputs
forms = dict(
    softmax=(Y, 10, nn.Softmax(1), lambda p,y: F.nll_loss(p.clamp(min=1e-9).log(), y), lambda o: o),
    softmax_and_cross_entropy=(Y, 10, nn.Softmax(1), CrossEntropyLossFlat(), lambda o: o),
    log_softmax=(Y, 10, nn.LogSoftmax(1), nn.NLLLoss(), torch.exp),
    one_logit=(large, 1, None, BCEWithLogitsLossFlat(), torch.sigmoid),
    one_flat_logit=(large, 1, Flat(), lambda o,y: F.binary_cross_entropy_with_logits(o, y.float()), torch.sigmoid),
    one_probability=(large, 1, nn.Sigmoid(), BCELossFlat(), lambda o: o),
    sigmoids=(findings, 3, nn.Sigmoid(), nn.BCELoss(), lambda o: o),
    one_finding=(large[:,None].float(), 1, None, nn.BCEWithLogitsLoss(), torch.sigmoid))

def net(c, end):
    m = small_cnn(1, c)
    return m if end is None else nn.Sequential(*m, end)

def learner(name, head='vote', bank=None, n=2, **kw):
    y,c,end,loss,_ = forms[name]
    set_seed(0)
    learn = Learner(digits(y), net(c, copy.deepcopy(end)), loss_func=loss,
                    cbs=MemoryCallback(SlotBank(N, policy='fifo') if bank is None else bank, head=head, **kw))
    quietly(learn, 'fit', n, 1e-2)
    return learn

def outputs(learn, on=True, ds=1):
    m,x = learn.model.eval(),torch.cat([b[0] for b in learn.dls[ds]])
    with torch.no_grad():
        if on: return m(x)
        with learn.memory.off(): return m(x)

def proba(name, o):
    "Probabilities of outputs; of one for two classes both"
    p = forms[name][4](o)
    if name in ('sigmoids','one_finding'): return p
    p = p if p.ndim==2 else p[:,None]
    return p if p.shape[1]>1 else torch.cat([1-p, p], 1)

@pytest.mark.parametrize('name', forms)
def test_the_answer_has_the_form_of_the_outputs(name):
    learn = learner(name)
    own,got,head = outputs(learn, False),outputs(learn),learn.memory.head
    assert got.shape==own.shape and not torch.allclose(own, got)
    assert 0<learn.recorder.values[-1][1]<2.5
    p,q,multi = proba(name, own),proba(name, got),head.multilabel
    assert bool(((q>=0)&(q<=1)).all()) and (multi or torch.allclose(q.sum(1), torch.ones(len(q)), atol=1e-4))
    v = head.votes(learn.memory.collect(learn.dls.valid).z, n_classes=p.shape[1])
    w = float(head.weight)
    want = torch.sigmoid((1-w)*torch.logit(p, 1e-7)+w*torch.logit(v.clamp(1e-6, 1-1e-6))) if multi else (1-w)*p+w*v
    assert torch.allclose(q, want, atol=1e-4)

@pytest.mark.parametrize('name', ['softmax','one_logit','sigmoids'])
def test_it_is_kept_with_the_model(name, tmp_path):
    "In a saved state, a copy and an export: without a callback nobody else could know"
    y,c,end,loss,_ = forms[name]
    learn = learner(name)
    want,state = outputs(learn),copy.deepcopy(learn.model.state_dict())
    fresh = attach(net(c, copy.deepcopy(end)), VoteHead(SlotBank(N, policy='fifo'), k=20)).eval()
    fresh.load_state_dict(state)
    x = torch.cat([b[0] for b in learn.dls.valid])
    with torch.no_grad():
        assert torch.equal(fresh(x), want) and torch.equal(copy.deepcopy(learn.model).eval()(x), want)
    if name!='one_logit': assert next(iter(memories(fresh).values())).outputs=='probabilities'
    learn.path = tmp_path
    if name=='softmax': learn.loss_func = nn.NLLLoss()      # a lambda cannot be exported
    learn.export()
    with torch.no_grad(): assert torch.equal(load_learner(tmp_path/'export.pkl').model.eval()(x), want)

@pytest.mark.parametrize('name', forms)
def test_collected_and_scored(name):
    "`collect` gives one logit for each class, so that choosing, recalling and scoring need not know"
    learn = learner(name)
    got,full = (learn.memory.collect(learn.dls[2], memory=o) for o in (False,True))
    multi = learn.memory.head.multilabel
    task = Multilabel() if multi else Multiclass()
    for g,on in ((got,False), (full,True)):
        assert torch.allclose(task.activation(g.logits), proba(name, outputs(learn, on, 2)), atol=1e-4)
    assert torch.allclose(learn.recall(ds_idx=2).probs, task.activation(full.logits), atol=1e-5)
    chosen = learn.memory.fit()
    assert 0<chosen['nll_mixture']<1.1*chosen['nll_network']<10
    mixed = learn.memory.head.mixed(got.logits, got.z)
    assert torch.allclose(task.activation(mixed), proba(name, outputs(learn, ds=2)), atol=1e-4)

@pytest.mark.parametrize('head', ['prototype','lda'])
@pytest.mark.parametrize('name', ['softmax','one_logit','one_probability'])
def test_heads_over_a_class_bank(name, head):
    learn = learner(name, head, ClassBank(forms[name][1] if forms[name][1]>1 else 2, capacity=32))
    q = proba(name, outputs(learn))
    assert not torch.allclose(outputs(learn), outputs(learn, False))
    assert bool(((q>=0)&(q<=1)).all()) and torch.allclose(q.sum(1), torch.ones(len(q)), atol=1e-4)
    y = torch.cat([b[1] for b in learn.dls.valid])
    assert float((q.argmax(1)==y).float().mean())>.6

@pytest.mark.parametrize('name', ['softmax','one_logit'])
def test_replayed_rows_go_through_any_end(name):
    learn = learner(name, 'replay', ClassBank(forms[name][1] if forms[name][1]>1 else 2, capacity=32))
    assert len(learn.memory.bank)>0 and bool(torch.isfinite(outputs(learn)).all())
    assert torch.equal(outputs(learn), outputs(learn, False))

def test_a_user_may_say_it():
    "A model that was trained elsewhere"
    bank = SlotBank(16, policy='fifo')
    bank.write(torch.randn(16, 4), torch.arange(16)%3)
    model = nn.Sequential(nn.Linear(5,4), nn.Linear(4,3), nn.Softmax(1)).eval()
    attach(model, VoteHead(bank, k=4, outputs='probabilities'), at='1')
    with torch.no_grad(): p = model(torch.randn(7,5))
    assert torch.allclose(p.sum(1), torch.ones(7), atol=1e-5) and bool((p>=0).all())
    with pytest.raises(MemoError, match='outputs'): VoteHead(bank, outputs='cosines')

def test_another_end_is_noticed_in_the_next_fit():
    learn = learner('log_softmax')
    assert learn.memory.head.outputs=='logits'
    learn.model[-1] = nn.Softmax(1)
    learn.loss_func = forms['softmax'][3]
    quietly(learn, 'fit', 1, 1e-3)
    assert learn.memory.head.outputs=='probabilities'
    assert torch.allclose(outputs(learn).sum(1), torch.ones(NV), atol=1e-4)

class Cosines(nn.Module):
    def __init__(self, d, c):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c, d))
    def forward(self, x): return F.normalize(x)@F.normalize(self.weight).T

class Own(MemoryHead):
    "Mixes, and knows of logits only"
    mixes = True
    def answer(self, logits): return logits

@pytest.mark.parametrize('c', [10,2])
def test_what_cannot_be_mixed_is_refused_before_a_step(c):
    y = Y if c==10 else large
    def scaled(o, y): return F.cross_entropy(12*o, y)
    def cosine(head):
        set_seed(0)
        body = nn.Sequential(nn.Flatten(), nn.Linear(64,24), nn.Linear(24,24))
        return Learner(digits(y), nn.Sequential(body, Cosines(24,c)), loss_func=scaled,
                       cbs=MemoryCallback(SlotBank(N, policy='fifo'), head=head, at='0'))
    learn = cosine('vote')
    was = {k:v.clone() for k,v in learn.model.named_parameters()}
    with pytest.raises(MemoError, match="multiplies the model's outputs by 1[12]"): quietly(learn, 'fit', 1, 1e-2)
    assert all(torch.equal(v, was[k]) for k,v in learn.model.named_parameters())
    for head in ('add',None): quietly(cosine(head), 'fit', 1, 1e-2)

def test_a_head_of_ones_own_that_knows_logits_only():
    y,c,end,loss,_ = forms['softmax']
    learn = Learner(digits(y), net(c, nn.Softmax(1)), loss_func=loss, cbs=MemoryCallback(SlotBank(N), head=Own))
    with pytest.raises(MemoError, match='a Own mixes logits, and this model ends in prob'): quietly(learn, 'fit', 1)

@pytest.mark.parametrize('probabilities', [False,True])
@pytest.mark.parametrize('multi', [False,True])
@pytest.mark.parametrize('shape', [(7,),(7,1),(7,2),(7,5)])
def test_there_and_back(probabilities, multi, shape):
    o = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if probabilities: o = o.sigmoid() if multi or len(shape)==1 or shape[1]==1 else o.softmax(1)
    z = as_logits(o, probabilities, multi)
    assert z.ndim==2 and (multi or z.shape[1]>1)
    assert torch.allclose(as_outputs(z, o, probabilities, multi), o, atol=1e-5)

def test_certain_probabilities_stay_finite():
    p = torch.tensor([[1.,0,0],[0,1,0]])
    assert bool(as_logits(p, True).isfinite().all()) and bool(as_logits(p, True, True).isfinite().all())
