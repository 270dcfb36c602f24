"An index finds what exact search finds, hides what that hides, and is gone when the bank has changed"
import copy, io, pickle, threading, warnings
import pytest, torch
from hypothesis import given, settings, strategies as st
from helpers.errors import err
from helpers.tensors import close, draw
from memo.banks.base import Bank
from memo.banks.classes import ClassBank
from memo.banks.index import Index, index_kinds, order_of, usual_kind
from memo.banks.search import search, searchers
from memo.banks.slots import SlotBank

faiss = pytest.importorskip('faiss')

def blobs(n, dim=16, c=30, seed=0):
    i = torch.randint(0, c, (n,), generator=torch.Generator().manual_seed(seed))
    return 3*draw(c, dim, seed=99)[i]+draw(n, dim, seed=seed),i%3

def bank_of(n=1500, kind='slots', **kw):
    x,y = blobs(n, **kw)
    b = SlotBank(n, policy='fifo') if kind=='slots' else ClassBank(3, n//2, dtype=kind)
    b.write(x*torch.linspace(.5, 2, n)[:,None], y, item=10**12+torch.arange(n), group=torch.arange(n)//3)
    return b

def same_read(a, b):
    assert torch.equal(a.index, b.index)
    for m,n in zip(a, b): close(m, n, 1e-4)

# what is found

@pytest.mark.parametrize('kind', index_kinds)
@pytest.mark.parametrize('of', ['slots','float32','int8','compressed'])
def test_it_finds_what_exact_search_finds(of, kind):
    "And its similarities, weights, values and gradients are those of exact search"
    b = bank_of(kind='slots' if of=='compressed' else of)
    if of=='compressed': b = b.compress(.08, 'pq')
    q = blobs(1500)[0][:40]+.01*draw(40, 16, seed=5)        # nearest to its own row, where that is not hidden
    items,groups = 10**12+torch.arange(40),torch.arange(40)//2
    asks = [dict(k=1), dict(k=5), dict(k=3, item=items), dict(k=3, item=items, group=groups, temperature=.1)]
    want = [b.read(q, **o) for o in asks]
    ix = b.index(kind, recall=.9)
    assert ix.kind==kind and ix.recall>=.9
    ix.probes = ix.faiss.nlist      # look everywhere: then only the codes could miss a row, and they are compared
    for o,w in zip(asks, want): same_read(b.read(q, **o), w)
    z = q.clone().requires_grad_()
    b.read(z, 3).value.sum().backward()
    searchers.pop(b)
    y = q.clone().requires_grad_()
    b.read(y, 3).value.sum().backward()
    close(z.grad, y.grad, 1e-4)

@settings(max_examples=25, deadline=None)
@given(st.integers(2, 300), st.integers(1, 12), st.integers(1, 9), st.sampled_from(['cosine','dot','euclidean']),
       st.booleans(), st.integers(0, 99))
def test_any_bank_any_similarity(n, k, groups, similarity, classes, seed):
    "Few rows, groups of which nearly everything is hidden, places that are free: as a loop says"
    x,y = blobs(n, 6, seed=seed)
    k = min(k, n)
    b = ClassBank(3, n) if classes else SlotBank(n, policy='fifo')
    b.write(x, y, group=torch.arange(n)%groups)
    q,g = draw(5, 6, seed=seed+1),torch.arange(5)%groups
    ix = b.index('ivf', similarity, recall=1e-9)
    if ix.kind=='ivf': ix.probes = ix.faiss.nlist
    i = b.read(q, k, group=g, similarity=similarity).index
    f,_,_,_,own,valid = b.rows()
    for a in range(5):
        def near(j):
            r,z = f[j].double(),q[a].double()
            if similarity=='euclidean' and not classes: return -float((r-z).square().sum())
            return float(r@z) if similarity=='dot' and not classes else float(torch.cosine_similarity(r, z, dim=0))
        ok = [j for j in range(len(f)) if own[j]!=g[a] and (valid is None or valid[j])]
        want = sorted(ok, key=lambda j: -near(j))[:k]
        got = [j for j in i[a].tolist() if j>=0]
        assert len(got)==len(want) and {*got}<={*ok}
        close([near(j) for j in got], [near(j) for j in want], 1e-4)

def test_where_too_little_is_left_search_is_exact():
    "All that the index gives is of the query's own group"
    b = SlotBank(400, policy='fifo')
    x = torch.cat([torch.ones(300, 8)+.01*draw(300, 8), draw(100, 8)])
    b.write(x, torch.arange(400)%2, group=(torch.arange(400)>=300).long())
    q = torch.ones(3, 8)
    want = b.read(q, 4, group=torch.tensor([0,0,1]))
    b.index('ivf', recall=.1).probes = 1
    got = b.read(q, 4, group=torch.tensor([0,0,1]))
    assert torch.equal(got.index[:2], want.index[:2]) and (want.index[:2]>=300).all() and (got.index[2]<300).all()

def test_what_is_no_longer_valid_is_not_found():
    "Also where nobody wrote to the rows"
    b = bank_of(kind='float32')
    q = torch.cat([b.features[c,:9] for c in range(3)])
    b.index('ivf', recall=.1).probes = 100
    b.offers.fill_(5)
    i = b.read(q, 3).index
    assert (i>=0).all() and (i%b.capacity<5).all() and b in searchers

def test_odd_queries():
    b = bank_of()
    b.index('ivf', recall=.5)
    assert b.read(torch.zeros(0, 16), 2).index.shape==(0,2)
    q = torch.stack([torch.full((16,), torch.nan), torch.zeros(16), b.features[3]])
    i = b.read(q, 2).index
    assert (i[0]==-1).all() and (i[1]>=0).all() and i[2,0]==3
    x = b.features[:4].bfloat16()
    with torch.autocast('cpu', dtype=torch.bfloat16): assert b.read(x, 1).index[:,0].tolist()==[0,1,2,3]
    with torch.inference_mode(): assert b.read(b.features[:4], 1).index[:,0].tolist()==[0,1,2,3]

def test_it_really_goes_through_the_index(monkeypatch):
    import memo.banks.search as S
    b = bank_of()
    ix = b.index('ivf')
    def no(*args, **kwargs): raise AssertionError('exact search')
    ix.exact = no
    monkeypatch.setattr(S, 'search', no)
    assert b.read(b.features[:9], 1).index[:,0].tolist()==[*range(9)]

# which index

def test_small_banks_are_searched_exactly():
    b = bank_of()
    ix = b.index()
    assert ix.kind=='exact' and 'exact search of 1500 rows' in repr(ix) and usual_kind(10**6)=='ivf'
    assert b.read(b.features[:2], 1).index[:,0].tolist()==[0,1]

def test_what_cannot_find_enough_stays_exact():
    "Noise in 256 dimensions has no lists; product codes of it say nothing"
    b,q = SlotBank(3000, policy='fifo'),draw(50, 251, seed=4)
    b.write(draw(3000, 251), torch.arange(3000)%2)
    want = b.read(q, 3)
    ix = b.index('ivfpq', recall=1)
    assert ix.kind=='exact' and 'ivfpq reached' in repr(ix)
    same_read(b.read(q, 3), want)

def test_an_index_of_another_similarity_is_not_used():
    b,q = bank_of(),blobs(9, seed=8)[0]
    want = b.read(q, 3, similarity='dot')
    b.index('ivf')
    with pytest.warns(UserWarning, match="index\\(similarity='dot'\\)"): same_read(b.read(q, 3, similarity='dot'), want)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        b.read(q, 3, similarity='dot')
        b.read(q, 3, similarity='cosine', normalize='memory')       # the same order
        b.read(q, 3, similarity='euclidean', normalize='both')
    assert b in searchers
    b.index('ivf', 'dot', recall=.9).probes = 10**3
    same_read(b.read(q, 3, similarity='dot'), want)

@settings(max_examples=60, deadline=None)
@given(st.sampled_from(['cosine','dot','euclidean']), st.sampled_from([None,'both','query','memory','none']),
       st.sampled_from(['cosine','dot','euclidean']), st.sampled_from([None,'both','query','memory','none']))
def test_the_same_order_is_the_same(a, an, b, bn):
    x,q = draw(50, 5)*torch.linspace(.3, 4, 50)[:,None],draw(4, 5, seed=2)
    if order_of(a, an)!=order_of(b, bn): return
    assert torch.equal(search(q, x, 9, a, an)[1], search(q, x, 9, b, bn)[1])

# fresh or not

def written(b): b.write(torch.ones(1, 16), torch.tensor([0]))
def written_in_inference(b):
    with torch.inference_mode(): written(b)
def rekeyed(b): b.rekey(torch.ones(1, 16), torch.tensor([10**12+5]))
def emptied(b): b.reset()
def loaded(b): b.load_state_dict(bank_of(seed=3).state_dict())
def moved(b): b.to('meta').to_empty(device='cpu').load_state_dict(bank_of(seed=3).state_dict())
def averaged(b): b.features.lerp_(torch.zeros(()), .5)

@pytest.mark.parametrize('change', [written, written_in_inference, rekeyed, emptied, loaded, moved, averaged])
def test_a_changed_bank_is_searched_exactly(change):
    b,q = bank_of(),blobs(9, seed=8)[0]
    b.index('ivf')
    change(b)
    searcher,free = searchers[b],copy.deepcopy(b)
    with pytest.warns(UserWarning, match='changed since') as w: got = b.read(q, 3)
    assert len([o for o in w if 'changed since' in str(o.message)])==1
    assert b not in searchers and all(torch.equal(m, n) for m,n in zip(got, free.read(q, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        b.read(q, 3)
    if len(b): assert b.index('ivf', recall=.5) is not searcher and b.read(b.features[:1], 1).index[0,0]==0

def test_reading_and_moving_nowhere_change_nothing():
    b = bank_of()
    b.index('ivf')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        b.read(b.features[:3], 2); b.classify(b.features[:3]); b.stats(); b.to('cpu'); b.state_dict(); repr(b)
        b.write(torch.zeros(0, 16), torch.zeros(0).long())
        b.read(b.features[:3], 2)
    assert b in searchers

def test_it_is_in_no_file_and_no_copy(tmp_path):
    b = bank_of()
    was = {k:v.clone() for k,v in b.state_dict().items()}
    plain = len(pickle.dumps(b))
    b.index('ivf')
    assert b.state_dict().keys()==was.keys() and all(torch.equal(v, was[k]) for k,v in b.state_dict().items())
    assert len(pickle.dumps(b))==plain
    b.save(tmp_path/'b.safetensors')
    for new in (copy.deepcopy(b), pickle.loads(pickle.dumps(b)), Bank.load(tmp_path/'b.safetensors')):
        assert new not in searchers and torch.equal(new.read(b.features[:5], 1).index, b.read(b.features[:5], 1).index)
    assert torch.export.export(Reads(b), (b.features[:2],), dynamic_shapes=[{0:torch.export.Dim('n')}]).module()(
        b.features[:5]).tolist()==b.read(b.features[:5], 3).index.tolist()

class Reads(torch.nn.Module):
    def __init__(self, bank):
        super().__init__()
        self.bank = bank
    def forward(self, q): return self.bank.read(q, 3).index

def test_it_goes_with_its_bank():
    n = len(searchers)
    b = bank_of()
    b.index('ivf')
    assert len(searchers)==n+1
    del b
    assert len(searchers)==n

def test_two_threads_search_at_once():
    b,found = bank_of(4000),{}
    b.index('ivf', recall=.9)
    qs = [blobs(64, seed=i)[0] for i in range(4)]
    want = [b.read(q, 5) for q in qs]
    def run(i):
        for _ in range(20):
            got = b.read(qs[i], 5)
            if not torch.equal(got.index, want[i].index): return
        found[i] = True
    ts = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for t in ts: t.start()
    for t in ts: t.join()
    assert len(found)==4

def test_threads_hear_of_a_change_once():
    b,q = bank_of(),blobs(4, seed=2)[0]
    ix = b.index('ivf')
    written(b)
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        ts = [threading.Thread(target=b.read, args=(q, 3)) for _ in range(6)]
        for t in ts: t.start()
        for t in ts: t.join()
        assert ix.stale(b.rows()[0])        # a thread that was a little later
    assert len([o for o in w if 'changed since' in str(o.message)])==1

def test_a_model_uses_it():
    "Behind a head, with its own rows hidden in training: the answers stay"
    from contracts.made import learner
    from helpers.learners import quietly
    learn = learner(SlotBank(48, policy='fifo'), 'vote', k=3)
    quietly(learn, learn.fit, 1, 1e-2)
    x = learn.dls.valid_ds.x.float()
    model = learn.model.eval()
    with torch.no_grad():
        want = model(x)
        learn.memory.bank.index('ivf', recall=.5).probes = 100
        close(model(x), want, 1e-4)
        assert learn.memory.bank in searchers
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        quietly(learn, learn.fit, 1, 1e-2)      # which writes
    assert learn.memory.bank not in searchers

def test_bad_input():
    b = bank_of(60)
    assert 'empty' in err(SlotBank(4).index) and 'did you mean' in err(b.index, 'ivfp')
    assert 'cosine' in err(b.index, None, 'cosin')
    for r in (0, -1, 1.1, float('nan'), '1', None, True): assert 'recall' in err(b.index, None, 'cosine', r)

def test_rows_that_are_made_anew_have_no_index():
    class Anew(SlotBank):
        def rows(self):
            f,*rest = super().rows()
            return f*1.,*rest
    b = Anew(9, policy='fifo')
    b.write(draw(9, 4), torch.arange(9))
    assert 'made anew' in err(b.index, 'ivf')
