"A bank that stays in its file is read as one in memory, in a fraction of its size, and the file stays as it was"
import hashlib, json, os, sys
import pytest, torch
from helpers.errors import err
from helpers.tensors import draw
from memo.banks.base import Bank
from memo.banks.classes import ClassBank
from memo.banks.files import mapped_state
from memo.banks.key_value import CachedBank, TrainableBank
from memo.banks.search import MappedSearch, Stretches, searchers
from memo.banks.slots import SlotBank
from memo.core import MemoError
from safetensors.torch import save_file

def bank_of(kind='slots', n=60):
    x,y = draw(n, 8),torch.arange(n)%3
    b = SlotBank(n, policy='fifo') if kind=='slots' else ClassBank(3, n//2, dtype=kind)
    b.write(x, y, item=torch.arange(n))
    return b
def saved(b, p):
    b.save(p)
    return p

@pytest.mark.parametrize('kind', ['slots','float32','float16','int8'])
@pytest.mark.parametrize('stretch', [7, 10**6])
def test_it_reads_as_one_in_memory(kind, stretch, monkeypatch, tmp_path):
    b,q = bank_of(kind),draw(5, 8, seed=3)
    new = Bank.load(saved(b, tmp_path/'b.safetensors'), mmap=True)
    init = Stretches.__init__
    def short(self, *args):
        init(self, *args)
        self.stretch = stretch
    monkeypatch.setattr(Stretches, '__init__', short)
    for kw in (dict(), dict(k=9, item=torch.arange(5)), dict(similarity='euclidean')):
        got,want = new.read(q, **kw),b.read(q, **kw)
        assert torch.equal(got.index, want.index)
        for m,n in zip(got, want): torch.testing.assert_close(m, n, atol=1e-5, rtol=1e-5)
    assert isinstance(searchers[new], MappedSearch) and len(new)==len(b) and new.stats()==b.stats()
    assert torch.equal(new.classify(q)[0], b.classify(q)[0])

def test_what_is_written_stays_in_memory(tmp_path):
    b = bank_of()
    p = saved(b, tmp_path/'b.safetensors')
    was = hashlib.md5(p.read_bytes()).digest()
    new,x = Bank.load(p, mmap=True),draw(4, 8, seed=9)
    for o in (b,new): o.write(x, torch.zeros(4).long(), item=torch.arange(100, 104))
    assert all(torch.equal(m, n) for m,n in zip(new.read(x, 3), b.read(x, 3)))
    assert hashlib.md5(p.read_bytes()).digest()==was
    new.rekey(x*2, torch.arange(100, 104))
    new.reset()
    assert (new.read(x, 3).index==-1).all() and hashlib.md5(p.read_bytes()).digest()==was

def test_a_new_file_in_its_place_does_no_harm(tmp_path):
    b = bank_of()
    p = saved(b, tmp_path/'b.safetensors')
    new,q = Bank.load(p, mmap=True),draw(5, 8, seed=3)
    saved(bank_of(n=12), p)
    assert all(torch.equal(m, n) for m,n in zip(new.read(q, 3), b.read(q, 3)))
    os.remove(p)
    assert torch.equal(new.read(q, 3).index, b.read(q, 3).index)

@pytest.mark.parametrize('kind', [SlotBank,CachedBank,TrainableBank])
def test_in_inference_mode(kind, tmp_path):
    "What is mapped there can be written to outside of it, as what is loaded there can"
    b = kind(9, policy='fifo') if kind is SlotBank else kind(9, 3)
    x = draw(12, 8)
    b.write(x, torch.arange(12)%3)
    saved(b, tmp_path/'b.safetensors')
    with torch.inference_mode(): new = Bank.load(tmp_path/'b.safetensors', mmap=True)
    for o in (b,new): o.write(-x, torch.arange(12)%3)
    assert new in searchers and torch.equal(new.read(x, 2).index, b.read(x, 2).index)

def test_numbers_of_every_type(tmp_path):
    "A bank of one's own may hold what memo's do not"
    kinds = 'bool uint8 int8 int16 uint16 int32 uint32 int64 uint64 float8_e4m3fn float8_e5m2 float16 bfloat16 ' \
            'float32 float64 complex64'
    whole = {k:torch.tensor([[0,1,1],[1,0,1]]).to(getattr(torch, k)) for k in kinds.split()}
    save_file(whole, tmp_path/'b.safetensors')
    got = mapped_state(tmp_path/'b.safetensors')
    assert {k:(o.dtype,o.tolist()) for k,o in got.items()}=={k:(o.dtype,o.tolist()) for k,o in whole.items()}

def test_empty_banks_and_wrong_files(tmp_path):
    new = Bank.load(saved(SlotBank(4), tmp_path/'b.safetensors'), mmap=True)
    assert len(new)==0 and new not in searchers
    new.write(torch.ones(2, 3), torch.tensor([0,1]))
    assert new.device.type=='cpu' and len(new.read(torch.ones(1, 3), 1).index)==1
    torch.save({}, tmp_path/'m.pth')
    assert 'safetensors' in err(Bank.load, tmp_path/'m.pth', mmap=True)
    assert 'cpu' in err(Bank.load, tmp_path/'b.safetensors', 'meta', mmap=True)
    assert 'no bank' in err(Bank.load, tmp_path/'none.safetensors', mmap=True)

def test_no_room_is_asked_for(monkeypatch, tmp_path):
    "What is larger than memory can be mapped, not loaded"
    import memo.banks.offers as O
    p = saved(bank_of(), tmp_path/'b.safetensors')
    monkeypatch.setattr(O.os, 'sysconf', lambda o: 10)
    assert 'of memory' in err(Bank.load, p)
    assert len(Bank.load(p, mmap=True))==60

@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='a file with a hole, as Linux has them')
def test_larger_than_memory(tmp_path):
    "A file larger than the machine's memory is mapped; loading it is refused with what would do"
    width = 2**20
    n = int(os.sysconf('SC_PAGE_SIZE')*os.sysconf('SC_PHYS_PAGES')*1.2)//4//width
    with torch.device('meta'): b = SlotBank(n, width, policy='fifo')
    b.features = torch.empty(n, width, device='meta')
    state,head,at = b.state_dict(),{'__metadata__':b.header()},0
    for k,v in state.items():
        kind = {torch.float32:'F32', torch.int64:'I64', torch.uint8:'U8'}[v.dtype]
        head[k] = dict(dtype=kind, shape=[*v.shape], data_offsets=[at, at := at+v.nbytes])
    text = json.dumps(head).encode()
    text += b' '*(-len(text)%8)
    def seek(f, k, i=0): f.seek(8+len(text)+head[k]['data_offsets'][0]+i)
    with open(p := tmp_path/'large.safetensors', 'wb') as f:
        f.write(len(text).to_bytes(8, 'little')+text)
        f.truncate(8+len(text)+at)
        seek(f, 'count'); f.write(n.to_bytes(8, 'little'))
        seek(f, '_extra_state'); f.write(state['_extra_state'].numpy().tobytes())
        seek(f, 'features', 4*(width*(n-1)+7)); f.write(torch.tensor([1.5]).numpy().tobytes())
    new = Bank.load(p, mmap=True)
    assert len(new)==n and new.features[n-1,7]==1.5 and new.features[n-1].sum()==1.5
    with pytest.raises(MemoError) as e: Bank.load(p)
    assert 'memory' in str(e.value) and '\n' not in str(e.value)

def test_an_index_of_it(tmp_path):
    pytest.importorskip('faiss')
    b,q = bank_of(n=600),draw(5, 8, seed=3)
    new = Bank.load(saved(b, tmp_path/'b.safetensors'), mmap=True)
    new.index('ivf', recall=.1).probes = 100
    assert torch.equal(new.read(q, 3).index, b.read(q, 3).index)
    new.write(torch.ones(1, 8), torch.tensor([0]))
    with pytest.warns(UserWarning, match='changed since'): new.read(q, 3)
    assert new.classify(torch.ones(1, 8))[0].tolist()==[0]

child = """
import torch
from memo.banks.base import Bank
def now():
    s = open('/proc/self/status').read()
    return {k:int(s.split(k+':')[1].split()[0])/1024 for k in ('VmHWM','VmRSS')}
q,want = torch.load('q.pt')
torch.ones(64, 64)@torch.ones(64, 64)
for mmap in (True, False):
    open('/proc/self/clear_refs', 'w').write('5')       # the highest mark begins here
    was = now()['VmRSS']
    b = Bank.load('b.safetensors', mmap=mmap)
    r = b.read(q, 3, item=torch.arange(4))
    assert torch.equal(r.index, want), 'other rows'
    print(now()['VmHWM']-was)
    del b, r
"""

@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists('/proc/self/clear_refs'), reason='memory of a process is read from /proc')
def test_it_takes_a_fraction_of_its_size(python, tmp_path):
    "300 MB; a bank that is loaded takes them, so that what is measured here can fail"
    n = 150_000
    b = SlotBank(n, policy='fifo')
    c = draw(100, 512, seed=1)
    for lo in range(0, n, 10_000):
        x = c.repeat(100, 1)+.5*draw(10_000, 512, seed=lo)
        b.write(x, torch.arange(10_000)%10, item=torch.arange(lo, lo+10_000))
    q = b.features[:4]+.1
    torch.save((q,b.read(q, 3, item=torch.arange(4)).index), tmp_path/'q.pt')
    b.save(tmp_path/'b.safetensors')
    size = (tmp_path/'b.safetensors').stat().st_size/2**20
    del b
    r = python('-W', 'ignore', '-c', child, cwd=tmp_path, cold=True)
    assert r.returncode==0, r.stderr[-800:]
    mapped,loaded = map(float, r.stdout.split()[-2:])
    assert size>290 and loaded>size*.9 and mapped<size*.3, (size, mapped, loaded)
