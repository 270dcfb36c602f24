"""What ids and marks add to a training step beside a small batch: microseconds of CPU, the paired median with
quartiles.
The same fit of a small network without a memory, with `BatchIds` (ids out of the loader, marks of every batch) and
without,
in turn; then with a memory that watches. `python benchmarks/ids.py OLD` also runs the fit with that memory in the
checkout OLD,
a process for each, in turn: what the memory as a whole costs before and after."""
import os,subprocess,sys,time
for k in ('OMP_NUM_THREADS','MKL_NUM_THREADS'): os.environ.setdefault(k, '1')
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
from pathlib import Path
from statistics import median,quantiles

STEPS,BS = 64,32

def learner(cbs):
    import torch
    from fastai.vision.all import CrossEntropyLossFlat,DataLoaders,Learner,nn
    from memo.all import TensorDL,adamw      # where an older checkout has them, too
    torch.manual_seed(0)
    x,y = torch.randn(STEPS*BS, 64),torch.randint(0, 10, (STEPS*BS,))
    dls = DataLoaders(TensorDL(x, y, bs=BS, shuffle=True), TensorDL(x[:BS], y[:BS], vocab=range(10)), device='cpu')
    net = nn.Sequential(nn.Linear(64,32), nn.ReLU(), nn.Linear(32,10))
    return Learner(dls, net, loss_func=CrossEntropyLossFlat(), opt_func=adamw, cbs=cbs)

def watching():
    from memo.all import MemoryCallback,SlotBank
    return MemoryCallback(SlotBank(256, policy='fifo'), head=None)

def once(learn):
    "Microseconds of CPU a training step"
    with learn.no_bar(), learn.no_logging():
        t = time.process_time()
        learn.fit(1, 1e-4)
        return (time.process_time()-t)/STEPS*1e6

def spread(diffs):
    a,_,b = quantiles(diffs, n=4)
    return f'{median(diffs):+.0f} [{a:+.0f}, {b:+.0f}]'

def in_turn(f, g, rounds):
    "Pairs of what two functions give, the first of each pair in turn"
    res = []
    for i in range(rounds):
        if i%2: b,a = g(),f()
        else: a,b = f(),g()
        res.append((a,b))
    return res

def steps():
    "One fit in this process's version, for a comparison of two checkouts"
    learn = learner(watching())
    for _ in range(3): once(learn)
    return min(once(learn) for _ in range(5))

if __name__=='__main__':
    if sys.argv[1:2]==['--steps']: print(steps())
    else:
        here = Path(__file__).parents[1]
        from memo.training.batch_ids import BatchIds
        bare = learner(None)
        for what,cb in (('ids and marks',BatchIds()), ('a memory that watches, ids and marks included',watching())):
            with_ = learner(cb)
            for l in (with_,bare): once(l); once(l)
            got = in_turn(lambda: once(with_), lambda: once(bare), 41)
            print(f'{what}: a step, batch of {BS}, {STEPS} steps a fit: {median(b for _,b in got):.0f} us of CPU bare, '
                  f'{median(a for a,_ in got):.0f} with; {spread([a-b for a,b in got])} more', flush=True)
        if len(sys.argv)>1:
            def run(folder):
                r = subprocess.run([sys.executable, '-W', 'ignore', __file__, '--steps'], capture_output=True,
                                   text=True,
                                   env={**os.environ, 'PYTHONPATH':str(folder)}, check=True)
                return float(r.stdout.split()[-1])
            got = in_turn(lambda: run(here), lambda: run(sys.argv[1]), 7)
            print(f'with a memory that watches, {sys.argv[1]} and here, a process each: '
                  f'{median(b for _,b in got):.0f} and '
                  f'{median(a for a,_ in got):.0f} us; {spread([a-b for a,b in got])} more')
