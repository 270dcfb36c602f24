"Half precision without a GPU"
import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision

class Half(Callback):
    "What `MixedPrecision` does, on the CPU"
    order = MixedPrecision.order
    def before_batch(self):
        self.cast = torch.autocast('cpu', torch.bfloat16)
        self.cast.__enter__()
    def after_pred(self):
        if not self.training or self.iter==0: self.learn.dtypes = getattr(self.learn, 'dtypes', set())|{self.pred.dtype}
    def after_loss(self): self.cast.__exit__(None, None, None)
