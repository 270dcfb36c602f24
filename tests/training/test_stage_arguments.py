"What a recipe is given is checked before anything is trained, in one line that says what is accepted"
import warnings
from collections import namedtuple
import pytest
from fastai.vision.all import (Callback, DataLoaders, L, np, torch)
from test_stages import make, quiet, two_phase
from memo.core import MemoError
from memo.training.stages import Stage, fit_stages, phase1_stages

SuggestedLRs = namedtuple('SuggestedLRs', ['valley'])    # as `lr_find` gives
nan,inf = float('nan'),float('inf')
pair = r'a pair \(phase 1, phase 2\)'

@pytest.mark.parametrize('kw,msg', [
    (dict(epochs=2), f'epochs must be {pair}, found 2'), (dict(epochs=(1,)), f'epochs must be {pair}'),
    (dict(epochs=(1.5,1)), r'epochs must be a whole number from 0, found 1\.5'),
    (dict(epochs=(-1,1)), 'epochs must be a whole number from 0, found -1'),
    (dict(epochs=(1,-1)), 'epochs must be'), (dict(epochs=(nan,1)), 'epochs must be'),
    (dict(epochs=(1,True)), 'epochs must be'), (dict(epochs=slice(1,2)), 'epochs must be'),
    (dict(epochs=('1',1)), "epochs must be .*found '1'"),
    (dict(freeze_epochs=-1), 'freeze_epochs must be a whole number from 0'),
    (dict(freeze_epochs=.5), 'freeze_epochs must be'), (dict(freeze_epochs=None), 'freeze_epochs must be'),
    (dict(lr=(slice(1e-5,1e-3),1e-3)), r'lr of phase 1 must be a number from 0, found slice\('),
    (dict(lr=((1e-5,1e-3),1e-3)), 'lr of phase 1 must be'), (dict(lr=(nan,1e-3)), 'lr of phase 1 must be'),
    (dict(lr=(-1e-3,1e-3)), 'lr of phase 1 must be'), (dict(lr=(inf,1e-3)), 'lr of phase 1 must be'),
    (dict(lr=('find',1e-3)), 'lr of phase 1 must be'), (dict(lr=slice(1e-5,1e-3)), f'lr must be {pair}'),
    (dict(lr=(1e-3,(1e-5,1e-4,1e-3))), 'lr of phase 2 must be a number or a pair'),
    (dict(lr=(1e-3,(1e-5,nan))), 'lr of phase 2 must be'), (dict(lr=(1e-3,slice(1e-5,-1e-3))), 'lr of phase 2 must'),
    (dict(lr=SuggestedLRs(1e-3)), f'lr must be {pair}'),
    (dict(patience=0), 'patience must be a whole number from 1'), (dict(patience=-1), 'patience must be'),
    (dict(patience=(2,.5)), 'patience must be'), (dict(patience=(2,)), f'patience must be one value or {pair}'),
    (dict(patience=2, monitor=None), "stage phase1.frozen: patience=2 needs a monitor, as 'valid_loss'"),
    (dict(patience=(None,2), monitor=('valid_loss',None)), 'stage phase2: patience=2 needs a monitor'),
    (dict(min_delta=-1), 'min_delta must be a number from 0, found -1'), (dict(min_delta=nan), 'min_delta must be'),
    (dict(min_delta=inf), 'min_delta must be'), (dict(min_delta='x'), 'min_delta must be'),
    (dict(momentum=(.9,)), f'momentum must be one value or {pair}'), (dict(momentum=(.9,1)), 'momentum must be'),
    (dict(momentum=nan), 'momentum must be'), (dict(monitor=('accuracy',)), f'monitor must be one value or {pair}'),
    (dict(loss_func='ce'), "loss_func must be a function, found 'ce'"),
    (dict(loss_func=(None,)), f'loss_func must be one value or {pair}'),
    (dict(wd=-1), 'wd must be a number from 0, found -1'), (dict(wd=nan), 'wd must be'), (dict(wd='x'), 'wd must be'),
    (dict(dls2=3), 'dls must be DataLoaders, found 3')], ids=lambda o: str(o)[:40])
def test_two_phases_say_what_is_accepted(kw, msg):
    learn = make(memory=True)
    was = {k:v.clone() for k,v in learn.model.state_dict().items()}
    with pytest.raises(MemoError, match=msg) as e: two_phase(learn, **kw)
    assert '\n' not in str(e.value) and len(str(e.value))<200
    assert learn.opt is None and all(torch.equal(v, was[k]) for k,v in learn.model.state_dict().items())

def test_a_loader_alone_is_not_loaders():
    learn = make()
    with pytest.raises(MemoError, match='dls must be DataLoaders'), quiet(learn): learn.fit_two_phase(learn.dls.train)

@pytest.mark.parametrize('kw', [dict(epochs=[1,1]), dict(epochs=L(1,1)), dict(epochs=(np.int64(1),torch.tensor(1))),
    dict(lr=[1e-2,1e-3]), dict(lr=(1e-2,slice(1e-4,1e-3))), dict(lr=(np.float32(1e-2),slice(1e-3))), dict(lr=(0,0)),
    dict(lr=(1e-2,[1e-4,1e-3])), dict(momentum=None), dict(momentum=(0,.5)), dict(patience=(3,None)), dict(wd=0),
    dict(min_delta=0), dict(freeze_epochs=0), dict(monitor=(None,'accuracy')), dict(epochs=(0,1), freeze_epochs=0)],
    ids=str)
def test_what_is_accepted_trains(kw):
    assert len(two_phase(make(memory=True), **{**dict(epochs=(1,1), freeze_epochs=0), **kw}))==sum(map(int,
        kw.get('epochs', (1,1))))

@pytest.mark.parametrize('kw,msg', [
    (dict(epochs=-1), 'epochs must be'), (dict(epochs=2.), 'epochs must be'), (dict(lr='x'), 'stage a: lr must be'),
    (dict(lr=slice(1e-5,1e-4,1e-3)), 'stage a: lr must be'), (dict(lr=[]), 'stage a: lr must be'),
    (dict(lr=[1e-3,nan]), 'stage a: lr must be'), (dict(lr=slice(1e-3,None)), 'stage a: lr must be'),
    (dict(patience=0), 'patience must be'), (dict(freeze='yes'), 'freeze must be'), (dict(kw=3), 'kw must be'),
    (dict(monitor=3), 'monitor must be'), (dict(lrr=1), 'lrr: Stage does not read it; did you mean lr')],
    ids=lambda o: str(o)[:30])
def test_a_stage_says_what_is_accepted(kw, msg):
    with pytest.raises(MemoError, match=msg): Stage(**{**dict(name='a', epochs=1), **kw})

def test_what_a_way_of_fitting_of_ones_own_is_given_is_its_own_affair():
    got,learn = [],make()
    def fit(learn, stage, cbs, start_epoch): got.append(stage.lr)
    with quiet(learn): fit_stages(learn, [Stage('a', 1, dict(body=1), fit=fit)])
    assert got==[dict(body=1)]

# patience needs a monitor

def no_better(learn):
    "Epochs that never get better: the metric falls, and the more the better"
    n = iter(range(1000))
    def accuracy_like(p, y): return 1-next(n)/1000
    learn.metrics = L(accuracy_like)
    return learn

def test_patience_is_for_both_phases():
    "By default phase 2 has no monitor, and stopped never; one pair says which"
    def stages(**kw): return two_phase(no_better(make()), epochs=(5,5), freeze_epochs=0, min_delta=9e8, **kw).stage
    assert stages(patience=1).tolist()==['phase1.all']*2+['phase2']*2
    assert stages(patience=(1,None)).tolist()==['phase1.all']*2+['phase2']*5
    assert stages(patience=(None,1)).tolist()==['phase1.all']*5+['phase2']*2
    assert stages(patience=1, monitor='highest accuracy_like').tolist()==['phase1.all']*2+['phase2']*2

def test_phase_2_with_patience_ends_with_its_best_epoch():
    seen,learn = [],no_better(make())
    class See(Callback):
        order = 60
        def after_validate(self): seen.append({k:v.clone() for k,v in self.model.state_dict().items()})
    two_phase(learn, epochs=(0,4), freeze_epochs=0, monitor='highest accuracy_like', patience=2, cbs=See())
    now = learn.model.state_dict()
    assert len(seen)==3 and all(torch.equal(v, now[k]) for k,v in seen[0].items())

@pytest.mark.parametrize('stage', [Stage('a', 1, 1e-2, patience=2), *phase1_stages(1, 0, 1e-2, patience=3)])
def test_patience_without_a_monitor_is_refused(stage):
    learn = make()
    with pytest.raises(MemoError, match=f'stage {stage.name}: patience=. needs a monitor'), quiet(learn):
        fit_stages(learn, [stage])

def test_patience_without_a_validation_set_says_that_it_stops_nothing():
    learn = make()
    learn.dls = DataLoaders(learn.dls.train, learn.dls[1].new([]), device='cpu')
    with pytest.warns(UserWarning, match='no validation set, so patience=1 stops nothing'):
        assert len(two_phase(learn, patience=(1,None)))==5
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        two_phase(learn)

def test_the_training_loss_needs_no_validation_set():
    learn = make()
    learn.dls = DataLoaders(learn.dls.train, learn.dls[1].new([]), device='cpu')
    with quiet(learn): h = fit_stages(learn, [Stage('a', 6, 0., monitor='train_loss', patience=1, min_delta=1e9)])
    assert len(h)==2

def test_a_recipe_leaves_the_callers_stages_as_they_are():
    stages,learn = [Stage('a', 1, 1e-2, monitor='accuracy')],make()
    other = make()
    other.dls = DataLoaders(other.dls.train, other.dls[1].new([]), device='cpu')
    for l in (other,learn):
        with quiet(l): fit_stages(l, stages)
    assert stages==[Stage('a', 1, 1e-2, monitor='accuracy')]
