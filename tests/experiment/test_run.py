"""Experiments: learners, run folders, tables, evaluation again, parts of one's own; what a YAML may say is in
test_config"""
import dataclasses, json, math, shutil
from pathlib import Path
import pandas as pd, pytest, torch, yaml
from PIL import Image
from sklearn.datasets import load_digits
from helpers.errors import err
from helpers.pictures import no_rendering
from memo.experiment.config import *
from memo.core import MemoError
from memo.experiment import build
from memo.evaluation import evaluate as evaluation
from memo.experiment.again import evaluate_run, load_run
from memo.experiment import run as ex
from memo.evaluation.tables import Row, label, results, rows_of
from memo.experiment.run_folder import environment, model_config, read_json, run_config
from memo.experiment.jobs import trainings
from memo.training.memory_callback import MemoryCallback

pytestmark = pytest.mark.usefixtures('unrendered')

TINY = '''
name: tiny
seeds: [0]
data: {name: digits_lt, n_max: 30, ratio: 6, valid: 5, test: 10, size: 8}
memory: {size: 64, policy: reservoir, head: vote, k: [3, 5], whiten: [false, true]}
train: {epochs: 2, lr: 1e-2, bs: 16}
compare: [logit_adjusted]
'''

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A small finished run with a rival and two seeds"
    d = tmp_path_factory.mktemp('runs')
    (d/'x.yaml').write_text(TINY)
    cfg = load_config(d/'x.yaml', ['seeds=[0,1]', 'compare=[logit_adjusted, balanced_sampling]',
                                   f'runs={json.dumps(str(d))}'])
    lines = []
    with no_rendering(): table = ex.run_experiment(cfg, log=lines.append)
    return cfg,d/'tiny',table,lines

def test_every_key_is_read():
    "Each key of the training occurs in the code that builds from it"
    src = ''.join(Path(m.__file__).read_text() for m in (ex,build,evaluation))
    for cls in (Train,Phase2):
        for f in dataclasses.fields(cls): assert f'.{f.name}' in src, f'{cls.__name__}.{f.name}'

# learners

def test_the_same_call_gives_the_same_learner(yml):
    cfg = load_config(yml(TINY))
    def go():
        learn = ex.build_learner(cfg, 0)
        return [p.detach() for p in learn.model.parameters()] + [learn.dls.one_batch()[0]]
    for p,q in zip(go(), go()): assert torch.equal(p, q)

def test_unknown_arch(yml):
    assert 'resnet18' in err(ex.build_learner, load_config(yml(TINY), ['model={name: timm, arch: resnet_18}']), 0)

def test_dry_run_writes_nothing(yml, tmp_path):
    cfg = load_config(yml(TINY), [f'runs={json.dumps(str(tmp_path/"runs"))}', 'train.phase2.epochs=2',
                                  'train.freeze_epochs=1'])
    lines = []
    ex.dry_run(cfg, lines.append)
    assert not (tmp_path/'runs').exists() and 'phase1.frozen, phase1.all, phase2: ok' in lines[0]

@pytest.mark.parametrize('over',
                         [['memory.bank=ClassBank'], ['memory=null'],
                          ['train.loss=logit_adjusted','train.sampling=balanced','compare=[]']])
def test_other_settings_run(yml, tmp_path, over):
    cfg = load_config(yml(TINY), [*over, f'runs={json.dumps(str(tmp_path/"runs"))}'])
    assert 'accuracy' in ex.run_experiment(cfg, log=lambda s: None)

def test_add_head_has_a_plain_training(yml, tmp_path):
    txt = ('name: t\nseeds: [0]\ndata: {n_max: 30, ratio: 6, valid: 5, test: 10, size: 8}\nmemory: {head: add, k: 2, '
           'size: 32}\ntrain: {epochs: 1, bs: 16}\ncompare: [plain, logit_adjusted]')
    cfg = load_config(yml(txt), [f'runs={json.dumps(str(tmp_path/"runs"))}'])
    table = ex.run_experiment(cfg, log=lambda s: None)
    assert (tmp_path/'runs/t/plain_seed_0/model.safetensors').exists()
    for o in ('plain network ','plain network + memory ','logit adjustment ','logit adjustment + memory '):
        assert f'\n{o}' in table

# run folder

def test_run_folder(run):
    cfg,d,table,lines = run
    for f in '''config.yaml env.json history.csv metrics.json predictions.csv predictions_valid.csv model.safetensors results.csv results.md differences.csv
            history.png counts.png bank.png memories.png'''.split():
        assert (d/f).stat().st_size>0, f
    assert sorted(o.name for o in d.iterdir() if o.is_dir())==['balanced_sampling_seed_0','balanced_sampling_seed_1',
        'checkpoints','seed_1']
    for s in ('seed_1','balanced_sampling_seed_0'):
        assert (d/s/'metrics.json').exists() and (d/s/'config.yaml').exists()
    assert not [o for o in d.rglob('*') if o.suffix in ('.pkl','.pth','.part')]
    env = json.loads((d/'env.json').read_text())
    assert env['seed']==0 and env['torch']==torch.__version__
    assert sum(' | train ' in o for o in lines)==8 and all('memory_fill' in o for o in lines)

def scores(folder):
    "label -> scores of a metrics.json"
    m = read_json(folder/'metrics.json')
    return {label(r, m['titles']):v for r,v in rows_of(m).items()}

def test_metrics_are_plain_floats(run):
    m = json.loads((run[1]/'metrics.json').read_text(), parse_constant=lambda s: pytest.fail(f'{s} is no JSON'))
    assert list(scores(run[1]))==['plain network','logit adjustment','plain network + memory',
                                  'logit adjustment + memory']
    assert [(r['training'],r['method'],r['memory']) for r in m['rows']]==[('','',[]), ('','logit_adjusted',[]),
        ('','',['memory']), ('','logit_adjusted',['memory'])]
    assert all(type(v) is float for r in m['rows'] for v in r['scores'].values())
    assert 0<m['rows'][2]['chosen']['weight']<1 and 'chosen' not in m['rows'][0]
    even = json.loads((run[1]/'balanced_sampling_seed_0/metrics.json').read_text())
    assert [(r['training'],r['memory']) for r in even['rows']]==[('balanced_sampling',[]),
        ('balanced_sampling',['memory'])]

def test_no_nan_in_json(yml, tmp_path):
    "What cannot be known is null, not a word that JSON has not"
    cfg = load_config(yml(TINY), ['data.test=1', f'runs={json.dumps(str(tmp_path/"runs"))}', 'data.many=10000',
                                  'train.epochs=1'])
    ex.run_experiment(cfg, log=lambda s: None)
    m = json.loads((tmp_path/'runs/tiny/metrics.json').read_text(),
                   parse_constant=lambda s: pytest.fail(f'{s} is no JSON'))
    assert all(r['scores']['many'] is None for r in m['rows']) and evaluate_run(tmp_path/'runs/tiny')[1]==[]

def test_metrics_agree_with_predictions(run):
    p = pd.read_csv(run[1]/'predictions.csv')
    for k,v in scores(run[1]).items(): assert abs((p[k]==p.target).mean()-v['accuracy'])<1e-9

def test_table_is_the_mean_and_differences_are_paired(run):
    cfg,d,*_ = run
    ms = [json.loads((t.folder/'metrics.json').read_text()) for t in trainings(cfg, d)]
    t,diff = results(ms)
    acc = {(r.seed,label(r, m['titles'])):v['accuracy'] for m in ms for r,v in rows_of(m).items()}
    r = t.set_index('method').accuracy
    assert abs(r['balanced sampling']-(acc[0,'balanced sampling']+acc[1,'balanced sampling'])/2)<1e-12
    row = diff[(diff.method=='plain network + memory')&(diff.baseline=='balanced sampling')].iloc[0]
    want = sum(acc[s,'plain network + memory']-acc[s,'balanced sampling'] for s in (0,1))/2
    assert abs(row.accuracy_mean-want)<1e-12 and row.accuracy_low<=want<=row.accuracy_high

def test_evaluation_gives_the_same_numbers(run):
    table,off = evaluate_run(run[1])
    assert table==run[2] and off==[]

def test_evaluation_of_a_sub_folder(run):
    table,off = evaluate_run(run[1]/'balanced_sampling_seed_1')
    assert off==[] and 'balanced sampling + memory' in table

def test_load_run(run):
    from memo.experiment.config import load_config
    learn = load_run(run[1])
    assert len(learn.memory.bank)==64
    with learn.no_bar(): p,y = learn.get_preds(dl=learn.dls[2])
    assert abs((p.argmax(1)==y).float().mean().item()-scores(run[1])['plain network + memory']['accuracy'])<1e-6

def test_the_vote_was_fitted_on_the_rows_as_they_are(run):
    """The choice in the file is that of a fit on the validation set after training, rows encoded anew, all
    candidates tried"""
    learn = load_run(run[1])
    m = next(r for r in read_json(run[1]/'metrics.json')['rows'] if r['memory'] and not r['method'])
    was = learn.memory.head.chosen()
    assert was==m['chosen'] and {'weight','temperature','k','whiten'}<=was.keys()
    rows = learn.memory.bank.features.clone()
    with learn.no_bar(): learn.memory.rekey()
    assert torch.allclose(rows, learn.memory.bank.features, atol=1e-5)
    learn.memory.fit()
    assert learn.memory.head.chosen()==pytest.approx(was, rel=1e-3)
    learn.memory.fit(k=5, whiten=False)
    other = learn.memory.head.chosen()
    assert other!=was or was['k']==5 and not was['whiten']

def test_vote_memory_leaves_training_alone(yml, tmp_path):
    "The plain network of a run with a voting memory is the network of a run without memory"
    cfg = load_config(yml(TINY), [f'runs={json.dumps(str(tmp_path/"a"))}'])
    none = load_config(yml(TINY), [f'runs={json.dumps(str(tmp_path/"b"))}', 'memory=null'])
    for c in (cfg,none): ex.run_experiment(c, log=lambda s: None)
    a,b = (scores(tmp_path/o/'tiny')['plain network'] for o in 'ab')
    assert a==b

def test_existing_run(run):
    cfg,d,*_ = run
    e = err(ex.run_experiment, cfg)
    assert 'name=' in e and '--overwrite' in e and 'is finished' in e

def test_existing_folder_that_is_no_run(yml, tmp_path):
    (tmp_path/'tiny').mkdir()
    (tmp_path/'tiny/thesis.tex').write_text('x')
    cfg = load_config(yml(TINY), [f'runs={json.dumps(str(tmp_path))}'])
    for o in (False,True):
        with pytest.raises(MemoError, match='is no run folder'): ex.run_experiment(cfg, overwrite=o)
    assert (tmp_path/'tiny/thesis.tex').exists()

def test_resume_of_a_finished_run_is_its_table(run):
    before = {p:p.stat().st_mtime_ns for p in run[1].rglob('model.safetensors')}
    assert ex.resume_run(run[1], log=lambda s: None)==run[2]
    assert before == {p:p.stat().st_mtime_ns for p in run[1].rglob('model.safetensors')}

def test_missing_data_folder(yml, tmp_path):
    cfg = load_config(yml('data: {name: fashion_lt, root: /nope}'), [f'runs={json.dumps(str(tmp_path))}'])
    assert '/nope' in err(ex.run_experiment, cfg)
    assert not (tmp_path/'run').exists()

@pytest.mark.parametrize('f', ['config.yaml','metrics.json','model.safetensors'])
def test_broken_run_folder(run, tmp_path, f):
    import shutil
    d = tmp_path/'r'
    shutil.copytree(run[1], d)
    (d/f).write_bytes((d/f).read_bytes()[:40] if f!='config.yaml' else b'name: [tiny')
    assert f in err(evaluate_run, d)
    (d/f).unlink()
    assert f in err(evaluate_run, d)

def test_no_run_folder(tmp_path):
    assert 'no such run folder' in err(evaluate_run, tmp_path/'x')
    assert 'no config.yaml' in err(ex.resume_run, tmp_path)

# several memories

def test_several_memories(yml, tmp_path):
    """A row for each memory that mixes and one for all of them, which is what the model itself answers; each with
    its bank, pictures and files"""
    txt = '''
name: both
seeds: [0]
data: {name: digits_lt, n_max: 30, ratio: 6, valid: 5, test: 10, size: 8}
memories:
  early: {bank: SlotBank, size: 64, policy: fifo, head: vote, k: 3, at: '7', save_every: 1}
  rare: {bank: ClassBank, capacity: 20, head: lda}
  seen: {bank: ClassBank, capacity: 5, head: watch}
train: {epochs: 2, lr: 1e-2, bs: 16}
compare: [logit_adjusted, class_mean]
'''
    cfg = load_config(yml(txt), [f'runs={json.dumps(str(tmp_path/"runs"))}'])
    table,d = ex.run_experiment(cfg, log=lambda s: None),tmp_path/'runs/both'
    names = ['plain network','plain network + memory: early','plain network + memory: rare',
             'plain network + memory: early, rare']
    assert list(scores(d))==[names[0],'logit adjustment','nearest class mean',*names[1:],
                             *(o.replace('plain network','logit adjustment') for o in names[1:])]
    assert all(f'\n{o}' in table for o in names)
    for f in ('bank_early','bank_rare','bank_seen','memories_early','memories_rare'):
        assert (d/f'{f}.png').stat().st_size>0
    assert {*read_json(d/'metrics.json')['banks']}=={'early','rare',
                                                     'seen'} and (d/'banks/both_early_step_1.safetensors').is_file()
    learn = load_run(d)
    with learn.no_bar(): p,y = learn.get_preds(dl=learn.dls[2])
    assert abs((p.argmax(1)==y).float().mean().item()-scores(d)[names[3]]['accuracy'])<1e-6
    with learn.early.off(), learn.no_bar(): q,_ = learn.get_preds(dl=learn.dls[2])
    assert abs((q.argmax(1)==y).float().mean().item()-scores(d)[names[2]]['accuracy'])<1e-6
    chosen = next(r['chosen'] for r in read_json(d/'metrics.json')['rows'] if r['memory']==['early','rare'])
    assert {*chosen}=={'early','rare'} and evaluate_run(d)==(table,[])

def test_each_memory_is_fitted_to_others_as_they_will_be(yml, tmp_path, monkeypatch):
    """A vote first and the earliest exit last, whatever the order in the file, and none before all rows are encoded
    anew"""
    txt = '''
name: exits
seeds: [0]
data: {name: digits_lt, n_max: 30, ratio: 6, valid: 5, test: 10, size: 8}
memories:
  early: {bank: CachedBank, size: 64, head: exit, at: '0', eps: .1}
  late: {bank: CachedBank, size: 64, head: exit, at: '4', eps: .1}
  vote: {bank: SlotBank, size: 64, policy: fifo, head: vote, k: 3}
train: {epochs: 2, lr: 1e-2, bs: 16}
'''
    done = []
    for f in ('rekey','fit'):
        def noted(self, *args, f=f, was=getattr(MemoryCallback, f), **kw):
            done.append((f,self.name))
            return was(self, *args, **kw)
        monkeypatch.setattr(MemoryCallback, f, noted)
    ex.run_experiment(load_config(yml(txt), [f'runs={json.dumps(str(tmp_path/"runs"))}']), log=lambda s: None)
    assert [f for f,_ in done]==['rekey']*3+['fit']*3 and [n for f,n in done if f=='fit']==['vote','late','early']
    learn = load_run(tmp_path/'runs/exits')
    was = learn.early.head.chosen()
    learn.early.fit(eps=.1)
    assert learn.early.head.chosen()==pytest.approx(was)

def test_a_memory_in_the_network_takes_part_in_every_row(yml, tmp_path):
    "Rows with `add` in the middle: the network's answer with it; what mixes at the end comes on top"
    txt = TINY.replace('memory: {size: 64, policy: reservoir, head: vote, k: [3, 5], whiten: [false, true]}',
                       "memories: {mid: {size: 32, head: add, k: 2, at: '7'}, late: {size: 64, "
                       "policy: fifo, head: vote, k: 3}}").replace('[logit_adjusted]', '[plain]')
    cfg = load_config(yml(txt), [f'runs={json.dumps(str(tmp_path/"runs"))}'])
    table,d = ex.run_experiment(cfg, log=lambda s: None),tmp_path/'runs/tiny'
    assert list(scores(d))==['plain network + memory: mid',
                             'plain network + memory: mid, late'] and list(scores(d/'plain_seed_0'))==['plain network']
    learn = load_run(d)
    with learn.late.off(), learn.no_bar(): p,y = learn.get_preds(dl=learn.dls[2])
    assert abs((p.argmax(1)==y).float().mean().item()-scores(d)['plain network + memory: mid']['accuracy'])<1e-6
    assert 'plain network + memory: mid, late - plain network' in table

# parts of one's own

OWN = '''
import pandas as pd, torch
from torch import nn
from memo.evaluation.baselines import Baseline
from memo.core import Count
from memo.data.longtail import digits_lt
from memo.registry import register
from memo.evaluation.tasks import Multiclass
from memo.heads.mixture import VoteHead

@register('task', 'parity_task', loss='ce')
class Parity(Multiclass):
    columns = dict(parity='even or odd', accuracy='accuracy')
    pictures = ()
    def scores(self, probs, y, dls): return dict(parity=float((probs.argmax(1)%2==y%2).double().mean()), accuracy=float((probs.argmax(1)==y).double().mean()))

@register('data', 'small_digits', task='own_parts.Parity')
def small_digits(
    n:Count=30, # Images of the largest class
    **kwargs
): return digits_lt(n_max=n, ratio=6, valid=5, test=10, size=8, **kwargs)

class Wide(Baseline):
    "A training with a smaller rate"
    title = 'slower'
    def overrides(self, cfg): return {'train.lr':cfg.train.lr/2}

class Nearest(Baseline):
    "The class of the nearest training feature"
    title,works_on,needs = 'nearest neighbour','features',('train',)
    def fit(self, train, valid, dls):
        def f(z): return nn.functional.one_hot(train.y[torch.cdist(z, train.z).argmin(1)], dls.c).float()*9
        return f,{}

def top(probs, y, k=2): return (probs.topk(k).indices==y[:,None]).any(1).float().mean()

@register('head')
class Loud(VoteHead): "A vote with a name of its own"
'''
OWN_YAML = '''
name: own
seeds: [0]
data: {name: own_parts.small_digits, n: 25}
memory: {bank: SlotBank, size: 32, policy: fifo, head: own_parts.Loud, k: 3}
train: {epochs: 1, lr: 1e-2, bs: 16, metrics: [{name: own_parts.top, k: 3}]}
compare: [own_parts.Wide, own_parts.Nearest, logit_adjusted]
'''

@pytest.fixture(scope='module')
def own(tmp_path_factory, tool):
    "A run with parts from a folder of one's own, made by a process"
    d = tmp_path_factory.mktemp('mine')
    (d/'own_parts.py').write_text(OWN)
    (d/'own.yaml').write_text(OWN_YAML)
    r = tool('memo-train', d/'own.yaml', f'runs={d}/runs', cwd='/')
    assert r.returncode==0, r.stderr
    return d,r.stdout

@pytest.mark.slow
def test_parts_of_ones_own(own):
    d,out = own
    m = json.loads((d/'runs/own/metrics.json').read_text())
    assert m['task']=='own_parts.Parity' and list(m['columns'])==['parity','accuracy',
        'top'] and list(m['rows'][0]['scores'])==['parity','accuracy','top']
    assert list(scores(d/'runs/own'))==['plain network','logit adjustment','nearest neighbour','plain network + memory',
                                        'logit adjustment + memory']
    assert list(scores(d/'runs/own/own_parts.Wide_seed_0'))==['slower','logit adjustment, slower',
        'nearest neighbour, slower','slower + memory','logit adjustment, slower + memory']
    assert 'even or odd' in out and 'slower + memory - slower' in out and 'top' in pd.read_csv(
        d/'runs/own/history.csv').columns
    p = pd.read_csv(d/'runs/own/predictions.csv')
    assert math.isclose((p['nearest neighbour']%2==p.target%2).mean(),
                        scores(d/'runs/own')['nearest neighbour']['parity'])
    parts = json.loads((d/'runs/own/env.json').read_text())['parts']
    assert {*parts}=={f'own_parts.{o}' for o in ('small_digits','Wide','Nearest','top','Loud')}
    import hashlib
    assert all(o['file']==str(d/'own_parts.py')
               and o['blake2b']==hashlib.blake2b(OWN.encode(), digest_size=16).hexdigest() for o in parts.values())

@pytest.mark.slow
@pytest.mark.parametrize('cold', [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_evaluated_from_anywhere(own, tool, python, tmp_path, cold):
    "memo-eval of the run folder finds the parts where they were; the file of a model alone imports nobody's module"
    d,out = own
    r = tool('memo-eval', d/'runs/own', '--out', tmp_path/'e', cwd=tmp_path, cold=cold)
    assert r.returncode==0 and 'slower + memory' in r.stdout and 'note:' not in r.stderr, r.stderr
    assert json.loads((tmp_path/'e/metrics.json').read_text())['rows']==json.loads(
        (d/'runs/own/metrics.json').read_text())['rows']
    r = tool('memo-eval', '--model-path', d/'runs/own/model.safetensors', '--out', tmp_path/'f', cwd=d)
    assert r.returncode==2 and 'import own_parts first' in r.stderr and len(r.stderr.strip().splitlines())==1
    code = ("import own_parts; from memo.experiment.again import evaluate_model; "
            f"print(evaluate_model({str(d/'runs/own/model.safetensors')!r}))")
    r = python('-W', 'ignore', '-c', code, cwd=d)
    assert r.returncode==0 and 'even or odd' in r.stdout, r.stderr

@pytest.mark.slow
def test_a_file_of_ones_own_that_is_gone(own, tool, tmp_path):
    d,_ = own
    shutil.copytree(d, tmp_path/'moved')
    (d/'own_parts.py').rename(d/'other.py')
    r = tool('memo-eval', tmp_path/'moved/runs/own', cwd='/')
    (d/'other.py').rename(d/'own_parts.py')
    assert r.returncode==2 and 'own_parts' in r.stderr and len(r.stderr.strip().splitlines())==1
    # the working folder counts too
    r = tool('memo-eval', tmp_path/'moved/runs/own', '--out', tmp_path/'e', cwd=tmp_path/'moved')
    assert r.returncode==0, r.stderr

@pytest.mark.slow
def test_several_files_with_parts_of_ones_own(own, tool, tmp_path):
    """Begun in one folder, gone on with in another: the same experiment, though its parts are looked for in other
    places too"""
    d,_ = own
    shutil.copytree(d, tmp_path/'x')
    (tmp_path/'x/runs/own/config.yaml').write_text((d/'runs/own/config.yaml').read_text().replace(str(d),
        str(tmp_path/'x')))
    r = tool('memo-train', tmp_path/'x/own.yaml', f'runs={tmp_path}/x/runs', '--table', tmp_path/'t', cwd=tmp_path)
    assert r.returncode==0 and r.stdout.count(
        'finished before')==2 and 'own: slower + memory - own: slower' in r.stdout, r.stderr

def test_what_would_fail_at_the_end_is_told_at_once(yml, tmp_path):
    (tmp_path/'two_loaders.py').write_text('from memo.data.longtail import digits_lt\nfrom '
                                           'memo.data.longtail import with_loaders\n'
                                           'def two(bs, seed):\n    dls = digits_lt(n_max=30, ratio=6, valid=5, '
                                           'test=10, size=8, bs=bs, seed=seed)\n    return with_loaders(dls, '
                                           'dls.loaders[:2])\n')
    runs = f'runs={json.dumps(str(tmp_path/"runs"))}'
    for f in (ex.run_experiment,ex.dry_run):
        assert 'two_loaders.two: 2 loaders, three are needed' in err(f,
            load_config(yml(TINY), [runs, 'data={name: two_loaders.two}']))
        assert "train.monitor: 'acuracy' is not one of" in err(f,
            load_config(yml(TINY), [runs, 'train.monitor=acuracy']))
    assert not (tmp_path/'runs').exists()

@pytest.mark.parametrize('multi', [False,True])
def test_a_data_set_that_names_no_task(yml, tmp_path, multi):
    "A plain function, not registered: the type of the targets decides on loss, metrics, scores and columns"
    (tmp_path/f'unnamed_{multi}.py').write_text(f'''
import torch
from fastai.data.core import DataLoaders
from memo.data.tensors import TensorDL
def plain_set(bs=16, seed=0, n=48):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, 8, 8, generator=g)
    y = {'(torch.rand(n, 3, generator=g)<.4).float()' if multi else 'torch.arange(n)%3'}
    return DataLoaders(*[TensorDL(x, y, bs=bs, shuffle=i==0, vocab=list('abc'), split_idx=min(i, 1)) for i in range(3)])
''')
    txt = (f'name: u\nseeds: [0]\ndata: {{name: unnamed_{multi}.plain_set}}\nmemory: {{size: 16, policy: fifo, head: '
           f'vote, k: 3}}\ntrain: {{epochs: 1, bs: 16}}\ncompare: [{"" if multi else "logit_adjusted"}]')
    ex.run_experiment(load_config(yml(txt), [f'runs={json.dumps(str(tmp_path/"runs"))}']), log=lambda s: None)
    m = read_json(tmp_path/'runs/u/metrics.json')
    assert m['task']==('multilabel' if multi else 'multiclass') and ('macro_auc' if multi
        else 'accuracy') in m['rows'][0]['scores']
    assert list(scores(tmp_path/'runs/u'))==(['plain network','plain network + memory'] if multi
                                             else ['plain network','logit adjustment','plain network + memory',
                                                   'logit adjustment + memory'])
    assert evaluate_run(tmp_path/'runs/u')[1]==[]

# what a file says and nothing reads

def _module(folder, name, text):
    (folder/f'{name}.py').write_text(text)
    return name

def test_data_that_do_not_take_what_the_training_says(yml, tmp_path):
    "A set that draws in one way, in batches of one size: another way and another size are refused, not passed over"
    _module(tmp_path, 'one_way', 'from memo.data.longtail import digits_lt\ndef one(seed): return digits_lt(n_max=30, '
                                 'ratio=6, valid=5, test=10, size=8, bs=32, seed=seed)\n')
    data,runs = 'data={name: one_way.one}',f'runs={json.dumps(str(tmp_path/"runs"))}'
    def load(*more): return load_config(yml(TINY), [runs, data, *more])
    assert 'train.sampling is for data that can be drawn in several ways, and one_way.one takes no sampling' in err(
        load, 'train.sampling=balanced')
    assert 'compare has balanced_sampling, and one_way.one takes no sampling' in err(load,
        'compare=[balanced_sampling]')
    assert 'train.bs is 16, and one_way.one makes batches of 32' in err(ex.run_experiment, load())
    cfg = load('train.bs=32', 'compare=[]', 'seeds=[0]')
    ex.dry_run(cfg, log=lambda s: None)
    assert ex.run_experiment(cfg, log=lambda s: None)

def test_data_that_pass_on_what_they_are_given(yml, tmp_path):
    "A function over one of ours, with `**kwargs`: seed, batch size and sampling arrive"
    _module(tmp_path, 'passes_on', 'from memo.data.longtail import digits_lt\ndef digits(n=30, **kwargs): return '
                                   'digits_lt(n_max=n, ratio=6, valid=5, test=10, size=8, **kwargs)\n')
    cfg = load_config(yml(TINY), ['data={name: passes_on.digits, n: 25}', 'train.sampling=balanced', 'train.bs=12',
                                  'compare=[]'])
    a,b,c = (build.build_dls(cfg, s) for s in (0,0,1))
    assert a.train.bs==12 and 'Balanced' in type(a.train).__name__
    assert torch.equal(a.train.dataset.x, b.train.dataset.x) and not torch.equal(a.train.dataset.x, c.train.dataset.x)

def test_a_baseline_of_every_training_takes_the_memory_away(yml, tmp_path):
    _module(tmp_path, 'each_wd', "from memo.evaluation.baselines import Baseline\nclass Wd(Baseline):\n    each = "
                                 "True\n    def overrides(self, cfg): return {'train.wd':.1}\n")
    cfg = load_config(yml(TINY), ['memory={size: 16, head: add}', 'compare=[{name: each_wd.Wd}]',
                                  f'runs={json.dumps(str(tmp_path/"runs"))}'])
    assert 'compare has each_wd.Wd, a training beside each other one: it has to take the memory away' in err(
        ex.run_experiment, cfg)

def test_nothing_is_trained_where_nothing_is_held_out(yml, tmp_path):
    "Shares of two images come to none: that is told before the training, not after it"
    for c,i in (('a',0),('b',1)):
        (tmp_path/'t'/c).mkdir(parents=True)
        Image.fromarray((load_digits().images[i]*15).astype('uint8')).save(tmp_path/'t'/c/f'{i}.png')
    data = f'data={{name: folder, root: "{tmp_path/"t"}", size: 8, workers: 0, n_max: null, ratio: null}}'
    cfg = load_config(yml(TINY), [data, 'memory={size: 16, head: vote}',
                                  f'runs={json.dumps(str(tmp_path/"runs"))}'])
    assert 'data.valid is 0.1, which of so few (2 are left for training) comes to none' in err(ex.run_experiment, cfg)
    assert not [*(tmp_path/'runs').rglob('history.csv')]

def test_what_is_resumed_is_what_was_begun(yml, tmp_path):
    """A training whose head is another than the experiment's is the same from the user's file and from the one
    that was written"""
    _module(tmp_path, 'voting', "from memo.evaluation.baselines import Baseline\nclass Voting(Baseline):\n    def "
                                "overrides(self, cfg): return {'memory.head':'vote'}\n")
    for over in (['memory={size: 16, head: add}'], ['memory={size: 16, head: add, k: 5, temperature: .5}']):
        cfg = load_config(yml(TINY), [*over, 'seeds=[0]', 'compare=[{name: voting.Voting}]'])
        (tmp_path/'run').mkdir(exist_ok=True)
        (tmp_path/'run/config.yaml').write_text(to_yaml(cfg))
        a,b = (ex.trainings(c, tmp_path/'run') for c in (cfg, run_config(tmp_path/'run')))
        assert [t.cfg for t in a]==[t.cfg for t in b] and a[1].cfg.memories['memory'].head.name=='vote'
    assert a[1].cfg.memories['memory'].head.k==5

def test_a_task_of_ones_own_without_a_usual_loss(yml, tmp_path):
    _module(tmp_path, 'lossless', """
from memo.data.longtail import digits_lt
from memo.registry import register
from memo.evaluation.tasks import Multiclass
class Bare(Multiclass): pass
@register('data', 'bare_digits', task='lossless.Bare')
def bare(seed, bs): return digits_lt(n_max=30, ratio=6, valid=5, test=10, size=8, bs=bs, seed=seed)
""")
    cfg = load_config(yml(TINY), ['data={name: lossless.bare}', 'compare=[]',
                                  f'runs={json.dumps(str(tmp_path/"runs"))}'])
    assert 'train.loss is needed: the task lossless.Bare has no usual loss' in err(ex.run_experiment, cfg)
    assert ex.run_experiment(override(cfg, {'train.loss':'ce', 'seeds':[0]}), log=lambda s: None)

def test_a_metric_of_ones_own_that_is_called_like_a_column(yml, tmp_path):
    _module(tmp_path, 'own_accuracy', 'def accuracy(probs, y): return 0.\n')
    cfg = load_config(yml(TINY), ['train.metrics=[own_accuracy.accuracy]', f'runs={json.dumps(str(tmp_path/"runs"))}'])
    assert 'own_accuracy.accuracy is called accuracy, as a column of the task is already' in err(ex.run_experiment, cfg)

def test_callbacks_write_into_the_run_folder(yml, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = load_config(yml(TINY), ['train.cbs=[{name: save_bank, every: 1}]', 'seeds=[0, 1]', 'compare=[]',
                                  f'runs={json.dumps(str(tmp_path/"runs"))}'])
    ex.dry_run(cfg, log=lambda s: None)
    assert not (tmp_path/'banks').exists() and not (tmp_path/'runs').exists()
    ex.run_experiment(cfg, log=lambda s: None)
    assert not (tmp_path/'banks').exists()
    assert all(list((tmp_path/'runs/tiny'/o/'banks').glob('*.safetensors')) for o in ('','seed_1'))

def test_a_threshold_where_there_is_none(yml, tmp_path):
    cfg = load_config(yml(TINY), ['seeds=[0]', 'compare=[]', 'train.epochs=1',
                                  f'runs={json.dumps(str(tmp_path/"runs"))}'])
    ex.run_experiment(cfg, log=lambda s: None)
    said = err(evaluate_run, tmp_path/'runs/tiny', None, None, .9)
    assert 'threshold is for findings; multiclass answers have none' in said

def test_no_more_rows_are_asked_for_than_there_are(yml, tmp_path):
    "A rival's default k over a small bank, which is only known when it is built"
    cfg = load_config(yml(TINY), ['memory={bank: ClassBank, capacity: 1, head: watch}', 'seeds=[0]',
                                  'compare=[prototype, vote]', 'train.epochs=1',
                                  f'runs={json.dumps(str(tmp_path/"runs"))}'])
    ex.run_experiment(cfg, log=lambda s: None)
    assert {'plain network + memory: prototype','plain network + memory: vote'} <= {*scores(tmp_path/'runs/tiny')}

def test_heads_with_nothing_but_the_contract(yml, tmp_path):
    "One that fuses, one that answers: rows with their memory, evaluated again, trained by nobody's name"
    _module(tmp_path, 'bare_heads', """
import torch
from torch.nn import functional as F
from memo.heads.base import MemoryHead
class Fuses(MemoryHead):
    def fuse(self, x, z): return x + self.recall(z, *self.own(len(z))).value
class Answers(MemoryHead):
    def answer(self, logits):
        if len(self.bank)==0: return logits
        return logits + 3*F.one_hot(self.bank.rows()[2][self.recall(self.z).index[:,0].clamp(min=0)], 10)
""")
    runs = f'runs={json.dumps(str(tmp_path/"runs"))}'
    for head,rows in (('Fuses',['plain network + memory']), ('Answers',['plain network','plain network + memory'])):
        cfg = load_config(yml(TINY), [f'name={head}', 'seeds=[0]', 'compare=[]', f'memory={{policy: fifo, size: 64, '
            f'head: bare_heads.{head}}}', runs])
        ex.run_experiment(cfg, log=lambda s: None)
        d = tmp_path/'runs'/head
        assert list(scores(d))==rows and evaluate_run(d)[1]==[]
        p,learn = pd.read_csv(d/'predictions.csv'),load_run(d)
        with learn.no_bar(), learn.no_logging(): own = learn.get_preds(dl=learn.dls[2])[0].argmax(1)
        assert p['plain network + memory'].tolist()==own.tolist()

def test_what_is_compared_beside_a_memory_that_trains(yml, tmp_path):
    "Its row says which memories it was scored with, and it is compared with them alone"
    cfg = load_config(yml(TINY), ['seeds=[0]', 'memory=null', 'memories={early: {size: 32, head: add, at: "4"}, late: '
                                                              '{bank: ClassBank, head: watch}}', 'compare=[lda]',
                                                              f'runs={json.dumps(str(tmp_path/"runs"))}'])
    ex.run_experiment(cfg, log=lambda s: None)
    assert list(scores(tmp_path/'runs/tiny'))==['plain network + memory: early','plain network + memory: early, lda']
    assert 'plain network + memory: early, lda - plain network + memory: early' in (
        tmp_path/'runs/tiny/results.md').read_text()
