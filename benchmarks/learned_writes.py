"""A write policy that is learned: a row's worth from six numbers, trained through soft writes or on hard ones. Used by
future_work.py, which says what came of it."""
import math,torch
from torch import nn
from torch.nn import functional as F

C = 10      # classes

class Gate(nn.Module):
    "What a row is worth, from [novelty, margin, loss, age, hits, class quota error]; and the read's beta"
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
        self.log_beta = nn.Parameter(torch.tensor(2.5))
    def forward(self, phi): return self.net(phi).squeeze(-1)

@torch.no_grad()
def row_features(rows, onehot, n, age, hits, t, beta):
    "phi [E,N,6] of stored rows (the first n) and candidates, each against the stored rows but itself, after t rows"
    s = rows@rows[:,:n].transpose(1, 2)
    eye = torch.eye(s.shape[1], n, dtype=torch.bool)
    agree = (onehot@onehot[:,:n].transpose(1, 2)).masked_fill(eye, 0)
    s = s.masked_fill(eye, -1)
    own,other = (s.masked_fill(o, -1).amax(2) for o in (agree<.5, agree>=.5))
    loss = -((beta*s).softmax(2)*agree).sum(2).clamp(min=1e-4).log()
    share = (onehot@onehot[:,:n].mean(1)[:,:,None]).squeeze(2)
    quota = share*(onehot[:,:n].sum(1)>.5).sum(1, keepdim=True)-1
    rate = (n*hits/(age+n)).log1p()     # free of the bank's and the stream's length, which differ in use
    return torch.stack([1-s.amax(2), own-other, loss/3, age/t, rate, quota.clamp(max=3)], 2)

def episode(y, steps, e, g):
    "Orders of e streams [e,steps]; of every three the first is sorted by pairs of classes"
    i = torch.stack([torch.randperm(len(y), generator=g)[:steps] for _ in range(e)])
    for k in range(0, e, 3): i[k] = i[k][(torch.randperm(C, generator=g)[y[i[k]]]//2).sort(stable=True).indices]
    return i

def soft_write(model, keys, vals, age, hits, x, v, t):
    "K <- (1-w a) K + w a x, where a is what the rows in the bank are worth least and w what the new one is worth more"
    n = keys.shape[1]
    def with_one(o): return torch.cat([o, torch.zeros(len(o), 1)], 1)
    rows,vs = torch.cat([keys, x], 1),torch.cat([vals, v], 1)
    worth = model(row_features(rows, vs, n, with_one(age), with_one(hits), t, model.log_beta.exp()))
    a = (-worth[:,:n]/.2).softmax(1)
    w = (worth[:,n]-(a*worth[:,:n]).sum(1)).div(.2).sigmoid()
    wa = (w[:,None]*a)[:,:,None]
    kept = 1-wa.detach()[:,:,0]
    return F.normalize((1-wa)*keys+wa*x, dim=2),(1-wa)*vals+wa*v,age*kept,hits*kept

def inner_streams(f, steps, e, g, place='tap'):
    "Rows [e,steps,D] and one-hot classes of streams: by class, shuffled, with a network that changes half-way"
    i = episode(f['stream']['y'], steps, e, g)
    x,v = F.normalize(f['stream'][place])[i],F.one_hot(f['stream']['y'][i], C).float()
    x[2::3,:steps//2] = F.normalize(f['early'][place])[i[2::3,:steps//2]]
    return x,v

def read_loss(beta, keys, vals, f, seen, g, place='tap'):
    "Cross-entropy [E] of a read of held-out rows, of the classes that have come"
    j = torch.randint(len(f['held']['y']), (128,), generator=g)
    q,y = F.normalize(f['held'][place][j]),f['held']['y'][j]
    seen = seen[:,y]>0
    z = ((beta*(q@keys.transpose(1, 2))).softmax(2)@vals).clamp(min=1e-6).log()
    return -(z.gather(2, y.expand(len(keys), -1)[:,:,None]).squeeze(2)*seen).sum(1)/seen.sum(1).clamp(min=1)

def begun(x, v, n):
    "Keys, values, age and hits of full banks"
    age = torch.arange(n).flip(0).expand(len(x), n).float()
    return x[:,:n].clone(),v[:,:n].clone(),age,torch.zeros(len(x), n)

def meta_train(f, seed, rounds, e=16, n=64, steps=160, cut=40):
    "A gate trained through soft writes so that later reads are right, truncated to `cut` of them"
    torch.manual_seed(seed)
    g,model = torch.Generator().manual_seed(seed),Gate()
    opt = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(rounds):
        x,v = inner_streams(f, n+steps, e, g)
        keys,vals,age,hits = begun(x, v, n)
        for t in range(n, n+steps):
            age = age+1
            near = (x[:,t:t+1]@keys.detach().transpose(1, 2)).argmax(2)
            hits = hits.scatter_add(1, near, torch.ones(e, 1))
            keys,vals,age,hits = soft_write(model, keys, vals, age, hits, x[:,t:t+1], v[:,t:t+1], t+1)
            if (t-n+1)%cut: continue
            loss = read_loss(model.log_beta.exp(), keys, vals, f, v[:,:t+1].sum(1), g).mean()
            opt.zero_grad(); loss.backward(); opt.step()
            keys,vals = keys.detach(),vals.detach()
    return model.eval()

class Gates:
    "Many gates at once, from their parameters [P,130]; streams are in P groups of equal size"
    def __init__(self, theta):
        shapes = (), (16,6), (16,), (1,16), (1,)        # those of a Gate
        self.p = [o.reshape(len(theta), *s) for o,s in zip(theta.split([math.prod(s) for s in shapes], 1), shapes)]
    def beta(self, n): return self.p[0].exp().repeat_interleave(n//len(self.p[0]))[:,None,None]
    def __call__(self, phi):
        _,w,b,w2,b2 = self.p
        h = torch.einsum('penf,phf->penh', phi.reshape(len(w), -1, *phi.shape[1:]), w)+b[:,None,None]
        return ((h.tanh()@w2.transpose(1, 2)[:,None]).squeeze(-1)+b2[:,None]).reshape(phi.shape[:2])

@torch.no_grad()
def hard_run(f, gates, x, v, n, g, bs=8):
    "Mean of the read losses [E] half-way and at the end of streams that hard writes store"
    keys,vals,age,hits = begun(x, v, n)
    res,beta = [],gates.beta(len(x))
    for t in range(n, x.shape[1], bs):
        new = x[:,t:t+bs]
        hits.scatter_add_(1, (new@keys.transpose(1, 2)).argmax(2), torch.ones(new.shape[:2]))
        rows,vs = torch.cat([keys, new], 1),torch.cat([vals, v[:,t:t+bs]], 1)
        age,hits = (torch.cat([o, torch.zeros(new.shape[:2])], 1) for o in (age+new.shape[1],hits))
        i = gates(row_features(rows, vs, n, age, hits, t+bs, beta)).topk(n, dim=1).indices
        keys,vals = (o.gather(1, i[:,:,None].expand(-1, -1, o.shape[2])) for o in (rows,vs))
        age,hits = age.gather(1, i),hits.gather(1, i)
        if t+bs>=x.shape[1] or t<(n+x.shape[1])//2<=t+bs:
            res.append(read_loss(beta, keys, vals, f, v[:,:t+bs].sum(1), g))
    return sum(res)/len(res)

def evolve(f, seed, rounds, e=6, n=64, steps=384, pairs=8, sigma=.1):
    "The same gate trained on hard writes, by an evolution strategy with antithetic pairs (Salimans et al. 2017)"
    torch.manual_seed(seed)
    g,model = torch.Generator().manual_seed(seed),Gate()
    theta = nn.Parameter(nn.utils.parameters_to_vector(model.parameters()).detach())
    opt = torch.optim.Adam([theta], 3e-2)
    for _ in range(rounds):
        x,v = inner_streams(f, n+steps, e, g)
        d = torch.randn(pairs, len(theta), generator=g)
        x,v = (o.repeat(2*pairs, 1, 1) for o in (x,v))
        loss = hard_run(f, Gates(theta.detach()+sigma*torch.cat([d, -d])), x, v, n, g).reshape(2*pairs, e).mean(1)
        rank = loss.argsort().argsort().float()/(2*pairs-1)-.5
        theta.grad = ((rank[:pairs]-rank[pairs:])[:,None]*d).mean(0)/sigma
        opt.step()
    nn.utils.vector_to_parameters(theta.detach(), model.parameters())
    return model.eval()
