"LoRA: as published and as peft has it, for one vision transformer of each form"
import copy, math, pickle
import peft, pytest, torch
from torch import nn
from helpers.errors import err
from memo.models.lora import LowRankLinear, lora
from memo.models.vit import vit_parts, vit_splitter
from models.test_vit import answers, every, forms, images, made, plain, small

# EVA and BEiT with one layer for the three read its weights; a larger EVA has a layer for each
forms_and_three = pytest.mark.parametrize('form', [*forms,'three'])

def adapted(form, **kw):
    "With weights of which none is zero, those of the changes too"
    if form!='three': return made(form, lora, **{'rank':3, **kw})
    torch.manual_seed(0)
    m = lora('eva02_base_patch14_224', 5, **{'rank':3, 'img_size':42, **small, **kw})
    with torch.no_grad():
        for p in m.parameters(): p.add_(torch.randn(p.shape)*.05)
    return m

def pixels(form): return torch.rand(3, 3, 42, 42) if form=='three' else images(form)
def layers(m): return {n:o for n,o in m.named_modules() if isinstance(o, LowRankLinear)}
def close(m, zero=True):
    with torch.no_grad():
        for o in layers(m).values(): o.lora.b.zero_()
    return m

def test_counts_of_the_paper():
    "ViT-B/16: rank (in + out) for each layer, and the classifier"
    with torch.device('meta'):
        for kw,n in ((dict(), 12*8*(768+2304)), (dict(rank=2, targets=['attn.proj']), 12*2*(768+768)),
                     (dict(rank=1, targets=['qkv','fc1','mlp.fc2']), 12*(768+2304+2*(768+3072)))):
            m = lora('vit_base_patch16_224', 10, **kw)
            assert sum(p.numel() for p in m.parameters() if p.requires_grad)==n+7690
            assert sum(o.lora.a.numel()+o.lora.b.numel() for o in layers(m).values())==n

@forms_and_three
def test_which_layers(form):
    m = adapted(form)
    three = ['attn.q_proj','attn.k_proj','attn.v_proj']
    assert [*layers(m)]==[f'blocks.{i}.{n}' for i in range(3) for n in (three if form=='three' else ['attn.qkv'])]
    assert all(o.lora.a.shape==(3,32) and o.lora.b.shape==(o.out_features,3) for o in layers(m).values())

@every
def test_it_gives_what_it_gave_without_to_the_bit(form):
    m,x = close(adapted(form)),images(form)
    net = plain_net(form, m)
    assert torch.equal(answers(m, x), answers(net, x))
    with torch.no_grad():
        for o in layers(m).values(): o.lora.b.normal_()
    assert not torch.allclose(answers(m, x), answers(net, x), atol=1e-3)

def plain_net(form, m):
    import timm
    arch,size = forms[form]
    net = timm.create_model(arch, num_classes=5, img_size=size, **small)
    net.load_state_dict({k:v for k,v in m.state_dict().items() if '.lora.' not in k})     # names are the network's own
    return net.eval()

@every
def test_it_is_the_network_with_other_weights(form):
    "W + alpha/rank B A, written out: also where the attention reads weights and does not call the layer"
    m,x = adapted(form, alpha=5),images(form)
    net = plain_net(form, m)
    assert not torch.allclose(answers(m, x), answers(net, x), rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        for n,o in layers(m).items():
            net.get_submodule(n).weight += 5/3*o.lora.b@o.lora.a
    torch.testing.assert_close(answers(m, x), answers(net, x), rtol=1e-4, atol=1e-5)

@pytest.mark.parametrize('form', ['class_token','average','layer_scale','distilled'])
def test_as_peft_has_it(form):
    m,x = adapted(form, alpha=5),images(form)
    net,own = plain_net(form, m),layers(m)
    cfg = peft.LoraConfig(r=3, lora_alpha=5, target_modules=[*own])
    net = peft.inject_adapter_in_model(cfg, net).eval()
    with torch.no_grad():
        for n,o in own.items():
            t = net.get_submodule(n)
            assert float(t.lora_B['default'].weight.abs().max())==0
            t.lora_A['default'].weight.copy_(o.lora.a), t.lora_B['default'].weight.copy_(o.lora.b)
    torch.testing.assert_close(answers(m, x), answers(net, x), rtol=1e-4, atol=1e-5)

def test_it_begins_as_pefts():
    m = lora('vit_tiny_patch16_224', 5)
    for o in layers(m).values():
        assert float(o.lora.b.abs().max())==0 and .95/math.sqrt(192)<float(o.lora.a.abs().max())<=1/math.sqrt(192)
        assert o.lora.scale==2

@forms_and_three
def test_changes_get_gradients(form):
    "In every block, and nobody else but the classifier"
    m = adapted(form).train()
    m(pixels(form)).square().sum().backward()
    body,changes,last = vit_splitter(m)
    assert {id(p) for p in changes}=={id(p) for o in layers(m).values() for p in o.lora.parameters()}
    assert all(p.grad is None for p in body) and all(p.grad.abs().sum()>0 for p in [*changes, *last])
    assert not any(o.training for o in vit_parts(m)[0]) and all(o.lora.training for o in layers(m).values())

@forms_and_three
def test_copies_and_files(form):
    m,x = adapted(form),pixels(form)
    y = answers(m, x)
    new = close(adapted(form))
    assert not torch.equal(answers(new, x), y)
    new.load_state_dict(m.state_dict())
    for o in (new, copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        assert torch.equal(answers(o, x), y)
        assert not torch.equal(answers(close(o), x), y) and torch.equal(answers(m, x), y)

@pytest.mark.parametrize('form', ['class_token','eva','three','beit','distilled'])
def test_graphs(form):
    m,x = adapted(form).eval(),pixels(form)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(m, fullgraph=True, backend='eager')(x), m(x))
    g = torch.export.export(m, (x,), dynamic_shapes=({0:torch.export.Dim('n', min=2)},)).module()
    x = torch.cat([x, x])
    with torch.no_grad(): torch.testing.assert_close(g(x), m(x), rtol=1e-4, atol=1e-5)

def test_checkpointing():
    grads = []
    for on in (False,True):
        m = adapted('class_token').train()
        m.set_grad_checkpointing(on)
        m(images('class_token')).square().sum().backward()
        grads.append([o.lora.a.grad for o in layers(m).values()])
    for a,b in zip(*grads): torch.testing.assert_close(a, b)

def test_half_precision():
    m,x = adapted('class_token'),images('class_token')
    y = answers(m, x)
    with torch.autocast('cpu', torch.bfloat16): torch.testing.assert_close(answers(m, x).float(), y, rtol=.1, atol=.1)
    torch.testing.assert_close(answers(m.double(), x.double()).float(), y, rtol=1e-4, atol=1e-5)

@pytest.mark.parametrize('form', ['class_token','three'])
def test_dropout(form):
    "Of the change's input, in training: where nothing has changed yet nothing is dropped"
    m,x = adapted(form, dropout=.5),pixels(form)
    a,b = (m.train()(x) for _ in range(2))
    assert not torch.equal(a, b) and torch.equal(answers(m, x), answers(m, x))
    close(m).train()
    assert torch.equal(m(x), m(x)) and torch.equal(m(x), answers(m, x))

@pytest.mark.parametrize('arch,kw,msg', [
    ('resnet18', {}, 'which has no blocks of attention'),
    ('vit_tiny_patch16_224', dict(targets='query'), "'query' is no linear layer in the blocks of vit_tiny_patch16_224; "
     "qkv, or some of attn.proj, attn.qkv, mlp.fc1, mlp.fc2, are accepted"),
    ('vit_tiny_patch16_224', dict(targets=['qkv','c1']), "'c1' is no linear layer"),
    ('vit_tiny_patch16_224', dict(targets=[]), 'targets: none are named'),
    ('vit_tiny_patch16_224', dict(targets='head'), "'head' is no linear layer"),
    ('vit_tiny_patch16_224', dict(rank=0), 'rank'), ('vit_tiny_patch16_224', dict(alpha=0), 'alpha'),
    ('vit_tiny_patch16_224', dict(dropout=1.), 'dropout'), ('vit_tiny_patch16_224', dict(layers=3), "'layers'"),
    ('eva02_tiny_patch14_224', dict(dropout=.1), 'dropout: the attention of eva02_tiny_patch14_224 reads the weights'),
    ('beit_base_patch16_224', dict(dropout=.1, **small), 'dropout: the attention of beit_base_patch16_224 reads'),
])
def test_mistakes_are_one_line(arch, kw, msg): assert msg in err(lora, arch, 5, **kw)

def test_images_of_another_size():
    with torch.no_grad(): e = err(lora('vit_tiny_patch16_224', 5), torch.rand(1, 3, 32, 32))
    assert 'images are 32 x 32, this network is for 224 x 224' in e
