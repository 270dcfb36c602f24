"Callbacks of memo's that count epochs count on when a recipe is resumed"
import pytest
from contracts.made import StopAt
from test_stages import make, quiet, two_phase
from memo.banks.base import Bank
from memo.banks.exchange import latest_bank
from memo.training.save_bank import SaveBank
from memo.training.stages import Stage, fit_stages

def run(path, every=1, stop=None, resume=False, where='fit'):
    "A recipe of five epochs that saves its bank; where it is stopped, as in a process of its own"
    save = SaveBank(every)
    learn = make(memory=True, cbs=save if where=='learner' else [])
    learn.path = path
    cbs = ([save] if where=='fit' else []) + ([StopAt(stop)] if stop else [])
    if stop:
        with pytest.raises(KeyboardInterrupt): two_phase(learn, checkpoint=path/'c', cbs=cbs)
    else: two_phase(learn, checkpoint=path/'c', cbs=cbs, resume=resume)
    return {p.stem:Bank.load(p) for p in sorted((path/'banks').glob('*.safetensors'))}

def same(a, b):
    assert [*a]==[*b]
    for k in a: assert a[k].stats()==b[k].stats() and a[k].features.equal(b[k].features), k

@pytest.mark.parametrize('where', ['fit','learner'])
@pytest.mark.parametrize('every,stop', [(1,8),(1,15),(2,15),(3,19)])
def test_banks_have_the_number_of_the_epoch_they_are_of(tmp_path, every, stop, where):
    "In the middle of a stage, and at its end; a resumed run wrote its third epoch over the first"
    whole = run(tmp_path/'a', every, where=where)
    run(tmp_path/'b', every, stop, where=where)
    same(whole, run(tmp_path/'b', every, resume=True, where=where))
    assert [*whole]==[f'bank_step_{i}' for i in range(1, 6) if i%every==0]

def test_stopped_twice(tmp_path):
    whole = run(tmp_path/'a')
    run(tmp_path/'b', stop=8)
    with pytest.raises(KeyboardInterrupt):
        learn = make(memory=True)
        learn.path = tmp_path/'b'
        two_phase(learn, checkpoint=tmp_path/'b/c', resume=True, cbs=[SaveBank(1),StopAt(8)])
    same(whole, run(tmp_path/'b', resume=True))
    assert latest_bank(tmp_path/'b/banks').stem=='bank_step_5'

def test_a_finished_run_saves_nothing_more(tmp_path):
    run(tmp_path)
    was = {p:p.stat().st_mtime_ns for p in (tmp_path/'banks').iterdir()}
    run(tmp_path, resume=True)
    assert was=={p:p.stat().st_mtime_ns for p in (tmp_path/'banks').iterdir()}

def test_recipes_one_after_the_other_count_on(tmp_path):
    learn,save = make(memory=True),SaveBank(1)
    learn.path = tmp_path
    with quiet(learn):
        for i in range(2): fit_stages(learn, [Stage('a', 2, 1e-2)], checkpoint=tmp_path/f'c{i}', cbs=save)
    assert sorted(p.stem for p in (tmp_path/'banks').glob('*.safetensors'))==[f'bank_step_{i}' for i in range(1, 5)]
