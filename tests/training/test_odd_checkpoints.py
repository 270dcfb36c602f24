"""A checkpoint that does not hold what was written, or that another version wrote, is refused in a line that names the
file and what it is, with nothing of it in the learner"""
import random, re
import pytest
from fastai.vision.all import Callback, EarlyStoppingCallback, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from contracts.made import StopAt
from test_stages import make, quiet, same, same_model, two_phase
from memo.core import MemoError
from memo.training.checkpoint import load_plain, save_plain
from memo.training.same_run import contents, other_contents
from memo.training.stages import Stage, fit_stages

@pytest.fixture(scope='module')
def begun(tmp_path_factory):
    "A folder with one checkpoint in the middle of a stage, and its best epoch"
    folder = tmp_path_factory.mktemp('begun')
    with pytest.raises(KeyboardInterrupt), quiet(learn := make()): go_on(learn, folder, False, StopAt(16))
    newest = max(folder.glob('s*.pt'))
    keep = newest.name,load_plain(newest)['best_file']
    for p in folder.glob('*.pt'):
        if p.name not in keep: p.unlink()
    assert newest.name=='s0_e2.pt' and len([*folder.glob('*.pt')])==2
    return folder

def go_on(learn, folder, resume=True, *cbs):
    stages = [Stage('a', 4, 1e-2, monitor='valid_loss'), Stage('b', 1, 1e-2)]
    return fit_stages(learn, stages, folder, resume, cbs=[EarlyStoppingCallback(patience=9), *cbs])

def files(begun, folder):
    for p in folder.glob('*.pt'): p.unlink()
    for p in begun.glob('*.pt'): (folder/p.name).write_bytes(p.read_bytes())
    return folder/'s0_e2.pt'

def refused(folder, name):
    "Refused in a line that names the file; the learner is as it was. Gives the line"
    learn = make()
    was = {k:v.clone() for k,v in learn.model.state_dict().items()}
    with pytest.raises(MemoError) as e, quiet(learn): go_on(learn, folder)
    text = str(e.value).split('\n\t')[-1]
    assert '\n' not in text and len(text)<=300 and name in text, text
    now = learn.model.state_dict()
    assert was.keys()==now.keys() and all(v.equal(now[k]) for k,v in was.items())
    return text

def test_what_is_whole_goes_on(begun, tmp_path):
    "So that the tests below can fail"
    files(begun, tmp_path)
    with quiet(learn := make()): h = go_on(learn, tmp_path)
    with quiet(whole := make()): same(h, go_on(whole, tmp_path/'whole', False))
    same_model(learn, whole)

def places(o, at=()):
    "Each place in a tree, however deep"
    yield at
    for k,v in o.items() if isinstance(o, dict) else enumerate(o) if isinstance(o, (list,tuple)) else ():
        yield from places(v, (*at, k))

def put(o, at, f):
    "The tree with `f` applied to the dict or list that holds the last key of `at`, and that key"
    if len(at)==1: return f(o, at[0])
    if isinstance(o, dict): return {k:put(v, at[1:], f) if k==at[0] else v for k,v in o.items()}
    return type(o)(put(v, at[1:], f) if i==at[0] else v for i,v in enumerate(o))

def without(o, k):
    return {a:b for a,b in o.items() if a!=k} if isinstance(o, dict) else type(o)(v for i,v in enumerate(o) if i!=k)
def renamed(o, k): return {f'{a}x' if a==k else a:b for a,b in o.items()} if isinstance(o, dict) else without(o, k)
def other(v, r):
    if isinstance(v, torch.Tensor):
        to = torch.float16 if v.dtype==torch.float64 else torch.float64
        return r.choice([torch.zeros(3), v[None], v.to(to), 'x'])
    return r.choice([o for o in (None, True, -1, 10**9, 'x', [], {}, [1], torch.zeros(3)) if type(o) is not type(v)])
def replaced(r): return lambda o, k: put_at(o, k, other(o[k], r))
def put_at(o, k, v):
    return {**o, k:v} if isinstance(o, dict) else type(o)(v if i==k else x for i,x in enumerate(o))

@given(seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_with_any_place_changed_by_other_software(begun, tmp_path, seed):
    r = random.Random(seed)
    p = files(begun, tmp_path)
    if r.random()<.3: p = next(tmp_path.glob('best_*.pt'))
    raw = torch.load(p, weights_only=True)
    at = r.choice([o for o in places(raw) if len(o)>1])
    torch.save(put(raw, at, r.choice([without, renamed, replaced(r)])), p)
    said = refused(tmp_path, p.name)
    assert 'does not hold what memo wrote' in said

top = '''model opt grads rngs rows plan stage epoch best best_file wait recorder scaler callbacks threads
         versions'''.split()

@pytest.mark.parametrize('key', top)
@pytest.mark.parametrize('value', ['x', -1, 10**12, [], {}, {'x':1}, [None], True])
def test_a_key_of_another_version_is_something_else(begun, tmp_path, key, value):
    "Consistent in itself: what it says it holds is what it does"
    p = files(begun, tmp_path)
    ck = load_plain(p)
    save_plain({**ck, key:value}, p)
    none = dict(grads=[{}], scaler=[{}], callbacks=[], threads=[], versions=[[]], stage=[], rows=[[]], best=[-1,10**12],
                wait=[-1,10**12])
    if any(value==o and type(value) is type(o) for o in none.get(key, ())): return      # may be so
    refused(tmp_path, 's0_e2.pt' if key in ('model','opt','recorder') else str(tmp_path)[:30])

@pytest.mark.parametrize('key', 'model opt rngs rows plan stage epoch best best_file wait recorder'.split())
def test_a_key_of_another_version_is_missing(begun, tmp_path, key):
    p = files(begun, tmp_path)
    ck = load_plain(p)
    del ck[key]
    save_plain(ck, p)
    assert f'it has no {key}' in refused(tmp_path, 's0_e2.pt')

def test_one_that_does_not_fit_the_learner_leaves_it_as_it_was(begun, tmp_path):
    "The model of a checkpoint, or of its best epoch, that is another one's; parts of it would fit"
    for which in ('s0_e2.pt', next(begun.glob('best_*.pt')).name):
        p = files(begun, tmp_path).with_name(which)
        o = load_plain(p)
        state = o.get('model', o)
        k = [*state][-1]
        state[k] = torch.zeros(5, 5, 5)
        save_plain(o, p)
        assert 'another model' in refused(tmp_path, str(tmp_path)[:30])

def test_the_one_before_is_gone_on_from(tmp_path):
    with pytest.raises(KeyboardInterrupt), quiet(learn := make()): go_on(learn, tmp_path, False, StopAt(16))
    p = max(tmp_path.glob('s*.pt'))
    ck = torch.load(p, weights_only=True)
    ck['of']['wait'] = 'x'
    torch.save(ck, p)
    with quiet(learn := make()): h = go_on(learn, tmp_path)
    with quiet(whole := make()): same(h, go_on(whole, tmp_path/'whole', False))

def test_a_training_that_diverges_behind_a_damaged_checkpoint_says_so(tmp_path):
    "The newest file was read for what the model is, not the one gone on from"
    from memo.core import Diverged
    def run(learn, resume, *cbs):
        with quiet(learn): return fit_stages(learn, [Stage('a', 4, 1e-2)], tmp_path, resume, cbs=[*cbs])
    with pytest.raises(KeyboardInterrupt): run(make(), False, StopAt(20))
    p = max(tmp_path.glob('s*.pt'))
    assert p.name=='s0_e3.pt'
    p.write_bytes(p.read_bytes()[:-100])
    class Now(Callback):
        def before_batch(self): self.learn.xb = tuple(x*float('nan') for x in self.xb)
    with pytest.raises(Diverged): run(make(), True, Now())

def test_contents_tell_what_differs():
    o = dict(a=torch.zeros(2, 3), b=[1, {'c':'text'}], n=3)
    assert other_contents(contents(o), contents({**o, 'b':[1, {'c':'text'}]})) is None
    for new,said in ((dict(a=torch.ones(2, 3)),'a has other values'),
                     (dict(a=torch.zeros(3, 2)),r'a is float32 \[3, 2\]'),
                     (dict(b=[1, {}]),'b.1 is dict of 0, written was dict of 1'), (dict(n=True),'n is bool True'),
                     (dict(n=4),'n is int 4, written was int 3')):
        assert re.search(said, other_contents(contents(o), contents({**o, **new})))
    less = {k:o[k] for k in 'ab'}
    assert other_contents(contents(o), contents(less))=='all of it is dict of 2, written was dict of 3'
