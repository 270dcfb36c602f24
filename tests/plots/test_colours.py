"Colours mean one thing in every picture, and are told apart by those who see no red, no green or no blue"
import re
import numpy as np, pytest, torch
from matplotlib.colors import to_hex, to_rgb
from helpers.every_picture import classbank, comparison, coverage, learner, probs, speeds
from memo.core import MemoError
from memo.plots.banks import plot_classbank
from memo.plots.compare_memory import group_colors, plot_change
from memo.plots.figure import MEANS, class_colors
from memo.plots.gate import plot_coverage
from memo.plots.results import plot_reliability, plot_speed
from memo.plots.training import plot_counts
from memo.evaluation.compare_memory import MemoryComparison

# Machado, Oliveira and Fernandes 2009, of linear RGB, where one kind of cone is missing
cones = dict(usual=np.eye(3),
    no_red=[[.152286,1.052583,-.204868],[.114503,.786281,.099216],[-.003882,-.048116,1.051998]],
    no_green=[[.367322,.860646,-.227968],[.280085,.672501,.047413],[-.011820,.042940,.968881]],
    no_blue=[[1.255528,-.076749,-.178779],[-.078411,.930809,.147602],[.004733,.691367,.303900]])

def lab(colors, eyes):
    "CIELAB [n,3] of colours as somebody sees them"
    rgb = np.array([to_rgb(o) for o in colors])
    v = np.where(rgb<=.04045, rgb/12.92, ((rgb+.055)/1.055)**2.4)@np.array(cones[eyes]).T
    xyz = v.clip(0, 1)@np.array([[.4124564,.2126729,.0193339], [.3575761,.7151522,.1191920],
                                 [.1804375,.0721750,.9503041]])
    x,y,z = (np.where((o := xyz[:,i]/w)>216/24389, np.cbrt(o), (24389/27*o+16)/116)
             for i,w in enumerate((.95047,1,1.08883)))
    return np.stack([116*y-16,500*(x-y),200*(y-z)], 1)

def nearest(colors, apart=1):
    "Distance of the two that are most alike to anybody, of those so far apart in order"
    every = [lab(colors, o) for o in cones]
    return min(np.linalg.norm(v[i]-v[j]) for v in every for i in range(len(v)) for j in range(i-apart+1))

def test_the_simulation_sees_what_is_alike():
    "A green and a red that those without green confuse; black and white, which nobody does"
    assert nearest(['#1b7837','#b2182b'])<13 and nearest(['k','w'])==pytest.approx(100)
    assert np.abs(lab(['w','.5'], 'no_green')[:,1:]).max()<.1, 'greys stay grey'

@pytest.mark.parametrize('names,least', [('many medium few',30), ('without memory',28), ('right wrong',45),
                                         ('many medium few memory',20)])
def test_what_means_something_is_told_apart(names, least): assert nearest([MEANS[o] for o in names.split()])>least

@pytest.mark.parametrize('n', [2, 3, 5, 7])
def test_classes_are_told_apart(n): assert nearest(class_colors(n))>28

@pytest.mark.parametrize('n', [8, 10, 16, 50, 200])
def test_of_many_classes_those_far_apart_in_order_are(n):
    got = class_colors(n)
    assert nearest(got, apart=n//4)>14 and len({*got})==n

def of(colors): return {to_hex(o) for o in colors}
def bars(ax): return of(p.get_facecolor() for p in ax.patches)

def test_many_medium_and_few_are_the_same_everywhere():
    three = {MEANS[o] for o in ('many','medium','few')}
    assert bars(plot_counts([500,50,3]).axes[0])==three
    assert bars(plot_classbank(classbank(40)).axes[1])==three
    p,y = torch.eye(4),torch.arange(4)
    c = MemoryComparison(p, p, y, ['few','all','c','d'], dict(many=torch.tensor([0]), medium=torch.tensor([1]),
                                                              few=torch.tensor([2,3]), mine=torch.tensor([0])))
    squares = plot_change(c).axes[0].collections[-1].get_facecolors()
    assert of(squares)==three
    m,d,f = (MEANS[o] for o in ('many','medium','few'))
    c.groups.pop('mine')
    # a class that is called few is none for that
    assert group_colors(c)==[None,m,d,f,m,d,f,f]

def test_with_and_without_memory_are_the_same_everywhere():
    a,b = MEANS['without'],MEANS['memory']
    c = comparison(4)
    dots = {o.get_label():o for o in plot_change(c).axes[0].lines}
    assert dots['without memory'].get_markeredgecolor()==a and dots['with memory'].get_color()==b
    assert [o.get_color() for o in plot_reliability(c).axes[0].lines[1:]]==[a,b]
    lines = {o.get_label():o.get_color() for o in plot_coverage(coverage(5)).axes[0].lines}
    assert lines['network, the same']==a and lines['gated model, all']==b
    alone, = [o for o in plot_speed(speeds(5)).axes[0].lines if o.get_label()=='network alone']
    assert alone.get_color()==a

def test_a_comparison_has_its_labels_and_others_need_some():
    c = comparison(4)
    want = plot_reliability({'a':c.without, 'b':c.with_memory}, c.y).axes[0]
    got = plot_reliability(c).axes[0]
    for a,b in zip(want.lines, got.lines, strict=True): assert np.array_equal(a.get_xydata(), b.get_xydata())
    assert [t.get_text().split(',')[0] for t in got.get_legend().get_texts()]==['as often as said','without memory',
                                                                                'with memory']
    with pytest.raises(MemoError, match='y: the labels are missing'): plot_reliability(probs(3)[0])

def test_what_is_wrong_is_dashed_too():
    "In black and white the frames still say which images are of the item's class"
    fig = learner(2, 'slots').show_memories(3)
    seen = {(to_hex(s.get_edgecolor()),s.get_linestyle()) for ax in fig.axes for s in [ax.spines['left']]}
    assert {(MEANS['right'],'-'),(MEANS['wrong'],'--')}<=seen

def test_no_size_and_no_colour_is_set_elsewhere(repo):
    "One place has them: memo/plots/figure.py"
    for p in (repo/'memo').rglob('*.py'):
        if p.name=='figure.py': continue
        found = re.findall(r'''fontsize|labelsize|['"]#[0-9a-fA-F]{6}['"]''', p.read_text(encoding='utf-8'))
        assert not found, f'{p.name}: {found}'
