"A picture that cannot be drawn is a line of warning: the others are drawn, and the training goes on to its scores"
import warnings
from types import SimpleNamespace
import matplotlib, pytest
from helpers.every_picture import epochs, hard, learner
from helpers.pictures import no_rendering
from PIL import Image
from memo.experiment import report
from memo.experiment.config import load_config
from memo.experiment.report import draw, draw_scores, save_pictures
from memo.experiment.run import run_experiment
from memo.plots.figure import text_picture

TINY = '''
name: tiny
seeds: [0]
data: {name: digits_lt, n_max: 30, ratio: 6, valid: 5, test: 10, size: 8}
memory: {size: 64, policy: fifo, head: vote, k: 3}
train: {epochs: 1, lr: 1e-2, bs: 16}
'''

def fails(*args, **kwargs): raise RuntimeError('no such\nthing')
def broken():
    "What fails when it is saved only"
    fig = text_picture('x')
    fig.axes[0].draw = fails
    return fig

@pytest.mark.parametrize('f', [fails, broken, lambda: 3, lambda: 1/0])
def test_the_others_are_saved(tmp_path, f):
    with pytest.warns(UserWarning, match='no picture b.png: ') as got:
        save_pictures(tmp_path, a=lambda: text_picture('a'), b=f, c=lambda: None, d=lambda: text_picture('d'))
    assert len(got)==1 and '\n' not in str(got[0].message) and len(str(got[0].message))<300
    assert sorted(o.name for o in tmp_path.iterdir())==['a.png','d.png'], 'nothing half-written either'

def test_where_warnings_are_errors(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        save_pictures(tmp_path, a=fails, b=lambda: text_picture('b'))
    assert [o.name for o in tmp_path.iterdir()]==['b.png']

def test_a_folder_that_is_gone(tmp_path):
    "Or a full disk"
    (tmp_path/'file').write_text('')
    with pytest.warns(UserWarning, match='no picture a.png'):
        save_pictures(tmp_path/'file', a=lambda: text_picture('a'))

def test_one_after_the_other(tmp_path, monkeypatch):
    for k in ('plot_history','plot_bank'): monkeypatch.setattr(report, k, fails)
    with pytest.warns(UserWarning) as got: draw(learner(10, 'slots'), epochs(3), tmp_path)
    assert len(got)==2 and [o.name for o in tmp_path.iterdir()]==['memories.png']

def test_pictures_of_scores_that_nobody_knows(tmp_path):
    "Of a task of one's own"
    r = SimpleNamespace(task=SimpleNamespace(pictures=('nonsense','counts')))
    with pytest.warns(UserWarning, match='no picture nonsense.png') as got:
        draw_scores(r, learner(10, 'slots').dls, tmp_path)
    assert len(got)==1 and (tmp_path/'counts.png').is_file()

def test_names_and_styles_of_any_kind(tmp_path):
    "Two $ in class names ended trainings, and so did TeX where there is none"
    with matplotlib.rc_context({'text.usetex':True}), warnings.catch_warnings():
        warnings.simplefilter('error')
        draw(learner(len(hard), 'slots'), epochs(3), tmp_path)
    assert sorted(o.name for o in tmp_path.iterdir())==['bank.png','history.png','memories.png']
    for o in tmp_path.iterdir(): Image.open(o).load()

def test_a_training_reaches_its_scores(tmp_path, monkeypatch):
    for k in ('plot_counts','plot_history','plot_bank'): monkeypatch.setattr(report, k, fails)
    (tmp_path/'x.yaml').write_text(TINY)
    cfg = load_config(tmp_path/'x.yaml', [f'runs={tmp_path}'])
    with pytest.warns(UserWarning, match='no picture'), no_rendering(): run_experiment(cfg, log=lambda s: None)
    got = {o.name for o in (tmp_path/cfg.name).rglob('*')}
    assert {'metrics.json','results.md','predictions.csv'}<=got and not got&{'counts.png','history.png','bank.png'}
