"Learned rows in a learner: in the optimizer, rewritten, averaged, saved, and never of the wrong length"
import copy, pickle
import pytest, torch
from fastai.learner import load_learner
from fastai.optimizer import Adam, OptimWrapper
from fastai.vision.all import Callback, CrossEntropyLossFlat, DataLoaders, Learner, MixUp, partial, ranger, set_seed
from torch import nn
from helpers.learners import quietly
from memo.banks.base import Bank
from memo.banks.key_value import CachedBank, TrainableBank
from memo.core import MemoError
from memo.data.longtail import digits_lt
from memo.heads.base import MemoryHead
from memo.models.small import small_cnn
from memo.training.make_head import forget_moments
from memo.training.memory_callback import MemoryCallback
from memo.training.param_groups import body_head_splitter

class Near(MemoryHead):
    "Features near to rows of their class"
    def loss(self, z, y): return self.bank.contrastive(z, y, item=self.own(len(z))[0])

@pytest.fixture
def dls():
    "For each test its own: loaders go on with their random order from one fit to the next"
    return digits_lt(bs=16, n_max=20, ratio=2, valid=5, test=5)

def learner(dls, bank, opt=Adam, head=Near, loss_weight=.3, cbs=(), **kw):
    set_seed(0)
    return Learner(dls, small_cnn(1, 10), loss_func=CrossEntropyLossFlat(), opt_func=opt, splitter=body_head_splitter,
                   cbs=[MemoryCallback(bank, head=head, loss_weight=loss_weight, **kw), *cbs])

def fit(learn, n=2): quietly(learn, learn.fit, n, 3e-3)

opts = dict(fastai=Adam, torch=partial(OptimWrapper, opt=torch.optim.AdamW),
            sgd=partial(OptimWrapper, opt=torch.optim.SGD, momentum=.9))

class Watch(Callback):
    "Looks at the bank before and after each step"
    order,run_valid = 100,False
    def __init__(self): self.moved,self.rewritten,self.kept = 0,0,0
    def before_step(self):
        b = self.learn.memory.bank
        self.rows,self.items,self.n = b.features.detach().clone(),b.items.clone(),len(b)
    def after_step(self):
        b = self.learn.memory.bank
        opt = self.opt.opt if hasattr(self.opt, 'opt') else self.opt
        n = b.features[:len(b)].detach().norm(dim=1)
        assert ((n-1).abs()<1e-4).all()
        new = (b.items!=self.items).nonzero().squeeze(1)
        old = ((b.items==self.items) & (b.items>=0)).nonzero().squeeze(1)
        self.moved += (b.features.detach()[old]!=self.rows[old]).any(1).sum().item()
        for p in (b.features,b.scores):
            for v in opt.state[p].values():
                if not torch.is_tensor(v) or v.shape!=p.shape: continue
                assert not v[new].any(), 'an optimizer remembers the item that was there'
                self.rewritten += len(new)*(len(old)>0)
                self.kept += int(v[old].any())

@pytest.mark.parametrize('opt', opts)
def test_moments_of_rewritten_rows_are_reset(dls, opt):
    learn = learner(dls, TrainableBank(60, similarity_threshold=.999), opts[opt], cbs=[Watch()])
    fit(learn)
    b = learn.memory.bank
    assert len(b)==60 and int(b.replaced)>0
    assert learn.watch.moved>0 and learn.watch.rewritten>0 and learn.watch.kept>0
    learn.create_opt()
    for o in (b.features,b.scores): assert any(p is o for p in learn.opt.param_lists[-1])

def test_of_an_item_that_came_again_an_optimizer_remembers_its_way():
    b = TrainableBank(6, n_classes=2)
    b.write(torch.eye(6), torch.arange(6)%2, item=torch.arange(6))
    opt = torch.optim.Adam([*b.parameters(),nn.Parameter(torch.zeros(6, 6))])
    (b.features.sum()+b.scores.sum()).backward()
    opt.step()
    b.settle()
    slots = b.write(-torch.eye(6)[[1,2]], torch.tensor([1,1]), item=torch.tensor([1,77]))
    assert slots[0]==1 and slots[1]>=0
    forget_moments(opt, b, slots)
    zero = {k:(~opt.state[b.features][k].any(1)).nonzero().squeeze(1).tolist() for k in ('exp_avg','exp_avg_sq')}
    assert zero=={'exp_avg':[int(slots[1])], 'exp_avg_sq':[int(slots[1])]} and opt.state[b.features]['step']==1

def test_rows_have_unit_length_where_nothing_is_written(dls):
    "Every third batch only, or images are mixed"
    learn = learner(dls, TrainableBank(60), cbs=[Watch()], every=3)
    fit(learn)
    n = int(learn.memory.bank.count)
    with learn.no_bar(): learn.add_cb(MixUp())
    with pytest.warns(UserWarning, match='mixed'): fit(learn, 1)
    b = learn.memory.bank
    assert len(b)==n and ((b.features[:n].norm(dim=1)-1).abs()<1e-4).all()

@pytest.mark.parametrize('kind', [CachedBank,TrainableBank])
def test_saved_loaded_copied_exported(dls, kind, tmp_path):
    learn = learner(dls, kind(50))
    learn.path = tmp_path
    fit(learn)
    x = torch.randn(9, 64)
    want = learn.memory.bank.classify(x)
    learn.save('m')
    learn.memory.bank.save(tmp_path/'b.safetensors')
    learn.export('e.pkl')
    other = learner(dls, kind(50))
    other.path = tmp_path
    other.load('m')
    banks = [other.memory.bank, Bank.load(tmp_path/'b.safetensors'), load_learner(tmp_path/'e.pkl').memory.bank,
             copy.deepcopy(learn.model), pickle.loads(pickle.dumps(learn.model))]
    for b in banks:
        b = b if isinstance(b, Bank) else next(m for m in b.modules() if isinstance(m, Bank))
        assert len(b)==50 and all(torch.equal(m, n) for m,n in zip(b.classify(x), want))
    for o in (learn,other): fit(o, 1)
    assert other.memory.bank.items.sort().values.tolist()==other.memory.bank.items.unique().tolist()
    other.load('m')
    assert all(torch.equal(m, n) for m,n in zip(other.memory.bank.classify(x), want))

@pytest.mark.parametrize('how', ['parameters','all'])
def test_an_averaged_copy_has_the_rows_of_its_source(dls, how):
    "An average of a row that was rewritten is of two items"
    from timm.utils import ModelEmaV3
    learn = learner(dls, TrainableBank(50, similarity_threshold=.999))
    fit(learn, 1)
    model = learn.model
    ema = (torch.optim.swa_utils.AveragedModel(model, avg_fn=lambda a,b,n: .5*a+.5*b) if how=='parameters'
           else ModelEmaV3(model, decay=.5))
    class Average(Callback):
        order,run_valid = 101,False
        def after_step(self): ema.update_parameters(model) if how=='parameters' else ema.update(model)
    learn.add_cb(Average())
    fit(learn, 1)
    b,mine = (next(m for m in o.modules() if isinstance(m, Bank)) for o in (ema,model))
    assert int(mine.replaced)>0
    x = torch.randn(20, 64)
    assert all(torch.equal(m, n) for m,n in zip(b.classify(x), mine.classify(x)))
    state = b.state_dict()
    assert all(torch.equal(v, state[k]) for k,v in mine.state_dict().items())

def test_a_bank_that_was_filled_before_is_attached_with_its_rows(dls):
    b = TrainableBank(40, n_classes=10)
    b.write(torch.randn(40, 64), torch.arange(40)%10)
    p = b.features
    learn = learner(dls, b)
    assert learn.memory.bank.features is p and len(learn.memory.bank)==40
    with pytest.raises(MemoError, match='cannot be added for one fit'):
        none = Learner(dls, small_cnn(1, 10), loss_func=CrossEntropyLossFlat())
        quietly(none, none.fit, 1, cbs=MemoryCallback(TrainableBank(8), head=None))

def test_features_come_nearer_to_rows_of_their_class(dls):
    "Those of validation too; by the memory's loss alone, as the network's own brings them nearer by itself"
    res = []
    for w in (0.,.5):
        learn = learner(dls, CachedBank(100), loss_weight=w)
        learn.loss_func = lambda pred, y: 0*pred.sum()
        fit(learn, 8)
        got = learn.memory.collect(dls.valid)
        res.append(float(learn.memory.bank.contrastive(got.z, got.y)))
    assert res[0]>2 and res[1]<.6*res[0], res       # without it as by chance: a tenth of the rows are of a class

def test_rekey_renews_age(dls):
    learn = learner(dls, CachedBank(60, similarity_threshold=1.))
    fit(learn)
    b = learn.memory.bank
    assert b.age().max()>0
    n = learn.memory.rekey()
    assert n==60 and (b.age()==0).all() and ((b.features.norm(dim=1)-1).abs()<1e-5).all()

class Synced(Callback):
    "Which rows Lookahead would pull towards an item that is not theirs any more"
    order,run_valid,n = 100,False,0
    def after_step(self):
        b = self.learn.memory.bank
        new = ((b.hits==0) & (b.stamps==b.updates)).nonzero().squeeze(1)
        for p,s in ((p,s) for ps,ss in zip(self.opt.param_lists, self.opt.slow_weights) for p,s in zip(ps, ss)):
            if p is b.features or p is b.scores:
                assert torch.equal(s[new], p.detach()[new])
                self.n += len(new)

def test_lookahead_mixes_no_two_items(dls):
    learn = learner(dls, TrainableBank(60, similarity_threshold=.999), ranger, cbs=[Synced()])
    fit(learn)
    assert int(learn.memory.bank.replaced)>0 and learn.synced.n>60
