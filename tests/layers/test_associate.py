"The Hopfield read against a loop over single queries, softmax attention, and what theory says of it"
import itertools, math
from contextlib import nullcontext
import pytest, torch
from hypothesis import given, strategies as st
from torch.nn import functional as F
from memo.core import MemoError
from memo.layers.associate import associate, energy, hopfield, metastability, retrieval_error
from memo.layers.sparse import entmax15, sparsemax

forms = dict(softmax=torch.softmax, sparsemax=sparsemax, entmax15=entmax15)

def randn(*shape, seed=0, dtype=torch.double):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)

def one(q, K, V, beta, steps, eps, may, topk, form):
    "A single query [d] among patterns [S,d], as the paper writes it: value, weights, state, updates"
    ok = may.nonzero().flatten()
    if not len(ok): return torch.zeros(V.shape[1]).to(V),torch.zeros(len(K)).to(K),q,0
    def weights(x):
        s = beta*(K[ok]@x)
        keep = s.argsort(descending=True)[:topk]
        w = torch.zeros(len(K)).to(K)
        w[ok[keep]] = form(s[keep], -1)
        return w
    w,done = weights(q),0
    while done<steps:
        x = w@K
        was,w = w,weights(x)
        q,done = x,done+1
        if (w-was).norm()<=eps: break
    return w@V,w,q,done

def loop(q, k, v, beta=None, steps=0, eps=1e-4, mask=None, topk=None, sparsity='softmax'):
    "`associate` of [B,h,L,d], a query at a time"
    B,h,L,d = q.shape
    k,v = k.expand(B, h, -1, -1),v.expand(B, h, -1, -1)
    mask = torch.ones(B, h, L, k.shape[2], dtype=torch.bool) if mask is None else mask.expand(B, h, L, k.shape[2])
    bs = [d**-.5]*h if beta is None else [float(beta)]*h if torch.as_tensor(beta).ndim==0 else list(beta)
    rs = [one(q[b,i,l], k[b,i], v[b,i], bs[i], steps, eps, mask[b,i,l], topk, forms[sparsity])
          for b,i,l in itertools.product(range(B), range(h), range(L))]
    def stacked(xs): return torch.stack(xs).view(B, h, L, *xs[0].shape)
    return [stacked([torch.as_tensor(o) for o in xs]) for xs in zip(*rs)]

options = dict(plain={}, number=dict(beta=3), heads=dict(beta=[.1,5.]), steps=dict(steps=3, beta=1.5),
               far=dict(steps=50, beta=2, eps=1e-6), topk=dict(topk=2), topk_steps=dict(topk=2, steps=4, beta=1),
               sparsemax=dict(sparsity='sparsemax'), entmax15=dict(sparsity='entmax15', steps=2, beta=[.5,2.]))

@pytest.mark.parametrize('masked', [False,True])
@pytest.mark.parametrize('shared', [(3,2),(1,2),(3,1),(1,1)], ids=['own','batch','heads','all'])
@pytest.mark.parametrize('o', options.values(), ids=options)
def test_as_a_loop_over_queries(o, shared, masked):
    "Every option, with memories of each image and head, of all images, of all heads, of all"
    q,k,v = randn(3, 2, 4, 5),randn(*shared, 6, 5, seed=1),randn(*shared, 6, 7, seed=2)
    mask = randn(3, 2, 4, 6, seed=3)>-.3 if masked else None
    if masked: mask[1,0,2] = False
    got,want = associate(q, k, v, mask=mask, **o),loop(q, k, v, mask=mask, **o)
    for name,a,b in zip(got._fields, got, want): assert torch.allclose(a, b.to(a), atol=1e-10), name
    assert torch.allclose(hopfield(q, k, v, mask=mask, **o), want[0], atol=1e-10)

@pytest.mark.parametrize('shape', [(1,1,1,6),(3,1,1,6),(1,2,1,6),(1,1,4,6),(1,1,1,1),(3,1,4,1),(3,2,4,6)])
@pytest.mark.parametrize('shared', [(3,2),(1,2),(1,1)])
def test_masks_are_broadcast(shape, shared):
    q,k,v = randn(3, 2, 4, 5),randn(*shared, 6, 5, seed=1),randn(*shared, 6, 7, seed=2)
    mask = randn(*shape, seed=5)>-.2
    want = loop(q, k, v, mask=mask)[0]
    assert torch.allclose(hopfield(q, k, v, mask=mask), want, atol=1e-10)
    assert torch.allclose(associate(q, k, v, mask=mask).value, want, atol=1e-10)

@pytest.mark.parametrize('f', [hopfield,associate])
def test_arguments_in_their_order(f):
    "q, k, v, beta, steps, mask, topk"
    q,k,v,mask = randn(2, 3, 4, 5),randn(2, 3, 6, 5),randn(2, 3, 6, 7),randn(2, 3, 4, 6)>0
    got,want = f(q, k, v, 2., 1, mask, 2),f(q, k, v, beta=2., steps=1, mask=mask, topk=2)
    if f is associate: got,want = got.value,want.value
    assert torch.equal(got, want)

def test_masks_follow_scaled_dot_product_attention():
    q,k,v,mask = randn(2, 3, 4, 5),randn(2, 3, 6, 5),randn(2, 3, 6, 5),randn(2, 3, 4, 6)>0
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert mask.any(-1).all() and torch.allclose(hopfield(q, k, v, mask=mask), want, atol=1e-10)

@pytest.mark.parametrize('n', [2,3,4])
def test_fewer_axes(n):
    "[L,d] and [B,L,d] are [1,1,L,d] and [B,1,L,d]; patterns [S,d] are everybody's"
    q = randn(*(3,2,4,5)[4-n:])
    for k in (randn(*(3,2,6,5)[4-n:], seed=1),randn(6, 5, seed=1)):
        r = associate(q, k, steps=2, eps=0)
        assert r.value.shape==q.shape and r.state.shape==q.shape and r.steps.shape==q.shape[:-1]
        assert r.weight.shape==(*q.shape[:-1],6)
        x = q
        for _ in range(2): x = torch.softmax(x@k.mT/5**.5, -1)@k
        assert torch.allclose(r.state, x, atol=1e-10)
        mask = randn(*q.shape[:-1], 6, seed=2)>0
        w = torch.softmax((q@k.mT/5**.5).masked_fill(~mask, -math.inf), -1).nan_to_num()
        assert torch.allclose(hopfield(q, k, mask=mask), w@k, atol=1e-10)

def test_one_query_for_a_batch_of_memories():
    q,k = randn(1, 2, 3, 5),randn(4, 2, 6, 5)
    assert torch.allclose(hopfield(q, k), hopfield(q.expand(4, -1, -1, -1), k))
    assert hopfield(q[0,:1], k[:,0]).shape==(4,3,5)

def test_a_shared_memory_is_not_copied(monkeypatch):
    "Whatever the path: products see a memory of one image, and rows of all"
    seen = []
    sdpa,matmul = F.scaled_dot_product_attention,torch.Tensor.__matmul__
    def spy(f):
        def call(a, b, *args, **kw):
            seen.append((a,b))
            return f(a, b, *args, **kw)
        return call
    monkeypatch.setattr(F, 'scaled_dot_product_attention', spy(sdpa))
    monkeypatch.setattr(torch.Tensor, '__matmul__', spy(matmul))
    q,k = randn(8, 2, 5, 4),randn(1, 2, 6, 4)
    for o in (dict(), dict(steps=2), dict(topk=3)):
        for mask in (None, torch.rand(8, 1, 1, 6)>.2): hopfield(q, k, mask=mask, **o)
    assert len(seen)>=8 and all(a.shape[:3]==(1,2,40) and b.shape[:2]==(1,2) for a,b in seen)

def test_plain_reads_go_through_torch(monkeypatch):
    calls,sdpa = [],F.scaled_dot_product_attention
    monkeypatch.setattr(F, 'scaled_dot_product_attention', lambda *a, **kw: (calls.append(1), sdpa(*a, **kw))[1])
    q,k = randn(2, 3, 4),randn(5, 4)
    mask = torch.ones(5, dtype=torch.bool)
    for o in (dict(), dict(beta=2), dict(beta=torch.tensor(2.)), dict(mask=mask), dict(dropout=.1)):
        hopfield(q, k, **o)
    assert len(calls)==5
    for o in (dict(steps=1), dict(topk=2), dict(sparsity='sparsemax')): hopfield(q, k, **o)
    associate(q, k)
    assert len(calls)==5

# what must not change a row

@pytest.mark.parametrize('o', [dict(), dict(steps=20, beta=1., eps=1e-3), dict(topk=2)])
def test_batch_mates_heads_and_tokens_change_nothing(o):
    "Fault H3 of the published layers: a batch was updated until its slowest row stood still"
    q,k = randn(4, 3, 5, 6),randn(1, 3, 7, 6)
    whole = associate(q, k, **o)
    if 'steps' in o: assert len(whole.steps.unique())>1
    for part in (associate(q[1:2], k, **o), associate(q[:,1:2], k[:,1:2], **o), associate(q[:,:,2:3], k, **o)):
        B,h,L = part.steps.shape
        at = tuple(i if n==1 else slice(None) for n,i in ((B,slice(1,2)),(h,slice(1,2)),(L,slice(2,3))))
        for a,b in zip(whole, part): assert torch.allclose(a[at], b, atol=1e-12)

@pytest.mark.parametrize('o', [dict(), dict(steps=3), dict(topk=3), dict(sparsity='sparsemax')])
def test_a_row_of_nan_stays_alone(o):
    q,k = randn(2, 2, 5, 4, dtype=torch.float),randn(1, 2, 6, 4, dtype=torch.float)
    want = hopfield(q, k, **o)
    q[1,0,2] = math.nan
    got = hopfield(q, k, **o)
    others = torch.ones(2, 2, 5, dtype=torch.bool)
    others[1,0,2] = False
    assert torch.equal(got[others], want[others]) or torch.allclose(got[others], want[others], atol=1e-6)
    assert got[others].isfinite().all()

@pytest.mark.parametrize('o', [dict(), dict(steps=3, beta=1.), dict(topk=3), dict(sparsity='entmax15')])
@pytest.mark.parametrize('shared', [True,False])
def test_a_mask_is_removal(o, shared):
    "Of patterns that nobody may read, whatever they hold: padding, or memory that was never written"
    q,k,v = randn(3, 2, 4, 5),randn(1 if shared else 3, 2, 6, 5),randn(1 if shared else 3, 2, 6, 3)
    keep = torch.tensor([True,False,True,True,False,True])
    k[...,~keep,:],v[...,~keep,:] = math.nan,math.inf
    leaves = [x.requires_grad_() for x in (q,k,v)]
    y = hopfield(*leaves, mask=keep, **o)
    want = hopfield(q, k[...,keep,:], v[...,keep,:], **o)
    assert torch.allclose(y, want, atol=1e-10)
    ga,gb = (torch.autograd.grad(t.square().sum(), leaves) for t in (y,want))
    for a,b in zip(ga, gb): assert torch.allclose(a, b, atol=1e-10) and a.isfinite().all()

@pytest.mark.parametrize('dtype', [torch.float,torch.half,torch.bfloat16])
@pytest.mark.parametrize('o', [dict(), dict(steps=3), dict(topk=3), dict(sparsity='sparsemax'),
                               dict(sparsity='entmax15')])
def test_a_row_that_may_read_nothing(o, dtype):
    q,k,mask = randn(2, 3, 4, 8).to(dtype),randn(6, 8).to(dtype),torch.ones(2, 1, 4, 6, dtype=torch.bool)
    mask[1,0,2] = False
    q.requires_grad_()
    k.requires_grad_()
    r = associate(q, k, mask=mask, **o)
    assert not r.value[1,:,2].any() and not r.weight[1,:,2].any() and not r.steps[1,:,2].any()
    assert torch.equal(r.state[1,:,2], q[1,:,2])
    y = hopfield(q, k, mask=mask, **o)
    assert not y[1,:,2].any() and y.isfinite().all() and y[0].any() and y.dtype==dtype
    y.float().sum().backward()
    assert q.grad.isfinite().all() and not q.grad[1,:,2].any() and k.grad.isfinite().all()

@pytest.mark.parametrize('o', [dict(), dict(steps=2, beta=1), dict(sparsity='sparsemax'), dict(beta=[1.,2.])])
def test_order_of_patterns(o):
    q,k,v = randn(3, 2, 4, 5),randn(1, 2, 6, 5),randn(1, 2, 6, 3)
    i = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    a,b = associate(q, k, v, **o),associate(q, k[:,:,i], v[:,:,i], **o)
    assert torch.allclose(a.value, b.value) and torch.allclose(a.weight[...,i], b.weight)

@pytest.mark.parametrize('o', [dict(), dict(steps=2), dict(topk=2), dict(sparsity='sparsemax'),
                               dict(sparsity='entmax15')])
def test_nothing_and_one(o):
    "No patterns, no batch, no queries, one query, one pattern"
    for q,k in (((2,3,4,5),(1,3,0,5)),((0,3,4,5),(1,3,6,5)),((0,3,4,5),(0,3,6,5)),((2,3,0,5),(2,3,6,5)),((0,5),(0,5))):
        q,k = randn(*q),randn(*k)
        for mask in (None, torch.ones(k.shape[-2], dtype=torch.bool)):
            r = associate(q, k, mask=mask, **o)
            assert r.value.shape==q.shape and not r.value.any() and r.weight.shape==(*q.shape[:-1],k.shape[-2])
            assert torch.equal(hopfield(q, k, mask=mask, **o), r.value)
    q,k = randn(2, 3, 1, 5),randn(1, 5)
    assert torch.allclose(hopfield(q, k, **o), k.expand(2, 3, 1, 5))

# precision and gradients

gradients = dict(plain={}, beta=dict(beta=torch.tensor([.5,2.])), steps=dict(steps=2, beta=1.5, eps=0),
                 topk=dict(topk=3), sparsemax=dict(sparsity='sparsemax', beta=.4),
                 entmax15=dict(sparsity='entmax15', steps=1, eps=0))

@pytest.mark.parametrize('shared', [True,False])
@pytest.mark.parametrize('o', gradients.values(), ids=gradients)
def test_gradients(o, shared):
    q,k,v = randn(2, 2, 3, 4),randn(1 if shared else 2, 2, 5, 4, seed=1),randn(1 if shared else 2, 2, 5, 3, seed=2)
    mask = torch.tensor([True,True,False,True,True])
    o = dict(o)
    beta = o.pop('beta', torch.tensor(.5))
    beta = torch.as_tensor(beta, dtype=torch.double)
    args = [x.requires_grad_() for x in (q,k,v,beta)]
    assert torch.autograd.gradcheck(lambda q,k,v,b: hopfield(q, k, v, beta=b, mask=mask, **o), args)

def test_a_beta_that_learns():
    "Log beta goes up where the first pattern is asked for, and every head has its own"
    k = torch.eye(4)
    b = torch.zeros(2, requires_grad=True)
    y = hopfield(k[:1].expand(1, 2, 1, 4), k, beta=b.exp())
    (-y[0,0,0,0]).backward()
    assert b.grad[0]<0 and b.grad[1]==0

@pytest.mark.parametrize('dtype', [torch.half,torch.bfloat16])
@pytest.mark.parametrize('o', [dict(), dict(beta=torch.tensor(3.)), dict(steps=2), dict(topk=4),
                               dict(sparsity='entmax15')])
def test_half_precision(o, dtype):
    "Similarities are sums in float32: the answer is as near as its inputs are, also where a half could not hold a sum"
    for scale in (1,100):
        q,k,v = scale*randn(2, 3, 4, 64),scale*randn(1, 3, 50, 64),randn(1, 3, 50, 64)
        q,k,v = (x.to(dtype) for x in (q,k,v))
        o = {**o, 'beta':o.get('beta', .1)/scale**2}
        y = hopfield(q, k, v, **o)
        want = hopfield(q.double(), k.double(), v.double(), **o)
        assert y.dtype==dtype and torch.allclose(y.double(), want, atol=.02 if dtype==torch.half else .06)

def test_a_query_times_beta_may_be_more_than_a_half_holds():
    q,k = (100*F.one_hot(torch.tensor(o), 8).half() for o in ([[2]],[[0],[1],[2]]))
    y = hopfield(q, k[:,0], beta=torch.tensor(1000.))
    assert torch.equal(y, q)

@pytest.mark.parametrize('o', [dict(), dict(steps=2), dict(topk=4)])
def test_autocast_changes_nothing(o):
    "What is given in float32 is compared in float32"
    q,k = randn(2, 3, 4, 8, dtype=torch.float),randn(1, 3, 6, 8, dtype=torch.float)
    want = hopfield(q, k, **o)
    with torch.autocast('cpu', torch.bfloat16): assert torch.allclose(hopfield(q, k, **o), want, atol=1e-6)
    assert hopfield(q.bfloat16(), k, **o).dtype==torch.bfloat16        # an answer is of the query's type
    assert torch.allclose(hopfield(q.bfloat16(), k, **o).float(), hopfield(q.bfloat16().float(), k, **o), atol=.02)

def test_dropout_is_of_weights():
    torch.manual_seed(0)
    q,k = torch.zeros(1, 1, 4000, 4),torch.eye(4)
    for y in (hopfield(q, k, dropout=.5), hopfield(q, k, dropout=.5, topk=4), hopfield(q, k, dropout=.5, steps=1)):
        assert {*y.flatten().tolist()}=={0.,.5} and abs(y.mean()-.25)<.02
    r = associate(q, k, dropout=.5)
    assert (r.weight==.25).all()        # what was recalled is told without

# what theory says

patterns = st.tuples(st.integers(2,8), st.integers(1,12), st.floats(.05,20), st.integers(0,99))

@given(patterns)
def test_energy_never_rises(o):
    "Ramsauer et al. 2021, theorem 1; and it lies between 0 and 2 M^2"
    d,S,beta,seed = o
    k,q = randn(S, d, seed=seed),2*randn(3, d, seed=seed+1)
    e = torch.stack([energy(associate(q, k, beta=beta, steps=i, eps=0).state, k, beta) for i in range(6)])
    assert (e.diff(dim=0)<=1e-9).all()
    inside = energy(associate(q, k, beta=beta, steps=1, eps=0).state, k, beta)
    assert (inside>=-1e-9).all() and (inside<=2*k.square().sum(1).max()+1e-9).all()

def test_energy_as_published():
    q,k,beta = randn(3, 5),randn(7, 5),1.7
    for x,e in zip(q, energy(q, k, beta)):
        lse = sum(math.exp(beta*float(x@o)) for o in k)
        want = -math.log(lse)/beta+float(x@x)/2+math.log(7)/beta+max(float(o@o) for o in k)/2
        assert abs(want-e)<1e-10
    assert torch.allclose(energy(randn(2, 3, 4, 5), randn(1, 3, 6, 5), [.5,1.,2.])[1,2],
                          energy(randn(2, 3, 4, 5)[1,2], randn(1, 3, 6, 5)[0,2], 2.))

def test_at_beta_zero_there_is_no_energy():
    with pytest.raises(MemoError, match='beta is 0') as e: energy(randn(3, 5), randn(7, 5), 0)
    assert '\n' not in str(e.value)

def test_an_update_is_a_step_down_the_energy():
    "xi - dE/dxi is the next state (theorem 1's concave-convex procedure)"
    k,q = randn(6, 4),randn(3, 4, seed=1).requires_grad_()
    g, = torch.autograd.grad(energy(q, k, 2.).sum(), q)
    assert torch.allclose(q-g, associate(q, k, beta=2., steps=1, eps=0).state, atol=1e-10)

@pytest.mark.parametrize('beta', [8,32])
def test_stored_patterns_are_fixed_points(beta):
    "50 patterns of 64 numbers: each is found again, from a half of it too; at a low beta their mean is"
    k = F.normalize(randn(50, 64))*8
    for q in (k,torch.where(torch.arange(64)<32, k, 0)):
        r = associate(q, k, beta=beta, steps=20)
        assert F.cosine_similarity(r.state, k).min()>.999 and F.cosine_similarity(r.value, k).min()>.999
        assert (r.steps<=2).all() and (metastability(r.weight)==1).all() and retrieval_error(r.state, k).max()<1e-3
    r = associate(k, k, beta=1e-3, steps=20)
    assert torch.allclose(r.value, k.mean(0).expand_as(k), atol=.02) and (metastability(r.weight)==45).all()

def retrieved(n, d):
    "Of 100 of `n` random patterns of length 1.2 sqrt(d-1) the share that an update at beta 1 moves less than .3 of it"
    k = F.normalize(randn(n, d, dtype=torch.float))*1.2*(d-1)**.5
    y = hopfield(k[:100], k, beta=1., steps=1)
    return (retrieval_error(y, k, torch.arange(len(y)))<.3*1.2*(d-1)**.5).float().mean().item()

def test_capacity_grows_exponentially():
    "Theorem 3: a classical network keeps .14 d patterns, this one 128 at d=8 and the square of that at twice d"
    assert retrieved(128, 8)>.95 and retrieved(128**2, 16)>.95 and retrieved(2**15, 32)>.95
    assert retrieved(2**13, 8)<.5

@pytest.mark.parametrize('sparsity', forms)
def test_every_form_retrieves(sparsity):
    k = randn(30, 32)
    r = associate(k+.3*randn(30, 32, seed=1), k, beta=2, steps=10, sparsity=sparsity)
    assert torch.allclose(r.state, k, atol=1e-2) and (r.weight.argmax(-1)==torch.arange(30)).all()

# diagnostics

def test_metastability():
    w = torch.tensor([[1.,0,0,0],[.25]*4,[.5,.4,.1,0],[0,0,0,0],[.9,.05,.05,0]])
    assert metastability(w).tolist()==[1,4,2,0,1] and metastability(w, .5).tolist()==[1,2,1,0,1]
    assert (metastability(torch.full((3,1000), 1e-3))==900).all() and metastability(torch.zeros(2,0)).tolist()==[0,0]

def test_retrieval_error():
    k,x = randn(2, 5, 3),randn(2, 4, 3, seed=1)
    want = (x[:,:,None]-k[:,None]).norm(dim=-1)
    assert torch.allclose(retrieval_error(x, k), want.amin(-1))
    i = torch.tensor([[0,1,2,3],[4,3,2,1]])
    assert torch.allclose(retrieval_error(x, k, i), want.gather(-1, i[...,None])[...,0])

# graphs

class Read(torch.nn.Module):
    def __init__(self, **o):
        super().__init__()
        self.o = o
    def forward(self, q, k, mask=None): return hopfield(q, k, mask=mask, **self.o)

@pytest.mark.slow
@pytest.mark.parametrize('o', [dict(), dict(steps=3, beta=1), dict(topk=3), dict(sparsity='sparsemax')])
def test_export_and_compile(o):
    q,k,mask = randn(4, 2, 3, 5),randn(1, 2, 6, 5),torch.tensor([True]*5+[False])
    m = Read(**o)
    g = torch.export.export(m, (q,k,mask), dynamic_shapes=({0:torch.export.Dim('b', min=1)},None,None)).module()
    for n in (1,4,7):
        x = randn(n, 2, 3, 5, seed=n)
        assert torch.allclose(g(x, k, mask), m(x, k, mask), atol=1e-10)
    f = torch.compile(m, backend='aot_eager', fullgraph=True)
    assert torch.allclose(f(q, k, mask), m(q, k, mask), atol=1e-10)

# mistakes

@pytest.mark.parametrize('change,said', [
    (dict(q=(5,)), 'two axes'), (dict(k=(3,6,5)), r'k is \[3, 6, 5\]'), (dict(k=(3,2,6,4)), 'a last axis of 5'),
    (dict(k=(4,2,6,5)), 'the same batch'), (dict(k=(3,3,6,5)), 'the same heads'), (dict(v=(6,7)), None),
    (dict(v=(5,7)), 'as many values as keys'), (dict(v=(2,2,6,7)), 'the same batch')])
def test_shapes_that_do_not_go_together(change, said):
    s = dict(q=(3,2,4,5), k=(3,2,6,5), v=(3,2,6,7)) | change
    with nullcontext() if said is None else pytest.raises(MemoError, match=said) as e:
        hopfield(*(randn(*o) for o in s.values()))
    if said is None: return
    assert '\n' not in str(e.value) and 'is accepted' in str(e.value)

@pytest.mark.parametrize('o,said', [
    (dict(beta=-1), 'beta must be a number from 0'), (dict(beta=math.nan), 'beta'), (dict(beta=[1,-1]), 'beta'),
    (dict(beta=[1,2,3]), 'for each of 2 heads'), (dict(beta='x'), 'beta'), (dict(steps=-1), 'steps'),
    (dict(steps=1.5), 'steps'), (dict(topk=0), 'topk'), (dict(eps=-1), 'eps'),
    (dict(dropout=1.), 'dropout'), (dict(sparsity='sparse'), "did you mean 'sparsemax'"),
    (dict(mask=torch.ones(4, 6)), 'True where a pattern may be read'),
    (dict(mask=torch.ones(4, 6, dtype=torch.uint8)), 'bool'),
    (dict(mask=torch.ones(4, 5)>0), r'broadcast to \[3, 2, 4, 6\]'),
    (dict(mask=torch.ones(1, 3, 2, 4, 6)>0), 'broadcast')])
def test_options_that_are_none(o, said):
    for f in (hopfield,associate):
        with pytest.raises(MemoError, match=said) as e: f(randn(3, 2, 4, 5), randn(6, 5), **o)
        assert '\n' not in str(e.value)

def test_whole_numbers_are_no_patterns():
    with pytest.raises(MemoError, match='floating point is accepted'):
        hopfield(randn(2, 3), torch.ones(4, 3, dtype=torch.long))

def test_energy_of_no_patterns():
    with pytest.raises(MemoError, match='no stored patterns'): energy(randn(2, 3), randn(0, 3))
