"Fisher information, teacher, exemplars and means are the same in both of two processes"
import pytest, torch

@pytest.mark.slow
def test_both_processes_hold_the_same(two_ranks, tmp_path, repo):
    r = two_ranks(repo/'tests/continual/ranks_of_methods.py', tmp_path, cwd=repo)
    assert r.returncode==0, r.stdout[-3000:]+r.stderr[-6000:]
    a,b = (torch.load(tmp_path/f'rank{i}.pt', weights_only=True) for i in range(2))
    for n in a:
        assert a[n].keys()==b[n].keys() and any(' ' in k for k in a[n])
        for k in a[n]: assert torch.equal(a[n][k], b[n][k]), (n, k)
