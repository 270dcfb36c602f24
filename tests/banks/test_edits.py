"Rows are taken out of a bank and put in by hand: what is left is what a plain list would have, and nothing else"
import collections, copy, json
import pytest, torch
from hypothesis import given, settings, strategies as st
from contracts.made import build, parts, state_equal
from helpers.errors import err
from memo.banks.base import Bank
from memo.banks.classes import ClassBank
from memo.banks.compressed import CompressedBank
from memo.banks.index import Index
from memo.banks.kept import Kept
from memo.banks.key_value import CachedBank, TrainableBank
from memo.banks.patterns import AssociativeBank, CentroidBank, LearnedBank
from memo.banks.policies import policies
from memo.banks.slots import SlotBank

D,C,BASE = 6,3,10**15+7

def offer(items, labels, at=0):
    "Rows that no other call has, of items and of their groups, of three items each"
    g = torch.Generator().manual_seed(at)
    n = len(items)
    return dict(x=torch.randn(n, D, generator=g), y=torch.tensor(labels).long(), item=torch.tensor(items).long()+BASE,
                group=torch.tensor(items).long()//3+2*BASE)

makes = {f'slots {k}':(lambda k=k: SlotBank(8, policy=k)) for k in ('fifo','reservoir','rarity','hard')}
makes |= dict(cached=lambda: CachedBank(8), classes=lambda: ClassBank(C, capacity=4), budget=lambda: ClassBank(C, '500kB'),
              once=lambda: ClassBank(C, capacity=4, once=True), bytes=lambda: ClassBank(C, 4, dtype='int8'))
each = pytest.mark.parametrize('make', makes.values(), ids=list(makes))

def rows(bank):
    "(item, label, group) by slot"
    if bank.features is None: return {}
    _,_,y,i,g,valid = bank.rows()
    at = range(len(i)) if valid is None else valid.nonzero().squeeze(1).tolist()
    return {k:(int(i[k]),int(y[k]),int(g[k])) for k in at}

def count(rows): return collections.Counter(rows.values() if isinstance(rows, dict) else rows)

def check(bank):
    "Counts, ids and free slots agree"
    n = len(rows(bank))
    assert len(bank)==n<=bank.capacity_rows
    if bank.features is None: return
    _,norms,y,i,g,valid = bank.rows()
    assert int(bank.class_counts().sum())==n
    k = bank.n_classes*bank.capacity if isinstance(bank, ClassBank) else bank.size
    free = ~valid if valid is not None else torch.arange(k)>=n
    for name,empty in dict(features=0, labels=-1, items=-1, groups=-1, norms=0, scales=0, stamps=0, scores=0, hits=0).items():
        v = bank._buffers.get(name)
        if v is None or not v.ndim: continue
        assert bool((v.reshape(k, -1)[free]==empty).all()), f'{name} of free slots'
    if bank.taught is not None: assert len(bank.taught) and torch.isin(bank.taught, i).all()

def write(bank, items, labels, at):
    r = offer(items, labels, at)
    logits = 3*torch.eye(C)[r['y']]+torch.randn(len(items), C, generator=torch.Generator().manual_seed(at))
    return bank.write(**r, logits=logits)

def raw(bank):
    "All bytes of a bank's state"
    return b''.join(v.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
                    for v in bank.state_dict().values() if torch.is_tensor(v) and v.numel())

def traces(bank, slots):
    "What would tell of rows: their features, norms, ids"
    f,norms,_,i,_,_ = bank.rows()
    f = bank.features.flatten(0, -2)
    res = [f[k].contiguous().view(torch.uint8).numpy().tobytes() for k in slots]
    if isinstance(bank, SlotBank): res += [norms[k].numpy().tobytes() for k in slots]
    return res+[i[k].numpy().tobytes() for k in slots]

few = st.lists(st.integers(0, 14), min_size=1, max_size=6)
ops = st.lists(st.one_of(
    st.tuples(st.just('write'), few), st.tuples(st.just('write'), few), st.tuples(st.just('teach'), few),
    st.tuples(st.just('item'), few), st.tuples(st.just('group'), st.integers(0, 5)), st.tuples(st.just('label'), st.integers(0, C-1)),
    st.tuples(st.sampled_from(['load','copy','pickle']), st.none())), min_size=3, max_size=14)

@each
@settings(max_examples=40)
@given(ops=ops, seed=st.integers(0, 99))
def test_a_bank_is_as_a_plain_list(make, ops, seed, tmp_path_factory):
    bank,twin = make(),None
    for n,(op,arg) in enumerate(ops):
        was = rows(bank)
        if op in ('write','teach'): labels = [(o+seed+n)%C for o in arg]
        if op=='write':
            slot = write(bank, arg, labels, n)
            want = dict(was)
            for s,i,l in zip(slot.tolist(), arg, labels):
                if s>=0: want[s] = (i+BASE,l,i//3+2*BASE)
            assert count(rows(bank))==count(want)
        elif op=='teach':
            last = {i:l for i,l in zip(arg, labels)}
            mine = {(i+BASE,l,i//3+2*BASE) for i,l in last.items()}
            r = offer(arg, labels, n)
            slot,got = bank.teach(**r),rows(bank)
            for s,i,l in zip(slot.tolist(), arg, labels): assert s<0 or got[s]==(i+BASE,l,i//3+2*BASE)
            assert {o for o in got.values() if o[0]-BASE in last}==mine, 'all that is taught, and no other label of it'
            others = count([o for o in was.values() if o[0]-BASE not in last])
            assert not count([o for o in got.values() if o[0]-BASE not in last])-others
            assert torch.isin(torch.tensor(list(last))+BASE, bank.taught).all()
        elif op in ('item','group','label'):
            arg = [o+BASE for o in arg] if op=='item' else arg+2*BASE if op=='group' else arg
            def hit(o): return o[0] in arg if op=='item' else o[2]==arg if op=='group' else o[1]==arg
            gone = [k for k,o in was.items() if hit(o)]
            left = {o[0] for k,o in was.items() if k not in gone}
            said = traces(bank, gone) if gone else []
            assert bank.forget(**{op:arg})==len(gone)
            assert count(rows(bank))==count([o for k,o in was.items() if k not in gone])
            state = raw(bank)
            for o in said:
                if int.from_bytes(o[:8], 'little') not in left: assert o not in state
        else: bank = moved(bank, op, tmp_path_factory)
        check(bank)

def moved(bank, how, tmp):
    "A bank that was written to a file, or copied"
    if how=='copy': return copy.deepcopy(bank)
    if how=='pickle':
        f = tmp.mktemp('p')/'b.pkl'
        torch.save(bank, f)
        return torch.load(f, weights_only=False)
    f = tmp.mktemp('b')/'b.safetensors'
    bank.save(f)
    new = Bank.load(f)
    state_equal(new, bank)
    return new
