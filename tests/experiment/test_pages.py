"Every cell of the experiments' pages is what the scores of each seed, which lie beside them, come to"
import re
import numpy as np, pandas as pd, pytest
from pathlib import Path
from scipy import stats

HERE = Path(__file__).parents[2]/'experiments'
COLUMNS = {'accuracy':'accuracy','many':'many','medium':'medium','few':'few','balanced acc.':'balanced_accuracy',
           'calibration err.':'ece','macro AUC':'macro_auc','tail AUC':'tail_auc','mAP':'macro_ap','tail mAP':'tail_ap',
           'F1':'f1','nll x 1000':'nll'}

def tables(page, name):
    "Head and rows of the tables between two marks of a page"
    text = re.search(f'<!-- {name} -->\n(.*?)<!-- end -->', (HERE/page).read_text(), re.S)[1]
    for t in re.findall(r'(?:^\|.*\n)+', text, re.M):
        head,_,*rows = [[o.strip() for o in l.strip()[1:-1].split('|')] for l in t.splitlines()]
        yield head,rows

def level(x): return x.mean(),x.std(ddof=1)
def interval(d):
    half = stats.t.ppf(.975, len(d)-1)*d.std(ddof=1)/len(d)**.5
    return d.mean(),d.mean()-half,d.mean()+half

def as_network(method):
    "Where a replay is in the training the network is the one with it"
    m = re.sub(r' \+ memory$', '', method.replace(': memory, ', ': '))
    return m.replace('plain network', 'trained with replay')

def check(where, cell, want, off=1e-4):
    "The numbers of a cell, each rounded as it is printed; what lies between two may have gone either way"
    got = re.findall(r'[-+]?\d+(?:\.\d+)?', cell)
    assert len(got)==len(want) or len(got)==1, where
    for g,w in zip(got, want):
        half = .5*10**-len(g.partition('.')[2])
        assert abs(float(g)-w)<=half+off, f'{where}: {cell}, and the seeds say {w}'

def seeds(f, **run):
    df = pd.read_csv(HERE/f)
    for k,v in run.items(): df = df[df[k]==v]
    return {k:g.set_index('seed') for k,g in df.groupby('method')}

def column(by, row, c): return by[row][COLUMNS[c]]*(1000 if c=='nll x 1000' else 100)

def checked(head, rows, by):
    "Levels of rows, and rows `a - b` of differences"
    n = 0
    for name,*cells in rows:
        a,_,b = name.partition(' - ')
        for c,cell in zip(head[1:], cells):
            x = column(by, a, c)
            check((name,c), cell, interval((x-column(by, b, c)).dropna()) if b else level(x))
            n += 1
    return n

@pytest.mark.parametrize('name', ['quickstart','fashion_lt','fashion_lt_frozen'])
def test_long_tails(name):
    by = seeds('seeds.csv', run=name)
    assert sum(checked(*t, by) for t in tables('README.md', name))>=78

def test_chest_x_rays():
    by = {k.partition('/')[2]:next(iter(seeds('chestxray/small/seeds.csv', run=k).values()))
          for k in pd.read_csv(HERE/'chestxray/small/seeds.csv').run.unique()}
    assert sum(checked(*t, by) for t in tables('chestxray/README.md', 'chest'))==6*(15+13)

def test_what_leads_for_findings():
    by,n = seeds('chestxray/findings/seeds.csv', run='chest_findings/opinions'),0
    for head,rows in tables('chestxray/README.md', 'opinions'):
        # worked out of the predictions of the same runs
        rows = [o for o in rows if not o[0].startswith('temperature and offset')]
        n += checked(head[:4], [o[:4] for o in rows], by)
        lead = next(o[0] for o in rows if not o[4])
        for name,*_,a,b,c in rows:
            for k,cell in zip(head[1:4], (a,b,c)):
                if name!=lead: check((name,k), cell, interval(column(by, name, k)-column(by, lead, k)))
    assert n==2*6*3

def test_what_needs_no_memory():
    "But for F1 above a half, which is worked out of the predictions of the same runs"
    by = seeds('chestxray/findings/seeds.csv', run='chest_findings/remedies')
    (head,rows), = tables('chestxray/README.md', 'remedies')
    assert len(rows)==len(by)==4*3
    for name,m,tail,_,f1,e,*ahead in rows:
        for c,cell in zip(('mAP','tail mAP','F1','calibration err.'), (m,tail,f1,e)):
            check((name,c), cell, level(column(by, name, c)))
        for c,cell in zip(('mAP','tail mAP','F1'), ahead):
            d = column(by, name, c)-column(by, 'plain network', c)
            if name!='plain network': check((name,c), cell, interval(d))

def test_replay():
    names = dict(zip(('stored features','class Gaussians','stored, more and more of them','a diffusion model'),
                     ('stored','gaussians','curriculum','diffusion')))
    def of(k): return next(iter(seeds('tail/replay/seeds.csv', run=f'tail/replay/{k}').values()))
    by = {k:of(v) for k,v in names.items()}
    (head,rows), = tables('tail/README.md', 'replay')
    for name,*cells in [o for o in rows if o[0] in names]:
        for c,l,d in zip(('accuracy','few'), cells[:2], cells[2:]):
            x,y = (column(by, o, c) for o in (name,'stored features'))
            check((name,c), l, level(x))
            if d: check((name,c), d, interval(x-y))

@pytest.mark.parametrize('name', ['fashion','fashion_frozen','digits'])
def test_the_tail(name):
    "Of these the files have means and spreads; the scores of each seed are rounded to a tenth"
    lev = pd.read_csv(HERE/'tail/levels.csv')
    text = (HERE/'tail/README.md').read_text()
    titles,n = re.findall(rf'\*\*{name}/(\w+)\*\* \((\d+) seeds\)', text),0
    for (training,k),(head,rows) in zip(titles, tables('tail/README.md', name), strict=True):
        a = lev[(lev.data==name)&(lev.training==training)]
        by = a.set_index(a.method.map(as_network) if training=='replay' else 'method')
        lead = by.loc[f'{by.index[0]} + memory: density']
        for m,*cells in rows:
            r = by.loc[m]
            assert r.seeds==int(k)
            for c,cell,d in zip(('accuracy','few','ece'), cells, (*cells[3:],'')):
                check((training,m,c), cell, (100*r[c],100*r[f'{c}_std']))
                each = np.array(r[f'{c}_per_seed'].split(), dtype=float)
                assert len(each)==r.seeds and abs(each.mean()-100*r[c])<=.0501
                n += 1
                if not d: continue
                first,other = (dict(zip(o.seed_numbers.split(), np.array(o[f'{c}_per_seed'].split(), dtype=float)))
                               for o in (lead,r))
                ahead = interval(np.array([first[s]-other[s] for s in sorted(first.keys()&other.keys())]))
                check((training,m,c,'density minus it'), d, ahead, .2)
    assert n>=3*3*15
