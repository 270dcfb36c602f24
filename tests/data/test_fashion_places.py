"Where Fashion-MNIST is found: a folder of the four files, torchvision's, the settings' data folder, the Debian package"
import shlex, shutil
import pytest
from memo.core import MemoError
from memo.data import longtail
from memo.data.longtail import fashion_folder, fashion_lt, read_fashion

@pytest.fixture
def here(tmp_path, monkeypatch):
    "A project whose data are in `d`"
    (tmp_path/'settings.ini').write_text('[DEFAULT]\ndata = d\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path

@pytest.mark.parametrize('place', ['d','d/fashion-mnist','d/FashionMNIST/raw'])
def test_in_the_data_folder(here, few_fashion, place):
    shutil.copytree(few_fashion, here/place)
    assert fashion_folder(None, 'train')[0]==here/place and read_fashion(None, 't10k')[0].shape==(500,1,28,28)

@pytest.mark.parametrize('place', ['own','own/FashionMNIST/raw','own/fashion-mnist'])
def test_as_root(here, few_fashion, place):
    "Also what torchvision was given as its root"
    shutil.copytree(few_fashion, here/place)
    assert len(read_fashion(here/'own', 'train')[0])==12_000
    dls = fashion_lt(here/'own', n_max=20, ratio=2, valid=2, bs=8, device='cpu')
    assert len(dls.test_ds if hasattr(dls, 'test_ds') else dls[2].dataset)==500

def test_half_a_set_hides_no_whole_one(here, fashion_root, few_fashion):
    (here/'d/fashion-mnist').mkdir(parents=True)
    assert fashion_folder(None, 'train')[0]==fashion_root
    shutil.copy(few_fashion/'train-images-idx3-ubyte.gz', here/'d/fashion-mnist')
    assert fashion_folder(None, 'train')[0]==fashion_root

def test_what_is_missing_is_said_with_each_way_as_a_command(here, few_fashion, monkeypatch):
    monkeypatch.setattr(longtail, '_fashion_deb', here/'none')
    shutil.copytree(few_fashion, here/'d/fashion-mnist')
    (here/'d/fashion-mnist/train-labels-idx1-ubyte.gz').unlink()
    with pytest.raises(MemoError) as e: read_fashion(None, 'train')
    said = str(e.value)
    assert f"no train-labels-idx1-ubyte.gz in {here/'d/fashion-mnist'};" in said and len(said)<=300
    for o in ('apt-get install dataset-fashion-mnist','python -c "import torchvision','data.root='): assert o in said
    *code, = shlex.split(said[said.index('python -c'):said.index(', or data.root')])
    assert code[:2]==['python','-c'] and "FashionMNIST('d', download=True)" in code[2]
    compile(code[2], 'said', 'exec')
