"The YAML of an experiment: sections that name parts, layers, messages, one's own parts, text that reads back"
import math, sys
from dataclasses import replace
from pathlib import Path
import pytest, yaml
from helpers.own_parts import OWN, OWN_YAML
from helpers.errors import err
from memo.experiment.config import *
from memo.core import MemoError
from memo.registry import find,known,make

pytestmark = pytest.mark.usefixtures('ours_alone')

TINY = '''
name: tiny
seeds: [0]
data: {name: digits_lt, n_max: 30, ratio: 6, valid: 5, test: 10, size: 8}
memory: {size: 64, head: vote, k: [3, 5], whiten: [false, true]}
train: {epochs: 2, lr: 1e-2, bs: 16}
compare: [logit_adjusted]
'''

# mistakes

@pytest.mark.parametrize('txt,msg', [
    ('memory: {polcy: fifo}', 'unknown key memory.polcy: neither SlotBank nor add nor MemoryCallback reads it; did you '
                              'mean memory.policy?'),
    ('memory: {bank: {name: SlotBank, polcy: fifo}}', 'unknown key memory.bank.polcy: SlotBank does not read it; did '
                                                      'you mean memory.bank.policy?'),
    ('memories: {rare: {polcy: fifo}}', 'did you mean memories.rare.policy?'),
    ('trian: {}', 'unknown key trian; did you mean train?'),
    ('data: {name: digits_lt, sise: 8}', 'unknown key data.sise: digits_lt does not read it; did you mean data.size?'),
    ('data: {name: digits_lt, bs: 8}', 'data.bs is no key: digits_lt gets it from the experiment'),
    ('train: {epochs: ten}', "train.epochs must be a whole number from 0 up to 1,000,000, found 'ten'"),
    ('train: {epochs: 2.5}', 'train.epochs must be a whole number from 0 up to 1,000,000, found 2.5'),
    ('train: {epochs: true}', 'train.epochs must be a whole number from 0 up to 1,000,000, found True'),
    ('train: {epochs: -1}', 'train.epochs must be a whole number from 0 up to 1,000,000, found -1'),
    ('train: {lr: fast}', "train.lr must be a number above 0 up to 100 or find, found 'fast'"),
    ('train: {bs: 0}', 'train.bs must be a whole number from 1, found 0'),
    ('train: {lr: .nan}', 'train.lr must be a number above 0 up to 100 or find, found nan'),
    ('train: {min_delta: .inf}', 'train.min_delta must be a number from 0, found inf'),
    ('train: 3', 'train must be a section'),
    ('train: {cbs: 3}', 'train.cbs must be a list of names or sections, found 3'),
    ('seeds: 3', 'seeds must be a list of whole numbers, found 3'),
    ('seeds: []', 'seeds must name at least one seed'),
    ('seeds: [1, 1]', 'seeds names one twice'),
    ('seed: 1\nseeds: [2]', 'give seed or seeds, not both'),
    ('train: {loss: focal}', "for digits_lt, found focal"),
    ('train: {loss: {name: logit_adjusted, tau: -1}}', 'train.loss.tau must be a number from 0, found -1'),
    ('memory: {bank: Slotbank}', "did you mean SlotBank? (one of your own is named by its dotted path)"),
    ('memory: {policy: raritty}', "memory.policy must be one of"),
    ('memory: {policy: raritty}', "did you mean 'rarity'?"),
    ('memory: {momentum: 1}', 'memory.momentum must be a number from 0 to below 1, found 1'),
    ('memory: {capacity: 3}', 'memory.capacity is read by the bank ClassBank only, and memory.bank is SlotBank'),
    ('memory: {bank: ClassBank, size: 3}', 'memory.size is read by the bank CachedBank, TrainableBank, LearnedBank, '
     'AssociativeBank, CentroidBank, SlotBank only'),
    ('memory: {bank: CompressedBank, size: 3}', 'a CompressedBank is only read, so no training can fill it'),
    ('memory: {head: add, whiten: true}', 'memory.whiten is read by the head vote only'),
    ('memory: {head: add, k: [1, 2]}', 'memory.k must be a whole number from 1, found [1, 2]'),
    ('memory: {head: replay}', 'memory.head replay needs memory.bank ClassBank, found SlotBank'),
    ('memory: {head: lda}', 'memory.head lda needs memory.bank ClassBank, found SlotBank'),
    ('memory: {head: vote}\ndata: {valid: 0}', 'memory.head vote is fitted on validation data, and data.valid is 0'),
    ('memory: {n_classes: 3}', 'memory.n_classes is no key: SlotBank gets it from the experiment'),
    ('data: chest_mosaic\nmodel: {name: chest, arch: tile_cnn}\nmemory: {bank: ClassBank, head: vote}',
     'memory.head vote with a ClassBank is for classes, and chest_mosaic has findings'),
    ('data: chest_mosaic\ntrain: {sampling: sqrt}', 'for chest_mosaic, found sqrt'),
    ('data: chest_mosaic\ntrain: {metrics: [ece]}', 'for chest_mosaic, found ece'),
    ('train: {freeze_epochs: 1, warmup_epochs: 1}', 'give train.freeze_epochs or train.warmup_epochs'),
    ('train: {phase2: {loss: bce}}', 'for digits_lt, found bce'),
    ('memory: {bank: null}', 'memory.bank must be a name or a section; memory=null is no memory'),
    ('memories: {2nd: {size: 3}}', "memories: '2nd' is no name"),
    ('data: {name: digits_lt, root: x}', 'data.root is not read by digits_lt, it is by'),
    ('data: {name: digits_lt, channels: 3}', 'data.channels is not read by digits_lt, it is by'),
    ('data: {name: cifar}', "data: 'cifar' is not one of"),
    ('compare: [logit_ajusted]', 'did you mean logit_adjusted'),
    ('compare: [vote]', 'compare has vote, which needs the features that a memory sees'),
    ('memory: {head: vote}\ncompare: [vote]', 'compare has vote, which memory.head is already'),
    ('memory: {head: vote}\ncompare: [lda]', 'compare lda needs memory.bank ClassBank'),
    ('compare: [crt, crt]', 'compare names one twice: crt'),
    ('compare: [balanced_sampling]\ntrain: {sampling: balanced}', 'which train.sampling is already'),
    ('train: {patience: 3}', 'train.patience needs train.monitor'),
    ('train: {phase2: {lr: [1e-3]}}', 'train.phase2.lr must be a list of two numbers'),
    ('train: {frozen: true}', 'train.frozen needs a pretrained network (chest, timm, lp, mlp, mh, stages), '
     'found small_cnn'),
    ('train: {class_weights: true}', 'train.class_weights is for losses that have pos_weight (bce, focal, asymmetric), '
                                     'and train.loss is ce'),
    ('train: {abnormal_only: true}', 'train.abnormal_only is for data whose items may have no class'),
    ('train: {freeze_epochs: 1, freeze_cached: true}', 'train.freeze_cached is for models of a body and a head '
                                                       '(chest), and model is small_cnn'),
    ('model: timm', 'model.arch is needed: timm has no default for it'),
    ('model: {arch: resnet18}', 'model.arch is not read by small_cnn, it is by chest, timm'),
    ('name: ../x', 'name must be the name of a folder'),
    ('- a\n- b', 'the file must be a section'),
    ('a: [1', 'not valid YAML'),
    ('a: b: c', 'line 1: not valid YAML'),
    ('base: x.yaml', 'its base leads back to itself'),
    ('base: nope.yaml', 'nope.yaml: no such file'),
    ('base: 3', 'base must be the path'),
])
def test_mistakes_in_a_file(yml, txt, msg):
    e = err(load_config, yml(txt))
    assert msg in e and 'yaml' in e, e      # the file is named

@pytest.mark.parametrize('a,msg',
                         [('memory.sise=3','did you mean memory.size?'), ('memory.size','is no override'),
                          ('=3','is no override'), ('memory.size=[','has no valid value'),
                                   ('memory=3','memory must be a section'),
                                   ('train.phase2.epoch=1','did you mean train.phase2.epochs?')])
def test_mistakes_in_an_override(yml, a, msg):
    e = err(load_config, yml(TINY), [a])
    assert msg in e and e.startswith('command line: '), e

@pytest.mark.parametrize('first,then,where',
                         [('memory=null','memory.k=3','memory'),
                          ('train.phase2=null','train.phase2.epochs=3','train.phase2')])
def test_an_override_of_nothing(yml, first, then, where):
    assert f'has nothing to set, as {where} is null' in err(load_config, yml(TINY), [first, then])

def test_a_mistake_is_blamed_on_its_file(yml):
    yml('train: {epoch: 3}\nmemory: {size: 0}', 'a.yaml')
    assert 'a.yaml: unknown key train.epoch' in err(load_config, yml('base: a.yaml', 'b.yaml'))
    yml('memory: {size: 0}', 'a.yaml')
    e = err(load_config, yml('base: a.yaml\nmemory: {k: 2}', 'b.yaml'))
    assert 'a.yaml: memory.size must be' in e and 'b.yaml' not in e

def test_a_long_value_is_cut(yml): assert len(err(load_config, yml(f'train: {{epochs: "{"x"*9000}"}}')))<300

def test_missing_file_names_the_nearest(yml, tmp_path):
    yml(TINY, 'quick.yaml')
    assert 'did you mean quick.yaml?' in err(load_config, tmp_path/'quik.yaml')
    assert 'is a folder' in err(load_config, tmp_path)

# layers

def test_a_file_that_says_nothing_but_its_name_is_the_defaults(yml):
    c = load_config(yml('name: a'))
    m = c.memories['memory']
    assert (m.bank.name, m.bank.size, m.bank.policy, m.head.name, c.data.name, c.model.name,
            c.train.loss.name)==('SlotBank',512,'rarity','add','digits_lt','small_cnn','ce')
    assert m.bank.given==()

def test_one_default_has_one_value():
    "What YAML means where nothing is said is what the constructor means"
    import inspect
    for kind in ('bank','head','loss','data','model'):
        for n,p in known(kind).items():
            for k,q in p.keys.items():
                own = inspect.signature(find(kind, n)).parameters[k].default
                assert q.default==own, (kind, n, k)

@pytest.mark.parametrize('one', ['track: csv', 'track: {name: mlflow, experiment: shoes}', 'compare: temperature',
                                 'train: {cbs: Replay}'])
def test_one_part_is_a_list_of_one(yml, one):
    "In a file and on the command line, where the Tab key offers it so"
    (k,v), = yaml.safe_load(one).items()
    if k=='train': k,v = 'train.cbs',v['cbs']
    want = load_config(yml('name: a', 'a.yaml'), [f'{k}={yaml.safe_dump([v], default_flow_style=True)}'])
    alone = yaml.safe_dump(v, default_flow_style=True).splitlines()[0]
    assert to_yaml(load_config(yml(one, 'a.yaml')))==to_yaml(load_config(yml('name: a', 'a.yaml'), [f'{k}={alone}']))
    assert to_yaml(want)==to_yaml(load_config(yml(one, 'a.yaml')))

def test_base_chain_and_precedence(yml):
    yml('seeds: [0, 1]\nmemory: {size: 8, k: 2}\ntrain: {lr: 1}', 'a.yaml')
    yml('base: a.yaml\nmemory: {size: 16}\ntrain: {epochs: 3}', 'b.yaml')
    c = load_config(yml('base: b.yaml\ntrain: {lr: 2}', 'c.yaml'), ['memory.k=4'])
    m = c.memories['memory']
    assert (c.seeds,m.bank.size,m.head.k,c.train.lr,c.train.epochs) == ([0,1],16,4,2.,3)
    assert m.bank.given==('size',) and m.head.given==('k',)

def test_a_file_that_says_no_name_has_its_own(yml):
    "So that two of them do not meet in one run folder; what is said anywhere goes first"
    assert load_config(yml('seeds: [0]', 'mine.yaml')).name=='mine'
    assert load_config(yml('seeds: [0]', 'mine.yaml'), ['name=x']).name=='x'
    yml('name: base', 'b.yaml')
    assert load_config(yml('base: b.yaml', 'over.yaml')).name=='base'
    yml('seeds: [1]', 'b.yaml')
    assert load_config(yml('base: b.yaml', 'over.yaml')).name=='over'
    assert 'name' in err(load_config, yml('seeds: [0]', ' .yaml'))

def test_longer_cycles(yml):
    yml('base: b.yaml', 'a.yaml')
    assert 'leads back to itself' in err(load_config, yml('base: a.yaml', 'b.yaml'))

def test_no_memory_and_back(yml):
    assert load_config(yml('memory: null')).memories=={}
    yml('memory: null', 'a.yaml')
    assert load_config(yml('base: a.yaml\nmemory: {size: 4}', 'b.yaml')).memories['memory'].bank.size==4

@pytest.mark.parametrize('txt', ['memory: {bank: SlotBank, size: 8, head: vote, k: 3, at: layer4}', 'memory: {bank: '
    '{name: SlotBank, size: 8}, head: {name: vote, k: 3}, at: layer4}',
    'memory: {bank: {size: 8}, head: {name: vote}, k: 3, at: layer4}', 'memories: {memory: '
        '{size: 8, head: vote, k: 3, at: layer4}}'])
def test_flat_and_long(yml, txt):
    m = load_config(yml(txt)).memories['memory']
    assert (m.bank.size, m.head.name, m.head.k, m.callback['at'])==(8,'vote',3,'layer4') and m.head.temperature==.07

@pytest.mark.parametrize('a,size',
                         [('memory.size=5',5), ('memory.bank.size=6',6), ('memory.bank={name: SlotBank, size: 7}',7),
                          ('memories.memory.size=8',8)])
def test_the_later_word_counts_however_it_is_written(yml, a, size):
    for txt in ('memory: {size: 1}','memory: {bank: {name: SlotBank, size: 1}}'):
        assert load_config(yml(txt), [a]).memories['memory'].bank.size==size
        assert load_config(yml(txt), [a, 'memory.size=9']).memories['memory'].bank.size==9

def test_another_part_drops_what_it_does_not_read(yml):
    yml('memory: {size: 64, head: vote, k: 7, whiten: true}\ntrain: {loss: {name: logit_adjusted, tau: .5}}', 'a.yaml')
    m = load_config(yml('base: a.yaml\nmemory: {head: add}', 'b.yaml')).memories['memory']
    assert m.head.name=='add' and m.head.k==7 and 'whiten' not in m.head
    m = load_config(yml('base: a.yaml\nmemory: {bank: ClassBank}', 'b.yaml')).memories['memory']
    assert m.bank.name=='ClassBank' and 'size' not in m.bank and m.head.whiten is True
    assert load_config(yml('base: a.yaml\ntrain: {loss: ce}', 'b.yaml')).train.loss.args=={}
    yml('memory: {head: vote, k: [3, 5]}', 'a.yaml')
    # a list is nothing for add
    assert load_config(yml('base: a.yaml\nmemory: {head: add}', 'b.yaml')).memories['memory'].head.k==3
    yml('memory: {rescale: true}', 'a.yaml')        # said before the head is
    assert load_config(yml('base: a.yaml\nmemory: {head: add}', 'b.yaml')).memories['memory'].head.rescale is True

def test_null_head_watches(yml):
    assert load_config(yml('memory: {head: null}')).memories['memory'].head.name=='watch'

def test_a_part_has_one_name(yml):
    "A class name, or the dotted path of one of ours, is the part of that name"
    want = load_config(yml('memory: {head: vote}'))
    for o in ('VoteHead','memo.heads.mixture.VoteHead'):
        assert load_config(yml(f'memory: {{head: {o}}}'))==want and foreign_parts(want)=={}

def test_several_memories(yml):
    c = load_config(yml('memories: {rare: {bank: ClassBank}, early: {size: 8, head: vote, at: layer1}}'),
                    ['memories.early.k=9', 'memory.size=4'])
    assert list(c.memories)==['rare','early','memory'] and c.memories['rare'].head.name=='watch'
    assert (c.memories['early'].head.k, c.memories['early'].callback['at'], c.memories['memory'].bank.size)==(9,
        'layer1',4)
    assert flat(c)['memories.early.head.k']==9 and flat(c)['memory.bank.size']==4
    assert list(load_config(yml('memories: {rare: {bank: ClassBank}, early: null}')).memories)==['rare']

def test_a_key_that_both_read(yml, tmp_path):
    (tmp_path/'two_keys.py').write_text('from memo.heads.base import MemoryHead\nclass Two(MemoryHead):\n    def '
                                        '__init__(self, bank, k:int=3, threshold:float=.5): super().__init__(bank, k)\n')
    txt = 'memory: {head: two_keys.Two, threshold: .3}'
    assert 'write memory.bank.threshold or memory.head.threshold' in err(load_config, yml(txt))
    m = load_config(yml('memory: {head: {name: two_keys.Two, threshold: .3}}')).memories['memory']
    assert (m.head.threshold, m.bank.threshold)==(.3,.2)

def test_seed_replaces_seeds(yml): assert load_config(yml(TINY), ['seed=5']).seeds==[5]

def test_sections_of_lists(yml):
    c = load_config(yml('memory: {head: vote}\ntrain: {cbs: [{name: save_bank, every: 2}], metrics: [ece]}\ncompare: '
                        '[{name: crt, steps: 5}]'))
    assert c.train.cbs[0].every==2 and c.train.metrics[0].name=='ece' and c.compare[0].steps==5 and c.compare[0].wds==[
        .001,.1,1.,10.]
    assert 'train.cbs.save_bank.every must be a whole number from 1, found 0' in err(load_config,
        yml('train: {cbs: [{name: save_bank, every: 0}]}'))

def test_override(yml):
    c = load_config(yml(TINY))
    o = override(c, {'train.sampling':'balanced', 'memory':None, 'compare':[]})
    assert o.train.sampling.name=='balanced' and o.memories=={} and c.memories and c.train.sampling is None
    assert o.train==replace(c.train, sampling=o.train.sampling) and override(c, {})==c
    v = load_config(yml('memory: {head: vote}', 'v.yaml'))
    a = override(v, {'memory.head':'add'}).memories['memory'].head
    # what was never said of vote is not said of add
    assert v.memories['memory'].head.k==20 and a.name=='add' and a.k==3
    assert 'train.epoch' in err(override, c, {'train.epoch':3})
    changed = {k for k in flat(o) | flat(c) if flat(o).get(k)!=flat(c).get(k)}
    assert {k.split('.')[0] for k in changed}=={'train','memory','compare'} and 'train.sampling' in changed

# text

@pytest.mark.parametrize('over',
                         [[], ['memory=null'], ['memory.head=add','compare=[]'], ['train.phase2.epochs=2'],
                          ['memories.rare={bank: ClassBank, capacity: 12MB}'],
    ['memory.policy=fifo','train.metrics=[ece]','train.cbs=[{name: save_bank, every: 3}]',
     'compare=[{name: crt, steps: 7}]','name=a b/ü','runs="its: #1"']])
def test_to_yaml_reads_back(yml, over):
    c = load_config(yml(TINY), over)
    for comments in (False,True): assert load_config(yml(to_yaml(c, comments), 'y.yaml')) == c
    assert from_dict(yaml.safe_load(to_yaml(c)), 'header')==c

def test_every_key_has_a_comment(repo):
    "`--print-config` says what each key is for; those that are handed on to timm are timm's"
    for p in sorted((repo/'experiments').rglob('*.yaml')):
        if is_table(p): continue
        deep = math.inf     # indentation of what is handed on
        for line in to_yaml(load_config(p), comments=True).splitlines():
            at = len(line)-len(line.lstrip())
            if at<=deep: deep = at if line.strip().startswith('timm:') else math.inf
            elif deep<math.inf: continue
            assert '  # ' in line, line

def test_shipped_experiments(repo):
    runs = repo/'experiments'/'runs'       # what make quickstart leaves
    files = sorted(o for o in (repo/'experiments').rglob('*.yaml') if runs not in o.parents)
    assert len(files)>=50
    for p in files:
        if is_table(p): continue        # tests/experiment/test_stream_tables.py
        c = load_config(p)
        assert c.name.split('/')[-1]==p.stem, p
        assert from_dict(yaml.safe_load(to_yaml(c)), 'written')==c, p
    c = load_config(repo/'experiments/quickstart.yaml')
    assert len(c.seeds)==3 and [s.name for s in c.compare]==['temperature','logit_adjusted','balanced_sampling']

def test_reading_imports_no_torch_and_is_quick(repo, python):
    "CPU of a whole process, interpreter included"
    code = '''import resource, sys
from memo.experiment.config import load_config
from memo.experiment.sections import to_yaml
to_yaml(load_config(sys.argv[1]))
u = resource.getrusage(resource.RUSAGE_SELF)
print(u.ru_utime+u.ru_stime, 'torch' in sys.modules, 'fastai' in sys.modules)'''
    files = 'quickstart.yaml','tail/fashion_lt.yaml','chestxray/memory_rarity_effv2s.yaml'
    got = [python('-c', code, repo/'experiments'/o, cold=True).stdout.split() for o in files]
    assert all(o[1:]==['False','False'] for o in got) and min(float(o[0]) for o in got)<.3, got

# parts of one's own

@pytest.fixture
def own(tmp_path):
    d = tmp_path/'elsewhere'
    (d/'pkg_h1').mkdir(parents=True)
    (d/'pkg_h1/__init__.py').write_text('')
    (d/'pkg_h1/mine.py').write_text(OWN)
    (d/'own.yaml').write_text(OWN_YAML)
    yield d
    for k in [k for k in sys.modules if k.startswith('pkg_h1')]: del sys.modules[k]

def test_parts_of_ones_own(own):
    "Each kind by dotted path, looked for beside the file; the path is left as it was"
    was = list(sys.path)
    c = load_config(own/'own.yaml')
    assert sys.path==was
    assert (c.data.n_max, c.model.width, c.memories['memory'].bank.size, c.memories['memory'].bank.shelf,
            c.memories['memory'].head.times)==(20,12,9,.5,3.)
    assert (c.train.loss.smooth, c.train.sampling.power, c.train.cbs[0].every, c.compare[0].by, c.compare[0].kind)==(.2,
        .3,2,3.,'baseline')
    assert str(own.resolve()) in c.path
    f = foreign_parts(c)
    assert len(f)==9 and all(Path(o['file'])==own.resolve()/'pkg_h1/mine.py' and len(o['blake2b'])==32
                             for o in f.values())
    from memo.experiment.build import build_learner
    learn = build_learner(c, 0)
    assert type(learn.memory.bank).__name__=='MyBank' and learn.memory.bank.size==9 and learn.my_cb.every==2
    assert learn.loss_func.func.label_smoothing==.2 and learn.dls.train.power==.3 and learn.model[2].out_features==12
    assert 'my_metric' in [m.name for m in learn.metrics]

@pytest.mark.parametrize('a,msg',
                         [('memory.bank.shelf=1','memory.bank.shelf must be a number from 0 to below 1'),
                          ('train.loss.smoth=.1','did you mean train.loss.smooth?'),
    ('memory.bank=pkg_h1.mine.MyBnk','has no MyBnk; did you mean MyBank?'),
    ('memory.bank=pkg_h2.mine.MyBank','cannot be imported'), ('data=pkg_h1.mine.OWN','has no OWN')])
def test_mistakes_in_ones_own(own, a, msg):
    e = err(load_config, own/'own.yaml', [a])
    assert msg in e and e.startswith('command line: '), e

def test_a_run_folder_finds_them_again(own, python, tmp_path):
    "The resolved text says where they were, so another folder and another process will do"
    (tmp_path/'run').mkdir()
    (tmp_path/'run/config.yaml').write_text(to_yaml(load_config(own/'own.yaml')))
    code = ('import sys; from memo.experiment.config import load_config; '
            'print(load_config(sys.argv[1]).memories["memory"].bank.size)')
    r = python('-c', code, tmp_path/'run/config.yaml', cwd='/')
    assert r.stdout.strip()=='9', r.stderr
    r = python('-c', code, own/'own.yaml', cwd='/')
    assert r.stdout.strip()=='9', r.stderr

def test_code_with_a_mistake_is_one_line(own):
    (own/'pkg_h1/broken.py').write_text('import no_such_thing\n')
    (own/'pkg_h1/wrong.py').write_text('1/0\n')
    assert "No module named 'no_such_thing'" in err(load_config, own/'own.yaml', ['memory.bank=pkg_h1.broken.X'])
    assert 'ZeroDivisionError' in err(load_config, own/'own.yaml', ['memory.bank=pkg_h1.wrong.X'])

def test_what_only_a_constructor_tells(yml):
    from memo.experiment.build import build_dls,build_memory
    c = load_config(yml(TINY), ['memory={bank: ClassBank, capacity: 12XB, head: watch}'])
    dls = build_dls(c, 0)
    assert err(build_memory, c, dls).startswith('memory.bank.capacity: ')
    assert err(build_dls, load_config(yml(TINY), ['data.n_max=900']), 0).startswith('data: ')
    assert err(build_dls, load_config(yml(TINY), ['data.ratio=.5']), 0).startswith('data.ratio: ')

def test_two_memories_have_comments_too(yml):
    for txt in ('memories: {rare: {bank: ClassBank}, early: {size: 8}}',
                'memory: {size: 8}\nmemories: {rare: {bank: ClassBank}}'):
        c = load_config(yml(txt))
        for line in to_yaml(c, comments=True).splitlines(): assert '  # ' in line, line
        assert load_config(yml(to_yaml(c, comments=True), 'y.yaml'))==c

def test_a_policy_that_this_process_knows(yml, python, tmp_path):
    "The choices of what is imported are those that it has now"
    code = """import sys
from memo.banks.policies import policies
policies['mine'] = policies['fifo']
import memo.banks.slots
from memo.experiment.config import load_config
print(load_config(sys.argv[1]).memories['memory'].bank.policy)"""
    r = python('-c', code, yml('memory: {policy: mine}'))
    assert r.stdout=='mine\n', r.stderr

def test_a_monitor_that_no_column_has(yml):
    from memo.experiment.build import build_learner,check_monitors
    c = load_config(yml(TINY), ['train.monitor=valid_los'])
    learn = build_learner(c, 0)
    assert "train.monitor: 'valid_los' is not one of" in err(check_monitors, c,
        learn) and "did you mean 'valid_loss'" in err(check_monitors, c, learn)
    for o in ('valid_loss','accuracy','few','memory_hit','lowest medium','highest memory_fill'):
        check_monitors(override(c, {'train.monitor':o}), learn)
    assert "did you mean 'memory_hit'" in err(check_monitors, override(c, {'train.monitor':'memory_hits'}), learn)
    assert "train.monitor: 'memory_fill'" in err(check_monitors, override(c, {'train.monitor':'memory_fill'}), learn)

def test_what_is_compared_works_on_the_first_memory_that_watches(yml):
    txt = ('memories: {rare: {bank: ClassBank}, early: {size: 64, head: vote, at: layer1}}\ncompare: [crt, lda, {name: '
           'vote, k: [5, 10]}]')
    assert [s.name for s in load_config(yml(txt)).compare]==['crt','lda','vote']
    other = 'memories: {early: {size: 64, head: vote, at: layer1}, rare: {bank: ClassBank}}\ncompare: [lda]'
    assert 'compare lda needs memory.bank ClassBank, found SlotBank' in err(load_config, yml(other))
    assert 'compare has vote, which memories.early.head is already' in err(load_config,
        yml(other.replace('lda', 'vote')))

def test_a_key_that_data_of_that_kind_do_not_read(tmp_path):
    "Votes for findings are never divided by class counts"
    p = tmp_path/'x.yaml'
    p.write_text('data: chest_mosaic\nmodel: tile_cnn\nmemory: {policy: fifo, head: vote, balanced: false}')
    with pytest.raises(MemoError, match='balanced is read for multiclass data only, and chest_mosaic is multilabel'):
        load_config(p)
    p.write_text('memory: {policy: fifo, head: vote, balanced: false}')
    assert load_config(p).memories['memory'].head.balanced is False
    p.write_text('data: chest_mosaic\nmodel: tile_cnn\nmemory: {policy: fifo, head: watch}\ncompare: [vote]')
    c = load_config(p)                    # nor is a default of theirs written down, which would not be read back
    assert 'balanced' not in c.compare[0] and 'balanced' not in to_yaml(c) and from_dict(yaml.safe_load(to_yaml(c)),
        "written")==c
    assert override(c, {'memory.head':'vote', 'compare':[]}).memories['memory'].head.get('balanced') is None
    assert override(c, {'data':'digits_lt', 'model':'small_cnn', 'train.loss':'ce'}).compare[0].balanced is True

# parts of one's own in all shapes, files with sections left empty

_shapes = """
import math
from functools import partial
from typing import Annotated,Literal
from fastai.vision.all import Callback,CrossEntropyLossFlat
from memo.evaluation.baselines import Baseline
from memo.core import Count,OneOf,Range
from memo.heads.base import MemoryHead
inst,part_ = CrossEntropyLossFlat(),partial(CrossEntropyLossFlat, axis=1)
class Named(Callback):
    def __init__(self, name='a'): pass
class Inf(Callback):
    def __init__(self, clip:float=math.inf): pass
class Zero(Callback):
    def __init__(self, n:Count=0): pass
class Deep(Callback):
    def __init__(self, at=((1,2),(3,4)), rows:list=None): pass
class Depth(Callback):
    def __init__(self, depth:Literal[18,34]=18, width:Annotated[int,OneOf(1,2)]=1): pass
class Some(Callback):
    def __init__(self, n:Annotated[int|None,Range(1)]=None): pass
class Eps(Callback):
    def __init__(self, eps=1e-3): self.eps = eps
class Weighted(MemoryHead):
    def __init__(self, bank, loss_weight:float=.5): super().__init__(bank)
class Times(Baseline):
    remedy = True
    def __init__(self, times:int): self.times = times
    def overrides(self, cfg): return {'train.wd':.1*self.times}
"""

@pytest.fixture
def shapes(tmp_path, monkeypatch):
    (tmp_path/'shapes.py').write_text(_shapes)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'shapes', raising=False)
    yield
    sys.modules.pop('shapes', None)

@pytest.mark.parametrize('text,say', [
    ('train: {loss: shapes.inst}', 'shapes.inst is no class or function'),
    ('train: {loss: shapes.part_}', 'shapes.part_ is no class or function'),
    ('train: {loss: torch.nn.functional.cross_entropy}', 'cross_entropy needs input, which neither a file nor the '
                                                         'experiment gives it'),
    ('train: {loss: shapes.Named}', 'has an argument called name, which in a section is the name of the part'),
    ('train: {cbs: [shapes.Inf]}', 'the default of shapes.Inf is inf, and a number is accepted'),
    ('train: {cbs: [shapes.Zero]}', 'the default of shapes.Zero is 0, and a whole number'),
    ('train: {cbs: [{name: shapes.Depth, depth: fifty}]}', "depth must be one of 18, 34, found 'fifty'"),
    ('train: {cbs: [{name: shapes.Depth, width: 3}]}', 'width must be one of 1, 2, found 3'),
    ('train: {cbs: [{name: shapes.Some, n: 0}]}', 'n must be a whole number from 1 or null, found 0'),
    ('memory: {head: shapes.Weighted}', 'has an argument called loss_weight, which MemoryCallback reads'),
    ('compare: [memo.heads.retrieval.RetrievalHead]', 'is no baseline, nor a head that mixes in'),
    ('compare: [memo.training.losses.SigmoidFocalLoss]', 'is no baseline, nor a head that mixes in'),
    ('memory: {k: 7, head: {name: vote, k: 5}}', 'give memory.k or memory.head.k, not both'),
    ('memory: {size: 5}\nmemories: {memory: {size: 9}}', 'give memory or memories.memory, not both'),
    ('memory: {size: 5}\nmemories: 3', 'memories must be a section of names and memories, found 3'),
    ('compare: [logit_adjusted]\ntrain: {phase2: {sampling: balanced}}',
     'what is balanced already would be corrected twice'),
    ('compare: [logit_adjusted]\ntrain: {phase2: {loss: logit_adjusted}}',
     'what is balanced already would be corrected twice'),
])
def test_shapes_that_a_section_cannot_name(yml, shapes, text, say): assert say in err(load_config, yml(text))

@pytest.mark.parametrize('text', ['train: {cbs: [shapes.Deep]}', 'train: {cbs: [{name: shapes.Deep, rows: [{a: 1}, {b: '
                                                                 '2}]}]}', 'train: {cbs: [{name: shapes.Some, n: 3}]}',
                                  'train:', 'train:\ndata:\nmodel:\ncompare: []',
                                  'train: {cbs: [{name: shapes.Depth, depth: 34}]}'])
def test_shapes_that_it_can(yml, shapes, text):
    c = load_config(yml(text))
    for comments in (False,True): assert load_config(yml(to_yaml(c, comments), 'y.yaml'))==c
    assert from_dict(to_dict(c), 'written')==c and override(c, {})==c

def test_a_number_that_yaml_takes_for_a_text(yml, shapes):
    assert make(load_config(yml('train: {cbs: [{name: shapes.Eps, eps: 1e-5}]}')).train.cbs[0]).eps==1e-5

def test_two_modules_of_one_name(tmp_path):
    "Each beside its own file: the second would be the first one's code"
    for k in 'ab':
        (tmp_path/k).mkdir()
        (tmp_path/k/'same_name_twice.py').write_text('from fastai.vision.all import '
                                                     'Callback\nclass Cb(Callback): pass\n')
        (tmp_path/k/'x.yaml').write_text('train: {cbs: [same_name_twice.Cb]}')
    try:
        load_config(tmp_path/'a/x.yaml'); load_config(tmp_path/'a/x.yaml')
        e = err(load_config, tmp_path/'b/x.yaml')
    finally: sys.modules.pop('same_name_twice', None)
    assert 'a/same_name_twice.py has been imported' in e and '/b/x.yaml: ' in e

def test_a_module_that_ends_the_process(tmp_path):
    (tmp_path/'ends_at_once.py').write_text('import sys\nsys.exit(0)\n')
    (tmp_path/'x.yaml').write_text('train: {cbs: [ends_at_once.Cb]}')
    assert 'ends_at_once.Cb cannot be imported (SystemExit: 0)' in err(load_config, tmp_path/'x.yaml')

def test_a_default_says_nothing(yml):
    "What a file states that has been written with all its keys is not said to another part"
    a = load_config(yml('memory: {head: add}'))
    b = load_config(yml(to_yaml(a), 'y.yaml'), ['memory.head=vote'])
    assert b==load_config(yml('memory: {head: add}'), ['memory.head=vote'])==load_config(yml('memory: {head: vote}'))
    assert load_config(yml('memory: {head: add, k: 7}'), ['memory.head=vote']).memories['memory'].head.k==7

def test_a_remedy_that_has_to_be_told_something(yml, shapes):
    from memo.evaluation.tables import Row
    from memo.experiment.jobs import is_remedy
    from memo.registry import find
    c = load_config(yml('compare: [{name: shapes.Times, times: 2}]'))
    assert not is_remedy(Row(), c) and is_remedy(Row(),
                                                 override(c, {'train.wd':.2})) and is_remedy(Row(method='shapes.Times'),
                                                     c)

def test_a_file_over_several(tmp_path):
    "The later lies over the earlier; what two of them lie over is below both"
    (tmp_path/'a.yaml').write_text('name: a\ndata: digits_lt\nmodel: small_cnn\nseeds: [0]\n'
                                   'train: {lr: 1e-2, epochs: 1}\n')
    (tmp_path/'x.yaml').write_text('base: a.yaml\ntrain: {lr: 0.9}\n')
    (tmp_path/'y.yaml').write_text('base: a.yaml\nseeds: [3]\ntrain: {epochs: 2}\n')
    (tmp_path/'z.yaml').write_text('base: [x.yaml, y.yaml]\nname: z\n')
    c = load_config(tmp_path/'z.yaml')
    assert (c.name,c.train.lr,c.train.epochs,c.seeds)==('z', .9, 2, [3])
    (tmp_path/'w.yaml').write_text('base: [y.yaml, w.yaml]\nname: w\n')
    with pytest.raises(MemoError, match='its base leads back to itself'): load_config(tmp_path/'w.yaml')
    (tmp_path/'v.yaml').write_text('base: [y.yaml, 3]\nname: v\n')
    with pytest.raises(MemoError, match='base must be the path of a YAML file, or a list of a few'):
        load_config(tmp_path/'v.yaml')

@pytest.mark.parametrize('key', ['runs','data.root'])
@pytest.mark.parametrize('said,msg', [('~no_such_user/x','no_such_user'),('$NOPE/x','no such variable'),
                                      ('$EMPTY','or it is empty')])
def test_a_folder_of_the_shell(tmp_path, monkeypatch, key, said, msg):
    monkeypatch.delenv('NOPE', raising=False)
    monkeypatch.setenv('EMPTY', '')
    monkeypatch.setenv('HERE', str(tmp_path))
    (tmp_path/'a.yaml').write_text('name: a\ndata: {name: cifar10_lt}\nmodel: small_cnn\nseeds: [0]\n')
    with pytest.raises(MemoError, match=msg) as e: load_config(tmp_path/'a.yaml', [f'{key}={said}'])
    assert key in str(e.value)
    c = load_config(tmp_path/'a.yaml', [f'{key}=$HERE/x'])
    assert (c.runs if key=='runs' else c.data.args['root'])==str(tmp_path/'x')
