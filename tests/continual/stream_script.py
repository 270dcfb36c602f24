"""Trains on a stream as a process, or on two ranks, and leaves in OUT what it measured: `stream_script.py OUT [kill]`

kill: ends itself by SIGKILL in the middle of an experience (with two ranks it is not used)"""
import os, signal, sys
import torch
from fastai.distributed import DistributedDL, num_distrib, rank_distrib
from fastai.vision.all import Callback, DataLoaders, Learner, SGD, nn, set_seed
from memo.continual.method import Method
from memo.continual.stream_fit import fit_stream
from memo.data.streams import split_stream
from memo.data.tensors import TensorDL
from memo.training.distributed import processes

C = 6
class Buffer(Method):
    "Keeps what it saw"
    def after_batch(self):
        if not self.training: return
        was = self.state['x'] if 'x' in self.state else self.x[:0]
        self.state['x'] = torch.cat([was, self.x])[-9:]
    def after_loss(self):
        if self.training and 'x' in self.state: self.add_loss(.1*self.learn.model(self.state['x']).pow(2).mean())

class Kill(Callback):
    def after_batch(self):
        if self.training and self.learn.experience==1 and self.learn.epoch==1 and self.learn.iter==1:
            os.kill(os.getpid(), signal.SIGKILL)

def loaders():
    g = torch.Generator().manual_seed(0)
    at = torch.randn(C, 5, generator=g)*2
    def mk(n, t):
        y = torch.arange(n)%C
        return TensorDL(at[y]+torch.randn(n, 5, generator=g), y, bs=4, shuffle=t, vocab=range(C))
    return DataLoaders(mk(96, True), mk(31, False), mk(37, False), device='cpu')

def main(out, kill=None):
    dls = loaders()
    set_seed(0 if kill!='resume' else 7)
    learn = Learner(dls, nn.Linear(5, C), opt_func=SGD, lr=.1)
    if kill=='resume': set_seed(8)
    with processes(learn), learn.no_bar(), learn.no_logging():
        several = num_distrib()>1
        cbs = [*([Kill()] if kill=='kill' else []), *([] if several else [Buffer()])]
        r = learn.fit_stream(split_stream(dls, n=3), 2, cbs=cbs, measure=3,
                             checkpoint=f'{out}/ck', resume=kill=='resume')
    torch.save(dict(table=torch.tensor(r.table().accuracy.tolist()), online=torch.tensor(r.online_accuracy),
                    n=len(r.steps), model=learn.model.state_dict(), left='experience' in vars(learn)),
               f'{out}/rank{rank_distrib()}.pt')

if __name__=='__main__':
    main(*sys.argv[1:])
    if num_distrib()>1: torch.distributed.destroy_process_group()
