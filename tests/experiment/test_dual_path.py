"Experiments with two paths: their YAML, the parameters they are named for, a run with its rows, a threshold that stays"
import json
import pandas as pd, pytest, torch
from conftest import root
from helpers.errors import err
from helpers.pictures import no_rendering
from memo.core import MemoError
from memo.evaluation.evaluate import planned_rows
from memo.evaluation.tables import label, row_of
from memo.experiment.again import evaluate_run, load_run
from memo.experiment import run as ex
from memo.experiment.build import build_learner, build_stages
from memo.experiment.config import from_dict, load_config
from memo.experiment.sections import to_dict, to_yaml

pytestmark = pytest.mark.usefixtures('unrendered')

dual = root/'experiments/dual_path'
files = sorted(o.name for o in dual.glob('*.yaml'))

# YAML

def test_there_are_the_experiments():
    assert {f'{d}_{b}.yaml' for d in ('digits','fashion','cifar10_5000','cifar10_10000','cifar10_8000')
            for b in ('cached','trainable')} | {'digits_exit.yaml','fashion_exit.yaml'} <= {*files}

@pytest.mark.parametrize('name', files)
def test_every_file_loads_and_reads_back(name, tmp_path):
    cfg = load_config(dual/name)
    assert cfg.name==f"dual_path/{name.removesuffix('.yaml')}"
    (tmp_path/'y.yaml').write_text(to_yaml(cfg))
    assert load_config(tmp_path/'y.yaml')==cfg and from_dict(to_dict(cfg), 'x')==cfg
    m = cfg.memories['memory']
    assert m.bank.name==('TrainableBank' if 'trainable' in name else 'CachedBank')
    assert m.head.name==('exit' if 'exit' in name else 'dual') and (m.callback['at']=='layer1')==('exit' in name)

@pytest.mark.parametrize('name,size,tau,epochs,weight,arch', [('5000',5000,.85,15,.2,'resnet34'),
    ('10000',10_000,.85,5,.4,'resnet34'), ('8000',8000,.95,50,.4,'resnet50.a1_in1k')])
@pytest.mark.parametrize('bank', ['cached','trainable'])
def test_the_published_parameters(name, size, tau, epochs, weight, arch, bank):
    "Each of them has a key, and reaches what it is for"
    cfg = load_config(dual/f'cifar10_{name}_{bank}.yaml', ['data.root=none'])
    m,t = cfg.memories['memory'],cfg.train
    assert (m.bank.size,m.bank.similarity_threshold,m.head.threshold)==(size,tau,tau)
    assert (m.callback['loss_weight'],m.head.eps,m.head.temperature)==(weight,None,.1)
    assert bank=='cached' or m.bank.update_rate==.25
    assert (t.epochs,t.bs,t.lr,t.wd,t.opt,t.pct_start,t.clip)==(epochs,128,1e-3,1e-4,'adam',.1,2)
    assert {k:cfg.model[k] for k in ('name','arch','pretrained','dropout')
            if k!='name'}==dict(arch=arch, pretrained=True, dropout=.2)
    assert (cfg.data.shift,cfg.data.rotate,cfg.data.light)==(4,15,.2)

@pytest.mark.parametrize('name', [o for o in files if o.startswith('digits')])
def test_a_learner_is_what_the_file_says(name):
    cfg = load_config(dual/name)
    learn = build_learner(cfg, 0)
    cb,(stage,) = learn.memory,build_stages(cfg, learn, 0)
    assert cb.bank.capacity_rows==1000 and cb.loss_weight==.2 and learn.gradient_clip.max_norm==2
    assert stage.kw==dict(pct_start=.1) and learn.wd==1e-4 and [*learn.dls.one_batch()[0].shape[1:]]==[1,32,32]
    assert learn.model.fc.p==.2 and learn.model.get_classifier() is learn.model.fc

def names(cfg, training=''): return [label(r, {}) for r in planned_rows(cfg, training)]

def test_rows_of_the_table():
    assert names(load_config(dual/'digits_cached.yaml'))==['plain network','plain network + memory',
        'plain network + memory (soft)','plain network + memory: vote']
    assert names(load_config(dual/'digits_exit.yaml'))==names(load_config(dual/'digits_cached.yaml'))

@pytest.mark.parametrize('over,msg', [
    (['compare=[{name: dual, eps: 0.005}]'], 'compare has dual, which memory.head is already'),
    (['memory.head=vote','memory.eps=.01','compare=[]'], 'memory.eps is read by the head dual, exit only'),
    (['memory.eps=-1'], 'memory.eps must be a number'),
    (['memory.threshold=2'], 'memory.threshold must be a number from -1 up to 1, found 2'),
    (['memory.soft=perhaps'], 'memory.soft must be true or false'),
    (['memory.thresold=.5'], 'did you mean memory.threshold?'),
    (['data.valid=0'], 'give a share of validation, or memory.eps=null'),
    (['data.valid=0','memory.confidence=.9'], 'or memory.eps=null and memory.confidence=null'),
    (['data.valid=0','memory.eps=null'], 'vote is fitted on validation data, and data.valid is 0'),
    (['data.valid=0','memory.eps=null'], 'give a share of validation, or take it out'),
    (['data.valid=0','memory.eps=null','compare=[{name: dual, eps: 0.01}]'],
     'compare dual is fitted on validation data, and data.valid is 0: give a share of validation, or take it out'),
    (['memory.loss_weight=0','compare=[plain]'], 'compare has plain, a training without memory'),
    (['train.opt=lion'], 'train.opt must be one of adamw, adam, sgd, row_sgd'),
    (['train.clip=0'], 'train.clip must be a number above 0 or null, found 0'),
    (['train.pct_start=1'], 'train.pct_start must be a number above 0 to below 1 or null'),
    (['model.dropout=1'], 'model.dropout must be a number from 0 to below 1 or null'),
])
def test_mistakes_are_one_line(over, msg):
    e = err(load_config, dual/'digits_cached.yaml', over)
    assert msg in e, e

@pytest.mark.parametrize('over', [['memory.head=vote','compare=[]'], ['compare=[plain]'],
                                  ['data.valid=0','memory.eps=null','compare=[]']])
def test_what_is_allowed(over):
    cfg = load_config(dual/'digits_cached.yaml', over)
    assert from_dict(to_dict(cfg), 'x')==cfg

# runs

TINY = ['data.n=200','data.valid=20','data.test=20','data.size=16','model=small_cnn','memory.size=100','train.epochs=2',
        'train.lr=1e-2','train.bs=16']

def run(folder, name, *over):
    cfg = load_config(dual/f'{name}.yaml', [*TINY, *over, f'runs={json.dumps(str(folder))}'])
    with no_rendering(): return cfg,folder/cfg.name,ex.run_experiment(cfg, log=lambda s: None)

def entries(folder):
    m = json.loads((folder/'metrics.json').read_text())
    return {label(row_of(r), {}):r for r in m['rows']},m

@pytest.fixture(scope='module', params=['digits_cached','digits_trainable'])
def ran(request, tmp_path_factory): return run(tmp_path_factory.mktemp('runs'), request.param)

@pytest.mark.slow
def test_network_hard_soft_and_vote(ran):
    cfg,folder,table = ran
    rows,m = entries(folder)
    assert list(rows)==names(cfg) and all(0<r['scores']['accuracy']<=1 for r in rows.values())
    assert {*m['columns']}=={'accuracy','balanced_accuracy','ece','usage'} and 'usage' in table
    assert [k for k,r in rows.items() if 'usage' in r['scores']]==['plain network + memory']
    pred = pd.read_csv(folder/'predictions.csv')
    title = m['titles']['']
    assert title=='trained with memory loss' and (pred[f'{title} + memory']==pred.target).mean()==pytest.approx(
        rows['plain network + memory']['scores']['accuracy'])

@pytest.mark.slow
def test_both_gates_have_the_chosen_threshold(ran):
    _,folder,_ = ran
    rows,_ = entries(folder)
    hard,soft = (rows[f'plain network + memory{o}']['chosen'] for o in ('',' (soft)'))
    assert hard==soft and hard['threshold']!=.85
    assert float(load_run(folder).memory.head.threshold)==hard['threshold']

@pytest.mark.slow
def test_usage_is_the_share_that_the_model_lets_go(ran):
    cfg,folder,_ = ran
    rows,_ = entries(folder)
    learn = load_run(folder)
    x = torch.cat([b[0] for b in learn.dls[2]])
    z = learn.memory.collect(learn.dls[2]).z
    hit = learn.memory.head.decide(z)[0]
    assert float(hit.float().mean())==pytest.approx(rows['plain network + memory']['scores']['usage'])
    seen = []
    hook = learn.model[-1].register_forward_hook(lambda mod, args, out: seen.append(len(args[0])))
    with torch.no_grad(): learn.model.eval()(x)
    hook.remove()
    assert sum(seen)==int((~hit).sum())         # the classifier is computed for the others only

@pytest.mark.slow
def test_history_has_both_paths(ran):
    h = pd.read_csv(ran[1]/'history.csv')
    assert {'memory_usage','memory_accuracy','memory_network_accuracy','train_accuracy','memory_loss'}<={*h.columns}
    assert not {'many','medium','few'} & {*h.columns} and h['memory_usage'].between(0, 1).all()
    assert (ran[1]/'two_paths.png').is_file()

@pytest.mark.slow
def test_evaluated_again_it_is_the_same(ran):
    _,folder,table = ran
    again,off = evaluate_run(folder)
    assert off==[] and again.strip()==table.strip()

@pytest.mark.slow
@pytest.mark.parametrize('more', [(), ('data.valid=0','compare=[]'),
                                  ('data.valid=0','compare=[exit,logit_adjusted,plain]')])
def test_a_stated_threshold_stays(more, tmp_path):
    "Nothing is chosen unasked: the published experiments have a fixed one. So no validation images are needed"
    _,folder,_ = run(tmp_path, 'digits_cached', 'memory.eps=null', 'memory.threshold=.7', *more)
    rows,_ = entries(folder)
    assert rows['plain network + memory']['chosen']['threshold']==pytest.approx(.7)

@pytest.mark.slow
def test_without_memory_too(tmp_path):
    "`plain` is a training without the memory's loss, so another network"
    _,folder,table = run(tmp_path, 'digits_cached', 'compare=[plain]')
    assert [p.name for p in folder.glob('plain*')]==['plain_seed_0'] and '\ntrained without memory ' in table
    rows,_ = entries(folder)
    alone = json.loads((folder/'plain_seed_0/metrics.json').read_text())['rows'][0]['scores']
    assert alone!=rows['plain network']['scores'] and 'usage' not in alone

@pytest.mark.slow
def test_an_exit_in_a_small_run(tmp_path):
    cfg,folder,_ = run(tmp_path, 'digits_exit', 'memory.at="4"')
    rows,_ = entries(folder)
    assert list(rows)==names(cfg) and 0<=rows['plain network + memory']['scores']['usage']<=1
    assert evaluate_run(folder)[1]==[]

def test_too_few_validation_images_are_told_before_training(tmp_path):
    "That no threshold could be chosen was found when all was trained"
    text = ('name: tiny\ndata: {name: digits_lt, n_max: 6, ratio: 2, size: 8, test: 2, valid: 2}\nmodel: small_cnn\n'
            'memory: {bank: CachedBank, head: dual, size: 16, confidence: 0.999}\nseeds: [0]\n'
            f'runs: {tmp_path}/runs\ntrain: {{bs: 16, epochs: 1}}\n')
    (tmp_path/'a.yaml').write_text(text)
    with pytest.raises(MemoError, match='20 held-out rows with a label, and to be 0.999 sure'):
        ex.run_experiment(load_config(tmp_path/'a.yaml'), log=lambda s: None)
    assert not (tmp_path/'runs').exists()
