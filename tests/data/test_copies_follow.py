"Resized copies follow their sources: replaced, re-windowed, deleted, half-written, two commands at once"
import json, os, subprocess, sys, threading
import numpy as np, pytest
from PIL import Image
from fastai.vision.all import Path
from sklearn.datasets import load_sample_images
from memo.cli import memo_cache
from memo.core import MemoError
from memo.data import copies as m
from memo.data.copies import copied_from, resize_tree
from memo.data.image_trees import cache_info, image_files
from memo.data.images import read_image

photo = load_sample_images().images[0][:400,:600]

@pytest.fixture
def tree(tmp_path):
    "Tiles of a photograph in the layout of ChestX-ray14, with a table"
    for i in range(6):
        d = tmp_path/f'src/images_00{1+i//3}/images'
        d.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo[:200,i*60:i*60+200,1]).save(d/f'{i}.png')
    (tmp_path/'src/Data_Entry_2017.csv').write_text('Image Index\n')
    (tmp_path/'src/old_list.txt').write_text('0.png')
    return tmp_path/'src'

def copy(tree, **kw): return resize_tree(tree, tree.parent/'out', 32, **(dict(workers=0) | kw))
def find_images(root): return {os.path.basename(o):o for o in image_files(root)}
def same(tree):
    a,b = find_images(tree),find_images(tree.parent/'out')
    return [*a]==[*b] and all(np.array_equal(read_image(a[k], 32), read_image(b[k], 32)) for k in a)
def times(tree): return {k:os.stat(o).st_mtime_ns for k,o in find_images(tree.parent/'out').items()}

def anonymised(p):
    a = np.asarray(Image.open(p)).copy()
    a[:60,:60] = 0
    Image.fromarray(a).save(p)
def windowed(p): Image.fromarray(np.clip(np.asarray(Image.open(p)).astype(int)*2-100, 0, 255).astype(np.uint8)).save(p)
@pytest.mark.parametrize('change', [anonymised, windowed])
def test_a_replaced_source_is_copied_again(tree, change):
    assert copy(tree)['made']==6 and copy(tree)['made']==0
    was = times(tree)
    change(find_images(tree)['2.png'])
    assert not same(tree)
    r = copy(tree)
    assert (r['made'],r['removed'],r['whole'])==(1,0,True) and same(tree)
    now = times(tree)
    assert {k for k in was if was[k]!=now[k]}=={'2.png'} and copy(tree)['made']==0

def test_so_is_one_of_the_same_size_with_its_time_put_back(tree):
    p = find_images(tree)['3.png']
    a = np.asarray(Image.open(p))
    Image.fromarray(a).save(p, compress_level=0)
    copy(tree)
    s = os.stat(p)
    Image.fromarray(255-a).save(p, compress_level=0)
    os.utime(p, ns=(s.st_atime_ns, s.st_mtime_ns))
    assert (os.stat(p).st_size,os.stat(p).st_mtime_ns)==(s.st_size,s.st_mtime_ns)
    assert copy(tree)['made']==1 and same(tree)

def test_a_source_swapped_for_another_by_name(tree):
    copy(tree)
    a,b = (find_images(tree)[o] for o in ('0.png','1.png'))
    os.rename(a, tree/'x'); os.rename(b, a); os.rename(tree/'x', b)
    assert copy(tree)['made']==2 and same(tree)

def test_copies_of_deleted_sources_go(tree):
    "And of one that moved to another part; tables too; what somebody else put there is named, and stays"
    copy(tree)
    os.remove(find_images(tree)['1.png'])
    os.rename(find_images(tree)['0.png'], tree/'images_002/images/0.png')
    os.remove(tree/'old_list.txt')
    out = tree.parent/'out'
    (out/'notes.txt').write_text('mine')
    r = copy(tree)
    assert (r['removed'],r['made'])==(2,1) and same(tree) and len(find_images(out))==5
    assert not (out/'old_list.txt').exists() and (out/'notes.txt').read_text()=='mine'
    Image.fromarray(photo[:32,:32,0]).save(out/'images_001/images/own.png')
    with pytest.raises(MemoError, match=r'holds images that .* does not \(first: own.png\)'): copy(tree)
    assert (out/'images_001/images/own.png').exists()

def test_half_written_and_changed_copies(tree):
    copy(tree)
    ps = [*find_images(tree.parent/'out').values()]
    b = Path(ps[0]).read_bytes()
    Path(ps[0]).write_bytes(b[:len(b)//2])                                  # cut off
    Image.fromarray(photo[:32,:32,0]).save(ps[1])                           # somebody's, of the same size
    Path(f'{ps[2]}.99999.part').write_bytes(b'half')                        # of a killed process
    assert copy(tree)['made']==2 and same(tree) and not [*(tree.parent/'out').rglob('*.part')]

def test_check_compares_every_pixel(tree):
    copy(tree)
    p = find_images(tree.parent/'out')['4.png']
    info = m.PngInfo()
    info.add_text('memo', copied_from(p))
    Image.fromarray(255-read_image(p, 32)).save(p, pnginfo=info)            # says the right thing, has other pixels
    assert copy(tree)['made']==0 and not same(tree)
    assert copy(tree, check=True)['made']==1 and same(tree) and copy(tree, check=True)['made']==0

def test_copies_of_an_older_version_are_made_again(tree):
    copy(tree)
    out = tree.parent/'out'
    for p in find_images(out).values(): Image.open(p).save(p)               # without a word of their source
    d = json.loads((out/'cache.json').read_text())
    (out/'cache.json').write_text(json.dumps({k:d[k] for k in ('size','source','images','whole')}))
    assert copy(tree)['made']==6 and same(tree)

def test_a_brighter_image_changes_the_depth_of_all(tree):
    "Twelve bits until one of sixteen comes: all are scaled alike"
    for p in find_images(tree).values():
        Image.fromarray(np.asarray(Image.open(p)).astype(np.uint16)*16).save(p)
    assert copy(tree)['depth']==12
    got = read_image(find_images(tree.parent/'out')['2.png'], 32).astype(int)
    Image.fromarray(photo[:200,120:320,1]).save(tree.parent/'eight.png')
    assert np.array_equal(got, read_image(tree.parent/'eight.png', 32))
    p = find_images(tree)['5.png']
    Image.fromarray(np.asarray(Image.open(p))*16).save(p)
    r = copy(tree)
    assert (r['depth'],r['made'])==(16,6) and copy(tree)['made']==0
    a = [read_image(o, 32) for o in find_images(tree.parent/'out').values()]
    assert a[5].max()>150 and max(o.max() for o in a[:5])<16

def test_broken_sources_are_all_named_and_the_others_copied(tree, capsys):
    for k in ('1.png','4.png'):
        p = Path(find_images(tree)[k])
        b = p.read_bytes()
        p.write_bytes(b[:len(b)//2]+bytes(200)+b[len(b)//2+200:])
    first = r'^2 of 6 images cannot be read \(first: .*1.png is .*the others are'
    with pytest.raises(MemoError, match=first): copy(tree)
    out = tree.parent/'out'
    assert len(find_images(out))==4 and not cache_info(out)['whole'] and len(str(out))<200
    with pytest.raises(MemoError, match='2 of 6 images are broken'): memo_cache(tree, check=True, workers=0)
    said = capsys.readouterr().out.splitlines()
    assert len(said)==2 and '1.png: damaged in the middle' in said[0] and '4.png: ' in said[1]
    with pytest.raises(MemoError, match='give the folder of the copy'): memo_cache(tree)

def test_two_threads_at_once(tree, monkeypatch):
    "The second is told, and harms nothing"
    go,real = threading.Event(),m.copy_image
    def slow(*a, **kw):
        go.wait(20)
        return real(*a, **kw)
    monkeypatch.setattr(m, 'copy_image', slow)
    got = []
    t = threading.Thread(target=lambda: got.append(copy(tree)))
    t.start()
    while not (tree.parent/'out/cache.json').exists(): pass
    for size in (32,16):
        with pytest.raises(MemoError, match='another process copies into it|holds copies of 32'):
            resize_tree(tree, tree.parent/'out', size, workers=0)
    go.set()
    t.join()
    assert got[0]['made']==6 and same(tree)

def test_two_commands_at_once(tree):
    "One of them, or both, copy; what is there in the end is whole"
    cmd = [sys.executable, '-m', 'memo.cli', 'cache', str(tree), str(tree.parent/'out'), '--size', '32',
           '--workers', '1']
    env = os.environ | dict(PYTHONPATH=os.getcwd(), OMP_NUM_THREADS='1')
    ps = [subprocess.Popen(cmd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outs = [p.communicate(timeout=300) for p in ps]
    assert 0 in [p.returncode for p in ps]
    for p,(o,e) in zip(ps, outs):
        assert p.returncode==0 or 'another process copies into it' in e and 'Traceback' not in e
    assert same(tree) and cache_info(tree.parent/'out')['whole']

def test_a_folder_that_cannot_be_written(tree, tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(MemoError, match='cannot make the folder'): resize_tree(tree, tmp_path/'file'/'out', 32, 0)
