"Rows of a memory that gates, in the tables of memo-train: the network alone, hard, soft; what each answers, and usage"
import json
import pytest, torch, yaml
from helpers.errors import err
from helpers.learners import quietly
from helpers.pictures import no_rendering
from memo.evaluation.evaluate import Answers, evaluate, planned_rows
from memo.evaluation.tables import Row, label
from memo.experiment.build import build_learner
from memo.experiment.config import load_config
from memo.experiment.jobs import trainings
from memo.experiment.again import evaluate_run, load_run
from memo.experiment.run import finish_memories, run_experiment
from memo.heads.gate import GateHead

def cfg(tmp_path, head=None, **more):
    "An experiment with a gate of these keys, or with other memories"
    d = dict(name='t', seeds=[0], runs=str(tmp_path/'runs'), train=dict(epochs=2, bs=16),
             data=dict(name='digits_lt', n_max=60, ratio=4, valid=5, test=10, size=8))
    if 'memories' not in more:
        d['memory'] = dict(bank='SlotBank', size=200, head={'name':'dual', 'threshold':.9, **(head or {})})
    (tmp_path/'t.yaml').write_text(yaml.safe_dump({**d, **more}))
    return load_config(tmp_path/'t.yaml')

def trained(c):
    learn = build_learner(c, 0)
    quietly(learn, 'fit', 2, 1e-2)
    quietly(learn, finish_memories, next(iter(trainings(c, 'r'))), learn)
    return learn

def by_memory(r): return {tuple(o['memory']):o for o in r.rows}

# which rows there are

def names(c, **kw): return [label(r, dict()) for r in planned_rows(c, **kw)]

def test_rows(tmp_path):
    assert names(cfg(tmp_path))==['plain network', 'plain network + memory', 'plain network + memory (soft)']
    assert names(cfg(tmp_path, dict(soft=True)))==['plain network', 'plain network + memory',
                                                   'plain network + memory (not soft)']
    assert names(cfg(tmp_path, compare=['vote','logit_adjusted']))[-4:]==['plain network + memory: vote',
        *[f"logit_adjusted, plain network + memory{o}".replace(', plain network', '') for o in ('',' (soft)',': vote')]]

def test_rows_of_several_memories(tmp_path):
    def memory(at, **kw): return dict(bank='SlotBank', size=200, head=dict(name='exit', **kw), at=at)
    c = cfg(tmp_path, memories=dict(early=memory('0'), late=memory('3')))
    of = [f'plain network + memory: {o}' for o in ('early','early (soft)','late','late (soft)','early, late')]
    assert names(c)==['plain network', *of]

def test_a_vote_has_the_rows_it_had(tmp_path):
    c = cfg(tmp_path, memory=dict(bank='SlotBank', head='vote'))
    assert names(c)==['plain network','plain network + memory']

def test_what_can_be_compared(tmp_path):
    "The same head again only where it differs; no training without memory, as one gives both rows"
    assert 'is already' in err(cfg, tmp_path, compare=[dict(name='dual', threshold=.9)])
    c = cfg(tmp_path, compare=[dict(name='dual', threshold=.5), 'vote', 'class_mean'])
    assert planned_rows(c)[-2:]==[Row(memory=('dual',)), Row(memory=('vote',))]
    assert 'in one training' in err(cfg, tmp_path, compare=['plain'])

# what they answer

@pytest.fixture(scope='module')
def done(tmp_path_factory):
    c = cfg(tmp_path_factory.mktemp('gate'), compare=['logit_adjusted'])
    learn = trained(c)
    return c,learn,quietly(learn, evaluate, learn, c)

def test_rows_are_what_is_predicted(done):
    "Hard, soft and alone: each row's probabilities are those of `get_preds`, and usage is the share that decides so"
    c,learn,r = done
    head = learn.memory.head
    p,y = quietly(learn, 'get_preds', ds_idx=2)
    with learn.memory.off(): q,_ = quietly(learn, 'get_preds', ds_idx=2)
    head.soft = True
    try: s,_ = quietly(learn, 'get_preds', ds_idx=2)
    finally: head.soft = False
    for name,o in (('plain network + memory',p), ('plain network',q), ('plain network + memory (soft)',s)):
        torch.testing.assert_close(r.probs[name], o, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(p, q, atol=1e-2) and not torch.allclose(p, s, atol=1e-2)
    usage = by_memory(r)[('memory',)]['scores']['usage']
    z = learn.memory.collect(learn.dls[2]).z
    assert usage==pytest.approx(float(head.decide(z)[0].float().mean())) and 0<usage<1
    assert head.soft is False

def test_usage_is_a_column_where_there_is_a_gate(done, tmp_path):
    c,learn,r = done
    assert list(r.columns)[-1]=='usage'
    assert [('usage' in o['scores']) for o in r.rows]==[bool(o['memory']) and o['memory'][0]=='memory' for o in r.rows]
    v = cfg(tmp_path, memory=dict(bank='SlotBank', size=200, head='vote'))
    assert 'usage' not in evaluate(trained(v), v).columns

def test_of_several_exits_the_first_one_has_the_last_word(tmp_path):
    "As in the model, in whatever order the file names them; usage is of those that any answers"
    def memory(at): return dict(bank='SlotBank', size=200, head=dict(name='exit', threshold=.97), at=at)
    c = cfg(tmp_path, memories=dict(early=memory('0'), late=memory('4')))
    learn = trained(c)
    for o in (c.memories, dict(reversed(c.memories.items()))):
        c.memories = o
        a = Answers(learn, c)
        out,_,usage = a.outputs(Row(memory=tuple(o)))
        p,_ = quietly(learn, 'get_preds', ds_idx=2)
        torch.testing.assert_close(out.softmax(1), p, rtol=1e-4, atol=1e-5)
        hits = [learn.memories[k].head.decide(learn.memories[k].collect(learn.dls[2]).z)[0] for k in o]
        assert usage==pytest.approx(float((hits[0] | hits[1]).float().mean()))
    assert bool((hits[0]!=hits[1]).any()) and bool((hits[0] & hits[1]).any())

# what is chosen

@pytest.mark.parametrize('keys,asked', [({}, None), (dict(eps=.01), dict(eps=.01)),
    (dict(eps=.01, confidence=.9), dict(eps=.01, confidence=.9)), (dict(confidence=.9), dict(confidence=.9))])
def test_the_threshold_is_fitted_where_that_is_asked_for(tmp_path, keys, asked, monkeypatch):
    "By default it is what was given, as in the seed"
    got = []
    monkeypatch.setattr(GateHead, 'fit', lambda self, collected, **kw: got.append((len(collected.y), kw)) or {})
    c = cfg(tmp_path, keys)
    learn = build_learner(c, 0)
    quietly(learn, 'fit', 1, 1e-2)
    quietly(learn, finish_memories, next(iter(trainings(c, 'r'))), learn)
    assert got==([] if asked is None else [(len(learn.dls.valid.dataset), asked)])
    assert float(learn.memory.head.threshold)==pytest.approx(.9)

def test_keys_are_checked(tmp_path):
    assert 'eps' in err(cfg, tmp_path, dict(eps=2.)) and 'confidence' in err(cfg, tmp_path, dict(confidence=1.))
    assert 'threshold' in err(cfg, tmp_path, dict(threshold=1.5))

def test_learned_rows_are_not_encoded_anew(tmp_path, monkeypatch):
    c = cfg(tmp_path)
    learn = build_learner(c, 0)
    quietly(learn, 'fit', 1, 1e-2)
    calls = []
    monkeypatch.setattr(type(learn.memory), 'rekey', lambda self: calls.append(1))
    t = next(iter(trainings(c, 'r')))
    quietly(learn, finish_memories, t, learn)
    learn.memory.bank.learned = True
    quietly(learn, finish_memories, t, learn)
    assert calls==[1]

# a whole run

def test_a_run_and_its_evaluation(tmp_path):
    "metrics.json, results.md and predictions.csv have the rows; memo-eval finds the same numbers"
    c = cfg(tmp_path)
    with no_rendering():
        text = run_experiment(c, log=lambda s: None)
        again,off = evaluate_run(tmp_path/'runs/t')
    m = json.loads((tmp_path/'runs/t/metrics.json').read_text())
    assert [o['memory'] for o in m['rows']]==[[],['memory'],['memory:soft']] and not off
    assert 'usage' in text.splitlines()[0] and text.splitlines()[1:4]==again.splitlines()[1:4]
    assert 'plain network + memory (soft)' in (tmp_path/'runs/t/results.md').read_text()
    assert 0<=m['rows'][1]['scores']['usage']<=1 and 'usage' not in m['rows'][0]['scores']
    assert float(load_run(tmp_path/'runs/t').memory.head.threshold)==pytest.approx(.9)
