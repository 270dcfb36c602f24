"Run by test_replay_processes.py on two gloo ranks: trains with methods that replay, and leaves in OUT what each has"
import random, sys, torch
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parents[1]))
from fastai.callback.core import Callback
from fastai.distributed import num_distrib, rank_distrib
from memo.continual.replay import ACE, AGEM, DERpp, GDumb, MIR, Replay
from memo.training.distributed import processes
from test_replay import learner

every = dict(er=Replay, derpp=DERpp, ace=ACE, agem=AGEM, mir=MIR, balanced=lambda n: Replay(n, policy='balanced'),
             gdumb=lambda n: GDumb(n, epochs=2, batch_size=10))

class Seen(Callback):
    "What this rank trains on, and what it replays"
    order,run_valid = -50,False
    def __init__(self): self.x,self.y = [],[]
    def before_batch(self):
        self.x.append(self.xb[0].as_subclass(torch.Tensor).clone())
        self.y.append(self.yb[0].as_subclass(torch.Tensor).clone())

if __name__=='__main__':
    res = {}
    for k,f in every.items():
        cb,drawn = f(30),[]
        loss_on = type(cb).loss_on
        cb.loss_on = lambda r, out=None, cb=cb: (drawn.append(r.x.sum(1)), loss_on(cb, r, out))[1]
        learn = learner([cb, s := Seen()])
        with processes(learn), learn.no_bar(), learn.no_logging(): learn.fit(1, .05)
        if k=='gdumb':
            with processes(learn): cb.retrain()
        res[k] = dict(model=learn.model.state_dict(), x=s.x, y=s.y, drawn=drawn, name=cb.name)
    assert num_distrib()==2, num_distrib()
    torch.save(res, f'{sys.argv[1]}/rank{rank_distrib()}.pt')
    torch.distributed.destroy_process_group()
