"A stream that is killed with SIGKILL goes on in a new process; two processes measure the same matrix"
import signal, subprocess, sys
import pytest, torch

pytestmark = pytest.mark.slow

def run(repo, out, *args):
    out.mkdir(exist_ok=True)
    script = repo/'tests/continual/stream_script.py'
    return subprocess.run([sys.executable, script, out, *args], cwd=repo, capture_output=True, text=True)

def equal(a, b):
    assert a['model'].keys()==b['model'].keys() and all(torch.equal(v, b['model'][k]) for k,v in a['model'].items())
    assert a['n']==b['n'] and all(torch.equal(a[k], b[k]) for k in ('table','online'))

def test_killed_and_resumed(repo, tmp_path):
    r = run(repo, tmp_path/'a')
    assert r.returncode==0, r.stderr[-3000:]
    r = run(repo, tmp_path/'b', 'kill')
    assert r.returncode==-signal.SIGKILL, r.stderr[-3000:]
    assert not (tmp_path/'b'/'rank0.pt').exists()
    r = run(repo, tmp_path/'b', 'resume')
    assert r.returncode==0, r.stderr[-3000:]
    a,b = (torch.load(tmp_path/k/'rank0.pt', weights_only=True) for k in 'ab')
    equal(a, b)
    assert len(a['model']['buffer.x'])==9 and a['n']==15

def test_two_processes(repo, tmp_path, two_ranks):
    r = two_ranks(repo/'tests/continual/stream_script.py', tmp_path, cwd=repo)
    assert r.returncode==0, r.stdout[-3000:]+r.stderr[-6000:]
    a,b = (torch.load(tmp_path/f'rank{i}.pt', weights_only=True) for i in range(2))
    equal(a, b)
    assert len(a['table'])==3*(3+3+a['n']) and a['n']>=6      # after each, in test and validation, and within
    assert a['table'].isfinite().all() and a['table'].max()>.5 and not a['left']
