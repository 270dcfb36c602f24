"Every registered head as a graph: torch.compile in one piece, torch.export and ONNX as the model answers"
import json
import warnings
import pytest
import timm
import torch
from fastai.vision.all import load_learner
from helpers.errors import err
from helpers.learners import quietly
from memo.banks.classes import ClassBank
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.heads.attach import memories
from memo.heads.base import MemoryHead
from memo.training.export_model import differs, export_model
from memo.training.memory_callback import MemoryCallback
from .made import answer_half, build, learner, pairs, parts

def trained(bank, head, epochs=2, multi=False, **kwargs):
    if isinstance(bank, str): bank = build('bank', bank, n_classes=4 if multi else 10)
    learn = learner(bank, head, multi=multi, **kwargs)
    if epochs: quietly(learn, learn.fit, epochs, 1e-2)
    return learn if multi else answer_half(learn)

def model_and_rows(learn): return learn.model.eval(),learn.dls.valid_ds.x.float()

def onnx(path):
    rt = pytest.importorskip('onnxruntime')
    s = rt.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return s,lambda x: torch.from_numpy(s.run(None, {'input':x.numpy()})[0])

def pt2(path):
    more = {'memo.json':''}
    graph = torch.export.load(path, extra_files=more).module()
    return json.loads(more['memo.json']),graph

def answers_alike(f, model, x, tol=1e-5):
    "In batches of any size"
    with torch.no_grad():
        for n in (1, 5, len(x)): torch.testing.assert_close(f(x[:n]), model(x[:n]), atol=tol, rtol=tol)

def both(learn, tmp_path, x=None):
    "Both files of a learner, read back, against its model"
    model,rows = model_and_rows(learn) if x is None else (learn.model.eval(),x)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        about,graph = pt2(export_model(learn, tmp_path/'m.pt2'))
        answers_alike(graph, model, rows)
        s,run = onnx(export_model(learn, tmp_path/'m.onnx'))
        answers_alike(run, model, rows)
    assert json.loads(s.get_modelmeta().custom_metadata_map['memo'])==about
    return about,graph

# each head on one bank by itself; the others in the night
def banks_of(head):
    bs = [b for b,h in pairs() if h==head]
    return [pytest.param(b, head, marks=[pytest.mark.nightly]*(i>0)) for i,b in enumerate(bs)]
each = pytest.mark.parametrize('bank,head', [o for h in parts('head') for o in banks_of(h)])

@each
@pytest.mark.slow
@pytest.mark.parametrize('epochs', [2, 0])
def test_files(bank, head, epochs, tmp_path):
    learn = trained(bank, head, epochs)
    about,_ = both(learn, tmp_path)
    h = learn.memory.head
    assert about==dict(task='multiclass', vocab=[*map(str, range(10))],
                       activation='softmax', thresholds=None, image=None,
                       memories=dict(memory=dict(head=type(h).__name__, bank=bank_name(h), rows=len(h.bank))))
    if h.mixes and epochs: assert changes(learn)

def bank_name(h): return type(h.bank).__name__
def changes(learn):
    "Is the answer another one with the memory?"
    model,x = model_and_rows(learn)
    with torch.no_grad(): a = model(x)
    with learn.memory.off(), torch.no_grad(): return not torch.allclose(a, model(x))

@each
@pytest.mark.parametrize('epochs', [2, pytest.param(0, marks=pytest.mark.slow)])
def test_compiled_in_one_piece(bank, head, epochs):
    learn = trained(bank, head, epochs)
    model,x = model_and_rows(learn)
    torch._dynamo.reset()
    answers_alike(torch.compile(model, fullgraph=True, backend='eager', dynamic=True), model, x)

@each
@pytest.mark.slow
def test_several_labels(bank, head, tmp_path):
    try: learn = trained(bank, head, multi=True)
    except MemoError: return    # it has no use for them, and says so
    assert both(learn, tmp_path)[0]['task']=='multilabel'

@pytest.mark.slow
@pytest.mark.parametrize('head', ['vote','prototype','lda'])
@pytest.mark.parametrize('dtype', ['int8','float16'])
def test_small_rows(dtype, head, tmp_path):
    learn = trained(ClassBank(10, 8, dtype=dtype), head, **(dict(whiten=True) if head=='vote' else {}))
    if head=='vote': assert learn.memory.head.whitener is not None
    both(learn, tmp_path)
    assert changes(learn)

@pytest.mark.slow
def test_whitened_slots(tmp_path): both(trained(SlotBank(32, policy='fifo'), 'vote', whiten=True), tmp_path)

@pytest.mark.slow
def test_two_memories(tmp_path):
    learn = trained(SlotBank(32, policy='fifo'), 'vote', 0)
    learn.add_cb(MemoryCallback(SlotBank(8, policy='fifo'), head='add', name='early', at='first'))
    quietly(learn, learn.fit, 2, 1e-2)
    about,_ = both(learn, tmp_path)
    assert {*about['memories']}=={'early','memory'}

def test_what_is_off_is_left_out(tmp_path):
    learn = trained('SlotBank', 'vote')
    model,x = model_and_rows(learn)
    with learn.memory.off(), torch.no_grad():
        about,graph = pt2(export_model(learn, tmp_path/'m.pt2'))
        torch.testing.assert_close(graph(x), model(x))
    assert about['memories']=={} and list(memories(model))==['memory']
    about,graph = pt2(export_model(learn, tmp_path/'m.pt2'))
    answers_alike(graph, model, x)
    assert [*about['memories']]==['memory']

@pytest.mark.slow
def test_ids_and_inputs_stay_behind(tmp_path):
    "torch.export keeps the inputs that it was tried on"
    learn = trained('ClassBank', 'vote')
    learn.dls.valid_ds.x.add_(101)
    learn.dls.train_ds.x.add_(101)
    items = learn.memory.bank.items.clone()
    both(learn, tmp_path)
    assert (items>=0).any() and torch.equal(learn.memory.bank.items, items)
    ids = [int(i).to_bytes(8, 'little') for i in items[items>=0]]
    for f in ('m.pt2','m.onnx'):
        assert not any(i in (tmp_path/f).read_bytes() for i in ids)
        for x in (*learn.dls.valid_ds.x[:8], *learn.dls.train_ds.x[:8]):
            assert not any(t.numpy().tobytes() in (tmp_path/f).read_bytes() for t in (x, x.float(), x.float()/255))

elsewhere = """
import sys
class Nobody:
    def find_spec(self, name, *args):
        if name.split('.')[0] in ('memo','fastai','fastcore'): raise ImportError(name)
sys.meta_path.insert(0, Nobody())
import onnxruntime, torch
x,want = torch.load('x.pt')
graph,s = torch.export.load('m.pt2').module(),onnxruntime.InferenceSession('m.onnx')
for n in (1, 3, len(x)):
    for got in (graph(x[:n]), torch.from_numpy(s.run(None, {'input':x[:n].numpy()})[0])):
        torch.testing.assert_close(got, want[:n], atol=1e-5, rtol=1e-5)
assert not {'memo','fastai'} & {k.split('.')[0] for k in sys.modules}
"""
@pytest.mark.slow
@pytest.mark.parametrize('bank,head', [('SlotBank','vote'), ('ClassBank','lda'), ('SlotBank','add')])
def test_it_runs_where_there_is_no_fastai_and_no_memo(bank, head, python, tmp_path):
    learn = trained(bank, head)
    model,x = model_and_rows(learn)
    for s in ('pt2','onnx'): export_model(learn, tmp_path/f'm.{s}')
    with torch.no_grad(): torch.save((x, model(x)), tmp_path/'x.pt')
    r = python('-W', 'ignore', '-c', elsewhere, cwd=tmp_path, cold=True)
    assert r.returncode==0, r.stderr[-500:]

@pytest.mark.slow
@pytest.mark.parametrize('arch,size', [('resnet18',64), ('vit_tiny_patch16_224',224)])
def test_real_backbones(arch, size, tmp_path):
    "On digits, as large as the network wants them"
    from torchvision.transforms.functional import resize
    from memo.data.tensors import TensorDL, TensorSet
    from fastai.vision.all import DataLoaders, Learner, CrossEntropyLossFlat, IntToFloatTensor, set_seed
    from .made import X, Y
    set_seed(0)
    x = resize(X[:24], [size,size]).repeat(1, 3, 1, 1)
    dls = DataLoaders(*[TensorDL(dataset=TensorSet(x[s], Y[s][:len(x[s])], vocab=range(10), split_idx=i), bs=8)
                        for i,s in enumerate((slice(0, 16),slice(16, 24)))], device='cpu')
    learn = Learner(dls, timm.create_model(arch, num_classes=10), loss_func=CrossEntropyLossFlat(),
                    cbs=MemoryCallback(SlotBank(16, policy='fifo'), head='vote', k=3, whiten=True))
    quietly(learn, learn.fit, 1, 1e-4)
    assert len(learn.memory.bank)==16
    b = dls.valid.one_batch()[0].as_subclass(torch.Tensor)
    about,_ = both(learn, tmp_path, b)
    assert about['memories']['memory']['rows']==16 and changes_on(learn, b)

def changes_on(learn, x):
    with torch.no_grad():
        a = learn.model(x)
        with learn.memory.off(): return not torch.allclose(a, learn.model(x))

def test_a_loaded_learner_needs_a_batch(tmp_path):
    learn = trained('SlotBank', 'vote')
    model,x = model_and_rows(learn)
    learn.export(tmp_path/'e.pkl')
    new = load_learner(tmp_path/'e.pkl')
    assert 'x=' in err(export_model, new, tmp_path/'m.pt2') and not (tmp_path/'m.pt2').exists()
    assert 'empty' in err(export_model, new, tmp_path/'m.pt2', x[:0])
    for other in (x[:2,:,:3], x[:2,0,0], {'x':x[:2]}):      # not as the loader gives it
        assert 'one_batch' in err(export_model, new, tmp_path/'m.pt2', other)
    about,graph = pt2(export_model(new, tmp_path/'m.pt2', x[:1]))
    answers_alike(graph, model, x)
    assert about['task']=='multiclass' and about['vocab']==[*map(str, range(10))]

def test_the_learner_is_as_it_was(tmp_path):
    learn = trained('ClassBank', 'lda')
    learn.model.train()
    was,rng,mode = learn.model.state_dict(),torch.get_rng_state(),learn.dls.train.rng.getstate()
    was = {k:v.clone() for k,v in was.items()}
    export_model(learn, tmp_path/'m.pt2')
    assert all(torch.equal(v, was[k]) for k,v in learn.model.state_dict().items()) and learn.model.training
    assert torch.equal(rng, torch.get_rng_state()) and learn.dls.train.rng.getstate()==mode
    assert learn.memory.head._traced is None and all(p.requires_grad for p in learn.model.last.parameters())
    quietly(learn, learn.fit, 1, 1e-2)

class Counts(MemoryHead):
    "Reads a counter on the host"
    mixes = True
    def answer(self, logits): return logits if int(self.bank.count)<2 else logits+1

class Sleeps(MemoryHead):
    "Answers otherwise where it is traced"
    mixes = True
    def answer(self, logits): return logits+1 if torch.compiler.is_compiling() else logits

class Rounds(MemoryHead):
    "Answers a little otherwise where it is traced, as a sharp vote of a large network does in another runtime"
    mixes,by = True,4e-5
    def answer(self, logits): return logits+self.by if torch.compiler.is_compiling() else logits
class Errs(Rounds): by = 4e-3
class Breaks(Rounds): by = float('nan')

def test_rounding_is_said_and_more_is_refused(tmp_path):
    f = tmp_path/'m.pt2'
    with pytest.warns(UserWarning, match='m.pt2 answers as the model to [34]'):
        export_model(trained('SlotBank', Rounds, 0), f)
    assert pt2(f)[0]['task']=='multiclass'
    for head in (Errs, Breaks): assert 'otherwise' in err(export_model, trained('SlotBank', head, 0), tmp_path/'n.pt2')
    assert not (tmp_path/'n.pt2').exists()

@pytest.mark.parametrize('a,b,same', [([1.,-torch.inf],[1.,-torch.inf],True), ([torch.nan,1.],[torch.nan,1.],True),
    ([torch.nan,1.],[0.,1.],False), ([2.,1.],[torch.nan,1.],False), ([torch.inf],[-torch.inf],False), ([],[],True)])
def test_what_is_no_number_differs_from_numbers(a, b, same):
    a,b = torch.tensor(a),torch.tensor(b)
    assert (differs(lambda x: a, lambda x: b, (torch.zeros(2, 1),))==0)==same

@pytest.mark.parametrize('suffix', ['pt2', pytest.param('onnx', marks=pytest.mark.slow)])
def test_what_cannot_be_a_graph(suffix, tmp_path):
    f = tmp_path/f'm.{suffix}'
    f.write_text('of before')
    assert 'no graph' in err(export_model, trained('SlotBank', Counts), f)
    assert 'otherwise' in err(export_model, trained('SlotBank', Sleeps), f)
    assert f.read_text()=='of before'
    assert '.onnx' in err(export_model, trained('SlotBank', 'vote', 0), tmp_path/'m.pth')

def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    import importlib.util
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda o, *a: None if o=='onnxscript' else find(o, *a))
    assert "fastmemo[export]" in err(export_model, trained('SlotBank', 'vote', 0), tmp_path/'m.onnx')
