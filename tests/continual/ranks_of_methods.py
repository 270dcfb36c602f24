"Run by test_methods_in_two_processes.py on two gloo ranks: trains with methods, and leaves in OUT what each rank has"
import sys, torch
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parents[1]))
from fastai.distributed import num_distrib, rank_distrib
from helpers.digit_streams import digit_stream, stream_learner
from memo.continual.icarl import ICaRL
from memo.continual.distillation import LwF
from memo.continual.penalties import EWC
from memo.training.distributed import processes

def trained(*cbs):
    s = digit_stream(bs=8)
    learn = stream_learner(s, cbs)
    for i in range(2):
        learn.dls = s[i]
        with processes(learn), learn.no_bar(), learn.no_logging(): learn.fit(2)
        for cb in cbs: cb.after_experience()
    return learn.model.state_dict()

if __name__=='__main__':
    every = EWC(20., every=3, labels='empirical')
    res = dict(ewc=trained(EWC(20.), LwF()), every=trained(every), icarl=trained(ICaRL(30)))
    assert num_distrib()==2, num_distrib()
    torch.save(res, f'{sys.argv[1]}/rank{rank_distrib()}.pt')
    torch.distributed.destroy_process_group()
