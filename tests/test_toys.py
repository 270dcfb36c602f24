"""Parts from a package outside memo: used in Python, named in a YAML, saved, loaded, exported, resumed, evaluated,
all of them in one learner and one experiment"""
import copy, json, pickle, shutil, sys
from pathlib import Path
import pytest, torch, yaml
from fastai.learner import Learner, load_learner
from fastai.vision.all import CrossEntropyLossFlat, set_seed
import toys
from contracts.made import StopAt
from toys.bank import MyBank, Ring
from toys.baseline import Cooler
from toys.callback import MyCallback
from toys.data import my_data
from toys.head import MyHead
from toys.loss import MyLoss
from toys.metric import my_metric
from toys.model import MyModel
from toys.sampler import Repeated, my_sampler
from helpers.learners import quietly
from memo.heads.attach import memories
from memo.banks.exchange import open_bank
from memo.banks.base import Bank
from memo.training.memory_callback import MemoryCallback
from memo.cli import memo_bank, memo_eval, memo_train
from memo.experiment.sections import flat
from memo.experiment.config import foreign_parts, load_config
from memo.core import MemoError
from memo.experiment.again import load_run
from memo.experiment.run import resume_run, run_experiment
from memo.training.stages import Stage, fit_stages
from memo.training.param_groups import adamw, body_head_splitter
from memo.registry import known

pytestmark = pytest.mark.usefixtures('unrendered')

# Python

def learner(seed=0, path='.', cbs=()):
    set_seed(seed)
    dls = my_data(sampling=my_sampler(2))
    return Learner(dls, MyModel(1, 2, width=16), loss_func=MyLoss(.05), metrics=my_metric, opt_func=adamw,
                   splitter=body_head_splitter, path=path,
                   cbs=[MemoryCallback(MyBank(20, stretch=2.), head=MyHead, share=.2, k=3, loss_weight=.3),
                        MemoryCallback(Ring(10), head=MyHead, name='ring', at='hidden'), MyCallback(2), *cbs])

@pytest.fixture(scope='module')
def trained():
    learn = learner()
    quietly(learn, learn.fit, 2, 1e-2)
    return learn

def preds(learn): return quietly(learn, learn.get_preds)[0]

def test_python(trained):
    assert type(trained.dls.train) is Repeated and type(trained.memory.bank) is MyBank and type(
        trained.ring.head) is MyHead and trained.my.n==2*2*3
    names = trained.recorder.metric_names
    assert {'my_metric','memory_fill','memory_loss','memory_right','ring_fill',
            'ring_right'}<=set(names) and len(trained.memory.bank)==20 and len(trained.ring.bank)==10
    assert {'memory.second.weight',
            'ring.second.weight'}<={'.'.join(k.split('.')[-3:]) for k in trained.model.state_dict()}
    assert set(trained.memory.fit())=={'share','nll'} and preds(trained).shape==(32,2)
    p = preds(trained)
    with trained.memory.off(), trained.ring.off(): assert not torch.equal(preds(trained), p)

def test_saved_and_loaded(trained, tmp_path):
    p = preds(trained)
    trained.path = tmp_path
    trained.save('m')
    new = learner(1, tmp_path)
    new.load('m')
    assert torch.equal(preds(new), p) and new.memory.bank.config()==trained.memory.bank.config()
    for cls,cb in ((MyBank,trained.memory), (Ring,trained.ring)):
        cb.bank.save(tmp_path/'b.safetensors')
        for b in (Bank.load(tmp_path/'b.safetensors'), Bank.load(tmp_path/'b.safetensors', kinds=[cls])):
            assert type(b) is cls and all(torch.equal(v, cb.bank.state_dict()[k]) for k,v in b.state_dict().items())

def test_exported(trained, tmp_path):
    trained.export(tmp_path/'e.pkl')
    new = load_learner(tmp_path/'e.pkl')
    assert torch.equal(quietly(new, new.get_preds, dl=new.dls.test_dl(trained.dls.valid_ds.x))[0], preds(trained))
    m = pickle.loads(pickle.dumps(copy.deepcopy(trained.model)))
    assert set(memories(m))=={'memory','ring'}

def test_resumed(tmp_path):
    def run(folder, resume=False, cbs=None):
        learn = learner()
        return learn,quietly(learn, fit_stages, learn,
                             [Stage('a', 2, 1e-2, freeze=True), Stage('b', 2, 1e-3, freeze=False)], checkpoint=folder,
                             resume=resume, cbs=cbs)
    a,h = run(tmp_path/'a')
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'b', cbs=StopAt(8))
    b,h2 = run(tmp_path/'b', resume=True)
    assert h.drop(columns='seconds').equals(h2.drop(columns='seconds')) and all(torch.equal(v, b.model.state_dict()[k])
        for k,v in a.model.state_dict().items())

# YAML

YAML = '''
name: toy
seeds: [0]
data: {name: PKG.data.my_data, n: 48}
model: {name: PKG.model.MyModel, width: 16}
memories:
  memory: {bank: PKG.bank.MyBank, size: 20, stretch: 2.0, head: PKG.head.MyHead, k: 3, share: 0.2, loss_weight: 0.3, save_every: 1}
  ring: {bank: {name: PKG.bank.Ring, room: 10}, head: watch, at: hidden}
train:
  epochs: 2
  bs: 16
  loss: {name: PKG.loss.MyLoss, eps: 0.05}
  sampling: {name: PKG.sampler.my_sampler, times: 2}
  metrics: [PKG.metric.my_metric]
  cbs: [{name: PKG.callback.MyCallback, step: 2}]
compare: [PKG.baseline.Cooler]
'''

def write(folder, pkg='toys'):
    p = folder/'toy.yaml'
    p.write_text(YAML.replace('PKG', pkg))
    return p

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    d = tmp_path_factory.mktemp('toy')
    text = run_experiment(load_config(write(d), [f'runs={d}']), log=lambda s: None)
    return d/'toy',text

def test_yaml(run):
    folder,text = run
    assert all(o in text for o in ('cooler outputs','memory'))
    m = json.loads((folder/'metrics.json').read_text())
    assert {'first','my_metric'}<=set(m['columns']) and {'memory','ring'}==set(m['banks'])
    h = (folder/'history.csv').read_text().splitlines()
    assert len(h)==3 and all(o in h[0] for o in ('my_metric','memory_right','ring_fill','memory_loss'))
    cfg = load_config(folder/'config.yaml')
    assert flat(cfg)['train.loss.eps']==.05 and flat(cfg)['memory.bank.stretch']==2.
    env = json.loads((folder/'env.json').read_text())
    assert {'toys.bank.MyBank',
            'toys.baseline.Cooler'}<=set(env['parts']) and env['parts']['toys.bank.MyBank']['file'].endswith(
                'toys/bank.py') and len(env['parts']['toys.bank.MyBank']['blake2b'])==32

def test_evaluated_again(run, tmp_path):
    folder,text = run
    assert memo_eval(str(folder), out=str(tmp_path/'a'))==text and (tmp_path/'a/metrics.json').is_file()
    assert 'cooler outputs' in memo_eval(model_path=str(folder/'model.safetensors'), out=str(tmp_path/'b'))
    learn = load_run(folder)
    assert type(learn.memory.bank) is MyBank and type(learn.ring.bank) is Ring and len(learn.ring.bank)==10

def test_memo_bank(run):
    folder,_ = run
    assert 'MyBank' in memo_bank(str(folder), memory='memory') and 'Ring' in memo_bank(str(folder), memory='ring')
    assert type(open_bank(folder, 'memory')[0]) is MyBank and type(
        open_bank(folder/'banks/toy_memory_final.safetensors')[0]) is MyBank

def test_interrupted_and_resumed(run, tmp_path, monkeypatch):
    folder,text = run
    from memo.training import stages as recipe
    cfg = load_config(write(tmp_path), [f'runs={tmp_path}'])
    def stop(self):
        if self.training and self.epoch==1 and self.iter==1: raise KeyboardInterrupt
    with monkeypatch.context() as mp:
        mp.setattr(recipe.StageCallback, 'after_batch', stop, raising=False)
        with pytest.raises(KeyboardInterrupt): run_experiment(cfg, log=lambda s: None)
    edited = tmp_path/'toy/config.yaml'
    whole = edited.read_text()
    edited.write_text(whole.replace('share: 0.2', 'share: 0.4'))
    with pytest.raises(MemoError, match='share is 0.2 there, 0.4 here'): resume_run(tmp_path/'toy', log=lambda s: None)
    edited.write_text(whole)
    assert resume_run(tmp_path/'toy', log=lambda s: None)==text
    same = [json.loads((d/'metrics.json').read_text()) for d in (folder,tmp_path/'toy')]
    assert same[0]==same[1] and (folder/'predictions.csv').read_text()==(tmp_path/'toy/predictions.csv').read_text()

@pytest.mark.parametrize('line,msg',
                         [('memories.memory.bank.strech=2', 'strech.*stretch'),
                          ('memories.memory.bank.stretch=-1', 'stretch must be a number above 0'),
                          ('train.loss.eps=1', 'eps must be'),
                          ('memories.memory.bank=toys.bank.MyBnk', 'MyBnk.*MyBank'),
    ('data.name=toys.dat.my_data', 'toys has no dat.my_data; did you mean data'),
    ('memories.memory.head.share=2', 'share must be'),
    ('train.cbs=[{name: toys.callback.MyCallback, stpe: 1}]', 'stpe.*step')])
def test_mistakes_in_ones_own_sections_are_one_line(tmp_path, line, msg):
    "They have the same errors as memo's"
    with pytest.raises(MemoError, match=msg) as e: load_config(write(tmp_path), [line])
    assert '\n' not in str(e.value)

def test_the_config_prints_their_comments(tmp_path, capsys):
    memo_train(str(write(tmp_path)), print_config=True)
    out = capsys.readouterr().out
    assert all(o in out for o in ('# Factor of the length','# How smooth','# What one batch counts',
                                  '# Of the hidden layer','# How often','# Of the second classifier'))

def test_a_file_imports_nobodys_module(run, tmp_path, python):
    "A bank's file, a model's: one line says what to import"
    code = f'''
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from memo.banks.base import Bank
from memo.core import MemoError
try: Bank.load({str(run[0]/'banks/toy_memory_final.safetensors')!r})
except MemoError as e: print(e)
assert not any(m.startswith('toys') for m in sys.modules)
import toys.bank
print(type(Bank.load({str(run[0]/'banks/toy_memory_final.safetensors')!r})).__name__)
'''
    r = python('-W', 'ignore', '-c', code, cwd=tmp_path)
    assert r.returncode==0, r.stderr
    first,second = r.stdout.strip().splitlines()
    assert 'import toys.bank first' in first and second=='MyBank'

@pytest.mark.slow
def test_as_processes_from_another_folder(tmp_path, tool):
    "A package beside the YAML, or in the working folder, of another name: trained, evaluated, looked at by commands"
    d = tmp_path/'a folder'
    d.mkdir()
    shutil.copytree(Path(toys.__file__).parent, d/'mine', ignore=shutil.ignore_patterns('__pycache__'))
    (d/'mine/__init__.py').write_text('')
    for p in (d/'mine').glob('*.py'): p.write_text(p.read_text().replace('toys.', 'mine.').replace("'toy_", "'mine_"))
    p = write(d, 'mine')
    for cwd,arg in ((tmp_path,p), (d,'toy.yaml')):
        out = tmp_path/f'runs_{cwd.name}'
        r = tool('memo-train', arg, f'runs={out}', cwd=cwd, render=False)
        assert r.returncode==0, r.stderr[-3000:]
        e = tool('memo-eval', out/'toy', cwd=cwd, render=False)
        assert e.returncode==0 and 'cooler outputs' in e.stdout, e.stderr[-3000:]
        b = tool('memo-bank', out/'toy', '--memory', 'memory', cwd=cwd, render=False)
        assert b.returncode==0 and 'MyBank' in b.stdout, b.stderr[-3000:]
    assert (tmp_path/'runs_a folder/toy/metrics.json').read_text()==(
        tmp_path/f'runs_{tmp_path.name}/toy/metrics.json').read_text()

def test_one_of_each_kind():
    assert all(any(p.module.startswith('toys') for p in known(k).values())
               for k in ('bank','head','data','model','loss','sampler','baseline','metric','task','callback'))
