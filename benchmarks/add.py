"""What `head: add` does to the features it is added to, and whether a lower temperature or centring helps. On the
stand-in of experiments/chestxray/small (no result about chest X-rays), recipe and seeds of its standin.yml, paired:

    python benchmarks/add.py [RUNS]         # experiments/chestxray/small/{baseline_bce,rarity,temperature} and two more

Rows were fixed before the run: as shipped; temperature .1; centred (the mean of the rows is taken from queries and rows
before they are compared and added); both. Writes benchmarks/add.md."""
import sys
from pathlib import Path
import torch
from fastai.vision.all import get_model
from memo.banks.search import read_rows
from memo.core import settings
from memo.experiment.again import load_run
from memo.experiment.compare import run_experiments
from memo.experiment.config import load_config
from memo.experiment.jobs import run_folder
from memo.heads.retrieval import RetrievalHead

here = Path(__file__).parent
small = here.parent/'experiments/chestxray/small'

class Centred(RetrievalHead):
    "Recalls what differs from the mean of the rows, by what differs from it"
    def recall(self, z, item=None, group=None):
        if self.bank.features is None or not len(self.bank): return super().recall(z, item, group)
        f,_,i,g,valid = self.bank.stored()
        mean = f.float().mean(0) if valid is None else f[valid].float().mean(0)
        same = [(o,p) for o,p in ((item,i),(group,g)) if o is not None and p is not None]
        return read_rows(z-mean, f.float()-mean, self.k, self.similarity, self.normalize, self.temperature,
                         self.rescale, same=same, valid=valid)

centred = ['memory.head=add.Centred', f'path=["{here}"]']
rows = {'baseline_bce':('baseline_bce', []), 'rarity':('rarity', []), 'temperature':('temperature', []),
        'centred':('rarity', [*centred, 'name=chest_small/centred']),
        'centred_temperature':('temperature', [*centred, 'name=chest_small/centred_temperature'])}

@torch.no_grad()
def looked_at(folder):
    "Of a trained run: length of what is added over that of the feature, their cosine, and that of the feature with the sum"
    learn = load_run(folder)
    head,got = learn.memory.head,[]
    hook = head.register_forward_hook(lambda m, x, out: got.append((x[0], out)))
    learn.get_preds(1)
    hook.remove()
    z,out = (torch.cat([o[i].flatten(1) for o in got]).float() for i in (0,1))
    v,cos = out-z,torch.nn.functional.cosine_similarity
    return [float(o.median()) for o in (v.norm(dim=1)/z.norm(dim=1), cos(v, z), cos(out, z))]

def main():
    runs = Path(sys.argv[1]) if len(sys.argv)>1 else settings().runs
    cfgs = [load_config(small/f'{f}.yaml', [*more, f'runs="{runs}"', 'plots.save=false']) for f,more in rows.values()]
    table = run_experiments(cfgs, runs/'chest_small/add')
    lines = ['| row | added / feature (length) | cosine of both | cosine of feature and sum |', '|---|---|---|---|']
    for c in cfgs[1:]:
        d = run_folder(c)
        every = [looked_at(o) for o in (d, *sorted(d.glob('seed_*')))]
        lines.append(f"| {Path(c.name).name} | {' | '.join(f'{sum(o)/len(o):.2f}' for o in zip(*every))} |")
    page = (runs/'chest_small/add/comparison.md').read_text().split('\n', 2)[2].strip()
    text = f"`python benchmarks/add.py`, torch {torch.__version__}; medians over validation images, means over seeds.\n\n"
    (here/'add.md').write_text(text+'\n'.join(lines)+f'\n\n{page}\n')
    print(table)

if __name__=='__main__': main()
