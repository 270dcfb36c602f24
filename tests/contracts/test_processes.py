"""Two processes: every head on every bank ends with the same memory in both, and it is that of one process which
was offered it all"""
import pytest, torch
from .made import build, pairs

pytestmark = pytest.mark.slow

@pytest.fixture(scope='module')
def ranks(tmp_path_factory, two_ranks, repo):
    out = tmp_path_factory.mktemp('ranks')
    r = two_ranks(repo/'tests/contracts/two_ranks.py', out, cwd=repo)
    assert r.returncode==0, r.stdout[-3000:]+r.stderr[-6000:]
    return [torch.load(out/f'rank{i}.pt', weights_only=True) for i in range(2)]

@pytest.mark.parametrize('bank,head', pairs())
def test_both_ranks_have_the_same(ranks, bank, head):
    a,b = (r[f'{bank}-{head}'] for r in ranks)
    assert a['model'].keys()==b['model'].keys() and any('memory.bank' in k for k in a['model'])
    for k in a['model']:
        # statistics of batch norm are each rank's own
        if 'norm.running' not in k: assert torch.equal(a['model'][k], b['model'][k]), k
    assert a['names']==b['names'] and 'memory_fill' in a['names']

@pytest.mark.parametrize('bank,head', pairs())
def test_it_is_what_one_process_would_have(ranks, bank, head):
    a,b = (r[f'{bank}-{head}'] for r in ranks)
    alone = build('bank', bank, n_classes=10)
    if alone.learned: pytest.skip('its rows are learned too, so writes alone do not make them')
    assert len(a['steps'])==len(b['steps'])>0
    for one,two in zip(a['steps'], b['steps']):
        assert all(o is t is None or torch.equal(o, t)
                   for o,t in zip(one, two)), 'the ranks were offered different rows'
        alone.write(*one)
    seen = torch.cat([o[3] for o in a['steps']])
    assert len(seen.unique())==48 and len(seen)==2*48
    at = 'memory.bank.'
    got = {k.partition(at)[2]:v for k,v in a['model'].items() if at in k}
    want = alone.state_dict()
    assert got.keys()==want.keys()
    for k,v in want.items():
        if k not in ('_extra_state','draws'): assert torch.equal(got[k], v), k
