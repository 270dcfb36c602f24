"""A check that nobody picked for its outcome: 2,624 photographs of solar cells (elpv-dataset, CC-BY-NC-SA-4.0, so it
is not a requirement and nothing of it is in this repository), eight classes
(cell type x degree of defect) as long-tailed as they are, on frozen EfficientNet-Lite0 features at 128 px. Five
stratified splits (seeds 20 to 24), 60 % of the cells for training (a fifth of these for validation); rows and settings
are those of experiments/tail/fashion_frozen, nothing is chosen here.
`pip install --no-deps elpv-dataset` first, then `python benchmarks/elpv.py`, or `python benchmarks/elpv.py FOLDER`,
which keeps the runs there and goes on where it was stopped. Writes benchmarks/elpv.md."""
import contextlib,sys,tempfile
from pathlib import Path
import numpy as np,pandas as pd
from memo.experiment.config import load_config
from memo.core import packaged_file
from memo.experiment.run import resume_run,run_experiment,run_folder
from memo.evaluation.tables import compare,format_results,label,md_table,row_of,single
from memo.experiment.run_folder import read_json

here = Path(__file__).resolve()
yaml = '''
base: {tail}/{training}.yaml
name: {name}
runs: {runs}
seeds: [{seed}]
data: {{name: imagenet_lt, root: {root}, size: 128, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5],
  many: 100, few: 60, workers: 0}}
plots: {{save: false}}
'''
seeds = range(20, 25)
trainings = dict(plain='plain network', balanced='balanced sampling')

def split(table, folder, seed):
    "The lists of one split, in ImageNet-LT's layout"
    rng = np.random.default_rng(seed)
    part = np.empty(len(table), dtype=object)
    for c in range(8):
        at = rng.permutation((table.label==c).to_numpy().nonzero()[0])
        n = round(.6*len(at))
        part[at[:n]],part[at[:round(.2*n)]],part[at[n:]] = 'train','val','test'
    for o in ('train','val','test'):
        (folder/f'ImageNet_LT_{o}.txt').write_text(''.join(f'{r.image} {r.label}\n'
                                                           for r in table[part==o].itertuples()))

if __name__=='__main__':
    csv = packaged_file('elpv_dataset', 'data/labels.csv')
    if csv is None:
        sys.exit('elpv-dataset is not installed: pip install --no-deps elpv-dataset (91 MB, for non-commercial use)')
    t = pd.read_csv(csv, sep=r'\s+', names=['image','defect','kind'])
    t['label'] = (t.defect*3).round().astype(int) + 4*(t.kind=='poly')
    rows = {o:{} for o in trainings}
    kept = Path(sys.argv[1]).absolute() if len(sys.argv)>1 else None
    with tempfile.TemporaryDirectory() if kept is None else contextlib.nullcontext(kept) as d:
        for seed in seeds:
            root = Path(d)/f'split{seed}'
            if not root.exists():
                root.mkdir(parents=True)
                (root/'images').symlink_to(csv.parent/'images')
            split(t, root, seed)
            for training in trainings:
                f = Path(d)/f'{training}{seed}.yaml'
                f.write_text(yaml.format(tail=here.parents[1]/'experiments/tail/fashion_frozen', training=training,
                                         name=f'{training}{seed}', runs=f'{d}/runs', seed=seed, root=root))
                cfg = load_config(f)
                if not run_folder(cfg).exists(): run_experiment(cfg, log=lambda s: None)
                elif not (run_folder(cfg)/'results.md').exists(): resume_run(run_folder(cfg), log=lambda s: None)
                for m in (read_json(o/'metrics.json') for o in sorted(run_folder(cfg).glob('**/'))
                          if (o/'metrics.json').is_file()):
                    for r in m['rows']:
                        rows[training].setdefault(label(row_of(r), m['titles']), []).append(single(m, r))
                print(f'split {seed}, {training}: done', flush=True)
    txt = ''
    for o,network in trainings.items():
        own = f'{network} + memory: density'
        table,diff = compare(rows[o], {own:[k for k in rows[o] if 'memory' not in k]})
        txt += f'\n\n## {network}\n\n{format_results(table, diff, md_table)}'
        print(format_results(table, diff))
    about = __doc__.split(chr(10)+'`pip')[0]
    here.with_name('elpv.md').write_text(f"`python benchmarks/elpv.py`: {about} Accuracy is on the test cells as they "
                                         f"come, few are the three rarest classes.{txt}\n")
