"What a memory has to beat: the nearest class mean and the re-trained classifier, against versions of their own"
import math
import numpy as np, pytest, torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from torch.nn import functional as F
from helpers.tensors import gen
from memo.core import MemoError
from memo.data.samplers import balanced_order
from memo.evaluation.classifiers import nearest_mean, retrain_classifier
from memo.heads.mixture import class_nll

def tail(sizes=(200,60,15,5), d=10, seed=0, noise=1.6):
    "Features of so many items of each class; the means are those of every seed"
    mu,y = torch.randn(len(sizes), d, generator=gen(99)),torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    i = torch.randperm(len(y), generator=gen(seed+1))
    return (mu[y]+noise*torch.randn(len(y), d, generator=gen(seed)))[i]*3+1,y[i]
def nll(f, z, y): return class_nll(f(z).log_softmax(1), y).item()
def recall(pred, y): return np.mean([(pred[y==c]==c).mean() for c in np.unique(y)])

@pytest.fixture(scope='module')
def data(): return *tail(),*tail((40,)*4, seed=5),*tail((100,)*4, seed=7)

# the nearest mean
def test_nearest_mean_is_the_centroid(data):
    z,y,zv,yv,zt,yt = data
    f,got = nearest_mean(z, y, 4, zv, yv)
    u,ut = F.normalize(z).double().numpy(),F.normalize(zt).double().numpy()
    m = np.stack([u[y.numpy()==c].mean(0) for c in range(4)])
    m /= np.linalg.norm(m, axis=1, keepdims=True)
    np.testing.assert_allclose(f(zt).numpy()*got['temperature'], ut@m.T, atol=1e-5)
    sk = NearestCentroid().fit(m, range(4))                     # of unit vectors: cosine and Euclid order alike
    assert (f(zt).argmax(1).numpy()==sk.predict(ut)).all()
    assert torch.allclose(f(5*zt), f(zt), atol=1e-4)            # length says nothing

def test_its_temperature_is_the_best_of_the_grid(data):
    z,y,zv,yv,_,_ = data
    f,got = nearest_mean(z, y, 4, zv, yv)
    assert all(isinstance(o, float) for o in got.values())
    cos = f(zv)*got['temperature']
    def at(t): return class_nll((cos/t).log_softmax(1), yv).item()
    for t in np.logspace(-2.5, 0, 200): assert at(t)>nll(f, zv, yv)-2e-3
    assert nll(f, zv, yv)<math.log(4)

# the re-trained classifier
def test_retrained_classifier_is_about_that_of_sklearn(data):
    """LogisticRegression with balanced class weights minimises the same loss: as good on new data, and the same
    answers nearly everywhere"""
    z,y,zv,yv,zt,yt = data
    f,got = retrain_classifier(z, y, 4, zv, yv)
    mean,std = z.mean(0),z.std(0)
    best = min((LogisticRegression(C=c, class_weight='balanced', max_iter=3000).fit(((z-mean)/std).numpy(), y.numpy())
                for c in (.001,.01,.1,1.,10.)),
               key=lambda m: class_nll(torch.tensor(m.predict_log_proba(((zv-mean)/std).numpy())), yv).item())
    q = ((zt-mean)/std).numpy()
    sk = class_nll(torch.tensor(best.predict_log_proba(q)), yt).item()
    assert nll(f, zt, yt)<sk+.05
    pred = f(zt).argmax(1).numpy()
    assert recall(pred, yt.numpy())>recall(best.predict(q), yt.numpy())-.03 and (pred==best.predict(q)).mean()>.85
    plain = LogisticRegression(max_iter=3000).fit(((z-mean)/std).numpy(), y.numpy())
    assert recall(pred, yt.numpy())>recall(plain.predict(q), yt.numpy())+.03        # what it is for

def test_the_weight_decay_is_the_best_on_validation_data(data):
    z,y,zv,yv,zt,yt = data
    wds = (1e-3,1e-1,1.,10.)
    each = {wd:retrain_classifier(z, y, 4, zv, yv, steps=60, wds=(wd,))[0] for wd in wds}
    losses = {wd:nll(f, zv, yv) for wd,f in each.items()}
    f,got = retrain_classifier(z, y, 4, zv, yv, steps=60, wds=wds)
    assert got==dict(wd=min(losses, key=losses.get)) and torch.equal(f(zt), each[got['wd']](zt))
    assert len(set(losses.values()))==4

def test_one_setting_by_hand(data):
    "A loop with its own AdamW and cosine"
    z,y,zv,yv,zt,yt = data
    f,_ = retrain_classifier(z, y, 4, zv, yv, seed=3, steps=40, wds=(.1,))
    x = (z-z.mean(0))/(z.std(0)+1e-6)
    w,b,g = torch.zeros(4, 10),torch.zeros(4),gen(3)
    mom = [torch.zeros_like(o) for o in (w,b,w,b)]
    order = torch.tensor(balanced_order(y, 256*40, g)).view(40, 256)
    assert torch.bincount(y[order.flatten()], minlength=4).tolist()==[2560]*4
    for t,i in enumerate(order):
        lr = 1e-2*(1+math.cos(math.pi*t/40))/2
        d = (x[i]@w.T+b).softmax(1)-F.one_hot(y[i], 4)
        for j,(p,gr) in enumerate(((w,d.T@x[i]/256),(b,d.mean(0)))):
            p.mul_(1-lr*.1)
            mom[j].mul_(.9).add_(gr, alpha=.1)
            mom[j+2].mul_(.999).add_(gr**2, alpha=.001)
            p.sub_(lr*(mom[j]/(1-.9**(t+1)))/((mom[j+2]/(1-.999**(t+1))).sqrt()+1e-8))
    torch.testing.assert_close(f(zt), ((zt-z.mean(0))/(z.std(0)+1e-6))@w.T+b, atol=1e-3, rtol=1e-3)

def test_it_is_seeded_and_leaves_the_random_numbers_alone(data):
    z,y,zv,yv,zt,yt = data
    def go(seed): return retrain_classifier(z, y, 4, zv, yv, seed=seed, steps=20, wds=(.1,))[0](zt)
    state = torch.get_rng_state()
    a = go(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(a, go(0)) and not torch.equal(a, go(1))
    with torch.no_grad(): assert torch.equal(a, go(0))            # as in an evaluation
    assert not a.requires_grad

def test_classes_and_features_that_say_nothing(data):
    z,y,zv,yv,zt,yt = data
    z,zv,zt = (torch.cat([o, torch.full((len(o),1), 7.)], 1) for o in (z,zv,zt))        # a constant feature
    # and two classes nobody has seen
    for f,_ in (nearest_mean(z, y, 6, zv, yv), retrain_classifier(z, y, 6, zv, yv, steps=20)):
        o = f(zt)
        assert o.shape==(len(zt),6) and o.isfinite().all()
    f,_ = retrain_classifier(z, y, 6, zv, yv, steps=60)
    assert (f(zt).argmax(1)<4).all()
    say = pytest.raises(MemoError, match='no features')
    with say: retrain_classifier(z[:0], y[:0], 4, zv, yv)

def test_a_class_nobody_has_seen_is_no_answer(data):
    "Its mean is not known, so it is not nearer than one in the other direction"
    z,y,zv,yv,zt,yt = data
    f,_ = nearest_mean(z[:1], torch.tensor([1]), 4, zv, yv)
    assert (f(zt).argmax(1)==1).all() and f(zt).isfinite().all()
