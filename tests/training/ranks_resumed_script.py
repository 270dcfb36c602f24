"""Run by test_rank_states.py in several gloo processes: two phases with a memory, checkpoints in FOLDER; killed in
every process after some batches, or resumed. Leaves what it ended with in FOLDER/end.pt

python ranks_resumed_script.py FOLDER BATCHES|whole [resume]"""
import os, random, signal, sys
from pathlib import Path
from fastai.vision.all import Callback, Learner, accuracy, nn, num_distrib, rank_distrib, set_seed, torch
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.data.longtail import digits_lt
from memo.training.distributed import processes
from memo.training.memory_callback import MemoryCallback
from memo.training.param_groups import adamw, body_head_splitter
import memo.training.two_phase

class Dies(Callback):
    order = 99
    def __init__(self, n): self.n = n
    def after_batch(self):
        if self.training: self.n -= 1
        if not self.n: os.kill(os.getpid(), signal.SIGKILL)
    # may come and go
    def state_dict(self): return {}
    def load_state_dict(self, state): pass

folder,n = Path(sys.argv[1]),sys.argv[2]
set_seed(rank_distrib())        # random numbers of a process are its own
dls = digits_lt(n_max=30, ratio=6, valid=5, test=5, size=8, bs=8)
set_seed(3)
model = nn.Sequential(nn.Flatten(), nn.Linear(64,16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(.2), nn.Linear(16,10))
set_seed(rank_distrib())
learn = Learner(dls, model, opt_func=adamw, splitter=body_head_splitter, metrics=accuracy,
                loss_func=nn.CrossEntropyLoss(), cbs=MemoryCallback(SlotBank(40, policy='reservoir'), k=3, head='add'))
try:
    with processes(learn), learn.no_bar(), learn.no_logging():
        h = learn.fit_two_phase(dls, epochs=(2,2), freeze_epochs=1, lr=(1e-2,(1e-4,1e-3)), monitor='train_loss',
                                checkpoint=folder/'c', resume='resume' in sys.argv,
                                cbs=[] if n=='whole' else Dies(int(n)))
except MemoError as e:
    print(f'REFUSED {e}')
    sys.exit(0)
end = dict(h=h.drop(columns='seconds').values.tolist(), m=model.state_dict())
if not rank_distrib(): torch.save(end, folder/'end.pt')
