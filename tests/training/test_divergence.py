"Trainings that diverge: where they stop, what they say, what the learner has afterwards"
import json, warnings
from pathlib import Path
import pytest
from fastai.vision.all import *
from sklearn.datasets import load_digits
from memo.core import Diverged, MemoError
from memo.banks.exchange import BankSaver
from memo.banks.slots import SlotBank
from memo.continual.stream_fit import *
from memo.data.streams import split_stream
from memo.data.tensors import TensorDL
from memo.training.divergence import *
from memo.training.memory_callback import MemoryCallback
from memo.training.save_bank import SaveBank
from memo.training.stages import *
for k in [k for k in globals() if k.startswith('test')]: del globals()[k]     # fastai's, which pytest would collect

d = load_digits()
X,Y = torch.from_numpy(d.images).float()[:,None]/16,torch.from_numpy(d.target).long()

def make(bad=None, bs=16, n=160, shuffle=True, **kw):
    "Digits, one of which holds NaN, and a small network"
    set_seed(0)
    x = X.clone()
    if bad is not None: x[bad] = float('nan')
    dls = DataLoaders(TensorDL(x[:n], Y[:n], bs=bs, shuffle=shuffle), TensorDL(X[1000:1100], Y[1000:1100], bs=64))
    return Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)),
                   loss_func=CrossEntropyLossFlat(), metrics=accuracy, **kw)

def quiet(learn): return ContextManagers([learn.no_bar(), learn.no_logging()])
def weights(learn): return [p.detach().clone() for p in learn.model.parameters()]
def finite(learn): return all(bool(p.isfinite().all()) for p in learn.model.parameters())

def end(learn, stages, **kw):
    "How a training diverges"
    with quiet(learn), pytest.raises(Diverged) as e: fit_stages(learn, stages, **kw)
    e = e.value
    assert len(str(e))<=300 and '\n' not in str(e) and finite(learn)
    return e

class Spoils(Callback):
    "Weights become infinite in a step"
    def __init__(self, epoch, batch, v=float('inf')): self.at,self.v = (epoch,batch),v
    def after_step(self):
        if (self.learn.epoch,self.learn.iter)==self.at: self.learn.model[1].weight.data[0,0] = self.v

class OnGpu(StopDiverged):
    "As on a GPU, where losses are looked at many at a time"
    def before_train(self):
        super().before_train()
        self.late = True

@pytest.fixture(params=['at once','late'])
def late(request, monkeypatch):
    if request.param=='late': monkeypatch.setattr('memo.training.stages.StopDiverged', OnGpu)
    return request.param=='late'

# where it stops

@pytest.mark.parametrize('bad', [0,77,159])
@pytest.mark.parametrize('memory', [False,True])
def test_a_nan_image_is_named_with_its_batch(late, bad, memory):
    learn = make(bad, shuffle=False)
    if memory: learn.add_cb(MemoryCallback(SlotBank(50), head='add'))
    e = end(learn, [Stage('one', 2, 1e-2)])
    assert e.facts==dict(stage='one', epoch=0, batch=bad//16, items=[f'item {bad}']) and e.kept is None and e.rows==[]
    assert f'stage one, epoch 1 of 2, batch {bad//16+1} of 10; item {bad} holds NaN' in str(e)
    if memory and len(learn.memory.bank):
        f,*_,items,_,_ = learn.memory.bank.rows()
        assert bool(f.isfinite().all())

def test_the_batch_is_the_first_one_whatever_the_order(late):
    class Seen(Callback):
        at = None
        def before_batch(self):
            if self.training and self.at is None and not bool(self.xb[0].isfinite().all()): self.at = self.iter
    learn,seen = make(77),Seen()
    e = end(learn, [Stage('one', 2, 1e-2)], cbs=seen)
    assert e.facts['batch']==seen.at and e.facts['items']==['item 77']

@pytest.mark.parametrize('batch,said', [(4,'the loss is not finite'),
                                        (9,'weights are not finite behind the last step (1')])
@pytest.mark.parametrize('monitor', [None,'valid_loss'])
@pytest.mark.parametrize('folder', [False,True])
def test_the_best_epoch_is_kept(late, tmp_path, batch, said, monitor, folder):
    "Also where it is the last step that spoils the weights"
    learn = make()
    was = []
    class Keeps(Callback):
        order = 96
        def after_epoch(self): was.append(weights(self.learn))
    e = end(learn, [Stage('one', 4, 1e-2, monitor=monitor)], cbs=[Spoils(2, batch), Keeps()],
            checkpoint=tmp_path if folder else None)
    assert said in str(e) and e.facts['epoch']==2 and e.facts['batch']==min(batch+1, 9) and len(e.rows)==2
    vs = [r['valid_loss'] for r in e.rows]
    best = 1 if monitor is None else vs.index(min(vs))
    assert e.kept==dict(stage='one', epoch=best)
    for p,q in zip(weights(learn), was[best]): assert torch.equal(p, q)

def test_the_best_epoch_of_an_earlier_phase_is_kept(late):
    learn = make()
    st = [Stage('a', 2, 1e-2, monitor='lowest valid_loss'), Stage('b', 2, 1e-2, monitor='valid_loss')]
    class Then(Callback):
        "Two epochs of ten batches are behind it"
        n = 0
        def before_batch(self):
            if self.training: self.n += 1
            if self.n==25: self.learn.xb = (self.xb[0]*float('nan'),)
    e = end(learn, st, cbs=Then())
    assert e.facts['stage']=='b' and e.facts['epoch']==0 and e.kept['stage']=='a'

def test_weights_may_hold_anything_where_they_are_not_trained():
    learn = make()
    learn.model.mask = nn.Parameter(torch.tensor([float('-inf')]), requires_grad=False)
    with quiet(learn): assert len(fit_stages(learn, [Stage('one', 2, 1e-2)]))==2

def test_the_learner_can_be_trained_afterwards(late):
    for opt in (Adam, partial(OptimWrapper, opt=torch.optim.AdamW)):
        learn = make(opt_func=opt)
        end(learn, [Stage('one', 2, 1e-2)], cbs=Spoils(1, 3))
        with quiet(learn): h = fit_stages(learn, [Stage('one', 2, 1e-2)])
        assert h.train_loss.notna().all() and finite(learn) and not learn.cbs.map(type).count(StopDiverged)

@pytest.mark.parametrize('lr', [float('inf'), float('nan'), -1.])
def test_rates_that_are_none_are_refused_before(lr):
    with pytest.raises(MemoError, match='lr must be'): Stage('one', 1, lr)

def test_a_weight_decay_that_is_too_large():
    e = end(make(), [Stage('one', 2, 1e-2, kw=dict(wd=1e308))])
    assert e.facts['batch']==1 and 'a lower rate may help' in str(e) and str(e).count('item ')==3

@pytest.mark.parametrize('opt', [SGD,Adam])
def test_a_rate_that_is_too_large(opt):
    e = end(make(opt_func=opt), [Stage('one', 3, 1e30, fit='fit')])
    assert e.facts['epoch']==0

def test_targets_that_hold_nan(late):
    x,y = torch.randn(64,4),torch.randn(64,1)
    y[40] = float('nan')
    dls = DataLoaders(TensorDL(x, y, bs=8), TensorDL(x, torch.zeros(64,1), bs=8))
    learn = Learner(dls, nn.Linear(4,1), loss_func=MSELossFlat())
    assert end(learn, [Stage('one', 1, 1e-3)]).facts['items']==['item 40']

# names

odd_names = ['a b.png', 'ü<b>$x$.png', 'two\nlines.png', 'n'*200+'.png', b'\xff.png'.decode(errors='surrogateescape')]

@pytest.mark.parametrize('name', odd_names)
def test_files_are_named(tmp_path, late, name):
    "What makes the NaN may be a transform: then the rows of the batch say whose it is, where they are still there"
    files = [tmp_path/f'{i}.png' for i in range(20)]
    files[13] = tmp_path/name
    for i,p in enumerate(files): Image.fromarray((X[i,0]*255).byte().numpy()).save(p)
    def load(p): return torch.from_numpy(np.array(Image.open(p))).float()[None]*(float('nan') if p==files[13] else 1.)
    dsets = Datasets(files, [[load], [lambda p: 1]], splits=[range(16), range(16,20)])
    learn = Learner(dsets.dataloaders(bs=4, device='cpu'), nn.Sequential(nn.Flatten(), nn.Linear(64, 2)),
                    loss_func=CrossEntropyLossFlat())
    e = end(learn, [Stage('one', 1, 1e-3)])
    said, = e.facts['items']
    ends = ''.join(c if c.isprintable() else '?' for c in ' '.join(name.split()))[-5:]
    assert said.isprintable() and len(said)<=45 and said[-5:]==ends

def test_a_batch_has_three_names_at_most(late):
    e = end(make(), [Stage('one', 2, 1e-2)], cbs=Spoils(0, 2))
    assert len(e.facts['items'])==3 and 'and 13 more; a lower rate may help' in str(e)

def test_rows_of_a_batch_say_it_where_items_do_not():
    class Tfm(Callback):
        "What a transform of the loader would do"
        def before_batch(self):
            if not self.training: return
            x = self.xb[0].as_subclass(Tensor).clone()
            x[self.yb[0].as_subclass(Tensor)==3] = float('nan')
            self.learn.xb = (x,)
    e = end(make(shuffle=False, bs=4), [Stage('one', 1, 1e-3)], cbs=Tfm())
    assert e.facts['items']==['item 3']

# callbacks, processes

def test_gradients_that_are_accumulated(late):
    e = end(make(77, shuffle=False), [Stage('one', 2, 1e-2)], cbs=GradientAccumulation(64))
    assert e.facts['batch']==4

class Scaler(Callback):
    "As mixed precision has it on a GPU: steps of losses that are not finite are left out"
    def before_fit(self): self.learn.scaler = SimpleNamespace(is_enabled=lambda: True)
    def before_backward(self):
        if not bool(self.learn.loss.isfinite()): raise CancelBackwardException
    def before_step(self):
        if not bool(self.learn.loss.isfinite()): raise CancelStepException
    def after_fit(self): self.learn.scaler = None

def test_a_scaler_leaves_single_steps_out():
    learn = make(77, shuffle=False)
    with quiet(learn), pytest.warns(UserWarning, match='batch 5 of 10; item 77 holds.*leaves its step out') as w:
        h = fit_stages(learn, [Stage('one', 3, 1e-2)], cbs=Scaler())
    assert len(h)==3 and finite(learn) and sum('leaves its step out' in str(o.message) for o in w)==1

def test_a_scaler_does_not_go_on_for_ever():
    class Dark(Callback):
        "From the sixth batch on nothing can be read"
        def before_batch(self):
            if self.training and self.learn.train_iter>=5: self.learn.xb = (self.xb[0]*float('nan'),)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        e = end(make(), [Stage('one', 9, 1e-2)], cbs=[Scaler(), Dark()])
        assert e.facts['batch']==5 and e.facts['epoch']==0 and 'epoch 1 of 9' in str(e)
        # weights are looked at whatever the losses are
        assert 'weights' in str(end(make(), [Stage('one', 9, 1e-2)], cbs=[Scaler(), Spoils(0, 4)]))

def test_inside_another_fit():
    "A fit inside is none of the training's own, but a training of stages is"
    class Inside(Callback):
        order,done,said = 200,False,None
        def after_epoch(self):
            if self.done or hasattr(self.learn, 'gather_preds'): return
            self.done = True
            other = make(5)
            with quiet(other): other.fit(1)
            try: fit_stages(other, [Stage('in', 1, 1e-2)])
            except Diverged as e: self.said = str(e)
            self.learn.get_preds(dl=self.learn.dls.valid)
    learn,cb = make(),Inside()
    with quiet(learn): h = fit_stages(learn, [Stage('one', 3, 1e-2)], cbs=cb)
    assert len(h)==3 and 'stage in' in cb.said
    assert end(learn, [Stage('one', 3, 1e-2)], cbs=[Inside(), Spoils(1, 3)]).facts['epoch']==1

def test_a_callback_of_any_fit():
    learn = make(77, shuffle=False)
    with quiet(learn), pytest.raises(Diverged) as e: learn.fit(2, cbs=StopDiverged())
    assert 'epoch 1 of 2, batch 5 of 10; item 77' in str(e.value) and finite(learn)

def test_somebody_else_ends_the_fit(late):
    "fastai's own callback: it is said all the same"
    assert end(make(77, shuffle=False), [Stage('one', 2, 1e-2)], cbs=TerminateOnNaNCallback()).facts['batch']==4

def test_a_resumed_training_diverges_there_again(tmp_path):
    a = end(make(), [Stage('one', 4, 1e-2)], cbs=Spoils(2, 4), checkpoint=tmp_path)
    b = end(make(), [Stage('one', 4, 1e-2)], cbs=Spoils(2, 4), checkpoint=tmp_path, resume=True)
    assert a.facts==b.facts and a.kept==b.kept and len(b.rows)==2

@pytest.mark.slow
def test_two_processes_stop_together(tmp_path, two_ranks, repo):
    r = two_ranks(repo/'tests/training/diverging_script.py', tmp_path, cwd=repo, timeout=120)
    assert r.returncode==0, r.stdout[-2000:]+r.stderr[-4000:]
    a,b = (json.loads((tmp_path/f'rank{i}.json').read_text()) for i in range(2))
    assert a==b and a['None']['said'] is None
    for bad in ('17','90'):
        assert a[bad]['facts']['items']==[f'item {bad}'] and a[bad]['finite']
        assert f'item {bad} holds NaN' in a[bad]['said']

# streams

def stream(lr=.1, bad=None, bs=10, **kw):
    learn = make(bad, bs, opt_func=SGD)
    s = split_stream(learn.dls, 5)
    with quiet(learn), pytest.raises(Diverged) as e: learn.fit_stream(s, 1, lr, **kw)
    return e.value,learn,s

@pytest.mark.parametrize('bs', [1,10])
@pytest.mark.parametrize('item', [7,140])
def test_a_nan_image_in_a_stream(item, bs, late):
    e,learn,s = stream(bad=item, bs=bs)
    i = next(i for i,p in enumerate(s.parts[0]) if item in p)
    assert e.facts['items']==[f'item {item}'] and e.facts['epoch']==i and len(learn.stream_result)==i
    assert f'experience {i} (' in str(e) and finite(learn)

def test_a_stream_that_explodes(late, tmp_path):
    e,learn,_ = stream(1e37)
    assert e.facts['epoch']==0 and 'not finite' in str(e) and 'a lower rate may help' in str(e) and finite(learn)
    e,learn,_ = stream(1e37, checkpoint=tmp_path)
    assert e.facts['epoch']==0 and finite(learn)

# memories

def test_rows_that_are_not_finite_are_refused_and_said_once():
    learn = make(77, opt_func=SGD, cbs=MemoryCallback(SlotBank(500, policy='fifo'), head='add'))
    class Skips(Callback):
        "The step is left out, so that there is a training to go on with"
        def before_backward(self):
            if not bool(self.learn.loss.isfinite()): raise CancelBackwardException
    learn.add_cb(Skips())
    with quiet(learn), warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        learn.fit(3, 1e-3)
    bank = learn.memory.bank
    told = [o for o in w if 'NaN or infinite' in str(o.message)]
    assert len(told)==1 and bank.stats()['refused']==3 and bool(bank.rows()[0].isfinite().all()) and len(bank)==159

def test_a_bank_that_cannot_be_saved_ends_no_training(tmp_path):
    (tmp_path/'file').write_text('')
    learn = make(cbs=MemoryCallback(SlotBank(50), head='vote'))
    learn.path = tmp_path
    with quiet(learn), warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        h = fit_stages(learn, [Stage('one', 4, 1e-2)], cbs=SaveBank(1, 'file/banks'))
    said = [str(o.message) for o in w if 'cannot write' in str(o.message)]
    assert len(h)==4 and len(said)==2 and 'the training goes on' in said[0] and said[1].startswith('4 of 4 files')

def test_a_saver_says_at_its_end_how_many_failed(tmp_path):
    bank = SlotBank(5)
    bank.write(torch.randn(9, 3))
    s = BankSaver(bank, tmp_path/'b')
    s.save(1)
    s.wait()
    (tmp_path/'b').rename(tmp_path/'c')
    (tmp_path/'b').write_text('')
    with pytest.warns(UserWarning, match='the training goes on'):
        for i in range(3): s.save(i)
        with pytest.raises(MemoError, match='3 of 3 files of the memory were not written: cannot write'): s.wait()
    s.wait()
