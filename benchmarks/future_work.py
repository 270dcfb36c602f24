"""What the published code of two paths names as future work, tried before any of it is built.

    python benchmarks/future_work.py [attention|hierarchy|policy|signature] [--quick] [--features FOLDER]

A small network is trained once per data set (digits, Fashion-MNIST) and seed with the memory contrastive loss at an
early tap and at its last layer; then all is arithmetic on its features, streamed in order into banks of equal bytes.
Images of the stream, of the held-out set (thresholds, temperatures, all that is learned from data) and of the test
set are new to the network. Seeds, sizes and rows are fixed here, before the run. Writes benchmarks/future_work.md;
`--quick` is two seeds and shorter streams, printed only."""
import argparse,copy,itertools,math,statistics,tempfile,time
from collections import defaultdict,deque
from pathlib import Path
import numpy as np, torch
from torch import nn
from torch.nn import functional as F
from learned_writes import evolve,meta_train,row_features
from memo.banks.base import Bank
from memo.banks.key_value import CachedBank
from memo.banks.slots import SlotBank
from memo.data.longtail import read_fashion
from memo.models.small import small_cnn

# classes; excess error that a gate may cost; rows offered at once; rounds of meta-training
C,EPS,BS,ROUNDS = 10,.005,32,60
# images: of the network, the stream, held out, test; epochs; banks: read, hierarchy (newest, long-term), policy
SETS = dict(digits=dict(n=(450, 500, 400, 447), epochs=16, read=256, levels=(32, 96), policy=64),
            fashion=dict(n=(5000, 5000, 1000, 4000), epochs=3, read=512, levels=(128, 512), policy=128))
QUICK = dict(digits=dict(n=(450, 500, 400, 447), epochs=8, read=128, levels=(32, 96), policy=64),
             fashion=dict(n=(2000, 1500, 600, 1000), epochs=2, read=128, levels=(64, 192), policy=64))

# ---- features

def images(name):
    "All images of a data set [N,1,S,S] in 0..1, and their classes"
    if name=='fashion': x,y = (torch.cat(o) for o in zip(*(read_fashion(None, o) for o in ('train','t10k'))))
    else:
        from sklearn.datasets import load_digits
        d = load_digits()
        x,y = torch.tensor(d.images/16*255),torch.tensor(d.target)
    return x.reshape(len(x), 1, *x.shape[-2:]).float()/255,y.long()

def rotated(x, degrees):
    "Each image turned by its own angle"
    a = torch.deg2rad(degrees)
    m = torch.stack([a.cos(), -a.sin(), 0*a, a.sin(), a.cos(), 0*a], 1).reshape(-1, 2, 3)
    return F.grid_sample(x, F.affine_grid(m, x.shape, align_corners=False), align_corners=False)

def layers(model, x):
    "Features at the tap (the fourth convolution) and at the last layer, and outputs"
    tap = model[:5](x)
    last = model[5:-1](tap)
    return tap.mean((2,3)),last,model[-1](last)

def contrastive(z, y):
    "The memory contrastive loss with the rest of the batch as the memory"
    z = F.normalize(z)
    s = (z@z.T/.1).masked_fill(torch.eye(len(z), dtype=torch.bool), -1e9)
    own = (y[:,None]==y) & ~torch.eye(len(z), dtype=torch.bool)
    ok = own.any(1)
    return (s[ok].logsumexp(1) - s[ok].masked_fill(~own[ok], -1e9).logsumexp(1)).mean()

def train(x, y, epochs, seed):
    "A network, and as it was after a quarter of its training"
    torch.manual_seed(seed)
    model,bs = small_cnn(1, C),50 if len(x)<1000 else 128
    opt = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=1e-2)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, 1e-2, epochs*(len(x)//bs))
    for e in range(epochs):
        for i in torch.randperm(len(x))[:len(x)//bs*bs].split(bs):
            tap,last,out = layers(model, x[i])
            loss = .6*F.cross_entropy(out, y[i]) + .2*contrastive(tap, y[i]) + .2*contrastive(last, y[i])
            opt.zero_grad(); loss.backward(); opt.step(); sched.step()
        if e==epochs//4-1 or epochs<4 and e==0: early = copy.deepcopy(model).eval()
    return model.eval(),early

@torch.no_grad()
def encode(model, x):
    tap,last,out = (torch.cat(o) for o in zip(*(layers(model, b) for b in x.split(256))))
    return dict(tap=tap, last=last, out=out)

def features(name, seed, cfg, root):
    "Features of all parts, kept in a folder: stream, held out and test; as the drifts have them; with a little noise"
    path = Path(root)/f'{name}{seed}_{cfg["n"][0]}_{cfg["epochs"]}.pt'
    if path.exists(): return torch.load(path)
    (x,y),g = images(name),torch.Generator().manual_seed(seed)
    parts = torch.randperm(len(x), generator=g)[:sum(cfg['n'])].split(cfg['n'])
    model,early = train(x[parts[0]], y[parts[0]], cfg['epochs'], seed)
    res = {k:dict(encode(model, x[i]), y=y[i]) for k,i in zip(('stream','held','test'), parts[1:])}
    s,n = x[parts[1]],len(parts[1])
    res['early'] = encode(early, s)
    res['noisy'] = encode(model, (s+.05*torch.randn(s.shape, generator=g)).clamp(0, 1))
    turn = torch.linspace(0, 45, n)
    res['turned'] = dict(encode(model, rotated(s, turn)), y=y[parts[1]])
    for k,i in zip(('held','test'), parts[2:]):
        res[k+'_turned'] = dict(encode(model, rotated(x[i], torch.full((len(i),), 45.))), y=y[i])
    torch.save(res, path)
    return res

# ---- banks of this page, with SlotBank's write

def stored(bank):
    "Slots in use, their unit rows and classes"
    if isinstance(bank, Bank):
        x,_,y,*_ = bank.rows()
        return torch.arange(len(x)),F.normalize(x),y
    at = (bank.labels>=0).nonzero().squeeze(1)
    return at,F.normalize(bank.features[at]),bank.labels[at]

class Rows:
    "Slots that a rule of this page fills"
    def __init__(self, size, dim):
        self.features,self.labels,self.seen = torch.zeros(size, dim),torch.full((size,), -1),0
    def put(self, at, x, y): self.features[at],self.labels[at] = x,y

class Balanced(Rows):
    "Class-balancing reservoir sampling (Chrysakis and Moens 2020)"
    def __init__(self, size, dim, seed):
        super().__init__(size, dim)
        self.rng,self.slots,self.n,self.full = np.random.default_rng(seed),defaultdict(list),defaultdict(int),set()
    def write(self, x, y):
        res = torch.full((len(x),), -1)
        for i,c in enumerate(y.tolist()):
            self.n[c] += 1
            if self.seen<len(self.labels): at = self.seen
            else:
                most = max(map(len, self.slots.values()))
                largest = sorted(k for k,v in self.slots.items() if len(v)==most)
                self.full |= set(largest)
                if c in self.full and self.rng.random()>len(self.slots[c])/self.n[c]: continue
                of = self.slots[c if c in self.full else self.rng.choice(largest)]
                at = of.pop(self.rng.integers(len(of)))
            self.slots[c].append(at); self.seen += 1
            self.put(at, x[i], y[i])
            res[i] = at
        return last_only(res)

class Newest(Rows):
    "The newest rows of each class: a row takes the place of the oldest of the largest class, its own where that is one"
    def __init__(self, size, dim):
        super().__init__(size, dim)
        self.slots = [deque() for _ in range(C)]
    def write(self, x, y):
        res = torch.full((len(x),), -1)
        for i,c in enumerate(y.tolist()):
            most = max(map(len, self.slots))
            of = c if len(self.slots[c])==most else next(k for k,o in enumerate(self.slots) if len(o)==most)
            at = self.seen if self.seen<len(self.labels) else self.slots[of].popleft()
            self.slots[c].append(at); self.seen += 1
            self.put(at, x[i], y[i])
            res[i] = at
        return last_only(res)

def last_only(slot):
    "-1 for rows whose slot a later row of the batch took"
    at = {int(s):i for i,s in enumerate(slot)}
    return torch.tensor([int(s) if at[int(s)]==i else -1 for i,s in enumerate(slot)])

class Levels(Rows):
    "A working bank of the newest; what leaves it is promoted where novel or mispredicted, the least used make room"
    def __init__(self, new, long, dim, threshold, rule='novel', seed=0):
        super().__init__(new+long, dim)
        self.new,self.long,self.threshold,self.use = new,long,threshold,torch.zeros(new+long)
        self.reservoir = SlotBank(long, policy='reservoir', seed=seed) if long and rule=='reservoir' else None
    def hit(self, at): self.use.mul_(.5**(BS/len(self.use))).index_add_(0, at, torch.ones(len(at)))
    def write(self, x, y):
        at = (self.seen+torch.arange(len(x)))%self.new
        self.seen += len(x)
        out = at[self.labels[at]>=0]
        if len(out) and self.long: self.promote(self.features[out], self.labels[out])
        self.put(at, x, y)
        self.use[at] = 0
        return at
    def promote(self, x, y):
        if self.reservoir is not None:
            to = self.reservoir.write(x, y)
            self.put(self.new+to[to>=0], x[to>=0], y[to>=0])
            return
        have = (self.labels[self.new:]>=0).nonzero().squeeze(1)+self.new
        if len(have):
            s,j = (F.normalize(x)@F.normalize(self.features[have]).T).max(1)
            want = (s<self.threshold) | (self.labels[have][j]!=y)
            x,y = x[want],y[want]
        use = torch.where(self.labels[self.new:]<0, -1., self.use[self.new:])
        to = self.new+use.topk(min(len(x), self.long), largest=False).indices
        self.put(to, x[:len(to)], y[:len(to)])
        self.use[to] = 1

# ---- a stream, and what is measured

def fill(bank, x, y):
    "Offer a stream; what was nearest to each row before it was offered, and per slot: birth, hits, right hits"
    n = bank.size if isinstance(bank, Bank) else len(bank.labels)
    born,hits,right = torch.zeros(3, n)
    cls,conf = torch.full_like(y, -1),torch.full((len(y),), -1.)
    for i in range(0, len(x), BS):
        o = slice(i, i+BS)
        if i:
            at,rows,labels = stored(bank)
            s,j = (F.normalize(x[o])@rows.T).max(1)
            cls[o],conf[o] = labels[j],s
            hits.index_add_(0, at[j], torch.ones(len(j)))
            right.index_add_(0, at[j], (labels[j]==y[o]).float())
            if hasattr(bank, 'hit'): bank.hit(at[j])
        to = bank.write(x[o], y[o])
        to = to[to>=0]
        born[to],hits[to],right[to] = i,0,0
    return dict(cls=cls, conf=conf, age=(len(x)-born)/len(x), hits=hits, right=right)

def threshold(conf, wrong, right, eps=EPS):
    "The least confidence from which the excess error keeps within `eps`, from the strictest on"
    s,i = conf.sort(descending=True)
    ends = torch.cat([s[1:]!=s[:-1], torch.tensor([True])])
    bad = ends & ((wrong[i].long()-right[i].long()).cumsum(0)>eps*len(s))
    ok = ends.clone()
    if bad.any(): ok[int(bad.nonzero()[0]):] = False
    return float(s[ok][-1]) if ok.any() else math.inf

def gate(held, test):
    "What a gate chosen on held-out rows answers, and its excess error; of (class, confidence, network's class, label)"
    def parts(c, conf, net, y): return conf,(c!=y)&(net==y),(c==y)&(net!=y)
    t = threshold(*parts(*held))
    conf,wrong,right = parts(*test)
    on = conf>=t
    return dict(cover=on.float().mean(), excess=((wrong&on).long()-(right&on).long()).float().mean())

def ece(p, y, bins=15):
    conf,c = p.max(1)
    b = (conf*bins).long().clamp(max=bins-1)
    def per_bin(v): return torch.zeros(bins).index_add_(0, b, v)
    return (per_bin(conf)-per_bin((c==y).float())).abs().sum()/len(y)

def scores(p, y):
    nll = -p.gather(1, y[:,None]).clamp(min=1e-12).log().mean()
    return dict(acc=(p.argmax(1)==y).float().mean(), nll=nll, ece=ece(p, y))

def top(bank, q):
    "Class and cosine of the nearest row"
    _,rows,labels = stored(bank)
    s,j = (F.normalize(q)@rows.T).max(1)
    return labels[j],s

# ---- attention

def attend(s, onehot, beta, logw):
    "log p_c of z_c = log sum_{j in c} exp(beta s_j + log w_j)"
    a = beta*s+logw
    e = (a-a.amax(1, keepdim=True)).exp()@onehot
    return (e.clamp(min=1e-12)/e.sum(1, keepdim=True)).log()

def learn(f, params, y):
    "Choose parameters by the held-out likelihood"
    opt = torch.optim.LBFGS(params, max_iter=30, line_search_fn='strong_wolfe')
    def step():
        opt.zero_grad()
        loss = F.nll_loss(f(), y) + 1e-3*sum((p**2).sum() for p in params if p.numel()>4)
        loss.backward()
        return loss
    opt.step(step)

def attention(kind, s, q, y, onehot, slots):
    "A read of similarities [B,M] learned on held-out rows: a function of (similarities, queries)"
    lb,wt = torch.tensor([2.5], requires_grad=True),torch.zeros(3, requires_grad=kind!='plain')
    w = torch.zeros(q.shape[1], requires_grad=kind=='query')
    def read(s, q):
        logw = wt[0]*slots['hits'].log1p() - wt[1]*10*slots['age'] + wt[2]*((slots['right']+1)/(slots['hits']+2)).log()
        beta = F.softplus(lb.exp()+q@w)[:,None] if kind=='query' else lb.exp()
        return attend(s, onehot, beta, logw)
    learn(lambda: read(s, q), [o for o in (lb,wt,w) if o.requires_grad], y)
    return lambda s,q: read(s, q).detach().exp()

def vote(s, y, labels):
    "The vote of k neighbours: k, temperature and smoothing by the held-out likelihood"
    def votes(s, k, t, e):
        v,j = s.topk(min(k, s.shape[1]))
        p = torch.zeros(len(s), C).scatter_add_(1, labels[j], (v/t).softmax(1))
        return (1-e)*p + e/C
    grid = list(itertools.product((1, 5, 10, 20, 50), np.logspace(-2, 0, 9).tolist(), (.003, .01, .03, .1)))
    best = min(grid, key=lambda o: float(scores(votes(s, *o), y)['nll']))
    return lambda s,q: votes(s, *best)

def class_best(s, y, labels):
    "Softmax of each class's best similarity: the nearest row's class with a probability"
    own = F.one_hot(labels, C).T.bool()
    def best(s): return torch.stack([s.masked_fill(~o, -1).amax(1) for o in own], 1)
    lb = torch.tensor([2.5], requires_grad=True)
    b = best(s)
    learn(lambda: (lb.exp()*b).log_softmax(1), [lb], y)
    return lambda s,q: (lb.detach().exp()*best(s)).softmax(1)

def read_streams(f, place):
    "Name, stream and who asks: without drift, of a network that learns, of images that turn"
    s = f['stream']
    half = len(s['y'])//2
    moved = torch.cat([f['early'][place][:half], s[place][half:]])
    return [('none', s[place], s['y'], f['held'], f['test']), ('network', moved, s['y'], f['held'], f['test']),
            ('turning', f['turned'][place], s['y'], f['held_turned'], f['test_turned'])]

def share_and_cosine(s, labels, k=20, t=.1):
    "Class and confidence as the heads 'dual' and 'exit' have them with k=20"
    v,j = s.topk(k)
    p = torch.zeros(len(s), C).scatter_add_(1, labels[j], (v/t).softmax(1))
    return p.argmax(1),p.amax(1)*v[:,0]

def reads_of(bank, slots, q, y):
    "All ways to read a bank, each learned on held-out queries: name -> function of (similarities, queries)"
    at,rows,labels = stored(bank)
    onehot,s = F.one_hot(labels, C).float(),q@rows.T
    res = {'nearest row':class_best(s, y, labels), 'vote of k':vote(s, y, labels)}
    slots = {k:slots[k][at] for k in ('age','hits','right')}
    for k,kind in {'attention':'plain', 'attention, w':'weights', 'attention, w, beta(q)':'query'}.items():
        if kind=='plain' or bank.policy=='reservoir': res[k] = attention(kind, s, q, y, onehot, slots)
    return res,rows

def attention_bank(bank, x, y, held, test, place):
    "Method and figures of every read of a bank; half of the held-out rows learn the read, half choose the threshold"
    slots,n = fill(bank, x, y),len(held['y'])//2
    reads,rows = reads_of(bank, slots, F.normalize(held[place][:n]), held['y'][:n])
    sides = [(F.normalize(d[place][i:]), d['out'][i:].argmax(1), d['y'][i:]) for d,i in ((held,n), (test,0))]
    for m,read in reads.items():
        ps = [read(q@rows.T, q) for q,*_ in sides]
        res = [(p.argmax(1), p.amax(1), net, t) for p,(_,net,t) in zip(ps, sides)]
        yield f'{bank.policy}: {m}',dict(scores(ps[1], test['y']), **gate(*res))
        if m!='nearest row': continue
        res = [(c, (q@rows.T).amax(1), *o) for (c,*_),(q,*o) in zip(res, sides)]
        yield f'{bank.policy}: {m}, its cosine',dict(acc=(res[1][0]==test['y']).float().mean(), **gate(*res))
        res = [(*share_and_cosine(q@rows.T, stored(bank)[2]), *o) for q,*o in sides]
        yield f'{bank.policy}: 20 rows, share x cosine',dict(acc=(res[1][0]==test['y']).float().mean(), **gate(*res))

def attention_rows(f, cfg, seed):
    for place in ('tap','last'):
        for drift,x,y,held,test in read_streams(f, place):
            keys = dict(place=place, drift=drift)
            for policy in ('reservoir','fifo') if drift!='none' else ('reservoir',):
                bank = SlotBank(cfg['read'], policy=policy, seed=seed)
                for m,v in attention_bank(bank, x, y, held, test, place): yield dict(keys, method=m),v
            yield dict(keys, method='the network itself'),scores(test['out'].softmax(1), test['y'])

# ---- hierarchy

def streams(f, g, place='tap'):
    "Name, rows, classes, the network's classes and whether each row is judged as it comes"
    s,n = f['stream'],len(f['stream']['y'])
    net = s['out'].argmax(1)
    yield 'stationary',s[place],s['y'],net,False
    i = (s['y']//2).sort(stable=True).indices
    yield 'class-incremental',s[place][i],s['y'][i],net[i],False
    x = torch.cat([f['early'][place][:n//2], s[place][n//2:]])
    yield 'network drift',x,s['y'],net,False
    i,again = torch.arange(n),torch.rand(n, generator=g)<.3
    for t in again.nonzero().squeeze(1).tolist():       # a fresh image again: of the last 200, or of all before
        lo = max(0, t-200) if torch.rand((), generator=g)<.5 else 0
        i[t] = i[int(torch.randint(lo, t, (), generator=g))] if t else 0
    x = torch.where(again[:,None], f['noisy'][place][i], s[place][i])
    net = torch.where(again, f['noisy']['out'][i].argmax(1), net[i])
    yield '30 % repeats',x,s['y'][i],net,True

def judged(bank, r, y, net, online, f, place='tap'):
    "Accuracy and coverage of the nearest row: on the test set, or on the second half of the stream as it came"
    if online:
        n = len(y)//2
        sides = [(r['cls'][o], r['conf'][o], net[o], y[o]) for o in (slice(n), slice(n, None))]
    else: sides = [(*top(bank, f[k][place]), f[k]['out'].argmax(1), f[k]['y']) for k in ('held','test')]
    return dict(acc=(sides[1][0]==sides[1][3]).float().mean(), **gate(*sides))

def novelty_threshold(x, n):
    "Median cosine of the first rows to the nearest other one"
    z = F.normalize(x[:n])
    return float((z@z.T).fill_diagonal_(-1).amax(1).median())

def hierarchy_rows(f, cfg, seed):
    (new,long),dim = cfg['levels'],f['stream']['tap'].shape[1]
    for name,x,y,net,online in streams(f, torch.Generator().manual_seed(seed)):
        t = novelty_threshold(x, new+long)
        banks = {'newest + novel or mispredicted':Levels(new, long, dim, t),
                 'newest + reservoir':Levels(new, long, dim, t, 'reservoir', seed),
                 'flat, fifo':SlotBank(new+long, policy='fifo'),
                 'flat, reservoir':SlotBank(new+long, policy='reservoir', seed=seed),
                 'flat, newest of each class':Newest(new+long, dim), 'flat, CachedBank .8':CachedBank(new+long, C),
                 'flat, CachedBank at the median cosine':CachedBank(new+long, C, t)}
        for m,b in banks.items(): yield dict(stream=name, method=m),judged(b, fill(b, x, y), y, net, online, f)
    one,flat = Levels(new, 0, dim, t),SlotBank(new, policy='fifo')
    fill(one, x, y); fill(flat, x, y)
    assert torch.equal(one.features, flat.features) and torch.equal(one.labels, flat.labels)    # one level is flat

# ---- a learned write policy

class Learned(Rows):
    "Hard writes by a gate: of stored and offered rows the most worth stay"
    def __init__(self, size, dim, gate):
        super().__init__(size, dim)
        self.gate,self.age,self.hits,self.offered = gate,torch.zeros(size),torch.zeros(size),0
    def hit(self, at): self.hits.index_add_(0, at, torch.ones(len(at)))
    @torch.no_grad()
    def write(self, x, y):
        res,n = torch.full((len(x),), -1),len(self.labels)
        for i in range(0, len(x), 8): res[i:i+8] = self.some(F.normalize(x[i:i+8]), y[i:i+8], n)
        return last_only(res)
    def some(self, x, y, n):
        res,m,free = torch.full((len(x),), -1),len(x),min(n-self.seen, len(x))
        self.age,self.offered = self.age+m,self.offered+m
        at = self.seen+torch.arange(free)
        self.put(at, x[:free], y[:free])
        self.age[at],res[:free] = 0,at
        self.seen += free
        if free==m: return res
        rows = torch.cat([self.features, x[free:]])[None]
        onehot = F.one_hot(torch.cat([self.labels, y[free:]]), C).float()[None]
        age,hits = (torch.cat([o, torch.zeros(m-free)])[None] for o in (self.age,self.hits))
        worth = self.gate(row_features(rows, onehot, n, age, hits, self.offered, self.gate.log_beta.exp()))[0]
        keep = torch.zeros(n+m-free, dtype=torch.bool).index_fill_(0, worth.topk(n).indices, True)
        to,new = (~keep[:n]).nonzero().squeeze(1),keep[n:].nonzero().squeeze(1)+free
        self.put(to, x[new], y[new])
        self.age[to],self.hits[to],res[new] = 0,0,to
        return res

def gates(sets, root, quick):
    "A gate per data set and way of training, of a network, split and order that no test has; and its features"
    res = {}
    for d in sets:
        f = features(d, 1000, sets[d], root)
        for how,(make,rounds) in dict(soft=(meta_train, ROUNDS), hard=(evolve, 2*ROUNDS)).items():
            res[d,how] = make(f, 1000, rounds//10 if quick else rounds),f
    return res

def for_data(got, name):
    "The gates by what they were trained on, seen from one data set"
    return {f'learned by {how} writes on the {"same" if d==name else "other"} data':v
            for (d,how),v in sorted(got.items(), key=lambda o: o[0][0]!=name)}

def policy_rows(f, cfg, seed, learned):
    n,dim = cfg['policy'],f['stream']['tap'].shape[1]
    for name,x,y,net,online in streams(f, torch.Generator().manual_seed(seed)):
        if online: continue
        t = novelty_threshold(x, n)
        banks = {o:SlotBank(n, policy=o, seed=seed) for o in ('fifo', 'reservoir', 'rarity', 'diversity')}
        banks |= {'class-balanced reservoir':Balanced(n, dim, seed), 'newest of each class':Newest(n, dim),
                  'CachedBank .8':CachedBank(n, C), 'CachedBank at the median cosine':CachedBank(n, C, t)}
        banks |= {k:Learned(n, dim, g) for k,(g,_) in learned.items()}
        for m,b in banks.items(): yield dict(stream=name, method=m),judged(b, fill(b, x, y), y, net, online, f)

def retrieval_rows(f, cfg, seed, learned):
    "Temperature and threshold from elsewhere against those chosen on 200 to 1,000 held-out rows, for one reservoir"
    def bank_of(f):
        bank = SlotBank(cfg['policy'], policy='reservoir', seed=seed)
        fill(bank, f['stream']['tap'], f['stream']['y'])
        return bank
    def read(f, part, bank, beta):
        _,rows,labels = stored(bank)
        return attend(F.normalize(f[part]['tap'])@rows.T, F.one_hot(labels, C).float(), beta, 0.).exp()
    def side(f, part, p): return p.argmax(1),p.amax(1),f[part]['out'].argmax(1),f[part]['y']
    bank,lb = bank_of(f),torch.tensor([2.5], requires_grad=True)
    learn(lambda: read(f, 'held', bank, lb.exp()).log(), [lb], f['held']['y'])
    b = lb.detach().exp()
    h,p = (read(f, o, bank, b) for o in ('held','test'))
    v = dict(scores(p, f['test']['y']), **gate(side(f, 'held', h), side(f, 'test', p)))
    yield dict(method='chosen on held-out data'),v
    for k,(g,o) in learned.items():
        b = g.log_beta.detach().exp()
        h,p = read(o, 'held', bank_of(o), b),read(f, 'test', bank, b)
        yield dict(method=k),dict(scores(p, f['test']['y']), **gate(side(o, 'held', h), side(f, 'test', p)))

# ---- signature of the input

def repeated(n, share, g):
    "Positions of a stream: which image, and whether it came before (evenly among the last 500 of the stream)"
    new = iter(torch.randperm(n, generator=g).tolist())
    i,again = [],(torch.rand(n, generator=g)<share).tolist()
    again[0] = False
    for t in range(n): i.append(i[int(torch.randint(max(0, t-500), t, (), generator=g))] if again[t] else next(new))
    return torch.tensor(i),torch.tensor(again)

class Hash:
    "Answers by the exact bytes of the input, the newest 1,000"
    def __init__(self, size=1000): self.size,self.answers = size,{}
    def look(self, x): return [self.answers.get(o.tobytes(), -1) for o in x.numpy()]
    def keep(self, x, a):
        for o,c in zip(x.numpy(), a.tolist()): self.answers[o.tobytes()] = c
        while len(self.answers)>self.size: del self.answers[next(iter(self.answers))]

class Projection:
    "Answers by a random projection of the input to 64 numbers, the newest 1,000"
    def __init__(self, held, size=1000):
        x = held.flatten(1).float()
        self.mean,self.p = x.mean(0),torch.randn(x.shape[1], 64, generator=torch.Generator().manual_seed(0))
        self.rows,self.answers,self.n,self.size = torch.zeros(size, 64),torch.full((size,), -1),0,size
        z = self.code(held)
        near = (z@z.T).fill_diagonal_(-1).amax(1)
        self.t = float(near.quantile(.999))         # of two images that differ one pair of nearest in 1,000 passes
    def code(self, x): return F.normalize((x.flatten(1).float()-self.mean)@self.p)
    def look(self, x):
        self.z = self.code(x)
        if not self.n: return [-1]*len(x)
        s,j = (self.z@self.rows.T).max(1)
        return torch.where(s>=self.t, self.answers[j], -1).tolist()
    def keep(self, x, a):
        at = (self.n+torch.arange(len(x)))%self.size
        self.rows[at],self.answers[at] = self.code(x),a
        self.n += len(x)

@torch.no_grad()
def answer(model, level, x, net):
    "Answers of a level in front of a network for uint8 images, and which of them it gave"
    a = torch.tensor(level.look(x)) if level else torch.full((len(x),), -1)
    miss = (a<0).nonzero().squeeze(1)
    if len(miss):
        new = net(model, x[miss])
        if level: level.keep(x[miss], new)
        hit = a>=0
        a[miss] = new
        return a,hit
    return a,torch.ones(len(x), dtype=torch.bool)

def signature_rows(name, cfg, seed):
    x,y = images(name)
    n,g = min(2000, len(x)//3),torch.Generator().manual_seed(seed)
    parts = torch.randperm(len(x), generator=g)[:sum(cfg['n'])].split(cfg['n'])
    rest = torch.cat(parts[1:])
    model,_ = train(x[parts[0]], y[parts[0]], cfg['epochs'], seed)
    u = (x*255).round().to(torch.uint8)
    def net(model, x): return model(x.float()/255).argmax(1)
    for share in (0., .1, .3):
        i,again = repeated(n, share, g)
        for noise in (0, 2, 8) if share else (0,):
            s = u[rest[i]].float()
            s[again] += noise*torch.randn(s[again].shape, generator=g)
            s = s.round().clamp(0, 255).to(torch.uint8)
            t = y[rest[i]]
            with torch.no_grad(): own = torch.cat([net(model, o) for o in s.split(256)])
            for kind,level in {'exact hash':Hash(), 'projection':Projection(u[parts[0]][:2000])}.items():
                a,hit = (torch.cat(o) for o in zip(*(answer(model, level, o, net) for o in s.split(8))))
                right = [(o==t).float().mean() for o in (a, own)]
                yield dict(repeats=share, noise=noise, method=kind),dict(hit=hit.float().mean(),
                    found=(hit&again).sum()/again.sum().clamp(min=1), false=(hit&~again).float().mean(),
                    changed=(a!=own).float().mean(), gain=right[0]-right[1])

@torch.no_grad()
def speed_rows(name, seed, quick):
    "CPU time with a level as a multiple of the plain network's: resnet18 at 32 px, the two in turn, after a warm-up"
    from torchvision.models import resnet18
    x,_ = images(name)
    g = torch.Generator().manual_seed(seed)
    x = F.interpolate(x[torch.randperm(len(x), generator=g)[:3200]], 32, mode='bilinear')
    model,u = resnet18(num_classes=C).eval(),(x*255).round().to(torch.uint8)
    def net(model, x): return model((x.float()/255).expand(-1, 3, -1, -1)).argmax(1)
    for bs,n in ((1, 40 if quick else 100),(128, 128*(2 if quick else 6))):
        for share in (0., .1, .3):
            i,_ = repeated(n, share, g)
            for kind in ('exact hash','projection'):
                level,times = Hash() if kind=='exact hash' else Projection(u[-600:]),([],[])
                for o in u[i].split(bs):
                    for k in (0,1) if len(times[0])%2 else (1,0):
                        t = time.thread_time()
                        answer(model, (None,level)[k], o, net)
                        times[k].append(time.thread_time()-t)
                a,b = (1e3*sum(o[1:])/(n-bs) for o in times)
                yield dict(batch=bs, repeats=share, method=kind),dict(plain=a, level=b, speed=a/b)

# ---- tables

def fmt(v, k):
    if k in ('acc','cover','ece','excess','hit','found','false','changed','gain'): v = [100*o for o in v]
    d = 3 if k=='nll' else 2
    return f'{statistics.median(v):.{d}f} ({min(v):.{d}f} to {max(v):.{d}f})' if len(v)>1 else f'{v[0]:.{d}f}'

heads = dict(acc='accuracy, %', nll='NLL', ece='ECE, %', cover='coverage, %', excess='excess error, %', hit='hits, %',
             found='repeats found, %', false='false hits, %', changed='answers that differ, %',
             gain="accuracy less the network's, %", plain='plain, CPU ms an image', level='with it, CPU ms an image',
             speed='times as fast')

def table(rows):
    "Medians over seeds (least to greatest) of rows of (keys, seed, figures)"
    by = defaultdict(list)
    for k,_,v in rows: by[tuple(k.items())].append(v)
    cols = [o for o in heads if any(o in v for _,_,v in rows)]
    names = list(rows[0][0])
    res = [f"| {' | '.join(names+[heads[o] for o in cols])} |", '|---'*(len(names)+len(cols))+'|']
    for k,vs in by.items():
        cells = [str(o) for _,o in k]+[fmt([float(v[o]) for v in vs], o) if o in vs[0] else '' for o in cols]
        res.append(f"| {' | '.join(cells)} |")
    return '\n'.join(res)

T = {2:12.71, 3:4.303, 4:3.182, 5:2.776}        # of a 95 % interval of a mean, by the number of seeds

def paired(rows, idea, rivals, metric):
    "Differences over seeds to the rival that the idea leads least: its name, median, interval of the mean"
    def of(m): return {s:float(v[metric]) for k,s,v in rows if k['method']==m}
    res = []
    for r in rivals:
        a,b = of(idea),of(r)
        d = [(100 if metric!='nll' else -1)*(a[s]-b[s]) for s in a]
        half = T[len(d)]*statistics.stdev(d)/math.sqrt(len(d))
        res.append((statistics.mean(d)-half, statistics.mean(d)+half, statistics.median(d), r))
    return min(res)

def verdicts(rows, ideas, rivals, metrics):
    "A line per idea and setting; the lower end above 0 is what a win takes"
    by = defaultdict(list)
    for k,s,v in rows: by[tuple((a,b) for a,b in k.items() if a!='method')].append((k,s,v))
    names = [a for a,_ in next(iter(by))]
    cols = [heads[m].split(',')[0]+': against, median (95 % interval)' for m in metrics]
    res = [f"| {' | '.join(names)} | idea | {' | '.join(cols)} |", '|---'*(len(names)+1+len(metrics))+'|']
    for key,rs in by.items():
        for i in ideas:
            cells = []
            excess = [float(v['excess']) for k,_,v in rs if k['method']==i and 'excess' in v]
            for m in metrics:
                lo,hi,med,r = paired(rs, i, [o for o in rivals if any(k['method']==o and m in v for k,_,v in rs)], m)
                won = lo>0 and not (m=='cover' and statistics.median(excess)>EPS)   # more error is no gain
                cells.append(f"{r}: {med:+.2f} ({lo:+.2f} to {hi:+.2f}){' **win**' if won else ''}")
            res.append(f"| {' | '.join(str(b) for _,b in key)} | {i} | {' | '.join(cells)} |")
    return '\n'.join(res)

def over(all_f, seeds, sets, f):
    return [(dict(data=d, **k),s,v) for d in all_f for s in seeds for k,v in f(d, all_f[d][s], sets[d], s)]

def main(parts, quick, root):
    seeds,sets,page = [0,1] if quick else [0,1,2,3,4],QUICK if quick else SETS,[]
    def say(*o): page.append('\n\n'.join(o)); print(page[-1]+'\n', flush=True)
    all_f = {d:{s:features(d, s, sets[d], root) for s in seeds} for d in sets}
    if 'attention' in parts:
        rows = over(all_f, seeds, sets, lambda d,f,c,s: attention_rows(f, c, s))
        ideas = ['reservoir: attention', 'reservoir: attention, w', 'reservoir: attention, w, beta(q)']
        reads = 'nearest row','nearest row, its cosine','vote of k'
        rivals = [f'{p}: {m}' for p in ('reservoir','fifo') for m in reads]
        say('## Attention', table(rows), *[verdicts(rows, [o], rivals+ideas[:i]+['fifo: attention'][:i],
                                                    ('acc','nll','cover')) for i,o in enumerate(ideas)],
            verdicts(rows, ['reservoir: 20 rows, share x cosine','reservoir: vote of k','reservoir: attention'],
                     ['reservoir: nearest row, its cosine'], ('acc','cover')))
    if 'hierarchy' in parts:
        rows = over(all_f, seeds, sets, lambda d,f,c,s: hierarchy_rows(f, c, s))
        names = list(dict.fromkeys(k['method'] for k,_,_ in rows))
        say('## Hierarchy', table(rows), verdicts(rows, names[:2], names[2:], ('acc','cover')),
            verdicts(rows, names[-1:], names[-2:-1], ('acc','cover')))
    if 'policy' in parts:
        got = gates(sets, root, quick)
        rows = over(all_f, seeds, sets, lambda d,f,c,s: policy_rows(f, c, s, for_data(got, d)))
        names = list(dict.fromkeys(k['method'] for k,_,_ in rows))
        say('## Learned write policy', table(rows), verdicts(rows, names[-4:], names[:-4], ('acc','cover')),
            verdicts(rows, names[-5:-4], names[-6:-5], ('acc','cover')))
        rows = over(all_f, seeds, sets, lambda d,f,c,s: retrieval_rows(f, c, s, for_data(got, d)))
        say('## Learned retrieval', table(rows),
            verdicts(rows, names[-4:], ['chosen on held-out data'], ('acc','nll','cover')))
    if 'signature' in parts:
        say('## Signature of the input', table(over(all_f, seeds, sets, lambda d,f,c,s: signature_rows(d, c, s))),
            table(over(all_f, seeds, sets, lambda d,f,c,s: speed_rows(d, s, quick))))
    return '\n\n'.join(page)

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('parts', nargs='*', default=[])
    p.add_argument('--quick', action='store_true', help='two seeds, shorter streams')
    p.add_argument('--features', help='folder in which features are kept from run to run')
    a = p.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as tmp:
        w = time.process_time()
        text = main(a.parts or ['attention','hierarchy','policy','signature'], a.quick, a.features or tmp)
    if not a.quick and not a.parts:
        how = f'torch {torch.__version__}, {time.process_time()-w:.0f} s of CPU time on one thread'
        Path(__file__).with_name('future_work.md').write_text(f'`python benchmarks/future_work.py`, {how}\n\n{text}\n')
