"What a YAML says arrives: every argument of a part is a key, every key reaches the learner and its stages"
import inspect, json
import pytest, torch
from memo.experiment.build import build_learner, build_stages
from memo.experiment.config import load_config
from memo.registry import find, kinds, known

def plain(v): return v is None or isinstance(v, (bool,int,float,str))
def ours(kind):
    return [n for n,p in known(kind).items() if p.module.startswith('memo.') and not p.facts.get('read_only')]

@pytest.mark.parametrize('kind,name', [(k,n) for k in ('bank','head','loss') for n in ours(k)])
def test_every_argument_is_a_key(yml, kind, name):
    ps = [*inspect.signature(find(kind, name)).parameters.values()]
    args = {p.name:p.default for p in ps if p.name not in kinds[kind].given and p.default is not p.empty
            and plain(p.default)}
    if kind=='bank': args |= {p.name:8 for p in ps if p.default is p.empty and p.name not in kinds[kind].given}
    said = json.dumps(dict(name=name, **args))      # YAML too
    data = 'chest_mosaic' if known(kind)[name].facts.get('task')=='multilabel' else 'digits_lt'
    if kind=='bank': txt = f'memory: {{bank: {said}, head: watch}}'
    if kind=='head':
        txt = f"memory: {{bank: {'ClassBank' if known(kind)[name].facts['needs'] else 'SlotBank'}, head: {said}}}"
    if kind=='loss': txt = f'memory: null\ndata: {data}\ntrain: {{loss: {said}}}'
    cfg = load_config(yml(txt))
    got = dict(bank=lambda: cfg.memories['memory'].bank, head=lambda: cfg.memories['memory'].head,
               loss=lambda: cfg.train.loss)[kind]()
    assert {k:got.args[k] for k in args}==args and {*args}<={*got.given}

TINY = '''
name: tiny
seeds: [0]
data: {name: digits_lt, n_max: 30, ratio: 6, valid: 5, test: 10, size: 8}
memory: {size: 64, head: vote, k: 3}
train: {epochs: 2, lr: 1e-2, bs: 16}
'''
one = 'train.monitor=valid_loss'
two = ('train.phase2={epochs: 7, lr: [1e-5, 1e-4], bs: 8, momentum: .25, sampling: balanced, loss: logit_adjusted, '
       'monitor: valid_loss, patience: 4}')
def kind(o): return type(o).__name__

@pytest.mark.parametrize('over,get,want', [
    (['train.wd=.3'], lambda l, s: l.wd, .3),
    (['train.opt=adam'], lambda l, s: kind(l.opt_func([torch.nn.Parameter(torch.zeros(1))], lr=.1).opt), 'Adam'),
    (['train.wd=.3'], lambda l, s: kind(l.opt_func([torch.nn.Parameter(torch.zeros(1))], lr=.1).opt), 'AdamW'),
    (['train.clip=2'], lambda l, s: l.gradient_clip.max_norm, 2),
    (['train.wd=.3'], lambda l, s: hasattr(l, 'gradient_clip'), False),
    (['train.pct_start=.1'], lambda l, s: [o.kw for o in s], [dict(pct_start=.1)]),
    (['train.pct_start=.1','train.freeze_epochs=1'], lambda l, s: [o.kw['pct_start'] for o in s], [.99,.1]),
    (['train.pct_start=.1','train.warmup_epochs=1'], lambda l, s: [o.kw.get('pct_start') for o in s], [None,.1]),
    (['train.pct_start=.1',two], lambda l, s: [o.kw['pct_start'] for o in s], [.1,.1]),
    (['train.bs=8'], lambda l, s: (l.dls.train.bs, s[0].dls.train.bs), (8,8)),
    (['train.loss=logit_adjusted'], lambda l, s: kind(l.loss_func), 'LogitAdjustedCE'),
    (['train.sampling=balanced'], lambda l, s: kind(s[0].dls.train), 'BalancedDL'),
    (['train.cbs=[{name: save_bank, every: 3}]'], lambda l, s: l.save_bank.every, 3),
    (['train.epochs=3'], lambda l, s: [o.epochs for o in s], [3]),
    (['train.lr=.5'], lambda l, s: s[0].lr, .5),
    (['train.freeze_epochs=1'], lambda l, s: [(o.epochs,o.freeze) for o in s], [(1,True), (2,False)]),
    (['train.warmup_epochs=1','train.warmup_lr=.125'], lambda l, s: [(o.epochs,o.lr,o.freeze) for o in s],
     [(1,.125,True), (2,.01,False)]),
    ([one], lambda l, s: s[0].monitor, 'valid_loss'),
    ([one,'train.patience=3'], lambda l, s: s[0].patience, 3),
    ([one,'train.min_delta=.5'], lambda l, s: s[0].min_delta, .5),
    ([two], lambda l, s: [(o.epochs,o.lr.start,o.lr.stop,o.momentum,o.monitor,o.patience) for o in s[1:]],
     [(7,1e-5,1e-4,.25,'valid_loss',4)]),
    ([two], lambda l, s: (s[1].dls.train.bs,kind(s[1].dls.train),kind(s[1].loss_func),s[0].dls.train.bs),
     (8,'BalancedDL','LogitAdjustedCE',16)),
], ids=lambda o: ' '.join(o).replace('train.', '')[:30] if isinstance(o, list) and o and isinstance(o[0], str) else '')
def test_what_is_said_of_the_training_arrives(yml, over, get, want):
    cfg = load_config(yml(TINY), over)
    learn = build_learner(cfg, 0)
    assert get(learn, build_stages(cfg, learn, 0))==want
