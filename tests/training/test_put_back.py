"What stages set is as it was when they end, however they end"
import pytest
from fastai.vision.all import (Adam, Callback, CrossEntropyLossFlat, LabelSmoothingCrossEntropyFlat, torch,
                               trainable_params)
from contracts.made import StopAt
from test_stages import make, quiet, two_phase
from memo.core import MemoError
from memo.training.param_groups import adamw
from memo.training.stages import Stage, fit_stages

class Fails(Callback):
    def after_batch(self):
        if self.training and self.iter==2: raise ValueError('said')

def state(learn):
    hypers = None if learn.opt is None else [{k:o[k] for k in ('lr','wd')} for o in learn.opt.hypers]
    return (learn.loss_func, learn.dls, learn.splitter, learn.opt, hypers, learn.opt and learn.opt.frozen_idx,
            [p.requires_grad for p in learn.model.parameters()], learn.memory.bank.momentum, torch.get_num_threads())

ends = dict(whole=(None,()), stopped=(KeyboardInterrupt,lambda: StopAt(14)), failing=(ValueError,Fails))

@pytest.mark.parametrize('opt', [adamw,Adam])
@pytest.mark.parametrize('end', ends)
@pytest.mark.parametrize('frozen', [False,True])
def test_two_phases_leave_nothing_behind(end, opt, frozen):
    "Loss, loaders, groups of parameters, what is frozen, rates, momentum"
    learn = make(memory=True, opt_func=opt)
    with quiet(learn): learn.fit(1, 1e-3)
    (learn.freeze if frozen else learn.unfreeze)()
    was,(ex,cbs) = state(learn),ends[end]
    kw = dict(loss_func=(LabelSmoothingCrossEntropyFlat(),CrossEntropyLossFlat()), cbs=cbs and cbs())
    if ex is None: two_phase(learn, make(1).dls, **kw)
    else:
        with pytest.raises(ex): two_phase(learn, make(1).dls, **kw)
    assert state(learn)==was

@pytest.mark.parametrize('end', ends)
def test_the_splitter_and_its_optimizer(end):
    learn,seen = make(memory=True, splitter=trainable_params),[]
    class See(Callback):
        def before_batch(self): seen.append(len(self.opt.param_lists))
    ex,cbs = ends[end]
    with quiet(learn): learn.fit(1, 1e-3)
    was = state(learn)
    if ex is None: two_phase(learn, cbs=See())
    else:
        with pytest.raises(ex): two_phase(learn, cbs=[See(),cbs()])
    assert state(learn)==was and set(seen)=={2}
    with quiet(learn): learn.fit(1, 1e-3)        # and goes on

def test_a_recipe_that_is_refused_changes_nothing(tmp_path):
    learn = make(memory=True)
    learn.create_opt()
    two_phase(make(memory=True), checkpoint=tmp_path)
    was = state(learn)
    for kw in (dict(checkpoint=tmp_path), dict(checkpoint=tmp_path, resume=True, epochs=(9,9)), dict(monitor='no')):
        with pytest.raises(MemoError): two_phase(learn, make(1).dls, **kw)
        assert state(learn)==was

def test_a_stage_takes_over_what_those_before_it_said():
    "Loss, loaders, freezing and momentum, where it says none itself"
    learn,seen,dls,loss = make(memory=True),[],make(1).dls,LabelSmoothingCrossEntropyFlat()
    class See(Callback):
        def before_validate(self):
            seen.append((self.dls is dls, self.learn.loss_func is loss, self.learn.memory.bank.momentum,
                         learn.model[0].weight.requires_grad))
    with quiet(learn):
        fit_stages(learn, [Stage('a', 1, 1e-3), Stage('b', 1, 1e-3, True, dls, .5, loss), Stage('c', 1, 1e-3)],
                   cbs=See())
    assert seen==[(False,False,0.,True), (True,True,.5,False), (True,True,.5,False)]
