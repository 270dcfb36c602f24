"""Every picture of memo, of 1, 2, 10, 200, 1,000 and so on classes, rows, epochs or experiences. By hand:
python tests/helpers/every_picture.py FOLDER draws them all"""
import importlib, inspect, pkgutil, sys
from functools import lru_cache
from pathlib import Path
import numpy as np, pandas as pd, torch
from fastai.vision.all import CrossEntropyLossFlat, DataLoaders, Learner, set_seed
from matplotlib.figure import Figure
from torch import nn
import memo.plots
from memo.all import *
from memo.continual.stream_fit import StreamResult
from memo.data.streams import Stream
from memo.data.tensors import TensorDL, TensorSet
from memo.models.hopfield_vit import hopfield_vit
from memo.models.vit import vit_splitter
from memo.plots.compare_memory import plot_change

def exported():
    "Every picture: what is annotated to give a Figure, in memo.plots or put by it on fastai's and memo's classes"
    mods = [importlib.import_module(f'memo.plots.{o.name}') for o in pkgutil.iter_modules(memo.plots.__path__)]
    found = [f for m in mods for f in vars(m).values() if inspect.isfunction(f)]
    parts = Learner,StreamResult,MemoryCallback,MemoryComparison
    found += [f for c in parts for f in vars(c).values() if inspect.isfunction(f)]
    mine = [f for f in found if f.__module__.startswith('memo.plots.')]
    return {f.__name__ for f in mine if f.__annotations__.get('return') is Figure or f.__name__ in named}

named = {o for o in dir(importlib.import_module('memo.all')) if o.startswith(('plot_','show_'))}
inner = {'plot_slots','plot_rows','plot_class_fill','plot_points','plot_times'}     # parts of plot_bank, plot_stream

hard = ['$\\frac$', 'a_b^{2', '%{$}', 'two\nlines', 'a|b', '', '_hidden', 'سرطان الرئة', '肺炎',
        '😀 👩\u200d👧', 'x'*300, '\udcff', 'the same sixteen letters, left', 'the same sixteen letters, right',
        '\\', '$', '~', '<b>']
def names_of(n, odd=True):
    return [f'{hard[i%len(hard)]}{i//len(hard) or ""}' if odd else f'class {i}' for i in range(n)]

def column_of(names): return pd.Series(names, dtype=object)     # pyarrow's texts hold no surrogates

def gen(seed=0): return torch.Generator().manual_seed(seed)

class Flat(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.body,self.last = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU()),nn.Linear(16, c)
    def forward(self, x): return self.last(self.body(x))

def images(c, odd=True):
    n = max(2*c, 24)
    x,y = torch.rand(n, 1, 8, 8, generator=gen()),torch.arange(n)%c
    def dl(i, at, **kw):
        ds = TensorSet(x[at], y[at], torch.arange(len(x))[at], names_of(c, odd), i)
        return TensorDL(dataset=ds, bs=256, **kw)
    return DataLoaders(dl(0, slice(0, n), shuffle=True), dl(1, slice(0, 12)), device='cpu')

def fitted(learn):
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    return learn

@lru_cache(None)
def learner(c, kind, odd=True):
    "One that has been trained, with another memory each"
    set_seed(0)
    if kind=='vit':
        m = hopfield_vit('vit_tiny_patch16_224', max(c, 2), size=min(c, 400)*2+8, memory='SlotBank', img_size=8,
                         patch_size=4, depth=2, embed_dim=24, num_heads=2, c_in=1)
        return fitted(Learner(images(c, odd), m, loss_func=CrossEntropyLossFlat(), splitter=vit_splitter,
                              cbs=MemoryCallback()))
    bank = ClassBank(c, 16) if kind=='classes' else SlotBank(2*c+8, policy='fifo')
    return fitted(Learner(images(c, odd), Flat(c), loss_func=CrossEntropyLossFlat(), cbs=MemoryCallback(bank, k=4)))

def classbank(c):
    n = (2000/torch.arange(1, c+1)).long().clamp(min=1)
    b = ClassBank(c, 16)
    b.write(torch.randn(int(n.sum()), 8, generator=gen()), torch.arange(c).repeat_interleave(n))
    return b

def epochs(n):
    x = np.arange(n)
    return pd.DataFrame(dict(epoch=x, stage=[f's_{i*4//n}$' for i in x], train_loss=1/(1+x), valid_loss=1.1/(1+x),
        accuracy=1-.5/(1+x), train_accuracy=1-.4/(1+x), _odd=1-.3/(1+x), memory_fill=x/n, memory_usage=x/(2*n),
        memory_loss=2/(1+x)))

def columns(n):
    "A history of two epochs with a score for each class"
    scores = [f'auc_{i} {o}' for i,o in enumerate(names_of(n))]
    return pd.DataFrame([[0,1,*[.5]*n], [1,.5,*[.6]*n]], columns=pd.Index(['epoch','train_loss',*scores], dtype=object))

def results(n, seeds=3):
    v = np.linspace(.2, .9, n)
    return pd.DataFrame(dict(method=column_of(names_of(n)), seeds=seeds, accuracy=v, accuracy_low=v-.05,
                             accuracy_high=v+.05, few=np.where(np.arange(n)%5==3, np.nan, v/2),
                             few_low=v/2-.1, few_high=v/2+.1))

def findings(n, up=0):
    v = np.linspace(.55, .9, n)+up
    bad = np.arange(n)%7==5
    names = column_of([f'{o} {i}' for i,o in enumerate(names_of(n))])
    return pd.DataFrame(dict(finding=names, positives=np.arange(n)[::-1],
        auc=np.where(bad, np.nan, v), ap=np.where(bad, np.nan, v/2), auc_low=v-.04, auc_high=v+.04, ap_low=v/2-.1,
        ap_high=v/2+.1))

def coverage(n):
    x = np.linspace(0, 1, n)
    return pd.DataFrame(dict(threshold=1-x, coverage=x, accuracy=.8+.1*x, memory_accuracy=.95-.1*x,
        network_accuracy=.9-.1*x, soft_accuracy=.81+.1*x, harmful=(20*x).astype(int), helpful=(35*x).astype(int),
        now=np.arange(n)==n//2))

def speeds(n):
    x = np.linspace(0, 1, n)
    one = [pd.DataFrame(dict(batch=b, hit=x, faster=1+x*b, faster_low=.9+x*b, faster_high=1.1+x*b, accuracy=.9-.2*x,
                             accuracy_network=.9)) for b in (1,8)]
    return pd.concat(one)

def stream_result(n):
    A = np.tril(np.linspace(.9, .3, n)[::-1][None]*np.ones((n,1)))+np.triu(np.full((n,n), np.nan), 1)
    return StreamResult(names_of(n), dict(test=A.tolist()))

def stream(n, plane=False):
    y = torch.arange(n).repeat_interleave(4)
    x = torch.randn(4*n, 2 if plane else 5, generator=gen())+(y%7)[:,None]
    ds = TensorSet(x, y, vocab=names_of(n))
    parts = list(torch.arange(4*n).chunk(n))
    return Stream(DataLoaders(TensorDL(dataset=ds), TensorDL(dataset=ds.subset(slice(0)))), [parts,[[] for _ in parts]],
                  names_of(n))

def comparison(n, multi=False):
    "Two answers to items of n classes, half of which have none"
    y = torch.randint(0, (n+1)//2, (4*n,), generator=gen())
    if multi: y = (torch.rand(4*n, n, generator=gen())>.6).long()
    p = [torch.rand(4*n, n, generator=gen(i)) for i in (1,2)]
    p = p if multi else [o/o.sum(1, keepdim=True) for o in p]
    return MemoryComparison(*p, y, names_of(n), dict(few=torch.arange(n)[:n//3]))

def surfaces(n):
    d = DrawSurfaces(16)
    for i in range(n): d.state[f'after{i}'] = torch.randint(0, i+1, (16,16), generator=gen(i)).to(torch.int16)
    return plot_surfaces(d, stream(n, plane=True))

def units(n):
    x = torch.randn(4*n, 2, generator=gen())
    torch.manual_seed(0)
    m = MemoryLinear(2, 3, key_mem_units=n)
    for o in x.split(64)[:20]: m(o).sum().backward()
    return plot_units(m.eval(), x, torch.arange(len(x))%n)

def patterns(n): return torch.randn(n, 8, generator=gen())
def probs(n): return torch.rand(20, n, generator=gen()),(torch.rand(20, n, generator=gen(1))>.5).long()

every = dict(
    plot_bank=lambda n: [plot_bank(learner(n, 'slots').memory.bank, names_of(n)), plot_bank(classbank(n), names_of(n))],
    plot_classbank=lambda n: plot_classbank(classbank(n), names_of(n)),
    plot_similarity=lambda n: plot_similarity(classbank(n), names_of(n)),
    plot_stored=lambda n: plot_stored(learner(n, 'classes').memory.bank, learner(n, 'classes').dls),
    show_classes=lambda n: learner(n, 'classes').show_classes(),
    show_memories=lambda n: learner(n, 'slots').show_memories(2, ds_idx=1),
    explain=lambda n: learner(n, 'slots').explain(learner(n, 'slots').dls.valid.dataset.x[:2]),
    plot_counts=lambda n: plot_counts((5000/torch.arange(1, n+1)).long(), vocab=names_of(n)),
    plot_history=lambda n: [plot_history(epochs(n)), plot_history(columns(n))],
    plot_dual_path=lambda n: plot_dual_path(epochs(n)),
    plot_coverage=lambda n: plot_coverage(coverage(n)),
    plot_results=lambda n: plot_results(results(n)),
    plot_comparison=lambda n: plot_comparison(results(n)),
    plot_classes=lambda n: [plot_classes(findings(n)), plot_classes({'$a_1$':findings(n), '_b':findings(n, .05)})],
    plot_reliability=lambda n: plot_reliability(*probs(n)),
    plot_change=lambda n: [plot_change(comparison(n)), plot_change(comparison(n, True))],
    plot_calibration=lambda n: plot_calibration(*probs(n), names_of(n)),
    plot_speed=lambda n: plot_speed(speeds(n)),
    plot_matrix=lambda n: plot_matrix(stream_result(n)),
    plot=lambda n: [stream_result(n).plot(), comparison(n).plot()],
    plot_stream_accuracy=lambda n: plot_stream_accuracy(stream_result(n)),
    plot_stream=lambda n: [plot_stream(stream(n)), plot_stream(stream(n, plane=True))],
    plot_surfaces=surfaces,
    plot_energy=lambda n: plot_energy(patterns(n), patterns(n)),
    plot_retrieval=lambda n: plot_retrieval(patterns(n)),
    plot_slot_use=lambda n: plot_slot_use(learner(n, 'vit')),
    plot_token_reads=lambda n: plot_token_reads(learner(n, 'vit')),
    plot_units=units)
sizes = 1,2,10,200,1000

def pictures(name, n):
    "The figures that one function draws"
    got = every[name](n)
    return got if isinstance(got, list) else [got]

if __name__=='__main__':
    from looks import looks
    to = Path(sys.argv[1])
    to.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:] or every:
        for n in sizes:
            try: figs = pictures(name, n)
            except Exception as e:
                print(name, n, type(e).__name__, e)
                continue
            for i,fig in enumerate(figs):
                fig.savefig(to/f'{name}{i or ""}_{n:04}.png', dpi=100)
                for o in looks(fig): print(name, i, n, o)
