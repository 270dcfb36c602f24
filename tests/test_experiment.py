"The YAML of experiments: names, types, inheritance, overrides; tables; run folders"
import dataclasses, json
from pathlib import Path
import pandas as pd, pytest, torch, yaml
from memo.config import *
from memo.core import MemoError
from memo import build,evaluation,experiment as ex

TINY = '''
name: tiny
seeds: [0]
data: {name: digits_lt, n_max: 30, ratio: 6, valid: 5, test: 10, size: 8}
memory: {size: 64, k: [3, 5], whiten: [false, true]}
train: {epochs: 2, lr: 1e-2, bs: 16}
compare: [logit_adjusted]
'''

@pytest.fixture
def yml(tmp_path):
    def _write(txt, name='x.yaml'):
        p = tmp_path/name
        p.write_text(txt)
        return p
    return _write

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A small finished run with a rival and two seeds"
    d = tmp_path_factory.mktemp('runs')
    (d/'x.yaml').write_text(TINY)
    cfg = load_config(d/'x.yaml', ['seeds=[0,1]', 'compare=[logit_adjusted, balanced_sampling]', f'runs={json.dumps(str(d))}'])
    lines = []
    table = ex.run_experiment(cfg, log=lines.append)
    return cfg,d/'tiny',table,lines

def err(f, *args):
    with pytest.raises(MemoError) as e: f(*args)
    assert '\n' not in str(e.value)
    return str(e.value)

# schema

@pytest.mark.parametrize('txt,msg', [
    ('memory: {polcy: fifo}', 'unknown key memory.polcy; did you mean memory.policy?'),
    ('trian: {}', 'unknown key trian; did you mean train?'),
    ('data: {name: digits_lt, sise: 8}', 'unknown key data.sise; did you mean data.size?'),
    ('train: {epochs: ten}', "train.epochs must be a whole number, found 'ten'"),
    ('train: {epochs: 2.5}', 'train.epochs must be a whole number, found 2.5'),
    ('train: {epochs: true}', 'train.epochs must be a whole number, found True'),
    ('train: {lr: fast}', "train.lr must be a number or find, found 'fast'"),
    ('train: {bs: 0}', 'train.bs must be at least 1, found 0'),
    ('train: {lr: .nan}', 'train.lr must be at least 0, found nan'),
    ('train: 3', 'train must be a section'),
    ('seeds: 3', 'seeds must be a list of whole numbers, found 3'),
    ('seeds: []', 'seeds must name at least one seed'),
    ('seeds: [1, 1]', 'seeds names one twice'),
    ('seed: 1\nseeds: [2]', 'give seed or seeds, not both'),
    ('train: {loss: focal}', "train.loss must be one of ce, logit_adjusted for digits_lt, found focal"),
    ('memory: {bank: Slotbank}', 'did you mean .SlotBank'),
    ('memory: {policy: raritty}', 'did you mean .rarity'),
    ('memory: {capacity: 3}', 'memory.capacity is read by the bank ClassBank only'),
    ('memory: {bank: ClassBank, size: 3}', 'memory.size is read by the bank SlotBank only'),
    ('memory: {head: add, whiten: true}', 'memory.whiten is read by the head vote only'),
    ('memory: {head: add, k: [1, 2]}', 'memory.k must be a whole number for the head add'),
    ('data: {name: digits_lt, root: x}', 'data.root is not read by digits_lt'),
    ('data: {name: digits_lt, channels: 3}', 'data.channels is not read by digits_lt'),
    ('data: {name: cifar}', "data.name: 'cifar' is not one of"),
    ('compare: [logit_ajusted]', 'did you mean .logit_adjusted'),
    ('compare: [balanced_sampling]\ntrain: {sampling: balanced}', 'which train.sampling is already'),
    ('train: {patience: 3}', 'train.patience needs train.monitor'),
    ('train: {phase2: {lr: [1e-3]}}', 'train.phase2.lr must be a list of two numbers'),
    ('model: {frozen: true}', 'model.frozen needs a pretrained network'),
    ('name: ../x', 'name must be the name of a folder'),
    ('- a\n- b', 'the file must be a section'),
    ('a: [1', 'line 1: not valid YAML|line 2: not valid YAML'),
    ('a: b: c', 'not valid YAML'),
    ('base: x.yaml', 'its base leads back to itself'),
    ('base: nope.yaml', 'nope.yaml: no such file'),
    ('base: 3', 'base must be the path'),
])
def test_mistakes_in_a_file(yml, txt, msg):
    import re
    p = yml(txt)
    e = err(load_config, p)
    assert re.search(msg if '|' in msg or '.' in msg and 'did you mean .' in msg else re.escape(msg), e), e
    assert 'yaml' in e          # the file is named

@pytest.mark.parametrize('a,msg', [('memory.sise=3','did you mean memory.size?'), ('memory.size','is no override'), ('=3','is no override'), ('memory.size=[','has no valid value'),
                                   ('memory=3','memory must be a section'), ('train.phase2.epoch=1','did you mean train.phase2.epochs?')])
def test_mistakes_in_an_override(yml, a, msg): assert msg in err(load_config, yml(TINY), [a])

def test_a_file_that_says_nothing_but_its_name_is_the_defaults(yml): assert load_config(yml('name: a')).memory.size==512

def test_missing_file_names_the_nearest(yml, tmp_path):
    yml(TINY, 'quick.yaml')
    assert 'did you mean quick.yaml?' in err(load_config, tmp_path/'quik.yaml')
    assert 'is a folder' in err(load_config, tmp_path)

def test_base_chain_and_precedence(yml):
    yml('seeds: [0, 1]\nmemory: {size: 8, k: 2}\ntrain: {lr: 1}', 'a.yaml')
    yml('base: a.yaml\nmemory: {size: 16}\ntrain: {epochs: 3}', 'b.yaml')
    c = load_config(yml('base: b.yaml\ntrain: {lr: 2}', 'c.yaml'), ['memory.k=4'])
    assert (c.seeds,c.memory.size,c.memory.k,c.train.lr,c.train.epochs) == ([0,1],16,4,2.,3)

def test_a_mistake_is_blamed_on_its_file(yml):
    yml('train: {epoch: 3}', 'a.yaml')
    assert 'a.yaml: unknown key train.epoch' in err(load_config, yml('base: a.yaml', 'b.yaml'))

def test_longer_cycles(yml):
    yml('base: b.yaml', 'a.yaml')
    assert 'leads back to itself' in err(load_config, yml('base: a.yaml', 'b.yaml'))

def test_no_memory_and_back(yml):
    assert load_config(yml('memory: null')).memory is None
    yml('memory: null', 'a.yaml')
    assert load_config(yml('base: a.yaml\nmemory: {size: 4}', 'b.yaml')).memory.size==4

def test_seed_replaces_seeds(yml): assert load_config(yml(TINY), ['seed=5']).seeds==[5]

@pytest.mark.parametrize('over', [[], ['memory=null'], ['memory.head=add','memory.k=2','memory.whiten=false'], ['train.phase2.epochs=2']])
def test_to_yaml_reads_back(yml, over):
    if 'memory.head=add' in over:
        p = yml('memory: {head: add, k: 2}')
        c = load_config(p)
    else: c = load_config(yml(TINY), over)
    assert load_config(yml(to_yaml(c), 'y.yaml')) == c

def test_every_key_is_read():
    "Each field of the schema occurs in the code that builds from it"
    src = ''.join(Path(m.__file__).read_text() for m in (ex,build,evaluation))
    for cls in (Model,Memory,Train,Phase2):
        for f in dataclasses.fields(cls): assert f'.{f.name}' in src, f'{cls.__name__}.{f.name}'

@pytest.mark.parametrize('name', ['quickstart','fashion_lt','fashion_lt_frozen'])
def test_shipped_experiments(repo, name):
    c = load_config(repo/'experiments'/f'{name}.yaml')
    assert c.name==name and len(c.seeds)==3 and set(c.compare)=={'logit_adjusted','balanced_sampling'}

# learners

def test_the_same_call_gives_the_same_learner(yml):
    cfg = load_config(yml(TINY))
    def go():
        learn = ex.build_learner(cfg, 0)
        return [p.detach() for p in learn.model.parameters()] + [learn.dls.one_batch()[0]]
    for p,q in zip(go(), go()): assert torch.equal(p, q)

def test_unknown_arch(yml):
    assert 'resnet18' in err(ex.build_learner, load_config(yml(TINY), ['model.arch=resnet_18']), 0)
    assert 'no weights for small_cnn' in err(ex.build_learner, load_config(yml(TINY), ['model.pretrained=true']), 0)

def test_dry_run_writes_nothing(yml, tmp_path):
    cfg = load_config(yml(TINY), [f'runs={json.dumps(str(tmp_path/"runs"))}', 'train.phase2.epochs=2', 'train.freeze_epochs=1'])
    lines = []
    ex.dry_run(cfg, lines.append)
    assert not (tmp_path/'runs').exists() and 'phase1.frozen, phase1.all, phase2: ok' in lines[0]

@pytest.mark.parametrize('over', [['memory.bank=ClassBank'], ['memory=null'], ['train.loss=logit_adjusted','train.sampling=balanced','compare=[]']])
def test_other_settings_run(yml, tmp_path, over):
    txt = TINY.replace('size: 64, ', '') if 'memory.bank=ClassBank' in over else TINY
    cfg = load_config(yml(txt), [*over, f'runs={json.dumps(str(tmp_path/"runs"))}'])
    assert 'accuracy' in ex.run_experiment(cfg, log=lambda s: None)

def test_add_head_has_a_plain_training(yml, tmp_path):
    txt = 'name: t\nseeds: [0]\ndata: {n_max: 30, ratio: 6, valid: 5, test: 10, size: 8}\nmemory: {head: add, k: 2, size: 32}\ntrain: {epochs: 1, bs: 16}\ncompare: [plain, logit_adjusted]'
    cfg = load_config(yml(txt), [f'runs={json.dumps(str(tmp_path/"runs"))}'])
    table = ex.run_experiment(cfg, log=lambda s: None)
    assert (tmp_path/'runs/t/plain_seed_0/model.safetensors').exists()
    for o in ('plain network ','plain network + memory ','logit adjustment ','logit adjustment + memory '): assert f'\n{o}' in table

# run folder

def test_run_folder(run):
    cfg,d,table,lines = run
    for f in 'config.yaml env.json history.csv metrics.json predictions.csv model.safetensors results.csv results.md history.png counts.png bank.png memories.png'.split():
        assert (d/f).stat().st_size>0, f
    assert sorted(o.name for o in d.iterdir() if o.is_dir())==['balanced_sampling_seed_0','balanced_sampling_seed_1','checkpoints','seed_1']
    for s in ('seed_1','balanced_sampling_seed_0'): assert (d/s/'metrics.json').exists() and (d/s/'config.yaml').exists()
    assert not [o for o in d.rglob('*') if o.suffix in ('.pkl','.pth','.part')]
    env = json.loads((d/'env.json').read_text())
    assert env['seed']==0 and env['torch']==torch.__version__
    assert sum(' | train ' in o for o in lines)==8 and all('bank_fill' in o for o in lines)

def test_metrics_are_plain_floats(run):
    m = json.loads((run[1]/'metrics.json').read_text())
    assert list(m['methods'])==['plain network','logit adjustment','plain network + memory','logit adjustment + memory']
    assert all(type(v) is float for r in m['methods'].values() for v in r.values())
    assert 0<m['chosen']['plain network + memory']['weight']<1

def test_metrics_agree_with_predictions(run):
    m,p = json.loads((run[1]/'metrics.json').read_text()),pd.read_csv(run[1]/'predictions.csv')
    for k,v in m['methods'].items(): assert abs((p[k]==p.target).mean()-v['accuracy'])<1e-9

def test_table_is_the_mean_and_differences_are_paired(run):
    cfg,d,*_ = run
    ms = [json.loads((j.folder/'metrics.json').read_text()) for j in ex.jobs(cfg, d)]
    t,diff = ex.results(ms)
    acc = {(m['seed'],k):v['accuracy'] for m in ms for k,v in m['methods'].items()}
    r = t.set_index('method').accuracy
    assert abs(r['balanced sampling']-(acc[0,'balanced sampling']+acc[1,'balanced sampling'])/2)<1e-12
    row = diff[(diff.method=='plain network + memory')&(diff.rival=='balanced sampling')].iloc[0]
    want = sum(acc[s,'plain network + memory']-acc[s,'balanced sampling'] for s in (0,1))/2
    assert abs(row.accuracy_mean-want)<1e-12 and row.accuracy_low<=want<=row.accuracy_high

def test_evaluation_gives_the_same_numbers(run):
    table,off = ex.evaluate_run(run[1])
    assert table==run[2] and off==[]

def test_evaluation_of_a_sub_folder(run):
    table,off = ex.evaluate_run(run[1]/'balanced_sampling_seed_1')
    assert off==[] and 'balanced sampling + memory' in table

def test_load_run(run):
    from memo.config import load_config
    learn = ex.load_run(run[1])
    assert len(learn.memory.bank)==64
    with learn.no_bar(): p,y = learn.get_preds(dl=learn.dls[2])
    m = json.loads((run[1]/'metrics.json').read_text())
    assert abs((p.argmax(1)==y).float().mean().item()-m['methods']['plain network + memory']['accuracy'])<1e-6

def test_vote_memory_leaves_training_alone(yml, tmp_path):
    "The plain network of a run with a voting memory is the network of a run without memory"
    cfg = load_config(yml(TINY), [f'runs={json.dumps(str(tmp_path/"a"))}'])
    none = load_config(yml(TINY), [f'runs={json.dumps(str(tmp_path/"b"))}', 'memory=null'])
    for c in (cfg,none): ex.run_experiment(c, log=lambda s: None)
    a,b = (json.loads((tmp_path/o/'tiny/metrics.json').read_text())['methods']['plain network'] for o in 'ab')
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
    assert f in err(ex.evaluate_run, d)
    (d/f).unlink()
    assert f in err(ex.evaluate_run, d)

def test_no_run_folder(tmp_path):
    assert 'no such run folder' in err(ex.evaluate_run, tmp_path/'x')
    assert 'no config.yaml' in err(ex.resume_run, tmp_path)

def test_results_of_one_seed_have_no_interval():
    s = dict(accuracy=.5, many=.5, medium=.5, few=float('nan'), balanced_accuracy=.5, ece=.1)
    t,d = ex.results([dict(seed=0, methods={'plain network':s, 'plain network + memory':s})])
    txt = ex.format_results(t, d)
    assert '[' not in txt and 'nan' not in txt and '1 seed)' in txt
