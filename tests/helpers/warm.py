"""Processes in forks of an interpreter that has imported torch and fastai: a command for .1 s of CPU instead of 6

Run as a script it is that interpreter. It imports nothing of memo or of the tests (a child does that anew), trains
nothing and starts no threads, and so may be forked. A child gets its arguments, working folder, environment and random
seeds as a process does; only the order of sets is the same in all children."""
import atexit, contextlib, gc, json, os, random, runpy, select, signal, subprocess
import sys, tempfile, threading, time, traceback, types
from pathlib import Path

# the driver of a GPU does not survive a fork: there everything is a new process
can_fork = hasattr(os, 'pidfd_open') and not Path('/dev/nvidiactl').exists()

def _as_code(code):
    "What a process ends with where Python ends with `SystemExit(code)`"
    if code is None: return 0
    if isinstance(code, int): return code & 255
    print(code, file=sys.stderr)
    return 1

def _main(job):
    "What the interpreter does with `job`'s arguments: `-c code`, `-m module`, or a file"
    args = job['args']
    while args[0]=='-W':
        import warnings
        warnings.simplefilter(args[1])
        args = args[2:]
    first = args[0]
    sys.argv[:] = [first, *args[2:]] if first in ('-c','-m') else args
    sys.path[0] = '' if first=='-c' else os.getcwd() if first=='-m' else str(Path(first).resolve().parent)
    sys.path[1:1] = [o for o in job['env'].get('PYTHONPATH', '').split(os.pathsep) if o]
    if first=='-c':
        sys.modules['__main__'] = types.ModuleType('__main__')
        exec(compile(args[1], '<string>', 'exec'), sys.modules['__main__'].__dict__)
    elif first=='-m': runpy.run_module(args[1], run_name='__main__', alter_sys=True)
    else: runpy.run_path(first, run_name='__main__')

def _child(job):
    "In the fork: be the process, and end"
    from pictures import no_rendering
    sys.modules.pop('pictures', None)
    code = 1
    try:
        os.setsid()
        for fd,path,how in ((0,os.devnull,os.O_RDONLY), (1,job['out'],os.O_WRONLY), (2,job['err'],os.O_WRONLY)):
            f = os.open(path, how)
            os.dup2(f, fd)
            os.close(f)
        os.environ.clear()
        os.environ.update(job['env'])
        os.chdir(job['cwd'])
        random.seed()
        sys.modules['numpy'].random.seed()
        sys.modules['torch'].seed()
        try:
            with contextlib.nullcontext() if job['render'] else no_rendering(): _main(job)
        except SystemExit as e: code = _as_code(e.code)
        except BaseException: traceback.print_exc()
        else: code = 0
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally: os._exit(code)

def _serve():
    "Fork a child for each job of a line of standard input; say how they ended. The end of the input ends everything"
    ask,say = os.dup(0),os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    # third-party packages only, with one thread: a fork has none of the others, and waits for them
    import fastai.vision.all, fastai.distributed, matplotlib.pyplot, numpy, pandas, safetensors.torch, scipy.stats
    import sklearn.datasets, sklearn.metrics, timm, torch, torchvision, yaml
    assert len(os.listdir('/proc/self/task'))==1, 'more than one thread: OMP_NUM_THREADS=1 and the like have to be set'
    gc.collect()
    gc.freeze()
    jobs = os.fdopen(ask)
    def answer(o): os.write(say, (json.dumps(o)+'\n').encode())
    answer('ready')
    for line in jobs:
        todo,running,ended = json.loads(line),{},{}
        for i,job in enumerate(todo):
            if (pid := os.fork())==0:
                os.close(ask)
                os.close(say)
                _child(job)
            running[os.pidfd_open(pid)] = i,pid,time.monotonic()+job['timeout']
        while running:
            # a line or an end of the input while jobs run: whoever asked has gone
            wait = min(t for *_,t in running.values())-time.monotonic()
            ready,*_ = select.select([*running, ask], [], [], max(0, wait))
            for fd,(i,pid,until) in [*running.items()]:
                late = ask in ready or time.monotonic()>=until
                if fd not in ready and not late: continue
                if fd not in ready:
                    try: os.killpg(pid, signal.SIGKILL)
                    except ProcessLookupError: os.kill(pid, signal.SIGKILL)     # it has no session of its own yet
                _,status,used = os.wait4(pid, 0)
                os.close(fd)
                del running[fd]
                ended[i] = os.waitstatus_to_exitcode(status),used.ru_utime+used.ru_stime,fd not in ready
                if ended[i][0]:         # the others wait for it
                    for k,(j,p,t) in running.items(): running[k] = j,p,min(t, time.monotonic()+5)
            if ask in ready: return
        answer([ended[i] for i in range(len(todo))])

class Warm:
    "The interpreter, started when first asked for something"
    def __init__(self):
        self.process,self.cpu,self.dir = None,0.,tempfile.TemporaryDirectory()
        # not that of the test that happens to be the first; pandas imports pyarrow where that is, whose allocator would
        # start a thread
        self.env = os.environ | dict(JE_ARROW_MALLOC_CONF='background_thread:false')
    def start(self):
        log = Path(self.dir.name)/'log'
        with log.open('w') as f:
            self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=f, text=True, start_new_session=True, env=self.env, cwd='/')
        assert self.process.stdout.readline()=='"ready"\n', log.read_text()
    def run(self, *jobs):
        "Run processes at the same time, each a dict of what `job` takes; of each, what subprocess.run gives"
        if self.process is None: self.start()
        d = Path(tempfile.mkdtemp(dir=self.dir.name))
        def job(i, args, cwd='.', env=None, timeout=600, render=True):
            for o in ('out','err'): (d/f'{o}{i}').touch()
            return dict(args=[*map(str, args)], cwd=os.path.abspath(cwd), env={**os.environ} if env is None else env,
                        timeout=timeout, render=render, out=str(d/f'out{i}'), err=str(d/f'err{i}'))
        jobs = [job(i, **o) for i,o in enumerate(jobs)]
        try:
            self.process.stdin.write(json.dumps(jobs)+'\n')
            self.process.stdin.flush()
            ended,res = json.loads(self.process.stdout.readline()),[]
        except BaseException:       # a test out of time: its answer would be taken for the next one's
            self.process.stdin.close()
            self.process = None
            raise
        for o,(code,cpu,late) in zip(jobs, ended):
            out,err = (Path(o[k]).read_text() for k in ('out','err'))
            self.cpu += cpu
            if late and not any(o[0] for o in ended if not o[2]):       # else another failed, and this waited for it
                raise subprocess.TimeoutExpired(o['args'], o['timeout'], out, err)
            res.append(subprocess.CompletedProcess(o['args'], code, out, err))
        return res
    def close(self):
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait(60)
        self.dir.cleanup()

if __name__=='__main__': _serve()
else: warm = Warm()
