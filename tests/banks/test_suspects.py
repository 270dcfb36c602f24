"`bank.suspects()`: planted errors are found, rare classes are not called wrong, several rows of an item are one"
import numpy as np, pytest, torch
from contracts.made import DIM, build, rows
from memo.banks.classes import ClassBank
from memo.banks.slots import SlotBank
from memo.banks import suspects     # it gives banks methods
from memo.core import MemoError
from memo.registry import known
from sklearn.datasets import load_digits

columns = ['slot','id','path','class','group','suggested','score']
d = load_digits()
X,Y = torch.tensor(d.data).float(),torch.tensor(d.target)

def planted(n=600, every=20):
    wrong = torch.arange(0, n, every)
    y = Y[:n].clone()
    y[wrong] = (y[wrong]+3)%10
    b = SlotBank(n, policy='fifo')
    b.write(X[:n], y, item=torch.arange(n)+2**40)
    return b,wrong,y

@pytest.fixture(scope='module')
def bank(): return planted()

def test_planted_errors_of_digits_are_found(bank):
    b,wrong,_ = bank
    top,own = b.suspects(len(wrong)),b.suspects()
    assert np.isin(top.slot, wrong).mean()>=.9
    assert np.isin(own.slot, wrong).mean()>=.85 and np.isin(wrong, own.slot).mean()>=.6

def test_what_is_said_of_them(bank):
    b,wrong,y = bank
    df = b.suspects(len(wrong), vocab=[f'digit {i}' for i in range(10)])
    assert list(df.columns)==columns and (df.score.diff().dropna()<=0).all() and df.score.between(0, 1).all()
    assert (df.suggested!=df['class']).all() and (df.id==df.slot+2**40).all()
    assert df['class'].tolist()==[f'digit {int(y[i])}' for i in df.slot]
    right = [o.suggested==f'digit {int(Y[o.slot])}' for o in df.itertuples() if o.slot in wrong]
    assert np.mean(right)>.9

def test_a_rare_class_is_not_called_wrong():
    "Five images of one class among 170 of each other: none of them is an error"
    g = torch.Generator().manual_seed(0)
    at = torch.cat([(Y==c).nonzero().squeeze(1)[torch.randperm(int((Y==c).sum()), generator=g)[:5 if c==8 else 170]]
                    for c in range(10)])
    b = SlotBank(len(at), policy='fifo')
    b.write(X[at], Y[at])
    assert (b.suspects()['class']=='8').sum()<=1

def test_a_class_of_one_item_is_not_judged():
    b,_,_ = planted(200)
    b = SlotBank(201, policy='fifo')
    b.write(torch.cat([X[:200],X[:1]]), torch.cat([Y[:200],torch.tensor([10])]))
    assert not (b.suspects(201)['class']=='10').any()

def test_rows_of_an_item_are_one_suspect():
    b = ClassBank(10, 100)
    y = Y[:300].clone()
    y[7] = (y[7]+1)%10
    for shift in (0,1,2): b.write(X[:300]+shift*.3, y, item=torch.arange(300))
    df = b.suspects(300)
    assert len(b)==900 and df.id.is_unique and df.id[0]==7

def test_the_group_does_not_vote():
    "A patient's copies of a wrong label do not defend it"
    b = SlotBank(310, policy='fifo')
    y = torch.cat([Y[:300],(Y[:1].repeat(10)+1)%10])
    b.write(torch.cat([X[:300],X[:1].repeat(10, 1)]), y, group=torch.cat([torch.arange(300),torch.zeros(10).long()]))
    assert {*b.suspects(10).slot}=={*range(300,310)}

def test_several_labels_each_by_itself():
    y = torch.stack([Y[:600]%2==0, Y[:600]>4], 1).float()
    y[11,0] = 1-y[11,0]
    b = SlotBank(600, policy='fifo')
    b.write(X[:600], y)
    df = b.suspects(3, vocab=['even','large'])
    assert df.slot[0]==11 and {df['class'][0],df.suggested[0]}=={'even','not even'}

@pytest.mark.parametrize('name', [k for k,p in known('bank').items() if not p.facts.get('read_only')])
def test_every_bank(name):
    b = build('bank', name)
    assert list(b.suspects().columns)==columns and not len(b.suspects())
    if b.learned: b.build(DIM, 3)
    r = rows(12)
    b.write(r['x'], r['y'], logits=r['logits'], item=r['item'], group=r['group'])
    df = b.suspects(5)
    assert list(df.columns)==columns and len(df)<=5 and {*df.slot}<={*b.to_frame(k=0).slot}

def test_one_row_no_label_nan():
    b = SlotBank(4, policy='fifo')
    b.write(torch.ones(1, 2), torch.tensor([0]))
    assert not len(b.suspects())
    b.reset()
    b.write(torch.eye(2))
    assert not len(b.suspects())
    b,_,_ = planted(100)
    b.features[3] = torch.nan
    assert 3 not in b.suspects(100).slot.tolist() and b.suspects(100).score.notna().all()

def test_a_wrong_number_is_one_line():
    with pytest.raises(MemoError, match='suspects: n=0'): SlotBank(2).suspects(0)
