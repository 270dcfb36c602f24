"What a gate answers: the memory's class where it is sure, the network's outputs elsewhere, never NaN"
import copy
import pytest, timm, torch
from contextlib import nullcontext
from hypothesis import given, strategies as st
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.swa_utils import AveragedModel
from helpers.errors import err
from memo.banks.classes import ClassBank
from memo.banks.key_value import CachedBank, TrainableBank
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.heads.attach import attach, memories
from memo.heads.calls import Step, in_step
from memo.heads.gate import ExitHead, GateHead

D,C = 6,4
banks = dict(slots=lambda c=C: SlotBank(20, policy='fifo', n_classes=c), classes=lambda c=C: ClassBank(c, 5),
             cached=lambda c=C: CachedBank(20, n_classes=c, similarity_threshold=1.),
             trainable=lambda c=C: TrainableBank(20, n_classes=c, similarity_threshold=1.))

def some(seed, n=12, classes=C):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, D, generator=g),torch.randint(0, classes, (n,), generator=g),g

def cosines(q, rows):
    "One after the other"
    def cos(a, b): return float((a*b).sum()/(a.norm()*b.norm()).clamp(min=1e-12))
    return [[cos(a.double(), b.double()) for b in rows] for a in q]

@pytest.mark.parametrize('kind', ['slots','cached','trainable'])
@given(seed=st.integers(0, 10**6), threshold=st.floats(-1, 1), own=st.booleans())
def test_hard_gate_is_the_nearest_row_or_the_network(kind, seed, threshold, own):
    x,y,g = some(seed)
    bank,item = banks[kind](),torch.arange(12)
    bank.write(x, y, item=item)
    head = GateHead(bank, threshold=threshold)
    q,ids = torch.cat([torch.randn(5, D, generator=g), x[:3]]),torch.tensor([-1]*5+[0,1,2])
    logits = torch.randn(8, C, generator=g)
    got = head.mixed(logits, q, ids if own else None)
    f,_,labels,items,_,_ = bank.rows()
    for i,s in enumerate(cosines(q, f)):
        best = max((j for j in range(12) if not (own and items[j]==ids[i]>=0)), key=lambda j: s[j])
        if abs(s[best]-threshold)<1e-5: continue
        if s[best]<threshold: assert torch.equal(got[i], logits[i])
        else:
            assert got[i].exp().sum()==pytest.approx(1) and int(got[i].argmax())==int(labels[best])
            assert float(got[i].max().exp())==pytest.approx(.95)

@given(seed=st.integers(0, 10**6), threshold=st.floats(-1, 1))
def test_a_class_bank_answers_by_its_prototypes(seed, threshold):
    x,y,g = some(seed)
    bank = banks['classes']()
    bank.write(x, y)
    q,logits = torch.randn(5, D, generator=g),torch.randn(5, C, generator=g)
    got,seen = GateHead(bank, threshold=threshold).mixed(logits, q),y.unique()
    for i,s in enumerate(cosines(q, bank.prototypes()[seen])):
        if abs(max(s)-threshold)<1e-5: continue
        if max(s)<threshold: assert torch.equal(got[i], logits[i])
        else: assert int(got[i].argmax())==int(seen[s.index(max(s))])

@given(seed=st.integers(0, 10**6), threshold=st.floats(-1, 1), t=st.sampled_from([.05,.1,1.]), k=st.sampled_from([1,4]))
def test_soft_gate_mixes_probabilities(seed, threshold, t, k):
    x,y,g = some(seed)
    bank = banks['slots']()
    bank.write(x, y)
    head = GateHead(bank, k=k, threshold=threshold, temperature=t, soft=True)
    q,logits = torch.randn(6, D, generator=g),torch.randn(6, C, generator=g)
    got = head.mixed(logits, q).exp().double()
    v,sure = head.says(q)
    mem = torch.where(v>0, .95*v, 0).double()+(.05/(C-1)*(1-v)).double()
    w = torch.sigmoid((sure.double()-threshold)/t)[:,None]
    torch.testing.assert_close(got, w*mem+(1-w)*logits.double().softmax(1), rtol=1e-3, atol=1e-5)

@given(seed=st.integers(0, 10**6))
def test_confidence_of_several_rows_is_the_cosine_times_the_share_of_the_vote(seed):
    x,y,g = some(seed)
    bank = banks['slots']()
    bank.write(x, y)
    q = torch.randn(5, D, generator=g)
    v,sure = GateHead(bank, k=3, temperature=.2).says(q)
    for i,s in enumerate(cosines(q, x)):
        best = sorted(range(12), key=lambda j: -s[j])[:3]
        w = torch.tensor([s[j]/.2 for j in best]).softmax(0)
        want = torch.zeros(C).index_add_(0, y[best], w.float())
        torch.testing.assert_close(v[i], want, rtol=1e-3, atol=1e-4)
        top = s[best[0]]
        assert float(sure[i])==pytest.approx(top*float(want.max()) if top>0 else top, abs=1e-4)

class Net(nn.Module):
    "A small network with outputs of any form"
    def __init__(self, form):
        super().__init__()
        self.form,self.body,self.out = form,nn.Linear(8, D),nn.Linear(D, 1 if form in ('one','flat','p_one') else C)
    def forward(self, x):
        o = self.out(self.body(x))
        if self.form=='p': return o.softmax(1)
        if self.form=='p_one': return o.sigmoid()
        return o.squeeze(1) if self.form=='flat' else o

forms = dict(logits=C, p=C, one=2, flat=2, p_one=2)
held = dict(empty=None, one_row=[0], one_class=[1,1,1], all=[0,1,0,1,1,0], absent=[0,0,1])

@pytest.mark.parametrize('soft', [False,True])
@pytest.mark.parametrize('kind', banks)
@pytest.mark.parametrize('form', forms)
def test_never_nan(form, kind, soft):
    "Whatever is stored, in any precision; a class that the bank lacks has a probability all the same"
    for stored in held.values():
        for dtype,auto in ((torch.float32,False),(torch.float16,False),(torch.bfloat16,False),(torch.float32,True)):
            torch.manual_seed(0)
            m,x = Net(form).eval().to(dtype),torch.randn(6, 8, dtype=dtype)
            bank = banks[kind](forms[form])
            head = GateHead(bank, threshold=-1., soft=soft, outputs='probabilities' if form[0]=='p' else 'logits')
            attach(m, head, x=x)
            with torch.no_grad():
                if bank.learned: bank.build(D, forms[form])
                if stored: bank.write(m.body(x[:len(stored)]).float(), torch.tensor(stored))
                with torch.autocast('cpu', torch.bfloat16) if auto else nullcontext():
                    out = m(x)
                    with in_step([head], Step(exits=False)): held_none = m(x)
                with head.off(): plain = m(x)
            assert out.isfinite().all() and out.shape==plain.shape, (stored, dtype, auto)
            torch.testing.assert_close(out.float(), held_none.float(), rtol=2e-2, atol=2e-2)
            if not stored:
                assert auto or torch.equal(out.float(), plain.float())
                continue
            o = out.float() if out.ndim>1 else out.float()[:,None]
            two = o.shape[1]==1
            got = (o[:,0]>(.5 if form[0]=='p' else 0)).long() if two else o.argmax(1)
            if not soft and kind!='classes':
                assert torch.equal(got[:len(stored)], torch.tensor(stored)), (stored, dtype, auto)
            if form[0]=='p': assert ((o>=0) & (o<=1)).all()

def test_queries_that_are_nan_get_the_networks_answer():
    x,y,g = some(0)
    bank = banks['slots']()
    bank.write(x, y)
    q,logits = x[:3].clone(),torch.randn(3, C, generator=g)
    q[1] = float('nan')
    for soft in (False,True):
        got = GateHead(bank, threshold=-1., soft=soft).mixed(logits, q)
        assert got.isfinite().all() and int(got[1].argmax())==int(logits[1].argmax())

def test_an_answer_that_is_often_wrong_stays_the_likeliest():
    "Else what is shown would be another class than the one that `fit` counted"
    x,y,_ = some(0)
    for n in (2,4,1000):
        bank = SlotBank(20, policy='fifo', n_classes=n)
        bank.write(x, y%n)
        head = GateHead(bank, threshold=-1.)
        head.certainty.fill_(1e-4)
        for dtype in (torch.float32,torch.float16,torch.bfloat16):
            assert torch.equal(head.mixed(torch.zeros(12, n, dtype=dtype), x).argmax(1), y%n)

@pytest.mark.parametrize('v', [1.01, -2, float('nan'), float('inf'), '0.5', None])
def test_a_threshold_that_is_no_cosine(v):
    for cls in (GateHead,ExitHead):
        assert 'threshold must be a number from -1 up to 1' in err(cls, SlotBank(4), threshold=v)
    assert 'temperature' in err(GateHead, SlotBank(4), temperature=0)

def test_targets_of_several_labels_are_refused():
    said = err(GateHead(SlotBank(8)).check_labels, torch.zeros(2, 5))
    assert '0/1' in said and "head='vote'" in said

def digits(n, size=32):
    d = load_digits()
    x = torch.from_numpy(d.images[:n]).float()[:,None]/8-1
    return nn.functional.interpolate(x, size).repeat(1, 3, 1, 1),torch.from_numpy(d.target[:n]).long()

@pytest.mark.parametrize('arch', ['vit_tiny_patch16_224','convnext_atto'])
def test_the_classifier_sees_misses_only(arch):
    torch.manual_seed(0)
    kw = dict(img_size=32) if 'vit' in arch else {}
    m = timm.create_model(arch, num_classes=10, **kw).eval()
    (x,y),rows = digits(12),[]
    bank = CachedBank(20, n_classes=10, similarity_threshold=1.)
    head = GateHead(bank)
    attach(m, head, x=x[:2])
    m.get_classifier().register_forward_pre_hook(lambda m, a: rows.append(len(a[0])))
    with torch.no_grad():
        with head.off(): plain = m(x)
        with in_step([head], Step(off=True)) as s: m(x)
        s.close()
        bank.write(s.main.seen[head].z[::3], y[::3])
        s = head.decide(s.main.seen[head].z)[2].view(4, 3)
        head.threshold.fill_((s[:,0].min()+s[:,1:].max())/2)
        rows.clear()
        out = m(x)
        assert sum(rows)==8
        torch.testing.assert_close(out[1::3], plain[1::3], rtol=1e-3, atol=1e-4)
        assert torch.equal(out[::3].argmax(1), y[::3])
        rows.clear()
        assert torch.equal(m(x[::3]).argmax(1), y[::3]) and rows==[]
        with in_step([head], Step(exits=False)): torch.testing.assert_close(m(x), out, rtol=1e-3, atol=1e-4)
        assert rows==[12]

def test_off_in_training_and_gradients_reach_all():
    torch.manual_seed(0)
    m,x = Net('logits'),torch.randn(6, 8)
    bank = banks['slots']()
    head = GateHead(bank, threshold=-1.)
    attach(m, head, x=x)
    with torch.no_grad(): bank.write(m.eval().body(x), torch.tensor([0,1,2,3,0,1]))
    out = m.train()(x)
    with head.off(): assert torch.equal(out, m(x))
    out.logsumexp(1).sum().backward()
    assert m.body.weight.grad.abs().sum()>0
    got = m.eval()(x)
    assert torch.equal(got.argmax(1), torch.tensor([0,1,2,3,0,1]))

@pytest.mark.parametrize('kind', banks)
def test_copies_have_the_threshold_of_their_head(kind):
    "An averaged copy (EMA, SWA) too, and one that is loaded"
    torch.manual_seed(0)
    m,x = Net('logits').eval(),torch.randn(12, 8)
    bank,y = banks[kind](),torch.arange(12)%C
    head = GateHead(bank)
    attach(m, head, x=x)
    with torch.no_grad():
        if bank.learned: bank.build(D, C)
        z = m.body(x)
        bank.write(z, y)
        with head.off(): logits = m(x)
    avg,early = AveragedModel(m, use_buffers=True),copy.deepcopy(m)
    got = head.fit(dict(logits=logits, z=z, y=y))
    avg.update_parameters(m)
    later = copy.deepcopy(m)
    new = Net('logits').eval()
    attach(new, GateHead(banks[kind](), threshold=.1), x=x)
    new.load_state_dict(m.state_dict())
    with torch.no_grad(): want = m(x)
    for o in (avg.module,later,new):
        h, = memories(o).values()
        assert h.chosen()==head.chosen()=={k:got[k] for k in ('threshold','certainty')}
        with torch.no_grad(): torch.testing.assert_close(o(x), want)
    assert next(iter(memories(early).values())).chosen()['threshold']==pytest.approx(.85)

def test_a_state_is_loaded_before_training():
    "Into a head whose bank has no rows yet, and out of one that has none"
    a,b = GateHead(SlotBank(8, n_classes=3), threshold=.3),GateHead(SlotBank(8, n_classes=3))
    b.load_state_dict(a.state_dict())
    assert b.chosen()==a.chosen() and len(b.bank)==0
    x,y,_ = some(1, 6, 3)
    a.bank.write(x, y)
    b.load_state_dict(a.state_dict())
    torch.testing.assert_close(b.mixed(torch.zeros(6, 3), x), a.mixed(torch.zeros(6, 3), x))

def test_rows_of_classes_that_the_network_lacks_are_refused():
    x,y,_ = some(0)
    bank = SlotBank(20, policy='fifo')
    bank.write(x, y+5)
    with pytest.raises(MemoError, match='rows of class'): GateHead(bank).mixed(torch.zeros(12, 3), x)

def test_rows_of_several_labels_are_refused_in_one_line():
    b = SlotBank(12, n_classes=C)
    b.write(torch.randn(12, D), y=torch.ones(12, C))
    for k in (1,3): assert "head='vote'" in err(GateHead(b, k).decide, torch.randn(5, D), n_classes=C)

def test_what_rows_favour_is_not_worked_out_for_all_of_them(monkeypatch):
    "Of a large bank of learned rows that would take longer than the search"
    b = TrainableBank(20, n_classes=C)
    m = nn.Sequential(nn.Flatten(), nn.Linear(D, D), nn.ReLU(), nn.Linear(D, C)).eval()
    attach(m, GateHead(b, threshold=0.), x=torch.randn(2, D))
    b.write(torch.rand(20, D), torch.arange(20)%C)
    monkeypatch.setattr(TrainableBank, 'classes', lambda self: pytest.fail('all rows'))
    with torch.no_grad():
        for n in (1,8): assert m(torch.randn(n, D)).shape==(n,C)
        with in_step([*memories(m).values()], Step(exits=False)): assert m(torch.randn(8, D)).shape==(8,C)
