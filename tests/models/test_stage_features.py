"Features of all stages: those of hooks on the network itself; bad input is one line"
import pytest, torch
from torch import nn
from torch.nn import functional as F
from memo.core import MemoError
from memo.models.backbones import load_backbone
from memo.models.stages import StageFeatures, stage_features, stages_model

def test_they_are_what_the_stages_give():
    net = load_backbone('resnet18').eval()
    x,maps = torch.rand(2, 3, 64, 64),[]
    own = net.act1,net.layer1,net.layer2,net.layer3,net.layer4
    hooks = [o.register_forward_hook(lambda m, a, out: maps.append(out)) for o in own]
    with torch.no_grad(): z = net(x)
    for o in hooks: o.remove()
    with torch.no_grad(): got = StageFeatures(net, 3)(x)
    want = torch.cat([z, *(F.adaptive_avg_pool2d(o, 3).flatten(1) for o in maps)], 1)
    torch.testing.assert_close(got, want)

@pytest.mark.parametrize('arch,size,at', [('tf_efficientnet_lite0', 64, None), ('convnext_atto', 64, [0,3]),
    ('test_vit', 160, [0]), ('vit_tiny_patch16_224', 224, [2,5]), ('regnetx_002', 64, None)])
def test_width_is_known(arch, size, at):
    m = stage_features(arch, pool=1, at=at).eval()
    with torch.no_grad(): assert m(torch.rand(2, 3, size, size)).shape==(2,m.num_features)

def test_bad_input_is_one_line():
    for f,say in ((lambda: StageFeatures(nn.Linear(2, 2)), 'a Linear does not'),
                  (lambda: stage_features('resnet18', at=[7]), '7; this'),
                  (lambda: stages_model('resnet18', at=[]), 'no stage')):
        with pytest.raises(MemoError, match=say) as e: f()
        assert '\n' not in str(e.value)
