"A command on a real terminal of so many columns: what it writes, its exit status, whether the terminal is as before"
import fcntl, os, pty, select, struct, subprocess, sys, termios, time
from pathlib import Path

class Shown:
    "What a command wrote on a terminal"
    def __init__(self, raw, status, same, first): self.raw,self.status,self.same,self.first = raw,status,same,first
    @property
    def screen(self):
        "Lines as they stand in the end: what is behind a carriage return is written over from the left"
        res = []
        for line in self.raw.decode().replace('\r\n', '\n').split('\n'):
            row = ''
            for o in line.split('\r'): row = o+row[len(o):]
            res.append(row.rstrip())
        return res

def on_terminal(cmd, columns=100, ctrl_c=None, env=None, cwd=None, timeout=300):
    "Run a command on a pty; `ctrl_c`: a text after which the key is pressed"
    master,slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('HHHH', 24, columns, 0, 0))
    was,t0 = termios.tcgetattr(slave),time.perf_counter()
    keep = {k:v for k,v in os.environ.items() if k not in ('COLUMNS','LINES','NO_COLOR')}
    more = keep | dict(TERM='xterm') | (env or {})
    def own(): os.setsid(), fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    p = subprocess.Popen([*map(str, cmd)], stdin=slave, stdout=slave, stderr=slave, env=more, cwd=cwd, preexec_fn=own)
    raw,first = b'',None
    while time.perf_counter()-t0<timeout:
        if select.select([master], [], [], .1)[0]:
            raw += os.read(master, 65536)
            first = first or time.perf_counter()-t0
            if ctrl_c and ctrl_c in raw: os.write(master, b'\x03'); ctrl_c = None
        elif p.poll() is not None: break
    else: p.kill()
    same = termios.tcgetattr(slave)==was
    for o in (master,slave): os.close(o)
    return Shown(raw, p.wait(), same, first)

def memo_train(*args, **kwargs):
    "memo-train on a terminal"
    return on_terminal([sys.executable, Path(sys.executable).with_name('memo-train'), *args], **kwargs)
