"A checkpoint goes on with the optimizer that it is of, and refuses any other, naming both"
from functools import partial
import pytest
from fastai.vision.all import (Adam, Lamb, Lookahead, OptimWrapper, RMSProp, SGD, params, ranger, torch)
from contracts.made import StopAt
from test_stages import make, same, same_model, two_phase
from memo.core import MemoError
from memo.training.checkpoint import load_plain, save_plain
from memo.training.param_groups import adamw

def wrap(cls, **kw): return partial(OptimWrapper, opt=cls, **kw)
def own_adam(ps, lr): return Adam(ps, lr)
class OwnAdamW(torch.optim.AdamW): "Somebody's own"

made = {o.__name__:o for o in (Adam,SGD,RMSProp,Lamb,ranger)}
made |= {k:wrap(getattr(torch.optim, k)) for k in ('AdamW','RMSprop')}
made |= dict(TorchSGD=wrap(torch.optim.SGD), TorchAdam=wrap(torch.optim.Adam), OwnAdamW=wrap(OwnAdamW), adamw=adamw)
made |= dict(L2=partial(Adam, decouple_wd=False), Slow=partial(Adam, sqr_mom=.5), Decay=partial(adamw, weight_decay=.5),
             Ahead=lambda ps, lr: Lookahead(SGD(ps, lr)), own_adam=own_adam)

def stopped(folder, opt, **kw):
    with pytest.raises(KeyboardInterrupt):
        two_phase(make(opt_func=made[opt], **kw), checkpoint=folder, cbs=StopAt(8))

@pytest.mark.parametrize('there,here', [('adamw','Adam'), ('Adam','adamw'), ('adamw','TorchSGD'), ('RMSprop','AdamW'),
    ('SGD','Adam'), ('Adam','SGD'), ('Adam','RMSProp'), ('Adam','Lamb'), ('Adam','L2'), ('AdamW','TorchAdam'),
    ('AdamW','OwnAdamW'), ('Adam','ranger'), ('ranger','Adam'), ('ranger','Ahead'), ('Adam','Slow'),
    ('Decay','adamw')])
def test_another_optimizer_is_refused(tmp_path, there, here):
    "Those that raised errors of torch and fastai, and those that went on to other numbers without a word"
    stopped(tmp_path, there)
    learn = make(opt_func=made[here])
    was = {k:v.clone() for k,v in learn.model.state_dict().items()}
    with pytest.raises(MemoError, match='of another optimizer: .* there, .* here; give it as it was') as e:
        two_phase(learn, checkpoint=tmp_path, resume=True)
    assert '\n' not in str(e.value)
    assert all(torch.equal(v, was[k]) for k,v in learn.model.state_dict().items())

def test_both_are_named(tmp_path):
    stopped(tmp_path, 'adamw')
    with pytest.raises(MemoError, match=r"torch.optim.adamw.AdamW there, fastai's weight_decay \+ sgd_step here"):
        two_phase(make(opt_func=SGD), checkpoint=tmp_path, resume=True)

@pytest.mark.parametrize('what,msg', [(dict(wd=.3), 'wd None there, 0.3 here'),
    (dict(moms=(.9,.8,.9)), r'moms .*0.95, 0.85, 0.95.* there, .*0.9, 0.8, 0.9.* here')])
def test_what_the_learner_gives_its_optimizer(tmp_path, what, msg):
    stopped(tmp_path, 'Adam')
    learn = make(opt_func=Adam)
    for k,v in what.items(): setattr(learn, k, v)
    with pytest.raises(MemoError, match=msg): two_phase(learn, checkpoint=tmp_path, resume=True)

@pytest.mark.parametrize('opt', ['Adam','adamw'])
@pytest.mark.parametrize('split,msg', [
    (lambda m: [params(m[:1]),params(m[1:])], r'groups of \[4, 2\] there, \[2, 4\] here'),
    (lambda m: [params(m[:1]),params(m[1:3]),params(m[3:])], r'groups of \[4, 2\] there, \[2, 2, 2\] here'),
    (lambda m: [params(m[1:]),params(m[:1])], r'groups of \[4, 2\] there, \[4, 2\] here \(others\)')],
    ids=['moved','three','turned'])
def test_other_groups_are_refused(tmp_path, opt, split, msg):
    stopped(tmp_path, opt)
    with pytest.raises(MemoError, match=msg):
        two_phase(make(opt_func=made[opt], splitter=split), checkpoint=tmp_path, resume=True)

@pytest.mark.parametrize('there,here', [('Adam','own_adam'), ('adamw','AdamW'), ('ranger','ranger'), ('Ahead','Ahead'),
                                        ('OwnAdamW','OwnAdamW'), ('Decay','Decay'), ('Lamb','Lamb')])
def test_the_same_optimizer_goes_on(tmp_path, there, here):
    "Under whatever name, and to the same numbers"
    whole = make(opt_func=made[there])
    h = two_phase(whole)
    stopped(tmp_path, there)
    learn = make(opt_func=made[here])
    same(h, two_phase(learn, checkpoint=tmp_path, resume=True))
    same_model(whole, learn)

def test_another_model_is_still_another_model(tmp_path):
    "Its groups differ too, which says less"
    stopped(tmp_path, 'Adam')
    learn = make(opt_func=Adam)
    learn.model.add_module('more', torch.nn.Linear(3,3))
    with pytest.raises(MemoError, match='of another model'): two_phase(learn, checkpoint=tmp_path, resume=True)

def test_a_checkpoint_that_does_not_say_goes_on(tmp_path):
    "Those of before"
    stopped(tmp_path, 'Adam')
    for p in tmp_path.glob('s*.pt'): save_plain({k:v for k,v in load_plain(p).items() if k!='optimizer'}, p)
    assert len(two_phase(make(opt_func=Adam), checkpoint=tmp_path, resume=True))==5
