"A few images of some classes: the same by seed in any order, of any loaders, without opening one, ids and names right"
import random, shutil, warnings
import numpy as np, pandas as pd, PIL.Image, pytest, torch
from fastai.learner import Learner, load_learner
from fastcore.foundation import L
from fastai.tabular.all import Categorify, TabularDataLoaders
from fastai.text.all import TextDataLoaders
from fastai.vision.all import (Categorize, CategoryBlock, ColReader, ColSplitter, CrossEntropyLossFlat, DataBlock,
    DataLoader, DataLoaders, Datasets, Flip, GrandparentSplitter, ImageBlock, ImageDataLoaders, MaskBlock, Normalize,
    Path, PILImage, PILImageBW, RandomSplitter, RegressionBlock, Resize, TfmdDL, TfmdLists, ToTensor, accuracy,
    get_image_files, imagenet_stats, noop, parent_label, set_seed)
from hypothesis import given, settings, strategies as st
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torch.utils.data import DataLoader as TorchDL
from torchvision.datasets import ImageFolder
from helpers.errors import err
from helpers.learners import quietly
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.data.class_labels import class_labels
from memo.data.few_shot import draw_classes, draw_shots, few_shot, only_classes
from memo.data.items import item_ids
from memo.data.longtail import digits_lt
from memo.data.samplers import BalancedDL
from memo.data.tensors import TensorDL, TensorSet, plain_dl
from memo.data.whole import digits
from memo.training.memory_callback import MemoryCallback

D = load_digits()
NAMES = 'zero one two three four five six seven eight nine'.split()
X,Y = torch.from_numpy(D.images*(255/16)).round().byte()[:,None],torch.from_numpy(D.target).long()

def image(i): return PIL.Image.fromarray((D.images[i]*(255/16)).astype(np.uint8)).resize((16,16))

@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    "600 real digits as train/CLASS/*.png, valid/CLASS/*.png"
    root = tmp_path_factory.mktemp('digits')
    for i in range(600):
        f = root/('train' if i<400 else 'valid')/NAMES[D.target[i]]/f'{i:04}.png'
        f.parent.mkdir(parents=True, exist_ok=True)
        image(i).save(f)
    return root

@pytest.fixture(scope='module')
def frame(tree):
    fs = sorted(get_image_files(tree))
    return pd.DataFrame(dict(file=[o.relative_to(tree).as_posix() for o in fs], kind=[o.parent.name for o in fs],
                             held=[o.parent.parent.name=='valid' for o in fs]))

KW = dict(bs=16, device='cpu', num_workers=0, item_tfms=Resize(16))
def folders(root, frame, **kw): return ImageDataLoaders.from_folder(root, valid='valid', **KW|kw)
def frames(root, frame, **kw):
    return ImageDataLoaders.from_df(frame, root, fn_col='file', label_col='kind', valid_col='held', **KW|kw)
def lists(root, frame, **kw):
    fs = sorted(get_image_files(root/'train'))
    return ImageDataLoaders.from_lists(root, fs, [o.parent.name for o in fs], seed=1, **KW|kw)
def block(root, frame, **kw):
    b = DataBlock((ImageBlock,CategoryBlock), get_items=get_image_files, get_y=parent_label,
                  splitter=GrandparentSplitter(valid_name='valid'), item_tfms=Resize(16))
    return b.dataloaders(root, bs=16, device='cpu', num_workers=0)
def getters(root, frame, **kw):
    b = DataBlock((ImageBlock(PILImageBW),CategoryBlock), get_x=ColReader('file', pref=f'{root}/'),
                  get_y=ColReader('kind'), splitter=ColSplitter('held'), item_tfms=Resize(16))
    return b.dataloaders(frame, bs=16, device='cpu', num_workers=0)
makers = [folders, frames, lists, block, getters]

def labels_told(dl): return [(Path(str(p)).parent.name) for p in names_of(dl.dataset)]
def names_of(ds):
    it = ds.items
    if isinstance(it, pd.DataFrame): return it.iloc[:,0].tolist()
    return [o[0] if isinstance(o, (tuple,list)) else o for o in it]

# fastai's loaders

@pytest.mark.parametrize('make', makers)
@pytest.mark.parametrize('n_way,n_shot', [(None,1), (3,5), (10,3), (2,None)])
def test_what_is_in_the_loaders(tree, frame, make, n_way, n_shot):
    "n_shot of each class in training, all others of these classes in validation; names and numbers fit"
    dls = make(tree, frame)
    few = few_shot(dls, n_way, n_shot, seed=3)
    assert type(few) is type(dls) and type(few.train) is type(dls.train) and few.path==dls.path
    assert few.c==len(few.vocab)==(n_way or 10) and set(few.vocab)<=set(dls.vocab) and few.train.bs==16
    assert list(few.vocab)==[o for o in dls.vocab if o in few.vocab]
    own = pd.Series(labels_told(few.train)).value_counts()
    if n_shot: assert own.to_dict()=={k:n_shot for k in few.vocab}
    else: assert len(few.train_ds)==sum(o in few.vocab for o in labels_told(dls.train))
    assert names_of(few.valid_ds)==[o for o,k in zip(names_of(dls.valid_ds), labels_told(dls.valid)) if k in few.vocab]
    for dl in (plain_dl(few.train), few.valid):
        y = torch.cat([b[1] for b in dl])
        assert [few.vocab[i] for i in y]==labels_told(dl)
    assert not {*names_of(few.train_ds)} & {*names_of(few.valid_ds)}
    assert {*names_of(few.train_ds)}<={*names_of(dls.train_ds)}
    assert dls.c==10 and len(dls.train.dataset)>300, 'the old loaders are as they were'

@pytest.mark.parametrize('make', makers)
def test_no_image_is_opened(tree, frame, make, monkeypatch):
    dls = make(tree, frame)
    opened = []
    real = PIL.Image.open
    monkeypatch.setattr(PIL.Image, 'open', lambda *a, **kw: opened.append(a) or real(*a, **kw))
    few = few_shot(dls, 4, 2)
    only_classes(dls, ['two','six'])
    assert not opened
    few.train.one_batch()
    assert 0<len(opened)<=16

def test_files_that_hold_no_image_are_drawn_from(tmp_path):
    for k in 'abc':
        for i in range(6):
            (tmp_path/k).mkdir(exist_ok=True)
            image(i).save(tmp_path/k/f'{i}.jpg')
    tls = Datasets(get_image_files(tmp_path), [[PILImage.create],[parent_label, Categorize()]],
                   splits=RandomSplitter(seed=0)(range(18)))
    dls = tls.dataloaders(bs=2, after_item=[Resize(16),ToTensor], device='cpu')
    for o in get_image_files(tmp_path): o.write_bytes(b'')
    few = few_shot(dls, n_way=2, n_shot=1)
    assert len(few.train_ds)==2 and few.c==2

@pytest.mark.parametrize('make', makers[:2])
def test_a_learner_learns_and_predicts(tree, frame, make, tmp_path):
    few = few_shot(make(tree, frame), 3, 5)
    set_seed(0)
    learn = Learner(few, nn.Sequential(nn.Flatten(), nn.LazyLinear(few.c)), metrics=accuracy, path=tmp_path)
    learn.model(few.one_batch()[0])
    quietly(learn, learn.fit, 20, 1e-2)
    assert learn.recorder.iters and learn.recorder.values[-1][-1]>.5
    p = next(o for o in get_image_files(tree/'valid') if o.parent.name==few.vocab[1])
    with learn.no_bar(): assert learn.predict(p)[0] in few.vocab
    learn.export('e.pkl')
    with (other := load_learner(tmp_path/'e.pkl')).no_bar(): assert other.predict(p)[0]==learn.predict(p)[0]

def test_an_incomplete_batch_stays(tree, frame):
    "fastai's training loaders leave it out: an epoch would be empty"
    few = few_shot(folders(tree, frame, bs=64), 3, 2)
    assert len(few.train)==1 and sum(len(b[1]) for b in few.train)==6
    assert few_shot(folders(tree, frame, bs=4), 3, 3).train.drop_last

def test_transforms_and_samplers_stay(tree, frame):
    dls = folders(tree, frame, batch_tfms=[Flip(), *[Normalize.from_stats(*imagenet_stats, cuda=False)]])
    few = few_shot(dls, 3, 2)
    for i in (0,1):
        assert [type(o) for o in few[i].after_batch.fs]==[type(o) for o in dls[i].after_batch.fs]
        assert few[i].dataset.split_idx==i and few[i].after_item.fs==dls[i].after_item.fs
    a = digits_lt(sampling='sqrt', device='cpu')
    assert type(few_shot(a, 3).train) is BalancedDL and few_shot(a, 3).train.power==.5

def test_weights_stay_with_their_items(tree, frame):
    b = DataBlock((ImageBlock,CategoryBlock), get_items=lambda p: sorted(get_image_files(p)), get_y=parent_label,
                  splitter=GrandparentSplitter(valid_name='valid'), item_tfms=Resize(16))
    n = len(b.datasets(tree).train)
    dls = b.weighted_dataloaders(tree, wgts=np.arange(1, n+1), bs=16, device='cpu')
    few = few_shot(dls, 3, 2)
    at = [dls.train_ds.items.index(o) for o in few.train_ds.items]
    assert np.allclose(few.train.wgts, dls.train.wgts[at]/dls.train.wgts[at].sum())

def test_own_transforms_of_the_label(tree):
    "No Categorize: whole numbers of a function of one's own; a vocabulary with #na#"
    fs = sorted(get_image_files(tree/'train'))
    at = {n:i for i,n in enumerate(NAMES)}
    def number(p): return at[p.parent.name]
    dls = Datasets(fs, [[PILImage.create],[number]], splits=[[*range(0, 400, 2)],[*range(1, 400, 2)]]).dataloaders(
        bs=8, after_item=[Resize(16),ToTensor], device='cpu')
    few = few_shot(dls, 4, 3)
    y = torch.cat([b[1] for b in plain_dl(few.train)]).tolist()
    assert [few.vocab[i] for i in y]==[number(p) for p in few.train_ds.items] and set(y)=={0,1,2,3}==set(range(few.c))
    same = few_shot(dls, None, 3)
    assert [int(o) for o in torch.cat([b[1] for b in plain_dl(same.train)])]==[number(p) for p in same.train_ds.items]
    dls = Datasets(fs, [[PILImage.create],[parent_label, Categorize(vocab=NAMES, sort=False, add_na=True)]],
                   splits=[[*range(0, 400, 2)],[*range(1, 400, 2)]])
    dls = dls.dataloaders(bs=8, after_item=[Resize(16),ToTensor], device='cpu')
    assert few_shot(dls, 10, 2).c==dls.c==11
    few = few_shot(dls, 3, 2)
    assert few.vocab[0]=='#na#' and few.c==4
    y = torch.cat([b[1] for b in plain_dl(few.train)])
    assert [few.vocab[i] for i in y]==[p.parent.name for p in few.train_ds.items]

# the draw

def paths(dls): return [Path(o).name for o in names_of(dls.train_ds)]

def test_the_draw_is_by_the_files_not_their_order(tree, frame, tmp_path):
    "Nor by the kind of the loaders, the folder they are in, the number of workers, random numbers drawn before"
    want = paths(few_shot(folders(tree, frame), 4, 3, seed=5))
    random.seed(1)
    set_seed(7)
    assert paths(few_shot(frames(tree, frame.sample(frac=1, random_state=0)), 4, 3, seed=5))==want
    assert paths(few_shot(folders(tree, frame, num_workers=2), 4, 3, seed=5))==want
    shutil.copytree(tree, tmp_path/'else'/'where')
    assert paths(few_shot(block(tmp_path/'else'/'where', frame), 4, 3, seed=5))==want
    assert paths(few_shot(folders(tree, frame), 4, 3, seed=6))!=want
    files = list(get_image_files(tree/'train'))
    random.shuffle(files)
    got = few_shot(files, 4, 3, seed=5, labels=parent_label)
    assert [files[i].name for i in got]==want

@pytest.mark.parametrize('make', [makers[0], makers[4]])
def test_fewer_shots_and_classes_are_a_part_of_more(tree, frame, make):
    dls = make(tree, frame)
    for seed in range(3):
        sets = [{*paths(few_shot(dls, None, n, seed))} for n in (1,2,5,10,None)]
        assert all(a<b for a,b in zip(sets, sets[1:]))
        ways = [few_shot(dls, w, 2, seed) for w in (2,5,10)]
        assert {*ways[0].vocab}<{*ways[1].vocab}<{*ways[2].vocab} and {*paths(ways[0])}<{*paths(ways[1])}

@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_draws(data):
    "Of each class so many different ones; in any order the same; nested"
    n = data.draw(st.integers(4, 80))
    y = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    keys = st.lists(st.integers(0, 2**60), min_size=n, max_size=n, unique=data.draw(st.booleans()))
    keys = torch.tensor(data.draw(keys))
    seed,p = data.draw(st.integers(0, 2**31)),torch.randperm(n)
    classes = y.unique().tolist()
    most = min(len({int(k) for k in keys[y==c]}) for c in classes)
    names = {c:f'c{c}' for c in classes}
    last = set()
    for k in range(1, most+1):
        at = draw_shots(y, keys, classes, k, seed, names)
        assert y[at].bincount(minlength=4).tolist()==[k*(c in classes) for c in range(4)]
        assert all(len({int(o) for o in keys[at][y[at]==c]})==k for c in classes)
        again = draw_shots(y[p], keys[p], classes, k, seed, names)
        assert [(int(y[i]),int(keys[i])) for i in at]==[(int(y[p][i]),int(keys[p][i])) for i in again]
        now = {(int(y[i]),int(keys[i])) for i in at}
        assert last<=now
        last = now
    with pytest.raises(MemoError): draw_shots(y, keys, classes, most+1, seed, names)

def test_every_item_is_drawn_as_often():
    "Over seeds, and two classes go together as often as any"
    y,keys = torch.zeros(20, dtype=torch.long),item_ids(TensorSet(torch.arange(20.)[:,None]))
    n = torch.zeros(20)
    for s in range(600): n[draw_shots(y, keys, [0], 5, s, 'a')] += 1
    assert ((n-150).abs()<5*(600*.25*.75)**.5).all()
    ways = torch.zeros(6, 6)
    for s in range(600):
        a,b = draw_classes(dict(enumerate('abcdef')), 2, s)
        ways[a,b] += 1
    assert ((ways[ways>0]-40).abs()<30).all() and (ways>0).sum()==15

def test_doubles_count_once():
    x,y = X[:40].clone(),Y[:40].clone()
    x[20:],y[20:] = x[:20],y[:20]
    n = int(y[:20].bincount().min())
    dls = DataLoaders(TensorDL(x, y, vocab=NAMES), TensorDL(x[:5], y[:5], vocab=NAMES), device='cpu')
    few = few_shot(dls, None, n)
    assert len(item_ids(few.train).unique())==10*n==len(few.train_ds)
    m = err(few_shot, dls, None, n+1)
    assert 'different ones' in m and f'({2*n} with doubles)' in m

# memo's loaders, and what they say

def test_tensor_sets():
    dls = digits(device='cpu', valid=10)
    few = few_shot(dls, 4, 3, seed=2)
    lab = dls.split.set_index('item').label
    for a,b in zip(dls, few):
        ids = item_ids(b)
        assert torch.isin(ids, item_ids(a)).all() and b.dataset.split_idx==a.dataset.split_idx
        assert [few.vocab[int(i)] for i in b.dataset.y]==[dls.vocab[lab[i]] for i in ids.tolist()]
        row = {int(i):x for i,x in zip(item_ids(a), a.dataset.x)}
        assert all(torch.equal(row[int(i)], x) for i,x in zip(ids, b.dataset.x))
    assert few.counts.tolist()==[3]*4 and [len(o.dataset) for o in few]==[12,40,160]
    assert few.split.equals(few_shot(dls, 4, 3, seed=2).split)
    assert few.split.item.tolist()==torch.cat([item_ids(o) for o in few]).tolist()
    assert few.split.label.tolist()==torch.cat([o.dataset.y for o in few]).tolist()
    assert few.one_batch()[0].shape[1:]==dls.one_batch()[0].shape[1:] and dls.counts.sum()==len(dls.train_ds)
    a,b = (torch.cat([o[1] for o in few_shot(digits(device='cpu', seed=1), 4, 3).train]) for _ in range(2))
    assert torch.equal(a, b), 'the order of training batches is by the seed too'

def test_ids_are_the_items_own(tree, frame):
    for make in makers:
        dls = make(tree, frame)
        few = few_shot(dls, 3, 4)
        for i in (0,1):
            own = dict(zip(map(str, names_of(dls[i].dataset)), item_ids(dls[i]).tolist()))
            assert [own[str(o)] for o in names_of(few[i].dataset)]==item_ids(few[i]).tolist()

def test_ids_of_items_that_say_nothing():
    "Numbers, of which an own function makes images: an id is that of its place in the whole set, in its part too"
    def shown(i): return PILImageBW(image(int(i)))
    def named(i): return NAMES[D.target[int(i)]]
    ds = Datasets(list(range(400)), [[shown],[named, Categorize()]], splits=[[*range(300)],[*range(300, 400)]])
    dls = ds.dataloaders(bs=8, after_item=[ToTensor], device='cpu')
    few = few_shot(dls, 3, 2)
    for i in (0,1):
        own = dict(zip(dls[i].dataset.items, item_ids(dls[i]).tolist()))
        assert [own[o] for o in few[i].dataset.items]==item_ids(few[i]).tolist()
        assert item_ids(few[i]).tolist()==item_ids(few[i].new(shuffle=False)).tolist()

class Faces(Dataset):
    "A set of somebody's own, in memory"
    def __init__(self, x, y, told=True):
        self.x = x
        if told: self.targets = y
        else: self.own = y
        self.asked = 0
    def __len__(self): return len(self.x)
    def __getitem__(self, i):
        self.asked += 1
        return self.x[i].float()/255,(self.targets if hasattr(self, 'targets') else self.own)[i]

def torch_dls(told=True, kind='fastai', n=300, y=Y):
    a,b = Faces(X[:n], y[:n], told),Faces(X[n:n+100], y[n:n+100], told)
    if kind=='fastai': return DataLoaders(DataLoader(a, bs=16, shuffle=True), DataLoader(b, bs=16), device='cpu')
    return DataLoaders(TorchDL(a, 16, shuffle=True), TorchDL(b, 16))

@pytest.mark.parametrize('kind', ['fastai','torch'])
def test_torch_sets(kind):
    dls = torch_dls(kind=kind)
    few = few_shot(dls, 3, 4)
    assert dls.train.dataset.asked==0, 'no item is loaded'
    names = few.train.dataset.classes
    assert len(few.train.dataset)==12 and few.train.dataset.c==3 and type(few.train) is type(dls.train)
    for i in (0,1):
        ds = few[i].dataset
        for k in range(len(ds)):
            x,y = ds[k]
            was = int(dls[i].dataset.targets[ds.indices[k]])
            assert names[int(y)]==was and torch.equal(x, dls[i].dataset.x[ds.indices[k]].float()/255)
        assert torch.cat([b[1] for b in few[i]]).sort().values.tolist()==sorted(int(o) for o in ds.targets)
    assert torch.equal(item_ids(few.train.dataset), item_ids(dls.train.dataset)[few.train.dataset.indices])
    few = few_shot(dls, None, 2)
    assert len(few.train.dataset)==20 and few.valid is dls.valid

@pytest.mark.parametrize('made', ['digits','folders','getters','torch'])
def test_a_memory_knows_the_items(tree, frame, made):
    "What a memory stores in the new loaders has the ids of the old ones; a query does not find itself"
    dls = dict(digits=lambda: digits(device='cpu', bs=4), folders=lambda: folders(tree, frame, bs=4),
               getters=lambda: getters(tree, frame, bs=4), torch=lambda: torch_dls())[made]()
    few = few_shot(dls, 5, 4)
    c = few.train.dataset.c
    set_seed(0)
    width = few.one_batch()[0][0].numel()
    learn = Learner(few, nn.Sequential(nn.Flatten(), nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, c)),
                    loss_func=CrossEntropyLossFlat(), cbs=MemoryCallback(SlotBank(64, policy='fifo'), head='vote'))
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        quietly(learn, learn.fit, 2, 1e-3)
    bank = learn.memory.bank
    stored = bank.items[:len(bank)]
    assert len(bank)>=len(few.train.dataset)-4 and torch.isin(stored, item_ids(dls.train)).all() and (stored>=0).all()
    y = dict(zip(item_ids(few.train).tolist(), class_labels(few.train.dataset).y.tolist()))
    assert [y[i] for i in stored.tolist()]==bank.labels[:len(bank)].tolist()
    r = learn.recall(ds_idx=0, k=3)
    assert (r.weight>0).any() and not ((r.row_item==r.item[:,None]) & (r.weight>0)).any()
    assert torch.isin(r.item, item_ids(few.train)).all()

# what the labels are read from

def test_labels_of_torchs_own_sets(tree, monkeypatch):
    folder = ImageFolder(tree/'train')
    shown = ImageFolder(tree/'train', transform=lambda im: torch.zeros(1), target_transform=lambda y: (y+1)%10)
    monkeypatch.setattr(PIL.Image, 'open', lambda *a, **kw: pytest.fail('an image was opened'))
    at = few_shot(folder, 4, 3, seed=1)
    assert few_shot(shown, 4, 3, seed=1)!=at, 'target_transform says the class'
    assert class_labels(shown).y.tolist()==[(o+1)%10 for o in folder.targets]
    part = Subset(folder, [i for i,y in enumerate(folder.targets) if y<4])
    few = few_shot(part, None, 5)
    assert [part.dataset.targets[part.indices[i]] for i in few]==[0]*5+[1]*5+[2]*5+[3]*5
    assert {*class_labels(part).names.values()}=={'eight','five','four','nine'}
    both = ConcatDataset([part, Subset(folder, range(390, 400))])
    assert len(class_labels(both).y)==len(part)+10
    assert few_shot(TensorDataset(X, Y), 3, 2)!=few_shot(TensorDataset(X, Y), 3, 2, seed=1)
    x = [ImageFolder(tree/'train'), ImageFolder(tree/'train')]
    own,twice = ConcatDataset(x),ConcatDataset([x[0],x[0]])
    most = int(torch.tensor(x[0].targets).bincount().min())
    assert len(few_shot(own, None, 2*most))==20*most and 'with doubles' in err(few_shot, twice, None, 2*most)
    pairs = list(zip(X, Y.tolist()))
    assert [pairs[i][1] for i in few_shot(pairs, None, 2)]==[c for c in range(10) for _ in range(2)]

def test_a_set_that_tells_no_labels_is_loaded_once():
    dls = torch_dls(told=False)
    with pytest.warns(UserWarning, match='does not tell them without its items') as w: few = few_shot(dls, None, 2)
    assert len([o for o in w if 'without its items' in str(o.message)])==1
    assert [int(few.train.dataset[i][1]) for i in range(20)]==[c for c in range(10) for _ in range(2)]

def test_labels_are_said(tree, frame):
    assert 'tells none; give labels=' in err(few_shot, list(range(10)))
    assert 'a list tells none' in err(few_shot, L(['a/1.png','b/2.png']))      # what get_image_files gives
    assert 'is no column of the items' in err(few_shot, frame, labels='colour')
    assert 'one for each of the 600 items' in err(few_shot, frame, labels=['a','b'])
    fs = sorted(get_image_files(tree/'train'))
    number = lambda p: NAMES.index(p.parent.name)
    dls = Datasets(fs, [[PILImage.create],[number]], splits=[range(400),range(10)]).dataloaders(
        bs=8, after_item=[Resize(16),ToTensor], device='cpu')
    assert len(few_shot(dls, None, 2, labels=parent_label).train_ds)==20
    assert 'give their label pipeline a Categorize' in err(few_shot, dls, 3, 2, labels=parent_label)
    a = few_shot(frame, 3, 2, labels='kind')
    b = few_shot(frame, 3, 2, labels=frame.kind.tolist())
    assert a==b and frame.kind.iloc[a].nunique()==3
    x = torch.randn(30, 4)
    at,p = few_shot(x, 2, 3, labels=[i%3 for i in range(30)]),torch.randperm(30)
    again = few_shot(x[p], 2, 3, labels=[int(i)%3 for i in p])
    assert [int(p[i]) for i in again]==at

def test_texts_and_tables():
    df = pd.DataFrame(dict(text=[f'{"good" if i%3 else "bad"} film number {i}' for i in range(90)],
                           label=[f'l{i%3}' for i in range(90)]))
    dls = TextDataLoaders.from_df(df, text_col='text', label_col='label', bs=8, device='cpu')
    few = few_shot(dls, 2, 4)
    assert len(few.train_ds)==8 and few.c==2 and few.one_batch()[1].max()<2
    t = pd.DataFrame(dict(a=range(90), k=[f'k{i%5}' for i in range(90)], y=[f'l{i%3}' for i in range(90)]))
    dls = TabularDataLoaders.from_df(t, procs=[Categorify,Normalize], cat_names=['k'], cont_names=['a'], y_names='y',
                                     bs=8)
    few = few_shot(dls, None, 4)
    assert few.train_ds.y.value_counts().tolist()==[4,4,4]
    assert {*item_ids(few.train).tolist()}<{*item_ids(dls.train).tolist()}
    assert 'classes of a table keep their numbers' in err(few_shot, dls, 2)

def test_a_text_is_a_class_of_a_torch_set():
    dls = torch_dls(y=[NAMES[i] for i in Y.tolist()])
    few = few_shot(dls, 3, 2)
    ds = few.train.dataset
    assert [ds.classes[ds[i][1]] for i in range(6)]==[dls.train.dataset.targets[i] for i in ds.indices]

def test_lists_of_one_pipeline(tree):
    "Their labels come with the images"
    fs = sorted(get_image_files(tree/'train'))
    def both(p): return PILImage.create(p),NAMES.index(p.parent.name)
    dls = DataLoaders(*[TfmdDL(TfmdLists(fs[i::2], [both]), bs=8, after_item=[Resize(16),ToTensor]) for i in (0,1)])
    for n_way in (None,3):
        with pytest.warns(UserWarning, match='without its items'): few = few_shot(dls, n_way, 2)
        assert len(few.train.dataset)==2*(n_way or 10)
        assert torch.isin(item_ids(few.train), item_ids(dls.train)).all()
        y = torch.cat([b[1] for b in few.train.new(shuffle=False)]).tolist()
        assert y==([c for c in range(n_way or 10) for _ in range(2)])

def test_any_whole_number_is_a_seed():
    y = [i%4 for i in range(40)]
    assert len({tuple(few_shot(range(40), None, 2, s, labels=y)) for s in (0,-1,2**40,2**62+1)})==4
    with pytest.raises(MemoError, match='more than 64 bits'): few_shot(range(40), None, 2, 2**70, labels=y)

# mistakes

def regression(): return DataLoaders(*[TensorDL(X[:50], Y[:50].float()) for _ in range(2)])
def several(): return DataLoaders(*[TensorDL(X[:50], torch.nn.functional.one_hot(Y[:50]).float()) for _ in range(2)])

def test_targets_that_are_no_classes(tree, frame):
    for f in (few_shot, lambda o: only_classes(o, [0,1])):
        assert 'a quantity' in err(f, regression())
        assert 'several labels an item' in err(f, several())
    more = frame.assign(kind='a '+frame.kind)
    dls = ImageDataLoaders.from_df(more, tree, fn_col='file', label_col='kind', label_delim=' ', valid_col='held', **KW)
    assert 'several labels an item' in err(few_shot, dls)
    dls = ImageDataLoaders.from_df(frame.assign(kind=1.5), tree, fn_col='file', label_col='kind', valid_col='held',
                                   y_block=RegressionBlock, **KW)
    assert 'a quantity' in err(few_shot, dls)
    b = DataBlock((ImageBlock,MaskBlock), get_items=get_image_files, get_y=noop, item_tfms=Resize(16))
    assert 'the targets are a PILMask' in err(few_shot, b.dataloaders(tree, bs=4, device='cpu'))
    assert 'item 1 has none; leave it out' in err(few_shot, ['a','b'], labels=['x',float('nan')])

@pytest.mark.parametrize('kw,parts', [
    (dict(n_shot=0), ('n_shot must be a whole number from 1','found 0')),
    (dict(n_shot=-1), ('n_shot must be',)),
    (dict(n_shot=1.5), ('n_shot must be',)),
    (dict(n_shot=True), ('n_shot must be',)),
    (dict(n_way=0), ('n_way must be a whole number from 1',)),
    (dict(n_way=1), ('n_way: 2 classes or more',)),
    (dict(n_way=11), ('n_way: 11 classes are asked for, 10 are there',)),
    (dict(seed='a'), ('seed must be a whole number',)),
    (dict(n_shot=1000), ('n_shot: 1000 items of each class are asked for, class ','(and 9 more classes have too few)')),
    (dict(n_way=3, n_shot=1000), ('(and 2 more classes have too few)',)),
])
def test_numbers_that_cannot_be(kw, parts):
    m = err(few_shot, digits(device='cpu'), **kw)
    assert all(p in m for p in parts), m

def test_a_class_that_is_small_or_empty():
    keep = torch.cat([(Y!=3).nonzero().flatten()[:300], (Y==3).nonzero().flatten()[:3]])
    dls = DataLoaders(*[TensorDL(X[keep], Y[keep], vocab=NAMES) for _ in range(2)])
    m = err(few_shot, dls, None, 5)
    assert "class 'three' has 3; n_shot=3, or classes without it (only_classes)" in m
    assert len(few_shot(dls, None, 3).train_ds)==30
    none = DataLoaders(*[TensorDL(X[Y!=3], Y[Y!=3], vocab=NAMES) for _ in range(2)])
    assert "class 'three' has 0; take classes without it" in err(few_shot, none)
    rest = only_classes(none, [n for n in NAMES if n!='three'])
    assert few_shot(rest, None, 5).counts if 'counts' in rest.train_ds.info else few_shot(rest, None, 5).c==9

def test_streams_are_refused():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): yield from zip(X, Y)
    dls = DataLoaders(DataLoader(Stream(), bs=4), DataLoader(Stream(), bs=4))
    assert 'a Stream is a stream' in err(few_shot, dls)
    for o in (None, 3): assert 'is no data set' in err(few_shot, o)
    own = TorchDL(Faces(X, Y), 4, sampler=torch.utils.data.WeightedRandomSampler([1.]*len(X), 10))
    assert 'WeightedRandomSampler of its own' in err(few_shot, DataLoaders(own, own))

# some classes

@pytest.mark.parametrize('make', makers)
def test_only_classes(tree, frame, make):
    dls = make(tree, frame)
    some = only_classes(dls, ['six','two','nine'])
    assert list(some.vocab)==['six','two','nine'] and some.c==3
    for a,b in zip(dls, some):
        assert names_of(b.dataset)==[o for o,k in zip(names_of(a.dataset), labels_told(a)) if k in some.vocab]
        b = plain_dl(b)
        assert [some.vocab[i] for i in torch.cat([o[1] for o in b])]==labels_told(b)
    few = few_shot(some, 2, 3)
    assert set(few.vocab)<set(some.vocab) and len(few.train_ds)==6

def test_numbers_that_are_names():
    "A vocabulary of the numbers 3, 5 and 7"
    dls = DataLoaders(*[TensorDL(X[Y<3], Y[Y<3], vocab=[3,5,7]) for _ in range(2)])
    assert only_classes(dls, [7,3]).vocab==[7,3]==only_classes(dls, ['7','3']).vocab
    m = err(only_classes, dls, [0,1])
    assert '0 is not one of 3, 5, 7' in m and 'nor a number' not in m

def test_names_and_numbers_of_classes():
    dls = digits(device='cpu')
    a,b,c = only_classes(dls, [7,5,9]),only_classes(dls, ['7','5','9']),only_classes(dls, np.array([7,5,9]))
    assert a.vocab==b.vocab==c.vocab==['7','5','9']
    assert all(torch.equal(a[i].dataset.y, b[i].dataset.y) for i in range(3))
    old,new = only_classes(dls, range(5)),only_classes(dls, range(5, 10))
    assert not {*torch.cat([item_ids(o) for o in old]).tolist()} & {*torch.cat([item_ids(o) for o in new]).tolist()}
    assert sum(len(o.dataset) for o in (*old,*new))==1797
    assert only_classes(dls, range(10)).train is dls.train, 'all, in their order'
    back = only_classes(dls, range(9, -1, -1))
    assert back.vocab==[str(i) for i in range(9, -1, -1)] and torch.equal(back.train_ds.y, 9-dls.train_ds.y)

@pytest.mark.parametrize('classes,part', [
    ([0,10], '10 is not one of 0, 1, 2'), ([0,'eleven'], "'eleven' is not one of"), ([0,0], "'0' is named twice"),
    (['3',3], "'3' is named twice"), ([4], '2 or more are needed'), ([], '2 or more are needed'),
    (5, 'a list of names or numbers'),
    ('567', 'a list of names or numbers'), ([True,False], 'True is not one of'), ([0,-1], '-1 is not one of'),
    ([0,1.5], '1.5 is not one of')])
def test_classes_that_are_not_there(classes, part): assert part in err(only_classes, digits(device='cpu'), classes)
