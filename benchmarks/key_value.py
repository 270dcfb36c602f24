"""What a key-value bank costs. One command,

    python benchmarks/key_value.py [--quick]

10,000 rows of 512 numbers, 10 classes, batches of 128 and of 1: `classify` (class and cosine of the nearest row) and
`read(k=1)` against a bare matmul and maximum over the same rows; `write` into a full bank, where all of a batch is new
and where none is, against a loop over its samples; the memory contrastive loss, forward and backward, against the
published form and two logsumexp. CPU time of all threads, in turn; medians, and the median of the ratios with its
quartiles. Writes key_value.md. Four minutes, `--quick` one, which writes nothing."""
import argparse,os,time
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
from statistics import median,quantiles
import torch
from torch.nn import functional as F
from memo.banks.key_value import CachedBank,TrainableBank

def in_turn(ours, bare, rounds):
    "CPU milliseconds of both, and quartiles of the ratio"
    a,b = [],[]
    for i in range(rounds+2):
        for t,f in ((a,ours),(b,bare))[::1 if i%2 else -1]:
            start = time.process_time()
            f()
            t.append(1e3*(time.process_time()-start))
    a,b = a[2:],b[2:]       # the first are for warming up
    return median(a),median(b),quantiles([x/y for x,y in zip(a, b)], n=4)

def data(n, d, classes, seed, spread=2.):
    "Clusters, two for each class"
    g = torch.Generator().manual_seed(seed)
    c = torch.randn(2*classes, d, generator=torch.Generator().manual_seed(0))
    y = torch.randint(0, classes, (n,), generator=g)
    return c[2*y+torch.randint(0, 2, (n,), generator=g)]+spread*torch.randn(n, d, generator=g),y

def filled(kind, m, d, classes, threshold):
    b = kind(m, n_classes=classes, similarity_threshold=threshold)
    b.write(*data(m, d, classes, 1))
    return b

def reads(kind, m, d, classes, rounds):
    b = filled(kind, m, d, classes, .8)
    k = b.features.detach()
    for n,r in ((1,20*rounds),(128,rounds)):
        q = data(n, d, classes, 2)[0]
        with torch.no_grad():
            yield f'classify, batch {n}',*in_turn(lambda: b.classify(q), lambda: (q@k.T).max(1), r)
            yield f'read(k=1), batch {n}',*in_turn(lambda: b.read(q, 1), lambda: (q@k.T).max(1), r)

class Loop:
    "The published update of a full cached memory, a sample at a time; rows of unit length, as it could have had them"
    def __init__(self, b): self.k,self.y,self.tau = b.features.detach().clone(),b.labels.clone(),b.similarity_threshold
    def write(self, x, y):
        for u,c in zip(F.normalize(x), y):
            s = self.k@u
            if s.max()>=self.tau: continue
            mine = (self.y==c).nonzero().squeeze(1)
            j = mine[s[mine].argmin()] if len(mine) else s.argmin()
            self.k[j],self.y[j] = u,c

class LeastSure:
    "The same of a trainable memory"
    def __init__(self, b):
        self.k,self.v,self.tau = b.features.detach().clone(),b.scores.detach().softmax(1),b.similarity_threshold
    def write(self, x, y):
        for u,c in zip(F.normalize(x), y):
            if (self.k@u).max()>=self.tau: continue
            j = self.v.amax(1).argmin()
            self.k[j],self.v[j] = u,F.one_hot(c, self.v.shape[1]).float()

def writes(kind, m, d, classes, rounds):
    for what,threshold in (('all new',1.),('none new',-1.)):
        b = filled(kind, m, d, classes, threshold)
        loop = (Loop if kind is CachedBank else LeastSure)(b)
        batches = [data(128, d, classes, 9+i) for i in range(rounds+2)]
        a,z = iter(batches),iter(batches)
        yield (f'write of 128, {what}',
               *in_turn(lambda: b.write(*next(a)), lambda: loop.write(*next(z)), rounds))

def seeds_loss(b, x, y):
    "As published: sums of the own class and of all; of a trainable memory the first slot of a class is the target"
    k = b.features
    s = F.normalize(x)@F.normalize(k).T/.1
    if b.learned:
        first = (b.scores.argmax(1)[None]==y[:,None]).float().argmax(1)
        return F.cross_entropy(s, first)
    e = s.exp()
    return -((e*(b.labels[None]==y[:,None])).sum(1)/e.sum(1)).log().mean()

def two_lse(b, x, y):
    s = F.normalize(x)@F.normalize(b.features).T/.1
    own = b.scores.log_softmax(1)[:,y].T if b.learned else torch.where(b.labels[None]==y[:,None], 0., -torch.inf)
    return (s.logsumexp(1)-(s+own).logsumexp(1)).mean()

def losses(kind, m, d, classes, rounds):
    b = filled(kind, m, d, classes, .8)
    x,y = data(128, d, classes, 2)
    x.requires_grad_()
    def step(f):
        def run():
            x.grad = None
            for p in b.parameters(): p.grad = None
            f().backward()
        return run
    for name,f in (("the published form",seeds_loss), ('two logsumexp',two_lse)):
        yield (f'loss of 128, against {name}',
               *in_turn(step(lambda: b.contrastive(x, y)), step(lambda: f(b, x, y)), rounds))

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--rows', type=int, default=10_000)
    p.add_argument('--dim', type=int, default=512)
    p.add_argument('--classes', type=int, default=10)
    p.add_argument('--rounds', type=int, default=60)
    p.add_argument('--quick', action='store_true', help='fewer rounds')
    a = p.parse_args()
    rounds = 10 if a.quick else a.rounds
    page = []
    def say(line):
        page.append(line)
        print(line, flush=True)
    say(f'`python benchmarks/key_value.py`, {a.rows} x {a.dim}, {a.classes} classes, {torch.get_num_threads()} '
        f'threads, torch {torch.__version__}\n')
    say('| bank | what | ours, CPU ms | theirs, CPU ms | ratio (quartiles) |\n|---|---|---|---|---|')
    for kind in (CachedBank,TrainableBank):
        for part in (reads,writes,losses):
            for what,ours,theirs,(lo,mid,hi) in part(kind, a.rows, a.dim, a.classes, rounds):
                say(f'| {kind.__name__} | {what} | {ours:.2f} | {theirs:.2f} | {mid:.3f} ({lo:.3f}-{hi:.3f}) |')
    if not a.quick: Path(__file__).with_suffix('.md').write_text('\n'.join(page)+'\n')

if __name__=='__main__': main()
