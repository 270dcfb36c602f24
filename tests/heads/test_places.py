"A memory sits in front of the layer that makes the answer, found by what is called; features lie where they lie"
import copy, json, pytest, timm, torch, torchvision
from fastai.layers import Flatten
from fastai.vision.learner import create_head
from pathlib import Path
from torch import nn
from torch.nn import functional as F
from helpers.grid import grid
from helpers.tensors import close, draw
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.heads.attach import attach, detach, find_head, holder
from memo.heads.base import MemoryHead
from memo.heads.calls import Step, in_step
from memo.heads.mixture import VoteHead
from memo.heads.places import Watched
from memo.heads.retrieval import RetrievalHead

def watcher(): return MemoryHead(SlotBank(8, policy='fifo'), k=1)

@torch.no_grad()
def captured(model, x, at=None, head=None, watch=True):
    "What a memory captures in a forward of `model`, and the name of the module it sits at"
    h = watcher() if head is None else head
    xs = x if isinstance(x, tuple) else (x,)
    attach(model, h, at, x=xs if watch else None)
    with in_step([h], Step()) as step: out = model(*xs)
    step.close(out)
    seen = step.seen(h)
    assert seen.times==1
    return seen.z,holder(model, h)[0]

def shaken(model):
    "With statistics of batches that are not those of a new network, which leave what passes as it is"
    torch.manual_seed(1)
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats:
            m.running_mean.normal_(0, .1)
            m.running_var.uniform_(.5, 1.5)
    return model.eval()

# timm: the smallest model of each family with less than 60 million parameters
families = json.loads((Path(__file__).parent/'timm_families.json').read_text())
several = ['crossvit_tiny_240', 'efficientvim_m1', 'levit_128s']      # classifiers, each with features of its own
quick = ['repvit_m1', 'cpubone_nano', 'iformer_t', 'efficientformerv2_s0', 'test_vit', 'lcnet_035', *several]

@pytest.mark.parametrize('arch', grid(families, rows=[(o,) for o in families], some=[(o,) for o in quick]))
def test_timms_families(arch):
    "What is captured is what timm itself calls the features in front of the classifier"
    torch.manual_seed(0)
    m = shaken(timm.create_model(arch, num_classes=3))
    x = draw(2, *m.pretrained_cfg['input_size'])
    if arch in several:
        with pytest.raises(MemoError, match=r'comes from \d layers .*at='): attach(m, watcher(), x=x)
        assert find_head(m) is None and 'forward' not in vars(m)
        return
    with torch.no_grad(): want,out = m.forward_head(m.forward_features(x), pre_logits=True),m(x)
    z,_ = captured(m, x)
    close(z, want.flatten(1), 1e-4)
    with torch.no_grad(): close(m(x), out)

def test_a_distilled_transformer_says_where_it_has_its_heads():
    m = timm.create_model('deit_tiny_distilled_patch16_224', num_classes=3, img_size=32).eval()
    x = draw(2, 3, 32, 32)
    with pytest.raises(MemoError, match=r"2 layers \(head, head_dist\).*at='head"): attach(m, watcher(), x=x)
    assert captured(m, x, 'head')[0].shape==(2,192)
    # without a batch as well
    with pytest.raises(MemoError, match='has 2 classifiers'):
        attach(timm.create_model('crossvit_tiny_240', num_classes=3), watcher())

# torchvision: the layer in front of which features are
vision = dict(squeezenet1_1='classifier.1', googlenet='fc', densenet121='classifier', shufflenet_v2_x0_5='fc',
    mobilenet_v3_small='classifier.3', swin_t='head', resnet18='fc', mnasnet0_5='classifier.1',
    convnext_tiny='classifier.2', efficientnet_b0='classifier.1', inception_v3='fc', mobilenet_v2='classifier.1',
    regnet_y_400mf='fc', vit_b_32='heads.head', maxvit_t='classifier.5', alexnet='classifier.6')
tv_quick = 'squeezenet1_1 googlenet densenet121 shufflenet_v2_x0_5 mobilenet_v3_small'.split()
@pytest.mark.parametrize('arch', grid(vision, rows=[(o,) for o in vision], some=[(o,) for o in tv_quick]))
def test_torchvisions_families(arch):
    torch.manual_seed(0)
    kw = dict(init_weights=False) if arch in ('googlenet','inception_v3') else {}
    m = shaken(torchvision.models.get_model(arch, weights=None, num_classes=3, **kw))
    side = 299 if arch=='inception_v3' else 224 if arch in ('vit_b_32','maxvit_t') else 96
    x,got = draw(2, 3, side, side),[]
    hook = m.get_submodule(vision[arch]).register_forward_pre_hook(lambda _,xs: got.append(xs[0].clone()))
    with torch.no_grad(): m(x)
    hook.remove()
    z,where = captured(m, x)
    assert where==vision[arch]
    close(z, got[0].mean((2,3)) if got[0].ndim==4 else got[0], 1e-4)

# what is declared is not what is called

class Attention(nn.Module):
    "Pools by attention, declared behind the classifier; `out_proj` is never called, only its weights are used"
    def __init__(self):
        super().__init__()
        self.stem,self.fc = nn.Conv2d(3, 8, 3),nn.Linear(8, 3)
        self.query,self.pool = nn.Parameter(draw(1, 1, 8)),nn.MultiheadAttention(8, 2, batch_first=True)
    def features(self, x):
        t = self.stem(x).flatten(2).transpose(1, 2)
        return self.pool(self.query.expand(len(t), -1, -1), t, t)[0][:,0]
    def forward(self, x): return self.fc(self.features(x))

class Backwards(nn.Module):
    def __init__(self):
        super().__init__()
        self.out,self.hidden,self.aux = nn.Linear(7, 3),nn.Linear(5, 7),nn.Linear(5, 9)
        self.body = nn.Conv2d(3, 5, 3)
    def features(self, x):
        z = self.body(x).mean((2,3))
        self.aux(z)                     # called last of all but one, and of no use to the answer
        return self.hidden(z).relu()
    def forward(self, x):
        z = self.features(x)
        out = self.out(z)
        self.aux(z[:,:5])
        return out

class Functional(nn.Module):
    "A classifier that is no module: cosines to learned rows"
    def __init__(self):
        super().__init__()
        self.rows,self.body = nn.Parameter(draw(3, 5)),nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1),
                                                                    nn.Flatten(), nn.ReLU())
    def features(self, x): return self.body(x)
    def forward(self, x): return 9*F.linear(F.normalize(self.features(x)), F.normalize(self.rows))

class OwnLayer(nn.Module):
    "The same as a module of its own"
    def __init__(self):
        super().__init__()
        self.rows = nn.Parameter(draw(3, 5))
    def forward(self, x): return 9*F.linear(F.normalize(x), F.normalize(self.rows))
class Cosine(nn.Module):
    def __init__(self):
        super().__init__()
        self.head,self.body,self.wide = OwnLayer(),nn.Conv2d(3, 5, 3),nn.Linear(5, 5)
    def features(self, x): return self.wide(self.body(x).mean((2,3)))
    def forward(self, x): return self.head(self.features(x))

class Lora(nn.Module):
    def __init__(self, base, r=2):
        super().__init__()
        self.base,self.a,self.b = base,nn.Linear(base.in_features, r, bias=False),nn.Linear(r, base.out_features)
    def forward(self, x): return self.base(x)+self.b(self.a(x))
class Adapted(nn.Module):
    def __init__(self):
        super().__init__()
        self.body,self.fc = nn.Sequential(Lora(nn.Linear(6, 5)), nn.ReLU()),Lora(nn.Linear(5, 3))
    def features(self, x): return self.body(x.mean((2,3))[:,[0,1,2]*2])
    def forward(self, x): return self.fc(self.features(x))

class TwoHeads(nn.Module):
    "Two classifiers of the same features, which a module pools"
    def __init__(self):
        super().__init__()
        self.body,self.pool,self.a,self.b = nn.Conv2d(3, 5, 3),nn.AdaptiveAvgPool2d(1),nn.Linear(5, 3),nn.Linear(5, 3)
        self.last = nn.Flatten()
    def features(self, x): return self.last(self.pool(self.body(x)))
    def forward(self, x):
        z = self.features(x)
        return (self.a(z)+self.b(z))/2

class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc,self.body = nn.Linear(5, 3),nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    def features(self, x): return self.body(x)
    def forward(self, x): return self.fc(input=self.features(x))

made = [Attention, Backwards, Functional, Cosine, Adapted, TwoHeads]
@pytest.mark.parametrize('make', made)
@pytest.mark.parametrize('head', [RetrievalHead, VoteHead])
def test_places_are_those_of_the_call(make, head):
    torch.manual_seed(0)
    m,x = make().eval(),draw(2, 3, 9, 9)
    with torch.no_grad(): want,out = m.features(x),m(x)
    names = list(m.state_dict())
    z,_ = captured(m, x, head=head(SlotBank(8, policy='fifo'), k=1))
    close(z, want)
    find_head(m).bank.write(z+1, y=torch.arange(2))
    with torch.no_grad(): assert not torch.allclose(m(x), out)
    detach(m)
    with torch.no_grad(): assert torch.equal(m(x), out) and list(m.state_dict())==names

def test_a_layer_called_by_keyword_has_its_place_behind_what_comes_before():
    m,x = ByKeyword().eval(),draw(2, 3, 9, 9)
    with torch.no_grad(): close(captured(m, x)[0], m.features(x))

def test_scores_are_no_features():
    "fastai's own first network ends in a Flatten"
    m = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 3, 3), nn.AdaptiveAvgPool2d(1), Flatten()).eval()
    x = draw(2, 3, 9, 9)
    z,where = captured(m, x)
    close(z, m[:2](x).mean((2,3)))
    assert where=='2'
    m = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), create_head(8, 3)).eval()
    z,where = captured(m, x)
    close(z, m[1][1](m[1][0](m[0](x))))
    assert where=='1.1'

def test_watching_changes_nothing():
    m,x = shaken(timm.create_model('resnet18', num_classes=3)).train(),draw(2, 3, 32, 32)
    m.layer1.eval()
    was,modes = copy.deepcopy(m.state_dict()),[o.training for o in m.modules()]
    rng = torch.get_rng_state()
    w = Watched(m, x)
    assert [o.training for o in m.modules()]==modes and torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(v, was[k]) for k,v in m.state_dict().items()) and w.path==()
    assert not any(o._forward_hooks or o._forward_pre_hooks for o in m.modules())
    with pytest.raises(RuntimeError): Watched(m, draw(2, 5, 32, 32))
    assert not any(o._forward_hooks or o._forward_pre_hooks for o in m.modules())

class Leaves(nn.Module):
    "A model whose forward leaves something behind"
    def __init__(self):
        super().__init__()
        self.body,self.fc = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True)),nn.Linear(6, 3)
    def forward(self, x): return self.fc(self.leave(self.body(x)))
class Counts(Leaves):
    n = 0
    def __init__(self):
        super().__init__()
        self.register_buffer('steps', torch.tensor(0))
    def leave(self, z):
        self.n,self.last = self.n+1,z
        self.steps += 1
        return z
class Hidden(Leaves):
    def __init__(self):
        super().__init__()
        self.rnn,self.h = nn.GRU(6, 6, batch_first=True),None
    def leave(self, z):
        out,self.h = self.rnn(z[:,None], self.h)
        return out[:,0]
class Draws(Leaves):
    def leave(self, z): return z+torch.randn_like(z)
class Statistics(Leaves):
    "BatchNorm that goes on in evaluation mode"
    def leave(self, z): return z
    def train(self, mode=True):
        super().train(mode)
        self.body[1].train()
        return self
class Merges(Leaves):
    "As loralib's layers: one matrix in evaluation mode"
    merged = False
    def leave(self, z): return z
    def train(self, mode=True):
        super().train(mode)
        if mode==self.merged: self.fc.weight.data.mul_(.5 if mode else 2)
        self.merged = not mode
        return self

@pytest.mark.parametrize('made', [Counts, Hidden, Draws, Statistics, Merges])
@pytest.mark.parametrize('fails', [False, True])
def test_watching_leaves_what_a_forward_leaves_behind(made, fails):
    m,x = made(),draw(4, 6)
    if fails: m.fc = nn.Linear(5, 3)
    was,attrs = copy.deepcopy(m.state_dict()),{k:v for k,v in vars(m).items() if k[0]!='_'}
    rng,modes = torch.get_rng_state(),[o.training for o in m.modules()]
    if fails:
        with pytest.raises(RuntimeError): Watched(m, x)
    else: assert Watched(m, x).place()==(m.fc,True)
    assert all(torch.equal(v, was[k]) for k,v in m.state_dict().items())
    assert {k:v for k,v in vars(m).items() if k[0]!='_'}==attrs and torch.equal(torch.get_rng_state(), rng)
    assert [o.training for o in m.modules()]==modes

# along which axis features lie

class Conv1d(nn.Module):
    def __init__(self):
        super().__init__()
        self.body,self.fc = nn.Sequential(nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.ReLU()),nn.Linear(6, 3)
    def forward(self, x): return self.fc(self.body(x).mean(2))
class Conv3d(nn.Module):
    def __init__(self):
        super().__init__()
        self.body,self.fc = nn.Sequential(nn.Conv3d(1, 6, 2), nn.ReLU()),nn.Linear(6, 3)
    def forward(self, x): return self.fc(self.body(x).mean((2,3,4)))

def swin_timm(): return timm.create_model('swin_tiny_patch4_window7_224', num_classes=3, img_size=64, depths=(1,1,1,1),
                                          embed_dim=24, num_heads=(1,2,4,8), window_size=2)
axes = {'swin, timm':(swin_timm, 'layers.2', (3,64,64), 3, 96),
        'swin, torchvision':(lambda: torchvision.models.swin_transformer.SwinTransformer([4,4], 24, [1,1], [1,2], [2,2],
                                                                                        num_classes=3),
                             'features.3', (3,32,32), 3, 48),
        'convnext, between':(lambda: timm.create_model('test_convnext', num_classes=3), 'stages.0.blocks.0.mlp',
                             (3,64,64), 3, None),
        'convnext, a stage':(lambda: timm.create_model('test_convnext', num_classes=3), 'stages.1', (3,64,64), 1, None),
        'mambaout':(lambda: timm.create_model('test_mambaout', num_classes=3), 'stages.1', (3,64,64), 3, None),
        'series':(Conv1d, 'body', (2,16), 1, 6), 'volumes':(Conv3d, 'body', (1,5,5,5), 1, 6)}
@pytest.mark.parametrize('kind', axes)
def test_features_lie_along_their_axis(kind):
    make,at,shape,axis,width = axes[kind]
    torch.manual_seed(0)
    m,got = make().eval(),[]
    x = draw(2, *shape)
    hook = m.get_submodule(at).register_forward_hook(lambda _,xs,o: got.append(o.clone()))
    with torch.no_grad(): m(x)
    hook.remove()
    f = got[0]
    want = f.mean([i for i in range(1, f.ndim) if i!=axis])
    assert width in (None, want.shape[1])
    h = RetrievalHead(SlotBank(8, policy='fifo'), k=1)
    z,_ = captured(m, x, at, head=h)
    close(z, want)
    h.bank.write(z, item=torch.arange(2))
    other = attach(make().eval(), RetrievalHead(SlotBank(8, policy='fifo'), k=1), at)
    if kind!='volumes' or find_head(other).axis is not None:
        other.load_state_dict(m.state_dict())                # the axis is part of what is saved
        with torch.no_grad(): close(other(x), m(x))
    with torch.no_grad(): close(h(f)-f, h.bank.read(z, 1).value.reshape([2 if i==0 else -1 if i==axis else 1
                                                                          for i in range(f.ndim)]).expand(f.shape))
