"How image files become inputs: the description is what the loaders do, on files of any size, or there is none"
import io
import numpy as np, pytest
from fastai.vision.all import (CategoryBlock, DataBlock, ImageBlock, ImageDataLoaders, Normalize, PILImageBW, Resize,
    ResizeMethod, aug_transforms, get_image_files, imagenet_stats, parent_label)
from hypothesis import given, settings, strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images
from memo.core import MemoError
from memo.data.findings_csv import findings_csv
from memo.data.image_folders import image_folder
from memo.data.image_input import file_of, image_input, prepared, ready
from memo.data.longtail import digits_lt

@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp('photos')
    for part in ('train','valid','test'):
        for k,im in zip(('china','flower'), load_sample_images().images):
            (root/part/k).mkdir(parents=True)
            for i in range(6): Image.fromarray(im[20*i:20*i+150,30*i:30*i+200]).save(root/part/k/f'{i}.png')
    return root

def from_folder(root, **kw):
    return ImageDataLoaders.from_folder(root, valid='valid', bs=4, num_workers=0, device='cpu', **kw)
def memos(root): return image_folder(root, size=56, workers=0, bs=4, device='cpu')
def crop(root): return from_folder(root, item_tfms=Resize(40), batch_tfms=[*aug_transforms(),
                                                                           Normalize.from_stats(*imagenet_stats)])
def squish(root): return from_folder(root, item_tfms=Resize((40,64), ResizeMethod.Squish))
def grey(root):
    return DataBlock((ImageBlock(PILImageBW),CategoryBlock), get_items=get_image_files, get_y=parent_label,
                     item_tfms=Resize((32,48))).dataloaders(root, bs=4, num_workers=0, device='cpu')

photo = Image.fromarray(load_sample_images().images[0])
def films(root):
    "Grey, of findings"
    rows = [f'{p.relative_to(root)},{i//2},{i%2},{int(i%3==0)}' for i,p in enumerate(sorted(root.rglob('*.png')))]
    (root/'own.csv').write_text('\n'.join(['image,who,a,b',*rows]))
    return findings_csv(root, 'own.csv', findings=['a','b'], patient='who', size=32, workers=0, bs=4, device='cpu')

@pytest.mark.parametrize('make', [memos,crop,squish,grey,films])
def test_the_description_is_what_the_loaders_do(photos, make):
    "On photographs of other sizes than the one that told it, upright and not, grey and with transparency"
    dls = make(photos)
    how = image_input(dls)
    @settings(max_examples=12, deadline=None)
    @given(st.tuples(st.integers(9, 400), st.integers(9, 400)), st.sampled_from(['RGB','L','RGBA','P']),
           st.sampled_from([1,3,6,8]), st.sampled_from(['png','jpg']))
    def same(size, mode, turn, kind):
        im,exif = photo.resize(size).convert(mode if kind=='png' or mode=='L' else 'RGB'),Image.Exif()
        exif[0x0112] = turn
        b = file_of(im, kind, exif=exif)
        np.testing.assert_allclose(prepared(Image.open(io.BytesIO(b)), how), ready(dls, b, kind),
                                   atol=2e-3/min(how['std']))
    same()

@pytest.mark.parametrize('size', [32,37,224])
def test_images_of_every_size_are_read(photos, size):
    "Their box was larger than the image by rounding: of one size in forty at 224, and at 32 of the file that is tried"
    dls = image_folder(photos, size=size, workers=0, bs=4, device='cpu')
    how = image_input(dls)
    def odd(w, h): return min(w/size, h/size)*size>min(w, h)
    sizes = [o for w in range(size, size+400) for o in ((w,w+9),(w+9,w)) if odd(*o)]
    assert size==32 or len(sizes)>5
    for o in [*sizes[::max(1, len(sizes)//6)], (271,198), (61,61)]:
        b = file_of(photo.resize(o))
        np.testing.assert_allclose(prepared(Image.open(io.BytesIO(b)), how), ready(dls, b), atol=2e-3/min(how['std']))

@pytest.mark.parametrize('make', [
    lambda r: from_folder(r, item_tfms=Resize(60), batch_tfms=aug_transforms(size=40)),
    lambda r: from_folder(r, item_tfms=Resize(40, ResizeMethod.Pad)),
    lambda r: digits_lt(n_max=20, ratio=5, device='cpu')], ids=['resized on the batch','mirrored','tensors'])
def test_where_nothing_fits_there_is_none(photos, make): assert image_input(make(photos)) is None

def test_looking_changes_nothing(photos):
    "No random number, no loader"
    import random, torch
    dls = crop(photos)
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    a = random.random(),np.random.rand(),torch.rand(1)
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    image_input(dls)
    assert (random.random(),np.random.rand(),torch.rand(1))==a and len(dls.loaders)==2

def test_more_than_eight_bits_are_refused(photos):
    how = image_input(memos(photos))
    for mode in ('I;16','I','F'):
        with pytest.raises(MemoError, match='8 bits'): prepared(Image.new(mode, (50,50)), how)
