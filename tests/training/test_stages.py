"Stages, really frozen epochs, the best epoch, checkpoints and resuming"
import errno, random, tarfile
from pathlib import Path
import pytest
from fastai.vision.all import *
from contracts.made import StopAt
from memo.core import MemoError
from memo.banks.base import Bank
from memo.banks.slots import SlotBank
from memo.heads.base import MemoryHead
from memo.training.memory_callback import MemoryCallback
from memo.training.param_groups import *
from memo.training.stages import *
from memo.training.two_phase import *
from memo.training import stages as recipe
for k in [k for k in globals() if k.startswith('test')]: del globals()[k]     # fastai's, which pytest would collect

def make(seed=0, bs=8, cbs=None, splitter=body_head_splitter, opt_func=adamw, memory=False):
    "A learner with everything that a resume could get wrong: shuffling, dropout, noise from three generators, a bank"
    set_seed(seed)
    x = torch.randn(64,4); y = (x@torch.randn(4,3)).argmax(1)
    class Noisy(list):
        def __getitem__(self, i):
            a,b = super().__getitem__(i)
            return a + .1*torch.randn(4) + .1*random.random() + .1*float(np.random.rand()),b
    trn,val = Noisy(zip(x[:48], y[:48])),list(zip(x[48:], y[48:]))
    dls = DataLoaders.from_dsets(trn, val, bs=bs, num_workers=0, device='cpu')
    dls.c = 3
    m = nn.Sequential(nn.Linear(4,8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(.2), nn.Linear(8,3))
    cbs = L(cbs) + ([MemoryCallback(SlotBank(20, policy='reservoir', n_classes=3), k=3, head='add')] if memory else [])
    return Learner(dls, m, loss_func=CrossEntropyLossFlat(), opt_func=opt_func, splitter=splitter, metrics=accuracy,
                   cbs=cbs)

def quiet(learn): return ContextManagers([learn.no_bar(), learn.no_logging()])
def two_phase(learn, dls2=None, **kw):
    with quiet(learn):
        return learn.fit_two_phase(learn.dls, dls2,
                                   **{**dict(epochs=(2,2), freeze_epochs=1, lr=(1e-2,(1e-4,1e-3))), **kw})
def same(h, h2): pd.testing.assert_frame_equal(h.drop(columns='seconds'), h2.drop(columns='seconds'), check_exact=True)
def same_model(a, b):
    a,b = a.model.state_dict(),b.model.state_dict()
    assert a.keys()==b.keys()
    for k in a: assert torch.equal(a[k], b[k]), k

# splitter

def test_splitter_groups():
    import timm
    m = timm.create_model('resnet18', num_classes=3)
    body,head = body_head_splitter(m)
    assert {id(p) for p in head} == {id(p) for p in m.fc.parameters()}
    assert len(body)+len(head) == len(list(m.parameters()))

def test_splitter_puts_the_memory_aside():
    learn = make(memory=True)
    assert [len(o) for o in body_head_splitter(learn.model)] == [4,2]

class OwnHead(MemoryHead):
    "Somebody's own, from a module that memo does not know"
    def __init__(self, bank):
        super().__init__(bank, 1)
        self.scale = nn.Parameter(torch.ones(3))

class OwnBank(SlotBank):
    def __init__(self):
        super().__init__(4)
        self.mine = nn.Parameter(torch.ones(4,3))

@pytest.mark.parametrize('make_part', [lambda: OwnHead(SlotBank(4)), OwnBank, lambda: OwnHead(OwnBank())])
def test_parameters_of_ones_own_memory_are_in_the_head_group(make_part):
    m = make().model
    m.insert(2, make_part())
    body,head = body_head_splitter(m)
    own = {id(p) for p in m[2].parameters()}
    assert own and own<={id(p) for p in head} and not own&{id(p) for p in body}

def test_splitter_without_head():
    with pytest.raises(MemoError, match='no nn.Linear'): body_head_splitter(nn.Sequential(nn.Conv2d(1,1,1), nn.ReLU()))

@pytest.mark.parametrize('opt', [adamw, Adam])
def test_freeze_freezes(opt):
    learn = make(opt_func=opt)
    was = {k:v.clone() for k,v in learn.model.state_dict().items()}
    with quiet(learn): fit_stages(learn, [Stage('a', 2, 1e-2, freeze=True)])
    now = learn.model.state_dict()
    assert torch.equal(was['0.weight'], now['0.weight']) and torch.equal(was['0.bias'], now['0.bias'])
    assert not torch.equal(was['4.weight'], now['4.weight'])
    # batch norm of a frozen body trains on, as in fastai
    assert not torch.equal(was['1.weight'], now['1.weight'])
    with quiet(learn): fit_stages(learn, [Stage('b', 1, 1e-2, freeze=False)])
    assert not torch.equal(was['0.weight'], learn.model.state_dict()['0.weight'])

def test_discriminative_rates():
    learn,seen = make(),[]
    class See(Callback):
        def before_step(self): seen.append([h['lr'] for h in self.opt.hypers])
    with quiet(learn): fit_stages(learn, [Stage('b', 1, slice(1e-5,1e-3), freeze=False)], cbs=See())
    assert all(abs(b/a-100)<1e-6 for a,b in seen)

def test_one_group_is_an_error():
    learn = make(splitter=trainable_params)
    with pytest.raises(MemoError, match='body_head_splitter'), quiet(learn):
        fit_stages(learn, [Stage('a', 1, 1e-2, freeze=True)])

def test_two_phase_brings_the_splitter():
    learn,seen = make(splitter=trainable_params),[]
    class See(Callback):
        def before_batch(self): seen.append(len(self.opt.param_lists))
    two_phase(learn, cbs=See())
    assert set(seen)=={2} and learn.splitter is trainable_params

# the schedule is fine_tune's

def test_phase1_is_fine_tune():
    a = make()
    recipe.warm_loaders(a.dls.loaders)       # fit_stages does, and it draws random numbers
    with quiet(a): a.fine_tune(2, 1e-2, freeze_epochs=1)
    b = make()
    with quiet(b): fit_stages(b, phase1_stages(2, 1, 1e-2))
    same_model(a, b)

def test_momentum_and_data_of_each_phase():
    learn,seen = make(memory=True),[]
    dls2 = make(1).dls
    class See(Callback):
        def before_batch(self):
            if self.training: seen.append((self.learn.memory.bank.momentum, self.dls is dls2))
    two_phase(learn, dls2, cbs=See())
    assert set(seen[:18]) == {(.9,False)} and set(seen[18:]) == {(.9999,True)}

def test_momentum_without_memory(): assert len(two_phase(make()))==5

@pytest.mark.parametrize('stop', [None,3,25])
def test_momentum_is_put_back(tmp_path, stop):
    """Of every memory in the model, and whether the recipe ends or is stopped; a resumed one knows what was there
    before the first stage"""
    def two():
        learn = make(memory=True)
        learn.model.add_module('second', nn.Identity())
        learn.model.second.bank = SlotBank(8, momentum=.25)
        return learn
    learn,seen = two(),[]
    class See(Callback):
        def before_batch(self): seen.append((self.learn.memory.bank.momentum, self.model.second.bank.momentum))
    def now(learn): return learn.memory.bank.momentum,learn.model.second.bank.momentum
    if stop is None: two_phase(learn, cbs=See())
    else:
        with pytest.raises(KeyboardInterrupt): two_phase(learn, cbs=[See(),StopAt(stop)], checkpoint=tmp_path)
    assert now(learn)==(0.,.25) and set(seen)<={(.9,.9),(.9999,.9999)} and (stop==3 or len(set(seen))==2)
    if stop is not None:
        learn = two()
        two_phase(learn, checkpoint=tmp_path, resume=True)
        assert now(learn)==(0.,.25)

def test_another_loss_for_each_phase():
    learn,seen = make(),[]
    class See(Callback):
        def before_fit(self): seen.append(type(self.learn.loss_func))
    two_phase(learn, loss_func=(CrossEntropyLossFlat(), LabelSmoothingCrossEntropyFlat()), cbs=See())
    assert seen==[CrossEntropyLossFlat]*2+[LabelSmoothingCrossEntropyFlat]

# best epoch

@pytest.mark.parametrize('folder', [False,True])
def test_phase2_starts_from_the_best(tmp_path, folder):
    learn,states,starts = make(memory=True),[],[]
    vals = iter([.3, .9, .5])
    # one batch of validation an epoch
    learn.metrics = L(AvgMetric(lambda p,y: next(vals) if len(states)<3 and len(p) else 0.))
    learn.dls[1].bs = 16
    class See(Callback):
        order = 50
        def after_validate(self): states.append({k:v.clone() for k,v in self.model.state_dict().items()})
        def before_fit(self): starts.append({k:v.clone() for k,v in self.model.state_dict().items()})
    two_phase(learn, monitor='highest <lambda>', cbs=See(), checkpoint=tmp_path/'c' if folder else None)
    for k in states[1]:
        # the momentum is phase 2's already
        if 'extra_state' not in k: assert torch.equal(starts[2][k], states[1][k]), k
    assert not torch.equal(starts[2]['0.weight'], states[2]['0.weight'])
    if folder: assert not list((tmp_path/'c').glob('best*'))      # the last phase has no monitor

def test_unknown_monitor():
    with pytest.raises(MemoError, match='did you mean .*accuracy'): two_phase(make(), monitor='acuracy')

def test_no_validation_set_no_monitor():
    learn = make()
    learn.dls = DataLoaders(learn.dls.train, learn.dls[1].new([]), device='cpu')
    assert len(two_phase(learn))==5

def test_patience():
    learn = make()
    h = two_phase(learn, epochs=(6,1), patience=(2,None), min_delta=1e9)
    assert h.stage.tolist() == ['phase1.frozen']+['phase1.all']*2+['phase2']

# checkpoints

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "By optimizer: a run that nothing stops, and its history"
    made = {}
    def _whole(opt):
        if opt not in made:
            learn = make(memory=True, opt_func=opt)
            made[opt] = learn,two_phase(learn, checkpoint=tmp_path_factory.mktemp('whole'))
        return made[opt]
    return _whole

@pytest.mark.parametrize('opt,n', [pytest.param(o, n, marks=[pytest.mark.nightly]*(o is Adam and n not in (6,19)))
                                   for o in (adamw,Adam) for n in (1,6,10,13,18,19,25,29)])
def test_resume_is_exact(tmp_path, whole, n, opt):
    a,h = whole(opt)
    b = make(memory=True, opt_func=opt)
    with pytest.raises(KeyboardInterrupt): two_phase(b, checkpoint=tmp_path/'b', cbs=StopAt(n))
    c = make(memory=True, opt_func=opt)
    random.random(); torch.rand(3); np.random.rand()      # a resume does not lean on the caller's random states
    h2 = two_phase(c, checkpoint=tmp_path/'b', resume=True)
    same(h, h2); same_model(a, c)
    assert L(a.recorder.losses).map(float)==L(c.recorder.losses).map(float) and a.recorder.lrs==c.recorder.lrs

def test_checkpoints_change_nothing(tmp_path):
    same(two_phase(make(memory=True)), two_phase(make(memory=True), checkpoint=tmp_path/'a'))

def test_resume_of_a_finished_run(tmp_path):
    a,b = make(),make()
    h = two_phase(a, checkpoint=tmp_path)
    same(h, two_phase(b, checkpoint=tmp_path, resume=True)); same_model(a, b)

def test_resume_without_checkpoint_starts(tmp_path):
    same(two_phase(make()), two_phase(make(), checkpoint=tmp_path/'none', resume=True))

def test_checkpoints_hold_plain_values(tmp_path):
    two_phase(make(memory=True), checkpoint=tmp_path)
    fs = list(tmp_path.glob('*.pt'))
    assert len([f for f in fs if f.name[0]=='s'])==2
    for f in fs: torch.load(f, weights_only=True)

def test_damaged_checkpoint(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt): two_phase(make(), checkpoint=tmp_path, cbs=StopAt(14))
    new,old = (tmp_path/'s1_e1.pt'),(tmp_path/'s1_e0.pt')
    new.write_bytes(new.read_bytes()[:500])
    h = two_phase(make(), checkpoint=tmp_path, resume=True)
    out = capsys.readouterr().out
    assert 's1_e1.pt is damaged' in out and 'going on from s1_e0.pt' in out and len(out.strip().splitlines())==1
    same(h, two_phase(make()))

def test_all_checkpoints_damaged(tmp_path):
    with pytest.raises(KeyboardInterrupt): two_phase(make(), checkpoint=tmp_path, cbs=StopAt(14))
    for f in tmp_path.glob('s*.pt'): f.write_bytes(f.read_bytes()[:500])
    with pytest.raises(MemoError, match='s1_e0.pt is damaged') as e: two_phase(make(), checkpoint=tmp_path, resume=True)
    assert '\n' not in str(e.value)

def test_another_recipe(tmp_path):
    with pytest.raises(KeyboardInterrupt): two_phase(make(), checkpoint=tmp_path, cbs=StopAt(8))
    with pytest.raises(MemoError, match='another recipe: stage phase1.all has epochs=2 there, 3 here'):
        two_phase(make(), epochs=(3,2), checkpoint=tmp_path, resume=True)

def test_another_model(tmp_path):
    with pytest.raises(KeyboardInterrupt): two_phase(make(), checkpoint=tmp_path, cbs=StopAt(8))
    learn = make()
    learn.model[4] = nn.Linear(8,5)
    with pytest.raises(MemoError, match='of another model'): two_phase(learn, checkpoint=tmp_path, resume=True)

def test_full_disk(tmp_path, monkeypatch):
    write = torch.save
    def full(o, f):
        if 's1_e1' in f.name:
            f.write(bytes(100))
            raise OSError(errno.ENOSPC, 'No space left on device')
        write(o, f)
    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(MemoError, match='No space left on device'): two_phase(make(), checkpoint=tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir() if f.name[0]!='b') == ['s0_e0.pt','s1_e0.pt']
    monkeypatch.undo()
    h = two_phase(make(), checkpoint=tmp_path, resume=True)
    same(h, two_phase(make()))

def test_resume_needs_a_folder():
    with pytest.raises(MemoError, match='checkpoint='): two_phase(make(), resume=True)

def test_checkpoint_is_a_file(tmp_path):
    (tmp_path/'f').write_text('x')
    with pytest.raises(MemoError, match='cannot make the folder'): two_phase(make(), checkpoint=tmp_path/'f')

@pytest.mark.parametrize('kw,msg',
                         [(dict(lr=1e-3),'lr must be a pair'), (dict(epochs=(1,2,3)),'epochs must be a pair')])
def test_bad_arguments(kw, msg):
    with pytest.raises(MemoError, match=msg): two_phase(make(), **kw)

def test_splitter_of_a_fastai_model():
    from torchvision.models import resnet18
    m = nn.Sequential(create_body(resnet18(weights=None)), create_head(512, 3))
    assert [len(o) for o in body_head_splitter(m)] == [len(params(m[0])), len(params(m[1]))]

def test_real_save_is_exact_after_best_and_patience(tmp_path):
    kw = dict(epochs=(4,2), monitor=('accuracy','valid_loss'), patience=2)
    a = make(memory=True)
    h = two_phase(a, checkpoint=tmp_path/'a', **kw)
    b = make(memory=True)
    with pytest.raises(KeyboardInterrupt): two_phase(b, checkpoint=tmp_path/'b', cbs=StopAt(15), **kw)
    c = make(memory=True)
    same(h, two_phase(c, checkpoint=tmp_path/'b', resume=True, **kw)); same_model(a, c)

# any way of fitting

def test_fit_by_name():
    a = make()
    recipe.warm_loaders(a.dls.loaders)
    with quiet(a): a.fit_flat_cos(3, 1e-2, pct_start=.5)
    b = make()
    with quiet(b): h = fit_stages(b, [Stage('flat', 3, 1e-2, fit='fit_flat_cos', kw=dict(pct_start=.5))])
    same_model(a, b)
    assert h.epoch.tolist()==[0,1,2]

@pytest.mark.parametrize('fit', ['fit_one_cylce','dls',None])
def test_unknown_way_of_fitting(fit):
    learn = make()
    with pytest.raises(MemoError, match='stage odd: fit=.*is accepted'), quiet(learn):
        fit_stages(learn, [Stage('odd', 1, fit=fit)])

def parts(learn, n=3):
    "A stream: the same items in loaders of their own, which shuffle by their own random states"
    res = [DataLoaders(learn.dls.train.new(shuffle=True), learn.dls.valid) for _ in range(n)]
    for i,o in enumerate(res): o.train.rng = random.Random(i)
    return res

def stream(parts, epochs):
    "A way of fitting that makes a fit for each of `parts`"
    def fit(learn, stage, cbs, start_epoch):
        for i,dls in enumerate(parts):
            if start_epoch>=(i+1)*epochs: continue
            learn.dls = dls
            torch.rand(1), random.random()      # what lies between two fits may draw
            learn.fit(epochs, 1e-2*(i+1), cbs=cbs, start_epoch=max(0, start_epoch-i*epochs))
    return fit

def stages_of(learn):
    ps = parts(learn)
    return [Stage('before', 1, 1e-2, True),
            Stage('stream', 6, fit=stream(ps, 2), loaders=ps, freeze=False, momentum=.5), Stage('after', 1, 1e-3)]

def run_stream(folder=None, resume=False, cbs=None):
    learn = make(memory=True)
    with quiet(learn): return learn,fit_stages(learn, stages_of(learn), checkpoint=folder, resume=resume, cbs=cbs)

@pytest.fixture(scope='module')
def whole_stream(): return run_stream()

def test_a_stream_is_a_stage(whole_stream):
    _,h = whole_stream
    assert h.stage.tolist()==['before']+['stream']*6+['after'] and h.epoch.tolist()==[0,*range(6),0]

@pytest.mark.parametrize('n', [3,8,14,19,20,26,31,40,45])
def test_a_stream_resumes_exactly(tmp_path, whole_stream, n):
    "Stopped before, in and between the fits of a stage"
    a,h = whole_stream
    with pytest.raises(KeyboardInterrupt): run_stream(tmp_path, cbs=StopAt(n))
    random.random(); torch.rand(3); np.random.rand()
    c,h2 = run_stream(tmp_path, resume=True)
    same(h, h2); same_model(a, c)

def test_another_way_of_fitting_is_another_recipe(tmp_path):
    learn = make()
    with quiet(learn): fit_stages(learn, [Stage('a', 1, 1e-2)], checkpoint=tmp_path)
    with pytest.raises(MemoError, match='has fit=fit_one_cycle there, fit_flat_cos here'), quiet(learn):
        fit_stages(learn, [Stage('a', 1, 1e-2, fit='fit_flat_cos')], checkpoint=tmp_path, resume=True)

# a fit in which others are made

class Look(Callback):
    """Predicts or validates in the middle of the fit, in the event it is told; not in epochs that are skipped,
    where fastai itself cannot"""
    def __init__(self, event, order, call):
        self.order,self.busy,self.n,self.trained = order,False,0,False
        setattr(self, event, partial(self.look, call))
    def before_train(self): self.trained = True
    def look(self, call):
        if self.busy or not self.trained: return
        self.busy,self.n = True,self.n+1
        with self.learn.no_bar(), self.learn.no_logging(): call(self.learn)
        self.busy = self.trained = False

@pytest.mark.parametrize('call', [lambda l: l.get_preds(), lambda l: l.validate()], ids=['get_preds','validate'])
@pytest.mark.parametrize('event,order', [('after_epoch',60),('after_epoch',0),('after_epoch',90),('after_validate',1)])
def test_a_prediction_inside_is_no_epoch(tmp_path, event, order, call):
    def run(cbs, folder, resume=False, stop=None):
        learn = make()
        learn.metrics = L()
        with quiet(learn):
            h = fit_stages(learn, [Stage('a', 3, 1e-2), Stage('b', 2, 1e-3)], checkpoint=folder, cbs=L(cbs)+L(stop),
                           resume=resume)
        return h
    look = Look(event, order, call)
    h = run(look, tmp_path/'a')
    assert look.n>=5 and h.stage.tolist()==['a']*3+['b']*2 and h.epoch.tolist()==[0,1,2,0,1] and h.notna().all().all()
    with pytest.raises(KeyboardInterrupt): run(Look(event, order, call), tmp_path/'b', stop=StopAt(15))
    same(h, run(Look(event, order, call), tmp_path/'b', resume=True))

# the experiment

def begun(folder, experiment):
    learn = make()
    with pytest.raises(KeyboardInterrupt), quiet(learn):
        fit_stages(learn, [Stage('a', 3, 1e-2)], checkpoint=folder, cbs=StopAt(8), experiment=experiment)
def go_on(folder, experiment):
    learn = make()
    with quiet(learn):
        return fit_stages(learn, [Stage('a', 3, 1e-2)], checkpoint=folder, resume=True, experiment=experiment)

here = {'train.lr':.01, 'data.name':'digits_lt', 'memory.bank.size':512, 'memory.head.k':(5,10), 'runs':Path('a/b'),
        'train.loss':None}

def test_the_same_experiment_goes_on(tmp_path):
    begun(tmp_path, here)
    assert len(go_on(tmp_path, {**here, 'memory.head.k':[5,10], 'runs':'a/b'}))==3

@pytest.mark.parametrize('other,msg',
                         [({**here, 'train.lr':.02}, 'train.lr is 0.01 there, 0.02 here'),
                          ({**here, 'memory.head.k':[5,20]}, r'memory.head.k is \[5, 10\] there, \[5, 20\] here'),
    ({k:v for k,v in here.items() if k!='train.loss'}, 'train.loss is None there, not given here'),
    ({**here, 'memory.bank.momentum':.9}, 'memory.bank.momentum is not given there, 0.9 here'),
    ({**here, 'train.lr':.02, 'runs':'x'*9000, 'data.name':'fashion_lt'}, r"train.lr is 0.01 there, 0.02 here \(and 2 "
        r"more: data.name, runs\)")])
def test_another_experiment_is_refused_by_its_key(tmp_path, other, msg):
    begun(tmp_path, here)
    was = {p.name:p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(MemoError, match=msg) as e: go_on(tmp_path, other)
    assert '\n' not in str(e.value) and len(str(e.value))<500
    assert {p.name:p.read_bytes() for p in tmp_path.iterdir()}==was       # and nothing is lost

def test_a_checkpoint_that_does_not_say(tmp_path):
    begun(tmp_path, None)
    with pytest.raises(MemoError, match='does not say which experiment'): go_on(tmp_path, here)

def test_checkpoints_of_the_last_version_are_refused_in_one_line(tmp_path, repo):
    with tarfile.open(repo/'tests/golden/runs.tar.xz') as t: t.extractall(tmp_path, filter='data')
    learn = make()
    with pytest.raises(MemoError, match='memo 0.1.0') as e, quiet(learn):
        fit_stages(learn, [Stage('train', 2, 1e-2)], checkpoint=tmp_path/'runs/cut/checkpoints', resume=True)
    assert '\n' not in str(e.value) and 'pip install fastmemo==0.1.0' in str(e.value) and 'without resume' in str(
        e.value)

# what a later stage does not say

@pytest.mark.parametrize('n', [14,20])
def test_resume_knows_what_earlier_stages_left(tmp_path, n):
    """Loss, loaders and freezing of a stage that says none are those of the stages before it, also in a process
    that never ran them"""
    def stages():
        return [Stage('a', 1, 1e-2, True, loss_func=LabelSmoothingCrossEntropyFlat(eps=.3), dls=make(bs=6).dls),
                Stage('b', 1, 1e-2), Stage('c', 1, 1e-2)]
    def run(folder, resume=False, cbs=None):
        learn = make()
        with quiet(learn): return learn,fit_stages(learn, stages(), checkpoint=folder, resume=resume, cbs=cbs)
    a,h = run(tmp_path/'a')
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'b', cbs=StopAt(n))
    c,h2 = run(tmp_path/'b', resume=True)
    same(h, h2); same_model(a, c)
