"Breaking any one thing that a contract asks for fails a check: else a part could lack it, and nobody would know"
import contextlib
import pytest, torch
from torch import nn
import toys.baseline, toys.bank, toys.callback, toys.head, toys.loss, toys.metric, toys.model, toys.sampler, toys.task
from memo.banks.base import Bank
from memo.banks.described import Described
from memo.banks.slots import SlotBank
from memo.banks.classes import ClassBank
from memo.heads.base import MemoryHead, flat
from memo.heads.replay import ReplayHead
from memo.heads.retrieval import RetrievalHead
from memo.heads.mixture import LDAHead, MixHead, PrototypeHead, VoteHead
from . import bank_checks, head_checks, other_checks, test_banks, test_heads

def nothing(self, *args, **kwargs): return None

_failed = {}

def caught(checks, run, tmp_path):
    "Name of a check that fails, those first that failed last"
    for k,check in sorted(checks.items(), key=lambda o: -_failed.get(o[0], 0)):
        d = tmp_path/k
        d.mkdir()
        try: run(check, d)
        except pytest.skip.Exception: continue
        except (Exception, pytest.fail.Exception):
            _failed[k] = 1+max(_failed.values(), default=0)
            return k
    return None

def breaks(cls, name, f, as_what=None):
    "A case: `f(what was there)` takes its place"
    return pytest.param(cls, name, f, id=f'{cls.__name__}.{name}' + (f'-{as_what}' if as_what else ''))

# banks

def slots_are_positions(was):
    def write(self, x, *args, **kwargs): was(self, x, *args, **kwargs); return torch.arange(len(x))
    return write
def stores_nothing(was): return lambda self, x, *args, **kwargs: torch.full((len(x),), -1)
def counts_outside(was):
    def write(self, x, *args, **kwargs):
        self.n = getattr(self, 'n', 0)+1
        return was(self, x+self.n*1e-3, *args, **kwargs)
    return write
def makes_new_buffers(was):
    def write(self, *args, **kwargs):
        res = was(self, *args, **kwargs)
        self.items = self.items.clone()
        return res
    return write
def draws_global_numbers(was):
    def write(self, x, *args, **kwargs): return was(self, x+.01*torch.rand(len(x), 1), *args, **kwargs)
    return write
def forgets_items(was): return lambda self, x, y=None, logits=None, item=None, group=None: was(self, x, y, logits)
def forgets_groups(was):
    return lambda self, x, y=None, logits=None, item=None, group=None: was(self, x, y, logits, item)
def takes_nan(was): return lambda self, x, *args, **kwargs: was(self, torch.nan_to_num(x), *args, **kwargs)
def finds_itself(was): return lambda self, q, k=3, item=None, group=None, **kw: was(self, q, k, None, group, **kw)
def finds_its_group(was): return lambda self, q, k=3, item=None, group=None, **kw: was(self, q, k, item, None, **kw)
def next_row(was):
    def read(self, *args, **kwargs):
        r = was(self, *args, **kwargs)
        return r._replace(index=torch.where(r.index>=0, (r.index+1)%max(1, len(self)), -1))
    return read
def constant_value(was):
    return lambda self, *args, **kwargs: (r := was(self, *args, **kwargs))._replace(value=r.value.detach()*0)
def no_gradient(was):
    return lambda self, *args, **kwargs: (r := was(self, *args, **kwargs))._replace(value=r.value.detach())
def always_class_0(was):
    return lambda self, q, *args, **kwargs: (torch.zeros(len(q), dtype=torch.long), torch.ones(len(q)))
def other_order(was):
    def rows(self):
        f,*rest = was(self)
        return (f.flip(0) if torch.is_tensor(f) else f[torch.arange(len(f)-1, -1, -1)],*rest)
    return rows
def only_the_count(was): return lambda self: self.count.fill_(0)
def of_an_empty_one(was): return lambda self, path: was(type(self)(**self.config()), path)
def without_rows(was):
    def load(path, *args, **kwargs):
        b = was(path, *args, **kwargs)
        b.reset()
        return b
    return staticmethod(load)
def tensors(was): return lambda self: {**was(self), 'rows':self.count}
def zeros(was): return lambda self: torch.zeros_like(was(self))
def empty(was): return lambda self: {}
def one(was): return property(lambda self: 1)
def half(was): return lambda self, fn, recurse=True: nn.Module._apply(self, fn, recurse)
def changed_by_looking(was):
    def read(self, *args, **kwargs):
        self.seen += 1
        return was(self, *args, **kwargs)
    return read

by_each = [(slots_are_positions,'write'), (stores_nothing,'write'), (counts_outside,'write'),
           (makes_new_buffers,'write'), (draws_global_numbers,'write'), (forgets_items,'write'),
           (forgets_groups,'write'), (takes_nan,'write'), (other_order,'rows'), (one,'capacity_rows')]
by_all = [(finds_itself,'read'), (finds_its_group,'read'), (next_row,'read'), (constant_value,'read'),
          (no_gradient,'read'), (changed_by_looking,'read'), (always_class_0,'classify'), (only_the_count,'reset'),
          (of_an_empty_one,'save'), (without_rows,'load'), (tensors,'stats'), (zeros,'class_counts'), (empty,'config')]
bank_cases = [breaks(c, n, f, f.__name__) for c in (SlotBank,ClassBank,toys.bank.Ring)
              for f,n in by_each] + [breaks(Bank, n, f, f.__name__)
                                     for f,n in by_all] + [breaks(Described, '_apply', half)]
bank_cases += [breaks(c, n, lambda was: nothing, 'nothing') for c in (SlotBank,ClassBank,toys.bank.Ring)
               for n in ('write','rows')]
bank_cases += [breaks(Bank, n, lambda was: nothing, 'nothing')
               for n in ('read','classify','reset','stats','save','rekey','class_counts','config','header','describe',
                         '_take','__len__')]
bank_cases += [breaks(Bank, 'load', lambda was: staticmethod(nothing), 'nothing'),
               breaks(Described, '_load_from_state_dict', lambda was: nn.Module._load_from_state_dict),
               breaks(ClassBank, '_replace', lambda was: nothing, 'nothing'),
               breaks(SlotBank, '_match', lambda was: lambda self, item: torch.full_like(item, -1))]

def _of(cls):
    "Parts to try it on: those of that class"
    from memo.registry import find, known
    return [n for n in known('bank') if n in ('SlotBank','ClassBank','toy_ring') and issubclass(find('bank', n), cls)]

@pytest.mark.parametrize('cls,name,f', bank_cases)
def test_a_broken_bank_is_noticed(cls, name, f, monkeypatch, tmp_path):
    new = f(getattr(cls, name) if not isinstance(vars(cls).get(name), property) else vars(cls)[name].fget)
    monkeypatch.setattr(cls, name, new)
    def found(n): return caught(bank_checks.checks, lambda check, d: test_banks.run(check, n, {}, d), _made(tmp_path/n))
    assert any(map(found, _of(cls))), f'{cls.__name__}.{name} is broken, and no check says so'

def _made(p):
    p.mkdir()
    return p

# heads

def plus_one(was): return lambda self, x, z: was(self, x, z)+1
def on_itself(was): return lambda self, n=None: (None,None)
@contextlib.contextmanager
def _stays_on(self): yield self
def stays_on(was): return _stays_on
def four(was): return lambda self: {k:(lambda seen, y: None) for k in 'abcd'}
def not_a_number(was): return lambda self, z, y: 1.
def detached(was): return lambda self, z, y: None if (l := was(self, z, y)) is None else l.detach()
def of_nan(was): return lambda self, logits: logits*float('nan')
def same(was): return lambda self, logits: logits
def unmixed(was): return lambda self, logits, z, item=None, group=None: logits
def chooses_nothing(was): return lambda self, collected, **kwargs: {}
def keeps_features(was):
    def forward(self, x):
        self.kept = flat(x).detach()
        return was(self, x)
    return forward
def answers_for_others(was):
    def fuse(self, x, z):
        self.shared = x
        import time
        time.sleep(1e-3)
        return was(self, self.shared[:len(x)] if len(self.shared)>=len(x) else x, z)
    return fuse
def flipped(was): return not was
def none_needed(was): return ()
def not_built(was): return lambda self, dim, n_classes: setattr(self, 'second', nn.Linear(1, 1))
def any_labels(was): return lambda self, y: None
def constant(was): return lambda self, z, item=None, group=None: was(self, torch.zeros_like(z))

head_cases = [breaks(RetrievalHead, 'fuse', plus_one), breaks(RetrievalHead, 'fuse', answers_for_others, 'shared'),
              breaks(RetrievalHead, 'fuse', lambda was: lambda self, x, z: x, 'same'),
              breaks(RetrievalHead, 'fuse', lambda was: nothing, 'nothing'),
    breaks(MemoryHead, 'fuse', plus_one), breaks(MemoryHead, 'own', on_itself), breaks(MemoryHead, 'off', stays_on),
    breaks(MemoryHead, 'forward', keeps_features), breaks(MemoryHead, 'columns', four),
    breaks(MemoryHead, 'config', empty), breaks(MemoryHead, 'loss', not_a_number),
    breaks(MemoryHead, 'recall', lambda was: nothing, 'nothing'),
    *[breaks(c, k, flipped, 'flipped')
      for c,k in ((RetrievalHead,'trains'),(ReplayHead,'adds_rows'),(ReplayHead,'trains'),(MixHead,'mixes'),
                  (MemoryHead,'mixes'),(MemoryHead,'trains'),(MemoryHead,'adds_rows'),(toys.head.MyHead,'mixes'))],
    *[breaks(c, 'needs', none_needed) for c in (ReplayHead,PrototypeHead)],
    breaks(ReplayHead, 'fuse', lambda was: MemoryHead.fuse, 'watches'), breaks(MixHead, 'check_labels', any_labels),
    breaks(MixHead, 'answer', of_nan), breaks(MixHead, 'answer', same),
    breaks(MixHead, 'answer', lambda was: nothing, 'nothing'), breaks(MixHead, 'mixed', unmixed),
    breaks(MixHead, 'fit', chooses_nothing), breaks(MixHead, 'chosen', empty),
    breaks(MixHead, 'refit', chooses_nothing), breaks(VoteHead, 'refit', chooses_nothing),
    breaks(VoteHead, 'columns', four),
    breaks(VoteHead, 'hits', lambda was: lambda self, seen, y: torch.full((len(y),), 2.)),
    breaks(VoteHead, 'recall', constant),
    breaks(LDAHead, 'rekeyed', lambda was: nothing, 'nothing'),
    breaks(toys.head.MyHead, 'build', not_built), breaks(toys.head.MyHead, 'loss', detached),
    breaks(toys.head.MyHead, 'loss', not_a_number, 'float'), breaks(toys.head.MyHead, 'fit', chooses_nothing),
    breaks(toys.head.MyHead, 'answer', same)]

def _heads_of(cls):
    from memo.registry import find
    from .made import pairs
    own = [(b,h) for b,h in pairs() if issubclass(find('head', h), cls) and b in ('SlotBank','ClassBank')]
    each = {h:(b,h) for b,h in own}.values()        # every head before the next bank
    return list(dict.fromkeys([*[o for o in own if find('head', o[1]) is cls], *each, *own]))

# where to look first, as all checks on all heads take long; another one will do
likely = dict(own=('SlotBank','add','hides_own_rows'), off=('SlotBank','vote','off_is_the_network'),
              fuse=('ClassBank','add','two_threads'),
              check_labels=('ClassBank','prototype','several_labels'),
              chosen=('ClassBank','prototype','fits_what_it_chooses'),
              refit=('ClassBank','prototype','chooses_after_each_epoch'), rekeyed=('ClassBank','lda','encoded_anew'),
              config=('ClassBank','watch','config_is_the_signature'),
              forward=('ClassBank','watch','nothing_of_a_call_stays'))

@pytest.mark.slow
@pytest.mark.parametrize('cls,name,f', head_cases)
def test_a_broken_head_is_noticed(cls, name, f, monkeypatch, tmp_path):
    ps = _heads_of(cls)      # before it is broken
    if name in likely:
        *pair,check = likely[name]
        ps.sort(key=lambda o: o!=tuple(pair))
        _failed[check] = 1+max(_failed.values(), default=0)
    monkeypatch.setattr(cls, name, f(getattr(cls, name)))
    from memo.registry import find
    def lacking():
        try:
            for h in {h for _,h in ps}: test_heads.test_a_bank_that_lacks_what_it_needs('SlotBank', h)
        except (Exception, pytest.fail.Exception): return True
        return False
    def found(o):
        return caught(head_checks.checks, lambda check, d: test_heads.run(check, *o, d), _made(tmp_path/'-'.join(o)))
    said = name=='needs' and lacking() or any(map(found, ps)) or lacking()
    assert said, f'{cls.__name__}.{name} is broken, and no check says so'

# the others, on the toys

def returns(v): return lambda was: lambda *args, **kwargs: v
other_cases = [('loss','toy_smooth',toys.loss.MyLoss,n,f)
               for n,f in (('forward',returns(None)),
                           ('forward',lambda was: lambda self, x, y: was(self, x, y).detach()),
                           ('forward',lambda was: lambda self, x, y: -was(self, x, y)),
        ('activation',lambda was: lambda self, x: x), ('decodes',lambda was: lambda self, x: x),
        ('__reduce__',lambda was: lambda self: 1/0))]
other_cases += [('sampler','toy_repeated',toys.sampler.Repeated,n,f)
                for n,f in (('get_idxs',lambda was: lambda self: [0]*self.n),
                            ('get_idxs',lambda was: lambda self: was(self)[:3]),
                            ('get_idxs',lambda was: lambda self: list(range(self.n))))]
other_cases += [('model','toy_mlp',toys.model.MyModel,'forward',f)
                for f in (returns(None), lambda was: lambda self, x: was(self, x)[:,:-1], lambda was: lambda self,
                          x: was(self, x)*float('nan'))]
other_cases += [('baseline','toy_no_decay',toys.baseline.NoDecay,'overrides',f)
                for f in (returns({}), returns({'train.nonsense':1}), returns({'train.epochs':-1}))]
other_cases += [('baseline','toy_cooler',toys.baseline.Cooler,n,f)
                for n,f in (('fit',returns((lambda l: l*float('nan'),{}))), ('fit',returns((lambda l: -l,{}))),
                            ('fit',returns((lambda l: l[:,:3],{}))), ('works_on',lambda was: 'magic'),
        ('fit',lambda was: lambda self, train, valid, dls: ((lambda l: l), dict(x=torch.tensor(1.)))))]
other_cases += [('task','toy_parity',toys.task.MyTask,n,f)
                for n,f in (('suits',returns(True)), ('suits',returns(False)),
                            ('scores',lambda was: lambda self,
                             *a: {k:v for k,v in was(self, *a).items() if k!='first'}),
        ('scores',lambda was: lambda self, *a: {**was(self, *a), 'first':torch.tensor(1.)}),
        ('predictions',lambda was: lambda self, *a: was(self, *a)[:3]), ('activation',lambda was: lambda self, l: l),
        ('metrics',returns(None)))]
other_cases += [('callback','toy_counter',toys.callback.MyCallback,n,f)
                for n,f in (('after_batch',lambda was: lambda self: 1/0),
                            ('__getstate__',lambda was: lambda self: 1/0))]

def _lambda(was): return was

@pytest.mark.parametrize('kind,part,cls,name,f', other_cases,
                         ids=[f'{c.__name__}.{n}-{i}' for i,(_,_,c,n,_) in enumerate(other_cases)])
def test_another_broken_part_is_noticed(kind, part, cls, name, f, monkeypatch, tmp_path):
    monkeypatch.setattr(cls, name, f(getattr(cls, name, None)), raising=False)
    assert caught(other_checks.checks[kind], lambda check, d: other_checks.run(check, part, d),
                  tmp_path), f'{cls.__name__}.{name} is broken, and no check says so'

def _whole_data(**kw): return toys.data.my_data(**kw)
data_cases = dict(two_parts=lambda dls: dls.loaders.pop(),
                  same_items=lambda dls: setattr(dls.valid.dataset, 'items', dls.train.dataset.items[:32]),
                  no_order=lambda dls: setattr(dls.train, 'shuffle', False),
    floats=lambda dls: setattr(dls.train.dataset, 'y', dls.train.dataset.y.float()),
    nan=lambda dls: setattr(dls.valid.dataset, 'x', dls.valid.dataset.x.float()*float('nan')))

@pytest.mark.parametrize('how', data_cases.values(), ids=data_cases)
def test_a_broken_data_set_is_noticed(how, monkeypatch, tmp_path):
    import toys.data
    from memo import registry
    whole,facts = registry._here['data']['toy_parity']
    def broken(n=48, bs=16, seed=0, sampling=None, device=None):
        dls = whole(n, bs, seed, sampling, device)
        how(dls)
        return dls
    broken.__module__,broken.__qualname__ = 'toys.data','my_data'
    monkeypatch.setitem(registry._here['data'], 'toy_parity', (broken,facts))
    assert caught(other_checks.checks['data'], lambda check, d: other_checks.run(check, 'toy_parity', d), tmp_path)

def test_nothing_is_broken(tmp_path):
    "What is whole passes, with the same runner"
    assert caught(bank_checks.checks, lambda check, d: test_banks.run(check, 'SlotBank', {}, d),
                  _made(tmp_path/'bank')) is None
    assert caught(other_checks.checks['loss'], lambda check, d: other_checks.run(check, 'toy_smooth', d),
                  _made(tmp_path/'loss')) is None
    assert caught(other_checks.checks['data'], lambda check, d: other_checks.run(check, 'toy_parity', d),
                  _made(tmp_path/'data')) is None
    assert caught(head_checks.checks, lambda check, d: test_heads.run(check, 'SlotBank', 'toy_second', d),
                  _made(tmp_path/'head')) is None
