"Baselines of a long tail and of findings in experiments: their rows, whose numbers they are, and what they refuse"
import copy
import pytest, torch
from fastai.torch_core import get_model
from torch import nn
from helpers.errors import err
from helpers.learners import quietly
from helpers.pictures import no_rendering
from memo.evaluation import evaluate as ev
from memo.evaluation import rebalanced
from memo.evaluation.baselines import remedies_of, suits, training_title
from memo.evaluation.rebalanced import balanced_layer, finding_layer
from memo.evaluation.tables import format_results, results
from memo.experiment.again import evaluate_run, load_run
from memo.experiment import run as ex
from memo.experiment.build import build_learner
from memo.experiment.config import from_dict, override
from memo.experiment.jobs import trainings
from memo.registry import Section
from memo.training.deferred import CosineLinear
from memo.training.losses import log_prior

ON_OUTPUTS = [dict(name='logit_adjusted', by='nll'),'tau_norm','lws','temperature']
ON_FEATURES = [dict(name='crt', loss='balanced_softmax'),dict(name='knn', k=[1,5])]
DIGITS = dict(name='digits_lt', n_max=30, ratio=10, valid=6, test=8, size=8)
CHEST = dict(name='chest_mosaic', patients=60)

every = *ON_OUTPUTS,*ON_FEATURES,'two_opinions'

def experiment(compare=every, data=DIGITS, memory=None, train=None, model=None, **kw):
    model = model or ('tile_cnn' if data is CHEST else 'small_cnn')
    return from_dict(dict(name='x', seeds=[0], data=data, model=model, memory=memory, compare=list(compare),
                          train={**dict(epochs=1, bs=16, lr=1e-2), **(train or {})}, **kw), 'test')

def trained(cfg, n=2):
    learn = build_learner(cfg, 0)
    quietly(learn, learn.fit, n, 1e-2)
    return learn

def scored(learn, cfg):
    "Result, and by method the probabilities and what was chosen"
    r = ev.evaluate(learn, cfg)
    return r,{o['method']:p for o,p in zip(r.rows, r.probs.values())},{o['method']:o.get('chosen') for o in r.rows}

VOTE,ADD = dict(policy='fifo', size=64, head='vote', k=[3,5]),dict(policy='fifo', size=64, head='add', k=2)
@pytest.mark.parametrize('memory', [None, VOTE, ADD], ids=['none','vote','add'])
def test_rows_and_their_titles(memory):
    cfg = experiment(memory=memory)
    learn = trained(cfg)
    r,p,chosen = scored(learn, cfg)
    more = ' + memory' if memory is ADD else ''         # the network cannot do without it
    titles = ['plain network','logit adjustment (scale and tau by nll)','tau-normalised classifier',
              'learned weight scaling','temperature']
    want = [o+more for o in titles]+['classifier re-trained (balanced softmax)','nearest neighbours']
    want.append('network x re-trained classifier'+more)
    if memory is VOTE: want += [f'{o} + memory' for o in titles[:2]]
    assert [*r.probs]==want
    assert all(o.isfinite().all() and torch.allclose(o.sum(1), torch.ones(len(o)), atol=1e-4) for o in r.probs.values())
    assert {*chosen['two_opinions']}=={'l2','network','layer','counts'} and chosen['tau_norm'].keys()=={'tau'}
    assert torch.equal(p['temperature'].argmax(1), p[''].argmax(1)) or memory is VOTE
    text = format_results(*results([ev.metrics_of(0, r)]))
    assert all(o in text for o in want)
    assert {'logit_adjusted','tau_norm','lws','crt','two_opinions'}=={*remedies_of(cfg)}

def test_tempered_weights_are_put_into_the_network():
    "Its last layer changed by hand gives the answers of the row"
    cfg = experiment(['tau_norm'])
    learn = trained(cfg)
    r,p,chosen = scored(learn, cfg)
    m = copy.deepcopy(get_model(learn.model)).eval()
    last = [o for o in m.modules() if isinstance(o, nn.Linear)][-1]
    with torch.no_grad():
        last.weight /= last.weight.norm(dim=1, keepdim=True)**chosen['tau_norm']['tau']
        last.bias.zero_()
        o = torch.cat([m(b[0]) for b in learn.dls[2]])
    assert torch.allclose(o.softmax(1), p['tau_norm'], atol=1e-5)

def test_two_opinions_are_the_network_and_the_layer_on_its_features():
    cfg = experiment([dict(name='crt', loss='balanced_softmax'),'two_opinions'])
    learn = trained(cfg)
    r,p,chosen = scored(learn, cfg)
    a = ev.Answers(learn, cfg)
    train,valid,test = (a.both(o) for o in ('train','valid','test'))
    layer,got = balanced_layer(train.z, train.y, 10, valid.z, valid.y)
    assert got==chosen['crt'] and torch.allclose(layer(test.z).softmax(1), p['crt'], atol=1e-4)
    c = chosen['two_opinions']
    q,_ = balanced_layer(train.z, train.y, 10, valid.z, valid.y, [c['l2']])
    n = log_prior(learn.dls.counts)
    o = c['network']*test.logits.log_softmax(1)+c['layer']*q(test.z).log_softmax(1)-c['counts']*n
    assert torch.allclose(o.softmax(1), p['two_opinions'], atol=2e-3)       # that begins at another ridge's layer

@pytest.mark.parametrize('data,fit,names', [(DIGITS,'balanced_layers',['crt','two_opinions']),
                                            (CHEST,'finding_layers',['logistic','product'])])
def test_what_two_rows_need_is_fitted_once(data, fit, names, monkeypatch):
    "And again for another network"
    seen,was = [],getattr(rebalanced, fit)
    def counted(z, *args): return seen.append(z) or was(z, *args)
    monkeypatch.setattr(rebalanced, fit, counted)
    cfg = experiment([dict(name='crt', loss='balanced_softmax') if o=='crt' else o for o in names], data)
    got = [scored(trained(cfg, n), cfg)[1] for n in (1,2)]
    assert len(seen)==2 and not torch.equal(*seen)
    assert all(not torch.equal(got[0][o], got[1][o]) for o in names)

def test_findings_have_rows_of_their_own():
    ways = [dict(name='temperature', offset=True),'logistic',dict(name='product')]
    cfg = experiment(ways, CHEST, memory=VOTE)
    learn = trained(cfg, 1)
    r,p,chosen = scored(learn, cfg)
    assert [*r.probs]==['plain network','temperature and offset','logistic regression','network x logistic regression',
                        'plain network + memory']
    assert all(o.isfinite().all() and ((o>=0)&(o<=1)).all() for o in p.values())
    a = ev.Answers(learn, cfg)
    train,valid,test = (a.both(o) for o in ('train','valid','test'))
    f,got = finding_layer(train.z, train.y, valid.z, valid.y)
    assert got==chosen['logistic'] and torch.allclose(f(test.z).sigmoid(), p['logistic'], atol=1e-4)
    c = chosen['temperature']
    assert torch.allclose((test.logits/c['temperature']+c['offset']).sigmoid(), p['temperature'], atol=1e-4)

MEMORIES = dict(memory=dict(bank='ClassBank', capacity=32, head='watch'),
                density=dict(bank='SlotBank', policy='fifo', size=512, head='density', spread_of='memory', tries=3))
CLASSES = ['temperature','logit_adjusted_accuracy','tau_norm','lws','class_mean',dict(name='vote', k=[5,10])]
SLOW = ['logit_adjusted_nll','knn','crt','crt_softmax','distribution_calibration','two_opinions','prototype','lda']
FINDINGS = ['temperature','temperature_each','logistic','product']
night = pytest.mark.nightly
@pytest.mark.parametrize('compare,data,memories', [
    (CLASSES,DIGITS,MEMORIES), pytest.param(SLOW, DIGITS, MEMORIES, marks=night),
    pytest.param(FINDINGS, CHEST, dict(memory=VOTE), marks=night)], ids=['classes','slow','findings'])
def test_nothing_is_chosen_on_the_test_set(compare, data, memories):
    "Noise in its place, and other labels: what each row chose stays"
    cfg = from_dict(dict(name='x', seeds=[0], data=data, model='tile_cnn' if data is CHEST else 'small_cnn',
                         memories=memories, compare=compare, train=dict(epochs=1, bs=16, lr=1e-2)), 'test')
    learn = trained(cfg)
    was = ev.evaluate(learn, cfg)
    ds,g = learn.dls[2].dataset,torch.Generator().manual_seed(0)
    ds.x = torch.randint(0, 255, ds.x.shape, generator=g).to(ds.x.dtype)
    ds.y = ds.y[torch.randperm(len(ds.y), generator=g)]
    now = ev.evaluate(learn, cfg)
    for a,b in zip(was.rows, now.rows, strict=True):
        assert a['scores']!=b['scores'] and repr(a.get('chosen'))==repr(b.get('chosen'))
    assert sum('chosen' in o for o in was.rows)>=len(compare)

# what is refused, in one line
@pytest.mark.parametrize('cfg,msg', [
    (dict(compare=['product']), 'compare product is for findings, and digits_lt has classes; two_opinions is accepted'),
    (dict(compare=['two_opinions'], data=CHEST), 'compare two_opinions is for classes, and chest_mosaic has findings; '
        'product is accepted'),
    (dict(compare=['tau_norm'], data=CHEST), 'compare tau_norm is for classes'),
    (dict(compare=['lws'], data=CHEST), 'compare lws is for classes'),
    (dict(compare=['knn'], data=CHEST), 'compare knn is for classes'),
    (dict(compare=['distribution_calibration'], data=CHEST), 'compare distribution_calibration is for classes'),
    (dict(compare=[dict(name='logit_adjusted', by='nll')], data=CHEST), 'compare logit_adjusted is for classes'),
    (dict(compare=['temperature_each']), 'compare temperature_each is for findings, and digits_lt has classes; '
        'temperature is accepted'),
    (dict(compare=['temperature'], data={**DIGITS,'valid':0}), 'compare temperature is fitted on validation data, and '
        'data.valid is 0'),
    (dict(compare=[dict(name='logit_adjusted', by='accuracy')], data={**DIGITS,'valid':0}), 'leave by out'),
    (dict(compare=['two_opinions'], data={**DIGITS,'valid':0}), 'data.valid is 0'),
    (dict(compare=['balanced_softmax'], data=CHEST), 'compare balanced_softmax is for classes, and chest_mosaic has '
        'findings; class_weights is accepted'),
    (dict(compare=['class_weights']), 'compare class_weights is for findings'),
    (dict(compare=['asymmetric']), 'compare asymmetric is for findings'),
    (dict(compare=['sqrt_sampling'], data=CHEST), 'compare sqrt_sampling is for classes'),
    (dict(compare=['balanced_softmax'], train=dict(loss='balanced_softmax')), 'train.loss is balanced_softmax already'),
    (dict(compare=['class_balanced'], train=dict(sampling='sqrt')), 'would be corrected twice'),
    (dict(compare=['ldam_drw'], train=dict(warmup_epochs=1)), 'train.warmup_epochs makes several'),
    (dict(compare=['ldam_drw'], train=dict(cbs=['ldam_drw'])), 'which train.cbs has already'),
    (dict(compare=['sqrt_sampling'], train=dict(sampling='balanced')), 'which train.sampling is already'),
    (dict(compare=['class_weights'], data=CHEST, train=dict(class_weights=True)),
     'which train.class_weights is already'),
    (dict(compare=['tau_norm'], train=dict(loss='ldam')), 'train.loss ldam is for a classifier of cosines'),
    (dict(compare=['balanced_softmax'], data=dict(name='split_digits')), 'is a stream'),
    (dict(compare=[dict(name='knn', k=[])]), 'k: a list of values'),
    (dict(compare=[dict(name='crt', loss='focal')]), "compare.crt.loss must be one of sampling, balanced_softmax"),
])
def test_what_does_not_suit_is_refused(cfg, msg):
    said = err(experiment, **cfg)
    assert msg in said and '\n' not in said and len(said)<=320

def test_what_is_fitted_suits_trainings_that_are_balanced_already():
    cfg = experiment([])
    for o in ({'train.sampling':'balanced'}, {'train.loss':'logit_adjusted'}):
        c = override(cfg, o)
        assert suits(c, Section('baseline', 'logit_adjusted', dict(tau=None, by='nll')))
        assert not suits(c, Section('baseline', 'logit_adjusted', dict(tau=None, by=None)))

def test_a_last_layer_that_is_none_is_refused_before_anything_is_trained(tmp_path):
    cfg = experiment(['tau_norm'], model='mh', runs=str(tmp_path))
    said = err(ex.run_experiment, cfg)
    assert said.startswith('compare: the last layer of this') and not [*tmp_path.iterdir()]

# trainings
def test_trainings_of_their_own():
    cfg = experiment(['sqrt_sampling','balanced_softmax','class_balanced','ldam_drw'], train=dict(cbs=['save_bank']),
                     memory=VOTE)
    own,*ts = trainings(cfg, 'x')
    assert [(t.name,training_title(t.cfg, t.name)) for t in ts]==[
        ('sqrt_sampling','square-root sampling'),('balanced_softmax','balanced softmax'),
        ('class_balanced','class-balanced loss'),('ldam_drw','LDAM-DRW')]
    assert [t.cfg.train.loss.name for t in ts]==['ce','balanced_softmax','class_balanced','ldam']
    assert ts[0].cfg.train.sampling.name=='sqrt' and all(len(t.cfg.memories)==1 for t in ts)
    assert [s.name for s in ts[3].cfg.train.cbs]==['save_bank','ldam_drw']
    cfg = experiment(['class_weights','asymmetric','balanced_sampling'], CHEST)
    own,*ts = trainings(cfg, 'x')
    assert [training_title(t.cfg, t.name) for t in ts]==['class weights','asymmetric loss','balanced sampling']
    assert ts[0].cfg.train.class_weights and ts[1].cfg.train.loss.name=='asymmetric'

def test_a_run_with_ldam_is_read_back(tmp_path):
    "Its network has a classifier of cosines when it is loaded, and the same numbers"
    cfg = experiment([dict(name='tau_norm'),'ldam_drw','two_opinions'], runs=str(tmp_path), train=dict(epochs=5))
    with no_rendering(): table = ex.run_experiment(cfg, log=lambda s: None)
    assert 'network x re-trained classifier, LDAM-DRW' in table and 'tau-normalised classifier, LDAM-DRW' not in table
    with no_rendering(): again,off = evaluate_run(tmp_path/'x')
    assert not off and again.split('\n')[1] in table
    learn = load_run(tmp_path/'x'/'ldam_drw_seed_0')
    assert type([o for o in learn.model.modules() if isinstance(o, nn.Linear)][-1]) is CosineLinear
