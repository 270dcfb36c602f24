"""What `learn.memory.speed` counts and compares, that it times the real calls and leaves the learner as it was. No time
is asserted: which calls are timed is told by counting them"""
import random, threading, warnings
from contextlib import contextmanager
import numpy as np, pandas as pd, pytest, timm, torch
from fastai.vision.all import (Callback, CrossEntropyLossFlat, DataLoader, DataLoaders, Learner, Module, accuracy, nn,
                               noop, set_seed)
from helpers.errors import err
from helpers.learners import quietly, same, snap
from helpers.worlds import Net, files, from_folder, padded, tabular, text
from hypothesis import given, strategies as st
import memo.evaluation.speed as sp
from memo.all import MemoryCallback, SlotBank, digits_lt, memories, plot_speed, small_cnn, speed_text
from memo.training.collect import collect

called = []     # rows of each call

class Stages(Module):
    "Two stages and a classifier"
    def __init__(self):
        self.a = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.pool,self.drop,self.last = nn.AdaptiveAvgPool2d(1),nn.Dropout(.5),nn.Linear(8, 10)
    def forward(self, x):
        x = self.a(x)
        called.append(len(x))
        return self.last(self.drop(self.pool(self.b(x)).flatten(1)))

def made(*cbs, valid=20, epochs=2, net=None, size=8):
    set_seed(0)
    dls = digits_lt(n_max=40, ratio=2, valid=valid, test=5, size=size)
    learn = Learner(dls, net or Stages(), loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=[*cbs])
    if epochs: quietly(learn, 'fit', epochs, 1e-2)
    return learn

def exit_(t=.9, name='memory', at='a', **kw):
    return MemoryCallback(SlotBank(400), head='exit', at=at, threshold=t, name=name, **kw)

@pytest.fixture(scope='module')
def learn(): return made(exit_(), epochs=6)

def median_threshold(learn, share=.5, name='memory'):
    head = memories(learn.model)[name]
    got = collect(learn, learn.dls.valid, memory=True, name=name)
    return float(head.decide(got.z)[2].quantile(1-share))

@contextmanager
def at(learn, t, name='memory'):
    head = memories(learn.model)[name]
    was = head.threshold.clone()
    head.threshold.fill_(t)
    try: yield
    finally: head.threshold.copy_(was)

def quick(learn, *args, name='memory', **kw):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return learn.memories[name].speed(*args, **{**dict(rounds=1, n=64, batch_sizes=(1,8)), **kw})

# what is counted

def test_hits_and_accuracies_are_those_of_predictions(learn):
    "Of the whole set, against what the heads decide and what `get_preds` gives with and without memory"
    with at(learn, median_threshold(learn)):
        t = quick(learn, n=None, batch_sizes=(1,10))
        got = collect(learn, learn.dls.valid, memory=True, name='memory')
        hit = learn.memory.head.decide(got.z)[0].float().mean()
        p,y = quietly(learn, 'get_preds')
        with learn.memory.off(): q,_ = quietly(learn, 'get_preds')
    n = len(y)
    assert n==200 and t.samples.tolist()==[n,n] and .4<hit<.6
    def right(o): return float((o.argmax(1)==y).float().mean())
    assert right(p)!=right(q)       # else the two could be mixed up
    for r in t.itertuples():
        assert abs(r.hit-float(hit))<=1/n and abs(r.accuracy-right(p))<=1/n and abs(r.accuracy_network-right(q))<1e-6
    assert t.attrs['fill']==f'{len(learn.memory.bank)}/400'

@pytest.mark.parametrize('t,hit', [(1., 0), (-1., 1)])
def test_all_or_none_leave(learn, t, hit):
    with at(learn, t):
        r = quick(learn)
    assert r.hit.tolist()==[hit,hit] and (r.accuracy==r.accuracy_network).all()==(hit==0)
    assert (r.behind_ms==0).all()==(hit==1) and (r.filter(like='_ms')>=0).all(axis=None)

def test_samples_without_a_label_are_no_errors(learn):
    x,y = (torch.cat([*o]).as_subclass(torch.Tensor) for o in zip(*learn.dls.valid))
    with learn.memory.off(): p,_ = quietly(learn, 'get_preds')
    for some in (torch.arange(len(y))%2==0,torch.zeros(len(y)).bool()):
        dl = DataLoader([*zip(x, torch.where(some, y, -1))], bs=10)
        t = quick(learn, dl, n=None, batch_sizes=10)
        want = (p.argmax(1)==y)[some].float().mean()
        assert t.samples.tolist()==[200] and t.accuracy_network.tolist()==pytest.approx([float(want)], nan_ok=True)

@given(n=st.integers(2, 40), seed=st.integers(0, 9), ties=st.booleans())
def test_thresholds_go_along_the_coverage_curve(n, seed, ties):
    "From none to all, in between the confidences: a loop over them says which shares there are"
    sure = torch.rand(60, generator=torch.Generator().manual_seed(seed))
    if ties: sure = (sure*5).round()/5
    ts = sp.spread_thresholds(sure, n)
    shares = [int((sure>=t).sum()) for t in ts]
    assert shares[0]==0 and shares[-1]==60 and shares==sorted(shares) and len({*ts})==len(ts)
    if not ties: assert shares==sorted({round(60*i/(n-1)+1e-6) for i in range(n)}) or len(shares)==n

def test_a_sweep_is_what_each_threshold_gives(learn):
    ts = [1., median_threshold(learn), -1.]
    own = learn.memory.head.threshold.clone()
    t = quick(learn, thresholds=ts, batch_sizes=8)
    assert t.threshold.tolist()==pytest.approx(ts) and torch.equal(learn.memory.head.threshold, own)
    for r,o in zip(t.itertuples(), ts):
        with at(learn, o): one = quick(learn, batch_sizes=8).iloc[0]
        assert (r.hit,r.accuracy,r.accuracy_network)==(one.hit,one.accuracy,one.accuracy_network)
    assert t.hit.iloc[0]==0 and t.hit.iloc[-1]==1 and 0<t.hit.iloc[1]<1 and 'lookup_ms' not in t
    many = quick(learn, thresholds=6, batch_sizes=8)
    assert len(many)==6 and many.hit.is_monotonic_increasing and many.hit.iloc[0]==0 and many.hit.iloc[-1]==1

def test_several_exits():
    "The share that leaves at each; the network alone is without all of them, the model with all"
    learn = made(exit_(name='early'), exit_(name='late', at='b'))
    a,b = median_threshold(learn, .3, 'early'),median_threshold(learn, .5, 'late')
    with at(learn, a, 'early'), at(learn, b, 'late'):
        t = quick(learn, name='early', n=None, batch_sizes=10)
        p,y = quietly(learn, 'get_preds')
        with learn.early.off(), learn.late.off(): q,_ = quietly(learn, 'get_preds')
    r = t.iloc[0]
    assert r.hit==pytest.approx(r.hit_early+r.hit_late) and .2<r.hit_early<.4 and .1<r.hit_late<.6
    assert abs(r.accuracy-float((p.argmax(1)==y).float().mean()))<.01
    assert abs(r.accuracy_network-float((q.argmax(1)==y).float().mean()))<1e-6

def test_a_real_network():
    "Behind the place only the network alone is run where all samples leave, and all of it where none does"
    learn = made(exit_(at='layer1'), net=timm.create_model('test_resnet', num_classes=10, in_chans=1), epochs=0,
                 valid=5, size=32)
    got = learn.memory.collect(learn.dls.valid)
    learn.memory.bank.write(got.z, got.y)
    ran = []
    learn.model.layer2.register_forward_hook(lambda m, a, o: ran.append(len(o)))
    for t,passes in ((-1.,3), (2.,8)):      # without memory: accuracy, two rounds; with it the same, and two by parts
        ran.clear()
        with at(learn, t): r = quick(learn, rounds=2, batch_sizes=8, n=16)
        assert ran==[8]*2*passes and r.hit.tolist()==[float(t<0)]
        assert (r.behind_ms==0).all()==(t<0)

def test_a_vote_lets_nothing_leave():
    learn = made(MemoryCallback(SlotBank(400), head='vote'))
    with pytest.warns(UserWarning, match='lets no row leave'): t = learn.memory.speed(batch_sizes=8, rounds=1)
    assert t.hit.tolist()==[0] and t.threshold.isna().all() and (t.lookup_ms>0).all()
    p,y = quietly(learn, 'get_preds')
    assert abs(quick(learn, n=None, batch_sizes=10).accuracy[0]-float((p.argmax(1)==y).float().mean()))<1e-6
    assert 'has none' in err(learn.memory.speed, thresholds=3)

def test_an_empty_memory_says_so():
    learn = made(exit_(-1.), epochs=0)
    with pytest.warns(UserWarning, match="'memory' is empty"): t = learn.memory.speed(batch_sizes=8, rounds=1)
    assert t.hit.tolist()==[0] and t.attrs['fill']=='0/400' and (t.accuracy==t.accuracy_network).all()
    assert 'note: memory' in speed_text(t) and 'is empty' in err(learn.memory.speed, thresholds=3)

def test_soft_mixes_and_lets_nothing_leave():
    learn = made(exit_(-1., soft=True))
    with pytest.warns(UserWarning, match='is soft'): t = learn.memory.speed(batch_sizes=8, rounds=1)
    assert t.hit.tolist()==[0] and (t.lookup_ms>0).all()

def test_stored_samples_do_not_find_themselves(learn):
    "On the training set each would be its own nearest row; with `own_rows` it is"
    learn.memory.rekey()
    dl = learn.dls.valid.new(learn.dls.train.dataset.subset(slice(0, 64), 1))
    with at(learn, .999999):
        a = quick(learn, dl, batch_sizes=8).hit[0]
        with learn.memory.own_rows(): b = quick(learn, dl, batch_sizes=8).hit[0]
    assert a<.5<b

def test_a_compiled_model_is_timed_without_that():
    learn = made(exit_(-1.))
    learn.model.compile(backend='eager')
    with pytest.warns(UserWarning, match='is compiled'): t = learn.memory.speed(batch_sizes=8, rounds=1, n=16)
    assert t.hit.tolist()==[1]
    assert torch._dynamo.eval_frame._stance.stance=='default'

# batches

def test_too_few_samples(learn):
    with pytest.warns(UserWarning, match='200 samples are fewer than a batch of 201'):
        t = learn.memory.speed(batch_sizes=(8,201), rounds=1)
    assert t.batch.tolist()==[8] and '201' in speed_text(t)
    assert '200 samples' in err(learn.memory.speed, batch_sizes=512)

@pytest.mark.parametrize('n,sizes,counts', [(64, (1,8,32), [64,64,64]), (50, (1,7,32), [32,28,32]),
                                            (5, (1,8), [8,8]), (None, (3,), [198])])
def test_every_batch_is_full(learn, n, sizes, counts):
    "Nothing is padded: the network sees batches of just that size, and all sizes the same samples"
    net,seen = learn.model,[]
    h = net.a[0].register_forward_hook(lambda m, a, o: seen.append(len(o)))
    try: t = quick(learn, n=n, batch_sizes=sizes)
    finally: h.remove()
    assert t.samples.tolist()==counts and {*seen}=={*sizes}

def test_samples_are_of_the_whole_set(learn):
    "A set sorted by class: the first samples would be of few classes"
    ds = learn.dls.valid.dataset
    order = ds.y.argsort(stable=True)
    s = sp.Samples(learn, learn.dls.valid.new(ds.subset(order, 1)), [], [8], 64)
    y = torch.cat([b[2][0] for b in s.batches(8, torch.device('cpu'))])
    assert len(y)==64 and len(y.unique())==10

def test_loading_is_not_timed(learn):
    "All batches are there before the first call is timed"
    class Slow(type(learn.dls.valid)):
        def create_batch(self, b):
            log.append('load')
            return super().create_batch(b)
    log,dl = [],learn.dls.valid.new(cls=Slow)
    was = sp.Measured.times
    def times(self, batches, *args):
        log.append('time')
        return was(self, batches, *args)
    with pytest.MonkeyPatch.context() as p:
        p.setattr(sp.Measured, 'times', times)
        quick(learn, dl, batch_sizes=8, n=64)
    assert log==['load']*8+['time']

def test_mistakes(learn):
    f = learn.memory.speed
    assert 'rounds=0' in err(f, rounds=0) and 'n=0' in err(f, n=0) and 'batch_sizes' in err(f, batch_sizes=(0,8))
    assert 'batch_sizes' in err(f, batch_sizes=(.5,)) and 'batch_sizes' in err(f, batch_sizes=())
    assert '1.5' in err(f, thresholds=[.5,1.5]) and 'thresholds' in err(f, thresholds=1) and 'thresholds' in err(
        f, thresholds=[])
    empty = learn.dls.valid.new(learn.dls.valid.dataset.subset(slice(0), 1))
    assert 'empty' in err(f, empty)
    alone = made(exit_(), epochs=0)
    alone.dls = DataLoaders(alone.dls.train)
    assert 'no validation set' in err(alone.memory.speed)

# what is timed

def test_real_calls_are_timed(learn):
    "Each round runs network, model, and the model again for its parts, on every batch; a clock that ticks when asked"
    ticks = iter(range(10**6))
    with pytest.MonkeyPatch.context() as p:
        p.setattr(sp, 'synchronised', lambda device: float(next(ticks)))
        called.clear()
        with at(learn, 2.): t = quick(learn, rounds=3, batch_sizes=8, n=32)
    assert len(called)==4*(2+3*3)
    r = t.iloc[0]       # a memory is asked again at the end of the forward, where it may answer: one tick more
    assert r.faster==1 and r.network_ms==r.model_ms==1000*4/32
    assert (r.features_ms,r.lookup_ms,r.behind_ms)==(125,250,250)

def test_the_network_alone_has_no_hooks(learn):
    "Nor a pooling of features that nobody reads, which a memory that is off still costs"
    bare = sp.without_memories(learn.model)
    assert not memories(bare) and not bare.a[-1]._forward_hooks and 'forward' not in vars(bare)
    assert [o.data_ptr() for o in bare.parameters()]==[o.data_ptr() for n,o in learn.model.named_parameters()]
    x = learn.dls.valid.one_batch()[0]
    learn.model.eval(), bare.eval()
    with torch.no_grad(), learn.memory.off(): assert torch.equal(bare(x), learn.model(x))
    assert memories(learn.model) and learn.model.a[-1]._forward_hooks

def test_other_threads_are_not_counted(learn):
    "A prediction in another thread while the hooks are there"
    head = memories(learn.model)['memory']
    x = learn.dls.valid.one_batch()[0][:4]
    learn.model.eval()
    with at(learn, -1.), torch.no_grad(), sp.Leaving(dict(memory=head)) as left, sp.PlaceTimes(head, x.device) as p:
        def other():
            with torch.no_grad(): learn.model(x)
        th = threading.Thread(target=other)
        th.start()
        th.join()
        assert left.n==dict(memory=0) and p.first is None
        learn.model(x)
        assert left.n==dict(memory=4)

# the learner afterwards

@pytest.mark.parametrize('mode', [True,False])
def test_the_learner_is_as_it_was(learn, mode):
    learn.model.train(mode)
    learn.model.drop.eval()         # modes that differ within the model
    def state():
        ms = learn.model.named_modules()
        return ([(n,m.training,len(m._forward_hooks),len(m._forward_pre_hooks),sorted(vars(m))) for n,m in ms],
                torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()),
                [dl.rng.getstate() for dl in learn.dls.loaders], torch.get_num_threads())
    was,weights,bank = state(),snap(learn.model),snap(learn.memory.bank)
    quick(learn)
    quick(learn, thresholds=3)
    assert state()==was and same(snap(learn.model), weights) and same(snap(learn.memory.bank), bank)
    with pytest.raises(ZeroDivisionError), pytest.MonkeyPatch.context() as p:      # after an error too
        p.setattr(sp.Measured, 'times', lambda *_: 1/0)
        quick(learn)
    assert state()==was

def test_in_the_middle_of_a_fit():
    "A fit in which times are taken trains as one in which none are"
    class Times(Callback):
        order = 99
        def after_batch(self):
            if self.training and self.iter==1: got.append(quick(self.learn, batch_sizes=8, n=16))
        def after_epoch(self): got.append(quick(self.learn, batch_sizes=8, n=16))
    got = []
    a,b = made(exit_(), Times()),made(exit_())
    assert same(snap(a.model), snap(b.model)) and len(got)==4 and all(len(t) for t in got)

def test_probabilities_of_other_kinds_are_no_accuracy():
    "Findings have no accuracy: it is left out, and the times are there"
    set_seed(0)
    dls = digits_lt(n_max=40, ratio=2, valid=20, size=8)
    for dl in dls.loaders:
        ds = dl.dataset
        ds.y = torch.nn.functional.one_hot(ds.y, 10).float()
    learn = Learner(dls, Stages(), loss_func=nn.BCEWithLogitsLoss(), cbs=MemoryCallback(SlotBank(400), head='vote'))
    quietly(learn, 'fit', 1)
    t = quick(learn, batch_sizes=8)
    assert t.accuracy.isna().all() and (t.model_ms>0).all() and ' -' in speed_text(t)

@pytest.mark.parametrize('make', [from_folder,text,padded,tabular])
def test_other_loaders(make, tmp_path):
    "Image files, texts that a loader sorts and pads, tables with two inputs: batches are the loader's own"
    dls = make(files(tmp_path), [*range(40)], [*range(40, 60)], dict(bs=8, device='cpu')).dls
    learn = Learner(dls, Net(), loss_func=CrossEntropyLossFlat(), cbs=MemoryCallback(SlotBank(60), head='dual'))
    quietly(learn, 'fit', 1)
    t = quick(learn, batch_sizes=(1,10), n=None)
    p,y = quietly(learn, 'get_preds')
    assert t.samples.tolist()==[20,20] or make is from_folder
    right = (p.argmax(1)==y.flatten()).float().mean()
    if make in (tabular,from_folder): assert abs(t.accuracy[0]-float(right))<.06

# text and picture

def test_text_and_picture(learn):
    with at(learn, median_threshold(learn)): t = quick(learn, rounds=3)
    said = speed_text(t)
    lines = said.splitlines()
    assert len(lines)==5 and 'x as fast' in lines[0] and [l.split()[0] for l in lines[1:3]]==['1','8']
    assert f"rows {len(learn.memory.bank)}/400;" in said and '3 rounds' in said and 'in % of the samples' in lines[4]
    assert 'up to the memory' in said
    assert 'up to the memory' not in speed_text(t.drop(columns=['features_ms','lookup_ms','behind_ms']))
    full = made(MemoryCallback(SlotBank(20, policy='fifo'), head='exit', at='a'))
    assert '20/20, full' in speed_text(quick(full))
    fig = plot_speed(quick(learn, thresholds=4))
    ax, = fig.axes
    assert len([l for l in ax.lines if str(l.get_label()).startswith('batch')])==2
    assert len(plot_speed(dict(a=t, b=t)).axes)==2 and plot_speed(pd.DataFrame()) is not None

def test_points_that_lie_together_have_one_label():
    hit = np.linspace(0, 1, 8)
    df = pd.DataFrame(dict(batch=1, hit=hit, accuracy=.98, accuracy_network=.98, faster=[*np.full(7, .9),2]))
    ax, = plot_speed(df.assign(faster_low=df.faster, faster_high=df.faster)).axes
    assert [t.get_text() for t in ax.texts]==['100 %','86 %']
    assert ax.get_ylim()==pytest.approx((97.5,98.5))        # not 94 to 102 % where nothing differs

def test_slower_is_a_ratio_below_one(learn):
    "Always network / memory: made of times in which the model takes twice as long"
    was = sp.Measured.times
    def times(self, batches, rounds, parts):
        whole,some = was(self, batches, rounds, parts)
        whole[0] = 1.
        whole[1:] = 2.
        return whole,some
    with pytest.MonkeyPatch.context() as p:
        p.setattr(sp.Measured, 'times', times)
        t = quick(learn, batch_sizes=8)
    assert t.faster.tolist()==[.5] and '0.5 [0.5, 0.5]' in speed_text(t)

