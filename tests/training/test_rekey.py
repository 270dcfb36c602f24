"Rows that are encoded anew, and what is said of the others; streams, loaders around loaders"
import warnings
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from fastai.data.load import DataLoader, fa_collate
from fastai.vision.all import (CategoryBlock, ColReader, CrossEntropyLossFlat, DataBlock, DataLoaders, Datasets, F,
                               ImageDataLoaders, Learner, Module, PILImageBW, SGD, TfmdDL, TransformBlock, nn, set_seed)
from helpers.learners import quietly
from helpers.worlds import C, N, X, Y, Net, Own, files, tabular, text
from memo.banks.base import Bank
from memo.banks.classes import ClassBank
from memo.banks.slots import SlotBank
from memo.data.items import item_ids
from memo.training.memory_callback import MemoryCallback
import memo.plots.recall
from torch.utils.data import Dataset, IterableDataset

base = [(X[i],Y[i]) for i in range(N)]
def loader(cls=TfmdDL, items=base, **kw): return cls(items, bs=16, **{'shuffle':True, **kw})
def pair(train, valid=None): return DataLoaders(train, valid or TfmdDL(base[:20], bs=16), device='cpu')
def fitted(dls, head=None, bank=None, n=1, model=None, **kw):
    set_seed(0)
    learn = Learner(dls, model or Net(), loss_func=CrossEntropyLossFlat(), opt_func=SGD,
                    cbs=MemoryCallback(SlotBank(200, policy='fifo') if bank is None else bank, head=head, **kw))
    quietly(learn, 'fit', n, 1e-3)
    return learn
def said(f, *args):
    "What `f` warned of, and what it gave"
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        res = f(*args)
    return [str(o.message) for o in w if str(o.message).startswith('memory')],res
def right(learn, of):
    "Is each row the feature, as the model makes it now, and has it the label, of the item that it names?"
    b,body = learn.memory.bank,learn.model.body
    at = {int(i):k for k,i in enumerate(of)}
    rows = [(f,y,at[int(i)]) for f,y,i in zip(b.features, b.labels, b.items[:len(b)]) if int(i) in at]
    return len(rows),all(torch.allclose(f, body(X[k][None])[0], atol=1e-3) and int(y)==int(Y[k]) for f,y,k in rows)

# what stays as it was

def every_other(b): return b[::2]
def anew(b): return [(o[0].clone(),o[1].clone()) for o in b]
@pytest.mark.parametrize('f,why', [(every_other,'of items that its loader leaves out'), (anew,"are nobody's")])
def test_rows_that_are_not_encoded_anew_are_said(f, why):
    learn = fitted(pair(loader(before_batch=f)))
    learn.model.body.turn(1)
    msgs,n = said(learn.memory.rekey)
    assert len(msgs)==1 and f'of {len(learn.memory.bank)} stored rows' in msgs[0] and why in msgs[0]
    assert n<len(learn.memory.bank)

def test_nothing_is_said_where_all_are_encoded():
    learn = fitted(pair(loader()))
    learn.model.body.turn(1)
    assert said(learn.memory.rekey)==([], N) and right(learn, item_ids(base))==(N, True)

def test_another_training_set():
    learn = fitted(pair(loader(items=base[:40])))
    learn.dls = pair(loader(items=base[30:]))
    learn.model.body.turn(1)
    msgs,n = said(learn.memory.rekey)
    assert n==10 and '30 of items that are not in learn.dls.train' in msgs[0]

# under other labels

def _dls(folder, fs, ys, **kw):
    return ImageDataLoaders.from_lists(folder, fs, ys, valid_pct=.1, seed=1, bs=8, img_cls=PILImageBW,
                                       y_block=CategoryBlock([*range(C)]), **kw)
@pytest.fixture(scope='module')
def folder(tmp_path_factory): return files(tmp_path_factory.mktemp('digits'))
def _files(folder): return [folder/str(int(Y[k]))/f'{k}.png' for k in range(N)]

def test_items_with_a_new_label_keep_their_rows(folder):
    "A row is of one feature and one label; what its item has become is said"
    fs,ys = _files(folder),Y.tolist()
    learn = fitted(_dls(folder, fs, ys))
    m = len(learn.memory.bank)
    was = learn.memory.bank.features[:m].clone()
    learn.dls = _dls(folder, fs, [(y+1)%C if k%2 else y for k,y in enumerate(ys)])
    learn.model.body.turn(1)
    msgs,n = said(learn.memory.rekey)
    b,odd = learn.memory.bank,torch.tensor([int(p.stem)%2 for p in fs]).bool()
    of = {int(i):k for k,i in enumerate(item_ids(Datasets(fs, [[lambda p: p]])))}
    at = torch.tensor([of[int(i)] for i in b.items[:m]])
    assert n==int((~odd[at]).sum()) and any('have another label' in m for m in msgs)
    assert torch.equal(b.features[:m][odd[at]], was[odd[at]]) and torch.equal(b.labels[:m], Y[at])
    assert not (b.features[:m][~odd[at]]==was[~odd[at]]).all(1).any()

def test_one_file_under_two_labels(folder):
    "Each row keeps its label, and gets the feature of its file"
    fs = _files(folder)[:20]
    learn = fitted(_dls(folder, fs+fs, Y[:20].tolist()+[(y+1)%C for y in Y[:20].tolist()]))
    learn.model.body.turn(1)
    n = said(learn.memory.rekey)[1]
    b,of = learn.memory.bank,{int(i):k for k,i in enumerate(item_ids(Datasets(fs, [[lambda p: p]])))}
    rows = [(f,int(y),of[int(i)]) for f,y,i in zip(b.features, b.labels, b.items[:len(b)])]
    body = learn.model.body
    assert 0<n and all((y-int(Y[k]))%C in (0,1) for _,y,k in rows)
    now = [torch.allclose(f, body(X[k][None])[0], atol=1e-3) for f,_,k in rows]
    assert sum(now)==n

def test_class_rows_of_several_labels():
    "Of an image with several findings, each row has one; a finding that was taken back keeps its row as it was"
    M = torch.stack([Y==c for c in range(C)], 1).float()
    M[:,0] = 1      # two of most
    def dls(m): return pair(*[TfmdDL([(X[i],m[i]) for i in range(N)], bs=16, shuffle=True)]*2)
    from fastai.vision.all import BCEWithLogitsLossFlat
    learn = Learner(dls(M), Net(), loss_func=BCEWithLogitsLossFlat(), opt_func=SGD,
                    cbs=MemoryCallback(ClassBank(C, capacity=100), head=None))
    quietly(learn, 'fit', 1, 0.)
    f,_,y,items,_,valid = learn.memory.bank.rows()
    was,y,items,n = f[valid].clone(),y[valid],items[valid],int(valid.sum())
    less = M.clone()
    less[::2,0] = 0
    learn.dls = dls(less)
    learn.model.body.turn(1)
    msgs,done = said(learn.memory.rekey)
    at = torch.tensor([{int(o):k for k,o in enumerate(item_ids([(X[i],0) for i in range(N)]))}[int(i)] for i in items])
    gone = less[at].gather(1, y[:,None])[:,0]==0
    now = learn.memory.bank.rows()[0][valid]
    assert done==n-int(gone.sum()) and any('have another label' in m for m in msgs)
    assert torch.equal(now[gone], was[gone]) and not (now[~gone]==was[~gone]).all(1).any()

# another process

class Opened(Own):
    "Cannot be digested"
    def __init__(self, ks):
        super().__init__(ks)
        self.file = open(__file__)
@pytest.mark.parametrize('make,told', [(Own,False), (Opened,True)])
def test_a_set_that_cannot_be_digested_says_so_when_it_matters(make, told, tmp_path):
    "Not in the fit that fills the memory, nor in the next; where a memory from elsewhere is filled on"
    ks = list(range(40))
    msgs,learn = said(lambda: fitted(pair(loader(items=make(ks)))))
    more,_ = said(quietly, learn, 'fit', 1)
    assert not msgs and not more
    learn.memory.bank.save(tmp_path/'b.safetensors')
    msgs,again = said(lambda: fitted(pair(loader(items=make(ks))), bank=Bank.load(tmp_path/'b.safetensors'), n=2))
    assert sum('cannot be looked into' in m for m in msgs)==told
    assert len(again.memory.bank)==(80 if told else 40)
    msgs,_ = said(lambda: fitted(pair(loader(items=make(ks))), bank=Bank.load(tmp_path/'b.safetensors'),
                                 item=lambda o: float(o.sum())))
    assert not msgs

# streams

class Stream(IterableDataset):
    def __iter__(self): return iter(base)
class Counted(Stream):
    def __len__(self): return N
@pytest.mark.parametrize('cls', [DataLoader, TfmdDL])
@pytest.mark.parametrize('ds,n', [(Stream,N), (Counted,None)])
@pytest.mark.parametrize('valid', [False,True])
@pytest.mark.parametrize('head', ['vote',None])
def test_streams(cls, ds, n, valid, head):
    "They train, with a word; nothing reads further than it has to"
    def dl(): return cls(ds(), bs=16, n=n)
    msgs,learn = said(lambda: fitted(pair(dl(), dl() if valid else None), head))
    assert len(learn.memory.bank)>50 and len(msgs)==1 and 'items are not known' in msgs[0]
    msgs,changed = said(learn.memory.rekey)
    assert changed==0 and "are nobody's" in msgs[0]
    for i in (0,1): assert learn.recall(ds_idx=i, n=3).row_label.shape[0]==3
    assert len(learn.show_memories(2).axes)>2
    if head: learn.memory.fit()

# loaders around loaders

class Around:
    def __init__(self, dl): self.inner = dl
    def __iter__(self): return iter(self.inner)
    def __len__(self): return len(self.inner)
    def __getattr__(self, k):
        if k=='inner': raise AttributeError(k)
        return getattr(self.inner, k)
class Copies(Around):
    def __iter__(self): return (tuple(o.clone() for o in b) for b in self.inner)
class Flips(Around):
    def __iter__(self): return (tuple(o.flip(0) for o in b) for b in self.inner)
class Ahead(Around):
    "Takes the next batch before it gives one"
    def __iter__(self):
        bs = [None,*self.inner]
        return iter(bs[1:])
class Again(Around):
    def __iter__(self): return (b for o in self.inner for b in (o,o))
    def __len__(self): return 2*len(self.inner)
@pytest.mark.parametrize('around,known', [(Around,N), (Copies,N), (Flips,N), (Again,N), (Ahead,None)])
def test_a_loader_around_a_loader(around, known):
    dl = around(loader())
    msgs,learn = said(lambda: fitted(pair(dl)))
    n,ok = right(learn, item_ids(base))
    assert ok and (n==known if known else n<N and 'whose they are' in msgs[0])
    assert isinstance(dl.inner, TfmdDL), 'it is as it was'
    learn.model.body.turn(1)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert learn.memory.rekey()==n and right(learn, item_ids(base))[1]

# collate functions of one's own

def by_sum(b): return sorted(b, key=lambda o: float(o[0].sum()))
def jitters(b): return torch.stack([o[0]+1e-6*torch.rand(1) for o in by_sum(b)]),torch.stack([o[1] for o in by_sum(b)])
def pads(b): return torch.stack([F.pad(o[0], (0,0,0,2)) for o in b]),torch.stack([o[1] for o in b])
def pads_sorted(b): return pads(by_sum(b))
def named(b): return fa_collate([dict(x=o[0], y=o[1]) for o in b])
@pytest.mark.parametrize('f,known', [(jitters,False), (pads,True), (pads_sorted,False)])
def test_collate_functions_in_a_batch_of_one_label(f, known):
    "Labels that are alike say nothing of the order"
    class Padded(Net):
        def forward(self, x): return super().forward(x[:,:,:8])
    ks = [k for k in range(N) if Y[k]==1]
    learn = said(lambda: fitted(pair(loader(items=[base[k] for k in ks], create_batch=f)), model=Padded()))[1]
    n,ok = right(learn, item_ids(base))
    assert ok and n==(len(ks) if known else 0)

# texts, tables, two targets

@pytest.mark.parametrize('make', [text, tabular])
def test_texts_and_tables_are_known(make, folder):
    w = make(folder, list(range(40)), list(range(40, 52)), dict(bs=8))
    learn = fitted(w.dls)
    b = learn.memory.bank
    n = len(b)      # rows of tables are drawn with replacement
    assert n>20 and (b.items[:n]>=0).all() and len(b.items[:n].unique())==n
    learn.model.body.turn(1)
    assert said(learn.memory.rekey)==([], n)

def test_two_targets():
    "No label of one kind, but an item"
    df = pd.DataFrame(dict(k=range(N), a=Y.numpy(), b=Y.numpy()%2))
    db = DataBlock((TransformBlock, CategoryBlock, CategoryBlock), get_x=lambda r: X[int(r['k'])],
                   get_y=[ColReader('a'), ColReader('b')], n_inp=1)
    def loss(o, a, b): return F.cross_entropy(o, a)+F.cross_entropy(o[:,:2], b)
    learn = Learner(db.dataloaders(df, bs=16), Net(), loss_func=loss, opt_func=SGD,
                    cbs=MemoryCallback(SlotBank(99, policy='fifo'), head='add'))
    quietly(learn, 'fit', 1, 0.)
    b = learn.memory.bank
    assert len(b)==48 and (b.items[:48]>=0).all() and (b.labels is None or (b.labels[:48]==-1).all())
    learn.model.body.turn(1)
    assert learn.memory.rekey()==48
