"Photographs lie as their EXIF data says, wherever image files are read"
import numpy as np, pytest, torch
from PIL import Image
from fastai.vision.all import PILImage, nn
from sklearn.datasets import load_sample_image
from memo.banks.kept import Kept
from memo.banks.slots import SlotBank
from memo.data import copies, images
from memo.data.copies import copied_from, resize_tree
from memo.data.digests import file_state
from memo.data.features import cached_features
from memo.data.image_folders import image_folder
from memo.data.images import FileImages, read_image
from memo.data.tensors import TensorDL
from memo.training.keep import kept_inputs

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

def test_faults_of_pixels_are_not_lost_with_those_of_exif_data(tmp_path, photo):
    "PNG keeps its EXIF data behind the pixels or before: reading it decodes them"
    photo.save(tmp_path/'a.png')
    b = bytearray((tmp_path/'a.png').read_bytes())
    b[len(b)//2:] = b'x'*(len(b)-len(b)//2)
    (tmp_path/'a.png').write_bytes(b)
    for _ in range(2):
        with pytest.raises(images.MemoError, match='cannot read the image'): read_image(tmp_path/'a.png', 32)

class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.ones(1))
    def forward(self, x): return x.float().mean((1,2))*self.a

def features(root, ps): return cached_features(Mean(), TensorDL(FileImages(ps, 24), bs=4), root)[0]

def before(monkeypatch):
    "Files as they were read, and their keys as they were made, before EXIF data counted"
    monkeypatch.setattr(images, 'upright', lambda im: im)
    def key(self): return [self.size, self.channels, self.depth, [(o, *file_state(o)) for o in self.paths.tolist()]]
    monkeypatch.setattr(FileImages, 'fingerprint', key)
    made = copies.made_from
    monkeypatch.setattr(copies, 'made_from', lambda *args: '1'+made(*args)[1:])

def test_features_of_unturned_photographs_are_not_taken_for_those_of_turned_ones(tmp_path, photo, monkeypatch):
    p = tmp_path/'a.jpg'
    save(photo.rotate(90, expand=True), p, 6)
    with monkeypatch.context() as m:
        before(m)
        old = features(tmp_path/'cache', [p])
        assert torch.equal(features(tmp_path/'cache', [p]), old)
    new = features(tmp_path/'cache', [p])
    assert not torch.allclose(new.float(), old.float(), rtol=1e-2) and torch.equal(features(tmp_path/'cache', [p]), new)
    assert torch.equal(features(tmp_path/'other', [p]), new)

def test_copies_of_unturned_photographs_are_made_anew(tmp_path, photo, monkeypatch):
    (tmp_path/'a').mkdir()
    save(photo.rotate(90, expand=True), tmp_path/'a'/'1.jpg', 6)
    with monkeypatch.context() as m:
        before(m)
        resize_tree(tmp_path/'a', tmp_path/'b', 32, workers=0)
    save(photo.rotate(90, expand=True), tmp_path/'a'/'2.jpg', 6)
    old = (tmp_path/'b'/'1.jpg').read_bytes()
    assert copied_from(tmp_path/'b'/'1.jpg').startswith('1 ')
    assert resize_tree(tmp_path/'a', tmp_path/'b', 32, workers=0)['made']==2
    one,two = (read_image(tmp_path/'b'/f'{i}.jpg', 32) for i in (1,2))
    assert np.array_equal(one, two) and (tmp_path/'b'/'1.jpg').read_bytes()!=old
    assert resize_tree(tmp_path/'a', tmp_path/'b', 32, workers=0)['made']==0

def test_pictures_that_a_bank_kept_are_shown_upright(tmp_path, photo):
    save(photo.rotate(90, expand=True), tmp_path/'a.jpg', 6)
    bank = SlotBank(4, dim=2)
    bank.kept = Kept('paths', {7:str(tmp_path/'a.jpg').encode()})
    im = kept_inputs(bank, [7])[7]
    assert isinstance(im, PILImage) and im.size==photo.size
