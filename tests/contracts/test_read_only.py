"Banks that are only read, which are made of other banks, do what a bank does but for writing"
import pytest, torch
from fastai.vision.all import load_learner
from helpers.errors import err
from helpers.grid import grid
from helpers.learners import quietly
from memo.banks.slots import SlotBank
from memo.banks.base import Bank
from memo.core import MemoError
from memo.registry import find, known
from . import bank_checks
from .bank_checks import close, filled, random_state
from .made import build, learner, rows
from .test_export import answers_alike, both, model_and_rows

READ_ONLY = [k for k,p in known('bank').items() if p.facts.get('read_only')]
codecs = ['float32','bfloat16','int8','ivfpq','pq','prototypes']
every = pytest.mark.parametrize('codec', codecs)
# they write once, to fill it, and then only look
looking = ('reads_are_right','reads_never_find_themselves','reads_have_a_gradient','stays_float32','figures_are_plain',
           'looking_changes_nothing')

def compressed(codec, **kw):
    if codec in ('pq','ivfpq'): pytest.importorskip('faiss')
    return filled(lambda **k: build('bank', 'SlotBank', **kw, **k)).compress(1, codec)

def test_there_is_something_to_try(): assert READ_ONLY==['CompressedBank']

@every
@pytest.mark.parametrize('check', looking)
def test_looks_like_a_bank(codec, check, monkeypatch):
    monkeypatch.setattr(bank_checks, 'filled', lambda make: make())
    if codec=='prototypes' and check=='reads_never_find_themselves': pytest.skip('its rows are several items')
    getattr(bank_checks, check)(lambda **kw: compressed(codec))

@every
def test_is_not_written_to(codec):
    b = compressed(codec)
    was,draws = {k:v.clone() for k,v in b.state_dict().items()},random_state()
    assert 'only read' in err(b.write, **rows(6)) and 'only read' in err(b.rekey, rows(6)['x'], rows(6)['item'])
    assert all(torch.equal(v, was[k]) for k,v in b.state_dict().items()) and random_state()==draws

@every
def test_saved_loaded_copied_and_emptied(codec, tmp_path):
    import copy, pickle
    b,q = compressed(codec),rows(5, 7)['x']
    b.save(tmp_path/'b.safetensors')
    new = find('bank', 'CompressedBank')(**b.config())
    assert len(new)==0 and (new.read(q, 1).index==-1).all() and (new.classify(q)[0]==-1).all()
    new.load_state_dict(b.state_dict())
    for o in (Bank.load(tmp_path/'b.safetensors'), copy.deepcopy(b), pickle.loads(pickle.dumps(b)), new):
        bank_checks.state_equal(o, b)
        assert o.config()==b.config() and all(torch.equal(m, n) for m,n in zip(o.read(q, 3), b.read(q, 3)))
    b.reset()
    assert len(b)==0 and (b.read(q, 1).index==-1).all() and int(b.class_counts().sum())==0

@pytest.mark.parametrize('codec,head', grid(codecs, ['vote','add'], some=zip(codecs, ['vote','add']*3)))
def test_in_the_place_of_the_bank(codec, head, tmp_path):
    "Exported, loaded, compiled; the network's answers hardly change"
    learn = learner(SlotBank(48, policy='fifo'), head, k=3)
    quietly(learn, learn.fit, 2, 1e-2)
    model,x = model_and_rows(learn)
    with torch.no_grad(): was = model(x).softmax(1)
    learn.memory.head.bank = learn.memory.bank.compress(1, codec)
    with torch.no_grad(): now = model(x)
    far = (now.softmax(1)-was).abs().max()
    assert far<(1e-6 if codec=='float32' else .05 if codec in ('bfloat16','int8') else .5)
    learn.export(tmp_path/'e.pkl')
    with torch.no_grad(): close(load_learner(tmp_path/'e.pkl').model.eval()(x), now)
    torch._dynamo.reset()
    answers_alike(torch.compile(model, fullgraph=True, backend='eager', dynamic=True), model, x)
    assert codec in repr(learn.memory.bank) and 'only read' in err(quietly, learn, learn.fit, 1, 1e-2)

# in the night those that are no other code in a graph: lists of codewords have codewords too
graphs = [('float32',True), ('bfloat16',False), ('int8',False), ('ivfpq',False)]

@pytest.mark.slow
@pytest.mark.parametrize('codec,multi', grid(codecs, [False,True], some=graphs))
def test_files(codec, multi, tmp_path):
    "A graph for torch.export and for ONNX"
    learn = learner(SlotBank(48, policy='fifo'), 'vote', multi=multi, k=3)
    quietly(learn, learn.fit, 2, 1e-2)
    try: learn.memory.head.bank = learn.memory.bank.compress(1, codec)
    except MemoError: return    # prototypes are of one label
    about,_ = both(learn, tmp_path)
    assert about['memories']['memory']['bank']=='CompressedBank'
