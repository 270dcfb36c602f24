"""Tables of results: rows are data, labels are made last; means, t-intervals and paired differences against scipy;
several experiments"""
import json, math
import numpy as np, pandas as pd, pytest
from hypothesis import given, strategies as st
from scipy import stats
from memo.core import MemoError
from memo.evaluation.tables import Row, compare, format_results, label, md_table, results, row_of, rows_of
from memo.evaluation.tasks import Multiclass, Multilabel

nan = float('nan')
kinds = dict(multiclass=Multiclass, multilabel=Multilabel)
titles = {'':'plain network', 'balanced_sampling':'balanced sampling', 'logit_adjusted':'logit adjustment',
          'class_mean':'nearest class mean'}
def m(seed, rows, task='multilabel', **more):
    "Contents of a metrics.json; `rows`: Row -> a number for all scores, or the scores"
    t = kinds[task]
    def scores(v): return v if isinstance(v, dict) else {c:v for c in t.columns}
    return dict(dict(seed=seed, task=task, columns=t.columns, digits=t.digits, titles=titles,
                     remedies=['logit_adjusted','balanced_sampling'],
                     rows=[dict(training=r.training, method=r.method, memory=list(r.memory), scores=scores(v))
                           for r,v in rows.items()]), **more)
own,mem,bal,bal_mem = Row(),Row(memory=('memory',)),Row('balanced_sampling'),Row('balanced_sampling',
    memory=('memory',))
adj,mean = Row(method='logit_adjusted'),Row(method='class_mean')
def one(seed, v, **more): return m(seed, {Row():{**{c:v for c in Multilabel.columns}, **more}})
def run(seed, a, b): return m(seed, {own:a, mem:b})

# rows

@pytest.mark.parametrize('row,text',
                         [(own, 'plain network'), (mem, 'plain network + memory'),
                          (bal_mem, 'balanced sampling + memory'), (adj, 'logit adjustment'),
    (Row(method='class_mean', training='balanced_sampling'), 'nearest class mean, balanced sampling'),
    (Row(memory=('lda',)), 'plain network + memory: lda'),
    (Row(memory=('early','rare')), 'plain network + memory: early, rare'), (Row('longer', 'knn'), 'knn, longer'),
    (Row('longer'), 'longer')])
def test_label(row, text): assert label(row, titles)==text

def test_rows_are_data():
    "From a metrics.json and back: no text is read"
    got = json.loads(json.dumps(m(3, {own:.1, mem:.2, bal_mem:.3})))
    assert list(rows_of(got))==[o._replace(seed=3) for o in (own,mem,bal_mem)]
    assert row_of(got['rows'][1])==mem and mem.network==own and bal_mem.network==bal

def test_a_title_with_memory_in_it_is_no_memory():
    "A baseline that is called so by its author: nothing takes the label apart"
    odd = {**titles, 'x':'a + memory: lda'}
    x,x_mem = Row('x'),Row('x', memory=('memory',))
    t,d = results([m(s, {own:.1, mem:.2+.01*s, x:.3, x_mem:.5+.03*s}, titles=odd) for s in (0,1)])
    assert t.method.tolist()==['plain network','plain network + memory','a + memory: lda','a + memory: lda + memory']
    assert list(zip(d.method, d.baseline))==[('plain network + memory','plain network'),
                                          ('a + memory: lda + memory','a + memory: lda')]

# of one experiment

@given(st.lists(st.tuples(st.floats(0,1), st.floats(0,1)), min_size=2, max_size=6))
def test_means_spreads_and_intervals_are_scipys(vs):
    a,b = np.array(vs).T
    t,d = results([run(i, *v) for i,v in enumerate(vs)])
    assert t.method.tolist()==['plain network','plain network + memory'] and t.seeds.tolist()==[len(vs)]*2
    for x,r in ((a,t.iloc[0]), (b,t.iloc[1])): assert r.macro_ap==pytest.approx(x.mean())
    if a.std()>1e-6:
        assert t.f1_std[0]==pytest.approx(stats.tstd(a), abs=1e-9) and not {'f1_low','f1_high'} & {*t.columns}
    if (b-a).std()>1e-6:
        ci = stats.ttest_rel(b, a).confidence_interval()
        assert tuple(d[['ece_mean','ece_low','ece_high']].iloc[0])==pytest.approx(((b-a).mean(),ci.low,ci.high),
            abs=1e-9)

def test_pairs_of_an_experiment():
    """A memory with its own network, one on the experiment's own network with every remedy; the order of the files
    says nothing"""
    a,b = (m(s, dict(zip((mean,mem,own,adj,Row(method='logit_adjusted', memory=('memory',))), .1*np.arange(5)+.01*s)))
           for s in (0,1)),(m(s, {bal_mem:.6, bal:.5}) for s in (0,1))
    t,d = results([*b, *a])
    assert t.method.tolist()==['plain network','plain network + memory','balanced sampling',
                               'balanced sampling + memory','logit adjustment','logit adjustment + memory',
                               'nearest class mean']
    p = 'plain network + memory'
    assert list(zip(d.method, d.baseline))==[(p,'plain network'), ('balanced sampling + memory','balanced sampling'),
                                          ('logit adjustment + memory','logit adjustment'), (p,'balanced sampling'),
                                          (p,'logit adjustment')]

@pytest.mark.parametrize('memory', [False,True])
def test_other_networks_are_paired_with_the_own_one(memory):
    "Each of the experiment's own rows, whether a memory answers or is in the network; nothing else is"
    probe,deep = Row('linear_probe'),Row('vpt_deep')
    a = (m(s, {own:.5+.1*s, **({mem:.6} if memory else {}), mean:.3, adj:.2}, paired=['class_mean']) for s in (0,1))
    b = (m(s, {r:.4, **({r._replace(memory=('memory',)):.4} if memory else {}), r._replace(method='class_mean'):.1},
           paired=[r.training], titles={r.training:r.training}) for s in (0,1) for r in (probe,deep))
    t,d = results([*a, *b])
    own_rows = ['plain network',*['plain network + memory']*memory]
    others = ['linear_probe','vpt_deep']
    rivals = ['nearest class mean', *others, *(f'nearest class mean, {n}' for n in others)]
    ours = {(o,r) for o in own_rows for r in rivals}
    within = {(f'{n} + memory',n) for n in ('plain network', *others)} | {(own_rows[-1],'logit adjustment')}
    got = [*zip(d.method, d.baseline)]
    assert {*got}==ours | (within if memory else set()) and len(got)==len({*got})
    got = d[(d.method=='plain network') & (d.baseline=='linear_probe')].iloc[0]
    assert got.seeds==2 and got.f1_mean==pytest.approx(.15)

def test_a_row_without_its_network_has_no_difference_to_it():
    "What is trained with the memory, where nothing is trained without"
    t,d = results([m(0, {mem:.5, Row(memory=('lda',)):.6, adj:.7})])
    assert list(zip(d.method, d.baseline))==[(f'plain network + memory{o}','logit adjustment') for o in ('',': lda')]

def test_rows_that_would_be_called_alike_are_refused():
    with pytest.raises(MemoError, match='called alike'):
        results([m(0, {own:.5, Row('x'):.6}, titles={'':'plain network','x':'plain network'})])

# of several

def test_seeds_are_paired_by_seed():
    "Not by place: seeds come in any order, and one may be missing"
    t,d = compare(dict(a=[one(2,.5), one(0,.3), one(7,.9)], b=[one(0,.2), one(1,.99), one(2,.4)]), dict(a='b'))
    assert d.seeds.tolist()==[2] and d.macro_auc_mean[0]==pytest.approx(.1) and d.macro_auc_low[0]==pytest.approx(
        .1) and d.macro_auc_per_seed[0]=='+10.00 +10.00'
    assert t.seeds.tolist()==[3,3] and t.method.tolist()==['a','b']

@pytest.mark.parametrize('missing', [nan, None, 'absent'])
def test_nan_is_left_out(missing):
    x = one(1, .6, tail_auc=missing)
    if missing=='absent': del x['rows'][0]['scores']['tail_auc']
    t,d = compare(dict(a=[one(0,.5), x], b=[one(0,.4), one(1,.5)]), dict(a='b', b=None))
    assert t.tail_auc.tolist()==pytest.approx([.5,
                                               .45]) and math.isnan(t.tail_auc_std[0]) and t.macro_auc[
                                                   0]==pytest.approx(.55)
    assert d.tail_auc_mean[0]==pytest.approx(.1) and d.tail_auc_per_seed[0]=='+10.00 -'
    assert t.tail_auc_seeds.tolist()==[1,2] and t.tail_auc_per_seed[0]=='50.00 -' and d.tail_auc_seeds[0]==1
    for f in ({}, dict(fmt=md_table)):
        text = format_results(t, d, **f)
        # a level of one of two seeds does not stand beside others as if it were of both
        assert 'nan' not in text and text.count('(of 1 seed)')==2

def test_rows_of_other_numbers_of_seeds_say_so():
    t,d = compare(dict(a=[one(s,.5) for s in (0,1,2)], b=[one(s,.4) for s in (2,3)], c=[one(2,.4)]), dict(a=['b','c']))
    assert t.seeds.tolist()==[3,2,1] and t.seed_numbers.tolist()==['0 1 2','2 3','2']
    text = format_results(t, d)
    assert text.splitlines()[0].split()[:2]==['method','seeds'] and text.splitlines()[1].split()[:4]==['a','0','1','2']
    # as many, and others: 47.0 and 94.0 with a difference of +1.0 were of one seed in common
    text = format_results(*compare(dict(a=[one(s,.5) for s in (0,1,2)], b=[one(s,.4) for s in (2,3,4)]), dict(a='b')))
    assert [o.split()[1:4] for o in text.splitlines()[1:3]]==[['0','1','2'],['2','3','4']]
    same = format_results(*compare(dict(a=[one(0,.5)], b=[one(0,.4)]), dict(a='b')))
    assert 'seeds' not in same.splitlines()[0]

def test_from_json():
    ms = json.loads(json.dumps([one(0,.5,tail_ap=None), one(1,.6,tail_ap=None)]))
    t,d = compare(dict(a=ms), dict(a=None))
    assert math.isnan(t.tail_ap[0]) and len(d)==0 and 'differences' not in format_results(t, d)

def test_text():
    t,d = results([run(0,.9263,.93), run(1,.9163,.93), run(2,.92,.94)])
    txt,md = format_results(t, d),format_results(t, d, md_table)
    assert txt.splitlines()[0].split('  ')[-1]=='calibration err.' and 'macro AUC' in txt and 'tail mAP' in txt
    assert '92.09' in txt and '[' not in txt.split('differences')[
        0] and '+1.25 [-0.' in txt and '(3 seeds, 95 % interval)' in txt
    head,rule,row = md.splitlines()[:3]
    assert head.count('|')==rule.count('|')==row.count('|')==8 and row.startswith('| plain network | 92.09 ± 0.5')
    one_seed = format_results(*results([run(0,.9,.95)]), md_table)
    assert '[' not in one_seed and '+5.00' in one_seed and '(1 seed)' in one_seed

def test_single_label():
    def s(v): return dict(accuracy=v, many=v, medium=v, few=nan, balanced_accuracy=v, ece=.1)
    t,d = results([m(i, {own:s(.5+.1*i), mem:s(.6+.2*i)}, 'multiclass') for i in range(2)])
    assert t.accuracy.tolist()==pytest.approx([.55,.7]) and t.accuracy_std[0]==pytest.approx(.05*2**.5)
    md,txt = format_results(t, d, md_table),format_results(t, d)
    for o in ('| plain network | 55.0 ± 7.1 | 55.0 ± 7.1 |', '|  | 55.0', '+15.0 [', 'balanced acc.'):
        assert o in md
    assert '[' not in md.split('differences')[0]       # of a level no interval is given: it could reach beyond 100 %
    assert 'plain network' in txt and '[' not in txt.split('differences')[0]

def test_columns_are_those_of_the_files():
    "A metric of one's own in one of two experiments has a column, empty for the other; digits are the task's"
    more = dict(columns={**Multilabel.columns, 'hits':'hits'})
    a,b = one(0, .5, hits=.25)|more,one(0, .4)
    t,d = compare(dict(a=[a], b=[b]), dict(a='b'))
    txt = format_results(t, d)
    assert txt.splitlines()[0].endswith('hits') and '25.00' in txt and math.isnan(t.hits[1]) and t.attrs['digits']==2

@pytest.mark.parametrize('f,msg', [
    (lambda: results([]), 'no metrics'),
    (lambda: results([run(0,.1,.2), m(1, {own:.1}, 'multiclass')]), 'multiclass and multilabel runs cannot share'),
    (lambda: compare(dict(a=[run(0,.1,.2)]), {}), r'a has 2 methods \(plain network, plain network \+ memory\)'),
    (lambda: compare(dict(a=[one(0,.1), one(0,.2)]), {}), 'seed 0 twice'),
    (lambda: compare(dict(alpha=[one(0,.1)], beta=[one(0,.1)]), dict(alpha='bta')),
     "baseline of alpha: 'bta'.*did you mean 'beta'"),
    (lambda: compare(dict(a=[one(0,.1)], b=[one(1,.1)]), dict(a='b')),
     r'a \(seeds 0\) and b \(seeds 1\) have no seed in common')])
def test_mistakes_are_one_line(f, msg):
    with pytest.raises(MemoError, match=msg) as e: f()
    assert '\n' not in str(e.value)
