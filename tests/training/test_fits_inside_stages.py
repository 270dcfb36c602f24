"""What a callback does in the middle of a recipe, fits that end early or by an error among it, leaves the recipe's
history, its best epoch, its checkpoints and its memory as they are"""
import pytest
from fastai.vision.all import Callback, CancelFitException, CancelTrainException, no_random
from contracts.made import StopAt
from test_stages import make, quiet, same, two_phase
from memo.training.stages import Stage, fit_stages

class Cancels(Callback):
    "Ends a fit, or its training, in the second batch"
    def __init__(self, ex): self.ex = ex
    def after_batch(self):
        if self.training and self.iter==1: raise self.ex('said')

def failing(learn):
    try: learn.fit(1, 1e-4, cbs=Cancels(ValueError))
    except ValueError: pass

def failing_prediction(learn):
    try: learn.get_preds(cbs=FailsInPrediction())
    except ValueError: pass

class FailsInPrediction(Callback):
    def after_pred(self): raise ValueError('said')

calls = dict(lr_find=lambda l: l.lr_find(num_it=3, show_plot=False), fit=lambda l: l.fit(1, 1e-4),
             cycle=lambda l: l.fit_one_cycle(1, 1e-4), stages=lambda l: fit_stages(l, [Stage('in', 1, 1e-4)]),
             cancelled=lambda l: l.fit(2, 1e-4, cbs=Cancels(CancelFitException)),
             cancelled_train=lambda l: l.fit(1, 1e-4, cbs=Cancels(CancelTrainException)), failing=failing,
             failing_prediction=failing_prediction, get_preds=lambda l: l.get_preds(ds_idx=0),
             validate=lambda l: l.validate(ds_idx=0))


class Inside(Callback):
    "Calls something once an epoch of the recipe, in the event it is told"
    def __init__(self, call, event, order=60):
        self.call,self.order,self.busy,self.n,self.went = calls[call],order,False,0,False
        setattr(self, event, self.look)
    def before_train(self): self.went = self.went or not self.busy
    def look(self):
        if self.busy or not self.went: return
        self.busy,self.went,self.n = True,False,self.n+1
        with self.learn.no_bar(), self.learn.no_logging(): self.call(self.learn)
        self.busy = False

whole = ['phase1.frozen','phase1.all','phase1.all','phase2','phase2'],[0,0,1,0,1]

@pytest.mark.parametrize('call', calls)
def test_a_recipe_goes_on(call):
    "A fit inside that was ended early left the history empty: no best epoch, no early stopping, no checkpoints"
    learn = make(memory=True)
    look = Inside(call, 'after_epoch')
    h = two_phase(learn, cbs=look)
    assert look.n==5 and (h.stage.tolist(),h.epoch.tolist())==whole
    assert h.train_loss.notna().all() and len(learn.memory.bank)==20 and learn.memory.bank.momentum==0.
    assert not [m for m in learn.metrics if m.name.startswith('memory')]

def some(learn): return learn.dls[1].new(list(learn.dls[1].dataset)[:8])

@pytest.mark.parametrize('order', [0,60,90])
@pytest.mark.parametrize('call', ['get_preds','validate','failing_prediction'])
def test_figures_are_the_epochs_own(monkeypatch, call, order):
    "Not those of the prediction, which is of other items here"
    def other(learn):
        with no_random():
            if call=='failing_prediction': failing_prediction(learn)
            else: getattr(learn, call)(dl=some(learn))
    monkeypatch.setitem(calls, call, other)
    h,got = two_phase(make()),two_phase(make(), cbs=Inside(call, 'after_epoch', order))
    assert got.valid_loss.tolist()==h.valid_loss.tolist() and got.accuracy.tolist()==h.accuracy.tolist()

@pytest.mark.parametrize('call', ['lr_find','cancelled','failing','stages'])
def test_early_stopping_and_checkpoints_go_on(tmp_path, call):
    look = Inside(call, 'after_epoch')
    h = two_phase(make(memory=True), epochs=(6,1), patience=(2,None), min_delta=1e9, cbs=look, checkpoint=tmp_path/'a')
    assert h.stage.tolist()==['phase1.frozen']+['phase1.all']*2+['phase2']
    with pytest.raises(KeyboardInterrupt):
        two_phase(make(memory=True), cbs=[Inside(call, 'after_epoch'),StopAt(19)], checkpoint=tmp_path/'b')
    assert any(p.name[:2]>'s0' for p in (tmp_path/'b').glob('s*.pt'))

def test_a_recipe_inside_a_fit():
    "The other way round: the stages' own fits are those that run below the outer one"
    got = []
    class Recipe(Callback):
        order = 60
        def after_epoch(self):
            if got or not self.learn.training is False: return
            got.append(None)
            with quiet(self.learn): got[0] = fit_stages(self.learn, [Stage('a', 2, 1e-3), Stage('b', 1, 1e-3)])
    learn = make(memory=True, cbs=Recipe())
    with quiet(learn): learn.fit(2, 1e-3)
    assert got[0].stage.tolist()==['a','a','b'] and got[0].notna().all().all()

def test_resumed_with_something_inside(tmp_path):
    "Epochs that are skipped are still skipped, and end with the same numbers"
    def run(folder, cbs=(), **kw):
        return two_phase(make(memory=True), cbs=[Inside('get_preds', 'after_epoch'),*cbs], checkpoint=folder, **kw)
    h = run(tmp_path/'a')
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'b', cbs=[StopAt(15)])
    same(h, run(tmp_path/'b', resume=True))
