"An experiment on a table with uncertain findings, from memo-train to its table: what is not known is in no figure"
import json
import numpy as np, pandas as pd, pytest
from sklearn.metrics import average_precision_score, roc_auc_score
from data.test_findings_csv import make_chexpert
from memo.experiment import run as ex
from memo.experiment.config import load_config

pytestmark = pytest.mark.usefixtures('unrendered')

YAML = '''
name: unsure
seeds: [0]
data: {{name: chexpert, root: {root}, findings: [Edema, Pleural Effusion], uncertain: ignore, missing: zeros,
  valid: 0.3, size: 32, channels: 1, workers: 0, preload: true, check: true, fit: squash}}
model: {{name: chest, arch: tile_cnn, hidden: 32}}
memory: {{size: 64, policy: fifo, head: vote, k: 5}}
train: {{epochs: 2, lr: 1e-2, bs: 16, class_weights: true, {more}}}
'''

@pytest.mark.parametrize('more', ['loss: bce, abnormal_only: true','loss: asymmetric, sampling: balanced'])
def test_scores_are_of_what_is_known(more, tmp_path):
    make_chexpert(tmp_path/'set')
    # an edema that is known to be absent, in some of the odd digits: both outcomes are there
    for part in ('train','valid'):
        p = tmp_path/f'set/{part}.csv'
        df = pd.read_csv(p, dtype=str, keep_default_na=False)
        no = df.Path.str.extract(r'patient(\d+)')[0].astype(int)%4==1
        df.loc[no, 'Edema'] = '0.0'
        df.to_csv(p, index=False)
    (tmp_path/'e.yaml').write_text(YAML.format(root=json.dumps(str(tmp_path/'set')), more=more))
    ex.run_experiment(load_config(tmp_path/'e.yaml', [f'runs={json.dumps(str(tmp_path/"runs"))}']), log=lambda s: None)
    out = next((tmp_path/'runs').rglob('predictions.csv'))
    pred,m = pd.read_csv(out),json.loads((out.parent/'metrics.json').read_text())
    assert (pred.Edema==-1).any() and len(pred)==20 and pred.patient.str.startswith('patient').all()
    n = 0
    for row in m['rows']:
        aucs,aps = [],[]
        k = [c.rpartition(': ')[0] for c in pred if c.endswith(': Edema')][n]
        for f in ('Edema','Pleural Effusion'):
            known = pred[f]>=0
            y,s = pred[f][known],pred[f'{k}: {f}'][known]
            if y.nunique()>1:
                aucs.append(roc_auc_score(y, s))
                aps.append(average_precision_score(y, s))
        assert row['scores']['macro_auc']==pytest.approx(np.mean(aucs), abs=1e-3)
        assert row['scores']['macro_ap']==pytest.approx(np.mean(aps), abs=1e-3)
        n += 1
    assert n>=2         # the network, and with its memory
