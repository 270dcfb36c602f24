"Methods that store which items they were: replayed as the loader gives them, whatever happens to the data in between"
import copy, pickle
import pytest, torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.data.all import DataLoaders, Datasets, SkipItemException, TfmdDL
from fastai.learner import load_learner
from fastai.vision.all import DisplayedTransform, ItemTransform, L, PILImageBW, Pipeline, RandTransform, ToTensor, nn
from fastai.vision.all import IntToFloatTensor, Resize, set_seed
from PIL import Image
from helpers.errors import err
from helpers.learners import quietly, same, snap
from items_script import every, png_learner, png_loaders, png_net
from memo.banks.slots import SlotBank
from memo.continual.replay import DERpp, GDumb, Replay
from memo.continual.stored_items import StoredItems
from memo.continual.stream_fit import fit_stream
from memo.core import MemoError
from memo.data.few_shot import pick_items
from memo.data.items import item_ids
from memo.data.streams import split_stream
from memo.data.tensors import TensorDL, TensorSet
from memo.data.whole import fashion_mnist
from memo.training.memory_callback import MemoryCallback
from test_replay import X, Y, learner, net

def write_pngs(root, n=80, classes=5, size=28):
    "Fashion-MNIST as files in folders of classes"
    d = fashion_mnist(n=4*n, device='cpu').train.dataset
    at = (d.y<classes).nonzero().flatten()[:n].tolist()
    for i in at:
        p = root/str(int(d.y[i]))/f'{i:05}.png'
        p.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(d.x[i,0].numpy()).resize((size,size)).save(p)
    return root

@pytest.fixture(scope='module')
def root(tmp_path_factory): return write_pngs(tmp_path_factory.mktemp('items'))
plain = dict(item=[Resize(24)], batch=[])

class Seen(Callback):
    "What a method replays"
    order = -1
    def __init__(self, cb):
        self.x,self.y,self.of,decode = [],[],[],cb.way.decode
        def spy(learn, state, r):
            res = decode(learn, state, r)
            for k,v in zip((self.x,self.y,self.of), (res.x,res.y,res.get('item'))): k.append(copy.deepcopy(v))
            return res
        cb.way.decode = spy

def tensor_loaders(kind):
    x,y = X[:400],Y[:400]%5
    if kind=='features': return DataLoaders(TensorDL(x, y, bs=10, shuffle=True), TensorDL(x[:50], y[:50], bs=50),
                                            device='cpu')
    items = L(range(400))
    tls = [[lambda i: x[i][:32],],[lambda i: x[i][32:]],[lambda i: y[i]]]
    ds = Datasets(items, tls, n_inp=2)
    return DataLoaders(*(TfmdDL(ds.subset(i) if ds.split_idx else ds, bs=10, num_workers=0, shuffle=not i)
                         for i in range(2)), device='cpu')

class Two(nn.Module):
    "Of two inputs"
    def __init__(self):
        super().__init__()
        self.net = net()
    def forward(self, a, b): return self.net(torch.cat([a,b], 1))

# as the loader gives them

@pytest.mark.parametrize('m', every)
@pytest.mark.parametrize('kind', ['png','features','two inputs'])
def test_the_same_training_as_with_the_images_themselves(m, kind, root):
    "Where nothing is drawn, what is decoded is what was stored"
    def run(store):
        set_seed(0)
        cb = every[m](30, store=store)
        learn = (png_learner(png_loaders(root, **plain), cb) if kind=='png'
                 else learner(cb, model=Two() if kind=='two inputs' else None))
        if kind!='png': learn.dls = tensor_loaders(kind)
        quietly(learn, learn.fit, 2, .01)
        if m=='gdumb': cb.retrain()
        own = {'item',*(['y'] if m=='gdumb' else []),*(['logits'] if m=='derpp' else [])}
        assert store=='batch' or {*cb.state.names}==own
        cb.detach()
        return snap(learn.model),len(cb.state)
    (a,n),(b,k) = run('batch'),run('items')
    assert same(a, b) and n==k==30

@pytest.mark.parametrize('m', every)
def test_in_a_stream_items_of_earlier_experiences_are_read(m, root):
    def run(store):
        set_seed(0)
        cb = every[m](30, store=store)
        learn = png_learner(png_loaders(root, **plain))
        r = quietly(learn, learn.fit_stream, split_stream(learn.dls, n=5), 1, cbs=cb)
        cb.learn = learn
        cb.detach()
        return snap(learn.model),r.matrix.tolist()
    (a,r),(b,s) = run('batch'),run('items')
    assert same(a, b) and r==s

class Turn(RandTransform):
    "Adds a number that is drawn, to an item in training only"
    split_idx,order,p = 0,20,1.
    def __init__(self):
        super().__init__(p=1.)
        self.n = []
    def before_call(self, b, split_idx): self.n.append(float(torch.rand(())))
    def encodes(self, x:torch.Tensor): return x.float()+self.n[-1] if x.ndim>1 else x

class NotInTraining(DisplayedTransform):
    split_idx = 1
    def encodes(self, x:torch.Tensor): return x*0

def test_augmented_anew_by_what_the_training_split_has(root):
    item,batch = Turn(),Turn()
    dls = png_loaders(root, [Resize(24),ToTensor(),item], [IntToFloatTensor(),batch,NotInTraining()])
    cb = Replay(12, 12, store='items')
    learn = png_learner(dls, cb)
    seen = Seen(cb)
    quietly(learn, learn.fit, 2, .01)
    own = {int(i):set() for i in cb.state.item[:12]}
    for x,of in zip(seen.x, seen.of):
        for o,i in zip(x, of.tolist()): own.setdefault(i, set()).add(round(float(o.min()), 4))
    assert max(map(len, own.values()))>5 and all(min(v)>0 for v in own.values() if v)
    assert type(seen.x[-1]) is torch.Tensor and type(seen.y[-1]) is torch.Tensor
    learn.dls.train.after_batch.split_idx = None
    assert len(learn.dls.train.after_batch.fs)==len(learn.dls.valid.after_batch.fs)

def test_numbers_that_are_drawn_come_from_the_seed(root):
    def run():
        set_seed(3)
        learn = png_learner(png_loaders(root), Replay(20, store='items'))
        quietly(learn, learn.fit, 2, .01)
        return snap(learn.model)
    a = run()
    torch.rand(5)
    assert same(a, run())

def test_room():
    s = StoredItems(10_000)
    s.write_columns(dict(item=torch.arange(5), y=torch.arange(5)))
    assert s.nbytes==80_000 and len(s)==5
    s = StoredItems(10_000, 'balanced', 5)
    s.write_columns(dict(item=torch.arange(5), y=torch.arange(5)))
    assert s.nbytes==160_000
    assert 'a number of items is accepted' in err(Replay, '2MB', store='items')
    assert "'items'" in err(Replay, 20, store='item')
    s = StoredItems(10**14)
    assert 'items take' in err(s.write_columns, dict(item=torch.arange(5), y=torch.arange(5)))

# which item it is

def trained(root, n=20, m=Replay, cbs=(), **kw):
    cb = m(n, store='items')
    learn = png_learner(png_loaders(root, **kw), [cb,*cbs])
    quietly(learn, learn.fit, 1, .01)
    return learn,cb

def test_another_order_in_place(root):
    learn,cb = trained(root, item=[ToTensor()], batch=[])
    ds = learn.dls.train.dataset
    own = {int(i):ToTensor()(ds[k][0]) for k,i in enumerate(item_ids(learn.dls.train))}
    was = item_ids(learn.dls.train).tolist()
    for items in {id(tl.items):tl.items for tl in ds.tls}.values(): items.reverse()
    assert item_ids(learn.dls.train).tolist()==was[::-1]
    seen = Seen(cb)
    quietly(learn, learn.fit, 1, .01)
    assert len(seen.x)>5
    for x,of in zip(seen.x, seen.of):
        for o,i in zip(x, of.tolist()): assert torch.equal(o.mul(255).round().byte(), own[i].byte())

def test_data_that_has_some_of_them_no_more(root):
    learn,cb = trained(root)
    ids,stored = item_ids(learn.dls.train),cb.state.item[:20]
    keep = (~torch.isin(ids, stored[:7])).nonzero().flatten().tolist()
    ds = learn.dls.train.dataset
    whole,learn.dls = learn.dls,DataLoaders(learn.dls.train.new(pick_items(ds, keep, None, None)),
                                            learn.dls.valid, device='cpu')
    e = err(quietly, learn, learn.fit, 1, .01)
    assert e.startswith(f'Replay: 7 of 20 stored items are not among the {len(keep)} training items of learn.dls.train')
    assert len(e)<=300 and len(cb.state)==20
    learn.dls = whole
    quietly(learn, learn.fit, 1, .01)

def test_other_data_of_the_same_length(root, tmp_path):
    learn,_ = trained(root)
    learn.dls = png_loaders(write_pngs(tmp_path))
    assert '20 of 20 stored items' in err(quietly, learn, learn.fit, 1, .01)

def test_experience_after_experience_by_hand_says_what_to_do(root):
    learn = png_learner(png_loaders(root), cb := Replay(20, store='items'))
    s = split_stream(learn.dls, n=5)
    learn.dls = s[0]
    quietly(learn, learn.fit, 1, .01)
    learn.dls = s[1]
    e = err(quietly, learn, learn.fit, 1, .01)
    assert 'fit_stream has those of all experiences' in e and ' stored items are not among' in e
    quietly(learn, learn.fit_stream, s[1:], 1)      # their loader has all items
    assert len(cb.state)==20

def test_another_stream(root, tmp_path):
    learn,cb = trained(root)
    quietly(learn, learn.fit_stream, split_stream(learn.dls, n=2), 1)
    other = split_stream(png_loaders(write_pngs(tmp_path)), n=2)
    assert 'training items of the stream' in err(quietly, learn, learn.fit_stream, other, 1)

def test_items_of_the_same_content_and_with_another_label():
    "One id for both; labels are those that the data has now"
    x = X[:100].repeat(2, 1)
    y = Y[:100].repeat(2)
    cb = Replay(50, store='items')
    learn = learner(cb)
    learn.dls = DataLoaders(TensorDL(x, y, bs=10), TensorDL(x[:50], y[:50], bs=50), device='cpu')
    seen = Seen(cb)
    quietly(learn, learn.fit, 1, .1)
    assert len(cb.state)==50 and 'y' not in cb.state
    label = {o.numpy().tobytes():int(c) for o,c in zip(x, y)}
    def right(): return all(label[o.numpy().tobytes()]==c for o,c in zip(seen.x[-1], seen.y[-1].tolist()))
    assert right()
    n = len(seen.x)
    learn.dls.train.dataset.y[:] = label_new = (y+1)%10
    label = {o.numpy().tobytes():int(c) for o,c in zip(x, label_new)}
    quietly(learn, learn.fit, 1, .1)
    assert len(seen.x)>n and right()

# rows that are nobody's

class Blend(Callback):
    "Makes rows and labels of several, and says nothing of it"
    def before_batch(self):
        if self.training: self.learn.xb,self.learn.yb = (.5*(self.xb[0]+self.xb[0].flip(0)),),(self.yb[0].flip(0),)

class Half(Callback):
    def before_batch(self):
        if self.training: self.learn.xb,self.learn.yb = (self.xb[0][::2],),(self.yb[0][::2],)

@pytest.mark.parametrize('m', ['er','derpp','gdumb'])
def test_rows_made_of_several_are_not_stored_and_it_is_said_once(m):
    with pytest.warns(UserWarning) as w:
        cb = every[m](30, store='items')
        learn = learner([cb, Blend()])
        learn.dls = tensor_loaders('features')
        quietly(learn, learn.fit, 2, .01)
    assert len(cb.state)==0
    assert len([o for o in w if 'not known which items they are' in str(o.message)])==1

@pytest.mark.parametrize('m', ['er','gdumb'])
def test_of_a_thinned_batch_the_rows_that_are_left(m):
    cb = every[m](500, store='items')
    learn = learner([cb, Half()], n=400)
    quietly(learn, learn.fit, 1, .01)
    want = item_ids(learn.dls.train).view(-1, 10)[:,::2].flatten()
    got = cb.state.item[:len(cb.state)]
    assert got.sort().values.tolist()==want.sort().values.tolist() if m!='gdumb' else {*got.tolist()}<={*want.tolist()}

def test_mixed_images():
    learn = learner([cb := Replay(30, store='items')])
    quietly(learn, learn.fit, 1, .01)
    learn.add_cb(MixUp())
    was = cb.state.item.clone()
    with pytest.warns(UserWarning, match='nothing is stored'): quietly(learn, learn.fit, 1, .01)
    assert torch.equal(was, cb.state.item)

def test_a_loader_of_torchs_own():
    ds = torch.utils.data.TensorDataset(X[:100], Y[:100])
    learn = learner(cb := Replay(30, store='items'))
    own = learn.dls
    learn.dls = DataLoaders(*(torch.utils.data.DataLoader(ds, 10) for _ in range(2)), device='cpu')
    with pytest.warns(UserWarning, match='not known which items'): quietly(learn, learn.fit, 1, .1)
    assert len(cb.state)==0
    learn.dls = own
    quietly(learn, learn.fit, 1, .1)
    learn.dls = DataLoaders(*(torch.utils.data.DataLoader(ds, 10) for _ in range(2)), device='cpu')
    assert "fastai's" in err(quietly, learn, learn.fit, 1, .1)

class Skips(DisplayedTransform):
    "Leaves some items out"
    names = ()
    def encodes(self, x:PILImageBW):
        if x.getpixel((12, 12)) in self.names: raise SkipItemException()
        return x

class Backwards(ItemTransform):
    "A batch in another order"
    def encodes(self, b): return b

@pytest.mark.parametrize('how', ['skipped','sorted'])
def test_what_was_said_of_an_item_stays_with_it(how, root, monkeypatch):
    "Where the loader leaves items out or sorts a batch, outputs that are stored go with their rows"
    dls = png_loaders(root, [Resize(24), skips := Skips()], [])
    if how=='sorted': dls.train.before_batch = Pipeline([lambda b: sorted(b, key=lambda o: float(o[0].float().mean()))])
    cb = DERpp(20, 1., 0., store='items')
    learn = png_learner(dls, cb)
    quietly(learn, learn.fit, 1, .01)
    said = {int(i):o for i,o in zip(cb.state.item[:20], cb.state.logits[:20])}
    if how=='skipped':
        at = torch.isin(item_ids(dls.train), cb.state.item[:20]).nonzero().flatten().tolist()
        # it comes before the resizing
        skips.names = {*sorted({dls.train.dataset[i][0].getpixel((12, 12)) for i in at}-{0})[:3]}
    xs,ids = [dls.train.after_item(dls.train.dataset[i])[0].float() if how=='sorted' else None
              for i in range(len(dls.train.dataset))],item_ids(dls.train).tolist()
    learn.dl = dls.train
    r = cb.rows(torch.arange(20))
    assert len(r.x)==len(r.item)==len(r.logits) and (len(r.x)<20)==(how=='skipped')
    for x,i,z in zip(r.x, r.item.tolist(), r.logits): assert torch.equal(said[i], z)
    if how=='sorted':
        means = [float(o.float().mean()) for o in r.x]
        assert means==sorted(means) and r.item.tolist()!=cb.state.item[:20].tolist()
        for x,i in zip(r.x, r.item.tolist()): assert torch.allclose(x*255, xs[ids.index(i)], atol=1e-3)

# files

def test_files_that_have_gone(tmp_path):
    learn,cb = trained(write_pngs(tmp_path))
    ids,paths = item_ids(learn.dls.train),learn.dls.train.dataset.items
    gone = next(p for i,p in zip(ids, paths) if i==cb.state.item[3])
    was = gone.read_bytes()
    cb.batch_size = 20      # all of them
    class Later(Callback):
        "When the loader has given its batch"
        def after_pred(self):
            if self.training: gone.unlink() if broken is None else gone.write_bytes(broken)
    for broken,why in ((None,'No such file'), (was[:60],''), (b'text','cannot identify')):
        gone.write_bytes(was)
        learn.add_cb(later := Later())
        e = err(quietly, learn, learn.fit, 1, .01)
        assert str(gone) in e and why in e and 'Replay' in e
        learn.remove_cb(later)
    gone.write_bytes(was)
    quietly(learn, learn.fit, 1, .01)

# state

@pytest.mark.parametrize('m', ['er','derpp','gdumb'])
def test_saved_and_gone_on_with(m, root, tmp_path):
    def new(seed=0):
        set_seed(seed)
        cb = every[m](20, store='items')
        return png_learner(png_loaders(root), cb, path=tmp_path),cb
    (a,cb),(b,other) = new(),new(5)
    quietly(a, a.fit, 1, .01)
    a.save('a')
    b.load('a')
    assert same(snap(cb.state), snap(other.state)) and len(other.state)==20
    for o in (a,b):
        set_seed(1)
        o.dls.train.rng.seed(1)
        quietly(o, o.fit, 1, .01)
        if m=='gdumb': (cb if o is a else other).retrain()
    assert same(snap(a.model), snap(b.model))

def test_a_state_of_another_kind_of_store(root, tmp_path):
    def new(store): return png_learner(png_loaders(root), Replay(20, store=store), path=tmp_path)
    a = new('items')
    quietly(a, a.fit, 1, .01)
    a.save('items')
    b = new('batch')
    b.load('items')
    assert "store='items' reads them" in err(quietly, b, b.fit, 1, .01)
    b = new('batch')
    quietly(b, b.fit, 1, .01)
    b.save('batch')
    a = new('items')
    a.load('batch')
    assert "store='batch'" in err(quietly, a, a.fit, 1, .01)

def test_an_export_has_neither_items_nor_data(root, tmp_path):
    learn,cb = trained(root, m=lambda n, **kw: GDumb(n, 1, **kw))
    learn.path = tmp_path
    cb.retrain()
    assert b'png' not in pickle.dumps(cb.way) and len(pickle.dumps(cb.way))<300
    learn.export('e.pkl')
    data = (tmp_path/'e.pkl').read_bytes()
    assert len(cb.state)==20 and cb.state.item.numpy().tobytes()[:32] not in data
    new = load_learner(tmp_path/'e.pkl')
    new.dls = png_loaders(root)
    quietly(new, new.fit, 1, .01)
    assert len(next(o for o in new.cbs if isinstance(o, GDumb)).state)==20

def test_a_copy_of_the_learner_goes_on_by_itself(root):
    learn,cb = trained(root)
    b = copy.deepcopy(learn)
    was = snap(cb.state)
    quietly(b, b.fit, 1, .01)
    assert same(was, snap(cb.state)) and int(b.replay.state.ptr)==2*int(cb.state.ptr)
    assert b.replay.way is not cb.way

def test_after_the_fit_nothing_holds_the_data(root):
    learn,cb = trained(root)
    assert cb.way.source is None and cb.way.dl is None

# beside others

def test_beside_one_that_stores_before_the_batch_transforms(root):
    "Replayed rows of one are no batch of the other"
    def run(*cbs):
        set_seed(0)
        learn = png_learner(png_loaders(root, [Resize(24)], [Turn()]), cbs)
        quietly(learn, learn.fit, 1, .01)
        return cbs
    raw = DERpp(500, store='raw')
    run(raw, Replay(500, store='items'))
    n = len(raw.state)
    assert n==64 and len(raw.state['x'][:n].flatten(1).unique(dim=0))>=63 and raw.state['x'].dtype==torch.uint8
    two = run(DERpp(500, store='raw'), Replay(500, store='raw'))
    for o in two: assert len(o.state.x[:n].flatten(1).unique(dim=0))>=63

def test_a_memory_beside_it_does_not_let_items_find_themselves(root):
    cb = Replay(20, store='items')
    learn = png_learner(png_loaders(root, **plain), [cb, MemoryCallback(SlotBank(200), k=2)])
    quietly(learn, learn.fit, 2, .01)
    stored,ids = learn.memory.head.bank.rows()[3],item_ids(learn.dls.train)
    assert len(stored)>20 and torch.isin(stored, ids).all() and torch.isin(cb.state.item[:20], ids).all()
    hidden = []
    own,cb.aside = cb.aside,lambda r: (hidden.append(r.item), own(r))[1]
    quietly(learn, learn.fit, 1, .01)
    assert len(hidden)>5 and all((o>=0).all() for o in hidden)

def test_items_have_the_names_that_a_memory_gives_them(root):
    learn = png_learner(png_loaders(root), [Replay(20, store='items'),
                                            MemoryCallback(SlotBank(50), item=lambda p: p.name)])
    quietly(learn, learn.fit, 2, .01)
    assert torch.isin(learn.replay.state.item[:20], item_ids(learn.dls.train, lambda p: p.name)).all()

def test_a_table_with_bytes_has_no_such_store(tmp_path):
    from memo.experiment.table import load_table
    text = ('base: streams/modes_cdi_mh\nname: t\nbytes: 1KB\nmethods:\n  a: {memory: null, model: mlp, '
            'train.cbs: [{name: Replay, store: items}]}\n')
    (tmp_path/'t.yaml').write_text(text)
    e = err(load_table, tmp_path/'t.yaml')
    assert 'store: items' in e and 'bytes' in e
