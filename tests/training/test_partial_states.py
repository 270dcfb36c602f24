"""Weights of another model, or a part of them: the memory is whole or empty, and what it holds of other classes or
another network is told in one line"""
import pytest, timm, torch
from fastai.vision.all import CrossEntropyLossFlat, DataLoaders, Learner, accuracy, nn
from sklearn.datasets import load_digits
from helpers.learners import quietly, snap
from memo.banks.classes import ClassBank
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.data.tensors import TensorDL, TensorSet
from memo.heads.attach import attach
from memo.heads.mixture import VoteHead
from memo.training.memory_callback import MemoryCallback

d = load_digits()
X,Y = torch.from_numpy(d.images/16).float()[:,None],torch.from_numpy(d.target).long()
N = 150

def loaders(c=10):
    def dl(s, i): return TensorDL(dataset=TensorSet(X[s], Y[s]%c, torch.arange(len(X))[s], list(range(c)), i), bs=32,
                                  shuffle=i==0)
    return DataLoaders(dl(slice(0,N), 0), dl(slice(1000,1040), 1), device='cpu')

def net(c=10, width=24):
    return nn.Sequential(nn.Flatten(), nn.Linear(64,width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width,c))

def banks(head):
    if head in ('prototype','lda','replay'): return ClassBank(10, capacity=20)
    return SlotBank(2*N, policy='fifo')

def learner(path, head, c=10, width=24, bank=None, model=None):
    torch.manual_seed(0)
    cbs = [] if head=='plain' else [MemoryCallback(bank or banks(head), head=head)]
    return Learner(loaders(c), model or net(c, width), loss_func=CrossEntropyLossFlat(), metrics=accuracy, path=path,
                   cbs=cbs)

heads = ['vote','prototype','lda','replay','add',None]

@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "By head: the folder of a learner with a memory, an epoch old, and its state"
    made = {}
    def _saved(head):
        if head not in made:
            learn = learner(tmp_path_factory.mktemp('saved'), head)
            quietly(learn, 'fit', 1, 1e-2)
            learn.save('m')
            made[head] = learn.path,snap(learn.model),learn.memory.bank
        return made[head]
    return _saved

def fitting(state, own): return {k:v for k,v in state.items() if k in own and own[k].shape==v.shape}

# a classifier, or a network, of another size: told by the names of the classes where both know them

def told(there, here, first='7'):
    return f"rows of class {first}, this model has {here} outputs|of {there} classes, the data has {here}"

def load_new_classifier(learn, state):
    "As one does to train on for other classes: all but the classifier, whole memory"
    own = learn.model.state_dict()
    learn.model.load_state_dict({k:v for k,v in state.items() if 'memory' in k or v.shape==own[k].shape}, strict=False)

@pytest.mark.parametrize('call', ['get_preds','validate','predict','model','export'])
@pytest.mark.parametrize('head', ['vote','prototype','lda'])
def test_rows_of_classes_that_the_model_has_not(saved, tmp_path, head, call):
    "Gave 'index 7 is out of bounds', or probabilities of which some were cut off"
    learn = learner(tmp_path, head, 7)
    load_new_classifier(learn, saved(head)[1])
    with pytest.raises(MemoError, match=told(10, 7)) as e:
        if call=='model': learn.model.eval()(X[:3])
        elif call=='predict': quietly(learn, 'predict', X[0])
        elif call=='export':
            learn.export('l.pkl')
            torch.load(tmp_path/'l.pkl', weights_only=False).model.eval()(X[:3])
        else: quietly(learn, call)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('head', ['vote','prototype','lda','replay'])
def test_emptied_it_trains_for_the_new_classes(saved, tmp_path, head):
    learn = learner(tmp_path, head, 7)
    load_new_classifier(learn, saved(head)[1])
    learn.memory.bank.reset()
    quietly(learn, 'fit', 1, 1e-2)
    p = quietly(learn, 'get_preds')[0]
    assert p.shape==(40,7) and torch.allclose(p.sum(1), torch.ones(40)) and len(learn.memory.bank)

def test_what_is_replayed_has_classes_that_the_model_has_not(saved, tmp_path):
    learn = learner(tmp_path, 'replay', 7)
    load_new_classifier(learn, saved('replay')[1])
    assert quietly(learn, 'get_preds')[0].shape==(40,7)        # nothing is replayed in predictions
    with pytest.raises(MemoError, match=told(10, 7)): quietly(learn, 'fit', 1, 1e-2)

@pytest.mark.parametrize('head', ['add',None])
def test_what_has_no_use_for_classes_trains_on(saved, tmp_path, head):
    learn = learner(tmp_path, head, 7)
    load_new_classifier(learn, saved(head)[1])
    assert quietly(learn, 'get_preds')[0].shape==(40,7) and len(learn.memory.bank)==N

@pytest.mark.parametrize('head', heads)
def test_rows_of_another_width(saved, tmp_path, head):
    "Gave errors of matrix products"
    learn = learner(tmp_path, head, width=30)
    load_new_classifier(learn, saved(head)[1])
    with pytest.raises(MemoError, match='rows? (of width|have) 24|have width 30|this bank.s rows have 24') as e:
        quietly(learn, 'get_preds')
        quietly(learn, 'fit', 1, 1e-2)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('head', ['vote','lda','replay'])
def test_a_bank_with_room_for_more_classes(tmp_path, head):
    "Is no mistake while there are no rows of them: the same answers as a bank of just so many"
    got = []
    for c in (10,20):
        bank = SlotBank(2*N, policy='fifo', n_classes=c) if head=='vote' else ClassBank(c, capacity=40)
        learn = learner(tmp_path, head, bank=bank)
        torch.manual_seed(1)
        learn.dls.train.rng.seed(1)
        quietly(learn, 'fit', 2, 1e-2)
        got.append(quietly(learn, 'get_preds')[0])
    torch.testing.assert_close(*got, rtol=1e-4, atol=1e-5)

def test_a_bank_that_does_not_know_its_classes():
    model = net(7)
    attach(model, VoteHead(bank := SlotBank(50, policy='fifo')))
    bank.write(torch.randn(20, 24), y=torch.arange(20)%7)
    assert model.eval()(X[:3]).shape==(3,7)
    bank.write(torch.randn(1, 24), y=torch.tensor([8]))
    with pytest.raises(MemoError, match='rows of class 8, this model has 7 outputs'): model(X[:3])

def test_targets_of_another_number_of_findings():
    model = net(7)
    attach(model, VoteHead(bank := SlotBank(50, policy='fifo')))
    bank.write(torch.randn(20, 24), y=torch.randint(0, 2, (20,5)).float())
    with pytest.raises(MemoError, match='targets of 5 classes, this model has 7 outputs'): model.eval()(X[:3])

def test_a_vote_is_not_fitted_to_other_classes(saved, tmp_path):
    learn = learner(tmp_path, 'vote', 7)
    load_new_classifier(learn, saved('vote')[1])
    with pytest.raises(MemoError, match=told(10, 7)): learn.memory.fit()

def test_a_pretrained_network_of_timm_for_other_classes(tmp_path):
    "The way of timm's documentation: make it again for other classes, load all that is not the classifier"
    def mk(c):
        dls = loaders(c)
        return Learner(dls, timm.create_model('resnet10t', in_chans=1, num_classes=c), path=tmp_path,
                       loss_func=CrossEntropyLossFlat(), cbs=MemoryCallback(SlotBank(64, policy='fifo'), head='vote'))
    a,b = mk(10),mk(5)
    quietly(a, 'fit', 1, 1e-3)
    state = {k:v for k,v in a.model.state_dict().items() if k not in ('fc.weight','fc.bias')}
    b.model.load_state_dict(state, strict=False)
    with pytest.raises(MemoError, match=told(10, 5, '[5-9]')): quietly(b, 'validate')
    b = mk(5)
    b.model.load_state_dict({k:v for k,v in state.items() if '.memory.' not in k}, strict=False)
    quietly(b, 'fit', 1, 1e-3)
    assert len(b.memory.bank)==64 and quietly(b, 'get_preds')[0].shape==(40,5)

# a part of the state

filters = dict(
    fitting=fitting,                                                            # what fits, as everybody's helper does
    floats=lambda s, own: {k:v for k,v in s.items() if v.is_floating_point()},
    parameters=lambda s, own: {k:v for k,v in s.items() if k.endswith(('weight','bias')) and 'memory' not in k},
    no_memory=lambda s, own: {k:v for k,v in s.items() if '.memory' not in k},
    no_bank=lambda s, own: {k:v for k,v in s.items() if '.bank' not in k},
    no_features=lambda s, own: {k:v for k,v in s.items() if not k.endswith('features')},
    no_labels=lambda s, own: {k:v for k,v in s.items() if not k.endswith('labels')},
    no_ids=lambda s, own: {k:v for k,v in s.items() if not k.endswith('items')},
    no_counts=lambda s, own: {k:v for k,v in s.items() if v.ndim or 'memory' not in k},
    no_extra=lambda s, own: {k:v for k,v in s.items() if not k.endswith('_extra_state')},
    under_module=lambda s, own: {f'module.{k}':v for k,v in s.items()},         # of DistributedDataParallel
    whole=lambda s, own: dict(s))

def whole(bank, was):
    f,_,y,i,_,valid = bank.rows()
    g,_,z,j,_,_ = was.rows()
    if valid is not None: f,y,i,g,z,j = (o[valid] for o in (f, y, i, g, z, j))
    return len(bank)==len(was) and torch.equal(f, g) and torch.equal(y, z) and torch.equal(i, j)

@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('what', filters)
@pytest.mark.parametrize('head', heads)
def test_a_memory_is_whole_or_empty(saved, tmp_path, head, what):
    learn = learner(tmp_path, head)
    try: learn.model.load_state_dict(filters[what](saved(head)[1], learn.model.state_dict()), strict=False)
    except MemoError as e: assert '\n' not in str(e)
    bank = learn.memory.bank
    assert whole(bank, saved(head)[2]) if len(bank) else what!='whole'
    p = quietly(learn, 'get_preds')[0]
    quietly(learn, 'fit', 1, 1e-2)
    n = bank.rows()[0].norm(dim=1)
    valid = bank.rows()[-1]
    assert p.isfinite().all() and len(bank) and bool((n if valid is None else n[valid]).gt(0).all())

@pytest.mark.parametrize('head', heads)
@pytest.mark.parametrize('strict', [True,False])
def test_learn_load_of_another_size(saved, tmp_path, head, strict):
    "torch says what does not fit, and has loaded the rest; `strict=False` does not change that"
    path,_,bank = saved(head)
    learn = learner(tmp_path, head, 7)
    learn.path = path
    with pytest.raises((RuntimeError,MemoError), match='size mismatch|classes'): learn.load('m', strict=strict)
    assert len(learn.memory.bank)==0 or whole(learn.memory.bank, bank)

def test_weights_without_memory_into_a_learner_with_one(saved, tmp_path):
    plain,learn = learner(tmp_path, 'plain'),learner(tmp_path, 'vote')
    plain.save('plain')
    learn.load('plain', strict=False)
    assert len(learn.memory.bank)==0
    quietly(learn, 'fit', 1, 1e-2)
    assert len(learn.memory.bank)==N

def test_weights_with_memory_into_a_learner_without(saved, tmp_path):
    path,state,_ = saved('vote')
    learn = learner(path, 'plain')
    learn.load('m', strict=False)
    own = snap(learn.model)
    assert all(torch.equal(own[k], state[k]) for k in own) and quietly(learn, 'get_preds')[0].shape==(40,10)
