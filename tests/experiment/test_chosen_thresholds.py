"Validation predictions, and thresholds that a run chooses on them, keeps with the model and applies to the test set"
import json, shutil
import numpy as np, pandas as pd, pytest, torch
from helpers.errors import err
from sklearn.metrics import roc_curve
from fastai.learner import load_learner
from safetensors import safe_open
from memo.cli import memo_eval
from memo.data.chest_xray import findings
from memo.experiment import again, run as ex
from memo.experiment.config import load_config
from memo.experiment.run_folder import kept_choices
from memo.evaluation.tables import label, row_of
from memo.metrics.thresholds import thresholds

pytestmark = pytest.mark.usefixtures('unrendered')

YML = '''
name: chosen
seeds: [0]
data: {{name: chestxray14, root: {root}, size: 16, channels: 1, rotate: 0, workers: 0, preload: true, valid: 0.15}}
model: {{name: chest, arch: tile_cnn, hidden: 16}}
memory: {{size: 256, policy: fifo, head: vote, k: 5}}
train: {{epochs: 1, lr: 1e-2, bs: 32, loss: bce, abnormal_only: true}}
evaluation: {{threshold: youden}}
'''

@pytest.fixture(scope='module')
def tree(tmp_path_factory, fashion_root, nih_table, mnist_digits):
    from memo.data.chest_standin import chest_tree
    d = tmp_path_factory.mktemp('chest')/'tree'
    chest_tree(d, patients=150, seed=1)
    return d

@pytest.fixture(scope='module')
def write(tmp_path_factory, tree):
    p = tmp_path_factory.mktemp('yaml')/'chosen.yaml'
    p.write_text(YML.format(root=json.dumps(str(tree))))
    return p

@pytest.fixture(scope='module')
def run(write, tmp_path_factory):
    runs = f'runs={json.dumps(str(tmp_path_factory.mktemp("runs")))}'
    cfg = load_config(write, [runs])
    ex.run_experiment(cfg, log=lambda s: None)
    return ex.run_folder(cfg)

def rows(folder):
    "label -> entry of a metrics.json"
    m = json.loads((folder/'metrics.json').read_text(), parse_constant=lambda s: pytest.fail(f'{s} is no JSON'))
    return {label(row_of(r), m['titles']):r for r in m['rows']}

def test_validation_predictions_are_of_validation_images(run, tree):
    "Every one, whichever of them training has looked at, with its patient and its labels"
    p,test,s = (pd.read_csv(run/f'{k}.csv') for k in ('predictions_valid','predictions','split'))
    assert p.columns.tolist()==test.columns.tolist() and len(p)
    assert sorted(p.image)==sorted(s.image[s.part=='valid']) and not {*p.patient}&{*test.patient}
    t = pd.read_csv(tree/'Data_Entry_2017.csv', index_col=False).set_index('Image Index').loc[p.image]
    assert t['Patient ID'].tolist()==p.patient.tolist()
    for f in findings: assert p[f].tolist()==t['Finding Labels'].str.split('|').map(lambda o: int(f in o)).tolist()
    learn = again.load_run(run)
    probs,y = learn.get_preds(dl=learn.dls.valid)
    want = p[[f'plain network + memory: {f}' for f in findings]].to_numpy()
    np.testing.assert_allclose(probs, want, atol=1e-5)

def youden(y, p):
    "Of the best thresholds that which finds most; None where there is none"
    if not 0<y.sum()<len(y): return None
    fpr,tpr,at = roc_curve(y, p, drop_intermediate=False)
    j = tpr-fpr
    best = np.flatnonzero(j>j.max()-1e-9)[-1]
    return at[best] if j.max()>1e-9 else None

def test_thresholds_are_those_of_validation_data(run):
    "Against scikit-learn's curve, and their rates on the test set counted by hand"
    v,p,c = (pd.read_csv(run/f'{k}.csv') for k in ('predictions_valid','predictions','classes'))
    for k,r in rows(run).items():
        t = r['chosen']['thresholds']
        assert t['by']=='youden' and [*t['of']]==findings
        for f in findings:
            y,q,row = v[f],v[f'{k}: {f}'],c[(c.method==k)&(c.finding==f)].iloc[0]
            lowest = youden(y, q)
            assert (t['of'][f] is None)==(lowest is None)==(not row.chosen)
            at = .5 if lowest is None else t['of'][f]
            if lowest is not None: assert ((q>at)==(q>=lowest)).all()
            y,hit = p[f]>0,p[f'{k}: {f}']>at
            assert abs(row.threshold-at)<1e-12 and row.positives==y.sum() and row.patients==p.patient[y].nunique()
            for name,(a,b) in dict(sensitivity=(hit,y), specificity=(~hit,~y), ppv=(y,hit), npv=(~y,~hit)).items():
                want = (a&b).sum()/b.sum() if b.sum() else np.nan
                assert np.isnan(want) and np.isnan(row[name]) or abs(row[name]-want)<1e-9
                assert np.isnan(want) or row[f'{name}_low']<=want<=row[f'{name}_high']
    assert any(v is None for r in rows(run).values() for v in r['chosen']['thresholds']['of'].values())

def test_they_are_in_the_model(run, tmp_path):
    "A learner that is loaded, or exported and loaded, finds what lies above them"
    learn = again.load_run(run)
    own = rows(run)['plain network + memory']['chosen']['thresholds']['of']
    assert learn.thresholds.tolist()==[.5 if own[f] is None else own[f] for f in findings]
    probs,_,found = learn.get_preds(dl=learn.dls[2], with_decoded=True)
    assert torch.equal(found, probs>learn.thresholds) and not torch.equal(found, probs>.5)
    learn.export(tmp_path/'a.pkl')
    assert torch.equal(load_learner(tmp_path/'a.pkl').thresholds, learn.thresholds)
    with safe_open(run/'model.safetensors', 'pt') as f: json.loads(f.metadata()['rows'])

def test_evaluated_again(run, tmp_path):
    text,off = again.evaluate_run(run, out=tmp_path/'a')
    assert off==[] and 'thresholds by youden' in text and '(none chosen)' in text
    for f in ('predictions_valid.csv','classes.csv'): assert (tmp_path/'a'/f).read_text()==(run/f).read_text()
    shutil.copy(run/'model.safetensors', tmp_path/'m.safetensors')
    assert again.evaluate_model(tmp_path/'m.safetensors')==text
    for how in ('f1', {'sensitivity':.9}, 'specificity=.95'):
        again.evaluate_run(run, out=tmp_path/'b', threshold=how)
        v,got = pd.read_csv(tmp_path/'b/predictions_valid.csv'),rows(tmp_path/'b')['plain network']
        want = thresholds(torch.tensor(v[[f'plain network: {f}' for f in findings]].to_numpy('float32')),
                          torch.tensor(v[findings].to_numpy()), how)
        of = got['chosen']['thresholds']['of'].values()
        assert [.5 if o is None else o for o in of]==pytest.approx(want.tolist(), abs=1e-6)
    text = memo_eval(str(run), threshold='.25', out=str(tmp_path/'c'))
    assert 'threshold 0.25' in text and (pd.read_csv(tmp_path/'c/classes.csv').threshold==.25).all()
    assert 'chosen' not in rows(tmp_path/'c')['plain network']

def test_on_other_data_they_stay(run, tree, tmp_path):
    "Other validation images choose nothing anew, unless that is asked for"
    other = tmp_path/'elsewhere'
    shutil.copytree(tree, other)
    ids = pd.read_csv(tree/'Data_Entry_2017.csv', index_col=False)
    test = (other/'test_list.txt').read_text().split()
    lost = ids[~ids['Image Index'].isin(test)]['Patient ID'].drop_duplicates()[::3]
    keep = ids['Image Index'][ids['Patient ID'].isin(lost)]
    (other/'train_val_list.txt').write_text('\n'.join(o for o in (other/'train_val_list.txt').read_text().split()
                                                      if o not in {*keep}))
    again.evaluate_run(run, root=other, out=tmp_path/'a')
    again.evaluate_run(run, root=other, out=tmp_path/'b', threshold='f1')
    def of(d): return {k:r['chosen']['thresholds'] for k,r in rows(d).items()}
    assert of(tmp_path/'a')==of(run)!=of(tmp_path/'b')

def test_made_again_and_damaged(run, tmp_path):
    d = tmp_path/'chosen'
    shutil.copytree(run, d)
    was = (d/'predictions_valid.csv').read_bytes()
    (d/'predictions_valid.csv').unlink()
    lines = []
    ex.resume_run(d, log=lines.append)
    assert any('predictions_valid.csv' in o and 'made again' in o for o in lines)
    assert (d/'predictions_valid.csv').read_bytes()==was and rows(d)==rows(run)
    m = json.loads((d/'metrics.json').read_text())
    for bad in (5, {'by':'youden'}, {'by':'youden','of':[1]}, {'by':'youden','of':{'Hernia':'x'}},
                {'by':'youden','of':{'Hernia':7}}):
        m['rows'][0]['chosen'] = dict(thresholds=bad)
        assert 'm.json is damaged' in err(kept_choices, m['rows'], 'm.json')
        (d/'metrics.json').write_text(json.dumps(m))
        assert 'metrics.json is damaged' in err(again.evaluate_run, d)

@pytest.mark.parametrize('over,said', [
    (['evaluation.threshold=yuden'], "did you mean 'youden'"),
    (['evaluation.threshold={sensitivity: 2}'], 'evaluation.threshold: '),
    (['evaluation.threshold={recall: .9}'], 'accepted: a probability, f1, youden, sensitivity=.9'),
    (['evaluation.threshold=1.5'], 'evaluation.threshold must be'),
    (['evaluation.thresold=.5'], 'did you mean evaluation.threshold?'),
    (['data.valid=0','memory=null'], 'chosen on validation items, and data.valid is 0')])
def test_mistakes(write, over, said): assert said in err(load_config, write, over)

def test_numbers_and_rules(write, yml):
    for o,v in (('.3',.3), ('f1','f1'), ('{sensitivity: .9}',{'sensitivity':.9})):
        cfg = load_config(write, [f'evaluation.threshold={o}'])
        assert cfg.evaluation.threshold==v and load_config(yml(ex.to_yaml(cfg))).evaluation.threshold==v
    assert 'is for findings' in err(load_config, yml('data: {name: digits_lt}\nevaluation: {threshold: f1}'))
