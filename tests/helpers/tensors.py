"Numbers that are drawn again the same, and what is compared"
import torch
from torch.utils._python_dispatch import TorchDispatchMode

def gen(seed=0): return torch.Generator().manual_seed(seed)
def draw(*shape, seed=0): return torch.randn(*shape, generator=gen(seed))
def close(a, b, tol=1e-5):
    torch.testing.assert_close(torch.as_tensor(a).double(), torch.as_tensor(b).double(), atol=tol, rtol=tol)

class Ops(TorchDispatchMode):
    "Counts the operations of torch"
    def __init__(self):
        super().__init__()
        self.n = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += 1
        return func(*args, **(kwargs or {}))
