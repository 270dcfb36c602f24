"""Every bank, head, kind of backbone and kind of target: one small fit, and the bank is right (a ClassBank does
not vote on multi-label targets: one line says so)"""
import random, pytest, timm, torch
from fastai.vision.all import Callback, DataLoaders, Learner, accuracy, accuracy_multi, nn, params, set_seed
from sklearn.datasets import load_digits
from helpers.grid import grid
from memo.heads.attach import attach, find_place
from memo.banks.slots import SlotBank
from memo.banks.classes import ClassBank
from memo.training.memory_callback import MemoryCallback
from memo.core import MemoError
from memo.data.transforms import ResizeBatch
from memo.data.tensors import TensorDL, TensorSet
from memo.heads.retrieval import RetrievalHead
from memo.heads.calls import Step, in_step

_d = load_digits()
X,Y = torch.from_numpy(_d.images*(255/16)).round().byte()[:,None],torch.from_numpy(_d.target).long()
M = torch.stack([Y%2==0, Y>4, Y%3==0, Y==7], 1).float()
N = 24

class Plain(nn.Module):
    "Somebody's own network: no Flatten module, no timm, and a name for everything"
    def __init__(self, c):
        super().__init__()
        self.conv,self.bn,self.mid,self.out = nn.Conv2d(3, 12, 3, stride=2),nn.BatchNorm2d(12),nn.Linear(12,
            20),nn.Linear(20, c)
    def forward(self, x): return self.out(self.mid(torch.relu(self.bn(self.conv(x))).mean((2,3))).relu())

backbones = dict(   # maker, where the features enter the classifier, width
    resnet18 = (lambda c: timm.create_model('resnet18', num_classes=c), 'fc', 512),
    densenet121 = (lambda c: timm.create_model('densenet121', num_classes=c), 'classifier', 1024),
    efficientnet_lite0 = (lambda c: timm.create_model('tf_efficientnet_lite0', num_classes=c), 'classifier', 1280),
    vit_tiny = (lambda c: timm.create_model('vit_tiny_patch16_224', num_classes=c, img_size=32), 'head', 192),
    plain = (Plain, 'out', 20))
heads = 'add','vote',None
small = 'resnet18','vit_tiny','plain'
large = 'densenet121','efficientnet_lite0'      # which take most of the time: one test of each
of_large = ('classes','vote','efficientnet_lite0',False),('slot','add','densenet121',True)
banks = dict(slot=lambda c: SlotBank(2*N, policy='fifo'), classes=lambda c: ClassBank(c, capacity=N))

def dls(multi):
    y = M if multi else Y
    vocab = list('abcd') if multi else list(range(10))
    def mk(i, s, **kw):
        return TensorDL(dataset=TensorSet(X[i], y[i], torch.arange(len(X))[i], vocab, s), bs=8,
                        tfms=[ResizeBatch(32, 3)], **kw)
    res = DataLoaders(mk(slice(0,N), 0, shuffle=True), mk(slice(1000,1008), 1), device='cpu')
    res.train.rng = random.Random(0)
    return res

class Rows(Callback):
    "Features that enter the classifier, by item; the order of an epoch is read off the labels' images"
    order,run_valid = 100,False
    def __init__(self, at): self.at,self.held,self.n = at,{},0
    def before_batch(self):
        self.hook = self.model.get_submodule(self.at).register_forward_pre_hook(lambda m,
            a: setattr(self, 'f', a[0].detach().clone()), prepend=True)
    def after_pred(self):
        self.hook.remove()
        small = self.xb[0].as_subclass(torch.Tensor).mean(1)
        ids = torch.cdist(small.flatten(1), self.known).argmin(1)
        self.ids = ids.tolist()
        self.held.update(zip(self.ids, self.f))
        self.n += len(ids)
    def before_fit(self):
        dl = self.dls.train.new(shuffle=False)
        self.known = torch.cat([b[0].as_subclass(torch.Tensor).mean(1).flatten(1) for b in dl])

def learner(bank, head, backbone, multi, path, seed=0):
    set_seed(seed)
    d = dls(multi)
    return Learner(d, backbones[backbone][0](d.c), metrics=accuracy_multi if multi else accuracy, path=path,
                   splitter=params,
                   cbs=MemoryCallback(banks[bank](d.c), head=head, k=3))

@pytest.mark.slow
@pytest.mark.parametrize('bank,head,backbone,multi', [*grid(banks, heads, small, [False,True]),
                                                      *grid(banks, heads, large, [False,True], some=of_large)])
def test_matrix(tmp_path, bank, head, backbone, multi):
    _,at,width = backbones[backbone]
    learn = learner(bank, head, backbone, multi, tmp_path)
    assert find_place(learn.model)[0]==at
    if (bank,head,multi)==('classes','vote',True):
        with pytest.raises(MemoError, match='SlotBank'), learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
        return
    rows = Rows(at)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3, cbs=rows)
    b = learn.memory.bank
    f,_,y,i,_,valid = b.rows()
    if valid is not None: f,y,i = f[valid],y[valid],i[valid]
    assert b.dim==width and rows.n==N
    want = torch.stack([rows.held[o] for o in i.tolist()])
    if bank=='slot':
        assert sorted(i.tolist())==list(range(N))
        assert torch.equal(f, want) and torch.equal(y, (M if multi else Y)[i])
    else:                                  # a row for every class of an item, of unit length
        torch.testing.assert_close(f, torch.nn.functional.normalize(want), rtol=1e-5, atol=1e-6)
        want = M[:N].nonzero().tolist() if multi else [[o,int(Y[o])] for o in range(N)]
        assert sorted([a,b] for a,b in zip(i.tolist(), y.tolist()))==want
    with learn.no_bar(): p,t = learn.get_preds()
    assert torch.isfinite(p).all() and p.shape==(8, 4 if multi else 10) and ((p>=0)&(p<=1)).all()
    if not multi: torch.testing.assert_close(p.sum(1), torch.ones(8))
    with learn.memory.off(), learn.no_bar(): q,_ = learn.get_preds()
    assert torch.equal(p, q)==(head is None)
    learn.save('m')
    new = learner(bank, head, backbone, multi, tmp_path, seed=1)
    new.load('m')
    a,c = learn.model.state_dict(),new.model.state_dict()
    assert a.keys()==c.keys() and all(torch.equal(a[k], c[k]) for k in a)
    with new.no_bar(): assert torch.equal(p, new.get_preds()[0])

@pytest.mark.parametrize('name', ['resnetv2_18','mobilenetv3_small_050','convnext_atto','regnetx_002'])
def test_features_of_other_timm_models_are_not_their_logits(name):
    "The memory sits in front of the classifier, also where that is a 1x1 convolution"
    m = timm.create_model(name, num_classes=7).eval()
    bank = SlotBank(4, policy='fifo')
    head = RetrievalHead(bank, k=1)
    attach(m, head)
    with torch.no_grad(), in_step([head], Step()) as step: m(torch.randn(2,3,64,64))
    step.close()
    z = step.seen(head).z
    assert z.ndim==2 and z.shape[1]!=7
