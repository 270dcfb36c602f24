"A module with a part of each kind, and an experiment that names them, as a user writes them beside his YAML"
OWN = '''
import torch
from torch import nn
from fastai.callback.core import Callback
from fastai.losses import CrossEntropyLossFlat
from memo.banks.slots import SlotBank
from memo.core import Count,Fraction
from memo.data.samplers import BalancedDL
from memo.data.longtail import digits_lt
from memo.models.small import small_cnn
from memo.heads.retrieval import RetrievalHead
from memo.evaluation.baselines import Baseline

class MyBank(SlotBank):
    "Slots and a shelf"
    def __init__(self, size:Count=7, shelf:Fraction=.5, dim=None, n_classes=None, seed:int=0):
        super().__init__(size, dim, n_classes=n_classes, seed=seed)
        self.shelf = shelf
class MyHead(RetrievalHead):
    "Adds twice"
    def __init__(self, bank, k:Count=2, times:float=2.):
        super().__init__(bank, k)
        self.times = times
class MyCb(Callback):
    "Counts"
    def __init__(self, every:Count=4): self.every = every
def my_data(
    n_max:Count=30, # Of the largest
    seed=0, bs:int=64, sampling=None
):
    "Digits again"
    return digits_lt(n_max=n_max, ratio=6, valid=5, test=10, size=8, seed=seed, bs=bs, sampling=sampling)
def my_model(c_in:int=1, n_classes:int=10, width:Count=8): "A line"; return nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(64*c_in, width), nn.ReLU(), nn.Linear(width, n_classes))
def my_loss(smooth:Fraction=.1): "Smooth"; return CrossEntropyLossFlat(label_smoothing=smooth)
def my_sampler(power:Fraction=.3): "In between"; return BalancedDL,dict(power=power)
def my_metric(probs, y): "Share of the first class"; return float((probs.argmax(1)==0).float().mean())
class MyBaseline(Baseline):
    "Scaled outputs"
    works_on = 'outputs'
    def __init__(self, by:float=2.): self.by = by
    def fit(self, train, valid, dls): return (lambda logits: logits*self.by),{}
'''

OWN_YAML = '''
name: own
seeds: [0]
data: {name: pkg_h1.mine.my_data, n_max: 20}
model: {name: pkg_h1.mine.my_model, width: 12}
memory: {bank: pkg_h1.mine.MyBank, size: 9, head: {name: pkg_h1.mine.MyHead, times: 3}}
train: {epochs: 1, bs: 16, loss: {name: pkg_h1.mine.my_loss, smooth: .2}, sampling: pkg_h1.mine.my_sampler, metrics: [pkg_h1.mine.my_metric], cbs: [{name: pkg_h1.mine.MyCb, every: 2}]}
compare: [{name: pkg_h1.mine.MyBaseline, by: 3}]
'''
