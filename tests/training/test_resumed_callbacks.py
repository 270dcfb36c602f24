"Callbacks that count, memo's, fastai's and one's own, count on when a recipe is resumed"
from functools import partial
import time
import pytest
from fastai.vision.all import (Adam, Callback, CSVLogger, EarlyStoppingCallback, GradientAccumulation,
                               ReduceLROnPlateau, SaveModelCallback, np)
from contracts.made import StopAt
from test_stages import make, quiet, same as same_history, same_model, two_phase
from memo.banks import exchange
from memo.banks.base import Bank
from memo.banks.exchange import latest_bank
from memo.core import MemoError
from memo.training import checkpoint
from memo.training.param_groups import adamw
from memo.training.save_bank import SaveBank
from memo.training.stages import Stage, fit_stages

def run(path, every=1, stop=None, resume=False, where='fit'):
    "A recipe of five epochs that saves its bank; where it is stopped, as in a process of its own"
    save = SaveBank(every)
    learn = make(memory=True, cbs=save if where=='learner' else [])
    learn.path = path
    cbs = ([save] if where=='fit' else []) + ([StopAt(stop)] if stop else [])
    if stop:
        with pytest.raises(KeyboardInterrupt): two_phase(learn, checkpoint=path/'c', cbs=cbs)
    else: two_phase(learn, checkpoint=path/'c', cbs=cbs, resume=resume)
    return {p.stem:Bank.load(p) for p in sorted((path/'banks').glob('*.safetensors'))}

def same(a, b):
    assert [*a]==[*b]
    for k in a: assert a[k].stats()==b[k].stats() and a[k].features.equal(b[k].features), k

@pytest.mark.parametrize('where', ['fit','learner'])
@pytest.mark.parametrize('every,stop', [(1,8),(1,15),(2,15),(3,19)])
def test_banks_have_the_number_of_the_epoch_they_are_of(tmp_path, every, stop, where):
    "In the middle of a stage, and at its end; a resumed run wrote its third epoch over the first"
    whole = run(tmp_path/'a', every, where=where)
    run(tmp_path/'b', every, stop, where=where)
    same(whole, run(tmp_path/'b', every, resume=True, where=where))
    assert [*whole]==[f'bank_step_{i}' for i in range(1, 6) if i%every==0]

def test_stopped_twice(tmp_path):
    whole = run(tmp_path/'a')
    run(tmp_path/'b', stop=8)
    with pytest.raises(KeyboardInterrupt):
        learn = make(memory=True)
        learn.path = tmp_path/'b'
        two_phase(learn, checkpoint=tmp_path/'b/c', resume=True, cbs=[SaveBank(1),StopAt(8)])
    same(whole, run(tmp_path/'b', resume=True))
    assert latest_bank(tmp_path/'b/banks').stem=='bank_step_5'

def test_a_finished_run_saves_nothing_more(tmp_path):
    run(tmp_path)
    was = {p:p.stat().st_mtime_ns for p in (tmp_path/'banks').iterdir()}
    run(tmp_path, resume=True)
    assert was=={p:p.stat().st_mtime_ns for p in (tmp_path/'banks').iterdir()}

@pytest.mark.parametrize('where', ['fit','learner'])
def test_a_checkpoint_waits_for_the_banks_before_it(tmp_path, monkeypatch, where):
    "They are written in the background: killed in between, a run that goes on from the checkpoint never writes them"
    seen,write,save = [],exchange.write_json,checkpoint.save_plain
    def slow(path, what):
        time.sleep(.3)
        write(path, what)
    def look(what, path):
        save(what, path)
        if 'rows' in what: seen.append((len(what['rows']), len([*(tmp_path/'banks').glob('*.json')])))
    monkeypatch.setattr(exchange, 'write_json', slow)
    monkeypatch.setattr(checkpoint, 'save_plain', look)
    run(tmp_path, where=where)
    assert len(seen)>5 and all(a==b for a,b in seen), seen

def test_recipes_one_after_the_other_count_on(tmp_path):
    learn,save = make(memory=True),SaveBank(1)
    learn.path = tmp_path
    with quiet(learn):
        for i in range(2): fit_stages(learn, [Stage('a', 2, 1e-2)], checkpoint=tmp_path/f'c{i}', cbs=save)
    assert sorted(p.stem for p in (tmp_path/'banks').glob('*.safetensors'))==[f'bank_step_{i}' for i in range(1, 5)]

# fastai's

trackers = dict(best=SaveModelCallback, early=partial(EarlyStoppingCallback, patience=2),
                lasting=partial(EarlyStoppingCallback, patience=3, reset_on_fit=False),
                plateau=partial(ReduceLROnPlateau, patience=1, min_delta=.05),
                accuracy=partial(SaveModelCallback, monitor='accuracy', fname='acc'),
                uneven=partial(GradientAccumulation, 33), across=partial(GradientAccumulation, 100))

def beside(path, made, opt=adamw, folder='c', where='fit', **kw):
    "A recipe beside such a callback: one cycle, and at a constant rate, which alone keeps what a plateau makes of it"
    cb = made()
    learn = make(memory=True, opt_func=opt, cbs=cb if where=='learner' else [])
    learn.path = path
    stages = [Stage('a', 2, 1e-2, True), Stage('b', 7, 1e-2, False, fit='fit'), Stage('c', 1, 1e-3)]
    cbs = [*([cb] if where=='fit' else []), *kw.pop('more', [])]
    with quiet(learn): return learn,fit_stages(learn, stages, path/folder, cbs=cbs, **kw)

def killed(path, made, n, **kw):
    with pytest.raises(KeyboardInterrupt): beside(path, made, more=[StopAt(n)], **kw)

@pytest.mark.parametrize('opt', [adamw,pytest.param(Adam, marks=pytest.mark.nightly)])
@pytest.mark.parametrize('kind', trackers)
def test_what_a_callback_of_fastais_counts(tmp_path, kind, opt):
    "Each of them raised an IndexError in every resume within a stage, or went on to other numbers"
    for d in 'ab': (tmp_path/d).mkdir()
    a,h = beside(tmp_path/'a', trackers[kind], opt)
    killed(tmp_path/'b', trackers[kind], 9, opt=opt)
    killed(tmp_path/'b', trackers[kind], 12, opt=opt, resume=True, where='learner' if kind=='early' else 'fit')
    b,h2 = beside(tmp_path/'b', trackers[kind], opt, resume=True)
    same_history(h, h2), same_model(a, b)
    assert kind!='early' or len(h)<10

@pytest.mark.parametrize('there,here,msg', [
    ('early', None, 'beside it is EarlyStoppingCallback there, no such callback here'),
    (None, 'plateau', 'beside it is no such callback there, ReduceLROnPlateau here'),
    ('early', 'lasting', 'EarlyStoppingCallback has patience 2 there, 3 here'),
    ('best', 'accuracy', "SaveModelCallback has monitor 'valid_loss' there, 'accuracy' here"),
    ('uneven', 'across', 'GradientAccumulation has n_acc 33 there, 100 here')])
def test_other_callbacks_that_count_are_refused(tmp_path, there, here, msg):
    def made(k): return trackers[k] if k else lambda: StopAt(-1)
    killed(tmp_path, made(there), 9)
    with pytest.raises(MemoError, match=msg) as e: beside(tmp_path, made(here), resume=True)
    assert '\n' not in str(e.value) and len(str(e.value))<300

class StopBefore(StopAt):
    "Ctrl-C behind an epoch's row in the table and before its checkpoint"
    order = 70
    def after_batch(self): pass
    def after_epoch(self):
        if hasattr(self.learn, 'gather_preds'): return
        self.n -= 1
        if not self.n: raise KeyboardInterrupt

def logged(path, append, where, stop=None, resume=False):
    "The text of the file of fastai's logger beside a recipe, of one stage where each begins the file anew"
    cb = CSVLogger('log.csv', append)
    learn = make(cbs=cb if where=='learner' else [])
    learn.path,learn.recorder.add_time = path,False
    stages = [Stage('a', 2, 1e-2, True)]*append+[Stage('b', 4, 1e-2, False)]
    cbs = [cb]*(where=='fit')+([stop] if stop else [])
    with quiet(learn):
        if not stop: fit_stages(learn, stages, path/'c', cbs=cbs, resume=resume)
        else:
            with pytest.raises(KeyboardInterrupt): fit_stages(learn, stages, path/'c', cbs=cbs, resume=resume)
    return (path/'log.csv').read_text()

@pytest.mark.parametrize('where', ['fit','learner'])
@pytest.mark.parametrize('append', [True,False])
def test_the_file_of_a_logger_is_whole(tmp_path, append, where):
    "It began anew in each resume, or had an epoch twice; whatever stood there before, stays where it is appended to"
    for d in 'ab': (tmp_path/d).mkdir()
    for d in 'ab': (tmp_path/d/'log.csv').write_text('mine\n')
    whole = logged(tmp_path/'a', append, where)
    assert len(whole.splitlines())==(1+1+2+1+4 if append else 1+4)
    for i,stop in enumerate((StopBefore(1), StopAt(9), StopAt(4), StopBefore(2))):
        logged(tmp_path/'b', append, where, stop, resume=i>0)
    assert logged(tmp_path/'b', append, where, resume=True)==whole

class Mean(Callback):
    "One's own, that says what it counts"
    def __init__(self): self.sum,self.n,self.epochs = 0.,0,[]
    def after_batch(self):
        if self.training: self.sum,self.n = self.sum+self.loss.item(),self.n+1
    def before_epoch(self): self.epochs.append(self.epoch)
    def state_dict(self): return dict(sum=self.sum, n=self.n, epochs=self.epochs)
    def load_state_dict(self, d): vars(self).update(d)

def test_one_of_ones_own(tmp_path):
    "It has its state back, and sees no epoch that is skipped"
    for d in 'ab': (tmp_path/d).mkdir()
    a,b = Mean(),Mean()
    beside(tmp_path/'a', lambda: a)
    killed(tmp_path/'b', Mean, 20)
    beside(tmp_path/'b', lambda: b, resume=True)
    assert a.state_dict()==b.state_dict() and a.epochs==[0,1,*range(7),0]

def test_one_that_a_stages_own_function_adds(tmp_path):
    "Its fits are skipped, and it counts on"
    def fit(learn, stage, cbs, start_epoch):
        stop = EarlyStoppingCallback(patience=2, min_delta=.3)
        learn.fit(stage.epochs, 1e-2, cbs=[*cbs,stop], start_epoch=start_epoch)
    def run(folder, **kw):
        learn = make(memory=True)
        with quiet(learn): return learn,fit_stages(learn, [Stage('a', 8, fit=fit)], folder, **kw)
    a,h = run(tmp_path/'a')
    n = len(h)
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'b', cbs=StopAt(6*(n-1)+2))
    b,h2 = run(tmp_path/'b', resume=True)
    same_history(h, h2), same_model(a, b)
    assert 1<n<8
