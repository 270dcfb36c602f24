"""Early exit as a mechanism: memories at every stage of networks of different kinds, with hit rates that are planted,
so that nothing is trained and nothing depends on data. `python benchmarks/early_exit_skeleton.py [--quick]` prints a
table in Markdown, and without --quick writes early_exit_skeleton.md: how many times as fast as the plain network the
arithmetic allows, and what is measured.

With a share `a` of the network in front of the memory's place, T the time of the plain network and R that of the
memory, the time at hit rate h is at least  a T + R + (1-h)(1-a) T.  Both a and R are measured: by hooks in the plain
network and around the memory. Small batches are dearer a row: `half` is the time of half a batch as a share of that of
the whole one, and the column behind the bound of h=.5 is the bound with (1-a) half T in place of (1-a) T / 2. CPU time,
medians of runs in turn with the plain network's."""
import argparse,os,time,warnings
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')     # before torch: idle threads sleep
from contextlib import contextmanager
from pathlib import Path
from statistics import median
import timm,torch,torchvision
from torch import nn
from memo.banks.slots import SlotBank
from memo.heads.attach import attach,detach,holder
from memo.heads.gate import ExitHead
warnings.filterwarnings('ignore')

def blocks(name, *i): return [f'{name}.{k}' for k in i]
vision = torchvision.models
# network, what makes it for images of a size, places
networks = {
    'resnet18':(lambda px: timm.create_model('resnet18'), blocks('layer1', 1)+['layer2','layer3','layer4']),
    'vit_tiny':(lambda px: timm.create_model('vit_tiny_patch16_224', img_size=px), blocks('blocks', 0, 2, 5, 8, 11)),
    'convnext_atto':(lambda px: timm.create_model('convnext_atto'), blocks('stages', *range(4))),
    'efficientnet_b0':(lambda px: timm.create_model('efficientnet_b0'), blocks('blocks', *range(7))),
    'swin_tiny':(lambda px: timm.create_model('swin_tiny_patch4_window7_224', img_size=px),
                 blocks('layers', *range(4))),
    'mixer_s32':(lambda px: timm.create_model('mixer_s32_224', img_size=px), blocks('blocks', 0, 3, 7)),
    'mobilenetv3_small':(lambda px: timm.create_model('mobilenetv3_small_100'), blocks('blocks', *range(6))),
    'regnetx_002':(lambda px: timm.create_model('regnetx_002'), ['s1','s2','s3','s4']),
    'torchvision resnet18':(lambda px: vision.resnet18(), ['layer1','layer2','layer3','layer4']),
    'torchvision vit_b_32':(lambda px: vision.VisionTransformer(px, 32, 12, 12, 768, 3072),
                            blocks('encoder.layers', *(f'encoder_layer_{i}' for i in (0, 3, 7, 11))))}

class Planted(ExitHead):
    "Looks its rows up, and then says which it answers by their number: the first, or at one row every other call"
    rate,calls = 0.,0
    def decide(self, z, *ids):
        _,logp,sure = super().decide(z, *ids)
        self.calls += 1
        n = round(self.rate*len(z)) if len(z)>1 or self.rate in (0, 1) else self.calls%2
        return torch.arange(len(z))<n,logp,sure

def cpu(f):
    t = time.process_time()
    f()
    return time.process_time()-t

def in_turn(rounds, *fs):
    "Median seconds of CPU time of functions that are run in turn"
    for f in fs: f()
    got = [[] for _ in fs]
    for i in range(rounds):
        for j in range(len(fs)): got[k := (i+j)%len(fs)].append(cpu(fs[k]))
    return [median(o) for o in got]

@contextmanager
def timed(module, before=True):
    "Seconds of CPU time until a module is left, or those in it"
    log,start = [],[0.]
    hooks = [module.register_forward_hook(lambda *_: log.append(time.process_time()-start[0]))]
    def begin(*_): start[0] = time.process_time()
    if not before: hooks.append(module.register_forward_pre_hook(begin))
    try: yield log,begin
    finally:
        for h in hooks: h.remove()

def measure(model, at, x, rounds, rows=2000):
    "Shares of what is in front of a place and of the memory; times as fast at hit rates 0, .5, 1: bound, measured"
    with torch.no_grad():
        head = Planted(SlotBank(rows, policy='fifo', n_classes=1000), threshold=-1)
        attach(model, head, at=at, name='early', x=x[:2])
        place = holder(model, head)[1]
        try:
            with head.off(), timed(place) as (log,begin):
                def passed():
                    begin()
                    model(x)
                whole, = in_turn(rounds, passed)
                share = median(log)/whole
            with timed(head, before=False) as (log,_):
                with head.off(): width = seen_width(head, lambda: model(x))
                head.bank.write(torch.randn(rows, width), torch.arange(rows)%1000)
                in_turn(rounds, lambda: model(x))
                memory = median(log[len(log)//2:])
            def at_rate(h):
                def f():
                    head.rate = h
                    for _ in range(2 if len(x)==1 else 1): model(x)     # at one row: with and without a hit
                return f
            def plain():
                with head.off():
                    for _ in range(2 if len(x)==1 else 1): model(x)
            detached,*gated = in_turn(rounds, plain, *map(at_rate, (0., .5, 1.)))
            one = detached/(2 if len(x)==1 else 1)
            bounds = [1/(share+memory/one+(1-h)*(1-share)) for h in (0., .5, 1.)]
            return share,memory/one,[(b,detached/g) for b,g in zip(bounds, gated)]
        finally: detach(model)

def seen_width(head, f):
    "Features at a memory's place"
    got = []
    hook = head.register_forward_pre_hook(lambda _,a: got.append(a[0]))
    f()
    hook.remove()
    x = got[0]
    return x.shape[{2:1, 3:2, 4:1}[x.ndim] if head.axis is None else head.axis]

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--quick', action='store_true', help='small images, batches of 1 and 8, two places, three rounds')
    p.add_argument('--only', help='networks whose name has this in it')
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--rounds', type=int)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    px,batches,rounds = (64,(1,8),a.rounds or 3) if a.quick else (224,(1,8),a.rounds or 5)
    page = []
    def say(line):
        page.append(line)
        print(line, flush=True)
    say(f'`python benchmarks/early_exit_skeleton.py`, torch {torch.__version__}; CPU time\n')
    say(f'{px} px, {a.threads} threads, {rounds} rounds, 2,000 rows. `half`: time of half the batch as a share of '
          "the whole one's.\n")
    say('| network | place | batch | a | memory | half | h=0 bound | measured | h=.5 bound | with half | measured '
          '| h=1 bound | measured |\n'+'|---'*13+'|')
    ratios = {}
    for name,(make,places) in networks.items():
        if a.only and a.only not in name: continue
        torch.manual_seed(0)
        m = make(px).eval()
        for n in batches:
            x,half = torch.randn(n, 3, px, px),.5
            if n>1:
                with torch.no_grad(): whole,part = in_turn(rounds, lambda: m(x), lambda: m(x[:n//2]))
                half = part/whole
            for at in places[1::2] if a.quick else places:
                share,memory,got = measure(m, at, x, rounds*(4 if n==1 else 1))
                for h,(b,v) in zip((0,.5,1), got): ratios.setdefault((n,h), []).append((v/b,name,at))
                got = [f'{b:.2f} | {v:.2f}' for b,v in got]
                if n>1: got[1] = got[1].replace('|', f'| {1/(share+memory+half*(1-share)):.2f} |')
                else: got[1] = got[1].replace('|', '| |')
                say(f'| {name} | {at} | {n} | {share:.2f} | {memory:.3f} | {half:.2f} | '+' | '.join(got)+' |')
    say('\nMeasured over bound:\n\n| batch | hit rate | median | lowest | where |\n|---|---|---|---|---|')
    for (n,h),os in sorted(ratios.items()):
        low = min(os)
        say(f'| {n} | {h} | {median(o[0] for o in os):.2f} | {low[0]:.2f} | {low[1]}, {low[2]} |')
    if not (a.quick or a.only): Path(__file__).with_suffix('.md').write_text('\n'.join(page)+'\n')

if __name__=='__main__': main()
