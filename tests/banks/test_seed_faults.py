"Faults of the seed's published code (specs: Q1 to Q13) that banks could have; each test shows that one is not here"
import copy, math
import pytest, torch
from memo.banks.base import Bank
from memo.banks.key_value import CachedBank, TrainableBank

both = pytest.mark.parametrize('kind', [CachedBank,TrainableBank])
def rows(n, classes=5, dim=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=g),torch.arange(n)%classes

@both
def test_q1_a_bank_is_full_when_every_slot_is_taken(kind):
    "Not after the first update, and what is written is written whole"
    b = kind(1000, n_classes=5)
    x,y = rows(128)
    b.write(x, y)
    assert len(b)==128 and b.stats()['fill']==.128 and 'full' not in repr(b)
    torch.testing.assert_close(b.rows()[0], torch.nn.functional.normalize(x))
    for i in range(1, 8): b.write(*rows(128, seed=i))
    assert len(b)==1000 and 'full' in repr(b)

def test_q2_scores_are_on_the_path_of_the_loss():
    b = TrainableBank(40, n_classes=5)
    b.write(*rows(40))
    z,y = rows(6, seed=1)
    b.contrastive(z, y).backward()
    assert (b.scores.grad.abs().sum(1)>0).all() and (b.features.grad.abs().sum(1)>0).all()
    with torch.no_grad():       # a step against it makes the rows near to a query more of its class
        near = (torch.nn.functional.normalize(z)@b.features.T).argmax(1)
        was = b.scores.softmax(1)[near,y]
        b.scores -= 5*b.scores.grad
        assert (b.scores.softmax(1)[near,y]>was).all()

@both
def test_q3_every_row_of_the_class_is_a_positive(kind):
    "Not the first slot of its class alone: a query that is a row itself loses little, and classes keep many slots"
    b = kind(50, n_classes=5)
    x,y = rows(50)
    b.write(x, y)
    l = [float(b.contrastive(x[i:i+1], y[i:i+1])) for i in range(50)]
    assert max(l)<.4, 'the published loss is up to 10.6'
    z = rows(200, seed=2)[0].requires_grad_()
    c = torch.arange(200)%5
    opt = torch.optim.Adam([z,*b.parameters()], .02)
    for _ in range(80):
        opt.zero_grad()
        b.contrastive(z, c).backward()
        opt.step()
        b.settle()
    found = b.read(z.detach(), 1).index[:,0]
    assert len(found.unique())>10, 'all queries of a class find one slot'
    assert (b.labels[found]==c).float().mean()>.95

@both
def test_q4_a_class_that_is_not_in_the_bank(kind):
    "Has no part in the loss of a cached bank, and no NaN in any gradient; nor has half precision, at any temperature"
    b = kind(20, n_classes=6)
    x,y = rows(20)
    b.write(x, y)
    z = rows(4, seed=1)[0]
    w = torch.eye(16).requires_grad_()
    for dtype in (torch.float32,torch.float16):
        for t in (.1,.09,.0113,.001):
            l = b.contrastive((z@w).to(dtype), torch.tensor([0,1,2,5]), temperature=t)
            w.grad = None
            l.backward()
            assert l.isfinite() and w.grad.isfinite().all() and (t==.001 or w.grad.abs().sum()>0)
    if kind is CachedBank:
        torch.testing.assert_close(b.contrastive(z, torch.tensor([0,1,2,5])), b.contrastive(z[:3], torch.arange(3)))

@both
def test_q6_all_that_is_stored_is_in_the_state_dict(kind, tmp_path):
    "And goes along to another type and device; occupancy too"
    b = kind(300, n_classes=5)
    b.write(*rows(256))
    q = rows(9, seed=3)[0]
    torch.save(b.state_dict(), tmp_path/'b.pth')
    new = kind(300, n_classes=5)
    new.load_state_dict(torch.load(tmp_path/'b.pth'))
    b.save(tmp_path/'b.safetensors')
    for o in (new,Bank.load(tmp_path/'b.safetensors'),copy.deepcopy(b).half(),copy.deepcopy(b).to('cpu')):
        assert len(o)==256 and 'full' not in repr(o)
        assert all(torch.equal(m, n) for m,n in zip(o.classify(q), b.classify(q)))

@both
def test_q7_items_of_a_batch_know_of_one_another(kind):
    "Eight new items of a class with two rows do not overwrite each other; of eight near-duplicates one is stored"
    b = kind(16, n_classes=4)
    e = torch.eye(16)
    b.write(e, torch.tensor([0]*7+[1]*7+[2]*2))
    x = -torch.eye(16)[:8]
    slot = b.write(x, torch.full((8,), 2))
    at = slot[slot>=0]
    assert len(at)==len(at.unique())>=3 and torch.equal(b.rows()[0][at], x[slot>=0])
    slot = b.write(torch.ones(8, 16)*torch.tensor([1,-1.]*8), torch.full((8,), 3))
    assert (slot>=0).tolist()==[True]+[False]*7

def test_q7b_equally_sure_rows_are_replaced_by_chance():
    "Ten new items change ten slots, not the first one ten times"
    b = TrainableBank(20, n_classes=2, similarity_threshold=.9)
    b.write(torch.eye(40)[:20], torch.arange(20)%2)
    slots = [int(b.write(torch.eye(40)[20+i:21+i], torch.tensor([i%2]))) for i in range(10)]
    assert len({*slots})==10 and slots!=sorted(slots)
    new = TrainableBank(20, n_classes=2, similarity_threshold=.9, seed=1)
    new.write(torch.eye(40)[:20], torch.arange(20)%2)
    assert [int(new.write(torch.eye(40)[20+i:21+i], torch.tensor([i%2]))) for i in range(10)]!=slots

def test_q7b_unsure_and_unused_rows_go_first():
    b = TrainableBank(4, n_classes=2, similarity_threshold=.9)
    b.write(torch.eye(9)[:4], torch.tensor([0,1,0,1]))
    with torch.no_grad(): b.scores[2] *= .1
    assert int(b.write(torch.eye(9)[4:5], torch.tensor([0])))==2
    for _ in range(3): b.write(torch.eye(9)[[0,1,4]], torch.tensor([0,1,0]))        # slot 3 is recalled by nobody
    assert b.hits.tolist()==[3,3,3,0]
    assert int(b.write(torch.eye(9)[5:6], torch.tensor([1])))==3

@pytest.mark.parametrize('bs', [1,10,64])
def test_q8_class_counts_are_not_frozen(bs):
    "Five classes one after the other, 200 samples each, in 100 slots; ten classes sorted"
    for classes,per in ((5,200),(10,100)):
        g = torch.Generator().manual_seed(0)
        b = CachedBank(100, similarity_threshold=.9)
        for c in range(classes):
            for o in torch.randn(per, 16, generator=g).split(bs): b.write(o, torch.full((len(o),), c))
            n = b.class_counts()
            assert n.max()-n.min()<=1, n
        assert len(b)==100 and (n==100//classes).all() and int(b.replaced)>0

@both
def test_q9_a_write_between_forward_and_backward_is_an_error(kind):
    "Not a wrong gradient"
    b = kind(20, n_classes=5)
    b.write(*rows(20))
    z = rows(4, seed=1)[0].requires_grad_()
    l = b.contrastive(z, torch.arange(4))
    b.write(*rows(4, seed=2))
    with pytest.raises(RuntimeError, match='modified by an inplace operation'): l.backward()

@both
def test_q13_rows_are_stored_with_unit_length(kind):
    "So that reading makes no copy of them"
    b = kind(50, n_classes=5)
    b.write(100*rows(50)[0], rows(50)[1])
    assert b.rows()[0].data_ptr()==b.features.data_ptr() and ((b.rows()[0].norm(dim=1)-1).abs()<1e-6).all()

def test_confidence_is_the_cosine():
    b = CachedBank(3)
    b.write(torch.tensor([[3.,0],[0,2]]), torch.tensor([4,7]))
    c,sure = b.classify(torch.tensor([[5.,5.],[-1,0],[0,9]]))
    assert c.tolist()==[4,7,7]
    torch.testing.assert_close(sure, torch.tensor([math.sqrt(.5),0.,1.]))
