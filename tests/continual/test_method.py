"State of continual methods: part of the model, of any shape, left out of exports, one owner at a time"
import pickle, zipfile
from copy import deepcopy
import pytest
from fastai.vision.all import *
from helpers.learners import same, snap
from memo.continual.method import NamedTensors, Method, keeper
from memo.core import MemoError
from memo.data.tensors import TensorDL
for k in [k for k in globals() if k.startswith('test')]: del globals()[k]     # fastai's, which pytest would collect

class Counts(Method):
    "Keeps how many batches it saw, and all inputs"
    def after_batch(self):
        if not self.training: return
        n = int(self.state['n']) if 'n' in self.state else 0
        self.state['n'] = torch.tensor(n+1)
        self.state['x'] = torch.cat([self.state['x'], self.x]) if 'x' in self.state else self.x

def make(cbs=None, model=None, path=None):
    set_seed(0)
    x,y = torch.randn(20, 4),torch.randint(0, 3, (20,))
    train,valid = TensorDL(x, y, bs=4, shuffle=True, vocab=range(3)),TensorDL(x[:6], y[:6], vocab=range(3))
    dls = DataLoaders(train, valid, device='cpu', path=path or '.')
    set_seed(0)
    return Learner(dls, model() if model else nn.Sequential(nn.Linear(4, 3)), opt_func=SGD, lr=.1, cbs=cbs)

def fit(learn, n=1):
    with learn.no_bar(), learn.no_logging(): learn.fit(n)
    return learn

def test_kept_takes_names_and_shapes_that_are_there():
    k = NamedTensors(a=torch.zeros(2), b=None)
    k['0.weight'] = torch.ones(3)
    assert len(k)==2 and 'b' not in k and '0.weight' in k and k['b'] is None and [*k.tensors()]==['a','0.weight']
    new = NamedTensors(z=torch.ones(7), a=torch.ones(9))
    new.load_state_dict(k.state_dict())
    assert [*new.tensors()]==['a','0.weight'] and torch.equal(new['a'], torch.zeros(2)) and 'z' not in new
    k['a'].add_(1)
    assert not new['a'].any()           # a copy
    for o in (deepcopy(k), pickle.loads(pickle.dumps(k))): assert same(o.state_dict(), k.state_dict())
    k.clear()
    assert len(k)==0 and not k.state_dict()

@pytest.mark.parametrize('model', [lambda: nn.Linear(4, 3), lambda: nn.Sequential(nn.Linear(4, 3)),
                                   lambda: nn.Sequential(nn.Sequential(nn.Identity()), nn.Linear(4, 3))])
def test_the_model_is_what_it_was_but_for_the_state(model):
    plain,with_state = fit(make(model=model)),fit(make(cbs=Counts(), model=model))
    a,b = snap(plain.model),snap(with_state.model)
    assert same(a, {k:v for k,v in b.items() if 'counts' not in k}) and [k for k in b if k.endswith('counts.n')]
    assert int(with_state.counts.state['n'])==5 and len(with_state.counts.state['x'])==20
    with_state.counts.detach()
    assert same(a, snap(with_state.model))

def test_saved_and_loaded_before_training(tmp_path):
    learn = fit(make(cbs=Counts(), path=tmp_path))
    learn.save('m')
    new = make(cbs=Counts(), path=tmp_path)
    new.load('m')
    assert int(new.counts.state['n'])==5 and same(snap(learn.model), snap(new.model))
    fit(new)
    assert int(new.counts.state['n'])==10

def test_export_leaves_it_out(tmp_path):
    learn = fit(make(cbs=Counts(), path=tmp_path))
    was = snap(learn.model)
    learn.export()
    assert same(was, snap(learn.model)) and int(learn.counts.state['n'])==5
    new = load_learner(tmp_path/'export.pkl')
    assert not [k for k in new.model.state_dict() if 'counts' in k] and len(new.counts.state)==0
    raw = learn.counts.state['x'].numpy().tobytes()[:64]
    with zipfile.ZipFile(tmp_path/'export.pkl') as z: assert not any(raw in z.read(n) for n in z.namelist())
    new.dls = learn.dls
    assert int(fit(new).counts.state['n'])==5

def test_a_new_one_takes_the_place_of_one_that_has_gone():
    learn = make()
    with learn.no_bar(), learn.no_logging():
        a,b = Counts(),Counts()
        learn.fit(1, cbs=a)
        learn.fit(2, cbs=b)
    assert int(a.state['n'])==5 and int(b.state['n'])==10
    assert keeper(learn.model)._modules['counts'] is b.state

def test_two_of_a_name_and_names_that_are_taken():
    learn = make(cbs=Counts())
    with pytest.raises(MemoError, match='counts: the model has something of that name'): learn.add_cb(other := Counts())
    assert other.learn is None and other not in learn.cbs
    class Weight(Counts): pass
    learn = make()
    with pytest.raises(MemoError, match='weight: the model has'): learn.add_cb(Weight())
    assert same(snap(learn.model), snap(make().model))

def test_what_is_added_is_what_is_back_propagated():
    class Adds(Method):
        def after_loss(self):
            if not self.training: return
            self.add_loss(torch.tensor(2.))
            self.add_loss(self.model[0].weight.sum())
    seen = []
    class Look(Callback):
        order = 40
        def after_loss(self):
            if not self.training: return
            want = F.cross_entropy(self.pred, self.y)+2+self.model[0].weight.sum()
            seen.append((float(self.learn.loss_grad), float(self.learn.loss), float(want)))
    learn = fit(make(cbs=[Adds(), Look()]))
    assert all(a==b and a==pytest.approx(c, abs=1e-5) for a,b,c in seen) and len(seen)==5
