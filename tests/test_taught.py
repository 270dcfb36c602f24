"Every public name is shown at work in the notebook of its module; code of tutorials has at most 88 columns"
import ast, json, re
from pathlib import Path
import pytest
from memo.registry import known

root = Path(__file__).parents[1]
TUTORIAL = 88

def public_names():
    "The names of `from memo.all import *` and their modules: those that memo/all.py imports, and registered parts"
    tree = ast.parse((root/'memo/all.py').read_text(encoding='utf-8'))
    names = {(a.asname or a.name):n.module for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
    parts = [p for k in ('bank','head','data','model','loss','callback') for p in known(k).values()]
    names |= {p.symbol:p.module.removeprefix('memo.') for p in parts if p.module.startswith('memo.')}
    return {k:m for k,m in names.items() if not k.startswith('_')}

def cells(nb): return [c for c in json.loads(nb.read_text(encoding='utf-8'))['cells'] if c['cell_type']=='code']
def source(c): return ''.join(c['source'])
def exported(c): return source(c).startswith('#| export')
def hidden(c): return bool(re.match(r'#\|\s*hide', source(c)))

def used(src, name): return any(isinstance(o, ast.Name) and o.id==name for o in ast.walk(ast.parse(src)))

def shown(cs, name):
    "Is `name` used in an example with an output, or is there one before the next definition?"
    for i,c in enumerate(cs):
        if exported(c) or hidden(c) or not used(source(c), name): continue
        for o in cs[i:]:
            if exported(o): break
            if o['outputs'] and not hidden(o): return True
    return False

def notebook(module):
    *folder,stem = module.split('.')
    nb, = (root/'nbs'/Path(*folder)).glob(f'[0-9][0-9]_{stem}.ipynb')
    return nb

def cell(src, out=False): return dict(cell_type='code', source=[src], outputs=[{}] if out else [])
@pytest.mark.parametrize('cs,ok', [
    ([cell('f(1)', True)], True), ([cell('f(1)')], False), ([cell('a = f'), cell('a(1)', True)], True),
    ([cell('# of f\n1', True)], False), ([cell('#| export\ndef f(): f()', True)], False),
    ([cell('f(1)'), cell('#| export\ng = 1'), cell('g', True)], False), ([cell('#| hide\nf(1)', True)], False),
    ([cell('from a import f', True)], False), ([], False)])
def test_what_shows_a_name(cs, ok): assert shown(cs, 'f')==ok

def test_every_public_name_is_shown():
    names = public_names()
    assert len(names)>200 and {'SlotBank','MemoryCallback','digits_lt'}<={*names}
    of = {m:cells(notebook(m)) for m in {*names.values()}}
    lack = sorted(f'{k} (nbs of {m})' for k,m in names.items() if not shown(of[m], k))
    assert not lack, 'no example with its output: '+', '.join(lack)

def test_code_of_tutorials_is_narrow():
    wide = [f'{nb.name}: {l}' for nb in sorted((root/'nbs').glob('5*.ipynb')) for c in cells(nb)
            for l in source(c).splitlines() if len(l)>TUTORIAL]
    assert not wide, f'code lines above {TUTORIAL} columns:\n'+'\n'.join(wide)
