"Figures of Hopfield reads against a loop over tokens; one forward for all blocks; nothing is left changed"
import math
import numpy as np, pytest, torch
from fastai.vision.all import (BCEWithLogitsLossFlat, Callback, CrossEntropyLossFlat, DataLoaders, Learner, MSELossFlat,
                               set_seed)
from torch import nn
from helpers.errors import err
from helpers.learners import quietly
from memo.banks.slots import SlotBank
from memo.data.tensors import TensorDL, TensorSet
from memo.evaluation import reads
from memo.evaluation.reads import hopfield_reads, hopfield_table
from memo.heads.attach import memories
from memo.models.small import small_cnn
from memo.models.hopfield_vit import hopfield_vit
from memo.models.vit import vit_splitter
from memo.training.memory_callback import MemoryCallback

vit = dict(img_size=8, patch_size=4, depth=2, embed_dim=24, num_heads=2, c_in=1)

def loaders(y, n=40, bs=8):
    "`n` images to train on, ten others"
    g = torch.Generator().manual_seed(0)
    x = torch.rand(n+10, 1, 8, 8, generator=g)
    def mk(a, b, i, **kw):
        return TensorDL(dataset=TensorSet(x[a:b], y[a:b], torch.arange(a, b)+10**12, None, i), bs=bs, **kw)
    return DataLoaders(mk(0, n, 0, shuffle=True), mk(n, n+10, 1), device='cpu')

def classes(c, n=50): return torch.arange(n)%c
def learner(y=None, loss=None, n_out=10, fit=1, **kw):
    set_seed(0)
    m = hopfield_vit('vit_tiny_patch16_224', n_out, **{'size':7, **vit, **kw})
    learn = Learner(loaders(classes(5) if y is None else y), m, loss_func=loss or CrossEntropyLossFlat(),
                    splitter=vit_splitter)
    if memories(m): learn.add_cb(MemoryCallback())
    if fit: quietly(learn, learn.fit, fit, 1e-2)
    with torch.no_grad():       # as after a longer training
        for h in memories(learn.model).values():
            if h.gate is not None: h.gate.normal_()
    return learn

def by_hand(learn, name):
    "What came to a memory for each validation image, and its weights, from the parameters alone"
    h,came = memories(learn.model)[name],[]
    hook = h.register_forward_pre_hook(lambda m, args: came.append(args[0]))
    learn.model.eval()
    with torch.no_grad():
        for i in range(10): learn.model(learn.dls.valid_ds.x[i:i+1])
    hook.remove()
    def layer_norm(m, x):
        x = (x-x.mean(-1, keepdim=True))/(x.var(-1, unbiased=False, keepdim=True)+1e-6).sqrt()
        return x*m.weight+m.bias
    k,v = h.bank.patterns()[:2]
    with torch.no_grad():
        if h.row_norm is not None:
            k = layer_norm(h.row_norm, k)
            k,v = k@h.key.weight.T,k@h.value.weight.T
        out = []
        for t in came:
            t = t[0,:1] if h.tokens=='cls' else t[0]
            q = layer_norm(h.norm, t)@h.query.weight.T
            for i in range(len(t)):
                ws,d = [],q.shape[1]//h.heads
                for j in range(h.heads):
                    s = np.array([float(q[i,j*d:j*d+d]@r[j*d:j*d+d])/math.sqrt(d) for r in k])
                    e = np.exp(s-s.max())
                    ws.append(e/e.sum())
                y = torch.cat([torch.from_numpy(w).float()@v[:,j*d:j*d+d] for j,w in enumerate(ws)])
                out.append((t[i], q[i], ws, float((h.gate*y).norm()/t[i].norm())))
    return out,k.detach()

def ent(p): return -sum(o*math.log(o) for o in p if o>0)

@pytest.mark.parametrize('kw', [dict(), dict(heads=2), dict(tokens='cls'), dict(memory='SlotBank', size=30)])
def test_a_loop_over_tokens(kw):
    learn = learner(**kw)
    got,table = hopfield_reads(learn),hopfield_table(learn)
    for name in ('hopfield_0','hopfield_1'):
        r,(rows,k) = got[name],by_hand(learn, name)
        ws = [w for o in rows for w in o[2]]
        heads,M,y = kw.get('heads', 1),len(k),learn.dls.valid_ds.y
        per = len(rows)//10
        use,cls,read = np.zeros(M),np.zeros((5,M)),np.zeros(M, bool)
        for i,o in enumerate(rows):
            for w in o[2]:
                use += w/per/heads
                cls[int(y[i//per])] += w/per/heads
                for j in np.argsort(-w)[:5]: read[j] |= w[j]*M>=.999
        np.testing.assert_allclose(r.use, use, rtol=1e-4)
        np.testing.assert_allclose(r.by_class, cls, rtol=1e-4)
        assert r.read.tolist()==read.tolist() and r.seen.tolist()==[2]*5
        t,q = table.loc[name],torch.stack([o[1] for o in rows]).numpy()
        few = [int((np.cumsum(np.sort(w)[::-1])<.9).sum())+1 for w in ws]
        want = dict(patterns=M, heads=heads, beta=(24/heads)**-.5, per_read=np.mean([math.exp(ent(w)) for w in ws]),
                    metastable=np.mean(few), top5=np.mean([np.sort(w)[-5:].sum() for w in ws]),
                    slots=math.exp(ent(use/use.sum())), idle=1-read.mean(), added=np.mean([o[3] for o in rows]))
        for c,v in want.items(): assert t[c]==pytest.approx(v, rel=1e-3), c
        var = np.sort(np.linalg.eigvalsh(np.cov(q.T, bias=True)))[::-1]
        assert t.query_dims==int((np.cumsum(var)<.9*var.sum()).sum())+1
        u = (k/k.norm(dim=1, keepdim=True)).numpy()
        s = u@u.T
        assert t.key_cosine==pytest.approx(s[~np.eye(M, dtype=bool)].mean(), abs=1e-4)
        assert t.nearest==pytest.approx((s-3*np.eye(M)).max(1).mean(), abs=1e-4)
        p = cls/cls.sum(0)
        special = np.array([1-ent(p[:,j])/math.log(5) for j in range(M)])
        np.testing.assert_allclose(r.specialisation(), special, rtol=1e-3, atol=1e-6)
        assert t.specialisation==pytest.approx((use/use.sum())@special, rel=1e-3)

def test_a_tenth_and_ten_times_of_beta():
    "Of the sampled queries, here all of them"
    learn = learner()
    t,(rows,k) = hopfield_table(learn).loc['hopfield_1'],by_hand(learn, 'hopfield_1')
    for col,times in dict(sharper=10, softer=.1).items():
        got = []
        for o in rows:
            s = (o[1]@k.T).numpy()*24**-.5*times
            e = np.exp(s-s.max())
            got.append(math.exp(ent(e/e.sum())))
        assert t[col]==pytest.approx(np.mean(got), rel=1e-3)

def test_parts_of_a_batch_and_batches_add_up(monkeypatch):
    learn = learner(memory='SlotBank', size=30)
    want,own,few = hopfield_table(learn),hopfield_table(learn, ds_idx=0),hopfield_table(learn, n=4)
    monkeypatch.setattr(reads, 'ROOM', 1)
    torch.testing.assert_close(torch.tensor(hopfield_table(learn).values), torch.tensor(want.values))
    # where each image has rows of its own that are hidden from it
    torch.testing.assert_close(torch.tensor(hopfield_table(learn, ds_idx=0).values), torch.tensor(own.values))
    learn.dls = loaders(classes(5), bs=3)
    torch.testing.assert_close(torch.tensor(hopfield_table(learn).values), torch.tensor(want.values))
    assert (few.per_read!=want.per_read).all()

def test_one_forward_for_all_blocks():
    learn,n = learner(),[]
    hook = learn.model.patch_embed.register_forward_hook(lambda *a: n.append(len(a[2])))
    hopfield_table(learn, n=9)
    assert n==[8,1]
    hook.remove()

def state(learn):
    m = learn.model
    return ([o.training for o in m.modules()], [len(o._forward_hooks)+len(o._forward_pre_hooks) for o in m.modules()],
            {k:v.clone() for k,v in m.state_dict().items() if torch.is_tensor(v)}, torch.get_rng_state().tolist(),
            [p.requires_grad for p in m.parameters()])

@pytest.mark.parametrize('ds_idx', [0,1])
def test_nothing_is_left_changed(ds_idx):
    learn = learner(memory='associative', size=9)
    learn.model.train()
    learn.model.blocks[0].mlp.eval()
    was = state(learn)
    hopfield_table(learn, ds_idx=ds_idx)
    now = state(learn)
    assert all(torch.equal(was[2][k], now[2][k]) for k in was[2])
    assert (was[0],was[1],was[3],was[4])==(now[0],now[1],now[3],now[4])

def test_in_the_middle_of_a_fit():
    "The training is the same to the bit"
    class Look(Callback):
        order = 90
        def after_batch(self):
            if self.training: hopfield_table(self.learn, n=4)
    def weights(cbs):
        learn = learner(fit=0, memory='SlotBank', size=30)
        quietly(learn, learn.fit, 2, 1e-2, cbs=cbs)
        return learn.model.state_dict()
    a,b = weights(None),weights([Look()])
    assert all(torch.equal(v, b[k]) for k,v in a.items() if torch.is_tensor(v))

def test_own_rows_are_not_read(monkeypatch):
    "In the training set, where each row is one item's"
    learn,full = learner(memory='SlotBank', size=64),[]
    h,was = memories(learn.model)['hopfield_1'],reads.Reads.weights
    def spy(r, w):
        full.append(w.clone())
        return was(r, w)
    monkeypatch.setattr(reads.Reads, 'weights', spy)
    for ds_idx,n in ((0,40),(1,10)):
        full.clear()
        hopfield_reads(learn, ds_idx=ds_idx, memory='hopfield_1')
        hidden = (torch.cat(full)==0).all(2).all(1)
        assert hidden.shape==(n,len(h.bank)) and hidden.sum(0).tolist()==[1-ds_idx]*len(h.bank)

@pytest.mark.parametrize('c', [1,2,10,50])
def test_numbers_of_classes(c):
    learn = learner(classes(c), n_out=max(2, c))
    s = hopfield_table(learn).specialisation
    assert s.isna().all() if c==1 else s.between(0, 1).all()

def test_other_targets():
    "Findings count for each that is positive; where there are no labels there is no specialisation"
    y = (torch.rand(50, 3, generator=torch.Generator().manual_seed(1))<.5).float()
    r = hopfield_reads(learner(y, BCEWithLogitsLossFlat(), 3))['hopfield_0']
    assert torch.equal(r.seen, y[40:].double().sum(0)) and r.by_class.shape==(3,7)
    r = hopfield_reads(learner(torch.rand(50, 1), MSELossFlat(), 1))['hopfield_0']
    assert r.by_class is None and r.specialisation() is None

def test_rows_of_one_class():
    "A row that only one class reads is special, one that all read alike is not"
    learn = learner(size=2)
    r = hopfield_reads(learn)['hopfield_0']
    r.by_class,r.seen = torch.tensor([[4.,1],[0,3]]).double(),torch.tensor([2.,6]).double()
    assert r.specialisation().tolist()==pytest.approx([1,0], abs=1e-6)

def test_half_precision():
    learn = learner(memory='SlotBank', size=30)
    want = hopfield_table(learn)
    with torch.autocast('cpu', torch.bfloat16): got = hopfield_table(learn)
    cols = ['per_read','metastable','top5','slots','added']
    np.testing.assert_allclose(got[cols].astype(float), want[cols].astype(float), rtol=.15)

def test_a_map_of_features():
    "A memory in a convolutional network: each position is a query"
    set_seed(0)
    m = small_cnn(1, 5)
    learn = Learner(loaders(classes(5)), m, loss_func=CrossEntropyLossFlat(),
                    cbs=MemoryCallback(SlotBank(12, policy='fifo'), head='hopfield', at=next(
                        n for n,o in m.named_modules() if isinstance(o, nn.Conv2d))))
    quietly(learn, learn.fit, 1, 1e-2)
    r, = hopfield_reads(learn).values()
    assert r.items==10 and r.n>10 and r.n%10==0 and float(r.use.sum())==pytest.approx(10)

def test_what_cannot_be_read():
    assert 'hopfield_vit' in err(hopfield_table, Learner(loaders(classes(5)), nn.Flatten(), loss_func=nn.MSELoss()))
    empty = learner(fit=0, memory='SlotBank')
    assert 'hopfield_0, hopfield_1 are empty' in err(hopfield_table, empty)
    learn = learner()
    assert "did you mean 'hopfield_1'" in err(hopfield_table, learn, memory='hopfield1')
    assert '0..1 is accepted' in err(hopfield_table, learn, ds_idx=2)
    learn.dls.valid.dataset = learn.dls.valid.dataset.subset(slice(0))
    learn.dls.valid.n = 0
    assert 'nothing came to hopfield_0' in err(hopfield_table, learn)
