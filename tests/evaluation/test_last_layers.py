"Layers trained again, factors, and two opinions, against scikit-learn and scipy"
import math
import numpy as np, pytest, torch
from fastcore.basics import AttrDict
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from helpers.tensors import gen
from memo.core import MemoError
from memo.evaluation.rebalanced import (balanced_layer, balanced_layers, finding_layer, finding_layers, learned_scales,
                                        two_opinions, two_opinions_of_findings)

SIZES = 120,40,12,4
def tail(sizes=SIZES, d=6, seed=0, noise=1.2):
    mu,y = torch.randn(len(sizes), d, generator=gen(99)),torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return (mu[y]+noise*torch.randn(len(y), d, generator=gen(seed)))*3+1,y
def np_nll(o, y):
    l = -log_softmax(np.asarray(o, dtype=float), axis=1)[np.arange(len(y)),y]
    return np.mean([l[y==c].mean() for c in np.unique(y)])
def normed(q, z): return ((q-z.mean(0))/z.std(0, correction=0)).double().numpy()

@pytest.fixture(scope='module')
def data(): return *tail(),*tail((30,)*4, seed=5),*tail((50,)*4, seed=7)

# one layer
@pytest.mark.parametrize('l2', [1.,.01])
def test_the_balanced_layer_is_scipys(data, l2):
    "n_y e^x_y over the sum of n_j e^x_j (Ren et al. 2020), a ridge on the weights"
    z,y,_,_,zt,_ = data
    x,n = normed(z, z),np.array(SIZES)
    def loss(v):
        o = x@v[:24].reshape(4,6).T+v[24:]
        e = n*np.exp(o-o.max(1, keepdims=True))
        return -np.log(e/e.sum(1, keepdims=True))[np.arange(len(y)),y].mean()+l2/2*(v[:24]**2).sum()
    v = minimize(loss, np.zeros(28), options=dict(gtol=1e-7)).x
    f, = balanced_layers(z, y, 4, [l2])
    want = normed(zt, z)@v[:24].reshape(4,6).T+v[24:]
    np.testing.assert_allclose(f(zt).softmax(1), np.exp(log_softmax(want, axis=1)), atol=2e-4)

def kin(sizes, d, seed):
    "Features as a network's are: 0 or more, most of what varies in few directions"
    a,mu = torch.randn(20, d, generator=gen(99)),torch.randn(len(sizes), 20, generator=gen(98))
    y,g = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)),gen(seed)
    return ((mu[y]+2*torch.randn(len(y), 20, generator=g))@a+.3*torch.randn(len(y), d, generator=g)).relu(),y

def test_rare_classes_and_many_features_are_fitted_in_few_steps(monkeypatch):
    "To scikit-learn's optimum; where all offsets had one scale, and ten steps were kept, it took 530"
    from scipy import optimize
    sizes,l2s,steps = (300,100,30,10,4,3,2),(1.,.3,.1,.03,.01),[]
    def counted(*args, **kw):
        res = minimize(*args, **kw)
        steps.append(res.nfev)
        return res
    monkeypatch.setattr(optimize, 'minimize', counted)
    (z,y),(zt,_),log_n = kin(sizes, 500, 0),kin((20,)*7, 500, 3),np.log(np.array(sizes)/sum(sizes))
    for l2,f in zip(l2s, balanced_layers(z, y, 7, l2s)):
        m = LogisticRegression(C=1/(l2*len(z)), solver='newton-cg', tol=1e-10, max_iter=1000)
        p = m.fit(normed(z, z), y.numpy()).predict_proba(normed(zt, z))
        np.testing.assert_allclose((f(zt)+torch.tensor(log_n)).softmax(1), p, atol=5e-4)
    assert sum(steps)<300

def test_the_balanced_layer_does_not_lean_to_the_frequent(data):
    z,y,zv,yv,zt,yt = data
    f,got = balanced_layer(z, y, 4, zv, yv)
    plain = LogisticRegression(max_iter=3000).fit(normed(z, z), y.numpy())
    def recall(p): return np.mean([(p[yt==c]==c).mean() for c in range(4)])
    assert recall(f(zt).argmax(1).numpy())>recall(plain.predict(normed(zt, z)))+.03

def test_the_ridge_is_the_best_on_validation_data_in_any_order(data):
    z,y,zv,yv,zt,yt = data
    l2s = (.01,1.,.0001)
    losses = {o:np_nll(f(zv), yv.numpy()) for o,f in zip(l2s, balanced_layers(z, y, 4, l2s))}
    f,got = balanced_layer(z, y, 4, zv, yv, l2s)
    assert got==dict(l2=min(losses, key=losses.get)) and len({round(o, 6) for o in losses.values()})==3
    for l2,f in zip(l2s, balanced_layers(z, y, 4, l2s)):        # where it begins is no matter
        alone, = balanced_layers(z, y, 4, [l2])
        assert torch.allclose(f(zt).softmax(1), alone(zt).softmax(1), atol=2e-3)

def test_what_says_nothing_is_no_harm(data):
    z,y,zv,yv,zt,yt = data
    z,zv,zt = (torch.cat([o, torch.full((len(o),1), 7.)], 1) for o in (z,zv,zt))     # a feature that does not vary
    f,_ = balanced_layer(z, y, 6, zv, yv)                                            # two classes that nobody has
    assert f(zt).shape==(len(zt),6) and f(zt).isfinite().all() and (f(zt).argmax(1)<4).float().mean()>.95
    with pytest.raises(MemoError, match='no features'): balanced_layer(z[:0], y[:0], 4, zv, yv)
    with pytest.raises(MemoError, match='not finite'): balanced_layer(z*math.nan, y, 4, zv, yv)

def test_it_is_the_same_again_and_leaves_random_numbers_alone(data):
    z,y,zv,yv,zt,yt = data
    state = torch.get_rng_state()
    a = balanced_layer(z, y, 4, zv, yv)[0](zt)
    with torch.no_grad(): b = balanced_layer(z, y, 4, zv, yv)[0](zt)
    assert torch.equal(a, b) and torch.equal(torch.get_rng_state(), state) and not a.requires_grad

# factors
def test_the_factors_are_scipys(data):
    z,y,zv,yv,_,_ = data
    w = torch.randn(4, 6, generator=gen(2))
    x,xv = z@w.T,zv@w.T
    f,got = learned_scales(x, y, xv, yv, l2s=[.1])
    def loss(v): return np_nll(x.double().numpy()*v, y.numpy())+.05*((v-1)**2).sum()
    r = minimize(loss, np.ones(4), bounds=[(0,None)]*4)
    np.testing.assert_allclose(got['scales'], r.x, atol=1e-3)
    np.testing.assert_allclose(f(xv), xv*torch.tensor(got['scales']), rtol=1e-5)
    _,got = learned_scales(x, y, xv, yv, l2s=[1e9])
    np.testing.assert_allclose(got['scales'], 1, atol=1e-5)

# findings
@pytest.fixture(scope='module')
def found():
    w = torch.randn(3, 6, generator=gen(3))
    def of(n, seed):
        z = torch.randn(n, 6, generator=gen(seed))*2+3
        o = (z-3)@w.T/2-torch.tensor([0.,1.,3.])
        return z,(torch.rand(n, 3, generator=gen(seed+50))<o.sigmoid()).float()
    return *of(300, 0),*of(150, 1),*of(200, 2)

@pytest.mark.parametrize('l2', [.1,.003])
def test_findings_are_scikit_learns_one_by_one(found, l2):
    z,y,_,_,zt,_ = found
    f, = finding_layers(z, y, [l2])
    for i in range(3):
        m = LogisticRegression(C=1/(l2*len(z)), tol=1e-9, max_iter=3000).fit(normed(z, z), y[:,i].numpy())
        np.testing.assert_allclose(f(zt)[:,i], m.decision_function(normed(zt, z)), atol=3e-3)

def test_a_finding_that_nobody_has_and_labels_that_are_not_known(found):
    z,y,zv,yv,zt,_ = found
    odd = torch.cat([y, torch.zeros(len(y), 1)], 1)
    gap = torch.arange(len(y))%3==0
    odd[gap,0] = -1
    f,got = finding_layer(z, odd, zv, torch.cat([yv, torch.zeros(len(yv), 1)], 1))
    assert f(zt).shape==(len(zt),4) and f(zt).isfinite().all() and (f(zt)[:,3]<-3).all()
    same, = finding_layers(z, odd, [.1])
    m = LogisticRegression(C=1/(.1*int((~gap).sum())), tol=1e-9, max_iter=3000)
    m.fit(normed(z, z)[~gap], y[~gap,0].numpy())
    np.testing.assert_allclose(same(zt)[:,0], m.decision_function(normed(zt, z)), atol=3e-3)
    with pytest.raises(MemoError, match='no label'): finding_layer(z, odd*0-1, zv, yv)
    with pytest.raises(MemoError, match='findings'): finding_layer(z, y[:,0], zv, yv[:,0])

# two opinions
def test_two_opinions_are_scipys_powers(data):
    z,y,zv,yv,zt,yt = data
    w = torch.randn(4, 6, generator=gen(4))*.2
    net,train,valid = (lambda q: q@w.T),AttrDict(z=z, y=y),AttrDict(z=zv, y=yv, logits=zv@w.T)
    f,got = two_opinions(train, valid, 4, l2s=[.01])
    q, = balanced_layers(z, y, 4, [.01])
    log_n = np.log(np.array(SIZES)/sum(SIZES))
    def mix(v, x): return (v[0]*log_softmax(net(x).double().numpy(), axis=1)
                           +v[1]*log_softmax(q(x).double().numpy(), axis=1)-v[2]*log_n)
    def loss(v): return np_nll(mix(v, zv), yv.numpy())+((v-.5)**2).sum()/(2*len(yv))
    r = minimize(loss, [.5,.5,.5], bounds=[(0,None),(0,None),(None,None)])
    np.testing.assert_allclose([got['network'], got['layer'], got['counts']], r.x, atol=5e-3)
    np.testing.assert_allclose(f(net(zt), zt).exp(), np.exp(log_softmax(mix(r.x, zt), axis=1)), atol=2e-3)

def test_of_many_ridges_the_product_is_best(data):
    z,y,zv,yv,zt,yt = data
    w = torch.randn(4, 6, generator=gen(4))*.2
    train,valid = AttrDict(z=z, y=y),AttrDict(z=zv, y=yv, logits=zv@w.T)
    l2s = (1e-4,1e-2,1.)
    got = {l2:two_opinions(train, valid, 4, [l2])[0] for l2 in l2s}
    f,chosen = two_opinions(train, valid, 4, l2s)
    losses = {l2:np_nll(g(valid.logits, zv), yv.numpy()) for l2,g in got.items()}
    assert np_nll(f(valid.logits, zv), yv.numpy())<min(losses.values())+.01
    assert np_nll(f(zt@w.T, zt), yt.numpy())<np_nll(zt@w.T, yt.numpy())

def test_layers_that_are_there_already_are_taken(data):
    z,y,zv,yv,zt,_ = data
    valid,l2s = AttrDict(z=zv, y=yv, logits=zv[:,:4]),(1.,.01)
    layers,other = balanced_layers(z, y, 4, l2s),balanced_layers(z.flip(0), y, 4, l2s)
    for f in (balanced_layer(z, y, 4, zv, yv, l2s, layers),balanced_layer(z, y, 4, zv, yv, l2s)):
        assert any(torch.equal(f[0](zt), g(zt)) for g in layers) and f[1]['l2'] in l2s
    f,g,h = (two_opinions(AttrDict(z=z, y=y), valid, 4, l2s, o)[0](zt[:,:4], zt) for o in (layers,None,other))
    assert torch.equal(f, g) and not torch.allclose(f, h, atol=1e-2)

def test_a_network_that_knows_all_is_left_its_say(data):
    z,y,zv,yv,zt,yt = data
    noise = [torch.randn(len(o), 6, generator=gen(i)) for i,o in enumerate((z,zv,zt))]
    f,_ = two_opinions(AttrDict(z=noise[0], y=y), AttrDict(z=noise[1], y=yv, logits=8*torch.eye(4)[yv]), 4)
    assert torch.equal(f(8*torch.eye(4)[yt], noise[2]).argmax(1), yt)

@pytest.mark.parametrize('each', [False,True])
def test_two_opinions_of_findings(found, each):
    z,y,zv,yv,zt,yt = found
    def net(t): return 2*t-1+torch.randn(t.shape, generator=gen(len(t)))
    f,got = two_opinions_of_findings(AttrDict(z=z, y=y), AttrDict(z=zv, y=yv, logits=net(yv)), each=each)
    layer,_ = finding_layer(z, y, zv, yv)
    def bce(o): return np.logaddexp(0, np.where(yt>0, -o, o)).mean()
    o = net(yt)
    assert bce(f(o, zt))<min(bce(o), bce(layer(zt)))-.02
    q, = finding_layers(z, y, [got['l2']])
    a,b,c = (torch.tensor(got[k]) for k in ('network','layer','offset'))
    np.testing.assert_allclose(f(o, zt), a*o+b*q(zt)+c, atol=1e-3)
    assert a.shape==((3,) if each else ()) and (a>=0).all() and (b>=0).all()
