"Every registered head on every registered bank that has what it needs"
import inspect
import pytest
from helpers.grid import grid
from memo.core import MemoError
from memo.registry import find, known
from .head_checks import checks
from .made import build, learner, pairs, parts, quietly, takes

def run(check, bank, head, tmp_path):
    def make(**kw):
        own = {k:kw.pop(k) for k in [*kw] if k in ('multi','seed','cbs')}
        return learner(build('bank', bank, n_classes=4 if own.get('multi') else 10), head, **own, **kw)
    asks = inspect.signature(check).parameters
    return check(make, **{k:v for k,v in dict(params=takes('head', head), head=head, tmp_path=tmp_path).items()
                          if k in asks})

@pytest.mark.parametrize('bank,head,check', grid(rows=[(*o, c) for o in pairs() for c in checks.values()]))
def test_head(bank, head, check, tmp_path): run(check, bank, head, tmp_path)

@pytest.mark.parametrize('head', parts('head'))
@pytest.mark.parametrize('bank', parts('bank'))
def test_a_bank_that_lacks_what_it_needs(bank, head):
    "Is refused in one line, before anything is attached; every other trains"
    b = build('bank', bank, n_classes=10)
    try: learn = learner(b, head)
    except MemoError as e:
        assert '\n' not in str(e) and 'needs' in str(e) and any(not hasattr(b, o) for o in find('head', head).needs)
        return
    assert all(hasattr(b, o) for o in find('head', head).needs)
    quietly(learn, learn.fit, 1, 1e-2)

def test_there_is_something_to_try():
    assert {('SlotBank','vote'),('ClassBank','lda'),('ClassBank','replay'),('MyBank','toy_second'),('toy_ring','add'),
            ('ClassBank','toy_second')}<=set(pairs())
    assert ('SlotBank','lda') not in pairs() and known('head')['toy_second'].module.startswith('toys')
