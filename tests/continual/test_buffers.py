"Which examples stay: against the published rules one example after another; and what a store does with odd batches"
import pickle, random
from collections import Counter
import pytest, torch
from hypothesis import given, settings, strategies as st
from memo.banks.policies import hashed
from memo.continual.buffers import Exemplars, policies, randoms
from memo.core import MemoError

C = 5
def stream(n=300, seed=1):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, C, (n,), generator=g).mul(torch.randint(0, 2, (n,), generator=g))      # half are of class 0
    return torch.arange(n)[:,None],y.sort().values if seed%2 else y
def filled(policy, size=20, n=300, seed=0, cuts=()):
    x,y = stream(n)
    s = Exemplars(size, policy, n_classes=C, seed=seed)
    for i,j in zip([0,*cuts], [*cuts,n]): s.write(x[i:j], y[i:j])
    return s
def stored(s): return s['x'][:len(s),0].tolist()
def same(a, b):
    a,b = a.state_dict(),b.state_dict()
    return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)

@pytest.mark.parametrize('policy', policies)
@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 300), max_size=6).map(sorted))
def test_several_at_once_are_as_one_after_another(policy, cuts):
    assert same(filled(policy, cuts=cuts), filled(policy, cuts=range(1, 300)))

# the published rules, by random numbers of the standard library: the same distribution

def vitter(items, size, rng):
    kept = []
    for t,o in enumerate(items, 1):
        if len(kept)<size: kept.append(o)
        elif (j := rng.randrange(t))<size: kept[j] = o
    return kept

def one_in_two(items, size, rng):
    kept = []
    for o in items:
        if len(kept)<size: kept.append(o)
        elif rng.random()<.5: kept[rng.randrange(size)] = o
    return kept

def chrysakis(items, size, rng):
    kept,full,seen = [],set(),Counter()
    for x,c in items:
        seen[c] += 1
        if len(kept)<size:
            kept.append((x,c))
            continue
        n = Counter(c for _,c in kept)
        full |= {k for k in n if n[k]==max(n.values())}
        if c not in full:
            largest = min(k for k in n if n[k]==max(n.values()))
            i = rng.choice([i for i,o in enumerate(kept) if o[1]==largest])
        elif rng.random()<n[c]/seen[c]: i = rng.choice([i for i,o in enumerate(kept) if o[1]==c])
        else: continue
        kept[i] = (x,c)
    return kept

def prabhu(items, size, rng):
    kept,classes = [],set()
    for x,c in items:
        classes.add(c)
        n = Counter(c for _,c in kept)
        if n[c]>=size/len(classes): continue
        if len(kept)>=size:
            largest = min(k for k in n if n[k]==max(n.values()))
            kept.remove(rng.choice([o for o in kept if o[1]==largest]))
        kept.append((x,c))
    return kept

def last_of_each(items, size):
    share = {c:size//C+(c<size%C) for c in range(C)}
    return [o for c in range(C) for o in [o for o in items if o[1]==c][-share[c]:]]

@pytest.mark.parametrize('policy,rule', dict(reservoir=vitter, random=one_in_two, balanced=chrysakis,
                                             greedy=prabhu).items())
def test_policy_is_the_published_one(policy, rule):
    "How often each example stays, over many seeds; a rule that is off by one is off by more than this"
    n,size,runs = 24,7,3000
    g = torch.Generator().manual_seed(3)
    y = torch.tensor([0]*10+[1]*3+[0,2,1,2,0,1,2,0,1,2,2])
    items,x = list(zip(range(n), y.tolist())),torch.arange(n)[:,None]
    got,ref = torch.zeros(n),torch.zeros(n)
    for seed in range(runs):
        s = Exemplars(size, policy, n_classes=C, seed=seed)
        s.write(x, y)
        got[stored(s)] += 1
        kept = rule(items, size, random.Random(seed))
        ref[[o[0] for o in kept]] += 1
        assert sorted(s['y'][:len(s)].tolist())==sorted(o[1] for o in kept) or policy!='greedy'
    assert ((got-ref).abs()/runs).max()<.055, (got-ref)/runs
    if policy=='reservoir': assert (got/runs-size/n).abs().max()<.04

def test_the_first_that_does_not_fit_is_no_sure_guest():
    "The fault of counting after drawing: number size+1 was always stored"
    n = 0
    for seed in range(2000):
        s = Exemplars(3, seed=seed)
        s.write(torch.arange(4)[:,None], torch.zeros(4).long())
        n += 3 in stored(s)
    assert abs(n/2000-3/4)<.05

def test_ring_keeps_the_last_of_each_class():
    "Not the last of all, as a queue does, which forgets the classes that do not come any more"
    x,y = stream()
    s = filled('ring', 22)
    assert sorted(stored(s))==sorted(o[0] for o in last_of_each(list(zip(x[:,0].tolist(), y.tolist())), 22))
    assert s.class_counts().tolist()==[5,5,4,4,4]
    few = filled('ring', 20, n=30)      # the slots of classes that have not come are free
    assert len(few)==int((few.class_counts()).sum())<20 and few.class_counts().max()<=4

@pytest.mark.parametrize('policy', ['balanced','greedy','ring'])
def test_classes_get_equal_shares(policy):
    n = filled(policy, 20).class_counts()
    assert n.sum()==20 and n.max()-n.min()<=1

@pytest.mark.parametrize('policy', policies)
def test_rows_stay_together(policy):
    "Inputs, labels, outputs and tasks of an example are one example's; types stay"
    n = 100
    x,y = torch.randint(0, 255, (n,3,4), dtype=torch.uint8),torch.arange(n)%C
    x[:,0,0] = torch.arange(n)
    s = Exemplars(10, policy, n_classes=C)
    t = torch.arange(n)
    where = [s.write(x[i:i+7], y[i:i+7], t[i:i+7,None].half(), 2*t[i:i+7]) for i in range(0,n,7)]
    r = s.rows(torch.arange(len(s)))
    i = r.x[:,0,0].long()
    assert r.x.dtype==torch.uint8 and torch.equal(r.x, x[i]) and torch.equal(r.y, y[i])
    assert r.logits.dtype==torch.float16 and torch.equal(r.logits[:,0].long(), i) and torch.equal(r.task, 2*i)
    last = {}
    for j,w in enumerate(torch.cat(where).tolist()): last.update({w:j} if w>=0 else {})
    assert [last[k] for k in range(len(s))]==i.tolist()

def test_draws_are_without_replacement_and_uniform():
    s = filled('reservoir', 12)
    got,pairs = torch.zeros(12),Counter()
    for _ in range(3000):
        at = s.draw(4).tolist()
        assert len(set(at))==4
        got[at] += 1
        pairs.update((a,b) for a in at for b in at if a<b)
    assert (got/3000-4/12).abs().max()<.04
    assert len(pairs)==66 and max(abs(v/3000-4*3/(12*11)) for v in pairs.values())<.03
    assert sorted(s.draw(99).tolist())==sorted(s.shuffled().tolist())==list(range(12))
    assert s.draw(4).tolist()!=s.draw(4).tolist()

def test_each_process_draws_its_own():
    a,b = filled('reservoir', 50),filled('reservoir', 50)
    assert sorted(a.draw(10, 0).tolist())!=sorted(b.draw(10, 1).tolist()) and same(a, b)

@pytest.mark.parametrize('policy', policies)
def test_goes_on_from_a_state(policy):
    "Into a store of any history; what is there says all"
    x,y = stream()
    a,b = filled(policy, n=150),filled(policy, n=40, seed=9)
    b.load_state_dict(a.state_dict())
    c = pickle.loads(pickle.dumps(a))
    for s in (a,b,c):
        s.draw(5)
        s.write(x[150:], y[150:])
    assert same(a, b) and same(a, c) and torch.equal(a.sample(7).x, b.sample(7).x)
    new = Exemplars(20, policy, n_classes=C)
    new.load_state_dict(a.state_dict())
    assert stored(new)==stored(a) and len(new)==20

def test_other_states_are_refused():
    a = filled('reservoir')
    for o,what in ((Exemplars(21), 'size'), (Exemplars(20, 'balanced', C), 'policy')):
        with pytest.raises(MemoError, match=f'{what} is .* in the state to load'): o.load_state_dict(a.state_dict())
    with pytest.raises(RuntimeError, match='seed'): a.load_state_dict({})
    a.load_state_dict({}, strict=False)
    assert len(a)==20

def test_no_random_number_of_others_is_used():
    was = torch.get_rng_state(),random.getstate()
    for policy in policies: filled(policy).draw(3)
    assert torch.equal(was[0], torch.get_rng_state()) and was[1]==random.getstate()

@pytest.mark.parametrize('policy', policies)
def test_written_in_place(policy):
    "No tensor is made anew once there is one: optimizers, DDP and averages hold them"
    s = filled(policy, n=10)
    at = {k:v.data_ptr() for k,v in s._buffers.items()}
    x,y = stream()
    s.write(x, y)
    s.draw(3)
    assert at=={k:v.data_ptr() for k,v in s._buffers.items()}

def test_bytes():
    "The same budget holds fewer examples where outputs go along; images of bytes take a quarter"
    x,y = torch.zeros(8, 1, 16, 16),torch.zeros(8).long()
    def size(x, **kw):
        s = Exemplars('64kB')
        assert s.size is None
        s.write(x, y, **kw)
        assert 65536-s.nbytes//s.size<s.nbytes<=65536
        return s.size
    assert size(x)==65536//(1024+8) and size(x.byte())==65536//(256+8)
    assert size(x, logits=torch.zeros(8, 10))==65536//(1024+8+40)
    assert size(x, item=torch.arange(8))==size(x)
    for bad in ('2 apples', '0B', '-2MB', 0, -1, True, 2.5, None):
        with pytest.raises(MemoError, match='a number of examples'): Exemplars(bad)
    with pytest.raises(MemoError, match='at least 1 of them, 1.01 kB'): Exemplars('1kB').write(x, y)
    with pytest.raises(MemoError, match='5 of them'): Exemplars('2kB', 'ring', n_classes=5).write(x, y)
    assert Exemplars('1.5 MB').asked==1.5*2**20 and Exemplars('2GiB').asked==2**31

def test_batches_of_any_structure():
    x = dict(image=torch.randn(4, 3), parts=(torch.arange(4),torch.ones(4, 2, 2)))
    s = Exemplars(10)
    s.write(x, torch.arange(4))
    r = s.rows(torch.tensor([2,0]))
    assert torch.equal(r.x['image'], x['image'][[2,0]])
    assert r.x['parts'][0].tolist()==[2,0] and r.x['parts'][1].shape==(2,2,2)
    two = Exemplars(10)
    two.write(torch.randn(4, 3), (torch.arange(4),torch.randn(4, 2)))
    assert two.sample(2).y[1].shape==(2,2)
    with pytest.raises(MemoError, match='a str'): s.write('text', torch.arange(4))
    with pytest.raises(MemoError, match="key 'a.b'"): s.write({'a.b':torch.ones(4)}, torch.arange(4))

def test_rows_without_a_label_are_left_out():
    s = Exemplars(10)
    s.write(torch.arange(4.)[:,None], torch.tensor([3,-1,-100,0]))
    assert stored(s)==[0.,3.] and int(s.ptr)==2
    s = Exemplars(10)
    s.write(torch.arange(4.)[:,None], torch.tensor([.5,float('nan'),1.,-1.]))
    assert stored(s)==[0.,2.,3.]
    many = Exemplars(10)
    many.write(torch.arange(2.)[:,None], torch.tensor([[0.,1.],[float('nan'),1.]]))
    assert stored(many)==[0.]
    many.write(torch.zeros(0, 1), torch.zeros(0, 2))
    many.write(torch.zeros(1, 1), torch.tensor([[float('nan'),1.]]))
    assert len(many)==1

def test_odd_batches_in_one_line():
    s = Exemplars(10, 'balanced', n_classes=3)
    x,y = torch.randn(4, 2),torch.arange(4)
    with pytest.raises(MemoError, match='label 3 where there are 3 classes'): s.write(x, y)
    with pytest.raises(MemoError, match='one class number an example'): s.write(x, torch.rand(4, 2))
    with pytest.raises(MemoError, match='needs n_classes'): Exemplars(10, 'greedy').write(x, y)
    with pytest.raises(MemoError, match="has no slot for each of 11 classes"): Exemplars(10, 'ring', n_classes=11)
    with pytest.raises(MemoError, match="'resevoir' is not one of .*reservoir"): Exemplars(10, 'resevoir')
    assert len(s)==0 and s.draw(4).shape==(0,)
    s.write(x, y%3)
    with pytest.raises(MemoError, match=r'x is .*\[3\], earlier ones are .*\[2\]'): s.write(torch.randn(4, 3), y%3)
    with pytest.raises(MemoError, match='y has|y is torch.int32'): s.write(x, (y%3).int())
    with pytest.raises(MemoError, match='as many rows'): s.write(x[:2], y%3)
    s.write(x, y%3, item=y)     # ids may come late
    plain = Exemplars(10)
    plain.write(x, y, torch.randn(4, 3))
    with pytest.raises(MemoError, match='earlier ones have logits'): plain.write(x, y)

@pytest.mark.parametrize('policy', ['balanced','greedy','reservoir'])
def test_fewer_slots_than_classes(policy):
    s = Exemplars(3, policy, n_classes=10)
    for i in range(100): s.write(torch.tensor([[i]]), torch.tensor([i%10]))
    assert len(s)==3 and s.class_counts().sum()==3 and (policy=='reservoir' or s.class_counts().max()==1)

def test_random_numbers_of_writes_and_draws_are_not_the_same():
    for seed in (0, 7, -3, 2**62):
        for lo in (1, -5, 2**40, -(2**45)):
            ref = hashed(torch.tensor(seed), torch.arange(lo, lo+40)).tolist()
            assert randoms(torch.tensor(seed), lo, 40)==ref and randoms(torch.tensor(seed), lo, 5)==ref[:5]
    assert not {*hashed(torch.tensor(0), torch.arange(1, 1000)).tolist()} & {
        *hashed(torch.tensor(0), torch.arange(1000)-((torch.tensor(1)*256+1)<<20)).tolist()}

@pytest.mark.parametrize('policy', ['balanced','greedy'])
def test_fewer_examples_than_classes_are_told(policy):
    with pytest.warns(UserWarning, match='size: 3 examples, and there are 6 classes: some of them will have none'):
        Exemplars(3, policy, n_classes=6)

@pytest.mark.parametrize('policy', policies)
@given(n=st.integers(1, 60), size=st.integers(5, 30), gone=st.sets(st.integers(0, 59)), late=st.integers(0, 40))
@settings(max_examples=25)
def test_items_are_forgotten(policy, n, size, gone, late):
    "Copies of others lie in their places, of the same class where there are any; a stream goes on"
    def written(lo, hi, s):
        for i in torch.arange(lo, hi).split(7): s.write(i[:,None].float(), i%5, logits=i[:,None]*2., item=i)
    s = Exemplars(size, policy, n_classes=5)
    written(0, n, s)
    was,out = s.rows(torch.arange(len(s))),torch.tensor(sorted(gone), dtype=torch.long)
    hit = torch.isin(was.item, out)
    assert s.forget_items(out)==(int(hit.sum()),0)
    if hit.all(): assert len(s)==0 and not any(s[k].any() for k in s.names)
    else:
        now = s.rows(torch.arange(len(s)))
        assert not torch.isin(now.item, out).any() and len(s)==len(hit) and torch.equal(now.item[~hit], was.item[~hit])
        assert torch.isin(now.item, was.item).all()
        left = {*was.y[~hit].tolist()}
        assert all(a==b for a,b in zip(was.y.tolist(), now.y.tolist()) if a in left)
    written(100, 100+late, s)
    now = s.rows(torch.arange(len(s)))
    assert torch.equal(now.x[:,0].long(), now.item) and torch.equal(now.y, now.item%5)
    assert torch.equal(now.logits[:,0].long(), 2*now.item) and not torch.isin(now.item, out).any()
    assert s.forget_items(out)==(0,0)

def test_examples_without_ids_may_be_of_any_item():
    s = Exemplars(10)
    s.write(torch.randn(4, 2), torch.arange(4))
    assert s.forget_items(torch.tensor([3]))==(0,4)
    s = Exemplars(10)
    s.write(torch.randn(4, 2), torch.arange(4), item=torch.tensor([3,-1,-1,7]))
    assert s.forget_items(torch.tensor([3]))==(1,2) and s.forget_items(torch.tensor([3,7]))[0]==1
    assert Exemplars(10).forget_items(torch.tensor([3]))==(0,0)

@pytest.mark.parametrize('ids', [True,False])
def test_a_class_is_forgotten(ids):
    s,i = Exemplars(20),torch.arange(12)
    s.write(i[:,None].float(), i%3, item=i if ids else None)
    assert s.forget_items(i[:0], 1)==(4,0) and not (s['y'][:12]==1).any() and len(s)==12
    assert torch.equal(s['x'][:12,0].long()%3, s['y'][:12])
