"Corrections of outputs against scipy and numpy: temperature, logit adjustment of a chosen strength, tempered weights"
import math
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_softmax
from helpers.tensors import gen
from memo.core import MemoError
from memo.evaluation.calibration import (adjusted_outputs, best_scale, class_accuracy, fit_log_odds, fit_temperature,
                                         minimised, tempered_outputs)
from memo.registry import find

COUNTS = torch.tensor([200,60,15,5])

def outputs(n=40, seed=0, sure=1., lean=1.):
    "Logits of a network that leans to frequent classes, of as many items of each"
    y = torch.arange(4).repeat_interleave(n)
    x = torch.randn(4*n, 4, generator=gen(seed))+1.5*torch.eye(4)[y]
    return sure*(x+lean*COUNTS.log()),y

def np_nll(o, y):
    "Class-balanced negative log-likelihood"
    l = -log_softmax(np.asarray(o, dtype=float), axis=1)[np.arange(len(y)),y]
    return np.mean([l[y==c].mean() for c in np.unique(y)])
def np_recall(o, y): return np.mean([(o.argmax(1)[y==c]==c).mean() for c in np.unique(y)])

# the two searches
@given(st.floats(-1.5, 1.5), st.floats(.1, 5))
def test_a_scale_is_found(at, steep):
    got = best_scale(lambda s: steep*(math.log10(s)-at)**2)
    assert math.log10(got)==pytest.approx(at, abs=1e-4)

def test_what_is_minimised_is_scipys_least():
    a = torch.randn(6, 3, generator=gen(0)).double()
    b = torch.randn(6, generator=gen(1)).double()
    w, = minimised(lambda w: (a@w-b).square().sum(), torch.zeros(3))
    np.testing.assert_allclose(w, np.linalg.lstsq(a, b, rcond=None)[0], atol=1e-5)
    w,c = minimised(lambda w, c: (a@w+c-b).square().sum(), torch.ones(3), torch.zeros(1), lower=(0.,None))
    assert (w>=0).all() and w.dtype==torch.double
    with torch.no_grad(): again = minimised(lambda w, c: (a@w+c-b).square().sum(), torch.ones(3), torch.zeros(1),
                                            lower=(0.,None))
    assert torch.equal(again[0], w) and torch.equal(again[1], c)

# temperature
@pytest.mark.parametrize('sure', [.3,1.,4.])
def test_temperature_of_classes_is_scipys(sure):
    x,y = outputs(sure=sure)
    f,got = fit_temperature(x, y)
    want = minimize_scalar(lambda t: -log_softmax(x.double().numpy()/t, axis=1)[np.arange(len(y)),y].mean(),
                           bounds=(.05,50), method='bounded', options=dict(xatol=1e-8)).x
    assert got['temperature']==pytest.approx(want, rel=1e-3)
    assert torch.allclose(f(x), x/got['temperature'], rtol=1e-5) and torch.equal(f(x).argmax(1), x.argmax(1))

def findings(n=300, seed=0):
    true = torch.randn(n, 3, generator=gen(seed))*2-torch.tensor([0.,1.,3.])
    return true,(torch.rand(n, 3, generator=gen(seed+1))<true.sigmoid()).float()
def np_bce(o, y): return np.logaddexp(0, np.where(np.asarray(y)>0, -o, o)).mean()

def test_temperature_of_findings_is_scipys_for_all_and_for_each():
    true,y = findings()
    x = 3*true
    f,got = fit_temperature(x, y)
    want = minimize_scalar(lambda t: np_bce(x.double().numpy()/t, y), bounds=(.05,50), method='bounded').x
    assert got['temperature']==pytest.approx(want, rel=1e-3)
    f,got = fit_temperature(x*torch.tensor([1.,2.,.5]), y, each=True)
    for i,s in enumerate((1,2,.5)):
        want = minimize_scalar(lambda t: np_bce(s*x[:,i].double().numpy()/t, y[:,i]), bounds=(.05,50),
                               method='bounded').x
        assert got['temperature'][i]==pytest.approx(want, rel=1e-3)

@pytest.mark.parametrize('each', [False,True])
def test_log_odds_are_the_least_with_the_ridge(each):
    true,y = findings()
    other = true+torch.randn(true.shape, generator=gen(5))
    w,b,nll = fit_log_odds([2*true,other], y, (.5,.5,0.), each)
    xs = np.stack([2*true.double(),other.double()])
    def loss(v, i=slice(None)):
        o = np.tensordot(v[:2], xs[:,:,i], 1)+v[2]
        return np_bce(o, y[:,i])+((v-[.5,.5,0])**2).sum()/(2*len(y))
    for i in (range(3) if each else [slice(None)]):
        r = minimize(loss, [.5,.5,0], args=(i,), bounds=[(0,None),(0,None),(None,None)])
        got = [w[0,i].item(), w[1,i].item(), b[i].item()] if each else [w[0].item(), w[1].item(), b.item()]
        np.testing.assert_allclose(got, r.x, atol=2e-3)
    o = w[0]*2*true+w[1]*other+b
    assert nll==pytest.approx(np_bce(o.double().numpy(), y), rel=1e-5) and nll<np_bce(2*true.double().numpy(), y)

def test_labels_that_are_not_known_say_nothing():
    true,y = findings()
    odd,gap = y.clone(),torch.rand(y.shape, generator=gen(9))<.3
    odd[gap] = torch.where(torch.rand(int(gap.sum()), generator=gen(8))<.5, -1., torch.nan)
    kept = [(true[~gap[:,i],i],y[~gap[:,i],i]) for i in range(3)]
    f,got = fit_temperature(2*true, odd, each=True)
    for i,(x,t) in enumerate(kept):
        assert got['temperature'][i]==pytest.approx(fit_temperature(2*x[:,None], t[:,None])[1]['temperature'], rel=1e-4)
    w,b,_ = fit_log_odds([2*true], odd, (1.,0.), each=True)
    for i,(x,t) in enumerate(kept):
        v,c,_ = fit_log_odds([2*x[:,None]], t[:,None], (1.,0.))
        assert (w[0,i],b[i])==(pytest.approx(v.item(), abs=1e-3),pytest.approx(c.item(), abs=1e-3))
    with pytest.raises(MemoError, match='no label'): fit_log_odds([true], torch.full_like(y, -1), (1.,0.))

def test_findings_without_a_positive_leave_the_network_finite():
    true,y = findings()
    y[:,2] = 0
    for each in (False,True):
        for offset in (False,True):
            f,got = fit_temperature(true, y, each, offset)
            assert f(true).isfinite().all()

# logit adjustment
@settings(max_examples=15)
@given(st.integers(0, 99), st.sampled_from([.5,1.,1.5]))
def test_the_strength_by_accuracy_is_the_best(seed, lean):
    x,y = outputs(20, seed, lean=lean)
    taus,prior = [0.,.25,.5,.75,1.,1.25,1.5,2.],np.log(COUNTS.numpy()/COUNTS.sum().item())
    f,got = adjusted_outputs(x, y, COUNTS, taus, 'accuracy')
    each = {t:(-round(np_recall(x.numpy()-t*prior, y.numpy()), 12),np_nll(x.double().numpy()-t*prior, y.numpy()))
            for t in taus}
    assert got==dict(tau=min(each, key=each.get))
    np.testing.assert_allclose(f(x), x.numpy()-got['tau']*prior, rtol=1e-5, atol=1e-5)

def test_scale_and_strength_by_likelihood_are_scipys():
    x,y = outputs(sure=3.)
    prior = np.log(COUNTS.numpy()/COUNTS.sum().item())
    f,got = adjusted_outputs(x, y, COUNTS, np.linspace(0, 3, 61).tolist(), 'nll')
    r = minimize(lambda v: np_nll(v[0]*x.double().numpy()-v[1]*prior, y.numpy()), [1,1])
    assert got['scale']==pytest.approx(r.x[0], abs=.03) and got['tau']==pytest.approx(r.x[1], abs=.05)
    assert np_nll(f(x), y.numpy())<r.fun+1e-3

# tempered weights
def test_tempered_outputs_are_those_of_the_weights():
    "A layer made of w/|w|^tau without offsets, on the features"
    z,w,b = (torch.randn(*o, generator=gen(i)) for i,o in enumerate([(80,6),(4,6),(4,)]))
    w = w*torch.tensor([[4.],[2.],[1.],[.5]])
    y = (z@torch.nn.functional.normalize(w).T).argmax(1)
    logits = z@w.T+b
    taus = [0.,.5,1.,1.5]
    f,got = tempered_outputs(logits, y, w, b, taus, 'accuracy')
    layers = {t:z.numpy()@(w.numpy()/np.linalg.norm(w.numpy(), axis=1, keepdims=True)**t).T for t in taus}
    assert got==dict(tau=1.) and np_recall(layers[1.], y.numpy())==1==class_accuracy(f(logits), y)
    np.testing.assert_allclose(f(logits), layers[1.], atol=1e-5)
    g,got = tempered_outputs(logits, y, w, b, [.5], 'nll')
    np.testing.assert_allclose(g(logits), got['scale']*layers[.5], rtol=1e-4, atol=1e-4)
    h,_ = tempered_outputs(z@w.T, y, w[:,:,None,None], None, [1.], 'accuracy')      # a convolution of one pixel
    np.testing.assert_allclose(h(z@w.T), layers[1.], atol=1e-5)

# as baselines
def test_what_has_nothing_to_choose_needs_nothing():
    make = find('baseline', 'logit_adjusted')
    for kw,by,n in (({},None,1), (dict(tau=.5),None,1), (dict(tau=[2.]),None,1), (dict(tau=[0.,1.]),'accuracy',2),
                    (dict(by='nll'),'nll',61), (dict(by='accuracy', tau=1.),'accuracy',1)):
        b = make(**kw)
        assert b.by==by and len(b.taus)==n and b.needs==(('valid',) if by else ())
    assert len({make(by=o).title for o in (None,'accuracy','nll')})==3
    for bad in (dict(tau=[]), dict(tau=-1.), dict(by='loss')):
        with pytest.raises(MemoError): make(**bad)
