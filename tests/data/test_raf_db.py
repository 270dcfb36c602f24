"RAF-DB in the three layouts in which it is passed on, made of real images: the same classes, items and draws in each"
import os, shutil
import numpy as np, PIL.Image, pytest, torch
from fastai.learner import Learner
from fastai.vision.all import set_seed
from contracts import other_checks
from helpers.errors import err
from helpers.learners import quietly
from memo.banks.slots import SlotBank
from memo.data.few_shot import few_shot
from memo.data.images import read_image
from memo.data.items import item_ids
from memo.data.longtail import _fashion_deb, read_fashion
from memo.data.raf_db import emotion_of, emotions, raf_db, raf_table
from memo.experiment.build import build_dls
from memo.experiment.config import load_config
from memo.models.small import small_cnn
from memo.training.memory_callback import MemoryCallback
from sklearn.datasets import load_digits

seeds_names = '1.angry 2.disgust 3.fear 4.happy 5.sad 6.surprise 7.neutral'.split()
as_official = [6,3,2,4,5,1,7]      # the official number of each of them

def faces():
    "Real images of seven kinds: garments where they are here, else digits"
    if _fashion_deb.is_dir():
        x,y = read_fashion(None, 't10k')
        return x[:,0].numpy(),y.numpy()
    d = load_digits()
    return (d.images*(255/16)).astype(np.uint8).repeat(3, 1).repeat(3, 2),d.target

@pytest.fixture(scope='module')
def images():
    "Name, image, official number 1 to 7, part; 50, 55, ... 80 training and 12 test images a class"
    x,y = faces()
    res,rows = [],[np.flatnonzero(y==c) for c in range(7)]
    for part,first in (('train',0), ('test',90)):
        for c in range(7):
            for i in rows[c][first:first+(50+5*c if part=='train' else 12)]: res.append((part, x[i], c+1))
    n = {'train':0, 'test':0}
    def name(part):
        n[part] += 1
        return f'{part}_{n[part]:05}'
    return [(name(part),im,c,part) for part,im,c in res]

def save(im, p):
    p.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(im).convert('RGB').resize((100,100)).save(p, quality=95)

def write_official(root, images, top='basic'):
    for name,im,c,_ in images: save(im, root/top/'Image'/'aligned'/f'{name}_aligned.jpg')
    p = root/top/'EmoLabel'/'list_patition_label.txt'
    p.parent.mkdir(parents=True)
    p.write_text(''.join(f'{name}.jpg {c}\n' for name,_,c,_ in images))

def write_folders(root, images, names):
    "`names`: official number -> folder"
    for name,im,c,part in images: save(im, root/part/names[c]/f'{name}_aligned.jpg')

by_number = {c:str(c) for c in range(1, 8)}
by_seed = dict(zip(as_official, seeds_names))
by_word = dict(enumerate('Surprise Fear Disgust Happiness Sadness Anger Neutral'.split(), 1))

@pytest.fixture(scope='module')
def trees(tmp_path_factory, images):
    root = tmp_path_factory.mktemp('raf')
    write_official(root/'official', images)
    write_folders(root/'shared'/'DATASET', images, by_number)
    write_folders(root/'seed', images, by_seed)
    write_folders(root/'words', images, by_word)
    return root

layouts = ['official','shared','seed','words']
def small(root, **kw): return raf_db(root, **dict(size=16, valid=5, bs=16, workers=0, device='cpu') | kw)

@pytest.mark.parametrize('layout', layouts)
def test_each_layout_is_the_same_set(trees, images, layout):
    "Items, numbers and names of classes; the official numbers less 1"
    df = raf_table(trees/layout)
    want = {f'{name}_aligned.jpg':(c-1,part) for name,_,c,part in images}
    assert {os.path.basename(p):(l,k) for p,l,k in zip(df.path, df.label, df.part)}==want
    dls,same = small(trees/layout),small(trees/'official')
    assert dls.vocab==emotions and emotions[0]=='surprise' and emotions[5]=='anger' and dls.c==7
    assert [len(o.dataset) for o in dls]==[455-35,35,84] and dls.counts.tolist()==[45+5*c for c in range(7)]
    for a,b in zip(dls, same):
        at,bt = (dict(zip(item_ids(o).tolist(), o.dataset.y.tolist())) for o in (a,b))
        assert at==bt and len(at)==len(a.dataset)
    for seed in (0,1):
        a,b = (few_shot(o, 3, 2, seed) for o in (dls,same))
        assert a.vocab==b.vocab and torch.equal(item_ids(a.train), item_ids(b.train))

def test_pixels_go_with_their_label(trees, images):
    of = {f'{name}_aligned.jpg':(im,c) for name,im,c,_ in images}
    dls = small(trees/'seed', size=100)
    ds = dls[2].dataset
    for i in range(0, len(ds), 17):
        im,c = of[os.path.basename(str(ds.x.paths[i]))]
        x,y = ds[i]
        own = torch.from_numpy(np.array(PIL.Image.fromarray(im).resize((100,100)))).float()
        assert int(y)==c-1 and abs(x.float()[0]-own).mean()<5

@pytest.mark.parametrize('name,i', [
    *((str(c), c-1) for c in range(1, 8)), *zip(seeds_names, [o-1 for o in as_official]), ('Angry',5), ('HAPPY',3),
    ('4 - happiness',3), ('neutral',6), ('0',None), ('8',None), ('10',None),
    ('contempt',None), ('12',None), ('sad face',None), ('',None), ('٣',None)])
def test_names_of_folders(name, i): assert emotion_of(name)==i

def test_roots(trees, images, tmp_path, monkeypatch):
    "The folder itself, or the one it is in; the settings' data folder"
    ids = raf_table(trees/'official')['item'].tolist()
    for o in ('official/basic','shared/DATASET'): assert sorted(raf_table(trees/o)['item'])==sorted(ids)
    (tmp_path/'data').mkdir()
    (tmp_path/'data'/'raf_db').symlink_to(trees/'seed')
    monkeypatch.chdir(tmp_path)
    assert len(small(None).train_ds)==420
    write_official(tmp_path, images[:0], 'x')
    shutil.copytree(trees/'official'/'basic'/'Image'/'aligned', tmp_path/'o'/'Image'/'original')
    for p in (tmp_path/'o'/'Image'/'original').iterdir(): p.rename(p.with_name(p.name.replace('_aligned', '')))
    shutil.copytree(trees/'official'/'basic'/'EmoLabel', tmp_path/'o'/'EmoLabel')
    assert len(raf_table(tmp_path/'o'))==len(ids), 'the images as they were before they were aligned'

def test_few_shots_read_their_files_alone(trees, monkeypatch):
    import memo.data.images as m
    read = []
    monkeypatch.setattr(m, 'read_image', lambda p, *a: read.append(p) or read_image(p, *a))
    dls = small(trees/'official', n_shot=5, n_way=3)
    assert not read and len(dls.train_ds)==15 and [len(o.dataset) for o in dls][1:]==[15,36]
    assert sum(len(b[1]) for b in dls.train)==15 and {*read}=={*dls.train_ds.x.paths.tolist()}

def test_files_that_hold_nothing_behind_their_first_bytes(trees, tmp_path):
    "Nothing is decoded until a batch is made"
    root = shutil.copytree(trees/'shared', tmp_path/'x')
    for p in root.rglob('*.jpg'): p.write_bytes(b'\xff\xd8\xff nothing \xff\xd9')
    dls = small(root, n_shot=2)
    assert len(dls.train_ds)==14
    assert 'cannot read the image' in err(dls.train.one_batch)

def test_images_are_varied_as_in_the_seed(trees):
    dls = raf_db(trees/'official', valid=5, bs=4, workers=0, device='cpu')
    assert dls.one_batch()[0].shape==(4,3,224,224)
    assert [repr(o) for o in dls.train.after_batch.fs[:1]]==['RandomShift(0, flip=True)']
    names = {type(o).__name__ for o in dls.train.after_batch.fs}
    assert names=={'RandomShift','IntToFloatTensor','RandomRotate','RandomLight','Normalize'}
    assert 'RandomLight(0.2, colour=0.2)' in map(repr, dls.train.after_batch.fs)
    x = dls[2].one_batch()[0]
    assert torch.equal(x, dls[2].one_batch()[0])
    m,s = (torch.tensor(o)[:,None,None] for o in ((.485,.456,.406), (.229,.224,.225)))
    assert torch.allclose(x[0].as_subclass(torch.Tensor), (dls[2].dataset.x[0]/255-m)/s, atol=1e-5)
    plain = raf_db(trees/'official', valid=5, size=32, flip=False, rotate=0, light=0, colour=0, mean=[.5]*3, std=[.5]*3,
                   workers=0, device='cpu')
    assert [type(o).__name__ for o in plain.train.after_batch.fs]==['IntToFloatTensor','Normalize']
    assert plain.train.one_batch()[0].min()>=-1
    assert 'mean: 3 numbers are needed, found 1' in err(raf_db, trees/'official', mean=[.5])

def test_read_once_or_by_processes(trees):
    a,b,c = small(trees/'seed'),small(trees/'seed', preload=True),small(trees/'seed', workers=1)
    order = a.train.get_idxs()
    for o in (b,c):
        assert all(torch.equal(x, y) for x,y in zip(next(iter(a[1])), next(iter(o[1]))))
        assert list(o.train.get_idxs())==list(order)
    assert c.train.num_workers==1 and b.train_ds.x.dtype==torch.uint8

def test_it_trains_with_a_memory_and_predicts_a_file(trees, tmp_path):
    set_seed(0)
    dls = small(trees/'shared', n_shot=5, n_way=4, rotate=0, light=0, colour=0, size=32)
    learn = Learner(dls, small_cnn(3, 4), cbs=MemoryCallback(SlotBank(32, policy='fifo'), head='vote'), path=tmp_path)
    quietly(learn, learn.fit, 2, 1e-2)
    bank = learn.memory.bank
    assert torch.isin(bank.items[:len(bank)], item_ids(dls.train)).all()
    with learn.no_bar():
        assert learn.predict(dls[2].dataset.x.paths[0])[0] in dls.vocab
        learn.export(tmp_path/'e.pkl')
    assert (tmp_path/'e.pkl').stat().st_size<1e6

def test_yaml(trees, yml):
    cfg = load_config(yml(f'data: {{name: raf_db, root: {trees/"seed"}, size: 16, valid: 5, workers: 0}}'),
                      ['data.n_shot=5','data.n_way=3','data.shot_seed=7'])
    dls = build_dls(cfg, 0)
    assert len(dls.train_ds)==15 and dls.c==3 and {'item','label','part','image'}<={*dls.split}
    assert dls.split.image.map(lambda o: (trees/'seed'/o).is_file()).all()

@pytest.mark.parametrize('check', other_checks.checks['data'])
def test_contracts(trees, tmp_path, monkeypatch, check):
    (tmp_path/'data').mkdir()
    (tmp_path/'data'/'raf_db').symlink_to(trees/'official')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pytest, 'skip', lambda *a: pytest.fail('it was not read'))
    other_checks.run(other_checks.checks['data'][check], 'raf_db', tmp_path)

# mistakes

def test_nothing_there(tmp_path):
    for root in (tmp_path,tmp_path/'none'):
        m = err(raf_db, root)
        parts = 'RAF-DB: nothing of it in','http://www.whdeng.cn'       # a long path takes the room of the rest
        assert all(o in m for o in parts)

@pytest.fixture
def own(trees, tmp_path): return shutil.copytree(trees, tmp_path/'own')

def test_a_list_that_does_not_fit(own):
    p = own/'official'/'basic'/'EmoLabel'/'list_patition_label.txt'
    was = p.read_text()
    p.write_text(was.replace(' 7\n', ' 8\n'))
    assert 'labels from 1 to 7 are needed' in err(raf_db, own/'official')
    p.write_text(was+'val_00001.jpg 3\n')
    assert "names begin with train_ or test_, found 'val_00001.jpg'" in err(raf_db, own/'official')
    p.write_text(was+'train_99999.jpg 3\n')
    m = err(raf_db, own/'official')
    assert '1 of 540 images cannot be read' in m and 'train_99999_aligned.jpg is missing' in m
    p.write_text(''.join(l for l in was.splitlines(True) if not l.startswith('test')))
    m = err(raf_db, own/'official')
    assert 'images of 7 classes are needed in' in m and 'test has 0' in m
    p.unlink()
    assert 'no list_patition_label.txt in' in err(raf_db, own/'official')
    p.with_name('list_partition_label.txt').write_text(was)
    assert len(raf_table(own/'official'))==539

def test_folders_that_are_not_the_classes(own):
    root = own/'shared'
    d = root/'DATASET'/'train'
    (d/'7').rename(d/'0')
    assert "'0' is not" in err(raf_db, root)
    (d/'0').rename(d/'surprised')
    m = err(raf_db, root)
    assert "'1', 'surprised' are not" in m and 'one of each' in m
    shutil.rmtree(d/'surprised')
    assert 'found 1, 2, 3, 4, 5, 6' in err(raf_db, root)
    (d/'7').mkdir()
    assert 'no JPEG or PNG in' in err(raf_db, root)
    shutil.rmtree(root/'DATASET'/'test')
    shutil.copytree(root/'DATASET'/'train'/'1', d/'7', dirs_exist_ok=True)
    assert 'no folder test in' in err(raf_db, root)
    p = next((own/'seed'/'train'/'4.happy').iterdir())
    p.write_bytes(b'')
    assert '1 of 539 images cannot be read' in err(raf_db, own/'seed') and 'empty' in err(raf_db, own/'seed')
    (own/'words'/'train'/'.DS_Store').write_text('')
    (own/'words'/'train'/'Fear'/'Thumbs.db').write_text('')
    assert len(raf_table(own/'words'))==539
