"A data set: odd and even digits, as real as those of scikit-learn"
import torch
from fastai.data.all import DataLoaders
from memo.core import Count
from memo.data.tensors import TensorDL, TensorSet
from memo.data.samplers import loader_for
from memo.registry import register

@register('data', 'toy_parity', task='toys.task.MyTask')
def my_data(
    n:Count=48,         # Training images
    bs:Count=16,        # Size of a batch
    seed:int=0,         # Of the draw and the order
    sampling=None,      # Loader class and keywords
    device=None,        # By default the CPU
):
    "Which digits are odd"
    import random
    from sklearn.datasets import load_digits
    d = load_digits()
    x,y = torch.from_numpy(d.images*(255/16)).round().byte()[:,None],torch.from_numpy(d.target%2).long()
    at = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    parts = at[:n],at[n:n+32],at[-64:]
    (cls,kw) = loader_for(sampling)
    info = dict(vocab=['even','odd'], counts=torch.bincount(y[parts[0]], minlength=2), many=n, few=0)
    dls = DataLoaders(*[(cls if i==0 else TensorDL)(dataset=TensorSet(x[o], y[o], o, split_idx=int(i>0), **info), bs=bs,
                                                    shuffle=i==0, **(kw if i==0 else {}))
                        for i,o in enumerate(parts)], device=device or 'cpu')
    dls.train.rng = random.Random(seed)
    return dls
