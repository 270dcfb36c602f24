"YAML and settings.ini as nobody meant them: refused in a line that says where, quickly, or read as they were meant"
import re, time
import pytest
from helpers.errors import err
from hypothesis import given, strategies as st
from memo.core import MemoError, say, settings
from memo.experiment.config import load_config
from memo.experiment.run import check_experiment

_nine = (f"&{b} [{','.join(['*'+a]*9)}]" for a,b in zip('abcdefghi', 'bcdefghij'))
BOMB = f"seeds: [&a [1,1,1,1,1,1,1,1,1], {', '.join(_nine)}]"

@pytest.mark.parametrize('txt,msg', [
    ('seed: !!int "x"', 'line 1: not valid YAML (invalid literal'), ('\nseed: '+'9'*5000, 'line 2: not valid YAML'),
    ('seed: '+'9'*400, 'seeds must be a list of whole numbers, found [9999'),
    ('train: {bs: 10000000000000000000}', '64 bits'),
    ('train: {epochs: '+'9'*400+'}', 'train.epochs must be a whole number'),
    ('data: '+'{a: '*900+'1'+'}'*900, 'more than 50 sections'), ('seeds: '+'['*5000, 'more than 50 sections'),
    (BOMB, 'more than 5,000 values'), ('seeds: &a [*a]', 'an alias of itself'),
    (''.join(f'k{i}: 1\n' for i in range(100_000)), 'is longer than 200,000 characters'),
    ('data: {'+','.join(f'k{i}: 1' for i in range(9000))+'}', 'more than 5,000 values'),
    ('name: a\nname: b', "line 2: not valid YAML ('name' was given in line 1)"),
    ('train:\n  lr: .1\n  bs: 3\n  lr: .2', "line 4: not valid YAML ('lr' was given in line 2)"),
    ('data: {size: 8, size: 9}', "'size' was given in line 1"),
    *((o, 'is empty') for o in ('~', '# c', '{}', 'null', ' \n')),
    *((o, 'must be a section of keys, found') for o in ('false', '0', '[]', '""', '3.5')),
    ('? [1, 2]\n: 3', 'a key must be a text'), ('data: !!set {a}', 'tag:yaml.org,2002:set'),
    ('model: {name: timm, arch: x, timm: {a: !!binary aGVs}}', 'tag:yaml.org,2002:binary'),
    ('base: "a\\0b"', 'base must be the path'), ('base: '+'a'*5000, 'base must be the path'),
    ('name: "a\\0b"', 'name must be a text'), ('name: "\\ud800"', 'name must be a text'),
    ('runs: "\\0"', 'runs must be a text or null'), ('path: ["a\\0b"]', 'path must be a list of text'),
    *((f'name: {o}', 'name must be in one line') for o in ('"  "', r'"a\nb"', '"a/ b"', r'"a\e[2Jb"')),
    *((f'name: {o}', 'name must be the name of a folder') for o in ('.', 'a/..', 'a/./b', 'a//b', 'a/', '/a', '""')),
    ('name: '+'ü'*100, 'name must have 150 bytes at most'), ('runs: ""', 'runs must be a folder or null'),
    ('compare: [{token_vote: {k: 3}}]', 'compare has a section token_vote, written as {name: token_vote, ...}'),
    ('train: {cbs: [{Replay: {size: 3}}]}', 'train.cbs has a section Replay, written as {name: Replay'),
    ('compare: [{}]', 'with a name, it has {}'), ('compare: [{name: 3}]', 'with a name, it has'),
    ('train: {wd: 1e+308}', 'train.wd must be a number from 0 up to 100, found'),
    ('train: {lr: 1000}', 'train.lr must be a number above 0 up to 100 or find, found 1000'),
    ('train: {min_delta: .inf}', 'train.min_delta must be'), ('train: {clip: 1e-320}', 'which float32 does not have'),
    ('memory: {temperature: 1e+300}', 'which float32 does not have'), ('train: {ensembled_models: 1000}', 'up to 100'),
    ('data: {val_bs: 0}', 'data.val_bs must be a whole number from 1'), ('data: {size: 100000}', 'from 1 up to 4,096'),
    ('data: {shift: 100000}', 'from 0 up to 256'), ('data: {ratio: .nan}', 'data.ratio must be'),
    ('data: {valid: 0}\ntrain: {monitor: accuracy}', 'train.monitor is \'accuracy\', which is of validation items'),
    ('data: {valid: 0}\ntrain: {phase2: {monitor: lowest valid_loss}}', 'train.phase2.monitor is'),
])
def test_odd_yaml(yml, txt, msg):
    t = time.process_time()
    e = err(load_config, yml(txt))
    assert msg in e and 'x.yaml' in e and len(e)<=300, e
    assert time.process_time()-t<2

@pytest.mark.parametrize('over,msg', [
    ('train.cbs.x.y=1', 'train.cbs must be a list of names or sections, found 3'), ('data='+'{a: '*900, 'more than 50'),
    ('x'*9000, 'is no override'), ('name={', 'has no valid value')])
def test_odd_overrides(yml, over, msg):
    e = err(load_config, yml('train: {cbs: 3}'), [over])
    assert msg in e and len(e)<=300, e
    e = err(load_config, yml('name: a'), ['data.name='+'.'.join(['os']*3000)])
    assert ' ... ' in e and len(e)==300

@pytest.mark.parametrize('raw', [b'\xff\xfe\x00', bytes(range(256)), 'name: ü'.encode('latin-1'),
                                 'name: ü'.encode('utf-16')])
def test_bytes_that_are_no_text(tmp_path, raw):
    (tmp_path/'x.yaml').write_bytes(raw)
    assert 'x.yaml' in err(load_config, tmp_path/'x.yaml')

@pytest.mark.parametrize('txt,name', [('name: 2024-31-12', '2024-31-12'), ('name: 2024-12-31', '2024-12-31'),
                                      ('\ufeffname: a', 'a'), ('name: =', '='), ('name: 名前', '名前')])
def test_read_as_it_was_meant(yml, txt, name): assert load_config(yml(txt)).name==name

def test_merged_keys_and_aliases_are_read(yml):
    c = load_config(yml('memories: {a: &a {size: 8, k: 2}, b: {<<: *a, k: 1}}'))
    assert c.memories['b'].bank.size==8 and (c.memories['a'].head.k,c.memories['b'].head.k)==(2,1)

@given(st.text(max_size=400))
def test_any_text_is_read_or_refused(tmp_path_factory, txt):
    p = tmp_path_factory.getbasetemp()/'any.yaml'
    p.write_text(txt, encoding='utf-8')
    try: load_config(p)
    except MemoError as e: assert len(str(e))<=300 and str(e).isprintable()

def test_a_file_without_an_ending_hides_no_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'quickstart').write_text('notes')
    (tmp_path/'mine').write_text('name: me')
    assert load_config('quickstart').name=='quickstart' and load_config('mine').name=='me'
    (tmp_path/'quickstart.yaml').write_text('name: own')
    assert load_config('quickstart').name=='own'

def test_what_is_found_when_parts_are_built(yml):
    "With the key"
    e = err(check_experiment, load_config(yml('memory: {at: layer1}')))
    assert e.startswith("memory.at: 'layer1' is not one of"), e
    two = 'memories: {a: {size: 8}, b: {size: 8, at: network.2}}\ntrain: {cbs: [save_bank]}'
    e = err(check_experiment, load_config(yml(two)))
    assert e.startswith("memories: at: 'network.2'"), e
    two = two.replace('network.2', "'2'")
    assert 'train.cbs.save_bank.memory: ' in err(check_experiment, load_config(yml(two)))
    e = err(check_experiment, load_config(yml('model: {name: timm, arch: resnet18, pretrained: /etc/passwd}')))
    assert 'cannot read /etc/passwd' in e

def test_arguments_of_stages():
    from memo.training.stages import fit_stages
    assert err(fit_stages, None, [], checkpoint=3)=='checkpoint must be a folder or None, found 3'
    assert err(fit_stages, None, [], log=3)=='log must be a function or None, found 3'

# settings.ini

def ini(tmp_path, *lines, enc='utf-8'):
    (tmp_path/'settings.ini').write_bytes('\n'.join(['[DEFAULT]', *lines]).encode(enc))
    return tmp_path/'settings.ini'

def test_settings_of_another_tool(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    f = ini(tmp_path, 'custom = 100%', 'x = %(nope)s', 'data = ~/d  # where images are', 'runs = $HOME/r ; and runs',
            'seed = 7', 'lib_name = täst', enc='utf-8-sig')
    s = settings(f)
    assert (s.data,s.runs,s.seed)==(tmp_path/'home/d', tmp_path/'home/r', 7)

@pytest.mark.parametrize('lines,msg', [
    (['run = x'], 'memo does not read run; did you mean runs?'), (['seeds = 3'], 'did you mean seed?'),
    (['seed = x'], "seed is 'x'"), (['seed = -1'], "seed is '-1'"), (['seed = '+'9'*5000], 'seed is'),
    (['data ='], "data is ''"), (['runs = $NOPE/x'], 'there is no such variable'),
    (['runs = a\0b'], 'a folder is accepted'),
    (['data'], 'cannot read'), (['data = a', 'data = b'], 'already exists')])
def test_odd_settings(tmp_path, lines, msg):
    e = err(settings, ini(tmp_path, *lines))
    assert msg in e and 'settings.ini' in e and len(e)<=300

def test_settings_of_another_encoding(tmp_path):
    assert 'is no UTF-8' in err(settings, ini(tmp_path, 'data = Zürich', enc='latin-1'))

# messages, and what is shown

@given(st.text(max_size=2000))
def test_a_message_is_a_short_line(txt):
    e = str(MemoError(txt))
    assert len(e)<=300 and not re.search(r'[\n\r\0]', e)
    if len(txt)<=300 and txt.isprintable(): assert e==' '.join(txt.split())

def test_a_long_message_keeps_both_ends():
    e = str(MemoError(f"memory.bank: {'x'*9000} is no bank; did you mean SlotBank?"))
    assert e.startswith('memory.bank: xxx') and e.endswith('did you mean SlotBank?') and len(e)==300

class Full:
    "A file behind which the disk is full"
    encoding = 'utf-8'
    def write(self, s): raise OSError(28, 'No space left on device')
    def flush(self): raise OSError(28, 'No space left on device')
    def fileno(self): raise ValueError

def test_what_is_said_ends_nothing(capsys):
    say('hallo', Full())
    say('hallo')
    assert capsys.readouterr().out=='hallo\n'
