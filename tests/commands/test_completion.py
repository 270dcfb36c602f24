"The Tab key: what a shell gets when it asks a command how to go on, without torch"
import os, subprocess, sys
from pathlib import Path
import pytest

pytest.importorskip('argcomplete')

def asked(line, tmp_path, name=None):
    "What a shell is told for `line`, the cursor at its end"
    out = tmp_path/'answer'
    env = os.environ | dict(_ARGCOMPLETE='1', COMP_LINE=line, COMP_POINT=str(len(line)), COMP_TYPE='9',
                            _ARGCOMPLETE_STDOUT_FILENAME=str(out), _ARGCOMPLETE_COMP_WORDBREAKS=' \t\n"\'><=;|&(:')
    cmd = Path(sys.executable).with_name(name or line.split()[0])
    code = f"import runpy,sys; sys.argv=[{str(cmd)!r}]\ntry: runpy.run_path(sys.argv[0], run_name='__main__')\n" \
           "finally: print('torch' in sys.modules, file=sys.stderr)"
    # argcomplete ends the process at once
    code = ("import os,sys; end = os._exit\ndef say(c):\n    print('torch' in sys.modules, file=sys.stderr, flush=True)\n"
            f"    end(c)\nos._exit = say\n{code}")
    r = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert 'True' not in r.stderr and 'Traceback' not in r.stderr, r.stderr
    return {o.rstrip() for o in out.read_text().split('\013')} if out.is_file() else set()

@pytest.mark.parametrize('line,some,none', [
    ('memo-train quick', {'quickstart'}, {'tail/digits/plain'}),
    ('memo-train tail/digits/pl', {'tail/digits/plain'}, {'quickstart'}),
    ('memo-train quickstart --dr', {'--dry-run'}, {'--debug'}),
    ('memo-train quickstart --', {'--resume','--overwrite','--version'}, {'--pdb','--xtra'}),
    ('memo-train quickstart memory.he', {'memory.head=','memory.head.k='}, {'memory.bank='}),
    ('memo-train quickstart memory.head=', {'vote','add'}, {'SlotBank'}),
    ('memo-train quickstart memory.bank=S', {'SlotBank'}, {'vote'}),
    ('memo-train quickstart memory.policy=', {'fifo','reservoir'}, {'vote'}),
    ('memo-train quickstart track=', {'csv','tensorboard'}, {'vote'}),
    ('memo-train quickstart memory.balanced=', {'true','false'}, set()),
    ('memo-train quickstart seed=1 train.ep', {'train.epochs='}, set()),
    ('memo-train --list h', {'head'}, {'quickstart'}),
    ('memo-train x', {'xy.yaml'}, {'xz.txt'}),
    ('memo-eval r', {'runs/'}, set()), ('memo-speed --ba', {'--batch-sizes'}, set())])
def test_what_may_come_next(tmp_path, line, some, none):
    for o in ('xy.yaml','xz.txt'): (tmp_path/o).touch()
    (tmp_path/'runs').mkdir()
    got = asked(line, tmp_path)
    assert some<=got and not none&got, got

def test_of_a_file_of_ones_own(tmp_path):
    "Its own keys, and a broken file ends nothing"
    (tmp_path/'own.yaml').write_text('data: fashion_lt\nmemory: {bank: ClassBank, head: prototype}')
    assert 'data.channels=' in asked('memo-train own.yaml data.', tmp_path)
    (tmp_path/'own.yaml').write_text('data: [')
    assert not [o for o in asked('memo-train own.yaml data.', tmp_path) if o.startswith('data.')]

def test_in_a_shell(tmp_path):
    "As bash does it, with the line that the page about it says"
    at = Path(sys.executable).parent
    reg = at/'register-python-argcomplete'
    if not reg.is_file(): pytest.skip('argcomplete has no command here')
    code = (f'PATH={at}:$PATH; eval "$({reg} memo-train)"; COMP_LINE="memo-train quick"; COMP_POINT=${{#COMP_LINE}}; '
            'COMP_WORDS=(memo-train quick); COMP_CWORD=1; COMP_TYPE=9; _python_argcomplete memo-train; '
            'echo "${COMPREPLY[@]}"')
    r = subprocess.run(['bash','-c',code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert r.stdout.split()==['quickstart'], r.stderr
