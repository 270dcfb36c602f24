"""What answers best on a frozen backbone, in one pass over a stream of new classes, without a stored image?

    python benchmarks/streams_frozen.py [fashion|digits] [--quick] [--features FOLDER]

Features of an ImageNet-trained EfficientNet-Lite0 at 64 pixels are computed once and kept in FOLDER. The stream has
5 experiences of 2 classes, in 5 orders of the classes, which no method is told where they end. Every choice is made on
held-out training images, with class orders of their own; then each method is run once on the test images, and methods
are compared order by order. Prints Markdown tables; `--quick` is two orders and fewer images."""
import argparse,math,statistics,time
from pathlib import Path
import safetensors.torch as st, torch
from torch.nn import functional as F
from memo.core import atomic_path
from memo.models.backbones import load_backbone

C = 10
# images of each class: of the stream, held out
SETS = dict(fashion=dict(train=1000, valid=400), digits=dict(train=80, valid=40))

# ---- features

def images(name):
    "Training images of each class for the stream, held-out ones, test images [N,H,W] 0..255, with their classes"
    if name=='fashion':
        from memo.data.longtail import read_fashion
        (x,y),(tx,ty) = read_fashion(None, 'train'),read_fashion(None, 't10k')
        x,tx = x.flatten(1).view(-1, 28, 28),tx.flatten(1).view(-1, 28, 28)
    else:
        from sklearn.datasets import load_digits
        d = load_digits()
        x,y = torch.tensor(d.images*255/16),torch.tensor(d.target)
    n,g,at = SETS[name],torch.Generator().manual_seed(0),[]
    for c in range(C):
        own = (y==c).nonzero().flatten()
        at.append(own[torch.randperm(len(own), generator=g)])
    a,b = (torch.cat([o[i:j] for o in at]) for i,j in ((0, n['train']), (n['train'], n['train']+n['valid'])))
    if name=='digits':
        t = torch.cat([o[n['train']+n['valid']:] for o in at])
        tx,ty = x[t],y[t]
    return {k:(x.float(),y.long()) for k,x,y in (('train',x[a],y[a]), ('valid',x[b],y[b]), ('test',tx,ty))}

def look(net, x):
    "What the backbone gives of images: its features, means of its stages, and stages as 2x2 maps"
    maps,f = [],net.bn1(net.conv_stem(x))
    for b in net.blocks:
        f = b(f)
        maps.append(f)
    z = net.forward_head(net.bn2(net.conv_head(f)))
    return dict(z=z, means=torch.cat([o.mean((2, 3)) for o in maps], 1),
                maps=torch.cat([F.adaptive_avg_pool2d(maps[i], 2).flatten(1) for i in (2, 4, 6)], 1))

@torch.no_grad()
def features(name, folder):
    "Features of a data set's images and of their mirror images, from the folder where they are there"
    path,res = Path(folder)/f'streams_frozen_{name}.safetensors',{}
    if path.exists(): return {k:v if k.endswith('_y') else v.float() for k,v in st.load_file(path).items()}
    net = load_backbone('tf_efficientnet_lite0', pretrained=True).eval().to(memory_format=torch.channels_last)
    mean,std = (torch.tensor(o).view(3, 1, 1) for o in ((.485, .456, .406), (.229, .224, .225)))
    for part,(x,y) in images(name).items():
        res[part+'_y'] = y
        for flip in (False,True):
            got = []
            for o in x.split(100):
                o = F.interpolate(o[:,None]/255, size=64, mode='bilinear').expand(-1, 3, -1, -1)
                o = o.flip(-1) if flip else o
                got.append(look(net, ((o-mean)/std).contiguous(memory_format=torch.channels_last)))
            for k in got[0]: res[f"{part}{'_flip'*flip}_{k}"] = torch.cat([o[k] for o in got]).half().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as p: st.save_file(res, p)
    return features(name, folder)
