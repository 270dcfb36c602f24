"Two processes: keys, wins and ages of a MemoryLinear are bit-equal in both, and those of one process with all rows"
import pytest, torch
from memory_linear_script import cases, layer_of, train

pytestmark = pytest.mark.slow

@pytest.fixture(scope='module')
def ranks(tmp_path_factory, two_ranks, repo):
    out = tmp_path_factory.mktemp('ranks')
    r = two_ranks(repo/'tests/layers/memory_linear_script.py', out, cwd=repo)
    assert r.returncode==0, r.stdout[-3000:]+r.stderr[-6000:]
    return [torch.load(out/f'rank{i}.pt', weights_only=True) for i in range(2)]

@pytest.mark.parametrize('case', cases)
def test_both_have_the_same(ranks, case):
    a,b = (o[case] for o in ranks)
    assert a.keys()==b.keys()>={'keys','mu','eta','wins','scrambles','memories'}
    for k in a: assert torch.equal(a[k], b[k]), k

@pytest.mark.parametrize('case', cases)
def test_it_is_what_the_rules_say_of_the_joint_batch(ranks, case):
    layer = layer_of(case)
    want = train(case, layer, layer, slice(None), 1)
    got = ranks[0][case]
    assert int(want['scrambles'].sum())>3 and int(want['wins'].sum())==60
    for k in want: torch.testing.assert_close(got[k], want[k], atol=1e-5, rtol=1e-5)
