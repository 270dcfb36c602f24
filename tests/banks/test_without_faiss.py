"Where faiss is not installed: what needs it says so in one line, all else goes on"
import sys
import pytest, torch
from helpers.errors import err
from helpers.tensors import draw
from memo.banks.search import searchers
from memo.banks.slots import SlotBank

@pytest.fixture
def bank(monkeypatch):
    "A bank of 600 rows in clusters; `import faiss` fails"
    monkeypatch.setitem(sys.modules, 'faiss', None)
    i = torch.arange(600)
    b = SlotBank(600, policy='fifo')
    b.write(3*draw(12, 16, seed=99)[i%12]+draw(600, 16), i%3, item=10**12+i, group=i//4)
    return b

def test_compressed_by_other_codecs(bank):
    "The others are tried, and it is said; what is asked for by name is refused with the way on"
    with pytest.warns(UserWarning, match=r"pip install 'fastmemo\[index\]'"): got = bank.compress(.02)
    assert got.codec=='prototypes' and bank.compress(1).codec=='float32'
    for o in ('pq','ivfpq'): assert "pip install 'fastmemo[index]'" in err(bank.compress, .03, o)

def test_searched_exactly(bank):
    "Without being asked; an index of another kind is refused, and the bank has none then"
    for o in ('ivf','ivfpq'): assert "pip install 'fastmemo[index]'" in err(bank.index, o) and bank not in searchers
    assert bank.index().kind=='exact'
    assert bank.read(bank.features[:5], 1).index[:,0].tolist()==[*range(5)]
