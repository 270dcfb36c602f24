"Head to head: settings, what is chosen and on what, going on after a kill, mistakes"
import json, signal, sys
from pathlib import Path
import pandas as pd, pytest
from conftest import root
from helpers.errors import err
from helpers.exploding import LOSS
from memo.experiment import table as tb
from memo.experiment.config import is_table, run_folder
from memo.experiment.run_folder import read_json

pytestmark = pytest.mark.usefixtures('unrendered')

shipped = sorted(o for o in (root/'experiments/streams').glob('table*.yaml'))
YAML = '''
base: streams/points/mlp
name: t
seeds: [0, 1]
data: {n: 200}
methods:
  plain: {grid: {train.lr: [1.0e-3, 1.0e-1]}}
  A replay:
    train.cbs: [{name: Replay, size: 1KB}]
    grid: [{train.cbs.Replay.batch_size: 1}, {train.cbs.Replay.batch_size: 4, train.lr: 0.05}]
  joint: {train: {joint: true}}
'''

@pytest.fixture
def yml(tmp_path):
    (tmp_path/'t.yaml').write_text(YAML)
    return tmp_path/'t.yaml'

def silent(s): pass
def load(yml, *more): return tb.load_table(yml, [f'runs={json.dumps(str(yml.parent/"r"))}', *more])

@pytest.mark.parametrize('f', shipped, ids=lambda f: f.stem)
def test_tables_that_ship(f):
    "Every method that there is, eight settings at most, three seeds or more"
    t = tb.load_table(f)
    assert is_table(f) and len(t.cfg.seeds)>=3
    # as many settings of each; nearest mean has no more than two
    most = max(len(e.settings) for e in t.entries)
    assert {e.name:len(e.settings) for e in t.entries if len(e.settings)!=most}=={'nearest mean':2} and most<=8
    assert not is_table(root/'experiments/quickstart.yaml')

def test_room_is_the_same_for_all(yml):
    "`bytes` is filled in where something is stored; a size besides is refused"
    def sizes(t): return {(e.name,c.name):c.args['size'] for e in t.entries for c in tb.storing(e.cfg)}
    for f in shipped:
        t = tb.load_table(f)
        assert t.bytes and {*sizes(t).values()}=={t.bytes}
        assert {c for _,c in sizes(t)}>={'Replay','DERpp','ACE','AGEM','MIR','GDumb','ICaRL'}
    assert {*sizes(tb.load_table(shipped[0], ['bytes=3MB'])).values()}=={'3MB'}
    assert sizes(load(yml))=={('A replay','Replay'):'1KB'} and load(yml).bytes is None
    assert 'methods.A replay says a size of its own for Replay' in err(load, yml, 'bytes=2KB')
    yml.write_text(YAML.replace(', size: 1KB', '').replace('batch_size: 1}', 'size: 5}'))
    assert 'a size of its own' in err(load, yml, 'bytes=2KB')
    yml.write_text('bytes: 2KB'+YAML.replace(', size: 1KB', ''))
    assert sizes(load(yml))=={('A replay','Replay'):'2KB'}
    for o in ('8','[1]','2 KBB','-1KB'): assert 'bytes' in err(load, yml, f'bytes={o}')

def test_settings(yml):
    t = load(yml)
    assert [(e.name,len(e.settings)) for e in t.entries]==[('plain',2), ('A replay',2), ('joint',1)]
    a,b = tb.tries(t, t.entries[1])
    assert (a.train.cbs[0].batch_size,a.train.lr,b.train.cbs[0].batch_size,b.train.lr)==(1,.1,4,.05)
    assert a.name=='t/a_replay/try_1' and a.train.half and a.seeds==[0,1] and a.data.n==200 and not a.plots.save
    assert t.entries[2].cfg.train.joint and len(tb.settings_of({'a':[1,2], 'b':[3,4,5]}, 'x'))==6

def test_the_best_on_the_first_half_is_reported(yml):
    t = load(yml)
    text = tb.run_table(t, log=silent)
    folder = yml.parent/'r/t'
    df = pd.read_csv(folder/'table.csv').set_index('method')
    for e,keys in ((t.entries[0],['plain']), (t.entries[1],['a_replay'])):
        def scored(where): return read_json(where/'metrics.json')['rows'][0]['scores']
        scores = [sum(scored(folder/keys[0]/f'try_{i}'/s)['valid_average_accuracy'] for s in ('','seed_1'))/2
                  for i in (1,2)]
        assert df.validation[e.name]==pytest.approx(max(scores)) and df.settings[e.name]==2
        best = run_folder(e.cfg).parent/'t'/keys[0]/'best'
        got = [scored(best/s)['average_accuracy'] for s in ('','seed_1')]
        assert df.average_accuracy[e.name]==pytest.approx(sum(got)/2)
        assert f"{100*sum(got)/2:.1f}" in text
    assert 'means over seeds 0, 1 ±' in (folder/'table.md').read_text() and (folder/'table.png').is_file()
    assert df.kilobytes['A replay']>df.kilobytes['plain']
    # again: nothing is trained
    was = {o:o.stat().st_mtime_ns for o in folder.rglob('model.safetensors')}
    assert tb.run_table(load(yml), log=silent)==text
    assert {o:o.stat().st_mtime_ns for o in folder.rglob('model.safetensors')}==was and len(was)==2*(3+3+1)
    # one method more is trained by itself
    yml.write_text(YAML+'  LwF: {train.cbs: [LwF]}\n')
    tb.run_table(load(yml), log=silent)
    now = {o:o.stat().st_mtime_ns for o in folder.rglob('model.safetensors')}
    assert len(now)==len(was)+2 and all(now[k]==v for k,v in was.items())
    # of a method whose settings have changed the folder is of another experiment
    yml.write_text(YAML.replace('1.0e-3', '1.0e-2'))
    assert 'is of another experiment' in err(tb.run_table, load(yml), log=silent)

def test_of_equally_good_settings_the_one_that_was_better_on_the_way_is_taken(yml, monkeypatch):
    "The end decides, then the way there, then the order of the grid; one that diverged is never taken"
    t = load(yml, 'methods=[plain]')
    def taken(*ends):
        got = {f't/plain/try_{i+1}':o for i,o in enumerate(ends)}
        ks = 'valid_average_accuracy','valid_anytime_accuracy'
        def scores_of(cfg): return [dict(rows=[dict(scores=dict(zip(ks, o)))]) for o in got[cfg.name]]
        monkeypatch.setattr(tb, 'scores_of', scores_of)
        monkeypatch.setattr(tb, 'trained', lambda cfg, *_: got[cfg.name] is not None)
        return tb.best_setting(t, t.entries[0])
    assert taken([(1.,.8),(.8,.8)], [(.9,.9),(.9,.8)])==(1,[.9,.9])        # means over seeds: .9 both, .8 and .85
    assert taken([(.9,.9)], [(.9,.9)])[0]==0
    assert taken([(1.,.1)], [(.9,.9)])[0]==0 and taken([(.9,.9)], [(1.,.1)])[0]==1
    assert taken([(.1+.2,None)], [(.3,None)])[0]==0        # all at once: there is no way; sums differ by a rounding
    assert taken(None, [(0.,0.)])==(1,[None,0.])

die = '''
import os,runpy,signal,sys
from memo.experiment import run
was,n = run.evaluate,[0]
def evaluate(*args, **kwargs):
    n[0] += 1
    if n[0]==6: os.kill(os.getpid(), signal.SIGKILL)
    return was(*args, **kwargs)
run.evaluate = evaluate
sys.argv[0] = MEMO
runpy.run_path(MEMO, run_name='__main__')
'''

def test_one_seed_has_no_interval(yml):
    t = load(yml, 'seeds=[1]', 'methods=[joint]')
    tb.run_table(t, log=silent)
    text = (yml.parent/'r/t/table.md').read_text()
    assert 'Per cent, of seed 1, on test items' in text and 'interval' not in text

@pytest.mark.slow
def test_killed_and_gone_on_with(yml, python, tool):
    "No finished training is repeated; the numbers are those of a table that nothing stopped"
    (yml.parent/'die.py').write_text(die.replace('MEMO', repr(str(Path(sys.executable).with_name('memo-train')))))
    args = [yml, 'methods=[plain,A replay]', f'runs={yml.parent}/r']
    r = python(yml.parent/'die.py', *args, render=False)
    assert r.returncode==-signal.SIGKILL, r.stderr
    done = {o:o.stat().st_mtime_ns for o in (yml.parent/'r').rglob('metrics.json')}
    assert len(done)==5
    r = tool('memo-train', *args, render=False)
    assert r.returncode==0, r.stderr
    assert all(o.stat().st_mtime_ns==v for o,v in done.items())
    r2 = tool('memo-train', yml, 'methods=[plain,A replay]', f'runs={yml.parent}/other', render=False)
    a,b = (pd.read_csv(yml.parent/o/'t/table.csv').drop(columns='seconds') for o in ('r','other'))
    assert r2.returncode==0 and a.equals(b)

def test_dry_run(yml, tool):
    r = tool('memo-train', yml, '--dry-run', f'runs={yml.parent}/r', render=False)
    assert r.returncode==0 and r.stdout.count(': ok')==5 and not (yml.parent/'r').exists(), r.stderr

@pytest.mark.parametrize('old,new,words', [
    ('[1.0e-3, 1.0e-1]', '[1,2,3,4,5,6,7,8,9]', 'methods.plain.grid has 9 settings; 8 at most'),
    ('[1.0e-3, 1.0e-1]', '3', 'methods.plain.grid.train.lr must be a list of values'),
    ('train.lr: [1.0e-3', 'train.lrr: [1.0e-3', 'unknown key train.lrr'),
    ('[1.0e-3, 1.0e-1]', '[-1]', 'train.lr must be'),
    ('A replay', 'Plain', 'would share a folder'),
    ('train.cbs.Replay.batch_size: 4', 'train.cbs.EWC.weight: 4', 'names Replay'),
    ('data: {n: 200}', 'data: digits_lt', 'methods are compared in a stream'),
    ('plain: {grid: {train.lr: [1.0e-3, 1.0e-1]}}', 'plain: 3', 'methods.plain must be a section')])
def test_mistakes_are_one_line_before_anything_is_trained(yml, old, new, words):
    assert old in YAML
    yml.write_text(YAML.replace(old, new))
    assert words in err(load, yml)

def test_mistakes_on_the_command_line(yml, tool):
    assert "'EWC' is not one of plain, A replay, joint" in err(load, yml, 'methods=[EWC]')
    for args,words in (([yml, 'quickstart'],'trained by itself'), ([yml, 'methods=3'],'methods must be a list')):
        r = tool('memo-train', *args, render=False)
        assert r.returncode==2 and words in r.stderr and len(r.stderr.strip().splitlines())==1, r.stderr

def test_a_setting_that_diverges_is_not_chosen(yml):
    (yml.parent/'explode.py').write_text(LOSS)
    def other(old, new, name='t'): yml.write_text(YAML.replace(old, new).replace('name: t', f'name: {name}'))
    def table(*more): return load(yml, 'train.opt=sgd', 'train.loss={name: explode.Scaled}', *more)
    other('train.lr: [1.0e-3, 1.0e-1]', 'train.loss.scale: [1.0e+30, 1.0e-1]')
    text = tb.run_table(table('methods=[plain]'), log=silent)
    assert '2 (1 diverged)' in text and 'loss.scale 0.1' in text
    mark = yml.parent/'r/t/plain/try_1/diverged.json'
    assert 'not finite' in mark.read_text()
    was = mark.stat().st_mtime_ns
    assert tb.run_table(table('methods=[plain]'), log=silent)==text and mark.stat().st_mtime_ns==was
    other('train.lr: [1.0e-3, 1.0e-1]', 'train.loss.scale: [1.0e+30, 2.0e+30]', 'u')
    e = err(tb.run_table, table('methods=[plain]'), log=silent)
    assert 'of none of its 2 settings the loss stays finite' in e
    # on the whole stream only
    other('{grid: {train.lr: [1.0e-3, 1.0e-1]}}', '{train.loss.scale: 1.0e+30}', 'v')
    text = tb.run_table(table('methods=[plain,joint]'), log=silent)
    assert text.splitlines()[1].startswith('joint') and 'diverged' in text
