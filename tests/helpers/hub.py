"An endpoint on the loopback that speaks as much of the Hugging Face Hub's protocol as a push and a download need"
import base64, hashlib, json, re, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

class FakeHub:
    """`repos`: name -> dict(private, commits: list of dict path -> bytes); `seen`: requests as (method, path, token);
    `refuse`: a function of method and path that gives a code to refuse with, 'drop' to hang up half way, or None"""
    def __init__(self, token='secret'):
        self.repos,self.lfs,self.seen,self.token,self.refuse = {},{},[],token,lambda method, path: None
        hub = self
        class Handler(_Handler): pass
        Handler.hub = hub
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.server.handle_error = lambda *args: None       # where it has hung up
        self.url = f'http://127.0.0.1:{self.server.server_address[1]}'
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
    def close(self):
        self.server.shutdown()
        self.server.server_close()
    def files(self, repo): return self.repos[repo]['commits'][-1]

def sha_of(repo, i): return hashlib.sha1(f'{repo}{i}'.encode()).hexdigest()

class _Handler(BaseHTTPRequestHandler):
    protocol_version,hub = 'HTTP/1.1',None
    def log_message(self, *args): pass
    def send(self, code, body=b'', kind='application/json', head=True, **headers):
        if not isinstance(body, bytes): body = json.dumps(body).encode()
        self.send_response(code)
        for k,v in {'Content-Type':kind, 'Content-Length':str(len(body)), **headers}.items(): self.send_header(k, v)
        self.end_headers()
        if head: self.wfile.write(body)
    def body(self):
        if self.headers.get('Transfer-Encoding')!='chunked':
            return self.rfile.read(int(self.headers.get('Content-Length', 0)))
        res = b''
        while n := int(self.rfile.readline(), 16):
            res += self.rfile.read(n)
            self.rfile.readline()
        self.rfile.readline()
        return res
    def begin(self, method):
        self.path = unquote(self.path.split('?')[0])
        auth = (self.headers.get('Authorization') or '').removeprefix('Bearer ')
        self.hub.seen.append((method,self.path,auth))
        how = self.hub.refuse(method, self.path)
        if how=='drop':
            self.rfile.read(min(1000, int(self.headers.get('Content-Length', 0))))
            self.connection.shutdown(2)
            raise ConnectionAbortedError
        data = self.body() if method in ('POST','PUT') else b''
        if how is not None:
            self.send(how, {'error':f'no {self.path} for {auth}'})
            raise ConnectionAbortedError
        return data,auth
    def denied(self, repo, auth):
        r = self.hub.repos.get(repo)
        if r is not None and (auth==self.hub.token or not r['private']): return False
        self.send(404, {'error':'Repository not found'}, **{'X-Error-Code':'RepoNotFound'})
        return True

    def do_POST(self):
        data,auth = self.begin('POST')
        hub = self.hub
        if auth!=hub.token: return self.send(401, {'error':f'Invalid credentials {auth}'})
        if self.path=='/api/repos/create':
            d = json.loads(data)
            name = f"{d['organization']}/{d['name']}" if d.get('organization') else f"me/{d['name']}"
            old = name in hub.repos
            mine = bool(d.get('private') or d.get('visibility')=='private')
            if not old: hub.repos[name] = dict(private=mine, commits=[{}])
            said = {'url':f'{hub.url}/{name}', 'name':name, 'error':'You already created it'}
            return self.send(409 if old else 200, said)
        if m := re.fullmatch(r'/api/models/(.+)/preupload/(.+)', self.path):
            def mode(p): return 'lfs' if p.endswith('.safetensors') else 'regular'
            return self.send(200, {'files':[{'path':o['path'], 'uploadMode':mode(o['path']), 'shouldIgnore':False}
                                            for o in json.loads(data)['files']]})
        if m := re.fullmatch(r'/(.+)\.git/info/lfs/objects/batch', self.path):
            def put(o): return {'upload':{'href':f"{hub.url}/lfs/{o['oid']}", 'header':{}}}
            objects = [{**o, 'actions':put(o)} for o in json.loads(data)['objects']]
            return self.send(200, {'transfer':'basic', 'objects':objects}, 'application/vnd.git-lfs+json')
        if m := re.fullmatch(r'/api/models/(.+)/commit/(.+)', self.path):
            r = hub.repos[m[1]]
            now = dict(r['commits'][-1])
            for line in data.decode().splitlines():
                o = json.loads(line)
                if o['key']=='file': now[o['value']['path']] = base64.b64decode(o['value']['content'])
                if o['key']=='deletedFile': now.pop(o['value']['path'])
                if o['key']=='lfsFile': now[o['value']['path']] = hub.lfs[o['value']['oid']]
            r['commits'].append(now)
            oid = sha_of(m[1], len(r['commits'])-1)
            return self.send(200, {'commitUrl':f'{hub.url}/{m[1]}/commit/{oid}', 'commitOid':oid, 'hookOutput':''})
        if self.path=='/api/validate-yaml': return self.send(200, {'errors':[], 'warnings':[]})
        self.send(404, {'error':self.path})

    def do_PUT(self):
        data,_ = self.begin('PUT')
        self.hub.lfs[self.path.rpartition('/')[2]] = data
        self.send(200)

    def info(self, repo, rev):
        cs = self.hub.repos[repo]['commits']
        i = next((i for i in range(len(cs)) if sha_of(repo, i)==rev), len(cs)-1 if rev in (None,'main') else None)
        return i,cs
    def do_HEAD(self): self.do_GET(True)
    def do_GET(self, head=False):
        _,auth = self.begin('HEAD' if head else 'GET')
        if m := re.fullmatch(r'/api/models/([^/]+/[^/]+)(?:/revision/(.+))?', self.path):
            if self.denied(m[1], auth): return
            i,cs = self.info(m[1], m[2])
            if i is None: return self.send(404, {'error':'Invalid rev'}, **{'X-Error-Code':'RevisionNotFound'})
            about = dict(_id='1', id=m[1], modelId=m[1], sha=sha_of(m[1], i), tags=[], downloads=0)
            return self.send(200, dict(about, private=self.hub.repos[m[1]]['private'],
                                       siblings=[{'rfilename':k} for k in cs[i]]))
        if m := re.fullmatch(r'/api/models/([^/]+/[^/]+)/tree/([^/]+).*', self.path):
            if self.denied(m[1], auth): return
            i,cs = self.info(m[1], m[2])
            return self.send(200, [{'type':'file', 'path':k, 'size':len(v), 'oid':hashlib.sha1(v).hexdigest()}
                                   for k,v in cs[i].items()])
        if m := re.fullmatch(r'/([^/]+/[^/]+)/resolve/([^/]+)/(.+)', self.path):
            if self.denied(m[1], auth): return
            i,cs = self.info(m[1], m[2])
            if i is None or m[3] not in cs[i]: return self.send(404, {}, **{'X-Error-Code':'EntryNotFound'})
            b = cs[i][m[3]]
            more = {'X-Repo-Commit':sha_of(m[1], i), 'ETag':f'"{hashlib.sha1(b).hexdigest()}"'}
            return self.send(200, b, 'application/octet-stream', not head, **more)
        self.send(404, {'error':self.path})
