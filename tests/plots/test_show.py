"`.show()`: now, wherever it is called from"
import IPython, pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from PIL import ImageShow
from memo.core import MemoError
from memo.plots.figure import text_picture

class Viewer(ImageShow.Viewer):
    def __init__(self): self.seen = []
    def show(self, image, **options):
        self.seen.append(image.size)
        return True

def test_in_a_script_with_the_systems_viewer(monkeypatch):
    v = Viewer()
    monkeypatch.setattr(ImageShow, '_viewers', [v])
    fig = text_picture('a', 3, 2)
    for _ in range(2): fig.show()
    assert v.seen==[(288,192)]*2

def test_where_there_is_none_a_line_says_what_to_do(monkeypatch):
    monkeypatch.setattr(ImageShow, '_viewers', [])
    with pytest.raises(MemoError, match='savefig'): text_picture('a').show()

def test_in_a_notebook_below_the_cell_as_often_as_it_is_called(monkeypatch):
    shell = InteractiveShell.instance()
    monkeypatch.setattr(IPython, 'get_ipython', lambda: shell)
    try:
        with capture_output() as got:
            for k in 'ab': text_picture(k).show()
    finally: InteractiveShell.clear_instance()
    assert [sorted(o.data) for o in got.outputs]==[['image/png','text/plain']]*2
