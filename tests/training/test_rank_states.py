"A checkpoint of several processes has the random state of each, and they resume to the same numbers"
import random
from pathlib import Path
import pytest, torch
from memo.training import checkpoint

script = Path(__file__).with_name('ranks_resumed_script.py')

@pytest.mark.slow
def test_two_processes_resume_to_the_same_numbers(two_ranks, tool, python, tmp_path):
    "Killed in the middle of either phase; every resume of several processes was refused"
    def run(d, *args): return two_ranks(script, tmp_path/d, *map(str, args))
    for d in 'ab': (tmp_path/d).mkdir()
    assert run('a', 'whole').returncode==0
    for i,n in enumerate((9, 13)):
        assert run('b', n, *['resume']*bool(i)).returncode!=0 and not (tmp_path/'b/end.pt').exists()
    r = python(script, tmp_path/'b', 'whole', 'resume')
    assert 'another number of processes: they are 2 there, 1 here' in r.stdout, r.stderr
    r = run('b', 'whole', 'resume')
    assert r.returncode==0, r.stderr
    a,b = (torch.load(tmp_path/d/'end.pt') for d in 'ab')
    assert a['h']==b['h'] and len(a['h'])==5 and all(v.equal(b['m'][k]) for k,v in a['m'].items())

def test_a_checkpoint_has_the_random_state_of_every_process(monkeypatch):
    def gather(res, o):
        res[0] = o
        random.seed(7)                          # as if in the other process
        res[1] = checkpoint.plain(checkpoint.rng_state())
    monkeypatch.setattr(checkpoint, 'num_distrib', lambda: 2)
    monkeypatch.setattr(torch.distributed, 'all_gather_object', gather)
    random.seed(3)
    a,b = checkpoint.rank_states([])
    assert not a['python'][1].equal(b['python'][1])
    checkpoint.set_rng_state(b)
    now = random.random()
    random.seed(7)
    assert now==random.random()
