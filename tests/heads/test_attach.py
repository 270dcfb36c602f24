"What is recalled changes features or answers as the formula says, anywhere in any model, and can be taken out again"
import copy, io, pickle, pytest, timm, torch
from fastcore.basics import AttrDict
from fastai.layers import Flatten
from fastai.vision.learner import create_head
from torch import nn
from torch.nn import functional as F
from helpers.tensors import close, draw
from memo.banks.slots import SlotBank
from memo.banks.classes import ClassBank
from memo.core import MemoError
from memo.heads.attach import attach, detach, find_head, find_place, memories
from memo.heads.base import MemoryHead, flat
from memo.heads.calls import Step, in_call, in_step
from memo.heads.retrieval import RetrievalHead
from memo.heads.mixture import VoteHead, mix_votes
from memo.banks.search import read_rows, within_whitener

def bank(n=12, d=4, c=3, seed=1, multi=False, **kw):
    b = SlotBank(n, policy='fifo', **kw)
    y = torch.arange(n)%c
    b.write(draw(n, d, seed=seed), y=F.one_hot(y, c).float() if multi else y, item=torch.arange(n))
    return b
def net(d=4, c=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, d), nn.ReLU(), nn.Linear(d, c))

def watched(model, head, x, **kw):
    "What a model, or a head by itself, makes of `x` as a batch with these ids, and what the head saw"
    with in_step([head], Step(**kw)) as step:
        if model is head:
            with in_call(head): out = head(x)
        else: out = model(x)
    step.close()
    return out,step.seen(head)
def fitted(h, logits, z, y, **kw): return h.fit(AttrDict(logits=logits, z=z, y=y), **kw)

# z + sum w m
@pytest.mark.parametrize('kw',
                         [{}, dict(temperature=.1, similarity='euclidean'), dict(normalize='query', rescale=True)])
def test_retrieval_head_is_the_formula(kw):
    b,z = bank(),draw(5, 4)
    h = RetrievalHead(b, k=3, **kw).eval()
    r = b.read(z, k=3, **kw)
    v = torch.stack([sum(w*b.features[j] for w,j in zip(r.weight[i], r.index[i])) for i in range(5)])
    if h.rescale: v = F.normalize(v)*z.norm(dim=1, keepdim=True)
    close(h(z), z+v)
    out,seen = watched(h, h, z)
    assert torch.equal(seen.read.index, r.index) and torch.equal(out, h(z))
    with h.off(): assert torch.equal(h(z), z)
    assert h.on

def test_nobody_recalls_himself_in_training():
    b = bank()
    h,z = RetrievalHead(b, k=1),b.features.clone()
    me,group = torch.arange(12),torch.arange(12)//6
    out,seen = watched(h, h, z, item=me)
    close(out, z+b.read(z, k=1, item=me).value)
    assert (seen.read.index.squeeze(1)!=me).all()
    b.groups.copy_(group)
    seen = watched(h, h, z, group=group)[1]; assert (b.groups[seen.read.index.squeeze(1)]!=group).all()
    h.eval()
    # at inference there is nobody to hide
    seen = watched(h, h, z, item=me, group=group)[1]; assert (seen.read.index.squeeze(1)==me).all()
    # unless that is asked for
    seen = watched(h, h, z, item=me, hide=True)[1]; assert (seen.read.index.squeeze(1)!=me).all()

def test_gradient_goes_through_the_feature_and_the_weights():
    b,z = bank(),draw(5, 4).requires_grad_()
    h = RetrievalHead(b, k=3)
    h(z).sum().backward()
    w, = torch.autograd.grad(b.read(z, k=3).value.sum(), z)
    close(z.grad, 1+w); assert w.abs().max()>1e-3
    assert not [p for p in h.parameters()]

@pytest.mark.parametrize('kind', ['new','reset'])
def test_an_empty_memory_changes_nothing(kind):
    for b in (SlotBank(12), ClassBank(3, 4)):
        if kind=='reset': b.write(draw(3, 4), y=torch.arange(3)); b.reset()
        for h in (RetrievalHead(b, k=3), VoteHead(b, k=3)):
            m = attach(net(), h).eval()
            x = draw(5, 6).requires_grad_()
            out = m(x)
            with h.off(): assert torch.equal(out, m(x))
            out.sum().backward(); assert x.grad.isfinite().all()

@pytest.mark.parametrize('shape', [(5,4), (5,4,3,2), (5,7,4)])
def test_maps_and_tokens(shape):
    b,x = bank(),draw(*shape)
    z = x if x.ndim==2 else x.flatten(2).mean(2) if x.ndim==4 else x.mean(1)
    h = RetrievalHead(b, k=2).eval()
    v = b.read(z, k=2).value
    v = v if x.ndim==2 else v[:,None] if x.ndim==3 else v[:,:,None,None]
    out,seen = watched(h, h, x)
    close(out-x, v.expand(shape))
    close(seen.z, z)
    with pytest.raises(MemoError, match='at='): flat(draw(1, 2, 3, 4, 5))

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_passes(dtype):
    b,z = bank(),draw(5, 4).to(dtype)
    out = RetrievalHead(b, k=3)(z)
    assert out.dtype==dtype and torch.equal(out, z+b.read(z.float(), k=3).value.to(dtype))

def test_nothing_of_a_forward_stays_on_the_model():
    "What a head saw is in the step that is open, and nowhere else"
    for h in (RetrievalHead(bank(), k=2), VoteHead(bank(), k=2), MemoryHead(bank(), k=2)):
        m = attach(net(), h).eval()
        was = {n:dict(vars(o)) for n,o in m.named_modules()}
        m(draw(3, 6))
        out,seen = watched(m, h, draw(3, 6))
        assert seen.z.shape==(3,4) and h.z is None and h.step is None
        for n,o in m.named_modules():
            assert vars(o).keys()==was[n].keys() and all(v is was[n][k] for k,v in vars(o).items()
                                                         if not isinstance(v, dict)), n
        shut = Step(open=False)
        with in_step([h], shut): m(draw(3, 6))
        assert shut.close() is None and shut.seen(h) is None

@pytest.mark.parametrize('make,say',
                         [(lambda b: RetrievalHead(b, k=13),'k=13.*1..12'),
                          (lambda b: RetrievalHead(b, k=0),'k must be a whole number from 1, found 0'),
                          (lambda b: RetrievalHead(b, temperature=0),'temperature'),
    (lambda b: RetrievalHead(b, temperature=-1),'temperature'), (lambda b: VoteHead(b, k=3, weight=0.),'weight'),
    (lambda b: VoteHead(b, k=3, weight=1),'weight'),
    (lambda b: VoteHead(b, k=3, temperature=0),'temperature'),
    (lambda b: RetrievalHead(b, similarity='cosin'),"did you mean 'cosine'"),
    (lambda b: RetrievalHead(b, normalize='quer'),"did you mean 'query'"),
    (lambda b: VoteHead(b, k=3, similarity='euclid'),"did you mean 'euclidean'")])
def test_bad_arguments(make, say):
    "When the head is made, not in the middle of the first epoch"
    with pytest.raises(MemoError, match=say): make(bank())

# the vote
def nll(p, y): return torch.stack([-p[y==c,c].log().mean() for c in y.unique()]).mean()

@pytest.mark.parametrize('balanced', [False, True])
@pytest.mark.parametrize('make', [lambda: bank(), lambda: bank(n_classes=5), lambda: ClassBank(3, 4)],
                         ids=['slots','more','class'])
def test_vote_is_the_mixture(balanced, make):
    b = make()
    if isinstance(b, ClassBank): b.write(draw(9, 4), y=torch.arange(9)%3)
    c = b.n_classes or 3
    h = VoteHead(b, k=5, balanced=balanced, weight=.3).eval()
    m = attach(net(c=c).eval(), h)
    x = draw(6, 6)
    with h.off(): own = m(x).softmax(1)
    out = m(x)
    v = h.votes(m[1](m[0](x)))
    close(out.exp(), .7*own+.3*v); close(out.exp().sum(1), torch.ones(6)); close(v.sum(1), torch.ones(6))
    close(watched(m, h, x)[1].raw.softmax(1), own)

def test_vote_multilabel():
    b = bank(multi=True)
    h = VoteHead(b, k=5, weight=.3).eval()
    m = attach(net().eval(), h)
    x = draw(6, 6)
    with h.off(): own = m(x)
    close(m(x), .7*own+.3*torch.logit(h.votes(m[1](m[0](x)))), 1e-4)

def test_votes_for_findings_are_shares_with_one_row_more():
    "Each vote by hand: the recalled rows' weights, and one row of the memory's own frequencies"
    b = bank(n=20, multi=True)
    b.write(draw(3, 4, seed=5))                                    # rows without labels neither vote nor count
    h,q = VoteHead(b, k=6).eval(),draw(5, 4, seed=8)
    r,v = b.read(q, k=6, temperature=h.temperature),h.votes(q)
    known = b.labels[b.labels[:,0]>=0]
    usual = (known.sum(0)+.5)/(len(known)+1)
    for i in range(5):
        js = [(w,b.labels[j]) for w,j in zip(r.weight[i], r.index[i]) if b.labels[j,0]>=0]
        share = sum(w*y for w,y in js)/sum(w for w,_ in js)
        close(v[i], (len(js)*share+usual)/(len(js)+1), 1e-5)
    assert v.min()>0 and v.max()<1 and torch.equal(VoteHead(b, k=6, balanced=False).eval().votes(q), v)

def test_training_is_not_touched():
    h = VoteHead(bank(), k=5)
    m = attach(net(), h).train()
    x = draw(6, 6)
    assert torch.equal(m(x), net()(x))
    m.eval(); assert not torch.allclose(m(x), net()(x))
    with h.off(): assert torch.equal(m(x), net()(x))

def test_the_network_answers_alone_where_nothing_votes():
    b = bank()
    b.labels.fill_(-1)
    h = VoteHead(b, k=3).eval()
    z = draw(4, 3)
    close(mix_votes(z, torch.zeros(4, 3), .5), z.log_softmax(1))
    b = SlotBank(12, policy='fifo'); b.write(draw(3, 4))
    m = attach(net(), VoteHead(b, k=2)).eval()
    with pytest.raises(MemoError, match='labels'): m(draw(2, 6))

def test_a_class_the_memory_never_met():
    "The last class of the network has no row: the vote is as wide as the network"
    b = bank(c=3)                                                  # labels 0..2, told of no number of classes
    m = attach(net(c=5), VoteHead(b, k=5, weight=.4)).eval()
    p = m(draw(6, 6)).exp()
    assert p.shape==(6,5); close(p.sum(1), torch.ones(6)); assert (p>0).all()

def test_a_sure_network_and_a_sure_memory_stay_finite():
    z = torch.tensor([[200.,-200,0],[-1e4,1e4,0]])
    v = torch.tensor([[0.,1,0],[0,1,0]])
    assert mix_votes(z, v, .5).isfinite().all() and mix_votes(z, v, .5, multilabel=True).isfinite().all()
    close(mix_votes(z[:1], v[:1], .5).exp(), [[.5,.5,0]])

def blobs(n, seed, d=6, c=3, noise=1.):
    y = torch.arange(n)%c
    return 2*draw(c, d, seed=99)[y]+noise*draw(n, d, seed=seed),y

@pytest.mark.parametrize('multi', [False, True])
def test_fit_lowers_the_loss(multi):
    x,y = blobs(90, 1)
    zv,yv = blobs(60, 2)
    logits = draw(60, 3, seed=5)+F.one_hot(yv, 3)*.5
    if multi: y,yv = F.one_hot(y, 3).float(),F.one_hot(yv, 3).float()
    b = SlotBank(90, policy='fifo'); b.write(x, y=y)
    h = VoteHead(b, k=10).eval()
    got = fitted(h, logits, zv, yv)
    assert got['nll_mixture']<got['nll_network']-.1 and 0<got['weight']<1 and 0<float(h.weight)<1
    out = mix_votes(logits, h.votes(zv), h.weight, multi)          # what the model would now say
    loss = F.binary_cross_entropy_with_logits(out, yv).item() if multi else nll(out.exp(), yv).item()
    close(got['nll_mixture'], loss, 1e-3)
    close(got['nll_network'], F.binary_cross_entropy_with_logits(logits, yv).item() if multi
          else nll(logits.softmax(1), yv).item())
    for w in (.05, .3, .5, .8):                                    # nothing on a coarse grid is better
        for t in (.02, .07, .3, 1.):
            o = mix_votes(logits, h.votes(zv, temperature=torch.tensor(t)), w, multi)
            o = F.binary_cross_entropy_with_logits(o, yv) if multi else nll(o.exp(), yv)
            assert o.item()>=got['nll_mixture']-2e-3

def test_fit_weighs_what_helps():
    x,y = blobs(90, 1)
    zv,yv = blobs(60, 2)
    b = SlotBank(90, policy='fifo'); b.write(x, y=y)
    h = VoteHead(b, k=10)
    blind = fitted(h, draw(60, 3), zv, yv)['weight']
    sure = fitted(h, 8.*F.one_hot(yv, 3), draw(60, 6, seed=7), yv)['weight']
    assert blind>.8 and sure<.1 and sure>0

def test_fit_chooses_k_and_whitening():
    x,y = blobs(120, 1)
    zv,yv = blobs(60, 2)
    # one direction that says nothing, thirty times as loud
    loud = torch.eye(6); loud[0,0] = 30
    b = SlotBank(120, policy='fifo')
    x[:,0],zv[:,0] = draw(120, seed=11),draw(60, seed=12)
    b.write(x@loud, y=y)
    h = VoteHead(b, k=5)
    logits = draw(60, 3)
    got = fitted(h, logits, zv@loud, yv, k=(1,5,20), whiten=(False,True))
    assert got['whiten'] and h.whiten and h.k==got['k'] and h.whitener is not None
    each = {}
    for w in (False, True):
        for k in (1,5,20): each[k,w] = fitted(VoteHead(b, k=k, whiten=w), logits, zv@loud, yv)['nll_mixture']
    assert min(each, key=each.get)==(got['k'],True)
    close(got['nll_mixture'], min(each.values()), 1e-4)
    out = mix_votes(logits, h.eval().votes(zv@loud), h.weight)
    close(nll(out.exp(), yv), got['nll_mixture'], 1e-3)
    got = fitted(h, logits, zv@loud, yv, whiten=(False,))
    assert not h.whiten and h.whitener is None

def test_fit_of_an_empty_memory():
    with pytest.raises(MemoError, match='empty'):
        fitted(VoteHead(SlotBank(30)), draw(3, 2), draw(3, 4), torch.tensor([0,1,1]))

@pytest.mark.parametrize('make', [lambda: bank(30, 5), lambda: ClassBank(3, 12)], ids=['slots','class'])
def test_whitened_read_is_the_cosine_of_whitened_features(make):
    "Centred on the rows, mapped by `within_whitener`"
    b = make()
    if len(b)==0: b.write(draw(30, 5, seed=1), y=torch.arange(30)%3)
    h = VoteHead(b, k=7, whiten=True, temperature=.2)
    z = draw(8, 5)
    f,_,y,_,_,valid = b.rows()
    ok = torch.ones(len(f), dtype=torch.bool) if valid is None else valid
    w = within_whitener(f[ok], y[ok])
    c = f[ok].mean(0)
    q = F.normalize(z) if b.unit else z
    want = read_rows((q-c)@w, (f-c)@w, 7, temperature=.2, valid=valid)
    r = h.recall(z)
    assert torch.equal(r.index, want.index)
    close(r.similarity, want.similarity, 1e-4); close(r.weight, want.weight, 1e-4)

def test_whitening_sees_new_rows():
    "What was kept is worked out again when the bank has changed"
    b = SlotBank(20, policy='fifo'); b.write(draw(10, 5), y=torch.arange(10)%3)
    h = VoteHead(b, k=4, whiten=True)
    h.recall(draw(3, 5))
    b.write(5*draw(15, 5, seed=4), y=torch.arange(15)%3)
    r,w,c = h.recall(draw(3, 5)),h.whitener,h.centre
    want = read_rows((draw(3, 5)-c)@w, (b.features-c)@w, 4, temperature=.07)
    assert torch.equal(r.index, want.index); close(r.similarity, want.similarity, 1e-4)

@pytest.mark.parametrize('whiten', [False, True])
def test_a_fitted_vote_is_saved(whiten):
    x,y = blobs(60, 1)
    zv,yv = blobs(30, 2)
    def made(): return VoteHead(SlotBank(60, policy='fifo'), k=5)
    h = made(); h.bank.write(x, y=y); fitted(h, draw(30, 3), zv, yv, k=(3,8), whiten=(whiten,))
    n = made(); n.load_state_dict(h.state_dict())
    n.eval(); h.eval()
    assert (n.k,n.whiten)==(h.k,h.whiten) and torch.equal(n.votes(zv), h.votes(zv)) and torch.equal(n.weight, h.weight)
    for o in (copy.deepcopy(h), pickle.loads(pickle.dumps(h))): assert torch.equal(o.votes(zv), h.votes(zv))
    h.load_state_dict(made().state_dict())                          # and back to before the fit
    assert h.whitener is None and len(h.bank)==0

def test_a_state_of_another_head():
    h = RetrievalHead(bank(), k=2)
    with pytest.raises(MemoError, match='VoteHead'): h.load_state_dict(VoteHead(bank(), k=2).state_dict(), strict=False)

def test_a_vote_is_left_alone_by_a_plain_state():
    x,y = blobs(60, 1)
    m = attach(net(d=6), VoteHead(SlotBank(60, policy='fifo'), k=5))
    h = find_head(m); h.bank.write(x, y=y); fitted(h, draw(60, 3), x, y, whiten=(True,))
    m.eval()
    was = m(draw(4, 6))
    m.load_state_dict(net(d=6).state_dict(), strict=False)
    assert torch.equal(m(draw(4, 6)), was)

# where it sits
archs = {'resnet18':{}, 'densenet121':{}, 'efficientnet_b0':{}, 'tf_efficientnet_lite0':{},
         'vit_tiny_patch16_224':dict(img_size=32)}
@pytest.fixture(scope='module')
def made():
    "timm models, made once"
    kept = {}
    def get(arch):
        if arch not in kept:
            torch.manual_seed(0)
            kept[arch] = timm.create_model(arch, num_classes=3, **archs[arch]).eval()
        return copy.deepcopy(kept[arch])
    return get

def there_and_back(m, x, z, head, at=None, c=3):
    "Attach: names, and outputs of an empty memory, as before; `z` is what is captured; detach: all as before"
    plain,names,mods = m(x),list(m.state_dict()),[n for n,_ in m.named_modules()]
    hooks = lambda: [(len(o._forward_hooks),len(o._forward_pre_hooks)) for o in m.modules()]
    was = hooks()
    assert attach(m, head, at) is m and find_head(m) is head
    new = [k for k in m.state_dict() if k not in names]
    assert [k for k in m.state_dict() if k in names]==names and new and all('memory' in k for k in new)
    out,seen = watched(m, head, x)
    assert torch.equal(out, plain) and torch.equal(m(x), plain)
    close(seen.z, z, 1e-4)
    head.bank.write(seen.z+.1, y=torch.arange(len(z))%c)
    assert not torch.allclose(m(x), plain)
    with head.off(): assert torch.equal(m(x), plain)
    with pytest.raises(MemoError, match='already'): attach(m, head, at)
    assert detach(m) is head and find_head(m) is None and detach(m) is None
    assert torch.equal(m(x), plain) and list(m.state_dict())==names and [n
        for n,_ in m.named_modules()]==mods and hooks()==was
    assert not hasattr(m, '_ddp_params_and_buffers_to_ignore')

@pytest.mark.parametrize('arch', list(archs))
@pytest.mark.parametrize('head', [RetrievalHead, VoteHead])
@torch.no_grad()
def test_default_place_in_timm(made, arch, head):
    "What enters the classifier"
    m,x = made(arch),draw(2, 3, 32, 32)
    there_and_back(m, x, m.forward_head(m.forward_features(x), pre_logits=True), head(SlotBank(4, policy='fifo'), k=1))

@pytest.mark.parametrize('head', [RetrievalHead, VoteHead])
@pytest.mark.parametrize('concat', [True, False])
@torch.no_grad()
def test_default_place_in_a_fastai_head(head, concat):
    "After Flatten, so with the concat pooling"
    torch.manual_seed(0)
    m = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), create_head(8, 3, concat_pool=concat)).eval()
    x = draw(2, 3, 9, 9)
    z = m[1][1](m[1][0](m[0](x)))
    assert isinstance(m[1][1], Flatten) and z.shape==(2, 16 if concat else 8)
    there_and_back(m, x, z, head(SlotBank(4, policy='fifo'), k=1))

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv,self.fc1,self.act,self.out = nn.Conv2d(3, 5, 3),nn.Linear(5, 7),nn.ReLU(),nn.Linear(7, 3)
    def forward(self, x): return self.out(self.act(self.fc1(self.conv(x).mean((2,3)))))

class Vision(nn.Module):
    "Laid out as torchvision's"
    def __init__(self):
        super().__init__()
        self.features,self.avgpool = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()),nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Dropout(), nn.Linear(7, 3))
    def forward(self, x): return self.classifier(self.avgpool(self.features(x)).flatten(1))

@pytest.mark.parametrize('head', [RetrievalHead, VoteHead])
@torch.no_grad()
def test_default_place_elsewhere(head):
    "In front of the last linear layer"
    torch.manual_seed(0)
    x = draw(2, 3, 9, 9)
    def new(): return head(SlotBank(4, policy='fifo'), k=1)
    m = Plain().eval(); there_and_back(m, x, m.act(m.fc1(m.conv(x).mean((2,3)))), new())
    m = Vision().eval(); there_and_back(m, x, m.classifier[:3](m.features(x).mean((2,3))), new())
    m = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)).eval()
    there_and_back(m, x, m[:3](x), new())
    m = nn.Linear(4, 3).eval()
    there_and_back(m, draw(2, 4), draw(2, 4), new())               # the model itself

@torch.no_grad()
def test_at(made):
    x,m = draw(2, 3, 32, 32),made('resnet18')
    def new(): return RetrievalHead(SlotBank(4, policy='fifo'), k=1)
    there_and_back(m, x, m.global_pool(m.forward_features(x)), new(), 'fc')          # in front of a linear layer
    there_and_back(m, x, m.forward_features(x).mean((2,3)), new(), 'layer4')          # behind a stage, a Sequential
    there_and_back(m, x, m.forward_features(x).mean((2,3)), new(), 'layer4.1')
    there_and_back(m, x, m.global_pool(m.forward_features(x)), new(), 'global_pool')
    v = made('vit_tiny_patch16_224')
    there_and_back(v, x, v.norm(v.blocks(v._pos_embed(v.patch_embed(x)))).mean(1), new(), 'norm')
    n = Vision().eval()
    x = draw(2, 3, 9, 9)
    # in front of a linear layer in a Sequential
    there_and_back(n, x, n.features(x).mean((2,3)), new(), 'classifier.0')
    there_and_back(n, x, n.features(x).mean((2,3)), new(), 'features')

def test_at_misspelt():
    m = timm.create_model('resnet18', num_classes=3)
    with pytest.raises(MemoError, match="did you mean 'layer4'"): attach(m, RetrievalHead(bank(), k=1), at='layer44')
    assert find_head(m) is None
    with pytest.raises(MemoError, match='at='): attach(nn.Sequential(nn.Conv2d(3, 3, 1)), RetrievalHead(bank(), k=1))

@pytest.mark.parametrize('head', [RetrievalHead, VoteHead])
def test_models_are_copied_and_pickled(head):
    m = attach(net(), head(bank(), k=2)).eval()
    x = draw(5, 6)
    want = m(x)
    f = io.BytesIO(); torch.save(m, f); f.seek(0)
    for o in (copy.deepcopy(m), pickle.loads(pickle.dumps(m)), torch.load(f, weights_only=False)):
        assert torch.equal(o(x), want) and find_head(o) is not find_head(m)
        find_head(o).bank.reset()
        assert torch.equal(o(x), net()(x)) or head is VoteHead and torch.allclose(o(x), net()(x))
        assert torch.equal(m(x), want)                             # the copy's memory is its own
        detach(o); assert torch.equal(o(x), net()(x))
    n = attach(net(), head(SlotBank(12, policy='fifo'), k=2)).eval()
    n.load_state_dict(m.state_dict()); assert torch.equal(n(x), want)

@pytest.mark.parametrize('copied', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=['deepcopy','pickle'])
def test_a_copy_taken_in_the_middle_of_a_batch_is_clean(copied):
    h = RetrievalHead(bank(), k=1)
    m,x = attach(net(), h),draw(5, 6)
    with in_step([h], Step(item=torch.arange(5))) as step:
        m(x)
        with h.off(): n = copied(m)
        other = find_head(n)
        assert other.step is None and other.z is None and other.on
        n(x)
    assert step.close().model is m and step.seen(other) is None and not any(o is n
        for o in (c.model for c in step.calls))

@pytest.mark.parametrize('training', [True, False])
def test_a_head_is_in_the_mode_of_its_model(training):
    "Attached to a model in eval mode, the memory is in eval mode too"
    h = RetrievalHead(bank(), k=1).train(not training)
    attach(net().train(training), h)
    assert h.training==training==h.bank.training

def test_attached_again_at_another_place():
    m,h = net(),RetrievalHead(SlotBank(4, policy='fifo'), k=1)
    attach(m, h); detach(m); attach(m, h, '0')
    assert find_place(m, '0')[1] is m[0] and m[0].memory is h and not hasattr(m[2], 'memory')

def test_parameters_are_the_models():
    "No optimizer sees anything new, and the memory is moved and frozen with the model"
    m = net()
    n = sum(p.numel() for p in m.parameters())
    attach(m, RetrievalHead(bank(), k=1))
    assert sum(p.numel() for p in m.parameters())==n
    names = m._ddp_params_and_buffers_to_ignore
    assert set(names)=={k for k,_ in m.named_buffers()}|{k for k in names if 'memory' in k} and {k
        for k,_ in m.named_buffers()}<=set(names)
