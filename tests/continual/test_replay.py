"Methods that replay against their formulas, written out as plain loops with the same draws"
import copy
import pytest, torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD
from helpers.learners import quietly
from torch import nn
from torch.nn import functional as F
from sklearn.datasets import load_digits
from memo.continual.buffers import Exemplars
from memo.continual.replay import ACE, AGEM, DERpp, MIR, Replay
from memo.data.tensors import TensorDL

d = load_digits()
X,Y = torch.from_numpy(d.data/16).float(),torch.from_numpy(d.target).long()
order = Y[:400].argsort(stable=True)        # class after class
BS = 10

def dls(bs=BS, n=400):
    return DataLoaders(TensorDL(X[order[:n]], Y[order[:n]], bs=bs), TensorDL(X[-50:], Y[-50:], bs=50), device='cpu')
def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
def learner(cbs, model=None, bs=BS, n=400, opt=SGD, **kw):
    model = net() if model is None else model
    return Learner(dls(bs, n), model, loss_func=CrossEntropyLossFlat(), opt_func=opt, cbs=cbs, wd=0., **kw)
def weights(m): return [p.detach().clone() for p in m.parameters()]
def batches(bs=BS, n=400): return zip(X[order[:n]].split(bs), Y[order[:n]].split(bs))
def close(a, b, **kw):
    for p,q in zip(a, b): torch.testing.assert_close(p, q, **kw)

def plain_loop(step, lr=.1, **kw):
    "A bare loop of SGD; `step(model, store, x, y)` does the backward pass and may change gradients"
    m,store = net(),Exemplars(50, **kw)
    for x,y in batches():
        m.zero_grad()
        more = step(m, store, x, y) or {}
        with torch.no_grad():
            for p in m.parameters(): p -= lr*p.grad
        store.write(x, y, **more)
    return m,store

def er(m, store, x, y):
    loss = F.cross_entropy(m(x), y)
    if len(store):
        r = store.sample(BS)
        loss = loss+F.cross_entropy(m(r.x), r.y)
    loss.backward()

def derpp(m, store, x, y):
    out = m(x)
    loss = F.cross_entropy(out, y)
    if len(store):
        r = store.sample(BS)
        loss = loss+.3*((m(r.x)-r.logits)**2).mean()
        r = store.sample(BS)
        loss = loss+.7*F.cross_entropy(m(r.x), r.y)
    loss.backward()
    return dict(logits=out.detach())

def ace(m, store, x, y):
    out = m(x)
    if not len(store): loss = F.cross_entropy(out, y)
    else:
        own = sorted(set(y.tolist()))
        p = out[:,own].exp()/out[:,own].exp().sum(1, keepdim=True)      # among the batch's classes
        loss = -torch.stack([p[i,own.index(c)].log() for i,c in enumerate(y.tolist())]).mean()
        r = store.sample(BS)
        loss = loss+F.cross_entropy(m(r.x), r.y)
    loss.backward()

def agem(m, store, x, y):
    if len(store):
        r = store.sample(BS)
        ref = torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(m(r.x), r.y), m.parameters())])
    F.cross_entropy(m(x), y).backward()
    if not len(store): return
    g = torch.cat([p.grad.flatten() for p in m.parameters()])
    if g@ref<0: g = g-(g@ref)/(ref@ref)*ref
    for p,o in zip(m.parameters(), g.split([p.numel() for p in m.parameters()])): p.grad = o.view_as(p)

def mir(m, store, x, y):
    loss = F.cross_entropy(m(x), y)
    if len(store):
        loss.backward()
        other = copy.deepcopy(m)
        with torch.no_grad():
            for p,q in zip(other.parameters(), m.parameters()): p -= .1*q.grad
            r = store.sample(min(10*BS, max(2*BS, len(store)//4)))
            grown = F.cross_entropy(other(r.x), r.y, reduction='none')-F.cross_entropy(m(r.x), r.y, reduction='none')
        at = grown.topk(min(BS, len(r.y))).indices
        m.zero_grad()
        loss = F.cross_entropy(m(x), y)+F.cross_entropy(m(r.x[at]), r.y[at])
    loss.backward()

pairs = dict(er=(Replay,er), derpp=(lambda n: DERpp(n, .3, .7),derpp), ace=(ACE,ace), agem=(AGEM,agem), mir=(MIR,mir))

@pytest.mark.parametrize('make,step', pairs.values(), ids=pairs)
def test_is_its_formula(make, step):
    m,store = plain_loop(step)
    cb = make(50)
    learn = learner(cb)
    quietly(learn, learn.fit, 1, .1)
    close(weights(learn.model), weights(m), rtol=1e-4, atol=1e-5)
    own = cb.state
    assert len(own)==50
    for k in ('x','y'): assert torch.equal(own[k], store[k])
    assert int(own['ptr'])==400
    plain = net()
    for x,y in batches():
        F.cross_entropy(plain(x), y).backward()
        with torch.no_grad():
            for p in plain.parameters():
                p -= .1*p.grad
                p.grad = None
    assert not torch.allclose(weights(plain)[0], weights(m)[0], atol=1e-3)
