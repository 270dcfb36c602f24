"Image files as people have them: bytes behind the end, broken in the middle, other formats, more than 8 bits of grey"
import numpy as np, pytest, torch
from PIL import Image
from fastai.vision.all import Learner, Path, accuracy, load_learner, nn
from sklearn.datasets import load_digits, load_sample_images
from memo.core import MemoError
from memo.data.image_lists import list_dls
from memo.data.images import (FileImages, broken_images, check_folder, check_images, image_depth, image_fault,
                              read_image, whole_fault)
from memo.data.longtail import read_fashion

photos = load_sample_images().images

def saved(p, a, **kw):
    Image.fromarray(a).save(p, **kw)
    return p

# bytes behind the end
@pytest.mark.parametrize('tail', [b'SEFT'*500, b'\0'*70, b'\xff\xd8\xff\xe1 a second picture, cut'*9],
                         ids=['phone','zeros','mpo'])
@pytest.mark.parametrize('kind', ['jpg','png','gif'])
def test_bytes_behind_the_end_are_no_fault(tmp_path, kind, tail):
    p = saved(tmp_path/f'a.{kind}', photos[0])
    want = read_image(p, 64, 3)
    p.write_bytes(p.read_bytes()+tail)
    check_images([p], 'x')
    assert whole_fault(p) is None and np.array_equal(read_image(p, 64, 3), want)

@pytest.mark.parametrize('kind', ['jpg','png','gif','webp','bmp','tif'])
def test_cut_files_are_found_before_a_training(tmp_path, kind):
    b = saved(tmp_path/f'a.{kind}', photos[1][:200,:300]).read_bytes()
    p = tmp_path/f'b.{kind}'
    for share in (.2, .5, .8, .97):
        p.write_bytes(b[:int(len(b)*share)])
        assert image_fault(p), share
    p.write_bytes(b[:len(b)//2]+b'SEFT'*100)       # cut, and something behind
    assert image_fault(p) or kind in ('tif','webp','bmp') and whole_fault(p)

# broken in the middle
@pytest.mark.parametrize('source', ['fashion','digits','photo'])
def test_every_changed_byte_of_a_png_is_found_by_reading_all(tmp_path, source):
    a = dict(fashion=lambda: read_fashion(None, 't10k')[0][0,0].numpy(), photo=lambda: photos[0][:90,:120],
             digits=lambda: (load_digits().images[0]*15).astype(np.uint8))[source]()
    b = saved(tmp_path/'a.png', a).read_bytes()
    p,n = tmp_path/'b.png',0
    for at in range(33, len(b)-12, max(1, len(b)//150)):
        p.write_bytes(b[:at]+bytes([b[at]^0x41])+b[at+1:])
        assert whole_fault(p), at
        n += image_fault(p) is None
    assert n>50                                     # which the two ends do not show

def test_all_of_a_folder(tmp_path):
    for i in range(70): saved(tmp_path/f'{i:02d}.png', photos[0][i:i+20,:20])
    for i in (3,40):
        p = tmp_path/f'{i:02d}.png'
        b = p.read_bytes()
        p.write_bytes(b[:len(b)//2]+b'\0\0\0\0'+b[len(b)//2+4:])
    for w in (0,2):
        n,bad = check_folder(tmp_path, w)
        assert n==70 and [Path(o).name for o,_ in bad]==['03.png','40.png']
    assert not broken_images(tmp_path.iterdir())
    (tmp_path/'none').mkdir()
    with pytest.raises(MemoError, match='no images'): check_folder(tmp_path/'none')
    with pytest.raises(MemoError, match='no such folder'): check_folder(tmp_path/'nowhere')

# other formats
@pytest.mark.parametrize('kind', ['webp','gif','bmp','tif'])
def test_other_formats_are_read(tmp_path, kind):
    kw = dict(lossless=True) if kind=='webp' else {}
    for i in range(2): saved(tmp_path/f'{i}.{kind}', photos[0][i*50:i*50+100,:100], **kw)
    ps = [tmp_path/f'{i}.{kind}' for i in range(2)]
    check_images(ps, 'x')
    x = FileImages(ps, 100, 3)
    off = np.abs(x[1].numpy().transpose(1,2,0).astype(int)-photos[0][50:150,:100]).mean()
    assert off<8 if kind=='gif' else off==0

@pytest.mark.parametrize('kind', ['gif','tif','webp'])
def test_several_pictures_in_a_file_are_refused(tmp_path, kind):
    ims = [Image.fromarray(o[:40,:40]) for o in photos]
    ims[0].save(tmp_path/f'a.{kind}', save_all=True, append_images=ims[1:])
    with pytest.raises(MemoError, match='several pictures in one file'): check_images([tmp_path/f'a.{kind}'], 'x')

@pytest.mark.parametrize('head,why', [(b'\0\0\0\x18ftypheic', 'convert it'), (b'%PDF-1.4', 'no PNG, JPEG'),
                                      (b'\0'*64, 'no PNG')])
def test_other_files_say_what_to_do(tmp_path, head, why):
    (tmp_path/'a.jpg').write_bytes(head+b'\0'*100)
    with pytest.raises(MemoError, match=why) as e: check_images([tmp_path/'a.jpg'], 'copy them again')
    assert len(str(e.value))<300 and '\n' not in str(e.value)

# more than 8 bits
films = [np.asarray(Image.fromarray(o).convert('L'))[:200,i*90:i*90+200].astype(np.uint16)
         for i,o in enumerate(photos*2)]

@pytest.mark.parametrize('bits', [8,10,12,14,16])
def test_depth_of_a_set(tmp_path, bits):
    "One dark image does not change how the others, or it, are read"
    films[0][0,0] = 255
    ps = [saved(tmp_path/f'{i}.png', (o if i else o//20*20)<<bits-8) for i,o in enumerate(films)]
    ps.append(saved(tmp_path/'dark.png', films[1]//16<<bits-8))
    ps.append(saved(tmp_path/'eight.png', films[2].astype(np.uint8)))
    x = FileImages(ps, 200)
    assert x.depth==image_depth(ps)==bits
    want = [films[0]//20*20, *films[1:], films[1]//16, films[2]]
    for i,o in enumerate(want):
        if i: assert np.array_equal(x[i][0].numpy(), o.astype(np.uint8)), i
    for part in (x[4:], x.rows([4]), x.new([ps[4]])): assert torch.equal(part[0], x[4])
    assert FileImages(ps, 200, depth=bits)[4].equal(x[4])

@pytest.mark.parametrize('kind', ['png','tif'])
def test_twelve_bits_keep_their_levels(tmp_path, kind):
    p = saved(tmp_path/f'a.{kind}', films[0]*16+7)
    assert len(np.unique(read_image(p, 200)))==len(np.unique(films[0]))

def test_what_is_brighter_than_its_set_is_told(tmp_path):
    a,b = saved(tmp_path/'a.png', films[1]*16),saved(tmp_path/'b.png', np.full((20,20), 65535, np.uint16))
    x = FileImages([a], 20)
    with pytest.raises(MemoError, match='grey values up to 65535; with 12 bits'): x.new([b])[0]
    with pytest.raises(MemoError, match='with 8 bits'): FileImages([], 20)[:0].new([a])[0]
    with pytest.raises(MemoError, match='8 to 16 bits'): FileImages([a], 20, depth=4)
    saved(tmp_path/'f.tif', films[1].astype(np.float32)/255)
    with pytest.raises(MemoError, match='no whole numbers'): read_image(tmp_path/'f.tif', 20)
    for o in (np.inf,np.nan):
        a = films[1].astype(np.float32)
        a[3,4] = o
        saved(tmp_path/'f.tif', a)
        with pytest.raises(MemoError, match='no whole numbers'): read_image(tmp_path/'f.tif', 20)
    saved(tmp_path/'n.tif', films[1].astype(np.int32)-500)
    with pytest.raises(MemoError, match='below 0'): read_image(tmp_path/'n.tif', 20)

@pytest.mark.parametrize('preload', [False,True])
def test_parts_and_predictions_share_the_depth(tmp_path, preload):
    "Training images are dark, those of the test bright: they keep their ratio, in an exported learner too"
    for i in range(8): saved(tmp_path/f'{i}.png', np.full((16,16), 4000 if i>5 else 200, np.uint16))
    (tmp_path/'train.txt').write_text(''.join(f'{i}.png {i%2}\n' for i in range(4)))
    (tmp_path/'valid.txt').write_text('4.png 0\n5.png 1\n')
    (tmp_path/'test.txt').write_text('6.png 0\n7.png 1\n')
    dls = list_dls('train.txt', 'valid.txt', 'test.txt', tmp_path, size=14, workers=0, preload=preload, device='cpu')
    ds = [dl.dataset for dl in dls.loaders]
    assert [int(d[torch.tensor([0])][0].max()) for d in ds]==[12,12,250]
    learn = Learner(dls, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3,2)), metrics=accuracy)
    learn.export(tmp_path/'e.pkl')
    for k in (0,7):
        a,b = (o.dls.test_dl([tmp_path/f'{k}.png']).one_batch()[0] for o in (learn,load_learner(tmp_path/'e.pkl')))
        want = dls[2].one_batch()[0][1:] if k else dls[1].one_batch()[0][:1]
        assert torch.equal(a, b) and torch.allclose(a, want)
