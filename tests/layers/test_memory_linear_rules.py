"MemoryLinear against its rules, written out: a loop over samples in which every sample's weights are formed"
import itertools
import pytest, torch
from torch.nn import functional as F
from memo.layers.memory_linear import MemoryLinear

def randn(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)

class Rules:
    "The state of a layer, and what its rules say of a batch"
    def __init__(self, layer):
        l = self.l = layer
        self.K,self.M = l.keys.detach().clone(),l.memories.detach().clone()
        self.mu,self.eta,self.scrambles = l.mu.clone(),l.eta.clone(),torch.zeros_like(l.mu)
        self.q,self.m,self.d = self.K.shape

    def z(self, x):
        l = self.l
        z = x.sign() if l.psi=='sign' else x
        if l.psi=='resize': z = F.interpolate(x[None,None], size=self.d, mode='linear')[0,0]
        return z/z.norm() if l.distance=='cosine' else z

    def score(self, z, k):
        if self.l.distance=='cosine': return float(z@k)
        if self.l.distance=='dot': return float(z@k)/self.d**.5
        return float(torch.exp(-(z-k).norm()**2/(self.d**.5*self.l.sigma)))

    def ranked(self, z, g):
        s = [self.score(z, k) for k in self.K[g]]
        return sorted(range(self.m), key=lambda j: -s[j]),s

    def step(self, xs):
        "Scramble, key step, counters"
        zs,l = [self.z(x) for x in xs],self.l
        K = self.K.clone()
        for g in range(self.q):
            won = [self.ranked(z, g) for z in zs]
            best = [s[order[0]] for order,s in won]
            win = [order[0] for order,_ in won]
            h = min(range(len(zs)), key=lambda i: best[i])
            weak = [k for k in range(self.m) if self.mu[g,k]<(l.tau_mu or 0) and self.eta[g,k]>=(l.tau_eta or 0)]
            if l.scramble and weak and best[h]<l.tau_alpha:
                j = max(weak, key=lambda k: int(self.eta[g,k]))
                self.M[g,j] = self.M[g,win[h]]
                K[g,j],self.mu[g,j],self.scrambles[g,j] = zs[h],0,self.scrambles[g,j]+1
                if l.order=='paper': win[h] = j
            if l.upd_k=='ad_hoc_WTA':
                old = K[g].clone()
                for k in {*win}:
                    mine = [i for i in range(len(zs)) if win[i]==k]
                    if l.distance=='cosine':
                        K[g,k] += l.beta_k*sum(zs[i] for i in mine)
                        K[g,k] /= K[g,k].norm()
                    elif l.distance=='dot': K[g,k] += l.beta_k/self.d**.5*sum(zs[i] for i in mine)
                    else:
                        c = l.beta_k/(self.d**.5*l.sigma)
                        total = c*sum(best[i] for i in mine)
                        move = c*sum(best[i]*(zs[i]-old[k]) for i in mine)
                        K[g,k] += move/max(1, total)
            self.K[g] = K[g]
            win = [self.ranked(z, g)[0][0] for z in zs]
            for k in win: self.mu[g,k] += 1
            for k in win: self.eta[g,k] = 0
            self.eta[g] += len(zs)

    def weights(self, x, K, M):
        "W [o,n+c] of one input, with gradients as the settings have them"
        l,z,rows = self.l,self.z(x if l_learns(self.l) else x.detach()),[]
        for g in range(self.q):
            s = torch.stack([z@k if l.distance=='cosine' else z@k/self.d**.5 if l.distance=='dot'
                             else torch.exp(-((z-k)**2).sum()/(self.d**.5*l.sigma)) for k in K[g]])
            v,i = s.sort(descending=True, stable=True)
            v,i = v[:l.delta],i[:l.delta]
            a = torch.softmax(l.gamma_alpha*v/(self.d**.5 if l.distance=='cosine' else 1), 0)
            W = 0
            for j in range(l.delta):
                w,share = M[g,i[j]],a[j]
                if l.upd_m=='WTA' and j:
                    w = w.detach()
                    if l.upd_k=='grad_WTA': share = share.detach()
                W = W+share*w
            rows.append(W.view(-1, l.in_features+l.has_bias))
        return torch.cat(rows)

    def read(self, xs, K=None, M=None):
        K,M,l = self.K if K is None else K,self.M if M is None else M,self.l
        out = []
        for x in xs:
            W = self.weights(x, K, M)
            out.append(W[:,:l.in_features]@x+(W[:,-1] if l.has_bias else 0))
        return torch.stack(out)

def l_learns(l): return l.upd_k!='ad_hoc_WTA' and l.distance=='cosine'

def compare(layer, b, steps=6, lr=.05, scale=1., seed=0):
    "Train a layer by plain SGD, and its rules beside it"
    r = Rules(layer)
    opt = torch.optim.SGD(layer.parameters(), lr)
    for t in range(steps):
        x,target = scale*randn(b, layer.in_features, seed=seed+10*t),randn(b, layer.out_features, seed=seed+10*t+1)
        mine,theirs = (x.clone().requires_grad_() for _ in range(2))
        opt.zero_grad()
        y = layer(mine)
        if layer.upd_k!='ad_hoc_WTA' and layer.distance=='cosine': r.K = F.normalize(r.K, dim=-1)
        if layer.order=='paper': r.step(x)
        K,M = r.K.clone().requires_grad_(layer.upd_k!='ad_hoc_WTA'),r.M.clone().requires_grad_()
        want = r.read(theirs, K, M)
        torch.testing.assert_close(y, want)
        (y-target).square().sum().backward()
        (want-target).square().sum().backward()
        torch.testing.assert_close(mine.grad, theirs.grad)
        if layer.order=='backward':
            was = r.scrambles.clone()
            r.step(x)
            M.grad[r.scrambles>was] = 0     # it is of what was there before
        torch.testing.assert_close(layer.memories.grad, M.grad)
        opt.step()
        with torch.no_grad():
            r.M -= lr*M.grad
            if layer.upd_k!='ad_hoc_WTA':
                grad = torch.zeros_like(r.K) if K.grad is None else K.grad
                torch.testing.assert_close(torch.zeros_like(r.K) if layer.keys.grad is None else layer.keys.grad, grad)
                r.K -= lr*grad
        torch.testing.assert_close(layer.keys.detach(), r.K)
        torch.testing.assert_close(layer.memories.detach(), r.M)
        for a,c in ((layer.mu,r.mu),(layer.eta,r.eta),(layer.scrambles,r.scrambles)): assert torch.equal(a, c), (t,a,c)
    return r

def made(seed=0, **kw):
    torch.manual_seed(seed)
    return MemoryLinear(**dict(in_features=5, out_features=3, key_mem_units=6, delta=2, beta_k=.1, tau_mu=4, tau_eta=6,
                               tau_alpha=.7, gamma_alpha=3.)|kw).double()

@pytest.mark.parametrize('b', [1,4])
@pytest.mark.parametrize('order', ['paper','backward'])
@pytest.mark.parametrize('distance', ['cosine','euclidean','dot'])
@pytest.mark.parametrize('shared', [True,False])
def test_it_is_what_the_rules_say(distance, order, shared, b):
    layer = made(distance=distance, order=order, shared_keys=shared)
    r = compare(layer, b, steps=10)
    assert r.scrambles.sum()>1, 'nothing was scrambled: the test says less than it should'

updates = [(m,k) for m,k in itertools.product([None,'vanilla','WTA'], ['ad_hoc_WTA','grad_WTA',None,'grad_not_WTA'])
           if m!='WTA' or k in ('ad_hoc_WTA','grad_WTA')]
@pytest.mark.parametrize('upd', updates)
@pytest.mark.parametrize('distance', ['cosine','euclidean','dot'])
def test_every_way_to_learn(distance, upd):
    for order in ('paper','backward'):
        compare(made(distance=distance, order=order, upd_m=upd[0], upd_k=upd[1], delta=3), 3)

@pytest.mark.parametrize('kw', [dict(psi='sign', scramble=False),dict(psi='resize', key_size=3),
                                dict(psi='resize', key_size=9),dict(bias=False),dict(delta=1),dict(delta=50),
                                dict(scramble=False),dict(key_mem_units=1),
                                dict(out_features=1, shared_keys=False),dict(sigma=3., distance='euclidean'),
                                dict(scramble=False, tau_mu=None, tau_eta=None, tau_alpha=None)])
@pytest.mark.parametrize('order', ['paper','backward'])
def test_other_settings(kw, order): compare(made(order=order, **kw), 3)

@pytest.mark.parametrize('b,kw', [(40,dict(out_features=300)),(3,dict(out_features=300)),(90,{}),
                                  (7,dict(shared_keys=False, out_features=40))])
def test_every_way_to_multiply_gives_the_same(b, kw):
    "Units one by one, some at once and all at once"
    compare(made(**kw, tau_eta=1000, tau_mu=1), b, steps=2, lr=1e-4)
