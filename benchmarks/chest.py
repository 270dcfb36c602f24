"""What the chest X-ray recipe costs. `python benchmarks/chest.py [step|recipe] [--device cuda] [--bs 8] [--rounds
15]`; ours and the bare version in turn in one run,
the ratio is the median over the pairs, with its quartiles. CPU time is of all threads together; on a GPU look at wall
time. Writes benchmarks/chest.md, or chest_cuda.md.

step: EfficientNetV2-S at 224 px, a training step and a forward, with a memory (512 slots, rarity, z + sum w m of the
3 nearest) and without, beside their FLOPs.
recipe: both phases on 5,000 mosaics at 64 px with a small network, with that memory, by memo and by a bare PyTorch
loop without it: same files, decoder, model, batches, AdamW, schedule."""
import argparse,os,tempfile,time,warnings
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')  # before torch: idle threads sleep instead of counting as CPU time
from pathlib import Path
from statistics import median,quantiles
import numpy as np, torch
from torch import nn
warnings.filterwarnings('ignore')

def once(f, dev):
    if dev.type=='cuda': torch.cuda.synchronize()
    w,c = time.perf_counter(),time.process_time()
    f()
    if dev.type=='cuda': torch.cuda.synchronize()
    return time.perf_counter()-w,time.process_time()-c

def pair(ours, bare, rounds, dev, warm=1):
    "Seconds (wall, CPU) of either, and quartiles of the ratios of pairs run in turn"
    for _ in range(warm):
        for f in (ours,bare): f()
    a,b = [],[]
    for i in range(rounds):
        for o in ((a,ours),(b,bare))[::1 if i%2 else -1]: o[0].append(once(o[1], dev))
    ratio = [quantiles([x[k]/y[k] for x,y in zip(a,b)], n=4) for k in (0,1)]
    return *([median(x[k] for x in o) for k in (0,1)] for o in (a,b)),ratio

def memory_of(width, dev=None):
    from memo.banks.slots import SlotBank
    bank = SlotBank(512, policy='rarity', n_classes=14)
    while width and len(bank)<512:      # full from the start
        bank.write(torch.rand(256, width)*torch.rand(256, 1), y=(torch.rand(256, 14)<.1).float(),
                   item=torch.randint(10**6, 10**7, (256,)), group=torch.randint(10**6, 10**7, (256,)))
    return bank

def gflops(f, n):
    "GFLOPs an image of `f()`, 2 a multiply-add"
    from torch.utils.flop_counter import FlopCounterMode
    with FlopCounterMode(display=False) as c: f()
    return c.get_total_flops()/n/1e9

def step_bench(dev, bs, rounds):
    from fastai.vision.all import BCEWithLogitsLossFlat,DataLoaders,Learner
    from memo.models.backbones import chest_model
    from memo.training.memory_callback import MemoryCallback
    from memo.data.tensors import TensorDL,TensorSet
    from memo.training.param_groups import adamw
    n = bs if dev.type=='cpu' else 20*bs
    x,y = torch.randn(n, 3, 224, 224),(torch.rand(n, 14)<.1).float()
    def learner(memory):
        torch.manual_seed(0)
        mk = lambda k, i: TensorDL(dataset=TensorSet(x[:k], y[:k], split_idx=i, groups=torch.arange(k)), bs=bs,
                                   shuffle=i==0)
        cb = MemoryCallback(memory_of(1280), k=3, head='add', group='patient') if memory else None
        return Learner(DataLoaders(mk(n, 0), mk(1, 1), device=dev), chest_model().to(dev),
                       loss_func=BCEWithLogitsLossFlat(), opt_func=adamw, cbs=cb)
    with_,without = learner(True),learner(False)
    xb,yb = x[:bs].to(dev),y[:bs].to(dev)
    bank,z = with_.memory.bank.to(dev),torch.rand(bs, 1280, device=dev)
    def read_write():
        q = z.clone().requires_grad_()
        with_.memory.head.fuse(q, q).sum().backward()
        bank.write(z, y=yb)
    net = gflops(lambda: without.model.eval()(xb), bs)
    # the counter is wrong for the backward of grouped convolutions: 2 forwards
    mem = [gflops(read_write, bs),gflops(lambda: with_.memory.head.fuse(z, z), bs)]
    def fit(l):
        with l.no_bar(),l.no_logging(): l.fit(1, 1e-4)
    rows = []
    r = pair(lambda: fit(with_), lambda: fit(without), rounds, dev)
    rows.append(('training step', n//bs, 3*net+mem[0], 3*net, r))
    for l in (with_,without): l.model.eval()
    reps = 1 if dev.type=='cpu' else 50
    @torch.no_grad()
    def fwd(l):
        for _ in range(reps): l.model(xb)
    rows.append(('forward', reps, net+mem[1], net, pair(lambda: fwd(with_), lambda: fwd(without), rounds, dev)))
    own = own_cost(with_.memory.head, z, yb, dev)
    out = ['| EfficientNetV2-S, 224 px | GFLOPs an image, with / without | more FLOPs | wall ms, '
           'with / without | CPU ms, with / without | wall ratio (quartiles) | CPU ratio '
           '(quartiles) | read and write by themselves, wall / CPU ms |',
           '|---|---|---|---|---|---|---|---|']
    q = lambda o: f'{o[1]:.3f} ({o[0]:.3f}-{o[2]:.3f})'
    for (name,k,fa,fb,(a,b,ratio)),(w,c) in zip(rows, own):
        t = lambda i: f'{a[i]/k*1e3:.1f} / {b[i]/k*1e3:.1f}'
        part = f'{w:.2f} / {c:.2f} ({100*w*k/b[0]/1e3:.2f} / {100*c*k/b[1]/1e3:.2f} %)'
        out.append(f'| {name}, batch {bs} | {fa:.4f} / {fb:.4f} | {100*(fa/fb-1):.3f} % | {t(0)} | {t(1)} | '
                   f'{q(ratio[0])} | {q(ratio[1])} | {part} |')
    return '\n'.join(out)+'\n'

def own_cost(head, z, y, dev, n=50):
    "Milliseconds (wall, CPU) of reading with gradient and writing one batch, and of reading it"
    item = torch.arange(len(z), device=dev)
    def step():
        for _ in range(n):
            q = z.clone().requires_grad_()
            head.fuse(q, q).sum().backward()
            head.bank.write(z, y=y, item=item, group=item)
    @torch.no_grad()
    def read():
        for _ in range(n): head.fuse(z, z)
    res = []
    for f in (step,read):
        f()
        t = [once(f, dev) for _ in range(9)]
        res.append([median(o[k] for o in t)/n*1e3 for k in (0,1)])
    return res

# both phases
def recipe_bench(dev, bs, rounds):
    from fastai.vision.all import BCEWithLogitsLossFlat,Learner,set_seed
    from memo.models.backbones import chest_model
    from memo.training.memory_callback import MemoryCallback
    from memo.data.chest_xray import abnormal_only,chestxray14
    from memo.data.chest_standin import chest_tree
    from memo.training.param_groups import adamw,body_head_splitter
    out = ['| both phases, 64 px, batch 64 | images | memo with memory, images/s wall / CPU | bare loop without memory '
           '| wall ratio (quartiles) | CPU ratio (quartiles) | table, checks, loading before: CPU s |',
           '|---|---|---|---|---|---|---|']
    with tempfile.TemporaryDirectory() as d:
        root = chest_tree(Path(d)/'tree', 1420)
        for arch,preload in (('tile_cnn',True),('tile_cnn',False),('resnet10t',False)):
            w,dls = time.process_time(),chestxray14(root, size=64, channels=1, rotate=10, workers=0, preload=preload,
                                                    device=dev)
            w = time.process_time()-w
            def ours(ck=Path(d)/'ours'):
                set_seed(0)
                cb = MemoryCallback(memory_of(0), k=3, head='add', group='patient')
                learn = Learner(dls, chest_model(arch, in_chans=1), loss_func=BCEWithLogitsLossFlat(), opt_func=adamw,
                                splitter=body_head_splitter, cbs=cb)
                with learn.no_bar(),learn.no_logging():
                    learn.fit_two_phase(abnormal_only(dls), dls, epochs=(1,1), freeze_epochs=1, checkpoint=ck)
            sets = [[(dl.dataset.x if preload else dl.dataset.x.paths,dl.dataset.y.as_subclass(torch.Tensor))
                     for dl in list(o)[:2]] for o in (abnormal_only(dls),dls)]
            def bare(): bare_two_phase(sets, chest_model(arch, in_chans=1), dev, preload, Path(d)/'bare.pt')
            n = 2*len(sets[0][0][1])+len(sets[1][0][1])
            a,b,ratio = pair(ours, bare, rounds, dev)
            inv = [sorted(1/o for o in r) for r in ratio]
            q = lambda o: f'{o[1]:.2f} ({o[0]:.2f}-{o[2]:.2f})'
            name = f"{arch}, images {'in memory' if preload else 'decoded every epoch'}"
            out.append(f"| {name} | {sum(len(dl.dataset) for dl in dls)} | {n/a[0]:.0f} / {n/a[1]:.0f} | {n/b[0]:.0f} "
                       f"/ {n/b[1]:.0f} | {q(inv[0])} | {q(inv[1])} | {w:.1f} |")
            print(out[-1], flush=True)
    return '\n'.join(out)+'\n'

def bare_two_phase(sets, model, dev, preload, ck, bs=64, val_bs=128):
    """One frozen epoch and one of everything on abnormal images, one on all, the best epoch of phase 1 kept; what
    `fit_two_phase` does, by hand and without memory"""
    from PIL import Image
    def read(p):
        with Image.open(p) as im: return np.asarray(im.convert('L').resize((64,64), Image.Resampling.BILINEAR))
    def images(paths): return torch.from_numpy(np.stack([read(p) for p in paths]))[:,None]
    model = model.to(dev)
    def batch(x, y, i):
        return (x[i] if preload else images(x[i.numpy()])).to(dev).float().div(255).sub(.5).div(.5),y[i].to(dev)
    def rotate(x):
        a = torch.deg2rad((torch.rand(len(x))*20-10)*(torch.rand(len(x))<.5))
        t = torch.stack([a.cos(), -a.sin(), 0*a, a.sin(), a.cos(), 0*a], 1).view(-1,2,3).to(dev)
        return nn.functional.grid_sample(x, nn.functional.affine_grid(t, x.shape, align_corners=False),
                                         padding_mode='reflection', align_corners=False)
    lossf,norms = nn.BCEWithLogitsLoss(),(nn.BatchNorm2d,nn.BatchNorm1d)
    body,head = list(model[0].parameters()),list(model[1].parameters())
    learns = {id(p) for m in model.modules() if isinstance(m, norms) for p in m.parameters()}
    best,best_state = float('inf'),None
    for (train,valid),epochs,lrs,frozen in ((sets[0],1,(1e-4,1e-4),True),(sets[0],1,(5e-7,5e-5),False),
                                            (sets[1],1,(2e-5,8e-5),False)):
        if train is sets[1][0] and best_state is not None: model.load_state_dict(best_state)
        for p in body: p.requires_grad_(not frozen or id(p) in learns)
        opt = torch.optim.AdamW([dict(params=body, lr=lrs[0]),dict(params=head, lr=lrs[1])], weight_decay=.01)
        sched = torch.optim.lr_scheduler.OneCycleLR(opt, lrs, total_steps=epochs*-(-len(train[1])//bs))
        for _ in range(epochs):
            model.train()
            for i in torch.randperm(len(train[1])).split(bs):
                x,y = batch(*train, i)
                loss = lossf(model(rotate(x)), y)
                loss.backward()
                opt.step()
                sched.step()
                opt.zero_grad()
                loss.item()         # a progress bar shows it
            model.eval()
            with torch.no_grad():
                out = [(lossf(model(x), y).item(),len(i)) for i in torch.arange(len(valid[1])).split(val_bs)
                       for x,y in (batch(*valid, i),)]
            val = sum(a*n for a,n in out)/len(valid[1])
            if val<best: best,best_state = val,{k:v.clone() for k,v in model.state_dict().items()}
            torch.save(dict(model=model.state_dict(), opt=opt.state_dict(), best=best_state), ck)

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', nargs='*', help='step, recipe; both by default')
    p.add_argument('--device', default='cpu')
    p.add_argument('--bs', type=int, help='batch of `step`; 8 on a CPU, 64 on a GPU')
    p.add_argument('--rounds', type=int)
    p.add_argument('--out', help='file of the results')
    a = p.parse_args()
    dev = torch.device(a.device)
    on = torch.cuda.get_device_name(dev) if dev.type=='cuda' else f'{torch.get_num_threads()} threads'
    path = Path(a.out) if a.out else Path(__file__).with_name('chest.md' if dev.type=='cpu' else f'chest_{dev.type}.md')
    parts = {}
    for o in a.what or ['step','recipe']:
        r = dict(step=lambda: step_bench(dev, a.bs or (8 if dev.type=='cpu' else 64), a.rounds or 25),
                 recipe=lambda: recipe_bench(dev, 64, a.rounds or 7))[o]()
        print(r, flush=True)
        head = (f"## {o}\n\n`python benchmarks/chest.py {o}{'' if dev.type=='cpu' else f' --device {a.device}'}`, "
                f"torch {torch.__version__}, {on}\n\n")
        old = path.read_text() if path.exists() else ''
        parts = {s.split('\n',1)[0]:s for s in ('\n'+old).split('\n## ')[1:]}
        parts[o] = (head+r)[3:]
        path.write_text('\n'.join('## '+parts[k].rstrip('\n')+'\n' for k in ('step','recipe') if k in parts))
