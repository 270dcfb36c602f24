"""A check that nobody picked for its outcome: 2,624 photographs of solar cells (elpv-dataset, CC-BY-NC-SA-4.0, so it
is not a requirement and nothing of it is in this repository), eight classes
(cell type x degree of defect) as long-tailed as they are, on frozen EfficientNet-Lite0 features at 128 px. Three
stratified splits, 60 % of the cells for training (a fifth of these for validation).
`pip install --no-deps elpv-dataset` first, then `python benchmarks/elpv.py`: every use of a ClassBank beside the
baselines. Writes benchmarks/elpv.md."""
import sys,tempfile
from pathlib import Path
import numpy as np,pandas as pd
from memo.experiment.config import load_config
from memo.core import packaged_file
from memo.experiment.run import run_experiment,run_folder
from memo.evaluation.tables import compare,format_results,label,md_table,row_of,single
from memo.experiment.run_folder import read_json

yaml = '''
name: {name}
runs: {runs}
seeds: [{seed}]
data: {{name: imagenet_lt, root: {root}, size: 128, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], many: 100, few: 60, workers: 0}}
model: {{name: timm, arch: tf_efficientnet_lite0, pretrained: true}}
memory: {{bank: ClassBank, capacity: 500, head: watch}}
train: {{frozen: true, epochs: 30, lr: 1e-3, bs: 64, wd: 1.0{more}}}
compare: [{compare}]
'''
even = '{name: vote, k: [5, 10, 20, 50], whiten: [false, true]}, prototype, lda'
plain = f'logit_adjusted, class_mean, crt, {even}'

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
    rows,network = {},{}
    with tempfile.TemporaryDirectory() as d:
        for seed in range(3):
            root = Path(d)/f'split{seed}'
            root.mkdir()
            (root/'images').symlink_to(csv.parent/'images')
            split(t, root, seed)
            for name,compare_,more in (('plain',plain,''), ('balanced',even,', sampling: balanced')):
                f = Path(d)/f'{name}{seed}.yaml'
                f.write_text(yaml.format(name=f'{name}{seed}', runs=f'{d}/runs', seed=seed, root=root, compare=compare_,
                                         more=more))
                cfg = load_config(f)
                run_experiment(cfg, log=lambda s: None)
                m = read_json(run_folder(cfg)/'metrics.json')
                for r in m['rows']:
                    k,own = (label(o, m['titles']) for o in (row_of(r),row_of(r).network))
                    rows.setdefault(k, []).append(single(m, r))
                    if own!=k: network[k] = own
                print(f'split {seed}, {name}: done', flush=True)
    remedies = ['logit adjustment','balanced sampling']
    table,diff = compare(rows, {k:[own, *(r for r in remedies if r!=own)] for k,own in network.items()})
    txt = format_results(table, diff, md_table)
    print(format_results(table, diff))
    Path(__file__).with_name('elpv.md').write_text(f"`python benchmarks/elpv.py`: {__doc__.split(chr(10)+'`pip')[0]} "
                                                   "Accuracy is on the test cells as they come, few are the three "
                                                   f"rarest classes.\n\n{txt}\n")
