"""Sources of synthetic features: Gaussians have the moments that their formula says, a diffusion model learns what no
Gaussian is like, both go on exactly where they are saved; schedules"""
import copy, pickle
import numpy as np, pytest, torch
from contracts.made import StopAt, learner, quietly
from memo.banks.classes import ClassBank
from memo.core import MemoError
from memo.heads.replay import ReplayHead
from memo.heads.sources import *
from memo.training.memory_callback import MemoryCallback
from memo.training.stages import Stage, fit_stages

def filled(counts, d=5, capacity=200, seed=0):
    g = torch.Generator().manual_seed(seed)
    b = ClassBank(len(counts), capacity=capacity)
    y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    mix = torch.randn(d, d, generator=g)
    b.write(3*torch.randn(len(counts), d, generator=g)[y]+torch.randn(len(y), d, generator=g)@mix, y)
    return b

def test_a_common_class_has_its_own_moments():
    b = filled([100,80,60])
    x = class_rows(b)[1]
    got = ClassGaussians()(b, torch.ones(40_000).long())
    assert torch.allclose(got.mean(0), x.mean(0), atol=.1)
    want = np.cov(x.numpy().T, bias=True)
    assert np.allclose(np.cov(got.numpy().T), want, atol=.06*np.abs(want).max())

def test_a_rare_class_is_lent_spread_by_the_nearest_common_ones():
    "(n/enough) of its own covariance, the rest in equal parts of the two nearest classes that have enough rows"
    b = filled([100,80,60,10,3])
    rows = class_rows(b)
    means = torch.stack([o.mean(0) for o in rows])
    near = (means[:3]-means[3]).norm(dim=1).argsort()[:2].tolist()
    got = ClassGaussians()(b, torch.full((40_000,), 3))
    own = 10/30
    want = sum(s*np.cov(rows[c].numpy().T, bias=True) for c,s in ((3,own), *((c,(1-own)/2) for c in near)))
    assert np.allclose(np.cov(got.numpy().T), want, atol=.06*np.abs(want).max())
    assert torch.allclose(got.mean(0), means[3], atol=.15)

def test_nobody_lends_where_nobody_has_enough():
    b = filled([4,3])
    got = ClassGaussians()(b, torch.zeros(40_000).long())
    want = np.cov(class_rows(b)[0].numpy().T, bias=True)
    assert np.allclose(np.cov(got.numpy().T), want, atol=.06*np.abs(want).max())

@pytest.mark.parametrize('make', [ClassGaussians, lambda: FeatureDiffusion(steps=20)])
def test_what_comes_next_is_the_banks(make):
    "The same bank gives the same features, and then others; nothing else's chance is touched"
    a,b = filled([50,20,2]),filled([50,20,2])
    y,was = torch.tensor([0,2,2,1]),torch.get_rng_state()
    s,t = make(),make()
    first,second = s(a, y),s(a, y)
    assert torch.equal(first, t(b, y)) and torch.equal(second, t(b, y)) and not torch.equal(first, second)
    assert torch.equal(was, torch.get_rng_state()) and first.shape==(4,5) and not first.requires_grad

def test_classes_without_rows_are_refused():
    b = filled([50,20,0])
    with pytest.raises(MemoError, match='class 2'): ClassGaussians()(b, torch.tensor([2]))
    with pytest.raises(MemoError, match='empty'): FeatureDiffusion(steps=2)(ClassBank(3), torch.tensor([0]))

def test_the_model_of_noise_learns():
    "Its error falls, and what it makes of a class lies among that class's rows"
    b = filled([150,100,60], d=4)
    f = FeatureDiffusion(steps=600)
    losses = f.fit(b)
    assert np.mean(losses[-50:])<.6*np.mean(losses[:5])
    rows = class_rows(b)
    for c in range(3):
        got = f(b, torch.full((500,), c))
        sd = rows[c].std(0)
        assert ((got.mean(0)-rows[c].mean(0)).abs()<.5*sd).all() and ((got.std(0)/sd-1).abs()<.5).all()

def test_it_is_trained_anew_as_the_bank_changes():
    b,f = filled([50,20]),FeatureDiffusion(steps=5, every=3)
    f(b, torch.tensor([0]))
    was = f.w0.clone()
    for i in range(2): b.write(torch.randn(4, 5), torch.tensor([0,0,1,1]))
    f(b, torch.tensor([0]))
    assert torch.equal(was, f.w0)
    b.write(torch.randn(4, 5), torch.tensor([0,0,1,1]))
    f(b, torch.tensor([0]))
    assert not torch.equal(was, f.w0) and not list(f.parameters())

def memory(**kw): return MemoryCallback(ClassBank(10, capacity=16), head='replay', **kw)

@pytest.mark.parametrize('source', [*sources])
def test_a_recipe_goes_on_exactly(tmp_path, source):
    "Synthetic features behind a checkpoint are those of a training that nothing stopped"
    def go(folder, resume=False, stop=False):
        learn = learner()
        learn.add_cb(memory(source=source, schedule='linear'))
        stages = [Stage('a', 4, 1e-2)]
        if stop:
            with pytest.raises(KeyboardInterrupt):
                quietly(learn, fit_stages, learn, stages, checkpoint=folder, cbs=StopAt(8))
        else: quietly(learn, fit_stages, learn, stages, checkpoint=folder, resume=resume)
        return learn.model.state_dict()
    whole = go(tmp_path/'a')
    go(tmp_path/'b', stop=True)
    again = go(tmp_path/'b', resume=True)
    assert whole.keys()==again.keys() and all(torch.equal(v, again[k]) for k,v in whole.items())

def test_a_schedule_says_how_much(monkeypatch):
    "By how far the fit has come, a function of one's own too"
    for schedule,f in (('linear', lambda p: p), ('late', lambda p: float(p>=.6)), (lambda p: p**2, lambda p: p**2)):
        learn,asked = learner(),[]
        learn.add_cb(memory(schedule=schedule))
        bank = learn.memory.bank
        missing = bank.missing
        monkeypatch.setattr(bank, 'missing', lambda n, most: asked.append(n) or missing(n, most))
        quietly(learn, learn.fit, 3, 1e-2)
        want = [16*f(i/9) for i in range(9)][-len(asked):]      # nothing is replayed before something is stored
        assert len(asked)==8 and asked==pytest.approx(want)

def test_a_source_of_ones_own():
    seen = []
    def twice(bank, y):
        seen.append(y)
        return 2*bank.draw(y)
    learn = learner()
    learn.add_cb(memory(source=twice))
    quietly(learn, learn.fit, 2, 1e-2)
    assert seen and learn.memory.head.source is None
    for wrong in (lambda bank, y: torch.zeros(len(y), 3), lambda bank, y: bank.draw(y)*float('nan'),
                  lambda bank, y: None, lambda bank, y: bank.draw(y).numpy()):
        learn = learner()
        learn.add_cb(memory(source=wrong))
        with pytest.raises(MemoError, match='source: features of'): quietly(learn, learn.fit, 2, 1e-2)
    for wrong in (lambda p: float('nan'), lambda p: None, lambda p: 'much'):
        learn = learner()
        learn.add_cb(memory(schedule=wrong))
        with pytest.raises(MemoError, match='schedule: at '): quietly(learn, learn.fit, 2, 1e-2)
    for kw in (dict(source='nope'), dict(source=3), dict(schedule='nope'), dict(schedule=.5)):
        with pytest.raises(MemoError, match=f'{[*kw][0]}: '): ReplayHead(ClassBank(10), **kw)

def test_a_head_with_a_trained_source_is_copied_and_pickled():
    learn = learner()
    learn.add_cb(memory(source='diffusion'))
    quietly(learn, learn.fit, 2, 1e-2)
    head = learn.memory.head
    for o in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert torch.equal(o.draws.w0, head.draws.w0)
    other = learner()
    other.add_cb(memory(source='diffusion'))
    other.model.load_state_dict(learn.model.state_dict())
    assert torch.equal(other.memory.head.draws.w0, head.draws.w0)
