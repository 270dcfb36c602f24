"Emoji as two vendors draw them, on trees in the layout of the npm packages with real images for emoji"
import io, json, os, tarfile
from pathlib import Path
import numpy as np, PIL.Image, pytest, torch
from fastai.learner import Learner
from fastai.vision.all import TensorImage, set_seed
from hypothesis import given, strategies as st
from contracts import other_checks
from helpers.errors import err
from helpers.learners import quietly
from memo.banks.slots import SlotBank
from memo.data.emoji import emoji, find_package, held_out, read_emoji
from memo.data.items import item_ids
from memo.data.transforms import RandomShift
from memo.experiment.build import build_dls
from memo.experiment.config import load_config
from memo.models.small import small_cnn
from memo.training.memory_callback import MemoryCallback
from sklearn.datasets import load_digits

N = 72
digits = load_digits()
order = np.random.default_rng(0).permutation(N)       # the table is in another order than the emoji

def drawing(i, width):
    "A digit in red on nothing"
    a = np.asarray(PIL.Image.fromarray((digits.images[i]*(255/16)).astype(np.uint8)).resize((width,64)))
    res = np.zeros((64,64,4), np.uint8)
    lo = (64-width)//2
    res[:,lo:lo+width] = np.stack([np.full_like(a, 200), 0*a, 0*a, a], -1)
    return PIL.Image.fromarray(res)

def seen(i, width):
    "The same on white, by the formula of what lies over what"
    a = np.asarray(drawing(i, width)).astype(float)
    part = a[...,3:]/255
    return (a[...,:3]*part+255*(1-part)).transpose(2, 0, 1)

def row(i):
    y = int(digits.target[i])
    tones = {f'tone{t}':dict(image=f'{i:04}-tone{t}.png') for t in range(5)} if i%7==0 else None
    return dict(image=f'{i:04}.png', short_name=f'digit_{i}', sort_order=i, subcategory=f'all-{y}',
                category='Component' if i>=N-3 else 'odd' if y%2 else 'even', has_img_google=i!=5,
                has_img_twitter=i not in (9,10)) | (dict(skin_variations=tones) if tones else {})

def write_package(d, vendor, width):
    rows = [row(int(i)) for i in order]
    images = d/'img'/vendor/'64'
    images.mkdir(parents=True)
    (d/'emoji.json').write_text(json.dumps(rows))
    for r in rows:
        if not r[f'has_img_{vendor}']: continue
        im = drawing(r['sort_order'], width)
        for name in (r['image'], *(o['image'] for o in r.get('skin_variations', {}).values())): im.save(images/name)

widths = dict(google=56, twitter=40)

@pytest.fixture(scope='module')
def root(tmp_path_factory):
    d = tmp_path_factory.mktemp('emoji')
    for v,w in widths.items(): write_package(d/'node_modules'/f'emoji-datasource-{v}', v, w)
    return d

def pack(d, to, version='16.0.0'):
    "As `npm pack` does"
    with tarfile.open(to/f'{d.name}-{version}.tgz', 'w:gz') as t: t.add(d, 'package')

@pytest.fixture(scope='module')
def packed(root, tmp_path_factory):
    to = tmp_path_factory.mktemp('packed')
    for d in (root/'node_modules').iterdir(): pack(d, to)
    return to

def small(root, **kw): return emoji(root, **dict(bs=16, device='cpu') | kw)
common = [i for i in range(N-3) if i not in (5,9,10)]       # both vendors have, and no patch of colour

def test_table_and_drawings(root):
    "In the order of `sort_order`; what the vendor does not have is left out, other skin tones are counted"
    for v,missing in (('google',{5}), ('twitter',{9,10})):
        df,x = read_emoji(root, v)
        have = [i for i in range(N) if i not in missing]
        assert df.name.tolist()==[f'digit_{i}' for i in have]
        assert df.tones.tolist()==[5*(i%7==0) for i in have]
        assert x.shape==(len(have),3,64,64) and x.dtype==torch.uint8
        for k in range(0, len(have), 7): assert np.abs(x[k].numpy()-seen(have[k], widths[v])).max()<=1

def test_layouts_and_archives_are_the_same_set(root, packed, tmp_path, monkeypatch):
    want = small(root, n_way=6)
    (tmp_path/'sub').mkdir()
    for v in widths:
        (tmp_path/'sub'/f'emoji-datasource-{v}').mkdir()
        (tmp_path/'sub'/f'emoji-datasource-{v}'/'package').symlink_to(root/'node_modules'/f'emoji-datasource-{v}')
    (tmp_path/'data').mkdir()
    (tmp_path/'data'/'emoji').symlink_to(packed)
    monkeypatch.chdir(tmp_path)
    for at in (root/'node_modules', packed, tmp_path/'sub', None):
        dls = small(at, n_way=6)
        assert dls.vocab==want.vocab
        for a,b in zip(dls, want):
            assert torch.equal(item_ids(a), item_ids(b)) and torch.equal(a.dataset.x, b.dataset.x)

def test_the_newest_archive_is_read(root, packed, tmp_path):
    for n in ('9.1.0','16.0.0','15.1.2'): (tmp_path/f'emoji-datasource-google-{n}.tgz').touch()
    assert find_package(tmp_path, 'google').name=='emoji-datasource-google-16.0.0.tgz'
    assert find_package(tmp_path, 'twitter') is None

def test_each_emoji_is_a_class(root):
    dls = small(root)
    assert dls.vocab==[f'digit_{i}' for i in common] and dls.c==len(common)
    n = len(common)
    assert [len(o.dataset) for o in dls]==[n, int(n*.3+1e-9), n-int(n*.3+1e-9)]
    s = dls.split
    assert (s.vendor[s.part=='train']=='google').all() and (s.vendor[s.part!='train']=='twitter').all()
    assert (s.name==s.label.map(dict(enumerate(dls.vocab)))).all() and s['item'].is_unique
    ds = dls[2].dataset
    for k in range(0, len(ds), 9):
        assert np.abs(ds.x[k].numpy()-seen(common[int(ds.y[k])], widths['twitter'])).max()<=1
    turned = small(root, vendor='twitter', test_vendor='google')
    assert set(item_ids(turned.train).tolist())=={*item_ids(dls[1]).tolist(), *item_ids(dls[2]).tolist()}

@pytest.mark.parametrize('by', ['subcategory','category'])
def test_no_emoji_is_trained_on_and_asked_for(root, by):
    for kw in ({}, dict(test=.25), dict(n_shot=1), dict(n_way=2)):
        s = (dls := small(root, classes_by=by, **kw)).split
        names = [set(s.name[s.part==p]) for p in ('train','valid','test')]
        assert not (names[0]&names[1] or names[0]&names[2] or names[1]&names[2])
        of = {r['short_name']:r[by] for r in map(row, range(N))}
        assert all(of[n]==dls.vocab[l] for n,l in zip(s.name, s.label))
        for part in ('train','test'): assert set(s.label[s.part==part])==set(range(dls.c))
    assert 'Component' not in small(root, classes_by='category').vocab

def test_a_class_too_small_is_none(root):
    n = {}
    for i in common: n[f'all-{digits.target[i]}'] = n.get(f'all-{digits.target[i]}', 0)+1
    least = sorted(n.values())[4]
    dls = small(root, classes_by='subcategory', least=least)
    assert set(dls.vocab)=={k for k,v in n.items() if v>=least}
    assert 'classes have 100 emoji, the largest has' in err(small, root, classes_by='subcategory', least=100)

@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.floats(0, .99), st.integers(0, 9))
def test_share_of_each_class(n, share, seed):
    "One at least is held out and one is left, where there are two; a larger share holds out what a smaller does"
    y = torch.arange(len(n)).repeat_interleave(torch.tensor(n))
    key = np.random.default_rng(seed).permutation(len(y)).tolist()
    got = held_out(y, key, share)
    for c,k in enumerate(n):
        here = int(got[y==c].sum())
        assert here==(0 if k==1 else min(max(round(share*k), 1), k-1))
    assert not (got & ~held_out(y, key, min(.99, share*1.3))).any()

def test_the_division_is_the_same_for_every_seed(root):
    for kw in ({}, dict(classes_by='subcategory')):
        a,b = small(root, seed=0, **kw),small(root, seed=1, **kw)
        for i in range(3): assert torch.equal(item_ids(a[i]), item_ids(b[i]))
        assert list(a.train.get_idxs())!=list(b.train.get_idxs())
    a,b = (small(root, n_way=5, seed=o) for o in (0,1))
    assert a.vocab!=b.vocab and small(root, n_way=5, seed=1, shot_seed=0).vocab==a.vocab
    assert set(a.vocab)<set(small(root, n_way=9, seed=0).vocab)

def test_validation_is_a_share_of_what_is_not_trained_on(root):
    a,b,c = (small(root, n_way=20, valid=v) for v in (0,.25,.5))
    assert [[len(o.dataset) for o in d] for d in (a,b,c)]==[[20,0,20],[20,5,15],[20,10,10]]
    every = set(item_ids(a[2]).tolist())
    assert all({*item_ids(d[1]).tolist()}|{*item_ids(d[2]).tolist()}==every for d in (b,c))
    s = small(root, classes_by='category', valid=.5).split
    n = s[s.part!='train'].groupby(['label','part']).size().unstack()
    assert (abs(n.valid-n.test)<=1).all(), 'class by class'

def test_what_comes_in_is_white(root):
    x = TensorImage(torch.full((50,3,8,8), 255, dtype=torch.uint8))
    assert (RandomShift(3, fill=255)(x, split_idx=0)==255).all() and (RandomShift(3)(x, split_idx=0)==0).any()
    dls = small(root, shift=8, size=32)
    x = dls.train.one_batch()[0]
    white = (x[:,:,0,0]==1).all(1).float().mean()      # but where an emoji was shifted there
    assert x.shape[1:]==(3,32,32) and white>.5 and x.min()<0
    assert repr(RandomShift(1))=='RandomShift(1, flip=False)' \
        and 'RandomShift(8, flip=False, fill=255)' in map(repr, dls.train.after_batch.fs)
    old = RandomShift(1)
    del old.fill        # as it was pickled before there was one
    assert (old(TensorImage(torch.ones(9,1,4,4)), split_idx=0)==0).any()
    y = small(root, shift=0, mean=[.5,.5,.25], std=[.5,.5,.75])[2].one_batch()[0]
    assert y.max()==1 and 'mean: 3 numbers are needed' in err(small, root, mean=[.5])

def test_yaml(root, yml):
    cfg = load_config(yml(f'data: {{name: emoji, root: {root}, classes_by: subcategory}}'),
                      ['data.n_shot=2','data.n_way=3','data.least=6'])
    dls = build_dls(cfg, 0)
    assert len(dls.train_ds)==6 and dls.c==3 and {'item','label','part','name','vendor'}=={*dls.split}

def test_some_classes_by_name(root):
    dls = small(root, classes=['digit_7','digit_3'])
    assert dls.vocab==['digit_7','digit_3'] and sorted(dls.split.name[dls.split.part=='train'])==['digit_3','digit_7']
    assert all(dls.vocab[l]==n for l,n in zip(dls.split.label, dls.split.name))

def test_one_shot_with_a_memory(root, tmp_path):
    set_seed(0)
    dls = small(root, n_way=10, n_shot=1, shift=0)
    learn = Learner(dls, small_cnn(3, 10), cbs=MemoryCallback(SlotBank(10, policy='fifo'), head='vote'), path=tmp_path)
    quietly(learn, learn.fit, 2, 1e-2)
    bank = learn.memory.bank
    assert {*bank.items.tolist()}=={*item_ids(dls.train).tolist()} and sorted(bank.labels.tolist())==[*range(10)]
    learn.export(tmp_path/'e.pkl')
    assert (tmp_path/'e.pkl').stat().st_size<1e6

@pytest.mark.parametrize('check', other_checks.checks['data'])
def test_contracts(root, tmp_path, monkeypatch, check):
    (tmp_path/'data').mkdir()
    (tmp_path/'data'/'emoji').symlink_to(root)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pytest, 'skip', lambda *a: pytest.fail('it was not read'))
    other_checks.run(other_checks.checks['data'][check], 'emoji', tmp_path)

# mistakes

def test_nothing_there(tmp_path, root):
    m = err(emoji, tmp_path)
    assert 'no emoji-datasource-google in ' in m and tmp_path.name in m and 'npm install --prefix ' in m
    (tmp_path/'emoji-datasource-google').symlink_to(root/'node_modules'/'emoji-datasource-google')
    assert 'no emoji-datasource-twitter in' in err(emoji, tmp_path)
    one = small(tmp_path, classes_by='subcategory', test_vendor='google')       # needs no other
    assert set(one.split.vendor)=={'google'}

@pytest.fixture
def own(root, tmp_path):
    import shutil
    return shutil.copytree(root, tmp_path/'own')

def test_a_package_that_is_not_whole(own):
    d = own/'node_modules'/'emoji-datasource-google'
    one = d/'img'/'google'/'64'/'0003.png'
    was = one.read_bytes()
    for b,says in ((b'no image','cannot read the image 0003.png'), (was[:200],'cannot read the image 0003.png')):
        one.write_bytes(b)
        assert says in err(emoji, own) and 'fetch the package again' in err(emoji, own)
    PIL.Image.new('RGBA', (32,32)).save(one)
    assert '0003.png has 32 x 32 pixels, 64 x 64 are needed' in err(emoji, own)
    one.unlink()
    assert f'1 of {N-1} drawings are not in' in err(emoji, own) and '0003.png' in err(emoji, own)
    t = (d/'emoji.json').read_text()
    (d/'emoji.json').write_text(t[:500])
    assert 'cannot read' in err(emoji, own) and 'fetch it again' in err(emoji, own)
    (d/'emoji.json').write_text(t.replace('"subcategory"', '"other"'))
    assert "does not say 'subcategory'" in err(emoji, own)
    (d/'emoji.json').write_text('[]')
    assert '0 of 0 drawings' in err(emoji, own)

def test_a_broken_archive(packed, tmp_path):
    p = packed/'emoji-datasource-google-16.0.0.tgz'
    to = tmp_path/p.name
    for b in (p.read_bytes()[:20_000], b'', b'nothing'):
        to.write_bytes(b)
        assert f'cannot read {to}' in err(read_emoji, tmp_path)
    with tarfile.open(to, 'w:gz') as t: t.addfile(tarfile.TarInfo('package/x'), io.BytesIO())
    assert 'no emoji.json' in err(read_emoji, tmp_path)

@pytest.mark.parametrize('kw,says', [
    (dict(test=.5), 'test: 0.5 is read where classes are subcategories'),
    (dict(least=3), 'least: 3 is read where classes are subcategories'),
    (dict(test_vendor='google'), "test_vendor: google's drawings are trained on"),
    (dict(vendor='twitter'), "test_vendor: twitter's drawings are trained on"),
    (dict(n_shot=2), '2'), (dict(n_way=500), '500'),
    (dict(classes_by='subcategory', n_shot=50), '50'),
    (dict(classes=['digit_1','digit_x']), "'digit_x' is not one of")])
def test_what_cannot_be(root, kw, says): assert says in err(emoji, root, **kw)

@pytest.mark.parametrize('key', ['classes_by=name','vendor=apple','valid=1','size=0','test=1.5'])
def test_values_refused_in_a_yaml(root, yml, key):
    with pytest.raises(Exception, match=key.partition('=')[0]):
        build_dls(load_config(yml(f'data: {{name: emoji, root: {root}}}'), [f'data.{key}']), 0)

def test_the_packages_themselves():
    "Where somebody has fetched them: MEMO_EMOJI is their folder"
    at = os.environ.get('MEMO_EMOJI')
    if not at: pytest.skip('MEMO_EMOJI names no folder of emoji-datasource-google and -twitter')
    dls = emoji(at, device='cpu')
    assert dls.c==1906 and len(dls.train_ds)==1906 and len(read_emoji(at)[0])==1911
    df,x = read_emoji(at, 'twitter')
    assert df.tones.gt(0).sum()==323 and df.tones.sum()==1875
    same = {n:x[i] for i,n in enumerate(df.name)}
    assert torch.equal(same['flag-no'], same['flag-sj']) and not torch.equal(same['flag-no'], same['flag-se'])
    assert emoji(at, classes_by='subcategory', least=20, n_shot=5, device='cpu').c==31
