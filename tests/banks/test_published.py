"What users of the published tail bank and chest X-ray bank find here: their files, their calls, their numbers"
import json
import pytest, torch
from sklearn.datasets import load_digits
from contracts.made import learner
from helpers.errors import err
from helpers.learners import quietly
from memo.banks.base import Bank
from memo.banks.classes import ClassBank
from memo.banks.exchange import BankSaver, latest_bank, open_bank
from memo.banks.policies import Candidates, diversity, policies, rarity
from memo.banks.slots import SlotBank
from memo.cli import memo_bank

_d = load_digits()
X,Y = torch.from_numpy(_d.data).float(),torch.from_numpy(_d.target).long()

class MemoryBank(torch.nn.Module):
    "The buffers of the published chest X-ray bank, and its ring: `index` is write pointer and count at once"
    def __init__(self, dim, size):
        super().__init__()
        buffers = dict(memory=torch.zeros(size, dim), index=torch.tensor(0), memory_count=torch.zeros(size),
                       running_mean=torch.zeros(dim), running_var=torch.ones(dim), num_updates=torch.tensor(0),
                       running_mean_norm=torch.tensor(0.))
        for o,v in buffers.items(): self.register_buffer(o, v)
    def update(self, f):
        at = (int(self.index)+torch.arange(len(f)))%len(self.memory)
        self.memory[at] = f
        self.memory_count[at] += 1
        self.index.fill_((int(self.index)+len(f))%len(self.memory))
        self.num_updates += 1

class ChestModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body,self.memory_bank,self.head = torch.nn.Linear(64, 64),MemoryBank(64, 48),torch.nn.Linear(64, 14)

def chest(batches=2):
    m = ChestModel()
    for i in range(batches): m.memory_bank.update(X[20*i:20*i+20])
    return m

@pytest.mark.parametrize('way', ['state','model and optimizer','bank alone'])
@pytest.mark.parametrize('batches', [0, 2, 4])
def test_a_published_chest_bank(way, batches, tmp_path):
    "As torch.save and fastai's learn.save write it; after a turn of the ring all rows are there, theirs read only some"
    m,p = chest(batches),tmp_path/'model.pth'
    opt = torch.optim.Adam(m.parameters())
    torch.save({'state':m.state_dict(), 'model and optimizer':dict(model=m.state_dict(), opt=opt.state_dict()),
                'bank alone':m.memory_bank.state_dict()}[way], p)
    b = Bank.load(p, policy='hybrid', diversity_weight=.3)
    n = min(20*batches, 48)
    assert type(b) is SlotBank and (len(b),b.size,b.dim)==(n,48,64) and (b.policy,b.diversity_weight)==('hybrid',.3)
    if n:
        assert torch.equal(b.features[:n], m.memory_bank.memory[:n])
        assert torch.allclose(b.norms[:n], b.features[:n].norm(dim=1)) and float(b.mean_norm)>0
        r = b.read(X[35:37], 1)
        assert r.index.tolist()==[[35],[36]] and int(b.updates)==batches and int(b.seen)==20*batches
    b.write(X[300:310], item=torch.arange(10))
    assert len(b)>=n and b.features.isfinite().all()
    b.save(tmp_path/'b.safetensors')
    again = Bank.load(tmp_path/'b.safetensors')
    assert all(torch.equal(s, t) for s,t in zip(b.buffers(), again.buffers())) and again.config()==b.config()
    if batches==2:
        assert len(open_bank(p)[0])==40
        assert '40 of 48' in memo_bank(p, out=tmp_path/'out')

def test_the_ring_goes_on(tmp_path):
    m = chest(2)
    torch.save(m.state_dict(), tmp_path/'m.pth')
    b = Bank.load(tmp_path/'m.pth', policy='fifo')
    m.memory_bank.update(X[100:120]); b.write(X[100:120])
    assert torch.equal(b.features, m.memory_bank.memory)

def test_memos_own_pth(tmp_path):
    learn = learner(SlotBank(32, policy='fifo'), 'vote', path=tmp_path, k=5)
    quietly(learn, 'fit', 1)
    for with_opt in (False, True):
        b = Bank.load(learn.save('m', with_opt=with_opt))
        assert all(torch.equal(s, t) for s,t in zip(b.buffers(), learn.memory.bank.buffers()))
        assert b.vocab==learn.memory.bank.vocab==[str(i) for i in range(10)]
    learn.memory.bank.save(tmp_path/'own.pth')      # a safetensors file, whatever it is called
    assert torch.equal(Bank.load(tmp_path/'own.pth').features, b.features)

class Evil:
    "Would make a file when it is unpickled"
    def __init__(self, path): self.path = path
    def __reduce__(self): return open,(str(self.path),'w')

def test_files_that_hold_no_bank(tmp_path):
    p = tmp_path/'m.pth'
    good = chest().state_dict()
    two = {**{f'a.{k}':v for k,v in good.items()}, **{f'b.{k}':v for k,v in good.items()}}
    def rows(x): return {**good, 'memory_bank.memory':x}
    for what,word in ((dict(a=torch.ones(2)),'no banks'), (two,'2 banks'), (rows(torch.ones(3)),'[N,D]'),
                      (rows(torch.full((4,2), float('nan'))),'finite'), (Evil(tmp_path/'made'),'no weights'),
                      ([1,2],'no weights'), (7,'no weights'), ({},'no banks')):
        torch.save(what, p)
        say = err(Bank.load, p)
        assert word in say and 'm.pth' in say, say
    assert not (tmp_path/'made').exists()
    p.write_bytes(p.read_bytes()[:40])
    assert 'm.pth' in err(Bank.load, p) and 'm.pth' in err(open_bank, p)
    p.write_text('nothing')
    assert 'm.pth' in err(Bank.load, p)
    p.write_text('hello')   # of which torch says: 101
    assert 'a file of learn.save' in err(Bank.load, p)
    assert 'no bank at' in err(Bank.load, tmp_path/'none.pth')

# the weight of diversity
@pytest.mark.parametrize('w', [0., .2, .5, 1.])
def test_diversity_weight(w, tmp_path):
    "The published score, -(1-w) rarity - w (1 - cos), sorted the other way round"
    b = SlotBank(32, policy='hybrid', diversity_weight=w)
    b.write(X[:40])
    c = Candidates(X[100:140], X[100:140].norm(dim=1), None, None)
    want = (1-w)*rarity(c, b)+w*diversity(c, b)
    assert torch.allclose(policies['hybrid'].score(c, b), want)
    b.save(tmp_path/'b.safetensors')
    assert Bank.load(tmp_path/'b.safetensors').diversity_weight==w
    plain = SlotBank(32, policy='hybrid')
    plain.write(X[:40])
    assert torch.equal(policies['hybrid'].score(c, plain), .5*rarity(c, plain)+.5*diversity(c, plain))

def test_weights_that_are_none():
    for w in (-.1, 1.1, float('nan'), 'half'): assert 'diversity_weight' in err(SlotBank, 8, diversity_weight=w)

# the tail bank's calls
def test_distribution_of_ids():
    b = ClassBank(10, capacity=8)
    y = torch.arange(10).repeat_interleave(torch.tensor([100,50,40,30,20,10,8,6,2,0]))
    b.write(torch.randn(len(y), 4), y)
    got = b.distribution(ids=True)
    assert got==dict(tail=b.tail(), medium=b.medium(), head=b.head()) and json.loads(json.dumps(got))==got
    assert b.distribution()=={k:len(v) for k,v in got.items()}
    assert b.distribution(unseen=True, ids=True)['tail']==b.tail(unseen=True) and 9 in b.tail(unseen=True)
    assert ClassBank(3).distribution(ids=True)==dict(tail=[], medium=[], head=[])

@pytest.mark.parametrize('dtype,tol', [('float32',1e-6), ('float16',1e-3), ('int8',1e-6)])
def test_norms_of_what_is_stored(dtype, tol):
    "`buffer_mean_norm` is of the buffer, as published, where features have unit length; how long they came is beside"
    b = ClassBank(10, capacity=64, dtype=dtype)
    b.write(X[:200], Y[:200])
    s = b.stats(3)
    assert s['buffer_mean_norm']==pytest.approx(1, abs=tol) and s['buffer_std_norm']==pytest.approx(0, abs=tol)
    came = X[:200][Y[:200]==3].norm(dim=1)
    assert s['mean_length']==pytest.approx(float(came.mean()), rel=1e-5)
    assert s['std_length']==pytest.approx(float(came.std(correction=0)), rel=1e-4)

def test_the_latest_bank(tmp_path):
    "It was: the final one, though a later run had gone on"
    b = ClassBank(10, capacity=8)
    s = BankSaver(b, tmp_path, 'x')
    def saved(step):
        b.write(X[:20], Y[:20]); s.save(step); s.wait()
        return latest_bank(tmp_path, 'x').name.removeprefix('x_').removesuffix('.safetensors')
    assert [saved(o) for o in (2, 'final', 4, 3, 'final', 10)]==['step_2','final','step_4','step_4','final','step_10']
    s.save('final'); s.wait()       # the same bank as step 10
    assert latest_bank(tmp_path, 'x').name=='x_final.safetensors'
    (tmp_path/'x_step_10.safetensors').write_bytes(b'cut')
    assert latest_bank(tmp_path, 'x').name=='x_final.safetensors'

# replay
def ranks(c):
    b = ClassBank(c, capacity=2)
    b.counts.copy_((1e5/torch.arange(1, c+1)).long())
    b.offers.copy_(b.counts)
    return b

@pytest.mark.parametrize('c', [2, 30, 1000, 8142])
@pytest.mark.parametrize('n', [1, 64])
def test_replay_is_bounded(c, n):
    "It was: 8,359 rows for a batch of 64"
    b = ranks(c)
    for most in (None, .5, 3):
        y = b.missing(n) if most is None else b.missing(n, most)
        assert len(y)<=n*(10 if most is None else most) and bool((y[1:]>=y[:-1]).all())
    p = b.counts/b.counts.sum()
    if n*float((p.max()-p).sum())<=10*n: assert abs(len(b.missing(n))-n*float((p.max()-p).sum()))<=1

def test_a_bound_is_shared_by_all():
    "Each class gets the same share of what it lacks"
    b = ranks(200)
    p = b.counts.double()/b.counts.sum()
    lack = 64*(p.max()-p)
    got = sum(torch.bincount(b.missing(64, 2), minlength=200) for _ in range(300))/300
    assert torch.allclose(got.double(), lack*128/lack.sum(), rtol=.1, atol=.05)

def test_the_replay_head_takes_the_bound():
    learn = learner(ClassBank(10, capacity=8), 'replay', most=.5)
    drawn,missing = [],ClassBank.missing
    bank = learn.memory.bank
    bank.missing = lambda n, most: drawn.append((n,len(y := missing(bank, n, most)))) or y
    quietly(learn, 'fit', 2)
    assert drawn and all(m<=n/2 for n,m in drawn) and any(m for _,m in drawn)
    assert 'most' in err(learner, ClassBank(10, capacity=8), 'replay', most=0)
