"Run by test_shared_features.py on two gloo ranks: features of a frozen network, and how many rows each rank ran"
import sys, time, torch
from accelerate import PartialState
from fastai.distributed import num_distrib, rank_distrib
from fastai.vision.all import Path, nn
from memo.core import MemoError
from memo.data.features import cached_features, features_dls
from memo.data.longtail import digits_lt

class Net(nn.Module):
    "Counts rows; fails at a row where it is told to"
    def __init__(self, fail=None):
        super().__init__()
        torch.manual_seed(0)
        self.body,self.runs,self.fail = nn.Linear(64, 8),0,fail
    def forward(self, x):
        self.runs += len(x)
        if self.fail==rank_distrib(): raise MemoError('one row holds nonsense')
        return self.body(x.float().flatten(1))

def main(out):
    if num_distrib()>1: PartialState(cpu=True)
    rank,res = rank_distrib(),{}
    dls = digits_lt(n_max=40, ratio=4, valid=5, test=5, size=8, bs=16, device='cpu')
    dls.loaders[1:] = [o.new(bs=8) for o in dls.loaders[1:]]
    for name,root in (('half',out/f'a{num_distrib()}'), ('again',out/f'a{num_distrib()}')):
        net = Net()
        f = features_dls(net, dls, root, name='f')
        res[name] = dict(runs=net.runs, x=[o.dataset.x for o in f.loaders], y=[o.dataset.y for o in f.loaders],
                         items=[o.dataset.items for o in f.loaders])
        if num_distrib()>1: torch.distributed.barrier()
    net = Net()
    x,y,_ = cached_features(net, dls.valid.new(bs=64), out/f'b{num_distrib()}', half=False)    # one batch: of one rank
    res['few'] = dict(runs=net.runs, x=x, y=y)
    if num_distrib()>1:
        try: cached_features(Net(fail=1), dls.valid, out/'c')
        except MemoError as e: res['error'] = str(e)
        net = Net()
        root = out/('own' if rank else 'd')      # one of them has the features already
        cached_features(net, dls.valid, out/'d')
        torch.distributed.barrier()
        net = Net()
        net.body.weight.data += rank             # another network: nothing is shared
        x,_,_ = cached_features(net, dls.valid, root)
        res['other'] = dict(runs=net.runs, x=x)
    torch.save(res, out/f'{num_distrib()}-{rank}.pt')

if __name__=='__main__': main(Path(sys.argv[1]))
