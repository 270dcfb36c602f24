"fast_loop: the same weights, records and events as fastai's own loop, bit for bit, whatever callbacks do"
import pickle, sys
from contextlib import nullcontext
import pytest
from fastai.vision.all import *
from fastai.callback.core import _events
from helpers.learners import same, snap
from memo.banks.slots import SlotBank
from memo.data.tensors import TensorDL
from memo.training.fast_loop import FastLoop, fast_loop, last_rate, plain_loss
from memo.training.memory_callback import MemoryCallback
for k in [k for k in globals() if k.startswith('test')]: del globals()[k]     # fastai's, which pytest would collect

def make(bs=4, cbs=None, opt_func=SGD, loss=None, n=50, mixed=False, metrics=accuracy, cls=Learner, image=False, **kw):
    set_seed(0)
    x,y = torch.randn(n, 1, 2, 3) if image else torch.randn(n, 6),torch.randint(0, 3, (n,))
    mk = lambda s, t: TensorDL(x[s], y[s], bs=bs, shuffle=t, vocab=range(3))
    dls = DataLoaders(mk(slice(0, n-10), True), mk(slice(n-10, n), False), device='cpu')
    m = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.BatchNorm1d(8) if bs>1 else nn.Identity(), nn.ReLU(),
                      nn.Dropout(.3), nn.Linear(8, 3))
    return cls(dls, m, loss_func=loss, opt_func=opt_func, lr=.05, cbs=cbs, metrics=metrics, **kw)

class Plan(Callback):
    "Raises at some events"
    order = 40
    def __init__(self, **at): self.plan,self.count = at,0
    def __call__(self, name): super().__call__(name)
    def look(self, name):
        if name not in self.plan or not self.training: return
        self.learn.planned = n = vars(self.learn).get('planned', 0)+1
        every,ex = self.plan[name]
        if n%every==0: raise ex()
for _k in '''before_batch after_pred after_loss before_backward after_backward before_step after_step
              after_batch'''.split():
    setattr(Plan, _k, (lambda k: lambda self: self.look(k))(_k))

class Quiet(Plan):
    "The same without a `__call__` of its own"
    __call__ = Callback.__call__

class Log(Callback):
    "All events in order, with what the learner holds"
    order,log = 45,None
    def note(self, name):
        l = self.learn
        if l is None: return
        vars(l).setdefault('noted', []).append((name, vars(l).get('iter'), l.training, len(l.cbs),
            float(l.pct_train) if hasattr(l, 'pct_train') else None,
            None if not isinstance(vars(l).get('loss'), Tensor) else float(l.loss)))
for _k in _events:
    if _k!='after_create': setattr(Log, _k, (lambda k: lambda self: self.note(k))(_k))

def trained(quick, epochs=2, fit='fit', **kw):
    learn = make(**kw)
    set_seed(1)
    with learn.no_bar(), learn.no_logging():
        with fast_loop(learn) if quick else nullcontext(): getattr(learn, fit)(epochs)
    return learn

def state_of(opt):
    sd = opt.state_dict()
    return [{k:v for k,v in o.items()} for o in sd['state']] if isinstance(sd['state'], list) else sd['state']

def equal(a, b):
    assert same(snap(a.model), snap(b.model))
    for k in ('lrs','iters'): assert list(getattr(a.recorder, k))==list(getattr(b.recorder, k))
    assert [float(o) for o in a.recorder.losses]==[float(o) for o in b.recorder.losses]
    assert [list(o) for o in a.recorder.values]==[list(o) for o in b.recorder.values]
    assert repr(state_of(a.opt))==repr(state_of(b.opt))
    assert vars(a).get('noted')==vars(b).get('noted') and torch.equal(a.rng, b.rng)
    assert a.train_iter==b.train_iter and a.pct_train==b.pct_train
    assert not {'one_batch'} & {*vars(a), *vars(b)}

def both(cbs=(), **kw):
    "The same training by fastai's loop and by ours"
    res = []
    for quick in (False,True):
        res.append(trained(quick, cbs=[o() for o in cbs], **kw))
        res[-1].rng = torch.get_rng_state()
    equal(*res)
    return res

class TrainMetrics(Callback):
    def before_fit(self): self.learn.recorder.train_metrics = True

cases = dict(
    plain=dict(), logged=dict(cbs=[Log]), one=dict(bs=1, cbs=[Log]), cycle=dict(fit='fit_one_cycle', cbs=[Log]),
    adam=dict(opt_func=Adam), momentum=dict(opt_func=partial(SGD, mom=.9), wd=.1), ranger=dict(opt_func=ranger),
    torch=dict(opt_func=partial(OptimWrapper, opt=torch.optim.SGD)),
    adamw=dict(opt_func=partial(OptimWrapper, opt=torch.optim.AdamW)),
    l2=dict(opt_func=partial(SGD, decouple_wd=False), wd=.1), smooth=dict(loss=LabelSmoothingCrossEntropyFlat()),
    torch_loss=dict(loss=nn.CrossEntropyLoss()), function=dict(loss=lambda p,y: F.cross_entropy(p, y)),
    focal=dict(loss=FocalLossFlat()), accumulate=dict(cbs=[lambda: GradientAccumulation(10), Log]),
    clip=dict(cbs=[lambda: GradientClip(.1), Log]), mixup=dict(cbs=[MixUp, Log]),
    images=dict(image=True, cbs=[CutMix, Log]),
    memory=dict(cbs=[lambda: MemoryCallback(SlotBank(20, n_classes=3), k=3, head='add'), Log]),
    classes=dict(cbs=[lambda: MemoryCallback(SlotBank(20, policy='reservoir', n_classes=3), k=3, head='vote')]),
    bf16=dict(cbs=[lambda: MixedPrecision('bf16'), Log]), short=dict(cbs=[lambda: ShortEpochCallback(.4), Log]),
    train_metrics=dict(cbs=[TrainMetrics]), no_valid_events=dict(cbs=[Log, lambda: TrackerCallback()]),
    batch=dict(cbs=[lambda: Plan(before_batch=(3,CancelBatchException)), Log]),
    pred=dict(cbs=[lambda: Quiet(after_pred=(3,CancelBatchException)), Log]),
    loss=dict(cbs=[lambda: Plan(after_loss=(4,CancelTrainException)), Log]),
    backward=dict(cbs=[lambda: Plan(before_backward=(3,CancelBackwardException)), Log]),
    step=dict(cbs=[lambda: Quiet(before_step=(3,CancelStepException)), Log]),
    epoch=dict(cbs=[lambda: Plan(after_step=(7,CancelEpochException)), Log]),
    fit=dict(cbs=[lambda: Plan(after_batch=(7,CancelFitException)), Log]))

@pytest.mark.parametrize('case', cases)
def test_same_numbers_and_events(case):
    res = both(**cases[case])
    if 'classes' in case or 'memory' in case: assert len(res[1].memory.bank)==20

def test_rates_of_torchs_optimizers(monkeypatch):
    "The last group's, under whatever name; not by a copy of all that all groups have, at every batch"
    class Renamed(torch.optim.Optimizer):
        def __init__(self, params, rate): super().__init__(params, dict(rate=rate))
    ps = [[nn.Parameter(torch.zeros(2))] for _ in range(2)]
    a = OptimWrapper(ps, opt=torch.optim.SGD, lr=.1)
    b = OptimWrapper(ps, opt=Renamed, hp_map={'rate':'lr'}, rate=.1)
    for opt in (a,b):
        opt.set_hyper('lr', slice(.2, .3))
        assert last_rate(opt)==opt.hypers[-1]['lr']==.3
    monkeypatch.setattr(OptimWrapper, 'hypers', property(lambda self: 1/0))
    assert last_rate(a)==.3

def test_the_quick_loop_is_what_trains():
    "Otherwise all of the above would hold of two times fastai's"
    learn,n = make(),[]
    was = Learner._do_one_batch
    class Count(Callback):
        order = 99
        def after_pred(self): n.append(any(f.f_code is was.__code__ for f in frames()))
    def frames():
        f = sys._getframe()
        while f is not None:
            yield f
            f = f.f_back
    learn.add_cb(Count())
    with learn.no_bar(), learn.no_logging(), fast_loop(learn): learn.fit(1)
    assert n==[False]*10+[True]*3       # validation is fastai's

class Adds(Callback):
    "Adds and removes another callback in the middle of a batch"
    order = 20
    def after_pred(self):
        if self.training and self.iter==2: self.learn.add_cb(Late())
    def before_batch(self):
        if self.training and self.iter==5: self.learn.remove_cb(Late)
class Late(Callback):
    order = 30
    def after_pred(self): self.learn.pred = self.learn.pred*.5
    def before_step(self): vars(self.learn).setdefault('noted', []).append('late')

def test_callbacks_that_come_and_go():
    a,b = (trained(q, cbs=[Adds()]) for q in (False,True))
    assert a.noted==b.noted and len(a.noted)==2*3 and same(snap(a.model), snap(b.model))

class Switch(Callback):
    "Switches another one off and on"
    order = 20
    def after_batch(self):
        if self.training: self.learn.late.run = self.learn.iter%2==0

def test_a_callback_that_does_not_run():
    a,b = (trained(q, cbs=[Switch(), Late()]) for q in (False,True))
    assert a.noted==b.noted and 0<len(a.noted)<20 and same(snap(a.model), snap(b.model))

class Own(Learner):
    "Somebody's own way to do a batch"
    def _do_one_batch(self):
        super()._do_one_batch()
        vars(self).setdefault('noted', []).append(self.iter)

def test_learners_with_a_loop_of_their_own():
    a,b = (trained(q, cls=Own) for q in (False,True))
    assert a.noted==b.noted and len(a.noted)==26 and same(snap(a.model), snap(b.model))
    c = make()
    def step(): noted.append(1); c.opt.step()
    noted = []
    c._step = step
    with c.no_bar(), c.no_logging(), fast_loop(c): c.fit(1)
    assert len(noted)==10

class OwnBatch(Learner):
    def one_batch(self, i, b):
        vars(self).setdefault('noted', []).append(i)
        super().one_batch(i, b)

@pytest.mark.parametrize('k', ['one_batch','_do_one_batch','_do_grad_opt','_step','_split','_set_device'])
def test_a_loop_that_was_put_in_fastai_s_place(k, monkeypatch):
    "By a subclass, or for all learners, as `@patch` does"
    was,n = getattr(Learner, k),[]
    def own(self, *args):
        n.append(1)
        return was(self, *args)
    monkeypatch.setattr(Learner, k, own)
    counts = []
    for q in (False,True):
        n.clear()
        trained(q)
        counts.append(len(n))
    assert counts[0]==counts[1]>0
    a,b = (trained(q, cls=OwnBatch) for q in (False,True))
    assert a.noted==b.noted and len(a.noted)==26 and same(snap(a.model), snap(b.model))

@pytest.mark.parametrize('device', [None,'cpu'])
def test_batches_that_are_there_are_not_sent(device, monkeypatch):
    "Whatever the loader says of its device; where one of them is elsewhere, they are"
    learn,n = make(),[]
    dls = DataLoaders(*(o.new() for o in learn.dls.loaders), **({} if device is None else dict(device=device)))
    for o in dls.loaders: o.device = device if device is None else torch.device(device)
    learn.dls = dls
    class Sent(FastLoop):
        def there(self, b):
            n.append(super().there(b))
            return n[-1]
    monkeypatch.setattr('memo.training.fast_loop.FastLoop', Sent)
    with learn.no_bar(), learn.no_logging(), fast_loop(learn): learn.fit(1)
    assert n==[True]*10
    loop = FastLoop(learn)
    loop.device = torch.device('cpu')
    x = torch.zeros(1)
    assert loop.there((x,x)) and not any(map(loop.there, [(x,x.to('meta')), [x,x], ((x,x),x), (x,'a')]))

def test_an_optimizer_with_a_step_of_its_own():
    class Twice(Optimizer):
        def step(self, closure=None):
            super().step(); super().step()
    a,b = (trained(q, opt_func=lambda ps, lr: Twice(ps, [sgd_step], lr=lr)) for q in (False,True))
    assert same(snap(a.model), snap(b.model)) and not same(snap(a.model), snap(trained(True).model))

class Fits(Callback):
    "Trains, predicts and measures in the middle of a batch"
    order = 20
    def __init__(self, what): self.what,self.busy = what,[]
    def after_pred(self):
        if not self.training or self.iter!=3 or self.busy: return
        self.busy.append(1)
        l,names = self.learn,'dl iter n_iter xb yb pred n_epoch epoch train_iter pct_train training'.split()
        keep = {k:vars(l)[k] for k in names}
        {'fit':lambda: l.fit(1), 'predict':lambda: l.get_preds(dl=l.dls.valid)}[self.what]()
        for k,v in keep.items(): setattr(l, k, v)
        l.model.train()
        self.busy.pop()

@pytest.mark.parametrize('what', ['fit','predict'])
def test_a_fit_inside(what):
    a,b = (trained(q, cbs=[Fits(what), Log()]) for q in (False,True))
    assert a.noted==b.noted and same(snap(a.model), snap(b.model))

def test_an_error_says_where_it_was():
    class Fails(Callback):
        def after_loss(self): raise ValueError('because')
    said = []
    for q in (False,True):
        with pytest.raises(ValueError) as e: trained(q, cbs=Fails())
        said.append(str(e.value))
    assert said[0]==said[1] and 'Fails' in said[0] and 'after_loss' in said[0]
    class Silent(Callback):
        def after_loss(self): raise KeyError
    with pytest.raises(KeyError): trained(True, cbs=Silent())

def test_interrupted():
    class Stop(Callback):
        def after_pred(self): raise KeyboardInterrupt
    learn = make(cbs=Stop())
    with pytest.raises(KeyboardInterrupt), learn.no_bar(), fast_loop(learn): learn.fit(1)
    assert 'one_batch' not in vars(learn)

def test_inside_another_and_exported(tmp_path):
    learn = make(path=tmp_path)
    class Exports(Callback):
        def after_batch(self):
            if self.training and self.iter==1: self.learn.export('half.pkl')
    with learn.no_bar(), learn.no_logging(), fast_loop(learn):
        loop = learn.one_batch
        with fast_loop(learn): assert learn.one_batch is loop
        assert learn.one_batch is loop
        learn.fit(1)
    learn.export()
    new = load_learner(tmp_path/'export.pkl')
    assert 'one_batch' not in vars(new)

def test_a_loop_can_be_pickled():
    learn = make()
    with learn.no_bar(), learn.no_logging(), fast_loop(learn):
        learn.fit(1)
        new = pickle.loads(pickle.dumps(learn.one_batch))
    assert isinstance(new, FastLoop) and new.cbs is None

@pytest.mark.parametrize('f', [CrossEntropyLossFlat(), BCEWithLogitsLossFlat(), MSELossFlat(),
    L1LossFlat(), LabelSmoothingCrossEntropyFlat(eps=.2), FocalLossFlat(gamma=1.),
    CrossEntropyLossFlat(weight=tensor([1.,2,3])),
    CrossEntropyLossFlat(reduction='none')])
def test_losses_on_plain_tensors(f):
    set_seed(0)
    p = torch.randn(5, 3, requires_grad=True)
    y = torch.randint(0, 3, (5,)) if 'Cross' in str(f) or 'Focal' in str(f) else torch.rand(5, 3).round()
    a = f(p, y)
    with plain_loss(f), plain_loss(f): b = f(p, y)
    assert '_contiguous' not in vars(f) and type(f(p, y)) is type(a)
    assert torch.equal(a.as_subclass(Tensor), b) and type(b) is Tensor
    ga,gb = (torch.autograd.grad(o.sum(), p)[0] for o in (a,b))
    assert torch.equal(ga.as_subclass(Tensor), gb.as_subclass(Tensor))

def test_progress_and_recorder(capsys):
    "The bar ends full, with the smooth loss; the graph's data are fastai's"
    bars = []
    for q in (False,True):
        learn = make(bs=1, n=400)
        set_seed(1)
        with learn.no_logging(), fast_loop(learn) if q else nullcontext(): learn.fit(1)
        bars.append((learn.progress.pbar.comment, learn.progress.pbar.total))
        assert len(learn.recorder.losses)==390
        out = capsys.readouterr().out
        assert '390/390' in out
    assert bars[0][1]==bars[1][1]

def test_slices_are_the_loader_s():
    "TensorDL's short way: the same batches, random numbers and types; not taken where something is done to them"
    x,y = torch.randn(13, 3),torch.randint(0, 3, (13,))
    class Long(TensorDL):
        def create_batch(self, b): return super().create_batch(b)
    for kw in (dict(shuffle=True), dict(), dict(drop_last=True, shuffle=True), dict(bs=1), dict(bs=20),
               dict(bs=20, drop_last=True)):
        a,b = (cls(x, y, **{**dict(bs=4), **kw}) for cls in (TensorDL,Long))
        assert a.only_slices() and not b.only_slices()
        got = []
        for dl in (a,b):
            dl.rng = random.Random(3)
            set_seed(0)
            got.append(([*dl], [*dl], torch.get_rng_state(), dl.rng.getstate()))
        for p,q in zip(got[0][:2], got[1][:2]):
            assert len(p)==len(q)==len(a)
            for s,t in zip(p, q):
                assert type(s) is type(t) and all(type(u) is type(v) and torch.equal(u, v) for u,v in zip(s, t))
        assert torch.equal(got[0][2], got[1][2]) and got[0][3]==got[1][3]
    images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    assert not TensorDL(images, y[:4]).only_slices()            # turned to floats
    assert not TensorDL(x, y, after_batch=lambda b: b).only_slices()
    dl = TensorDL(x, y)
    dl.after_batch = Pipeline([noop])
    assert not dl.only_slices()
