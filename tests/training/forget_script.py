"Run by test_forget_and_teach.py on two gloo ranks: forgets and teaches, and leaves in OUT what each rank has"
import sys, torch
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parents[1]))
from fastai.distributed import rank_distrib
from contracts.made import X, learner
from memo.banks.classes import ClassBank
from memo.banks.patterns import AssociativeBank
from memo.banks.slots import SlotBank
from memo.data.items import item_ids
from memo.training.distributed import processes
from memo.training import edit      # gives memories `forget` and `teach`
assert edit

if __name__=='__main__':
    res = {}
    for name,bank,kw in (('vote', SlotBank(40, policy='reservoir'), dict(head='vote', whiten=True)),
                         ('classes', ClassBank(10, capacity=8), dict(head='prototype')),
                         ('hebb', AssociativeBank(16), dict(head='hopfield'))):
        learn = learner(bank, **kw)
        with processes(learn), learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-2)
            ids = item_ids(learn.dls.train)
            done = learn.memory.forget(item=ids[[1,2,3]], where=[])
            if name!='hebb': learn.memory.teach([X[700], X[701]], [3, 4])
            there = {k:v.clone() for k,v in learn.model.state_dict().items()}
            learn.fit(1, 1e-3)
        res[name] = dict(rows=done.rows['memory'], edited=there, model=learn.model.state_dict(), ids=ids[[1,2,3]])
    torch.save(res, f'{sys.argv[1]}/rank{rank_distrib()}.pt')
    torch.distributed.destroy_process_group()
