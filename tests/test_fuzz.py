"What benchmarks/fuzz.py tries: nothing is refused by a traceback, by more than a line, or after more than two seconds"
import subprocess, sys
import pytest

@pytest.mark.slow
def test_300_of_each_kind(repo):
    r = subprocess.run([sys.executable, repo/'benchmarks'/'fuzz.py', '--n', '300', '--no-page'], capture_output=True,
                       text=True)
    lines = [l for l in r.stdout.splitlines() if ' tried ' in l]
    assert r.returncode==0 and len(lines)==9, r.stdout+r.stderr
    bad = [l for l in lines if 'unclear 0  traceback 0  hang 0' not in l]
    assert not bad, r.stdout
    for l in lines: assert 'refused 0 ' not in l and ('accepted 0 ' not in l or l.startswith('raw')), l
