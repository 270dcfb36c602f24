"""What a step of a MemoryLinear costs, in time and memory, against nn.Linear in the same run

python benchmarks/memory_linear.py [--quick]     writes benchmarks/memory_linear.md

A step is zero_grad, forward, cross entropy, backward and SGD; 100 units, delta 2, shared keys, cosine, keys that move
and scrambling. Medians (quartiles) of CPU time (`time.process_time`) of rounds in turns, on one thread. Memory is
measured in a process of its own for each row: how far it grew at most above what it had with the layer built and the
input there."""
import argparse, os, subprocess, sys, time
from pathlib import Path
from statistics import quantiles
import torch
from torch.nn import functional as F
from memo.layers.memory_linear import MemoryLinear
from memo.training.row_sgd import row_sgd

def sgd(ps, lr): return torch.optim.SGD(ps, lr)
kinds = {'MemoryLinear':(MemoryLinear,sgd), 'MemoryLinear, row_sgd':(MemoryLinear,row_sgd),
         'MemoryLinear, keys of each output':(lambda n, o: MemoryLinear(n, o, shared_keys=False),sgd),
         'nn.Linear':(torch.nn.Linear,sgd)}

def stepper(kind, n, o, b):
    "A function that makes a step"
    torch.manual_seed(0)
    make,opt = kinds[kind]
    layer = make(n, o)
    opt = opt(list(layer.parameters()), .01)
    xs = [(torch.randn(b, n),torch.randint(o, (b,))) for _ in range(8)]
    def step(i):
        x,y = xs[i%len(xs)]
        opt.zero_grad()
        F.cross_entropy(layer(x), y).backward()
        opt.step()
    return step

def timed(steps, rounds):
    "CPU ms of each of some steps, taken in turns: quartiles"
    for s in steps.values():
        for i in range(3): s(i)
    ms = {k:[] for k in steps}
    for i in range(rounds):
        for k,s in steps.items():
            t = time.process_time()
            s(i)
            ms[k].append(1e3*(time.process_time()-t))
    return {k:quantiles(v, n=4, method='inclusive') for k,v in ms.items()}

def now():
    "MB of this process"
    return int(Path('/proc/self/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')/2**20

def peak(kind, n, o, b):
    "MB that some steps take above the layer; for a process of its own"
    torch.set_num_threads(1)
    lin = torch.nn.Linear(4, 4)      # what torch loads at the first step is not the layer's
    F.cross_entropy(lin(torch.randn(3, 4)), torch.arange(3)).backward()
    step = stepper(kind, n, o, b)
    Path('/proc/self/clear_refs').write_text('5')       # the largest size so far is forgotten
    was = now()
    for i in range(5): step(i)
    most = next(int(l.split()[1]) for l in Path('/proc/self/status').read_text().splitlines() if l.startswith('VmHWM'))
    return most/1024-was

def measured_peak(*args):
    r = subprocess.run([sys.executable, __file__, '--peak', *map(str, args)], capture_output=True, text=True)
    return r.stdout.strip() or 'not measured'

def table(quick):
    torch.set_num_threads(1)
    yield '| in->out, batch | what | ms | x nn.Linear | peak MB |\n|---|---|---|---|---|'
    for n,o in ((768,10),(768,100)):
        for b,rounds in {1:60,32:30,256:15}.items():
            ms = timed({k:stepper(k, n, o, b) for k in kinds}, rounds//3 if quick else rounds)
            for k,(lo,v,hi) in ms.items():
                mb = '' if quick else measured_peak(k, n, o, b)
                yield f"| {n}->{o}, {b} | {k} | {v:.2f} ({lo:.2f} to {hi:.2f}) | {v/ms['nn.Linear'][1]:.0f} | {mb} |"

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--quick', action='store_true', help='fewer rounds, no memory; writes nothing')
    p.add_argument('--peak', nargs=4, help=argparse.SUPPRESS)
    o = p.parse_args()
    if o.peak: print(f'{peak(o.peak[0], *map(int, o.peak[1:])):.0f}')
    else:
        lines = []
        for line in table(o.quick):
            print(line, flush=True)
            lines.append(line)
        text = __doc__.split('\n\n')[-1].replace('\n', ' ')
        if not o.quick:
            Path(__file__).with_suffix('.md').write_text(f"# What a step of a MemoryLinear costs\n\n{text}\n\n"
                                                         +'\n'.join(lines)+'\n')
