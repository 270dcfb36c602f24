"Photographs lie as their EXIF data says, wherever image files are read"
import numpy as np, pytest, torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image
from memo.data.image_folders import image_folder
from memo.data.images import FileImages, read_image

turned = {2:'FLIP_LEFT_RIGHT', 3:'ROTATE_180', 4:'FLIP_TOP_BOTTOM', 5:'TRANSPOSE', 6:'ROTATE_90', 7:'TRANSVERSE',
          8:'ROTATE_270'}       # what undoes it

def save(im, path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    im.save(path, exif=exif)

@pytest.fixture(scope='module')
def photo(): return Image.fromarray(load_sample_image('flower.jpg')).crop((100,20,420,260))

@pytest.mark.parametrize('ext', ['png','jpg','webp','tif'])
@pytest.mark.parametrize('orientation', [1,*turned])
def test_the_same_photograph_however_the_camera_was_held(tmp_path, photo, orientation, ext):
    p,q = tmp_path/f'a.{ext}',tmp_path/'b.png'
    photo.save(q)
    as_taken = photo.transpose(Image.Transpose[turned[orientation]]) if orientation>1 else photo
    save(as_taken, p, orientation)
    for channels in (1,3):
        a,b = (read_image(o, 64, channels).astype(float) for o in (p,q))
        assert abs(a-b).mean()<4, abs(a-b).mean()

def test_loaders_read_them_upright(tmp_path, photo):
    for c in 'ab':
        (tmp_path/c).mkdir()
        for i in range(6): save(photo.rotate(90, expand=True), tmp_path/c/f'{i}.jpg', 6)
    dls = image_folder(tmp_path, size=28, workers=0, device='cpu')
    x = dls.train.dataset[torch.tensor([0])][0][0].permute(1,2,0).numpy()
    photo.save(tmp_path/'c.png')
    assert abs(x.astype(float)-read_image(tmp_path/'c.png', 32, 3)).mean()<6

def test_damaged_exif_data_spoils_no_image(tmp_path, photo):
    photo.save(tmp_path/'a.jpg', exif=b'Exif\0\0MM\0*\0\0\xff\xff\1\2\3')
    photo.save(tmp_path/'b.jpg')
    assert np.array_equal(*(FileImages([tmp_path/o], 32, 3).load() for o in ('a.jpg','b.jpg')))
