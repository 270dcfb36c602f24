"""Online training on cached features: steps a second of a bare PyTorch loop, fastai's own loop and `fit_stream`

    python benchmarks/online_loop.py [--quick] [--out benchmarks/online_loop.md]

512-wide features, a linear layer, SGD, batches of 1 and 10; CPU time of one thread, medians of alternating runs. The
bare loop draws an order, slices, and does forward, loss, backward, step, and nothing else. The others have fastai's
usual callbacks (progress bar, recorder), and `fit_stream` counts predictions before training besides."""
import argparse, os, statistics, sys, time, warnings
os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.filterwarnings('ignore')
import torch, torch.nn.functional as F
from fastai.vision.all import DataLoaders, Learner, SGD, OptimWrapper, nn, partial, set_seed
from memo.all import Stream, TensorDL
import memo.continual.stream_fit
from memo.continual.replay import Replay

def loaders(x, y, bs):
    "All items are for training; a few are measured, which is not what is timed here"
    few = TensorDL(x[:20], y[:20], bs=64, vocab=range(10))
    return DataLoaders(TensorDL(x, y, bs=bs, shuffle=True, vocab=range(10)), few, device='cpu')

def bare(x, y, bs):
    model = nn.Linear(x.shape[1], 10)
    opt = torch.optim.SGD(model.parameters(), lr=.01)
    t = time.process_time()
    for at in torch.randperm(len(x)).split(bs):
        loss = F.cross_entropy(model(x[at]), y[at])
        opt.zero_grad()
        loss.backward()
        opt.step()
    return time.process_time()-t

def learner(x, y, bs, opt=SGD): return Learner(loaders(x, y, bs), nn.Linear(x.shape[1], 10), opt_func=opt, lr=.01)

def fastai(x, y, bs):
    learn = learner(x, y, bs)
    t = time.process_time()
    learn.fit(1)
    return time.process_time()-t

def streamed(x, y, bs, opt=SGD, cbs=None):
    learn = learner(x, y, bs, opt)
    n = torch.arange(len(x)).tensor_split(5)
    stream = Stream(learn.dls, [list(n), [torch.arange(20)[i::5] for i in range(5)]])
    t = time.process_time()
    learn.fit_stream(stream, cbs=cbs)
    return time.process_time()-t

def torch_sgd(*args): return streamed(*args, opt=partial(OptimWrapper, opt=torch.optim.SGD))

def bare_replay(x, y, bs, size=200):
    "A reservoir of rows, of which as many as the batch has are trained on beside it"
    model = nn.Linear(x.shape[1], 10)
    opt = torch.optim.SGD(model.parameters(), lr=.01)
    bx,by,seen = torch.zeros(size, x.shape[1]),torch.zeros(size).long(),0
    t = time.process_time()
    for at in torch.randperm(len(x)).split(bs):
        xb,yb = x[at],y[at]
        loss = F.cross_entropy(model(xb), yb)
        if seen:
            i = torch.randperm(min(seen, size))[:bs]
            loss = loss+F.cross_entropy(model(bx[i]), by[i])
        opt.zero_grad()
        loss.backward()
        opt.step()
        for k in range(len(xb)):
            j = seen if seen<size else int(torch.randint(seen+1, (1,)))
            if j<size: bx[j],by[j] = xb[k],yb[k]
            seen += 1
    return time.process_time()-t

def replayed(*args): return streamed(*args, cbs=Replay(200))

ways = {'bare PyTorch loop':bare, "fastai's loop":fastai, '`fit_stream`':streamed,
        "`fit_stream`, torch's SGD":torch_sgd, 'bare loop with a reservoir':bare_replay,
        '`fit_stream` with `Replay(200)`':replayed}

def measure(bs, steps, runs):
    "Seconds of each way, of each run"
    x,y = torch.randn(bs*steps, 512),torch.randint(0, 10, (bs*steps,))
    took = {k:[] for k in ways}
    for i in range(runs+1):
        for k,f in ways.items():
            set_seed(i)
            sys.stdout,out = open(os.devnull, 'w'),sys.stdout      # the progress bar is drawn, and seen by nobody
            try: t = f(x, y, bs)
            finally: sys.stdout = out
            if i: took[k].append(t)             # the first run warms up
    return took

def spread(vs, fmt): return f'{statistics.median(vs):{fmt}} ({min(vs):{fmt}} to {max(vs):{fmt}})'

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--quick', action='store_true', help='fewer steps and runs')
    p.add_argument('--out', help='write the table there too')
    args = p.parse_args()
    torch.set_num_threads(1)
    steps,runs = (1000,3) if args.quick else (4000,5)
    lines = ['| batch | loop | µs a step | items a second | of the bare loop |', '|---|---|---|---|---|']
    for bs in (1,10):
        got = measure(bs, steps, runs)
        for k,ts in got.items():
            base = got['bare loop with a reservoir' if 'eplay' in k or 'reservoir' in k else 'bare PyTorch loop']
            us,of = [1e6*t/steps for t in ts],[b/t for b,t in zip(base, ts)]
            items = 1e6*bs/statistics.median(us)
            lines.append(f"| {bs} | {k} | {spread(us, '.0f')} | {items:,.0f} | {spread(of, '.2f')} |")
    print('\n'.join(lines))
    if args.out:
        head = __doc__.splitlines()[0]
        how = 'python benchmarks/online_loop.py --out benchmarks/online_loop.md'
        what = (f'{runs} runs of {steps:,} steps, the loops in turn in each; CPU time of one thread. Medians (lowest to '
                'highest); "of the bare loop" is its time over theirs in the same run, with replay that of the bare '
                'loop with a reservoir.')
        text = f'# Online training\n\n{head}.\nMade by `{how}`.\n\n{what}\n\n'
        with open(args.out, 'w') as f: f.write(text+'\n'.join(lines)+'\n')

if __name__=='__main__': main()
