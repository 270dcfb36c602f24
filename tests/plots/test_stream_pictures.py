"Pictures of streams show what comes when"
import io
import matplotlib.pyplot as plt, numpy as np, pytest, torch
from matplotlib.colors import to_rgba
from matplotlib.text import Text
from fastai.vision.all import DataLoaders, nn
from helpers.errors import err
from memo.continual.stream_fit import StreamResult
from memo.data.image_streams import split_digits, stream_features
from memo.data.modes_moons import modes, moons
from memo.data.streams import Stream, split_stream
from memo.data.tensors import TensorDL, TensorSet
from memo.layers.memory_linear import MemoryLinear
from memo.plots.memory_linear import plot_units
from memo.plots.stream_results import plot_stream_accuracy
from memo.plots.streams import class_shares, plot_stream

def saved(fig):
    b = io.BytesIO()
    fig.savefig(b, format='png', dpi=40)
    return b.getvalue()

def stream_of(y, parts, names=None, vocab=None, dim=3):
    "A stream of rows of some classes"
    y = torch.tensor(y)
    ds = TensorSet(torch.randn(len(y), dim), y, vocab=vocab)
    none = [[] for _ in parts]
    return Stream(DataLoaders(TensorDL(dataset=ds), TensorDL(dataset=ds.subset(slice(0)))), [parts,none], names)

@pytest.mark.parametrize('f,kind,n', [(modes,'IID',1), (modes,'CI',4), (moons,'CDI',8), (modes,'CDID',8)])
def test_points_of_each_experience(f, kind, n):
    "In a panel of their own, in one colour a class, all others in grey"
    s = f(kind, device='cpu')
    fig = plot_stream(s)
    axs = [ax for ax in fig.axes if ax.collections]
    x,y = s.whole.train.dataset.x.numpy(),s.whole.train.dataset.y
    assert len(axs)==n and saved(fig)
    for ax,at,name in zip(axs, s.parts[0], s.names):
        grey,own = ax.collections
        assert len(grey.get_offsets())==1000
        np.testing.assert_allclose(own.get_offsets(), x[at], atol=1e-6)
        colours = {tuple(o[:3]) for o in own.get_facecolors()}
        assert len(colours)==len(y[at].unique()) and ax.get_title().replace('\n', ', ')==name
        alpha = own.get_facecolors()[:,3]
        assert (np.diff(alpha)>0).all() if kind=='CDID' else (alpha==1).all()
    assert len({ax.get_xlim() for ax in axs})==1, 'all panels show the same part of the plane'

def test_columns():
    s = modes('CI', device='cpu')
    def shape(fig): return fig.axes[0].get_gridspec().get_geometry()
    assert shape(plot_stream(s))==(1,4) and shape(plot_stream(s, cols=3))==(2,3)
    assert 'cols' in err(plot_stream, s, cols=0)

def test_shares():
    "Of each class's items, in the order of their first coming"
    s = stream_of([2,2,2,2,0,0,5,5], [[0,4],[1,2,6,7],[3,5]])
    shares,here = class_shares(s)
    assert here==[0,2,5]
    assert shares.tolist()==[[.5,0,.5],[.25,.5,.25],[0,1,0]]

def test_classes_over_time():
    s = stream_of([2,2,2,2,0,0,5,5], [[6,7],[0,4],[1,2,3,5]], vocab=[f'c{i}' for i in range(6)])
    fig = plot_stream(s)
    ax = fig.axes[0]
    mesh = ax.collections[0]
    assert [t.get_text() for t in ax.get_yticklabels()]==['c5','c0','c2'], 'from the bottom, as they come'
    assert np.ma.filled(mesh.get_array(), np.nan)[0].tolist()[0]==1
    assert mesh.get_coordinates()[0,:,0].tolist()==[0,2,4,8], 'as wide as there are items'
    assert [t.get_text() for t in ax.get_xticklabels()]==s.names and saved(fig)

def test_long_streams_and_odd_names():
    n = 60
    s = stream_of([i%30 for i in range(6*n)], [[*range(6*i, 6*i+6)] for i in range(n)])
    ax = plot_stream(s).axes[0]
    labels = [t.get_text() for t in ax.get_xticklabels()]
    assert labels[0]=='1' and labels[-1]==str(n) and len(labels)<12 and ax.get_ylabel()=='30 classes'
    plane = stream_of([i%30 for i in range(6*n)], [[*range(6*i, 6*i+6)] for i in range(n)], dim=2)
    assert plot_stream(plane).axes[0].get_ylabel()=='30 classes', 'too many for panels'
    odd = stream_of([0,1], [[0],[1]], ['$x','a'*80], vocab=['$\\alpha','b$'])
    assert saved(plot_stream(odd))
    assert saved(plot_stream(stream_of([0,1], [[0],[1]], ['$x, $y','a'*80], dim=2)))
    assert saved(plot_stream(stream_of([3,3], [[0,1]])))

def test_images_and_their_features(tmp_path):
    s = split_digits(n=5, size=8, images=100, valid=2, test=2, device='cpu')
    f = stream_features(nn.Flatten(), s, tmp_path)
    for o in (s, f, s.joint(), s[1:3]): assert len(plot_stream(o).axes[0].get_xticklabels())==len(o)
    shares,here = class_shares(s)
    assert here==[c for cs in s.classes for c in cs] and set(shares.flatten().tolist())=={0.,1.}
    by = [[i%2 for i in range(len(dl.dataset))] for dl in s.whole.loaders]
    shares,_ = class_shares(split_stream(s.whole, by='domain', domain=by))
    assert shares.shape==(10,2) and torch.allclose(shares.sum(1), torch.ones(10, dtype=torch.double))

def light(c):
    "How light a colour is, 0 to 1"
    return float(np.dot(to_rgba(c)[:3], (.3,.59,.11)))

@pytest.mark.parametrize('style', ['dark_background','ggplot',{'font.size':20},{}],
                         ids=['dark','ggplot','large','plain'])
def test_readable_in_any_style(style):
    "Texts and lines differ from what they are drawn on, no grid lies on numbers, texts are small whatever the style"
    s = modes('CDI', device='cpu')
    r = StreamResult(s.names, dict(test=np.eye(8)), [dict(online=.5)]*8)
    torch.manual_seed(0)
    layer = MemoryLinear(2, 4, key_mem_units=10)
    layer(s.whole.train.dataset.x[:50])
    with plt.style.context(style):
        figs = [plot_stream(s),plot_stream_accuracy(r),r.plot(),plot_units(layer, s.whole.train.dataset.x)]
        for fig in figs: assert saved(fig)
    ground = figs[0].axes[0].get_facecolor()        # pictures look alike in any style
    for fig in figs:
        texts = [t for t in fig.findobj(Text) if t.get_text()]
        assert texts and all(t.get_size()<=8 for t in texts)
        assert not any(g.get_visible() for ax in fig.axes for g in (*ax.get_xgridlines(), *ax.get_ygridlines()))
    far = figs[0].axes[0].collections[0].get_facecolors()[0]
    assert .05<abs(light(far)-light(ground))<.3, 'faint, whatever is behind'
    mean = figs[1].axes[0].lines[-2]
    assert mean.get_label()=='mean of those so far' and abs(light(mean.get_color())-light(ground))>.5
    keys = figs[3].axes[0].texts
    assert keys and all(light(t.get_color())<.1 for t in keys), 'dark on what is light in any style'
