"memo-bank RUN_OR_FILE --out rows.csv: the stored rows as a table"
import pandas as pd, pytest, torch
from helpers.runs import of_a_run
from memo.banks.slots import SlotBank
from memo.cli import memo_bank
from memo.core import MemoError
from memo.experiment.again import load_run
from memo.training import explore   # gives memories the method

TINY = '''
name: tiny_rows
seeds: [0]
data: {name: digits_lt, n_max: 30, ratio: 20, valid: 5, test: 5, size: 8}
memory: {bank: ClassBank, capacity: 16, head: vote, k: 3}
train: {epochs: 1, bs: 16}
'''
train,run,copy = of_a_run(TINY)

def test_of_a_run(run, tmp_path, capsys):
    memo_bank(str(run), out=str(tmp_path/'a/rows.csv'))
    df,bank = pd.read_csv(tmp_path/'a/rows.csv'),load_run(run).memory.bank
    assert str(tmp_path/'a/rows.csv') in capsys.readouterr().out and len(df)==len(bank)
    own = bank.to_frame()
    assert df.id.tolist()==own.id.tolist() and df['class'].astype(str).tolist()==own['class'].tolist()
    assert not (run/'bank').exists() and [o.name for o in (tmp_path/'a').iterdir()]==['rows.csv']

def test_of_a_file(tmp_path):
    b = SlotBank(4, policy='fifo')
    b.write(torch.eye(3), torch.tensor([0,1,1]), item=torch.tensor([2**62+1,5,-1]))
    b.save(tmp_path/'b.safetensors')
    memo_bank(str(tmp_path/'b.safetensors'), out=str(tmp_path/'rows.csv'))
    assert pd.read_csv(tmp_path/'rows.csv').id.tolist()==[2**62+1,5,-1]

def test_a_folder_of_that_name_is_no_file(tmp_path):
    b = SlotBank(4)
    b.save(tmp_path/'b.safetensors')
    (tmp_path/'rows.csv').mkdir()
    with pytest.raises(MemoError, match='cannot write'):
        memo_bank(str(tmp_path/'b.safetensors'), out=str(tmp_path/'rows.csv'))
