"""Two processes: every head on every bank ends with the same memory in both, and it is that of one process which
was offered it all"""
import pytest, torch
from helpers.grid import grid
from .made import build, pairs, some_pairs

pytestmark = pytest.mark.slow

@pytest.fixture(scope='module')
def ranks(tmp_path_factory, two_ranks, repo):
    "What both ranks have of a head on a bank; those of the night are trained by themselves"
    done,few = {},some_pairs()
    def run(which):
        out = tmp_path_factory.mktemp('ranks')
        r = two_ranks(repo/'tests/contracts/two_ranks.py', out, which, cwd=repo)
        assert r.returncode==0, r.stdout[-3000:]+r.stderr[-6000:]
        return [torch.load(out/f'rank{i}.pt', weights_only=True) for i in range(2)]
    def get(bank, head):
        which = 'some' if (bank,head) in few else 'others'
        if which not in done: done[which] = run(which)
        return [r[f'{bank}-{head}'] for r in done[which]]
    return get

each = pytest.mark.parametrize('bank,head', grid(rows=pairs(), some=some_pairs()))

@each
def test_both_ranks_have_the_same(ranks, bank, head):
    a,b = ranks(bank, head)
    assert a['model'].keys()==b['model'].keys() and any('memory.bank' in k for k in a['model'])
    for k in a['model']:
        # statistics of batch norm are each rank's own
        if 'norm.running' not in k: assert torch.equal(a['model'][k], b['model'][k]), k
    assert a['names']==b['names'] and 'memory_fill' in a['names']

@each
def test_it_is_what_one_process_would_have(ranks, bank, head):
    a,b = ranks(bank, head)
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
    got.pop('centre', None)     # an exit's head follows it; it is taken off what the bank is offered
    want = alone.state_dict()
    assert got.keys()==want.keys()
    for k,v in want.items():
        if k not in ('_extra_state','draws'): assert torch.equal(got[k], v), k
