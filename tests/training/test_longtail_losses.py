"Balanced softmax, class weights and LDAM against their formulas, and the training with deferred weights"
import math
import numpy as np, pytest, torch
from hypothesis import given, strategies as st
from fastai.vision.all import (Callback, DataLoaders, F, Learner, load_learner, nn, set_seed)
from helpers.learners import quietly
from memo.core import MemoError
from memo.data.longtail import digits_lt
from memo.heads.attach import find_head
from memo.training.deferred import CosineLinear, DeferredReweighting, cosine_classifier
from memo.training.losses import ClassBalancedCE, LDAMLoss, LogitAdjustedCE, balanced_softmax, effective_weights
from memo.training.memory_callback import MemoryCallback
from memo.banks.slots import SlotBank
from memo.models.small import small_cnn

counts_ = st.lists(st.integers(1, 5000), min_size=2, max_size=6)
def batch(c, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(7, c, generator=g)*2,torch.randint(c, (7,), generator=g)

@given(counts_, st.integers(0, 9))
def test_balanced_softmax_is_its_formula(counts, seed):
    "-log n_y e^x_y / sum_j n_j e^x_j (Ren et al. 2020), and so the logit-adjusted loss of strength 1"
    x,y = batch(len(counts), seed)
    n,e = np.array(counts),np.exp(x.double().numpy())
    want = -np.log((n*e)[np.arange(7),y]/(n*e).sum(1))
    np.testing.assert_allclose(balanced_softmax(counts, reduction='none')(x, y), want, rtol=1e-4, atol=1e-4)
    assert torch.equal(balanced_softmax(counts)(x, y), LogitAdjustedCE(counts)(x, y))

@given(counts_, st.sampled_from([0.,.9,.999,.9999]))
def test_class_weights_are_the_effective_numbers(counts, beta):
    "1/E_n with E_n = (1-beta^n)/(1-beta) (Cui et al. 2019), scaled to the number of classes"
    want = np.array([(1-beta)/(1-beta**n) for n in counts])
    want = want/want.sum()*len(counts)
    np.testing.assert_allclose(effective_weights(counts, beta), want, rtol=1e-5)
    x,y = batch(len(counts))
    ce = F.cross_entropy(x, y, reduction='none')*torch.tensor(want)[y]
    assert float(ClassBalancedCE(counts, beta)(x, y))==pytest.approx(float(ce.mean()), rel=1e-4)

@given(counts_, st.booleans())
def test_ldam_is_its_formula(counts, late):
    "-log e^s(z_y-D_y) / (e^s(z_y-D_y) + sum of e^sz_j of the others), D_j = C/n_j^(1/4) (Cao et al. 2019); x = s z"
    x,y = batch(len(counts))
    n = np.array(counts, dtype=float)
    d = n**-.25
    d,o = d*.5/d.max(),x.double().numpy().copy()
    for i,c in enumerate(y.tolist()): o[i,c] -= 30*d[c]
    l = -np.log(np.exp(o[np.arange(7),y]-o.max(1))/np.exp(o-o.max(1, keepdims=True)).sum(1))
    w = effective_weights(counts).double().numpy()[y] if late else np.ones(7)
    loss = LDAMLoss(counts)
    loss.reweighted = late
    assert float(loss(x, y))==pytest.approx((w*l).sum()/w.sum(), rel=1e-3, abs=1e-3)

@pytest.mark.parametrize('make', [balanced_softmax, ClassBalancedCE, LDAMLoss])
def test_counts_that_are_none_and_another_number_of_classes(make):
    for bad in ([], [1,-1], [1,math.nan]):
        with pytest.raises(MemoError, match='^counts'): make(bad)
    with pytest.raises(MemoError, match='4 logits, counts are for 3'):
        make([1,2,3])(torch.zeros(1,4), torch.tensor([0]))
    x = torch.zeros(2,3, requires_grad=True)
    v = make([100,0,5])(x, torch.tensor([1,2]))      # a class that nobody has
    v.backward()
    assert v.isfinite() and x.grad.isfinite().all()

# the classifier of cosines
def test_outputs_are_cosines_times_the_scale():
    model = nn.Sequential(nn.Linear(5,6), nn.ReLU(), nn.Linear(6,3))
    w = model[2].weight.detach().clone()
    m = cosine_classifier(model, 7.)
    x = torch.randn(9,5)
    want = 7*F.cosine_similarity(model[:2](x)[:,None], w[None], dim=2)
    assert m is model[2] and type(m) is CosineLinear and torch.allclose(model(x), want, atol=1e-5)
    assert cosine_classifier(model, 7.) is m and torch.equal(m.weight, w) and '2.bias' not in model.state_dict()

def test_a_network_without_a_linear_classifier_is_refused():
    with pytest.raises(MemoError, match='nn.Linear is accepted'): cosine_classifier(nn.Sequential(nn.Flatten()))

class Look(Callback):
    "What the loss did in each epoch, training and validation"
    def __init__(self): self.train,self.valid = [],[]
    def after_loss(self): (self.train if self.training else self.valid).append((self.epoch, self.loss_func.reweighted))

def trained(path, n=5, **kw):
    set_seed(0)
    dls = digits_lt(n_max=40, ratio=10, valid=5, test=5, size=8, bs=32, device='cpu')
    look = Look()
    learn = Learner(dls, small_cnn(n_classes=dls.c), loss_func=LDAMLoss(dls.counts), path=path,
                    cbs=[MemoryCallback(SlotBank(64, policy='fifo'), head='vote'), DeferredReweighting(**kw), look])
    quietly(learn, learn.fit, n, 1e-2)
    return learn,look

def test_weights_begin_late_and_a_validation_inside_changes_nothing(tmp_path):
    learn,look = trained(tmp_path)
    assert {e for e,on in look.train if on}=={4} and {e for e,on in look.train if not on}=={0,1,2,3}
    late = learn.loss_func.reweighted
    quietly(learn, learn.validate)
    quietly(learn, learn.get_preds)
    assert learn.loss_func.reweighted is late
    _,look = trained(tmp_path, start=0.)
    assert all(on for _,on in look.train)
    quietly(learn, learn.fit, 1, 1e-3)          # a new fit begins without
    assert not [on for e,on in learn.look.train[-1:] if on]

def test_it_is_saved_loaded_and_exported_with_a_memory(tmp_path):
    learn,_ = trained(tmp_path, 2)
    p = quietly(learn, learn.get_preds)[0]
    assert find_head(learn.model) is not None and learn.model.state_dict().keys()
    learn.save('m')
    new,_ = trained(tmp_path, 1)
    new.load('m')
    assert torch.allclose(quietly(new, new.get_preds)[0], p, atol=1e-6)
    learn.export(tmp_path/'e.pkl')
    got = load_learner(tmp_path/'e.pkl')
    assert torch.allclose(quietly(got, got.get_preds, dl=got.dls.test_dl(learn.dls.valid_ds.x))[0], p, atol=1e-6)

def test_rare_classes_gain_by_it(tmp_path):
    "Against plain cross-entropy on the same data, at the end of a short training"
    learn,_ = trained(tmp_path, 12)
    few = learn.dls.counts.argsort()[:4]
    def recall(learn):
        p,y = quietly(learn, learn.get_preds)
        return torch.stack([(p.argmax(1)==y)[y==c].float().mean() for c in few]).mean().item()
    set_seed(0)
    plain = Learner(learn.dls, small_cnn(n_classes=learn.dls.c), loss_func=nn.CrossEntropyLoss(), path=tmp_path)
    quietly(plain, plain.fit, 12, 1e-2)
    assert recall(learn)>recall(plain)
