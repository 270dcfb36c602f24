"""Torchvision's networks under their names, weights from its files, caches and nowhere, the chest head, a body
that takes cached features"""
import pytest, torch, torchvision
from fastai.vision.all import BCEWithLogitsLossFlat, DataLoaders, Learner, nn, set_seed
from safetensors.torch import save_file
from memo.heads.attach import find_head, find_place
from memo.models.backbones import FeatureBody, chest_head, chest_model, load_backbone, n_features
from memo.data.features import features_dls, features_key
from memo.models.small import tile_cnn
from memo.banks.slots import SlotBank
from memo.training.memory_callback import MemoryCallback
from memo.core import MemoError
from memo.data.tensors import TensorDL, TensorSet
from memo.training.param_groups import body_head_splitter

def _theirs(arch, seed=0):
    "torchvision's network with statistics and scales that are not those of a new one"
    torch.manual_seed(seed)
    m = torchvision.models.get_model(arch, weights=None).eval()
    for o in m.modules():
        if isinstance(o, nn.BatchNorm2d):
            nn.init.normal_(o.running_mean, 0, .05)
            for v in (o.running_var,o.weight): nn.init.uniform_(v, .8, 1.2)
            nn.init.normal_(o.bias, 0, .05)
    return m

def _old_names(sd):
    "DenseNet's names of 2017: norm.1 for norm1"
    import re
    return {re.sub(r'(denselayer\d+\.(?:norm|conv))([12]\.)', r'\1.\2', k):v for k,v in sd.items()
            if 'num_batches' not in k}

@pytest.mark.parametrize('arch', ['efficientnet_v2_s', *(pytest.param(o, marks=pytest.mark.nightly)
    for o in ('resnet50','densenet121','efficientnet_v2_m','efficientnet_v2_l'))])
def test_torchvisions_numbers(arch, tmp_path):
    """The same weights, from files that keep their order and that do not, give torchvision's own numbers; without
    classifier its pooled features"""
    theirs,x = _theirs(arch),torch.randn(2,3,64,64)
    torch.save(theirs.state_dict(), tmp_path/'a.pth')
    save_file(theirs.state_dict(), tmp_path/'b.safetensors')
    with torch.no_grad(): want = theirs(x)
    ours = load_backbone(arch, tmp_path/'a.pth', num_classes=1000).eval()
    with torch.no_grad():
        assert torch.equal(ours(x), want)
        if arch!='efficientnet_v2_l':
            assert torch.equal(load_backbone(arch, tmp_path/'b.safetensors', 1000).eval()(x), want)
        body = load_backbone(arch, tmp_path/'a.pth').eval()
        f = body(x)
        last = theirs.fc if arch=='resnet50' else theirs.classifier.eval()
        assert f.shape==(2,n_features(body)) and torch.allclose(last(f), want, atol=1e-5)

def test_as_random_as_torchvisions():
    "Stochastic depth in training, of the same rates in the same order"
    theirs = [o.p for o in torchvision.models.efficientnet_v2_s().modules()
              if isinstance(o, torchvision.ops.StochasticDepth)]
    ours = [o.drop_prob for o in load_backbone('efficientnet_v2_s').modules() if type(o).__name__=='DropPath']
    assert len(ours)==len([p for p in theirs if p]) and torch.allclose(torch.tensor(ours),
        torch.tensor([p for p in theirs if p]))

def test_old_densenet_names(tmp_path):
    theirs,x = _theirs('densenet121'),torch.randn(1,3,64,64)
    torch.save(_old_names(theirs.state_dict()), tmp_path/'a.pth')
    with torch.no_grad():
        assert torch.equal(load_backbone('densenet121', tmp_path/'a.pth', num_classes=1000).eval()(x), theirs(x))

def test_timms_names_are_taken_too(tmp_path):
    m = load_backbone('efficientnet_v2_s')
    save_file(m.state_dict(), tmp_path/'a.safetensors')
    assert all(torch.equal(a,b) for a,b in zip(m.state_dict().values(),
                                               load_backbone('efficientnet_v2_s',
                                                   tmp_path/'a.safetensors').state_dict().values()))

def test_another_network_is_refused(tmp_path):
    torch.save(torchvision.models.efficientnet_v2_s().state_dict(), tmp_path/'a.pth')
    for arch in ('efficientnet_v2_m','resnet50','densenet121','tile_cnn'):
        with pytest.raises(MemoError, match='do not fit') as e: load_backbone(arch, tmp_path/'a.pth')
        assert '\n' not in str(e.value)

def test_grey_images(tmp_path):
    "A filter for three colours answers a grey image as it answered the same image in three channels"
    torch.save(_theirs('resnet50').state_dict(), tmp_path/'a.pth')
    x = torch.randn(1,1,64,64)
    with torch.no_grad():
        a,b = (load_backbone('resnet50', tmp_path/'a.pth', in_chans=n).eval()(x.expand(-1,n,-1,-1)) for n in (1,3))
    assert torch.allclose(a, b, atol=1e-4)

# pretrained: true
def test_weights_from_torch_hubs_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    (tmp_path/'hub/checkpoints').mkdir(parents=True)
    theirs,x = _theirs('resnet50'),torch.randn(1,3,64,64)
    torch.save(theirs.state_dict(), tmp_path/'hub/checkpoints/resnet50-0676ba61.pth')
    with torch.no_grad(): assert torch.equal(load_backbone('resnet50', True, num_classes=1000).eval()(x), theirs(x))

@pytest.mark.parametrize('arch,says',
                         [('efficientnet_v2_s','hub/checkpoints/efficientnet_v2_s-dd5fe13b.pth'),
                          ('resnet50','resnet50-0676ba61.pth'),
    ('densenet121','densenet121-a639ec97.pth'), ('resnet10t','timm/resnet10t.c3_in1k')])
def test_without_network_one_line_says_which_file(arch, says, tmp_path, monkeypatch):
    from urllib.error import URLError
    def no(*args, **kwargs): raise URLError('no route to host')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', no)
    monkeypatch.setattr(torch.hub, 'urlopen', no)
    if arch=='resnet10t': monkeypatch.setattr('timm.models._builder.load_pretrained', no)
    with pytest.raises(MemoError, match=says) as e: load_backbone(arch, True)
    assert 'path' in str(e.value) and '\n' not in str(e.value)
    assert not [o for o in tmp_path.rglob('*') if o.is_file()]

def test_a_half_written_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    (tmp_path/'hub/checkpoints').mkdir(parents=True)
    (tmp_path/'hub/checkpoints/densenet121-a639ec97.pth').write_bytes(b'PK\3\4 and no more')
    with pytest.raises(MemoError, match='cannot read .*densenet121-a639ec97') as e: load_backbone('densenet121', True)
    assert '\n' not in str(e.value)

def test_no_weights_there():
    for arch,msg in (('efficientnetv2_s','timm has no weights'), ('tile_cnn','no weights for tile_cnn')):
        with pytest.raises(MemoError, match=msg): load_backbone(arch, True)
    with pytest.raises(MemoError, match='efficientnet_v2_s'): load_backbone('efficientnet_v2s')

# the chest model
def test_chest_head():
    h = chest_head(8, 3, 16, .1)
    assert [type(o).__name__ for o in h]==['Flatten','RowNorm','Linear','ReLU','Dropout','Linear']
    assert isinstance(h[1], nn.BatchNorm1d)
    assert (h[2].in_features,h[2].out_features,h[4].p,h[5].out_features)==(8,16,.1,3)
    assert chest_head(8)(torch.randn(4,8)).shape==(4,14)

def test_a_last_batch_of_one_image():
    "Trains, with the running statistics, and leaves them alone; two rows are normalised by themselves as ever"
    h,b = chest_head(8),nn.BatchNorm1d(8)
    for x in (torch.randn(6,8),torch.randn(2,8)): torch.testing.assert_close(h[1](x), b(x))
    was,x = h[1].running_mean.clone(),torch.randn(1,8)
    torch.testing.assert_close(h[1](x), b.eval()(x))
    h(x).sum().backward()
    assert torch.equal(h[1].running_mean, was) and torch.equal(h[1].running_var, b.running_var)

@pytest.mark.parametrize('arch',
                         ['tile_cnn','resnet10t','mobilenetv3_small_050','efficientnet_v2_s','resnet50','densenet121'])
def test_chest_model(arch):
    "Memory at the pooled features, two parameter groups, whatever the backbone"
    m = chest_model(arch, 5, in_chans=1).eval()
    name,mod,_ = find_place(m)
    assert mod is m[1][0] and m[1][1].num_features==n_features(m[0].net)
    body,head = body_head_splitter(m)
    assert {id(p) for p in body}=={id(p) for p in m[0].parameters()} and {id(p) for p in head}=={id(p)
        for p in m[1].parameters()}
    x = torch.randn(2,1,64,64)
    with torch.no_grad():
        z = m[0](x)
        assert z.shape==(2,n_features(m[0].net)) and m(x).shape==(2,5) and torch.equal(m(z), m(x))

def _dls(n=60, c=5):
    g = torch.Generator().manual_seed(0)
    x,y = torch.randint(256, (n,1,56,56), generator=g).byte(),(torch.rand(n, c, generator=g)<.3).float()
    return DataLoaders(TensorDL(dataset=TensorSet(x[:40], y[:40], split_idx=0, groups=torch.arange(40)//4), bs=10,
                                shuffle=True),
                                TensorDL(dataset=TensorSet(x[40:], y[40:], items=range(40,n), split_idx=1), bs=20))

def test_frozen_stage_on_features(tmp_path):
    """One model, its memory in place: a stage on cached features leaves the backbone alone to the bit, the next
    one trains on images"""
    set_seed(0)
    dls = _dls()
    model = chest_model('tile_cnn', 5, in_chans=1)
    learn = Learner(dls, model, loss_func=BCEWithLogitsLossFlat(), splitter=body_head_splitter,
                    cbs=MemoryCallback(SlotBank(20, policy='fifo'), k=3))
    with torch.no_grad(): want = model.eval()[0](torch.cat([b[0] for b in dls.valid]))
    was = {k:v.clone() for k,v in model[0].state_dict().items()}
    learn.dls = features_dls(FeatureBody(model[0].net), dls, tmp_path, half=False)
    learn.freeze()
    assert torch.equal(learn.dls.train.dataset.groups, dls.train.dataset.groups)
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 1e-2)
        assert all(torch.equal(v, was[k]) for k,v in model[0].state_dict().items())
        z = find_head(model).bank.rows()[0]
        assert len(z)==20 and z.shape[1]==64
        got = torch.cat([b[0] for b in learn.dls.valid])
        assert torch.allclose(got.as_subclass(torch.Tensor), want.as_subclass(torch.Tensor), atol=1e-5)
        learn.dls = dls
        learn.unfreeze()
        learn.fit(1, 1e-2)
    assert not all(torch.equal(v, was[k]) for k,v in model[0].state_dict().items())

def test_features_of_no_validation_set(tmp_path):
    dls = _dls()
    dls = DataLoaders(dls.train, dls.valid.new(dls.valid_ds.subset(slice(0))), dls.valid)
    f = features_dls(FeatureBody(tile_cnn()), dls, tmp_path)
    assert [tuple(o.dataset.x.shape) for o in f]==[(40,64),(0,64),(20,64)]

def test_images_in_files_enter_the_fingerprint(tmp_path):
    "A set of image files: by name, size and time of change"
    import os
    from PIL import Image
    from memo.data.images import FileImages
    ps = [tmp_path/f'{i}.png' for i in range(3)]
    for i,p in enumerate(ps): Image.new('L', (8,8), i).save(p)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64,2))
    def key(): return features_key(net, TensorDL(dataset=TensorSet(FileImages(ps, 8), torch.zeros(3,2), split_idx=1)))
    a = key()
    assert key()==a
    os.utime(ps[1], (1,1))
    assert key()!=a
