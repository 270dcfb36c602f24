"Every picture of memo can be read: of any number of classes, with any names, in any style of the user's"
from functools import lru_cache
import matplotlib, numpy as np, pytest, torch
from matplotlib import style
from matplotlib.colors import to_rgb
from helpers.every_picture import (epochs, every, exported, findings, hard, inner, learner, named, pictures, results,
                                   sizes, stream)
from helpers.looks import contrast, looks, rendered
from memo.banks.classes import ClassBank
from memo.core import MemoError
from memo.plots.banks import plot_bank, plot_similarity, plot_stored
from memo.plots.figure import Picture, class_colors, drawing, panels, short_names
from memo.plots.hopfield import small_image
from memo.plots.results import draw_dots, plot_classes, plot_comparison
from memo.plots.stream_results import plot_matrix
from memo.plots.streams import plot_stream
from memo.plots.training import class_bars, plot_counts, plot_history
from memo.banks.slots import SlotBank
from memo.continual.stream_fit import StreamResult

def test_every_picture_is_here():
    "A new one needs a line in tests/helpers/every_picture.py, which says how it is drawn of n classes"
    assert exported()-inner==set(every) and named<=set(every)

@pytest.mark.parametrize('n', [pytest.param(o, marks=pytest.mark.nightly) if o in (2,200) else o for o in sizes])
@pytest.mark.parametrize('name', every)
def test_all_can_be_read(name, n):
    for fig in pictures(name, n): assert isinstance(fig, Picture) and not looks(fig)

users = {'font.size':20, 'figure.figsize':(20,1), 'axes.facecolor':'k', 'text.color':'#ffff00', 'image.cmap':'Greys',
         'savefig.facecolor':'k', 'savefig.dpi':300, 'text.usetex':True, 'xtick.labelsize':30, 'axes.labelcolor':'w',
         'legend.labelcolor':'w', 'image.origin':'lower', 'savefig.transparent':True, 'figure.autolayout':True,
         'axes.titlesize':30, 'axes.prop_cycle':matplotlib.cycler(color=['w'])}
styles = ['dark_background', 'Solarize_Light2', next(o for o in style.available if 'darkgrid' in o), users]

@lru_cache(None)
def usual(name): return [rendered(o) for o in pictures(name, 2)]

@pytest.mark.parametrize('s', [pytest.param(o, marks=pytest.mark.nightly) if o in styles[1:3] else o for o in styles],
                         ids=lambda o: o if isinstance(o, str) else 'own')
@pytest.mark.parametrize('name', every)
def test_a_picture_is_the_same_in_any_style(name, s):
    "Drawn in it, or drawn before and saved in it; and the style is as it was"
    want,before = usual(name),pictures(name, 2)
    with style.context(s):
        was = dict(matplotlib.rcParams)
        got = [rendered(o) for o in pictures(name, 2)]
        late = [rendered(o) for o in before]
        assert dict(matplotlib.rcParams)==was
    for a,b,c in zip(want, got, late): assert np.array_equal(a, b) and np.array_equal(a, c)

def test_what_is_saved_is_what_is_shown(tmp_path):
    "In a dark style a saved picture is not on black, nor on nothing"
    from PIL import Image
    fig, = pictures('plot_counts', 2)
    with style.context(users): fig.savefig(tmp_path/'a.png')
    im = np.asarray(Image.open(tmp_path/'a.png').convert('RGBA'))
    assert (im[0]==255).all() and im.shape[1]==round(300*fig.get_figwidth()), 'the resolution is the user\'s'

def test_the_helper_sees_what_is_wrong():
    with drawing(): fig,axs = panels(1, 2, 3, 2)
    a,b = axs.flat
    a.text(.5, .5, 'pale', color='.9')
    a.text(.1, .1, 'tiny', fontsize=4)
    b.text(.9, .5, 'over the edge of the picture', in_layout=False, transform=b.transAxes)
    b.bar(range(1000), np.ones(1000))
    a.set_xticks([.5,.51], ['label','label'])
    b.plot([0,1], [0,1], label='x')
    b.legend(loc='center', frameon=True)
    said = ' | '.join(looks(fig))
    for o in ('contrast','has 4','cut off','a bar of','lies on','a legend lies'): assert o in said
    assert round(float(contrast([0,0,0], [1,1,1])))==21

# what pictures say

def test_classes_that_are_alike_look_alike():
    "The colours are those of cosines, and no range of their noise"
    def bank(x):
        b = ClassBank(len(x), 4)
        b.write(x, torch.arange(len(x)))
        return b
    same = torch.ones(6, 8)+1e-4*torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    for x,least in ((same, .999), (torch.eye(6), 0)):
        im = plot_similarity(bank(x)).axes[0].images[0]
        rgb = im.to_rgba(np.asarray(im.get_array()))[...,:3]
        assert im.get_clim()==(0,1) and im.get_array().min()>=least-1e-6
        assert (np.abs(rgb-rgb[0,0]).max()<.02)==(least>.5)
    opposite = plot_similarity(bank(torch.tensor([[1.,0],[-1,.1]]))).axes[0].images[0]
    assert opposite.get_clim()==(-1,1)

def test_what_was_not_measured_looks_like_no_number():
    r = StreamResult(['a','b'], dict(test=[[0.,np.nan],[1.,0.]]))
    fig = plot_matrix(r)
    ax,px = fig.axes[0],rendered(fig)
    def cell(i, j):
        x,y = ax.transData.transform((j,i))
        d = 8
        y = px.shape[0]-y
        return px[int(y)-14:int(y)-6,int(x)-d:int(x)+d]
    assert cell(0, 0).std((0,1)).max()<.01 and cell(0, 1).std((0,1)).max()>.02, 'hatched'
    assert [t.get_text() for t in ax.texts]==['0','100','0']

@pytest.mark.parametrize('n', [1, 30, 100, 101, 1000, 20_000])
def test_one_class_with_rows_among_many(n):
    "Is seen, wherever it is"
    for at in {0,n//2,n-1}:
        v = [0]*n
        v[at] = 1
        with drawing():
            fig,axs = panels(1, 1, 2.6, 2.1)
            class_bars(axs[0,0], v, short_names(None, n), '#4477aa')
        px = rendered(fig)
        blue = (px[...,2]-px[...,0]>.1).sum(0)
        assert blue.any() and axs[0,0].patches[0].get_window_extent().width>=1

def test_few_among_thousands_have_a_line():
    with drawing():
        fig,axs = panels(1, 1, 2.6, 2.1)
        class_bars(axs[0,0], [100_000,1,0], list('abc'), '#4477aa')
    rendered(fig)
    assert [p.get_linewidth()>0 for p in axs[0,0].patches]==[True,True,False]

def test_rows_that_are_no_numbers_are_counted():
    b = SlotBank(8, policy='fifo', n_classes=2)
    b.write(torch.ones(4, 3), torch.tensor([0,1,0,1]))
    b.norms[1] = float('nan')
    fig = plot_bank(b)
    assert '1 rows are not finite' in fig.axes[2].get_title() and sum(p.get_height() for p in fig.axes[2].patches)==3

def test_no_picture_of_hundreds_of_inches():
    learn = learner(2, 'slots')
    with pytest.raises(MemoError, match='n: 300 would make a picture of'): learn.show_memories(300, ds_idx=0) if \
        len(learn.dls.train_ds)>=300 else _many(learn)
    with pytest.raises(MemoError, match='classes: 90 would'):
        plot_stored(learner(200, 'classes').memory.bank, learner(200, 'classes').dls, classes=list(range(90)))

def _many(learn): learn.explain(torch.rand(300, 1, 8, 8))

def test_names_that_no_font_has_stay_apart():
    "They would all be drawn as the same empty box"
    rare = ['\U00013000','\U00013001','\U00013002']         # hieroglyphs
    with drawing(): got = short_names(rare+hard, len(rare)+len(hard))
    assert got[:3]==[r'\U00013000',r'\U00013001',r'\U00013002'] and len({*got})==len(got)

def test_a_picture_is_a_figure_without_pyplot():
    import matplotlib.pyplot as plt
    plt.close('all')
    assert all(isinstance(o, Picture) for o in pictures('plot_bank', 2)) and not plt.get_fignums()

# numbers, colours, sizes

whole = {'epoch','rows','rows kept','rows seen','classes','switches','training items','times in training',
         'update steps','age (writes since last touched)','patterns stored','experiences'}

@pytest.mark.parametrize('n', [1, 2, 10])
@pytest.mark.parametrize('name', ['plot_bank','plot_classbank','plot_counts','plot_history','plot_dual_path',
                                  'plot_coverage','plot_stream_accuracy','plot_units','plot_energy','plot_retrieval'])
def test_what_is_counted_has_whole_numbers(name, n):
    "No epoch .96, no half a row"
    seen = 0
    for fig in pictures(name, n):
        rendered(fig)
        for ax in fig.axes:
            for axis in (ax.xaxis,ax.yaxis):
                if axis.get_label_text() not in whole: continue
                got = [t.label1.get_text() for t in axis._update_ticks()]
                seen += len(got)
                assert all(o=='' or float(o.replace('−', '-'))%1==0 for o in got), got
    assert seen

@pytest.mark.parametrize('n', [1, 7, 8, 16, 200])
def test_colours_do_not_come_again(n):
    got = class_colors(n)
    assert len({*got})==n
    if 1<n<=16:
        rgb = np.array([to_rgb(o) for o in got])
        assert min(np.abs(a-b).max() for i,a in enumerate(rgb) for b in rgb[:i])>.05

def test_points_and_surfaces_of_more_classes_than_seven():
    y = stream(10, plane=True)
    dots = [c for ax in plot_stream(y).axes for c in ax.collections[1:]]
    assert len({tuple(o) for c in dots for o in c.get_facecolors()})==10
    cmap = pictures('plot_surfaces', 10)[0].axes[0].images[0].cmap
    assert len({tuple(o) for o in cmap.colors})==10

@pytest.mark.parametrize('seeds', [1, [3,2]*100])
def test_tables_of_any_length_can_be_looked_at(seeds):
    fig = plot_comparison(results(200, seeds))
    assert fig.get_figheight()<22 and 'of 200 rows' in fig.axes[0].get_xlabel()

@pytest.mark.parametrize('methods', [1, 2, 5, 12])
@pytest.mark.parametrize('n', [6, 60])
def test_classes_of_several_methods(methods, n):
    fig = plot_classes({f'method {i}':findings(n) for i in range(methods)})
    assert not looks(fig) and fig.get_figheight()<27

def test_no_interval_without_a_number():
    v = np.array([.1,np.nan,.3])
    with drawing():
        fig,axs = panels(1, 1, 2, 2)
        draw_dots(axs[0,0], v, v*0+.05, v*0+.4)
    assert len(axs[0,0].collections[0].get_segments())==2

@pytest.mark.parametrize('n', [2, 10, 60, 200])
def test_names_of_stages_hide_no_curve(n):
    df = epochs(n)
    df['stage'] = np.where(np.arange(n)<n//2, 'frozen, the memory alone', 'all of the network')
    fig = plot_history(df)
    rendered(fig)
    for ax in fig.axes:
        top = max(ax.transData.transform((0, np.nanmax(o.get_ydata())))[1] for o in ax.lines[:-1])
        names = [t for t in ax.texts if t.get_text()]
        assert len(names)==2 and all(t.get_window_extent().y0>=top-1 for t in names)
        assert all(t.get_window_extent().x0>=ax.bbox.x0-1 for t in names), 'nor do they lie beside the panel'

def test_bars_keep_their_height_above_long_names():
    tall = [plot_counts([3]*12, vocab=[c*k for c in 'abcdefghijkl']) for k in (1,18)]
    for fig in tall: rendered(fig)
    a,b = (fig.axes[0].bbox.height for fig in tall)
    assert b>.8*a

def test_small_images_are_enlarged_as_they_are():
    x = torch.tensor([[[0.,1.],[1.,0.]]])
    assert {*np.unique(small_image(x, 40))}=={0,1} and small_image(x, 40)[10,10,0]==0
