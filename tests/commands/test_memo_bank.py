"""memo-bank: what it prints and writes of a run, of a run without its data or not yet finished, and of files;
mistakes are one line"""
import json, os, resource, shutil
from functools import wraps
from pathlib import Path
import numpy as np, pytest, torch
import memo.data.longtail
from memo import registry
from PIL import Image
from helpers.runs import of_a_run
from safetensors.torch import load_file
from memo.banks.slots import SlotBank
from memo.banks.exchange import BankSaver
from memo.banks.classes import ClassBank
from memo.banks.exchange import open_bank
from memo.arguments import options_last
from memo.cli import memo_bank
from memo.core import MemoError
from memo.experiment.again import load_run

pytestmark = pytest.mark.usefixtures('unrendered')

TINY = '''
name: tiny
seeds: [0]
data: {name: digits_lt, n_max: 60, ratio: 20, valid: 5, test: 5, size: 8}
memory: {bank: ClassBank, capacity: 16, head: vote, k: 3}
train: {epochs: 1, bs: 16}
'''
pictures = ['classbank.png','classes.png','similarity.png']
tables = ['prompt_data.json','tail_analysis.json']

train,run,copy = of_a_run(TINY)

@pytest.fixture(scope='module')
def bank(run): return load_run(run).memory.bank

def names(d): return sorted(o.name for o in d.iterdir())
def rows(text): return [l.split() for l in text.split('\n\n')[1].splitlines()[1:]]

def test_what_is_printed_is_the_bank(run, bank, tmp_path):
    text = memo_bank(str(run), out=str(tmp_path/'out'))
    n = bank.counts
    assert [r[0] for r in rows(text)]==[str(c) for c in n.argsort(stable=True).tolist() if n[c]] and [int(r[1])
        for r in rows(text)]==n.sort().values.tolist()
    assert [int(r[2]) for r in rows(text)]==bank.class_counts()[n.argsort(stable=True)].tolist()
    assert f'{len(bank)} of 160' in text and f'{len(bank.tail())} tail' in text and f'{int(bank.seen)} rows' in text
    assert names(tmp_path/'out')==sorted(pictures+tables) and all(Image.open(tmp_path/'out'/o).size[0]>100
        for o in pictures)
    assert [int(c) for c in json.loads((tmp_path/'out/prompt_data.json').read_text())]==bank.tail()

def test_a_run_is_read_by_its_model_too(run, tmp_path):
    a,b = (memo_bank(str(o), out=str(tmp_path/'out')) for o in (run, run/'model.safetensors'))
    assert a==b and names(tmp_path/'out')==sorted(pictures+tables)

def test_nothing_else_in_the_run_changes(copy):
    def files():
        return {o.relative_to(copy):o.read_bytes() for o in copy.rglob('*') if o.is_file() and o.parent!=copy/'bank'}
    was = files()
    memo_bank(str(copy))
    assert files()==was and names(copy/'bank')==sorted(pictures+tables)

@pytest.mark.renders
def test_again_gives_the_same(copy):
    # it says when it was written
    def same(): return {o.name:o.read_bytes() for o in (copy/'bank').iterdir() if o.name!='tail_analysis.json'}
    memo_bank(str(copy))
    was = same()
    memo_bank(str(copy))
    assert same()==was

def test_without_the_data(copy, capsys, monkeypatch):
    "The memory is in the model, the classes' names are with the scores; images are not"
    @wraps(memo.data.longtail.digits_lt)
    def gone(*args, **kwargs): raise MemoError('the folder of images is not there')
    monkeypatch.setitem(registry._here['data'], 'digits_lt', (gone, {}))
    m = json.loads((copy/'metrics.json').read_text())
    m['classes'] = dict(zip('zero one two three four five six seven eight nine'.split(), m['classes'].values()))
    (copy/'metrics.json').write_text(json.dumps(m))
    text = memo_bank(str(copy))
    assert names(copy/'bank')==sorted({*pictures,*tables}-{'classes.png'}) and [r[:2] for r in rows(text)][0]==['9',
        'nine'] and len(rows(text))==10
    assert capsys.readouterr().err.splitlines()[-1]=='note: no classes.png, as data: the folder of images is not there'

def test_a_model_that_was_taken_away(run, tmp_path):
    shutil.copy(run/'model.safetensors', tmp_path/'m.safetensors')
    text = memo_bank(str(tmp_path/'m.safetensors'))
    assert rows(text)==rows(memo_bank(str(run),
                                      out=str(tmp_path/'o'))) and 'classes.png' not in names(tmp_path/'m_bank')

def test_a_run_that_is_not_finished(copy, bank):
    (copy/'model.safetensors').unlink()
    (copy/'metrics.json').unlink()
    with pytest.raises(MemoError, match='finished'): memo_bank(str(copy))
    s = BankSaver(bank, copy/'banks', 'tiny')
    s.save(9)
    s.save(10)
    s.wait()
    for o in (copy/'banks').iterdir(): os.utime(o, (0, 0))      # names count, not times
    (copy/'banks/tiny_step_9.safetensors').write_text('')
    assert f'{len(bank)} of 160' in memo_bank(str(copy)) and names(copy/'bank')==sorted(pictures+tables)
    memo_bank(str(copy/'banks/tiny_step_10.safetensors'))
    assert names(copy/'banks/tiny_step_10_bank')==sorted(pictures+tables)

def test_budget_and_dtype(tmp_path):
    d = train(tmp_path, 'memory.capacity=40kB', 'memory.dtype=int8', 'memory.head=watch')
    text = memo_bank(str(d))
    k = load_file(d/'model.safetensors')
    k = next(v for n,v in k.items() if n.endswith('bank.items')).shape[1]
    assert f'of {10*k}' in text and 'int8' in text

def test_options(run, bank, tmp_path):
    memo_bank(str(run), out=str(tmp_path), k=2, json=True)
    p = json.loads((tmp_path/'prompt_data.json').read_text())
    assert all(np.shape(o['features'])[0]==min(2, int(bank.class_counts()[int(c)])) for c,o in p.items())
    assert 'memory.json' in names(tmp_path)
    assert rows(memo_bank(str(tmp_path/'memory.json')))==rows(memo_bank(str(run), out=str(tmp_path/'o')))
    with pytest.raises(MemoError, match='--k: 0'): memo_bank(str(run), k=0)
    assert options_last('memo-bank --k 3 --all RUN'.split())==['memo-bank','RUN','--k','3','--all']

def test_more_classes_than_are_listed(tmp_path):
    b = ClassBank(30, 4)
    y = torch.arange(25).repeat_interleave(torch.arange(1, 26))
    b.write(torch.randn(len(y), 8), y)
    b.save(tmp_path/'b.safetensors')
    few,every = (memo_bank(str(tmp_path/'b.safetensors'), all=o) for o in (False,True))
    assert few.endswith('... 5 more: --all') and len(rows(few))==21
    assert [r[0] for r in rows(every)]==[str(c)
                                         for c in (*range(25,30),*range(25))] and 'classes.png' not in names(
                                             tmp_path/'b_bank')

def test_empty_bank(tmp_path):
    ClassBank(3, 4).save(tmp_path/'b.safetensors')
    assert '0 of 3 seen' in memo_bank(str(tmp_path/'b.safetensors')) and json.loads(
        (tmp_path/'b_bank/prompt_data.json').read_text())=={}

def test_slots_have_a_summary(tmp_path):
    b = SlotBank(8, policy='fifo')
    b.save(tmp_path/'b.safetensors')
    assert 'SlotBank, fifo' in memo_bank(str(tmp_path/'b.safetensors')) and names(tmp_path)==['b.safetensors']
    text = memo_bank(str(train(tmp_path, 'memory=null', 'memory={bank: SlotBank, size: 16, policy: fifo, k: 3}')))
    assert '16 of 16' in text and not (tmp_path/'tiny/bank').exists()

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "A run of two memories"
    return train(tmp_path_factory.mktemp('two'), 'memory=null', 'memories={rare: {bank: ClassBank, capacity: 8, head: '
                                                                'watch, save_every: 1}, near: {bank: SlotBank, size: '
                                                                '16, policy: fifo, head: vote, k: 3, save_every: 1}}')

def test_which_memory(two, tmp_path, capsys):
    with pytest.raises(MemoError, match=r'2 memories: say which with memory= \(memo-bank --memory NAME\), one of '
                                        r'(rare, near|near, rare)'): memo_bank(str(two))
    with pytest.raises(MemoError, match="'raer' is not one of .*did you mean 'rare'"):
        memo_bank(str(two), memory='raer')
    assert '16 of 16' in memo_bank(str(two), memory='near')
    text = memo_bank(str(two), memory='rare', out=str(tmp_path))
    assert 'ClassBank' in text and names(tmp_path)==sorted(pictures+tables)
    for o in ('near','rare'):
        assert open_bank(two, o)[0].state_dict().keys()==open_bank(two/'model.safetensors', o)[0].state_dict().keys()
    with pytest.raises(MemoError, match='2 memories'): open_bank(two)
    assert options_last(['memo-bank','--memory','rare','RUN'])==['memo-bank','RUN','--memory','rare']

def test_which_memory_of_a_run_that_is_not_finished(two, tmp_path):
    d = Path(shutil.copytree(two, tmp_path/'tiny'))
    (d/'model.safetensors').unlink()
    with pytest.raises(MemoError, match='2 memories: say which'): memo_bank(str(d))
    assert 'SlotBank' in memo_bank(str(d), memory='near') and 'ClassBank' in memo_bank(str(d), memory='rare')
    with pytest.raises(MemoError, match='memory'): memo_bank(str(d), memory='none')

def test_mistakes(copy, tmp_path):
    (copy/'model.safetensors').write_bytes((copy/'model.safetensors').read_bytes()[:3000])
    (tmp_path/'folder').mkdir()
    (tmp_path/'x.txt').write_text('no bank')
    for o,m in ((copy,'model.safetensors is not a whole'), (tmp_path/'folder','no run folder'),
                (tmp_path/'x.txt','not a whole'), (tmp_path/'nope','no such file or folder'),
                (None,'give a run folder')):
        with pytest.raises(MemoError, match=m) as e: memo_bank(None if o is None else str(o))
        assert '\n' not in str(e.value)
    d = train(tmp_path, 'memory=null')
    with pytest.raises(MemoError, match='has no memory'): memo_bank(str(d))

def test_help_is_quick(tool):
    best = 9.
    for _ in range(4):
        u = resource.getrusage(resource.RUSAGE_CHILDREN)
        r = tool('memo-bank', '--help', cold=True)
        v = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, v.ru_utime+v.ru_stime-u.ru_utime-u.ru_stime)
    assert r.returncode==0 and '--json' in r.stdout and best<.5

@pytest.mark.slow
@pytest.mark.parametrize('cold', [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_as_a_process(tool, run, tmp_path, cold):
    r = tool('memo-bank', '--out', tmp_path/'out', run, '--k', 2, cold=cold)
    assert r.returncode==0 and r.stdout.strip().endswith(str(tmp_path/'out')) and not r.stderr
    assert names(tmp_path/'out')==sorted(pictures+tables)
    e = tool('memo-bank', tmp_path/'nope')
    assert e.returncode==2 and len(e.stderr.strip().splitlines())==1 and e.stderr.startswith(
        'error: ') and 'nope' in e.stderr
