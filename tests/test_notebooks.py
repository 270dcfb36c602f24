"The notebooks run, and what they assert holds"
import pytest

@pytest.mark.slow
def test_notebooks_run(repo, tool):
    r = tool('nbdev-test', '--n-workers', 2, cwd=repo, timeout=900, env=dict(PYTHONWARNINGS='ignore'))
    assert r.returncode == 0, (r.stdout+r.stderr)[-6000:]
