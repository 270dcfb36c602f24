"A patient is forgotten, a case is taught: what a learner answers, saves and exports from then on"
import copy, threading, time
import pandas as pd, pytest, torch
from fastai.vision.all import Callback, ImageDataLoaders, L, Learner, accuracy, load_learner, set_seed
from PIL import Image
from contracts.made import X, Y, learner
from helpers.errors import err
from helpers.learners import quietly
from memo.banks.classes import ClassBank
from memo.banks.key_value import CachedBank, TrainableBank
from memo.banks.patterns import AssociativeBank
from memo.banks.slots import SlotBank
from memo.continual.buffers import Exemplars
from memo.continual.replay import DERpp, Replay
from memo.data.chest_standin import chest_mosaic
from memo.data.items import item_ids
from memo.experiment import hub
from memo.models.small import small_cnn
from memo.plots import recall
from memo.training import explore
from memo.training.edit import files_with
from memo.training.export_model import export_model
from memo.training.memory_callback import MemoryCallback
from memo.training.stages import Stage, fit_stages

N,CUT = 60,48
assert recall and explore and hub       # methods of learners and callbacks

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    r = tmp_path_factory.mktemp('images')
    for i in range(N+6):
        Image.fromarray(X[i,0].numpy()).resize((16,16)).save(r/f'{i:03d}.png')
    return r

def frame(files, patient):
    return pd.DataFrame(dict(name=[f'{i:03d}.png' for i in range(N)], label=[f'digit {int(o)}' for o in Y[:N]],
                             patient=[patient(i//3) for i in range(N)], valid=[i>=CUT for i in range(N)]))

def framed(files, patient, **kwargs):
    return of_frame(frame(files, patient), files)

def of_frame(df, files):
    return ImageDataLoaders.from_df(df, files, fn_col='name', label_col='label', valid_col='valid', bs=16,
                                    num_workers=0, device='cpu')

def trained(dls, bank=None, epochs=1, path='.', cbs=(), **kwargs):
    set_seed(0)
    learn = Learner(dls, small_cnn(dls.one_batch()[0].shape[1], dls.c), metrics=accuracy, path=path, cbs=[
        MemoryCallback(SlotBank(64, policy='fifo') if bank is None else bank, **{'head':'vote', **kwargs}), *cbs])
    if epochs: quietly(learn, learn.fit, epochs, 1e-3)
    return learn

def marks(bank, at):
    "Bytes that rows leave in a file: ids, features"
    f,_,_,items,_,_ = bank.rows()
    return [o.numpy().tobytes() for k in at for o in (items[k], f[k].contiguous())]

def holds(path, marks):
    b = path.read_bytes() if hasattr(path, 'read_bytes') else path
    return [o for o in marks if o in b]

patients = dict(text=(lambda i: f'p {i}', 'p 5', 'p 50'), number=(lambda i: i, 5, 500),
                zeros=(lambda i: f'{i:05d}', '00005', '0005'))

@pytest.mark.parametrize('kind', patients)
@pytest.mark.parametrize('keep', ['thumbnails','paths'])
def test_a_patient_goes_with_all_that_is_theirs(files, kind, keep, tmp_path):
    patient,who,nobody = patients[kind]
    learn = trained(framed(files, patient), group='patient', keep=keep, path=tmp_path)
    bank = learn.memory.bank
    at = [k for k,i in enumerate(bank.items[:len(bank)].tolist()) if i in item_ids(learn.dls.train)[15:18].tolist()]
    assert len(at)==3 and len(bank)==CUT
    theirs = marks(bank, at)+[bank.kept.of[int(bank.items[k])] for k in at]
    learn.save('before')
    learn.memory.to_frame().to_csv(tmp_path/'rows.csv')
    assert 'nobody knows' in err(learn.memory.forget, group=nobody)
    res = learn.memory.forget(group=who)
    assert res.rows=={'memory':3} and res.items==3 and res.loaders=={'the training set':3} and len(bank)==CUT-3
    assert {o.name for o in res.files}=={'before.pth','rows.csv'} and holds(tmp_path/'models'/'before.pth', theirs)
    assert all(o in str(res) for o in ('before.pth', "network's own weights", 'still in the data'))
    learn.save('after')
    learn.export('after.pkl')
    bank.save(tmp_path/'after.safetensors')
    for o in ('models/after.pth','after.pkl','after.safetensors'): assert not holds(tmp_path/o, theirs), o
    assert learn.memory.forget(group=who).rows=={'memory':0}
    got = quietly(learn, learn.predict, files/'015.png')
    assert got[0].startswith('digit')
    quietly(learn, learn.fit, 1, 1e-3)      # as they are in the data they come back
    assert len(bank)==CUT

@pytest.mark.parametrize('store', ['batch','raw','items'])
@pytest.mark.parametrize('method', [Replay,DERpp])
def test_examples_of_continual_methods_go_too(files, method, store, tmp_path):
    "They are whole images"
    dls = framed(files, lambda i: f'p {i}')
    learn = trained(dls, group='patient', cbs=[method(100, store=store)], path=tmp_path)
    kept = next(m for m in learn.model.modules() if isinstance(m, Exemplars))
    gone = item_ids(dls.train)[15:18]
    at = torch.isin(kept['item'][:len(kept)], gone).nonzero()[:,0]
    theirs = [kept[k][i].numpy().tobytes() for i in at for k in kept.names if kept[k][i].numel()>9 or k=='item']
    learn.save('before')
    assert len(at)==3 and len(theirs)>=3 and len(holds(tmp_path/'models/before.pth', theirs))==len(theirs)
    res = learn.memory.forget(group='p 5')
    (name,n), = res.examples.items()
    assert n==(3,0) and f'3 examples that {name} keeps' in str(res) and len(kept)==CUT
    learn.save('after')
    assert not holds(tmp_path/'models/after.pth', theirs)
    assert not torch.isin(kept['item'], gone).any() and not learn.memory.forget(group='p 5').examples
    quietly(learn, learn.fit, 1, 1e-3)
    assert not trained(dls, group='patient').memory.forget(group='p 5').examples

def test_stores_of_one_name_are_all_searched():
    "Of two the first once kept what was forgotten"
    learn = learner(SlotBank(64, policy='fifo'), head='vote')
    gone = item_ids(learn.dls.train)[:1]
    stores = [Exemplars(4), Exemplars(4)]
    for o in stores: o.write(torch.randn(2, 3), torch.tensor([0,1]), item=torch.tensor([int(gone), -1]))
    for m,o in zip([m for m in learn.model.modules() if not list(m.children())][:2], stores): m.add_module('kept', o)
    assert learn.memory.forget(item=gone).examples=={'kept':(2,2)}
    assert not any(torch.isin(o['item'], gone).any() for o in stores)

def heads():
    def slots(): return SlotBank(64, policy='fifo')
    def classes(): return ClassBank(10, capacity=8)
    return dict(vote=(slots(), dict(head='vote')), white=(slots(), dict(head='vote', whiten=True)),
        add=(slots(), dict(head='add')), hopfield=(slots(), dict(head='hopfield')),
        prototype=(classes(), dict(head='prototype')), lda=(classes(), dict(head='lda')),
        density=(slots(), dict(head='density')), dual=(CachedBank(64), dict(head='dual')),
        white_classes=(classes(), dict(head='vote', whiten=True)),
        replay=(classes(), dict(head='replay', source='diffusion')))

def answers(model, x=X[600:640]):
    with torch.no_grad(): return model.eval()(x)

@pytest.mark.parametrize('name', heads())
def test_every_head_answers_as_if_the_rows_had_never_been_there(name):
    bank,kw = heads()[name]
    learn = learner(bank, **kw)
    quietly(learn, learn.fit, 1, 1e-2)
    answers(learn.model)        # what is worked out of rows is there
    twin = copy.deepcopy(learn.model)
    gone = item_ids(learn.dls.train)[[3,4,5,20,21]]
    res = learn.memory.forget(item=gone)
    head,other = learn.memory.head,next(m for m in twin.modules() if type(m) is type(learn.memory.head))
    assert res.rows['memory']>0 and (not res.old or not hasattr(head, 'refit') or head.refit is None), res
    f,norms,y,i,g,valid = other.bank.rows()
    left = ~torch.isin(i, gone) if valid is None else valid & ~torch.isin(i, gone)
    f,norms,y,i,g = (o[left].clone() for o in (f, norms, y, i, g))
    other.bank.reset()
    other.bank.write(f*norms[:,None] if hasattr(other.bank, 'norms') and other.bank.unit else f, y, item=i, group=g)
    if isinstance(other.bank, ClassBank): other.bank.average_rows()
    for k in ('fit_whitener','fit_means','fit_metric'):
        if hasattr(other, k) and not (k=='fit_whitener' and not other.whiten): getattr(other, k)()
    for k,v in head.named_buffers(recurse=False):       # what was fitted anew
        if v.ndim==0 and k not in ('at',): getattr(other, k).copy_(v)
    if hasattr(head, 'powers'): other.powers.copy_(head.powers)
    torch.testing.assert_close(answers(learn.model), answers(twin), atol=1e-4, rtol=1e-3)
    if name=='replay': assert learn.memory.head.draws.w0 is None, 'what was learned of them'
    quietly(learn, learn.fit, 1, 1e-3)      # training goes on

def test_fitted_weights_do_not_know_a_forgotten_validation_item(files):
    learn = trained(framed(files, lambda i: f'p {i}'), group='patient')
    theirs = item_ids(learn.dls.valid)[:3]
    seen = []
    head = learn.memory.head
    refit = head.refit
    head.refit = lambda got: (seen.append(got.item), refit(got))[1]
    res = learn.memory.forget(group='p 16')     # of the validation set alone
    assert res.rows=={'memory':0} and res.loaders=={'the validation set':3}
    assert len(seen)==1, 'the weights were fitted with it'
    assert len(seen[0])==N-CUT-3 and not torch.isin(theirs, seen[0]).any()
    assert res.fitted==['memory'] and not res.old
    del head.refit

def test_several_memories_and_one_that_has_no_callback(files):
    learn = trained(framed(files, lambda i: f'p {i}'), epochs=0, group='patient')
    learn.add_cb(MemoryCallback(ClassBank(learn.dls.c, capacity=8), name='rare', group='patient'))
    learn.add_cb(MemoryCallback(AssociativeBank(16), name='hebb', group='patient'))
    quietly(learn, learn.fit, 1, 1e-3)
    ids = item_ids(learn.dls.train)[15:18]
    had = {k:m.bank for k,m in learn.memories.items()}
    res = learn.memory.forget(group='p 5')
    assert {*res.rows}=={'memory','rare','hebb'} and res.anew==['hebb'] and res.rows['memory']==res.rows['hebb']==3
    for b in had.values(): assert not torch.isin(ids, b.rows()[3]).any()
    learn.remove_cb(learn.memory)
    cb = learn.rare
    assert cb.forget(item=item_ids(learn.dls.train)[[0,1]]).rows['rare']<=2

def test_in_the_middle_of_a_fit_it_is_refused(files):
    said = []
    class Tries(Callback):
        order = 50
        def after_batch(self):
            m = self.learn.memory
            if self.training and not said: said.append((err(m.forget, label=1), err(m.teach, files/'060.png', 1)))
    learn = trained(framed(files, lambda i: f'p {i}'), cbs=[Tries()])
    assert len(said)==1 and all('a fit is running' in o for o in said[0])
    said.clear()
    quietly(learn, learn.lr_find, num_it=3, show_plot=False)
    assert len(said)==1 and len(learn.memory.bank)
    said.clear()
    learn.memory.forget(label='digit 1', where=[])
    # another thread knows of the fit too
    class Beside(Callback):
        order = 51
        def after_batch(self):
            if not self.training or said: return
            t = threading.Thread(target=lambda: said.append(err(self.learn.memory.forget, label=2)))
            t.start()
            t.join()
    learn.cbs = L(o for o in learn.cbs if not isinstance(o, Tries))
    learn.add_cb(Beside())
    quietly(learn, learn.fit, 1, 1e-3)
    assert 'a fit is running' in said[0]

@pytest.mark.parametrize('kw', [dict(head='vote', whiten=True), dict(head='density')], ids=['vote','density'])
def test_another_thread_predicts_meanwhile(kw):
    learn = learner(SlotBank(64, policy='fifo'), **kw)
    quietly(learn, learn.fit, 1, 1e-2)
    wrong,stop = [],threading.Event()
    def ask():
        while not stop.is_set():
            try: assert answers(learn.model).isfinite().all()
            except BaseException as e: wrong.append(e); return
    t = threading.Thread(target=ask)
    t.start()
    ids = item_ids(learn.dls.train)
    for i in range(0, 40, 4): learn.memory.forget(item=ids[i:i+4], where=[])
    stop.set()
    t.join()
    assert not wrong, wrong

def test_a_learner_without_data(files, tmp_path):
    learn = trained(framed(files, lambda i: f'p {i}'), group='patient', path=tmp_path, keep='thumbnails')
    learn.export('e.pkl')
    new = load_learner(tmp_path/'e.pkl')
    gone = item_ids(learn.dls.train)[15:18]
    res = new.memory.forget(group='p 5', where=tmp_path)
    assert res.rows=={'memory':3} and res.old==['memory'] and [o.name for o in res.files]==['e.pkl'] and not res.loaders
    one = learn.memory.bank.items[0]
    assert new.memory.forget(item=int(one), where=[]).rows=={'memory':1}
    got = new.memory.teach(files/'060.png', 'digit 3')
    assert len(got)==1 and 'digit 3' in got.label.tolist()
    new.export(tmp_path/'f.pkl')
    assert not holds(tmp_path/'f.pkl', [o.numpy().tobytes() for o in gone])

def test_checkpoints_and_exports_after_it(files, tmp_path):
    learn = trained(framed(files, lambda i: f'p {i}'), group='patient', epochs=0, path=tmp_path, keep='thumbnails')
    quietly(learn, fit_stages, learn, [Stage('one', 1, lr=1e-3)], tmp_path/'before')
    bank = learn.memory.bank
    at = torch.isin(bank.items[:len(bank)], item_ids(learn.dls.train)[15:18]).nonzero().squeeze(1).tolist()
    theirs = marks(bank, at)+[bank.kept.of[int(bank.items[k])] for k in at]
    res = learn.memory.forget(group='p 5')
    assert res.files and all('before' in o.parts for o in res.files) and any(holds(o, theirs) for o in res.files)
    df = frame(files, lambda i: f'p {i}')
    learn.dls = of_frame(df[df.patient!='p 5'], files)
    stages = [Stage('one', 1, lr=1e-3), Stage('two', 1, lr=1e-3)]
    quietly(learn, fit_stages, learn, stages[:1], tmp_path/'after')
    learn.export(tmp_path/'after'/'e.pkl')
    export_model(learn, tmp_path/'after'/'m.pt2')
    found = [o for o in (tmp_path/'after').rglob('*') if o.is_file() and holds(o, theirs)]
    assert not found and bank is learn.memory.bank and len(bank)==CUT-3

@pytest.mark.slow
def test_after_it_nothing_is_in_an_onnx_file(tmp_path):
    pytest.importorskip('onnxscript')
    learn = learner(CachedBank(64), 'dual')
    quietly(learn, learn.fit, 1, 1e-2)
    bank,ids = learn.memory.bank,item_ids(learn.dls.train)[[3,4]]
    at = torch.isin(bank.items[:len(bank)], ids).nonzero().squeeze(1)
    v = bank.features[at]
    theirs = [o.numpy().tobytes() for o in v[v>.05][:9]]     # single numbers: a graph may have rows as columns
    export_model(learn, tmp_path/'before.onnx')
    assert holds(tmp_path/'before.onnx', theirs)
    export_model(learn, tmp_path/'before.pt2')
    (tmp_path/'other.onnx').write_bytes(b'of another model')
    res = learn.memory.forget(item=ids, where=tmp_path)
    assert sorted(o.name for o in res.exports)==['before.onnx','before.pt2'] and 'before.pt2' in str(res)
    export_model(learn, tmp_path/'after.onnx')
    assert not holds(tmp_path/'after.onnx', theirs)

def test_a_folder_that_was_shared_before_is_told(tmp_path):
    pytest.importorskip('huggingface_hub')
    learn = learner(SlotBank(64, policy='fifo'), head='vote')
    quietly(learn, learn.fit, 1, 1e-2)
    learn.save_memory_folder(tmp_path/'shared')
    for o in ('model.safetensors','config.json'):
        (tmp_path/'other').mkdir(exist_ok=True)
        (tmp_path/'other'/o).write_text('{"memories": {}}')
    res = learn.memory.forget(item=item_ids(learn.dls.train)[:2], where=tmp_path)
    assert res.exports==[tmp_path/'shared'/'model.safetensors'] and not res.files

def test_an_exit_takes_off_the_mean_of_the_rows_that_are_left():
    learn = learner(CachedBank(64), 'exit')
    quietly(learn, learn.fit, 1, 1e-2)
    gone = item_ids(learn.dls.train)[:6]
    learn.memory.forget(item=gone, where=[])
    bank = learn.memory.bank
    got = learn.memory.collect(learn.dls.train.new(shuffle=False, drop_last=False))
    z = got.z[torch.isin(got.item, bank.items[:len(bank)])]
    torch.testing.assert_close(z.mean(0), torch.zeros(z.shape[1]), atol=1e-4, rtol=0)
    assert not torch.isin(gone, bank.items).any()

# --- teach

def taught_of(learn): return learn.memory.bank.taught[learn.memory.bank.taught>=0].tolist()

def test_an_image_is_taught_and_found_at_once(files):
    learn = trained(framed(files, lambda i: f'p {i}'), CachedBank(64), head='dual', group='patient', threshold=.999)
    for i,(label,other) in enumerate([('digit 3','digit 7'), ('digit 0','digit 9')]):
        f = files/f'06{i}.png'
        got = learn.memory.teach(f, label, group='p new')
        assert got.after.tolist()==[label] and got.label.tolist()==[label]
        assert quietly(learn, learn.predict, f)[0]==label
        assert learn.memory.teach(f, other).after.tolist()==[other] and quietly(learn, learn.predict, f)[0]==other
    assert len(taught_of(learn))==2
    assert learn.memory.forget(item=files/'060.png', where=[]).rows=={'memory':1} and len(taught_of(learn))==1
    assert quietly(learn, learn.predict, files/'061.png')[0]=='digit 9'

def test_an_item_of_the_training_set_gets_another_label(files):
    learn = trained(framed(files, lambda i: f'p {i}'), CachedBank(64), head='dual', group='patient', threshold=.999)
    learn.memory.rekey()
    n,one = len(learn.memory.bank),item_ids(learn.dls.train)[4:5]
    for item in (files/'004.png', str(files/'004.png'), int(one), '004.png'):
        for label in ('digit 3','digit 7'):
            assert learn.memory.teach(item, label).after.tolist()==[label], item
        assert len(learn.memory.bank)==n and taught_of(learn)==one.tolist()
    # in a batch with others, which do not find themselves
    dl = learn.dls.test_dl([files/f'{i:03d}.png' for i in range(8)])
    p,_ = quietly(learn, learn.get_preds, dl=dl)
    vocab = list(learn.dls.vocab)
    assert vocab[p[4].argmax()]=='digit 7'
    with learn.memory.own_rows(): q,_ = quietly(learn, learn.get_preds, dl=dl)
    assert not torch.equal(p, q)

def test_several_at_once_and_what_is_refused(files, tmp_path):
    learn = trained(framed(files, lambda i: f'p {i}'), CachedBank(64), head='dual', threshold=.999)
    fs = [files/f'06{i}.png' for i in range(4)]
    got = learn.memory.teach(fs, ['digit 1','digit 2','digit 3','digit 4'])
    assert got.after.tolist()==got.label.tolist()
    assert learn.memory.teach(fs[:2], 5).label.tolist()==[5,5]
    was = len(learn.memory.bank)
    (tmp_path/'torn.png').write_bytes(b'no picture')
    for item,label,word in (
            (fs[0], 'digit 11', 'digit 11'), (fs[0], 10, '10'), (fs[0], ['digit 1','digit 2'], 'one class'),
            (fs[0], None, 'None'), (tmp_path/'torn.png', 1, 'torn'), (tmp_path/'none.png', 1, 'none.png'),
            (fs, [1,2], '4 items, and 2'), ([], 1, 'no item'), (12345, 1, '12345'), (None, 1, 'None')):
        assert word in err(learn.memory.teach, item, label), word
        assert len(learn.memory.bank)==was
    assert 'group' in err(learn.memory.teach, fs[0], 1, group='p 1')
    assert learn.memory.forget(item=fs, where=[]).rows=={'memory':4} and not taught_of(learn)
    learn.memory.forget(item=[int(o) for o in learn.memory.bank.items[:3]], where=[])
    learn.memory.forget(item=learn.memory.bank.items[:3].numpy(), where=[])
    learn.memory.forget(item=pd.Series(learn.memory.bank.items[:3].numpy()), where=[])
    assert len(learn.memory.bank)==was-4-9

def test_findings_by_name():
    learn = learner(SlotBank(64, policy='fifo'), 'vote', multi=True)
    x = X[700]
    got = learn.memory.teach(x, 'b')        # the bank is empty yet: what labels are is the task's matter
    assert learn.memory.bank.labels[0].tolist()==[0,1,0,0] and learn.memory.bank.multilabel
    learn.memory.teach(x, ['a','d'])
    assert learn.memory.bank.labels[0].tolist()==[1,0,0,1] and len(learn.memory.bank)==1
    quietly(learn, learn.fit, 1, 1e-2)
    assert learn.memory.forget(label='d', where=[]).rows['memory']>1

@pytest.mark.parametrize('keep', ['thumbnails','paths'])
def test_pictures_show_what_was_taught_until_it_is_forgotten(files, keep, tmp_path):
    learn = trained(framed(files, lambda i: f'p {i}'), CachedBank(64), head='dual', threshold=.999, keep=keep,
                    path=tmp_path)
    f = files/'062.png'
    learn.memory.teach(f, 'digit 3')
    bank = learn.memory.bank
    new = taught_of(learn)[0]
    assert new in bank.kept.of and len(bank.kept)==len(bank)
    fig = learn.explain([f], k=1)
    assert len([a for a in fig.axes if a.images])==2
    assert 'not in' not in ' '.join(t.get_text() for a in fig.axes for t in a.texts)
    kept = bank.kept.of[new]
    learn.memory.forget(item=f)
    learn.export(tmp_path/'e.pkl')
    assert not holds(tmp_path/'e.pkl', [kept, torch.tensor(new).numpy().tobytes()])

def test_learned_rows_are_taught_and_their_moments_begin_anew():
    learn = learner(TrainableBank(64), 'dual', threshold=.999, loss_weight=.4)
    quietly(learn, learn.fit, 1, 1e-2)
    bank,x = learn.memory.bank,X[700]
    got = learn.memory.teach(x, 3)
    assert got.after.tolist()==['3']
    slot = int((bank.items==taught_of(learn)[0]).nonzero())
    p = bank.features
    opts = [learn.opt,getattr(learn.opt, 'opt', None)]
    state = [v for o in opts for v in getattr(o, 'state', {}).get(p, {}).values()
             if torch.is_tensor(v) and v.shape==p.shape]
    assert state and all(float(v[slot].abs().max())==0 for v in state)
    quietly(learn, learn.fit, 1, 1e-3)
    res = learn.memory.forget(item=x, where=[])
    assert res.anew==['memory'] and not taught_of(learn)

def test_items_named_by_a_column(files):
    df = frame(files, lambda i: i).assign(key=[f'key {i}' for i in range(N)])
    learn = trained(of_frame(df, files), CachedBank(64), head='dual', threshold=.999, item='key', group='patient')
    n = len(learn.memory.bank)
    assert learn.memory.forget(item='key 4', where=[]).rows=={'memory':1}
    assert learn.memory.forget(item='005.png', where=[]).rows=={'memory':1} and len(learn.memory.bank)==n-2
    assert 'no loader' in err(learn.memory.forget, item='key 99')
    assert learn.memory.teach(files/'063.png', 'digit 2').after.tolist()==['digit 2']
    assert learn.memory.teach(df.iloc[6], 'digit 2').after.tolist()==['digit 2'] and len(learn.memory.bank)==n-1

# --- several processes, and findings of patients

@pytest.mark.slow
def test_two_processes_stay_equal(two_ranks, repo, tmp_path):
    r = two_ranks(repo/'tests/training/forget_script.py', tmp_path, cwd=repo)
    assert r.returncode==0, r.stdout[-3000:]+r.stderr[-6000:]
    a,b = (torch.load(tmp_path/f'rank{i}.pt', weights_only=True) for i in range(2))
    for name in a:
        assert a[name]['rows']==b[name]['rows']>0 and a[name]['edited'].keys()==b[name]['edited'].keys()
        for when in ('edited','model'):
            for k,v in a[name][when].items():
                # statistics of batch norm are each rank's own
                if 'norm.running' not in k: assert torch.equal(v, b[name][when][k]), (name, when, k)
        assert not torch.isin(a[name]['ids'], a[name]['edited']['memory.bank.items' if 'memory.bank.items' in a[name][
            'edited'] else next(k for k in a[name]['edited'] if k.endswith('bank.items'))]).any()

@pytest.mark.slow
def test_a_patient_of_chest_images(tmp_path):
    dls = chest_mosaic(80, tmp_path, seed=1)
    learn = trained(dls, SlotBank(512, policy='fifo'), epochs=0, group='patient')
    learn.metrics = L()
    quietly(learn, learn.fit, 1, 1e-3)
    bank,groups = learn.memory.bank,dls.train_ds.groups
    one = next(int(o) for o in bank.groups[:len(bank)].unique() if int((bank.groups==o).sum())>1)
    n = int((bank.groups==one).sum())
    res = learn.memory.forget(group=f'{one:08d}', where=[])
    assert res.rows=={'memory':n} and not (bank.groups==one).any()
    assert res.loaders['the training set']==int((groups==one).sum())
    x = dls.train_ds.x[(groups==one).nonzero()[0,0]]
    got = learn.memory.teach(x, 'Hernia', group=one)
    assert (bank.groups==one).sum()==1 and list(got.columns)==['label','before','after']
    assert learn.memory.forget(group=one, where=[]).rows=={'memory':1}
    assert learn.memory.forget(label='Hernia', where=[]).rows['memory']>=0

def test_tokens_that_vote():
    learn = learner(SlotBank(512, policy='fifo'), 'token_vote')
    ids = item_ids(learn.dls.train)
    try: quietly(learn, learn.fit, 1, 1e-2)
    except Exception: pytest.skip('this network has no tokens')
    learn.memory.forget(item=ids[:4], where=[])
    assert not torch.isin(ids[:4], learn.memory.bank.items).any() and answers(learn.model).isfinite().all()

# --- many files

def test_older_files_are_found_quickly(tmp_path):
    ids = torch.randint(2**40, 2**62, (1000,))
    big = torch.randint(2**40, 2**62, (2**22,))         # 32 MB
    torch.save(big, tmp_path/'none.pth')
    big[12345] = ids[7]
    (tmp_path/'deep'/'er').mkdir(parents=True)
    torch.save(dict(x=big), tmp_path/'deep'/'er'/'one.pth')
    (tmp_path/'.hidden').mkdir()
    torch.save(ids, tmp_path/'.hidden'/'x.pth')
    (tmp_path/'loop').symlink_to(tmp_path, target_is_directory=True)
    for i in range(300): (tmp_path/f'{i}.txt').write_text('no')
    rows = [*big[2**20:][:2**16].tolist(),int(ids[3])]     # a table that ends with one of them
    (tmp_path/'no.csv').write_text('\n'.join(map(str, rows[:-1])))
    (tmp_path/'one.tsv').write_text('\t'.join(map(str, rows)))
    began = time.process_time()
    assert {o.name for o in files_with(ids, [tmp_path, tmp_path/'deep'])}=={'one.pth','one.tsv'}
    assert time.process_time()-began<2
    assert not files_with(torch.tensor([3,5]), [tmp_path]) and not files_with(ids[:0], [tmp_path])
