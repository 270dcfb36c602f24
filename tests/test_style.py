"The house style: fastai's own checker, code lines of at most 120 columns, few private functions, no long ones"
import ast, json, re
import pytest

LIMIT = 120
generated = ('_modidx.py','_parts.py')

def test_chkstyle(repo, python):
    "With the widths of this house: the checker's own are 160 for a line and 140 for a statement behind its `if`"
    run = ('import sys, chkstyle.core as c; c.MAX_LINE_LEN = c.COMBINE_WIDTH = 120; c.WRAP_WIDTH = 80; '
           'sys.argv = ["chkstyle","memo","nbs"]; c.cli()')
    r = python('-c', run, cwd=repo)
    assert r.returncode == 0, r.stdout+r.stderr

def _cells(p): return [''.join(c['source']) for c in json.loads(p.read_text())['cells'] if c['cell_type']=='code']
def _code(repo):
    "Path -> source, of notebooks (from which memo/ comes), what is written by hand, tests and benchmarks"
    nbs = {p:'\n'.join(_cells(p)) for p in sorted((repo/'nbs').rglob('*.ipynb')) if 'checkpoints' not in p.parent.name}
    files = [repo/'memo'/'all.py', repo/'setup.py',
             *(p for d in ('tests','benchmarks') for p in (repo/d).rglob('*.py'))]
    return {**nbs, **{p:p.read_text() for p in files}}

def _texts(src):
    "Numbers of the lines that are inside of a text of several lines (YAML, a table), docstrings apart"
    try: t = ast.parse(src)
    except SyntaxError: return set()        # cells with commands of the notebook
    docs = {id(n.body[0].value) for n in ast.walk(t) if isinstance(n, (ast.Module,ast.FunctionDef,ast.ClassDef))
            and n.body and isinstance(n.body[0], ast.Expr)}
    ns = [n for n in ast.walk(t) if isinstance(n, (ast.Constant,ast.JoinedStr)) and id(n) not in docs]
    return {i for n in ns if n.end_lineno>n.lineno for i in range(n.lineno, n.end_lineno+1)}

def _long(src):
    inside = None
    for i,l in enumerate(src.splitlines(), 1):
        if len(l)<=LIMIT: continue
        if inside is None: inside = _texts(src)
        if i not in inside: yield l

def test_a_long_line_is_found():
    x = 'x'*130
    assert [*_long(f"a = 1\nb = '{x}'")] == [f"b = '{x}'"]
    assert not [*_long(f"a = '''\n{x}\n'''")] and [*_long(f"def f():\n    '''a\n    {x}'''")]

def test_code_lines_have_120_columns(repo):
    long = [f'{p.relative_to(repo)}: {l.strip()[:60]}...' for p,s in _code(repo).items() for l in _long(s)]
    assert not long, f'{len(long)} lines are longer than {LIMIT}:\n'+'\n'.join(long[:20])

@pytest.fixture(scope='module')
def functions(repo):
    "Name, lines and place of every function of memo/"
    res = []
    for p in sorted((repo/'memo').rglob('*.py')):
        if p.name in generated: continue
        fs = [n for n in ast.walk(ast.parse(p.read_text())) if isinstance(n, ast.FunctionDef)]
        res += [(n.name, n.end_lineno-n.lineno+1, p.relative_to(repo)) for n in fs]
    return res

def test_few_functions_are_private(functions):
    own = [n for n,*_ in functions if n.startswith('_') and not n.endswith('__')]
    assert len(own) < len(functions)/5, f'{len(own)} of {len(functions)}'

def test_no_function_is_long(functions):
    long = [f'{p}: {n} has {k} lines' for n,k,p in functions if k>40]
    assert not long, long

def half_merged(text): return bool(re.search(r'^\W*([<>])\1{6} \S', text, re.M))

def test_no_text_has_both_sides_of_a_merge(repo):
    "A page of results once had"
    assert half_merged('a\n<'+'<<<<<< HEAD\nb') and half_merged('"\\n",\n    ">'+'>>>>>> x"')
    assert not half_merged('>>> f(1)') and not half_merged('======= x')
    kinds = '.py','.md','.ipynb','.yaml','.cfg','.ini','.toml','.txt'
    files = [p for d in ('memo','nbs','tests','experiments','benchmarks') for p in (repo/d).rglob('*.*')]
    files = [p for p in [*files, *repo.glob('*.*')] if p.suffix in kinds and p.is_file()]
    assert not (found := [p for p in files if half_merged(p.read_text(encoding='utf-8'))]), found
