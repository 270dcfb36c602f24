"Streams of memo-train in two processes: the same in both, written once, killed and resumed; tables of methods"
import json, signal
import pandas as pd, pytest, torch
from helpers.errors import err
from helpers.exploding import LOSS
from memo.experiment.run import resume_run

pytestmark = pytest.mark.slow

TABLE = '''
base: streams/points/mlp
name: t
seeds: [0]
data: {n: 120}
train: {bs: 6, opt: sgd, loss: {name: exploding.Scaled}}
plots: {save: false}
methods:
  plain: {grid: {train.loss.scale: [1.0, 1.0e+30]}}
  replay: {train.cbs: [{name: Replay, size: 20}]}
'''

@pytest.fixture(scope='module')
def ranks(repo, two_ranks, tmp_path_factory):
    out = tmp_path_factory.mktemp('ranks')
    def go(how):
        r = two_ranks(repo/'tests/continual/runs_script.py', out, how, cwd=repo)
        if r.returncode: return r,None
        return r,[torch.load(out/f'{how}{i}.pt', weights_only=True) for i in range(2)]
    return out,go,go('whole')

def equal(a, b):
    assert a['model'].keys()==b['model'].keys()
    for k,v in a['model'].items(): assert torch.equal(v, b['model'][k]), k
    assert torch.equal(a['probs'], b['probs']) and torch.equal(a['matrix'], b['matrix'])

def test_both_have_the_same(ranks):
    "Of experiences without validation items too, which MODES has in its second half"
    out,_,(r,got) = ranks
    assert r.returncode==0, r.stdout[-2000:]+r.stderr[-4000:]
    a,b = got
    assert {*a}=={*b}=={'whole','GDumb','ICaRL','RanPAC','StreamingLDA'}
    for k in a: equal(a[k], b[k])
    assert r.stdout.count('whole seed 0 | stream 16/16')==1 and (out/'whole/surfaces.png').is_file()
    assert len(pd.read_csv(out/'whole/history.csv'))==16
    assert json.loads((out/'whole/env.json').read_text())['processes']==2

def test_killed_and_resumed(ranks):
    out,go,(_,whole) = ranks
    r,_ = go('cut')
    assert r.returncode==-signal.SIGKILL, r.stderr[-3000:]
    assert [*(out/'cut/checkpoints').glob('s0_e5.pt')] and not (out/'cut/metrics.json').exists()
    e = err(resume_run, out/'cut', lambda s: None)
    assert 'number of processes: they are 2 there, 1 here' in e
    r,got = go('resume')
    assert r.returncode==0, r.stderr[-3000:]
    assert 'stream 5/16' not in r.stdout and r.stdout.count('stream 6/16')==1
    for a in got: equal(a['cut'], whole[0]['whole'])

def test_a_table(ranks):
    "What the first process has written is there when the other one reads it"
    out,go,_ = ranks
    (out/'t.yaml').write_text(TABLE)
    (out/'exploding.py').write_text(LOSS)
    r,_ = go('table')
    assert r.returncode==0, r.stderr[-3000:]
    assert '2 (1 diverged)' in r.stdout and r.stdout.count('validation, first half')==1
    r,_ = go('table')
    assert r.returncode==0 and r.stdout.count('t/replay/best seed 0 | finished before')==1
