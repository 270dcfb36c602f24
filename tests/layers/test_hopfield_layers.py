"Hopfield layers: the formulas of the published ones, masks, graphs, copies, files, a lookup that keeps its keys"
import copy, io, math, pickle, threading
import pytest, torch
from torch import nn
from torch.nn import functional as F
from memo.core import MemoError
from memo.layers.hopfield import Hopfield, HopfieldLookup, HopfieldPooling, roles

def randn(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

@pytest.fixture(autouse=True)
def _seed(): torch.manual_seed(0)

def far(m):
    "With weights that are not small, so that a fault shows"
    with torch.no_grad():
        for p in m.parameters(): p.add_(.3*torch.randn_like(p))
    return m

def official(m, R, Y, P, beta, steps=0, eps=1e-4):
    """The association of one sample [L,.], [S,.], [S,.] as Ramsauer et al. (2021) and hflayers have it: layer norm,
    projection, heads; updates until the weights change by no more than eps; heads side by side, projection"""
    def norm(o, x):
        if o not in m.norms: return x
        n = m.norms[o]
        x = (x-x.mean(-1, keepdim=True))/(x.var(-1, unbiased=False, keepdim=True)+n.eps).sqrt()
        return x*n.weight+n.bias
    def linear(l, x): return x@l.weight.T+(0 if l.bias is None else l.bias)
    def heads(o, x):
        x = norm(o, x)
        return [x]*m.heads if o not in m.to_heads else linear(m.to_heads[o], x).chunk(m.heads, -1)
    outs = []
    for i,(q,k,v) in enumerate(zip(heads('state', R), heads('stored', Y), heads('projected', P))):
        q,k = norm('query', q),norm('key', k)
        b = beta[i] if isinstance(beta, (list,tuple)) else q.shape[-1]**-.5 if beta is None else beta
        rows = []
        for x in q:
            a,n = torch.softmax(b*(k@x), -1),0
            while n<steps:
                x = a@k
                was,a,n = a,torch.softmax(b*(k@x), -1),n+1
                if (a-was).norm()<=eps: break
            rows.append(a@v)
        outs.append(torch.stack(rows))
    y = torch.cat(outs, -1)
    return y if isinstance(m.out, nn.Identity) else linear(m.out, y)

layers = dict(plain={}, heads=dict(heads=3), beta=dict(heads=2, beta=[.3,2.]), steps=dict(heads=2, steps=3, beta=2.),
              widths=dict(d_stored=5, d_projected=7, n_out=4, heads=2, d_head=3), bare=dict(norm=[], bias=False),
              no_output=dict(heads=3, n_out=0), norms=dict(norm=['state','heads'], heads=3),
              static=dict(static=['stored','projected'], heads=2, n_out=5),
              all_static=dict(static=roles, heads=2, beta=[.1,3.]),
              static_state=dict(static=['state'], heads=2, d_stored=5))

@pytest.mark.parametrize('o', layers.values(), ids=layers)
def test_as_the_published_formulas(o):
    m = far(Hopfield(6, **o)).double()
    ds = o.get('d_stored') or 6
    dp = o.get('d_projected') or ds
    R,Y,P = (x.double() for x in (randn(3, 4, 6),randn(3, 5, ds, seed=1),randn(3, 5, dp, seed=2)))
    want = torch.stack([official(m, *x, o.get('beta'), o.get('steps', 0)) for x in zip(R, Y, P)])
    assert torch.allclose(m(R, Y, P), want, atol=1e-10)
    r = m.associate(R, Y, P)
    assert torch.allclose(r.value, want, atol=1e-10) and r.weight.shape==(3,m.heads,4,5)
    if ds==6: assert torch.allclose(m(R), m(R, R, R)) and torch.allclose(m(R, Y), m(R, Y, Y))
    assert torch.allclose(m(R[0], Y[0], P[0]), want[0], atol=1e-10)       # a sample by itself
    shared = m(R, Y[0], P[0])
    assert torch.allclose(shared, m(R, Y[:1].expand(3, -1, -1), P[:1].expand(3, -1, -1)), atol=1e-10)

def test_as_multihead_attention():
    "torch's own, with the same weights: a Hopfield layer without norms"
    m,t = far(Hopfield(12, heads=3, norm=[])),nn.MultiheadAttention(12, 3, batch_first=True)
    t.in_proj_weight.data = torch.cat([m.to_heads[o].weight for o in roles])
    t.in_proj_bias.data = torch.cat([m.to_heads[o].bias for o in roles])
    t.out_proj.load_state_dict(m.out.state_dict())
    x,y,valid,mask = randn(2, 4, 12),randn(2, 5, 12, seed=1),torch.ones(2, 5, dtype=torch.bool),randn(4, 5, seed=2)>-.5
    valid[1,3:] = False
    want = t(x, y, y, key_padding_mask=~valid, attn_mask=~mask)[0]
    assert torch.allclose(m(x, y, valid=valid, mask=mask), want, atol=1e-5)

@pytest.mark.parametrize('beta,want', [(None,.5), (2.,2.), ([.3,2.],[.3,2.])])
def test_a_beta_that_learns_begins_where_it_is_put(beta, want):
    m,x = far(Hopfield(8, heads=2, beta=beta)),randn(2, 3, 8)
    m2 = Hopfield(8, heads=2, beta=beta, learn_beta=True)
    m2.load_state_dict({k:v for k,v in m.state_dict().items() if k!='head_betas'}, strict=False)
    assert torch.allclose(m2.beta, torch.tensor(want)) and torch.allclose(m2(x), m(x), atol=1e-6)
    m2(x).square().sum().backward()
    assert m2.log_beta.grad.all()

def test_begins_as_published():
    "Weights N(0, .02^2), biases 0; keys and values of their own"
    m = HopfieldLookup(256, size=500, heads=4)
    for l in (*m.to_heads.values(),m.out): assert abs(l.weight.std()-.02)<.001 and not l.bias.any()
    assert abs(m.patterns.std()-.02)<.001 and [*m.to_heads]==[*roles]
    bare = HopfieldLookup(64, size=500, norm=[])        # where nothing gives patterns their length
    assert abs(bare.patterns.std()-1)<.05

# masks

@pytest.mark.parametrize('o', [dict(), dict(steps=2), dict(null=True), dict(bias_pattern=True, null=True)])
def test_padding_is_removal(o):
    m = far(Hopfield(8, heads=2, **o))
    x,y,valid = randn(2, 3, 8),randn(2, 6, 8, seed=1),torch.arange(6)<torch.tensor([[4],[6]])
    a = m(x, y, valid=valid)
    assert torch.allclose(a[0], m(x[0], y[0,:4]), atol=1e-5) and torch.allclose(a[1], m(x[1], y[1]), atol=1e-5)
    y[0,4:] = math.nan
    assert torch.allclose(m(x, y, valid=valid), a, atol=1e-5)

@pytest.mark.parametrize('shape', [(3,6),(2,3,6),(2,2,3,6),(1,1,1,6)])
def test_association_masks(shape):
    m,mask = far(Hopfield(8, heads=2, bias_pattern=True)),randn(*shape, seed=4)>0
    x,y = randn(2, 3, 8),randn(2, 6, 8, seed=1)
    w = m.associate(x, y, mask=mask).weight
    full = (mask if len(shape)!=3 else mask[:,None]).expand(2, 2, 3, 6)
    assert ((w[...,:6]>0)==full).all() and (w[...,6]>0).all()
    valid = torch.tensor([True]*4+[False]*2)
    both = m.associate(x, y, valid=valid, mask=mask).weight
    assert ((both[...,:6]>0)==(full&valid)).all()

def test_null_association():
    "What fits nothing finds nothing: with all patterns hidden that is all there is, and the answer is no NaN"
    m = Hopfield(4, norm=[], static=roles, n_out=0, null=True, beta=5.)
    x,y = torch.tensor([[3.,0,0,0],[-3,0,0,0]]),torch.eye(4)
    r = m.associate(x, y[:1])
    assert r.weight[0,0,0,0]>.99 and r.weight[0,0,1,1]>.99 and r.value[1].abs().max()<1e-3
    assert not m(x, y, valid=torch.zeros(4, dtype=torch.bool)).any()

def test_dropout_is_for_training():
    m,x = far(Hopfield(8, dropout=.5)),randn(2, 3, 8)
    assert not torch.equal(m(x), m(x)) and torch.equal(m.eval()(x), m(x))

# pooling

def test_pooling_takes_sets():
    m = far(HopfieldPooling(8, quantity=3, heads=2, n_out=5, d_stored=6))
    y = randn(4, 7, 6)
    assert m(y).shape==(4,15) and m(y[0]).shape==(15,) and torch.allclose(m(y[0]), m(y)[0], atol=1e-5)
    assert torch.allclose(m(y), m(y[:,randn(7).argsort()]), atol=1e-5)
    want = torch.cat([official(m, m.state, y[1], y[1], None)])
    assert torch.allclose(m(y)[1], want.flatten(), atol=1e-5)
    valid = torch.arange(7)<torch.tensor([[1],[3],[7],[5]])
    assert torch.allclose(m(y, valid=valid)[1], m(y[1,:3]), atol=1e-5)
    r = m.associate(y, valid=valid)
    assert r.value.shape==(4,15) and r.weight.shape==(4,2,3,7)
    m(y).sum().backward()
    assert m.state.grad.any()

# lookup

lookups = dict(plain=dict(heads=2), targets=dict(heads=2, targets=5),
               static=dict(static=['stored','projected'], n_out=0), steps=dict(steps=2, beta=4.),
               sparse=dict(sparsity='entmax15', topk=5), bias=dict(bias_pattern=True, null=True),
               learned=dict(heads=2, beta=[1.,2.], learn_beta=True))

@pytest.mark.parametrize('o', lookups.values(), ids=lookups)
def test_lookup_is_association_with_its_patterns(o):
    m,x = far(HopfieldLookup(8, size=20, **o)),randn(3, 4, 8)
    want = Hopfield.forward(HopfieldOf(m), x, m.patterns, m.targets)
    for _ in range(2):
        assert torch.allclose(m(x), want, atol=1e-5)
        m.eval()
        with torch.no_grad(): a,b = m(x),m(x[0])
        assert torch.allclose(a, want, atol=1e-5) and torch.allclose(b, want[0], atol=1e-5)
    assert torch.allclose(m.associate(x).value, want, atol=1e-5)
    valid = torch.arange(20)<12
    assert torch.allclose(m(x, valid=valid), m(x, mask=valid.expand(4, -1)), atol=1e-5)

def HopfieldOf(m):
    "The same parameters as a plain `Hopfield`"
    h = copy.copy(m)
    h.__class__ = Hopfield
    return h

def test_gradients_of_a_lookup():
    m = HopfieldLookup(5, size=7, heads=5, targets=3, bias_pattern=True, beta=.5, learn_beta=True).double()
    x = randn(2, 3, 5).double().requires_grad_()
    ps = [x,*m.parameters()]
    names = [n for n,_ in m.named_parameters()]
    def f(x, *ps): return torch.func.functional_call(m, dict(zip(names, ps)), (x,))
    assert torch.autograd.gradcheck(f, ps)
    m(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for n,p in m.named_parameters() if n!='to_heads.stored.bias')

def counted(m):
    "How often keys were made"
    n = []
    m.to_heads['stored'].register_forward_hook(lambda *_: n.append(1))
    return n

def test_keys_are_kept_in_evaluation():
    m,x = far(HopfieldLookup(8, size=20)),randn(3, 4, 8)
    n = counted(m)
    for _ in range(3): m(x)
    assert len(n)==3        # in training they are not
    m.eval()
    with torch.no_grad():
        for _ in range(3): m(x)
    assert len(n)==4

def change_data(m):
    m.patterns.data.add_(randn(20, 8))
    m.train().eval()
def change_place(m): m.patterns.detach().add_(randn(20, 8))
def change_norm(m): m.norms['stored'].weight.detach().mul_(2.)
def change_load(m): m.load_state_dict({k:v+randn(*v.shape) for k,v in m.state_dict().items()})
def change_parameter(m): m.to_heads['projected'].weight = nn.Parameter(torch.ones_like(m.to_heads['projected'].weight))
def change_init(m): m.init_from(randn(50, 8, seed=9))
def change_step(m):
    "As fastai does it, in the mode it was in: with gradients, through `.data`"
    m(randn(3, 4, 8)).sum().backward()
    for p in m.parameters(): p.data.add_(p.grad, alpha=-1.)
changes = [change_data,change_place,change_norm,change_load,change_parameter,change_init,change_step]

@pytest.mark.parametrize('change', changes)
def test_what_changes_makes_keys_anew(change):
    m,x = far(HopfieldLookup(8, size=20)).eval(),randn(3, 4, 8)
    with torch.no_grad(): before = m(x)
    change(m)
    with torch.no_grad():
        after = m(x)
        want = Hopfield.forward(HopfieldOf(m), x, m.patterns)
    assert torch.allclose(after, want, atol=1e-6) and not torch.allclose(before, after, atol=1e-4)

def test_types_of_the_kept_keys():
    "Moved, in half precision, under autocast and out of it again"
    m,x = far(HopfieldLookup(8, size=20)).eval(),randn(3, 4, 8)
    with torch.no_grad():
        y = m(x)
        m.train().eval()
        with torch.autocast('cpu', torch.bfloat16): half = m(x)
        assert half.dtype==torch.bfloat16 and torch.equal(m(x), y)
        exact = m.double()(x.double())
        assert torch.allclose(exact, m.train()(x.double()), atol=1e-12) and torch.allclose(exact.float(), y, atol=1e-5)
        assert m.eval().bfloat16()(x.bfloat16()).dtype==torch.bfloat16

def test_a_lookup_made_in_inference_mode():
    "Its tensors have no versions: keys are made for each call"
    with torch.inference_mode():
        m,x = far(HopfieldLookup(8, size=20)).eval(),randn(3, 4, 8)
        was = m(x)
        m.patterns.add_(randn(20, 8))
        assert not torch.allclose(m(x), was, atol=1e-4) and torch.allclose(m(x), m.train()(x), atol=1e-6)

def test_kept_keys_do_not_cut_gradients():
    m,x = far(HopfieldLookup(8, size=20)).eval(),randn(3, 4, 8).requires_grad_()
    with torch.inference_mode(): m(x)
    with torch.no_grad(): m(x)
    m(x).sum().backward()
    assert m.patterns.grad.any() and x.grad.any()
    want,x.grad = x.grad,None
    m.requires_grad_(False)
    with torch.inference_mode(): m(x)
    for _ in range(2):
        x.grad = None
        m(x).sum().backward()
        assert torch.allclose(x.grad, want, atol=1e-6)

def test_other_parameters_for_a_call():
    "`functional_call`, as ensembles and per-sample gradients use it, finds keys of what it was given"
    m,x = far(HopfieldLookup(8, size=20)).eval(),randn(3, 4, 8)
    with torch.no_grad():
        for i in range(4):
            ps = {k:v+i for k,v in m.state_dict().items()}
            m2 = copy.deepcopy(m)
            m2.load_state_dict(ps)
            assert torch.allclose(torch.func.functional_call(m, ps, (x,)), m2.train()(x), atol=1e-5)
            del ps,m2

def test_two_threads():
    m,x = far(HopfieldLookup(8, size=200)).eval(),[randn(3, 4, 8, seed=i) for i in range(8)]
    with torch.no_grad(): want = [m(o) for o in x]
    got,m2 = [None]*8,copy.deepcopy(m)
    def work(i):
        with torch.no_grad():
            for _ in range(5): got[i] = m2(x[i])
    ts = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in ts: t.start()
    for t in ts: t.join()
    assert all(torch.allclose(a, b, atol=1e-6) for a,b in zip(want, got))

@pytest.mark.parametrize('make', [lambda: Hopfield(8, heads=2, bias_pattern=True, beta=[1.,2.]),
    lambda: HopfieldPooling(8, quantity=2, beta=[.5], learn_beta=True), lambda: HopfieldLookup(8, size=20, targets=3)])
def test_files_and_copies(make):
    m,x = far(make()).eval(),randn(3, 4, 8)
    with torch.no_grad(): want = m(x)
    m2 = make().eval()
    m2.load_state_dict(m.state_dict(), strict=True)
    f = io.BytesIO()
    torch.save(m, f)
    f.seek(0)
    for o in (m2, copy.deepcopy(m), pickle.loads(pickle.dumps(m)), torch.load(f, weights_only=False)):
        with torch.no_grad(): assert torch.equal(o(x), want)
        assert all(a is not b for a,b in zip(o.parameters(), m.parameters()))

def test_kept_keys_are_in_no_file():
    m = HopfieldLookup(8, size=2000).eval()
    size,names = len(pickle.dumps(m)),[*m.state_dict()]
    with torch.no_grad(): m(randn(1, 1, 8))
    assert m._kept and len(pickle.dumps(m))==size and [*m.state_dict()]==names and copy.deepcopy(m)._kept is None

# patterns from data

def test_begin_with_data():
    centres = 10*randn(6, 8)
    x = (centres[:,None]+.1*randn(6, 30, 8, seed=1)).reshape(4, 45, 8)
    t = F.one_hot(torch.arange(6).repeat_interleave(30), 6).float()
    m = HopfieldLookup(8, size=6, targets=6)
    assert m.init_from(x, t) is m
    near = torch.cdist(m.patterns, centres)
    assert near.amin(1).max()<.2 and sorted(near.argmin(1).tolist())==[*range(6)]
    assert torch.equal(m.targets.argmax(1), near.argmin(1)) and (m.targets.amax(1)==1).all()
    assert m.patterns.requires_grad
    m2 = HopfieldLookup(8, size=6, targets=6).init_from(x, t)
    assert torch.equal(m.patterns, m2.patterns)         # of the same data and seed
    exact = HopfieldLookup(8, size=180).init_from(x.double())
    assert torch.equal(exact.patterns, x.reshape(180, 8))

@pytest.mark.parametrize('f,said', [
    (lambda m: m.init_from(randn(5, 8)), '5 patterns for 6 slots.*size=5'),
    (lambda m: m.init_from(randn(9, 7)), '8 is accepted'), (lambda m: m.init_from(randn(9, 8)/0), 'not finite'),
    (lambda m: m.init_from(randn(9, 8), randn(9, 2)), 'HopfieldLookup')])
def test_data_that_cannot_be_begun_with(f, said):
    m = HopfieldLookup(8, size=6)
    was = m.patterns.detach().clone()
    with pytest.raises(MemoError, match=said) as e: f(m)
    assert '\n' not in str(e.value) and torch.equal(m.patterns, was)

@pytest.mark.parametrize('t,said', [(None,'missing'), (randn(9, 3),r'\[9, 2\]'), (randn(8, 2),r'\[9, 2\]')])
def test_targets_that_do_not_fit(t, said):
    with pytest.raises(MemoError, match=said): HopfieldLookup(8, size=6, targets=2).init_from(randn(9, 8), t)

# training and graphs

def test_a_lookup_learns():
    "Which of four patterns a noisy query is, with patterns and values from nothing"
    k,m = 2*randn(4, 16),HopfieldLookup(16, size=8, n_out=4)
    opt = torch.optim.AdamW(m.parameters(), 1e-2)
    for i in range(60):
        y = torch.randint(0, 4, (64,))
        loss = F.cross_entropy(m(k[y]+.5*torch.randn(64, 16)), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
    y = torch.arange(4).repeat(50)
    assert (m.eval()(k[y]+.5*torch.randn(200, 16)).argmax(1)==y).float().mean()>.95

def test_freezing_and_groups():
    "Parameters and buffers are where optimizers and devices look for them"
    m = HopfieldLookup(8, size=5, heads=2, beta=[1.,2.])
    assert {n for n,_ in m.named_buffers()}=={'head_betas'} and 'patterns' in dict(m.named_parameters())
    m.requires_grad_(False)
    assert not m(randn(2, 3, 8)).requires_grad

@pytest.mark.slow
@pytest.mark.parametrize('m', [lambda: Hopfield(8, heads=2, steps=2),
                               lambda: HopfieldLookup(8, size=9, heads=2, null=True),
                               lambda: Hopfield(8, bias_pattern=True, null=True),
                               lambda: HopfieldPooling(8, quantity=2)])
def test_graphs_of_layers(m):
    m,x = far(m()).eval(),randn(4, 3, 8)
    with torch.no_grad():
        m(x)        # keys are kept now
        g = torch.export.export(m, (x,), dynamic_shapes=({0:torch.export.Dim.AUTO},)).module()
        assert sum('linear' in str(o.target) for o in g.graph.nodes)==4     # what was kept is no constant of it
        f = torch.compile(m, backend='aot_eager', fullgraph=True)
        for n in (4,7):
            x = randn(n, 3, 8, seed=n)
            assert torch.allclose(g(x), m(x), atol=1e-5) and torch.allclose(f(x), m(x), atol=1e-5)
        for p in m.parameters(): p.add_(.1*torch.randn_like(p))
        assert torch.allclose(f(x), m(x), atol=1e-5)

@pytest.mark.slow
def test_a_compiled_lookup_trains():
    m,x = far(HopfieldLookup(8, size=9)),randn(4, 3, 8)
    torch.compile(m, backend='aot_eager', fullgraph=True)(x).sum().backward()
    got = m.patterns.grad.clone()
    m.zero_grad()
    m(x).sum().backward()
    assert torch.allclose(got, m.patterns.grad, atol=1e-5) and got.any()

@pytest.mark.filterwarnings('ignore:There is a performance drop')
@pytest.mark.parametrize('kw', [{}, dict(steps=3), dict(steps=2, sparsity='entmax15'), dict(steps=1, topk=3, heads=2)])
def test_per_sample_gradients(kw):
    "With updates too, whose stopping rule cannot be asked there"
    m,x = far(HopfieldLookup(8, size=9, **kw)),randn(4, 3, 8)
    with torch.no_grad(): assert torch.allclose(torch.func.vmap(m)(x), m(x), atol=1e-5)
    ps = {k:v.detach() for k,v in m.named_parameters()}
    def loss(ps, x): return torch.func.functional_call(m, ps, (x,)).square().sum()
    each = torch.func.vmap(torch.func.grad(loss), (None,0))(ps, x)['patterns']
    for i in range(4):
        m.zero_grad()
        m(x[i]).square().sum().backward()
        assert torch.allclose(each[i], m.patterns.grad, atol=1e-4)

# mistakes

@pytest.mark.parametrize('f,said', [
    (lambda: Hopfield(10, heads=3), '3 heads do not divide dim=10'), (lambda: Hopfield(8, heads=0), 'heads'),
    (lambda: Hopfield(8, norm=['stats']), "did you mean 'state'"), (lambda: Hopfield(8, static=['heads']), 'static'),
    (lambda: Hopfield(8, d_stored=6, static=['state','stored']), 'same width'), (lambda: Hopfield(8, beta=-1), 'beta'),
    (lambda: Hopfield(8, static=['state'], d_head=4), 'same width'),
    (lambda: Hopfield(8, heads=2, beta=[1.]), '1 numbers for 2'),
    (lambda: Hopfield(8, beta=0, learn_beta=True), 'above 0'),
    (lambda: Hopfield(8, sparsity='entmax'), "did you mean 'entmax15'"),
    (lambda: Hopfield(8, dropout=1), 'dropout'), (lambda: Hopfield(8, step=1), 'did you mean steps'),
    (lambda: HopfieldLookup(8, 0), 'size'), (lambda: HopfieldLookup(8, sise=3), 'sise'),
    (lambda: HopfieldPooling(8, 0), 'quantity'),
    (lambda: Hopfield(8)(randn(3, 8), randn(2, 4, 8)), r'a state \[B,L,8\]'),
    (lambda: Hopfield(8)(randn(2, 3, 8), valid=torch.ones(2, 3)), 'valid is of torch.float32'),
    (lambda: Hopfield(8)(randn(2, 3, 8), mask=torch.ones(3, 3)), 'True where')])
def test_mistakes(f, said):
    with pytest.raises(MemoError, match=said) as e: f()
    assert '\n' not in str(e.value)
