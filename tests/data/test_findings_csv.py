"Tables of findings: one's own in each form, and CheXpert, MIMIC-CXR, PadChest, VinDr in the layouts of their makers"
import csv, gzip, io, shutil
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, strategies as st
from PIL import Image
from fastai.vision.all import Path
from sklearn.datasets import load_digits
from memo.core import MemoError
from memo.data.finding_sets import (chexpert, chexpert_findings, mimic_cxr, padchest, vindr, vindr_findings)
from memo.data.findings_csv import any_of, findings_csv, joined_targets, majority_of, settle
from memo.experiment.config import load_config
from memo.experiment.build import build_dls

ims,digit = load_digits(return_X_y=True)
N,kw = 120,dict(size=8, channels=1, workers=0, device='cpu', bs=16)
Y = np.stack([digit[:N]%2==0, digit[:N]<3, digit[:N]%3==0], 1).astype(int)      # of each digit
names = ['even','small','third']

def film(p, i):
    p.parent.mkdir(parents=True, exist_ok=True)
    im = Image.fromarray((ims[i].reshape(8,8)*15).astype(np.uint8))
    im.save(p, 'JPEG' if p.suffix=='.jpg' else 'PNG', quality=95)

def write(p, head, rows):
    f = io.StringIO()
    csv.writer(f, lineterminator='\n').writerows([head, *rows])
    p.parent.mkdir(parents=True, exist_ok=True)
    b = f.getvalue().encode()
    p.write_bytes(gzip.compress(b) if p.suffix=='.gz' else b)

@pytest.fixture
def own(tmp_path):
    "Digits as films, three a patient; a function that writes a table of some cells"
    for i in range(N): film(tmp_path/f'films/{i}.png', i)
    def make(head, cells, name='own.csv'):
        write(tmp_path/name, ['image','who',*head], [[f'{i}.png',f'{10**30+i//3}',*cells(i)] for i in range(N)])
        return tmp_path
    return make

def rows_of(dls):
    "Image -> its targets, its part"
    s,res = dls.split.set_index('item'),{}
    for dl in dls.loaders:
        for o,y in zip(dl.dataset.items.tolist(), dl.dataset.y.tolist()): res[s.image[o]] = y,s.part[o]
    return res

forms = dict(one_hot=(names, lambda i: Y[i].tolist(), dict(findings=names)),
    floats=(names, lambda i: [f'{o:.1f}' for o in Y[i]], dict(findings=names)),
    words=(names, lambda i: [str(bool(o)) for o in Y[i]], dict(findings=names)),
    joined=(['found'], lambda i: ['|'.join(n for n,o in zip(names, Y[i]) if o) or 'No Finding'], dict(label='found')),
    commas=(['found'], lambda i: [', '.join(n for n,o in zip(names, Y[i]) if o) or 'normal'],
            dict(label='found', sep=',')),
    lists=(['found'], lambda i: [str([n for n,o in zip(names, Y[i]) if o])], dict(label='found', findings=names)),
    arrays=(['found'], lambda i: [str(np.array(['normal',*(n for n,o in zip(names, Y[i]) if o)]))],
            dict(label='found')))

@pytest.mark.parametrize('form', forms)
def test_each_form_of_labels(own, form):
    head,cells,args = forms[form]
    dls = findings_csv(own(head, cells), 'own.csv', patient='who', **args, **kw)
    assert list(dls.vocab)==names and len(dls.split)==N
    got = rows_of(dls)
    assert all(got[f'{i}.png'][0]==Y[i].tolist() for i in range(N))
    assert dls.split.part.value_counts().to_dict()==dict(train=84, valid=12, test=24)
    assert dls.split.groupby('patient').part.nunique().max()==1 and dls.split.patient.nunique()==40
    groups = torch.cat([o.dataset.groups for o in dls.loaders])
    assert len(groups.unique())==40            # ids of 31 digits
    at = dict(zip(dls.split.item, dls.split.image))
    ds = dls.train_ds
    for x,o in zip(ds.x[range(len(ds))], ds.items.tolist()):
        assert np.array_equal(x[0].numpy().ravel(), (ims[int(Path(at[o]).stem)]*15).astype(np.uint8))

def test_the_draw_is_its_seeds(own):
    root = own(names, lambda i: Y[i].tolist())
    a,b,c = (findings_csv(root, 'own.csv', findings=names, patient='who', split_seed=s, **kw).split for s in (1,1,2))
    assert a.equals(b) and not a.part.equals(c.part)

def test_a_column_of_parts(own):
    part = lambda i: ('Train','Val','test')[(i//3)%3]
    root = own([*names,'fold'], lambda i: [*Y[i],part(i)])
    dls = findings_csv(root, 'own.csv', findings=names, patient='who', split='fold', **kw)
    assert all(rows_of(dls)[f'{i}.png'][1]==dict(Train='train', Val='valid', test='test')[part(i)] for i in range(N))
    root = own([*names,'fold'], lambda i: [*Y[i],'train' if i<90 else 'test'])        # then validation is drawn
    s = findings_csv(root, 'own.csv', findings=names, patient='who', split='fold', **kw).split
    assert s.part.value_counts().to_dict()==dict(train=78, valid=12, test=30)
    root = own([*names,'fold'], lambda i: [*Y[i],'train' if i%2 else 'test'])
    with pytest.raises(MemoError, match='40 patients are in both lists'):
        findings_csv(root, 'own.csv', findings=names, patient='who', split='fold', **kw)

unsure = (names, lambda i: ['-1' if i%5==0 else Y[i,0],'' if i%6==0 else Y[i,1],Y[i,2]])
def test_uncertain_and_missing(own):
    "An error with column and count, until the user says what they are"
    root = own(*unsure)
    def load(**more): return findings_csv(root, 'own.csv', findings=names, patient='who', **more, **kw)
    with pytest.raises(MemoError, match=r"24 of 120 rows are -1 \(uncertain\) in column 'even'; unc"): load()
    with pytest.raises(MemoError, match=r"20 of 120 rows are empty \(missing\) in column 'small'; missing: zeros"):
        load(uncertain='ones')          # nobody means empty cells by that
    ways = dict(zeros=0, ones=1, ignore=-1)
    for u in ways:
        for m in ('zeros','ones','ignore',None):
            if u=='ones' and m is None: continue
            got = rows_of(load(uncertain=u, missing=m))
            for i in range(N):
                want = [ways[u] if i%5==0 else Y[i,0],ways[m or u] if i%6==0 else Y[i,1],Y[i,2]]
                assert got[f'{i}.png'][0]==want
    with pytest.raises(MemoError, match='24 of 120 rows are -1'): load(missing='zeros')

def test_ignored_labels_count_nowhere(own):
    "Counts, batches, loss; rows of which nothing is known are left out"
    root = own(names, lambda i: ['','',''] if i<6 else unsure[1](i))
    with pytest.warns(UserWarning, match='of 6 of 120 images nothing is known'):
        dls = findings_csv(root, 'own.csv', findings=names, patient='who', uncertain='ignore', **kw)
    y = dls.train_ds.y
    assert len(dls.split)==114 and torch.equal(dls.counts, (y==1).sum(0)) and bool((y==-1).any())
    normal = ~(y==1).any(1)
    assert not bool(normal[:int((~normal).sum())].any())        # those with a finding first
    xb,yb = dls.one_batch()
    assert torch.isfinite(dls.train_ds.loss_func(torch.zeros(len(yb), 3), yb))

vote = st.sampled_from([0,1,-1])
@given(st.lists(st.tuples(st.integers(0, 4), vote, vote), min_size=1, max_size=30))
def test_a_majority_is_of_those_who_say_something(votes):
    who,y = [v[0] for v in votes],np.array([v[1:] for v in votes], dtype=float)
    first,got = majority_of(who, y)
    assert [who[i] for i in first]==list(dict.fromkeys(who))
    for i,o in enumerate(dict.fromkeys(who)):
        for j in range(2):
            own = [v for w,v in zip(who, y[:,j]) if w==o and v>=0]
            assert got[i,j]==(-1 if not own else float(sum(own)*2>len(own)))

@given(st.lists(st.tuples(st.integers(0, 4), vote, vote), min_size=1, max_size=30))
def test_what_one_row_has_the_image_has(votes):
    who,y = [v[0] for v in votes],np.array([v[1:] for v in votes], dtype=float)
    first,got = any_of(who, y)
    assert [who[i] for i in first]==list(dict.fromkeys(who))
    for i,o in enumerate(dict.fromkeys(who)):
        for j in range(2):
            own = {v for w,v in zip(who, y[:,j]) if w==o}
            assert got[i,j]==(1 if 1 in own else -1 if -1 in own else 0)

def test_a_row_for_each_finding(tmp_path):
    "As tables of boxes have them"
    rows = [[f'{i}.png',f'p{i//3}',n] for i in range(N) for n,o in zip([*names,'normal'], [*Y[i],not Y[i].any()]) if o]
    for i in range(N): film(tmp_path/f'{i}.png', i)
    write(tmp_path/'own.csv', ['image','who','what'], rows[::-1])
    dls = findings_csv(tmp_path, 'own.csv', label='what', patient='who', several='any', **kw)
    assert list(dls.vocab)==names and len(dls.split)==N
    assert all(y==Y[int(k[:-4])].tolist() for k,(y,_) in rows_of(dls).items())

def test_several_rows_of_an_image(own, tmp_path):
    root = own(names, lambda i: Y[i].tolist())
    p = root/'own.csv'
    p.write_text(p.read_text()+f'0.png,{10**30},0,0,0\n0.png,{10**30},0,1,0\n')
    with pytest.raises(MemoError, match='1 images have more than one row'):
        findings_csv(root, 'own.csv', findings=names, patient='who', **kw)
    dls = findings_csv(root, 'own.csv', findings=names, patient='who', several='majority', **kw)
    assert len(dls.split)==N and rows_of(dls)['0.png'][0]==[0,1,0]       # digit 0: 1 1 1

def test_a_table_in_the_working_folder(own, tmp_path, monkeypatch):
    root = own(names, lambda i: Y[i])
    def n(): return len(findings_csv(root, 'mine.csv', findings=names, patient='who', **kw).split)
    (tmp_path/'here').mkdir()
    monkeypatch.chdir(tmp_path/'here')
    (root/'own.csv').rename('mine.csv')
    was = n()
    shutil.copy('mine.csv', root/'mine.csv')
    Path('mine.csv').write_text('nothing')      # the one below root goes first
    assert n()==was>0

def test_what_is_wrong_is_told_in_a_line(own):
    root = own([*names,'found'], lambda i: [*Y[i],'small' if Y[i,1] else 'normal'])
    def fails(part, **args):
        args = {'csv':'own.csv', 'patient':'who', 'findings':names, **args}
        with pytest.raises(MemoError) as e: findings_csv(root, **args, **kw)
        m = str(e.value)
        assert '\n' not in m and len(m)<=300 and part in m, m
    fails("'evne' is no column of", findings=['evne'])
    fails('did you mean even', findings=['evne'])
    fails("no row of", label='found', findings=['smal'])
    fails("column 'patients' is missing", patient='patients')
    fails('are needed, of who, even, small, third, found', findings=None)
    fails('no such file; own.csv is there', csv='owm.csv')
    fails('csv: the table is needed', csv=None)
    fails("120 rows are of no part", split='who')
    p = root/'own.csv'
    was = p.read_text()
    p.write_text(was.replace('0.png', 'x/zero.png', 1))
    fails('1 of the 120 images of own.csv are not there (first: x/zero.png)')
    p.write_text(was.replace(',1,', ',2,', 1))
    fails("hold '2'; 1, 0, -1")
    for twice in ('small','who'):
        p.write_text(was.replace('found', twice, 1))
        fails(f"column '{twice}' is there more than once")
    p.write_text(was)
    for o in root.rglob('*.png'): o.unlink()
    fails('none of the 120 images of own.csv is there (first: 0.png, ...), found no images, own.csv')
    with pytest.warns(UserWarning, match='no patient column'), pytest.raises(MemoError):
        findings_csv(root, 'own.csv', findings=names, **kw)

@pytest.mark.parametrize('joined,name', [(o,n) for o in (False,True) for n in ('image','patient','path','part','item')
    if o or n!='image'])        # a column that is both is told as one without 0 and 1
def test_findings_called_as_columns_that_tables_have(own, joined, name):
    "Ids of images once were the targets of a finding `item`"
    root = own(['found'], lambda i: [name if Y[i,0] else '']) if joined else own([f'{name}2'], lambda i: [Y[i,0]])
    args = dict(label='found', missing='zeros') if joined else dict(findings=[name])
    if not joined: (root/'own.csv').write_text((root/'own.csv').read_text().replace(f'{name}2', name))
    with pytest.raises(MemoError, match=f'findings: .{name}. is what a table of images calls a column of its own'):
        findings_csv(root, 'own.csv', **args, **kw)

@pytest.mark.parametrize('asked,said', [(['even','even'], "'even' is named twice"), ([], 'found none')])
def test_each_finding_once(own, asked, said):
    root = own([*names,'found'], lambda i: [*Y[i],'|'.join(n for n,o in zip(names, Y[i]) if o)])
    for more in ({}, dict(label='found', missing='zeros')):
        with pytest.raises(MemoError, match=said):
            findings_csv(root, 'own.csv', patient='who', findings=asked, **more, **kw)

def test_by_an_experiment(own, tmp_path):
    root = own(*unsure)
    p = tmp_path/'e.yaml'
    p.write_text(f"""name: own
data: {{name: findings_csv, root: {root}, csv: own.csv, findings: [even, small, third], patient: who, uncertain: ignore,
  size: 8, channels: 1, workers: 0, fit: pad}}
model: {{name: small_cnn}}
memory: {{bank: SlotBank, size: 64, head: vote}}
train: {{epochs: 1}}
""")
    dls = build_dls(load_config(p), 0)
    assert list(dls.vocab)==names and bool((dls.train_ds.y==-1).any()) and dls.train_ds.x.fit=='pad'

# the sets; the first lines of the tables of CheXpert and PadChest are out of torchxrayvision's package, as their makers
# ship them; those of MIMIC-CXR-JPG and VinDr-CXR are as PhysioNet describes them

chexpert_head = ('Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,'
                 'Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,'
                 'Fracture,Support Devices').split(',')
chexpert_row = ('CheXpert-v1.0-small/train/patient00002/study2/view1_frontal.jpg,Female,87,Frontal,AP,,,-1.0,1.0,,-1.0,'
                '-1.0,,-1.0,,-1.0,,1.0,').split(',')
mimic_head = ('subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,'
              'Lung Lesion,Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,'
              'Support Devices').split(',')
mimic_split = 'dicom_id,study_id,subject_id,split'.split(',')
padchest_head = (',ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,'
    'Projection,MethodProjection,Pediatric,Modality_DICOM,Manufacturer_DICOM,PhotometricInterpretation_DICOM,'
    'PixelRepresentation_DICOM,PixelAspectRatio_DICOM,SpatialResolution_DICOM,BitsStored_DICOM,WindowCenter_DICOM,'
    'WindowWidth_DICOM,Rows_DICOM,Columns_DICOM,XRayTubeCurrent_DICOM,Exposure_DICOM,ExposureInuAs_DICOM,ExposureTime,'
    'RelativeXRayExposure_DICOM,ReportID,Report,MethodLabel,Labels,Localizations,LabelsLocalizationsBySentence,'
    'labelCUIS,LocalizationsCUIS').split(',')
vindr_head = ('image_id,rad_id,Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,'
    'Consolidation,Edema,Emphysema,Enlarged PA,ILD,Infiltration,Lung Opacity,Lung cavity,Lung cyst,Mediastinal shift,Nodule/Mass,'
    'Pleural effusion,Pleural thickening,Pneumothorax,Pulmonary fibrosis,Rib fracture,Other lesion,COPD,Lung tumor,'
    'Pneumonia,Tuberculosis,Other diseases,No finding').split(',')

def cells_of(head, **found): return [found.get(k.replace(' ', '_'), '') for k in head]

def make_chexpert(root, test=False):
    "Two views of a study each, all called alike; small ones have an effusion, even ones an uncertain edema"
    parts = dict(train=range(1,41), valid=range(41,51), **(dict(test=range(51,61)) if test else {}))
    for part,who in parts.items():
        rows = []
        for i in who:
            for view in ('view1_frontal','view2_lateral'):
                rel = f'{part}/patient{i:05d}/study1/{view}.jpg'
                film(root/rel, i)
                found = dict(Path=f'CheXpert-v1.0-small/{rel}', Pleural_Effusion='1.0' if Y[i,1] else '0.0',
                             Edema='-1.0' if Y[i,0] else '1.0', No_Finding='')
                rows.append(cells_of(chexpert_head, **found))
        if part=='train': assert len(rows[0])==len(chexpert_row)
        write(root/f'{part}.csv', chexpert_head, rows)
    return root

@pytest.mark.parametrize('below', ['', 'archive/CheXpert-v1.0-small'])
def test_chexpert(tmp_path, below):
    assert {*chexpert_findings}=={*chexpert_head[6:]}
    make_chexpert(tmp_path/below)
    two = dict(findings=['Edema','Pleural Effusion'], valid=.2, **kw)
    with pytest.raises(MemoError, match=r"\d+ of 100 rows are -1 \(uncertain\) in column 'Edema'"):
        chexpert(tmp_path, **two)
    dls = chexpert(tmp_path, uncertain='ignore', **two)
    s = dls.split
    assert s.part.value_counts().to_dict()==dict(train=64, valid=16, test=20)
    assert s.groupby('patient').part.nunique().max()==1 and s.patient.nunique()==50
    assert {*s.patient[s.part=='test']}=={f'patient{i:05d}' for i in range(41,51)}
    got = rows_of(dls)
    for i in range(1,51):
        of = [v for k,v in got.items() if f'patient{i:05d}' in k]
        assert len(of)==2 and all(y==[-1 if Y[i,0] else 1,Y[i,1]] for y,_ in of)
    with pytest.warns(UserWarning, match='Lung Lesion.* left out'):        # what nobody mentions is negative
        dls = chexpert(tmp_path, uncertain='ones', drop_empty=True, **kw)
    assert list(dls.vocab)==['Edema','Pleural Effusion']

def test_chexpert_with_its_test_set(tmp_path):
    make_chexpert(tmp_path, test=True)
    s = chexpert(tmp_path, findings=['Edema'], uncertain='ones', **kw).split
    assert s.part.value_counts().to_dict()==dict(train=80, valid=20, test=20)
    (tmp_path/'train/patient00007/study1/view1_frontal.jpg').unlink()
    with pytest.raises(MemoError, match='1 of the 120 images of train.csv are not there .*patient00007'):
        chexpert(tmp_path, findings=['Edema'], uncertain='ones', **kw)
    (tmp_path/'valid.csv').unlink()
    with pytest.raises(MemoError, match='valid.csv is not there, found 119 images'): chexpert(tmp_path, **kw)
    with pytest.raises(MemoError, match="findings: 'Edma' .* did you mean Edema"):
        chexpert(tmp_path, findings=['Edma'], **kw)

def make_mimic(root, ending=''):
    studies,split = [],[]
    for i in range(1,61):
        who,study = f'{10000000+i}',f'{50000000+i}'
        found = dict(subject_id=who, study_id=study, Edema='1.0' if Y[i,0] else '-1.0')
        if Y[i,1]: found['Pneumonia'] = '1.0'
        if i!=60: studies.append(cells_of(mimic_head, **found))
        for j in (0,1):
            name = f'{i:08x}-{j:08x}-aaaaaaaa-bbbbbbbb-cccccccc'
            film(root/f'files/p{who[:2]}/p{who}/s{study}/{name}.jpg', i)
            split.append([name,study,who,'train' if i<41 else 'validate' if i<51 else 'test'])
    write(root/f'mimic-cxr-2.0.0-chexpert.csv{ending}', mimic_head, studies)
    write(root/f'mimic-cxr-2.0.0-split.csv{ending}', mimic_split, split)

@pytest.mark.parametrize('ending', ['','.gz'])
def test_mimic_cxr(tmp_path, ending):
    make_mimic(tmp_path, ending)
    two = dict(findings=['Edema','Pneumonia'], **kw)
    with pytest.warns(UserWarning, match='2 of 120 images are of studies without labels'):
        dls = mimic_cxr(tmp_path, uncertain='zeros', **two)
    s = dls.split
    assert s.part.value_counts().to_dict()==dict(train=80, valid=20, test=18)
    assert s.groupby('patient').part.nunique().max()==1
    got = rows_of(dls)
    assert len(got)==118 and all(y==[Y[int(k.split('/')[2][1:])-10000000,j] for j in (0,1)] for k,(y,_) in got.items())
    with pytest.raises(MemoError, match='in column .Edema.'), pytest.warns(): mimic_cxr(tmp_path, **two)
    (tmp_path/f'mimic-cxr-2.0.0-split.csv{ending}').unlink()
    with pytest.raises(MemoError, match='mimic-cxr-2.0.0-split.csv.gz is not there'): mimic_cxr(tmp_path, **two)

def make_padchest(root):
    "Films of 12 bits in files of 16, in numbered folders; patients are numbers of 39 digits that a float cannot hold"
    rows = []
    for i in range(N):
        name = f'{10**38+i}_{i:06x}.png'
        p = root/f'{i%3}/{name}'
        p.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((ims[i].reshape(8,8)*255).astype(np.uint16)).save(p)
        labels = [n for n,o in zip(('pulmonary fibrosis',' nodule','kyphosis'), Y[i]) if o] or ['normal']
        if i==5: labels = ['exclude']
        found = dict(ImageID=name, ImageDir=i%3, PatientID=10**38+i//3, Labels='nan' if i==7 else str(labels),
                     BitsStored_DICOM=12, Report='opacidad, "x"')
        rows.append(cells_of(padchest_head, **found))
    write(root/'PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv', padchest_head, rows)

def test_padchest(tmp_path):
    make_padchest(tmp_path)
    with pytest.warns(UserWarning, match="2 of 120 images have no labels, or 'exclude'"): dls = padchest(tmp_path, **kw)
    assert list(dls.vocab)==['kyphosis','nodule','pulmonary fibrosis'] and len(dls.split)==118
    assert dls.split.patient.nunique()==40 and dls.split.groupby('patient').part.nunique().max()==1
    got = rows_of(dls)
    assert all(y==Y[int(k.split('_')[0])-10**38,[2,1,0]].tolist() for k,(y,_) in got.items())
    x = dls.train_ds.x
    assert x.depth==12 and int(x[range(len(x))].max())==255        # of the whole set: (16*255)>>4
    with pytest.warns(UserWarning): dls = padchest(tmp_path, findings=['kyphosis'], **kw)
    assert list(dls.vocab)==['kyphosis'] and dls.train_ds.y.shape[1]==1

def make_vindr(root, ending='.png'):
    for part,n in (('train',range(60)), ('test',range(60,80))):
        rows,head = [],vindr_head
        if part=='test': head = [o.replace('diseases', 'disease') for o in head if o!='rad_id']        # as it is there
        for i in n:
            name = f'{i:032x}'
            film(root/f'{part}/{name}{ending}', i)
            for r in range(3 if part=='train' else 1):
                vote = dict.fromkeys((k.replace(' ', '_') for k in head), 0)
                vote |= dict(image_id=name, rad_id=f'R{r+8}', Edema=int(Y[i,0] if r<2 else 1-Y[i,0]))
                vote |= dict(COPD=int(r==2), ILD=int(Y[i,1]))
                rows.append([vote[k.replace(' ', '_')] for k in head])
        write(root/f'annotations/image_labels_{part}.csv', head, rows)

def test_vindr(tmp_path):
    "Two of three readers carry it; one alone does not"
    make_vindr(tmp_path)
    assert {*vindr_findings}=={*vindr_head[2:-1]}
    with pytest.raises(MemoError, match='COPD is in none'): vindr(tmp_path, findings=['Edema','COPD'], **kw)
    dls = vindr(tmp_path, findings=['Edema','ILD'], **kw)
    got = rows_of(dls)
    assert len(got)==80 and all(y==Y[int(k, 16),:2].tolist() for k,(y,_) in got.items())
    s = dls.split
    assert {*s.image[s.part=='test']}=={f'{i:032x}' for i in range(60,80)} and s.part.value_counts().valid==8
    with pytest.warns(UserWarning, match='left out'): dls = vindr(tmp_path, drop_empty=True, **kw)
    assert list(dls.vocab)==['Edema','ILD']

def test_vindr_as_the_competition_has_it(tmp_path):
    "A row for each box; its header and its rows without one as those who unpacked it print them"
    head = 'image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max'.split(',')
    def row(i, who, what=None):
        box = ['']*4 if what is None else [691.,1375.,1653.,1831.]
        return [f'{i:032x}',what or 'No finding',14 if what is None else 3,f'R{who}',*box]
    rows = []
    for i in range(80):
        film(tmp_path/f'train/{i:032x}.png', i)
        for who in (8,9,10):
            got = ['Cardiomegaly']*2*Y[i,0]*(who<10)+['ILD']*Y[i,1]+['Nodule/Mass']*(who==10)
            rows += [row(i, who, o) for o in got] or [row(i, who)]
    film(tmp_path/f'test/{99:032x}.png', 99)
    write(tmp_path/'train.csv', head, rows)
    dls = vindr(tmp_path, findings=['Cardiomegaly','ILD'], test=.25, **kw)
    got = rows_of(dls)
    assert len(got)==80 and all(y==Y[int(k, 16),:2].tolist() for k,(y,_) in got.items())
    assert dls.split.part.value_counts().test==20
    with pytest.warns(UserWarning, match='left out'): dls = vindr(tmp_path, drop_empty=True, **kw)
    assert list(dls.vocab)==['Cardiomegaly','ILD']      # one reader's nodules are no majority

@pytest.mark.slow
def test_real_tables_are_read():
    "The tables of CheXpert and PadChest themselves, with 224,316 and 160,861 rows"
    from memo.core import packaged_file
    p = packaged_file('torchxrayvision', 'data/PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz')
    if p is None: pytest.skip('torchxrayvision is not installed')
    df = pd.read_csv(p, dtype=str, usecols=['ImageID','PatientID','Labels'], keep_default_na=False)
    with gzip.open(p, 'rt') as f: assert f.readline().strip().split(',')==padchest_head
    y,found = joined_targets(df, 'Labels')
    assert len(found)>170 and np.isnan(y).all(1).sum()==103 and df.PatientID.nunique()==67625
    with gzip.open(packaged_file('torchxrayvision', 'data/chexpert_train.csv.gz'), 'rt') as f:
        rows = list(csv.reader(f))
    assert rows[0]==chexpert_head and rows[2]==chexpert_row
    from memo.data.findings_csv import one_hot_targets
    y = one_hot_targets(pd.DataFrame(rows[1:], columns=rows[0]), chexpert_findings, 'train.csv')
    with pytest.raises(MemoError, match=r"of 2234\d\d rows are -1 \(uncertain\) in column 'Atelectasis'"):
        settle(y, chexpert_findings, 'train.csv')
