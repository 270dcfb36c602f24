"""Pictures and tables of a ClassBank: the numbers are the bank's, the images are those of its items, files are
read or refused by name"""
import io, json
import numpy as np, pytest, torch
import matplotlib.pyplot as plt
from fastai.data.all import DataLoaders
from fastai.learner import Learner
from fastai.vision.all import set_seed
from safetensors.torch import save_file
from sklearn.metrics.pairwise import cosine_similarity
from torch import nn
from memo.plots.banks import bank_summary, bank_table, class_text, plot_classbank, plot_similarity, plot_stored
from memo.banks.exchange import open_bank, write_bank_json
from memo.banks.slots import SlotBank
from memo.training.memory_callback import MemoryCallback
from memo.banks.classes import ClassBank
from memo.core import MemoError
from memo.data.tensors import TensorDL
from memo.data.longtail import digits_lt
from memo.models.small import small_cnn

def filled(n, dim=8, capacity=16, seed=0, **kwargs):
    "A bank that has seen n[c] rows of class c"
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(len(n)).repeat_interleave(torch.tensor(n))
    b = ClassBank(len(n), capacity, **kwargs)
    if len(y):
        b.write(torch.randn(len(n), dim, generator=g)[y]+.3*torch.randn(len(y), dim, generator=g), y,
                item=torch.arange(len(y)))
    return b

@pytest.fixture(scope='module')
def bank(): return filled([40,3,0,12,7,25])

def texts(ax): return ' '.join(t.get_text() for t in ax.texts)
def legend(ax): return [t.get_text() for t in ax.get_legend().get_texts()]
def images(fig): return [np.asarray(a.images[0].get_array()) for a in fig.axes if a.images]
def ticks(axis): return [t.get_text() for t in axis.get_ticklabels()]
def saved(fig):
    fig.savefig(io.BytesIO(), format='png', dpi=30)
    return fig

# four panels

def test_panels_count_every_class(bank):
    a,b,c,d = saved(plot_classbank(bank, list('abcdef'))).axes
    lo,hi = bank.thresholds()
    # a class that was not seen has no share and no prototype
    assert [sum(p.get_height() for p in o.patches) for o in (a,c,d)]==[5,6,5]
    assert [l.get_xdata()[0] for l in a.lines]==pytest.approx([100*lo/87,
        100*hi/87]) and legend(a)==[f'tail: at most {lo:.6g} rows', f'head: at least {hi:.6g} rows']
    assert ticks(b.xaxis)==['tail','medium','head',
                            'unseen'] and [p.get_height() for p in b.patches]==[*bank.distribution().values(),
                                1] and texts(b)=='1 3 1 1'
    norm = bank.prototypes().norm(dim=1)[bank.counts>0]
    edges = [d.patches[0].get_x(), d.patches[-1].get_x()+d.patches[-1].get_width()]
    assert edges==pytest.approx([float(norm.min()), float(norm.max())], rel=1e-4) and (c.patches[0].get_x(),
        c.patches[-1].get_x()+c.patches[-1].get_width())==pytest.approx((0,100))
    title = a.figure._suptitle.get_text()
    assert '5 of 6 classes seen' in title and 'rarest: b (3), e (7), d (12)' in title

def test_all_rows_of_utilisation_are_where_they_belong():
    c = plot_classbank(filled([16,8,1,0], capacity=16)).axes[2]
    assert [i for i,p in enumerate(c.patches) for _ in range(int(p.get_height()))]==[0,1,10,19]

@pytest.mark.parametrize('n', [[5], [4,4,4], [1], [0,1]])
def test_few_and_equal_classes(n):
    b = filled(n)
    fig = saved(plot_classbank(b))
    assert sum(p.get_height() for p in fig.axes[0].patches)==sum(o>0
        for o in n) and all(np.isfinite(a.get_xlim()).all() for a in fig.axes)
    # nothing is tail or head among equals
    assert legend(fig.axes[0])==[f'tail: below {max(n)} rows', f'head: above {max(n)} rows']
    assert saved(plot_similarity(b)).axes

def test_zero_vectors():
    b = ClassBank(2, 4)
    b.write(torch.zeros(4,3), torch.tensor([0,1,1,1]))
    saved(plot_classbank(b))
    saved(plot_similarity(b))
    assert len(bank_table(b))==2

def test_eight_thousand_classes():
    n = (2000/torch.arange(1, 8143)).long()
    b = ClassBank(8142, 2)
    b.write(torch.randn(int(n.sum()), 4, generator=torch.Generator().manual_seed(0)),
            torch.arange(8142).repeat_interleave(n))
    fig = saved(plot_classbank(b))
    assert fig.axes[0].get_xscale()=='log' and sum(p.get_height()
                                                   for p in fig.axes[0].patches)==2000 and '6142' in texts(fig.axes[1])
    ax = saved(plot_similarity(b)).axes[0]
    assert images(ax.figure)[0].shape==(60,60) and ax.get_title()=='60 rarest of 2000 classes seen'
    assert not ticks(saved(plot_similarity(b, most=500)).axes[0].yaxis)      # no room for names
    df = bank_table(b)
    assert len(df)==8142 and set(df.group[df.seen==0])=={'unseen'} and len(class_text(b, None, 20).splitlines())==22

@pytest.mark.parametrize('f', [plot_classbank, plot_similarity])
def test_empty_and_other_banks(f):
    assert 'empty' in texts(saved(f(ClassBank(3, 4))).axes[0]) and 'empty' in texts(f(ClassBank(3, '1MB')).axes[0])
    with pytest.raises(MemoError, match='SlotBank: plot_bank'): f(SlotBank(4))

def test_no_window_and_no_random_number(bank):
    plt.close('all')
    was,draws = torch.get_rng_state(),int(bank.draws)
    for f in (plot_classbank, plot_similarity): saved(f(bank))
    bank_table(bank)
    assert not plt.get_fignums() and torch.equal(was, torch.get_rng_state()) and int(bank.draws)==draws

# similarity and the table

def test_similarity_is_ordered_by_count(bank):
    fig = plot_similarity(bank, list('abcdef'))
    order = [0,5,3,4,1]
    np.testing.assert_allclose(images(fig)[0], cosine_similarity(bank.prototypes()[order]), atol=1e-5)
    assert ticks(fig.axes[0].xaxis)==list('afdeb') and ticks(fig.axes[0].yaxis)==['a (40)','f (25)','d (12)','e (7)',
        'b (3)']
    few = plot_similarity(bank, most=2)
    assert ticks(few.axes[0].xaxis)==['4','1'] and images(few)[0].shape==(2,2)

@pytest.mark.parametrize('dtype', ['float32','int8'])
def test_table(dtype):
    b = filled([40,3,0,12,7,25], dtype=dtype)
    df = bank_table(b, list('abcdef'))
    assert df['class'].tolist()==[2,1,4,3,5,0] and df.name.tolist()==list('cbedfa') and df.seen.tolist()==[0,3,7,12,25,
        40] and df.stored.tolist()==[0,3,7,12,16,16]
    assert df.group.tolist()==['unseen','tail','medium','medium','medium','head']
    s = cosine_similarity(b.prototypes())
    np.fill_diagonal(s, -9)
    s[:,2] = -9
    seen = df['class'].tolist()[1:]
    assert df.nearest.tolist()==[-1]+s.argmax(1)[seen].tolist() and np.isnan(df.cosine[0]) and df.cosine[1:].tolist(
        )==pytest.approx(s.max(1)[seen].tolist(), abs=1e-5)
    assert df.prototype_norm.tolist()==pytest.approx(b.prototypes().norm(dim=1)[df['class'].tolist()].tolist())
    assert bank_table(b, n=2)['class'].tolist()==[1,
                                                  4] and len(bank_table(ClassBank(3, 4)))==3 and len(
                                                      bank_table(ClassBank(3, 4), n=2))==0

def test_text(bank):
    t = class_text(bank, ['ant','bee','cat','dog','eel','a fox of more than eighteen letters'], 4)
    assert [l.split()[:2] for l in t.splitlines()[1:5]]==[['1','bee'],['4','eel'],['3','dog'],
                                                          ['5','a']] and 'a fox of..letters' in t and t.endswith(
                                                              '... 1 more: --all')
    assert class_text(bank, None, 1).splitlines()[1].split()[0]=='1' and class_text(ClassBank(3,
        4))=='no class was seen'
    s = bank_summary(bank)
    lo,hi = bank.thresholds()
    assert all(o in s for o in ('ClassBank','width 8','54 of 96','87 rows in 1 writes','5 of 6 seen',
                                f'1 tail (at most {lo:.6g} rows)',f'1 head (at least {hi:.6g} rows)'))
    assert 'budget of 1MB' in bank_summary(ClassBank(3, '1MB')) and '0 of 3 seen' in bank_summary(ClassBank(3, 4))

def test_summary_of_slots():
    b = SlotBank(8, policy='fifo', n_classes=3)
    b.write(torch.randn(5,4), torch.tensor([0,0,2,2,2]))
    assert all(o in bank_summary(b) for o in ('SlotBank, fifo','5 of 8','2 of 3 have rows'))

# stored images

@pytest.fixture(scope='module')
def digits():
    set_seed(0)
    learn = Learner(digits_lt(), small_cnn(), cbs=MemoryCallback(ClassBank(10, 8)))
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3)
    return learn

def original(learn, item):
    ds = learn.dls.train.dataset
    x = ds.x[int((ds.items==item).nonzero())][None].float()/255
    return nn.functional.interpolate(x, (16,16), mode='bilinear')[0,0].numpy()

def kept(bank, c): return list(dict.fromkeys(bank.items[c,:int(bank.class_counts()[c])].tolist()))

def test_images_are_those_of_the_items(digits):
    bank,fig = digits.memory.bank,saved(digits.show_classes())
    tail = sorted(bank.tail(), key=lambda c: int(bank.counts[c]))
    labels = [texts(a) for a in fig.axes if not a.images]
    assert [o.split('\n')[0] for o in labels]==[str(digits.dls.vocab[c])
                                                for c in tail] and f'of {bank.counts[tail[0]]} kept' in labels[
                                                    0] and labels[0].endswith('tail')
    want = [original(digits, i) for c in tail for i in kept(bank, c)[:6]]
    # an image that was kept in several epochs is shown once
    assert all(f'{len(kept(bank, c))} images' in o for c,o in zip(tail, labels))
    for a,b in zip(images(fig), want, strict=True): np.testing.assert_allclose(a, b, atol=6e-3)

def test_stored_images_have_the_class_they_are_shown_for(digits):
    "By the labels of the training set, not those of the bank"
    ds,bank = digits.dls.train.dataset,digits.memory.bank
    label = dict(zip(ds.items.tolist(), ds.y.tolist()))
    n = bank.class_counts()
    assert all(label[i]==c for c in range(10) for i in bank.items[c,:n[c]].tolist())

def test_classes_by_number_and_name(digits):
    name = str(digits.dls.vocab[3])
    for o in (3, [3], name, [name], np.int64(3), torch.tensor(3)): assert len(images(digits.show_classes(o, k=2)))==2
    assert len(images(digits.show_classes([3,0], k=99)))==sum(len(kept(digits.memory.bank, c)) for c in (3,0))
    for o,m in ((10,'class 10 is out of range'), (-1,'class -1'), ('thirteen',"'thirteen' is not one of")):
        with pytest.raises(MemoError, match=m): digits.show_classes(o)
    with pytest.raises(MemoError, match='k: 0'): digits.show_classes(k=0)

def test_not_seen_and_not_there(digits):
    b = ClassBank(10, 4)
    assert 'empty' in texts(plot_stored(b, digits.dls).axes[0])
    b.write(torch.randn(2,4), torch.tensor([1,1]), item=torch.tensor([987654,-1]))
    fig = saved(plot_stored(b, digits.dls, [1,2]))
    t = ' '.join(texts(a) for a in fig.axes)
    assert 'item\n987654\nnot in\ndls.train' in t and 'item not\nknown' in t and 'never seen' in t and not images(fig)

def test_at_most_eight_classes_of_the_tail(digits):
    b = filled([100]*20+[1]*10)
    b.tail_percentile = 40.
    assert len(b.tail())>8
    b.items.fill_(-1)
    assert len([a for a in plot_stored(b, digits.dls, k=1).axes if 'kept' in texts(a)])==8

def test_without_memory_or_with_slots(digits):
    with pytest.raises(MemoError, match='no memory'): Learner(digits.dls, small_cnn()).show_classes()
    with pytest.raises(MemoError, match='ClassBank is needed'):
        Learner(digits.dls, small_cnn(), cbs=MemoryCallback(SlotBank(8))).show_classes()

def test_looking_changes_nothing(digits):
    def state(): return torch.get_rng_state().tolist(), digits.dls.train.rng.getstate(), int(digits.memory.bank.draws)
    was = state()
    digits.show_classes()
    assert state()==was

def test_multi_label_vectors():
    set_seed(0)
    x,y = torch.randn(40,12),torch.randint(0, 2, (40,3)).float()
    dls = DataLoaders(TensorDL(x, y, bs=8, shuffle=True, split_idx=0),
                      TensorDL(x[:8], y[:8], items=torch.arange(40,48), split_idx=1))
    learn = Learner(dls, nn.Sequential(nn.Linear(12,16), nn.ReLU(), nn.Linear(16,3)), loss_func=nn.BCEWithLogitsLoss(),
                    cbs=MemoryCallback(ClassBank(3, 4)))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert len(saved(learn.show_classes([0,1,2], k=2)).axes)==3*(1+2)

# files

@pytest.mark.parametrize('dtype', ['float32','float16','bfloat16','int8'])
def test_a_file_gives_the_bank(tmp_path, dtype):
    b = filled([4,3,2], dtype=dtype)
    b.save(tmp_path/'b.safetensors')
    got,run = open_bank(tmp_path/'b.safetensors')
    assert run is None and all(torch.equal(v, b.state_dict()[k]) for k,v in got.state_dict().items())

def test_json_files(tmp_path):
    b = filled([40,3,0,12,7,25])
    write_bank_json(b, tmp_path/'new/folder', 4, whole=True)
    p = json.loads((tmp_path/'new/folder/prompt_data.json').read_text())
    assert list(p)==['1'] and np.shape(p['1']['features'])==(3,
        8) and p['1']['prototype']==pytest.approx(b.prototype(1).tolist())
    t = json.loads((tmp_path/'new/folder/tail_analysis.json').read_text())
    assert t['summary']['tail_class_ids']==[1] and t['1']['statistics']['class_frequency']==3
    got,_ = open_bank(tmp_path/'new/folder/memory.json')
    torch.testing.assert_close(got.prototypes(), b.prototypes())

def test_foreign_files_are_refused_by_name(tmp_path):
    b = filled([4,3,2])
    b.save(tmp_path/'b.safetensors')
    whole = (tmp_path/'b.safetensors').read_bytes()
    (tmp_path/'cut.safetensors').write_bytes(whole[:len(whole)//2])
    (tmp_path/'text.safetensors').write_text('hello')
    (tmp_path/'none.safetensors').touch()
    save_file(dict(a=torch.zeros(2)), tmp_path/'foreign.safetensors')
    save_file(dict(a=torch.zeros(2)), tmp_path/'plain.safetensors', metadata=dict(config='x'))
    save_file({k:v for k,v in b.state_dict().items() if k!='mass'}, tmp_path/'part.safetensors', metadata=b.header())
    (tmp_path/'x.json').write_text('{"a": 1}')
    (tmp_path/'y.json').write_text('{"a": ')
    (tmp_path/'folder').mkdir()
    said = {'cut.safetensors':'not a whole safetensors', 'text.safetensors':'not a whole safetensors',
            'none.safetensors':'not a whole safetensors', 'foreign.safetensors':'no bank',
        'plain.safetensors':'no memory', 'part.safetensors':'no whole bank', 'x.json':'no memory bank',
        'y.json':'not a whole JSON', 'folder':'no config.yaml', 'nope.safetensors':'no such file',
        'nope':'no such file'}
    for name,m in said.items():
        with pytest.raises(MemoError, match=m) as e: open_bank(tmp_path/name)
        assert name in str(e.value) and '\n' not in str(e.value)
