"""Indexed search in a million rows against exact search, and what compressed banks keep. One command,
`python benchmarks/index.py [million|compressed|mapped] [--quick]`; writes index.md, compressed.md and mapped.md.

The million: `--clusters` Gaussian clusters in `--dim` dimensions, whose centres are of length 1 in expectation and
whose spread is drawn for each from a half to all of `--spread` times that; queries are drawn from the
same. Exact and indexed reads are timed in turn, process CPU time and wall time; a figure is the median, the ratio the
median of the pairs.

mapped (only where it is named): a bank's file that is larger than the machine's memory, `--gib`, is written to a
folder, `--folder`, loaded with `mmap=True` and searched for rows that are in it."""
import os
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')     # before torch: idle threads sleep, and count no CPU time
import argparse, json, resource, tempfile, time
from pathlib import Path
import torch
from fastai.vision.all import CrossEntropyLossFlat, Learner, accuracy, set_seed
from memo.all import Bank, MemoError, SlotBank, fashion_lt, small_cnn
from memo.banks.search import searchers
from memo.banks.codecs import codecs

def clusters(dim, c, most=1., seed=0):
    "A function that gives so many rows of clustered Gaussians, and their clusters"
    g = torch.Generator().manual_seed(seed)
    centres,spread = torch.randn(c, dim, generator=g)/dim**.5,most*(.5+.5*torch.rand(c, generator=g))
    def draw(n, seed):
        g = torch.Generator().manual_seed(seed)
        y = torch.randint(0, c, (n,), generator=g)
        return centres[y]+spread[y][:,None]*torch.randn(n, dim, generator=g)/dim**.5,y
    return draw

def clustered_bank(n, dim, c, most=1., classes=10):
    draw,bank = clusters(dim, c, most),SlotBank(n, dim, policy='fifo')
    for lo in range(0, n, 65536):
        x,y = draw(min(65536, n-lo), 1+lo)
        bank.write(x, y%classes, item=torch.arange(lo, lo+len(x)))
    return bank,draw

def timed(f):
    cpu,wall = time.process_time(),time.perf_counter()
    f()
    return time.process_time()-cpu,time.perf_counter()-wall

def median(v): return torch.tensor(v).median(0).values.tolist()
def table(head, rows):
    return '\n'.join([f"| {' | '.join(head)} |", '|'+'---|'*len(head),
                      *(f"| {' | '.join(map(str, o))} |" for o in rows)])

def million(n, dim, c, most, kind, times):
    bank,draw = clustered_bank(n, dim, c, most)
    queries = draw(512, 7**9)[0].split(128)
    want = torch.cat([bank.read(q, 1).similarity for q in queries])
    cpu = time.process_time()
    index = bank.index(kind)
    cpu,peak = time.process_time()-cpu,resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20
    recall = float((torch.cat([bank.read(q, 1).similarity for q in queries])>=want-1e-5).float().mean())
    def read(q, through):
        if through: searchers[bank] = index
        else: searchers.pop(bank, None)
        return timed(lambda: bank.read(q, 1))
    rows = []
    for bs in (1,128):
        qs = [draw(bs, 10**6+i)[0] for i in range(times+1)]
        a,b = zip(*[(read(q, False),read(q, True)) for q in qs][1:])
        ratio = median([[x/y for x,y in zip(*o)] for o in zip(a, b)])
        (ac,aw),(bc,bw) = median(a),median(b)
        rows.append((bs, f'{ac*1e3:.1f}', f'{bc*1e3:.2f}', f'{ratio[0]:.0f}', f'{aw*1e3:.1f}', f'{bw*1e3:.2f}',
                     f'{ratio[1]:.0f}', f'{recall:.3f}'))
    about = (f"{n:,} rows of {dim} numbers in {c:,} clusters; {index.kind}, {index.faiss.nlist} lists, of which a "
             f"query looks through {index.probes}; recall@1 of 512 new queries {recall:.3f}. Built in {cpu:.0f} s of "
             f"CPU time ({index.seconds:.0f} s), {index.bytes/2**20:.0f} MiB beside the "
             f"{bank.features.nbytes/2**20:.0f} MiB of the rows (the process had {peak:.1f} GiB at most).")
    return about,table(['batch','exact, CPU ms','indexed, CPU ms','ratio','exact, wall ms','indexed, wall ms','ratio',
                        'recall@1'], rows)

def synthetic(n, dim):
    bank,draw = clustered_bank(n, dim, 200)
    return f'{n:,} x {dim}, 200 clusters',bank,draw(500, 7**9)[0]

def fashion(n, epochs):
    "Features, in front of the classifier, of a small network trained on Fashion-MNIST; queries: validation images"
    set_seed(0)
    dls = fashion_lt(ratio=1, n_max=n//10)
    learn = Learner(dls, small_cnn(1, 10), loss_func=CrossEntropyLossFlat(), metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 3e-3)
    model = learn.model.eval().cpu()
    def features(dl):
        out,last = [],[m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]
        hook = last.register_forward_pre_hook(lambda m, x: out.append(x[0].detach()))
        ys = []
        with torch.no_grad():
            for x,y in dl:
                model(x)
                ys.append(y)
        hook.remove()
        return torch.cat(out).as_subclass(torch.Tensor),torch.cat(ys).as_subclass(torch.Tensor)
    x,y = features(dls.train.new(shuffle=False, drop_last=False))
    bank = SlotBank(len(x), policy='fifo')
    bank.write(x, y, item=torch.arange(len(x)))
    q = features(dls.valid)[0][:500]
    return f'Fashion-MNIST features, {len(x):,} x {x.shape[1]}',bank,q

def compressed(sets, times):
    rows = []
    for make in sets:
        name,bank,q = make()
        reads = {'as it is':bank}
        for mb in (.25,.5,1,2): reads[f'mb={mb:g}'] = bank.compress(mb, queries=q)
        for codec in codecs:
            for mb in (1,2,4,8,16,32):      # the first that it fits into
                try: reads[f"mb={mb:g}, codec='{codec}'"] = bank.compress(mb, codec, queries=q)
                except MemoError: continue
                break
        print(name, [*reads], flush=True)
        took = {k:[] for k in reads}
        for _ in range(times+1):
            for k,b in reads.items(): took[k].append(timed(lambda: b.read(q[:128], 1))[0]*1e3)
        for k,b in reads.items():
            s = b.stats()
            if k=='as it is':
                s.update(codec='-', bytes_per_slot=s['megabytes']*2**20/len(b), recall=1., label_agreement=1.)
            rows.append((name, k, s['codec'], f"{s['megabytes']:.2f}", f"{s['bytes_per_slot']:.1f}",
                         f"{s['recall']:.3f}", f"{s['label_agreement']:.3f}",
                         f'{float(torch.tensor(took[k][1:]).median()):.2f}'))
    return table(['bank','compress','codec','MiB','bytes a row','recall@1','label agreement','read 128, CPU ms'], rows)

def write_large(path, n, dim, draw):
    "The file of a full bank, a stretch of rows at a time, as its features would not fit into memory"
    with torch.device('meta'): bank = SlotBank(n, dim, policy='fifo')
    bank.features = torch.empty(n, dim, device='meta')
    bank.labels = torch.empty(n, dtype=torch.long, device='meta')
    header,at = {'__metadata__':bank.header()},0
    state = {k:v for k,v in bank.state_dict().items() if k!='features'} | {'features':bank.features}
    for k,v in state.items():
        kind = {torch.float32:'F32', torch.int64:'I64', torch.uint8:'U8'}[v.dtype]
        header[k] = dict(dtype=kind, shape=[*v.shape], data_offsets=[at, at := at+v.nbytes])
    head = json.dumps(header).encode()
    head += b' '*(-len(head)%8)
    with open(path, 'wb') as f:
        f.write(len(head).to_bytes(8, 'little')+head)
        for k,v in state.items():
            if k=='features': break
            if k=='_extra_state': o = v
            elif k in ('count','seen'): o = torch.tensor(n)
            elif k=='items': o = torch.arange(n)
            else: o = torch.ones(v.shape, dtype=v.dtype)
            f.write(o.numpy().tobytes())
        for lo in range(0, n, 65536): f.write(draw(min(65536, n-lo), 1+lo)[0].numpy().tobytes())

def mapped(gib, dim, c, folder, times):
    n,draw = int(gib*2**30/4/dim),clusters(dim, c)
    ram = os.sysconf('SC_PAGE_SIZE')*os.sysconf('SC_PHYS_PAGES')/2**30
    with tempfile.TemporaryDirectory(dir=folder) as d:
        p,start = Path(d)/'bank.safetensors',time.perf_counter()
        write_large(p, n, dim, draw)
        wrote,start = time.perf_counter()-start,time.perf_counter()
        bank = Bank.load(p, mmap=True)
        loaded = time.perf_counter()-start
        at = torch.randint(0, n, (128,), generator=torch.Generator().manual_seed(0))
        q = bank.features[at].clone()
        took,right = [],[]
        for _ in range(times):
            took.append(timed(lambda: right.append(float((bank.read(q, 1).index[:,0]==at).float().mean()))))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20
    cpu,wall = median(took)
    return (f"{n:,} rows of {dim} numbers, {gib:g} GiB of features on a machine with {ram:.1f} GiB of memory. Written "
            f"in {wrote:.0f} s, loaded by `mmap=True` in {loaded:.1f} s. 128 stored rows, looked for among all (exact "
            f"search): {min(right):.0%} found themselves, {wall:.0f} s a batch ({cpu:.0f} s of CPU time). The process "
            f"had {peak:.1f} GiB at most.")

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('what', nargs='*', default=['million','compressed'], choices=['million','compressed','mapped'])
    p.add_argument('--quick', action='store_true', help='a tenth of everything, in under 2 minutes; writes no page')
    p.add_argument('--rows', type=int, default=1_000_000)
    p.add_argument('--dim', type=int, default=512)
    p.add_argument('--clusters', type=int, default=4000)
    p.add_argument('--spread', type=float, default=1.)
    p.add_argument('--kind', help="of the index: 'ivf' or 'ivfpq'; by default what bank.index() takes")
    p.add_argument('--gib', type=float, default=26., help='of features in the mapped file')
    p.add_argument('--folder', help='with room for that file')
    p.add_argument('--times', type=int, default=21, help='timings of each')
    a = p.parse_args()
    if a.quick: a.rows,a.clusters,a.times,a.gib = 50_000,500,5,.5
    for o in a.what:
        if o=='million': text = '\n\n'.join(million(a.rows, a.dim, a.clusters, a.spread, a.kind, a.times))
        elif o=='mapped': text = mapped(a.gib, a.dim, a.clusters, a.folder, 3)
        else:
            n = 2000 if a.quick else 10_000
            text = compressed([lambda: synthetic(n, 128), lambda: synthetic(n, 512),
                               lambda: fashion(n, 1 if a.quick else 4)], a.times)
        page = (f"`python benchmarks/index.py {o}`, torch {torch.__version__}, {torch.get_num_threads()} threads"
                f"\n\n{text}\n")
        print(page, flush=True)
        if not a.quick: (Path(__file__).parent/dict(million='index.md').get(o, f'{o}.md')).write_text(page)

if __name__=='__main__': main()
