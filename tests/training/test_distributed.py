"Two processes on the CPU, started by accelerate: all banks are equal, and equal to one process's that saw everything"
import pytest, torch
from distributed_script import banks, N

cases = '''fifo-add rarity-add-group reservoir-vote hard-None ClassBank-None ClassBank-vote ClassBank-replay
    fifo-vote-accumulate fifo-add-overflow reservoir-add-bn'''.split()

@pytest.fixture(scope='module')
def ranks(tmp_path_factory, two_ranks, repo):
    "What both ranks hold after training, by case"
    out = tmp_path_factory.mktemp('ranks')
    r = two_ranks(repo/'tests/training/distributed_script.py', out, cwd=repo)
    assert r.returncode==0, r.stdout[-3000:]+r.stderr[-6000:]
    return [torch.load(out/f'rank{i}.pt', weights_only=True) for i in range(2)]

pytestmark = pytest.mark.slow

@pytest.mark.parametrize('case', cases)
def test_banks_of_both_ranks_are_bit_equal(ranks, case):
    a,b = (o[case]['model'] for o in ranks)
    keys = [k for k in a if 'memory' in k]
    assert a.keys()==b.keys() and len(keys)>8
    for k in keys: assert torch.equal(a[k], b[k]), k
    if 'bn' not in case:      # statistics of batch norm are each rank's own
        assert all(torch.equal(a[k], b[k]) for k in a)

@pytest.mark.parametrize('case', cases)
def test_bank_is_that_of_one_process(ranks, case):
    a,b = (o[case] for o in ranks)
    bank = banks[case.split('-')[0]]()
    assert len(a['steps'])==len(b['steps'])>0
    for one,two in zip(a['steps'], b['steps']):
        x,y,logits,item,group = (torch.cat(o) for o in zip(one, two))
        bank.write(x, y, logits, item, group if a['grouped'] else None)
    prefix = next(k for k in a['model'] if k.endswith('bank.features'))[:-len('features')]
    got = {k[len(prefix):]:v for k,v in a['model'].items() if k.startswith(prefix)}
    for k,v in bank.state_dict().items():
        if k=='_extra_state' or k=='draws' and 'replay' in case: continue
        if k=='groups':       # ids of groups are hashes: the same rows belong together
            assert torch.equal(got[k]>=0, got['items']>=0)
            if a['grouped']: assert torch.equal(got[k][:,None]==got[k], v[:,None]==v)
            continue
        if k=='scores' and 'hard' in case: torch.testing.assert_close(got[k], v)
        else: assert torch.equal(got[k], v), k

@pytest.mark.parametrize('case', cases)
def test_every_item_is_seen(ranks, case):
    seen = torch.cat([o[3] for r in ranks for o in r[case]['steps']])
    epochs = 3
    if 'overflow' in case: assert 0<len(seen)<epochs*N
    elif 'accumulate' in case: assert 0<=epochs*(N+1)-len(seen)<2*20+2*16
    else:
        assert len(seen)==epochs*(N+1) and set(seen.tolist())==set(range(N))      # one padded

@pytest.mark.parametrize('case', [o for o in cases if 'add' in o])
def test_no_rank_finds_itself(ranks, case):
    "The assertion is in the script, on each rank; here: there was something to find"
    assert all(r[case]['own']>20 for r in ranks)

@pytest.mark.parametrize('case', [o for o in cases if 'vote' in o])
def test_vote_is_fitted_equally(ranks, case):
    w = [{k:v.item() for k,v in r[case]['model'].items() if k.endswith(('memory.weight','memory.temperature'))}
         for r in ranks]
    assert w[0]==w[1] and len(w[0])==2 and list(w[0].values())!=[.5,.07] and .5 not in w[0].values()

@pytest.mark.parametrize('case', cases)
def test_columns_are_equal(ranks, case):
    a,b = (r[case] for r in ranks)
    assert a['names']==b['names'] and 'memory_fill' in a['names']
    i = a['names'].index('valid_loss')-1
    assert torch.allclose(torch.tensor(a['values'], dtype=torch.float64)[:,i:],
                          torch.tensor(b['values'], dtype=torch.float64)[:,i:], atol=1e-6)

@pytest.mark.parametrize('case', [o for o in cases if 'vote' in o])
def test_figures_are_of_the_mixture_that_is_kept(ranks, case):
    for r in ranks:
        i = r[case]['names'].index('valid_loss')-1
        assert r[case]['values'][-1][i:i+2]==pytest.approx(r[case]['again'][:2], rel=1e-5)

def test_several_memories_in_two_processes(ranks):
    "Every rank holds the same rows of the same items, in every memory; what is learned is trained as any parameter"
    a,b = (o['several'] for o in ranks)
    assert a['model'].keys()==b['model'].keys() and all(torch.equal(v, b['model'][k]) for k,v in a['model'].items())
    assert a['items']==b['items'] and a['seen']==b['seen'] and len(set(a['seen'].values()))==1
    for n,items in a['items'].items(): assert len(set(items)-{-1})>5, n
    assert len(set(a['items']['memory'])-{-1})==N, 'each item has its row'
    centres = next(v for k,v in a['model'].items() if k.endswith('centres'))
    assert centres.abs().sum()>0
    scores = {n:next(v for k,v in a['model'].items() if n in k and k.endswith('scores')) for n in ('near','still')}
    # learned, beside those that were written
    assert len(scores['near'].unique())>50 and scores['near'].isfinite().all()
    assert a['names']==b['names'] and {'rare_fill','early_hit','memory_hit','pull_loss'}<set(a['names'])

@pytest.mark.parametrize('dry', [False,True])
def test_memo_train_in_two_processes(tmp_path, two_ranks, repo, dry):
    "The command that the README shows, also where no variable says that there is no GPU"
    more = 'seeds=[0]','train.epochs=2','compare=[logit_adjusted]',f'runs={tmp_path}',*['--dry-run']*dry
    r = two_ranks('-m', 'memo.cli', 'train', 'experiments/quickstart.yaml', *more, cwd=repo, env={}, timeout=200)
    assert r.returncode==0, r.stdout[-3000:]+r.stderr[-6000:]
    assert r.stdout.count('quickstart: small_cnn on digits_lt')==1
    if dry: assert not list(tmp_path.iterdir())
    else:
        assert len((tmp_path/'quickstart/history.csv').read_text().splitlines())==3 and (
            tmp_path/'quickstart/metrics.json').exists()
        assert r.stdout.count('train 2/2')==1         # one process speaks
