"""A memory in a training loop of one's own: what is stored, who finds whom, what stays of it; Lightning, webdataset"""
import copy, io, json, os, pickle, re, socket, subprocess, sys, tarfile, threading
import pytest, torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from fastai.vision.all import Learner, accuracy
from memo.all import *
from memo.core import MemoError
from memo.training.plain_loop import item_numbers

@pytest.fixture(scope='module')
def digits():
    return [(o.dataset.x.float()/255, o.dataset.y, o.dataset.items) for o in digits_lt().loaders]

def batches(rows, bs=64, shuffle=True):
    at = torch.randperm(len(rows[0])) if shuffle else torch.arange(len(rows[0]))
    return [tuple(o[i] for o in rows) for i in at.split(bs)]

def train(model, remember, rows, epochs=2, opt=None, **kw):
    opt = opt or torch.optim.Adam(model.parameters(), 1e-2)
    model.train()
    for _ in range(epochs):
        for x,y,item in batches(rows):
            loss = F.cross_entropy(model(x), y)
            opt.zero_grad()
            loss.backward()
            opt.step()
            remember.observe(x, y, item, **kw)

def made(seed=0, bank=None, **kw):
    torch.manual_seed(seed)
    model = small_cnn(1, 10)
    return model,Memory(model, bank or SlotBank(512, policy='fifo'), **{'head':'vote', **kw})

def answers(model, x):
    with torch.no_grad(): return model.eval()(x)

def test_fifteen_lines_as_they_stand(repo, digits):
    "The lines of the notebook, run as they are written, give a better answer with the memory than without"
    nb = json.loads((repo/'nbs/training/34_plain_loop.ipynb').read_text())
    code = next(m[1] for c in nb['cells'] if (m := re.search(r'```python\n(.*?)```', ''.join(c['source']), re.S)))
    lines = code.strip().splitlines()
    assert len(lines)<=15 and '._' not in code
    torch.manual_seed(0)
    fit,valid,test = digits
    space = dict(globals(), train=batches(fit), valid=batches(valid[:2]), x=test[0])
    exec(code, space)
    model,remember = space['model'],space['remember']
    own = answers(model, test[0])
    with remember.off(): alone = answers(model, test[0])
    a,b = (float((o.argmax(1)==test[1]).float().mean()) for o in (own, alone))
    assert len(remember.bank)==len(fit[0]) and a>b>.6, (a, b)

def test_what_is_stored_is_what_was_trained_on(digits):
    "The features of the forward in training mode, dropout and all, without a second forward"
    x,y,item = (o[:8] for o in digits[0])
    nn = torch.nn
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Dropout(.5), nn.Linear(32, 10))
    remember,seen = Memory(model, SlotBank(16, policy='fifo'), head='vote'),[]
    model[3].register_forward_pre_hook(lambda m, a: seen.append(a[0].detach().clone()))
    model.train()
    F.cross_entropy(model(x), y).backward()
    remember.observe(x, y, item)
    assert len(seen)==1 and torch.equal(remember.bank.features[:8], seen[0])
    model(x), model(x+.1)           # two views: the one that is named
    remember.observe(x, y, item)
    assert torch.equal(remember.bank.features[:8], seen[1]) and len(seen)==3
    remember.observe(x, y, item)    # none was made since: one more, in evaluation mode
    assert len(seen)==4 and not model[2].training or model.training
    assert len(remember.bank)==8

def test_the_network_learns_what_it_would_without(digits):
    "Parameters, gradients and random numbers are those of the same loop without a memory"
    torch.manual_seed(1)
    plain = small_cnn(1, 10)
    model,remember = made(1)
    for m,r in ((plain,None),(model,remember)):
        torch.manual_seed(2)
        opt = torch.optim.SGD(m.parameters(), .1)
        m.train()
        for x,y,item in batches(digits[0]):
            opt.zero_grad()
            F.cross_entropy(m(x), y).backward()
            opt.step()
            if r is not None: r.observe(x, y, item)
    own = model.state_dict()
    assert all(torch.equal(v, own[k]) for k,v in plain.state_dict().items())

@pytest.mark.parametrize('head', ['add','vote','dual'])
def test_a_row_does_not_find_itself(head, digits):
    "In training with `batch`, and in `fit`: an answer is what it is without the row"
    x,y,item = (o[:20] for o in digits[0])
    bank = CachedBank(64) if head=='dual' else SlotBank(64, policy='fifo')
    model,remember = made(bank=bank, head=head)
    remember.teach(x, y, item)
    model.train()
    for m in model.modules():
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm): m.eval()
    if head=='add':
        with remember.batch(item[:1]): a = model(x[:1])
        remember.forget(item=item[:1])
        with remember.batch(item[:1]): b = model(x[:1])
        assert torch.allclose(a, b, atol=1e-5)
        with pytest.warns(UserWarning, match='may find itself'): model(x[1:2])
    else:
        own = remember.recall(x[:5], item[:5], k=1).item[:,0]
        assert not (own==item[:5]).any() and (remember.recall(x[:5], k=1).item[:,0]==item[:5]).all()

def test_texts_are_ids(digits):
    "Keys of a stream name an item each time it comes; a text alone is no list of ids"
    x,y,_ = (o[:4] for o in digits[0])
    model,remember = made()
    for keys in (['a','b','c','d'],['d','c','b','a']): remember.observe(x, y, keys)
    assert len(remember.bank)==4 and torch.equal(remember.bank.items[:4], item_numbers(['a','b','c','d']))
    assert remember.forget(item=['b'])==1 and len(remember.bank)==3
    with pytest.raises(MemoError, match='one id for each row'): remember.observe(x, y, 'abcd')

def test_copies_and_files(digits, tmp_path):
    "A model with such a memory is copied, pickled and saved as any other; a copy tells nobody what it does"
    model,remember = made()
    train(model, remember, digits[0])
    remember.fit(batches(digits[1][:2]))
    want = answers(model, digits[2][0])
    other = copy.deepcopy(model)
    assert torch.equal(answers(other, digits[2][0]), want) and torch.equal(answers(pickle.loads(pickle.dumps(model)),
                                                                                  digits[2][0]), want)
    n = int(remember.bank.updates)
    model.train(), other.train()
    other(digits[0][0][:8])
    with pytest.raises(MemoError, match='no forward in training'): remember.observe(None, digits[0][1][:8])
    assert int(remember.bank.updates)==n
    torch.save(model.state_dict(), tmp_path/'m.pth')
    new,again = made(5)
    new.load_state_dict(torch.load(tmp_path/'m.pth', weights_only=True))
    assert torch.equal(answers(new, digits[2][0]), want)
    assert Memory(new).bank is again.bank
    again.detach()
    assert 'memory' not in dict(new.named_modules())

def test_learned_rows(digits):
    "Rows that an optimizer learns are made with the first inputs; those that are replaced lose its moments"
    x,y,item = digits[0]
    with pytest.raises(MemoError, match='x= is needed'): made(bank=TrainableBank(64, 10), head='dual')
    model,remember = made(bank=TrainableBank(64, 10), head='dual', x=x[:2])
    opt = torch.optim.Adam(model.parameters(), 1e-2)
    assert any(p is remember.bank.features for g in opt.param_groups for p in g['params'])
    model.train()
    for x,y,item in batches(digits[0])*2:
        with remember.batch(item): loss = F.cross_entropy(model(x), y)+.3*remember.loss(y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        remember.observe(x, y, item, opt=opt)
    assert len(remember.bank)==64 and opt.state[remember.bank.features]
    assert float(remember.loss(y))==0       # of no forward since

def test_what_is_refused(digits):
    x,y,item = (o[:4] for o in digits[0])
    model,remember = made()
    for wrong,why in ((lambda: remember.observe(x, y[:3], item[:3]), 'labels for'),
                      (lambda: remember.observe(x, torch.full((4,10), .1), item), 'parts of several'),
                      (lambda: remember.fit([]), 'empty'), (lambda: remember.fit([x]), 'found a Tensor'),
                      (lambda: remember.fit([(x,y)]), 'is empty'),
                      (lambda: made(bank=ClassBank(10), head='replay'), 'adds rows'),
                      (lambda: Memory(small_cnn(1, 10)), 'no memory'), (lambda: made(head='vote', kk=3), 'kk')):
        with pytest.raises(MemoError, match=why): wrong()
    with pytest.warns(UserWarning, match='NaN'):
        model.train()
        remember.observe(torch.full_like(x, torch.nan), y, item)
    assert len(remember.bank)==0

def test_threads_predict_meanwhile(digits):
    "Eight threads get the answers of one"
    model,remember = made()
    train(model, remember, digits[0])
    want,got = answers(model, digits[2][0]),{}
    def ask(i):
        with torch.no_grad(): got[i] = model(digits[2][0])
    ts = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for t in ts: t.start()
    for t in ts: t.join()
    assert all(torch.allclose(got[i], want, atol=1e-6) for i in range(8))

def test_fits_into_a_learner_afterwards(digits):
    "A model of such a loop goes on in a fastai learner, memory and all"
    model,remember = made()
    train(model, remember, digits[0])
    n = len(remember.bank)
    learn = Learner(digits_lt(), model, metrics=accuracy, cbs=MemoryCallback())
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert learn.memory.bank is remember.bank and len(remember.bank)>=n

def counted(remember):
    "The memory, and a list that gets an entry with each forward that it makes itself"
    extra,run = [],remember._run
    remember._run = lambda *a, **kw: (extra.append(1), run(*a, **kw))[1]
    return extra

def test_a_forward_that_fails_leaves_nothing(digits):
    "After an error inside of the model, in training, its answers are those of before"
    model,remember = made()
    train(model, remember, digits[0])
    remember.fit(batches(digits[1][:2]))
    want = answers(model, digits[2][0])
    with remember.off(): assert not torch.equal(answers(model, digits[2][0]), want)
    model.train()
    with pytest.raises(RuntimeError): model(torch.zeros(3))
    assert torch.equal(answers(model, digits[2][0]), want)

@pytest.mark.parametrize('how', ['forward','checkpoint','reentrant','keywords','accumulated','late','eval'])
def test_every_way_to_call_a_model_is_heard(how, digits):
    "What is stored is of the forwards that were made, each with its own rows and labels, and none is made for it"
    model,remember = made()
    extra,seen,held = counted(remember),{},[]
    if how=='eval': model.eval()
    else: model.train()
    for x,y,item in batches(digits[0], 20):
        if how in ('checkpoint','reentrant'):
            call = lambda x: checkpoint(model, x.requires_grad_(), use_reentrant=how=='reentrant')
        else: call = {'forward':model.forward, 'keywords':lambda x: model(input=x)}.get(how, model)
        with remember.batch(item): out = call(x)
        held.append((x,y,item))
        F.cross_entropy(out, y).backward()
        if how=='late':
            if len(held)>1: remember.observe(*held.pop(0))
        elif how!='accumulated' or len(held)==8:
            for b in held: remember.observe(*b)
            held = []
    for b in held: remember.observe(*b)
    bank,n = remember.bank,len(digits[0][0])
    at = {int(i):int(y) for i,y in zip(digits[0][2], digits[0][1])}
    assert not extra and len(bank)==n and all(at[int(i)]==int(y) for i,y in zip(bank.items[:n], bank.labels[:n]))

@pytest.mark.parametrize('how', ['reentrant','eval','compiled'])
def test_own_rows_are_hidden_in_every_forward(how, digits, monkeypatch):
    "Where a part is run again for its gradient, in a model that is held in evaluation mode, in compiled code"
    x,y,item = (o[:20] for o in digits[0])
    model,remember = made(bank=SlotBank(64, policy='fifo'), head='add')
    model.eval()
    remember.observe(x, y, item)
    model.train()
    for m in model.modules():
        if how=='eval' or isinstance(m, torch.nn.modules.batchnorm._BatchNorm): m.eval()
    seen,read = [],SlotBank.read
    def noted(self, q, *a, **kw):
        seen.append(kw.get('item'))
        return read(self, q, *a, **kw)
    monkeypatch.setattr(SlotBank, 'read', noted)
    call = torch.compile(model, backend='eager') if how=='compiled' else model
    if how=='reentrant': call = lambda x: checkpoint(model, x.requires_grad_(), use_reentrant=True)
    with remember.batch(item): out = call(x)
    out.sum().backward()
    assert len(seen)==(2 if how=='reentrant' else 1) and all(i is not None and torch.equal(i, item) for i in seen)

def test_a_copy_hears_its_own_model(digits):
    "Of a module that has a memory and its model, copied or pickled as Lightning does for its processes"
    model,remember = made(head='add', bank=SlotBank(512, policy='fifo'))
    train(model, remember, digits[0], epochs=1)
    for new,again in (copy.deepcopy((model,remember)), pickle.loads(pickle.dumps((model,remember)))):
        assert again.model is new
        extra = counted(again)
        train(new, again, digits[0], epochs=1)
        assert not extra
    size = len(pickle.dumps(model))
    model.train()
    model(digits[0][0][:200])
    assert len(pickle.dumps(model))<size+2000       # nothing of a batch goes along

def test_a_learner_stores_though_a_memory_listens(digits):
    "The rows of a fastai training are stored while the `Memory` of the loop before is still there"
    model,remember = made(bank=SlotBank(2048, policy='fifo'))
    learn = Learner(digits_lt(), model, metrics=accuracy, cbs=MemoryCallback())
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert len(remember.bank)==len(learn.dls.train.dataset)

@pytest.mark.parametrize('ids,same', [(['a','b',None,'c'], 3), (('a','b','c','a'), 3), ([1.,float('nan'),2.,1.], 2),
    ([b'a',b'b',b'c',b'd'], 4), ([1,None,2,3], 3), ('np', 4), ('path', 4), ('series', 4)])
def test_ids_of_all_kinds(ids, same):
    "Texts, bytes, paths, numbers; None and NaN are nobody's; a text is one id however it comes"
    import numpy as np, pandas as pd
    from pathlib import Path
    keys = ['a','b','c','d']
    ids = {'np':np.array(keys), 'path':[*map(Path, keys)], 'series':pd.Series(keys)}.get(ids, ids) if isinstance(
        ids, str) else ids
    got = item_numbers(ids)
    assert len(got)==4 and got[got>=0].unique().numel()==same
    if isinstance(ids, (list,tuple)) and isinstance(ids[0], float) or ids[0]==1: assert int(got[0])==1
    else: assert int(got[0])==int(item_numbers(['a'])[0])

def test_ids_that_are_none(digits):
    x,y,_ = (o[:4] for o in digits[0])
    model,remember = made()
    model.train()
    for ids,why in (([1,'a',2,3],'found both'), ([('p',1)]*4,'whole numbers'), ([True]*4,'whole numbers')):
        with pytest.raises(MemoError, match=why): remember.observe(x, y, ids)
    with pytest.raises(MemoError, match='3 ids, and the model was called with 4'), remember.batch([1,2,3]): model(x)
    detach(model)
    with pytest.raises(MemoError, match='not in the model any more'): remember.observe(x, y, [1,2,3,4])

def test_outputs_and_inputs_of_all_kinds(digits):
    "A model of several inputs by keyword that gives a dict: stored, fitted and answered as one with a tensor"
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_cnn(1, 10)
        def forward(self, pixel_values, scale=1.): return dict(logits=self.net(pixel_values*scale), n=1)
    torch.manual_seed(0)
    model = Net()
    remember = Memory(model, SlotBank(512, policy='fifo'), head='vote')
    opt,extra = torch.optim.Adam(model.parameters(), 1e-2),counted(remember)
    for _ in range(3):
        model.train()
        for x,y,item in batches(digits[0]):
            loss = F.cross_entropy(model(pixel_values=x)['logits'], y)
            opt.zero_grad()
            loss.backward()
            opt.step()
            remember.observe(x, y, item)
    assert not extra and len(remember.bank)==len(digits[0][0])
    rows = batches(digits[1], shuffle=False)
    assert remember.fit((dict(pixel_values=x), y) for x,y,_ in rows)==remember.fit(rows)

script = '''
import sys, torch, torch.nn.functional as F
from memo.all import *
rank,port,out = int(sys.argv[1]),sys.argv[2],sys.argv[3]
torch.distributed.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
torch.manual_seed(0)
model = small_cnn(1, 10)
remember = Memory(model, SlotBank(64, policy='reservoir'), head='vote')
ddp = torch.nn.parallel.DistributedDataParallel(model)
opt = torch.optim.SGD(ddp.parameters(), .01)
ds = digits_lt().train.dataset
for i in torch.arange(len(ds.y)).split(20):
    i = i[:-7] if rank else i[-7:]
    x,y = ds.x[i].float()/255,ds.y[i]
    opt.zero_grad()
    F.cross_entropy(ddp(x), y).backward()
    opt.step()
    remember.observe(x, y, ds.items[i])
vs = digits_lt().valid.dataset
remember.fit([(vs.x[rank::2].float()/255, vs.y[rank::2])])
torch.save(model.state_dict(), f'{out}/{rank}.pth')
'''
@pytest.mark.slow
def test_two_processes_have_one_bank(tmp_path):
    "Each rank stores the rows of both, bit for bit the same, as many as it may have, and fits to the data of both"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = {k:v for k,v in os.environ.items() if k not in ('RANK','WORLD_SIZE')}    # not every launcher sets them
    ps = [subprocess.Popen([sys.executable, '-c', script, str(r), str(port), str(tmp_path)], stderr=subprocess.PIPE,
                           text=True, env=env) for r in range(2)]
    said = [p.communicate(timeout=300)[1] for p in ps]
    assert all(p.returncode==0 for p in ps), said
    a,b = (torch.load(tmp_path/f'{r}.pth', weights_only=True) for r in range(2))
    assert a.keys()==b.keys() and int(next(v for k,v in a.items() if k.endswith('bank.count')))==64
    assert all(torch.equal(a[k], b[k]) for k in a if 'memory' in k)

@pytest.mark.slow
def test_lightning(repo, digits, tmp_path):
    "The module of the notebook, at most twenty lines; its checkpoint has the memory"
    L = pytest.importorskip('lightning')
    nb = json.loads((repo/'nbs/training/34_plain_loop.ipynb').read_text())
    code = next(m[1] for c in nb['cells'] if (m := re.search(r'```python\n(class .*?)```', ''.join(c['source']), re.S)))
    assert len(code.strip().splitlines())<=20 and 'remember._' not in code
    space = dict(globals(), L=L)
    exec(code, space)
    torch.manual_seed(0)
    net = space['Digits']()
    load = lambda o: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*o), 64)
    class Data(L.LightningDataModule):
        def train_dataloader(self): return load(digits[0])
        def val_dataloader(self): return load(digits[1])
    kw = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path)
    t = L.Trainer(max_epochs=3, accelerator='cpu', **kw)
    t.fit(net, datamodule=Data())
    assert len(net.remember.bank)==len(digits[0][0])
    t.save_checkpoint(tmp_path/'x.ckpt')
    new = space['Digits'].load_from_checkpoint(tmp_path/'x.ckpt', weights_only=False)
    assert torch.equal(answers(new, digits[2][0]), answers(net, digits[2][0]))

def test_webdataset(digits, tmp_path):
    "A stream of a tar of real images: its keys are ids"
    wds = pytest.importorskip('webdataset')
    from PIL import Image
    from sklearn.datasets import load_digits
    d = load_digits()
    with tarfile.open(tmp_path/'d.tar', 'w') as t:
        for i in range(60):
            b = io.BytesIO()
            Image.fromarray((d.images[i]*15).astype('uint8')).save(b, 'png')
            for end,body in (('png',b.getvalue()),('cls',str(d.target[i]).encode())):
                info = tarfile.TarInfo(f'{i:04d}.{end}')
                info.size = len(body)
                t.addfile(info, io.BytesIO(body))
    rows = wds.WebDataset(str(tmp_path/'d.tar'), shardshuffle=False).decode('torchl').to_tuple('png', 'cls', '__key__')
    model,remember = made()
    model.train()
    for _ in range(2):
        for x,y,key in torch.utils.data.DataLoader(rows, 16):
            x = x[:,None]
            F.cross_entropy(model(x), y).backward()
            remember.observe(x, y, key)
    assert len(remember.bank)==60 and torch.equal(remember.bank.items[:2], item_numbers(['0000','0001']))
