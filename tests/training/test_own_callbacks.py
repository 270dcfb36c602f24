"Callbacks of one's own when a training is gone on with: what they know is kept, or going on is refused by its name"
import collections,copy,random,warnings
from functools import partial
import numpy as np
import pytest
from fastai.vision.all import (Callback, EarlyStoppingCallback, GradientAccumulation, GradientClip, MixUp, L, nn,
                               torch)
from hypothesis import given, settings, strategies as st
from contracts.made import StopAt
from test_stages import make, quiet, same, same_model
from memo.core import MemoError
from memo.training.callback_state import packed, unpacked
from memo.training.stages import Stage, fit_stages

stages = lambda: [Stage('a', 3, 1e-2, fit='fit'), Stage('b', 2, 1e-3)]
def run(folder, cb=None, where='fit', **kw):
    learn = make(cbs=cb if cb is not None and where=='learner' else [])
    cbs = ([cb] if cb is not None and where=='fit' else []) + kw.pop('more', [])
    with quiet(learn): return learn,fit_stages(learn, stages(), folder, cbs=cbs, **kw)
def killed(folder, cb, n, **kw):
    with pytest.raises(KeyboardInterrupt): run(folder, cb, more=[StopAt(n)], **kw)

class Noise(Callback):
    "Has generators of its own"
    def __init__(self, kind='numpy'):
        self.g = {'numpy':lambda: np.random.default_rng(3), 'python':lambda: random.Random(3),
                  'old':lambda: np.random.RandomState(3), 'torch':lambda: torch.Generator().manual_seed(3)}[kind]()
    def draw(self):
        if isinstance(self.g, torch.Generator): return float(torch.rand(1, generator=self.g))
        return float(self.g.random() if hasattr(self.g, 'random') else self.g.random_sample())
    def before_batch(self):
        if self.training: self.learn.xb = (self.x+.3*self.draw(),)

class Warm(Callback):
    "Steps grow with the batches that it has seen, by a list and a dict of its own"
    def __init__(self): self.seen,self.of = [],collections.Counter()
    def before_step(self):
        for p in self.model.parameters():
            if p.grad is not None: p.grad *= min(1, (1+len(self.seen)+self.of['b'])/40)
    def after_batch(self):
        if self.training:
            self.seen.append(float(self.loss.detach()))
            self.of['b'] += 1

class Average(Callback):
    "A moving average of the weights, to which the model is drawn"
    def __init__(self, early=True): self.early,self.ema = early,None
    def before_fit(self):
        if self.ema is None: self.ema = copy.deepcopy(self.model)
    def after_step(self):
        with torch.no_grad():
            for a,p in zip(self.ema.parameters(), self.model.parameters()):
                a.lerp_(p, .1)
                p.lerp_(a, .2)

class Shuffled(Callback):
    "Tensors and arrays"
    def __init__(self): self.w,self.at = torch.ones(2),np.zeros(3, dtype='int64')
    def before_step(self):
        self.w *= .97
        self.at[0] += 1
        for p in self.model.parameters():
            if p.grad is not None: p.grad *= float(self.w[0])+.01*self.at[0]

own = {f'noise_{k}':partial(Noise, k) for k in ('numpy','python','old','torch')} | dict(warm=Warm, shuffled=Shuffled)

@pytest.mark.parametrize('kind,where', [*((k,'fit') for k in own),('noise_numpy','learner'),('warm','learner')])
def test_what_it_knows_is_kept(tmp_path, kind, where):
    "All of them went on from their beginning, to the numbers of neither"
    a,h = run(tmp_path/'a', own[kind](), where)
    killed(tmp_path/'b', own[kind](), 9, where=where)
    killed(tmp_path/'b', own[kind](), 15, where=where, resume=True)
    b,h2 = run(tmp_path/'b', own[kind](), where, resume=True)
    same(h, h2), same_model(a, b)

def test_what_has_a_state_of_its_own_is_kept_once_it_is_there(tmp_path):
    a,h = run(tmp_path/'a', Average())
    killed(tmp_path/'b', Average(), 9)       # in the middle of a stage, whose beginning makes it
    b,h2 = run(tmp_path/'b', Average(), resume=True)
    same(h, h2), same_model(a, b)
    killed(tmp_path/'c', Average(), 20)      # between stages: nothing is there to put it into
    with pytest.raises(MemoError, match='Average has no ema yet that its state could be put back into') as e:
        run(tmp_path/'c', Average(), resume=True)
    assert len(str(e.value))<=300

class Odd(Callback):
    "Knows something that nobody can save"
    def __init__(self): self.it = None
    def before_batch(self): self.it = (i for i in range(3))

def test_what_cannot_be_kept_is_said_and_refused(tmp_path):
    with pytest.warns(UserWarning, match='do not hold Odd.it') as ws: killed(tmp_path, Odd(), 12)
    assert len([o for o in ws if 'Odd.it' in str(o.message)])==1
    with pytest.raises(MemoError, match='has not what Odd keeps in it: give Odd state_dict') as e:
        run(tmp_path, Odd(), resume=True)
    assert len(str(e.value))<=300

def test_what_knew_something_has_to_be_there(tmp_path):
    killed(tmp_path, Warm(), 9)
    with pytest.raises(MemoError, match='beside it is Warm there, no such callback here'): run(tmp_path, resume=True)

class Looks(Callback):
    def after_batch(self): pass

def test_what_knows_nothing_may_come_and_go_with_a_word(tmp_path):
    _,h = run(tmp_path/'a')
    killed(tmp_path/'b', Looks(), 9)
    with pytest.warns(UserWarning, match='goes on without Looks, which it had'):
        killed(tmp_path/'b', None, 9, resume=True)
    with pytest.warns(UserWarning, match='goes on with Looks, which it had not'):
        _,h2 = run(tmp_path/'b', Looks(), resume=True)
    same(h, h2)

@pytest.mark.parametrize('cb', [GradientClip,MixUp])
def test_fastais_that_change_numbers_neither_come_nor_go(tmp_path, cb):
    killed(tmp_path/'a', cb(), 9)
    with pytest.raises(MemoError, match=f'beside it is {cb.__name__} there, no such callback here'):
        run(tmp_path/'a', resume=True)
    killed(tmp_path/'b', None, 9)
    with pytest.raises(MemoError, match=f'beside it is no such callback there, {cb.__name__} here'):
        run(tmp_path/'b', cb(), resume=True)
    a,h = run(tmp_path/'c', cb())
    b,h2 = run(tmp_path/'a', cb(), resume=True)
    same(h, h2), same_model(a, b)

def test_other_arguments_are_refused(tmp_path):
    killed(tmp_path, GradientClip(1.), 9)
    with pytest.raises(MemoError, match='GradientClip has max_norm 1.0 there, 2.0 here'):
        run(tmp_path, GradientClip(2.), resume=True)

class Big(Callback):
    def __init__(self, x): self.x = x

# what a stranger found: numbers of neither, without a word

class Clips(Callback):
    "Holds the model's parameters, as a list that its fit makes"
    def before_fit(self): self.ps = list(self.model.parameters())
    def before_step(self): nn.utils.clip_grad_norm_(self.ps, .05)

class Begins(Callback):
    "Changes the model as a fit begins"
    def before_fit(self):
        with torch.no_grad(): [*self.model.parameters()][-1].zero_()

class Halves(Callback):
    "Changes what it keeps as a fit begins"
    def __init__(self): self.w = torch.ones(1)
    def before_fit(self): self.w.mul_(.5)
    def before_step(self):
        for p in self.model.parameters():
            if p.grad is not None: p.grad *= float(self.w)

class Last(Callback):
    "Keeps the last few losses, and a float32"
    def __init__(self): self.last,self.mean = collections.deque(maxlen=4),np.float32(0)
    def after_batch(self):
        if not self.training: return
        self.last.append(float(self.loss.detach()))
        self.mean = np.float32(sum(self.last)/len(self.last))
    def before_step(self):
        for p in self.model.parameters():
            if p.grad is not None: p.grad *= float(self.mean)+.1*len(self.last)

class Arrays(Callback):
    "Gives arrays and tuples, as a state_dict may"
    def __init__(self): self.rng,self.seen = random.Random(4),np.zeros(2, dtype='float32')
    def before_batch(self):
        if self.training: self.learn.xb = (self.x+.3*self.rng.random(),)
        self.seen[0] += 1
    def state_dict(self): return dict(rng=self.rng.getstate(), seen=self.seen, by=collections.Counter(a=1))
    def load_state_dict(self, d):
        self.rng.setstate(d['rng'])
        self.seen[:] = d['seen']
        assert type(d['by']) is collections.Counter and d['seen'].dtype==np.float32

class Waits(EarlyStoppingCallback):
    "Somebody's own, that counts what fastai's counts"
class Gathers(GradientAccumulation): pass
class Mixes(MixUp):
    "Whose own name is a local of fastai's"
    def __init__(self):
        super().__init__()
        self.shuffle = 0
    def before_batch(self):
        super().before_batch()
        self.shuffle += 1
        self.learn.xb = (self.x*(1+.01*self.shuffle),)

class Thaws(Callback):
    "Which of the model's layers it holds is what it knows"
    def __init__(self): self.on = []
    def before_epoch(self): self.on.append([*self.model.parameters()][len(self.on)%2])
    def before_step(self):
        for i,p in enumerate(self.on):
            if p.grad is not None: p.grad *= .8+.01*i

@pytest.mark.parametrize('cb', [Clips,Begins,Halves,Last,Arrays,partial(Waits, patience=2),partial(Gathers, 20),Mixes,
                                Thaws])
def test_they_go_on_as_they_were(tmp_path, cb):
    a,h = run(tmp_path/'a', cb())
    killed(tmp_path/'b', cb(), 9)
    killed(tmp_path/'b', cb(), 11, resume=True)
    b,h2 = run(tmp_path/'b', cb(), resume=True)
    same(h, h2), same_model(a, b)

def test_the_same_objects_after_an_interruption(tmp_path):
    "A cell of a notebook that is run again: what has happened behind the checkpoint is taken back"
    a,h = run(tmp_path/'a', Warm())
    cb = Warm()
    killed(tmp_path/'b', cb, 9)
    killed(tmp_path/'b', cb, 4, resume=True)
    b,h2 = run(tmp_path/'b', Warm(), resume=True)
    same(h, h2), same_model(a, b)

class Holds(Callback):
    "Looks at another callback, which keeps what it knows by itself"
    def __init__(self, other): self.other = other
    def before_step(self):
        for p in self.model.parameters():
            if p.grad is not None: p.grad *= 1/(1+self.other.wait)

def test_another_callback_that_one_looks_at(tmp_path):
    def go(folder, **kw):
        other = EarlyStoppingCallback(patience=9)
        return run(folder, Holds(other), more=[other, *kw.pop('stop', [])], **kw)
    a,h = go(tmp_path/'a')
    with pytest.raises(KeyboardInterrupt): go(tmp_path/'b', stop=[StopAt(15)])
    b,h2 = go(tmp_path/'b', resume=True)
    same(h, h2), same_model(a, b)

class Shared(Callback):
    def __init__(self): self.h,self.log = [],{}
    def before_fit(self): self.log['h'] = self.h
    def after_batch(self): self.h.append(1)

class Behind(Callback):
    order,n = 99,0
    def after_epoch(self): self.n += 1

class Off(Callback):
    "Stops for good in the middle of a fit"
    def after_epoch(self): self.run = False

class Learns(Callback):
    def __init__(self): self.a = nn.Parameter(torch.ones(1))
    def after_batch(self): self.a.data += 1

class Gone(Callback):
    def __init__(self): self.first = True
    def after_batch(self): vars(self).pop('first', None)

class Inside(Callback):
    "A generator in a dict, which nobody could put back"
    def __init__(self): self.g = dict(of=random.Random(3))
    def after_batch(self): self.g['of'].random()

class OffToo(Off):
    def state_dict(self): return dict(n=1)
    def load_state_dict(self, state): pass

@pytest.mark.parametrize('cb,what', [(Shared,'log'),(Behind,'order 99, behind what saves'),(Off,'run'),(Learns,'a'),
                                     (Gone,'first'),(Inside,'g'),(OffToo,'run')])
def test_what_cannot_be_put_back_is_refused(tmp_path, cb, what):
    with pytest.warns(UserWarning, match=f'do not hold {cb.__name__}.{what}'): killed(tmp_path, cb(), 15)
    with pytest.raises(MemoError, match=f'has not what {cb.__name__} keeps in {what}') as e:
        run(tmp_path, cb(), resume=True)
    assert len(str(e.value))<=300

def test_a_state_dict_that_no_file_can_hold_is_refused_before_training(tmp_path):
    class Bad(Arrays):
        def state_dict(self): return dict(at=object())
    with pytest.raises(MemoError, match=r'Bad.state_dict\(\) has what no checkpoint can hold, or fails \(object\)'):
        run(tmp_path, Bad())

def test_what_is_large_and_another_is_refused(tmp_path):
    killed(tmp_path, Big(torch.zeros(2_000_000)), 9)
    with pytest.raises(MemoError, match='Big.x is another than when the training began'):
        run(tmp_path, Big(torch.ones(2_000_000)), resume=True)

def test_mixed_precision_goes_on(tmp_path):
    "fastai's writes into its own arguments as a fit begins"
    def go(folder, **kw):
        learn = make().to_bf16()
        with quiet(learn): return learn,fit_stages(learn, stages(), folder, **kw)
    a,h = go(tmp_path/'a')
    with pytest.raises(KeyboardInterrupt): go(tmp_path/'b', cbs=StopAt(9))
    b,h2 = go(tmp_path/'b', resume=True)
    same(h, h2), same_model(a, b)

def test_mixup_of_another_strength_is_refused(tmp_path):
    killed(tmp_path, MixUp(.4), 9)
    with pytest.raises(MemoError, match='MixUp has alpha 0.4.* there, 5.0 here'):
        run(tmp_path, MixUp(5.), resume=True)

def test_what_does_not_change_is_not_saved(tmp_path):
    "As a set that a callback looks at"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        run(tmp_path/'a', Big(torch.zeros(2_000_000)))
        run(tmp_path/'b', Big(lambda: 3))
    assert all(p.stat().st_size<1_000_000 for p in (tmp_path/'a').glob('*.pt'))

plain = st.recursive(st.none()|st.booleans()|st.integers()|st.floats(allow_nan=False)|st.text(),
                     lambda s: st.lists(s)|st.dictionaries(st.text()|st.integers(), s)|st.tuples(s, s), max_leaves=8)

@given(plain)
@settings(max_examples=60, deadline=None)
def test_values_come_back_as_they_were(v):
    assert unpacked(packed(v, {}))==v and type(unpacked(packed(v, {})))==type(v)

@given(st.lists(st.integers()), st.sets(st.integers()))
@settings(max_examples=20, deadline=None)
def test_what_is_there_takes_over_in_its_place(a, b):
    for made in (list,L,collections.deque):
        now = was = made([7])
        assert unpacked(packed(made(a)), now) is was and [*was]==a
    now = {3}
    assert unpacked(packed(b), now) is now and now==b
    d = collections.defaultdict(list, x=[1])
    assert unpacked(packed(collections.defaultdict(list, y=a)), d) is d and d==dict(y=a) and d['z']==[]
