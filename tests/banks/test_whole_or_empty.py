"A bank is loaded whole or is empty, and knows whose classes its rows are of"
import copy, json, time, warnings
import pytest, torch
from fastai.vision.all import AttrDict
from sklearn.datasets import load_digits
from contracts.made import learner
from helpers.errors import err
from helpers.learners import quietly
from memo.banks.base import Bank
from memo.banks.classes import ClassBank
from memo.banks.exchange import open_bank
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.heads.mixture import LDAHead, PrototypeHead, VoteHead
from memo.training.make_head import class_names, tell_vocab
from safetensors.torch import save_file

_d = load_digits()
X,Y = torch.from_numpy(_d.data).float(),torch.from_numpy(_d.target).long()
kinds = dict(slots=lambda: SlotBank(512, policy='fifo'), classes=lambda: ClassBank(10, capacity=64),
             budget=lambda: ClassBank(10, capacity='1MB'), once=lambda: ClassBank(10, 64, once=True))

def filled(kind, n=447):
    b = kinds[kind]()
    b.write(X[:n], Y[:n], item=torch.arange(n), group=torch.arange(n)//2)
    return b

def is_whole_or_empty(b):
    if len(b)==0:
        assert int(b.seen)==0 and (b.read(X[:2], 3).index==-1).all()
        return
    f,_,_,item,_,ok = b.rows()
    ok = torch.ones(len(item), dtype=torch.bool) if ok is None else ok
    assert int(ok.sum())==len(b) and (f[ok].float().norm(dim=1)>0).all() and (item[ok]>=0).all()

@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('key', ['features','items','labels','counts','norms','count','_extra_state','offers','seen'])
def test_a_key_is_missing(kind, key):
    "It was: 447 rows without features, later 447 rows of zeros"
    state = filled(kind).state_dict()
    if key not in state: return
    part = {k:v for k,v in state.items() if k!=key}
    for n in (0, 30):
        b = filled(kind, n) if n else kinds[kind]()
        with pytest.warns(UserWarning, match=f'lacks {key} .*left empty') as w: b.load_state_dict(part, strict=False)
        assert len(b)==0 and len(w)==1 and '\n' not in str(w[0].message)
        b.write(X[600:664], Y[600:664], item=torch.arange(600, 664))
        is_whole_or_empty(b)
        assert b.features.flatten(0, -2)[b.write(X[:9], Y[:9])].abs().sum(1).gt(0).all()
        b = kinds[kind]()
        with pytest.warns(UserWarning, match='left empty'):
            with pytest.raises(RuntimeError, match=key): b.load_state_dict(part)
        is_whole_or_empty(b)

@pytest.mark.parametrize('kind', kinds)
def test_what_fits_by_shape(kind):
    "As people filter a state: keys that are there with the same shape, as features are not before the first write"
    state,own = filled(kind).state_dict(),kinds[kind]().state_dict()
    b = kinds[kind]()
    with pytest.warns(UserWarning, match='left empty'):
        b.load_state_dict({k:v for k,v in state.items() if k in own and v.shape==own[k].shape}, strict=False)
    assert len(b)==0 and b.dim is None
    b.write(torch.ones(3, 7), torch.arange(3))      # of another width

@pytest.mark.parametrize('kind', kinds)
def test_whole_states_and_none_at_all(kind):
    a,b = filled(kind),kinds[kind]()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        b.load_state_dict(a.state_dict(), strict=False)
        assert len(b)==len(a)
        b.load_state_dict({}, strict=False)
        assert len(b)==len(a)
        b.load_state_dict(kinds[kind]().state_dict(), strict=False)
        assert len(b)==0

def test_in_a_model_of_another_width():
    "Weights of a network whose features are wider, dropped where they do not fit"
    a,b = learner(SlotBank(64, policy='fifo'), 'vote', k=5),learner(SlotBank(64, policy='fifo'), 'vote', k=5)
    quietly(a, 'fit', 1)
    own = b.model.state_dict()
    part = {k:v for k,v in a.model.state_dict().items() if k in own and v.shape==own[k].shape}
    with pytest.warns(UserWarning, match='left empty'): b.model.load_state_dict(part, strict=False)
    quietly(b, 'fit', 1)
    bank = b.memory.bank
    assert len(bank)==48 and (bank.features[:48].norm(dim=1)>0).all()

# classes
@pytest.mark.parametrize('head', [VoteHead, PrototypeHead, LDAHead])
@pytest.mark.parametrize('outputs', [5, 9])
def test_a_network_of_other_classes(head, outputs):
    "It was: index 7 is out of bounds"
    h = head(filled('classes'), k=5).eval()
    assert f'this model has {outputs} outputs' in err(h.mixed, torch.randn(4, outputs), X[:4])
    assert h.mixed(torch.randn(4, 10), X[:4]).shape==(4, 10)

def test_a_vote_that_was_told_nothing_of_classes():
    for labels,n in ((Y[:300],10),(torch.eye(10)[Y[:300]],10)):
        b = SlotBank(512, policy='fifo')
        b.write(X[:300], labels)
        assert 'this model has 5 outputs' in err(VoteHead(b, k=5).eval().mixed, torch.randn(4, 5), X[:4])
    b = SlotBank(512, policy='fifo')
    b.write(X[:300], Y[:300]%4)
    assert VoteHead(b, k=5).eval().mixed(torch.randn(4, 6), X[:4]).shape==(4, 6)    # of the last two there are none yet

def with_vocab(learn, vocab):
    from memo.data.tensors import CategoryMap
    for dl in learn.dls.loaders: dl.dataset.vocab = CategoryMap(list(vocab), sort=False, add_na=False)
    return learn

@pytest.mark.parametrize('head', [None, 'add', 'vote'])
def test_names_of_classes_are_kept_and_compared(head, tmp_path):
    names = [f'digit {i}' for i in range(10)]
    learn = with_vocab(learner(SlotBank(64, policy='fifo'), head), names)
    assert learn.memory.bank.vocab is None
    quietly(learn, 'fit', 1)
    bank = learn.memory.bank
    assert bank.vocab==names
    bank.save(tmp_path/'b.safetensors')
    assert Bank.load(tmp_path/'b.safetensors').vocab==names and copy.deepcopy(bank).vocab==names
    for other in (names[::-1], ['x', *names[1:]]):
        new = with_vocab(learner(Bank.load(tmp_path/'b.safetensors'), head), other)
        with pytest.raises(MemoError) as e: quietly(new, 'fit', 1)
        say = str(e.value)
        assert 'class 0' in say and repr(names[0]) in say and repr(other[0]) in say and 'reset' in say
        if head=='vote':
            with pytest.raises(MemoError): quietly(new, 'validate')
        else: quietly(new, 'validate')      # which asks for no label
        new.memory.bank.reset()
        quietly(new, 'fit', 1)
        assert new.memory.bank.vocab==other

def test_a_second_phase_with_other_names():
    learn = with_vocab(learner(ClassBank(10, capacity=8), None), 'abcdefghij')
    quietly(learn, 'fit', 1)
    with_vocab(learn, 'bacdefghij')
    with pytest.raises(MemoError, match="class 0 is 'a' there, 'b' here"): quietly(learn, 'fit', 1)

def test_names_that_loaders_do_not_say():
    for vocab,c in ((None,2), (['a'],2), ([],0), (3,3), (None,None)):
        b = SlotBank(4)
        tell_vocab(AttrDict(vocab=vocab, c=c), [b])
        assert class_names(AttrDict(vocab=vocab, c=c)) is None and b.vocab is None
    assert class_names(AttrDict()) is None
    assert class_names(AttrDict(vocab=[['the','a'],['neg','pos']], c=2))==['neg','pos']      # texts: words first
    assert class_names(AttrDict(vocab=[3, 5], c=2))==['3','5']

class Cached(SlotBank):
    "A bank with something that no state holds"
    def __init__(self, size=512, dim=None, policy='fifo', n_classes=None, seed=0):
        super().__init__(size, dim, policy, n_classes=n_classes, seed=seed)
        self.register_buffer('cache', torch.zeros(3), persistent=False)

def test_what_is_not_saved_is_not_missing():
    a,b = Cached(),Cached()
    a.write(X[:9], Y[:9], item=torch.arange(9))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        b.load_state_dict(a.state_dict())
    assert len(b)==9 and torch.equal(b.features, a.features) and b.cache.shape==(3,)

@pytest.mark.parametrize('inside', [False, True])
def test_a_file_calls_nothing_but_a_class_of_banks(inside, tmp_path):
    "Whatever else has been imported: files come from anybody"
    said = json.dumps(dict(kind='subprocess:Popen', args=['touch',str(tmp_path/'there')]))
    state,head = {'seen':torch.tensor(0)},dict(memo=said)
    if inside:      # a model
        state,head = {'memory.bank._extra_state':torch.tensor([*said.encode()], dtype=torch.uint8)},dict(config='{}')
    save_file(state, tmp_path/'b.safetensors', metadata=head)
    for f in (open_bank, *(() if inside else (Bank.load,))):
        assert 'subprocess:Popen, which is no class of banks' in err(f, tmp_path/'b.safetensors')
    time.sleep(.2)      # a process would need a moment
    assert not (tmp_path/'there').exists()
