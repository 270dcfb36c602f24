"Images on disk as a tensor, the check of whole files, resized copies"
import json, os, time
import numpy as np, pytest, torch
from PIL import Image
from fastai.vision.all import DataLoaders, Learner, Path, TensorImage, TensorImageBW, accuracy, load_learner, nn
from fastai.vision.all import random, set_seed
from memo.data.features import features_key
from memo.core import MemoError
from memo.data.tensors import TensorDL, TensorSet, plain_dl
from memo.data.copies import resize_tree
from memo.data.image_trees import cache_info, find_images
from memo.data.images import FileImages, broken_images, check_images, image_fault, read_image

def _files(d, n=10, h=24, w=24, seed=0):
    rng = np.random.default_rng(seed)
    d.mkdir(parents=True, exist_ok=True)
    a = rng.integers(256, size=(n,h,w), dtype=np.uint8)
    ps = [d/f'{i:03d}.png' for i in range(n)]
    for o,p in zip(a, ps): Image.fromarray(o).save(p)
    return ps,torch.from_numpy(a)[:,None]

@pytest.fixture
def files(tmp_path): return _files(tmp_path/'ims')

# indexing
def test_indexes_like_the_tensor(files):
    ps,t = files
    x = FileImages(ps, 24)
    assert (len(x), x.shape, x.dtype, x.ndim)==(len(t), t.shape, t.dtype, t.ndim)
    for i in (0, -1, torch.tensor(3), np.int64(4)): assert torch.equal(x[i], t[i])
    mask = torch.arange(10)%3==0
    for i in (torch.tensor([3,1,1]), [5,0], np.array([2,9]), mask, torch.tensor([], dtype=torch.long), []):
        assert torch.equal(x[i], t[torch.as_tensor(i).long() if len(i)==0 else i]), i
    for i in (slice(2,7), slice(None), slice(None,None,3), slice(0)):
        assert isinstance(x[i], FileImages) and torch.equal(x[i].load(), t[i])
    for i in (mask, [4,2], slice(3)): assert isinstance(x.rows(i), FileImages) and torch.equal(x.rows(i).load(), t[i])
    with pytest.raises(IndexError): x[10]

def test_slices_rows_and_subsets_read_nothing(tmp_path):
    x = FileImages([tmp_path/f'{i}.png' for i in range(5)], 8)
    ds = TensorSet(x, torch.zeros(5).long(), groups=torch.arange(5))
    sub = ds.subset(torch.tensor([4,2]))
    assert [Path(o).name for o in sub.x.paths]==['4.png','2.png'] and sub.groups.tolist()==[4,
        2] and torch.equal(sub.items, ds.items[[4,2]])
    assert len(x[1:].rows([0]))==1 and len(ds.new_empty())==0
    with pytest.raises(MemoError, match=r'0\.png: no such file'): x[0]

@pytest.mark.parametrize('kind', ['RGBA','P','1','LA','RGB','16 bit','32 bit','jpeg'])
def test_every_kind_of_image_is_grey(tmp_path, kind):
    a = np.tile(np.linspace(0, 255, 32).round().astype(np.uint8), (32,1))
    im = Image.fromarray(a)
    p = tmp_path/dict(jpeg='a.jpg').get(kind, 'a.tif' if kind=='32 bit' else 'a.png')
    if kind=='16 bit': im = Image.fromarray(a.astype(np.uint16)*257)
    elif kind=='32 bit': im = Image.fromarray(a.astype(np.int32)*257)
    elif kind=='jpeg': pass
    elif kind=='1': a = (a>127).astype(np.uint8)*255; im = Image.fromarray(a).convert('1')
    else: im = im.convert(kind)
    im.save(p)
    got = read_image(p, 32)
    assert got.dtype==np.uint8 and np.abs(got.astype(int)-a).max()<=(4 if kind=='jpeg' else 0)

@pytest.mark.parametrize('h,w', [(40,20),(20,40),(31,30)])
def test_shorter_side_is_scaled_and_the_centre_cut(tmp_path, h, w):
    ps,t = _files(tmp_path, 1, h, w)
    s,o = min(h,w),torch.tensor([h,w])-min(h,w)
    if (o%2==0).all(): assert torch.equal(FileImages(ps, s)[0], t[0,:,o[0]//2:o[0]//2+s,o[1]//2:o[1]//2+s])
    big = np.asarray(Image.open(ps[0]).resize((round(w*10/s), round(h*10/s)), Image.Resampling.BILINEAR)).astype(int)
    y,x = (big.shape[0]-10)//2,(big.shape[1]-10)//2
    got = read_image(ps[0], 10).astype(int)
    assert got.shape==(10,10) and np.abs(got-big[y:y+10,x:x+10]).mean()<(2 if (o%2==0).all() else 12)

@pytest.mark.parametrize('kind', ['RGB','RGBA','P','L','LA','1','CMYK','16 bit'])
def test_every_kind_of_image_is_rgb(tmp_path, kind):
    "Colours that any palette has: black, white, grey, red"
    a = np.zeros((12,12,3), np.uint8)
    a[3:6],a[6:9],a[9:] = 255,(128 if kind not in ('1','P') else 255),([255,0,0] if kind in ('RGB','RGBA','P','CMYK')
        else 0)
    im = Image.fromarray(a[...,0].astype(np.uint16)*257) if kind=='16 bit' else Image.fromarray(a).convert(kind)
    p = tmp_path/('a.tif' if kind=='CMYK' else 'a.png')
    im.save(p)
    got = read_image(p, 12, 3)
    assert got.shape==(12,12,3) and np.abs(got.astype(int)-a).max()<=(0 if kind!='CMYK' else 1)

def test_colour_indexes_like_the_tensor(tmp_path):
    t = torch.from_numpy(np.random.default_rng(0).integers(256, size=(5,3,10,10), dtype=np.uint8))
    ps = [tmp_path/f'{i}.png' for i in range(5)]
    for p,o in zip(ps, t): Image.fromarray(o.permute(1,2,0).numpy()).save(p)
    x = FileImages(ps, 10, channels=3)
    assert x.shape==t.shape and torch.equal(x[2], t[2]) and torch.equal(x[[4,0]], t[[4,0]]) and torch.equal(x.load(),
        t) and x.new([]).channels==x[1:].channels==3
    assert x[[]].shape==(0,3,10,10) and 'x (3, 10, 10)' in repr(x) and x.fingerprint()!=FileImages(ps, 10).fingerprint()
    xb = TensorDL(x, torch.zeros(5).long(), bs=2).one_batch()[0]
    assert type(xb) is TensorImage and torch.allclose(xb[0].as_subclass(torch.Tensor), t[0]/255)
    with pytest.raises(MemoError, match='channels: 1 or 3'): FileImages(ps, 10, 2)

@pytest.mark.parametrize('channels', [1,3])
def test_large_jpegs_are_decoded_smaller(tmp_path, channels):
    "A photograph read at a part of its size is that photograph"
    y,x = np.mgrid[:480,:640]
    a = np.stack([127+120*np.sin(x/40), 127+120*np.cos(y/30), (x+y)/5], 2).round().astype(np.uint8)
    Image.fromarray(a).save(tmp_path/'a.jpg', quality=95)
    Image.fromarray(a).save(tmp_path/'a.png')
    for size in (60, 100, 240, 480):
        b,c = (read_image(tmp_path/o, size, channels).astype(int) for o in ('a.jpg','a.png'))
        assert b.shape==c.shape and np.abs(b-c).mean()<3

# loaders
def _dls(x, y, workers=0):
    return DataLoaders(TensorDL(x[:7], y[:7], bs=3, shuffle=True, num_workers=workers, vocab=['a','b'], split_idx=0),
                       TensorDL(x[7:], y[7:], bs=2, num_workers=workers,
        vocab=['a','b'], split_idx=1))

@pytest.mark.parametrize('workers', [0,2])
def test_loader_gives_what_the_tensor_gives(files, workers):
    ps,t = files
    y = torch.arange(10)%2
    a,b = _dls(FileImages(ps, 24), y, workers),_dls(t, y)
    for _ in range(2):
        a.train.rng,b.train.rng = random.Random(1),random.Random(1)
        for p,q in zip(a, b):
            for (x1,y1),(x2,y2) in zip(p, q, strict=True):
                assert torch.equal(x1, x2) and torch.equal(y1, y2) and type(x1) is TensorImageBW

def test_a_workers_fault_is_one_line(files):
    ps,_ = files
    ps[4].write_bytes(ps[4].read_bytes()[:60])
    with pytest.raises(MemoError) as e: list(TensorDL(FileImages(ps, 24), torch.zeros(10), bs=2, num_workers=2))
    assert '\n' not in str(e.value) and '004.png' in str(e.value) and str(e.value).startswith('cannot read')

def _learn(dls, path):
    set_seed(0)
    return Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(576,2)), metrics=accuracy, path=path)

@pytest.mark.parametrize('preload', [False,True])
def test_learner_verbs(files, tmp_path, preload):
    ps,t = files
    x,y = FileImages(ps, 24),torch.arange(10)%2
    learn = _learn(_dls(x, y), tmp_path) if not preload else None
    if preload:
        mk = lambda at,i: TensorDL(dataset=TensorSet(x[at].load(), y[at], vocab=['a','b'], split_idx=i,
                                                     files=x.new([])), bs=3, shuffle=i==0)
        learn = _learn(DataLoaders(mk(slice(7),0), mk(slice(7,10),1)), tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        p,yy = learn.get_preds()
        assert torch.equal(yy, y[7:])
        q,_ = learn.get_preds(dl=learn.dls.test_dl(ps[7:]))
        assert torch.allclose(p, q)
        assert torch.allclose(learn.predict(ps[8])[2], p[1], atol=1e-6) and torch.allclose(learn.predict(str(ps[8]))[2],
            p[1], atol=1e-6)
        assert torch.allclose(learn.predict(t[8])[2], p[1], atol=1e-6)
        learn.export(tmp_path/'e.pkl')
        other = load_learner(tmp_path/'e.pkl')
        with other.no_bar(): assert torch.allclose(other.predict(ps[8])[2], p[1], atol=1e-6)
        assert (tmp_path/'e.pkl').stat().st_size<200_000
    with pytest.raises(MemoError, match='nowhere.png: no such file'): learn.predict(tmp_path/'nowhere.png')
    assert len(plain_dl(learn.dls.train).dataset)==7

def test_features_key_sees_files(files):
    ps,_ = files
    key = lambda n=10,size=24: features_key(nn.Flatten(), TensorDL(FileImages(ps[:n], size), torch.zeros(n)))
    was = key()
    assert key()==was and key(9)!=was and key(size=20)!=was
    Image.fromarray(np.zeros((24,24), np.uint8)).save(ps[0])
    assert key()!=was

@pytest.mark.parametrize('workers', [0,2])
def test_load(tmp_path, workers):
    ps,t = _files(tmp_path, 300, 8, 8)
    assert torch.equal(FileImages(ps, 8).load(workers), t)
    assert FileImages([], 8).load(workers).shape==(0,1,8,8)

def test_size_is_checked():
    with pytest.raises(MemoError, match='size: 1 or more'): FileImages([], 0)

# whole files
def test_faults(files, tmp_path):
    ps,_ = files
    whole = ps[0].read_bytes()
    for p,b in zip(ps[1:6], (b'', whole[:-1], whole[:-12], whole[:10], b'<html>not found</html>')): p.write_bytes(b)
    Image.fromarray(np.zeros((9,9), np.uint8)).save(tmp_path/'a.jpg')
    (tmp_path/'b.jpg').write_bytes((tmp_path/'a.jpg').read_bytes()[:-30])
    (tmp_path/'tail.png').write_bytes(whole+b'\n')          # some programs leave something behind the end
    got = broken_images([*ps, tmp_path/'a.jpg', tmp_path/'b.jpg', tmp_path/'tail.png', tmp_path/'none.png', tmp_path])
    assert [(Path(p).name, why) for p,why in got]==[('001.png','empty'),('002.png','cut off'),('003.png','cut off'),
                                                    ('004.png','cut off'),
                                                    ('005.png','no PNG, JPEG, WebP, GIF, BMP, TIFF or DICOM'),
        ('b.jpg','cut off'),('none.png','missing'),(tmp_path.name,'Is a directory')]
    assert image_fault(ps[0], 24) is None and image_fault(ps[0], 23)=='not 23 x 23 pixels'
    with pytest.raises(MemoError) as e: check_images(ps, 'copy them again')
    assert str(e.value).startswith('5 of 10 images cannot be read (first: ') and str(e.value).endswith(
        '; copy them again') and '\n' not in str(e.value)

def test_every_cut_of_a_png_is_found(tmp_path):
    ps,_ = _files(tmp_path, 1)
    b = ps[0].read_bytes()
    for n in range(len(b)):
        ps[0].write_bytes(b[:n])
        assert broken_images(ps), n

def test_checking_is_fast(tmp_path):
    ps,_ = _files(tmp_path, 500, 8, 8)
    took = min(_time(lambda: broken_images(ps)) for _ in range(3))
    assert took/500<200e-6, f'{took/500*1e6:.0f} us a file'

def _time(f):
    t = time.perf_counter()
    f()
    return time.perf_counter()-t

# resized copies
@pytest.fixture
def tree(tmp_path):
    for i in (1,2): _files(tmp_path/f'src/images_00{i}/images', 5, 40, 40+i, seed=i)
    for i in range(5):
        (tmp_path/f'src/images_002/images/{i:03d}.png').rename(tmp_path/f'src/images_002/images/{i+5:03d}.png')
    (tmp_path/'src/Data_Entry_2017.csv').write_bytes(b'Image Index\r\n000.png\r\n')
    (tmp_path/'src/test_list.txt').write_text('000.png')
    return tmp_path/'src'

@pytest.mark.parametrize('workers', [0,2])
def test_copy_is_what_would_have_been_read(tree, tmp_path, workers):
    got = resize_tree(tree, tmp_path/'out', 16, workers=workers)
    a,b = find_images(tree),find_images(tmp_path/'out')
    assert [*a]==[*b] and [os.path.relpath(o, tree) for o in a.values()]==[os.path.relpath(o, tmp_path/'out')
        for o in b.values()]
    assert torch.equal(FileImages(a.values(), 16).load(), FileImages(b.values(), 16).load())
    for o in ('Data_Entry_2017.csv','test_list.txt'): assert (tree/o).read_bytes()==(tmp_path/'out'/o).read_bytes()
    assert got['made']==10 and cache_info(tmp_path/'out')==dict(size=16, source=str(tree), images=10,
        depth=8, tables=['Data_Entry_2017.csv','test_list.txt'], whole=True) and cache_info(tree) is None
    assert not [*(tmp_path/'out').rglob('*.part')]

def test_copy_goes_on_where_it_stopped(tree, tmp_path, monkeypatch):
    import memo.data.copies as m
    real,n = m.copy_image,[0]
    def stop(*a):
        n[0] += 1
        if n[0]>4: raise KeyboardInterrupt
        return real(*a)
    monkeypatch.setattr(m, 'copy_image', stop)
    with pytest.raises(KeyboardInterrupt): resize_tree(tree, tmp_path/'out', 16, workers=0)
    assert not cache_info(tmp_path/'out')['whole']
    monkeypatch.setattr(m, 'copy_image', real)
    done = [*find_images(tmp_path/'out').values()]
    Path(done[0]).write_bytes(b'\x89PNG')                    # half-written by another program
    times = {o:os.stat(o).st_mtime_ns for o in done[1:]}
    assert resize_tree(tree, tmp_path/'out', 16, workers=0)['made']==7
    assert times=={o:os.stat(o).st_mtime_ns for o in done[1:]} and cache_info(tmp_path/'out')['whole']
    assert resize_tree(tree, tmp_path/'out', 16, workers=0)['made']==0

def test_copy_refuses(tree, tmp_path):
    out = tmp_path/'out'
    resize_tree(tree, out, 16, workers=0)
    with pytest.raises(MemoError, match='holds copies of 16 pixels, 32 are asked for'): resize_tree(tree, out, 32)
    (tmp_path/'other').mkdir()
    with pytest.raises(MemoError, match='holds copies of .*src, not of'): resize_tree(tmp_path/'other', out, 16)
    with pytest.raises(MemoError, match='no images'): resize_tree(tmp_path/'other', tmp_path/'o2', 16)
    (tmp_path/'other'/'thesis.txt').write_text('mine')
    with pytest.raises(MemoError, match="not empty and no copy of memo-cache's"):
        resize_tree(tree, tmp_path/'other', 16)
    with pytest.raises(MemoError, match='lies in the data'): resize_tree(tree, tree/'small', 16)
    with pytest.raises(MemoError, match='lies in the data'): resize_tree(tree, tree, 16)
    with pytest.raises(MemoError, match='no such folder'): resize_tree(tmp_path/'nowhere', tmp_path/'o3', 16)
    with pytest.raises(MemoError, match='size: 1 to 4,096 pixels'): resize_tree(tree, tmp_path/'o3', 0)
    Image.fromarray(np.zeros((16,16), np.uint8)).save(out/'images_001/images/extra.png')
    with pytest.raises(MemoError, match=r'holds images that .*src does not \(first: extra.png\)'):
        resize_tree(tree, out, 16, workers=0)
    (out/'cache.json').write_text(json.dumps(dict(size=16)))
    with pytest.raises(MemoError, match='not a cache.json'): resize_tree(tree, out, 16)

def test_copy_tells_of_broken_sources_first(tree, tmp_path):
    p = tree/'images_002/images/007.png'
    p.write_bytes(p.read_bytes()[:-5])
    with pytest.raises(MemoError, match='1 of 10 images cannot be read .*007.png is cut off.*nothing has been written'):
        resize_tree(tree, tmp_path/'out', 16, workers=0)
    assert not (tmp_path/'out').exists()
