"Banks that memo 0.1.0 wrote: read as they were, but for ids that were positions"
import json, warnings
import pytest, torch
from conftest import root
from memo.plots.banks import bank_summary
from memo.banks.exchange import open_bank
from memo.banks.base import Bank
from memo.banks.slots import SlotBank
from memo.banks.exchange import bank_from_json
from memo.core import MemoError

golden = root/'tests/golden'
said = json.loads((golden/'banks.json').read_text())
names = [k for k in said if k!='query']

def load(name):
    with pytest.warns(UserWarning, match='name their items by position') as w:
        b = Bank.load(golden/f'{name}.safetensors')
    assert len(w)==1
    return b

@pytest.mark.parametrize('name', names)
def test_it_answers_as_it_did(name):
    b,s = load(name),said[name]
    assert repr(b)==s['text'] and len(b)==s['rows'] and b.class_counts().tolist()==s['counts']
    r = b.read(torch.tensor(said['query']), 2)
    assert r.value.tolist()==s['value'] and r.index.tolist()==s['index']
    larger = 'megabytes','total_memory_mb'      # a buffer was added
    new = {**b.stats(), **{k:v for k,v in s['stats'].items() if k in larger}}
    assert all(new[k]==v for k,v in s['stats'].items()), [(k,new.get(k),v) for k,v in s['stats'].items()
                                                          if new.get(k)!=v]

@pytest.mark.parametrize('name', names)
def test_positions_are_nobody(name):
    b = load(name)
    assert (torch.tensor(said[name]['items'])>=0).any() and (b.rows()[3]==-1).all()
    assert torch.equal(b.read(torch.tensor(said['query']), 2, item=torch.arange(4)).index,
                       b.read(torch.tensor(said['query']), 2).index)

@pytest.mark.parametrize('name', names)
def test_it_is_this_versions_when_saved_again(name, tmp_path):
    b = load(name)
    b.save(tmp_path/'b.safetensors')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        new = Bank.load(tmp_path/'b.safetensors')
    assert all(torch.equal(v, b.state_dict()[k]) for k,v in new.state_dict().items())
    x,y = torch.randn(3, 6),torch.tensor([0,1,2])
    y = torch.eye(3)[y] if name=='findings' else y
    if hasattr(new, 'momentum'): new.momentum = 0.      # else a row stays its item's for a while
    slot = new.write(x, y, item=torch.arange(3)+2**40)
    assert slot.shape[0]==3 and (new.items.flatten()>=2**40).sum()==(slot>=0).sum()>0
    new.save(tmp_path/'c.safetensors')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert ((got := Bank.load(tmp_path/'c.safetensors')).items>=2**40).sum()==(slot>=0).sum() and len(got)==len(new)

def test_into_a_bank_that_is_there():
    with pytest.warns(UserWarning, match='by position'): old = Bank.load(golden/'slots.safetensors')
    from safetensors.torch import load_file
    b = SlotBank(12, policy='reservoir', momentum=.5, n_classes=3, seed=3)
    with pytest.warns(UserWarning, match='by position'): b.load_state_dict(load_file(golden/'slots.safetensors'))
    assert all(torch.equal(v, old.state_dict()[k]) for k,v in b.state_dict().items())

def test_json():
    b = bank_from_json(golden/'classes.json')
    with pytest.warns(UserWarning): old = Bank.load(golden/'classes.safetensors')
    assert torch.equal(b.counts, old.counts)
    torch.testing.assert_close(b.prototypes(), old.prototypes())

@pytest.mark.parametrize('name', names)
def test_memo_bank_opens_it(name):
    with pytest.warns(UserWarning): b,run = open_bank(golden/f'{name}.safetensors')
    assert run is None and type(b).__name__ in bank_summary(b)

@pytest.mark.parametrize('run,n', [('whole',16), ('cut',16)])
def test_banks_of_a_run(tmp_path, run, n):
    "Of a finished one, and of one that was interrupted"
    import tarfile
    with tarfile.open(golden/'runs.tar.xz') as t: t.extractall(tmp_path, filter='data')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        b,folder = open_bank(tmp_path/'runs'/run)
    assert len(b)==n and folder==tmp_path/'runs'/run and (b.items==-1).all()

def test_an_interrupted_run_is_refused_in_one_line(tmp_path):
    import tarfile
    from memo.experiment.run import resume_run
    with tarfile.open(golden/'runs.tar.xz') as t: t.extractall(tmp_path, filter='data')
    with pytest.raises(MemoError, match='memo 0.1.0.*pip install fastmemo==0.1.0') as e:
        resume_run(tmp_path/'runs/cut', log=lambda s: None)
    assert '\n' not in str(e.value)
