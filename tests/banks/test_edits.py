"Rows are taken out of a bank and put in by hand: what is left is what a plain list would have, and nothing else"
import collections, copy, json, time
import pytest, torch
from hypothesis import given, settings, strategies as st
from contracts.made import build, parts, state_equal
from helpers.errors import err
from memo.banks.base import Bank
from memo.banks.classes import ClassBank
from memo.banks.compressed import CompressedBank
from memo.banks.kept import Kept
from memo.banks.key_value import CachedBank, TrainableBank
from memo.banks.patterns import AssociativeBank, CentroidBank, LearnedBank
from memo.banks.slots import SlotBank
from memo.core import MemoError

D,C,BASE = 6,3,10**15+7

def offer(items, labels, at=0):
    "Rows that no other call has, of items and of their groups, of three items each"
    g = torch.Generator().manual_seed(at)
    n = len(items)
    return dict(x=torch.randn(n, D, generator=g), y=torch.tensor(labels).long(), item=torch.tensor(items).long()+BASE,
                group=torch.tensor(items).long()//3+2*BASE)

makes = {f'slots {k}':(lambda k=k: SlotBank(8, policy=k)) for k in ('fifo','reservoir','rarity','hard')}
makes |= dict(cached=lambda: CachedBank(8), classes=lambda: ClassBank(C, capacity=4),
              budget=lambda: ClassBank(C, '500kB'),
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
    for name in 'features labels items groups norms scales stamps scores hits'.split():
        v,empty = bank._buffers.get(name),-1 if name in ('labels','items','groups') else 0
        if v is None or not v.ndim: continue
        assert bool((v.reshape(k, -1)[free]==empty).all()), f'{name} of free slots'
    if bank.taught is not None: assert torch.isin(bank.taught[bank.taught>=0], i).all()

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
    st.tuples(st.just('item'), few), st.tuples(st.just('group'), st.integers(0, 5)),
    st.tuples(st.just('label'), st.integers(0, C-1)),
    st.tuples(st.sampled_from(['load','copy','pickle']), st.none())), min_size=3, max_size=14)

@each
@settings(max_examples=25)
@given(ops=ops, seed=st.integers(0, 99))
def test_a_bank_is_as_a_plain_list(make, ops, seed, tmp_path_factory):
    bank = make()
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

def filled(make, n=12, at=0):
    bank = make()
    for i in range(at, at+n): write(bank, [i], [i%C], 100+i)
    return bank

# --- what goes on afterwards is as if the rows had never been there

@settings(max_examples=40)
@given(n=st.integers(1, 14), gone=st.sets(st.integers(0, 13)), more=st.integers(1, 9))
def test_a_ring_goes_on_with_its_oldest_row(n, gone, more):
    bank,twin = filled(lambda: SlotBank(6, policy='fifo'), n),SlotBank(6, policy='fifo')
    kept = [i-BASE for i in bank.items.tolist() if i>=0]
    bank.forget(item=[o+BASE for o in gone])
    for i in sorted(o for o in kept if o not in gone): write(twin, [i], [i%C], 100+i)
    for i in range(20, 20+more):
        for b in (bank,twin): write(b, [i], [i%C], 100+i)
        assert sorted(bank.items.tolist())==sorted(twin.items.tolist())
        order = {i:f for i,f in zip(bank.items.tolist(), bank.features)}
        for i,f in zip(twin.items.tolist(), twin.features): assert i<0 or torch.equal(order[i], f)

def shares(make, label, seeds=600):
    "How often old rows, and new ones, are in a sample of 8 when 4 of 24 old ones were forgotten and 20 new ones came"
    old = new = 0.
    for seed in range(seeds):
        bank = make(seed)
        r = torch.arange(24)
        x = torch.randn(44, D, generator=torch.Generator().manual_seed(seed))
        bank.write(x[:24], label(24), item=r+BASE)
        bank.forget(item=torch.arange(4)+BASE)
        for i in range(24, 44, 5): bank.write(x[i:i+5], label(5), item=torch.arange(i, i+5)+BASE)
        got = torch.tensor([o[0]-BASE for o in rows(bank).values()])
        assert not bool((got<4).any())
        old,new = old+float((got<24).sum())/20,new+float((got>=24).sum())/20
    return old/seeds,new/seeds

@pytest.mark.parametrize('make', [lambda s: SlotBank(8, policy='reservoir', seed=s), lambda s: ClassBank(2, 8, seed=s)],
                         ids=['slots','classes'])
def test_old_and_new_rows_are_equally_likely_in_a_sample(make):
    old,new = shares(make, lambda n: torch.ones(n).long())
    assert abs(old-new)<.025, (old, new)        # three standard errors are .02
    assert .17<old<.205, old

def test_prototypes_are_those_of_the_rows_that_are_left():
    bank = filled(lambda: ClassBank(C, capacity=8), 18)
    bank.forget(group=[1+2*BASE, 2+2*BASE])
    f,_,y,_,_,valid = bank.rows()
    for c in range(C): torch.testing.assert_close(bank.prototype(c), f[valid & (y==c)].mean(0))
    bank.forget(label=1)
    assert bank.counts[1]==bank.class_counts()[1]==bank.mass[1]==0
    assert not (bank.classify(torch.randn(50, D))[0]==1).any()

# --- what is taught is there

@each
def test_what_is_taught_is_stored_and_found(make):
    bank = filled(make)
    for i in range(4):
        r = offer([60+i, 61+i], [i%C, (i+1)%C], 900+i)
        slot = bank.teach(**r)
        assert bool((slot>=0).all())
        f = bank.rows()[0][slot]
        unit = torch.nn.functional.normalize
        torch.testing.assert_close(unit(f.float()), unit(r['x']), atol=.02, rtol=.05)
    # what was taught first is overwritten last
    assert torch.isin(torch.tensor([60,61,62,63,64])+BASE, bank.rows()[3]).all()

def test_a_taught_row_is_the_new_feature_alone():
    bank = SlotBank(4, policy='fifo', momentum=.9)
    bank.write(torch.ones(1, D), torch.tensor([0]), item=torch.tensor([BASE]))
    bank.teach(-torch.ones(1, D), torch.tensor([1]), item=torch.tensor([BASE]))
    assert len(bank)==1 and torch.equal(bank.features[0], -torch.ones(D)) and bank.labels[0]==1

def test_more_rows_of_a_class_than_it_has_room_for_are_refused():
    bank = filled(lambda: ClassBank(C, capacity=4))
    was = copy.deepcopy(bank.state_dict())
    assert 'room for 4' in err(bank.teach, **offer(range(20, 25), [1]*5))
    assert 'room for' in err(filled(makes['cached']).teach, **offer(range(20, 29), [1]*9))
    for k,v in bank.state_dict().items(): assert torch.equal(v, was[k]), k

def test_rows_of_several_labels():
    bank = SlotBank(8, policy='fifo')
    y = torch.tensor([[1.,0,0],[1,1,0],[0,0,1],[0,0,-1]])
    bank.write(torch.randn(4, D), y, item=torch.arange(4)+BASE)
    slot = bank.teach(torch.ones(1, D), torch.tensor([[0.,1,1]]), item=torch.tensor([BASE+2]))
    assert torch.equal(bank.labels[slot[0]], torch.tensor([0.,1,1])) and len(bank)==4
    assert bank.forget(label=1)==2 and bank.items[:2].tolist()==[BASE,BASE+3] and len(bank)==2
    classes = ClassBank(3, capacity=4)
    classes.write(torch.randn(4, D), y.clamp(min=0), item=torch.arange(4)+BASE)
    slots = classes.teach(torch.ones(1, D), torch.tensor([[0.,1,1]]), item=torch.tensor([BASE+1]))
    assert slots.shape==(1,3) and slots[0,0]==-1 and classes.class_counts().tolist()==[1,1,2]
    check(classes)

# --- what is asked for

@each
def test_odd_questions(make):
    bank = filled(make)
    was = count(rows(bank))
    for q in (dict(item=[]), dict(item=-1), dict(item=torch.tensor([float('nan')])), dict(item=[-1, BASE-5]),
              dict(group=[]), dict(group=-1), dict(item=torch.zeros(0).long())):
        assert bank.forget(**q)==0 and count(rows(bank))==was, q
    for q in ({}, dict(item=1, group=2), dict(label=1, item=3), dict(label='x'), dict(item='x'), dict(label=True),
              dict(item=[.5]), dict(label=-1)):
        assert 'forget' in err(bank.forget, **q) and len(bank)==len(list(was.elements()))
    one = next(iter(was))[0]
    assert bank.forget(item=one)==1 and bank.forget(item=[one,one])==0
    n = len(bank)
    assert bank.forget(item=[o[0] for o in was])==n and len(bank)==0 and not rows(bank)
    assert bank.forget(item=one)==0 and bank.forget(label=1)==0
    check(bank)
    write(bank, [1,2], [0,1], 7)
    assert len(bank)==len(rows(bank))>0
    for k in ('x','y'):
        r = offer([9], [1])
        r[k] = r[k]*float('nan') if k=='x' else None
        with pytest.warns(UserWarning) if k=='x' else pytest.MonkeyPatch.context(): assert err(bank.teach, **r)
    assert make().forget(item=3)==0

@each
def test_in_inference_mode(make):
    with torch.inference_mode():
        bank = filled(make)
        n = len(bank)
        assert bank.forget(item=[rows(bank)[0][0]])==1
        bank.teach(**offer([70], [1]))
    write(bank, [3], [1], 5)
    assert bank.forget(item=70+BASE)==1
    check(bank)
    bank = filled(make)
    with torch.inference_mode(): assert bank.forget(label=1)>0
    bank.teach(**offer([70], [1]))
    check(bank)

@each
def test_pictures_of_items_go_with_their_rows(make):
    bank = filled(make)
    bank.kept = Kept('thumbnails', {i:b'picture %d' % i for i,_,_ in rows(bank).values()})
    one,two = [o[0] for o in rows(bank).values()][:2]
    bank.forget(item=one)
    assert b'picture %d' % one not in raw(bank) and b'picture %d' % two in raw(bank)
    bank.forget(item=bank.rows()[3])
    assert b'picture' not in raw(bank)

@each
def test_a_bank_saved_before_there_were_edits_loads(make, tmp_path):
    bank = filled(make)
    state = {k:v for k,v in bank.state_dict().items() if k not in ('taught','filled')}
    cfg = json.loads(bytes(state['_extra_state'].tolist()).decode())
    cfg['none'] = [o for o in cfg['none'] if o not in ('taught','filled')]
    state['_extra_state'] = torch.frombuffer(bytearray(json.dumps(cfg).encode()), dtype=torch.uint8)
    new = make()
    new.load_state_dict(state)
    assert count(rows(new))==count(rows(bank)) and new.taught is None
    new = filled(make, 5)       # and takes away what was edited there
    new.teach(**offer([70], [1]))
    new.forget(item=BASE)
    new.load_state_dict(state)
    assert count(rows(new))==count(rows(bank)) and new.taught is None
    check(new)

# --- banks of other kinds

@pytest.mark.parametrize('name', parts('bank'))
def test_every_bank_edits_or_says_that_it_cannot(name):
    bank = build('bank', name, n_classes=C)
    write(bank, [1,2,3], [0,1,2], 3)
    for f,args in ((bank.forget, dict(item=[1+BASE])), (bank.teach, offer([9], [1]))):
        n = len(bank)
        try: f(**args)
        except MemoError as e:
            assert '\n' not in str(e) and type(bank).__name__ in str(e) and len(bank)==n
        else: assert torch.isin(torch.tensor(9+BASE if f==bank.teach else 1+BASE), bank.rows()[3])==(f==bank.teach)

def test_banks_whose_rows_are_of_several_items_refuse():
    for bank in (AssociativeBank(8), CentroidBank(C), TrainableBank(8, C)):
        assert bank.forget(item=3)==0       # while it is empty
        write(bank, [1,2,3], [0,1,2], 3)
        assert 'several items' in err(bank.forget, item=1+BASE)
    assert LearnedBank(4, D).forget(item=3)==0
    for bank in (AssociativeBank(8), CentroidBank(C), LearnedBank(4, D)):
        assert 'teach' in err(bank.teach, **offer([1], [1]))

def test_learned_rows_are_taught():
    bank = TrainableBank(4, C)
    write(bank, [1,2,3], [0,1,2], 3)
    slot = bank.teach(**(r := offer([2,7,8], [2,0,1], 5)))
    assert len(bank)==4 and bank.labels[slot].tolist()==[2,0,1] and bank.features.requires_grad
    assert bank.classify(r['x'])[0].tolist()==[2,0,1]

@pytest.mark.parametrize('codec', ['float32','bfloat16','int8','prototypes'])
def test_compressed_banks(codec, tmp_path):
    full = SlotBank(64, policy='fifo')
    full.write(torch.randn(40, 16), torch.arange(40)%C, item=torch.arange(40)+BASE, group=torch.arange(40)//4+2*BASE)
    small = full.compress(mb=1, codec=codec)
    if codec=='prototypes':
        assert 'several share' in err(small.forget, item=BASE)
        return
    assert small.forget(group=2*BASE)==4 and len(small)==36 and small.forget(item=BASE+7)==1
    small.save(tmp_path/'b.safetensors')
    new = Bank.load(tmp_path/'b.safetensors')
    assert len(new)==35 and isinstance(new, CompressedBank)
    assert not torch.isin(torch.tensor([0,3,7])+BASE, new.rows()[3]).any()
    assert torch.equal(new.rows()[2], small.rows()[2]) and len(new.read(torch.randn(2, 16), 3).index)==2
    assert 'takes no rows' in err(small.teach, torch.randn(1, 16), torch.tensor([1]))

def test_rows_that_stay_in_a_file(tmp_path):
    bank = filled(lambda: SlotBank(16, policy='fifo'))
    bank.save(tmp_path/'b.safetensors')
    before = (tmp_path/'b.safetensors').read_bytes()
    big = Bank.load(tmp_path/'b.safetensors', mmap=True)
    gone = big.features[2].clone()
    assert big.forget(item=BASE+2)==1 and len(big)==11
    assert float(big.read(gone[None], 1).similarity)<.999 and (tmp_path/'b.safetensors').read_bytes()==before
    big.teach(gone[None], torch.tensor([1]), item=torch.tensor([BASE+50]))
    assert float(big.read(gone[None], 1).similarity)>.999
    big.save(tmp_path/'c.safetensors')
    state_equal(Bank.load(tmp_path/'c.safetensors'), big)

@pytest.mark.parametrize('kind', ['ivf',None])
def test_with_an_index(kind):
    x = torch.randn(1000, 16)
    bank = SlotBank(1200, policy='fifo')
    bank.write(x, torch.arange(1000)%C, item=torch.arange(1000)+BASE)
    for _ in range(2):
        bank.index(kind)
        bank.forget(item=BASE+7)
        r = bank.read(x[[7,8]], 1)
        assert r.similarity[0]<.999 and r.similarity[1]>.999 and bank.items[r.index[1,0]]==BASE+8
        bank.index(kind)
        bank.teach(x[[7]], torch.tensor([1]), item=torch.tensor([BASE+7]))
        assert bank.items[bank.read(x[[7]], 1).index[0,0]]==BASE+7

@each
def test_a_copy_is_a_backup(make):
    bank = filled(make)
    bank.teach(**offer([60], [1]))
    was = copy.deepcopy(bank)
    want,state = count(rows(bank)),raw(bank)
    bank.forget(item=[o[0] for o in list(rows(bank).values())[:3]])
    bank.teach(**offer([70,71], [0,1], 5))
    assert count(rows(was))==want and len(was)==sum(want.values()) and 60+BASE in was.taught
    bank.reset()
    assert count(rows(was))==want and 60+BASE in was.taught and not (bank.taught>=0).any()
    check(was)
    check(bank)

@pytest.mark.parametrize('average', [True,False])
@pytest.mark.parametrize('make', [makes['slots fifo'],makes['classes'],makes['cached']],
                         ids=['slots','classes','cached'])
def test_copies_that_tools_average_into(make, average):
    "A copy has no row that its bank has forgotten once it was averaged into, and pairs with it whatever was edited"
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bank,self.last = make(),torch.nn.Linear(3, 3)
    net = Net()
    for i in range(12): write(net.bank, [i], [i%C], 100+i)
    ema = torch.optim.swa_utils.AveragedModel(net, use_buffers=average)
    for i,f in enumerate([lambda: net.bank.teach(**offer([60], [1], 1)),
              lambda: net.bank.forget(item=[[*rows(net.bank).values()][1][0]]),
              lambda: net.bank.teach(**offer([61,62], [1,2], 2)), lambda: net.bank.forget(item=60+BASE),
              lambda: net.bank.forget(item=[61+BASE,62+BASE])]):
        f()
        ema.update_parameters(net)
        if average:
            assert len(ema.module.bank)==len(net.bank) and count(rows(ema.module.bank))==count(rows(net.bank)), i
    left = rows(ema.module.bank)
    one = next(iter(left.values()))[0]
    had = count(rows(net.bank))
    assert ema.module.bank.forget(item=one)==1 and count(rows(net.bank))==had
    net.bank.teach(**offer([70], [1]))
    assert not torch.isin(torch.tensor([one]), ema.module.bank.rows()[3]).any()
    check(ema.module.bank)

# --- many

def test_a_thousand_of_a_hundred_thousand_rows_in_less_than_a_second():
    bank = CachedBank(100_000)
    x = torch.randn(100_000, 64)
    bank.write(x[:1], torch.tensor([0]))
    bank.features.copy_(torch.nn.functional.normalize(x))
    bank.labels.fill_(1)
    bank.items.copy_(torch.arange(100_000)+BASE)
    bank.count.fill_(100_000)
    began = time.process_time()
    assert bank.forget(item=torch.arange(0, 100_000, 100)+BASE)==1000
    assert time.process_time()-began<1 and len(bank)==99_000 and not ((bank.items[:99_000]-BASE)%100==0).any()
