"A gate in a learner: one answer whoever asks, columns of both paths on the same samples, the accuracy in training"
import warnings
import pytest, timm, torch
from fastai.callback.training import GradientAccumulation
from fastai.callback.mixup import MixUp
from fastai.vision.all import (Callback, CrossEntropyLossFlat, DataLoaders, L, Learner, MSELossFlat, accuracy, nn,
                               no_random, set_seed)
from contracts.made import X, Y, digits, learner
from helpers.errors import err
from helpers.half import Half
from helpers.learners import quietly
from memo.banks.key_value import CachedBank, TrainableBank
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.data.longtail import digits_lt
from memo.data.tensors import TensorDL, TensorSet
from memo.models.small import small_cnn
from memo.training.memory_callback import MemoryCallback

def made(head='dual', bank=None, dls=None, cbs=(), threshold=.93, loss_weight=.3, **kw):
    set_seed(0, reproducible=True)
    if head=='exit': kw['at'] = '1'
    bank = CachedBank(300, similarity_threshold=1.) if bank is None else bank
    dls = digits_lt(n_max=40, ratio=4, valid=10, test=6) if dls is None else dls
    cb = MemoryCallback(bank, head=head, threshold=threshold, loss_weight=loss_weight, **kw)
    return Learner(dls, small_cnn(1, 10), metrics=accuracy, cbs=[cb, *cbs])

def last(learn):
    names = [o for o in learn.recorder.metric_names[1:] if o!='time']
    return dict(zip(names, learn.recorder.values[-1]))

class Keep(Callback):
    "Outputs of the last pass over the validation set"
    order = 100
    def before_validate(self): self.out = []
    def after_pred(self):
        if not self.training: self.out.append(self.pred.detach().float())

def last_linear(model): return [m for m in model.modules() if isinstance(m, nn.Linear)][-1]

class Rows:
    "Counts the rows that enter a module"
    def __init__(self, module): self.n,self.hook = 0,module.register_forward_pre_hook(self)
    def __call__(self, module, args): self.n += len(args[0])

@pytest.mark.parametrize('soft', [False,True])
@pytest.mark.parametrize('head', ['dual','exit'])
def test_one_answer_whoever_asks(head, soft):
    "A fit's own validation, `validate`, `get_preds`, the model itself; only the first holds no row back"
    keep = Keep()
    learn = made(head, threshold=.9 if head=='dual' else .8, cbs=[keep], soft=soft)
    rows = Rows(last_linear(learn.model))
    class Count(Callback):
        def before_validate(self): rows.n = 0
        def after_validate(self): self.got = rows.n
    learn.add_cb(count := Count())
    quietly(learn, 'fit', 4, 1e-2)
    n,own,col = len(learn.dls.valid_ds),torch.cat(keep.out),last(learn)
    assert count.got==n and 0<col['memory_usage']<1
    misses = n if soft else n-round(n*col['memory_usage'])
    assert float(quietly(learn, 'validate')[1])==pytest.approx(col['accuracy'])
    assert count.got==misses
    torch.testing.assert_close(torch.cat(keep.out), own, rtol=1e-3, atol=1e-4)
    probs,y = quietly(learn, 'get_preds')
    assert count.got==misses
    torch.testing.assert_close(probs, own.softmax(1), rtol=1e-3, atol=1e-4)
    rows.n = 0
    learn.model.eval()
    with torch.no_grad(): out = torch.cat([learn.model(b[0]) for b in learn.dls.valid])
    assert rows.n==misses
    torch.testing.assert_close(out, own, rtol=1e-3, atol=1e-4)
    assert float((out.argmax(1)==y).float().mean())==pytest.approx(col['accuracy'])

@pytest.mark.parametrize('bank', [lambda: CachedBank(120), lambda: TrainableBank(120),
                                  lambda: SlotBank(120, policy='fifo')], ids=['cached','trainable','slots'])
def test_columns_are_of_the_rows_that_the_memory_answers(bank):
    learn = made(bank=bank(), threshold=.9)
    quietly(learn, 'fit', 3, 1e-2)
    col,c,head = last(learn),learn.memory.collect(learn.dls.valid),learn.memory.head
    assert [o for o in col if o.startswith('memory_')]==['memory_without','memory_usage','memory_accuracy',
        'memory_network_accuracy','memory_loss','memory_fill']
    cls,sure = head.bank.classify(c.z)
    hit,net = sure>=head.threshold,c.raw.argmax(1)
    assert 0<int(hit.sum())<len(hit)
    assert col['memory_usage']==pytest.approx(float(hit.float().mean()))
    assert col['memory_accuracy']==pytest.approx(float((cls==c.y)[hit].float().mean()))
    assert col['memory_network_accuracy']==pytest.approx(float((net==c.y)[hit].float().mean()))
    assert col['accuracy']==pytest.approx(float((torch.where(hit, cls, net)==c.y).float().mean()))

def test_nothing_answered_is_no_accuracy():
    learn = made(threshold=1.)
    quietly(learn, 'fit', 1, 1e-2)
    col = last(learn)
    assert col['memory_usage']==0 and col['memory_accuracy'] is None and col['memory_network_accuracy'] is None

class Right(Callback):
    "Counts what is right in training, in a way of its own"
    order = 99
    def before_train(self): self.r = self.n = 0
    def after_loss(self):
        if not self.training: return
        ok = self.y!=-100
        self.r += int((self.pred.argmax(1)==self.y)[ok].sum())
        self.n += int(ok.sum())

def counted(learn, see, **kw):
    quietly(learn, 'fit', 2, 1e-2, **kw)
    assert see.n>0 and last(learn)['train_accuracy']==pytest.approx(see.r/see.n)

def test_accuracy_in_training():
    "That of the network, on the batches that it was trained on, without anything to be set"
    learn = made(cbs=[see := Right()], threshold=-1)
    counted(learn, see)
    counted(learn, see, cbs=GradientAccumulation(24))
    counted(learn, see, cbs=Half())
    names = learn.recorder.metric_names
    assert names.count('train_accuracy')==1 and not [o for o in learn.metrics.attrgot('name') if 'train' in o]

def test_accuracy_in_training_of_items_that_have_a_label():
    dls = digits_lt(n_max=40, ratio=4, valid=10, test=6)
    dls.train_ds.y[::3] = -100
    learn = made(dls=dls, cbs=[see := Right()])
    counted(learn, see)
    assert see.n<len(dls.train_ds)

def test_one_column_for_two_gates_and_none_for_others():
    learn = made(cbs=[see := Right()])
    learn.add_cb(MemoryCallback(SlotBank(50, policy='fifo'), head='dual', name='early', at='1', threshold=.99))
    counted(learn, see)
    assert learn.recorder.metric_names.count('train_accuracy')==1 and 'early_usage' in last(learn)
    other = learner(SlotBank(50, policy='fifo'), 'vote')
    quietly(other, 'fit', 1, 1e-2)
    assert 'train_accuracy' not in other.recorder.metric_names

def test_mixed_labels_have_no_accuracy_in_training():
    learn = made()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        quietly(learn, 'fit', 1, 1e-2, cbs=MixUp())
    assert last(learn)['train_accuracy'] is None

def test_columns_of_training_batches():
    "With fastai's `train_metrics` there are both, of the rows that the memory would answer; own rows are hidden"
    learn = made(threshold=.9)
    learn.recorder.train_metrics = True
    quietly(learn, 'fit', 3, 1e-2)
    col = last(learn)
    assert 0<col['train_memory_usage']<=1 and 0<=col['train_memory_accuracy']<=1 and 'valid_memory_usage' in col
    assert list(col).count('train_accuracy')==1

class Inside(Callback):
    "Validates, predicts and fits in the middle of a fit"
    order = 97
    def __init__(self, what=None): self.what,self.on,self.rows = what,False,[]
    def after_epoch(self):
        if self.on: return
        self.on = True
        if self.n_epoch>1: self.rows.append([str(o) for o in self.recorder.log[2:-1]])      # fastai smooths anew
        if self.what in ('validate','get_preds'):
            with no_random(): getattr(self.learn, self.what)()
        if self.what=='fit':
            opt,names = self.learn.opt,self.learn.recorder.metric_names
            model = {k:v.clone() for k,v in self.learn.model.state_dict().items()}
            was = [(k,getattr(self.learn.recorder, k)) for k in ('lrs','iters','losses','values','log','metric_names')]
            self.learn.fit(1, 1e-2)
            self.learn.model.load_state_dict(model)
            for k,v in was: setattr(self.learn.recorder, k, v)
            self.learn.opt = opt
        self.on = False

@pytest.mark.parametrize('what', ['validate','get_preds'])
def test_predictions_inside_a_fit_change_nothing(what):
    one,two = Inside(),Inside(what)
    for see in (one,two): quietly(made(threshold=.9), 'fit', 3, 1e-2, cbs=see)
    assert len(one.rows)==3 and one.rows==two.rows

def test_a_fit_inside_a_fit_leaves_the_columns():
    a = made(threshold=.9)
    quietly(a, 'fit', 2, 1e-2, cbs=Inside('fit'))
    names = [o for o in a.recorder.metric_names[1:] if o!='time']
    assert names.count('train_accuracy')==1 and all(len(r)==len(names) for r in a.recorder.values)
    assert not [o for o in a.metrics.attrgot('name') if o.startswith(('memory','train'))]

def own_rows_of_loss(learn):
    "Items that the loss was asked to hide in each step, beside the batch's"
    bank,seen = learn.memory.bank,[]
    was = bank.contrastive
    def spy(z, y, temperature=.1, item=None, group=None):
        seen.append((len(z),item,y))
        return was(z, y, temperature, item, group)
    bank.contrastive = spy
    return seen

@pytest.mark.parametrize('unknown', [False,True])
def test_the_loss_hides_a_rows_own_item(unknown):
    "Also where some of a batch have no label and are left out"
    dls = digits_lt(n_max=40, ratio=4, valid=10, test=6)
    if unknown: dls.train_ds.y[::3] = -100
    learn = made(dls=dls)
    seen = own_rows_of_loss(learn)
    quietly(learn, 'fit', 2, 1e-2)
    assert seen and all(i is not None and len(i)==n==len(y) and (i>=0).all() and (y>=0).all() for n,i,y in seen)

def test_the_loss_is_what_is_trained():
    "It brings features of a class together: the share answered at the same threshold is larger with it"
    use = []
    for w in (0., .5):
        learn = made(loss_weight=w, threshold=.95)
        quietly(learn, 'fit', 5, 1e-2)
        use.append(float(learn.memory.coverage().query('now').coverage.iloc[0]))
    assert use[1]>use[0]

def test_half_precision():
    learn = made(cbs=[Half()], threshold=.9)
    quietly(learn, 'fit', 3, 1e-2)
    assert torch.bfloat16 in learn.dtypes
    assert 0<last(learn)['memory_usage']<=1 and quietly(learn, 'get_preds')[0].isfinite().all()

def test_targets_that_are_no_classes_are_refused_at_the_first_step():
    with pytest.raises(MemoError, match="0/1") as e: quietly(learner(SlotBank(16), 'dual', multi=True), 'fit', 1)
    assert '\n' not in str(e.value) and "head='vote'" in str(e.value)
    def mk(a, b): return TensorDL(dataset=TensorSet(X[a:b], Y[a:b].float()), bs=16)
    dls = DataLoaders(mk(0, 48), mk(48, 64), device='cpu')
    learn = Learner(dls, nn.Sequential(nn.Flatten(), Float(), nn.Linear(64, 1)), loss_func=MSELossFlat(),
                    cbs=MemoryCallback(SlotBank(16), head='dual'))
    with pytest.raises(MemoError, match='works by the labels') as e: quietly(learn, 'fit', 1)
    assert '\n' not in str(e.value)

class Float(nn.Module):
    def forward(self, x): return x.float()/255

def test_exported_and_loaded(tmp_path):
    from fastai.learner import load_learner
    learn = made(threshold=.9)
    quietly(learn, 'fit', 3, 1e-2)
    got = learn.memory.fit(eps=.02)
    x = learn.dls.valid_ds.x
    want = quietly(learn, 'get_preds')[0]
    learn.export(tmp_path/'m.pkl')
    new = load_learner(tmp_path/'m.pkl')
    rows = Rows(last_linear(new.model))
    out = quietly(new, 'get_preds', dl=new.dls.test_dl(x))[0]
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)
    assert rows.n==len(x)-round(got['coverage']*len(x)) and new.memory.head.chosen()==learn.memory.head.chosen()

@pytest.mark.parametrize('head', ['dual','exit'])
@pytest.mark.parametrize('bank', [CachedBank,TrainableBank])
def test_batches_of_one_sample(bank, head):
    "In training and in evaluation; a full bank too"
    set_seed(0)
    train,valid = (TensorDL(torch.rand(n, 1, 8, 8), torch.arange(n)%3, bs=1, vocab=range(3)) for n in (12,6))
    kw = dict(at='blocks.1') if head=='exit' else {}
    net = timm.create_model('vit_tiny_patch16_224', img_size=8, patch_size=4, in_chans=1, depth=3, num_classes=3)
    learn = Learner(DataLoaders(train, valid, device='cpu'), net, loss_func=CrossEntropyLossFlat(), metrics=accuracy,
                    cbs=MemoryCallback(bank(8), head=head, threshold=-1., loss_weight=.3, **kw))
    quietly(learn, 'fit', 2, 1e-3)
    got = last(learn)
    assert len(learn.memory.bank)==8 and got['memory_usage']==1 and 0<got['train_loss']<9
    probs,_ = quietly(learn, 'get_preds')
    assert probs.shape==(6,3) and probs.isfinite().all()
