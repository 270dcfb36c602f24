"Tables of results: means, t-intervals and paired differences against scipy; findings; several experiments"
import json, math
import numpy as np, pytest
from hypothesis import given, strategies as st
from scipy import stats
from memo.core import MemoError
from memo.results import compare, format_results, md_table, results

nan = float('nan')
findings = 'macro_auc tail_auc macro_ap tail_ap f1 ece'.split()
def multi(seed, **methods): return dict(seed=seed, task='multilabel', methods={k.replace('_',' '):{c:v for c in findings} if isinstance(v, float) else v for k,v in methods.items()})
def one(seed, v, **more): return dict(seed=seed, task='multilabel', methods={'x':{**{c:v for c in findings}, **more}})
plain,mem = 'plain network','plain network + memory'
def run(seed, a, b): return dict(seed=seed, task='multilabel', methods={plain:{c:a for c in findings}, mem:{c:b for c in findings}})

@given(st.lists(st.tuples(st.floats(0,1), st.floats(0,1)), min_size=2, max_size=6))
def test_means_and_intervals_are_scipys(vs):
    a,b = np.array(vs).T
    t,d = results([run(i, *v) for i,v in enumerate(vs)])
    assert t.method.tolist()==[plain,mem] and t.seeds.tolist()==[len(vs)]*2
    for x,r in ((a,t.iloc[0]), (b,t.iloc[1])): assert r.macro_ap==pytest.approx(x.mean())
    if a.std()>1e-6: assert (t.f1_low[0],t.f1_high[0])==pytest.approx(stats.t.interval(.95, len(a)-1, a.mean(), stats.sem(a)), abs=1e-9)
    if (b-a).std()>1e-6:
        ci = stats.ttest_rel(b, a).confidence_interval()
        assert tuple(d[['ece_mean','ece_low','ece_high']].iloc[0])==pytest.approx(((b-a).mean(),ci.low,ci.high), abs=1e-9)

def test_pairs_of_an_experiment():
    names = [mem,'balanced sampling',plain,'balanced sampling + memory']
    ms = [multi(s, **{k.replace(' ','_'):.1*i+.01*s*i for i,k in enumerate(names)}) for s in (0,1)]
    t,d = results(ms)
    assert t.method.tolist()==[plain,mem,'balanced sampling','balanced sampling + memory']
    assert list(zip(d.method, d.rival))==[(mem,plain), ('balanced sampling + memory','balanced sampling'), (mem,'balanced sampling')]

def test_seeds_are_paired_by_seed():
    "Not by place: seeds come in any order, and one may be missing"
    t,d = compare(dict(a=[one(2,.5), one(0,.3), one(7,.9)], b=[one(0,.2), one(1,.99), one(2,.4)]), dict(a='b'))
    assert d.seeds.tolist()==[2] and d.macro_auc_mean[0]==pytest.approx(.1) and d.macro_auc_low[0]==pytest.approx(.1) and d.macro_auc_per_seed[0]=='+10.00 +10.00'
    assert t.seeds.tolist()==[3,3] and t.method.tolist()==['a','b']

@pytest.mark.parametrize('missing', [nan, None, 'absent'])
def test_nan_is_left_out(missing):
    m = one(1, .6, tail_auc=missing)
    if missing=='absent': del m['methods']['x']['tail_auc']
    t,d = compare(dict(a=[one(0,.5), m], b=[one(0,.4), one(1,.5)]), dict(a='b', b=None))
    assert t.tail_auc.tolist()==pytest.approx([.5,.45]) and math.isnan(t.tail_auc_low[0]) and t.macro_auc[0]==pytest.approx(.55)
    assert d.tail_auc_mean[0]==pytest.approx(.1) and d.tail_auc_per_seed[0]=='+10.00 -'
    for f in ({}, dict(fmt=md_table)): assert 'nan' not in format_results(t, d, **f)

def test_from_json():
    m = json.loads(json.dumps([one(0,.5,tail_ap=nan), one(1,.6,tail_ap=nan)]))
    t,d = compare(dict(a=m), dict(a=None))
    assert math.isnan(t.tail_ap[0]) and len(d)==0 and 'differences' not in format_results(t, d)

def test_text():
    t,d = results([run(0,.9263,.93), run(1,.9163,.93), run(2,.92,.94)])
    txt,md = format_results(t, d),format_results(t, d, md_table)
    assert txt.splitlines()[0].split('  ')[-1]=='calibration err.' and 'macro AUC' in txt and 'tail mAP' in txt
    assert '92.09' in txt and '[' not in txt.split('differences')[0] and '+1.25 [-0.' in txt and '(3 seeds, 95 % interval)' in txt
    head,rule,row = md.splitlines()[:3]
    assert head.count('|')==rule.count('|')==row.count('|')==8 and row.startswith(f'| {plain} | 92.09 [90.')
    one_seed = format_results(*results([run(0,.9,.95)]), md_table)
    assert '[' not in one_seed and '+5.00' in one_seed and '(1 seed)' in one_seed

def test_single_label():
    def s(v): return dict(accuracy=v, many=v, medium=v, few=nan, balanced_accuracy=v, ece=.1)
    t,d = results([dict(seed=i, methods={plain:s(.5+.1*i), mem:s(.6+.2*i)}) for i in range(2)])
    assert t.accuracy.tolist()==pytest.approx([.55,.7]) and t.accuracy_low[0]<.5
    md,txt = format_results(t, d, md_table),format_results(t, d)
    assert f'| {plain} | 55.0 [-8.5, 118.5] | 55.0 [-8.5, 118.5] |' in md and '|  | 55.0' in md and '+15.0 [' in md and 'balanced acc.' in md       # t of one degree of freedom: 12.7
    assert f'{plain}' in txt and '[' not in txt.split('differences')[0]

@pytest.mark.parametrize('f,msg', [
    (lambda: results([]), 'no metrics'),
    (lambda: results([run(0,.1,.2), dict(seed=1, methods={})]), 'cannot share'),
    (lambda: compare(dict(a=[run(0,.1,.2)]), {}), 'a has 2 methods'),
    (lambda: compare(dict(a=[one(0,.1), one(0,.2)]), {}), 'seed 0 twice'),
    (lambda: compare(dict(alpha=[one(0,.1)], beta=[one(0,.1)]), dict(alpha='bta')), "baseline of alpha: 'bta'.*did you mean 'beta'"),
    (lambda: compare(dict(a=[one(0,.1)], b=[one(1,.1)]), dict(a='b')), r'a \(seeds 0\) and b \(seeds 1\) have no seed in common')])
def test_mistakes_are_one_line(f, msg):
    with pytest.raises(MemoError, match=msg) as e: f()
    assert '\n' not in str(e.value)
