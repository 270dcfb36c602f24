"Parts of timm's interface that a network with memories or prompts keeps: features of blocks, other sizes, removal"
import copy, pickle
import pytest, timm, torch
from fastai.vision.all import CrossEntropyLossFlat, Learner
from torch import nn
from helpers.errors import err
from helpers.learners import quietly
from memo.banks.classes import ClassBank
from memo.banks.patterns import LearnedBank
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.heads.attach import memories
from memo.models.hopfield_vit import hopfield_vit, prefix_at, remove_memory
from memo.models.prompts import vpt
from memo.models.vit import linear_probe, vit_splitter
from memo.training.memory_callback import MemoryCallback
from models.test_vit import answers, every, forms, images, made, open_gates, plain, small
from models.test_vit_learner import loaders
from models.test_vpt import tokens_by_hand

deeps = pytest.mark.parametrize('deep', [False,True])

def blocks_by_hand(m, x):
    "What comes out of each block, without its prompts, by hooks in an ordinary forward"
    n,k,outs = m.prompts.prompt.shape[1],getattr(m, 'num_prefix_tokens', 0),[]
    def note(b, args, out): outs.append(out if b is m.blocks[-1] else torch.cat([out[:,:k], out[:,k+n:]], 1))
    hooks = [b.register_forward_hook(note) for b in m.blocks]
    answers(m, x)
    for h in hooks: h.remove()
    return outs

@every
@deeps
def test_features_of_blocks_hold_no_prompts(form, deep):
    "As many tokens as the network has without; those of an ordinary forward"
    m,x = made(form, vpt, deep=deep, n_prompts=4).eval(),images(form)
    net,want,k = plain(form, m),blocks_by_hand(m, x),getattr(m, 'num_prefix_tokens', 0)
    with torch.no_grad():
        last,maps = m.forward_intermediates(x)
        shapes = [o.shape for o in net.forward_intermediates(x)[1]]
        for f in (True,False):
            rows = m.forward_intermediates(x, indices=[0,1], intermediates_only=True, output_fmt='NLC', stop_early=f)
            for a,b in zip(rows, want): torch.testing.assert_close(a, b[:,k:])
        torch.testing.assert_close(last, m.forward_features(x))
    assert [o.shape for o in maps]==shapes and len(want)==3
    for a,b in zip(maps, want): torch.testing.assert_close(a.flatten(2).mT, b[:,k:])
    if hasattr(m, 'get_intermediate_layers'):
        with torch.no_grad(): rows = m.get_intermediate_layers(x, n=2)
        for a,b in zip(rows, want[1:]): torch.testing.assert_close(a, b[:,k:])
    m.train()
    m.set_grad_checkpointing(True)
    grads = []
    for f in (lambda: m.forward_intermediates(x)[0], lambda: m.forward_features(x)):
        m.zero_grad()
        f().square().sum().backward()
        grads.append(m.prompts.prompt.grad.clone())
    assert grads[0].abs().sum()>0 and torch.allclose(*grads, atol=1e-5)

@deeps
@pytest.mark.parametrize('form', ['class_token','average','layer_scale'])
def test_blocks_that_are_cut_off_take_no_prompts_along(form, deep):
    m,x = made(form, vpt, deep=deep, n_prompts=4),images(form)
    m.prune_intermediate_layers([1], prune_head=False)
    net = plain(form, made(form, vpt, deep=deep, n_prompts=4))
    net.prune_intermediate_layers([1], prune_head=False)
    net.load_state_dict({k:v for k,v in m.state_dict().items() if 'prompt' not in k})
    with torch.no_grad(): want = net.forward_head(tokens_by_hand(net, x, m.prompts.prompt, deep))
    assert len(m.blocks)==2
    torch.testing.assert_close(answers(m, x), want, rtol=1e-4, atol=1e-5)

@pytest.mark.parametrize('make', [hopfield_vit,vpt,linear_probe])
@pytest.mark.parametrize('form', ['class_token','eva','beit'])
def test_another_size_of_images_later(form, make):
    "timm's `set_input_size`: then those fit, and others are told what does"
    m,x = made(form, make, **(dict(n_prompts=4) if make is vpt else {})),images(form)
    with torch.no_grad():
        m.set_input_size(img_size=2*x.shape[-1])
        assert m(torch.rand(2, 3, 2*x.shape[-1], 2*x.shape[-1])).shape==(2,5)
        assert f'is for {2*x.shape[-1]}' in err(m, x)

@every
@deeps
def test_prompts_are_taken_out(form, deep):
    "To the bit timm's network with its weights, and timm's code alone, which loads where memo is not"
    m,x = made(form, vpt, deep=deep, n_prompts=4),images(form)
    net = plain(form, m)
    assert not torch.equal(answers(m, x), answers(net, x)) and remove_memory(m) is m
    assert [*m.state_dict()]==[*net.state_dict()] and torch.equal(answers(m, x), answers(net, x))
    assert 'memo.' not in str(pickle.dumps(m)) and len(vit_splitter(m))==2
    with torch.no_grad(): assert torch.equal(m.forward_intermediates(x)[1][0], net.forward_intermediates(x)[1][0])

def test_prompts_are_taken_out_where_blocks_share_their_biases():
    kw = dict(use_rel_pos_bias=False, use_shared_rel_pos_bias=True)
    m,x = made('beit', vpt, n_prompts=4, **kw),images('beit')
    net = timm.create_model(forms['beit'][0], num_classes=5, img_size=forms['beit'][1], **small, **kw)
    net.load_state_dict({k:v for k,v in m.state_dict().items() if 'prompt' not in k})
    assert answers(m, x).shape==(3,5) and torch.equal(answers(remove_memory(m), x), answers(net, x))

@every
@pytest.mark.parametrize('position', ['after_attn','after_ffn','parallel'])
@pytest.mark.parametrize('freeze', [True,False])
def test_nothing_of_a_memory_is_left(form, position, freeze):
    "Nor of the way in which a frozen backbone is trained; what is frozen stays so"
    m = open_gates(made(form, position=position, freeze=freeze, drop_path_rate=.5))
    net = timm.create_model(forms[form][0], num_classes=5, img_size=forms[form][1], drop_path_rate=.5, **small)
    frozen = {n for n,p in m.named_parameters() if not p.requires_grad}
    remove_memory(m)
    net.load_state_dict(m.state_dict())
    assert 'memo.' not in str(pickle.dumps(m)) and {*vars(m)}=={*vars(net)}
    assert {n for n,p in m.named_parameters() if not p.requires_grad}==frozen and bool(frozen)==freeze
    for n,p in net.named_parameters(): p.requires_grad_(n not in frozen)     # attention is another kernel's without
    outs = []
    for o in (m,net):       # the same random numbers drop the same paths
        torch.manual_seed(0)
        outs.append(o.train()(images(form, 4)))
    assert torch.equal(*outs) and all(o.training for o in m.modules())

def test_removed_from_a_learner_it_trains_on():
    from fastai.vision.all import set_seed
    set_seed(0)
    kw = dict(img_size=16, patch_size=8, depth=2, embed_dim=32, num_heads=2, c_in=1)
    learn = Learner(loaders(), vpt('vit_tiny_patch16_224', 10, n_prompts=3, **kw), loss_func=CrossEntropyLossFlat(),
                    splitter=vit_splitter)
    quietly(learn, 'fit', 1)
    remove_memory(learn.model)
    learn.create_opt()
    was = learn.model.head.weight.detach().clone()
    quietly(learn, 'fit', 1)
    assert not torch.equal(was, learn.model.head.weight)

# where class tokens are, and how wide

def test_class_tokens_that_join_behind_the_blocks():
    "CaiT has one, and its blocks have none: their first token is a patch"
    m = hopfield_vit('cait_xxs24_224', 5, size=3, blocks=1, depth=2)
    h = memories(m)['hopfield_1']
    assert h.prefix==0 and m.num_prefix_tokens==1
    x = torch.randn(2, 196, m.embed_dim)
    torch.testing.assert_close(h.features(x), x.mean(1))
    e = err(hopfield_vit, 'cait_xxs24_224', 5, size=3, blocks=1, depth=2, tokens='cls', position='after_ffn')
    assert 'class token' in e

@every
def test_what_is_stored_is_of_patches(form):
    m = made(form, memory='SlotBank')
    n,x = {'registers':4,'both':5,'distilled':2,'average':0,'siglip':0}.get(form, 1),torch.randn(2, 20, 32)
    for h in memories(m).values():
        assert h.prefix==n
        torch.testing.assert_close(h.features(x), x[:,n:].mean(1))

@pytest.mark.parametrize('bank', [lambda: SlotBank(5, dim=16), lambda: LearnedBank(5, dim=16)])
def test_a_bank_of_another_width(bank):
    "Before anything is trained"
    e = err(made, 'class_token', memory=bank(), blocks=1)
    assert '16' in e and '32' in e

def test_rows_of_each_class_are_as_many_as_asked_for():
    m = made('class_token', memory='ClassBank', size=20, blocks=1)
    assert memories(m)['hopfield_2'].bank.capacity_rows==20
    assert isinstance(memories(m)['hopfield_2'].bank, ClassBank)

def test_a_bank_with_arguments():
    "As a YAML file can say it; `size` is the model's where the bank has none of its own"
    kw = dict(name='SlotBank', policy='fifo', n_classes=7)
    bank = memories(made('class_token', memory=kw, size=20, blocks=1))['hopfield_2'].bank
    assert bank.policy=='fifo' and bank.capacity_rows==20 and bank.n_classes==7
    bank = memories(made('class_token', memory=dict(name='associative', rate=.5, size=9), size=20, blocks=1))
    assert bank['hopfield_2'].bank.rate==.5 and bank['hopfield_2'].bank.size==9 and kw['name']=='SlotBank'

# what cannot be

@pytest.mark.parametrize('kw,says', [(dict(memory=lambda i: None),'NoneType'), (dict(memory=LearnedBank),"bank's name"),
    (dict(memory=dict(name='SlotBank', polcy='fifo')),'takes no polcy'), (dict(memory=dict(policy='fifo')),'memory'),
    (dict(memory=dict(name='associative', rate=2.)),'rate'),
    (dict(c_in=0),'c_in'), (dict(n_out=-1),'n_out'), (dict(num_classes=3),'n_out=3'), (dict(in_chans=1),'c_in=1'),
    (dict(global_pool='x'),'vit_tiny'), (dict(embed_dim=33),'vit_tiny'), (dict(features_only=True),'vit_tiny'),
    (dict(memory='class_prototype', size=4),'size=5'), (dict(memory='class_prototype', n_out=0),'classes')])
def test_wrong_arguments(kw, says): assert says in err(made, 'class_token', **kw)

def test_blocks_of_several_widths_take_no_prompts():
    assert 'several widths' in err(vpt, 'hiera_tiny_224', 5)

def test_without_a_classifier_it_gives_features():
    for make in (hopfield_vit,vpt):
        m = made('class_token', make, n_out=0)
        assert answers(m, images('class_token')).shape==(3,32)
    assert 'n_out' in err(made, 'class_token', linear_probe, n_out=0)

@pytest.mark.parametrize('memory', ['associative','class_prototype','SlotBank'])
def test_a_memory_that_nobody_writes_to_says_so(memory, recwarn):
    "Trained without a `MemoryCallback` it would be empty for ever; with one, or in evaluation, nothing is said"
    def learner(*cbs):
        kw = dict(img_size=16, patch_size=8, depth=2, embed_dim=32, num_heads=2, c_in=1, size=20, memory=memory)
        return Learner(loaders(), hopfield_vit('vit_tiny_patch16_224', 10, **kw), loss_func=CrossEntropyLossFlat(),
                       splitter=vit_splitter, cbs=[*cbs])
    def told(): return [str(o.message) for o in recwarn.list if 'MemoryCallback' in str(o.message)]
    learn = learner()
    quietly(learn, 'get_preds')
    assert not told()
    learn = learner(MemoryCallback())
    quietly(learn, 'fit', 1)
    assert not told()
    learn = learner()
    quietly(learn, 'fit', 1)
    assert told() and '\n' not in told()[0]
