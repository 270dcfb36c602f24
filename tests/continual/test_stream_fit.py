"fit_stream: what it measures, what it leaves of its learner, and that it goes on where it was interrupted"
import pytest
from fastai.vision.all import *
from torch.utils.data import DataLoader as TorchDL, TensorDataset
from helpers.learners import same, snap
from memo.banks.slots import SlotBank
from memo.continual.method import NamedTensors, Method
from memo.continual.stream_fit import StreamResult, fit_stream
from memo.core import MemoError
from memo.data.streams import Stream, split_stream
from memo.data.tensors import TensorDL, TensorSet
from memo.training.memory_callback import MemoryCallback
for k in [k for k in globals() if k.startswith('test')]: del globals()[k]     # fastai's, which pytest would collect

C = 6
def loaders(bs=4, n=(60,24,36), shuffle=True, seed=0):
    g = torch.Generator().manual_seed(seed)
    at = torch.randn(C, 5, generator=g)*2
    def mk(n, t):
        y = torch.arange(n)%C
        return TensorDL(at[y]+torch.randn(n, 5, generator=g), y, bs=bs, shuffle=t, vocab=range(C))
    return DataLoaders(*(mk(k, shuffle and i==0) for i,k in enumerate(n)), device='cpu')

def make(dls=None, cbs=None, out=C, opt_func=Adam, **kw):
    dls = loaders() if dls is None else dls
    set_seed(0)
    m = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(.2), nn.Linear(8, out))
    return Learner(dls, m, loss_func=CrossEntropyLossFlat(), opt_func=opt_func, lr=.02, cbs=cbs, metrics=accuracy, **kw)

def stream_of(dls, n=3, **kw): return split_stream(dls, n=n, **kw)
def run(learn, stream, *args, **kw):
    set_seed(5)
    with learn.no_bar(), learn.no_logging(): return learn.fit_stream(stream, *args, **kw)

def plain_matrix(learn, stream, k, **kw):
    "Rows of the matrix by fastai's own fit and a loop over the items of each experience"
    rows = []
    class Look(Callback):
        def after_experience(self):
            m,row = self.learn.model,[]
            m.eval()
            for at in stream.parts[k]:
                ds = stream.whole.loaders[k].dataset
                ok = [int(m(ds.x[int(i)][None]).argmax())==int(ds.y[int(i)]) for i in at]
                row.append(np.mean(ok) if ok else np.nan)
            rows.append(row)
            m.train()
    return Look(),rows

@pytest.mark.parametrize('epochs', [1,2])
def test_matrices_are_what_a_loop_over_items_finds(epochs):
    dls = loaders()
    stream = stream_of(dls)
    (a,ra),(b,rb) = plain_matrix(None, stream, 2),plain_matrix(None, stream, 1)
    r = run(make(dls), stream, epochs, cbs=[a,b])
    np.testing.assert_allclose(r.matrix, ra, atol=1e-6)
    np.testing.assert_allclose(r.valid_matrix, rb, atol=1e-6)
    assert r.matrix.shape==(3,3) and r.matrix[0,0]>.3>r.matrix[0,1:].max()
    assert len(r.history)==3*epochs and len(r)==3 and len(r.online_accuracy)==3

def test_training_is_fastai_s_fit_on_each_experience():
    "One optimizer, the same items in the same order, and nothing else that is random"
    dls = loaders()
    stream,a,b = stream_of(dls),make(dls),make(dls)
    run(a, stream, 2)
    set_seed(5)
    class Order(Callback):
        def before_train(self):
            self.learn.dls.train.rng = random.Random(f'{stream.seed} {self.learn.exp} {self.epoch}')
    with b.no_bar(), b.no_logging():
        for i,o in enumerate(stream):
            b.dls,b.exp = o,i
            b.fit(2, cbs=Order())
    same_params(a, b, rng=False)

def same_params(a, b, rng=True):
    sa,sb = snap(a.model),snap(b.model)
    drop = [k for k in sa if not torch.equal(sa[k], sb[k])]
    assert not drop, drop

def test_measuring_changes_nothing():
    dls = loaders()
    stream,learns = stream_of(dls),[make(dls) for _ in range(3)]
    rs = [run(l, stream, 2, measure=m) for l,m in zip(learns, (None,1,4))]
    for l in learns[1:]: assert same(snap(learns[0].model), snap(l.model))
    for r in rs[1:]:
        np.testing.assert_array_equal(r.matrix, rs[0].matrix)
        pd.testing.assert_frame_equal(r.history.drop(columns='seconds'), rs[0].history.drop(columns='seconds'))
    assert len(rs[1].steps)==30 and [n for i,n,_ in rs[2].steps if i==1]==[4,8]
    # the last row within an experience is the one behind it
    for i in range(3): np.testing.assert_array_equal([a for j,n,a in rs[1].steps if (j,n)==(i,10)][0], rs[1].matrix[i])
    means = [np.nanmean(a[:i+1]) for i,_,a in rs[2].steps]+[np.mean(rs[2].matrix[i,:i+1]) for i in range(3)]
    assert rs[2].anytime_accuracy==pytest.approx(np.mean(means))

def test_online_accuracy_is_of_answers_before_training():
    dls = loaders(bs=1)
    stream,seen = stream_of(dls),[]
    class Look(Callback):
        order = 1000
        def before_batch(self):
            if self.training:
                m = self.learn.model
                out = F.linear(self.x, m.weight, m.bias).argmax(1)
                seen.append((self.learn.experience, int(out)==int(self.y)))
    learn = Learner(dls, nn.Linear(5, C), opt_func=SGD, lr=.1, cbs=Look())
    r = run(learn, stream)
    for i in range(3): assert r.online_accuracy[i]==pytest.approx(np.mean([o for j,o in seen if j==i]))
    assert len(seen)==60 and 0<r.online_accuracy.max()<1

def test_rows_that_a_method_adds_do_not_count():
    class Doubles(Callback):
        order = 20
        def before_batch(self):
            if not self.training: return
            self.learn.xb,self.learn.yb = (torch.cat([self.x, self.x*0]),),(torch.cat([self.y, self.y*0]),)
    dls = loaders()
    r = run(make(dls, cbs=Doubles()), stream_of(dls))
    assert r.online_accuracy.shape==(3,) and (r.online_accuracy<=1).all()
    n = [round(o*20, 6) for o in r.online_accuracy]
    assert n==[round(o) for o in n]             # of 20 items each

# what a learner is afterwards

def kinds(learn): return sorted(type(o).__name__ for o in learn.cbs)

def test_the_learner_is_left_as_it_was():
    dls,own = loaders(),loaders(seed=3)
    learn = make(own, cbs=MemoryCallback(SlotBank(10, n_classes=C), k=3, head='add'))
    metrics,cbs = learn.metrics,kinds(learn)
    r = run(learn, stream_of(dls))
    assert learn.dls is own and not hasattr(learn, 'experience') and learn.metrics is metrics
    assert kinds(learn)==cbs
    assert not {'one_batch','online'} & {*vars(learn)} and len(learn.memory.bank)==10
    learn.experience = 'mine'
    run(learn, stream_of(dls))
    assert learn.experience=='mine'
    assert learn.stream_result.matrix.shape==(3,3)

class Stops(Callback):
    "Raises in experience 1"
    def __init__(self, ex, at='after_batch'): self.ex = ex; setattr(self, at, self.stop)
    def stop(self):
        if self.learn.experience==1: raise self.ex

@pytest.mark.parametrize('ex', [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize('at', ['after_batch','after_pred','before_fit','after_validate'])
def test_interrupted(ex, at):
    dls = loaders()
    learn = make(dls)
    metrics,cbs = learn.metrics,kinds(learn)
    with pytest.raises(ex): run(learn, stream_of(dls), cbs=Stops(ex('said'), at))
    assert learn.dls is dls and not hasattr(learn, 'experience') and learn.metrics is metrics and kinds(learn)==cbs
    assert 'one_batch' not in vars(learn) and all(cb.run for cb in learn.cbs)
    assert len(learn.stream_result)==1 and learn.stream_result.matrix.shape==(1,3)      # nothing is lost
    assert len(run(learn, stream_of(dls)))==3

def test_a_second_call_goes_on():
    dls = loaders()
    stream,learn = stream_of(dls),make(dls)
    run(learn, stream)
    opt,w = learn.opt,snap(learn.model)
    r = run(learn, stream)
    assert learn.opt is opt and len(r)==3 and not same(w, snap(learn.model))
    assert opt.state[learn.model[0].weight]['step']==2*15

def test_inside_another_fit():
    "The outer fit and its records are those of a fit that nothing happened in, but for the weights"
    dls,small = loaders(),loaders(n=(12,6,6))
    class Inside(Callback):
        order = 55
        def __init__(self, ok, event): self.ok,self.done,self.said = ok,[],[]; setattr(self, event, self.go)
        def go(self):
            if self.ok and not self.done and self.training and self.epoch==1:
                self.done.append(1)
                state = get_random_states()
                self.learn.fit_stream(stream_of(small))
                set_random_states(**state)
        def before_step(self):
            if not self.done or len(self.done)>1: pass
            if not hasattr(self.learn, 'experience'):
                l = self.learn
                rates = [h['lr'] for h in self.opt.hypers]
                self.said.append((l.epoch, l.iter, l.train_iter, l.n_epoch, l.n_iter, rates,
                                  round(l.pct_train, 9), l.model.training))
    for event in ('after_batch','before_batch','after_pred'):
        outs = []
        for ok in (False,True):
            learn = make(dls)
            cb = Inside(ok, event)
            set_seed(3)
            with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(3, .01, cbs=cb)
            r = learn.recorder
            outs.append((cb.said, len(r.losses), len(r.values), r.lrs, len(r.iters)))
            assert bool(cb.done)==ok
        assert outs[0]==outs[1], event

@pytest.mark.parametrize('opt_func', [SGD,partial(OptimWrapper, opt=torch.optim.SGD)])
def test_rates_of_the_outer_fit_come_back(opt_func):
    "Torch's optimizers hand out copies of their settings"
    small = stream_of(loaders(n=(12,6,6)))
    class Inside(Callback):
        rates = ()
        def after_epoch(self):
            if hasattr(self.learn, 'experience'): return
            if self.epoch==0: self.learn.fit_stream(small, lr=.3)
            self.rates = [*self.rates, *(h['lr'] for h in self.learn.opt.hypers)]
    learn,cb = make(opt_func=opt_func),Inside()
    with learn.no_bar(), learn.no_logging(): learn.fit(2, .01, cbs=cb)
    assert cb.rates==[.01,.01]

@pytest.mark.parametrize('measure', [None,2])
def test_inside_another_stream(measure):
    "Both have their own figures, and the outer one goes on"
    dls,small = loaders(),loaders(n=(12,6,6))
    class Inside(Callback):
        order,inner = 55,None
        def after_batch(self):
            if self.inner is not None or not self.training or self.learn.experience!=1 or self.learn.iter!=2: return
            type(self).inner = 0
            type(self).inner = self.learn.fit_stream(stream_of(small), measure=1)
    learn = make(dls)
    r,q = run(learn, stream_of(dls), cbs=Inside(), measure=measure),Inside.inner
    assert len(q)==len(r)==3 and len(r.online_accuracy)==len(q.online_accuracy)==3 and len(q.steps)==3
    assert [o[:2] for o in r.steps]==([] if measure is None else [(i,n) for i in range(3) for n in (2,4)])
    n = run(make(dls), stream_of(dls)).online_accuracy
    assert r.online_accuracy[0]==n[0] and (r.online_accuracy*20%1<1e-6).all()
    assert not {'online','within','experience','stream','one_batch'} & {*vars(learn)}

# events

def test_events_and_the_number_of_the_experience():
    got = []
    class Told(Callback):
        def before_experience(self):
            got.append(('before', self.learn.experience, sorted({*map(int, self.dls.train.dataset.y)})))
        def after_experience(self): got.append(('after', self.learn.experience, self.learn.dls.train.n))
        def before_fit(self): got.append('fit') if not hasattr(self.learn, 'gather_preds') else None
    dls = loaders()
    stream = stream_of(dls)
    run(make(dls), stream, cbs=Told())
    assert got==[o for i in range(3) for o in (('before', i, stream.classes[i]), 'fit', ('after', i, 20))]

def rate(seen, cb): seen.append(cb.opt.hypers[-1]['lr'])

def test_ways_to_fit():
    dls = loaders()
    stream = stream_of(dls)
    lrs = {}
    for fit in (None,'fit_one_cycle','fit_flat_cos',Learner.fit_one_cycle):
        learn,seen = make(dls),[]
        run(learn, stream, 2, fit=fit, lr=.01, cbs=Callback(before_step=partial(rate, seen)))
        lrs[fit] = seen
    assert {*lrs[None]}=={.01} and len({*lrs['fit_one_cycle']})==10 and len({*lrs['fit_flat_cos']})>2
    assert lrs[Learner.fit_one_cycle]==lrs['fit_one_cycle']
    learn,seen = make(dls),[]
    run(learn, stream, cbs=Callback(before_step=partial(rate, seen)))
    assert {*seen}=={.02}

def test_a_cancelled_experience_is_followed_by_the_next():
    dls = loaders()
    class Cut(Callback):
        def after_batch(self):
            if self.training and self.iter==2 and self.learn.experience==1: raise CancelFitException()
    r = run(make(dls), stream_of(dls), 2, cbs=Cut())
    assert len(r)==3 and len(r.history)==4

# interrupted and resumed

class Buffer(Method):
    "Keeps rows of what it saw, of a size that grows"
    def after_batch(self):
        if not self.training: return
        was = self.state['x'] if 'x' in self.state else self.x[:0]
        self.state['x'] = torch.cat([was, self.x[:2]])
    def after_loss(self):
        if self.training and 'x' in self.state: self.add_loss(.1*self.model(self.state['x']).pow(2).mean())
    def after_experience(self): self.state[f'at.{self.learn.experience}'] = torch.rand(2)

class Killed(Exception): pass

@pytest.mark.parametrize('at', ['after_batch','before_fit','after_experience','after_validate'])
@pytest.mark.parametrize('experience,epoch', [(1,0),(1,1),(2,0)])
def test_resumed_is_unbroken(tmp_path, at, experience, epoch):
    dls = loaders()
    stream = stream_of(dls)
    whole = make(dls)
    a = run(whole, stream, 2, cbs=Buffer(), measure=3, checkpoint=tmp_path/'a')
    class Stop(Callback):
        order = 200
        def stop(self):
            late = self.learn.epoch>=epoch or at=='before_fit'
            if self.learn.experience!=experience or not late or hasattr(self.learn, 'gather_preds'): return
            raise Killed('now')
    setattr(Stop, at, Stop.stop)
    half = make(dls)
    with pytest.raises(Killed): run(half, stream, 2, cbs=[Buffer(), Stop()], measure=3, checkpoint=tmp_path/'b')
    new = make(loaders())
    set_seed(99)
    with new.no_bar(), new.no_logging():
        b = new.fit_stream(stream_of(new.dls), 2, cbs=Buffer(), measure=3, checkpoint=tmp_path/'b', resume=True)
    assert same(snap(whole.model), snap(new.model)) and 'buffer.at/2' in str([*snap(new.model)])
    np.testing.assert_array_equal(a.matrix, b.matrix)
    np.testing.assert_array_equal(a.valid_matrix, b.valid_matrix)
    ha,hb = (o.history.drop(columns='seconds') for o in (a,b))
    pd.testing.assert_frame_equal(ha, hb, check_exact=True)
    assert a.table().equals(b.table()) and len(a.steps)==len(b.steps)==9
    # one that had ended gives its figures again
    c = run(make(dls), stream, 2, cbs=Buffer(), measure=3, checkpoint=tmp_path/'b', resume=True)
    assert c.table().equals(a.table())

def test_another_stream_is_not_resumed(tmp_path):
    dls = loaders()
    stream = stream_of(dls)
    run(make(dls), stream, checkpoint=tmp_path)
    for kw,say in ((dict(epochs=2), 'epochs'), (dict(lr=.5), 'lr'), (dict(fit='fit_one_cycle'), 'fit'),
                   (dict(measure=2), 'measure')):
        with pytest.raises(MemoError, match=f'another experiment: {say}|{say}'):
            run(make(dls), stream, **kw, checkpoint=tmp_path, resume=True)
    def again(learn, stream): return run(learn, stream, checkpoint=tmp_path, resume=True)
    with pytest.raises(MemoError, match='items'): again(make(dls), stream_of(dls, seed=1))
    with pytest.raises(MemoError, match='experiences'): again(make(dls), stream_of(dls, n=2))
    with pytest.raises(MemoError, match='another model'): again(make(dls, out=C+1), stream)
    with pytest.raises(MemoError, match='what is'):
        run(make(dls), stream, checkpoint=tmp_path, resume=True, experiment=dict(what=1))

def test_checkpoints_do_not_grow_with_the_stream(tmp_path):
    "Random states of 3 loaders, not of 3 for each experience; the matrix is all that grows"
    dls = loaders(n=(60,60,60))
    sizes = {}
    for n in (2,20):
        at = torch.arange(60).tensor_split(n)
        stream = Stream(dls, [at, at, at])
        run(make(dls), stream, checkpoint=tmp_path/str(n))
        sizes[n] = max(o.stat().st_size for o in (tmp_path/str(n)).glob('*.pt'))
    assert sizes[20]-sizes[2]<20*60*8+20*800

# bad input

def test_what_cannot_be_trained_on():
    dls = loaders()
    stream,learn = stream_of(dls),make(dls)
    for args,say in (((dls,), 'split_stream'), ((stream,0), 'epochs'), ((stream,1.5), 'epochs'), ((stream,1,-1), 'lr'),
                     ((stream,1,None,'fitt'), 'fitt'), ((stream,1,None,3), 'fit'),
                     *(((stream,1,None,o), f'{o}.*start in the middle') for o in ('fine_tune','validate','fit_sgdr'))):
        with pytest.raises(MemoError, match=say): run(learn, *args)
    with pytest.raises(MemoError, match='measure'): run(learn, stream, measure=0)
    with pytest.raises(MemoError, match='checkpoint'): run(learn, stream, resume=True)
    assert learn.dls is dls

def test_more_classes_than_outputs():
    "In training, or only in what is measured: one line, before anything is trained"
    dls = loaders()
    learn = make(dls, out=4)
    w = snap(learn.model)
    with pytest.raises(MemoError, match='4 outputs.*up to number 5.*n_out=6'): run(learn, stream_of(dls))
    assert all(torch.equal(v, snap(learn.model)[k]) for k,v in w.items() if 'running' not in k and 'num_b' not in k)

def test_sets_to_measure_on():
    dls = loaders()
    only = DataLoaders(dls.train, device='cpu')
    with pytest.raises(MemoError, match='training items only'):
        run(make(dls), Stream(only, [torch.arange(60).tensor_split(2)]))
    two = DataLoaders(dls.train, dls.valid, device='cpu')
    r = run(make(two), split_stream(two, n=3))
    assert r.matrix.shape==(3,3) and r.valid_matrix is None
    none = [torch.tensor([], dtype=torch.long)]*3
    stream = stream_of(dls)
    with pytest.raises(MemoError, match='no test items'):
        run(make(dls), Stream(dls, [stream.parts[0], stream.parts[1], none]))
    # some have none: nan there, and the figures are of the others
    parts = [stream.parts[0], [*none[:2], stream.parts[1][2]], [stream.parts[2][0], none[0], stream.parts[2][2]]]
    r = run(make(dls), Stream(dls, parts), measure=4)
    assert np.isnan(r.matrix[:,1]).all() and not np.isnan(r.matrix[:,[0,2]]).any()
    assert np.isnan(r.valid_matrix[:,:2]).all() and r.average_accuracy==pytest.approx(np.mean(r.matrix[2,[0,2]]))
    assert all(o==o for o in (r.forgetting,r.backward_transfer,r.forward_transfer,r.anytime_accuracy))

def test_items_of_no_class():
    x = torch.randn(12, 5)
    mk = lambda y, s: TensorDL(x, y, bs=4, shuffle=s, vocab=range(2))
    y = torch.arange(12)%2
    dls = DataLoaders(mk(y, True), mk(y, False), mk(y.masked_fill(torch.arange(12)==3, -1), False), device='cpu')
    at = torch.arange(12).tensor_split(2)
    with pytest.raises(MemoError, match=r'experience 0 \(.*label'): run(make(dls), Stream(dls, [at, at, at]))

def test_a_loss_that_is_not_finite():
    dls = loaders()
    learn = make(dls)
    class Breaks(Callback):
        def after_loss(self):
            if self.training and self.learn.experience==1:
                self.learn.loss = self.learn.loss_grad = self.learn.loss_grad*float('nan')
    with pytest.raises(MemoError, match=r'not finite.*experience 1 \(.*epoch 1 of 1.*lower rate'):
        run(learn, stream_of(dls), cbs=Breaks())
    assert len(learn.stream_result)==1

def test_other_loaders_and_ordered_streams():
    "torch's loaders, and fastai's over any data set; with a drift inside, items come as they lie"
    d = loaders()
    sets = [TensorDataset(o.dataset.x, o.dataset.y) for o in d.loaders]
    torch_dls = DataLoaders(*(TorchDL(o, 4, shuffle=i==0) for i,o in enumerate(sets)), device='cpu')
    fast = DataLoaders(*(DataLoader(o, bs=4, shuffle=i==0) for i,o in enumerate(sets)), device='cpu')
    for dls in (torch_dls,fast):
        got = []
        for _ in range(2):
            seen = []
            class Look(Callback):
                def before_batch(self):
                    if self.training: seen.append(self.x.clone())
            r = run(make(dls), stream_of(dls), 2, cbs=Look())
            got.append(torch.cat(seen))
        assert r.matrix.shape==(3,3) and torch.equal(*got) and not torch.equal(got[0][:20], got[0][20:40])
        at = [torch.arange(n).flip(0).tensor_split(3) for n in (60,24,36)]
        seen = []
        run(make(dls), Stream(dls, at, ordered=True), cbs=Look())
        assert torch.equal(torch.cat(seen), sets[0].tensors[0].flip(0))

# figures and files

def test_table_and_csv(tmp_path):
    dls = loaders()
    stream = stream_of(dls)
    r = run(make(dls), stream, measure=3)
    r.to_csv(tmp_path/'a'/'m.csv')
    t = pd.read_csv(tmp_path/'a'/'m.csv')
    assert list(t)==['items','after','batch','on','name','accuracy'] and len(t)==3*3*2+3*3   # 5 batches: one row within
    end = t[(t['items']=='test') & t.batch.isna()].pivot(index='after', columns='on', values='accuracy')
    np.testing.assert_allclose(end.to_numpy(), r.matrix)
    assert t.name.tolist()[:3]==stream.names
    assert 'average accuracy' in repr(r)

def test_an_empty_result():
    r = StreamResult(['a','b'], dict(test=[]))
    assert len(r)==0 and 'none of 2' in repr(r) and r.valid_matrix is None

def test_memories_are_measured_and_written():
    "The bank has the stream's items, none of what was measured, and answers in the matrix"
    dls = loaders()
    learn = make(dls, cbs=MemoryCallback(SlotBank(60, policy='fifo', n_classes=C), k=3, head='vote'))
    r = run(learn, stream_of(dls), measure=2)
    assert len(learn.memory.bank)==60
    from memo.data.items import item_ids
    assert {*learn.memory.bank.items.flatten().tolist()}=={*item_ids(dls.train).tolist()}
    assert r.history.accuracy.notna().all()

# what is shown

def shown(capsys):
    "Rows of the table that was printed, without bars"
    lines = [o.strip() for l in capsys.readouterr().out.split('\n') for o in l.split('\r')]
    return [o.split() for o in lines if o and not o.startswith('Epoch') and '█' not in o and '|' not in o]

def test_one_table_for_all_experiences(capsys, tmp_path):
    "There was one for each, with a head of its own and epochs from 0"
    s = stream_of(loaders())
    learn = make(s.dls)
    bar = learn.progress
    learn.fit_stream(s, 2, measure=2)
    head,*rows = shown(capsys)
    assert head[:3]==['epoch','train_loss','valid_loss'] and [int(o[0]) for o in rows]==[*range(6)]
    assert learn.progress is bar and learn.logger.f is print and learn.cbs.count(bar)==1
    learn.fit(1)
    assert [o[0] for o in shown(capsys)]==['epoch','0']
    with learn.no_logging(): learn.fit_stream(s, 1)
    assert not shown(capsys)
    with learn.no_bar(), learn.no_logging(): learn.fit_stream(s, 1)
    assert not capsys.readouterr().out

def test_a_stream_that_goes_on_goes_on_in_its_table(capsys, tmp_path):
    class Stop(Callback):
        def before_experience(self):
            if self.learn.experience==1: raise KeyboardInterrupt
    s = stream_of(loaders())
    learn = make(s.dls)
    with pytest.raises(KeyboardInterrupt): learn.fit_stream(s, 1, checkpoint=tmp_path, cbs=Stop())
    assert isinstance(learn.progress, ProgressCallback) and [o[0] for o in shown(capsys)]==['epoch','0']
    learn.fit_stream(s, 1, checkpoint=tmp_path, resume=True)
    assert [o[0] for o in shown(capsys)]==['epoch','1','2']
