"CIFAR as parquet files from Hugging Face's hub: the same images, labels and names as the archive's"
import io, json, os
import numpy as np, pytest, torch
from PIL import Image
from sklearn.datasets import load_digits
from helpers.errors import err
from memo.data.cifar import cifar10_lt, cifar100_lt, read_cifar
from memo.data.whole import cifar10

names = 'airplane automobile bird cat deer dog frog horse ship truck'.split()

@pytest.fixture(scope='module')
def tiles():
    "Digits as 32 x 32 pixels of RGB"
    d = load_digits()
    x = np.kron((d.images*(255/16)).astype(np.uint8), np.ones((1,4,4), np.uint8))
    return np.stack([x,255-x,x//2], -1),d.target

def png(x):
    buf = io.BytesIO()
    Image.fromarray(x).save(buf, 'png')
    return buf.getvalue()

def write(path, x, y, image='img', label='label', classes=10, meta=True, more=None):
    """As the hub has them. Columns and splits: the cards of uoft-cs/cifar10 (config plain_text: img, label;
    plain_text/train-*, plain_text/test-*) and uoft-cs/cifar100 (config cifar100: img, fine_label, coarse_label;
    cifar100/train-*, cifar100/test-*), an Image being a struct of bytes and path"""
    pa,pq = pytest.importorskip('pyarrow'),pytest.importorskip('pyarrow.parquet')
    cells = [dict(bytes=png(o), path=None) for o in x]
    t = pa.table({image:pa.array(cells, pa.struct([('bytes',pa.binary()), ('path',pa.string())])),
                  label:pa.array(np.asarray(y), pa.int64()), **(more or {})})
    of = names if classes==10 else [f'thing {i}' for i in range(classes)]
    info = dict(info=dict(features={image:{'_type':'Image'}, label:dict(names=of, _type='ClassLabel')}))
    if meta: t = t.replace_schema_metadata({'huggingface':json.dumps(info)})
    os.makedirs(os.path.dirname(path), exist_ok=True)
    pq.write_table(t, path)

@pytest.fixture
def ten(tmp_path, tiles):
    x,y = tiles
    write(tmp_path/'plain_text/train-00000-of-00001.parquet', x[:400], y[:400])
    write(tmp_path/'plain_text/test-00000-of-00001.parquet', x[400:500], y[400:500])
    return tmp_path

def test_cifar10(ten, tiles):
    (x,y),(tx,ty),vocab = read_cifar(ten)
    assert torch.equal(x, torch.from_numpy(tiles[0][:400].transpose(0,3,1,2))) and y.tolist()==tiles[1][:400].tolist()
    assert len(tx)==100 and ty.tolist()==tiles[1][400:500].tolist() and vocab==names
    dls = cifar10_lt(ten, valid=5, n_max=20, ratio=5, imb_type='step', device='cpu')
    assert dls.counts.tolist()==[20]*5+[4]*5 and [len(o.dataset) for o in dls.loaders]==[120,50,100]
    assert list(dls.vocab)==names and cifar10(ten, valid=5, device='cpu').c==10

@pytest.mark.parametrize('sub', ['', 'plain_text', 'data', 'cifar10', 'cifar10/plain_text'])
def test_where_they_are(tmp_path, tiles, sub):
    for k in ('train','test'): write(tmp_path/sub/f'{k}.parquet', tiles[0][:60], tiles[1][:60], 'image', meta=False)
    (x,y),_,vocab = read_cifar(tmp_path)
    assert len(x)==60 and vocab==[*'0123456789']

def test_cifar100_by_its_fine_labels(tmp_path, tiles):
    y = np.arange(300)%100
    for k in ('train','test'):
        write(tmp_path/f'cifar100/{k}-00000-of-00001.parquet', tiles[0][:300], y, label='fine_label', classes=100,
              more=dict(coarse_label=y//5))
    dls = cifar100_lt(tmp_path, valid=1, n_max=2, ratio=2, device='cpu')
    assert dls.c==100 and dls.vocab[7]=='thing 7' and sum(dls.counts)>=100
    assert 'labels from 0 to 9 are needed, found 0 to 99; is it CIFAR-10?' in err(read_cifar, tmp_path/'cifar100', 10)

def test_several_files_of_a_part(tmp_path, tiles):
    x,y = tiles
    for i in range(2): write(tmp_path/f'train-0000{i}-of-00002.parquet', x[200*i:200*i+200], y[200*i:200*i+200])
    write(tmp_path/'test-00000-of-00001-b42737fca5fb1feb.parquet', x[400:500], y[400:500])     # as some are called
    assert read_cifar(tmp_path)[0][1].tolist()==y[:400].tolist()
    (tmp_path/'train-00001-of-00002.parquet').unlink()
    assert '1 of 2 parquet files of train images are there' in err(read_cifar, tmp_path)

def test_faults_are_one_line(ten, tiles):
    x,y = tiles
    p = ten/'plain_text/train-00000-of-00001.parquet'
    good = p.read_bytes()
    for b in (b'', good[:-9], good[:3000], b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n'):
        p.write_bytes(b)
        assert f'cannot read {p}: not a whole parquet file; download' in err(read_cifar, ten)
    write(p, x[:40], y[:40], image='picture')
    assert 'columns img (or image) and label (or fine_label) are needed, found picture, label' in err(read_cifar, ten)
    write(p, x[:40,:16], y[:40])
    assert 'images of 32 x 32 pixels are needed, found 16 x 32' in err(read_cifar, ten)
    write(p, x[:40], y[:40]-1)
    assert 'labels from 0 to 9 are needed, found -1' in err(read_cifar, ten)
    write(p, x[:40], y[:40], more=dict(img=['a.png']*40), image='other')
    assert "'img' must hold the bytes of images" in err(read_cifar, ten)
    p.write_bytes(good)
    (ten/'plain_text/test-00000-of-00001.parquet').unlink()
    assert 'no test-*.parquet beside the training images' in err(read_cifar, ten)

def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    for k in ('train','test'): (tmp_path/f'{k}.parquet').write_bytes(b'PAR1')
    monkeypatch.setitem(__import__('sys').modules, 'pyarrow', None)
    monkeypatch.setitem(__import__('sys').modules, 'pyarrow.parquet', None)
    assert "pip install 'fastmemo[data]' reads parquet files" in err(read_cifar, tmp_path)

@pytest.mark.usefixtures('unrendered')
def test_trains_by_the_command(ten, tmp_path, tool):
    (tmp_path/'c.yaml').write_text(f"""
name: c
seeds: [0]
data: {{name: cifar10_lt, root: {ten}, valid: 5, n_max: 20, ratio: 5}}
memory: {{size: 64, head: vote, k: 5}}
train: {{epochs: 1, bs: 16}}
""")
    r = tool('memo-train', 'c.yaml', f'runs={tmp_path}/runs', cwd=tmp_path, render=False)
    assert r.returncode==0, r.stdout+r.stderr
