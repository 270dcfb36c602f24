"Files that know whether they are whole, and folders that one training at a time writes to"
import json, os, random, signal, subprocess, sys, threading
from pathlib import Path
import pytest, torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from memo.core import MemoError, write_text
from memo.files import check_tensors, check_zip, locked, owned, write_tensors

def flipped(raw, at, rnd):
    b = bytearray(raw)
    b[at] ^= 1<<rnd.randrange(8)
    return bytes(b)

def same(a, b): return a.keys()==b.keys() and all(a[k].dtype==b[k].dtype and a[k].equal(b[k]) for k in a)

made = dict(x=torch.randn(40, 7), y=torch.arange(5), empty=torch.zeros(0, 3), half=torch.ones(3).half())

def write_pt(p): torch.save(made, p)
def write_st(p): write_tensors(made, p, dict(memo='{"kind": "a \\"b\\" \u00e4"}', other='x'))

@pytest.mark.parametrize('write,check,load', [(write_pt,check_zip,torch.load), (write_st,check_tensors,load_file)],
                         ids=['torch','safetensors'])
def test_a_flipped_byte_is_noticed_or_changes_nothing(tmp_path, write, check, load):
    p,rnd,noticed = tmp_path/'a',random.Random(0),0
    write(p)
    check(p)
    raw = p.read_bytes()
    for _ in range(300):
        p.write_bytes(flipped(raw, rnd.randrange(len(raw)), rnd))
        try: check(p)
        except MemoError as e:
            assert '\n' not in str(e) and len(str(e))<300 and str(p) in str(e)
            noticed += 1
            continue
        try: assert same(load(p), made)
        except AssertionError: raise
        except Exception: pass      # whatever reads it says so
    assert noticed>100

@pytest.mark.parametrize('write,check', [(write_pt,check_zip), (write_st,check_tensors)], ids=['torch','safetensors'])
@pytest.mark.parametrize('n', [0, 10, -1, -100])
def test_a_cut_file(tmp_path, write, check, n):
    p = tmp_path/'a'
    write(p)
    p.write_bytes(p.read_bytes()[:n])
    if check is check_zip or n<-1 or n==-1:
        with pytest.raises(MemoError): check(p)

def test_what_others_wrote_passes(tmp_path):
    save_file(made, tmp_path/'a', metadata=dict(checksum='mine'))
    check_tensors(tmp_path/'a')
    save_file(made, tmp_path/'a')
    check_tensors(tmp_path/'a')

def test_the_header_keeps_what_it_is_given(tmp_path):
    write_st(tmp_path/'a')
    with safe_open(tmp_path/'a', 'pt') as f: meta = f.metadata()
    assert json.loads(meta['memo'])=={'kind':'a "b" \u00e4'} and meta['other']=='x' and meta['checksum'][:6]=='crc32:'
    assert same(load_file(tmp_path/'a'), made)

def test_a_folder_has_one_owner(tmp_path):
    got = []
    def other():
        try:
            with owned(tmp_path): got.append('owned')
        except MemoError as e: got.append(str(e))
    with owned(tmp_path):
        t = threading.Thread(target=other)
        t.start(), t.join()
    other()
    assert 'in use by another training' in got[0] and got[1]=='owned' and not [*tmp_path.iterdir()]

def test_an_error_lets_go_of_it(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with owned(tmp_path): raise KeyboardInterrupt
    with owned(tmp_path): pass

def test_another_process_and_one_that_was_killed(tmp_path, python):
    src = ('import os,signal,sys; from memo.files import *\n'
           'with owned(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL) if sys.argv[2]=="die" else None')
    assert python('-c', src, tmp_path, 'die').returncode==-9 and (tmp_path/'.lock').is_file()
    with owned(tmp_path):       # which the dead one holds no more
        r = python('-c', src, tmp_path, 'live')
        assert r.returncode!=0 and 'in use by another training' in r.stderr
    assert python('-c', src, tmp_path, 'live').returncode==0 and not [*Path(tmp_path).iterdir()]

WORKERS = '''
import os, sys, time
sys.path.insert(0, sys.argv[1])
from memo.files import locked, owned
hold = owned(sys.argv[2]) if sys.argv[3]=='owned' else locked(sys.argv[2], str)
with hold:
    if not os.fork(): print(os.getpid(), flush=True)
    time.sleep(60)
'''

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork here')
@pytest.mark.parametrize('how', ['owned','locked'])
def test_a_killed_process_leaves_no_lock_to_its_workers(tmp_path, repo, how):
    "A loader's workers look for their process every five seconds"
    args = [sys.executable, '-c', WORKERS, str(repo), str(tmp_path), how]
    p = subprocess.Popen(args, stdout=subprocess.PIPE, text=True)
    worker = int(p.stdout.readline())
    try:
        with pytest.raises(MemoError, match='not mine'), locked(tmp_path, lambda: 'not mine'): pass
        p.kill()
        p.wait()
        os.kill(worker, 0)      # it lives
        with locked(tmp_path, str): pass
    finally: os.kill(worker, signal.SIGKILL)

def test_a_name_that_is_no_unicode_ends_no_writing(tmp_path):
    write_text(tmp_path/'a.csv', f'name\n{os.fsdecode(bytes([255]))} größe\n')
    assert (tmp_path/'a.csv').read_text(encoding='utf-8')=='name\n\\udcff größe\n'
