"What is not known (-1) in targets of several labels influences nothing: loss, metrics, votes, samplers, bank"
import numpy as np, pytest, torch
from hypothesis import given, strategies as st
from fastai.vision.all import BCEWithLogitsLossFlat, DataLoaders, Learner, nn, set_seed
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.data.samplers import balanced_order
from memo.data.tensors import KnownBCE, TensorDL, TensorSet
from memo.evaluation.tasks import class_counts, task_of
from memo.experiment.build import build_loss
from memo.heads.mixture import VoteHead, log_probs, mixture_nll
from memo.metrics.intervals import patient_bootstrap
from memo.metrics.multilabel import (MultiMetric, calibration_bins, class_ap, class_auc, class_table, macro_auc,
                                     multilabel_scores)
from memo.registry import Section
from memo.training.losses import AsymmetricLoss, SigmoidFocalLoss, binary_cross_entropy, pos_weights
from memo.training.memory_callback import MemoryCallback

W = torch.tensor([1.,3,.5])
losses = dict(bce=KnownBCE, bce_weighted=lambda: binary_cross_entropy(W), focal=SigmoidFocalLoss,
              focal_weighted=lambda: SigmoidFocalLoss(pos_weight=W), asymmetric=AsymmetricLoss,
              asymmetric_weighted=lambda: AsymmetricLoss(pos_weight=W))

def case(seed, n=40):
    "Outputs, 0/1 targets, and which of them are known: some of each finding"
    g = torch.Generator().manual_seed(seed)
    x,y = torch.randn(n, 3, generator=g),torch.randint(0, 2, (n,3), generator=g).float()
    known = torch.rand(n, 3, generator=g)<.7
    y[:4],known[:4] = torch.tensor([0.,1,0,1])[:,None],True
    return x,y,known

def hidden(y, known): return torch.where(known, y, -1.)

@pytest.mark.parametrize('loss', losses)
@given(seed=st.integers(0, 10**6))
def test_a_loss_is_that_of_the_known_entries(loss, seed):
    "What the same loss says of the known entries alone, whatever the model says of the others; those have no gradient"
    x,y,known = case(seed)
    f = losses[loss]()
    x.requires_grad_()
    l = f(x, hidden(y, known))
    l.backward()
    f.reduction = 'none'
    each = f(x.detach(), y).as_subclass(torch.Tensor).reshape(y.shape)
    assert float(l)==pytest.approx(float(each[known].mean()), rel=1e-5)
    assert bool((x.grad[~known]==0).all()) and bool((x.grad[known]!=0).any())
    other = torch.where(known, x.detach(), x.detach()*7-3)
    f.reduction = 'mean'
    assert torch.equal(f(other, hidden(y, known)), l.detach())

@pytest.mark.parametrize('loss', losses)
def test_where_all_is_known_a_loss_is_what_it_was(loss):
    x,y,_ = case(1)
    f,old = losses[loss](),BCEWithLogitsLossFlat(pos_weight=W if 'weighted' in loss else None)
    if 'bce' in loss: assert torch.equal(f(x, y), old(x, y))
    y[:] = -1
    x.requires_grad_()
    l = f(x, y)
    l.backward()
    assert float(l)==0 and bool((x.grad==0).all())

@pytest.mark.parametrize('loss', losses)
def test_what_is_not_known_cannot_be_mixed(loss):
    x,y,known = case(2)
    y = hidden(y, known)
    with pytest.raises(MemoError, match='cannot be mixed'): losses[loss]()(x, .7*y+.3*y.flip(0))
    y[5,1] = float('nan')
    assert not torch.isfinite(losses[loss]()(x, y))        # missing, and nobody said so

@given(seed=st.integers(0, 10**6))
def test_scores_are_sklearns_of_the_known_entries(seed):
    x,y,known = case(seed)
    p,t = x.sigmoid(),hidden(y, known)
    cols = [(p[k,j].double(),y[k,j]) for j,k in enumerate(known.T)]
    assert class_auc(p, t).tolist()==pytest.approx([roc_auc_score(b, a) for a,b in cols])
    assert class_ap(p, t).tolist()==pytest.approx([average_precision_score(b, a) for a,b in cols])
    tab = class_table(p, t, list('abc'))
    assert tab.f1.tolist()==pytest.approx([f1_score(b, a>.5) for a,b in cols])
    assert tab.positives.tolist()==[int(b.sum()) for _,b in cols]
    s,a,b = multilabel_scores(p, t),torch.cat([o for o,_ in cols]),torch.cat([o for _,o in cols])
    assert s['brier']==pytest.approx(float(((a-b)**2).mean()))
    assert s['nll']==pytest.approx(float(nn.functional.binary_cross_entropy(a, b.double())), rel=1e-5)
    assert calibration_bins(p, t).n.sum()==len(a)
    assert MultiMetric(macro_auc, 'x')(p, t)==pytest.approx(s['macro_auc'])

def test_what_the_model_says_of_unknown_entries_changes_no_score():
    x,y,known = case(3)
    p,t = x.sigmoid(),hidden(y, known)
    q = torch.where(known, p, 1-p)
    def all_of(p):
        ci = patient_bootstrap(p, t, torch.arange(40)//2, n=50)
        return {**multilabel_scores(p, t, tail=[1]), **{k:str(v) for k,v in ci.items()}}
    assert all_of(p)==all_of(q) and all_of(p)!=all_of(p.flip(0))

def test_minus_one_and_one_alone_are_no_unknown_labels():
    "Somebody who codes negatives as -1 is told, instead of having none"
    x,y,_ = case(4)
    with pytest.raises(MemoError, match='in column 0 are -1'): class_auc(x, 2*y-1)

def test_weights_and_counts_are_of_what_is_known():
    _,y,known = case(5)
    t = hidden(y, known)
    n,pos = known.sum(0),(y*known).sum(0)
    assert torch.allclose(pos_weights(t), (n-pos)/pos)
    a,b = (balanced_order(torch.as_tensor(v), 200, torch.Generator().manual_seed(0)) for v in (t,t.clamp(min=0)))
    assert a==b
    ds = TensorSet(torch.randn(40, 2), t, vocab=list('abc'))
    dls = DataLoaders(TensorDL(dataset=ds), TensorDL(dataset=ds), device='cpu')
    assert class_counts(dls).tolist()==pos.long().tolist() and task_of(dls).name=='multilabel'
    assert list(ds.decode((0,torch.tensor([-1.,1,0])))[1])==['b']

def test_the_default_loss_of_a_set_leaves_it_out():
    x,y,known = case(6)
    ds = TensorSet(x, hidden(y, known))
    assert float(ds.loss_func(x, hidden(y, known)))==pytest.approx(float(BCEWithLogitsLossFlat()(x[known], y[known])))

def digits(mask):
    "Even, small, and a third of both parities; those of `mask` are not known"
    x,y = load_digits(return_X_y=True)
    x,y = torch.tensor(x).float()[:400]/16,torch.tensor(y)[:400]
    t = torch.stack([y%2==0, y<5, y%3==0], 1).float()
    t = t if mask is None else hidden(t, mask)
    parts = slice(0, 300),slice(300, 400)
    ds = [TensorSet(x[i], t[i], torch.arange(400)[i], list('abc'), s) for s,i in enumerate(parts)]
    return DataLoaders(*[TensorDL(dataset=o, bs=30, shuffle=not i) for i,o in enumerate(ds)], device='cpu')

def test_a_row_of_which_a_finding_is_not_known_has_no_vote_in_it():
    "The vote is as if the row had not been read, for that finding"
    b = SlotBank(3, policy='fifo')
    b.write(torch.eye(3, 8), torch.tensor([[1.,0.],[-1.,1.],[0.,1.]]), item=torch.arange(3))
    head,w = VoteHead(b, k=2),torch.tensor([[.6,.4]])
    with_it,without = (head._vote(w, torch.tensor([i])) for i in ([0,1],[0,-1]))
    assert float(with_it[0,0])==pytest.approx(float(without[0,0])) and float(with_it[0,1])>float(without[0,1])

@pytest.mark.parametrize('loss', ['bce','focal','asymmetric'])
def test_a_memory_trains_votes_and_is_fitted(loss, recwarn):
    "Rows of which some is known are stored with it; nothing is said of them, and nothing refused"
    mask = torch.rand(400, 3, generator=torch.Generator().manual_seed(0))<.6
    mask[7] = False        # of this row nothing
    dls = digits(mask)
    set_seed(0)
    net = nn.Sequential(nn.Linear(64,16), nn.ReLU(), nn.Linear(16,3))
    f = build_loss('loss', Section('loss', loss, {}), dls)
    learn = Learner(dls, net, f, metrics=macro_auc, cbs=MemoryCallback(SlotBank(300, policy='fifo'), head='vote', k=10))
    with learn.no_bar(), learn.no_logging(): learn.fit(3, 1e-2)
    bank = learn.memory.bank
    of = dls.train_ds.y[bank.items]
    assert len(bank)==300 and torch.equal(bank.labels, of) and bool((of==-1).any())
    got = learn.memory.fit()
    assert 0<got['weight']<1 and np.isfinite([got['nll_network'],got['nll_mixture']]).all()
    last = dict(zip(learn.recorder.metric_names[1:-1], learn.recorder.values[-1]))
    assert last['macro_auc']>.8
    assert not [o for o in recwarn if 'not 0 or 1' in str(o.message)]

def test_a_loss_that_takes_it_for_a_number_is_refused():
    "By an experiment, here fastai's by its dotted path; and, as before, by a head that votes"
    dls = digits(torch.rand(400, 3)<.6)
    name = 'fastai.losses.BCEWithLogitsLossFlat'
    with pytest.raises(MemoError, match=r'train.loss: .* takes what is not known \(-1\) for a number; bce, focal'):
        build_loss('train.loss', Section('loss', name, {}), dls)
    learn = Learner(dls, nn.Linear(64,3), BCEWithLogitsLossFlat(), cbs=MemoryCallback(SlotBank(300), head='vote'))
    with pytest.raises(MemoError, match='targets are not 0 or 1'), learn.no_bar(): learn.fit(1)

@pytest.mark.parametrize('head', ['add',None])
@pytest.mark.parametrize('loss', [BCEWithLogitsLossFlat,lambda: SigmoidFocalLoss(gamma=0)])
def test_a_loss_that_takes_it_for_a_number_is_said(head, loss, recwarn):
    "By a memory that needs no labels, which trains all the same"
    learn = Learner(digits(torch.rand(400, 3)<.6), nn.Linear(64,3), loss(),
                    cbs=MemoryCallback(SlotBank(300), head=head))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    said = [o for o in recwarn if 'give a loss that leaves -1 out' in str(o.message)]
    assert len(said)==(loss is BCEWithLogitsLossFlat) and len(learn.memory.bank)

@given(seed=st.integers(0, 10**6))
def test_a_mixture_is_fitted_to_what_is_known(seed):
    x,y,known = case(seed)
    logs = log_probs(x, True)
    want = -torch.where(y>0, *logs)[known].mean()
    assert float(mixture_nll(logs, hidden(y, known)))==pytest.approx(float(want), rel=1e-5)
