"Vision transformers with memories, prompts or a new classifier, by their names in a YAML file"
import pytest, torch
from helpers.learners import quietly
from memo.evaluation.evaluate import evaluate
from memo.experiment.build import build_learner
from memo.experiment.config import from_dict
from memo.experiment.run_folder import load_weights, save_weights
from memo.heads.attach import memories
from memo.banks.patterns import AssociativeBank, CentroidBank, LearnedBank
from memo.banks.slots import SlotBank

def experiment(own=None, **model):
    train = dict(epochs=1, bs=16, lr=1e-2)
    return from_dict(dict(name='x', seeds=[0], data=dict(name='digits', n=60, size=32), train=train, memory=own,
                          model=dict(arch='test_vit', img_size=32, **model)), 'test')

@pytest.mark.parametrize('model,kind', [
    (dict(name='hopfield_vit', size=20, beta=.125, blocks=2), LearnedBank),
    (dict(name='hopfield_vit', size=20, memory='associative', position='after_ffn'), AssociativeBank),
    (dict(name='hopfield_vit', size=20, memory='class_prototype', blocks=[1], tokens='cls'), CentroidBank),
    (dict(name='hopfield_vit', size=60, memory=dict(name='SlotBank', policy='fifo')), SlotBank),
    (dict(name='vpt', deep=True, n_prompts=3), None), (dict(name='linear_probe', hidden=8), None),
    (dict(name='lora', rank=2, targets=['qkv','fc1']), None)])
def test_by_name(model, kind, tmp_path):
    "Built, trained with what is frozen left alone, saved and loaded; banks that are written to are driven"
    cfg = experiment(**model)
    learn = build_learner(cfg, 0)
    was = {k:p.detach().clone() for k,p in learn.model.named_parameters() if not p.requires_grad}
    quietly(learn, learn.fit, 2, 1e-2)
    assert was and all(torch.equal(p, was[k]) for k,p in learn.model.named_parameters() if k in was)
    ms = memories(learn.model)
    assert bool(ms)==(kind is not None) and all(type(h.bank) is kind and len(h.bank)>0 for h in ms.values())
    assert [*learn.memories]==([] if kind in (None,LearnedBank) else [*ms])
    if kind is LearnedBank: assert all(h.first_beta(64)==.125 for h in ms.values())
    p = quietly(learn, learn.get_preds)[0]
    save_weights(learn, tmp_path/'m.safetensors', cfg)
    new = load_weights(build_learner(cfg, 1), tmp_path/'m.safetensors')
    assert torch.equal(quietly(new, new.get_preds, dl=learn.dls.valid)[0], p)

def test_beside_a_memory_of_its_own():
    "One at the classifier, and those in the blocks"
    learn = build_learner(experiment(own=dict(bank='SlotBank', size=30, policy='fifo', head='vote'),
                                     name='hopfield_vit', size=20, memory='associative'), 0)
    quietly(learn, learn.fit, 1, 1e-2)
    assert {*learn.memories}=={'memory', *(f'hopfield_{i}' for i in range(len(learn.model.blocks)))}
    assert all(len(h.bank)>0 for h in memories(learn.model).values())

@pytest.mark.parametrize('memory', ['learned','associative'])
def test_what_is_in_the_network_is_on_in_its_scores(memory):
    "They are those of the network with the memories that it came with, and not those of its backbone alone"
    cfg = experiment(name='hopfield_vit', size=20, memory=memory)
    learn = build_learner(cfg, 0)
    quietly(learn, learn.fit, 2, 1e-2)
    for h in memories(learn.model).values(): torch.nn.init.normal_(h.gate)
    p,y = quietly(learn, learn.get_preds, ds_idx=2)
    r = evaluate(learn, cfg)
    assert r.rows[0]['scores']['accuracy']==pytest.approx(float((p.argmax(1)==y).float().mean()), abs=1e-6)
    assert torch.allclose(next(iter(r.probs.values())), p, atol=1e-5)

NET = dict(arch='vit_tiny_patch16_224', img_size=28, timm=dict(patch_size=7, embed_dim=32, depth=2, num_heads=2))
def of_digits(classes, **model):
    "A small network by timm's arguments, five classes of digits"
    data = dict(name='digits', classes=classes, n=40, valid=3, size=28)
    train = dict(epochs=1, bs=16)
    return from_dict(dict(name='x', seeds=[0], data=data, memory=None, train=train, model=dict(**NET, **model)), 'test')

@pytest.mark.parametrize('model', [dict(name='linear_probe'), dict(name='hopfield_vit', size=9),
                                   dict(name='vpt', deep=True, n_prompts=2), dict(name='lora')])
def test_the_weights_of_a_run_serve_other_classes(model, tmp_path):
    "The model file of a run is taken as `pretrained`, with another number of outputs: a frozen backbone, to the bit"
    cfg = of_digits([0,1,2,3,4], name='linear_probe', freeze=False)
    learn = build_learner(cfg, 0)
    assert len(learn.model.blocks)==2 and learn.model.embed_dim==32
    was = {k:v.clone() for k,v in learn.model.state_dict().items()}
    quietly(learn, learn.fit, 1, 1e-2)
    sd = {k:v for k,v in learn.model.state_dict().items() if not k.startswith('head.')}
    assert sd and not any(torch.equal(v, was[k]) for k,v in sd.items() if v.is_floating_point())    # all was trained
    save_weights(learn, tmp_path/'model.safetensors', cfg)
    new = build_learner(of_digits([5,6,7,8], pretrained=str(tmp_path/'model.safetensors'), **model), 1).model
    own = new.state_dict()
    for k,v in sd.items(): assert torch.equal(own[k], v), k
    assert new.head.out_features==4 and not any(p.requires_grad for k,p in new.named_parameters() if k in sd)
