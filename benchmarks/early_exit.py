"""Early exit on learned memory, beside a linear exit at the same place. `python benchmarks/early_exit.py --parts digits
ablation fashion vit newclass`; `--quick` is one seed of one network, and writes nothing. Prints tables, writes
benchmarks/early_exit.md and early_exit.json.

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

class RawExit(ExitHead):
    "An exit on features as they are, their common part left in"
    def wrote(self, z): pass

class LinearExit(ExitHead):
    "The rival: a linear classifier on the pooled features, sure by its softmax; nothing is stored"
    def build(self, dim, n_classes):
        # features of early layers have a large part in common, from which a bare linear layer hardly learns
        self.linear = nn.Sequential(nn.BatchNorm1d(dim, affine=False), nn.Linear(dim, n_classes))
    def loss(self, z, y): return F.cross_entropy(self.linear(z), y)
    def says(self, z, item=None, group=None, n_classes=None):
        """Its class, and the log-odds of its probability, drawn into -1 to 1: the softmax's own order, but where that
        is 1 to the last digit"""
        logits = self.linear(z.float())
        top,c = logits.max(1)
        m = top-logits.scatter(1, c[:,None], -torch.inf).logsumexp(1)
        return F.one_hot(c, logits.shape[1]).float(),m/(1+m.abs())

def callback(method, at, weight=WEIGHT, head='exit'):
    "What a learner gets for a method: 'memory', 'linear' or 'plain'"
    kw = dict(at=at, loss_weight=weight)
    if method=='memory': return MemoryCallback(CachedBank(2_000), head=head, k=K, **kw)
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

def train(dls, arch, method, at, seed, epochs, rekey=True, **kwargs):
    "A trained learner; its loaders are training, calibration, test"
    set_seed(seed)
    dls.train.rng = random.Random(seed)
    learn = Learner(dls, timm.create_model(arch, num_classes=10), loss_func=CrossEntropyLossFlat(),
                    cbs=callback(method, at, **kwargs))
    with learn.no_bar(),learn.no_logging(): learn.fit_one_cycle(epochs, 3e-3)
    if method=='memory' and rekey: learn.memory.rekey()       # its rows were written while the network moved
    return learn

# threshold and accuracy

def confidence(learn, dl):
    "What the exit would answer to all rows, how sure it is, what the network answers, the labels"
    got = learn.memory.collect(dl, memory=True)
    with torch.no_grad(): _,logp,sure = learn.memory.head.decide(got.z, n_classes=10)
    return logp.argmax(1),sure,got.raw.argmax(1),got.y

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
    return dict(hit=of(hit), accuracy=of(with_exit), network=of(own), exit_on_hits=of(ok[hit]),
                network_on_hits=of(own[hit]))

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
    while len(batches)<rounds*per:
        batches += [o for o in x[torch.randperm(len(x), generator=g)].split(bs) if len(o)==bs]
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

class UpTo:
    "A network that stops behind one of its modules"
    def __init__(self, model, at):
        self.model = copy.deepcopy(model)
        self.model.get_submodule(at).register_forward_hook(self.stop)
    def stop(self, *args): raise StopIteration
    def eval(self): self.model.eval()
    def __call__(self, x):
        try: self.model(x)
        except StopIteration: pass

def times(learn, at, rounds):
    """The network with its exit against the network alone; what it costs where no row leaves; the time up to the tap;
    and from these the hit rate at which an exit begins to pay"""
    x,plain,res = torch.cat([b[0] for b in learn.dls.loaders[2]]),without_exit(learn.model),{}
    none = copy.deepcopy(learn.model)
    next(h for h in none.modules() if isinstance(h, ExitHead)).threshold.fill_(9.)
    for bs,per in ((1,20),(128,2)):
        r = race(learn.model, plain, x, bs, rounds, per)
        lost,part = race(none, plain, x, bs, rounds, per),race(UpTo(plain, at), plain, x, bs, rounds, per)
        share,cost = 1/part['faster'],1/lost['faster']-1
        even = cost/(1-share) if share<1 else None
        res[str(bs)] = dict(**r, none_leave=lost['faster'], share=share, cost=cost, break_even=even)
    return res

# parts

def cases(data, sizes, archs, taps, seeds, epochs, rounds, part):
    "All trainings of a data set"
    rows = []
    for arch in archs:
        for seed in seeds:
            dls = loaders(*data, seed, sizes)
            learn = train(dls, arch, 'plain', None, seed, epochs)
            with learn.no_bar(): probs,y = learn.get_preds(2)
            plain = float((probs.argmax(1)==y).float().mean())
            for method,at in [(m,t) for t in taps for m in ('memory','linear')]:
                learn = train(dls, arch, method, at, seed, epochs)
                t = learn.memory.fit(eps=EPS)['threshold']
                r = dict(part=part, arch=arch, seed=seed, method=method, at=at, threshold=t, plain=plain,
                         **accuracies(learn))
                r['times'] = times(learn, at, rounds)
                rows.append(r)
                print(short(r), flush=True)
    return rows

def short(r):
    t = r['times']
    return (f"{r['part']} {r['arch']} {r['at']} {r['method']} seed {r['seed']}: hits {r['hit']:.3f}, accuracy "
            f"{r['accuracy']:.4f} (network {r['network']:.4f}, trained plainly {r['plain']:.4f}), "
            f"batch 1 x {t['1']['faster']:.2f}, batch 128 x {t['128']['faster']:.2f}")

def digits_part(o):
    taps = ['layer1'] if o.quick else ['layer1','layer2','layer4']
    return cases(digits(), (1000,400), ['resnet18'] if o.quick else ['resnet18','resnet34'], taps, range(o.seeds),
                 8 if o.quick else 20, 9 if o.quick else 21, 'digits')

def fashion_part(o):
    n = 2_000 if o.quick else 10_000
    taps = ['layer1'] if o.quick else ['layer1','layer2']
    return cases(fashion(n+4_000), (n,2_000), ['resnet18'], taps, range(o.seeds), 1 if o.quick else 4,
                 9 if o.quick else 21, 'fashion')

# what makes a tap good

def thinned(bank, n):
    "A bank with `n` of the rows of another, drawn evenly"
    new = CachedBank(n, n_classes=10)
    new.with_centre()
    new.centre = bank.centre
    f,_,y,_,_,_ = bank.rows()
    at = torch.randperm(len(f), generator=torch.Generator().manual_seed(0))[:n]
    new.write(f[at], y[at])
    return new

def ablation_part(o):
    """Hit rate and accuracy, by the same rule for the threshold, of variants of a tap at layer1: with another k, fewer
    rows, rows as they were written in training; without the loss, and without centring"""
    data,rows,epochs = digits(),[],8 if o.quick else 20
    for seed in range(o.seeds):
        dls = loaders(*data, seed, (1000,400))
        def note(name, learn):
            got = learn.memory.fit(eps=EPS)
            rows.append(dict(part='ablation', seed=seed, variant=name, threshold=got['threshold'], **accuracies(learn)))
            print(rows[-1], flush=True)
        learn = train(dls, 'resnet18', 'memory', 'layer1', seed, epochs, rekey=False)
        head = learn.memory.head
        for when in ('rows as written in training','rows encoded anew at the end'):
            if when.endswith('end'): learn.memory.rekey()
            for head.k in (1,5,10): note(f'{when}, k={head.k}', learn)
        head.k,whole = K,head.bank
        for n in (500,200,50):
            head.bank = thinned(whole, n)
            note(f'{n} of the rows, k={K}', learn)
        if o.quick: continue
        note(f'loss weight 0, k={K}', train(dls, 'resnet18', 'memory', 'layer1', seed, epochs, weight=0.))
        note(f'not centred, k={K}', train(dls, 'resnet18', 'memory', 'layer1', seed, epochs, head=RawExit))
    return rows

def ablation_table(rows):
    out = ['| layer1 of resnet18, digits | leave early | accuracy with exit | of its network alone | right on '
           'those that left |', '|'+'---|'*5]
    for k in dict.fromkeys(r['variant'] for r in rows):
        rs = [r for r in rows if r['variant']==k]
        v = [[r[c] for r in rs if r[c] is not None] for c in ('hit','accuracy','network','exit_on_hits')]
        out.append(f'| {k} | '+' | '.join(f'{mean(i):.4f}' if i else '-' for i in v)+' |')
    return '\n'.join(out)

# ViT-tiny: times alone

class Planted(ExitHead):
    "An exit that looks its rows up as any other, and lets a given share of them go"
    rate,turn = 0.,0
    def decide(self, z, item=None, group=None, n_classes=None):
        _,logp,sure = super().decide(z, item, group, n_classes)
        i = self.turn+torch.arange(len(z))
        if len(z)<8: self.turn += len(z)
        return ((i+1)*self.rate).floor()>(i*self.rate).floor(),logp,sure

def planted(arch, taps, rates, size):
    "A network with random weights and a memory of 2,000 rows at each tap"
    m = timm.create_model(arch, num_classes=10).eval()
    x = torch.randn(2, 3, size, size)
    for at,rate in zip(taps, rates):
        bank = CachedBank(2_000, n_classes=10)
        attach(m, Planted(bank, k=K), at, at.replace('.', '_'), x=x)
        bank.write(torch.randn(2_000, m.num_features), torch.arange(2_000)%10)
        (head := list(h for h in m.modules() if isinstance(h, Planted))[-1]).rate = rate
    return m

def vit_part(o):
    torch.manual_seed(0)
    x,rows,sizes = torch.randn(64, 3, 224, 224),[],((1,5),(8,1)) if o.quick else ((1,10),(32,1))
    blocks,plain = ['blocks.2','blocks.5','blocks.8'],timm.create_model('vit_tiny_patch16_224', num_classes=10).eval()
    n = 3 if o.quick else 9
    shares = {(at,bs):1/race(UpTo(plain, at), plain, x, bs, n, per)['faster'] for at in blocks for bs,per in sizes}
    one = [([at],[h]) for at in blocks for h in ((.9,) if o.quick else (0.,.5,.9))]
    for taps,rates in [*one, (blocks,[.4,.5,.5])]:
        m,r = planted('vit_tiny_patch16_224', taps, rates, 224),{}
        plain = without_exit(m)
        for bs,per in sizes:
            left,due,behind = 1.,0.,0.
            for a,h in zip([*(shares[at,bs] for at in taps), 1.], [*rates, 0.]):
                due,left,behind = due+left*(a-behind),left*(1-h),a
            r[str(bs)] = dict(**race(m, plain, x, bs, n, per), share=[shares[at,bs] for at in taps], bound=1/due)
        rows.append(dict(part='vit', at=', '.join(taps), rates=rates, times=r))
        print(rows[-1], flush=True)
    return rows

def vit_table(rows):
    out = [f'| taps | leave there{"".join(f" | batch {b}: times as fast | bound" for b in rows[0]["times"])} |',
           '|'+'---|'*6]
    for r in rows:
        t = [f"{v['faster']:.2f} ({v['low']:.2f}-{v['high']:.2f}) | {v['bound']:.2f}" for v in r['times'].values()]
        out.append(f"| {r['at']} | {', '.join(f'{h:.0%}' for h in r['rates'])} | {' | '.join(t)} |")
    return '\n'.join(out)

# a class that was never trained

def by_class(learn, new):
    "Accuracy with the exit on test images of the new class, and of the others; share of each that leaves"
    got,sure,net,y = confidence(learn, learn.dls.loaders[2])
    hit = sure>=learn.memory.head.threshold
    ok,n = torch.where(hit, got, net)==y,y==new
    return dict(new=float(ok[n].float().mean()), others=float(ok[~n].float().mean()),
                new_hit=float(hit[n].float().mean()), others_hit=float(hit[~n].float().mean()))

def imprint(norm, linear, z, new):
    "Weights for a class from a few of its features (Qi et al. 2018), for the rival"
    with torch.no_grad():
        seen,z = torch.arange(len(linear.weight))!=new,norm(z)
        linear.weight[new] = F.normalize(F.normalize(z).mean(0), dim=0)*linear.weight[seen].norm(dim=1).mean()
        linear.bias[new] = linear.bias[seen].mean()

def newclass_part(o):
    x,y = digits()
    rows,new = [],9
    for seed in range(o.seeds):
        dls = loaders(x, y, seed, (1000,400), new)
        p = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:1000]
        few = p[y[p]==new][:20]
        for at in ['layer1'] if o.quick else ['layer1','layer2','layer4']:
            for method in ('memory','linear'):
                learn = train(dls, 'resnet18', method, at, seed, 8 if o.quick else 20)
                head,before = learn.memory.head,{}
                for head.k in ((1,K) if method=='memory' else (1,)):
                    learn.memory.fit(eps=EPS)
                    before[head.k] = head.threshold.clone(),by_class(learn, new)
                got = learn.memory.collect(TensorDL(x[few], y[few], bs=32, vocab=range(10)), memory=True)
                if method=='memory': head.bank.write(got.z, got.y, item=got.item)
                else: imprint(*head.linear, got.z, new)
                for head.k,(t,was) in before.items():
                    head.threshold.copy_(t)
                    name = f'memory, k={head.k}, rows written' if method=='memory' else 'linear, weights imprinted'
                    rows.append(dict(part='newclass', at=at, method=name, seed=seed, before=was,
                                     after=by_class(learn, new)))
                    print(rows[-1], flush=True)
    return rows

def newclass_table(rows):
    out = ['| tap | exit | new class before | after 20 images | other classes before | after | new class leaves early '
           'before | after |', '|'+'---|'*8]
    for k in dict.fromkeys((r['at'],r['method']) for r in rows):
        rs = [r for r in rows if (r['at'],r['method'])==k]
        v = [mean(r[w][c] for r in rs) for c in ('new','others','new_hit') for w in ('before','after')]
        out.append(f"| {k[0]} | {k[1]} | "+' | '.join(f'{i:.3f}' for i in v)+' |')
    return '\n'.join(out)

def exits_table(rows):
    "Mean over seeds; speeds are medians over rounds, the range is over seeds"
    out = ['| network, tap | exit | leave early | accuracy with it | of its network alone | of a plain training | '
           'right on those that left | batch 1: times as fast | batch 128 | pays from a hit rate of '
           '(batch 1, 128) |', '|'+'---|'*10]
    def spread(v): return f'{mean(v):.2f}'+(f' ({min(v):.2f}-{max(v):.2f})' if len(v)>1 else '')
    for k in dict.fromkeys((r['arch'],r['at'],r['method']) for r in rows):
        rs = [r for r in rows if (r['arch'],r['at'],r['method'])==k]
        def col(c): return [r[c] for r in rs if r[c] is not None]
        def even(b):
            v = [e for r in rs if (e := r['times'][b]['break_even']) is not None]
            return f'{mean(v):.2f}' if v and mean(v)<=1 else 'never'
        acc = [f'{mean(v):.4f}' if (v := col(c)) else '-' for c in ('accuracy','network','plain','exit_on_hits')]
        out.append(f"| {k[0]}, {k[1]} | {k[2]} | {spread(col('hit'))} | {' | '.join(acc)} | "
                   f"{' | '.join(spread([r['times'][b]['faster'] for r in rs]) for b in ('1','128'))} | "
                   f"{even('1')}, {even('128')} |")
    return '\n'.join(out)

parts = dict(digits=(digits_part,exits_table), ablation=(ablation_part,ablation_table),
             fashion=(fashion_part,exits_table), vit=(vit_part,vit_table),
             newclass=(newclass_part,newclass_table))

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--parts', nargs='+', default=[*parts], choices=[*parts])
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--quick', action='store_true', help='one seed of one network, few epochs; nothing is written')
    o = p.parse_args()
    if o.quick: o.seeds = 1
    torch.set_num_threads(o.threads)
    to = Path(__file__).with_suffix('.json')
    kept = json.loads(to.read_text()) if to.exists() else {}
    for part in o.parts:
        run,table = parts[part]
        rows = run(o)
        print(f'\n## {part}\n\n{table(rows)}\n', flush=True)
        if o.quick: continue
        kept[part] = dict(rows=rows, seeds=o.seeds, threads=o.threads, torch=torch.__version__)
        to.write_text(json.dumps(kept, indent=1)+'\n')
        to.with_suffix('.md').write_text('\n'.join(
            f"`python benchmarks/early_exit.py --parts {k}`, {v['seeds']} seeds, torch {v['torch']}, {v['threads']} "
            f"thread{'s' if v['threads']>1 else ''}; CPU time\n\n{parts[k][1](v['rows'])}\n" for k,v in kept.items()))

if __name__=='__main__': main()
