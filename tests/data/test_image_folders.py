"Folders of images for one label: layouts, draws, long tails, faults, and the commands"
import os
import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import Learner, set_seed
from hypothesis import given, settings, strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from helpers.errors import err
from memo.data.copies import resize_tree
from memo.data.image_folders import draw_parts, folder_table, image_folder
from memo.data.items import item_ids

@pytest.fixture(scope='module')
def tiles():
    d = load_digits()
    return [(d.images[d.target==c]*(255/16)).astype(np.uint8) for c in range(10)]

def fill(root, tiles, counts, names=('ant','bee','cat'), start=0, ext='jpg'):
    for c,n in enumerate(counts):
        (root/names[c]).mkdir(parents=True, exist_ok=True)
        for i in range(start, start+n): Image.fromarray(tiles[c][i]).save(root/names[c]/f'{i}.{ext}')

def dls_of(root, **kw): return image_folder(root, **dict(size=16, workers=0, bs=8, jitter=0, device='cpu') | kw)
def parts(dls): return [len(o.dataset) for o in dls.loaders]

def test_one_folder_a_class(tmp_path, tiles):
    fill(tmp_path, tiles, (40,20,10))
    dls = dls_of(tmp_path)
    assert list(dls.vocab)==['ant','bee','cat'] and dls.counts.tolist()==[28,14,7] and parts(dls)==[49,7,14]
    s = dls.split
    assert all(o.split('/')[0]==dls.vocab[c] for o,c in zip(s.image, s.label)) and s.image.is_unique
    assert len({*torch.cat([item_ids(o) for o in dls.loaders]).tolist()})==70
    x,y = dls.one_batch()
    assert x.shape==(8,3,16,16) and y.dtype==torch.long

@pytest.mark.parametrize('names', [('train','valid','test'), ('Train','val','Test'),
    ('training','validation','testing')])
def test_parts_that_are_there_are_kept(tmp_path, tiles, names):
    for i,(d,n) in enumerate(zip(names, (12,4,5))): fill(tmp_path/d, tiles, (n,n,n), start=20*i)
    dls = dls_of(tmp_path)
    assert parts(dls)==[36,12,15]
    assert {o.split('/')[0] for o in dls.split.image[dls.split.part=='valid']}=={names[1]}

def test_a_part_that_is_not_there_is_drawn(tmp_path, tiles):
    fill(tmp_path/'a'/'train', tiles, (20,20,20))
    fill(tmp_path/'a'/'test', tiles, (4,4,4), start=50)
    assert parts(dls_of(tmp_path, valid=.25))==parts(dls_of(tmp_path/'a', valid=.25, test=.9))==[45,15,12]
    os.rename(tmp_path/'a'/'test', tmp_path/'a'/'val')
    assert parts(dls_of(tmp_path, test=.5))==[30,12,30]

def test_endings_sub_folders_and_what_systems_leave(tmp_path, tiles):
    fill(tmp_path, tiles, (6,6,6), ext='PNG')
    fill(tmp_path, tiles, (2,0,0), start=90, ext='Jpeg')
    fill(tmp_path/'ant', tiles, (3,), names=('deep',), start=40)
    os.symlink(tmp_path/'ant', tmp_path/'ant'/'deep'/'again')
    fill(tmp_path, tiles, (1,), names=('__MACOSX',))
    fill(tmp_path, tiles, (1,), names=('.cache',))
    (tmp_path/'ant'/'._0.PNG').write_bytes(b'x')
    (tmp_path/'ant'/'notes.txt').write_text('x')
    df,root = folder_table(tmp_path)
    assert df.label.value_counts().to_dict()==dict(ant=11, bee=6, cat=6) and root==tmp_path

@settings(max_examples=20)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.sampled_from([0,.1,.3,.45]), st.sampled_from([0,.2,.5]),
       st.integers(0, 5))
def test_shares_are_stratified_seeded_and_leave_something_to_train_on(ns, valid, test, seed):
    df = pd.DataFrame([(f'{c}/{i}.jpg', c, '') for c,n in enumerate(ns) for i in range(n)],
                      columns=['image','label','part'])
    a,b = draw_parts(df, valid, test, seed),draw_parts(df.sample(frac=1, random_state=0), valid, test, seed)
    assert a.part.tolist()==b.sort_index().part.tolist(), 'the order of the rows matters'
    for c,n in enumerate(ns):
        got = a.part[a.label==c].value_counts()
        assert got.get('train', 0)>=1 and got.sum()==n
        if n>=10: assert abs(got.get('test', 0)-n*test)<=1 and abs(got.get('valid', 0)-n*valid)<=1

def test_a_group_is_in_one_part():
    df = pd.DataFrame([(f'{g}/{i}.jpg', g%3, '', f'p{g}') for g in range(60) for i in range(1+g%4)],
                      columns=['image','label','part','group'])
    got = draw_parts(df, .1, .2, 1)
    assert (got.groupby('group').part.nunique()==1).all()
    assert got.groupby('group').part.first().value_counts().to_dict()==dict(train=42, test=12, valid=6)

@pytest.mark.parametrize('kw,counts', [(dict(ratio=10), [30,9,3]), (dict(imb_factor=.1), [30,9,3]),
    (dict(ratio=10, imb_type='step'), [30,30,3]), (dict(ratio=5, n_max=20, imb_type='step'), [20,20,4])])
def test_a_long_tail_is_drawn_from_training_images_alone(tmp_path, tiles, kw, counts):
    for d,n in (('train',30),('val',4),('test',5)): fill(tmp_path/d, tiles, (n,n,n), start=n)
    a,b,c = (dls_of(tmp_path, **kw, **o) for o in (dict(many=20, few=5), dict(seed=5), dict(split_seed=5)))
    assert a.counts.tolist()==counts and parts(a)[1:]==[12,15] and (a.many,a.few)==(20,5)
    ids = [item_ids(o.train).tolist() for o in (a,b,c)]
    assert ids[0]==ids[1]!=ids[2]

def test_faults_of_folders(tmp_path, tiles):
    fill(tmp_path, tiles, (8,8,8))
    read = lambda **kw: err(dls_of, tmp_path, **kw)
    (tmp_path/'dog').mkdir()
    (tmp_path/'dog'/'a.heic').write_bytes(b'x')
    assert "1 of 4 class folders" in (m := read()) and 'first: dog' in m
    os.rename(tmp_path/'dog', tmp_path/'.dog')
    assert 'n_max: read with ratio' in read(n_max=5) and 'imb_type: read with ratio' in read(imb_type='step')
    assert 'class 0: 9 examples are asked for, 5 are there' in read(n_max=9, ratio=3)
    assert 'valid, test: shares below 1' in read(valid=.5, test=.5)
    (tmp_path/'bee'/'3.jpg').write_bytes(b'')
    assert '1 of 24 images cannot be read' in (m := read()) and 'bee/3.jpg is empty' in m
    assert 'no folder' in err(image_folder, tmp_path/'nothing') and 'has to be given' in err(image_folder)

@pytest.mark.parametrize('old,new', [(b'2.jpg', b'im\xe4ge.jpg'), (b'', b'../ren\xe9')])
def test_names_of_an_old_encoding_are_told_before_anything_is_written(tmp_path, tiles, old, new):
    fill(tmp_path, tiles, (4,4,4))
    bee = os.fsencode(tmp_path/'bee')
    os.rename(os.path.join(bee, old), os.path.join(bee, new))
    m = err(dls_of, tmp_path)
    assert 'are not UTF-8' in m and 'convmv' in m and '\\udce' in m and m.isascii()

def test_a_class_may_be_called_train(tmp_path, tiles):
    fill(tmp_path, tiles, (20,20,20), ('bus','train','car'))
    assert list(dls_of(tmp_path).vocab)==['bus','car','train']
    fill(tmp_path/'x', tiles, (9,9), ('train','test'))      # these are no two classes
    assert 'no class folders in' in err(dls_of, tmp_path/'x')

def test_grey_copies_are_told(tmp_path, tiles):
    fill(tmp_path/'a', tiles, (9,9,9))
    resize_tree(tmp_path/'a', tmp_path/'b', 20, workers=0)
    with pytest.warns(UserWarning, match='in grey; those with colours are in'): dls = dls_of(tmp_path/'b')
    assert dls.split.drop(columns='item').equals(dls_of(tmp_path/'a').split.drop(columns='item'))

def test_faults_of_parts(tmp_path, tiles):
    fill(tmp_path/'train', tiles, (8,8))
    fill(tmp_path/'test', tiles, (2,2,2))
    assert '1 classes have no image for training (first: cat), which has ant, bee' in err(dls_of, tmp_path)
    (tmp_path/'val').mkdir()
    assert 'no class folders in' in err(dls_of, tmp_path)
    (tmp_path/'valid').mkdir()
    assert 'val and valid are both folders' in err(dls_of, tmp_path)
    fill(tmp_path/'one', tiles, (8,))
    assert '2 classes or more are needed, found 1' in err(dls_of, tmp_path/'one')

yaml = """
name: own
seeds: [0]
data: {name: folder, root: %s, size: 16, workers: 0, jitter: 0, ratio: 10, imb_type: step, many: 20, few: 10}
memory: {size: 64, head: vote, k: 5}
train: {epochs: 1, bs: 16}
"""

@pytest.mark.usefixtures('unrendered')
def test_trains_and_is_evaluated_by_the_commands(tmp_path, tiles, tool):
    fill(tmp_path/'images', tiles, (60,60,60,60), names='abcd')
    (tmp_path/'own.yaml').write_text(yaml%'images')
    r = tool('memo-train', 'own.yaml', f'runs={tmp_path}/runs', cwd=tmp_path, render=False)
    assert r.returncode==0, r.stdout+r.stderr
    os.rename(tmp_path/'images', tmp_path/'moved')
    r = tool('memo-eval', tmp_path/'runs'/'own', '--data', tmp_path/'moved', cwd=tmp_path, render=False)
    assert r.returncode==0 and 'few' in r.stdout, r.stdout+r.stderr
