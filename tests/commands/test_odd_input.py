"Commands as processes: mistakes are a line and exit status 2, faults of memo's one and 1; nobody may be listening"
import json, os, shlex, subprocess, sys
from pathlib import Path
import pytest

TINY = '''
name: tiny
seeds: [0]
data: {name: digits_lt, n_max: 6, ratio: 2, valid: 2, test: 2, size: 8}
memory: {size: 16, policy: fifo}
train: {epochs: 2, lr: 1e-2, bs: 16}
plots: {save: false}
'''

def one_line(r, status=2):
    assert r.returncode==status, (r.returncode, r.stdout, r.stderr)
    ls = r.stderr.strip().splitlines()
    assert len(ls)==1 and ls[0].startswith('error: ') and len(ls[0])<=307, r.stderr
    return ls[0]

@pytest.mark.parametrize('name,args', [
    ('memo-train', ['a\nb.yaml']), ('memo-train', ['x'*5000]), ('memo-train', ['quickstart', 'data.size='+'9'*5000]),
    ('memo-train', ['quickstart', 'x'*9000]), ('memo-train', ['--resume', 'x'*5000]),
    ('memo-eval', ['/etc/passwd']), ('memo-eval', ['--model-path', '/etc/passwd']), ('memo-bank', ['/etc/passwd']),
    ('memo-bank', ['x'*5000]), ('memo-speed', ['/etc'])])
def test_arguments_that_are_none(tool, tmp_path, name, args): one_line(tool(name, *args, cwd=tmp_path))

@pytest.mark.parametrize('name,args', [
    ('memo-bank', ('x', '--k', 'y'*9000)), ('memo-bank', ('x', '--'+'y'*9000)), ('memo-bank', ('x', '--k', '9'*9000)),
    ('memo-eval', ('x', '--q='+'y'*9000)), ('memo-speed', ['x']*5000), ('memo-cache', ('a', 'b', 'y'*9000)),
    ('memo-train', ('--y\ny\x1b[2J',)), ('memo-mosaic', ('x', '--patients=y'+'ü'*9000))])
def test_what_the_parser_of_arguments_says_is_short_too(tool, name, args):
    "It repeats what it does not know, however long, and however much of it there is"
    r = tool(name, *args)
    said = r.stderr.splitlines()[-1]
    assert r.returncode==2 and 'Traceback' not in r.stderr
    assert said.startswith(f'{name}: error: ') and len(said)<=300 and said.isprintable(), r.stderr

@pytest.mark.parametrize('args', [('--xtra=#k#y',), ('--x=#a',), ('--pdb',)])
def test_what_the_parser_has_for_its_own_developers_is_unknown(tool, args):
    r = tool('memo-bank', 'x', *args)
    assert r.returncode==2 and 'Traceback' not in r.stderr and 'unrecognized arguments' in r.stderr

OWN = '''
def broken(bs=8):
    "Loaders that cannot be made"
    return None.loaders

def nothing(bs=8):
    "No loaders"

def no_c(bs=8):
    "Loaders that do not say how many classes there are"
    from fastai.data.load import DataLoader
    from fastai.data.core import DataLoaders
    return DataLoaders(*(DataLoader([(1., 2)]*8, bs=bs) for _ in range(3)))
'''

@pytest.fixture
def own(tmp_path):
    (tmp_path/'owns.py').write_text(OWN)
    (tmp_path/'x.yaml').write_text('data: owns.broken\nmemory: null')
    return tmp_path

def test_code_of_ones_own_is_no_fault_of_memo(tool, own):
    e = one_line(tool('memo-train', 'x.yaml', '--dry-run', cwd=own))
    assert 'owns.py:4 in broken' in e and "'NoneType' object has no attribute" in e and 'fault of memo' not in e
    r = tool('memo-train', 'x.yaml', '--dry-run', '--debug', cwd=own)
    assert 'Traceback' in r.stderr and r.returncode==1

def test_data_that_are_no_loaders(tool, own):
    assert 'data owns.nothing gives None; DataLoaders' in one_line(tool('memo-train', 'x.yaml', 'data=owns.nothing',
                                                                        '--dry-run', cwd=own))
    e = one_line(tool('memo-train', 'x.yaml', 'data=owns.no_c', '--dry-run', cwd=own))
    assert 'data owns.no_c: its loaders have no c' in e

def test_a_fault_of_memo_says_so(python, tmp_path):
    code = ('import sys; from memo import cli; import memo.experiment.shipped as s\n'
            'def f(*a): raise KeyError("x"*9000)\n'
            'def run(): s.about(3.5)\n'
            'sys.exit(cli.guarded(run, True, False))')
    e = one_line(python('-c', code), 1)
    assert 'this is a fault of memo' in e and 'TypeError' in e and 'shipped.py:' in e and '--debug' in e

def test_memory_that_is_not_there(python):
    code = ('import sys; from memo import cli\ndef run(): raise MemoryError\nsys.exit(cli.guarded(run, True, False))')
    assert 'not enough memory' in one_line(python('-c', code))

def command(*args): return [sys.executable, Path(sys.executable).parent/'memo-train', *args]

def test_nobody_reads_what_is_shown(tmp_path):
    "As `| head -1`: the first line, and no traceback"
    cmd = shlex.join(map(str, command('quickstart', '--print-config')))
    cmd = ['bash', '-c', f'set -o pipefail; {cmd} | head -1']
    r = subprocess.run(cmd, capture_output=True, text=True, cwd=tmp_path)
    assert r.stdout.startswith('name: ') and r.stderr=='' and r.returncode==0

@pytest.mark.slow
@pytest.mark.parametrize('out,env', [('/dev/full', {}), ('pipe', {}), ('file', {'PYTHONIOENCODING':'ascii'})])
def test_a_training_goes_on_whatever_becomes_of_its_lines(tmp_path, out, env):
    (tmp_path/'x.yaml').write_text(TINY)
    cmd = command('x.yaml', 'name=Zürich', f'runs={tmp_path}')
    if out=='pipe':
        r,w = os.pipe()
        os.close(r)
        with os.fdopen(w, 'w') as f: p = subprocess.run(cmd, stdout=f, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    else:
        with open(tmp_path/'out.txt' if out=='file' else out, 'w') as f:
            p = subprocess.run(cmd, stdout=f, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
                               env={**os.environ, **env})
    assert p.returncode==0 and p.stderr=='', p.stderr
    assert json.loads((tmp_path/'Zürich/metrics.json').read_text())['rows']
    if out=='file': assert 'Z\\xfcrich' in (tmp_path/'out.txt').read_text()

@pytest.mark.parametrize('key', ['memory.group=3', 'memory.item=[]', 'memory.group=fifo', 'memory.item=patient',
                                 'data.size=1'])
def test_what_no_item_has_is_refused_before_anything_is_written(tool, tmp_path, key):
    (tmp_path/'x.yaml').write_text(TINY)
    e = one_line(tool('memo-train', 'x.yaml', 'runs=runs', key, cwd=tmp_path))
    assert key.partition('=')[0] in e and not (tmp_path/'runs').exists()
