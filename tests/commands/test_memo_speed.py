"memo-speed: what it prints and writes of a run with gates; of other runs one line"
import json, shutil
from pathlib import Path
import pandas as pd, pytest, torch
from helpers.errors import err
from helpers.runs import of_a_run
from PIL import Image
from memo.arguments import options_last
from memo.cli import memo_speed
from memo.experiment.config import load_config
from memo.experiment.again import load_run

pytestmark = pytest.mark.usefixtures('unrendered')

TINY = '''
name: tiny
seeds: [0]
data: {name: digits_lt, n_max: 20, ratio: 2, valid: 5, test: 8, size: 8}
memories:
  early: {bank: SlotBank, size: 200, head: {name: exit, threshold: .97}, at: '3'}
  late: {bank: SlotBank, size: 200, head: {name: dual, threshold: .9}}
train: {epochs: 1, bs: 16}
compare: [balanced_sampling]
'''
other = 'balanced_sampling_seed_0'
quick = dict(batch_sizes='1,8', n=16, rounds=1, thresholds=3)

_,run,copy = of_a_run(TINY)

def test_every_training_with_a_gate(copy):
    "A baseline of its own training too: each has the table of both memories, as they are and over thresholds"
    text = memo_speed(str(copy), **quick)
    assert text.count('seed 0, early')==text.count('seed 0, late')==2 and text.count('over thresholds')==4
    assert all(f"{d/'speed.csv'} and speed.png" in text.splitlines() for d in (copy, copy/other))
    for d in (copy, copy/other):
        df = pd.read_csv(d/'speed.csv')
        assert (d/'speed.png').is_file() and {*df.memory}=={'early','late'}
        own = df[~df.curve]
        assert own.groupby('memory').batch.apply(list).tolist()==[[1,8],[1,8]] and (df.samples==16).all()
        assert own.features_ms.notna().all() and df[df.curve].features_ms.isna().all() and (df.faster>0).all()
        assert (df.hit-df.hit_early-df.hit_late).abs().max()<1e-9 and df[df.curve].groupby('memory').size().min()>=4
        assert {*df.seed}=={0} and {*df.training.fillna('')}=={'' if d==copy else 'balanced_sampling'}

def test_thresholds_of_the_run_and_its_test_samples(run, tmp_path):
    "All test samples: hits and accuracies are those of the model that is loaded"
    d = Path(shutil.copytree(run/other, tmp_path/'run'))
    memo_speed(str(d), **{**quick, 'n':0, 'batch_sizes':'8'})
    learn,df = load_run(d),pd.read_csv(d/'speed.csv')
    assert df[~df.curve & (df.memory=='early')].threshold.tolist()==pytest.approx([.97])
    with learn.no_bar(), learn.no_logging():
        p,y = learn.get_preds(ds_idx=2)
        with learn.early.off(), learn.late.off(): q,_ = learn.get_preds(ds_idx=2)
    for r in df[~df.curve].itertuples():
        assert r.samples==80 and abs(r.accuracy-float((p.argmax(1)==y).float().mean()))<=1/80
        assert r.accuracy_network==pytest.approx(float((q.argmax(1)==y).float().mean()))
    assert load_run(d).early.head.threshold==learn.early.head.threshold

def test_nothing_else_in_the_run_changes(copy):
    def files():
        return {o.relative_to(copy):o.read_bytes() for o in copy.rglob('*') if o.is_file()
                and o.name not in ('speed.csv','speed.png')}
    was,threads = files(),torch.get_num_threads()
    memo_speed(str(copy/other), threads=2, **quick)
    assert files()==was and not (copy/'speed.csv').exists() and (copy/other/'speed.csv').is_file()
    assert torch.get_num_threads()==threads

@pytest.mark.renders
def test_as_a_process(copy, tool):
    r = tool('memo-speed', copy/other, '--batch-sizes', '1,8,200', '--rounds', '1', '--n=16', '--thresholds', '3',
             '--threads', '1')
    assert r.returncode==0, r.stderr[-2000:]
    assert 'x as fast' in r.stdout and '1 thread' in r.stdout and '80 samples are fewer than a batch of 200' in r.stdout
    assert f"{copy/other/'speed.csv'} and speed.png" in r.stdout.splitlines()
    assert Image.open(copy/other/'speed.png').size[0]>300 and not r.stderr.strip(), r.stderr

def test_options_may_come_first():
    got = options_last('memo-speed --rounds 3 --batch_sizes 1,8 d --debug --threads 2 --n 5 --thresholds 4'.split())
    assert got=='memo-speed d --rounds 3 --batch-sizes 1,8 --debug --threads 2 --n 5 --thresholds 4'.split()

def test_help(tool):
    r = tool('memo-speed', '--help')
    assert r.returncode==0 and all(o in r.stdout for o in ('--batch-sizes','--rounds','--threads','speed.csv'))

# mistakes: one line each

def test_mistakes(run, tmp_path):
    f = memo_speed
    assert 'give a run folder' in err(f) and 'no such run folder' in err(f, str(tmp_path/'nowhere'))
    assert 'is no run folder' in err(f, str(tmp_path))
    assert '--batch-sizes' in err(f, str(run), batch_sizes='1,x') and 'batch_sizes' in err(f, str(run), batch_sizes='0')
    assert 'rounds=0' in err(f, str(run), rounds=0) and '--thresholds: 1' in err(f, str(run), thresholds=1)
    assert 'threads: 0' in err(f, str(run), threads=0)

@pytest.mark.parametrize('memory,said', [('memories=null', 'has no memory'),
                                         ('memories.early.head={name: vote, k: 3}', 'early has head vote')])
def test_runs_without_a_gate(tmp_path, memory, said):
    (tmp_path/'tiny.yaml').write_text(TINY if 'null' in memory else TINY.replace(
        "{name: exit, threshold: .97}", 'vote').replace("{name: dual, threshold: .9}", 'vote'))
    cfg = load_config(tmp_path/'tiny.yaml', [f'runs={tmp_path}', *([memory] if 'null' in memory else [])])
    (tmp_path/'tiny').mkdir()
    from memo.experiment.sections import to_yaml
    (tmp_path/'tiny/config.yaml').write_text(to_yaml(cfg))
    assert said in err(memo_speed, str(tmp_path/'tiny'))

def test_one_line_and_status_2(tool, tmp_path, copy):
    r = tool('memo-speed', tmp_path)
    assert r.returncode==2 and r.stderr.count('\n')==1 and 'no run folder' in r.stderr and not r.stdout
    (copy/other/'model.safetensors').unlink()
    r = tool('memo-speed', copy/other)
    assert r.returncode==2 and r.stderr.count('\n')==1 and 'finished' in r.stderr, r.stderr
