"A stored item does not find itself in predictions either, whatever loader it comes from; a switch says otherwise"
import pytest, torch
from PIL import Image
from fastai.vision.all import (CrossEntropyLossFlat, DataLoaders, ImageDataLoaders, Interpretation, Learner, PILImageBW,
                               Resize, accuracy, get_image_files, set_seed)
from contextlib import contextmanager
from sklearn.datasets import load_digits
from torch.utils.data import Subset, TensorDataset
from helpers.learners import quietly
from memo.banks.slots import SlotBank
from memo.data.items import item_ids
from memo.data.tensors import TensorDL, TensorSet
from memo.models.small import small_cnn
from memo.training.memory_callback import MemoryCallback

_d = load_digits()
X,Y = torch.from_numpy(_d.images*(255/16)).round().byte()[:,None],torch.from_numpy(_d.target).long()

def dls_of(n=96, groups=False):
    def mk(a, b, i, **kw):
        return TensorDL(dataset=TensorSet(X[a:b], Y[a:b], torch.arange(a, b), list(range(10)), i,
                                          groups=torch.arange(a, b)//4 if groups else None), bs=16, **kw)
    return DataLoaders(mk(0, n, 0), mk(1000, 1032, 1), device='cpu')

def learner(dls=None, head='vote', size=400, **kw):
    set_seed(0)
    kw = dict(k=20)|kw
    bank = SlotBank(size, policy='fifo')
    learn = Learner(dls or dls_of(), small_cnn(1, 10), loss_func=CrossEntropyLossFlat(), metrics=accuracy,
                    cbs=MemoryCallback(bank, head=head, **kw))
    quietly(learn, learn.fit, 2, 1e-2)
    return learn

@contextmanager
def reads(learn):
    "Ids of the rows that are read, nearest first: a list of [B,k]"
    bank,got = learn.memory.bank,[]
    read = bank.read
    def spy(*args, **kw):
        r = read(*args, **kw)
        got.append(bank.rows()[3][r.index.clamp(min=0)].masked_fill(r.index<0, -9))
        return r
    bank.read = spy
    try: yield got
    finally: del bank.read

def own(got, ids):
    "How many queries found their own row"
    return int((torch.cat(got)==ids[:,None]).any(1).sum())

ways = dict(get_preds=lambda l: l.get_preds(ds_idx=0), validate=lambda l: l.validate(ds_idx=0),
            losses=lambda l: Interpretation.from_learner(l, ds_idx=0),
            a_subset=lambda l: l.get_preds(dl=l.dls.train.new(l.dls.train.dataset.subset(slice(10, 40)),
                                                              shuffle=False)))

@pytest.mark.parametrize('head', ['vote','add'])
@pytest.mark.parametrize('way', ways)
def test_no_training_image_finds_itself(way, head):
    learn = learner(head=head)
    ds,f = learn.dls.train.dataset,ways[way]
    ids = ds.items[10:40] if way=='a_subset' else ds.items
    with reads(learn) as got: quietly(learn, f, learn)
    assert len(torch.cat(got))==len(ids) and own(got, ids)==0
    with reads(learn) as got, learn.memory.own_rows(): quietly(learn, f, learn)
    assert own(got, ids)>len(ids)/2
    with reads(learn) as got: quietly(learn, f, learn)
    assert own(got, ids)==0

def test_wrong_labels_are_not_repeated():
    "A vote of others says what a wrongly labelled image is; its own row says what it was labelled"
    dls,n = dls_of(200),45
    ds = dls.train.dataset
    bad = torch.randperm(200, generator=torch.Generator().manual_seed(0))[:n]
    ds.y[bad] = (ds.y[bad]+3)%10
    learn = learner(dls, size=1000, k=5)
    learn.memory.head.weight.fill_(.9)
    def repeated(): return int((quietly(learn, learn.get_preds, ds_idx=0)[0].argmax(1)==ds.y)[bad].sum())
    hidden = repeated()
    with learn.memory.own_rows(): shown = repeated()
    assert hidden<shown

@pytest.mark.parametrize('size', [400, 24])
def test_nor_its_patient(size):
    "Also where the bank has room for some images only; new images of a known patient find them, as they always did"
    learn = learner(dls_of(96, True), size=size, group='patient')
    def groups_read(ds):
        with reads(learn) as got: quietly(learn, learn.get_preds, dl=TensorDL(dataset=ds, bs=16))
        return torch.cat(got)//4
    ds = learn.dls.train.dataset
    assert not (groups_read(ds.subset(split_idx=1))==ds.groups[:,None]).any()
    new = TensorSet(X[1100:1196], Y[1100:1196], torch.arange(1100, 1196), list(range(10)), 1, groups=ds.groups)
    both = TensorSet(torch.cat([ds.x, new.x]), torch.cat([ds.y, new.y]), torch.cat([ds.items, new.items]),
                     list(range(10)), 1, groups=torch.cat([ds.groups, ds.groups]))
    alone,together = groups_read(new),groups_read(both)
    assert (alone==new.groups[:,None]).any() and torch.equal(together[96:], alone)
    assert not (together[:96]==ds.groups[:,None]).any()
    assert torch.equal(learn.memory.collect(TensorDL(dataset=both, bs=16)).group, both.groups)

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    d = tmp_path_factory.mktemp('digits')
    for i in range(60): Image.fromarray(X[i,0].numpy()).resize((16,16)).save(d/f'{int(Y[i])%2}_{i:03}.png')
    return d
def parity(p): return p.name[0]

@pytest.fixture
def of_files(files):
    dls = ImageDataLoaders.from_path_func(files, sorted(get_image_files(files)), parity, valid_pct=.2, seed=0, bs=16,
                                          item_tfms=Resize(16), num_workers=0, device='cpu', img_cls=PILImageBW)
    set_seed(0)
    net = small_cnn(1, 2)
    learn = Learner(dls, net, metrics=accuracy, cbs=MemoryCallback(SlotBank(200, policy='fifo'), head='vote', k=5))
    quietly(learn, learn.fit, 1, 1e-2)
    learn.memory.rekey()        # as the network sees them now: each is its own nearest row
    return learn

paths = dict(test_dl=lambda l, ps: l.get_preds(dl=l.dls.test_dl(ps)),
             with_labels=lambda l, ps: l.get_preds(dl=l.dls.test_dl(ps, with_labels=True)),
             predict=lambda l, ps: [l.predict(p) for p in ps], recall=lambda l, ps: l.recall(ps),
             top_losses=lambda l, ps: Interpretation.from_learner(l, ds_idx=0)[list(range(len(ps)))])

@pytest.mark.parametrize('way', paths)
def test_training_files_by_their_path(of_files, way):
    learn = of_files
    ps = list(learn.dls.train_ds.items[:5])
    ids = item_ids(learn.dls.train)[:5]
    with reads(learn) as got: quietly(learn, paths[way], learn, ps)
    assert own([torch.cat(got)[-5:]], ids)==0
    with reads(learn) as got, learn.memory.own_rows(): quietly(learn, paths[way], learn, ps)
    assert own([torch.cat(got)[-5:]], ids)>2

def test_the_mean_over_augmented_copies(of_files):
    "tta goes through the set several times"
    learn = of_files
    n,ids = len(learn.dls.train_ds),item_ids(learn.dls.train)
    dl = learn.dls.train.new(shuffle=False, drop_last=False)
    with reads(learn) as got: quietly(learn, learn.tta, dl=dl, n=2)
    assert len(torch.cat(got))==3*n and own(got, ids.repeat(3))==0

def test_a_file_answers_the_same_as_one_of_many(of_files):
    learn = of_files
    new = [o for o in learn.dls.valid_ds.items[:3]]
    alone = quietly(learn, learn.get_preds, dl=learn.dls.test_dl(new))[0]
    beside = quietly(learn, learn.get_preds, dl=learn.dls.test_dl([*learn.dls.train_ds.items[:4], *new]))[0][4:]
    torch.testing.assert_close(alone, beside)

def test_a_subset_of_a_torch_set():
    ds = TensorDataset(X.float()/255, Y)
    dls = DataLoaders.from_dsets(Subset(ds, range(80)), Subset(ds, range(1000, 1020)), bs=16, num_workers=0,
                                 device='cpu')
    learn = learner(dls)
    part = Subset(ds, [3,5,7,1500])
    with reads(learn) as got: quietly(learn, learn.get_preds, dl=dls.valid.new(part))
    assert own(got, item_ids(part))==0
    with reads(learn) as got, learn.memory.own_rows(): quietly(learn, learn.get_preds, dl=dls.valid.new(part))
    assert own(got, item_ids(part))>0

def test_folds():
    "What is validation now was trained on before"
    learn = learner(dls_of(96))
    ds = learn.dls.train.dataset
    learn.dls = DataLoaders(TensorDL(dataset=ds.subset(slice(48, 96), 0), bs=16),
                            TensorDL(dataset=ds.subset(slice(0, 48), 1), bs=16),
                            device='cpu')
    with reads(learn) as got: quietly(learn, learn.validate)
    assert own(got, ds.items[:48])==0
    with reads(learn) as got: learn.memory.collect(learn.dls.valid, memory=True)
    assert own(got, ds.items[:48])==0

def test_validation_reads_all(monkeypatch):
    "Where no item is known nothing is hidden, and nothing compared"
    learn,seen = learner(),[]
    h = learn.memory.head
    recall = h.recall
    monkeypatch.setattr(h, 'recall', lambda z, item=None, group=None, *a, **k: seen.append((item, group))
                        or recall(z, item, group, *a, **k))
    quietly(learn, learn.validate)
    assert seen and all(o==(None,None) for o in seen)

def test_the_switch_is_put_back_by_an_error():
    learn = learner()
    with pytest.raises(ZeroDivisionError):
        with learn.memory.own_rows(): 1/0
    assert not learn.batch_ids.own_rows
