"The house style, checked by fastai's own checker"
def test_chkstyle(repo, tool):
    r = tool('chkstyle', 'memo', 'nbs', cwd=repo)
    assert r.returncode == 0, r.stdout+r.stderr
