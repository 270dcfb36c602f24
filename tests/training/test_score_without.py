"The column of the first metric without the memory's answer: right, for classes and findings, several memories, any fit"
import pytest, torch
from fastai.vision.all import (AccumMetric, BCEWithLogitsLossFlat, DataLoaders, Learner, Metric, ValueMetric, accuracy,
                               accuracy_multi, set_seed)
from memo.banks.classes import ClassBank
from memo.banks.slots import SlotBank
from memo.banks.key_value import CachedBank
from memo.data.longtail import digits_lt
from memo.models.small import small_cnn
from memo.training.memory_callback import MemoryCallback

@pytest.fixture(scope='module')
def dls(): return digits_lt(n_max=40, ratio=4, valid=10, test=10, size=8, device='cpu')

def fitted(dls, *cbs, n=2, metrics=accuracy, **kw):
    set_seed(0)
    learn = Learner(dls, small_cnn(1, kw.pop('n_out', 10)), metrics=metrics, cbs=cbs, **kw)
    with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-2)
    return learn,dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))

@pytest.mark.parametrize('head', ['vote','dual','prototype'])
def test_it_is_the_score_of_the_network_alone(dls, head):
    bank = CachedBank(64) if head=='dual' else SlotBank(64)
    if head=='prototype': bank = ClassBank(10)
    learn,row = fitted(dls, MemoryCallback(bank, head=head))
    with learn.no_bar(), learn.memory.off(): p,y = learn.get_preds(ds_idx=1)
    assert row['memory_without']==pytest.approx((p.argmax(1)==y).float().mean().item())
    with learn.no_bar(): p,y = learn.get_preds(ds_idx=1)
    assert row['accuracy']==pytest.approx((p.argmax(1)==y).float().mean().item(), abs=.02)     # fitted since, if it is

def test_it_stands_beside_the_score_and_the_table_fits_100_columns(dls):
    learn = Learner(dls, small_cnn(1, 10), metrics=accuracy, cbs=MemoryCallback(SlotBank(64), head='vote'))
    with learn.no_bar(): learn.fit(1, 1e-2)
    assert learn.recorder.metric_names==['epoch','train_loss','valid_loss','accuracy','memory_without','memory_hit',
                                         'memory_fill','time']
    names = [o.ljust(8) for o in learn.recorder.metric_names]     # as fastprogress writes them
    assert len('  '.join(names))<=100

def test_several_memories_each_say_what_was_before_it(dls):
    def memory(head, **kw): return MemoryCallback(SlotBank(64), head=head, **kw)
    learn,row = fitted(dls, memory('vote', name='a'), memory('vote', name='b'), memory('add', at='4', name='c'))
    assert 'c_without' not in row       # what it adds cannot be taken out of the answer
    with learn.no_bar(), learn.a.off(), learn.b.off(): p,y = learn.get_preds(ds_idx=1)
    assert row['a_without']==pytest.approx((p.argmax(1)==y).float().mean().item())

def test_findings(dls):
    "The same metric, whatever it is"
    def rows(ds): return [(x.float()/255, torch.stack([y%2, y>4]).float()) for x,y in zip(ds.x, ds.y)]
    sets = [rows(o.dataset) for o in dls.loaders[:2]]
    two = DataLoaders.from_dsets(*sets, bs=32, device='cpu', num_workers=0)
    learn,row = fitted(two, MemoryCallback(SlotBank(64), head='vote'), metrics=accuracy_multi, n_out=2,
                       loss_func=BCEWithLogitsLossFlat())
    with learn.no_bar(), learn.memory.off(): p,y = learn.get_preds(ds_idx=1)
    assert row['memory_without']==pytest.approx(((p>.5)==(y>.5)).float().mean().item())

class Own(Metric):
    "One that may count anything"
    def reset(self): self.n = 0
    def accumulate(self, learn): self.n += 1
    @property
    def value(self): return self.n
    @property
    def name(self): return 'own'

@pytest.mark.parametrize('metrics', [None, ValueMetric(lambda: 3., 'three'), Own()])
def test_what_is_not_of_outputs_alone_is_not_counted_twice(dls, metrics):
    _,row = fitted(dls, MemoryCallback(SlotBank(64), head='vote'), n=1, metrics=metrics)
    assert 'memory_without' not in row

def test_a_metric_of_the_whole_set(dls):
    learn,row = fitted(dls, MemoryCallback(SlotBank(64), head='vote'), n=1,
                       metrics=AccumMetric(lambda p,y: (p.argmax(1)==y).float().mean().item(), flatten=False))
    with learn.no_bar(), learn.memory.off(): p,y = learn.get_preds(ds_idx=1)
    assert row['memory_without']==pytest.approx((p.argmax(1)==y).float().mean().item())
