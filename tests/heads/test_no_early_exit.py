"""Places where no row can leave: refused in one line for head='exit', and the network is as it was; whole for
head='dual'"""
import copy, pytest, timm, torch, torchvision, warnings
from torch import nn
from fastai.vision.models.unet import DynamicUnet
from helpers.errors import err
from helpers.tensors import close, draw
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.heads.attach import attach, detach, find_head, memories
from memo.heads.base import MemoryHead
from memo.heads.gate import ExitHead, GateHead

C = 5
def net(name, px=32, **kw):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=C, **kw).eval(),draw(2, 3, px, px)

def refused(m, x, at, cls=ExitHead, **kw):
    "The line, after which the network is bit by bit what it was"
    names = [n for n,_ in m.named_modules()]
    state,attrs = {k:v.clone() for k,v in m.state_dict().items()},{n:set(vars(o)) for n,o in m.named_modules()}
    hooks = {n:(len(o._forward_hooks),len(o._forward_pre_hooks)) for n,o in m.named_modules()}
    modes,rng = [o.training for o in m.modules()],torch.get_rng_state()
    line = err(attach, m, cls(SlotBank(4, n_classes=C)), at=at, name='early', x=x, **kw)
    assert [n for n,_ in m.named_modules()]==names and {n:set(vars(o)) for n,o in m.named_modules()}==attrs
    assert all(torch.equal(v, state[k]) for k,v in m.state_dict().items())
    assert {n:(len(o._forward_hooks),len(o._forward_pre_hooks)) for n,o in m.named_modules()}==hooks
    assert [o.training for o in m.modules()]==modes and torch.equal(rng, torch.get_rng_state())
    assert 'forward' not in vars(m) and not hasattr(m, '_ddp_params_and_buffers_to_ignore')
    return line

resnet = 'resnet18',32,{}
vit = 'vit_tiny_patch16_224',32,dict(img_size=32)
swin = 'swin_tiny_patch4_window7_224',64,dict(img_size=64, embed_dim=24, num_heads=(1,2,4,8))
@pytest.mark.parametrize('name,px,kw,at', [
    (*resnet,'layer1.0.conv1'), (*resnet,'layer2.0.bn2'), (*resnet,'layer3.0.downsample.0'),    # inside of a residual
    (*swin,'layers.0.blocks.0.attn'), (*swin,'layers.1.blocks.0.mlp'),                            # windows
    (*vit,'blocks.0.attn'), (*vit,'blocks.1.mlp'),
    ('efficientnet_b0',32,{},'blocks.1.1.se'), ('convnext_atto',32,{},'stages.1.blocks.0.conv_dw')])
def test_places_behind_which_shapes_depend_on_the_batch(name, px, kw, at):
    m,x = net(name, px, **kw)
    why = 'what is behind it does not work on some rows'
    assert refused(m, x, at).startswith(f'at: no row can leave the network early at {at!r}: {why}')
    with torch.no_grad(): plain = m(x)
    # a gate there lets nobody leave, and answers all the same
    attach(m, GateHead(SlotBank(4, n_classes=C), threshold=1.), at=at, x=x)
    assert find_head(m).shape is None
    with torch.no_grad(): close(m(x), plain)

@pytest.mark.parametrize('training', [True, False])
def test_in_training_mode_too(training):
    m,x = net('resnet18')
    m.train(training)
    refused(m, x, 'layer1.0.conv1')

class Steps(nn.Module):
    "Time first, the batch second"
    def __init__(self):
        super().__init__()
        self.emb,self.rnn,self.fc = nn.Linear(6, 8),nn.GRU(8, 8),nn.Linear(8, C)
    def forward(self, x): return self.fc(self.rnn(self.emb(x.transpose(0, 1)).relu())[0][-1])
class Together(nn.Module):
    "Rows are compared with the batch's mean"
    def __init__(self):
        super().__init__()
        self.a,self.b = nn.Linear(6, 8),nn.Linear(8, C)
        self.act = nn.ReLU()
    def forward(self, x):
        x = self.act(self.a(x))
        return self.b(x-x.mean(0))
class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.act,self.b = nn.Linear(6, 8),nn.ReLU(),nn.Linear(8, C)
        self.m = nn.Linear(8, 8)
    def forward(self, x): return self.b(self.act(self.m(self.act(self.a(x)))))
class Gives(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.a,self.act,self.b,self.form = nn.Linear(6, 8),nn.ReLU(),nn.Linear(8, C),form
    def forward(self, x):
        z = self.act(self.a(x))
        return self.form(self.b(z), z)
forms = dict(tuple=lambda o,z: (o,z[:,None]), dict=lambda o,z: dict(logits=o, features=z[None]))

@pytest.mark.parametrize('net,x,at,why', [
    (Steps, draw(4, 7, 6), 'emb', 'what is behind it does not work on some rows'),
    (Together, draw(4, 6), 'act', 'are computed together'), (Together, draw(1, 6), 'act', 'are computed together'),
    (Twice, draw(3, 6), 'act', 'it is called 2 times in a forward'),
    (lambda: Gives(forms['tuple']), draw(3, 6), 'act', 'the model gives a tuple'),
    (lambda: Gives(forms['dict']), draw(3, 6), 'act', 'the model gives a dict'),
    (lambda: Gives(lambda o,z: o[:,:,None]), draw(3, 6), 'act', r'the model gives (3, 5, 1)')])
def test_networks_that_cannot(net, x, at, why):
    torch.manual_seed(0)
    m = net().eval()
    line = refused(m, x, at)
    assert line.startswith(f'at: no row can leave the network early at {at!r}: ') and why in line

def test_a_unet_is_refused():
    torch.manual_seed(0)
    body = nn.Sequential(*[*torchvision.models.resnet18().children()][:-2])
    m,x = DynamicUnet(body, 4, (32,32)).eval(),draw(2, 3, 32, 32)
    assert 'no row can leave the network early' in refused(m, x, 'layers.0.4')

def test_what_the_name_of_a_place_has_to_be():
    m,x = net('resnet18')
    line = refused(m, x, 'layer')
    assert "'layer'" in line and 'layer1' in line
    line = refused(m, x, 'layr2.1')         # of 60 names those that are like it
    near = line.split(' is not one of ')[1].split(', ')
    assert "did you mean 'layer2.1'" in line and near[0]=='layer2.1' and {'layer2','layer1.1','layer3.1'}<={*near}
    assert "head='exit' needs at=" in refused(m, x, None) and "head='dual' is for that place" in refused(m, x, None)

def test_a_dense_block_takes_no_memory():
    torch.manual_seed(0)
    m = torchvision.models.densenet121(num_classes=C).eval()
    assert 'does not run with a memory there' in refused(m, draw(2, 3, 32, 32), 'features.denseblock1')

def test_a_memory_that_was_not_tried_says_so():
    m,x = net('resnet18')
    with pytest.warns(UserWarning, match="not tried whether rows can leave the network at 'layer1'"):
        attach(m, ExitHead(SlotBank(4, n_classes=C)), at='layer1')

def test_batches_of_one_are_tried_with_others():
    m,x = net('resnet18')
    attach(m, ExitHead(SlotBank(4, n_classes=C)), at='layer1', x=x[:1])
    assert find_head(m).shape==(C,)

def test_another_classifier():
    "Of other outputs nobody leaves early: all of the network is run, and the answers are of the new classes"
    m,x = net('resnet18')
    b = SlotBank(4, n_classes=C)
    b.write(draw(4, 64), y=torch.arange(4))
    attach(m, ExitHead(b, threshold=-1), at='layer1', x=x)
    with torch.no_grad(): assert m(x).shape==(2,C)
    with pytest.warns(UserWarning, match='reset_classifier'): m.reset_classifier(7)
    with torch.no_grad(): assert m(x).shape==(2,7)

def test_a_classifier_put_in_by_hand():
    m,x = net('resnet18')
    h = ExitHead(SlotBank(4, n_classes=C))
    attach(m, h, at='layer1', x=x)
    h.decide = lambda z,*_: (torch.arange(len(z))==0,torch.zeros(len(z), C),None)
    m.fc = nn.Linear(512, C+4)
    with torch.no_grad(): assert 'detach the memory and attach it again' in err(m, x)
