"Trainings that are followed: the files are read back, epochs are there once, and nothing ends a training"
import json, os, warnings
import pandas as pd, pytest
from fastai.vision.all import CancelFitException, Callback, Learner, Path, accuracy
from helpers.learners import quietly
from memo.all import *
from memo.training.follow import Follow

def learner(path, *cbs):
    dls = digits_lt(30, 10, device='cpu', bs=32)
    return Learner(dls, small_cnn(1, 10), metrics=accuracy, cbs=[MemoryCallback(SlotBank(64)), *cbs], path=path)

def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    e = EventAccumulator(str(folder), size_guidance=dict(images=0, scalars=0)).Reload()
    return {k:[(o.step,o.value) for o in e.Scalars(k)] for k in e.Tags()['scalars']},e.Tags()

def wandb_rows(folder):
    "What offline runs of Weights & Biases hold: rows of history, configuration, summary"
    datastore = pytest.importorskip('wandb.sdk.internal.datastore')
    from wandb.proto import wandb_internal_pb2 as pb
    rows,config,ids,summary = [],{},set(),{}
    for p in sorted(Path(folder).glob('wandb/offline-run-*/*.wandb')):
        ds = datastore.DataStore()
        ds.open_for_scan(str(p))
        while (data := ds.scan_data()) is not None:
            r = pb.Record()
            r.ParseFromString(data)
            kind = r.WhichOneof('record_type')
            def key(o): return o.key or '/'.join(o.nested_key)
            if kind=='history': rows.append({key(o):json.loads(o.value_json) for o in r.history.item}|{'_step':r.history.step.num})
            if kind=='run':
                ids.add(r.run.run_id)
                config |= {key(o):json.loads(o.value_json) for o in r.run.config.update}
            if kind=='summary': summary |= {key(o):json.loads(o.value_json) for o in r.summary.update}
    return rows,config,ids,summary

def mlflow_run(folder):
    pytest.importorskip('mlflow')
    from mlflow import MlflowClient
    c = MlflowClient(tracking_uri=(folder/'mlruns').absolute().as_uri())
    runs = [r for e in c.search_experiments() for r in c.search_runs(e.experiment_id)]
    return c,runs

def all_trackers():
    import importlib.util
    return ['csv','tensorboard',*(k for k in ('wandb','mlflow') if importlib.util.find_spec(k))]

@pytest.fixture(autouse=True)
def offline(monkeypatch): monkeypatch.setenv('WANDB_MODE', 'offline')

def config_of(folder, **more):
    few = {'seeds':[0], 'train.epochs':3, 'compare':[], 'runs':str(folder), 'track':all_trackers(), **more}
    return override(load_config('quickstart'), few)

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    os.environ['WANDB_MODE'] = 'offline'
    d = tmp_path_factory.mktemp('followed')
    run_experiment(config_of(d), log=lambda *a: None)
    return d/'quickstart'

def history(run): return pd.read_csv(run/'history.csv')

def test_csv_has_the_history(run):
    t,h = pd.read_csv(run/'epochs.csv'),history(run)
    assert t.epoch.tolist()==[1,2,3]
    for k in ('train_loss','valid_loss','accuracy','memory_hit'): assert t[k].tolist()==pytest.approx(h[k].tolist())

def test_tensorboard_has_curves_table_and_pictures(run):
    got,tags = scalars(run/'tensorboard')
    assert [o for o,_ in got['accuracy']]==[1,2,3]
    assert [v for _,v in got['memory_hit']]==pytest.approx(history(run).memory_hit.tolist(), rel=1e-5)
    assert 'change' in tags['images'] and 'memories' not in tags['images']      # those are of items
    assert any(k.startswith('test/') and 'memory' in k for k in got)
    assert any('results' in o for o in tags['tensors'])

def test_wandb_has_the_same(run):
    rows,config,ids,summary = wandb_rows(run)
    rows = [o for o in rows if 'accuracy' in o]
    assert len(ids)==1 and [o['_step'] for o in rows]==[1,2,3]
    assert [o['accuracy'] for o in rows]==pytest.approx(history(run).accuracy.tolist())
    assert config['memory.bank']=='SlotBank' and not any('runs' in k for k in config)

def test_mlflow_has_the_same(run):
    c,(r,) = mlflow_run(run)
    assert [o.value for o in c.get_metric_history(r.info.run_id, 'accuracy')]==pytest.approx(history(run).accuracy.tolist())
    assert r.data.params['memory.bank']=='SlotBank' and r.info.status=='FINISHED'
    assert {'results.md','change.png'}<={o.path for o in c.list_artifacts(r.info.run_id)}
    assert any(k.startswith('test/') for k in r.data.metrics)

def test_no_folder_of_the_data_goes_out(run):
    import memo.experiment.sections as s
    cfg = load_config('quickstart')
    cfg = override(cfg, {'data':dict(name='folder', root='/home/somebody/patients'), 'runs':'/home/somebody/runs', 'model':'timm'})
    assert 'somebody' not in str(s.public_settings(cfg))

class Killed(Exception): pass

def test_a_killed_training_goes_on_in_the_same_runs(tmp_path):
    from memo.experiment import run as r
    cfg,seen = config_of(tmp_path),[]
    def log(line):
        seen.append(line)
        if 'train 2/3' in line: raise Killed
    with pytest.raises(Killed): run_experiment(cfg, log=log)
    was = json.loads((tmp_path/'quickstart'/'track.json').read_text())
    resume_run(tmp_path/'quickstart', log=lambda *a: None)
    d = tmp_path/'quickstart'
    now = json.loads((d/'track.json').read_text())
    assert {k:o['id'] for k,o in was.items()}=={k:o['id'] for k,o in now.items()}
    assert pd.read_csv(d/'epochs.csv').epoch.tolist()==[1,2,3]
    assert [o for o,_ in scalars(d/'tensorboard')[0]['accuracy']]==[1,2,3]
    if 'wandb' in now:
        rows,_,ids,_ = wandb_rows(d)
        assert len(ids)==1 and [o['_step'] for o in rows if 'accuracy' in o]==[1,2,3]
    if 'mlflow' in now:
        c,(o,) = mlflow_run(d)
        assert [m.step for m in c.get_metric_history(o.info.run_id, 'accuracy')]==[1,2,3]

class Broken(Tracker):
    kind = 'broken'
    def open(self, *args, **kwargs): return 'x'
    def write(self, values, step): raise OSError('the service is down')

def test_a_tracker_that_fails_is_one_warning(tmp_path):
    learn = learner(tmp_path, Broken())
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        quietly(learn, 'fit', 3)
    assert [str(o.message) for o in w if 'service is down' in str(o.message)].__len__()==1
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        quietly(learner(tmp_path, Broken()), 'fit', 1)

def test_a_callback_counts_epochs_over_fits_and_nothing_else(tmp_path):
    class Inside(Callback):
        "A prediction and a fit inside a fit"
        def after_epoch(self):
            if not hasattr(self.learn, 'inner') and not hasattr(self.learn, 'gather_preds'):
                self.learn.inner = True
                quietly(self.learn, 'get_preds')
                del self.learn.inner
    learn = learner(tmp_path, CSVTracker(), Inside())
    quietly(learn, 'lr_find', show_plot=False)
    quietly(learn, 'fit', 1)
    quietly(learn, 'validate')
    quietly(learn, 'fit_one_cycle', 2)
    t = pd.read_csv(tmp_path/'epochs.csv')
    assert t.epoch.tolist()==[1,2,3] and t.accuracy.notna().all() and 'memory_fill' in t

def test_a_learner_that_is_followed_is_exported(tmp_path):
    from fastai.vision.all import load_learner
    learn = learner(tmp_path, TensorBoardTracker())
    quietly(learn, 'fit', 1)
    learn.export('a.pkl')
    quietly(load_learner(tmp_path/'a.pkl'), 'predict', learn.dls.valid.dataset.x[0].numpy())

def test_only_the_first_process_follows(tmp_path, monkeypatch):
    import memo.training.follow as f
    monkeypatch.setattr(f, 'rank_distrib', lambda: 1)
    o = Follow([CSVTracker()], tmp_path)
    o.row(1, dict(train_loss=1.))
    o.end({}, '', [])
    assert not [*tmp_path.iterdir()]

@pytest.mark.parametrize('text', ['', '[]', '{"csv": 3}', '{"csv": {"id": 7, "step": "x"}}', 'no json'])
def test_a_damaged_note_begins_anew(tmp_path, text):
    (tmp_path/'track.json').write_text(text)
    Follow([CSVTracker()], tmp_path, resume=True).row(1, dict(train_loss=1.))
    assert pd.read_csv(tmp_path/'epochs.csv').epoch.tolist()==[1]

def test_what_is_not_installed_or_unknown_is_said_before_training(tmp_path, monkeypatch):
    import memo.training.tracking as t
    monkeypatch.setattr(t.importlib.util, 'find_spec', lambda m: None)
    with pytest.raises(MemoError, match=r"pip install 'fastmemo\[track\]'"): run_experiment(config_of(tmp_path, track=['mlflow']))
    assert not (tmp_path/'quickstart').exists()
    with pytest.raises(MemoError, match='csv'): config_of(tmp_path, track=['csvv'])
    with pytest.raises(MemoError, match='experimant'): config_of(tmp_path, track=[dict(name='mlflow', experimant='x')])

def test_what_is_tracked_is_no_part_of_a_training(run):
    cfg = load_config(run/'config.yaml')
    from memo.experiment.jobs import identity_of
    assert identity_of(cfg)==identity_of(override(cfg, {'track':[]}))
    assert 'track' not in to_yaml(override(cfg, {'track':[]}))
