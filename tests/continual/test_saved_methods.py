"""A file of a learner with continual methods or a memory, loaded into another one: all finds its place, or one line
says what does not, and nothing is loaded"""
import warnings
import pytest, torch
from fastai.vision.all import CrossEntropyLossFlat, DataLoaders, Learner, load_learner, load_model, nn
from sklearn.datasets import load_digits
from helpers.learners import quietly, same, snap
from memo.banks.slots import SlotBank
from memo.continual.class_statistics import NearestMean
from memo.continual.icarl import ICaRL
from memo.continual.method import Method
from memo.continual.distillation import LwF
from memo.continual.penalties import EWC
from memo.continual.replay import DERpp, GDumb, Replay
from memo.core import MemoError
from memo.data.tensors import TensorDL
from memo.training.memory_callback import MemoryCallback

d = load_digits()
X,Y = torch.from_numpy(d.data/16).float(),torch.from_numpy(d.target).long()

class Counts(Method):
    "A user's own, which no index has"
    def after_step(self): self.state['n'] = self.state['n']+1 if 'n' in self.state else torch.tensor(1)

def memory(size=60): return MemoryCallback(SlotBank(size, policy='fifo'), head='vote')

made = dict(replay=lambda: Replay(30), derpp=lambda: DERpp('9kB'), gdumb=lambda: GDumb(30), ewc=EWC, lwf=LwF,
            own=Counts,
            icarl=lambda: ICaRL(30), memory=memory, nearest_mean=NearestMean)

def learner(path, cbs=(), seed=0):
    torch.manual_seed(seed)
    def dl(s, shuffle): return TensorDL(X[s], Y[s], bs=16, shuffle=shuffle, vocab=range(10))
    return Learner(DataLoaders(dl(slice(0,120), True), dl(slice(1000,1040), False), device='cpu'),
                   nn.Sequential(nn.Linear(64,16), nn.ReLU(), nn.Linear(16,10)), path=path,
                   loss_func=CrossEntropyLossFlat(),
                   cbs=cbs)

def fitted(path, cbs):
    learn = learner(path, cbs)
    quietly(learn, 'fit', 1, .01)
    for cb in cbs:
        if hasattr(cb, 'consolidate'): cb.consolidate(*((learn,learn.dls.train) if isinstance(cb, EWC) else (learn,)))
        elif isinstance(cb, ICaRL): cb.after_experience()
    return learn

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "A folder with a file `k.pth` of a learner with each; its state by name"
    path,states = tmp_path_factory.mktemp('files'),{}
    for k in ('plain',*made):
        learn = fitted(path, [made[k]()] if k in made else [])
        learn.save(k)
        states[k] = snap(learn.model)
    return path,states

def said(rec): return [str(o.message) for o in rec.list if o.category is UserWarning]

@pytest.fixture
def silent():
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        yield

@pytest.mark.parametrize('when', ['with the learner','later','beside others'])
@pytest.mark.parametrize('k', made)
def test_it_finds_its_place(files, silent, k, when):
    path,states = files
    learn = learner(path, made[k]() if when=='with the learner' else [], seed=1)
    if when!='with the learner':
        if when=='beside others': learn.add_cbs([o() for n,o in made.items() if n in ('replay','own') and n!=k])
        learn.add_cb(made[k]())
    learn.load(k)
    got = snap(learn.model)
    assert same(states[k], {n:v for n,v in got.items() if n in states[k]}) and got.keys()>=states[k].keys()
    quietly(learn, 'fit', 1, .01)

@pytest.mark.parametrize('k', made)
def test_it_has_its_place_from_when_it_is_added(files, k):
    "fastai's `load_model` on the model itself finds it too"
    path,states = files
    learn = learner(path, seed=1)
    learn.add_cb(made[k]())
    load_model(path/'models'/f'{k}.pth', learn.model, None, with_opt=False)
    assert same(states[k], snap(learn.model))

def test_a_method_goes_on_from_the_file(files):
    path,states = files
    learn = learner(path, seed=1)
    learn.add_cb(cb := Counts()).load('own')
    n = int(cb.state['n'])
    quietly(learn, 'fit', 1, .01)
    assert n==8 and int(cb.state['n'])==16

@pytest.mark.parametrize('k', made)
def test_a_file_of_what_the_learner_has_not(files, silent, k):
    path,states = files
    learn = learner(path, seed=1)
    was = snap(learn.model)
    with pytest.raises(MemoError, match=r'the file holds .*does not have: learn.add_cb .* strict=False') as e:
        learn.load(k)
    assert '\n' not in str(e.value) and len(str(e.value))<300 and same(was, snap(learn.model))
    whose = dict(own='Counts', memory='a memory', nearest_mean='a memory')
    assert f"({whose.get(k, type(made[k]()).__name__)})" in str(e.value)
    learn.load(k, strict=False)
    assert all(torch.equal(v, states[k][n]) for n,v in snap(learn.model).items())
    quietly(learn, 'get_preds')

def test_one_of_two_is_named(files):
    path,_ = files
    fitted(path, [Replay(30), Counts()]).save('two')
    learn = learner(path, Replay(30))
    was = snap(learn.model)
    with pytest.raises(MemoError, match=r'the file holds 0.counts \(Counts\), which'): learn.load('two')
    assert same(was, snap(learn.model))

@pytest.mark.parametrize('strict', [True,False])
@pytest.mark.parametrize('k', ['replay','gdumb','ewc','lwf','own'])
def test_a_file_without_it_loads_into_a_learner_with_a_method(files, k, strict, recwarn):
    "A method is no part of the answer: a new one begins with nothing, another keeps what it has, and says so"
    path,states = files
    learn = learner(path, cb := made[k](), seed=1)
    learn.load('plain', strict=strict)
    assert not said(recwarn) and all(torch.equal(v, snap(learn.model)[n]) for n,v in states['plain'].items())
    quietly(learn, 'fit', 1, .01)
    learn = fitted(path, [cb := made[k]()])
    was = cb.state.state_dict()
    recwarn.clear()
    learn.load('plain', strict=strict)
    what = type(cb).__name__
    assert said(recwarn)==[f'learn.load: the file holds nothing of {what}, so what it keeps stays; a new {what} begins '
                           'anew']
    assert same(was, cb.state.state_dict())
    assert all(torch.equal(v, snap(learn.model)[n]) for n,v in states['plain'].items())

def test_a_file_without_it_into_a_learner_with_a_memory(files):
    path,states = files
    learn = learner(path, memory(), seed=1)
    was = snap(learn.model)
    with pytest.raises(MemoError, match='nothing of the memory 2.memory; strict=False'): learn.load('plain')
    assert same(was, snap(learn.model))
    learn.load('plain', strict=False)
    assert all(torch.equal(v, snap(learn.model)[n]) for n,v in states['plain'].items())

@pytest.mark.parametrize('strict', [True,False])
@pytest.mark.parametrize('k,cb,what', [
    ('replay', lambda: Replay(31), 'size is 30 in the state to load, 31 here'),
    ('replay', lambda: Replay(30, policy='ring'), "policy is 'reservoir' in the state to load, 'ring' here"),
    ('derpp', lambda: DERpp('8kB'), 'size is 9216 in the state to load, 8192 here'),
    ('memory', lambda: memory(50), 'saved SlotBank has size 60'),
    ('memory', lambda: MemoryCallback(SlotBank(60, policy='fifo'), head='add'), 'saved state is of a VoteHead')])
def test_another_size_or_kind_is_told_before_anything_is_loaded(files, k, cb, what, strict):
    path,_ = files
    learn = learner(path, cb(), seed=1)
    was = snap(learn.model)
    with pytest.raises(MemoError, match=what): learn.load(k, strict=strict)
    assert same(was, snap(learn.model))

def test_into_a_model_that_was_put_in_place_of_another(files, silent):
    path,states = files
    learn = learner(path, Replay(30))
    learn.model,learn.opt = learner(path, seed=1).model,None
    learn.load('replay')
    assert same(states['replay'], snap(learn.model)) and len(learn.replay.state)==30

def test_into_what_was_exported(files):
    path,states = files
    fitted(path, [Replay(30)]).export('e.pkl')
    with pytest.warns(UserWarning, match='pickle'): new = load_learner(path/'e.pkl')
    new.load('replay')
    assert same(states['replay'], snap(new.model)) and len(new.replay.state)==30

def test_a_memory_that_wraps_the_module_which_holds_the_state(files, silent):
    "The state is in the model once, wherever the first module of the network has gone"
    from memo.heads.attach import attach
    from memo.heads.base import MemoryHead
    learn = learner(files[0], cb := Replay(30))
    attach(learn.model, MemoryHead(SlotBank(8)), at='0', wrap=True)
    quietly(learn, 'fit', 1, .01)
    assert len([n for n in learn.model.state_dict() if n.endswith('replay.seed')])==1
    cb.detach()
    assert not [n for n in learn.model.state_dict() if 'replay' in n]
