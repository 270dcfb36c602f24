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
from memo.data.cifar import cifar10_lt, read_cifar
from memo.data.items import item_ids
from memo.data.longtail import _fashion_deb, digits_lt
from memo.data.tensors import TensorDL, plain_dl
from memo.data.transforms import RandomLight, RandomRotate
from memo.data.whole import cifar10, cifar100, digits, fashion_mnist, stratified
from memo.evaluation.tasks import Multiclass, titles_of
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
    fails(lambda: read_cifar(tmp_path), 'CIFAR-10: data_batch_4 not in', 'unpack cifar-10-python.tar.gz there')

def test_nothing_there(tmp_path):
    fails(lambda: cifar10(tmp_path), 'CIFAR-10: data_batch_1', f'not in {tmp_path}', 'unpack cifar-10-python.tar.gz',
          'train/CLASS/*.png and test/CLASS/*.png')
    fails(lambda: cifar100(tmp_path/'none'), 'CIFAR-100: train, test, meta not in', 'unpack cifar-100-python.tar.gz')

def png(p): return sorted(p.glob('*.png'))[3]

def test_image_files_that_are_not_whole(own_pngs):
    root,d = own_pngs,own_pngs/'train/cat'
    read = lambda: cifar10(root, valid=10)
    was = png(d).read_bytes()
    for b,why in ((b'', 'empty'), (was[:-20], 'cut off'), (b'GIF89a'+was[6:], 'no PNG or JPEG')):
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
