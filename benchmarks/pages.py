"""The tables of experiments/README.md, experiments/chestxray/README.md and experiments/tail/README.md from finished
runs:
for n in quickstart fashion_lt fashion_lt_frozen; do memo-train experiments/$n.yaml; done; memo-train
experiments/chestxray/small/*.yaml;
for n in digits fashion fashion_frozen; do memo-train experiments/tail/$n/*.yaml; done; python benchmarks/pages.py
A folder of runs may be named: python benchmarks/pages.py DIR. What has not been run keeps its table; the text around
the tables is written by hand."""
import re,sys
from pathlib import Path
import pandas as pd
from memo.core import settings
from memo.evaluation.tables import md_table,with_interval,with_spread

runs = Path(sys.argv[1]) if len(sys.argv)>1 else settings().runs
here = Path(__file__).parents[1]/'experiments'

def put(page, name, table):
    "Put `table` between the marks `<!-- name -->` and `<!-- end -->` of a page"
    f = here/page
    text,n = re.subn(f'(<!-- {name} -->\n\n).*?(\n\n<!-- end -->)', lambda m: m[1]+table.strip()+m[2], f.read_text(),
                     flags=re.S)
    assert n==1, f'{f} has {n} places for {name}'
    f.write_text(text)

def cell(r, k): return with_interval(r[f'{k}_mean'], r[f'{k}_low'], r[f'{k}_high'], '+')

def tail_tables(f):
    "Means, and how far each use of a memory is ahead of its own network and of the two remedies"
    df,diff = pd.read_csv(f),pd.read_csv(f.with_name('differences.csv'))
    cols = 'accuracy many medium few'.split()
    means = [[r.method, *[with_spread(r[k], r[f'{k}_std']) for k in (*cols,'ece')]] for _,r in df.iterrows()]
    rivals = {'its own network':None, 'logit adjustment':'plain: logit adjustment',
              'balanced sampling':'balanced: balanced sampling'}
    rows = []
    for m,g in diff.groupby('method', sort=False):
        row = [m]
        for v in rivals.values():
            r = g[g.baseline==(m.split(' + memory')[0] if v is None else v)]
            row += [cell(r.iloc[0], c) if len(r) else '' for c in ('accuracy','few')]
        rows.append(row)
    titles = ['', *[f'{c}: minus {k}' for k in rivals for c in ('accuracy','few')]]
    return (f"{md_table(means, ['', *cols, 'calibration err.'])}\n\nDifferences, paired by "
            f"seed:\n\n{md_table(rows, titles)}")

def page(f): return f.read_text().split('\n', 1)[1]      # without its heading

for name,f,table,to in [
    *[(n, runs/n/'results.md', page, 'README.md') for n in ('quickstart','fashion_lt','fashion_lt_frozen')],
    ('chest', runs/'chest_small/comparison/comparison.md', page, 'chestxray/README.md'),
    *[(n, runs/f'tail/{n}/comparison/comparison.csv', tail_tables, 'tail/README.md')
      for n in ('fashion','fashion_frozen','digits')]]:
    if f.is_file(): put(to, name, table(f))
    else: print(f'{f}: not run, its table stays')
