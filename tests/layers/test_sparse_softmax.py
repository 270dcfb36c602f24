"Sparsemax and 1.5-entmax against thresholds found by bisection, their gradients, hidden entries"
import math
import pytest, torch
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp
from memo.layers.sparse import entmax15, sparsemax

alphas = {sparsemax:2., entmax15:1.5}
both = pytest.mark.parametrize('f', alphas)

def bisected(x, alpha):
    """The definition of alpha-entmax: [(alpha-1) x - tau]_+ ^ (1/(alpha-1)), with the tau that makes the sum 1, found
    by halving an interval that holds it"""
    z = (alpha-1)*x.double()
    lo,hi = z.amax(-1, keepdim=True)-1,z.amax(-1, keepdim=True)
    def p(tau): return (z-tau).clamp(min=0)**(1/(alpha-1))
    for _ in range(100):
        mid = (lo+hi)/2
        big = p(mid).sum(-1, keepdim=True)>=1
        lo,hi = torch.where(big, mid, lo),torch.where(big, hi, mid)
    return p((lo+hi)/2)

rows = hnp.arrays('float64', st.tuples(st.integers(1,4), st.integers(1,12)),
                  elements=st.floats(-20, 20, width=32)).map(torch.from_numpy)

@both
@given(x=rows)
def test_as_bisection_finds(f, x):
    got = f(x)
    assert torch.allclose(got, bisected(x, alphas[f]), atol=1e-7)
    assert (got>=0).all() and torch.allclose(got.sum(-1), torch.ones(len(x)).double())

@both
def test_near_the_threshold(f):
    "Where the second of two scores gets its first weight"
    x = torch.stack([torch.zeros(401), -torch.linspace(.8, 1.2, 401)*(1 if f is sparsemax else 2)], 1).double()
    p = f(x)
    assert torch.allclose(p, bisected(x, alphas[f]), atol=1e-9) and (p[205:,1]==0).all() and (p[:195,1]>0).all()

@both
@given(x=rows, c=st.floats(-1e3, 1e3))
def test_properties(f, x, c):
    "The same for scores that are all shifted, in any order; a higher score has no lower weight"
    p = f(x)
    assert torch.allclose(f(x+c), p, atol=1e-9)
    i = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(0))
    assert torch.allclose(f(x[:,i]), p[:,i], atol=1e-9)
    s,o = x.sort(-1)
    assert (p.gather(-1, o).diff(dim=-1)>=-1e-9).all()

@both
def test_gradients(f):
    x = torch.randn(3, 7, dtype=torch.double, generator=torch.Generator().manual_seed(0), requires_grad=True)
    p = f(x)
    assert (p==0).any() and ((p>0).sum(-1)>1).all()        # zeros, and more than one that is not
    assert torch.autograd.gradcheck(f, x) and torch.autograd.gradgradcheck(f, x)

@both
def test_gradient_as_published(f):
    "Of a row with weights p and s = p^(2-alpha): diag(s) - s s^T / sum(s) (Peters et al. 2019, proposition 2)"
    x = torch.randn(6, dtype=torch.double, generator=torch.Generator().manual_seed(3))
    p = f(x)
    s = torch.where(p>0, p.clamp(min=1e-300)**(2-alphas[f]), 0)
    assert torch.allclose(torch.autograd.functional.jacobian(f, x), s.diag()-s[:,None]*s/s.sum(), atol=1e-10)

@both
def test_hidden_entries_are_as_if_removed(f):
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    x[:,[1,4]] = -math.inf
    x[3] = -math.inf
    x.requires_grad_()
    p = f(x)
    keep = [0,2,3,5]
    assert not p[:,[1,4]].any() and not p[3].any()
    assert torch.allclose(p[[0,1,2,4]][:,keep], f(x[[0,1,2,4]][:,keep]))
    (p*torch.arange(6)).sum().backward()
    assert x.grad.isfinite().all() and not x.grad[:,[1,4]].any() and not x.grad[3].any()

@both
def test_a_row_of_nan_stays_one(f):
    x = torch.randn(3, 4)
    want = f(x)
    x[1,2] = math.nan
    got = f(x)
    assert got[1].isnan().all() and torch.equal(got[[0,2]], want[[0,2]])

@both
@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
def test_half_precision(f, dtype):
    x = (4*torch.randn(8, 300, generator=torch.Generator().manual_seed(0))).to(dtype)
    p = f(x)
    assert p.dtype==dtype and torch.allclose(p.float(), f(x.float()), atol=4e-3)

@both
def test_any_axis_and_nothing(f):
    x = torch.randn(2, 3, 4)
    assert torch.equal(f(x, 1), f(x.movedim(1, -1)).movedim(-1, 1)) and torch.equal(f(x, dim=0), f(x, -3))
    assert f(torch.empty(2, 0)).shape==(2,0) and f(torch.empty(0, 2)).shape==(0,2)

@both
def test_large_scores_and_ties(f):
    "What a float32 sum of all scores would lose"
    x = torch.full((1,1000), -1e30)
    x[0,:2] = 1e6
    assert torch.allclose(f(x)[0,:3], torch.tensor([.5,.5,0]))
    assert torch.allclose(f(torch.zeros(1, 1000)), torch.full((1,1000), 1e-3))

@both
def test_compiled_and_mapped(f):
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    g = torch.export.export(Of(f), (x,), dynamic_shapes=({0:torch.export.Dim.AUTO},)).module()
    assert torch.allclose(g(x), f(x)) and g(x.repeat(2, 1)).shape==(6,5)
    assert torch.allclose(torch.func.vmap(f)(x), f(x))

class Of(torch.nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f
    def forward(self, x): return self.f(x)
