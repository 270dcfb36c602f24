"""Experiments on findings (multi-label): the shipped chest X-ray files, run folders, evaluation again, tables over
several experiments"""
import json, shutil
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from conftest import root
from helpers.errors import err
from helpers.pictures import no_rendering
from sklearn.metrics import roc_auc_score, average_precision_score
from memo.experiment.config import load_config, read_file
from memo.data.chest_xray import findings
from memo.training.checkpoint import load_plain
from memo.experiment import build
from memo.experiment import again, run as ex
from memo.experiment.compare import run_experiments
from memo.evaluation.tables import label, row_of
from memo.experiment.jobs import but_memory, differing

pytestmark = pytest.mark.usefixtures('unrendered')

SMALL = '''
name: {name}
seeds: [0]
data: {{name: chestxray14, root: {root}, size: 32, channels: 1, rotate: 0, workers: 0, preload: true, valid: 0.2}}
model: {{name: chest, arch: tile_cnn, hidden: 32}}
memory: {memory}
train: {{epochs: 1, lr: 1e-2, bs: 32, loss: bce, abnormal_only: true, monitor: valid_loss, phase2: {{epochs: 1, bs: 48, lr: [1e-3, 1e-2], momentum: 0.9}}}}
'''
VOTE,ADD = ('{size: 512, policy: fifo, head: vote, k: [5, 10]}',
            '{size: 64, policy: rarity, momentum: 0.5, head: add, k: 3, rescale: true}')

@pytest.fixture(scope='module')
def tree(tmp_path_factory, fashion_root, nih_table, mnist_digits):
    from memo.data.chest_standin import chest_tree
    d = tmp_path_factory.mktemp('chest')/'tree'
    chest_tree(d, patients=150, seed=1)
    return d

@pytest.fixture(scope='module')
def write(tmp_path_factory, tree):
    d = tmp_path_factory.mktemp('yaml')
    def _write(name, memory='null', more=''):
        p = d/f'{name}.yaml'
        p.write_text(SMALL.format(name=name, root=json.dumps(str(tree)), memory=memory)+more)
        return p
    return _write

@pytest.fixture(scope='module')
def run(write, tmp_path_factory):
    "A finished run of the vote, two phases"
    d = tmp_path_factory.mktemp('runs')
    table = ex.run_experiment(load_config(write('vote', VOTE), [f'runs={json.dumps(str(d))}']), log=lambda s: None)
    return d/'vote',table

def rows(folder):
    "label -> entry of a metrics.json"
    m = json.loads((folder/'metrics.json').read_text(), parse_constant=lambda s: pytest.fail(f'{s} is no JSON'))
    return {label(row_of(r), m['titles']):r for r in m['rows']}

# the shipped files

seed_names = '''baseline_effv2s baseline_resnet50 memory_rarity_effv2s memory_rarity_effv2m memory_rarity_resnet50 memory_rarity_densenet121 memory_diversity_effv2s memory_hybrid_effv2s
    memory_statistical_effv2s memory_fifo_effv2s ablation_no_normalize ablation_topk1 ablation_topk5 ablation_bank256 ablation_bank1024'''.split()

def shipped(repo): return sorted((repo/'experiments/chestxray').glob('*.yaml'))

def test_the_seeds_fifteen_experiments(repo):
    "Names and values of specs/banks.md 1A.7"
    c = {p.stem:load_config(p) for p in shipped(repo)}
    assert set(seed_names)<=set(c)
    for k,v in c.items():
        assert v.name==f'chestxray/{k}' and v.data.name=='chestxray14' and v.model.pretrained is True and (
            v.model.hidden,v.model.dropout)==(512,.3)
        assert (v.data.split,v.data.flip,v.data.size)==('official',False,224)
    arch = lambda k: c[k].model.arch
    assert [arch(k) for k in seed_names[:6]]==['efficientnet_v2_s','resnet50','efficientnet_v2_s','efficientnet_v2_m',
                                               'resnet50','densenet121']
    for k in seed_names:
        v,t = c[k],c[k].train
        assert (t.freeze_epochs,t.epochs,t.lr,t.wd,t.loss.name,t.abnormal_only,t.patience)==(3,20,'find',.01,'bce',True,
            5)
        assert (t.bs,t.phase2.bs)==((32,64) if k.endswith('effv2m') else (64,128))
        assert (t.phase2.epochs,t.phase2.lr,t.phase2.momentum)==(5,[2e-5,8e-5],.9999)
        assert t.phase2.loss.name==('asymmetric' if k in ('baseline_effv2s','baseline_resnet50','memory_hybrid_effv2s')
                                    else 'bce')
        if k.startswith('baseline'): assert not v.memories
        else:
            m, = v.memories.values()
            assert (m.bank.threshold,m.bank.momentum,m.head.name,m.bank.name)==(.2,.9,'add','SlotBank')
    m = {k:c[k].memories['memory'] for k in seed_names if c[k].memories}
    assert {k:v.bank.policy for k,v in m.items() if v.bank.policy!='rarity'}=={f'memory_{p}_effv2s':p
        for p in ('diversity','hybrid','statistical','fifo')}
    assert {k:v.bank.size for k,v in m.items() if v.bank.size!=512}=={'ablation_bank256':256,'ablation_bank1024':1024}
    assert {k:v.head.k for k,v in m.items() if v.head.k!=3}=={'ablation_topk1':1,'ablation_topk5':5}
    assert [k for k,v in m.items() if not v.head.rescale]==['ablation_no_normalize']

def test_a_memory_and_its_like_for_like_baseline(repo):
    "The rival of a memory differs in nothing but the memory"
    c = {p.stem:load_config(p) for p in shipped(repo)}
    for a,b in (('memory_rarity_effv2s','baseline_effv2s_bce'), ('memory_rarity_resnet50','baseline_resnet50_bce'),
                ('memory_hybrid_effv2s','baseline_effv2s'),
                ('memory_rarity_effv2s_1phase','baseline_effv2s_1phase'),
                ('memory_rarity_effv2s_1phase_noval','baseline_effv2s_1phase_noval')):
        assert but_memory(c[a], c[b]) and differing(c[a], c[b]) and not c[b].memories
    assert not but_memory(c['memory_rarity_effv2s'], c['baseline_effv2s']) and not but_memory(c['memory_rarity_effv2s'],
        c['baseline_resnet50_bce'])

# one with its own network; in the others a small one takes its place, and their own are nightly
own_net = {'baseline_effv2s'}
dry = [(p.stem,own) for p in shipped(root) for own in (True,False) if own or p.stem not in own_net]

@pytest.mark.slow
@pytest.mark.parametrize('name,own',
                         [pytest.param(n, own, id=n+'-small'*(not own),
                                       marks=[pytest.mark.nightly]*(own and n not in own_net))
                                      for n,own in dry])
def test_dry_run_of_every_shipped_experiment(repo, tree, name, own, tmp_path, monkeypatch):
    def offline(*args, **kwargs): raise OSError('no network in a test')
    monkeypatch.setattr(torch.hub, 'download_url_to_file', offline)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'hub'))
    more = [] if own else ['model.arch=tile_cnn', 'model.pretrained=false']
    root,runs = (json.dumps(str(o)) for o in (tree, tmp_path))
    cfg = load_config(repo/'experiments/chestxray'/f'{name}.yaml',
                      [f'data.root={root}', 'data.size=64', 'data.workers=0', f'runs={runs}', *more])
    lines = []
    ex.dry_run(cfg, lines.append)
    stages = ['train'] if 'noval' in name and '1phase' in name else ['phase1.frozen',
        'phase1.all'] + (['phase2'] if '1phase' not in name else [])
    if name.endswith('1phase_noval'): stages = ['train.warmup','train.all']
    assert lines[-1]==f"chestxray/{name} seed 85: two batches of train and valid in each of {', '.join(stages)}: ok"
    assert all('random weights' in o for o in lines[:-1]) and len(lines)==1+own
    assert [o.name for o in tmp_path.iterdir()] in ([],['hub'])

def test_small_experiments(repo):
    "They are those that ship, on other data and with a smaller network: both phases, momentum, what is added"
    d = repo/'experiments/chestxray/small'
    c = {p.stem:load_config(p) for p in d.glob('*.yaml')}
    one_phase = {'vote'}
    shipped = {k:load_config(d.parent/f'{n}.yaml') for k in c.keys()-one_phase
               for n in [read_file(d/f'{k}.yaml')['base'][0].removeprefix('../').removesuffix('.yaml')]}
    assert {"memory_rarity_effv2s","memory_hybrid_effv2s","baseline_effv2s_bce"} <= {Path(o.name).name
                                                                              for o in shipped.values()}
    for k,o in shipped.items():
        here = c[k]
        assert len(here.seeds)==5 and min(here.seeds)>=20 and here.data.name=='chest_mosaic'
        for p in ('loss','abnormal_only','monitor','patience','min_delta'): assert getattr(here.train, p)==getattr(o.train, p)
        for p in ('momentum','loss','monitor'): assert getattr(here.train.phase2, p)==getattr(o.train.phase2, p)
        if k in ('entropy','reservoir','temperature'): continue     # which the folder above has not
        assert here.memories==o.memories

# mistakes

@pytest.mark.parametrize('more,msg', [
    (['train.loss=ce'], 'train.loss must be one of bce, focal, asymmetric for chestxray14, found ce'),
    (['train.phase2.loss=logit_adjusted'], 'train.phase2.loss must be one of bce'),
    (['compare=[logit_adjusted]'], 'logit_adjusted, which needs train.loss ce'),
    (['compare=[plain]'], 'compare has plain, a training without memory'),
    (['data.split=oficial'], "did you mean 'official'"),
    (['data.valid=half'], 'data.valid must be'),
    (['train.warmup_epochs=1','train.freeze_epochs=1'], 'not both'),
    (['train.freeze_cached=true'], 'train.freeze_cached needs train.freeze_epochs'),
    (['data.patients=3'], 'data.patients is not read by chestxray14'),
    (['model.arch=resnet_18'], 'resnet18'),
    (['memory.size=10','memory.k=50'], 'k'),
    (['train.monitor=macro_acu'], "did you mean 'macro_auc'"),
    (['model.dropout=2'], 'model.dropout must be a number from 0 to below 1'),
    (['data.valid=0'], "train.monitor is 'valid_loss'"),
])
def test_mistakes(write, tmp_path, more, msg):
    assert msg in err(lambda: ex.check_experiment(load_config(write('x', VOTE), more)))
def test_findings_keys_need_findings(tmp_path):
    (tmp_path/'a.yaml').write_text('train: {abnormal_only: true}')
    assert 'train.abnormal_only is for data whose items may have no class' in err(load_config, tmp_path/'a.yaml')
def test_nothing_is_set_in_a_section_that_is_null(repo):
    "An override of several files does not give the baselines a memory"
    f = repo/'experiments/chestxray/baseline_effv2s_bce.yaml'
    assert "'memory.k=5' has nothing to set, as memory is null" in err(load_config, f, ['memory.k=5'])
    assert 'train.phase2 is null' in err(load_config, repo/'experiments/chestxray/baseline_effv2s_1phase.yaml',
                                         ['train.phase2.bs=32'])

def test_missing_root(write, tmp_path):
    e = err(ex.run_experiment, load_config(write('x', VOTE), ['data.root=/nope', f'runs={json.dumps(str(tmp_path))}']))
    assert '/nope' in e and not list(tmp_path.iterdir())

# a run

def test_run_folder(run):
    d,table = run
    assert list(rows(d))==['plain network',
                           'plain network + memory'] and json.loads((d/'metrics.json').read_text())[
                               'task']=='multilabel'
    for f in '''config.yaml env.json history.csv metrics.json predictions.csv predictions_valid.csv classes.csv split.csv model.safetensors
            results.csv results.md history.png classes.png reliability.png bank.png memories.png'''.split():
        assert (d/f).stat().st_size>0, f
    h = pd.read_csv(d/'history.csv')
    assert list(h.stage)==['phase1','phase2'] and h.macro_auc.notna().all() and h.macro_ap.notna().all()
    assert 'macro AUC' in table and 'plain network + memory' in table

def test_split_is_by_patient_and_stored(run, tree):
    s = pd.read_csv(run[0]/'split.csv')
    assert s.groupby('patient').part.nunique().max()==1 and set(s.part)=={'train','valid','test'}
    assert set(s.image[s.part=='test'])==set((tree/'test_list.txt').read_text().split())

def test_scores_are_those_of_the_predictions(run):
    "metrics.json and classes.csv against scikit-learn on predictions.csv"
    d = run[0]
    p,c = pd.read_csv(d/'predictions.csv'),pd.read_csv(d/'classes.csv')
    for k,r in rows(d).items():
        s,auc,ap = r['scores'],[],[]
        for f in findings:
            y,q,row = p[f],p[f'{k}: {f}'],c[(c.method==k)&(c.finding==f)].iloc[0]
            assert row.positives==y.sum()
            if 0<y.sum()<len(y):
                auc.append(roc_auc_score(y, q)); ap.append(average_precision_score(y, q))
                assert abs(row.auc-auc[-1])<1e-6 and abs(row.ap-ap[-1])<1e-6
            else: assert np.isnan(row.auc)
            few = min(p.patient[y==o].nunique() for o in (0,1))
            assert np.isnan(row.auc_low) if few<10 else row.auc_low<=row.auc<=row.auc_high
        assert s['classes']==len(auc) and abs(s['macro_auc']-np.mean(auc))<1e-6 and abs(s['macro_ap']-np.mean(ap))<1e-6
        lo,hi = r['intervals']['macro_auc']
        assert lo<s['macro_auc']<hi
        assert p[[f'{k}: {f}' for f in findings]].to_numpy().min()>=0 and p[[f'{k}: {f}'
            for f in findings]].to_numpy().max()<=1

def test_images_and_targets_of_the_predictions(run, tree):
    "A row of predictions.csv is the image it names"
    p,t = pd.read_csv(run[0]/'predictions.csv'),pd.read_csv(tree/'Data_Entry_2017.csv',
                                                            index_col=False).set_index('Image Index')
    for r in p.iloc[::7].to_dict('records'):
        want = t['Finding Labels'][r['image']]
        assert '|'.join(sorted(f for f in findings if r[f]))==('' if want=='No Finding'
            else '|'.join(sorted(want.split('|')))) and t['Patient ID'][r['image']]==r['patient']

def test_evaluation_again_is_the_same(run, tmp_path):
    text,off = again.evaluate_run(run[0], out=tmp_path/'e')
    assert off==[] and text.endswith(run[1]) and 'Hernia' in text
    for f in ('predictions.csv','classes.csv'): assert (tmp_path/'e'/f).read_text()==(run[0]/f).read_text()
    for f in ('classes.png','reliability.png','metrics.json'): assert (tmp_path/'e'/f).stat().st_size>0

def test_evaluation_on_other_data(run, tree, tmp_path):
    "The same images elsewhere give the same numbers; a smaller test list others; the run folder stays as it is"
    other = tmp_path/'elsewhere'
    shutil.copytree(tree, other)
    assert again.evaluate_run(run[0], root=other)[0].endswith(run[1])
    t = (other/'test_list.txt').read_text().split()
    (other/'test_list.txt').write_text('\n'.join(t[:len(t)//2]))
    again.evaluate_run(run[0], root=other, out=tmp_path/'e')
    p = pd.read_csv(tmp_path/'e/predictions.csv')
    assert set(p.image)==set(t[:len(t)//2])
    was = pd.read_csv(run[0]/'predictions.csv').set_index('image').loc[p.image]
    np.testing.assert_allclose(p.drop(columns=['image','patient']).to_numpy(), was.drop(columns='patient').to_numpy(),
                               atol=1e-5)

def test_model_file_alone(run, tmp_path):
    f = tmp_path/'m.safetensors'
    shutil.copy(run[0]/'model.safetensors', f)
    assert again.evaluate_model(f).endswith(run[1])
    f.write_bytes(f.read_bytes()[:100])
    assert 'm.safetensors' in err(again.evaluate_model, f)
    from safetensors.torch import save_file
    save_file(dict(a=torch.zeros(1)), f)
    assert 'not written by memo-train' in err(again.evaluate_model, f)

def test_threshold(run, tmp_path):
    again.evaluate_run(run[0], out=tmp_path, threshold=0.)
    assert rows(tmp_path)['plain network']['scores']['recall']==1

def test_rows_that_are_added_stay_as_written(write, tmp_path):
    "The tested bank is the one that the end of training left, not one encoded anew"
    cfg = load_config(write('kept', ADD), ['train.phase2=null', f'runs={json.dumps(str(tmp_path))}'])
    ex.run_experiment(cfg, log=lambda s: None)
    ck = load_plain(tmp_path/'kept/checkpoints/s1_e0.pt')['model']
    learn = again.load_run(tmp_path/'kept')
    for k,v in learn.model.state_dict().items(): assert torch.equal(v, ck[k]), k

def test_class_weights_are_those_of_the_images_trained_on(write):
    cfg = load_config(write('vote', VOTE), ['train.class_weights=true'])
    learn = build.build_learner(cfg, 0)
    for s in build.build_stages(cfg, learn, 0):
        y = s.dls.train.dataset.y
        want = ((len(y)-y.sum(0))/y.sum(0)).clamp(max=100)
        torch.testing.assert_close(s.loss_func.func.pos_weight.float(), want.as_subclass(torch.Tensor).float())

def test_a_patient_that_was_trained_on_is_no_test_patient(run, tree, tmp_path):
    "Lists that move patients from training to the test are refused, for a run folder and for the file of a model"
    other = tmp_path/'other'
    shutil.copytree(tree, other)
    a,b = ((other/f'{k}_list.txt').read_text().split() for k in ('train_val','test'))
    s = pd.read_csv(run[0]/'split.csv')
    moved = set(s.image[s.patient==s.patient[s.part=='train'].iloc[-1]])
    (other/'train_val_list.txt').write_text('\n'.join(o for o in a if o not in moved))
    (other/'test_list.txt').write_text('\n'.join(b+sorted(moved)))
    assert '1 test patients were trained on' in err(again.evaluate_run, run[0], root=other)
    assert '1 test patients were trained on' in err(again.evaluate_model, run[0]/'model.safetensors', root=other)

@pytest.mark.slow
def test_resumed_is_as_if_nothing_had_happened(write, tmp_path):
    """Found rate, cached frozen epochs, two phases with losses of their own: interrupted after each epoch and
    resumed, the same numbers"""
    more = ['train.lr=find','train.freeze_epochs=1','train.freeze_cached=true','train.phase2.loss=asymmetric',
            'train.class_weights=true']
    cfg = lambda d: load_config(write('cut', ADD), [*more, f'runs={json.dumps(str(tmp_path/d))}'])
    ex.run_experiment(cfg('whole'), log=lambda s: None)
    def stop(s): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): ex.run_experiment(cfg('cut'), log=stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt): ex.resume_run(tmp_path/'cut/cut', log=stop)
    ex.resume_run(tmp_path/'cut/cut', log=lambda s: None)
    for f in ('metrics.json','predictions.csv','lr.json'):
        assert (tmp_path/'cut/cut'/f).read_text()==(tmp_path/'whole/cut'/f).read_text(), f
    a,b = (pd.read_csv(tmp_path/d/'cut/history.csv').drop(columns='seconds') for d in ('whole','cut'))
    assert a.equals(b) and list(a.stage)==['phase1.frozen','phase1.all','phase2']

def test_validation_is_shared_by_both_phases(write):
    cfg = load_config(write('vote', VOTE))
    learn = build.build_learner(cfg, 0)
    one,two = build.build_stages(cfg, learn, 0)
    v1,v2 = one.dls.valid.dataset,two.dls.valid.dataset
    assert (v1.y.sum(1)>0).all() and set(v1.items.tolist())=={i for i,y in zip(v2.items.tolist(), v2.y) if y.sum()>0}
    assert one.dls.bs==32 and two.dls.bs==48 and len(two.dls[2].dataset)==len(one.dls[2].dataset)==len(
        learn.dls[2].dataset)
    assert not set(v2.groups.tolist()) & set(two.dls.train.dataset.groups.tolist())

@pytest.mark.parametrize('more',
                         [['train.loss=focal','train.phase2.loss=asymmetric','train.freeze_epochs=1',
                           'train.freeze_cached=true'], ['train.class_weights=true','train.sampling=balanced'],
    ['train.warmup_epochs=1','train.phase2=null','data.valid=0','train.monitor=null','memory.head=add','memory.k=2'],
    *(pytest.param(o, marks=pytest.mark.nightly) for o in (['train.lr=find'], ['memory=null'])),
    ['memory.head=add','memory.k=2','compare=[plain]']])
def test_other_settings_run(write, tmp_path, more):
    p = write('other', ADD if 'memory.head=add' in more else VOTE)
    ex.run_experiment(load_config(p, [*more, f'runs={json.dumps(str(tmp_path))}']), log=lambda s: None)
    m = json.loads((tmp_path/'other/metrics.json').read_text())
    assert all(.3<r['scores']['macro_auc']<=1 for r in m['rows'])
    assert ('lr' in m)==('train.lr=find' in more) and again.evaluate_run(tmp_path/'other')[1]==[]

# several experiments

@pytest.fixture(scope='module')
def several(write, tmp_path_factory):
    d = tmp_path_factory.mktemp('several')
    ps = [write('base'), write('rarity', ADD), write('vote', VOTE)]
    cfgs = [load_config(p, [f'runs={json.dumps(str(d))}', 'seeds=[0,1]']) for p in ps]
    lines = []
    with no_rendering(): return d,cfgs,run_experiments(cfgs, log=lines.append),lines,ps

def test_table_over_experiments(several):
    d,cfgs,table,lines,_ = several
    for f in ('comparison.csv','comparison.md','comparison.png','differences.csv','differences.png'):
        assert (d/'comparison'/f).stat().st_size>0
    for row in ('base','rarity','vote: plain network','vote: plain network + memory'): assert f'\n{row} ' in '\n'+table
    csv = pd.read_csv(d/'comparison/differences.csv')
    m = {(n,s):rows(d/n/('seed_1' if s else '')) for n in ('base','rarity') for s in (0,1)}
    want = np.mean([m['rarity',s]['plain network + memory']['scores']['macro_auc']-m['base',
        s]['plain network']['scores']['macro_auc'] for s in (0,1)])
    row = csv[(csv.method=='rarity')&(csv.baseline=='base')].iloc[0]
    assert abs(row.macro_auc_mean-want)<1e-9 and row.macro_auc_low<=want<=row.macro_auc_high
    pair = csv[csv.method.str.endswith('+ memory')].iloc[0]
    assert pair.baseline in ('vote: plain network','base')

def test_goes_on_with_what_is_missing(several):
    "Half of it deleted and the same command again: only that is trained, and the table is the same"
    d,cfgs,table,_,_ = several
    kept = {p:p.stat().st_mtime_ns for p in (d/'base').rglob('model.safetensors')}
    shutil.rmtree(d/'vote')
    (d/'rarity/seed_1/metrics.json').unlink()
    lines = []
    assert run_experiments(cfgs, log=lines.append)==table
    assert {p:p.stat().st_mtime_ns for p in kept}==kept
    assert sum('finished before' in o for o in lines)==3

def test_more_seeds_are_added(several):
    d,cfgs,_,_,ps = several
    c = load_config(ps[0], [f'runs={json.dumps(str(d))}', 'seeds=[0,1,2]'])
    lines = []
    run_experiments([c], folder=d/'one', log=lines.append)
    assert sum('finished before' in o for o in lines)==2 and (d/'base/seed_2/metrics.json').is_file()

def test_another_experiment_of_that_name(several):
    d,cfgs,_,_,ps = several
    c = load_config(ps[1], [f'runs={json.dumps(str(d))}', 'seeds=[0,1]', 'memory.k=1'])
    assert 'is of another experiment' in err(run_experiments, [c])
    assert 'needs a name of its own' in err(run_experiments, [c,c])

@pytest.mark.slow
def test_commands(several, run, tool, tree, tmp_path):
    "memo-train over several files, memo-eval of a folder and of a file, memo-mosaic and memo-cache, as processes"
    ps = several[4]
    r = tool('memo-train', ps[0], ps[2], f'runs={tmp_path}/r', f'--table', f'{tmp_path}/t', render=False)
    assert r.returncode==0 and (tmp_path/'t/comparison.md').is_file(
        ) and 'vote: plain network + memory' in r.stdout, r.stderr
    r = tool('memo-eval', run[0], '--data', tree, '--out', tmp_path/'e', render=False)
    assert r.returncode==0 and 'Hernia' in r.stdout and (tmp_path/'e/predictions.csv').is_file(), r.stderr
    r = tool('memo-eval', '--model_path', run[0]/'model.safetensors', '--out', tmp_path/'f')
    assert r.returncode==0 and (tmp_path/'f/classes.csv').read_text()==(run[0]/'classes.csv').read_text(), r.stderr
    r = tool('memo-mosaic', tmp_path/'tree', '--patients', '60')
    assert r.returncode==0 and (tmp_path/'tree/Data_Entry_2017.csv').is_file(), r.stderr
    r = tool('memo-cache', tmp_path/'tree', tmp_path/'cache', '--size', '32', '--workers', '1')
    assert r.returncode==0 and (tmp_path/'cache/test_list.txt').read_text()==(tmp_path/'tree/test_list.txt').read_text(
        ), r.stderr
    r = tool('memo-eval')
    assert r.returncode==2 and len(r.stderr.strip().splitlines())==1
