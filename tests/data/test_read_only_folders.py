"""Data in a folder that nobody may write to are opened, checked, cut and read like any others. The tests may run as
root, whom modes of files do not stop: any call that would change something beneath the folder is made to fail"""
import errno, os, sys
import numpy as np, pandas as pd, pytest
from contextlib import contextmanager
from PIL import Image
from sklearn.datasets import load_digits
from test_chest_layouts import mirror_224, nih
from memo.data.chest_xray import chestxray14
from memo.data.findings_csv import findings_csv
from memo.data.image_folders import image_folder
from memo.data.image_tables import image_csv

_guarded = []
changes = {'os.mkdir','os.rmdir','os.remove','os.rename','os.link','os.symlink','os.truncate','os.chmod','os.utime'}
def _audit(event, args):
    if not _guarded or event!='open' and event not in changes: return
    if event=='open' and not (set(args[1] or '') & set('wax+') or (args[2] or 0) & (os.O_WRONLY|os.O_RDWR|os.O_CREAT)):
        return
    for p in args[:2]:
        if isinstance(p, (str,bytes,os.PathLike)) and os.path.abspath(os.fsdecode(p)).startswith(_guarded[-1]):
            raise OSError(errno.EROFS, 'Read-only file system', os.fsdecode(p))
sys.addaudithook(_audit)        # for good: it does nothing outside of `read_only`

@contextmanager
def read_only(folder):
    _guarded.append(os.path.abspath(folder)+os.sep)
    try: yield folder
    finally: _guarded.pop()

def tiles(d, n=60):
    ims,y = load_digits().images,load_digits().target
    for i in range(n):
        p = d/str(y[i]%3)/f'{i}.png'
        p.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((ims[i]*15).astype(np.uint8)).save(p)
    names = [f'{y[i]%3}/{i}.png' for i in range(n)]
    pd.DataFrame(dict(image=names, label=y[:n]%3)).to_csv(d/'labels.csv', index=False)
    pd.DataFrame(dict(image=names, finding=[f'f{o%3}' for o in y[:n]], patient=[*range(n)])).to_csv(d/'findings.csv',
                                                                                                   index=False)

def test_the_guard_holds(tmp_path):
    with read_only(tmp_path):
        for f in (lambda: (tmp_path/'a').write_text('a'), (tmp_path/'b').mkdir, (tmp_path/'c').touch):
            with pytest.raises(OSError, match='Read-only'): f()
    (tmp_path/'a').write_text('a')

@pytest.mark.parametrize('tree,load', [
    (nih, lambda d,**kw: chestxray14(d, check=True, **kw)), (mirror_224, lambda d,**kw: chestxray14(d, **kw)),
    (tiles, image_folder), (tiles, lambda d,**kw: image_csv(csv=d/'labels.csv', **kw)),
    (tiles, lambda d,**kw: findings_csv(d, 'findings.csv', image='image', label='finding', patient='patient', **kw))],
    ids=['nih','mirror','folder','csv','findings'])
@pytest.mark.parametrize('preload', [False,True])
def test_opens(tmp_path, tree, load, preload):
    tree(tmp_path)
    was = sorted(o for o in tmp_path.rglob('*'))
    with read_only(tmp_path):
        dls = load(tmp_path, size=8, workers=0, bs=4, preload=preload)
        for dl in dls.loaders: dl.one_batch()
    assert was==sorted(o for o in tmp_path.rglob('*'))
