"Many kinds of learners as they are shared: what comes back answers alike, and holds nothing that is nobody else's"
import hashlib, json, re, shutil, threading
import pytest, torch
from fastai.vision.all import (Learner, Path, accuracy, BCEWithLogitsLossFlat, Callback, DataLoaders, ImageDataLoaders,
                               MSELossFlat, Resize, nn, set_seed)
from PIL import Image
from safetensors.torch import load_file
from helpers.learners import quietly
from memo.all import *

def answers(learn, items): return quietly(learn, 'get_preds', dl=learn.dls.test_dl(items, num_workers=0))[0]
def alike(a, b, items):
    torch.testing.assert_close(answers(a, items), answers(b, items), rtol=1e-4, atol=1e-5)
    assert str(quietly(a, 'predict', items[0])[1])==str(quietly(b, 'predict', items[0])[1])

def voting(loss=None, net=None, cbs=(), n=1):
    set_seed(0)
    dls = digits_lt(40, 10, device='cpu', bs=32)
    cbs = [MemoryCallback(SlotBank(60, policy='fifo'), head='vote'), *cbs]
    learn = Learner(dls, net or small_cnn(1, 10), loss_func=loss, metrics=accuracy, cbs=cbs)
    quietly(learn, 'fit', n, 1e-2)
    return learn

@pytest.fixture(scope='module')
def shared(tmp_path_factory): return voting().save_memory_folder(tmp_path_factory.mktemp('shared')/'digits')

def changed(folder, to, change, weights=None):
    "A copy of a folder that says something else"
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    cfg = json.loads((to/'config.json').read_text())
    change(cfg)
    if weights is not None:
        (to/'model.safetensors').write_bytes(weights)
        cfg['files']['model.safetensors']['sha256'] = hashlib.sha256(weights).hexdigest()
    (to/'config.json').write_text(json.dumps(cfg))
    return to

@pytest.mark.parametrize('method', [lambda: Replay(size=30, batch_size=10), lambda: DERpp(size=30, batch_size=10),
                                    lambda: ICaRL(size=30), LwF, EWC, NearestMean])
def test_what_a_continual_method_keeps_is_not_shared(method, tmp_path):
    "Replay keeps whole images in the model; and banks of statistics are none of the registry"
    set_seed(0)
    stream,cb = split_digits(bs=32),method()
    learn = Learner(stream.whole, small_cnn(1, 10), cbs=[cb])
    with learn.no_bar(), learn.no_logging(): learn.fit_stream(stream[:2], 1, 1e-2)
    was = {k:v.clone() for k,v in learn.model.state_dict().items()}
    d = learn.save_memory_folder(tmp_path/'shared')
    size = stream.whole.one_batch()[0][0].shape
    assert not any(v.shape[1:]==size for v in load_file(d/'model.safetensors').values())
    now = learn.model.state_dict()
    assert was.keys()==now.keys() and all(torch.equal(v, now[k]) for k,v in was.items())    # the owner keeps it
    alike(from_hub(d, model=small_cnn(1, 10)), learn, [*stream.whole.valid.dataset.x[:30].numpy()])

def test_findings_are_found_above_the_threshold_of_the_loss(tmp_path):
    x,y = torch.rand(40, 1, 8, 8),(torch.rand(40, 3)>.5).float()
    dls = DataLoaders(*(TensorDL(x, y, bs=8) for _ in range(2)), device='cpu')
    cb = MemoryCallback(SlotBank(20, policy='fifo'), head='vote')
    for t in (.01, .99):
        learn = Learner(dls, small_cnn(1, 3), BCEWithLogitsLossFlat(thresh=t), cbs=cb)
        quietly(learn, 'fit', 1)
        alike(from_hub(learn.save_memory_folder(tmp_path/'findings'), model=small_cnn(1, 3)), learn,
              [*torch.rand(5, 1, 8, 8).numpy()])
        learn.remove_cb(cb)

def test_the_class_is_told_of_a_loss_without_decodes(tmp_path):
    "`nn.CrossEntropyLoss` says no activation, and a reader is told one class all the same"
    learn = voting(nn.CrossEntropyLoss())
    new = from_hub(learn.save_memory_folder(tmp_path/'plain'), model=small_cnn(1, 10))
    x = [*learn.dls.valid.dataset.x[:20].numpy()]
    p = answers(learn, x)
    torch.testing.assert_close(answers(new, x), p, rtol=1e-4, atol=1e-5)
    assert [int(quietly(new, 'predict', o)[1]) for o in x[:5]]==p[:5].argmax(1).tolist()

class Scaled(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.net,self.by = small_cnn(1, 10),by
    def forward(self, x): return self.net(self.by*x)

def test_a_network_of_the_same_weights_that_answers_otherwise_is_refused(tmp_path):
    learn = voting(net=Scaled(1.))
    d = learn.save_memory_folder(tmp_path/'scaled')
    with pytest.raises(MemoError, match='answers otherwise'): from_hub(d, model=Scaled(.1))
    alike(from_hub(d, model=Scaled(1.)), learn, [*learn.dls.valid.dataset.x[:20].numpy()])

def test_saved_in_the_middle_of_a_fit(tmp_path):
    "The fit goes on as if nothing had been saved"
    class Saves(Callback):
        def after_batch(self):
            if self.training and self.iter==1: self.learn.save_memory_folder(tmp_path/'now')
        def after_epoch(self): self.learn.save_memory_folder(tmp_path/'epoch')
    a,b = voting(n=2),voting(cbs=[Saves()], n=2)
    assert a.recorder.values==b.recorder.values
    for k,v in a.model.state_dict().items(): assert torch.equal(v, b.model.state_dict()[k]), k
    assert from_hub(tmp_path/'now', model=small_cnn(1, 10)) and (tmp_path/'epoch'/'README.md').is_file()

def test_loading_leaves_random_numbers_as_they_were(shared, tmp_path):
    made = changed(shared, tmp_path/'made', lambda c: c.update(network=dict(
        name='small_cnn', args={}, n_classes=10, c_in=1, n_in=64, ensembled=1, frozen=False)))
    state = torch.get_rng_state()
    from_hub(made)
    assert torch.equal(state, torch.get_rng_state())

vit = dict(name='linear_probe', n_classes=10, c_in=1, n_in=64, ensembled=1, frozen=False)
def with_args(**args): return lambda c: c.update(network=dict(vit, args=dict(arch='vit_tiny_patch16_224', **args)))
cnn = dict(vit, name='small_cnn', args={})

@pytest.mark.parametrize('change,says', [
    (with_args(img_size=32, timm=dict(depth=1, checkpoint_path='weights.pth')), 'no path'),
    (with_args(img_size=32, timm=dict(depth=1, pretrained_cfg=dict(file='weights'))), 'no path'),
    (with_args(hidden=10**9), 'larger than the weights'),
    (lambda c: c.update(network=dict(cnn, n_classes=10**10)), 'larger than the weights'),
    (lambda c: c.update(network=dict(cnn, ensembled=10**12)), 'larger than the weights'),
    (lambda c: c.update(shape=[1,10**5,10**5]), 'shape'),
    (lambda c: c.update(shape=[1,10**5,10**5], input=dict(kind='tensor', shape=[1,10**5,10**5], dtype='float32')),
     'input'),
    (lambda c: c['input'].update(size=[]), 'input'), (lambda c: c['input'].update(mean=[]), 'input'),
    (lambda c: c['input'].update(std=[0]), 'input'), (lambda c: c['input'].update(mean=[True]), 'input'),
    (lambda c: c.update(vocab={}), 'vocab'), (lambda c: c.update(vocab=[1,2]), 'vocab'),
    (lambda c: c.update(task=3), 'task'), (lambda c: c.update(activation=[]), 'activation'),
    (lambda c: c.update(thresholds=[]), 'threshold'), (lambda c: c.update(thresholds=[7]), 'threshold')])
def test_a_folder_that_says_what_no_model_has(shared, tmp_path, change, says):
    bad = changed(shared, tmp_path/'bad', change)
    with pytest.raises(MemoError, match=says) as e: from_hub(bad)
    assert '\n' not in str(e.value) and len(str(e.value))<400

def test_a_bank_that_says_more_rows_than_are_there(shared, tmp_path):
    "Its buffers are left out of the file, so that no shape contradicts it"
    state = load_file(shared/'model.safetensors')
    own = [k for k in state if '.bank.' in k]
    said = json.loads(bytes(state[o := next(k for k in own if k.endswith('bank._extra_state'))].tolist()))
    few = {k:v for k,v in state.items() if k not in own}
    from safetensors.torch import save
    few[o] = torch.frombuffer(bytearray(json.dumps(dict(said, size=2*10**8)).encode()), dtype=torch.uint8)
    bad = changed(shared, tmp_path/'bad', lambda c: None, save(few))
    with pytest.raises(MemoError, match='says'): from_hub(bad, model=small_cnn(1, 10))

@pytest.fixture(scope='module')
def numbered(tmp_path_factory):
    d,g = tmp_path_factory.mktemp('numbered'),torch.Generator().manual_seed(0)
    for i in range(24):
        f = d/('left','right')[i%2]/('photo.jpg' if i==3 else f'{12345+i}')
        f.parent.mkdir(exist_ok=True)
        Image.fromarray(torch.randint(0, 255, (20,30,3), generator=g).to(torch.uint8).numpy()).save(f, 'png')
    return d

def test_names_of_items_that_stand_in_other_texts_by_chance(numbered, tmp_path, monkeypatch):
    "A file named 12345 is not named by .0123456, nor one named photo.jpg by the card's example; a whole name is"
    fs = sorted(o for o in numbered.rglob('*') if o.is_file())
    dls = ImageDataLoaders.from_path_func(numbered, fs, lambda o: o.parent.name, item_tfms=Resize(16), bs=8,
                                          num_workers=0, device='cpu')
    learn = Learner(dls, small_cnn(3, 2), cbs=MemoryCallback(SlotBank(20), head='vote', k=3))
    quietly(learn, 'fit', 1)
    import memo.experiment.memory_folder as m
    def says(v): monkeypatch.setattr(m, 'version', lambda: v)
    says(' '.join(f'0.9{12345+i}7' for i in range(24)))
    assert (learn.save_memory_folder(tmp_path/'chance')/'config.json').is_file()
    names = [o.name for o in fs if o.name!='photo.jpg']
    says(f'by {names[5]}')
    with pytest.raises(MemoError, match=names[5]): learn.save_memory_folder(tmp_path/'named')
    assert not (tmp_path/'named').exists()

def test_files_of_the_data_are_no_settings():
    "Neither their folders nor their names"
    from memo.experiment.sections import public_settings
    cfg = load_config('quickstart')
    for data in (dict(name='csv', csv='miller_patients.csv'), dict(name='csv', csv='there/miller.csv')):
        said = public_settings(override(cfg, {'data':data}))
        assert 'miller' not in str(said) and said['data.image']=='image'

def test_files_of_another_kind_than_the_description_are_not_promised(tmp_path):
    "Of 16 bits a channel: the loader cuts them off at 255, which no description says"
    for i in range(16):
        f = tmp_path/('left','right')[i%2]/f'{i}.png'
        f.parent.mkdir(exist_ok=True)
        Image.fromarray((torch.rand(20, 30)*65535).numpy().astype('uint16')).save(f)
    dls = ImageDataLoaders.from_folder(tmp_path, valid_pct=.5, item_tfms=Resize(16), bs=4, num_workers=0, device='cpu')
    learn = Learner(dls, small_cnn(3, 2), cbs=MemoryCallback(SlotBank(20), head='vote', k=3))
    quietly(learn, 'fit', 1)
    with pytest.warns(UserWarning, match='has no description'): d = learn.save_memory_folder(tmp_path/'shared')
    with pytest.warns(UserWarning, match='as the network takes them'): new = from_hub(d, model=small_cnn(3, 2))
    with pytest.raises(MemoError, match='item'): quietly(new, 'predict', str(f))
    x = [*dls.valid.one_batch()[0]]
    with learn.memory.off(), new.memory.off():
        torch.testing.assert_close(answers(new, x), learn.model.eval()(torch.stack(x)).softmax(1).detach(), rtol=1e-4,
                                   atol=1e-5)

def looks(net):
    "What can be told of a network from outside"
    hooks = [len(m._forward_hooks)+len(m._forward_pre_hooks) for m in net.modules()]
    return [n for n,_ in net.named_modules()],[m.training for m in net.modules()],hooks,'forward' in vars(net)

@pytest.mark.parametrize('make', [lambda: small_cnn(1, 7), lambda: small_cnn(3, 10), lambda: Scaled(1.),
                                  lambda: nn.Sequential(*small_cnn(1, 10), nn.Softmax(1)), lambda: small_cnn(1, 10)])
def test_a_network_that_is_given_stays_as_it_is(shared, make):
    "Whether it is the one that was shared or not: so it can be given again, to another folder too"
    net = make()
    was,state = looks(net),{k:v.clone() for k,v in net.state_dict().items()}
    try: learns = [from_hub(shared, model=net) for _ in range(2)]
    except MemoError as e: assert re.search('another network|no place', str(e))
    else: assert len({id(o.model) for o in learns}|{id(net)})==3
    assert looks(net)==was and all(torch.equal(v, net.state_dict()[k]) for k,v in state.items())
    net(torch.rand(2, next(net.parameters()).shape[1], 8, 8))     # it runs as before

@pytest.mark.parametrize('failure', [OSError(28, 'No space left on device'), KeyboardInterrupt()])
@pytest.mark.parametrize('at', ['config.json','model.safetensors','README.md'])
def test_a_save_that_is_interrupted_leaves_what_was_there(shared, tmp_path, monkeypatch, at, failure):
    learn = from_hub(shared, model=small_cnn(1, 10))
    d = learn.save_memory_folder(tmp_path/'shared')
    was = {o.name:o.read_bytes() for o in d.iterdir()}
    learn.memory.forget(label='1')
    copy = shutil.copyfile
    def fails(a, b):
        if f'.{at}.' in Path(b).name: raise failure
        return copy(a, b)
    with monkeypatch.context() as m:
        m.setattr(shutil, 'copyfile', fails)
        with pytest.raises(KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else MemoError) as e:
            learn.save_memory_folder(d)
    if e.type is MemoError: assert 'No space left' in str(e.value) and str(d) in str(e.value)
    assert {o.name:o.read_bytes() for o in d.iterdir()}==was
    assert len(from_hub(learn.save_memory_folder(d), model=small_cnn(1, 10)).memory.bank)==len(learn.memory.bank)

def test_what_a_killed_save_has_left_is_in_no_ones_way(shared, tmp_path):
    from memo.experiment.memory_folder import check_free,put_files
    d = tmp_path/'shared'
    d.mkdir()
    for o in ('.lock','.config.json.x1y2.part'): (d/o).write_text('half')
    check_free(d)
    put_files(shared, d)
    assert {o.name for o in d.iterdir()}=={o.name for o in shared.iterdir()}
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'thesis.part').write_text('x')
    with pytest.raises(MemoError, match='is there'): check_free(tmp_path/'mine')

def test_a_folder_that_is_read_and_written_at_once_is_of_one_save(shared, tmp_path):
    from memo.experiment.memory_folder import digest,put_files,read_folder
    other = changed(shared, tmp_path/'other', lambda c: c.update(vocab=[*'abcdefghij']), b'x'*10**6)
    d,wrong,stop = tmp_path/'both',[],threading.Event()
    put_files(shared, d)
    def write():
        while not stop.is_set():
            for o in (other, shared):
                try: put_files(o, d)
                except MemoError as e: wrong.extend([] if 'being written' in str(e) else [e])
    ts = [threading.Thread(target=write) for _ in range(2)]
    for o in ts: o.start()
    try:
        got = set()
        for _ in range(60):
            cfg,b = read_folder(d)
            assert digest(b)==cfg['files']['model.safetensors']['sha256']
            got.add(cfg['vocab'][0])
    finally:
        stop.set()
        for o in ts: o.join()
    assert got=={'0','a'} and not wrong
    assert not [o for o in d.iterdir() if o.name.startswith('.')] and read_folder(d)

def test_of_several_processes_one_writes(shared, tmp_path, monkeypatch):
    pytest.importorskip('huggingface_hub')
    learn = from_hub(shared, model=small_cnn(1, 10))
    import memo.experiment.hub as h
    import memo.experiment.memory_folder as m
    for o in (m, h): monkeypatch.setattr(o, 'rank_distrib', lambda: 1)
    assert learn.save_memory_folder(tmp_path/'shared')==tmp_path/'shared' and not (tmp_path/'shared').exists()
    assert learn.push_memory_to_hub('me/digits', folder=shared, token='t') is None      # asks no endpoint

def test_names_of_classes_are_no_markup_in_the_card(tmp_path):
    names = ['a`b','c|d','<img src=x>','e\nf','---','g\n\n# Heading','[x](http://there)','{head}','%s','\u202egnp']
    learn = voting()
    learn.dls.vocab = names
    d = learn.save_memory_folder(tmp_path/'shared')
    lines = (d/'README.md').read_text().splitlines()
    assert '# Heading' not in lines and not any(c in '\n'.join(lines).replace('\\<', '') for c in ('<img','\u202e'))
    task, = [o for o in lines if o.startswith('Task: ')]
    assert all(o in task for o in (r'a\`b', r'c\|d', r'e\nf', '{head}', r'[x\](')) and task.count('`')==1
    assert [*from_hub(d, model=small_cnn(1, 10)).dls.vocab]==names

def test_a_network_that_cannot_be_copied_is_one_line(shared, tmp_path):
    "As one of `AWD_LSTM`, whose weights a forward has made"
    learn,net = voting(),small_cnn(1, 10)
    for o in (learn.model, net): o.made = next(o.parameters())*1
    with pytest.raises(MemoError, match='cannot be copied'): learn.save_memory_folder(tmp_path/'shared')
    with pytest.raises(MemoError, match='cannot be copied'): from_hub(shared, model=net)

def test_a_regression_has_no_classes(tmp_path):
    x,y = torch.rand(40, 1, 8, 8),torch.rand(40, 1)
    dls = DataLoaders(*(TensorDL(x, y, bs=8) for _ in range(2)), device='cpu')
    learn = Learner(dls, small_cnn(1, 1), MSELossFlat(), cbs=MemoryCallback(SlotBank(20), head='add'))
    quietly(learn, 'fit', 1)
    d = learn.save_memory_folder(tmp_path/'shared')
    assert json.loads((d/'config.json').read_text())['vocab'] is None
    assert 'class' not in (d/'README.md').read_text().split('## Limits')[0].replace('something else than classes', '')
    new,o = from_hub(d, model=small_cnn(1, 1)),torch.rand(1, 8, 8).numpy()
    assert float(quietly(new, 'predict', o)[1])==pytest.approx(float(quietly(learn, 'predict', o)[1]), abs=1e-4)

def test_a_full_disk_is_not_said_to_be_the_network(monkeypatch, tmp_path):
    pytest.importorskip('huggingface_hub')
    learn = voting()
    import memo.experiment.memory_folder as m
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(m, 'write_card', full)
    with pytest.raises(Exception) as e: learn.push_memory_to_hub('me/digits', token='t')
    assert 'cannot be reached' not in str(e.value) and 'No space left' in str(e.value)

@pytest.mark.parametrize('repo', ['a'*5000, 'b'*300+'/'+'c'*300, None, 3, '', 'x\0/y'])
def test_no_name_at_all(repo):
    with pytest.raises(MemoError) as e: from_hub(repo, token='t')
    assert '\n' not in str(e.value) and len(str(e.value))<300
