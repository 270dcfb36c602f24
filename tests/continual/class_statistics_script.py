"Run by test_class_statistics.py on two gloo ranks: leaves in OUT what every rank has counted"
import sys, torch
from pathlib import Path
from fastai.distributed import rank_distrib
from fastai.vision.all import Learner, nn, set_seed
from memo.continual.class_statistics import StreamingLDA
sys.path.append(str(Path(__file__).parents[1]/'training'))
from distributed_script import dls

def main(out):
    set_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64,24), nn.ReLU(), nn.Linear(24,10))
    learn = Learner(dls(), model, cbs=StreamingLDA())
    learn.model[1].requires_grad_(False)
    with learn.no_bar(), learn.no_logging(), learn.distrib_ctx(sync_bn=False):
        learn.fit(2, 1e-2)
        n = len(learn.dls.train.dataset)
        learn.get_preds(1)
    torch.save(dict(model=learn.model.state_dict(), n=n), f'{out}/rank{rank_distrib()}.pt')

if __name__=='__main__':
    main(sys.argv[1])
    torch.distributed.destroy_process_group()
