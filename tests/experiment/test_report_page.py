"The page of a run folder: everything on it is there, what a user wrote is no markup, and it ends nothing"
import os, warnings
from html.parser import HTMLParser
from urllib.parse import unquote
import pytest
from PIL import Image
from helpers.pictures import no_rendering
from memo.experiment import run as ex
from memo.experiment.config import from_dict
from memo.experiment.jobs import run_folder
from memo.experiment.report import captions, pictures_in
from memo.experiment.run_owner import remove_run

class Page(HTMLParser):
    def __init__(self, p):
        super().__init__()
        self.images,self.cells,self.text,self.tags = [],[],'',[]
        self.feed(p.read_text(encoding='utf-8'))
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag=='img': self.images.append(unquote(dict(attrs)['src']))
        if tag in ('td','th'): self.cells.append('')
    def handle_data(self, data):
        self.text += data
        if self.cells and self.tags[-1] in ('td','th'): self.cells[-1] += data

def experiment(tmp_path, **kw):
    text = {**dict(name='a <b>bold</b> & "name"', runs=str(tmp_path/'my runs'), seeds=[0,1],
        data=dict(name='digits_lt', n_max=40, ratio=10), model=dict(name='small_cnn'),
        memory=dict(size=64, head='vote'), train=dict(epochs=1), compare=['logit_adjusted','balanced_sampling']), **kw}
    return from_dict(text, 'a test')

def run(cfg):
    with no_rendering(): return ex.run_experiment(cfg, log=lambda s: None)

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    cfg = experiment(tmp_path_factory.mktemp('page'))
    run(cfg)
    return run_folder(cfg)

def test_tables_pictures_and_configuration_are_on_it(folder):
    p = Page(folder/'report.html')
    assert p.images and all((folder/o).is_file() for o in p.images)
    assert {*folder.glob('*.png'),*folder.glob('*/*.png')}=={folder/o for o in p.images}
    for o in ('method','plain network + memory','logit adjustment','balanced sampling + memory',
              'plain network + memory - plain network'): assert o in p.cells
    assert 'digits_lt' in p.text and 'differences, paired by seed (2 seeds' in p.text
    for o in ('history','memories','counts','reliability','comparison'): assert captions[o] in p.text
    assert p.tags.count('details')==5       # two seeds of two trainings, the configuration

def test_a_picture_that_is_not_memos_is_not_on_it(folder, tmp_path):
    Image.new('RGB', (4,4)).save(tmp_path/'history_mine.png')
    assert pictures_in(tmp_path)==[] and len(pictures_in(folder))>3

def test_what_a_user_wrote_is_no_markup(folder):
    p = Page(folder/'report.html')
    assert 'b' not in p.tags and '<b>bold</b> & "name"' in p.text

def test_overwriting_takes_it_away(folder, tmp_path):
    os.system(f"cp -r '{folder}' '{tmp_path}/x'")
    (tmp_path/'x'/'mine.html').write_text('mine')
    remove_run(tmp_path/'x')
    assert [o.name for o in (tmp_path/'x').iterdir()]==['mine.html']

def test_a_page_that_cannot_be_written_ends_nothing(tmp_path, monkeypatch):
    def fails(*a, **k): raise OSError('no room')
    monkeypatch.setattr('memo.experiment.scores.write_page', fails)
    with pytest.warns(UserWarning, match='no picture report.html: no room'):
        table = run(experiment(tmp_path, name='x', seeds=[0]))
    assert 'plain network' in table and (tmp_path/'my runs/x/results.md').is_file()
