"""A learner whose model answers early: trained, validated, asked, saved and loaded, with other callbacks and inside of
other fits; what is predicted is what the whole network with its memory says"""
import io, pytest, random, torch, warnings
from fastai.vision.all import *
from helpers.half import Half
from helpers.learners import quietly, same, snap
from memo.banks.classes import ClassBank
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.data.longtail import digits_lt
from memo.heads.attach import attach, detach, find_head, memories
from memo.heads.base import MemoryHead
from memo.heads.calls import Step, in_step
from memo.heads.gate import ExitHead
from memo.models.small import small_cnn
from memo.training.collect import collect
from memo.training.memory_callback import MemoryCallback
from copy import deepcopy
for k in [k for k in globals() if k.startswith('test')]: del globals()[k]     # fastcore's, which pytest would run

PLACE = '4'
@pytest.fixture(scope='module')
def dls(): return digits_lt(seed=0, n_max=40, ratio=4, valid=6, test=10)

def early(at=PLACE, name='early', size=300, **kw):
    return MemoryCallback(SlotBank(size, policy='fifo'), head='exit', at=at, name=name, **kw)
def learner(dls, *cbs, model=None, epochs=2, **kw):
    set_seed(0, reproducible=True)
    dls.train.rng = random.Random(0)
    if model is None: model = small_cnn(1, 10)
    learn = Learner(dls, model, metrics=accuracy, cbs=[*(cbs or [early()])], **kw)
    if epochs:
        quietly(learn, 'fit', epochs, 1e-2)
        tune(learn)
    return learn

def tune(learn):
    "Thresholds at which each memory is sure of half of the test set"
    for n,cb in learn.memories.items():
        if isinstance(cb.head, ExitHead):
            z = quietly(learn, cb.collect, learn.dls[2]).z
            s = cb.head.says(z)[1].sort().values
            cb.head.threshold.copy_((s[len(s)//2-1]+s[len(s)//2])/2)        # no row is at it

class Rows:
    "A context that counts the rows which reach the classifier"
    def __init__(self, model): self.model,self.n = model,0
    def __enter__(self):
        last = [m for m in self.model.modules() if isinstance(m, nn.Linear)][-1]
        def add(_, a): self.n += len(a[0])
        self.hook = last.register_forward_pre_hook(add, prepend=True)
        return self
    def __exit__(self, *_): self.hook.remove()

def whole(learn, dl):
    "What the whole network with its memories answers, and the features at their places"
    return collect(learn, dl, memory=True, name=next(iter(learn.memories))).logits

def images(dls, i=2):
    with torch.no_grad(): return torch.cat([b[0] for b in dls[i]]).as_subclass(torch.Tensor)

@pytest.fixture(scope='module')
def trained(dls): return learner(dls)

def test_every_way_of_asking_gives_the_same_answers_and_skips(dls, trained):
    learn,x = trained,images(dls)
    want = whole(learn, dls[2])
    with Rows(learn.model) as held: collect(learn, dls[2], memory=True)
    assert held.n==len(x)
    learn.model.eval()
    with torch.no_grad(), Rows(learn.model) as r: out = learn.model(x)
    torch.testing.assert_close(out, want, atol=1e-4, rtol=1e-4)
    assert 0<r.n<.8*len(x), 'the memory answers some, not all'
    n = r.n
    with Rows(learn.model) as r: preds,y = quietly(learn, 'get_preds', dl=dls[2])
    torch.testing.assert_close(preds, want.softmax(1), atol=1e-4, rtol=1e-4)
    assert r.n==n
    with Rows(learn.model) as r: got = quietly(learn, learn.validate, dl=dls[2])
    assert r.n==n and abs(got[1]-(want.argmax(1)==y).float().mean())<1e-6
    # one at a time
    with Rows(learn.model) as r, torch.no_grad():
        for i in range(len(x)): torch.testing.assert_close(learn.model(x[i:i+1]), want[i:i+1], atol=1e-4, rtol=1e-4)
    assert r.n==n
    with learn.early.off(), Rows(learn.model) as r: quietly(learn, learn.validate, dl=dls[2])
    assert r.n==len(x)

def test_a_fits_own_validation_holds_no_row_back(dls):
    learn = learner(dls, epochs=0)
    class Look(Callback):
        def before_fit(self): self.rows = {}
        def before_validate(self): self.r = Rows(self.model).__enter__()
        def after_validate(self):
            self.r.__exit__()
            self.learn.validated = getattr(self.learn, 'validated', [])+[self.r.n]
    quietly(learn, 'fit', 2, 1e-2, cbs=Look())
    quietly(learn, 'fit', 1, 0., cbs=Look())
    assert learn.validated==[len(dls.valid_ds)]*3
    was = [*learn.recorder.values[-1][1:3]]
    assert was==pytest.approx([*quietly(learn, learn.validate)[:2]], abs=1e-4)

def test_fits_and_predictions_inside_of_a_fit(dls):
    "leave the outer fit as it was: of the same weights as without a memory"
    class Asks(Callback):
        order = 70
        def __init__(self): self.reached,self.asks = [],False
        def after_epoch(self):
            if self.asks: return
            self.asks = True
            self.ask()
            self.asks = False
        def ask(self):
            with Rows(self.model) as r: self.learn.get_preds(1)
            self.reached.append(r.n)
            self.model.eval()
            with torch.no_grad(): self.model(images(dls)[:5])
            if not memories(self.model): return
            with Rows(self.model) as r: collect(self.learn, dls[1])
            assert r.n==len(dls.valid_ds)
    plain = Learner(dls, learner(dls, epochs=0).model, metrics=accuracy)
    detach(plain.model)
    asked = learner(dls, epochs=0)
    for learn in (plain,asked):
        set_seed(0, reproducible=True)
        dls.train.rng = random.Random(0)
        quietly(learn, 'fit', 2, 1e-2, cbs=(cb := Asks()))
    a,b = snap(plain.model),snap(asked.model)
    assert all(torch.equal(v, b[k]) for k,v in a.items()) and len(a)>20
    assert cb.reached[-1]<len(dls.valid_ds) and len(asked.early.bank)==len(dls.train_ds)
    plain = asked
    before = snap(plain.model)
    with plain.no_bar(): plain.lr_find(num_it=8, show_plot=False)
    assert same(before, snap(plain.model))
    plain.model.eval()
    with torch.no_grad(), Rows(plain.model) as r: plain.model(images(dls))
    assert r.n<len(images(dls))

def test_rekey_and_recall_see_all_rows(dls, trained):
    learn = trained
    before = len(learn.early.bank)
    with Rows(learn.model) as r: n = quietly(learn, learn.early.rekey)
    assert r.n>=before and len(learn.early.bank)==before
    with Rows(learn.model) as r: learn.recall(dls.valid_ds.x[:6], k=2)
    assert r.n==6

files = ['export','save','state','deepcopy']
@pytest.mark.parametrize('way', files)
def test_what_is_loaded_skips_too(dls, trained, way, tmp_path):
    learn,x = trained,images(dls)
    learn.model.eval()
    with torch.no_grad(), Rows(learn.model) as r: want = learn.model(x)
    if way=='export':
        learn.path = tmp_path
        learn.export('e.pkl')
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            new = load_learner(tmp_path/'e.pkl').model
    elif way=='deepcopy': new = deepcopy(learn.model)
    else:
        other = learner(dls, epochs=0)
        if way=='save':
            learn.path = other.path = tmp_path
            learn.save('m')
            other.load('m')
        else: other.model.load_state_dict(learn.model.state_dict())
        new = other.model
    new.eval()
    with torch.no_grad(), Rows(new) as r2: got = new(x)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert r2.n==r.n<len(x)

def test_a_pretrained_style_body_and_head(dls):
    "fastai's own networks are a Sequential of a body and a head"
    body = nn.Sequential(*[o for o in small_cnn(1, 10)][:8])
    model = nn.Sequential(body, create_head(64, 10, [32], pool=True))
    learn = learner(dls, early(at='0.4'), model=model, splitter=lambda m: [params(m[0]), params(m[1])])
    x,want = images(dls),whole(learn, dls[2])
    learn.model.eval()
    with torch.no_grad(), Rows(learn.model) as r: torch.testing.assert_close(learn.model(x), want, atol=1e-4, rtol=1e-4)
    assert r.n<len(x)
    learn.freeze()
    quietly(learn, 'fit', 1, 1e-3)

def test_two_places_a_vote_and_a_class_bank(dls):
    learn = learner(dls, early('1', 'one'), early('4', 'two'),
                    MemoryCallback(SlotBank(300, policy='fifo'), head='vote', k=5),
                    MemoryCallback(ClassBank(10, capacity=16), name='rare'))
    x,want = images(dls),whole(learn, dls[2])
    learn.model.eval()
    with torch.no_grad(), Rows(learn.model) as r: torch.testing.assert_close(learn.model(x), want, atol=1e-4, rtol=1e-4)
    assert 0<r.n<len(x)
    n = r.n
    learn.two.detach()
    with torch.no_grad(), Rows(learn.model) as r: learn.model(x)
    assert n<=r.n<len(x)
    want = whole(learn, dls[2])
    with torch.no_grad(): torch.testing.assert_close(learn.model(x), want, atol=1e-4, rtol=1e-4)
    quietly(learn, 'fit', 1, 1e-2)      # without it

def test_training_is_that_of_a_memory_which_watches(dls):
    watch = learner(dls, MemoryCallback(SlotBank(300, policy='fifo'), head='watch', at=PLACE, name='early'))
    a,b = snap(learner(dls).model),snap(watch.model)
    for k in b:     # an exit's rows are without the features' mean
        if not k.endswith(('_extra_state','.features','norms','mean_norm')): assert torch.equal(a[k], b[k]), k

def test_half_precision_training(dls):
    learn = learner(dls, early(), Half())
    preds,_ = quietly(learn, 'get_preds', dl=dls[2])
    assert preds.isfinite().all()
    # in half precision a row whose nearest is about as near as the threshold may go the other way
    far = ~torch.isclose(preds, whole(learn, dls[2]).softmax(1), atol=.1, rtol=.1)
    assert float(far.any(1).float().mean())<=.02

def test_an_averaged_copy_skips_too(dls):
    "As of EMA: the copy has the rows, and averages of the weights"
    learn = learner(dls, epochs=0)
    ema = torch.optim.swa_utils.AveragedModel(learn.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(.5))
    class Average(Callback):
        def after_step(self): ema.update_parameters(self.learn.model)
    quietly(learn, 'fit', 2, 1e-2, cbs=Average())
    ema.eval()
    x = images(dls)
    with torch.no_grad(), Rows(ema) as r: got = ema(x)
    heads = [m for m in ema.modules() if isinstance(m, MemoryHead)]
    with torch.no_grad(), in_step(heads, Step(exits=False)): want = ema(x)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert r.n<len(x) and len(heads[0].bank)==len(learn.early.bank)
