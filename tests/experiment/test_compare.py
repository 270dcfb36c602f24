"""Which rows of several experiments are compared follows from the keys in which their trainings differ; scores are
made up, nothing is trained"""
import json
import pandas as pd, pytest, yaml
from memo.evaluation.baselines import remedies_of, row_titles
from memo.experiment.compare import compare_runs
from memo.experiment.config import load_config
from memo.evaluation.evaluate import planned_rows
from memo.evaluation.tasks import Multiclass
from memo.experiment.jobs import trainings

@pytest.fixture
def made(tmp_path):
    "Experiments with the `metrics.json` that they would have"
    n = [0]
    def _made(name, seeds=(0,1), **d):
        f = tmp_path/f'{name}.yaml'
        base = dict(name=f'set/{name}', seeds=[*seeds], runs=str(tmp_path/'runs'),
                    data=dict(name='digits_lt', n_max=30), memory=None, train=dict(epochs=2))
        f.write_text(yaml.safe_dump({**base, **d, 'train':{**base['train'], **d.get('train', {})}}))
        cfg = load_config(f)
        for t in trainings(cfg, tmp_path/'runs'/cfg.name):
            t.folder.mkdir(parents=True, exist_ok=True)
            rows = []
            for r in planned_rows(t.cfg, t.name):
                n[0] += 1
                rows.append(dict(training=r.training, method=r.method, memory=list(r.memory),
                                 scores={k:.3+.001*n[0] for k in Multiclass.columns}))
            (t.folder/'metrics.json').write_text(json.dumps(dict(seed=t.seed, task='multiclass',
                columns=Multiclass.columns, digits=1,
                titles=row_titles(t.cfg, t.name), remedies=remedies_of(t.cfg, t.name), rows=rows)))
        return cfg
    return _made

def pairs(cfgs, out):
    compare_runs(cfgs, out)
    f = out/'differences.csv'
    return [(r.method,r.baseline) for r in pd.read_csv(f).itertuples()] if f.exists() else []

VOTE,ADD,WATCH = dict(head='vote', policy='fifo'),dict(head='add', k=2),dict(bank='ClassBank', head='watch')

def test_the_baseline_differs_in_nothing_but_the_memory(made, tmp_path):
    "Whatever else differs, it is no baseline: the rate, the data, the architecture, the second phase"
    cfgs = [made('net'), made('faster', train=dict(lr=.1)), made('more', data=dict(name='digits_lt', n_max=40)),
            made('twice', train=dict(phase2=dict(epochs=1))), made('added', memory=ADD)]
    assert pairs(cfgs, tmp_path/'t')==[('added','net')]

def test_momentum_of_the_second_phase_is_the_memorys(made, tmp_path):
    cfgs = [made('net', train=dict(phase2=dict(epochs=1))),
            made('added', memory=ADD, train=dict(phase2=dict(epochs=1, momentum=.9)))]
    assert pairs(cfgs, tmp_path/'t')==[('added','net')]

def test_its_own_network_comes_first(made, tmp_path):
    cfgs = [made('net'), made('voted', memory=VOTE)]
    assert pairs(cfgs, tmp_path/'t')==[('voted: plain network + memory','voted: plain network')]
    cfgs = [made('net'), made('added', memory=ADD, compare=['plain'])]
    assert pairs(cfgs, tmp_path/'t')==[('added: plain network + memory','added: plain network')]

def test_remedies_differ_in_loss_and_sampling_besides(made, tmp_path):
    """Logit adjustment, balanced and square-root sampling, under compare or as an experiment of its own; one with
    another rate is none"""
    cfgs = [made('net', memory=VOTE, compare=['logit_adjusted']), made('even', train=dict(sampling='balanced')),
            made('root', train=dict(sampling='sqrt')),
            made('even_faster', train=dict(sampling='balanced', lr=.1)),
            made('loss', memory=VOTE, train=dict(loss='logit_adjusted'))]
    got = pairs(cfgs, tmp_path/'t')
    assert got==[('net: plain network + memory','net: plain network'),
                 ('net: plain network + memory','net: logit adjustment'), ('net: plain network + memory','even'),
                 ('net: plain network + memory','root'),
                 ('net: logit adjustment + memory','net: logit adjustment'), ('net: logit adjustment + memory','even'),
                 ('net: logit adjustment + memory','root'),
                 ('loss: logit-adjusted loss + memory','loss: logit-adjusted loss'),
                 ('loss: logit-adjusted loss + memory','net: logit adjustment'),
                 ('loss: logit-adjusted loss + memory','even'), ('loss: logit-adjusted loss + memory','root')]
    txt = (tmp_path/'t/comparison.md').read_text()
    assert txt.count('\n| ')>=8 and 'No row differs' not in txt

def test_one_that_has_none_is_told(made, tmp_path):
    cfgs = [made('net', train=dict(lr=.1)), made('added', memory=ADD)]
    assert pairs(cfgs,
                 tmp_path/'t')==[] and 'No row differs from added in nothing but the memory' in (
                     tmp_path/'t/comparison.md').read_text()

def test_rows_on_features_are_nobodys_baseline(made, tmp_path):
    cfgs = [made('watched', memory=WATCH, compare=['class_mean','lda'])]
    assert pairs(cfgs, tmp_path/'t')==[('watched: plain network + memory: lda','watched: plain network')]

def test_seeds_in_common(made, tmp_path):
    cfgs = [made('net', seeds=(0,1,2)), made('added', seeds=(1,2,5), memory=ADD)]
    pairs(cfgs, tmp_path/'t')
    a,b = (pd.read_csv(tmp_path/f't/{o}.csv') for o in ('comparison','differences'))
    assert a.seeds.tolist()==[3,3] and b.seeds.tolist()==[2] and b.seed_numbers.tolist()==['1 2']
