"""SIGKILL at random moments, then --resume: does a run end with the numbers of one that nothing disturbed?

    python benchmarks/kills.py                  # 100 kills: kills.json, kills.md
    python benchmarks/kills.py --kills 4        # fewer

Kinds: one phase, two phases, a frozen network, and two and four processes over gloo, whose runs are killed up to
five times each. The moments are uniform over the time that an undisturbed run takes, from its first line to its last
file, and come from a seed. Compared is every file of the run folder: history, predictions, scores, every tensor of
model and banks; halves of files that are left over are counted apart."""
import argparse, contextlib, json, os, random, shutil, signal, socket, sys, tempfile, time
from pathlib import Path

os.environ |= dict(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
base = ['data={name: digits_lt, n_max: 30, ratio: 6, valid: 5, test: 10, size: 8}', 'seeds=[0]', 'plots.save=false',
        'memory={size: 64, policy: reservoir, head: vote, k: [3, 5], save_every: 2}', 'train.bs=16', 'train.lr=1e-2']
phase2 = 'train.phase2={epochs: 3, lr: [1e-4, 1e-3], momentum: .999, loss: logit_adjusted}'
kinds = {'one phase':['train.epochs=5', 'train.monitor=accuracy'],
         'two phases':['train.epochs=3', 'train.freeze_epochs=1', 'train.monitor=valid_loss', phase2],
         'frozen network':['train.epochs=8', 'train.frozen=true',
                           'model={name: timm, arch: test_resnet, pretrained: W}'],
         '2 processes':['train.epochs=4', 'train.monitor=accuracy'],
         '4 processes':['train.epochs=3', 'train.freeze_epochs=1', phase2]}
share = {'one phase':30, 'two phases':30, 'frozen network':20, '2 processes':10, '4 processes':10}
def ranks(kind): return int(kind[0]) if kind[0].isdigit() else 1

def work(kind, folder, weights):
    "Train, or go on where a killed process stopped"
    from memo.experiment.config import load_config
    from memo.experiment.run import begin, resume_run
    if (folder/'runs/k/config.yaml').is_file(): resume_run(folder/'runs/k', lambda s: None)
    else:
        args = [o.replace('pretrained: W', f'pretrained: {weights}') for o in kinds[kind]]
        begin(load_config(folder/'k.yaml', [*base, *args]), False, lambda s: None)

def fork(kind, folder, weights, rank, port):
    "A process of its own, forked from this one, which has imported everything"
    if pid := os.fork(): return pid
    code = 1
    try:
        with open(folder/f'log{rank}', 'a') as f:
            os.dup2(f.fileno(), 1)
            os.dup2(f.fileno(), 2)
        os.chdir(folder)
        n = ranks(kind)
        if n>1:
            os.environ |= dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE=str(n), RANK=str(rank),
                               LOCAL_WORLD_SIZE=str(n), LOCAL_RANK=str(rank), ACCELERATE_USE_CPU='true')
        work(kind, folder, weights)
        code = 0
    except BaseException:
        import traceback
        with open(folder/f'log{rank}', 'a') as f: traceback.print_exc(file=f)
    finally: os._exit(code)

def attempt(kind, folder, weights, seconds=None):
    "Run until the end, or until it is killed; gives whether it was, and how long it took"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    t = time.monotonic()
    pids,killed,codes = {fork(kind, folder, weights, r, port) for r in range(ranks(kind))},False,[]
    while pids:
        for p in [*pids]:
            got,status = os.waitpid(p, os.WNOHANG)
            if not got: continue
            pids.remove(p)
            codes.append(os.waitstatus_to_exitcode(status))
        late = seconds is not None and not killed and time.monotonic()-t>=seconds
        if late or any(c for c in codes) or time.monotonic()-t>600:
            killed = late and bool(pids)
            for p in pids: os.kill(p, signal.SIGKILL)
            for p in pids: os.waitpid(p, 0)
            if not late: raise SystemExit(f'{kind}: failed; see {folder}/log0\n'+(folder/'log0').read_text()[-3000:])
            break
        time.sleep(.002)
    return killed,time.monotonic()-t

def contents(folder):
    "All that a run comes to, but checkpoints, env.json, and files.json, a digest of seconds too; tensors bit by bit"
    import pandas as pd
    from safetensors.torch import load_file
    res,d = {},folder/'runs/k'
    for p in sorted(d.rglob('*')):
        name = str(p.relative_to(d))
        if p.name=='history.csv': res[name] = pd.read_csv(p).drop(columns='seconds').to_csv()
        elif name.endswith('files.json'):       # the history has seconds in it
            res[name] = {k:v for k,v in json.loads(p.read_text()).items() if k!='history.csv'}
        elif p.suffix=='.safetensors':
            res[name] = {k:(str(v.dtype),v.numpy().tobytes()) for k,v in load_file(p).items()}
        elif p.is_file() and p.suffix!='.part' and not name.startswith(('checkpoints','env.json','files.json')):
            res[name] = p.read_bytes()
    return res

def one_run(kind, whole, took, weights, rnd, most, folder):
    "A run that is killed up to so many times, and whether it came to the same"
    folder.mkdir()
    (folder/'k.yaml').write_text('name: k\nruns: runs\n')
    n,killed,moments = 0,True,[]
    while n<most and killed:
        moments.append(rnd.random())
        killed,_ = attempt(kind, folder, weights, moments[-1]*took)
        n += killed
    if killed: attempt(kind, folder, weights)
    now = contents(folder)
    bad = [k for k in {**whole, **now} if whole.get(k)!=now.get(k)]
    left = [p.name for p in (folder/'runs').rglob('*') if p.name.endswith('.part') or p.name=='.lock']
    if not bad: shutil.rmtree(folder)
    return dict(kills=n, moments=[round(o, 4) for o in moments], differs=bad, left=left)

def main():
    p = argparse.ArgumentParser()
    p.add_argument('--kills', type=int, default=100)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--kinds', nargs='*', default=[*kinds])
    p.add_argument('--out', type=Path, default=Path(__file__).with_suffix(''))
    a = p.parse_args()
    import accelerate, fastai.vision.all, safetensors.torch, sklearn.datasets, timm, torch
    import memo.all
    torch.set_num_threads(1)
    rnd,res = random.Random(a.seed),{}
    with tempfile.TemporaryDirectory(delete=False) if sys.version_info>=(3,12) else contextlib.nullcontext(
            tempfile.mkdtemp(prefix='kills')) as d:
        d = Path(d)
        torch.manual_seed(0)
        torch.save(timm.create_model('test_resnet', pretrained=False).state_dict(), d/'w.pth')
        for kind in a.kinds:
            (d/kind).mkdir()
            (d/kind/'k.yaml').write_text('name: k\nruns: runs\n')
            _,took = attempt(kind, d/kind, d/'w.pth')
            whole,todo,runs = contents(d/kind),max(1, round(share[kind]*a.kills/100)),[]
            while todo>0:
                k = min(todo, 5) if ranks(kind)>1 else 1
                runs.append(one_run(kind, whole, took, d/'w.pth', rnd, k, d/f'{kind} {len(runs)}'))
                todo -= runs[-1]['kills']
            res[kind] = dict(seconds=round(took, 2), runs=len(runs), kills=sum(r['kills'] for r in runs), each=runs,
                             equal=sum(not r['differs'] for r in runs), left=sum(bool(r['left']) for r in runs))
            print(kind, {k:v for k,v in res[kind].items() if k!='each'},
                  *[r for r in runs if r['differs']], flush=True)
    a.out.with_suffix('.json').write_text(json.dumps(dict(seed=a.seed, kinds=res), indent=1)+'\n')
    rows = [f"| {k} | {v['seconds']} | {v['kills']} | {v['runs']} | {v['equal']} |" for k,v in res.items()]
    total = [sum(v[k] for v in res.values()) for k in ('kills','runs','equal')]
    lines = ['# Killed and resumed', '', f'`python benchmarks/kills.py --kills {a.kills} --seed {a.seed}`: {total[0]} '
             f'kills; {total[2]} of {total[1]} runs ended with the history, predictions, scores, banks and model of an '
             'undisturbed run, bit by bit.', '',
             '| kind | seconds of a run | kills | runs | equal |', '|---|---|---|---|---|', *rows]
    a.out.with_suffix('.md').write_text('\n'.join(lines)+'\n')
    return 0 if total[1]==total[2] else 1

if __name__=='__main__': sys.exit(main())
