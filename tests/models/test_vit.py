"A memory inside the blocks of timm's vision transformers: identity, removal, gradients, for one of each form"
import copy, math, pickle
import pytest, timm, torch
from fastai.vision.all import Learner, CrossEntropyLossFlat, load_learner, set_seed, params
from torch import nn
from torch.nn import functional as F
from helpers.errors import err
from helpers.grid import grid
from helpers.learners import quietly
from memo.banks.base import Bank
from memo.banks.classes import ClassBank
from memo.banks.key_value import CachedBank, TrainableBank
from memo.banks.patterns import AssociativeBank, CentroidBank, LearnedBank
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.heads.attach import Within, attach, detach, memories
from memo.layers.hopfield_head import HopfieldHead
from memo.models.hopfield_vit import after_attention, beside_attention, hopfield_vit, remove_memory, token_reads
from memo.models.prompts import vpt
from memo.models.vit import linear_probe, vit_parts, vit_splitter
from memo.training.memory_callback import MemoryCallback
from memo.training.param_groups import body_head_splitter

small = dict(depth=3, embed_dim=32, num_heads=2)
forms = dict(                   # of timm's, each small
    class_token=('vit_tiny_patch16_224', 48), average=('vit_base_patch16_siglip_gap_224', 48),
    registers=('vit_base_patch16_reg4_gap_256', 48), both=('vit_small_patch14_reg4_dinov2', 42),
    siglip=('vit_base_patch16_siglip_224', 48), layer_scale=('deit3_small_patch16_224', 48),
    dinov2=('vit_small_patch14_dinov2', 42), eva=('eva02_tiny_patch14_224', 42),
    distilled=('deit_tiny_distilled_patch16_224', 48), beit=('beit_base_patch16_224', 48))
every = pytest.mark.parametrize('form', forms)
places = pytest.mark.parametrize('position', ['after_attn','after_ffn','parallel'])

def perturbed(model, seed=0):
    "Weights of which none is zero, as after a training"
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for n,p in model.named_parameters():
            if '.gate' not in n: p.add_(torch.randn(p.shape, generator=g), alpha=.05)
    return model

def made(form, make=hopfield_vit, n_out=5, **kw):
    arch,size = forms[form]
    torch.manual_seed(0)
    if make is hopfield_vit: kw = {'size':7, **kw}
    return perturbed(make(arch, n_out, img_size=size, **{**small, **kw}))

def plain(form, model):
    "timm's own network, with the weights of one with a memory or prompts"
    arch,size = forms[form]
    net = timm.create_model(arch, num_classes=5, img_size=size, **small)
    net.load_state_dict({k:v for k,v in model.state_dict().items() if 'hopfield_' not in k and 'prompt' not in k})
    return net.eval()

def images(form, n=3, seed=1):
    size = forms[form][1]
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))

def open_gates(model):
    for h in memories(model).values(): nn.init.normal_(h.gate, std=.3)
    return model

def answers(model, x):
    with torch.no_grad(): return model.eval()(x)

@every
@places
def test_it_gives_what_it_gave_without_to_the_bit(form, position):
    "M1: at insertion, whatever the weights; not any more once the gates are open"
    m,x = made(form, position=position),images(form)
    net = plain(form, m)
    assert len(memories(m))==3 and torch.equal(answers(m, x), answers(net, x))
    before = m.state_dict()
    open_gates(m)
    assert not torch.allclose(answers(m, x), answers(net, x), atol=1e-3)
    with_off = [h.off() for h in memories(m).values()]
    for o in with_off: o.__enter__()
    assert torch.equal(answers(m, x), answers(net, x))
    for o in with_off: o.__exit__(None, None, None)
    assert [*before]==[*m.state_dict()]

@every
@places
def test_taken_out_it_is_timms_network(form, position):
    m = open_gates(made(form, position=position))
    net = plain(form, m)
    assert remove_memory(m) is m and not memories(m)
    assert [*m.state_dict()]==[*net.state_dict()] and torch.equal(answers(m, images(form)), answers(net, images(form)))
    assert all('forward' not in vars(o) and not o._forward_hooks for o in m.modules())

def by_hand(net, block, x, head, position):
    "A block of timm's VisionTransformer with a Hopfield read in it, written out"
    def H(x):
        q = F.layer_norm(x, x.shape[-1:], head.norm.weight, head.norm.bias, 1e-6)@head.query.weight.T
        w = (q@head.bank.features.T/math.sqrt(x.shape[-1])).softmax(-1)
        return head.gate*(w@head.bank.values)
    a = block.ls1(block.attn(block.norm1(x)))
    if position=='parallel': y = x+a+H(x)
    else: y = x+a
    if position=='after_attn': y = y+H(y)
    y = y+block.ls2(block.mlp(block.norm2(y)))
    return y+H(y) if position=='after_ffn' else y

@places
def test_what_a_block_gives(position):
    "Against the formulas; M1: one residual, not two. M2: layer scales stay"
    m = open_gates(made('layer_scale', position=position, dropout=0.)).eval()
    net,x = plain('layer_scale', m),torch.randn(2, 10, 32)
    for i in range(3):
        with torch.no_grad():
            torch.testing.assert_close(m.blocks[i](x), by_hand(net, net.blocks[i], x,
                                       memories(m)[f'hopfield_{i}'], position), rtol=1e-4, atol=1e-5)

def test_M1b_an_unknown_position_is_refused():
    e = err(hopfield_vit, 'test_vit', 5, position='after_fnn')
    assert 'position' in e and 'after_ffn' in e

def test_after_mlp_is_after_ffn():
    a,b = (open_gates(made('class_token', position=o)) for o in ('after_ffn','after_mlp'))
    for m in (a,b): m.load_state_dict(a.state_dict())
    assert torch.equal(answers(a, images('class_token')), answers(b, images('class_token')))

@every
def test_M2_paths_that_are_dropped_stay(form):
    "In training mode, with the same random numbers, it is the network that it was"
    m = made(form, freeze=False, drop_path_rate=.5, dropout=0.)
    arch,size = forms[form]
    net = timm.create_model(arch, num_classes=5, img_size=size, drop_path_rate=.5, **small)
    net.load_state_dict({k:v for k,v in m.state_dict().items() if 'hopfield_' not in k})
    m.train(); net.train()
    outs = []
    for o in (m,net):
        torch.manual_seed(3)
        outs.append(o(images(form, 4)))
    assert torch.equal(*outs)
    torch.manual_seed(4)
    assert not torch.equal(m(images(form, 4)), outs[0])

def test_M3_who_has_no_class_token_says_so():
    for form in ('average','siglip','registers'):
        assert 'class token' in err(made, form, tokens='cls')

def test_M3_only_the_class_token_asks():
    m = open_gates(made('class_token', tokens='cls', position='after_ffn', blocks=[1])).eval()
    h = memories(m)['hopfield_1']
    x = torch.randn(2, 10, 32)
    with torch.no_grad():
        y = h(x)
        assert torch.equal(y[:,1:], x[:,1:]) and not torch.allclose(y[:,0], x[:,0])
        other = torch.cat([x[:,:1], torch.randn(2, 9, 32)], 1)
        assert torch.equal(h(other)[:,0], y[:,0])

def test_M4_queries_have_a_norm_and_a_temperature():
    "However long tokens are, as many slots take part"
    h = memories(made('class_token', size=100, blocks=1))['hopfield_2']
    x = torch.randn(4, 10, 32)
    def slots(x): return torch.special.entr(h.association(x)).sum(-1).exp().mean()
    with torch.no_grad():
        assert slots(x)==pytest.approx(float(slots(8*x)), rel=1e-3) and 20<float(slots(x))<100
    for beta in (.125,4.): assert memories(made('class_token', blocks=1, beta=beta))['hopfield_2'].first_beta(32)==beta
    assert h.first_beta(32)==pytest.approx(32**-.5)

@every
def test_gradients_go_to_memory_and_classifier_only(form):
    "The gate has one first; with it open all of the memory has; the frozen backbone never"
    m,x = made(form, dropout=0.).train(),images(form)
    m(x).sum().backward()
    hs = memories(m).values()
    assert all(h.gate.grad.abs().sum()>0 for h in hs)
    assert all(p.grad.abs().sum()==0 for h in hs for n,p in h.named_parameters() if n!='gate')
    open_gates(m)
    m.zero_grad()
    m(x).square().sum().backward()
    assert all(p.grad.abs().sum()>0 for h in hs for p in h.parameters())
    body,memory,last = vit_splitter(m)
    assert all(p.grad is None and not p.requires_grad for p in body) and all(p.grad.abs().sum()>0 for p in last)
    assert {id(p) for p in memory}=={id(p) for h in hs for p in h.parameters()}
    assert {id(p) for g in (body,memory,last) for p in g}=={id(p) for p in m.parameters()}

@pytest.mark.parametrize('blocks,at', [('all',[0,1,2]), (1,[2]), (2,[1,2]), ([0,2],[0,2]), ([2,0,2],[0,2])])
def test_which_blocks(blocks, at): assert [*memories(made('class_token', blocks=blocks))]==[f'hopfield_{i}' for i in at]

@pytest.mark.parametrize('blocks', [4, 0, -1, [3], [], [-1], 'some', [0,'1'], [.5]])
def test_blocks_that_are_not_there(blocks):
    e = err(made, 'class_token', blocks=blocks)
    assert 'blocks' in e and '1..3' in e and 'blocks' in err(made, 'class_token', blocks=True)

@pytest.mark.parametrize('make', [hopfield_vit, vpt, linear_probe])
@pytest.mark.parametrize('arch', ['resnet18','swin_tiny_patch4_window7_224','tf_efficientnet_lite0','convnext_tiny'])
def test_what_is_no_vision_transformer_is_refused(make, arch):
    e = err(make, arch, 5)
    assert arch in e and 'vision transformer' in e

def test_other_bad_input():
    assert 'vit_tiny_patch16_224' in err(hopfield_vit, 'vit_tiny_patch16_22', 5)
    assert 'heads' in err(made, 'class_token', heads=5)
    assert 'memory' in err(made, 'class_token', memory='learnt') and 'memory' in err(made, 'class_token', memory=3)
    assert 'embed_dimm' in err(made, 'class_token', embed_dimm=3)
    assert 'of one' in err(made, 'class_token', memory=SlotBank(7)) and 'one block' in err(made, 'class_token',
                                                                                        memory='SlotBank', shared=True)

@pytest.mark.parametrize('make', [hopfield_vit, vpt, linear_probe])
def test_images_of_another_size(make):
    "A line says how to make it for them; made so it works"
    m = made('class_token', make)
    with torch.no_grad():
        e = err(m, torch.rand(2, 3, 32, 32))
        assert '32 x 32' in e and '48 x 48' in e and 'img_size=32' in e and 'dynamic_img_size' in e
        assert make('test_vit', 5, img_size=32)(torch.rand(2, 3, 32, 32)).shape==(2,5)
        m = make('test_vit', 5, dynamic_img_size=True)
        for s in (32,64): assert m(torch.rand(2, 3, s, s)).shape==(2,5)

@pytest.mark.parametrize('arch,position', [('vit_relpos_small_patch16_rpn_224','after_attn'),
    ('swinv2_cr_tiny_224','after_attn'), ('vit_small_patch16_18x2_224','after_attn'), ('cait_xxs24_224','after_attn')])
def test_blocks_of_another_form(arch, position):
    "Post-norm, parallel and other blocks: what cannot be run in halves is refused in a line, the rest is itself"
    kw = {} if 'swin' in arch else dict(depth=2)
    try: m = hopfield_vit(arch, 5, position=position, size=7, blocks=1, **kw)
    except MemoError as e:
        assert '\n' not in str(e) and ('halves' in str(e) or 'vision transformer' in str(e))
        return
    net = timm.create_model(arch, num_classes=5, depth=2).eval()
    net.load_state_dict({k:v for k,v in m.state_dict().items() if 'hopfield_' not in k})
    x = torch.rand(2, 3, *m.patch_embed.img_size)
    assert torch.equal(answers(m, x), answers(net, x))

class PostNorm(nn.Module):
    "Looks like a block of the usual form, and is none"
    def __init__(self, d):
        super().__init__()
        self.norm1,self.norm2,self.attn,self.mlp = nn.LayerNorm(d),nn.LayerNorm(d),nn.Linear(d, d),nn.Linear(d, d)
        for o in (self.norm1.weight,self.norm2.weight,self.attn.bias,self.mlp.bias): nn.init.zeros_(o)
    def forward(self, x):
        x = x+self.norm1(self.attn(x))
        return x+self.norm2(self.mlp(x))

def head(dim=8, **kw):
    h = HopfieldHead(LearnedBank(7, dim), **kw)
    h.bank.build(dim, None); h.build(dim, None)
    return h

@pytest.mark.parametrize('within', [after_attention,beside_attention])
def test_halves_are_tried_on_other_weights(within):
    m = nn.Sequential(PostNorm(8), nn.Linear(8, 2))
    state = copy.deepcopy(m.state_dict())
    e = err(attach, m, head(), at='0', within=within, x=torch.randn(2, 4, 8))
    assert 'halves' in e and 'PostNorm' in e and not memories(m) and 'forward' not in vars(m[0])
    assert all(torch.equal(v, state[k]) for k,v in m.state_dict().items())

def test_within_needs_a_place_and_rows():
    m = made('class_token', blocks=[0])
    x,h = images('class_token'),head(32)
    assert 'x=' in err(attach, m, h, at='blocks.1', name='a', within=after_attention)
    assert 'at=' in err(attach, m, h, name='a', within=after_attention, x=x)
    assert 'already' in err(attach, m, h, at='blocks.0', name='a', within=after_attention, x=x)
    assert 'within' in err(attach, m, h, at='blocks.1', name='a', within=after_attention, x=x, wrap=True)
    attach(m, h, at='blocks.0', name='behind')     # one within, one behind
    nn.init.ones_(h.gate)
    y = answers(m, x)
    assert [*memories(m)]==['hopfield_0','behind'] and detach(m, 'hopfield_0') is not None
    assert torch.equal(answers(m, x), y) and 'forward' not in vars(m.blocks[0])

@every
def test_state_copies_and_pickles(form):
    m,x = open_gates(made(form)),images(form)
    y = answers(m, x)
    new = made(form, n_out=5)
    new.load_state_dict(m.state_dict())
    for o in (new, copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        assert torch.equal(answers(o, x), y) and all(isinstance(vars(b)['forward'], Within) for b in o.blocks)
        assert all(vars(b)['forward'].module is b for b in o.blocks)
        o.train()
        assert not o.blocks[0].training and o.head.training
    assert all(a.data_ptr()!=b.data_ptr() for a,b in zip(m.parameters(), copy.deepcopy(m).parameters()))

def test_a_frozen_backbone_is_in_evaluation_mode():
    m = made('class_token', drop_path_rate=.5, proj_drop_rate=.3)
    for o in (m.train(), m.eval().train()):
        body,memory,last = vit_parts(o)
        assert o.training and not any(b.training for b in body) and all(b.training for b in [*memory, *last])
    m.eval()
    assert not any(o.training for o in m.modules())
    for p in m.parameters(): p.requires_grad_(True)
    assert all(o.training for o in m.train().modules())

@pytest.mark.parametrize('form', ['class_token','eva'])
def test_gradient_checkpointing(form):
    "Gives the same gradients, also where the backbone is frozen, and stores nothing twice"
    grads = []
    for on in (False,True):
        m = open_gates(made(form, dropout=0., memory='SlotBank')).train()
        torch.manual_seed(0)
        for h in memories(m).values():
            h.bank.write(torch.randn(5, 32, generator=torch.Generator().manual_seed(5)))
            nn.init.normal_(h.gate, std=.3)
        m.set_grad_checkpointing(on)
        m(images(form)).square().sum().backward()
        grads.append([p.grad.clone() for p in m.parameters() if p.requires_grad])
    assert len(grads[0])==len(grads[1])>10 and all(torch.allclose(a, b, atol=1e-6) for a,b in zip(*grads))

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    "Under autocast the network is itself at insertion, to the bit, and finite with open gates"
    m,x = made('layer_scale'),images('layer_scale')
    net = plain('layer_scale', m)
    with torch.autocast('cpu', dtype):
        assert torch.equal(answers(m, x), answers(net, x)) and answers(open_gates(m), x).isfinite().all()
    m,net = m.to(dtype),net.to(dtype)
    for h in memories(m).values(): nn.init.zeros_(h.gate)
    assert memories(m)['hopfield_0'].gate.dtype==torch.float32
    assert torch.equal(answers(m, x.to(dtype)), answers(net, x.to(dtype)))

# all of them in the night
@pytest.mark.parametrize('form,position', grid(forms, ['after_attn','after_ffn','parallel'],
    some=[('class_token','after_attn'), ('eva','parallel'), ('siglip','after_ffn')]))
def test_compiled_and_exported(form, position):
    m,x = open_gates(made(form, position=position)).eval(),images(form)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(m, fullgraph=True, backend='eager')(x), m(x))
    g = torch.export.export(m, (x,), dynamic_shapes=({0:torch.export.Dim('n', min=2)},)).module()
    with torch.no_grad(): torch.testing.assert_close(g(images(form, 5)), m(images(form, 5)), rtol=1e-4, atol=1e-5)

def test_shared_by_all_blocks():
    m = open_gates(made('class_token', shared=True))
    a,b,c = memories(m).values()
    assert a.bank is b.bank is c.bank and sum(p.numel() for p in a.bank.parameters())==2*7*32
    new = copy.deepcopy(m)
    assert len({id(h.bank) for h in memories(new).values()})==1
    x = images('class_token')
    assert torch.equal(answers(new, x), answers(m, x))
    m.train()(x).sum().backward()
    assert a.bank.features.grad.abs().sum()>0

def test_learned_patterns_of_ones_own():
    bank = LearnedBank(9, seed=4)
    m = made('class_token', memory=bank)
    assert all(h.bank is bank for h in memories(m).values())
    m = made('class_token', memory=lambda i: LearnedBank(4+i))
    assert [len(h.bank) for h in memories(m).values()]==[4,5,6]
    assert not torch.equal(LearnedBank(9, 4, seed=1).drawn(4)[0], LearnedBank(9, 4, seed=2).drawn(4)[0])

@pytest.mark.parametrize('steps,topk,heads,learn_beta', [(2,None,1,False), (0,3,2,False), (1,2,2,True)])
def test_other_reads(steps, topk, heads, learn_beta):
    m = open_gates(made('class_token', steps=steps, topk=topk, heads=heads, learn_beta=learn_beta))
    h,x = memories(m)['hopfield_1'],torch.randn(2, 5, 32)
    w = h.association(x)
    assert w.shape==(2,heads,5,7) and torch.allclose(w.sum(-1), torch.ones(2, heads, 5))
    if topk: assert (w>0).sum(-1).max()<=topk
    v = h.bank.values.unflatten(-1, (heads,-1)).transpose(0, 1)[None]
    want = (w@v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(h.eval().read(x), want, rtol=1e-4, atol=1e-5)
    assert (h.log_beta is not None)==learn_beta
    if learn_beta:
        m.train()(images('class_token')).sum().backward()
        assert h.log_beta.grad.abs().sum()>0

banks = dict(learned=lambda: LearnedBank(9), slots=lambda: SlotBank(9, policy='fifo'), classes=lambda: ClassBank(5, 4),
    cached=lambda: CachedBank(9), trainable=lambda: TrainableBank(9, 5), associative=lambda: AssociativeBank(9),
    means=lambda: CentroidBank(5), compressed=lambda: SlotBank(9, policy='fifo'))

@pytest.mark.parametrize('kind', banks)
@pytest.mark.parametrize('heads,beta', [(1,None), (4,.125)])
def test_any_bank_of_the_library(kind, heads, beta):
    "The read is softmax(beta q K^T) V over its rows, each seen through the head's norm and projections; x + g of it"
    bank,x = banks[kind](),torch.randn(3, 6, 16)
    g = torch.Generator().manual_seed(0)
    bank.build(16, 5)
    h = HopfieldHead(bank, heads=heads, beta=beta)
    with torch.no_grad(): assert torch.equal(h(x), x)       # before it is built
    h.build(16, 5)
    for p in h.parameters(): nn.init.normal_(p, std=.3)
    if kind!='learned':
        with torch.no_grad(): assert torch.equal(h(x), x)       # empty
        bank.write(torch.randn(20, 16, generator=g), torch.arange(20)%4, item=torch.arange(20))
    if kind=='compressed': h.bank = bank = bank.compress(1, 'int8')
    f,_,_,_,_,valid = bank.rows()
    f = torch.stack([f[i].float() for i in range(len(f))])
    if valid is not None: f = f[valid]
    assert len(f)==len(bank)>0
    t = F.normalize(x, dim=-1) if bank.unit else x
    q = F.layer_norm(t, (16,), h.norm.weight, h.norm.bias, 1e-6)@h.query.weight.T
    if kind=='learned': k,v = bank.features,bank.values
    else:
        f = F.layer_norm(f, (16,), h.row_norm.weight, h.row_norm.bias, 1e-6)
        k,v = f@h.key.weight.T,f@h.value.weight.T
    want,d = x.clone(),16//heads
    for i in range(heads):
        at = slice(i*d, i*d+d)
        w = ((d**-.5 if beta is None else beta)*q[...,at]@k[:,at].T).softmax(-1)
        want[...,at] += h.gate[at]*(w@v[:,at])
    torch.testing.assert_close(h.eval()(x), want, rtol=1e-4, atol=1e-4)
    h(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in (h.gate,h.query.weight,h.norm.weight))
    if kind!='learned': assert h.key.weight.grad.abs().sum()>0 and h.value.weight.grad.abs().sum()>0

def test_who_may_see_nothing_gets_nothing():
    "Where all rows are an item's own; a NaN in its features would spoil a training"
    from memo.heads.calls import Step, in_step
    h = HopfieldHead(SlotBank(4, policy='fifo'))
    h.build(8, None)
    nn.init.ones_(h.gate)
    h.bank.write(torch.randn(3, 8), item=torch.tensor([7,7,8]), group=torch.tensor([1,1,2]))
    x = torch.randn(3, 5, 8, requires_grad=True)
    with in_step([h], Step(torch.tensor([7,8,9]), torch.tensor([1,2,2]), hide=True)):
        y = h(x)
        w = h.association(x, torch.tensor([7,8,9]), torch.tensor([1,2,1]))
    assert h.bank.items[:2].tolist()==[7,8]
    assert torch.equal(w[:,0,0]>0, torch.tensor([[False,True],[True,False],[False,True]]))
    y.sum().backward()
    assert x.grad.isfinite().all()
    with in_step([h], Step(torch.tensor([8,8,8]), torch.tensor([1,1,1]), hide=True)): assert torch.equal(h(x), x)

@pytest.mark.parametrize('shape,axis', [((3,8),None), ((3,8,4,5),None), ((3,4,5,8),-1), ((3,5,8),None)])
def test_features_of_any_form(shape, axis):
    "A vector, a map, tokens: each position asks by itself"
    h,x = head(8),torch.randn(shape)
    nn.init.normal_(h.gate)
    h.axis = axis
    y = h.eval()(x)
    a = (axis if axis is not None else {3:2, 4:1}.get(x.ndim, 1))%x.ndim
    t = x.movedim(a, -1).reshape(-1, 8)
    torch.testing.assert_close(y.movedim(a, -1).reshape(-1, 8), t+h.gate*h.read(t[:,None])[:,0], rtol=1e-4, atol=1e-5)
    assert h.features(x).shape==(3,8)
    if x.ndim==4: assert 'class token' in err(lambda: setattr(h, 'tokens', 'cls') or h(x))

def test_T3_what_was_read_is_that_of_the_forward_itself():
    "T3: of the tokens as they come to the memory, in one pass through the blocks"
    m,x = open_gates(made('class_token', dropout=0.)).eval(),images('class_token')
    passes,outs = [],{}
    for b in m.blocks: b.register_forward_hook(lambda *_: passes.append(1))
    for n,h in memories(m).items(): h.register_forward_hook(lambda h, a, out, n=n: outs.update({n:(a[0],out)}))
    with torch.no_grad(): found = token_reads(m, x)
    assert len(passes)==3 and [*found]==[*memories(m)]
    for n,h in memories(m).items():
        w,(t,out) = found[n],outs[n]
        assert w.shape==(3,1,10,7) and torch.allclose(w.sum(-1), torch.ones(3, 1, 10))
        torch.testing.assert_close(t+h.gate*(w[:,0]@h.bank.values), out, rtol=1e-4, atol=1e-5)
    assert not any(h._forward_pre_hooks for h in memories(m).values())
