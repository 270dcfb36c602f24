"Multi-label metrics against scikit-learn, plain loops and a bootstrap that copies images; alone and in a Learner"
import math, warnings
import numpy as np, pytest, torch
from hypothesis import given, strategies as st
from scipy.stats import norm, t as student
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score
from fastai.vision.all import BCEWithLogitsLossFlat, DataLoaders, Learner, load_learner, nn, set_seed
from memo.core import MemoError
from memo.data.tensors import TensorDL
from memo.metrics.multilabel import calibration_bins, class_ap, class_auc, class_table, macro_ap, macro_auc
from memo.metrics.multilabel import multilabel_scores
from memo.metrics.intervals import enough_for_mean, patient_bootstrap

def case(seed, n=60, c=5, ties=None, rate=.3):
    g = torch.Generator().manual_seed(seed)
    p,y = torch.rand(n,c,generator=g),(torch.rand(n,c,generator=g)<rate).float()
    return (p if ties is None else (p*ties).round()/ties),y

def has_both(y): return [0<float(o.sum())<len(o) for o in y.T]
def auc_by_hand(p, y): return np.mean([(a>b)+.5*(a==b) for a,i in zip(p,y) for b,j in zip(p,y) if i and not j])

@given(st.integers(0,10**6), st.integers(2,40), st.sampled_from([None,1,3,10]), st.floats(0,1))
def test_classes_are_sklearns(seed, n, ties, rate):
    p,y = case(seed, n, ties=ties, rate=rate)
    auc,ap,ok = class_auc(p,y),class_ap(p,y),has_both(y)
    assert (~auc.isnan()).tolist()==(~ap.isnan()).tolist()==ok
    for i in np.flatnonzero(ok):
        assert float(auc[i])==pytest.approx(roc_auc_score(y[:,i],p[:,i]))==pytest.approx(auc_by_hand(p[:,i].tolist(),
            y[:,i].tolist()))
        assert float(ap[i])==pytest.approx(average_precision_score(y[:,i],p[:,i]))
    if any(ok): assert macro_auc(p,y)==pytest.approx(np.mean([float(auc[i]) for i in np.flatnonzero(ok)]))
    else: assert math.isnan(macro_auc(p,y)) and math.isnan(macro_ap(p,y))

def test_ties_count_half():
    y = torch.tensor([[1.],[0],[0],[1]])
    assert class_auc(torch.full((4,1), .3), y).item()==.5 and class_ap(torch.full((4,1), .3), y).item()==.5
    assert class_auc(torch.tensor([[.9],[.9],[.1],[.8]]), y).item()==pytest.approx((.5+1+0+1)/4)

def test_one_missing_class_poisons_nothing():
    p,y = case(0)
    want = multilabel_scores(p[:,:3], y[:,:3])
    y[:,3],y[:,4] = 0,1
    s = multilabel_scores(p, y, tail=[3,2])
    assert s['classes']==3 and s['macro_auc']==want['macro_auc'] and s['macro_ap']==want['macro_ap'] and s[
        'f1']==pytest.approx(want['f1'])
    assert s['tail_auc']==pytest.approx(roc_auc_score(y[:,2],p[:,2])) and math.isnan(multilabel_scores(p, y,
        tail=[3])['tail_auc'])
    assert math.isnan(multilabel_scores(p, y)['tail_ap']) and all(type(v) is float for v in s.values())

@given(st.integers(0,10**6), st.sampled_from([.1,.5,.9,1.]))
def test_thresholded_scores_are_sklearns(seed, threshold):
    p,y = case(seed, rate=.2)
    ok = has_both(y)
    s,kw = multilabel_scores(p, y, threshold=threshold),dict(average='macro', zero_division=0)
    for k,f in dict(precision=precision_score, recall=recall_score, f1=f1_score).items():
        assert s[k]==pytest.approx(f(y[:,ok], p[:,ok]>threshold, **kw)), k

@given(st.integers(0,10**6), st.integers(1,12), st.sampled_from([None,10]))
def test_calibration_by_hand(seed, n_bins, ties):
    p,y = case(seed, ties=ties)
    df,tot = calibration_bins(p, y, n_bins),0.
    p,y = p.double().flatten().tolist(),y.flatten().tolist()
    edges = np.linspace(0, 1, n_bins+1)
    for i,r in enumerate(df.itertuples()):
        m = [(a,b) for a,b in zip(p,y) if edges[i]<a<=edges[i+1] or (i==0 and a==0)]
        assert r.n==len(m)
        if m: assert (r.prob,r.freq)==pytest.approx(tuple(np.mean(m, 0)))
        else: assert math.isnan(r.prob)
        tot += 0 if not m else len(m)/len(p)*abs(r.prob-r.freq)
    if n_bins==10: assert multilabel_scores(*case(seed, ties=ties))['ece']==pytest.approx(tot)

def test_known_scores():
    s = multilabel_scores(torch.tensor([[.9,.2],[.4,.6]]), torch.tensor([[1,0],[0,1]]))
    assert s['brier']==pytest.approx((.01+.04+.16+.16)/4) and s['nll']==pytest.approx(-np.log([.9,.8,.6,.6]).mean())
    assert s['ece']==pytest.approx((.1+.2+.4+.4)/4) and s['f1']==s['macro_auc']==1.
    assert math.isfinite(multilabel_scores(torch.tensor([[0.],[1]]), torch.tensor([[1],[0]]))['nll'])

def naive_bootstrap(p, y, groups, n, seed):
    "Copies the images of the drawn patients"
    ids,g = np.unique(groups),torch.Generator().manual_seed(seed)
    rows = [np.flatnonzero(np.asarray(groups)==i) for i in ids]
    at = [np.concatenate([rows[j] for j in who])
          for who in torch.cat([torch.randint(len(ids), (min(100,n-i),len(ids)), generator=g) for i in range(0,n,100)])]
    return [torch.stack([f(p[i],y[i]) for i in at]) for f in (class_auc, class_ap)]

@pytest.mark.parametrize('ties,rate', [(None,.3), (5,.3), (None,.03)])
def test_bootstrap_is_copying_images(ties, rate):
    p,y = case(1, 80, ties=ties, rate=rate)
    y[:,4] = 0
    groups = [f'patient {i%27}' for i in range(80)]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        ci = patient_bootstrap(p, y, groups, n=130, seed=3, level=.9, tail=[1,4], least=0)
    for k,v in zip(('auc','ap'), naive_bootstrap(p, y, groups, 130, 3)):
        q,want = np.array([.05,.95]),torch.full((5,2), math.nan)
        for i in range(4):      # as wide as a t interval of so many patients (Hesterberg 2015)
            n = max(2, min(len({g for g,o in zip(groups, y[:,i]) if o==a}) for a in (0,1)))
            a = norm.cdf(-(n/(n-1))**.5*student.ppf(.95, n-1))
            want[i] = v[:,i].nanquantile(torch.tensor([a,1-a], dtype=v.dtype))
        assert torch.allclose(ci[k], want.to(v.dtype), equal_nan=True) and ci[k].shape==(5,2) and ci[k][4].isnan().all()
        assert ci[f'macro_{k}']==pytest.approx(np.quantile(v.nanmean(1), q).tolist())
        assert ci[f'tail_{k}']==pytest.approx(np.nanquantile(v[:,1], q).tolist())

def test_bootstrap_repeats_and_needs_no_tail():
    p,y = case(0)
    a,b,c = (patient_bootstrap(p, y, torch.arange(60)//2, n=50, seed=s) for s in (0,0,1))
    assert a['macro_auc']==b['macro_auc']!=c['macro_auc'] and set(a)=={'macro_auc','macro_ap','auc','ap'}

def test_patients_widen_the_interval():
    "Ten copies of each image carry no more than one does"
    p,y = case(2, 60)
    p,y,who = p.repeat_interleave(10, 0),y.repeat_interleave(10, 0),torch.arange(60).repeat_interleave(10)
    by,flat = patient_bootstrap(p, y, who, n=200),patient_bootstrap(p, y, torch.arange(600), n=200)
    def width(c): return c['macro_auc'][1]-c['macro_auc'][0]
    assert width(by)>2*width(flat)

def test_interval_covers():
    "Of 100 sets of 40 patients about 90 intervals hold the AUC that normal scores have"
    want,n,g = torch.distributions.Normal(0,1).cdf(torch.tensor(1/2**.5)).item(),0,torch.Generator().manual_seed(0)
    for i in range(100):
        y = (torch.rand(120,1,generator=g)<.4).float()
        low,high = patient_bootstrap(torch.randn(120,1,generator=g)+y, y, torch.arange(120)//3, n=200, seed=i,
                                     level=.9)['auc'][0]
        n += low<=want<=high
    assert 80<=n<=97

@pytest.mark.parametrize('few,auc,ap', [
    ([60,50,40,30,30,20,20,15,15,10,8,5,3,1], True, False), ([30,20,15,10], True, True), ([10]*4, True, False),
    ([5,3,2,1], False, False), ([10,1], False, False), ([2,2], False, False), ([10], True, True), ([9], False, False),
    ([0,0], False, False), ([0,10], True, True), ([400]*14, True, True)])
def test_what_is_enough_for_a_mean(few, auc, ap):
    "What covers less in benchmarks/intervals.md is not shown: a rare finding takes the variance of all"
    assert enough_for_mean(torch.tensor(few), 'auc')==auc and enough_for_mean(torch.tensor(few), 'ap')==ap

def test_few_patients_have_no_interval():
    "From ten patients with a finding, and ten without, on; the mean AP needs them in each of its classes"
    p,y = case(0, 120, c=4, rate=0.)
    who = torch.arange(120)//2
    for i,n in enumerate((9,10,3)): y[:2*n,i] = 1       # of patients, with two images each
    y[:,3] = 1
    y[:6,3] = 0                                         # three patients without
    ci = patient_bootstrap(p, y, who, n=50, tail=[2])
    assert ci['auc'].isnan().any(1).tolist()==ci['ap'].isnan().any(1).tolist()==[True,False,True,True]
    assert all(map(math.isfinite, ci['macro_auc']))
    assert all(map(math.isnan, (*ci['macro_ap'], *ci['tail_auc'], *ci['tail_ap'])))
    both = patient_bootstrap(p[:,1:2].repeat(1, 2), y[:,1:2].repeat(1, 2), who, n=50)
    assert all(map(math.isfinite, both['macro_ap']))
    df = class_table(p, y, list('abcd'), ci=ci, groups=who)
    assert df.patients.tolist()==[9,10,3,57] and df.positives.tolist()==[18,20,6,114]
    assert df.auc_low.isna().tolist()==[True,False,True,True] and df.sensitivity_low.notna().all()
    assert patient_bootstrap(p, y, who, n=50, least=1)['auc'].isfinite().all()

def test_table():
    p,y = case(0)
    y[:,4] = 0
    ci = patient_bootstrap(p, y, torch.arange(60), n=50, least=3)
    df,few = class_table(p, y, list('abcde'), ci=ci, groups=range(60)),class_table(p, y, list('abcde'))
    rates = [f'{k}{o}' for k in ('sensitivity','specificity','ppv','npv') for o in ('','_low','_high')]
    names = 'finding positives patients auc auc_low auc_high ap ap_low ap_high threshold chosen'.split()
    assert df.columns.tolist()==[*names, *rates, 'f1', 'ece', 'brier']
    assert few.columns.tolist()==[k for k in df if k not in ('patients','auc_low','auc_high','ap_low','ap_high')]
    assert df.positives.tolist()==df.patients.tolist()==y.sum(0).tolist() and df.finding.tolist()==list('abcde')
    assert (df.auc_low<=df.auc)[:4].all() and (df.ap<=df.ap_high)[:4].all() and (df.threshold==.5).all()
    assert df.loc[4, ['auc','auc_low','ap','sensitivity','sensitivity_low','f1']].isna().all() and not df.chosen.any()
    assert df.specificity[4]==pytest.approx((p[:,4]<=.5).double().mean()) and df.ppv[4]==0
    assert df.f1[0]==pytest.approx(f1_score(y[:,0], p[:,0]>.5))

@pytest.mark.parametrize('f', [class_auc, multilabel_scores, lambda p,y: patient_bootstrap(p, y, range(len(p)))])
@pytest.mark.parametrize('bad,msg',
                         [((torch.rand(4,2),torch.zeros(4)), r'\(4, 2\) with \(4,\)'),
                          ((torch.full((4,2), float('nan')),torch.zeros(4,2)), '4 of 4 rows'),
    ((torch.rand(4,2),torch.full((4,2), -1)), 'column 0 are -1'),
    ((torch.rand(4,2),torch.full((4,2), .5)), 'column 0 are 0.5')])
def test_bad_input(f, bad, msg):
    with pytest.raises(MemoError, match=msg) as e: f(*bad)
    assert '\n' not in str(e.value)

def test_more_bad_input():
    p,y = case(0)
    wrong = {'logits':lambda: multilabel_scores(p*5-2, y),
             'tail: class ids 0 to 4':lambda: multilabel_scores(p, y, tail=[5]),
             'threshold: 2':lambda: multilabel_scores(p, y, threshold=2),
        'vocab: 5 names':lambda: class_table(p, y, ['a']),
        'groups: a patient for each of 60':lambda: patient_bootstrap(p, y, [1,2]),
        'at least 2':lambda: patient_bootstrap(p, y, [1]*60),
        'n=0':lambda: patient_bootstrap(p, y, range(60), n=0), 'n_bins: 0':lambda: calibration_bins(p, y, 0)}
    for m,f in wrong.items():
        with pytest.raises(MemoError, match=m) as e: f()
        assert '\n' not in str(e.value)

def test_nothing_to_score():
    s = multilabel_scores(torch.rand(0,3), torch.zeros(0,3))
    assert s['classes']==0 and all(math.isnan(v) for k,v in s.items() if k!='classes')

@pytest.mark.parametrize('rare', [True,False])
def test_in_a_learner_equals_the_whole(rare, tmp_path):
    "Over uneven batches, most of which lack the rare class"
    set_seed(0)
    x = torch.randn(40,3)
    y = torch.cat([(x[:,:2]+torch.randn(40,2)>.5).float(), torch.zeros(40,1)], 1)
    if rare: y[7,2] = 1
    dls = DataLoaders(*[TensorDL(x, y, bs=7, vocab=list('abc')) for _ in range(2)])
    learn = Learner(dls, nn.Linear(3,3), loss_func=BCEWithLogitsLossFlat(), metrics=[macro_auc, macro_ap],
                    path=tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    got = dict(zip(learn.recorder.metric_names[1:-1], learn.recorder.values[-1]))
    s = multilabel_scores(*learn.get_preds())
    assert list(got)[2:]==['macro_auc','macro_ap'] and s['classes']==2+rare
    for k in list(got)[2:]: assert got[k]==pytest.approx(s[k])
    learn.export('a.pkl')
    assert [m.name for m in load_learner(tmp_path/'a.pkl').metrics]==['macro_auc','macro_ap']
