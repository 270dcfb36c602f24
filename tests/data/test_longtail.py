"""Long-tailed sets in the layouts of their authors: CIFAR's pickles, lists of photographs, and every fault told in
one line before training"""
import math, os, pickle, re, time
from collections import Counter
import numpy as np, pytest, torch
from PIL import Image
from sklearn.datasets import load_digits
from fastai.vision.all import Learner, Path, TensorImage, accuracy, imagenet_stats, load_learner, nn, random, set_seed
from memo.core import MemoError
from memo.data.samplers import BalancedDL
from memo.data.tensors import TensorDL, plain_dl, with_loaders
from memo.data.longtail import longtail_counts
from memo.models.small import small_cnn
from memo.data.images import FileImages
from memo.data.items import digest, item_ids, position_ids
from memo.data.transforms import CentreCut, RandomCut
from memo.data.cifar import cifar10_lt, cifar100_lt, cifar_lt, read_cifar, read_pickle
from memo.data.image_lists import imagenet_lt, inat18, list_dls, list_split, read_list_file

def _fails(f, *parts):
    "One line, with all `parts`"
    with pytest.raises(MemoError) as e: f()
    msg = str(e.value)
    assert '\n' not in msg and len(msg)<600, msg
    for o in parts: assert o in msg, msg

@pytest.fixture(scope='session')
def tiles():
    "Digits as RGB tiles uint8 [1797,3,32,32], and labels; sorted by class"
    d = load_digits()
    at = d.target.argsort(kind='stable')
    x = (d.images[at]*(255/16)).astype(np.uint8).repeat(4, 1).repeat(4, 2)
    return np.stack([x, 255-x, x//2], 1),d.target[at]

# CIFAR
def _dump(p, d, protocol=2): p.write_bytes(pickle.dumps({k.encode():v for k,v in d.items()}, protocol))

def _cifar10(root, tiles, protocol=2):
    x,y = tiles
    d,order = root/'cifar-10-batches-py',np.random.default_rng(0).permutation(len(y))
    d.mkdir(parents=True)
    names = [*(f'data_batch_{i}' for i in range(1,6)),'test_batch']
    for n,at in zip(names, np.split(order, range(300, 1800, 300))):
        _dump(d/n, dict(batch_label=b'one of them', labels=y[at].tolist(), data=x[at].reshape(-1,3072),
                        filenames=[b'a.png']*len(at)), protocol)
    _dump(d/'batches.meta', dict(num_cases_per_batch=300, label_names=[b'class %d' % i for i in range(10)],
                                 num_vis=3072), protocol)
    return x[order],y[order]

def _cifar100(root, tiles, n=12, n_test=3):
    x,_ = tiles
    d = root/'cifar-100-python'
    d.mkdir(parents=True)
    for name,k,at in (('train',n,0),('test',n_test,1200)):
        y = np.arange(100*k)%100
        _dump(d/name, dict(fine_labels=y.tolist(), coarse_labels=(y//5).tolist(), data=x[at:at+100*k].reshape(-1,3072)))
    _dump(d/'meta', dict(fine_label_names=[b'fine %d' % i for i in range(100)], coarse_label_names=[b'coarse']*20))

@pytest.fixture
def c10(tmp_path, tiles):
    x,y = _cifar10(tmp_path, tiles)
    return tmp_path,torch.from_numpy(x),torch.from_numpy(y)

def _c10(root, **kw): return cifar10_lt(root, **dict(n_max=100, ratio=20, valid=8, bs=16, device='cpu') | kw)

@pytest.mark.parametrize('protocol', [2,3,4,5])
def test_official_files_are_read(tmp_path, tiles, protocol):
    x,y = _cifar10(tmp_path, tiles, protocol)
    (a,b),(ta,tb),names = read_cifar(tmp_path)
    assert (a.numpy()==x[:1500]).all() and (b.numpy()==y[:1500]).all() and (ta.numpy()==x[1500:]).all() and (
        tb.numpy()==y[1500:]).all()
    assert names==[f'class {i}' for i in range(10)] and a.dtype==torch.uint8 and b.dtype==torch.long
    assert torch.equal(read_cifar(tmp_path/'cifar-10-batches-py')[0][0], a)

def test_pickle_of_python_2(tmp_path):
    "As the archive has them: protocol 2 with texts as bytes, the array by numpy.core"
    a = np.arange(6, dtype=np.uint8)
    b = (b"\x80\x02}U\x04dataq\x00cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85"
         b"U\x01b\x87R(K\x01K\x02K\x03\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
         b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x06"+a.tobytes()+b"tbs.")
    (tmp_path/'a').write_bytes(b)
    assert (read_pickle(tmp_path/'a')['data']==a.reshape(2,3)).all()

def test_cifar10(c10):
    root,x,y = c10
    dls = _c10(root)
    n = [math.floor(100*20**(-i/9)+1e-6) for i in range(10)]
    assert dls.counts.tolist()==n==dls.train_ds.y.bincount().tolist() and dls[1].dataset.y.bincount().tolist()==[8]*10
    assert [len(o.dataset) for o in dls]==[sum(n),80,297] and (dls.many,dls.few,dls.c)==(100,20,
        10) and dls.vocab[3]=='class 3'
    # an id is a position in the whole archive
    at = {o:i for i,o in enumerate(position_ids(1797, digest(x[:1500], x[1500:])).tolist())}
    ids = [torch.tensor([at[o] for o in item_ids(dl).tolist()]) for dl in dls]
    assert len(torch.cat(ids).unique())==sum(map(len, ids)) and ids[2].tolist()==[*range(1500,1797)]
    for dl,i in zip(dls, ids): assert torch.equal(dl.dataset.x, x[i]) and torch.equal(dl.dataset.y, y[i])
    m,s = torch.tensor([.4914,.4822,.4465])[:,None,None],torch.tensor([.2023,.1994,.2010])[:,None,None]
    assert torch.allclose(dls[2].one_batch()[0][0].as_subclass(torch.Tensor), (x[1500]/255-m)/s, atol=1e-5)
    a,b = (plain_dl(dls.train).one_batch()[0],dls.train.new(shuffle=False).one_batch()[0])
    # shifts and flips in training
    assert a.shape==b.shape and not torch.equal(a, b)

def test_split_is_seeded_and_kept(c10):
    root,_,_ = c10
    a,b,c,d = _c10(root),_c10(root, sampling='sqrt', bs=4),_c10(root, seed=1),_c10(root, imb_factor=.05, ratio=None)
    assert a.split.equals(b.split) and a.split.equals(d.split) and not a.split.equals(c.split) and a.counts.tolist(
        )==c.counts.tolist()
    assert [*a.split.columns]==['item','label','part'] and [*a.split.part.unique()]==['train','valid','test']
    for dl,part in zip(a, ('train','valid','test')):
        rows = a.split[a.split.part==part]
        assert rows.item.tolist()==item_ids(dl).tolist() and rows.label.tolist()==dl.dataset.y.tolist()
    assert with_loaders(a, a.loaders).split is a.split

def test_all_images_without_validation(tmp_path, tiles):
    x,y = tiles
    _cifar10(tmp_path, tiles)
    least = int(read_cifar(tmp_path)[0][1].bincount().min())
    dls = cifar10_lt(tmp_path, valid=0, ratio=10, device='cpu')
    assert dls.counts[0]==least and len(dls[1].dataset)==0 and dls.counts[-1]==math.floor(least/10+1e-6)
    assert cifar10_lt(tmp_path, valid=20, ratio=10, device='cpu').counts[0]==least-20

def test_published_sizes():
    assert sum(longtail_counts(5000, 100, 10, down=True))==12406 and sum(longtail_counts(500, 100, 100,
        down=True))==10847
    assert longtail_counts(5000, imb_factor=.01, down=True)==[5000,2997,1796,1077,645,387,232,139,83,50]

def test_cifar100(tmp_path, tiles):
    _cifar100(tmp_path, tiles)
    dls = cifar100_lt(tmp_path, valid=2, ratio=10, device='cpu')
    assert dls.c==100 and dls.vocab[99]=='fine 99' and dls.counts.tolist()==longtail_counts(10, 10, 100, down=True)
    assert [len(o.dataset) for o in dls]==[int(dls.counts.sum()),200,300]
    _fails(lambda: cifar100_lt(tmp_path, valid=20), 'CIFAR-100: 12 images a class are there', 'n_max, valid')
    _fails(lambda: cifar10_lt(tmp_path), 'CIFAR-10: data_batch_1, data_batch_2', f'not in {tmp_path}',
           'download=True')
    _fails(lambda: cifar_lt(tmp_path, 20), 'classes: 10 or 100')

def test_cifar_trains_and_predicts_a_file(c10, tiles, tmp_path):
    set_seed(0)
    dls = _c10(c10[0], sampling='balanced')
    learn = Learner(dls, small_cnn(3, 10), metrics=accuracy, path=tmp_path)
    p = tmp_path/'one.png'
    Image.fromarray(dls[2].dataset.x[5].permute(1,2,0).numpy()).save(p)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
        z,_ = learn.get_preds(dl=dls[2])
        assert torch.allclose(learn.predict(p)[2], z[5], atol=1e-5)
        learn.export(tmp_path/'e.pkl')
        other = load_learner(tmp_path/'e.pkl')
        with other.no_bar(): assert torch.allclose(other.predict(p)[2], z[5], atol=1e-5)

@pytest.mark.parametrize('name', ['data_batch_2','test_batch','batches.meta'])
def test_missing_truncated_and_foreign_files(c10, name):
    root = c10[0]
    p = root/'cifar-10-batches-py'/name
    b = p.read_bytes()
    for n in (0, 1, 20, len(b)//2, len(b)-1):
        p.write_bytes(b[:n])
        _fails(lambda: _c10(root), str(p), 'unpack the archive again')
    for t in (b'<html>not found</html>', os.urandom(300), pickle.dumps([1,2])):
        p.write_bytes(t)
        _fails(lambda: _c10(root), str(p))
    p.write_bytes(pickle.dumps({}))
    _fails(lambda: _c10(root), str(p),
           'is needed, found' if 'meta' not in name else "'label_names', 10 names, is needed")
    p.unlink()
    _fails(lambda: _c10(root), f'CIFAR-10: {name} not in')

class _Evil:
    def __init__(self, f, *a): self.o = f,a
    def __reduce__(self): return self.o

def test_no_pickle_runs_anything(tmp_path):
    p,q = tmp_path/'a',tmp_path/'ran'
    for o in (_Evil(os.system, f'touch {q}'), _Evil(eval, f'open({str(q)!r}, "w")'), _Evil(__import__, 'os')):
        for protocol in (0,2,4):
            p.write_bytes(pickle.dumps({b'data':o}, protocol))
            _fails(lambda: read_pickle(p), str(p), 'it holds ', 'where only arrays, texts and numbers belong')
    p.write_bytes(pickle.dumps({b'data':Counter('ab')}))
    _fails(lambda: read_pickle(p), 'it holds collections.Counter')
    p.write_bytes(pickle.dumps({b'data':np.array([_Evil(os.system, f'touch {q}')], dtype=object)}))
    _fails(lambda: read_pickle(p), '.system')
    assert not q.exists()

def test_contents_of_cifar_are_checked(c10, tiles):
    root,d = c10[0],c10[0]/'cifar-10-batches-py'
    x,y = tiles[0][:20].reshape(20,-1),tiles[1][:20].tolist()
    for t,parts in ((dict(data=x[:,:99], labels=y), ("'data', uint8 [N,3072]", '[20, 99]')),
                    (dict(data=x.astype(float), labels=y), ("'data'", 'float64')),
                    (dict(data=x, labels=y[:-1]), ("'labels'", '20 images', '[19]')),
                    (dict(data=x, labels=[10]*20), ('from 0 to 9', 'found 10 to 10')),
                    (dict(data=x, labels=['a']*20), ("'labels'",)), (dict(data=x), ("'labels'",)),
                    (dict(fine_labels=y), ("'data'", 'found None'))):
        _dump(d/'data_batch_3', t)
        _fails(lambda: _c10(root), 'data_batch_3', *parts)

@pytest.mark.parametrize('kw,shown',
                         [(dict(ratio=.01),'imb_factor=0.01'),(dict(ratio=None, imb_factor=100.),'ratio=100'),
                          (dict(imb_factor=.1),'found both'),(dict(n_max=500),'500+8 are asked'),
    (dict(sampling='root'),"sampling: 'root' is not one of balanced, sqrt")])
def test_wrong_options(c10, kw, shown): _fails(lambda: _c10(c10[0], **kw), shown)

# lists
def _lists(root, tiles, counts, name='iNaturalist18_{}.txt', test=3, valid=0, ext='jpg'):
    "Trees of `counts` training images; the others of a class are for validation and test"
    x,y = tiles
    lines = dict(train=[], val=[], test=[])
    for c,n in enumerate(counts):
        d = root/'photos of'/f'class {c}'
        d.mkdir(parents=True)
        for i,j in enumerate((y==c).nonzero()[0][:n+valid+test]):
            Image.fromarray(x[j].transpose(1,2,0)).resize((40,36)).save(d/f'{j}.{ext}')
            lines['train' if i<n else 'val' if i<n+valid else 'test'].append(f'photos of/class {c}/{j}.{ext} {c}')
    if not valid: lines = dict(train=lines['train'], val=lines['test'])
    for k,o in lines.items(): (root/name.format(k)).write_text('\n'.join(o)+'\n')
    return lines

counts = [40,24,14,8,5,3,2,1]

@pytest.fixture
def inat(tmp_path, tiles):
    return tmp_path/'inat',_lists(tmp_path/'inat', tiles, counts)

def _inat(root, **kw): return inat18(root, **dict(size=28, workers=0, bs=16, valid=.1, device='cpu') | kw)

def test_inat(inat):
    root,lines = inat
    dls = _inat(root)
    val = [max(1, round(n/10)) if n>2 else 0 for n in counts]
    assert dls.counts.tolist()==[n-v
                                 for n,v in zip(counts, val)]==dls.train_ds.y.bincount().tolist() and dls[
                                     1].dataset.y.bincount(minlength=8).tolist()==val
    assert dls[2].dataset.y.bincount().tolist()==[3]*8 and (dls.many,dls.few,dls.c)==(100,20,
        8) and list(dls.vocab)==[*range(8)]
    for dl,part,k in zip(dls, ('train','valid','test'), ('train','train','val')):
        s = dls.split[dls.split.part==part]
        assert s.item.tolist()==item_ids(dl).tolist() and s.label.tolist()==dl.dataset.y.tolist()
        assert [str(root/o) for o in s.image]==dl.dataset.x.paths.tolist()
        assert {f'{o} {c}' for o,c in zip(s.image, s.label)} <= {*lines[k]}
    assert len(dls.split)==len(set(dls.split.item))==sum(map(len, lines.values()))
    m,s = (torch.tensor(o)[:,None,None] for o in ((.466,.471,.380),(.195,.194,.192)))
    big = FileImages(dls[2].dataset.x.paths, 32, 3)[0]
    assert torch.allclose(dls[2].one_batch()[0][0].as_subclass(torch.Tensor), (big[:,2:-2,2:-2]/255-m)/s, atol=1e-5)
    xb,yb = dls.one_batch()
    assert xb.shape==(16,3,28,28) and type(xb) is TensorImage and plain_dl(dls.train).one_batch()[0].shape==xb.shape
    dls.show_batch(max_n=2)

def test_items_are_stable(inat):
    root,_ = inat
    a,b,c,d = _inat(root),_inat(root, sampling='balanced', bs=4, seed=3),_inat(root, sampling='sqrt',
        preload=True),_inat(root, split_seed=1)
    assert a.split.equals(b.split) and a.split.equals(c.split) and not a.split.equals(d.split)
    assert dict(zip(a.split.image, a.split.item))==dict(zip(d.split.image, d.split.item))
    ds,at = a.train_ds,torch.tensor([5,3,8])
    assert torch.equal(ds.subset(at).items,
                       ds.items[at]) and ds.subset(at).x.paths.tolist()==ds.x.paths[at.numpy()].tolist()
    txt = (root/'iNaturalist18_train.txt').read_text().split('\n')
    (root/'iNaturalist18_train.txt').write_text('\n'.join(txt[2:][::-1]))                  # fewer, in another order
    e = _inat(root)
    assert {k:v for k,v in zip(a.split.image, a.split.item)
            if k in {*e.split.image}}==dict(zip(e.split.image, e.split.item)) and len(e.split)==len(a.split)-2

@pytest.mark.parametrize('sampling,power', [('balanced',0.),('sqrt',.5)])
def test_sampling(inat, sampling, power):
    dls = _inat(inat[0], sampling=sampling)
    assert type(dls.train) is BalancedDL and dls.train.power==power and type(dls[1]) is TensorDL and type(
        _inat(inat[0]).train) is TensorDL
    got = torch.stack([dls.train_ds.y[dls.train.get_idxs()].bincount(minlength=8) for _ in range(40)]).double().mean(0)
    w = dls.counts.double()**power
    assert torch.allclose(got, len(dls.train_ds)*w/w.sum(), atol=.4)

def test_seed_sets_the_order_of_batches(inat):
    def order(**kw):
        dls = _inat(inat[0], **kw)
        return [dls.train.get_idxs() for _ in range(2)]
    assert order(seed=1)==order(seed=1)!=order(seed=2)
    assert order(seed=1, sampling='sqrt')==order(seed=1, sampling='sqrt')!=order(seed=2, sampling='sqrt')

def test_workers_and_preload_give_the_same_images(inat):
    a,b,c = (_inat(inat[0], **o) for o in (dict(), dict(workers=2), dict(preload=True)))
    for p,q,r in zip(a, b, c):
        if p is a.train: p,q,r = map(plain_dl, (p,q,r))
        for (x1,y1),(x2,y2),(x3,y3) in zip(p, q, r, strict=True):
            assert torch.equal(x1, x2) and torch.equal(x1, x3) and torch.equal(y1, y2) and torch.equal(y1, y3)
    assert isinstance(c.train_ds.x, torch.Tensor) and isinstance(b.train_ds.x,
        FileImages) and b.train.fake_l.num_workers==2

@pytest.mark.parametrize('preload', [False,True])
def test_lists_train_and_predict_a_file(inat, tmp_path, preload):
    set_seed(0)
    dls = _inat(inat[0], sampling='sqrt', preload=preload)
    learn = Learner(dls, small_cnn(3, 8), metrics=accuracy, path=tmp_path)
    p = dls[2].dataset.x.paths[4] if not preload else inat[0]/dls.split.image[dls.split.part=='test'].iloc[4]
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        z,_ = learn.get_preds(dl=dls[2])
        assert torch.allclose(learn.predict(p)[2], z[4], atol=1e-5)
        learn.export(tmp_path/'e.pkl')
        other = load_learner(tmp_path/'e.pkl')
        with other.no_bar(): assert torch.allclose(other.predict(p)[2], z[4], atol=1e-5)
    assert other.dls.train.power==.5

def test_imagenet_lt(tmp_path, tiles):
    lines = _lists(tmp_path, tiles, [30,20,9,4,2], 'ImageNet_LT_{}.txt', test=4, valid=2, ext='png')
    (tmp_path/'classes.txt').write_text('tench\ngoldfish\nwhite shark\nray\nhen\n')
    dls = imagenet_lt(tmp_path, size=28, workers=0, bs=8, device='cpu')
    assert dls.counts.tolist()==[30,20,9,4,2] and [len(o.dataset) for o in dls]==[65,10,
        20] and dls.vocab[2]=='white shark'
    for dl,k in zip(dls, ('train','val','test')):
        assert [Path(o) for o in dl.dataset.x.paths]==[tmp_path/o.rsplit(' ', 1)[0] for o in lines[k]]
    m,s = (torch.tensor(o)[:,None,None] for o in imagenet_stats)
    x = (FileImages(dls[1].dataset.x.paths, 32, 3)[0][:,2:-2,2:-2]/255-m)/s
    assert torch.allclose(dls[1].one_batch()[0][0].as_subclass(torch.Tensor), x, atol=1e-5)
    (tmp_path/'classes.txt').write_text('tench\ngoldfish\n')
    _fails(lambda: imagenet_lt(tmp_path, workers=0), 'classes.txt: 5 names are needed', 'found 2')
    (tmp_path/'classes.txt').write_text('tench\n'*5)
    _fails(lambda: imagenet_lt(tmp_path, workers=0), 'classes.txt: 4 names come twice')
    (tmp_path/'ImageNet_LT_val.txt').unlink()
    _fails(lambda: imagenet_lt(tmp_path, workers=0), 'ImageNet_LT_val.txt is missing', 'must list the images')

def test_ones_own_lists(inat):
    root,lines = inat
    (root/'a.csv').write_text('\n'.join(lines['train'][::2]))
    (root/'b.csv').write_text('\n'.join(lines['train'][1::2]))
    keep = [o for o in lines['train'][::2]]
    n = 1+max(int(o.rsplit(' ', 1)[1]) for o in keep)
    (root/'b.csv').write_text('\n'.join(o for o in lines['train'][1::2] if int(o.rsplit(' ', 1)[1])<n))
    dls = list_dls('a.csv', 'b.csv', root/'iNaturalist18_val.txt', root, size=28, workers=0, jitter=0, many=10, few=2,
                   device='cpu')
    assert len(dls.train_ds)==len(keep) and (dls.many,dls.few)==(10,2) and dls.train.one_batch()[0].shape[2:]==(28,28)

def test_share_of_validation(inat):
    df = list_split('iNaturalist18_train.txt', 0, 'iNaturalist18_val.txt', inat[0])
    assert df.part.value_counts().to_dict()==dict(train=97, test=24) and len(_inat(inat[0], valid=0)[1].dataset)==0
    df = list_split('iNaturalist18_train.txt', .95, 'iNaturalist18_val.txt', inat[0])
    assert df.label[df.part=='train'].nunique()==8                                          # one is left of every class
    state = torch.manual_seed(0).get_state()
    list_split('iNaturalist18_train.txt', .1, 'iNaturalist18_val.txt', inat[0])
    assert torch.equal(torch.get_rng_state(), state)                                        # its own chance
    for v in (1., -.1):
        _fails(lambda: _inat(inat[0], valid=v), 'valid must be a number from 0 to below 1', f'found {v}')

@pytest.mark.parametrize('text',
                         ['a.png 0\nb c.png 1','a.png 0\r\nb c.png 1\r\n','\n a.png  0 \n\n\tb c.png\t1\n\n',
                          '\ufeffa.png 0\nb c.png 1','./a.png 0\nb c.png 1\na.png 0'])
def test_lists_that_have_seen_other_systems(tmp_path, text):
    (tmp_path/'l.txt').write_bytes(text.encode())
    df = read_list_file(tmp_path/'l.txt')
    assert df.image.tolist()==['a.png','b c.png'] and df.label.tolist()==[0,1]

@pytest.mark.parametrize('text,parts',
                         [('a.png 0\nb.png\nc.png', ('2 of 3 lines have no label',
                                                     "line 2 is 'b.png', line 3 is 'c.png'")),
                                                     ('a.png x\n', ('no number', "line 1 is 'a.png x'")),
    ('a.png 0\n\nb c.png -1\n', ('1 of 2 lines', "line 3 is 'b c.png -1'")), ('a.png 1.5', ('no number',)),
    ('a.png ٣', ('no number',)), ('\n \n', ('names no image',)),
    ('a.png 0\nb.png 0\na.png 1', ('1 images have more than one label (first: a.png)',)),
    ('a.png 99999999999999999999', ('no number',))])
def test_faulty_lines(tmp_path, text, parts):
    (tmp_path/'l.txt').write_text(text, encoding='utf-8')
    _fails(lambda: read_list_file(tmp_path/'l.txt'), 'l.txt', *parts)

def test_files_that_are_no_lists(tmp_path):
    (tmp_path/'l.txt').write_bytes(bytes(range(128,256)))
    _fails(lambda: read_list_file(tmp_path/'l.txt'), 'not a text file')
    _fails(lambda: read_list_file(tmp_path), 'cannot read')

def _edit(root, f, k='train'):
    p = root/f'iNaturalist18_{k}.txt'
    p.write_text('\n'.join(f(p.read_text().split('\n')[:-1])))

def test_faults_of_the_split(inat):
    root,lines = inat
    read = lambda: _inat(root)
    was = {k:(root/f'iNaturalist18_{k}.txt').read_text() for k in lines}
    def tries(f, k, *parts):
        _edit(root, f, k)
        _fails(read, *parts)
        for k,o in was.items(): (root/f'iNaturalist18_{k}.txt').write_text(o)
    tries(lambda o: [re.sub(' 5$', ' 8', p) for p in o], 'train',
          'labels run to 8, but 1 of these classes have no image (first: 5)', 'without gaps')
    tries(lambda o: [*o, 'x.jpg 999999999'], 'train', 'labels run to 999999999, but there are 98 images')
    tries(lambda o: [*o, 'x.jpg 8', 'y.jpg 9'], 'val', 'iNaturalist18_val.txt: 2 images are of classes that '
                                                       'iNaturalist18_train.txt does not have (first: 8, 9)',
                                                       'it has 0 to 7')
    tries(lambda o: [*o, *lines['train'][:2]], 'val',
          '2 images are in iNaturalist18_train.txt and in iNaturalist18_val.txt (first: photos of/class 0/')
    tries(lambda o: [*o, './'+lines['val'][0]], 'train', '1 images are in')
    tries(lambda o: [*o, 'none.jpg 0'], 'train', '1 of 122 images cannot be read', 'none.jpg is missing',
          'unpack the images in')
    p = root/lines['val'][0].rsplit(' ', 1)[0]
    p.write_bytes(p.read_bytes()[:-10])
    _fails(read, '1 of 121 images cannot be read', 'is cut off')
    (root/'iNaturalist18_val.txt').unlink()
    _fails(read, 'iNaturalist18_val.txt is missing')

@pytest.mark.parametrize('kw,shown',
                         [(dict(size=0),'size must be a whole number from 1'),
                          (dict(min_scale=0),'min_scale must be a number above 0 up to 1'),
                          (dict(sampling='balance'),"did you mean 'balanced'")])
def test_wrong_options_of_lists(inat, kw, shown): _fails(lambda: _inat(inat[0], **kw), shown)

@pytest.mark.nightly
def test_inaturalists_list_is_read_in_seconds(tmp_path):
    n = 437_513
    c = np.random.default_rng(0).integers(8142, size=n)
    c[:8142] = np.arange(8142)
    (tmp_path/'train.txt').write_text('\n'.join(f'train_val2018/Plantae/{o}/{i:032x}.jpg {o}'
                                                for i,o in enumerate(c.tolist())))
    (tmp_path/'val.txt').write_text('\n'.join(f'train_val2018/Plantae/{i}/v{i}_{j}.jpg {i}' for i in range(8142)
                                              for j in range(3)))
    t = time.process_time()
    df = list_split('train.txt', .05, 'val.txt', tmp_path)
    assert time.process_time()-t<15 and len(df)==n+3*8142 and (df.label.to_numpy()[:n]==c).all()
    y = df.label[df.part=='valid']
    assert .04*n<len(y)<.06*n

# cuts
def test_cuts_are_for_their_part():
    x = TensorImage(torch.rand(4, 3, 32, 32))
    assert torch.equal(RandomCut(28)(x, split_idx=1), x) and torch.equal(CentreCut(28)(x, split_idx=0), x)
    assert torch.equal(CentreCut(27)(x, split_idx=1), x[...,2:29,2:29]) and RandomCut(20)(x, split_idx=0).shape==(4,3,
        20,20)

def test_random_cut_of_everything_is_the_image():
    "min_scale=1 leaves only the choice of proportions, which is cut where it would go outside"
    torch.manual_seed(0)
    h,w = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing='ij')
    x = TensorImage(torch.stack([h,w,h*0])[None].expand(300, -1, -1, -1).contiguous())
    y = RandomCut(64, 1.)(x, split_idx=0).as_subclass(torch.Tensor)
    high,wide = (y[:,0,-1,0]-y[:,0,0,0]),(y[:,1,0,-1]-y[:,1,0,0]).abs()
    assert high.min()>.84 and wide.min()>.84 and (torch.maximum(high,
        wide)>.98).all() and ((y[:,1,0,-1]<y[:,1,0,0]).float().mean()-.5).abs()<.1

def test_random_cut_takes_its_own_part_of_each_image():
    torch.manual_seed(1)
    h,w = torch.meshgrid(torch.arange(64.), torch.arange(64.), indexing='ij')
    x = TensorImage(torch.stack([h,w,h])[None].expand(2000, -1, -1, -1))
    y = RandomCut(16, .1)(x, split_idx=0).as_subclass(torch.Tensor)
    high,wide = (y[:,0,-1,0]-y[:,0,0,0])*16/15,(y[:,1,0,-1]-y[:,1,0,0]).abs()*16/15
    area = high*wide/64**2
    assert (high>0).all() and area.min()>.07 and area.max()<1.01 and (area.mean()-.53).abs()<.05 and area.std()>.2
    assert (wide/high).min()>.7 and (wide/high).max()<1.45
    assert y.min()>=0 and y.max()<=63 and y[:,0].mean()-31.5<1.5 and torch.equal(y[:,0], y[:,2])
