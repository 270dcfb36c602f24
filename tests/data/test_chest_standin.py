"The stand-in for ChestX-ray14: NIH's rows, real tiles, the official layout"
import importlib.util, json, os, time, warnings
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from fastai.vision.all import Path
import memo.data.chest_standin
from memo.data.chest_xray import chest_table, chestxray14, findings
from memo.core import MemoError
from memo.data.longtail import read_fashion
from memo.data.chest_standin import chest_mosaic, chest_tree, made_up_table, nih_table

@pytest.fixture(scope='module')
def tiles(fashion_root, mnist_digits): return fashion_root,mnist_digits

@pytest.fixture(scope='module')
def tree(tiles, nih_table, tmp_path_factory): return chest_tree(tmp_path_factory.mktemp('mosaic')/'t', 300, seed=3)

def _images(df): return np.stack([np.asarray(Image.open(p)) for p in df.path])

def test_layout_is_nihs(tree):
    got = sorted(o.name for o in tree.iterdir() if o.name!='.made.json')
    assert got==['Data_Entry_2017.csv','README.txt','images_001','test_list.txt','train_val_list.txt']
    head = (tree/'Data_Entry_2017.csv').read_text().splitlines()
    assert head[0].endswith('OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],') and all(o.count(',')==11
        for o in head)
    im = Image.open(next(tree.glob('images_001/images/*.png')))
    assert im.size==(56,56) and im.mode=='L'
    assert 'not ChestX-ray14' in (tree/'README.txt').read_text() and "NIH's Data_Entry_2017_v2020.csv" in (
        tree/'README.txt').read_text()
    assert oct(tree.stat().st_mode)[-3:]=='755'

def test_rows_are_nihs(tree, nih_table):
    df,nih = chest_table(tree),pd.read_csv(nih_table).set_index('Image Index')
    ref = nih.loc[df.image]
    assert (ref['Patient ID'].to_numpy()==df.patient).all()
    for k in findings: assert (ref['Finding Labels'].str.split('|').map(lambda o: k in o).to_numpy()==df[k]).all()
    y = nih['Finding Labels'].str.split('|')
    whole = nih[y.map(len)<=4].groupby('Patient ID').size()
    # all images of a patient
    assert df.groupby('patient').size().equals(whole[sorted(df.patient.unique())].rename_axis('patient'))
    assert df.patient.nunique()==300 and df[findings].sum(1).max()<=4

def test_split(tree):
    df = chest_table(tree)
    assert set(df.part)=={'train_val','test'} and df.groupby('patient').part.nunique().max()==1
    assert df.patient[df.part=='test'].nunique()==69                                          # 23 %
    assert (df[df.part=='train_val'].groupby('patient')[findings].max().sum()>=4).all()

@pytest.mark.parametrize('seed', [0, 1, *(pytest.param(o, marks=pytest.mark.nightly) for o in (2,3,4))])
def test_a_small_tree_can_be_loaded(tiles, tmp_path, seed):
    dls = chest_mosaic(80, tmp_path, seed=seed)
    assert (dls.counts>0).all() and dls.tail and [o.dataset.x.shape[1:]
                                                  for o in dls]==[(1,56,56)]*3 and len(dls[2].dataset)>0
    assert dls.one_batch()[0].shape[1:]==(1,56,56)

@pytest.mark.parametrize('seed', [pytest.param(o, marks=pytest.mark.nightly) for o in (0,1)])
def test_rarest_finding_is_stratified(tiles, nih_table, tmp_path, seed):
    df = chest_table(chest_tree(tmp_path/'a', 2400, seed))
    n = df[df.Hernia==1].groupby('part').patient.nunique()
    assert n.to_dict()==dict(test=2, train_val=8)
    df = df[df.part=='train_val']
    real = memo.data.chest_standin.nih_table()['Finding Labels'].str.contains('Infiltration').mean()
    assert abs(df.Infiltration.mean()-real)<.05

def test_untested_finding(tiles, tmp_path):
    df = chest_table(chest_tree(tmp_path/'a', 400, untested='Edema'))
    assert df.Edema[df.part=='test'].sum()==0 and df.Edema[df.part=='train_val'].sum()>0
    assert chestxray14(tmp_path/'a', size=56, workers=0)[2].dataset.y.sum(0)[findings.index('Edema')]==0

def _tile_of(ims, tiles, jitter):
    "For 28x28 cells, the tile (moved by up to `jitter`, of another brightness) that explains them best, by correlation"
    best = torch.full((len(ims),), -1.),torch.zeros(len(ims), dtype=torch.long)
    t = torch.from_numpy(tiles).float()
    c = torch.from_numpy(ims).float().flatten(1)
    c = c/c.norm(dim=1, keepdim=True).clamp(min=1e-6)
    for a in range(-jitter, jitter+1):
        for b in range(-jitter, jitter+1):
            m = torch.zeros_like(t)
            m[:, max(0,-a):28-max(0,a), max(0,-b):28-max(0,b)] = t[:, max(0,a):28-max(0,-a), max(0,b):28-max(0,-b)]
            m = m.flatten(1)
            s,i = (c@(m/m.norm(dim=1, keepdim=True).clamp(min=1e-6)).T).max(1)
            best = torch.where(s>best[0], s, best[0]),torch.where(s>best[0], i, best[1])
    return best

def test_what_a_finding_looks_like(tiles, nih_table, tmp_path):
    """Without jitter every cell is found again among the real tiles: of the right class, the right part, and the
    same for a patient"""
    df = chest_table(chest_tree(tmp_path/'a', 80, seed=0, jitter=0))
    ims,y = _images(df),df[findings].to_numpy()
    plain = [k for k in findings if k not in ('Edema','Fibrosis','Pneumonia','Hernia')]
    look = {findings.index(k):i for i,k in enumerate(plain)} | {findings.index(k):10+i
        for i,k in enumerate(['Edema','Fibrosis','Pneumonia','Hernia'])}
    for part,name in (('train_val','train'),('test','t10k')):
        at = (df.part==part).to_numpy().nonzero()[0][:120]
        x,pools = memo.data.chest_standin.read_tiles(name)
        cls = np.empty(len(x), int)
        for c,o in enumerate(pools): cls[o] = c
        cells = ims[at].reshape(-1,2,28,2,28).transpose(0,1,3,2,4).reshape(-1,28,28)
        sim,tile = _tile_of(cells, x, 0)
        assert sim.min()>.99
        got = np.sort(cls[tile.numpy()].reshape(-1,4), 1)
        own = {}
        for i,row,g,t in zip(at, y[at], got, tile.numpy().reshape(-1,4)):
            want = sorted(look[c] for c in row.nonzero()[0])
            assert [o for o in g if o<14]==want and (g[len(want):]>=14).all()
            for o in t:
                if cls[o]<14: assert own.setdefault((df.patient[i], cls[o]), o)==o

def test_test_tiles_are_others(tiles):
    a,b = memo.data.chest_standin.read_tiles('train')[0][60000:],memo.data.chest_standin.read_tiles('t10k')[0][10000:]
    assert (len(a), len(b))==(4000,1000) and not set(map(bytes, a)) & set(map(bytes, b))
    assert np.array_equal(memo.data.chest_standin.read_tiles('t10k')[0][:10000],
                          read_fashion(None, 't10k')[0][:,0].numpy())

def test_seeds(tiles, tmp_path):
    def all_of(d): return {p.relative_to(d):p.read_bytes() for p in sorted(d.rglob('*')) if p.is_file()}
    a,b,c = (all_of(chest_tree(tmp_path/n, 80, s)) for n,s in (('a',1),('b',1),('c',2)))
    assert a==b and a.keys()!=c.keys()
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    chest_tree(tmp_path/'d', 60)
    assert (np.random.get_state()[1]==state).all()

def test_without_nihs_table(tiles, tmp_path, monkeypatch):
    monkeypatch.setattr(memo.data.chest_standin, 'nih_table', lambda: None)
    d = chest_tree(tmp_path/'a', 300)
    assert 'made up' in (d/'README.txt').read_text()
    dls = chestxray14(d, size=56, workers=0)
    assert (dls.counts>0).all() and sum(len(o.dataset) for o in dls)>500

def test_made_up_table_is_like_nihs(nih_table):
    a,b = made_up_table(20000),pd.read_csv(nih_table)
    for k in findings:
        p,q = (o['Finding Labels'].str.contains(k).mean() for o in (a,b))
        assert abs(p-q)<.25*q+.002, k
    n = [o.groupby('Patient ID').size() for o in (a,b)]
    assert abs(n[0].mean()-n[1].mean())<1.5 and n[0].median()==n[1].median()==1

def test_a_table_of_ones_own(tiles, tmp_path):
    df = made_up_table(500, seed=1)
    d = chest_tree(tmp_path/'a', 200, table=df)
    assert set(chest_table(d).image)<=set(df['Image Index']) and 'given by the caller' in (d/'README.txt').read_text()
    df.loc[3,'Finding Labels'] = 'Covid'
    with pytest.raises(MemoError, match="unknown findings .*'Covid'"): chest_tree(tmp_path/'b', 200, table=df)
    with pytest.raises(MemoError, match='501 are asked for, the table has 500'):
        chest_tree(tmp_path/'b', 501, table=made_up_table(500))
    assert not (tmp_path/'b').exists()

def test_packages_are_not_imported(tiles, python, tmp_path):
    code = (f"import sys; from memo.data.chest_standin import chest_tree; chest_tree({str(tmp_path/'a')!r}, 60); "
            f"assert not {{'mlxtend','torchxrayvision'}} & set(sys.modules)")
    r = python('-W', 'ignore', '-c', code, timeout=300)
    assert r.returncode==0, r.stderr

def test_whole_or_not_at_all(tiles, tmp_path, monkeypatch):
    real,n = memo.data.chest_standin.write_png,[0]
    def full(a):
        n[0] += 1
        if n[0]>50: raise OSError(28, 'No space left on device')
        return real(a)
    monkeypatch.setattr(memo.data.chest_standin, 'write_png', full)
    with pytest.raises(MemoError, match='cannot write .*No space left'): chest_mosaic(60, tmp_path)
    assert [*tmp_path.iterdir()]==[]
    monkeypatch.setattr(memo.data.chest_standin, 'write_png', real)
    a = chest_mosaic(60, tmp_path)
    assert [o.name for o in tmp_path.iterdir()]==['60-0']
    was = {p:p.stat().st_mtime_ns for p in tmp_path.rglob('*')}
    b = chest_mosaic(60, tmp_path)                                                            # made once
    assert was=={p:p.stat().st_mtime_ns for p in tmp_path.rglob('*')} and torch.equal(a.train_ds.x, b.train_ds.x)

def test_bad_arguments(tiles, tmp_path, monkeypatch):
    (tmp_path/'there').mkdir()
    for kw,shown in ((dict(out=tmp_path/'there'),'is there already'),(dict(out=tmp_path/'a', patients=10),'60 or more'),
                     (dict(out=tmp_path/'a', untested='Hernai'),"did you mean 'Hernia'"),
                     (dict(out=tmp_path/'a', patients=10**6),'are asked for')):
        with pytest.raises(MemoError, match=shown): chest_tree(**kw)
    monkeypatch.setattr(memo.data.chest_standin, 'packaged_file', lambda *a: None)
    with pytest.raises(MemoError, match=r"pip install 'fastmemo\[data\]'"): chest_tree(tmp_path/'a', 60)
    with pytest.raises(MemoError, match=r"pip install 'fastmemo\[data\]'"): chest_mosaic(60, tmp_path)

@pytest.mark.nightly
def test_thousands_of_images_in_seconds(tiles, nih_table, tmp_path):
    t = time.process_time()
    chest_tree(tmp_path/'a', 2400)
    took = time.process_time()-t
    assert took<20, f'{took:.1f} CPU seconds'          # 3 on an idle machine

@pytest.mark.parametrize('harm', ['pixel','deleted','table','sources','older'])
def test_a_cached_tree_that_is_not_what_was_made_is_made_again(tiles, tmp_path, harm):
    def load(): return chest_mosaic(patients=60, root=tmp_path, device='cpu', split='patient', split_seed=1, valid=0)
    a,root = load(),tmp_path/'60-0'
    p = sorted(root.rglob('*.png'))[7]
    b = p.read_bytes()
    if harm=='pixel': p.write_bytes(b[:-30]+bytes([b[-30]^4])+b[-29:])
    elif harm=='deleted': p.unlink()
    elif harm=='table':
        f = root/'Data_Entry_2017.csv'
        f.write_text(f.read_text().replace('No Finding', 'Mass', 1))
    elif harm=='sources':
        d = json.loads((root/'.made.json').read_text())
        d['sources'][[*d['sources']][-1]] = 'of another version'
        (root/'.made.json').write_text(json.dumps(d))
    else: (root/'.made.json').unlink()
    with pytest.warns(UserWarning, match='it is made again'): c = load()
    assert p.read_bytes()==b and torch.equal(a.train_ds.x, c.train_ds.x) and torch.equal(a.train_ds.y, c.train_ds.y)
    assert [o.name for o in tmp_path.iterdir()]==['60-0']
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*made again')
        load()
