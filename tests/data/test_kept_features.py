"The feature cache follows what features come from, keeps to its folder and its size, and notices damage"
import os, random, threading, warnings
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from fastai.vision.all import (CategoryBlock, ColReader, DataBlock, Datasets, ImageBlock, ImageDataLoaders, Path,
                               PILImageBW, Resize, TfmdDL, nn, set_seed)
from sklearn.datasets import load_sample_images
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import to_tensor
from memo.data import features as m
from memo.data.features import cached_features, features_dls, features_key, trim_cache
from memo.data.longtail import digits_lt
from memo.data.tensors import TensorDL, plain_dl
from memo.models.small import small_cnn

photo = load_sample_images().images[0]

class Net(nn.Module):
    "Counts its forwards"
    def __init__(self, scale=1.):
        super().__init__()
        self.scale,self.runs = scale,0
    def forward(self, x):
        self.runs += 1
        return self.scale*nn.functional.adaptive_avg_pool2d(x.float(), 2).flatten(1)

@pytest.fixture
def files(tmp_path):
    for i in range(6):
        d = tmp_path/f'ims/{"ab"[i%2]}'
        d.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo[i*30:i*30+24,:24,0]).save(d/f'{i}.png', compress_level=0)
    return tmp_path/'ims'

def names(root): return sorted(root.rglob('*.png'), key=lambda o: o.name)

def replaced(root, put_back):
    p = names(root)[2]
    s = os.stat(p)
    Image.fromarray(255-np.asarray(Image.open(p))).save(p, compress_level=0)
    if put_back: os.utime(p, ns=(s.st_atime_ns, s.st_mtime_ns))
    assert not put_back or (os.stat(p).st_size,os.stat(p).st_mtime_ns)==(s.st_size,s.st_mtime_ns)

class Own(torch.utils.data.Dataset):
    "A data set of one's own over text paths"
    def __init__(self, root): self.fs = [str(o) for o in names(root)]
    def __len__(self): return len(self.fs)
    def __getitem__(self, i): return torch.as_tensor(np.array(Image.open(self.fs[i])))[None]/255.,i%2

def opened(o): return torch.as_tensor(np.array(Image.open(o)))[None]/255.
def texts(root): return TfmdDL(Datasets([str(o) for o in names(root)], [opened]), bs=4, num_workers=0)
def frame(root):
    df = pd.DataFrame(dict(f=[f'{o.parent.name}/{o.name}' for o in names(root)], k=list('ababab'), v=[False]*5+[True]))
    return ImageDataLoaders.from_df(df, root, valid_col='v', item_tfms=Resize(20), bs=4, num_workers=0).train
def block(root):
    b = DataBlock((ImageBlock(PILImageBW),CategoryBlock), get_items=lambda p: [str(o) for o in names(p)],
                  get_y=lambda o: Path(o).parent.name, splitter=lambda o: ([0,1,2,3],[4,5]))
    return b.dataloaders(root, bs=4, num_workers=0).train
def folder(root): return TfmdDL(ImageFolder(root, to_tensor), bs=4, num_workers=0)
def own(root): return TfmdDL(Own(root), bs=4, num_workers=0)

@pytest.mark.parametrize('put_back', [False,True])
@pytest.mark.parametrize('loader', [texts,frame,block,folder,own])
def test_items_that_are_text_paths_are_looked_at(files, tmp_path, loader, put_back):
    net = Net()
    a = cached_features(net, loader(files), tmp_path/'c')[0]
    n = net.runs
    assert torch.equal(cached_features(net, loader(files), tmp_path/'c')[0], a) and net.runs==n
    replaced(files, put_back)
    b = cached_features(net, loader(files), tmp_path/'c')[0]
    changed = (a!=b).any(1)
    assert net.runs>n and changed.sum()==1

def test_two_sets_of_a_kind_are_two(tmp_path):
    class Rows(torch.utils.data.Dataset):
        def __init__(self, v): self.v = v
        def __len__(self): return 4
        def __getitem__(self, i): return torch.full((1,4,4), self.v+i),i%2
    a,b = (cached_features(Net(), TfmdDL(Rows(v), bs=2, num_workers=0), tmp_path)[0] for v in (1.,5.))
    assert torch.equal(b-a, torch.full((4,4), 4.).half())

# the network
def test_code_and_plain_attributes_are_part_of_the_key(tmp_path):
    dl = plain_dl(digits_lt(size=8).valid)
    src = ('from torch import nn\nfrom functools import partial\n{g}\nclass N(nn.Module):\n def __init__(s):\n'
           '  super().__init__(); s.f = {f}; s.k = {k}\n def forward(s, x):\n  {body}\n')
    def key(g='c = 1', f='[1,2]', k='None', body='return x.flatten(1)'):
        ns = dict(torch=torch, __name__='mine')
        exec(src.format(g=g, f=f, k=k, body=body), ns)
        return features_key(ns['N'](), dl)
    base = key()
    assert base is not None and key()==base
    other = [key(body='return x.flatten(1)*2'), key(f='[1,3]'), key(k='lambda x: x'), key(k='lambda x: x+1'),
             key(k="'a'"),
             key(body='return x.flatten(1)*c'), key(g='c = 2', body='return x.flatten(1)*c'),
             key(body='return torch.stack([o.flatten() for o in x])'),
             key(body='return torch.stack([o.flatten()+1 for o in x])'),
             key(k='partial(max, 1)'), key(k='partial(max, 2)'),
             key(g='def c(x): return x', body='return c(x.flatten(1))'),
             key(g='def c(x): return x*2', body='return c(x.flatten(1))')]
    assert None not in other and len({base,*other})==len(other)+1

def test_hooks_hidden_buffers_and_modes_of_layers(tmp_path):
    dl = plain_dl(digits_lt(size=8).valid)
    def key(f=lambda m: None):
        set_seed(0)
        net = small_cnn()[:-1]
        f(net)
        return features_key(net, dl)
    def hidden(m): m.register_buffer('own', torch.ones(2), persistent=False)
    def hook(m): m[0].register_forward_hook(lambda m, i, o: o*2)
    def slope(m): m[0].negative_slope = .3
    keys = [key(), key(hidden), key(hook), key(slope)]
    assert None not in keys and len({*keys})==4 and key()==keys[0]

def test_what_cannot_be_looked_into_is_not_kept(tmp_path):
    net = Net()
    net.source = (i for i in range(3))
    dl = digits_lt(size=8).valid
    for _ in range(2):
        n = net.runs
        with pytest.warns(UserWarning, match='cannot be looked into'): cached_features(net, dl, tmp_path)
        assert net.runs>n
    assert not list(tmp_path.iterdir())

# labels
_names = {'a':0, 'b':1}
def kind(o): return _names[Path(o).parent.name]

def test_labels_come_from_the_loader(files, tmp_path):
    "A label function over a changed global, another label function, other labels of a tensor set, a moved ImageFolder"
    net,fs = Net(),[str(o) for o in names(files)]
    def dl(f): return TfmdDL(Datasets(fs, [[opened],[f]]), bs=4, num_workers=0)
    assert cached_features(net, dl(kind), tmp_path)[1].tolist()==[0,1]*3
    _names['a'] = 5
    try: assert cached_features(net, dl(kind), tmp_path)[1].tolist()==[5,1]*3
    finally: _names['a'] = 0
    assert cached_features(net, dl(lambda o: 7), tmp_path)[1].tolist()==[7]*6
    x = torch.rand(6, 1, 4, 4)
    for y in (torch.arange(6), torch.arange(6).flip(0), torch.rand(6,3).round()):
        assert torch.equal(cached_features(net, TensorDL(x, y, bs=2), tmp_path/'t')[1], y)
    assert len(list((tmp_path/'t').iterdir()))==1               # and the features of one image set are kept once

# the folder
@pytest.mark.parametrize('name', ['../evil', '/tmp/evil', 'a/b', '..', '', 'x'*300, '.hidden', 'ü ñ', 'C:\\evil'])
def test_names_stay_inside(tmp_path, name):
    root = tmp_path/'in/side'
    a = cached_features(Net(), digits_lt(size=8).valid, root, name)
    p, = tmp_path.rglob('*.safetensors')
    assert p.parent==root and not p.name.startswith('.') and not Path('/tmp/evil').exists()
    b = cached_features(Net(), digits_lt(size=8).valid, root, name)
    assert torch.equal(b[0], a[0]) and len([*root.iterdir()])==1

def test_flipped_bytes_are_noticed(tmp_path):
    net,dl = Net(),digits_lt(size=8).valid
    a = cached_features(net, dl, tmp_path)
    p, = tmp_path.iterdir()
    b,rng = p.read_bytes(),random.Random(0)
    for _ in range(25):
        at = rng.randrange(8, len(b))
        p.write_bytes(b[:at]+bytes([b[at]^(1<<rng.randrange(8))])+b[at+1:])
        n = net.runs
        with pytest.warns(UserWarning, match='computing the features again'): c = cached_features(net, dl, tmp_path)
        assert net.runs>n and all(torch.equal(i,j) for i,j in zip(a, c)), at

def test_the_oldest_go_first(tmp_path):
    dls = [digits_lt(size=8).valid.new() for _ in range(4)]
    for i,d in enumerate(dls): d.dataset = d.dataset.new(d.dataset.x+i, d.dataset.y, d.dataset.items)
    nets = Net()
    cached_features(nets, dls[0], tmp_path)
    n = next(tmp_path.iterdir()).stat().st_size
    for d in dls[1:3]: cached_features(nets, d, tmp_path, gb=3.5*n/1e9)
    assert len([*tmp_path.iterdir()])==3
    for i,o in enumerate(sorted(tmp_path.iterdir(), key=lambda o: o.stat().st_mtime_ns)): os.utime(o, (i+1, i+1))
    runs = nets.runs
    cached_features(nets, dls[0], tmp_path)                          # used again, so it is the newest
    assert nets.runs==runs
    cached_features(nets, dls[3], tmp_path, gb=3.5*n/1e9)
    assert len([*tmp_path.iterdir()])==3
    runs = nets.runs
    for d in (dls[0],dls[2],dls[3]): cached_features(nets, d, tmp_path)
    assert nets.runs==runs
    cached_features(nets, dls[1], tmp_path, gb=n/2e9)                # larger than all that may stay: this one stays
    assert nets.runs>runs and len([*tmp_path.iterdir()])==1
    (tmp_path/'mine.txt').write_text('x'*9999)
    trim_cache(tmp_path, 0)
    assert [o.name for o in tmp_path.iterdir()]==['mine.txt']

def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    (tmp_path/'file').write_text('')
    net,dl = Net(),digits_lt(size=8).valid
    want = cached_features(net, dl, tmp_path/'c')
    with pytest.warns(UserWarning, match='cannot write .*not kept'): a = cached_features(net, dl, tmp_path/'file'/'c')
    def full(*_, **__): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(m.st, 'save_file', full)
    with pytest.warns(UserWarning, match='No space left.*not kept'): b = cached_features(net, dl, tmp_path/'d')
    for o in (a,b): assert all(torch.equal(i,j) for i,j in zip(want, o))
    assert not [*(tmp_path/'d').iterdir()]

def test_threads_at_once_leave_the_mode_and_run_once(tmp_path):
    net,got = small_cnn()[:-1].train(),[]
    dls = digits_lt(size=8)
    ts = [threading.Thread(target=lambda: got.append(cached_features(net, dls.valid, tmp_path))) for _ in range(4)]
    for t in ts: t.start()
    for t in ts: t.join()
    assert len(got)==4 and all(torch.equal(o[0], got[0][0]) for o in got) and all(o.training for o in net.modules())
    assert len([*tmp_path.iterdir()])==1

def test_random_transforms_that_have_run_change_no_key(files):
    "Resize draws for every training item; that is no part of what features of plain loaders come from"
    net = Net()
    dl = frame(files)
    was = features_key(net, plain_dl(dl))
    for _ in range(2): dl.one_batch()
    assert features_key(net, plain_dl(dl))==was is not None

@pytest.mark.slow
def test_processes_at_once_have_the_same_features(two_ranks, repo, tmp_path):
    "Each computes them where no file is there yet; the file is whole at any moment, and one"
    r = two_ranks(repo/'tests/data/cached_at_once_script.py', tmp_path, cwd=repo)
    assert r.returncode==0 and 'cannot be read' not in r.stderr, r.stderr[-3000:]
    found = sorted((tmp_path/'cache').iterdir())
    assert len(found)==30 and {o.suffix for o in found}=={'.safetensors'}
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert all(m.read_kept(o) is not None for o in found)
