"Trainings as overrides of an experiment, baselines of one's own, and which keys two trainings differ in"
import sys
import pytest, yaml
from helpers.errors import err
from memo.evaluation import baselines as bl
from memo.evaluation.baselines import Baseline, check_baseline, is_baseline, remedies_of, row_titles, suits
from memo.evaluation.baselines import training_title
from memo.experiment.sections import flat, to_dict
from memo.experiment.config import load_config, override
from memo.core import MemoError
from memo.evaluation.evaluate import planned_rows
from memo.evaluation.tables import Row, label
from memo.experiment.jobs import but_memory, but_remedy, differing, is_remedy, trainings

OWN = '''
from memo.evaluation.baselines import Baseline
from memo.core import Count, MemoError
class Longer(Baseline):
    "Twice as long"
    title = 'longer training'
    def __init__(self, times:Count=2): self.times = times
    def check(self, cfg, name):
        if cfg.train.epochs>50: raise MemoError(f"compare has {name}, and train.epochs is long already")
    def overrides(self, cfg): return {'train.epochs':self.times*cfg.train.epochs}
class Halved(Baseline):
    "Half of the outputs"
    works_on = 'outputs'
    def fit(self, train, valid, dls): return (lambda o: o/2),{'by':2}
'''

@pytest.fixture
def cfg(tmp_path):
    (tmp_path/'own_baselines.py').write_text(OWN)
    def _cfg(d, **more):
        d = dict(dict(name='t', data=dict(name='digits_lt', n_max=30, ratio=6, valid=5, test=10, size=8),
                      memory=dict(size=64, head='vote', k=3), train=dict(epochs=2, bs=16)), **d)
        (tmp_path/'x.yaml').write_text(yaml.safe_dump(d))
        return load_config(tmp_path/'x.yaml')
    yield _cfg
    sys.modules.pop('own_baselines', None)

def names(c): return [s.name for s in c.compare]

# trainings

def test_seeds_and_folders(cfg):
    c = cfg(dict(seeds=[3,5], compare=['logit_adjusted','balanced_sampling','class_mean']))
    ts = trainings(c, 'r')
    assert [(t.name,str(t.folder),t.seed,t.cfg.name,t.cfg.train.sampling and t.cfg.train.sampling.name,names(t.cfg))
            for t in ts]==[
        ('','r',3,'t',None,['logit_adjusted','class_mean']),
        ('balanced_sampling','r/balanced_sampling_seed_3',3,'t/balanced_sampling_seed_3','balanced',['class_mean']),
        ('','r/seed_5',5,'t/seed_5',None,['logit_adjusted','class_mean']),
        ('balanced_sampling','r/balanced_sampling_seed_5',5,'t/balanced_sampling_seed_5','balanced',['class_mean'])]
    assert differing(ts[0].cfg, ts[1].cfg)=={'train.sampling'} and not differing(ts[0].cfg, ts[2].cfg)

def test_every_training_gets_one_without_memory(cfg):
    c = cfg(dict(seeds=[0,1], memory=dict(size=32, head='add', k=2),
                 compare=['plain','balanced_sampling','logit_adjusted']))
    ts = trainings(c, 'r')
    assert [(t.name,t.folder.name) for t in ts][:4]==[('','r'), ('balanced_sampling','balanced_sampling_seed_0'),
                                                      ('','plain_seed_0'), ('balanced_sampling',
                                                          'plain_balanced_sampling_seed_0')]
    assert [bool(t.cfg.memories) for t in ts]==[True,True,False,
                                                False]*2 and [names(t.cfg) for t in ts][:4]==[['logit_adjusted'],[],
                                                    ['logit_adjusted'],[]]
    assert but_memory(ts[0].cfg, ts[2].cfg) and but_memory(ts[1].cfg, ts[3].cfg) and not but_memory(ts[0].cfg,
        ts[1].cfg) and but_remedy(ts[0].cfg, ts[3].cfg)

def test_both_phases_are_balanced(cfg):
    c = cfg(dict(train=dict(epochs=2, phase2=dict(epochs=1, momentum=.5)), compare=['balanced_sampling']))
    a,b = (t.cfg for t in trainings(c, 'r'))
    assert differing(a, b)=={'train.sampling','train.phase2.sampling'}
    assert but_memory(a, override(a, {'train.phase2.momentum':None})) and not but_memory(a,
        override(a, {'train.phase2.epochs':3}))

def test_an_experiment_reads_back_as_its_training(cfg, tmp_path):
    "A sub-folder's config.yaml is an experiment of that one training"
    from memo.experiment.sections import to_yaml
    c = cfg(dict(seeds=[0,1], compare=['crt','balanced_sampling','logit_adjusted']))
    for t in trainings(c, 'r'):
        (tmp_path/'y.yaml').write_text(to_yaml(t.cfg))
        one, = trainings(load_config(tmp_path/'y.yaml'), 'r')
        assert one.cfg==t.cfg and not one.name

# baselines of one's own

def test_a_baseline_of_ones_own_trains(cfg):
    c = cfg(dict(compare=['logit_adjusted',{'name':'own_baselines.Longer','times':3}]))
    a,b = trainings(c, 'r')
    assert b.name=='own_baselines.Longer' and b.cfg.train.epochs==6 and differing(a.cfg,
        b.cfg)=={'train.epochs'} and names(b.cfg)==['logit_adjusted']
    assert row_titles(b.cfg, b.name)=={'own_baselines.Longer':'longer training',
                                       'logit_adjusted':'logit adjustment'} and remedies_of(b.cfg,
                                           b.name)==['logit_adjusted']
    assert [label(r, row_titles(b.cfg, b.name)) for r in planned_rows(b.cfg, b.name)]==['longer training',
        'logit adjustment, longer training','longer training + memory','logit adjustment, longer training + memory']

def test_what_does_not_suit_says_so_itself(cfg):
    assert 'x.yaml: compare has own_baselines.Longer, and train.epochs is long already' in err(cfg,
        dict(train=dict(epochs=60), compare=['own_baselines.Longer']))
    assert 'times must be a whole number from 1' in err(cfg, dict(compare=[dict(name='own_baselines.Longer', times=0)]))

def test_one_that_works_on_outputs_has_a_memory_too(cfg):
    c = cfg(dict(compare=['own_baselines.Halved']))
    assert planned_rows(c)==[Row(), Row(method='own_baselines.Halved'), Row(memory=('memory',)),
                             Row(method='own_baselines.Halved', memory=('memory',))]
    assert row_titles(c)=={'':'plain network','own_baselines.Halved':'Halved'}

def test_baselines_are_checked_without_torch(cfg, python, tmp_path):
    cfg(dict(compare=['logit_adjusted','crt','balanced_sampling']))
    src = ("import sys; from memo.experiment.config import load_config; from memo.experiment.jobs import trainings; "
           f"print(len(trainings(load_config({str(tmp_path/'x.yaml')!r}), 'r')), 'torch' in sys.modules)")
    assert python('-c', src, cold=True).stdout.split()[-1]=='False'

# rows

@pytest.mark.parametrize('d,want', [
    (dict(memory=None), ['plain network']),
    (dict(memory=dict(bank='ClassBank', head='watch'), compare=['class_mean','logit_adjusted','vote','lda']),
     ['plain network','logit adjustment','nearest class mean','plain network + memory: vote',
      'plain network + memory: lda','logit adjustment + memory: vote','logit adjustment + memory: lda']),
    (dict(memory=dict(head='add', k=2), compare=['logit_adjusted']),
     ['plain network + memory','logit adjustment + memory']),
    (dict(memory=None, memories=dict(early=dict(bank='SlotBank', head='vote'),
                                     rare=dict(bank='ClassBank', head='lda'))),
     ['plain network','plain network + memory: early','plain network + memory: rare',
      'plain network + memory: early, rare']),
    (dict(memory=None, memories=dict(mid=dict(head='add', k=2), late=dict(head='vote'))),
     ['plain network + memory: mid','plain network + memory: mid, late']),
    (dict(train=dict(loss='logit_adjusted', sampling='balanced')),
     ['balanced sampling, logit-adjusted loss','balanced sampling, logit-adjusted loss + memory']),
    (dict(train=dict(sampling='sqrt')), ['square-root sampling','square-root sampling + memory']),
    (dict(memory=None, data=dict(name='chest_mosaic'), model=dict(name='chest', arch='tile_cnn'),
          train=dict(loss='focal', class_weights=True)), ['focal loss, class weights']),
    (dict(memory=None, data=dict(name='chest_mosaic'), model=dict(name='chest', arch='tile_cnn'),
          train=dict(loss='focal', phase2={})), ['plain network']),
])
def test_rows_follow_from_the_experiment(cfg, d, want):
    if 'memories' in d:
        d = {k:v for k,v in d.items() if k!='memory'} | ({} if d['memory'] is not None else dict(memory=None))
    c = cfg(d)
    assert [label(r, row_titles(c)) for r in planned_rows(c)]==want

# keys

def test_remedies_are_known_by_their_keys(cfg):
    plain,even,root = (cfg(dict(train=dict(epochs=2, **({} if s is None else dict(sampling=s)))))
                       for s in (None,'balanced','sqrt'))
    assert not is_remedy(Row(), plain) and is_remedy(Row(), even) and is_remedy(Row(), root)
    assert is_remedy(Row(method='logit_adjusted'), plain) and not is_remedy(Row(method='class_mean'), even)

@pytest.mark.parametrize('change,mem,rem',
                         [({'memory.size':3},True,True), ({'memory':None},True,True), ({'memory.at':'9'},True,True),
                          ({'train.loss':'logit_adjusted'},False,True), ({'train.sampling':'sqrt'},False,True),
    ({'train.lr':.1},False,False), ({'data.n_max':20},False,False),
    ({'seeds':[7],'name':'u','runs':'/x','compare':['crt']},True,True),
    ({'model':{'name':'timm','arch':'resnet18'}},False,False), ({'train.metrics':['ece']},False,False)])
def test_what_differs(cfg, change, mem, rem):
    c = cfg({})
    o = override(c, change)
    assert (but_memory(c, o),but_remedy(c, o))==(mem,rem) and (o==c)==False
