"A folder imports only from folders before it, a module only from modules whose notebooks come before its own"
import ast, json, re
from pathlib import Path
import pytest

root = Path(__file__).parents[1]
# the architecture, from the ground up; '' is the top level: core, schema and registry at the bottom, cli at the top
folders = 'metrics banks data heads layers models training continual evaluation plots experiment'.split()

def _exp(nb):
    "The module that notebook `nb` exports, `None` for a page"
    src = '\n'.join(''.join(c['source']) for c in json.loads(nb.read_text(encoding='utf-8'))['cells']
                    if c['cell_type']=='code')
    m = re.search(r'^#\|\s*default_exp\s+(\S+)', src, re.M)
    return m and m.group(1)

def _resolve(n, package):
    "The modules that an import names, relative ones within `package`"
    if isinstance(n, ast.Import): return [a.name for a in n.names]
    base = n.module or ''
    if n.level:
        up = ['memo',*package][:1+len(package)-(n.level-1)]
        base = '.'.join([*up, *([base] if base else [])])
    return [f'{base}.{a.name}' if base=='memo' or base.removeprefix('memo.') in folders else base
            for a in n.names] if base.split('.')[0]=='memo' else []

def _imports(src, package=()):
    "Modules of memo that `src` imports, inside functions too"
    for n in ast.walk(ast.parse(src)):
        if not isinstance(n, (ast.Import,ast.ImportFrom)): continue
        for o in _resolve(n, package):
            o = o.removeprefix('memo.') if o.startswith('memo.') else ''
            if o and not o.split('.')[-1].startswith('_'): yield o

def _notebooks():
    "Of modules, from the ground up"
    top = sorted((root/'nbs').glob('*.ipynb'))
    return [*[o for o in top if o.name<'1'], *[o for f in folders for o in sorted((root/'nbs'/f).glob('*.ipynb'))],
            *[o for o in top if o.name>='1']]

modules = [m for m in map(_exp, _notebooks()) if m]
def _file(m): return root/'memo'/Path(*m.split('.')).with_suffix('.py')
def _src(m): return _file(m).read_text(encoding='utf-8')

def test_imports_are_found():
    src = ('from memo.banks.slots import *\nfrom .base import attach\nfrom ..plots import results\nimport '
           'memo.data.longtail as d\n')
    src += 'def f(): from memo import cli\nimport torch, memo\nfrom ..core import MemoError'
    assert sorted(_imports(src, ['heads'])) == ['banks.slots','cli','core','data.longtail','heads.base','plots.results']

def test_every_folder_has_its_place():
    for d,kind in (('memo','*.py'),('nbs','*.ipynb')):
        own = {o.name for o in (root/d).iterdir() if o.is_dir() and [*o.glob(kind)] and o.name[0] not in '_.'}
        assert own<={*folders}, f'{d}/{own-{*folders}} stands nowhere in the order of folders'

@pytest.mark.parametrize('m', modules)
def test_notebook_and_module_lie_alike(m):
    nb, = [o for o in _notebooks() if _exp(o)==m]
    assert nb.relative_to(root/'nbs').parent==_file(m).relative_to(root/'memo').parent
    assert re.fullmatch(rf'\d\d_{_file(m).stem}', nb.stem)

def test_numbers_of_notebooks_are_unique():
    "Else the order of two of them hangs on their names"
    for d in {o.parent for o in _notebooks()}:
        n = [o.name[:2] for o in sorted(d.glob('[0-9]*.ipynb'))]
        assert len(n)==len({*n}), f'{d}: {n}'

@pytest.mark.parametrize('m', modules)
def test_imports_only_from_below(m):
    bad = [o for o in _imports(_src(m), m.split('.')[:-1]) if o not in modules[:modules.index(m)]]
    assert not bad, f'memo.{m} imports {bad}: not among the modules below it {modules[:modules.index(m)]}'

def _reached(names):
    "The modules that `names` import, and those that these import"
    done,todo = set(),[*names]
    while todo:
        if (m := todo.pop()) in done: continue
        done.add(m)
        todo += [o for o in _imports(_src(m), m.split('.')[:-1]) if o in modules]
    return done

def test_all_reaches_every_module():
    "Everything but the commands. Registered parts need no line in memo/all.py: they are there by themselves"
    from memo.registry import kinds, known
    parts = {p.module.removeprefix('memo.') for k in kinds for p in known(k).values() if p.module.startswith('memo.')}
    assert set(modules)-{'cli','arguments'} <= _reached([*_imports(_src('all')), *parts])
    import memo.all
    for k in ('bank','head','data','model','loss','callback'):
        for p in known(k).values(): assert not p.module.startswith('memo.') or hasattr(memo.all, p.symbol), p.symbol
    assert not re.search(r'^from .* import \*', _src('all'), re.M)
