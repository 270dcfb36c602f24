"Pictures of Hopfield memories: their curves are the formulas', their images those that the weights name"
import io, math
import numpy as np, pytest, torch
from fastai.vision.all import CrossEntropyLossFlat, DataLoaders, Learner, set_seed
from PIL import Image
from torch import nn
from helpers.errors import err
from helpers.learners import quietly
from memo.banks.classes import ClassBank
from memo.banks.slots import SlotBank
from memo.data.tensors import TensorDL, TensorSet
from memo.evaluation.reads import hopfield_reads
from memo.heads.attach import memories
from memo.models.small import small_cnn
from memo.models.hopfield_vit import hopfield_vit
from memo.models.vit import vit_splitter
from memo.plots.hopfield import by_item, plot_energy, plot_retrieval, plot_slot_use, plot_token_reads
from memo.training.memory_callback import MemoryCallback

def pictures(n):
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    return .5*x+.5*torch.linspace(0, 1, n)[:,None,None,None]

def loaders(c=5, n=40, names=None, first=10**12):
    x,y = pictures(n+10),torch.arange(n+10)%c
    def mk(a, b, i, **kw):
        return TensorDL(dataset=TensorSet(x[a:b], y[a:b], torch.arange(a, b)+first, names, i), bs=8, **kw)
    return DataLoaders(mk(0, n, 0, shuffle=True), mk(n, n+10, 1), device='cpu')

vit = dict(img_size=8, patch_size=4, depth=2, embed_dim=24, num_heads=2, c_in=1)
def learner(memory='SlotBank', c=5, names=None, arch='vit_tiny_patch16_224', dls=None, **kw):
    set_seed(0)
    m = hopfield_vit(arch, max(c, 2), **{'size':30, 'memory':memory, **vit, **kw})
    learn = Learner(dls or loaders(c, names=names), m, loss_func=CrossEntropyLossFlat(), splitter=vit_splitter,
                    cbs=MemoryCallback())
    quietly(learn, learn.fit, 1, 1e-2)
    return learn

def render(fig):
    "What a notebook shows"
    b = io.BytesIO()
    fig.savefig(b, format='png', dpi=60)
    return Image.open(b)

def median(v): return np.median(np.asarray(v))
def per_cent(v): return '< .1 %' if 0<v<.001 else f'{100*v:.0f} %' if v>=.095 else f'{100*v:.1f} %'
def soft(s): return np.exp(s-s.max())/np.exp(s-s.max()).sum()

# energy and retrieval

def by_loop(q, k, beta, steps):
    "Energies of each query before and after each update, the last weights, the last states"
    out,ws,ends = [],[],[]
    for x in q.numpy().astype(float):
        K,es = k.numpy().astype(float),[]
        for t in range(steps+1):
            s = beta*K@x
            lse = (s.max()+np.log(np.exp(s-s.max()).sum()))/beta
            es.append(-lse+x@x/2+math.log(len(K))/beta+(K**2).sum(1).max()/2)
            last,ws_ = x,soft(s)
            x = ws_@K
        out.append(es)
        ws.append(ws_)
        ends.append(last)
    return np.array(out),ws,ends

def test_energy_of_given_patterns():
    g = torch.Generator().manual_seed(0)
    k,q = torch.randn(20, 8, generator=g),torch.randn(2, 3, 8, generator=g)
    betas = [.05,.5,3]
    a,b,c = plot_energy(q, k, betas, steps=3).axes
    lines = [l for l in a.lines]
    few,far = [],[]
    for beta,line in zip(betas, lines):
        e,ws,ends = by_loop(q.reshape(6, 8), k, beta, 3)
        np.testing.assert_allclose(line.get_ydata(), np.median(e, 0), rtol=1e-4)
        assert (np.diff(e)<1e-6).all() and line.get_label()==f'{beta:.3g}'
        few.append(median([int((np.cumsum(np.sort(w)[::-1])<.9).sum())+1 for w in ws]))
        far.append(median([np.linalg.norm(k.numpy()-x, axis=1).min() for x in ends])/k.norm(dim=1).mean())
    np.testing.assert_allclose(b.lines[0].get_ydata(), few)
    np.testing.assert_allclose(c.lines[0].get_ydata(), far, rtol=1e-3, atol=1e-5)
    assert b.lines[0].get_xdata().tolist()==betas

def test_default_betas_are_around_ones_own():
    k = torch.randn(9, 16)
    assert [l.get_label() for l in plot_energy(k, k).axes[0].lines]==['0.025','0.075','0.25','0.75','2.5']

def test_energy_in_a_network():
    "A row for each memory, of the queries that it gets; a model and its images, and a learner, tell the same"
    learn = learner(heads=2)
    fig = plot_energy(learn, steps=1)
    assert len(fig.axes)==6 and fig.axes[3].get_legend().get_title().get_text().startswith('hopfield_1: ')
    x = learn.dls.valid_ds.x
    learn.model.train()
    other = plot_energy(learn.model, x, steps=1)
    assert learn.model.training
    for a,b in zip(fig.axes, other.axes):
        for l,m in zip(a.lines, b.lines): np.testing.assert_allclose(l.get_ydata(), m.get_ydata(), rtol=1e-4)
    assert len(plot_energy(learn, memory='hopfield_1').axes)==3
    h,came = memories(learn.model)['hopfield_1'],[]
    hook = h.register_forward_pre_hook(lambda m, args: came.append(args[0]))
    with torch.no_grad(): learn.model.eval()(x)
    hook.remove()
    with torch.no_grad(): q,k,_,beta,_ = h.prepared(came[0])
    e = np.concatenate([by_loop(q[:,i].reshape(-1, 12), k[0,i], float(beta), 1)[0] for i in range(2)])
    mid = plot_energy(learn, memory='hopfield_1', betas=[float(beta)], steps=1).axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(mid, np.median(e, 0), rtol=1e-3)

def test_retrieval_of_given_patterns():
    "Without noise and with a high beta nothing is lost; with beta near 0 the mean of all is what is recalled"
    k = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    a,b = plot_retrieval(k, betas=[1e-6,4], noises=(0,.3,4), steps=2).axes
    soft_,sharp = (l.get_ydata() for l in a.lines)
    far = ((k.mean(0)-k).norm(dim=1)/k.norm(dim=1)).median()
    np.testing.assert_allclose(soft_, [far]*3, rtol=1e-2)
    assert sharp[0]<1e-3 and sharp[1]<1e-2 and sharp[2]>.5
    n = b.lines[0].get_xdata().tolist()
    assert n==[1,2,4,8,16,32] and b.lines[0].get_ydata()[0]<1e-6 and (b.lines[0].get_ydata()[1:]>.3).all()
    np.testing.assert_array_equal(a.lines[0].get_ydata(), plot_retrieval(k, betas=[1e-6,4], noises=(0,.3,4),
                                                                         steps=2).axes[0].lines[0].get_ydata())

def test_what_can_be_drawn():
    bank = SlotBank(8, policy='fifo')
    assert 'at least one row' in err(plot_retrieval, bank)
    bank.write(torch.randn(5, 4))
    for fig in (plot_retrieval(bank), plot_energy(bank), plot_energy(torch.randn(3, 4), bank)):
        assert '5 patterns' in fig.axes[0].get_legend().get_title().get_text()
    learn = learner('learned', size=9)
    assert len(plot_retrieval(learn).axes)==4
    k = torch.randn(5, 4)
    assert '[...,4] is accepted' in err(plot_energy, torch.randn(3, 5), k)
    assert 'betas' in err(plot_energy, k, k, betas=[-1]) and 'above 0' in err(plot_energy, k, k, betas=[0])
    assert 'steps' in err(plot_energy, k, k, steps=-1) and 'noises' in err(plot_retrieval, k, noises=(-1,))
    assert 'needs images' in err(plot_energy, learn.model)
    assert 'no Hopfield memory' in err(plot_energy, nn.Linear(2, 2), k)
    one = torch.randn(1, 4)
    for f in (plot_energy, plot_retrieval): render(f(one, one) if f is plot_energy else f(one))

# which rows are in use

def test_use_of_rows():
    learn = learner('learned', size=9)
    r = hopfield_reads(learn)
    fig = plot_slot_use(r)
    for i,(name,o) in enumerate(r.items()):
        a,b = fig.axes[2*i:2*i+2]
        share = (o.use/o.use.sum()).numpy()
        (p,) = a.patches
        np.testing.assert_allclose(p.get_data().values, np.sort(share*9)[::-1], rtol=1e-6)
        assert [t.get_text() for t in a.get_xticklabels()]==[str(j) for j in np.argsort(-share, kind='stable')]
        slots = np.exp(-(share*np.log(share)).sum())
        idle = 100*(1-o.read.double().mean())
        assert a.get_title()==f'{name}: spread over {slots:.3g} of 9 rows\n{idle:.3g} % in no top 5'
        bars = np.array([q.get_height() for q in b.patches])
        want,_ = np.histogram(o.specialisation().clamp(0, 1), bins=20, range=(0,1), weights=share)
        np.testing.assert_allclose(bars, want, atol=1e-9)

@pytest.mark.parametrize('size', [1,10,1000,10_000])
def test_many_rows(size):
    learn = learner('learned', size=size)
    fig = plot_slot_use(learn, n=4)
    render(fig)
    (p,) = fig.axes[0].patches
    v = p.get_data().values
    assert len(v)==size and (np.diff(v)<=0).all() and v.mean()==pytest.approx(1, rel=1e-4)

@pytest.mark.parametrize('c', [1,2,10,40])
def test_classes(c):
    fig = plot_slot_use(learner('learned', c, size=9))
    render(fig)
    assert len(fig.axes)==(2 if c==1 else 4)

# which image each token reads

def weights(learn, name, i, train=False):
    "Of one image's tokens over the rows [N,M], worked out outside of the picture; own rows hidden where it is stored"
    h,came = memories(learn.model)[name],[]
    hook = h.register_forward_pre_hook(lambda m, args: came.append(args[0]))
    x = (learn.dls.train_ds if train else learn.dls.valid_ds).x[i:i+1]
    with torch.no_grad(): learn.model.eval()(x)
    hook.remove()
    with torch.no_grad():
        q,k,_,beta,_ = h.prepared(came[0])
        s = q[0]@k[0].mT*torch.as_tensor(beta).reshape(-1, 1, 1)
        if train: s[:,:,h.bank.stored()[2]==10**12+i] = -torch.inf
        return s.softmax(-1).mean(0),h.bank.stored()[2]-10**12

def shown(ax): return np.asarray(ax.images[0].get_array())

def number(ax, of):
    "Which training image is drawn: all differ"
    im = torch.as_tensor(shown(ax)).squeeze()
    d = [(im-o.squeeze()).abs().max() for o in of]
    return int(np.argmin(d)) if min(d)<.01 else None

@pytest.mark.parametrize('kw,prefix', [(dict(),1), (dict(arch='vit_small_patch14_reg4_dinov2'),5),
                                       (dict(class_token=False, global_pool='avg'),0), (dict(heads=2),1)])
def test_images_by_patch(kw, prefix):
    "In each patch's place the image that it reads most; beside them those that the tokens in front read"
    learn = learner(**kw)
    fig = plot_token_reads(learn, 2, memory='hopfield_1', k=3)
    w,items = weights(learn, 'hopfield_1', 2)
    x = learn.dls.train_ds.x
    query,mosaic,*strips = fig.axes
    np.testing.assert_allclose(shown(query).squeeze(), learn.dls.valid_ds.x[2].squeeze(), atol=1e-6)
    cells = shown(mosaic).reshape(2, 40, 2, 40, 3).transpose(0, 2, 1, 3, 4).reshape(4, 40, 40, 3)
    assert len(w)==prefix+4
    for cell,row in zip(cells, w[prefix:]):
        want = np.stack([x[int(items[row.argmax()])].squeeze().numpy()]*3, 2)        # 0 is black
        want = Image.fromarray((want*255).round().astype(np.uint8)).resize((40,40), Image.Resampling.NEAREST)
        want = np.asarray(want)/255
        np.testing.assert_allclose(cell, want, atol=.02)
    assert len(strips)==3*min(prefix, 4)
    for t in range(min(prefix, 4)):
        best = w[t].topk(3)
        for ax,v,i in zip(strips[3*t:3*t+3], best.values, best.indices):
            assert number(ax, x)==int(items[i]) and ax.get_title().endswith(f'\n{per_cent(v)}')
            assert ax.get_title().split('\n')[-2]==str(int(items[i])%5)
    assert f'{per_cent(w[prefix:].amax(1).mean())} of its weight' in mosaic.get_title()
    render(fig)

def test_only_the_class_token():
    learn = learner(tokens='cls')
    fig = plot_token_reads(learn, 0, memory='hopfield_0')
    w,items = weights(learn, 'hopfield_0', 0)
    # the weights above are of all tokens
    best = w[0].topk(4)
    assert [number(ax, learn.dls.train_ds.x) for ax in fig.axes[1:]]==items[best.indices].tolist()
    assert fig.axes[1].get_title().startswith('hopfield_0: class token')

def test_chosen_tokens():
    learn = learner()
    fig = plot_token_reads(learn, 1, memory='hopfield_1', tokens=['cls',1,0], k=2)
    w,items = weights(learn, 'hopfield_1', 1)
    strips = fig.axes[2:]
    for t,at in enumerate((0,2,1)):
        assert [number(ax, learn.dls.train_ds.x) for ax in strips[2*t:2*t+2]]==items[w[at].topk(2).indices].tolist()
    assert [strips[2*t].get_title().split('\n')[0] for t in range(3)]==['class token','patch 1','patch 0']
    corners = [(p.get_x(),p.get_y()) for p in fig.axes[0].patches]
    assert corners==[(3.5,-.5),(-.5,-.5)]
    for bad in ([4],['no'],[-1]): assert '0..3' in err(plot_token_reads, learn, 1, tokens=bad)

def test_a_training_image_does_not_find_itself():
    learn = learner()
    items = (memories(learn.model)['hopfield_1'].bank.stored()[2]-10**12).tolist()
    i = items[0]
    fig = plot_token_reads(learn, i, ds_idx=0, memory='hopfield_1', k=40)
    drawn = [number(ax, learn.dls.train_ds.x) for ax in fig.axes[2:]]
    w,_ = weights(learn, 'hopfield_1', i, train=True)
    assert i not in drawn[:len(items)-1] and sorted(drawn[:len(items)-1])==sorted(o for o in items if o!=i)
    assert drawn[0]==items[int(w[0].argmax())]

def test_rows_of_one_image_count_together():
    w = torch.tensor([[.1,.2,.3,.4],[.4,.3,.2,.1]])
    per,ids = by_item(w, torch.tensor([7,-1,3,7]))
    assert ids.tolist()==[3,7]
    torch.testing.assert_close(per, torch.tensor([[.3,.5],[.2,.5]]))

@pytest.mark.parametrize('bank', ['ClassBank','AssociativeBank','CachedBank'])
def test_other_banks(bank):
    "An image's weight is that of all its rows; a row for each memory"
    learn = learner(bank) if bank!='ClassBank' else learner(lambda i: ClassBank(5, capacity=6))
    quietly(learn, learn.fit, 1, 1e-2)
    fig = plot_token_reads(learn, 2, k=2)
    assert len(fig.axes)==8
    w,items = weights(learn, 'hopfield_0', 2)
    h = memories(learn.model)['hopfield_0']
    if (valid := h.bank.patterns()[2]) is not None:
        with torch.no_grad():
            w = w*valid
            w = w/w.sum(-1, keepdim=True)
    per = {}
    for v,i in zip(w[0].tolist(), items.tolist()): per[i] = per.get(i, 0)+v
    best = sorted(per, key=per.get)[::-1][:2]
    assert [number(ax, learn.dls.train_ds.x) for ax in fig.axes[2:4]]==best
    render(fig)

def test_a_map_of_features():
    set_seed(0)
    m = small_cnn(1, 5)
    learn = Learner(loaders(), m, loss_func=CrossEntropyLossFlat(),
                    cbs=MemoryCallback(SlotBank(12, policy='fifo'), head='hopfield', at='2'))
    quietly(learn, learn.fit, 1, 1e-2)
    fig = plot_token_reads(learn, 2)
    assert len(fig.axes)==2 and shown(fig.axes[1]).shape==(4*40,4*40,3)
    render(fig)

def test_vectors():
    "In front of the classifier there is one query, of the whole image"
    set_seed(0)
    learn = Learner(loaders(), small_cnn(1, 5), loss_func=CrossEntropyLossFlat(),
                    cbs=MemoryCallback(SlotBank(12, policy='fifo'), head='hopfield'))
    quietly(learn, learn.fit, 1, 1e-2)
    fig = plot_token_reads(learn, 2, k=3)
    assert len(fig.axes)==4 and fig.axes[1].get_title().startswith('memory: image')

def test_names_are_drawn_as_they_are():
    names = ['$\\frac$','$a_b$','x^{2','$$','_']       # the first is no formula that can be drawn
    fig = plot_token_reads(learner(names=names), 0, k=30)
    render(fig)
    assert fig.axes[0].get_title()==names[0] and {ax.get_title().split('\n')[1] for ax in fig.axes[2:12]}>={*names[:2]}

def test_what_has_no_images():
    for memory in ('learned','class_prototype'):
        assert "are no image's" in err(plot_token_reads, learner(memory, size=9), 0)
    learn = learner()
    assert '0..9 is accepted' in err(plot_token_reads, learn, 10)
    assert '0..1 is accepted' in err(plot_token_reads, learn, 0, ds_idx=3)
    assert 'k' in err(plot_token_reads, learn, 0, k=0)

def test_rows_of_items_that_are_gone():
    "Trained on other data: said in the picture"
    learn = learner()
    learn.dls = loaders(first=5*10**12)
    fig = plot_token_reads(learn, 0, memory='hopfield_1')
    assert 'not in' in fig.axes[2].texts[0].get_text()
