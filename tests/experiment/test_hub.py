"A model that is shared: pushed to a Hub on the loopback and read back, without pickle, data, ids or folders"
import json, pickle, re, shutil, warnings
import numpy as np, pytest, torch
from fastai.vision.all import (CategoryBlock, CrossEntropyLossFlat, DataBlock, DataLoaders, GrandparentSplitter,
                               ImageBlock, Learner, Path, Resize, accuracy, get_image_files,
                               nn, parent_label, resnet18, vision_learner)
from PIL import Image
from helpers.hub import FakeHub
from helpers.learners import quietly
from memo.all import *

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    d = tmp_path_factory.mktemp('runs')
    few = {'seeds':[0], 'train.epochs':2, 'compare':['balanced_sampling'], 'runs':str(d)}
    run_experiment(override(load_config('quickstart'), few), log=lambda *a: None)
    return d/'quickstart'

@pytest.fixture(scope='module')
def folder(run, tmp_path_factory): return load_run(run).save_memory_folder(tmp_path_factory.mktemp('shared')/'digits')

@pytest.fixture
def hub(monkeypatch, tmp_path):
    import huggingface_hub.constants as c
    h = FakeHub()
    monkeypatch.setattr(c, 'ENDPOINT', h.url)
    monkeypatch.setattr(c, 'HUGGINGFACE_CO_URL_TEMPLATE', h.url+'/{repo_id}/resolve/{revision}/{filename}')
    monkeypatch.setattr(c, 'HF_HUB_CACHE', str(tmp_path/'cache'))
    for k,v in dict(HF_HUB_DISABLE_XET=True, HF_HUB_OFFLINE=False).items(): monkeypatch.setattr(c, k, v)
    yield h
    h.close()

def answers(learn, items): return quietly(learn, 'get_preds', dl=learn.dls.test_dl(items, num_workers=0))[0]

def test_a_run_goes_to_the_hub_and_back(run, hub):
    learn = load_run(run)
    url = learn.push_memory_to_hub('me/digits', token='secret')
    assert url.startswith(hub.url)
    assert hub.repos['me/digits']['private']        # unless it is asked for otherwise
    got = hub.files('me/digits')
    assert {*got}=={'README.md','config.json','model.safetensors','comparison.png'}
    new = from_hub('me/digits', token='secret')
    x = [*learn.dls[2].dataset.x.numpy()]
    torch.testing.assert_close(answers(new, x), answers(learn, x), rtol=1e-4, atol=1e-5)
    with new.memory.off(), learn.memory.off():      # the network alone too
        torch.testing.assert_close(answers(new, x), answers(learn, x), rtol=1e-4, atol=1e-5)
    assert [*map(str, new.dls.vocab)]==[*map(str, learn.dls.vocab)]
    assert quietly(new, 'predict', x[3])[0]==quietly(learn, 'predict', x[3])[0]
    assert len(new.memory.bank)==len(learn.memory.bank)
    r,was = new.recall(x[:4], k=3),learn.recall(x[:4], k=3)
    assert torch.equal(r.row_label, was.row_label)

def test_an_older_revision_is_still_what_it_was(run, hub):
    learn = load_run(run)
    learn.push_memory_to_hub('me/digits', token='secret')
    n = len(learn.memory.bank)
    learn.memory.forget(label='1')
    second = learn.push_memory_to_hub('me/digits', token='secret').rpartition('/')[2]
    assert len(from_hub('me/digits', token='secret').memory.bank)<n
    from helpers.hub import sha_of
    assert len(from_hub('me/digits', token='secret', revision=sha_of('me/digits', 1)).memory.bank)==n
    assert len(from_hub('me/digits', token='secret', revision=second).memory.bank)<n
    with pytest.raises(MemoError, match='no such revision'): from_hub('me/digits', token='secret', revision='nowhere')

def test_what_was_looked_at_is_what_is_pushed(run, hub, tmp_path):
    learn = load_run(run)
    d = learn.save_memory_folder(tmp_path/'digits')
    text = (d/'README.md').read_text().replace('# A network with a memory', '# Digits of mine')
    (d/'README.md').write_text(text)
    (d/'notes.txt').write_text('not for others')
    learn.push_memory_to_hub('me/digits', folder=d, token='secret')
    got = hub.files('me/digits')
    assert b'# Digits of mine' in got['README.md'] and 'notes.txt' not in got and 'comparison.png' in got
    (d/'comparison.png').unlink()
    learn.push_memory_to_hub('me/digits', folder=d, token='secret')
    assert {*hub.files('me/digits')}=={'README.md','config.json','model.safetensors'}       # nothing of before is left

def test_a_public_repository_has_to_be_asked_for(run, hub):
    hub.repos['me/open'] = dict(private=False, commits=[{}])
    learn = load_run(run)
    with pytest.raises(MemoError, match='is public'): learn.push_memory_to_hub('me/open', token='secret')
    assert hub.files('me/open')=={}
    learn.push_memory_to_hub('me/open', token='secret', private=False)
    assert 'model.safetensors' in hub.files('me/open')

def test_what_the_hub_refuses_is_one_line_without_the_token(folder, hub, monkeypatch):
    learn = from_hub(folder)
    def push(name, token='secret'): learn.push_memory_to_hub(name, folder=folder, token=token)
    with pytest.raises(MemoError) as e: push('me/digits', 'wrong-token-of-mine')
    assert 'hf auth login' in str(e.value) and 'wrong-token' not in str(e.value) and '\n' not in str(e.value)
    with pytest.raises(MemoError, match='no such repository'): from_hub('me/nothing', token='secret')
    with pytest.raises(MemoError, match="user/name"): push('not a name/..')

@pytest.mark.parametrize('how', ['drop',403,413,507])
@pytest.mark.parametrize('at', ['^/lfs/','/objects/batch','/commit/'])
def test_a_push_that_is_broken_off_is_one_line_and_goes_when_it_is_tried_again(folder, hub, monkeypatch, how, at):
    learn = from_hub(folder)
    monkeypatch.setattr('time.sleep', lambda s: None)       # the client tries again, and waits
    hub.refuse = lambda method, path: how if method in ('POST','PUT') and re.search(at, path) else None
    with pytest.raises(MemoError) as e: learn.push_memory_to_hub('me/digits', folder=folder, token='secret')
    assert hub.files('me/digits')=={} and '\n' not in str(e.value) and len(str(e.value))<=300
    assert 'secret' not in str(e.value) and str(e.value).startswith("push_memory_to_hub: 'me/digits': ")
    assert {'drop':'cannot be reached', 403:'does not let you'}.get(how, f'answers {how}') in str(e.value)
    hub.refuse = lambda method, path: None
    learn.push_memory_to_hub('me/digits', folder=folder, token='secret')
    assert 'model.safetensors' in hub.files('me/digits')

@pytest.mark.parametrize('code,at,says', [(400,'validate-yaml','Invalid metadata'), (429,'/api/models','answers 429'),
                                          (500,'/api/models','answers 500'), (507,'/resolve/','answers 507')])
def test_what_the_hub_answers_is_said(folder, hub, monkeypatch, code, at, says):
    "Not that it could not be reached"
    learn = from_hub(folder)
    monkeypatch.setattr('time.sleep', lambda s: None)
    if code!=400: learn.push_memory_to_hub('me/digits', folder=folder, token='secret')
    hub.refuse = lambda method, path: code if at in path else None
    with pytest.raises(MemoError, match=says):
        if code==400: learn.push_memory_to_hub('me/digits', folder=folder, token='secret')
        else: from_hub('me/digits', token='secret')

def test_a_full_disk_is_not_said_to_be_the_network_when_it_is_read(folder, hub, monkeypatch):
    from_hub(folder).push_memory_to_hub('me/digits', folder=folder, token='secret')
    def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('huggingface_hub.HfApi.snapshot_download', full)
    with pytest.raises(MemoError, match='No space left'): from_hub('me/digits', token='secret')

def test_a_repository_of_another_model_is_not_written_over(folder, hub):
    learn = from_hub(folder)
    def push(name): learn.push_memory_to_hub(name, folder=folder, token='secret')
    texts = dict(bert=b'{"model_type":"bert"}', list=b'[]', odd=b'\xff')
    others = dict({k:{'config.json':v} for k,v in texts.items()}, weights={'model.safetensors':b'x'})
    for k,there in others.items():
        hub.repos[f'me/{k}'] = dict(private=True, commits=[there])
        with pytest.raises(MemoError, match='holds another model'): push(f'me/{k}')
        assert hub.files(f'me/{k}')==there
    other = {'README.md':b'begun on the site', '.gitattributes':b'x', 'evil.py':b'import os'}
    hub.repos['me/begun'] = dict(private=True, commits=[other])
    for _ in range(2): push('me/begun')         # and again over its own
    got = hub.files('me/begun')
    assert got['evil.py']==b'import os' and b'# A network' in got['README.md']
    from_hub('me/begun', token='secret')
    assert not any('evil' in path for _,path,_ in hub.seen if 'resolve' in path)

def test_offline_what_was_read_before_is_read_again(folder, hub, monkeypatch):
    import huggingface_hub.constants as c
    learn = from_hub(folder)
    learn.push_memory_to_hub('me/digits', folder=folder, token='secret')
    monkeypatch.setattr(c, 'HF_HUB_OFFLINE', True)
    with pytest.raises(MemoError, match='HF_HUB_OFFLINE is set'): from_hub('me/digits', token='secret')
    with pytest.raises(MemoError, match='HF_HUB_OFFLINE is set'):
        learn.push_memory_to_hub('me/digits', folder=folder, token='secret')
    monkeypatch.setattr(c, 'HF_HUB_OFFLINE', False)
    from_hub('me/digits', token='secret')
    monkeypatch.setattr(c, 'HF_HUB_OFFLINE', True)
    assert len(from_hub('me/digits', token='secret').memory.bank)==len(learn.memory.bank)

def test_no_network_is_one_line(folder, monkeypatch):
    import huggingface_hub.constants as c
    monkeypatch.setattr(c, 'ENDPOINT', 'http://127.0.0.1:9')
    monkeypatch.setattr(c, 'HF_HUB_OFFLINE', False)
    learn = from_hub(folder)
    for f in (lambda: learn.push_memory_to_hub('me/digits', folder=folder, token='t'),
              lambda: from_hub('me/digits', token='t')):
        with pytest.raises(MemoError, match='cannot be reached') as e: f()
        assert '127.0.0.1:9' in str(e.value)

def test_nothing_of_the_data_or_the_machine_is_shared(run, folder):
    learn = load_run(run)
    ids = {int(o) for h in (learn.memory.bank.items, learn.memory.bank.groups) for o in h if int(o)>=0}
    assert ids      # or this would say nothing
    from safetensors.torch import load_file
    state = load_file(folder/'model.safetensors')
    for k,v in state.items():
        if v.dtype==torch.int64: assert not ids & {*v.flatten().tolist()}, k
    assert not any('kept' in k for k in state)
    for o in folder.iterdir():
        b = o.read_bytes()
        for t in (str(run), str(Path.home()), str(Path.cwd())): assert t.encode() not in b or len(t)<5, (o, t)
        assert b[:2]!=b'\x80\x04'
    x = learn.dls.train.dataset.x
    assert not any(v.dtype==torch.uint8 and v.numel()==x.numel() for v in state.values())

def test_the_card_says_what_a_reader_needs(folder):
    from huggingface_hub import ModelCard
    card = ModelCard.load(folder/'README.md')
    assert card.data.library_name=='fastmemo' and 'multiclass' in card.data.tags
    t = card.text
    for o in ('plain network + memory', '| 9 | 2 |', 'validation 200', '`train.lr`', 'forget(', '![', 'digits_lt',
              "from_hub('REPO')"):
        assert o in t, o
    assert 'runs' not in t and '/tmp' not in t

def test_the_card_of_a_model_that_was_changed_shows_no_figures_of_the_run(run, folder, tmp_path):
    learn = load_run(run)
    learn.memory.forget(label='1')
    d = learn.save_memory_folder(tmp_path/'less')
    assert 'balanced sampling' in (folder/'README.md').read_text()
    text = (d/'README.md').read_text()
    assert 'balanced sampling +' not in text and 'rescued' in text and '![' in text
    assert 'model was changed' in text and 'model was changed' not in (folder/'README.md').read_text()
    assert (d/'comparison.png').read_bytes()!=(folder/'comparison.png').read_bytes()

def test_what_comes_back_is_exported_and_shared_again(run, folder, tmp_path):
    "Without data: and its network is still known"
    new = from_hub(folder)
    assert export_model(new, tmp_path/'model.pt2').is_file()
    new.memory.forget(label='1')
    again = from_hub(new.save_memory_folder(tmp_path/'again'))
    x = [*load_run(run).dls[2].dataset.x[:50].numpy()]
    torch.testing.assert_close(answers(again, x), answers(new, x), rtol=1e-4, atol=1e-5)
    assert len(again.memory.bank)==len(new.memory.bank)<len(from_hub(folder).memory.bank)
    with pytest.raises(MemoError, match='give the learner its data'): again.compare_memory()
    again.dls = load_run(run).dls
    assert 'all' in str(quietly(again, 'compare_memory', 2))
    quietly(again, 'fit', 1, 1e-3)

def test_a_network_of_numbers_that_are_no_floats(tmp_path):
    "Ids of words, as an embedding takes them"
    x,y = torch.randint(0, 9, (40,6)),torch.arange(40)%3
    dls = DataLoaders(*(TensorDL(x, y, bs=8) for _ in range(2)), device='cpu')
    net = nn.Sequential(nn.Embedding(9, 8), nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 3))
    learn = Learner(dls, net, CrossEntropyLossFlat(), cbs=MemoryCallback(SlotBank(20, policy='fifo'), head='vote', k=3))
    quietly(learn, 'fit', 1)
    d = learn.save_memory_folder(tmp_path/'words')
    net = nn.Sequential(nn.Embedding(9, 8), nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 3))
    with pytest.warns(UserWarning, match='as the network takes them'): new = from_hub(d, model=net)
    other = torch.randint(0, 9, (30,6))       # a stored one would find itself, which the owner's memory leaves out
    torch.testing.assert_close(answers(new, [*other.numpy()]), answers(learn, other), rtol=1e-4, atol=1e-5)

def test_the_lines_of_the_card_run(folder, hub, run, monkeypatch):
    text = (folder/'README.md').read_text()
    code = text.split('```python\n')[1].split('```')[0].replace('REPO', str(folder))
    seen = []
    exec(code, dict(x=load_run(run).dls[2].dataset.x[0].numpy(), print=seen.append))
    assert seen[0][0] in '0123456789'

class Planted:
    def __reduce__(self): return (Path.touch, (Path('planted.txt'),))

def test_a_hostile_folder_runs_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    def bad(change=None, weights=None):
        d = tmp_path/'bad'
        shutil.rmtree(d, ignore_errors=True)
        shutil.copytree(folder, d)
        if weights is not None: (d/'model.safetensors').write_bytes(weights)
        cfg = json.loads((d/'config.json').read_text())
        if weights is not None:
            import hashlib
            cfg['files']['model.safetensors']['sha256'] = hashlib.sha256(weights).hexdigest()
        if change: change(cfg)
        (d/'config.json').write_text(json.dumps(cfg))
        return d
    def net(**kw): return lambda c: c['network'].update(kw)
    cases = [bad(weights=pickle.dumps(Planted()))]
    def says(**kw): return lambda c: c.update(kw)
    cases += [*(net(name=o) for o in ('os:system','this:s','antigravity:fly')), net(n_classes='x'), net(n_classes=3),
              *(net(name='timm', args=dict(arch=o)) for o in ('hf-hub:me/x','local-dir:/tmp')), says(input={}),
              says(places=[dict(name='memory', part='', at='99', front=True, wrap=False)]), says(places=3),
              says(shape=['a']), says(format=99), lambda c: c['input'].update(dtype='load')]
    for c in cases:
        with pytest.raises(MemoError) as e: from_hub(c if isinstance(c, Path) else bad(c))
        assert '\n' not in str(e.value)
    assert not Path('planted.txt').exists()
    d = bad()
    b = bytearray((d/'model.safetensors').read_bytes())
    b[-5] ^= 1
    (d/'model.safetensors').write_bytes(b)
    with pytest.raises(MemoError, match='damaged'): from_hub(d)

@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    d = tmp_path_factory.mktemp('photos')
    g = torch.Generator().manual_seed(0)
    for part,n in (('train',8),('valid',4)):
        for c,base in (('cat_named',60), ('dog_named',180)):
            (d/part/c).mkdir(parents=True)
            for i in range(n):
                x = (torch.randint(0, 60, (40,50,3), generator=g)+base).to(torch.uint8).numpy()
                Image.fromarray(x).save(d/part/c/f'patient_{c}_{part}_{i}.png')
    return d

def own_learner(photos, keep=None):
    block = DataBlock((ImageBlock,CategoryBlock), get_items=get_image_files, get_y=parent_label, item_tfms=Resize(32),
                      splitter=GrandparentSplitter('train','valid'))
    dls = block.dataloaders(photos, bs=8, num_workers=0, device='cpu')
    cb = MemoryCallback(SlotBank(64), head='vote', k=3, keep=keep)
    learn = vision_learner(dls, resnet18, pretrained=False, metrics=accuracy, cbs=cb)
    quietly(learn, 'fit', 1)
    return learn

def test_a_learner_of_ones_own_code_needs_its_network_again(photos, tmp_path):
    learn = own_learner(photos, keep='paths')
    d = learn.save_memory_folder(tmp_path/'pets')
    for o in d.iterdir(): assert b'patient_' not in o.read_bytes() and str(photos).encode() not in o.read_bytes()
    with pytest.raises(MemoError, match='model='): from_hub(d)
    with pytest.raises(MemoError, match='another network'): from_hub(d, model=small_cnn(1, 10))
    new = from_hub(d, model=vision_learner(learn.dls, resnet18, pretrained=False).model)
    files = get_image_files(photos/'valid')
    torch.testing.assert_close(answers(new, [*files]), answers(learn, files), rtol=1e-3, atol=1e-4)
    for item in (str(files[0]), files[0], files[0].read_bytes(), Image.open(files[0])):
        assert quietly(new, 'predict', item)[0]==quietly(learn, 'predict', files[0])[0]
    with pytest.raises(MemoError, match='item'): quietly(new, 'predict', 'not there.png')
    card = (d/'README.md').read_text()
    assert 'rescued' in card and 'model=net' in card and '| cat_named | 8 |' in card

def test_other_memories_come_back_too(tmp_path):
    dls = digits_lt(40, 10, device='cpu', bs=32)
    cbs = [MemoryCallback(CachedBank(60), head='dual', threshold=.8), MemoryCallback(ClassBank(10), name='rare'),
           MemoryCallback(TrainableBank(40), head='dual', at='4', name='early', loss_weight=.3)]
    learn = Learner(dls, small_cnn(1, 10), metrics=accuracy, cbs=cbs)
    quietly(learn, 'fit', 1)
    d = learn.save_memory_folder(tmp_path/'three')
    new = from_hub(d, model=small_cnn(1, 10))
    assert {*new.memories}=={'memory','rare','early'}
    x = dls.valid.dataset.x
    torch.testing.assert_close(answers(new, [*x.numpy()]), answers(learn, x), rtol=1e-4, atol=1e-5)

def test_a_folder_of_others_is_not_written_over(tmp_path, run):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'thesis.tex').write_text('x')
    learn = load_run(run)
    with pytest.raises(MemoError, match='is there'): learn.save_memory_folder(tmp_path/'mine')
    assert [o.name for o in (tmp_path/'mine').iterdir()]==['thesis.tex']
    d = learn.save_memory_folder(tmp_path/'again')
    assert learn.save_memory_folder(d)==d

def test_a_frozen_run_takes_images_again(tmp_path, few_fashion, lite0_weights):
    few = {'seeds':[0], 'train.epochs':1, 'compare':[], 'runs':str(tmp_path), 'data.n_max':30, 'data.ratio':3,
           'data.size':32, 'plots.save':False, 'data.valid':5, 'data.root':str(few_fashion)}
    cfg = override(load_config('fashion_lt_frozen'), few)
    run_experiment(cfg, log=lambda *a: None)
    learn = load_run(tmp_path/cfg.name)
    d = learn.save_memory_folder(tmp_path/'frozen')
    assert json.loads((d/'config.json').read_text())['network']['frozen']
    new,images = from_hub(d),learn.dls.images[2].dataset.x
    def both(): return answers(new, [*images.numpy()]),quietly(learn, 'get_preds', dl=learn.dls[2])[0]
    got,was = both()
    # features computed in other batches differ in their last bits, by which another row can be the last of k neighbours
    assert (got-was).abs().max()<.02 and torch.isclose(got, was, rtol=1e-3, atol=1e-4).float().mean()>.99
    with new.memory.off(), learn.memory.off(): got,was = both()
    torch.testing.assert_close(got, was, rtol=1e-3, atol=1e-4)

def test_another_process_has_it_by_name_alone(run, hub, python, tmp_path):
    "HF_ENDPOINT and HF_TOKEN are all that it is told; and without the token there is nothing for it"
    learn = load_run(run)
    learn.push_memory_to_hub('me/digits', token='secret')
    x = learn.dls[2].dataset.x[:20].numpy()
    np.save(tmp_path/'x.npy', x)
    code = ("import numpy as np\nfrom memo.all import from_hub\nlearn = from_hub('me/digits')\n"
            "print('said', [learn.predict(o)[0] for o in np.load('x.npy')])")
    env = dict(HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path/'home'), HF_HUB_DISABLE_XET='1', HF_HUB_OFFLINE='0')
    r = python('-c', code, cwd=tmp_path, env=env|dict(HF_TOKEN='secret'), timeout=200, cold=True)
    assert r.returncode==0, r.stderr[-2000:]
    assert f"said {[quietly(learn, 'predict', o)[0] for o in x]}" in r.stdout
    env |= dict(HF_TOKEN='', HF_HOME=str(tmp_path/'other'))
    r = python('-c', code, cwd=tmp_path, env=env, timeout=200, cold=True)
    assert r.returncode!=0 and 'no such repository, or not for you' in r.stderr
