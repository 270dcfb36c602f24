"memo-train in two gloo processes: trainings that diverge, a disk that is full, a run of one process"
import hashlib, json
import pandas as pd, pytest
from memo.experiment.config import load_config
from memo.experiment import run as ex

pytestmark = pytest.mark.slow

PARTS = '''
from fastai.vision.all import *
from memo.registry import register

@register('callback', 'spoils')
class Spoils(Callback):
    "Weights become infinite in a step"
    def __init__(self, epoch:int=1): self.at = epoch,2
    def after_step(self):
        if (self.learn.epoch,self.learn.iter)==self.at: first(self.learn.model.parameters()).data.fill_(float('inf'))
'''

TEXT = '''name: {}
data: {{name: digits_lt, n_max: 30, ratio: 6, valid: 5, test: 10, size: 8}}
seeds: [0]
memory: {{size: 16, policy: fifo, head: vote, k: 3}}
train: {{epochs: 2, lr: 1e-2, bs: 16, monitor: valid_loss, cbs: {}}}
plots: {{save: false}}
compare: []
'''

@pytest.fixture
def yml(tmp_path, monkeypatch):
    (tmp_path/'ranks_parts.py').write_text(PARTS)
    monkeypatch.chdir(tmp_path)
    def _write(name, cbs='[]'):
        (tmp_path/f'{name}.yaml').write_text(TEXT.format(name, cbs))
        return tmp_path/f'{name}.yaml'
    return _write

def shas(d): return {str(o.relative_to(d)):hashlib.sha256(o.read_bytes()).hexdigest() for o in d.rglob('*')
                     if o.is_file()}

def test_one_experiment_diverges_and_the_others_go_on(yml, two_ranks, tmp_path):
    files = yml('a', '[ranks_parts.Spoils]'),yml('b', '[{name: ranks_parts.Spoils, epoch: 0}]'),yml('c')
    r = two_ranks('-m', 'memo.cli', 'train', *files, 'runs=runs', cwd=tmp_path)
    assert r.returncode==0 and 'Traceback' not in r.stderr, r.stdout[-2000:]+r.stderr[-4000:]
    lines,d = r.stdout.splitlines(),tmp_path/'runs'
    for k,epoch in (('a','epoch 2 of 2, batch '),('b','epoch 1 of 2, batch ')):
        said, = [o for o in lines if o.startswith(f'{k} seed 0 | ') and 'finite' in o]      # of one process
        assert epoch in said and 'item ' in said and len(said)<=420
    a,b = json.loads((d/'a/metrics.json').read_text())['diverged'],json.loads((d/'b/diverged.json').read_text())
    assert a['kept']==dict(stage='train', epoch=0) and b['kept'] is None
    assert len(pd.read_csv(d/'a/history.csv'))==1 and len(pd.read_csv(d/'c/history.csv'))==2
    assert 'diverged' not in json.loads((d/'c/metrics.json').read_text()) and sum('diverged: ' in o for o in lines)==2

LIMITED = '''
import os, resource, sys
if os.environ['RANK']=='0': resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.argv[0] = 'memo-train'
from memo.cli import memo_train
sys.exit(memo_train())
'''

def test_a_full_disk_ends_both_with_a_line(yml, two_ranks, tmp_path):
    (tmp_path/'limited.py').write_text(LIMITED)
    r = two_ranks(tmp_path/'limited.py', yml('a'), 'runs=runs', cwd=tmp_path)
    said = sorted(o for o in r.stderr.splitlines() if o.startswith('error: '))
    assert r.returncode==2 and 'Traceback' not in r.stderr and len(said)==2, r.stderr[-4000:]
    assert 'cannot write' in said[0] and 's0_e0.pt' in said[0] and 'process 1 of 2 cannot go on' in said[1]

def test_a_run_of_one_process_is_refused_and_untouched(yml, two_ranks, tmp_path):
    cfg = load_config(yml('a'), [f'runs={tmp_path}/runs', 'seeds=[0,1]'])
    ex.run_experiment(cfg, log=lambda s: None)
    d = tmp_path/'runs/a'
    for o in ('seed_1/metrics.json','results.md'): (d/o).unlink()
    was = shas(d)
    r = two_ranks('-m', 'memo.cli', 'train', '--resume', d, cwd=tmp_path)
    said = [o for o in r.stderr.splitlines() if o.startswith('error: ')]
    assert r.returncode==2 and 'Traceback' not in r.stderr and len(said) in (1,2), r.stderr[-4000:]
    assert any('another number of processes: they are 1 there, 2 here' in o for o in said) and shas(d)==was
