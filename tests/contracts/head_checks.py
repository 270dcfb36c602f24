"""What every head does on every bank that has what it needs. Each check gets `make(**arguments)`, which gives a
learner with that memory, not trained yet"""
import copy, json, pickle, random, threading
import pytest, torch
from fastai.learner import load_learner
from fastai.vision.all import Callback, L
from itertools import product
from torch.nn import functional as F
from memo.banks.search import similarities
from memo.heads.attach import detach, memories
from memo.training.memory_callback import MemoryCallback
from memo.core import MemoError
from memo.heads.base import MemoryHead
from memo.training.stages import Stage, fit_stages
from memo.training.param_groups import body_head_splitter
from memo.registry import find
from .made import StopAt, Y, answer_half, learner, other, preds_equal, quietly, refused_in_one_line, state_equal

def trained(make, epochs=1, **kw):
    learn = make(**kw)
    quietly(learn, learn.fit, epochs, 1e-2)
    return answer_half(learn)

def preds(learn): return quietly(learn, learn.get_preds)[0]
def raw(model, dls): return torch.cat([model.eval()(b[0]).detach() for b in dls.valid])

def comes_and_goes(make):
    "Taken out again, the network is what it was, to the bit"
    learn,plain = make(),learner()
    net,own,x = learn.model,plain.model,learn.dls.valid.one_batch()[0]
    def hooks(model): return [(len(m._forward_hooks),len(m._forward_pre_hooks),set(vars(m))) for m in model.modules()]
    assert list(memories(net))==['memory'] and learn.memories['memory'].head is memories(net)['memory'] and [
        *net.state_dict()]!=[*own.state_dict()]
    head = learn.memory.detach()
    assert isinstance(head,
                      MemoryHead) and not memories(net) and [*net.state_dict()]==[*own.state_dict()] and hooks(
                          net)==hooks(own)
    assert torch.equal(net.eval()(x), own.eval()(x)) and not learn.cbs.filter(lambda o: isinstance(o, MemoryCallback))

def fills_its_bank(make):
    """With what was trained on: its items, with their classes; columns have the memory's name in front, three at
    most are the head's own"""
    learn = trained(make, 2)
    bank,head = learn.memory.bank,learn.memory.head
    _,_,y,item,_,valid = bank.rows()
    ok = slice(None) if valid is None else valid
    assert len(bank)>0 and torch.equal(y[ok], Y[item[ok]-10**12]) and (item[ok]<10**12+48).all()
    own = head.columns() or {}
    names = learn.recorder.metric_names
    mine = [n for n in names if n.startswith('memory_')]
    assert len(own)<=3 and {'memory_fill',*(f'memory_{o}' for o in own)}=={*mine}-{'memory_without'}
    got = dict(zip(names[1:], learn.recorder.values[-1]))
    assert all(got[n] is None or 0<=float(got[n])<=1 for n in mine)
    assert all(got[f'memory_{o}'] is not None for o in own)

def is_nothing_while_empty(make):
    learn = make()
    with learn.memory.off(): p = preds(learn)
    preds_equal(preds(learn), p)

def off_is_the_network(make):
    learn = trained(make)
    bare = copy.deepcopy(learn.model)
    detach(bare)
    with torch.no_grad():
        out = raw(bare, learn.dls)
        with learn.memory.off(): preds_equal(raw(learn.model, learn.dls), out)
    assert learn.memory.head.active

def says_what_it_does(make):
    "`mixes`: it answers; `trains`: the network's training is another; else neither network nor answers change"
    learn,plain = trained(make),learner()
    quietly(plain, plain.fit, 1, 1e-2)
    head = learn.memory.head
    with learn.memory.off(): off = preds(learn)
    assert head.mixes==(type(head).answer is not MemoryHead.answer)
    assert torch.equal(preds(learn), off)==(not head.mixes and not (head.trains and not head.adds_rows)), 'mixes'
    mine,its = (m.state_dict() for m in (copy.deepcopy(learn.model),plain.model))
    assert all(torch.equal(mine[k], v) for k,v in its.items())==(not head.trains), 'trains'

def adds_rows_only_if_it_says_so(make):
    seen = []
    class See(Callback):
        order = 100
        def after_pred(self):
            if self.training: seen.append((len(self.pred),len(self.x)))
    learn = trained(make, 2, cbs=[See()])
    assert any(a>b for a,b in seen)==bool(learn.memory.head.adds_rows)

def loss_is_a_number(make):
    "Or none; mixed in as (1-w) CE + w L and logged"
    learn = trained(make, loss_weight=.4)
    head = learn.memory.head
    z = torch.randn(4, learn.memory.bank.dim, requires_grad=True)
    l = head.loss(z, torch.tensor([0,1,2,3]))
    got = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))['memory_loss']
    if l is None:
        assert got is None
        return
    assert torch.is_tensor(l) and l.shape==() and l.requires_grad and l.isfinite() and float(got)>0
    l.backward()
    assert type(head).loss is not MemoryHead.loss and any(p.grad is not None for p in [z, *head.parameters()])

def mixes_its_loss(make):
    "What is trained is (1-w) x the learner's loss + w x the head's"
    class See(Callback):
        order = 100
        def after_loss(self):
            if not self.training or self.got: return
            head,y = self.learn.memory.head,self.y
            own = head.loss(self.learn.batch_ids.step.seen(head).z, y)
            net = self.loss_func(self.pred, y)
            self.got.append((float(self.loss_grad.detach()), float(net.detach()),
                             None if own is None else float(own.detach())))
    see = See()
    see.got = []
    trained(make, loss_weight=.25, cbs=[see])
    got,net,own = see.got[0]
    assert got==pytest.approx(net if own is None else .75*net+.25*own, rel=1e-5)

def parameters_are_trained(make):
    "Those of the memory are in the head's group, and the optimizer's"
    learn = make(loss_weight=.3)
    ps = list(learn.memory.head.parameters())
    body,head = body_head_splitter(learn.model)
    assert {id(p) for p in ps}<={id(p) for p in head}
    was = [p.detach().clone() for p in ps]
    quietly(learn, learn.fit, 1, 1e-2)
    assert {id(p) for p in ps}<={id(p) for g in learn.opt.param_lists for p in g}
    if ps: assert any(not torch.equal(a, b) for a,b in zip(was, ps))

def length_of_a_query_says_nothing(make, params):
    "Over a bank whose rows have unit length, whatever is compared, and how; what is recalled and answered is the same"
    if not make().memory.bank.unit: return
    ways = [dict(zip(('similarity','normalize','whiten'), o))
            for o in product(similarities, (None,'none','memory'), (False,True))]
    for kw in {str(o):o for o in ({k:v for k,v in w.items() if k in params} for w in ways)}.values():
        learn = trained(make, **kw)
        head,c = learn.memory.head,learn.memory.collect(learn.dls.valid)
        for by in (20., .05):
            a,b = head.recall(c.z),head.recall(by*c.z)
            assert torch.equal(a.index, b.index), kw
            torch.testing.assert_close(a.weight, b.weight, rtol=1e-3, atol=1e-5, msg=str(kw))
            if head.mixes and type(head).__module__.startswith('memo.'):
                torch.testing.assert_close(head.mixed(c.raw, c.z), head.mixed(c.raw, by*c.z), rtol=1e-3, atol=1e-4)

def fits_what_it_chooses(make):
    "On validation data: the mixture is no worse than the network, what was chosen is told and kept"
    learn = trained(make, 2)
    cb = learn.memory
    if type(cb.head).fit is MemoryHead.fit:
        with pytest.raises(MemoError, match='nothing to fit') as e: cb.fit()
        assert '\n' not in str(e.value) and cb.head.chosen()=={}
        return
    for b in cb.head.buffers(recurse=False): b.fill_(.9)        # whatever was chosen before
    got = cb.fit()
    json.dumps(got); json.dumps(cb.head.chosen())
    assert cb.head.chosen() and all(got[k]==pytest.approx(v) for k,v in cb.head.chosen().items()
                                    if k in got) and set(got)&set(cb.head.chosen())
    c = cb.collect(learn.dls.valid)
    with torch.no_grad(): mixed = cb.head.mixed(c.logits, c.z)
    n = torch.bincount(c.y, minlength=10)
    def nll(l): return sum(float(F.cross_entropy(l[c.y==i], c.y[c.y==i])) for i in range(10) if n[i])
    assert nll(mixed)<=nll(c.logits)+.35, 'the choice is worse than the network alone'
    # what evaluation mixes is what the model answers
    torch.testing.assert_close(mixed.softmax(1), preds(learn), rtol=1e-4, atol=1e-5)

def chooses_after_each_epoch(make):
    "What `fit` chooses is chosen on the validation set while training goes on"
    learn = make()
    head = learn.memory.head
    if type(head).fit is MemoryHead.fit: return
    if head.refit is None:      # its choice is its owner's
        chosen = head.chosen()
        quietly(learn, learn.fit, 2, 1e-2)
        assert head.chosen()==chosen
        return
    was = [b for b in head.buffers(recurse=False) if b.is_floating_point() and b.ndim==0]
    assert was
    for b in was: b.fill_(.9)
    quietly(learn, learn.fit, 2, 1e-2)
    assert any(float(b)!=pytest.approx(.9) for b in was)

def hides_own_rows(make):
    "No read of a training step finds the batch's items"
    learn,seen = make(),[]
    bank = learn.memory.bank
    read = bank.read
    def spy(q, k=3, item=None, group=None, **kw):
        r = read(q, k, item, group, **kw)
        if learn.model.training:
            seen.append((item, bank.items.flatten()[r.index.clamp(min=0)].masked_fill(r.index<0, -9)))
        return r
    bank.read = spy
    head = learn.memory.head
    if hasattr(head, 'visible'):        # it reads all rows at once
        def visible(valid, item, group):
            m = type(head).visible(head, valid, item, group)
            if learn.model.training: seen.append((item, bank.items.flatten()[:m.shape[-1]].where(m[:,0,0], -9)))
            return m
        head.visible = visible
    quietly(learn, learn.fit, 2, 1e-2)
    vars(head).pop('visible', None)
    for item,found in seen: assert item is not None and len(item)==len(found) and not (found==item[:,None]).any()
    reads = learn.memory.head.trains and not learn.memory.head.adds_rows
    assert seen or not reads, 'it reads in training, and nothing was read'
    del bank.read
    assert learn.memory.collect(learn.dls.train, memory=True, own=True).logits.isfinite().all()
    r = learn.recall(ds_idx=0)
    assert (r.row_item>=0).any() and not (r.row_item==r.item[:,None]).any()

def saved_and_loaded(make, tmp_path):
    learn = trained(make, 2)
    p = preds(learn)
    learn.path = tmp_path
    learn.save('m')
    new = make(seed=5)
    new.path = tmp_path
    new.load('m')
    state_equal(new.model, learn.model)
    preds_equal(preds(new), p)
    assert new.memory.head.chosen()==learn.memory.head.chosen() and new.memory.head.config()==learn.memory.head.config()
    for m in (copy.deepcopy(learn.model), pickle.loads(pickle.dumps(learn.model))):
        state_equal(m, learn.model)
        with torch.no_grad(): assert torch.equal(raw(m, learn.dls), raw(learn.model, learn.dls))

def exported(make, tmp_path):
    learn = trained(make, 2)
    p,x = preds(learn),learn.dls.valid_ds.x
    learn.export(tmp_path/'e.pkl')
    new = load_learner(tmp_path/'e.pkl')
    assert list(new.memories)==['memory'] and len(new.memory.bank)==len(learn.memory.bank)
    preds_equal(quietly(new, new.get_preds, dl=new.dls.test_dl(x))[0], p)

def resumed(make, tmp_path):
    "Interrupted and gone on with, it is what it would have been"
    def run(folder, resume=False, cbs=None):
        learn = make()
        h = quietly(learn, fit_stages, learn, [Stage('a', 3, 1e-2)], checkpoint=folder, resume=resume, cbs=cbs)
        return learn,h.drop(columns='seconds')
    a,h = run(tmp_path/'a')
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'b', cbs=StopAt(5))
    random.random(); torch.rand(2)
    b,h2 = run(tmp_path/'b', resume=True)
    assert h.equals(h2)
    state_equal(a.model, b.model)
    preds_equal(preds(a), preds(b))

def two_threads(make):
    "Predict at once and get the answers that one after the other would"
    learn = trained(make)
    m = learn.model.eval()
    xs = [learn.dls.valid_ds.x[i:i+4+i%3] for i in range(0, 24, 2)]
    with torch.no_grad(): want = [m(x) for x in xs]
    wrong = []
    def ask(order):
        with torch.no_grad():
            for _ in range(6):
                for i in order:
                    if not torch.equal(m(xs[i]), want[i]): wrong.append(i)
    ts = [threading.Thread(target=ask, args=(o,)) for o in (range(12), range(11, -1, -1))]
    for t in ts: t.start()
    for t in ts: t.join()
    assert not wrong

def nothing_of_a_call_stays(make):
    learn = trained(make)
    preds(learn)
    head = learn.memory.head
    size = len(pickle.dumps(head))
    for n in (16,1):
        with torch.no_grad(): learn.model.eval()(learn.dls.valid_ds.x[:n])
    assert head.z is None and head.step is None and len(pickle.dumps(head))==size

def recalls(make):
    "Beside the answers of the model with its memory"
    learn = trained(make)
    r = learn.recall(n=5)
    k = r.weight.shape[1]
    assert r.row_item.shape==r.similarity.shape==(5,k) and r.item.shape==(5,) and r.probs.shape==(5,10)
    assert ((r.row_item==-1) | torch.isin(r.row_item,
                                          learn.memory.bank.items)).all() and ((r.weight>=0) & (r.weight<=1+1e-5)).all()
    torch.testing.assert_close(r.probs, preds(learn)[:5], rtol=1e-5, atol=1e-6)

def encoded_anew(make):
    learn = trained(make)
    preds(learn)
    head = learn.memory.head
    was = {k:b.clone() for k,b in head.named_buffers(recurse=False)}
    n = learn.memory.rekey()
    if type(head).rekeyed is not MemoryHead.rekeyed:     # it keeps something of the rows
        assert any(k in was and not torch.equal(was[k], b) for k,b in head.named_buffers(recurse=False))
    assert isinstance(n, int) and 0<n<=len(learn.memory.bank) and preds(learn).isfinite().all()

def beside_another(make):
    "A second memory, of another name: each has its columns, its state, and can be off by itself"
    from memo.banks.slots import SlotBank
    learn = make()
    learn.add_cb(MemoryCallback(SlotBank(8, policy='fifo'), head=None, name='other', at='first'))
    quietly(learn, learn.fit, 1, 1e-2)
    assert list(learn.memories)==['memory','other'] and {'memory_fill','other_fill'}<=set(learn.recorder.metric_names)
    one = make()
    quietly(one, one.fit, 1, 1e-2)
    state = one.model.state_dict()
    # a memory that watches changes nothing
    assert all(torch.equal(learn.model.state_dict()[k], v) for k,v in state.items())
    assert any('other.bank' in k for k in learn.model.state_dict())
    learn.other.detach()
    state_equal(learn.model, one.model)

def several_labels(make):
    "0/1 targets are learned from, or refused in one line"
    learn = make(multi=True)
    try: quietly(learn, learn.fit, 2, 1e-2)
    except MemoError as e:
        assert '\n' not in str(e)
        return
    p = preds(learn)
    head,labels = learn.memory.head,learn.memory.bank.rows()[2]
    assert p.shape==(32,4) and p.isfinite().all() and len(learn.memory.bank)>0 and labels is not None
    assert labels.ndim==2 or not (head.mixes or head.adds_rows), 'an answer from labels of another kind'

def config_is_the_signature(make, params, head):
    for k,p in params.items():
        if k=='bank' or (v := other(p)) is None: continue
        h = make(**{k:v}).memory.head
        cfg = h.config()
        if k in cfg: assert cfg[k]==v and json.loads(h.describe())[k]==v, (k, cfg[k], v)
        else:
            assert torch.is_tensor(getattr(h, k)) and float(getattr(h,
                k))==pytest.approx(v), f'{k} is neither in the config nor in the state'
        new = find('head', head)(copy.deepcopy(h.bank), **cfg)
        assert new.config()==cfg

def wrong_arguments_are_one_line(make, params):
    for k in params:
        for v in (-1, 0, 'nonsense', float('nan'), [], 1.5):
            if k!='bank': refused_in_one_line(make, k, params[k], v)

checks = {f.__name__:f for f in (comes_and_goes, fills_its_bank, is_nothing_while_empty, off_is_the_network,
                                 says_what_it_does, adds_rows_only_if_it_says_so, loss_is_a_number, mixes_its_loss,
    length_of_a_query_says_nothing, parameters_are_trained, fits_what_it_chooses, chooses_after_each_epoch,
    hides_own_rows, saved_and_loaded, exported,
    resumed, two_threads, nothing_of_a_call_stays, recalls, encoded_anew, beside_another,
    several_labels, config_is_the_signature, wrong_arguments_are_one_line)}
