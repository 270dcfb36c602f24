"Thresholds by rule against a search over every score, and what cannot be chosen"
import math
import numpy as np, pytest, torch
from hypothesis import given, strategies as st
from sklearn.metrics import f1_score, roc_curve
from memo.core import MemoError
from memo.metrics.multilabel import class_rates, class_table, multilabel_scores
from memo.metrics.thresholds import threshold_rule, thresholds

def case(seed, n=60, c=4, ties=None, rate=.3):
    g = torch.Generator().manual_seed(seed)
    y = (torch.rand(n,c, generator=g)<rate).float()
    p = (torch.randn(n,c, generator=g)+y).sigmoid()
    return (p if ties is None else (p*ties).round()/ties),y

def sens(p, y, t): return float(((p>t)&(y>0)).sum()/(y>0).sum())
def spec(p, y, t): return float(((p<=t)&(y==0)).sum()/(y==0).sum())
goals = dict(f1=lambda p, y, t: f1_score(y, p>t, zero_division=0), youden=lambda p, y, t: sens(p, y, t)+spec(p, y, t)-1)
def all_cuts(p):
    "Every threshold that finds something else, and 0 and 1"
    v = sorted({0., 1., *p.double().tolist()})
    return [*v, *((a+b)/2 for a,b in zip(v, v[1:]))]

@given(st.integers(0,10**6), st.integers(4,40), st.sampled_from([None,1,3,10]), st.sampled_from([.05,.3,.9]),
       st.sampled_from(['f1','youden']))
def test_the_best_of_all(seed, n, ties, rate, by):
    p,y = case(seed, n, ties=ties, rate=rate)
    for a,b,t in zip(p.T.double(), y.T, thresholds(p, y, by).tolist()):
        if not 0<b.sum()<len(b):
            assert t==.5
            continue
        every = [goals[by](a, b, o) for o in all_cuts(a)]
        if max(every)<=1e-9: assert t==.5
        else:
            assert goals[by](a, b, t)==pytest.approx(max(every))
            lowest = min(o for o,v in zip(all_cuts(a), every) if v>max(every)-1e-9)
            assert ((a>t)==(a>lowest)).all()        # of equally good ones that which finds most

def test_youden_is_that_of_the_roc_curve():
    p,y = case(3, 500)
    for a,b,t in zip(p.T, y.T, thresholds(p, y, 'youden')):
        fpr,tpr,_ = roc_curve(b, a)
        assert sens(a, b, t)+spec(a, b, t)-1==pytest.approx((tpr-fpr).max())

@given(st.integers(0,10**6), st.integers(4,40), st.sampled_from([None,3,10]), st.sampled_from([.5,.9,.95,1.]),
       st.sampled_from(['sensitivity','specificity']))
def test_what_is_asked_for_is_kept(seed, n, ties, least, name):
    "And no more is given away for it than has to be"
    p,y = case(seed, n, ties=ties)
    p = p.clamp(min=1e-4)
    f,other = (sens,spec) if name=='sensitivity' else (spec,sens)
    for a,b,t in zip(p.T.double(), y.T, thresholds(p, y, {name:least}).tolist()):
        if not 0<b.sum()<len(b): continue
        fits = [o for o in all_cuts(a) if f(a, b, o)>=least-1e-9]
        assert f(a, b, t)>=least-1e-9 and other(a, b, t)==pytest.approx(max(other(a, b, o) for o in fits))

def test_the_same_on_the_same_scores():
    "A threshold stands between scores, also where these are neighbours among floats"
    a = np.float32(.3)
    p = torch.tensor([[a],[np.nextafter(a, np.float32(1))]])
    t = thresholds(p, torch.tensor([[0.],[1]]), 'youden')
    assert (p>t).tolist()==[[False],[True]] and (p.double()>t).tolist()==[[False],[True]]
    p = p.double()
    p[1] = np.nextafter(float(p[0]), 1)
    assert (p>thresholds(p, torch.tensor([[0.],[1]]), 'f1')).tolist()==[[False],[True]]

@pytest.mark.parametrize('by', ['f1','youden','sensitivity=.9','specificity=.9'])
def test_nothing_to_choose_from(by):
    p,y = case(0, 30, c=5)
    y[:,0],y[:,1] = 0,1                     # one outcome
    p[:,2] = 0                              # found by no threshold
    t = thresholds(p, y, by)
    lost = thresholds(p, y, by, default=math.nan).isnan().tolist()
    assert lost[:2]==[True,True] and t[:2].tolist()==[.5,.5] and not any(lost[3:])
    assert lost[2]==(by!='specificity=.9')
    assert thresholds(p[:0], y[:0], by).tolist()==[.5]*5
    always = thresholds(torch.full((30,5), .3), y, by)
    assert always.shape==(5,) and ((always>=0)&(always<=1)).all()
    flip = thresholds((y==0)*.8+.1, y, 'youden')        # worse than none
    assert flip.tolist()==[.5]*5

def test_unknown_labels_are_left_out():
    p,y = case(1, 80)
    gone = torch.rand(80, generator=torch.Generator().manual_seed(5))<.3
    for v in (-1., math.nan):
        for by in ('f1','youden','sensitivity=.8'):
            assert torch.equal(thresholds(p, y.masked_fill(gone[:,None], v), by), thresholds(p[~gone], y[~gone], by))

def test_labels_of_any_type():
    p,y = case(1)
    want = thresholds(p, y)
    for o in (y.long(), y.bool(), y.numpy(), y.double()): assert torch.equal(thresholds(p, o), want)

def test_rules():
    for a,b in ((.3,.3), ('.3',.3), ('youden','youden'), ({'sensitivity':.9},'sensitivity=0.9'),
                ('specificity=.95','specificity=0.95')):
        assert str(threshold_rule(a))==str(b) and threshold_rule(threshold_rule(a))==threshold_rule(a)
    for bad in ('yuden', 1.5, -.1, math.nan, None, True, {}, {'f1':.5}, {'sensitivity':0}, {'sensitivity':'a'}, [.5],
                'sensitivity', 'f1=.5', {'sensitivity':.9,'specificity':.9}, {'a':.5}, ''):
        with pytest.raises(MemoError, match='^threshold: .*accepted: a probability, f1, youden'): threshold_rule(bad)
    p,y = case(0)
    assert thresholds(p, y, .3).tolist()==[.3]*4
    with pytest.raises(MemoError, match='logits'): thresholds(p*9, y)

def test_scores_and_table_at_them():
    "A threshold for each class is that class's alone"
    p,y = case(2, 300)
    t = thresholds(p, y, 'f1')
    df = class_table(p, y, list('abcd'), t)
    for i,(k,o) in enumerate(zip('abcd', t)):
        one = class_table(p[:,i:i+1], y[:,i:i+1], [k], float(o)).iloc[0]
        for c in ('threshold','sensitivity','ppv','ppv_low','npv_high','f1'): assert df[c][i]==pytest.approx(one[c])
    assert multilabel_scores(p, y, threshold=t)['f1']==pytest.approx(df.f1.mean())
    assert df.f1.mean()>class_table(p, y, list('abcd')).f1.mean()
    t[1] = math.nan
    df = class_table(p, y, list('abcd'), t)
    assert df.chosen.tolist()==[True,False,True,True] and df.threshold[1]==.5
    assert torch.equal(class_rates(p, y, t)['ppv'][1], class_rates(p, y, .5)['ppv'][1])
    for bad in (t[:2], [2.]*4, 'youden', None, math.nan, [[.5]*4]):
        with pytest.raises(MemoError, match='^threshold: '): class_table(p, y, list('abcd'), bad)
