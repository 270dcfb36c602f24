"""How many planted label errors `bank.suspects()` finds, beside cleanlab on a cross-validated logistic regression

    python benchmarks/suspects.py [FOLDER OF CACHED FEATURES]

Digits (pixels) and Fashion-MNIST (features of a frozen EfficientNet-Lite0 at 64 pixels); balanced and long-tailed; a
tenth of the labels made wrong, any other class alike (symmetric), or the class whose mean feature is nearest
(dependent); five seeds of the draw and of the errors. cleanlab gets out-of-sample probabilities of logistic regression
on standardised features (five folds; its ridge, C=.01 against .001, and the ranking by normalised margin are those that
did best for it on another seed; the settings of `suspects` come from two other seeds of the same data, out of some
hundreds, so it is tuned harder), and, in a column of its own, the votes that `suspects` goes by. One thread. Writes
suspects.md."""
import os, sys, warnings
from pathlib import Path
os.environ |= dict(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
import numpy as np, torch
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F
from memo.banks import suspects
from memo.banks.slots import SlotBank
from memo.core import settings
from memo.data.features import cached_features
from memo.data.longtail import fashion_lt, longtail_counts
from memo.models.backbones import load_backbone

SEEDS,C,WRONG = range(5),10,.1
neighbours_of = suspects.neighbours_of
SETS = {'digits':(170,170,20), 'Fashion-MNIST':(300,1000,100)}    # rows a class; of the largest, largest/smallest
METHODS = ['bank.suspects','cleanlab, logistic regression','cleanlab, votes of suspects']
FIGURES = 'precision at the number planted','precision of its list','recall of its list','clean rows of the three ' \
          'rarest classes in it'

SAYS = """At the number planted `bank.suspects` leads logistic regression everywhere, by .04 to .19; with the same votes
cleanlab's margin is as good or up to .05 better where errors go to the nearest class, and .07 worse where they go
anywhere in Fashion-MNIST. The list that `suspects` gives by itself is more often right (.55 to .99 against .41 to .89)
and leaves more out (recall .59 to .82 against .78 to .91): for the most errors ask for more rows by `n`. Of clean rows
of the three rarest classes it has fewer in its list, but with 1:100 still about a fifth: look before you correct."""

def features(cache):
    d = load_digits()
    dls = fashion_lt(n_max=1000, ratio=1, valid=0, size=64, channels=3, shift=0, device='cpu')
    x,y,_ = cached_features(load_backbone('tf_efficientnet_lite0', pretrained=True), dls.train, cache, half=False)
    return {'digits':(torch.tensor(d.data).float(),torch.tensor(d.target)), 'Fashion-MNIST':(x.float(),y)}

def drawn(x, y, counts, seed):
    g = torch.Generator().manual_seed(seed)
    counts = torch.tensor(counts)[torch.randperm(C, generator=g)].tolist()
    def some(c): return (i := (y==c).nonzero().squeeze(1))[torch.randperm(len(i), generator=g)[:counts[c]]]
    at = torch.cat([some(c) for c in range(C)])
    return x[at],y[at]

def planted(x, y, kind, seed):
    g = torch.Generator().manual_seed(seed+7)
    bad,to = torch.randperm(len(y), generator=g)[:round(WRONG*len(y))],y.clone()
    if kind=='symmetric': to[bad] = (y[bad]+torch.randint(1, C, (len(bad),), generator=g))%C
    else:
        m = F.normalize(torch.stack([F.normalize(x[y==c].mean(0), dim=0) for c in range(C)]))
        to[bad] = (m@m.T).fill_diagonal_(-2).argmax(1)[y[bad]]
    return to,to!=y

def by_cleanlab(p, y):
    y = y.numpy()
    order = get_label_quality_scores(y, p, method='normalized_margin').argsort(kind='stable')
    return order,find_label_issues(y, p, return_indices_ranked_by='normalized_margin')

def found(x, y):
    "Of each method: rows, the most suspect first; its own list"
    bank = SlotBank(len(x), policy='fifo')
    bank.write(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        net = make_pipeline(StandardScaler(), LogisticRegression(C=.01, max_iter=100))
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        p = cross_val_predict(net, x.numpy(), y.numpy(), cv=folds, method='predict_proba')
    looked_up = near,s,_ = neighbours_of(bank, torch.arange(len(x)), y)
    suspects.neighbours_of = lambda *_: looked_up   # what takes longest, once for the three calls
    votes = suspects.left_out_votes(y[near], s, y, torch.bincount(y, minlength=C)).double()
    votes = (votes/votes.sum(1, keepdim=True)).numpy()
    own = bank.suspects(len(x)).slot.to_numpy(),bank.suspects().slot.to_numpy()
    return dict(zip(METHODS, (own, by_cleanlab(p, y), by_cleanlab(votes, y))))

def figures(order, listed, y, bad):
    n,b = int(bad.sum()),bad.numpy()
    rare = torch.isin(y, torch.bincount(y, minlength=C).argsort(stable=True)[:3]).numpy() & ~b
    on = np.isin(np.arange(len(y)), listed)
    return b[order[:n]].mean(),b[on].mean() if on.any() else np.nan,on[b].mean(),on[rare].mean()

def page(rows):
    about = ' '.join(__doc__.split('\n\n')[2].split())
    out = ['# Planted label errors','','    python benchmarks/suspects.py','',about,'',
           'Mean of five seeds, its standard deviation behind it; `difference`: suspects less cleanlab on logistic '
           'regression, of the same seed.','',' '.join(SAYS.split()),'']
    for i,what in enumerate(FIGURES):
        head = f"| data | errors | {' | '.join(METHODS)} | difference |"
        out += [f'**{what[0].upper()}{what[1:]}**','',head,'|---'*6+'|']
        for (data,kind),got in rows.items():
            v = np.array([[got[s][m][i] for m in METHODS] for s in got])
            v = np.c_[v,v[:,0]-v[:,1]]
            def cell(o, sign=''): return f'{o.mean():{sign}.3f} ({o.std(ddof=1):.3f})'
            out.append(f"| {data} | {kind} | {' | '.join(map(cell, v.T[:-1]))} | {cell(v[:,-1], '+')} |")
        out.append('')
    return '\n'.join(out)

def main():
    torch.set_num_threads(1)
    data,rows = features(sys.argv[1] if len(sys.argv)>1 else settings().cache/'features'),{}
    for name,(even,most,ratio) in SETS.items():
        for tail in (False,True):
            counts = [int(o) for o in longtail_counts(most, ratio, C)] if tail else [even]*C
            for kind in ('symmetric','dependent'):
                key = f"{name}, {f'long-tailed 1:{ratio}' if tail else 'balanced'}",kind
                rows[key] = {}
                for seed in SEEDS:
                    x,y = drawn(*data[name], counts, seed)
                    y,bad = planted(x, y, kind, seed)
                    rows[key][seed] = {m:figures(*o, y, bad) for m,o in found(x, y).items()}
                    print(key, seed, {m:[round(float(v), 3) for v in o] for m,o in rows[key][seed].items()}, flush=True)
                Path(__file__).with_suffix('.md').write_text(page(rows))

if __name__=='__main__': main()
