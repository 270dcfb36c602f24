"""Several memories in one model: by name, their order, what a forward leaves, fits inside fits, threads, timm's
other ways in, copies and traced graphs"""
import io, pickle, threading
import pytest, timm, torch
from fastai.vision.all import *
from memo.heads.attach import Gate, Tap, attach, detach, memories
from memo.banks.base import Bank
from memo.banks.slots import SlotBank
from memo.training.memory_callback import MemoryCallback
from memo.training.save_bank import SaveBank
from memo.banks.classes import ClassBank
from memo.training.collect import *
from memo.core import MemoError
from memo.data.longtail import digits_lt
from memo.data.tensors import plain_dl
from memo.models.small import small_cnn
from memo.heads.base import MemoryHead
from memo.heads.calls import Step, in_step
from memo.heads.replay import ReplayHead
from memo.heads.retrieval import RetrievalHead
from memo.data.items import item_ids
from memo.plots import results as plots
from memo.plots import recall as _recall    # gives learners their show_memories
from memo.heads.mixture import LDAHead, PrototypeHead, VoteHead
import copy
from helpers.grid import grid
for k in [k for k in globals() if k.startswith('test')]: del globals()[k]     # fastcore's, which pytest would run

@pytest.fixture(scope='module')
def dls(): return digits_lt(seed=0, n_max=40, ratio=8, valid=6, test=10)

def three():
    return [MemoryCallback(ClassBank(10, capacity=16), name='rare'),
            MemoryCallback(SlotBank(64, policy='fifo'), head='add', at='4', name='early'),
            MemoryCallback(SlotBank(256, policy='fifo'), head='vote')]

def learner(dls, cbs, seed=0, **kw):
    set_seed(seed, reproducible=True)
    dls.train.rng = random.Random(seed)
    return Learner(dls, small_cnn(1, 10), metrics=accuracy, cbs=cbs, **kw)

def quiet(learn): return ContextManagers([learn.no_bar(), learn.no_logging()])
def fit(learn, n=2, **kw):
    with quiet(learn): learn.fit(n, 1e-2, **kw)
    return learn

def bare(model):
    return not memories(model) and not any(isinstance(f, Tap) for m in model.modules()
                                           for h in (m._forward_hooks, m._forward_pre_hooks) for f in h.values()) \
and 'forward' not in vars(model) and not hasattr(model, '_ddp_params_and_buffers_to_ignore')

# three at once

def test_each_has_its_bank_its_columns_and_its_callback(dls):
    learn = fit(learner(dls, three()))
    assert list(learn.memories)==['rare','early','memory'] and learn.memories['early'] is learn.early
    names = learn.recorder.metric_names
    assert [o for o in names if '_' in o and 'loss' not in o]==['rare_fill','early_hit','early_fill',
        'memory_without','memory_hit','memory_fill']
    row = dict(zip(names[1:], learn.recorder.values[-1]))
    assert row['early_fill']==1 and row['memory_fill']==len(learn.memory.bank)/256 and 0<row['memory_hit']<=1
    assert 0<row['memory_without']<=1
    assert len(learn.rare.bank)>0 and learn.early.bank.dim!=learn.memory.bank.dim
    with pytest.raises(MemoError, match='say which with memory='): learn.recall(n=2)
    assert learn.recall(n=2, memory='early').weight.shape==(2,3)
    learn.show_memories(2, memory='memory')
    with pytest.raises(MemoError, match="did you mean 'early'"): learn.show_memories(2, memory='erly')

def test_off_takes_one_out(dls):
    learn = fit(learner(dls, three()))
    x = dls.valid.one_batch()[0].as_subclass(Tensor)
    m = learn.model.eval()
    with torch.no_grad():
        whole = m(x)
        with learn.memory.off(): no_vote = m(x)
        with learn.early.off(): no_add = m(x)
        with learn.rare.off(): no_watch = m(x)
        with learn.memory.off(), learn.early.off(): net = m(x)
        assert torch.equal(m(x), whole)
    assert torch.equal(no_watch, whole)
    for a,b in ((whole,no_vote), (whole,no_add), (net,no_vote), (net,no_add)): assert not torch.equal(a, b)

def test_a_watching_memory_changes_nothing(dls):
    a,b = fit(learner(dls, None)),fit(learner(dls, three()[:1]))
    sd = b.model.state_dict()
    for k,v in a.model.state_dict().items(): assert torch.equal(v, sd[k]), k

def test_export_load_save_and_copies(dls, tmp_path):
    learn = fit(learner(dls, three()))
    want = learn.get_preds(ds_idx=1)[0]
    learn.path = tmp_path
    learn.export('m.pkl')
    again = load_learner(tmp_path/'m.pkl')
    assert torch.equal(again.get_preds(dl=dls.valid)[0], want)
    assert {k:len(o.bank) for k,o in again.memories.items()}=={k:len(o.bank) for k,o in learn.memories.items()}
    learn.save('w')
    new = learner(dls, three())
    new.path = tmp_path
    new.load('w')
    assert torch.equal(new.get_preds(ds_idx=1)[0], want)
    x = dls.valid.one_batch()[0].as_subclass(Tensor)
    m = learn.model.eval()
    c = copy.deepcopy(m)
    buf = io.BytesIO()
    pickle.dump(m, buf)
    buf.seek(0)
    p = pickle.load(buf)
    with torch.no_grad():
        for o in (c,p): assert torch.equal(o(x), m(x)) and memories(o)['early'] is not memories(m)['early']
        memories(c)['memory'].bank.reset()
        assert not torch.equal(c(x), m(x)), 'a copy reads its own bank'

def test_detach_gives_back_the_network(dls):
    net = small_cnn(1, 10)
    was,x = {k:v.clone() for k,v in net.state_dict().items()},dls.valid.one_batch()[0].as_subclass(Tensor)
    with torch.no_grad(): want = net.eval()(x)
    bank = SlotBank(32, policy='fifo')
    bank.write(torch.randn(32, 16))
    vote = VoteHead(SlotBank(32, policy='fifo'))
    vote.bank.write(torch.randn(32, 64), torch.arange(32)%10)
    for order in (('a','b'), ('b','a')):
        attach(net, RetrievalHead(bank), '1', 'a')
        attach(net, vote, name='b')
        assert not torch.equal(net(x), want)
        for n in order: assert detach(net, n) is not None
        assert bare(net) and list(net.state_dict())==list(was) and all(torch.equal(v, was[k])
            for k,v in net.state_dict().items()) and torch.equal(net(x), want)
    assert detach(net) is None

def test_wrapping_a_block(dls):
    "Where a hook is not called: the module is put behind one that calls it and the memory"
    net = timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=16, num_classes=5).eval()
    x,keys = torch.randn(2,3,32,32),list(net.state_dict())
    bank = SlotBank(8, policy='fifo')
    with torch.no_grad():
        want = net(x)
        attach(net, RetrievalHead(bank, k=2), 'blocks.3.mlp', 'inner', wrap=True)
        assert torch.equal(net(x), want)
        bank.write(torch.randn(8, 192))
        assert not torch.equal(net(x), want)
        assert torch.equal(copy.deepcopy(net)(x), net(x))
        detach(net, 'inner')
        assert torch.equal(net(x), want) and list(net.state_dict())==keys and bare(net)
    with pytest.raises(MemoError, match='needs at='): attach(net, MemoryHead(SlotBank(4)), wrap=True)

@pytest.mark.parametrize('name,say',
                         [('model','calls something'), ('fit','already'), ('dls','calls something'),
                          ('opt','calls something'), ('recorder','calls something'), ('item','calls something'),
                          ('lr_finder','calls something'), ('my memory','Python name'), ('class','Python name'),
                          (3,'name'), ('bank','')])
def test_names(dls, name, say):
    m = small_cnn(1, 10)
    m.bank = 1
    with pytest.raises(MemoError, match=say): Learner(dls, m, cbs=MemoryCallback(SlotBank(8), name=name))
    assert bare(m)

def test_the_same_name_twice(dls):
    m = small_cnn(1, 10)
    with pytest.raises(MemoError, match="something called 'memory' already.*name="):
        Learner(dls, m, cbs=[MemoryCallback(SlotBank(8)), MemoryCallback(SlotBank(8))])
    assert list(memories(m))==['memory']
    with pytest.raises(MemoError, match='is in the model already'): attach(m, memories(m)['memory'], '1', 'other')

def test_no_bank_drives_what_nobody_drives(dls):
    m = small_cnn(1, 10)
    attach(m, MemoryHead(SlotBank(64, policy='fifo')), '4', 'early')
    attach(m, VoteHead(SlotBank(256, policy='fifo', n_classes=10)), name='late')
    set_seed(0)
    learn = Learner(dls, m, metrics=accuracy, cbs=[MemoryCallback(ClassBank(10), name='rare'), cb := MemoryCallback()])
    fit(learn, 1)
    assert list(learn.memories)==['rare','early','late'] and all(len(o.bank) for o in learn.memories.values())
    assert learn.late.bank is learn.memories['late'].bank and learn.early.rekey()>0 and learn.late.fit()['weight']>0
    with pytest.raises(MemoError, match='there are 2 memories'): cb.bank
    with learn.late.off(): a = learn.get_preds()[0]
    assert not torch.equal(a, learn.get_preds()[0])
    with pytest.raises(MemoError, match='but those that have a callback'): learn.add_cb(MemoryCallback())
    one = Learner(dls, nn.Sequential(m), cbs=None)
    with pytest.raises(MemoError, match='needs a bank'): Learner(dls, small_cnn(1,10), cbs=MemoryCallback())

def test_bankless_arguments_say_how_a_memory_is_made():
    with pytest.raises(MemoError, match='there is no bank'): MemoryCallback(head='vote')

# a memory goes where its callback goes

def test_a_memory_for_one_fit(dls):
    learn = learner(dls, None)
    keys,cb = list(learn.model.state_dict()),MemoryCallback(SlotBank(64, policy='fifo'), head='add')
    fit(learn, 1, cbs=cb)
    assert bare(learn.model) and list(learn.model.state_dict())==keys and not hasattr(learn,
        'memory') and not hasattr(learn, 'batch_ids')
    assert len(cb.bank)==64
    n = int(cb.bank.seen)
    fit(learn, 1, cbs=cb)
    assert int(cb.bank.seen)>n and bare(learn.model)
    learn.add_cb(cb)
    assert memories(learn.model)['memory'].bank is cb.bank
    with learn.removed_cbs(cb): assert bare(learn.model)
    assert learn.memory is cb and memories(learn.model)
    fit(learn, 1)
    head = learn.memory.detach()
    assert bare(learn.model) and len(head.bank)==64 and not hasattr(learn, 'memory')

def test_a_fit_that_fails_leaves_no_memory(dls):
    class Fail(Callback):
        def after_batch(self): raise RuntimeError('disk')
    learn = learner(dls, None)
    with pytest.raises(RuntimeError), quiet(learn): learn.fit(1, cbs=[MemoryCallback(SlotBank(64)), Fail()])
    assert bare(learn.model)
    fit(learn, 1)

# fits inside fits

class Inside(Callback):
    "Something that runs the learner in the middle of a fit"
    order = 70
    def __init__(self, what): self.what,self.on = what,False
    def after_epoch(self):
        if self.on or not self.recorder.iters[-1:]: return
        self.on = True
        learn = self.learn
        with learn.no_bar(), learn.no_logging():
            if self.what=='get_preds': learn.get_preds()
            if self.what=='inner': learn.get_preds(inner=True)
            if self.what=='predict': learn.get_preds(dl=learn.dls.test_dl(learn.dls.valid_ds.x[:3], num_workers=0))
            if self.what=='validate': learn.validate()
            if self.what=='fails':
                try: learn.get_preds(cbs=Stop())
                except ZeroDivisionError: pass
        self.on = False

class Stop(Callback):
    def before_batch(self): 1/0

class Draws(Callback):
    "What an epoch begins with: the same random numbers, with predictions before it or not; and what it said at its end"
    order = 51
    def __init__(self): self.said = []
    def after_epoch(self):
        if self.trained: self.said.append(list(self.recorder.log[:-1]))
        self.trained = False
    def before_train(self):
        self.trained = True
        set_seed(self.epoch, reproducible=True)
        self.dls.train.rng = random.Random(self.epoch)

made = dict(vote=lambda: MemoryCallback(SlotBank(256, policy='fifo'), head='vote'),
            add=lambda: MemoryCallback(SlotBank(64), head='add'),
            replay=lambda: MemoryCallback(ClassBank(10, capacity=8), head='replay'))
# the others are of the same code
often = {('add','get_preds'),('add','validate'),('replay','get_preds'),('replay','validate'),('replay','inner')}

@pytest.mark.parametrize('head,what',
                         [pytest.param(h, w, marks=[pytest.mark.nightly]*(h!='vote' and (h,w) not in often))
                                       for h in made for w in ('get_preds','inner','predict','validate','fails')])
def test_a_prediction_inside_a_fit_changes_nothing(dls, what, head, tmp_path):
    def go(inside):
        learn = learner(dls, [made[head](), Draws(), *([Inside(what)] if inside else [])])
        learn.path = tmp_path
        if not what=='inner': learn.add_cb(SaveBank(1, folder=f'banks{inside}'))
        fit(learn, 3)
        return learn
    a,b = go(False),go(True)
    for k,v in a.model.state_dict().items(): assert torch.equal(v, b.model.state_dict()[k]), k
    assert int(b.memory.bank.updates)==3*len(dls.train)
    assert a.recorder.metric_names==b.recorder.metric_names and len(b.metrics)==1
    a,b = ([[e,*row] for e,_,*row in o.draws.said] for o in (a,b))     # fastai begins its smoothed training loss anew
    assert len(b)==3 and a==b
    if what!='inner':
        assert sorted(o.name for o in (tmp_path/'banksTrue').iterdir())==sorted(o.name
            for o in (tmp_path/'banksFalse').iterdir())

def test_a_fit_inside_a_fit(dls):
    class Again(Callback):
        order,done = 70,False
        def after_epoch(self):
            if self.done: return
            self.done = True
            with self.learn.no_bar(), self.learn.no_logging(): self.learn.fit(1)
            self.learn.n_epoch = 3
    learn = learner(dls, [*three(), Again()])
    fit(learn, 3)
    assert int(learn.memory.bank.updates)==4*len(dls.train) and learn.recorder.metric_names[-3]=='memory_hit' and len(
        learn.metrics)==1
    assert not learn.batch_ids.loops and not learn.memory._fits and getattr(learn, 'item', None) is None

def test_lr_find_writes_nothing(dls):
    learn = learner(dls, three())
    with quiet(learn): learn.lr_find(show_plot=False)
    assert all(len(o.bank)==0 for o in learn.memories.values())

# nothing of a forward is kept

@pytest.mark.parametrize('make', [lambda b: VoteHead(b, k=3), lambda b: RetrievalHead(b)])
def test_nothing_stays_after_a_forward(make):
    net = small_cnn(1, 10)
    bank = SlotBank(64, policy='fifo', n_classes=10)
    bank.write(torch.randn(64, 64), torch.arange(64)%10)
    attach(net, h := make(bank))
    before = {k:id(v) for k,v in vars(h).items()}
    net.eval()(torch.randn(4,1,16,16))
    net.train()(torch.randn(4,1,16,16))
    assert {k:id(v) for k,v in vars(h).items()}==before
    from memo.heads.calls import _thread
    assert not _thread.calls and not len(_thread.steps)
    net[0].register_forward_hook(lambda *a: 1/0)
    with pytest.raises(ZeroDivisionError): net(torch.randn(4,1,16,16))
    assert not _thread.calls

@pytest.mark.parametrize('make',
                         [lambda: (SlotBank(256, policy='fifo', n_classes=10), VoteHead),
                          lambda: (ClassBank(10, capacity=16), PrototypeHead),
                          lambda: (ClassBank(10, capacity=16), LDAHead)])
def test_threads_get_the_sequential_answers(make):
    torch.manual_seed(0)
    bank,cls = make()
    bank.write(torch.randn(256, 64), torch.arange(256)%10)
    net = small_cnn(1, 10).eval()
    attach(net, cls(bank))
    xs = [torch.randn(1 if i%2 else 5, 1, 16, 16) for i in range(40)]
    with torch.no_grad(): want = [net(x) for x in xs]
    bad = []
    def go(k):
        with torch.no_grad():
            for _ in range(5):
                for i in range(k, len(xs), 2):
                    o = net(xs[i])
                    if o.shape!=want[i].shape or not torch.allclose(o, want[i], atol=1e-6): bad.append(i)
    ts = [threading.Thread(target=go, args=(k,)) for k in (0,1)]
    for t in ts: t.start()
    for t in ts: t.join()
    assert not bad

def test_a_step_is_of_its_thread():
    net = small_cnn(1, 10).eval()
    bank = SlotBank(8, policy='fifo')
    bank.write(torch.randn(8, 64), item=torch.arange(8))
    attach(net, h := RetrievalHead(bank, k=1))
    x = torch.randn(3,1,16,16)
    with torch.no_grad(): plain = net(x)
    got = {}
    def other():
        with torch.no_grad(): got['out'] = net(x)
    with in_step([h], Step(item=torch.arange(3), hide=True, off=True)), torch.no_grad():
        t = threading.Thread(target=other)
        t.start()
        t.join()
        assert not torch.equal(net(x), plain)
    assert torch.equal(got['out'], plain)

# what is stored is what the loss was of

class Second(Callback):
    "Runs the model on other inputs in the middle of a step"
    def __init__(self, event, order=60): self.event,self.order = event,order
    def _go(self):
        was,mode = torch.get_rng_state(),self.learn.model.training
        with torch.no_grad():
            self.learn.model.eval()     # batch norm shall not learn from it
            self.learn.model.train(mode) if self.event.endswith('!') else None
            self.learn.model(self.x.flip(0).flip(-1))
            self.learn.model(self.x[:3])
        self.learn.model.train(mode)
        torch.set_rng_state(was)
    def before_batch(self): self._go() if self.event=='before_batch' else None
    def after_pred(self): self._go() if self.event=='after_pred' else None
    def after_loss(self): self._go() if self.event=='after_loss' else None
    def before_step(self): self._go() if self.event=='before_step' else None
    def after_step(self): self._go() if self.event=='after_step' else None

moments = ['before_batch','after_pred','after_loss','before_step','after_step']

@pytest.fixture(scope='module')
def undisturbed(dls):
    "By head: a learner that was trained alone"
    learners = {}
    def _trained(head):
        if head not in learners: learners[head] = fit(learner(dls, [made[head]()]))
        return learners[head]
    return _trained

@pytest.mark.parametrize('event,head,order', grid(moments, made, [-40, 60]))
def test_further_forwards_leave_nothing(dls, undisturbed, event, head, order):
    a,b = undisturbed(head),fit(learner(dls, [made[head](), Second(event, order)]))
    for k,v in a.model.state_dict().items(): assert torch.equal(v, b.model.state_dict()[k]), k
    assert a.recorder.values==b.recorder.values

class SAM(Callback):
    "Sharpness-aware: a second forward and backward of the same batch at shifted weights, in train mode"
    def before_step(self):
        with torch.no_grad():
            ps = [p for p in self.learn.model.parameters() if p.grad is not None]
            es = [1e-3*p.grad.sign() for p in ps]
            for p,e in zip(ps, es): p.add_(e)
        self.learn.opt.zero_grad()
        out = self.learn.model(*self.xb)
        assert len(out)==len(self.y)
        self.loss_func(out, self.y).backward()
        with torch.no_grad():
            for p,e in zip(ps, es): p.sub_(e)

@pytest.mark.parametrize('make',
                         [lambda: MemoryCallback(SlotBank(256, policy='fifo'), head='add'),
                          lambda: MemoryCallback(ClassBank(10, capacity=8), head='replay')])
def test_sharpness_aware(dls, make):
    learn = fit(learner(dls, [make(), SAM()]))
    assert int(learn.memory.bank.updates)==2*len(dls.train)

class Checkpointed(nn.Module):
    def __init__(self, net): super().__init__(); self.body,self.tail = net[:-1],net[-1:]
    def forward(self, x):
        z = self.body(x)
        return torch.utils.checkpoint.checkpoint(self.tail, z, use_reentrant=False) if self.on else self.tail(z)

@pytest.mark.parametrize('make',
                         [lambda: MemoryCallback(SlotBank(64), head='add'),
                          lambda: MemoryCallback(ClassBank(10, capacity=8), head='replay')])
def test_gradient_checkpointing(dls, make):
    "The memory's part runs again in the backward pass, and says the same"
    def go(on):
        set_seed(0, reproducible=True)
        dls.train.rng = random.Random(0)
        m = Checkpointed(small_cnn(1, 10))
        m.on = on
        return fit(Learner(dls, m, metrics=accuracy, cbs=make()))
    a,b = go(False),go(True)
    for k,v in a.model.state_dict().items():
        torch.testing.assert_close(v, b.model.state_dict()[k], rtol=0, atol=0, msg=k)

@pytest.mark.parametrize('whole', [False, True])
def test_reentrant_checkpointing(dls, whole):
    "The older kind, which runs its part without gradient first; of the whole network, or of its end"
    class Old(Checkpointed):
        def forward(self, x):
            if not self.on: return self.tail(self.body(x))
            def run(f, x): return torch.utils.checkpoint.checkpoint(f, x, use_reentrant=True)
            if whole: return run(lambda x: self.tail(self.body(x)), x.requires_grad_())
            return run(self.tail, self.body(x))
    def go(on):
        set_seed(0, reproducible=True)
        dls.train.rng = random.Random(0)
        m = Old(small_cnn(1, 10))
        m.on = on
        return fit(Learner(dls, m, metrics=accuracy, cbs=MemoryCallback(ClassBank(10, capacity=8), head='replay')))
    a,b = go(False),go(True)
    assert int(a.memory.bank.draws)==int(b.memory.bank.draws)>0
    for k,v in a.model.state_dict().items():
        if 'running' in k or 'num_batches' in k: continue       # batch norm counts the second forward too
        torch.testing.assert_close(v, b.model.state_dict()[k], rtol=1e-3, atol=1e-4, msg=k)

def test_replay_beside_a_mean_over_views(dls):
    "A consistency term of a second view: its rows are those of the batch, and the loss's are drawn once"
    class Consistent(Callback):
        order,run_valid = 60,False
        def after_loss(self):
            out = self.learn.model(self.x.flip(-1))
            assert len(out)==len(self.y)==len(self.learn.model(self.x))
            self.learn.loss_grad = self.loss_grad+.1*(out-self.pred.detach()).square().mean()
    learn = fit(learner(dls, [MemoryCallback(ClassBank(10, capacity=8), head='replay'), Consistent()]))
    once = fit(learner(dls, [MemoryCallback(ClassBank(10, capacity=8), head='replay')]))
    for k in ('draws','seen'): assert getattr(learn.memory.bank, k)==getattr(once.memory.bank, k)

def test_a_models_copy_in_the_same_step_stores_nothing(dls):
    class Teacher(Callback):
        def before_fit(self): self.learn.teacher = copy.deepcopy(self.learn.model)
        def after_pred(self):
            with torch.no_grad(): self.learn.teacher(self.x)
    learn = fit(learner(dls, [MemoryCallback(SlotBank(64, policy='fifo'), head='add'), Teacher()]), 1)
    assert len(memories(learn.teacher)['memory'].bank)==0 and len(learn.memory.bank)==64

# a loss of the head's own

class Pull(MemoryHead):
    "Pulls features towards nothing"
    def loss(self, z, y): return z.pow(2).mean()

def test_a_heads_loss_is_mixed_in(dls):
    def go(w, **kw): return fit(learner(dls, MemoryCallback(SlotBank(8), head=Pull, loss_weight=w), **kw))
    plain,half = go(0.),go(.9)
    zs = [o.memory.collect(dls.train).z.pow(2).mean() for o in (plain,half)]
    assert zs[1]<zs[0]/2
    assert 'memory_loss' in half.recorder.metric_names and 'memory_loss' not in plain.recorder.metric_names
    row = dict(zip(half.recorder.metric_names[1:], half.recorder.values[-1]))
    assert 0<row['memory_loss']<1
    with pytest.raises(MemoError, match='loss_weight must be a number'):
        MemoryCallback(SlotBank(8), head=Pull, loss_weight=1.5)

@pytest.mark.parametrize('w', [0., .3])
def test_one_step_of_the_mixture(w):
    "(1-w) x the learner's loss + w x the head's, with gradient accumulation too"
    torch.manual_seed(0)
    x,y = torch.randn(12, 5),torch.arange(12)%3
    from memo.data.tensors import TensorDL
    def go(bs, cbs):
        d = DataLoaders(TensorDL(x, y, bs=bs), TensorDL(x, y, bs=bs), device='cpu')
        torch.manual_seed(1)
        return Learner(d, nn.Sequential(nn.Linear(5,4), nn.Linear(4,3)), CrossEntropyLossFlat(), opt_func=SGD,
                       cbs=[MemoryCallback(SlotBank(8), head=Pull, loss_weight=w), *cbs])
    for bs,cbs in ((12,[]), (4,[GradientAccumulation(12)])):
        learn = go(bs, cbs)
        m = nn.Sequential(nn.Linear(5,4), nn.Linear(4,3))
        m.load_state_dict({k:v for k,v in learn.model.state_dict().items() if 'memory' not in k})
        l = (1-w)*F.cross_entropy(m(x), y) + w*m[0](x).pow(2).mean()
        l.backward()
        with learn.no_bar(), learn.no_logging(): learn.fit(1, .1, wd=0.)
        for p,(k,q) in zip(m.parameters(), learn.model.named_parameters()):
            torch.testing.assert_close(p-.1*p.grad, q, rtol=1e-4, atol=1e-6)

# what is learned is made at its place

class Rows(SlotBank):
    learned = True
    def build(self, dim, n_classes): self.centres = nn.Parameter(torch.zeros(n_classes, dim))

def test_learned_rows(dls):
    from memo.training.param_groups import body_head_splitter
    learn = learner(dls, MemoryCallback(Rows(8), head=Pull), splitter=body_head_splitter)
    p = learn.memory.bank.centres
    assert p.shape==(10, 64)
    learn.create_opt()
    assert any(p is o for o in learn.opt.param_lists[-1])
    none = learner(dls, None)
    with pytest.raises(MemoError, match='cannot be added for one fit'), quiet(none):
        none.fit(1, cbs=MemoryCallback(Rows(8), head=Pull))
    assert bare(none.model)

# timm

@pytest.mark.parametrize('arch', ['resnet18','vit_tiny_patch16_224','efficientnet_b0'])
def test_timms_other_ways_in(arch):
    m = timm.create_model(arch, num_classes=5).eval()
    x = torch.randn(2, 3, 224 if 'vit' in arch else 64, 224 if 'vit' in arch else 64)
    bank = SlotBank(20, policy='fifo', n_classes=5)
    bank.write(torch.randn(20, m.num_features), torch.arange(20)%5)
    with torch.no_grad():
        plain,pre = m(x),m.forward_head(m.forward_features(x), pre_logits=True)
        attach(m, VoteHead(bank, k=3))
        with_memory = m(x)
        assert not torch.allclose(with_memory, plain)
        assert torch.equal(m.forward_head(m.forward_features(x)), with_memory)
        assert torch.equal(m.forward_head(m.forward_features(x), pre_logits=True),
                           pre) and torch.equal(m.forward_head(m.forward_features(x), True), pre)
    with pytest.raises(MemoError, match='reset_classifier would drop the memory memory'): m.reset_classifier(7)
    detach(m)
    m.reset_classifier(7)
    assert m(x).shape==(2,7) and 'forward_head' not in vars(m)

def test_an_answer_that_is_lost_is_said():
    m = timm.create_model('resnet18', num_classes=5).eval()
    bank = SlotBank(20, policy='fifo', n_classes=5)
    bank.write(torch.randn(20, 64), torch.arange(20)%5)
    attach(m, VoteHead(bank, k=3), 'layer1', 'early')
    x = torch.randn(2,3,64,64)
    with torch.no_grad():
        with pytest.warns(UserWarning, match='early.*call the model instead'): m.forward_head(m.forward_features(x))
    m.reset_classifier(7)       # it does not sit there
    assert m(x).shape==(2,7)

# traced graphs

# three: one that adds, one that votes, one that watches
kinds = ['vote','whitened','add','prototype','lda','three']
traced = {('three','compile'), ('three','export'), ('three','strict'), ('vote','compile'), ('add','export'),
          ('lda','compile'), ('prototype','export'), ('whitened','export')}

@pytest.mark.parametrize('kind,how', [pytest.param(k, h, marks=[pytest.mark.nightly]*((k,h) not in traced))
                                      for k in kinds for h in ('compile','export','strict')])
def test_compiled_and_exported_models(how, kind):
    torch.manual_seed(0)
    net,z,y = small_cnn(1, 10),torch.randn(200, 64),torch.arange(200)%10
    b = ClassBank(10, capacity=16) if kind in ('prototype','lda') else SlotBank(256, policy='fifo', n_classes=10)
    b.write(z, y)
    if kind in ('add','three'):
        early = SlotBank(64, policy='fifo')
        early.write(torch.randn(40, 32))
        attach(net, RetrievalHead(early), '4', 'early')
    if kind!='add':
        attach(net, dict(vote=VoteHead, three=VoteHead, prototype=PrototypeHead, lda=LDAHead,
                         whitened=partial(VoteHead, whiten=True))[kind](b))
    if kind=='three': attach(net, MemoryHead(ClassBank(10)), name='rare')
    x = torch.randn(4,1,16,16)
    net.eval()
    with torch.no_grad():
        want = net(x)
        if how=='compile': g = torch.compile(net, fullgraph=True, backend='eager')
        else: g = torch.export.export(net, (x,), strict=how=='strict').module()
        torch.testing.assert_close(g(x), want, rtol=1e-5, atol=1e-5)
    assert not any('_traced' in vars(h) and h._traced is not None for h in memories(net).values())

some = ('before','add'),('after','vote')

@pytest.mark.parametrize('how,head', [pytest.param(w, h, marks=[pytest.mark.nightly]*((w,h) not in some))
                                      for w in ('before','after') for h in (None,'add','vote')])
def test_a_compiled_model_is_trained_as_any(dls, head, how):
    "What a traced graph saw is stored, under its items, and nobody finds himself"
    torch._dynamo.reset()
    def go(compiled):
        set_seed(0, reproducible=True)
        dls.train.rng = random.Random(0)
        m = small_cnn(1, 10)
        if compiled and how=='before': m.compile(backend='eager')
        learn = Learner(dls, m, metrics=accuracy, cbs=MemoryCallback(SlotBank(256, policy='fifo'), head=head))
        if compiled and how=='after': learn.model.compile(backend='eager')
        return fit(learn)
    a,b = go(False),go(True)
    assert len(b.memory.bank)==len(dls.train_ds)==len(a.memory.bank) and torch.equal(a.memory.bank.items,
        b.memory.bank.items)
    torch.testing.assert_close(a.memory.bank.features, b.memory.bank.features, rtol=1e-3, atol=1e-3)
    if head=='vote': assert float(b.memory.head.weight)==float(a.memory.head.weight)!=.5
    assert all(h._traced is None and h._traced_raw is None for h in memories(b.model).values())

def test_off_is_of_its_thread():
    net = small_cnn(1, 10).eval()
    bank = SlotBank(8, policy='fifo')
    bank.write(torch.randn(8, 64))
    attach(net, h := RetrievalHead(bank, k=1))
    x,got = torch.randn(3,1,16,16),{}
    with torch.no_grad():
        whole = net(x)
        a,b = h.off(),h.off()           # two that overlap, and end in the order in which they began
        a.__enter__()
        b.__enter__()
        def other():
            with torch.no_grad(): got['out'] = net(x)
        t = threading.Thread(target=other)
        t.start()
        t.join()
        assert torch.equal(got['out'], whole) and not torch.equal(net(x), whole)
        a.__exit__(None, None, None)
        assert not torch.equal(net(x), whole)
        b.__exit__(None, None, None)
        assert torch.equal(net(x), whole)

def test_a_prediction_of_another_thread_takes_no_replay(dls):
    "Neither does it get rows that belong to a training step"
    class Other(Callback):
        order = 60
        def before_batch(self):
            if not self.training: return
            x,got = self.x[:3].clone(),{}
            def go():
                with torch.no_grad(): got['n'] = len(self.learn.model(x))
            m = [(o,o.running_mean.clone(),o.running_var.clone(),o.num_batches_tracked.clone())
                 for o in self.learn.model.modules() if isinstance(o, nn.BatchNorm2d)]
            t = threading.Thread(target=go)
            t.start()
            t.join()
            for o,a,b,c in m: o.running_mean.copy_(a); o.running_var.copy_(b); o.num_batches_tracked.copy_(c)
            assert got['n']==3
    a,b = (fit(learner(dls, [MemoryCallback(ClassBank(10, capacity=8), head='replay'), *more]))
           for more in ([], [Other()]))
    for k,v in a.model.state_dict().items(): assert torch.equal(v, b.model.state_dict()[k]), k

class OHEM(Callback):
    "The loss of half of the rows, or of the rows in another order"
    order = 60
    def __init__(self, how): self.how = how
    def after_pred(self):
        if not self.training: return
        n = len(self.y)
        i = torch.arange(0, n, 2) if self.how=='half' else torch.randperm(n)
        self.learn.pred,self.learn.yb = self.pred[i],(self.y[i],)

@pytest.mark.parametrize('how', ['half','permuted'])
@pytest.mark.parametrize('head', [None,'add','vote'])
def test_pred_and_targets_that_are_changed_after_the_forward(dls, how, head):
    learn = fit(learner(dls, [MemoryCallback(SlotBank(256, policy='fifo'), head=head), OHEM(how)]))
    bank,ds = learn.memory.bank,dls.train_ds
    label = dict(zip(item_ids(ds).tolist(), ds.y.tolist()))
    n = len(bank)
    assert (n==len(ds) if how=='permuted' else len(ds)/2<=n<len(ds)) and all(label[int(i)]==int(y)
        for i,y in zip(bank.items[:n], bank.labels[:n]))

class TwoViews(nn.Module):
    "A backbone that sees the batch and its mirror image, at once or one after the other"
    def __init__(self, at_once): super().__init__(); self.net,self.at_once = small_cnn(1, 10),at_once
    def forward(self, x):
        if not self.at_once: return self.net(x.flip(-1))+self.net(x)
        return self.net(torch.cat([x, x.flip(-1)])).view(2, len(x), -1).sum(0)

@pytest.mark.parametrize('at_once,say', [(True,'features pass its place for a batch of'), (False,'passed 2 times')])
def test_features_that_are_not_of_one_item_are_not_stored(dls, at_once, say):
    learn = Learner(dls, TwoViews(at_once), metrics=accuracy, cbs=MemoryCallback(SlotBank(64), head=None))
    with pytest.warns(UserWarning, match=say): fit(learn, 1)
    assert len(learn.memory.bank)==0

def test_a_memory_inside_and_one_outside(dls):
    "A part of a model that came with a memory of its own"
    body = small_cnn(1, 10)[:-1]
    attach(body, MemoryHead(SlotBank(300, policy='fifo')), '4', 'inner')
    learn = Learner(dls, nn.Sequential(body, nn.Linear(64, 10)), metrics=accuracy,
                    cbs=[MemoryCallback(SlotBank(300, policy='fifo'), head='vote', name='outer'), MemoryCallback()])
    fit(learn, 1)
    n = len(dls.train_ds)
    assert {k:len(o.bank) for k,o in learn.memories.items()}=={'outer':n, 'inner':n} and learn.inner.rekey()==n

class Scale(MemoryHead):
    "A parameter that is there from the beginning"
    def __init__(self, bank, k:int=3):
        super().__init__(bank, k)
        self.scale = nn.Parameter(torch.ones(1))
    def fuse(self, x, z): return x*self.scale

def test_parameters_of_a_head_are_trained_whenever_it_is_added(dls):
    learn = fit(learner(dls, None), 1)
    learn.add_cb(MemoryCallback(SlotBank(64), head=Scale))
    fit(learn, 1)
    assert float(learn.memory.head.scale)!=1
    none = learner(dls, None)
    with pytest.raises(MemoError, match='cannot be added for one fit'), quiet(none):
        none.fit(1, cbs=MemoryCallback(SlotBank(64), head=Scale))

def test_learned_rows_are_saved_and_loaded(dls, tmp_path):
    learn = fit(learner(dls, MemoryCallback(Rows(8), head=Pull)), 1)
    learn.memory.bank.centres.data.normal_()
    learn.memory.bank.save(tmp_path/'b.safetensors')
    assert torch.equal(Bank.load(tmp_path/'b.safetensors', kinds=[Rows]).centres, learn.memory.bank.centres)
    net = small_cnn(1, 10)
    attach(net, Pull(Rows(8, n_classes=10)))
    net.load_state_dict(learn.model.state_dict())
    assert torch.equal(memories(net)['memory'].bank.centres, learn.memory.bank.centres)

@pytest.mark.parametrize('kind,strict', [pytest.param(k, s, marks=[pytest.mark.nightly]*(s or k in ('add','prototype')))
                                         for k in ('vote','add','prototype','lda') for s in (False,True)])
def test_exported_for_any_batch_and_an_empty_bank(kind, strict):
    torch.manual_seed(0)
    net,z,y = small_cnn(1, 10),torch.randn(200, 64),torch.arange(200)%10
    b = ClassBank(10, capacity=16) if kind in ('prototype','lda') else SlotBank(256, policy='fifo', n_classes=10)
    b.write(z, y)
    attach(net, dict(vote=VoteHead, add=RetrievalHead, prototype=PrototypeHead, lda=LDAHead)[kind](b))
    net.eval()
    x = torch.randn(8,1,16,16)
    with torch.no_grad():
        net(x)
        dim = {0:torch.export.Dim('b', min=2, max=64)}
        g = torch.export.export(net, (x[:4],), strict=strict, dynamic_shapes=(dim,)).module()
        for n in (4, 8, 3): torch.testing.assert_close(g(x[:n]), net(x[:n]), rtol=1e-5, atol=1e-5)
        b.reset()
        torch._dynamo.reset()
        h = torch.compile(net, fullgraph=True, backend='eager')
        torch.testing.assert_close(h(x), net(x), rtol=1e-5, atol=1e-5)

def test_labels_that_a_callback_sets_after_the_forward_are_those_of_the_loss(dls):
    class Relabel(Callback):
        def after_pred(self):
            if self.training: self.learn.yb = ((self.y+1)%10,)
    learn = fit(learner(dls, [MemoryCallback(SlotBank(256, policy='fifo'), head=None), Relabel()]), 1)
    bank,label = learn.memory.bank,dict(zip(item_ids(dls.train_ds).tolist(), dls.train_ds.y.tolist()))
    n = len(bank)
    assert n==len(dls.train_ds) and all((label[int(i)]+1)%10==int(y) for i,y in zip(bank.items[:n], bank.labels[:n]))

def test_rows_that_the_loss_never_saw_are_not_stored(dls):
    class Some(Callback):
        def after_pred(self):
            if not self.training: return
            keep = self.y!=0
            self.learn.pred,self.learn.yb = self.pred[keep],(self.y[keep],)
    learn = fit(learner(dls, [MemoryCallback(SlotBank(256, policy='fifo'), head=None), Some()]), 1)
    bank,label = learn.memory.bank,dict(zip(item_ids(dls.train_ds).tolist(), dls.train_ds.y.tolist()))
    n = len(bank)
    assert 0<n==sum(y!=0 for y in label.values()) and all(label[int(i)]==int(y)!=0
                                                          for i,y in zip(bank.items[:n], bank.labels[:n]))

def test_an_output_of_several_forwards_stores_nothing(dls):
    class Both(Learner):
        def _do_one_batch(self):
            model = self.model
            self.model = lambda x: (model(x)+model(x.flip(-1)))/2
            try: super()._do_one_batch()
            finally: self.model = model
    set_seed(0)
    learn = Both(dls, small_cnn(1, 10), metrics=accuracy, cbs=MemoryCallback(SlotBank(64), head=None))
    with pytest.warns(UserWarning, match='the output of no single forward'): fit(learn, 1)
    assert len(learn.memory.bank)==0

def test_three_memories_resume_to_the_same_numbers(dls, tmp_path):
    "Killed in the middle, and gone on with by a new process's learner"
    from memo.training.stages import Stage, fit_stages
    class Killed(Callback):
        def after_batch(self):
            if self.training and self.epoch==2: raise KeyboardInterrupt
    def stages(): return [Stage('train', 4, 1e-2)]
    def go(learn, **kw):
        with quiet(learn): return fit_stages(learn, stages(), **kw)
    whole = learner(dls, three())
    h = go(whole, checkpoint=tmp_path/'a')
    with pytest.raises(KeyboardInterrupt): go(learner(dls, [*three(), Killed()]), checkpoint=tmp_path/'b')
    again = learner(dls, three(), seed=7)
    r = go(again, checkpoint=tmp_path/'b', resume=True)
    for k,v in whole.model.state_dict().items(): assert torch.equal(v, again.model.state_dict()[k]), k
    assert h.drop(columns='seconds').equals(r.drop(columns='seconds')) and 'early_hit' in h

# what is encoded and fitted is what the model sees and answers

def two(early='add'):
    return [MemoryCallback(SlotBank(64, policy='fifo'), head=early, at='4', name='early'),
            MemoryCallback(SlotBank(256, policy='fifo'), head='vote')]

def test_rows_are_encoded_as_queries_are(dls):
    "Behind a memory that changes the features, too"
    learn = fit(learner(dls, two()), 4)
    learn.memory.rekey()
    b = learn.memory.bank
    got = learn.memory.collect(plain_dl(dls.train), memory=True, own=True)
    at = {int(i):k for k,i in enumerate(got.item)}
    want = got.z[[at[int(i)] for i in b.items[:len(b)]]]
    torch.testing.assert_close(b.features[:len(b)], want, rtol=1e-4, atol=1e-5)
    without = learn.memory.collect(plain_dl(dls.train)).z[[at[int(i)] for i in b.items[:len(b)]]]
    assert (want-without).norm()>.05*want.norm()

def test_a_vote_is_fitted_to_what_it_answers_to(dls):
    from memo.heads.mixture import class_nll
    learn = fit(learner(dls, two()), 4)
    chosen = learn.memory.fit()
    with learn.memory.off(), quiet(learn): p,y = learn.get_preds(act=noop)
    assert chosen['nll_network']==pytest.approx(float(class_nll(p.log_softmax(1), y.as_subclass(Tensor))), rel=1e-4)
    two_votes = fit(learner(dls, two('vote')), 2)
    with two_votes.memory.off(), quiet(two_votes): p,y = two_votes.get_preds(act=noop)
    assert two_votes.memory.fit()['nll_network']==pytest.approx(float(class_nll(p.log_softmax(1),
        y.as_subclass(Tensor))), rel=1e-4)

def test_a_compiled_model_is_asked_the_same(dls):
    "rekey, fit, recall and collect look at the model itself"
    def made(compiled):
        learn = fit(learner(dls, two()), 2)
        if compiled: learn.model.compile(backend='eager')
        return learn
    a,b = made(False),made(True)
    for memory in (False,True):
        p,q = (o.memory.collect(dls.valid, memory=memory) for o in (a,b))
        torch.testing.assert_close(p.logits, q.logits)
        torch.testing.assert_close(p.z, q.z)
    assert a.memory.rekey()==b.memory.rekey()>0
    assert a.memory.fit()==pytest.approx(b.memory.fit(), rel=1e-4)
    torch.testing.assert_close(a.recall(n=3, memory='memory').weight, b.recall(n=3, memory='memory').weight)

def test_the_share_of_a_heads_loss_is_its_share(dls):
    "Beside a penalty that another callback adds to the gradient's loss"
    class Penalty(Callback):
        order = 1
        def after_loss(self):
            if self.training: self.learn.loss_grad = self.loss_grad + 40.
    got = []
    class Looks(Callback):
        order = 10**5
        def after_loss(self):
            if self.training:
                got.append((float(self.loss_grad), float(self.learn.loss),
                            float(self.learn.memory._fits[-1].memories[0].losses[-1])))
    fit(learner(dls, [MemoryCallback(SlotBank(8), head=Pull, loss_weight=.5), Penalty(), Looks()]), 1)
    for grad,loss,own in got: assert grad==pytest.approx(loss+.5*40, rel=1e-5) and 0<own<2*loss

def test_hits_in_training_are_those_of_the_read(dls):
    "Rows that a step writes over were another class's when they were recalled"
    hits = []
    class Asks(Callback):
        order = 10**5
        def after_loss(self):
            if not self.training: return
            h = self.learn.memory.head
            v = h.hits(self.learn.batch_ids.step.seen(h), self.y)
            if v is not None: hits.append(v)
    learn = learner(dls, [MemoryCallback(SlotBank(16, policy='fifo'), head='add'), Asks()])
    learn.recorder.train_metrics = True
    fit(learn, 1)
    row = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    assert row['train_memory_hit']==pytest.approx(float(torch.cat(hits).mean()))

def test_a_part_of_the_model_called_in_a_step_gets_no_rows():
    from memo.data.tensors import TensorDL
    torch.manual_seed(0)
    x,y = torch.randn(64, 5),torch.arange(64).clamp(max=47)%3*(torch.arange(64)<48)
    dls = DataLoaders(TensorDL(x, y, bs=32, vocab=range(3)), TensorDL(x, y, bs=32, vocab=range(3)), device='cpu')
    sizes = []
    class Calls(Callback):
        def after_loss(self):
            if self.training: sizes.append(len(self.learn.model[-1](torch.zeros(7, 4))))
    fit(Learner(dls, nn.Sequential(nn.Linear(5,4), nn.Linear(4,3)), CrossEntropyLossFlat(),
                cbs=[MemoryCallback(ClassBank(3, capacity=8), head='replay'), Calls()]), 2)
    assert sizes==[7]*4

# names, places

def test_one_of_several_is_taken_out(dls):
    learn = fit(learner(dls, three()), 1)
    model = learn.model
    export = learner(dls, None)
    export.model = copy.deepcopy(model)
    for o in ('rare','early','memory'): assert o in memories(export.model)
    export.add_cb(MemoryCallback())
    head = export.early.detach()
    assert isinstance(head, RetrievalHead) and list(memories(export.model))==['rare',
        'memory'] and list(export.memories)==['rare','memory']
    fit(export, 1)
    assert not hasattr(export, 'early')

@pytest.mark.parametrize('name', ['dls','fit','opt','xb'])
def test_names_that_a_learner_has(dls, name):
    "A model that came with a memory of that name, too"
    learn = learner(dls, None)
    attach(learn.model, VoteHead(SlotBank(8, n_classes=10), k=3), name=name)
    with pytest.raises(MemoError, match='as something of a learner is'): learn.add_cb(MemoryCallback())
    fit(learn, 1)

def test_one_bank_at_two_places_is_refused():
    "Its rows would be features of both"
    m,b = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)),SlotBank(8)
    attach(m, MemoryHead(b), at='1', name='one')
    with pytest.raises(MemoError, match="this bank is the memory 'one' of the model already"):
        attach(m, MemoryHead(b), at='0', name='two')
    assert [*memories(m)]==['one']

def test_a_bank_that_is_in_the_model_behind_another_head(dls):
    learn = fit(learner(dls, MemoryCallback(SlotBank(64), head='add')), 1)
    bank,model = learn.memory.bank,learn.model
    other = Learner(dls, model, metrics=accuracy)
    with pytest.raises(MemoError, match='behind a RetrievalHead already'):
        other.add_cb(MemoryCallback(bank, head='vote'))
    fit(Learner(dls, model, metrics=accuracy, cbs=MemoryCallback(bank, head='add')), 1)

class Keyword(nn.Module):
    def __init__(self):
        super().__init__(); self.body,self.fc = nn.Sequential(nn.Flatten(), nn.Linear(64,8)),nn.Linear(8,10)
    def forward(self, x): return self.fc(input=self.body(x[:,:,::2,::2] if x.shape[-1]>8 else x))
class Recurrent(nn.Module):
    def __init__(self): super().__init__(); self.rnn,self.fc = nn.LSTM(8, 8, batch_first=True),nn.Linear(8,10)
    def forward(self, x): return self.fc(self.rnn(x.flatten(1).reshape(len(x),-1,8))[0][:,-1])

@pytest.mark.parametrize('model,at,say',
                         [(Keyword,None,'is called by keyword'), (Recurrent,'rnn','is a tuple, no tensor')])
def test_places_without_a_tensor(model, at, say):
    m = model()
    attach(m, MemoryHead(SlotBank(8)), at=at)
    with pytest.raises(MemoError, match=say): m(torch.zeros(2, 1, 8, 8))

def test_new_items_need_no_patient(tmp_path):
    "Recalled for, as predicted for"
    import pandas as pd
    from PIL import Image
    from sklearn.datasets import load_digits
    d = load_digits()
    for i in range(24): Image.fromarray((d.images[i]*15).astype('uint8')).resize((32,32)).save(tmp_path/f'{i}.png')
    df = pd.DataFrame(dict(image=[f'{i}.png' for i in range(24)], label=[str(o) for o in d.target[:24]],
                           patient=[i//2 for i in range(24)], valid=[i>=16 for i in range(24)]))
    dls = ImageDataLoaders.from_df(df, tmp_path, fn_col='image', label_col='label', valid_col='valid', bs=8,
                                   device='cpu', num_workers=0)
    learn = fit(Learner(dls, small_cnn(3, dls.c),
                        cbs=MemoryCallback(SlotBank(16, policy='fifo'), head='vote', k=2, group='patient')), 1)
    assert learn.recall([tmp_path/'20.png', tmp_path/'21.png']).weight.shape==(2,2)
    with quiet(learn): learn.get_preds(dl=dls.test_dl([tmp_path/'20.png']))
    by_name = fit(Learner(dls, small_cnn(3, dls.c),
                          cbs=MemoryCallback(SlotBank(16, policy='fifo'), head='vote', k=2, item='image')), 1)
    got = by_name.recall([tmp_path/'20.png', tmp_path/'21.png'])
    assert got.item.tolist()==[-1,-1] and (got.row_item>=0).all()

# heads as one writes them first

class Layered(RetrievalHead):
    "Has a layer of its own, behind the classifier in the order of the modules"
    def __init__(self, bank, k=3):
        super().__init__(bank, k)
        self.lin = nn.Linear(64, 64)
    def fuse(self, x, z): return x + self.lin(x)*.1

class Plain(nn.Module):
    def __init__(self):
        super().__init__(); self.body,self.classifier = nn.Sequential(nn.Flatten(1), nn.LazyLinear(64),
            nn.ReLU()),nn.Linear(64, 10)
    def forward(self, x): return self.classifier(self.body(x))

@pytest.mark.parametrize('model', [lambda: small_cnn(1, 10), Plain])
def test_a_heads_own_layer_is_not_the_classifier(dls, model):
    "For freezing, for the place of the next memory, for taking it out"
    from memo.training.param_groups import body_head_splitter, head_module
    set_seed(0)
    m = model()
    m(dls.one_batch()[0].as_subclass(Tensor).cpu()[:2])
    last = head_module(m)
    cbs = [MemoryCallback(SlotBank(32), head=Layered),
           MemoryCallback(SlotBank(32, policy='fifo'), head=None, name='second')]
    learn = Learner(dls, m, metrics=accuracy, cbs=cbs, splitter=body_head_splitter)
    assert head_module(learn.model) is last
    learn.create_opt()
    ids = {id(p) for p in learn.opt.param_lists[-1]}
    assert {id(p) for p in [*last.parameters(), *learn.memory.head.lin.parameters()]}<=ids
    was = last.weight.detach().clone()
    learn.freeze()
    fit(learn, 1)
    assert not torch.equal(was, last.weight) and len(learn.second.bank)==32 and learn.second.bank.dim==64
    learn.memory.detach()
    assert list(memories(learn.model))==['second']

class OnlyFuses(MemoryHead):
    def fuse(self, x, z): return x + self.recall(z, *self.own(len(z))).value
class OnlyAnswers(MemoryHead):
    def answer(self, logits):
        r = self.recall(self.z)
        return logits if len(self.bank)==0 else logits + 3*F.one_hot(self.bank.rows()[2][r.index[:,0].clamp(min=0)], 10)

def test_what_a_head_does_not_say_follows_from_what_it_has(dls):
    assert (OnlyFuses.trains,OnlyFuses.mixes,OnlyAnswers.trains,OnlyAnswers.mixes)==(True,False,False,True)
    assert (MemoryHead.trains,MemoryHead.mixes,VoteHead.trains,VoteHead.mixes,ReplayHead.trains,
            RetrievalHead.mixes)==(False,False,False,True,True,False)
    learn = fit(learner(dls, MemoryCallback(SlotBank(64, policy='fifo'), head=OnlyAnswers)), 1)
    got = learn.memory.collect(dls.valid)
    with torch.no_grad():
        torch.testing.assert_close(learn.memory.head.eval().mixed(got.logits, got.z),
                                   learn.memory.collect(dls.valid, memory=True).logits)

def test_misspelt_arguments_name_who_reads_them():
    for kw,say in ((dict(hed='vote'), 'hed: neither MemoryCallback nor RetrievalHead reads it; did you mean head?'),
                   (dict(gropu='p'), 'did you mean group?'),
                   (dict(loss_wieght=.1), 'did you mean loss_weight?'),
                   (dict(temperatur=.1), 'did you mean temperature?'), (dict(nmae='x'), 'did you mean name?')):
        with pytest.raises(MemoError) as e: MemoryCallback(SlotBank(8), **kw)
        assert say in str(e.value) and 'self' not in str(e.value)
