"ChestX-ray14 as people have it: each form in which it is shared opens with the same images, labels, patients, split"
import gzip, os, shutil
import numpy as np, pytest, torch
from PIL import Image
from fastai.vision.all import Path
from sklearn.datasets import load_digits
from memo.core import MemoError
from memo.data.chest_xray import chest_table, chestxray14, findings
from memo.data.copies import resize_tree
from memo.data.image_trees import match_images, walk_tree
from memo.data.images import read_image

# first lines as they are in the files; the first is out of Data_Entry_2017_v2020.csv in torchxrayvision's package
v2020 = ('Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,'
         'OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]')
v2017 = v2020+','        # and a comma at the end of each line
sample = ('Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,'
          'OriginalImageWidth,OriginalImageHeight,OriginalImagePixelSpacing_x,OriginalImagePixelSpacing_y')
ims,N = load_digits().images,225

def rows():
    "75 patients with three films each; patient i has finding i modulo 15 (14: none), in the third film two"
    for i in range(N):
        who,c = i//3,i//3%15
        label = 'No Finding' if c==14 else findings[c]+(f'|{findings[(c+3)%13]}' if i%3==2 else '')
        yield f'{who+1:08d}_{i%3:03d}.png',label,i%3,who+1

def table(path, head=v2020, age='50', end=''):
    lines = [head,*(f'{n},{l},{f},{p},{age},F,PA,2000,2000,.1,.1{end}' for n,l,f,p in rows())]
    b = ('\n'.join(lines)+'\n').encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(b) if path.suffix=='.gz' else b)

def films(folder, ending='.png', folders=('',)):
    for i,(n,*_) in enumerate(rows()):
        p = folder/folders[i*len(folders)//N]/(n.removesuffix('.png')+ending)
        p.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((ims[i]*15).astype(np.uint8)).save(p, 'PNG' if 'PNG' in ending.upper() else 'JPEG', quality=95)

def lists(folder, train='train_val_list.txt', test='test_list.txt', valid=None, say='{}\n'):
    "Patients 61 to 75 are the test, with three lists 51 to 60 for validation"
    of = {train:range(1,61)} if valid is None else {train:range(1,51), valid:range(51,61)}
    for k,who in (of|{test:range(61,76)}).items():
        (folder/k).write_bytes(''.join(say.format(n) for n,_,_,p in rows() if p in who).encode())

def nih(d):
    table(d/'Data_Entry_2017_v2020.csv')
    films(d, folders=[f'images_{i:03d}/images' for i in range(1,13)])
    lists(d)
def nih_zipped(d):
    table(d/'Data_Entry_2017.csv.gz', v2017, end=',')
    films(d/'images')
    lists(d)
def mirror_224(d):
    table(d/'Data_Entry_2017.csv', v2017, end=',')
    films(d/'images-224/images-224')
    lists(d, 'train_val_list_NIH.txt', 'test_list_NIH.txt')
def kaggle_archive(d):
    "What unzip makes of archive.zip"
    mirror_224(d/'archive')
def flat(d):
    table(d/'Data_Entry_2017.csv')
    films(d)
    lists(d)
def jpegs(d):
    table(d/'Data_Entry_2017.csv')
    films(d/'images', '.jpg')
    lists(d)
def jpeg_and_upper(d):
    table(d/'Data_Entry_2017.csv')
    films(d/'a', '.jpeg')
    for p in sorted(d.rglob('*.jpeg'))[:90]:
        Image.open(p).save(d/f'{p.stem}.PNG', 'PNG')
        p.unlink()
    lists(d)
def windows(d):
    table(d/'Data_Entry_2017.csv')
    films(d/'images')
    lists(d, say='images\\{}\r\n')
def with_labels(d):
    "Lists of CheXNet's repositories have fourteen numbers behind a name, and three parts"
    table(d/'Data_Entry_2017.csv')
    films(d/'images')
    lists(d/'images', 'train_list.txt', 'test_list.txt', 'val_list.txt', say='{} 0 0 1 0 0 0 0 0 0 0 0 0 0 0\n')
def mac(d):
    "An archive that was packed on a Mac"
    nih(d)
    (d/'__MACOSX').mkdir()
    (d/'__MACOSX/._00000001_000.png').write_bytes(b'x')
    (d/'images_001/images/._00000001_000.png').write_bytes(b'x')
def linked(d):
    "Images on another drive, and a link that leads back"
    nih(d.parent/'drive')
    d.mkdir()
    for o in (d.parent/'drive').iterdir():
        if o.is_file(): shutil.copy(o, d)
    (d/'images').symlink_to(d.parent/'drive')
    for p in (d.parent/'drive').glob('*.*'): p.unlink()
    (d.parent/'drive/back').symlink_to(d)

official = [nih,nih_zipped,mirror_224,kaggle_archive,flat,jpegs,jpeg_and_upper,windows,with_labels,mac,linked]

def load(root, **kw): return chestxray14(root, **dict(size=8, channels=1, rotate=0, workers=0, device='cpu')|kw)

@pytest.mark.parametrize('make', official, ids=lambda o: o.__name__)
def test_each_form_opens(make, tmp_path):
    root = tmp_path/'set'
    make(root)
    dls,want = load(root),{n:(l,p) for n,l,_,p in rows()}
    s,three = dls.split,make is with_labels
    assert set(s.image)=={*want} and [want[o][1] for o in s.image]==s.patient.tolist()
    n = dict(train=150, valid=30, test=45) if three else dict(train=156, valid=24, test=45)
    assert s.part.value_counts().to_dict()==n and s.groupby('patient').part.nunique().max()==1
    assert {*s.patient[s.part=='test']}=={*range(61,76)}
    if three: assert {*s.patient[s.part=='valid']}=={*range(51,61)}
    name = dict(zip(s.item.tolist(), s.image))
    at = {n:i for i,(n,*_) in enumerate(rows())}
    for dl in dls.loaders:
        ds = dl.dataset
        got = [name[o] for o in ds.items.tolist()]
        labels = ['|'.join(findings[i] for i in o.nonzero().flatten().tolist()) or 'No Finding' for o in ds.y]
        assert [{*o.split('|')} for o in labels]==[{*want[o][0].split('|')} for o in got]
        assert ds.groups.tolist()==[want[o][1] for o in got]
        x = ds.x[range(len(ds))].reshape(-1, 8, 8).float()
        near = 0 if make not in (jpegs,jpeg_and_upper) else 6
        assert (x-torch.tensor(ims[[at[o] for o in got]]*15).float()).abs().mean()<=near

def kaggle_sample(d):
    "The random sample of 5,606 films; its ages are texts"
    table(d/'sample_labels.csv', sample, '060Y')
    films(d/'sample/images')

@pytest.mark.parametrize('where', ['', 'sample', 'archive/sample'])
def test_the_sample_opens(where, tmp_path):
    kaggle_sample(tmp_path/where)
    dls = load(tmp_path, split='patient', split_seed=1)
    s = dls.split
    assert len(s)==N and s.patient.nunique()==75 and s.groupby('patient').part.nunique().max()==1
    assert s.part.value_counts().to_dict()==dict(train=156, test=45, valid=24)
    with pytest.raises(MemoError, match="train_val_list.txt is missing; .* split='patient'"): load(tmp_path)
    lists(tmp_path)     # the official ones name 112,120
    p = tmp_path/'train_val_list.txt'
    p.write_text(p.read_text()+'00009999_000.png\n')
    assert load(tmp_path).split.part.value_counts().to_dict()==dict(train=156, valid=24, test=45)

def test_a_folder_that_cannot_be_written_to(tmp_path):
    nih(tmp_path/'set')
    def state(): return [(o,os.stat(o).st_mtime_ns) for o in sorted((tmp_path/'set').rglob('*'))]
    for p in (tmp_path/'set').rglob('*'): p.chmod(0o555 if p.is_dir() else 0o444)
    (tmp_path/'set').chmod(0o555)
    was = state()
    dls = load(tmp_path/'set', check=True)
    next(iter(dls.train))
    assert state()==was
    (tmp_path/'set').chmod(0o755)

def test_a_copy_of_a_form_is_of_that_form(tmp_path):
    "memo-cache keeps folders, tables and lists where they are"
    kaggle_archive(tmp_path/'set')
    resize_tree(tmp_path/'set', tmp_path/'small', 8, workers=0)
    a,b = load(tmp_path/'set'),load(tmp_path/'small')
    assert a.split.equals(b.split)
    for p,q in zip(a.loaders, b.loaders): assert torch.equal(p.dataset.x.load(), q.dataset.x.load())

def fails(root, *parts, **kw):
    with pytest.raises(MemoError) as e: load(root, **kw)
    m = str(e.value)
    assert '\n' not in m and len(m)<=300, m
    for o in parts: assert o in m, m

def test_two_images_of_one_stem(tmp_path):
    nih(tmp_path/'set')
    a = tmp_path/'set/images_001/images/00000001_000.png'
    b = tmp_path/'set/other/00000001_000.jpg'
    b.parent.mkdir()
    shutil.copy(a, b)
    fails(tmp_path/'set', '1 images are there twice', 'images_001/images/00000001_000.png and other/00000001_000.jpg',
          'delete one of each')
    b.rename(b.parent/'own.jpg')        # whose name is in no row
    load(tmp_path/'set')

def test_what_was_found_and_what_was_expected(tmp_path):
    d = tmp_path/'s'
    films(d/'pictures')
    (d/'labels.xlsx').touch()
    fails(d, 'no Data_Entry_2017*.csv is there', 'found 225 images (first: pictures/00000001_000.png), labels.xlsx',
          "expected NIH's table")
    (tmp_path/'e').mkdir()
    fails(tmp_path/'e', 'found nothing')
    table(d/'Data_Entry_2017.csv')
    lists(d)
    for p in [*d.rglob('*.png')]: p.rename(p.with_name('film_'+p.name))
    fails(d, 'none of the 225 images of the two lists is there (first: 00000001_000.png', 'found 225 images',
          'film_00000001')

def test_three_lists_that_share_patients(tmp_path):
    with_labels(tmp_path)
    p = tmp_path/'images/val_list.txt'
    p.write_text(p.read_text()+'00000070_000.png\n')
    fails(tmp_path, '1 images are in val_list.txt and in test_list.txt (first: 00000070_000.png)')
    p = tmp_path/'images/test_list.txt'
    p.write_text(p.read_text().replace('00000070_000.png 0 0 1 0 0 0 0 0 0 0 0 0 0 0\n', ''))
    fails(tmp_path, '1 patients are in both lists (first: 70)')

def test_drop_empty(tmp_path):
    nih(tmp_path)
    p = tmp_path/'Data_Entry_2017_v2020.csv'
    p.write_text(p.read_text().replace('Hernia', 'Mass'))
    fails(tmp_path, 'Hernia is in none of the 156 training images', 'drop_empty=true')
    with pytest.warns(UserWarning, match='Hernia is in none .* and left out'): dls = load(tmp_path, drop_empty=True)
    assert dls.c==13 and list(dls.vocab)==[o for o in findings if o!='Hernia'] and dls.train_ds.y.shape[1]==13

def test_names_that_only_their_folders_tell_apart(tmp_path):
    "As CheXpert's, where each image is called view1_frontal.jpg: a missing one is missing, and not another patient's"
    for who in ('patient00001','patient00002'):
        (tmp_path/'train'/who/'study1').mkdir(parents=True)
        (tmp_path/'train'/who/'study1/view1_frontal.jpg').touch()
    names = [f'CheXpert-v1.0-small/train/patient0000{i}/study1/view1_frontal.jpg' for i in (1,2,3)]
    got = match_images(tmp_path, names)
    assert [o and Path(o).parts[-3] for o in got]==['patient00001','patient00002','']
    with pytest.raises(MemoError, match='2 names mean one image'): match_images(tmp_path, ['a.png','b.png','a.jpg'])
    assert len(walk_tree(tmp_path))==2
    os.mkfifo(tmp_path/'pipe.png')                              # reading it would never end
    (tmp_path/'nowhere.png').symlink_to(tmp_path/'no.png')      # a reader says of it that it cannot be read
    assert len(walk_tree(tmp_path))==3

@pytest.mark.parametrize('fit', ['crop','pad','squash'])
def test_how_a_film_becomes_square(fit, tmp_path):
    nih(tmp_path)
    for p in tmp_path.rglob('*.png'): Image.open(p).resize((16,8)).save(p)
    x = load(tmp_path, fit=fit).train_ds.x
    im = Image.open(x.paths[0])
    want = dict(crop=im.crop((4,0,12,8)), squash=im.resize((8,8), Image.Resampling.BILINEAR))
    if fit=='pad':
        assert (x[0][0,:2]==0).all() and (x[0][0,6:]==0).all() and x[0][0,2:6].any()
        inner = np.asarray(im.resize((8,4), Image.Resampling.BILINEAR))
        assert np.array_equal(x[0][0,2:6].numpy(), inner)
    else: assert np.array_equal(x[0][0].numpy(), np.asarray(want[fit]))
    assert np.array_equal(read_image(x.paths[0], 8, fit=fit), x[0][0].numpy()) and x[:1].fit==x.new([]).fit==fit
    keys = [load(tmp_path, fit=o).train_ds.x.fingerprint() for o in ('crop','pad','squash')]
    assert len({str(o) for o in keys})==3
