"Parts found by name, the index, and the check of what they are called with"
import copy, inspect, pickle, sys, time
from typing import Annotated, Literal
import numpy as np, pytest, torch
from torch import nn
from helpers.errors import err
from memo.banks.slots import SlotBank
from memo.banks.classes import ClassBank
from memo.core import *
from memo.training.losses import SigmoidFocalLoss
from memo.registry import *
from memo.registry import _here,index_text
from memo.schema import Param,arguments,checked,describe,required,source

pytestmark = pytest.mark.usefixtures('ours_alone')

@pytest.fixture
def clean():
    "What a test registers is forgotten"
    was = {k:dict(v) for k,v in _here.items()}
    yield
    _here.clear()
    _here.update(was)

# names

def test_ours_by_name_and_by_class_name():
    assert find('bank', 'SlotBank') is SlotBank and find('head', 'add') is find('head',
        'RetrievalHead') and find('loss', 'focal') is SigmoidFocalLoss

def test_unknown_names():
    assert err(find, 'bank', 'SlotBnk')==("bank: 'SlotBnk' is not one of "
                                          f"{', '.join(known('bank'))}; did you mean SlotBank? "
                                          "(one of your own is named by its dotted path)")
    assert 'did you mean' not in err(find, 'bank', 'zzz')
    assert "kind: 'bnak' is not one of" in err(find, 'bnak', 'SlotBank')
    assert 'a name or a dotted path' in err(find, 'bank', 3)
    assert 'is no class or function' in err(find, 'bank', 'memo.data.samplers.samplings')

def test_every_part_is_where_the_index_says():
    for kind in kinds:
        for n,p in known(kind).items():
            f = find(kind, n)
            assert (f.__module__,f.__qualname__)==(p.module,p.symbol) and callable(f)
            assert p.help, f'{kind} {n} has no docstring'
            assert all(q.doc
                       for q in p.keys.values(
                           )), f'{kind} {n}: {[k for k,q in p.keys.items() if not q.doc]} have no comment'

def test_the_index_is_in_step(repo, python):
    "In a process of its own: parts that tests have registered are none of the package's"
    r = python('-c', 'from memo.registry import index_text; import sys; sys.stdout.write(index_text())', cwd=repo)
    assert r.stdout==(repo/'memo/_parts.py').read_text(), 'run make sync'

def test_nothing_is_imported_to_know(python):
    code = ('import sys\nfrom memo.registry import known,kinds\nn = sum(len(known(k)) for k in kinds)\nprint(n>30, [m '
            'for m in ("torch","fastai","numpy","pandas","memo.banks.slots") if m in sys.modules])')
    assert python('-c', code, cold=True).stdout=='True []\n'

def test_list_imports_no_torch(tool, python):
    code = "import sys; from memo.cli import memo_train; memo_train(list=True); print('torch' in sys.modules)"
    r = python('-c', code, cold=True)
    assert r.returncode==0 and r.stdout.splitlines()[-1]=='False'
    r = tool('memo-train', '--list')
    for kind in kinds:
        for n,p in known(kind).items():
            assert any(l.split(maxsplit=1)[:1]==[n] and p.help in l for l in r.stdout.splitlines()), (kind, n)
    one = tool('memo-train', '--list', 'bank')
    assert one.stdout.splitlines()[0].startswith(
        'bank: ') and 'SlotBank' in one.stdout and 'digits_lt' not in one.stdout
    bad = tool('memo-train', '--list', 'bnk')
    assert bad.returncode==2 and "did you mean 'bank'" in bad.stderr

# of one's own

def test_registering(clean):
    @register('loss', 'mine', task='multiclass', fit=np.mean)
    def my_loss(gamma:float=2.): # Focusing
        "A line\n\nand more"
        return gamma
    p = known('loss')['mine']
    assert (p.help, p.module, p.facts['task'], p.facts['fit'])==('A line', __name__, 'multiclass', 'numpy:mean')
    assert find('loss', 'mine') is my_loss and find('loss', 'my_loss') is my_loss
    assert my_loss(gamma=3.)==3. and 'gama: my_loss does not read it; did you mean gamma?' in err(my_loss, gama=1)
    assert "memo's own" in err(register('loss', 'focal'), lambda: 0)

def test_facts_of_a_head_are_those_of_its_class():
    f = {n:p.facts for n,p in known('head').items()}
    assert f['vote']['mixes'] and not f['add']['mixes'] and f['replay']['adds_rows'] and 'draw' in f['replay'][
        'needs'] and f['add']['trains'] and not f['watch']['trains']
    assert all(n in known('bank')['ClassBank'].facts['offers'] and n not in known('bank')['SlotBank'].facts['offers']
               for n in f['replay']['needs'])

def test_a_file_imports_nothing(tmp_path, monkeypatch):
    (tmp_path/'mod_h1.py').write_text('from memo.banks.slots import SlotBank\nclass B(SlotBank): pass\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert 'import mod_h1 first' in err(loaded, 'bank', 'mod_h1:B') and 'mod_h1' not in sys.modules
    import mod_h1
    assert loaded('bank', 'mod_h1:B') is mod_h1.B
    del sys.modules['mod_h1']
    assert loaded('bank', 'mod_h1:B', [mod_h1.B]) is mod_h1.B and loaded('bank', 'B', {'B':mod_h1.B}) is mod_h1.B
    assert loaded('bank', 'memo.banks.slots:SlotBank') is SlotBank and loaded('bank', 'SlotBank') is SlotBank
    assert 'import os.path first' not in err(loaded, 'bank', 'NotOne') and 'given as kinds=' in err(loaded, 'bank',
        'NotOne')

def test_dotted_path(tmp_path):
    (tmp_path/'pkg_reg').mkdir()
    (tmp_path/'pkg_reg/__init__.py').write_text('class Outer:\n    class Inner: "In"\n')
    was = list(sys.path)
    with importing_from(tmp_path): assert find('bank', 'pkg_reg.Outer.Inner').__doc__=='In'
    assert sys.path==was and part('bank', 'pkg_reg.Outer').where=='pkg_reg:Outer'
    assert 'has no Outr; did you mean Outer?' in err(find, 'bank', 'pkg_reg.Outr')
    del sys.modules['pkg_reg']
    assert 'cannot be imported' in err(find, 'bank', 'pkg_reg.Outer')

# the check of arguments

def test_what_is_accepted_is_what_one_can_give():
    "It began with self"
    assert err(SlotBank, xxxxx=1).startswith('xxxxx: SlotBank does not read it; accepted: size, ')
    from memo.data.longtail import digits_lt
    assert err(digits_lt, xxxxx=1).startswith('xxxxx: digits_lt does not read it; accepted: n_max, ')

@pytest.mark.parametrize('kw,msg',
                         [(dict(polcy='fifo'),'polcy: SlotBank does not read it; did you mean policy?'),
                          (dict(size=0),'size must be a whole number from 1, found 0'),
    (dict(size=2.5),'size must be a whole number from 1, found 2.5'),
    (dict(size=True),'size must be a whole number from 1, found True'),
    (dict(momentum=1),'momentum must be a number from 0 to below 1, found 1'),
    (dict(momentum=float('nan')),'momentum must be a number from 0 to below 1, found nan'),
    (dict(threshold=0),'threshold must be a number above 0 up to 1, found 0'),
    (dict(size='8'),"size must be a whole number from 1, found '8'")])
def test_python_is_told_what_yaml_is_told(kw, msg, tmp_path):
    from memo.experiment.config import load_config
    assert err(SlotBank, **kw)==msg
    (k,v), = kw.items()
    said = repr(v) if isinstance(v, str) else '.nan' if v!=v else repr(v).lower()
    (tmp_path/'x.yaml').write_text(f'memory: {{bank: {{name: SlotBank, {k}: {said}}}}}')
    e = err(load_config, tmp_path/'x.yaml')
    if 'does not read it' in msg:
        assert f'memory.bank.{k}' in e and 'SlotBank does not read it; did you mean memory.bank.policy?' in e
    else: assert f'memory.bank.{msg}' in e and e.endswith('(SlotBank reads it)')

def test_what_is_accepted():
    assert SlotBank(np.int64(5), momentum=np.float32(.5), policy=lambda c,b: c.norm).size==5
    assert SlotBank(5, momentum=0).momentum==0 and ClassBank(3, capacity=np.int32(4)).capacity==4
    assert SigmoidFocalLoss(gamma=2).gamma==2

def test_nothing_is_allocated_for_a_refused_call(monkeypatch):
    seen = []
    monkeypatch.setattr(torch, 'full', lambda *a, **k: seen.append(a))
    err(SlotBank, 10**9, momentum=2)
    assert not seen

def test_a_checked_class_is_the_same_class():
    sig = inspect.signature(SlotBank)
    assert list(sig.parameters)[:3]==['size','dim',
                                      'policy'] and sig.parameters[
                                          'policy'].default=='rarity' and 'self' not in sig.parameters
    assert 'Number of slots' in describe(SlotBank)[1]['size'].doc
    b = SlotBank(4)
    for o in (pickle.loads(pickle.dumps(b)), copy.deepcopy(b)): assert type(o) is SlotBank and o.size==4
    class Sub(SlotBank):
        def __init__(self, shelf=3, **kwargs):
            super().__init__(5, **kwargs)
            self.shelf = shelf
    assert Sub(4).size==5 and isinstance(Sub(), SlotBank) and 'did you mean policy?' in err(Sub, polcy='fifo')
    class Same(SlotBank): pass
    assert 'siz: Same does not read it; did you mean size?' in err(Same, siz=3)
    with pytest.raises(TypeError): ClassBank()        # Python's own word for what is missing

def test_a_subclass_may_be_registered_too(clean):
    @register('bank')
    class Wide(SlotBank):
        def __init__(self, width:Count=3, size:Count=7): super().__init__(size)
    assert 'width must be a whole number from 1, found 0' in err(Wide, 0) and Wide().size==7
    assert 'size must be' in err(Wide, 3, 0)

def test_a_function_that_delegates():
    from memo.data.longtail import digits_lt
    assert 'imb_factor must be a number above 0' in err(digits_lt, imb_factor=-1)
    assert 'shuffle_classes must be true or false' in err(digits_lt, shuffle_classes=3)
    assert 'tfms: digits_lt does not read it' in err(digits_lt, tfms=[])
    assert pickle.loads(pickle.dumps(digits_lt)) is digits_lt

def test_a_check_costs_little():
    f = lambda size=512, policy='rarity', momentum=0., threshold=.2: None
    f.__annotations__ = dict(size=Count, policy=str, momentum=Fraction, threshold=Share)
    g = checked(f)
    def cost(h):
        ts = []
        for _ in range(20):
            t = time.perf_counter()
            for _ in range(200): h(100, policy='fifo', momentum=.5, threshold=.3)
            ts.append((time.perf_counter()-t)/200)
        return min(ts)
    assert cost(g)-cost(f)<50e-6

@pytest.mark.parametrize('t', [Count|None, list[int], Annotated[float, Range(0, 5)],
                               Annotated[str, OneOf('a','b')]|None, Literal['x',1], list[Count]|Share, str|object])
def test_a_type_reads_back(t):
    from typing import Any
    assert eval(source(t))==t

def test_what_a_script_registered_goes_with_it(monkeypatch):
    "Notebooks that are run one after another in a process have a `__main__` each"
    import types
    first,second = types.ModuleType('__main__'),types.ModuleType('__main__')
    class Mine: "A bank of a notebook"
    Mine.__module__,Mine.__qualname__ = '__main__','Mine'
    monkeypatch.setitem(sys.modules, '__main__', first)
    register('bank', 'of_a_notebook')(Mine)
    assert find('bank', 'of_a_notebook') is Mine and 'of_a_notebook' in known('bank')
    monkeypatch.setitem(sys.modules, '__main__', second)
    assert 'of_a_notebook' not in known('bank') and 'is not one of' in err(find, 'bank', 'of_a_notebook')
    monkeypatch.setitem(sys.modules, '__main__', first)
    assert find('bank', 'of_a_notebook') is Mine

def test_defaults_that_a_part_hands_on_are_its_own():
    "fastai's MixedPrecision gives the scaler of its signature a device itself: what nobody states is not passed on"
    from fastai.callback.fp16 import MixedPrecision
    name = 'fastai.callback.fp16.MixedPrecision'
    args = {k:o.default for k,o in part('callback', name).keys.items()}
    assert args['device']=='cuda' and args['growth_interval']==2000
    assert make(Section('callback', name, args)).kwargs=={}
    got = make(Section('callback', name, {**args, 'growth_interval':5}, ['growth_interval']))
    assert isinstance(got, MixedPrecision) and got.kwargs=={'growth_interval':5}
    own = make(Section('head', 'vote', {'k':20}), bank=SlotBank(30))    # of its own arguments all are
    assert own.k==20
