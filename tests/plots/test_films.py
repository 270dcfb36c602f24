"Films are no negatives: 0 is black in whatever numbers an image comes"
import io
import numpy as np, pytest, torch
from fastai.vision.all import (CategoryBlock, DataBlock, FuncSplitter, ImageBlock, Learner, PILImage, PILImageBW,
                               TensorImage, TensorImageBW, get_image_files, set_seed)
from helpers.every_picture import Flat, learner
from helpers.looks import rendered
from memo.banks.classes import ClassBank
from memo.plots.banks import plot_stored
from memo.plots.figure import drawing, panels
from memo.plots.hopfield import mosaic, small_image
from memo.plots.recall import draw_input
from memo.training.keep import as_pixels, thumbnail
from memo.training.memory_callback import MemoryCallback
from PIL import Image

half = np.zeros((8,8), np.float32)
half[:,4:] = 1          # black on the left, white on the right
def t(o): return torch.from_numpy(np.ascontiguousarray(o))

films = dict(
    float01=t(half)[None], bw=TensorImageBW(t(half)[None]), no_channel=t(half),
    rgb=TensorImage(t(half).repeat(3, 1, 1)),
    float255=t(half)[None]*255, float16=t(half)[None]*16, half=t(half)[None].half(), uint8=(t(half)[None]*255).byte(),
    int16=(t(half)[None]*4095).short(), int32=(t(half)[None]*65535).int(), long=(t(half)[None]*255).long(),
    bool=t(half)[None].bool(), one=t(half)[None].long(), pil=PILImage.create(np.uint8(half*255)),
    pilbw=PILImageBW.create(np.uint8(half*255)), pil16=Image.fromarray(np.uint16(half*65535)),
    pil1=Image.fromarray(np.uint8(half*255)).convert('1'), pila=Image.fromarray(np.uint8(half*255)).convert('LA'),
    pilf=Image.fromarray(half), two=t(half).repeat(2, 1, 1), negative=t(half)[None]*2-1)

def sides(im):
    "Mean of the left and of the right half"
    im = im[...,:3].mean(-1) if im.ndim==3 else im
    w = im.shape[1]
    return float(im[:,:w//2-1].mean()),float(im[:,w//2+1:].mean())

def drawn(x):
    "As it is seen, the panel alone"
    with drawing():
        fig,axs = panels(1, 1, 1.5, 1.5)
        draw_input(axs[0,0], x)
    px,box = rendered(fig),axs[0,0].get_window_extent()
    h = px.shape[0]
    return px[int(h-box.y1)+3:int(h-box.y0)-3,int(box.x0)+3:int(box.x1)-3]

@pytest.mark.parametrize('kind', films)
def test_black_is_black(kind):
    x = films[kind]
    kept = np.asarray(Image.open(io.BytesIO(thumbnail(x))))/255
    for im in (drawn(x), small_image(x, 40), as_pixels(x), kept):
        a,b = sides(np.asarray(im, float))
        assert a<.1 and b>.9, f'{kind}: {a:.2f} on the left, {b:.2f} on the right'

@pytest.mark.parametrize('x,want', [(t(half)[None]*.5, .5), ((t(half)[None]*100).byte(), 100/255),
                                    ((t(half)[None]*1000).short(), 1000/4095),
                                    ((t(half)[None]*9000).int(), 9000/65535)])
def test_a_dim_film_stays_dim(x, want):
    "What is white is what the numbers can be, not what one image has"
    assert sides(as_pixels(x))==pytest.approx((0, want), abs=1e-3)

def test_what_is_no_number_is_not_black():
    x = t(half)[None].clone()
    x[:,:,:4] = float('nan')
    px = drawn(x)
    assert px[:,:px.shape[1]//2-3].min()>.5 and px[:,px.shape[1]//2+3:].min()>.9
    assert np.isnan(as_pixels(x)[:,0]).all() and thumbnail(x) is not None and not np.isnan(small_image(x, 8)).any()

def test_an_empty_film(): assert (as_pixels(torch.zeros(1, 4, 4))==0).all() and (drawn(torch.zeros(1, 4, 4))==0).all()

def test_a_mosaic_of_films():
    im = mosaic([7,7], {7:films['bw']}, (1,2))
    assert sides(im[:,:40])==pytest.approx((0, 1), abs=.1)

@pytest.fixture(scope='module')
def bw(tmp_path_factory):
    "A learner of fastai's own black and white images: bright on the left, or on the right"
    d = tmp_path_factory.mktemp('films')
    for i in range(24):
        a = half if i%2 else half[:,::-1]
        Image.fromarray(np.uint8(200*a)).save(d/f'{"right" if i%2 else "left"}_{i:02}.png')
    db = DataBlock((ImageBlock(PILImageBW),CategoryBlock), get_items=get_image_files, splitter=FuncSplitter(_late),
                   get_y=_side)
    set_seed(0)
    learn = Learner(db.dataloaders(d, bs=8, num_workers=0), Flat(2), cbs=MemoryCallback(ClassBank(2, 8), head='vote'))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    return learn

def _late(p): return int(p.stem.split('_')[1])>=18
def _side(p): return p.name.split('_')[0]

def values(ax):
    im = ax.images[0]
    return im.to_rgba(np.asarray(im.get_array()))[...,:3]

def test_films_of_a_learner(bw):
    "Of the query, of what was recalled, and of what is stored"
    files = {o.name:np.asarray(Image.open(o))/255 for o in bw.dls.valid.items}
    fig = bw.show_memories(2, ds_idx=1, k=2)
    first = list(files.values())[0]
    np.testing.assert_allclose(values(fig.axes[0])[...,0], first, atol=.01)
    for fig in (fig, plot_stored(bw.memory.bank, bw.dls), bw.show_classes()):
        ims = [values(ax) for ax in fig.axes if ax.images]
        assert len(ims)>=4
        for im in ims: assert sorted(np.unique(im.round(2)).tolist())==pytest.approx([0,.78], abs=.01)

def test_a_learner_of_tensors():
    learn = learner(10, 'slots')
    x = learn.dls.valid.dataset.x[0,0].numpy()
    np.testing.assert_allclose(values(learn.show_memories(1).axes[0])[...,0], x, atol=.01)
