"A checkpoint of several processes has the random state of each"
import random
import torch
from memo.training import checkpoint

def test_a_checkpoint_has_the_random_state_of_every_process(monkeypatch):
    def gather(res, o):
        res[0] = o
        random.seed(7)                          # as if in the other process
        res[1] = checkpoint.plain(checkpoint.rng_state())
    monkeypatch.setattr(checkpoint, 'num_distrib', lambda: 2)
    monkeypatch.setattr(torch.distributed, 'all_gather_object', gather)
    random.seed(3)
    a,b = checkpoint.rank_states([])
    assert a['python']!=b['python']
    random.setstate(b['python'])
    now = random.random()
    random.seed(7)
    assert now==random.random()
