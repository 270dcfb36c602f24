"Classifiers on frozen features in experiments with few shots: whose features they get, and which rows there are"
import copy, json
import pytest, torch, yaml
from fastai.torch_core import get_model
from helpers.errors import err
from helpers.learners import quietly
from memo.evaluation import evaluate as ev
from memo.evaluation.baselines import suits
from memo.evaluation.classifiers import logistic_cv, nearest_mean, ridge_cv, tip_adapter
from memo.experiment.build import build_learner
from memo.experiment.config import from_dict, override
from memo.experiment.jobs import trainings
from memo.data.tensors import plain_dl
from memo.heads.attach import memories
from memo.models.hopfield_vit import remove_memory

ALL = ['class_mean','logistic','ridge','tip_adapter','tip_adapter_trained']
TITLES = ['nearest class mean','logistic regression','ridge regression','Tip-Adapter','Tip-Adapter, keys learned']
VIT = dict(name='hopfield_vit', arch='test_vit', img_size=32, size=20, blocks=2)

def experiment(model=VIT, compare=ALL, memory=None, **data):
    data = {**dict(name='digits', n_shot=5, valid=0, test=10, size=32), **data}
    return from_dict(dict(name='x', seeds=[0], data=data, model=model, memory=memory, compare=compare,
                          train=dict(epochs=1, bs=16, lr=1e-2)), 'test')

def trained(cfg):
    learn = build_learner(cfg, 0)
    before = copy.deepcopy(learn.model)
    quietly(learn, learn.fit, 2, 1e-2)
    for h in memories(learn.model).values():
        if hasattr(h, 'gate'): torch.nn.init.normal_(h.gate)
    return learn,before

def batch(learn, i):
    "All items of a loader, in their order"
    bs = [*plain_dl(learn.dls.loaders[i])]
    return torch.cat([b[0] for b in bs]),torch.cat([b[1] for b in bs])

def pooled(model, x):
    "timm's features in front of the classifier, of a copy without any memory"
    m = remove_memory(copy.deepcopy(model)).eval()
    with torch.no_grad(): return m.forward_head(m.forward_features(x), pre_logits=True)

def probs(learn, cfg):
    r = ev.evaluate(learn, cfg)
    return r,dict(zip([o['method'] for o in r.rows], r.probs.values()))

# features

PROBE = dict(name='linear_probe', arch='test_vit', img_size=32)
@pytest.mark.parametrize('model', [VIT, {**VIT, 'memory':'associative', 'position':'after_ffn'},
    {**VIT, 'memory':'class_prototype'}, PROBE, {**PROBE, 'hidden':8}, {**PROBE, 'arch':'test_vit3'}])
def test_features_are_those_of_the_backbone_before_the_training(model):
    "Without what the training left in memories or a hidden layer; the network is afterwards as it was"
    cfg = experiment(model)
    learn,before = trained(cfg)
    state,names = copy.deepcopy(learn.model.state_dict()),[*memories(learn.model)]
    hooks = [len(m._forward_pre_hooks)+len(m._forward_hooks) for m in learn.model.modules()]
    ways = sorted(vars(learn.model))
    for i in (0,2):
        x,y = batch(learn, i)
        got = ev.backbone_features(learn, plain_dl(learn.dls.loaders[i]))
        assert torch.equal(got.y, y) and torch.allclose(got.z, pooled(before, x), atol=1e-6)
        assert got.z.shape[1]==learn.model.num_features
    now = learn.model.state_dict()
    assert state.keys()==now.keys() and [*memories(learn.model)]==names and sorted(vars(learn.model))==ways
    assert hooks==[len(m._forward_pre_hooks)+len(m._forward_hooks) for m in learn.model.modules()]
    tensors = [k for k in state if torch.is_tensor(state[k])]
    assert all(torch.equal(state[k], now[k]) for k in tensors)

def test_rows_are_the_classifiers_on_those_features():
    cfg = experiment(compare=ALL[:4])
    learn,before = trained(cfg)
    (x,y),(xt,_) = batch(learn, 0),batch(learn, 2)
    z,zt = pooled(before, x),pooled(before, xt)
    r,p = probs(learn, cfg)
    assert [*r.probs]==['Hopfield memory', *TITLES[:4]]
    for k,f in dict(class_mean=nearest_mean, logistic=logistic_cv, ridge=ridge_cv, tip_adapter=tip_adapter).items():
        want,chosen = f(z, y, 10)
        assert torch.allclose(p[k], want(zt).softmax(1), atol=2e-3), k
        got = next(o['chosen'] for o in r.rows if o['method']==k)
        assert got.pop('by')==chosen.pop('by') and got==pytest.approx(chosen, rel=1e-3)
    assert p['logistic'].argmax(1).eq(batch(learn, 2)[1]).float().mean()>.3      # even of a random backbone

def test_a_memory_that_votes_does_not_make_them_others():
    "At the same place, in front of the classifier, with the memories in the blocks on"
    cfg = experiment(memory=dict(bank='SlotBank', size=50, policy='fifo', head='vote'), compare=['class_mean'], valid=3)
    learn,before = trained(cfg)
    x,y = batch(learn, 2)
    answers = ev.Answers(learn, cfg)
    assert torch.allclose(answers.features('test').z, pooled(before, x), atol=1e-6)
    assert not torch.allclose(answers.collected('test').z, answers.features('test').z, atol=1e-3)

def test_a_backbone_that_is_trained_gives_its_trained_features():
    cfg = experiment({**VIT, 'freeze':False}, ['class_mean'])
    learn,before = trained(cfg)
    x,_ = batch(learn, 2)
    z = ev.Answers(learn, cfg).features('test').z
    assert torch.allclose(z, pooled(learn.model, x), atol=1e-5) and not torch.allclose(z, pooled(before, x), atol=1e-2)

@pytest.mark.parametrize('memory', [None, dict(head='add', k=2, size=30), dict(head='add', k=2, size=30, at='1')])
def test_of_other_networks_what_enters_their_classifier(memory):
    "With no memory, or one that trains with the network, which is off"
    cfg = experiment('small_cnn', ['class_mean','crt','logistic'], memory, valid=3)
    learn = build_learner(cfg, 0)
    quietly(learn, learn.fit, 1, 1e-2)
    x,y = batch(learn, 2)
    m = remove_memory(copy.deepcopy(get_model(learn.model))).eval()
    last,seen = [o for o in m.modules() if isinstance(o, torch.nn.Linear)][-1],[]
    last.register_forward_pre_hook(lambda o, args: seen.append(args[0]))
    with torch.no_grad(): m(x)
    assert torch.allclose(ev.Answers(learn, cfg).features('test').z, seen[0], atol=1e-5)
    r,p = probs(learn, cfg)
    assert {'class_mean','crt','logistic'}<={*p} and all(o.isfinite().all() for o in p.values())

def test_a_memory_that_watches_says_whose_features_as_before():
    cfg = experiment('small_cnn', ['class_mean','tip_adapter'], dict(bank='ClassBank', head='watch', at='1'), valid=3)
    learn = build_learner(cfg, 0)
    quietly(learn, learn.fit, 1, 1e-2)
    answers = ev.Answers(learn, cfg)
    assert answers.features('test') is answers.collected('test')
    assert answers.features('test').z.shape[1]!=ev.backbone_features(learn, learn.dls[2]).z.shape[1]

def test_of_two_classifiers_the_first_ones():
    "Of a distilled network the class token's"
    cfg = experiment(dict(name='linear_probe', arch='deit_tiny_distilled_patch16_224', img_size=32), ['logistic'])
    learn = build_learner(cfg, 0)
    x,_ = batch(learn, 2)
    with torch.no_grad(): tokens = learn.model.eval().forward_features(x)
    assert torch.allclose(ev.backbone_features(learn, learn.dls[2]).z, tokens[:,0], atol=1e-5)

def test_validation_data_is_used_by_those_that_use_it():
    cfg = experiment(valid=4)
    learn,_ = trained(cfg)
    by = {o['method']:o.get('chosen', {}).get('by') for o in ev.evaluate(learn, cfg).rows}
    assert by=={'':None, 'class_mean':None, 'logistic':'cross-validation', 'ridge':'leave-one-out',
                'tip_adapter':'validation', 'tip_adapter_trained':'validation'}

# experiments

def test_what_is_refused():
    "What cannot be taken out of the features, validation data that is not there, findings"
    vpt = dict(name='vpt', arch='test_vit', img_size=32)
    for k in ALL: assert f'compare has {k}, which needs the features of a network without' in err(experiment, vpt, [k])
    assert 'compare crt is fitted on validation data, and data.valid is 0' in err(experiment, VIT, ['crt'])
    assert experiment(VIT, ['crt'], valid=2)
    mean = dict(name='tip_adapter', base='mean')
    assert 'base must be one of class_mean, logistic, ridge' in err(experiment, VIT, [mean])
    d = dict(name='chest_mosaic')
    cfg = dict(name='x', seeds=[0], data=d, memory=None, compare=['ridge'])
    assert 'compare ridge is for classes' in err(from_dict, cfg, 'test')

def test_the_same_features_are_not_scored_twice():
    "Those of a frozen backbone are the same however its classifier is trained; of a trained one they are not"
    cfg = experiment(compare=['class_mean','logistic','balanced_sampling','logit_adjusted'])
    a,b = trainings(cfg, 'r')
    assert [s.name for s in a.cfg.compare]==['class_mean','logistic','logit_adjusted'] and not b.cfg.compare
    for m in ({**VIT, 'freeze':False}, 'small_cnn'):
        a,b = trainings(override(cfg, {'model':m}), 'r')
        assert [s.name for s in b.cfg.compare]==['class_mean','logistic']
    assert not suits(override(cfg, {'model':dict(name='vpt', arch='test_vit'), 'compare':[]}), cfg.compare[0])

@pytest.mark.slow
def test_as_a_process(tool, tmp_path):
    "No validation data, two seeds; memo-eval gives the same table"
    cfg = dict(name='few', seeds=[0,1], data=dict(name='digits', n_shot=5, valid=0, size=32, test=10), model=VIT,
               memory=None, train=dict(epochs=1, bs=16, lr=1e-2),
               compare=[*ALL[:4], dict(name=ALL[4], base='logistic')])
    (tmp_path/'x.yaml').write_text(yaml.safe_dump(cfg))
    r = tool('memo-train', tmp_path/'x.yaml', f'runs={tmp_path}/runs', render=False)
    assert r.returncode==0, r.stderr
    means = r.stdout.partition('differences')[0].splitlines()
    table = [o for o in means if o.startswith(('Hopfield', *TITLES))]
    assert [o.split('  ')[0] for o in table]==['Hopfield memory', *TITLES]
    m = json.loads((tmp_path/'runs/few/metrics.json').read_text())
    assert [o['method'] for o in m['rows']]==['', *ALL] and all(o['chosen'] for o in m['rows'][1:])
    e = tool('memo-eval', tmp_path/'runs/few', render=False)
    assert e.returncode==0 and all(o in e.stdout for o in table), e.stdout+e.stderr

def test_the_training_without_memory_beside_it_has_no_classifier_again():
    "Its network's features would be told apart by nothing in the table"
    memory = dict(bank='SlotBank', size=50, policy='fifo', head='hopfield')
    cfg = experiment('small_cnn', ['plain','class_mean','ridge'], memory)
    got = [(t.name,[s.name for s in t.cfg.compare]) for t in trainings(cfg, 'x')]
    assert got==[('',['class_mean','ridge']),('',[])]
