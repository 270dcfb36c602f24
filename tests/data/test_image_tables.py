"A CSV of images for one label: how people write such tables, draws, long tails, faults, and the commands"
import os
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from sklearn.datasets import load_digits
from helpers.errors import err
from memo.data.image_tables import class_texts, csv_table, image_csv, read_rows
from memo.data.items import item_ids

@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    root,d = tmp_path_factory.mktemp('photos'),load_digits()
    for sub in ('part_1','part_2'): (root/sub).mkdir()
    for i in range(120):
        im = Image.fromarray((d.images[i]*(255/16)).astype(np.uint8))
        im.save(root/f'part_{1+i%2}'/f'IMG_{i:03}.{"JPG" if i%3 else "png"}')
    return root

def names(root): return sorted((o.name for o in root.rglob('IMG_*')), key=lambda o: o[:7])
def rows(photos, c=3, **cols):
    n = names(photos)
    return pd.DataFrame(dict(image=n, label=[f'c{i%c}' for i in range(len(n))]) | cols)
def dls_of(root, df, tmp_path, sep=',', **kw):
    df.to_csv(tmp_path/'t.csv', index=False, sep=sep)
    return image_csv(**dict(csv=tmp_path/'t.csv', root=root, size=16, workers=0, bs=8, jitter=0, device='cpu') | kw)
def parts(dls): return [len(o.dataset) for o in dls.loaders]

# HAM10000_metadata.csv as Kaggle's kmader/skin-cancer-mnist-ham10000 has it (beside HAM10000_images_part_1, _part_2),
# and the newer one of doi:10.7910/DVN/DBW86T, which goes round with commas and with tabs. The files were not at hand:
# header and first row are those that several public repositories quote of each
ham = ['lesion_id,image_id,dx,dx_type,age,sex,localization\nHAM_0000118,ISIC_0027419,bkl,histo,80.0,male,scalp',
       'lesion_id,image_id,dx,dx_type,age,sex,localization,dataset\n'
       'HAM_0000118,ISIC_0027419,bkl,histo,80.0,male,scalp,vidir_modern']

@pytest.mark.parametrize('sep', [',','\t'])
@pytest.mark.parametrize('quoted', ham, ids=['kaggle','dataverse'])
def test_ham10000s_table(photos, tmp_path, quoted, sep):
    head,row = quoted.split('\n')
    def line(i):
        v = dict(zip(head.split(','), row.split(',')))
        v |= dict(lesion_id=f'HAM_{i//2:07}', image_id=f'IMG_{i:03}', dx=('nv','mel','bkl')[i//2%3])
        return ','.join((v | (dict(age='') if i%9==0 else {})).values())
    (tmp_path/'m.csv').write_text('\n'.join([head,*map(line, range(120))]).replace(',', sep))
    dls = image_csv(tmp_path/'m.csv', photos, 'image_id', 'dx', group='lesion_id', size=16, workers=0, device='cpu')
    assert list(dls.vocab)==['bkl','mel','nv'] and sum(parts(dls))==120
    s = dls.split.assign(lesion=dls.split.image.str.extract(r'IMG_(\d+)')[0].astype(int)//2)
    assert (s.groupby('lesion').part.nunique()==1).all() and s.part.value_counts().to_dict()=={
        'train':84, 'test':24, 'valid':12}

@pytest.mark.parametrize('write', [lambda p: p, lambda p: '.\\'+p.replace('/', '\\'), lambda p: f'D:\\data\\{p[7:]}',
    lambda p: p[7:].split('.')[0], lambda p: p.split('.')[0]], ids=['path','windows','another disk','stem','no ending'])
@pytest.mark.parametrize('sep', [',',';','\t'])
def test_images_are_found_as_people_name_them(photos, tmp_path, write, sep):
    there = [o.relative_to(photos).as_posix() for o in sorted(photos.rglob('IMG_*'), key=lambda o: o.name[:7])]
    df = rows(photos).assign(image=[write(o) for o in there])
    df.to_csv(tmp_path/'t.csv', index=False, sep=sep)
    got = csv_table(tmp_path/'t.csv', photos, dict(image='image', label='label'))
    assert got.image.tolist()==there

def test_whole_paths_and_the_tables_own_folder(photos, tmp_path):
    df = rows(photos).assign(image=[str(o) for o in sorted(photos.rglob('IMG_*'), key=lambda o: o.name[:7])])
    a = dls_of(tmp_path, df, tmp_path)
    (photos/'t.csv').write_text(rows(photos).to_csv(index=False))
    b,c = (image_csv(csv=o, size=16, workers=0, device='cpu', **kw) for o,kw in ((photos/'t.csv', {}),
                                                                                 ('t.csv', dict(root=photos))))
    assert parts(a)==parts(b)==[84,12,24] and b.split.equals(c.split)

@pytest.mark.parametrize('labels,vocab', [(['1','2','3'], ['1','2','3']), (['7','30','100'], ['7','30','100']),
    (['1.0','2','3.0'], ['1','2','3']), (['0','1','2'], ['0','1','2']), (['2','x','10'], ['10','2','x']),
    (['None','NA','yes'], ['NA','None','yes'])])
def test_labels_are_names(photos, tmp_path, labels, vocab):
    df = rows(photos)
    dls = dls_of(photos, df.assign(label=[labels[i%3] for i in range(120)]), tmp_path)
    assert list(dls.vocab)==vocab and dls.c==3 and dls.counts.tolist()==[28]*3
    i = int(dls.split.image[0].split('IMG_')[1][:3])
    assert dls.vocab[dls.split.label[0]]==class_texts(pd.Series(labels))[i%3]

@pytest.mark.parametrize('words', ['train valid test', 'Training Val TESTING', 'train validation test'])
def test_a_column_of_parts(photos, tmp_path, words):
    words = words.split()
    df = rows(photos, split=[words[0 if i<80 else 1 if i<100 else 2] for i in range(120)])
    assert parts(dls_of(photos, df, tmp_path, split='split'))==[80,20,20]
    assert parts(dls_of(photos, df[df.split!=words[1]], tmp_path, split='split', valid=.2))==[65,15,20]
    df = rows(photos, is_valid=[i>=90 for i in range(120)])
    assert parts(dls_of(photos, df, tmp_path, split='is_valid', test=.5))==[45,30,45]

def test_the_order_of_rows_and_more_rows_change_little(photos, tmp_path):
    df = rows(photos)
    a,b,c = (dls_of(photos, o, tmp_path).split.set_index('image').part
             for o in (df, df.sample(frac=1, random_state=3), df[:110]))
    assert a.sort_index().equals(b.sort_index()) and (a[c.index]==c).mean()>.8
    other = dls_of(photos, df, tmp_path, split_seed=1).split.set_index('image').part
    assert (a[other.index]==other).mean()<.8
    ids = [item_ids(dls_of(photos, o, tmp_path).train) for o in (df, pd.concat([df, df[:9]]))]
    assert torch.equal(*ids), 'a row that comes twice counts once'

def test_a_long_tail_is_drawn(photos, tmp_path):
    kw = dict(ratio=7, imb_type='step', many=20, few=10)
    dls = dls_of(photos, rows(photos), tmp_path, **kw)
    assert dls.counts.tolist()==[28,28,4] and parts(dls)[1:]==[12,24] and (dls.many,dls.few)==(20,10)

def test_faults_of_tables(photos, tmp_path):
    df = rows(photos)
    def read(df, **kw): return err(dls_of, photos, df, tmp_path, **kw)
    assert "label: " in (m := read(df, label='dx')) and "no column 'dx'; it has image, label" in m
    assert "1 of 120 rows" in (m := read(df.assign(label=[None, *df.label[1:]]))) and 'line 2' in m
    assert "2 of 120 rows" in (m := read(df.assign(image=[*df.image[:-2], '', 'nan']))) and 'line 120, line 121' in m
    assert '2 of 120 are not in' in read(df.assign(image=['x.jpg', 'y', *df.image[2:]]))
    m = read(pd.concat([df, df[:2].assign(label='c2'), df[5:6]]))
    assert 'label: 2 images have more than one' in m and 'has c0, c2' in m
    assert 'is it the column of the classes?' in read(df.assign(label=df.image))
    assert 'not whole (first: 0.5)' in read(df.assign(label=[.5, *range(119)]))
    assert '5 are below 0 (first: -1)' in read(df.assign(label=[-1]*5+[1]*115))
    assert '2 classes or more are needed' in read(df.assign(label='a'))
    assert "found 'holdout' in 1 rows" in read(df.assign(s=['holdout',*['train']*119]), split='s')
    m = read(df.assign(s=['train','test']*60, g=['a','a',*map(str, range(118))]), split='s', group='g')
    assert 'group: 1 have images in more than one part (first: a)' in m
    m = read(df.assign(s=['train']*100+['test']*20, label=['a','b']*50+['z']*20), split='s')
    assert '1 classes have no image for training (first: z), which has a, b' in m
    assert 'may be one of several files' not in m

def test_a_column_that_is_there_twice(photos, tmp_path):
    "pandas takes the first; one that nobody asks for may be there as often as it likes"
    df = rows(photos, note='x')
    df.insert(1, 'label ', 'other')
    assert parts(dls_of(photos, df.rename(columns={'label ':'note'}), tmp_path))==[84,12,24]
    for o in ('label',' label'):
        m = err(dls_of, photos, df.rename(columns={'label ':o}), tmp_path)
        assert f"{tmp_path/'t.csv'}: column 'label' is there more than once" in m, m

def test_names_of_several_files(tmp_path):
    for d in 'ab':
        (tmp_path/d).mkdir()
        Image.fromarray(np.zeros((8,8), np.uint8)).save(tmp_path/d/'1.png')
    (tmp_path/'t.csv').write_text('image,label\n1,x\n')
    cols = dict(image='image', label='label')
    assert '1 images are there twice (first: a/1.png and b/1.png)' in err(csv_table, tmp_path/'t.csv', tmp_path, cols)
    (tmp_path/'t.csv').write_text('image,label\na/1,x\nb/1.png,y\n')
    assert csv_table(tmp_path/'t.csv', tmp_path, dict(image='image', label='label')).label.tolist()==['x','y']

def test_files_that_are_no_tables(tmp_path, photos):
    cols = dict(image='image', label='label')
    for p in (tmp_path/'t.csv', tmp_path): assert f'csv: no file {p};' in err(read_rows, p, cols)
    for b in (b'', b'\xff\xfe\0a', b'\n\n'):
        (tmp_path/'t.csv').write_bytes(b)
        assert 'cannot read' in (m := err(read_rows, tmp_path/'t.csv', cols)) or 'no column' in m
    (tmp_path/'t.csv').write_text('image,label\n')
    assert 'has no rows' in err(read_rows, tmp_path/'t.csv', cols)
    (tmp_path/'t.csv').write_text('image,label\na,b\n')
    assert 'no folder' in err(image_csv, tmp_path/'t.csv', tmp_path/'no') and 'has to be given' in err(image_csv)

yaml = """
name: own
seeds: [0]
data: {name: csv, csv: t.csv, root: %s, split: split, size: 16, workers: 0, jitter: 0, ratio: 5, many: 20, few: 5}
memory: {size: 64, head: vote, k: 5}
train: {epochs: 1, bs: 16}
"""

@pytest.mark.usefixtures('unrendered')
def test_trains_and_is_evaluated_by_the_commands(photos, tmp_path, tool):
    rows(photos, split=['train']*90+['test']*30).to_csv(photos/'t.csv', index=False)
    (tmp_path/'own.yaml').write_text(yaml%photos)
    r = tool('memo-train', 'own.yaml', f'runs={tmp_path}/runs', cwd=tmp_path, render=False)
    assert r.returncode==0, r.stdout+r.stderr
    r = tool('memo-eval', tmp_path/'runs'/'own', cwd=tmp_path, render=False)
    assert r.returncode==0 and 'many' in r.stdout, r.stdout+r.stderr

def test_a_table_in_the_working_folder(photos, tmp_path, monkeypatch):
    "Is found there without root, as a folder of images is; else in the settings' data folder"
    paths = [os.path.relpath(o, tmp_path) for o in sorted(photos.rglob('IMG_*'), key=lambda o: o.name[:7])]
    kw = dict(size=8, bs=4, workers=0, device='cpu')
    rows(photos).assign(image=paths).to_csv(tmp_path/'here.csv', index=False)
    monkeypatch.chdir(tmp_path)
    a = image_csv('here.csv', **kw)
    assert item_ids(a.train_ds).tolist()==item_ids(image_csv('here.csv', root=tmp_path, **kw).train_ds).tolist()
    (tmp_path/'data').mkdir()
    (tmp_path/'here.csv').rename(tmp_path/'data/there.csv')
    assert f"no file {tmp_path/'data/here.csv'}" in err(image_csv, 'here.csv', **kw)
    rows(photos).assign(image=[str(tmp_path/o) for o in paths]).to_csv(tmp_path/'data/there.csv', index=False)
    assert parts(image_csv('there.csv', **kw))==parts(a)

def test_a_table_here_and_its_images_elsewhere(photos, tmp_path, monkeypatch):
    "It is the one below root where there is one, else the one in the working folder"
    kw = dict(root=photos, size=8, bs=4, workers=0, device='cpu')
    rows(photos).to_csv(tmp_path/'mine.csv', index=False)
    monkeypatch.chdir(tmp_path)
    assert sum(parts(image_csv('mine.csv', **kw)))==120
    (photos/'mine.csv').write_text(rows(photos)[:60].to_csv(index=False))
    try: assert sum(parts(image_csv('mine.csv', **kw)))==60
    finally: (photos/'mine.csv').unlink()
    assert f"no file {photos/'yours.csv'}" in err(image_csv, 'yours.csv', **kw)

def test_groups_of_the_table_are_a_memorys(photos, tmp_path):
    "A patient's images do not find one another, in long-tailed draws too, and a patient can be forgotten"
    from fastai.vision.all import Learner, xresnet18
    from memo.all import MemoryCallback, SlotBank
    from memo.core import MemoError
    who = [f'p{i//3}' for i in range(len(rows(photos)))]
    dls = dls_of(photos, rows(photos, patient=who), tmp_path, group='patient', size=8, ratio=3)
    for dl in dls.loaders:
        stems = [os.path.basename(o) for o in dl.dataset.x.paths.tolist()]
        of = dict(zip((os.path.basename(o) for o in rows(photos).image), who))
        same = [(a==b) for a in dl.dataset.groups.tolist() for b in dl.dataset.groups.tolist()]
        assert same==[of[a]==of[b] for a in stems for b in stems]
    bank = SlotBank(200, policy='fifo')
    learn = Learner(dls, xresnet18(n_out=3), cbs=MemoryCallback(bank, head='vote', group='patient'))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.)
    assert (bank.groups==dls.train_ds.groups[0]).any()
    number = int(dls.train_ds.groups[0])
    one,had = of[os.path.basename(dls.train_ds.x.paths.tolist()[0])],int((bank.groups==number).sum())
    gone = learn.memory.forget(group=one, where=[])
    assert gone.rows['memory']==had>0 and not (bank.groups==number).any()
    with pytest.raises(MemoError, match='nobody knows'): learn.memory.forget(group='p999', where=[])
    read = dls_of(photos, rows(photos, patient=who), tmp_path, group='patient', size=8, ratio=3, preload=True)
    assert all(torch.equal(a.dataset.groups, b.dataset.groups) for a,b in zip(dls.loaders, read.loaders))
