"Sensitivity and the like with intervals for patients, against scipy, loops over patients and planted truths"
import math
import numpy as np, pytest, torch
from hypothesis import given, strategies as st
from scipy import stats
from sklearn.metrics import confusion_matrix
from memo.core import MemoError
from memo.metrics.multilabel import class_calibration, class_rates, class_table, calibration_bins
from memo.metrics.shares import clopper_pearson, numbered, patients_with, share_interval

@given(st.integers(0,60), st.integers(1,60), st.sampled_from([.8,.95,.99]))
def test_exact_interval_is_scipys(k, n, level):
    k = min(k, n)
    want = stats.binomtest(k, n).proportion_ci(level, method='exact')
    assert clopper_pearson(k, n, level)==pytest.approx((want.low, want.high), abs=1e-9)

def by_hand(hit, of, who):
    "One class, patient by patient (Korn and Graubard 1998)"
    ps = sorted({w for w,o in zip(who, of) if o})
    n = [sum(bool(o) for w,o in zip(who, of) if w==p) for p in ps]
    x = [sum(bool(o and h) for w,h,o in zip(who, hit, of) if w==p) for p in ps]
    N,X,g = sum(n),sum(x),len(n)
    if not N: return (math.nan,)*3
    p = X/N
    size = N**2/sum(o*o for o in n)
    v = 0 if g<2 else g/(g-1)*sum((a-p*b)**2 for a,b in zip(x, n))/N**2
    if 0<X<N and v>1e-12 and size<N:
        size = min(N, p*(1-p)/v*(stats.t.ppf(.975, N-1)/stats.t.ppf(.975, g-1))**2)
    low = 0. if X==0 else stats.beta.ppf(.025, p*size, size-p*size+1)
    return p,low,1. if X==N else stats.beta.ppf(.975, p*size+1, size-p*size)

@given(st.integers(0,10**6), st.integers(1,40), st.integers(1,12), st.floats(0,1))
def test_intervals_by_hand(seed, n, patients, rate):
    g = torch.Generator().manual_seed(seed)
    hit,of = (torch.rand(n,3, generator=g)<rate for _ in range(2))
    who = torch.randint(patients, (n,), generator=g)
    got = torch.stack(share_interval(hit, of, numbered(who, n)[0]), 1)
    for r,h,o in zip(got, hit.T, of.T):
        assert r.tolist()==pytest.approx(by_hand(h.tolist(), o.tolist(), who.tolist()), nan_ok=True, abs=1e-9)
        assert not r[0]==r[0] or r[1]-1e-12<=r[0]<=r[2]+1e-12 and 0<=r[1]<=r[2]<=1

@given(st.integers(0,30), st.integers(1,30))
def test_one_image_each_is_the_exact_interval(k, n):
    k = min(k, n)
    hit = torch.arange(n)[:,None]<k
    for group in (None, np.arange(n)[::-1].copy()):
        p,*ends = (float(o) for o in share_interval(hit, torch.ones(n,1), group))
        assert p==k/n and ends==pytest.approx(list(clopper_pearson(k, n)))

def test_copies_of_images_are_no_evidence():
    "Ten copies of each patient's image say as much as one, or less; a patient alone says next to nothing"
    hit = (torch.arange(20)%4>0)[:,None]
    one = share_interval(hit, torch.ones(20,1))
    ten = share_interval(hit.repeat_interleave(10, 0), torch.ones(200,1), np.arange(200)//10)
    flat = share_interval(hit.repeat_interleave(10, 0), torch.ones(200,1))
    assert one[0]==ten[0] and ten[1]<=one[1]+.01 and ten[2]>=one[2]-.01 and flat[2]-flat[1]<.5*(ten[2]-ten[1])
    for hit in (torch.ones(30,1), torch.zeros(30,1), torch.arange(30)[:,None]%2):
        _,low,high = share_interval(hit, torch.ones(30,1), [0]*30)
        assert high-low>.95

def test_intervals_hold_for_patients():
    "Of nominal 95 % at least 90 % hold the planted sensitivity, of images that are alike within 3, 10 and 30 patients"
    g,s,alike = np.random.default_rng(0),.7,.5
    for patients in (3,10,30):
        n = g.integers(1, 8, (patients,150))
        x = g.binomial(n, g.beta(s*(1-alike)/alike, (1-s)*(1-alike)/alike, n.shape))
        of = np.concatenate([np.arange(7)[:,None]<o for o in n])
        hit = np.concatenate([np.arange(7)[:,None]<o for o in x])
        who = np.arange(patients).repeat(7)
        _,low,high = share_interval(hit, of, who)
        _,thin,thick = share_interval(hit, of)
        assert float(((low<=s)&(s<=high)).double().mean())>=.9
        assert float(((thin<=s)&(s<=thick)).double().mean())<.93

def test_whose_images_are():
    assert numbered(None, 3)[1]==3 and numbered([], 0)[1]==0
    assert numbered([5,-1,5,-1,-7], 5)[1]==4 and numbered(np.array([.5,-1.,.5]), 3)[0].tolist()==[0,1,0]
    i,n = numbered(['x','12','x'], 3)
    assert n==2 and i[0]==i[2]!=i[1]
    for bad in ([1,2], [[1],[2],[3]], 5):
        with pytest.raises(MemoError, match='groups: a patient for each of 3'): numbered(bad, 3)
    of = torch.tensor([[1,0,0],[1,0,1],[0,0,1]])
    assert patients_with(of, [0,0,1]).tolist()==[1,0,2] and patients_with(of[:0], []).tolist()==[0,0,0]

@given(st.integers(0,10**6), st.integers(2,50), st.sampled_from([0.,.2,.5,1.]))
def test_rates_are_those_of_the_confusion_matrix(seed, n, threshold):
    g = torch.Generator().manual_seed(seed)
    p,y = torch.rand(n,2, generator=g),(torch.rand(n,2, generator=g)<.3).float()
    r = class_rates(p.double(), y.double(), [threshold, .4])
    for i,t in enumerate((threshold, .4)):
        tn,fp,fn,tp = confusion_matrix(y[:,i], p[:,i]>t, labels=[0,1]).ravel()
        for k,(a,b) in dict(sensitivity=(tp,fn), specificity=(tn,fp), ppv=(tp,fp), npv=(tn,fn)).items():
            assert float(r[k][i])==pytest.approx(a/(a+b) if a+b else math.nan, nan_ok=True)

def test_intervals_of_a_table_know_whose_images_they_are():
    "Five images of each patient, all alike, say little more than one"
    g = torch.Generator().manual_seed(0)
    p,y = torch.rand(40,1, generator=g).double(),(torch.rand(40,1, generator=g)<.4).double()
    p,y,who = p.repeat(5, 1),y.repeat(5, 1),torch.arange(40).repeat(5)
    each,theirs = class_table(p, y, ['a']),class_table(p, y, ['a'], groups=who)
    for k in ('sensitivity','specificity','ppv','npv'):
        assert float(each[k][0])==float(theirs[k][0])
        wide,narrow = (float((o[f'{k}_high']-o[f'{k}_low'])[0]) for o in (theirs,each))
        assert wide>1.5*narrow

def test_what_is_not_known_is_left_out():
    g = torch.Generator().manual_seed(0)
    p,y = torch.rand(60,1, generator=g).double(),(torch.rand(60,1, generator=g)<.3).double()
    gone = torch.rand(60, generator=g)<.3
    masked = y.masked_fill(gone[:,None], -1)
    a,b = class_rates(p, masked, .4),class_rates(p[~gone], y[~gone], .4)
    assert all(torch.equal(a[k], b[k]) for k in a)
    a,b = class_calibration(p, masked),class_calibration(p[~gone], y[~gone])
    assert all(torch.equal(a[k], b[k]) for k in a)

@given(st.integers(0,10**6), st.integers(1,50))
def test_calibration_of_each_class(seed, n):
    g = torch.Generator().manual_seed(seed)
    p,y = torch.rand(n,3, generator=g),(torch.rand(n,3, generator=g)<.3).float()
    df = class_table(p, y, list('abc'))
    for i,r in enumerate(df.itertuples()):
        b = calibration_bins(p[:,i:i+1], y[:,i:i+1])
        assert r.ece==pytest.approx(float((b.n*(b.prob-b.freq).abs()).sum()/n))
        assert r.brier==pytest.approx(float(((p-y)**2)[:,i].mean()))
