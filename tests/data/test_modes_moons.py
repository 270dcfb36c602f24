"MODES and MOONS: sizes as published, points restated in plain loops, orders, other shapes, what cannot be made"
import numpy as np, pytest, torch
from sklearn.datasets import make_blobs, make_moons
from helpers.errors import err
from memo.data.items import item_ids
from memo.data.modes_moons import class_sizes, modes, moons
from memo.data.streams import Stream
from memo.registry import known

kinds = ['IID','CI','CDI','CDID']
def stream(f, kind, **kw): return f(kind, **dict(device='cpu') | kw)

def published(name):
    "The 2,000 points, classes and domains of one set, by the numbers of the paper's code"
    rows = []
    def add(x, c, d): rows.extend((p[0], p[1], c, d) for p in x)
    if name=='modes':
        for c,(n,at,std,seeds) in enumerate([
                (400, ((.25,.25),(.2,.75)), (.02,.04), (1234,1)), (800, ((.6,.65),(1.,.1)), (.08,.02), (5678,5)),
                (200, ((.15,.5),(1.15,.75)), (.015,.06), (9101112,9)),
                (600, ((.85,.3),(.3,.5)), (.03,.015), (13141516,13))]):
            for d in (0,1):
                add(make_blobs(n//2, 2, centers=np.array([at[d]]), cluster_std=std[d], shuffle=False,
                               random_state=seeds[d])[0], c, d)
    else:
        for a,b,n,m,at,noise,seeds in [(0,1,400,100,((0,0),(2,1)),(.08,.04),(1234,1)),
                                       (2,3,300,200,((-3,1),(3,-1)),(.06,.03),(5678,5))]:
            for d in (0,1):
                x,_ = make_moons((n,m), noise=noise[d], shuffle=False, random_state=seeds[d])
                x = x+np.array(at[d])
                add(x[:n], a, d)
                add(x[n:], b, d)
    r = np.array(rows)
    x = r[:,:2]-r[:,:2].min(0)
    return 2*x/x.max(0)-1,r[:,2].astype(int),r[:,3].astype(int)

def shuffled(rows):
    np.random.seed(1234)
    return [rows[i] for i in np.random.permutation(len(rows))]

def published_sets(name, kind):
    "For training, validation and test: the points (x, class) of each experience"
    x,y,d = published(name)
    rows = [(float(a),float(b),int(c),int(e)) for (a,b),c,e in zip(x, y, d)]
    was,odd = np.random.get_state(),rows[1::2]
    res = []
    for part in (rows[0::2], odd[0::2], odd[1::2]):
        part = shuffled(part)
        if kind=='IID':
            part = shuffled(part)
            res.append([part])
            continue
        by = {}
        for r in part: by.setdefault(r[2] if kind=='CI' else (r[3],r[2]), []).append(r)
        res.append([by[k] for k in sorted(by)])
    np.random.set_state(was)
    res[1] = [res[1][0][:250]] if kind=='IID' else [o if i<len(res[1])//2 else [] for i,o in enumerate(res[1])]
    return res

def sets(s):
    return [[[(*dl.dataset.x[i].tolist(),int(dl.dataset.y[i])) for i in at.tolist()] for at in ps]
            for dl,ps in zip(s.whole.loaders, s.parts)]

@pytest.mark.parametrize('name', ['modes','moons'])
@pytest.mark.parametrize('kind', kinds)
def test_each_experience_has_the_published_points(name, kind):
    "As sets: the order in which classes were sorted is not theirs"
    s = stream(dict(modes=modes, moons=moons)[name], kind)
    for ours,theirs in zip(sets(s), published_sets(name, kind), strict=True):
        for a,b in zip(ours, theirs, strict=True):
            a,b = np.array(sorted(a)).reshape(-1, 3),np.array(sorted(o[:3] for o in b)).reshape(-1, 3)
            assert a.shape==b.shape
            np.testing.assert_allclose(a, b, atol=2e-7)

@pytest.mark.parametrize('f,kind,train,valid', [
    (modes,'IID',[1000],[250]), (modes,'CI',[200,400,100,300],[100,200,0,0]),
    (modes,'CDI',[100,200,50,150]*2,[50,100,25,75,0,0,0,0]), (modes,'CDID',[100,200,50,150]*2,[50,100,25,75,0,0,0,0]),
    (moons,'IID',[1000],[250]), (moons,'CI',[400,100,300,200],[200,50,0,0]),
    (moons,'CDI',[200,50,150,100]*2,[100,25,75,50,0,0,0,0]), (moons,'CDID',[200,50,150,100]*2,[100,25,75,50,0,0,0,0])])
def test_sizes(f, kind, train, valid):
    s = stream(f, kind)
    assert isinstance(s, Stream) and s.c==4
    sizes = [[len(o) for o in ps] for ps in s.parts]
    assert sizes[0]==train and sizes[1]==valid and sizes[2]==[o//2 for o in train]
    assert [len(dl.dataset) for dl in s.whole.loaders]==[1000,sum(valid),500]
    every = stream(f, kind, valid_all=True)
    assert [len(o) for o in every.parts[1]]==sizes[2] if kind!='IID' else len(every.parts[1][0])==500
    at = [0 if kind=='IID' else i for i in range(len(s))]
    assert [cs for cs in s.classes]==[[0,1,2,3] if kind=='IID' else [i%4] for i in at]
    assert len({*s.names})==len(s.names)==len(s)

@pytest.mark.parametrize('f', [modes,moons])
def test_nothing_is_in_two_parts_or_experiences(f):
    for kind in kinds:
        s = stream(f, kind, valid_all=True)
        ids = torch.cat([item_ids(dl) for dl in s.whole.loaders])
        assert len(ids.unique())==2000
        for dl,ps in zip(s.whole.loaders, s.parts):
            assert torch.cat(ps).sort().values.tolist()==[*range(len(dl.dataset))]
        x = torch.cat([dl.dataset.x for dl in s.whole.loaders])
        assert torch.allclose(x.amin(0), -torch.ones(2)) and torch.allclose(x.amax(0), torch.ones(2))

def seen(dl): return [torch.cat(o).as_subclass(torch.Tensor) for o in zip(*dl)]

@pytest.mark.parametrize('f', [modes,moons])
def test_drift_is_in_the_order_of_training(f):
    "By the first coordinate, in each experience; the other streams are mixed, by the seed"
    s = stream(f, 'CDID', bs=7)
    for dls in s:
        x,y = seen(dls.train)
        assert (x[:,0].diff()>=0).all() and len(x)>7
    mixed = [[seen(dls.train)[0] for dls in stream(f, 'CDI', bs=7, seed=seed)] for seed in (0,0,1)]
    for i,dls in enumerate(s):
        a,b,c = (o[i] for o in mixed)
        assert torch.equal(a, b) and not torch.equal(a, c) and not (a[:,0].diff()>=0).all()
        def rows(x): return sorted(map(tuple, x.tolist()))
        assert rows(a)==rows(c)==rows(seen(dls.train)[0]), 'the points are the same for every seed and kind'

def test_other_global_random_numbers_do_not_matter():
    np.random.seed(0)
    a = stream(modes, 'IID')
    np.random.seed(1)
    was = np.random.get_state()[1].copy()
    b = stream(modes, 'IID')
    assert (np.random.get_state()[1]==was).all(), 'the global state is left alone'
    for p,q in zip(a.whole.loaders, b.whole.loaders): assert torch.equal(p.dataset.x, q.dataset.x)

def test_other_shapes():
    "Three domains and two classes; other centres, deviations, numbers"
    at = [[[0,0],[5,5]], [[0,10],[5,15]], [[0,20],[5,25]]]
    s = stream(modes, 'CDI', n=1201, ratios=[.75,.25], centres=at, stds=[[.1,.2]]*3, valid_all=True)
    assert len(s)==6 and s.classes==[[0],[1]]*3 and sum(len(dl.dataset) for dl in s.whole.loaders)==1201
    ds = s.whole.train.dataset
    centre = torch.stack([ds.x[o].mean(0) for o in s.parts[0]])
    assert (centre[:,1].diff()>0).all() and (centre[0::2,0]<-.8).all() and (centre[1::2,0]>.8).all()
    wide = [float(ds.x[o].std(0)[1]) for o in s.parts[0]]
    assert 1.5<wide[1]/wide[0]<2.6
    t = stream(moons, 'CDI', ratios=[.6,.4], offsets=[[[0,0]],[[9,9]]], noise=[[0],[0]])
    x,y = t.whole.train.dataset.x,t.whole.train.dataset.y
    assert len(t)==4 and t.classes==[[0],[1]]*2
    assert (x[t.parts[0][0]].max(0).values<x[t.parts[0][2]].min(0).values).all()
    same = stream(modes, 'CDI', ratios=[.5,.5], centres=[[[0,0],[0,1]]], stds=[[0,0]])
    assert same.whole.train.dataset.x.isfinite().all(), 'all on one line'

def test_sizes_of_classes():
    for n in (41,100,999):
        sizes = class_sizes(n, [.5,.3,.2], 2)
        assert sum(map(sum, sizes))==n and all(abs(a-b)<2 for a,b in sizes)

@pytest.mark.parametrize('f,kw,says', [
    (modes, dict(kind='CID'), 'kind must be one of IID, CI, CDI, CDID'), (modes, dict(kind=None), 'kind'),
    (moons, dict(ratios=[.5,.4]), 'ratios: 2 or more shares above 0 that sum to 1 are needed, found [0.5, 0.4], which'),
    (modes, dict(ratios=[1.5,-.5]), 'ratios'), (modes, dict(ratios=[1]), 'ratios'),
    (modes, dict(ratios=['a','b']), 'ratios'),
    (modes, dict(ratios=[float('nan'),.5]), 'ratios'), (modes, dict(ratios=[]), 'ratios'),
    (modes, dict(n=20), 'n: 20 points in 2 domains leave 1 for class 2'), (moons, dict(n=30), 'n: 30 points'),
    (moons, dict(n=0), 'n'), (modes, dict(n=-5), 'n'), (modes, dict(bs=0), 'bs'),
    (modes, dict(ratios=[.5,.5]), 'centres: for each domain a centre (2 numbers) of each of 2 classes'),
    (modes, dict(stds=[[1,1]]), 'stds: 2 x 4 deviations'), (modes, dict(stds=[[.1]*4,[-.1]*4]), 'stds: 0 or more'),
    (modes, dict(centres=[[[0,0]]*3+[[0]],[[0,0]]*4]), 'centres'), (modes, dict(centres=[]), 'centres'),
    (moons, dict(ratios=[.2,.3,.5]), 'ratios: an even number'), (moons, dict(noise=[[.1,-1]]*2), 'noise: 0 or more'),
    (moons, dict(offsets=[[[0,0]]]), 'offsets: for each domain')])
def test_what_cannot_be_made(f, kw, says): assert says in err(f, **kw)

def test_registered():
    for k in ('modes','moons'):
        p = known('data')[k]
        assert p.facts['task']=='stream' and {'kind','n','ratios','valid_all','val_bs'}<=set(p.keys)
    assert {'centres','stds'}<=set(known('data')['modes'].keys)
    assert {'offsets','noise'}<=set(known('data')['moons'].keys)

def test_the_last_experience_is_not_enough():
    "What the streams are for: nearest neighbours know all classes from all experiences, one class from the last"
    s = stream(modes, 'CI', bs=50)
    def answers(train): return train[1][torch.cdist(test[0], train[0]).argmin(1)]
    test = seen(s.whole.loaders[2])
    assert (answers(seen(s.whole.train))==test[1]).float().mean()>.95
    assert (answers(seen(s[3].train))==test[1]).float().mean()<.35
