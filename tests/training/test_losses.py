"""Logit adjustment against its formulas (Menon et al. 2021, eq. 9 and 10), multi-label losses against theirs, and
all as fastai losses"""
import math
import pytest, torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from fastai.vision.all import BCEWithLogitsLossFlat, DataLoaders, Learner, load_learner, nn, noop, set_seed
from memo.core import MemoError
from memo.data.tensors import TensorDL
from memo.data.longtail import digits_lt
from memo.models.small import small_cnn
from memo.training.losses import AsymmetricLoss, LogitAdjustedCE, SigmoidFocalLoss, adjust_logits, log_prior
from memo.training.losses import pos_weights

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
    assert torch.allclose(LogitAdjustedCE(counts, tau)(adjust_logits(z, counts, tau), y), F.cross_entropy(z, y),
                          atol=1e-4)

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
    with pytest.raises(MemoError, match='4 logits, counts are for 3'):
        LogitAdjustedCE([1,2,3])(torch.zeros(1,4), torch.tensor([0]))
    with pytest.raises(MemoError, match='4 classes'): adjust_logits(torch.zeros(1,4), [1,2,3])

def test_in_a_learner(tmp_path):
    set_seed(0)
    dls = digits_lt(size=8)
    learn = Learner(dls, small_cnn(), loss_func=LogitAdjustedCE(dls.counts), path=tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    z,y = learn.get_preds(act=noop)
    p,y2,d,losses = learn.get_preds(with_decoded=True, with_loss=True)
    # raw logits: no prior at inference
    assert torch.allclose(p, z.softmax(-1), atol=1e-6) and (d==z.argmax(-1)).all()
    assert torch.allclose(losses, LogitAdjustedCE(dls.counts, reduction='none')(z,y), atol=1e-5)
    assert not any('prior' in k for k in learn.model.state_dict())
    learn.export(tmp_path/'a.pkl')
    l2 = load_learner(tmp_path/'a.pkl')
    assert torch.equal(l2.loss_func.prior, learn.loss_func.prior)

# multi-label

def _xy(seed, n=7, c=4):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n,c,generator=g)*3,(torch.rand(n,c,generator=g)<.3).float()

golden = torch.tensor([[2.,-1],[0,3]]),torch.tensor([[1.,0],[1,0]])
@pytest.mark.parametrize('loss,want',
                         [(BCEWithLogitsLossFlat(), 1.045481), (SigmoidFocalLoss(), .741007),
                          (AsymmetricLoss(clip=0), .718365), (AsymmetricLoss(), .476916)])
def test_golden(loss, want): assert float(loss(*golden))==pytest.approx(want, abs=1e-6)

def _by_hand(name, x, y, w, gamma, gamma_pos, clip):
    p = 1/(1+math.exp(-x))
    if name=='focal': return -w*(1-p)**gamma*math.log(p) if y else -p**gamma*math.log(1-p)
    m = max(p-clip, 0)
    return -w*(1-p)**gamma_pos*math.log(p) if y else -m**gamma*math.log(1-m)

@given(st.sampled_from(['focal','asymmetric']), st.integers(0,999), st.floats(0,5), st.floats(0,3),
       st.sampled_from([0,.05,.3]), st.booleans())
def test_losses_are_their_formulas(name, seed, gamma, gamma_pos, clip, weighted):
    x,y = _xy(seed)
    w = torch.tensor([1.,2,.5,30]) if weighted else None
    loss = SigmoidFocalLoss(2., gamma, w, 'none') if name=='focal' else AsymmetricLoss(gamma, gamma_pos, clip, w,
        'none')
    ws = (torch.ones(4) if w is None else w).tolist()
    want = [[(2 if name=='focal' else 1)*_by_hand(name, a, b, v, gamma, gamma_pos, clip) for a,b,v in zip(r,s,ws)]
            for r,s in zip(x.tolist(), y.tolist())]
    assert torch.allclose(loss(x,y), torch.tensor(want), rtol=1e-3, atol=1e-5)
    for red in ('mean','sum'):
        loss.reduction = red
        assert float(loss(x,y))==pytest.approx(getattr(torch.tensor(want), red)().item(), rel=1e-3, abs=1e-5)

def test_focal_is_torchvisions():
    from torchvision.ops import sigmoid_focal_loss
    x,y = _xy(0)
    assert torch.allclose(SigmoidFocalLoss(reduction='none')(x,y), sigmoid_focal_loss(x, y, alpha=-1, gamma=2),
                          atol=1e-6)

@pytest.mark.parametrize('loss',
                         [SigmoidFocalLoss(gamma=.5), SigmoidFocalLoss(), AsymmetricLoss(), AsymmetricLoss(.5,.5),
                          AsymmetricLoss(clip=0), AsymmetricLoss(clip=1e-9)])
def test_saturated_logits_have_finite_gradients(loss):
    x = torch.tensor([[-1e4,-200,-50,-20,0,20,50,200,1e4]]*2, requires_grad=True)
    y = torch.tensor([[0.]*9,[1]*9])
    v = loss(x,y)
    v.backward()
    assert torch.isfinite(v) and torch.isfinite(x.grad).all()
    if loss is not None:
        assert float(loss(torch.tensor([[-1e4,1e4]]), torch.tensor([[0.,1]])))==pytest.approx(0, abs=1e-6)

def test_margin_costs_nothing():
    x = torch.tensor([[-4.,-3]], requires_grad=True)    # probabilities .018 and .047, below the margin
    v = AsymmetricLoss()(x, torch.zeros(1,2))
    v.backward()
    assert v==0 and (x.grad==0).all() and AsymmetricLoss(clip=0)(x, torch.zeros(1,2))>0

@pytest.mark.parametrize('f', [SigmoidFocalLoss, AsymmetricLoss])
def test_weights_multiply_the_positive_term(f):
    x,y = _xy(3)
    a,b = f(reduction='none')(x,y),f(pos_weight=[2,3,4,5], reduction='none')(x,y)
    assert torch.allclose(b, torch.where(y>0, a*torch.tensor([2.,3,4,5]), a))

@given(st.integers(0,99), st.floats(1,50))
def test_pos_weights(seed, most):
    y = _xy(seed, 30)[1]
    want = [max(1/most, min(most, (30-k)/max(k,1))) for k in y.sum(0).tolist()]
    assert pos_weights(y, most=most).tolist()==pytest.approx(want)==pos_weights(y.sum(0), 30, most).tolist()

def test_what_every_image_has_is_learned_too():
    assert pos_weights(torch.ones(30, 2)).tolist()==pytest.approx([.01,.01])

def test_both_outcomes_weigh_the_same():
    y = (torch.rand(500,3, generator=torch.Generator().manual_seed(0))<torch.tensor([.02,.2,.5])).float()
    l = BCEWithLogitsLossFlat(pos_weight=pos_weights(y), reduction='none')(torch.zeros_like(y), y)
    assert torch.allclose((l*y).sum(0), (l*(1-y)).sum(0))

@pytest.mark.parametrize('f', [SigmoidFocalLoss, AsymmetricLoss])
def test_half_precision(f):
    x,y = _xy(0)
    with torch.autocast('cpu', dtype=torch.bfloat16): v = f()((x@torch.eye(4)), y)
    assert v.dtype==torch.float32 and float(v)==pytest.approx(float(f()(x.bfloat16(), y)))

def test_bad_arguments():
    x,y = _xy(0)
    wrong = {'gamma must be a number from 0, found -1':lambda: SigmoidFocalLoss(gamma=-1),
             'alpha must be a number above 0':lambda: SigmoidFocalLoss(0),
             'reduction':lambda: SigmoidFocalLoss(reduction='avg'), 'gamma_neg must be':lambda: AsymmetricLoss(-2),
        'clip must be a number from 0 to below 1, found 1':lambda: AsymmetricLoss(clip=1),
        r'targets \(7,\)':lambda: AsymmetricLoss()(x, y[:,0]),
        'pos_weight: 4 classes':lambda: SigmoidFocalLoss(pos_weight=[1,2])(x, y),
        'n=None':lambda: pos_weights([1,2]), 'found .*20':lambda: pos_weights([1,20], 10)}
    for m,f in wrong.items():
        with pytest.raises(MemoError, match=m) as e: f()
        assert '\n' not in str(e.value)

@pytest.mark.parametrize('f', [SigmoidFocalLoss, AsymmetricLoss, BCEWithLogitsLossFlat])
def test_multi_label_learner(f, tmp_path):
    "Losses fall; `get_preds` and `predict` give probabilities, also after export"
    set_seed(0)
    x = torch.randn(60,4)
    y = (x[:,:3]>.7).float()
    dls = DataLoaders(*[TensorDL(x, y, bs=16, vocab=list('abc')) for _ in range(2)])
    learn = Learner(dls, nn.Linear(4,3), loss_func=f(pos_weight=pos_weights(y)), lr=.1, path=tmp_path)
    was = float(learn.loss_func(learn.model(x), y).detach())
    with learn.no_bar(), learn.no_logging(): learn.fit(8)
    assert float(learn.loss_func(learn.model(x), y)) < .7*was
    p,_,d,l = learn.get_preds(with_decoded=True, with_loss=True)
    assert torch.allclose(p, learn.model(x).sigmoid(), atol=1e-6) and (d==(p>.5)).all() and l.shape==(60,
        ) and float(l.mean())==pytest.approx(float(learn.loss_func(learn.model(x), y).detach()))
    learn.export(tmp_path/'a.pkl')
    l2 = load_learner(tmp_path/'a.pkl')
    assert torch.equal(l2.get_preds(dl=dls[1])[0],
                       p) and float(l2.loss_func(learn.model(x),
                                                 y))==pytest.approx(float(learn.loss_func(learn.model(x), y)))
