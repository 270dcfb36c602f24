"A callback"
from fastai.callback.core import Callback
from memo.core import Count
from memo.registry import register

@register('callback', 'toy_counter')
class MyCallback(Callback):
    "Counts the batches that are trained on"
    order,run_valid = 3,False
    def __init__(self,
        step:Count=1    # What one batch counts
    ): self.step,self.n = step,0
    def after_batch(self): self.n += self.step
