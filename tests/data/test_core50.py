"CORe50 in its official layout, filled with real images: the scenarios with and without lists, parts, faults"
import re, shutil
import numpy as np, pytest, torch
from PIL import Image
from sklearn.datasets import load_digits
from contracts import made, other_checks
from helpers.errors import err
from memo.data.core50 import core50, kinds_50, objects_50
from memo.data.items import item_ids
from memo.registry import known

objects,sessions,frames = range(1, 21),range(1, 12),range(5)
def name(s, o, f): return f's{s}/o{o}/C_{s:02}_{o:02}_{f:03}.png'

@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    "20 objects in 11 sessions, five frames each; the picture of a frame says which it is"
    root,d = tmp_path_factory.mktemp('core50'),load_digits()
    for s in sessions:
        for o in objects:
            for f in frames:
                p = root/'core50_128x128'/name(s, o, f)
                p.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((d.images[s*100+o*5+f]*15).astype(np.uint8)).resize((32,32)).convert('RGB').save(p)
    return root

def write_lists(root, folder, batches, test, runs=1):
    "`batches`: (session, object) of each"
    for r in range(runs):
        d = root/folder/f'run{r}'
        d.mkdir(parents=True)
        turn = batches[r:]+batches[:r]
        number = {}      # labels are numbered as they come, as in the official lists
        for i,b in enumerate([*turn,test]):
            rows = [f'{name(s, o, f)} {number.setdefault(o, len(number))}' for s,o in b for f in frames]
            n = 'test_filelist.txt' if i==len(turn) else f'train_batch_{i:02}_filelist.txt'
            (d/n).write_text('\n'.join(rows)+'\n')

training = [s for s in sessions if s not in (3,7,10)]
test_of = [(s, o) for s in (3,7,10) for o in objects]

@pytest.fixture(scope='module')
def listed(tree, tmp_path_factory):
    root = tmp_path_factory.mktemp('listed')
    (root/'core50_128x128').symlink_to(tree/'core50_128x128')
    top = 'batches_filelists'
    write_lists(root, f'{top}/NI_inc', [[(s, o) for o in objects] for s in reversed(training)], test_of, 2)
    groups = range(11, 21),range(1, 6),range(6, 11)
    write_lists(root, f'{top}/NC_inc', [[(s, o) for o in os for s in training] for os in groups], test_of, 2)
    many = [[(training[i%8], o) for o in (1+i%20, 1+(i+1)%20)] for i in range(12)]
    write_lists(root, f'{top}/NIC_inc', many, test_of)
    write_lists(root, 'NIC_v2_79', many[:3], [(3, o) for o in objects])
    return root

def small(root, scenario='NC', **kw):
    return core50(root, scenario, **dict(size=32, valid=.2, workers=0, device='cpu') | kw)

def where(s, k, i):
    "(session, object) of the items of an experience"
    paths = s.whole.loaders[k].dataset.x.paths[s.parts[k][i].numpy()]
    return [tuple(map(int, re.search(r's(\d+)/o(\d+)/', p).groups())) for p in paths]

def frame(p): return int(p[-7:-4])

@pytest.mark.parametrize('with_lists', [False,True])
def test_sessions_one_after_another(tree, listed, with_lists):
    s = small(listed if with_lists else tree, 'NI')
    order = [*reversed(training)] if with_lists else training
    assert s.names==[f'session {o}' for o in order] and s.c==50 and s.whole.vocab==objects_50
    for i,o in enumerate(order):
        for k,n in ((0,4),(1,1)): assert sorted(where(s, k, i))==sorted((o, p) for p in objects for _ in range(n))
        assert sorted(where(s, 2, i))==sorted(test_of*5), 'all of the test: an experience has all objects'

def test_objects_a_few_at_a_time(tree, listed):
    s = small(tree)
    assert [len(cs) for cs in s.classes]==[10,5,5] and sorted(sum(s.classes, []))==[o-1 for o in objects]
    a,b = (small(tree, run=r).classes for r in (0,1))
    assert a==s.classes!=b
    s = small(listed)
    assert s.classes==[[*range(10, 20)],[*range(5)],[*range(5, 10)]]
    for i,cs in enumerate(s.classes):
        assert {o for o,_ in where(s, 0, i)}=={*training} and {o for o,_ in where(s, 2, i)}=={3,7,10}
        for k in (0,1,2): assert {o-1 for _,o in where(s, k, i)}=={*cs}
    again = small(listed, run=1).classes
    assert again==[s.classes[1],s.classes[2],s.classes[0]], 'numbers of classes are not those of the lists'

def test_both(listed):
    s = small(listed, 'NIC')
    assert len(s)==12 and s.classes[0]==[0,1] and s.names[0]=='plug adapter 1, plug adapter 2, session 1'
    assert {*where(s, 0, 11)}=={(5,12),(5,13)} and {*where(s, 2, 11)}=={(t, o) for t in (3,7,10) for o in (12,13)}
    s = small(listed, 'NICv2_79')
    assert len(s)==3 and {*where(s, 2, 0)}=={(3,1),(3,2)}

def test_parts(tree):
    "The last frames of each video are for validation; ids are by session, object and frame"
    s = small(tree, 'NI', valid=.4)
    for k,want in ((0,{0,1,2}), (1,{3,4}), (2,{*range(5)})):
        assert {frame(p) for p in s.whole.loaders[k].dataset.x.paths}==want
    ids = torch.cat([item_ids(dl) for dl in s.whole.loaders])
    assert len(ids.unique())==len(ids)==20*11*5
    none = small(tree, 'NI', valid=0)
    assert len(none.whole.loaders[1].dataset)==0 and [len(o) for o in none.parts[0]]==[100]*8
    few = small(tree, 'NI', every=2)
    assert {frame(p) for dl in few.whole.loaders for p in dl.dataset.x.paths}=={0,2,4}

def test_categories(tree):
    s = small(tree, categories=True)
    assert s.c==10 and s.whole.vocab==kinds_50
    for i in range(len(s)):
        y = s.whole.train.dataset.y[s.parts[0][i]].tolist()
        assert y==[(o-1)//5 for _,o in where(s, 0, i)]
    fine = small(tree, every=2, categories=True)
    for i in range(len(fine)):      # kinds that come twice have the test images of all their objects each time
        assert {o for _,o in where(fine, 2, i)}=={o for o in objects if (o-1)//5 in fine.classes[i]}

def test_images(tree):
    "As networks trained on ImageNet want them; in the order of the videos if asked for"
    s = small(tree, 'NI', bs=4, ordered=True)
    x,y = s[2].one_batch()
    assert x.shape==(4,3,32,32) and y.tolist()==[0]*4 and s.ordered
    own = torch.from_numpy(np.array(Image.open(tree/'core50_128x128'/name(4, 1, 2)))).permute(2,0,1)/255
    mean,std = (torch.tensor(o)[:,None,None] for o in ((.485,.456,.406),(.229,.224,.225)))
    assert torch.allclose(x[2].as_subclass(torch.Tensor), (own-mean)/std, atol=1e-5)
    assert [frame(p) for p in s[2].train.dataset.x.paths[:8]]==[0,1,2,3]*2

@pytest.mark.parametrize('ending', ['.PNG','.jpg'])
def test_other_endings(tree, tmp_path, ending):
    root = shutil.copytree(tree/'core50_128x128', tmp_path/'core50_128x128').parent
    for p in root.rglob('*.png'): Image.open(p).save(p.with_suffix(ending)), p.unlink()
    a,b = small(tree, 'NI'),small(root, 'NI')
    assert a.names==b.names and [[len(o) for o in ps] for ps in a.parts]==[[len(o) for o in ps] for ps in b.parts]

def test_faults(tree, listed, tmp_path):
    (tmp_path/'core50_128x128.zip').write_bytes(b'')
    assert 'where core50_128x128.zip is, not unpacked' in err(small, tmp_path)
    (tmp_path/'core50_128x128.zip').unlink()
    assert 'no core50_128x128/s1 in' in err(small, tmp_path)
    assert 'scenario: NIC needs the official lists' in err(small, tree, 'NIC')
    assert 'scenario' in err(small, tree, 'nc')
    assert 'run: run5 is not in' in err(small, listed, run=5) and 'run0, run1' in err(small, listed, run=5)
    own = shutil.copytree(listed, tmp_path/'own', symlinks=True)
    d = own/'batches_filelists/NC_inc/run0'
    (d/'test_filelist.txt').write_text((d/'train_batch_01_filelist.txt').read_text())
    assert '200 images are in two of the lists' in err(small, own)
    (d/'test_filelist.txt').write_text('a/b.png 3\n')
    assert "paths such as s1/o1/C_01_01_000.png are needed, found 'a/b.png'" in err(small, own)
    (d/'test_filelist.txt').write_text('s3/o1/C_03_01_999.png 3\n')
    assert 'C_03_01_999.png is missing' in err(small, own)
    (d/'test_filelist.txt').unlink()
    assert 'test_filelist.txt is missing' in err(small, own)
    for p in d.iterdir(): p.unlink()
    assert 'no train_batch_00_filelist.txt' in err(small, own)
    (tmp_path/'one'/'core50_128x128').mkdir(parents=True)
    (tmp_path/'one'/'core50_128x128'/'s1').symlink_to(tree/'core50_128x128'/'s1')
    assert 'has none for the test' in err(small, tmp_path/'one')

def test_registered(tree, tmp_path, monkeypatch):
    p = known('data')['core50']
    assert p.facts['task']=='stream' and {'scenario','run','categories','every','valid','ordered','size'}<=set(p.keys)
    monkeypatch.chdir(tmp_path)
    (tmp_path/'data').mkdir()
    (tmp_path/'data'/'core50').symlink_to(tree)
    for k,v in dict(valid=.2, workers=0).items(): monkeypatch.setitem(made.given, k, v)
    for f in other_checks.checks['data'].values(): other_checks.run(f, 'core50', tmp_path)
