"Files of banks from anybody: what does not fit is refused in a line before room is made for it, whatever it names"
import json, struct
import pytest, torch
from helpers.errors import err
from memo.banks.exchange import bank_from_json, open_bank
from memo.banks.files import load_bank
from memo.all import Bank, CachedBank, ClassBank, SlotBank

def filled(b):
    g = torch.Generator().manual_seed(0)
    b.write(torch.randn(6, 4, generator=g), torch.arange(6)%3, item=torch.arange(6))
    return b

def parts(path):
    b = path.read_bytes()
    n = 8+int.from_bytes(b[:8], 'little')
    return json.loads(b[8:n]),b[n:]

def put(path, head, data):
    head.get('__metadata__', {}).pop('checksum', None)      # it is no damage: somebody wrote it so
    b = json.dumps(head).encode()
    path.write_bytes(struct.pack('<Q', len(b))+b+data)
    return path

@pytest.fixture
def slots(tmp_path):
    filled(SlotBank(8, policy='fifo', n_classes=3)).save(tmp_path/'b.safetensors')
    return tmp_path/'b.safetensors'

def said(path, **kw):
    "A file whose header says something else"
    h,data = parts(path)
    memo = json.loads(h['__metadata__']['memo'])
    h['__metadata__']['memo'] = kw['text'] if 'text' in kw else json.dumps({**memo, **kw})
    return put(path, h, data)

@pytest.mark.parametrize('kw,msg', [
    (dict(text='[]'), 'does not say what its bank is'), (dict(text='{}'), 'does not say of which class'),
    (dict(text='{'), 'no whole bank'), (dict(text='['*100_000), 'no whole bank'), (dict(kind=5), 'of which class'),
    (dict(write=5), 'it says write of its SlotBank, which has no such argument'),
    (dict(size=10**12), "and says (1000000000000,)"), (dict(size=-1), 'size'), (dict(size='x'), 'size'),
    (dict(policy='nope'), 'policy'), (dict(momentum=[]), 'momentum'),
    (dict(kind='memo.heads.retrieval:RetrievalHead'), 'which is no class of banks'),
    (dict(kind='torch.nn.modules.linear:Linear'), 'which is no class of banks'),
    (dict(kind='nopkg:Bank'), 'import nopkg first')])
def test_headers(slots, kw, msg):
    said(slots, **kw)
    for f in (load_bank, open_bank):
        e = err(f, slots)
        assert msg in e and len(e)<=300, e

def changed(path, name, value=None, **kw):
    "A file in which a tensor is another, or is not there"
    from safetensors.torch import load_file, save_file
    sd,h = load_file(path),parts(path)[0]['__metadata__']
    if value is None: sd.pop(name)
    else: sd[name] = value(sd[name])
    h.pop('checksum', None)
    save_file(sd, path, metadata=h)
    return path

def with_(i, v):
    def f(t):
        t = t.clone()
        t.view(-1)[i] = v
        return t
    return f

@pytest.mark.parametrize('name,value,msg', [
    ('features', with_(0, float('nan')), 'its features are NaN'),
    ('norms', with_(1, float('inf')), 'its norms are NaN'),
    ('labels', with_(0, 9), 'labels 0..9 of 3 classes'), ('labels', with_(0, -7), 'labels -7..2 of 3 classes'),
    ('count', lambda t: t*0+10**6, 'counts 1000000 rows, and has room for 8'), ('count', lambda t: t*0-1, 'counts -1'),
    ('norms', None, 'norms'), ('features', None, 'features'), ('items', None, 'items'),
    ('norms', lambda t: t[:3], 'its bank has norms of (3,), and says (8,)'),
    ('_extra_state', lambda t: t*0, 'does not say what it is of'),
    ('_extra_state', lambda t: t[:5], 'does not say what it is of')])
def test_tensors(slots, name, value, msg):
    e = err(load_bank, changed(slots, name, value))
    assert msg in e and slots.name in e and len(e)<=300, e

def test_a_saved_description_sets_no_other_attribute(slots):
    "What a file names `write` does not replace the method"
    b,s = SlotBank(8, policy='fifo'),filled(SlotBank(8, policy='fifo', n_classes=3)).state_dict()
    cfg = json.loads(bytes(s['_extra_state'].tolist()))
    def state(**kw):
        said = list(json.dumps({**cfg, **kw}).encode())
        return {**s, '_extra_state':torch.tensor(said, dtype=torch.uint8)}
    b.load_state_dict(state(write=5))
    assert callable(b.write) and len(b)==6
    b.load_state_dict(state(seed='x'))
    for kw in (dict(momentum='x'), dict(vocab=5), dict(threshold=True), dict(policy=[])):
        assert 'saved' in err(SlotBank(8, policy='fifo').load_state_dict, state(**kw))

@pytest.mark.parametrize('change,msg', [
    (dict(num_classes=10**9), 'no list of as many'), (dict(feature_dim=10**9), 'has another width'),
    (dict(capacity_per_class=10**12), 'capacity'), (dict(class_frequencies=['x']*3), 'no whole bank'),
    (dict(class_frequencies=[-1, 2, 2]), 'no whole numbers from 0'),
    (dict(total_samples='x'), 'no whole numbers from 0'),
    (dict(reservoir_buffers={'x':[[1.]]}), 'no whole bank'), (dict(reservoir_buffers={'7':[[1.]*4]}), 'class 7'),
    (dict(alpha_base=float('nan')), 'alpha'), (dict(ema_prototypes=[[float('nan')]*4]*3), 'NaN'),
    (dict(ema_prototypes=[1,2,3]), 'another width'), (dict(tail_threshold_percentile='x'), 'tail_percentile')])
def test_json(tmp_path, change, msg):
    p = tmp_path/'b.json'
    filled(ClassBank(3, 2)).to_json(p)
    p.write_text(json.dumps({**json.loads(p.read_text()), **change}))
    e = err(bank_from_json, p)
    assert msg in e and 'b.json' in e and len(e)<=300, e

@pytest.mark.parametrize('raw', [b'', b'[]', b'null', b'['*100_000, b'\xff\xfe', b'9'*5000])
def test_bytes(tmp_path, raw):
    for end in ('json','safetensors','pth'):
        (tmp_path/f'b.{end}').write_bytes(raw)
        assert f'b.{end}' in err(open_bank, tmp_path/f'b.{end}')

@pytest.mark.parametrize('make', [lambda: SlotBank(8, n_classes=3), lambda: ClassBank(3, 2), lambda: CachedBank(8, 3),
                                  lambda: ClassBank(3, 2, dtype='int8'),
                                  lambda: filled(SlotBank(8)).compress(codec='int8')])
def test_whole_files_are_read(tmp_path, make):
    b = make()
    if not len(b): filled(b)
    b.save(tmp_path/'b.safetensors')
    c = Bank.load(tmp_path/'b.safetensors')
    assert len(c)==len(b) and all(x.equal(y) or x.isnan().all() for x,y in zip(b.buffers(), c.buffers()))
