"The kinds of tries of fuzz.py, each a function of a random source, a world of files to start from, and what it made"
import contextlib,json,os,shutil,sys
from pathlib import Path

nasty = ('~ 0 -1 1 2 3.5 -0.0 1e-3 1e9 1e308 1e400 .inf -.inf .nan true false null "" x [] {} [1] [1,2] {a:\\ 1} '
         '9999999999999999999999 0x7f 0o17 1:30 1_000 2024-31-12 2024-12-31 = << *a &a !!int\\ x '
         '!!python/name:os.system "\\\\0" ü '
         '名前 "\\\\ud800" ../x / . .. a/b C:\\\\x $HOME ~/x % [~] [[]] {~:\\ 1} [.nan] {a:\\ {a:\\ {}}} '
         '- ? | > SlotBank ClassBank CachedBank TrainableBank vote add watch dual exit replay lda hopfield token_vote '
         'digits_lt fashion_lt split_digits modes timm small_cnn ce bce focal '
         'balanced sqrt accuracy valid_loss plain crt '
         'os.path os.system builtins.print find adamw row_sgd fit_one_cycle').split(' ')
nasty = [o.replace('\\ ', ' ') for o in ' '.join(nasty).replace('\\ ', '\0').split(' ')]
nasty = [o.replace('\0', ' ') for o in nasty] + ['9'*5000, 'x'*9000, '['*900+']'*900, 'a: '*60, '\x00', '\ufeff', '\t']

values = [None, True, False, 0, 1, -1, 2, 10**9, 10**18, 10**30, 1.5, -0.5, 1e308, float('nan'), float('inf'), '', 'x',
          'x'*5000, '\0', 'ü', [], [1], ['x'], [[]], {}, {'x':1}, {'':None}, [None], [10**9], '../x', '/etc/passwd']

SLOTS = '''
name: tiny
seeds: [0]
data: {name: digits_lt, n_max: 6, ratio: 2, valid: 2, test: 2, size: 8}
memory: {size: 16, policy: reservoir, head: vote, k: 3}
train: {epochs: 1, lr: 1e-2, bs: 16}
plots: {save: false}
'''
CLASSES = SLOTS.replace('memory: {size: 16, policy: reservoir, head: vote, k: 3}',
                        'memory: {bank: ClassBank, capacity: 4, head: watch}\ncompare: [lda, class_mean]')

class World:
    "Files to start from, made once: experiments, runs, banks, checkpoints"
    def __init__(self, root):
        from memo.experiment.shipped import shipped
        self.root = root
        self.texts = {k:f.read_text(encoding='utf-8') for k,f in shipped().items()}
        self.files = shipped()
        self._runs,self._banks,self._keys,self.n = {},None,None,0

    def warm(self, kinds):
        "Make and import what the tries start from, so that none is timed with it"
        import memo.all,memo.experiment.run,memo.experiment.table
        with self.fresh():
            if {'run','metrics','bank','train'} & {*kinds}: self.run(SLOTS),self.run(CLASSES)
            if 'checkpoint' in kinds:
                for n in (8, 10): train_stages(self.root/f'checkpoints{n}', False, n)
            for k in ('quickstart','streams/table_digits','dual_path/digits_exit','hopfield/digits'): read_experiment(k)
        self.banks()
        self.keys()

    @contextlib.contextmanager
    def fresh(self):
        "An empty folder to work in, which is gone afterwards"
        self.n += 1
        d,was = self.root/f't{os.getpid()}_{self.n}',os.getcwd()
        d.mkdir()
        os.chdir(d)
        self.here = d
        try: yield d
        finally:
            os.chdir(was)
            shutil.rmtree(d, ignore_errors=True)

    def run(self, text):
        "The run folder of an experiment, trained once"
        if text not in self._runs:
            from memo.experiment.config import load_config
            from memo.experiment.run import run_experiment
            d = self.root/f'run{len(self._runs)}'
            d.mkdir()
            (d/'tiny.yaml').write_text(text)
            run_experiment(load_config(d/'tiny.yaml', [f'runs={d}']), log=lambda s: None)
            self._runs[text] = d/'tiny'
        return self._runs[text]

    def banks(self):
        "Files of banks"
        if self._banks is None: self._banks = make_banks(self.root)
        return self._banks

    def keys(self):
        "Every dotted key that an experiment may have"
        if self._keys is None:
            from memo.experiment.config import flat,load_config
            some = 'quickstart','dual_path/digits_exit','streams/split_digits'
            more = 'train.phase2.epochs','train.phase2.lr','memories.a.bank','memories.a.k','path'
            self._keys = sorted({*more, *(k for t in some for k in flat(load_config(t)))})
        return self._keys

def make_banks(root):
    import torch
    from memo.all import CachedBank,ClassBank,SlotBank
    g = torch.Generator().manual_seed(0)
    x,y = torch.randn(8, 5, generator=g),torch.arange(8)%3
    res = []
    banks = [SlotBank(6, policy='fifo', n_classes=3), SlotBank(4), ClassBank(3, 2), CachedBank(6, 3),
             ClassBank(3, 2, dtype='int8')]
    for b in banks: b.write(x, y, item=torch.arange(8))
    for i,b in enumerate([*banks, banks[0].compress(codec='int8')]):
        b.save(root/f'bank{i}.safetensors')
        res.append(root/f'bank{i}.safetensors')
        if i==2:
            b.to_json(root/'bank.json')
            res.append(root/'bank.json')
    torch.save({'model.memory':x, 'model.index':torch.tensor(8)}, root/'bank.pth')
    return [*res, root/'bank.pth']

# Changes of texts, of bytes, of trees

def nasty_line(rng, s):
    return f'{rng.choice(nasty)}: {rng.choice(nasty)}' if rng.random()<.3 else f"{s.split(':')[0]}: {rng.choice(nasty)}"

def changed_text(rng, s, others):
    "A text with one to four changes"
    for _ in range(rng.randint(1, 4)):
        ls = s.split('\n')
        i,j = rng.randrange(len(ls)),rng.randrange(len(ls))
        a,b = sorted((rng.randrange(len(s)+1), rng.randrange(len(s)+1)))
        how = rng.randrange(12)
        if how==0: ls.pop(i)
        elif how==1: ls.insert(j, ls[i])
        elif how==2: ls[i],ls[j] = ls[j],ls[i]
        elif how==3: ls[i] = ' '*rng.randint(0, 6)+ls[i].strip()
        elif how==4: ls[i] = nasty_line(rng, ls[i])
        elif how==5: ls.insert(i, nasty_line(rng, ls[j]))
        elif how==6: ls = (s[:a]+rng.choice(nasty)+s[a:]).split('\n')
        elif how==7: ls = (s[:a]+s[min(b, a+rng.randint(1, 20)):]).split('\n')
        elif how==8: ls = s[:a].split('\n')
        elif how==9: ls = ls[:i]+rng.choice(others).split('\n')[j:]
        elif how==10: ls[i:i+1] = [ls[i]]*rng.choice((2, 50, 3000))
        else: ls = (s[:a]+chr(rng.choice((0,9,10,34,35,39,42,58,91,92,123,133,255,0x2028,0x1f600)))+s[a:]).split('\n')
        s = '\n'.join(ls)
    return s

def changed_bytes(rng, b):
    "Bytes with one to four changes"
    b = bytearray(b)
    for _ in range(rng.randint(1, 4)):
        i,how = rng.randrange(len(b)+1),rng.randrange(7)
        if how==0: b = b[:i]
        elif how==1: b[i:i+1] = bytes([rng.randrange(256)])
        elif how==2: b[i:i] = rng.randbytes(rng.choice((1,8,300)))
        elif how==3: del b[i:i+rng.choice((1,8,300))]
        elif how==4: b[i:i+8] = rng.choice((0, 2**63-1, 2**64-1, 10**9)).to_bytes(8, 'little')
        elif how==5: b[i:i+4] = b'\xff'*4
        else: b[:8] = rng.choice((0, 2, len(b), 2**40, 2**64-1)).to_bytes(8, 'little')
    return bytes(b)

def changed_tree(rng, o, n=None):
    "A tree of dicts and lists with some places changed"
    for _ in range(n or rng.randint(1, 3)): o = _changed(rng, o)
    return o

def _changed(rng, o):
    into = isinstance(o, (dict,list,tuple)) and len(o) and rng.random()<.85
    if not into: return rng.choice(values)
    if isinstance(o, dict):
        k = rng.choice(list(o))
        if (how := rng.random())<.15: return {a:b for a,b in o.items() if a!=k}
        if how<.3: return {**o, rng.choice(['x', 'kind', 'write', 'size', '']):rng.choice(values)}
        return {**o, k:_changed(rng, o[k])}
    o,i = list(o),rng.randrange(len(o))
    if (how := rng.random())<.1: o.pop(i)
    elif how<.2: o *= 2
    else: o[i] = _changed(rng, o[i])
    return o

def in_place_of(rng, path):
    "Something else than a file where one is"
    path.unlink()
    how = rng.randrange(4)
    if how==0: path.mkdir()
    elif how==1: path.symlink_to(path)
    elif how==2: path.symlink_to('/nowhere')
    else: path.write_bytes(b'')

# Kinds

def read_experiment(path, overrides=()):
    "As memo-train --print-config reads it"
    from memo.cli import configs,method_tables,to_text
    tables = method_tables([path], overrides)
    for c in [t.cfg for t in tables] or configs([path], overrides): to_text(c)

def fuzz_yaml(rng, world, made):
    "an experiment or a table that ships, with lines, keys, values and letters changed"
    k = rng.choice(list(world.texts))
    made.append(changed_text(rng, world.texts[k], list(world.texts.values())))
    p = world.here/'x.yaml'
    base = world.files[k].parent
    for o in (*base.glob('*.yml'), *base.parent.glob('*.yml')): shutil.copy(o, world.here)
    p.write_bytes(made[0].replace('../', '').encode('utf-8', 'surrogatepass'))
    read_experiment(p)

def fuzz_override(rng, world, made):
    "one to four overrides of an experiment that ships"
    def key():
        k = rng.choice(world.keys())
        if rng.random()<.2:
            i = rng.randrange(len(k)+1)
            k = k[:i]+rng.choice(['', '.', 'x', '..', ' ', '=', '\0', 'ü'])+k[i+rng.randint(0, 2):]
        return k
    def value():
        r = rng.random()
        if r<.5: return rng.choice(nasty)
        of = rng.randint(-3, 300),rng.random()*10**rng.randint(-40, 40),10**rng.randint(0, 40)
        if r<.8: return str(rng.choice(of))
        return '['+','.join(rng.choice(nasty) for _ in range(rng.randint(0, 3)))+']'
    over = [key()+('' if rng.random()<.03 else f'={value()}') for _ in range(rng.randint(1, 4))]
    k = rng.choice(list(world.texts))
    made.append(f'{k} {over!r}')
    read_experiment(k, over)

def fuzz_raw(rng, world, made):
    "bytes for an experiment: any, or those of one with some changed"
    if rng.random()<.3: b = rng.randbytes(rng.choice((1,10,1000,100_000)))
    elif rng.random()<.2: b = rng.choice(nasty).encode('utf-8', 'surrogatepass')*rng.choice((1, 10, 1000))
    else: b = changed_bytes(rng, rng.choice([o for o in world.texts.values() if 'base:' not in o]).encode())
    made.append(repr(b[:3000]))
    p = world.here/'x.yaml'
    p.write_bytes(b)
    read_experiment(p)

def safetensors_tree(b):
    n = 8+int.from_bytes(b[:8], 'little')
    return json.loads(b[8:n]),b[n:]

def changed_safetensors(rng, b):
    "A safetensors file whose header, metadata or numbers were changed"
    h,data = safetensors_tree(b)
    how,meta = rng.randrange(4),h.get('__metadata__', {})
    if how==0: return changed_bytes(rng, b)
    if how==1: h = changed_tree(rng, h)
    elif how==2 and meta:
        k = rng.choice(list(meta))
        try: v = json.dumps(changed_tree(rng, json.loads(meta[k])))
        except ValueError: v = changed_text(rng, meta[k], [meta[k]])
        h = {**h, '__metadata__':{**meta, k:v}}
    else:       # the numbers of a tensor
        o = h[rng.choice([k for k in h if k!='__metadata__'])]
        i,j = o['data_offsets']
        new = rng.choice((b'\xff', b'\x7f', b'\x00', b'\x01'))*(j-i) if rng.random()<.7 else rng.randbytes(j-i)
        if '_extra_state' in str(o) or rng.random()<.3: new = changed_bytes(rng, data[i:j] or b'x').ljust(j-i)[:j-i]
        data = data[:i]+new+data[j:]
    head = json.dumps(h).encode('utf-8', 'surrogatepass')
    return len(head).to_bytes(8, 'little')+head+data

def show_bank(path):
    from memo.banks.exchange import open_bank
    from memo.plots import banks as bp
    bank,_ = open_bank(path)
    bp.bank_summary(bank)
    if bp.knows_classes(bank): bp.class_text(bank, None, 20)

def fuzz_bank(rng, world, made):
    "the file of a bank: bytes, header, metadata, numbers, JSON, tensors; read as memo-bank does"
    f = rng.choice([*world.banks(), world.run(SLOTS)/'model.safetensors', world.run(CLASSES)/'model.safetensors'])
    p = world.here/f'b{f.suffix}'
    if f.suffix=='.safetensors': b = changed_safetensors(rng, f.read_bytes())
    elif f.suffix=='.json' and rng.random()<.7: b = json.dumps(changed_tree(rng, json.loads(f.read_bytes()))).encode()
    else: b = changed_bytes(rng, f.read_bytes())
    made.append(repr(b[:3000]))
    p.write_bytes(b)
    if rng.random()<.02: in_place_of(rng, p)
    show_bank(p)

def tiny_learner():
    import torch
    from fastai.vision.all import CrossEntropyLossFlat,DataLoaders,Learner,nn
    from memo.all import MemoryCallback,SlotBank,TensorDL,adamw
    torch.manual_seed(0)
    x,y = torch.randn(24, 5),torch.arange(24)%3
    dls = DataLoaders(TensorDL(x, y, bs=8, shuffle=True), TensorDL(x, y, vocab=range(3)), device='cpu')
    return Learner(dls, nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), loss_func=CrossEntropyLossFlat(),
                   opt_func=adamw, cbs=MemoryCallback(SlotBank(6, policy='fifo')))

def train_stages(folder, resume, stop=None):
    "Train two stages, beside callbacks that count; stopped behind so many batches"
    from fastai.vision.all import Callback,EarlyStoppingCallback,GradientAccumulation
    from memo.training.stages import Stage,fit_stages
    class Stop(Callback):
        n = 0
        def after_batch(self):
            self.n += self.training
            if self.n==stop: raise KeyboardInterrupt
        def state_dict(self): return {}     # is not there when the training goes on
        def load_state_dict(self, state): pass
    learn = tiny_learner()
    cbs = [EarlyStoppingCallback(patience=5), GradientAccumulation(16), *([Stop()] if stop else [])]
    stages = [Stage('a', 3, 1e-3, monitor='valid_loss'), Stage('b', 1, 1e-3)]
    with learn.no_bar(), learn.no_logging(), contextlib.suppress(KeyboardInterrupt):
        fit_stages(learn, stages, checkpoint=folder, resume=resume, cbs=cbs)

def odd_state(rng, o):
    "Something else than `o` in one place of a checkpoint"
    import torch
    if isinstance(o, torch.Tensor) and rng.random()<.7:
        how = rng.randrange(7)
        if how==0: return o[:-1] if o.ndim else o[None]
        if how==1: return o[None].expand(2, *o.shape).clone()
        if how==2: return o.to(rng.choice([torch.float64, torch.float16, torch.int64, torch.bool, torch.uint8]))
        if how==3: return torch.zeros_like(o)
        if how==4: return torch.full_like(o, rng.choice([1, 100, float('nan')]) if o.is_floating_point() else 1)
        return torch.zeros(rng.choice([(0,), (), (3,), (2,3,4)]))
    if isinstance(o, str) and rng.random()<.5: return rng.choice([o+'x', o[1:], '../'+o, '/etc/passwd', o*50])
    if isinstance(o, (int,float)) and rng.random()<.5: return rng.choice([o+1, -o, o*10, 10**9, -1])
    return rng.choice([*values, torch.zeros(3), torch.tensor(1)])

def changed_state(rng, o, into=.9):
    "A checkpoint in which one key or value, however deep, is dropped, renamed, added, doubled or another"
    if not isinstance(o, (dict,list,tuple)) or not len(o) or rng.random()>into: return odd_state(rng, o)
    d = o if isinstance(o, dict) else dict(enumerate(o))
    k,how = rng.choice(list(d)),rng.random()
    if how<.1: d = {a:b for a,b in d.items() if a!=k}
    elif how<.2:
        new = rng.choice([f'{k}x', 'x', '', 0, -1, 10**9]) if isinstance(o, dict) else k
        d = {(new if a==k else a):b for a,b in d.items()}
    elif how<.25: d = {**d, (rng.choice(['x', '', 0]) if isinstance(o, dict) else len(d)):rng.choice(values)}
    else: d = {**d, k:changed_state(rng, d[k])}
    return d if isinstance(o, dict) else type(o)(d.values())

def fuzz_checkpoint(rng, world, made):
    "checkpoints of a training that goes on: bytes, and keys, tensors, values at any depth dropped, renamed, changed"
    import torch
    from memo.training.checkpoint import save_plain
    d = Path(shutil.copytree(world.root/f'checkpoints{rng.choice((8, 10))}', world.here/'c'))
    made.append('')
    for f in sorted(d.glob('*.pt')):
        if (how := rng.random())<.2: continue
        if how<.5:      # as other software writes it
            torch.save(changed_state(rng, torch.load(f, weights_only=True)), f)
        elif how<.8:    # as another version of memo does: what it says it holds is what it does
            o = changed_keys(rng, torch.load(f, weights_only=True)['of'])
            save_plain(o, f)
        elif how<.9: f.write_bytes(changed_bytes(rng, f.read_bytes()))
        elif how<.95: shutil.copy(rng.choice(sorted(d.glob('*.pt'))), f)
        else: in_place_of(rng, f)
        made[0] += f' {f.name}:{how:.2f}'
    train_stages(d, True)

def changed_keys(rng, o):
    "A checkpoint of another version: keys of its own are missing, called otherwise, or new, or something else is there"
    def change(o, deep):
        if not isinstance(o, dict) or not o: return rng.choice([v for v in values if v==v])
        k = rng.choice(list(o))
        if deep and isinstance(o[k], dict) and rng.random()<.4: return {**o, k:change(o[k], deep-1)}
        if isinstance(o[k], list) and o[k] and isinstance(o[k][0], dict) and rng.random()<.4:
            return {**o, k:[change(o[k][0], deep-1), *o[k][1:]]}
        how = rng.randrange(4)
        if how==0: return {a:b for a,b in o.items() if a!=k}
        if how==1: return {(f'{k}_' if a==k else a):b for a,b in o.items()}
        if how==2: return {**o, 'new':rng.choice(values)}
        return {**o, k:rng.choice(values)}
    for _ in range(rng.randint(1, 2)): o = change(o, 2)
    return o

def fuzz_metrics(rng, world, made):
    "the metrics.json of a finished run, read for its tables"
    from memo.experiment.scores import write_results
    from memo.experiment.run_folder import run_config
    d = Path(shutil.copytree(world.run(rng.choice((SLOTS, CLASSES))), world.here/'r'))
    f = d/'metrics.json'
    if rng.random()<.8: f.write_text(json.dumps(changed_tree(rng, json.loads(f.read_text()))))
    else: f.write_bytes(changed_bytes(rng, f.read_bytes()))
    made.append(f.read_bytes()[:3000].decode('utf-8', 'replace'))
    write_results(run_config(d), d)

def fuzz_run(rng, world, made):
    "a run folder in which files were deleted, cut, changed, or are folders and links; read as memo-eval and others do"
    from memo.experiment.compare import is_begun
    from memo.experiment.config import override
    from memo.experiment.again import evaluate_model,evaluate_run
    from memo.experiment.run_folder import run_config
    src = world.run(rng.choice((SLOTS, CLASSES)))
    d = Path(shutil.copytree(src, world.here/'tiny'))
    for f in rng.sample(sorted(o for o in d.rglob('*') if o.is_file()), rng.randint(1, 3)):
        how = rng.randrange(4)
        made[:] = [f"{' '.join(made)} {f.name}:{how}"]
        if how==0: f.unlink()
        elif how==1: in_place_of(rng, f)
        elif f.suffix=='.safetensors': f.write_bytes(changed_safetensors(rng, f.read_bytes()))
        elif f.suffix=='.yaml' and how==2:
            f.write_text(changed_text(rng, f.read_text(), [SLOTS]), encoding='utf-8', errors='surrogatepass')
        else: f.write_bytes(changed_bytes(rng, f.read_bytes()))
    what = rng.randrange(4)
    made[0] += f' read {what}'
    if what==0: evaluate_run(d)
    elif what==1: show_bank(d)
    elif what==2: is_begun(override(run_config(src), {'runs':str(world.here)}))
    else: evaluate_model(d/'model.safetensors')

def fuzz_settings(rng, world, made):
    "a settings.ini"
    from memo.core import settings
    lines = ['data = data','runs = experiments/runs','seed = 42','lib_name = x','[other]','path: a','# x',
             'data=~/x ; y','runs=$HOME/r','runs=$NONE/r','%','a = %(x)s','a = 100%','seed=','seed = -1','data','ü = ü',
             '  more','run = x']
    ls = ['[DEFAULT]', *rng.choices(lines, k=rng.randint(0, 6)),
          *(f"{rng.choice(['data','runs','seed','x'])} = {rng.choice(nasty)}" for _ in range(rng.randint(0, 2)))]
    if rng.random()<.1: ls = ls[1:]
    s = changed_text(rng, '\n'.join(ls), ['data = x']) if rng.random()<.5 else '\n'.join(ls)
    b = s.encode(rng.choice(['utf-8', 'utf-8', 'latin-1', 'utf-8-sig', 'utf-16']), 'replace')
    made.append(repr(b))
    (world.here/'settings.ini').write_bytes(b if rng.random()<.9 else changed_bytes(rng, b))
    settings()

options = {'memo_train':['--resume','--table','--print-config','--list','--overwrite','--dry-run'],
           'memo_eval':['--model-path','--data','--threshold','--out'],
           'memo_bank':['--memory','--out','--k','--all','--json'],
           'memo_speed':['--batch-sizes','--n','--rounds','--thresholds','--threads'],
           'memo_cache':['--size','--workers'], 'memo_mosaic':['--patients','--seed']}

def fuzz_arguments(rng, world, made):
    "arguments of the six commands"
    from memo import cli
    name = rng.choice(list(options))
    words = [*nasty, 'quickstart', 'bank', 'experiment', 'x.yaml', 'memory.k=3', 'nope', '-x', '--', '--xtra',
             '--x=#k#y', '-h', '--help', str(world.banks()[0]), str(world.here), 'a=b=c', '=']
    def word(): return rng.choice(words).replace('\0', '')
    def option():
        o = rng.choice(options[name]) if rng.random()<.8 else word()
        return [f'{o}={word()}'] if rng.random()<.3 else [o, word()] if rng.random()<.7 else [o]
    args = [w for _ in range(rng.randint(0, 4)) for w in (option() if rng.random()<.5 else [word()])]
    # nothing is trained, or made that takes long, and nothing goes where this is not at home
    if name=='memo_train' and '--list' not in args: args.append('--print-config')
    if name in ('memo_cache','memo_mosaic'):
        args = [world.here/'nope'/'x' if str(o).startswith('/') else o for o in args]
    if name=='memo_mosaic' and not any(str(o).startswith('--patients') for o in args): args += ['--patients', '3']
    args = [str(o).replace('~/', './').replace('../', './') for o in args]
    made.append(f'{name} {args!r}')
    pos = dict(memo_train=['config'], memo_eval=['run_dir'], memo_bank=['run_or_file'], memo_speed=['run_dir'])
    status,err = run_command(getattr(cli, name), args, pos.get(name))
    if status in (0, None): return None
    if 'this is a fault of memo' in err or 'Traceback' in err: return 'traceback',err
    last = err.strip().split('\n')[-1].removeprefix('error: ')
    return ('refused' if status==2 and 0<len(last)<=300 else 'unclear'),f'{status} {last}'

def run_command(f, args, pos):
    "Exit status of a command, and what it says on stderr"
    import io
    from fastcore.script import _run_cli
    from memo.cli import begin
    was,err = [*sys.argv],io.StringIO()
    try:
        with contextlib.redirect_stderr(err):
            try:
                begin([f.__name__.replace('_', '-'), *args])
                status = _run_cli(f.__wrapped__, False, pos)
            except SystemExit as e: status = e.code
    finally: sys.argv[:] = was
    return status,err.getvalue()

# Training of what is accepted

def variant(**kw):
    d = dict(name='tiny', seeds=[0], plots=dict(save=False),
             data=dict(name='digits_lt', n_max=6, ratio=2, valid=2, test=2, size=8),
             train=dict(epochs=1, bs=16, lr=.01))
    return {k:{**d.get(k, {}), **v} if isinstance(v, dict) else v for k,v in {**d, **kw}.items()}

stream = dict(name='split_digits', n=5, images=60, valid=2, test=2, size=8)
variants = [
    variant(memory=dict(size=16, head='vote', k=3)), variant(memory=dict(size=16, head='add')),
    variant(memory=dict(bank='ClassBank', capacity=4, head='lda'), compare=['class_mean', 'logistic']),
    variant(memory=dict(bank='ClassBank', capacity=4, head='replay')),
    variant(memory=dict(bank='CachedBank', size=16, head='dual')),
    variant(memory=dict(bank='TrainableBank', size=16, head='exit', at='0', loss_weight=.2)),
    variant(memory=None, compare=['logit_adjusted'], train=dict(loss='ce', monitor='accuracy')),
    variant(memory=dict(size=16), train=dict(phase2=dict(epochs=1, momentum=.5), monitor='valid_loss', patience=1)),
    variant(memory=None, data=dict(stream, ratio=None, n_max=None), train=dict(cbs=[dict(name='Replay', size=10)])),
    variant(memory=None, data=dict(stream, ratio=None, n_max=None), train=dict(cbs=[dict(name='EWC', weight=1)]))]
for v in variants[-2:]:
    for k in ('ratio','n_max'): del v['data'][k]

numbers = [0, 1, 2, 3, 7, 100, 1000, 10**6, -1, .5, .1, .999, 1e-6, 1e-3, 1.5, 10., 1e6, 1e-30, 1e30]
words = [None, True, False, [], [1,3], [.1,.2], 'fifo', 'reservoir', 'rarity', 'diversity', 'entropy', 'cosine', 'dot',
         'euclidean', 'both', 'none', 'literal', 'published', 'int8', 'float16', 'sgd', 'row_sgd', 'find', 'balanced',
         'sqrt', 'ce', 'hinge', 'logit_adjusted', 'accuracy', 'valid_loss', 'lowest train_loss', 'fit_one_cycle', 'iid',
         'layer1', 'sampled', 'empirical', 'ring', 'greedy', '1kB', '2MB']

def train(rng, world, made):
    "A small experiment with one to three keys changed: trained, diverged, nothing, or refused before it is trained"
    import yaml
    from memo.core import Diverged,MemoError
    from memo.experiment.config import flat,load_config,override
    from memo.experiment.run import check_experiment,run_experiment
    p = world.here/'x.yaml'
    p.write_text(yaml.safe_dump(rng.choice(variants)))
    made.append(p.read_text())
    keys = [k for k in flat(load_config(p)) if k.split('.')[0] in ('data','memory','train') and k!='data.name']
    said = {rng.choice(keys):rng.choice(numbers if rng.random()<.7 else words) for _ in range(rng.randint(1, 3))}
    made[0] += repr(said)
    try:
        cfg = load_config(p, {'runs':str(world.here), **said})
        more = {k:v for k,v in flat(cfg).items() if k.endswith('epochs') and isinstance(v, int) and v>1}
        # no more than an epoch
        cfg = override(cfg, {**{k:1 for k in more}, 'train.ensembled_models':min(2, cfg.train.ensembled_models)})
        check_experiment(cfg)
    except (MemoError,OSError): return 'refused',''
    try: run_experiment(cfg, log=lambda s: None)
    except Diverged as e: return 'diverged',str(e)
    what = means_nothing(world.here/cfg.name)
    return ('nothing',what) if what else ('trained','')

def means_nothing(folder):
    "What makes the scores of a finished run mean nothing; None where nothing does"
    import pandas as pd
    m = json.loads((folder/'metrics.json').read_text(), parse_constant=lambda o: 'no number')
    if bad := [k for r in m['rows'] for k,v in r['scores'].items() if v=='no number']: return f'{bad} are no numbers'
    if not m['rows'] or not all(r['scores'] for r in m['rows']): return 'rows without scores'
    if empty := [k for k,b in m.get('banks', {}).items() if b['rows']==0]: return f'{empty} hold no rows'
    p = pd.read_csv(folder/'predictions.csv')
    if p.target.nunique()<2: return f'{p.target.nunique()} classes in {len(p)} test items'
    h = pd.read_csv(folder/'history.csv')
    if not len(h): return 'no epoch in the history'

# how many of 10,000: those that read a whole run take longest
share = dict(yaml=1200, override=1200, raw=1500, bank=2500, checkpoint=400, metrics=300, run=300, settings=1600,
             arguments=1000)

kinds = dict(yaml=fuzz_yaml, override=fuzz_override, raw=fuzz_raw, bank=fuzz_bank, checkpoint=fuzz_checkpoint,
             metrics=fuzz_metrics, run=fuzz_run, settings=fuzz_settings, arguments=fuzz_arguments)
