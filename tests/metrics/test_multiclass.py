"Metrics against scikit-learn and plain loops, alone and in a Learner"
import math
import numpy as np, pytest, torch
from hypothesis import given, strategies as st
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, recall_score
from fastai.vision.all import DataLoaders, Learner, accuracy, load_learner, nn, set_seed
from memo.core import MemoError
from memo.data.tensors import TensorDL
from memo.metrics.multiclass import balanced_accuracy, ece, longtail_scores, shot_groups, shot_metrics
from memo.metrics.intervals import paired

def _case(seed, n=60, c=6, classes=6):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(n,c,generator=g)*2).softmax(-1),torch.randint(classes, (n,), generator=g)

def _ece_naive(p, y, n_bins=15):
    conf,pred = p.max(1)
    tot = 0.
    for b in range(n_bins):
        m = [(float(c),int(a==t)) for c,a,t in zip(conf,pred,y) if b/n_bins<float(c)<=(b+1)/n_bins]
        if m: tot += len(m)/len(y)*abs(np.mean([o[0] for o in m])-np.mean([o[1] for o in m]))
    return tot

@given(st.integers(0,10**6), st.integers(1,6))
def test_against_sklearn_and_loops(seed, classes):
    p,y = _case(seed, classes=classes)
    pred = p.argmax(1)
    bal = np.mean([recall_score(y==c, pred==c) for c in y.unique()])
    assert balanced_accuracy(p,y) == pytest.approx(bal)
    assert ece(p,y) == pytest.approx(_ece_naive(p,y), abs=1e-6)
    assert 0<=ece(p,y)<=1

def test_balanced_accuracy_is_sklearns():
    p,y = _case(1)
    assert balanced_accuracy(p,y) == pytest.approx(balanced_accuracy_score(y, p.argmax(1)))

@given(st.lists(st.integers(0,500), min_size=1, max_size=12), st.integers(1,400), st.integers(0,1))
def test_groups_part_the_classes(counts, many, d):
    g = shot_groups(counts, many, many-d)
    assert sorted(torch.cat(list(g.values())).tolist()) == list(range(len(counts)))
    assert all(counts[i]>many for i in g['many']) and all(counts[i]<many-d for i in g['few'])

def test_groups_at_the_thresholds():
    assert {k:v.tolist() for k,v in shot_groups([101,100,20,19]).items()} == dict(many=[0], medium=[1,2], few=[3])
    with pytest.raises(MemoError, match='few'): shot_groups([1,2], many=5, few=10)

def test_scores_of_a_known_case():
    y = torch.tensor([0,0,0,0,1,1,2,2])
    pred = torch.tensor([0,0,0,1,1,0,2,2])
    p = torch.full((8,4), .1).scatter(1, pred[:,None], .7)
    s = longtail_scores(p, y, [500,50,5,2])
    # class 3 is not there: no part of few
    assert s['accuracy']==6/8 and s['many']==.75 and s['medium']==.5 and s['few']==1.
    assert s['balanced_accuracy']==pytest.approx(.75) and s['ece']==pytest.approx(.05, abs=1e-6)
    assert s['nll']==pytest.approx(-(6*math.log(.7)+2*math.log(.1))/8, rel=1e-5)
    assert all(type(v) is float for v in s.values())

def test_empty_group_is_nan_and_alone():
    p,y = _case(0)
    s = longtail_scores(p, y, [50]*6)
    assert math.isnan(s['many']) and math.isnan(s['few'])
    assert s['medium']==pytest.approx(s['balanced_accuracy'])

@pytest.mark.parametrize('kw,msg',
                         [(dict(counts=[1,2]), 'counts'), (dict(y=torch.zeros(3).long()), 'labels|with'),
                          (dict(probs=torch.randn(60,6)), 'sum to 1'),
                                    (dict(probs=torch.full((60,6), float('nan'))), '60 rows'),
                                    (dict(y=torch.full((60,), 6)), 'labels 0 to 5')])
def test_bad_input(kw, msg):
    p,y = _case(0)
    with pytest.raises(MemoError, match=msg): longtail_scores(**{**dict(probs=p, y=y, counts=[1]*6), **kw})

def _learner(y, tmp_path, bs=7, metrics=()):
    set_seed(0)
    x = torch.randn(len(y), 3)
    dls = DataLoaders(TensorDL(x, y, bs=bs, vocab=range(5)), TensorDL(x, y, bs=bs, vocab=range(5)))
    return Learner(dls, nn.Linear(3,5), metrics=metrics, path=tmp_path)

@pytest.mark.parametrize('classes', [5,3])
def test_in_a_learner_equals_the_whole(classes, tmp_path):
    "Over uneven batches and with classes that validation lacks"
    counts = [300,150,50,10,3]
    y = torch.randint(classes, (40,), generator=torch.Generator().manual_seed(0))
    learn = _learner(y, tmp_path, metrics=[accuracy, *shot_metrics(counts), balanced_accuracy, ece])
    assert list(learn.metrics.attrgot('name')) == ['accuracy','many','medium','few','balanced_accuracy','ece']
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    row = dict(zip(learn.recorder.metric_names[3:-1], learn.recorder.values[-1][2:]))
    s = longtail_scores(*learn.get_preds(), counts)
    for k,v in row.items(): assert v==pytest.approx(s[k], rel=1e-4, nan_ok=True), k
    assert math.isnan(row['few'])==(classes==3)

def test_metrics_survive_export(tmp_path):
    learn = _learner(torch.arange(40)%5, tmp_path, metrics=[*shot_metrics([300,150,50,10,3]), ece])
    learn.export('a.pkl')
    assert [m.name for m in load_learner(tmp_path/'a.pkl').metrics] == ['many','medium','few','ece']

def test_paired():
    a,b = [.7,.6,.8,.75],[.6,.55,.72,.7]
    r,d = paired(a,b),np.subtract(a,b)
    ci = stats.ttest_rel(a,b).confidence_interval()
    assert (r['mean'],r['low'],r['high'])==pytest.approx((d.mean(),ci.low,
                                                          ci.high)) and r['per_seed']==pytest.approx(d.tolist())

def test_paired_corners():
    assert paired([.5,.6],[.4,.5])['low']==pytest.approx(.1)            # equal differences: no width
    r = paired([.5],[.4])
    assert r['mean']==pytest.approx(.1) and math.isnan(r['low'])
    r = paired([.5,float('nan'),.7],[.4,.3,.5])
    assert r['mean']==pytest.approx(.15) and len(r['per_seed'])==3
    with pytest.raises(MemoError, match='2 and 1'): paired([1,2],[1])
