"A head with parameters, a loss of its own, an answer, something to choose, and a column"
import torch
from torch import nn
from torch.nn import functional as F
from memo.core import Count, OpenFraction
from memo.heads.base import MemoryHead
from memo.registry import register

@register('head', 'toy_second')
class MyHead(MemoryHead):
    "A second classifier on the feature and what it recalls, mixed into the network's answer"
    mixes = True
    def __init__(self,
        bank,                   # The memory
        k:Count=2,              # Rows to recall
        share:OpenFraction=.3,  # Of the second classifier, until `fit`
    ):
        super().__init__(bank, k)
        self.share = share
        self.register_buffer('chosen_share', torch.tensor(float(share)))

    def build(self, dim, n_classes): self.second = nn.Linear(2*dim, n_classes)

    def outputs(self, z, item=None, group=None):
        if self.bank.features is None: read = torch.zeros_like(z)
        else:
            r = self.recall(z, item, group)
            if not torch.compiler.is_compiling(): self._note(read=r)
            read = r.value
        return self.second(torch.cat([z, read], 1))

    def loss(self, z, y):
        if y.ndim==2: return F.binary_cross_entropy_with_logits(self.outputs(z, *self.own(len(z))), y)
        return F.cross_entropy(self.outputs(z, *self.own(len(z))), y)

    def answer(self, logits):
        z = self.z
        if self.learning or z is None or self.bank.features is None: return logits
        return torch.where(self.bank.count>0, self.mixed(logits, z, *self.own(z.shape[0])), logits)

    def mixed(self, logits, z, item=None, group=None):
        mine = self.outputs(z, item, group)
        if self.bank.rows()[2] is not None and self.bank.rows()[2].ndim==2:
            return torch.lerp(logits, mine, self.chosen_share)
        return torch.lerp(logits.softmax(1), mine.softmax(1), self.chosen_share).clamp(min=1e-9).log()

    @torch.no_grad()
    def fit(self, collected, shares=(.1,.3,.5,.9)):
        l,z,y = collected['logits'],collected['z'],collected['y']
        if y.ndim==2 or len(self.bank)==0: return {}
        def nll(s):
            return F.nll_loss(torch.lerp(l.softmax(1), self.outputs(z).softmax(1), s).clamp(min=1e-9).log(), y).item()
        best = min(shares, key=nll)
        self.chosen_share.fill_(best)
        return dict(share=best, nll=nll(best))

    def check_labels(self, y): self.bank.check_single(y)
    def chosen(self): return dict(share=float(self.chosen_share))
    def columns(self): return dict(right=self.right)
    def right(self, seen, y):
        labels = self.bank.rows()[2] if self.bank.features is not None else None
        if seen.read is None or labels is None or labels.ndim!=1 or y.ndim!=1: return None
        at = seen.read.index[:,0]
        return (labels[at.clamp(min=0)]==y).float()*(at>=0)
