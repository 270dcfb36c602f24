"""Early exit on learned memory, beside a linear exit at the same place. `python benchmarks/early_exit.py --parts digits
fashion vit newclass`; `--quick` is one seed of one network. Prints tables and writes benchmarks/early_exit.md and .json.

digits, fashion: a network is trained with a memory at a tap (contrastive loss at weight .2), another with a linear
classifier on the same pooled features (BranchyNet: Teerapittayanon et al. 2016; its cross-entropy at the same weight),
another plain. The threshold of each exit is chosen on a calibration split by one rule (`learn.memory.fit(eps=.005)`),
and rows leave by one mechanism. Accuracies and times are of a test split; times are of the whole model against the
same network without the exit, in turn over the same images. layer4 is behind the whole backbone: there an exit must
come out slower. vit: times alone, of a ViT-tiny at 224 px, random weights, with hit rates that are given.
newclass: one digit is left out of training, then 20 images of it are written into the memory."""
import os
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')  # before torch: idle threads sleep instead of counting as CPU time
import argparse,copy,json,time,warnings
from pathlib import Path
from statistics import mean,median,quantiles
import timm,torch
from fastai.vision.all import CrossEntropyLossFlat,DataLoaders,Learner,random,set_seed
from torch import nn
from torch.nn import functional as F
from memo.banks.key_value import CachedBank
from memo.banks.slots import SlotBank
from memo.data.longtail import read_fashion
from memo.data.tensors import TensorDL
from memo.heads.attach import attach,detach
from memo.heads.gate import ExitHead
from memo.training.memory_callback import MemoryCallback
warnings.filterwarnings('ignore')

EPS,WEIGHT,K = .005,.2,5

class LinearExit(ExitHead):
    "The rival: a linear classifier on the pooled features, sure by its softmax; nothing is stored"
    def build(self, dim, n_classes): self.linear = nn.Linear(dim, n_classes)
    def loss(self, z, y): return F.cross_entropy(self.linear(z), y)
    def decide(self, z, item=None, group=None, n_classes=None):
        logp = self.linear(z.float()).log_softmax(1)
        sure = logp.amax(1).exp()
        return sure>=self.threshold,logp,sure

def callback(method, at):
    "What a learner gets for a method: 'memory', 'linear' or 'plain'"
    kw = dict(at=at, loss_weight=WEIGHT)
    if method=='memory': return MemoryCallback(CachedBank(2_000), head='exit', k=K, **kw)
    return MemoryCallback(SlotBank(1), head=LinearExit, k=1, **kw) if method=='linear' else None

# data

def digits():
    "scikit-learn's digits at 32 px, three channels"
    from sklearn.datasets import load_digits
    d = load_digits()
    x = F.interpolate(torch.from_numpy(d.images).float()[:,None], size=32, mode='bilinear')
    return x.div(8).sub(1).repeat(1, 3, 1, 1),torch.from_numpy(d.target).long()

def fashion(n):
    "The first images of Fashion-MNIST at 32 px, three channels"
    x,y = read_fashion(None, 'train')
    return F.pad(x[:n].float(), (2,2,2,2)).div(127.5).sub(1).repeat(1, 3, 1, 1),y[:n]

def loaders(x, y, seed, sizes, without=None):
    "Training, calibration and test loaders of a split fixed by the seed; a class may be left out of the first two"
    p = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).split([*sizes, len(x)-sum(sizes)])
    if without is not None: p = [o[y[o]!=without] if i<2 else o for i,o in enumerate(p)]
    a,b,t = p
    dls = DataLoaders(TensorDL(x[a], y[a], bs=64, shuffle=True, drop_last=True, vocab=range(10)),
                      *(TensorDL(x[o], y[o], bs=128, vocab=range(10)) for o in (b,t)), device='cpu')
    dls.train.rng = random.Random(seed)
    return dls

def train(dls, arch, method, at, seed, epochs, lr=3e-3):
    "A trained learner; its loaders are training, calibration, test"
    set_seed(seed)
    learn = Learner(dls, timm.create_model(arch, num_classes=10), loss_func=CrossEntropyLossFlat(),
                    cbs=callback(method, at))
    with learn.no_bar(),learn.no_logging(): learn.fit_one_cycle(epochs, lr)
    if method=='memory': learn.memory.rekey()       # its rows were written while the network moved
    return learn

# threshold and accuracy

def confidence(learn, dl):
    "What the exit would answer to all rows, how sure it is, what the network answers, the labels"
    got = learn.memory.collect(dl, memory=True)
    with torch.no_grad(): _,logp,sure = learn.memory.head.decide(got.z, n_classes=10)
    return logp.argmax(1),sure,got.raw.argmax(1),got.y

def fit_threshold(learn):
    """Excess error of the exit over all calibration rows, (exit wrong, network right) - (exit right, network wrong):
    the last threshold up to which, from the strictest on, it is at most EPS"""
    got,sure,net,y = confidence(learn, learn.dls.valid)
    s,o = sure.sort(descending=True)
    excess = ((net==y).float()-(got==y).float())[o].cumsum(0)/len(o)
    last = torch.cat([s[1:]<s[:-1], torch.tensor([True])])          # equally sure rows leave together
    s,excess = s[last],excess[last]
    bad = (excess>EPS+1e-9).nonzero()
    n = int(bad[0]) if len(bad) else len(s)
    t = (s[n-1]+s[n])/2 if 0<n<len(s) else s[-1] if n else torch.tensor(2.)
    learn.memory.head.threshold.copy_(t)
    return float(t)

def accuracies(learn):
    "On test images: hit rate, accuracy with the exit, of the network alone, of both on the rows that leave"
    got,sure,net,y = confidence(learn, learn.dls.loaders[2])
    hit = sure>=learn.memory.head.threshold
    ok,own = got==y,net==y
    with_exit = torch.where(hit, ok, own)
    x = torch.cat([b[0] for b in learn.dls.loaders[2]])
    with torch.no_grad(): out = torch.cat([learn.model.eval()(o) for o in x.split(128)]).argmax(1)
    assert float((out==torch.where(hit, got, net)).float().mean())>.99      # what is timed gives these answers
    def of(o): return float(o.float().mean()) if len(o) else None
    return dict(hit=of(hit), accuracy=of(with_exit), network=of(own), exit_on_hits=of(ok[hit]), network_on_hits=of(own[hit]))

# times

def once(model, xs):
    w,c = time.perf_counter(),time.process_time()
    for x in xs: model(x)
    return (time.perf_counter()-w)/len(xs)*1e3,(time.process_time()-c)/len(xs)*1e3

@torch.no_grad()
def race(model, plain, x, bs, rounds, per):
    "Both over the same batches in turn: milliseconds a batch, and how many times as fast the first is, with quartiles"
    model.eval(),plain.eval()
    g = torch.Generator().manual_seed(0)
    batches = []
    while len(batches)<rounds*per: batches += [o for o in x[torch.randperm(len(x), generator=g)].split(bs) if len(o)==bs]
    for m in (model,plain): once(m, batches[:per])
    a,b = [],[]
    for i in range(rounds):
        xs = batches[i*per:(i+1)*per]
        for m,to in ((model,a),(plain,b))[::1-2*(i%2)]: to.append(once(m, xs))
    cpu = [p[1]/m[1] for m,p in zip(a,b)]
    low,_,high = quantiles(cpu, n=4)
    return dict(cpu=median(o[1] for o in a), plain_cpu=median(o[1] for o in b), wall=median(o[0] for o in a),
                plain_wall=median(o[0] for o in b), faster=median(cpu), low=low, high=high,
                faster_wall=median(p[0]/m[0] for m,p in zip(a,b)))

def without_exit(model):
    m = copy.deepcopy(model)
    detach(m)
    return m

def times(learn, rounds):
    x,plain = torch.cat([b[0] for b in learn.dls.loaders[2]]),without_exit(learn.model)
    n = 20
    return {1:race(learn.model, plain, x, 1, rounds, n), 128:race(learn.model, plain, x, 128, rounds, 2)}

# parts

def cases(data, sizes, archs, taps, seeds, epochs, rounds, part):
    "All trainings of a data set"
    rows = []
    for arch in archs:
        for seed in seeds:
            dls = loaders(*data, seed, sizes)
            learn = train(dls, arch, 'plain', None, seed, epochs)
            with learn.no_bar(): plain = float((learn.get_preds(dl=dls.loaders[2])[0].argmax(1)==dls.loaders[2].dataset.y).float().mean())
            for method,at in [(m,t) for t in taps for m in ('memory','linear')]:
                dls.train.rng = random.Random(seed)
                learn = train(dls, arch, method, at, seed, epochs)
                r = dict(part=part, arch=arch, seed=seed, method=method, at=at, threshold=fit_threshold(learn),
                         plain=plain, **accuracies(learn))
                r['times'] = {str(k):v for k,v in times(learn, rounds).items()}
                rows.append(r)
                print(short(r), flush=True)
    return rows

def short(r):
    t = r['times']
    return (f"{r['part']} {r['arch']} {r['at']} {r['method']} seed {r['seed']}: hits {r['hit']:.3f}, accuracy "
            f"{r['accuracy']:.4f} (network {r['network']:.4f}, trained plainly {r['plain']:.4f}), batch 1 x {t['1']['faster']:.2f}, "
            f"batch 128 x {t['128']['faster']:.2f}")

def digits_part(o):
    taps = ['layer1'] if o.quick else ['layer1','layer2','layer4']
    return cases(digits(), (1000,400), ['resnet18'] if o.quick else ['resnet18','resnet34'], taps, range(o.seeds),
                 8 if o.quick else 20, 9 if o.quick else 21, 'digits')

def fashion_part(o):
    n = 2_000 if o.quick else 10_000
    return cases(fashion(n+4_000), (n,2_000), ['resnet18'], ['layer1'] if o.quick else ['layer1','layer2'], range(o.seeds),
                 1 if o.quick else 4, 9 if o.quick else 21, 'fashion')

def summary(rows):
    "Mean over seeds, as a Markdown table; speeds are medians over rounds, the range is over seeds"
    out = ['| network, tap | exit | leave early | accuracy with exit | of its network alone | trained plainly | right on those that left | batch 1: times as fast | batch 128 |',
           '|---|---|---|---|---|---|---|---|---|']
    keys = list(dict.fromkeys((r['part'],r['arch'],r['at'],r['method']) for r in rows))
    def spread(v, f='.2f'): return f'{mean(v):{f}} ({min(v):{f}}-{max(v):{f}})' if len(v)>1 else f'{v[0]:{f}}'
    for k in keys:
        rs = [r for r in rows if (r['part'],r['arch'],r['at'],r['method'])==k]
        def col(c): return [r[c] for r in rs if r[c] is not None]
        speed = [spread([r['times'][b]['faster'] for r in rs]) for b in ('1','128')]
        hits = col('exit_on_hits')
        out.append(f"| {k[1]}, {k[2]} | {k[3]} | {spread(col('hit'))} | " + ' | '.join(
            f"{mean(col(c)):.4f}" for c in ('accuracy','network','plain')) + f" | {mean(hits):.4f} | " *bool(hits)
            + ' | '.join(speed)+' |')
    return '\n'.join(out)

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--parts', nargs='+', default=['digits','fashion','vit','newclass'])
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--quick', action='store_true')
    o = p.parse_args()
    if o.quick: o.seeds = 1
    torch.set_num_threads(o.threads)
    made = dict(digits=digits_part, fashion=fashion_part)
    for part in o.parts:
        rows = made[part](o)
        print(summary(rows), flush=True)
        print(json.dumps(rows))

if __name__=='__main__': main()
