"Cached and trainable banks against plain loops: one at a time, in batches, with ids, and at the edges"
import copy, math, warnings
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch.nn.functional import normalize
from memo.banks.base import Bank
from memo.banks.key_value import CachedBank, TrainableBank, first_of_alike, taken_from_largest
from memo.core import MemoError

both = pytest.mark.parametrize('kind', [CachedBank,TrainableBank])

def stream(n, classes=4, dim=8, seed=0, spread=.6):
    "Features in clusters, two for each class"
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (n,), generator=g)
    c = torch.randn(2*classes, dim, generator=torch.Generator().manual_seed(7))
    at = 2*y+torch.randint(0, 2, (n,), generator=g)
    return c[at]+spread*torch.randn(n, dim, generator=g),y

def full(kind, size=20, classes=4, seed=0, **kw):
    b = kind(size, n_classes=classes, **kw)
    b.write(*stream(size, classes, seed=seed+100))
    return b

def quota_loop(counts, y, size):
    "The seed's rule with a quota: which class the row that is given up has"
    seen = {c for c in counts if counts[c]}|{y}
    if counts.get(y, 0)>=max(size//len(seen), 1): return y
    most = max(counts.values())
    return min(c for c in counts if counts[c]==most)

def cached_loop(rows, labels, x, y, size, threshold):
    "One item after the other, in double precision"
    for u,c in zip(normalize(x.double()), y.tolist()):
        if len(rows)<size:
            rows.append(u)
            labels.append(c)
            continue
        s = torch.stack(rows)@u
        if s.max()>=threshold: continue
        of = quota_loop({k:labels.count(k) for k in set(labels)}, c, size)
        j = min((i for i in range(size) if labels[i]==of), key=lambda i: float(s[i]))
        rows[j],labels[j] = u,c

@pytest.mark.parametrize('seed', range(2))
@pytest.mark.parametrize('threshold,size', [(.8,30),(.95,17),(1.,40),(-1.,10)])
def test_a_cached_bank_equals_the_plain_loop_one_at_a_time(seed, threshold, size):
    x,y = stream(500, seed=seed)
    b,rows,labels = CachedBank(size, similarity_threshold=threshold),[],[]
    for i in range(500): b.write(x[i:i+1], y[i:i+1])
    cached_loop(rows, labels, x, y, size, threshold)
    assert b.labels.tolist()==labels
    torch.testing.assert_close(b.features.double(), torch.stack(rows), atol=1e-6, rtol=0)

def test_a_new_class_that_comes_late_is_equal_too():
    x,y = stream(500, classes=6, seed=3)
    o = y.sort(stable=True).indices
    x,y = x[o],y[o]
    b,rows,labels = CachedBank(31, similarity_threshold=.97),[],[]
    for i in range(500): b.write(x[i:i+1], y[i:i+1])
    cached_loop(rows, labels, x, y, 31, .97)
    assert b.labels.tolist()==labels

def batch_loop(b, x, y):
    "What a full bank does with a batch, by loops: similarities as they were, every row to a slot of its own"
    f,labels,size,tau = b.features.double(),b.labels.tolist(),b.size,b.similarity_threshold
    u = normalize(x.double())
    s,kept = u@f.T,[]
    for i in range(len(x)):
        if s[i].max()<tau and all(u[i]@u[j]<tau for j in kept): kept.append(i)
    classes = sorted({*labels,*y[kept].tolist()})
    counts = {c:labels.count(c) for c in classes}
    quota,now,grow = max(size//len(classes), 1),dict(counts),[]
    give = dict.fromkeys(classes, 0)
    for c in classes:
        mine = [i for i in kept if y[i]==c]
        grow += mine[:max(quota-counts[c], 0)]
    for _ in grow:
        most = max(now.values())
        c = min(c for c in classes if now[c]==most)
        now[c],give[c] = now[c]-1,give[c]+1
    slot,taken = [-1]*len(x),set()
    for c in classes:
        mine = [i for i in kept if y[i]==c and i not in grow]
        mine = mine[:counts[c]-give[c]]
        far = sorted((j for j in range(size) if labels[j]==c), key=lambda j: float(s[mine,j].mean()))
        for i,j in zip(mine, far): slot[i] = j
        taken |= {*far[:len(mine)]}
    grow,offered = sorted(grow),[]
    for c in classes:
        at = [j for j in range(size) if labels[j]==c and j not in taken]
        offered += sorted(at, key=lambda j: float(s[grow,j].sum()))[:give[c]]
    for i,j in zip(grow, sorted(offered, key=lambda j: float(s[grow,j].sum()))): slot[i] = j
    return slot

@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(2, 6), st.sampled_from([.7,.9,.99,1.]))
def test_a_batch_equals_the_batched_rule_by_loops(seed, n, classes, tau):
    b = full(CachedBank, 24, classes, similarity_threshold=tau, seed=seed)
    x,y = stream(n, classes, seed=seed+1)
    want = batch_loop(b, x, y)
    assert b.write(x, y).tolist()==want

@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 7), st.sampled_from([.5,.8,.95]),
       st.sampled_from([CachedBank,TrainableBank]))
def test_every_write_goes_to_a_slot_of_its_own(seed, n, classes, tau, kind):
    b = kind(16, n_classes=classes, similarity_threshold=tau)
    for i in range(4):
        x,y = stream(n, classes, seed=seed+i)
        before = copy.deepcopy(b)
        slot = b.write(x, y)
        at = slot[slot>=0]
        assert len(at.unique())==len(at) and len(b)<=16
        assert int(b.replaced)-int(before.replaced)==int((at<len(before)).sum())
        torch.testing.assert_close(b.features.detach()[at], normalize(x[slot>=0]), atol=1e-6, rtol=0)
        assert torch.equal(b.labels[at], y[slot>=0])
        n_ = b.features[:len(b)].norm(dim=1)
        assert ((n_-1).abs()<1e-5).all()

@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(2, 5))
def test_classes_end_as_large_as_one_at_a_time(seed, n, classes):
    "For what a batch finds new, however it is cut"
    b = full(CachedBank, 25, classes, similarity_threshold=1., seed=seed)
    b.write(torch.eye(8)[:classes], torch.arange(classes))         # all were seen
    counts = dict(enumerate(b.class_counts().tolist()))
    x,y = stream(n, classes, seed=seed+5)
    for c in y.tolist():
        of = quota_loop(counts, c, 25)
        counts[c],counts[of] = (counts[c]+1,counts[of]-1) if of!=c else (counts[c],counts[of])
    b.write(x, y)
    assert b.class_counts().tolist()==list(counts.values())

@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(0, 40))
def test_what_is_taken_from_the_largest(counts, n):
    n = min(n, sum(counts))
    now = list(counts)
    for _ in range(n): now[now.index(max(now))] -= 1
    assert taken_from_largest(torch.tensor(counts), n).tolist()==[a-b for a,b in zip(counts, now)]

@settings(max_examples=40, deadline=None)
@given(st.integers(1, 25), st.integers(0, 10**6), st.floats(0, 1))
def test_the_first_of_alike_rows_stay(n, seed, p):
    a = torch.rand(n, n, generator=torch.Generator().manual_seed(seed))<p
    a = a | a.T
    kept = []
    for i in range(n):
        if not any(a[i,j] for j in kept): kept.append(i)
    assert first_of_alike(a).nonzero().squeeze(1).tolist()==kept

def trainable_step(b, u, c):
    "What a full trainable bank is to do with one item: its slots and their content, or which may be given up"
    f,v = b.features.detach().double(),b.scores.detach().double()
    s,r = f@u,b.update_rate
    if s.max()>=b.similarity_threshold:
        mine = [j for j in range(b.size) if v[j].argmax()==c]
        j = max(mine, key=lambda j: float(s[j]), default=None)
        if j is None or s[j]<b.similarity_threshold: return None,None
        new = b.as_scores(torch.tensor([c]))[0].double()
        return j,(normalize((1-r)*f[j]+r*u, dim=0),(1-r)*v[j]+r*new)
    used,age = b.hits+1,b.updates+1-b.stamps
    return (v.softmax(1).amax(1)*used/(used+age)),None

@pytest.mark.parametrize('seed', range(2))
def test_a_trainable_bank_equals_the_plain_loop_one_at_a_time(seed):
    x,y = stream(500, seed=seed)
    b = TrainableBank(20, n_classes=4, similarity_threshold=.85)
    done = dict(moved=0, replaced=0, left=0)
    for i in range(500):
        u,c = normalize(x[i].double(), dim=0),int(y[i])
        f,v,n = b.features if b.features is None else b.features.detach().clone(),None,len(b)
        v = None if f is None else b.scores.detach().clone()
        what = trainable_step(b, u, c) if n==20 else None
        slot, = b.write(x[i:i+1], y[i:i+1]).tolist()
        if n<20:
            assert slot==n and len(b)==n+1
            continue
        changed = ((b.features!=f).any(1) | (b.scores!=v).any(1)).nonzero().squeeze(1).tolist()
        if what[0] is None:
            assert slot==-1 and changed==[]
            done['left'] += 1
        elif what[1] is not None:
            assert slot==-1 and changed==[what[0]]
            torch.testing.assert_close(b.features[what[0]].double(), what[1][0], atol=1e-6, rtol=0)
            torch.testing.assert_close(b.scores[what[0]].double(), what[1][1], atol=1e-6, rtol=0)
            done['moved'] += 1
        else:
            assert changed==[slot] and what[0][slot]<=what[0].min()*(1+1e-5)
            torch.testing.assert_close(b.features[slot].double(), u, atol=1e-6, rtol=0)
            p = b.scores[slot].softmax(0)
            assert p.argmax()==c and abs(float(p.detach()[c])-.9)<1e-6
            done['replaced'] += 1
    assert all(o>3 for o in done.values()), done

def test_rows_that_recognise_several_move_as_far_as_several_steps():
    b = TrainableBank(2, n_classes=2, update_rate=.25, similarity_threshold=.5)
    b.write(torch.eye(2), torch.tensor([0,1]))
    b.write(torch.tensor([[1.,.2],[1.,.2],[1.,.2]]), torch.zeros(3, dtype=torch.long))
    u = normalize(torch.tensor([1.,.2]), dim=0)
    torch.testing.assert_close(b.features[0].detach(), normalize(.75**3*torch.tensor([1.,0])+(1-.75**3)*u, dim=0))
    assert b.hits.tolist()==[3,0] and (b.write(u[None], torch.tensor([0]))==-1).all()

# items

@both
def test_an_item_that_is_stored_refreshes_its_own_row(kind):
    "And never gets a second one, whatever it looks like now; its slot is given to nobody in that batch"
    x,y = stream(60)
    b = kind(20, n_classes=4, similarity_threshold=1.)
    b.write(x[:20], y[:20], item=torch.arange(20))
    was = b.features.detach().clone()
    slot = b.write(-x[:40], y[:40], item=torch.arange(40))
    assert slot[:20].tolist()==list(range(20)) and (slot[20:]==-1).all() and int(b.replaced)==0
    want = normalize(-x[:20])
    if kind is TrainableBank: want = normalize(.75*was+.25*want)
    torch.testing.assert_close(b.features.detach(), want, atol=1e-6, rtol=0)
    assert sorted(b.items.tolist())==list(range(20)) and (b.stamps==2).all() and (b.hits==1).all()

@both
def test_of_an_item_that_comes_twice_in_a_batch_the_last_counts(kind):
    x,y = stream(2100, seed=2)
    b = kind(2100, n_classes=4)
    item = torch.arange(2100)%1050         # in different pieces of a large batch
    slot = b.write(x, y, item=item)
    assert (slot[:1050]==-1).all() and sorted(slot[1050:].tolist())==list(range(1050)) and len(b)==1050
    torch.testing.assert_close(b.features.detach()[slot[1050:]], normalize(x[1050:]), atol=1e-6, rtol=0)

def test_ids_that_are_not_known_are_no_item():
    x,y = stream(30)
    b = CachedBank(30)
    assert b.write(x, y, item=torch.full((30,), -1)).tolist()==list(range(30))

@both
def test_a_large_batch_is_as_good_as_its_pieces(kind):
    x,y = stream(3000)
    a,b = (kind(50, n_classes=4, similarity_threshold=.97) for _ in range(2))
    a.write(x, y)
    for o in torch.arange(3000).split(1024): b.write(x[o], y[o])
    assert torch.equal(a.labels, b.labels) or kind is TrainableBank        # there age counts, and writes are its clock
    assert len(a)==50 and int(a.seen)==3000 and int(a.updates)==1

# age and use

@both
def test_age_is_how_many_updates_ago_a_row_was_encoded(kind):
    x,y = stream(12)
    b = kind(8, n_classes=4, similarity_threshold=.99)
    for i in range(4): b.write(x[2*i:2*i+2], y[2*i:2*i+2], item=torch.arange(2*i, 2*i+2))
    assert b.age().tolist()==[3,3,2,2,1,1,0,0] and b.stats()['mean_age']==1.5 and b.stats()['max_age']==3
    assert b.rekey(-x[:2], torch.arange(2))==2
    assert b.age().tolist()==[0,0,2,2,1,1,0,0]
    torch.testing.assert_close(b.features[:2].detach(), normalize(-x[:2]), atol=1e-6, rtol=0)

@both
def test_a_row_that_recognises_something_was_used(kind):
    x,y = stream(8)
    b = kind(8, n_classes=4, similarity_threshold=.9)
    b.write(x, y)
    b.write(x[:3]*2, y[:3])
    assert b.hits.tolist()==[1]*3+[0]*5 and b.stats()['recalled']==3

@both
def test_occupancy_is_told(kind):
    x,y = stream(8)
    b = kind(8, n_classes=4)
    assert repr(b).endswith(': 0/8')
    b.write(x[:5], y[:5])
    assert repr(b).endswith(': 5/8') and b.stats()['occupancy']=='5/8'
    b.write(x[5:], y[5:])
    assert repr(b).endswith(': 8/8, full') and b.stats()['occupancy']=='8/8, full' and b.stats()['fill']==1

# edges

@both
def test_features_without_a_direction_are_not_stored(kind):
    x,y = stream(6)
    x[2] = 0
    b = kind(10, n_classes=4)
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        slot = b.write(x, y)
    assert slot[2]==-1 and len(b)==5 and int(b.refused)==1 and '1 of 6' in str(w[0].message)
    b.write(x[:1], y[:1], item=torch.tensor([3]))
    was = b.features.detach().clone()
    b.rekey(torch.zeros(1, 8), torch.tensor([3]))
    assert torch.equal(b.features, was)
    x = torch.cat([x[:1], x[2:3]])
    b = kind(10, n_classes=4)
    with pytest.warns(UserWarning, match='zeros'): b.write(x, y[:2], item=torch.tensor([8,8]))
    assert b.items[0]==8        # the other, of the same item, is none

@both
def test_tiny_and_huge_features_have_a_direction(kind):
    x,y = stream(6)
    b = kind(10, n_classes=4)
    b.write(x*torch.tensor([1e-30,1e-20,1e-6,1.,1e6,1e17])[:,None], y)
    torch.testing.assert_close(b.features[:6].detach(), normalize(x), atol=1e-5, rtol=0)

@both
def test_mistakes_are_one_line(kind):
    x,y = stream(6)
    b = kind(10, n_classes=4)
    for bad,says in ((dict(y=None), 'y='), (dict(y=torch.zeros(6,4)), 'SlotBank'), (dict(y=y-9), '-')):
        with pytest.raises(MemoError, match=says) as e: b.write(x, **bad)
        assert '\n' not in str(e.value) and len(b)==0 and b.features is None
    for t in (1.1,-2,math.nan):
        with pytest.raises(MemoError, match='similarity_threshold'): kind(10, similarity_threshold=t)
    with pytest.raises(MemoError, match='size'): kind(10**15)
    for t in (0.,-1.,math.nan):
        with pytest.raises(MemoError, match='temperature'): b.contrastive(x, y, temperature=t)
    with pytest.raises(MemoError, match='label -1'): CachedBank(5).write(x, torch.full((6,), -1))

def test_a_trainable_bank_needs_to_know_how_many_classes_there_are():
    b = TrainableBank(10)
    with pytest.raises(MemoError, match='n_classes='): b.write(*stream(3))
    assert len(b)==0 and int(b.seen)==0

@both
def test_a_bank_smaller_than_a_batch(kind):
    "And than the number of classes"
    for size in (1,2,3):
        b = kind(size, n_classes=5, similarity_threshold=1.)
        for i in range(5): b.write(*stream(30, 5, seed=i))
        assert len(b)==size and b.classify(b.features.detach()[:1])[0]==b.labels[0]

@both
def test_a_half_precision_context_changes_nothing(kind):
    a,b = full(kind),full(kind)
    x,y = stream(40, seed=9)
    with torch.autocast('cpu', torch.bfloat16):
        i,c = a.write(x, y),a.classify(x)
        l = a.contrastive(x.requires_grad_(), y)
    assert torch.equal(i, b.write(x, y)) and all(torch.equal(m, n) for m,n in zip(c, b.classify(x.detach())))
    assert torch.equal(l, b.contrastive(x, y)) and l.dtype==torch.float32

# reading

@both
def test_classify_is_what_read_says(kind):
    b = full(kind, 60)
    b.items.copy_(torch.arange(60))
    b.groups.copy_(torch.arange(60)//7)
    q = torch.cat([stream(30, seed=4)[0], torch.zeros(1, 8), torch.full((1,8), math.nan), 1e25*torch.ones(1, 8)])
    for kw in ({}, dict(item=torch.arange(33)), dict(group=torch.arange(33)//7), dict(item=torch.arange(33)-1,
                                                                                      group=torch.arange(33)%5)):
        c,sure = b.classify(q, **kw)
        r = b.read(q, 1, **kw)
        i = r.index[:,0]
        ok = torch.arange(33)<30
        assert torch.equal(c[ok], b.labels[i][ok])
        torch.testing.assert_close(sure[ok], r.similarity[ok,0], atol=1e-6, rtol=0)
        assert sure.isfinite().all() and c[31]==-1 and sure[31]==0
        want = Bank.classify(b, q, **kw)
        assert torch.equal(c[ok], want[0][ok]) and torch.equal(c[31], want[0][31])

@both
def test_a_lookup_asks_once_how_many_rows_there_are(kind, monkeypatch):
    "On a GPU each time is a wait for it"
    b,asked,was = full(kind, 60),[],kind.__len__
    b.items.copy_(torch.arange(60))
    monkeypatch.setattr(kind, '__len__', lambda self: asked.append(1) or was(self))
    b.classify(torch.randn(3, 8), item=torch.arange(3), group=torch.arange(3))
    assert len(asked)==1

@both
def test_all_rows_hidden_is_no_answer(kind):
    b = full(kind)
    b.groups.fill_(5)
    c,sure = b.classify(torch.randn(3, 8), group=torch.tensor([5,-1,5]))
    assert c.tolist()[::2]==[-1,-1] and c[1]>=0 and sure.tolist()[::2]==[0,0]

def test_rows_that_an_optimizer_moved_are_unit_rows_all_the_same():
    "To readers at once, and in the bank with the next write; with optimizers that torch cannot count too"
    from fastai.optimizer import Adam, SGD
    x,y = stream(30, seed=5)
    for make in (lambda p: torch.optim.AdamW(p, .1), lambda p: SGD([[*p]], .5, wd=.1), lambda p: Adam([[*p]], .1)):
        b = full(TrainableBank)
        b.classify(x)
        opt = make(b.parameters())
        b.contrastive(x, y).backward()
        opt.step()
        assert (b.features.norm(dim=1)-1).abs().max()>1e-3
        if isinstance(opt, torch.optim.Optimizer):
            assert ((b.rows()[0].norm(dim=1)-1).abs()<1e-5).all()
        b.settle()
        want = normalize(b.features.detach())
        torch.testing.assert_close(b.rows()[0], want, atol=1e-6, rtol=0)
        torch.testing.assert_close(b.classify(x)[1], (normalize(x)@want.T).amax(1), atol=1e-6, rtol=0)
        was = b.features.detach().clone()
        b.settle()
        assert torch.equal(b.features, was)

def test_what_a_copy_remembers_of_its_rows_is_its_own():
    b = full(TrainableBank)
    b.classify(torch.randn(2, 8))
    new = copy.deepcopy(b)
    with torch.no_grad():
        for _ in range(9): new.features.mul_(1.5)
    assert ((new.rows()[0].norm(dim=1)-1).abs()<1e-5).all()

def test_rows_whose_scores_are_lost_give_way_first():
    "A row whose scores became NaN is sure of nothing; what was written a moment ago stays"
    b = TrainableBank(3, 2)
    b.write(torch.eye(3), torch.tensor([0,1,0]), item=torch.arange(3))
    for lost,x in ([2],[-1.,-1,-1]),([0,1,2],[-1.,1,-1]):
        with torch.no_grad(): b.scores[lost] = math.nan
        assert b.confidence().isfinite().all() and (b.confidence()[lost]==0).all()
        slot = b.write(torch.tensor([[1.,0,0],x]), torch.tensor([0,1]), item=torch.tensor([0,10*len(lost)]))
        assert slot[0]==0 and slot[1] in (1,2) and b.items[0]==0 and (len(lost)>1 or slot[1]==2)
