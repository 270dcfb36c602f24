"""Are the numbers of two run folders the same, to the last bit? Those of metrics.json, history.csv and
predictions.csv, `seconds` and `item` apart.

    python benchmarks/same_numbers.py OLD/quickstart NEW/quickstart

OLD may be of version 0.1: bank_* columns are memory_* now, and the methods of its metrics.json are rows of data.
"""
import json, sys
from pathlib import Path
import pandas as pd

def table(p):
    return pd.read_csv(p).drop(columns=['seconds','item'],
                               errors='ignore').rename(columns=lambda c: 'memory_'+c.removeprefix('bank_')
                                                       if c.startswith('bank_') else c)

def rows(p):
    "label -> scores, chosen; of either form"
    from memo.evaluation.tables import label, row_of
    m = json.loads(p.read_text())
    if 'methods' in m: return {k:(v, m.get('chosen', {}).get(k)) for k,v in m['methods'].items()}
    return {label(row_of(r), m['titles']):(r['scores'], r.get('chosen') or None) for r in m['rows']}

def compare(old, new):
    n,bad = 0,[]
    for p in sorted(old.rglob('*')):
        q = new/p.relative_to(old)
        if p.name not in ('metrics.json','history.csv','predictions.csv'): continue
        if not q.is_file(): bad.append(f'{q} is not there')
        elif p.suffix=='.csv':
            a,b = table(p),table(q)
            n += a.size
            if not a.equals(b): bad.append(f'{q}: other columns or numbers')
        else:
            a,b = rows(p),rows(q)
            n += sum(len(s)+len(c or ()) for s,c in a.values())
            if json.dumps(a, sort_keys=True)!=json.dumps(b, sort_keys=True): bad.append(f'{q}: other rows or numbers')
    return n,bad

if __name__=='__main__':
    n,bad = compare(*map(Path, sys.argv[1:3]))
    print(f'{n} numbers compared; '+('all are equal' if not bad else '; '.join(bad)))
    sys.exit(bool(bad))
