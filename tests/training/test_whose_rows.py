"""Loaders, samplers, callbacks and phases at random: each stored row is the feature and has the label of the item that
it names"""
import random, warnings
import numpy as np, pytest, torch
from fastai.callback.data import PartialDL, WeightedDL
from fastai.callback.training import GradientAccumulation
from fastai.vision.all import (Callback, CancelStepException, CrossEntropyLossFlat, DataLoaders, ItemTransform, Learner,
                               SGD, SkipItemException, TfmdDL, set_seed)
from helpers.learners import quietly
from helpers.worlds import C, N, X, Y, Net, files, images, plain, worlds
from memo.banks.base import Bank
from memo.banks.classes import ClassBank
from memo.banks.slots import SlotBank
from memo.data.items import item_ids
from memo.training.memory_callback import MemoryCallback

# what callbacks do to a batch

class Does(Callback):
    order = 5
    def __init__(self, rows=None, say=False): self.rows,self.say = rows,say
    def before_batch(self):
        if not self.training or self.rows is None: return
        i = self.rows(len(self.yb[0]))
        self.learn.xb,self.learn.yb = (tuple(o[i] for o in os) for os in (self.xb, self.yb))
        if self.say: self.learn.reindex(i)
class InPlace(Does):
    def before_batch(self):
        i = torch.randperm(len(self.yb[0]))
        if self.training:
            for o in (*self.xb, *self.yb): o[:] = o[i].clone()
class Joins(Does):
    "As MixUp of one's own: rows are nobody's"
    def before_batch(self):
        if not self.training: return
        i = torch.arange(len(self.yb[0])-1, -1, -1)
        self.learn.xb = tuple((o+o[i])/2 if o.is_floating_point() else o[i] for o in self.xb)
        self.learn.reindex(torch.full((len(i),), -1))
class News(Does):
    "Rows that nobody has seen, with targets of their own"
    def before_batch(self):
        if self.training:
            self.learn.xb = tuple(torch.randint_like(o, 2, 4) if not o.is_floating_point() else torch.rand_like(o)
                                  for o in self.xb)
            self.learn.yb = tuple((o+1)%C for o in self.yb)
class Mines(Does):
    def after_pred(self):
        if self.training: self.learn.pred,self.learn.yb = self.pred[::2],tuple(o[::2] for o in self.yb)
class Looks(Does):
    "Further forwards: of a flipped batch behind the model's, of half of it before"
    order = 70
    def before_batch(self): self.learn.model(*(o[:1] for o in self.xb))
    def after_pred(self): self.learn.model(*(o.flip(0) for o in self.xb))
class Inside(Does):
    "A validation in the middle of an epoch, a prediction at its end"
    busy = False
    def after_batch(self):
        l = self.learn
        if not self.training or self.iter!=1 or self.busy: return
        kept = l.dl,l.xb,l.yb,l.pred,l.loss,l.iter,l.n_iter,l.training
        self.quietly(l.validate)
        l.dl,l.xb,l.yb,l.pred,l.loss,l.iter,l.n_iter,l.training = kept
        l.model.train()
    def after_epoch(self): self.busy or self.quietly(self.learn.get_preds)
    def quietly(self, f, **kw):
        self.busy = True
        f(**kw)
        self.busy = False
class Skips(Does):
    def before_step(self):
        if self.iter%2: raise CancelStepException
class Nudges(Does):
    "An augmentation"
    def before_batch(self):
        if self.training: self.learn.xb = tuple(o+1e-5 if o.is_floating_point() else o.clone() for o in self.xb)

ways = dict(thin=lambda n: torch.arange(0, n, 2), permute=torch.randperm, double=lambda n: torch.arange(2*n)%n,
            pad=lambda n: torch.cat([torch.arange(n), torch.zeros(3, dtype=torch.long)]),
            one=lambda n: torch.tensor([n-1]))
unknown = dict(joins=Joins, news=News)
callbacks = {**{k:(lambda f=f: Does(f)) for k,f in ways.items()}, **unknown,
             **{f'{k}, said':(lambda f=f: Does(f, True)) for k,f in ways.items()}, 'none':Does, 'in place':InPlace,
             'mines':Mines, 'looks':Looks, 'inside':Inside, 'skips':Skips, 'nudges':Nudges,
             'accumulates':lambda: GradientAccumulation(11)}

# what loaders do to samples

class drop(ItemTransform):
    def encodes(self, o):
        if float(o[0].sum())%1<.3: raise SkipItemException
        return o
def by_sum(b): return sorted(b, key=lambda o: float(o[0].sum()))
def rebuilt(b): return [(o[0]+0,*o[1:]) for o in by_sum(b)]
def fewer(b): return b[::2]
def twice(b): return b+b[:2]
class Around:
    "Hands on what it is asked for to the loader in it"
    def __init__(self, dl): self.dl = dl
    def __iter__(self): return iter(self.dl)
    def __len__(self): return len(self.dl)
    def __getattr__(self, k):
        if k=='dl': raise AttributeError(k)
        return getattr(self.dl, k)

loaders = dict(
    weighted=lambda dl: dl.new(cls=WeightedDL, wgts=[1.+i%5 for i in range(len(dl.dataset))], shuffle=True),
    partial=lambda dl: dl.new(cls=PartialDL, partial_n=len(dl.dataset)//2), last=lambda dl: dl.new(drop_last=True),
    sorts=lambda dl: dl.new(before_batch=by_sum), rebuilds=lambda dl: dl.new(before_batch=rebuilt),
    fewer=lambda dl: dl.new(before_batch=fewer), twice=lambda dl: dl.new(before_batch=twice),
    workers=lambda dl: dl.new(num_workers=2), around=Around)
raw = dict(skips=lambda dl: dl.new(after_item=drop()),
           both=lambda dl: dl.new(after_item=drop(), before_batch=rebuilt))
banks = {**{p:(lambda p=p: SlotBank(40, policy=p)) for p in ('fifo','reservoir','rarity','diversity','hard')},
         'large':lambda: SlotBank(200, policy='fifo'), 'classes':lambda: ClassBank(C, capacity=12)}

class Draw:
    "One history of a memory: what is drawn, and what each item is"
    def __init__(self, seed, folder):
        self.r,self.folder,self.said = random.Random(seed),folder,[f'seed {seed}']
        self.net,self.item,self.label,self.versions = Net(),{},{},[0]
        self.bank = banks[self.pick(banks)]()
        heads = [None,'add','vote'] + (['replay'] if isinstance(self.bank, ClassBank) else [])
        self.head = self.r.choice(heads)
        self.said.append(str(self.head))
        self.known,self.rows,self.tells = 0,0,True

    def pick(self, os):
        k = self.r.choice(sorted(os))
        self.said.append(k)
        return k

    def world(self, kind):
        ks = self.r.sample(range(N), N)
        n = self.r.choice([30,40])
        kw = dict(bs=self.r.choice([8,11,16]), num_workers=0)
        w = worlds[kind](self.folder, ks[:n], ks[n:n+14], kw)
        how = {**loaders, **(raw if kind in ('tuples','own','subset','tensors','rows') else {})}
        self.how = 'plain'
        if kind in images or kind in plain:
            if self.r.random()<.6: self.how = self.pick(how)
            if self.how=='workers' and self.r.random()<.7: self.how = 'last'
        elif self.r.random()<.1: self.how = 'around'
        if self.how!='plain': w.dls = DataLoaders(how[self.how](w.dls.train), w.dls.valid, device='cpu')
        return w

    def learn_items(self, w):
        for i,k in zip(item_ids(w.dls.train).tolist(), w.keys):
            if (was := self.item.setdefault(i, (k,w.inputs)))[0]!=k: self.wrong(f'items {was[0]} and {k} have one id')

    def wrong(self, msg): raise AssertionError(f"{msg}: {', '.join(self.said)}")

    def phase(self, kind):
        w,how = self.world(kind),self.pick(callbacks)
        if self.head=='replay' and (how=='mines' or kind=='tabular'): self.head = None      # refused in a line
        self.tells = self.tells and how not in unknown and (kind!='rows' or self.how not in ('rebuilds','both'))
        self.learn_items(w)
        with torch.no_grad(): self.net.out.weight.mul_(0).add_(torch.randn(C, 12)*.1)
        learn = Learner(w.dls, self.net, loss_func=CrossEntropyLossFlat(), opt_func=SGD, path=self.folder,
                        cbs=[MemoryCallback(self.bank, head=self.head, k=3), callbacks[how]()])
        quietly(learn, 'fit', 1, 1e-3)
        self.check()
        if self.r.random()<.4:
            self.versions.append(len(self.versions))
            self.net.body.turn(self.versions[-1])
            self.said.append('rekey')
            learn.memory.rekey()
            self.check()
        learn.memory.detach()
        if self.r.random()<.3:      # as in another process
            self.said.append('saved')
            self.bank.save(self.folder/'bank.safetensors')
            self.bank = Bank.load(self.folder/'bank.safetensors')

    def check(self):
        if not len(self.bank): return
        f,_,ys,items,_,valid = self.bank.rows()
        for j,i in enumerate(items.tolist()):
            if valid is not None and not valid[j] or valid is None and j>=len(self.bank): continue
            self.rows += 1
            if i<0 and self.tells: self.wrong(f'row {j} is nobody\'s')
            if i<0: continue
            if i not in self.item: self.wrong(f'row {j} names an item {i} that there is not')
            k,inputs = self.item[i]
            body = self.net.body
            want = [(body.turn(v), body(*inputs(k))[0])[1] for v in self.versions]
            if isinstance(self.bank, ClassBank): want = [torch.nn.functional.normalize(o, dim=0) for o in want]
            if not any(torch.allclose(f[j].float(), o, atol=2e-3) for o in want):
                self.wrong(f'row {j} is said to be item {k}, and is not')
            if ys is not None and int(ys[j])!=int(Y[k]): self.wrong(f'row {j} of item {k} has another label')
            self.known += 1

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return files(tmp_path_factory.mktemp('digits'))

def draw(seed, folder):
    set_seed(seed)
    d = Draw(seed, folder)
    kind = d.pick(worlds)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for _ in range(d.r.choice([1,2,2,3])): d.phase(kind)
    return d

@pytest.mark.parametrize('seeds', [range(60), pytest.param(range(60, 560), marks=pytest.mark.slow)],
                         ids=['60 draws','500 draws'])
def test_each_row_is_the_item_that_it_names(seeds, folder):
    done = [draw(s, folder) for s in seeds]
    assert sum(o.known for o in done) > .7*sum(o.rows for o in done)
