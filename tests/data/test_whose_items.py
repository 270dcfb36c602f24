"Ids of sets: what a set is made of, however its code reads it; what is said where ids change or cannot last"
import functools, logging, threading, warnings
import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import ColReader, Datasets, ItemGetter, PILImageBW, Transform, noop
from helpers.worlds import RAW, X, Y
from memo.data.digests import digest, kept_by_itself
from memo.data.items import item_ids, known_ids
from torch.utils.data import ConcatDataset, Dataset, Subset

def same(a, b): return torch.equal(item_ids(a), item_ids(b))
def shared(a, b): return bool(torch.isin(a, b).any())

class Twenty(Dataset):
    def __init__(self, k=0): self.k = k
    def __len__(self): return 20
class ByNumber(Twenty):
    def __getitem__(self, i): return X[self.k*20+i],Y[self.k*20+i]
class ByDict(Twenty):
    def __init__(self, k=0): self.cfg = dict(start=k*20)
    def __getitem__(self, i): return X[self.cfg['start']+i],0
class Reader:
    def __init__(self, k): self.k = k
    def read(self, i): return X[self.k*20+i]
class ByObject(Twenty):
    def __init__(self, k=0): self.reader = Reader(k)
    def __getitem__(self, i): return self.reader.read(i),0
start = 0
def read(i): return X[start+i]
def through(i): return read(i)
class ByHelpers(Twenty):
    def __getitem__(self, i): return through(i),0

def turn(ds):
    global start
    if isinstance(ds, ByNumber): ds.k = 1
    elif isinstance(ds, ByDict): ds.cfg['start'] = 20
    elif isinstance(ds, ByObject): ds.reader.k = 1
    else: start = 20

@pytest.mark.parametrize('make', [ByNumber, ByDict, ByObject, ByHelpers])
@pytest.mark.parametrize('wrap', [noop, lambda d: Subset(d, range(5, 15)), lambda d: ConcatDataset([d, Twenty2()])])
def test_a_set_that_is_turned_has_other_items(make, wrap, monkeypatch):
    "By a number, a dict, an object in it, a global that a helper of a helper reads"
    monkeypatch.setitem(globals(), 'start', 0)
    ds = make()
    was = item_ids(wrap(ds))
    with pytest.warns(UserWarning, match='is not what it was'):
        turn(ds)
        now = item_ids(wrap(ds))
    n = 10 if len(now)==10 else 20
    other = make()
    turn(other)
    assert not shared(was[:n], now[:n]) and torch.equal(now[:n], item_ids(wrap(other))[:n])

class Twenty2(Twenty):
    def __getitem__(self, i): return i

def test_in_a_module_of_ones_own(tmp_path, monkeypatch):
    (tmp_path/'own_data.py').write_text('rows = list(range(20))\nshift = 0\ndef get(i): return rows[i]+shift\n')
    monkeypatch.syspath_prepend(tmp_path)
    import own_data
    class Set(Twenty):
        def __getitem__(self, i): return own_data.get(i)
    a = item_ids(Set())
    own_data.shift = 5
    assert not shared(a, item_ids(Set()))
    own_data.shift = 0
    assert torch.equal(a, item_ids(Set()))

class Fills(Twenty):
    "Counts, caches, opens late: in one line with what its items are made of, through a name, in a method"
    def __init__(self, k=0):
        super().__init__(k)
        self.x,self.n,self.cache,self.order,self.late = X[k*20:k*20+20],0,{},[],None
    @property
    def opened(self):
        if self.late is None: self.late = self.x*2
        return self.late
    def _count(self): self.n += 1
    def __getitem__(self, i):
        self._count()
        c = self.cache
        if i not in c:
            c[i] = self.opened[i]
            self.order.append(self.x[i])
        return self.cache.setdefault(i, self.x[i])

def test_what_a_set_keeps_for_itself():
    assert kept_by_itself(Fills)-{None}=={'n','cache','order','late'}
    ds = Fills()
    was = item_ids(ds)
    for i in range(20): ds[i]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert torch.equal(item_ids(ds), was) and same(ds, Fills()) and not shared(was, item_ids(Fills(1)))

log = logging.getLogger(__name__)
def down(n): return down(n-1) if n else 0
class Usual(Twenty):
    "What code often has around it"
    @functools.lru_cache(maxsize=None)
    def load(self, i): return X[i]
    def __getitem__(self, i):
        log.debug('item %s', i)
        return self.load(i),down(3)
def test_usual_code_can_be_digested(): assert digest(Usual()) is not None and same(Usual(), Usual())

class Opens(Twenty):
    def __init__(self):
        super().__init__()
        self.file = open(__file__)
    def __getitem__(self, i): return X[i],Y[i]
def test_what_an_id_is_a_hash_of():
    kinds = [known_ids(o)[1] for o in (Datasets(['a','b'], [noop]), ByNumber(), Opens(), Subset(Opens(), [1]),
                                       ConcatDataset([ByNumber(), Opens()]))]
    assert kinds==['content','set','process','process','process']

def _tensor(o): return torch.tensor(np.array(o)).float()
class opens(Transform):
    def encodes(self, o:object): return _tensor(o)
cells = dict(array=lambda k: X[k].numpy(), tensor=lambda k: X[k], image=lambda k: PILImageBW.create(RAW[k,0].numpy()),
             dict=lambda k: dict(x=X[k], name=f'{k}'), ragged=lambda k: X[k,0,:2+k%5].numpy(),
             mixed=lambda k: X[k] if k%2 else X[k].numpy())
@pytest.mark.parametrize('getter', [ColReader('image'), lambda r: r['image'], lambda r: r.image])
@pytest.mark.parametrize('cell', cells)
def test_cells_are_known_by_what_they_hold(cell, getter):
    "In another order, with another label or column, in another split"
    df = pd.DataFrame(dict(image=pd.Series([cells[cell](k) for k in range(30)], dtype=object), label=Y[:30].numpy()))
    def ids(df): return item_ids(Datasets(df, [[getter], [ColReader('label')]]))
    was = ids(df)
    assert len(was.unique())==30 and torch.equal(ids(df.assign(label=0, more=.5)), was)
    assert torch.equal(ids(df.iloc[[7,3,20]]), was[[7,3,20]])
    assert torch.equal(ids(df.iloc[::-1].reset_index(drop=True)), was.flip(0))

@pytest.mark.parametrize('make', [lambda k, y: (X[k],y), lambda k, y: (X[k],torch.tensor(y)),
                                  lambda k, y: (PILImageBW.create(RAW[k,0].numpy()),y), lambda k, y: (X[k].numpy(),y)])
def test_pairs_in_a_list(make):
    "A corrected label leaves an image what it is"
    a,b = ([make(k, (k+s)%3) for k in ks] for s,ks in ((0,range(20)), (1,range(19, 4, -1))))
    assert torch.equal(item_ids(a)[5:], item_ids(b).flip(0)) and len(item_ids(a).unique())==20
    def ids(items): return item_ids(Datasets(items, [[ItemGetter(0)], [ItemGetter(1)]]))
    assert torch.equal(ids(a)[5:], ids(b).flip(0))

def test_columns_are_read_alike_in_two_ways():
    "By rows of the frame, and all at once"
    from memo.data import items as m
    df = pd.DataFrame(dict(f=[f'{i}.png' for i in range(50)], n=np.arange(50), m=[None, *range(49)],
                           c=pd.Categorical([f'{i%7}-{i}' for i in range(50)]), _u=range(50), y=0))
    for cols in ('f', 'n', 'm', 'c', '_u', ['f','n']):
        ds = [Datasets(df, [[ColReader(cols)], [ColReader('y')]]) for _ in range(2)]
        a,quick = item_ids(ds[0]),m._quick_rows
        m._quick_rows = lambda items, f: m._rows(items)
        try: assert torch.equal(a, item_ids(ds[1])) and len(a.unique())==50, cols
        finally: m._quick_rows = quick

def test_numbers_mean_something_in_one_set_only():
    a,b = (pd.DataFrame(dict(n=range(k, k+20), y=0)) for k in (0, 5))
    a,b = (item_ids(Datasets(o, [[ColReader('n')], [ColReader('y')]])) for o in (a, b))
    assert not shared(a, b)

@pytest.mark.slow
def test_a_million_items():
    n = 10**6
    for ds in (Datasets([f'{i}.png' for i in range(n)], [[noop]]),
               Datasets(pd.DataFrame(dict(f=[f'{i}.png' for i in range(n)])), [[ColReader('f')]])):
        ids = item_ids(ds)
        assert len(ids.unique())==n and item_ids(ds) is ids

class Holds(Dataset):
    def __init__(self, what): self.what = what
    def __len__(self): return 4
    def __getitem__(self, i): return torch.zeros(2),0

unread = dict(sparse=lambda: torch.eye(3).to_sparse(), meta=lambda: torch.ones(2, device='meta'),
              nested=lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
              locks=lambda: {threading.Lock()})
@pytest.mark.parametrize('kind', unread)
def test_what_cannot_be_read_gives_ids_of_this_process(kind):
    o = unread[kind]()
    assert digest(o) is None
    for ds in (Holds(o), [(o,0),(o,1)]):
        ids,kind = known_ids(ds)
        assert kind=='process' and len(ids.unique())==len(ids)==len(ds)

class Named:
    def __init__(self, name): self.name = name
def test_objects_in_a_set_are_their_content():
    "Not their addresses, which are others in each process"
    assert digest({Named('a'),Named('b')})==digest({Named('b'),Named('a')})!=digest({Named('a')})
    assert digest({'a','b',('c',1)})==digest(frozenset([('c',1),'b','a']))
