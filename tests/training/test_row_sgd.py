"row_sgd moves the memory units that had a part in a step, and nothing else; of other parameters it is fastai's SGD"
import copy
from functools import partial
import pytest, torch
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.optimizer import SGD
from fastai.vision.all import DataLoaders, Learner, nn
from torch.nn import functional as F
from memo.core import MemoError
from memo.data.tensors import TensorDL
from memo.layers.memory_linear import MemoryLinear
from memo.training.row_sgd import row_sgd, rows_with_gradient

def randn(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
def made(seed=0, n=6, o=4, **kw):
    torch.manual_seed(seed)
    return MemoryLinear(n, o, **dict(key_mem_units=12, tau_mu=5, tau_eta=10)|kw)
wide = dict(n=300, o=64, key_mem_units=40)      # of more than a megabyte: rows are noted, and stepped one by one

def step(layer, opt, x, y=None):
    y = torch.arange(len(x))%layer.out_features if y is None else y
    opt.zero_grad()
    F.cross_entropy(layer(x), y).backward()
    opt.step()

@pytest.mark.parametrize('kw', [{},wide,dict(shared_keys=False),dict(upd_m='vanilla', delta=3)])
@pytest.mark.parametrize('mom', [0.,.9])
def test_units_that_had_no_part_stand_still(kw, mom):
    layer = made(**kw, scramble=False)
    opt = row_sgd(list(layer.parameters()), .1, mom=mom, wd=.1)
    for i in range(6):
        was,m = layer.memories.detach().clone(),layer.memories
        step(layer, opt, randn(2, layer.in_features, seed=i))
        hit = m.grad.view(m.rows, -1).any(1)
        moved = (m!=was).view(m.rows, -1).any(1)
        assert torch.equal(moved, hit) and 0<int(hit.sum())<m.rows

@pytest.mark.parametrize('kw', [{},wide,dict(shared_keys=False)])
def test_without_decay_and_momentum_it_is_sgd(kw):
    a = made(**kw)
    b = copy.deepcopy(a)
    oa,ob = row_sgd(list(a.parameters()), .1),SGD(list(b.parameters()), .1)
    for i in range(8):
        step(a, oa, randn(3, a.in_features, seed=i))
        step(b, ob, randn(3, a.in_features, seed=i))
    torch.testing.assert_close(a.memories, b.memories, atol=1e-6, rtol=1e-6)
    assert torch.equal(a.keys, b.keys)

@pytest.mark.parametrize('kw', [{},wide])
@pytest.mark.parametrize('mom', [0.,.8])
def test_of_one_row_it_is_sgd_of_its_turns(kw, mom):
    "Each unit sees decay and momentum of the steps that it had a part in, as if there were no others"
    layer = made(**kw, scramble=False, delta=1)
    opt = row_sgd(list(layer.parameters()), .1, mom=mom, wd=.05)
    m = layer.memories
    want,avg = m.detach().clone()[0],torch.zeros_like(m[0].detach())
    for i in range(10):
        step(layer, opt, randn(1, layer.in_features, seed=i%3))
        for j in m.grad[0].any(1).nonzero().flatten():
            avg[j] = mom*avg[j]+m.grad[0,j]
            want[j] = want[j]*(1-.1*.05)-.1*avg[j]
        torch.testing.assert_close(m.detach()[0], want)

@pytest.mark.parametrize('mom,wd', [(0,0),(.9,.1),(0,.1)])
def test_other_parameters_get_fastais_sgd(mom, wd):
    torch.manual_seed(0)
    a = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    b = copy.deepcopy(a)
    oa,ob = row_sgd(list(a.parameters()), .1, mom=mom, wd=wd),SGD(list(b.parameters()), .1, mom=mom, wd=wd)
    for i in range(5):
        for m,o in ((a,oa),(b,ob)):
            o.zero_grad()
            m(randn(4, 5, seed=i)).square().sum().backward()
            o.step()
    for p,q in zip(a.parameters(), b.parameters()): assert torch.equal(p, q)

def test_a_unit_that_was_given_away_begins_without_momentum():
    layer = made(key_mem_units=2, tau_mu=100, tau_eta=0, beta_k=0., delta=1)
    with torch.no_grad(): layer.keys.copy_(torch.eye(6)[:2][None])
    opt = row_sgd(list(layer.parameters()), .1, mom=.9)
    for _ in range(3): step(layer, opt, torch.eye(6)[:1])
    layer.eta[0] = torch.tensor([50,1])         # the next that is new gets unit 0
    step(layer, opt, torch.eye(6)[5:])
    assert int(layer.scrambles[0,0])==1
    torch.testing.assert_close(opt.state[layer.memories]['grad_avg'][0,0], layer.memories.grad[0,0])

@pytest.mark.parametrize('what', ['copy','in place','data','other loss','accumulated','twice'])
def test_whatever_else_puts_a_gradient_on_a_row_moves_it(what):
    "Which rows the layer noted is not believed where the gradient is another one by now"
    layer = made(**wide, scramble=False)
    opt = row_sgd(list(layer.parameters()), .1)
    x,m = randn(1, 300),layer.memories
    opt.zero_grad()
    loss = layer(x).square().sum()
    if what=='other loss': (loss+m.square().sum()).backward()
    else:
        loss.backward()
        assert len(m.touched.rows)==1
    if what=='copy': m.grad = m.grad+1
    if what=='in place': m.grad.add_(1)
    if what=='data': m.grad.data.add_(1)
    if what=='accumulated': layer(randn(1, 300, seed=3)).square().sum().backward()
    if what=='twice': m.square().sum().backward()
    hit = m.grad.view(m.rows, -1).any(1).nonzero().flatten().tolist()
    assert rows_with_gradient(m)==hit and len(hit)==(2 if what=='accumulated' else m.rows)
    was = m.detach().clone()
    opt.step()
    torch.testing.assert_close(m.detach(), was-.1*m.grad)

@pytest.mark.parametrize('opt', [partial(torch.optim.Adam, lr=.01),partial(torch.optim.AdamW, lr=.01),
                                 partial(torch.optim.SGD, lr=.1, momentum=.9)])
def test_gradients_are_dense_for_any_optimizer(opt):
    layer = made(**wide)
    step(layer, row_sgd(list(layer.parameters()), .1), randn(2, 300))      # nothing of it stays
    opt = opt(layer.parameters())
    for i in range(3): step(layer, opt, randn(2, 300, seed=i))
    g = layer.memories.grad
    assert g.layout==torch.strided and g.isfinite().all()
    torch.nn.utils.clip_grad_norm_(layer.parameters(), .1)

def test_it_resumes():
    a = made(**wide)
    opt = row_sgd(list(a.parameters()), .1, mom=.9, wd=.01)
    for i in range(5): step(a, opt, randn(2, 300, seed=i))
    b = made(1, **wide)
    b.load_state_dict(a.state_dict())
    other = row_sgd(list(b.parameters()), .5, mom=.1)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    for i in range(5, 10):
        step(a, opt, randn(2, 300, seed=i))
        step(b, other, randn(2, 300, seed=i))
    assert all(torch.equal(p, q) for p,q in zip(a.state_dict().values(), b.state_dict().values()))

def learner(layer, n=64, bs=4, **kw):
    x,y = randn(n, layer[0].in_features),torch.arange(n)%4
    dls = DataLoaders(TensorDL(x, y, bs=bs, shuffle=False), TensorDL(x, y, bs=bs))
    return Learner(dls, layer, loss_func=nn.CrossEntropyLoss(), opt_func=partial(row_sgd, mom=.5), lr=.1,
                   splitter=lambda m: [list(m[0].parameters()), list(m[1].parameters())], **kw)
def net(**kw):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 300), made(**wide|dict(o=4, key_mem_units=300)|kw))

def fitted(learn, epochs=2):
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs)
    return learn

@pytest.mark.parametrize('cbs', [[],[GradientAccumulation(8)],[GradientClip(.1)]])
def test_in_a_learner_units_that_never_won_stand_still(cbs):
    m = net(scramble=False)
    was = m[1].memories.detach().clone()
    learn = fitted(learner(m, cbs=cbs, wd=.1))
    stood = (m[1].memories==was).all(-1)
    assert torch.equal(stood, m[1].wins==0) and 0<int(stood.sum())<300

def test_accumulated_steps_are_those_of_larger_batches():
    "Keys stand still here, so that what is read does not depend on the batch"
    a,b = net(scramble=False, beta_k=0.),net(scramble=False, beta_k=0.)
    fitted(learner(a, bs=4, cbs=GradientAccumulation(16)))
    fitted(learner(b, bs=16))
    was = net(scramble=False, beta_k=0.)
    # fastai adds up the means of four small batches
    da,db = ((m[1].memories-was[1].memories).detach() for m in (a,b))
    assert torch.equal(da.any(-1), db.any(-1)) and float(F.cosine_similarity(da.flatten(), db.flatten(), 0))>.9

def test_loss_scaling_changes_nothing():
    a,b = net(scramble=False),net(scramble=False)
    for m,scale in ((a,1.),(b,64.)):
        opt = row_sgd(list(m.parameters()), .1, wd=.1)
        for i in range(4):
            opt.zero_grad()
            (F.cross_entropy(m(randn(4, 8, seed=i)), torch.arange(4))*scale).backward()
            for p in m.parameters():
                if p.grad is not None: p.grad.mul_(1/scale)
            opt.step()
    for p,q in zip(a.parameters(), b.parameters()): torch.testing.assert_close(p, q)

def test_a_grad_scaler_of_torch_takes_it():
    m = net(scramble=False)
    opt,scaler = row_sgd(list(m.parameters()), .1),torch.amp.GradScaler('cpu', init_scale=8.)
    for bad in (False,True):
        before = m[1].memories.detach().clone()
        opt.zero_grad()
        loss = F.cross_entropy(m(randn(4, 8)), torch.arange(4))*(float('inf') if bad else 1)
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
        assert torch.equal(before, m[1].memories)==bad
    assert scaler.get_scale()==4.

def test_freezing_and_unfreezing():
    m = net()
    learn = learner(m)
    learn.freeze()
    was = m[0].weight.detach().clone()
    fitted(learn, 1)
    assert torch.equal(was, m[0].weight) and m[1].memories.requires_grad
    learn.unfreeze()
    fitted(learn, 1)
    assert not torch.equal(was, m[0].weight)

@pytest.mark.parametrize('kw', [dict(mom=-1),dict(wd=float('nan')),dict(wd='much')])
def test_bad_arguments(kw):
    with pytest.raises(MemoError, match=f'{next(iter(kw))} must be a number from 0'):
        row_sgd(list(made().parameters()), .1, **kw)
