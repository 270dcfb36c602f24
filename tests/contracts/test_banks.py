"Every registered bank, with every name that its arguments can choose from, does what a bank does"
import inspect
import pytest
from memo.core import MemoError
from .bank_checks import checks
from .made import build, parts, takes, values

def variants():
    "Each bank as it is by default, and with each text that one of its arguments accepts"
    for name in parts('bank'):
        yield name,{}
        for k,p in takes('bank', name).items():
            choices = [o for t in getattr(p.type, '__args__', (p.type,)) for o in _names(t)]
            for v in choices:
                if v!=p.default: yield name,{k:v}

def _names(t): return [o for m in getattr(t, '__metadata__', ()) if not hasattr(m, 'lo') for o in m]

def run(check, name, kw, tmp_path):
    def make(**more): return build('bank', name, **{**kw, **more})
    asks = inspect.signature(check).parameters
    return check(make, **dict(params=takes('bank', name)) if 'params' in asks else {},
                 **dict(tmp_path=tmp_path) if 'tmp_path' in asks else {})

every = [(n,kw) for n,kw in variants()]
named = [f"{n}{''.join(f'-{v}' for v in kw.values())}" for n,kw in every]

@pytest.mark.parametrize('check', checks.values(), ids=checks)
@pytest.mark.parametrize('name,kw', every, ids=named)
def test_bank(name, kw, check, tmp_path): run(check, name, kw, tmp_path)

def test_there_is_something_to_try():
    assert {'SlotBank','ClassBank','MyBank','toy_ring'}<={n for n,_ in every} and len(every)>12 and len(checks)>18
