"ChestX-ray14 from a folder: table, lists, splits, loaders, and every fault told in one line before training"
import gzip, pickle, re
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from fastai.vision.all import Learner, Path, TensorMultiCategory, imagenet_stats, load_learner, nn, random, set_seed
from memo.data.features import features_dls
from memo.banks.slots import SlotBank
from memo.training.batch_ids import group_ids
from memo.training.memory_callback import MemoryCallback
from memo.data.finding_loaders import abnormal_only
from memo.data.chest_xray import chest_dls, chest_split, chest_table, chestxray14, findings, read_list
from memo.core import MemoError
from memo.data.samplers import BalancedDL, balanced_order
from memo.data.tensors import TensorDL, plain_dl
from memo.data.copies import resize_tree
from memo.data.images import FileImages
from memo.data.items import hash63, item_ids

head12 = ('Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View '
          'Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],')
head11 = ('Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View '
          'Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]')

def _rows(patients=75, per=3):
    "Patient i has finding i modulo 15 (14: none), in every third image two"
    rows = []
    for i in range(patients):
        for j in range(per):
            c = i%15
            label = 'No Finding' if c==14 else findings[c] + (f'|{findings[(c+3)%13]}' if j==2 else '')
            rows.append([f'{i+1:08d}_{j:03d}.png', label, j, i+1, 50, 'F', 'PA', 2000, 2000, .1, .1])
    return rows

def _write(root, rows, columns=12, zipped=False):
    lines = [head12 if columns==12 else head11] + [','.join(map(str, o)) + (',' if columns==12 else '') for o in rows]
    for p in root.glob('Data_Entry*'): p.unlink()
    b = ('\n'.join(lines)+'\n').encode()
    if zipped: (root/'Data_Entry_2017_v2020.csv.gz').write_bytes(gzip.compress(b))
    else: (root/'Data_Entry_2017.csv').write_bytes(b)

@pytest.fixture
def tree(tmp_path):
    "75 patients, 3 images each, in two parts; patients 61 to 75 are the test"
    root,rows,rng = tmp_path/'nih',_rows(),np.random.default_rng(0)
    for d in ('images_001','images_002'): (root/d/'images').mkdir(parents=True)
    for i,o in enumerate(rows):
        Image.fromarray(rng.integers(256, size=(18,20), dtype=np.uint8)).save(root/f'images_00{1+i%2}'/'images'/o[0],
            compress_level=1)
    _write(root, rows)
    (root/'train_val_list.txt').write_text('\n'.join(o[0] for o in rows if o[3]<=60))
    (root/'test_list.txt').write_text('\n'.join(o[0] for o in rows if o[3]>60)+'\n')
    return root

def _load(root, **kw): return chestxray14(root, **dict(size=16, workers=0, bs=16, device='cpu') | kw)

def _fails(root, *parts, **kw):
    "One line, with all `parts`"
    with pytest.raises(MemoError) as e: _load(root, **kw)
    msg = str(e.value)
    assert '\n' not in msg and len(msg)<500, msg
    for o in parts: assert o in msg, msg
    return msg

# the table
@pytest.mark.parametrize('columns', [11,12])
@pytest.mark.parametrize('zipped', [False,True])
def test_both_forms_of_the_table(tree, columns, zipped):
    was = chest_table(tree)
    _write(tree, _rows(), columns, zipped)
    df = chest_table(tree)
    pd.testing.assert_frame_equal(df, was)
    assert [*df.columns]==['image','patient','path','part',*findings] and len(df)==225
    for o,(_,r) in zip(_rows(), df.iterrows()):
        assert (r.image, r.patient, r.part)==(o[0], o[3],
                                              'train_val' if o[3]<=60
                                              else 'test') and Path(r.path).name==o[0] and Path(r.path).is_file()
        assert {k for k in findings if r[k]}==set(o[1].split('|'))-{'No Finding'}

def test_columns_are_found_by_name(tree):
    was = chest_table(tree)
    df = pd.DataFrame([[o[3],o[0],o[1]] for o in _rows()], columns=[' Patient ID','Image Index ','Finding Labels'])
    df.to_csv(tree/'Data_Entry_2017.csv', index=False, encoding='utf-8-sig')
    pd.testing.assert_frame_equal(chest_table(tree), was)

def test_plain_name_goes_first(tree):
    (tree/'Data_Entry_2017_v2020.csv').write_text('nonsense\n')
    assert len(chest_table(tree))==225

@pytest.mark.parametrize('text',
                         ['a.png\nb.png','a.png\r\nb.png\r\n','\n a.png \n\n\tb.png\n\n','\ufeffa.png\nb.png',
                          'images/a.png\nb.png'])
def test_lists_that_have_seen_other_systems(tmp_path, text):
    (tmp_path/'l.txt').write_bytes(text.encode())
    assert read_list(tmp_path/'l.txt').tolist()==['a.png','b.png']

def test_images_in_one_folder(tree):
    was = chest_table(tree)
    (tree/'images').mkdir()
    for p in [*tree.glob('images_*/images/*.png')]: p.rename(tree/'images'/p.name)
    df = chest_table(tree)
    assert df.image.equals(was.image) and set(df.path)=={str(tree/'images'/o) for o in df.image}

# splits
def test_official_split(tree):
    dls = _load(tree)
    s = dls.split
    # round(.125*60) = 8 patients
    assert s.part.value_counts().to_dict()==dict(train=156, valid=24, test=45)
    assert set(s.image[s.part=='test'])==set((tree/'test_list.txt').read_text().split())
    assert s.groupby('patient').part.nunique().max()==1
    for dl,part in zip(dls, ('train','valid','test')):
        assert sorted(Path(o).name for o in dl.dataset.x.paths)==sorted(s.image[s.part==part])

def test_split_is_drawn_once_and_from_its_own_chance(tree):
    df = chest_table(tree)
    torch.manual_seed(0)
    a = chest_split(df)
    state = torch.get_rng_state()
    assert torch.equal(state, torch.manual_seed(0).get_state())
    b,c = chest_split(df.sample(frac=1, random_state=1)),chest_split(df, seed=3)
    assert a.part.equals(b.part.sort_index()) and not a.part.equals(c.part) and (a.part=='test').equals(c.part=='test')
    dls,dls1 = _load(tree),_load(tree, seed=5, sampling='balanced', bs=4)
    pd.testing.assert_frame_equal(dls.split, dls1.split)

def test_split_by_patient_needs_no_lists(tree):
    for k in ('train_val','test'): (tree/f'{k}_list.txt').unlink()
    s = chest_split(chest_table(tree, lists=False), 'patient', .125)
    assert s.patient.groupby(s.part).nunique().to_dict()==dict(test=15, train=52, valid=8)
    assert s.groupby('patient').part.nunique().max()==1 and len(s)==225
    assert len(_load(tree, split='patient', split_seed=1)[2].dataset)==45
    _fails(tree, 'train_val_list.txt is missing', "split='patient'")

def test_without_validation(tree):
    dls = _load(tree, valid=0)
    assert [len(o.dataset) for o in dls]==[180,0,45] and len(dls.valid)==0 and list(dls.valid)==[] and dls.c==14
    assert [len(o.dataset) for o in abnormal_only(dls)]==[168,0,45]

def test_images_in_no_list_are_left_out(tree):
    p = tree/'train_val_list.txt'
    p.write_text('\n'.join(o for o in p.read_text().split() if not o.startswith('00000007')))
    for q in tree.glob('*/images/00000007*'): q.unlink()                                     # and need not be there
    assert len(_load(tree).split)==222

# loaders
@pytest.mark.parametrize('preload', [False,True])
def test_rows_are_those_of_the_table(tree, preload):
    dls,df = _load(tree, preload=preload),chest_table(tree).set_index('image')
    names = {h:n for n,h in zip(dls.split.image, item_ids_of(dls.split.image))}
    for dl in dls:
        ds = dl.dataset
        im = [names[o] for o in item_ids(dl).tolist()]
        assert torch.equal(ds.y,
                           torch.tensor(df.loc[im, findings].to_numpy()).float()) and ds.groups.tolist()==df.patient[
                               im].tolist()
        x = torch.stack([o[0] for o in ds])
        assert torch.equal(x.as_subclass(torch.Tensor),
                           FileImages(df.path[im], 16)[range(len(im))]) and isinstance(ds.x, FileImages)!=preload

def item_ids_of(names): return [hash63(o) for o in names]

def test_batches_and_attributes(tree):
    dls = _load(tree)
    xb,yb = dls.one_batch()
    assert xb.shape==(16,3,16,16) and yb.shape==(16,14) and type(yb) is TensorMultiCategory and yb.dtype==torch.float32
    assert list(dls.vocab)==findings and dls.c==14 and dls.n_train==156
    assert torch.equal(dls.counts, dls.train_ds.y.sum(0).long())
    seen = dls.train_ds.y.sum(0)+dls.valid_ds.y.sum(0)
    assert dls.tail[0]==13 and sorted(seen[dls.tail].tolist())==sorted(seen.tolist())[:4]
    m,s = (torch.tensor(o)[:,None,None] for o in imagenet_stats)
    x,_ = dls[2].one_batch()
    assert torch.allclose(x[0].as_subclass(torch.Tensor), (FileImages(dls[2].dataset.x.paths, 16)[0]/255-m)/s,
                          atol=1e-5)
    assert _load(tree, channels=1).one_batch()[0].shape==(16,1,16,16)
    dls.show_batch(max_n=2)

def test_seed_sets_the_order_of_batches(tree):
    def order(**kw):
        dls = _load(tree, **kw)
        return [dls.train.get_idxs() for _ in range(2)]
    assert order(seed=1)==order(seed=1)!=order(seed=2)

def test_augmentation_is_for_training_only(tree):
    plain = _load(tree, rotate=0)
    ref = plain_dl(plain.train).one_batch()[0]
    for kw in (dict(rotate=10), dict(rotate=0, flip=True)):
        dls = _load(tree, **kw)
        # not where the training set is read as it is
        assert torch.allclose(plain_dl(dls.train).one_batch()[0], ref, atol=1e-4)
        assert torch.equal(dls[1].one_batch()[0], plain[1].one_batch()[0]) and torch.equal(dls[2].one_batch()[0],
            plain[2].one_batch()[0])
        ds = dls.train.new(shuffle=False)
        set_seed(0)
        x = ds.one_batch()[0]
        changed = ((x-ref).abs()>1e-3).flatten(1).any(1)
        assert 0<changed.sum()<16
        if kw.get('flip'): assert torch.allclose(x[changed], ref[changed].flip(-1), atol=1e-4)
    x = plain.train.new(shuffle=False).one_batch()[0]
    assert torch.equal(x, ref)                                                               # no flip unless asked for

def test_workers_give_the_same_batches(tree):
    a,b = _load(tree, rotate=0, workers=2),_load(tree, rotate=0)
    for p,q in zip(a, b):
        for (x1,y1),(x2,y2) in zip(p, q, strict=True): assert torch.equal(x1, x2) and torch.equal(y1, y2)

def test_cached_copy_gives_the_same_set(tree, tmp_path):
    a = _load(tree)
    resize_tree(tree, tmp_path/'small', 16, workers=0)
    b = _load(tmp_path/'small')
    pd.testing.assert_frame_equal(a.split, b.split)
    for p,q in zip(a, b):
        assert torch.equal(item_ids(p), item_ids(q)) and torch.equal(p.dataset.y,
            q.dataset.y) and torch.equal(p.dataset.x.load(), q.dataset.x.load())
    _fails(tmp_path/'small', 'size: 32 pixels are asked for', 'copy of 16', size=32)
    c = tmp_path/'small'/'cache.json'
    c.write_text(c.read_text().replace('true', 'false'))
    _fails(tmp_path/'small', 'not finished', 'memo-cache')

@pytest.mark.parametrize('preload', [False,True])
def test_abnormal_only(tree, preload, monkeypatch):
    dls = _load(tree, preload=preload, sampling='balanced', valid=.3)
    if not preload:
        monkeypatch.setattr(FileImages, '__getitem__', lambda self,
                            i: self.rows(i) if isinstance(i, slice) else pytest.fail('an image was read'))
    sub = abnormal_only(dls)
    for i in (0,1):
        a,b = dls[i].dataset,sub[i].dataset
        keep = a.y.sum(1)>0
        assert 0<len(b)==keep.sum()<len(a) and torch.equal(b.y, a.y[keep]) and torch.equal(b.items,
            a.items[keep]) and torch.equal(b.groups, a.groups[keep])
        if preload: assert b.x.data_ptr()==a.x.data_ptr()                                    # the very images
    assert sub[2] is dls[2] and type(sub.train) is BalancedDL and sub.train.rng.getstate()==dls.train.rng.getstate()
    assert sub.n_train==len(sub.train_ds)<dls.n_train==len(dls.train_ds) and torch.equal(sub.counts,
        dls.counts) and sub.split is dls.split
    assert sub.train.bs==16 and sub.train.shuffle

def test_abnormal_only_of_any_order(tree):
    dls = _load(tree, preload=True)
    g = torch.randperm(len(dls.train_ds), generator=torch.Generator().manual_seed(0))
    dls.loaders[0] = dls.train.new(dls.train_ds.subset(g))
    sub,y = abnormal_only(dls).train_ds,dls.train_ds.y
    assert torch.equal(sub.items, dls.train_ds.items[y.sum(1)>0])
    dls.loaders[0] = dls.train.new(dls.train_ds.subset((y.sum(1)==0).nonzero().squeeze(1)))
    with pytest.raises(MemoError, match='none of the .* training set has a finding'): abnormal_only(dls)

# with a learner
def _net(n=14):
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, n))

def test_patients_do_not_recall_themselves(tree, tmp_path):
    dls = _load(tree, channels=1, rotate=0)
    set_seed(0)
    learn = Learner(dls, _net(), cbs=MemoryCallback(SlotBank(64, policy='fifo'), k=5, group='patient'), path=tmp_path)
    assert torch.equal(group_ids(dls.train, 'patient'), dls.train_ds.groups)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    bank = learn.memory.bank
    patient = dict(zip(dls.train_ds.items.tolist(), dls.train_ds.groups.tolist()))
    assert bank.groups.flatten().tolist()==[patient[o] for o in bank.items.flatten().tolist()]
    with learn.no_bar(): r = learn.recall(ds_idx=0)
    own = torch.tensor([patient[o] for o in r.item.tolist()])
    got = r.row_item.clone().apply_(lambda o: patient.get(o, -1))
    assert r.row_item.shape[1]==5 and not (got==own[:,None]).any()
    # a new image has no known patient
    with learn.no_bar(): assert learn.recall([dls[2].dataset.x.paths[0]]).probs.shape==(1,14)

@pytest.mark.parametrize('preload', [False,True])
def test_export_and_predict(tree, tmp_path, preload):
    dls = _load(tree, channels=1, preload=preload)
    learn = Learner(dls, _net(), path=tmp_path)
    path = dls.split.merge(chest_table(tree)[['image','path']]).query("part=='test'").path
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        p,_ = learn.get_preds(dl=dls[2])
        assert torch.allclose(learn.get_preds(dl=dls.test_dl(sorted(path)))[0].sort(0)[0], p.sort(0)[0], atol=1e-6)
        learn.export(tmp_path/'e.pkl')
        other = load_learner(tmp_path/'e.pkl')
        assert torch.allclose(other.predict(path.iloc[0])[2], learn.predict(Path(path.iloc[0]))[2])
    assert list(other.dls.vocab)==findings and (tmp_path/'e.pkl').stat().st_size<200_000

def test_features_keep_the_patients(tree, tmp_path):
    dls = _load(tree, channels=1)
    f = features_dls(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), dls, tmp_path/'f')
    for a,b in zip(dls, f):
        assert torch.equal(a.dataset.groups, b.dataset.groups) and torch.equal(a.dataset.items, b.dataset.items)
    assert len(abnormal_only(f).train_ds)==int((dls.train_ds.y.sum(1)>0).sum()) and f.tail==dls.tail

# resampling
def test_balanced_draws_by_the_rarest_finding(tree):
    dl = _load(tree, sampling='balanced').train
    y = dl.dataset.y
    full = torch.cat([y, (y.sum(1, keepdim=True)==0).float()], 1)
    w = torch.stack([(1/full.sum(0))[o>0].max() for o in full])
    got = torch.bincount(torch.tensor(sum((dl.get_idxs() for _ in range(200)), [])), minlength=len(y)).double()
    want = (w/w.sum()).double()*got.sum()
    assert len(dl.get_idxs())==len(y) and ((got-want).abs()<6*want.sqrt()).all()
    a,b = (balanced_order(y, 50, torch.Generator().manual_seed(3)) for _ in range(2))
    assert a==b

def test_balanced_wants_labels():
    with pytest.raises(MemoError, match=r'labels \[N\] or \[N,C\]'): balanced_order(torch.zeros(2,2,2), 3)
    assert sorted(set(balanced_order(torch.zeros(4,3), 100)))==[0,1,2,3]                     # nothing but normals

# bad input, each told in one line before training
def _edit(tree, i, j, o):
    rows = _rows()
    rows[i][j] = o
    _write(tree, rows)

def test_no_such_folder(tree, tmp_path):
    _fails(tmp_path/'nowhere', 'no such folder', 'Data_Entry_2017.csv')
    (tree/'Data_Entry_2017.csv').unlink()
    _fails(tree, 'no Data_Entry_2017*.csv', 'NIH')

def test_missing_columns(tree):
    p = tree/'Data_Entry_2017.csv'
    p.write_text(p.read_text().replace('Finding Labels', 'Findings').replace('Patient ID', 'Patient'))
    _fails(tree, "'Finding Labels', 'Patient ID' is missing", 'found Image Index, Findings', "NIH's own file")

def test_empty_or_broken_table(tree):
    p = tree/'Data_Entry_2017.csv'
    p.write_text(head12+'\n')
    _fails(tree, 'no rows')
    p.write_bytes(b'')
    _fails(tree, 'cannot read')
    p.unlink()
    (tree/'Data_Entry_2017.csv.gz').write_bytes(gzip.compress(b'Image Index'*1000)[:30])
    _fails(tree, 'cannot read', 'download it again')

@pytest.mark.parametrize('label,shown,hint',
                         [('Hernai','Hernai',"'Hernia'"),
                          ('Mass|Pleural Thickening','Pleural Thickening',"'Pleural_Thickening'"),('','',''),
                          ('COVID','COVID',''),
    ('Mass|No Finding','Mass|No Finding',''),('mass','mass',"'Mass'")])
def test_unknown_findings(tree, label, shown, hint):
    _edit(tree, 4, 1, label)
    _fails(tree, '1 unknown findings', f'first: {shown!r}',
           f'did you mean {hint}' if hint else 'No Finding, or some joined by | is accepted')

def test_duplicate_rows(tree):
    _write(tree, _rows()+_rows()[:5])
    _fails(tree, '5 images have more than one row', '00000001_000.png, 00000001_001.png, 00000001_002.png, ...',
           'delete')

@pytest.mark.parametrize('who', ['','  ','NaN'])
def test_patients_are_needed(tree, who):
    _edit(tree, 4, 3, who)
    _fails(tree, '1 rows have no patient (first', '00000002_001.png')

def test_row_without_a_name(tree):
    _edit(tree, 4, 0, ' ')
    _fails(tree, '1 rows have no image name', 'row 6')

def test_patient_in_both_lists(tree):
    a,b = tree/'train_val_list.txt',tree/'test_list.txt'
    names = a.read_text().split()
    a.write_text('\n'.join(names[1:]))
    b.write_text(b.read_text()+names[0])
    _fails(tree, '1 patients are in both lists (first: 1)', "split='patient'")
    _load(tree, split='patient', split_seed=1)                                              # which it is no matter to
    a.write_text('\n'.join(names))
    _fails(tree, '1 images are in train_val_list.txt and in test_list.txt (first: 00000001_000.png)')

def test_lists_that_do_not_fit_the_table(tree):
    p = tree/'test_list.txt'
    p.write_text(p.read_text()+'99999999_000.png\n99999999_001.png')
    _fails(tree, 'test_list.txt: 2 of 47 images are not in Data_Entry_2017.csv (first: '
                 '99999999_000.png, 99999999_001.png)', 'download both')
    p.write_text('\n \n')
    _fails(tree, 'test_list.txt names no image')
    p.unlink()
    _fails(tree, 'test_list.txt is missing')

def test_listed_images_that_are_not_there(tree):
    ps = sorted(tree.glob('*/images/*.png'), key=lambda o: o.name)
    for p in ps[:4]: p.unlink()
    _fails(tree, '4 of the 225 images of the two lists are not there',
           '00000001_000.png, 00000001_001.png, 00000001_002.png, ...', 'unpack all parts')
    _fails(tree, '4 of the 225 images of the table', split='patient', split_seed=1)

@pytest.mark.parametrize('cut', [0,30,-4])
def test_half_written_image(tree, cut):
    p = next(tree.glob('*/images/00000010_001.png'))
    p.write_bytes(p.read_bytes()[:cut])
    _fails(tree, '1 of 225 images cannot be read', '00000010_001.png is '+('empty' if cut==0 else 'cut off'),
           'copy them again')

def test_finding_absent_from_training(tree):
    rows = [[o[0], 'No Finding' if o[3]<=60 and 'Hernia' in o[1] else o[1], *o[2:]] for o in _rows()]
    _write(tree, rows)
    _fails(tree, 'Hernia is in none of the 156 training images', 'split_seed')

def test_finding_absent_from_the_test_is_fine(tree):
    _write(tree, [[o[0], 'No Finding' if o[3]>60 and 'Hernia' in o[1] else o[1], *o[2:]] for o in _rows()])
    assert _load(tree)[2].dataset.y.sum(0)[13]==0

@pytest.mark.parametrize('kw,shown',
                         [(dict(split='oficial'),"did you mean 'official'"),(dict(valid=1.),'from 0 to below 1'),
                          (dict(valid=-.1),'found -0.1'),(dict(channels=2),'1 or 3'),
    (dict(sampling='balance'),"did you mean 'balanced'"),(dict(size=0),'size must be a whole number from 1')])
def test_wrong_options(tree, kw, shown): _fails(tree, shown, **kw)
