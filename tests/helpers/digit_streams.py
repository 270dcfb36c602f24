"Real digits as a stream of experiences, and a small network for them"
import random
import torch
from fastai.vision.all import CrossEntropyLossFlat, DataLoaders, Learner, SGD, nn, set_seed
from sklearn.datasets import load_digits
from memo.data.streams import split_stream
from memo.data.tensors import TensorDL, TensorSet

_d = load_digits()
X,Y = torch.from_numpy(_d.images/16).float().flatten(1),torch.from_numpy(_d.target).long()

def digit_loaders(n=300, bs=16, classes=10):
    "Training, validation and test: `n`, 100 and 200 digits of the first `classes`"
    at = (Y<classes).nonzero()[:,0]
    def mk(a, b, i, **kw):
        j = at[a:b]
        return TensorDL(dataset=TensorSet(X[j], Y[j], j+10**12, [*range(classes)], i), bs=bs, **kw)
    dls = DataLoaders(mk(0, n, 0, shuffle=True), mk(600, 700, 1), mk(700, 900, 2), device='cpu')
    dls.train.rng = random.Random(0)
    return dls

def digit_stream(n=3, by='class', classes=6, seed=0, **kw):
    return split_stream(digit_loaders(classes=classes, **kw), n, by, seed)

def digit_net(c=6, norm=False):
    return nn.Sequential(nn.Linear(64, 32), *([nn.BatchNorm1d(32)] if norm else []), nn.ReLU(), nn.Linear(32, c))

def stream_learner(stream, cbs=(), seed=0, lr=.05, net=None, **kw):
    set_seed(seed)
    net = digit_net(stream.c) if net is None else net
    return Learner(stream.dls, net, loss_func=CrossEntropyLossFlat(), opt_func=SGD, lr=lr, cbs=list(cbs), **kw)
