"Progress that nobody can read, a full disk, a terminal without a letter: the training goes on, and so does the next"
import copy, io, os, pickle, subprocess, sys
from contextlib import redirect_stdout
from pathlib import Path
import pytest
from fastai.vision.all import ProgressCallback, ShowGraphCallback, load_learner
from helpers.digit_streams import digit_stream, stream_learner
from memo.all import *
from memo.training.fast_loop import fast_loop
from memo.training.only_shows import Shown, shows_only

script = Path(__file__).parents[1]/'helpers/shown_training.py'

def run(kind, how, d, **env):
    "What became of a training whose standard output is `how`"
    args,kw = [sys.executable, '-W', 'ignore', script],dict(stderr=subprocess.PIPE, env={**os.environ, **env})
    to = d/'out.txt' if how=='ascii' else '/dev/full' if how=='full' else os.devnull
    if how=='ascii': kw['env']['PYTHONIOENCODING'] = 'ascii'
    args += [how if how in ('gone','none','closed') else 'x', d/kind]
    if how in ('pipe','head'):
        p = subprocess.Popen([*map(str, args)], stdout=subprocess.PIPE, **kw)
        if how=='head': p.stdout.readline()
        p.stdout.close()
        said = p.stderr.read().decode()
        p.stderr.close()
        p.wait()
    else:
        with open(to, 'w') as f: p = subprocess.run([*map(str, args)], stdout=f, **kw)
        said = p.stderr.decode()
    assert p.returncode==0, said[-2000:]
    return (d/kind).read_text(),said

@pytest.mark.slow
@pytest.mark.parametrize('kind,how', [('fit','full'), ('fit','head'), ('fit','ascii'), ('no_bar','pipe'),
                                      ('stages','gone'), ('stream','pipe'), ('stream','closed')])
def test_a_training_goes_on(tmp_path, kind, how):
    "And the learner is exported after it"
    n,said = run(kind, how, tmp_path)
    assert n==('4' if kind=='stream' else '3')+' epochs' and 'Traceback' not in said and 'rror' not in said
    if how=='ascii': assert 'gr\\xf6\\xdfe_\\udcff' in (tmp_path/'out.txt').read_text()

@pytest.mark.slow
def test_lines_that_are_written_later(tmp_path):
    "With what is left in a buffer the process would end badly"
    assert run('fit', 'pipe', tmp_path, PYTHONUNBUFFERED='')[0]=='3 epochs'

# what else it does

def learner(cbs=()):
    return stream_learner(digit_stream(2, classes=4), [MemoryCallback(SlotBank(32, policy='fifo')), *cbs])

def shown(f):
    with redirect_stdout(io.StringIO()) as out: f()
    return out.getvalue()

def rows(text):
    "Epochs and losses of what was shown"
    lines = [o.split()[:3] for o in text.replace('\r', '\n').split('\n')]
    return [o for o in lines if o and o[0].isdigit()]

def test_what_can_be_shown_is_shown():
    "The same rows as without memo's doing, and by a quick loop"
    a,b,c = learner(),learner(),learner()
    def plain():
        import memo.training.memory_callback as m
        was,m.shows_only = m.shows_only,lambda learn: None
        try: a.fit(2)
        finally: m.shows_only = was
    def quick():
        with fast_loop(c): c.fit(2)
    want = rows(shown(plain))
    assert len(want)==2 and want==rows(shown(lambda: b.fit(2)))==rows(shown(quick))
    assert not any(isinstance(o, Shown) for cb in a.cbs for o in vars(cb).values())
    assert any(isinstance(o, Shown) for cb in b.cbs for o in vars(cb).values())

class Faulty(ProgressCallback):
    name = 'progress'
    def after_epoch(self): raise ValueError('a fault of its own')

def test_other_faults_are_raised():
    learn = learner()
    learn.remove_cb(ProgressCallback)
    learn.add_cb(Faulty())
    with pytest.raises(ValueError, match='a fault of its own'): shown(lambda: learn.fit(1))

def test_a_logger_of_ones_own_is_left_alone():
    got,learn = [],learner()
    learn.logger = got.append
    with learn.no_bar(): learn.fit(1)
    assert len(got)==1 and learn.logger==got.append

@pytest.mark.parametrize('f', [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_show_their_own(f):
    learn = learner([ShowGraphCallback()])
    shows_only(learn)
    shows_only(learn)       # twice is once
    new = f(learn)
    cb = new.progress
    assert cb is not learn.progress and isinstance(cb.after_batch, Shown) and cb.after_batch.__self__ is cb
    assert not isinstance(cb.after_batch.f, Shown)
    assert rows(shown(lambda: new.fit(1)))

def test_an_export_shows_too(tmp_path):
    learn = learner()
    shown(lambda: learn.fit(1))
    learn.export(tmp_path/'x.pkl')
    new = load_learner(tmp_path/'x.pkl')
    new.dls = learn.dls
    assert rows(shown(lambda: new.fit(1)))
