"A sampler"
from memo.core import Count
from memo.data.tensors import TensorDL
from memo.registry import register

class Repeated(TensorDL):
    "Each image `times` times in a row"
    def __init__(self, *args, times=1, **kwargs):
        super().__init__(*args, **kwargs)
        self.times = times
    def new(self, dataset=None, cls=None, **kwargs):
        return super().new(dataset, cls,
                           **({'times':self.times}|kwargs if issubclass(cls or type(self), Repeated) else kwargs))
    def get_idxs(self):
        order = super().get_idxs()
        return [i for i in order[:-(-len(order)//self.times)]
                for _ in range(self.times)][:len(order)] if self.shuffle else order

@register('sampler', 'toy_repeated', title='repeated images')
def my_sampler(
    times:Count=2   # How often
):
    "Each drawn image twice in a row"
    return Repeated,dict(times=times)
