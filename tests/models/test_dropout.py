"Dropout in front of a timm network's classifier: a memory sees the features as they are, the network learns with less"
import pytest, torch
from fastai.vision.all import CrossEntropyLossFlat, DataLoaders, Learner, set_seed
from helpers.learners import quietly
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.data.tensors import TensorDL
from memo.models.backbones import linear_head, load_backbone, timm_model
from memo.training.memory_callback import MemoryCallback
from memo.training.param_groups import body_head_splitter

archs = ['resnet18','mobilenetv3_small_050','convnext_atto','vit_tiny_patch16_224']

def dls(size):
    x,y = torch.rand(8, 3, size, size),torch.arange(8)%4
    mk = lambda **kw: TensorDL(x, y, bs=8, **kw)
    return DataLoaders(mk(shuffle=True), mk(), device='cpu')

@pytest.mark.parametrize('arch', archs)
def test_a_memory_sees_whole_features(arch, monkeypatch):
    "In training too: none of them is dropped where they are stored, some are where the classifier gets them"
    set_seed(0)
    m = timm_model(arch, n_classes=4, dropout=.5)
    learn = Learner(dls(224 if 'vit' in arch else 64), m, loss_func=CrossEntropyLossFlat(), splitter=body_head_splitter,
                    cbs=MemoryCallback(SlotBank(8, policy='fifo'), head='watch'))
    got,linear = [],torch.nn.functional.linear
    def look(x, w, b=None):
        if w is m.get_classifier().weight: got.append(x.detach())
        return linear(x, w, b)
    monkeypatch.setattr(torch.nn.functional, 'linear', look)
    quietly(learn, learn.fit, 1, 0.)        # nothing moves
    z,seen = learn.memory.bank.features,got[-2]
    assert z.shape==seen.shape and .35<(seen[z!=0]==0).float().mean()<.65
    kept = seen!=0
    assert torch.allclose(seen[kept], 2*z[kept], atol=1e-4)

def test_without_it_the_network_is_timms():
    a = timm_model('resnet18', n_classes=4)
    assert [*a.state_dict()]==[*load_backbone('resnet18', num_classes=4).state_dict()]
    b = timm_model('resnet18', n_classes=4, dropout=.3).eval()
    b.load_state_dict(a.state_dict())
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad(): assert torch.equal(a.eval()(x), b(x)) and not torch.equal(b.train()(x), b(x))
    assert type(b.fc)(b.fc, .1).weight is b.fc.weight
    assert [len(o) for o in body_head_splitter(b)]==[60,2]
    assert [*timm_model('resnet18', dropout=.3).state_dict()]==[*load_backbone('resnet18').state_dict()]   # features

def test_of_frozen_features():
    assert linear_head(8).get_submodule('2').p==.5 and linear_head(8, dropout=0.).get_submodule('2').p==0

def test_a_classifier_that_is_not_linear():
    with pytest.raises(MemoError, match='dropout: the classifier of this .* is a Conv2d; null, or'):
        timm_model('dla34', n_classes=4, dropout=.1)
