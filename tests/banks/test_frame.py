"`bank.to_frame()` of every registered bank: a row for each stored row, with what is known of it and nothing else"
import io, resource
import numpy as np, pandas as pd, pytest, torch
from contracts.made import DIM, build, rows
from hypothesis import given, settings, strategies as st
from memo.banks.frame import frame_columns, other_labels
from memo.banks.kept import Kept
from memo.banks.slots import SlotBank
from memo.banks.classes import ClassBank
from memo.banks import compressed, suspects     # they give banks methods
from memo.core import MemoError
from memo.registry import known

writes = [k for k,p in known('bank').items() if not p.facts.get('read_only')]

def filled(name, n=12, **more):
    b = build('bank', name, **more)
    if b.learned: b.build(DIM, 3)
    r = rows(n)
    slot = b.write(r['x'], r['y'], logits=r['logits'], item=r['item'], group=r['group'])
    return b,r,slot

@pytest.mark.parametrize('name', writes)
def test_every_bank(name):
    b,r,slot = filled(name)
    df = b.to_frame(k=3)
    assert list(df.columns)==frame_columns and len(df)==len(b)
    if not b.labelled:
        assert df['class'].isna().all() and df.disagreement.isna().all()
        return
    whose = dict(zip(r['item'].tolist(), range(12)))
    for o in df[df.id>=0].itertuples():
        i = whose[o.id]
        assert int(slot[i])==o.slot and o.group==int(r['group'][i])
        assert df['class'][o.Index]==str(int(r['y'][i]))
    known = df.disagreement.dropna()
    assert len(known) and ((known>=0) & (known<=1)).all()

@pytest.mark.parametrize('name', writes)
def test_an_empty_bank_has_the_same_columns_and_types(name):
    b = build('bank', name)
    df,e = filled(name)[0].to_frame(embedding=True),b.to_frame(embedding=True)
    assert not len(e) and list(e.columns)==[*frame_columns,'embedding']
    own = [o for o in frame_columns if o not in ('norm','disagreement')]
    assert (e.dtypes[own]==df.dtypes[own]).all()

@pytest.mark.parametrize('name', writes)
def test_what_is_written_as_csv_is_read_again(name):
    df = filled(name)[0].to_frame(vocab=['a cat','dog, wet','"x"\ny'], k=2)
    back = pd.read_csv(io.StringIO(df.to_csv(index=False)))
    assert back.id.tolist()==df.id.tolist() and back.slot.tolist()==df.slot.tolist()
    assert back['class'].dropna().tolist()==df['class'].dropna().tolist()
    np.testing.assert_allclose(back.norm, df.norm, rtol=1e-5)

def test_compressed():
    b,r,_ = filled('SlotBank')
    for codec in ('int8','prototypes','float32'):
        c = b.compress(mb=1, codec=None if codec=='float32' else codec)
        df = c.to_frame(k=2)
        assert len(df)==len(c) and {*df.id}-{-1}<={*r['item'].tolist()}

def test_disagreement_is_that_of_a_loop():
    b,r,_ = filled('SlotBank')
    x,y,g = torch.nn.functional.normalize(r['x']),r['y'],r['group']
    want = []
    for i in range(12):
        order = sorted((j for j in range(12) if g[j]!=g[i]), key=lambda j: -float(x[i]@x[j]))[:4]
        want.append(np.mean([int(y[j]!=y[i]) for j in order]))
    np.testing.assert_allclose(b.to_frame(k=4).disagreement, want)

def test_several_rows_of_an_item_do_not_find_each_other():
    b = ClassBank(2, 8)
    x = torch.tensor([[1.,0],[1,.01],[.9,.1],[1,.02],[0,1]])
    b.write(x, torch.tensor([0,0,1,1,1]), item=torch.tensor([5,5,6,7,8]))
    assert b.to_frame(k=1).disagreement.tolist()[:2]==[1.,1.]

def test_without_ids_a_row_still_does_not_find_itself():
    b = SlotBank(4, policy='fifo')
    b.write(torch.tensor([[1.,0],[1,.1],[0,1]]), torch.tensor([0,1,1]))
    df = b.to_frame(k=1)
    assert (df.id==-1).all() and df.disagreement.tolist()==[1.,1.,0.]

def test_one_row_two_labels_none():
    b = SlotBank(4, policy='fifo')
    b.write(torch.ones(1, 2), torch.tensor([0]))
    assert b.to_frame().disagreement.isna().all()
    b.write(torch.eye(2))
    df = b.to_frame()
    assert df['class'].isna().tolist()==[False,True,True]
    assert df.disagreement.isna().all()     # nobody to disagree with

def test_rows_that_are_not_finite_are_nobodys_neighbours():
    b = SlotBank(4, policy='fifo')
    b.write(torch.tensor([[1.,0],[1,.1],[1,.2],[1,.3]]), torch.tensor([0,0,1,1]))
    with torch.no_grad():
        b.features[1] = torch.nan
        b.features[2] = 0
    df = b.to_frame(k=1)
    assert df.disagreement.isna().tolist()==[False,True,True,False] and df.disagreement[0]==1

def test_several_labels():
    b = SlotBank(8, policy='fifo')
    y = torch.tensor([[1.,1,0],[0,1,0],[0,0,0],[-1,-1,-1],[0,0,1]])
    b.write(torch.tensor([[1.,0],[1,.1],[1,.2],[1,.3],[0,1]]), y)
    df = b.to_frame(vocab=['Mass','Edema','Hernia'], k=1)
    assert df['class'].isna()[3]
    assert df['class'].dropna().tolist()==['Mass|Edema','Edema','none','Hernia']
    assert df.disagreement[0]==0 and df.disagreement.isna().tolist()==[False,False,True,True,True]

@given(st.lists(st.lists(st.sampled_from([-1.,0.,1.]), min_size=3, max_size=3), min_size=2, max_size=6))
@settings(deadline=None, max_examples=40)
def test_labels_differ_as_they_are_drawn(ys):
    from memo.plots.recall import same_label
    y = torch.tensor(ys)
    other,known = other_labels(y, y[None].expand(len(y), -1, -1))
    for i in range(len(y)):
        for j in range(len(y)):
            if known[i,j] and (y[[i,j]]>=0).all(): assert bool(other[i,j])!=same_label(y[i], y[j])

def test_paths_that_are_kept():
    b,r,_ = filled('SlotBank')
    odd = '\udcff.png'.encode(errors='surrogatepass')
    b.kept = Kept('paths', {int(r['item'][0]):b'a/b.png', int(r['item'][1]):odd})
    p = b.to_frame().path
    assert p[0]=='a/b.png' and isinstance(p[1], str) and p[2:].isna().all()

def test_hits_and_age_are_what_the_bank_counts():
    b,r,_ = filled('CachedBank')
    b.write(r['x'][:2], r['y'][:2], item=r['item'][:2])
    df = b.to_frame()
    assert df.hits.tolist()[:3]==[1,1,0] and df.age.tolist()[:3]==[0,0,1]
    assert filled('ClassBank')[0].to_frame()[['age','hits']].isna().all(axis=None)

def test_what_is_looked_at_stays():
    b,_,_ = filled('ClassBank')
    was = {k:v.clone() for k,v in b.state_dict().items()}
    b.to_frame()
    b.suspects()
    assert all(torch.equal(v, was[k]) for k,v in b.state_dict().items())

def test_a_wrong_number_is_one_line():
    with pytest.raises(MemoError, match='to_frame: k=-1'): SlotBank(2).to_frame(k=-1)

def test_memory_is_bounded():
    "20,000 rows: all similarities at once would take 1.6 GB"
    b = SlotBank(20_000, policy='fifo')
    b.write(torch.randn(20_000, 16), torch.arange(20_000)%5, item=torch.arange(20_000))
    was = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(b.to_frame())==20_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-was<700_000
