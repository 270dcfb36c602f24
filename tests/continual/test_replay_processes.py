"Two processes: the same examples in both, those of one process; each draws its own; weights stay equal"
import pytest, torch
from memo.continual.buffers import Exemplars
from replay_script import every

pytestmark = pytest.mark.slow

@pytest.fixture(scope='module')
def ranks(tmp_path_factory, two_ranks, repo):
    out = tmp_path_factory.mktemp('ranks')
    r = two_ranks(repo/'tests/continual/replay_script.py', out, cwd=repo)
    assert r.returncode==0, r.stdout[-3000:]+r.stderr[-6000:]
    return [torch.load(out/f'rank{i}.pt', weights_only=True) for i in range(2)]

@pytest.mark.parametrize('m', every)
def test_both_have_the_same(ranks, m):
    a,b = (o[m]['model'] for o in ranks)
    assert a.keys()==b.keys() and len(a)>8
    for k in a: assert torch.equal(a[k], b[k]), k

@pytest.mark.parametrize('m', every)
def test_what_is_stored_is_that_of_one_process(ranks, m):
    a,b = (o[m] for o in ranks)
    s = Exemplars(30, dict(balanced='balanced', gdumb='greedy').get(m, 'reservoir'), n_classes=10)
    for x,x2,y,y2 in zip(a['x'], b['x'], a['y'], b['y']): s.write(torch.cat([x,x2]), torch.cat([y,y2]))
    assert len(a['x'])==20 and len(torch.cat(a['x']+b['x']).unique(dim=0))>390  # each by one
    own = {k.rpartition('.')[2]:v for k,v in a['model'].items() if a['name'] in k and '.start.' not in k}
    for k in ('x','y','ptr','count'): assert torch.equal(own[k], s[k]), k

@pytest.mark.parametrize('m', [o for o in every if o!='gdumb'])
def test_each_draws_its_own(ranks, m):
    a,b = (o[m]['drawn'] for o in ranks)
    assert len(a)==len(b)>=19 and sum(p.tolist()!=q.tolist() for p,q in zip(a, b))>=len(a)-3
