"Experiments on a long tail: their YAML, a run with every row, its saved banks, and a run that was interrupted"
import json
import pandas as pd, pytest, torch
from fastai.vision.all import Callback
from conftest import root
from data.test_whole import archive, photos      # pytest fixtures
from helpers.errors import err
from helpers.pictures import no_rendering
from memo.evaluation import evaluate as evaluation
from memo.experiment.again import evaluate_model, evaluate_run, load_run
from memo.experiment import run as ex
from memo.banks.base import Bank
from memo.banks.classes import ClassBank
from memo.banks.exchange import latest_bank
from memo.heads.attach import find_head
from memo.experiment.config import from_dict, load_config
from memo.experiment.sections import to_dict, to_yaml
from memo.evaluation.tables import label, row_of
from memo.experiment.jobs import trainings

pytestmark = pytest.mark.usefixtures('unrendered')

tail = root/'experiments/tail'
files = sorted(o.relative_to(tail).as_posix() for o in tail.rglob('*.yaml'))
TINY = '''
name: tail/tiny
seeds: [0]
data: {name: digits_lt, n_max: 40, ratio: 20, valid: 8, test: 20, size: 8}
memory: {bank: ClassBank, capacity: 30, head: watch, save_every: 2}
train: {epochs: 3, lr: 1e-2, bs: 32}
compare: [logit_adjusted, class_mean, crt, {name: vote, k: [3, 5], whiten: [false, true]}, prototype, lda]
'''
rows = ['plain network','logit adjustment','nearest class mean','classifier re-trained',
        *(f'{n} + memory: {h}' for n in ('plain network','logit adjustment') for h in ('vote','prototype','lda'))]

def entries(folder):
    "label -> entry of a metrics.json"
    m = json.loads((folder/'metrics.json').read_text())
    return {label(row_of(r), m['titles']):r for r in m['rows']}
def scores(folder): return {k:r['scores'] for k,r in entries(folder).items()}

# YAML
def test_there_are_the_experiments():
    assert len(files)>=20 and {'cifar10_lt.yaml','inat18.yaml','digits/replay.yaml'}<={*files}

@pytest.mark.parametrize('name', files)
def test_every_file_loads_and_reads_back(name, tmp_path):
    cfg = load_config(tail/name)
    banks = ['ClassBank'] if name.startswith('replay/') else ['ClassBank','SlotBank']
    assert cfg.name.startswith('tail/') and [m.bank.name for m in cfg.memories.values()]==banks
    (tmp_path/'y.yaml').write_text(to_yaml(cfg))
    assert load_config(tmp_path/'y.yaml')==cfg and from_dict(to_dict(cfg), 'x')==cfg

def test_files_have_names_of_their_own():
    names = [load_config(tail/o).name for o in files]
    assert len(set(names))==len(names)
    for o,n in zip(files, names): assert n=='tail/'+o.removesuffix('.yaml') or '/' not in o

CB = 'bank: ClassBank'
@pytest.mark.parametrize('txt,msg', [
    ('memory: {head: prototype}', 'memory.head prototype needs memory.bank ClassBank, found SlotBank'),
    ('memory: {head: lda}', 'memory.head lda needs memory.bank ClassBank'),
    ('memory: {head: replay}', 'memory.head replay needs memory.bank ClassBank'),
    ('memory: {head: watch}\ncompare: [prototype]', 'compare prototype needs memory.bank ClassBank, found SlotBank'),
    ('memory: {bank: ClassBank, head: watch, whiten: true}', 'memory.whiten is read by the head vote only'),
    ('memory: {bank: ClassBank, head: replay}\ndata: {name: chest_mosaic}', 'memory.head replay with a ClassBank is '
        'for classes, and chest_mosaic has findings'),
    ('memory: {bank: ClassBank, head: vote}\ndata: {name: chest_mosaic}',
     'memory.head vote with a ClassBank is for classes'),
    ('memory: {bank: ClassBank, head: watch}\ndata: {name: chest_mosaic}\ncompare: [class_mean]',
     'compare class_mean is for classes'),
    ('memory: {bank: ClassBank, head: lda}\ncompare: [vote, lda]', 'compare has lda, which memory.head is already'),
    ('memory: {head: vote}\ncompare: [vote]', 'compare has vote, which memory.head is already'),
    ('memory: {head: add}\ncompare: [vote]', 'compare has vote, which needs'),
    ('memory: {head: watch}\ncompare: [plain]', 'compare has plain'),
    ('memory: {bank: ClassBank, head: lda}\ndata: {name: digits_lt, valid: 0}', 'memory.head lda is fitted on '
        'validation data, and data.valid is 0'),
    ('memory: {bank: ClassBank, head: watch}\ncompare: [crt]\ndata: {name: digits_lt, valid: 0}', 'compare crt is '
        'fitted on validation data, and data.valid is 0'),
    ('memory: {bank: ClassBank, save_every: 0}', 'memory.save_every must be a whole number from 1 or null, found 0'),
    ('memory: {bank: ClassBank, save_every: 1.5}',
     'memory.save_every must be a whole number from 1 or null, found 1.5'),
    ('memory: {bank: ClassBank, dtype: int4}', "memory.dtype must be one of float32, float16, bfloat16, int8, found "
                                               "'int4'; did you mean 'int8'?"),
    ('memory: {dtype: int8}', 'memory.dtype is read by the bank ClassBank only'),
    ('memory: {bank: ClassBank, capacity: 0}', 'memory.capacity must be a whole number from 1 or a text, found 0'),
    ('memory: {bank: ClassBank, capacity: 1.5}', 'memory.capacity must be a whole number from 1 or a text, found 1.5'),
    ('memory: {bank: ClassBank, tail_percentile: 60}', 'memory.tail_percentile must be a number '
                                                       'from 0 up to 50, found 60'),
    ('memory: {bank: ClassBank, tail_percentile: -1}', 'memory.tail_percentile must be a number '
                                                       'from 0 up to 50, found -1'),
    ('memory: {bank: ClassBank, alpha: 0}', 'memory.alpha must be a number above 0, found 0'),
    ('memory: {alpha: .2}', 'memory.alpha is read by the bank ClassBank only'),
    ('memory: {bank: ClassBank, head: prototype, k: [1, 2]}', 'memory.k must be a whole number from 1, found [1, 2]'),
    ('memory: {bank: ClassBank, head: prototipe}', 'did you mean prototype?'),
    ('compare: [prototypes]', 'did you mean prototype?'),
    ('train: {sampling: square}', 'train.sampling'),
    ('data: {name: cifar10_lt, ratio: big}', 'data.ratio must be a number'),
])
def test_wrong_combinations(yml, txt, msg):
    e = err(load_config, yml(txt))
    assert msg in e, e
    assert 'x.yaml' in e

@pytest.mark.parametrize('capacity', ["'12'",'512XB'])
def test_a_budget_that_is_none_is_told_before_anything_is_written(yml, tmp_path, capacity):
    cfg = load_config(
        yml(f'memory: {{bank: ClassBank, capacity: {capacity}}}\nruns: {json.dumps(str(tmp_path/"runs"))}'))
    assert f"memory.bank.capacity: {capacity.strip(chr(39))!r}" in err(ex.run_experiment,
        cfg) and not (tmp_path/'runs').exists()

@pytest.mark.parametrize('over',
                         [['memory.head=prototype','compare=[vote, lda]'],
                          ['memory.head=vote','compare=[class_mean, crt]'], ['memory.capacity=1MB','memory.dtype=int8'],
                                  ['compare=[vote, balanced_sampling, crt]'], ['train.sampling=sqrt','compare=[vote]']])
def test_what_is_allowed(yml, over):
    cfg = load_config(yml(TINY), over)
    assert from_dict(to_dict(cfg), 'x')==cfg

@pytest.mark.parametrize('base', ['TINY','digits/replay.yaml'])
def test_trainings_of_an_experiment(yml, base):
    cfg = load_config(yml(TINY) if base=='TINY' else tail/base, ['seeds=[0,1]'])
    ts = trainings(cfg, 'f')
    assert [t.seed for t in ts]==[0,1] and all(t.cfg.compare==cfg.compare and not t.name for t in ts)

# a run
@pytest.fixture(scope='module')
def run(tmp_path_factory):
    d = tmp_path_factory.mktemp('runs')
    (d/'x.yaml').write_text(TINY)
    cfg = load_config(d/'x.yaml', [f'runs={json.dumps(str(d))}'])
    with no_rendering(): return cfg,d/'tail/tiny',ex.run_experiment(cfg, log=lambda s: None)

@pytest.mark.slow
def test_every_row_is_there(run):
    cfg,folder,table = run
    m = scores(folder)
    assert list(m)==rows and all(o in table for o in rows)
    for v in m.values(): assert all(0<=v[k]<=1 for k in ('accuracy','balanced_accuracy','many','medium','few'))
    c = {k:r['chosen'] for k,r in entries(folder).items() if 'chosen' in r}
    assert set(c)=={*rows[2:]} and {'wd'}=={*c['classifier re-trained']} and {'temperature'}=={*c['nearest class mean']}
    for k,v in c.items():
        if 'memory' in k: assert 0<v['weight']<1 and ('k' in v)==('vote' in k)
    pred = pd.read_csv(folder/'predictions.csv')
    for k in rows: assert pred[k].between(0, 9).all() and (pred[k]==pred.target).mean()==pytest.approx(m[k]['accuracy'])

@pytest.mark.slow
def test_evaluated_again_it_is_the_same(run):
    cfg,folder,table = run
    again,off = evaluate_run(folder)
    assert off==[] and again.strip()==table.strip()
    assert 'plain network + memory: lda' in evaluate_model(folder/'model.safetensors')

def same_bank(a, b):
    a,b = a.state_dict(),b.state_dict()
    return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)

@pytest.mark.slow
def test_saved_banks(run):
    cfg,folder,_ = run
    assert sorted(o.name for o in (folder/'banks').iterdir())==[f'tiny_{s}.{e}' for s in ('final','step_2')
        for e in ('json','safetensors')]
    own = load_run(folder).memory.bank
    end = Bank.load(latest_bank(folder/'banks', 'tiny'))
    assert isinstance(end, ClassBank) and same_bank(end, own) and end.config()==own.config()
    mid = Bank.load(folder/'banks/tiny_step_2.safetensors')
    n = int(own.counts.sum())
    assert int(mid.seen)==2*n//3 and int(own.seen)==n and int(mid.updates)*3==int(own.updates)*2
    counts = json.loads((folder/'metrics.json').read_text())['classes']
    assert own.counts.tolist()==[3*counts[str(c)] for c in range(10)]
    fig = json.loads((folder/'banks/tiny_final.json').read_text())
    assert fig['updates_per_class']==own.counts.tolist() and fig['step']=='final' and fig['tail_classes_count']==len(
        own.tail())

@pytest.mark.slow
def test_all_rows_come_from_one_network(run, monkeypatch):
    "The vote, prototype and LDA rows are what a run with that head gives, the scores too"
    cfg,folder,_ = run
    learn = load_run(folder)
    r = evaluation.evaluate(learn, cfg)
    was = {k:v.clone() for k,v in learn.model.state_dict().items()}
    evaluation.evaluate(learn, cfg)
    assert all(torch.equal(v, was[k]) for k,v in learn.model.state_dict().items())      # looking changes nothing
    for p in r.probs.values(): assert torch.allclose(p.sum(1), torch.ones(len(p)), atol=1e-4)
    m = scores(folder)
    vote = '{name: vote, k: [3, 5], whiten: [false, true]}'
    for h in ('vote','prototype','lda'):
        over = [f'memory.head={vote if h=="vote" else h}',
                f'compare=[{", ".join(dict(vote=vote).get(o, o) for o in ("vote","prototype","lda") if o!=h)}]',
                f'name=tail/{h}']
        c = load_config(folder.parents[1]/'x.yaml', [*over, f'runs={json.dumps(str(folder.parents[1]))}'])
        l = ex.train(trainings(c, ex.run_folder(c))[0], log=lambda s: None)
        got = scores(ex.run_folder(c))
        assert got['plain network']==m['plain network'] and got['plain network + memory']==pytest.approx(
            m[f'plain network + memory: {h}'])
        assert find_head(l.model).__class__.__name__.lower().startswith(h)

@pytest.mark.slow
@pytest.mark.parametrize('head,extra',
                         [pytest.param('watch', (), marks=pytest.mark.nightly),
                          pytest.param('replay', (), marks=pytest.mark.nightly),
                          ('lda',('memory.capacity=40kB','memory.dtype=int8','compare=[crt, prototype]'))])
def test_interrupted_and_resumed_is_the_whole(yml, tmp_path, monkeypatch, head, extra):
    def cfg(name):
        return load_config(yml(TINY), [f'memory.head={head}', 'compare=[crt, prototype, lda]', *extra, f'name={name}',
                                       f'runs={json.dumps(str(tmp_path))}'])
    table = ex.run_experiment(cfg('whole/t'), log=lambda s: None)
    n = []
    def log(s):
        n.append(s)
        if len(n)==2: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): ex.run_experiment(cfg('parts/t'), log=log)
    assert not (tmp_path/'parts/t/metrics.json').exists()
    assert ex.resume_run(tmp_path/'parts/t', log=lambda s: None)==table
    a,b = (json.loads((tmp_path/o/'t/metrics.json').read_text()) for o in ('whole','parts'))
    assert a['rows'] and {k:a[k] for k in ('rows','banks','classes')}=={k:b[k] for k in ('rows','banks','classes')}
    x,y = (Bank.load(tmp_path/o/'t/banks/t_final.safetensors') for o in ('whole','parts'))
    assert same_bank(x, y) and (head!='replay' or x.draws>0)
    x,y = (Bank.load(tmp_path/o/'t/banks/t_step_2.safetensors') for o in ('whole','parts'))
    assert same_bank(x, y)
    h,g = (pd.read_csv(tmp_path/o/'t/history.csv').drop(columns='seconds') for o in ('whole','parts'))
    pd.testing.assert_frame_equal(h, g)
    assert evaluate_run(tmp_path/'parts/t')[1]==[]

@pytest.mark.slow
def test_slots_are_saved_too(yml, tmp_path):
    cfg = load_config(yml('name: s\nseeds: [0]\ndata: {name: digits_lt, n_max: 20, ratio: 4, valid: 5, test: 10, size: '
                          '8}\nmemory: {size: 40, head: vote, k: 3, save_every: 1}\n'
                          'train: {epochs: 2, bs: 16}\ncompare: [class_mean, crt]'),
                          [f'runs={json.dumps(str(tmp_path))}'])
    ex.run_experiment(cfg, log=lambda s: None)
    assert same_bank(Bank.load(latest_bank(tmp_path/'s/banks', 's')),
                     load_run(tmp_path/'s').memory.bank) and len(list((tmp_path/'s/banks').iterdir()))==6
    assert evaluate_run(tmp_path/'s')[1]==[]

@pytest.mark.slow
@pytest.mark.parametrize('name,valid', [('cifar10_lt',10), ('cifar100_lt',2)])
def test_cifar_in_its_official_layout(name, valid, archive, tmp_path):
    "The file that ships, on a tree of that layout: the same rows as the tables that are measured here"
    small = ['data.ratio=4',f'data.valid={valid}','model.arch=test_resnet','train.epochs=1','train.bs=32',
             'memories.density.size=2000','memory.save_every=null']
    cfg = load_config(tail/f'{name}.yaml', [f'data.root={archive}', f'runs={json.dumps(str(tmp_path))}', *small])
    measured = load_config(tail/'digits/balanced.yaml')
    assert {o.name for o in cfg.compare}>={o.name for o in measured.compare}
    with no_rendering(): ex.run_experiment(cfg, log=lambda s: None)
    of = entries(tmp_path/cfg.name)
    assert {'plain network','plain network + memory: density','network x re-trained classifier','temperature',
            'distribution calibration','nearest neighbours'}<={*of}
    assert len(of)>=23 and all(0<=r['scores']['accuracy']<=1 for r in of.values())
