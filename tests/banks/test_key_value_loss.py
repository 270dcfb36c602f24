"The memory contrastive loss against an independent one in double precision, and where nothing may be NaN"
import math
import pytest, torch
from hypothesis import given, settings, strategies as st
from memo.banks.key_value import CachedBank, TrainableBank

both = pytest.mark.parametrize('kind', [CachedBank,TrainableBank])

def filled(kind, n=40, classes=4, dim=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    b = kind(n, n_classes=classes)
    b.write(torch.randn(n, dim, generator=g), torch.randint(0, classes, (n,), generator=g), item=torch.arange(n),
            group=torch.arange(n)//3)
    if kind is TrainableBank:
        with torch.no_grad(): b.scores.add_(torch.randn(n, classes, generator=g))
    return b

def reference(b, z, y, t=.1, item=None, group=None):
    "By loops over queries and rows, in double precision; gives the loss and what it is differentiated by"
    z = z.detach().double().requires_grad_()
    k = b.features.detach()[:len(b)].double().requires_grad_()
    v = b.scores.detach()[:len(b)].double().requires_grad_() if isinstance(b, TrainableBank) else None
    losses = []
    for i in range(len(z)):
        u = z[i]/z[i].norm() if z[i].any() else z[i]*0
        all_,mine = [],[]
        for j in range(len(b)):
            if item is not None and item[i]>=0 and item[i]==b.items[j]: continue
            if group is not None and group[i]>=0 and group[i]==b.groups[j]: continue
            s = u@k[j]/k[j].norm()/t
            all_.append(s)
            if v is None:
                if b.labels[j]==y[i]: mine.append(s)
            elif 0<=y[i]<v.shape[1]: mine.append(s+v[j].log_softmax(0)[y[i]])
        if mine: losses.append(torch.stack(all_).logsumexp(0)-torch.stack(mine).logsumexp(0))
    return (torch.stack(losses).mean() if losses else None),[o for o in (z,k,v) if o is not None]

def check(b, z, y, **kw):
    z = z.clone().requires_grad_()
    want,wrt = reference(b, z, y, **{('t' if k=='temperature' else k):v for k,v in kw.items()})
    got = b.contrastive(z, y, **kw)
    if want is None:
        assert got is None
        return
    torch.testing.assert_close(got.double(), want.detach(), rtol=1e-5, atol=1e-6)
    mine = [z,*((b.features,b.scores) if isinstance(b, TrainableBank) else ())]
    for g,w in zip(torch.autograd.grad(got, mine), torch.autograd.grad(want, wrt)):
        torch.testing.assert_close(g[:len(w)].double(), w, rtol=2e-3, atol=2e-5+1e-4*float(w.abs().max()))

@both
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 9), t=st.sampled_from([.01,.05,.1,1.,5.]), hide=st.integers(0, 3))
def test_loss_and_gradients_are_the_formulas(kind, seed, n, t, hide):
    b = filled(kind, seed=seed)
    g = torch.Generator().manual_seed(seed+1)
    z,y = torch.randn(n, 8, generator=g),torch.randint(-1, 6, (n,), generator=g)    # none, and classes not in the bank
    item = torch.randint(-1, 40, (n,), generator=g) if hide&1 else None
    group = torch.randint(-1, 14, (n,), generator=g) if hide&2 else None
    check(b, z, y, temperature=t, item=item, group=group)

@both
def test_a_bank_that_is_not_full(kind):
    "Free slots are no rows"
    b = kind(40, n_classes=4)
    b.write(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), torch.arange(5)%4)
    z = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    check(b, z.detach(), torch.arange(6)%4)
    b.contrastive(z, torch.arange(6)%4).backward()
    if kind is TrainableBank: assert (b.features.grad[5:]==0).all() and (b.scores.grad[5:]==0).all()

@both
def test_a_row_that_is_hidden_twice_hides_no_other(kind):
    "Of four rows one is of the query's item and three are of its group, the same one among them"
    b,g = kind(4, n_classes=2, similarity_threshold=1.),torch.Generator().manual_seed(3)
    b.write(torch.randn(4, 8, generator=g), torch.zeros(4).long(), item=torch.arange(4), group=torch.tensor([0,0,0,1]))
    z,y = torch.randn(2, 8, generator=g),torch.zeros(2).long()
    ids = dict(item=torch.tensor([1,3]), group=torch.tensor([0,0]))
    check(b, z, y, **ids)
    check(b, z[:1], y[:1], **{k:o[:1] for k,o in ids.items()})
    assert b.contrastive(z[:1], y[:1], **{k:o[:1] for k,o in ids.items()}) is not None

@both
@pytest.mark.parametrize('t', [.1,.02,.001,1e-4])
def test_where_the_own_class_is_far_away_nothing_underflows(kind, t):
    b = kind(4, n_classes=2)
    b.write(torch.tensor([[1.,0],[1,.01],[-1,0],[-1,.01]]), torch.tensor([0,0,1,1]))
    check(b, torch.tensor([[1.,0],[-1,.1]]), torch.tensor([1,0]), temperature=t)

@both
def test_nothing_is_none(kind):
    "An empty bank, no feature, no label, only the own row: no loss"
    b,z = kind(8, n_classes=3),torch.randn(2, 8)
    y = torch.tensor([0,1])
    assert b.contrastive(z, y) is None
    b.write(z, y, item=torch.tensor([4,5]), group=torch.tensor([1,1]))
    assert b.contrastive(z[:0], y[:0]) is None and b.contrastive(z, torch.tensor([-1,-1])) is None
    assert b.contrastive(z, y, group=torch.tensor([1,1])) is None
    if kind is CachedBank: assert b.contrastive(z, y, item=torch.tensor([4,5])) is None
    assert b.contrastive(z, y, item=torch.tensor([4,-1])) is not None
    b.reset()
    assert b.contrastive(z, y) is None

ways = dict(zero=lambda z: z*0, one_zero=lambda z: torch.cat([z[:1]*0, z[1:]]), huge=lambda z: z*1e30,
            largest=lambda z: z.sign()*3e38, tiny=lambda z: z*1e-30,
            same=lambda z: z[:1].expand_as(z), one=lambda z: z[:1],
            half=lambda z: z.half(), bfloat=lambda z: z.bfloat16(), double=lambda z: z.double())

@both
@pytest.mark.parametrize('how', ways)
def test_nothing_is_nan(kind, how):
    for rows in ('random','same'):
        b = filled(kind)
        if rows=='same':
            with torch.no_grad(): b.features.copy_(b.features[:1].clone().expand_as(b.features))
        for t in (.1,.005):
            z = ways[how](torch.randn(6, 8, generator=torch.Generator().manual_seed(1))).detach().requires_grad_()
            with torch.autocast('cpu', torch.bfloat16, enabled=how in ('half','bfloat')):
                l = b.contrastive(z, torch.tensor([0,1,2,3,5,0])[:len(z)], temperature=t, item=torch.arange(len(z)))
            l.backward()
            assert l.isfinite() and l>=-1e-6 and z.grad.isfinite().all() and z.grad.dtype==z.dtype
            if kind is TrainableBank:
                assert b.features.grad.isfinite().all() and b.scores.grad.isfinite().all()

@both
def test_the_gradient_is_of_the_direction_alone(kind):
    "However long a feature is, and along a sphere"
    b,z = filled(kind),torch.randn(5, 8, generator=torch.Generator().manual_seed(3))
    y = torch.arange(5)%4
    gs = []
    for scale in (1.,1e3,1e-3):
        x = (z*scale).requires_grad_()
        b.contrastive(x, y).backward()
        gs.append(x.grad*scale)
        assert ((x.grad*x).sum(1)/x.grad.norm(dim=1)/x.norm(dim=1)).abs().max()<1e-4
    for g in gs[1:]: torch.testing.assert_close(g, gs[0], rtol=1e-3, atol=1e-6)
    if kind is TrainableBank:
        g = b.features.grad
        assert ((g*b.features).sum(1).abs()<=1e-4*g.norm(dim=1)+1e-6).all()

def test_a_cached_bank_is_a_constant():
    b,z = filled(CachedBank),torch.randn(5, 8).requires_grad_()
    b.contrastive(z, torch.arange(5)%4).backward()
    assert not b.features.requires_grad and z.grad.abs().sum()>0

def test_training_on_it_pulls_features_to_their_class():
    "And rows and scores of a trainable bank with them"
    b = filled(TrainableBank)
    z,y = torch.randn(20, 8, generator=torch.Generator().manual_seed(4)).requires_grad_(),torch.arange(20)%4
    opt,was = torch.optim.Adam([z,*b.parameters()], .05),b.features.detach().clone()
    first = None
    for _ in range(60):
        opt.zero_grad()
        l = b.contrastive(z, y)
        first = first or float(l.detach())
        l.backward()
        opt.step()
        b.settle()
    assert float(l)<.2*first and (b.classify(z.detach())[0]==y).all() and not torch.equal(b.features, was)

@both
def test_ten_thousand_rows(kind):
    "Of 512 numbers, a batch of 128: equal to the textbook form"
    g = torch.Generator().manual_seed(0)
    b = kind(10_000, n_classes=10, similarity_threshold=1.)
    b.write(torch.randn(10_000, 512, generator=g), torch.arange(10_000)%10)
    z,y = torch.randn(128, 512, generator=g).requires_grad_(),torch.arange(128)%10
    l = b.contrastive(z, y)
    s = torch.nn.functional.normalize(z.detach().double())@b.features.detach().double().T/.1
    p = (b.labels[None]==y[:,None]).double() if kind is CachedBank else b.scores.detach().double().softmax(1)[:,y].T
    want = (s.logsumexp(1)-(s+p.log()).logsumexp(1)).mean()
    assert math.isclose(float(l), float(want), rel_tol=1e-5)
    l.backward()
    assert z.grad.isfinite().all()
