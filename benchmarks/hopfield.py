"""What a Hopfield lookup costs. One command,

    python benchmarks/hopfield.py [--part lookup|network] [--quick]

The lookup: 16 images of 197 tokens, 768 wide, 1,000 slots that all share: the function `hopfield` against
`F.scaled_dot_product_attention` over the same shared keys, and the layer `HopfieldLookup` against the same norms, three
products, attention and output written out in bare torch; forward, and forward with backward, with one head and twelve.
Beside them, as multiples of the same bare layer: the lookup in evaluation, which keeps its keys; the published layers'
formulas, which copy the memory for each image before they norm and project it; the seed's layer; a timm block of that
width.

The network: ViT-tiny at 224 px with 1,000 learned patterns in every block, in the last three, for the class token only,
and beside them prompts in every block (VPT-deep), against the same network with a new classifier alone; forward in
evaluation, forward with backward of what is trained while the backbone is frozen, and, once, of everything; and what is
kept for the backward pass, in megabytes.

CPU time of all threads, in turn; medians, and the median of the ratios with its quartiles. Writes hopfield.md, of which
one part alone leaves the other as it is. About fifteen minutes; `--quick`, narrower or with smaller batches and fewer
rounds, under two for each part, which writes nothing."""
import argparse,os,time
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
from statistics import median,quantiles
import torch
from torch import nn
from torch.nn import functional as F
from memo.layers.associate import hopfield
from memo.layers.hopfield import HopfieldLookup
from memo.models.hopfield_vit import hopfield_vit
from memo.models.prompts import vpt
from memo.models.vit import linear_probe

B,L,S = 16,197,1000

def in_turn(ours, bare, rounds):
    "CPU milliseconds of both, and quartiles of the ratio"
    a,b = [],[]
    for i in range(rounds+1):
        for t,f in ((a,ours),(b,bare))[::1 if i%2 else -1]:
            start = time.process_time()
            f()
            t.append(1e3*(time.process_time()-start))
    a,b = a[1:],b[1:]       # the first are for warming up
    return median(a),median(b),quantiles([x/y for x,y in zip(a, b)], n=4)

def forward(f):
    def run():
        with torch.no_grad(): f()
    return run

def both(f, *leaves):
    def run():
        for o in leaves: o.grad = None
        f().sum().backward()
    return run

class Bare(nn.Module):
    "Norms, projections of states and of the one memory, attention, output: nothing else"
    def __init__(self, d, heads):
        super().__init__()
        self.heads,self.patterns = heads,nn.Parameter(.02*torch.randn(S, d))
        self.norms = nn.ModuleList([nn.LayerNorm(d) for _ in range(3)])
        self.q,self.k,self.v,self.out = (nn.Linear(d, d) for _ in range(4))
    def split(self, x): return x.view(1, -1, self.heads, x.shape[-1]//self.heads).transpose(1, 2)
    def memory(self, m): return self.split(self.k(self.norms[1](m))),self.split(self.v(self.norms[2](m)))
    def forward(self, x):
        q,(k,v) = self.split(self.q(self.norms[0](x))),self.memory(self.patterns)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(x.shape))

class Published(Bare):
    "The official lookup: its memory is copied for each image, then normed and projected; weights are in full"
    def forward(self, x):
        q = self.q(self.norms[0](x))
        m = self.patterns.expand(len(x), -1, -1)
        k,v = self.k(self.norms[1](m)),self.v(self.norms[2](m))
        q,k,v = (o.unflatten(-1, (self.heads,-1)).transpose(1, 2) for o in (q,k,v))
        y = torch.softmax(q*q.shape[-1]**-.5@k.mT, -1)@v
        return self.out(y.transpose(1, 2).flatten(2))

class Seed(nn.Module):
    "The seed's layer: LN(x + softmax(beta (xWq) M^T) V), keys and values as they are"
    def __init__(self, d):
        super().__init__()
        self.q,self.norm = nn.Linear(d, d, bias=False),nn.LayerNorm(d)
        self.log_beta = nn.Parameter(torch.tensor(.125).log())
        self.keys,self.values = (nn.Parameter(torch.randn(1, S, d)) for _ in range(2))
    def forward(self, x):
        a = torch.softmax(self.q(x)@self.keys.mT*self.log_beta.exp(), -1)
        return self.norm(x+a@self.values)

def functions(d, heads, rounds):
    q = torch.randn(B, L, heads, d//heads).transpose(1, 2).requires_grad_()
    k,v = (torch.randn(1, heads, S, d//heads).requires_grad_() for _ in range(2))
    def bare():
        y = F.scaled_dot_product_attention(q.transpose(0, 1).reshape(1, heads, B*L, -1), k, v)
        return y.view(heads, B, L, -1).transpose(0, 1)
    def ours(): return hopfield(q, k, v)
    torch.testing.assert_close(ours(), bare())
    yield f'hopfield(q, k, v), {heads} heads, forward',*in_turn(forward(ours), forward(bare), rounds)
    yield 'the same, forward and backward',*in_turn(both(ours, q, k, v), both(bare, q, k, v), rounds)

def same_weights(m, bare):
    with torch.no_grad():
        m.patterns.copy_(bare.patterns)
        for a,b in zip((*m.norms.values(),*m.to_heads.values(),m.out), (*bare.norms,bare.q,bare.k,bare.v,bare.out)):
            a.load_state_dict(b.state_dict())

def layers(d, heads, rounds, others):
    from timm.models.vision_transformer import Block
    x,bare = torch.randn(B, L, d, requires_grad=True),Bare(d, heads)
    lookup = HopfieldLookup(d, size=S, heads=heads)
    same_weights(lookup, bare)
    torch.testing.assert_close(lookup(x), bare(x))
    copied = Published(d, heads)
    copied.load_state_dict(bare.state_dict())
    torch.testing.assert_close(copied(x[:2]), bare(x[:2]))
    rows = [(f'HopfieldLookup, {heads} heads',lookup,rounds)]
    if others: rows += [(n,m,rounds//3) for n,m in
                        (('published formulas',copied),('seed',Seed(d)),('timm block',Block(d, 12)))]
    for name,m,n in rows:
        def ours(): return m(x)
        def base(): return bare(x)
        yield f'{name}, forward',*in_turn(forward(ours), forward(base), n)
        trained = both(ours, x, *m.parameters()),both(base, x, *bare.parameters())
        yield 'the same, forward and backward',*in_turn(*trained, n)
        if m is lookup:
            m.eval()
            yield 'the same in evaluation, keys kept',*in_turn(forward(ours), forward(base), n)
            m.train()

def kept(model, x):
    "Megabytes of tensors that a forward in training keeps for its backward, parameters apart"
    own,seen = {p.untyped_storage().data_ptr() for p in model.parameters()},{}
    def note(t):
        s = t.untyped_storage()
        if s.data_ptr() not in own: seen[s.data_ptr()] = s.nbytes()
        return t
    alive = []      # storages that are still there have addresses of their own
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (alive.append(t), note(t))[1], lambda t: t):
        out = model(x).sum()
    return sum(seen.values())/2**20,out

arch = 'vit_tiny_patch16_224'
networks = {
    'memory in every block':lambda **kw: hopfield_vit(arch, 10, **kw),
    'memory in every block, for the class token':lambda **kw: hopfield_vit(arch, 10, tokens='cls', **kw),
    'memory in the last 3 blocks':lambda **kw: hopfield_vit(arch, 10, blocks=3, **kw),
    'memory in the last 3 blocks, for the class token':lambda **kw: hopfield_vit(arch, 10, blocks=3, tokens='cls',
                                                                                 **kw),
    'VPT-deep, 10 prompts':lambda **kw: vpt(arch, 10, deep=True)}

def seeded(make, **kw):
    torch.manual_seed(0)
    return make(**kw)

def trained(model, x):
    ps = [p for p in model.parameters() if p.requires_grad]
    return both(lambda: model(x), *ps)

def against(name, model, bare, x, rounds):
    "Both in evaluation, then both in training"
    for m in (model,bare): m.eval()
    with torch.no_grad(): same = torch.equal(model(x), bare(x))
    if 'memory' in name: assert same, f'{name} is no identity'
    yield f'{name}, forward',*in_turn(forward(lambda: model(x)), forward(lambda: bare(x)), rounds),''
    for m in (model,bare): m.train()
    mb = ' and '.join(f'{kept(m, x)[0]:.0f}' for m in (model,bare))
    yield 'the same, forward and backward',*in_turn(trained(model, x), trained(bare, x), rounds),mb

def network_table(quick):
    yield (f'ViT-tiny, 224 px, {S} patterns a memory; CPU ms of {torch.get_num_threads()} thread(s), medians; bare: a '
           'frozen network with a new classifier\n')
    yield '| batch | what | ms | bare ms | ratio [quartiles] | MB kept, bare |\n|---|---|---|---|---|---|'
    def row(b, what, a, base, q, mb):
        return f'| {b} | {what} | {a:.1f} | {base:.1f} | {q[1]:.3f} [{q[0]:.3f}, {q[2]:.3f}] | {mb} |'
    sizes = {1:5,4:3} if quick else {1:25,8:11,32:7}
    for b,rounds in sizes.items():
        x,bare = torch.randn(b, 3, 224, 224),seeded(lambda: linear_probe(arch, 10))
        for name,make in networks.items():
            for r in against(name, seeded(make), bare, x, rounds): yield row(b, *r)
        full = seeded(lambda: linear_probe(arch, 10, freeze=False)).train()
        model = seeded(networks['memory in every block'], freeze=False).train()
        mb = ' and '.join(f'{kept(m, x)[0]:.0f}' for m in (model,full))
        yield row(b, 'memory in every block, all is trained, against all of the bare network',
                  *in_turn(trained(model, x), trained(full, x), rounds), mb)

def lookup_table(quick):
    torch.manual_seed(0)
    d,rounds = (192,9) if quick else (768,15)
    yield f'{B} x {L} tokens, {d} wide, {S} slots; CPU ms of {torch.get_num_threads()} thread(s), medians\n'
    yield '| what | ms | bare ms | ratio [quartiles] |\n|---|---|---|---|'
    heads = (1,3 if quick else 12)
    for rows in (*(functions(d, h, rounds) for h in heads),*(layers(d, h, rounds, h==heads[-1]) for h in heads)):
        for what,a,b,(q1,q2,q3) in rows: yield f'| {what} | {a:.1f} | {b:.1f} | {q2:.3f} [{q1:.3f}, {q3:.3f}] |'

parts = dict(lookup=('One lookup',lookup_table), network=('A whole network',network_table))

def sections(text):
    "Heading -> lines of a page"
    return {o.partition('\n')[0]:o.partition('\n')[2].strip() for o in text.split('\n## ')[1:]}

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--part', choices=parts, help='this one only')
    p.add_argument('--quick', action='store_true', help='smaller, fewer rounds; writes nothing')
    o,file = p.parse_args(),Path(__file__).with_suffix('.md')
    page = sections(file.read_text()) if file.exists() else {}
    for name in [o.part] if o.part else parts:
        head,table = parts[name]
        lines = []
        for line in table(o.quick):
            print(line, flush=True)
            lines.append(line)
        page[head] = '\n'.join(lines)
        print()
    order = [h for h,_ in parts.values() if h in page]
    text = ''.join(f'\n## {h}\n\n{page[h]}\n' for h in order)
    if not o.quick: file.write_text('# What a Hopfield lookup costs\n'+text)
