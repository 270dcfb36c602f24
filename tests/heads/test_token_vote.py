"Votes of tokens: against Hopfield reads in a loop, hidden rows, where tokens lie, in networks"
import math
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F
from fastai.learner import Learner, load_learner
from fastai.vision.all import CrossEntropyLossFlat, set_seed
from helpers.learners import quietly
from memo.banks.key_value import CachedBank
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.data.whole import digits
from memo.heads.attach import attach
from memo.heads.tokens import TokenVoteHead
from memo.layers.associate import hopfield
from memo.models.vit import linear_probe
from memo.training.memory_callback import MemoryCallback

def placed(t, grid, place):
    "Tokens of unit length, with four coordinates of where they lie"
    h,w = grid
    a,b = [i/h*math.pi/2 for i in range(h) for _ in range(w)],[j/w*math.pi/2 for _ in range(h) for j in range(w)]
    p = torch.tensor([[math.cos(i),math.sin(i),math.cos(j),math.sin(j)] for i,j in zip(a, b)])
    return torch.cat([F.normalize(t, dim=-1), place*p.expand(len(t), -1, -1)], -1)

def by_loop(q, k, y, n_classes, grid, beta, scale, place):
    "A read for each token and class, one after the other"
    res = torch.full((len(q),n_classes), -torch.inf)
    for b,image in enumerate(placed(q, grid, place)):
        logs = []
        for t in image:
            like = torch.full((n_classes,), -torch.inf)
            for c in y.unique().tolist():
                r = hopfield(t[None], placed(k[y==c], grid, place).flatten(0, 1), beta=beta)[0]
                like[c] = t@r
            logs.append((scale*like).log_softmax(0))
        res[b] = torch.stack(logs).mean(0)
    return res

def slots(n, n_classes): return SlotBank(n, policy='fifo', n_classes=n_classes)

@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), side=st.integers(1, 3), prefix=st.integers(0, 2), n=st.integers(1, 9),
       beta=st.sampled_from([.5,8.,40.,300.]), place=st.sampled_from([0.,.5,2.]))
def test_hopfield_reads_in_a_loop(seed, side, prefix, beta, place, n):
    g = torch.Generator().manual_seed(seed)
    def tokens(n): return torch.randn(n, prefix+side**2, 5, generator=g)
    k,q,y = tokens(n),tokens(3),torch.randint(0, 3, (n,), generator=g)
    head = TokenVoteHead(slots(12, 4), beta=beta, place=place, prefix=prefix)
    head.bank.write(head.features(k), y)
    got = head.scores(head.features(q))
    want = by_loop(q[:,prefix:], k[:,prefix:], y, 4, (side,side), beta, 20., place)
    torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-3)
    v = head.votes(head.features(q))
    torch.testing.assert_close(v, (want/.25).softmax(1), rtol=1e-2, atol=1e-2)

def test_length_and_order_say_nothing():
    set_seed(0)
    k,q,y = torch.randn(6, 4, 5),torch.randn(3, 4, 5),torch.tensor([0,0,1,1,2,2])
    head = TokenVoteHead(slots(12, 3))
    head.bank.write(head.features(k), y)
    was = head.scores(head.features(q))
    at = torch.randperm(6)
    other = TokenVoteHead(slots(12, 3))
    other.bank.write(other.features(7*k[at]), y[at])
    torch.testing.assert_close(other.scores(other.features(.1*q)), was, rtol=1e-4, atol=1e-4)
    unit = TokenVoteHead(CachedBank(12, n_classes=3, similarity_threshold=1.))
    unit.bank.write(unit.features(k), y)
    if len(unit.bank)==6: torch.testing.assert_close(unit.scores(unit.features(q)), was, rtol=1e-4, atol=1e-4)
    many = head.scores(head.features(q.repeat(40, 1, 1)))       # in several parts
    torch.testing.assert_close(many, was.repeat(40, 1), rtol=1e-4, atol=1e-4)

def test_parts_are_the_whole():
    "Chunks of items, with items of their own to hide in each"
    set_seed(0)
    n = 64
    k,y = torch.randn(n, 49, 3),torch.arange(n)%5
    item = 100+torch.arange(n)
    head = TokenVoteHead(slots(n, 5))
    head.bank.write(head.features(k), y, item=item)
    q = torch.randn(70, 49, 3)
    own = torch.cat([item,torch.full((6,), -1)])
    got = head.scores(head.features(q), item=own)               # 27 items a part
    for i in (0, 26, 27, 63, 69):
        one = head.scores(head.features(q[i:i+1]), item=own[i:i+1])[0]
        torch.testing.assert_close(one, got[i], rtol=1e-4, atol=1e-4)

def test_own_rows_are_not_read():
    "As if they were not there; where nothing is left there is no vote"
    set_seed(0)
    k,y,item = torch.randn(4, 4, 5),torch.tensor([0,1,1,2]),torch.tensor([10,11,12,13])
    head = TokenVoteHead(slots(12, 3))
    z = head.features(k)
    head.bank.write(z, y, item=item, group=item//2)
    got = head.scores(z, item=item)
    for i in range(4):
        few = TokenVoteHead(slots(12, 3))
        rest = torch.arange(4)!=i
        few.bank.write(few.features(k[rest]), y[rest])
        torch.testing.assert_close(got[i], few.scores(few.features(k[i:i+1]), n_classes=3)[0], rtol=1e-4, atol=1e-4)
    one = TokenVoteHead(slots(12, 3))
    one.bank.write(one.features(k[:1]), y[:1], item=item[:1], group=item[:1])
    assert not one.votes(one.features(k[:1]), item=item[:1]).any()
    assert not one.votes(one.features(k[:1]), group=item[:1]).any()
    logits = torch.randn(1, 3)
    torch.testing.assert_close(one.mixed(logits, one.features(k[:1]), item=item[:1]), logits.log_softmax(1))

def test_classes_without_a_row():
    set_seed(0)
    head = TokenVoteHead(slots(12, 4))
    head.bank.write(head.features(torch.randn(3, 4, 5)), torch.tensor([0,2,2]))
    v = head.votes(head.features(torch.randn(5, 4, 5)))
    assert v.shape==(5,4) and not v[:,[1,3]].any() and torch.allclose(v.sum(1), torch.ones(5))
    assert head.votes(torch.zeros(0, 20)).shape==(0,4)

@pytest.mark.parametrize('n,prefix,want', [(50, None, (1,(7,7))), (197, None, (1,(14,14))), (201, None, (5,(14,14))),
    (198, None, (2,(14,14))), (49, None, (0,(7,7))), (1, None, (0,(1,1))), (60, None, (0,(1,60))), (60, 4, (4,(1,56))),
    (65, 1, (1,(8,8)))])
def test_which_tokens_are_patches(n, prefix, want):
    assert TokenVoteHead(slots(3, 2), prefix=prefix).patches(n)==want

def test_maps_and_channels_last():
    "Maps [B,D,h,w], also where they are no squares"
    head = TokenVoteHead(slots(3, 2))
    x = torch.randn(2, 5, 2, 3)
    torch.testing.assert_close(head.features(x).view(2, 6, 5), x.flatten(2).transpose(1, 2))
    assert head.grid==(2,3)
    head.axis = -1
    torch.testing.assert_close(head.features(x.permute(0, 2, 3, 1)).view(2, 6, 5), x.flatten(2).transpose(1, 2))

def shots():
    set_seed(0)
    small = dict(img_size=32, c_in=1, patch_size=8, embed_dim=48, depth=3, num_heads=3)
    model = linear_probe('vit_tiny_patch16_224', 10, **small)
    dls = digits(n_shot=5, valid=10, bs=25)
    cb = MemoryCallback(SlotBank(50, policy='fifo'), head='token_vote', at='blocks.0')
    return Learner(dls, model, CrossEntropyLossFlat(), cbs=cb)

def test_in_a_vision_transformer(tmp_path):
    "Each shot is a row of 16 tokens; what the model answers is the mixture; saved, loaded and exported with its grid"
    learn = shots()
    quietly(learn, learn.fit, 2, 1e-2)
    bank,head = learn.memory.bank,learn.memory.head
    assert len(bank)==50 and bank.dim==16*48 and head.grid==(4,4)
    c = learn.memory.collect(learn.dls.valid)
    net = learn.model
    with torch.no_grad(), head.off():
        t = torch.cat([net.blocks[0](net._pos_embed(net.patch_embed(xb))) for xb,_ in learn.dls.valid])
    torch.testing.assert_close(c.z, t[:,1:].flatten(1), rtol=1e-4, atol=1e-4)
    order = bank.labels[:50]
    want = by_loop(t[:6,1:], bank.features[:50].view(50, 16, 48), order, 10, (4,4), 40., 20., 2.)
    torch.testing.assert_close(head.scores(c.z[:6]), want, rtol=2e-3, atol=2e-3)
    p = quietly(learn, learn.get_preds)[0]
    torch.testing.assert_close(p, head.mixed(c.logits, c.z).softmax(1), rtol=1e-4, atol=1e-5)
    learn.export(tmp_path/'m.pkl')
    new = load_learner(tmp_path/'m.pkl')
    got = quietly(new, new.get_preds, dl=learn.dls.valid)[0]
    torch.testing.assert_close(got, p, rtol=1e-4, atol=1e-5)
    other = shots()
    other.model.load_state_dict(learn.model.state_dict())
    assert other.memory.head.grid==(4,4)
    torch.testing.assert_close(quietly(other, other.get_preds, dl=learn.dls.valid)[0], p, rtol=1e-4, atol=1e-5)

def test_in_a_convolutional_network():
    from memo.models.small import small_cnn
    set_seed(0)
    learn = Learner(digits(n_shot=5, valid=10, bs=25), small_cnn(1, 10), CrossEntropyLossFlat())
    place = [n for n,m in learn.model.named_modules() if isinstance(m, nn.MaxPool2d)][-1]
    learn.add_cb(MemoryCallback(SlotBank(50, policy='fifo'), head='token_vote', at=place))
    quietly(learn, learn.fit, 1, 1e-3)
    assert len(learn.memory.bank)==50 and math.prod(learn.memory.head.grid)>1
    assert quietly(learn, learn.get_preds)[0].isfinite().all()

def test_several_labels_are_refused():
    head = TokenVoteHead(SlotBank(4))
    with pytest.raises(MemoError, match='one class an image') as e: head.check_labels(torch.zeros(2, 3))
    assert '\n' not in str(e.value)
    head.bank.write(torch.randn(2, 5), torch.ones(2, 3))
    with pytest.raises(MemoError, match='one class an image'): head.votes(torch.randn(1, 5))

def test_more_prefix_than_tokens():
    with pytest.raises(MemoError, match=r'prefix: 9, and there are 4 tokens; 0\.\.3'):
        TokenVoteHead(SlotBank(4), prefix=9).features(torch.randn(2, 4, 5))

def test_rows_in_parts(monkeypatch):
    "Rows are read some at a time where they are many, with hidden and unlabelled ones in each part"
    set_seed(0)
    n,T = 40,400
    head = TokenVoteHead(slots(n, 6), beta=7.)
    k,y,item = torch.randn(n, T, 3),torch.arange(n)%5,torch.arange(n)
    y[::7] = -1
    head.bank.write(head.features(k), y.clamp(min=0), item=item)
    head.bank.labels[:n] = y
    q,own = torch.randn(3, T, 3),torch.tensor([1,37,-1])            # 26 rows a part
    got = head.scores(head.features(q), item=own)
    for i in range(3):
        some = (y>=0) & (item!=own[i])
        want = by_loop(q[i:i+1], k[some], y[some], 6, (20,20), 7., 20., 2.)
        torch.testing.assert_close(got[i:i+1], want, rtol=2e-3, atol=2e-3)

def test_nothing_to_read():
    assert not TokenVoteHead(slots(4, 3)).votes(torch.randn(2, 8)).any()
    head = TokenVoteHead(SlotBank(4, policy='fifo'))
    assert head.votes(torch.randn(2, 8)).shape==(2,0)
    head.bank.write(torch.randn(2, 8), torch.tensor([-1,-1]))
    assert head.votes(torch.randn(2, 8)).shape==(2,0) and not head.votes(torch.randn(2, 8), n_classes=3).any()

@pytest.mark.parametrize('arch,size,want', [('vit_tiny_patch16_224', (32,112), (1,(2,7))),
    ('vit_small_patch14_reg4_dinov2', (28,84), (5,(2,6))), ('deit_tiny_distilled_patch16_224', (16,112), (2,(1,7))),
    ('cait_xxs24_224', (64,64), (0,(4,4)))])
def test_tokens_that_are_no_patches(arch, size, want):
    "The network knows: of 2 by 7 patches and a class token, 6 are not what is left of a square"
    import timm
    model = timm.create_model(arch, img_size=size, num_classes=3).eval()
    head = TokenVoteHead(slots(4, 3))
    attach(model, head, at='blocks.0')
    with torch.no_grad(): model(torch.randn(2, 3, *size))
    n = math.prod(want[1])
    assert head.grid==want[1] and head.patches(n+want[0])==want
    assert TokenVoteHead(slots(4, 3)).patches(15)==(6,(3,3))        # nobody knows

def test_trained_compiled_and_exported():
    "A model that never ran but compiled knows its tokens; graphs take other numbers of images"
    learn = shots()
    quietly(learn, learn.fit, 1, 1e-2)
    torch._dynamo.reset()
    other = shots()
    other.model.compile(backend='aot_eager')
    quietly(other, other.fit, 1, 1e-2)
    assert other.memory.head.grid==(4,4)
    x = torch.cat([xb for xb,_ in learn.dls.valid])[:9].as_subclass(torch.Tensor)
    with torch.no_grad():
        want = learn.model.eval()(x)
        torch.testing.assert_close(other.model.eval()(x), want, rtol=1e-4, atol=1e-4)
        graph = torch.export.export(learn.model, (x[:4],), dynamic_shapes=({0:torch.export.Dim.AUTO},)).module()
        for n in (1, 9): torch.testing.assert_close(graph(x[:n]), want[:n], rtol=1e-4, atol=1e-4)

def test_images_of_another_size_change_nothing():
    head = TokenVoteHead(slots(4, 2))
    head.bank.write(head.features(torch.randn(3, 4, 5)), torch.tensor([0,1,1]))
    z = head.features(torch.randn(2, 4, 5))
    was = head.scores(z)
    other = head.features(torch.randn(2, 9, 5))
    with pytest.raises(MemoError, match='rows of width 20'): head.check_width(other.shape[1])
    assert head.grid==(2,2) and torch.equal(head.scores(z), was)

def test_compared_with_other_settings(tmp_path):
    "A head of this kind under `compare` reads the same tokens as the memory's own"
    from memo.evaluation.evaluate import Answers
    from memo.experiment.config import from_dict
    learn = shots()
    quietly(learn, learn.fit, 1, 1e-2)
    own = dict(bank='SlotBank', size=50, policy='fifo', head='token_vote', at='blocks.0')
    cfg = from_dict(dict(name='x', data='digits', model=dict(name='linear_probe', arch='vit_tiny_patch16_224'),
                         memory=own, compare=[dict(name='token_vote', beta=5.)]), 'test')
    head = Answers(learn, cfg).head('', 'token_vote')
    assert head is not learn.memory.head and head.beta==5 and head.grid==(4,4)
    c = learn.memory.collect(learn.dls.valid)
    learn.memory.head.beta = 5.
    torch.testing.assert_close(head.scores(c.z), learn.memory.head.scores(c.z))
