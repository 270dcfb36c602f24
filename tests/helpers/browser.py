"Pages of a headless Chromium, driven through its debugging port"
import base64, itertools, json, shutil, subprocess, tempfile, time, urllib.request
from pathlib import Path

class Page:
    "A tab"
    def __init__(self, url):
        from websockets.sync.client import connect
        self.ws,self.n,self.urls,self.said = connect(url, max_size=None),itertools.count(1),[],[]
        for o in ('Page','Network','Runtime','DOM'): self.send(f'{o}.enable')

    def send(self, method, **params):
        "The result of a command; what happens meanwhile is noted"
        n = next(self.n)
        self.ws.send(json.dumps(dict(id=n, method=method, params=params)))
        while True:
            m = json.loads(self.ws.recv(timeout=120))
            if m.get('method')=='Network.requestWillBeSent': self.urls.append(m['params']['request']['url'])
            if m.get('method')=='Runtime.exceptionThrown': self.said.append(m['params']['exceptionDetails']['text'])
            if m.get('id')==n:
                assert 'error' not in m, f"{method}: {m['error']}"
                return m['result']

    def js(self, code):
        r = self.send('Runtime.evaluate', expression=code, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in r, r['exceptionDetails']
        return r['result'].get('value')

    def wait(self, code, seconds=120):
        "Until `code` is true of the page"
        end = time.monotonic()+seconds
        while not self.js(f'!!({code})'):
            assert time.monotonic()<end, f"{code}: not within {seconds} s; {self.js('document.body.innerText')[-500:]}"
            time.sleep(.1)

    def open(self, url):
        self.send('Page.navigate', url=url)
        self.wait("document.readyState=='complete'")

    def size(self, width, height=900):
        self.send('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=False)

    def choose(self, selector, path):
        "Give a file input a file"
        root = self.send('DOM.getDocument')['root']['nodeId']
        node = self.send('DOM.querySelector', nodeId=root, selector=selector)['nodeId']
        self.send('DOM.setFileInputFiles', nodeId=node, files=[str(Path(path).resolve())])

    def picture(self, path):
        r = self.send('Page.captureScreenshot', format='png', captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(r['data']))

class Chromium:
    "A browser with a profile of its own; `page()` opens a tab"
    binary = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    def __enter__(self):
        self.dir = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        off = 'gpu','dev-shm-usage','background-networking','component-update','sync','extensions'
        self.p = subprocess.Popen([self.binary, '--headless=new', '--no-sandbox', '--no-first-run',
                                   '--remote-debugging-port=0', f'--user-data-dir={self.dir.name}',
                                   *(f'--disable-{o}' for o in off), 'about:blank'], stderr=subprocess.DEVNULL)
        f,end = Path(self.dir.name)/'DevToolsActivePort',time.monotonic()+120
        while not (f.is_file() and f.read_text().count('\n')):
            assert self.p.poll() is None and time.monotonic()<end, 'chromium does not start'
            time.sleep(.1)
        self.port = int(f.read_text().split()[0])
        return self

    def page(self):
        r = urllib.request.Request(f'http://127.0.0.1:{self.port}/json/new?about:blank', method='PUT')
        with urllib.request.urlopen(r, timeout=60) as f: return Page(json.load(f)['webSocketDebuggerUrl'])

    def __exit__(self, *_):
        self.p.terminate()
        self.p.wait(30)
        self.dir.cleanup()
