"MemoryLinear: the faults of the published code, what a user does with a layer, and what must not change it"
import copy, io, pickle, threading
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from memo.core import MemoError
from memo.heads.attach import attach, detach
from memo.heads.retrieval import RetrievalHead
from memo.banks.slots import SlotBank
from memo.layers.memory_linear import MemoryLinear, to_memory_linear

def randn(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
def made(seed=0, **kw):
    torch.manual_seed(seed)
    return MemoryLinear(**dict(in_features=6, out_features=4, key_mem_units=8, tau_mu=5, tau_eta=10)|kw)
def state(layer): return {k:v.clone() for k,v in layer.state_dict().items()}
def same(a, b): return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def put(layer, keys):
    "Keys of one's own, no unit to be given away"
    with torch.no_grad(): layer.keys.copy_(torch.as_tensor(keys).float())
    return layer

both = pytest.mark.parametrize('order', ['paper','backward'])

# faults, by their numbers in the list of the published code

def test_f1_a_threshold_is_compared_with_cosines():
    "Similarities were divided by the root of the width, and every input was new"
    layer = made(in_features=768, psi='identity', tau_alpha=.7, tau_mu=10**6, tau_eta=0)
    x = F.normalize(randn(8, 768))
    put(layer, x[None])
    new = F.normalize(randn(1, 768, seed=1)-randn(1, 768, seed=1)@x.T@x)
    for cos,scrambled in ((.9,0), (.71,0), (.69,1), (.1,1)):
        l = copy.deepcopy(layer)
        z = cos*x[3]+(1-cos**2)**.5*F.normalize(new-new@x[3][:,None]*x[3])
        assert float((z@x[3])[0])==pytest.approx(cos, abs=1e-4)
        l(z*30)
        assert int(l.scrambles.sum())==scrambled, cos

@both
def test_f2_a_unit_is_given_away_once(order):
    "Four loose inputs in a row overwrote one unit four times"
    layer = made(order=order, beta_k=.01, tau_alpha=.99)
    for i in range(4): layer(10*randn(1, 6, seed=i)).sum().backward()
    assert int(layer.scrambles.max())==1 and int(layer.scrambles.sum())==4

@both
def test_f3_copies_have_their_own_keys(order):
    layer = made(order=order)
    layer(randn(3, 6)).sum().backward()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        layer.zero_grad()
        twin.zero_grad()
        before = state(layer)
        twin(randn(3, 6, seed=2)).sum().backward()
        assert same(before, state(layer)) and not same(before, state(twin))
        assert layer.memories.grad is None
        layer(randn(3, 6, seed=2)).sum().backward()
        assert same(state(twin), state(layer))
        layer.load_state_dict(before)
    f = io.BytesIO()
    torch.save(layer, f)
    f.seek(0)
    assert same(state(torch.load(f, weights_only=False)), state(layer))

@both
def test_f4_evaluation_changes_nothing(order):
    layer = made(order=order).eval()
    before = state(layer)
    layer(randn(5, 6)).sum().backward()
    layer(randn(2, 6)).sum().backward()
    layer.units(randn(5, 6))
    layer.train()
    with torch.no_grad(): layer(randn(5, 6))        # as methods do that only look
    layer.units(randn(5, 6))
    assert same(before, state(layer)) and layer.memories.grad is not None

@both
def test_f4_a_backward_in_evaluation_mode_is_of_the_forward(order):
    layer = made(order=order)
    y = layer(randn(3, 6))
    layer.eval()
    moved = state(layer)
    y.sum().backward()
    assert same(moved, state(layer))==(order=='paper'), 'what is due is what the forward was made for'

@both
def test_f5_every_forward_counts_once(order):
    "Several forwards and one backward: the last one's inputs were applied each time, the others' never"
    a,b = made(order=order),made(order=order)
    xs = [randn(2, 6, seed=i) for i in range(3)]
    sum(a(x).sum() for x in xs).backward()
    if order=='paper':
        for x in xs: b(x)
    else:
        for x in xs[::-1]: b.commit(b.as_keys(x))
    assert int(a.wins.sum())==6
    assert torch.equal(a.keys, b.keys) and torch.equal(a.mu, b.mu) and torch.equal(a.eta, b.eta)

@both
def test_f5_a_look_between_forward_and_backward_changes_nothing(order):
    a,b = made(order=order),made(order=order)
    y = a(randn(2, 6))
    with torch.no_grad(): a(randn(7, 6, seed=3))
    y.sum().backward()
    b(randn(2, 6)).sum().backward()
    assert same(state(a), state(b)) and torch.equal(a.memories.grad, b.memories.grad)

@both
def test_f5_two_backwards_of_one_forward_move_keys_once(order):
    layer = made(order=order)
    y = layer(randn(2, 6)).sum()
    y.backward(retain_graph=True)
    once = state(layer)
    y.backward()
    assert same(once, state(layer))

@both
def test_f6_a_unit_that_is_given_away_drops_gradients_of_before(order):
    "With accumulated gradients those of what it was before moved what it is now"
    layer = put(made(order=order, tau_mu=100, tau_eta=0, beta_k=0.), torch.eye(6)[:6].repeat(2, 1)[None,:8])
    layer.eta.copy_(torch.tensor([[9,1,1,1,1,1,1,1]]))
    layer.keys[0,6:] = -torch.eye(6)[4:]
    layer(torch.eye(6)[:1]).sum().backward()            # won by unit 0
    assert layer.memories.grad[0,0].any()
    layer.eta.copy_(torch.tensor([[9,1,1,1,1,1,1,1]]))
    x = torch.tensor([[0,1.,1,1,0,0]])                  # new to all: unit 0 is the oldest
    layer(x).sum().backward()
    assert int(layer.scrambles[0,0])==1
    got = layer.memories.grad[0,0]
    one = torch.cat([x[0],torch.ones(1)]).repeat(4)
    if order=='paper': torch.testing.assert_close(got/got.max(), one*(got[-1]/got.max()))
    else: assert not got.any()

def test_f6_of_a_forward_before_it_was_given_away_comes_no_gradient():
    layer = put(made(tau_mu=100, tau_eta=0, beta_k=0., delta=1), torch.eye(6).repeat(2, 1)[None,:8])
    layer.keys[0,6:] = -torch.eye(6)[4:]
    layer.eta.copy_(torch.tensor([[9,1,1,1,1,1,1,1]]))
    first = layer(torch.eye(6)[:1])
    layer.eta.copy_(torch.tensor([[9,1,1,1,1,1,1,1]]))
    x = torch.tensor([[0,1.,1,1,0,0]])
    second = layer(x)
    (first.sum()+second.sum()).backward()
    torch.testing.assert_close(layer.memories.grad[0,0], torch.cat([x[0],torch.ones(1)]).repeat(4))

def test_f9_a_key_never_overshoots_what_it_wins():
    "64 equal inputs made a euclidean key jump ten times too far"
    layer = put(made(in_features=2, distance='euclidean', beta_k=1., scramble=False, key_mem_units=2), [[[0.,0],[9,9]]])
    x = torch.tensor([[1.,1.]])
    layer(x.repeat(64, 1))
    torch.testing.assert_close(layer.keys[0,0], x[0])

@pytest.mark.parametrize('distance', ['cosine','dot'])
@both
def test_f10_zero_inputs_teach_keys_nothing(distance, order):
    layer = made(distance=distance, order=order)
    before = state(layer)
    layer(torch.zeros(3, 6)).sum().backward()
    assert same(before, state(layer))
    a,b = made(distance=distance, order=order),made(distance=distance, order=order)
    x = randn(2, 6)
    a(torch.cat([x[:1],torch.zeros(2, 6),x[1:]])).sum().backward()
    b(x).sum().backward()
    assert same(state(a), state(b)) and bool((a.keys.norm(dim=-1)>.1).all())

def test_f12_thresholds_that_are_missing():
    for k in ('tau_alpha','tau_mu','tau_eta'):
        with pytest.raises(MemoError, match=f'{k}: None, and scrambling needs a number; scramble=False'):
            made(**{k:None})
        made(**{k:None}, scramble=False)(randn(2, 6)).sum().backward()
    with pytest.raises(MemoError, match='beta_k must be a number from 0, found None'): made(beta_k=None)

@both
def test_f13_units_are_ranked_again_for_one_input_too(order):
    layer = put(made(in_features=2, key_mem_units=2, beta_k=5., scramble=False, order=order, delta=1, tau_eta=7),
                [[[1.,.1],[.8,-.9]]])
    layer.keys.copy_(F.normalize(layer.keys, dim=-1))
    layer(torch.tensor([[1.,-.3]])).sum().backward()
    k = int(layer.mu.argmax())
    assert int(layer.mu[0,k])==1 and int(layer.eta[0,k])==1
    assert k==int(layer.units(torch.tensor([[1.,-.3]]))[0][0])

def test_f17_bias_shadows_nothing():
    layer = made()
    layer(randn(1, 6))
    assert not hasattr(layer, 'bias') and '_backward_hooks' not in [k for k,v in vars(layer).items() if v]

# bad input

@pytest.mark.parametrize('order', ['paper','backward'])
@pytest.mark.parametrize('bad', [float('nan'),float('inf')])
@pytest.mark.parametrize('distance', ['cosine','euclidean','dot'])
def test_values_that_are_not_finite_leave_keys_alone(distance, bad, order):
    a,b = made(distance=distance, order=order),made(distance=distance, order=order)
    x = randn(3, 6)
    y = torch.cat([x[:2],torch.full((1,6), bad),x[2:]])
    y[2,1:] = 1.
    out = a(y)
    out.sum().backward()
    b(x).sum().backward()
    a.memories.grad = b.memories.grad = None
    assert same(state(a), state(b)) and not out[2].isfinite().all() and out[[0,1,3]].isfinite().all()

@pytest.mark.parametrize('kw,line', [
    (dict(psi='resize2d'), "psi must be one of identity, sign, resize"),
    (dict(key_size=3), "key_size: 3, and keys of psi='identity' are as wide as the input, 6; 'resize' is"),
    (dict(upd_m='WTA', upd_k=None), "upd_m: 'WTA' needs a winner of the keys"),
    (dict(upd_m='wta'), "upd_m must be one of vanilla, WTA"), (dict(upd_k='ad_hoc'), "upd_k must be one of ad_hoc_WTA"),
    (dict(distance='euclid'), "did you mean 'euclidean'"), (dict(order='hook'), "order must be one of paper, backward"),
    (dict(delta=0), "delta must be a whole number from 1"), (dict(key_mem_units=0), "key_mem_units must be"),
    (dict(beta_k=-1.), "beta_k must be a number from 0"), (dict(sigma=0), "sigma must be a number above 0"),
    (dict(tau_mu=-1), "tau_mu must be"), (dict(gamma_alpha=float('nan')), "gamma_alpha must be"),
    (dict(tau_alpha=float('inf')), "tau_alpha must be"), (dict(shared_keys=1), "shared_keys must be true or false"),
    (dict(in_features=0), "in_features must be"), (dict(units=3), "units: MemoryLinear does not read it")])
def test_bad_arguments_are_told_in_a_line(kw, line):
    with pytest.raises(MemoError, match=line) as e: made(**kw)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('x', [torch.zeros(2, 5),torch.zeros(2, 6, dtype=torch.long),torch.tensor(1.),None])
def test_inputs_that_do_not_fit(x):
    with pytest.raises(MemoError, match=r'MemoryLinear: an input is .*; floating-point \[\.\.\., 6\] is accepted'):
        made()(x)

# in the place of a linear layer

@both
@pytest.mark.parametrize('shared', [True,False])
def test_leading_dimensions_are_those_of_the_input(order, shared):
    a,b = made(order=order, shared_keys=shared),made(order=order, shared_keys=shared)
    x = randn(2, 3, 6)
    y,z = a(x),b(x.view(6, 6))
    assert y.shape==(2,3,4) and torch.equal(y.view(6, 4), z)
    assert same(state(a), state(b))
    assert a(x[0,0]).shape==(4,) and a.eval()(x[:0]).shape==(0,3,4)
    a.train()(x[:0]).sum().backward()
    n,w = a.units(x)
    assert n.shape==w.shape==((2,3,2) if shared else (2,3,4,2))
    torch.testing.assert_close(w.sum(-1), torch.ones(w.shape[:-1]))

@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 7), st.integers(1, 9), st.booleans(),
       st.sampled_from(['cosine','euclidean','dot']), st.booleans())
@settings(max_examples=40, deadline=None)
def test_properties(b, o, m, delta, shared, distance, bias):
    layer = made(out_features=o, key_mem_units=m, delta=delta, shared_keys=shared, distance=distance, bias=bias)
    for i in range(3):
        was = layer.keys.clone()
        x = randn(b, 6, seed=i)
        y = layer(x)
        assert y.shape==(b,o) and y.isfinite().all()
        q = 1 if shared else o
        assert int(layer.wins.sum())==b*q*(i+1) and bool((layer.mu<=layer.wins).all())
        assert bool((layer.eta>=b).all()), 'a unit that has just won is as old as the batch'
        if distance=='cosine': torch.testing.assert_close(layer.keys.norm(dim=-1), torch.ones(q, m))
        # at most one unit of a group is given away, and one moves for each input
        assert bool(((layer.keys!=was).any(-1).sum(1)<=b+1).all())
        n,w = layer.units(x)
        layer.zero_grad()
        y.sum().backward()
        won = torch.zeros(q, m, dtype=torch.bool)
        won.scatter_(1, (n[...,0] if shared else n[...,0]).reshape(b, q).T, True)
        assert not layer.memories.grad.view(q, m, -1)[~won].any(), 'others than winners learn'
        assert bool((w[...,:-1]>=w[...,1:]).all())

def test_it_may_be_all_of_a_learners_model(recwarn):
    "A Learner takes what it has not from its model: a name that callbacks set there is warned of"
    from fastai.vision.all import Callback, DataLoaders, Learner
    from memo.data.tensors import TensorDL
    dl = TensorDL(randn(12, 6), torch.arange(12)%4, bs=4, vocab=range(4))
    learn = Learner(DataLoaders(dl, dl, device='cpu'), made(), loss_func=F.cross_entropy, lr=.1)
    own = {*dir(Learner), *dir(Callback), 'learn', 'opt', 'dls', 'loss', 'pred', 'xb', 'yb', 'epoch', 'cbs'}
    assert not own & ({*dir(MemoryLinear)}-{*dir(nn.Module), 'forward'})
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert not [w for w in recwarn if 'shadowing' in str(w.message)] and int(learn.model.wins.sum())==12

def test_one_unit_is_a_linear_layer():
    with pytest.warns(UserWarning, match='delta is 3, and there are 1 units'): layer = made(key_mem_units=1, delta=3)
    lin = nn.Linear(6, 4)
    w = layer.memories.detach().view(4, 7)
    with torch.no_grad(): lin.weight.copy_(w[:,:6]), lin.bias.copy_(w[:,6])
    x = randn(5, 6)
    y,z = layer(x),lin(x)
    torch.testing.assert_close(y, z)
    F.cross_entropy(y, torch.arange(5)%4).backward()
    F.cross_entropy(z, torch.arange(5)%4).backward()
    torch.testing.assert_close(layer.memories.grad.view(4, 7)[:,:6], lin.weight.grad)
    torch.testing.assert_close(layer.memories.grad.view(4, 7)[:,6], lin.bias.grad)

def test_gradient_of_the_input_is_that_of_all_units():
    layer = made(delta=3, gamma_alpha=0.).double().eval()        # shares have no gradient
    x = randn(3, 6).double().requires_grad_()
    torch.autograd.gradcheck(layer, x)

@both
def test_a_frozen_layer_stands_still(order):
    layer = made(order=order).eval().requires_grad_(False)
    x = randn(2, 6).requires_grad_()
    layer(x).sum().backward()
    assert x.grad.any() and layer.memories.grad is None

def test_reset_begins_anew():
    layer = made()
    for i in range(5): layer(randn(9, 6, seed=i))
    w,s = layer.wins.clone(),layer.scrambles.clone()
    was = state(layer)
    layer.reset_parameters()
    assert not layer.mu.any() and bool((layer.eta==10).all()) and not torch.equal(was['keys'], layer.keys)
    assert torch.equal(w, layer.wins) and torch.equal(s, layer.scrambles)
    assert not torch.equal(was['memories'], layer.memories)
    torch.manual_seed(0)
    most = made(in_features=64, out_features=64).memories.detach().abs().max()
    assert float(most)==pytest.approx((64*65)**-.5, rel=1e-3)

@both
@pytest.mark.parametrize('dtype', [torch.bfloat16,torch.half])
def test_autocast_and_half_weights(order, dtype):
    layer = made(order=order, in_features=32)
    x = randn(5, 32)
    want,keys = copy.deepcopy(layer)(x),None
    with torch.autocast('cpu', dtype): y = layer(x)
    assert y.dtype==dtype
    torch.testing.assert_close(y.float(), want, atol=2e-2, rtol=5e-2)
    y.float().sum().backward()
    assert layer.memories.grad.dtype==layer.keys.dtype==torch.float and layer.memories.grad.any()
    low = made(order=order, in_features=32).to(dtype)
    y = low(x.to(dtype))
    y.sum().backward()
    assert y.dtype==low.keys.dtype==low.memories.grad.dtype==dtype and low.mu.dtype==torch.long

def test_similarities_are_not_rounded_under_autocast():
    layer = made(in_features=256, key_mem_units=64)
    x = randn(32, 256)
    want = layer.units(x)
    with torch.autocast('cpu', torch.bfloat16):
        got = layer.units(x)
        layer(x)
    assert torch.equal(want[0], got[0])
    plain = made(in_features=256, key_mem_units=64)
    plain(x)
    assert torch.equal(plain.keys, layer.keys)

@both
def test_checkpoints_give_the_same(order):
    a,b = made(order=order),made(order=order)
    for i in range(6):
        x,y = randn(3, 6, seed=i).requires_grad_(),randn(3, 6, seed=i).requires_grad_()
        for l in (a,b): l.zero_grad()
        checkpoint(a, x, use_reentrant=False).square().sum().backward()
        b(y).square().sum().backward()
        assert torch.equal(x.grad, y.grad) and torch.equal(a.memories.grad, b.memories.grad)
        assert same(state(a), state(b))

def test_the_old_checkpoint_is_refused():
    "It runs the layer without gradients first, so keys would never learn"
    with pytest.raises(MemoError, match='use_reentrant=False'):
        checkpoint(made(), randn(3, 6).requires_grad_(), use_reentrant=True).sum().backward()

@pytest.mark.parametrize('kw', [{},dict(shared_keys=False),dict(distance='euclidean'),dict(psi='resize', key_size=4),
                                dict(upd_k='grad_WTA')])
def test_it_is_exported(kw):
    layer = made(**kw)
    layer(randn(4, 6)).sum().backward()
    layer.eval()
    with torch.no_grad():
        p = torch.export.export(layer, (randn(3, 6),), dynamic_shapes=({0:torch.export.Dim('b')},))
        for b in (1,2,9): torch.testing.assert_close(p.module()(randn(b, 6, seed=b)), layer(randn(b, 6, seed=b)))

def test_per_sample_gradients_of_torch_func():
    layer = made(delta=3).eval()
    ps = {'memories':layer.memories.detach()}
    def loss(p, x): return torch.func.functional_call(layer, p, (x[None],)).square().sum()
    x = randn(3, 6)
    got = torch.func.vmap(torch.func.grad(loss), (None,0))(ps, x)['memories']
    for i in range(3):
        layer.zero_grad()
        layer(x[i:i+1]).square().sum().backward()
        torch.testing.assert_close(got[i], layer.memories.grad)

def test_two_threads_predict_what_one_does():
    layer = made(in_features=32, key_mem_units=64).eval()
    xs = [randn(40, 32, seed=i) for i in range(8)]
    want,got = [layer(x).detach() for x in xs],[None]*8
    def run(i):
        for _ in range(20): got[i] = layer(xs[i]).detach()
    ts = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for t in ts: t.start()
    for t in ts: t.join()
    assert all(torch.equal(a, b) for a,b in zip(want, got))

def test_backward_keeps_no_weights_for_each_input():
    "The published layer keeps b*m*u floats; here all that is kept is smaller than one gradient"
    layer = MemoryLinear(256, 50, key_mem_units=64, delta=4)
    x,kept = randn(200, 256),[]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.nbytes), t)[1], lambda t: t):
        y = layer(x)
    assert sum(kept)-layer.memories.nbytes < layer.memories.nbytes/2
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p: y.sum().backward()
    most = max((abs(o.cpu_memory_usage) for o in p.events()), default=0)
    assert most<2*layer.memories.nbytes, 'one operation makes more than two gradients'

# into a model

class Net(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.fc,self.body = nn.Linear(16, 3, bias=bias),nn.Linear(8, 16)    # declared in another order
    def forward(self, x): return self.fc(self.body(x).relu())

def test_the_classifier_is_replaced():
    m = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3, bias=False))
    assert to_memory_linear(m.eval(), key_mem_units=5) is m
    new = m[2]
    assert (new.in_features,new.out_features,new.has_bias,new.units_each,new.training)==(16,3,False,5,False)
    m = Net()
    to_memory_linear(m, x=randn(2, 8))
    assert isinstance(m.fc, MemoryLinear) and isinstance(m.body, nn.Linear)
    m = to_memory_linear(Net().double(), at='body')
    assert m.body.memories.dtype==torch.double and m(randn(2, 8).double()).shape==(2,3)

def test_a_pretrained_network_gets_one(timm=pytest.importorskip('timm')):
    m = timm.create_model('resnet18', num_classes=5)
    to_memory_linear(m, x=torch.zeros(2, 3, 32, 32))
    assert isinstance(m.get_classifier(), MemoryLinear) and m(torch.zeros(2, 3, 32, 32)).shape==(2,5)

def test_it_is_the_classifier_from_then_on(timm=pytest.importorskip('timm')):
    "For what asks for a model's classifier without inputs: groups of parameters, memories, this function again"
    from memo.heads.attach import find_place
    from memo.training.param_groups import body_head_splitter, head_module
    class Bare(nn.Module):
        def __init__(self): super().__init__(); self.body,self.fc = nn.Linear(8, 16),nn.Linear(16, 3)
        def forward(self, x): return self.fc(self.body(x).relu())
    m = to_memory_linear(Bare(), key_mem_units=5)
    assert head_module(m) is m.fc and [len(o) for o in body_head_splitter(m)]==[2,1]
    for at in (None,'fc'): assert find_place(m, at)==('fc',m.fc,True)
    with pytest.raises(MemoError, match="at: 'fc' is a MemoryLinear"): to_memory_linear(m)
    m = to_memory_linear(timm.create_model('resnet18', num_classes=5), key_mem_units=5)
    assert head_module(m) is m.fc and find_place(m, 'fc')[1:]==(m.fc,True)

def test_what_methods_keep_in_a_layer_goes_along():
    "The first layer of a network holds it"
    from fastai.vision.all import DataLoaders, Learner
    from memo.continual.replay import Replay
    from memo.data.tensors import TensorDL
    x,y = randn(20, 8),torch.arange(20)%3
    learn = Learner(DataLoaders(TensorDL(x, y, bs=5), TensorDL(x, y, bs=5), device='cpu'),
                    nn.Sequential(nn.Linear(8, 3)), loss_func=nn.CrossEntropyLoss(), cbs=Replay(10))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, .1)
        with pytest.warns(UserWarning, match='optimizer'): to_memory_linear(learn, key_mem_units=4)
        assert learn.model[0].replay is learn.replay.state and len(learn.replay.state)==10
        learn.fit(1, .1)
    assert int(learn.replay.state['ptr'])==40

def test_places_that_are_no_linear_layer():
    with pytest.raises(MemoError, match="at: 'mid' is not one of body, fc|at: 'mid' is not one of fc, body"):
        to_memory_linear(Net(), at='mid')
    with pytest.raises(MemoError, match="at: '1' is a ReLU; an nn.Linear is accepted"):
        to_memory_linear(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), at='1')
    with pytest.raises(MemoError, match='no nn.Linear in this ReLU'): to_memory_linear(nn.ReLU())
    with pytest.raises(MemoError, match='the model is an nn.Linear itself'): to_memory_linear(nn.Linear(2, 2))
    once = to_memory_linear(nn.Sequential(nn.Linear(3, 2)), at='0')
    with pytest.raises(MemoError, match="at: '0' is a MemoryLinear"): to_memory_linear(once)

def test_memories_of_other_kinds_find_their_place_beside_it():
    m = to_memory_linear(nn.Sequential(nn.Flatten(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), at='3')
    x = randn(4, 8)
    attach(m, head := RetrievalHead(SlotBank(10)), x=x)
    m(x)
    from memo.heads.attach import holder
    assert holder(m, head)[0]=='3'
    with pytest.raises(MemoError, match='detach'):
        n = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 3))
        attach(n, RetrievalHead(SlotBank(10)), at='1')
        to_memory_linear(n, at='1')
    detach(m)
