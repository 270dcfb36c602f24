"Tip-Adapter (Zhang et al. 2022) against its formula in loops, free of training and trained"
import math
import numpy as np, pytest, torch
from helpers.tensors import close, gen
from memo.evaluation.classifiers import item_folds, learned_keys, logistic_cv, nearest_mean, ridge_cv, tip_adapter
from memo.evaluation.classifiers import tip_adapter_trained, tip_cache
from memo.heads.mixture import class_nll

ALPHAS,BETAS = (0,.1,.3,1,3,10,30,100,300,1000),(.5,1,2,5.5,10,20,50,100,200)

def shots(sizes, d=6, seed=0, noise=1.):
    mu,y = torch.randn(len(sizes), d, generator=gen(9)),torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    z = mu[y]+noise*torch.randn(len(y), d, generator=gen(seed))
    i = torch.randperm(len(y), generator=gen(seed+1))
    return z[i]+.5,y[i]

def cosine(a, b): return float(a@b)/math.sqrt(float(a@a)*float(b@b))

def cache(q, keys, y, c, beta):
    "A loop over queries and keys"
    res = np.zeros((len(q),c))
    for i,a in enumerate(q.double()):
        for k,j in zip(keys.double(), y.tolist()): res[i,j] += math.exp(-beta*(1-cosine(a, k)))
    return torch.tensor(res)

def nll(o, y): return class_nll(torch.as_tensor(o).float().log_softmax(1), y).item()

@pytest.mark.parametrize('base', [nearest_mean,logistic_cv,ridge_cv])
def test_the_formula(base):
    "The base classifier's logits and alpha times the cache's; 1 and 5.5 as published where nothing can be chosen"
    z,y = shots((1,1,1,1))
    q,_ = shots((5,5,5,5), seed=4)
    f,got = tip_adapter(z, y, 4, base=base)
    assert got==dict(alpha=1., beta=5.5, by='default')
    close(f(q), base(z, y, 4)[0](q)+cache(q, z, y, 4, 5.5), 1e-4)
    if base is nearest_mean: close(f(7*q), f(q), 1e-4)

def test_chosen_on_validation_data():
    "The pair of the grid that says most of it, whatever the shots say"
    z,y = shots((4,4,4))
    zv,yv = shots((15,15,15), seed=20, noise=1.6)
    f,got = tip_adapter(z, y, 3, zv, yv)
    own = nearest_mean(z, y, 3)[0](zv)
    each = {(a,b):nll(own+a*cache(zv, z, y, 3, b), yv) for b in BETAS for a in ALPHAS}
    assert (got['alpha'],got['beta'])==pytest.approx(min(each, key=each.get)) and got['by']=='validation'
    assert got!=tip_adapter(z, y, 3)[1]
    close(f(zv), own+got['alpha']*cache(zv, z, y, 3, got['beta']), 1e-3)

@pytest.mark.parametrize('seed,base', [(0,nearest_mean), (1,nearest_mean), (2,ridge_cv)])
def test_chosen_on_items_that_are_held_out(seed, base):
    "Neither their keys nor the base classifier know them"
    z,y = shots((5,4,6), seed=seed)
    f,got = tip_adapter(z, y, 3, base=base)
    fold = item_folds(z, y)
    def held(a, b):
        o = torch.zeros(15, 3, dtype=torch.double)
        for k in range(int(fold.max())+1):
            at = fold!=k
            o[~at] = base(z[at], y[at], 3)[0](z[~at]).double()+a*cache(z[~at], z[at], y[at], 3, b)
        return nll(o, y)
    each = {(a,b):held(a, b) for b in BETAS for a in ALPHAS}
    assert each[got['alpha'],got['beta']]==pytest.approx(min(each.values()), rel=1e-4) and got['by']=='cross-validation'

def by_hand(z, y, c, own, alpha, beta, epochs, lr, seed):
    "Keys trained with AdamW and a cosine, gradient and all in numpy"
    q = (z/z.norm(dim=1, keepdim=True)).double().numpy()
    k,m,v,g,t = q.copy(),0.,0.,gen(seed),0
    hot,steps = np.eye(c)[y],epochs*math.ceil(len(y)/256)
    for _ in range(epochs):
        for i in torch.randperm(len(y), generator=g).split(256):
            i = i.numpy()
            a = np.exp(-beta*(1-q[i]@k.T))
            o = own[i]+alpha*a@hot
            p = np.exp(o-o.max(1, keepdims=True))
            d = (p/p.sum(1, keepdims=True)-hot[i])/len(i)
            grad = (alpha*beta*(d@hot.T)*a).T@q[i]
            rate = lr*(1+math.cos(math.pi*t/steps))/2
            t += 1
            k = k*(1-rate*.01)
            m,v = .9*m+.1*grad,.999*v+.001*grad**2
            k = k-rate*(m/(1-.9**t))/(np.sqrt(v/(1-.999**t))+1e-4)
    return torch.tensor(k)

@pytest.mark.parametrize('sizes,epochs', [((1,1,1), 20), ((1,1,1), 7), ((110,90,100), 3)])
def test_keys_are_learned_as_published(sizes, epochs):
    "Values stay, keys are not made unit vectors again"
    z,y = shots(sizes)
    q,yq = shots((9,9,9), seed=30)
    f,got = tip_adapter_trained(z, y, 3, q, yq, epochs=epochs, lr=.02)
    free = tip_adapter(z, y, 3, q, yq)[1]
    base = nearest_mean(z, y, 3)[0]
    tip = (free['alpha'],free['beta']) if free['alpha'] else (1.,5.5)
    k = by_hand(z, y, 3, base(z).double().numpy(), *tip, epochs, .02, 0)
    u = (q/q.norm(dim=1, keepdim=True)).double()
    o = torch.exp(-got['beta']*(1-u@k.T))@torch.eye(3).double()[y]
    close(f(q), base(q)+got['alpha']*o, 2e-2)
    assert (k.norm(dim=1)-1).abs().max()>5e-4

def test_after_training_they_are_chosen_again():
    "On validation data with the learned keys"
    z,y = shots((6,6,6), seed=1, noise=1.5)
    zv,yv = shots((30,30,30), seed=8, noise=1.5)
    f,got = tip_adapter_trained(z, y, 3, zv, yv, epochs=40, lr=.05)
    free,own = tip_adapter(z, y, 3, zv, yv)[1],nearest_mean(z, y, 3)[0]
    k = by_hand(z, y, 3, own(z).double().numpy(), free['alpha'], free['beta'], 40, .05, 0)
    u = (zv/zv.norm(dim=1, keepdim=True)).double()
    each = {(a,b):nll(own(zv)+a*torch.exp(-b*(1-u@k.T))@torch.eye(3).double()[y], yv) for b in BETAS for a in ALPHAS}
    assert each[got['alpha'],got['beta']]==pytest.approx(min(each.values()), rel=1e-4) and got['by']=='validation'
    assert each[got['alpha'],got['beta']]<each[free['alpha'],free['beta']]-1e-4

def test_no_epoch_is_no_training():
    z,y = shots((5,5,5))
    f,got = tip_adapter_trained(z, y, 3, epochs=0)
    g,free = tip_adapter(z, y, 3)
    assert got==free and torch.equal(f(z), g(z))

def test_it_learns():
    "What the keys say of the items they are trained on"
    z,y = shots((8,8,8), noise=2.5)
    q,hot,own = z/z.norm(dim=1, keepdim=True),torch.eye(3)[y],torch.zeros(24, 3)
    def loss(epochs): return nll(tip_cache(q, learned_keys(q, y, hot, own, 1., 5.5, epochs, .01, 0), hot, 5.5), y)
    assert loss(60)<loss(20)<loss(0)-.02

def test_many_queries_are_answered_in_parts():
    z,y = shots((5,5,5))
    f,_ = tip_adapter(z, y, 3)
    q,_ = shots((700,700,700), seed=3)
    close(f(q), torch.cat([f(o) for o in q.split(1)]), 1e-4)
