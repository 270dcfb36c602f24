"With the memory and without it: figures against the learner's own answers, items that change, nothing else that does"
from contextlib import contextmanager
import numpy as np, pytest, torch
from fastai.vision.all import (BCEWithLogitsLossFlat, Callback, CrossEntropyLossFlat, DataLoader, DataLoaders,
    Learner, MSELossFlat, accuracy, nn, set_seed)
from hypothesis import given, settings, strategies as st
from helpers.errors import err
from helpers.looks import looks
from memo.all import ClassBank, MemoryCallback, SlotBank, digits_lt, small_cnn
from memo.data.tensors import TensorDL, TensorSet, plain_dl
from memo.evaluation.compare_memory import MemoryComparison
from memo.metrics.multilabel import class_ap

@contextmanager
def quietly(learn):
    with learn.no_bar(), learn.no_logging(): yield

def trained(cbs, epochs=3, **kw):
    set_seed(0)
    learn = Learner(digits_lt(n_max=60, ratio=20, device='cpu'), small_cnn(), metrics=accuracy, cbs=cbs, **kw)
    with quietly(learn): learn.fit_one_cycle(epochs, 1e-2)
    return learn

@pytest.fixture(scope='module')
def learner(): return trained(MemoryCallback(SlotBank(400, policy='fifo'), head='vote'), 6)

@pytest.mark.parametrize('ds', [1,2])
def test_the_figures_are_the_learners(learner, ds):
    with quietly(learner):
        now,y = learner.get_preds(ds)
        with learner.memory.off(): was,_ = learner.get_preds(ds)
    c = learner.compare_memory(ds)
    torch.testing.assert_close(c.with_memory, now.as_subclass(torch.Tensor), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(c.without, was.as_subclass(torch.Tensor), atol=1e-5, rtol=1e-4)
    t,y = c.table().set_index('of'),np.asarray(y)
    for col,p in (('without',was),('with memory',now)):
        hit = p.argmax(1).numpy()==y
        assert t.loc['all',col]==pytest.approx(hit.mean())
        assert all(t.loc[str(k),col]==pytest.approx(hit[y==k].mean()) for k in range(10))
        few = [k for k in range(10) if learner.dls.counts[k]<learner.dls.few]
        assert t.loc['few',col]==pytest.approx(np.mean([hit[y==k].mean() for k in few]))
    a,b = (p.argmax(1).numpy()==y for p in (was,now))
    assert {*c.rescued.tolist()}=={*np.flatnonzero(b&~a)} and {*c.spoilt.tolist()}=={*np.flatnonzero(a&~b)}
    assert t.loc['all','rescued']==(b&~a).sum()>0 and c.at.tolist()==list(range(len(y)))
    assert 'few' in repr(c) and t.loc['few','items']==sum((y==k).sum() for k in few)

def test_training_items_do_not_find_themselves(learner):
    "As in predictions of the training set; the rows are those very items: found, the true class is surer"
    c,dl = learner.compare_memory(0),plain_dl(learner.dls.train)
    with quietly(learner):
        p,_ = learner.get_preds(dl=dl)
        with learner.memory.own_rows(): q,y = learner.get_preds(dl=dl)
    torch.testing.assert_close(c.with_memory, p.as_subclass(torch.Tensor)[c.at], atol=1e-5, rtol=1e-4)
    true = [o[torch.arange(len(y)),c.y].mean() for o in (c.with_memory, q.as_subclass(torch.Tensor)[c.at])]
    assert len(c.y)==len(learner.dls.train.dataset) and true[0]<true[1]

def test_both_answers_are_of_the_same_items_where_a_loader_shuffles(learner):
    "And leaves the last batch out: the training set's"
    c,ds = learner.compare_memory(0),learner.dls.train.dataset
    assert learner.dls.train.shuffle and torch.equal(c.y, ds.y[c.at]) and len(c.y)==len(ds)
    with quietly(learner), learner.memory.off(): p,_ = learner.get_preds(dl=plain_dl(learner.dls.train))
    torch.testing.assert_close(c.without, p.as_subclass(torch.Tensor)[c.at], atol=1e-5, rtol=1e-4)

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 40), st.booleans())
def test_every_table_adds_up(seed, c, n, multi):
    g = torch.Generator().manual_seed(seed)
    p = [torch.rand(n, c, generator=g) for _ in range(2)]
    y = torch.randint(-1, 2, (n,c), generator=g) if multi else torch.randint(0, c, (n,), generator=g)
    if multi: y[0,0] = 0
    m = MemoryComparison(*p, y, range(c), dict(few=torch.arange(1)))
    t = m.table()
    assert list(t.of)==['all','few',*map(str, range(c))]
    cls = t[2:]
    if multi:
        hit = [((q>.5)==(y>.5))[y>=0].sum() for q in p]
        assert cls.rescued.sum()-cls.spoilt.sum()==t.rescued[0]-t.spoilt[0]==hit[1]-hit[0]
        np.testing.assert_allclose(cls['with memory'], class_ap(p[1], y), equal_nan=True)
        assert 'not confused' in err(m.confusion)
    else:
        assert t.rescued[0]-t.spoilt[0]==round(t.change[0]*n)==cls.rescued.sum()-cls.spoilt.sum()
        d = m.confusion()
        assert (d.sum(1)==0).all() and np.trace(d)==t.rescued[0]-t.spoilt[0]
    assert m.plot().axes and str(m)

def test_of_several_memories_the_one_that_is_named():
    learn = trained([MemoryCallback(SlotBank(400, policy='fifo'), head='vote'),
                     MemoryCallback(ClassBank(10), head='prototype', name='rare')])
    assert 'say which with memory=' in err(learn.compare_memory) and 'rare' in err(learn.compare_memory, memory='none')
    c = learn.compare_memory(memory='rare')
    with quietly(learn), learn.rare.off(): p,_ = learn.get_preds(1)
    torch.testing.assert_close(c.without, p.as_subclass(torch.Tensor), atol=1e-5, rtol=1e-4)

@pytest.mark.parametrize('head', ['add','dual','density','lda'])
def test_every_kind_of_head(head):
    bank = ClassBank(10) if head=='lda' else SlotBank(400, policy='fifo')
    c = trained(MemoryCallback(bank, head=head)).compare_memory(2)
    assert len(c.y)==500 and not torch.equal(c.without, c.with_memory)

def test_in_the_middle_of_a_fit_nothing_is_changed():
    class Look(Callback):
        def after_epoch(self): self.learn.compare_memory(1); self.learn.show_memories(1, rescued=True)
    a,b = (trained([MemoryCallback(SlotBank(64), head='vote'), *cbs]) for cbs in ([],[Look()]))
    for p,q in zip(a.model.state_dict().values(), b.model.state_dict().values()): assert torch.equal(p, q)
    assert a.recorder.values==b.recorder.values

def vectors(y, n=40):
    g = torch.Generator().manual_seed(0)
    return DataLoaders(*[TensorDL(dataset=TensorSet(torch.randn(n, 6, generator=g), y(n, g)), bs=8, shuffle=not i,
                                  device='cpu') for i in range(2)])

def fitted(dls, out, loss):
    learn = Learner(dls, nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, out)), loss_func=loss,
                    cbs=MemoryCallback(SlotBank(32, policy='fifo')))
    with quietly(learn): learn.fit(1, 1e-2)
    return learn

def test_findings_some_of_which_are_not_known():
    dls = vectors(lambda n, g: torch.randint(0, 2, (n,3), generator=g).float())
    y = dls.valid.dataset.y
    y[:5,0],y[7] = -1,-1
    c = fitted(dls, 3, BCEWithLogitsLossFlat()).compare_memory()
    assert len(c.y)==39 and 7 not in c.at.tolist()      # of one nothing is known
    assert list(c.table().of)==['all','0','1','2'] and c.multi

def test_what_has_no_right_and_wrong_is_one_line():
    learn = fitted(vectors(lambda n, g: torch.randn(n, 1, generator=g)), 1, MSELossFlat())
    assert 'classes or findings are needed' in err(learn.compare_memory)
    assert 'no memory' in err(Learner(digits_lt(), small_cnn()).compare_memory)
    assert 'ds_idx' in err(learn.compare_memory, 5)

def test_labels_that_the_loss_leaves_out():
    dls = vectors(lambda n, g: torch.randint(0, 3, (n,), generator=g))
    dls.valid.dataset.y[:4] = -100
    assert len(fitted(dls, 3, CrossEntropyLossFlat()).compare_memory().y)==36

def test_pictures_are_of_the_items_that_changed(learner):
    c = learner.compare_memory(2)
    fig = learner.show_memories(3, ds_idx=2, k=2, rescued=True)
    titles = [ax.get_title() for ax in fig.axes if ax.get_title().startswith('without: ')]
    assert [t.rsplit('true: ')[-1] for t in titles]==[str(int(c.y[i])) for i in c.rescued[:3]]
    for t,i in zip(titles, c.rescued.tolist()):
        assert f'without: {int(c.without[i].argmax())}' in t and f'with: {int(c.y[i])}' in t
    none = Learner(learner.dls, learner.model, cbs=MemoryCallback())
    with none.memory.off():
        fig = none.show_memories(3, ds_idx=2, rescued=False)
        assert 'makes wrong none of 500' in ' '.join(fig.axes[0].texts[0].get_text().split())

@pytest.mark.parametrize('n', [1,3])
def test_what_stands_above_items_that_changed_can_be_read(learner, n):
    "Three lines a row; none is cut off at the edge"
    assert not looks(learner.show_memories(n, ds_idx=2, k=5, rescued=True))

def test_a_finding_is_found_above_its_threshold():
    "That of the learner, as a run has chosen it; nan (none was chosen) is .5"
    learn = fitted(vectors(lambda n, g: torch.randint(0, 2, (n,3), generator=g).float()), 3, BCEWithLogitsLossFlat())
    learn.thresholds = torch.tensor([.2,.9,float('nan')])
    c = learn.compare_memory()
    right = ((c.with_memory>torch.tensor([.2,.9,.5]))==(c.y>.5)).all(1)
    assert torch.equal(c.right(c.with_memory), right)
    assert 'threshold' in err(MemoryComparison, c.without, c.with_memory, c.y, 'abc', threshold=2)

class Endless(torch.utils.data.IterableDataset):
    "The items of a set, one after another"
    def __init__(self, ds): self.ds = ds
    def __iter__(self): return ((self.ds.x[i].float()/255, self.ds.y[i]) for i in range(len(self.ds.y)))

def test_rescued_items_of_a_stream_are_those(learner):
    ds = learner.dls[2].dataset
    dl = DataLoader(Endless(ds), bs=50, n=len(ds.y))
    dls = DataLoaders(learner.dls.train, dl)
    learn = Learner(dls, learner.model, loss_func=learner.loss_func, cbs=MemoryCallback())
    c = learn.compare_memory(1)
    r = learn.recall(ds_idx=1, idxs=c.at[c.rescued[:3]].tolist())
    assert torch.equal(r.y, c.y[c.rescued[:3]]) and len(r.y)==3
    torch.testing.assert_close(r.probs, c.with_memory[c.rescued[:3]], atol=1e-5, rtol=1e-4)
