"A lookup says what a loop over queries and rows would say, in bounded memory, in float32, with the right gradient"
import math, numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
import memo.banks.search as R
from helpers.tensors import close, draw
from memo.core import MemoError
from memo.banks.search import read_rows, class_votes, within_whitener

SIMS,NORMS = ('cosine','dot','euclidean'),(None,'both','query','memory','none')

def unit(v): return v/max(np.linalg.norm(v), 1e-12)
def loop(q, m, k, similarity='cosine', normalize=None, temperature=1., rescale=False, hidden=None):
    "The definition, one query and one row at a time, in float64"
    how = normalize or dict(cosine='both', dot='none', euclidean='none')[similarity]
    q,m = q.double().numpy(),m.double().numpy()
    out = []
    for b,x in enumerate(q):
        a = unit(x) if how in ('both','query') else x
        found = []
        for j,row in enumerate(m):
            if hidden is not None and hidden[b][j]: continue
            r = unit(row) if how in ('both','memory') else row
            found.append((float(-((a-r)**2).sum() if similarity=='euclidean' else a@r), j))
        found = sorted(found, key=lambda o: -o[0])[:k]
        s,i = [o[0] for o in found],[o[1] for o in found]
        e = [math.exp((o-s[0])/temperature) for o in s]
        w = [o/sum(e) for o in e]
        v = sum((a*m[j] for a,j in zip(w, i)), np.zeros(q.shape[1]))
        if rescale: v = unit(v)*np.linalg.norm(x)
        pad = k-len(i)
        out.append((v, w+[0.]*pad, i+[-1]*pad, s+[0.]*pad))
    return [torch.tensor(np.array(o)) for o in zip(*out)]

def same_read(r, want, tol=1e-4):
    close(r.value, want[0], tol); close(r.weight, want[1], tol); close(r.similarity, want[3], tol)
    assert r.index.tolist()==want[2].tolist()

@pytest.mark.parametrize('similarity', SIMS)
@pytest.mark.parametrize('normalize', NORMS)
@pytest.mark.parametrize('temperature,rescale', [(1.,False), (.07,True)])
def test_read_is_the_loop(similarity, normalize, temperature, rescale):
    kw = dict(similarity=similarity, normalize=normalize, temperature=temperature, rescale=rescale)
    q,m = draw(7, 6),draw(30, 6, seed=1)*torch.linspace(.2, 3, 30)[:,None]
    same_read(read_rows(q, m, 4, **kw), loop(q, m, 4, **kw))
    # lengths that are known are not worked out again
    same_read(read_rows(q, m, 4, norms=m.norm(dim=1), **kw), loop(q, m, 4, **kw))

def test_golden():
    "The published example (banks.md 1A.2); its second query is row 0 itself"
    m,q = torch.tensor([[1.,0],[0,2],[3,3],[-1,0]]),torch.tensor([[2.,1],[1,0]])
    r = read_rows(q, m, 2, same=[(torch.tensor([-1,0]), torch.arange(4))])
    close(r.value, torch.tensor([[2.02712,1.54068],[2.00928,2.66976]]))
    assert r.index.tolist()==[[2,0],[2,1]]

def test_masks_by_item_and_group():
    q,m = draw(6, 5),draw(20, 5, seed=1)
    qi,mi = torch.tensor([0,3,-1,7,-1,19]),torch.cat([torch.arange(15), torch.full((5,), -1)])
    qg,mg = torch.tensor([-1,2,-1,1,0,0]),torch.arange(20)%4-1
    hide = [[(a>=0 and a==c) or (b>=0 and b==d) for c,d in zip(mi.tolist(), mg.tolist())]
            for a,b in zip(qi.tolist(), qg.tolist())]
    assert any(map(any, hide))
    same_read(read_rows(q, m, 5, same=[(qi,mi),(qg,mg)]), loop(q, m, 5, hidden=hide))
    same_read(read_rows(q, m, 5, same=[(None,mi),(None,mg)]), loop(q, m, 5))
    seen = torch.arange(20)%3!=0
    hide = [[h or not s for h,s in zip(o, seen.tolist())] for o in hide]
    same_read(read_rows(q, m, 5, same=[(qi,mi),(qg,mg)], valid=seen), loop(q, m, 5, hidden=hide))

def test_negative_ids_match_nothing():
    "Whatever negative number stands for no id, on either side"
    q,m = draw(3, 4),draw(6, 4, seed=1)
    ids = torch.tensor([-1,-2,-3,-1,-2,5])
    same_read(read_rows(q, m, 6, same=[(torch.tensor([-1,-2,-3]), ids)]), loop(q, m, 6))

@pytest.mark.parametrize('similarity', SIMS)
@pytest.mark.parametrize('stretch', [1, 8, 40, 63])
def test_stretches_change_nothing(monkeypatch, similarity, stretch):
    q,m = draw(4, 5),draw(37, 5, seed=1)
    kw = dict(k=6, similarity=similarity, same=[(torch.tensor([1,-1,9,30]), torch.arange(37))],
              valid=torch.arange(37)%5!=0)
    whole = read_rows(q, m, **kw)
    monkeypatch.setattr(R, '_STRETCH', stretch)
    for a,b in zip(whole, read_rows(q, m, **kw)): close(a, b)

class Sizes(TorchDispatchMode):
    "The largest tensor an op gives back, and how many ops there are"
    def __init__(self): super().__init__(); self.most,self.ops = 0,0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.ops += 1
        for o in out if isinstance(out, (tuple,list)) else [out]:
            if isinstance(o, torch.Tensor): self.most = max(self.most, o.numel())
        return out

def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(R, '_STRETCH', 10_000)
    q,m = draw(100, 2),draw(4000, 2, seed=1)
    with Sizes() as s: read_rows(q, m, 3, same=[(torch.arange(100), torch.arange(4000))])
    assert 4000 <= s.most <= 10_000 < 100*4000

def test_no_loop_over_queries():
    def ops(n):
        with Sizes() as s: read_rows(draw(n, 8), draw(64, 8, seed=1), 3, same=[(torch.arange(n), torch.arange(64))])
        return s.ops
    assert ops(2)==ops(256)

def test_more_rows_than_can_be_read():
    q,m = draw(3, 4),draw(2, 4, seed=1)
    same_read(read_rows(q, m, 5), loop(q, m, 5))
    r = read_rows(q, m, 5, same=[(torch.tensor([0,1,-1]), torch.tensor([0,0]))])
    assert r.index[0].tolist()==[-1]*5 and not r.value[0].any() and not r.weight[0].any() and not r.similarity[0].any()
    assert r.index[1].tolist()[2:]==[-1]*3

@pytest.mark.parametrize('b,n', [(0,5), (3,0), (0,0)])
def test_empty(b, n):
    q = draw(b, 4).requires_grad_()
    r = read_rows(q, draw(n, 4), 3)
    assert r.value.shape==(b,4) and r.weight.shape==r.index.shape==r.similarity.shape==(b,
        3) and r.index.dtype==torch.long
    assert not r.value.any() and not r.weight.any() and (r.index==-1).all()
    (q+r.value).sum().backward()
    assert (q.grad==1).all()

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('similarity', SIMS)
def test_half_precision_in_float32_out(dtype, similarity):
    q,m = draw(9, 32).to(dtype),draw(40, 32, seed=1).to(dtype)
    r,want = read_rows(q, m, 3, similarity),read_rows(q.float(), m.float(), 3, similarity)
    for a,b in zip(r, want): assert a.dtype==b.dtype and torch.equal(a, b)
    assert r.similarity.dtype==r.weight.dtype==r.value.dtype==torch.float32

def test_autocast_changes_nothing():
    "In half precision a feature is not even its own nearest neighbour"
    m = F.normalize(draw(1, 64)+.01*draw(400, 64, seed=1))
    want = read_rows(m, m, 1)
    with torch.autocast('cpu', torch.bfloat16):
        assert (m@m.T).dtype==torch.bfloat16
        own = ((m@m.T).argmax(1)==torch.arange(400)).float().mean()
        got = read_rows(m, m, 1)
    for a,b in zip(got, want): assert a.dtype==b.dtype and torch.equal(a, b)
    assert own<.9 and got.index.squeeze(1).tolist()==list(range(400))

def dense(q, m, k, similarity, normalize, temperature, rescale, hidden):
    "The same read with autograd over the whole matrix"
    how = normalize or dict(cosine='both', dot='none', euclidean='none')[similarity]
    a,b = (F.normalize(q) if how in ('both','query') else q),(F.normalize(m) if how in ('both','memory') else m)
    s = -(a[:,None]-b[None]).square().sum(-1) if similarity=='euclidean' else a@b.T
    s,i = s.masked_fill(hidden, -torch.inf).topk(k)
    v = ((s/temperature).softmax(1)[...,None]*m[i]).sum(1)
    return F.normalize(v)*q.norm(dim=1, keepdim=True) if rescale else v

@pytest.mark.parametrize('similarity', SIMS)
@pytest.mark.parametrize('normalize', NORMS)
@pytest.mark.parametrize('rescale', [False, True])
def test_gradient_is_the_dense_one(similarity, normalize, rescale):
    q,m,up = draw(5, 6),draw(12, 6, seed=1),draw(5, 6, seed=2)
    ids,rows = torch.arange(5),torch.arange(12)
    a,b = q.clone().requires_grad_(),q.double().requires_grad_()
    v = read_rows(a, m, 3, similarity, normalize, .3, rescale, same=[(ids,rows)]).value
    w = dense(b, m.double(), 3, similarity, normalize, .3, rescale, ids[:,None]==rows)
    close(v, w, 1e-4)
    (v*up).sum().backward(); (w*up).sum().backward()
    assert a.grad.abs().max()>1e-3
    close(a.grad, b.grad, 1e-3)

def test_gradient_is_the_slope():
    q,m,up,step = draw(4, 6),draw(12, 6, seed=1),draw(4, 6, seed=2),draw(4, 6, seed=3)
    f = lambda q: (read_rows(q, m, 3, temperature=.5).value*up).double().sum()
    q.requires_grad_()
    slope = (torch.autograd.grad(f(q), q)[0]*step).sum()
    h = 3e-3
    q = q.detach()
    assert torch.equal(read_rows(q+h*step, m, 3).index, read_rows(q-h*step, m, 3).index)
    close(slope, (f(q+h*step)-f(q-h*step))/(2*h), 1e-2)

def test_gradient_of_similarity_and_weight():
    q,m = draw(4, 6).requires_grad_(),draw(12, 6, seed=1)
    r = read_rows(q, m, 3)
    for o in (r.similarity, r.weight.square()):
        assert torch.autograd.grad(o.sum(), q, retain_graph=True)[0].abs().max()>0
    assert not r.index.is_floating_point()

@pytest.mark.parametrize('rescale', [False, True])
def test_gradient_without_rows_and_of_zero_queries(rescale):
    "Nothing to read, or a dead feature: no NaN, and nothing that blows up a step"
    q = torch.cat([torch.zeros(1, 4), draw(2, 4)]).requires_grad_()
    r = read_rows(q, draw(3, 4, seed=1), 2, rescale=rescale, same=[(torch.tensor([-1,5,-1]), torch.full((3,), 5))])
    assert r.index[1].tolist()==[-1,-1]
    g, = torch.autograd.grad(r.value.sum(), q)
    assert g.isfinite().all() and not g[1].any() and g[2].any()
    assert g.abs().max()<1e3

def test_wrong_arguments():
    q,m = draw(3, 4),draw(5, 4)
    for args,say in [((q,draw(5, 3)),r'\(3, 4\).*\(5, 3\)'), ((q[0],m),r'\(4,\)')]:
        with pytest.raises(MemoError, match=say): read_rows(*args)
    with pytest.raises(MemoError, match="did you mean 'cosine'"): read_rows(q, m, similarity='cosin')
    with pytest.raises(MemoError, match="did you mean 'query'"): read_rows(q, m, normalize='querys')

small = st.integers(-2, 2)
@settings(max_examples=30)
@given(st.data())
def test_properties(data):
    "Ties and zero rows included, so the found are compared by their similarities"
    b,n,d,k = (data.draw(st.integers(*o)) for o in ((0,4),(0,7),(1,3),(1,5)))
    grid = lambda *s: torch.tensor(data.draw(st.lists(small, min_size=math.prod(s), max_size=math.prod(s))),
                                   dtype=torch.float32).view(s)
    q,m,qi,mi = grid(b,d),grid(n,d),grid(b).long(),grid(n).long()
    similarity,t = data.draw(st.sampled_from(SIMS)),data.draw(st.sampled_from([.1,1.]))
    r = read_rows(q, m, k, similarity, temperature=t, same=[(qi,mi)])
    hide = (qi[:,None]==mi) & (qi[:,None]>=0)
    found = r.index>=0
    assert found.sum(1).tolist()==(n-hide.sum(1)).clamp(max=k).tolist()
    assert (found.int().diff(dim=1)<=0).all()                                        # what is missing is last
    for o,row in zip(hide, r.index):
        assert not any(o[j] for j in row.tolist() if j>=0) and len(set(row.tolist())-{-1})==int((row>=0).sum())
    close(r.weight.sum(1), found.any(1)); assert not r.weight[~found].any()
    if b: close(r.similarity, loop(q, m, k, similarity, hidden=hide.tolist())[3], 1e-4)
    if n: close(r.value, (r.weight[...,None]*m[r.index.clamp(min=0)]).sum(1), 1e-4)

# votes
def vote_loop(labels, weight, index, n_classes, counts=None):
    out = torch.zeros(len(weight), n_classes, dtype=torch.double)
    for b in range(len(weight)):
        for w,i in zip(weight[b].tolist(), index[b].tolist()):
            if i>=0 and labels[i]>=0: out[b,labels[i]] += w/(1 if counts is None else max(int(counts[labels[i]]), 1))
        if out[b].sum()>0: out[b] /= out[b].sum()
    return out

@pytest.mark.parametrize('balanced', [False, True])
def test_votes_are_the_loop(balanced):
    y = torch.tensor([0,0,0,0,1,1,2,-1])
    r = read_rows(draw(9, 4), draw(8, 4, seed=1), 5, temperature=.2, same=[(torch.arange(9)-1, torch.zeros(8).long())])
    n = torch.bincount(y[y>=0], minlength=4) if balanced else None
    v = class_votes(y, r.weight, r.index, 4, n)
    close(v, vote_loop(y, r.weight, r.index, 4, n))
    assert not v[1].any() and not v[:,3].any()       # query 1 may read nothing; class 3 holds nothing
    close(v.sum(1)[2:], torch.ones(7))

def test_a_balanced_vote_asks_for_density():
    "Three near rows of a common class against one of a rare class, equally near"
    y,w,i = torch.tensor([0,0,0,1]),torch.full((1,4), .25),torch.arange(4)[None]
    assert class_votes(y, w, i, 2).argmax()==0
    close(class_votes(y, w, i, 2, torch.tensor([30,1]))[0], [1/11,10/11])

def multi_loop(labels, weight, index, counts=None, total=None):
    b,c = len(weight),labels.shape[1]
    out = torch.zeros(b, c, dtype=torch.double)
    for i in range(b):
        for j in range(c):
            pos = sum(w for w,o in zip(weight[i].tolist(), index[i].tolist()) if o>=0 and labels[o,j]==1)
            neg = sum(w for w,o in zip(weight[i].tolist(), index[i].tolist()) if o>=0 and labels[o,j]==0)
            if counts is not None: pos,neg = pos/max(int(counts[j]), 1),neg/max(int(total-counts[j]), 1)
            if pos+neg>0: out[i,j] = pos/(pos+neg)
    return out

@pytest.mark.parametrize('balanced', [False, True])
def test_multilabel_votes_are_the_loop(balanced):
    y = (draw(12, 3, seed=5)>.4).float()
    y[:,2] = 0                                          # a class without positives
    r = read_rows(draw(6, 4), draw(12, 4, seed=1), 5, temperature=.2,
                  same=[(torch.arange(6)-1, torch.zeros(12).long())])
    n = y.sum(0).long() if balanced else None
    v = class_votes(y, r.weight, r.index, 3, n, 12)
    close(v, multi_loop(y, r.weight, r.index, n, 12))
    assert not v[1].any() and not v[:,2].any() and ((v>=0)&(v<=1)).all()

@pytest.mark.parametrize('balanced', [False, True])
def test_unlabelled_rows_have_no_multilabel_vote(balanced):
    "-1 is not a negative number of votes"
    y = torch.tensor([[1.,0],[-1,-1],[0,1]])
    w,i = torch.tensor([[.5,.3,.2]]),torch.tensor([[0,1,2]])
    v = class_votes(y, w, i, 2, *((torch.tensor([1,1]),2) if balanced else ()))
    assert ((v>=0)&(v<=1)).all()
    close(v, multi_loop(y, w, i, *((torch.tensor([1,1]),2) if balanced else ())))

@given(st.lists(st.integers(-1, 3), min_size=1, max_size=8), st.data())
def test_votes_are_distributions(y, data):
    y = torch.tensor(y)
    k = data.draw(st.integers(1, 5))
    i = torch.tensor([data.draw(st.lists(st.integers(-1, len(y)-1), min_size=k, max_size=k)) for _ in range(3)])
    w = (i>=0)*torch.tensor([data.draw(st.lists(st.floats(.01, 1), min_size=k, max_size=k)) for _ in range(3)])
    v = class_votes(y, w, i, 4, torch.bincount(y[y>=0], minlength=4))
    lab = ((i>=0) & (y[i.clamp(min=0)]>=0)).any(1)
    close(v.sum(1), lab); assert (v>=0).all()

# whitening
@pytest.mark.parametrize('shrink', [0., .1, 1.])
def test_whitener_is_numpys(shrink):
    y = torch.arange(90)%4
    y[:10] = -1
    x = draw(90, 5)@draw(5, 5, seed=1)+3*draw(4, 5, seed=2)[y]
    w = within_whitener(x, y, shrink)
    a,b = x.double().numpy()[10:],y.numpy()[10:]
    d = np.concatenate([a[b==c]-a[b==c].mean(0) for c in range(4)])
    s = d.T@d/(len(a)-4)
    s = (1-shrink)*s+shrink*np.trace(s)/5*np.eye(5)
    e,v = np.linalg.eigh(s)
    close(w, v@np.diag(e**-.5)@v.T, 1e-4)
    close(w, w.T, 1e-6)
    assert w.dtype==torch.float32

def test_whitener_of_odd_data():
    "Fewer rows than dimensions, one row a class, a constant column, half precision, multi-label targets"
    x = draw(3, 6)
    for a,y in [(x,torch.tensor([0,1,2])), (x,torch.tensor([0,0,5])), (torch.ones(4, 3),torch.zeros(4).long()),
                (x.half(),torch.tensor([0,1,1]))]:
        assert within_whitener(a, y).isfinite().all()
    close(within_whitener(x, torch.eye(3)), within_whitener(x, torch.zeros(3).long()))
    with pytest.raises(MemoError, match='labelled'): within_whitener(x, torch.full((3,), -1))
