"""Run by test_runs_in_two_processes.py on two gloo ranks: streams as memo-train has them; leaves in OUT what each has

cut: ends itself by SIGKILL in the middle of the third experience"""
import os, signal, sys
import torch
from fastai.distributed import rank_distrib
from memo.experiment import run, table
from memo.experiment.config import load_config
from memo.training import stages

out,how = sys.argv[1],sys.argv[2]
got,evaluate = {},run.evaluate
def evaluated(learn, cfg, *args, **kwargs):
    r = evaluate(learn, cfg, *args, **kwargs)
    got[cfg.name] = dict(model=dict(learn.model.state_dict()), probs=[*r.probs.values()][0],
                         matrix=torch.tensor(learn.stream_result.matrix))
    return r
run.evaluate = evaluated

def after_batch(self):
    if self.training and getattr(self.learn, 'experience', 0)==2 and self.epoch==1: os.kill(os.getpid(), signal.SIGKILL)
if how=='cut': stages.StageCallback.after_batch = after_batch

def say(s): print(s, flush=True)
def config(cbs, name):
    return load_config('streams/points/mlp', ['data.n=120','seeds=[0]','train.bs=6','train.epochs=2','train.lr=1e-3',
                                              f'train.cbs={cbs}', f'name={name}', f'runs={out}'])

if __name__=='__main__':
    if how=='resume': run.resume_run(f'{out}/cut', say)
    elif how=='table': say(table.run_table(table.load_table(f'{out}/t.yaml', [f'runs={out}']), log=say))
    else:
        run.run_experiment(config('[Replay,DERpp,EWC,DrawSurfaces]', how), log=say)
        if how=='whole':
            for m in ('GDumb','ICaRL','RanPAC','StreamingLDA'): run.run_experiment(config(f'[{m}]', m), log=say)
    torch.save(got, f'{out}/{how}{rank_distrib()}.pt')
    torch.distributed.destroy_process_group()
