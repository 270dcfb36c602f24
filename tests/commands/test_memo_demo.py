"""memo-demo: its page in a headless Chromium, in two tabs at once; what it serves and what not; mistakes are one line

The page needs Gradio and Chromium: without them its tests are left out."""
import json, os, re, signal, socket, subprocess, sys, threading, time, urllib.error, urllib.request
from pathlib import Path
import pytest
from helpers.browser import Chromium
from helpers.errors import err
from helpers.runs import TWO_MEMORIES, of_a_run
from PIL import Image
from memo.arguments import options_last
from memo.cli import memo_demo
from memo.experiment.again import load_run
from memo.experiment.demo import demo_answer, demo_page

pytestmark = pytest.mark.usefixtures('unrendered')
train,run,copy = of_a_run(TWO_MEMORIES)

def free():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def fetched(url, **kwargs):
    "Status and text of an address"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, **kwargs), timeout=60) as f:
            return f.status,f.read().decode()
    except urllib.error.HTTPError as e: return e.code,e.read().decode()

class Served:
    "memo-demo as a process, in a folder of its own; `url` is its first line"
    def __init__(self, run, tmp): self.run,self.tmp = run,tmp
    def __enter__(self):
        args = sys.executable,'-W','ignore','-m','memo.cli','demo',str(self.run),'--memory','near','--port',str(free())
        # a proxy, as clusters have one, which cannot reach this machine's own address
        env = os.environ | dict.fromkeys(['HTTP_PROXY','http_proxy'], 'http://127.0.0.1:9')
        env |= dict(TMPDIR=str(self.tmp), PYTHONPATH=str(Path(__file__).parents[2]))
        self.p = subprocess.Popen(args, env=env, cwd=self.tmp, text=True, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE)
        self.url = self.p.stdout.readline().strip()
        assert re.fullmatch(r'http://127\.0\.0\.1:\d+/', self.url), self.url+self.p.communicate(timeout=60)[1]
        return self
    def ended(self):
        "Status and errors, once it was told to stop"
        self.p.send_signal(signal.SIGTERM)
        return self.p.communicate(timeout=60)[1],self.p.returncode
    def __exit__(self, *_):
        if self.p.poll() is None: self.p.kill()
        self.p.wait(60)

@pytest.fixture(scope='module')
def digits(run, tmp_path_factory):
    "Digits as files, and their answers"
    d,learn,res = tmp_path_factory.mktemp('digits'),load_run(run),{}
    for i,x in enumerate(learn.dls[2].dataset.x[:30]):
        Image.fromarray(x[0].numpy()).save(d/f'{i}.png')
        res[d/f'{i}.png'] = demo_answer(learn, d/f'{i}.png', 'near')
    return res

def shown(page): return page.js("document.querySelector('.memo .said').innerText")
def said(a): return f'{a.names[a.p.argmax()]} {a.p.max():.2f}',f'{a.names[a.before.argmax()]} {a.before.max():.2f}'

def upload(page, path):
    page.wait("document.querySelector('input[type=file]')")
    page.choose('input[type=file]', path)

def asked(url, path):
    "What the page's event answers to a file that a forged request names"
    forged = dict(data=[dict(path=path, meta=dict(_type='gradio.FileData'))], fn_index=0, session_hash='forged',
                  event_data=None, trigger_id=None)
    fetched(f'{url}gradio_api/queue/join', data=json.dumps(forged).encode(), method='POST',
            headers={'content-type':'application/json'})
    return fetched(f'{url}gradio_api/queue/data?session_hash=forged')[1]

def broken_off(url):
    "An upload whose browser goes away in the middle"
    host,port = url.split('/')[2].split(':')
    with socket.create_connection((host, int(port))) as s:
        s.sendall((f'POST /gradio_api/upload HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9999\r\n'
                   'Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"'
                   '\r\n\r\nabc').encode())
    time.sleep(1)

@pytest.mark.slow
def test_the_page(run, digits, tmp_path):
    pytest.importorskip('gradio', reason="gradio is not installed: pip install 'fastmemo[demo]'")
    if Chromium.binary is None: pytest.skip('chromium is not installed')
    (tmp_path/'no.png').write_bytes(b'no image')
    secret = Image.new('L', (8,8))
    secret.save(tmp_path/'secret.png')
    (tmp_path/'tmp').mkdir()
    with Served(run, tmp_path/'tmp') as s:
        with Chromium() as b:
            tabs = [b.page() for _ in range(2)]
            for p,w in zip(tabs, (1400,400)):
                p.size(w)
                p.open(s.url)
            some = [*digits][:6]
            for x,y in zip(some[::2], some[1::2]):      # both at once, and one after another
                for p,f in zip(tabs, (x,y)): upload(p, f)
                for p,f in zip(tabs, (x,y)):
                    on,off = said(digits[f])
                    p.wait(f"(document.querySelector('.memo .said')||{{}}).innerText?.includes({json.dumps(on)})")
                    assert re.search(f'with memory:\\s+{re.escape(on)}\\s+without:\\s+{re.escape(off)}', shown(p))
                    labels = p.js("[...document.querySelectorAll('.memo .cases figcaption')].map(o => o.innerText)")
                    assert [o.split() for o in labels]==[[c.label, 'similarity', f'{c.similarity:.2f}', 'weight',
                                                          f'{c.weight:.2f}'] for c in digits[f].cases]
                    assert p.js("[...document.querySelectorAll('.memo img')].every(o => o.naturalWidth==8)")
                    assert p.js('document.documentElement.scrollWidth<=innerWidth')
                    p.js("document.querySelector('[aria-label=Clear]').click()")
                    p.wait("document.querySelector('input[type=file]')")
            upload(tabs[0], tmp_path/'no.png')
            tabs[0].wait("document.body.innerText.includes('This is no image that can be read')")
            assert not any(p.said for p in tabs)
            urls = {u for p in tabs for u in p.urls if not u.startswith(('data:','blob:'))}
            assert all(u.startswith(s.url) or u=='about:blank' for u in urls), urls
            assert not any('file=' in u for u in urls)      # no picture is a file of the server's
        for o in (tmp_path/'secret.png', run/'config.yaml', run/'model.safetensors'):
            assert fetched(f'{s.url}gradio_api/file={urllib.request.quote(str(o))}')[0] in (403,404)
        for path in (str(tmp_path/'secret.png'), 'http://93.184.216.34/a.png', 'HTTPS://93.184.216.34/a.png'):
            assert '"success":false' in asked(s.url, path)
        for o in ('http://93.184.216.34/a.png', 'https%3A//93.184.216.34/a.png'):
            got = fetched(f'{s.url}gradio_api/file={o}')
            assert got==(403,'nothing is fetched'), got
        broken_off(s.url)
        assert fetched(s.url)[0]==200 and [*(tmp_path/'tmp').rglob('no.png')]
        error,status = s.ended()
        assert 'Disconnect' not in error and 'images are uploaded, not fetched' in error
        assert status==130 and error.endswith('\ninterrupted\n') and not [*(tmp_path/'tmp').rglob('*.png')]

def test_without_gradio(run, copy, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    monkeypatch.delenv('GRADIO_TEMP_DIR', raising=False)
    assert "which is not installed: pip install 'fastmemo[demo]'" in err(memo_demo, str(run))
    assert 'no such run folder' in err(memo_demo, str(run/'nope'))
    assert "fastmemo[demo]" in err(demo_page, load_run(run), 'near')

@pytest.mark.slow
def test_mistakes(run, tmp_path, monkeypatch):
    pytest.importorskip('gradio', reason="gradio is not installed: pip install 'fastmemo[demo]'")
    assert 'one of near, early' in err(memo_demo, str(run)) and 'give a run folder' in err(memo_demo)
    assert "'far' is not one of" in err(memo_demo, str(run), memory='far')
    assert '1 to 65535' in err(memo_demo, str(run), port=0)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen()
        port = s.getsockname()[1]
        assert f'port {port}: nothing can be served' in err(memo_demo, str(run), memory='near', port=port)
    assert 'host ::1: Gradio serves no IPv6 address' in err(memo_demo, str(run), memory='near', host='::1')
    assert 'host 192.0.2.1' in err(memo_demo, str(run), memory='near', host='192.0.2.1')
    assert 'no memory' in err(memo_demo, str(train(tmp_path, 'memories=null')))

def test_as_a_process(python, tmp_path):
    r = python('-m', 'memo.cli', 'demo', tmp_path, '--port', '7999')
    assert r.returncode==2 and r.stderr.strip().count('\n')==0 and 'is no run folder' in r.stderr
    got = options_last('memo-demo --port 7 --host 0.0.0.0 d --memory near --share'.split())
    assert got=='memo-demo d --port 7 --host 0.0.0.0 --memory near --share'.split()
