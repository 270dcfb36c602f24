"What every bank does. Each check gets `make(**arguments)`, which gives a new bank"
import copy, json, pickle, random
import numpy as np, pytest, torch
from memo.banks.base import Bank
from memo.core import MemoError
from .made import CLASSES, DIM, other, refused_in_one_line, rows, state_equal

def filled(make, n=12, times=2, **kwargs):
    b = make(**kwargs)
    for i in range(times): b.write(**rows(n, i))
    return b

def random_state(): return torch.get_rng_state().tolist(),random.getstate(),np.random.get_state()[1].tolist()

def close(a, b, bank=None):
    "Equal, up to what the numbers of `bank`'s rows can hold"
    rough = bank is not None and bank.features.dtype!=torch.float32
    torch.testing.assert_close(a.float(), b.float(), rtol=.05 if rough else 1e-4, atol=.02 if rough else 1e-5)
def unit(x): return torch.nn.functional.normalize(x.float(), dim=-1)

def write_gives_slots(make):
    "One for each row, -1 where it is not stored; the slot holds the feature, its class and its item"
    b,stored = make(),0
    for i in range(4):
        r = rows(6, i)
        slot = b.write(**r)
        assert torch.is_tensor(slot) and slot.dtype==torch.long and slot.shape==(6,) and bool((slot>=-1).all()), slot
        f,_,y,item,group,valid = b.rows()
        at = slot>=0
        assert bool((slot<b.capacity_rows).all()) and len(slot[at].unique())==int(at.sum())
        if valid is not None: assert valid[slot[at]].all()
        for got,want in ((y[slot[at]],r['y'][at]), (item[slot[at]],r['item'][at]), (group[slot[at]],r['group'][at])):
            assert torch.equal(got, want)
        close(unit(f[slot[at]]), unit(r['x'][at]), b)
        stored += int(at.sum())
    assert stored>=len(b)>0
    kept = b.rows()[3]
    kept = kept if valid is None else kept[valid]
    offered = torch.cat([rows(6, i)['item'] for i in range(4)])
    assert len(kept)==len(b) and torch.isin(kept, offered).all()

def write_is_counted(make):
    b = filled(make, 7, 3)
    assert int(b.seen)==21 and int(b.updates)==3 and 0<len(b)<=b.capacity_rows and bool(b)

def write_refuses_what_is_no_feature(make):
    """NaN and infinite rows are not stored, and said once a write; other shapes and labels are one line, and
    change nothing"""
    b = make()
    b.write(**rows(6))
    r = rows(4, 5)
    r['x'][1,2],r['x'][3,0] = float('nan'),float('inf')
    with pytest.warns(UserWarning, match='2 of 4'): slot = b.write(**r)
    assert slot.shape==(4,) and slot[1]==slot[3]==-1 and not torch.isin(b.rows()[3],
        r['item'][[1,3]]).any() and int(b.refused)==2
    was = copy.deepcopy(b)
    good = rows(4, 6)
    for bad in (dict(good, x=good['x'][:,:-1]), dict(good, x=good['x'][0]), dict(good, y=good['y'][:-1]),
                dict(good, y=good['y']+CLASSES), dict(good, y=good['y'].float())):
        with pytest.raises(MemoError) as e: b.write(**bad)
        assert '\n' not in str(e.value)
    state_equal(b, was)

def stored_items(b):
    item,valid = b.rows()[3],b.rows()[5]
    return item if valid is None else item[valid]

def an_item_has_its_row(make):
    "Offered again with the same feature it gets no second one, in a later batch or in the same"
    b = make()
    def twice(i): return {k:torch.cat([v,v[:3]]) for k,v in rows(6, i).items()}
    for o in (rows(6, 0),rows(6, 0),twice(1),rows(6, 0),rows(12, 3),rows(6, 0),twice(2)):
        slot = b.write(**o)
        assert len(stored_items(b).unique())==len(stored_items(b))
        at = slot>=0
        assert torch.equal(b.rows()[3][slot[at]], o['item'][at])

def views_of_an_item(make):
    "With another feature it gets one only where the bank says that it keeps several views of an item"
    b,r = make(),rows(6)
    for i in range(3): b.write(**{**r, 'x':r['x']+i})
    assert (len(stored_items(b).unique())<len(stored_items(b)))==bool(b.views)

def writes_of_no_rows(make):
    b = filled(make)
    was = len(b)
    assert b.write(**{k:v[:0] for k,v in rows(2).items()}).shape==(0,) and len(b)==was

def reads_are_right(make):
    "Against a loop over rows and queries"
    b = filled(make)
    q,k = rows(5, 7)['x'],min(4, b.capacity_rows)
    r = b.read(q, k)
    f,_,_,_,_,valid = b.rows()
    f = torch.stack([f[i].float() for i in range(len(f))])
    ok = torch.ones(len(f), dtype=torch.bool) if valid is None else valid
    s = unit(q)@unit(f).T
    s[:,~ok] = -9
    n = min(k, int(ok.sum()))
    assert r.index.shape==r.weight.shape==r.similarity.shape==(5,k) and r.value.shape==(5,DIM)
    close(r.similarity[:,:n], s.topk(n).values, b)
    for i in range(5):
        assert set(r.index[i,:n].tolist())==set(s[i].topk(n).indices.tolist()) and (r.index[i,n:]==-1).all()
        close(r.weight[i,:n].sum(), torch.tensor(1.))
        assert (r.weight[i]>=0).all() and (r.weight[i,n:]==0).all()
        close(r.value[i], sum(w*f[j] for w,j in zip(r.weight[i,:n], r.index[i,:n])), b)

def reads_never_find_themselves(make):
    "Nor anybody of the same group; unknown ids hide nothing"
    b = filled(make)
    r = rows(12, 1)
    k = min(6, b.capacity_rows)
    items,groups = b.rows()[3],b.rows()[4]
    got = b.read(r['x'], k, item=r['item'])
    assert not ((items[got.index.clamp(min=0)]==r['item'][:,None]) & (got.index>=0)).any()
    got = b.read(r['x'], k, group=r['group'])
    assert not ((groups[got.index.clamp(min=0)]==r['group'][:,None]) & (got.index>=0)).any()
    free,none = b.read(r['x'], k),b.read(r['x'], k, item=torch.full((12,), -1), group=torch.full((12,), -1))
    assert torch.equal(free.index, none.index) and torch.equal(free.value, none.value)
    found = (items[free.index.clamp(min=0)]==r['item'][:,None]) & (free.index>=0)
    assert found.any(), 'nothing to find: the check says nothing'

def reads_of_an_empty_bank(make):
    b = make()
    r = b.read(torch.randn(3, DIM), 2)
    assert (r.index==-1).all() and (r.weight==0).all() and (r.value==0).all()
    c,sure = b.classify(torch.randn(3, DIM))
    assert (c==-1).all() and (sure==0).all() and len(b)==0

def reads_have_a_gradient(make):
    b,q = filled(make),rows(3, 4)['x'].requires_grad_()
    b.read(q, min(3, b.capacity_rows)).value.square().sum().backward()
    assert q.grad is not None and q.grad.abs().sum()>0

def classify_is_the_nearest_row(make):
    b = filled(make)
    q = rows(8, 9)
    c,sure = b.classify(q['x'])
    near = b.read(q['x'], 1)
    assert c.shape==(8,) and sure.shape==(8,) and not c.is_floating_point()
    if type(b).classify is Bank.classify:
        assert torch.equal(c, b.rows()[2][near.index[:,0]]) and torch.equal(sure, near.similarity[:,0])
    else: assert (c==q['y']).float().mean()>.7
    assert ((sure<=1+1e-5) & (sure>=-1-1e-5)).all()
    s = b.write(**rows(6, 11))
    again = rows(6, 11)
    if (s>=0).any(): assert (b.classify(again['x'][s>=0])[0]==again['y'][s>=0]).all()

def goes_on(a, b):
    "Two banks are the same, and stay so: nothing that counts is outside the state"
    state_equal(a, b)
    q = rows(4, 8)['x']
    for i in (20,21,22):
        assert torch.equal(a.write(**rows(9, i)), b.write(**rows(9, i)))
        state_equal(a, b)
        x,y = a.read(q, 2),b.read(q, 2)
        assert all(torch.equal(m, n) for m,n in zip(x, y)) and all(torch.equal(m, n)
            for m,n in zip(a.classify(q), b.classify(q)))

def saved_and_loaded(make, tmp_path):
    for n in (0,2):
        b = filled(make, times=n)
        b.save(tmp_path/'b.safetensors')
        new = Bank.load(tmp_path/'b.safetensors')
        assert type(new) is type(b) and new.config()==b.config() and len(new)==len(b)
        goes_on(new, copy.deepcopy(b))
        assert type(Bank.load(tmp_path/'b.safetensors', kinds=[type(b)])) is type(b)

def says_if_its_rows_are_unit(make):
    "`unit`: whatever length features come in, rows have length one; else they keep what length says"
    b = make()
    o = rows(9, 3)
    b.write(**{**o, 'x':o['x']*torch.logspace(-1, 1, 9)[:,None]})
    f,_,_,_,_,valid = b.rows()
    n = f[torch.arange(len(f)) if valid is None else valid.nonzero().squeeze(1)].float().norm(dim=1)
    assert bool(((n-1).abs()<.02).all())==b.unit and isinstance(b.unit, bool)

def state_is_all(make):
    "In a new bank, one that has been written to, and an empty one's"
    b = filled(make)
    for new in (make(), filled(make, 5, 1)):
        new.load_state_dict(b.state_dict())
        goes_on(new, copy.deepcopy(b))
    full = filled(make)
    full.load_state_dict(make().state_dict())
    assert len(full)==0
    goes_on(full, make())

def state_is_in_place(make):
    "Once there are shapes, writing makes no new buffer"
    b = filled(make)
    was = {k:v.data_ptr() for k,v in b.named_buffers()}
    b.write(**rows(9, 5))
    assert {k:v.data_ptr() for k,v in b.named_buffers()}==was and set(was)<={k for k in b.state_dict()}

def copied(make):
    b = filled(make)
    goes_on(copy.deepcopy(b), pickle.loads(pickle.dumps(b)))

def stays_float32(make):
    b = filled(make)
    was = {k:v.dtype for k,v in b.named_buffers()}
    torch.nn.Sequential(b).half()
    assert {k:v.dtype for k,v in b.named_buffers()}==was

def reset_forgets(make):
    b = filled(make)
    b.reset()
    assert len(b)==0 and int(b.seen)==int(b.updates)==0 and (b.read(torch.randn(2, DIM), 1).index==-1).all()
    new = make()
    for i in (3,4): assert torch.equal(b.write(**rows(9, i)), new.write(**rows(9, i)))
    for m,n in zip(b.rows(), new.rows()):
        assert m is n is None or torch.equal(torch.as_tensor(m[:]), torch.as_tensor(n[:]))

def config_is_the_signature(make, params):
    "Each argument that a file can give is an attribute, in the description, and saved"
    for k,p in params.items():
        if k in ('dim',) or (v := other(p)) is None: continue
        try: b = make(**{k:v})
        except MemoError: continue      # with the others as they are it is not to be had
        cfg = b.config()
        if k in cfg: assert cfg[k]==v and json.loads(b.describe())[k]==v, (k, cfg[k], v)
        else:
            assert torch.is_tensor(getattr(b, k)) and getattr(b, k)==v, f'{k} is neither in the config nor in the state'
        new = pickle.loads(pickle.dumps(b))
        assert new.config()==cfg
        new = type(b)(**cfg)
        new.load_state_dict(b.state_dict())
        assert new.config()==cfg and getattr(new, k)==v, k

def wrong_arguments_are_one_line(make, params):
    for k,p in params.items():
        for v in (-1, 0, 'nonsense', float('nan'), None, [], 1.5):
            refused_in_one_line(make, k, p, v)

def looking_changes_nothing(make):
    b = filled(make)
    was,draws = copy.deepcopy(b),random_state()
    q = rows(4, 3)
    b.read(q['x'], 2, q['item'],
           q['group']); b.classify(q['x']); b.stats(); repr(b); len(b); b.rows(); b.class_counts(); b.config(
               ); b.header(); b.saved_stats()
    state_equal(b, was)
    assert random_state()==draws

def random_numbers_are_its_own(make):
    was = random_state()
    a = filled(make)
    assert random_state()==was
    torch.rand(5)
    state_equal(a, filled(make))

def rekey_puts_fresh_features(make):
    "Where the item is known; nothing else changes"
    b = filled(make)
    f,_,y,item,_,valid = b.rows()
    ok = torch.ones(len(item), dtype=torch.bool) if valid is None else valid
    who = item[ok].unique()[:3]
    x = torch.randn(3, DIM, generator=torch.Generator().manual_seed(5))
    was = torch.stack([f[i].float() for i in range(len(f))])
    n = b.rekey(x, who)
    assert n==int((ok & torch.isin(item, who)).sum())>0
    f,_,y2,item2,_,_ = b.rows()
    for i in range(len(item)):
        if not ok[i]: continue
        j = (who==item[i]).nonzero()
        if len(j): close(unit(f[i]), unit(x[int(j[0])]), b)
        else: close(f[i].float(), was[i])
    assert torch.equal(y, y2) and torch.equal(item, item2)

def figures_are_plain(make):
    b = filled(make)
    s = json.loads(json.dumps(b.stats()))
    assert s['rows']==len(b) and s['seen']==int(b.seen) and s['updates']==int(b.updates) and 0<s['fill']<=1
    n = b.class_counts()
    y,valid = b.rows()[2],b.rows()[5]
    assert torch.equal(n, torch.bincount(y if valid is None else y[valid], minlength=CLASSES))
    assert type(b).__name__ in repr(b)

checks = {f.__name__:f for f in (write_gives_slots, an_item_has_its_row, views_of_an_item, write_is_counted,
                                 write_refuses_what_is_no_feature, writes_of_no_rows, reads_are_right,
                                 reads_never_find_themselves, reads_of_an_empty_bank,
    reads_have_a_gradient, classify_is_the_nearest_row, says_if_its_rows_are_unit, saved_and_loaded, state_is_all,
    state_is_in_place, copied,
    stays_float32, reset_forgets, config_is_the_signature,
    wrong_arguments_are_one_line, looking_changes_nothing, random_numbers_are_its_own, rekey_puts_fresh_features,
    figures_are_plain)}
