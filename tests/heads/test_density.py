"""The density head against the formulas of its recipe, written anew in double precision, and scipy's optimiser"""
import copy, numpy as np, pytest, torch
from fastcore.basics import AttrDict
from hypothesis import given,settings,strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax,logsumexp
from memo.banks.classes import ClassBank
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.heads.attach import attach
from memo.heads.base import MemoryHead
from memo.heads.class_density import *
from memo.heads.density import *
from memo.heads.product import *

def unit(x): return x/np.linalg.norm(x, axis=1, keepdims=True)

def in_double(rows, y, q, s, t, classes, weights=None, hidden=None, spread_rows=None):
    "Steps 1 to 3 of the recipe, with whitened copies of everything"
    def own(x): return unit(np.asarray(x, dtype=float))
    x,u,w = own(rows),own(q),np.ones(len(rows)) if weights is None else weights
    S,mean = np.zeros((x.shape[1],)*2),(w[:,None]*x).sum(0)/w.sum()
    for c in set(y.tolist()):
        at = y==c
        d = x[at]-(w[at,None]*x[at]).sum(0)/w[at].sum()
        S += (w[at,None]*d).T@d/w.sum()
    S = (1-s)*S+s*np.trace(S)/len(S)*np.eye(len(S))
    e,v = np.linalg.eigh(S)
    W = v@np.diag(e**-.5)@v.T
    k,z = unit((x-mean)@W),unit((u-mean)@W)
    sim = z@k.T/t+np.log(w)
    if hidden is not None: sim = np.where(hidden, -np.inf, sim)
    keep = np.ones_like(sim, dtype=bool) if hidden is None else ~hidden
    return np.stack([logsumexp(sim[:,y==c], axis=1)-np.log((keep*w)[:,y==c].sum(1)) for c in range(classes)], 1)

def data(n=60, d=7, c=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(c, d, generator=g)
    y = torch.cat([torch.arange(c), torch.randint(c, (n-c,), generator=g)])
    return centres[y]+.7*torch.randn(n, d, generator=g),y

def bank_of(x, y, item=None):
    b = SlotBank(len(x)+3, policy='fifo')
    b.write(x, y, item=torch.arange(len(x))+2**40 if item is None else item)
    return b

def set_to(h, s, t):
    h.shrink.fill_(s)
    h.temperature.fill_(t)
    h.at = None         # what whitens is worked out again
    return h.eval()

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([.005,.05,.4,1.]), st.sampled_from([.02,.1,.3,2.]), st.floats(.01, 50))
def test_the_density_is_that_of_the_recipe(seed, s, t, scale):
    "However long rows and queries are"
    x,y = data(seed=seed)
    q,_ = data(9, seed=seed)
    h = set_to(DensityHead(bank_of(x*scale, y)), s, t)
    got = h.log_density(q/scale)
    want = log_softmax(in_double(x.numpy(), y.numpy(), q.numpy(), s, t, 4), axis=1)
    assert np.allclose(got.numpy(), want, atol=2e-3 if t<.1 else 2e-4)

def test_the_product_is_that_of_the_recipe():
    x,y = data()
    q,_ = data(9, seed=1)
    h = set_to(DensityHead(bank_of(x, y)), .1, .1)
    h.powers.copy_(torch.tensor([.7, .4, .3]))
    logits = torch.randn(9, 4)
    want = .7*log_softmax(logits.double().numpy(), axis=1)+.3*-np.log(np.bincount(y))
    want = log_softmax(want+.4*log_softmax(in_double(x.numpy(), y.numpy(), q.numpy(), .1, .1, 4), axis=1), axis=1)
    assert np.allclose(h.mixed(logits, q).numpy(), want, atol=1e-4)

def test_each_item_counts_once():
    "However many rows it has: three copies of some, as a ClassBank has them of views"
    x,y = data()
    item = torch.arange(60)+2**40
    again = torch.cat([torch.arange(60), torch.arange(20), torch.arange(20)])
    few,many = (set_to(DensityHead(b), .1, .1) for b in (ClassBank(4, 100),ClassBank(4, 100)))
    few.bank.write(x, y, item=item)
    for at in again.split(20): many.bank.write(x[at], y[at], item=item[at])
    q,_ = data(9, seed=1)
    assert torch.allclose(few.log_density(q), many.log_density(q), atol=1e-4)

def test_own_rows_are_hidden_and_do_not_count():
    x,y = data()
    item = torch.arange(60)+2**40
    h = set_to(DensityHead(bank_of(x, y)), .1, .1)
    hidden = np.eye(60, dtype=bool)
    got = h.log_density(x, item)
    want = in_double(x.numpy(), y.numpy(), x.numpy(), .1, .1, 4, hidden=hidden)
    assert np.allclose(got.numpy(), log_softmax(want, axis=1), atol=1e-4)
    assert not torch.allclose(got, h.log_density(x), atol=1e-2)

def test_rows_in_pieces_are_rows():
    "A bank of many rows is gone through in pieces; those are of 64 rows for 100,000 queries"
    x,y = data(300)
    h = set_to(DensityHead(bank_of(x, y)), .1, .05)
    q = data(100_000, seed=2)[0]
    assert torch.allclose(h.log_density(q)[:50], h.log_density(q[:50]), atol=1e-4)
    a,b = h.recall(q),h.recall(q[:50])
    assert torch.equal(a.index[:50], b.index) and torch.allclose(a.weight[:50], b.weight, atol=1e-5)

def test_recalled_are_the_rows_that_weigh_most():
    x,y = data()
    h = set_to(DensityHead(bank_of(x, y), k=60), .1, .1)
    q,_ = data(9, seed=1)
    r = h.recall(q)
    assert torch.allclose(r.weight.sum(1), torch.ones(9), atol=1e-4) and (r.weight.diff(dim=1)<=0).all()
    of = torch.zeros(9, 4).scatter_add(1, y[r.index], r.weight)
    assert torch.allclose(of.log(), h.log_density(q), atol=1e-3)

@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 40))
def test_the_powers_are_the_best_there_are(seed, c, n):
    "Against scipy's bounded optimiser"
    g = np.random.default_rng(seed)
    p,q = (log_softmax(g.normal(size=(n,c))*g.uniform(.1, 5), axis=1) for _ in 'pq')
    y,log_n = g.integers(c, size=n),np.log(g.integers(1, 500, size=c))
    w = 1/(np.bincount(y)[y]*len(set(y.tolist())))
    def loss(t):
        log = log_softmax(t[0]*p+t[1]*q-t[2]*log_n, axis=1)
        return -(w*log[range(n),y]).sum()+((t-.5)**2).sum()/(2*n)
    want = minimize(loss, [.5,.5,.5], bounds=[(0,None),(0,None),(None,None)], method='L-BFGS-B', tol=1e-12)
    powers,f = fit_powers(*map(torch.tensor, (p, q, log_n, y)))
    assert f==pytest.approx(loss(powers.double().numpy()), abs=1e-5) and (powers[:2]>=0).all()
    assert f<=want.fun+1e-6

def test_fit_finds_what_was_hidden_in_the_data():
    "A network that knows nothing gets no power, and one that knows all gets more than the memory"
    x,y = data(200)
    xv,yv = data(200, seed=0)
    h = DensityHead(bank_of(x, y))
    def fitted(logits):
        return h.fit(AttrDict(logits=logits, z=xv+.3*torch.randn(200, 7), y=yv, own_item=None, own_group=None))
    torch.manual_seed(0)
    nothing = fitted(torch.randn(200, 4)*5)
    assert nothing['network']<.1 and nothing['density']>.5 and nothing['nll_product']<=nothing['nll_density']+.02
    assert fitted(torch.nn.functional.one_hot(yv, 4)*5.)['network']>.5

def test_a_class_without_rows_keeps_what_the_network_says():
    x,y = data()
    h = set_to(DensityHead(bank_of(x[y<3], y[y<3])), .1, .1)
    h.bank.n_classes = 4
    h.powers.copy_(torch.tensor([0., 1., 0.]))
    logits = torch.randn(9, 4)
    p = h.mixed(logits, data(9, seed=1)[0]).exp()
    assert torch.allclose(p[:,3], logits.softmax(1)[:,3], atol=1e-5) and torch.allclose(p.sum(1), torch.ones(9))

def test_rows_that_change_change_the_answer():
    x,y = data()
    h = set_to(DensityHead(bank_of(x, y)), .1, .1)
    q,_ = data(9, seed=1)
    was = h.log_density(q)
    h.bank.write(data(8, seed=5)[0][:3], torch.tensor([0,0,0]), item=torch.arange(3)+2**41)
    assert not torch.equal(was, h.log_density(q))
    other = set_to(DensityHead(h.bank), .1, .1)
    assert torch.equal(other.log_density(q), h.log_density(q))

def test_what_rows_count_is_kept_where_ids_are_left_out():
    "As in an export"
    x,y = data()
    b = ClassBank(4, 100, once=False)
    for _ in range(2): b.write(x[:30]+.1*torch.randn(30, 7), y[:30], item=torch.arange(30)+2**40)
    b.write(x[30:], y[30:], item=torch.arange(30)+2**41)
    h = set_to(DensityHead(b), .1, .1)
    was = h.log_density(x)
    b.items.fill_(-1)
    assert torch.equal(h.log_density(x), was)
    h.at = None
    assert not torch.equal(h.log_density(x), was)

def test_findings_are_refused():
    b = SlotBank(30)
    b.write(torch.randn(5, 3), torch.randint(2, (5,4)).float())
    with pytest.raises(MemoError, match="vote"): DensityHead(b).log_density(torch.randn(2, 3))

def test_the_spread_of_another_memory_is_the_other_choice():
    "As rows were trained: with noise that the own rows, encoded anew, have not"
    x,y = data(200)
    net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(7, 4))
    h,rare = DensityHead(bank_of(x, y), spread_of='rare'),MemoryHead(ClassBank(4, 500))
    for o,name in ((h,'density'), (rare,'rare')): attach(net, o, '1', name)
    held = AttrDict(logits=torch.randn(200, 4), z=x+.3*torch.randn(200, 7), y=y, own_item=None, own_group=None)
    with pytest.raises(MemoError, match='rare.*no labelled rows'): h.fit(held)
    noisy = x+torch.randn(200, 7)*torch.linspace(.1, 3, 7)
    rare.bank.write(noisy, y)
    h.fit(held)
    f,_,c,_,_,valid = rare.bank.rows()
    mean,s = unit_spread(f[valid], c[valid], torch.ones(int(valid.sum())))
    assert torch.allclose(h.trained_spread, s.float()) and torch.allclose(h.trained_mean, mean.float())
    again = copy.deepcopy(h)        # which is in no model, and has what was taken
    again.fit(held)
    assert again.chosen()==h.chosen()
    net[1].density.spread_of = 'nobody'
    with pytest.raises(MemoError, match='spread_of.*nobody.*rare'): h.fit(held)

def test_a_validation_row_that_is_not_finite_chooses_nothing():
    "One made every loss NaN, and left everything as it was, silently"
    x,y = data(200)
    logits,z = torch.randn(50, 4),x[:50]+.3
    def fitted(z, rows=slice(None)):
        h = DensityHead(bank_of(x, y))
        return h.fit(AttrDict(logits=logits[rows], z=z[rows], y=y[:50][rows], own_item=None, own_group=None))
    bad = z.clone()
    bad[3,2] = float('nan')
    rows = torch.arange(50)!=3
    assert fitted(bad)==fitted(z, rows)
    with pytest.raises(MemoError, match='all 50 validation rows'): fitted(z*float('nan'))

def test_after_an_epoch_what_whitens_is_worked_out_once(monkeypatch):
    "For the rows as they are, and again where they are others"
    from memo.heads import density
    (x,y),(z,yv),seen,was = data(),data(50, seed=1),[],density.unit_spread
    monkeypatch.setattr(density, 'unit_spread', lambda *args: seen.append(0) or was(*args))
    held = AttrDict(logits=torch.randn(50, 4, generator=torch.Generator().manual_seed(3)), z=z, y=yv)
    h = DensityHead(bank_of(x, y), shrinks=[.3,.05], temperatures=[.2,.1])
    h.fit(held)
    assert len(seen)==1
    h.refit(held)
    h.mixed(held.logits, z)
    assert len(seen)==1
    anew = copy.deepcopy(h)
    anew.at = None
    assert anew.refit(held)==pytest.approx(h.refit(held)) and len(seen)==2
    h.bank.write(x[:3]+1, y[:3], item=torch.arange(3)+2**50)
    new = copy.deepcopy(h)
    new.at = None
    assert h.refit(held)==pytest.approx(new.refit(held)) and len(seen)==4
    h.shrink.fill_(.9)                  # by hand: the metric is of another
    assert h.refit(held)==pytest.approx(set_to(copy.deepcopy(h), .9, .1).refit(held)) and h.refit(held)['shrink']>.89

def test_what_is_chosen_hangs_on_no_room(monkeypatch):
    from memo.heads import density
    (x,y),(z,yv) = data(),data(50, seed=1)
    held = AttrDict(logits=torch.randn(50, 4, generator=torch.Generator().manual_seed(3)), z=z, y=yv)
    a = DensityHead(bank_of(x, y)).fit(held)
    monkeypatch.setattr(density, 'ROOM', 1)
    assert DensityHead(bank_of(x, y)).fit(held)==a
