"An epoch's loss, metrics and columns are of the mixture that is kept after it"
import warnings
import pytest, torch
from fastai.vision.all import (AccumMetric, AvgMetric, Callback, CrossEntropyLossFlat, DataLoaders, F1Score, L,
                               Learner, LossMetrics, Metric, Perplexity, Recorder, SaveModelCallback, accuracy, nn,
                               set_seed)
from copy import deepcopy
from contracts.made import digits
from helpers.half import Half
from helpers.learners import quietly
from memo.banks.classes import ClassBank
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.data.longtail import digits_lt
from memo.data.tensors import TensorDL, TensorSet
from memo.heads.attach import attach
from memo.heads.mixture import VoteHead
from memo.heads.retrieval import RetrievalHead
from memo.metrics.multiclass import ece
from memo.models.small import small_cnn
from memo.training.epoch_figures import EpochFigures
from memo.training.memory_callback import MemoryCallback
from memo.training.stages import Stage, fit_stages

class Keep(Callback):
    "The model as it is after each epoch, and the figures that the epoch was given"
    order = 70
    def before_fit(self): self.states,self.n = [],0
    def after_epoch(self):
        if getattr(self.recorder, 'cancel_valid', False): return
        self.states.append(deepcopy(self.learn.model.state_dict()))

class Changes(Callback):
    "What cannot be counted again from what the network answered"
    def __init__(self, what, order): self.what,self.order = what,order
    def after_pred(self):
        if self.what=='pred': self.learn.pred = self.pred*1.5
        if self.what=='yb': self.learn.yb = ((self.y+1)%10,)
    def after_loss(self):
        if self.what=='loss' and not self.training: self.learn.loss = self.learn.loss+1

def made(cbs, dls=None, metrics=accuracy, model=None, **kw):
    set_seed(0, reproducible=True)
    dls = digits_lt(n_max=40, ratio=6, valid=6, test=6) if dls is None else dls
    return Learner(dls, small_cnn(1, 10) if model is None else model, metrics=metrics, cbs=cbs, **kw)

def names_of(learn): return [o for o in learn.recorder.metric_names[1:] if o!='time']

def recorded_is_kept(learn, epochs=3, cbs=(), own='memory'):
    "Loss and metrics of each epoch are those of the model that was there after it"
    keep = Keep()
    quietly(learn, 'fit', epochs, 1e-2, cbs=[keep, *L(cbs)])
    names,rows = names_of(learn),[list(o) for o in learn.recorder.values]
    for i,(state,row) in enumerate(zip(keep.states, rows)):
        learn.model.load_state_dict(state)
        now = dict(zip([o.removeprefix('valid_') for o in ['valid_loss',*learn.metrics.attrgot('name')]],
                       quietly(learn, 'validate', cbs=None)[-1-len(learn.metrics):]))
        was = {k.removeprefix('valid_'):v for k,v in zip(names, row) if not k.startswith('train_') and own not in k}
        assert was.keys()==now.keys()
        for k in was: assert float(was[k])==pytest.approx(float(now[k]), rel=1e-4, abs=1e-5, nan_ok=True), (i, k)
    return rows

class OfLoss(Metric):
    "Looks at the loss, the outputs and the targets, as one's own metric may"
    name = 'of_loss'
    def reset(self): self.got = []
    def accumulate(self, learn):
        self.got.append(float(learn.loss)*len(learn.y)+float(learn.pred.softmax(1).max(1)[0].sum()))
    @property
    def value(self): return sum(self.got)

every = [accuracy, Perplexity(), F1Score(average='macro'), ece, OfLoss(),
         AccumMetric(lambda p, y: p.std()/len(y), name='std', flatten=False)]
memories = dict(vote=lambda: [MemoryCallback(SlotBank(300, policy='fifo'), head='vote')],
                white=lambda: [MemoryCallback(SlotBank(300, policy='fifo'), head='vote', whiten=True)],
                lda=lambda: [MemoryCallback(ClassBank(10, capacity=16), head='lda')],
                own=lambda: [MemoryCallback(SlotBank(300, policy='fifo'), head='toy_second')],
                two=lambda: [MemoryCallback(SlotBank(300, policy='fifo'), head='vote'),
                             MemoryCallback(ClassBank(10, capacity=16), head='prototype', name='memory_too')],
                three=lambda: [MemoryCallback(SlotBank(300, policy='fifo'), head='add', at='1', name='memory_early'),
                               MemoryCallback(ClassBank(10, capacity=16), head='lda'),
                               MemoryCallback(SlotBank(300, policy='fifo'), head='vote', name='memory_too')])

@pytest.mark.parametrize('kind', memories)
def test_figures_are_of_what_is_kept(kind):
    learn = made(memories[kind](), metrics=every)
    rows = recorded_is_kept(learn)
    assert len({tuple(map(float, r[1:3])) for r in rows})==3

def test_findings():
    from fastai.vision.all import BCEWithLogitsLossFlat, accuracy_multi
    from memo.metrics.multilabel import macro_auc
    set_seed(0)
    from contracts.made import Net
    learn = Learner(digits(multi=True), Net(4), loss_func=BCEWithLogitsLossFlat(), metrics=[accuracy_multi, macro_auc],
                    cbs=MemoryCallback(SlotBank(100, policy='fifo'), head='vote'))
    recorded_is_kept(learn)

@pytest.mark.parametrize('how', ['half', 'other targets', 'train_metrics', 'compiled', 'one callback',
                                 'a model in a model'])
def test_whatever_it_is_trained_with(how):
    cbs,model = memories['vote'](),small_cnn(1, 10)
    if how=='half': cbs += [Half()]
    if how=='other targets': cbs += [Changes('yb', 40)]
    if how=='compiled': model.compile(backend='eager')
    if how=='one callback':
        attach(model, VoteHead(SlotBank(300, policy='fifo')), name='memory')
        attach(model, VoteHead(SlotBank(50)), name='memory_too')
        cbs = [MemoryCallback()]
    if how=='a model in a model':
        attach(model, VoteHead(SlotBank(300, policy='fifo')))
        model,cbs = nn.Sequential(nn.Identity(), model),[MemoryCallback()]
    learn = made(cbs, model=model)
    if how=='train_metrics': learn.recorder.train_metrics = True
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        warnings.filterwarnings('ignore', category=FutureWarning)
        recorded_is_kept(learn)
    assert float(learn.memory.heads['memory'].weight)!=.5

def test_the_best_epoch_is_the_best(tmp_path):
    "SaveModelCallback keeps the epoch whose figure, counted of what it has kept, is the best"
    learn = made(memories['vote']())
    learn.path = tmp_path
    keep = Keep()
    quietly(learn, 'fit', 5, 3e-2, cbs=[keep, SaveModelCallback(fname='best')])
    now = quietly(learn, 'validate')[0]
    each = []
    for s in keep.states:
        learn.model.load_state_dict(s)
        each.append(quietly(learn, 'validate')[0])
    assert now==pytest.approx(min(each), rel=1e-5)

def test_the_best_epoch_of_a_stage():
    learn,rows = made(memories['two']()),[]
    h = quietly(learn, fit_stages, learn, [Stage('a', 4, 3e-2, monitor='valid_loss'), Stage('b', 2, 1e-2)],
                log=rows.append)
    assert quietly(learn, 'validate')[0]==pytest.approx(h.valid_loss.iloc[-1], rel=1e-5)
    learn = made(memories['two']())
    h = quietly(learn, fit_stages, learn, [Stage('a', 4, 3e-2, monitor='valid_loss')])
    assert quietly(learn, 'validate')[0]==pytest.approx(h.valid_loss.min(), rel=1e-5)

def test_hits_are_of_the_whitening_that_is_kept():
    learn = made(memories['white']())
    quietly(learn, 'fit', 2, 1e-2)
    row = dict(zip(names_of(learn), learn.recorder.values[-1]))
    h,c = learn.memory.head,learn.memory.collect(learn.dls.valid)
    right = h.bank.rows()[2][h.recall(c.z).index[:,0]]==c.y
    assert row['memory_hit']==pytest.approx(float(right.float().mean()), abs=1e-6)

@pytest.mark.parametrize('what,order', [('pred',0), ('pred',40), ('loss',0), ('loss',40)])
def test_what_cannot_be_counted_again_is_not_fitted(what, order):
    "It is said once, and the figures are of the mixture as it stays"
    learn = made([*memories['vote'](), Changes(what, order)])
    with pytest.warns(UserWarning, match='nothing is fitted while it trains') as w: recorded_is_kept(learn)
    assert sum('nothing is fitted' in str(o.message) for o in w)==1
    assert float(learn.memory.head.weight)==.5
    learn.memory.fit()
    assert float(learn.memory.head.weight)!=.5

@pytest.mark.parametrize('idx', [0,2])
def test_only_the_epochs_own_validation_is_fitted_to(idx):
    "Not what a callback validates besides, by fastai's inner way"
    class Besides(Callback):
        order = 65
        def after_epoch(self):
            self.was = deepcopy(self.learn.memory.head.chosen())
            self.learn._do_epoch_validate(idx)
            assert self.learn.memory.head.chosen()==self.was
    learn = made(memories['vote']())
    quietly(learn, 'fit', 2, 1e-2, cbs=Besides())
    want = learn.memory.head.chosen()
    assert {k:v for k,v in learn.memory.fit().items() if k in want}==pytest.approx(want, rel=1e-4)

def test_a_validation_set_of_stored_items_is_fitted_without_their_own_rows():
    "Cross-validation: the second fold's validation items are in the bank from the first"
    dls = digits_lt(n_max=30, ratio=1, valid=6, test=6)
    ds = dls.train.dataset
    def fold(a, b): return type(dls)(TensorDL(dataset=ds.subset(a, 0), bs=32, shuffle=True),
                                     TensorDL(dataset=ds.subset(b, 1), bs=32), device='cpu')
    i = torch.randperm(len(ds))
    learn = made(MemoryCallback(SlotBank(600, policy='fifo'), head='vote'), fold(i[:150], i[150:]))
    quietly(learn, 'fit', 1, 1e-2)
    learn.dls = fold(i[150:], i[:150])
    recorded_is_kept(learn, 1)
    got = learn.memory.head.chosen()
    assert {k:v for k,v in learn.memory.fit().items() if k in got}==pytest.approx(got, rel=1e-4)
    c = learn.memory.collect(learn.dls.valid, memory=True)
    assert c.own_item is not None
    learn.memory.head.fit({**c, 'logits':c.raw, 'own_item':None})      # each finds itself
    assert learn.memory.head.chosen()!=pytest.approx(got, rel=1e-4)

class Parts(nn.Module):
    "A loss that notes its parts, for fastai's LossMetrics"
    def forward(self, p, y):
        self.ce = nn.functional.cross_entropy(p, y)
        self.size = p.square().mean()
        return self.ce+.01*self.size

def test_what_a_loss_notes_of_itself():
    learn = made(memories['vote'](), loss_func=Parts(), metrics=[accuracy, *LossMetrics('ce,size')])
    loss = learn.loss_func
    recorded_is_kept(learn)
    assert learn.loss_func is loss

class OwnLoss(Callback):
    "Its loss leads to the learner"
    def before_fit(self): self.learn.loss_func = self.of
    def of(self, p, y): return nn.functional.cross_entropy(p, y)

def test_a_loss_of_a_callback_copies_no_learner(monkeypatch):
    def copied(self, memo): raise AssertionError('copied')
    for o in (DataLoaders, SlotBank): monkeypatch.setattr(o, '__deepcopy__', copied, raising=False)
    learn = made([*memories['vote'](), OwnLoss()])
    was = EpochFigures.loss_func.fget
    seen = []
    monkeypatch.setattr(EpochFigures, 'loss_func', property(lambda self: seen.append(was(self)) or seen[-1]))
    quietly(learn, 'fit', 1, 1e-2)
    assert seen and all(f.__self__ is not learn.own_loss and f.__self__.learn is learn for f in seen)

@pytest.mark.parametrize('other', [None,Recorder])
def test_a_learner_without_the_usual_recorder(other):
    learn = made(memories['vote']())
    learn.remove_cb(learn.recorder)
    if other is not None:
        class Mine(other): name = 'mine'
        learn.add_cb(Mine())
    quietly(learn, 'fit', 2, 1e-2)
    assert len(learn.memory.bank)>0 and float(learn.memory.head.weight)!=.5
