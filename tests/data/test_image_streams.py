"Digits and Fashion-MNIST as streams: parts, seeds, keys; the same stream over features that are computed once"
import pytest, torch
from fastai.vision.all import F, nn
from helpers.errors import err
from memo.data.image_streams import split_digits, split_fashion, stream_features
from memo.data.items import item_ids
from memo.data.longtail import _fashion_deb
from memo.data.modes_moons import modes
from memo.data.streams import split_stream
from memo.data.whole import digits
from memo.registry import known

kw = dict(size=16, images=300, valid=5, test=10, device='cpu')

class Seen(nn.Module):
    "Pooled pixels; counts the images"
    def __init__(self):
        super().__init__()
        self.seen,self.w = 0,nn.Parameter(torch.ones(1))
    def forward(self, x):
        self.seen += len(x)
        return self.w*F.adaptive_avg_pool2d(x, 4).flatten(1)

@pytest.mark.parametrize('n', [1,3,5,10])
def test_classes_come_in_groups(n):
    "Each class, and each image, in one experience; in validation and test too"
    s = split_digits(n=n, **kw)
    assert len(s)==n and sorted(c for cs in s.classes for c in cs)==[*range(10)]
    assert max(map(len, s.classes))-min(map(len, s.classes))<=1
    for dl,ps in zip(s.whole.loaders, s.parts):
        assert torch.cat(ps).sort().values.tolist()==[*range(len(dl.dataset))]
        for at,cs in zip(ps, s.classes): assert {*dl.dataset.y[at].tolist()}=={*cs}
    assert [len(o.dataset) for o in s.whole.loaders]==[300,50,100]
    assert s.names==[', '.join(map(str, cs)) for cs in s.classes]

def test_random_parts():
    s = split_digits(by='iid', **kw)
    assert len(s)==5 and all(len(cs)==10 for cs in s.classes) and [len(o) for o in s.parts[0]]==[60]*5

def test_seeds():
    "Of the order of classes, and of the images, apart"
    a,b,c,d = (split_digits(**kw, **o) for o in (dict(seed=0), dict(seed=0), dict(seed=1), dict(seed=1, class_seed=0)))
    assert a.classes==b.classes==d.classes!=c.classes
    first = [torch.cat([y for _,y in o[0].train]) for o in (a,b,d)]
    assert torch.equal(first[0], first[1])
    ids = [o[0].train.get_idxs() for o in (a,b,d)]
    assert list(ids[0])==list(ids[1])!=list(ids[2])
    assert a.seed==0 and d.seed==1

def test_the_images_are_those_of_the_whole_set():
    s,dls = split_digits(seed=3, **kw),digits(n=300, seed=3, size=16, valid=5, test=10, device='cpu')
    for a,b in zip(s.whole.loaders, dls.loaders): assert torch.equal(item_ids(a), item_ids(b))

def test_keys():
    for k in ('split_digits','split_fashion','split_cifar10','split_cifar100'):
        p = known('data')[k]
        assert p.facts['task']=='stream' and {'n','by','images','class_seed','valid','size'}<=set(p.keys)
        assert p.keys['n'].default==(10 if k=='split_cifar100' else 5) and p.keys['n'].doc=='Experiences'
    assert 'n: 10 classes cannot be parted into 11' in err(split_digits, n=11, **kw)
    assert 'by' in err(split_digits, by='domain', **kw)
    few = split_digits(n=2, classes=[3,5,8], **kw | dict(images=90))
    assert sorted(len(cs) for cs in few.classes)==[1,2] and {o for n in few.names for o in n.split(', ')}=={'3','5','8'}
    assert [len(o) for o in split_digits(n_shot=4, **kw | dict(images=None)).parts[0]]==[8]*5

@pytest.mark.skipif(not _fashion_deb.is_dir(), reason='needs dataset-fashion-mnist')
def test_fashion():
    s = split_fashion(images=1000, device='cpu')
    assert len(s)==5 and [len(o) for o in s.parts[2]]==[2000]*5 and s[0].train.bs==10
    assert all(len(n.split(', '))==2 for n in s.names)

def test_each_image_goes_through_the_backbone_once(tmp_path):
    s,net = split_digits(seed=2, **kw),Seen()
    f = stream_features(net, s, tmp_path)
    assert net.seen==450
    again = stream_features(net, s, tmp_path)
    assert net.seen==450, 'read from the disk'
    assert f.names==s.names and f.classes==s.classes and f.seed==s.seed and f.ordered==s.ordered
    for a,b,c,ps,qs in zip(s.whole.loaders, f.whole.loaders, again.whole.loaders, s.parts, f.parts):
        assert torch.equal(item_ids(a), item_ids(b)) and torch.equal(a.dataset.y, b.dataset.y)
        assert b.dataset.x.dtype==torch.float32 and b.dataset.x.shape[1:]==(16,)
        assert torch.equal(b.dataset.x, c.dataset.x)
        assert all(map(torch.equal, ps, qs))
    for i,(a,b) in enumerate(zip(s, f)):
        for x,y in zip(a.loaders, b.loaders):
            assert torch.equal(item_ids(x), item_ids(y))
        assert {*torch.cat([y for _,y in b.train]).tolist()}=={*s.classes[i]}
    with torch.no_grad(): net.w.mul_(2)
    assert not torch.equal(stream_features(net, s, tmp_path).whole.train.dataset.x, f.whole.train.dataset.x)
    assert net.seen==900

def test_features_of_a_stream_with_drift(tmp_path):
    "Order, experiences without validation points, size of batches"
    class Net(nn.Module):
        def forward(self, x): return torch.cat([x,x*x], 1)
    s = modes('CDID', bs=5, device='cpu')
    f = stream_features(Net(), s, tmp_path, bs=20, half=False)
    assert f.ordered and f[0].train.bs==20 and [len(o) for o in f.parts[1]]==[len(o) for o in s.parts[1]]
    x = torch.cat([b[0] for b in f[3].train])
    assert (x[:,0].diff()>=0).all() and torch.equal(x[:,2:], x[:,:2]**2)
    none = split_stream(digits(n=100, valid=0, size=8, device='cpu'), 5)
    assert [len(o) for o in stream_features(Seen(), none, tmp_path).parts[1]]==[0]*5
