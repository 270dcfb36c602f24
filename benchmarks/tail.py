"""What a ClassBank costs. `python benchmarks/tail.py [write|classify|step|save]`; ours and the bare version in turn
in one run, as in speed.py. Writes benchmarks/tail.md.

write: 256 rows of a Zipf-distributed stream into 1,000 classes x 256 rows x 2,048, full, against loops over the rows
that give the same bank: the bank's own write row by row, a plain loop, and
the plain loop that also sorts the classes into tail and head after each row, as published. classify: tail, medium and
head of 8,142 classes. step: a watched training step. save: the same bank to disk."""
import sys,tempfile,time
from pathlib import Path
from speed import once,pair,step,table
import numpy as np, torch
from torch.nn import functional as F
from memo.banks.exchange import BankSaver
from memo.banks.classes import ClassBank
from memo.banks.policies import hashed

C,D,K,B = 1000,2048,256,256
zipf = torch.arange(1, C+1).float().reciprocal()
def stream(n, g): return torch.randn(n, D, generator=g),torch.multinomial(zipf, n, replacement=True, generator=g)

class Loop:
    "A ClassBank as one would write it first: row by row"
    def __init__(self, bank, classify=False):
        self.ema,self.mass,self.counts = bank.ema.clone(),bank.mass.clone(),bank.counts.tolist()
        self.rows,self.total,self.classify = bank.features.clone(),int(bank.seen),classify
    def write(self, x, y):
        for f,c in zip(x, y.tolist()):
            f = f/f.norm()
            self.counts[c] += 1; self.total += 1
            n = self.counts[c]
            a = min(max(.1/(C*n/self.total), .01), .5)
            self.ema[c].mul_(1-a).add_(f, alpha=a)
            self.mass[c] = self.mass[c]*(1-a)+a
            slot = n-1 if n<=K else int(hashed(torch.tensor(0), torch.tensor((c<<40)+n)))%n
            if slot<K: self.rows[c,slot] = f
            if self.classify:
                p = 100*np.array(self.counts)/self.total
                lo,hi = np.percentile(p, 20),np.percentile(p, 80)
                self.tail,self.head = set(np.where(p<=lo)[0]),set(np.where(p>=hi)[0])

def full():
    "A bank whose reservoirs are full"
    bank,g = ClassBank(C, K, D),torch.Generator().manual_seed(0)
    for _ in range(K): bank.write(torch.randn(C, D, generator=g), torch.arange(C))
    return bank

def write_bench():
    g,rows = torch.Generator().manual_seed(1),[]
    ours,loop,sorting,single = full(),None,None,full()
    loop,sorting = Loop(ours),Loop(ours, True)
    batches = [stream(B, g) for _ in range(30)]
    for i,(x,y) in enumerate(batches[:6]):            # the same result, before anything is timed
        ours.write(x, y); loop.write(x, y)
    p = (ours.ema/ours.mass[:,None]-loop.ema/loop.mass[:,None]).abs().max().item()
    r = (ours.features-loop.rows).abs().max().item()
    print(f'largest difference to the loop after {6*B} rows: prototypes {p:.1e}, reservoirs {r:.1e}')
    it = [0]
    def batch():
        it[0] += 1
        return batches[it[0]%30]
    def one():
        x,y = batch()
        for i in range(B): single.write(x[i:i+1], y[i:i+1])
    for name,f in (('the plain loop, which sorts the classes after each row',lambda: sorting.write(*batch())),
                   ('the plain loop',lambda: loop.write(*batch())), ('its own write, row by row',one)):
        r = pair(lambda: ours.write(*batch()), f, 1, 15)
        rows.append((f'write 256 x 2048 to 1000 classes x 256, full; bare: {name} (x {1/r["ratio"]:.0f})', r))
    return rows

def classify_bench():
    bank = ClassBank(8142, 1)
    bank.counts.copy_((1000*torch.arange(1, 8143).float()**-.6).long().clamp(min=2)[torch.randperm(8142)])
    def sort():
        s = bank.counts.sort().values
        return s[len(s)//5],s[-len(s)//5]
    return [(f'{k} of 8,142 classes; bare: sorting the counts', pair(f, sort, 50, 25))
            for k,f in (('tail',bank.tail), ('tail, medium and head',bank.distribution))]

def step_bench():
    from memo.training.memory_callback import MemoryCallback
    r,learn = step(MemoryCallback(ClassBank(10, 256)), 25)
    bank,f = learn.memory.bank,torch.randn(64, 512)
    own = once(lambda: bank.write(f, torch.randint(0, 10, (64,))), 200)[1]
    return [(f'training step, resnet18, 64 px, batch 64, watched (the write by itself: {own:.2f} ms)', r)]

def save_bench():
    bank = full()
    with tempfile.TemporaryDirectory() as d:
        s = BankSaver(bank, d)
        w = time.perf_counter(); bank.save(f'{d}/a.safetensors'); whole = time.perf_counter()-w
        w = time.perf_counter(); s.save(1); held = time.perf_counter()-w
        s.wait()
        done,n = time.perf_counter()-w,Path(f'{d}/a.safetensors').stat().st_size
    print(f'A bank of {n/2**30:.2f} GiB: saved in {whole:.1f} s; with BankSaver training waits {held:.2f} s for the '
          f'copy, the file is there after {done:.1f} s.')
    return []

if __name__=='__main__':
    rows = [r for o in sys.argv[1:] or ['write','classify','step','save']
            for r in dict(write=write_bench, classify=classify_bench, step=step_bench, save=save_bench)[o]()]
    print(table(rows), flush=True)
    if len(sys.argv)==1:
        Path(__file__).with_name('tail.md').write_text(f"`python benchmarks/tail.py`, torch {torch.__version__}, "
                                                       f"{torch.get_num_threads()} threads\n\n{table(rows)}\n")
