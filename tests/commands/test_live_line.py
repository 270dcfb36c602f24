"memo-train on a real terminal and into a pipe: one live line a training, or a header and fixed columns; ctrl-c"
import io, os, re, subprocess, sys, time, warnings
from pathlib import Path
from types import SimpleNamespace
import pytest
from hypothesis import given, strategies as st
from helpers.terminal import memo_train
from memo.evaluation.names import width
from memo.experiment.live import Columns, LiveLine, is_terminal, number_text

TINY = '''
name: tiny
seeds: [0]
data: {name: digits_lt, n_max: 30, ratio: 6, valid: 5, test: 10, size: 8}
memory: {size: 64, policy: reservoir, head: vote, k: 3}
train: {epochs: 3, lr: 1e-2, bs: 16}
compare: [balanced_sampling]
plots: {save: false}
'''

def file(tmp_path):
    p = tmp_path/'tiny.yaml'
    p.write_text(TINY)
    return p

ended = re.compile(r'([12])/2 (tiny(/balanced_sampling)? seed 0)  3 epochs  loss [\d.]+  accuracy [\d.]+'
                   r'  without [\d.]+.*  \d+:\d\d')

@pytest.mark.slow
def test_on_a_terminal(tmp_path):
    "A line for each training that stays, nothing of the lines before it; the table, and its picture by path"
    r = memo_train(file(tmp_path), f'runs={tmp_path}/runs', 'plots.save=true')
    assert r.status==0 and r.same and b'\x1b' not in r.raw
    first,*lines = r.screen
    assert first.startswith('tiny: small_cnn on digits_lt')
    assert [ended.fullmatch(o)[1] for o in lines[:2]]==[*'12']
    assert all(len(o)<100 for o in lines[:2])
    text = r.raw.decode()
    assert re.search(r'train [23]/3  loss', text) and re.search(r'\d:\d\d left', text) and 'scoring' in text
    *_,png,md,_ = r.screen
    assert png==f'{tmp_path}/runs/tiny/results.png' and Path(png).is_file() and md==f'{tmp_path}/runs/tiny/results.md'
    assert any('plain network + memory - plain network' in o for o in lines)

def columns_of(lines):
    "A header and the rows below it; each has its bars at the same places"
    at = next(i for i,o in enumerate(lines) if o.startswith('training'))
    rows = [o for o in lines[at:] if o.count('|')==2]
    assert len({tuple(i for i,c in enumerate(o) if c=='|') for o in rows})==1
    return lines[at],rows[1:]

@pytest.mark.slow
@pytest.mark.parametrize('how', ['pipe','dumb','no_color'])
def test_elsewhere(tmp_path, how):
    "A header once and fixed columns, nothing written over"
    args = file(tmp_path), f'runs={tmp_path}/runs'
    if how=='pipe':
        cmd = [sys.executable, Path(sys.executable).with_name('memo-train'), *args]
        r = subprocess.run(cmd, capture_output=True, timeout=300)
        raw,status = r.stdout,r.returncode
    else:
        r = memo_train(*args, env=dict(TERM='dumb') if how=='dumb' else dict(NO_COLOR='1'))
        raw,status = r.raw.replace(b'\r\n', b'\n'),r.status
    assert status==0 and b'\x1b' not in raw
    if how=='no_color': return      # there is no colour to leave out
    assert b'\r' not in raw
    head,rows = columns_of(raw.decode().splitlines())
    assert head.split()==['training','|','epoch','|','loss','valid','accuracy','without','hit','many','seconds']
    assert len(rows)==6 and raw.decode().count('training  ')==1 and all(len(o)<=100 for o in (head, *rows))
    assert rows[0].startswith('tiny seed 0 ') and '| train 1/3 ' in rows[0] and rows[3].startswith('tiny/balan')

@pytest.mark.slow
def test_ctrl_c(tmp_path):
    "The line stays where it was, what comes next begins at the left, and the terminal is as before"
    r = memo_train(file(tmp_path), 'train.epochs=500', f'runs={tmp_path}/runs', ctrl_c=b'train 3/500')
    assert r.status==130 and r.same and 'Traceback' not in r.raw.decode()
    lines = [o for o in r.screen if o]
    assert re.match(r'1/2 tiny seed 0  train \d+/500', lines[1])
    assert lines[-1].startswith('interrupted; memo-train --resume')

@pytest.mark.slow
def test_several_experiments_are_counted_together_and_a_resumed_one_goes_on(tmp_path):
    a,b = file(tmp_path), 'quickstart'
    short = 'seeds=[0]','train.epochs=2','data.n_max=20','data.ratio=4','data.valid=5','data.test=10','compare=[]'
    r = memo_train(a, b, f'runs={tmp_path}/runs', *short)
    assert r.status==0, r.raw
    a,b = r.screen[2:4]
    assert a.startswith('1/2 tiny seed 0  2 epochs') and b.startswith('2/2 quickstart seed 0  2 epochs')
    assert f'{tmp_path}/runs/comparison/comparison.png' in r.screen
    r = memo_train('--resume', tmp_path/'runs/tiny')
    assert r.status==0 and 'tiny seed 0 | finished before' in r.screen

# without a training

T = SimpleNamespace(cfg=SimpleNamespace(name='x/memory_seed_3'), seed=3)
ROW = dict(stage='train', epoch=0, train_loss=1.25, valid_loss=2., accuracy=.5, memory_without=.25,
           memory_hit=None, seconds=2.)

class Tty(io.TextIOWrapper):
    "A file that says it is a terminal, of ASCII"
    def isatty(self): return True

@pytest.fixture
def tty(tmp_path):
    with Tty(open(tmp_path/'screen', 'wb'), encoding='ascii') as f:
        f.path = tmp_path/'screen'
        yield f

def seen(tty):
    with open(tty.path, newline='') as f: return f.read()

def test_the_line_is_as_wide_as_the_terminal_at_most(tty, monkeypatch):
    live = LiveLine(file=tty)
    for n in (20, 40, 60, 80, 300):
        monkeypatch.setenv('COLUMNS', str(n))
        t = SimpleNamespace(cfg=SimpleNamespace(name='Zürich 漢字 '*20), seed=0)
        with live.training(t, 1, 9):
            live.follow(t, None, dict(train=5))
            live.epoch({**ROW, **{f'm{i}':.5 for i in range(30)}})
            assert width(live.text(live._where(), '1:00:00 left', live._room()))<max(n, 21)
    assert '\\u6f22' in seen(tty)       # a terminal of ASCII

def test_lines_and_warnings_go_above_it(tty, monkeypatch):
    monkeypatch.setenv('COLUMNS', '100')
    live,before = LiveLine(file=tty, every=60),warnings.showwarning
    with live.training(T, 2, 3):
        live('a line')
        n = len(seen(tty))
        with pytest.warns(UserWarning, match='odd'): warnings.warn('odd')
        live('another')
    assert warnings.showwarning is before and len(seen(tty))>n
    text = seen(tty)
    assert '\ra line\n' in text and '\ranother\n' in text      # at the left, and what was there is blank
    assert text.rstrip('\n').split('\n')[-1].strip('\r ').startswith('2/3 x/memory seed 3')

def test_a_training_that_fails_leaves_no_thread_and_no_line(tty):
    import threading
    live = LiveLine(file=tty, every=.01)
    with pytest.raises(KeyError):
        with live.training(T, 1, 1):
            time.sleep(.05)
            raise KeyError
    assert not [o for o in threading.enumerate() if o.name=='memo-live-line'] and seen(tty).endswith('\n')
    n = len(seen(tty))
    time.sleep(.05)
    assert len(seen(tty))==n

def test_a_terminal_that_has_gone_ends_nothing(tmp_path):
    r,w = os.pipe()
    os.close(r)
    with os.fdopen(w, 'w') as f:
        live = LiveLine(file=f)
        with live.training(T, 1, 1):
            live.follow(T, None, dict(train=1))
            live.epoch(ROW)
            live('a line')

def test_time_left_is_of_epochs_that_were_trained_here(tty, monkeypatch):
    "A resumed training has done some before"
    now = [100.]
    monkeypatch.setattr(time, 'monotonic', lambda: now[0])
    live = LiveLine(file=tty, every=60)
    with live.training(T, 1, 1):
        learn = SimpleNamespace(iter=0, n_iter=4, training=True)
        live.follow(T, learn, dict(phase1=4, phase2=6))
        assert live._left() is None
        now[0] += 10
        learn.training = False
        live.epoch({**ROW, 'stage':'phase1', 'epoch':3})    # the fourth of ten, the first here: 10 s each
        assert live._where()=='phase2 1/6' and live._left()==pytest.approx(60)
        learn.training,learn.iter = True,1
        now[0] += 5
        assert live._left()==pytest.approx(55, abs=1)
        learn.training = False      # it validates
        assert live._left()==pytest.approx(55, abs=1)
        live.epoch({**ROW, 'stage':'phase2', 'epoch':5})
        assert live._where()=='scoring' and live._left() is None

def test_is_terminal(tty, monkeypatch):
    monkeypatch.setenv('TERM', 'xterm')
    assert is_terminal(tty) and not is_terminal(io.StringIO())
    monkeypatch.setenv('TERM', 'dumb')
    assert not is_terminal(tty)
    f = io.StringIO()
    f.close()
    assert not is_terminal(f)
    monkeypatch.setattr(sys, 'stdout', None)
    assert not is_terminal()

def test_a_training_with_other_columns_has_a_header_of_its_own():
    lines = []
    log = Columns(lines.append)
    def train(**row):
        with log.training(T, 1, 1):
            log.follow(T, None, dict(train=1))
            log.epoch(dict(stage='train', epoch=0, train_loss=1., valid_loss=1., seconds=1.) | row)
    train(accuracy=.5, memory_without=.4)
    train(accuracy=.5)      # fits below it
    train(macro_auc=.5)
    assert [o.split()[0]=='training' for o in lines]==[True,False,False,True,False]
    assert lines[2].split('|')[2].split()==['1.000','1.000','0.500','1.0']

keys = st.text(st.characters(exclude_categories=['Cs']), min_size=1, max_size=40)
numbers = st.none() | st.floats() | st.integers(-10**9, 10**9)
@given(st.dictionaries(keys, numbers, max_size=12), st.text(max_size=60), st.text(min_size=1, max_size=30))
def test_no_line_is_wider_than_100_columns(row, name, stage):
    lines = []
    log,t = Columns(lines.append),SimpleNamespace(cfg=SimpleNamespace(name=name), seed=0)
    row = {k:v for k,v in row.items() if k not in ('stage','epoch','seconds')}
    with log.training(t, 1, 1):
        log.follow(t, None, {stage:12})
        log.epoch(dict(stage=stage, epoch=11, seconds=12345.6) | row)
    assert all(width(o)<=100 and not re.search('[\x00-\x1f\x7f]', o) for o in lines), lines

@given(st.floats(), st.integers(6, 12))
def test_numbers_fit_their_column(v, room): assert len(number_text(v, room))<=max(room, 6)
