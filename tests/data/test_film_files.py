"Films as files: 12 and 16 bits in PNG and TIFF, DICOM; the depth is the set's, told or the deepest, never one image's"
import builtins, sys
import numpy as np, pytest, torch
from PIL import Image
from sklearn.datasets import load_digits
from conftest import absent
from memo.core import MemoError
from memo.data.features import features_key
from memo.data import images
from memo.data.images import FileImages, check_images, decoded, image_depth, image_fault, read_image, whole_fault
from memo.data.finding_loaders import findings_dls, split_patients

ims = load_digits().images.astype(np.uint16)        # 0 to 16

def dicom(p, a, bits=12, kind='MONOCHROME2', signed=False, window=None, slope=None):
    "Write an uncompressed DICOM file, as X-ray machines do"
    try: from pydicom.dataset import Dataset,FileMetaDataset
    except ImportError: absent('pydicom is not installed')
    from pydicom.uid import ExplicitVRLittleEndian,generate_uid
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = '1.2.840.10008.5.1.4.1.1.1.1'
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    ds.Rows,ds.Columns = a.shape[:2]
    ds.SamplesPerPixel,ds.PhotometricInterpretation = 1,kind
    ds.BitsStored,ds.HighBit,ds.PixelRepresentation = bits,bits-1,int(signed)
    ds.BitsAllocated = 8 if bits<=8 else 16
    if window: ds.WindowCenter,ds.WindowWidth = window
    if slope: ds.RescaleSlope,ds.RescaleIntercept = slope
    ds.PixelData = a.astype((np.int16 if signed else np.uint16) if bits>8 else np.uint8).tobytes()
    ds.save_as(p, enforce_file_format=True)
    return p

@pytest.mark.parametrize('kind', ['png','tiff','dcm'])
@pytest.mark.parametrize('bits', [12,16])
def test_the_depth_is_the_sets(tmp_path, kind, bits):
    "Of a bright film and a dark one the dark one stays dark, whatever is read first, or alone"
    top = 2**bits-1
    bright,dark = ((ims[i].astype(int)*t//16).astype(np.uint16) for i,t in ((0,top),(1,top//16)))
    def save(p, a):
        if kind=='dcm': dicom(p, a, bits)
        else: Image.fromarray(a).save(p)
        return p
    ps = [save(tmp_path/f'{k}.{kind}', a) for k,a in dict(a=dark, b=bright).items()]
    assert image_depth(ps)==image_depth(ps[::-1])==bits
    x = FileImages(ps, 8)
    assert np.array_equal(x[0][0].numpy(), (dark>>(bits-8)).astype(np.uint8)) and int(x[0].max())<20
    assert np.array_equal(x[1][0].numpy(), (bright>>(bits-8)).astype(np.uint8)) and int(x[1].max())==239
    assert torch.equal(x.rows([0])[0], x[0]) and torch.equal(x.load()[0], x[0])
    check_images(ps, 'x', whole=True)

@pytest.mark.parametrize('front', [b'II*\0', b'MM\0*', b'GIF89a', b'BM'])
def test_a_dicom_file_may_begin_like_another_picture(tmp_path, front):
    "Its first 128 bytes are anybody's; some are a TIFF's, as those of pydicom's own examples, so that both can be read"
    p = dicom(tmp_path/'a.dcm', ims[0]*200)
    want,b = read_image(p, 8),p.read_bytes()
    for q in (tmp_path/'b.dcm', tmp_path/'b'):
        q.write_bytes(front+b[len(front):])
        assert image_fault(str(q)) is None and whole_fault(str(q)) is None and np.array_equal(read_image(q, 8), want)

def test_no_more_films_are_read_than_the_depth_needs(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(images, 'grey_values', lambda im,p: read.append(p) or np.asarray(im).astype(np.int64))
    ps = [tmp_path/'bright.png', tmp_path/'dark.png']
    for p,top in zip(ps, (2**16-1,2**12-1)): Image.fromarray(np.full((2,2), top, np.uint16)).save(p)
    assert image_depth([ps[0], *[ps[1]]*1200])==16 and len(read)<=512
    with pytest.warns(UserWarning, match='the 5,001 images with more than 8 bits are read once.*depth='):
        assert image_depth([ps[1]]*5001)==12

def test_inverted_dicom(tmp_path):
    "MONOCHROME1: 0 is white. The same film both ways, in one set, is the same image"
    a = (ims[3]*255).astype(np.uint16)
    p,q = dicom(tmp_path/'a.dcm', a),dicom(tmp_path/'b.dicom', 4095-a, kind='MONOCHROME1')
    x = FileImages([p,q], 8)
    assert x.depth==12 and torch.equal(x[0], x[1]) and np.array_equal(x[0][0].numpy(), (a>>4).astype(np.uint8))
    r = dicom(tmp_path/'c.dcm', 255-(ims[3]*15), bits=8, kind='MONOCHROME1')
    assert np.array_equal(read_image(r, 8), (ims[3]*15).astype(np.uint8))

def test_signed_dicom(tmp_path):
    a = (ims[3]*255).astype(np.int16)
    x = FileImages([dicom(tmp_path/'a.dcm', a-2048, signed=True)], 8)
    assert np.array_equal(x[0][0].numpy(), (a>>4).astype(np.uint8))

@pytest.mark.parametrize('slope', [None,(2,-100)])
def test_windowed_dicom(tmp_path, slope):
    "PS3.3 C.11.2.1.2, value by value; inverted after it"
    a = (ims[3]*255).astype(np.uint16)
    m,b = slope or (1,0)
    c,w = 2000,1500
    want = [[0 if v*m+b<=c-.5-(w-1)/2 else 255 if v*m+b>c-.5+(w-1)/2 else round(((v*m+b-(c-.5))/(w-1)+.5)*255)
             for v in o] for o in a.astype(int)]
    p,q = (dicom(tmp_path/f'{k}.dcm', a, kind=k, window=(c,w), slope=slope) for k in ('MONOCHROME2','MONOCHROME1'))
    x = FileImages([p,q], 8, window=True)
    assert x.depth==8 and x[0][0].tolist()==want and torch.equal(x[1], 255-x[0])
    assert not torch.equal(FileImages([p], 8)[0], x[0])
    net = torch.nn.Flatten()
    from memo.data.tensors import TensorDL,TensorSet
    keys = {features_key(net, TensorDL(dataset=TensorSet(FileImages([p], 8, **kw), torch.zeros(1), split_idx=1)))
            for kw in ({},dict(window=True),dict(fit='pad'))}
    assert len(keys)==3
    with pytest.raises(MemoError, match='no WindowCenter'): read_image(dicom(tmp_path/'n.dcm', a), 8, window=True)

def test_what_is_wrong_with_a_dicom_file(tmp_path):
    p = dicom(tmp_path/'a.dcm', (ims[3]*255).astype(np.uint16))
    assert image_fault(p) is None and whole_fault(p) is None
    b = p.read_bytes()
    p.write_bytes(b[:-40])
    with pytest.raises(MemoError, match='cannot read the image .*a.dcm'): read_image(p, 8)
    with pytest.raises(MemoError, match='1 of 1 images cannot be read'): check_images([p], 'copy it again', whole=True)
    p.write_bytes(b'nothing of the kind')
    with pytest.raises(MemoError): read_image(p, 8)
    assert decoded(str(p)) is not None

def test_without_pydicom(tmp_path, monkeypatch):
    p = dicom(tmp_path/'a.dcm', (ims[3]*255).astype(np.uint16))
    for k in [k for k in sys.modules if k.split('.')[0]=='pydicom']: monkeypatch.delitem(sys.modules, k)
    real = builtins.__import__
    def no(name, *args):
        if name.split('.')[0]=='pydicom': raise ImportError(name)
        return real(name, *args)
    monkeypatch.setattr(builtins, '__import__', no)
    for f in (lambda: read_image(p, 8), lambda: image_depth([p])):
        with pytest.raises(MemoError, match=r"a.dcm is a DICOM file: pip install 'fastmemo\[data\]' reads it"): f()

def test_a_depth_that_is_told_is_not_looked_for(tmp_path, monkeypatch):
    "Of a set of a hundred thousand films of 16 bits that takes an hour; one that is brighter is an error all the same"
    import pandas as pd
    from memo.data import finding_loaders
    rows = []
    for i in range(30):
        Image.fromarray((ims[i].astype(int)*255).astype(np.uint16)).save(tmp_path/f'{i}.png')
        rows.append(dict(image=f'{i}.png', path=str(tmp_path/f'{i}.png'), patient=str(i), a=i%2))
    df = split_patients(pd.DataFrame(rows))
    def load(**kw): return findings_dls(df, ['a'], size=8, channels=1, device='cpu', **kw).train_ds.x
    a = load()
    monkeypatch.setattr(finding_loaders, 'image_depth', lambda *_: pytest.fail('all films were read'))
    b = load(depth=12)
    assert a.depth==b.depth==12 and torch.equal(a.load(), b.load()) and int(load(depth=16).load().max())==15
    with pytest.raises(MemoError, match='with 10 bits'): load(depth=10).load()

@pytest.mark.parametrize('part', ['train','valid','test'])
def test_the_deepest_film_may_be_in_any_part(tmp_path, part):
    import pandas as pd
    rows = []
    for i in range(30):
        rows.append(dict(image=f'{i}.png', path=str(tmp_path/f'{i}.png'), patient=str(i), a=i%2))
    df = split_patients(pd.DataFrame(rows))
    deep = df.image[df.part==part].iloc[0]
    for i,o in enumerate(df.image):
        Image.fromarray((ims[i].astype(int)*(4000 if o==deep else 255)).astype(np.uint16)).save(tmp_path/o)
    xs = [o.dataset.x for o in findings_dls(df, ['a'], size=8, channels=1, device='cpu').loaders]
    assert [o.depth for o in xs]==[16]*3 and all(len(o.load()) for o in xs)

def test_a_set_that_is_checked_before_training(tmp_path):
    "A PNG that is damaged in the middle: found only where all are decoded, and then before an epoch"
    import pandas as pd
    rows = []
    for i in range(30):
        p = tmp_path/f'{i}.png'
        Image.fromarray(np.kron(ims[i]*15, np.ones((8,8))).astype(np.uint8)).save(p)
        rows.append(dict(image=p.name, path=str(p), patient=str(i), a=i%2, b=i%3==0))
    df = split_patients(pd.DataFrame(rows).astype(dict(b=int)))
    b = (tmp_path/'4.png').read_bytes()
    (tmp_path/'4.png').write_bytes(b[:60]+bytes([b[60]^1])+b[61:])
    def load(**kw): return findings_dls(df, ['a','b'], size=8, channels=1, device='cpu', **kw)
    assert len(load().split)==30
    for workers in (0,2):
        with pytest.raises(MemoError, match='1 of 30 images cannot be read .*4.png is damaged in the middle'):
            load(check=True, workers=workers)
