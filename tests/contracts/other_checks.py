"""What every loss, sampler, data set, model, metric, baseline, task and callback does; the first argument is the
name of the part"""
import inspect, json, math, pickle
from copy import deepcopy
import pytest, torch
from fastai.data.all import DataLoaders
from fastai.learner import Learner, load_learner
from fastai.vision.all import AttrDict, Callback, CrossEntropyLossFlat, L, Metric, nn, set_seed, trainable_params
from memo.heads.attach import find_place
from memo.banks.slots import SlotBank
from memo.evaluation.baselines import Baseline, baseline, suits
from memo.training.memory_callback import MemoryCallback
from memo.experiment.config import from_dict, override
from memo.core import MemoError
from memo.data.tensors import TensorDL
from memo.data.longtail import digits_lt
from memo.data.samplers import loader_for
from memo.data.items import item_ids
from memo.training.param_groups import body_head_splitter
from memo.registry import Section, find, kinds, known, part
from memo.schema import required, union_members
from memo.evaluation.tasks import Task, own_metrics, task_of
from .made import CLASSES, Net, build, digits, learner, other, quietly, takes

def plain(o): return json.loads(json.dumps(o))

def outputs(multi, n=12):
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (n,CLASSES), generator=g).float() if multi else torch.randint(0, CLASSES, (n,), generator=g)
    return torch.randn(n, CLASSES, generator=g),y

def _takes_any(name, kind, make):
    "Every argument takes another value, and the part works"
    for k,p in takes(kind, name).items():
        if k in ('reduction','root') or k in kinds[kind].given or (v := other(p)) is None: continue
        try: made = build(kind, name, **{k:v})
        except MemoError as e: assert '\n' not in str(e)
        else: make(made)

# losses

def _kinds(name):
    "The labels that a loss, metric or baseline is for: by the task it names, else any it takes"
    t = known('loss').get(name) or known('metric').get(name)
    return [t.facts['task']=='multilabel'] if t is not None and t.facts.get('task') in ('multiclass',
        'multilabel') else [False]

def loss_is_differentiable(name):
    def of(f):
        for multi in _kinds(name):
            x,y = outputs(multi)
            x.requires_grad_()
            l = f(x, y)
            l.backward()
            assert l.shape==() and l.isfinite() and float(l)>0 and x.grad.isfinite().all() and x.grad.abs().sum()>0
            good,bad = ((10*(2*y-1),10*(1-2*y)) if multi else (10*torch.eye(CLASSES)[y],-10*torch.eye(CLASSES)[y]))
            assert f(good, y)<f(bad, y)
    of(build('loss', name))
    _takes_any(name, 'loss', of)

def loss_is_pickled(name):
    f = build('loss', name)
    for multi in _kinds(name):
        x,y = outputs(multi)
        assert torch.equal(pickle.loads(pickle.dumps(f))(x, y), f(x, y))

def loss_says_probabilities(name):
    "`activation` for fastai's predictions, `decodes` for its decisions"
    f = build('loss', name)
    for multi in _kinds(name):
        x,y = outputs(multi)
        p = f.activation(x)
        assert p.shape==x.shape and ((p>=0) & (p<=1)).all()
        assert torch.equal(f.decodes(p).long() if multi else f.decodes(p), (x>0).long() if multi else x.argmax(1))

# samplers

def sampler_draws(name):
    "A loader of the training set: as many rows as asked for, all of the set, no random number but the loader's"
    def of(s):
        cls,kw = loader_for(s)
        assert issubclass(cls, TensorDL)
        dls = digits_lt(n_max=20, ratio=5, valid=5, test=5, size=8, bs=8, sampling=s, device='cpu')
        assert type(dls.train) is cls and type(dls.valid) is TensorDL
        was = torch.get_rng_state()
        xb,yb = next(iter(dls.train))
        idxs = list(dls.train.get_idxs())
        assert len(xb)==8 and len(idxs)==dls.train.n and 0<=min(idxs) and max(idxs)<len(dls.train.dataset) and len(
            set(idxs))>1
        again = [digits_lt(n_max=20, ratio=5, valid=5, test=5, size=8, bs=8, seed=o, sampling=s,
                           device='cpu').train.get_idxs() for o in (0,0,1)]
        assert list(again[0])==list(again[1])!=list(again[2])
        assert sorted(dls.train.new(shuffle=False, cls=TensorDL).get_idxs())==list(range(len(dls.train.dataset)))
    of(build('sampler', name))
    _takes_any(name, 'sampler', of)

def sampler_is_pickled(name):
    cls,kw = loader_for(build('sampler', name))
    assert pickle.loads(pickle.dumps((cls,kw)))==(cls,kw)

# data sets

def is_stream(name): return known('data')[name].facts.get('task')=='stream'

def loaders(name, **kw):
    "Its loaders, those of everything where it is a stream"
    ps = takes('data', name)
    if is_stream(name) and 'images' in ps: kw = dict(n=ps['n'].default, images=200) | kw    # n are its experiences
    try: return build('data', name, **kw).whole if is_stream(name) else build('data', name, **kw)
    except MemoError as e:
        assert '\n' not in str(e)
        if 'root' not in takes('data', name): raise
        pytest.skip(f'{name} reads files that are not here: {e}')

def data_has_three_parts(name):
    dls = loaders(name)
    assert len(dls.loaders)==3 and dls.c>1 and len(dls.vocab)==dls.c
    for i,dl in enumerate(dls.loaders):
        x,y = dl.one_batch()
        assert x.dtype==torch.float32 or x.dtype==torch.uint8
        assert x.isfinite().all() and len(x)==len(y)<=16
    for a,b in ((0,1),(0,2),(1,2)):
        assert not set(item_ids(dls[a]).tolist()) & set(item_ids(dls[b]).tolist()), 'an item is in two parts'

def data_suits_its_task(name):
    "That it names, or that its labels mean"
    dls = loaders(name)
    t = None if is_stream(name) else known('data')[name].facts.get('task')
    task = task_of(dls, t)
    assert isinstance(task, Task) and task.suits(torch.as_tensor(dls.train.dataset.y[:2]))

def data_is_repeatable(name):
    "The same seed, the same batches; ids say the same in another process's set; another seed is another order"
    a,b,c = loaders(name),loaders(name),loaders(name, seed=1)
    for i in range(3):
        assert torch.equal(item_ids(a[i]),
                           item_ids(b[i])) and len(item_ids(a[i]).unique())==len(item_ids(a[i])) and (
                               item_ids(a[i])>=0).all()
    assert torch.equal(next(iter(a.train))[1], next(iter(b.train))[1])
    set_seed(0); x = next(iter(loaders(name).valid))[0]
    set_seed(1); assert torch.equal(x, next(iter(loaders(name).valid))[0]), 'validation is augmented'
    assert not torch.equal(torch.as_tensor(a.train.get_idxs()), torch.as_tensor(c.train.get_idxs()))

def data_takes_samplers(name):
    dls = loaders(name)
    if 'sampling' not in takes('data', name) or not is_stream(name) and task_of(
        dls, known('data')[name].facts.get('task')).suits(torch.zeros(2, 3)): return
    cls,kw = loader_for(build('sampler', 'balanced'))
    assert type(loaders(name, sampling=(cls,kw)).train) is cls

def data_is_trained_on(name, tmp_path):
    "With a memory; the export holds none of it"
    dls = loaders(name)
    multi = not is_stream(name) and task_of(dls, known('data')[name].facts.get('task')).suits(torch.zeros(2, 3))
    width = dls.one_batch()[0][0].numel()
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(width, dls.c)),
                    loss_func=nn.BCEWithLogitsLoss() if multi else CrossEntropyLossFlat(),
                    cbs=MemoryCallback(SlotBank(16, policy='fifo'), head=None))
    quietly(learn, learn.fit, 1, 1e-3)
    assert torch.isin(learn.memory.bank.items[:len(learn.memory.bank)],
                      item_ids(dls.train)).all() and len(learn.memory.bank)==16

# models

def is_flat(name): return known('model')[name].facts.get('flat')
def some_inputs(name, size): return torch.rand(2, 2) if is_flat(name) else torch.rand(2, 1, size, size)

def model_answers(name):
    "In front of its classifier sits a memory, its classifier is the head's group"
    def of(m):
        size = 64 if sum(p.numel() for p in m.parameters())>1e6 else 16
        with torch.no_grad(): out = m.eval()(some_inputs(name, size))
        assert out.shape==(2,CLASSES) and out.isfinite().all()
        if is_flat(name): return        # a single layer has no body
        assert find_place(m) is not None
        body,head = body_head_splitter(m)
        assert len(body) and len(head)
    m = build('model', name)
    of(m)
    a = pickle.loads(pickle.dumps(m))
    b = build('model', name)
    b.load_state_dict(m.state_dict())
    x = some_inputs(name, 64)
    with torch.no_grad(): assert torch.equal(a.eval()(x), m.eval()(x)) and torch.equal(b.eval()(x), m(x))

def model_takes_a_memory(name):
    m = build('model', name, n_classes=10, n_out=10, num_classes=10, n_in=256)
    big = sum(p.numel() for p in m.parameters())>1e6
    dls = digits_lt(n_max=8, ratio=2, valid=2, test=2, size=64 if big else 16, bs=8, device='cpu')
    flat = is_flat(name)
    learn = Learner(dls, m, loss_func=CrossEntropyLossFlat(), splitter=trainable_params if flat else body_head_splitter,
                    cbs=MemoryCallback(SlotBank(16, policy='fifo'), head='add'))
    if not flat: learn.freeze()
    class Short(Callback):
        def after_batch(self):
            if self.iter>=1: self.learn._cancel()
    def stop(): raise __import__('fastai.callback.core', fromlist=['x']).CancelFitException()
    learn._cancel = stop
    quietly(learn, learn.fit, 1, 1e-3, cbs=Short())
    assert len(learn.memory.bank)>0 and learn.memory.bank.features.isfinite().all()

# metrics

def metric_measures(name):
    multi, = _kinds(name)
    dls = digits(multi)
    ms = own_metrics(Section('metric', name, {k:p.default for k,p in known('metric')[name].keys.items()}), dls)
    assert ms
    for k,m in ms.items():
        assert isinstance(k, str) and k
        y = dls.valid_ds.y
        p = torch.randn(len(y), dls.c, generator=torch.Generator().manual_seed(0)).softmax(1)
        if callable(m):
            v = float(m(p, y))
            assert math.isfinite(v)
            assert v==float(m(p, y))
        else:
            assert isinstance(m, Metric)
    learn = learner(multi=multi)
    from memo.evaluation.tasks import progress
    learn.metrics = L(progress(task_of(dls), dls,
                               [Section('metric', name, {k:p.default for k,p in known('metric')[name].keys.items()})]))
    quietly(learn, learn.fit, 1, 1e-3)
    assert set(ms)<=set(learn.recorder.metric_names)

def metric_is_exported(name, tmp_path):
    multi, = _kinds(name)
    learn = learner(multi=multi)
    learn.metrics = L(own_metrics(Section('metric', name, {k:p.default for k,p in known('metric')[name].keys.items()}),
                                  learn.dls).values())
    learn.export(tmp_path/'e.pkl')
    assert len(load_learner(tmp_path/'e.pkl').metrics)==len(learn.metrics)

# baselines

def experiment(**kw):
    return from_dict(dict(name='x', seeds=[0], data=dict(name='digits_lt', n_max=20, ratio=5, valid=5, test=5, size=8),
                          memory=dict(bank='ClassBank', capacity=4, head='watch'), train=dict(epochs=1, bs=8), **kw),
                          'test')

def in_stream():
    return from_dict(dict(name='x', data='modes', model='mlp', memory=None, train=dict(cbs=['Replay'])), 'test')

def findings():
    return from_dict(dict(name='x', data='chest_mosaic', model='tile_cnn', memory=None), 'test')

def some_baseline(name):
    p = known('baseline')[name]
    return find('baseline', name)(**{k:o.default for k,o in p.keys.items() if o.default is not required} | ({'steps':5}
        if 'steps' in p.params else {}))

def baseline_is_one(name):
    b = some_baseline(name)
    assert isinstance(b, Baseline) and b.works_on in (None,'outputs','features','both')
    assert b.title is None or b.title.strip()
    assert {*b.needs,*b.uses}<={'train','valid','classifier'} and ('classifier' not in b.needs or 'valid' in b.needs)

def baseline_checks_in_one_line(name):
    mems = dict(bank='ClassBank', head='watch'),dict(bank='SlotBank', head='add'),None
    for cfg in (*(override(experiment(), {'memory':mem}) for mem in mems), findings(), in_stream()):
        try: some_baseline(name).check(cfg, name)
        except MemoError as e: assert '\n' not in str(e) and name in str(e)

def baseline_of_its_own_is_an_override(name):
    "That an experiment takes, and that changes something"
    b = some_baseline(name)
    if b.works_on is not None:
        assert not b.overrides(experiment())
        return
    cfgs = (override(experiment(), {'memory':dict(bank='SlotBank', head='add')}),
            experiment(model=dict(name='hopfield_vit', arch='test_vit')), in_stream(), findings())
    cfg = next(c for c in cfgs if suits(c, Section('baseline', name, {})))
    o = b.overrides(cfg)
    assert o and override(cfg, o)!=cfg

def _collected(multi):
    "Loaders of digits, and for training and validation items what is collected of a network with a linear classifier"
    dls,g = digits(multi),torch.Generator().manual_seed(0)
    w = torch.randn(dls.c, 8, generator=torch.Generator().manual_seed(1))
    def got(ds):
        to = 2*ds.y-1 if multi else torch.eye(10)[ds.y]
        z = to@w*2+torch.randn(len(ds), 8, generator=g)
        return AttrDict(z=z, logits=z@w.T/4, y=ds.y, classifier=AttrDict(weight=w/4, bias=None))
    return dls,got(dls.train_ds),got(dls.valid_ds)

def baseline_works_on_what_it_says(name):
    b = some_baseline(name)
    if b.works_on is None: return
    multi = getattr(b, 'kind', None)=='multilabel'
    dls,train,valid = _collected(multi)
    f,chosen = b.fit(train if 'train' in b.needs else None, valid if 'valid' in b.needs else None, dls)
    given = dict(features=(valid.z,), outputs=(valid.logits,), both=(valid.logits,valid.z))[b.works_on]
    out = f(*given)
    right = (out>0)==(valid.y>0) if multi else out.argmax(1)==valid.y
    assert out.shape==valid.logits.shape and out.isfinite().all() and right.float().mean()>.5
    plain(chosen)
    assert torch.equal(f(*given), out)

# tasks

def _task_data(name):
    for o in (digits(), digits(True),
              *(build('data', n) for n,p in known('data').items()
                if p.facts.get('task') in (name, f"{known('task')[name].module}.{known('task')[name].symbol}")
                and p.module.split('.')[0]!='memo')):
        t = find('task', name)()
        if t.suits(o.train_ds.y): return o,task_of(o, name)
    raise AssertionError(f'no data here suits {name}')

def task_scores(name):
    dls,t = _task_data(name)
    y = dls.valid_ds.y
    p = t.activation(torch.randn(len(y), dls.c, generator=torch.Generator().manual_seed(0)))
    assert p.shape==(len(y),dls.c) and ((p>=0) & (p<=1)).all()
    s = t.scores(p, y, with_third(dls))
    assert set(t.columns)<=set(s) and all(isinstance(v, float) for v in s.values()) and isinstance(t.digits, int)
    d = t.details(p, y, with_third(dls))
    assert isinstance(d, dict)
    df = t.predictions(dict(plain=p, memory=p), y, with_third(dls), torch.arange(len(y)))
    assert len(df)==len(y) and 'item' in df.columns and any('plain' in c for c in df.columns) and any('memory' in c
        for c in df.columns)

def with_third(dls):
    res = DataLoaders(*dls.loaders[:2], dls.valid, device='cpu')
    for k in ('counts','many','few','split'):
        if k in vars(dls): setattr(res, k, getattr(dls, k))
    return res

def task_is_trained(name):
    dls,t = _task_data(name)
    loss = part('task', name).facts.get('loss')
    assert loss is None or loss in known('loss')
    multi = dls.train_ds.y.ndim==2
    learn = Learner(dls, Net(dls.c), loss_func=build('loss', loss) if loss else CrossEntropyLossFlat(),
                    metrics=t.metrics(dls), cbs=MemoryCallback(SlotBank(16, policy='fifo'), head='vote'))
    quietly(learn, learn.fit, 1, 1e-3)
    assert len(learn.recorder.metric_names)>=3+len(t.metrics(dls)) and all(v is None or math.isfinite(float(v))
        for v in learn.recorder.values[-1][:2])

def task_suits_one_kind(name):
    t = find('task', name)()
    assert not t.suits(torch.randn(4)) and not t.suits(torch.randn(4, 1)) and sum(t.suits(y)
        for y in (torch.tensor([0,1]), torch.ones(2, 3)))==1

# callbacks

def some_callback(name):
    ps = takes('callback', name)
    return build('callback', name, **({'bank':SlotBank(16, policy='fifo')} if 'bank' in ps else {}))

def callback_is_used(name, tmp_path):
    cb = some_callback(name)
    assert isinstance(cb, Callback)
    own = 'bank' in takes('callback', name)
    learn = learner(path=tmp_path, cbs=[*([] if own else [MemoryCallback(SlotBank(16, policy='fifo'))]), cb])
    quietly(learn, learn.fit, 2, 1e-3)
    p = quietly(learn, learn.get_preds)[0]
    learn.export(tmp_path/'e.pkl')
    new = load_learner(tmp_path/'e.pkl')
    assert len(new.cbs)==len(learn.cbs) and any(type(o) is type(cb) for o in new.cbs)
    assert torch.equal(quietly(new, new.get_preds, dl=new.dls.test_dl(learn.dls.valid_ds.x))[0], p)

def callback_leaves_the_network_alone(name, tmp_path):
    "In a fit that is cancelled, and taken out again, what is left is a learner that trains"
    cb = some_callback(name)
    own = 'bank' in takes('callback', name)
    learn = learner(path=tmp_path, cbs=[] if own else [MemoryCallback(SlotBank(16, policy='fifo'))])
    learn.add_cb(cb)
    class Stop(Callback):
        order = 99
        def after_batch(self): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): quietly(learn, learn.fit, 1, 1e-3, cbs=Stop())
    learn.remove_cb(cb)
    quietly(learn, learn.fit, 1, 1e-3)
    assert not learn.cbs.filter(lambda o: o is cb)

# trackers

def a_tracker(name, **kw):
    "One that needs no service; skipped where its package is not installed"
    if 'mode' in takes('tracker', name): kw['mode'] = 'offline'
    try: return find('tracker', name)(**kw)
    except MemoError as e:
        assert '\n' not in str(e) and 'pip install' in str(e)
        pytest.skip(str(e))

def tracker_follows_and_changes_nothing(name, tmp_path):
    def fitted(*cbs):
        learn = learner(path=tmp_path, cbs=[MemoryCallback(SlotBank(16, policy='fifo')), *cbs])
        quietly(learn, learn.fit, 2, 1e-3)
        quietly(learn, learn.get_preds)
        quietly(learn, learn.fit, 1, 1e-3)
        return learn.model.state_dict()
    cb = a_tracker(name)
    a,b = fitted(cb),fitted()
    assert cb.run_id and cb.last_step==3 and not cb._dead and all(torch.equal(a[k], b[k]) for k in b)
    cb.finish(dict(accuracy=.5), 'a table')
    assert not cb._dead

def tracker_goes_on(name, tmp_path):
    "In the run of another process, and writes no epoch twice"
    a,b = a_tracker(name),a_tracker(name)
    a.begin('run', dict(k=3), tmp_path)
    for i in 1,2: a.log(dict(loss=1/i), i)
    a.finish()
    b.begin('run', dict(k=3), tmp_path, dict(id=a.run_id, step=1))
    for i in 1,2,3: b.log(dict(loss=1/i), i)
    assert b.run_id==a.run_id and b.last_step==3 and not b._dead
    b.finish(failed=True)
    assert not b._dead

def tracker_is_in_no_pickle(name, tmp_path):
    texts = {k:'confidential' for k,p in takes('tracker', name).items() if k!='mode' and str in union_members(p.type)}
    cb = a_tracker(name, **texts)
    assert b'confidential' not in pickle.dumps(cb) and type(pickle.loads(pickle.dumps(cb))) is Callback
    new = deepcopy(cb)
    assert type(new) is type(cb) and all(getattr(new, k)==v for k,v in texts.items())

def tracker_that_fails_is_a_warning(name, tmp_path):
    cb = a_tracker(name)
    def down(*_): raise OSError('no service')
    cb.write = down
    learn = learner(path=tmp_path, cbs=[cb])
    with pytest.warns(UserWarning, match='no service'): quietly(learn, learn.fit, 2, 1e-3)
    assert learn.epoch==1

checks = {}
for _k,_fs in dict(loss=(loss_is_differentiable, loss_is_pickled, loss_says_probabilities),
                   sampler=(sampler_draws, sampler_is_pickled),
        data=(data_has_three_parts, data_suits_its_task, data_is_repeatable, data_takes_samplers, data_is_trained_on),
        model=(model_answers, model_takes_a_memory),
        metric=(metric_measures, metric_is_exported),
        baseline=(baseline_is_one, baseline_checks_in_one_line, baseline_of_its_own_is_an_override,
                  baseline_works_on_what_it_says),
        task=(task_scores, task_is_trained, task_suits_one_kind),
        tracker=(tracker_follows_and_changes_nothing, tracker_goes_on, tracker_is_in_no_pickle,
                 tracker_that_fails_is_a_warning),
        callback=(callback_is_used, callback_leaves_the_network_alone)).items(): checks[_k] = {f.__name__:f
            for f in _fs}

def run(check, name, tmp_path):
    return check(name, **dict(tmp_path=tmp_path) if 'tmp_path' in inspect.signature(check).parameters else {})
