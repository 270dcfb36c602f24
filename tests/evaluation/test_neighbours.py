"Nearest neighbours against a loop in numpy, rare classes filled up against the published formula, density ratios"
import math
import numpy as np, pytest, torch
from fastcore.basics import AttrDict
from hypothesis import given, settings, strategies as st
from scipy.special import softmax
from helpers.tensors import gen
from memo.banks.search import within_whitener
from memo.core import MemoError
from memo.evaluation.neighbours import (calibrated_classifier, calibrated_rows, filled_up, finding_ratio, head_classes,
                                        knn_classifier, three_opinions_of_findings, tukey)
from memo.evaluation.rebalanced import two_opinions_of_findings
from memo.heads.mixture import class_nll

SIZES = 150,120,12,4
def tail(sizes=SIZES, d=6, seed=0, noise=.9):
    mu,y = torch.randn(len(sizes), d, generator=gen(99)),torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    i = torch.randperm(len(y), generator=gen(seed+1))
    return (mu[y]+noise*torch.randn(len(y), d, generator=gen(seed)))[i],y[i]

@pytest.fixture(scope='module')
def data(): return *tail(),*tail((30,)*4, seed=5),*tail((60,)*4, seed=7)

# neighbours
def unit(o): return o/np.linalg.norm(o, axis=1, keepdims=True)
def by_hand(z, y, q, k, t, balanced, w=None):
    "One query at a time"
    z,y,q,n = unit(z.double().numpy()),y.numpy(),unit(q.double().numpy()),np.bincount(y)
    if w is not None:
        c = z.mean(0)
        z,q = unit((z-c)@w),unit((q-c)@w)
    res = []
    for o in q:
        s = z@o
        near = np.argsort(-s, kind='stable')[:k]
        p = np.zeros(len(n))
        for i,a in zip(near, softmax(s[near]/t)): p[y[i]] += a/(n[y[i]] if balanced else 1)
        res.append((k*p/p.sum()+1/len(n))/(k+1))
    return np.array(res)

@settings(max_examples=12, deadline=None)
@given(st.sampled_from([1,5,20]), st.sampled_from([.05,.3]), st.booleans(), st.booleans())
def test_votes_are_those_of_the_nearest(k, t, balanced, whiten):
    z,y = tail((40,20,10,4))
    q = torch.randn(15, 6, generator=gen(3))
    zv,yv = tail((3,)*4, seed=5)
    f,got = knn_classifier(z, y, 4, zv, yv, [k], [t], [whiten], [balanced])
    assert got==dict(k=k, temperature=t, whiten=whiten, balanced=balanced)
    w = within_whitener(torch.nn.functional.normalize(z), y).double().numpy() if whiten else None
    np.testing.assert_allclose(f(q).exp(), by_hand(z, y, q, k, t, balanced, w), atol=2e-4)

def test_the_choice_is_the_best_of_all(data):
    z,y,zv,yv,zt,yt = data
    f,got = knn_classifier(z, y, 4, zv, yv)
    def nll(f): return class_nll(f(zv), yv).item()
    each = {(k,t,w,b):nll(knn_classifier(z, y, 4, zv, yv, [k], [t], [w], [b])[0])
            for k in (1,20,100) for t in (.02,.1,.3) for w in (False,True) for b in (False,True)}
    assert nll(f)<=min(each.values())+1e-6 and len({round(o, 5) for o in each.values()})>20
    pred = f(zt).argmax(1)
    assert torch.stack([(pred==yt)[yt==c].float().mean() for c in range(4)]).mean()>.6

def test_fewer_items_than_neighbours_and_classes_that_nobody_has():
    z,y = tail((2,1))
    f,got = knn_classifier(z, y, 3, z, y, ks=[50])
    assert got['k']==3 and f(z).isfinite().all() and f(z).shape==(3,3)
    with pytest.raises(MemoError, match='no features'): knn_classifier(z[:0], y[:0], 3, z, y)

# rare classes, filled up
def test_common_classes():
    assert head_classes(torch.tensor([300,101,100,5])).tolist()==[0,1]
    assert head_classes(torch.tensor([9,30,2,1]), 100).tolist()==[0,1]      # the half that has most
    assert head_classes(torch.tensor([1,1])).tolist()==[]                   # of one item there is no covariance

def test_draws_have_the_calibrated_mean_and_covariance():
    "(mu_1+mu_2+x)/3 and (S_1+S_2)/2+alpha in every entry, of the two nearest of three classes"
    rows = [torch.randn(40, 3, generator=gen(i)).double()@torch.randn(3, 3, generator=gen(9+i)).double()+m
            for i,m in enumerate((0.,1.,30.))]
    x = torch.tensor([.5,-1.,2.]).double()
    got = calibrated_rows(x, rows, 2, .21, 200_000, gen(0)).numpy()
    a,b = rows[0].numpy(),rows[1].numpy()
    np.testing.assert_allclose(got.mean(0), (a.mean(0)+b.mean(0)+x.numpy())/3, atol=.03)
    want = (np.cov(a.T)+np.cov(b.T))/2+.21
    np.testing.assert_allclose(np.cov(got.T), want, atol=.02*np.abs(want).max())

def test_every_rare_class_is_filled_up_and_the_others_are_as_they_were(data):
    z,y = data[:2]
    x,to = filled_up(z.double(), y, 4, 100, 2, .21, 750, 0)
    assert torch.bincount(to).tolist()==[150,120,150,150]
    assert torch.equal(x[:len(z)], z.double()) and torch.equal(to[:len(y)], y)
    assert torch.bincount(filled_up(z.double(), y, 4, 100, 2, .21, 50, 0)[1]).tolist()==[150,120,50,50]
    far = (x[to==3]-z[y==3].mean(0)).norm(dim=1).mean()
    assert far<(x[to==3]-z[y==0].mean(0)).norm(dim=1).mean()

def test_tukey():
    x = torch.tensor([0.,4.,-9.])
    assert tukey(x, .5).tolist()==[0,2,-3] and torch.equal(tukey(x, 1.), x)

def test_rare_classes_gain(data):
    z,y,zv,yv,zt,yt = data
    state = torch.get_rng_state()
    f,got = calibrated_classifier(z, y, 4, zv, yv, powers=(1.,), ks=(1,2), l2s=(1e-2,))
    assert torch.equal(torch.get_rng_state(), state) and got['k'] in (1,2)
    g,_ = calibrated_classifier(z, y, 4, zv, yv, powers=(1.,), ks=(1,2), l2s=(1e-2,))
    assert torch.equal(f(zt), g(zt))
    def recall(p): return [(p==yt)[yt==c].float().mean().item() for c in range(4)]
    got = recall(f(zt).argmax(1))
    assert np.mean(got)>.65 and min(got)>.4

def test_one_item_a_class_has_no_statistics_to_lend():
    z,y = tail((1,1,1,1))
    f,_ = calibrated_classifier(z, y, 4, z, y)
    assert f(z).argmax(1).tolist()==y.tolist()

# findings
def findings(n, seed):
    g = torch.Generator().manual_seed(seed)
    y = (torch.rand(n, 4, generator=g)<torch.tensor([.5,.2,.1,0.])).float()     # nobody has the last
    a = torch.randn(4, 9, generator=torch.Generator().manual_seed(77))
    return 1.5*y@a+torch.randn(n, 9, generator=g)+1,y

@pytest.mark.parametrize('shrink,t', [(.1,.2),(1.,.05)])
def test_the_ratio_is_that_of_two_kernel_densities(shrink, t):
    "Over the labels that are known, in numpy"
    (z,y),(q,_) = findings(80, 0),findings(20, 1)
    y[:10,0] = -1
    x,u = (unit(o.double().numpy()) for o in (z,q))
    S = np.cov(x.T, bias=True)
    e,v = np.linalg.eigh((1-shrink)*S+shrink*np.trace(S)/9*np.eye(9))
    white = v@np.diag(e**-.5)@v.T
    k = np.exp(unit((u-x.mean(0))@white)@unit((x-x.mean(0))@white).T/t)
    want = [np.log(k[:,(y[:,c]==1).numpy()].mean(1)/k[:,(y[:,c]==0).numpy()].mean(1)) for c in range(3)]
    got = finding_ratio(z, y, shrink, t)(q)
    np.testing.assert_allclose(got[:,:3], np.stack(want, 1), atol=1e-3)
    assert torch.equal(got[:,3], torch.zeros(20))
    with pytest.raises(MemoError, match='finding_ratio.*not finite'): finding_ratio(z*math.nan, y, shrink, t)

def test_three_opinions_are_those_of_their_weights():
    (z,y),(zv,yv),(zt,_) = findings(200, 0),findings(150, 1),findings(50, 2)
    def net(z): return z[:,:4]-1.5
    train,valid = AttrDict(z=z, y=y),AttrDict(z=zv, y=yv, logits=net(zv))
    f,got = three_opinions_of_findings(train, valid)
    two,was = two_opinions_of_findings(train, valid)
    def nll(o): return torch.nn.functional.binary_cross_entropy_with_logits(o, yv)
    assert nll(f(valid.logits, zv))<=nll(two(valid.logits, zv))+1e-4 and got['l2']==was['l2']
    r = finding_ratio(z, y, got['shrink'], got['temperature'])(zt)
    want = got['product']*two(net(zt), zt)+got['ratio']*r+got['product_offset']
    np.testing.assert_allclose(f(net(zt), zt), want, atol=1e-4)
