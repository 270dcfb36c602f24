"A training on image files that is killed goes on in a new process as if nothing had been; two processes store the same"
import signal, subprocess, sys
import pytest, torch
from items_script import every
from test_stored_items import write_pngs

pytestmark = pytest.mark.slow

@pytest.fixture(scope='module')
def root(tmp_path_factory): return write_pngs(tmp_path_factory.mktemp('png'), n=80)

def run(repo, *args):
    return subprocess.run([sys.executable, repo/'tests/continual/items_script.py', *args], cwd=repo,
                          capture_output=True,
                          text=True)

def test_killed_and_resumed(repo, root, tmp_path):
    for o in 'ab': (tmp_path/o).mkdir()
    r = run(repo, root, tmp_path/'a')
    assert r.returncode==0, r.stderr[-3000:]
    r = run(repo, root, tmp_path/'b', 'kill')
    assert r.returncode==-signal.SIGKILL, r.stderr[-3000:]
    r = run(repo, root, tmp_path/'b', 'resume')
    assert r.returncode==0, r.stderr[-3000:]
    a,b = (torch.load(tmp_path/k/'rank0.pt', weights_only=True)['er'] for k in 'ab')
    assert a['model'].keys()==b['model'].keys() and all(torch.equal(v, b['model'][k]) for k,v in a['model'].items())
    assert torch.equal(a['matrix'], b['matrix']) and a['size']==20
    own = {k.rpartition('.')[2]:v for k,v in a['model'].items() if 'replay' in k}
    assert (own['item']>0).all() and 'x' not in own

def test_two_processes(repo, root, tmp_path, two_ranks):
    r = two_ranks(repo/'tests/continual/items_script.py', root, tmp_path, cwd=repo)
    assert r.returncode==0, r.stdout[-3000:]+r.stderr[-6000:]
    a,b = (torch.load(tmp_path/f'rank{i}.pt', weights_only=True) for i in range(2))
    assert {*a}=={*every}
    for m in every:
        for k,v in a[m]['model'].items(): assert torch.equal(v, b[m]['model'][k]), (m,k)
        assert a[m]['size']==20 and torch.equal(a[m]['matrix'], b[m]['matrix'])
