"CLEAR in both official layouts, filled with real images: buckets, parts, ids, faults"
import json, shutil
import numpy as np, pytest, torch
from PIL import Image
from sklearn.datasets import load_digits
from contracts import made, other_checks
from helpers.errors import err
from memo.data.clear import clear10, clear100
from memo.data.items import item_ids
from memo.registry import known

names,buckets = ['BACKGROUND','bus','camera'],['2','10','1']      # in the files in no order
n_of = dict(train=10, test=4)

def photos():
    "Bucket, class, part, number -> image"
    d = load_digits()
    for b in buckets:
        for c in range(3):
            rows = np.flatnonzero(d.target==c)[14*int(b):14*int(b)+14]
            for k,i in enumerate(rows):
                part = 'train' if k<10 else 'test'
                yield b,c,part,k,Image.fromarray((d.images[i]*15).astype(np.uint8)).resize((40,30)).convert('RGB')

def save(p, im):
    p.parent.mkdir(parents=True, exist_ok=True)
    im.save(p, quality=95)

def write_new(root):
    index,of = {},{}
    for b,c,part,k,im in photos():
        p = f'labeled_images/{b}/{names[c]}/{k}.jpg'
        save(root/part/p, im)
        m = f'labeled_metadata/{b}/{names[c]}.json'
        index.setdefault(part, {}).setdefault(b, {})[names[c]] = m
        of.setdefault((part, m), {})[str(k)] = dict(ID=str(k), IMG_PATH=p)
    for (part,m),o in of.items():
        (root/part/m).parent.mkdir(parents=True, exist_ok=True)
        (root/part/m).write_text(json.dumps(o))
    for part in ('train','test'):
        (root/part/'labeled_metadata.json').write_text(json.dumps(index[part]))
        (root/part/'class_names.txt').write_text('\n'.join(names))
    return root

def write_old(root):
    lines = {}
    for b,c,part,k,im in photos():
        p = f'training_folder/labeled_images/{b}/{names[c]}/{k}.jpg'
        save(root/p, im)
        for split in (0,1):      # another division
            of = part if split==0 else 'test' if k<4 else 'train'
            lines.setdefault((split, b, of), []).append(f'{p} {c}')
    for (split,b,part),o in lines.items():
        f = root/f'training_folder/testset_ratio_0.3/split_{split}/{b}/{part}.txt'
        f.parent.mkdir(parents=True, exist_ok=True)
        f.write_text('\n'.join(o)+'\n')
    (root/'training_folder/bucket_indices.json').write_text(json.dumps(buckets))
    (root/'class_names.txt').write_text('\n'.join(names)+'\n')
    return root

@pytest.fixture(scope='module')
def trees(tmp_path_factory):
    root = tmp_path_factory.mktemp('clear')
    return dict(new=write_new(root/'new'), old=write_old(root/'old'))

def small(root, f=clear10, **kw): return f(root, **dict(size=24, valid=.2, workers=0, device='cpu') | kw)

@pytest.mark.parametrize('layout', ['new','old'])
@pytest.mark.parametrize('f', [clear10,clear100])
def test_buckets_in_the_order_of_time(trees, layout, f):
    s = small(trees[layout], f)
    assert s.names==['bucket 1','bucket 2','bucket 10'] and s.whole.vocab==names and s.classes==[[0,1,2]]*3
    assert [[len(o) for o in ps] for ps in s.parts]==[[24]*3,[6]*3,[12]*3]
    for dl,ps in zip(s.whole.loaders, s.parts):
        for name,at in zip(s.names, ps):
            for p,y in zip(dl.dataset.x.paths[at.numpy()], dl.dataset.y[at].tolist()):
                assert f"/labeled_images/{name.split()[1]}/{names[y]}/" in p
        assert dl.dataset.y.bincount().tolist()==[len(dl.dataset)//3]*3, 'of each class and bucket its share'

def test_images_are_as_divided(trees):
    def files(s, k): return {int(p.split('/')[-1][:-4]) for p in s.whole.loaders[k].dataset.x.paths}
    for layout in ('new','old'):
        s = small(trees[layout])
        assert files(s, 0) | files(s, 1)=={*range(10)} and files(s, 2)=={10,11,12,13}
    other = small(trees['old'], split=1)
    assert files(other, 2)=={0,1,2,3} and files(other, 0) | files(other, 1)=={*range(4, 14)}
    ids = [torch.cat([item_ids(dl) for dl in small(trees['new'], seed=o).whole.loaders]) for o in (0,1)]
    assert torch.equal(*ids) and len(ids[0].unique())==3*3*14, 'the same validation images for every seed'
    x,y = small(trees['new'], bs=8)[1].one_batch()
    assert x.shape==(8,3,24,24) and x.dtype==torch.float32
    assert len(small(trees['new'], valid=0).whole.loaders[1].dataset)==0

def test_faults(trees, tmp_path):
    assert 'neither train/labeled_metadata.json nor training_folder in' in err(small, tmp_path)
    assert 'split_7' in err(small, trees['old'], split=7) and 'is missing' in err(small, trees['old'], split=7)
    def broken(layout, f):
        root = shutil.copytree(trees[layout], tmp_path/f'{len([*tmp_path.iterdir()])}')
        f(root)
        return err(small, root)
    def without(root):
        p = root/'train/labeled_metadata.json'
        d = json.loads(p.read_text())
        del d['2']['bus']
        p.write_text(json.dumps(d))
    assert 'bucket 2 has no bus' in broken('new', without)
    assert 'camera.json is missing' in broken('new', lambda o: (o/'test/labeled_metadata/1/camera.json').unlink())
    assert 'cannot read' in broken('new', lambda o: (o/'train/labeled_metadata.json').write_text('{'))
    def put(f, o): return lambda root: (root/f).write_text(json.dumps(o))
    assert 'a dict is needed, found list' in broken('new', put('train/labeled_metadata.json', [1]))
    assert 'bucket 1 has no BACKGROUND, bus' in broken('new', put('train/labeled_metadata.json', {'1':None}))
    of_bus = 'train/labeled_metadata/1/bus.json'
    assert 'a dict is needed, found list' in broken('new', put(of_bus, [1]))
    for o in ({'a':1}, {'a':dict(ID='1')}, {'a':dict(IMG_PATH=3)}):
        assert '1 of 1 have none' in broken('new', put(of_bus, o))
    assert 'a list is needed, found dict' in broken('old', put('training_folder/bucket_indices.json', {}))
    (tmp_path/'clear10-train.ZIP').write_bytes(b'')
    assert 'where clear10-train.ZIP is, not unpacked' in err(small, tmp_path)
    assert '3.jpg is missing' in broken('new', lambda o: (o/'train/labeled_images/1/bus/3.jpg').unlink())
    image = 'training_folder/labeled_images/1/bus/3.jpg'
    assert '3.jpg is empty' in broken('old', lambda o: (o/image).write_bytes(b''))
    assert 'each once, are needed' in broken('old', lambda o: (o/'class_names.txt').write_text('bus\nbus\n'))
    assert 'has a label 2, there are 2 names' in broken('old', lambda o: (o/'class_names.txt').write_text('a\nb\n'))
    assert 'class_names.txt' in broken('new', lambda o: (o/'train/class_names.txt').unlink())
    lists = 'training_folder/testset_ratio_0.3/split_0/1'
    assert '30 images are listed twice' in broken('old', lambda o: shutil.copy(o/lists/'train.txt', o/lists/'test.txt'))
    assert 'buckets are numbers' in broken('old', lambda o: [(o/lists).rename(o/lists.replace('/1', '/x')),
        (o/'training_folder/bucket_indices.json').write_text('["2","x"]')])

def test_names_as_other_editors_write_them_and_classes_that_are_no_names(trees, tmp_path):
    root = shutil.copytree(trees['new'], tmp_path/'new')
    (root/'train/class_names.txt').write_bytes(b'\xef\xbb\xbf'+'\r\n'.join(names).encode())
    assert small(root).whole.vocab==names
    (root/'train/class_names.txt').write_text('bus\ncamera')
    with pytest.warns(UserWarning, match='CLEAR: BACKGROUND of .* is no class of class_names.txt'):
        assert small(root).c==2

@pytest.mark.parametrize('name', ['clear10','clear100'])
def test_registered(trees, tmp_path, monkeypatch, name):
    p = known('data')[name]
    assert p.facts['task']=='stream' and {'split','valid','size','ordered'}<=set(p.keys)
    monkeypatch.chdir(tmp_path)
    (tmp_path/'data').mkdir()
    (tmp_path/'data'/name).symlink_to(trees['new'])
    for k,v in dict(valid=.2, workers=0).items(): monkeypatch.setitem(made.given, k, v)
    for f in other_checks.checks['data'].values(): other_checks.run(f, name, tmp_path)
