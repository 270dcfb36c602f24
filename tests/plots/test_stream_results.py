"Pictures of what a stream left behind show its numbers"
import io
import numpy as np, pytest, torch
from fastai.vision.all import Adam, Learner, nn, set_seed
from helpers.errors import err
from memo.continual.stream_fit import StreamResult
from memo.data.modes_moons import modes
from memo.data.streams import Stream
from memo.data.whole import digits
from memo.data.streams import split_stream
from memo.plots.stream_results import DrawSurfaces, grid_of, plot_matrix, plot_stream_accuracy, plot_surfaces

def saved(fig):
    b = io.BytesIO()
    fig.savefig(b, format='png', dpi=40)
    return b.getvalue()

def result(A, names=None, **rows):
    return StreamResult(names or [f'e{i}' for i in range(len(A[0]))], dict(test=A, **rows))

A = [[.9,.1,np.nan],[.4,.8,np.nan],[.25,.5,np.nan]]

def test_matrix_shows_numbers():
    fig = plot_matrix(result(A))
    ax = fig.axes[0]
    np.testing.assert_array_equal(np.array(ax.images[0].get_array()), np.ma.masked_invalid(A))
    assert [t.get_text() for t in ax.texts]==['90','10','40','80','25','50']
    assert [t.get_text() for t in ax.get_xticklabels()]==['e0','e1','e2'] and 'average accuracy 0.375' in ax.get_title()
    assert saved(fig) and saved(result(A).plot())

def test_matrix_of_an_unfinished_stream_and_of_many():
    fig = plot_matrix(result(A[:2], names=['$a_1$, b','c','d']))
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()]==['$a_1$, b','c'] and saved(fig)
    rng = np.random.default_rng(0)
    fig = plot_matrix(result(rng.random((100,100)).tolist()))
    assert not fig.axes[0].texts and len(fig.axes[0].get_xticklabels())==7 and saved(fig)
    assert saved(plot_stream_accuracy(result(rng.random((100,100)).tolist()))) and saved(plot_matrix(result([[.5]])))

def test_valid():
    r = result(A, valid=[[1,0,0],[0,1,0],[0,0,1]])
    assert plot_matrix(r, valid=True).axes[0].images[0].get_array().trace()==3
    assert 'validation' in err(plot_matrix, result(A), valid=True)

def test_over_the_stream():
    r = result(A, steps=[[0,5,.2,0,0],[1,5,.6,.6,0]])
    ax = plot_stream_accuracy(r).axes[0]
    mean = next(o for o in ax.lines if o.get_label()=='mean of those so far')
    np.testing.assert_allclose(mean.get_ydata(), [.2,.9,.6,.6,.375])
    assert list(mean.get_xdata())==sorted(mean.get_xdata()) and mean.get_xdata()[-1]==3
    assert saved(plot_stream_accuracy(result(A)))

def test_what_is_no_result():
    for o in (None, 3, A): assert 'fit_stream' in err(plot_matrix, o) and 'fit_stream' in err(plot_stream_accuracy, o)
    assert 'no experience' in err(plot_matrix, StreamResult(['a'], dict(test=[])))

class Quadrants(nn.Module):
    "Answers by the quadrant, and counts how often it was trained"
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4))
    def forward(self, x):
        c = (x[:,0]>0).long()+2*(x[:,1]>0).long()
        return torch.nn.functional.one_hot(c, 4).float()*10+self.w

def test_surfaces_are_the_model_s_answers(tmp_path):
    s,draw = modes('CDI', device='cpu'),DrawSurfaces(20)
    learn = Learner(s.dls, Quadrants(), opt_func=Adam, lr=0.)
    with learn.no_bar(), learn.no_logging(): learn.fit_stream(s, cbs=draw, checkpoint=tmp_path)
    got = draw.surfaces()
    assert sorted(got)==list(range(8))
    x = s.whole.train.dataset.x
    p = grid_of(x, 20)
    want = (p[:,0]>0).long()+2*(p[:,1]>0).long()
    for v in got.values(): assert torch.equal(v.flatten().long(), want)
    assert (p[:20,1]==p[0,1]).all() and p[0].lt(x.min(0).values).all() and p[-1].gt(x.max(0).values).all()
    fig = plot_surfaces(draw, s)
    axs = [ax for ax in fig.axes if ax.images]
    assert len(axs)==8 and saved(fig)
    assert [len(o.get_offsets()) for o in axs[3].collections]==[sum(map(len, s.parts[0][:3])),len(s.parts[0][3])]
    np.testing.assert_array_equal(np.array(axs[0].images[0].get_array()), got[0])
    assert saved(plot_surfaces(draw, s[:3], cols=2))
    # it is in the model's state: one that is resumed has all
    new,again = Learner(s.dls, Quadrants(), opt_func=Adam, lr=0.),DrawSurfaces(20)
    with new.no_bar(), new.no_logging(): new.fit_stream(s, cbs=again, checkpoint=tmp_path, resume=True)
    assert sorted(again.surfaces())==list(range(8))

def test_surfaces_leave_training_as_it_is():
    def trained(*cbs):
        s = modes('CI', device='cpu')
        set_seed(0)
        learn = Learner(s.dls, nn.Sequential(nn.Linear(2, 8), nn.Dropout(.2), nn.Linear(8, 4)), opt_func=Adam, lr=.01)
        with learn.no_bar(), learn.no_logging(): r = learn.fit_stream(s, cbs=cbs)
        return learn.model[0].weight,r.matrix
    (a,A),(b,B) = trained(),trained(DrawSurfaces(8))
    assert torch.equal(a, b) and np.array_equal(A, B)

def test_surfaces_of_what_is_no_plane():
    dls = digits(bs=64, seed=0)
    s = split_stream(dls, n=5)
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(1024, 10)))
    with learn.no_bar(), learn.no_logging(): said = err(learn.fit_stream, s, cbs=DrawSurfaces())
    assert 'points in the plane' in said
    assert 'DrawSurfaces' in err(plot_surfaces, DrawSurfaces(), s) and 'DrawSurfaces' in err(plot_surfaces, None, s)
    assert 'size' in err(DrawSurfaces, 0)
