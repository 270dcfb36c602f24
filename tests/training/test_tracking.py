"Trainings that are followed: what was written is read back, no epoch twice, nothing ends a training or leaks"
import copy, json, pickle, signal, warnings
import numpy as np, pandas as pd, pytest
from fastai.vision.all import Callback, CancelFitException, Image, Learner, Path, accuracy, load_learner
from helpers.learners import quietly
from helpers.tracked import epochs, kinds, mlflow_runs, records, scalars, wandb_rows
from memo.all import *
from memo.experiment.run import resume_run
from memo.experiment.run_owner import remove_run
from memo.experiment.sections import public_settings, to_yaml
from memo.training.follow import Follow
import memo.training.tracking as tracking

made = dict(csv=CSVTracker, tensorboard=TensorBoardTracker, wandb=WandbTracker, mlflow=MLflowTracker)

def learner(path, *cbs):
    dls = digits_lt(30, 10, device='cpu', bs=32)
    return Learner(dls, small_cnn(1, 10), metrics=accuracy, cbs=[MemoryCallback(SlotBank(64)), *cbs], path=path)

@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    monkeypatch.delenv('WANDB_SERVICE', raising=False)      # that of this process, which one that is killed would share

few = {'seeds':[0], 'train.epochs':3, 'data.n_max':30, 'compare':[], 'plots.save':False}
def config_of(folder, **more):
    return override(load_config('quickstart'), few | {'runs':str(folder), 'track':kinds} | more)
def silent(*_): pass
def history(run): return pd.read_csv(run/'history.csv')
def but_time(h): return h.drop(columns='seconds')

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    d = tmp_path_factory.mktemp('followed')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('WANDB_MODE', 'offline')
        run_experiment(config_of(d, **{'plots.save':True}), log=silent)
    return d/'quickstart'

def test_csv_has_the_history(run):
    t,h = pd.read_csv(run/'epochs.csv'),history(run)
    assert t.epoch.tolist()==[1,2,3]
    for k in ('train_loss','valid_loss','accuracy','memory_hit'): assert t[k].tolist()==pytest.approx(h[k].tolist())

def test_tensorboard_has_curves_table_and_pictures_of_no_item(run):
    got,tags = scalars(run/'tensorboard')
    assert [o for o,_ in got['accuracy']]==[1,2,3]
    assert [v for _,v in got['memory_hit']]==pytest.approx(history(run).memory_hit.tolist(), rel=1e-5)
    assert {'comparison','reliability'}<={*tags['images']}
    assert (run/'memories.png').exists() and not any('memor' in o or 'bank' in o for o in tags['images'])
    assert any(k.startswith('test/') and 'memory' in k for k in got)
    assert any('results' in o for o in tags['tensors'])

def test_wandb_has_the_same(run):
    pytest.importorskip('wandb')
    rows,config,ids,summary = wandb_rows(run)
    assert len(ids)==1 and [o['_step'] for o in rows]==[1,2,3]
    assert [o['accuracy'] for o in rows]==pytest.approx(history(run).accuracy.tolist())
    assert config['memory.bank']=='SlotBank' and not any('runs' in k for k in config)
    rows = json.loads((run/'metrics.json').read_text())['rows']
    assert summary['test/memory/accuracy']==rows[1]['scores']['accuracy']

def test_mlflow_has_the_same(run):
    pytest.importorskip('mlflow')
    c,(r,) = mlflow_runs(run)
    got = [o.value for o in c.get_metric_history(r.info.run_id, 'accuracy')]
    assert got==pytest.approx(history(run).accuracy.tolist())
    assert r.data.params['memory.bank']=='SlotBank' and r.info.status=='FINISHED'
    at = {o.path for o in c.list_artifacts(r.info.run_id)}
    assert {'results.md','comparison.png'}<=at and not any('memor' in o or 'bank' in o for o in at)
    assert any(k.startswith('test/') for k in r.data.metrics)

def goes_out(run):
    "All that a tracker of this training sends, as text"
    res = {p.name:p.read_bytes() for p in run.glob('tensorboard/*')}
    for p in run.glob('wandb/offline-run-*/*.wandb'): res[p.name] = p.read_bytes()
    for p in run.glob('wandb/offline-run-*/files/**/*'):
        if p.is_file(): res[str(p.relative_to(run))] = b'' if p.suffix=='.png' else p.read_bytes()
    if (run/'mlruns').exists():
        c,(r,) = mlflow_runs(run)
        res['mlflow'] = f'{r.data.params} {r.data.metrics} {r.data.tags} {r.info.user_id} {r.info.run_name}'.encode()
    return res

def test_no_path_file_column_or_secret_goes_out(tmp_path, monkeypatch):
    import getpass
    monkeypatch.setenv('WANDB_API_KEY', 'c0ffee'*6+'c0ff')
    monkeypatch.setenv('HF_TOKEN', 'hf_verysecret')
    home = tmp_path/'klinikum'
    home.mkdir()
    rows = [f'mueller_{i}.png,{"ab"[i%2]},p{i}' for i in range(40)]
    (home/'befunde.csv').write_text('\n'.join(['datei,diagnose,fall',*rows]))
    for i in range(40): Image.fromarray(np.full((16, 16, 3), 5*i+i%2, np.uint8)).save(home/f'mueller_{i}.png')
    data = dict(name='csv', root=str(home), csv='befunde.csv', image='datei', label='diagnose', group='fall', size=16,
                workers=0, valid=.2, test=.2, ratio=1)
    c = {'data':data, 'model':dict(name='timm', arch='resnet10t'), 'train.epochs':1, 'seeds':[0], 'compare':[],
         'runs':str(tmp_path/'runs'), 'track':kinds}
    run_experiment(override(load_config('quickstart'), c), log=silent)
    run = tmp_path/'runs/quickstart'
    assert epochs(run)=={k:[1] for k in kinds}
    words = 'klinikum befunde datei diagnose mueller fall c0ffee verysecret'.split()
    words += [str(tmp_path),getpass.getuser()+'@']
    for name,b in goes_out(run).items():
        assert not (found := [o for o in words if o.encode() in b]), (name,found)
    assert 'c0ffee' not in (run/'track.json').read_text()+(run/'config.yaml').read_text()
    for p in run.glob('wandb/offline-run-*/*.wandb'): assert {r.run.host for r in records(p)}=={''}

def test_settings_that_go_out():
    c = override(load_config('quickstart'), {
        'data':dict(name='lists', root='/home/somebody/patients', train='somebody.txt', valid=.1, test='other.txt'),
        'model':dict(name='timm', arch='tf_efficientnet_b0.in1k', pretrained='somebody.pth'), 'memory.item':'somebody',
        'runs':'~/somebody', 'train.monitor':'lowest valid_loss',
        'train.cbs':[dict(name='save_bank', folder='somebody', every=3)], 'compare':[],
        'track':[dict(name='csv')]})
    s = public_settings(c)
    assert 'somebody' not in str(s) and 'other' not in str(s) and not any(k.startswith(('track','runs')) for k in s)
    assert s['data']=='lists' and s['data.valid']==.1 and s['model.arch']=='tf_efficientnet_b0.in1k'
    assert s['train.monitor']=='lowest valid_loss' and s['train.cbs.save_bank.every']==3
    assert public_settings(override(load_config('hopfield/digits'), {}))['model.memory']
    assert '$' not in str(public_settings(override(c, {'data.train':'$TOKEN'})))

def test_a_key_of_ones_own_part_is_no_setting(tmp_path, monkeypatch):
    (tmp_path/'own_logging.py').write_text('''
from fastai.vision.all import Callback
class OwnLogging(Callback):
    "Sends"
    def __init__(self, api_key:str, server_url:str='x', rate:float=1., anything=None): self.sent = 0
''')
    monkeypatch.syspath_prepend(tmp_path)
    cb = dict(name='own_logging.OwnLogging', api_key='k1234', server_url='w5678', rate=2., anything='x9012')
    s = public_settings(override(load_config('quickstart'), {'train.cbs':[cb]}))
    assert [v for k,v in s.items() if k.endswith('.rate')]==[2.]
    assert not any(o in str(s) for o in ('k1234','w5678','x9012'))

@pytest.mark.slow
@pytest.mark.parametrize('at', ['mid','between trackers','all but the note'])
def test_a_killed_training_goes_on_in_the_same_runs(tmp_path, python, tool, repo, yml, at):
    "In the second epoch; when that is written by some trackers; when it is by all, and before it is noted and saved"
    text = to_yaml(config_of(tmp_path/'runs'))
    when = {'mid':'mid', 'between trackers':'CSVTracker', 'all but the note':made[kinds[-1]].__name__}[at]
    r = python(repo/'tests/commands/interrupt.py', when, yml(text), cwd=tmp_path)
    assert r.returncode==-signal.SIGKILL, r.stderr[-3000:]
    d = tmp_path/'runs/quickstart'
    was = json.loads((d/'track.json').read_text())
    assert {k:o['step'] for k,o in was.items()}=={k:1 for k in kinds}
    r = tool('memo-train', '--resume', d, cwd=tmp_path)
    assert r.returncode==0, r.stderr[-3000:]
    now = json.loads((d/'track.json').read_text())
    assert {k:o['id'] for k,o in was.items()}=={k:o['id'] for k,o in now.items()}
    assert all(o.get('ended') for o in now.values()), r.stderr
    got = epochs(d)
    if at!='mid' and 'wandb' in got: got['wandb'] = [*dict.fromkeys(got['wandb'])]     # two files of one run offline
    assert got=={k:[1,2,3] for k in kinds}
    t = pd.read_csv(d/'epochs.csv')
    assert t.accuracy.tolist()==history(d).accuracy.tolist()
    r = tool('memo-train', '--resume', d, cwd=tmp_path)        # has ended: nothing is written again
    assert r.returncode==0 and json.loads((d/'track.json').read_text())==now and len([*d.glob('tensorboard/*')])==2

def test_what_is_lost_of_a_run_is_made_again_and_not_told_twice(tmp_path):
    run_experiment(config_of(tmp_path), log=silent)
    d = tmp_path/'quickstart'
    was = {p.name for p in d.glob('tensorboard/*')},(d/'epochs.csv').read_bytes(),(d/'track.json').read_bytes()
    (d/'predictions.csv').unlink()
    resume_run(d, log=silent)
    assert was==({p.name for p in d.glob('tensorboard/*')},(d/'epochs.csv').read_bytes(),(d/'track.json').read_bytes())

def test_a_run_that_was_scored_and_not_ended_ends_when_it_is_resumed(tmp_path, monkeypatch):
    class Killed(Exception): pass
    def killed(*_): raise Killed
    track = [k for k in kinds if k!='wandb']        # whose run this process, which was not, has open
    with monkeypatch.context() as m:
        m.setattr('memo.experiment.run.tell_end', killed)
        with pytest.raises(Killed): run_experiment(config_of(tmp_path, track=track), log=silent)
    d = tmp_path/'quickstart'
    assert (d/'metrics.json').exists()
    assert not any('ended' in o for o in json.loads((d/'track.json').read_text()).values())
    for _ in range(2): resume_run(d, log=silent)
    assert all(o['ended'] for o in json.loads((d/'track.json').read_text()).values())
    got,_ = scalars(d/'tensorboard')
    assert [s for s,_ in got['test/memory/accuracy']]==[3] and [s for s,_ in got['accuracy']]==[1,2,3]
    if 'mlflow' in kinds: assert [r.info.status for r in mlflow_runs(d)[1]]==['FINISHED']

@pytest.mark.slow
def test_each_training_is_a_run(tmp_path, monkeypatch):
    if 'mlflow' in kinds:
        monkeypatch.setenv('MLFLOW_TRACKING_URI', (tmp_path/'server').as_uri())
        monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    run_experiment(config_of(tmp_path, seeds=[0,1], compare=['balanced_sampling'], **{'train.epochs':2}), log=silent)
    d = tmp_path/'quickstart'
    folders = [o.parent for o in d.rglob('metrics.json')]
    assert len(folders)==4
    for o in folders: assert epochs(o)=={k:[1,2] for k in kinds if k!='mlflow'}
    if 'mlflow' in kinds:
        c,runs = mlflow_runs((tmp_path/'server').as_uri())
        assert len({r.info.run_name for r in runs})==4 and {r.data.params['seed'] for r in runs}=={'0','1'}
        assert all([m.step for m in c.get_metric_history(r.info.run_id, 'accuracy')]==[1,2] for r in runs)

@pytest.mark.slow
def test_of_two_processes_one_writes(tmp_path, two_ranks, yml):
    r = two_ranks('-m', 'memo.cli', 'train', yml(to_yaml(config_of(tmp_path/'runs'))), cwd=tmp_path)
    assert r.returncode==0, r.stderr[-4000:]
    d = tmp_path/'runs/quickstart'
    assert epochs(d)=={k:[1,2,3] for k in kinds} and len([*d.glob('tensorboard/*')])==1
    assert pd.read_csv(d/'epochs.csv').accuracy.tolist()==history(d).accuracy.tolist()

def test_in_a_second_process_nothing_follows(tmp_path, monkeypatch):
    import memo.training.follow as f
    for m in (f, tracking): monkeypatch.setattr(m, 'rank_distrib', lambda: 1)
    o = Follow([CSVTracker()], tmp_path)
    o.row(1, dict(train_loss=1.))
    o.end({}, '', [])
    quietly(learner(tmp_path, CSVTracker(), TensorBoardTracker()), 'fit', 1)
    assert not [*tmp_path.iterdir()]

def test_a_stream_is_followed(tmp_path):
    more = {'seeds':[0], 'runs':str(tmp_path), 'track':['csv'], 'compare':[], 'plots.save':False}
    c = override(load_config('streams/split_digits'), more)
    run_experiment(c, log=silent)
    d, = [o.parent for o in tmp_path.rglob('metrics.json')]
    n = len(history(d))
    assert pd.read_csv(d/'epochs.csv').epoch.tolist()==[*range(1, n+1)]

def test_a_training_that_diverges_has_failed(tmp_path, monkeypatch):
    (tmp_path/'track_parts.py').write_text("""
from fastai.vision.all import Callback, first
class Spoils(Callback):
    "Weights become infinite in the second epoch, and in a checkpoint"
    def after_step(self):
        if self.epoch==1: first(self.learn.model.parameters()).data.fill_(float('inf'))
""")
    monkeypatch.syspath_prepend(tmp_path)
    c = config_of(tmp_path, **{'train.cbs':['track_parts.Spoils']})
    run_experiment(c, log=silent)
    d = tmp_path/'quickstart'
    assert json.loads((d/'metrics.json').read_text())['diverged']['kept']==dict(stage='train', epoch=0)
    assert epochs(d)=={k:[1] for k in kinds}        # of the epoch before, which is scored
    f = Follow([made[k]() for k in kinds], tmp_path/'other')
    f.row(1, dict(train_loss=1.))
    f.end({}, 'nothing is left', failed=True)
    if 'mlflow' in kinds: assert [r.info.status for r in mlflow_runs(tmp_path/'other')[1]]==['FAILED']
    assert epochs(tmp_path/'other')=={k:[1] for k in kinds}

def test_wandb_stays_offline_where_it_was_set_up_online(tmp_path, monkeypatch):
    "W&B reads WANDB_MODE once a process, and whoever set it later would have had his runs on the network"
    wandb = pytest.importorskip('wandb')
    wandb.teardown()
    monkeypatch.delenv('WANDB_MODE')
    assert wandb.setup().settings.mode=='online'
    monkeypatch.setenv('WANDB_MODE', 'offline')
    t = WandbTracker()
    assert t.open('x', {}, tmp_path)
    t.close({}, '', [])
    assert [*tmp_path.glob('wandb/offline-run-*')] and not [*tmp_path.glob('wandb/run-*')]

# what fails

def test_a_tracker_that_fails_changes_no_result(tmp_path, monkeypatch):
    run_experiment(config_of(tmp_path/'plain', track=[]), log=silent)
    (tmp_path/'epochs.csv').mkdir()
    from torch.utils.tensorboard import SummaryWriter
    def full(*_): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(SummaryWriter, 'flush', full)
    monkeypatch.setattr('memo.training.track_csv.write_csv', full)
    monkeypatch.setenv('MLFLOW_HTTP_REQUEST_MAX_RETRIES', '0')
    for k in ('WANDB_API_KEY','NETRC'): monkeypatch.delenv(k, raising=False)        # no login
    monkeypatch.setenv('HOME', str(tmp_path))
    more = dict(wandb=dict(mode='online'), mlflow=dict(uri='http://127.0.0.1:9'))
    track = [dict(name=k, **more.get(k, {})) for k in kinds]
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        run_experiment(config_of(tmp_path/'down', track=track), log=silent)
    said = [str(o.message) for o in w if 'the training goes on without it' in str(o.message)]
    assert len(said)==len(kinds) and all(len(o)<=300 for o in said), said
    if 'wandb' in kinds: assert any('WandbTracker' in o and 'wandb login' in o for o in said)
    a,b = (tmp_path/k/'quickstart' for k in ('plain','down'))
    assert but_time(history(a)).equals(but_time(history(b)))
    assert (a/'predictions.csv').read_bytes()==(b/'predictions.csv').read_bytes()

class Broken(Tracker):
    kind = 'broken'
    def open(self, *args, **kwargs): return 'x'
    def write(self, values, step): raise OSError('the service is down')

def test_a_tracker_that_fails_is_one_warning(tmp_path):
    learn = learner(tmp_path, Broken())
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        quietly(learn, 'fit', 3)
    assert len([o for o in w if 'service is down' in str(o.message)])==1
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        quietly(learner(tmp_path, Broken()), 'fit', 1)

def test_a_note_that_cannot_be_written_is_one_warning(tmp_path):
    (tmp_path/'track.json').mkdir()
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        f = Follow([CSVTracker()], tmp_path)
        for i in 1,2: f.row(i, dict(train_loss=1.))
    assert len([o for o in w if 'track.json' in str(o.message)])==1 and len(pd.read_csv(tmp_path/'epochs.csv'))==2

def test_a_note_names_no_folder_elsewhere(tmp_path):
    (tmp_path/'run').mkdir()
    (tmp_path/'run/track.json').write_text(json.dumps(dict(tensorboard=dict(id='../elsewhere', step=0))))
    f = Follow([TensorBoardTracker()], tmp_path/'run', resume=True)
    f.row(1, dict(train_loss=1.))
    f.end({}, '')
    assert [o.name for o in tmp_path.iterdir()]==['run'] and len([*tmp_path.glob('run/tensorboard/events*')])==1

@pytest.mark.parametrize('how', ['move','copytree'])
def test_a_folder_that_was_moved_is_followed_on_where_it_is(tmp_path, how):
    import shutil
    a,b = tmp_path/'before it was moved',tmp_path/'later'
    Follow([made[k]() for k in kinds], a).row(1, dict(train_loss=1.))
    was = {o:o.read_bytes() for o in a.rglob('*') if o.is_file() and o.suffix!='.wandb'}
    getattr(shutil, how)(a, b)
    f = Follow([made[k]() for k in kinds if k!='wandb'], b, resume=True)       # whose run is open in this process
    f.row(2, dict(train_loss=.5))
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        f.end({}, 'a table')
    said = [str(o.message) for o in w]
    assert len(said)==('mlflow' in kinds) and all('was moved' in o for o in said), said
    # files of one second are in no order
    assert {k:sorted(v) for k,v in epochs(b).items() if k!='wandb'}=={k:[1,2] for k in kinds if k!='wandb'}
    if how=='move': assert not [o for o in a.rglob('*') if o.is_file() and 'wandb' not in str(o)]
    else: assert was=={o:o.read_bytes() for o in a.rglob('*') if o.is_file() and o.suffix!='.wandb'}

def test_what_is_replaced_is_followed_no_more(tmp_path):
    "`--overwrite` takes away the runs that the note names, as far as they are in the folder, and nothing else"
    d = tmp_path/'run'
    f = Follow([made[k]() for k in kinds], d)
    f.row(1, dict(train_loss=1.))
    f.end({}, '')
    others = [d/o for o in ('wandb/notes.txt','wandb/offline-run-20260101_000000-another1/x','mlruns/1/another1/x')]
    for o in others:
        o.parent.mkdir(parents=True, exist_ok=True)
        o.write_text('x')
    note = json.loads((d/'track.json').read_text())
    for bad in ('*', '..', '../..', '', 'another1/..'):
        said = {k:dict(o, id=bad) for k,o in note.items()} | dict(own=dict(id='x', step=1))
        (d/'track.json').write_text(json.dumps(said))
        remove_run(d)
        assert all(o.exists() for o in others)
    if 'mlflow' in kinds: assert [*d.glob(f"mlruns/*/{note['mlflow']['id']}")]
    (d/'track.json').write_text(json.dumps(note))
    remove_run(d)
    assert not (d/'epochs.csv').exists() and not (d/'tensorboard').exists()
    left = [str(o) for o in (*d.glob('wandb/*'), *d.glob('mlruns/*/*'))]
    assert not any(o['id'] in p for o in note.values() for p in left) and not any('latest-run' in o for o in left)
    assert all(o.exists() for o in others)

@pytest.mark.parametrize('text', ['', '[]', '{"csv": 3}', '{"csv": {"id": 7, "step": "x"}}', 'no json'])
def test_a_damaged_note_loses_no_epoch(tmp_path, text):
    f = Follow([CSVTracker()], tmp_path)
    for i in 1,2: f.row(i, dict(train_loss=1/i))
    (tmp_path/'track.json').write_text(text)
    Follow([CSVTracker()], tmp_path, resume=True).row(2, dict(train_loss=.25))
    t = pd.read_csv(tmp_path/'epochs.csv')
    assert t.epoch.tolist()==[1,2] and t.train_loss.tolist()==[1,.25]

def test_an_epoch_is_written_once(tmp_path):
    f = Follow([CSVTracker()], tmp_path)
    for i in 1,2: f.row(i, dict(train_loss=1/i))
    f = Follow([CSVTracker()], tmp_path, resume=True)
    for i in 1,2,3: f.row(i, dict(train_loss=.1))
    t = pd.read_csv(tmp_path/'epochs.csv')
    assert t.epoch.tolist()==[1,2,3] and t.train_loss.tolist()==[1,.5,.1]

def test_figures_that_are_no_numbers(tmp_path):
    f = Follow([CSVTracker()], tmp_path)
    odd = dict(few=float('nan'), name='x', none=None, many=np.ones(3))
    f.row(1, dict(stage='a', epoch=0, train_loss=np.float32(.5), **odd))
    f.row(2, dict(stage='b', epoch=0, train_loss=.25, later=True))
    t = pd.read_csv(tmp_path/'epochs.csv')
    assert t.columns.tolist()==['epoch','train_loss','few','later'] and t.train_loss.tolist()==[.5,.25]

# callbacks

@pytest.mark.parametrize('kind', kinds)
def test_a_callback_counts_epochs_over_fits_and_nothing_else(tmp_path, kind):
    class Inside(Callback):
        "Predictions, a validation and a fit within a fit, before the epoch's figures are there and after"
        order,busy,training_ended,fits = 70,False,False,0
        def look(self):
            if self.busy or hasattr(self.learn, 'lr_finder') or hasattr(self.learn, 'gather_preds'): return
            self.busy = True
            quietly(self.learn, 'get_preds')
            quietly(self.learn, 'validate')
            self.busy = False
        def after_train(self):
            self.training_ended = True
            self.look()
        def after_epoch(self):
            if self.training_ended: self.look()
            self.training_ended = False
        def before_fit(self):
            if self.busy or hasattr(self.learn, 'lr_finder') or hasattr(self.learn, 'gather_preds'): return
            self.busy,n,self.fits = True,self.n_epoch,self.fits+1
            quietly(self.learn, 'fit', 2)      # two, as one would take the place of the outer fit's in the count
            self.busy,self.learn.n_epoch = False,n
    learn = learner(tmp_path, made[kind](), inside := Inside())
    quietly(learn, 'lr_find', show_plot=False)
    assert epochs(tmp_path)=={}
    quietly(learn, 'fit', 1)
    quietly(learn, 'validate')
    quietly(learn, 'fit_one_cycle', 2)
    getattr(learn, f'{kind}_tracker').finish()
    assert inside.fits>=2 and epochs(tmp_path)=={kind:[1,2,3]}

def test_fine_tune_is_one_run(tmp_path):
    learn = learner(tmp_path, *(made[k]() for k in kinds))
    quietly(learn, 'fine_tune', 2)
    for k in kinds: getattr(learn, f'{k}_tracker').finish()
    assert epochs(tmp_path)=={k:[1,2,3] for k in kinds}
    t = pd.read_csv(tmp_path/'epochs.csv')
    assert t.accuracy.notna().all() and {'train_loss','valid_loss','memory_fill'}<={*t} and 'time' not in t

def test_after_an_interrupted_fit_the_next_one_is_followed(tmp_path):
    class Stops(Callback):
        def before_batch(self):
            if self.training and self.epoch==1: raise KeyboardInterrupt
    learn = learner(tmp_path, CSVTracker())
    with pytest.raises(KeyboardInterrupt): quietly(learn, 'fit', 3, cbs=Stops())
    learn.remove_cbs([o for o in learn.cbs if isinstance(o, Stops)])
    quietly(learn, 'fit', 1)
    assert pd.read_csv(tmp_path/'epochs.csv').epoch.tolist()==[1,2]

def test_an_early_stop_is_followed(tmp_path):
    class Stops(Callback):
        order = 62
        def after_epoch(self): raise CancelFitException
    learn = learner(tmp_path, CSVTracker(), Stops())
    quietly(learn, 'fit', 3)
    assert pd.read_csv(tmp_path/'epochs.csv').epoch.tolist()==[1]

@pytest.mark.parametrize('kind', kinds)
def test_a_recipe_that_is_resumed_is_followed_on(tmp_path, kind):
    class Cut(Exception): pass
    def stop(row):
        if row['epoch']==1: raise Cut('now')
    stages = [Stage('a', 3, 1e-2)]
    learn = learner(tmp_path, made[kind]())
    with pytest.raises(Cut): quietly(learn, lambda: fit_stages(learn, stages, tmp_path/'c', log=stop))
    learn = learner(tmp_path, made[kind]())
    quietly(learn, lambda: fit_stages(learn, stages, tmp_path/'c', resume=True))
    getattr(learn, f'{kind}_tracker').finish()
    if kind in ('csv','tensorboard'): assert epochs(tmp_path)=={kind:[1,2,3]}

def test_a_second_session_leaves_the_curves_of_the_first(tmp_path):
    for n in 1,2: quietly(learner(tmp_path, TensorBoardTracker()), 'fit', n)
    assert [len(scalars(tmp_path/k)[0]['accuracy']) for k in ('tensorboard','tensorboard_2')]==[1,2]

def with_account(kind):
    more = dict(wandb=dict(project='kunde', entity='konto'), mlflow=dict(experiment='kunde'))
    return made[kind](**more.get(kind, {}))

@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('memory', [True,False])
def test_exports_and_copies_know_nothing_of_an_open_run(tmp_path, kind, memory):
    home,cb = tmp_path/'klinikum',with_account(kind)
    learn = Learner(digits_lt(30, 10, device='cpu', bs=32), small_cnn(1, 10), metrics=accuracy, path=home,
                    cbs=[MemoryCallback(SlotBank(64))]*memory+[cb])
    quietly(learn, 'fit', 1)
    learn.path = tmp_path
    learn.save('m')
    if memory: learn.export('a.pkl')
    else: learn.export('a.pkl')
    b = b''.join(p.read_bytes() for p in (tmp_path/'a.pkl',tmp_path/'models/m.pth'))
    b += pickle.dumps(cb)
    ids = [] if kind in ('csv','tensorboard') else [cb.run_id.encode()]
    assert not [o for o in (b'kunde',b'konto',b'klinikum',b'memo.training.track',*ids) if o in b]
    if memory:
        got = load_learner(tmp_path/'a.pkl')
        quietly(got, 'predict', learn.dls.valid.dataset.x[0].numpy())
    new = copy.deepcopy(learn)
    quietly(new, 'fit', 1)
    assert getattr(new, f'{kind}_tracker').run_id is None      # the first one's run is not written by two
    quietly(learn, 'fit', 1)
    cb.finish()
    assert epochs(home)=={kind:[1,2]}
    assert {p.name for p in home.iterdir()}<={'epochs.csv','tensorboard','wandb','mlruns'}

def test_a_copy_of_a_learner_that_has_not_begun_is_followed(tmp_path):
    learn = learner(tmp_path, CSVTracker())
    new = copy.deepcopy(learn)
    assert new.csv_tracker is not learn.csv_tracker and new.csv_tracker.learn is new
    quietly(new, 'fit', 1)
    assert epochs(tmp_path)=={'csv':[1]} and learn.csv_tracker.run_id is None

def test_what_is_not_installed_unknown_or_twice_is_said_before_training(tmp_path, monkeypatch):
    with pytest.raises(MemoError, match='csv'): config_of(tmp_path, track=['csvv'])
    with pytest.raises(MemoError, match='experimant'): config_of(tmp_path, track=[dict(name='mlflow', experimant='x')])
    with pytest.raises(MemoError, match='twice: csv'): config_of(tmp_path, track=['csv','csv'])
    find = tracking.importlib.util.find_spec
    monkeypatch.setattr(tracking.importlib.util, 'find_spec', lambda m: None if m=='mlflow' else find(m))
    with pytest.raises(MemoError, match=r"track.mlflow: mlflow is not installed: pip install 'fastmemo\[track\]'"):
        run_experiment(config_of(tmp_path, track=['mlflow']))
    assert not (tmp_path/'quickstart').exists()

def test_what_is_tracked_is_no_part_of_a_training(run):
    cfg = load_config(run/'config.yaml')
    from memo.experiment.jobs import identity_of
    assert identity_of(cfg)==identity_of(override(cfg, {'track':[]}))
    assert 'track' not in to_yaml(override(cfg, {'track':[]}))

def test_a_run_that_is_replaced_leaves_nothing_of_its_own(tmp_path):
    c = config_of(tmp_path, track=['csv','tensorboard'], **{'train.epochs':1})
    for n in 2,1: run_experiment(override(c, {'train.epochs':n}), overwrite=True, log=silent)
    assert epochs(tmp_path/'quickstart')=={'csv':[1], 'tensorboard':[1]}
