"""What the density head costs beside a vote: an answer to a batch, and its memory where there are a million rows

    python benchmarks/density.py

One thread. In turn, ten times: the whitened vote of the 200 nearest rows and the densities of all, over the same bank
of 65,000 rows of width 512 and 100 classes, for batches of 1 and 64. Then densities alone over a million rows of
width 128: what the process takes beside the bank, for the first answer (which works out what belongs to each row) and
for others."""
import os, statistics, sys, time
os.environ |= dict(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
import torch
from memo.banks.slots import SlotBank
from memo.heads.density import DensityHead
from memo.heads.mixture import VoteHead

def memory(what):
    "Megabytes that the process takes: now, and at most since `reset`"
    with open('/proc/self/status') as f: return next(int(l.split()[1])/1024 for l in f if l.startswith(what))
def reset():
    with open('/proc/self/clear_refs', 'w') as f: f.write('5')

def filled(n, d, classes):
    g = torch.Generator().manual_seed(0)
    b,centres = SlotBank(n, policy='fifo', n_classes=classes),torch.randn(classes, d, generator=g)
    for i in range(0, n, 10_000):
        y = torch.randint(classes, (min(10_000, n-i),), generator=g)
        b.write(centres[y]+torch.randn(len(y), d, generator=g), y, item=torch.arange(len(y))+i+2**40)
    return b

def cpu(f):
    t = time.process_time()
    f()
    return 1000*(time.process_time()-t)

def main():
    torch.set_num_threads(1)
    bank = filled(65_000, 512, 100)
    heads = VoteHead(bank, k=200, whiten=True).eval(),DensityHead(bank).eval()
    print('| rows | batch | vote of 200, ms | densities, ms | ratio (quartiles) |\n|---|---|---|---|---|')
    with torch.no_grad():
        for n in (1, 64):
            z,o = torch.randn(n, 512),torch.randn(n, 100)
            for h in heads: h.mixed(o, z)
            ts = []
            for i in range(10):
                turn = 1 if i%2 else -1
                ts.append([cpu(lambda: h.mixed(o, z)) for h in heads[::turn]][::turn])
            q = statistics.quantiles([b/a for a,b in ts], n=4)
            a,b = (statistics.median(o) for o in zip(*ts))
            print(f'| 65,000 x 512 | {n} | {a:.0f} | {b:.0f} | {q[1]:.2f} ({q[0]:.2f} to {q[2]:.2f}) |', flush=True)
        del heads, bank
        h = DensityHead(filled(1_000_000, 128, 1000)).eval()
        z,o = torch.randn(64, 128),torch.randn(64, 1000)
        print('\nA million rows of width 128, 1,000 classes, a batch of 64:\n')
        for what in ('the first answer','another'):
            reset()
            was = memory('VmRSS')
            ms = cpu(lambda: h.mixed(o, z))
            print(f"* {what}: {ms:.0f} ms, {memory('VmHWM')-was:.0f} MB beside the bank's 488", flush=True)

if __name__=='__main__': sys.exit(main())
