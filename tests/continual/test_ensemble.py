"Ensembles: members that differ, learn as if alone, and survive copies and files"
import copy, pickle
import pytest, torch
import torch.nn.functional as F
from fastai.vision.all import (Callback, GradientAccumulation, Learner, SGD, CrossEntropyLossFlat, L, load_learner, nn,
                               set_seed)
from helpers.digit_streams import digit_net, digit_stream, stream_learner
from helpers.errors import err
from helpers.half import Half
from helpers.learners import quietly, same, snap
from helpers.tensors import close, draw
import memo.continual.stream_fit
from memo.continual.ensemble import Ensemble, OwnLosses, redrawn
from memo.continual.distillation import LwF
from memo.continual.penalties import EWC
from memo.continual.replay import Replay

def test_members_differ_and_answer_with_the_mean():
    net = digit_net(norm=True)
    e = Ensemble(net, 4).eval()
    x = draw(8, 64)
    outs = torch.stack([m(x) for m in e.members])
    close(e(x), outs.mean(0))
    assert e.members[0] is net and all(not torch.allclose(a, b) for i,a in enumerate(outs) for b in outs[:i])
    assert all(torch.equal(m[1].weight, torch.ones(32)) and not m[1].running_mean.any() for m in e.members)

def test_one_member_is_the_network():
    net,x = digit_net(),draw(8, 64)
    assert torch.equal(Ensemble(net, 1)(x), net(x))

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale,self.out = nn.Parameter(torch.randn(64)),nn.Linear(64, 6)
    def forward(self, x): return self.out(x*self.scale)

def test_weights_that_nothing_draws_need_a_function():
    assert 'a Own without reset_parameters; a function' in err(lambda: Ensemble(Own(), 2))
    a,b = Ensemble(Own, 2).members
    assert not torch.equal(a.scale, b.scale)
    assert 'n' in err(lambda: Ensemble(Own, 0))

def test_what_is_frozen_stays():
    net = digit_net(norm=True)
    net[0].requires_grad_(False)
    new = redrawn(net)
    assert torch.equal(new[0].weight, net[0].weight) and not torch.equal(new[3].weight, net[3].weight)
    att = nn.MultiheadAttention(8, 2)
    assert not torch.equal(redrawn(att).in_proj_weight, att.in_proj_weight)

def alone(member, s, **kw):
    "The same member trained by itself"
    learn = stream_learner(s, net=member, **kw)
    quietly(learn, learn.fit_stream, s, 1)
    return learn

def test_each_member_learns_as_if_it_were_alone():
    s = digit_stream()
    set_seed(0)
    e = Ensemble(digit_net(), 3)
    members = copy.deepcopy(list(e.members))
    together = stream_learner(s, [OwnLosses()], net=e)
    quietly(together, together.fit_stream, s, 1)
    for m,own in zip(e.members, members):
        alone(own, s)
        for a,b in zip(m.parameters(), own.parameters()): close(a, b)

def test_without_it_they_share_one_loss():
    s = digit_stream()
    set_seed(0)
    e = Ensemble(digit_net(), 3)
    own = copy.deepcopy(e.members[1])
    learn = stream_learner(s, net=e)
    quietly(learn, learn.fit_stream, s, 1)
    alone(own, s)
    assert not torch.allclose(e.members[1][0].weight, own[0].weight, atol=1e-4)

def test_what_is_logged_is_the_mean():
    s = digit_stream()
    seen = []
    class Look(Callback):
        order = 99
        def after_loss(self):
            if self.training: seen.append((float(self.loss), float(self.loss_grad), [float(F.cross_entropy(o, self.y))
                                           for o in self.learn.model.each(self.x)]))
    class Probe(Callback):
        "Somebody else asks the model, before the loss is made"
        order = 3
        def after_loss(self): self.learn.model(self.x)
    learn = stream_learner(s, [OwnLosses(), Look(), Probe()], net=Ensemble(digit_net(), 3))
    quietly(learn, learn.fit, 1)
    for a,b,ls in seen:
        close(a, sum(ls)/3)
        close(b, sum(ls))

@pytest.mark.parametrize('cbs', [lambda: [EWC(5.), LwF()], lambda: [Half()], lambda: [GradientAccumulation(32)]],
                         ids=['methods','half','accumulated'])
def test_beside_others(cbs):
    s = digit_stream()
    learn = stream_learner(s, [OwnLosses(), *cbs()], net=Ensemble(digit_net(), 2))
    was = snap(learn.model)
    r = quietly(learn, learn.fit_stream, s, 1)
    assert r.matrix.shape==(3,3) and not same(was, {k:v for k,v in snap(learn.model).items() if k in was})
    assert all(p.isfinite().all() for p in learn.model.parameters())

def test_replayed_items_reach_each_member_in_full():
    "As strongly as their own losses: members that are alike learn as one of them would alone"
    s,one = digit_stream(),digit_net()
    def same_members():
        e = Ensemble(copy.deepcopy(one), 3)
        for m in e.members: m.load_state_dict(one.state_dict())
        return e
    learn = stream_learner(s, [Replay(40), OwnLosses()], net=(e := same_members()))
    quietly(learn, learn.fit_stream, s, 1)
    learn = stream_learner(s, [Replay(40)], net=(own := copy.deepcopy(one)))
    quietly(learn, learn.fit_stream, s, 1)
    for m in e.members:
        for a,b in zip(m.parameters(), own.parameters()): close(a, b, 1e-4)

def test_no_hook_stays():
    learn = stream_learner(digit_stream(), [OwnLosses()], net=Ensemble(digit_net(), 2))
    class Stop(Callback):
        order = 98
        def after_pred(self): raise KeyboardInterrupt
    def hooks(): return sum(len(m._forward_hooks) for m in learn.model.modules())
    with pytest.raises(KeyboardInterrupt): quietly(learn, learn.fit, 1, cbs=Stop())
    quietly(learn, learn.fit, 1)
    assert hooks()==0

def test_another_model_is_told_in_a_line():
    learn = stream_learner(digit_stream(), [OwnLosses()])
    assert 'trains an Ensemble' in err(lambda: quietly(learn, learn.fit, 1))

def test_copies_and_files(tmp_path):
    s = digit_stream()
    learn = stream_learner(s, [OwnLosses()], net=Ensemble(digit_net(), 2))
    learn.path = tmp_path
    quietly(learn, learn.fit_stream, s, 1)
    x = draw(4, 64)
    want = learn.model.eval()(x)
    for m in (copy.deepcopy(learn.model), pickle.loads(pickle.dumps(learn.model))): assert torch.equal(m(x), want)
    learn.export()
    assert torch.equal(load_learner(tmp_path/'export.pkl').model.eval()(x), want)
    new = Ensemble(digit_net(), 2)
    new.load_state_dict(learn.model.state_dict())
    assert torch.equal(new.eval()(x), want)

def test_members_of_memory_linear():
    "Copies have keys and units of their own, and learn by themselves"
    memory_linear = pytest.importorskip('memo.layers.memory_linear')
    net = memory_linear.MemoryLinear(64, 6, key_mem_units=8, delta=2, gamma_alpha=5., beta_k=.01,
                                     tau_alpha=.9, tau_mu=50, tau_eta=50)
    s = digit_stream()
    e = Ensemble(net, 2)
    own = copy.deepcopy(e.members[1])
    learn = stream_learner(s, [OwnLosses()], net=e, lr=.01)
    quietly(learn, learn.fit_stream, s, 1)
    alone(own, s, lr=.01)
    for (k,a),b in zip(e.members[1].state_dict().items(), own.state_dict().values()): close(a, b), k
    assert any(not torch.equal(a, b) for a,b in zip(e.members[0].state_dict().values(), own.state_dict().values()))
