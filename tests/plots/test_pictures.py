"Pictures: the right images in the right colours, nothing more read than is shown, no window, no random number used"
import io, random
import numpy as np, pandas as pd, pytest, torch
import matplotlib.pyplot as plt
from pathlib import Path
from torch import nn
from fastai.data.all import CategoryBlock, DataBlock, DataLoaders, FuncSplitter, MultiCategoryBlock, Normalize
from fastai.data.all import Transform, get_image_files
from fastai.learner import Learner, load_learner
from fastai.vision.all import (ImageBlock, ImageDataLoaders, PILImage, Resize, aug_transforms, imagenet_stats, resnet18,
                               set_seed,
    vision_learner)
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import binomtest
from sklearn.datasets import load_sample_images
from memo.banks.slots import SlotBank
from memo.banks.classes import ClassBank
from memo.training.memory_callback import MemoryCallback
from memo.core import MemoError
from memo.data.tensors import TensorDL
from memo.data.longtail import digits_lt
from memo.data.items import item_ids
from memo.models.small import small_cnn
from memo.plots.banks import plot_bank
from memo.plots.results import plot_classes, plot_comparison, plot_reliability, plot_results
from memo.plots.training import plot_counts, plot_history

def kind(p): return Path(p).name.split('_')[0]
def kinds(p): return [o for o,ok in dict(flower=kind(p)=='flower', odd=int(Path(p).stem.split('_')[1])%2).items() if ok]
def last_third(p): return int(Path(p).stem.split('_')[1])%3==2

class Count(Transform):
    "Counts the images that are read"
    n = 0
    def encodes(self, x:PILImage):
        Count.n += 1
        return x

def fit(learn, n=1):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-3)
    return learn

@pytest.fixture(scope='module')
def tiles(tmp_path_factory):
    "48 tiles of 32 x 32 out of each of scikit-learn's two photos"
    d = tmp_path_factory.mktemp('tiles')
    for name,im in zip(('china','flower'), load_sample_images().images):
        for i in range(48):
            Image.fromarray(im[32*(i//8):32*(i//8)+32, 32*(i%8)+150:32*(i%8)+182]).save(d/f'{name}_{i:02}.png')
    return d

def image_dls(tiles, multi=False):
    blocks = ImageBlock, MultiCategoryBlock if multi else CategoryBlock
    db = DataBlock(blocks, get_items=get_image_files, get_y=kinds if multi else kind, splitter=FuncSplitter(last_third),
                   item_tfms=Count(),
        batch_tfms=[*aug_transforms(size=32), Normalize.from_stats(*imagenet_stats)])
    return db.dataloaders(tiles, bs=16, num_workers=0)

def image_learner(tiles, multi=False, bank=None, **kwargs):
    set_seed(0)
    cb = MemoryCallback(SlotBank(128, policy='fifo') if bank is None else bank, **({'k':3} | kwargs))
    learn = vision_learner(image_dls(tiles, multi), resnet18, pretrained=False, cbs=cb)
    return fit(learn)

@pytest.fixture(scope='module')
def photos(tiles): return image_learner(tiles)
@pytest.fixture(scope='module')
def digits():
    set_seed(0)
    return fit(Learner(digits_lt(), small_cnn(), cbs=MemoryCallback(SlotBank(128, policy='fifo'), k=3)), 2)

def images(fig): return [np.asarray(a.images[0].get_array()) for a in fig.axes if a.images]
def titles(fig): return [a.get_title() for a in fig.axes]
def texts(fig): return ' '.join(t.get_text() for a in fig.axes for t in a.texts)
def files(dl): return {i:np.asarray(Image.open(f))/255 for i,f in zip(item_ids(dl).tolist(), dl.items)}

# pictures of tables

def test_history_of_stages():
    df = pd.DataFrame(dict(stage=['a.frozen','a.all','a.all','b'], epoch=[0,0,1,0], train_loss=[2.,1,.9,.8],
                           valid_loss=[2.,1,np.nan,.8], accuracy=[.1,.2,.3,.4],
        perplexity=[9.,8,7,6], bank_fill=[.5,1,1,1], bank_hit=[None]*4, seconds=[1.]*4))
    fig = plot_history(df)
    assert [[l.get_label() for l in a.lines if not l.get_label().startswith('_')]
            for a in fig.axes] == [['train_loss','valid_loss'],['accuracy'],['bank_fill'],['perplexity']]
    assert {'a.frozen','a.all','b'} == {t.get_text() for t in fig.axes[0].texts}
    assert fig.axes[0].lines[0].get_xdata().tolist() == [1,2,3,4]

def test_history_from_csv_and_without_rows(tmp_path):
    pd.DataFrame(dict(epoch=[0], train_loss=[1.], time=['00:01'])).to_csv(tmp_path/'h.csv', index=False)
    assert len(plot_history(tmp_path/'h.csv').axes) == 1
    assert 'no epoch' in texts(plot_history(pd.DataFrame(columns=['epoch','train_loss'])))

def test_counts():
    fig = plot_counts([3,500,50], vocab=['rare','common','some'])
    ax = fig.axes[0]
    assert [p.get_height() for p in ax.patches] == [500,50,3]
    assert [t.get_text() for t in ax.get_xticklabels()] == ['common','some','rare']
    assert len({p.get_facecolor() for p in ax.patches}) == 3
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ['many: 1 class, 500 items',
        'medium: 1 class, 50 items','few: 1 class, 3 items']
    plot_counts(torch.arange(100)).savefig(io.BytesIO())
    with pytest.raises(MemoError, match='counts'): plot_counts([])

@pytest.mark.parametrize('y', [torch.arange(30)%4, None,
                               (torch.rand(30,5, generator=torch.Generator().manual_seed(0))>.5).float()])
def test_slot_bank(y):
    bank = SlotBank(20, policy='fifo')
    assert 'empty' in texts(plot_bank(bank))
    bank.write(torch.randn(30,8), y)
    fig = plot_bank(bank, ['a','b','c','d','e'])
    assert len(fig.axes)==3 and '20 of 20' in fig._suptitle.get_text()
    assert sum(p.get_height() for p in fig.axes[1].patches) == sum(p.get_height() for p in fig.axes[2].patches) == 20
    if y is None: assert 'no label' in texts(fig)
    else: assert [p.get_height() for p in fig.axes[0].patches] == bank.class_counts().tolist()

def test_rows_without_a_label_are_said():
    bank = SlotBank(20, policy='fifo')
    bank.write(torch.randn(4,8), torch.arange(4))
    bank.write(torch.randn(3,8))
    assert '3 rows without' in plot_bank(bank).axes[0].get_title()

def test_class_bank():
    bank = ClassBank(3, capacity=4)
    assert 'empty' in texts(plot_bank(bank))
    bank.write(torch.randn(9,8), torch.tensor([0]*6+[1]*3))
    a,b = plot_bank(bank).axes
    assert [p.get_height() for p in a.patches]==[4,3,0] and [p.get_height() for p in b.patches]==[6,3,0]

def test_results():
    df = pd.DataFrame(dict(method=['a','b'], baseline=['c','c'], seeds=[3,3], few_mean=[.1,.2], few_low=[0.,.1],
                           few_high=[.2,.3], few_per_seed=['+1','+2'], ece=[.3,np.nan]))
    fig = plot_results(df)
    assert [a.get_title() for a in fig.axes] == ['few','ece']
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ['a - c','b - c']
    assert len(fig.axes[0].collections)==1 and not fig.axes[1].collections
    fig.savefig(io.BytesIO())
    assert 'no results' in texts(plot_results(df[:0]))

def _table(**kw):
    return pd.DataFrame({**dict(finding=['rare','never','common'], positives=[3,0,90], auc=[.7,np.nan,.8],
                                ap=[.1,np.nan,.5]), **kw})

def test_classes_are_in_the_order_of_their_positives():
    fig = plot_classes(_table(auc_low=[.6,np.nan,.7], auc_high=[.8,np.nan,.9], ap_low=[0,np.nan,.4],
                              ap_high=[.2,np.nan,.6]))
    auc,ap = fig.axes
    assert [t.get_text() for t in auc.get_yticklabels()]==['common (90)','rare (3)','never (0)'] and not fig.legends
    assert [round(p.get_x()+p.get_width(), 6) for p in auc.patches][:2]==[.8,
        .7] and [p.get_width() for p in ap.patches][:2]==[.5,.1]
    assert [s[:,0].tolist() for s in auc.collections[0].get_segments()]==[[.7,.9],
        [.6,.8]] and texts(fig).count('cannot be scored')==2
    fig.savefig(io.BytesIO())

def test_classes_side_by_side():
    "Rows of each table go by name, not by place"
    a = _table()
    fig = plot_classes(dict(network=a, memory=a.assign(ap=a.ap+.1).iloc[::-1]))
    h = [p.get_width() for p in fig.axes[1].patches]
    assert h[:2]+h[3:5]==pytest.approx([.5,.1,.6,.2]) and [t.get_text()
                                                           for t in fig.legends[0].get_texts()]==['network','memory']
    assert len({round(p.get_y(), 6) for p in fig.axes[1].patches})==6
    fig.savefig(io.BytesIO())
    with pytest.raises(MemoError, match='other findings'): plot_classes(dict(a=a, b=a[:2]))
    assert 'no classes' in texts(plot_classes(a[:0]))

def test_reliability():
    p,y = torch.tensor([[.05,.95],[.05,.95]]),torch.tensor([[0,1],[1,1]])
    fig = plot_reliability(p, y)
    a,b = fig.axes
    assert a.lines[1].get_xdata().tolist()==pytest.approx([.05,.95]) and a.lines[1].get_ydata().tolist()==[.5,1]
    assert b.patches[0].get_data().values.tolist()==[2]+[0]*8+[2] and b.get_yscale()=='log' and '25 %' in a.get_title()
    low,high = a.collections[0].get_segments()[0][:,1]
    want = binomtest(1, 2).proportion_ci(method='wilson')
    assert (low,high)==pytest.approx((want.low,want.high), abs=1e-4)
    fig.savefig(io.BytesIO())
    assert 'no labels' in texts(plot_reliability(p[:0], y[:0]))

def test_reliability_of_answers_before_and_after():
    "Of classes: the probability of the answer against how often it is right; labels that are not known are left out"
    y,p = torch.tensor([0,1,1,-1]),torch.tensor([[.9,.1],[.9,.1],[.35,.65],[.1,.9]])
    fig = plot_reliability({'before':p, 'after':p.flip(1)}, y)
    lines = {o.get_label():o for o in fig.axes[0].lines[1:]}
    a,b = lines.values()
    assert [*lines][0].startswith('before, error ')
    assert a.get_ydata().tolist()==[1,.5] and b.get_ydata().tolist()==[0,.5]
    assert [o.get_data().values.sum() for o in fig.axes[1].patches]==[3,3]
    assert 'right' in fig.axes[0].get_ylabel()

def test_comparison():
    df = pd.DataFrame(dict(method=['a','b '*40], seeds=[3,2], macro_auc=[.9,.8], macro_auc_std=[.1,np.nan],
                           tail_auc=[np.nan]*2, tail_auc_std=[np.nan]*2))
    fig = plot_comparison(df)
    assert [a.get_title() for a in fig.axes]==['macro auc'] and 'over the seeds of each' in fig._suptitle.get_text()
    names = [o.get_text() for o in fig.axes[0].get_yticklabels()]
    assert names[0]=='a (3 seeds)' and names[1].endswith('(2 seeds)')
    assert 'over 3 seeds' in plot_comparison(df.assign(seeds=3))._suptitle.get_text()
    assert fig.axes[0].collections[0].get_segments()[0][:,0].tolist()==[.8,1.]
    assert max(map(len, fig.axes[0].get_yticklabels()[1].get_text().splitlines()))<=40
    fig.savefig(io.BytesIO())
    one = plot_comparison(df[:1].assign(seeds=1, macro_auc_std=np.nan))
    assert one._suptitle.get_text()=='one seed' and not one.axes[0].collections
    assert 'no results' in texts(plot_comparison(df[:0]))

def test_a_run_is_drawn_as_its_table_is_printed():
    "In per cent, under the same names"
    df = pd.DataFrame(dict(method=['a'], seeds=[2], ece=[.03904], ece_std=[.01]))
    df.attrs = dict(columns=dict(ece='calibration err.'), digits=1, diverged={})
    ax, = plot_comparison(df).axes
    assert ax.get_title()=='calibration err., %' and [o.get_text() for o in ax.texts]==['3.9']
    assert ax.collections[0].get_segments()[0][:,0]==pytest.approx([2.904,4.904])

# what was recalled

def test_images_are_the_files(photos):
    "Unaugmented, in their colours, for queries and for what they recalled"
    fig = photos.show_memories(4)
    assert isinstance(fig, Figure) and len(fig.axes)==4*4
    r = photos.recall(n=4, k=3)
    trn = files(photos.dls.train)
    want = [o for f,ids in zip(photos.dls.valid.items[:4], r.row_item.tolist())
            for o in [np.asarray(Image.open(f))/255, *(trn[i] for i in ids)]]
    # IntToFloatTensor rounds down
    for a,b in zip(images(fig), want, strict=True): np.testing.assert_allclose(a, b, atol=.0041)

def test_titles_say_what_was_recalled(photos):
    fig,r,v = photos.show_memories(2), photos.recall(n=2, k=3), photos.dls.vocab
    ts = titles(fig)
    for i in range(2):
        c = int(r.probs[i].argmax())
        assert ts[4*i] == f'pred: {v[c]}  {r.probs[i,c]:.2f}\ntrue: {v[int(r.y[i])]}'
        for j in range(3):
            assert ts[4*i+1+j] == f'{v[int(r.row_label[i,j])]}\nsim {r.similarity[i,j]:.2f}  w {r.weight[i,j]:.2f}'

def test_only_what_is_shown_is_read(photos):
    Count.n = 0
    photos.show_memories(2)
    assert Count.n <= 2*2+2*3

def test_nothing_else_is_touched(photos):
    plt.close('all')
    def rngs():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(
            ), photos.dls.train.rng.getstate()
    was,model = rngs(),{k:v.clone() for k,v in photos.model.state_dict().items()}
    photos.show_memories(2)
    photos.explain(photos.dls.valid.items[:1])
    assert rngs()==was and not plt.get_fignums()
    assert all(torch.equal(v, model[k]) for k,v in photos.model.state_dict().items())

def test_explain_files_and_images(photos):
    fs = photos.dls.valid.items[:2]
    want = titles(photos.explain(fs))
    assert 'true' not in want[0] and len(want)==8
    assert titles(photos.explain([PILImage.create(f) for f in fs])) == want
    assert titles(photos.explain([str(f) for f in fs])) == want
    assert titles(photos.explain(fs[0]))[0] == titles(photos.explain(PILImage.create(fs[0])))[0] == want[0]

def test_training_items_do_not_find_themselves(photos):
    r = photos.recall(ds_idx=0, n=3)
    assert not (r.row_item==r.item[:,None]).any()
    assert len(photos.show_memories(3, ds_idx=0, k=2).axes) == 9

def test_item_that_is_not_in_the_training_set(photos):
    bank = photos.memory.bank
    was = bank.items.clone()
    try:
        bank.items.fill_(12345)
        fig = photos.show_memories(1)
        assert texts(fig).count('\n(not in dls.train)')==texts(fig).count('flower\nsimilarity ')==3
        assert len(images(fig))==1 and 'sim' in titles(fig)[1]
        bank.items.fill_(-1)
        assert texts(photos.show_memories(1)).count('item not known')==3
    finally: bank.items.copy_(was)

def test_fewer_than_k(tiles):
    learn = image_learner(tiles, bank=SlotBank(128, policy='fifo'))
    z,y,item = learn.memory.bank.features[:2].clone(), learn.memory.bank.labels[:2].clone(), learn.memory.bank.items[
        :2].clone()
    learn.memory.bank.reset()
    learn.memory.bank.write(z, y, item=item)
    assert len(learn.show_memories(2, k=3).axes) == 2*(1+2)

def test_exported(photos, tiles, tmp_path):
    photos.export(tmp_path/'m.pkl')
    learn = load_learner(tmp_path/'m.pkl')
    f = photos.dls.valid.items[0]
    fig = learn.explain(f)
    assert titles(fig)==titles(photos.explain(f)) and texts(fig).count('not in dls.train')==3
    with pytest.raises(MemoError, match='learn.dls'): learn.show_memories(1)
    learn.dls = image_dls(tiles)
    assert len(images(learn.explain(f)))==4 and len(images(learn.show_memories(1)))==4

@pytest.mark.parametrize('head', ['add','vote'])
def test_multi_label(tiles, head):
    learn = image_learner(tiles, multi=True, head=head)
    fig,r = learn.show_memories(3, k=2), learn.recall(n=3, k=2)
    ts = titles(fig)
    for i in range(3):
        f = learn.dls.valid.items[i]
        assert ts[3*i].split('true: ')[1] == (', '.join(sorted(kinds(f))) or 'none')
        assert ts[3*i+1].startswith(', '.join(v for v,o in zip(learn.dls.vocab, r.row_label[i,0]) if o>0) or 'none')
    assert len(images(fig))==9 and len(images(learn.explain(learn.dls.valid.items[0])))==4

def test_class_bank_learner(tiles):
    learn = image_learner(tiles, bank=ClassBank(2, capacity=64))
    assert isinstance(learn.memory.bank, ClassBank) and len(images(learn.show_memories(2))) == 8

def test_data_frame(tiles):
    fs = sorted(get_image_files(tiles))
    df = pd.DataFrame(dict(name=[f.name for f in fs], label=[kind(f) for f in fs], valid=[last_third(f) for f in fs]))
    set_seed(0)
    dls = ImageDataLoaders.from_df(df, tiles, valid_col='valid', item_tfms=Resize(32), bs=16, num_workers=0)
    learn = fit(vision_learner(dls, resnet18, pretrained=False, cbs=MemoryCallback(SlotBank(64, policy='fifo'), k=2)))
    assert len(images(learn.show_memories(2))) == 6
    rows = learn.dls.valid.items[:2]
    assert len(images(learn.explain(rows)))==6 and titles(learn.explain(rows.iloc[0]))[0]==titles(learn.explain(rows))[
        0]

def test_tensors(digits):
    fig,r = digits.show_memories(2), digits.recall(n=2, k=3)
    ds = digits.dls.train.dataset
    at = int((ds.items==r.row_item[0,0]).nonzero())
    want = torch.nn.functional.interpolate(ds.x[at][None].float()/255, (16,16), mode='bilinear')[0,0].numpy()
    np.testing.assert_allclose(images(fig)[1], want, atol=6e-3)
    x = digits.dls[2].dataset.x
    assert len(images(digits.explain(x[:2])))==8 and titles(digits.explain(x[0]))==titles(digits.explain(x[:1]))
    assert len(digits.show_memories(2, ds_idx=2).axes)==8

def test_more_queries_than_a_batch(photos): assert len(images(photos.show_memories(20, k=1))) == 40

def test_png_is_small(digits):
    b = digits.show_memories(3)._repr_png_()
    assert b[:4]==b'\x89PNG' and len(b) < 60_000

@pytest.mark.parametrize('multi', [False,True])
def test_feature_vectors(multi):
    set_seed(0)
    x,c = torch.randn(60,12), torch.arange(60)%3
    y = torch.nn.functional.one_hot(c, 3).float() if multi else c
    dls = DataLoaders(TensorDL(x[:40], y[:40], bs=8, shuffle=True, split_idx=0),
                      TensorDL(x[40:], y[40:], items=torch.arange(40,60), split_idx=1))
    model = nn.Sequential(nn.Linear(12,16), nn.ReLU(), nn.Linear(16,3))
    learn = fit(Learner(dls, model, cbs=MemoryCallback(SlotBank(64, policy='fifo'), k=2, head='vote')))
    fig = learn.show_memories(2)
    assert len(fig.axes)==6 and not images(fig) and all(a.patches for a in fig.axes)
    assert len(learn.explain(x[50]).axes)==3
    fig.savefig(io.BytesIO())

def test_mistakes_are_one_line(digits):
    bare = Learner(digits.dls, small_cnn())
    empty = Learner(digits.dls, small_cnn(), cbs=MemoryCallback(SlotBank(8)))
    x = digits.dls[2].dataset.x
    wrong = {'no memory':lambda: bare.explain(x[:1]), 'this learner':bare.show_memories,
             'the memory is empty':empty.show_memories,
        'k: 0':lambda: digits.show_memories(k=0), 'n: 0':lambda: digits.show_memories(0),
        'ds_idx':lambda: digits.show_memories(ds_idx=7),
        'no items':lambda: digits.explain(x[:0])}
    for m,f in wrong.items():
        with pytest.raises(MemoError, match=m) as e: f()
        assert '\n' not in str(e.value)
