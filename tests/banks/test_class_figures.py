"What a ClassBank tells of its classes: who is rare, samples, figures, files, in any dtype and within a budget"
import json, math
import numpy as np, pytest, scipy.stats, torch
from hypothesis import example, given, settings, strategies as st
from torch.nn import functional as F
from helpers.tensors import gen
from helpers.errors import err
from memo.banks.base import Bank
from memo.banks.slots import SlotBank
from memo.banks.exchange import BankSaver, bank_from_json, latest_bank
from memo.banks.classes import ClassBank, Scaled, dtypes
from memo.core import MemoError

def filled(counts, d=8, seed=0, **kw):
    "A bank that has seen so many rows of each class, in random order"
    y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    y = y[torch.randperm(len(y), generator=gen(seed))]
    b = ClassBank(len(counts), **{**dict(capacity=6, seed=seed), **kw})
    if len(y): b.write(torch.randn(len(y), d, generator=gen(seed))*3+1, y, item=torch.arange(len(y)))
    return b

# tail, medium, head
@settings(max_examples=60)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=25), st.sampled_from([0., 10., 20., 33., 50.]), st.booleans())
def test_groups_are_disjoint_and_by_percentile(counts, p, unseen):
    b = ClassBank(len(counts), capacity=2, tail_percentile=p)
    b.counts.copy_(torch.tensor(counts))
    t,m,h = b.tail(unseen),b.medium(unseen),b.head(unseen)
    known = [c for c,n in enumerate(counts) if n or unseen]
    assert sorted(t+m+h)==known and all(isinstance(c, int) for c in t+m+h)
    assert b.distribution(unseen)==dict(tail=len(t), medium=len(m), head=len(h))
    if not known:
        assert all(math.isnan(o) for o in b.thresholds(unseen))
        return
    n = [counts[c] for c in known]
    lo,hi = np.percentile(n, p),np.percentile(n, 100-p)
    assert b.thresholds(unseen)==pytest.approx((lo,hi))
    # classes as frequent as each other are together
    for g,c in ((g,c) for g,cs in (('t',t),('m',m),('h',h)) for c in cs):
        assert {'t':t,'m':m,'h':h}[g].count(c)==1 and all(k in {'t':t,'m':m,'h':h}[g] for k in known
                                                          if counts[k]==counts[c])
    if lo<hi: assert t==[c for c in known if counts[c]<=lo] and h==[c for c in known if counts[c]>=hi]

def test_b3_balanced_classes_are_all_medium():
    "They were tail and head at once"
    assert filled([5]*10).distribution()==dict(tail=0, medium=10, head=0)
    assert filled([5,0,0]).distribution()==dict(tail=0, medium=1, head=0)
    b = ClassBank(4)
    assert b.tail()==b.head()==b.medium()==[] and b.distribution()==dict(tail=0, medium=0,
        head=0) and b.tail(unseen=True)==[]
    assert filled([10]*9+[1]).tail()==[9] and filled([1]*9+[10]).head()==[9]

def test_b4_nothing_is_classified_while_training(monkeypatch):
    def never(*args): raise AssertionError('classes were sorted in a write')
    monkeypatch.setattr(ClassBank, 'thresholds', never)
    filled([30,20,5])

# the rate
def test_literal_rate_is_the_documents():
    "Golden values: .5 up to a share of .2, .476 at .21, .2 at .5, .1 at 1"
    for share,want in ((.05,.5),(.2,.5),(.21,.47619),(.5,.2),(1.,.1)):
        b = ClassBank(10, capacity=1, rate='literal')
        b.counts[3],b.seen = round(1000*share)-1,torch.tensor(999)
        b.write(torch.ones(1, 4), torch.tensor([3]))
        assert float(b.mass[3])==pytest.approx(want, abs=2e-3)
    assert "did you mean 'literal'" in err(ClassBank, 3, rate='litteral')

@pytest.mark.parametrize('rate', ['relative','literal'])
def test_prototypes_equal_a_loop_to_a_millionth(rate):
    c,d,n = 40,32,3000
    y = torch.multinomial(torch.logspace(0, -2, c), n, replacement=True, generator=gen(1))
    x = torch.randn(n, d, generator=gen(2))+1
    b = ClassBank(c, capacity=4, rate=rate)
    for o in torch.arange(n).split(256): b.write(x[o], y[o])
    ema,left,seen = np.zeros((c,d)),np.ones(c),np.zeros(c)
    for i,(f,k) in enumerate(zip(F.normalize(x.double()).numpy(), y.tolist())):
        seen[k] += 1
        share = seen[k]/(i+1)
        a = min(max(.1/(c*share if rate=='relative' else share+1e-6), .01), .5)
        ema[k],left[k] = (1-a)*ema[k]+a*f,left[k]*(1-a)
    want = ema/np.maximum(1-left, 1e-12)[:,None]
    assert np.abs(b.prototypes().numpy()-want).max()<1e-6

# bytes
@pytest.mark.parametrize('dtype,tol', [('float32',1e-6), ('float16',1e-3), ('bfloat16',6e-3), ('int8',8e-3)])
def test_stored_in_any_dtype(dtype, tol):
    exact,b = filled([40,20,5], d=64),filled([40,20,5], d=64, dtype=dtype)
    assert b.features.dtype==dtypes[dtype] and torch.equal(b.items, exact.items)
    for c in range(3): assert (b.sample(c)-exact.sample(c)).abs().max()<tol
    q = torch.randn(20, 64, generator=gen(5))
    r,e = b.read(q, 3),exact.read(q, 3)
    assert (r.similarity-e.similarity).abs().max()<3*tol and (r.value-e.value).abs().max()<3*tol
    assert (r.index[:,0]==e.index[:,0]).float().mean()>.8
    assert torch.allclose(b.norms, exact.norms) and torch.equal(b.prototypes(), exact.prototypes())
    for m in (b.half(), b.to(torch.float16)): assert m.features.dtype==dtypes[dtype] and m.ema.dtype==torch.float32
    assert err(ClassBank, 3, dtype='int4').startswith('dtype')

def test_scaled_rows_are_floats_where_indexed():
    s = Scaled(torch.tensor([[127,-64],[1,0]], dtype=torch.int8), torch.tensor([.01,2.]))
    assert s[0].tolist()==pytest.approx([1.27,-.64]) and s[torch.tensor([[0,1]])].shape==(1,2,
        2) and s[torch.tensor([False,True])].tolist()==[[2.,0.]] and len(s[:1])==1

@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 300), st.sampled_from(list(dtypes)), st.integers(20, 4000))
def test_a_budget_is_kept_and_used(c, d, dtype, kb):
    b = ClassBank(c, capacity=f'{kb}kB', dtype=dtype)
    row = d*dtypes[dtype].itemsize+20+4*(dtype=='int8')
    if c*row>kb*1024:
        assert f'{kb}kB' in err(b.write, torch.ones(1, d), torch.tensor([0])) and b.features is None
        return
    b.write(torch.ones(1, d), torch.tensor([0]))
    used = sum(o.nbytes for o in (b.features,b.items,b.groups,b.norms)) + (b.scales.nbytes if dtype=='int8' else 0)
    assert used<=kb*1024<used+c*row and b.capacity_rows==c*b.capacity

@pytest.mark.parametrize('text,n', [('512MB',512*2**20), ('1.5 GB',1.5*2**30), ('640kB',655360), ('2gib',2*2**30)])
def test_units(text, n):
    d = 2**14
    b = ClassBank(2, capacity=text, dim=d, dtype='int8')
    b.write(torch.ones(1, d), torch.tensor([0]))
    assert b.capacity==int(n//(2*(d+24)))

@pytest.mark.parametrize('bad', ['512', 'a lot', 'MB', '-3MB'])
def test_no_budget(bad): assert repr(bad) in err(ClassBank, 2, capacity=bad)

def test_more_than_there_is_memory():
    assert 'of memory' in err(ClassBank, 1000, capacity=10**10) and 'int8' in err(ClassBank, 1000, capacity=10**10)
    b = ClassBank(8142, capacity=20_000)         # ids fit, features do not
    assert 'of memory' in err(b.write, torch.ones(1, 2048), torch.tensor([0])) and b.features is None

def test_a_bank_with_a_budget_is_loaded(tmp_path):
    b = filled([9,5,2], capacity='2kB')
    b.save(tmp_path/'b.safetensors')
    assert isinstance(b.capacity, int) and Bank.load(tmp_path/'b.safetensors').capacity==b.capacity
    fresh = ClassBank(3, capacity='2kB')
    fresh.load_state_dict(b.state_dict())
    assert fresh.capacity==b.capacity and torch.equal(fresh.items, b.items)
    again = ClassBank(3, capacity='2kB')
    again.load_state_dict(ClassBank(3, capacity='2kB').state_dict())           # from before the width was known
    again.write(torch.ones(3, 8), torch.arange(3))
    assert again.capacity==b.capacity
    assert 'dtype' in err(ClassBank(3, capacity=b.capacity, dtype='int8').load_state_dict, b.state_dict())

# samples
def test_sample():
    b = filled([30,4,0])
    s = b.sample(0)
    assert s.shape==(6,8) and torch.allclose(s.norm(dim=1), torch.ones(6), atol=1e-5)
    assert b.sample(1, 99).shape==(4,8) and b.sample(2).shape==(0,8) and b.sample(0, 0).shape==(0,8)
    k = b.sample(0, 4)
    hit = (k[:,None]==s[None]).all(2)
    assert hit.any(1).all() and hit.any(0).sum()==4                             # of the stored, none twice
    assert ClassBank(3).sample(1, 5).shape[0]==0
    for bad in (-1, 3, 1.5, 'Coat', [1,2], True): assert '0..2' in err(b.sample, bad) and '0..2' in err(b.stats, bad)
    for bad in (-1, 2.5): assert 'k:' in err(b.sample, 0, bad)
    assert set(b.tail_features(2))==set(b.tail())

def test_samples_are_uniform_and_repeatable():
    b = filled([50], capacity=10)
    rows = b.sample(0)
    hits = np.zeros(10)
    for _ in range(400): hits += (b.sample(0, 3)[:,None]==rows[None]).all(2).any(0).numpy()
    assert scipy.stats.chisquare(hits).pvalue>1e-3
    import copy
    one,two = copy.deepcopy(b),copy.deepcopy(b)
    assert torch.equal(one.sample(0, 3), two.sample(0, 3)) and torch.equal(one.sample(0, 3),
        two.sample(0, 3)) and int(one.draws)>int(b.draws)
    was = torch.get_rng_state()
    b.sample(0, 3)
    assert torch.equal(torch.get_rng_state(), was)

def test_draws_have_the_length_they_had():
    b,x = ClassBank(3, capacity=4),torch.tensor([[3.,4],[0,5],[6,8]])
    b.write(x, torch.tensor([0,0,2]))
    got = b.draw(torch.tensor([2,2,0]))
    assert torch.allclose(got[:2], x[[2,2]]) and any(torch.allclose(got[2], o) for o in x[:2])
    assert 'class 1' in err(b.draw, torch.tensor([0,1]))

@settings(max_examples=50)
@given(st.lists(st.integers(0, 500), min_size=1, max_size=12), st.integers(1, 300))
@example([198,284,312,312], 300)
def test_missing_evens_out(counts, n):
    b = ClassBank(len(counts), capacity=1)
    b.counts.copy_(torch.tensor(counts))
    y = b.missing(n)
    total = sum(counts)
    if not total: return None if len(y)==0 else pytest.fail('nothing is known')
    add = torch.bincount(y, minlength=len(counts)).numpy()
    want = n*(max(counts)-np.array(counts))/total*(np.array(counts)>0)
    assert abs(len(y)-want.sum())<=.51
    # of as many rows as there are, which is a whole number: each class has its share of them to one
    assert np.abs(add-want*(len(y)/max(want.sum(), 1e-9))).max()<=1.01

def test_similarity():
    b = filled([20,9,0])
    s = b.similarity()
    p = b.prototypes()
    for i in range(3):
        for j in range(3): assert float(s[i,j])==pytest.approx(float(F.cosine_similarity(p[i], p[j], dim=0)), abs=1e-6)
    assert 'empty' in err(ClassBank(2).similarity)

# figures
keys = {'class_id','ema_count','reservoir_count','total_samples','class_frequency','class_percentage','is_tail',
        'is_head','is_medium','prototype_norm'}
def test_figures_of_a_class():
    b = filled([30,12,6,1,0])
    for c in range(5):
        s = b.stats(c)
        json.dumps(s, allow_nan=False)
        assert set(s)==keys | ({'buffer_mean_norm','buffer_std_norm','mean_length','std_length',
                                'prototype_buffer_similarity'} if c<4 else set())
        assert s['class_frequency']==[30,12,6,1,0][c] and s['reservoir_count']==min(6,
            s['class_frequency']) and s['class_percentage']==pytest.approx(100*s['class_frequency']/49)
        assert (s['is_tail'],s['is_medium'],s['is_head'])==(c in b.tail(), c in b.medium(), c in b.head())
    one = b.stats(3)
    # B3: nan, from a class with one sample
    assert one['buffer_std_norm']==0 and one['prototype_buffer_similarity']==pytest.approx(1, abs=1e-5)
    assert b.stats(4)['prototype_norm']==0 and not any(b.stats(4)[k] for k in ('is_tail','is_head','is_medium'))
    f = b.norms[0]
    assert b.stats(0)['mean_length']==pytest.approx(f.mean().item()) and b.stats(0)[
        'std_length']==pytest.approx(f.numpy().std(), abs=1e-4)
    whole = b.stats()
    json.dumps(whole, allow_nan=False)
    assert whole['seen']==49 and whole['classes_with_data']==4 and whole['empty_classes']==1 and whole[
        'total_features_stored']==len(b)==6+6+6+1
    assert whole['buffer_utilization']==pytest.approx(19/30) and whole['tail_classes_count']==len(b.tail())
    json.dumps(ClassBank(3, capacity='1MB').stats(), allow_nan=False)

def test_prompt_data_and_export(tmp_path):
    b = filled([30,12,6,2,2])
    d = b.prompt_data(3, k=1)
    assert set(d)=={'class_id','prototype','features','is_tail','class_frequency','class_percentage',
                    'feature_count'} and d['is_tail'] and d['feature_count']==1 and d['features'].shape==(1,8)
    assert set(b.prompt_data(k=2))==set(b.tail())=={3,4}
    b.export_tail(tmp_path/'tail.json')
    got = json.loads((tmp_path/'tail.json').read_text())
    assert set(got)=={'3','4','summary'} and set(got['3'])=={'prompt_data','statistics',
        'memory_info'} and len(got['3']['prompt_data']['features'])==2
    assert got['summary']['tail_class_ids']==[3,
                                              4] and got['summary']['total_tail_classes']==2 and got['summary'][
                                                  'total_samples']==52 and 'export_timestamp' in got['summary']
    assert set(got['3']['memory_info'])=={'ema_count','reservoir_count','prototype_norm'}
    empty = ClassBank(3)
    empty.export_tail(tmp_path/'none.json')
    assert set(json.loads((tmp_path/'none.json').read_text()))=={'summary'}

# files
def test_json_of_the_published_bank(tmp_path):
    "Written by hand in the layout of the document, as its MemoryBank.save does"
    d = dict(num_classes=3, feature_dim=2, capacity_per_class=2, alpha_base=.1, tail_threshold_percentile=30.,
             ema_prototypes=[[.6,.8],[0,.9],[0,0]], ema_counts=[5,1,0], reservoir_counts=[5,1,0],
             class_frequencies=[5,1,0], total_samples=6, tail_classes=[1,2], head_classes=[0], medium_classes=[],
             update_history={'0':[dict(step=1, alpha=.5, feature_norm=1.)]},
             reservoir_buffers={'0':[[.6,.8],[1,0]], '1':[[0,1]], '2':[]})
    p = tmp_path/'memory.json'
    p.write_text(json.dumps(d))
    b = ClassBank.from_json(p)
    assert torch.allclose(b.prototypes(), torch.tensor(d['ema_prototypes'])) and b.counts.tolist()==[5,1,
        0] and len(b)==3 and b.tail_percentile==30 and int(b.seen)==6
    assert b.sample(0).tolist()==pytest.approx(torch.tensor([[.6,.8],[1,0]])) and (b.items==-1).all()
    b.write(torch.ones(4, 2), torch.tensor([0,1,2,2]))             # B5: going on raised a KeyError
    assert b.counts.tolist()==[6,2,2]
    b.to_json(p)
    again = json.loads(p.read_text())
    assert set(d)==set(again) and again['class_frequencies']==[6,2,
        2] and all(isinstance(k, str) for k in again['reservoir_buffers'])
    assert torch.allclose(ClassBank.from_json(p).prototypes(), b.prototypes(), atol=1e-6)
    for change,word in ((dict(reservoir_buffers={'0':[[1,0]],'1':[[0,1]]}),'class 0'),
                        (dict(class_frequencies=[5,1]),'num_classes is 3'),
                        (dict(ema_prototypes=[[1]]),'num_classes is 3'),
                        (dict(reservoir_buffers={'7':[[1,0]]}),'class 7'), (dict(num_classes='x'),'num_classes')):
        p.write_text(json.dumps({**d, **change}))
        assert word in err(bank_from_json, p) and 'memory.json' in err(bank_from_json, p)
    p.write_text(json.dumps(d)[:200])
    assert 'not a whole JSON' in err(bank_from_json, p)
    p.write_text('[1,2]')
    assert 'no memory bank' in err(bank_from_json, p)
    assert 'no bank at' in err(bank_from_json, tmp_path/'nope.json')

def test_files_that_are_no_bank(tmp_path):
    b = filled([9,4])
    p = tmp_path/'b.safetensors'
    b.save(p)
    for n in (0, 7, 60, len(p.read_bytes())-9):
        (tmp_path/'cut.safetensors').write_bytes(p.read_bytes()[:n])
        assert 'cut.safetensors' in err(Bank.load, tmp_path/'cut.safetensors')
    from safetensors.torch import save_file
    save_file(dict(a=torch.ones(2)), tmp_path/'foreign.safetensors')
    assert 'foreign.safetensors' in err(Bank.load, tmp_path/'foreign.safetensors')

def test_saver_writes_what_was_then(tmp_path):
    b = filled([20,5,2])
    s = BankSaver(b, tmp_path, 'x')
    p = s.save(10)
    was = b.features.clone()
    b.write(torch.ones(30, 8), torch.arange(30)%3)                  # training goes on
    s.save(2); s.save(100); s.wait()
    assert torch.equal(Bank.load(p).features, was) and not torch.equal(was, b.features)
    assert latest_bank(tmp_path, 'x').name=='x_step_100.safetensors'
    other = BankSaver(b, tmp_path, 'x_final')                       # B: the prefix x also matched x_final
    other.save(7); other.wait()
    assert latest_bank(tmp_path, 'x').name=='x_step_100.safetensors' and latest_bank(tmp_path,
        'x_final').name=='x_final_step_7.safetensors' and latest_bank(tmp_path, 'y') is None
    info = json.loads((tmp_path/'x_step_100.json').read_text())
    assert info['step']==100 and info['updates_per_class']==b.counts.tolist() and info['rows']==len(b)
    s.save('final'); s.wait()
    assert latest_bank(tmp_path, 'x').name=='x_final.safetensors' and not list(tmp_path.glob('.*'))

def test_saver_says_what_went_wrong(tmp_path):
    (tmp_path/'file').write_text('')
    s = BankSaver(filled([3,2]), tmp_path/'file/sub')
    s.save(1)
    assert 'cannot write' in err(s.wait)
    s.wait()                                                        # once

def test_saver_takes_slot_banks(tmp_path):
    b = SlotBank(5, policy='fifo')
    b.write(torch.randn(9, 3))
    s = BankSaver(b, tmp_path)
    s.save(1); s.wait()
    assert torch.equal(Bank.load(latest_bank(tmp_path)).features, b.features)

# what is wrong is told
def test_bad_rows():
    b = ClassBank(3, capacity=4)
    assert 'label 3' in err(b.write, torch.ones(1, 2), torch.tensor([3]))
    b.write(torch.zeros(2, 2), torch.tensor([0,1]))                 # zero vectors: no direction, but counted
    assert b.counts.tolist()==[1,1,
                               0] and b.prototypes().isfinite().all() and b.draw(torch.tensor([0])).tolist()==[[0,0]]
    with pytest.warns(UserWarning, match='NaN'): b.write(torch.full((1,2), math.nan), torch.tensor([2]))
    assert b.counts.tolist()==[1,1,0] and int(b.refused)==1
    for kw,word in ((dict(tail_percentile=60),'tail_percentile'), (dict(alpha=0),'alpha'),
                    (dict(n_classes=0),'n_classes')):
        assert word in err(lambda **k: ClassBank(**{**dict(n_classes=3), **k}), **kw)

def test_save_bank_while_training(tmp_path):
    from fastai.learner import Learner
    from memo.training.memory_callback import MemoryCallback
    from memo.training.save_bank import SaveBank
    from memo.data.longtail import digits_lt
    from memo.models.small import small_cnn
    dls = digits_lt(n_max=20, ratio=4, valid=5, test=10, size=8)
    learn = Learner(dls, small_cnn(1, 10), path=tmp_path,
                    cbs=[MemoryCallback(ClassBank(10, capacity=8)), SaveBank(2, prefix='d')])
    with learn.no_bar(), learn.no_logging():
        learn.fit(5)
        learn.validate(); learn.get_preds()
    assert sorted(p.name for p in (tmp_path/'banks').iterdir())==['d_step_2.json','d_step_2.safetensors',
        'd_step_4.json','d_step_4.safetensors']
    b = Bank.load(latest_bank(tmp_path/'banks', 'd'))
    assert int(b.seen)*5==int(learn.memory.bank.seen)*4 and b.n_classes==10
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert (tmp_path/'banks/d_step_6.json').exists()             # epochs of all fits
    assert 'every must be a whole number from 1, found 0' in err(SaveBank, 0)
    learn.export(tmp_path/'m.pkl')
    (tmp_path/'file').write_text('')
    learn.save_bank.folder = 'file'
    # a training is no worse for it
    with learn.no_bar(), learn.no_logging(), pytest.warns(UserWarning, match='cannot write'): learn.fit(2)
