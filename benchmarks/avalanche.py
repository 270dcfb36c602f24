"""memo's streams side by side with Avalanche's. One command,

    python benchmarks/avalanche.py --avalanche PYTHON [--part accuracy|speed] [--quick]

PYTHON is that of an environment with avalanche-lib (0.6.0 here) and torch; it runs `avalanche_half.py`.

Accuracy: split digits and split Fashion-MNIST (1,000 images a class), five experiences of two classes, features of
EfficientNet-Lite0 (ImageNet weights from a package) at 64 px, centred on the mean of the first experience, of length 4;
a linear layer, one pass, batches of 10, SGD at .5 without momentum. Both read the same tensors from one file, classes
and items in the same order, and start from the same weights; ten seeds. Average accuracy and forgetting of both are
computed from matrices of accuracies by `memo.metrics.continual`; Avalanche's matrix is what its own metric says. Rows
with "as it comes" are Avalanche's own defaults, the others are set up for the same formula on both sides. Where nothing
is drawn at random during training (naive, EWC, LwF) the two matrices have to be the same.

Speed: batch 1 and 10, random features 512 wide, ten classes: the second of two experiences. CPU time, one thread, memo,
Avalanche and a bare PyTorch loop in turn. Avalanche without metrics and loggers, and as it comes.

Writes avalanche.md, of which one part alone leaves the other as it is, and avalanche.json, from where a run of the
accuracy goes on; without that file it begins anew. `--quick`: digits, two seeds, fewer rounds; writes nothing."""
import argparse,contextlib,io,json,os,subprocess,tempfile,time
from functools import partial
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1')
from statistics import median,quantiles
import numpy as np, torch
from fastai.vision.all import Callback,DataLoaders,Learner,SGD
from torch import nn
from torch.nn import functional as F
from memo.continual.distillation import LwF
from memo.continual.penalties import EWC
from memo.continual.replay import AGEM,Replay
from memo.continual.stream_fit import *
from memo.core import settings
from memo.data.features import features_dls
from memo.data.streams import Stream
from memo.data.tensors import TensorDL,TensorSet
from memo.data.whole import digits,fashion_mnist
from memo.metrics.continual import average_accuracy,forgetting
from memo.metrics.intervals import paired
from memo.models.backbones import load_backbone
torch.set_num_threads(1)

N,BS,LR,SCALE,SIZE = 5,10,.5,4.,200             # experiences, batch, rate, length of features, images kept
EWC_WEIGHT,LWF_WEIGHT,T,SAMPLE = 20.,1.,2.,20
sets = {'digits':partial(digits, valid=0, test=40), 'fashion':partial(fashion_mnist, n=10_000, valid=0)}
# Avalanche's weight of EWC has no 1/2, its LwF no T^2, its A-GEM divides what it keeps among the experiences
theirs = dict(mem_size=SIZE, ewc_lambda=EWC_WEIGHT/2, mode='separate', decay_factor=None, alpha=LWF_WEIGHT*T*T,
              temperature=T, patterns_per_exp=SIZE//N, sample_size=SAMPLE)

class Half:
    "The process of Avalanche: `half(do=..., ...)` is its answer"
    def __init__(self, python):
        path = Path(__file__).with_name('avalanche_half.py')
        self.p = subprocess.Popen([python,'-P',str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                  stderr=subprocess.DEVNULL)
    def __call__(self, **job):
        print(json.dumps(job), file=self.p.stdin, flush=True)
        line = self.p.stdout.readline()
        if not line: raise SystemExit(f'avalanche_half.py stopped at {job}; give it this line to see why')
        return json.loads(line)

# ---- accuracy

def features(name):
    "Tensors of a set: features and labels for training and test"
    net = load_backbone('tf_efficientnet_lite0', True, in_chans=1).eval()
    dls = features_dls(net, sets[name](size=64, shift=0, bs=64), settings().cache/'features', name)
    return {f'{v}{k}':getattr(dl.dataset, v) for k,dl in ((0,dls.train),(1,dls.loaders[2])) for v in 'xy'}

def draw(f, seed):
    "Positions of the items of each experience, mean of the first, weights at the start"
    g = torch.Generator().manual_seed(seed)
    d = {}
    for i,cs in enumerate(torch.randperm(10, generator=g).view(N, -1)):
        for k in (0,1):
            at = torch.isin(f[f'y{k}'], cs).nonzero().flatten()
            d[f'{k}{i}'] = at[torch.randperm(len(at), generator=g)]
    bound = f['x0'].shape[1]**-.5
    w,b = ((torch.rand(s, generator=g)*2-1)*bound for s in ((10,f['x0'].shape[1]),(10,)))
    return dict(d, mean=f['x0'][d['00']].mean(0), w=w, b=b)

def linear(w, b):
    m = nn.Linear(w.shape[1], w.shape[0])
    with torch.no_grad(): m.weight.copy_(w); m.bias.copy_(b)
    return m

def learner(xs, ys, parts, model, bs, lr, cbs=None):
    "A learner and its stream; validation takes the test items"
    dls = DataLoaders(*[TensorDL(dataset=TensorSet(x, y, vocab=range(10), split_idx=int(k>0)), bs=bs if k==0 else 500)
                        for k,(x,y) in enumerate(zip(xs, ys))], device='cpu')
    learn = Learner(dls, model, nn.CrossEntropyLoss(), SGD, lr, cbs=cbs)
    return learn,Stream(dls, parts, ordered=True)

def ours(f, d, cbs):
    put = lambda x: F.normalize(x-d['mean'])*SCALE
    x,t = put(f['x0']),put(f['x1'])
    parts = [[d[f'{k}{i}'] for i in range(N)] for k in (0,1,1)]
    learn,stream = learner((x,t,t), (f['y0'],f['y1'],f['y1']), parts, linear(d['w'], d['b']), BS, LR, cbs)
    with learn.no_bar(), learn.no_logging(): return np.asarray(learn.fit_stream(stream).matrix).tolist()

class Reservoir:
    "What replay needs, in plain PyTorch"
    def __init__(self, size, d): self.x,self.y,self.n = torch.empty(size, d),torch.empty(size, dtype=torch.long),0
    def draw(self, bs):
        i = torch.randperm(min(self.n, len(self.x)))[:bs]
        return self.x[i],self.y[i]
    def add(self, x, y):
        for i in range(len(x)):
            at = self.n if self.n<len(self.x) else int(torch.randint(self.n+1, ()))
            self.n += 1
            if at<len(self.x): self.x[at],self.y[at] = x[i],y[i]

def loop(model, opt, x, y, order, bs, buffer=None):
    "A pass in plain PyTorch"
    for at in order.split(bs):
        xb,yb,n = x[at],y[at],len(at)
        if buffer is not None and buffer.n:
            rx,ry = buffer.draw(bs)
            out = model(torch.cat([xb,rx]))
            loss = F.cross_entropy(out[:n], yb)+F.cross_entropy(out[n:], ry)
        else: loss = F.cross_entropy(model(xb), yb)
        opt.zero_grad()
        loss.backward()
        opt.step()
        if buffer is not None: buffer.add(xb, yb)

def bare(f, d, replay):
    put = lambda x: F.normalize(x-d['mean'])*SCALE
    x,t,model,rows = put(f['x0']),put(f['x1']),linear(d['w'], d['b']),[]
    opt,buffer = torch.optim.SGD(model.parameters(), LR),Reservoir(SIZE, x.shape[1]) if replay else None
    for i in range(N):
        loop(model, opt, x, f['y0'], d[f'0{i}'], BS, buffer)
        with torch.no_grad(): ok = (model(t).argmax(1)==f['y1']).float()
        rows.append([ok[d[f'1{j}']].mean().item() for j in range(N)])
    return rows

def late(cls, n=None):
    "A method of memo that stores after an experience, `n` of its items, as Avalanche's do"
    class Late(cls):
        def after_step(self): self.kept = []
        def after_experience(self):
            ds = self.dls.train.dataset
            at = torch.randperm(len(ds))[:n]
            self.state.write(ds.x[at], ds.y[at])
    return Late

by_batch,late_reservoir = 'replay, reservoir after each batch, sum of losses','replay, reservoir, sum of losses'
# row of the table -> (Avalanche's method, memo's callbacks, replay in the bare loop)
rows = {
    'Naive':('naive', lambda seed: [], False),
    'Replay, reservoir':(by_batch, lambda seed: [Replay(SIZE, BS, seed=seed)], True),
    'Replay, reservoir updated after an experience':
        (late_reservoir, lambda seed: [late(Replay)(SIZE, BS, seed=seed)], None),
    'Replay, as it comes':('replay', lambda seed: [Replay(SIZE, seed=seed)], None),
    'EWC':('ewc, per sample', lambda seed: [EWC(EWC_WEIGHT, 'empirical', samples=10**6)], None),
    'EWC, as it comes':('ewc', lambda seed: [EWC(EWC_WEIGHT)], None),
    'LwF':('lwf', lambda seed: [LwF(LWF_WEIGHT, T)], None),
    'A-GEM, stored after an experience':('agem', lambda seed: [late(AGEM, SIZE//N)(SIZE, SAMPLE, seed=seed)], None),
    'A-GEM, as it comes':('agem', lambda seed: [AGEM(SIZE, SAMPLE, seed=seed)], None)}

def accuracy(half, names, seeds, res, save):
    "Matrices of each set, row, side and seed; those that are there already stay"
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            its = res.setdefault(name, {row:{} for row in rows})
            done = len(its['A-GEM, as it comes'].get('memo', ()))
            if done<seeds:
                f = features(name)
                np.savez(f'{folder}/f.npz', **{k:v.numpy() for k,v in f.items()})
            for seed in range(done, seeds):
                d = draw(f, seed)
                np.savez(f'{folder}/d.npz', **{k:v.numpy() for k,v in d.items()})
                for row,sides in compare(half, f, d, folder, seed).items():
                    for k,v in sides.items(): its[row].setdefault(k, []).append(v)
                save()
                print(name, seed, flush=True)

def compare(half, f, d, folder, seed):
    "Matrices of both, and of the bare loop, by row"
    res = {}
    for row,(method,cbs,replay) in rows.items():
        job = dict(do='run', features=f'{folder}/f.npz', draw=f'{folder}/d.npz', method=method, bs=BS, lr=LR,
                   scale=SCALE, n=N, kw=theirs, seed=seed)
        sides = res[row] = {'Avalanche':half(**job)['matrix']}
        torch.manual_seed(seed)
        sides['memo'] = ours(f, d, cbs(seed))
        if replay is not None: sides['bare'] = bare(f, d, replay)
    return res

def accuracy_table(res):
    lines = ['| set | method | Avalanche: accuracy / forgetting | memo | bare loop '
             '| memo - Avalanche: accuracy, forgetting | furthest entry |', '|---|---|---|---|---|---|---|']
    figures = lambda ms: [[100*o(m) for m in ms] for o in (average_accuracy,forgetting)]
    show = lambda ms: ' / '.join(f'{np.mean(o):.1f} ± {np.std(o, ddof=1):.1f}' for o in figures(ms)) if ms else ''
    for name,its in res.items():
        for row,sides in its.items():
            a,m = sides['Avalanche'],sides['memo']
            gap = [paired(p, q) for p,q in zip(figures(m), figures(a))]
            gap = ', '.join(f'{o["mean"]:+.2f} [{o["low"]:+.2f}, {o["high"]:+.2f}]' for o in gap)
            far = f'{100*np.abs(np.array(a)-np.array(m)).max():.2f}'
            lines.append(f'| {name} | {row} | {show(a)} | {show(m)} | {show(sides.get("bare"))} | {gap} | {far} |')
    return '\n'.join(lines)

# ---- speed

class Clock(Callback):
    "CPU seconds of the last experience"
    def before_experience(self): self.start = time.process_time()
    def after_experience(self): self.cpu = time.process_time()-self.start

def memo_time(cbs, bs, steps, quiet, d=512):
    n,clock = steps*bs,Clock()
    x,y,few = torch.randn(2*n, d),torch.randint(10, (2*n,)),torch.arange(20)
    y[:10] = torch.arange(10)
    halves = [torch.arange(n),torch.arange(n)+n]
    learn,stream = learner((x,x[few],x[few]), (y,y[few],y[few]), [halves,*[[few,few]]*2], nn.Linear(d, 10), bs, .1,
                           [*cbs,clock])
    if quiet:
        with learn.no_bar(), learn.no_logging(): learn.fit_stream(stream)
    else:
        with contextlib.redirect_stdout(io.StringIO()): learn.fit_stream(stream)
    return clock.cpu

def bare_time(replay, bs, steps, d=512):
    n = steps*bs
    x,y,model = torch.randn(2*n, d),torch.randint(10, (2*n,)),nn.Linear(d, 10)
    opt,buffer = torch.optim.SGD(model.parameters(), .1),Reservoir(SIZE, d) if replay else None
    if replay: loop(model, opt, x, y, torch.randperm(n), bs, buffer)
    start = time.process_time()
    loop(model, opt, x, y, n+torch.randperm(n), bs, buffer)
    return time.process_time()-start

# row of the table -> (Avalanche's method, memo's callbacks, replay in the bare loop)
speeds = {
    'naive':('naive', lambda bs: [], False),
    'naive, each batch an experience for Avalanche':('naive, online', lambda bs: [], False),
    'replay, buffer of Avalanche updated after an experience':('replay', lambda bs: [Replay(SIZE, bs)], True),
    'replay, each batch an experience for Avalanche':(by_batch, lambda bs: [Replay(SIZE, bs)], True)}

def speed(half, rounds, steps):
    "CPU microseconds of a step of all in turn: lists by row, batch and side"
    res = {}
    for row,(method,cbs,replay) in speeds.items():
        for bs in (1,10):
            def theirs_time(quiet): return half(do='timed', method=method, bs=bs, lr=.1, kw=theirs, steps=steps, d=512,
                                                seed=0, quiet=quiet)['cpu']
            sides = {'bare':lambda: bare_time(replay, bs, steps), 'memo':lambda: memo_time(cbs(bs), bs, steps, True),
                     'Avalanche':lambda: theirs_time(True),
                     'memo as it comes':lambda: memo_time(cbs(bs), bs, steps, False),
                     'Avalanche as it comes':lambda: theirs_time(False)}
            its = res.setdefault(f'{row}, batch {bs}', {})
            for i in range(rounds+1):
                for k in [*sides][::1 if i%2 else -1]:
                    cpu = sides[k]()
                    if i: its.setdefault(k, []).append(1e6*cpu/steps)       # the first round is for warming up
            print(f'{row}, batch {bs}', {k:round(median(v)) for k,v in its.items()}, flush=True)
    return res

def speed_table(res):
    lines = ['| a step | bare, us | memo, us | Avalanche, us | memo / bare: speed | memo / Avalanche: speed '
             '| both as they come |', '|---|---|---|---|---|---|---|']
    def ratio(its, a, b):
        lo,mid,hi = quantiles([y/x for x,y in zip(its[a], its[b])], n=4, method='inclusive')
        return f'{mid:.2f} ({lo:.2f} to {hi:.2f})'
    for row,its in res.items():
        us = ' | '.join(f'{median(its[k]):.0f}' for k in ('bare','memo','Avalanche'))
        lines.append(f"| {row} | {us} | {ratio(its, 'memo', 'bare')} | {ratio(its, 'memo', 'Avalanche')} "
                     f"| {ratio(its, 'memo as it comes', 'Avalanche as it comes')} |")
    return '\n'.join(lines)

def write(path, part, text):
    "Put a part's table between its marks on the page"
    a,b = f'<!-- {part} -->',f'<!-- end of {part} -->'
    page = path.read_text() if path.exists() else f'# Side by side with Avalanche\n\n{a}\n{b}\n'
    if a not in page: page += f'\n{a}\n{b}\n'
    path.write_text(page[:page.index(a)]+f'{a}\n{text}\n'+page[page.index(b):])

if __name__=='__main__':
    p = argparse.ArgumentParser()
    p.add_argument('--avalanche', required=True, help='python of an environment with avalanche-lib')
    p.add_argument('--part', choices=['accuracy','speed'])
    p.add_argument('--quick', action='store_true')
    p.add_argument('--sets', nargs='+', choices=[*sets])
    p.add_argument('--seeds', type=int)
    args = p.parse_args()
    half,page = Half(args.avalanche),Path(__file__).with_suffix('.md')
    kept = page.with_suffix('.json')
    def read(): return json.loads(kept.read_text()) if kept.exists() and not args.quick else {}
    def save():
        if not args.quick: kept.write_text(json.dumps({**read(), part:res}))
    for part in [args.part] if args.part else ['accuracy','speed']:
        if part=='accuracy':
            seeds = args.seeds or (2 if args.quick else 10)
            res = read().get(part, {})
            accuracy(half, args.sets or (['digits'] if args.quick else [*sets]), seeds, res, save)
            text = accuracy_table(res)
        else:
            res = speed(half, 2 if args.quick else 5, 200 if args.quick else 1000)
            text = speed_table(res)
        print(text, flush=True)
        save()
        if not args.quick: write(page, part, text)
