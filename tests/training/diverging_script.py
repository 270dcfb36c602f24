"Run by test_divergence.py on two gloo ranks: a NaN image of one of them ends the training of both"
import json, random, sys, torch
from pathlib import Path
from fastai.distributed import rank_distrib
from fastai.vision.all import DataLoaders, Learner, nn, set_seed
from memo.core import Diverged
from memo.data.tensors import TensorDL
from memo.training.distributed import processes
from memo.training.stages import Stage, fit_stages

def train(bad, out):
    set_seed(3)
    x = torch.randn(160,4)
    y = (x[:,0]>0).long()
    if bad is not None: x[bad] = float('nan')
    dls = DataLoaders(TensorDL(x, y, bs=4, shuffle=True), TensorDL(torch.randn(16,4), y[:16], bs=8), device='cpu')
    dls.train.rng = random.Random(0)
    learn = Learner(dls, nn.Linear(4,2))
    said,kept = None,None
    try:
        with processes(learn), learn.no_bar(), learn.no_logging(): fit_stages(learn, [Stage('a', 3, 1e-2)], out/'ck')
    except Diverged as e: said,kept = str(e),e.facts
    return dict(said=said, facts=kept, finite=all(bool(p.isfinite().all()) for p in learn.model.parameters()))

out = Path(sys.argv[1])
res = {str(bad):train(bad, out/f'{bad}') for bad in (None,17,90)}
(out/f'rank{rank_distrib()}.json').write_text(json.dumps(res))
