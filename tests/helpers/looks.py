"Can a picture be read? Its texts, bars and legends, as they are drawn"
import warnings
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from matplotlib.text import Text

def luminance(rgb):
    "Of colours [...,3] within 0..1, as WCAG has it"
    rgb = np.asarray(rgb, float)
    v = np.where(rgb<=.04045, rgb/12.92, ((rgb+.055)/1.055)**2.4)
    return v@[.2126,.7152,.0722]

def contrast(a, b):
    "From 1 (alike) to 21 (black on white)"
    a,b = luminance(a),luminance(b)
    return (np.maximum(a, b)+.05)/(np.minimum(a, b)+.05)

def rendered(fig):
    "Its pixels [h,w,3] within 0..1; the warnings that matplotlib gave are raised"
    canvas = FigureCanvasAgg(fig)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[...,:3]/255

def texts_of(fig):
    "What is written, with its place: (text, box)"
    r = fig.canvas.get_renderer()
    res = []
    for t in fig.findobj(Text):
        if not t.get_visible() or not t.get_text().strip(): continue
        box = t.get_window_extent(r)
        if t.get_clip_on() and t.get_clip_box() is not None and not box.overlaps(t.get_clip_box()): continue
        res.append((t, box))
    off = {id(o) for ax in fig.axes for o in unseen_ticks(ax)}
    return [(t, b) for t,b in res if id(t) not in off]

def unseen_ticks(ax):
    "Labels of ticks that are not drawn: out of the view, or of an axis that is off"
    for axis in (ax.xaxis,ax.yaxis):
        drawn = axis._update_ticks() if ax.axison and axis.get_visible() else []
        for t in {*axis.get_major_ticks(),*axis.get_minor_ticks()}-{*drawn}: yield from (t.label1,t.label2)
        if not ax.axison: yield from (axis.label,axis.offsetText)

def pixels_behind(bare, box):
    h,w = bare.shape[:2]
    x0,x1 = np.clip([np.floor(box.x0),np.ceil(box.x1)], 0, w).astype(int)
    y0,y1 = np.clip([h-np.ceil(box.y1),h-np.floor(box.y0)], 0, h).astype(int)
    return bare[y0:y1,x0:x1].reshape(-1, 3)

def overlaps(boxes, room=1.5):
    "Pairs of boxes that lie on each other by more than `room` pixels both ways"
    a = np.array([[b.x0,b.y0,b.x1,b.y1] for b in boxes]).reshape(-1, 4)
    x = np.minimum(a[:,None,2], a[None,:,2])-np.maximum(a[:,None,0], a[None,:,0])
    y = np.minimum(a[:,None,3], a[None,:,3])-np.maximum(a[:,None,1], a[None,:,1])
    return [(i, j) for i,j in zip(*((x>room) & (y>room)).nonzero()) if i<j]

def slanted_too_close(texts):
    "Slanted labels of an axis whose lines run into each other"
    by = {}
    for t,b in texts:
        if t.get_rotation()%90: by.setdefault((id(t.axes), t.get_rotation()), []).append((t, b))
    for (_,turn),ts in by.items():
        at = sorted(b.x1 for _,b in ts)
        size = ts[0][0].get_size()*ts[0][0].figure.dpi/72
        if len(at)>1 and min(np.diff(at))*np.sin(np.deg2rad(turn))<.85*size: yield ts[0][0].get_text()

def bars_of(fig):
    return [p for ax in fig.axes for p in ax.patches if isinstance(p, Rectangle) and p.get_fill()]

def looks(fig, size=8, least=3):
    "What is wrong with a picture, in words; nothing where all can be read"
    wrong,(w,h) = [],fig.get_size_inches()
    if max(w, h)>50: wrong.append(f'{w:.0f} x {h:.0f} inches')
    rendered(fig)
    texts = texts_of(fig)
    shown = [t.get_visible() for t,_ in texts]
    for t,_ in texts: t.set_alpha(0)
    bare = rendered(fig)
    for t,_ in texts: t.set_alpha(None)
    page = fig.bbox
    for t,b in texts:
        s = repr(t.get_text()[:40])
        if t.get_size()<size-.01: wrong.append(f'{s} has {t.get_size()} points')
        if t.get_parse_math() or t.get_usetex(): wrong.append(f'{s} is markup')
        if min(b.x0-page.x0, page.x1-b.x1, b.y0-page.y0, page.y1-b.y1)<-2: wrong.append(f'{s} is cut off')
        c = contrast(to_rgb(t.get_color()), pixels_behind(bare, b))
        if len(c) and np.mean(c>=least)<.75: wrong.append(f'{s} has a contrast of {np.median(c):.1f}')
    flat = [(t, b) for t,b in texts if t.get_rotation()%90==0]
    wrong += [f'{flat[i][0].get_text()[:30]!r} lies on {flat[j][0].get_text()[:30]!r}'
              for i,j in overlaps([b for _,b in flat])]
    wrong += [f'{o!r} and its neighbours run into each other' for o in slanted_too_close(texts)]
    for ax in fig.axes:
        leg = ax.get_legend()
        if leg is not None and overlaps([leg.get_window_extent(),ax.get_window_extent()], 3):
            wrong.append('a legend lies on its panel')
    for p in bars_of(fig):
        drawn = p.get_edgecolor()[3]>0
        b,line = p.get_window_extent(),p.get_linewidth()*fig.dpi/72*drawn
        if p.get_height() and p.get_width() and min(b.width, b.height)+line<.99:
            wrong.append(f'a bar of {b.width:.2f} x {b.height:.2f} pixels')
            break
    return wrong
