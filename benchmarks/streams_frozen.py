"""What answers best on a frozen backbone, in one pass over a stream of new classes, without a stored image?

    python benchmarks/streams_frozen.py [fashion|digits] [--part search|test] [--quick] [--features FOLDER]

Features of an ImageNet-trained EfficientNet-Lite0 at 64 pixels are computed once and kept in FOLDER. `search` tries
all ideas on training images only: of each class some are learned from, others are held out, in two draws. `test` runs
what is chosen there, and what it is compared with, over streams of 5 experiences of 2 classes, in 5 orders of the
classes with training images drawn anew for each, and answers for the test images after every experience; methods are
compared order by order. No method is told where an experience ends. Statistics are the same for any batch size
(tests/continual), so they are written in large batches here. Prints Markdown; `--quick` is one draw,
two orders and fewer images."""
import argparse,math,statistics,sys,time
from pathlib import Path
import safetensors.torch as st, torch
from torch.nn import functional as F
from memo.continual.class_statistics import (ClassStatistics, NearestMeanHead, RanPACHead, StreamingLDAHead, ridge,
                                             sums)
from memo.core import atomic_path
from memo.models.backbones import load_backbone

C = 10
# images of each class: of a stream, held out of it in the search
SETS = dict(fashion=dict(train=1000, valid=400), digits=dict(train=80, valid=40))

# ---- features

def images(name):
    "Training images [N,H,W] 0..255 with their classes, those of a draw and held out together, and test images"
    if name=='fashion':
        from memo.data.longtail import read_fashion
        (x,y),(tx,ty) = read_fashion(None, 'train'),read_fashion(None, 't10k')
        x,tx = x.reshape(-1, 28, 28),tx.reshape(-1, 28, 28)
    else:
        from sklearn.datasets import load_digits
        d = load_digits()
        x,y = torch.tensor(d.images*255/16),torch.tensor(d.target)
    n,g = sum(SETS[name].values()),torch.Generator().manual_seed(0)
    own = [o[torch.randperm(len(o), generator=g)] for o in ((y==c).nonzero().flatten() for c in range(C))]
    at = torch.cat([o[:n] for o in own])
    if name=='digits': tx,ty = (o[torch.cat([o[n:] for o in own])] for o in (x,y))
    return dict(train=(x[at].float(),y[at].long()), test=(tx.float(),ty.long()))

def look(net, x):
    "Features of images, and of the network's stages the means over 1, 2x2 and 4x4 places and the deviations"
    last,maps = net.forward_intermediates(x)
    return dict(z=net.forward_head(last, pre_logits=True), p1=torch.cat([o.mean((2, 3)) for o in maps], 1),
                p2=torch.cat([F.adaptive_avg_pool2d(o, 2).flatten(1) for o in maps], 1),
                p4=torch.cat([F.adaptive_avg_pool2d(o, 4).flatten(1) for o in maps[:4]], 1),
                sd=torch.cat([o.std((2, 3)) for o in maps], 1))

@torch.no_grad()
def features(name, folder):
    "Features of a data set's images and of their mirror images, from the folder where they are there"
    path,res = Path(folder)/f'streams_frozen_{name}.safetensors',{}
    if path.exists(): return {k:v if k.endswith('_y') else v.float() for k,v in st.load_file(path).items()}
    net = load_backbone('tf_efficientnet_lite0', pretrained=True).eval().to(memory_format=torch.channels_last)
    mean,std = (torch.tensor(o).view(3, 1, 1) for o in ((.485, .456, .406), (.229, .224, .225)))
    for part,(x,y) in images(name).items():
        res[part+'_y'] = y
        for flip in (False,True):
            got = []
            for o in x.split(100):
                o = F.interpolate(o[:,None]/255, size=64, mode='bilinear').expand(-1, 3, -1, -1)
                o = ((o.flip(-1) if flip else o)-mean)/std
                got.append(look(net, o.contiguous(memory_format=torch.channels_last)))
            for k in got[0]: res[f"{part}_{k}{'_flip'*flip}"] = torch.cat([o[k] for o in got]).half().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as p: st.save_file(res, p)
    return features(name, folder)

# the backbone's own; with means of its stages; and their deviations; with stages over 2x2 places; all but the
# last over 4x4 (both are `StageFeatures`)
KINDS = dict(own=('z',), means=('z','p1'), deviations=('z','p1','sd'), stages=('z','p2'), fine=('z','p4'))

def joined(f, part, kind, flip=''): return torch.cat([f[f'{part}_{k}{flip}'] for k in KINDS[kind]], 1)

def draws(y, n, m, seed):
    "Positions of `n` items of each class, and of `m` others"
    g = torch.Generator().manual_seed(seed)
    own = [o[torch.randperm(len(o), generator=g)] for o in ((y==c).nonzero().flatten() for c in range(C))]
    return torch.cat([o[:n] for o in own]),torch.cat([o[n:n+m] for o in own])

# ---- what answers: each takes features and classes, and gives a function from features to scores [B,C]

def of_head(head):
    def fit(z, y):
        b = head.bank
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
        for i in order.split(500): b.write(head.features(z[i]), y[i])
        return lambda q: torch.cat([head.mixed(torch.zeros(len(o), C), head.features(o)) for o in q.split(2000)])
    return fit

def mean(): return of_head(NearestMeanHead(ClassStatistics(C, scatter=False)))
def lda(shrinkage=1e-2): return of_head(StreamingLDAHead(ClassStatistics(C), shrinkage))
def ranpac(n=None): return of_head(RanPACHead(ClassStatistics(C, random=True, n_random=n)))

def ranpac_paper(n=5000):
    "The penalty that does best on a fifth of the features, which is set aside for that, as published"
    def fit(z, y):
        a,b = ClassStatistics(C, random=True, n_random=n),ClassStatistics(C, random=True, n_random=n)
        i = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
        for bank,at in ((a,i[len(y)//5:]), (b,i[:len(y)//5])): bank.write(z[at], y[at])
        (g,h),(g2,h2) = sums(a),sums(b)
        def error(p):
            if (got := ridge(g, h, p)) is None: return math.inf
            return float((got[0]*(g2@got[0]-2*h2)).sum())
        w = ridge(g+g2, h+h2, min((10.**i for i in range(8)), key=error))[0]
        return lambda q: a.lifted(q)@w
    return fit

def stretched(fit, f):
    def fitted(z, y):
        g = fit(f(z), y)
        return lambda q: g(f(q))
    return fitted
def root(z): return z.sign()*z.abs().sqrt()

def standard(fit):
    def fitted(z, y):
        m,s = z.mean(0),z.std(0)+1e-6
        g = fit((z-m)/s, y)
        return lambda q: g((q-m)/s)
    return fitted

def statistics_of(z, y):
    m = torch.stack([z[y==c].mean(0) for c in range(C)])
    r = z-m[y]
    return m,r,r.T@r/len(z)

def qda(share):
    "Each class its own covariance, for a share of the common one"
    def fit(z, y):
        m,r,s = statistics_of(z, y)
        eye,res = .01*s.diagonal().mean()*torch.eye(len(s)),[]
        for c in range(C):
            l = torch.linalg.cholesky((1-share)*s+share*r[y==c].T@r[y==c]/int((y==c).sum())+eye)
            res.append((m[c],l,l.diagonal().log().sum()))
        def far(q, m, l): return torch.linalg.solve_triangular(l, (q-m).T, upper=False).square().sum(0)/2
        return lambda q: torch.stack([-far(q, m, l)-d for m,l,d in res], 1)
    return fit

def whitener(z, y, eps=.01):
    _,_,s = statistics_of(z, y)
    l = torch.linalg.cholesky(s+eps*s.diagonal().mean()*torch.eye(len(s)))
    return torch.linalg.solve_triangular(l, torch.eye(len(s)), upper=False).T

def qda_in_few(share):
    "The same in the 9 directions that linear discriminant analysis looks at"
    def fit(z, y):
        w = whitener(z, y)
        m = statistics_of(z, y)[0]@w
        w = w@torch.linalg.svd(m-m.mean(0), full_matrices=False)[2][:C-1].T
        g = qda(share)(z@w, y)
        return lambda q: g(q@w)
    return fit

def mixture(k):
    "Of each class k means (of k-means), and one covariance around all of them"
    def fit(z, y):
        w,g = whitener(z, y),torch.Generator().manual_seed(0)
        x,ms,rs,ps = z@w,[],[],[]
        for c in range(C):
            o = x[y==c]
            m = o[torch.randperm(len(o), generator=g)[:k]].clone()
            for _ in range(20):
                i = torch.cdist(o, m).argmin(1)
                for j in i.unique(): m[j] = o[i==j].mean(0)
            i = torch.cdist(o, m).argmin(1)
            ms,rs,ps = [*ms, m],[*rs, o-m[i]],[*ps, (torch.bincount(i, minlength=k)+1)/(len(o)+k)]
        r = torch.cat(rs)
        l = torch.linalg.cholesky(r.T@r/len(r)+.01*torch.eye(r.shape[1]))
        def white(q): return torch.linalg.solve_triangular(l, q.T, upper=False).T
        m,p = white(torch.cat(ms)),torch.cat(ps).log()
        return lambda q: (p-torch.cdist(white(q@w), m).square()/2).view(len(q), C, k).logsumexp(2)
    return fit

def fourier(sigma, n=4000):
    "Ridge regression on random Fourier features of whitened features"
    def fit(z, y):
        w,g = whitener(z, y, .1),torch.Generator().manual_seed(0)
        p = w@torch.randn(w.shape[1], n, generator=g)*sigma/(z@w).square().sum(1).mean().sqrt()
        b = torch.rand(n, generator=g)*2*math.pi
        h = RanPACHead(ClassStatistics(C))
        f = of_head(h)((z@p+b).cos(), y)
        return lambda q: f((q@p+b).cos())
    return fit

# ---- the search

def ideas(kind, quick):
    "Name -> what is fitted, for a kind of features"
    big = dict(lda=lda(), ranpac=ranpac())
    if kind!='own': return {**big, 'nearest mean':mean()} if kind=='fine' else big
    res = {'nearest mean':mean(), 'lda, shrinkage 1e-4':lda(1e-4), 'lda':lda(), 'lda, shrinkage .1':lda(.1),
           'lda of roots':stretched(lda(), root), 'lda, standardised':standard(lda()), 'ranpac':ranpac(),
           'ranpac, penalty held out':ranpac_paper()}
    if quick: return res
    return {**res, 'ranpac, 2500':ranpac(2500), 'ranpac, 10000':ranpac(10000),
            **{f'own covariances, {s}':standard(qda(s)) for s in (.1,.4)},
            **{f'own covariances in 9 directions, {s}':standard(qda_in_few(s)) for s in (.3,1.)},
            **{f'{k} means a class':standard(mixture(k)) for k in (2,4,8)},
            **{f'Fourier features, {s}':standard(fourier(s)) for s in (.3,1.)}}

def accuracy(out, y): return 100*(out.argmax(1)==y).float().mean().item()

def search(f, n, quick):
    "Accuracies on held-out training images, in two draws"
    y,rows = f['train_y'],{}
    for seed in range(1 if quick else 2):
        a,b = draws(y, n['train'], n['valid'], 100+seed)
        for kind in KINDS:
            z,zf = joined(f, 'train', kind),joined(f, 'train', kind, '_flip')
            for name in ideas(kind, quick):
                start = time.process_time()
                g = ideas(kind, quick)[name](z[a], y[a])
                rows.setdefault((kind,name), []).append((accuracy(g(z[b]), y[b]),time.process_time()-start))
                print(seed, kind, name, rows[kind,name][-1], file=sys.stderr, flush=True)
            if quick or kind not in ('own','fine'): continue
            for name,make in (('lda',lda), ('ranpac',ranpac)):
                g = make()(torch.cat([z[a],zf[a]]), torch.cat([y[a],y[a]]))
                start = time.process_time()
                rows.setdefault((kind,f'{name}, mirrored too'), []).append((accuracy(g(z[b])+g(zf[b]), y[b]),0))
    print('| features | method | held-out accuracy | CPU s |\n|---|---|---|---|')
    for (kind,name),v in rows.items():
        print(f"| {kind} | {name} | {' '.join(f'{a:.1f}' for a,_ in v)} | {statistics.mean(t for _,t in v):.1f} |")

# ---- the streams

def prepared(z, first):
    "As the plain classifiers get them: centred on the first experience, of length 4"
    m = z[first].mean(0)
    return lambda q: 4*F.normalize(q-m)

def sgd(buffer=0, epochs=1, lr=.5):
    "A linear classifier by plain SGD in batches of 10, with a reservoir of which as many are replayed"
    def run(parts, z, y, q, seed):
        f,g = prepared(z, parts[0]),torch.Generator().manual_seed(seed)
        x,w,b = f(z),torch.zeros(z.shape[1], C),torch.zeros(C)
        kept,seen,outs = torch.zeros(0, dtype=torch.long),0,[]
        for part in parts:
            for _ in range(epochs):
                for i in part[torch.randperm(len(part), generator=g)].split(10):
                    at = torch.cat([i, kept[torch.randperm(len(kept), generator=g)[:10]]])
                    d = ((x[at]@w+b).softmax(1)-F.one_hot(y[at], C))/len(at)
                    w,b = w-lr*x[at].T@d,b-lr*d.sum(0)
                    for j in i.tolist() if buffer else ():
                        seen += 1
                        r = int(torch.randint(seen, (1,), generator=g))
                        if len(kept)<buffer: kept = torch.cat([kept, torch.tensor([j])])
                        elif r<buffer: kept[r] = j
            outs.append(f(q)@w+b)
        return outs
    return run

def counted(head):
    "What a head answers after each experience"
    def run(parts, z, y, q, seed):
        h,outs = head(),[]
        for part in parts:
            h.bank.write(h.features(z[part]), y[part])
            outs.append(h.mixed(torch.zeros(len(q), C), h.features(q)))
        return outs
    return run

def joint(run, **kw): return lambda parts, z, y, q, seed: run([torch.cat(parts)], z, y, q, seed)
def statistics_for(cls): return ClassStatistics(C, scatter=cls is not NearestMeanHead, random=cls is RanPACHead)
heads = {n:counted(lambda h=h: h(statistics_for(h)))
         for n,h in {'nearest mean':NearestMeanHead, 'StreamingLDA':StreamingLDAHead, 'RanPAC':RanPACHead}.items()}
plain = {'plain linear':sgd(), 'replay of 200':sgd(200)}
bound = {'joint linear, 3 epochs':joint(sgd(epochs=3))}
METHODS = {(k,n):f for k,fs in dict(own={**plain, **heads, **bound}, fine={**plain, **heads, **bound}, stages={
    'nearest mean':heads['nearest mean'], 'StreamingLDA':heads['StreamingLDA'], **bound}).items() for n,f in fs.items()}

def test(f, n, quick):
    "The methods over the streams, compared order by order"
    y,ty,rows = f['train_y'],f['test_y'],{}
    for seed in range(2 if quick else 5):
        order = torch.randperm(C, generator=torch.Generator().manual_seed(seed)).view(-1, 2)
        at,_ = draws(y, n['train'], 0, 1000+seed)
        parts = [at[torch.isin(y[at], o)] for o in order]
        # an online method sees them one by one, in any order within an experience
        tests = [torch.isin(ty, o) for o in order]
        for (kind,name),run in METHODS.items():
            start = time.process_time()
            z,q = joined(f, 'train', kind),joined(f, 'test', kind)
            a = torch.tensor([[accuracy(o[t], ty[t]) for t in tests] for o in run(parts, z, y, q, seed)])
            if len(a)==1: scores = float(a.mean()),math.nan,math.nan
            else: scores = (float(a[-1].mean()),float((a[:-1].max(0).values-a[-1])[:-1].mean()),
                            statistics.mean(float(a[i,:i+1].mean()) for i in range(len(a))))
            rows.setdefault((kind,name), []).append((*scores,time.process_time()-start))
            print(seed, kind, name, rows[kind,name][-1], file=sys.stderr, flush=True)
    base = [r[0] for r in rows['own','StreamingLDA']]
    print('| features | method | average accuracy | forgetting | average on the way | against StreamingLDA, order by '
          'order | CPU s |\n|---|---|---|---|---|---|---|')
    for (kind,name),v in rows.items():
        acc,forgot,way,t = zip(*v)
        d = [a-b for a,b in zip(acc, base)]
        def pm(o): return '' if math.isnan(o[0]) else f'{statistics.mean(o):.1f} ± {statistics.stdev(o):.1f}'
        print(f'| {kind} | {name} | {pm(acc)} | {pm(forgot)} | {pm(way)} | {statistics.mean(d):+.1f} ({min(d):+.1f} to '
              f'{max(d):+.1f}) | {statistics.mean(t):.0f} |')

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('data', nargs='*', default=['fashion','digits'], help='fashion, digits')
    p.add_argument('--part', choices=('search','test'), help='only this')
    p.add_argument('--quick', action='store_true')
    p.add_argument('--features', default='data/features')
    a = p.parse_args()
    for name in a.data:
        f,n = features(name, a.features),dict(SETS[name])
        if a.quick: n = {k:v//(4 if name=='fashion' else 1) for k,v in n.items()}
        for part,run in (('search',search), ('test',test)):
            if a.part in (None,part):
                print(f'\n{name}: {part}\n')
                run(f, n, a.quick)

if __name__=='__main__': main()
