"The memory contrastive loss of every labelled bank is that of a loop over features and rows, by value and gradient"
import pytest, torch
from hypothesis import given, strategies as st
from helpers.errors import err
from memo.banks.classes import ClassBank
from memo.banks.slots import SlotBank
from memo.heads.gate import GateHead

D,C = 5,4
banks = dict(slots=lambda: SlotBank(30, policy='fifo'), classes=lambda: ClassBank(C, 10),
             half=lambda: ClassBank(C, 10, dtype='float16'), int8=lambda: ClassBank(C, 10, dtype='int8'))

def loop(bank, z, y, t, item=None, group=None):
    "-log of the share of the own class, one feature after the other; None where none has a row of its class"
    f,_,labels,items,groups,valid = bank.rows()
    f,res = f[:].double(),[]
    f = f/f.norm(dim=1, keepdim=True).clamp(min=1e-12)
    for i in range(len(z)):
        pos = every = 0
        for j in range(len(f)):
            if valid is not None and not valid[j]: continue
            if any(a is not None and a[i]>=0 and a[i]==b[j] for a,b in ((item,items),(group,groups))): continue
            e = (f[j]@z[i]/z[i].norm()/t).exp()
            every = every+e
            if y[i]>=0 and labels[j]==y[i]: pos = pos+e
        if torch.is_tensor(pos): res.append(-(pos/every).log())
    return torch.stack(res).mean() if res else None

@pytest.mark.parametrize('kind', banks)
@given(seed=st.integers(0, 10**6), t=st.sampled_from([.05,.1,1.]), hide=st.booleans())
def test_as_a_loop(kind, seed, t, hide):
    g = torch.Generator().manual_seed(seed)
    bank,n = banks[kind](),int(torch.randint(1, 14, (1,), generator=g))
    bank.write(torch.randn(n, D, generator=g), torch.randint(0, C-1, (n,), generator=g), item=torch.arange(n),
               group=torch.arange(n)//2)
    z,y = torch.randn(6, D, generator=g),torch.randint(-1, C, (6,), generator=g)
    ids = (torch.tensor([0,1,2,-1,-1,3]),torch.tensor([-1,-1,1,0,5,-1])) if hide else (None,None)
    a,b = z.clone().requires_grad_(),z.double().requires_grad_()
    got,want = bank.contrastive(a, y, t, *ids),loop(bank, b, y, t, *ids)
    assert (got is None)==(want is None)
    if got is None: return
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)
    got.backward(); want.backward()
    torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-3, atol=1e-5)

@pytest.mark.parametrize('kind', banks)
def test_nothing_to_be_near_to_is_no_loss(kind):
    bank,z = banks[kind](),torch.randn(3, D, requires_grad=True)
    y = torch.tensor([0,1,2])
    assert bank.contrastive(z, y) is None                       # empty
    bank.write(torch.randn(2, D), torch.tensor([3,3]), item=torch.tensor([7,8]))
    assert bank.contrastive(z, y) is None                       # other classes
    assert bank.contrastive(z[:0], y[:0]) is None
    assert bank.contrastive(z[:1], torch.tensor([3]), item=torch.tensor([7])) is not None
    bank.reset()
    bank.write(torch.randn(1, D), torch.tensor([0]), item=torch.tensor([7]))
    assert bank.contrastive(z[:1], y[:1], item=torch.tensor([7])) is None       # its own row alone
    l = bank.contrastive(torch.zeros(2, D, requires_grad=True), y[:2])          # no direction
    assert l.isfinite()

def test_in_half_precision_and_at_small_temperatures():
    g = torch.Generator().manual_seed(0)
    bank = banks['slots']()
    bank.write(torch.randn(20, D, generator=g), torch.arange(20)%C)
    for t in (.001, .01, .1):
        with torch.autocast('cpu', torch.bfloat16):
            z = torch.randn(8, D, generator=g).bfloat16().requires_grad_()
            l = bank.contrastive(z, torch.arange(8)%C, t)
        l.backward()
        assert l.dtype==torch.float32 and l.isfinite() and z.grad.isfinite().all()

def test_what_it_cannot_do_is_one_line():
    bank,z = SlotBank(8, policy='fifo'),torch.randn(2, D)
    assert 'temperature' in err(bank.contrastive, z, torch.tensor([0,1]), 0)
    bank.write(torch.randn(4, D), torch.ones(4, 3))
    assert 'one class' in err(bank.contrastive, z, torch.ones(2, 3))
    bare = SlotBank(8, policy='fifo')
    bare.write(torch.randn(4, D))
    assert bare.contrastive(z, torch.tensor([0,1])) is None

def test_a_gate_over_any_of_them_has_it():
    for make in banks.values():
        bank = make()
        bank.write(torch.randn(12, D), torch.arange(12)%C)
        z = torch.randn(4, D, requires_grad=True)
        GateHead(bank).loss(z, torch.arange(4)).backward()
        assert z.grad.abs().sum()>0
