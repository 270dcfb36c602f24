"""Memory heads and plain methods on the eight streams of points, with the settings whose figures are known

    python benchmarks/streams_points.py [--quick] [--seeds 1234 123456 12346578] [--out benchmarks/streams_points.md]

MODES and MOONS, mixed (IID), class after class (CI), domain after domain (CDI), with a drift inside (CDID): 1,000
points, one pass, one at a time. A seed sets first weights and the order of points inside an experience. Nothing is
tuned, so no row says what a method can reach: `memo-train streams/table` does."""
import argparse, os, time, warnings
os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.filterwarnings('ignore')
from pathlib import Path
import numpy as np, torch
from fastai.vision.all import CrossEntropyLossFlat, Learner, OptimWrapper, SGD, nn, partial
from memo.all import AGEM, GDumb, MemoryLinear, Replay, modes, moons, row_sgd

seeds,kinds = (1234,123456,12346578),('IID','CI','CDI','CDID')
adam = partial(OptimWrapper, opt=torch.optim.Adam)
def head(**kw):
    return lambda: MemoryLinear(2, 4, key_mem_units=10, delta=2, gamma_alpha=25, beta_k=.01, tau_mu=50, tau_eta=50,
                                **{**dict(tau_alpha=.95), **kw})
def mlp(): return nn.Sequential(nn.Linear(2, 25), nn.Tanh(), nn.Linear(25, 4))

# network, optimizer, rate, callbacks; what was published or measured on MODES, IID CI CDI CDID
ways = {'euclidean, Adam .01': (head(distance='euclidean'), adam, .01, None, '.95 .95 .92 .87'),
        'the same, keys move after the backward': (head(distance='euclidean', order='backward'), adam, .01, None,
                                                   '.95 .95 .92 .87'),
        'the same, tau_alpha .85': (head(distance='euclidean', tau_alpha=.85), adam, .01, None, ''),
        'the same, row_sgd .1': (head(distance='euclidean'), row_sgd, .1, None, ''),
        'cosine, Adam .01': (head(), adam, .01, None, '.86 .68 .74 .74'),
        'hidden layer of 25, SGD .1': (mlp, SGD, .1, None, '.93 .25 .45 .44'),
        'the same, replay of 1 from 8': (mlp, SGD, .1, lambda: Replay(8, batch_size=1), '.97 .61 .44 .48'),
        'the same, A-GEM, 8': (mlp, SGD, .1, lambda: AGEM(8, batch_size=1), '.91 .25 .43 .43'),
        'the same, GDumb, 8': (mlp, SGD, .1, lambda: GDumb(8, epochs=10, batch_size=1), '.53 .46 .49 .49'),
        'the same, replay of 10 from 100, Adam .01': (mlp, adam, .01, lambda: Replay(100, batch_size=10),
                                                      '.95 .82 .82 .84')}

def run(way, data, kind, seed):
    "Average accuracy, forgetting and CPU seconds of a pass"
    make,opt,lr,cb,_ = ways[way]
    stream = data(kind=kind, bs=1, seed=seed, device='cpu')
    torch.manual_seed(seed)
    learn = Learner(stream.dls, make(), loss_func=CrossEntropyLossFlat(), opt_func=opt, lr=lr, wd=0.)
    t = time.process_time()
    with learn.no_logging(), learn.no_bar(): r = learn.fit_stream(stream, cbs=None if cb is None else cb())
    return r.average_accuracy,r.forgetting,time.process_time()-t

def table(data, names, seeds):
    "Lines of Markdown"
    yield f'| {data.__name__.upper()} | '+' | '.join(kinds)+' | CPU s of a run | known |'
    yield '|---|'+'---|'*(len(kinds)+2)
    for way in names:
        rs = np.array([[run(way, data, k, s) for s in seeds] for k in kinds])
        cells = [f'{r[:,0].mean():.3f} ({r[:,0].min():.2f} to {r[:,0].max():.2f}) / {r[:,1].mean():.2f}' for r in rs]
        yield f"| {way} | {' | '.join(cells)} | {np.median(rs[...,2]):.1f} | {ways[way][-1] if data is modes else ''} |"

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--quick', action='store_true', help='MODES with the two memory heads only')
    p.add_argument('--seeds', type=int, nargs='+', default=seeds)
    p.add_argument('--out', help='a page to write')
    a = p.parse_args()
    torch.set_num_threads(1)
    names = ['euclidean, Adam .01','cosine, Adam .01'] if a.quick else ways
    lines = [f'Average accuracy on test points, mean of {len(a.seeds)} seeds (lowest to highest) / forgetting.']
    print(lines[0])
    for data in (modes,) if a.quick else (modes,moons):
        lines.append('')
        print()
        for line in table(data, names, a.seeds):
            lines.append(line)
            print(line, flush=True)
    if a.out:
        page = Path(a.out)
        mark = '<!-- figures -->'
        before,_,rest = page.read_text().partition(mark) if page.exists() else ('','','')
        page.write_text(f'{before}{mark}\n'+'\n'.join(lines)+f'\n{mark}'+rest.partition(mark)[2])
