"memo-train and memo-eval as processes: help, mistakes, resuming after SIGKILL, a full disk, several processes"
import json, os, resource, signal, subprocess, sys, time
from pathlib import Path
import pandas as pd, pytest
from helpers.own_parts import OWN, OWN_YAML
from safetensors import safe_open

interrupt = Path(__file__).with_name('interrupt.py')

TINY = '''
name: tiny
seeds: [0]
data: {name: digits_lt, n_max: 30, ratio: 6, valid: 5, test: 10, size: 8}
memory: {size: 64, policy: reservoir, momentum: 0.1, head: vote, k: [3, 5], whiten: [false, true]}
train: {epochs: 3, lr: 1e-2, bs: 16, monitor: valid_loss, phase2: {epochs: 2, bs: 8, momentum: 0.99}}
compare: [logit_adjusted]
'''

FINDINGS = '''
name: tiny
seeds: [0]
data: {name: chest_mosaic, patients: 60, root: "%s", size: 32, rotate: 10, valid: 0.25}
model: {name: chest, arch: tile_cnn, hidden: 16}
memory: {size: 64, policy: rarity, momentum: 0.9, head: add, k: 3}
train: {epochs: 3, freeze_epochs: 1, lr: find, bs: 16, abnormal_only: true, monitor: valid_loss, phase2: {epochs: 2, momentum: 0.99}}
'''

@pytest.fixture(scope='module')
def yml(tmp_path_factory):
    p = tmp_path_factory.mktemp('with a space')/'tiny.yaml'
    p.write_text(TINY)
    return p

@pytest.fixture(scope='module')
def findings_yml(tmp_path_factory, fashion_root, nih_table, mnist_digits):
    p = tmp_path_factory.mktemp('findings')/'tiny.yaml'
    p.write_text(FINDINGS%(p.parent/'trees'))
    return p

@pytest.fixture(scope='module')
def whole(yml, tool):
    "A run that nothing interrupted"
    r = tool('memo-train', yml, f'runs={yml.parent}/whole')
    assert r.returncode==0, r.stderr
    return yml.parent/'whole/tiny',r

def contents(d):
    "Everything in a run folder that must not depend on interruptions"
    h = pd.read_csv(d/'history.csv').drop(columns='seconds')
    with safe_open(d/'model.safetensors', 'pt') as f: w = {k:f.get_tensor(k).tolist() for k in f.keys()}
    return (d/'metrics.json').read_text(),h.to_csv(),w,(d/'predictions.csv').read_text(),(d/'results.md').read_text(),(
        d/'results.csv').read_text(),*(o.read_text() for o in d.glob('differences.csv'))

def one_line(r, *words):
    assert r.returncode==2, (r.returncode, r.stdout, r.stderr)
    assert len(r.stderr.strip().splitlines())==1 and r.stderr.startswith('error: '), r.stderr
    for w in words: assert w in r.stderr, r.stderr

@pytest.mark.parametrize('name', ['memo-train','memo-eval'])
def test_help_is_quick(tool, name):
    wall,cpu = [],[]
    for _ in range(4):
        t,u = time.perf_counter(),resource.getrusage(resource.RUSAGE_CHILDREN)
        r = tool(name, '--help', cold=True)
        v = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall.append(time.perf_counter()-t); cpu.append(v.ru_utime+v.ru_stime-u.ru_utime-u.ru_stime)
    assert r.returncode==0 and 'usage' in r.stdout
    assert min(wall)<.5 or min(cpu)<.5      # the second for a machine with other work

def test_the_first_line_is_quick(yml, tmp_path):
    "What is trained, and where that goes, is said before torch is imported"
    wall,cpu = [],[]
    for _ in range(3):
        t = time.perf_counter()
        cmd = [sys.executable, Path(sys.executable).parent/'memo-train', yml, 'quickstart', f'runs={tmp_path}']
        with subprocess.Popen(cmd, stdout=subprocess.PIPE, text=True) as p:
            first = p.stdout.readline()
            wall.append(time.perf_counter()-t)
            p.kill()
            u = os.wait4(p.pid, 0)[2]
            cpu.append(u.ru_utime+u.ru_stime)
    assert first==f"tiny: small_cnn on digits_lt, memory SlotBank + vote, seed 0; run folder {tmp_path/'tiny'}\n"
    assert min(wall)<.5 or min(cpu)<.5

@pytest.mark.parametrize('args,words', [
    (['nope.yaml'], ['nope.yaml','no such file']),
    (['{yml}','memory.sise=3'], ['did you mean memory.size?']),
    (['{yml}','train.epochs=x','--print-config'], ['whole number']),
    (['memory.k=3'], ['the YAML file comes first']),
    ([], ['no experiment given']),
    (['--resume','/nope'], ['/nope','no such run folder']),
    (['{yml}','--resume','/nope'], ['takes the run folder alone']),
])
def test_mistakes_are_one_line(tool, yml, args, words):
    one_line(tool('memo-train', *[a.format(yml=yml) for a in args]), *words)

def test_what_libraries_say_when_they_are_imported_is_not_shown(tool, tmp_path):
    "In a new process: a fork of the warm one has them imported"
    (tmp_path/'config.yaml').write_text('name: x\n')
    one_line(tool('memo-eval', tmp_path, cold=True), 'metrics.json: no such file')

def test_bad_yaml(tool, tmp_path):
    (tmp_path/'x.yaml').write_text('a: [1,\nb: 2')
    one_line(tool('memo-train', tmp_path/'x.yaml'), 'x.yaml, line 2: not valid YAML')

def test_debug_shows_the_traceback(tool):
    r = tool('memo-train', 'nope.yaml', '--debug')
    assert r.returncode!=0 and 'Traceback' in r.stderr

def test_eval_of_nothing(tool, tmp_path): one_line(tool('memo-eval', tmp_path), 'no run folder')

def test_print_config_reads_back(tool, yml, tmp_path):
    r = tool('memo-train', yml, '--print-config', 'memory.k=5', 'seed=3')    # overrides after an option too
    assert r.returncode==0 and 'seeds: [3]' in r.stdout
    (tmp_path/'y.yaml').write_text(r.stdout)
    assert tool('memo-train', tmp_path/'y.yaml', '--print-config').stdout==r.stdout

def test_print_config_says_what_keys_are_for(tool, yml):
    r = tool('memo-train', yml, '--print-config')
    assert '    size: 64  # Number of slots' in r.stdout.splitlines(
        ) and '  lr: 0.01  # Peak of the cycle; find: the valley of lr_find' in r.stdout.splitlines()

def test_module(python, yml):
    r = python('-m', 'memo.cli', 'train', yml, '--print-config')
    assert r.returncode==0 and 'name: tiny' in r.stdout
    r = python('-m', 'memo.cli', 'trian', cold=True)
    assert r.returncode==2 and 'train, eval' in r.stderr and 'Traceback' not in r.stderr

@pytest.mark.slow
def test_dry_run(tool, yml, tmp_path):
    r = tool('memo-train', yml, '--dry-run', f'runs={tmp_path}/runs')
    assert r.returncode==0 and 'two batches' in r.stdout, r.stderr
    assert not (tmp_path/'runs').exists()

@pytest.mark.slow
def test_a_run_and_its_evaluation(tool, whole):
    d,r = whole
    lines = [o for o in r.stdout.splitlines() if ' | ' in o]
    assert len(lines)==6 and '| phase1 1/3 ' in lines[1] and '| phase2 2/2 ' in lines[5]
    assert lines[0].split()[4:9]==['loss','valid','accuracy','without','hit']
    assert 'plain network + memory - plain network' in r.stdout and 'Warning' not in r.stderr
    e = tool('memo-eval', d)
    text,where = e.stdout.strip().rsplit('\n\n', 1)
    assert e.returncode==0 and text in r.stdout and (Path(where)/'predictions.csv').read_text()==(
        d/'predictions.csv').read_text()
    one_line(tool('memo-train', d.parents[1]/'tiny.yaml', f'runs={d.parent}'), 'is finished', '--overwrite', 'name=')

@pytest.mark.slow
@pytest.mark.parametrize('moment', [pytest.param('mid', marks=pytest.mark.nightly), 'saving',
                                    pytest.param('between', marks=pytest.mark.nightly)])
def test_killed_and_resumed(tool, python, yml, whole, moment):
    runs = yml.parent/moment
    r = python(interrupt, moment, yml, f'runs={runs}')
    assert r.returncode==-signal.SIGKILL, r.stderr
    d = runs/'tiny'
    assert (d/'config.yaml').exists() and not (d/'metrics.json').exists()
    if moment=='saving': assert list((d/'checkpoints').glob('.*.part'))
    one_line(tool('memo-eval', d), 'metrics.json', '--resume')
    one_line(tool('memo-train', yml, f'runs={runs}'), 'is not finished', '--resume')
    r = tool('memo-train', '--resume', d, render=False)
    assert r.returncode==0, r.stderr
    assert contents(d)==contents(whole[0])
    assert not [p for p in d.rglob('.*')]

@pytest.mark.nightly
@pytest.mark.parametrize('moments', [['mid'], pytest.param(['between'], marks=pytest.mark.nightly)])
def test_killed_and_resumed_on_findings(tool, python, findings_yml, moments):
    yml = findings_yml
    assert tool('memo-train', yml, f'runs={yml.parent}/whole', '--overwrite', render=False).returncode==0
    for o in moments:
        r = python(interrupt, o, yml, f'runs={yml.parent}/{o}')
        assert r.returncode==-signal.SIGKILL, r.stderr
        r = tool('memo-train', '--resume', yml.parent/o/'tiny', render=False)
        assert r.returncode==0, r.stderr
        for f in ('lr.json','classes.csv','split.csv'):
            assert (yml.parent/o/'tiny'/f).read_bytes()==(yml.parent/'whole/tiny'/f).read_bytes()
        assert contents(yml.parent/o/'tiny')==contents(yml.parent/'whole/tiny')

@pytest.mark.slow
def test_parts_of_ones_own(tool, python, tmp_path):
    """A run with a part of each kind from a folder outside: trained, killed, resumed and evaluated by processes
    that stand elsewhere"""
    d = tmp_path/'elsewhere'
    (d/'pkg_h1').mkdir(parents=True)
    (d/'pkg_h1/__init__.py').write_text('')
    (d/'pkg_h1/mine.py').write_text(OWN)
    (d/'own.yaml').write_text(OWN_YAML.replace('epochs: 1', 'epochs: 3'))
    r = tool('memo-train', d/'own.yaml', f'runs={tmp_path}/whole', cwd='/')
    assert r.returncode==0 and 'my_metric' in (tmp_path/'whole/own/history.csv').read_text(), r.stderr
    k = python(interrupt, 'mid', d/'own.yaml', f'runs={tmp_path}/cut', cwd='/')
    assert k.returncode==-signal.SIGKILL, k.stderr
    r2 = tool('memo-train', '--resume', tmp_path/'cut/own', cwd='/', render=False)
    assert r2.returncode==0, r2.stderr
    assert contents(tmp_path/'cut/own')[1:4]==contents(tmp_path/'whole/own')[1:4]
    e = tool('memo-eval', tmp_path/'whole/own', cwd='/')
    assert e.returncode==0 and e.stdout.strip().rsplit('\n\n', 1)[0] in r.stdout, e.stderr
    env = json.loads((tmp_path/'whole/own/env.json').read_text())
    assert str(d/'pkg_h1/mine.py') in json.dumps(env)

@pytest.mark.slow
def test_full_disk(tool, python, yml, whole):
    "Files may not grow beyond 150 kB: the first checkpoint does not fit"
    runs = yml.parent/'full'
    limited = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name='__main__')
"""
    r = python('-c', limited, Path(sys.executable).with_name('memo-train'), yml, f'runs={runs}')
    one_line(r, 'cannot write', 's0_e0.pt')
    d = runs/'tiny'
    assert not list(d.rglob('*.part')) and not list(d.rglob('s0_e*.pt'))
    assert tool('memo-train', '--resume', d, render=False).returncode==0
    assert contents(d)==contents(whole[0])

@pytest.mark.slow
def test_ctrl_c_while_something_is_imported(tmp_path):
    "Packages try imports with a bare `except`, which takes ctrl-c for a package that is missing"
    (tmp_path/'slow.py').write_text("""
import pathlib, time
from memo.models.small import small_cnn
try:
    pathlib.Path('here').touch()
    time.sleep(100)
except: pass
def net(c_in, n_classes): return small_cnn(c_in, n_classes)
""")
    (tmp_path/'slow.yaml').write_text('model: slow.net\ntrain: {epochs: 1}')
    train = Path(sys.executable).with_name('memo-train')
    def usual(): signal.signal(signal.SIGINT, signal.default_int_handler)     # jobs in the background ignore it
    p = subprocess.Popen([sys.executable, train, 'slow.yaml'], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
                         stdout=subprocess.DEVNULL, preexec_fn=usual)
    try:
        until = time.time()+100
        while not (tmp_path/'here').exists() and time.time()<until: time.sleep(.02)
        p.send_signal(signal.SIGINT)
        err = p.communicate(timeout=20)[1]
    finally: p.kill()
    assert p.returncode==130 and 'interrupted' in err and 'Traceback' not in err and not (tmp_path/'runs').exists()

def test_ctrl_c(python, yml):
    r = python(interrupt, 'ctrl_c', yml, f'runs={yml.parent}/ctrlc')
    assert r.returncode==130 and 'interrupted' in r.stderr and '--resume' in r.stderr and 'Traceback' not in r.stderr

@pytest.mark.nightly
def test_the_second_process_waits_for_the_folder(two_ranks, findings_yml, tmp_path):
    "The first one is slow: what the other writes before it has made the folder would be taken for somebody else's"
    late = tmp_path/'late.py'
    late.write_text(f"""
import time
import memo.experiment.run as e
from memo.experiment.config import load_config
claim = e.claim_folder
def slow(*args):
    time.sleep(4)
    claim(*args)
e.claim_folder = slow
e.run_experiment(load_config({str(findings_yml)!r}, ['runs={tmp_path}/ddp']))
""")
    r = two_ranks(late)
    assert r.returncode==0 and (tmp_path/'ddp/tiny/results.md').is_file(), r.stderr[-3000:]

@pytest.mark.nightly
@pytest.mark.parametrize('which,cold',
                         [('findings_yml',False), *(pytest.param('yml', o, marks=pytest.mark.nightly)
                                                    for o in (False,True))])
def test_two_processes(tool, two_ranks, which, cold, request):
    "Two gloo processes on the CPU, started as the README says"
    yml = request.getfixturevalue(which)
    runs = yml.parent/f'ddp{cold}'
    r = two_ranks('-m', 'memo.cli', 'train', yml, f'runs={runs}', cold=cold)
    assert r.returncode==0, r.stderr[-3000:]
    # one process speaks
    assert len([o for o in r.stdout.splitlines() if '| phase' in o])==(5 if which=='yml' else 6)
    m = json.loads((runs/'tiny/metrics.json').read_text())
    assert sum(m['classes'].values())>0 and json.loads((runs/'tiny/env.json').read_text())['processes']==2
    e = tool('memo-eval', runs/'tiny', render=False)
    *_,text,where = e.stdout.strip().split('\n\n')
    assert e.returncode==0 and text in r.stdout and (Path(where)/'predictions.csv').read_text()==(
        runs/'tiny/predictions.csv').read_text()
