"""The same digits, texts and table rows through every way of making loaders that fastai and torch have; a `World` says
which item each position of the training set is"""
import numpy as np, pandas as pd, torch
from fastai.tabular.all import Categorify, TabularPandas
from fastai.text.all import BaseTokenizer, Numericalize, SortedDL, TextBlock, Tokenizer, pad_input
from fastai.vision.all import (CategoryBlock, Categorize, ColReader, DataBlock, DataLoader, DataLoaders, Datasets,
                               ImageBlock, ImageDataLoaders, IndexSplitter, ItemGetter, Module, Path, PILImageBW,
                               TfmdDL, TfmdLists, TransformBlock, nn, noop)
from sklearn.datasets import load_digits
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from memo.data.samplers import BalancedDL
from memo.data.tensors import TensorDL, TensorSet

N,C = 60,5
_d = load_digits()
_at = np.flatnonzero(_d.target<C)[:N]
RAW = torch.from_numpy(_d.images[_at]*(255/16)).round().byte()[:,None]
X,Y = RAW.float()/255,torch.from_numpy(_d.target[_at]).long()
words = [[f'w{(i*7+j*j)%31}' for j in range(3+i%9)]+[f'own{i}'] for i in range(N)]
table = pd.DataFrame(dict(a=[f'c{i%4}' for i in range(N)], b=[f'{i%3}' for i in range(N)],
                          u=np.cos(np.arange(N)), v=np.arange(N)/N, label=Y.numpy()))

def files(folder):
    "Each digit as a PNG, in a folder of its class"
    for i,(x,y) in enumerate(zip(RAW, Y.tolist())):
        (folder/str(y)).mkdir(exist_ok=True)
        PILImageBW.create(x[0].numpy()).save(folder/str(y)/f'{i}.png')
    return folder

class Body(Module):
    "Features that are a fixed function of the inputs: images, tokens (1 is padding), or categories and numbers"
    def __init__(self, seed=0): self.turn(seed)
    def turn(self, seed):
        "Other weights"
        g = torch.Generator().manual_seed(seed)
        for k,n in dict(pixel=64, token=200, cat=12, num=2).items():
            self.register_buffer(k, torch.randn(n, 12, generator=g))
    def forward(self, x, conts=None):
        x = x.as_subclass(torch.Tensor)
        if conts is not None:
            return self.cat[x+torch.arange(x.shape[1])*6].sum(1)+conts.as_subclass(torch.Tensor)@self.num
        if not x.is_floating_point(): return (self.token[x]*(x!=1)[...,None]).sum(1)/3
        return x.reshape(len(x), -1)@self.pixel

class Net(Module):
    def __init__(self): self.body,self.out = Body(),nn.Linear(12, C)
    def forward(self, *xb): return self.out(self.body(*xb))

class World:
    "Loaders, and of each position of the training set the number of its item"
    def __init__(self, dls, keys, inputs=None):
        self.dls,self.keys = dls,[int(o) for o in keys]
        self.inputs = inputs or (lambda k: (X[k][None],))       # of the model, a batch of that item alone
        assert len(self.keys)==len(dls.train.dataset)

def _number(p): return int(Path(p).stem)
def _images(dls):
    its = dls.train_ds.items
    of = its.image if isinstance(its, pd.DataFrame) else [o[0] if isinstance(o, tuple) else o for o in its]
    return World(dls, map(_number, of))
def _pair(train, valid, keys): return World(DataLoaders(train, valid, device='cpu'), keys)

# each takes the folder of files, training and validation items, and how to make loaders

def from_folder(f, tr, va, kw):
    return _images(ImageDataLoaders.from_path_func(f, [p for k in tr+va for p in f.glob(f'*/{k}.png')],
                   lambda p: p.parent.name, valid_pct=len(va)/len(tr+va), seed=len(tr), img_cls=PILImageBW, **kw))
def from_lists(f, tr, va, kw):
    tr = tr+tr[:7]*2        # oversampled
    fs = [f/str(int(Y[k]))/f'{k}.png' for k in tr+va]
    return _images(ImageDataLoaders.from_lists(f, fs, [str(int(Y[k])) for k in tr+va], valid_pct=.2, seed=len(tr),
                                               y_block=CategoryBlock([*'01234']), img_cls=PILImageBW, **kw))
def frame(ks, **cols):
    return pd.DataFrame(dict(image=[f'{int(Y[k])}/{k}.png' for k in ks], label=[str(int(Y[k])) for k in ks],
                             valid=False, **cols))
def from_df(f, tr, va, kw):
    df = frame(tr+va, seen=np.random.rand(len(tr+va)))
    df.loc[len(tr):,'valid'] = True
    return _images(ImageDataLoaders.from_df(df, f, valid_col='valid', img_cls=PILImageBW,
                                            y_block=CategoryBlock([*'01234']), **kw))
def block(f, tr, va, kw):
    db = DataBlock((ImageBlock(PILImageBW), CategoryBlock([*'01234'])), get_x=ItemGetter(0), get_y=ItemGetter(1),
                   splitter=IndexSplitter(range(len(tr), len(tr+va))))
    return _images(db.dataloaders([(f/str(int(Y[k]))/f'{k}.png',str(int(Y[k]))) for k in tr+va], **kw))

def _long(o): return torch.tensor(int(o))
def _splits(tr, va): return [[*range(len(tr))],[*range(len(tr), len(tr+va))]]
def datasets(f, tr, va, kw):
    ds = Datasets([Path(f'{k}.png') for k in tr+va], [[lambda p: X[_number(p)]], [lambda p: Y[_number(p)]]],
                  splits=_splits(tr, va))
    return World(ds.dataloaders(**kw), tr)
def lists(f, tr, va, kw):
    tl = TfmdLists([f'{k}' for k in tr+va], [lambda s: (X[int(s)],Y[int(s)])], splits=_splits(tr, va))
    return World(tl.dataloaders(**kw), tr)
def numbers(f, tr, va, kw):
    df = pd.DataFrame(dict(i=np.array(tr+va), label=Y[tr+va].numpy()))
    ds = Datasets(df, [[ColReader('i'), lambda i: X[int(i)]], [ColReader('label'), _long]], splits=_splits(tr, va))
    return World(ds.dataloaders(**kw), tr)

def _cells(make, read):
    def cells(f, tr, va, kw):
        df = pd.DataFrame(dict(image=pd.Series([make(k) for k in tr+va], dtype=object), label=Y[tr+va].numpy()))
        ds = Datasets(df, [[ColReader('image'), read], [ColReader('label'), _long]], splits=_splits(tr, va))
        return World(ds.dataloaders(**kw), tr)
    return cells
cells_list = _cells(lambda k: X[k].tolist(), lambda o: torch.tensor(o).reshape(1,8,8))
cells_array = _cells(lambda k: X[k].numpy(), lambda o: torch.tensor(o))
cells_image = _cells(lambda k: PILImageBW.create(RAW[k,0].numpy()),
                     lambda o: torch.tensor(np.array(o)/255)[None].float())
cells_dict = _cells(lambda k: dict(x=X[k]), lambda o: o['x'])

def _pairs(make):
    def world(f, tr, va, kw):
        kw = dict(kw)
        train,valid = make(tr),make(va)
        return _pair(TfmdDL(train, **{**kw, 'shuffle':True}), TfmdDL(valid, bs=kw['bs'], num_workers=0), tr)
    return world
class Own(Dataset):
    def __init__(self, ks): self.x,self.y,self.n,self.cache = X[ks],Y[ks],0,{}
    def __len__(self): return len(self.x)
    def __getitem__(self, i):
        self.n += 1
        return self.cache.setdefault(i, (self.x[i],self.y[i]))
class Rows(Dataset):
    "Knows its items as numbers only"
    def __init__(self, ks): self.ks = ks
    def __len__(self): return len(self.ks)
    def __getitem__(self, i): return X[self.ks[i]],int(Y[self.ks[i]])
class Thing:
    def __init__(self, k): self.x,self.y = X[k],Y[k]
whole = TensorDataset(X, Y)
tuples = _pairs(lambda ks: [(X[k],Y[k]) for k in ks])
own = _pairs(Own)
rows = _pairs(Rows)
subset = _pairs(lambda ks: Subset(whole, ks))
nested = _pairs(lambda ks: Subset(Subset(whole, range(N-1, -1, -1)), [N-1-k for k in ks]))
concat = _pairs(lambda ks: ConcatDataset([Own(ks[:len(ks)//2]), Subset(whole, ks[len(ks)//2:])]))
tensors = _pairs(lambda ks: TensorDataset(X[ks], Y[ks]))
def objects(f, tr, va, kw):
    ds = Datasets([Thing(k) for k in tr+va], [[lambda o: o.x], [lambda o: o.y]], splits=_splits(tr, va))
    return World(ds.dataloaders(**kw), tr)
def sliced(f, tr, va, kw):
    return _pair(TensorDL(X[tr], Y[tr], bs=kw['bs'], shuffle=True), TensorDL(X[va], Y[va], bs=9), tr)
def balanced(f, tr, va, kw):
    return _pair(BalancedDL(X[tr], Y[tr], bs=kw['bs'], shuffle=True), TensorDL(X[va], Y[va], bs=9), tr)

def text(f, tr, va, kw):
    "As `TextDataLoaders` are made: a frame of tokens, a loader that sorts, and padding by chunks"
    df = pd.DataFrame(dict(text=[' '.join(words[k]) for k in tr+va], label=Y[tr+va].numpy()))
    db = DataBlock((TextBlock.from_df('text', tok=BaseTokenizer(), rules=[], n_workers=0, min_freq=1, seq_len=8),
                    CategoryBlock([*range(C)])), get_x=ColReader('text'), get_y=ColReader('label'),
                   splitter=IndexSplitter(range(len(tr), len(tr+va))))
    dls = db.dataloaders(df, **kw)
    def inputs(k): return (torch.tensor([dls.vocab[0].index(w) for w in words[k]])[None],)
    at = [int(next(w for w in o if str(w).startswith('own'))[3:]) for o in dls.train_ds.items.text]
    return World(dls, at, inputs)
def padded(f, tr, va, kw):
    vocab = ['xxunk','xxpad',*sorted({w for o in words for w in o})]
    ds = Datasets([' '.join(words[k]) for k in tr+va],
                  [[str.split, Numericalize(vocab, min_freq=1)], [lambda s: Y[int(s.split('own')[1])]]],
                  splits=_splits(tr, va))
    return World(ds.dataloaders(dl_type=SortedDL, before_batch=pad_input, **kw), tr,
                 lambda k: (torch.tensor([vocab.index(w) for w in words[k]])[None],))
def tabular(f, tr, va, kw):
    df = table.iloc[tr+va].reset_index(drop=True)
    to = TabularPandas(df, [Categorify], cat_names=['a','b'], cont_names=['u','v'], y_names='label',
                       y_block=CategoryBlock([*range(C)]), splits=_splits(tr, va))
    def inputs(k):
        r = table.iloc[k]
        return (torch.tensor([[to.classes['a'].o2i[r.a],to.classes['b'].o2i[r.b]]]),
                torch.tensor([[r.u,r.v]]).float())
    return World(to.dataloaders(bs=kw['bs']), tr, inputs)

images = {o.__name__:o for o in (from_folder, from_lists, from_df, block)}
plain = dict(datasets=datasets, lists=lists, numbers=numbers, cells_list=cells_list, cells_array=cells_array,
             cells_image=cells_image, cells_dict=cells_dict, tuples=tuples, own=own, rows=rows, subset=subset,
             nested=nested, concat=concat, tensors=tensors, objects=objects)
special = {o.__name__:o for o in (sliced, balanced, text, padded, tabular)}
worlds = {**images, **plain, **special}
