"Experiments with Hopfield memories: their YAML, the seed's parameters, other networks, runs, resuming, mistakes"
import json, signal
from pathlib import Path
import pytest, torch, yaml
from conftest import root
from data.test_raf_db import by_seed, images, write_folders, write_official
from data.test_whole import archive, fashion, photos
from helpers.errors import err
from helpers.pictures import no_rendering
from memo.evaluation.baselines import paired_of, training_title
from memo.evaluation.tables import label, row_of
from memo.experiment import again, run as ex
from memo.experiment.build import build_learner, build_stages
from memo.experiment.compare import run_experiments
from memo.experiment.config import from_dict, load_config
from memo.experiment.jobs import differing, trainings
from memo.experiment.sections import to_dict, to_yaml
from memo.heads.attach import memories
from memo.models.lora import LowRankLinear

pytestmark = pytest.mark.usefixtures('unrendered')

hopfield = root/'experiments/hopfield'
interrupt = root/'tests/commands/interrupt.py'
files = [f'{o}.yaml' for o in 'cifar10 cifar100 digits fashion rafdb'.split()]
imagenet = [o for o in files if o[:3] in ('cif','raf')]
others = 'linear_probe vpt_shallow vpt_deep lora'.split()
on_features = 'class_mean logistic ridge tip_adapter tip_adapter_trained'.split()
NETS = ['Hopfield memory','linear probe','VPT-shallow','VPT-deep','LoRA']
FITTED = ['nearest class mean','logistic regression','ridge regression','Tip-Adapter','Tip-Adapter, keys learned']
TITLES = [NETS[0],*FITTED,*NETS[1:]]
NET = ['model.pretrained=false','model.size=9','model.timm={patch_size: 7, embed_dim: 32, depth: 2, num_heads: 2}']
TINY = [*NET,'train.epochs=2','train.bs=16','train.lr=1e-2','seeds=[0,1]','data.test=10']
PHOTOS = ['model.pretrained=false','model.arch=test_vit','model.img_size=32','model.size=9','data.size=32',
          'train.epochs=1','train.bs=16','data.n_shot=5']

# YAML

@pytest.mark.parametrize('name', files)
def test_every_file_loads_and_reads_back(name, tmp_path):
    cfg = load_config(hopfield/name)
    assert cfg.name==f"hopfield/{name.removesuffix('.yaml')}" and cfg.model.name=='hopfield_vit' and not cfg.memories
    (tmp_path/'y.yaml').write_text(to_yaml(cfg))
    assert load_config(tmp_path/'y.yaml')==cfg and from_dict(to_dict(cfg), 'x')==cfg
    assert [s.name for s in cfg.compare]==[*(['class_mean','ridge'] if name in imagenet else on_features), *others]
    assert load_config(f'hopfield/{name.removesuffix(".yaml")}')==cfg       # it ships

@pytest.mark.parametrize('name', imagenet)
def test_the_seeds_parameters(name):
    "Each of them has a key"
    cfg = load_config(hopfield/name)
    m,d,t = cfg.model,cfg.data,cfg.train
    assert (m.arch,m.pretrained,m.size,m.position,m.beta,m.dropout,m.freeze,m.blocks)==(
        'vit_base_patch16_224',True,1000,'after_attn',.125,.1,True,'all')
    assert (t.epochs,t.bs,t.lr,t.wd,t.opt,t.pct_start,t.clip)==(100,64,1e-3,.01,'adamw',.05,1)
    assert (d.size,d.flip,d.rotate,d.light,d.colour,d.n_shot)==(224,True,15,.2,.2,None)
    assert (d.mean,d.std)==([.485,.456,.406],[.229,.224,.225]) and d.get('shift', 0)==0
    assert load_config(hopfield/name, ['data.n_shot=5','model.arch=vit_tiny_patch16_224']).data.n_shot==5

def test_a_learner_is_what_the_file_says():
    cfg = load_config(hopfield/'digits.yaml', ['model.pretrained=false'])
    learn = build_learner(cfg, 0)
    ms,(stage,) = memories(learn.model),build_stages(cfg, learn, 0)
    assert [*ms]==[f'hopfield_{i}' for i in range(6)]
    assert learn.gradient_clip.max_norm==1 and stage.kw==dict(pct_start=.05)
    assert all(len(h.bank)==100 and h.first_beta(96)==.125 for h in ms.values())
    assert len(learn.dls.train_ds)==50 and learn.dls.one_batch()[0].shape[1:]==(1,28,28)
    assert learn.model.embed_dim==96 and learn.model.patch_embed.patch_size==(4,4)

# other networks on the command line

@pytest.mark.parametrize('name', ['cifar10.yaml','digits.yaml'])
@pytest.mark.parametrize('model', ['linear_probe','vpt','hopfield_vit','lora'])
def test_the_model_by_its_name(name, model):
    "What is of the backbone stays, what only the Hopfield memory reads is dropped"
    was,cfg = load_config(hopfield/name).model,load_config(hopfield/name, [f'model={model}']).model
    assert cfg.name==model and all(cfg[k]==was[k] for k in ('arch','pretrained','img_size','timm'))
    if model!='hopfield_vit':
        assert 'beta' not in cfg and 'size' not in cfg and cfg.dropout==(.1 if 'probe' in model else 0)
    arch = 'deit3_small_patch16_224'
    assert load_config(hopfield/name, [f'model={{name: {model}}}',f'model.arch={arch}']).model.arch==arch

@pytest.mark.parametrize('model', ['hopfield_vit','linear_probe','vpt','{name: vpt, deep: true}','lora'])
def test_every_file_at_once_takes_any_of_them(model):
    "memo-train experiments/hopfield/*.yaml model=... data.n_shot=5"
    for f in sorted(hopfield.glob('*.yaml')):
        cfg = load_config(f, [f'model={model}','data.n_shot=5','seeds=[0]'])
        ts = trainings(cfg, 'r')
        assert ts[0].cfg.data.n_shot==5 and sum('class_mean' in [s.name for s in t.cfg.compare] for t in ts)==1, f.name

def test_the_own_network_is_not_trained_twice():
    for model,i in (('linear_probe',1), ('vpt',2), ('{name: vpt, deep: true}',3), ('{name: lora, rank: 2}',4)):
        cfg = load_config(hopfield/'digits.yaml', [f'model={model}','seeds=[3]'])
        names = [t.name for t in trainings(cfg, 'r')]
        assert names==['', *[o for k,o in enumerate(others) if k!=i-1]] and training_title(cfg)==NETS[i]
    cfg = load_config(hopfield/'digits.yaml', ['model=linear_probe','model.freeze=false','seeds=[3]'])
    assert len(trainings(cfg, 'r'))==5 and training_title(cfg)=='plain network'      # it is trained whole

@pytest.mark.parametrize('model,where', [('hopfield_vit',''), ('linear_probe',''), ('vpt','linear_probe'),
                                         ('lora','linear_probe')])
def test_classifiers_on_the_backbones_features(model, where):
    "Once, where nothing is added to it that cannot be taken out; its own row is compared with each"
    ts = trainings(load_config(hopfield/'digits.yaml', [f'model={model}','seeds=[3]']), 'r')
    assert [t.name for t in ts if t.cfg.compare]==[where]
    t = next(t for t in ts if t.name==where)
    assert [s.name for s in t.cfg.compare]==on_features and {*on_features}<={*paired_of(t.cfg, t.name)}
    if model=='vpt':
        e = err(load_config, hopfield/'digits.yaml', ['model=vpt','compare=[logistic]'])
        assert 'of vpt that cannot be taken out: linear_probe as model or under compare, or' in e

def test_other_networks_differ_in_the_model_only():
    cfg = load_config(hopfield/'digits.yaml', ['model.dropout=.3','seeds=[0,7]','compare=[linear_probe,vpt_shallow,'
                      '{name: vpt_deep, n_prompts: 3},{name: lora, rank: 2, lr: .5}]'])
    ts = trainings(cfg, Path('r'))
    assert [(t.name,t.seed,str(t.folder)) for t in ts]==[(n,s,f) for s in (0,7) for n,f in (
        ('','r' if s==0 else 'r/seed_7'), *((o,f'r/{o}_seed_{s}') for o in others))]
    for t in ts:
        d = {k for k in differing(ts[0].cfg, t.cfg) if not k.startswith('model')}
        assert d==({'train.lr'} if t.name=='lora' else set())
        assert all(t.cfg.model[k]==cfg.model[k] for k in ('arch','pretrained','img_size','timm'))
    probe,shallow,deep,lora = (t.cfg.model for t in ts[1:5])
    assert (probe.name,probe.hidden,probe.freeze)==('linear_probe',None,True)
    # dropout of a memory's read is not that of prompts
    assert (shallow.name,shallow.deep,shallow.n_prompts,shallow.dropout)==('vpt',False,10,0)
    assert (deep.deep,deep.n_prompts,lora.rank,ts[4].cfg.train.lr)==(True,3,2,.5)

def test_what_each_of_them_trains():
    cfg = load_config(hopfield/'digits.yaml', ['model.pretrained=false','seeds=[0]'])
    def learned(t): return {k for k,p in build_learner(t.cfg, 0).model.named_parameters() if p.requires_grad}
    own,probe,shallow,deep,lora = map(learned, trainings(cfg, 'r'))
    head = {'head.weight','head.bias'}
    assert probe==head and shallow==deep=={'prompts.prompt'} | head and own>head
    assert lora==head | {f'blocks.{i}.attn.qkv.lora.{o}' for i in range(6) for o in 'ab'}

def test_a_second_memory_stays_with_each_of_them():
    cfg = load_config(hopfield/'digits.yaml', ['memory={size: 50, head: vote, k: 3}','seeds=[0]'])
    assert all(t.cfg.memories for t in trainings(cfg, 'r'))

# mistakes

@pytest.mark.parametrize('over,msg', [
    (['model=unknown'], "model: 'unknown' is not one of"),
    (['model=vpt','model.size=5'], 'model.size is not read by vpt, it is by hopfield_vit'),
    (['model=small_cnn'], 'compare has linear_probe, which is for vision transformers (model '),
    (['model={name: timm, arch: resnet18}','model.img_size=32'], 'model.img_size is not read by timm'),
    (['compare=[vpt]'], "'vpt' is not one of"), (['compare=[{name: vpt_deep, n_prompts: 0}]'], 'n_prompts'),
    (['compare=[{name: lora, lr: 0}]'], 'compare.lora.lr must be a number above 0'),
    (['train.frozen=true'], 'train.frozen: the backbone of hopfield_vit is frozen for all of the training, and '
     'train.frozen is that of a classifier on features; model.freeze=false is accepted'),
    *(([f'train.{k}'], f'train.{k.partition("=")[0]}: the backbone of hopfield_vit is frozen for all of the training')
      for k in ('freeze_epochs=2','warmup_epochs=2','phase2={epochs: 2}')),
    (['model=vpt','train.freeze_epochs=2'], 'train.freeze_epochs would train all of it in the end; take it out'),
])
def test_mistakes_are_one_line(over, msg):
    e = err(load_config, hopfield/'digits.yaml', over)
    assert msg in e, e

def test_unfrozen_it_is_trained_in_stages():
    cfg = load_config(hopfield/'digits.yaml', ['model.freeze=false','train.freeze_epochs=2','model.pretrained=false'])
    assert [s.freeze for s in build_stages(cfg, build_learner(cfg, 0), 0)]==[True,False]

@pytest.mark.parametrize('name', others)
def test_other_networks_are_for_vision_transformers(name):
    e = err(load_config, 'dual_path/digits_cached', [f'compare=[{name}]'])
    assert f'compare has {name}, which is for vision transformers (model ' in e and e.endswith('and model is timm')

@pytest.mark.parametrize('over,msg', [
    (['data.size=32'], 'images are 32 x 32, this network is for 28 x 28: resize them, or make it with img_size=32'),
    (['data.n_shot=500'], "n_shot: 500 items of each class are asked for, class '8' has 129"),
    (['model.arch=resnet18'], 'a vision transformer, with its arguments in timm, is accepted'),
    (['model.arch=resnet18','model.img_size=null','model.timm=null'], 'which has no blocks of attention'),
    (['model.blocks=[7]'], 'blocks: [7], and vit_tiny_patch16_224 has 6'),
    (['model.memory=class_prototype','model.size=5'], '10'),
    (['model={name: lora, targets: [query]}'], "targets: 'query' is no linear layer"),
    (['model.timm={depths: 2}'], "'depths'"), (['model.pretrained=no.safetensors'], 'no file no.safetensors')])
def test_mistakes_that_are_told_before_anything_is_written(over, msg, tmp_path):
    cfg = load_config(hopfield/'digits.yaml', ['model.pretrained=false', *over, f'runs={json.dumps(str(tmp_path))}'])
    e = err(ex.run_experiment, cfg)
    assert msg in e and not [*tmp_path.iterdir()], e

# runs

def rows_in(folder):
    m = json.loads((folder/'metrics.json').read_text())
    return {label(row_of(r), m['titles']):r['scores'] for r in m['rows']}

def names_of(table): return [l.split('  ')[0] for l in table.split('\n\n')[0].splitlines()[1:]]
def pairs_of(table): return [l.split('  ')[0] for l in table.split('\n\n')[2].splitlines()[1:]]

@pytest.fixture(scope='module')
def trained(tmp_path_factory, tool):
    d = tmp_path_factory.mktemp('runs')
    r = tool('memo-train', 'hopfield/digits', *TINY, f'runs={d}', render=False)
    assert r.returncode==0, r.stderr
    return d/'hopfield/digits',r.stdout

@pytest.mark.slow
def test_five_shots_of_digits(trained):
    "By process: a row for each network, and the differences on the same seed"
    folder,out = trained
    table = out[out.index('method '):]
    assert names_of(table)==TITLES and pairs_of(table)==[f'Hopfield memory - {o}' for o in TITLES[1:]]
    assert 'vit_tiny_patch16_224 on digits, Hopfield memory, seeds 0, 1' in out and '(2 seeds, 95 % interval)' in table
    got = [rows_in(folder/o) for o in ('', *(f'{n}_seed_0' for n in others))]
    assert [[*o] for o in got]==[TITLES[:6], *([o] for o in NETS[1:])]
    again = [rows_in(folder/o) for o in ('seed_1', *(f'{n}_seed_1' for n in others))]
    diff = (folder/'differences.csv').read_text()
    for i,n in enumerate(NETS[1:], 1):
        d = [a[0]['Hopfield memory']['accuracy']-a[i][n]['accuracy'] for a in (got,again)]
        line = next(l for l in diff.splitlines() if l.startswith(f'Hopfield memory,{n},2,'))
        assert f'{sum(d)/2:.6f}'[:7] in line or abs(sum(d))<1e-6

@pytest.mark.slow
def test_each_saw_the_same_five_images(trained):
    folder,_ = trained
    m = [json.loads((folder/o/'metrics.json').read_text())['classes'] for o in ('',*(f'{n}_seed_0' for n in others))]
    assert all(o==m[0] and {*o.values()}=={5} for o in m)
    a = [build_learner(t.cfg, 1).dls.train_ds.items for t in trainings(ex.run_config(folder), folder) if t.seed==1]
    assert len(a)==5 and all(torch.equal(torch.as_tensor(o).sort()[0], torch.as_tensor(a[0]).sort()[0]) for o in a)

@pytest.mark.slow
def test_evaluated_again_it_is_the_same(trained, tool):
    folder,out = trained
    r = tool('memo-eval', folder, render=False)
    table = out[out.index('method '):].split('\n\n')
    assert r.returncode==0 and all(o.strip() in r.stdout for o in table[:2])
    again,off = again.evaluate_run(folder)
    assert off==[] and pairs_of(again)==[f'Hopfield memory - {o}' for o in TITLES[1:]]
    assert not [p for p in again.load_run(folder/'lora_seed_1').model.modules() if isinstance(p, LowRankLinear)
                and float(p.lora.b.detach().abs().max())==0]

@pytest.mark.slow
def test_killed_and_resumed(trained, python, tool, tmp_path):
    "In the second epoch of the first training; the others are trained after it"
    whole,_ = trained
    r = python(interrupt, 'mid', 'hopfield/digits', *TINY, f'runs={tmp_path}', render=False)
    assert r.returncode==-signal.SIGKILL, r.stderr
    folder = tmp_path/'hopfield/digits'
    assert not (folder/'metrics.json').exists() and [*(folder/'checkpoints').iterdir()]
    r = tool('memo-train', '--resume', folder, render=False)
    assert r.returncode==0, r.stderr
    assert (folder/'results.csv').read_text()==(whole/'results.csv').read_text()
    for f in whole.rglob('metrics.json'):
        if 'eval' not in f.parts: assert (folder/f.relative_to(whole)).read_text()==f.read_text()

@pytest.mark.slow
def test_one_table_over_two_experiments(trained, tmp_path):
    "Each of them is compared with its own other networks"
    a,b = (load_config(hopfield/'digits.yaml', [*TINY, f'runs={tmp_path}', f'name=h/{n}', *more]) for n,more in (
        ('all',['compare=[linear_probe,vpt_deep]']), ('last',['model.blocks=1','compare=[]'])))
    table = run_experiments([a,b], log=lambda s: None)
    assert {'all: Hopfield memory','all: linear probe','all: VPT-deep','last'}=={*names_of(table)}
    md = (tmp_path/'h/comparison/comparison.md')
    md = md if md.is_file() else tmp_path/'comparison/comparison.md'
    assert all(f'all: Hopfield memory - all: {o}' in md.read_text() for o in ('linear probe','VPT-deep'))

def a_run(name, folder, *over):
    cfg = load_config(hopfield/f'{name}.yaml', [*over, f'runs={json.dumps(str(folder))}'])
    with no_rendering(): return folder/cfg.name,ex.run_experiment(cfg, log=lambda s: None)

@pytest.mark.slow
@pytest.mark.parametrize('name', ['cifar10','cifar100'])
def test_cifar_in_its_official_layout(name, archive, tmp_path):
    folder,table = a_run(name, tmp_path, f'data.root={archive}', *PHOTOS)
    assert names_of(table)==[NETS[0],FITTED[0],FITTED[2],*NETS[1:]] and again.evaluate_run(folder)[1]==[]
    assert {*json.loads((folder/'metrics.json').read_text())['classes'].values()}=={5}

@pytest.mark.slow
@pytest.mark.parametrize('layout', ['official','seed'])
def test_raf_db(layout, images, tmp_path):
    write_official(tmp_path/'d', images) if layout=='official' else write_folders(tmp_path/'d', images, by_seed)
    folder,table = a_run('rafdb', tmp_path, f'data.root={tmp_path/"d"}', 'data.workers=0', *PHOTOS,
                         'compare=[linear_probe,lora]')
    assert names_of(table)==[NETS[0],NETS[1],NETS[4]]
    assert json.loads((folder/'metrics.json').read_text())['classes']['happiness']==5

@pytest.mark.slow
@fashion
def test_fashion(tmp_path):
    _,table = a_run('fashion', tmp_path, *[o for o in TINY if 'test' not in o], 'seeds=[0]', 'compare=[vpt_shallow]')
    assert names_of(table)==[NETS[0],NETS[2]]

@pytest.mark.slow
def test_weights_of_another_run(tmp_path):
    "As pretrain/low's are taken: the backbone is that of the file, the classifier new"
    small = dict(arch='vit_tiny_patch16_224', img_size=28, timm=dict(patch_size=7, embed_dim=32, depth=2, num_heads=2))
    d = dict(name='before', seeds=[0], memory=None, data=dict(name='digits', n=60, size=28, classes=[0,1,2], test=10),
             train=dict(epochs=1, bs=16), model=dict(name='linear_probe', freeze=False, **small))
    (tmp_path/'before.yaml').write_text(yaml.safe_dump(d))
    before = load_config(tmp_path/'before.yaml', [f'runs={tmp_path}'])
    with no_rendering(): ex.run_experiment(before, log=lambda s: None)
    was = again.load_run(tmp_path/'before').model.state_dict()
    weights = f'model.pretrained={tmp_path}/before/model.safetensors'
    cfg = load_config(hopfield/'digits.yaml', [*TINY, weights, 'seeds=[0]'])
    for t in trainings(cfg, 'r'):
        new = build_learner(t.cfg, 0).model.state_dict()
        assert new['head.weight'].shape==(10,32)
        assert all(torch.equal(new[k], v) for k,v in was.items() if k[:5]!='head.')

def test_weights_that_are_not_there_name_what_makes_them(tmp_path):
    "Those of a shipped experiment's run; of another file nothing more is known"
    def told(path):
        return err(build_learner, load_config(hopfield/'digits.yaml', [f'model.pretrained={path}', 'seeds=[0]']), 0)
    there = tmp_path/'hopfield/pretrain/low/model.safetensors'
    assert told(there).endswith(f'no file {there}; memo-train hopfield/pretrain/low makes it')
    assert 'makes it' not in told(tmp_path/'mine/model.safetensors')
