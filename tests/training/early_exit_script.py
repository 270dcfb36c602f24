"Run by test_early_exit_in_two_processes.py on two gloo ranks: leaves in OUT what every rank has"
import sys, torch
from fastai.distributed import num_distrib, rank_distrib
from fastai.vision.all import Learner, accuracy, nn, set_seed
from distributed_script import X, dls
from memo.banks.slots import SlotBank
from memo.heads.base import MemoryHead
from memo.heads.calls import Step, in_step
from memo.training.memory_callback import MemoryCallback

def main(out):
    set_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64,24), nn.ReLU(), nn.Linear(24,24), nn.ReLU(), nn.Linear(24,10))
    cb = MemoryCallback(SlotBank(200, policy='fifo'), head='exit', at='2', threshold=.93)
    learn,rows = Learner(dls(), model, metrics=accuracy, cbs=cb),[]
    def count(_, a): rows.append(len(a[0]))
    with learn.no_bar(), learn.no_logging(), learn.distrib_ctx(sync_bn=False):
        learn.fit(2, 1e-2)
        fitted = [float(o) for o in learn.recorder.values[-1][:3]]
        hook = model[5].register_forward_pre_hook(count)
        valid = [float(o) for o in learn.validate()]
        preds,y = learn.get_preds(1)
        hook.remove()
    model.eval()
    x = X[1000:1041].float()/255
    with torch.no_grad():
        got = model(x)
        with in_step([o for o in model.modules() if isinstance(o, MemoryHead)], Step(exits=False)): whole = model(x)
    torch.save(dict(model=model.state_dict(), fitted=fitted, valid=valid, rows=rows, got=got, whole=whole,
                    preds=torch.as_tensor(preds)), f'{out}/rank{rank_distrib()}.pt')
    assert num_distrib()==2

if __name__=='__main__':
    main(sys.argv[1])
    torch.distributed.destroy_process_group()
