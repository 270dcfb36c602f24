"Parts with arguments from their signatures, and the small real data that they are tried on"
import random
from typing import get_args
import torch
from fastai.data.all import DataLoaders
from fastai.learner import Learner
from fastai.vision.all import Callback, CrossEntropyLossFlat, set_seed
from sklearn.datasets import load_digits
from torch import nn
import toys     # registers one part of each kind, from outside memo
from helpers.learners import quietly
from memo.training.memory_callback import MemoryCallback
from memo.core import MemoError, OneOf
from memo.data.tensors import TensorDL, TensorSet
from memo.training.param_groups import adamw, body_head_splitter
from memo.registry import find, known
from memo.schema import required
from memo.schema import accept

DIM,CLASSES = 6,3
# what an experiment would know, and what a test may choose; a part gets those that its signature has
given = dict(n_classes=CLASSES, num_classes=CLASSES, n_out=CLASSES, c_in=1, in_chans=1, counts=torch.tensor([30,6,2]),
             seed=0, bs=8, arch='resnet18', pretrained=False,
             size=16, capacity=8, policy='fifo', n_max=20, ratio=5, valid=5, test=5, val_bs=16, device='cpu',
             patients=60, draws=20, steps=20, n=200)

class StopAt(Callback):
    "Ctrl-C after `n` training batches"
    order = 99
    def __init__(self, n): self.n = n
    def after_batch(self):
        if self.training: self.n -= 1
        if not self.n: raise KeyboardInterrupt
    # may come and go
    def state_dict(self): return {}
    def load_state_dict(self, state): pass

# banks of patterns have no rows that are an image's: tests/banks/test_patterns.py
def parts(kind): return [k for k,p in known(kind).items() if not (p.facts.get('read_only') or p.facts.get('patterns'))]
def takes(kind, name): return known(kind)[name].params

def build(kind, name, **more):
    "The part of that name, made of what is given and, where something else is needed, of any value that is accepted"
    ps = takes(kind, name)
    small = dict(arch='test_vit', img_size=64) if known(kind)[name].facts.get('vit') else {}
    known_to_all = {**given, **small}
    args = {k:v for k,v in known_to_all.items() if k in ps and _accepts(ps[k], v)}
    args |= {k:v for k,v in more.items() if k in ps}
    args |= {k:other(p) for k,p in ps.items() if p.default is required and k not in args}
    return find(kind, name)(**args)

def values(p):
    "Values to try for an argument"
    return [v for v in (2, 7, .25, .75, 40., True, False, 'cosine', 'euclidean', 'none', 'float16', 'literal',
                        'reservoir', 'gaussians', 'linear', 'a_text', [2,3]) if _accepts(p, v)]

def _accepts(p, v):
    # of a name, or a function, the names
    names = [m for a in get_args(p.type) for m in getattr(a, '__metadata__', ()) if isinstance(m, OneOf)]
    if names and not any(v in o for o in names): return False
    try: accept(v, p.type, 'argument')
    except (MemoError,TypeError): return False
    return not (isinstance(v, bool) and not isinstance(p.default, (bool,str,type(None))) and p.default is not required)

def other(p):
    "A value that is accepted and not the default"
    return next((v for v in values(p) if v!=p.default), None)

def refused_in_one_line(make, k, p, v):
    "What an argument's type does not allow is refused; whatever is refused, in a line that names it"
    try: accept(v, p.type, k)
    except MemoError: fine = False
    else: fine = True
    try: make(**{k:v})
    except MemoError as e: assert '\n' not in str(e) and len(str(e))<600 and k in str(e), (k, v, str(e))
    else: assert fine, f'{k}={v!r} is taken, where {p.type} is accepted'

def rows(n, seed=0, dim=DIM, classes=CLASSES):
    "Features in clusters, their classes, outputs that are often right, ids of items and groups"
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (n,), generator=g)
    x = 3*torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))[y]+torch.randn(n, dim, generator=g)
    logits = torch.randn(n, classes, generator=g)+2*torch.eye(classes)[y]
    item = 10**12+1000*seed+torch.arange(n)
    return dict(x=x, y=y, logits=logits, item=item, group=item//3)

def state_equal(a, b):
    a,b = a.state_dict(),b.state_dict()
    assert a.keys()==b.keys(), a.keys()^b.keys()
    for k in a: assert torch.equal(a[k], b[k]), f'{k} differs'

def preds_equal(a, b): assert torch.equal(a, b), f'answers differ by {float((a-b).abs().max()):.3g}'

_d = load_digits()
X,Y = torch.from_numpy(_d.images*(255/16)).round().byte()[:,None],torch.from_numpy(_d.target).long()

def digits(multi=False, n=48, seed=0):
    "Loaders of real digits: 10 classes, or four properties of a digit"
    y = torch.stack([Y%2==0, Y>4, Y%3==0, Y==7], 1).float() if multi else Y
    vocab = list('abcd') if multi else list(range(10))
    def mk(a, b, i, **kw):
        return TensorDL(dataset=TensorSet(X[a:b], y[a:b], torch.arange(a, b)+10**12, vocab, i), bs=16, **kw)
    dls = DataLoaders(mk(0, n, 0, shuffle=True), mk(1000, 1032, 1), device='cpu')
    dls.train.rng = random.Random(seed)
    return dls

class Net(nn.Module):
    "Somebody's own small network"
    def __init__(self, c):
        super().__init__()
        self.first,self.norm,self.last = nn.Linear(64, 24),nn.BatchNorm1d(24),nn.Linear(24, c)
    def forward(self, x): return self.last(self.norm(self.first(x.float().flatten(1)/255)).relu())

def learner(bank=None, head=None, multi=False, seed=0, path=None, cbs=(), **kwargs):
    "A learner on digits, with a memory where a bank is given"
    set_seed(seed)
    dls = digits(multi, seed=seed)
    loss = nn.BCEWithLogitsLoss() if multi else CrossEntropyLossFlat()
    learn = Learner(dls, Net(dls.c), loss_func=loss, opt_func=adamw, splitter=body_head_splitter, path=path or '.',
                    cbs=list(cbs))
    if bank is not None: learn.add_cb(MemoryCallback(bank, head=head, **{**needed(head), **kwargs}))
    return learn

def answer_half(learn):
    "Give a head that chooses rows a threshold in the middle of the validation set"
    head = learn.memory.head
    if not hasattr(head, 'decide') or not len(head.bank): return learn
    c = learn.memory.collect(learn.dls.valid)
    s = head.decide(c.z, n_classes=10)[2].sort().values
    head.threshold.fill_((s[15]+s[16])/2)
    return learn

def needed(head):
    "A place for a head that has none by itself; a threshold from which on one that chooses rows answers all"
    cls = find('head', head) if isinstance(head, str) else head
    return {**(dict(at='norm') if getattr(cls, 'leaves_early', False) else {}),
            **(dict(threshold=-1) if hasattr(cls, 'decide') else {})}

def pairs():
    "Every head on every bank that has what it needs: (bank, head)"
    def has(bank, head):
        return all(o in known('bank')[bank].facts['offers'] or hasattr(build('bank', bank), o)
                   for o in find('head', head).needs)
    return [(b,h) for b in parts('bank') for h in parts('head') if has(b, h)]

def some_pairs():
    "Of these, each bank with the head that it has where none is named, and each head with one bank"
    every = pairs()
    def of(b): return b,build('bank', b).default_head or 'watch'
    return list(dict.fromkeys([*map(of, parts('bank')), *(next(o for o in every if o[1]==h) for h in parts('head'))]))
