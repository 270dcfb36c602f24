"""What a memory costs. One command, `python benchmarks/speed.py [read|write|step]`; every figure is ours against a
bare version in the same run, the
two in turn. CPU time is of all threads together; the ratio is the median over the pairs, with its quartiles. Writes
benchmarks/read.md, write.md, step.md."""
import os,sys,time,warnings
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')  # before torch: idle threads sleep instead of counting as CPU time
from pathlib import Path
from statistics import median,quantiles
import torch
from torch.nn import functional as F
warnings.filterwarnings('ignore')

def once(f, n):
    w,c = time.perf_counter(),time.process_time()
    for _ in range(n): f()
    return (time.perf_counter()-w)/n*1e3,(time.process_time()-c)/n*1e3

def pair(ours, bare, n=20, rounds=25):
    "Rows of milliseconds and ratios of two functions, run in turn"
    for f in (ours,bare): once(f, max(2, n//4))
    a,b = [],[]
    for i in range(rounds):
        if i%2: b.append(once(bare, n)); a.append(once(ours, n))
        else:   a.append(once(ours, n)); b.append(once(bare, n))
    ratios = [x[1]/y[1] for x,y in zip(a,b)]
    q = quantiles(ratios, n=4)
    return dict(ours_cpu=median(x[1] for x in a), bare_cpu=median(x[1] for x in b), ours_wall=median(x[0] for x in a),
                bare_wall=median(x[0] for x in b),
                ratio=median(ratios), low=q[0], high=q[2])

def read_bench():
    from memo.banks.slots import SlotBank
    rows = []
    for n,bs in ((512,64),(512,256),(65536,64),(65536,256)):
        torch.manual_seed(0)
        bank = SlotBank(n, policy='fifo', dim=1280)
        for x in torch.randn(n,1280).split(8192): bank.write(x)
        feats = bank.features.clone()
        keys = F.normalize(feats)           # the bare version keeps them too
        q0 = torch.randn(bs,1280)
        for back in (False,True):
            def bare():
                q = q0.clone().requires_grad_(back)
                s,i = (F.normalize(q)@keys.T).topk(3)
                v = (s.softmax(1)[:,:,None]*feats[i]).sum(1)
                if back: v.sum().backward()
            def ours():
                q = q0.clone().requires_grad_(back)
                v = bank.read(q, 3).value
                if back: v.sum().backward()
            rows.append((f"read top 3 of {n} x 1280, batch {bs}{', forward + backward' if back else ''}",
                         pair(ours, bare, *((20,25) if n==512 else (2,9)))))
    return rows

def write_bench():
    from memo.banks.slots import SlotBank
    from memo.banks.policies import policies
    rows = []
    torch.manual_seed(0)
    xs = [torch.randn(256,1280)*torch.rand(256,1) for _ in range(8)]
    y,logits = torch.randint(0,10,(256,)),torch.randn(256,10)
    for p in policies:
        bank,buf = SlotBank(512, policy=p, dim=1280, n_classes=10),torch.randn(512,1280)
        for x in xs: bank.write(x, y=y, logits=logits)
        slot,i = torch.randperm(512)[:256],[0,0]
        def ours():
            i[0] += 1
            bank.write(xs[i[0]%8], y=y, logits=logits)
        def bare():
            i[1] += 1
            x = xs[i[1]%8]
            x@buf.T
            buf.index_copy_(0, slot, x)
        rows.append((f"write 256 x 1280 into 512 slots, {p}", pair(ours, bare)))
    return rows

def step(callback, rounds=15):
    """Four training steps of resnet18 at 64 px, batch 64, with a callback and without; milliseconds a step, and
    the learner with it"""
    import timm
    from fastai.vision.all import Learner,DataLoaders,CrossEntropyLossFlat,OptimWrapper,partial
    from memo.data.tensors import TensorDL
    x,y = torch.randn(64*4,3,64,64),torch.randint(0,10,(64*4,))
    def learner(cbs=None):
        torch.manual_seed(0)
        dls = DataLoaders(TensorDL(x, y, bs=64, shuffle=True),TensorDL(x[:1], y[:1], vocab=range(10)))
        return Learner(dls, timm.create_model('resnet18', num_classes=10), loss_func=CrossEntropyLossFlat(),
                       opt_func=partial(OptimWrapper, opt=torch.optim.AdamW), cbs=cbs)
    with_,without = learner(callback),learner()
    def fit(l):
        with l.no_bar(),l.no_logging(): l.fit(1, 1e-4)
    r = pair(lambda: fit(with_), lambda: fit(without), 1, rounds)
    return {k:v/4 if 'cpu' in k or 'wall' in k else v for k,v in r.items()},with_

def step_bench():
    from memo.banks.slots import SlotBank
    from memo.training.memory_callback import MemoryCallback
    kinds = {'rarity, z + sum w m':('rarity',{}), 'fifo, z + sum w m':('fifo',{}),
             'fifo, vote':('fifo',dict(head='vote'))}
    return [(f"training step, resnet18, 64 px, batch 64: {name}",
             step(MemoryCallback(SlotBank(512, policy=p), **kw))[0]) for name,(p,kw) in kinds.items()]

def table(rows):
    out = ['| | memo, CPU ms | bare, CPU ms | memo, wall ms | bare, wall ms | CPU ratio (quartiles) |',
           '|---|---|---|---|---|---|']
    for n,r in rows:
        out.append(f"| {n} | {r['ours_cpu']:.2f} | {r['bare_cpu']:.2f} | {r['ours_wall']:.2f} | {r['bare_wall']:.2f} | "
                   f"{r['ratio']:.2f} ({r['low']:.2f}-{r['high']:.2f}) |")
    return '\n'.join(out)

if __name__=='__main__':
    for o in sys.argv[1:] or ['read','write','step']:
        t = table(dict(read=read_bench, write=write_bench, step=step_bench)[o]())
        print(t, flush=True)
        head = f"`python benchmarks/speed.py {o}`, torch {torch.__version__}, {torch.get_num_threads()} threads\n\n"
        Path(__file__).with_name(f'{o}.md').write_text(head+t+'\n')
