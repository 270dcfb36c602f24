"EWC and LwF against their formulas written out, in a learner and in a loop of one's own; published faults C1 and C2"
import copy, itertools, warnings
from types import SimpleNamespace
import pytest, torch
import torch.nn.functional as F
from fastai.vision.all import (Adam, BCEWithLogitsLossFlat, Callback, CrossEntropyLossFlat, DataLoaders,
                               GradientAccumulation, Learner, SGD, load_learner, nn)
from torch.utils.data import DataLoader as TorchDL
from contracts.made import StopAt
from helpers.digit_streams import digit_loaders, digit_net, digit_stream, stream_learner
from helpers.errors import err
from helpers.half import Half
from helpers.learners import quietly, snap
from helpers.tensors import close, draw, gen
import memo.continual.stream_fit
from memo.banks.slots import SlotBank
from memo.continual.distillation import LwF, distillation
from memo.continual.penalties import EWC, Fisher, fisher_information, one_by_one, together
from memo.data.items import item_ids
from memo.data.tensors import TensorDL
from memo.training.memory_callback import MemoryCallback

def data(n=40, d=5, c=4, seed=0):
    x = draw(n, d, seed=seed)
    return x,torch.randint(c, (n,), generator=gen(seed))
def loader(x, y, bs=8, **kw): return TorchDL(list(zip(x, y)), bs, **kw)
def mlp(d=5, c=4, seed=0, double=True):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(d, 6), nn.Tanh(), nn.Linear(6, c))
    return net.double() if double else net
def squared(net, x, y):
    "The squared gradients of log p(y|x) of one sample, by name"
    net.zero_grad()
    F.log_softmax(net(x[None]), 1)[0,y].backward()
    res = {k:p.grad.clone()**2 for k,p in net.named_parameters()}
    net.zero_grad(set_to_none=True)
    return res
def mean_of(ds): return {k:sum(d[k] for d in ds)/len(ds) for k in ds[0]}
def alike(a, b, tol=1e-9):
    assert a.keys()==b.keys()
    for k in a: close(a[k], b[k], tol)

def test_empirical_fisher_is_the_mean_of_squared_gradients_of_samples():
    net,(x,y) = mlp(),data()
    x = x.double()
    want = mean_of([squared(net, a, b) for a,b in zip(x, y)])
    for bs in (1, 7, 40): alike(fisher_information(net, loader(x, y, bs), 'empirical'), want)

@pytest.mark.parametrize('unknown', [-1, -100, 2])
def test_items_without_a_class_tell_nothing(unknown):
    "-1, and the class that the learner's loss leaves out"
    net,(x,y) = mlp(),data()
    x,y = x.double(),y.clone()
    y[:3] = unknown
    known = (y>=0) & (y!=2)
    want = mean_of([squared(net, a, b) for a,b in zip(x[known], y[known])])
    f = Fisher(net, 'empirical', learn=SimpleNamespace(loss_func=nn.CrossEntropyLoss(ignore_index=2)), many=False)
    for at in range(0, len(y), 7): f.add((x[at:at+7],), (y[at:at+7],))
    alike(f.mean(), want)
    f = Fisher(net, 'empirical')
    f.add((x[:3],), (torch.full((3,), -1),))
    assert 'no class in it is known' in err(f.mean)

def test_sampled_fisher_is_the_expectation_over_the_models_own_answers():
    net,x = mlp(),data(2)[0].double()
    want = {}
    for a in x:
        p = F.softmax(net(a[None]), 1)[0].detach()
        for c in range(4):
            for k,v in squared(net, a, c).items(): want[k] = want.get(k, 0)+p[c]*v/2
    got = fisher_information(net, loader(x.repeat(4000, 1), torch.zeros(8000, dtype=torch.long), 500))
    for k in want: torch.testing.assert_close(got[k], want[k], rtol=.1, atol=.02*float(want[k].max()))

def test_draws_of_single_rows_differ():
    "A batch of one, each time: labels are drawn by the step, not the same quantile again and again"
    net = nn.Linear(3, 2)
    nn.init.zeros_(net.weight), nn.init.zeros_(net.bias)
    f = [Fisher(net, seed=i) for i in range(20)]
    ys = [int(o.targets((torch.zeros(1, 3),), ())) for o in f]
    assert 4<sum(ys)<16

@pytest.mark.parametrize('net', [nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(.5),
                                              nn.Flatten(), nn.Linear(108, 4))], ids=['convs'])
def test_rows_at_once_are_those_one_by_one(net):
    x,y = draw(6, 1, 8, 8),torch.arange(6)%4
    net.train()(x)
    ps = dict(net.eval().named_parameters())
    alike(together(net, {k:p.detach() for k,p in ps.items()}, (x,), y), one_by_one(net, ps, (x,), y), 1e-5)

class Recurrent(nn.Module):
    "`vmap` has no rule for it"
    def __init__(self):
        super().__init__()
        self.rnn,self.out = nn.LSTM(5, 6, batch_first=True),nn.Linear(6, 4)
    def forward(self, x):
        z = self.rnn(x[:,None])[0][:,-1]
        if float(z.sum())>1e9: z = z*2
        return self.out(z)

def test_a_network_that_vmap_cannot_run_is_asked_row_by_row():
    net,(x,y) = Recurrent().double(),data(10)
    x = x.double()
    f = Fisher(net, 'empirical')
    f.add((x,), (y,))
    assert f.way is one_by_one
    alike(f.mean(), mean_of([squared(net, a, b) for a,b in zip(x, y)]))

def test_fault_c1_squared_mean_gradients():
    "Published code squares the gradient of a batch, which shrinks with its size, and divides old information anew"
    net,(x,y) = mlp(),data(64)
    x = x.double()
    true = sum(v.sum() for v in fisher_information(net, loader(x, y, 16), 'empirical').values())
    of_batches = 0.
    for a,b in loader(x, y, 16):
        net.zero_grad()
        F.cross_entropy(net(a), b).backward()
        of_batches += sum(float((p.grad**2).sum()) for p in net.parameters())/4
    assert of_batches<.5*true
    close(sum(v.sum() for v in fisher_information(net, loader(x, y, 1), 'empirical').values()), true, 1e-9)
    ewc = EWC(labels='empirical')
    ewc.consolidate(net, loader(x, y, 16))
    once = ewc.state['fisher 0.weight'].clone()
    ewc.consolidate(net, loader(x, y, 4))
    close(ewc.state['fisher 0.weight'], 2*once, 1e-9)      # the ratio was 1.25

def walked(net, seed):
    with torch.no_grad():
        for p in net.parameters(): p += .3*torch.randn(p.shape, generator=gen(seed)).to(p.dtype)
def gradient(net, loss):
    net.zero_grad(set_to_none=True)
    loss.backward()
    return {k:p.grad for k,p in net.named_parameters()}

def three_consolidations(**kw):
    net,ewc,seen = mlp(),EWC(weight=3., labels='empirical', **kw),[]
    for i in range(3):
        x,y = data(16, seed=i)
        dl = loader(x.double(), y)
        ewc.consolidate(net, dl)
        seen.append((fisher_information(net, dl, 'empirical'),{k:p.detach().clone() for k,p in net.named_parameters()}))
        walked(net, i)
    return net,ewc,seen

def test_penalty_is_the_sum_over_experiences():
    net,ewc,seen = three_consolidations()
    def want(): return 3/2*sum((F[k]*(p-at[k])**2).sum() for F,at in seen for k,p in net.named_parameters())
    close(ewc.penalty(), want(), 1e-9)
    alike(gradient(net, ewc.penalty()), gradient(net, want()))
    assert len(ewc.state.tensors())==2*4+1, 'room for one experience'

def test_penalty_online():
    net,ewc,seen = three_consolidations(gamma=.7)
    f = {k:.49*seen[0][0][k]+.7*seen[1][0][k]+seen[2][0][k] for k in seen[0][0]}
    want = 3/2*sum((f[k]*(p-seen[2][1][k])**2).sum() for k,p in net.named_parameters())
    close(ewc.penalty(), want, 1e-9)

@pytest.mark.parametrize('gamma', [None, .5])
def test_a_grown_head_holds_its_old_rows(gamma):
    "Part of C1: published code crashes"
    x,y = data(16)
    net,ewc = mlp(double=False),EWC(gamma=gamma, labels='empirical')
    ewc.consolidate(net, loader(x, y))
    f,old = {k:v.clone() for k,v in ewc.state.tensors().items()},net[2]
    net[2] = nn.Linear(6, 7)
    with torch.no_grad():
        net[2].weight[:4],net[2].bias[:4] = old.weight,old.bias
        close(ewc.penalty(), 0.)
        net[2].weight[4:] += 5
        close(ewc.penalty(), 0.)
        net[2].weight[1] += 1
    close(ewc.penalty(), 500*f['fisher 2.weight'][1].sum(), 1e-3)
    ewc.consolidate(net, loader(x, y+3))
    assert ewc.state['fisher 2.weight'].shape==(7,6)
    walked(net, 0)
    ewc.penalty().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())

def test_a_parameter_of_another_shape_is_free_and_none_left_is_said():
    x,y = data(16)
    net,ewc = mlp(double=False),EWC()
    ewc.consolidate(net, loader(x, y))
    walked(net, 1)
    was = ewc.penalty()
    net[2] = nn.Linear(6, 3)
    assert 0<ewc.penalty()<was
    assert 'no parameter that it holds' in err(lambda: ewc.penalty(nn.Linear(2, 2)))

def test_consolidating_leaves_everything_as_it_was():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(.5), nn.Linear(6, 4))
    net[3].eval()
    x,y = data(16)
    g = gen(3)
    dl = loader(x, y, shuffle=True, generator=g)
    F.cross_entropy(net(x), y).backward()
    was,grads,modes = snap(net),[p.grad.clone() for p in net.parameters()],[m.training for m in net.modules()]
    rng,own = torch.get_rng_state(),g.get_state()
    EWC().consolidate(net, dl)
    assert torch.equal(rng, torch.get_rng_state()) and torch.equal(own, g.get_state())
    assert [m.training for m in net.modules()]==modes and all(torch.equal(was[k], v) for k,v in snap(net).items())
    assert all(torch.equal(a, p.grad) for a,p in zip(grads, net.parameters()))

def test_samples_bound_the_work():
    calls = []
    net = mlp(double=False)
    net.register_forward_pre_hook(lambda m, a: calls.append(len(a[0])))
    x,y = data(64)
    f = fisher_information(net, loader(x, y, 8), 'empirical', samples=20)
    assert sum(calls)<=20
    alike(f, fisher_information(net, loader(x[:20], y[:20], 8), 'empirical'), 1e-6)

def test_frozen_layers_are_left_out_and_nothing_trained_is_said():
    x,y = data(16)
    net = mlp(double=False)
    net[0].requires_grad_(False)
    ewc = EWC()
    ewc.consolidate(net, loader(x, y))
    assert {k for k in ewc.state.tensors() if k.startswith('fisher')}=={'fisher 2.weight','fisher 2.bias'}
    net.requires_grad_(False)
    assert 'nothing to hold' in err(lambda: EWC().consolidate(net, loader(x, y)))

def test_samples_that_are_not_finite_are_left_out():
    x,y = data(16)
    net = mlp(double=False)
    want = fisher_information(net, loader(x[1:], y[1:]), 'empirical')
    x[0] = float('nan')
    with pytest.warns(UserWarning, match='1 of 16'): got = fisher_information(net, loader(x, y), 'empirical')
    alike(got, want, 1e-6)
    assert 'diverged' in err(lambda: fisher_information(net, loader(x*float('nan'), y)))
    assert 'empty' in err(lambda: fisher_information(net, []))

def test_no_labels_and_labels_of_another_kind():
    x,y = data(16)
    net = mlp(double=False)
    alone = TorchDL(list(x), 8)
    assert fisher_information(net, alone)['0.weight'].isfinite().all()
    assert 'no labels' in err(lambda: fisher_information(net, alone, 'empirical'))
    assert 'one class an item' in err(lambda: fisher_information(net, loader(x, F.one_hot(y, 5).float()), 'empirical'))

def squared_many(net, x, y):
    "The squared gradients of log p(y|x) of one sample with a sigmoid for each output, by name"
    net.zero_grad()
    p = net(x[None])[0].sigmoid()
    (y*p.log()+(1-y)*(1-p).log()).sum().backward()
    res = {k:p.grad.clone()**2 for k,p in net.named_parameters()}
    net.zero_grad(set_to_none=True)
    return res

class Several:
    "Targets 0 and 1 for each output"
    def __init__(self): self.x,self.y = draw(40, 5).double(),(draw(40, 4, seed=1)>.3).double()
    def loaders(self): return DataLoaders(loader(self.x, self.y), loader(self.x, self.y))
    def learner(self, net, loss): return Learner(self.loaders(), net, loss_func=loss, opt_func=SGD)

@pytest.mark.parametrize('loss', [None,BCEWithLogitsLossFlat(),nn.BCEWithLogitsLoss()], ids=['model','fastai','torch'])
def test_fisher_of_several_labels_is_that_of_sigmoids(loss):
    net,d = mlp(),Several()
    of = net if loss is None else d.learner(net, loss)
    want = mean_of([squared_many(net, a, b) for a,b in zip(d.x, d.y)])
    alike(fisher_information(of, loader(d.x, d.y), 'empirical'), want, 1e-7)

def test_sampled_fisher_of_several_labels():
    "Of each output by itself: the expectation over all 16 answers"
    net,d = mlp(),Several()
    x,want = d.x[:2],{}
    for a in x:
        p = net(a[None])[0].sigmoid().detach()
        for bits in itertools.product((0.,1.), repeat=4):
            y = torch.tensor(bits).double()
            for k,v in squared_many(net, a, y).items(): want[k] = want.get(k, 0)+torch.where(y>0, p, 1-p).prod()*v/2
    dl = loader(x.repeat(4000, 1), d.y[:2].repeat(4000, 1), 500)
    got = fisher_information(d.learner(net, BCEWithLogitsLossFlat()), dl)
    for k in want: torch.testing.assert_close(got[k], want[k], rtol=.1, atol=.02*float(want[k].max()))

def test_soft_targets_of_a_softmax_stay_its_own():
    net,d = mlp(),Several()
    one = F.one_hot(d.y.long().sum(1).clamp(max=3), 4).double()
    learn = d.learner(net, CrossEntropyLossFlat())
    want = fisher_information(net, loader(d.x, one.argmax(1)), 'sampled')
    alike(fisher_information(learn, loader(d.x, one), 'sampled'), want)

def test_one_output_that_says_yes_or_no():
    net,d = mlp(c=1),Several()
    learn = d.learner(net, BCEWithLogitsLossFlat())
    want = mean_of([squared_many(net, a, b) for a,b in zip(d.x, d.y[:,:1])])
    for y in (d.y[:,:1],d.y[:,0]): alike(fisher_information(learn, loader(d.x, y), 'empirical'), want, 1e-7)

def test_labels_that_are_unknown_count_for_nothing():
    net,d = mlp(),Several()
    y = d.y.clone()
    y[:,2] = -1
    y[::2,1] = float('nan')
    f = fisher_information(d.learner(net, BCEWithLogitsLossFlat()), loader(d.x, y), 'empirical')
    assert f['2.weight'][2].abs().max()==0 and f['2.weight'][1].min()>0

@pytest.mark.parametrize('every', [None,3])
@pytest.mark.parametrize('kind,says', [('far below',False), ('just below',False), ('above',True)])
def test_a_rate_that_overshoots_is_said_once(kind, says, every):
    "Steps of plain gradient descent on a spring: at 2 / its stiffness they grow, and the loss with them"
    s = digit_stream(2)
    learn,cb = stream_learner(s, lr=.01),EWC(1.)
    learn.add_cb(cb)
    cb.consolidate(learn, s.dls.train)
    stiff = max(float(v.max()) for k,v in cb.state.tensors().items() if k.startswith('fisher'))
    cb.weight,cb.every = {'far below':.1, 'just below':.95, 'above':1.2}[kind]*2/.01/stiff,every
    cb.gamma = None if every is None else 1.     # what is held stays
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        quietly(learn, learn.fit, 2)
    said = [str(o.message) for o in ws if 'EWC: weight' in str(o.message)]
    assert len(said)==says and all('is stable' in o for o in said)

def test_a_rate_of_adam_is_not_judged():
    s = digit_stream(2)
    learn = Learner(s.dls, digit_net(), loss_func=CrossEntropyLossFlat(), opt_func=Adam, cbs=(cb := EWC(1e6)), lr=1e-3)
    cb.consolidate(learn, s.dls.train)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='EWC')
        quietly(learn, learn.fit, 1)

def test_half_precision_keeps_small_numbers():
    "Squares of small gradients are zero in half precision"
    net = mlp(double=False)
    ewc = EWC()
    ewc.consolidate(net, loader(*data(16)))
    ewc.state['fisher 0.weight'] *= 1e-9
    small = ewc.state['fisher 0.weight'].clone()
    net.ewc = ewc.state
    net.half()
    assert torch.equal(ewc.state['fisher 0.weight'], small) and ewc.state['fisher 0.weight'].dtype==torch.float32
    p = ewc.penalty()
    assert p.dtype==torch.float32 and p.isfinite()

def test_it_says_of_which_model():
    x,y = data(16)
    ewc,net = EWC(),mlp(double=False)
    assert 'of which model' in err(ewc.penalty)
    assert EWC().penalty(net)==0
    ewc.consolidate(net, loader(x, y))
    new = EWC()
    new.state.load_state_dict(ewc.state.state_dict())
    walked(net, 0)
    assert new.penalty(net)==ewc.penalty()>0

# distillation

def test_distillation_is_its_formula():
    z,old = draw(6, 5).double(),draw(6, 4, seed=1).double()
    at,T = torch.tensor([0,2,3]),2.5
    want = 0.
    for a,b in zip(z, old):
        p,q = ((v[at]/T).exp()/(v[at]/T).exp().sum() for v in (b, a))
        want += T**2*sum(p[i]*(p[i].log()-q[i].log()) for i in range(3))/6
    close(distillation(z, old, at, T), want, 1e-12)

def test_fault_c2_cross_entropy_for_divergence():
    "Published code is at the entropy of the teacher when nothing is lost, ignores its weight and crashes on growth"
    net,x = mlp(double=False),data(16)[0]
    for w in (1., 3.):
        lwf = LwF(weight=w, temperature=2.)
        lwf.consolidate(net)
        assert lwf.penalty(net(x), x).abs()<1e-6
        changed = net(x)+draw(16, 4, seed=2)
        if w==1: one = lwf.penalty(changed, x)
        else: close(lwf.penalty(changed, x), 3*one)
    old = net[2]
    net[2] = nn.Linear(6, 7)
    with torch.no_grad(): net[2].weight[:4],net[2].bias[:4] = old.weight,old.bias
    assert lwf.penalty(net(x), x).abs()<1e-6, 'new rows count'

def test_the_teacher_stays_as_it_was():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(.5), nn.Linear(6, 4))
    x = data(16)[0]
    net(x)
    lwf = LwF()
    lwf.consolidate(net)
    was = copy.deepcopy(net).eval()(x)
    for _ in range(3):
        net(x*3+1)
        walked(net, 0)
    state,modes,rng = snap(net),[m.training for m in net.modules()],torch.get_rng_state()
    got = lwf.state.answers(net, (x,))
    close(got, was, 1e-6)
    assert not got.requires_grad and [m.training for m in net.modules()]==modes
    assert torch.equal(rng, torch.get_rng_state()) and all(torch.equal(state[k], v) for k,v in snap(net).items())

def test_classes_that_were_seen_are_the_old_ones():
    lwf = LwF()
    lwf.state.see(torch.tensor([0,2,-1]), 4)
    net = mlp(double=False)
    lwf.consolidate(net)
    lwf.state.see(torch.tensor([3]), 6)     # a grown head
    assert lwf.state.classes(4).tolist()==[0,2] and lwf.state['seen'].tolist()==[True,False,True,True,False,False]

# in a learner

def trained(cbs, n=3, epochs=2, by='class', **kw):
    s = digit_stream(n, by)
    learn = stream_learner(s, **kw)
    return quietly(learn, learn.fit_stream, s, epochs, cbs=cbs),learn

def weights(learn): return {k:p.detach().clone() for k,p in learn.model.named_parameters()}

class Losses(Callback):
    "What is back-propagated and logged of each training batch"
    order = 99
    def __init__(self): self.seen = []
    def after_loss(self):
        if not self.training: return
        self.seen.append((float(self.loss_grad), float(self.loss), float(F.cross_entropy(self.pred, self.y))))

def consolidated(learn, cls=EWC, **kw):
    "A method in a learner that has seen its first data"
    cb = cls(**kw)
    learn.add_cb(cb)
    cb.consolidate(*((learn,learn.dls.train) if cls is EWC else (learn,)))
    with torch.no_grad():
        for p in learn.model.parameters(): p += .1*draw(*p.shape)
    return cb

@pytest.mark.parametrize('cls', [EWC,LwF])
def test_what_is_added_is_the_penalty_in_training_only(cls):
    s = digit_stream()
    learn = stream_learner(s, lr=0.)
    cb,seen = consolidated(learn, cls, weight=10.),Losses()
    quietly(learn, learn.fit, 1, cbs=seen)
    assert len(seen.seen)>3
    for a,b,ce in seen.seen:
        assert a-ce>1e-3
        if cls is EWC: close(a-ce, cb.penalty(), 1e-3)
        close(a, b)
    valid = quietly(learn, learn.validate)[0]
    learn.remove_cb(cb)
    close(valid, quietly(learn, learn.validate)[0])

@pytest.mark.parametrize('cls', [EWC,LwF])
def test_accumulated_batches_have_it_once(cls):
    "Half batches, two of them a step, move the weights as one does"
    res = []
    for bs,acc in ((16,[]), (8,[GradientAccumulation(16)])):
        s = digit_stream()
        learn = stream_learner(s)
        cb = consolidated(learn, cls, weight=10.)
        x,y = (torch.cat(o)[:16] for o in zip(*learn.dls.train))
        learn.dls = DataLoaders(TensorDL(x, y, bs=bs), learn.dls.valid, device='cpu')
        was,seen = weights(learn),Losses()
        quietly(learn, learn.fit, 1, .05, cbs=[*acc,seen])
        res.append((weights(learn),sum(o[1] for o in seen.seen)/len(seen.seen)))
        assert any(not torch.equal(v, was[k]) for k,v in weights(learn).items())
    alike(res[0][0], res[1][0], 1e-5)
    close(res[0][1], res[1][1], 1e-4)

def test_two_methods_in_any_order():
    def both(cbs): return weights(trained(cbs)[1])
    a,b = both([EWC(50.), LwF(2.)]),both([LwF(2.), EWC(50.)])
    alike(a, b, 1e-5)
    one = both([EWC(50.)])
    assert any(not torch.allclose(a[k], one[k]) for k in a)

def test_in_half_precision():
    _,learn = trained([EWC(50.), LwF(2.), Half()])
    assert all(p.isfinite().all() for p in learn.model.parameters())

def test_a_memory_beside_them():
    "It stores the labels of the items, whatever the loss is; what answers in its place in evaluation is no teacher"
    bank = SlotBank(64, policy='fifo')
    r,learn = trained([MemoryCallback(bank, head='vote'), LwF(5.), EWC(50.)], epochs=1)
    n = len(bank)
    assert n==64
    dl = digit_loaders(classes=6).train
    known = {int(i):int(y) for i,y in zip(item_ids(dl), dl.dataset.y)}
    assert all(known[int(i)]==int(y) for i,y in zip(bank.items[:n], bank.labels[:n]))

def test_the_teacher_answers_as_is_trained():
    "A memory that votes in evaluation takes no part in it"
    s = digit_stream()
    bank = SlotBank(64, policy='fifo')
    learn = stream_learner(s, [MemoryCallback(bank, head='vote')])
    quietly(learn, learn.fit, 1)
    lwf = LwF()
    learn.add_cb(lwf)
    lwf.consolidate(learn)
    x = learn.dls.train.dataset.x[:8]
    with torch.no_grad():
        for p in learn.model.parameters(): p += 0
        said = lwf.state.answers(learn.model, (x,))
        with learn.memory.off(): close(said, learn.model.eval()(x))
        assert not torch.allclose(said, learn.model(x))
    assert len(bank)==64

@pytest.mark.parametrize('make', [lambda: EWC(50.), lambda: EWC(50., gamma=.5, labels='empirical'),
                                  lambda: EWC(50., every=3), lambda: LwF(5.)], ids=['ewc','online','every','lwf'])
@pytest.mark.parametrize('stop', [9,17])
def test_resumed_in_the_middle(tmp_path, make, stop):
    "In a learner of its own, as in another process: Fisher information and teacher come out of the checkpoint"
    s = digit_stream()
    def run(resume=False, **kw):
        learn = stream_learner(s, seed=3 if resume else 0)
        cbs = [make(), *kw.get('cbs', ())]
        return learn,quietly(learn, learn.fit_stream, s, 2, cbs=cbs, checkpoint=kw.get('at'), resume=resume)
    whole,a = run()
    with pytest.raises(KeyboardInterrupt): run(at=tmp_path, cbs=[StopAt(stop)])
    again,b = run(True, at=tmp_path)
    alike(snap(whole.model), snap(again.model), 0)
    assert (a.matrix==b.matrix).all()

def test_every_consolidates_by_itself():
    "Steps of a batch each, as a running mean; told of nothing"
    s = digit_stream()
    learn,ewc = stream_learner(s),EWC(0., every=2, gamma=.75, labels='empirical')
    want = {}
    class Restated(Callback):
        order = EWC.order+1
        def after_step(self):
            n = learn.train_iter+1
            if n%2: return
            f = mean_of([squared_of(learn.model, x, y) for x,y in zip(self.x, self.y)])
            for k,v in f.items(): want[k] = .75*want.get(k, 0)+.25*v
    quietly(learn, learn.fit, 2, cbs=[ewc,Restated()])
    for k in want: close(ewc.state[f'fisher {k}'], want[k], 1e-5)
    at = ewc.state['weight 0.weight'].clone()
    ewc.learn = learn
    ewc.after_experience()
    assert torch.equal(at, ewc.state['weight 0.weight'])

def squared_of(net, x, y):
    "The same beside a training"
    gs = torch.autograd.grad(F.log_softmax(net(x[None]), 1)[0,y], [*net.parameters()])
    return {k:g**2 for (k,_),g in zip(net.named_parameters(), gs)}

def test_an_export_has_nothing_of_it(tmp_path):
    s = digit_stream()
    learn = stream_learner(s, [EWC(50.), LwF(2.)])
    learn.path = tmp_path
    quietly(learn, learn.fit_stream, s, 1)
    learn.export()
    new = load_learner(tmp_path/'export.pkl')
    assert not any('fisher' in k or 'then' in k for k in new.model.state_dict())
    assert any('fisher' in k for k in learn.model.state_dict())
    raw = (tmp_path/'export.pkl').read_bytes()
    assert learn.ewc.state['fisher 0.weight'].numpy().tobytes()[:256] not in raw
    learn.save('m')
    assert learn.lwf.state['then 0.weight'].numpy().tobytes()[:256] in (tmp_path/'models'/'m.pth').read_bytes()

@pytest.mark.parametrize('cbs', [lambda: [EWC(50.)], lambda: [LwF(2.)]], ids=['ewc','lwf'])
def test_one_class_at_a_time_norms_and_frozen_layers(cbs):
    s = digit_stream(6, bs=64)
    net = digit_net(norm=True)
    net[0].requires_grad_(False)
    learn = stream_learner(s, net=net)
    was = net[0].weight.clone()
    r = quietly(learn, learn.fit_stream, s, 1, cbs=cbs())
    assert r.matrix.shape==(6,6) and torch.equal(was, net[0].weight)
    assert all(p.isfinite().all() for p in net.parameters())

def test_they_keep_what_was_learned():
    "Domain after domain, where one head is for all: forgetting of the weights that mattered is less"
    def moved(cbs):
        s = digit_stream()
        learn = stream_learner(s)
        learn.dls = s[0]
        quietly(learn, learn.fit, 2)
        was = weights(learn)
        f = fisher_information(learn, s[0].train)
        for cb in cbs: learn.add_cb(cb).ewc.consolidate(learn, s[0].train)
        learn.dls = s[1]
        quietly(learn, learn.fit, 2)
        return sum(float((f[k]*(v-was[k])**2).sum()) for k,v in weights(learn).items())
    assert moved([EWC(50.)])<.5*moved([])

def test_a_training_that_diverges_is_told_in_a_line():
    s = digit_stream()
    learn = stream_learner(s, lr=1e3)
    bad = [(torch.full((4,64), float('nan')), torch.zeros(4).long())]
    assert 'smaller' in err(lambda: EWC().consolidate(learn, bad))

def test_lwf_on_a_head_that_grows_between_experiences():
    s = digit_stream()
    net = digit_net(2)
    x,y = draw(32, 64),torch.arange(32)%2
    dls = DataLoaders(TensorDL(x, y, bs=8), TensorDL(x, y, bs=8), device='cpu')
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), opt_func=SGD, lr=.05, cbs=[LwF(3.), EWC(5.)])
    quietly(learn, learn.fit, 1)
    learn.lwf.consolidate(learn)
    learn.ewc.consolidate(learn, dls.train)
    net[2] = nn.Linear(32, 4)
    learn.opt = None
    learn.dls = DataLoaders(TensorDL(x, y+2, bs=8), TensorDL(x, y+2, bs=8), device='cpu')
    quietly(learn, learn.fit, 1)
    assert learn.lwf.state['seen'].tolist()==[True]*4 and learn.lwf.state['old'].tolist()==[True]*2

def test_without_a_bound_all_samples_count():
    x,y = data(40)
    net,ewc = mlp(double=False),EWC(samples=None, labels='empirical')
    ewc.consolidate(net, loader(x, y))
    want = fisher_information(net, loader(x, y), 'empirical')
    alike({k:ewc.state[f'fisher {k}'] for k in want}, want)

@pytest.mark.parametrize('labels', ['sampled','empirical'])
def test_what_is_no_classifier_is_told(labels):
    "The Fisher information of one output would be zero, and nothing would be held"
    x,y = data(8)
    net = nn.Linear(x.shape[1], 1)
    assert "answer has [1] numbers an item" in err(lambda: EWC(labels=labels).consolidate(net, loader(x, y)))

def test_a_teacher_of_another_network_is_told():
    "A layer that was put in since would answer for the teacher"
    from memo.layers.memory_linear import to_memory_linear
    s = digit_stream()
    learn = stream_learner(s, [LwF()])
    quietly(learn, learn.fit_stream, s)
    to_memory_linear(learn, key_mem_units=5)
    assert "LwF: its teacher is another network: 2.memories" in err(lambda: quietly(learn, learn.fit_stream, s))
    learn.lwf.consolidate(learn)
    quietly(learn, learn.fit_stream, s)
