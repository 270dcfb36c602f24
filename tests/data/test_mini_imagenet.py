"Non-stationary mini-ImageNet from files as they are shared, filled with real images: parts, domains, cache, faults"
import json, os, pickle
import numpy as np, pytest, torch
from fastai.vision.all import nn
from sklearn.datasets import load_digits
from contracts import other_checks
from helpers.errors import err
from memo.data.image_streams import stream_features
from memo.data.items import item_ids
from memo.data.longtail import _fashion_deb, read_fashion
from memo.data.mini_imagenet import _files, mini_imagenet_ns, part_sizes, read_mini_imagenet
from memo.registry import known

def photos():
    "Real images of 84 pixels and three channels, of ten kinds"
    if _fashion_deb.is_dir():
        x,y = read_fashion(None, 't10k')
        x = x[:600,0].numpy().repeat(3, 1).repeat(3, 2)
    else:
        d = load_digits()
        x,y = (d.images*(255/16)).astype(np.uint8)[:600].repeat(10, 1).repeat(10, 2)[:,:,:],torch.from_numpy(d.target)
        x = np.pad(x, ((0,0),(2,2),(2,2)))
    return np.stack([x, 255-x, x//2], 3),y[:600].numpy()

parts_of = dict(zip(_files, ([4,1,9],[0],[7,2])))
def n_of(c): return 30+c      # classes need not have equally many

@pytest.fixture(scope='module')
def images():
    x,y = photos()
    return {c:x[y==c][:n_of(c)] for c in range(10)}

def write(root, images, dump=pickle.dumps, name=lambda c: f'n{c:08}'):
    root.mkdir(parents=True, exist_ok=True)
    for f,cs in parts_of.items():
        at,of = 0,{}
        for c in cs:
            of[name(c)] = list(range(at, at+len(images[c])))[::-1]       # in no order of the file
            at += len(images[c])
        d = dict(image_data=np.concatenate([images[c] for c in cs]), class_dict=dict(reversed(of.items())))
        (root/f).write_bytes(dump(d))
    return root

@pytest.fixture(scope='module')
def tree(tmp_path_factory, images): return write(tmp_path_factory.mktemp('mini'), images)

@pytest.fixture(scope='module')
def cache(tmp_path_factory): return tmp_path_factory.mktemp('cache')

order = [4,1,9,0,7,2]
def small(root, cache, **kw): return mini_imagenet_ns(root, cache=cache, **dict(size=84, device='cpu') | kw)

def test_classes_in_the_order_of_the_files(tree, images):
    got = read_mini_imagenet(tree)
    assert [*got]==[f'n{c:08}' for c in order]
    for c in order: assert (got[f'n{c:08}']==images[c]).all()

def test_published_sizes():
    assert part_sizes(600)==(420,60,120) and all(sum(part_sizes(n))==n for n in range(10, 99))

def test_parts(tree, cache, images):
    "For each class and domain its first images, the next, the last; the original domain is what is in the files"
    s = small(tree, cache, valid_all=True)
    assert len(s)==18 and s.c==6 and s.whole.vocab==[f'n{c:08}' for c in order]
    assert s.classes==[[i%6] for i in range(18)]
    assert s.names[7]=='n00000001, noise 0.025' and s.names[0]=='n00000004, original'
    for e in range(18):
        c = order[e%6]
        a,b,n = (np.cumsum(part_sizes(n_of(c)))).tolist()
        for dl,ps,want in zip(s.whole.loaders, s.parts, (images[c][:a],images[c][a:b],images[c][b:n])):
            got = dl.dataset.x[ps[e]].permute(0,2,3,1).numpy().astype(float)
            assert got.shape==want.shape and set(dl.dataset.y[ps[e]].tolist())=={e%6}
            if e<6: assert (got==want).all()
    assert sum(len(dl.dataset) for dl in s.whole.loaders)==3*sum(map(n_of, order))
    half = small(tree, cache)
    sizes = [[len(o) for o in ps] for ps in s.parts]
    assert [len(o) for o in half.parts[1]]==sizes[1][:9]+[0]*9 and len(half.whole.valid.dataset)==sum(sizes[1][:9])
    for k in (0,2):
        assert [len(o) for o in half.parts[k]]==sizes[k]
        assert torch.equal(half.whole.loaders[k].dataset.x, s.whole.loaders[k].dataset.x)
    ids = torch.cat([item_ids(dl) for dl in s.whole.loaders])
    assert len(ids.unique())==len(ids) and torch.isin(torch.cat([item_ids(dl) for dl in half.whole.loaders]), ids).all()

def test_noise(tree, cache, images):
    "Of the deviations asked for, clipped to what is black and white, another for each image, the same each time"
    s = small(tree, cache)
    x = s.whole.train.dataset.x
    for e in (0,3):
        a = x[s.parts[0][e]].double()/255
        mid = (a>.35) & (a<.65)
        for d,std in ((1,.025),(2,.1)):
            b = x[s.parts[0][e+6*d]].double()/255
            v = (b-a)[mid]
            assert abs(v.mean())<.01 and abs(float(v.std())/std-1)<.05
            assert not torch.equal((b-a)[0], (b-a)[1]) and b.min()>=0 and b.max()<=1
            low = (b-a)[a==0]
            assert (low>=0).all() and abs(float((low>0).double().mean())-.5)<.1, 'half of it is cut off at black'
    def first(e): return x[s.parts[0][e][0]].double()/255
    a,b = first(0),first(3)
    mid = (a>.35) & (a<.65) & (b>.35) & (b<.65)
    noises = [(first(e+6*d)-first(e))[mid] for e in (0,3) for d in (1,2)]
    rho = torch.corrcoef(torch.stack(noises))
    assert mid.sum()>100 and (rho-torch.eye(4)).abs().max()<.4, 'another for each class and domain'
    again = small(tree, cache.parent/f'{cache.name}-again')
    assert torch.equal(again.whole.train.dataset.x, x)

def test_made_once(tree, tmp_path, monkeypatch):
    "Then read from the cache, without the pickles; another for another noise; a broken one is made again"
    a = small(tree, tmp_path)
    files = {*os.listdir(tmp_path)}
    assert len(files)==2 and not [o for o in files if o.endswith('.part')]
    from memo.data import mini_imagenet as m
    read = m.read_mini_imagenet
    def fail(*_): raise AssertionError('the pickles are read again')
    monkeypatch.setattr(m, 'read_mini_imagenet', fail)
    b = small(tree, tmp_path, seed=3)
    assert torch.equal(a.whole.train.dataset.x, b.whole.train.dataset.x) and a.names==b.names
    monkeypatch.setattr(m, 'read_mini_imagenet', read)
    assert len(small(tree, tmp_path, noise=[0])) == 6 and len(os.listdir(tmp_path))==4
    p = next(tmp_path/o for o in files if o.endswith('.npy'))
    p.write_bytes(p.read_bytes()[:-100])
    with pytest.warns(UserWarning, match='made again'): c = small(tree, tmp_path)
    assert torch.equal(a.whole.train.dataset.x, c.whole.train.dataset.x)
    n = len(np.load(p, mmap_mode='r'))
    for other in (np.zeros((n,3,8,8), np.float32), np.zeros((n,4), np.uint8), np.zeros((n,1,84,84), np.uint8)):
        np.save(p, other)       # as many rows, of something else
        c = small(tree, tmp_path)
        assert torch.equal(a.whole.train.dataset.x, c.whole.train.dataset.x)

def test_what_a_killed_process_left_goes_with_the_next_one(tree, tmp_path):
    "What another one is writing stays"
    small(tree, tmp_path)
    p = next(tmp_path.glob('*.npy'))
    old,new = (tmp_path/f'.{p.name}.{k}.part' for k in ('old','new'))
    for o in (old,new): o.write_bytes(b'x')
    os.utime(old, (1, 1))
    p.unlink()
    small(tree, tmp_path)
    assert p.exists() and new.exists() and not old.exists()

def test_the_file_mapped_into_memory_stays_as_it_is(tree, tmp_path):
    s = small(tree, tmp_path)
    p = next(o for o in tmp_path.iterdir() if o.suffix=='.npy')
    was = p.read_bytes()
    s.whole.train.dataset.x[0] = 0
    assert p.read_bytes()==was

def test_batches(tree, cache):
    "As networks trained on ImageNet want them; one image a step"
    s = small(tree, cache, size=96)
    x,y = s[0].one_batch()
    assert x.shape==(1,3,96,96) and x.dtype==torch.float32 and -2.2<x.min()<x.max()<2.7
    a,b = ([item_ids(dls.train).tolist() for dls in small(tree, cache, seed=o)] for o in (0,1))
    assert a==b
    first = [small(tree, cache, seed=o)[0].train.get_idxs() for o in (0,0,1)]
    assert list(first[0])==list(first[1])!=list(first[2])

def test_features(tree, cache, tmp_path):
    class Net(nn.Module):
        seen = 0
        def forward(self, x):
            self.seen += len(x)
            return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
    s,net = small(tree, cache),Net()
    f = stream_features(net, s, tmp_path)
    assert net.seen==sum(len(o.dataset) for o in s.whole.loaders) and f[17].train.dataset.x.shape[1]==12
    assert f.names==s.names

def test_python_2_and_the_older_protocols(tree, cache, tmp_path, images):
    a = small(tree, cache)
    for i,(dump,name) in enumerate([(lambda o: pickle.dumps(o, 2), lambda c: f'n{c:08}'),
                                    (lambda o: pickle.dumps({k.encode():v for k,v in o.items()}, 2),
                                     lambda c: f'n{c:08}'.encode())]):
        root = write(tmp_path/str(i), images, dump, name)
        s = small(root, tmp_path/'cache')
        assert s.names==a.names and torch.equal(s.whole.train.dataset.x, a.whole.train.dataset.x)

class Evil:
    def __reduce__(self): return os.system, ('touch harmed',)

def test_faults(tree, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    def broken(i, **kw):
        root = write(tmp_path/f'{len(os.listdir(tmp_path))}', images)
        d = pickle.loads((root/_files[i]).read_bytes())
        (root/_files[i]).write_bytes(pickle.dumps({k:v for k,v in (d | kw).items() if v is not None}))
        return err(small, root, tmp_path/'cache')
    assert "mini-imagenet-cache-val.pkl not in" in err(lambda: [os.remove(write(tmp_path/'a', images)/_files[1]),
                                                                small(tmp_path/'a', tmp_path/'cache')])
    assert 'kaggle.com' in err(small, tmp_path/'none', tmp_path/'cache')
    (tmp_path/'packed').mkdir()
    (tmp_path/'packed/archive.zip').write_bytes(b'')
    assert 'where archive.zip is, not unpacked' in err(small, tmp_path/'packed', tmp_path/'cache')
    assert 'posix.system' in broken(0, class_dict=Evil()) and not (tmp_path/'harmed').exists()
    assert "'image_data', uint8 [N,H,W,3], is needed, found NoneType" in broken(0, image_data=None)
    assert "found float64 [33, 84, 84, 3]" in broken(1, image_data=np.zeros((33,84,84,3)))
    small64 = np.zeros((30,64,64,3), np.uint8)
    assert "uint8 [N,84,84,3], is needed, found uint8 [30, 64, 64, 3]" in broken(1, image_data=small64)
    assert "'class_dict'" in broken(0, class_dict=None) and 'no class' in broken(0, class_dict={})
    assert 'rows up to 30 for n00000000' in broken(1, class_dict={'n00000000':[*range(31)]})
    assert 'row -1' in broken(1, class_dict={'a':[-1,0,1]})
    for o in (['x'], 5, None, [[0,1],[2]], [[0,1]], [.5], [None], {}, np.array([0,'a'], object)):
        assert 'no list of whole numbers for a,' in broken(1, class_dict={'a':o}).replace('; ', ', ')
    assert 'two classes a' in broken(1, class_dict={'a':[0], b'a':[1]})
    assert 'rows that are of two classes' in broken(1, class_dict={'a':[0,1],'b':[1,2]})
    assert "class 'n00000004' is in another file too" in broken(2, class_dict={'n00000004':[*range(20)]})
    assert 'a has 9' in broken(1, class_dict={'a':[*range(9)]})
    (tmp_path/'cut').mkdir()
    for f in _files: (tmp_path/'cut'/f).write_bytes((tree/f).read_bytes()[:-50])
    assert 'not a whole pickle' in err(small, tmp_path/'cut', tmp_path/'cache')
    assert 'noise' in err(small, tree, tmp_path/'cache', noise=[])
    assert 'noise' in err(small, tree, tmp_path/'cache', noise=[-1])
    assert not (tmp_path/'cache').exists() or not os.listdir(tmp_path/'cache'), 'nothing is left behind'

def test_registered_and_default_folders(tree, tmp_path, monkeypatch):
    p = known('data')['mini_imagenet_ns']
    assert p.facts['task']=='stream' and {'noise','valid_all','size','val_bs'}<=set(p.keys)
    monkeypatch.chdir(tmp_path)
    (tmp_path/'settings.ini').write_text('[DEFAULT]\ndata = data\n')
    (tmp_path/'data').mkdir()
    (tmp_path/'data'/'mini_imagenet').symlink_to(tree)
    was = {*tree.iterdir()}
    assert len(mini_imagenet_ns(device='cpu'))==18
    assert {*tree.iterdir()}==was, 'none among the files'
    assert len([*(tmp_path/'data/mini_imagenet_domains').iterdir()])==2
    (tmp_path/'settings.ini').write_text('[DEFAULT]\ndata = data\ncache = made\n')
    assert len(mini_imagenet_ns(device='cpu'))==18 and len([*(tmp_path/'made/mini_imagenet_domains').iterdir()])==2
    for f in other_checks.checks['data']: other_checks.run(other_checks.checks['data'][f], 'mini_imagenet_ns', tmp_path)

def test_a_flipped_byte_is_noticed_and_replaced_files_are_seen(tree, images, tmp_path):
    "Also of a file of the same size whose time was put back; arrays that nobody used for longest go"
    root = write(tmp_path/'files', images)
    a = small(root, tmp_path/'c').whole.train.dataset.x.clone()
    p, = (tmp_path/'c').glob('*.npy')
    b = bytearray(p.read_bytes())
    b[len(b)//2] ^= 1
    p.write_bytes(b)
    with pytest.warns(UserWarning, match='not what was written: the images are made again'):
        assert torch.equal(small(root, tmp_path/'c').whole.train.dataset.x, a)
    f = root/_files[0]
    s,d = f.stat(),pickle.loads(f.read_bytes())
    d['image_data'] = 255-d['image_data']
    f.write_bytes(pickle.dumps(d))
    os.utime(f, ns=(s.st_atime_ns, s.st_mtime_ns))
    assert not torch.equal(small(root, tmp_path/'c').whole.train.dataset.x, a)
    assert len([*(tmp_path/'c').glob('*.npy')])==2
    from memo.data.mini_imagenet import cached_domains
    cached_domains(root, tmp_path/'c', [0.], gb=0)
    assert len([*(tmp_path/'c').glob('*.npy')])==1
