"Logit adjustment against its formulas (Menon et al. 2021, eq. 9 and 10), and as a fastai loss"
import math
import pytest, torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from fastai.vision.all import Learner, load_learner, noop, set_seed
from memo.core import MemoError
from memo.data import digits_lt, small_cnn
from memo.losses import LogitAdjustedCE, adjust_logits, log_prior

counts_ = st.lists(st.integers(0,5000), min_size=2, max_size=8).filter(lambda o: sum(o)>0)

def _naive(logits, y, counts, tau):
    "eq. 10 in plain Python"
    n = [max(1,c) for c in counts]
    tot,res = sum(n),[]
    for z,t in zip(logits.tolist(), y.tolist()):
        a = [v+tau*math.log(c/tot) for v,c in zip(z,n)]
        m = max(a)
        res.append(m+math.log(sum(math.exp(v-m) for v in a))-a[t])
    return sum(res)/len(res)

@given(counts_, st.floats(0,2), st.integers(0,99))
def test_loss_is_eq_10(counts, tau, seed):
    g = torch.Generator().manual_seed(seed)
    z,y = torch.randn(5, len(counts), generator=g)*3,torch.randint(len(counts), (5,), generator=g)
    assert float(LogitAdjustedCE(counts, tau)(z,y)) == pytest.approx(_naive(z,y,counts,tau), rel=1e-4, abs=1e-5)

@given(counts_, st.floats(0,2))
def test_post_hoc_undoes_what_training_adds(counts, tau):
    z = torch.randn(4, len(counts))
    y = torch.zeros(4, dtype=torch.long)
    assert torch.allclose(LogitAdjustedCE(counts, tau)(adjust_logits(z, counts, tau), y), F.cross_entropy(z, y), atol=1e-4)

def test_post_hoc_is_bayes():
    "Adjusted probabilities are the posterior under equal priors, up to normalisation: p(y|x)/p(y)"
    counts = [90,9,1]
    p = torch.tensor([[.7,.2,.1]])
    want = p/torch.tensor([.9,.09,.01])
    assert torch.allclose(adjust_logits(p.log(), counts).softmax(-1), want/want.sum())

def test_no_class_makes_infinities():
    l = LogitAdjustedCE([100,0,5])
    z = torch.zeros(2,3, requires_grad=True)
    v = l(z, torch.tensor([1,2]))
    v.backward()
    assert torch.isfinite(v) and torch.isfinite(z.grad).all()

@pytest.mark.parametrize('bad', [[], [[1,2]], [1,-1], [1,float('nan')]])
def test_bad_counts(bad):
    with pytest.raises(MemoError, match='^counts'): log_prior(bad)

def test_wrong_number_of_classes():
    with pytest.raises(MemoError, match='4 logits, counts are for 3'): LogitAdjustedCE([1,2,3])(torch.zeros(1,4), torch.tensor([0]))
    with pytest.raises(MemoError, match='4 classes'): adjust_logits(torch.zeros(1,4), [1,2,3])

def test_in_a_learner(tmp_path):
    set_seed(0)
    dls = digits_lt(size=8)
    learn = Learner(dls, small_cnn(), loss_func=LogitAdjustedCE(dls.counts), path=tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    z,y = learn.get_preds(act=noop)
    p,y2,d,losses = learn.get_preds(with_decoded=True, with_loss=True)
    assert torch.allclose(p, z.softmax(-1), atol=1e-6) and (d==z.argmax(-1)).all()      # raw logits: no prior at inference
    assert torch.allclose(losses, LogitAdjustedCE(dls.counts, reduction='none')(z,y), atol=1e-5)
    assert not any('prior' in k for k in learn.model.state_dict())
    learn.export(tmp_path/'a.pkl')
    l2 = load_learner(tmp_path/'a.pkl')
    assert torch.equal(l2.loss_func.prior, learn.loss_func.prior)
