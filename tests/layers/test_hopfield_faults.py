"The faults of the published Hopfield layers, H1 to H5: none is here"
import pytest, torch
from torch.nn import functional as F
from memo.core import MemoError
from memo.layers.associate import associate
from memo.layers.hopfield import Hopfield, HopfieldLookup, roles

def randn(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

@pytest.fixture(autouse=True)
def _seed(): torch.manual_seed(0)

@pytest.mark.parametrize('beta', [[1,0],[1.,0.],torch.tensor([1.,0.])])
def test_h1_beta_is_of_a_head(beta):
    "It was tiled over features: a head of beta 0 recalled the mean of nothing; whole numbers were refused"
    w = associate(randn(2, 2, 4, 8), randn(2, 2, 6, 8, seed=1), beta=beta).weight
    assert torch.allclose(w[:,1], torch.full((2,4,6), 1/6)) and w[:,0].max()>.3
    if isinstance(beta, list):
        w = Hopfield(8, heads=2, beta=beta).associate(randn(2, 4, 8)).weight
        assert torch.allclose(w[:,1], torch.full((2,4,4), 1/4)) and not torch.allclose(w[:,0], w[:,1])

@pytest.mark.parametrize('static', [roles,['stored','projected'],['stored'],['projected'],['state']])
def test_h2_static_patterns_stay_with_their_sample(static):
    "Patterns were repeated for heads in another order than they were taken apart: sample 0 read those of sample 1"
    m = Hopfield(8, heads=3, d_head=8, static=static)
    x,y = randn(2, 4, 8),randn(2, 6, 8, seed=1)
    a = m(x, y)
    x[1],y[1] = 9*randn(4, 8, seed=2),9*randn(6, 8, seed=3)
    assert torch.allclose(m(x, y)[0], a[0], atol=1e-6) and not torch.allclose(m(x, y)[1], a[1], atol=1e-3)

def test_h3_each_state_stops_by_itself():
    "The slowest of a batch said when all stop"
    m = Hopfield(8, heads=2, norm=[], static=roles, n_out=0, steps=50, eps=1e-2, beta=.9).double()
    y = randn(6, 8, seed=1).double()
    x = torch.cat([y[None,:1],randn(5, 1, 8).double()])
    r = m.associate(x, y)
    assert len(r.steps.unique())>1 and r.steps.max()<50
    for i in range(6): assert torch.allclose(m(x[i:i+1], y)[0], r.value[i], atol=1e-12)

def test_h4_a_bias_pattern_is_one_more_pattern():
    "It added none, as settings were compared with None"
    m = Hopfield(8, heads=2, bias_pattern=True)
    x = randn(2, 4, 8)
    w = m.associate(x).weight
    assert w.shape==(2,2,4,5) and (w[...,4]>0).all() and torch.allclose(w.sum(-1), torch.ones(2, 2, 4))
    with torch.no_grad(): m.bias_key.mul_(0).add_(m.queries(x[:1])[:,:,:1]*1e6)
    assert m.associate(x).weight[0,:,0,4].min()>.99
    m(x).sum().backward()
    assert m.bias_key.grad is not None and m.bias_value.grad.any()

def test_h4_norms_in_the_heads_learn():
    m = Hopfield(8, heads=2, norm=['heads'])
    q,(k,_) = m.queries(99*randn(2, 4, 8)),m.memory(99*randn(2, 6, 8), randn(2, 6, 8))
    for o in (q,k): assert o.mean(-1).abs().max()<1e-5 and (o.var(-1, unbiased=False)-1).abs().max()<.05
    m(10*randn(2, 4, 8), randn(2, 6, 8)).square().sum().backward()
    assert m.norms['query'].weight.grad.any() and m.norms['key'].weight.grad.any()

def test_h4_masks_of_another_type_are_refused_in_a_line():
    with pytest.raises(MemoError, match='uint8; torch.bool, True where'):
        Hopfield(8)(randn(2, 4, 8), valid=torch.ones(2, 4, dtype=torch.uint8))

def test_h4_updates_have_an_end():
    "None meant until nothing changes, which may be never"
    with pytest.raises(MemoError, match='steps'): Hopfield(8, steps=None)
    r = associate(randn(3, 8), randn(6, 8), steps=7, eps=0)
    assert r.steps.max()<=7

def test_h4_tensors_are_not_compared(monkeypatch):
    "Whether queries are keys was found by comparing them, which waits for a GPU"
    def no(*_): raise AssertionError('compared')
    for o in ('equal','allclose'): monkeypatch.setattr(torch, o, no)
    x = randn(2, 4, 8)
    Hopfield(8)(x)
    Hopfield(8)(x, x.clone(), x.clone())

@pytest.mark.parametrize('targets', [0,5])
def test_h5_a_lookup_is_projected_once(targets, monkeypatch):
    "It was expanded to the batch first: 16 times the work of norms and projections in a batch of 16"
    m = HopfieldLookup(8, size=20, heads=2, targets=targets)
    rows = {}
    for kind in ('linear','layer_norm'):
        def count(x, *args, kind=kind, f=getattr(F, kind), **kw):
            rows.setdefault(kind, []).append(x.numel()//x.shape[-1])
            return f(x, *args, **kw)
        monkeypatch.setattr(F, kind, count)
    m(randn(16, 3, 8))
    for n in rows.values(): assert sorted(n)[:2]==[20,20] and set(n)=={20,48}
    assert len(rows['layer_norm'])==3 and len(rows['linear'])==4

def test_h5_gradients_of_a_shared_lookup_are_those_of_copies():
    m,x = HopfieldLookup(8, size=20, heads=2),randn(16, 3, 8)
    m(x).square().sum().backward()
    got = m.patterns.grad.clone()
    m.zero_grad()
    Hopfield.forward(as_association(m), x, m.patterns.expand(16, -1, -1)).square().sum().backward()
    assert got.any() and torch.allclose(got, m.patterns.grad, rtol=1e-3, atol=1e-7)

def as_association(m):
    "Its parameters in a plain `Hopfield`"
    h = Hopfield(8, heads=2)
    for o in ('norms','to_heads','out'): setattr(h, o, getattr(m, o))
    return h
