"Any model: what wraps, copies, replaces or parts it keeps its memory, or says in one line that it cannot"
import pickle, warnings
import pytest, timm, torch
from fastai.vision.all import *
from timm.utils import ModelEmaV2, ModelEmaV3
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from memo.banks.base import Bank
from memo.banks.classes import ClassBank
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.data.longtail import digits_lt
from memo.heads.attach import attach, detach, memories
from memo.heads.base import MemoryHead
from memo.models.small import small_cnn
from memo.training.memory_callback import MemoryCallback
import copy     # fastai has something else of that name
from helpers.learners import quietly
for k in [k for k in globals() if k.startswith('test')]: del globals()[k]

@pytest.fixture(scope='module')
def dls(): return digits_lt(seed=0, n_max=30, ratio=4, valid=6, test=10)

def memory(head='add', policy='fifo', **kw): return MemoryCallback(SlotBank(64, policy=policy), head=head, **kw)
def learner(dls, cbs=None, model=None, **kw):
    set_seed(0, reproducible=True)
    dls.train.rng = random.Random(0)
    return Learner(dls, small_cnn(1, 10) if model is None else model, cbs=cbs, **kw)
def fit(learn, n=1, **kw):
    quietly(learn, 'fit', n, 1e-2, **kw)
    return learn
def said(f, *words):
    "The lines that `f` warns with, and among which these words are"
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        f()
    lines = [str(o.message) for o in w if str(o.message).startswith(('memory','save_pretrained'))]
    for o in words: assert any(o in l for l in lines), lines
    return lines
def where(learn): return [n for n,o in learn.model.named_modules() if isinstance(o, MemoryHead)]

# copies that tools average

emas = {'torch':lambda m: AveragedModel(m), 'torch, buffers':lambda m: AveragedModel(m, use_buffers=True),
        'torch, ema':lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(.9), use_buffers=True),
        'timm v2':lambda m: ModelEmaV2(m, decay=.9), 'timm v3':lambda m: ModelEmaV3(m, decay=.9),
        'timm v3, foreach':lambda m: ModelEmaV3(m, decay=.9, foreach=True)}

class Fractions(nn.Module):
    "As ultralytics does (`in place`), and `ema_pytorch` (through `.data`): whole numbers stay as they were"
    def __init__(self, model, data):
        super().__init__()
        self.module,self.data = copy.deepcopy(model).eval(),data
    @torch.no_grad()
    def update(self, model):
        new = model.state_dict()
        for k,v in self.module.state_dict().items() if not self.data else (*self.module.named_parameters(),
                                                                           *self.module.named_buffers()):
            if v.is_floating_point(): (v.data if self.data else v).mul_(.9).add_(new[k], alpha=.1)

emas.update({'fractions':partial(Fractions, data=False), 'fractions, data':partial(Fractions, data=True)})

class Averages(Callback):
    "Keeps an average of the model, made before the first batch or after some"
    order = 60
    def __init__(self, make, at): self.make,self.at,self.n,self.ema = make,at,0,None
    def before_fit(self):
        if self.at==0 and self.ema is None: self.ema = self.make(self.model)
    def after_step(self):
        self.n += 1
        if self.ema is None and self.n==self.at: self.ema = self.make(self.model)
        if self.ema is not None: getattr(self.ema, 'update', getattr(self.ema, 'update_parameters', None))(self.model)

def same_values(u, v): return torch.allclose(u, v, rtol=1e-6) if u.is_floating_point() else torch.equal(u, v)
def same_bank(a, b):
    return all((u is None)==(v is None) and (u is None or same_values(u, v)) for (_,u),(_,v) in zip(
        a._buffers.items(), b._buffers.items())) and a.config()==b.config() and a.vocab==b.vocab

@pytest.mark.parametrize('at', [0, 2])
@pytest.mark.parametrize('kind', emas)
@pytest.mark.parametrize('bank', [lambda: SlotBank(64, policy='reservoir'), lambda: ClassBank(10, capacity=8)],
                         ids=['slots','classes'])
def test_an_average_of_a_model_holds_a_whole_bank(dls, kind, at, bank):
    cb = Averages(emas[kind], at)
    learn = fit(learner(dls, [MemoryCallback(bank(), head='vote'), cb]), 2)
    m = cb.ema.module
    x = dls.valid.one_batch()[0].as_subclass(Tensor)
    with torch.no_grad(): out = m.eval()(x)
    h = memories(m)['memory']
    assert len(h.bank)==len(learn.memory.bank)>9 and same_bank(h.bank, learn.memory.bank)
    w = dict(learn.model.named_parameters())
    assert not torch.equal(dict(m.named_parameters())['0.0.weight'], w['0.0.weight'])       # weights are averaged
    with h.off(), torch.no_grad(): assert not torch.equal(m(x), out)
    state = cb.ema.state_dict()
    assert torch.equal(next(v for k,v in state.items() if k.endswith('bank.items')), learn.memory.bank.items)

late = dict(white=(lambda: SlotBank(64, policy='reservoir'), dict(head='vote', whiten=True)),
            either=(lambda: SlotBank(64, policy='reservoir'), dict(head='vote', k=[3,5], whiten=[False,True])),
            lda=(lambda: ClassBank(10, capacity=8), dict(head='lda')))

@pytest.mark.parametrize('at', [0,3])
@pytest.mark.parametrize('kind', emas)
@pytest.mark.parametrize('head', late)
def test_an_average_answers_by_what_comes_with_the_first_fit(dls, kind, at, head):
    "Whiteners and class means are buffers that a head has from its first fit on; it was: torch's error of shapes"
    bank,kw = late[head]
    cb = Averages(emas[kind], at)
    learn = fit(learner(dls, [MemoryCallback(bank(), **kw), cb]), 2)
    mine,its = learn.memory.head,memories(cb.ema.module)['memory']
    x = dls.valid.one_batch()[0].as_subclass(Tensor)
    with torch.no_grad(): cb.ema.module.eval()(x)
    assert same_bank(its.bank, learn.memory.bank) and its.chosen()==mine.chosen()
    z = torch.randn(7, mine.bank.dim)
    a,b = mine.votes(z, n_classes=10),its.votes(z, n_classes=10)
    assert torch.allclose(a, b, atol=1e-5) and b.sum(1).gt(.99).all()

@pytest.mark.parametrize('head', late)
def test_a_snapshot_answers_as_it_did_though_its_source_is_fitted_anew(dls, head):
    bank,kw = late[head]
    learn = fit(learner(dls, MemoryCallback(bank(), **kw)))
    x = dls.valid.one_batch()[0].as_subclass(Tensor)
    first,best = copy.deepcopy(learn.memory.head),copy.deepcopy(learn.model).eval()
    with torch.no_grad(): was = best(x)
    fit(learn)
    with torch.no_grad(): assert torch.equal(best(x), was) and not torch.equal(learn.model.eval()(x), was)
    z = torch.randn(7, first.bank.dim)
    assert first.votes(z, n_classes=10).isfinite().all()
    new = learner(dls, MemoryCallback(bank(), **kw)).model
    new.load_state_dict(best.state_dict())
    with torch.no_grad(): assert torch.equal(new.eval()(x), was)

def test_an_average_is_saved_whole_though_nobody_read_it(dls):
    cb = Averages(emas['torch, buffers'], 0)
    learn = fit(learner(dls, [memory(), cb]), 2)
    state = {k.removeprefix('module.'):v for k,v in cb.ema.state_dict().items() if k.startswith('module.')}
    n = learner(dls, memory()).model
    n.load_state_dict(state)
    assert same_bank(memories(n)['memory'].bank, learn.memory.bank)

@pytest.mark.parametrize('kind', ['timm v2','timm v3','torch'])
def test_an_average_made_before_the_first_fit(dls, kind):
    "The names of classes, which come with the fit, make a bank's state longer than what the tools copy it over"
    learn = learner(dls, MemoryCallback(ClassBank(10, capacity=8), head='vote'))
    cb = Averages(emas[kind], 0)
    cb.ema = cb.make(learn.model)
    learn.add_cb(cb)
    fit(learn)
    b = memories(cb.ema.module)['memory'].bank
    assert len(b)>9 and same_bank(b, learn.memory.bank) and b.vocab is not None

@pytest.mark.parametrize('kind', ['torch, buffers','fractions, data'])
def test_an_average_is_pickled_whole_though_nobody_read_it(dls, kind):
    cb = Averages(emas[kind], 0)
    learn = fit(learner(dls, [memory(), cb]), 2)
    assert same_bank(memories(pickle.loads(pickle.dumps(cb.ema.module)))['memory'].bank, learn.memory.bank)

def test_a_copy_that_is_changed_by_hand_keeps_the_change():
    b = SlotBank(8, policy='fifo')
    b.write(torch.randn(5, 4), y=torch.arange(5), item=torch.arange(5))
    c = copy.deepcopy(b)
    c.features.zero_()
    assert len(c)==5 and not c.features.any() and not pickle.loads(pickle.dumps(c)).features.any()

def test_a_copy_that_nobody_averages_stays_as_it_was(dls):
    "A snapshot of the best model is no average, and a copy that is trained goes its own way"
    learn = fit(learner(dls, memory()))
    best = copy.deepcopy(learn.model)
    was = copy.deepcopy(dict(memories(best)['memory'].bank._buffers))
    fit(learn, 2)
    b = memories(best)['memory'].bank
    assert len(b)==64 and all(v is None or torch.equal(v, was[k]) for k,v in b._buffers.items())
    best.eval()(torch.randn(2, 1, 16, 16))
    assert all(v is None or torch.equal(v, was[k]) for k,v in b._buffers.items())
    other = learner(dls, MemoryCallback(), model=best)
    fit(other)
    assert not torch.equal(b.features, was['features']) and not torch.equal(b.features, learn.memory.bank.features)
    b.updates += 1                  # no average: this bank is its own
    assert not same_bank(b, learn.memory.bank) and len(b)==64 and not same_bank(b, learn.memory.bank)

@pytest.mark.parametrize('how', [lambda b: b.write(torch.ones(1, 64), y=torch.tensor([0])), lambda b: b.reset(),
                                 lambda b: b.load_state_dict(SlotBank(64, policy='fifo').state_dict())])
def test_a_copy_that_is_written_to_is_its_own(how):
    b = SlotBank(64, policy='fifo')
    b.write(torch.randn(3, 64), y=torch.arange(3))
    c = copy.deepcopy(b)
    how(c)
    n = len(c)
    b.write(torch.randn(9, 64), y=torch.arange(9))
    assert len(c)==n!=12 and len(copy.deepcopy(c))==n and len(pickle.loads(pickle.dumps(c)))==n

def test_a_copy_of_an_average_and_one_that_was_moved():
    b = SlotBank(8, policy='fifo')
    c = copy.deepcopy(b)
    b.write(torch.randn(5, 4), y=torch.arange(5), item=torch.arange(5))
    for u,v in zip(c.buffers(), b.buffers(), strict=True): u.copy_((u+v)/2)
    d = copy.deepcopy(c.double())
    assert same_bank(c, b) and same_bank(d, b) and same_bank(pickle.loads(pickle.dumps(c)), b)

def test_what_a_head_chooses_leaves_its_state_as_long_as_it_was():
    "timm's averages copy one state over another, tensor by tensor"
    a,b = (SlotBank(64),SlotBank(64, dim=128, n_classes=1000))
    assert a.get_extra_state().shape==b.get_extra_state().shape

# a model in several places at once

@pytest.mark.parametrize('when', ['before','after','in the fit','inside'])
def test_data_parallel_is_refused(dls, when):
    with pytest.raises(MemoError, match='DistributedDataParallel'):
        if when=='before': learner(dls, memory(), nn.DataParallel(small_cnn(1, 10)))
        elif when=='inside': learner(dls, memory(at='0.module.4'), nn.Sequential(nn.DataParallel(small_cnn(1, 10))))
        else:
            learn = learner(dls, memory())
            if when=='after': learn.model = nn.DataParallel(learn.model)
            else:
                from fastai.distributed import ParallelTrainer
                learn.add_cb(ParallelTrainer(None))
            fit(learn)

def test_data_parallel_elsewhere_in_a_model_is_let_be(dls):
    m = small_cnn(1, 10)
    learn = fit(learner(dls, memory(), nn.Sequential(nn.DataParallel(m[:-1]), m[-1])))
    assert len(learn.memory.bank)==64

@pytest.mark.parametrize('head', ['vote','add'])
def test_a_model_compiled_before_it_gets_a_memory_is_written_of(dls, head):
    learn = fit(learner(dls, memory(head), torch.compile(small_cnn(1, 10), backend='eager')))
    assert len(learn.memory.bank)>9

# a first epoch without a write

class Skips(Callback):
    order = 60
    def before_step(self): raise CancelStepException()
class NoLoss(Callback):
    order = 60
    def after_pred(self):
        if self.training: raise CancelBatchException()
class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.net,self.aux = small_cnn(1, 10),nn.Linear(64, 10)
    def forward(self, x): return self.net(x)

@pytest.mark.parametrize('make,say', [(lambda dls: learner(dls, [memory(), Skips()]),'no optimizer step'),
    (lambda dls: learner(dls, [memory(), NoLoss()]),'no batch came as far as the backward pass'),
    (lambda dls: learner(dls, memory(at='aux'), Unused()),'nothing passed its place, aux (a Linear)'),
    (lambda dls: swapped(learner(dls, memory())),'passed its place, 1.10 (a Linear), in a forward of the model')])
def test_a_first_epoch_that_writes_nothing_says_so_once(dls, make, say):
    learn = make(dls)
    lines = said(lambda: fit(learn, 2), say)
    assert len(lines)==1 and len(learn.memory.bank)==0

def swapped(learn):
    "A model of one's own around the parts of the model that has the memory"
    class Parts(nn.Module):
        def __init__(self, m):
            super().__init__()
            self.add_module('1', m)
        def forward(self, x):
            m = getattr(self, '1')
            return m[9:](m[:9](x))
    learn.model = Parts(learn.model)
    return learn

def test_a_fit_that_writes_or_cannot_write_says_nothing_more(dls):
    assert said(lambda: fit(learner(dls, memory()), 2))==[]
    lines = said(lambda: fit(learner(dls, [memory(), MixUp()])), 'mixed')
    assert len(lines)==1
    learn = learner(dls, memory())
    for f,kw in (('validate',{}), ('get_preds',{}), ('lr_find',dict(show_plot=False))):
        assert said(lambda: quietly(learn, f, **kw))==[]

# outputs of several parts

class Parts(nn.Module):
    "A network whose output is made of several parts"
    def __init__(self, kind):
        super().__init__()
        self.kind,self.body,self.fc = kind,small_cnn(1, 10)[:-1],nn.Linear(64, 10)
        if kind=='two': self.other = nn.Linear(64, 10)
    def forward(self, x):
        z = self.body(x)
        out = self.fc(z)
        if self.kind=='plain': return out
        if self.kind=='tuple': return z,out
        if self.kind=='two': return out,self.other(z)
        if self.kind=='dict': return dict(maps=x, logits=out)
        return namedtuple('Out', 'logits aux')(out, [z[:,None]])
ats = dict(plain=(), tuple=(1,), two=(0,), dict=('logits',), named=(0,))
def part(kind, out):
    for k in ats[kind]: out = out[k]
    return out
def of_part(kind, out, y): return F.cross_entropy(part(kind, out), y)

class Pick(Callback):
    "Takes the part that the loss is of, as fastai's `RNNCallback` does"
    def __init__(self, kind): self.kind = kind
    def after_pred(self): self.learn.pred = part(self.kind, self.pred)

@pytest.mark.parametrize('picked', [False, True])
@pytest.mark.parametrize('head', [None, 'add', 'vote'])
@pytest.mark.parametrize('kind', ['tuple','dict','named'])
def test_what_is_mixed_is_the_part_that_the_loss_sees(dls, kind, head, picked):
    "The same bank, the same answers as of the network that gives this part alone"
    def train(k):
        set_seed(0, reproducible=True)
        own = picked and k!='plain'
        return fit(learner(dls, [memory(head), *([Pick(k)] if own else [])], Parts(k),
                           loss_func=CrossEntropyLossFlat() if k=='plain' or own else partial(of_part, k)), 2)
    a,b = train('plain'),train(kind)
    for o in ('features','labels'): assert torch.equal(getattr(a.memory.bank, o), getattr(b.memory.bank, o))
    x = dls.valid.one_batch()[0].as_subclass(Tensor)
    with torch.no_grad(): p,q = a.model.eval()(x),b.model.eval()(x)
    assert type(q) is type(Parts(kind)(x)) or kind=='named' and q._fields==('logits','aux')
    assert torch.equal(part(kind, q), p)
    if head=='vote':
        with b.memory.off(), torch.no_grad(): assert not torch.equal(part(kind, b.model(x)), p)
        if picked: assert b.memory.fit()['nll_mixture']==a.memory.fit()['nll_mixture']
    r,s = a.recall(n=3),b.recall(n=3)
    assert torch.equal(r.row_item, s.row_item) and torch.equal(r.similarity, s.similarity)
    assert a.memory.rekey()==b.memory.rekey()>0

def test_two_answers_are_refused_before_training_where_one_is_mixed(dls):
    with pytest.raises(MemoError, match='a tuple with 2 tensors of'): learner(dls, memory('vote'), Parts('two'))
    learn = fit(learner(dls, memory('add'), Parts('two'), loss_func=partial(of_part, 'two')))
    assert len(learn.memory.bank)==64 and learn.recall(n=3).probs.shape==(3,10)

# what is wrapped, replaced or parted

class Lora(nn.Module):
    def __init__(self, base, r=4):
        super().__init__()
        self.base,self.a,self.b = base,nn.Linear(base.in_features, r, bias=False),nn.Linear(r, base.out_features)
    def forward(self, x): return self.base(x)+self.b(self.a(x))

def lora(m):
    m[-1] = Lora(m[-1])
    return m
def pruned(m):
    prune.l1_unstructured(m[-1], 'weight', .3)
    return m
def normed(m):
    parametrizations.weight_norm(m[-1])
    return m
def spectral(m):
    parametrizations.spectral_norm(m[-1])
    return m
def traced(m): return torch.fx.symbolic_trace(m)
changes = dict(lora=lora, pruned=pruned, normed=normed, spectral=spectral)

@pytest.mark.parametrize('head', ['add','vote'])
@pytest.mark.parametrize('how', [*changes.values(), traced])
def test_changed_before(dls, how, head):
    "The memory sees what enters the changed layer"
    learn = fit(learner(dls, memory(head), how(small_cnn(1, 10))))
    assert learn.memory.bank.dim==64 and len(learn.memory.bank)==64 and where(learn)==['10.memory']
    learn.memory.detach()
    assert not memories(learn.model) and learn.model(torch.randn(2, 1, 16, 16)).shape==(2,10)

@pytest.mark.parametrize('head', ['add','vote'])
@pytest.mark.parametrize('how', changes.values())
def test_changed_after(dls, how, head):
    learn = fit(learner(dls, memory(head)))
    how(learn.model)
    learn.opt = None
    was = learn.memory.bank.features.clone()
    fit(learn)
    assert not torch.equal(learn.memory.bank.features, was) and learn.memory.bank.dim==64
    with learn.memory.off(): quietly(learn, 'validate')
    learn.remove_cb(learn.memory)
    assert not memories(learn.model)

def test_parametrisations_and_masks_that_are_taken_off_again(dls):
    learn = fit(learner(dls, memory('vote'), pruned(normed_back(small_cnn(1, 10)))))
    prune.remove(learn.model[-1], 'weight')
    learn.opt = None
    assert len(fit(learn).memory.bank)==64
def normed_back(m):
    parametrizations.weight_norm(m[-1])
    parametrize.remove_parametrizations(m[-1], 'weight')
    return m

@pytest.mark.parametrize('head', ['add','vote'])
def test_a_quantised_model_keeps_its_memory(dls, head):
    "The layer is another, with the hooks of the old one"
    learn = fit(learner(dls, memory(head)))
    q = torch.ao.quantization.quantize_dynamic(learn.model, {nn.Linear}).eval()
    h = memories(q)['memory']
    assert h is not learn.memory.head and same_bank(h.bank, learn.memory.bank)
    x = dls.valid.one_batch()[0].as_subclass(Tensor)
    with torch.no_grad(): a,b = q(x),learn.model.eval()(x)
    assert (a-b).abs().max()<.5 and not isinstance(q[-1], nn.Linear)
    with h.off(), torch.no_grad(): assert not torch.equal(q(x), a)
    assert any('memory.bank.features' in k for k in q.state_dict())
    detach(q)
    assert not memories(q) and q(x).shape==(len(x),10)

def test_a_classifier_that_took_the_place_of_the_one_with_the_memory_is_said(dls):
    learn = fit(learner(dls, memory()))
    learn.model[-1] = nn.Linear(64, 10)
    with pytest.raises(MemoError, match="no memory called 'memory' any more.*remove_cb"): fit(learn)

def test_peft(dls):
    "In front of the whole adapted layer, before and after; merged again it goes on"
    import peft
    def net(): return timm.create_model('test_vit', num_classes=10, in_chans=1, img_size=16)
    def adapted(m): return peft.get_peft_model(m, peft.LoraConfig(r=4, target_modules=['head','qkv']))
    def open(m): return m.requires_grad_(True)
    learn = fit(learner(dls, memory('vote'), open(adapted(net()))))
    assert learn.memory.bank.dim==64 and where(learn)==['base_model.model.head.memory']
    learn = fit(learner(dls, memory('vote'), net()))
    learn.model,learn.opt = nn.Sequential(adapted(learn.model)),None
    x = dls.valid.one_batch()[0].as_subclass(Tensor)
    assert len(fit(learn).memory.bank)==64 and learn.memory.bank.dim==64
    learn.model,learn.opt = open(learn.model[0].merge_and_unload()),None
    assert len(fit(learn).memory.bank)==64 and where(learn)[0].endswith('memory')

def test_a_traced_graph_says_that_its_answer_is_without_the_vote(dls):
    learn = fit(learner(dls, memory('vote')))
    g,x = traced(learn.model.eval()),torch.randn(2, 1, 16, 16)
    with learn.memory.off(), torch.no_grad(): own = learn.model(x)
    with torch.no_grad(), pytest.warns(UserWarning, match='this answer is without it'): assert torch.equal(g(x), own)
    with torch.no_grad():
        assert torch.equal(torch.jit.trace(learn.model, x, check_trace=False)(x), learn.model(x))
    with pytest.raises(MemoError, match='TorchScript cannot hold a memory'): torch.jit.script(learn.model)

def test_a_callback_that_is_taken_out_takes_its_memory_along(dls):
    learn = fit(learner(dls, memory()))
    cb,names = learn.memory,list(learn.model.state_dict())
    x,bank = dls.valid.one_batch()[0].as_subclass(Tensor),cb.bank
    with learn.removed_cbs(cb):
        assert not memories(learn.model) and not hasattr(learn, 'memory') and 'forward' not in vars(learn.model)
        was = bank.features.clone()
        fit(learn)
        assert torch.equal(bank.features, was)
    assert list(learn.model.state_dict())==names and learn.memory is cb and cb.bank is bank
    fit(learn)
    assert not torch.equal(bank.features, was)
    learn.remove_cb(cb).add_cb(cb)
    assert len(fit(learn).memory.bank)==64
    learn.remove_cb(MemoryCallback)
    assert not memories(learn.model)
    fit(learn, cbs=MemoryCallback(bank, head='add'))
    assert not memories(learn.model) and not hasattr(learn, 'memory')

def test_what_a_second_callback_says_of_a_bank_in_the_model_is_told(dls):
    learn = fit(learner(dls, memory('add', k=2)))
    b = learn.memory.bank
    def again(**kw): return lambda: Learner(dls, learn.model, cbs=MemoryCallback(b, **kw))
    said(again(k=7, at='4', temperature=.2), "temperature=0.2, k=7, at='4' are not used; detach(model, 'memory')")
    assert said(again(k=2))==said(again())==said(again(head='add'))==said(again(at='10'))==[]

# whose other ways lose it

def test_timms_reset_classifier_wherever_the_model_is(dls):
    net = timm.create_model('test_resnet', num_classes=10, in_chans=1)
    m = nn.Sequential(nn.Identity(), net)
    attach(m, MemoryHead(SlotBank(8)), at='1.fc')
    with pytest.raises(MemoError, match='would drop the memory memory'): net.reset_classifier(5)
    detach(m)
    attach(m, MemoryHead(SlotBank(8)), at='1.layer1')
    net.reset_classifier(5)
    assert net.fc.out_features==5 and 'memory' in memories(net)
    detach(m)
    assert 'reset_classifier' not in vars(net)
    learn = learner(dls, memory('vote', at='layer2'), timm.create_model('test_resnet', num_classes=10, in_chans=1))
    with pytest.warns(UserWarning, match='leaves its rows of 10 classes'): learn.model.reset_classifier(5)
    learn.model.reset_classifier(10)
    assert 'memory' in memories(learn.model)

def test_save_pretrained_says_what_from_pretrained_leaves_out(tmp_path):
    import transformers as tr
    cfg = tr.BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=16, num_labels=3)
    x,y = torch.randint(0, 20, (24,5)),torch.arange(24)%3
    items = list(zip(x, y))
    d = DataLoaders.from_dsets(items, items, bs=8)
    d.c = 3
    bank = SlotBank(16, policy='fifo')
    def loss(o, y): return F.cross_entropy(o.logits, y)
    learn = learner(d, MemoryCallback(bank, head='vote'), tr.BertForSequenceClassification(cfg), loss_func=loss)
    fit(learn)
    assert where(learn)==['classifier.memory'] and len(bank)==16
    with torch.no_grad():
        out = learn.model.eval()(x)
        with learn.memory.off(): own = learn.model(x)
    assert type(out) is type(own) and not torch.allclose(out.logits, own.logits)
    with pytest.warns(UserWarning, match='from_pretrained leaves the memory memory out'):
        learn.model.save_pretrained(tmp_path)
    bank.save(tmp_path/'bank.safetensors')
    m = tr.BertForSequenceClassification.from_pretrained(tmp_path)
    cb = MemoryCallback(Bank.load(tmp_path/'bank.safetensors'), head='vote')
    new = Learner(d, m, loss_func=loss, cbs=cb)
    new.memory.head.load_state_dict(learn.memory.head.state_dict())
    with torch.no_grad(): assert torch.allclose(m.eval()(x).logits, out.logits, atol=1e-5)

# rows that are no items

class Bags(nn.Module):
    "Four patches an image; the answer is the mean of theirs"
    def __init__(self):
        super().__init__()
        self.net = small_cnn(1, 10)
    def forward(self, x):
        h = x.shape[-1]//2
        p = torch.stack([x[...,i:i+h,j:j+h] for i in (0,h) for j in (0,h)], 1).flatten(0, 1)
        return self.net(p).reshape(len(x), 4, -1).mean(1)
class Joined(nn.Module):
    "Two views of each image, one behind the other in one batch"
    def __init__(self):
        super().__init__()
        self.net = small_cnn(1, 10)
    def forward(self, x): return sum(self.net(torch.cat([x, x.flip(3)])).chunk(2))
class Twice(nn.Module):
    "Two views, one after the other"
    def __init__(self):
        super().__init__()
        self.net = small_cnn(1, 10)
    def forward(self, x): return self.net(x)+self.net(x.flip(3))

@pytest.mark.parametrize('head', [None, 'add', 'vote'])
@pytest.mark.parametrize('make', [Bags, Joined, Twice])
def test_rows_that_are_no_items_are_not_stored_nor_recalled(dls, make, head):
    set_seed(0)
    learn = learner(dls, memory(head), make())
    lines = said(lambda: fit(learn, 2), 'pass' if make is Twice else 'features pass its place')
    assert len(lines)==1 and len(learn.memory.bank)==0
    set_seed(0)
    plain = fit(learner(dls, model=make()), 2)
    assert all(torch.equal(a, b) for a,b in zip(plain.model.parameters(), learn.model.parameters()))
    for f in (lambda: learn.recall(n=3), lambda: learn.memory.fit() if head=='vote' else learn.recall(n=2, ds_idx=0)):
        with pytest.raises(MemoError, match='not one row an item'): f()

class OwnRandom(torch.utils.data.Dataset):
    "Noise from a generator of its own, and a count of what was asked for"
    def __init__(self, make): self.rng,self.n = make(),0
    def __len__(self): return 24
    def __getitem__(self, i):
        self.n += 1
        own = isinstance(self.rng, torch.Generator)
        noise = torch.rand(1, generator=self.rng).item() if own else self.rng.random()
        return torch.full((1,16,16), i/24+noise),i%10

@pytest.mark.parametrize('make', [lambda: random.Random(3), lambda: np.random.default_rng(3),
                                  lambda: torch.Generator().manual_seed(3)], ids=['python','numpy','torch'])
def test_a_set_with_random_numbers_of_its_own_gives_the_same_training(make):
    def go(cbs):
        ds = OwnRandom(make)
        d = DataLoaders(TfmdDL(ds, bs=8, shuffle=True), TfmdDL(ds, bs=8), device='cpu')
        set_seed(0, reproducible=True)
        learn = Learner(d, small_cnn(1, 10), loss_func=CrossEntropyLossFlat(), cbs=cbs)
        d.train.rng = random.Random(0)
        set_seed(0)
        return fit(learn, 2).model.state_dict(),ds.n
    (a,n),(b,m) = go(None),go(memory(None))
    assert n==m and all(torch.equal(v, b[k]) for k,v in a.items())
