"What is stored, and when; beside accumulation, clipping, half precision, mixed images, memories; saved and resumed"
import warnings, zipfile
from copy import deepcopy
import pytest, torch
import memo.continual.stream_fit     # learners get their `fit_stream`
from fastai.callback.core import Callback, CancelStepException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import DataLoaders
from fastai.learner import load_learner
from fastai.losses import CrossEntropyLossFlat, LabelSmoothingCrossEntropyFlat
from fastai.optimizer import Adam
from fastai.torch_core import set_seed
from torch import nn
from torch.nn import functional as F
from fasttransform import ItemTransform
from helpers.half import Half
from helpers.learners import quietly, same, snap
from memo.banks.slots import SlotBank
from memo.continual.buffers import Exemplars
from memo.continual.method import Method
from memo.continual.replay import ACE, AGEM, DERpp, GDumb, MIR, Replay
from memo.core import Diverged, MemoError
from memo.data.streams import split_stream
from memo.training.memory_callback import MemoryCallback
from memo.training.param_groups import adam, sgd
from test_replay import BS, X, Y, batches, close, dls, learner, net, order, weights

every = dict(er=Replay, derpp=DERpp, ace=ACE, agem=AGEM, mir=MIR)
def ids_of(cb): return sorted(cb.state['x'][:len(cb.state)].sum(1).tolist())
def all_of(x): return sorted(x.sum(1).tolist())

@pytest.mark.parametrize('m', every)
def test_not_in_validation_predictions_and_lr_find(m):
    cb = every[m](500)
    learn = learner(cb)
    learn.create_opt()
    quietly(learn, learn.get_preds)
    quietly(learn, learn.validate)
    quietly(learn, learn.lr_find, show_plot=False, num_it=20)
    assert len(cb.state)==0
    quietly(learn, learn.fit, 1, .1)
    assert len(cb.state)==400 and ids_of(cb)==all_of(X[order])
    was = snap(cb.state)
    quietly(learn, learn.get_preds)
    quietly(learn, learn.lr_find, show_plot=False, num_it=20)
    assert same(was, snap(learn.model._modules['0']._modules[cb.name])) and len(cb.state)==400

class Skip(Callback):
    "As a scaler does that meets an overflow"
    order = MixedPrecision.order
    def before_step(self):
        if self.iter%2: raise CancelStepException()

class Predict(Callback):
    "A prediction in the middle of a fit"
    order,busy = 60,False
    def after_epoch(self):
        if self.busy: return    # it is told of the prediction's too
        self.busy = True
        self.learn.get_preds()
        self.busy = False

class Drop(Callback):
    "Leaves the second half of each batch out"
    def before_batch(self):
        if self.training: self.learn.xb,self.learn.yb = (self.learn.xb[0][:5],),(self.learn.yb[0][:5],)

@pytest.mark.parametrize('m', every)
@pytest.mark.parametrize('what', ['skip','accumulate','drop'])
def test_stored_is_what_was_stepped_on(m, what):
    cb = every[m](500)
    learn = learner([cb, dict(skip=Skip(), accumulate=GradientAccumulation(30), drop=Drop())[what]])
    quietly(learn, learn.fit, 1, .01)
    x = X[order]
    half = torch.cat([o[:5] for o in x.split(BS)])
    some = dict(skip=torch.cat(x.split(BS)[::2]), accumulate=x[:390], drop=half)[what]
    assert ids_of(cb)==all_of(some)

def test_micro_batches_wait_for_their_step_over_the_end_of_an_epoch():
    cb = Replay(2000)
    learn = learner([cb, GradientAccumulation(30)])
    quietly(learn, learn.fit, 3, .01)
    assert len(cb.state)==1200      # in each of two epochs one was left for the next
    quietly(learn, learn.fit, 1, .01)
    assert len(cb.state)==1590

def test_a_prediction_inside_a_fit_changes_nothing():
    def run(cbs):
        cb = Replay(50)
        learn = learner([cb, *cbs])
        quietly(learn, learn.fit, 2, .1)
        return snap(learn.model)
    assert same(run([]), run([Predict()]))

@pytest.mark.parametrize('m', [o for o in every if o!='ace'])   # its loss looks at the classes of a batch
def test_accumulated_micro_batches_are_one_batch(m):
    "Of a network without batch norm; each has its own draw, and so the examples are fixed here"
    def run(bs, *cbs):
        cb = every[m](20, batch_size=20)        # all that there are
        learn = learner([cb, *cbs], bs=bs, n=80)
        x = torch.cat([X[300:310],X[350:360]])
        cb.attach()
        cb.state.write(x, torch.arange(20)%10, **(dict(logits=torch.randn(20, 10, generator=torch.Generator()
                                                       .manual_seed(0))) if m=='derpp' else {}))
        cb.after_step = lambda: None
        quietly(learn, learn.fit, 1, .1)
        return weights(learn.model)
    close(run(20), run(10, GradientAccumulation(20)), rtol=1e-4, atol=1e-6)

@pytest.mark.parametrize('m,mix', [*[(m,MixUp) for m in every],('er',CutMix)])
def test_mixed_images_are_not_stored_but_replayed_beside(m, mix):
    cb = every[m](30, seed=1)
    learn = learner([cb]) if mix is MixUp else learner([cb], model=nn.Sequential(nn.Flatten(), net()))
    if mix is CutMix: learn.dls = images()
    quietly(learn, learn.fit, 1, .05)
    was,n = ids(cb),int(cb.state.ptr)
    learn.add_cb(mix())
    plain = weights(learn.model)
    with pytest.warns(UserWarning, match=f'{cb.name}: images are mixed'): quietly(learn, learn.fit, 1, .05)
    assert ids(cb)==was and int(cb.state.ptr)==n and not torch.equal(plain[0], weights(learn.model)[0])
    assert type(learn.loss_func).__name__=='CrossEntropyLossFlat'

def ids(cb): return sorted(cb.state['x'][:len(cb.state)].flatten(1).sum(1).tolist())
def images():
    from memo.data.tensors import TensorDL
    x = X[order].view(-1, 1, 8, 8)
    return DataLoaders(TensorDL(x, Y[order], bs=BS), TensorDL(x[:50], Y[order][:50], bs=50), device='cpu')

def test_replay_beside_mixup_is_of_plain_labels():
    "One step, by hand"
    torch.manual_seed(0)
    cb = Replay(10, batch_size=10)
    learn = learner([cb, MixUp()], n=10)
    cb.attach()
    cb.state.write(X[300:310], torch.arange(10))
    m = net()
    class See(Callback):
        order,run_valid = 50,False
        def after_loss(self):
            mix = self.learn.mix_up
            self.x,self.y,self.y1,self.lam = self.xb[0].clone(),self.yb[0],mix.yb1[0],mix.lam
    see = See()
    with pytest.warns(UserWarning): quietly(learn, learn.fit, 1, .1, cbs=see)
    out = m(see.x)
    ce = [F.cross_entropy(out, y, reduction='none') for y in (see.y1,see.y)]
    (torch.lerp(*ce, see.lam.squeeze()).mean()+F.cross_entropy(m(X[300:310]), torch.arange(10))).backward()
    with torch.no_grad(): close(weights(learn.model), [p-.1*p.grad for p in m.parameters()], rtol=1e-4, atol=1e-6)

@pytest.mark.parametrize('m', every)
def test_half_precision(m):
    "On the CPU bfloat16: outputs are half, what is stored and compared is not; the result is near that of float32"
    def run(*cbs):
        cb = every[m](50)
        learn = learner([cb, *cbs])
        quietly(learn, learn.fit, 1, .1)
        return learn,cb
    a,one = run()
    b,two = run(Half())
    assert {torch.bfloat16}==b.dtypes
    assert torch.equal(one.state['y'], two.state['y']) and two.state['x'].dtype==torch.float32
    if m!='mir':        # which choice is near is not
        close(weights(a.model), weights(b.model), atol=.02, rtol=.1)
    assert all(o.isfinite().all() for o in weights(b.model))

class Scaled(Callback):
    "What a gradient scaler does to gradients: those of a step are scaled until it unscales them"
    order,scale = MixedPrecision.order,1024.
    def before_backward(self): self.learn.loss_grad = self.learn.loss_grad*self.scale
    def before_step(self):
        for p in self.learn.model.parameters(): p.grad /= self.scale

@pytest.mark.parametrize('m', every)
def test_scaled_gradients(m):
    def run(*cbs):
        learn = learner([every[m](50), *cbs])
        quietly(learn, learn.fit, 1, .1)
        return weights(learn.model)
    close(run(), run(Scaled()), rtol=1e-4, atol=1e-5)

@pytest.mark.parametrize('m', every)
def test_gradients_are_clipped_whole(m):
    "With those of the examples, and behind A-GEM"
    norms = []
    class See(Callback):
        order = 40
        def before_step(self):
            norms.append(torch.cat([p.grad.flatten() for p in self.learn.model.parameters()]).norm().item())
    learn = learner([every[m](50), GradientClip(.01), See()])
    quietly(learn, learn.fit, 1, .5)
    assert max(norms)<=.01*1.001 and max(norms)>.0099

class Penalty(Method):
    "As EWC: half the squared distance to earlier weights"
    def after_loss(self):
        pairs = zip(self.learn.model.parameters(), net().parameters())
        if self.training: self.add_loss(.5*sum((p-q).square().sum() for p,q in pairs))

@pytest.mark.parametrize('m', every)
def test_beside_a_penalty(m):
    "In any order the same; and the penalty is felt"
    def run(*cbs):
        learn = learner([*cbs])
        quietly(learn, learn.fit, 1, .05)
        return weights(learn.model)
    a,b,c = run(every[m](50), Penalty()),run(Penalty(), every[m](50)),run(every[m](50))
    close(a, b)
    start = weights(net())
    def far(o): return sum((p-q).square().sum() for p,q in zip(o, start))
    assert far(a)<far(c)*.9

@pytest.mark.parametrize('m', every)
def test_two_methods_and_a_memory(m):
    "The memory stores what it would without them, and its own rows are hidden from what is replayed"
    def run(*cbs):
        set_seed(0)
        learn = learner([*cbs, MemoryCallback(SlotBank(64, policy='fifo'), head='add')])
        quietly(learn, learn.fit, 2, .05)
        return learn
    cb = every[m](50)
    learn,plain = run(cb),run()
    other = run(every[m](50), Replay(20, seed=3)) if m!='er' else run(DERpp(50), cb)
    for o in (learn,other):
        for k in ('items','labels'): assert torch.equal(getattr(o.memory.bank, k), getattr(plain.memory.bank, k))
    assert 'item' in cb.state and (cb.state['item'][:50]>=0).all()
    stored = {*cb.state['item'].tolist()}
    assert stored<={*learn.dls.train.dataset.items.tolist()}

def test_memories_hide_the_rows_of_what_is_replayed():
    cb = Replay(50)
    learn = learner([cb, MemoryCallback(SlotBank(400, policy='fifo'), k=1, head='add')])
    quietly(learn, learn.fit, 1, .0)
    found = []
    read = type(learn.memory.bank).read
    def spy(q, k=3, item=None, group=None, **kw):
        r = read(learn.memory.bank, q, k, item=item, group=group, **kw)
        found.append((item, r.index))
        return r
    learn.memory.bank.read = spy
    r = cb.state.sample(20)
    learn.model.train()
    cb.forward(r)
    assert len(found)==1
    item,index = found[0]
    assert torch.equal(item, r['item'])
    assert not (learn.memory.bank.items[index]==item[:,None]).any()

def test_mir_is_not_er():
    "Its choice is the one of largest increase, and neither running statistics nor gradients nor modes know of it"
    class See(MIR):
        better = 0
        def rehearse(self):
            r = self.state.rows(self.state.draw(100))
            model,lr = self.learn.model,self.learn.opt.hypers[-1]['lr']
            was = snap(model)
            modes = [m.training for m in model.modules()]
            got = self.increase(r)
            assert same(was, snap(model)) and modes==[m.training for m in model.modules()]
            assert all(p.grad is None or not p.grad.any() for p in model.parameters())
            gs = torch.autograd.grad(self.learn.loss_grad, [*model.parameters()], retain_graph=True)
            model = deepcopy(model).eval()
            def ce(): return F.cross_entropy(model(r.x), r.y, reduction='none')
            with torch.no_grad():
                a = ce()
                for p,g in zip(model.parameters(), gs): p -= lr*g
                b = ce()
            torch.testing.assert_close(got, b-a, rtol=1e-3, atol=1e-4)
            top = got.topk(10).indices
            random = got[torch.randperm(len(got))[:10]].mean()
            self.better += len(got)>10 and bool(got[top].mean()>random+.1*got.std())
    cb = See(200)
    learn = learner(cb, model=nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(.5),
                                            nn.Linear(32, 10)))
    quietly(learn, learn.fit, 1, .1)
    assert cb.better>30

def test_mir_replays_other_examples_than_er():
    def run(cls):
        drawn = []
        class See(cls):
            def loss_on(self, r, out=None):
                drawn.append(r.x.sum(1))
                return super().loss_on(r, out)
        learn = learner(See(100))
        quietly(learn, learn.fit, 1, .1)
        return drawn
    a,b = run(Replay),run(MIR)
    assert len(a)==len(b)==39 and sum(set(p.tolist())!=set(q.tolist()) for p,q in zip(a[5:], b[5:]))>30

def test_agem_without_a_reference_gradient():
    "Rows whose loss has no gradient: nothing is divided by zero"
    class Flat(nn.Module):
        def __init__(self): super().__init__(); self.l = nn.Linear(64, 10)
        def forward(self, x): return self.l(x)*(x.sum(1, keepdim=True)!=0)
    cb = AGEM(10)
    learn = learner(cb, model=Flat(), n=50)
    cb.attach()
    cb.state.write(torch.zeros(10, 64), torch.zeros(10).long())
    cb.after_step = lambda: None
    quietly(learn, learn.fit, 1, .1)
    assert all(o.isfinite().all() for o in weights(learn.model))
    plain = learner([], model=Flat(), n=50)
    assert learn.model.l.weight.abs().sum()>0

@pytest.mark.parametrize('scale', [1., 1e-30, 1e25])
def test_agem_projects_gradients_of_any_size(scale):
    "The product of two small gradients is 0 in float32, and that of two large ones is inf"
    cb = AGEM(10, batch_size=10)
    m = nn.Linear(64, 10)
    learn = learner(cb, model=m)
    cb.attach()
    cb.state.write(X[:10], Y[:10])
    cb.mixes = False
    cb.loss_of = lambda out,y: F.cross_entropy(out, y)*scale
    learn.xb,learn.yb = (X[:10],),(Y[:10],)
    ref = torch.autograd.grad(F.cross_entropy(m(X[:10]), Y[:10]), m.parameters())
    g = [-r+.01*torch.randn_like(r) for r in ref]
    for p,o in zip(m.parameters(), g): p.grad = o.clone()
    cb.before_step()
    a,b,r = (torch.cat([o.flatten() for o in os]).double() for os in ([p.grad for p in m.parameters()], g, ref))
    torch.testing.assert_close(a, b-(b@r)/(r@r)*r, rtol=1e-4, atol=1e-6)
    assert abs(float(a@r))<1e-5

@pytest.mark.parametrize('m', every)
def test_any_optimizer(m):
    learn = learner(every[m](50), opt=Adam)
    quietly(learn, learn.fit, 1, .01)
    assert all(o.isfinite().all() for o in weights(learn.model))

# before the batch transforms

class Flip(ItemTransform):
    "Flips a batch or not, with noise: another one at each call; for training only"
    split_idx,order = 0,20
    def __init__(self): self.seen = []
    def encodes(self, b):
        x = b[0].as_subclass(torch.Tensor)
        self.seen.append((type(b[0]).__name__, x.dtype, len(x)))
        return (x.flip(-1) if len(self.seen)%2 else x)+.01*len(self.seen),*b[1:]

@pytest.mark.parametrize('m', [*every,'gdumb'])
def test_raw_inputs_are_augmented_anew(m):
    from memo.data.tensors import TensorDL, TensorSet
    x8 = (X[order].view(-1, 1, 8, 8)*255).byte()
    flip = Flip()
    train = TensorDL(dataset=TensorSet(x8, Y[order], vocab=range(10), split_idx=0), bs=BS, tfms=[flip])
    valid = TensorDL(dataset=TensorSet(x8[:50], Y[order][:50], vocab=range(10), split_idx=1), bs=50, tfms=[flip])
    cb = dict(every, gdumb=lambda n, store: GDumb(n, 2, batch_size=10, store=store))[m]('10kB', store='raw')
    learn = learner(cb, model=nn.Sequential(nn.Flatten(), net()))
    learn.dls = DataLoaders(train, valid, device='cpu')
    fs = [*train.after_batch.fs]
    seen = []
    forward = type(cb).forward
    def spy(r, model=None):
        seen.append(r.x.as_subclass(torch.Tensor).clone())
        return forward(cb, r, model)
    cb.forward = spy
    quietly(learn, learn.fit, 1, .05)
    if m=='gdumb': cb.retrain()
    assert [*train.after_batch.fs]==fs
    own = cb.state['x'][:len(cb.state)]
    assert own.dtype==torch.uint8 and len(own)==10240//(64+8+40*(m=='derpp'))
    whole = {o.numpy().tobytes():int(y) for o,y in zip(x8, Y[order])}
    assert all(whole[o.numpy().tobytes()]==y for o,y in zip(own, cb.state['y'].tolist()))
    assert len(seen)>10 and all(o.dtype==torch.float32 and .01<=float(o.min()) for o in seen)
    assert len({round(float(o.min()), 3) for o in seen})>5      # of each replay its own
    assert {o[:2] for o in flip.seen}=={('TensorImageBW',torch.float32)}

def test_raw_is_the_same_where_nothing_is_transformed():
    def run(store):
        learn = learner(Replay(50, store=store))
        quietly(learn, learn.fit, 1, .1)
        return snap(learn.model)
    assert same(run('raw'), run('batch'))

# state

@pytest.mark.parametrize('m', [*every,'gdumb'])
def test_saved_with_the_model(m, tmp_path):
    cb,new = ({**every,'gdumb':GDumb}[m](30) for _ in range(2))
    learn = learner(cb, path=tmp_path)
    quietly(learn, learn.fit, 1, .1)
    learn.save('a')
    b = learner(new, path=tmp_path, model=net(5))
    b.load('a')
    assert len(new.state)==30 and same(snap(new.state), snap(cb.state)) and same(snap(learn.model), snap(b.model))
    for o in (learn,b): quietly(o, o.fit, 1, .1)
    assert same(snap(learn.model), snap(b.model))

@pytest.mark.parametrize('m', [*every,'gdumb'])
def test_an_export_holds_no_example(m, tmp_path):
    cb = {**every,'gdumb':GDumb}[m](30)
    learn = learner(cb, path=tmp_path)
    quietly(learn, learn.fit, 1, .1)
    row = cb.state['x'][0].numpy().tobytes()
    learn.save('a')
    def holds(p):
        with zipfile.ZipFile(p) as z: return any(row in z.read(o) for o in z.namelist())
    assert holds(tmp_path/'models/a.pth')
    learn.dls = dls(n=10)       # of other items
    learn.export('e.pkl')
    assert not holds(tmp_path/'e.pkl') and len(cb.state)==30
    quietly(learn, learn.fit, 1, .1)        # and the learner goes on
    with pytest.warns(UserWarning): new = load_learner(tmp_path/'e.pkl')
    new.dls = dls()
    own = next(o for o in new.cbs if type(o) is type(cb))
    assert len(own.state)==0
    quietly(new, new.fit, 1, .1)
    assert len(own.state)==30

def test_taken_out():
    cb = Replay(30)
    learn = learner(cb)
    quietly(learn, learn.fit, 1, .1)
    assert any('replay' in k for k in learn.model.state_dict())
    cb.detach()
    assert [*learn.model.state_dict()]==[*net().state_dict()] and len(cb.state)==30

def test_a_ring_needs_the_number_of_classes():
    cb = Replay(30, policy='ring')
    learn = learner(cb)
    del learn.dls.train.dataset.vocab
    learn.dls.c = None
    cb.state = cb.new_state()
    with pytest.raises(MemoError, match='needs n_classes'): quietly(learn, learn.fit, 1, .1)
    with pytest.raises(MemoError, match='no slot for each of 10 classes'): learner(Replay(9, policy='ring'))

# GDumb

def test_gdumb_trains_on_its_examples_alone():
    "Nothing while the stream passes; then from the first weights, with a new optimizer, whatever was before"
    cb = GDumb(40, epochs=3, lr=.1, batch_size=8)
    learn = learner(cb, opt=Adam)
    start = weights(learn.model)
    quietly(learn, learn.fit, 1, .1)
    close(start, weights(learn.model), rtol=0, atol=0)
    assert cb.state.class_counts().tolist()==[4]*10
    m,store = net(),Exemplars(40, 'greedy', n_classes=10)
    for x,y in batches(): store.write(x, y)
    def train(m):
        opt = torch.optim.Adam(m.parameters(), .1, eps=1e-5, betas=(.9,.99))
        for _ in range(3):
            for at in store.shuffled().split(8):
                opt.zero_grad()
                F.cross_entropy(m(store['x'][at]), store['y'][at]).backward()
                opt.step()
        return m
    cb.retrain()
    close(weights(learn.model), weights(train(m)), rtol=1e-3, atol=1e-4)
    one = weights(learn.model)
    cb.retrain()
    close(weights(learn.model), weights(train(net())), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(one[0], weights(learn.model)[0])     # in another order

@pytest.mark.parametrize('opt', [Adam, adam, sgd])
def test_gdumb_has_the_rate_of_the_fit(opt):
    "With torch's optimizers, too, whose settings fastai hands out as copies"
    learn = learner(cb := GDumb(40), opt=opt)
    quietly(learn, learn.fit, 1, .07)
    assert [h['lr'] for h in cb.optimizer().hypers]==[.07] and cb.optimizer().hypers==learn.opt.hypers

def test_gdumb_in_a_stream(tmp_path):
    learn = learner(cb := GDumb(50, epochs=20, lr=.2, batch_size=10))
    data = dls()
    stream = split_stream(data, 5)
    r = quietly(learn, learn.fit_stream, stream, lr=.1)
    assert r.matrix[-1].mean()>.6 and r.average_accuracy>.6
    assert [len(o) for o in stream.classes]==[2]*5 and cb.state.class_counts().tolist()==[5]*10

@pytest.mark.parametrize('m', [*every,'gdumb'])
def test_resumed_in_the_middle_of_a_stream(m, tmp_path):
    def run(stop=None, **kw):
        set_seed(0)
        cb = {**every,'gdumb':lambda n: GDumb(n, epochs=2)}[m](30)
        learn = learner(cb)
        class Stop(Callback):
            def before_experience(self):
                if self.learn.experience==stop: raise KeyboardInterrupt
        try: quietly(learn, learn.fit_stream, split_stream(dls(), 3), lr=.1, cbs=Stop(), checkpoint=tmp_path, **kw)
        except KeyboardInterrupt: pass
        return learn
    whole = run()
    run(2, overwrite=True)
    again = run(resume=True)
    assert same(snap(whole.model), snap(again.model))
    assert (whole.stream_result.matrix==again.stream_result.matrix).all()

def test_replay_forgets_less():
    "On real digits, class after class"
    def run(*cbs):
        set_seed(0)
        learn = learner([*cbs])
        return quietly(learn, learn.fit_stream, split_stream(dls(n=400), 5), epochs=3, lr=.1).average_accuracy
    plain = run()
    for m in every:
        if m!='agem': assert run(every[m](100))>plain+.2, m

@pytest.mark.parametrize('m', every)
def test_a_model_of_other_inputs_is_told_in_a_line(m):
    cb = every[m](30)
    learn = learner(cb)
    quietly(learn, learn.fit, 1, .1)
    learn.remove_cb(cb)
    was = ids_of(cb)
    with pytest.warns(UserWarning, match='of another model'):
        new = learner(cb, model=nn.Linear(12, 10))
    d = dls(n=40)
    for o in d.loaders: o.dataset.x = o.dataset.x[:,:12].contiguous()
    new.dls = d
    with pytest.raises(MemoError, match=r'exemplars: x is torch.float32 \[12\], earlier ones are torch.float32 \[64\]'):
        quietly(new, new.fit, 1, .1)
    assert ids_of(cb)==was

def test_what_is_kept_of_another_model_is_told():
    "A method that is used twice, as in a loop over seeds, begins with what it has"
    cb = Replay(30)
    learn = learner(cb)
    quietly(learn, learn.fit, 1, .1)
    with pytest.warns(UserWarning, match='Replay: what it keeps is .*a new Replay begins anew'): learner(cb)
    cb.detach()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        again = learner(cb)         # taken out, and put in again
        quietly(again, again.fit, 1, .1)
        again.remove_cb(cb)
        again.add_cb(cb)            # as each `fit_stream(cbs=)` does
        quietly(again, again.fit, 1, .1)

def test_dark_replay_beside_a_head_that_grows():
    "Old examples hold the outputs that there were, new ones all"
    cb = DERpp(60, alpha=.5, beta=0., batch_size=20)
    m = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    learn = learner(cb, model=m)
    learn.loss_func = lambda out,y: F.cross_entropy(out, y%out.shape[1])
    quietly(learn, learn.fit, 1, .1)
    assert cb.state['logits'].shape==(60,4)
    m[1],learn.opt,seen = nn.Linear(64, 10),None,[]
    class Terms(Callback):
        order = cb.order+1
        def after_loss(self): seen.append(float(self.learn.loss_grad))
    learn.add_cb(Terms())
    quietly(learn, learn.fit, 1, .1)
    z = cb.state['logits']
    assert z.shape==(60,10) and len(seen)>30 and torch.tensor(seen).isfinite().all()
    old = z[:,4:].isnan().all(1)
    assert not z[:,:4].isnan().any() and not z[~old].isnan().any() and 0<int(old.sum())<60
    assert all(o.isfinite().all() for o in weights(learn.model))
    r = cb.state.rows(old.nonzero()[:,0])
    learn.loss = learn.loss_grad = torch.zeros(())
    cb.replayed = lambda: r
    cb.rehearse()
    torch.testing.assert_close(learn.loss_grad, .5*F.mse_loss(m(r.x)[:,:4], r.logits[:,:4]))

def test_a_budget_in_bytes_cannot_grow():
    cb = Exemplars('2kB')
    cb.write(X[:5], Y[:5], logits=torch.randn(5, 4))
    with pytest.raises(MemoError, match='size: 2.*were for examples with 4 logits, there are 10 now'):
        cb.widen('logits', torch.randn(5, 10))
    cb.widen('logits', torch.randn(5, 3))
    assert cb['logits'].shape[1]==4

def test_gdumb_says_that_the_network_is_another_than_at_the_start():
    m = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    learn = learner(GDumb(30, epochs=1), model=m)
    quietly(learn, learn.fit, 1, .1)
    for new,line in ((nn.Linear(8, 12),r'2.weight, \[12, 8\] now, was \[10, 8\]'),
                     (nn.Sequential(nn.Linear(8, 10)),'2.0.weight.* now, was not there')):
        m[2],learn.opt = new,None
        with pytest.raises(MemoError, match=line): quietly(learn, learn.fit, 1, .1)

def test_an_export_has_no_last_batch_and_nothing_that_waits(tmp_path):
    cb = Replay(30, store='raw')
    learn = learner([cb, GradientAccumulation(1000)], path=tmp_path)
    learn.dls.train.after_batch.add(Flip())
    quietly(learn, learn.fit, 1, .1)
    assert not cb.kept and not len(cb.way.last[0]) and cb.way.last[0].untyped_storage().nbytes()==0

def test_own_classes_only_with_smoothed_labels_too():
    "What is left out has no part in the smoothing either"
    out,y = torch.randn(8, 10, requires_grad=True),torch.tensor([3,3,7,7,3,7,1,1])
    cb = ACE(10)
    for loss in (F.cross_entropy, LabelSmoothingCrossEntropyFlat()):
        cb.loss_of = loss
        want = loss(out[:,[1,3,7]], torch.tensor([1,1,2,2,1,2,0,0]))
        torch.testing.assert_close(cb.among(out, y), want)
    cb.loss_of = CrossEntropyLossFlat(weight=torch.arange(1., 11))
    w = torch.arange(1., 11)[y]
    rows = F.cross_entropy(out[:,[1,3,7]], torch.tensor([1,1,2,2,1,2,0,0]), reduction='none')
    torch.testing.assert_close(cb.among(out, y), (w*rows).sum()/w.sum())
    learn = learner(ACE(30))
    learn.loss_func = LabelSmoothingCrossEntropyFlat()
    quietly(learn, learn.fit, 1, .1)
    assert all(o.isfinite().all() for o in weights(learn.model))

def test_a_head_too_small_for_what_gdumb_keeps():
    learn = learner(GDumb(30), model=nn.Linear(64, 4))
    learn.dls.loaders[1:] = []
    learn.gdumb.attach()
    learn.gdumb.state.write(X[:30], Y[:30])
    with pytest.raises(MemoError, match='GDumb: the model has 4 outputs .* up to number 9; .*n_out=10'):
        learn.gdumb.retrain()
    learn = learner(GDumb(30, lr=1e9))
    quietly(learn, learn.fit, 1, .1)
    learn.gdumb.state['x'][0] = torch.nan
    with pytest.raises(Diverged, match='GDumb: the loss of its retraining'): learn.gdumb.retrain()

def test_mir_chooses_from_a_part_of_a_small_store():
    "Of all of it, it would be the same few each time"
    class See(MIR):
        def increase(self, r):
            seen.append((len(self.state),len(r.x)))
            return super().increase(r)
    for kw,want in (({},lambda n: min(100, max(20, n//4))), (dict(candidates=10**6),lambda n: n)):
        seen = []
        learn = learner(See(100, batch_size=10, **kw))
        quietly(learn, learn.fit, 1, .1)
        assert len(seen)>30 and all(k==min(want(n), n) for n,k in seen)
