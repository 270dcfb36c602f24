"""What is done with a ClassBank in a learner: watching changes nothing, prototypes and Gaussians vote, rare
classes are replayed"""
import copy, random
import numpy as np, pytest, timm, torch
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.training import GradientAccumulation
from fastai.vision.all import (Callback, CancelBatchException, CrossEntropyLossFlat, DataLoaders, Flatten, Learner, SGD,
                               accuracy, create_head, get_c, load_learner,
                               nn, params, set_seed)
from fastcore.basics import AttrDict
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch.nn import functional as F
from helpers.tensors import gen
from helpers.errors import err
from helpers.learners import plain_part, quietly, same, snap
from memo.banks.base import Bank
from memo.banks.slots import SlotBank
from memo.heads.attach import attach, find_head
from memo.training.memory_callback import MemoryCallback
from memo.training.save_bank import SaveBank
from memo.banks.classes import ClassBank
from memo.banks.exchange import latest_bank
from memo.training.collect import collect
from memo.core import MemoError
from memo.data.transforms import RandomShift
from memo.data.tensors import TensorDL, TensorSet
from memo.heads.replay import ReplayHead
from memo.heads.calls import Step, in_step
from memo.training.stages import Stage, fit_stages
from memo.heads.mixture import LDAHead, PrototypeHead, VoteHead, class_nll
from helpers.grid import grid
from helpers.half import Half

def draw(*shape, seed=0): return torch.randn(*shape, generator=gen(seed))

# digits, the classes from 60 images down to 2
_d = load_digits()
X,Y = torch.from_numpy(_d.images*(255/16)).round().byte()[:,None],torch.from_numpy(_d.target).long()
sizes = [60,40,27,18,12,8,6,4,3,2]
trn = torch.cat([(Y==c).nonzero()[:n,0] for c,n in enumerate(sizes)])
val = torch.cat([(Y==c).nonzero()[80:88,0] for c in range(10)])
N = len(trn)

def tail_dls(bs=32, seed=0, multi=False, tfms=None, valid=True, feats=None, rows=trn):
    y = torch.stack([Y%2==0, Y>4, Y%3==0], 1).float() if multi else Y
    x = X if feats is None else feats
    def mk(i, s, **k):
        return TensorDL(dataset=TensorSet(x[i], y[i], torch.arange(len(X))[i],
                                          list('abc') if multi else list(range(10)), s), bs=bs, **k)
    dls = DataLoaders(mk(rows, 0, shuffle=True, tfms=tfms), mk(val if valid else val[:0], 1), device='cpu')
    dls.train.rng = random.Random(seed)
    return dls

def net(c=10, p=.3):
    return nn.Sequential(nn.Flatten(), nn.Linear(64,24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(p), nn.Linear(24,c))
def learner(tmp_path, cbs=None, dls=None, model=None, seed=0, **kw):
    set_seed(seed)
    dls = dls or tail_dls()
    model = model or net(get_c(dls))
    return Learner(dls, model, metrics=kw.pop('metrics', accuracy), cbs=cbs, path=tmp_path,
                   splitter=kw.pop('splitter', params), **kw)
def memory(head='default', bank=None, capacity=16, **kw):
    return MemoryCallback(ClassBank(10, capacity=capacity) if bank is None else bank, head=head, **kw)
def fitted(h, logits, z, y): return h.fit(AttrDict(logits=logits, z=z, y=y))
def preds(learn, **kw): return quietly(learn, 'get_preds', **kw)[0]

class Seen(Callback):
    "Classes and losses of what was trained on"
    def before_fit(self): self.ys,self.losses = [],[]
    def after_batch(self):
        if self.training:
            self.ys += self.now
            self.losses.append(float(self.learn.loss.detach()))
    def before_batch(self): self.now = self.learn.yb[0].tolist()

# watching
@pytest.mark.parametrize('capacity,dtype', [(16,'float32'),('1MB','int8')])
def test_watching_changes_nothing(tmp_path, capacity, dtype):
    "Weights, losses, predictions, every random number; with dropout and augmentation"
    got = []
    for cb in (None, MemoryCallback(ClassBank(10, capacity=capacity, dtype=dtype))):
        learn = learner(tmp_path, cb, dls=tail_dls(tfms=[RandomShift(1)]))
        set_seed(1)
        seen = Seen()
        quietly(learn, 'fit_one_cycle', 4, 1e-2, cbs=seen)
        rnd = torch.rand(3).tolist(),np.random.rand(),random.random(),learn.dls.train.rng.random()
        got.append((plain_part(snap(learn.model)), seen.losses,
                    [list(map(float, o[:3])) for o in learn.recorder.values], rnd, preds(learn),
                    quietly(learn, 'validate')[:2], seen.ys))
    a,b = got
    assert same(a[0], b[0]) and a[1:4]==b[1:4] and torch.equal(a[4], b[4]) and list(a[5])==list(b[5]) and a[6]==b[6]
    bank = learn.memory.bank
    assert bank.counts.tolist()==torch.bincount(torch.tensor(b[6]),
                                                minlength=10).tolist()==[4*n
                                                    for n in sizes] and int(bank.seen)==4*N and int(bank.updates)==4*6
    assert bank.tail()==[8,9] and bank.head()==[0,1] and bank.draws==0
    k = 16 if capacity==16 else 4*60
    assert bank.class_counts().tolist()==[min(4*n, k) for n in sizes]
    for c in range(10): assert set(bank.items[c].tolist())-{-1} <= set(trn[Y[trn]==c].tolist())

def test_a_budget_in_a_learner(tmp_path):
    "Saved, loaded, exported, gone on with, from before the width is known and after"
    def mk(seed=0): return learner(tmp_path, memory(capacity='100kB'), seed=seed)
    a = mk()
    assert isinstance(a.memory.bank.capacity, str) and len(a.memory.bank)/a.memory.bank.capacity_rows==0
    a.save('new')
    with a.no_bar(): a.lr_find(num_it=8, show_plot=False)
    assert a.memory.bank.features is None and a.memory.bank.capacity=='100kB' and not a.memory.bank.seen
    quietly(a, 'fit', 1, 1e-2)
    k = 100*1024//(10*(24*4+20))
    assert a.memory.bank.capacity==k and a.memory.bank.features.shape==(10,k,24) and len(a.recorder.values[-1])==4
    was = snap(a.model)
    with a.no_bar(): a.lr_find(num_it=8, show_plot=False)
    assert same(was, snap(a.model))
    a.save('m', with_opt=True)
    b = mk(3)
    b.load('m', with_opt=True)
    assert same(was, snap(b.model)) and b.memory.bank.capacity==k
    for o in (a,b):
        o.dls.train.rng = random.Random(5)
        set_seed(2)
        quietly(o, 'fit', 1, 1e-2)
    assert same(snap(a.model), snap(b.model)) and not same(was, snap(a.model))
    p = preds(a)
    a.export('l.pkl')
    new = load_learner(tmp_path/'l.pkl')
    assert same(snap(a.model), snap(new.model)) and torch.equal(preds(new, dl=new.dls.test_dl(X[val])),
        preds(a, dl=a.dls.test_dl(X[val])))
    new.dls = tail_dls()
    quietly(new, 'fit', 1, 1e-2)
    assert int(new.memory.bank.seen)==3*N and new.memory.bank.capacity==k
    a.load('new')                     # back to before the first row
    assert a.memory.bank.features is None and a.memory.bank.capacity=='100kB' and not torch.equal(preds(a), p)
    quietly(a, 'fit', 1, 1e-2)
    assert a.memory.bank.capacity==k and int(a.memory.bank.seen)==N

class StopAt(Callback):
    "Ctrl-C in the forward pass of a batch"
    order = 80
    def __init__(self, at): self.at,self.n = at,0
    def after_pred(self):
        self.n += self.training
        if self.training and self.n==self.at: raise KeyboardInterrupt
    # may come and go
    def state_dict(self): return {}
    def load_state_dict(self, state): pass

watched = (None,'50kB'),('replay','50kB'),('replay',16),('prototype',16),('lda',16),('vote',16)

@pytest.mark.parametrize('head,capacity,at', grid(rows=[(*o, at) for o in watched for at in (3,9)]))
def test_interrupted_and_resumed_equals_whole(tmp_path, head, capacity, at):
    def mk(): return learner(tmp_path, memory(head, capacity=capacity), dls=tail_dls(tfms=[RandomShift(1)]))
    stages,got = [Stage('a', 2, 1e-2), Stage('b', 2, 5e-3)],[]
    def figures(h): return h.drop(columns='seconds').to_dict('list')
    for name,stop in (('whole',0),('parts',at)):
        learn = mk()
        def fit(**kw):
            set_seed(7)
            with learn.no_bar(), learn.no_logging(): return fit_stages(learn, stages, checkpoint=tmp_path/name, **kw)
        if stop:
            with pytest.raises(KeyboardInterrupt): fit(cbs=StopAt(stop))
            learn = mk()
            h = fit(resume=True)
        else: h = fit()
        got.append((snap(learn.model), preds(learn), figures(h)))
    assert same(got[0][0], got[1][0]) and torch.equal(got[0][1], got[1][1]) and got[0][2]==got[1][2]
    if head=='replay': assert learn.memory.bank.draws>0

# what votes: prototypes, Gaussians
def blobs(n, d=6, c=3, seed=0, noise=.7):
    "Features of `n` items of each class, around means that are the same for every seed, with one covariance"
    mu,a = draw(c, d, seed=99)*1.5,torch.eye(d)+.4*draw(d, d, seed=98)
    y = torch.arange(c).repeat_interleave(n)
    return mu[y]+noise*draw(len(y), d, seed=seed)@a,y

def filled(head=PrototypeHead, n=20, c=3, d=6, classes=None, capacity=None, **kw):
    "A head whose bank saw `n` items of each class; the features, and their classes"
    x,y = blobs(n, d, c)
    classes = c if classes is None else classes
    bank = ClassBank(classes, capacity=n if capacity is None else capacity)
    i = torch.randperm(len(x), generator=gen(1))
    bank.write(x[i], y=y[i])
    return head(bank, k=3, **kw),x,y

def np_softmax(s): return np.exp(s-s.max(1, keepdims=True))/np.exp(s-s.max(1, keepdims=True)).sum(1, keepdims=True)
def nprm(x): return x/np.linalg.norm(x, axis=1, keepdims=True)

def test_prototype_votes_are_those_of_numpy():
    h,x,y = filled(temperature=.2)
    q = draw(11, 6, seed=3)
    p = h.bank.prototypes().double().numpy()
    want = np_softmax(nprm(q.double().numpy())@nprm(p).T/.2)
    np.testing.assert_allclose(h.votes(q).numpy(), want, atol=1e-5)
    z,b = F.normalize(x),ClassBank(3, alpha_min=1e-9, alpha_max=1e-9)   # at a vanishing rate an average is the mean
    b.write(x, y=y)
    means = np.stack([z[y==c].double().numpy().mean(0) for c in range(3)])
    np.testing.assert_allclose(PrototypeHead(b, temperature=.2).votes(q).numpy(),
                               np_softmax(nprm(q.double().numpy())@nprm(means).T/.2), atol=1e-3)

@pytest.mark.parametrize('c', [2,3,7])
def test_lda_is_that_of_sklearn(c):
    """Classes of one size: the answers agree, and the probabilities at temperature (N-C)/N, as sklearn divides the
    covariance by N"""
    h,x,y = filled(LDAHead, 20, c, 9)
    z,q = F.normalize(x).double().numpy(),F.normalize(blobs(30, 9, c, seed=5)[0])
    sk = LinearDiscriminantAnalysis(solver='lsqr', shrinkage=.1, priors=[1/c]*c).fit(z, y.numpy())
    h.temperature.fill_((len(y)-c)/len(y))
    v = h.votes(3*q)                                # length says nothing
    np.testing.assert_allclose(v.numpy(), sk.predict_proba(q.double().numpy()), atol=2e-4)
    assert (v.argmax(1).numpy()==sk.predict(q.double().numpy())).all()

def test_lda_of_unequal_classes_has_no_prior():
    "The covariance is pooled over rows, the classes are equally likely beforehand; worked out in numpy"
    n = [25,4,2]
    x,y = blobs(25)
    keep = torch.cat([(y==c).nonzero()[:k,0] for c,k in enumerate(n)])
    x,y = x[keep],y[keep]
    b = ClassBank(3, capacity=30)
    b.write(x, y=y)
    z,q = nprm(x.double().numpy()),nprm(draw(9, 6, seed=3).double().numpy())
    mu = np.stack([z[y.numpy()==c].mean(0) for c in range(3)])
    d = z-mu[y.numpy()]
    s = d.T@d/(len(z)-3)
    s = .9*s+.1*np.trace(s)/6*np.eye(6)
    dist = np.einsum('qcd,de,qce->qc', q[:,None]-mu, np.linalg.inv(s), q[:,None]-mu)
    np.testing.assert_allclose(LDAHead(b, temperature=3.).votes(torch.tensor(q).float()).numpy(), np_softmax(-dist/2/3),
                               atol=1e-4)

heads2 = pytest.mark.parametrize('head', [PrototypeHead,LDAHead])

@heads2
@pytest.mark.parametrize('dtype', ['float16','int8'])
def test_votes_of_a_small_dtype(head, dtype):
    a,x,y = filled(head)
    b = ClassBank(3, capacity=20, dtype=dtype)
    b.write(x, y=y)
    q = blobs(10, seed=4)[0]
    assert (a.votes(q).argmax(1)==head(b).votes(q).argmax(1)).float().mean()>.9

@heads2
def test_unseen_classes_get_no_vote(head):
    h,x,y = filled(head, classes=5)
    v = h.votes(draw(8, 6))
    assert v.shape==(8,5) and (v[:,3:]==0).all() and torch.allclose(v.sum(1), torch.ones(8)) and v.isfinite().all()
    v = h.votes(draw(8, 6), n_classes=9)            # more outputs than the bank has classes
    assert v.shape==(8,9) and (v[:,3:]==0).all() and torch.allclose(v.sum(1), torch.ones(8))

@heads2
def test_one_class_only(head):
    h,x,y = filled(head, c=1, classes=4)
    assert torch.equal(h.votes(draw(5, 6)), torch.tensor([[1.,0,0,0]]).expand(5, 4))
    h = head(ClassBank(4))
    h.bank.write(torch.ones(1, 6), y=torch.tensor([2]))             # one row of one class
    assert torch.equal(h.votes(draw(5, 6)).argmax(1),
                       torch.full((5,), 2)) and h.votes(torch.zeros(2, 6)).isfinite().all()
    got = fitted(h, draw(6, 4), draw(6, 6, seed=1), torch.tensor([0,1,2,3,2,2]))
    assert np.isfinite(got['nll_mixture'])

def at_place(h, d=6, c=3):
    torch.manual_seed(0)
    return attach(nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, c)), h)

@heads2
def test_the_model_gives_the_mixture_in_evaluation_and_itself_in_training(head):
    h,x,y = filled(head, weight=.3)
    m = at_place(h)
    q = draw(7, 6)
    with pytest.warns(UserWarning, match='answers without the vote'): logits = m.train()(q).detach()
    with torch.no_grad():
        z = F.relu(m[0](q))
        assert torch.equal(logits, m[2](z))
        want = (.7*logits.softmax(1)+.3*h.votes(z)).log()
        assert torch.allclose(m.eval()(q), want, atol=1e-5)
        with h.off(): assert torch.equal(m(q), logits)
    assert isinstance(h.fuse(z, z), torch.Tensor)

@heads2
def test_an_empty_bank_changes_nothing(head):
    m = at_place(head(ClassBank(3)))
    q = draw(4, 6)
    assert torch.equal(m.eval()(q), m.train()(q))
    assert 'empty' in err(fitted, find_head(m), draw(4, 3), q, torch.tensor([0,1,2,0]))
    assert 'empty' in err(find_head(m).votes, q)

@heads2
def test_fit_lowers_the_loss(head):
    h,x,y = filled(head)
    zv,yv = blobs(30, seed=8)
    logits = draw(len(yv), 3, seed=9)               # a network that knows nothing
    def nll(): return class_nll(((1-h.weight)*logits.softmax(1)+h.weight*h.votes(zv)).clamp(min=1e-12).log(), yv).item()
    before,got = nll(),fitted(h, logits, zv, yv)
    assert nll()==pytest.approx(got['nll_mixture'], abs=1e-5) and nll()<min(before,
        got['nll_network']-.2) and got['weight']>.8
    assert h.chosen()==dict(weight=pytest.approx(got['weight']), temperature=pytest.approx(got['temperature']))
    other = (yv+1)%3
    assert fitted(h, F.one_hot(other, 3)*9., zv, other)['weight']<.05   # and one that knows better

@heads2
def test_state_goes_round(head, tmp_path):
    h,x,y = filled(head)
    m = at_place(h)
    q = draw(5, 6)
    zv,yv = blobs(30, seed=8)
    fitted(h, draw(len(yv), 3), zv, yv)
    was = m.eval()(q)
    new = at_place(head(ClassBank(3, capacity=20), k=3))
    new[0].weight.data.zero_()
    new.load_state_dict(copy.deepcopy(m.state_dict()))
    assert torch.equal(new.eval()(q), was)
    if head is LDAHead:
        assert torch.equal(find_head(new).means, h.means) and torch.equal(find_head(new).whitener, h.whitener)
    torch.save(m, tmp_path/'m.pt')
    assert torch.equal(torch.load(tmp_path/'m.pt', weights_only=False).eval()(q),
                       was) and torch.equal(copy.deepcopy(m)(q), was)
    fresh = at_place(head(ClassBank(3, capacity=20), k=3)).state_dict()
    m.load_state_dict(fresh)                        # a state from before the first row
    assert len(h.bank)==0 and (head is PrototypeHead or h.means is None)
    with pytest.raises(MemoError, match='not of a'):
        m.load_state_dict(at_place((LDAHead if head is PrototypeHead else PrototypeHead)(ClassBank(3, capacity=20),
            k=3)).state_dict())

@heads2
def test_half_and_autocast(head):
    h,x,y = filled(head)
    m = at_place(h).eval()
    q = draw(5, 6)
    want = m(q)
    got = copy.deepcopy(m).half()(q.half()) if torch.cuda.is_available() else copy.deepcopy(m).bfloat16()(q.bfloat16())
    assert got.dtype==torch.float32 and torch.allclose(got, want, atol=.1)
    with torch.autocast('cpu', torch.bfloat16): got = m(q)
    assert torch.allclose(got.float(), want, atol=.1)
    with torch.inference_mode(): assert torch.allclose(m(q), want)
    m.load_state_dict(snap(m))

@pytest.mark.parametrize('head', ['prototype','lda','replay'])
def test_wrong_banks_are_one_line(tmp_path, head):
    e = err(MemoryCallback, SlotBank(8), head=head)
    assert 'SlotBank' in e and 'ClassBank' in e
    learn = learner(tmp_path, memory(head, ClassBank(3)), dls=tail_dls(multi=True), metrics=[])
    assert 'one class' in err(quietly, learn, 'fit', 2, 1e-2)
    assert len(learn.memory.bank)==0 and not learn.memory.bank.updates

@heads2
def test_gaussians_and_averages_follow_the_bank(head):
    "Also where nothing is fitted in between: rows that came later count"
    h,x,y = filled(head, n=8, capacity=60)
    q = blobs(10, seed=4)[0]
    h.votes(q)                                      # looked at, and so worked out, too early
    h.bank.write(*[o for o in blobs(30, seed=3)])
    fresh = head(h.bank, k=3)
    assert torch.allclose(h.votes(q), fresh.votes(q), atol=1e-5)

def test_gaussians_are_of_the_rows_as_rekeyed(tmp_path):
    learn = learner(tmp_path, memory('lda', capacity=60), dls=tail_dls(tfms=[RandomShift(1)], valid=False))
    quietly(learn, 'fit', 2, 1e-2)
    z = collect(learn, learn.dls.train).z
    was = learn.memory.head.votes(z)
    assert learn.memory.rekey()==len(learn.memory.bank)
    fresh = LDAHead(learn.memory.bank)
    assert torch.equal(learn.memory.head.votes(z), fresh.votes(z)) and not torch.equal(was, fresh.votes(z))

@pytest.mark.parametrize('head', ['prototype','lda'])
def test_in_a_learner(tmp_path, head):
    a,b = learner(tmp_path),learner(tmp_path, memory(head, capacity=60))
    for o in (a,b):
        set_seed(1)
        quietly(o, 'fit_one_cycle', 6, 2e-2)
    assert same(plain_part(snap(a.model)), plain_part(snap(b.model)))
    with b.memory.off(): assert torch.equal(preds(a), preds(b))
    h,y = b.memory.head,Y[val]
    assert float(h.weight)!=.5                      # fitted on the validation set, after every epoch
    got = b.memory.collect(b.dls.valid)
    want = (1-h.weight)*got.logits.softmax(1)+h.weight*h.votes(got.z)
    assert torch.allclose(preds(b), want, atol=1e-5)
    assert class_nll(preds(b).clamp(min=1e-12).log(), y)<class_nll(preds(a).clamp(min=1e-12).log(), y)
    chosen = b.memory.fit_vote()
    assert chosen['nll_mixture']<=chosen['nll_network']
    b.export('l.pkl')
    new = load_learner(tmp_path/'l.pkl')
    assert torch.equal(preds(new, dl=new.dls.test_dl(X[val])), preds(b, dl=b.dls.test_dl(X[val])))
    b.recall(n=4)

@pytest.mark.parametrize('first', ['votes','fit'])
def test_gaussians_first_asked_for_in_inference_mode(first):
    h,x,y = filled(LDAHead)
    with torch.inference_mode(): h.votes(x) if first=='votes' else fitted(h, draw(60, 3), x, y)
    h.load_state_dict(snap(h))
    h.bank.write(x, y=y)
    fitted(h, draw(60, 3), x, y)

# replay
def filled_replay(counts=(30,10,2), d=6, capacity=16, **kw):
    y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[torch.randperm(sum(counts), generator=gen(2))]
    b = ClassBank(len(counts), capacity=capacity, **kw)
    b.write(3*draw(len(y), d, seed=4), y=y)
    return b

class Spy(Callback):
    "What is replayed, the loss's targets, and the sizes that everybody else sees"
    order = 70
    def before_fit(self): self.replayed,self.sizes,self.ys,self.evaluated = [],set(),[],set()
    def after_pred(self):
        self.evaluated.add(self.training)
        if self.training: self.ys.append(self.learn.yb[0].as_subclass(torch.Tensor).clone())
    def after_loss(self):
        r = self.learn.batch_ids.step.seen(find_head(self.model)).added
        if self.training: self.replayed.append(0 if r is None else len(r))
        else: assert r is None
    def after_batch(self): self.sizes.add((len(self.learn.pred)==len(self.learn.xb[0])==len(self.learn.yb[0])))

@pytest.mark.parametrize('counts', [(30,10,2),(5,5,5),(40,1,0,7),(1000,10,9,8,7,6,5,4,3,2)])
def test_what_is_missing_makes_classes_equal(counts):
    b,n,runs = filled_replay(counts),32,400
    got = sum(torch.bincount(b.missing(n), minlength=len(counts)) for _ in range(runs)).double()/runs
    p = torch.tensor(counts).double()/sum(counts)
    want = torch.where(p>0, n*p.max(), 0)
    assert torch.allclose(got+n*p, want, rtol=.02, atol=.05)
    if len(set(counts))==1: assert got.sum()==0 and len(b.draw(b.missing(n)))==0

@pytest.mark.parametrize('dtype', ['float32','float16','int8'])
def test_what_is_drawn_are_stored_rows_of_the_class(dtype):
    b = filled_replay(dtype=dtype, capacity=5)
    b.write(torch.tensor([[0.,0,0,0,0,0]]), y=torch.tensor([2]))            # a zero vector stays one
    y = torch.tensor([0]*200+[1]*200+[2]*200)
    f,_,cls,_,_,valid = b.rows()
    rows = f[torch.arange(15)].float()
    rows = (F.normalize(rows) if dtype!='float32' else rows)*b.norms.view(-1,1)
    got = b.draw(y)
    for c in range(3):
        have = {tuple(o) for o in rows[(cls==c) & valid].tolist()}
        assert {tuple(o) for o in got[y==c].tolist()}==have
    assert got[y==2].norm(dim=1).min()==0 and not torch.equal(got, b.draw(y))

def test_a_step_is_that_of_batch_and_replayed_rows(tmp_path):
    "Loss and gradients of a step made by hand"
    torch.manual_seed(0)
    dls = tail_dls()
    learn = learner(tmp_path, memory('replay'), dls=dls, model=net(p=0.), opt_func=SGD, metrics=[])
    quietly(learn, 'fit', 1, 1e-2)
    class Take(Callback):
        order,run_valid,got = 60,False,None
        def before_batch(self):
            self.before = copy.deepcopy(self.learn.model)
            self.draws = int(find_head(self.before).bank.draws)
        def after_backward(self):
            if self.got is None:
                self.got = self.before,self.learn.xb[0].clone(),self.learn.yb[0].clone(),[p.grad.clone()
                    for p in self.learn.model.parameters()],self.learn.loss.detach().clone()
    take = Take()
    quietly(learn, 'fit', 1, 1e-2, cbs=take)
    m,x,y,grads,loss = take.got
    bank = find_head(m).bank
    r = bank.missing(len(x))
    rows = bank.draw(r)
    assert len(r)>len(x)
    m.train()
    z = m[3](m[2](m[1](m[0](x))))
    want = F.cross_entropy(nn.Linear.forward(m[5], torch.cat([z, rows])), torch.cat([y, r]).as_subclass(torch.Tensor))
    assert torch.equal(loss.as_subclass(torch.Tensor), want.detach())
    for p,g in zip(torch.autograd.grad(want, list(m.parameters())), grads): assert torch.allclose(p, g, atol=1e-7)

def test_replay_is_for_training_alone(tmp_path):
    learn = learner(tmp_path, memory('replay'))
    spy,bank = Spy(),learn.memory.bank
    quietly(learn, 'fit', 3, 1e-2, cbs=spy)
    assert spy.replayed[0]==0 and min(spy.replayed[2:])>0 and spy.sizes=={True} and spy.evaluated=={True,False}
    # what is replayed is not written again
    assert int(bank.seen)==3*N and bank.counts.tolist()==[3*n for n in sizes]
    n = torch.bincount(torch.cat(spy.ys[6:]), minlength=10)                         # after the first epoch
    assert n.max()/n.min()<1.25 and n.sum()>3*2*N
    draws,sd = int(bank.draws),snap(learn.model)
    p = preds(learn)
    quietly(learn, 'validate')
    with learn.no_bar(): learn.lr_find(num_it=8, show_plot=False)
    learn.predict(X[5])
    collect(learn, learn.dls.train)
    learn.model.train()(torch.rand(4, 1, 8, 8))
    learn.model.eval()
    assert int(bank.draws)==draws and find_head(learn.model).step is None
    learn.model.load_state_dict(sd)
    head = learn.memory.detach()
    # in evaluation it is the network alone
    assert isinstance(head, ReplayHead) and torch.equal(preds(learn), p)

def test_lr_find_replays_nothing(tmp_path):
    learn,spy = learner(tmp_path, memory('replay')),Spy()
    quietly(learn, 'fit', 1, 1e-2)
    draws = int(learn.memory.bank.draws)
    learn.add_cb(spy)
    with learn.no_bar(): learn.lr_find(num_it=8, show_plot=False)
    assert set(spy.replayed)=={0} and int(learn.memory.bank.draws)==draws

@pytest.mark.parametrize('mix', [MixUp,CutMix])
def test_nothing_is_replayed_where_images_are_mixed(tmp_path, mix):
    learn,spy = learner(tmp_path, memory('replay')),Spy()
    quietly(learn, 'fit', 1, 1e-2)
    draws = int(learn.memory.bank.draws)
    with pytest.warns(UserWarning, match='mixed'): quietly(learn, 'fit', 1, 1e-2, cbs=[mix(),spy])
    assert set(spy.replayed)=={0} and int(learn.memory.bank.draws)==draws and int(learn.memory.bank.seen)==N

def test_replay_off(tmp_path):
    learn,spy = learner(tmp_path, memory('replay')),Spy()
    quietly(learn, 'fit', 1, 1e-2)
    with learn.memory.off(): quietly(learn, 'fit', 1, 1e-2, cbs=spy)
    assert set(spy.replayed)=={0}

def test_training_metrics_have_the_batchs_size(tmp_path):
    learn = learner(tmp_path, memory('replay'), metrics=[accuracy])
    learn.recorder.train_metrics = True
    quietly(learn, 'fit', 3, 1e-2)
    assert all(0<=float(o[1])<=1 for o in learn.recorder.values)

class Every2nd(Callback):
    "Batches that are skipped between the forward pass and the loss"
    order,run_valid = 60,False
    def after_pred(self):
        if self.iter%2: raise CancelBatchException
def test_cancelled_batches(tmp_path):
    learn,spy = learner(tmp_path, [memory('replay'),Every2nd()]),Spy()
    quietly(learn, 'fit', 2, 1e-2, cbs=spy)
    assert sum(o>0 for o in spy.replayed)>=3 and int(learn.memory.bank.updates)==6 and len(preds(learn))==len(val)

@pytest.mark.parametrize('n_acc', [32,64])
def test_gradient_accumulation(tmp_path, n_acc):
    "Each micro-batch, replayed rows included, counts as much as its own items"
    got,want = [],[]
    class Take(Callback):
        order,run_valid = 60,False
        def after_pred(self): self.pair = self.learn.pred,self.learn.yb[0],len(self.learn.xb[0])
        def before_backward(self):
            p,y,n = self.pair
            own = torch.autograd.grad(F.cross_entropy(p, y.as_subclass(torch.Tensor))*n/n_acc,
                                      list(self.model.parameters()), retain_graph=True)
            want.append([a+b for a,b in zip(own, want.pop())] if want and self.fresh is False else own)
            self.fresh = False
        def before_step(self):
            got.append([p.grad.clone() for p in self.model.parameters()])
            # what is logged is the loss
            assert torch.allclose(self.learn.loss_grad.detach(), self.learn.loss.detach(), rtol=1e-5)
        def after_step(self): self.fresh = True
    learn = learner(tmp_path, [memory('replay'),GradientAccumulation(n_acc)], dls=tail_dls(rows=trn[:128]))
    take = Take()
    take.fresh = True
    quietly(learn, 'fit', 2, 1e-3, cbs=take)
    assert learn.memory.bank.draws>0 and len(got)==len(want)==8*32//n_acc
    for a,b in zip(got, want):
        for p,q in zip(a, b): assert torch.allclose(p, q, rtol=1e-3, atol=1e-5)

def test_replay_in_half_precision(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64,24), nn.Linear(24,10))     # features leave a linear layer: half
    learn,spy = learner(tmp_path, [memory('replay'),Half()], model=model),Spy()
    quietly(learn, 'fit', 2, 1e-2, cbs=spy)
    assert max(spy.replayed)>0 and learn.memory.bank.features.dtype==torch.float32 and all(p.isfinite().all()
        for p in learn.model.parameters())

@pytest.mark.parametrize('kind', ['frozen','fastai','timm','vit'])
def test_replay_in_other_models(tmp_path, kind):
    torch.manual_seed(0)
    feats = dict(frozen=lambda: X.flatten(1).float()/255, timm=lambda: F.interpolate(X.float()/255, 32),
                 vit=lambda: F.interpolate(X.float()/255, 32), fastai=lambda: None)[kind]()
    model = dict(frozen=lambda: nn.Sequential(Flatten(), nn.BatchNorm1d(64, affine=False), nn.Dropout(.5),
                                              nn.Linear(64,10)),
                 fastai=lambda: nn.Sequential(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU()), create_head(8, 10)),
                 timm=lambda: timm.create_model('resnet10t', in_chans=1, num_classes=10),
                 vit=lambda: timm.create_model('vit_tiny_patch16_224', in_chans=1, num_classes=10, img_size=32,
                                               depth=2))[kind]()
    learn,spy = learner(tmp_path, memory('replay'), dls=tail_dls(feats=feats, rows=trn[::4]), model=model),Spy()
    quietly(learn, 'fit', 2, 1e-3, cbs=spy)
    assert spy.replayed[1]>0 and spy.sizes=={True}
    p,m = preds(learn),learn.model
    learn.memory.detach()
    assert torch.equal(preds(learn), p)

def test_replay_with_a_frozen_body(tmp_path):
    """A body that is held in evaluation mode, as fastai's frozen layers without batch norm are not; the part the
    memory sits in too"""
    class Held(Callback):
        order,run_valid = -5,False
        def before_batch(self): self.model.eval()
    learn,spy = learner(tmp_path, [memory('replay'),Held()]),Spy()
    quietly(learn, 'fit', 2, 1e-2, cbs=spy)
    assert max(spy.replayed)>0

def test_a_place_with_maps_is_refused(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,10))
    learn = learner(tmp_path, memory('replay', at='0'), model=model)
    e = err(quietly, learn, 'fit', 2, 1e-2)
    assert 'at=' in e and 'replay' in e
    learn = learner(tmp_path, memory('replay', at='2'),
                    model=nn.Sequential(nn.Flatten(), nn.Linear(64,24), nn.ReLU(), nn.Linear(24,10)))
    quietly(learn, 'fit', 2, 1e-2)                     # a hidden layer is a place like another

def test_what_cannot_be_replayed_is_one_line(tmp_path):
    dls = tail_dls()
    for o in dls.loaders: o.dataset.y = o.dataset.y.float()
    learn = learner(tmp_path, memory('replay'), dls=dls, model=net(1), loss_func=nn.functional.mse_loss, metrics=[])
    assert 'regression' in err(quietly, learn, 'fit', 2, 1e-2)

def test_replay_helps_the_few(tmp_path):
    "It does what it is for: with replay the rarest classes are found more often"
    got = []
    for head in (None,'replay'):
        learn = learner(tmp_path, memory(head, capacity=60))
        quietly(learn, 'fit_one_cycle', 8, 1e-2)
        hit = preds(learn).argmax(1)==Y[val]
        got.append((hit[Y[val]>=7].float().mean().item(), hit.float().mean().item()))
    assert got[1][0]>got[0][0] and got[1][1]>got[0][1]-.02

@pytest.mark.parametrize('head', ['replay','lda'])
def test_exported_and_gone_on(tmp_path, head):
    learn = learner(tmp_path, memory(head))
    quietly(learn, 'fit', 2, 1e-2)
    learn.export('l.pkl')
    new = load_learner(tmp_path/'l.pkl')
    assert same(snap(learn.model), snap(new.model)) and find_head(new.model).step is None
    for o in (learn,new):
        o.dls,o.opt = tail_dls(seed=3),None
        set_seed(4)
        quietly(o, 'fit', 1, 1e-2)
    assert same(snap(learn.model), snap(new.model))

# saving meanwhile
def test_save_bank_after_an_interrupted_fit(tmp_path):
    learn = learner(tmp_path, [memory('replay'),SaveBank(1),StopAt(9)])
    with pytest.raises(KeyboardInterrupt): quietly(learn, 'fit', 3, 1e-2)
    learn.remove_cb(learn.stop_at)
    learn.export('l.pkl')
    new = load_learner(tmp_path/'l.pkl')
    new.dls = tail_dls()
    quietly(new, 'fit', 1, 1e-2)
    b = Bank.load(latest_bank(tmp_path/'banks'))
    assert same(b.state_dict(), new.memory.bank.state_dict())
    with new.no_bar(): new.lr_find(num_it=8, show_plot=False)
    assert latest_bank(tmp_path/'banks').name=='bank_step_2.safetensors' and len(list((tmp_path/'banks').iterdir()))==4

def test_save_bank_without_a_memory(tmp_path):
    assert 'no memory' in err(quietly, learner(tmp_path, SaveBank(1)), 'fit', 1, 1e-2)

def test_means_are_those_of_the_rows(tmp_path):
    "Of a bank that was loaded, or reset and filled anew, with as many writes as before"
    def bank(seed):
        b,y = ClassBank(3, capacity=50),torch.arange(90)%3
        c = 3*draw(3, 8, seed=seed)
        b.write(c[y]+draw(90, 8, seed=seed+1), y)
        return b,c
    for how in ('load','load file','reset','rekey'):
        (a,ca),(b,cb) = bank(0),bank(5)
        h = LDAHead(a)
        assert h.scores(ca).argmax(1).tolist()==[0,1,2]
        if how=='load': a.load_state_dict(b.state_dict())
        if how=='load file':
            b.save(tmp_path/'b.safetensors')
            a.load_state_dict(ClassBank.load(tmp_path/'b.safetensors').state_dict())
        if how=='reset':
            a.reset()
            y = torch.arange(90)%3
            a.write(cb[y]+draw(90, 8, seed=6), y)
        if how=='rekey': a.features.copy_(b.features)
        torch.testing.assert_close(h.scores(cb), LDAHead(a).scores(cb))
        assert h.scores(cb).argmax(1).tolist()==[0,1,2]

@pytest.mark.parametrize('make',
                         [lambda: ClassBank(3, capacity=4), lambda: SlotBank(8), lambda: SlotBank(8, n_classes=3)])
def test_an_emptied_bank_knows_nothing(make):
    b,x,y = make(),draw(9, 4),torch.arange(9)%3
    b.write(x, y)
    assert b.classify(x)[0].ge(0).all()
    b.reset()
    c,sure = b.classify(x)
    assert (c==-1).all() and (sure==0).all()
