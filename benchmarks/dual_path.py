"""Cached and trainable memory in front of the classifier, on Fashion-MNIST: `python benchmarks/dual_path.py [--quick]`.
Prints a table; writes benchmarks/dual_path.md and dual_path.json.

A small network is trained on 4,000 images for six epochs, plainly, with each bank behind head 'dual' (contrastive
loss at weight .2), and with the vote of a reservoir; stored rows are encoded anew at the end. Threshold (eps=.005) and
vote are chosen on 1,000 other images. Accuracy, share of the images that the memory answers, expected calibration error
on 4,000 more; differences to the plain training, and to the vote, are paired by seed."""
import argparse,json,warnings
from pathlib import Path
from statistics import mean,stdev
import torch
from early_exit import fashion,loaders
from fastai.vision.all import CrossEntropyLossFlat,Learner,random,set_seed
from memo.banks.key_value import CachedBank,TrainableBank
from memo.banks.slots import SlotBank
from memo.metrics.multiclass import calibration_error
from memo.models.small import small_cnn
from memo.training.memory_callback import MemoryCallback
warnings.filterwarnings('ignore')

methods = {
    'plain': lambda: None,
    'vote': lambda: MemoryCallback(SlotBank(2_000, policy='reservoir'), head='vote', k=10),
    'cached, dual': lambda: MemoryCallback(CachedBank(2_000), head='dual', loss_weight=.2),
    'cached, dual, k=5': lambda: MemoryCallback(CachedBank(2_000), head='dual', k=5, loss_weight=.2),
    'cached, dual, soft': lambda: MemoryCallback(CachedBank(2_000), head='dual', k=5, soft=True, loss_weight=.2),
    'trainable, dual': lambda: MemoryCallback(TrainableBank(2_000), head='dual', loss_weight=.2),
    'trainable, dual, k=5': lambda: MemoryCallback(TrainableBank(2_000), head='dual', k=5, loss_weight=.2),
}

def scores(probs, y):
    conf,pred = probs.max(1)
    return dict(accuracy=float((pred==y).float().mean()), ece=float(calibration_error(conf, pred, y)))

def run(data, seed, method, sizes, epochs):
    dls = loaders(*data, seed, sizes)
    set_seed(seed)
    learn = Learner(dls, small_cnn(3, 10), loss_func=CrossEntropyLossFlat(), cbs=methods[method]())
    with learn.no_bar(),learn.no_logging(): learn.fit_one_cycle(epochs, 3e-3)
    test,res = dls.loaders[2],{}
    # rows were written in training mode, while the network moved
    if method!='plain' and not learn.memory.bank.learned: learn.memory.rekey()
    if method=='vote': learn.memory.fit()
    elif method!='plain':
        res['threshold'] = learn.memory.fit(eps=.005)['threshold']
        got = learn.memory.collect(test, memory=True)
        with torch.no_grad(): hit = learn.memory.head.decide(got.z, n_classes=10)[0]
        res |= dict(usage=float(hit.float().mean()), network=scores(got.raw.softmax(1), got.y))
    with learn.no_bar(): out,y = learn.get_preds(dl=test)
    return dict(seed=seed, method=method, **scores(out, y), **res)

def table(rows):
    out = ['| | accuracy | against plain, paired | against the vote | answered by the memory | ECE | against plain, '
           'paired | against the vote | its network alone: accuracy, ECE |', '|'+'---|'*9]
    by = {(r['method'],r['seed']):r for r in rows}
    def pm(v, f): return f'{mean(v):{f}}'+(f' +- {stdev(v):{f.lstrip("+")}}' if len(v)>1 else '')
    for m in dict.fromkeys(r['method'] for r in rows):
        rs,cells = [r for r in rows if r['method']==m],[]
        for c in ('accuracy','ece'):
            cells.append(pm([r[c] for r in rs], '.4f'))
            cells += ['-' if m in ('plain',o) else pm([r[c]-by[o,r['seed']][c] for r in rs], '+.4f')
                      for o in ('plain','vote')]
        nets = [r['network'] for r in rs if 'network' in r]
        net = ', '.join(f"{mean(o[c] for o in nets):.4f}" for c in ('accuracy','ece')) if nets else '-'
        use = f"{mean(r['usage'] for r in rs):.2f}" if 'usage' in rs[0] else '-'
        out.append(f"| {m} | {' | '.join([*cells[:3], use, *cells[3:], net])} |")
    return '\n'.join(out)

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--seeds', type=int, default=5)
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--quick', action='store_true', help='one seed, few images; nothing is written')
    o = p.parse_args()
    torch.set_num_threads(o.threads)
    data = fashion(3_000 if o.quick else 9_000)
    rows = []
    for seed in range(1 if o.quick else o.seeds):
        for m in methods:
            rows.append(run(data, seed, m, (1_000,500) if o.quick else (4_000,1_000), 2 if o.quick else 6))
            print(rows[-1], flush=True)
    print('\n'+table(rows))
    if o.quick: return
    made = dict(rows=rows, seeds=o.seeds, torch=torch.__version__)
    to = Path(__file__).with_suffix('.json')
    to.write_text(json.dumps(made, indent=1)+'\n')
    about = (f"`python benchmarks/dual_path.py`, {o.seeds} seeds (means, +- standard deviation), "
             f"torch {torch.__version__}")
    to.with_suffix('.md').write_text(f'{about}\n\n{table(rows)}\n')

if __name__=='__main__': main()
