"""What it costs that a checkpoint knows what it is of and whether it is whole

    python benchmarks/checkpoint_cost.py [--n 21]

In pairs, in turn: `torch.save` of model, optimizer and random states alone, to a file of its own that replaces the last
one, and the checkpoint of a recipe. Of a small network and of a resnet18 with AdamW's moments. CPU seconds of the
process; the ratio's median and quartiles over pairs. Reading: `torch.load` alone, and with the check of every record.
The lock of a folder is taken once for all checkpoints of a training, so its time stands apart."""
import argparse, random, statistics, tempfile, time
import numpy as np
from pathlib import Path
from fastai.vision.all import Learner, DataLoaders, nn, set_seed, torch
from torchvision.models import resnet18
from memo.banks.slots import SlotBank
from memo.core import atomic_path
from memo.files import owned
from memo.training.checkpoint import Progress, load_plain
from memo.training.memory_callback import MemoryCallback
from memo.training.param_groups import adamw
from memo.training.stages import Stage, resolved

def learner(net):
    set_seed(0)
    items = [(torch.randn(3,32,32),i%10) for i in range(16)]
    dls = DataLoaders.from_dsets(items, items, bs=8, num_workers=0, device='cpu')
    dls.c = 10
    learn = Learner(dls, net, loss_func=nn.CrossEntropyLoss(), opt_func=adamw, cbs=MemoryCallback(SlotBank(512), k=3))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    return learn

def cpu(f):
    t = time.process_time()
    f()
    return time.process_time()-t

def states(dls): return random.getstate(),torch.get_rng_state(),np.random.get_state(),[dl.rng.getstate() for dl in dls]

def pairs(a, b, n):
    a(), b()
    ts = [(cpu(a),cpu(b)) if i%2 else (cpu(b),cpu(a))[::-1] for i in range(n)]
    q = statistics.quantiles([y/x for x,y in ts], n=4)
    return f'{q[1]:.3f} (quartiles {q[0]:.3f} to {q[2]:.3f}), {1000*statistics.median(x for x,_ in ts):.1f} ms alone'

def main():
    p = argparse.ArgumentParser()
    p.add_argument('--n', type=int, default=21)
    n = p.parse_args().n
    nets = {'small':nn.Sequential(nn.Flatten(), nn.Linear(3*32*32,64), nn.ReLU(), nn.Linear(64,10)),
            'resnet18':resnet18(num_classes=10)}
    for name,net in nets.items():
        learn = learner(net)
        with tempfile.TemporaryDirectory() as d:
            d = Path(d)
            prog = Progress(learn, resolved(learn, [Stage('a', 2, 1e-3)]), d/'now')
            (d/'bare').mkdir()
            def bare():
                with atomic_path(d/'bare/s0_e0.pt') as p:
                    torch.save(dict(model=prog.model_state(), opt=learn.opt.state_dict(), rngs=states(prog.dls)), p)
            def now(): prog.save(0, 0)
            def lock():
                with owned(d/'now'): pass
            now()
            ms = 1000*statistics.median(cpu(lock) for _ in range(n))
            print(f'{name}, lock of the folder, once a training: {ms:.1f} ms')
            print(f'{name}, written: {pairs(bare, now, n)}', flush=True)
            def read(): torch.load(d/'now/s0_e0.pt', weights_only=True)
            print(f'{name}, read: {pairs(read, lambda: load_plain(d/"now/s0_e0.pt"), n)}', flush=True)
            print(f'{name}: {(d/"now/s0_e0.pt").stat().st_size/2**20:.1f} MB', flush=True)

if __name__=='__main__': main()
