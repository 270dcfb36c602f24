"Run by test_memory_linear_processes.py on two gloo ranks: trains a MemoryLinear on parts of batches, unequal ones"
import sys, torch
from torch.nn import functional as F
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parents[1]))
from fastai.distributed import num_distrib, rank_distrib
from torch.nn.parallel import DistributedDataParallel
from memo.layers.memory_linear import MemoryLinear
from memo.training.row_sgd import row_sgd
from memo.training.distributed import wait_for_all

cases = {f'{order}-{upd}-{opt}':dict(order=order, upd_k=upd, opt=opt) for order in ('paper','backward')
         for upd in ('ad_hoc_WTA','grad_WTA') for opt in ('sgd','row')}

def layer_of(case):
    torch.manual_seed(0)
    c = dict(cases[case])
    c.pop('opt')
    return MemoryLinear(6, 4, key_mem_units=8, tau_mu=5, tau_eta=10, **c)

def batches():
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(5, 6, generator=g),torch.randint(4, (5,), generator=g)) for _ in range(12)]

def optimizer(layer, case):
    ps = list(layer.parameters())
    return row_sgd(ps, .1, mom=.5, wd=.01) if case.endswith('row') else torch.optim.SGD(ps, .1)

def train(case, model, layer, part, world):
    opt = optimizer(layer, case)
    for x,y in batches():
        x,y = x[part],y[part]
        opt.zero_grad()
        # DDP averages over ranks what is to be the mean of all five
        (F.cross_entropy(model(x), y, reduction='sum')*world/5).backward()
        opt.step()
    return {k:v.detach().clone() for k,v in layer.state_dict().items()}

if __name__=='__main__':
    wait_for_all()
    assert num_distrib()==2, num_distrib()
    part = slice(0, 3) if rank_distrib()==0 else slice(3, 5)
    res = {}
    for case in cases:
        layer = layer_of(case)
        res[case] = train(case, DistributedDataParallel(layer), layer, part, 2)
    torch.save(res, f'{sys.argv[1]}/rank{rank_distrib()}.pt')
    torch.distributed.destroy_process_group()
