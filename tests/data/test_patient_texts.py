"The id of a patient is a text: 25 digits, 007, 1e5, spaces around, names; none is read as a number that it is not"
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from fastai.vision.all import ColReader, Datasets, Learner, nn
from sklearn.datasets import load_digits
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.data.chest_standin import chest_tree, made_up_table
from memo.data.chest_xray import chest_split, chest_table, chestxray14, findings
from memo.data.finding_loaders import by_number, group_number
from memo.data.items import named_by
from memo.experiment.run_folder import patient_texts
from memo.training.memory_callback import MemoryCallback

kinds = dict(digits=lambda i: f'1234567890123456789012{i:03d}', zeros=lambda i: f'{i:03d}', powers=lambda i: f'{i}e5',
             spaces=lambda i: f' P {i} ', names=lambda i: f'Zoë-{i:x}', numbers=lambda i: str(i+1),
             large=lambda i: str(2**63+i))

@pytest.fixture
def make(tmp_path):
    "75 patients, three images each: digits of scikit-learn in the layout of ChestX-ray14"
    def f(name, lists=False):
        root,ims = tmp_path/'nih',load_digits().images
        (root/'images_001/images').mkdir(parents=True)
        rows = []
        for i in range(225):
            k = f'{i:05d}.png'
            Image.fromarray((ims[i]*15).astype(np.uint8)).save(root/'images_001/images'/k)
            c = i//3%15
            rows.append(f'{k},{"No Finding" if c==14 else findings[c]},{i%3},{name(i//3)}')
        head = 'Image Index,Finding Labels,Follow-up #,Patient ID'
        (root/'Data_Entry_2017.csv').write_text('\n'.join([head, *rows])+'\n')
        return root
    return f

def load(root, **kw):
    return chestxray14(root, split='patient', size=8, workers=0, bs=16, channels=1, device='cpu', **kw)

@pytest.mark.parametrize('kind', kinds)
def test_each_text_is_one_patient(make, kind):
    "In table, split, groups, the bank and what is kept of a run"
    dls = load(make(kinds[kind]))
    s = dls.split
    assert s.patient.nunique()==75 and set(s.patient.astype(str))=={kinds[kind](i).strip() for i in range(75)}
    assert s.groupby('patient').part.nunique().max()==1
    assert s.part.value_counts().to_dict()==dict(train=156, test=45, valid=24)
    groups = torch.cat([dl.dataset.groups for dl in dls.loaders])
    assert groups.unique().numel()==75 and (groups>=0).all()
    for dl in dls.loaders:
        g = dl.dataset.groups
        assert g.unique().numel()*3==len(g)
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(64,16), nn.ReLU(), nn.Linear(16,14)),
                    cbs=MemoryCallback(SlotBank(500, policy='fifo'), k=3, group='patient'))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    stored = learn.memory.bank.groups.flatten()
    assert set(stored[stored>=0].tolist())<={*groups.tolist()} and (stored>=0).sum()>100
    seen,test = (set(patient_texts(learn, o).split()) for o in ('train','test'))
    assert len(seen)==52 and len(test)==15 and not seen & test

def test_numbers_stay_numbers_and_their_splits_what_they_were(make):
    "As NIH's: whole numbers in the table and the groups, drawn in the order of the numbers"
    root = make(kinds['numbers'])
    df = chest_table(root, lists=False)
    assert df.patient.dtype==np.int64
    who = np.unique(df.patient)
    at = torch.randperm(75, generator=torch.Generator().manual_seed(85))[:15]
    s = chest_split(df, 'patient')
    assert set(s.patient[s.part=='test'])=={*who[at.numpy()]}
    assert set(load(root).train_ds.groups.tolist())<={*range(1,76)}
    text = chest_split(df.assign(patient=df.patient.astype(str)), 'patient')
    assert (text.part==s.part).all()

def test_like_numbers_but_not_the_same_text(make):
    same = ['7','007','7.0','7e0','+7','٧','1e5','100000','-1']
    dls = load(make(lambda i: same[i] if i<len(same) else f'p{i}'))
    assert dls.split.patient.nunique()==75 and len({*map(group_number, same)})==len(same)
    assert group_number('7')==7 and group_number(7)==7
    assert sorted(['10','9','100','b'], key=by_number)==['9','b','10','100']

def test_float_columns_of_other_data_frames_are_refused():
    "What pandas has read as floats has lost digits: memo says so instead of making one group of two"
    def ds(v): return Datasets(pd.DataFrame(dict(image=list('abc'), who=v)), [[ColReader('image')]])
    big = ['12345678901234567890123','12345678901234567890124','3']
    assert named_by(ds(big), 'who').unique().numel()==3
    with pytest.raises(MemoError, match='read the column as text'): named_by(ds([float(o) for o in big]), 'who')
    ids = named_by(ds([1.,2.,np.nan]), 'who')
    assert ids[2]==-1 and torch.equal(ids[:2], named_by(ds([1,2,3]), 'who')[:2])

def test_a_stand_in_of_patients_with_names(tmp_path):
    t = made_up_table(300, 0)
    a = chest_tree(tmp_path/'a', 60, table=t)
    b = chest_tree(tmp_path/'b', 60, table=t.assign(**{'Patient ID':[f'{o:025d}' for o in t['Patient ID']]}))
    one,two = (chest_table(o) for o in (a,b))
    assert two.patient.str.len().eq(25).all() and (two.patient.astype(int)==one.patient).all()
    assert (one.image==two.image).all()
    p = two.image[0]
    assert next(a.rglob(p)).read_bytes()==next(b.rglob(p)).read_bytes()
