"iCaRL against its steps written out, in a stream, and fault C3 of published code"
import warnings
import pytest, torch
import torch.nn.functional as F
from fastai.callback.mixup import MixUp
from fastai.vision.all import Callback, CrossEntropyLossFlat, DataLoaders, Learner, SGD, load_learner, nn
from hypothesis import given, settings, strategies as st
from torch.utils.data import DataLoader as TorchDL
from contracts.made import StopAt
from helpers.digit_streams import X, Y, digit_loaders, digit_net, digit_stream, stream_learner
from helpers.errors import err
from helpers.learners import quietly, snap
from helpers.tensors import close, draw, gen
import memo.continual.stream_fit
from memo.banks.slots import SlotBank
from memo.continual.icarl import ICaRL, herding, icarl_loss
from memo.continual.distillation import LwF
from memo.continual.penalties import EWC
from memo.continual.replay import Replay
from memo.data.items import item_ids
from memo.data.streams import split_stream
from memo.data.tensors import TensorDL, TensorSet
from memo.training.memory_callback import MemoryCallback

def by_brute_force(z, n):
    "Algorithm 4 of the paper: each time, try every row"
    z,picked = z.double(),[]
    mu = z.mean(0)
    for k in range(1, min(n, len(z))+1):
        best = None
        for i in range(len(z)):
            if i in picked: continue
            d = (mu-(z[i]+sum(z[j] for j in picked))/k).norm()
            if best is None or d<best[0]-1e-12: best = d,i
        picked.append(best[1])
    return picked

@given(st.integers(1, 12), st.integers(0, 15), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_herding_is_the_papers(n, k, d, seed):
    z = F.normalize(draw(n, d, seed=seed))
    at = herding(z, k).tolist()
    assert at==by_brute_force(z, k) and len({*at})==len(at)==min(n, k)
    assert herding(z, k//2).tolist()==at[:k//2], 'the first are the most important'

def test_fault_c3_largest_norms():
    z = F.normalize(draw(200, 16)+torch.linspace(0, 2, 16), dim=1)*(1+draw(200, 1, seed=1).abs())
    def off(at): return float((z[at].mean(0)-z.mean(0)).norm())
    assert off(herding(z, 10))<.1*off(z.norm(dim=1).argsort(descending=True)[:10])

def test_loss_is_its_formula():
    z,said,y = draw(5, 6).double(),draw(5, 4, seed=1).double(),torch.tensor([4,4,1,2,4])
    old,new = torch.tensor([0,1,2]),torch.tensor([2,4])     # 3 and 5 are unknown; 2 comes again
    want = 0.
    for i in range(5):
        for c in (0, 1, 2, 4):
            g = 1/(1+torch.exp(-z[i,c]))
            t = 1/(1+torch.exp(-said[i,c])) if c in (0,1) else float(y[i]==c)
            want -= (t*torch.log(g)+(1-t)*torch.log(1-g))/5
    close(icarl_loss(z, y, new, old, said), want, 1e-12)
    close(icarl_loss(z, y, torch.arange(6)), F.binary_cross_entropy_with_logits(z, F.one_hot(y, 6).double(),
          reduction='sum')/5, 1e-12)

def run(cbs, n=3, epochs=2, stream=None, **kw):
    s = digit_stream(n) if stream is None else stream
    learn = stream_learner(s, **kw)
    return quietly(learn, learn.fit_stream, s, epochs, cbs=cbs),learn,s

def phi(net, x):
    "Features in front of the classifier, of length one"
    with torch.no_grad(): return F.normalize(net.eval()[1](net[0](x)))

class Look(Callback):
    "Looks at the method after each experience"
    order = 50
    def __init__(self, f): self.f,self.seen = f,[]
    def after_experience(self): self.seen.append(self.f(self.learn))

def test_exemplars_are_those_of_the_paper():
    "For each class floor(size / classes seen), herded when it came, then the first of those"
    want = {}
    def look(learn):
        dl,net,st = learn.dls.train,learn.model,learn.icarl.state
        x,y = dl.dataset.x,dl.dataset.y
        room = 29//(len(want)+len(y.unique()))
        for c in y.unique().tolist(): want[c] = x[y==c][by_brute_force(phi(net, x[y==c]), room)]
        for c in want: want[c] = want[c][:room]
        assert st.labels.bincount(minlength=6).tolist()==[len(want.get(c, ())) for c in range(6)]
        for c,rows in want.items(): assert torch.equal(st.x(st.labels==c)[0], rows), c
        return room
    learn = run([ICaRL(29), (o := Look(look))])[1]
    assert o.seen==[14,7,4]

def nearest(learn, x):
    "The class whose mean exemplar is nearest, tried one by one, among those that have any"
    s = learn.icarl.state
    res = []
    for z in phi(learn.model, x):
        ds = {}
        for c in s.labels.unique().tolist():
            mu = F.normalize(phi(learn.model, s.x(s.labels==c)[0]).mean(0), dim=0)
            ds[c] = float((z-mu).norm())
        res.append(min(ds, key=ds.get))
    return torch.tensor(res)

def test_it_answers_by_the_nearest_mean_of_seen_classes():
    "As the model's own answer; C3: classes to come had the score 0, above all that are negative"
    learn = run([cb := ICaRL(30)], epochs=1)[1]
    x = digit_loaders(classes=6).valid.dataset.x[:40]
    learn.add_cb(cb)
    want = nearest(learn, x)
    with torch.no_grad(): out = learn.model.eval()(x)
    assert torch.equal(out.argmax(1), want) and out.isfinite().all()
    assert torch.equal(quietly(learn, learn.get_preds, dl=TensorDL(x, want, bs=8))[0].argmax(1), want)
    logits = learn.model.train()(x)
    close(logits, learn.model[2](learn.model[1](learn.model[0](x))))
    assert not torch.equal(logits.argmax(1), want), 'in training it is the network that answers'

def test_after_one_experience_no_other_class_is_answered():
    s = digit_stream(3)[:1]
    learn = run([ICaRL(30)], stream=s)[1]
    x = digit_loaders(classes=6).valid.dataset.x
    with torch.no_grad(): got = learn.model.eval()(x).argmax(1)
    assert {*got.tolist()}<={*s.classes[0]}

def test_features_are_the_same_in_training_and_evaluation():
    s = digit_stream()
    learn = stream_learner(s, [ICaRL(30)])
    into = []
    learn.model[2].register_forward_pre_hook(lambda m, a: into.append(a[0].detach()))
    x = s[0].train.dataset.x[:20]
    got = learn.icarl.features(learn.model.eval(), (x,))
    close(got, F.normalize(into[-1]), 1e-6)
    close(got, phi(learn.model, x), 1e-6)

class Batches(Callback):
    order = 60
    def __init__(self): self.of = {}
    def after_loss(self):
        if self.training: self.of.setdefault((self.learn.experience, self.epoch), []).append((self.x.clone(), self.y))

def test_each_exemplar_comes_once_an_epoch_in_another_order():
    learn = run([cb := ICaRL(30), b := Batches()], epochs=2)[1]
    n = len(learn.dls.train.dataset)
    def joined(key):
        own = {o.numpy().tobytes() for o in digit_stream()[key[0]].train.dataset.x}
        return [o.numpy().tobytes() for x,_ in b.of[key] for o in x if o.numpy().tobytes() not in own]
    assert joined((0,0))==[]
    a,c = joined((1,0)),joined((1,1))
    assert len(a)==len({*a})==30 and {*a}=={*c} and a!=c
    sizes = [len(x) for x,_ in b.of[1,0]]
    assert max(sizes[:-1])-min(sizes[:-1])<=1

def test_a_memory_beside_it_knows_whose_rows_are_whose():
    "Rows that were joined are nobody's"
    bank = SlotBank(2000, policy='fifo')
    with warnings.catch_warnings():
        warnings.filterwarnings('error', 'memory: a callback has')
        run([MemoryCallback(bank, head=None), ICaRL(30)], epochs=1)
    dl = digit_loaders(classes=6).train
    known = {int(i):int(y) for i,y in zip(item_ids(dl), dl.dataset.y)}
    ids,ys = bank.items[:len(bank)].tolist(),bank.labels[:len(bank)].tolist()
    assert ids.count(-1)==30+28 and len(ids)==300+58 and all(known[i]==y for i,y in zip(ids, ys) if i>=0)

def domains(classes=5):
    dls = digit_loaders(classes=classes)
    of = [['a' if i%2 else 'b' for i in range(len(dl.dataset))] for dl in dls.loaders]
    return split_stream(dls, by='domain', domain=of)

def test_classes_that_come_again_are_learned_by_their_labels():
    "Domain after domain; exemplars are herded anew among the new items and the old exemplars"
    s = domains()
    r,learn,_ = run([cb := ICaRL(30)], stream=s, epochs=3)
    assert cb.state.labels.bincount().tolist()==[6]*5
    here = {o.numpy().tobytes() for o in s[1].train.dataset.x}
    from_here = sum(o.numpy().tobytes() in here for o in cb.state.x(slice(None))[0])
    assert 0<from_here<=30 and r.matrix[1].min()>.6

def test_too_small_for_the_classes():
    "It is told before the first experience is trained, not at the one that has no room any more"
    assert 'room for 3 exemplars, at least 6, one of each class' in err(lambda: run([ICaRL(3)]))
    assert "size='700B' has room for 2" in err(lambda: run([ICaRL('700B')]))
    assert 'bytes' in err(lambda: ICaRL('many'))

def test_a_budget_in_bytes():
    cb = ICaRL('5kB')       # 19 rows of 64 numbers and a label
    run([cb], epochs=1)
    assert cb.state.labels.bincount().tolist()==[3]*6 and sum(o.nbytes for o in cb.state.x(slice(None)))<=5*1024
    cb = ICaRL(f'{6*264-1}B')
    assert 'has room for 5' in err(lambda: run([cb], epochs=1))

def test_forgetting_is_less():
    a,b = run([], epochs=4)[0],run([ICaRL(60)], epochs=4)[0]
    assert b.average_accuracy>a.average_accuracy+.3

def test_samples_that_are_not_finite_or_have_no_class_are_no_exemplars():
    cb = stream_learner(digit_stream(), [ICaRL(30)]).icarl
    z,y = torch.full((6, 4), float('nan')),torch.tensor([0,0,0,1,1,-1])
    z[1:] = F.normalize(draw(5, 4))
    assert sorted(cb.pick(z, y, 6, ()).tolist())==[1,2,3,4]
    assert 'diverged' in err(lambda: cb.pick(z*float('nan'), y, 6, ()))

@pytest.mark.parametrize('stop', [9,17])
def test_resumed_in_the_middle(tmp_path, stop):
    "Exemplars, teacher and means come out of the checkpoint, in a learner of its own"
    s = digit_stream()
    def go(resume=False, at=None, cbs=()):
        learn = stream_learner(s, seed=3 if resume else 0)
        return learn,quietly(learn, learn.fit_stream, s, 2, cbs=[ICaRL(30),*cbs], checkpoint=at, resume=resume)
    whole,a = go()
    with pytest.raises(KeyboardInterrupt): go(at=tmp_path, cbs=[StopAt(stop)])
    again,b = go(True, tmp_path)
    want,got = snap(whole.model),snap(again.model)
    assert want.keys()==got.keys() and (a.matrix==b.matrix).all()
    for k in want: assert torch.equal(want[k], got[k]), k

def test_an_export_answers_alike_and_holds_no_exemplar(tmp_path):
    s = digit_stream()
    learn = stream_learner(s, [ICaRL(30)])
    learn.path = tmp_path
    quietly(learn, learn.fit_stream, s, 1)
    x,y = digit_loaders(classes=6).valid.dataset.x,digit_loaders(classes=6).valid.dataset.y
    with torch.no_grad(): want = learn.model.eval()(x)
    learn.export()
    new = load_learner(tmp_path/'export.pkl')
    with torch.no_grad(): assert torch.equal(new.model.eval()(x), want)
    raw = (tmp_path/'export.pkl').read_bytes()
    rows = [o.numpy().tobytes() for o in learn.icarl.state.x(slice(None))[0]]
    assert len(rows)==30 and not any(o in raw for o in rows)
    assert not any('then' in k or ' ' in k for k in new.model.state_dict())

@pytest.mark.parametrize('cbs', [lambda: [EWC(5.), ICaRL(30)], lambda: [ICaRL(30), EWC(5.)],
                                 lambda: [LwF(2.), ICaRL(30)], lambda: [Replay(20), ICaRL(30)]],
                         ids=['ewc-icarl','icarl-ewc','lwf-icarl','replay-icarl'])
def test_with_other_methods(cbs):
    "Their losses are added to its own, whichever comes first"
    class Seen(Callback):
        order = 99
        def __init__(self): self.off = []
        def after_loss(self):
            cb = self.learn.icarl
            if not self.training or not cb.state.ready: return
            old = cb.state['old'].nonzero()[:,0],cb.state.answers(self.learn.model, self.xb)
            self.off.append(float(self.loss_grad-icarl_loss(self.pred, self.y, cb._fits[-1].new, *old)))
    run([*cbs(), seen := Seen()])
    assert len(seen.off)>5 and min(seen.off)>-1e-5 and max(seen.off)>1e-6

def test_torchs_loaders_too():
    x,y = X[Y<4][:120],Y[Y<4][:120]
    def dl(at): return TorchDL([(x[i], y[i]) for i in at], 16, shuffle=True, drop_last=True)
    learn = Learner(DataLoaders(dl(range(60)), dl(range(60, 120)), device='cpu'), digit_net(4), opt_func=SGD, lr=.05,
                    loss_func=CrossEntropyLossFlat(), cbs=[ICaRL(12), EWC(2.), LwF()])
    for i in range(2):
        quietly(learn, learn.fit, 1)
        for cb in (learn.icarl, learn.ewc, learn.lwf): cb.after_experience()
    assert learn.icarl.state.labels.bincount().tolist()==[3]*4
    rows = {o.numpy().tobytes():int(c) for o,c in zip(x[:60], y[:60])}
    st = learn.icarl.state
    assert all(rows[o.numpy().tobytes()]==int(c) for o,c in zip(*st.x(slice(None)), st.labels))

def test_a_head_that_grows_between_experiences():
    x,y = X[Y<4][:160],Y[Y<4][:160]
    def loaders(cs):
        at = torch.isin(y, torch.tensor(cs))
        ds = TensorSet(x[at], y[at], at.nonzero()[:,0], range(4))
        return DataLoaders(TensorDL(dataset=ds, bs=16, shuffle=True), TensorDL(dataset=ds, bs=16), device='cpu')
    net = digit_net(2)
    learn = Learner(loaders([0,1]), net, opt_func=SGD, lr=.05, loss_func=CrossEntropyLossFlat(), cbs=[ICaRL(12)])
    quietly(learn, learn.fit, 2)
    learn.icarl.after_experience()
    net[2].weight = nn.Parameter(torch.cat([net[2].weight, .1*draw(2, 32)]).detach())
    net[2].bias = nn.Parameter(torch.cat([net[2].bias, torch.zeros(2)]).detach())
    learn.dls,learn.opt = loaders([2,3]),None
    quietly(learn, learn.fit, 2)
    learn.icarl.after_experience()
    assert learn.icarl.state['then 2.weight'].shape==(4,32)
    with torch.no_grad(): got = net.eval()(x).argmax(1)
    assert torch.equal(got, nearest(learn, x)) and {*got.tolist()}=={0,1,2,3}

def test_taken_out_it_leaves_the_network_as_it_was():
    s = digit_stream()
    learn = stream_learner(s)
    names = [*learn.model.state_dict()]
    learn.add_cb(ICaRL(12))
    quietly(learn, learn.fit_stream, s, 1)
    assert len([*learn.model.state_dict()])>len(names)
    learn.icarl.detach()
    assert [*learn.model.state_dict()]==names and 'icarl' not in learn.cbs.attrgot('name')

def test_a_teacher_of_another_network_is_told():
    s = digit_stream()
    learn = stream_learner(s, [ICaRL(30)])
    quietly(learn, learn.fit_stream, s)
    learn.model[2].register_parameter('scale', nn.Parameter(torch.ones(6, 2)))
    assert 'ICaRL: its teacher is another network: 2.scale' in err(lambda: quietly(learn, learn.fit_stream, s))

def test_mixed_images_are_refused():
    s = digit_stream()
    learn = stream_learner(s, [ICaRL(30), MixUp()])
    assert 'ICaRL: its loss is of one class an item' in err(lambda: quietly(learn, learn.fit_stream, s))
