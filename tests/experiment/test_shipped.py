"Experiments by name, and where things are put that nobody gave a place"
import sys
from pathlib import Path
import pytest
from memo.cli import parts_text
from memo.core import MemoError,cache_folder,settings
from memo.experiment.config import load_config,run_folder
from memo.experiment.shipped import about,experiment_file,shipped

pytestmark = pytest.mark.usefixtures('ours_alone')

@pytest.fixture
def empty(tmp_path, monkeypatch):
    "An empty working folder"
    monkeypatch.chdir(tmp_path)
    return tmp_path

def err(name):
    with pytest.raises(MemoError) as e: load_config(name)
    assert '\n' not in str(e.value) and 'memo-train --list experiment' in str(e.value)
    return str(e.value)

def test_every_experiment_has_a_name_and_a_line(repo, empty):
    files = sorted(o for o in (repo/'experiments').rglob('*.yaml') if 'runs' not in o.relative_to(repo).parts)
    assert sorted(shipped().values())==files
    lines = parts_text('experiment').splitlines()
    for k,f in shipped().items():
        assert f==repo/'experiments'/f'{k}.yaml' and about(f), k
        assert any(l.split(maxsplit=1)==[k, about(f)] for l in lines), k
    assert len(lines)==1+len(files) and parts_text().endswith(parts_text('experiment'))

@pytest.mark.parametrize('name',
                         'quickstart quickstart.yaml tail/cifar10_lt chestxray/small/vote.yaml tail/digits/sqrt'.split(
                             ))
def test_by_name_as_by_path(repo, empty, name):
    by_path = load_config(repo/'experiments'/f"{name.removesuffix('.yaml')}.yaml", ['seed=3'])
    assert load_config(name, ['seed=3'])==by_path and run_folder(load_config(name))==run_folder(by_path)

@pytest.mark.parametrize('name', ['quickstart','quickstart.yaml'])
def test_ones_own_file_comes_first(empty, name):
    (empty/'quickstart').mkdir()        # a folder of that name is none
    assert load_config(name).name=='quickstart' and experiment_file(name).is_absolute()
    (empty/'quickstart.yaml').write_text('name: mine')
    assert load_config(name).name=='mine'
    (empty/'tail').mkdir()
    (empty/'tail/cifar10_lt.yaml').write_text('base: ../quickstart.yaml\nname: tail/mine')
    assert load_config('tail/cifar10_lt').name=='tail/mine'

def test_neither_a_file_nor_a_name(empty):
    assert 'did you mean quickstart?' in err('quikstart')
    assert 'did you mean chestxray/small/vote?' in err('vote')
    assert 'did you mean hopfield/cifar10' in err('cifar10') and 'did you mean tail/cifar10_lt' in err('cifar10_l')
    assert 'did you mean tail/digits/adjusted_loss or tail/digits/balanced' in err('tail/digits')
    assert 'did you mean quickstart?' in err('experiments/quickstart.yaml')
    assert 'did you mean' not in err('zzz')
    (empty/'mine.yaml').write_text('name: mine')
    assert 'did you mean mine.yaml?' in err('mina')

def test_list_of_a_kind():
    assert 'quickstart' not in parts_text('bank') and 'SlotBank' not in parts_text('experiment')
    with pytest.raises(MemoError, match="did you mean 'experiment'"): parts_text('experiments')

# where things are put

def test_with_settings(empty):
    (empty/'settings.ini').write_text('[DEFAULT]\ndata = sets\n')
    (empty/'below').mkdir()
    for s in (settings(), settings(empty/'settings.ini')):
        assert (s.data, s.cache, s.runs)==(empty/'sets', empty/'sets', empty/'experiments/runs')

def test_without_settings(empty, monkeypatch):
    monkeypatch.setattr(sys, 'platform', 'linux')
    monkeypatch.setenv('XDG_CACHE_HOME', str(empty/'c'))
    s = settings()
    assert (s.data, s.cache, s.runs)==(empty/'data', empty/'c/memo', empty/'runs')
    assert run_folder(load_config('tail/digits/plain'))==empty/'runs/tail/digits/plain'
    assert run_folder(load_config('quickstart', ['runs=there']))==Path('there/quickstart')

@pytest.mark.parametrize('platform,env,want', [
    ('linux', {}, '.cache/memo'), ('linux', {'XDG_CACHE_HOME':'relative'}, '.cache/memo'),
    ('darwin', {}, 'Library/Caches/memo'), ('win32', {}, 'AppData/Local/memo')])
def test_cache_folder(monkeypatch, tmp_path, platform, env, want):
    for k in ('XDG_CACHE_HOME','LOCALAPPDATA'): monkeypatch.delenv(k, raising=False)
    for k,v in {'HOME':str(tmp_path), 'USERPROFILE':str(tmp_path), **env}.items(): monkeypatch.setenv(k, v)
    monkeypatch.setattr(sys, 'platform', platform)
    assert cache_folder()==tmp_path/want
    monkeypatch.setenv('LOCALAPPDATA', str(tmp_path/'local'))
    if platform=='win32': assert cache_folder()==tmp_path/'local/memo'

def test_what_is_made_goes_to_the_cache(empty, monkeypatch):
    "The mosaics; of features tests/test_install.py tells"
    from memo.data import chest_standin
    monkeypatch.setenv('XDG_CACHE_HOME', str(empty/'c'))
    made = []
    def chest_tree(root, *args): raise made.append(root) or MemoError('enough')
    monkeypatch.setattr(chest_standin, 'chest_tree', chest_tree)
    with pytest.raises(MemoError, match='enough'): chest_standin.chest_mosaic(patients=60)
    assert made==[settings().cache/'chest_mosaic/60-0'] and not (empty/'data').exists()
