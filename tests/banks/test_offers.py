"What is offered to a bank: ids of any type, labels of which something is not known, and what is asked of it"
import copy
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from sklearn.datasets import load_digits
from torch._subclasses import FakeTensorMode
from toys.bank import Ring
from helpers.errors import err
from helpers.tensors import close, gen
from memo.banks import offers
from memo.banks.classes import ClassBank
from memo.banks.offers import as_ids, as_targets, copies, own_rows, slots_of
from memo.banks.policies import policies
from memo.banks.search import class_votes, read_rows
from memo.banks.slots import SlotBank
from memo.heads.base import nearest_hits
from memo.heads.mixture import VoteHead

_d = load_digits()
X,Y = torch.from_numpy(_d.data).float(),torch.from_numpy(_d.target).long()
N = 40
kinds = dict(slots=lambda: SlotBank(64, policy='fifo'), classes=lambda: ClassBank(10, 64), ring=lambda: Ring(64))

# ids
ids = dict(int32=torch.arange(N).int(), int16=np.arange(N).astype('int16'), uint8=torch.arange(N).byte(),
           float64=torch.arange(N).double(), float32=np.arange(N).astype('float32'), list=list(range(N)),
           series=pd.Series(range(N), index=range(7, N+7)),
           with_none=pd.Series([*range(N-1), None]), nullable=pd.Series([*range(N)], dtype='Int64'))

@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('of', ids)
def test_ids_of_any_type(kind, of):
    b,want,item = kinds[kind](),kinds[kind](),ids[of]
    values = item.tolist() if hasattr(item, 'tolist') else item
    true = torch.tensor([-1 if o is None or o!=o else int(o) for o in values])
    for _ in range(2):
        b.write(X[:N], Y[:N], item=item, group=item)
        want.write(X[:N], Y[:N], item=true, group=true)
    assert torch.equal(b.items, want.items) and torch.equal(b.groups, want.groups) and b.items.dtype==torch.int64
    got,r = b.read(X[:N], 2, item=item, group=item),want.read(X[:N], 2, item=true, group=true)
    assert torch.equal(got.index, r.index)
    assert b.rekey(X[:N]+1, as_ids(item))==want.rekey(X[:N]+1, true)>0

def test_no_ids():
    for bad in (torch.full((3,), .5), [1., 2., 1e17], torch.tensor([2**24+1.]), ['a','b'], [True], torch.tensor([1j]),
                [float('inf')]):
        assert 'item' in err(as_ids, bad) and 'whole numbers' in err(as_ids, bad)
    for b in (SlotBank(4), ClassBank(10, 4)):
        assert 'item' in err(b.write, X[:3], Y[:3], None, [.5,1,2]) and len(b)==0

# labels of which something is not known
def loop_votes(y, w, i, c):
    "Class by class: the weights of those that say yes, among those that say anything"
    out = torch.zeros(len(w), c)
    for b in range(len(w)):
        for k in range(c):
            yes = sum(float(a) for a,j in zip(w[b], i[b]) if j>=0 and y[j,k]==1)
            no = sum(float(a) for a,j in zip(w[b], i[b]) if j>=0 and y[j,k]==0)
            out[b,k] = yes/(yes+no) if yes+no else 0
    return out

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999))
def test_votes_of_known_targets_alone(seed):
    g = gen(seed)
    y = torch.randint(-1, 2, (12, 4), generator=g).float()
    y[torch.rand(12, 4, generator=g)<.1] = float('nan')
    b = SlotBank(12, policy='fifo')
    b.write(X[:12], y)
    assert torch.equal(b.labels, torch.where(y>=0, y, -1.))
    r = b.read(X[5:9], 6)
    got = class_votes(b.labels, r.weight, r.index, 4)
    close(got, loop_votes(b.labels, r.weight, r.index, 4))
    assert ((got>=0) & (got<=1)).all() and b.class_counts().tolist()==(y==1).sum(0).tolist()
    v = VoteHead(b, k=6).votes(X[5:9])
    assert ((v>=0) & (v<=1)).all() and v.isfinite().all()

def test_a_finding_nobody_knows_of():
    "Its vote is what is usual, not nothing; a row without any label has none"
    y = torch.tensor([[1.,-1],[0,-1],[1,-1]])
    b = SlotBank(4, policy='fifo')
    b.write(X[:3], y)
    v = VoteHead(b, k=3).votes(X[:2])
    assert (v[:,1]==.5).all() and v[0,0]>.5>v[1,0]
    b = SlotBank(4, policy='fifo')
    b.write(X[:3], torch.full((3,2), float('nan')))
    assert (VoteHead(b, k=3).votes(X[:2])==0).all()

def test_class_banks_file_known_positives():
    y = torch.eye(10)[Y[:N]]
    unknown = torch.where(torch.rand(N, 10, generator=gen())<.5, -1., y)
    b = ClassBank(10, 64)
    b.write(X[:N], unknown, item=torch.arange(N))
    assert b.class_counts().tolist()==(unknown==1).sum(0).tolist()

def test_rekey_takes_what_is_not_known_for_no_other_label():
    b,y = SlotBank(8, policy='fifo'),torch.tensor([[1.,0],[0,1],[1,-1]])
    b.write(X[:3], y, item=torch.arange(3))
    assert b.rekey(X[3:6], torch.arange(3), torch.tensor([[1.,0],[float('nan'),1],[1,1]]))==3
    other = torch.tensor([[0.,0],[0,1],[1,0]])
    with pytest.warns(UserWarning, match='1 of 3'): assert b.rekey(X[:3], torch.arange(3), other)==2

@pytest.mark.parametrize('bad', [3.7, -.25, float('inf')])
@pytest.mark.parametrize('make', [lambda: SlotBank(8), lambda: ClassBank(3, 4)])
def test_no_targets(bad, make):
    y = torch.zeros(4, 3)
    y[2,1] = bad
    b = make()
    assert f'{bad:g}' in err(b.write, X[:4], y) and len(b)==0

@pytest.mark.parametrize('name', [k for k in policies if k in ('hard','easy','curriculum')])
@pytest.mark.parametrize('multi', [False, True])
def test_policies_by_loss_without_some_labels(name, multi):
    "It was: Target -1 is out of bounds"
    y = torch.eye(10)[Y[:N]] if multi else Y[:N].clone()
    logits = torch.randn(N, 10, generator=gen())
    full = policies[name].score(offers_of(X[:N], y, logits), SlotBank(8, policy=name))
    y[3] = -1
    if multi: y[5,:4] = -1
    b = SlotBank(16, policy=name)
    b.write(X[:N], y, logits)
    part = policies[name].score(offers_of(X[:N], as_targets(y) if multi else y, logits), b)
    same = torch.ones(N, dtype=torch.bool)
    same[[3,5] if multi else [3]] = False
    assert len(b)>0 and part.isfinite().all() and torch.equal(full[same], part[same])
    b.write(X[:4], torch.full((4,10), float('nan')) if multi else torch.full((4,), -1), logits[:4])

def offers_of(x, y, logits):
    from memo.banks.policies import Candidates
    return Candidates(x, x.norm(dim=1), y, logits)

# what is asked
@pytest.mark.parametrize('kind', kinds)
def test_k_and_temperature(kind):
    b = kinds[kind]()
    b.write(X[:N], Y[:N])
    want = b.read(X[:2], 3)
    for k in (3., np.int64(3), np.float32(3), torch.tensor(3)): assert torch.equal(b.read(X[:2], k).index, want.index)
    for k in (2.5, True, 'three', None, float('nan'), float('inf'), 0, -1, 65*10):
        assert 'k' in err(b.read, X[:2], k)
    for t in (0, 0., -1, float('nan')): assert 'temperature' in err(b.read, X[:2], 3, temperature=t)

@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('similarity', ['cosine','dot','euclidean'])
def test_queries_that_are_not_finite(kind, similarity):
    "They find nothing, and the others what they find"
    b = kinds[kind]()
    b.write(X[:N], Y[:N], item=torch.arange(N))
    q = X[:4].clone()
    q[1,4],q[2] = float('nan'),float('nan')
    for item in (None, torch.arange(4)):
        r,want = b.read(q, 3, item=item, similarity=similarity),b.read(X[:4], 3, item=item, similarity=similarity)
        assert (r.index[[1,2]]==-1).all() and all((o[[1,2]]==0).all() for o in (r.value,r.weight,r.similarity))
        assert torch.equal(r.index[[0,3]], want.index[[0,3]])
        close(r.value[[0,3]], want.value[[0,3]])
    if kind!='classes':
        c,sure = b.classify(q)
        assert c[[1,2]].tolist()==[-1,-1] and (sure[[1,2]]==0).all() and c[0]==Y[0]
    q = q.requires_grad_()
    b.read(q, 3).value.sum().backward()
    assert q.grad[[0,3]].isfinite().all()

# where it was made
@pytest.mark.parametrize('kind', kinds)
def test_made_in_inference_mode(kind):
    full = kinds[kind]()
    full.write(X[:20], Y[:20], item=torch.arange(20))
    with torch.inference_mode():
        new,copied,loaded = kinds[kind](),copy.deepcopy(full),kinds[kind]()
        loaded.load_state_dict(full.state_dict())
    for b in (new, copied, loaded):
        b.write(X[:N], Y[:N], item=torch.arange(N))
        assert len(b)==N and b.rekey(X[:N]+1, torch.arange(N))==N
        b.reset()
        b.write(X[:N], Y[:N])
    with torch.inference_mode(): h = VoteHead(kinds[kind](), k=3)
    h.bank.write(X[:N], Y[:N])
    h.fit(dict(logits=torch.randn(30, 10), z=X[100:130], y=Y[100:130]))

def test_more_than_there_is_memory():
    assert 'size' in err(SlotBank, 10**9, dim=512) and 'memory' in err(SlotBank, 10**12)
    assert 'capacity' in err(ClassBank, 10**6, 10**6)

def test_room_is_not_asked_for(monkeypatch):
    "Nothing is allocated before it is refused"
    monkeypatch.setattr(offers, 'device_bytes', lambda device: 2**20)
    made = []
    monkeypatch.setattr(torch, 'full', lambda *a, **kw: made.append(a))
    for f,kw in ((SlotBank,dict(size=10**5)), (SlotBank,dict(size=10**3, dim=2048)),
                 (ClassBank,dict(n_classes=100, capacity=10**4))):
        say = err(f, **kw)
        assert '1 MB' in say and 'accepted' in say and not made

# the bank and the network on two devices
class OnTwo(SlotBank):
    "A bank whose counter can be read though its tensors are fake"
    def __len__(self): return 10

def test_a_bank_on_another_device():
    "Fake tensors refuse to mix devices, as real ones do; there need be no GPU"
    with FakeTensorMode(allow_non_fake_inputs=True):
        b = OnTwo(16, dim=64, policy='fifo')
        b.features,b.labels = torch.zeros(16, 64),torch.zeros(16, dtype=torch.long)
        b = b.to('cuda')
        q,item = torch.empty(3, 64),torch.arange(3)
        for kw in ({}, dict(item=item), dict(item=item, group=item.to('cuda'))):
            r = b.read(q, 2, **kw)
            assert {o.device.type for o in r}=={'cpu'} and r.value.shape==(3,64)
            r = b.read(q.to('cuda'), 2, **kw)
            assert {o.device.type for o in r}=={'cuda'}
        c,sure = b.classify(q, item)
        assert c.device.type==sure.device.type=='cpu'
        with pytest.raises(Exception, match='device'): read_rows(q, b.features, 2)     # which is what they do

# copies and rows of one's own
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 2)), min_size=1, max_size=9))
def test_copies_are_the_loop(rows):
    item,y = (torch.tensor(o) for o in zip(*rows))
    want = [(i,j) for j in range(len(rows)) for i in range(j) if rows[i]==rows[j] and rows[i][0]>=0]
    assert sorted(zip(*(o.tolist() for o in copies(item, y))))==sorted(want)

def test_own_rows_of_several_views():
    x,item = X[:6],torch.tensor([0,0,1,1,-1,2])
    assert own_rows(x, item, x, item).tolist()==[0,1,2,3,-1,5]
    assert own_rows(x[:2], torch.tensor([1,0]), x, item).tolist()==[-1,1]

def test_hits_of_known_positives():
    "A row that shares a finding, or has none as the query has none; -1 and NaN are no findings"
    nan,y = float('nan'),torch.tensor([[1.,-1,0],[0,0,-1],[0,1,0]])
    b = SlotBank(4, policy='fifo')
    b.write(X[:3], y)
    r = b.read(X[:3], 1)
    for q,want in (([[1,0,0],[0,0,0],[1,0,0]],[1,1,0]), ([[-1,1,0],[-1,nan,0],[nan,1,-1]],[0,1,1]),
                   ([[0,-1,0],[1,0,0],[0,0,0]],[0,0,0])):
        assert nearest_hits(b, r, torch.tensor(q).float()).tolist()==want

@given(st.integers(0, 10**6), st.integers(0, 30), st.integers(0, 30))
def test_slots_of_items(seed, n, size):
    "Slots of nobody are nobody's, neither are rows without an id"
    g = torch.Generator().manual_seed(seed)
    item = torch.randperm(40, generator=g)[:n].masked_fill(torch.rand(n, generator=g)<.3, -1)
    items = torch.randperm(40, generator=g)[:size].masked_fill(torch.rand(size, generator=g)<.3, -1)
    have = {k:j for j,k in enumerate(items.tolist()) if k>=0}
    assert slots_of(item, items).tolist()==[have.get(k, -1) for k in item.tolist()]
