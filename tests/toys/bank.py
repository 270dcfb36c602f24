"Two banks: one changes a line of memo's, one is written from nothing"
import torch
from memo.banks.base import Bank
from memo.banks.offers import own_rows
from memo.banks.slots import SlotBank
from memo.core import Count, MemoError, Positive
from memo.registry import register

@register('bank')
class MyBank(SlotBank):
    "Slots whose features are stored longer or shorter than they came"
    def __init__(self,
        size:Count=32,          # Slots
        stretch:Positive=1.,    # Factor of the length
        policy='fifo',          # As in `SlotBank`
        dim:Count=None,         # Width
        n_classes:Count=None,   # C
        seed:int=0,             # Of its random numbers
    ):
        super().__init__(size, dim, policy, n_classes=n_classes, seed=seed)
        self.stretch = stretch

    def write(self, x, y=None, logits=None, item=None, group=None):
        return super().write(x*self.stretch, y, logits, item, group)

@register('bank', 'toy_ring')
class Ring(Bank):
    "The last `room` rows, even where an item of theirs is stored already with another feature"
    views = True
    def __init__(self,
        room:Count=24,          # Rows
        dim:Count=None,         # Width
        n_classes:Count=None,   # C
        seed:int=0,             # Not used
    ):
        super().__init__(dim, n_classes, seed)
        self.room = room
        for o in ('items','groups'): self.register_buffer(o, torch.full((room,), -1))
        self.register_buffer('norms', torch.zeros(room))
        self.register_buffer('next', torch.tensor(0))

    @property
    def capacity_rows(self): return self.room

    def rows(self):
        if torch.compiler.is_compiling():       # a traced graph cannot hang on how many rows there are
            valid = torch.arange(self.room, device=self.device)<self.count
            return self.features,self.norms,self.labels,self.items,self.groups,valid
        n = slice(0, len(self))
        return self.features[n],self.norms[n],None if self.labels is None else self.labels[n],self.items[n],self.groups[
            n],None

    @torch.no_grad()
    def write(self, x, y=None, logits=None, item=None, group=None):
        x,norm,y,_,item,group,ok = self._take(x, y, logits, item, group)
        if self.features is None and len(x):
            self.features = torch.zeros(self.room, self.dim, device=self.device)
            if y is not None: self.labels = torch.full((self.room, *y.shape[1:]), -1, dtype=y.dtype, device=self.device)
        slot,new = torch.full((len(x),), -1, device=self.device),torch.arange(len(x))
        if item is not None and len(x):
            slot = own_rows(x, item, self.features, self.items)     # with the same feature it has its row
            later = own_rows(x, item, x, item)                      # so has the last of its copies in the batch
            new = ((slot<0) & ((later<0) | (later==new))).nonzero().squeeze(1)
        new = new[-self.room:]              # of a batch that does not fit the last rows stay
        n = len(new)
        at = slot[new] = (int(self.next)+torch.arange(n, device=self.device))%self.room
        if len(x):
            self.replaced += int((at<self.count).sum())
            self.features[at],self.norms[at] = x[new],norm[new]
            self.items[at] = -1 if item is None else item[new]
            self.groups[at] = -1 if group is None else group[new]
            if self.labels is not None: self.labels[at] = -1 if y is None else y[new]
            self.next.copy_((self.next+n)%self.room)
            self.count.copy_(torch.clamp(self.count+n, max=self.room))
            self.seen += len(x)
            self.updates += 1
            if item is not None: slot[(slot>=0) & (self.items[slot.clamp(min=0)]!=item)] = -1     # given up just now
        return self._as_offered(slot, ok)
