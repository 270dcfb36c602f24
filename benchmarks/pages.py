"""The tables of experiments/README.md, experiments/chestxray/README.md and experiments/tail/README.md from finished
runs:
for n in quickstart fashion_lt fashion_lt_frozen; do memo-train experiments/$n.yaml; done; memo-train
experiments/chestxray/small/*.yaml;
memo-train experiments/chestxray/findings/*.yaml;
for f in experiments/tail/{digits,fashion,fashion_frozen}/*.yaml; do memo-train $f; done; python benchmarks/pages.py
A folder of runs may be named: python benchmarks/pages.py DIR. What has not been run keeps its table; the text around
the tables is written by hand."""
import re,sys
from pathlib import Path
import numpy as np,pandas as pd,torch
from memo.core import settings
from memo.evaluation.calibration import fit_temperature,log_odds_nll
from memo.evaluation.tables import label,md_table,row_of,titles_in,with_interval,with_spread
from memo.experiment.run_folder import read_json
from memo.metrics.intervals import paired
from memo.metrics.multilabel import multilabel_scores

runs = Path(sys.argv[1]) if len(sys.argv)>1 else settings().runs
here = Path(__file__).parents[1]/'experiments'

def put(page, name, table):
    "Put `table` between the marks `<!-- name -->` and `<!-- end -->` of a page"
    f = here/page
    text,n = re.subn(f'(<!-- {name} -->\n\n).*?(\n\n<!-- end -->)', lambda m: m[1]+table.strip()+m[2], f.read_text(),
                     flags=re.S)
    assert n==1, f'{f} has {n} places for {name}'
    f.write_text(text)

trainings = 'plain balanced sqrt adjusted_loss replay'.split()

def as_network(method):
    "A row's name where the memory is in the training: the network is the one that was trained with it"
    name = re.sub(r' \+ memory$', '', method.replace('+ memory: memory, density', '+ memory: density'))
    return name.replace('plain network', 'trained with replay')

def tail_table(d):
    "Of one training: levels of each row, and how far the density head on the same network is ahead of it"
    name = as_network if d.name=='replay' else str
    df,by = pd.read_csv(d/'results.csv'),{}
    df['method'] = df.method.map(name)
    own = df.method[0]
    for _,m in trainings_of(d):
        for r in m['rows']: by.setdefault(name(label(row_of(r), titles_in([m]))), {})[m['seed']] = r['scores']
    def ahead(k, c):
        "Of seeds that both have"
        a,b = by[f'{own} + memory: density'],by[k]
        d = paired(*(np.array([o[s][c] for s in sorted(a.keys()&b.keys())]) for o in (a,b)))
        return with_interval(d['mean'], d['low'], d['high'], '+')
    # of other networks the best remedy, and no mixtures of mixtures
    shown = [m for m in df.method if not (' + memory' in m and not m.startswith((own+' +','LDAM-DRW +'))) and
             (', LDAM-DRW' not in m)]
    rows = [[r.method, *[with_spread(r[k], r[f'{k}_std']) for k in ('accuracy','few','ece')],
             *['' if ' + memory' in r.method else ahead(r.method, c) for c in ('accuracy','few')]]
            for _,r in df[df.method.isin(shown)].sort_values('accuracy', ascending=False).iterrows()]
    return md_table(rows, ['', 'accuracy', 'few', 'calibration err.', 'density minus it: accuracy', 'few'])

def tail_tables(d):
    "Of a data set: a table for each training that has finished"
    done = [t for t in trainings if (d/t/'results.csv').is_file()]
    return '\n\n'.join(f"**{d.name}/{t}** ({pd.read_csv(d/t/'results.csv').seeds[0]} seeds)\n\n"
                        f"{tail_table(d/t)}" for t in done)

def all_seeds(to, name):
    "Every row of every table, with what each seed has, in one file"
    fs = [(n, t, runs/'tail'/n/t/name) for n in ('digits','fashion','fashion_frozen') for t in trainings]
    parts = [pd.read_csv(f).assign(data=n, training=t) for n,t,f in fs if f.is_file()]
    if not parts: return
    df = pd.concat(parts)
    first = ['data','training',*[o for o in ('method','baseline','seeds','seed_numbers') if o in df]]
    df[[*first, *[o for o in df if o not in first]]].round(6).to_csv(here/'tail'/to, index=False)

def trainings_of(d):
    "What the trainings of a run have in `metrics.json`, with their folders, the run's own first"
    fs = sorted(d.glob('**/metrics.json'), key=lambda o: (o.parent!=d, o))
    return [(f.parent,read_json(f)) for f in fs]

def seeds_beside(to, names):
    """Scores of every row of some runs, a line for each seed, from which their tables can be worked out again; what has
    not been run keeps its lines"""
    done = [n for n in names if (runs/n/'results.csv').is_file()]
    rows = [dict(run=n, method=label(row_of(r), titles_in([m])), seed=m['seed'],
                 **{c:r['scores'].get(c) for c in [*m['columns'],'nll']})
            for n in done for _,m in trainings_of(runs/n) for r in m['rows']]
    if not rows: return
    df = pd.DataFrame(rows).round(8)
    if (here/to).is_file():
        was = pd.read_csv(here/to)
        df = pd.concat([was[~was.run.isin(done)], df])
    df.dropna(axis=1, how='all').to_csv(here/to, index=False)

def log_odds(f):
    "Of a network alone and its findings, from the predictions of a training"
    df = pd.read_csv(f)
    own = df.columns[df.columns.str.contains(': ')][0].rpartition(': ')[0]
    names = [o.removeprefix(f'{own}: ') for o in df.columns if o.startswith(f'{own}: ')]
    p = torch.tensor(df[[f'{own}: {o}' for o in names]].to_numpy()).double()
    return torch.logit(p, eps=1e-9),torch.tensor(df[names].to_numpy()).double()

def with_offset(d):
    "Likelihood of a network after one temperature and one offset for all findings, chosen on validation data"
    f,_ = fit_temperature(*log_odds(d/'predictions_valid.csv'), offset=True)
    x,y = log_odds(d/'predictions.csv')
    return log_odds_nll(f(x), y).item()

def findings_table(d):
    "Of each training: its rows, and each less the network x logistic regression on the same network"
    cols = (('macro_ap',1),('tail_ap',1),('nll',10))        # per cent; nll of 1,000
    head = ['','mAP','tail mAP','nll x 1000','minus network x logistic regression: mAP','tail mAP','nll x 1000']
    tables = []
    for other in (False,True):
        by,rows = {},[]
        for f,m in trainings_of(d):
            if f.name.startswith('balanced')!=other: continue
            for i,r in enumerate(m['rows']):
                by.setdefault(label(row_of(r), titles_in([m])), []).append(r['scores'])
                if i: continue
                # the order of images stays, and with it how they are ranked
                name = 'temperature and offset'+(', balanced sampling' if other else '')
                by.setdefault(name, []).append({**r['scores'], 'nll':with_offset(f)})
        lead = next(v for k,v in by.items() if k.startswith('network x logistic regression'))
        def values(v, c, u): return np.array([o[c]*u for o in v])
        for k,v in by.items():
            x = [values(v, *o) for o in cols]
            ds = [paired(a, values(lead, *o)) for a,o in zip(x, cols)]
            rows.append([k, *[with_spread(o.mean(), o.std(ddof=1), 2) for o in x],
                         *['' if v is lead else with_interval(o['mean'], o['low'], o['high'], '+', 2) for o in ds]])
        tables.append(md_table(rows, head))
    return '\n\n'.join(tables)

def remedies_table(d):
    "Of each training without a memory, and of each temperature, what it has and what it is ahead of the usual one by"
    by = {}
    for f,m in trainings_of(d):
        x,y = log_odds(f/'predictions.csv')
        half = multilabel_scores(x.sigmoid(), y)['f1']      # no temperature moves what lies above a half
        for r in m['rows']: by.setdefault(label(row_of(r), titles_in([m])), []).append({**r['scores'], 'half':half})
    def values(k, c): return np.array([o[c] for o in by[k]])
    rows = [[k, *[with_spread(values(k, c).mean(), values(k, c).std(ddof=1), 2)
                  for c in ('macro_ap','tail_ap','half','f1','ece')],
             *['' if k=='plain network' else with_interval(*[paired(values(k, c), values('plain network', c))[o]
               for o in ('mean','low','high')], '+', 2) for c in ('macro_ap','tail_ap','f1')]] for k in by]
    return md_table(rows, ['','mAP','tail mAP','F1 above .5','F1 above chosen','calibration err.',
                           'minus plain: mAP','tail mAP','F1 above chosen'])

def temperatures(d):
    """Calibration of each training of the small chest table as it is, after one temperature and after one for each
    finding, chosen on validation data: neither changes how images are ranked, nor what lies above a half"""
    rows = []
    for f in (d/f'{o.stem}/metrics.json' for o in sorted((here/'chestxray/small').glob('*.yaml'))):
        if not f.is_file(): continue
        scores = []
        for s in (o for o,_ in trainings_of(f.parent)):
            v,(x,y) = log_odds(s/'predictions_valid.csv'),log_odds(s/'predictions.csv')
            ways = (lambda o: o), *(fit_temperature(*v, each=e)[0] for e in (False,True))
            scores.append([multilabel_scores(w(x).sigmoid(), y)['ece'] for w in ways])
        a = np.array(scores)
        ds = (paired(a[:,i], a[:,0]) for i in (1,2))
        rows.append([f.parent.name, *[with_spread(o.mean(), o.std(ddof=1), 2) for o in a.T],
                     *[with_interval(o['mean'], o['low'], o['high'], '+', 2) for o in ds]])
    return md_table(rows, ['calibration err.','as it is','one temperature','one for each finding','one - as it is',
                           'each - as it is'])

def page(f): return f.read_text().split('\n', 1)[1]      # without its heading

for name,f,table,to in [
    *[(n, runs/n/'results.md', page, 'README.md') for n in ('quickstart','fashion_lt','fashion_lt_frozen')],
    ('chest', runs/'chest_small/comparison/comparison.md', page, 'chestxray/README.md')]:
    if f.is_file(): put(to, name, table(f))
    else: print(f'{f}: not run, its table stays')
if (d := runs/'chest_small').is_dir(): put('chestxray/README.md', 'temperatures', temperatures(d))
d = runs/'chest_findings/opinions'
if (d/'results.csv').is_file():
    said = 'Per cent, means over five seeds ± their standard deviation.'
    put('chestxray/README.md', 'opinions', f'{said}\n\n{findings_table(d)}')
if ((d := runs/'chest_findings/remedies')/'results.csv').is_file():
    put('chestxray/README.md', 'remedies', remedies_table(d))
for name in ('fashion','fashion_frozen','digits'):
    if (runs/'tail'/name).is_dir(): put('tail/README.md', name, tail_tables(runs/'tail'/name))
    else: print(f'{name}: not run, its tables stay')
for to,name in (('levels.csv','results.csv'), ('differences.csv','differences.csv')): all_seeds(to, name)
small = [f'chest_small/{o.parent.name}' for o in sorted((runs/'chest_small').glob('*/results.csv'))]
for to,names in {'seeds.csv':('quickstart','fashion_lt','fashion_lt_frozen'), 'chestxray/small/seeds.csv':small,
                 'chestxray/findings/seeds.csv':('chest_findings/opinions','chest_findings/remedies'),
                 'tail/replay/seeds.csv':[f'tail/replay/{o}' for o in ('stored','gaussians','curriculum','diffusion')]
                }.items(): seeds_beside(to, names)
