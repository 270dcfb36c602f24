"""Do the intervals of a table of findings hold? Coverage of nominal 95 % where few patients have a finding

    python benchmarks/intervals.py

Patients are drawn with 1 to 12 images each (geometric, 2.2 on average), and images of a patient are alike: by a share
of the variance (0: not at all, 1: all of them the same). Sensitivity: patients' own sensitivities are drawn around
the true one (beta). AUC and AP: normal scores, 1.2 apart, with a part that a patient's images share; 300 patients
have no finding. Truth is planted, or taken from 300 times as many patients (AP)."""
import numpy as np, torch
from pathlib import Path
from scipy import stats
from memo.evaluation.tables import md_table
from memo.metrics.intervals import bootstrap_ends, drawn_scores, enough_for_mean, expanded, patient_bootstrap
from memo.metrics.multilabel import class_ap
from memo.metrics.shares import clopper_pearson, effective_number, share_interval

rng = np.random.default_rng(0)
def images(*shape): return np.minimum(rng.geometric(.45, shape), 12)

def wilson(p, n):
    z = stats.norm.ppf(.975)
    mid,half = (p+z*z/2/n)/(1+z*z/n),z*np.sqrt(p*(1-p)/n+z*z/4/n/n)/(1+z*z/n)
    return mid-half,mid+half

def share_ways(x, n, draws=400):
    "Intervals of shares, by name; `x`, `n` are [patients, trials]"
    N,X = n.sum(0),x.sum(0)
    p,alike = X/N,N**2/(n**2).sum(0)
    w = rng.multinomial(len(n), np.full(len(n), 1/len(n)), size=draws)
    boot = np.quantile((w@x)/(w@n), [.025,.975], axis=0)
    top = n.max()
    of,hit = (np.concatenate([np.arange(top)[:,None]<o for o in v]) for v in (n, x))
    return {'Wilson, images':wilson(p, N), 'Clopper-Pearson, images':clopper_pearson(X, N),
            'bootstrap of patients':boot, 'Wilson, effective number':wilson(p, effective_number(x, n)),
            'Clopper-Pearson, patients alike':clopper_pearson(p*alike, alike),
            'memo':[o.numpy() for o in share_interval(hit, of, np.arange(len(n)).repeat(top))[1:]]}

def shares(trials=1000):
    "Lowest and highest coverage, and mean width, by number of positive patients"
    got = {}
    for g in (1,3,10,30,100):
        for s in (.6,.9):
            for alike in (0,.5,1):
                n = images(g, trials)
                own = (np.full(n.shape, s) if alike==0 else rng.random(n.shape)<s if alike==1 else
                       rng.beta(s*(1/alike-1), (1-s)*(1/alike-1), n.shape))
                for k,(low,high) in share_ways(rng.binomial(n, own), n).items():
                    ok = ((low<=s+1e-12)&(s-1e-12<=high)).mean()
                    got.setdefault(k, {}).setdefault(g, []).append((ok, (high-low).mean()))
    def cell(v):
        c,w = zip(*v)
        return f'{100*min(c):.0f} to {100*max(c):.0f} ({100*np.mean(w):.0f})'
    return md_table([[k, *map(cell, v.values())] for k,v in got.items()], ['', *[f'{g} patients' for g in got['memo']]])

def scored(positive, alike, negative=300, apart=1.2):
    "Scores and labels of one finding for each number of positive patients, and whose the images are"
    k = max(positive)+negative
    who = np.arange(k).repeat(images(k))
    y = np.stack([np.isin(who, rng.permutation(k)[:g]) for g in positive], 1).astype(float)
    own = rng.normal(size=(k,len(positive)))[who]*alike**.5
    return torch.tensor(apart*y+own+rng.normal(size=y.shape)*(1-alike)**.5),torch.tensor(y),who

TRUE = stats.norm.cdf(1.2/2**.5)
def true_ap(g, alike, negative=300): return float(class_ap(*scored([300*g], alike, 300*negative)[:2])[0])
def holds(ends, v): return ends[0]<=v<=ends[1]

def ranks(trials=200, draws=400):
    "Coverage of AUC and AP of one finding, percentile bootstrap and what memo makes of it"
    rows = []
    for g in (1,3,5,10,30):
        got = []
        for alike in (0,.5,1):
            ap,ok = true_ap(g, alike),np.zeros(4)
            for i in range(trials):
                s,y,who = scored([g], alike)
                drawn = drawn_scores(s, y, who, who.max()+1, draws, i)
                ends = [bootstrap_ends(v, [o])[0] for v in drawn for o in (.025, expanded(g))]
                ok += [holds(e, t) for e,t in zip(ends, (TRUE,TRUE,ap,ap))]
            got.append(100*ok/trials)
        rows.append([g, *[f'{min(o):.0f} to {max(o):.0f}' for o in zip(*got)]])
    return md_table(rows, ['positive patients','AUC, percentile','AUC, memo','AP, percentile','AP, memo'])

def means(trials=120, draws=200):
    "Coverage of means over findings"
    rows = []
    for gs in ([60,50,40,30,30,20,20,15,15,10,8,5,3,1], [30,20,15,10], [10]*4, [5,3,2,1], [10,1], [2,2]):
        got = []
        for alike in (0,.7):
            ap,ok = np.mean([true_ap(g, alike, 300+max(gs)-g) for g in gs]),np.zeros(2)
            for i in range(trials):
                ci = patient_bootstrap(*scored(gs, alike), n=draws, seed=i, least=0)
                ok += [holds(ci['macro_auc'], TRUE), holds(ci['macro_ap'], ap)]
            got.append(100*ok/trials)
        shown = ['yes' if enough_for_mean(torch.tensor(gs), o) else 'no' for o in ('auc','ap')]
        cells = [f'{min(o):.0f} to {max(o):.0f}' for o in zip(*got)]
        rows.append([', '.join(map(str, gs)), cells[0], shown[0], cells[1], shown[1]])
    return md_table(rows, ['positive patients of the findings','macro AUC','shown','macro AP','shown'])

if __name__=='__main__':
    page = Path(__file__).with_suffix('.md')
    head,*_ = page.read_text().split('<!-- tables -->') if page.is_file() else ['']
    text = f'''<!-- tables -->

## Sensitivity and the other shares

In per cent: the lowest and the highest coverage over true sensitivities of .6 and .9 and images of a patient that are
alike by 0, .5 and 1 (1,000 trials each); in brackets the mean width.

{shares()}

## AUC and average precision

Lowest and highest coverage over images that are alike by 0, .5 and 1 (200 trials each, 400 draws).

{ranks()}

## Means over findings

Coverage with images that are alike by 0 and .7 (120 trials each, 200 draws), and whether memo gives the interval.

{means()}
'''
    page.write_text(head+text)
