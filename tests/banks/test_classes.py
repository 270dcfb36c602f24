"A batched ClassBank is Vitter's and Adam's loops over its rows, one at a time"
import copy, random, numpy as np, pytest, scipy.stats, torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F
from helpers.tensors import Ops, close, gen
from memo.banks.classes import ClassBank
from memo.core import MemoError

M64 = 2**64-1
def splitmix(seed, n):
    z = (seed*0x94D049BB133111EB + n*0x9E3779B97F4A7C15) & M64
    z = ((z^(z>>30))*0xBF58476D1CE4E5B9) & M64
    z = ((z^(z>>27))*0x94D049BB133111EB) & M64
    return (z^(z>>31)) & (2**63-1)

class Loop:
    "The definition: row by row, class by class, in float64"
    def __init__(self, c, capacity, alpha=.1, lo=.01, hi=.5, seed=0):
        self.c,self.k,self.alpha,self.lo,self.hi,self.seed = c,capacity,alpha,lo,hi,seed
        self.ema,self.left,self.n,self.total = [0.]*c,[1.]*c,[0]*c,0
        self.slots,self.rates,self.ids = [[] for _ in range(c)],[],[[] for _ in range(c)]
    def write(self, x, y, item=None):
        for i,(f,c) in enumerate(zip(x.double(), y.tolist())):
            for c in ([c] if not isinstance(c, list) else [j for j,o in enumerate(c) if o>.5]):
                u = f/max(f.norm().item(), 1e-12)
                self.n[c] += 1; self.total += 1
                a = min(max(self.alpha/(self.c*self.n[c]/self.total), self.lo), self.hi)
                self.rates.append(a)
                self.ema[c] = (1-a)*self.ema[c]+a*u
                self.left[c] *= 1-a
                n = self.n[c]
                j = n-1 if n<=self.k else splitmix(self.seed, (c<<40)+n)%n
                if j<self.k:
                    self.slots[c][j:j+1],self.ids[c][j:j+1] = [u],[-1 if item is None else int(item[i])]
        return self
    def prototypes(self, d):
        return torch.stack([torch.zeros(d).double() if self.n[c]==0 else self.ema[c]/(1-self.left[c])
                            for c in range(self.c)])

def same(b, o, d):
    close(b.prototypes(), o.prototypes(d), 2e-4)
    assert b.counts.tolist()==o.n and int(b.seen)==o.total and len(b)==sum(map(len,
        o.slots))==int(b.class_counts().sum())
    for c in range(o.c):
        n = len(o.slots[c])
        if n: close(b.features[c,:n], torch.stack(o.slots[c]), 1e-5)
        assert b.items[c,:n].tolist()==o.ids[c] and (b.items[c,n:]==-1).all()

def stream(n, c, d=4, seed=0, tail=False):
    g = gen(seed)
    p = torch.logspace(0, -2 if tail else 0, c)
    return torch.randn(n, d, generator=g)*3,torch.multinomial(p, n, replacement=True, generator=g)

@pytest.mark.parametrize('sizes', [(1,)*30, (30,), (7,1,64,3,5,20), (128,128)])
@pytest.mark.parametrize('tail', [False, True])
def test_batches_are_the_loop(sizes, tail):
    b,o = ClassBank(6, capacity=5, seed=4),Loop(6, 5, seed=4)
    for i,n in enumerate(sizes):
        x,y = stream(n, 6, seed=i, tail=tail)
        ids = torch.arange(n)+1000*i
        b.write(x, y, item=ids); o.write(x, y, ids)
        same(b, o, 4)

def test_multilabel_rows_go_to_each_of_their_classes():
    b,o = ClassBank(5, capacity=4, seed=1),Loop(5, 4, seed=1)
    for i in range(4):
        x,y = stream(20, 5, seed=i)[0],(torch.rand(20, 5, generator=gen(i))>.6).float()
        y[3] = 0                                                   # a row of no class
        b.write(x, y, item=torch.arange(20)); o.write(x, y, torch.arange(20))
        same(b, o, 4)
    n = len(b)
    b.write(x, torch.zeros(20, 5))
    assert len(b)==n and int(b.seen)==o.total

@settings(max_examples=25)
@given(st.lists(st.lists(st.integers(0, 3), min_size=0, max_size=9), min_size=1, max_size=4), st.integers(1, 4),
       st.integers(0, 99))
def test_any_order_of_classes(batches, capacity, seed):
    b,o = ClassBank(4, capacity=capacity, seed=seed),Loop(4, capacity, seed=seed)
    for i,y in enumerate(batches):
        x,y = torch.randn(len(y), 3, generator=gen(seed+i)),torch.tensor(y, dtype=torch.long)
        b.write(x, y); o.write(x, y)
    if o.total: same(b, o, 3)

def test_whole_is_one_at_a_time():
    "To the last bit in what is stored"
    whole,single = ClassBank(4, capacity=6),ClassBank(4, capacity=6)
    for i in range(3):
        x,y = stream(50, 4, seed=i, tail=True)
        whole.write(x, y, group=torch.arange(50))
        for j in range(50): single.write(x[j:j+1], y[j:j+1], group=torch.arange(50)[j:j+1])
    for k in ('features','items','groups','counts','count','seen'):
        assert torch.equal(getattr(whole, k), getattr(single, k)), k
    close(whole.prototypes(), single.prototypes())

def test_long_streams_stay_exact():
    "20,000 rows: logs of products of (1-alpha) neither overflow nor drift"
    b,o = ClassBank(10, capacity=3),Loop(10, 3)
    for i in range(2):
        x,y = stream(2000, 10, seed=i, tail=True)
        b.write(x, y); o.write(x, y)
    same(b, o, 4)
    for i in range(9): b.write(*stream(2000, 10, seed=9+i, tail=True))
    assert b.prototypes().isfinite().all() and int(b.counts.sum())==22_000 and b.prototypes().norm(dim=1).max()<=1+1e-4

# the reservoir of a class
def test_reservoirs_are_uniform():
    n,k,trials = 40,5,150
    counts = np.zeros((2, n))
    x = torch.cat([torch.eye(n), torch.eye(n)])
    order = torch.randperm(2*n, generator=gen())
    y = torch.arange(2*n)//n
    for seed in range(trials):
        b = ClassBank(2, capacity=k, seed=seed)
        for o in order.split(33): b.write(x[o], y[o], item=o)
        for c in range(2): counts[c,b.items[c].numpy()%n] += 1
    p = k/n
    for o in (*counts, np.concatenate(counts)):
        z = ((o-trials*p)**2).sum()/(trials*p*(1-p))*(1-1/n)
        assert scipy.stats.chi2.sf(z, len(o)-len(o)//n)>1e-3
    # classes draw apart
    assert abs(scipy.stats.pearsonr(counts[0][order[order<n]], counts[1][order[order>=n]-n])[0])<.4

def test_a_class_does_not_touch_another():
    b = ClassBank(3, capacity=4)
    b.write(*stream(30, 2))
    was = copy.deepcopy(b)
    b.write(torch.ones(2, 4), torch.tensor([2,2]))
    for o in ('features','ema','mass','counts','items'): assert torch.equal(getattr(b, o)[:2], getattr(was, o)[:2])
    assert b.counts[2]==2

# prototypes
def test_classes_never_seen():
    b = ClassBank(4, capacity=3)
    with pytest.raises(MemoError, match='empty'): b.prototypes()
    b.write(torch.tensor([[3.,4],[0,2]]), torch.tensor([1,1]))
    p = b.prototypes()
    assert p.shape==(4,2) and not p[[0,2,3]].any() and p.isfinite().all() and b.class_counts().tolist()==[0,2,0,0]
    assert torch.equal(b.prototype(1), p[1])
    for c in (-1, 4):
        with pytest.raises(MemoError, match=f'class {c} .*0..3'): b.prototype(c)
    r = b.read(torch.tensor([[1.,0]]), k=12)
    assert sorted(r.index[0].tolist())==[-1]*10+[3,4]               # rows 3 and 4: class 1's first two slots
    assert b.rows()[2][r.index[0,:2]].tolist()==[1,1]

def test_features_have_unit_length():
    b = ClassBank(2, capacity=8)
    b.write(torch.tensor([[3.,4],[0,0],[1e-20,0],[1e6,0]]), torch.tensor([0,0,1,1]))
    close(b.features[0,0], [.6,.8])
    assert not b.features[0,1].any() and b.prototypes().isfinite().all()

@pytest.mark.parametrize('kw,say',
                         [(dict(n_classes=0),'n_classes .*found 0'), (dict(capacity=0),'capacity .*found 0'),
                          (dict(alpha_min=.6),'alpha_min'), (dict(alpha_max=1.),'alpha_max')])
def test_bad_arguments(kw, say):
    with pytest.raises(MemoError, match=say): ClassBank(**{**dict(n_classes=3, capacity=4), **kw})

def test_labels_are_needed():
    with pytest.raises(MemoError, match='y='): ClassBank(3).write(torch.ones(2, 4))

@pytest.mark.parametrize('multi', [False, True])
def test_no_loop_over_samples_or_classes(multi):
    def ops(n, c):
        b = ClassBank(c, capacity=4)
        for i in range(3):
            x,y = stream(64, c, seed=i)
            b.write(x, F.one_hot(y, c) if multi else y)
        x,y = stream(n, c, seed=9)
        with Ops() as o: b.write(x, F.one_hot(y, c) if multi else y); b.read(x); b.prototypes()
        return o.n
    assert ops(8, 5)==ops(256, 5)==ops(64, 200)<200

# the published faults (banks.md 2C)
def test_b1_the_rate_is_not_stuck_at_its_clamp():
    """A share of C classes is 1/C, not 1: against the plain share every rate was .5, and a prototype its class's
    last two rows"""
    c,d,n = 50,16,4000
    centre = torch.randn(c, d, generator=gen(1))
    _,y = stream(n, c, tail=True)
    x = centre[y]+2*torch.randn(n, d, generator=gen(2))
    freq,total,stuck,old = [0]*c,0,0,torch.zeros(c, d)
    for f,k in zip(F.normalize(x), y.tolist()):
        freq[k] += 1; total += 1
        a = min(max(.1/(freq[k]/total+1e-6), .01), .5)
        stuck += a==.5
        old[k] = f if freq[k]==1 else (1-a)*old[k]+a*f
    assert stuck/n>.99
    b,o = ClassBank(c, capacity=8),Loop(c, 8)
    b.write(x, y); o.write(x, y)
    rates = torch.tensor(o.rates)
    assert (rates==.5).float().mean()<.2 and (rates==.01).float().mean()<.2
    close(b.prototypes(), o.prototypes(d), 2e-4)
    often = b.counts>=20
    ours,published = (F.cosine_similarity(p, centre)[often].mean().item() for p in (b.prototypes(), old))
    assert ours>published+.05

def test_b1_frequent_classes_move_slowly():
    "Ten times as frequent as another: a tenth of its rate"
    y = torch.tensor(([0]*10+[1])*60)
    b = ClassBank(2, capacity=4, alpha=.05, alpha_min=1e-3)
    b.write(torch.ones(len(y), 2), y)
    b.mass.zero_()
    b.write(torch.ones(2, 2), torch.tensor([0,1]))
    slow,fast = b.mass.double().tolist()
    close(slow, .05/(2*601/661), 1e-4); close(fast, .05/(2*61/662), 1e-4)
    assert 9<fast/slow<11

def test_b2_bias_correction():
    "One row of A, then nine of B, at a rate of .1: uncorrected, the first still weighs .387"
    a,b_ = torch.tensor([[1.,0]]),torch.tensor([[0.,1]])
    x = torch.cat([a, b_.expand(9, 2)])
    old = x[0]
    for f in x[1:]: old = .9*old+.1*f
    close(old[0], .38742)
    b = ClassBank(1, capacity=2)                                   # the only class has the base rate
    b.write(x, torch.zeros(10).long())
    close(b.prototypes()[0,0], .1*.9**9/(1-.9**10), 1e-5); close(b.prototypes()[0,0], .0595, 1e-3)
    one = ClassBank(3, capacity=2)
    one.write(a, torch.tensor([1]))
    # a first row is its class's prototype, whatever the rate
    close(one.prototypes()[1], a[0], 1e-4)

def test_b2_a_constant_stream_has_itself_as_prototype():
    b = ClassBank(3, capacity=2)
    for i in range(30):
        b.write(torch.tensor([[.6,.8]]).expand(5, 2), torch.tensor([0,0,0,1,0]))
        close(b.prototypes()[:2].norm(dim=1), [1.,1.], 1e-4)

def test_b7_no_global_random_number_is_drawn():
    def state(): return random.getstate(),np.random.get_state()[1].tolist(),torch.get_rng_state().tolist()
    was = state()
    b = ClassBank(3, capacity=2)
    for i in range(5): b.write(*stream(20, 3, seed=i))
    b.read(torch.ones(2, 4)); b.prototypes()
    assert state()==was
    n = ClassBank(3, capacity=2, seed=1)
    for i in range(5): n.write(*stream(20, 3, seed=i))
    assert not torch.equal(n.features, b.features)                 # the seed is the bank's

def test_b8_bad_rows_and_bad_labels():
    "A NaN was stored as zeros and counted, a bad class was dropped in silence"
    b = ClassBank(3, capacity=4)
    x,y = stream(6, 3)
    x[2,1] = float('nan')
    with pytest.warns(UserWarning, match='1 of 6.*row 2'): b.write(x, y)
    assert int(b.counts.sum())==5==int(b.seen) and int(b.refused)==1 and b.features.isfinite().all() and b.ema.isfinite(
        ).all()
    was = copy.deepcopy(b.state_dict())
    for bad in (-1, 3):
        y[4] = bad
        with pytest.raises(MemoError, match=f'label {bad} .*0..2'): b.write(torch.ones(6, 4), y)
    assert all(torch.equal(v, b.state_dict()[k]) for k,v in was.items())

def test_confidence_is_the_cosine_to_the_prototype():
    g = torch.Generator().manual_seed(0)
    b,y = ClassBank(5, capacity=8),torch.arange(60)%4           # the last class was never seen
    b.write(torch.randn(60, 9, generator=g)+3*F.one_hot(y, 9), y)
    q = 7*torch.randn(12, 9, generator=g)
    c,sure = b.classify(q)
    want = F.cosine_similarity(q[:,None], b.prototypes()[None,:4], dim=-1)
    torch.testing.assert_close(sure, want.amax(1))
    assert torch.equal(c, want.argmax(1))
    torch.testing.assert_close(b.classify(b.prototypes()[:4])[1], torch.ones(4))
