"Streams in experiments: YAML, what has no meaning there, runs, resuming, evaluation, a frozen backbone, mistakes"
import csv, json, re, shutil, signal, sys
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch, warnings
from dataclasses import fields
from conftest import root
from helpers.errors import err
from memo.continual.stream_fit import StreamResult
from memo.evaluation.stream_task import StreamTask, chosen_on, last_row, read_result, stream_scores
from memo.evaluation.tasks import task_of
from memo.experiment.again import evaluate_model, evaluate_run, load_run
from memo.experiment import run as ex
from memo.experiment.build import build_dls, build_learner
from memo.experiment.compare import run_experiments
from memo.experiment.config import from_dict, load_config, override
from memo.experiment.jobs import trainings, training_keys
from memo.experiment.sections import to_dict, to_yaml
from memo.models.backbones import load_backbone
from memo.models.linear import hidden_model, linear_model
from memo.core import MemoError
from memo.experiment.sections import Evaluation, Experiment, Plots, Train
from memo.registry import known, part
from memo.training.losses import OneVsAllHinge

pytestmark = pytest.mark.usefixtures('unrendered')

streams = root/'experiments/streams'
files = sorted(o.relative_to(streams).as_posix() for o in streams.rglob('*.yaml') if 'methods:' not in o.read_text())
SMALL = ['data.n=200','seeds=[0]']
REPLAY = [*SMALL,'train.cbs=[{name: Replay, size: 20, batch_size: 2}]']

def cfg_of(*more, file='points/mlp.yaml'): return load_config(streams/file, [*SMALL, *more])
def silent(s): pass

# YAML

@pytest.mark.parametrize('name', files)
def test_every_file_loads_and_reads_back(name, tmp_path):
    cfg = load_config(streams/name)
    assert cfg.name==f"streams/{name.removesuffix('.yaml')}" and not cfg.memories
    (tmp_path/'y.yaml').write_text(to_yaml(cfg))
    assert load_config(tmp_path/'y.yaml')==cfg==from_dict(to_dict(cfg), 'x')
    assert load_config(f"streams/{name.removesuffix('.yaml')}")==cfg and (cfg.train.epochs==1 or cfg.train.joint)

@pytest.mark.parametrize('data', ['modes','moons'])
@pytest.mark.parametrize('kind', ['IID','CI','CDI','CDID'])
def test_each_stream_of_points_is_one_override(data, kind):
    for f in sorted((streams/'points').glob('*.yaml')):
        cfg = load_config(f, [f'data={data}', f'data.kind={kind}', 'name=x'])
        assert (cfg.data.name,cfg.data['kind'],cfg.train.bs)==(data,kind,1)

def test_usual_settings_of_a_stream():
    "One pass, ten at a time, where nothing is said"
    said = dict(name='x', data='modes', model='lp', memory=None, compare=[])
    cfg = from_dict(said, 'x')
    assert (cfg.train.epochs,cfg.train.bs)==(1,10) and cfg.train.loss.name=='ce'
    cfg = from_dict({**said, 'train':dict(bs=3)}, 'x')
    assert (cfg.train.epochs,cfg.train.bs)==(1,3)
    assert from_dict({**said, 'data':'digits_lt'}, 'x').train.epochs==15

@pytest.mark.parametrize('key,v', [('freeze_epochs',1), ('freeze_cached','true'), ('warmup_epochs',1), ('pct_start',.2),
    ('monitor','accuracy'), ('phase2','{epochs: 1}'), ('lr','find'),
    ('sampling','balanced'), ('abnormal_only','true')])
def test_what_has_no_meaning_in_a_stream(key, v):
    e = err(cfg_of, f'train.{key}={v}')
    assert f'train.{key}' in e and ('modes' in e or 'needs' in e)

def test_what_has_no_meaning_elsewhere():
    for o in ('train.joint=true','train.half=true','train.fit=fit_one_cycle','plots.draw=true'):
        assert o.split('=')[0]+' is for streams, and digits_lt is none' in err(load_config, 'quickstart', [o])
    assert 'joint, which is for streams' in err(load_config, 'quickstart', ['compare=[joint]'])
    assert 'trainings as naive, joint are accepted' in err(cfg_of, 'compare=[logistic]')
    assert 'nothing of that' in err(cfg_of, 'compare=[naive]')
    assert 'model.arch is the network whose features' in err(cfg_of, 'model.arch=resnet18')
    assert 'train.epochs must be at least 1' in err(cfg_of, 'train.epochs=0')

def test_a_key_of_a_part_in_a_list():
    cfg = load_config(streams/'points/replay.yaml', ['train.cbs.Replay.size=2MB','train.cbs.Replay.batch_size=5'])
    assert (cfg.train.cbs[0].size,cfg.train.cbs[0].batch_size)==('2MB',5)
    e = err(load_config, streams/'points/replay.yaml', ['train.cbs.EWC.weight=3'])
    assert 'train.cbs.EWC.weight' in e and 'names Replay' in e
    assert 'train.cbs.Replay.sizes' in err(load_config, streams/'points/replay.yaml', ['train.cbs.Replay.sizes=3'])

def test_what_another_data_set_has_otherwise_is_said():
    with pytest.warns(UserWarning, match="data.kind is 'CI', as moons has it, and no more 'CDI'.*data.kind=CDI keeps"):
        assert cfg_of('data=moons').data['kind']=='CI'
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert cfg_of('data=moons', 'data.kind=CDI').data['kind']=='CDI' and cfg_of('model=mh').model.name=='mh'
        for f in files: load_config(streams/f)

def test_a_network_for_images_is_not_given_points():
    assert 'model small_cnn is for images, and modes gives 2 numbers an item; lp, mlp, mh' in err(
        ex.check_experiment, cfg_of('model=small_cnn'))
    assert 'model.pretrained is of the network' in err(cfg_of, 'model.pretrained=w.pth')

_parts = dict(data=part('data', 'modes'), model=part('model', 'mlp'), **{'train.cbs.Replay':part('callback', 'Replay')})
_keys = {**{f.name:f.type for f in fields(Experiment) if f.name not in ('memories','data','model')},
         **{f'{k}.{f.name}':f.type for k,o in (('train',Train), ('evaluation',Evaluation), ('plots',Plots))
            for f in fields(o)},
         **{f'{k}.{o}':q.type for k,p in _parts.items() for o,q in p.keys.items()},
         **dict.fromkeys(('data','model','data.name','model.name','nope','train.nope','data.nope'))}

@pytest.mark.parametrize('key', _keys)
def test_every_key_broken(key):
    "A line for what it cannot be, before anything is trained"
    told = 0
    for v in ('-1','.nan','.inf','nope','""','[]','{a: 1}','[[]]','[.nan]','true','1e400','null','2026-01-01','[1,2'):
        try: ex.check_experiment(load_config(streams/'points/replay.yaml', [*SMALL, f'{key}={v}']))
        except MemoError as e:
            told += 1
            assert '\n' not in str(e) and len(str(e))<=300
            assert key.split('.')[-1] in str(e) or key.split('.')[0] in str(e)
    assert told>=5

# parts

def test_hinge_is_the_published_one():
    "For each item the sum over outputs of max(0, -t o), t from {-1,1}"
    torch.manual_seed(0)
    o,y = torch.randn(7, 4),torch.randint(0, 4, (7,))
    want = [sum(max(0, -(1 if c==t else -1)*float(o[i,c])) for c in range(4)) for i,t in enumerate(y.tolist())]
    torch.testing.assert_close(OneVsAllHinge('none')(o, y), torch.tensor(want))
    torch.testing.assert_close(OneVsAllHinge()(o, y), torch.tensor(want).mean())

def test_networks_of_the_seed():
    names = [type(o).__name__ for o in hidden_model(2, 4, hidden=5)]
    assert names==['Flatten','Linear','Tanh','Linear'] and hidden_model(2, 4, hidden=5)[1].out_features==5
    assert linear_model(3, 4, bias=False)[1].bias is None
    learn = build_learner(cfg_of(file='points/lp.yaml'), 0)
    assert learn.model[1].in_features==2 and learn.model[1].out_features==4
    # an image is a row of its pixels
    cfg = from_dict(dict(name='x', data=dict(name='split_digits', size=8), model='mlp', memory=None, compare=[]), 'x')
    assert build_learner(cfg, 0).model[1].in_features==64

# scores

A = np.array([[.9,.2,0],[.5,.8,.1],[.7,.4,.6]])

def test_scores_are_those_of_the_matrix():
    s = stream_scores(A)
    assert s['average_accuracy']==pytest.approx((.7+.4+.6)/3) and s['forgetting']==pytest.approx((.2+.4)/2)
    assert s['anytime_accuracy']==pytest.approx((.9+(.5+.8)/2+(.7+.4+.6)/3)/3)
    s = stream_scores(A[-1])
    assert s['average_accuracy']==pytest.approx((.7+.4+.6)/3) and s['forgetting']!=s['forgetting']

def test_nothing_is_chosen_on_what_is_to_come():
    B = np.full((4,4), np.nan)
    B[:,:2] = [[1,0],[.5,.5],[.1,.1],[.1,.1]]
    assert chosen_on(B).tolist()==[[1,0],[.5,.5]] and len(chosen_on(np.full((2,2), np.nan)))==0
    assert len(chosen_on(A))==3

def test_a_matrix_is_read_back(tmp_path):
    V = np.where(np.arange(3)<1, A, np.nan)
    r = StreamResult(['0, 1','1','1'], dict(test=A, valid=V, steps=[(0,5,.1,.2,.3)]))
    r.to_csv(tmp_path/'m.csv')
    q = read_result(tmp_path/'m.csv')
    assert np.array_equal(q.matrix, A) and np.array_equal(q.valid_matrix, V, equal_nan=True) and q.names==r.names
    assert q.anytime_accuracy==r.anytime_accuracy and len(q.steps)==1

# runs

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    from helpers.pictures import no_rendering
    d = tmp_path_factory.mktemp('stream')
    cfg = load_config(streams/'points/replay.yaml', [*REPLAY, 'seeds=[0,1]', 'train.epochs=2', 'compare=[naive,joint]',
                                                     f'runs={json.dumps(str(d))}'])
    with no_rendering(): return d/cfg.name,ex.run_experiment(cfg, log=silent),cfg

def test_what_a_run_writes(trained):
    d,table,cfg = trained
    names = 'matrix.csv metrics.json predictions.csv history.csv results.md stream.png matrix.png accuracy.png'.split()
    assert {*names}<={o.name for o in d.iterdir()}
    m = json.loads((d/'metrics.json').read_text())
    s,r = m['rows'][0]['scores'],read_result(d/'matrix.csv')
    assert r.matrix.shape==(8,8) and {k:s[k] for k in stream_scores(r.matrix)}==pytest.approx(stream_scores(r.matrix))
    assert s['valid_average_accuracy']==pytest.approx(np.mean(r.valid_matrix[3,:4]))      # MODES has half of them
    p = pd.read_csv(d/'predictions.csv')
    by = (p.target==p['mlp, Replay']).groupby(p.experience).mean()
    assert by.tolist()==pytest.approx(r.matrix[-1].tolist()) and len(pd.read_csv(d/'history.csv'))==16
    rows = 'mlp, Replay','mlp, as it comes','mlp, all at once','mlp, Replay - mlp, all at once'
    assert all(o in table for o in rows)
    assert m['bytes']>json.loads((d/'naive_seed_0/metrics.json').read_text())['bytes']       # what is stored

def test_what_is_beside_a_method(trained):
    d,_,cfg = trained
    ts = {t.name:t.cfg for t in trainings(cfg, d) if t.seed==0}
    assert [*ts]==['','naive','joint'] and not ts['naive'].train.cbs and ts['joint'].train.joint
    m = json.loads((d/'joint_seed_0/metrics.json').read_text())['rows'][0]['scores']
    assert m['forgetting'] is None and 0<=m['average_accuracy']<=1 and not (d/'joint_seed_0/matrix.csv').exists()
    assert len(pd.read_csv(d/'joint_seed_0/history.csv'))==2

def test_the_run_is_what_fit_stream_gives(trained):
    d,_,cfg = trained
    one = override(cfg, {'seeds':[1],'compare':[]})
    learn = build_learner(one, 1)
    with learn.no_bar(), learn.no_logging(): r = learn.fit_stream(learn.dls.stream, 2, cfg.train.lr)
    assert np.array_equal(r.matrix, read_result(d/'seed_1/matrix.csv').matrix)

def test_methods_draw_by_the_seed_of_the_experiment():
    "Unless the file says another: else an interval over seeds would have one buffer in it"
    def kept(*more, seed):
        cfg = cfg_of('train.cbs=[{name: Replay, size: 20, batch_size: 2}]', *more)
        return build_learner(cfg, seed).replay.seed
    assert [kept(seed=3), kept(seed=4), kept('train.cbs.Replay.seed=7', seed=4)]==[3,4,7]

def test_evaluating_again(trained, tmp_path):
    d,table,cfg = trained
    again,off = evaluate_run(d, out=tmp_path)
    assert again==table and not off
    assert (tmp_path/'predictions.csv').read_text()==(d/'predictions.csv').read_text()
    text = evaluate_model(d/'model.safetensors')      # its rows before the last are not in the file
    m = json.loads((d/'metrics.json').read_text())['rows'][0]['scores']
    assert text.splitlines()[1].split()[2:]==[f"{100*m['average_accuracy']:.1f}"]
    assert len(load_run(d).replay.state)==20          # the buffer came along

@pytest.mark.parametrize('file,change,words', [
    ('matrix.csv', None, 'no such file'),
    ('matrix.csv', lambda t: t[:len(t)//2], 'cannot be read'),
    ('matrix.csv', lambda t: '', 'cannot be read'),
    ('matrix.csv', lambda t: ''.join(t.splitlines(True)[:40]), 'accuracies of test items are missing'),
    ('matrix.csv', lambda t: ''.join(t.splitlines(True)[:65]), 'has no validation items'),
    ('matrix.csv', lambda t: ''.join(t.splitlines(True)[:-8]), '7 rows of 8 experiences'),
    ('config.yaml', lambda t: t.replace('kind: CDI', 'kind: CI'), 'the stream of its config.yaml has 4'),
    ('metrics.json', lambda t: '[1]', 'has no keys'), ('metrics.json', lambda t: '{}', 'has no seed')])
def test_a_damaged_run_is_not_scored(trained, tmp_path, file, change, words):
    "Earlier rows of a matrix that is not whole would make other figures of forgetting"
    d = shutil.copytree(trained[0], tmp_path/'d')
    text = (d/file).read_text()
    if change is None: (d/file).unlink()
    else: (d/file).write_text(change(text))
    assert words in err(evaluate_run, d)

def test_on_other_data_only_the_last_row_is_known(few_fashion, fashion_root, tmp_path):
    "What was measured earlier was measured on the items of the run's own data"
    said = dict(name='f', seeds=[0], runs=str(tmp_path), model='lp', memory=None, compare=['joint'],
                data=dict(name='split_fashion', root=str(few_fashion), images=100, size=28), plots=dict(save=False),
                train=dict(opt='sgd', lr=.01))
    table = ex.run_experiment(from_dict(said, 'x'), log=silent)
    assert evaluate_run(tmp_path/'f')==(table, [])
    text,off = evaluate_run(tmp_path/'f', root=fashion_root, out=tmp_path/'e')
    s = json.loads((tmp_path/'e/metrics.json').read_text())['rows'][0]['scores']
    assert not off and 0<s['average_accuracy']<=1 and s['forgetting'] is None and not (tmp_path/'e/matrix.csv').exists()
    assert len(text.splitlines()[1].split())==2

def _refuse(c): raise ValueError(c)

@pytest.mark.parametrize('more', [['data.kind=IID'], ['data.kind=CI','data.ratios=[.5,.5]','data.stds=[[.1,.1]]',
                                                      'data.centres=[[[0,0],[1,1]]]'], ['train.half=true']])
def test_files_hold_no_nan(more, tmp_path):
    "Of one experience, of two of a class each, of those without validation items: valid JSON, empty cells"
    cfg = cfg_of('data.n=120', 'plots.save=false', 'compare=[joint]', f'runs={json.dumps(str(tmp_path))}', *more)
    ex.run_experiment(cfg, log=silent)
    evaluate_run(tmp_path/cfg.name, out=tmp_path/'e')
    for p in tmp_path.rglob('*.json'): json.loads(p.read_text(), parse_constant=_refuse)
    got = [*tmp_path.rglob('*.csv')]
    assert len(got)>=7
    for p in got:
        lines = p.read_text().splitlines()
        assert 'nan' not in p.read_text().lower() and len({len(o) for o in csv.reader(lines)})==1, p

die = '''
import os,runpy,signal,sys
from memo.training import stages
was = stages.StageCallback.after_batch if hasattr(stages.StageCallback, 'after_batch') else None
def after_batch(self):
    if self.training and getattr(self.learn, 'experience', None)==2 and self.epoch==1 and self.iter==1:
        os.kill(os.getpid(), signal.SIGKILL)
stages.StageCallback.after_batch = after_batch
from memo.cli import memo_train
sys.argv[0] = 'memo-train'
'''

@pytest.mark.slow
def test_killed_in_the_middle_of_a_stream(trained, python, tool, tmp_path):
    whole,_,cfg = trained
    memo_train = str(Path(sys.executable).with_name('memo-train'))
    (tmp_path/'die.py').write_text(die+f"runpy.run_path({memo_train!r}, run_name='__main__')\n")
    args = [*REPLAY, 'seeds=[0,1]','train.epochs=2','compare=[naive,joint]', f'runs={tmp_path}']
    r = python(tmp_path/'die.py', 'streams/points/replay', *args, render=False)
    folder = tmp_path/'streams/points/replay'
    assert r.returncode==-signal.SIGKILL, r.stderr
    assert [*(folder/'checkpoints').glob('*.pt')] and not (folder/'metrics.json').exists()
    r = tool('memo-train', '--resume', folder, render=False)
    assert r.returncode==0, r.stderr
    own = [o for o in r.stdout.splitlines() if re.search(r'seed 0 +\| stream', o)][:11]
    assert ' stream 6/16 ' in own[0] and ' stream 16/16 ' in own[-1], r.stdout       # it was not begun anew
    for f in ('results.csv','matrix.csv','metrics.json','predictions.csv','joint_seed_0/metrics.json'):
        assert (folder/f).read_text()==(whole/f).read_text(), f

def test_dry_run_of_everything(tmp_path):
    lines = []
    cfg = load_config(streams/'points/replay.yaml', [*REPLAY, 'compare=[naive,joint]', f'runs={tmp_path}'])
    ex.dry_run(cfg, lines.append)
    assert len(lines)==3 and all('ok' in o for o in lines) and not [*tmp_path.iterdir()]

def test_half_of_a_stream():
    "Its later items are not looked at"
    dls = build_dls(cfg_of('train.half=true'), 0)
    assert len(dls.stream)==4 and dls.stream.names==build_dls(cfg_of(), 0).stream.names[:4]
    assert len(build_dls(cfg_of('train.half=true','data.kind=IID'), 0).stream)==1

@pytest.mark.parametrize('f,cb,store', [('replay','Replay',lambda l: l.replay.state),
                                        ('ranpac','RanPAC',lambda l: l.ranpac.bank)])
def test_a_method_draws_by_the_seed_of_the_training(f, cb, store, tmp_path):
    "And by its own where it has one, also when the run is read back"
    cfg = cfg_of(file=f'points/{f}.yaml')
    (tmp_path/f'{f}.yaml').write_text(to_yaml(cfg))
    for c in (cfg, load_config(tmp_path/f'{f}.yaml')):
        assert [int(store(build_learner(c, i)).seed) for i in (3,7)]==[3,7]
        assert int(store(build_learner(override(c, {f'train.cbs.{cb}.seed':5}), 3)).seed)==5

def test_what_differs_of_a_callback_is_named():
    from memo.training.checkpoint import check_same_experiment
    a,b = ([dict(name='EWC', weight=1.), dict(name='Replay', size=n, batch_size=2)] for n in (20,21))
    check_same_experiment({'train.cbs':a}, {'train.cbs':a}, 'f')
    def said(o): return err(check_same_experiment, {'train.cbs':a}, {'train.cbs':o}, 'f')
    assert 'train.cbs.Replay.size is 20 there, 21 here;' in said(b)
    for o in (a[:1], a[::-1], []): assert 'train.cbs is [' in said(o)

def test_a_schedule_within_each_experience(tmp_path):
    "As `fit_stream` has it in Python"
    cfg = cfg_of('train.fit=fit_one_cycle', 'train.bs=5', f'runs={tmp_path}', 'plots.save=false')
    ex.run_experiment(cfg, log=silent)
    learn = build_learner(cfg, 0)
    with learn.no_bar(), learn.no_logging():
        r = learn.fit_stream(learn.dls.stream, 1, cfg.train.lr, 'fit_one_cycle')
    assert read_result(tmp_path/cfg.name/'matrix.csv').matrix==pytest.approx(r.matrix)
    lrs = learn.recorder.lrs
    assert max(lrs)==pytest.approx(cfg.train.lr, rel=.1) and min(lrs)<cfg.train.lr/10
    assert 'train.fit must be' in err(cfg_of, 'train.fit=fine_tune')

def test_several_methods_in_one_table(tmp_path):
    runs = f'runs={json.dumps(str(tmp_path))}'
    cfgs = [cfg_of(runs, 'seeds=[0,1]', file=f'points/{o}.yaml') for o in ('mlp','replay')]
    text = run_experiments(cfgs, log=silent)
    assert 'mlp' in text and 'replay' in text
    assert not (tmp_path/'streams/points/mlp/joint_seed_0').exists()

def test_a_task_is_a_stream_only_where_the_data_says_so():
    dls = build_dls(cfg_of(), 0)
    assert task_of(dls).name=='multiclass' and isinstance(task_of(dls, 'stream'), StreamTask)

# a frozen backbone

@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    p = tmp_path_factory.mktemp('weights')/'w.pth'
    torch.manual_seed(0)
    torch.save(load_backbone('resnet10t').state_dict(), p)
    return p

FEATURES = dict(name='f', seeds=[0], memory=None,
                data=dict(name='split_digits', size=32, shift=0, valid=5, test=5, images=60),
                train=dict(frozen=True, opt='sgd', lr=.1, wd=0))

def frozen(weights, tmp_path, **more):
    model = dict(name='lp', arch='resnet10t', pretrained=str(weights))
    return from_dict({**FEATURES, 'runs':str(tmp_path/'runs'), 'model':model, **more}, 'x')

def test_a_stream_over_features(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'settings.ini').write_text('[DEFAULT]\ndata = data\nruns = runs\n')
    cfg = frozen(weights, tmp_path, compare=['joint'])
    table = ex.run_experiment(cfg, log=silent)
    assert 'lp' in table and 'lp, all at once' in table
    cached = {o.name:o.stat().st_ino for o in (tmp_path/'data/features').iterdir()}
    learn = build_learner(cfg, 0)
    assert len(learn.dls.stream)==5 and learn.dls.train.dataset.x.ndim==2 and len(cached)==3
    again,off = evaluate_run(tmp_path/'runs/f')
    assert again==table and not off
    assert {o.name:o.stat().st_ino for o in (tmp_path/'data/features').iterdir()}==cached       # none is made again
    ex.dry_run(cfg, silent)
    e = err(build_learner, frozen(weights, tmp_path, model=dict(name='lp')), 0)
    assert 'model.arch' in e

def test_the_same_experiences_as_of_the_images(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'settings.ini').write_text('[DEFAULT]\ndata = data\nruns = runs\n')
    cfg = frozen(weights, tmp_path, compare=[])
    a,b = build_dls(cfg, 0).stream,build_learner(cfg, 0).dls.stream
    assert a.names==b.names and all(torch.equal(x, y) for x,y in zip(a.parts[0], b.parts[0]))
    assert torch.equal(torch.as_tensor(a.whole.train.dataset.y), torch.as_tensor(b.whole.train.dataset.y))

methods = [k for k,p in known('callback').items() if p.facts.get('continual')]

@pytest.mark.parametrize('name', methods)
def test_every_method_in_a_run(name, tmp_path):
    "Trained, saved with what it keeps, scored again from the file"
    cfg = cfg_of(f'train.cbs=[{name}]', 'train.lr=1e-3', 'plots.draw=true', 'data.n=120',
                 f'runs={json.dumps(str(tmp_path))}')
    table = ex.run_experiment(cfg, log=silent)
    d = tmp_path/cfg.name
    again,off = evaluate_run(d)
    assert f'mlp, {name}' in table and again==table and not off
    assert (d/'surfaces.png').exists() and (d/'matrix.png').exists() and (d/'accuracy.png').exists()

def test_a_memory_in_a_stream(tmp_path):
    "Any head: it reads what it has seen so far, is not fitted to what is to come, and has its row"
    cfg = cfg_of('memory={size: 32, head: add, k: 3}', 'train.lr=.01', 'compare=[naive]',
                 f'runs={json.dumps(str(tmp_path))}')
    table = ex.run_experiment(cfg, log=silent)
    assert 'mlp + memory' in table and 'mlp, as it comes' in table
    again,off = evaluate_run(tmp_path/cfg.name)
    assert again==table and not off
