"A network"
import torch
from torch import nn
from memo.core import Count
from memo.registry import register

@register('model', 'toy_mlp')
class MyModel(nn.Module):
    "Two layers on the pixels, averaged to 8 x 8"
    def __init__(self,
        c_in:int=1,         # Channels
        n_classes:int=2,    # Outputs
        width:Count=24      # Of the hidden layer
    ):
        super().__init__()
        self.pool,self.hidden,self.norm,self.last = nn.AdaptiveAvgPool2d(8),nn.Linear(64*c_in,
            width),nn.BatchNorm1d(width),nn.Linear(width, n_classes)
    def forward(self, x):
        return self.last(
            torch.relu(
                self.norm(self.hidden(self.pool(x.float()/255 if x.dtype==torch.uint8 else x.float()).flatten(1)))))
