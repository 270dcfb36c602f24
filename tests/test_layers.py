"A module imports only from modules whose notebooks come before its own"
import ast, json, re
from pathlib import Path
import pytest

root = Path(__file__).parents[1]
PLOTS = {'bankplots','evaluation','experiment','comparison','cli','all'}   # what may import plots

def _exp(nb):
    "The module that notebook `nb` exports, `None` for a page"
    src = '\n'.join(''.join(c['source']) for c in json.loads(nb.read_text(encoding='utf-8'))['cells'] if c['cell_type']=='code')
    m = re.search(r'^#\|\s*default_exp\s+(\S+)', src, re.M)
    return m and m.group(1)

def _imports(src):
    "Modules of memo that `src` imports, inside functions too"
    for n in ast.walk(ast.parse(src)):
        if isinstance(n, ast.Import): names = [a.name for a in n.names]
        elif isinstance(n, ast.ImportFrom):
            base = ('memo.' if n.level else '') + (n.module or '')
            names = [base] if base not in ('memo','memo.') else [f'memo.{a.name}' for a in n.names]
        else: continue
        yield from (x.split('.')[1] for x in names if x.startswith('memo.') and not x.split('.')[1].startswith('_'))

order = [m for m in map(_exp, sorted((root/'nbs').glob('*.ipynb'))) if m]
def _src(m): return (root/'memo'/f'{m}.py').read_text(encoding='utf-8')

def test_imports_are_found():
    src = 'from memo.banks import *\nfrom .heads import attach\nfrom . import plots\nimport memo.data as d\n'
    src += 'def f(): from memo import cli\nimport torch, memo'
    assert sorted(_imports(src)) == ['banks','cli','data','heads','plots']

@pytest.mark.parametrize('m', order)
def test_imports_only_from_above(m):
    bad = [o for o in _imports(_src(m)) if o not in order[:order.index(m)]]
    assert not bad, f'memo.{m} imports {bad}: not among the modules above it {order[:order.index(m)]}'

@pytest.mark.parametrize('m', [o for o in order if o not in PLOTS])
def test_plots_stay_at_the_top(m): assert 'plots' not in _imports(_src(m)), f'memo.{m} imports plots: only {sorted(PLOTS)} may'

def test_all_names_every_module():
    "Everything but the commands; by name, so that a star import does not flood a notebook. A module of registered parts needs no line: they are there by themselves"
    from memo.registry import kinds, known
    parts = {p.module.removeprefix('memo.') for k in kinds for p in known(k).values() if p.module.startswith('memo.')}
    assert set(_imports(_src('all'))) | parts == set(order)-{'cli'} | parts
    import memo.all
    for k in ('bank','head','data','model','loss','callback'):
        for p in known(k).values(): assert not p.module.startswith('memo.') or hasattr(memo.all, p.symbol), p.symbol
    assert not re.search(r'^from .* import \*', _src('all'), re.M)
