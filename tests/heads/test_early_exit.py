"""Rows that a memory answers early skip the rest of the network: the answers are those of the whole network with the
memory's put in, nothing behind is run where all leave, and each row keeps what is its own"""
import copy, functools, io, pickle, pytest, threading, timm, torch, torchvision, warnings
from contextlib import ExitStack
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from helpers.errors import err
from helpers.tensors import close, draw
from memo.banks.classes import ClassBank
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.heads.attach import Gate, attach, detach, find_head, holder, memories
from memo.heads.base import MemoryHead
from memo.heads.calls import Step, in_step
from memo.heads.gate import ExitHead, GateHead
from memo.heads.mixture import VoteHead
from memo.heads.places import Watched
from memo.heads.retrieval import RetrievalHead

C,N = 5,6

class Told(ExitHead):
    "Answers the images that it was told of, by their features, with outputs that are its own for each image"
    def tell(self, keys, hits, seed=9):
        self.register_buffer('keys', keys.float())
        self.register_buffer('hits', torch.as_tensor(hits).bool())
        self.register_buffer('says_', draw(len(keys), C, seed=seed).log_softmax(1))
        self.asked_ = []
        return self
    def which(self, z): return torch.cdist(z.float(), self.keys, compute_mode='donot_use_mm_for_euclid_dist').argmin(1)
    def decide(self, z, item=None, group=None, n_classes=None):
        i = self.which(z)
        if not torch.compiler.is_compiling(): self.asked_.append((i,item,group))
        return self.hits[i],self.says_[i],self.hits[i].float()

def bank(d=4, n=12, c=C, seed=1):
    b = SlotBank(n, policy='fifo', n_classes=c)
    b.write(draw(n, d, seed=seed), y=torch.arange(n)%c, item=torch.arange(n))
    return b
def timms(name, **kw): return lambda: timm.create_model(name, num_classes=C, **kw)
families = dict(
    resnet=(timms('resnet18'), ['layer1','layer2','layer3','layer4']),
    vit=(timms('vit_tiny_patch16_224', img_size=32, depth=4), ['blocks.0','blocks.1','blocks.3']),
    convnext=(timms('convnext_atto'), [f'stages.{i}' for i in range(4)]),
    efficientnet=(timms('efficientnet_b0'), [f'blocks.{i}' for i in range(7)]),
    swin=(timms('swin_tiny_patch4_window7_224', img_size=32, embed_dim=24, num_heads=(1,2,4,8)),
          [f'layers.{i}' for i in range(4)]),
    mixer=(lambda: timm.models.mlp_mixer.MlpMixer(C, 32, patch_size=8, num_blocks=3, embed_dim=48),
           [f'blocks.{i}' for i in range(3)]),
    mobilenet=(timms('mobilenetv3_small_050'), [f'blocks.{i}' for i in range(6)]),
    regnet=(timms('regnetx_002'), ['s1','s2','s3','s4']),
    tv_resnet=(lambda: torchvision.models.resnet18(num_classes=C), ['layer1','layer2','layer3','layer4']),
    tv_vit=(lambda: torchvision.models.VisionTransformer(32, 8, 3, 2, 32, 64, num_classes=C),
            [f'encoder.layers.encoder_layer_{i}' for i in range(3)]),
    tv_densenet=(lambda: torchvision.models.densenet121(num_classes=C), [f'features.transition{i}' for i in (1,2,3)]))
# every stage: the second of each family at once, the last with the slow ones, the others in the night
def when(i, n): return [] if i==1 else [pytest.mark.slow if i==n-1 else pytest.mark.nightly]
stages = [pytest.param(f, t, marks=when(i, len(ts))) for f,(_,ts) in families.items() for i,t in enumerate(ts)]
X = draw(N, 3, 32, 32)

@functools.cache
def network(family):
    "A network that tells images apart, and what it answers to them"
    torch.manual_seed(0)
    m = families[family][0]().eval()
    for o in m.modules():       # what is nearly off in a new network would hide what goes through it
        if isinstance(o, nn.Linear) and o.weight.abs().max()<.5: o.weight.data.mul_(4)
        for k in ('gamma','weight'):
            p = getattr(o, k, None)
            if isinstance(p, nn.Parameter) and p.ndim==1 and p.abs().max()<1e-3: p.data.fill_(.5)
    with torch.no_grad(): return m,m(X)

def seen_at(model, head, x=X):
    "Features that a head sees of images, in the network without memories"
    heads = [m for m in model.modules() if isinstance(m, MemoryHead)]
    with in_step(heads, Step(off=True)) as step, torch.no_grad(): out = model(x)
    step.close(out)
    return step.seen(head).z

class attached:
    "A context in which a network has memories that were told of images, each place with those it answers"
    def __init__(self, model, hits, name='exit'): self.model,self.hits,self.name = model,hits,name
    def __enter__(self):
        self.heads = []
        for i,(at,h) in enumerate(self.hits):
            head = Told(SlotBank(4, n_classes=C))
            attach(self.model, head, at=at, name=f'{self.name}{i}', x=X[:2])
            head.bank.write(torch.zeros(4, seen_at(self.model, head).shape[1]), torch.arange(4))
            self.heads.append(head.tell(seen_at(self.model, head), h, seed=10+i))
        return self.heads[0] if len(self.heads)==1 else self.heads
    def __exit__(self, *_):
        for i in range(len(self.hits)): detach(self.model, f'{self.name}{i}')

class Rows:
    "A context that counts the rows each module is called with"
    def __init__(self, model): self.model = model
    def __enter__(self):
        self.calls,self.hooks = [],[]
        names = {m:n for n,m in self.model.named_modules()}
        own = {o for h in self.model.modules() if isinstance(h, MemoryHead) for o in h.modules()}
        def note(m, a, kw):
            t = next((o for o in (*a, *kw.values()) if torch.is_tensor(o)), None)
            self.calls.append((names[m],None if t is None else len(t)))
        self.hooks = [m.register_forward_pre_hook(note, with_kwargs=True, prepend=True) for m in names if m not in own]
        return self
    def __exit__(self, *_):
        for h in self.hooks: h.remove()
    def of(self, name): return [n for k,n in self.calls if k==name]

def run(model, x=X, **step):
    heads = [m for m in model.modules() if isinstance(m, MemoryHead)]
    with torch.no_grad():
        if not step: return model(x)
        with in_step(heads, Step(**step)): return model(x)

def mixed(plain, *pairs):
    "What the network answers with the memories' answers put in, of the first memory that has one"
    for head,hits in reversed(pairs): plain = torch.where(torch.tensor(hits).bool()[:,None], head.says_, plain)
    return plain

# which images the memory answers, and parts of them that go through at once
cases = [([0]*N, [slice(0,5)]), ([1,0,1,0,0,1], [slice(0,6), slice(1,2)]), ([0,0,0,0,1,0], [slice(0,5)]),
         ([1]*N, [slice(0,6), slice(4,5)])]

@pytest.mark.parametrize('family,at', stages)
def test_answers_are_those_of_the_whole_network(family, at):
    m,plain = network(family)
    last = Watched(m, X[:2]).layers[-1].call.name
    with attached(m, [(at,[0]*N)]) as h:
        for hits,parts in cases:
            h.hits.copy_(torch.tensor(hits))
            for part in parts:
                want = mixed(plain, (h,hits))[part]
                with Rows(m) as rows: close(run(m, X[part]), want, 1e-4)
                missed = hits[part].count(0)
                assert rows.of(last)==[missed]*(missed>0), 'rows that are answered reach the classifier'
                with Rows(m) as rows: close(run(m, X[part], exits=False), want, 1e-4)
                assert rows.of(last)==[len(X[part])], 'held back, all rows reach it'

@pytest.mark.parametrize('family,at', stages)
def test_nothing_behind_is_run_where_all_leave(family, at):
    m,_ = network(family)
    whole = Watched(m, X[:2])
    with attached(m, [(at,[1]*N)]) as h:
        place = holder(m, h)[1]
        entered = {c.name for c in whole.calls if c.began<=next(o for o in whole.calls if o.module is place).ended}
        assert len(entered)<len(whole.calls)
        for x in (X, X[:1]):
            with Rows(m) as rows: run(m, x)
            assert {k for k,_ in rows.calls}==entered
            assert all(n!=0 for _,n in rows.calls)

@pytest.mark.parametrize('family', families)
def test_a_refused_or_removed_memory_leaves_the_network_as_it_was(family):
    m,plain = network(family)
    keys,state = [*m.state_dict()],{k:v.clone() for k,v in m.state_dict().items()}
    with attached(m, [(families[family][1][0],[1]*N)]): pass
    assert [*m.state_dict()]==keys and all(torch.equal(v, state[k]) for k,v in m.state_dict().items())
    assert 'forward' not in vars(m) and torch.equal(run(m), plain)

# several

A,B,D = [1,0,0,0,0,1],[1,1,0,0,0,0],[0,1,1,0,0,0]
@pytest.mark.parametrize('family,order', [('resnet',(0,1,2)), ('resnet',(2,1,0)), ('swin',(1,2,0)),
                                          ('convnext',(0,2,1)), ('vit',(1,0,2))])
def test_of_several_the_first_that_a_row_reaches_answers(family, order):
    m,plain = network(family)
    places = [*zip(families[family][1], (A,B,D))]
    with attached(m, [places[i] for i in order]) as heads:
        heads = [h for _,h in sorted(zip(order, heads), key=lambda o: o[0])]
        want = mixed(plain, *zip(heads, (A,B,D)))
        with Rows(m) as rows: close(run(m), want, 1e-4)
        assert rows.of(Watched(m, X[:2]).layers[-1].call.name)==[2]     # rows 3 and 4
        assert [len(h.asked_[-1][0]) for h in heads]==[6,4,3]
        close(run(m, exits=False), want, 1e-4)
        for i in range(N): close(run(m, X[i:i+1]), want[i:i+1], 1e-4)
        # all rows are gone before the last
        heads[1].hits.fill_(True)
        n = len(heads[2].asked_)
        close(run(m), mixed(plain, (heads[0],A), (heads[1],[1]*N)), 1e-4)
        assert len(heads[2].asked_)==n
        with heads[0].off(): close(run(m), mixed(plain, (heads[1],[1]*N)), 1e-4)
    assert torch.equal(run(m), plain)

def test_two_at_one_place():
    m,plain = network('resnet')
    with attached(m, [('layer2',A),('layer2',B)]) as (a,b):
        want = mixed(plain, (a,A), (b,B))
        close(run(m), want, 1e-4)
        close(run(m, exits=False), want, 1e-4)

def others():
    "Memories of other kinds in front of, between and behind two exits of a resnet, with rows in them"
    m = copy.deepcopy(network('resnet')[0])
    def put(head, d, **kw):
        if d: head.bank.write(draw(12, d), y=torch.arange(12)%C, item=torch.arange(12))
        attach(m, head, x=X[:2], **kw)
        return head
    def fifo(): return SlotBank(12, policy='fifo', n_classes=C)
    put(RetrievalHead(fifo(), k=2), 64, at='maxpool', name='add')
    put(VoteHead(fifo(), k=3, weight=.5), 64, at='layer1.0', name='front')
    one = put(Told(bank(64)), 0, at='layer1', name='one')
    put(VoteHead(fifo(), k=3, weight=.5), 128, at='layer2', name='between')
    put(MemoryHead(ClassBank(C, capacity=4)), 128, at='layer2.0', name='rare')
    two = put(Told(bank(256)), 0, at='layer3', name='two')
    put(RetrievalHead(fifo(), k=2), 512, at='layer4.0', name='late')
    put(VoteHead(fifo(), k=3, weight=.5), 512, name='behind')
    for h,hits,seed in ((one,A,1),(two,B,2)): h.tell(seen_at(m, h), hits, seed)
    # features with the `add` memories on are others
    for h in (one,two):
        with in_step([o for o in m.modules() if isinstance(o, MemoryHead)], Step(exits=False)) as s, torch.no_grad():
            s.close(m(X))
        h.keys.copy_(s.seen(h).z)
    return m,one,two

def test_beside_memories_of_all_other_kinds():
    m,one,two = others()
    with ExitStack() as s:
        for h in (one,two): s.enter_context(h.off())
        plain = run(m)
    want = mixed(plain, (one,A), (two,B))
    close(run(m, exits=False), want, 1e-4)
    close(run(m), want, 1e-4)
    for part in (slice(0,1), slice(1,4), slice(3,5)): close(run(m, X[part]), want[part], 1e-4)
    assert (want[3:5]-run_without_votes(m)[3:5]).abs().max()>1e-3      # there was something to lose

def run_without_votes(m):
    with ExitStack() as s:
        for h in m.modules():
            if isinstance(h, VoteHead): s.enter_context(h.off())
        return run(m)

def test_ids_stay_with_their_rows():
    "Each memory hides the own rows of the items under way, and of no others"
    m,_ = network('resnet')
    item,group = torch.arange(100, 100+N),torch.arange(200, 200+N)
    for places in ([('layer1',A)], [('layer1',A),('layer2',B),('layer4',D)]):
        with attached(m, places) as hs:
            hs = hs if isinstance(hs, list) else [hs]
            for part in (slice(0,6), slice(1,4), slice(5,6)):
                run(m, X[part], item=item[part], group=group[part], hide=True)
                for h in hs:
                    for i,its,gs in h.asked_:
                        assert its is None or torch.equal(its, 100+i) and torch.equal(gs, 200+i)
            assert all(its is not None for h in hs for _,its,_ in h.asked_[-1:])
            run(m, item=item[:3], hide=True)            # of a batch of another length: nobody's
            assert all(its is None for h in hs for _,its,_ in h.asked_[-1:])

# copies, files, threads, precision

def reaches(model, x=X):
    "How many rows of some images reach the classifier"
    name = next(n for n,o in reversed([*model.named_modules()]) if isinstance(o, nn.Linear) and o.out_features==C)
    with Rows(model) as rows: run(model, x)
    return sum(rows.of(name))

def through_a_file(m):
    torch.save(m, f := io.BytesIO())
    f.seek(0)
    return torch.load(f, weights_only=False)
def rebuilt(m):
    "As of code that builds the network anew and loads the state"
    new = copy.deepcopy(network('resnet')[0])
    for i,at in reversed([*enumerate(('layer1','layer3'))]):
        h = Told(SlotBank(4, n_classes=C)).tell(torch.zeros(N, 64*4**i), [0]*N)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')         # that it was not tried
            attach(new, h, at=at, name=f'exit{i}')
    assert reaches(new)==N
    new.load_state_dict(m.state_dict())
    return new.eval()
ways = dict(deepcopy=copy.deepcopy, pickle=lambda m: pickle.loads(pickle.dumps(m)), file=through_a_file, state=rebuilt,
            twice=lambda m: copy.deepcopy(pickle.loads(pickle.dumps(m))))

@pytest.mark.parametrize('way', ways)
def test_copies_let_rows_leave_too(way):
    m = copy.deepcopy(network('resnet')[0])
    with attached(m, [('layer1',A),('layer3',B)]):
        want,new = run(m),ways[way](m)
        assert reaches(m)==reaches(new)==3
        close(run(new), want)
        heads = [memories(new)[f'exit{i}'] for i in (0,1)]
        close(run(new), mixed(network('resnet')[1], *zip(heads, (A,B))), 1e-4)
        heads[0].hits.fill_(True)
        assert reaches(new)==0 and reaches(m)==3
    detach(new)
    close(run(new), network('resnet')[1])

def test_many_threads_at_once():
    m,plain = network('tv_vit')
    with attached(m, [*zip(families['tv_vit'][1], (A,B))]) as (a,b):
        want,parts = mixed(plain, (a,A), (b,B)),[slice(i, j) for i in range(N) for j in range(i+1, N+1)]
        wrong,start = [],threading.Barrier(8)
        def go(k):
            start.wait()
            for i in range(100):
                p = parts[(i*7+k*3)%len(parts)]
                if not torch.allclose(run(m, X[p]), want[p], atol=1e-4): wrong.append((k,i))
        ts = [threading.Thread(target=go, args=(k,)) for k in range(8)]
        for t in ts: t.start()
        for t in ts: t.join()
        assert not wrong

@pytest.mark.parametrize('family', ['resnet','vit','convnext'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(family, dtype):
    m = copy.deepcopy(network(family)[0])
    with attached(m, [(families[family][1][1],[0]*N)]) as h:
        m.to(dtype)
        x = X.to(dtype)
        h.keys = seen_at(m, h, x).float()
        for hits in ([0]*N, A, [1]*N):
            h.hits.copy_(torch.tensor(hits))
            got,whole = run(m, x),run(m, x, exits=False)
            assert got.dtype==whole.dtype==torch.float32 and got.isfinite().all()      # as all answers of memories
            close(got, whole, .05*float(whole.abs().max()))
            assert reaches(m, x)==N-sum(hits)

@pytest.mark.parametrize('family', ['resnet','vit'])
def test_autocast(family):
    m,_ = network(family)
    with attached(m, [(families[family][1][1],[0]*N)]) as h, torch.autocast('cpu', torch.bfloat16):
        h.keys = seen_at(m, h).float()
        for hits in ([0]*N, A, [1]*N):
            h.hits.copy_(torch.tensor(hits))
            got,whole = run(m),run(m, exits=False)
            assert got.dtype==whole.dtype==torch.float32
            close(got, whole, .05*float(whole.abs().max()))

def test_channels_last_and_inference_mode():
    m = copy.deepcopy(network('resnet')[0]).to(memory_format=torch.channels_last)
    x,formats = X.to(memory_format=torch.channels_last),[]
    with attached(m, [('layer1',A)]) as h:
        m.layer2[0].conv1.register_forward_pre_hook(lambda _,a: formats.append(
            a[0].is_contiguous(memory_format=torch.channels_last)))
        close(run(m, x), mixed(network('resnet')[1], (h,A)), 1e-4)
        assert formats==[True]
        with torch.inference_mode():
            close(m(x), mixed(network('resnet')[1], (h,A)), 1e-4)
            h.hits.fill_(True)
            close(m(x[:1]), h.says_[:1])

def test_rows_that_left_carry_no_gradient():
    m,_ = network('resnet')
    with attached(m, [('layer1',A)]):
        x = X.clone().requires_grad_()
        m(x).square().sum().backward()
        assert [bool(g.abs().sum()>0) for g in x.grad]==[not o for o in A]
    m.zero_grad()

def test_in_training_mode_all_rows_go_through():
    m = copy.deepcopy(network('resnet')[0])
    with attached(m, [('layer1',[1]*N)]) as h:
        m.train()
        with torch.no_grad():
            with Rows(m) as rows: m(X)
        assert rows.of('fc')==[N]
        with Rows(m) as rows: out = m(X)
        assert rows.of('fc')==[N] and out.requires_grad
        m.eval()
        with h.off(): assert reaches(m)==N
        assert reaches(m)==0

def test_a_prediction_in_training_mode_is_normalised_with_the_whole_batch():
    "As with dropout switched on: the statistics behind would be those of the rest"
    m = copy.deepcopy(network('resnet')[0])
    with attached(m, [('layer1',A)]) as h:
        def got(exits):
            n = copy.deepcopy(m).train()
            s = Step(exits=exits)
            s.training = False
            with in_step([*memories(n).values()], s), torch.no_grad(), Rows(n) as rows: return n(X),rows.of('fc')
        out,rows = got(True)
        assert rows==[N]
        close(out, got(False)[0])

# what networks do

class Catches(nn.Module):
    "Goes on when a part of it fails"
    def __init__(self, net, kind):
        super().__init__()
        self.net,self.kind = net,kind
    def forward(self, x):
        try: return self.net(x)
        except self.kind: return torch.zeros(len(x), C)
@pytest.mark.parametrize('kind', [Exception, BaseException])
def test_a_network_that_catches_errors(kind):
    m = Catches(copy.deepcopy(network('resnet')[0]), kind).eval()
    with attached(m, [('net.layer1',A)]) as h:
        for hits in (A, [1]*N):
            h.hits.copy_(torch.tensor(hits))
            close(run(m), mixed(network('resnet')[1], (h,hits)), 1e-4)

class Saves(nn.Module):
    "Computes a part of it again in the backward pass"
    def __init__(self, net):
        super().__init__()
        self.net = net
    def forward(self, x): return torch.utils.checkpoint.checkpoint(self.net, x, use_reentrant=False)
def test_activation_checkpointing():
    "In evaluation mode with gradient, as for a map of what an answer depends on"
    m = Saves(copy.deepcopy(network('resnet')[0])).eval()
    with attached(m, [('net.layer1',A)]) as h:
        want = mixed(network('resnet')[1], (h,A))
        close(run(m), want, 1e-4)
        x = X.clone().requires_grad_()
        close(m(x), want, 1e-4)

class Parts(nn.Module):
    "A part that has memories itself inside a whole that has some"
    def __init__(self):
        super().__init__()
        self.part,self.mid,self.out = copy.deepcopy(network('resnet')[0]),nn.Linear(C, 8),nn.Linear(8, C)
    def forward(self, x): return self.out(self.mid(self.part(x)).relu())
def test_parts_that_have_memories_themselves():
    torch.manual_seed(1)
    m = Parts().eval()
    with torch.no_grad(): plain = m(X)
    with attached(m.part, [('layer1',A)]) as h:
        inner = mixed(network('resnet')[1], (h,A))
        with torch.no_grad(): want = m.out(m.mid(inner).relu())
        close(run(m), want, 1e-4)
        with attached(m, [('mid',B)], name='whole') as g:
            g.keys = inner
            close(run(m), mixed(want, (g,B)), 1e-4)
            with Rows(m) as rows: run(m)
            assert rows.of('part.fc')==rows.of('out')==[4]
        # inside of the part no row may leave the whole
        line = err(attach, m, Told(SlotBank(4, n_classes=C)), at='part.layer3', name='two', x=X[:2])
        assert 'inside a part of the model that has a memory itself' in line
        # nor may rows leave the part that a memory of the whole wants to see
        vote = VoteHead(bank(256), k=3, weight=.5)
        attach(m, vote, at='part.layer3', name='vote', x=X[:2])
        close(run(m), run(m, exits=False), 1e-4)
        detach(m, 'vote')
        close(run(m), want, 1e-4)
    close(run(m), plain)

# graphs

def test_a_graph_answers_as_the_model():
    m = copy.deepcopy(network('resnet')[0])
    with attached(m, [('layer1',A),('layer3',B)]) as (a,b):
        want = mixed(network('resnet')[1], (a,A), (b,B))
        with torch.no_grad():
            n = torch.export.Dim('n', min=1, max=64)
            g = torch.export.export(m, (X,), dynamic_shapes=({0:n},)).module()
            for part in (slice(0,6), slice(1,4), slice(0,1)): close(g(X[part]), want[part], 1e-4)
            torch._dynamo.reset()
            c = torch.compile(m, backend='eager', fullgraph=True)
            close(c(X), want, 1e-4)
        close(run(m), want, 1e-4)
        assert reaches(m)==3

# what it costs

class Waits(TorchDispatchMode):
    "Operations for which the host waits for the device"
    def __init__(self):
        super().__init__()
        self.names = []
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        masks = name.startswith(('aten::index','aten::_index')) and any(
            torch.is_tensor(t) and t.dtype==torch.bool for o in args if isinstance(o, (list,tuple)) for t in o)
        waits = '_local_scalar_dense','nonzero','masked_select','is_nonzero','unique','_unique'
        if masks or name.startswith(tuple(f'aten::{o}' for o in waits)): self.names.append(name)
        return func(*args, **(kwargs or {}))

@pytest.mark.parametrize('hits', [[0]*N, A, [1]*N])
def test_the_host_waits_once_for_a_place(hits):
    m,_ = network('resnet')
    with attached(m, [('layer1',hits),('layer3',hits)]) as hs:
        run(m)
        with Waits() as w: run(m)
        assert len(w.names)==(1 if sum(hits)==N else 2), w.names

def test_a_network_without_rows():
    m,_ = network('resnet')
    with attached(m, [('layer1',A)]): assert run(m, X[:0]).shape==(0,C)
