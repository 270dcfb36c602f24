"Runs that diverge: what is scored, what the tables say, what goes on; what only shows ends nothing"
import json, os, subprocess, sys
import pandas as pd, pytest
from helpers.errors import err
from memo.core import Diverged
from memo.banks.exchange import BankSaver
from memo.experiment import again, run as ex
from memo.experiment.compare import run_experiments
from memo.experiment.config import load_config
from memo.experiment.jobs import trainings
from memo.experiment.run_folder import read_json

pytestmark = pytest.mark.usefixtures('unrendered')

PARTS = '''
from fastai.vision.all import *
from memo.core import Count
from memo.data.longtail import digits_lt
from memo.registry import register

@register('data', 'nan_digits', task='multiclass')
def nan_digits(bad:int=7, **kwargs):
    "Digits, one of which holds NaN"
    dls = digits_lt(n_max=30, ratio=6, valid=5, test=10, size=8, **kwargs)
    ds = dls.train.dataset
    ds.x = ds.x.float()/255
    if bad>=0: ds.x[bad] = float('nan')
    return dls

@register('callback', 'spoils')
class Spoils(Callback):
    "Weights become infinite in a step"
    def __init__(self, epoch:int=1, batch:int=2, seed:int=-1): self.at,self.seed = (epoch,batch),seed
    def after_step(self):
        if self.seed in (-1,torch.initial_seed()) and (self.learn.epoch,self.learn.iter)==self.at:
            first(self.learn.model.parameters()).data.fill_(float('inf'))
'''

def text(name, bad=-1, cbs='', train='', seeds='[0]'):
    return (f'name: {name}\nseeds: {seeds}\ndata: {{name: bad_parts.nan_digits, bad: {bad}}}\n'
            'memory: {size: 64, policy: reservoir, head: vote, k: [3], whiten: [false]}\n'
            f'train: {{epochs: 3, lr: 1e-2, bs: 16, monitor: valid_loss{train}, cbs: [{cbs}]}}\n'
            'plots: {save: false}\ncompare: [logit_adjusted]\n')

SPOILS = '{name: bad_parts.Spoils, epoch: 1, batch: 2}'

@pytest.fixture
def load(tmp_path, monkeypatch):
    (tmp_path/'bad_parts.py').write_text(PARTS)
    monkeypatch.chdir(tmp_path)
    def _load(txt, *over):
        p = tmp_path/f'{txt.split()[1]}.yaml'
        p.write_text(txt)
        return load_config(p, [f'runs={json.dumps(str(tmp_path/"runs"))}', *over])
    yield _load
    sys.modules.pop('bad_parts', None)

def silent(s): pass

def test_it_is_scored_as_it_was_after_its_best_epoch(load, tmp_path):
    lines,cfg = [],load(text('a', cbs=SPOILS, seeds='[0,1]'))
    table = ex.run_experiment(cfg, log=lines.append)
    d = tmp_path/'runs/a'
    m = read_json(d/'metrics.json')
    assert m['diverged']['kept']==dict(stage='train', epoch=0) and m['diverged']['batch']==3
    assert m['diverged']['epoch']==1 and len(m['diverged']['items'])==3 and m['rows']
    assert 'plain network + memory (seeds 0, 1 diverged)' in table and table.count('\ndiverged: a')==2
    assert 'seeds 0, 1 diverged' in (d/'results.md').read_text()
    assert pd.read_csv(d/'results.csv').diverged.tolist()==['0 1']*4
    assert len(pd.read_csv(d/'history.csv'))==1
    said, = [o for o in lines if o.startswith('a seed 0 |') and 'not finite' in o]
    assert 'stage train, epoch 2 of 3, batch 4 of 9' in said and 'scored as it was after epoch 1 of train' in said
    # the scores are those of that epoch
    learn = again.load_run(d)
    assert all(bool(p.isfinite().all()) for p in learn.model.parameters())
    again,off = again.evaluate_run(d)
    assert off==[] and 'seeds 0, 1 diverged' in again
    # nothing is tried again
    lines.clear()
    assert ex.resume_run(d, lines.append)==table and [o.endswith('finished before') for o in lines]==[True,True]

def test_one_of_several_seeds(load, tmp_path):
    cfg = load(text('a', cbs=SPOILS.replace('}', ', seed: 1}').replace('epoch: 1', 'epoch: 0'), seeds='[0,1]'))
    lines = []
    table = ex.run_experiment(cfg, log=lines.append)
    ts = trainings(cfg, tmp_path/'runs/a')
    gone = [t.seed for t in ts if t.gave_up]
    if not gone: pytest.fail(f'no seed diverged: {lines}')
    assert gone==[1] and '\ndiverged: a/seed_1 seed 1 |' in table and 'plain network  ' in table
    assert pd.read_csv(tmp_path/'runs/a/results.csv').seeds.tolist()==[1]*4

def test_nothing_to_score(load, tmp_path, words='item 7 holds NaN'):
    cfg = load(text('b', bad=7))
    e = err(ex.run_experiment, cfg, log=silent)
    assert e.startswith('b seed 0 | the loss is not finite (nan) in stage train, epoch 1 of 3, batch 2 of 9')
    assert words in e
    d,lines = tmp_path/'runs/b',[]
    o = read_json(d/'diverged.json')
    assert o['kept'] is None and o['batch']==1 and not (d/'metrics.json').exists()
    for f in (lambda: ex.resume_run(d, lines.append), lambda: again.evaluate_run(d), lambda: again.load_run(d)):
        with pytest.raises(Diverged, match='not finite'): f()
    assert lines==['b seed 0 | has diverged before, --overwrite trains it again']
    assert '--overwrite replaces it' in err(ex.run_experiment, cfg, log=silent)
    good = load(text('b'))
    assert 'memory' in ex.run_experiment(good, overwrite=True, log=silent) and not (d/'diverged.json').exists()

def test_a_rate_is_looked_for_in_vain(load, tmp_path):
    cfg = load(text('b', bad=7).replace('lr: 1e-2', 'lr: find'))
    assert 'item 7 holds NaN' in err(ex.run_experiment, cfg, log=silent) and (tmp_path/'runs/b/diverged.json').is_file()

def test_further_experiments_go_on(load, tmp_path):
    lines,cfgs = [],[load(text('b', bad=7)),load(text('a', cbs=SPOILS)),load(text('c'))]
    for _ in range(2):
        table = run_experiments(cfgs, log=lines.append)
        assert 'c: plain network' in table and 'b: ' not in table.split('\ndiverged:')[0]
        assert 'a: plain network + memory (seed 0 diverged)' in table
        assert '\ndiverged: b seed 0 | the loss is not finite' in table and '\ndiverged: a seed 0' in table
    assert sum('train 3/3' in o for o in lines)==1 and sum('has diverged before' in o for o in lines)==1
    with pytest.raises(Diverged): run_experiments([load(text('b', bad=7)), load(text('d', bad=3))], log=silent)

def test_resumed_after_a_kill_behind_the_last_epoch(load, tmp_path):
    "It diverges where it did, and the run does not go round"
    cfg = load(text('a', cbs=SPOILS))
    ex.run_experiment(cfg, log=silent)
    d = tmp_path/'runs/a'
    was = read_json(d/'metrics.json')
    for o in ('metrics.json','results.md'): (d/o).unlink()
    ex.resume_run(d, silent)
    now = read_json(d/'metrics.json')
    assert now['diverged']==was['diverged'] and now['rows']==was['rows']

# what only shows

def test_scores_are_written_before_pictures(load, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        assert (tmp_path/'runs/c/metrics.json').is_file()
        raise RuntimeError('no picture')
    for k in ('draw','draw_scores'):
        with monkeypatch.context() as m:
            m.setattr(ex, k, broken)
            with pytest.raises(RuntimeError, match='no picture'):
                ex.run_experiment(load(text('c').replace('save: false', 'save: true')), overwrite=True, log=silent)

def test_a_bank_that_cannot_be_written_is_said(load, tmp_path, monkeypatch):
    def full(self, *args): self.failed.append(OSError(28, 'No space left on device'))
    monkeypatch.setattr(BankSaver, '_write', full)
    lines = []
    with pytest.warns(UserWarning, match='No space left.*the training goes on'):
        ex.run_experiment(load(text('c').replace('size: 64', 'size: 64, save_every: 1')), log=lines.append)
    assert sum('4 of 4 files of the memory were not written' in o for o in lines)==1
    assert (tmp_path/'runs/c/metrics.json').is_file()

def test_a_log_of_ones_own_raises(load):
    def mine(s): raise KeyError('mine')
    with pytest.raises(KeyError): ex.run_experiment(load(text('c')), log=mine)

GO = """import sys
from memo.experiment import run as ex
from memo.experiment.config import load_config
{}
print("BEHIND", file=sys.stderr)"""

@pytest.mark.slow
@pytest.mark.parametrize('out', ['full','gone','closed','ascii'])
def test_lines_of_progress_end_nothing(load, tmp_path, out):
    "Nobody reads them, the disk is full, there is no stdout, the terminal has no ü"
    load(text('Müll'))
    code = GO.format("ex.run_experiment(load_config('Müll.yaml', ['runs=runs']))")
    args,env = [sys.executable, '-W', 'ignore', '-c', code],dict(os.environ)
    if out=='ascii': env |= dict(PYTHONIOENCODING='ascii')
    kw = dict(cwd=tmp_path, env=env, stderr=subprocess.PIPE, timeout=300)
    if out=='full':
        with open('/dev/full', 'w') as f: r = subprocess.run(args, stdout=f, **kw)
    elif out=='gone':
        a,b = os.pipe()
        os.close(a)
        r = subprocess.run(args, stdout=b, **kw)
        os.close(b)
    elif out=='closed': r = subprocess.run(['sh', '-c', 'exec "$@" >&-', 'sh', *args], **kw)
    else: r = subprocess.run(args, stdout=subprocess.PIPE, **kw)
    assert b'BEHIND' in r.stderr and r.returncode==0, r.stderr[-2000:]
    assert (tmp_path/'runs/Müll/metrics.json').is_file()
    if out=='ascii': assert b'M\\xfcll seed 0 | train 3/3' in r.stdout
