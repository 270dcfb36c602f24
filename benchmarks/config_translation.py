"""What the experiments of an earlier checkout say, translated, against what today's files say: python
benchmarks/config_translation.py CHECKOUT

Both resolve their own experiments/. The table below says where each key of version 0.1.0 is now. Keys that are new
must have the default of the argument
that they are, which is what was meant before where no key could say so. Exit status 1 where anything differs."""
import json, subprocess, sys
from pathlib import Path
from memo.experiment.sections import all_sections,flat
from memo.experiment.config import load_config
from memo.registry import part

# key of 0.1.0 -> key of today, or a function of (value, old, new) that gives several; None: see the note
table = {
    'data.name':'data',
    'model.arch':lambda v, old, new: {'model':'small_cnn'} if v=='small_cnn'
    else {'model':'chest' if findings(old) else 'timm', 'model.arch':v},
    # false, for small_cnn
    'model.pretrained':lambda v, old, new: {} if old['model']['arch']=='small_cnn' else {'model.pretrained':v},
    'model.frozen':'train.frozen',
    'memory.bank':'memory.bank',
    **{f'memory.{k}':f'memory.bank.{k}'
       for k in 'size policy threshold momentum capacity alpha tail_percentile dtype'.split()},
    'memory.head':'memory.head', 'memory.at':'memory.at', 'memory.save_every':'memory.save_every',
    **{f'memory.{k}':(lambda v, old, new, k=k: reader(k, v, old))
       for k in 'k temperature normalize rescale whiten balanced'.split()},
    'compare':lambda v, old, new: {'compare':v},
}

def findings(old): return old['data']['name'] in ('chestxray14','chest_mosaic')

def reader(k, v, old):
    "Who reads a key of a head: the memory's own, else the heads that are compared on what it watched"
    reads = dict(k=('vote','add','prototype','lda','watch','replay'), whiten=('vote',), balanced=('vote',),
                 temperature=('add',), normalize=('add',), rescale=('add',))[k]
    head = old['memory']['head']
    if head in reads and head not in ('watch','replay'): return {f'memory.head.{k}':v}
    # k of watch and replay: rows that a picture shows
    return {f'compare.vote.{k}':v} if 'vote' in old['compare'] else {}

def of_old(checkout):
    "File -> resolved experiment of the old checkout"
    code = '''import json,sys
from pathlib import Path
from memo.config import load_config,to_dict
print(json.dumps({str(p.relative_to('experiments')):to_dict(load_config(p)) for p in sorted(Path('experiments').rglob('*.yaml'))}))'''
    r = subprocess.run([sys.executable, '-c', code], cwd=checkout, env={'PYTHONPATH':str(checkout), 'PATH':''},
                       capture_output=True, text=True)
    if r.returncode: sys.exit(r.stderr)
    return json.loads(r.stdout)

def flat_old(d):
    res = {}
    for k,v in d.items():
        if isinstance(v, dict) and k in ('data','model','memory','train'):
            for o,w in v.items():
                res |= {f'train.phase2.{a}':b for a,b in w.items()} if o=='phase2' and w else {f'{k}.{o}':w}
        else: res[k] = v
    return res

def translated(old):
    res = {}
    for k,v in flat_old(old).items():
        to = table.get(k, k)
        res |= to(v, old, None) if callable(to) else {to:v}
    return res

def flat_new(cfg):
    "Today's keys; those of what is compared by name, and the defaults of all"
    res,usual = flat(cfg),{}
    res['compare'] = [s.name for s in cfg.compare]
    for at,s in all_sections(cfg):
        at = f'{at}.{s.name}' if at in ('compare','train.cbs','train.metrics') else at
        usual |= {f'{at}.{k}':(list(p.default) if isinstance(p.default, tuple) else p.default)
                  for k,p in part(s.kind, s.name).keys.items()}
        if at.startswith('compare.'): res |= {f'{at}.{k}':v for k,v in s.args.items()}
    usual |= {'memory.at':None, 'memory.group':None, 'memory.item':None, 'memory.loss_weight':0.,
              'memory.save_every':None, 'train.frozen':False, 'train.freeze_cached':False, 'train.class_weights':False,
              'train.abnormal_only':False, 'train.metrics':[], 'train.cbs':[]}
    return {k:v for k,v in res.items() if not (k=='memory' and v is None)},usual

def main(checkout):
    old,bad,new_keys,moved = of_old(Path(checkout)),0,{},{}
    here = Path(__file__).parents[1]/'experiments'
    files = sorted(str(p.relative_to(here)) for p in here.rglob('*.yaml'))
    if files!=sorted(old): print('other files:', sorted(set(files)^set(old)))
    for f in files:
        if f not in old: continue
        want,(got,usual) = translated(old[f]),flat_new(load_config(here/f))
        if old[f]['memory'] is None: want.pop('memory', None)
        diff = [(k,want.get(k, '(none)'),got.get(k, '(none)')) for k in want if want[k]!=got.get(k, '(none)')]
        more = [k for k in got if k not in want]
        odd = [(k,'default '+repr(usual.get(k, '(none)')),got[k]) for k in more if got[k]!=usual.get(k, '(none)')]
        for k in more: new_keys.setdefault(k, set()).add(json.dumps(got[k]))
        for k,v in flat_old(old[f]).items():
            to = table.get(k, k)
            to = list(to(v, old[f], None)) if callable(to) else [to]
            if to!=[k]: moved.setdefault(k, set()).update(to or ['(nothing read it)'])
        bad += bool(diff or odd)
        print(f"{f}: {len(want)} keys {'equal' if not diff else 'DIFFER'}, {len(more)} new ones "
              f"{'at their defaults' if not odd else 'NOT AT DEFAULTS'}")
        for o in diff+odd: print('   ', *o)
    print('\nmoved:')
    for k,v in sorted(moved.items()): print(f"  {k} -> {', '.join(sorted(v))}")
    print('\nnew, with the values they have:')
    for k,v in sorted(new_keys.items()): print(f"  {k}: {', '.join(sorted(v))}")
    print(f"\n{len(files)} experiments, {bad} differ")
    return bool(bad)

if __name__=='__main__': sys.exit(main(sys.argv[1]))
