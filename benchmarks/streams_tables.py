"""The tables of tuned methods on streams of points in streams.md, and each seed's figures in streams.csv

    python benchmarks/streams_tables.py [--runs runs] [modes-CDI moons-CI ...] [--again modes-CDI]

Does what `memo-train streams/table data=moons data.kind=CI name=streams/table_moons_CI` does for each stream named, and
puts its table between the stream's marks on the page; what is there in the run folder already is read. `--again`: the
settings that were taken of some methods, over ten seeds on which nothing was chosen."""
import argparse,os
os.environ.setdefault('OMP_NUM_THREADS', '1')
from pathlib import Path
import numpy as np, pandas as pd, torch
from avalanche import write
from memo.experiment import table as tb
from memo.metrics.intervals import paired
torch.set_num_threads(1)

page = Path(__file__).with_name('streams.md')
first = 'memory head, euclidean'        # the others are compared with it
leading = [first,'DER++','ER-ACE','replay, balanced','memory head, cosine','RanPAC, small','replay']
scores = dict(average_accuracy='average accuracy', forgetting='forgetting', anytime_accuracy='on the way')

def load(stream, runs):
    data,kind = stream.split('-')
    own = '' if stream=='modes-CDI' else f'_{data}_{kind}'
    said = f'data={data}',f'data.kind={kind}',f'name=streams/table{own}',f'runs={runs}'
    return tb.load_table('streams/table', said)

def rows_of(cfg): return [m['rows'][0]['scores'] | dict(bytes=m.get('bytes')) for m in tb.scores_of(cfg)]

def tuned(table, e, seeds=None):
    "Of a method: scores of each seed with the best setting, the setting, how it was tuned"
    i,vs = tb.best_setting(table, e)
    more = {} if seeds is None else {'seeds':seeds}
    name = f'{table.cfg.name}/{tb.slug(e.name)}/'+('best' if seeds is None else 'again')
    cfg = tb.changed(e.cfg, {**e.settings[i], **more, 'name':name}, e.name)
    said = tb.noted(e, i, vs, cfg, None)
    return (rows_of(cfg) if tb.trained(cfg, False, print) else None),said,cfg.seeds

def level(rs, k):
    vs = [100*o[k] for o in rs if o.get(k) is not None]
    return f'{np.mean(vs):.1f} ({min(vs):.1f} to {max(vs):.1f})' if vs else ''

def minus(rs, base):
    if rs is base: return ''
    d = paired(*[[100*o['average_accuracy'] for o in x] for x in (rs,base)])
    return f"{d['mean']:+.1f} ± {(d['high']-d['low'])/2:.1f}"

def text(got):
    "The table, best first; what has seen all at once comes before"
    base = got[first][0]
    def mean(k): return np.mean([o['average_accuracy'] for o in got[k][0]])
    names = sorted((k for k in got if got[k][0]), key=lambda k: (k!='all at once', -mean(k)))
    yield f'| method | {" | ".join(scores.values())} | minus {first} | tried; taken | validation, first half | kB |'
    yield '|---|'+'---|'*7
    for k in names:
        rs,n,_ = got[k]
        joint = k=='all at once'
        cells = [level(rs, s) if not joint or s=='average_accuracy' else '' for s in scores]
        gone = f" ({n['diverged']} diverged)" if n['diverged'] else ''
        kb = np.mean([o['bytes'] for o in rs])/1000
        yield (f"| {k} | {' | '.join(cells)} | {minus(rs, base)} | {n['settings']}{gone}; {n['chosen']} "
               f"| {100*n['validation']:.1f} | {kb:.1f} |")

def text_again(got):
    base = got[first][0]
    yield f'| method | average accuracy | forgetting | minus {first} |\n|---|---|---|---|'
    for k,(rs,_,_) in got.items():
        yield f"| {k} | {level(rs, 'average_accuracy')} | {level(rs, 'forgetting')} | {minus(rs, base)} |"

def keep(stream, got):
    "Each seed's figures, in place of those of this stream that were there"
    path,cols = page.with_suffix('.csv'),['stream','method','taken','seed',*scores]
    rows = [dict(stream=stream, method=k, taken=n['chosen'], seed=s, **{c:None if r.get(c) is None else round(r[c], 5)
            for c in scores}) for k,(rs,n,seeds) in got.items() if rs for r,s in zip(rs, seeds)]
    old = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=cols)
    df = pd.DataFrame(rows, columns=cols)
    old = old[old.stream!=stream]
    (pd.concat([old, df]) if len(old) else df).sort_values('stream', kind='stable').to_csv(path, index=False)

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('streams', nargs='*')
    p.add_argument('--runs', default='runs')
    p.add_argument('--again')
    a = p.parse_args()
    for s in a.streams:
        t = load(s, a.runs)
        got = {e.name:tuned(t, e) for e in t.entries}
        lines = '\n'.join(text(got))
        print(lines, flush=True)
        write(page, s, lines)
        keep(s, got)
    if a.again:
        t = load(a.again, a.runs)
        es = {e.name:e for e in t.entries}
        got = {k:tuned(t, es[k], [*range(10)]) for k in leading}
        lines = '\n'.join(text_again(got))
        print(lines)
        write(page, f'{a.again} again', lines)
        keep(f'{a.again} again', got)
