"Pictures that are not looked at: rendering is most of the time of a small run"
import contextlib

def no_picture(file):
    "Write an empty picture"
    from PIL import Image
    Image.new('L', (200,200)).save(file, format='png')

@contextlib.contextmanager
def no_rendering():
    "Figures are drawn, and saved as empty pictures"
    from matplotlib.backend_bases import FigureCanvasBase as Canvas
    was = Canvas.print_figure
    Canvas.print_figure = lambda self, file, **kwargs: no_picture(file)
    try: yield
    finally: Canvas.print_figure = was
