"Two processes whose rows leave early, other rows in each: equal banks, and the answers of the whole network"
import pytest, torch

@pytest.mark.slow
def test_two_ranks(tmp_path, two_ranks, repo):
    r = two_ranks(repo/'tests/training/early_exit_script.py', tmp_path, cwd=repo)
    assert r.returncode==0, r.stdout[-3000:]+r.stderr[-6000:]
    a,b = (torch.load(tmp_path/f'rank{i}.pt', weights_only=True) for i in range(2))
    assert a['model'].keys()==b['model'].keys() and all(torch.equal(v, b['model'][k]) for k,v in a['model'].items())
    torch.testing.assert_close(a['got'], a['whole'], atol=1e-5, rtol=1e-5)
    assert torch.equal(a['got'], b['got']) and torch.equal(a['preds'], b['preds'])
    # gathered in another order
    near = torch.cdist(a['whole'].softmax(1), a['preds'].float()).amin(1)
    assert near.max()<1e-3 and len(a['preds'])>=41
    assert a['valid']==pytest.approx(b['valid'], abs=1e-5)
    assert a['valid']==pytest.approx(a['fitted'][1:] if len(a['fitted'])==3 else a['fitted'], abs=1e-3)
    # of 41 images, each rank's are 21 with one twice, validated and predicted
    assert 0<sum(a['rows'])<42 and 0<sum(b['rows'])<42
