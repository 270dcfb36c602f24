"""Seconds until an installed memo says something: to the first line, and to the end, in an empty folder

    python benchmarks/first_line.py [PYTHON] [--repeats 5] [--table]

PYTHON is the interpreter of the environment that memo is installed in, by default this one. --table also trains the
whole quickstart, once."""
import argparse, os, statistics, subprocess, sys, tempfile, time
from pathlib import Path

def watch(cmd, first_only=False):
    "Seconds from the start of the process to its first line and to its end, and that line"
    with tempfile.TemporaryDirectory() as d:
        # bytes as they come: nothing is buffered on this side
        t0 = time.perf_counter()
        p = subprocess.Popen(cmd, cwd=d, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0, env=env(d))
        line = b''
        while not line.endswith(b'\n') and (c := p.stdout.read(1)): line += c
        first = time.perf_counter()-t0
        if first_only: p.kill()
        rest = p.stdout.read() if first_only else p.communicate()[0]
        end = time.perf_counter()-t0
        if not first_only and p.returncode: sys.exit((line+rest).decode())
        p.wait()
        return first,end,line.decode().strip()

def env(home):
    "No settings, no caches, no path of the caller's; `home` is thrown away"
    keep = {k:v for k,v in os.environ.items() if k in ('PATH','LANG','OMP_NUM_THREADS')}
    return keep | dict(HOME=home, XDG_CACHE_HOME=f'{home}/cache')

def main():
    p = argparse.ArgumentParser()
    p.add_argument('python', nargs='?', default=sys.executable)
    p.add_argument('--repeats', type=int, default=5)
    p.add_argument('--table', action='store_true')
    a = p.parse_args()
    py = Path(a.python).absolute()      # not resolved: the link in bin is what makes it an environment's
    train = [str(py), str(py.with_name('memo-train'))]
    print(f'{"memo-train ...":<14} {"first line":>10} {"end":>7}   seconds, medians of {a.repeats}')
    for args,short in ((['--help'], False), (['--list'], False), (['quickstart'], True)):
        runs = [watch(train+args, short) for _ in range(a.repeats)]
        first,end = (statistics.median(r[i] for r in runs) for i in (0,1))
        print(f'{" ".join(args):<14} {first:10.3f} {"" if short else f"{end:.3f}":>7}   {runs[0][2]}', flush=True)
    if not a.table: return
    first,end,_ = watch([*train, 'quickstart'])
    print(f'{"quickstart":<14} {first:10.3f} {end:7.1f}   once, with its table')

main()
