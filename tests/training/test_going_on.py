"""What a checkpoint is of has to be what goes on from it: anything else is refused by what differs; a forgotten resume
deletes nothing, and a folder has one training at a time"""
import random
import pytest
from fastai.vision.all import (Callback, CrossEntropyLossFlat, DataLoaders, GradientAccumulation,
                               LabelSmoothingCrossEntropyFlat, torch)
from torch.utils.data import TensorDataset
from contracts.made import StopAt
from test_stages import make, quiet, same, same_model, two_phase
from memo.core import MemoError
from memo.training import checkpoint, same_run
from memo.training.checkpoint import load_plain, rng_state, save_plain, set_rng_state
from memo.training.same_run import data_facts
from memo.training.stages import Stage, fit_stages

def stopped(folder, n=14, **kw):
    learn = make(**kw)
    with pytest.raises(KeyboardInterrupt): two_phase(learn, checkpoint=folder, cbs=StopAt(n))
def files(folder): return {p.name:p.read_bytes() for p in folder.iterdir()}

def one_line(e): assert '\n' not in str(e.value) and len(str(e.value))<=300

# data, loss, network

def other_items(l): l.dls = make(seed=3).dls
def fewer_items(l): l.dls = DataLoaders(l.dls.train.new(list(l.dls.train.dataset)[:40]), l.dls.valid, device='cpu')
def other_valid(l): l.dls = DataLoaders(l.dls.train, make(seed=3).dls.valid, device='cpu')
def other_order(l):
    ds = l.dls.train.dataset
    ds.insert(0, ds.pop())
def other_target(l):
    ds = l.dls.train.dataset
    x,y = list.__getitem__(ds, 5)
    ds[5] = x,(y+1)%3
def other_bs(l): l.dls = make(bs=16).dls
def other_loss(l): l.loss_func = LabelSmoothingCrossEntropyFlat()
def other_eps(l): l.loss_func = CrossEntropyLossFlat(weight=torch.tensor([1.,1.,2.]))

changes = {other_items:'of other data: stage phase1.frozen, loader 0 has 48 items there and here',
           fewer_items:'items 48 there, 40 here', other_valid:'loader 1 has 16 items there and here',
           other_order:'their order', other_target:'their targets', other_bs:'batches 6 there, 3 here',
           other_loss:'of another loss: stage phase1.frozen has CrossEntropyLossFlat there, LabelSmoothing',
           other_eps:'CrossEntropyLossFlat there, one of other settings here'}

@pytest.mark.parametrize('change', changes, ids=lambda f: f.__name__)
def test_other_data_or_another_loss_is_refused(tmp_path, change):
    "All of these went on, to the numbers of neither"
    stopped(tmp_path)
    learn,was = make(),files(tmp_path)
    change(learn)
    state = {k:v.clone() for k,v in learn.model.state_dict().items()}
    with pytest.raises(MemoError, match=changes[change]) as e: two_phase(learn, checkpoint=tmp_path, resume=True)
    one_line(e)
    assert files(tmp_path)==was and all(v.equal(state[k]) for k,v in learn.model.state_dict().items())

def test_what_is_frozen_by_hand(tmp_path):
    def begin(folder, freeze, **kw):
        learn = make()
        if freeze: learn.freeze()
        with quiet(learn): return fit_stages(learn, [Stage('a', 3, 1e-2)], folder, **kw)
    with pytest.raises(KeyboardInterrupt): begin(tmp_path, True, cbs=StopAt(8))
    with pytest.raises(MemoError, match='of another model: frozen are 2 parameters there, 0 here') as e:
        begin(tmp_path, False, resume=True)
    one_line(e)
    same(begin(tmp_path/'whole', True), begin(tmp_path, True, resume=True))

def test_sets_of_many_kinds_are_known_again():
    x,y = torch.randn(20, 4),torch.arange(20)%3
    def facts(ds): return data_facts([('a', DataLoaders.from_dsets(ds, ds, bs=4, num_workers=0, device='cpu'))])
    for make_set in (lambda y: list(zip(x, y)), lambda y: TensorDataset(x, y)):
        assert facts(make_set(y))==facts(make_set(y.clone())) and facts(make_set(y))!=facts(make_set(y.flip(0)))

class Opaque(torch.utils.data.Dataset):
    "Of which nothing is known but its length"
    def __init__(self): self.made = (i for i in range(3))
    def __len__(self): return 8
    def __getitem__(self, i): return torch.zeros(4)+i,i%3

def test_a_set_that_cannot_be_looked_into_goes_on(tmp_path):
    def run(**kw):
        learn = make()
        learn.dls = DataLoaders.from_dsets(Opaque(), Opaque(), bs=4, num_workers=0, device='cpu')
        with quiet(learn): return fit_stages(learn, [Stage('a', 2, 1e-2)], tmp_path, **kw)
    with pytest.raises(KeyboardInterrupt): run(cbs=StopAt(3))
    assert len(run(resume=True))==2

# processes, threads, versions, earlier checkpoints

def change(folder, f):
    for p in folder.glob('s*.pt'):
        ck = load_plain(p)
        f(ck)
        save_plain(ck, p)

def test_another_number_of_processes_is_named(tmp_path):
    stopped(tmp_path)
    change(tmp_path, lambda ck: ck.update(rngs=ck['rngs']*2))
    with pytest.raises(MemoError, match='another number of processes: they are 2 there, 1 here') as e:
        two_phase(make(), checkpoint=tmp_path, resume=True)
    one_line(e)

def test_threads_are_those_of_the_checkpoint(tmp_path):
    stopped(tmp_path)
    change(tmp_path, lambda ck: ck.update(threads=3))
    was,seen = torch.get_num_threads(),[]
    class See(Callback):
        def before_batch(self): seen.append(torch.get_num_threads())
    two_phase(make(), checkpoint=tmp_path, resume=True, cbs=See())
    assert set(seen)=={3} and torch.get_num_threads()==was

def test_another_version_is_said_once_and_kept(tmp_path, monkeypatch, recwarn):
    whole = two_phase(make())
    stopped(tmp_path)
    now = {**same_run.versions(), 'torch':'99.1'}
    monkeypatch.setattr(checkpoint, 'versions', lambda: now)
    recwarn.clear()
    h = two_phase(make(), checkpoint=tmp_path, resume=True)
    said, = [str(w.message) for w in recwarn if 'other versions' in str(w.message)]
    assert 'torch' in said and '99.1 here' in said and 'numpy' not in said
    assert [n for n,_ in h.attrs['versions']]==[0,2] and h.attrs['versions'][1][1]['torch']=='99.1'
    assert 'versions' not in whole.attrs
    same(h, whole)

def test_a_checkpoint_of_before_goes_on(tmp_path):
    "Which says nothing of data, loss, threads, callbacks, and more of its plan"
    whole = two_phase(make())
    stopped(tmp_path)
    def older(ck):
        for k in ('data','losses','frozen','threads','versions','callbacks','grads','processes'): del ck[k]
        for o in ck['plan']:
            del o['min_delta']
            o['batches'] = 6
    change(tmp_path, older)
    with pytest.raises(MemoError, match='earlier version of memo, which kept nothing of GradientAccumulation'):
        two_phase(make(), checkpoint=tmp_path, resume=True, cbs=GradientAccumulation(16))
    same(whole, two_phase(make(), checkpoint=tmp_path, resume=True))

# keys that did not exist then

def test_a_new_key_makes_no_difference_where_it_has_its_default(tmp_path):
    def run(experiment, **kw):
        learn = make()
        with quiet(learn): return fit_stages(learn, [Stage('a', 3, 1e-2)], tmp_path, experiment=experiment, **kw)
    there,usual = {'train.lr':.01, 'train.cbs':[dict(name='EWC', weight=1)]},lambda keys: {k:None for k in keys}
    with pytest.raises(KeyboardInterrupt): run(there, cbs=StopAt(8))
    new = {**there, 'train.clip':1., 'train.cbs':[dict(name='EWC', weight=1, mode=None)]}
    with pytest.raises(MemoError, match=r'train.clip is None there, 1.0 here'): run(new, resume=True, usual=usual)
    assert len(run({**new, 'train.clip':None}, resume=True, usual=usual))==3

# damage

def test_every_flipped_byte_is_noticed_or_harmless(tmp_path, capsys):
    stopped(tmp_path)
    p,rnd = tmp_path/'s1_e1.pt',random.Random(0)
    raw,said = p.read_bytes(),0
    for _ in range(100):
        b = bytearray(raw)
        b[rnd.randrange(len(b))] ^= 1<<rnd.randrange(8)
        p.write_bytes(b)
        ck = checkpoint.last_checkpoint(tmp_path)
        out = capsys.readouterr().out
        assert (ck['epoch']==0)==('going on from s1_e0.pt' in out)
        said += bool(out)
    assert said>50

def test_a_damaged_best_epoch_is_noticed_when_it_is_resumed(tmp_path, capsys):
    "Not at the end of the phase, hours later"
    with pytest.raises(KeyboardInterrupt): two_phase(make(), epochs=(3,1), checkpoint=tmp_path, cbs=StopAt(20))
    ck = checkpoint.last_checkpoint(tmp_path)
    p = tmp_path/ck['best_file']
    p.write_bytes(p.read_bytes()[:-300])
    try: older = checkpoint.last_checkpoint(tmp_path)
    except MemoError as e: assert 'is damaged' in str(e) and ck['best_file'] in str(e)
    else: assert older['best_file']!=ck['best_file'] and ck['best_file'] in capsys.readouterr().out

# a forgotten resume

def by_stages(folder, **kw):
    learn = make()
    with quiet(learn): return fit_stages(learn, [Stage('a', 2, 1e-2)], folder, **kw)

@pytest.mark.parametrize('run', [by_stages, lambda folder, **kw: two_phase(make(), checkpoint=folder, **kw)],
                         ids=['stages','two_phase'])
def test_a_forgotten_resume_deletes_nothing(tmp_path, run):
    h = run(tmp_path)
    (tmp_path/'mine.pt').write_text('x')
    was = files(tmp_path)
    with pytest.raises(MemoError, match='resume=True goes on with it, overwrite=True deletes them') as e: run(tmp_path)
    one_line(e)
    assert files(tmp_path)==was
    with pytest.raises(MemoError, match='give one'): run(tmp_path, resume=True, overwrite=True)
    same(h, run(tmp_path, overwrite=True))
    assert (tmp_path/'mine.pt').is_file()
    with pytest.raises(MemoError, match='overwrite=True needs checkpoint='): run(None, overwrite=True)

def test_a_folder_has_one_training_at_a_time(tmp_path):
    got,other = [],make()
    class Second(Callback):
        def before_fit(self):
            if got: return
            got.append(None)
            with pytest.raises(MemoError, match='in use by another training') as e:
                two_phase(other, checkpoint=tmp_path, resume=True)
            one_line(e)
    a = make()
    h = two_phase(a, checkpoint=tmp_path, cbs=Second())
    b = make()
    same(h, two_phase(b))
    same_model(a, b)
    assert got and not (tmp_path/'.lock').exists()

def test_random_states_as_python_gives_them_are_taken_too():
    "As checkpoints had them, 625 numbers each"
    random.seed(3)
    was = rng_state()
    old = {**was, 'python':(was['python'][0], tuple(was['python'][1].tolist()), *was['python'][2:])}
    want = random.random()
    for o in (old, was):
        set_rng_state(o)
        assert random.random()==want
