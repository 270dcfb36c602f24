"""README's picture: test images beside the training images that the memory recalls for them, after a training like the
quickstart's, on one thread (sums in another order give another network).
python benchmarks/readme_picture.py [FILE]     # by default nbs/images/recalled.png; half a minute"""
import sys
from pathlib import Path
from fastai.vision.all import *
from memo.all import *
from memo.plots.figure import MEANS
from PIL import Image

torch.set_num_threads(1)
dls = digits_lt(seed=0)
set_seed(0, reproducible=True)
learn = Learner(dls, small_cnn(1, dls.c), opt_func=adamw, cbs=MemoryCallback(SlotBank(512, policy='fifo'), head='vote'))
with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(30, 1e-2, wd=.01)
learn.memory.rekey()
print(learn.memory.fit(k=[5,10,20,50], whiten=[False,True]))

k = 5
r = learn.recall(ds_idx=2, k=k)
with learn.no_bar(), learn.memory.off(): alone,y = learn.get_preds(2)
few,mixed = (dls.counts<=dls.few)[y],r.probs
right = lambda p: p.argmax(1)==y
gained,lost = few & ~right(alone) & right(mixed),right(alone) & ~right(mixed)
print(f'{len(y)} test images: {int(gained.sum())} of a rare digit are wrong without the memory and right with it; '
      f'{int(lost.sum())} of all went the other way')
# of each rare digit the image that the memory puts right with the largest probability
sure = mixed.amax(1)*gained
shown = [int((sure*(y==c)).argmax()) for c in y[gained].unique()]

from matplotlib.figure import Figure
ink,grey,good,bad = '#1f2933','#66727f',MEANS['right'],MEANS['wrong']
step,first_row = 1.22,.52
fig = Figure(figsize=(9, first_row+step*len(shown)), dpi=180, facecolor='white')
w,h = fig.get_size_inches()
def text(x, y, s, **kw): fig.text(x/w, 1-y/h, s, **({'ha':'center', 'va':'center', 'color':ink, 'fontsize':10.5} | kw))
def image(x, y, size, px, color, width=2.2):
    ax = fig.add_axes([x/w, 1-(y+size)/h, size/w, size/h])
    ax.imshow(F.pad(px, (1,)*4, value=float(px.min())), cmap='gray_r', interpolation='bicubic')
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(color=color, linewidth=width)
def pixels(dl, i): return dl.dataset.x[i][0].float().cpu()
at = {int(o):j for j,o in enumerate(item_ids(plain_dl(dls.train)).tolist())}

for x,s in ((.6,'new image'), (1.87,'network alone'), (4.82,'what the memory recalls: training images, nearest first'),
            (8.2,'with the memory')):
    text(x, .22, s, color=grey)
for n,i in enumerate(shown):
    top = first_row+step*n
    mid = top+.39
    image(.22, top, .78, pixels(dls[2], i), ink, 1.2)
    text(.61, top+.95, f'a {int(y[i])}', weight='bold')
    for x,p in ((1.87,alone[i]), (8.2,mixed[i])):
        c = int(p.argmax())
        text(x, mid, f'{c}', fontsize=28, weight='bold', color=good if c==y[i] else bad)
        text(x, top+.95, f'{100*p.max():.0f} % sure', color=grey)
    for j in range(k):
        label,x = int(r.row_label[i,j]),2.68+.9*j
        same = label==y[i]
        image(x, top, .78, pixels(dls.train, at[int(r.row_item[i,j])]), good if same else '#b8c2cc')
        text(x+.39, top+.95, f'{label}', color=good if same else grey, weight='bold' if same else 'normal')
    text(7.42, mid, '→', fontsize=18, color=grey)
out = Path(sys.argv[1] if len(sys.argv)>1 else Path(__file__).parents[1]/'nbs/images/recalled.png')
out.parent.mkdir(exist_ok=True, parents=True)
fig.savefig(out)
Image.open(out).convert('RGB').quantize(128, dither=Image.Dither.NONE).save(out, optimize=True)
print(f'{out}: {out.stat().st_size/1000:.0f} kB')
