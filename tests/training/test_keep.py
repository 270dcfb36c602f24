"What goes along with a bank for `explain`: nothing, names of files, or small pictures"
import copy
import io
import warnings
import numpy as np
import pytest
import torch
from fastai.vision.all import (DataLoaders, ImageDataLoaders, Learner, SaveModelCallback, accuracy, load_learner, nn,
    parent_label, set_seed)
from PIL import Image
from sklearn.datasets import load_digits
from helpers.errors import err
from helpers.learners import quietly
from memo.banks.base import Bank
from memo.banks.classes import ClassBank
from memo.banks.kept import Kept
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.data.images import FileImages
from memo.data.items import hash63
from memo.data.tensors import TensorDL, TensorSet
from memo.models.small import small_cnn
from memo.plots import recall
from memo.training.keep import keep_items, kept_inputs, thumbnail
from memo.training.memory_callback import MemoryCallback
from memo.training.stages import Stage, fit_stages

N,cut = 60,48
d = load_digits()
X = torch.from_numpy(d.images[:N]*15).byte()[:,None].repeat_interleave(4, 2).repeat_interleave(4, 3)
Y = torch.from_numpy(d.target[:N]).long()

@pytest.fixture(scope='module')
def root(tmp_path_factory):
    r = tmp_path_factory.mktemp('pictures')
    for i in range(N):
        p = r/('train' if i<cut else 'valid')/str(int(Y[i]))/f'{i:03d}.png'
        p.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(X[i,0].numpy()).save(p)
    return r

def files(root, part='train'): return sorted((root/part).rglob('*.png'), key=lambda o: o.name)
def tensors(root, x=X):
    def mk(s, i): return TensorDL(dataset=TensorSet(x[s], Y[s], vocab=range(10), split_idx=i), bs=8, shuffle=i==0)
    return DataLoaders(mk(slice(0, cut), 0), mk(slice(cut, N), 1), device='cpu')
def lazy(root): return tensors(root, FileImages(files(root)+files(root, 'valid'), 32))
def folder(root): return ImageDataLoaders.from_folder(root, bs=8, num_workers=0, device='cpu')
makes = dict(tensors=tensors, lazy=lazy, folder=folder)

def learner(dls, keep='thumbnails', bank=None, path='.', cbs=(), **kwargs):
    set_seed(0)
    return Learner(dls, small_cnn(dls.one_batch()[0].shape[1]), metrics=accuracy, path=path, cbs=[
        MemoryCallback(SlotBank(16, policy='fifo') if bank is None else bank, k=3, keep=keep, **kwargs), *cbs])
def trained(dls, *args, epochs=1, **kwargs):
    learn = learner(dls, *args, **kwargs)
    quietly(learn, learn.fit, epochs, 1e-3)
    return learn

def images(fig): return [a for a in fig.axes if a.images]
def texts(fig): return ' '.join(t.get_text() for a in fig.axes for t in a.texts)
def loaded(learn, tmp_path):
    learn.export(tmp_path/'e.pkl')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return load_learner(tmp_path/'e.pkl')
def ids(bank): return {*bank.items[bank.items>=0].flatten().tolist()}
assert recall       # a learner's `explain`

@pytest.mark.parametrize('make', makes)
def test_thumbnails_travel(make, root, tmp_path):
    dls = makes[make](root)
    learn = trained(dls)
    kept = learn.memory.bank.kept
    assert kept.kind=='thumbnails' and {*kept.of}==ids(learn.memory.bank) and len(kept)==16
    new = loaded(learn, tmp_path)
    fig = new.explain(X[cut:cut+1] if make!='folder' else files(root, 'valid')[:1])
    assert len(images(fig))==4 and not texts(fig)
    assert len({a.images[0].get_cmap().name for a in images(fig)})==1       # no negative beside a positive
    query,near = (np.array(a.images[0].get_array()).squeeze() for a in images(fig)[:2])
    assert query.shape==near.shape
    # as the training images they are of
    known = {int(i):x for i,x in zip(dls.train_ds.items, X)} if make!='folder' else {
        hash63(f):torch.from_numpy(np.array(Image.open(f)))[None] for f in files(root)}
    for i,b in kept.of.items():
        im = np.array(Image.open(io.BytesIO(b)).convert('L'))
        assert im.shape==(32,32) and np.abs(im.astype(int)-known[i][0].numpy()).max()<=2

@pytest.mark.parametrize('make', ['lazy','folder'])
def test_names_travel(make, root, tmp_path):
    import shutil
    r = tmp_path/'copy'
    shutil.copytree(root, r)
    learn = trained(makes[make](r), 'paths')
    names = {str(f) for f in files(r)}
    kept = learn.memory.bank.kept.of
    assert {*kept}==ids(learn.memory.bank)
    assert all(b.decode() in names and hash63(b.decode())==i for i,b in kept.items())
    new,q = loaded(learn, tmp_path),X[cut:cut+1] if make!='folder' else files(root, 'valid')[:1]
    assert len(images(new.explain(q)))==4
    shutil.rmtree(r/'train')
    fig = new.explain(q)        # the files are gone: their names
    assert len(images(fig))==1 and texts(fig).count('.png')==3

@pytest.mark.parametrize('table', [False, True])
def test_names_that_were_asked_for_are_no_surprise(table, root, tmp_path):
    "An export with keep='paths' is not warned of; the names of other files that it holds are told"
    label = {f.name:f.parent.name for f in files(root)}
    def of_table(o): return label[o.name]
    of = of_table if table else parent_label
    dls = ImageDataLoaders.from_path_func(root, files(root), of, bs=8, num_workers=0, device='cpu')
    learn = trained(dls, 'paths')
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        learn.export(tmp_path/'e.pkl')
    assert any('names items' in str(o.message) for o in w)==table

@pytest.mark.parametrize('make', makes)
def test_nothing_travels_unasked(make, root, tmp_path):
    learn = trained(makes[make](root), None)
    assert not hasattr(learn.memory.bank, 'kept') and not hasattr(learn, 'keep_items')
    assert not any('kept' in k for k in learn.model.state_dict())
    new = loaded(learn, tmp_path)
    q = X[cut:cut+1] if make!='folder' else files(root, 'valid')[:1]
    fig,r = new.explain(q),new.recall(q)
    assert len(images(fig))==1 and texts(fig).count('similarity')==texts(fig).count('weight')==3
    assert all(f'similarity {s:.2f}\nweight {w:.2f}' in texts(fig) for s,w in zip(r.similarity[0], r.weight[0]))
    assert all(str(int(o)) in texts(fig) for o in r.row_label[0])

@pytest.mark.parametrize('bank', [lambda: SlotBank(8, policy='reservoir'), lambda: ClassBank(10, 2)])
def test_of_the_rows_that_are_stored(bank, root):
    "Also of those of an earlier set, and of no other"
    learn = trained(tensors(root), bank=bank())
    for _ in range(3):
        assert {*learn.memory.bank.kept.of}==ids(learn.memory.bank)
        was = dict(learn.memory.bank.kept.of)
        learn.dls = tensors(root, X.flip(3))
        quietly(learn, learn.fit, 1, 1e-3)
        now = learn.memory.bank.kept.of
        assert all(now[i]==was[i] for i in {*now} & {*was})
    learn.memory.bank.reset()
    assert not hasattr(learn.memory.bank, 'kept')
    quietly(learn, learn.fit, 1, 1e-3)
    assert {*learn.memory.bank.kept.of}==ids(learn.memory.bank)

def test_states_with_and_without(root, tmp_path):
    a,b = trained(tensors(root), path=tmp_path),trained(tensors(root), None, path=tmp_path)
    a.save('a')
    b.save('b')
    of = a.memory.bank.kept.of
    b.load('a')
    assert b.memory.bank.kept.of==of
    a.load('b')
    assert not hasattr(a.memory.bank, 'kept')
    quietly(a, a.fit, 1, 1e-3)
    assert {*a.memory.bank.kept.of}==ids(a.memory.bank)
    b.memory.bank.save(tmp_path/'x.safetensors')
    c = Bank.load(tmp_path/'x.safetensors')
    assert c.kept.of==of and c.kept.kind=='thumbnails' and copy.deepcopy(c).kept.of==of
    c.load_state_dict(trained(tensors(root), None).memory.bank.state_dict())
    assert not hasattr(c, 'kept')

def test_resumed(root, tmp_path):
    from contracts.made import StopAt
    def run(f, cbs=(), resume=False):
        learn = learner(tensors(root), path=tmp_path)
        quietly(learn, fit_stages, learn, [Stage('a', 3, 1e-2)], checkpoint=tmp_path/f, resume=resume, cbs=list(cbs))
        return learn.memory.bank
    a = run('a')
    with pytest.raises(KeyboardInterrupt): run('b', [StopAt(8)])
    b = run('b', resume=True)
    assert torch.equal(a.items, b.items) and a.kept.of==b.kept.of and len(b.kept)==16

def test_what_saves_after_an_epoch_has_it(root, tmp_path):
    learn = trained(tensors(root), path=tmp_path, epochs=2, cbs=[SaveModelCallback(every_epoch=True)])
    for e in range(2):
        other = learner(tensors(root), path=tmp_path).load(f'model_{e}')
        assert {*other.memory.bank.kept.of}==ids(other.memory.bank)

def test_predictions_and_the_like_keep_nothing_new(root, monkeypatch):
    learn = trained(tensors(root))
    was = dict(learn.memory.bank.kept.of)
    rng = learn.dls.train.rng.getstate(),torch.get_rng_state()
    import memo.training.keep as k
    monkeypatch.setitem(k.keeps, 'thumbnails', lambda *a: pytest.fail('read again'))
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        quietly(learn, learn.validate)
        quietly(learn, learn.get_preds)
        assert keep_items(learn, learn.memory.bank, 'thumbnails')==0
    assert learn.memory.bank.kept.of==was

def test_it_changes_no_training(root):
    def go(keep):
        set_seed(1)
        return trained(tensors(root), keep, epochs=2)
    a,b = go(None),go('thumbnails')
    state = b.model.state_dict()
    assert all(torch.equal(v, state[k]) for k,v in a.model.state_dict().items())

def test_two_memories(root, tmp_path):
    learn = learner(tensors(root))
    learn.add_cb(MemoryCallback(SlotBank(4, policy='fifo'), head=None, name='early', at='2'))
    learn.add_cb(MemoryCallback(SlotBank(4, policy='fifo'), head=None, name='other', at='5', keep='thumbnails'))
    quietly(learn, learn.fit, 1, 1e-3)
    has = {n:hasattr(cb.bank, 'kept') for n,cb in learn.memories.items()}
    assert has==dict(memory=True, early=False, other=True) and len(learn.other.bank.kept)==4
    new = loaded(learn, tmp_path)
    assert len(images(new.explain(X[cut:cut+1], memory='other')))==4
    assert len(images(new.explain(X[cut:cut+1], memory='early')))==1
    new.dls = tensors(root)
    quietly(new, new.fit, 1, 1e-3)      # and goes on with it
    assert {*new.memory.bank.kept.of}==ids(new.memory.bank)

class Vectors(nn.Module):
    def __init__(self, n=256):
        super().__init__()
        self.a,self.b = nn.Linear(n, 8),nn.Linear(8, 10)
    def forward(self, x): return self.b(self.a(x.float().flatten(1)).relu())

@pytest.mark.parametrize('keep,dls', [('paths',tensors), ('thumbnails',lambda r: tensors(r, X.float().flatten(1)))])
def test_what_is_no_file_or_picture(keep, dls, root):
    "Is said once, and training goes on"
    dls = dls(root)
    learn = Learner(dls, Vectors(1024), cbs=MemoryCallback(SlotBank(16, policy='fifo'), keep=keep))
    with pytest.warns(UserWarning, match=f"memory 'memory': keep='{keep}' has nothing of 16") as w:
        quietly(learn, learn.fit, 2, 1e-3)
    assert len([o for o in w if 'keep=' in str(o.message)])==1 and len(learn.memory.bank.kept)==0

def test_a_picture_that_cannot_be_read(root, tmp_path, monkeypatch):
    import memo.training.keep as k
    def broken(*args): raise OSError('the disk is gone\nand more')
    monkeypatch.setitem(k.keeps, 'thumbnails', broken)
    with pytest.warns(UserWarning, match='the disk is gone'): learn = trained(tensors(root))
    assert len(learn.memory.bank)==16

def test_names_of_items_are_the_callback_s(root, tmp_path):
    "Also where `item=` names them"
    learn = trained(folder(root), item=lambda f: f.name)
    assert {*learn.memory.bank.kept.of}==ids(learn.memory.bank) and len(learn.memory.bank.kept)==16
    assert len(images(learn.explain(files(root, 'valid')[:1])))==4
    assert len(images(loaded(learn, tmp_path).explain(files(root, 'valid')[:1])))==4

def test_a_deployed_model_has_none(root, tmp_path):
    from memo.training.export_model import export_model
    learn = trained(folder(root), 'paths')
    f = export_model(learn, tmp_path/'m.pt2')
    assert b'.png' not in f.read_bytes() and hasattr(learn.memory.bank, 'kept')

def test_mistakes(root):
    assert "did you mean 'thumbnails'" in err(MemoryCallback, SlotBank(8), keep='thumbnail')
    assert 'keep' in err(MemoryCallback, keep='paths')
    with pytest.raises((MemoError,TypeError)): MemoryCallback(SlotBank(8), keep=['paths'])

def test_damaged_pictures_and_odd_things():
    b = nn.Module()
    b.kept = Kept('thumbnails', {1:b'no png', 2:thumbnail(torch.rand(3, 200, 100))})
    got = kept_inputs(b, torch.tensor([1, 2, 3]))
    assert got[1]=='a damaged picture' and got[2].size==(48,96) and 3 not in got
    assert thumbnail('text') is None and thumbnail(torch.rand(4)) is None
    assert Image.open(io.BytesIO(thumbnail(Image.new('RGBA', (7,5))))).mode=='RGB'
    a,k = Kept(),Kept('paths', {2**62:'ä.png'.encode(), 7:b''})
    a.load_state_dict(k.state_dict())
    assert a.of==k.of and a.kind==k.kind
    a.load_state_dict(Kept('thumbnails').state_dict())
    assert a.of=={} and a.kind=='thumbnails'
