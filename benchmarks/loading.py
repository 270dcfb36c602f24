"""Images a second from files: memo's loaders against a bare PyTorch DataLoader with PIL, in turn

    python benchmarks/loading.py [--images 512] [--rounds 9]       # writes loading.md beside this file

Films: those of the stand-in in NIH's layout, made 1,024 pixels large as NIH's are (8 bits, PNG). Photographs: cuts of
500 x 375 pixels from scikit-learn's two, as JPEG in folders of two classes. Both sides decode, resize to 224 pixels
(photographs by the shorter side to 256, of which the middle is cut out) and make batches of 64, without varying the
images; the bare one is a Dataset of few lines."""
import argparse,os
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
import resource,tempfile,time,warnings
from pathlib import Path
from statistics import quantiles
import numpy as np, torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader,Dataset
from torchvision.transforms import v2
warnings.filterwarnings('ignore')
from memo.data.chest_standin import chest_tree
from memo.data.chest_xray import chestxray14
from memo.data.image_folders import image_folder

class Bare(Dataset):
    def __init__(self, ps, y): self.ps,self.y = ps,y
    def __len__(self): return len(self.ps)
    def __getitem__(self, i):
        im = Image.open(self.ps[i]).convert('L').resize((224,224), Image.Resampling.BILINEAR)
        x = torch.from_numpy(np.asarray(im).copy())[None].float().div_(255).sub_(.45).div_(.23)
        return x.expand(3, -1, -1),self.y[i]

class BarePhotos(Bare):
    resize = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
                         v2.Normalize([.485,.456,.406], [.229,.224,.225])])
    def __getitem__(self, i): return self.resize(Image.open(self.ps[i]).convert('RGB')),self.y[i]

def photos(root, n):
    "Two classes of photographs, all for validation but a few"
    rng = np.random.default_rng(0)
    for part,m in (('train',8), ('valid',n//2), ('test',8)):
        for k,im in zip(('china','flower'), load_sample_images().images):
            (root/part/k).mkdir(parents=True)
            for i in range(m):
                y,x = rng.integers(0, im.shape[0]-375),rng.integers(0, im.shape[1]-500)
                Image.fromarray(im[y:y+375,x:x+500]).save(root/part/k/f'{i:04}.jpg', quality=90)
    return root

def cpu():
    both = map(resource.getrusage, (resource.RUSAGE_SELF,resource.RUSAGE_CHILDREN))
    return sum(o.ru_utime+o.ru_stime for o in both)

def through(dl):
    "Seconds (wall, CPU with that of workers) for all images of a loader, and how many they were"
    w,c,n = time.perf_counter(),cpu(),0
    for x,y in dl: n += len(x)
    return time.perf_counter()-w,cpu()-c,n

def compare(make_ours, make_bare, rounds):
    "Images a second of either (wall, CPU), and quartiles of the ratio of pairs in turn"
    every = [[],[]]
    for i in range(rounds+1):
        pair = [None,None]
        for k in ((0,1) if i%2 else (1,0)): pair[k] = through((make_ours,make_bare)[k]())
        if i:
            for k in (0,1): every[k].append(pair[k])      # the first fills the disk's cache
    rate = [[np.median([o[2]/o[j] for o in os]) for j in (0,1)] for os in every]
    return rate,[quantiles([(a[2]/a[j])/(b[2]/b[j]) for a,b in zip(*every)], n=4) for j in (0,1)]

def films(o, root, workers):
    dls = chestxray14(root, size=224, rotate=0, workers=workers, bs=64, val_bs=64)
    ds = dls.train.dataset
    ps,y = [str(p) for p in ds.x.paths][:o.images],ds.y[:o.images]
    return (lambda: dls.train.new(get_idxs=lambda: list(range(o.images)))),Bare(ps, y)

def pictures(o, root, workers):
    dls = image_folder(root, workers=workers, bs=64, val_bs=64)
    return (lambda: dls.valid),BarePhotos([str(p) for p in dls.valid.dataset.x.paths], dls.valid.dataset.y)

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--images', type=int, default=512)
    p.add_argument('--rounds', type=int, default=9)
    o = p.parse_args()
    head = '| | images/s, memo (of a CPU second) | bare | ratio, wall (quartiles) | ratio, CPU (quartiles) |'
    lines = [head, '|---|---|---|---|---|']
    with tempfile.TemporaryDirectory() as d:
        root = chest_tree(Path(d)/'small', patients=600)
        for f in Path(root).rglob('*.png'):
            with Image.open(f) as im: im.convert('L').resize((1024,1024), Image.Resampling.BICUBIC).save(f)
        for what,make,at in (('films',films,root), ('photographs',pictures,photos(Path(d)/'photos', o.images))):
            for workers in (0,2):
                ours,data = make(o, at, workers)
                rate,ratio = compare(ours, lambda: DataLoader(data, batch_size=64, num_workers=workers), o.rounds)
                cells = [f'{r[0]:.0f} ({r[1]:.0f})' for r in rate]+[f'{b:.2f} ({a:.2f}-{c:.2f})' for a,b,c in ratio]
                lines.append(f"| {what}, {workers} workers | {' | '.join(cells)} |")
    text = (f"`python benchmarks/loading.py --images {o.images} --rounds {o.rounds}`, torch {torch.__version__}, PIL "
            f"{Image.__version__}, one thread a process\n\n")
    Path(__file__).with_suffix('.md').write_text(text+'\n'.join(lines)+'\n')
    print('\n'.join(lines))

if __name__=='__main__': main()
