"Everything a fastai learner does, it does with a memory too, and the bank is right after each"
import copy, random, warnings
import numpy as np, pandas as pd, pytest, torch
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.progress import CSVLogger
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.vision.all import (Callback, CancelBatchException, CancelStepException, CategoryBlock, ColReader,
                               CrossEntropyLossFlat,
                               DataBlock, DataLoader, DataLoaders, ImageBlock, Learner, TfmdDL, WeightedDL, accuracy,
                               accuracy_multi,
                               aug_transforms, first, get_c, load_learner, nn, noop, params, resnet18, set_seed,
                               vision_learner)
from sklearn.datasets import load_digits, load_sample_images
from helpers.half import Half
from helpers.learners import plain_part, quietly, same, snap
from memo.heads.attach import attach, find_head, memories
from memo.banks.slots import SlotBank
from memo.training.batch_ids import group_ids
from memo.banks.classes import ClassBank
from memo.training.memory_callback import MemoryCallback
from memo.training.collect import collect
from memo.core import MemoError
from memo.data.samplers import BalancedDL
from memo.data.transforms import RandomShift
from memo.data.tensors import TensorDL, TensorSet, plain_dl
from memo.data.longtail import digits_lt
from memo.models.small import small_cnn
from memo.data.items import item_ids
from memo.heads.mixture import VoteHead, mix_votes
from memo.metrics.multiclass import longtail_scores

_d = load_digits()
X,Y = torch.from_numpy(_d.images*(255/16)).round().byte()[:,None],torch.from_numpy(_d.target).long()
N,NV = 150,40
key = {x.float().div(255).numpy().tobytes():i for i,x in enumerate(X)}    # an image names its item

def digit_dls(n=N, bs=32, shuffle=True, cls=TensorDL, seed=0, multi=False, first=0, **kw):
    y = torch.stack([Y%2==0, Y>4, Y%3==0], 1).float() if multi else Y
    vocab = list('abc') if multi else list(range(10))
    def mk(i, s, **k):
        return (cls if s==0 else TensorDL)(dataset=TensorSet(X[i], y[i], torch.arange(len(X))[i], vocab, s), bs=bs, **k)
    dls = DataLoaders(mk(slice(first,first+n), 0, shuffle=shuffle, **kw), mk(slice(1000,1000+NV), 1),
                      mk(slice(1100,1130), 2), device='cpu')
    dls.train.rng = random.Random(seed)
    return dls

def net(c=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64,24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(.2), nn.Linear(24,c))
def split(m): return [params(m[:4]),params(m[4:])]

def learner(tmp_path, cbs=None, dls=None, model=None, metrics=accuracy, seed=0, **kw):
    set_seed(seed)
    dls = dls or digit_dls()
    return Learner(dls, model or net(get_c(dls)), metrics=metrics, cbs=cbs, path=tmp_path,
                   splitter=kw.pop('splitter', split), **kw)

def memory(head='add', bank=None, **kw):
    return MemoryCallback(SlotBank(2*N, policy='fifo') if bank is None else bank, head=head, **kw)

def at_rest(learn):
    "Is no batch in flight?"
    return (learn.memory.head.step is None and learn.memory.head.z is None and learn.batch_ids.step is None
            and not learn.batch_ids.loops)

def who(xb): return [key[x.numpy().tobytes()] for x in xb.detach().as_subclass(torch.Tensor).cpu().contiguous()]

class Truth(Callback):
    """What a bank with room for everything must hold: for each item the features of the last step taken on it,
    seen by a hook of its own"""
    order,run_valid = 100,False
    def __init__(self, who=who): self.who,self.held,self.pending,self.rows = who,{},[],0
    def _params(self): return torch.cat([p.detach().flatten() for p in self.model.parameters()])
    def before_fit(self): self.pending = []
    def before_batch(self):
        last = [m for m in self.model.modules() if isinstance(m, nn.Linear)][-1]
        self.hook = last.register_forward_pre_hook(lambda m,a: setattr(self, 'f', a[0].detach().float().clone()),
                                                   prepend=True)
        self.was = self._params()
    def after_loss(self): self.pending.append((self.who(self.xb[0]), self.f))
    def after_cancel_step(self): self.pending = []
    def after_batch(self):
        self.hook.remove()
        if torch.equal(self.was, self._params()): return
        for ids,f in self.pending:
            self.rows += len(ids)
            self.held.update(zip(ids, f))
        self.pending = []

def check(learn, truth, y=Y):
    "Is the bank what `truth` says?"
    f,_,lab,i,_,_ = learn.memory.bank.rows()
    assert len(truth.held) and sorted(i.tolist())==sorted(truth.held)
    assert torch.equal(f, torch.stack([truth.held[o] for o in i.tolist()]))
    assert torch.equal(lab, y[i])

@pytest.fixture
def trained(tmp_path):
    "A learner with memory, an epoch old"
    learn = learner(tmp_path, memory())
    quietly(learn, 'fit', 1, 1e-2)
    return learn

# fits
@pytest.mark.parametrize('how', ['fit_one_cycle','fine_tune','fit_flat_cos','twice'])
@pytest.mark.parametrize('head', ['add','vote',None])
def test_fits(tmp_path, how, head):
    truth = Truth()
    learn = learner(tmp_path, [memory(head),truth])
    if how=='twice':
        quietly(learn, 'fit', 1, 1e-2)
        quietly(learn, 'fit_one_cycle', 1, 1e-2)
    else: quietly(learn, how, 2, 1e-2)
    check(learn, truth)
    assert truth.rows == N*(3 if how=='fine_tune' else 2)
    if head: assert not torch.equal(*_with_without(learn))

def _with_without(learn):
    got = quietly(learn, 'get_preds')[0]
    with learn.memory.off(): return got,quietly(learn, 'get_preds')[0]

@pytest.mark.parametrize('head', ['add','vote',None])
def test_lr_find_leaves_no_trace(tmp_path, head):
    truth = Truth()
    learn = learner(tmp_path, memory(head))
    was,bank,writes = snap(learn.model),learn.memory.bank,[]
    bank.write = lambda *a, **k: writes.append(len(a[0]))
    with learn.no_bar(): learn.lr_find(num_it=12, show_plot=False)
    del bank.write
    assert not writes
    assert same(was, snap(learn.model)) and bank.features is None and bank.dim is None and len(bank)==0
    assert [o.name for o in learn.metrics]==['accuracy']
    quietly(learn, 'fit', 1, 1e-2, cbs=truth)
    check(learn, truth)
    was = snap(learn.model)
    with learn.no_bar(): learn.lr_find(num_it=12, show_plot=False)
    assert same(was, snap(learn.model))
    check(learn, truth)

@pytest.mark.parametrize('head', [None,'vote'])
def test_training_is_bit_equal_to_training_without(tmp_path, head):
    "Switching a bank on changes no random number; a vote does not touch training"
    a,b = learner(tmp_path),learner(tmp_path, memory(head, SlotBank(40, policy='reservoir')))
    for learn in (a,b):
        set_seed(1)
        quietly(learn, 'fit_one_cycle', 3, 1e-2)
    assert same(snap(a.model), plain_part(snap(b.model)))
    assert [float(o) for o in a.recorder.losses]==[float(o) for o in b.recorder.losses]
    with b.memory.off(): assert torch.equal(quietly(a, 'get_preds')[0], quietly(b, 'get_preds')[0])
    if head is None: assert torch.equal(quietly(a, 'get_preds')[0], quietly(b, 'get_preds')[0])

@pytest.mark.parametrize('head', ['add','vote',None])
def test_random_numbers_of_the_run_are_its_own(tmp_path, head):
    a,b = learner(tmp_path),learner(tmp_path, memory(head, SlotBank(40, policy='reservoir')))
    got = []
    for learn in (a,b):
        set_seed(1)
        quietly(learn, 'fit', 2, 1e-2)
        got.append((torch.rand(3).tolist(), np.random.rand(), random.random(), learn.dls.train.rng.random()))
    assert got[0]==got[1]

# evaluation
@pytest.mark.parametrize('head', ['add','vote',None])
def test_validate(tmp_path, head, capsys):
    learn,plain = learner(tmp_path, memory(head)),learner(tmp_path)
    got = quietly(learn, 'validate')       # never trained
    assert len(got)==2 and got==quietly(plain, 'validate')
    for o in (learn,plain): quietly(o, 'fit', 1, 1e-2)
    names = plain.recorder.metric_names
    was = snap(learn.model)
    for kw in (dict(), dict(ds_idx=0), dict(dl=learn.dls[2])):
        got = learn.validate(**kw)
        assert len(got)==2
        assert list(learn.recorder.metric_names)==list(names)
    assert same(was, snap(learn.model)) and [o.name for o in learn.metrics]==['accuracy']
    p,y = quietly(learn, 'get_preds')
    assert quietly(learn, 'validate')[1]==pytest.approx((p.argmax(1)==y).float().mean().item())
    capsys.readouterr()
    plain.validate()
    said = capsys.readouterr().out
    learn.validate()
    assert 'memory' not in capsys.readouterr().out and 'memory' not in said

@pytest.mark.parametrize('head', ['add','vote'])
def test_get_preds(tmp_path, head):
    learn = learner(tmp_path, memory(head))
    quietly(learn, 'fit', 1, 1e-2)
    was,m = snap(learn.model),learn.model.eval()
    for i in range(3):
        ds = learn.dls[i].dataset
        with torch.no_grad(): want = m(ds.x.float()/255).softmax(1)
        with learn.memory.own_rows(): p,y,loss = quietly(learn, 'get_preds', ds_idx=i, with_loss=True)
        torch.testing.assert_close(p, want, rtol=1e-5, atol=1e-6)
        assert torch.equal(y.as_subclass(torch.Tensor), ds.y) and len(loss)==len(ds)
    torch.manual_seed(0)
    dl = learn.dls.train.new(shuffle=True)
    p,y = quietly(learn, 'get_preds', dl=dl, reorder=False)
    assert not torch.equal(y.as_subclass(torch.Tensor), learn.dls.train.dataset.y) and len(p)==N
    p,y = quietly(learn, 'get_preds', dl=dl)
    assert torch.equal(y.as_subclass(torch.Tensor), learn.dls.train.dataset.y)
    assert same(was, snap(learn.model))

@pytest.mark.parametrize('head', ['add','vote'])
def test_predict(tmp_path, head):
    learn = learner(tmp_path, memory(head))
    quietly(learn, 'fit', 1, 1e-2)
    was,p = snap(learn.model),quietly(learn, 'get_preds')[0]
    with learn.no_bar():
        for i in (0,7):
            c,j,probs = learn.predict(X[1000+i])
            torch.testing.assert_close(probs, p[i], rtol=1e-5, atol=1e-6)
            assert int(j)==int(p[i].argmax())==int(c)
    assert same(was, snap(learn.model))

def test_show_results(trained):
    import matplotlib.pyplot as plt
    was = snap(trained.model)
    with trained.no_bar(): trained.show_results(max_n=4)
    plt.close('all')
    assert same(was, snap(trained.model))

# what is kept
@pytest.mark.parametrize('bank', ['slot','class'])
@pytest.mark.parametrize('head', ['add','vote',None])
def test_save_load(tmp_path, head, bank):
    def mk(cb=True):
        b = SlotBank(2*N, policy='reservoir') if bank=='slot' else ClassBank(10, capacity=20)
        return learner(tmp_path, memory(head, b) if cb else None, seed=len(list(tmp_path.glob('*')))+1)
    truth,a = Truth(),mk()
    quietly(a, 'fit', 1, 1e-2)
    a.save('m', with_opt=True)
    was,p = snap(a.model),quietly(a, 'get_preds')[0]
    b = mk()
    b.load('m', with_opt=True)
    assert same(was, snap(b.model)) and torch.equal(p, quietly(b, 'get_preds')[0])
    for o in (a,b):                       # both go on alike: bank, optimizer, reservoir
        o.dls.train.rng = random.Random(5)
        set_seed(2)
        quietly(o, 'fit', 1, 1e-2)
    assert same(snap(a.model), snap(b.model)) and not same(was, snap(a.model))
    a.load('m')                           # over a later state
    assert same(was, snap(a.model)) and torch.equal(p, quietly(a, 'get_preds')[0])
    if bank=='slot':
        quietly(a, 'fit', 1, 1e-2, cbs=truth)
        check(a, truth)
    with pytest.raises(MemoError, match='memory'): mk(cb=False).load('m')

def test_load_checks_the_bank(tmp_path):
    a = learner(tmp_path, memory())
    quietly(a, 'fit', 1, 1e-2)
    a.save('m')
    with pytest.raises(MemoError) as e: learner(tmp_path, memory(bank=SlotBank(77, policy='fifo'))).load('m')
    assert '\n' not in str(e.value) and 'size' in str(e.value)

def classes_in(o): return int(o)//3

@pytest.mark.parametrize('head', ['add','vote',None])
def test_export(tmp_path, head):
    base = 3
    learn = learner(tmp_path, memory(head, group=lambda o: int(o)//base))     # a closure
    quietly(learn, 'fit', 2, 1e-2)
    p,was = quietly(learn, 'get_preds', dl=learn.dls.test_dl(X[1000:1020]))[0],snap(learn.model)
    learn.export('l.pkl')
    assert same(was, snap(learn.model))
    new = load_learner(tmp_path/'l.pkl', cpu=True)
    assert same(was, snap(new.model))
    assert torch.equal(p, quietly(new, 'get_preds', dl=new.dls.test_dl(X[1000:1020]))[0])
    assert torch.equal(p, quietly(new, 'get_preds', dl=new.dls.test_dl(X[1000:1020]))[0]) and same(was, snap(new.model))
    assert new.memory.bank is find_head(new.model).bank and at_rest(new)
    truth = Truth()                       # and on it trains
    new.dls = digit_dls(first=200)
    quietly(new, 'fit', 1, 1e-2, cbs=truth)
    held = dict(zip(new.memory.bank.items.tolist(), new.memory.bank.features))
    assert all(torch.equal(held[k], v) for k,v in truth.held.items()) and len(new.memory.bank)==2*N
    assert list(new.recorder.metric_names)[:4]==['epoch','train_loss','valid_loss','accuracy']
    quietly(learn, 'fit', 1, 1e-2)            # as does the one that was exported

def test_export_after_an_interrupted_fit(tmp_path):
    learn = learner(tmp_path, [memory(),Stop(3)])
    with pytest.raises(KeyboardInterrupt): quietly(learn, 'fit', 1, 1e-2)
    learn.remove_cb(learn.stop)
    learn.export('l.pkl')
    new = load_learner(tmp_path/'l.pkl')
    assert at_rest(new) and at_rest(learner(tmp_path, memory()))
    new.dls = digit_dls()
    assert len(quietly(new, 'validate'))==2

class Stop(Callback):
    "Ctrl-C in a batch, in the middle of the forward pass"
    def __init__(self, at): self.at,self.n = at,0
    def after_pred(self):
        self.n += 1
        if self.n==self.at: raise KeyboardInterrupt

@pytest.mark.parametrize('head', ['add','vote'])
def test_a_classifier_alone(tmp_path, head):
    "A linear layer on features: the memory is in front of the model itself"
    def mk(s, i):
        return TensorDL(dataset=TensorSet(X[s].flatten(1).float()/255, Y[s], torch.arange(len(X))[s], list(range(10)),
                                          i), bs=32, shuffle=i==0)
    dls = DataLoaders(mk(slice(0,N), 0), mk(slice(1000,1000+NV), 1), device='cpu')
    learn = Learner(dls, nn.Linear(64,10), metrics=accuracy, cbs=memory(head), path=tmp_path)
    quietly(learn, 'fit', 2, 1e-2)
    bank,x = learn.memory.bank,dls.valid_ds.x
    assert len(bank)==N and all(torch.equal(f, X[i].flatten().float()/255)
                                for f,i in zip(bank.features, bank.items[:N].tolist()))
    got = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    sim = nn.functional.normalize(x) @ nn.functional.normalize(bank.features[:N]).T
    assert got['memory_hit']==pytest.approx((bank.labels[sim.argmax(1)]==dls.valid_ds.y).float().mean().item())
    p,q = _with_without(learn)
    assert not torch.allclose(p, q, atol=1e-3)
    learn.export('l.pkl')
    new = load_learner(tmp_path/'l.pkl')
    assert torch.equal(quietly(new, 'get_preds', dl=new.dls.test_dl(x))[0], p)
    learn.remove_cb(learn.memory)
    assert torch.equal(quietly(learn, 'get_preds')[0], q) and list(learn.model.state_dict())==['weight',
        'bias'] and 'forward' not in vars(learn.model)

# steps that do not happen, or happen late
class Overflow(Callback):
    "Every second step is skipped, as fp16 skips it"
    order,run_valid = MixedPrecision.order,False
    def before_step(self):
        if self.iter%2: raise CancelStepException

def test_skipped_steps_are_not_written(tmp_path):
    truth = Truth()
    learn = learner(tmp_path, [memory(),Overflow(),truth])
    quietly(learn, 'fit', 1, 1e-2)
    assert truth.rows==32*2+22            # batches 0, 2, 4
    check(learn, truth)
    assert int(learn.memory.bank.seen)==truth.rows

@pytest.mark.parametrize('head', ['add','vote',None])
def test_half_precision(tmp_path, head):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64,24), nn.Linear(24,10))     # features leave a linear layer: half
    truth = Truth()
    learn = learner(tmp_path, [memory(head),Half(),truth], model=model, splitter=params)
    seen = []
    h = learn.memory.head.register_forward_pre_hook(lambda m,a: seen.append(a[0].dtype))
    quietly(learn, 'fit', 2, 1e-2)
    h.remove()
    assert set(seen)=={torch.bfloat16}
    bank = learn.memory.bank
    assert bank.features.dtype==torch.float32 and len(bank)==N
    check(learn, truth)
    assert torch.isfinite(quietly(learn, 'get_preds')[0]).all()

@pytest.mark.parametrize('n_acc', [32,64,96,100])
def test_gradient_accumulation(tmp_path, n_acc):
    truth = Truth()
    learn = learner(tmp_path, [memory(),GradientAccumulation(n_acc),truth])
    quietly(learn, 'fit', 3, 1e-2)
    check(learn, truth)
    steps,rows,n = 0,0,0
    for bs in 3*[32,32,32,32,22]:             # leftovers of an epoch go with the next one's first step
        n += bs
        if n>=n_acc: steps,rows,n = steps+1,rows+n,0
    assert int(learn.memory.bank.updates)==steps and truth.rows==rows

def test_each_micro_batch_is_written_once(tmp_path):
    writes = []
    learn = learner(tmp_path, [memory(),GradientAccumulation(64)], dls=digit_dls(shuffle=False))
    write = learn.memory.bank.write
    learn.memory.bank.write = lambda *a, **k: (writes.append(a[3].tolist()), write(*a, **k))
    quietly(learn, 'fit', 2, 1e-2)
    flat = [i for w in writes for i in w]
    # 32,32,32,32,22 an epoch, a step whenever 64 have come together
    assert [len(w) for w in writes]==[64,64,22+32+32,64]
    assert flat==(2*list(range(N)))[:len(flat)]

@pytest.mark.parametrize('mix', [MixUp,CutMix])
@pytest.mark.parametrize('head', ['add','vote',None])
@pytest.mark.parametrize('how', ['learner','fit'])
def test_mixed_labels_are_not_written(tmp_path, mix, head, how):
    learn = learner(tmp_path, [memory(head)] + ([mix(1.)] if how=='learner' else []))
    kw = dict(cbs=mix(1.)) if how=='fit' else {}
    quietly(learn, 'fit', 2, 1e-2, **kw)
    assert len(learn.memory.bank)==0 and int(learn.memory.bank.seen)==0
    assert len(learn.recorder.values)==2 and np.isfinite(learn.recorder.losses).all()
    if how=='learner': return
    truth = Truth()
    quietly(learn, 'fit', 1, 1e-2, cbs=truth)     # without mixing it fills
    check(learn, truth)
    was = snap(learn.memory.bank)
    quietly(learn, 'fit', 1, 1e-2, cbs=mix(1.))
    assert same(was, snap(learn.memory.bank))
    plain = learner(tmp_path)
    quietly(plain, 'fit', 1, 1e-2, cbs=mix(1.))   # nothing special to the learner either
    assert len(plain.recorder.values[0])==3

class Cancel(Callback):
    "Cancels some batches at some event"
    run_valid = False
    def __init__(self, at, event, order):
        self.at,self.order = at,order
        setattr(self, event, self._go)
    def _go(self):
        if self.iter in self.at: raise CancelBatchException

@pytest.mark.parametrize('event,order',
                         [('before_batch',0), ('before_batch',99), ('after_pred',0), ('after_loss',0),
                          ('after_loss',99), ('before_backward',0), ('before_backward',99)])
@pytest.mark.parametrize('at', [(0,),(1,3)])
def test_cancelled_batches_are_not_written(tmp_path, event, order, at):
    writes = []
    learn = learner(tmp_path, [memory(),Cancel(at, event, order)], dls=digit_dls(shuffle=True))
    bank,trained_on = learn.memory.bank,[]
    class Note(Callback):
        run_valid = False
        def before_step(self): trained_on.append(who(self.xb[0]))
    write = bank.write
    bank.write = lambda *a, **k: (writes.append((a[3].tolist(), a[1])), write(*a, **k))
    quietly(learn, 'fit', 3, 1e-2, cbs=Note())
    assert [w[0] for w in writes]==trained_on and len(trained_on)==3*(5-len(at))
    assert all(torch.equal(y, Y[i]) for i,y in writes)

def test_interrupted_and_fitted_again(tmp_path):
    truth = Truth()
    learn = learner(tmp_path, [memory(),Stop(3)])
    with pytest.raises(KeyboardInterrupt): quietly(learn, 'fit', 2, 1e-2, cbs=truth)
    check(learn, truth)
    assert truth.rows==64 and len(learn.memory.bank)==64
    assert len(quietly(learn, 'validate'))==2
    quietly(learn, 'fit', 1, 1e-2, cbs=truth)
    check(learn, truth)
    names = list(learn.recorder.metric_names)
    assert len(names)==len(set(names)) and len(learn.recorder.values[-1])==len(names)-2
    assert [o.name for o in learn.metrics]==['accuracy']

# relatives
class Snaps(Callback):
    order = 99
    def before_fit(self): self.learn.snaps = []
    def after_epoch(self): self.learn.snaps.append(snap(self.model))

@pytest.mark.parametrize('head', ['add','vote'])
def test_save_model_callback(tmp_path, head):
    learn = learner(tmp_path, [memory(head, SlotBank(60, policy='reservoir')),Snaps()])
    class Script(Callback):
        "Validation losses as wanted: the second epoch is the best"
        order = 51
        def after_epoch(self): self.recorder.log[2] = self.learn.final_record[1] = [3.,1.,2.,4.][self.epoch]
    quietly(learn, 'fit', 4, 1e-2, cbs=[Script(),SaveModelCallback(monitor='valid_loss')])
    s = learn.snaps
    assert same(s[1], snap(learn.model)) and not same(s[3], s[1])
    keys = [k for k in s[0] if 'memory' in k]
    assert not same({k:s[1][k] for k in keys}, {k:s[3][k] for k in keys})
    if head=='vote':
        assert any(float(o[k])!=.5 for o in s for k in keys if k.endswith('memory.weight'))
        assert float(learn.memory.head.weight)==float(s[1][next(k for k in keys if k.endswith('memory.weight'))])

def test_early_stopping(tmp_path):
    truth = Truth()
    learn = learner(tmp_path, [memory(),truth])
    quietly(learn, 'fit', 6, 1e-2, cbs=EarlyStoppingCallback(monitor='accuracy', min_delta=2., patience=2))
    assert len(learn.recorder.values)==3 and truth.rows==3*N
    check(learn, truth)
    assert [o.name for o in learn.metrics]==['accuracy']
    quietly(learn, 'fit', 1, 1e-2)
    check(learn, truth)

def test_reduce_lr_on_a_column_of_the_bank(tmp_path):
    learn = learner(tmp_path, memory())
    quietly(learn, 'fit', 2, 1e-2, cbs=ReduceLROnPlateau(monitor='memory_fill', patience=1))
    assert len(learn.recorder.values)==2

@pytest.mark.parametrize('head', ['add',None])
def test_csv_columns(tmp_path, head):
    learn = learner(tmp_path, memory(head))
    quietly(learn, 'fit', 2, 1e-2, cbs=CSVLogger())
    df = pd.read_csv(tmp_path/'history.csv')
    want = ['epoch','train_loss','valid_loss','accuracy',*['memory_hit']*(head is not None),'memory_fill','time']
    assert list(df.columns)==want and len(df)==2
    assert df.memory_fill.tolist()==pytest.approx([.5,.5])
    if head: assert df.memory_hit.between(.3, 1).all()

def test_hit_rate_is_right(tmp_path):
    learn = learner(tmp_path, memory(k=1))
    quietly(learn, 'fit', 1, 1e-2)
    said = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))['memory_hit']
    m,bank = learn.model.eval(),learn.memory.bank
    with torch.no_grad(), learn.memory.off(): z = m[:5](X[1000:1000+NV].float()/255)
    sim = torch.nn.functional.normalize(z) @ torch.nn.functional.normalize(bank.features[:N]).T
    assert said==pytest.approx((bank.labels[sim.argmax(1)]==Y[1000:1000+NV]).float().mean().item())

def test_csv_of_validate_has_the_columns_of_its_line(tmp_path):
    learn = learner(tmp_path, [memory(),CSVLogger()])
    learn.validate()
    head,*lines = (tmp_path/'history.csv').read_text().splitlines()
    assert 'memory' not in head

def test_history_is_intact_after_the_vote_is_fitted(tmp_path):
    learn = learner(tmp_path, memory('vote'))
    quietly(learn, 'fit', 3, 1e-2)
    rec = learn.recorder
    was = copy.deepcopy((list(map(float, rec.losses)), list(rec.lrs), [list(o) for o in rec.values], list(rec.iters),
                         list(rec.metric_names)))
    model = snap(learn.model)
    rnd = torch.get_rng_state()
    got = learn.memory.fit_vote(k=(5,20), whiten=(False,True))
    assert was==(list(map(float, rec.losses)), list(rec.lrs), [list(o) for o in rec.values], list(rec.iters),
                 list(rec.metric_names))
    assert len(was[2])==3 and 0<got['weight']<1
    assert same(plain_part(model), plain_part(snap(learn.model))) and torch.equal(rnd, torch.get_rng_state())
    rec.plot_loss()

def test_vote_is_fitted_at_the_end_of_a_fit(tmp_path):
    learn = learner(tmp_path, memory('vote'))
    quietly(learn, 'fit', 2, 1e-2)
    got = float(learn.memory.head.weight),float(learn.memory.head.temperature)
    want = learn.memory.fit_vote()
    assert got==pytest.approx((want['weight'],want['temperature']), rel=1e-5)

@pytest.mark.parametrize('ds', [0,2])
def test_vote_is_fitted_to_nothing_but_the_validation_set(tmp_path, ds):
    class Peek(Callback):
        "Predictions in the middle of a fit, as `FetchPredsCallback` makes them"
        order = 70
        def after_epoch(self): self.learn.get_preds(ds_idx=ds, inner=True)
    learn = learner(tmp_path, memory('vote'))
    quietly(learn, 'fit', 2, 1e-2, cbs=Peek())
    got = float(learn.memory.head.weight),float(learn.memory.head.temperature)
    want = learn.memory.fit_vote()
    assert got==pytest.approx((want['weight'],want['temperature']), rel=1e-5)

def test_tensorboard(tmp_path):
    pytest.importorskip('tensorboard')
    from fastai.callback.tensorboard import TensorBoardCallback
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    learn = learner(tmp_path, memory())
    quietly(learn, 'fit', 2, 1e-2, cbs=TensorBoardCallback(tmp_path/'tb', trace_model=False, log_preds=False))
    tags = EventAccumulator(str(tmp_path/'tb')).Reload().Tags()['scalars']
    assert any('memory_fill' in t for t in tags)

def test_freeze_unfreeze(tmp_path):
    learn,plain = learner(tmp_path, memory()),learner(tmp_path)
    def groups(l): return [[(tuple(p.shape), p.requires_grad) for p in g] for g in l.opt.param_lists]
    for f in ('freeze','unfreeze'):
        for o in (learn,plain): getattr(o, f)()
        assert groups(learn)==groups(plain)
        was = snap(learn.model)
        quietly(learn, 'fit', 1, slice(1e-3,1e-2))
        moved = any(not torch.equal(was[k], v) for k,v in learn.model.named_parameters() if k.startswith('1.'))
        assert moved==(f=='unfreeze')
    assert not any('memory' in k for k,_ in learn.model.named_parameters())
    assert learn.memory.bank.features.requires_grad is False

# read before write, and never find yourself
class Spy(Callback):
    "In training no query finds its own item or group"
    order,run_valid = 90,False
    def __init__(self, who, ids, groups=None): self.who,self.ids,self.groups,self.found,self.held = who,ids,groups,0,0
    def after_pred(self):
        head = find_head(self.model)
        r,bank = self.learn.batch_ids.step.seen(head).read,head.bank
        me = torch.tensor(self.who(self.xb[0]))
        stored = bank.items.flatten()[r.index.clamp(min=0)].masked_fill(r.index<0, -2)
        own = self.ids[me][:,None]
        assert not (stored==own).any(), 'a query found its own item'
        self.held += torch.isin(own, bank.items).sum().item()
        self.found += (r.index>=0).sum().item()
        if self.groups is not None:
            at = {int(i):int(g) for i,g in zip(self.ids, self.groups)}
            got = torch.tensor([[at.get(int(o), -5) for o in row] for row in stored])
            assert not (got==self.groups[me][:,None]).any(), 'a query found its own group'
        assert (r.weight[r.index<0]==0).all()

def _spied(tmp_path, dls, groups=None, epochs=3, bank=None, **kw):
    spy = Spy(who, torch.arange(len(X)), groups)
    learn = learner(tmp_path, memory('add', bank=bank, **kw), dls=dls)
    quietly(learn, 'fit', epochs, 1e-2, cbs=spy)
    assert spy.found>100 and spy.held>50     # it was there to be found
    f,_,y,i,g,_ = learn.memory.bank.rows()
    i,y = i[i>=0],y[i>=0]
    assert len(i)==len(set(i.tolist())) or type(learn.memory.bank) is ClassBank
    assert torch.equal(y, Y[i])
    return learn,spy

@pytest.mark.parametrize('kw', [dict(), dict(shuffle=False), dict(drop_last=True), dict(bs=7), dict(cls=BalancedDL)],
                         ids=str)
def test_never_finds_itself(tmp_path, kw): _spied(tmp_path, digit_dls(**kw))

def test_never_finds_itself_in_a_class_bank(tmp_path): _spied(tmp_path, digit_dls(), bank=ClassBank(10, capacity=16))

@pytest.mark.parametrize('policy', ['rarity','reservoir','hard'])
def test_never_finds_itself_whatever_the_policy(tmp_path, policy):
    _spied(tmp_path, digit_dls(), bank=SlotBank(60, policy=policy, momentum=.5))

def test_never_finds_its_group(tmp_path):
    learn,_ = _spied(tmp_path, digit_dls(), groups=torch.arange(len(X))//20, group=lambda o: int(o)//20)
    _,_,_,i,g,_ = learn.memory.bank.rows()
    assert len(set(g.tolist()))==-(-N//20) and (g>=0).all()
    assert len({(int(a)//20,int(b)) for a,b in zip(i,g)})==-(-N//20)

class Images:
    "A data set of single items, in the way of fastai's own"
    def __init__(self, items, fail=None): self.items = items
    def __len__(self): return len(self.items)
    def __getitem__(self, i): return X[int(self.items[i])].float()/255,Y[int(self.items[i])]

class WDL(WeightedDL): pass

@pytest.mark.parametrize('workers', [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize('weighted', [False,True])
def test_item_loaders(tmp_path, workers, weighted):
    "fastai's loaders that fetch items one by one, with workers, with weights: the same item several times in a batch"
    ds = Images(torch.arange(N).tolist())
    kw = dict(bs=32, num_workers=workers, shuffle=True)
    wgts = np.r_[np.ones(N-8), np.full(8, 12.)]
    trn = WDL(ds, wgts=wgts, **kw) if weighted else TfmdDL(ds, **kw)
    dls = DataLoaders(trn, TfmdDL(Images(list(range(1000,1020))), bs=32), device='cpu')
    ids = torch.full((len(X),), -9)
    ids[:N] = item_ids(trn)
    spy = Spy(who, ids)
    learn = Learner(dls, net(), loss_func=CrossEntropyLossFlat(), cbs=memory('add'), path=tmp_path)
    assert len(set(ids[:N].tolist()))==N
    twice = []
    class Note(Callback):
        run_valid = False
        def after_pred(self): twice.append(len(set(who(self.xb[0])))<len(self.xb[0]))
    quietly(learn, 'fit', 2 if workers else 3, 1e-2, cbs=[spy,Note()])
    assert spy.found>100 and spy.held>50 and any(twice)==weighted
    bank = learn.memory.bank
    at = {int(v):i for i,v in enumerate(ids[:N])}
    i = bank.items[:len(bank)].tolist()
    assert len(i)==len(set(i)) and bank.labels[:len(bank)].tolist()==[int(Y[at[o]]) for o in i]

@pytest.mark.parametrize('kind', ['bare','labelled'])
def test_torch_loader_warns_once_and_trains(tmp_path, kind):
    ds = torch.utils.data.TensorDataset(X[:N].float()/255, Y[:N])
    dl = torch.utils.data.DataLoader(ds, batch_size=32, shuffle=True)
    dls = DataLoaders(dl, torch.utils.data.DataLoader(ds, batch_size=32))
    learn = Learner(dls, net(), loss_func=CrossEntropyLossFlat(), metrics=accuracy,
                    cbs=memory('vote' if kind=='labelled' else 'add'), path=tmp_path)
    with warnings.catch_warnings(record=True) as got:
        warnings.simplefilter('always')
        quietly(learn, 'fit', 2, 1e-2)
        quietly(learn, 'fit', 1, 1e-2)
    said = [str(o.message) for o in got if 'memory' in str(o.message)]
    assert len(said)==1 and 'items' in said[0]
    bank = learn.memory.bank
    assert len(bank)==2*N and (bank.items==-1).all() and int(bank.seen)==3*N

def test_iterable_set_warns_and_trains(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): return iter([(X[i].float()/255, Y[i]) for i in range(64)])
        def __len__(self): return 64
    dls = DataLoaders(DataLoader(Stream(), bs=32), DataLoader(Stream(), bs=32), device='cpu')
    learn = Learner(dls, net(), loss_func=CrossEntropyLossFlat(), cbs=memory(), path=tmp_path)
    with pytest.warns(UserWarning, match='items'): quietly(learn, 'fit', 1, 1e-2)
    assert len(learn.memory.bank)==64

def test_items_keep_their_ids_in_another_phase(tmp_path):
    "Two data sets with other subsets: an item that is in both has one row"
    a,b = digit_dls(n=60),digit_dls(n=60, first=30)
    truth = Truth()
    learn = learner(tmp_path, [memory(),truth], dls=a)
    quietly(learn, 'fit', 1, 1e-2)
    learn.dls = b
    spy = Spy(who, torch.arange(len(X)))
    quietly(learn, 'fit', 1, 1e-2, cbs=spy)
    check(learn, truth)
    assert len(learn.memory.bank)==90 and spy.held>=30

# images from files, and fastai's own learners of them
@pytest.fixture(scope='session')
def tiles(tmp_path_factory):
    "Tiles of scikit-learn's two photos as PNG files, with a table: label, patient (a row of tiles) and which part"
    from PIL import Image
    out,rows = tmp_path_factory.mktemp('tiles'),[]
    for name,im in zip(('china','flower'), load_sample_images().images):
        for n in range(24):
            i,j = divmod(n, 8)
            f = out/name/f'{n:02}.png'
            f.parent.mkdir(exist_ok=True)
            Image.fromarray(im[120*i:120*i+48, 72*j:72*j+48]).save(f)
            rows.append(dict(file=str(f), label=name, tags=f'{name} {"top" if i==0 else "low"}', patient=f'{name}{i}',
                             valid=j>5))
    return pd.DataFrame(rows).sample(frac=1, random_state=0, ignore_index=True)

def tile_dls(tiles, multi=False, batch_tfms=None, bs=8):
    from fastai.vision.all import ColSplitter, MultiCategoryBlock
    block = DataBlock((ImageBlock, MultiCategoryBlock if multi else CategoryBlock), get_x=ColReader('file'),
                      get_y=ColReader('tags', label_delim=' ') if multi else ColReader('label'),
                      splitter=ColSplitter('valid'), batch_tfms=batch_tfms)
    set_seed(0)                              # the loaders' orders
    return block.dataloaders(tiles, bs=bs, num_workers=0)

def vlearner(dls, path, **kw):
    set_seed(0)
    return vision_learner(dls, resnet18, pretrained=False, normalize=False, path=path, **kw)

def _content(dl):
    "Finds the position of an image of a loader by its pixels"
    ks = {}
    for b in dl.new(shuffle=False, drop_last=False):
        ks.update({x.numpy().tobytes():len(ks)+i for i,x in enumerate(b[0].as_subclass(torch.Tensor))})
    return ks,lambda xb: [ks[x.numpy().tobytes()] for x in xb.detach().as_subclass(torch.Tensor).contiguous()]

@pytest.mark.nightly
@pytest.mark.parametrize('multi', [False, True])
def test_vision_learner(tmp_path, tiles, multi):
    "A data frame with patients: fine_tune, group masks, predict, show_results, export"
    import matplotlib.pyplot as plt
    dls = tile_dls(tiles, multi, bs=6)
    ks,whose = _content(dls.train)
    df,ids = dls.train.items,item_ids(dls.train)
    assert len(ks)==len(df)==36 and len(set(ids.tolist()))==36
    spy = Spy(whose, ids, torch.tensor(pd.factorize(df.patient)[0]))
    learn = vlearner(dls, tmp_path, metrics=accuracy_multi if multi else accuracy,
                     cbs=MemoryCallback(SlotBank(64, policy='fifo'), k=3, group='patient'))
    assert learn.model[1][1].memory is learn.memory.head
    quietly(learn, 'fit', 1, 1e-3, cbs=spy)
    quietly(learn, 'fine_tune', 1, 1e-3, cbs=spy)
    bank = learn.memory.bank
    assert spy.found>50 and spy.held>50 and bank.dim==1024 and len(bank)==36
    f,_,y,i,g,_ = bank.rows()
    at = [ids.tolist().index(o) for o in i.tolist()]
    want = [dls.train_ds[o][1] for o in at]
    assert torch.equal(y, torch.stack([o.as_subclass(torch.Tensor) for o in want]).to(y.dtype))
    assert len(set(g.tolist()))==df.patient.nunique()==6
    assert len({(df.patient.iloc[a],int(b)) for a,b in zip(at, g)})==6
    was = snap(learn.model)
    p,_ = quietly(learn, 'get_preds')
    with learn.no_bar():
        got = learn.predict(dls.valid.items.iloc[0])
        learn.show_results(max_n=2)
    plt.close('all')
    torch.testing.assert_close(got[2], p[0], rtol=1e-4, atol=1e-5)
    with learn.no_bar(): learn.lr_find(num_it=7, show_plot=False, suggest_funcs=None)
    assert same(was, snap(learn.model))
    learn.export('v.pkl')
    new = load_learner(tmp_path/'v.pkl')
    q = quietly(new, 'get_preds', dl=new.dls.test_dl(dls.valid.items))[0]
    assert torch.equal(p, q)

@pytest.mark.slow
def test_rekey_without_augmentation(tmp_path, tiles):
    dls = tile_dls(tiles, batch_tfms=aug_transforms(max_rotate=30., p_affine=1., p_lighting=1.))
    learn = vlearner(dls, tmp_path, cbs=MemoryCallback(SlotBank(64, policy='fifo')))
    quietly(learn, 'fit', 1, 1e-3)
    bank,ids = learn.memory.bank,item_ids(dls.train)
    was = bank.features.clone()
    n = len(bank)                            # fastai drops the last batch that is not full
    assert learn.memory.rekey()==n==32 and not torch.allclose(bank.features, was)
    xb = torch.cat([b[0].as_subclass(torch.Tensor) for b in dls.test_dl(dls.train.items, num_workers=0)])
    learn.model.eval()
    with torch.no_grad(): want = learn.model[1][0](learn.model[0](xb)).flatten(1)
    at = [ids.tolist().index(o) for o in bank.items[:n].tolist()]
    torch.testing.assert_close(bank.features[:n], want[at], rtol=1e-4, atol=1e-5)
    again = bank.features.clone()
    learn.memory.rekey()
    assert torch.equal(bank.features, again)

def test_freeze_is_that_of_vision_learner(tmp_path, tiles):
    dls = tile_dls(tiles)
    a,b = vlearner(dls, tmp_path),vlearner(dls, tmp_path, cbs=MemoryCallback(SlotBank(64)))
    for f in (noop,lambda o: o.unfreeze(),lambda o: o.freeze_to(-1)):
        for o in (a,b):
            f(o)
            o.create_opt()
        shape = [[[(tuple(p.shape),p.requires_grad) for p in g] for g in o.opt.param_lists] for o in (a,b)]
        assert shape[0]==shape[1] and len(shape[0])>1

def test_rows_of_a_table_keep_their_ids_in_another_subset(tiles):
    a,b = (tile_dls(t).train for t in (tiles, tiles.iloc[10:]))
    A,B = (dict(zip(o.items.file, item_ids(o).tolist())) for o in (a,b))
    both = set(A)&set(B)
    assert 20<len(both)<len(A) and all(A[o]==B[o] for o in both) and len(set(A.values()))==len(A)

def test_other_items_keep_their_ids_in_another_subset():
    a,b = (item_ids(Images([(f'{i}.png', i%3) for i in range(lo,lo+20)])) for lo in (0,10))
    assert a[10:].tolist()==b[:10].tolist() and len(set(a.tolist()+b.tolist()))==30

def test_numbers_mean_something_within_one_set_only():
    """Item 5 of a list of numbers may be anything in the next one: no id is shared, and the same set has the same
    ids again"""
    a,b,c = (item_ids(Images(list(range(lo,lo+20)))) for lo in (0,10,0))
    assert len(set(a.tolist()+b.tolist()))==40 and torch.equal(a, c)
    s = item_ids(torch.utils.data.Subset(Images(list(range(20))), [3,7]))
    assert torch.equal(s, a[[3,7]])

@pytest.mark.parametrize('unknown', [None, float('nan'), pd.NA, pd.NaT], ids=str)
def test_unknown_patients_are_not_one_patient(tmp_path, tiles, unknown):
    t = tiles.assign(patient=tiles.patient.astype(object).where(tiles.patient!='china0', unknown))
    dl = tile_dls(t).train
    g,none = group_ids(dl, 'patient'),torch.tensor(dl.items.patient.isna().to_numpy())
    assert none.any() and (g[none]==-1).all() and (g[~none]>=0).all()
    bank = SlotBank(4, policy='fifo')
    bank.write(torch.eye(3), item=torch.arange(3), group=torch.tensor([-1,-1,5]))
    assert (bank.read(torch.eye(3), 3, item=torch.arange(3),
                      group=torch.tensor([-1,-1,5])).index>=0).sum(1).tolist()==[2,2,2]

def _group(o): return int(o)//3

def test_ids_of_groups_never_change():
    "Banks on disk hold them"
    dl = TfmdDL(Images(['a.png', 'b.png', 'c.png']), bs=2)
    of = {'a.png':'patient 7', 'b.png':3, 'c.png':None}
    assert group_ids(dl, of.get).tolist()==[7207485368022423258, 7310252747919149801, -1]

# rekey
def test_rekey(tmp_path):
    dls = digit_dls(tfms=[RandomShift(2)])
    dls.train.after_batch.split_idx = 0
    learn = learner(tmp_path, memory(group=_group), dls=dls)
    quietly(learn, 'fit', 2, 1e-2)
    learn.model.train()
    bank = learn.memory.bank
    was,rec = snap(learn.model),[list(o) for o in learn.recorder.values]
    modes = {n:m.training for n,m in learn.model.named_modules()}
    def rnd():
        return torch.get_rng_state().tolist(),np.random.get_state()[1].tolist(),random.getstate(),[dl.rng.getstate()
            for dl in learn.dls]
    r = rnd()
    n = learn.memory.rekey()
    assert n==len(bank)==N and rnd()==r
    assert modes=={n:m.training for n,m in learn.model.named_modules()} and rec==[list(o)
        for o in learn.recorder.values]
    now = snap(learn.model)
    changed = {k for k in now if not torch.equal(now[k], was[k])}
    assert changed=={k for k in now if k.endswith(('bank.features','bank.norms'))}
    learn.model.eval()
    with torch.no_grad(): want = learn.model[:5](X[bank.items[:N]].float()/255)
    torch.testing.assert_close(bank.features[:N], want, rtol=1e-5, atol=1e-6)
    assert learn.memory.rekey()==N and torch.allclose(bank.features[:N], want, atol=1e-5)

def test_rekey_of_a_class_bank_and_of_a_bank_of_other_data(tmp_path):
    learn = learner(tmp_path, MemoryCallback(ClassBank(10, capacity=8)))
    quietly(learn, 'fit', 2, 1e-2)
    bank = learn.memory.bank
    n = learn.memory.rekey()
    f,_,y,i,_,valid = bank.rows()
    assert n==int(valid.sum())
    learn.model.eval()
    with torch.no_grad(): want = torch.nn.functional.normalize(learn.model[:5](X[i[valid]].float()/255))
    torch.testing.assert_close(f[valid], want, rtol=1e-5, atol=1e-6)
    learn.dls = digit_dls(first=300)
    was = bank.features.clone()
    assert learn.memory.rekey()==0 and torch.equal(was, bank.features)

# asking for it
def test_off_is_the_plain_network(tmp_path):
    learn = learner(tmp_path, memory('add'))
    quietly(learn, 'fit', 1, 1e-2)
    with_,without = _with_without(learn)
    plain = net()
    plain.load_state_dict(plain_part(snap(learn.model)))
    with torch.no_grad(): want = plain.eval()(X[1000:1000+NV].float()/255).softmax(1)
    assert torch.allclose(without, want, atol=1e-6) and not torch.allclose(with_, want, atol=1e-4)
    with pytest.raises(ZeroDivisionError):
        with learn.memory.off(): 1/0
    assert torch.equal(quietly(learn, 'get_preds')[0], with_)

def test_without_the_callback_the_model_remembers(tmp_path):
    learn = learner(tmp_path, memory('vote'))
    quietly(learn, 'fit', 1, 1e-2)
    p = quietly(learn, 'get_preds')[0]
    bare = learner(tmp_path, model=learn.model)
    assert not hasattr(bare, 'memory') and torch.equal(p, quietly(bare, 'get_preds')[0])
    was = snap(find_head(bare.model).bank)
    quietly(bare, 'fit', 1, 1e-2)                 # and trains on
    assert same(was, snap(find_head(bare.model).bank))
    bare.add_cb(MemoryCallback())
    quietly(bare, 'fit', 1, 1e-2)
    assert len(bare.memory.bank)==N and not same(was, snap(bare.memory.bank))

def test_a_memory_goes_where_its_callback_goes(tmp_path):
    learn = learner(tmp_path, cb := memory('vote'))
    quietly(learn, 'fit', 1, 1e-2)
    p,head = quietly(learn, 'get_preds')[0],cb.head
    learn.remove_cb(cb)
    assert find_head(learn.model) is None and not hasattr(learn, 'memory') and cb.head is head
    q = quietly(learn, 'get_preds')[0]
    learn.add_cb(cb)
    assert find_head(learn.model) is head is learn.memory.head and torch.equal(p,
        quietly(learn, 'get_preds')[0]) and not torch.equal(p, q)
    with learn.removed_cbs(cb): assert torch.equal(q, quietly(learn, 'get_preds')[0])
    assert torch.equal(p, quietly(learn, 'get_preds')[0])
    other,cb = learner(tmp_path),memory('vote')
    quietly(other, 'fit', 1, 1e-2, cbs=cb)        # for one fit
    assert find_head(other.model) is None and len(cb.bank)==N and not any(m._forward_hooks or m._forward_pre_hooks
        for m in other.model.modules())

def test_detach_gives_the_network_back(tmp_path):
    learn = learner(tmp_path, memory('vote'))
    quietly(learn, 'fit', 1, 1e-2)
    with learn.memory.off(): p = quietly(learn, 'get_preds')[0]
    head = learn.memory.detach()
    assert not hasattr(learn, 'memory') and find_head(learn.model) is None and isinstance(head, VoteHead)
    assert torch.equal(p, quietly(learn, 'get_preds')[0])
    assert snap(learn.model).keys()==net().state_dict().keys()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in learn.model.modules())
    quietly(learn, 'fit', 1, 1e-2)

@pytest.mark.parametrize('ds_idx', [0,1])
def test_recall(tmp_path, ds_idx):
    learn = learner(tmp_path, memory('vote'))
    quietly(learn, 'fit', 1, 1e-2)
    was = snap(learn.model)
    r = learn.recall(ds_idx=ds_idx, n=12, k=4)
    assert same(was, snap(learn.model))
    with learn.memory.own_rows(): whole = quietly(learn, 'get_preds', ds_idx=ds_idx)[0][:12]
    got = quietly(learn, 'get_preds', ds_idx=ds_idx)[0][:12]
    if ds_idx==0:       # a training item does not vote for itself
        assert (r.probs-whole).abs().max()>1e-4
        h,c = learn.memory.head,learn.memory.collect(plain_dl(learn.dls.train))
        want = mix_votes(c.logits[:12], h.votes(c.z[:12], c.item[:12]), h.weight).softmax(1)
        torch.testing.assert_close(r.probs, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(r.probs, got, rtol=1e-5, atol=1e-6)
    lo = 1000 if ds_idx else 0
    assert r.item.tolist()==list(range(lo,lo+12)) and torch.equal(r.row_label, Y[r.row_item]) and r.row_item.shape==(12,
        4)
    assert (r.row_item!=r.item[:,None]).all() and (r.similarity[:,:-1]>=r.similarity[:,1:]).all()

@pytest.mark.parametrize('head', ['add','vote',None])
@pytest.mark.parametrize('multi', [False,True])
def test_collect_is_what_fastai_predicts(tmp_path, head, multi):
    "With memory what `get_preds` says, without it the network alone; the features are those that enter the classifier"
    learn = learner(tmp_path, memory(head), digit_dls(multi=multi), metrics=[])
    quietly(learn, 'fit', 1, 1e-2)
    act,was,fs = learn.loss_func.activation,snap(learn.model),[]
    hook = learn.model[5].register_forward_pre_hook(lambda m,a: fs.append(a[0].clone()), prepend=True)
    for dl in learn.dls:
        if dl is learn.dls.train: dl = plain_dl(dl)
        a,b = collect(learn, dl, memory=True),collect(learn, dl)
        p,y = quietly(learn, 'get_preds', dl=dl)
        with learn.memory.off(): q,_ = quietly(learn, 'get_preds', dl=dl)
        torch.testing.assert_close(act(a.logits), p)
        torch.testing.assert_close(act(b.logits), q)
        assert torch.equal(b.y, y.as_subclass(torch.Tensor)) and torch.equal(b.item, item_ids(dl)) and b.group is None
        assert torch.equal(a.z, b.z) and (head is None)==torch.equal(p, q)
    hook.remove()
    assert torch.equal(b.z[-len(fs[-1]):], fs[-1]) and same(was, snap(learn.model))
    learn.model.train()
    collect(learn, dl)
    assert learn.model.training

def test_collect_without_a_memory(tmp_path):
    learn = learner(tmp_path)
    quietly(learn, 'fit', 1, 1e-2)
    h,r = learn.recorder.values,random.getstate()
    got = collect(learn, learn.dls.valid, memory=True)
    assert got.z is None and got.group is None and learn.recorder.values is h and random.getstate()==r
    torch.testing.assert_close(got.logits.softmax(1), quietly(learn, 'get_preds')[0])
    with pytest.raises(MemoError, match='empty'):
        collect(learn, learn.dls.valid.new(learn.dls.valid_ds.subset(slice(0))))

def test_collect_keeps_the_loaders_order(tmp_path):
    "A loader that shuffles: rows and ids go together"
    learn = learner(tmp_path, memory('add'))
    quietly(learn, 'fit', 1, 1e-2)
    dl = learn.dls.valid.new(shuffle=True)
    a,b = collect(learn, dl),collect(learn, learn.dls.valid)
    assert not torch.equal(a.item, b.item) and torch.equal(a.y, Y[a.item])
    torch.testing.assert_close(a.logits[a.item.argsort()], b.logits)

def test_the_model_is_not_searched_in_every_step(tmp_path, monkeypatch):
    "A search costs as much as the memory in a network of hundreds of modules"
    import memo.heads.attach, memo.training.batch_ids, memo.training.memory_callback
    calls = []
    def counted(m):
        calls.append(1)
        return memories(m)
    learn = learner(tmp_path, memory('add'))
    for o in (memo.heads.attach,memo.training.batch_ids,memo.training.memory_callback):
        monkeypatch.setattr(o, 'memories', counted)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-2)
    n,steps = len(calls),len(learn.dls.train)
    calls.clear()
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(5, 1e-2)
    assert n and len(calls)-n<=4*2 and steps>3   # once a pass over a loader
    other = VoteHead(SlotBank(20, policy='fifo'), 3)
    learn.memory.detach()
    attach(learn.model, other)
    learn.add_cb(MemoryCallback())
    assert learn.memory.head is other
    quietly(learn, 'fit', 1, 1e-2)
    assert len(other.bank)==20

def test_patients_do_not_answer_for_themselves(tmp_path):
    "group='patient': in training no row of the query's patient is read, by the groups of the data set"
    groups = torch.arange(N)//10
    dls = digit_dls()
    dls.train.dataset.groups = groups
    learn = learner(tmp_path, memory('add', group='patient'), dls)
    quietly(learn, 'fit', 2, 1e-2)
    c = learn.memory.collect(plain_dl(dls.train), own=True)
    assert torch.equal(c.group, groups)
    r = learn.memory.head.recall(c.z, c.item, c.group)
    _,_,_,_,g,_ = learn.memory.bank.rows()
    assert (g[r.index]!=c.group[:,None]).all() and torch.equal(learn.memory.bank.rows()[4],
        groups[learn.memory.bank.rows()[3]])

def test_off_lasts_until_its_end(tmp_path):
    learn = learner(tmp_path, memory('vote'))
    quietly(learn, 'fit', 1, 1e-2)
    with learn.memory.off():
        plain = quietly(learn, 'get_preds')[0]
        learn.recall(n=2)
        learn.memory.rekey()
        assert torch.equal(quietly(learn, 'get_preds')[0], plain)
    assert not torch.equal(quietly(learn, 'get_preds')[0], plain)
    for kw in (dict(k=5), dict(whiten=True), dict(k=[3,5], whiten=[False,True])):
        assert 0<learn.memory.fit_vote(**kw)['weight']<1

def test_mistakes_are_one_line(tmp_path):
    for f in (lambda: MemoryCallback(512), lambda: learner(tmp_path, MemoryCallback()), lambda: memory(head='ad'),
              lambda: memory(k=9999),
              lambda: learner(tmp_path, memory(at='5.x')), lambda: learner(tmp_path, memory(bank=ClassBank(3))),
              lambda: quietly(learner(tmp_path, memory(group='patient')), 'fit', 1),
              lambda: learner(tmp_path, memory('add')).memory.fit_vote()):
        with pytest.raises(MemoError) as e: f()
        assert '\n' not in str(e.value) and len(str(e.value))<250

def test_batches_of_one_and_a_bank_smaller_than_a_batch(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64,24), nn.ReLU(), nn.Linear(24,10))
    learn = learner(tmp_path, memory(bank=SlotBank(5, policy='fifo')), dls=digit_dls(n=20, bs=1), model=model,
                    splitter=params)
    quietly(learn, 'fit', 1, 1e-3)
    assert len(learn.memory.bank)==5
    learn = learner(tmp_path, memory(bank=SlotBank(5, policy='fifo')))
    quietly(learn, 'fit', 1, 1e-3)
    assert len(learn.memory.bank)==5 and torch.isfinite(quietly(learn, 'get_preds')[0]).all()

def test_nan_features_are_named_and_not_stored(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64,24), nn.ReLU(), nn.Linear(24,10))
    learn = learner(tmp_path, memory(None), dls=digit_dls(shuffle=False), model=model, splitter=params)
    class OneBad(Callback):
        run_valid,order = False,1
        def before_batch(self):
            if self.iter==2:
                x = self.xb[0].clone()
                x[3] = float('nan')
                self.learn.xb = (x,)
        def after_pred(self):
            if self.iter==2: self.learn.pred = self.pred.nan_to_num()
        def before_step(self):
            for p in self.model.parameters(): p.grad.nan_to_num_()
    with pytest.warns(UserWarning, match='item 67'): quietly(learn, 'fit', 1, 1e-3, cbs=OneBad())
    bank = learn.memory.bank
    assert len(bank)==N-1 and int(bank.refused)==1 and 67 not in bank.items.tolist() and torch.isfinite(
        bank.features).all()

def test_regression_is_let_be(tmp_path):
    "Targets that are no classes: rows without labels"
    dl = TfmdDL([(X[i].float()/255, torch.rand(())) for i in range(64)], bs=32)
    learn = Learner(DataLoaders(dl, dl, device='cpu'), nn.Sequential(net(1), nn.Flatten(0)), loss_func=nn.MSELoss(),
                    cbs=memory('add'), path=tmp_path)
    quietly(learn, 'fit', 1)
    assert len(learn.memory.bank)==64 and learn.memory.bank.labels is None

# real training
@pytest.mark.slow
@pytest.mark.parametrize('seeds', [1, pytest.param(3, marks=pytest.mark.nightly)])
def test_vote_helps_the_few(tmp_path, seeds):
    "Long-tailed digits: few-shot accuracy with the vote is above the network's own"
    got = []
    for seed in range(seeds):
        set_seed(seed)
        dls = digits_lt(n_max=100, ratio=50, seed=seed)
        learn = Learner(dls, small_cnn(1, 10), metrics=accuracy,
                        cbs=MemoryCallback(SlotBank(512, policy='fifo'), head='vote'), path=tmp_path)
        quietly(learn, 'fit_one_cycle', 12, 5e-3)
        learn.memory.rekey()
        learn.memory.fit_vote()
        p,y = quietly(learn, 'get_preds', dl=dls[2])
        with learn.memory.off(): q,_ = quietly(learn, 'get_preds', dl=dls[2])
        a,b = (longtail_scores(o, y.as_subclass(torch.Tensor), dls.counts, many=dls.many, few=dls.few) for o in (p,q))
        got.append((a['few']-b['few'], a['accuracy']-b['accuracy']))
    few,all_ = np.mean(got, 0)
    assert few>.05 and all_>.0, got
