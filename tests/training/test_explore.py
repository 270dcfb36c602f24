"`learn.memory.to_frame()`, `suspects()`, `to_projector()`: files, names, recalls; TensorBoard reads what is stored"
import numpy as np, pandas as pd, pytest, torch
from contracts.made import digits, learner
from fastai.vision.all import ImageDataLoaders, Learner, load_learner, set_seed
from helpers.learners import quietly, same, snap
from helpers.tensors import gen
from memo.banks.classes import ClassBank
from memo.banks.frame import frame_columns
from memo.banks.slots import SlotBank
from memo.core import MemoError
from memo.data.items import item_ids
from memo.models.small import small_cnn
from memo.training.explore import stored_paths
from memo.training.memory_callback import MemoryCallback
from memo.training import projector     # gives banks and memories a method
from PIL import Image

@pytest.fixture(scope='module')
def trained():
    learn = learner(SlotBank(48, policy='fifo'), 'vote', k=3)
    quietly(learn, 'fit', 1)
    return learn

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Images of two classes in a folder, as anybody has them"
    d = tmp_path_factory.mktemp('pets')
    for c in ('cat','a dog'):
        (d/c).mkdir()
        for i in range(8):
            x = torch.rand(28, 28, 3, generator=gen(i+8*(c=='cat')))*100+(c=='cat')*150
            Image.fromarray(x.byte().numpy()).save(d/c/f'{i}.png')
    return d

@pytest.fixture(scope='module')
def of_files(folder):
    set_seed(0)
    dls = ImageDataLoaders.from_folder(folder, valid_pct=.25, seed=0, bs=4, num_workers=0, device='cpu')
    learn = Learner(dls, small_cnn(3, 2), path=folder, cbs=MemoryCallback(SlotBank(16, policy='fifo'), keep='paths'))
    quietly(learn, 'fit', 1)
    return learn

def test_files_and_names(of_files, folder):
    df = of_files.memory.to_frame(k=2)
    assert list(df.columns)==frame_columns and len(df)==12
    assert {*df.path}=={str(o) for o in of_files.dls.train_ds.items}
    assert all(str(folder/c)==p.rpartition('/')[0] for c,p in zip(df['class'], df.path))
    ids,files = item_ids(of_files.dls.train).tolist(),map(str, of_files.dls.train_ds.items)
    assert dict(zip(df.id, df.path))==dict(zip(ids, files))

def test_an_export_has_the_files_that_were_kept(of_files, folder, recwarn):
    of_files.export(folder/'m.pkl')
    new = load_learner(folder/'m.pkl')
    a,b = new.memory.to_frame(),of_files.memory.to_frame()
    pd.testing.assert_frame_equal(a, b)

def test_nothing_is_known_of_tensors_but_their_ids(trained):
    df = trained.memory.to_frame()
    assert df.path.isna().all() and {*df.id}=={*range(10**12, 10**12+48)} and df.hits.isna().all()

def test_hits_are_the_recalls_of_a_loader(trained):
    df = trained.memory.to_frame(trained.dls.valid)
    r = trained.recall(ds_idx=1)
    want = torch.bincount(r.row_item[r.weight>0]-10**12, minlength=48)
    assert df.hits.sum()==want.sum() and df.hits.tolist()==want[torch.tensor(df.id.to_numpy())-10**12].tolist()

def test_stored_items_do_not_recall_themselves():
    "Encoded anew each would find its own row first"
    learn = learner(SlotBank(48, policy='fifo'), 'vote', k=1)
    quietly(learn, 'fit', 1)
    learn.memory.rekey()
    df = learn.memory.to_frame(learn.dls.train)
    with learn.memory.own_rows(): own = learn.memory.to_frame(learn.dls.train)
    assert own.hits.tolist()==[1]*48 and df.hits.sum()==48 and df.hits.max()>1

def test_nothing_of_the_learner_changes(trained, tmp_path):
    was,state = snap(trained.model),torch.get_rng_state()
    trained.memory.to_frame(trained.dls.valid)
    trained.memory.suspects()
    trained.memory.to_projector(tmp_path)
    assert same(was, snap(trained.model)) and torch.equal(state, torch.get_rng_state())
    quietly(trained, 'validate')

def test_several_memories_each_its_own():
    learn = learner(SlotBank(48, policy='fifo'), 'vote', k=3)
    learn.add_cb(MemoryCallback(ClassBank(10, 4), name='rare'))
    quietly(learn, 'fit', 1)
    assert len(learn.memory.to_frame())==48 and len(learn.rare.to_frame())==len(learn.rare.bank)
    assert {*learn.rare.suspects(5).slot}<={*learn.rare.to_frame().slot}

def test_several_labels():
    learn = learner(SlotBank(48, policy='fifo'), 'vote', multi=True, k=3)
    quietly(learn, 'fit', 1)
    df = learn.memory.to_frame(learn.dls.valid)
    assert {c for o in df['class'] for c in o.split('|')}<={*'abcd','none'} and df.disagreement.notna().all()
    assert {o.removeprefix('not ') for o in learn.memory.suspects(5).suggested}<={*'abcd'}

def test_an_empty_memory(tmp_path):
    learn = learner(SlotBank(8), 'vote', k=3)
    assert not len(learn.memory.to_frame()) and not len(learn.memory.to_frame(learn.dls.valid))
    assert not len(learn.memory.suspects()) and stored_paths(learn.dls, learn.memory.bank)=={}
    with pytest.raises(MemoError, match='the bank is empty'): learn.memory.to_projector(tmp_path)

def test_a_callback_without_a_learner():
    with pytest.raises(MemoError, match='in no learner'): MemoryCallback(SlotBank(8)).to_frame()

# TensorBoard

def read(to):
    "What the projector would read"
    pytest.importorskip('tensorboard')
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
    cfg = text_format.Parse((to/'projector_config.pbtxt').read_text(), ProjectorConfig())
    e, = cfg.embeddings
    head,*meta = (l.split('\t') for l in (to/e.metadata_path).read_text().rstrip('\n').split('\n'))
    x = torch.from_numpy(np.loadtxt(to/e.tensor_path, delimiter='\t', ndmin=2)).float()
    im = np.array(Image.open(to/e.sprite.image_path)) if e.sprite.image_path else None
    return x,pd.DataFrame(meta, columns=head),im,[*e.sprite.single_image_dim]

def test_the_projector_has_what_is_stored(of_files, tmp_path):
    bank = of_files.memory.bank
    for _ in range(2): to = of_files.memory.to_projector(tmp_path)      # again: replaced
    x,meta,im,(w,h) = read(to)
    df = of_files.memory.to_frame()
    assert torch.allclose(x, bank.features[:12], atol=1e-4)
    assert meta['class'].tolist()==df['class'].tolist() and meta.id.astype('int64').tolist()==df.id.tolist()
    assert meta.path.tolist()==df.path.tolist()
    light = [im[i//4*h:(i//4+1)*h,i%4*w:(i%4+1)*w].mean() for i in range(12)]       # cats are lighter
    assert all((v>130)==(c=='cat') for v,c in zip(light, df['class']))

def test_names_of_several_lines_stay_in_their_column(tmp_path):
    b = SlotBank(3, policy='fifo')
    b.write(torch.eye(3), torch.tensor([0,1,-1]))
    x,meta,im,_ = read(b.to_projector(tmp_path, vocab=['a\tb','c\nd']))
    assert meta['class'].tolist()==['a b','c d',''] and im is None and len(x)==3

def test_of_a_large_bank_some_rows(tmp_path):
    b = SlotBank(1000, policy='fifo')
    b.write(torch.arange(1000.)[:,None]+1, item=torch.arange(1000))
    x,meta,_,_ = read(b.to_projector(tmp_path, n=10))
    some = range(0, 1000, 100)
    assert meta.id.tolist()==[*map(str, some)] and x[:,0].tolist()==[i+1. for i in some]

def test_without_tensorboard_a_line_says_what_to_install(tmp_path, monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    b = SlotBank(3, policy='fifo')
    b.write(torch.eye(3))
    with pytest.raises(MemoError, match=r"pip install 'fastmemo\[track\]'"): b.to_projector(tmp_path)
