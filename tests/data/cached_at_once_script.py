"Run by test_kept_features.py in two processes: both compute the same features at once, again and again"
import os, sys, time
from pathlib import Path
from fastai.vision.all import nn, torch
from memo.data.features import cached_features
from memo.data.tensors import TensorDL

class Net(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale
    def forward(self, x): return self.scale*x.flatten(1)

out,rank = Path(sys.argv[1]),os.environ['RANK']
x,y = torch.arange(48.).reshape(12,1,2,2),torch.arange(12)
for i in range(30):
    (out/f'{i}.{rank}').touch()
    while not all((out/f'{i}.{r}').exists() for r in '01'): time.sleep(.0005)
    f,t,_ = cached_features(Net(i), TensorDL(x, y, bs=4, shuffle=True), out/'cache', 'net')
    assert f.float().equal(i*x.flatten(1)) and t.equal(y), i
