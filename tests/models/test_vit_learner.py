"A plain fastai Learner on digits, with memories or prompts in a vision transformer"
import copy
import pytest, timm, torch
from fastai.vision.all import (Callback, CrossEntropyLossFlat, DataLoaders, Learner, accuracy, load_learner, set_seed)
from sklearn.datasets import load_digits
from torch import nn
from torchvision.transforms.functional import resize
from helpers.errors import err
from helpers.learners import quietly
from memo.banks.key_value import CachedBank
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.data.tensors import TensorDL, TensorSet
from memo.heads.attach import memories
from memo.models.lora import lora
from memo.models.hopfield_vit import hopfield_vit, remove_memory
from memo.models.prompts import vpt
from memo.models.vit import linear_probe, vit_parts, vit_splitter
from memo.training.memory_callback import MemoryCallback
from memo.training.param_groups import adamw, body_head_splitter

_d = load_digits()
X = resize(torch.from_numpy(_d.images).float()[:,None]/16, [16,16])
Y = torch.from_numpy(_d.target).long()

def loaders(n=48):
    def mk(a, b, i, **kw):
        return TensorDL(dataset=TensorSet(X[a:b], Y[a:b], torch.arange(a, b)+10**12, [*range(10)], i), bs=16, **kw)
    return DataLoaders(mk(0, n, 0, shuffle=True), mk(1000, 1032, 1), device='cpu')

net = dict(img_size=16, patch_size=8, depth=2, embed_dim=32, num_heads=2, c_in=1)
makers = dict(hopfield=(hopfield_vit, dict(size=9)), slots=(hopfield_vit, dict(size=20, memory='SlotBank')),
              cached=(hopfield_vit, dict(size=20, memory='CachedBank')),
              associative=(hopfield_vit, dict(size=20, memory='associative')),
              means=(hopfield_vit, dict(size=20, memory='class_prototype')), probe=(linear_probe, {}),
              shallow=(vpt, dict(n_prompts=3)), deep=(vpt, dict(n_prompts=3, deep=True)), lora=(lora, dict(rank=2)))
every = pytest.mark.parametrize('kind', makers)

def learner(kind, seed=0, cbs=(), splitter=vit_splitter, **kw):
    set_seed(seed)
    make,args = makers[kind]
    m = make('vit_tiny_patch16_224', 10, **{**net, **args, **kw})
    learn = Learner(loaders(), m, loss_func=CrossEntropyLossFlat(), opt_func=adamw, splitter=splitter, metrics=accuracy,
                    cbs=list(cbs))
    if memories(m): learn.add_cb(MemoryCallback())
    return learn

def grouped(learn): return [{id(p):p.detach().clone() for p in g} for g in vit_splitter(learn.model)]
def moved(learn, was):
    return [any(not torch.equal(p, w[id(p)]) for p in g) for g,w in zip(vit_splitter(learn.model), was)]
def fit(learn, n=1, lr=1e-2): quietly(learn, learn.fit, n, lr)

@every
def test_what_a_fit_changes(kind):
    "As made: all but the backbone. Frozen: the classifier; from group 1 on: memory too; unfrozen: everything"
    learn = learner(kind)
    n = len(vit_splitter(learn.model))
    for do,want in ((None,[False]+[True]*(n-1)), (learn.freeze,[False]*(n-1)+[True]),
                    (lambda: learn.freeze_to(1),[False]+[True]*(n-1)), (learn.unfreeze,[True]*n)):
        if do: do()
        was = grouped(learn)
        fit(learn)
        fit(learn)          # the first step is the gate's
        assert moved(learn, was)==want

@every
def test_the_usual_splitter_knows_them(kind):
    "Two groups: the backbone, all the rest"
    learn = learner(kind, splitter=body_head_splitter)
    body,rest = learn.splitter(learn.model)
    assert {id(p) for p in body}=={id(p) for p in vit_splitter(learn.model)[0]}
    learn.freeze()
    was = grouped(learn)
    fit(learn, 2)
    assert moved(learn, was)==[False]+[True]*(len(was)-1)

class Modes(Callback):
    order = 100
    def __init__(self): self.seen = []
    def before_batch(self):
        if self.training:
            body,memory,last = vit_parts(self.model)
            self.seen.append((any(o.training for o in body), all(o.training for o in [*memory, *last])))

@every
def test_frozen_is_in_evaluation_mode_while_it_trains(kind):
    modes = Modes()
    learn = learner(kind, cbs=[modes])
    fit(learn)
    assert set(modes.seen)=={(False,True)}
    learn.unfreeze()
    modes.seen.clear()
    fit(learn)
    assert set(modes.seen)=={(True,True)}

@every
def test_saved_loaded_and_exported(kind, tmp_path):
    learn = learner(kind)
    fit(learn, 2)
    p = quietly(learn, learn.get_preds)[0]
    learn.path = tmp_path
    learn.save('m')
    new = learner(kind, seed=3)
    new.path = tmp_path
    new.load('m')
    assert torch.equal(quietly(new, new.get_preds)[0], p)
    learn.export(tmp_path/'e.pkl')
    new = load_learner(tmp_path/'e.pkl')
    assert torch.equal(quietly(new, new.get_preds, dl=new.dls.test_dl(learn.dls.valid_ds.x))[0], p)
    assert [*new.memories]==[*learn.memories]
    new.model.train()
    assert not vit_parts(new.model)[0][0].training

@pytest.mark.parametrize('kind', ['slots','cached','means'])
def test_each_block_stores_its_own_features(kind):
    "After the step, what the loss was of; M5: keys are those features, not random numbers"
    learn = learner(kind, position='after_ffn', tokens='cls')
    fit(learn)
    names = [*memories(learn.model)]
    assert names==['hopfield_0','hopfield_1'] and [*learn.memories]==names
    x = learn.dls.train_ds.x
    bare = remove_memory(copy.deepcopy(learn.model).eval())
    with torch.no_grad(): z = bare.forward_intermediates(x, intermediates_only=True, return_prefix_tokens=True,
                                                         output_fmt='NLC')
    for i,h in enumerate(memories(learn.model).values()):
        b = h.bank
        n,(f,_,y,item,_,_) = len(b),b.rows()
        if kind=='means':
            assert n==10 and torch.equal(b.class_counts(), torch.bincount(Y[:48]))
            means = torch.stack([z[0][1][:,0][Y[:48]==c].mean(0) for c in range(10)])
            if i==0: torch.testing.assert_close(f, means, rtol=1e-3, atol=1e-4)
            assert (b.classify(f)[0]==torch.arange(10)).all()
            continue
        assert n==(20 if kind=='cached' else len(item))>5 and torch.equal(y, Y[item-10**12]) and b.dim==32
        if i==0:        # the first block is fed by the frozen network alone
            want = z[0][1][:,0][item-10**12]
            cos = torch.cosine_similarity(f, want)
            assert cos.min()>.9999

def test_own_rows_are_hidden_in_training_and_found_in_evaluation():
    learn,seen = learner('slots'),[]
    h = memories(learn.model)['hopfield_1']
    def spy(valid, item, group):
        m = type(h).visible(h, valid, item, group)
        seen.append((learn.model.training, item, m, h.bank.items[:len(h.bank)].clone()))
        return m
    h.visible = spy
    fit(learn, 2)
    train = [o for o in seen if o[0]]
    assert train and all((m[:,0,0]==(item[:,None]!=rows)).all() for _,item,m,rows in train)
    assert any((~m).any() for _,_,m,_ in train) and all(m is None for t,_,m,_ in seen if not t)

def test_a_second_forward_in_a_step_stores_nothing_twice():
    class Twice(Callback):
        order = 5
        def before_batch(self):
            if self.training: self.model(self.x.flip(-1))
        def after_loss(self):
            if self.training:
                with torch.no_grad(): self.model(self.x*0)
    a,b = learner('slots', dropout=0.),learner('slots', cbs=[Twice()], dropout=0.)
    for o in (a,b): fit(o, 2, 1e-3)
    for x,y in zip(memories(a.model).values(), memories(b.model).values()):
        assert torch.equal(x.bank.items, y.bank.items) and torch.allclose(x.bank.features, y.bank.features, atol=1e-5)

def test_one_bank_of_ones_own_for_one_block():
    bank = SlotBank(12, policy='fifo')
    learn = learner('hopfield', memory=bank, blocks=1)
    fit(learn)
    assert learn.hopfield_1.bank is bank and len(bank)==12
    assert 'hopfield_1_fill' in learn.recorder.metric_names
    with learn.hopfield_1.off(): off = quietly(learn, learn.get_preds)[0]
    assert not torch.equal(quietly(learn, learn.get_preds)[0], off)
    r = learn.recall(n=4)
    assert r.row_item.shape==(4,3) and (r.row_item>=10**12).all() and (r.weight>0).all()
    assert 'of one' in err(learner, 'hopfield', memory=bank)

def test_learned_patterns_need_no_callback():
    "Nothing is written: they are parameters"
    set_seed(0)
    m = hopfield_vit('vit_tiny_patch16_224', 10, size=9, **net)
    learn = Learner(loaders(), m, loss_func=CrossEntropyLossFlat(), splitter=vit_splitter)
    was = {n:p.detach().clone() for n,p in m.named_parameters() if 'hopfield' in n}
    fit(learn, 2)
    assert was and all(not torch.equal(p, was[n]) for n,p in m.named_parameters() if n in was)
    bare = remove_memory(m)
    assert not memories(bare) and not [k for k in bare.state_dict() if 'hopfield' in k]

def test_at_insertion_on_trained_weights():
    "M1: a network that was trained first is itself, to the bit, with memories put in"
    set_seed(0)
    kw = {k:v for k,v in net.items() if k!='c_in'}
    plain = timm.create_model('vit_tiny_patch16_224', num_classes=10, in_chans=1, **kw)
    learn = Learner(loaders(), plain, loss_func=CrossEntropyLossFlat())
    fit(learn, 3, 1e-3)
    m = hopfield_vit('vit_tiny_patch16_224', 10, size=9, **net)
    missing = m.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys and all('hopfield_' in k for k in missing.missing_keys)
    x = learn.dls.valid_ds.x
    with torch.no_grad(): assert torch.equal(m.eval()(x), plain.eval()(x))

def test_in_the_middle_of_somebodys_network():
    "As a head by its name, behind any module, over any bank"
    set_seed(0)
    kw = {k:v for k,v in net.items() if k!='c_in'}
    model = timm.create_model('vit_tiny_patch16_224', num_classes=10, in_chans=1, **kw)
    learn = Learner(loaders(), model, loss_func=CrossEntropyLossFlat(), splitter=body_head_splitter,
                    cbs=MemoryCallback(CachedBank(30), head='hopfield', at='blocks.1', heads=2))
    fit(learn, 2)
    h = learn.memory.head
    assert len(h.bank)==30 and h.gate.abs().sum()>0 and h.association(torch.randn(2, 5, 32)).shape==(2,2,5,30)
