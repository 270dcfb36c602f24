"Pictures that a killed process did not draw, or that are gone, are made by --resume; --overwrite deletes memo's alone"
import json, shutil, signal, subprocess, sys
import pytest, warnings
from matplotlib.figure import Figure
from memo.experiment import report, run as ex
from memo.experiment.config import load_config
from memo.experiment.run_owner import lost_pictures, remove_run, says_name

TINY = '''
name: p
seeds: [0, 1]
data: {name: digits_lt, n_max: 20, ratio: 5, valid: 5, test: 8, size: 8}
memory: {bank: SlotBank, size: 16, policy: fifo, head: vote, k: 3}
train: {epochs: 1, bs: 16, lr: 1e-2}
compare: []
'''
THREE = 'bank.png','counts.png','history.png','memories.png'

def config(d, *more):
    (d/'p.yaml').write_text(TINY)
    return load_config(d/'p.yaml', [f'runs={json.dumps(str(d/"runs"))}', *more])

@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    d = tmp_path_factory.mktemp('drawn')
    ex.run_experiment(config(d), log=lambda s: None)
    return d/'runs/p'

@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path/'runs/p')
    return tmp_path/'runs/p'

def pictures(d): return {str(o.relative_to(d)):o.read_bytes() for o in d.rglob('*.png')}

def resumed(run):
    lines = []
    ex.resume_run(run, log=lines.append)
    return [o for o in lines if 'drawn again' in o]

def test_all_have_them(finished):
    got = pictures(finished)
    assert {*THREE, *(f'seed_1/{o}' for o in THREE)}<={*got} and all(map(says_name, finished.rglob('*.png')))
    assert not lost_pictures(finished) and not lost_pictures(finished/'seed_1')

KILLED = '''
import os,signal,sys
from pathlib import Path
from memo.experiment import again, run as ex
from memo.experiment.config import load_config
def killed(*args): os.kill(os.getpid(), signal.SIGKILL)
n,real = 0,ex.{where}
def second(*args):
    global n
    n += 1
    return real(*args) if n==1 else killed()
ex.{where} = second
ex.run_experiment(load_config(sys.argv[1], ['runs='+sys.argv[2]]))
'''

@pytest.mark.parametrize('where', ['draw','draw_scores'])
def test_a_kill_before_or_between_the_pictures(finished, tmp_path, where):
    "Of the second training: its scores are there"
    config(tmp_path)
    p = subprocess.run([sys.executable, '-c', KILLED.format(where=where), str(tmp_path/'p.yaml'),
                        str(tmp_path/'runs')], capture_output=True, text=True, timeout=300)
    assert p.returncode==-signal.SIGKILL, p.stderr
    run = tmp_path/'runs/p'
    assert (run/'seed_1/metrics.json').is_file() and not (run/'seed_1/counts.png').exists()
    said = resumed(run)
    assert len(said)==1 and 'seed 1' in said[0] and pictures(run)==pictures(finished) and resumed(run)==[]

@pytest.mark.parametrize('gone', [['memories.png'], ['bank.png','counts.png','seed_1/history.png']])
def test_those_that_are_gone_are_drawn_again(run, finished, gone):
    for o in gone: (run/o).unlink()
    was = {o:(run/o).read_bytes() for o in ('metrics.json','predictions.csv','model.safetensors')}
    assert len(resumed(run))==len({o.split('/')[0]=='seed_1' for o in gone}) and pictures(run)==pictures(finished)
    assert {o:(run/o).read_bytes() for o in was}==was

def test_one_that_cannot_be_drawn_is_not_tried_for_ever(run, monkeypatch):
    (run/'bank.png').unlink()
    def fails(*args, **kwargs): raise RuntimeError('no')
    with monkeypatch.context() as m:
        m.setattr(report, 'plot_bank', fails)
        with pytest.warns(UserWarning, match='no picture bank.png'): assert len(resumed(run))==1
    assert resumed(run)==[] and not (run/'bank.png').exists()

def test_where_nothing_can_be_drawn_any_more(run, monkeypatch):
    "The data are gone: the run is as finished as before"
    (run/'bank.png').unlink()
    def fails(*args, **kwargs): raise OSError('gone')
    monkeypatch.setattr(ex, 'rebuilt', fails)
    with pytest.warns(UserWarning, match='no picture .*gone'): resumed(run)
    assert (run/'results.md').is_file()

def test_nobody_wants_any(tmp_path):
    cfg = config(tmp_path, 'seeds=[0]', 'plots.save=false')
    ex.run_experiment(cfg, log=lambda s: None)
    assert resumed(tmp_path/'runs/p')==[] and not pictures(tmp_path)

def test_a_run_that_wrote_no_list(run):
    "Of an earlier version there are no digests; a list that is none is made anew"
    (run/'seed_1/files.json').unlink()
    d = json.loads((run/'files.json').read_text())
    (run/'files.json').write_text(json.dumps({**d, 'pictures':3}))
    assert len(resumed(run))==1 and not lost_pictures(run) and not lost_pictures(run/'seed_1')

# --overwrite

def test_a_users_own_files_stay(run, finished):
    "Pictures above all: one of a user's, a copy of memo's, one that is none"
    again.evaluate_run(run, out=run/'eval')
    Figure().savefig(run/'mine.png')
    shutil.copy(run/'bank.png', run/'for_the_paper.png')
    (run/'bank').mkdir()
    for o in ('film.png','film.part','eval/notes.csv','eval/seed_1/a.png','checkpoints/best.pt','bank/x.json'):
        (run/o).write_text('mine')
    (run/'counts.png').write_bytes((run/'mine.png').read_bytes())      # drawn anew by hand
    mine = {'mine.png','for_the_paper.png','film.png','film.part','eval/notes.csv','eval/seed_1/a.png',
            'checkpoints/best.pt','bank/x.json','counts.png'}
    remove_run(run)
    assert {str(o.relative_to(run)) for o in run.rglob('*') if o.is_file()}==mine

def test_memos_own_go(run, capsys):
    "What the other commands wrote into the run too"
    from memo.cli import memo_bank
    again.evaluate_run(run, out=run/'eval')
    memo_bank(str(run))
    remove_run(run)
    assert [*run.rglob('*')]==[]
