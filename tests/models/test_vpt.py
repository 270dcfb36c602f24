"Prompt tuning and the linear probe: as published, for one vision transformer of each form"
import copy, math, pickle
import pytest, timm, torch
from torch import nn
from helpers.errors import err
from helpers.grid import grid
from memo.models.prompts import vpt
from memo.models.vit import linear_probe, vit_parts, vit_splitter
from models.test_vit import answers, every, forms, images, made, plain

deeps = pytest.mark.parametrize('deep', [False,True])
def trained_numbers(m): return sum(p.numel() for p in m.parameters() if p.requires_grad)

def test_counts_of_the_paper():
    "ViT-B/16, 10 classes, 10 prompts; the linear probe"
    with torch.device('meta'):
        for deep,n in ((False,7680), (True,92160)):
            m = vpt('vit_base_patch16_224', 10, deep=deep)
            prompts = {k:p for k,p in m.named_parameters() if 'prompt' in k}
            assert sum(p.numel() for p in prompts.values())==n and trained_numbers(m)==n+7690
            assert {k for k,p in m.named_parameters() if p.requires_grad}=={*prompts,'head.weight','head.bias'}
        assert trained_numbers(linear_probe('vit_base_patch16_224', 10))==7690

def test_prompts_begin_within_glorots_bound():
    m = vpt('vit_tiny_patch16_224', 10, deep=True, n_prompts=50)
    p,bound = m.prompts.prompt,math.sqrt(6/(3*16*16+192))
    assert p.shape==(12,50,192) and .99*bound<p.abs().max()<=bound and abs(float(p.mean()))<1e-3
    assert math.sqrt(6/(3*16*16+768))==pytest.approx(.0625, abs=1e-4)

def tokens_by_hand(net, x, prompts, deep):
    "What comes out of the blocks of timm's VisionTransformer, with prompts, written out"
    x,n = net.norm_pre(net.patch_drop(net._pos_embed(net.patch_embed(x)))),net.num_prefix_tokens
    first,rest = x[:,:n],x[:,n:]
    for i,b in enumerate(net.blocks):
        if i==0 or deep: p = prompts[i].expand(len(x), -1, -1)
        y = b(torch.cat([first,p,rest], 1))
        first,p,rest = y[:,:n],y[:,n:n+len(prompts[0])],y[:,n+len(prompts[0]):]
    return net.norm(torch.cat([first,rest], 1))

@deeps
@pytest.mark.parametrize('form', ['class_token','average','registers','both','siglip','layer_scale','distilled'])
def test_what_it_gives(form, deep):
    """P1: prompts are in front of the blocks, not behind them. P2: per block in the deep form, behind the class token,
    which the classifier reads; registers, the norm and pooling stay"""
    m,x = made(form, vpt, deep=deep, n_prompts=4),images(form)
    net = plain(form, m)
    with torch.no_grad():
        want = net.forward_head(tokens_by_hand(net, x, m.prompts.prompt, deep))
        torch.testing.assert_close(m.eval()(x), want, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(want, net(x), atol=1e-3)
        assert m.forward_features(x).shape==net.forward_features(x).shape

@every
@deeps
def test_prompts_get_gradients(form, deep):
    "P1: of each layer, and nobody else but the classifier"
    m = made(form, vpt, deep=deep, n_prompts=4).train()
    m(images(form)).square().sum().backward()
    g = m.prompts.prompt.grad
    assert g.shape==(3 if deep else 1,4,g.shape[2]) and (g.abs().sum((1,2))>0).all()
    body,prompts,last = vit_splitter(m)
    assert prompts==[m.prompts.prompt] and all(p.grad is None for p in body) and all(p.grad.abs().sum()>0 for p in last)

@every
def test_prompts_change_what_it_gives(form):
    m,x = made(form, vpt, n_prompts=4),images(form)
    a = answers(m, x)
    with torch.no_grad(): m.prompts.prompt.mul_(10)
    assert not torch.allclose(answers(m, x), a, rtol=1e-4, atol=1e-5)

def test_rotations_are_of_patches():
    "EVA turns queries and keys by the place of their patch: prompts are left as the class token is"
    m = made('eva', vpt, n_prompts=4)
    assert [b.attn.num_prefix_tokens for b in m.blocks]==[5,5,5] and m.num_prefix_tokens==1

def test_biases_are_of_pairs_of_patches():
    "BEiT adds a number for each pair of tokens: zero for prompts, the others as they were"
    m = made('beit', vpt, n_prompts=4)
    net,keep = plain('beit', m),[0,*range(5, 14)]
    for b,o in zip(m.blocks, net.blocks):
        a,c = b.attn._get_rel_pos_bias(),o.attn._get_rel_pos_bias()
        assert torch.equal(a[...,keep,:][...,keep], c) and c.abs().sum()>0
        assert a[...,1:5,:].abs().sum()==0 and a[...,1:5].abs().sum()==0

@every
def test_copies_and_files(form):
    m,x = made(form, vpt, deep=True, n_prompts=4),images(form)
    y = answers(m, x)
    new = made(form, vpt, deep=True, n_prompts=4)
    with torch.no_grad(): new.prompts.prompt.zero_()
    new.load_state_dict(m.state_dict())
    for o in (new, copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        assert torch.equal(answers(o, x), y)
        with torch.no_grad(): o.prompts.prompt.mul_(10)
        assert not torch.equal(answers(o, x), y) and torch.equal(answers(m, x), y)

def test_dropout_of_prompts():
    m,x = made('class_token', vpt, n_prompts=4, dropout=.5),images('class_token')
    a,b = (m.train()(x) for _ in range(2))
    assert not torch.equal(a, b) and torch.equal(answers(m, x), answers(m, x))

def test_checkpointing_keeps_prompts():
    "With a frozen backbone too"
    grads = []
    for on in (False,True):
        m = made('class_token', vpt, deep=True, n_prompts=4).train()
        m.set_grad_checkpointing(on)
        m(images('class_token')).square().sum().backward()
        grads.append(m.prompts.prompt.grad)
    assert torch.allclose(*grads, atol=1e-6)

@pytest.mark.parametrize('form,deep', grid(forms, [False,True],
    some=[('class_token',True), ('beit',False), ('eva',True)]))
def test_graphs(form, deep):
    m,x = made(form, vpt, deep=deep, n_prompts=4).eval(),images(form, 4)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(m, fullgraph=True, backend='eager')(x), m(x))
    g = torch.export.export(m, (x,), dynamic_shapes=({0:torch.export.Dim('n', min=2)},)).module()
    with torch.no_grad(): torch.testing.assert_close(g(images(form, 5)), m(images(form, 5)), rtol=1e-4, atol=1e-5)

@every
def test_linear_probe(form):
    "The network as it is; only its classifier is trained"
    m,x = made(form, linear_probe),images(form)
    net = plain(form, m)
    assert torch.equal(answers(m, x), answers(net, x))
    m.train()(x).sum().backward()
    body,last = vit_splitter(m)
    assert all(p.grad is None for p in body) and all(p.grad is not None for p in last)
    assert {id(p) for p in last}=={id(p) for k,p in m.named_parameters() if k.startswith('head')}

@every
def test_linear_probe_with_a_hidden_layer(form):
    m,x = made(form, linear_probe, hidden=9, dropout=.5),images(form)
    names = [n for n in ('head','head_dist') if hasattr(m, n)]
    for n in names:
        own = getattr(m, n)
        assert [type(o) for o in own]==[nn.Linear,nn.ReLU,nn.Dropout,nn.Linear] and own[0].out_features==9
        assert own[3].out_features==5 and own[2].p==.5
    assert {k.split('.')[0] for k,p in m.named_parameters() if p.requires_grad}=={*names} and answers(m, x).shape==(3,5)
    assert not torch.equal(m.train()(x), m(x))       # dropout of the classifier is on
