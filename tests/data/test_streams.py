"Streams: which items an experience has, in which order they come, and what cannot be one"
import pickle, random
import pytest, torch
import pandas as pd
from hypothesis import given, settings, strategies as st
from torch.utils.data import DataLoader as TorchDL, TensorDataset
from fastai.vision.all import CategoryBlock, ColReader, DataBlock, DataLoader, DataLoaders, TransformBlock
from memo.core import MemoError
from memo.data.items import item_ids
from memo.data.streams import Stream, order_by, split_stream
from memo.data.tensors import TensorDL, TensorSet

def loaders(ys=None, bs=4, shuffle=True, c=6, **info):
    ys = [torch.arange(n)%c for n in (30,12,18)] if ys is None else ys
    def mk(i, y):
        x = torch.arange(len(y)).float()[:,None]+100*i
        more = {k:v[i] for k,v in info.items()}
        ds = TensorSet(x, y, vocab=range(c), split_idx=int(i>0), **more)
        return TensorDL(dataset=ds, bs=bs, shuffle=shuffle and not i)
    return DataLoaders(*(mk(i, y) for i,y in enumerate(ys)), device='cpu')

def items(dl): return torch.cat([b[0] for b in dl]).flatten().long().tolist()

@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(0, 9), st.sampled_from(['class','iid']), st.booleans())
def test_every_item_is_in_one_experience(n, seed, by, ordered):
    dls = loaders()
    s = split_stream(dls, n=n, by=by, seed=seed)
    assert len(s)==n==len(s.names)==len(s.classes)
    assert sorted(torch.cat(s.parts[0]).tolist())==list(range(30))
    if by=='class':
        for k in (0,1,2): assert sorted(torch.cat(s.parts[k]).tolist())==list(range((30,12,18)[k]))
        assert sorted(sum(s.classes, []))==list(range(6))
        for k,dl in enumerate(dls.loaders):
            for i,at in enumerate(s.parts[k]): assert {*dl.dataset.y[at].tolist()}<={*s.classes[i]}
    got = [items(o.train) for o in s]
    assert sorted(sum(got, []))==list(range(30))

def test_an_experience_is_loaders_of_the_whole_s_kind():
    dls = loaders()
    s = split_stream(dls, n=3)
    assert s.whole is dls and s.c==6 and len(s[-1:])==1 and len(s[1:])==2 and s[1:].names==s.names[1:]
    for i,o in enumerate(s):
        assert o.c==6 and list(o.vocab)==list(dls.vocab) and o.n_inp==1 and len(o.loaders)==3 and o.path==dls.path
        for k in (0,1,2):
            assert type(o.loaders[k]) is TensorDL and sorted(items(o.loaders[k]))==(s.parts[k][i]+100*k).tolist()
            assert o.loaders[k].dataset.split_idx==dls.loaders[k].dataset.split_idx and o.loaders[k].bs==4
        assert torch.equal(item_ids(o.train), item_ids(dls.train)[s.parts[0][i]])       # memories know them again
    with pytest.raises(IndexError): s[3]

def test_order_is_drawn_by_the_seed_alone():
    "Not by what was drawn before, by the loaders' own state, or by which experiences were looked at"
    def orders(seed, look=range(3), noise=0):
        dls = loaders()
        for _ in range(noise): random.random(); items(dls.train)
        s = split_stream(dls, n=3, seed=0)
        s = Stream(dls, s.parts, seed=seed)
        return [items(s[i].train) for i in look]
    a = orders(0)
    assert a==orders(0, noise=3) and a[2]==orders(0, [2])[0] and a!=orders(1)
    assert all(o!=sorted(o) for o in a)
    s = split_stream(loaders(), n=3)
    dl = s[0].train
    got = []
    for e in (0,1,0):
        order_by(dl, f'0 0 {e}')
        got.append(items(dl))
    assert got[0]==got[2]!=got[1]

def test_classes_are_drawn_by_the_seed():
    a,b = (split_stream(loaders(), n=3, seed=s) for s in (0,0))
    assert a.classes==b.classes and any(split_stream(loaders(), n=3, seed=s).classes!=a.classes for s in range(1, 5))

domain = [torch.arange(n)//6%2 for n in (30,12,18)]

def test_domains():
    dls = loaders(camera=domain)
    s = split_stream(dls, by='domain', domain='camera')
    assert s.names==['0','1'] and s.classes==[[*range(6)]]*2
    for i in (0,1): assert s.parts[0][i].tolist()==(domain[0]==i).nonzero().flatten().tolist()
    both = split_stream(dls, n=3, by='both', domain='camera')
    assert len(both)==6 and all(set(a)==set(b) for a,b in zip(both.classes[:3], both.classes[3:]))
    for i in range(6):
        at = both.parts[2][i]
        assert (domain[2][at]==i//3).all() and {*dls.loaders[2].dataset.y[at].tolist()}<={*both.classes[i]}
    lists = split_stream(loaders(), by='domain', domain=[d.tolist() for d in domain])
    assert all(torch.equal(a, b) for p,q in zip(lists.parts, s.parts) for a,b in zip(p, q))

def test_items_of_domains_and_classes_that_are_not_trained_belong_to_no_experience():
    ys = [torch.tensor([0,1]*6), torch.tensor([0,1,2,5]), torch.tensor([0,1,2,2,5,1])]
    s = split_stream(loaders(ys), n=2)
    assert [len(o) for o in s.parts[2]] in ([1,2],[2,1]) and sum(len(o) for o in s.parts[1])==2
    d = [torch.zeros(12).long(), torch.tensor([0,1,0,1]), torch.tensor([7,0,0,0,0,7])]
    s = split_stream(loaders(ys, camera=d), by='domain', domain='camera')
    assert [o.tolist() for o in s.parts[2]]==[[1,2,3,4]]

def test_drift_sorts_and_keeps_the_order():
    t = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (30,12,18)]
    dls = loaders(time=t)
    s = split_stream(dls, n=3, drift='time')
    assert s.ordered
    for i,o in enumerate(s):
        got = items(o.train)
        assert got==items(o.train)==s.parts[0][i].tolist()
        assert t[0][got].tolist()==sorted(t[0][got].tolist())

def test_joint_is_everything_in_one():
    s = split_stream(loaders(), n=3)
    j = s.joint()
    assert len(j)==1 and sorted(items(j[0].train))==list(range(30)) and j.classes==[[*range(6)]]
    assert sorted(items(j[0].loaders[2]))==list(range(200, 218)) and not j.ordered

def test_a_part_of_a_joint_one_is_measured_as_it_is():
    s = split_stream(loaders(), n=3)
    assert s.joint()[:1].of is s and s[:2].of is None

def test_other_data_sets_and_loaders():
    d = loaders()
    sets = [TensorDataset(o.dataset.x, o.dataset.y) for o in d.loaders]
    lists = [[(x, int(y)) for x,y in zip(o.dataset.x, o.dataset.y)] for o in d.loaders]
    for dls in (DataLoaders(*(TorchDL(o, 4, shuffle=i==0) for i,o in enumerate(sets)), device='cpu'),
                DataLoaders(*(DataLoader(o, bs=4, shuffle=i==0) for i,o in enumerate(sets)), device='cpu'),
                DataLoaders(*(DataLoader(o, bs=4, shuffle=i==0) for i,o in enumerate(lists)), device='cpu')):
        s = split_stream(dls, n=3)
        assert [sorted(items(o.train)) for o in s]==[o.tolist() for o in s.parts[0]]
        orders = []
        for _ in range(2):
            dl = s[0].train
            order_by(dl, 'x')
            orders.append(items(dl))
        assert orders[0]==orders[1]!=sorted(orders[0])
        in_turn = Stream(dls, [[o.flip(0) for o in p] for p in s.parts], ordered=True)
        assert items(in_turn[1].train)==s.parts[0][1].flip(0).tolist()

def test_a_table_of_files():
    df = pd.DataFrame(dict(v=range(24), y=list('abcd')*6, cam=['x','y','y']*8))
    block = DataBlock((TransformBlock,CategoryBlock), get_x=ColReader('v'), get_y=ColReader('y'),
                      splitter=lambda d: ([i for i in range(24) if i%3], [i for i in range(24) if not i%3]))
    dls = block.dataloaders(df, bs=4, num_workers=0)
    s = split_stream(dls, n=2)
    rows = dls.train.dataset.items.index
    got = [sorted(int(v) for b in o.train for v in b[0]) for o in s]
    assert got==[df.v[rows[at]].tolist() for at in s.parts[0]]
    assert all(o.vocab==dls.vocab for o in s) and ', ' in s.names[0]
    both = split_stream(dls, by='domain', domain='cam')
    assert both.names==['y'] or both.names==['x','y']

def test_what_is_no_stream():
    dls = loaders()
    at = [torch.arange(n).tensor_split(2) for n in (30,12,18)]
    for parts,say in (([at[0], at[1]], '3 loaders'), ([at[0], at[1], at[2][:1]], 'as many experiences'),
                      ([[at[0][0], at[0][1][:0]], at[1], at[2]], 'experience 1 has no training items'),
                      ([[], [], []], 'no training items'),
                      ([[at[0][0], torch.tensor([30])], at[1], at[2]], 'positions from 0 to 29.*experience 1'),
                      ([at[0], [at[1][0], torch.tensor([-1])], at[2]], 'positions from 0 to 11 .*loader 1')):
        with pytest.raises(MemoError, match=say): Stream(dls, parts)
    for o in (torch.ones(30, dtype=bool), [0.,.5], ['a'], 'ab', [float('nan')], {}):
        with pytest.raises(MemoError, match='positions are whole numbers.*experience 1'):
            Stream(dls, [[at[0][0], o], at[1], at[2]])
    assert len(Stream(dls, [[at[0][0].double()], [[]], [at[2][0].numpy()]]).parts[0][0])==15
    for o in (None, 3, [1,2,3]):
        with pytest.raises(MemoError, match='a list of positions'): Stream(dls, o)
    for f in (lambda: Stream(None, at), lambda: split_stream([1])):
        with pytest.raises(MemoError, match='DataLoaders are needed'): f()
    with pytest.raises(MemoError, match='2 names'): Stream(dls, at, names=['a'])
    y = [torch.arange(30)%6, torch.arange(12)%6, torch.arange(18)%6]
    y[0][3] = -1
    with pytest.raises(MemoError, match='experience 0 .*no class'): Stream(loaders(y), at)
    for kw,say in ((dict(n=0), 'n'), (dict(n=7), '6 classes.*7 groups; at most 6'), (dict(by='clas'), 'class'),
                   (dict(by='domain'), 'needs the domain of each item: a column'),
                   (dict(domain='camera'), 'no use for it; take it out'),
                   (dict(by='domain', domain='camera'), 'camera'),
                   (dict(seed=None), 'seed'), (dict(drift=[[float('nan')]*30,None,None]), 'drift: numbers.*nan'),
                   (dict(drift=[['a']*30,None,None]), "drift: numbers.*'a'"),
                   (dict(n=31, by='iid'), 'no training items|31')):
        with pytest.raises(MemoError, match=say): split_stream(dls, **kw)
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self): yield 1
    with pytest.raises(MemoError, match='stream'): split_stream(DataLoaders(DataLoader(Endless(), bs=2), device='cpu'))

def test_a_stream_is_no_loaders():
    "Who gives a Learner the stream itself, or asks for an experience that is not there, is told what to take"
    s = split_stream(loaders(), 3)
    for k in ('train','train_ds','valid','loaders','one_batch'):
        with pytest.raises(AttributeError, match=f'a stream has no {k}: stream.dls is'): getattr(s, k)
    with pytest.raises(AttributeError, match="no attribute 'lables'"): s.lables
    with pytest.raises(IndexError, match='experiences 0 to 2 are there, found 3'): s[3]
    with pytest.raises(IndexError): s[-4]
    assert len(list(s))==3 and len(s[-1].train.dataset)==len(s.parts[0][2])
    back = pickle.loads(pickle.dumps(s))
    assert back.names==s.names and not hasattr(back, 'train')

def test_nothing_is_copied_before_it_is_needed():
    dls = loaders()
    s = split_stream(dls, n=3)
    assert s[0].train.dataset.x.untyped_storage().data_ptr()!=dls.train.dataset.x.untyped_storage().data_ptr()
    assert all(not isinstance(v, DataLoaders) or v is dls for v in vars(s).values())
