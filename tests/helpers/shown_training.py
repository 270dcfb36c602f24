"A training whose bars and table are shown: `python shown_training.py HOW FILE`; FILE is written at its end"
import os, sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parents[1]))
how,done = sys.argv[1:3]
if how=='gone': os.close(1)     # as a terminal that was shut
if how=='none': sys.stdout = None
if how=='closed': sys.stdout.close()
from fastai.vision.all import AccumMetric, MSELossFlat, Metric, accuracy
from helpers.digit_streams import digit_net, digit_stream, stream_learner
from memo.all import *
from memo.training.stages import Stage, fit_stages

class Share(Metric):
    "A score with a name that not every terminal can write"
    name = 'größe_\udcff'
    def reset(self): pass
    def accumulate(self, learn): pass
    @property
    def value(self): return .5

kind = done.rsplit('/', 1)[1]
stream = digit_stream(2, classes=4)
learn = stream_learner(stream, [MemoryCallback(SlotBank(32, policy='fifo'))], seed=0)
learn.metrics = [accuracy, Share()]
if kind=='stream': n = len(learn.fit_stream(stream, 2).history)
elif kind=='stages': n = len(fit_stages(learn, [Stage('a', 2), Stage('b', 1)]))
elif kind=='no_bar':
    with learn.no_bar(): learn.fit(3)
    n = learn.epoch+1
else:
    learn.fit_one_cycle(3)
    n = learn.epoch+1
learn.fit(1)        # as before, with whatever was done to it
learn.export(done+'.pkl')
Path(done).write_text(f'{n} epochs')
