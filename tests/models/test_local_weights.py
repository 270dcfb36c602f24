"""Weights from files and folders: of other image and patch sizes, other channels, wrapped names, other classifiers; the
Hub's names; what cannot be had is told in one line"""
import json, pytest, timm, torch
from helpers.errors import err
from torch import nn
from memo.models.backbones import chest_model, load_backbone, timm_model
from memo.models.hopfield_vit import hopfield_vit
from memo.models.prompts import vpt
from memo.models.vit import linear_probe

small = dict(depth=2, embed_dim=48, num_heads=3)
vit = 'vit_tiny_patch16_224'
# a network, its arguments, those of one for other images
forms = {
    'class token':(vit, small, dict(img_size=32, patch_size=4)),
    'another patch':(vit, small, dict(img_size=28, patch_size=7)),
    'distilled':('deit_tiny_distilled_patch16_224', small, dict(img_size=32, patch_size=8)),
    'LayerScale':('deit3_small_patch16_224', small, dict(img_size=32)),
    'EVA':('eva02_tiny_patch14_224', dict(depth=2), dict(img_size=28)),
    'BEiT':('beit_base_patch16_224', small, dict(img_size=64)),
    'shared biases':('beit_base_patch16_224', dict(use_shared_rel_pos_bias=True, use_rel_pos_bias=False, **small),
                     dict(img_size=64)),
    'registers':('vit_small_patch14_reg4_dinov2', dict(small, img_size=224), dict(img_size=28)),
    'SigLIP':('vit_base_patch16_siglip_224', small, dict(img_size=64)),
}

def network(arch=vit, seed=0, **kw):
    "With weights none of which are zero"
    torch.manual_seed(seed)
    m = timm.create_model(arch, **{'num_classes':1000, **kw})
    for p in m.parameters(): nn.init.normal_(p, std=.05)
    return m.eval()

def saved(sd, file):
    torch.save(sd, file)
    return file

def same(a, b, but=()):
    a,b = a.state_dict(),b.state_dict()
    assert a.keys()==b.keys()
    for k in a: assert k.startswith(but) or torch.equal(a[k], b[k]), k

@pytest.mark.parametrize('form', forms)
def test_another_size_of_images(form, tmp_path):
    "As timm loads its own weights into a network of that size, in both directions"
    arch,kw,size = forms[form]
    net = network(arch, **kw)
    for a,b in ((kw, {**kw,**size}), ({**kw,**size}, kw)):
        net = network(arch, **a)
        given = dict(state_dict=dict(net.state_dict()), num_classes=1000)
        theirs = timm.create_model(arch, pretrained=True, pretrained_cfg_overlay=given, num_classes=1000, **b)
        ours = load_backbone(arch, saved(net.state_dict(), tmp_path/'a.pth'), 1000, **b)
        same(ours, theirs)
        edge = ours.patch_embed.img_size
        with torch.no_grad(): assert ours.eval()(torch.rand(1, 3, *edge)).shape==(1, 1000)
    assert any(v.shape!=net.state_dict()[k].shape for k,v in ours.state_dict().items())

def test_the_same_size_is_taken_as_it_is(tmp_path):
    net = network(**small)
    same(load_backbone(vit, saved(net.state_dict(), tmp_path/'a.pth'), 1000, **small), net)

def test_a_resampled_position_embedding_is_the_old_ones_picture(tmp_path):
    "Grown to a finer grid, its average over what was one patch is what it was; the class token's is left alone"
    net = network(patch_size=8, img_size=32, **small)
    with torch.no_grad():
        y = torch.linspace(0, 1, 4)
        net.pos_embed[0,1:] = (y[:,None]+2*y[None]).reshape(16, 1)
    f = saved(net.state_dict(), tmp_path/'a.pth')
    pos = load_backbone(vit, f, 5, patch_size=8, img_size=64, **small).pos_embed
    assert torch.equal(pos[:,0], net.pos_embed[:,0])
    grid = pos[0,1:].reshape(8, 8, -1).mean(-1)
    rows,cols = grid.diff(dim=0)[2:-2],grid.diff(dim=1)[:,2:-2]       # away from the edge of the picture
    torch.testing.assert_close(rows, torch.full_like(rows, 1/6), rtol=0, atol=.03)
    torch.testing.assert_close(cols, torch.full_like(cols, 2/6), rtol=0, atol=.03)

@pytest.mark.parametrize('wrap', ['module.','model.','_orig_mod.','module.model.','model._orig_mod.','model.module.'])
def test_wrapped_names(wrap, tmp_path):
    net = network(**small)
    f = saved({f'{wrap}{k}':v for k,v in net.state_dict().items()}, tmp_path/'a.pth')
    same(load_backbone(vit, f, 1000, **small), net)

def test_compiled_blocks(tmp_path):
    net = network(**small)
    f = saved({k.replace('blocks.1.', 'blocks.1._orig_mod.'):v for k,v in net.state_dict().items()}, tmp_path/'a.pth')
    same(load_backbone(vit, f, 1000, **small), net)

def test_names_of_another_release(tmp_path):
    "DeiT III as it was published calls its LayerScale gamma"
    arch = 'deit3_small_patch16_224'
    net = network(arch, **small)
    sd = {k.replace('ls1.gamma', 'gamma_1').replace('ls2.gamma', 'gamma_2'):v for k,v in net.state_dict().items()}
    assert sd.keys()!=net.state_dict().keys()
    same(load_backbone(arch, saved(sd, tmp_path/'a.pth'), 1000, **small), net)

@pytest.mark.parametrize('under', ['model','state_dict','module'])
def test_whole_checkpoints(under, tmp_path):
    net = network(**small)
    f = saved({under:net.state_dict(), 'epoch':3, 'optimizer':{'state':{}}}, tmp_path/'a.pth')
    same(load_backbone(vit, f, 1000, **small), net)

@pytest.mark.parametrize('arch', [vit,'deit_tiny_distilled_patch16_224','beit_base_patch16_224',
                                  'eva02_tiny_patch14_224'])
@pytest.mark.parametrize('have,want', [(3,1),(3,6),(1,3),(5,2)])
def test_other_channels(arch, have, want, tmp_path):
    "An image of the same grey in all channels gives what it gave"
    kw = dict(depth=2) if 'eva' in arch else small
    net = network(arch, in_chans=have, **kw)
    got = load_backbone(arch, saved(net.state_dict(), tmp_path/'a.pth'), 1000, want, **kw).eval()
    x = torch.rand(2, 1, 224, 224)
    with torch.no_grad():
        a,b = got(x.expand(-1, want, -1, -1)),net(x.expand(-1, have, -1, -1))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)

def test_four_channels_as_timm(tmp_path):
    net = network(**small)
    w = load_backbone(vit, saved(net.state_dict(), tmp_path/'a.pth'), 5, 4, **small).patch_embed.proj.weight
    assert torch.equal(w, timm.models.adapt_input_conv(4, net.patch_embed.proj.weight))

def test_two_classifiers_of_another_size(tmp_path):
    "Both of a distilled network are new, the rest is the file's"
    arch = 'deit_tiny_distilled_patch16_224'
    net = network(arch, **small)
    f = saved(net.state_dict(), tmp_path/'a.pth')
    got = load_backbone(arch, f, 5, **small)
    assert (got.head.out_features, got.head_dist.out_features)==(5, 5)
    a,b = got.state_dict(),net.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a if not k.startswith('head'))
    same(load_backbone(arch, f, 1000, **small), net)
    body = load_backbone(arch, f, 0, **small)
    assert not [k for k in body.state_dict() if k.startswith('head')]

def test_a_wrong_file(tmp_path):
    f = tmp_path/'a.pth'
    for sd in (timm.create_model('resnet10t').state_dict(), network(depth=1, embed_dim=48, num_heads=3).state_dict(),
               network(depth=2, embed_dim=96, num_heads=3).state_dict(), {},
               network('deit_tiny_distilled_patch16_224', **small).state_dict(), {'pos_embed':torch.zeros(3)}):
        assert 'do not fit VisionTransformer' in err(load_backbone, vit, saved(sd, f), **small)
    f.write_bytes(b'no')
    assert 'cannot read' in err(load_backbone, vit, f)
    assert 'no file' in err(load_backbone, vit, tmp_path/'c.pth')

@pytest.mark.parametrize('make', [hopfield_vit, linear_probe, vpt, timm_model, chest_model])
def test_every_network_takes_them(make, tmp_path):
    "Each model that can be pretrained takes a file for larger images, where it can be given the size of its own"
    net = timm.create_model(vit)
    for p in net.parameters(): nn.init.normal_(p, std=.05)
    f = saved({f'module.{k}':v for k,v in net.state_dict().items()}, tmp_path/'a.pth')
    sized = make not in (timm_model, chest_model)
    got = make(vit, 7, pretrained=f, c_in=1, img_size=32) if sized else \
        make(vit, f, 7) if make is timm_model else make(vit, 7, f)
    a,b = got.state_dict(),net.state_dict()
    for k in ('blocks.0.mlp.fc1.weight','blocks.11.norm2.bias'):
        at, = [o for o in a if o.endswith(k)]
        assert torch.equal(a[at], b[k]), k
    if sized:
        with torch.no_grad(): assert got.eval()(torch.rand(2, 1, 32, 32)).shape==(2, 7)

# names of the Hub's form

def folder(at, net, args, weights='model.safetensors'):
    "What `timm.models.save_for_hf` writes"
    timm.models.save_for_hf(net, at, model_args=args, safe_serialization='both')
    for o in ('model.safetensors','pytorch_model.bin'):
        if o!=weights: (at/o).unlink()
    return f'local-dir:{at}'

@pytest.mark.parametrize('weights', ['model.safetensors','pytorch_model.bin'])
def test_a_folder_as_the_hub_has_them(weights, tmp_path):
    net = network(**small)
    name = folder(tmp_path/'net', net, small, weights)
    same(load_backbone(name, True, 1000), net)
    same(load_backbone(name, True, 5, img_size=224), net, but='head')
    assert load_backbone(name, True, 5, img_size=32).pos_embed.shape[1]==5
    assert not torch.equal(load_backbone(name, False, 5).cls_token, net.cls_token)
    other = network(seed=1, **small)
    same(load_backbone(name, saved(other.state_dict(), tmp_path/'a.pth'), 1000), other)
    m = hopfield_vit(name, 5, size=8, pretrained=True, blocks=1, img_size=32).eval()
    with torch.no_grad(): assert m(torch.rand(2, 3, 32, 32)).shape==(2, 5)

def test_a_folder_that_is_none(tmp_path):
    net = network(**small)
    name = folder(tmp_path/'net', net, small)
    assert 'local-dir:' in (e := err(load_backbone, f'local-dir:{tmp_path}/nothing', True)) and 'nothi' in e
    cfg = json.loads((tmp_path/'net/config.json').read_text())
    for bad in ('{', '{}', json.dumps({**cfg, 'architecture':'vit_none'})):
        (tmp_path/'net/config.json').write_text(bad)
        assert 'no network can be made of' in err(load_backbone, name, True)
    (tmp_path/'net/config.json').write_text(json.dumps({**cfg, 'model_args':{**small, 'depth':3}}))
    assert 'do not fit' in err(load_backbone, name, True)
    (tmp_path/'net/config.json').write_text(json.dumps(cfg))
    (tmp_path/'net/model.safetensors').unlink()
    assert 'has no model.safetensors or pytorch_model.bin' in err(load_backbone, name, True)

@pytest.mark.parametrize('source', ['hf-hub:','hf_hub:'])
def test_a_name_on_the_hub(source, tmp_path, monkeypatch):
    "From the cache of the Hub's client, and without network one line"
    import huggingface_hub
    net = network(**small)
    folder(tmp_path/'net', net, small)
    def fetch(repo, filename=None, **kw):
        if kw.get('revision')=='none' or not (f := tmp_path/'net'/(filename or kw['filename'])).is_file():
            raise huggingface_hub.errors.EntryNotFoundError('not there')
        return str(f)
    monkeypatch.setattr('timm.models._hub.hf_hub_download', lambda *a, repo_id=None, **kw: fetch(repo_id or a[0],
                        *a[1 if repo_id is None else 0:], **kw))
    same(load_backbone(f'{source}me/net', True, 1000), net)
    assert load_backbone(f'{source}me/net', True, 5, 1, img_size=32).patch_embed.proj.in_channels==1
    (tmp_path/'net/model.safetensors').unlink()
    assert f'the weights of {source}me/net cannot be fetched' in err(load_backbone, f'{source}me/net', True)

@pytest.mark.parametrize('pretrained', [True, False])
def test_without_network(pretrained, monkeypatch, tmp_path):
    import huggingface_hub
    def no(*args, **kwargs): raise huggingface_hub.errors.LocalEntryNotFoundError('no connection\nat all')
    monkeypatch.setattr('timm.models._hub.hf_hub_download', no)
    e = err(load_backbone, 'hf-hub:timm/vit_tiny_patch16_224.augreg_in21k', pretrained)
    assert e.startswith("arch: no network can be made of 'hf-hub:timm/") and 'local-dir:PATH' in e

@pytest.mark.parametrize('name', ['timm/vit_tiny_patch16_224','foo:bar','/tmp/folder'])
def test_names_of_no_form(name):
    assert 'hf-hub:OWNER/NAME' in err(load_backbone, name, True)

def test_an_unknown_tag():
    "A name of timm's with the name of weights behind a dot"
    assert load_backbone(f'{vit}.augreg_in21k', num_classes=3).num_classes==3
    for p in (False, True): assert f"'{vit}' is accepted" in err(load_backbone, f'{vit}.nope', p)
    for o in ('hf-hub:','local-dir:'): assert 'no network can be made of' in err(load_backbone, o)
