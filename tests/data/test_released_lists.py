"Places-LT, iNaturalist's released JSON and lists of one's own, in their authors' layouts, with digits for photographs"
import json
import numpy as np, pytest
from PIL import Image
from sklearn.datasets import load_digits
from helpers.errors import err
from memo.data.image_lists import image_lists, imagenet_lt, inat18, list_dls, places_lt

kw = dict(size=16, workers=0, bs=8, jitter=0, device='cpu')

@pytest.fixture(scope='module')
def tiles():
    d = load_digits()
    return [(d.images[d.target==c]*(255/16)).astype(np.uint8) for c in range(10)]

def save(root, tiles, rows):
    for i,(p,c) in enumerate(rows):
        (root/p).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tiles[int(c)][i]).save(root/p)

# lines of data/Places_LT/Places_LT_{train,val,test}.txt in facebookresearch/classifier-balancing (22370c6), which fit
# places365standard_easyformat.tar
places = dict(train='''train/airfield/00004851.jpg 0
train/airfield/00004596.jpg 0
train/airfield/00001417.jpg 0
train/airplane_cabin/00001673.jpg 1
train/airplane_cabin/00004479.jpg 1
train/airport_terminal/00001245.jpg 2
train/alcove/00003142.jpg 3
''', val='''train/airfield/00002049.jpg 0
train/airplane_cabin/00001895.jpg 1
train/airport_terminal/00003634.jpg 2
train/alcove/00002265.jpg 3
''', test='''val/airfield/Places365_val_00003597.jpg 0
val/airplane_cabin/Places365_val_00011396.jpg 1
val/airport_terminal/Places365_val_00019377.jpg 2
val/alcove/Places365_val_00033113.jpg 3
''')
# the lists of Liu et al. have other folders: data_256/a/airfield/, as the README of the code of Hayes and Kanan 2022
# (CoLLAs, "Online Continual Learning for Embedded Devices") quotes their first line; the rest is as above
original = {k:o.replace('train/a', 'data_256/a/a') for k,o in places.items()}

@pytest.mark.parametrize('lists', [places,original], ids=['easyformat','data_256'])
def test_places_lt(tmp_path, tiles, lists):
    save(tmp_path, tiles, [l.split() for o in lists.values() for l in o.splitlines()])
    for k,o in lists.items(): (tmp_path/f'Places_LT_{k}.txt').write_text(o)
    dls = places_lt(tmp_path, **kw)
    assert dls.counts.tolist()==[3,2,1,1] and [len(o.dataset) for o in dls.loaders]==[7,4,4]
    assert dls.split.image.tolist()==[l.split()[0] for o in lists.values() for l in o.splitlines()]
    assert (dls.many,dls.few,dls.c)==(100,20,4)
    (tmp_path/'Places_LT_val.txt').unlink()
    assert 'Places_LT_val.txt is missing' in err(places_lt, tmp_path, **kw)

# "Annotation Format" of 2018/README.md in visipedia/inat_comp (1509ec0): all fields, in its order
def inat(rows, first=1):
    "rows: file_name, category"
    return dict(info=dict(year=2018, version='1.0', description='', contributor='', url='', date_created=''),
        images=[dict(id=first+i, width=800, height=600, file_name=p, license=1, rights_holder='x')
                for i,(p,_) in enumerate(rows)],
        categories=[dict(id=c, name=str(5000-c), supercategory='Plantae', kingdom='', phylum='', order='', family='',
                         genus='') | {'class':''} for c in (2,0,1)],
        annotations=[dict(id=first+i, image_id=first+i, category_id=c) for i,(_,c) in reversed([*enumerate(rows)])],
        licenses=[dict(id=1, name='', url='')])

@pytest.fixture
def released(tmp_path, tiles):
    "`train_val2018/super category/category/image.jpg`"
    rows = [(f'train_val2018/Plantae/{c}/{i:032x}.jpg', c) for i,c in enumerate([0]*20+[1]*8+[2]*4+[0,1,2]*3)]
    save(tmp_path, tiles, rows)
    for k,o,n in (('train',rows[:32],1),('val',rows[32:],500)):
        (tmp_path/f'{k}2018.json').write_text(json.dumps(inat(o, n)))
    return tmp_path,rows

def test_inaturalists_json(released):
    root,rows = released
    dls = inat18(root, valid=.25, **kw)
    assert dls.counts.tolist()==[15,6,3] and [len(o.dataset) for o in dls.loaders]==[24,8,9]
    assert dict(zip(dls.split.image, dls.split.label))==dict(rows)
    assert list(dls.vocab)==['5000','4999','4998']
    # "Un-obfuscated names are released. Simply replace the `categories` list [...] with the list found in this file"
    (root/'categories.json').write_text(json.dumps([dict(id=i, name=f'species {i}') for i in range(3)]))
    assert list(inat18(root, **kw).vocab)==[f'species {i}' for i in range(3)]
    for k in ('train','val'):       # data/iNaturalist18/gen_lists.py in classifier-balancing: in the images' order
        d = json.loads((root/f'{k}2018.json').read_text())
        of = {o['image_id']:o['category_id'] for o in d['annotations']}
        (root/f'iNaturalist18_{k}.txt').write_text(''.join(f"{o['file_name']} {of[o['id']]}\n" for o in d['images']))
        (root/f'{k}2018.json').unlink()
    assert inat18(root, valid=.25, **kw).split.equals(dls.split), 'others are drawn for validation'

@pytest.mark.parametrize('change', [lambda d: d.pop('annotations'), lambda d: d['images'].pop(),
    lambda d: d['annotations'].clear(), lambda d: d['annotations'][3].update(category_id=-1),
    lambda d: d['annotations'][3].update(category_id=None), lambda d: d['annotations'][3].update(category_id=1.5),
    lambda d: d['annotations'].append(dict(image_id=1, category_id=2)),
    lambda d: d['images'].append(d['images'][0] | dict(file_name='other.jpg')),
    lambda d: d.update(annotations=3), lambda d: d.update(images={'a':1})])
def test_json_of_another_kind_is_one_line(released, change):
    p = released[0]/'train2018.json'
    d = json.loads(p.read_text())
    change(d)
    p.write_text(json.dumps(d))
    assert 'train2018.json' in err(inat18, released[0], **kw)

@pytest.mark.parametrize('text', ['', '[1]', '{"images": 3', '['*100000, 'null'])
def test_files_that_are_no_such_json(released, text):
    (released[0]/'train2018.json').write_text(text)
    assert 'train2018.json' in err(inat18, released[0], **kw)

@pytest.fixture
def own(tmp_path, tiles):
    rows = [(f'im/{i}.png', c) for i,c in enumerate([0]*20+[1]*20+[2]*20+[0,1,2]*3)]
    save(tmp_path, tiles, rows)
    def write(k, rows, label=lambda c: c):
        (tmp_path/f'{k}.txt').write_text(''.join(f'{p} {label(c)}\n' for p,c in rows))
    write('train', rows[:60]); write('test', rows[60:])
    return tmp_path,rows,write

def test_lists_of_ones_own(own):
    root,rows,write = own
    dls = image_lists(root, valid=.2, **kw)
    assert dls.counts.tolist()==[16]*3 and list(dls.vocab)==[0,1,2] and [len(o.dataset) for o in dls.loaders]==[48,12,9]
    write('valid', rows[57:60]); write('train', rows[:57])
    assert [len(o.dataset) for o in image_lists(root, **kw).loaders]==[57,3,9]
    assert 'has to be given' in err(image_lists) and 'none.txt is missing' in err(image_lists, root, 'none.txt')
    assert 'share of each class' in err(image_lists, root, valid=1.5)

def test_lists_written_on_windows(own):
    root,rows,write = own
    plain = image_lists(root, valid=.2, **kw)
    for k,r in dict(train=rows[:60], test=rows[60:]).items():
        write(k, [(p.replace('/', '\\') if c else f'.\\{p}', c) for p,c in r])
    assert image_lists(root, valid=.2, **kw).split.equals(plain.split)      # ids and draws as well

@pytest.mark.parametrize('how,counts', [(dict(ratio=4), [16,8,4]), (dict(imb_factor=.25, imb_type='step'), [16,16,4]),
    (dict(ratio=4, n_max=8, imb_type='step'), [8,8,2])])
def test_a_long_tail_drawn_from_ones_own_lists(own, how, counts):
    a,b,c = (image_lists(own[0], valid=.2, **how, **o, **kw) for o in ({}, dict(seed=3), dict(split_seed=3)))
    assert a.counts.tolist()==counts and [len(o.dataset) for o in a.loaders][1:]==[12,9]
    same = [set(o.split.image[o.split.part=='train']) for o in (a,b,c)]
    assert same[0]==same[1]!=same[2]
    assert 'n_max: read with ratio' in err(image_lists, own[0], valid=.2, n_max=4, **kw)
    assert list_dls('train.txt', .2, 'test.txt', own[0], **how, **kw).split.equals(a.split)

def test_official_sets_have_no_tail_drawn_from_them(own):
    for f in (places_lt,imagenet_lt,inat18): assert f'ratio: {f.__name__} does not read it' in err(f, own[0], ratio=10)

@pytest.mark.parametrize('label,cure', [(lambda c: c+1, 'they start at 1: take 1 from each'),
    (lambda c: 2*c, '0, 1, 2... without gaps'), (lambda c: 1000*c, 'data: {name: csv}'),
    (lambda c: c+70, 'start at 70')])
def test_numbers_that_do_not_run_from_0_are_told_with_the_cure(own, label, cure):
    root,rows,write = own
    write('train', rows[:60], label); write('test', rows[60:], label)
    m = err(image_lists, root, valid=.2, **kw)
    assert 'train.txt: labels run to' in m and cure in m

yaml = """
name: own
seeds: [0]
data: {name: lists, root: %s, valid: .2, size: 16, workers: 0, jitter: 0, ratio: 4, imb_type: step, many: 10, few: 10}
memory: {size: 64, head: vote, k: 5}
train: {epochs: 1, bs: 16}
"""

@pytest.mark.usefixtures('unrendered')
def test_trains_and_is_evaluated_by_the_commands(own, tmp_path, tool):
    (tmp_path/'own.yaml').write_text(yaml%own[0])
    r = tool('memo-train', 'own.yaml', f'runs={tmp_path}/runs', cwd=tmp_path, render=False)
    assert r.returncode==0, r.stdout+r.stderr
    r = tool('memo-eval', tmp_path/'runs'/'own', cwd=tmp_path, render=False)
    assert r.returncode==0 and 'few' in r.stdout, r.stdout+r.stderr
