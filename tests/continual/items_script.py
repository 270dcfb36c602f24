"""Trains on PNG files with methods that store which items they were: `items_script.py ROOT OUT [kill|resume]`

ROOT: a folder of classes; kill: ends itself by SIGKILL in the middle of an experience. Each of two ranks leaves a
file"""
import os, signal, sys, warnings
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
from fastai.distributed import num_distrib, rank_distrib
from fastai.vision.all import (Adam, Callback, CategoryBlock, CrossEntropyLossFlat, DataBlock, Flip, ImageBlock,
                               Learner,
                               PILImageBW, RandomCrop, RandomSplitter, get_image_files, nn, parent_label, set_seed)
from memo.continual.replay import ACE, AGEM, DERpp, GDumb, MIR, Replay
from memo.continual.stream_fit import fit_stream
from memo.data.streams import split_stream
from memo.training.distributed import processes

every = dict(er=Replay, derpp=DERpp, ace=ACE, agem=AGEM, mir=MIR,
             gdumb=lambda n, **kw: GDumb(n, epochs=2, batch_size=10, **kw))

def png_loaders(root, item=None, batch=None, bs=8, size=24, block=PILImageBW, **kw):
    "Images in folders of their classes; cut and flipped anew in training, where nothing else is asked for"
    item = [RandomCrop(size)] if item is None else item
    return DataBlock((ImageBlock(block), CategoryBlock), get_items=lambda p: get_image_files(p).sorted(),
                     get_y=parent_label, splitter=RandomSplitter(.2, seed=0), item_tfms=item,
                     batch_tfms=[Flip()] if batch is None else batch).dataloaders(root, bs=bs, num_workers=0,
                                                                                 device='cpu', **kw)
def png_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(.1),
                         nn.Linear(64, 5))
def png_learner(dls, cbs=None, **kw):
    return Learner(dls, png_net(), opt_func=Adam, lr=3e-3, loss_func=CrossEntropyLossFlat(), cbs=cbs, **kw)

class Kill(Callback):
    def after_batch(self):
        if self.training and self.learn.experience==1 and self.learn.epoch==1 and self.learn.iter==1:
            os.kill(os.getpid(), signal.SIGKILL)

def main(root, out, kill=None):
    set_seed(0 if kill!='resume' else 7)
    res = {}
    for k in ('er',) if kill=='kill' else ('er','derpp') if num_distrib()<2 else every:
        set_seed(1 if kill!='resume' or k!='er' else 8)
        cb = every[k](20, store='items')
        learn = png_learner(png_loaders(root))
        if kill=='resume' and k=='er': set_seed(9)
        cbs = [cb, *([Kill()] if kill=='kill' else [])]
        with processes(learn), learn.no_bar(), learn.no_logging():
            r = learn.fit_stream(split_stream(learn.dls, n=2), 2, cbs=cbs, checkpoint=f'{out}/{k}',
                                 resume=kill=='resume' and k=='er')
        res[k] = dict(model=learn.model.state_dict(), matrix=torch.from_numpy(r.matrix), size=len(cb.state))
    torch.save(res, f'{out}/rank{rank_distrib()}.pt')

if __name__=='__main__':
    warnings.simplefilter('ignore')
    main(*sys.argv[1:])
    if num_distrib()>1: torch.distributed.destroy_process_group()
