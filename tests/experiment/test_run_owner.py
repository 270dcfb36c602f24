"One process at a time trains in a run folder; --overwrite deletes what a run wrote; a finished run is whole or mended"
import hashlib, json, os, shutil, signal, subprocess, sys, time
import pandas as pd, pytest
from helpers.errors import err
from memo.banks import exchange
from memo.core import MemoError
from memo.experiment import run as ex
from memo.experiment.compare import finish_all, run_experiments
from memo.experiment.config import load_config
from memo.experiment.run_folder import run_config
from memo.experiment.run_owner import changed_outputs, remove_run
from memo.files import owned, owner_of

pytestmark = pytest.mark.usefixtures('unrendered')
TINY = '''
name: {name}
seeds: [0, 1]
data: {{name: digits_lt, n_max: 20, ratio: 5, valid: 5, test: 8, size: 8}}
memory: {{bank: SlotBank, size: 16, policy: fifo, head: vote, k: 3}}
train: {{epochs: 1, bs: 16, lr: 1e-2}}
plots: {{save: false}}
compare: []
'''

def config(tmp_path, name='p', *more):
    f = tmp_path/f"{name.replace('/', '_')}.yaml"
    f.write_text(TINY.format(name=name))
    return load_config(f, [f'runs={json.dumps(str(tmp_path/"runs"))}', *more])

@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    d = tmp_path_factory.mktemp('owner')
    ex.run_experiment(config(d), log=lambda s: None)
    return d/'runs/p'

@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path/'runs/p')
    return tmp_path/'runs/p'

def files(d): return {str(o.relative_to(d)) for o in d.rglob('*') if o.is_file() and o.name!='.lock'}

HOLD = '''
import sys,time
from memo.files import owned
with owned(sys.argv[1]):
    print('mine', flush=True)
    time.sleep(60)
'''

@pytest.fixture
def other(tmp_path):
    "Another process that has the folder"
    started = []
    def start(folder):
        p = subprocess.Popen([sys.executable, '-c', HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
        started.append(p)
        assert p.stdout.readline()=='mine\n'
        return p
    yield start
    for p in started:
        p.kill()
        p.wait()

def test_two_processes_do_not_share_a_run(run, other, tmp_path):
    p = other(run)
    before = files(run)
    for f in (lambda: ex.resume_run(run), lambda: ex.run_experiment(config(tmp_path), overwrite=True)):
        e = err(f)
        assert f'process {p.pid} on ' in e and 'in use by another training' in e and len(e)<=300
    assert files(run)==before

def test_the_lock_of_a_killed_process_is_taken_over(run, other):
    p = other(run)
    os.kill(p.pid, signal.SIGKILL)
    p.wait()
    assert f'process {p.pid}' in owner_of(run)
    lines = []
    ex.resume_run(run, log=lines.append)
    assert 'taken over' in lines[0] and str(p.pid) in lines[0] and owner_of(run)==''

def test_within_one_process_too(run):
    "Another thread, or a training inside a training"
    with owned(run):
        assert 'in use by another training' in err(ex.resume_run, run)
    ex.resume_run(run, log=lambda s: None)

def test_with_its_scores_a_training_is_finished(tmp_path, monkeypatch):
    "Banks are written in the background: killed behind metrics.json, a run never had its last one"
    seen,write,scores = [],exchange.write_json,ex.write_scores
    def slow(path, what):
        time.sleep(.3)
        write(path, what)
    def look(folder, *a, **k):
        scores(folder, *a, **k)
        seen.append(sorted(o.name for o in (folder/'banks').iterdir()))
    monkeypatch.setattr(exchange, 'write_json', slow)
    monkeypatch.setattr(ex, 'write_scores', look)
    ex.run_experiment(config(tmp_path, 'p', 'seeds=[0]', 'memory.save_every=1'), log=lambda s: None)
    assert seen==[[f'p_{o}.{e}' for o in ('final','step_1') for e in ('json','safetensors')]]

def test_a_failed_training_frees_its_folder(run, monkeypatch):
    (run/'metrics.json').unlink()
    def broken(*a, **k): raise RuntimeError('no')
    monkeypatch.setattr(ex, 'train', broken)
    with pytest.raises(RuntimeError): ex.resume_run(run, log=lambda s: None)
    with owned(run): assert owner_of(run)

@pytest.mark.parametrize('text', ['', '[]', '{', '{"pid": null}', '{"pid": "x\\ny", "host": {}}'])
def test_whatever_stands_in_the_owners_file(run, text):
    (run/'.owner.json').write_text(text)
    ex.resume_run(run, log=lambda s: None)
    assert not (run/'.owner.json').exists()

# resuming

def shas(d): return {str(o.relative_to(d)):hashlib.sha256(o.read_bytes()).hexdigest() for o in d.rglob('*')
                     if o.is_file()}

@pytest.mark.parametrize('new', ['lr: 0.02','lr: find',None])
def test_a_resume_that_is_refused_changes_no_file(run, new):
    "Another key, one that begins with a search for a rate, checkpoints that are damaged: env.json was written anew"
    for o in ('metrics.json','results.md','seed_1/metrics.json'): (run/o).unlink()
    (run/'env.json').write_text((run/'env.json').read_text().replace('"python": "3', '"python": "2'))
    for o in run.rglob('config.yaml'): o.write_text(o.read_text().replace('lr: 0.01', new or 'lr: 0.01'))
    for o in run.rglob('s*_e*.pt'): o.write_bytes(o.read_bytes()[:None if new else 999])
    was = shas(run)
    assert ('train.lr is' if new else 'damaged') in err(ex.resume_run, run) and shas(run)==was

def test_more_seeds_are_written_where_the_run_goes_on(finished, run, other, tmp_path):
    "And not into the folder of a process that trains there"
    for o in run.rglob('config.yaml'): o.write_text(o.read_text().replace(str(finished.parent), str(run.parent)))
    cfg,was = config(tmp_path, 'p', 'seeds=[0,1,2]'),(run/'config.yaml').read_bytes()
    p = other(run)
    assert 'in use by another training' in err(finish_all, [cfg], log=lambda s: None)
    assert (run/'config.yaml').read_bytes()==was
    p.kill()
    p.wait()
    finish_all([cfg], log=lambda s: None)
    assert [*run_config(run).seeds]==[0,1,2] and (run/'seed_2/metrics.json').is_file()

# --overwrite

def test_overwriting_leaves_what_the_run_did_not_write(run, tmp_path):
    "Runs below its folder, a user's notes, links to elsewhere"
    (tmp_path/'elsewhere').mkdir()
    (tmp_path/'elsewhere/kept.txt').write_text('x')
    (run/'checkpoints/link').symlink_to(tmp_path/'elsewhere')
    cfg = config(tmp_path, 'p/q', 'seeds=[0]')
    ex.run_experiment(cfg, log=lambda s: None)
    (run/'notes.txt').write_text('mine')
    (run/'data').mkdir()
    (run/'data/image.tif').write_text('x')
    q = files(run/'q')
    ex.run_experiment(config(tmp_path, 'p', 'seeds=[0]'), overwrite=True, log=lambda s: None)
    assert files(run/'q')==q and (run/'notes.txt').exists() and (run/'data/image.tif').exists()
    assert not (run/'seed_1').exists() and (run/'metrics.json').exists() and (tmp_path/'elsewhere/kept.txt').exists()

def test_all_that_a_run_wrote_goes(run):
    remove_run(run)
    assert files(run)==set()

@pytest.mark.parametrize('name', ['.', './p', 'p/.', '..', '', 'p/', '~', 'a//b'])
def test_a_name_is_that_of_a_folder(tmp_path, name):
    "`name: .` would be the folder of all runs"
    e = err(config, tmp_path, 'ok', f'name={json.dumps(name)}')
    assert e.count('\n')==0 and 'name' in e

def test_a_run_inside_another_ones_training(run, tmp_path):
    e = err(ex.run_experiment, config(tmp_path, 'p/seed_1', 'seeds=[1]'), True)
    assert 'is a training of the run' in e

def test_a_run_is_not_taken_for_a_training_of_another(tmp_path):
    "p/seed_1 was trained otherwise; p would have found it finished"
    ex.run_experiment(config(tmp_path, 'p', 'seeds=[0]'), log=lambda s: None)
    ex.run_experiment(config(tmp_path, 'p/seed_1', 'seeds=[1]', 'train.lr=1e-3'), log=lambda s: None)
    was = (tmp_path/'runs/p/config.yaml').read_text()
    e = err(run_experiments, [config(tmp_path, 'p')])
    assert 'train.lr' in e and 'another experiment' in e and (tmp_path/'runs/p/config.yaml').read_text()==was

# whole?

def remade(run):
    lines = []
    ex.resume_run(run, log=lines.append)
    return [o for o in lines if 'made again' in o]

@pytest.mark.parametrize('how', ['deleted','cut','other'])
@pytest.mark.parametrize('name', ['predictions.csv','predictions_valid.csv','history.csv','model.safetensors'])
def test_outputs_that_are_missing_are_made_again(run, name, how):
    was = {o:(run/o).read_bytes() for o in ('predictions.csv','predictions_valid.csv','metrics.json','results.csv')}
    p = run/name
    if how=='deleted': p.unlink()
    b = p.read_bytes() if p.exists() else b''
    if b: p.write_bytes(b[:len(b)//2] if how=='cut' else bytes([b[0]^1])+b[1:])
    lines = remade(run)
    assert how=='deleted' and name=='model.safetensors' or len(lines)==1 and name in lines[0] and 'seed 0' in lines[0]
    assert changed_outputs(run)==[] and {o:(run/o).read_bytes() for o in was}==was
    assert remade(run)==[] and len(pd.read_csv(run/'history.csv'))==1

def test_scores_that_were_changed_are_made_again(run):
    "By hand, say: a table was made of them"
    was = (run/'metrics.json').read_text()
    m = json.loads(was)
    m['rows'][0]['scores']['accuracy'] = .999
    (run/'metrics.json').write_text(json.dumps(m, indent=1)+'\n')
    assert 'metrics.json' in remade(run)[0] and (run/'metrics.json').read_text()==was and remade(run)==[]

def test_without_a_checkpoint_it_is_said(run):
    shutil.rmtree(run/'checkpoints')
    (run/'predictions.csv').unlink()
    e = err(ex.resume_run, run)
    assert 'predictions.csv' in e and 'no checkpoint' in e and '--overwrite' in e

def test_a_finished_training_of_another_experiment(run):
    "config.yaml is edited and a seed added: what is finished would be of the old one"
    p = run/'config.yaml'
    p.write_text(p.read_text().replace('n_max: 20', 'n_max: 30'))
    assert 'data.n_max' in err(ex.resume_run, run)

def test_half_written_files_go(run):
    for d in (run, run/'checkpoints', run/'seed_1'): (d/'.x.csv.abc.part').write_text('x')
    ex.resume_run(run, log=lambda s: None)
    assert not [*run.rglob('*.part')]

def test_a_folder_of_data_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'c.yaml').write_text('name: c\ndata: {name: cifar10_lt, root: pictures}\n')
    cfg = load_config(tmp_path/'c.yaml')
    assert cfg.data.root==str(tmp_path/'pictures')
    assert load_config(tmp_path/'c.yaml', ['data.root=/other']).data.root=='/other'
