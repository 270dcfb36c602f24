"""Statistics of classes are those of the features however they came, and answers are those of scikit-learn; what is
counted is what the loss was of; what answers is in the model"""
import copy, numpy as np, pytest, torch, warnings
from fastai.vision.all import (Callback, CrossEntropyLossFlat, DataLoaders, F, GradientAccumulation, Learner, SGD,
                               accuracy, load_learner, nn, partial, set_seed)
from hypothesis import given, settings, strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestCentroid
from memo.banks.slots import SlotBank
from memo.continual.class_statistics import *
from memo.continual.stream_fit import *
from memo.core import MemoError
from memo.data.streams import split_stream
from memo.data.tensors import TensorDL
from memo.evaluation.classifiers import nearest_mean
from memo.heads.attach import detach, memories
from memo.training.export_model import export_model
from memo.training.memory_callback import MemoryCallback
from helpers.errors import err
from helpers.learners import quietly

C,D = 4,6
methods = dict(NearestMean=NearestMean, StreamingLDA=StreamingLDA, RanPAC=lambda: RanPAC(40))
each = pytest.mark.parametrize('make', methods.values(), ids=methods.keys())

def features(n=120, seed=0, shift=0., d=D):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(C, (n,), generator=g)
    z = 2*torch.randn(C, d, generator=torch.Generator().manual_seed(9))[y]+torch.randn(n, d, generator=g)
    z[:,0] *= 4
    return z+shift,y

def loaders(n=120, bs=10, d=D):
    return DataLoaders(*(TensorDL(*features(m, s, d=d), bs=bs, shuffle=s==0, vocab=[*'abcd'], split_idx=int(s>0))
                         for s,m in enumerate((n, 80, 80))))

def net(d=D):
    set_seed(0)
    return nn.Sequential(nn.Linear(d, 8), nn.ReLU(), nn.Linear(8, C))

def learner(cbs=None, d=D, **kw): return Learner(loaders(d=d), net(d), loss_func=CrossEntropyLossFlat(), cbs=cbs, **kw)
def fit(learn, *args, **kw): return quietly(learn, learn.fit, *args, **kw)
def stats_of(*parts, **kw):
    b = ClassStatistics(C, **kw)
    for z,y in parts: b.write(z, y)
    return b
def close(a, b, tol=1e-9): torch.testing.assert_close(a, b, rtol=tol, atol=tol*float(b.abs().max()))

# ---- statistics

@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 40), min_size=1, max_size=8), st.floats(-1e4, 1e4))
def test_any_batches_in_any_order_are_all_at_once(seed, sizes, shift):
    z,y = features(sum(sizes), seed, shift)
    p = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    b = stats_of(*zip(z[p].split(sizes), y[p].split(sizes)))
    n,m,s,zd = b.counts,b.means,b.within,z.double()
    assert n.tolist()==torch.bincount(y, minlength=C).tolist()
    want = torch.zeros(D, D, dtype=torch.double)
    for c in y.unique().tolist():
        own = zd[y==c]
        torch.testing.assert_close(m[c], own.mean(0), rtol=1e-10, atol=1e-9)
        want += (own-own.mean(0)).T@(own-own.mean(0))
    torch.testing.assert_close(s, want, rtol=1e-6, atol=1e-6*len(y))
    assert len(b)==len(y.unique()) and int(b.seen)==len(y) and m[n==0].abs().sum()==0

@pytest.mark.parametrize('kw', [{}, dict(random=True, n_random=12)])
def test_one_at_a_time_is_a_batch(kw):
    z,y = features(60)
    a,b = stats_of(*zip(z.split(1), y.split(1)), **kw),stats_of((z,y), **kw)
    for k in ('means','within'): close(getattr(a, k), getattr(b, k), 1e-5 if kw else 1e-9)
    assert torch.equal(a.counts, b.counts)

def test_classes_that_come_late_leave_the_others():
    z,y = features()
    b = stats_of((z[y<2],y[y<2]))
    m = b.means.clone()
    b.write(z[y>=2], y[y>=2])
    assert torch.equal(b.means[:2], m[:2]) and len(b)==C

def test_features_that_are_no_numbers_are_not_counted():
    z,y = features(20)
    z[3,1],z[7,0] = np.nan,np.inf
    b = ClassStatistics(C)
    with pytest.warns(UserWarning, match='2 of 20 features are NaN or infinite'): got = b.write(z, y)
    ok = got>=0
    assert (~ok).nonzero().flatten().tolist()==[3,7] and b.within.isfinite().all()
    other = stats_of((z[ok],y[ok]))
    assert torch.equal(b.means, other.means) and torch.equal(b.within, other.within)

@pytest.mark.parametrize('z,y,found', [(torch.zeros(2, D), torch.tensor([0,C]), 'label 4'),
    (torch.zeros(2, D+1), torch.tensor([0,1]), 'width 7'), (torch.zeros(2, D), None, 'y='),
    (torch.zeros(2, D), torch.eye(C)[:2], 'class numbers')])
def test_bad_input_is_one_line(z, y, found):
    b = stats_of(features(20))
    was = copy.deepcopy(b.state_dict())
    with pytest.raises(MemoError, match=found) as e: b.write(z, y)
    assert '\n' not in str(e.value) and all(torch.equal(v, b.state_dict()[k]) for k,v in was.items())

@pytest.mark.parametrize('kw', [{}, dict(scatter=False), dict(random=True, n_random=9)])
def test_a_file_holds_them(kw, tmp_path):
    (z,y),(z2,y2) = features(50),features(30, 1)
    a = stats_of((z,y), **kw)
    b = ClassStatistics(**kw)
    b.load_state_dict(a.state_dict())
    for o in (a,b): o.write(z2, y2)
    assert all(torch.equal(v, b.state_dict()[k]) for k,v in a.state_dict().items())
    other = stats_of((torch.randn(9, 3), y[:9]), **kw)
    with pytest.raises(MemoError, match='width 6'): other.load_state_dict(a.state_dict())

# ---- answers

def answer(head, z, y, q):
    for a,b in zip(z.split(7), y.split(7)): head.bank.write(head.features(a), b)
    return head.mixed(torch.zeros(len(q), C), head.features(q))

@pytest.mark.parametrize('shrinkage', [.01, .3])
def test_lda_is_scikit_learns(shrinkage):
    (z,y),(q,_) = features(),features(200, 1)
    got = answer(StreamingLDAHead(ClassStatistics(C), shrinkage), z, y, q)
    sk = LinearDiscriminantAnalysis(solver='lsqr', shrinkage=shrinkage).fit(z.double().numpy(), y)
    # to us classes are equally likely
    want = torch.tensor(q.double().numpy()@sk.coef_.T+sk.intercept_-np.log(sk.priors_)).log_softmax(1)
    torch.testing.assert_close(got.double(), want, atol=1e-4, rtol=1e-4)

def test_nearest_mean_is_scikit_learns_and_ours():
    (z,y),(q,_) = features(),features(200, 1)
    got = answer(NearestMeanHead(ClassStatistics(C, scatter=False), 'euclidean'), z, y, q).argmax(1)
    assert torch.equal(got, torch.tensor(NearestCentroid().fit(z.numpy(), y.numpy()).predict(q.numpy())))
    got = answer(NearestMeanHead(ClassStatistics(C, scatter=False)), z, y, q).argmax(1)
    assert torch.equal(got, nearest_mean(z, y, C)[0](q).argmax(1))

def test_ranpac_is_scikit_learns_ridge():
    (z,y),(q,_) = features(300),features(200, 1)
    head = RanPACHead(ClassStatistics(C, random=True, n_random=50))
    got = answer(head, z, y, q)
    h,t = head.bank.lifted(z).double(),F.one_hot(y, C).double()
    def error(a):       # generalised cross-validation, with the matrix that makes fits of targets
        s = h@torch.linalg.solve(h.T@h+a*torch.eye(50), h.T)
        return float((t-s@t).square().sum()/(1-s.trace()/300)**2)
    best = min(10.**np.arange(-4, 9), key=error)
    assert head.chosen()['penalty']==pytest.approx(best)
    sk = Ridge(alpha=best, fit_intercept=False, solver='cholesky').fit(h, t)
    want = torch.tensor(sk.predict(head.bank.lifted(q).double().numpy()))
    assert (got.argmax(1)==want.argmax(1)).float().mean()>.995
    torch.testing.assert_close(F.linear(head.bank.lifted(q), head.weight).double(), want, atol=1e-3, rtol=1e-3)

@each
def test_classes_that_never_came_are_never_answered(make):
    learn = learner(cb := make())
    z,y = features(200)
    some = (y==0)|(y==2)
    h = cb.head
    with torch.no_grad(): h.bank.write(h.features(learn.model[:2](z[some])), y[some])
    learn.model.eval()
    with torch.no_grad(): out = learn.model(features(500, 3)[0]*5)
    assert {*out.argmax(1).tolist()}<={0,2} and out.isfinite().all()

@each
def test_one_feature_of_a_class(make):
    h = make()._head
    h.bank.n_classes = C
    out = answer(h, features(1)[0], features(1)[1], features(30, 2)[0])
    assert (out.argmax(1)==features(1)[1]).all() and out.isfinite().all()

# ---- in training

def counted(learn, cb):
    "What should have been counted of a learner's training set"
    x,y = learn.dls.train.dataset.x,learn.dls.train.dataset.y
    with torch.no_grad(), cb.off(): z = learn.model.eval()[:2](x)
    return z,y

@each
def test_an_epoch_counts_each_item_once_and_trains_nothing(make):
    learn = learner(cb := make(), metrics=accuracy)
    was = copy.deepcopy(net().state_dict())
    fit(learn, 1, .1)
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k,v in was.items())
    b,(z,y) = cb.bank,counted(learn, cb)
    assert b.class_counts().tolist()==torch.bincount(y).tolist()
    want = ClassStatistics(C, scatter=b.scatter, random=b.random, n_random=b.n_random)
    want.write(cb.head.features(z), y)
    close(b.means, want.means, 1e-5)
    was = copy.deepcopy(b.state_dict())
    quietly(learn, learn.validate)
    quietly(learn, learn.get_preds, ds_idx=0)
    quietly(learn, learn.lr_find, num_it=5, show_plot=False)
    learn.predict(learn.dls.valid_ds.x[0]) if hasattr(learn.dls.valid_ds, 'decode') else None
    assert all(torch.equal(v, b.state_dict()[k]) for k,v in was.items())

def test_weights_that_have_had_a_gradient_do_not_move():
    learn = learner(opt_func=partial(SGD, mom=.9))
    fit(learn, 1, .1, wd=.1)
    was = copy.deepcopy(learn.model.state_dict())
    fit(learn, 1, .1, wd=.1, cbs=StreamingLDA())
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k,v in was.items())

def test_the_rest_is_trained_where_that_is_asked_for():
    set_seed(0)     # of the order in which a loader's items come
    learn = learner(cb := StreamingLDA(train=True))
    with cb.off(): fit(learn, 2, .1)
    set_seed(0)
    other = learner()
    fit(other, 2, .1)
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k,v in other.model.state_dict().items())
    assert cb.bank.class_counts().sum()==240

@each
def test_a_backbone_that_is_frozen(make):
    learn = learner()
    learn.model[0].requires_grad_(False)
    fit(learn, 1, .1, cbs=make())
    out = quietly(learn, learn.get_preds)
    assert (out[0].argmax(1)==out[1]).float().mean()>.6

@each
def test_what_answers_stays_in_the_model(make, tmp_path):
    learn = learner(path=tmp_path)
    fit(learn, 1, .1, cbs=make())
    name, = memories(learn.model)
    assert not learn.cbs.filter(lambda o: isinstance(o, MemoryCallback))
    x = learn.dls.valid_ds.x
    learn.model.eval()
    with torch.no_grad(): out = learn.model(x)
    assert torch.allclose(quietly(learn, learn.get_preds)[0], out.softmax(1), atol=1e-5)
    learn.save('m')
    new = learner(make(), path=tmp_path)
    new.load('m')
    learn.export('e.pkl')
    for m in (new.model, load_learner(tmp_path/'e.pkl').model):
        with torch.no_grad(): assert torch.equal(m.eval()(x), out)
    export_model(learn, tmp_path/'m.pt2')
    with torch.no_grad(): got = torch.export.load(tmp_path/'m.pt2').module()(x)
    assert torch.allclose(got, out, atol=1e-4)
    head = detach(learn.model, name)
    with torch.no_grad(): assert not torch.allclose(learn.model(x), out) and type(head).__name__.endswith('Head')

@each
def test_a_stream_goes_on_with_another_callback(make):
    a,b = learner(),learner()
    fit(a, 1, .1, cbs=(cb := make()))
    fit(a, 1, .1, cbs=cb)
    fit(b, 1, .1, cbs=make())
    fit(b, 1, .1, cbs=make())
    for l in (a,b): assert next(iter(memories(l.model).values())).bank.class_counts().sum()==240
    assert torch.allclose(*(quietly(l, l.get_preds)[0] for l in (a,b)), atol=1e-3)

def test_settings_of_another_callback():
    learn = learner()
    fit(learn, 1, .1, cbs=StreamingLDA(.5))
    a = quietly(learn, learn.get_preds)[0]
    fit(learn, 1, .1, cbs=RanPAC(20))
    assert 'detach(learn.model' in err(learn.add_cb, RanPAC(30)) and len(memories(learn.model))==2
    detach(learn.model, 'ranpac')
    learn.add_cb(StreamingLDA(.01))
    assert not torch.allclose(quietly(learn, learn.get_preds)[0], a, atol=1e-3)

def test_beside_a_memory():
    "What other memories store is stored, and their votes mix with what the statistics say"
    learn = learner(MemoryCallback(SlotBank(60, policy='fifo'), head='vote', k=5))
    fit(learn, 1, .1, cbs=StreamingLDA())
    assert len(learn.memory.bank)==60
    learn.memory.head.weight.fill_(.01)
    both = quietly(learn, learn.get_preds)[0]
    with learn.memory.off(): one = quietly(learn, learn.get_preds)[0]
    assert not torch.equal(both, one) and torch.allclose(both, one, atol=.03)

def test_items_not_batches_are_counted_under_accumulation():
    learn = learner(cb := StreamingLDA(), )
    fit(learn, 1, .1, cbs=GradientAccumulation(40))
    assert cb.bank.class_counts().sum()==120

# ---- in a stream

def stream(n=240): return split_stream(loaders(n, 10), n=2, by='class')

@each
def test_order_of_classes_says_nothing(make):
    got = []
    for seed in range(3):
        s = split_stream(loaders(240), n=2, by='class', seed=seed)
        learn = Learner(s.dls, net(), loss_func=CrossEntropyLossFlat())
        learn.model[0].requires_grad_(False)
        with learn.no_bar(), learn.no_logging(): r = learn.fit_stream(s, cbs=make())
        got.append(r.average_accuracy)
        out = quietly(learn, learn.get_preds, dl=s.whole.loaders[2])
        if seed==0: first = out[0]
        assert torch.allclose(out[0], first, atol=1e-3)
    assert min(got)>.6 and max(got)-min(got)<.05

@each
def test_a_stream_that_was_killed_goes_on(make, tmp_path):
    class Stop(Callback):
        order = 70
        def before_experience(self):
            if self.learn.experience==1: raise KeyboardInterrupt
    def run(folder, stop=False, resume=False):
        s = stream()
        learn = Learner(s.dls, net(), loss_func=CrossEntropyLossFlat(), cbs=make())
        if stop: learn.add_cb(Stop())
        with learn.no_bar(), learn.no_logging(): learn.fit_stream(s, checkpoint=folder, resume=resume)
        return learn.model.state_dict()
    whole = run(tmp_path/'a')
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'b', stop=True)
    got = run(tmp_path/'b', resume=True)
    assert whole.keys()==got.keys() and all(torch.equal(v, got[k]) for k,v in whole.items())

def test_a_state_of_another_network_is_one_line():
    learn = learner()
    fit(learn, 1, .1, cbs=StreamingLDA(at='1'))
    other = Learner(loaders(), nn.Sequential(nn.Linear(D, 5), nn.ReLU(), nn.Linear(5, C)), cbs=StreamingLDA(at='1'),
                    loss_func=CrossEntropyLossFlat())
    fit(other, 1, .1)
    state = learn.model.state_dict()
    with pytest.raises(MemoError, match='width 8'): other.streaming_lda.bank.load_state_dict(
        {k.partition('bank.')[2]:v for k,v in state.items() if 'bank.' in k})

@pytest.mark.slow
def test_two_ranks(tmp_path, two_ranks, repo):
    r = two_ranks(repo/'tests/continual/class_statistics_script.py', tmp_path, cwd=repo)
    assert r.returncode==0, r.stdout[-3000:]+r.stderr[-6000:]
    a,b = (torch.load(tmp_path/f'rank{i}.pt', weights_only=True) for i in range(2))
    assert a['model'].keys()==b['model'].keys() and all(torch.equal(v, b['model'][k]) for k,v in a['model'].items())
    # all items of two epochs, but for an incomplete batch, or one item twice
    n = int(next(v for k,v in a['model'].items() if k.endswith('counts')).sum())
    assert abs(n-2*a['n'])<=64

def test_what_is_frozen_is_in_evaluation_mode():
    "A batch norm's running statistics stay, and features that are counted are those that are asked for"
    from helpers.digit_streams import digit_net, digit_stream, stream_learner
    s,net = digit_stream(),digit_net(norm=True)
    net.insert(3, nn.Dropout(.5))
    learn = stream_learner(s, [StreamingLDA()], net=net)
    was = {k:v.clone() for k,v in net.state_dict().items() if 'streaming_lda' not in k}
    quietly(learn, learn.fit_stream, s)
    assert all(torch.equal(v, net.state_dict()[k]) for k,v in was.items())
    x,y = s.whole.train.dataset.x,s.labels(0)
    with torch.no_grad(): z = net[:4].eval()(x)
    bank = learn.streaming_lda.bank
    for c in range(6): torch.testing.assert_close(bank.means[c].float(), z[y==c].mean(0), rtol=1e-4, atol=1e-5)
