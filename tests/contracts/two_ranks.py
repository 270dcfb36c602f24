"Run by test_processes.py on two gloo ranks: trains heads on banks, and leaves in OUT what each rank has"
import sys, torch
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parents[1]))
from fastai.distributed import num_distrib, rank_distrib
from fastai.vision.all import Callback
from memo.training.distributed import processes
from contracts.made import build, learner, pairs, some_pairs

class Written(Callback):
    "What this rank offers its bank"
    order,run_valid = 100,False
    def __init__(self): self.steps = []
    def before_fit(self):
        bank = self.learn.memory.bank
        write = type(bank).write
        def spy(*args, **kwargs):
            self.steps.append([None if o is None else o.clone() for o in args])
            return write(bank, *args, **kwargs)
        bank.write = spy
    def after_fit(self): del self.learn.memory.bank.write

if __name__=='__main__':
    res = {}
    few = some_pairs()
    for b,h in few if sys.argv[2]=='some' else [o for o in pairs() if o not in few]:
        learn = learner(build('bank', b, n_classes=10), h, cbs=[w := Written()], loss_weight=.2)
        with processes(learn), learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2)
        res[f'{b}-{h}'] = dict(model=learn.model.state_dict(), steps=w.steps, names=list(learn.recorder.metric_names),
                               values=[list(o) for o in learn.recorder.values])
    assert num_distrib()==2, num_distrib()
    torch.save(res, f'{sys.argv[1]}/rank{rank_distrib()}.pt')
    torch.distributed.destroy_process_group()
