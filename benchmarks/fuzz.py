"""Files and arguments as nobody meant them: what memo's commands do with them, by kind, and whether what they accept
can be trained. Each try is known by its kind and number, and made again by --replay.

    python benchmarks/fuzz.py                       # 10,000 tries, the page fuzz.md beside this file
    python benchmarks/fuzz.py --n 300 --kinds yaml,bank --no-page
    python benchmarks/fuzz.py --replay yaml:123     # with its traceback
    python benchmarks/fuzz.py --train 300           # of what is accepted, so many are trained an epoch on 60 images
"""
import os
for k in ('OMP_NUM_THREADS','MKL_NUM_THREADS'): os.environ.setdefault(k, '1')
os.environ.update(MPLBACKEND='Agg', OMP_WAIT_POLICY='passive', HF_HUB_OFFLINE='1')

import argparse,contextlib,io,json,random,shutil,signal,sys,tempfile,time,traceback,warnings
from collections import Counter
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple
here = Path(__file__).parent
sys.path.insert(0, str(here))
import fuzz_kinds as fk

class Try(NamedTuple):
    "What became of a try"
    kind:str
    number:int
    outcome:str     # refused, accepted, unclear, traceback, hang
    seconds:float   # Of CPU
    said:str = ''   # The line, or what was raised and where
    made:str = ''   # What was tried
    @property
    def name(self): return f'{self.kind}:{self.number}'

limit = 2.  # seconds of CPU for an answer

class Hang(BaseException): pass
def _hang(*_): raise Hang

def where(e):
    "The last line of memo's in a traceback"
    at = traceback.extract_tb(e.__traceback__)
    at = [o for o in at if 'memo' in Path(o.filename).parts] or at
    return f'{Path(at[-1].filename).name}:{at[-1].lineno} {at[-1].name}'

def refused(e):
    "The line of an exception that memo's commands take for the user's mistake; None for others"
    from memo.cli import _one_line
    from memo.core import MemoError
    return _one_line(e) if isinstance(e, (MemoError,OSError)) else None

def attempt(kind, number, world, show=False):
    "Make one try"
    rng,made = random.Random(f'{kind}:{number}'),[]
    out,t,res = io.StringIO(),time.process_time(),None
    signal.signal(signal.SIGPROF, _hang)
    signal.setitimer(signal.ITIMER_PROF, 10*limit)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with world.fresh(): res = fk.kinds[kind](rng, world, made)
        outcome,said = ('accepted','') if res is None else res
    except Hang: outcome,said = 'hang','more than 20 s'
    except (Exception,SystemExit) as e:
        if show: traceback.print_exc()
        line = refused(e)
        clear = line is not None and 0<len(line)<=300 and '\n' not in str(e)
        outcome = 'refused' if clear else 'traceback' if line is None else 'unclear'
        said = line if line is not None else f'{type(e).__name__}: {str(e)[:120]!r} at {where(e)}'
    finally: signal.setitimer(signal.ITIMER_PROF, 0)
    t = time.process_time()-t
    if t>limit and outcome!='traceback': outcome,said = 'hang',f'{t:.1f} s of CPU; {said}'
    return Try(kind, number, outcome, t, said, made[0] if made else '')

outcomes = 'refused','accepted','unclear','traceback','hang'

def run(kind, n, world, log=print):
    "`n` tries of a kind, or by its share"
    own = [attempt(kind, i, world) for i in range(n if isinstance(n, int) else max(1, round(n*fk.share[kind])))]
    c = Counter(o.outcome for o in own)
    what = '  '.join(f'{o} {c[o]}' for o in outcomes)
    log(f'{kind:11} {len(own)} tried  {what}  longest {max(o.seconds for o in own):.2f} s', flush=True)
    return own

def faults(tries):
    "The shortest example of each fault: what is not refused in a line, and not accepted in time"
    by = {}
    for o in sorted((o for o in tries if o.outcome in ('unclear','traceback','hang')), key=lambda o: len(o.made)):
        by.setdefault((o.kind, o.outcome, o.said.split(' at ')[-1] if o.outcome=='traceback' else o.said[:30]), o)
    return list(by.values())

def table(tries):
    rows = [['', 'tried', *outcomes, 'longest, s of CPU']]
    for k in dict.fromkeys(o.kind for o in tries):
        own = [o for o in tries if o.kind==k]
        c = Counter(o.outcome for o in own)
        rows.append([k, len(own), *(c[o] for o in outcomes), f'{max(o.seconds for o in own):.2f}'])
    c = Counter(o.outcome for o in tries)
    rows.append(['all', len(tries), *(c[o] for o in outcomes), f'{max(o.seconds for o in tries):.2f}'])
    lines = ['| '+' | '.join(map(str, r))+' |' for r in rows]
    return '\n'.join([lines[0], '|---'*len(rows[0])+'|', *lines[1:]])

def trained_table(tries):
    c = Counter(o.outcome for o in tries)
    names = ['trained','diverged','late','traceback','nothing']
    row = ' | '.join(str(c[o]) for o in names)
    return f"| tried | {' | '.join(names)} |\n{'|---'*6}|\n| {len(tries)} | {row} |"

def train_some(n, world, until, log=print):
    "Of the experiments that are accepted, train `n` an epoch on 60 images, or as many as there is time for"
    res,i = [],0
    while len(res)<n and time.time()<until:
        i += 1
        rng,made = random.Random(f'train:{i}'),[]
        out,t = io.StringIO(),time.process_time()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), warnings.catch_warnings():
                warnings.simplefilter('ignore')
                with world.fresh(): outcome,said = fk.train(rng, world, made)
        except (Exception,SystemExit) as e:
            line = refused(e)
            what = f'{type(e).__name__}: {str(e)[:150]!r} at {where(e)}'
            outcome,said = ('late',line) if line else ('traceback',what)
        if outcome=='refused': continue
        res.append(Try('train', i, outcome, time.process_time()-t, said, made[0]))
        if outcome not in ('trained','diverged'): log(f'{res[-1].name} {outcome}: {said}\n    {made[0]}', flush=True)
        elif len(res)%20==0: log(f'{len(res)} trained of {i} tries', flush=True)
    return res

text = '''# Files and arguments as nobody meant them

    {command}

{about}

{table}

refused: one line of 300 characters at most, exit status 2. unclear: refused by more than that. traceback: what memo did
not expect (the command says so in a line, with exit status 1). hang: more than {limit:g} s of CPU.

{train}

{faults}
'''

def page(tries, trained, command):
    "The page beside this file"
    bad = faults([*tries])
    found = '\n'.join(f'* `{o.name}` {o.outcome}: {o.said}' for o in bad) or 'No fault was found.'
    tr = '' if not trained else (
        'Of small experiments with keys changed that are accepted, so many were trained an epoch on 60 images. late: '
        'refused after training had begun; nothing: scores that are no numbers, of no rows or of one class, memories '
        'that hold nothing; '
        'diverged: ended at the first loss that is not '
        f'finite.\n\n{trained_table(trained)}')
    about = '\n'.join(f'* **{k}**: {f.__doc__}' for k,f in fk.kinds.items() if any(o.kind==k for o in tries))
    return text.format(command=command, about=about, table=table(tries), limit=limit, train=tr, faults=found)

def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--n', type=int, default=0, help='tries of each kind; 0: by their shares')
    p.add_argument('--all', type=int, default=10_000, help='tries in all, where --n is 0')
    p.add_argument('--kinds', default=','.join(fk.kinds))
    p.add_argument('--replay', help='kind:number')
    p.add_argument('--train', type=int, default=0)
    p.add_argument('--minutes', type=float, default=60, help='for --train')
    p.add_argument('--processes', type=int, default=2)
    p.add_argument('--no-page', action='store_true')
    a = p.parse_args(argv)
    with tempfile.TemporaryDirectory() as d:
        world = fk.World(Path(d))
        if a.replay:
            k,i = a.replay.split(':')
            world.warm([k])
            if k=='train':
                made = []
                with world.fresh(): print(made, fk.train(random.Random(a.replay), world, made))
                return
            o = attempt(k, int(i), world, show=True)
            print(o.made, f'\n{o.name} {o.outcome} ({o.seconds:.2f} s): {o.said}', sep='')
            return
        ks = [k for k in a.kinds.split(',') if k]
        world.warm([*ks, *(['train'] if a.train else [])])
        with get_context('fork').Pool(a.processes) as pool:
            begun = pool.apply_async(train_some, (a.train, world, time.time()+60*a.minutes))
            some = [pool.apply_async(run, (k, a.n or a.all/10_000, world)) for k in ks]
            tries = [o for r in some for o in r.get()]
            for o in faults(tries): print(f'{o.name} {o.outcome}: {o.said}\n    {o.made[:150]!r}', flush=True)
            trained = begun.get()
        if trained: print(trained_table(trained))
        if not a.no_page:
            (here/'fuzz.md').write_text(page(tries, trained, ' '.join(['python benchmarks/fuzz.py', *sys.argv[1:]])))

if __name__=='__main__': main()
