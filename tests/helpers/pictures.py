"Pictures that are not looked at: rendering is most of the time of a small run"
import contextlib

def no_picture(file, metadata=None):
    "Write an empty picture"
    from PIL import Image, PngImagePlugin
    says = PngImagePlugin.PngInfo()
    for k,v in (metadata or {}).items(): says.add_text(k, v)
    Image.new('L', (200,200)).save(file, format='png', pnginfo=says)

@contextlib.contextmanager
def no_rendering():
    "Figures are drawn, and saved as empty pictures"
    from matplotlib.backend_bases import FigureCanvasBase as Canvas
    was = Canvas.print_figure
    Canvas.print_figure = lambda self, file, metadata=None, **kwargs: no_picture(file, metadata)
    try: yield
    finally: Canvas.print_figure = was
