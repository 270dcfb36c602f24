"""Run by test_rank_states.py in several gloo processes: the first checkpoint of a second epoch cannot be written, or a
process dies in the middle of an epoch

python failing_script.py FOLDER full|gone"""
import os, sys
from pathlib import Path
from fastai.vision.all import Callback, Learner, nn, rank_distrib, set_seed
from memo.core import MemoError
from memo.data.longtail import digits_lt
from memo.training import checkpoint
from memo.training.distributed import processes
from memo.training.stages import Stage, fit_stages

class Goes(Callback):
    def after_batch(self):
        if self.training and self.epoch==1 and rank_distrib(): os._exit(7)

folder,how = Path(sys.argv[1]),sys.argv[2]
set_seed(0)
dls = digits_lt(n_max=30, ratio=6, valid=5, test=5, size=8, bs=8)
learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(64,10)), loss_func=nn.CrossEntropyLoss())
if how=='full' and not rank_distrib():
    write = checkpoint.save_plain
    def full(o, path):
        if path.name=='s0_e1.pt': raise MemoError(f'cannot write {path.name}: No space left on device')
        write(o, path)
    checkpoint.save_plain = full
try:
    with processes(learn), learn.no_bar(), learn.no_logging():
        fit_stages(learn, [Stage('a', 3, 1e-2)], folder, cbs=Goes() if how=='gone' else None)
except MemoError as e:
    (folder/f'said{rank_distrib()}').write_text(str(e))
    sys.exit(2)
