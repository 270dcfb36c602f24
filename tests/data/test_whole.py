"""Whole data sets: CIFAR from its archive or from image files, Fashion-MNIST, digits; what `n` draws, how images are
changed in training, and every fault told in one line"""
import pickle, shutil
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from fastai.vision.all import Learner, Path, TensorImage, TensorImageBW, load_learner, set_seed
from torch import Tensor
from torchvision.transforms import functional as tv
from contracts import other_checks
from memo.core import MemoError
from memo.data import cifar as cifar_module
from memo.data.cifar import cifar10_lt, read_cifar
from memo.data.image_streams import split_cifar10, split_cifar100
from memo.data.items import item_ids
from memo.data.longtail import _fashion_deb, digits_lt
from memo.data.tensors import TensorDL, plain_dl
from memo.data.transforms import RandomLight, RandomRotate
from memo.data.whole import cifar10, cifar100, digits, fashion_mnist, stratified
from memo.evaluation.tasks import Multiclass, titles_of
from memo.experiment.build import build_dls, build_model
from memo.experiment.config import load_config
from memo.models.small import small_cnn

fashion = pytest.mark.skipif(not _fashion_deb.is_dir(), reason='dataset-fashion-mnist is not installed')

def fails(f, *parts):
    "One line, with all `parts`"
    with pytest.raises(MemoError) as e: f()
    msg = str(e.value)
    assert '\n' not in msg and len(msg)<600, msg
    for o in parts: assert o in msg, msg

official = 'airplane automobile bird cat deer dog frog horse ship truck'.split()

@pytest.fixture(scope='module')
def photos():
    "Digits as photos uint8 [N,3,32,32], their classes, which of them are for the test; not in order of class"
    d = load_digits()
    x = (d.images*(255/16)).astype(np.uint8).repeat(4, 1).repeat(4, 2)
    return np.stack([x, 255-x, x//2], 1),d.target,np.arange(len(x))>=1500

def write_archive(root, photos, classes=10):
    x,y,test = photos
    d = root/('cifar-10-batches-py' if classes==10 else 'cifar-100-python')
    d.mkdir(parents=True)
    def dump(name, o): (d/name).write_bytes(pickle.dumps({k.encode():v for k,v in o.items()}, 2))
    if classes==100:
        for n,at in (('train',range(1200)), ('test',range(1200,1500))):
            dump(n, dict(fine_labels=[i%100 for i in range(len(at))], data=x[at].reshape(-1, 3072)))
        return dump('meta', dict(fine_label_names=[b'fine %02d' % i for i in range(100)]))
    for i,at in enumerate([*np.split((~test).nonzero()[0], 5), test.nonzero()[0]]):
        dump(f'data_batch_{i+1}' if i<5 else 'test_batch', dict(labels=y[at].tolist(), data=x[at].reshape(-1, 3072)))
    dump('batches.meta', dict(label_names=[o.encode() for o in official]))

def write_pngs(root, photos, names=official):
    x,y,test = photos
    for i in range(len(x)):
        f = root/('test' if test[i] else 'train')/names[y[i]]/f'{i:05}.png'
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[i].transpose(1, 2, 0)).save(f)

@pytest.fixture(scope='module')
def archive(tmp_path_factory, photos):
    root = tmp_path_factory.mktemp('archive')
    write_archive(root, photos)
    write_archive(root, photos, 100)
    return root

@pytest.fixture(scope='module')
def pngs(tmp_path_factory, photos):
    root = tmp_path_factory.mktemp('pngs')
    write_pngs(root, photos)
    return root

@pytest.fixture
def own_pngs(pngs, tmp_path): return shutil.copytree(pngs, tmp_path/'own')

def small(f, root, **kw): return f(root, **dict(valid=10, bs=16, device='cpu') | kw)
def by_content(x, y): return sorted((o.numpy().tobytes(), int(c)) for o,c in zip(x, y))

# CIFAR

def test_all_images_are_there(archive, photos):
    x,y,test = photos
    dls = small(cifar10, archive)
    assert [len(dl.dataset) for dl in dls]==[1400,100,297] and dls.vocab==official and dls.c==10
    assert dls[1].dataset.y.bincount().tolist()==[10]*10
    both = by_content(torch.cat([dl.dataset.x for dl in dls.loaders[:2]]),
                      torch.cat([dl.dataset.y for dl in dls.loaders[:2]]))
    assert both==by_content(torch.from_numpy(x[~test]), y[~test])
    assert (dls[2].dataset.x.numpy()==x[test]).all() and (dls[2].dataset.y.numpy()==y[test]).all()
    ids = torch.cat([item_ids(dl) for dl in dls])
    assert len(ids.unique())==len(x)

def test_hundred_classes(archive):
    dls = small(cifar100, archive, valid=2)
    assert dls.c==100 and dls.counts.tolist()==[10]*100 and [len(dl.dataset) for dl in dls]==[1000,200,300]

def test_as_streams(archive):
    "The same images, classes a few at a time"
    for f,g,n,valid in ((split_cifar10,cifar10,5,10), (split_cifar100,cifar100,10,2)):
        s,dls = f(root=archive, valid=valid, device='cpu'),small(g, archive, valid=valid)
        assert len(s)==n and {len(cs) for cs in s.classes}=={dls.c//n} and s[0].vocab==dls.vocab
        for a,b in zip(s.whole.loaders, dls.loaders): assert torch.equal(item_ids(a), item_ids(b))
        for name,cs in zip(s.names, s.classes): assert name.split(', ')==[dls.vocab[c] for c in cs]

@pytest.mark.parametrize('named', ['official','numbers','padded'])
def test_image_files_are_the_archive(archive, pngs, photos, tmp_path, named):
    root,names = pngs,official
    if named!='official':
        root,names = tmp_path,[str(i) if named=='numbers' else f'{i:02}' for i in range(10)]
        write_pngs(root, photos, names)
    (x,y),(tx,ty),found = read_cifar(root)
    (ax,ay),(atx,aty),_ = read_cifar(archive)
    assert found==names and x.dtype==torch.uint8 and y.dtype==torch.long
    assert by_content(x, y)==by_content(ax, ay) and by_content(tx, ty)==by_content(atx, aty)
    assert [len(dl.dataset) for dl in small(cifar10, root)]==[1400,100,297]

def test_numbers_go_by_their_value_not_their_text(tmp_path):
    "100 folders: 2 comes before 10"
    for part in ('train','test'):
        for c in range(100):
            (tmp_path/part/str(c)).mkdir(parents=True)
            Image.new('RGB', (32,32), (c,c,c)).save(tmp_path/part/str(c)/'a.png')
    (x,y),_,names = read_cifar(tmp_path, 100)
    assert names==[str(c) for c in range(100)] and torch.equal(x[:,0,0,0].long(), y) and y.tolist()==[*range(100)]

def test_what_is_there_decides(archive, photos, tmp_path):
    "The archive where both are; a folder of its name beside others; a long tail reads image files too"
    write_pngs(tmp_path/'cifar10', photos)
    assert read_cifar(tmp_path)[2]==official
    assert len(small(cifar10_lt, tmp_path, n_max=50, ratio=5).train_ds)==sum(
        small(cifar10_lt, archive, n_max=50, ratio=5).counts)
    shutil.copytree(archive/'cifar-10-batches-py', tmp_path/'cifar-10-batches-py')
    (tmp_path/'cifar10/train/cat/x.png').write_bytes(b'')
    assert len(read_cifar(tmp_path)[0][0])==1500
    (tmp_path/'cifar-10-batches-py/data_batch_4').unlink()
    fails(lambda: read_cifar(tmp_path), 'CIFAR-10: data_batch_4 not in', 'download=True')

def test_nothing_there(tmp_path):
    fails(lambda: cifar10(tmp_path), 'CIFAR-10: data_batch_1', f'not in {tmp_path}', 'download=True',
          'of train/CLASS/*.png')
    fails(lambda: cifar100(tmp_path/'none'), 'CIFAR-100: train, test, ... not in', 'download=True')

def png(p): return sorted(p.glob('*.png'))[3]

def test_image_files_that_are_not_whole(own_pngs):
    root,d = own_pngs,own_pngs/'train/cat'
    read = lambda: cifar10(root, valid=10)
    was = png(d).read_bytes()
    for b,why in ((b'', 'empty'), (was[:-20], 'cut off'), (b'<html>'+was[6:], 'no PNG, JPEG, WebP')):
        png(d).write_bytes(b)
        fails(read, '1 of 1500 images cannot be read', why, 'copy the images in')
    Image.new('RGB', (64,64)).save(png(d))
    fails(read, 'not 32 x 32 pixels')
    png(d).write_bytes(was)
    (root/'train'/'.DS_Store').write_bytes(b'x')
    (d/'._00001.png').write_bytes(b'x')       # what other systems leave behind
    (d/'README.txt').write_text('cats')
    assert len(read().train_ds)==1400
    for o in (root/'test/dog').iterdir(): o.unlink()
    fails(read, 'no PNG in 1 of the folders in', 'test (dog)')

def test_folders_that_are_not_the_classes(own_pngs):
    root = own_pngs
    read = lambda: cifar10(root)
    (root/'train/cat').rename(root/'train/kitten')
    fails(read, 'are not those of the training images', 'give both the same')
    shutil.rmtree(root/'train/kitten')
    fails(read, 'one for each of the 10 classes', 'found 9 (airplane, automobile, bird, deer, ...)')
    shutil.rmtree(root/'test')
    for i,o in enumerate(sorted((root/'train').iterdir())): o.rename(root/'train'/str(i+1))
    shutil.copytree(root/'train/1', root/'train/10')
    fails(read, '0 to 9, are needed in', 'found 10 (1, 2, 3, 4, ...)')
    for i in range(1, 11): (root/'train'/str(i)).rename(root/'train'/str(i-1))
    fails(read, 'cannot read the folder', 'test: No such file')
    fails(lambda: cifar100(root), '0 to 99, are needed')

def test_grey_files_are_read_as_colours(own_pngs):
    "Some tools save a PNG without colours in one channel"
    p = png(own_pngs/'test/ship')
    Image.new('L', (32,32), 7).save(p)
    assert (read_cifar(own_pngs)[1][0]==7).flatten(1).all(1).sum()==1

def test_it_trains_and_predicts_a_file(pngs, tmp_path):
    set_seed(0)
    dls = small(cifar10, pngs, n=64, rotate=15, light=.2)
    learn = Learner(dls, small_cnn(3, 10), path=tmp_path)
    p = png(pngs/'test/frog')
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
        at = next(i for i,o in enumerate(dls[2].dataset.x) if (o.numpy().transpose(1, 2, 0)==np.asarray(
            Image.open(p))).all())
        z,_ = learn.get_preds(dl=dls[2])
        learn.export(tmp_path/'e.pkl')
        other = load_learner(tmp_path/'e.pkl')
        with other.no_bar():
            for o in (learn, other): assert torch.allclose(o.predict(p)[2], z[at], atol=1e-5)
    assert (tmp_path/'e.pkl').stat().st_size<1e6        # no images in it

@pytest.mark.parametrize('check', other_checks.checks['data'])
@pytest.mark.parametrize('name', ['cifar10','cifar100'])
def test_contracts(archive, tmp_path, monkeypatch, name, check):
    "Of sets that are files, in the settings' data folder"
    (tmp_path/'data').symlink_to(archive)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pytest, 'skip', lambda *a: pytest.fail('it was not read'))
    other_checks.run(other_checks.checks['data'][check], name, tmp_path)

# what `n`, `valid` and `seed` do

@settings(deadline=None, max_examples=200)
@given(have=st.lists(st.integers(1, 70_000), min_size=1, max_size=120), data=st.data())
def test_shares(have, data):
    "All of n is given away, each class its share rounded up or down, none more than it has"
    n = data.draw(st.integers(1, sum(have)))
    try: k = stratified(have, n)
    except MemoError as e:
        assert 'leave none of' in str(e) and min(h*n/sum(have) for h in have)<1
        return
    assert sum(k)==n and all(0<a<=h and abs(a-h*n/sum(have))<1 for a,h in zip(k, have))

@pytest.mark.parametrize('n', [100,437,1097])
def test_n_draws_as_many_of_each_class(n):
    dls = digits(n, device='cpu')
    assert len(dls.train_ds)==n and (dls.counts.max()-dls.counts.min())<=10*n/1097+1
    assert [len(dl.dataset) for dl in dls][1:]==[300,400]

def test_a_smaller_n_is_a_part_of_a_larger(archive):
    a,b,c = (small(cifar10, archive, n=n) for n in (100,300,None))
    ids = [{*item_ids(o.train).tolist()} for o in (a,b,c)]
    assert ids[0]<ids[1]<ids[2] and torch.equal(item_ids(a[1]), item_ids(c[1]))

def test_seeds_draw_others_of_the_same_set():
    a,b,c = digits(200, device='cpu'),digits(200, seed=1, device='cpu'),digits(200, device='cpu')
    assert a.split.equals(c.split) and not a.split.equals(b.split)
    assert torch.equal(item_ids(a[2]), item_ids(b[2]))                                    # one test set
    assert not set(item_ids(b.train).tolist()) & set(item_ids(b[1]).tolist())

@pytest.mark.parametrize('f,parts', [
    (lambda: digits(5), ('n: 5 training images leave none of 5 of the 10 classes',)),
    (lambda: digits(5000), ('n: 5000 training images are asked for, 1097 are there beside those for validation',)),
    (lambda: digits(valid=200), ('174 images of the rarest digit', '40+200')),
    (lambda: digits(0), ('n must be a whole number from 1', 'found 0')),
    (lambda: digits(size=0), ('size must be a whole number from 1',)),
])
def test_what_is_not_there(f, parts): fails(f, *parts)

def test_too_many_for_validation(archive):
    fails(lambda: small(cifar10, archive, valid=1000), 'valid: 1000 images per class are asked for')
    fails(lambda: small(cifar10, archive, valid=10, n=4000), 'n: 4000 training images', '1400 are there')
    assert len(small(cifar10, archive, valid=0)[1].dataset)==0

@pytest.mark.parametrize('seed', [0,1,2])
def test_no_class_is_rare(seed):
    "Neither in the draw, which leaves out nothing, nor in tables"
    dls = digits(seed=seed, device='cpu')
    y = torch.from_numpy(load_digits().target)
    assert torch.equal(dls.counts, y.bincount()-70)
    assert [*titles_of(Multiclass(), dls)]==['accuracy','balanced_accuracy','ece']

def test_digits_are_at_32_pixels():
    dls = digits(device='cpu')
    assert [len(dl.dataset) for dl in dls]==[1097,300,400] and dls.train.one_batch()[0].shape[1:]==(1,32,32)
    assert digits(40, size=8, device='cpu')[2].one_batch()[0].shape[1:]==(1,8,8)
    assert not {*item_ids(dls[2]).tolist()} & {*item_ids(digits_lt(device='cpu')[2]).tolist()}  # of another set

@fashion
def test_fashion():
    dls = fashion_mnist(device='cpu')
    assert [len(dl.dataset) for dl in dls]==[55_000,5000,10_000] and dls.counts.tolist()==[5500]*10
    assert dls.vocab[9]=='Boot' and dls[1].one_batch()[0].shape[1:]==(1,32,32)
    less = fashion_mnist(n=1000, valid=20, channels=3, size=64, device='cpu')
    assert less.counts.tolist()==[100]*10 and less[1].one_batch()[0].shape==(200,3,64,64)
    fails(lambda: fashion_mnist(n=60_000), '55000 are there')

@fashion
def test_fashion_in_torchvisions_folder(tmp_path):
    import gzip
    raw = tmp_path/'FashionMNIST/raw'
    raw.mkdir(parents=True)
    for p in _fashion_deb.glob('*-ubyte.gz'): (raw/p.stem).write_bytes(gzip.decompress(p.read_bytes()))
    a,b = fashion_mnist(raw, n=100, device='cpu'),fashion_mnist(n=100, device='cpu')
    assert torch.equal(a.train_ds.x, b.train_ds.x) and torch.equal(item_ids(a.train), item_ids(b.train))

# augmentation

@pytest.mark.parametrize('channels', [1,3])
def test_light_against_torchvision(channels):
    x = torch.rand(30, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(4)
    out = RandomLight(.6).encodes((TensorImage if channels==3 else TensorImageBW)(x))
    torch.manual_seed(4)
    bright,contrast = 1+(2*torch.rand(2, 30)-1)*.6
    assert type(out) is (TensorImage if channels==3 else TensorImageBW) and bright.std()>.2 and contrast.std()>.2
    for a,b,br,co in zip(x, out.as_subclass(Tensor), bright.tolist(), contrast.tolist()):
        assert torch.allclose(b, tv.adjust_contrast(tv.adjust_brightness(a, br), co), atol=2e-4)

def test_light_and_rotation_are_for_training():
    x,y = torch.rand(20, 3, 12, 12),torch.zeros(20, dtype=torch.long)
    for i in (0,1):
        b = TensorDL(x, y, bs=20, tfms=[RandomRotate(30, 1., 'zeros'), RandomLight(.3)], split_idx=i).one_batch()[0]
        same = (b.as_subclass(Tensor).cpu()==x).flatten(1).all(1)
        assert same.all() if i else not same.any()
    assert torch.allclose(RandomLight(0.).encodes(TensorImage(x)).as_subclass(Tensor), x, atol=1e-6)

def test_black_comes_in_where_an_image_is_turned():
    x = TensorImage(torch.ones(200, 3, 16, 16))
    torch.manual_seed(0)
    black = (RandomRotate(15, 1., 'zeros').encodes(x)[:,0,0,0]<.5).float().mean()
    assert .5<black<1 and RandomRotate(15, 1.).encodes(x).min()>.99
    assert 'zeros' in repr(RandomRotate(15, 1., 'zeros'))

def test_images_are_changed_in_training_only(archive):
    "Each its own way, by the means that the seed's script normalises with"
    dls = small(cifar10, archive, rotate=15, light=.2)
    m,s = (torch.tensor(o)[:,None,None] for o in ((.4914,.4822,.4465), (.2470,.2435,.2616)))
    assert torch.allclose(dls[2].one_batch()[0].as_subclass(Tensor)[0], (dls[2].dataset.x[0]/255-m)/s, atol=1e-5)
    twice = [plain_dl(dls.train).one_batch()[0] for _ in range(2)]
    assert torch.equal(*twice)
    a,b = (dls.train.new(shuffle=False).one_batch()[0] for _ in range(2))
    assert a.shape==(16,3,32,32) and all(not torch.equal(o, p) for o,p in zip(a, b))
    names = [type(o).__name__ for o in dls.train.after_batch.fs]
    assert names==['RandomShift','IntToFloatTensor','RandomRotate','RandomLight','Normalize']
    assert [type(o).__name__ for o in small(cifar10, archive, shift=0).train.after_batch.fs]==['IntToFloatTensor',
                                                                                              'Normalize']

@pytest.mark.parametrize('channels', [1,3])
def test_colours_against_torchvision(channels):
    x = torch.rand(30, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(4)
    out = RandomLight(.3, .6).encodes((TensorImage if channels==3 else TensorImageBW)(x))
    torch.manual_seed(4)
    bright,contrast = 1+(2*torch.rand(2, 30)-1)*.3
    colour = 1+(2*torch.rand(30)-1)*.6
    assert colour.std()>.2
    for a,b,*f in zip(x, out.as_subclass(Tensor), bright.tolist(), contrast.tolist(), colour.tolist()):
        want = tv.adjust_saturation(tv.adjust_contrast(tv.adjust_brightness(a, f[0]), f[1]), f[2])
        assert torch.allclose(b, want, atol=2e-3)
    torch.manual_seed(4)
    a = RandomLight(.3).encodes(TensorImage(x))
    torch.manual_seed(4)
    assert not torch.equal(a, RandomLight(.3, .6).encodes(TensorImage(x))) or channels==1

def test_the_seeds_augmentation_at_224_pixels(archive):
    "Flip, rotation, brightness, contrast and saturation of the image as the network sees it, ImageNet's numbers"
    kw = dict(size=224, shift=0, flip=True, rotate=15, light=.2, colour=.2, mean=[.485,.456,.406], std=[.229,.224,.225])
    dls = small(cifar10, archive, n_shot=1, **kw)
    assert [repr(o) for o in dls.train.after_batch.fs if type(o).__name__ not in ('IntToFloatTensor','Normalize')]==[
        'RandomShift(0, flip=True)', 'ResizeBatch(224, None)', "RandomRotate(15, p=1.0, outside='zeros')",
        'RandomLight(0.2, colour=0.2)']
    x = dls[2].one_batch()[0].as_subclass(Tensor)
    m,s = (torch.tensor(o)[:,None,None] for o in (kw['mean'],kw['std']))
    big = torch.nn.functional.interpolate(dls[2].dataset.x[:1]/255, (224,224), mode='bilinear')[0]
    assert x.shape[1:]==(3,224,224) and torch.allclose(x[0], (big-m)/s, atol=2e-2)
    flips = small(cifar10, archive, shift=0, flip=True).train
    mirrored = [torch.equal(a, b.flip(-1)) for a,b in zip(flips.new(shuffle=False).one_batch()[0],
                                                         plain_dl(flips).one_batch()[0])]
    assert 0<sum(mirrored)<16
    assert [type(o).__name__ for o in small(cifar10, archive, flip=False).train.after_batch.fs][0]=='RandomShift'
    fails(lambda: small(cifar10, archive, mean=[.5]), 'mean: 3 numbers are needed, found 1')
    fails(lambda: small(cifar10, archive, std=[.5,0.,.5]), 'std must be a list of numbers above 0')
    fails(lambda: small(cifar10, archive, mean=['a','b','c']), 'mean must be a list of numbers')

# some classes, a few shots

sets = [('digits','n: null'), ('fashion_mnist','valid: 20'), ('cifar10','valid: 10'), ('cifar100','valid: 2')]
sets = [pytest.param(*o, marks=fashion if o[0]=='fashion_mnist' else ()) for o in sets]

def from_yaml(yml, archive, name, more, *over):
    root = f', root: {archive}' if name.startswith('cifar') else ''
    return load_config(yml(f'data: {{name: {name}, {more}{root}}}\ntrain: {{bs: 16}}'), over)

@pytest.mark.parametrize('name,more', sets)
def test_few_shots_are_keys_of_every_whole_set(archive, yml, name, more):
    "The seed's --few-shot --n-shot 5 is data.n_shot=5; the network has an output for each class drawn"
    whole = build_dls(from_yaml(yml, archive, name, more), 0)
    dls = build_dls(cfg := from_yaml(yml, archive, name, more, 'data.n_shot=5', 'data.n_way=4'), 0)
    assert dls.counts.tolist()==[5]*4 and dls.c==4 and {*dls.vocab}<{*whole.vocab} and dls.train.bs==16
    lab = whole.split.set_index('item').label
    for a,b in zip(whole, dls):
        assert torch.isin(item_ids(b), item_ids(a)).all()
        assert [dls.vocab[int(y)] for y in b.dataset.y]==[whole.vocab[lab[i]] for i in item_ids(b).tolist()]
        if a is not whole.train: assert len(b.dataset)==sum(whole.vocab[int(y)] in dls.vocab for y in a.dataset.y)
    assert build_model(cfg, dls)(torch.zeros(2, *dls.one_batch()[0].shape[1:])).shape==(2,4)
    less = build_dls(from_yaml(yml, archive, name, more, 'data.n_shot=1', 'data.n_way=4'), 0)
    assert less.vocab==dls.vocab and {*item_ids(less.train).tolist()}<{*item_ids(dls.train).tolist()}
    other = build_dls(from_yaml(yml, archive, name, more, 'data.n_shot=5', 'data.n_way=4'), 1)
    assert {*item_ids(other.train).tolist()}!={*item_ids(dls.train).tolist()}
    assert titles_of(Multiclass(), dls).keys()=={'accuracy','balanced_accuracy','ece'}

def test_one_draw_for_several_seeds(yml, archive):
    "shot_seed draws; the experiment's seed still orders the batches"
    a,b,c = (build_dls(from_yaml(yml, archive, 'digits', 'valid: 30', 'data.n_shot=3', f'data.shot_seed={d}'), s)
             for s,d in ((0,7),(1,7),(0,8)))
    for i in range(3): assert torch.equal(item_ids(a[i]), item_ids(b[i]))
    assert {*item_ids(a.train).tolist()}!={*item_ids(c.train).tolist()} and torch.equal(item_ids(a[2]), item_ids(c[2]))
    assert list(a.train.get_idxs())!=list(b.train.get_idxs())
    same = build_dls(from_yaml(yml, archive, 'digits', 'valid: 30', 'data.n_shot=3'), 7)
    assert torch.equal(item_ids(same.train), item_ids(a.train))

@pytest.mark.parametrize('name,more', sets)
def test_some_classes_are_a_key(archive, yml, name, more):
    "Pretrain on five, learn the others from a few: their images have the ids that they have in the whole set"
    whole = build_dls(from_yaml(yml, archive, name, more), 0)
    old,new = (build_dls(from_yaml(yml, archive, name, more, f'data.classes={[*o]}'), 0)
               for o in (range(5), (9,8,7,6,5)))
    names = {c:whole.vocab[c] for c in range(10)}
    assert old.vocab==[names[c] for c in range(5)] and new.vocab==[names[c] for c in (9,8,7,6,5)] and old.c==5
    lab = dict(zip(*(torch.cat(o).tolist() for o in zip(*((item_ids(d),d.dataset.y) for d in whole)))))
    for dls in (old,new):
        for a,b in zip(whole, dls):
            assert all(dls.vocab[y]==whole.vocab[lab[i]] for i,y in zip(item_ids(b).tolist(), b.dataset.y.tolist()))
        n = whole[2].dataset.y.bincount()
        assert dls[2].dataset.y.bincount().tolist()==[int(n[whole.vocab.o2i[k]]) for k in dls.vocab]
    ids = [{*torch.cat([item_ids(o) for o in dls]).tolist()} for dls in (old,new)]
    assert not ids[0] & ids[1] and ids[0]|ids[1]<={*lab}
    few = build_dls(from_yaml(yml, archive, name, more, f'data.classes=[{names[7]!r}, 2]', 'data.n_shot=2'), 0)
    assert few.vocab==[names[7],names[2]] and few.counts.tolist()==[2,2]

def test_n_counts_the_images_of_the_classes_that_stay():
    assert [len(o.dataset) for o in digits(200, classes=[1,2,3], valid=10, device='cpu')]==[200,30,120]

@pytest.mark.parametrize('kw,parts', [
    (dict(n_shot=5, n=100), ('n: give n or n_shot, not both',)),
    (dict(shot_seed=3), ('shot_seed: 3 is read with n_shot or n_way',)),
    (dict(classes=[0,10]), ('classes: 10 is not one of 0, 1',)),
    (dict(classes=[1]), ('classes: 2 or more',)),
    (dict(n_way=11), ('n_way: 11 classes are asked for, 10 are there',)),
    (dict(n_way=3, classes=[1,2]), ('n_way: 3 classes are asked for, 2 are there',)),
    (dict(n_shot=0), ('n_shot must be a whole number from 1',)),
    (dict(n_shot=150), ('n_shot: 150 items of each class are asked for, class ',)),
])
def test_draws_that_cannot_be(kw, parts): fails(lambda: digits(device='cpu', **kw), *parts)

def test_a_key_that_cannot_be_is_named(archive, yml):
    cfg = from_yaml(yml, archive, 'digits', 'n_shot: 500')
    fails(lambda: build_dls(cfg, 0), 'data.n_shot: 500 items of each class')
    fails(lambda: from_yaml(yml, archive, 'digits', 'n_shot: 0'), 'data.n_shot must be a whole number from 1')
    fails(lambda: from_yaml(yml, archive, 'digits', 'n_shots: 5'), 'did you mean data.n_shot?')
    fails(lambda: build_dls(from_yaml(yml, archive, 'digits', 'classes: [1,1]'), 0), "data.classes: '1' is named twice")

# what is fetched

@pytest.fixture
def fetched(monkeypatch, photos):
    "torchvision's data sets, whose network is this test: the calls"
    calls = []
    def of(classes):
        def fetch(root, download=False):
            calls.append((classes,download))
            write_archive(Path(root), photos, classes)
        return fetch
    import torchvision.datasets as ds
    for c in (10,100): monkeypatch.setattr(ds, f'CIFAR{c}', of(c))
    return calls

def test_an_archive_is_fetched_once(fetched, archive, tmp_path, yml):
    a = small(cifar10, tmp_path/'new', download=True)
    b = small(cifar10, archive)
    assert fetched==[(10,True)] and all(torch.equal(p.dataset.x, q.dataset.x) for p,q in zip(a, b))
    assert [o.name for o in (tmp_path/'new').iterdir()]==['cifar-10-batches-py']
    small(cifar10, tmp_path/'new', download=True)
    small(cifar10, archive, download=True)
    assert len(fetched)==1
    cfg = load_config(yml(f'data: {{name: cifar100, root: {tmp_path/"new"}, valid: 2}}'), ['data.download=true'])
    assert build_dls(cfg, 0).c==100 and fetched[1:]==[(100,True)]

def test_nothing_is_fetched_unasked(fetched, tmp_path, pngs, own_pngs, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(lambda: cifar10('none'), "t.datasets.CIFAR10('none', download=True)")
    small(cifar10, pngs, download=True)
    (tmp_path/'cifar-10-batches-py').mkdir()
    (tmp_path/'cifar-10-batches-py'/'data_batch_1').write_bytes(b'')
    fails(lambda: cifar10(tmp_path, download=True), 'data_batch_2, data_batch_3', 'not in')
    assert not fetched

@pytest.mark.parametrize('e,why', [(OSError('<urlopen error [Errno -2] Name or service not known>'), 'Name or service'),
                                   (RuntimeError('File not found or corrupted.\nmore'), 'corrupted.)')])
def test_a_network_that_is_not_there(monkeypatch, tmp_path, e, why):
    import torchvision.datasets as ds
    def fetch(*a, **kw): raise e
    monkeypatch.setattr(ds, 'CIFAR10', fetch)
    fails(lambda: cifar10(tmp_path, download=True), 'CIFAR-10: cannot be downloaded to', why, 'unpack')
    assert not [*tmp_path.iterdir()]
    (tmp_path/'file').write_text('')
    fails(lambda: cifar10(tmp_path/'file', download=True), 'cannot be downloaded')

def test_two_processes_that_fetch_at_once(fetched, tmp_path, photos, monkeypatch):
    "The second finds the first's folder and leaves it"
    real = cifar_module.os.replace
    def replace(a, b):
        if not Path(b).exists(): write_archive(tmp_path, photos)
        real(a, b)
    monkeypatch.setattr(cifar_module.os, 'replace', replace)
    assert len(small(cifar10, tmp_path, download=True).train_ds)==1400
