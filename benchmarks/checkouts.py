"""Is a training step, or a validation pass, slower in one checkout of memo than in another? One command,

    python benchmarks/checkouts.py --old OLD --new NEW

with the paths of two checkouts: a process for each, which train the same learners in turn, one fit at a time; three
such pairs of processes, as the same code is a few per cent faster in one process than in another. For each network and
each memory: milliseconds of a training step, of the validation at the end of an epoch (with what a memory fits on it)
and of `learn.validate()`, in CPU time; and the ratio new : old, the median over the pairs with its quartiles. A median
above 1 whose lower quartile is above 1 too is slower. `--old NEW --new NEW` shows the noise. About six minutes on a
machine that does nothing else."""
import argparse,gc,json,os,subprocess,sys,time,warnings
for k in ('OMP_NUM_THREADS','MKL_NUM_THREADS'): os.environ.setdefault(k, '1')
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
from pathlib import Path
from statistics import median,quantiles
from ids import in_turn,spread

nets = dict(small=(16,32,24), resnet18=(32,16,6))       # pixels, batch size, training steps of a fit
memories = ['none','watch','add','vote','replay']
parts = ['training step','validation in a fit','learn.validate()']
VALID = 256     # images

# in the process of one checkout

def model(net):
    import timm
    from memo.all import small_cnn
    return small_cnn(1, 10) if net=='small' else timm.create_model(net, in_chans=1, num_classes=10)

def callback(kind):
    from memo.all import ClassBank,MemoryCallback,SlotBank
    if kind=='none': return []
    if kind=='replay': return [MemoryCallback(ClassBank(10, capacity=64), head='replay')]
    return [MemoryCallback(SlotBank(512, policy='fifo'), head=None if kind=='watch' else kind)]

def clocks(): return time.process_time(),time.perf_counter()

def times():
    "Two callbacks that note when training and validation of an epoch begin and end: the first of all, and the last"
    from fastai.vision.all import Callback
    class First(Callback):
        order = -10**7
        def before_train(self): self.learn.begun = clocks()
    class Last(Callback):
        order = 10**7
        def after_train(self): self.learn.trained = clocks()
        def after_epoch(self): self.learn.validated = clocks()
    return [First(),Last()]

def learner(net, kind):
    import torch
    from fastai.vision.all import CrossEntropyLossFlat,DataLoaders,Learner,accuracy
    from memo.all import TensorDL,adamw
    px,bs,n = nets[net]
    torch.manual_seed(0)
    x,y = torch.randn(n*bs+VALID, 1, px, px),torch.randint(0, 10, (n*bs+VALID,))
    if kind=='replay': y[:n*bs] = (torch.rand(n*bs)**4*10).long()       # rare classes are replayed
    dls = DataLoaders(TensorDL(x[:n*bs], y[:n*bs], bs=bs, shuffle=True, vocab=range(10)),
                      TensorDL(x[n*bs:], y[n*bs:], bs=bs, vocab=range(10)), device='cpu')
    return Learner(dls, model(net), loss_func=CrossEntropyLossFlat(), opt_func=adamw, metrics=accuracy,
                   cbs=[*callback(kind),*times()])

def once(learn, n):
    "Milliseconds of CPU and by the clock of each part"
    gc.collect()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-4)
        fit = learn.begun,learn.trained,learn.validated
        a = clocks()
        learn.validate()
        spans = [(*fit[:2],n), (*fit[1:],1), (a,clocks(),1)]
    return [[(e-s)/k*1e3 for s,e in zip(start, end)] for start,end,k in spans]

def work(checkout):
    "Answer each line `network memory` with the times of one fit"
    sys.path.insert(0, checkout)
    warnings.filterwarnings('ignore')
    import memo
    if Path(checkout).resolve() not in Path(memo.__file__).resolve().parents:
        sys.exit(f'{checkout}: memo came from {memo.__file__}')
    made,out = {},os.fdopen(os.dup(1), 'w')
    sys.stdout = sys.stderr
    for line in sys.stdin:
        net,kind = line.split()
        if (net,kind) not in made:
            made.clear()
            made[net,kind] = learner(net, kind)
            for _ in range(2): once(made[net,kind], 1)
        print(json.dumps(once(made[net,kind], nets[net][2])), file=out, flush=True)

# in the process that compares them

class Checkout:
    "A process that measures one checkout"
    def __init__(self, path):
        self.path = path
        self.p = subprocess.Popen([sys.executable, '-W', 'ignore', __file__, '--work', str(path)], text=True,
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    def times(self, net, kind):
        print(net, kind, file=self.p.stdin, flush=True)
        if not (line := self.p.stdout.readline()): sys.exit(f'{self.path}: its process has ended')
        return json.loads(line)

def ratio(pairs):
    a,b,c = quantiles([n/o for o,n in pairs], n=4)
    return f'{b:.3f} [{a:.3f}, {c:.3f}]'

def row(net, kind, part, pairs):
    "A line of the table; `pairs` are (CPU, clock) of old and of new"
    cpu,wall = ([(o[i],n[i]) for o,n in pairs] for i in (0,1))
    o,n = (f'{median(p[i] for p in cpu):.2f}' for i in (0,1))
    us = spread([1e3*(n-o) for o,n in cpu])
    return f'| {net} | {kind} | {part} | {o} | {n} | {ratio(cpu)} | {us} | {ratio(wall)} |'

def measure(old, new, rounds, cases):
    "Pairs of times by case, from two processes that live as long"
    a,b,res = Checkout(old),Checkout(new),{}
    for case in cases:
        for c in (a,b): c.times(*case)      # made, and warm
        res[case] = in_turn(lambda: a.times(*case), lambda: b.times(*case), rounds)
        print('.', end='', file=sys.stderr, flush=True)
    for c in (a,b):
        c.p.stdin.close()
        c.p.wait()
    return res

def compare(old, new, rounds, processes, cases):
    got = [measure(old, new, -(-rounds//processes), cases) for _ in range(processes)]
    print(f'\n{sum(len(o[cases[0]]) for o in got)} pairs in {processes} pairs of processes; old: {old}, new: {new}\n\n'
          '| network | memory | what | old, CPU ms | new, CPU ms | CPU ratio [quartiles] | CPU us more | wall ratio |\n'
          '|---|---|---|---|---|---|---|---|')
    for case in cases:
        pairs = [p for o in got for p in o[case]]
        for i,part in enumerate(parts): print(row(*case, part, [(o[i],n[i]) for o,n in pairs]))

if __name__=='__main__':
    if sys.argv[1:2]==['--work']: work(sys.argv[2])
    else:
        p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
        p.add_argument('--old', required=True, help='a checkout of memo')
        p.add_argument('--new', required=True, help='another')
        p.add_argument('--rounds', type=int, default=24, help='pairs of fits')
        p.add_argument('--processes', type=int, default=3, help='pairs of processes that share them')
        p.add_argument('--nets', nargs='+', choices=nets, default=[*nets])
        p.add_argument('--memories', nargs='+', choices=memories, default=memories)
        o = p.parse_args()
        compare(o.old, o.new, o.rounds, o.processes, [(n,m) for n in o.nets for m in o.memories])
