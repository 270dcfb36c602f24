"""Runs memo-train, and kills itself with SIGKILL at a given moment: `python interrupt.py MOMENT memo-train's arguments`

mid: in the second batch of the second epoch; ctrl_c: there, but by SIGINT; saving: half of the second checkpoint of
phase 1 is
written; between: phase 1 has ended, phase 2 has not begun; TRACKER, as CSVTracker: it has written the second epoch"""
import os, runpy, signal, sys, time
from pathlib import Path
from memo.training import stages as recipe

def die(sig=signal.SIGKILL):
    if 'wandb' in sys.modules: time.sleep(2.5)      # it writes once a second
    os.kill(os.getpid(), sig)

def mid(sig=signal.SIGKILL):
    def after_batch(self):
        if self.training and self.epoch==1 and self.iter==1: die(sig)
    recipe.StageCallback.after_batch = after_batch

def ctrl_c(): mid(signal.SIGINT)

def saving():
    import torch
    save = torch.save
    def save_half(o, f, *args, **kwargs):
        save(o, f, *args, **kwargs)
        if 's0_e2.pt' in str(getattr(f, 'name', f)):
            f.flush()
            os.truncate(f.name, os.path.getsize(f.name)//2)
            die()
    torch.save = save_half

def between():
    enter = recipe.enter_stage
    def at_phase2(learn, s): die() if s.name=='phase2' else enter(learn, s)
    recipe.enter_stage = at_phase2

def tracked(name):
    from memo.training.tracking import Tracker
    log = Tracker.log
    def then_die(self, values, step):
        log(self, values, step)
        if step==2 and type(self).__name__==name: die()
    Tracker.log = then_die

at = sys.argv.pop(1)
dict(mid=mid, ctrl_c=ctrl_c, saving=saving, between=between).get(at, lambda: tracked(at))()
sys.argv[0] = str(Path(sys.executable).with_name('memo-train'))
runpy.run_path(sys.argv[0], run_name='__main__')
