"Banks of patterns: learned ones, associations (Hebb's rule), means of classes"
import copy, json, pickle
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F
from contracts import bank_checks
from contracts.bank_checks import filled, random_state
from contracts.made import CLASSES, DIM, refused_in_one_line, rows, state_equal, takes
from helpers.errors import err
from memo.banks.base import Bank
from memo.banks.patterns import USED, AssociativeBank, CentroidBank, LearnedBank
from memo.registry import find, known

PATTERNS = [k for k,p in known('bank').items() if p.facts.get('patterns')]
def test_there_is_something_to_try(): assert PATTERNS==['LearnedBank','CentroidBank']

def learned(**kw):
    b = LearnedBank(**{'size':9, **kw})
    b.build(DIM, CLASSES)
    return b
def centroids(**kw): return CentroidBank(**{'n_classes':CLASSES, **kw})
makers = {'learned':learned, 'centroids':centroids}

# learned patterns

def test_nothing_is_written():
    b = learned()
    was,draws = copy.deepcopy(b.state_dict()),random_state()
    assert b.write(**rows(6)).tolist()==[-1]*6 and b.rekey(rows(6)['x'], rows(6)['item'])==0
    state_equal(b, learned())
    assert all(torch.equal(v, was[k]) for k,v in b.state_dict().items()) and random_state()==draws

@pytest.mark.parametrize('name', [k for k,p in known('head').items() if p.module.startswith('memo.')
                                  and find('head', k).needs_labels and not find('head', k).needs])
def test_no_head_answers_by_labels_that_are_not_there(name):
    "Patterns have no classes: told before anything is trained"
    assert 'LearnedBank' in err(find('head', name), LearnedBank(9)) and find('head', name)(centroids(), k=1)

def test_patterns_are_parameters_of_its_seed():
    draws = random_state()
    a,b,c = learned(),learned(),learned(seed=1)
    assert random_state()==draws and {n for n,_ in a.named_parameters()}=={'features','values'}
    assert torch.equal(a.features, b.features) and not torch.equal(a.features, c.features)
    assert a.features.requires_grad and not torch.equal(a.features, a.values) and len(a)==9
    k,v,valid = a.patterns()
    assert k is a.features and v is a.values and valid is None
    with torch.no_grad(): a.features.zero_()
    a.reset()
    assert torch.equal(a.features, b.features)

@pytest.mark.parametrize('check', ['reads_are_right','reads_have_a_gradient','stays_float32','looking_changes_nothing',
                                   'wrong_arguments_are_one_line'])
@pytest.mark.parametrize('kind', makers)
def test_looks_like_a_bank(kind, check):
    import inspect
    f = getattr(bank_checks, check)
    name = {'learned':'LearnedBank', 'centroids':'CentroidBank'}[kind]
    f(makers[kind], **(dict(params=takes('bank', name)) if 'params' in inspect.signature(f).parameters else {}))

@pytest.mark.parametrize('kind', makers)
def test_saved_loaded_copied(kind, tmp_path):
    b = filled(makers[kind])
    b.save(tmp_path/'b.safetensors')
    unbuilt = type(b)(**b.config())
    unbuilt.load_state_dict(b.state_dict())
    new = filled(makers[kind], 5, 1, **(dict(seed=3) if kind=='learned' else {}))
    new.load_state_dict(b.state_dict())
    q = rows(4, 3)['x']
    for o in (Bank.load(tmp_path/'b.safetensors'), copy.deepcopy(b), pickle.loads(pickle.dumps(b)), unbuilt, new):
        state_equal(o, b)
        assert len(o)==len(b) and o.config()==b.config()
        assert all(torch.equal(m, n) for m,n in zip(o.read(q, 2), b.read(q, 2)))
        o.write(**rows(5, 9)); c = copy.deepcopy(b); c.write(**rows(5, 9))
        state_equal(o, c)
    json.dumps(b.stats())

# means of classes

@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(0, 99))
def test_means_are_those_of_all_that_came(sizes, seed):
    "In whatever batches, in whatever order; classes that did not come are masked"
    b = CentroidBank(CLASSES+1)
    parts = [rows(n, seed+i) for i,n in enumerate(sizes)]
    for o in parts: b.write(**o)
    x,y = torch.cat([o['x'] for o in parts]),torch.cat([o['y'] for o in parts])
    assert b.class_counts().tolist()==torch.bincount(y, minlength=CLASSES+1).tolist() or not len(x)
    if not len(x): return
    f,_,labels,_,_,valid = b.rows()
    assert labels.tolist()==[*range(CLASSES+1)] and not valid[-1]
    assert valid.tolist()==[bool((y==c).any()) for c in labels]
    for c in y.unique(): torch.testing.assert_close(f[c], x[y==c].double().mean(0).float())
    again = CentroidBank(CLASSES+1)
    i = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    again.write(x[i], y[i])
    torch.testing.assert_close(again.features, b.features)

def test_a_long_stream_loses_nothing():
    b = CentroidBank(1)
    for _ in range(300): b.write(torch.full((1000,2), .1), torch.zeros(1000, dtype=torch.long))
    assert b.class_counts().tolist()==[300_000] and torch.allclose(b.features, torch.full((1,2), .1), rtol=1e-7)

def test_M5_the_nearest_mean_is_the_class():
    "M5: of labels 0..3 the nearest means were [1]*8"
    b = CentroidBank(5)
    o = rows(60, classes=4)
    b.write(**o)
    c,sure = b.classify(o['x'])
    means = torch.stack([F.normalize(o['x'][o['y']==i].mean(0), dim=0) for i in range(4)])
    assert torch.equal(c, (F.normalize(o['x'], dim=1)@means.T).argmax(1)) and (c==o['y']).float().mean()>.8
    assert 4 not in c and CentroidBank(5).classify(o['x'])[0].eq(-1).all()

def test_more_classes_than_slots_are_refused():
    assert 'size=3' in err(CentroidBank, 4, size=3) and CentroidBank(3, size=3).capacity_rows==3
    b = CentroidBank(size=3)
    assert '4 classes' in err(b.build, 6, 4) and 'n_classes' in err(CentroidBank().write, **rows(6))
    b = CentroidBank(CLASSES)
    for y in (None, torch.full((6,), CLASSES), torch.full((6,), -1), torch.rand(6, CLASSES)):
        assert err(b.write, **{**rows(6), 'y':y}) and len(b)==0 and int(b.seen)==0

def test_several_classes_an_item_have_no_mean():
    "Of targets [B,C] it is told what takes them; a column of class numbers [B,1] is fine"
    for b in (CentroidBank(CLASSES), filled(centroids)):
        assert 'multi-label' in err(b.write, **{**rows(6), 'y':torch.ones(6, CLASSES)})
        assert (b.write(**{**rows(6), 'y':rows(6)['y'][:,None]})>=0).all()

def test_what_is_no_feature_is_in_no_mean():
    b,o = CentroidBank(CLASSES),rows(6)
    o['x'][2] = float('nan')
    with pytest.warns(UserWarning, match='1 of 6'): slot = b.write(**o)
    assert slot[2]==-1 and b.features.isfinite().all() and int(b.class_counts().sum())==5

# associations

def associated(x, m):
    d = x.shape[1:]
    return (F.layer_norm(x, d)@F.layer_norm(m, d).T/d[0]**.5).softmax(1)

def full(rule, n=5, seed=0):
    b = AssociativeBank(n, rule=rule)
    b.write(torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed)))
    return b

@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(0, 99))
def test_hebbs_rule(n, seed):
    "M <- M + eta sum_b a_b (p_b - M) / max(1, sum_b a_b), against a loop"
    b = full('hebbian', seed=seed)
    x,m = torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed+1)),b.features.clone()
    a,want = associated(x, m),m.clone()
    for j in range(5):
        move = sum(a[i,j]*(x[i]-m[j]) for i in range(n))
        want[j] = m[j]+.1*move/max(1, float(a[:,j].sum()))
    assert b.write(x).tolist()==[-1]*n
    torch.testing.assert_close(b.features, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(b.norms, want.norm(dim=1), rtol=1e-4, atol=1e-5)

@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(0, 99))
def test_M6_as_many_slots_change_as_there_are_samples(n, seed):
    "The least used ones, each once (8 samples changed 38 slots); their use is a mean over the batch, and is kept"
    b = full('replace_least_used', seed=seed)
    b.used.copy_(torch.rand(5, generator=torch.Generator().manual_seed(seed)))
    x,m,used = torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed+1)),b.features.clone(),b.used.clone()
    b.write(x)
    used = USED*used+(1-USED)*associated(x, m).mean(0)
    at,want = used.argsort()[:n],m.clone()
    for i,j in enumerate(at): want[j] = .9*m[j]+.1*x[i]
    torch.testing.assert_close(b.features, want, rtol=1e-4, atol=1e-5)
    assert int((b.features!=m).any(1).sum())==min(n, 5)
    others = torch.ones(5, dtype=torch.bool).index_fill_(0, at, False)
    torch.testing.assert_close(b.used[others], used[others])
    assert (b.used[at]>=used[at]-1e-6).all() and torch.allclose(b.used[at], used[at].clamp(min=float(used.mean())))

@pytest.mark.parametrize('rule', ['hebbian','replace_least_used'])
def test_use_is_of_many_writes(rule):
    "Not of the last one: who was used much is not the least used for one batch without it"
    b = full(rule)
    b.used.copy_(torch.tensor([.9,.1,.1,.1,.1]))
    b.write(-b.features[:1])
    assert b.used.argmax()==0 and b.used[0]>.8

@pytest.mark.parametrize('rule', ['hebbian','replace_least_used'])
def test_rows_in_turn(rule):
    "Who was written last is not the least used then: all rows get their share"
    b = full(rule, 6)
    m = b.features.clone()
    for i in range(60): b.write(torch.randn(2, DIM, generator=torch.Generator().manual_seed(i)))
    assert ((b.features-m).norm(dim=1)>.1).all()

def test_an_items_own_row_moves():
    b,o = AssociativeBank(6),rows(6)
    assert b.write(**o).tolist()==[*range(6)] and torch.equal(b.features, o['x'])
    assert b.write(**{**o, 'x':o['x']+1}).tolist()==[*range(6)]
    torch.testing.assert_close(b.features, o['x']+.1)
    assert torch.equal(b.items, o['item']) and torch.equal(b.labels, o['y'])

def test_patterns_come_closer_to_what_comes():
    "After a stream of clusters, each is near a row"
    for rule in ('hebbian','replace_least_used'):
        b = AssociativeBank(20, rule=rule)
        b.write(torch.randn(20, DIM, generator=torch.Generator().manual_seed(1)))
        def far(): return float(torch.cdist(rows(90, 500)['x'], b.features).min(1).values.mean())
        was = far()
        for i in range(100): b.write(**rows(16, i))
        assert far()<.8*was, rule
