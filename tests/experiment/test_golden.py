"What memo 0.1 left (tests/golden): the quickstart's tables number by number, its run folders, evaluated again"
import json, shutil, tarfile
import pandas as pd, pytest
from helpers.errors import err
from memo.experiment import again, run as ex
from memo.experiment.compare import run_experiments
from memo.evaluation.tables import label, results, row_of
from memo.experiment.run_folder import run_config
from memo.experiment.jobs import trainings

pytestmark = pytest.mark.usefixtures('unrendered')

@pytest.fixture(scope='module')
def golden(repo): return repo/'tests/golden'

@pytest.fixture(scope='module')
def runs(golden, tmp_path_factory):
    d = tmp_path_factory.mktemp('old')
    with tarfile.open(golden/'runs.tar.xz') as t: t.extractall(d, filter='data')
    return d/'runs'

# the quickstart's table

@pytest.fixture
def quick(golden, tmp_path):
    "The quickstart's run folder, tables taken away"
    shutil.copytree(golden/'quickstart', tmp_path/'quickstart')
    for p in (tmp_path/'quickstart').glob('results.*'): p.unlink()
    return tmp_path/'quickstart'

def same_tables(old, new):
    """Labels, order and numbers of the means, and every difference with its interval; 0.1 had both in one CSV, and
    intervals on the means"""
    was,(now,diff) = pd.read_csv(old/'results.csv'),(pd.read_csv(new/f'{f}.csv') for f in ('results','differences'))
    pairs = was.rival.notna() if 'rival' in was else was.method.isna()
    levels = was[~pairs].reset_index(drop=True)
    same = [c for c in now if c in levels and not c.endswith('_per_seed')]     # which levels had none of
    assert {'method','seeds','accuracy','ece'} <= {*same} and not [c for c in now if c.endswith(('_low','_high'))]
    pd.testing.assert_frame_equal(levels[same], now[same], check_dtype=False)
    was = was[pairs].rename(columns=dict(rival='baseline')).reset_index(drop=True)
    same = [c for c in diff if c in was]
    assert {'baseline','accuracy_mean','accuracy_low','accuracy_per_seed'} <= {*same}
    pd.testing.assert_frame_equal(was[same], diff[same], check_dtype=False)
    a,b = ((d/'results.md').read_text().partition('\ndifferences') for d in (old,new))
    assert b[1:]==a[1:] and rows_of_table(a[0])==rows_of_table(b[0])

def close(a, b):
    "The files are of another processor, whose last bits differ"
    return a.keys()==b.keys() and all(v==b[k] if v is None or isinstance(v, bool) or not isinstance(v, (int,float))
                                      else b[k]==pytest.approx(v, abs=1e-5) for k,v in a.items())

def new_form(d):
    "The `metrics.json` of all trainings as today's version writes them"
    for t in trainings(run_config(d), d): (t.folder/'metrics.json').write_text(json.dumps(ex.read_metrics(t)))

@pytest.mark.parametrize('form', ['of then','of now'])
def test_the_quickstarts_table(golden, quick, form):
    "From files of then and from rows as data"
    if form=='of now':
        new_form(quick)
        assert all('rows' in json.loads(p.read_text()) and 'methods' not in json.loads(p.read_text())
                   for p in quick.rglob('metrics.json'))
    cfg = run_config(quick)
    ex.write_results(cfg, quick)
    same_tables(golden/'quickstart', quick)

def test_its_rows(quick):
    cfg = run_config(quick)
    assert [(t.name,t.folder.name) for t in trainings(cfg, quick)]==[(n,f) for s in range(3)
        for n,f in (('','quickstart' if s==0 else f'seed_{s}'), ('balanced_sampling',f'balanced_sampling_seed_{s}'))]
    new_form(quick)
    m = json.loads((quick/'balanced_sampling_seed_1/metrics.json').read_text())
    assert [(r['training'],r['method'],r['memory']) for r in m['rows']]==[('balanced_sampling','',[]),
        ('balanced_sampling','',['memory'])] and m['remedies']==['balanced_sampling']
    assert 0<m['rows'][1]['chosen']['weight']<1

def test_a_row_that_nobody_knows_is_told(quick):
    p = quick/'metrics.json'
    m = json.loads(p.read_text())
    m['methods']['plain network + memory: hopfield'] = m['methods']['plain network']
    p.write_text(json.dumps(m))
    e = err(ex.write_results, run_config(quick), quick)
    assert 'is of memo 0.1 and has the rows' in e and 'memo-train --overwrite' in e

# run folders

def rows_of_table(text):
    return [o.split('|')[1].strip() for o in text.splitlines() if o.startswith('| ')
            and not o.startswith(('| method','| ---'))]

@pytest.mark.parametrize('name', ['whole','rivals','watch','replay','lda','none'])
def test_evaluated_again(runs, name, tmp_path):
    "memo-eval of a run folder of 0.1: every score as it was, every row by its name"
    text,off = again.evaluate_run(runs/name, out=tmp_path/'e')
    assert off==[]
    old = json.loads((runs/name/'metrics.json').read_text())
    new = json.loads((tmp_path/'e/metrics.json').read_text())
    got = {label(row_of(r), new['titles']):r for r in new['rows']}
    assert list(got)==list(old['methods'])
    def finite(d): return {a:None if b!=b else b for a,b in d.items()}
    for k,v in old['methods'].items(): assert close(finite(v), got[k]['scores'])
    assert all(close(r['chosen'], old['chosen'][k]) for k,r in got.items() if 'chosen' in r)
    a,b = (pd.read_csv(d/'predictions.csv').drop(columns='item') for d in (runs/name,tmp_path/'e'))
    pd.testing.assert_frame_equal(a, b, atol=1e-4)
    assert [o for o in rows_of_table((runs/name/'results.md').read_text()) if o not in text]==[]

def test_a_differing_number_is_noticed(runs, tmp_path):
    shutil.copytree(runs/'none', tmp_path/'none')
    p = tmp_path/'none/metrics.json'
    p.write_text(p.read_text().replace('"accuracy": 0.', '"accuracy": 0.9', 1))
    assert again.evaluate_run(tmp_path/'none')[1]==[str(tmp_path/'none')]

@pytest.mark.parametrize('name', ['whole','rivals','watch'])
def test_finished_runs_have_their_table(runs, name, tmp_path):
    d = tmp_path/name
    shutil.copytree(runs/name, d)
    for f in ('results.md','results.csv'): (d/f).unlink()
    ex.resume_run(d, log=lambda s: None)
    same_tables(runs/name, d)

@pytest.mark.parametrize('name', ['whole','watch','lda'])
def test_the_learner_and_the_file_of_a_model(runs, name):
    learn = again.load_run(runs/name)
    assert len(learn.memory.bank)>0 and type(learn.memory.bank).__name__==('SlotBank' if name=='whole' else 'ClassBank')
    text = again.evaluate_model(runs/name/'model.safetensors')
    assert all(o in text for o in json.loads((runs/name/'metrics.json').read_text())['methods'])

def test_old_and_new_share_a_table(runs, tmp_path):
    "memo-train over a folder of 0.1 and a new one: what is there is kept"
    from dataclasses import replace
    shutil.copytree(runs/'none', tmp_path/'none')
    old = replace(run_config(tmp_path/'none'), runs=str(tmp_path))
    from memo.experiment.config import override
    new = override(old, {'name':'new', 'memory':{'bank':'SlotBank','size':16,'policy':'fifo','head':'vote','k':3}})
    before = (tmp_path/'none/model.safetensors').stat().st_mtime_ns
    p = tmp_path/'none/config.yaml'
    p.write_text(p.read_text().replace('runs: runs', f'runs: {tmp_path}'))
    table = run_experiments([old, new], log=lambda s: None)
    assert (tmp_path/'none/model.safetensors').stat().st_mtime_ns==before
    assert 'new: plain network + memory - new: plain network' in table and 'none: plain network' in table
