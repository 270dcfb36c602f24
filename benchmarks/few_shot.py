"""Few shots of classes that a network has never seen: `python benchmarks/few_shot.py [--quick]`. Writes few_shot.json
after each draw (what is there is not done again) and few_shot.md; `--page` makes the page alone.

Two small vision transformers (depth 6, width 96, patch 4), trained from scratch on classes 0-4 of Fashion-MNIST ('low')
and on 5-9 ('high'), are frozen; the weights are made first where they are missing (memo-train hopfield/pretrain/low and
hopfield/pretrain/high). The seed draws 1, 5 or 10 images of each of the other five classes, the same for all methods;
all are scored on the same test images.
What is trained has the same number of steps. What was chosen, and on what: see the
page, and `--tune`, which scores on training images with other seeds."""
import argparse,json,subprocess,sys,time,warnings
from functools import lru_cache,partial
from pathlib import Path
import numpy as np,torch
from torch.nn import functional as F
warnings.filterwarnings('ignore')
from fastai.vision.all import Adam,Callback,CancelValidException,CrossEntropyLossFlat,Learner,set_seed
from memo.banks.search import within_whitener
from memo.core import settings,write_text
from memo.data.longtail import read_fashion
from memo.data.whole import fashion_mnist
from memo.evaluation.classifiers import logistic_cv,nearest_mean,ridge_cv,tip_adapter,tip_adapter_trained
from memo.experiment.build import comes_with_banks
from memo.layers.associate import hopfield
from memo.metrics.intervals import paired
from memo.models.lora import lora
from memo.models.hopfield_vit import hopfield_vit
from memo.models.prompts import vpt
from memo.models.vit import linear_probe,vit_splitter
from memo.training.memory_callback import MemoryCallback

here,shots,ours = Path(__file__),(1,5,10),'our combination'
held_out = dict(low=[5,6,7,8,9], high=[0,1,2,3,4])      # by the weights
vit = dict(arch='vit_tiny_patch16_224', n_out=5, c_in=1, img_size=28,
           timm=dict(patch_size=4, embed_dim=96, depth=6, num_heads=3))
STEPS = 60                      # of the optimizer, each of at most 25 images
COPIES,SHRINK = 8,.03           # copies of each shot; share of the identity in the whitening
PLACE,BETA,SCALE,READ = 2.,40.,20.,4.   # of our read, and its weight beside the linear classifier

def pixels(x): return x.float().div(127.5).sub(1)

@lru_cache
def weights(way):
    "The file of weights; trained where it is missing"
    run = settings().runs/f'hopfield/pretrain/{way}'
    if not (run/'model.safetensors').is_file():
        what = ['--resume', run] if run.is_dir() else [here.parents[1]/f'experiments/hopfield/pretrain/{way}.yaml']
        subprocess.run([sys.executable, '-m', 'memo.cli', 'train', *map(str, what)], check=True)
    return run/'model.safetensors'

def some(part, classes, lo, hi):
    "Images `lo` to `hi` of each of those classes in the file's order, and their numbers from 0 on"
    x,y = read_fashion(None, part)
    at = [(y==c).nonzero().flatten()[lo:hi] for c in classes]
    return pixels(x[torch.cat(at)]),torch.arange(len(classes)).repeat_interleave(hi-lo)

# features of the frozen network

@lru_cache
def backbone(way): return linear_probe(**vit, pretrained=weights(way)).eval()

@torch.no_grad()
def tokens(way, x):
    "Tokens behind each block, and those that the classifier is given [N,7,50,96]"
    m,res = backbone(way),[]
    for xb in x.split(250):
        t,each = m._pos_embed(m.patch_embed(xb)),[]
        for b in m.blocks: each.append(t := b(t))
        res.append(torch.stack([*each, m.norm(t)], 1))
    return torch.cat(res)

def of_blocks(t):
    "Class token and mean patch of every block, each standardised [N,1152]"
    both = torch.stack([t[:,:-1,0], t[:,:-1,1:].mean(2)], 2)
    return F.layer_norm(both, both.shape[-1:]).flatten(1)

@lru_cache
def whitener(way):
    "Centre, and whitening matrix, of what the network was trained on: 200 images of each of its own classes"
    seen = held_out['high' if way=='low' else 'low']
    x,y = some('train', seen, 3000, 3200)
    z = of_blocks(tokens(way, x))
    return z.mean(0),within_whitener(z, y, SHRINK)

def whitened(way, t):
    c,w = whitener(way)
    return (of_blocks(t)-c)@w

def copies(x, n, seed):
    "Each image, and `n` copies of it, shifted by up to two pixels and mirrored or not [N,n+1,C,H,W]"
    g,res = torch.Generator().manual_seed(seed),[x]
    for _ in range(n):
        o = F.pad(x, (2,)*4, value=-1)
        at = torch.randint(5, (len(x),2), generator=g).tolist()
        o = torch.stack([i[:,a:a+28,b:b+28] for i,(a,b) in zip(o, at)])
        res.append(torch.where(torch.rand(len(x), 1, 1, 1, generator=g)<.5, o.flip(-1), o))
    return torch.stack(res, 1)

# our read: the tokens of an image look themselves up in a memory of each class, the tokens of its shots

def patches(x):
    "Raw patches of 4 x 4 pixels [N,49,16]; black has a direction too"
    return F.unfold(x+1.05, 4, stride=4).transpose(1, 2)

def placed(t):
    "Patch tokens [N,49,D] of unit length, with where they lie [N,49,D+4]"
    i = torch.arange(49)
    a,b = (o/7*torch.pi/2 for o in (i//7,i%7))
    p = PLACE*torch.stack([a.cos(), a.sin(), b.cos(), b.sin()], 1)
    return torch.cat([F.normalize(t, dim=-1), p.expand(len(t), -1, -1)], -1)

def shot_read(s, y, q):
    """Scores of the classes [B,5]: how like each token of an image is what it retrieves from the memory of
    each class, over the tokens a mean of the log softmax over the classes"""
    banks,res = [placed(s[y==c]).flatten(0, 1) for c in range(5)],[]
    for o in placed(q).split(100):
        z = o.flatten(0, 1)
        like = torch.stack([(z*hopfield(z, bank, beta=BETA)).sum(1) for bank in banks], 1)
        res.append((SCALE*like).log_softmax(1).view(len(o), 49, 5).mean(1))
    return torch.cat(res)

# what is trained: a model, its learning rate (chosen by --tune)

def hop(**kw):
    "What makes a `hopfield_vit`; a function among the arguments is given the number of shots"
    return lambda w, n: hopfield_vit(**vit, pretrained=w, **{k:v(n) if callable(v) else v for k,v in kw.items()})

KEEPS = dict(name='SlotBank', policy='fifo')     # all shots

trained = {
    'linear probe':                             (lambda w, n: linear_probe(**vit, pretrained=w), 1e-1),
    'VPT-shallow':                              (lambda w, n: vpt(**vit, pretrained=w), 1e-1),
    'VPT-deep':                                 (lambda w, n: vpt(**vit, deep=True, pretrained=w), 1e-1),
    'LoRA':                                     (lambda w, n: lora(**vit, pretrained=w), 1e-2),
    'frozen + Hopfield (the seed\'s)':          (hop(size=1000, beta=.125), 1e-2),
    'Hopfield, 50 patterns, last 2 blocks':     (hop(size=50, blocks=2), 1e-1),
    'Hopfield, associative, last 2 blocks':     (hop(memory='associative', size=lambda n: n, blocks=2), 3e-2),
    'Hopfield, class means, last 2 blocks':     (hop(memory='class_prototype', size=5, blocks=2), 3e-2),
    'Hopfield over the shots, last 2 blocks':   (hop(memory=KEEPS, size=lambda n: n, blocks=2), 3e-2),
}

class NoValidation(Callback):
    "Train without validation"
    def before_validate(self): raise CancelValidException()

def outputs(model, x):
    with torch.no_grad(): return torch.cat([model.eval()(o) for o in x.split(250)])

def trained_outputs(name, way, dls, q, lr=None, steps=STEPS):
    "What a trained method gives for test images"
    make,usual = trained[name]
    n = len(dls.train.dataset)
    set_seed(0)
    model = make(weights(way), n)
    cbs = [NoValidation(), *([MemoryCallback(name='in_network')] if comes_with_banks(model) else [])]
    learn = Learner(dls, model, CrossEntropyLossFlat(), opt_func=partial(Adam, decouple_wd=True), lr=lr or usual,
                    splitter=vit_splitter, cbs=cbs, wd=.01)
    with learn.no_bar(),learn.no_logging(): learn.fit_one_cycle(max(1, steps*dls.train.bs//n), lr or usual)
    return outputs(model, q)

# what is fitted to features

def of_features(way, seed, x, y, q, tq):
    "Outputs of each method on frozen features"
    t = tokens(way, x)
    z,zq = t[:,-1,0],tq[:,-1,0]
    for name,fit in {'nearest class mean':nearest_mean, 'logistic regression (CV)':logistic_cv,
                     'ridge regression (CV)':ridge_cv, 'Tip-Adapter':tip_adapter,
                     'Tip-Adapter, trained':tip_adapter_trained}.items(): yield name,fit(z, y, 5)[0](zq)
    more = copies(x, COPIES, seed).flatten(0, 1)
    tm,ym,item = tokens(way, more),y.repeat_interleave(COPIES+1),torch.arange(len(x)).repeat_interleave(COPIES+1)
    def logistic(z): return logistic_cv(z, ym, 5, item=item, Cs=(1e-3,1e-2,.1,1.))[0]
    yield 'logistic regression (CV), copies',logistic(tm[:,-1,0])(zq)
    yield 'logistic regression (CV), pixels, copies',logistic(more.flatten(1))(q.flatten(1))
    w,wq = whitened(way, tm),whitened(way, tq)
    yield 'nearest class mean, whitened blocks, copies',nearest_mean(w, ym, 5, item=item)[0](wq)
    linear = logistic(w)(wq)
    yield 'logistic regression (CV), whitened blocks, copies',linear
    yield 'Hopfield read of the shots, raw patches',shot_read(patches(x), y, patches(q))
    read = shot_read(t[:,0,1:], y, tq[:,0,1:])
    yield 'Hopfield read of the shots, tokens of block 1',read
    yield ours,linear.log_softmax(1)+READ*read

# the table

def draw(way, k, seed, valid=1):
    "Loaders of the shots, their images and classes"
    dls = fashion_mnist(classes=held_out[way], size=28, valid=valid, n_shot=k, shot_seed=seed, seed=seed,
                        bs=min(25, 5*k))
    ds = dls.train.dataset
    return dls,pixels(ds.x),ds.y

def one_draw(way, k, seed, q, yq, tq, names, features=True):
    "Accuracy of each method, per cent, and CPU seconds that it took"
    dls,x,y = draw(way, k, seed)
    res = {}
    def note(name, out, t):
        right = 100*float((out.argmax(1)==yq).double().mean())
        res[name] = dict(accuracy=round(right, 3), cpu=round(time.process_time()-t, 2))
    t = time.process_time()
    for name,out in of_features(way, seed, x, y, q, tq) if features else ():
        note(name, out, t)
        t = time.process_time()
    for name in names:
        note(name, trained_outputs(name, way, dls, q), t)
        t = time.process_time()
    return res

def run(o, cells, todo, names, save):
    "Do what is missing, or some rows again"
    if o.again: names = [n for n in names if n in o.again]
    for way,k,seed in todo:
        if (key := f'{way} {k} {seed}') in cells and not o.again: continue
        q,yq,tq = tested(way, 50 if o.quick else o.test)
        got = one_draw(way, k, seed, q, yq, tq, names, not o.again or 'features' in o.again)
        cells[key] = {**cells.get(key, {}), **got}
        print(f"{time.strftime('%X')} {way}, {k} shots, seed {seed}: "
              +', '.join(f"{n} {r['accuracy']:.1f}" for n,r in cells[key].items()), flush=True)
        save(cells)

@lru_cache
def tested(way, n):
    "Test images, their classes and their tokens"
    q,yq = some('t10k', held_out[way], 0, n)
    return q,yq,tokens(way, q)

def is_baseline(name): return 'Hopfield' not in name and name!=ours

def level(a):
    "Mean of some scores, and their standard deviation"
    return f"{np.mean(a):.1f}"+(f" ± {np.std(a, ddof=1):.1f}" if len(a)>1 else '')

def interval(a, b):
    "Mean of a paired difference, with its 95 % interval"
    r = paired(a, b)
    return f"{r['mean']:+.1f} [{r['low']:+.1f}, {r['high']:+.1f}]"

def scores(cells, way, k, name): return [cells[f'{way} {k} {s}'][name]['accuracy'] for s in seeds_of(cells, way, k)]
def seeds_of(cells, way, k): return [s for s in range(100) if f'{way} {k} {s}' in cells]
def both_ways(cells, k, name):
    "Mean of both ways round for each seed that has both"
    at = [s for s in seeds_of(cells, 'low', k) if f'high {k} {s}' in cells]
    return [np.mean([cells[f'{w} {k} {s}'][name]['accuracy'] for w in held_out]) for s in at]

def table(cells, names, get, title):
    "Accuracies, and how far each method is from the strongest of the baselines"
    best = {k:max(filter(is_baseline, names), key=lambda n: np.mean(get(k, n))) for k in shots}
    titles = ['', *(f'{k} shot{"s"*(k>1)}' for k in shots), *(f'{k}: minus {best[k]}' for k in shots)]
    out = [f"**{title}** ({len(get(1, ours))} seeds)", '', f"| {' | '.join(titles)} |", '|'+'---|'*len(titles)]
    for n in names:
        a = [level(get(k, n)) for k in shots]
        d = ['-' if n==best[k] else interval(get(k, n), get(k, best[k])) for k in shots]
        out.append(f"| {n} | {' | '.join(a+d)} |")
    return '\n'.join(out)

def tune(seeds=(100,101), lrs=(1e-3,3e-3,1e-2,3e-2,1e-1)):
    "Learning rates, on images of the training set: five shots of classes 5-9, seeds that the table has not"
    for name in trained:
        for lr in lrs:
            got = []
            for s in seeds:
                dls = draw('low', 5, s, valid=100)[0]
                ds = dls.valid.dataset
                out = trained_outputs(name, 'low', dls, pixels(ds.x), lr)
                got.append(100*float((out.argmax(1)==ds.y).float().mean()))
            print(f'{name:40s} lr {lr:.0e}: {np.mean(got):.1f} ({", ".join(f"{o:.1f}" for o in got)})', flush=True)

about = """{command}; {seeds} seeds: means ± standard deviations, paired differences with their 95 % intervals; torch
{torch}.

Per cent right of {test} test images (the first {each} of each class) of five classes that the frozen network has not
seen.

{tables}

{notes}
"""

notes = """What was fixed before the run, and on what: the learning rate of each trained method (`--tune`), and place,
betas and weight of our read, on images of the training set, classes 5-9 with the weights of 0-4, other draws than the
table's. Nothing was chosen on test images, nor on classes 0-4. Which baseline is the strongest was seen in the table
itself; all rows without a Hopfield read count as baselines, those on whitened blocks too.

* Trained rows: 60 steps of at most 25 images, shifted by up to two pixels and mirrored or not, AdamW, one cycle; the
  backbone is frozen. *The seed's*: 1000 learned patterns behind the attention of every block, beta .125, dropout .1.
  With one shot a class there is nothing to cross-validate on: regressions and Tip-Adapter take their defaults.
* *Copies*: each shot and eight varied copies of it. *Whitened blocks*: class token and mean patch of each of the six
  blocks, whitened by the covariance within the classes that the network was trained on (200 images each).
* *Hopfield read of the shots*: the tokens of all shots of a class behind block 1 of 6 (or the raw patches), with where
  they lie in the image, are the memory of that class, without copies. Each token of a test image looks itself up in
  each of the five (beta 40); its likeness to what it gets (times 20) is a log softmax over the classes, of which the
  image's score is the mean. Nothing is trained. In the library it is head='token_vote' at='blocks.0'.
* *Over the shots, last 2 blocks*: a bank that keeps all shots. This row and those fitted to features were done again
  after the others, with the library as it is now (at first that bank kept some of the shots only).
* *Our combination*: log probabilities of the logistic regression on whitened blocks + 4 times that read."""

def page(cells):
    "The page of what has been done"
    names = list(next(iter(cells.values())))
    tables = [table(cells, names, partial(both_ways, cells), 'Both ways round, the mean of the two')]
    for way,what in (('low','Classes 5-9, weights of 0-4'), ('high','Classes 0-4, weights of 5-9')):
        tables.append(table(cells, names, partial(scores, cells, way), what))
    seed_rows = "frozen + Hopfield (the seed's)",'linear probe','VPT-deep'
    told = [f"{k} shot{'s'*(k>1)}: {interval(*(both_ways(cells, k, n) for n in (seed_rows[0], o)))} against {o}"
            for k in shots for o in seed_rows[1:]]
    tables.append("The seed expects its Hopfield memory 5 to 10 points above the linear probe and near VPT-deep. "
                  "Here, both ways round: "+'; '.join(told)+'.')
    each = json.loads(here.with_suffix('.json').read_text())['test']
    return about.format(command='`python benchmarks/few_shot.py`', seeds=len(both_ways(cells, 1, ours)), test=5*each,
                        each=each, torch=torch.__version__, tables='\n\n'.join(tables), notes=notes)

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--seeds', type=int, default=10)
    p.add_argument('--test', type=int, default=200, help='test images a class, the first of the file')
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--again', nargs='+', help="rows to do again; 'features': all that are fitted to features")
    p.add_argument('--quick', action='store_true', help='five shots, one seed, few methods; nothing is written')
    p.add_argument('--page', action='store_true', help='make few_shot.md from what few_shot.json holds')
    p.add_argument('--tune', action='store_true', help='what learning rates were chosen by')
    o = p.parse_args()
    torch.set_num_threads(o.threads)
    if o.tune: return tune()
    if o.quick: return run(o, {}, [('low',5,0)], [*trained][:3], lambda cells: None)
    to = here.with_suffix('.json')
    was = json.loads(to.read_text()) if to.is_file() else dict(cells={}, test=o.test)
    cells = was['cells']
    if was['test']!=o.test: p.error(f"{to} has {was['test']} images a class: --test {was['test']}, or move it")
    if not o.page:
        run(o, cells, [(w,k,s) for s in range(o.seeds) for k in shots for w in held_out], [*trained],
            lambda cells: write_text(to, json.dumps(dict(test=o.test, torch=torch.__version__, cells=cells))+'\n'))
    text = page(cells)
    to.with_suffix('.md').write_text(text)
    print(text)

if __name__=='__main__': main()
