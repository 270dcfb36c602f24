"`hf_dls`: real images of a Hugging Face data set as loaders: which rows, which labels, whose ids, and what of it stays"
import io, subprocess, sys
import numpy as np, pytest, torch
from fastai.vision.all import Learner, Resize, accuracy, load_learner
from PIL import Image
from sklearn.datasets import load_digits
from memo.all import *
from memo.core import MemoError
from memo.data.hf_datasets import hf_dls
from memo.data.items import item_ids
from memo.training.batch_ids import group_ids

lib = pytest.importorskip('datasets')
N = 60

@pytest.fixture(scope='module')
def pngs():
    def png(a):
        b = io.BytesIO()
        Image.fromarray((a*15).astype('uint8')).save(b, 'png')
        return b.getvalue()
    d = load_digits()
    return [png(o) for o in d.images[:N]],d.target[:N].tolist()

@pytest.fixture(scope='module')
def folder(pngs, tmp_path_factory):
    d = tmp_path_factory.mktemp('pngs')
    for i,o in enumerate(pngs[0]): (d/f'{i:03d}.png').write_bytes(o)
    return d

def made(images, labels=None, feature=None, **columns):
    features = dict(image=lib.Image())
    if labels is not None: features['label'],columns['label'] = feature or lib.ClassLabel(names=[*'abcdefghij']),labels
    images = [dict(bytes=o, path=None) if isinstance(o, bytes) else o for o in images]
    ds = lib.Dataset.from_dict(dict(image=images, **columns))
    return ds.cast(lib.Features({**ds.features, **features}))

def dls_of(ds, **kw): return hf_dls(ds, **{'item_tfms':Resize(16), 'bs':8, 'num_workers':0, **kw})
def labels_of(dl):
    y = torch.cat([b[1] for b in dl.new(shuffle=False, drop_last=False)])
    return [str(dl.vocab[int(o)]) for o in y]

def test_rows_and_labels_are_those_of_the_set(pngs):
    "Pixels, names of classes, sizes; a share for validation that is drawn by the seed"
    dls = dls_of(made(*pngs), valid=.25)
    assert [len(o.dataset) for o in dls.loaders]==[45,15] and [*dls.vocab]==[*'abcdefghij']
    at = [*dls.valid_ds.items]
    assert labels_of(dls.valid)==['abcdefghij'[pngs[1][i]] for i in at]
    im,_ = dls.valid_ds[0]
    assert (np.asarray(im)==np.asarray(Image.open(io.BytesIO(pngs[0][at[0]])).convert('RGB'))).all()
    again,other = ([*dls_of(made(*pngs), valid=.25, seed=k).valid_ds.items] for k in (42,1))
    assert at==again!=other

def test_fewer_rows_than_a_batch_are_trained_on(pngs):
    "They are one batch; of more, what fills none is left out, as fastai does it"
    assert [len(dls_of(made(*pngs), bs=k).train) for k in (64,48,40)]==[1,1,1]
    assert len(dls_of(made(*pngs), bs=64, drop_last=True).train)==0

@pytest.mark.parametrize('names', [('train','validation','test'),('train','val'),('train','test'),('only',)])
def test_splits(names, pngs):
    "A split for validation is that, one for tests a third loader; without one for validation a share is drawn"
    ds,k = made(*pngs),N//len(names)
    parts = {o:ds.select(range(i*k, (i+1)*k)) for i,o in enumerate(names)}
    dls = dls_of(lib.DatasetDict(parts))
    ids = {o:item_ids(dls_of(p, valid=0.).train) for o,p in parts.items()}
    got = [item_ids(o) for o in dls.loaders]
    if 'test' in parts: assert torch.equal(got.pop(), ids['test'])
    if len(names)==3 or 'val' in parts: assert all(torch.equal(got[i], ids[names[i]]) for i in range(2))
    else: assert torch.equal(torch.cat(got).sort()[0], ids[names[0]].sort()[0]) and len(got[1])==round(.2*k)
    if 'test' in parts:
        assert torch.equal(item_ids(dls_of(lib.DatasetDict(parts), valid='test').valid), ids['test'])
        hidden = parts['test'].map(lambda o: dict(label=-1))
        assert len(dls_of(lib.DatasetDict({**parts, 'test':hidden})).loaders)==2
    with pytest.raises(MemoError, match='is no split'): dls_of(lib.DatasetDict(parts), valid='dev')

def test_labels_of_all_kinds(pngs):
    "Whole numbers with gaps, texts, lists of classes with none among them"
    ims,y = pngs
    assert [*dls_of(made(ims, [o*100 for o in y], lib.Value('int64'))).vocab]==[str(o*100) for o in range(10)]
    assert {*dls_of(made(ims, ['even' if o%2==0 else 'odd' for o in y], lib.Value('string'))).vocab}=={'even','odd'}
    several = [[k for k in (2,3,5) if o%k==0] for o in y]
    for f in (lib.List(lib.Value('int64')), None):
        dls = dls_of(made(ims, several, f or lib.List(lib.ClassLabel(names=[*'abcdef']))))
        x,t = dls.train.new(shuffle=False).one_batch()
        assert t.shape==(8,len(dls.vocab)) and len(dls.vocab)==(3 if f else 6)
        want = [{str(o) if f else 'abcdef'[o] for o in several[i]} for i in [*dls.train_ds.items][:8]]
        assert [{dls.vocab[j] for j in o.nonzero().flatten().tolist()} for o in t]==want

def test_images_of_all_kinds(pngs, folder, tmp_path):
    "Files, grey, colour with transparency, 16 bits, which are not cut off at 255"
    deep,rgba = tmp_path/'deep.png',tmp_path/'rgba.png'
    Image.fromarray((load_digits().images[0]*4000).astype('uint16')).save(deep)
    Image.fromarray(np.full((8,8,4), 100, 'uint8')).save(rgba)
    ds = made([str(folder/'000.png'),str(deep),str(rgba)], [0,0,1])
    dls = dls_of(ds, valid=0.)
    a,b,c = (np.asarray(dls.train_ds[i][0]).astype(int) for i in range(3))
    assert a.shape==b.shape==c.shape==(8,8,3) and (c==100).all() and np.abs(a-b).max()<20
    assert item_ids(dls.train).unique().numel()==3

def test_ids_are_those_of_the_images(pngs):
    "In any order, selection, split, format; an image twice is one item; a column may name them"
    ds = made(*pngs, name=[f'n{i}' for i in range(N)])
    def ids(o, **kw): return item_ids(dls_of(o, valid=0., **kw).train)
    own = ids(ds)
    assert own.unique().numel()==N
    assert {*ids(ds.shuffle(seed=3)).tolist()}=={*own.tolist()}
    assert torch.equal(ids(ds.select([5,3])), own[[5,3]]) and torch.equal(ids(ds.with_format('torch')), own)
    assert torch.equal(ids(lib.concatenate_datasets([ds.select([1]), ds])), own[[1,*range(N)]])
    assert torch.equal(ids(ds.filter(lambda o: o['label']==1)), own[torch.tensor(pngs[1])==1])
    named = ids(ds, item='name')
    assert not torch.isin(named, own).any() and torch.equal(ids(ds.select([7]), item='name'), named[[7]])
    dls = dls_of(ds)
    both = torch.cat([item_ids(dls.train), item_ids(dls.valid)])
    assert torch.equal(both.sort()[0], own.sort()[0])

def test_formats_make_no_difference(pngs):
    "A set that gives tensors or arrays elsewhere gives the same images, labels and names here"
    ds = made(*pngs)
    want = dls_of(ds)
    for fmt in ('torch','numpy','pandas'):
        dls = dls_of(ds.with_format(fmt))
        assert [*dls.vocab]==[*want.vocab] and labels_of(dls.valid)==labels_of(want.valid)
    plain = dls_of(made(pngs[0], pngs[1], lib.Value('int64')).with_format('torch'))
    assert [*plain.vocab]==[*map(str, range(10))]

def test_patients(pngs):
    "Rows of one patient are drawn together, and do not find one another in training"
    who = [f'p{i//4}' for i in range(N)]
    dls = dls_of(made(*pngs, patient_id=who), group='patient_id')
    a,b = ({who[i] for i in o.items} for o in (dls.train_ds,dls.valid_ds))
    assert not a & b and len(dls.valid_ds)==12
    for name in ('patient','patient_id'):
        g = group_ids(dls.train, name)
        assert [len({*g[i*4:i*4+4].tolist()}) for i in range(12)]==[1]*12 and g.unique().numel()==12
    learn = Learner(dls, small_cnn(3, 10), metrics=accuracy,
                    cbs=MemoryCallback(SlotBank(256, policy='fifo'), head='add', group='patient'))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    bank = learn.memory.bank
    _,_,_,items,groups,_ = bank.rows()
    at = {int(i):int(k) for i,k in zip(item_ids(dls.train), group_ids(dls.train, 'patient'))}
    assert [at[int(i)] for i in items]==groups.tolist() and len(bank)>0
    with pytest.raises(MemoError, match='group'): group_ids(dls.train, 'doctor')

def wrong(ims, y):
    return [(lambda: dls_of(made(ims[:3], [0,-1,1], lib.Value('int64'))), '-1, which is no class'),
            (lambda: dls_of(made(ims[:3], [0,None,1])), 'None, which is no class'),
            (lambda: dls_of(made([ims[0],None,ims[1]], [0,1,1])), "row 1: 'image' has no image"),
            (lambda: dls_of(made(ims, y).to_iterable_dataset()), 'streams has no length'),
            (lambda: dls_of(lib.IterableDatasetDict(train=made(ims, y).to_iterable_dataset())), 'streams has no'),
            (lambda: dls_of([1]), 'found a list'),
            (lambda: dls_of(made(ims, y), label='klass'), "label: 'klass' is no"),
            (lambda: dls_of(made(ims, y), group='who'), "group: 'who' is no"),
            (lambda: dls_of(made(ims, y), item='who'), "item: 'who' is no"),
            (lambda: dls_of(made(ims, y).remove_columns('image')), '0 columns of images'),
            (lambda: dls_of(made(ims, y), valid=1.), 'a share from 0'),
            (lambda: dls_of(made(ims, y), valid='test'), 'a share from 0')]

@pytest.mark.parametrize('i', range(12))
def test_what_is_refused(i, pngs):
    f,why = wrong(*pngs)[i]
    with pytest.raises(MemoError, match=why) as e: f()
    assert len(str(e.value))<=300 and '\n' not in str(e.value)

def test_an_export_has_no_data_and_answers(pngs, folder, tmp_path):
    "A trained learner is exported without its rows; loaded, it predicts a file, an image and bytes alike"
    learn = Learner(dls_of(made(*pngs)), small_cnn(3, 10), metrics=accuracy,
                    cbs=MemoryCallback(SlotBank(64, policy='fifo'), head='vote'))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert torch.isin(learn.memory.bank.items[:len(learn.memory.bank)], item_ids(learn.dls.train)).all()
    learn.export(tmp_path/'m.pkl')
    assert not any(o in (tmp_path/'m.pkl').read_bytes() for o in pngs[0])
    new = load_learner(tmp_path/'m.pkl')
    with new.no_bar():
        p = folder/'003.png'
        got = [new.predict(o) for o in (p, str(p), Image.open(p), pngs[0][3])]
    with learn.no_bar(): want = learn.predict(folder/'003.png')
    assert all(o[0]==want[0] and torch.allclose(o[2], want[2], atol=1e-6) for o in got)

def test_pictures(pngs, unrendered):
    "`show_batch` and `show_memories` draw images and names"
    import matplotlib.pyplot as plt
    learn = Learner(dls_of(made(*pngs)), small_cnn(3, 10), cbs=MemoryCallback(SlotBank(64, policy='fifo'), head='vote'))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    learn.dls.show_batch(max_n=4)
    assert all(any(a.images for a in f.axes) for f in (plt.gcf(),learn.show_memories(2)))
    plt.close('all')

def test_workers_give_the_same(pngs):
    a,b = (torch.cat([x[0] for x in dls_of(made(*pngs), num_workers=n).valid]) for n in (0,2))
    assert torch.equal(a, b)

@pytest.mark.slow
def test_another_process_has_the_same_ids(pngs, folder):
    "Of a folder as `load_dataset` reads it"
    code = ("import sys,torch,datasets; from memo.data.hf_datasets import hf_dls; from memo.data.items import item_ids\n"
            "ds = datasets.Dataset.from_dict(dict(image=[sys.argv[1]+f'/{i:03d}.png' for i in range(9)], label=[0,1,2]*3))"
            ".cast_column('image', datasets.Image())\nprint(item_ids(hf_dls(ds, valid=0., num_workers=0).train).tolist())")
    a,b = (subprocess.run([sys.executable, '-W', 'ignore', '-c', code, str(folder)], capture_output=True, text=True,
                          check=True).stdout.splitlines()[-1] for _ in range(2))
    assert a==b and len(set(eval(a)))==9
