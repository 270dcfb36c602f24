"A small experiment that is run once for the tests of a file, for commands that read what runs leave"
import shutil
from pathlib import Path
import pytest
from memo.experiment.config import load_config
from memo.experiment.run import run_experiment
from .pictures import no_rendering

def of_a_run(text):
    "What trains the experiment of that YAML, and fixtures: the folder of its run, and a copy that a test may change"
    def train(d, *overrides):
        (d/'tiny.yaml').write_text(text)
        cfg = load_config(d/'tiny.yaml', [f'runs={d}', *overrides])
        with no_rendering(): run_experiment(cfg, log=lambda s: None)
        return d/cfg.name

    @pytest.fixture(scope='module')
    def run(tmp_path_factory): return train(tmp_path_factory.mktemp('with a space'))

    @pytest.fixture
    def copy(run, tmp_path): return Path(shutil.copytree(run, tmp_path/'run'))
    return train,run,copy

# digits and two memories, for what asks a finished run
TWO_MEMORIES = '''
name: tiny
seeds: [0]
data: {name: digits_lt, n_max: 60, ratio: 4, valid: 5, test: 10, size: 8}
memories:
  near: {bank: SlotBank, size: 200, policy: fifo, head: vote, k: 8}
  early: {bank: SlotBank, size: 100, head: {name: exit, threshold: .95}, at: '3'}
train: {epochs: 2, lr: 1e-2, bs: 16}
'''
