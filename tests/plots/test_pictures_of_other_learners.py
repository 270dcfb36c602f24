"What learners of tables, masks, texts and numbers recall, shown"
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from fastai.tabular.all import Categorify, FillMissing, Normalize, TabularDataLoaders, tabular_learner
from fastai.text.all import TextDataLoaders
from fastai.vision.all import (CrossEntropyLossFlat, DataLoaders, Learner, MSELossFlat, SegmentationDataLoaders, nn,
                               resnet18,
                               set_seed, unet_learner)
from sklearn.datasets import load_iris, load_sample_images
from helpers.learners import quietly
from memo.banks.slots import SlotBank
from memo.data.items import item_ids
from memo.plots.recall import decoded_inputs, training_inputs
from memo.data.tensors import plain_dl
from memo.training.memory_callback import MemoryCallback

def titles(fig): return [a.get_title() for a in fig.axes]
def texts(fig): return [t.get_text() for a in fig.axes for t in a.texts]
def memory(head='vote', **kw): return MemoryCallback(SlotBank(60, policy='fifo'), head=head, k=3, **kw)
def fit(learn):
    quietly(learn, 'fit', 1, 1e-2)
    return learn

@pytest.fixture
def flowers(tmp_path):
    "Irises as a table: numbers, a column of words, a missing value, a name that mathtext would stumble over"
    d = load_iris(as_frame=True)
    df = d.data.iloc[::3].reset_index(drop=True).set_axis(['sepal l','sepal w','petal $l','petal w_$'], axis=1)
    df['size'],df['kind'] = np.where(df['sepal l']>5.8, 'big', 'small'),d.target_names[d.target[::3]]
    df.loc[3, 'petal w_$'] = np.nan
    dls = TabularDataLoaders.from_df(df, tmp_path, procs=[Categorify, FillMissing, Normalize], cat_names=['size'],
                                     cont_names=list(df.columns[:4]), y_names='kind', bs=8, device='cpu',
                                     valid_idx=list(range(40, 50)))
    set_seed(0)
    return fit(tabular_learner(dls, layers=[8], cbs=memory())),df

def test_tables(flowers):
    learn,df = flowers
    for fig in (learn.show_memories(2), learn.explain(df.iloc[40:42]), learn.explain(df.iloc[40])):
        fig.savefig('/dev/null', format='png')
        assert titles(fig)[0].startswith('pred: ') and 'sim' in titles(fig)[1]
        said = texts(fig)[0]
        assert 'size: big' in said and all(f'{k}: {df[k][40]:.4g}' in said for k in ('sepal l','petal $l'))
    assert 'true: virginica' in titles(learn.show_memories(1))[0]

def test_rows_of_a_table_by_their_id(flowers):
    learn,df = flowers
    ids = item_ids(learn.dls.train)
    got = training_inputs(learn.dls, ids[[5,2]])
    at = learn.dls.train_ds.items.index[[5,2]]
    assert [got[int(i)].splitlines()[2] for i in ids[[5,2]]]==[f"sepal l: {df['sepal l'][j]:.4g}" for j in at]

@pytest.mark.parametrize('head', [None, 'add'])
def test_masks(tmp_path, head):
    im = load_sample_images().images[1]
    for i in range(10):
        tile = im[32*i:32*i+32, 200:232]
        Image.fromarray(tile).save(tmp_path/f'im{i}.png')
        Image.fromarray((tile.mean(2)>90).astype('uint8')).save(tmp_path/f'ma{i}.png')
    files = sorted(tmp_path.glob('im*.png'))
    dls = SegmentationDataLoaders.from_label_func(tmp_path, files, lambda o: o.with_name(o.name.replace('im', 'ma')),
                                                  codes=['no','yes'], bs=4, valid_pct=.3, num_workers=0, device='cpu')
    set_seed(0)
    learn = fit(unet_learner(dls, resnet18, pretrained=False, cbs=memory(head, at='layers.0')))
    for fig in (learn.show_memories(2), learn.explain(files[:1]), learn.show_memories(1, ds_idx=0)):
        assert titles(fig)[0]=='pred: 2 x 32 x 32' and 'sim' in titles(fig)[1] and len(fig.axes[0].images)==1

class Words(nn.Module):
    "A small classifier of texts"
    def __init__(self, n, c):
        super().__init__()
        self.words,self.last = nn.Embedding(n, 16),nn.Linear(16, c)
    def forward(self, x): return self.last(self.words(x).mean(1))

def test_texts():
    said = [f'{a} flower {b} of price ${i} or $x_{i}' for i in range(12)
            for a,b in (('a red','opens'), ('no blue','dies'))]
    df = pd.DataFrame(dict(text=said, label=[str(o.startswith('no')) for o in said]))
    dls = TextDataLoaders.from_df(df, valid_pct=.25, seed=0, bs=6, text_col='text', label_col='label', num_workers=0,
                                  device='cpu')
    set_seed(0)
    learn = fit(Learner(dls, Words(len(dls.vocab[0]), 2), loss_func=CrossEntropyLossFlat(), cbs=memory()))
    for fig in (learn.show_memories(2), learn.explain(['a red flower costs $3 or $4', 'no blue flower dies']),
                learn.explain('no price')):
        fig.savefig('/dev/null', format='png')
        assert titles(fig)[0].split()[1] in ('True','False')
        assert 'flower' in texts(fig)[0] or 'price' in texts(fig)[0]
        assert 'xxpad' not in ' '.join(texts(fig))
    got = [*decoded_inputs(plain_dl(learn.dls.train, num_workers=0))]
    assert len({*got})>1 and all(o.startswith('xxbos') for o in got)

def test_numbers():
    "Targets that are no classes: what is answered are numbers"
    x,y = torch.randn(60, 5),torch.randn(60)
    dls = DataLoaders.from_dsets(list(zip(x[:40], y[:40])), list(zip(x[40:], y[40:])), bs=8, num_workers=0,
                                 device='cpu')
    set_seed(0)
    learn = fit(Learner(dls, nn.Sequential(nn.Linear(5,8), nn.ReLU(), nn.Linear(8,1)), loss_func=MSELossFlat(),
                        cbs=memory(None)))
    p = quietly(learn, 'get_preds')[0][0]
    assert titles(learn.show_memories(1))[0].splitlines()[0]==f'pred: {p[0]:.2f}'
