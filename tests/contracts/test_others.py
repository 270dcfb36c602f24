"Every registered loss, sampler, data set, model, metric, baseline, task and callback does what its kind does"
import pytest
from memo.registry import kinds
from .made import other, parts, takes
from .other_checks import checks, run

slow = {'chest','timm','chest_mosaic'}      # half a minute in all
every = [pytest.param(n, f, id=f'{n}-{k}', marks=[pytest.mark.slow]*(n in slow)) for kind,fs in checks.items()
         for n in parts(kind) for k,f in fs.items()]

@pytest.mark.parametrize('name,check', every)
def test_part(name, check, tmp_path): run(check, name, tmp_path)

def test_every_kind_is_checked():
    assert set(checks)|{'bank','head'}>=set(k for k in kinds if parts(k)), 'a kind of part has no contract here'
    assert all(any('toys' in __import__('memo.registry', fromlist=['known']).known(k)[n].module for n in parts(k))
               for k in checks)

def test_most_arguments_get_another_value():
    "Else what is checked with them says nothing"
    ps = [(k,n,a,p) for k in checks|{'bank':0,'head':0} for n in parts(k) for a,p in takes(k, n).items()
          if a not in ('bank','root')]
    none = [o[:3] for o in ps if other(o[3]) is None]
    assert len(none)<len(ps)/8, none
