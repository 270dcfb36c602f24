"Names of users in tables and files: as they are, on one line, apart from each other, and never markup"
import csv, html, io, re
import pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from helpers.every_picture import hard
from memo.evaluation.names import as_markdown, cut, cut_names, name_text, width
from memo.evaluation.tables import format_results, md_table, results, text_table

mistune = pytest.importorskip('mistune')
def cells(md):
    "What a reader of Markdown makes of a table"
    page = mistune.create_markdown(plugins=['table','strikethrough'], escape=True)(md)
    assert not re.search(r'<(em|strong|code|del|a|img|br)\b', page)
    return [[html.unescape(o) for o in re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', r, re.S)]
            for r in re.findall(r'<tr>(.*?)</tr>', page, re.S)]

# a cell's own spaces at its ends are no part of it in Markdown
texts = st.text(st.characters(codec='utf-8') | st.sampled_from('$_^\\%{}|*`~<>[]()&;#!\n\r\t'), max_size=30)

@settings(deadline=None, max_examples=300)
@given(st.lists(texts, min_size=1, max_size=5))
def test_markdown_shows_names_as_they_are(names):
    head = ['method','accuracy']
    got = cells(md_table([[o,'96.1 [95.2, 97.0]'] for o in names], head))
    assert got[0]==head and len(got)==1+len(names)
    for o,(a,b) in zip(names, got[1:]):
        assert ' '.join(a.split())==' '.join(name_text(o).split()) or not o.strip()
        assert b=='96.1 [95.2, 97.0]'

@pytest.mark.parametrize('name', hard)
def test_hard_names(name):
    assert '\n' not in as_markdown(name)
    (_,row) = cells(md_table([[name,1]], ['a','b']))
    assert row==[name_text(name) if name else '','1']

@settings(deadline=None, max_examples=300)
@given(st.lists(st.text(max_size=40) | st.text('ab', min_size=30, max_size=40), max_size=12), st.integers(8, 30))
def test_different_names_stay_different(names, most):
    got = cut_names(names, most)
    assert len(got)==len(names)
    for i,a in enumerate(names):
        for j,b in enumerate(names[:i]): assert a==b or got[i]!=got[j]
    for o,s in zip(names, got): assert s==name_text(o) or width(s)<=most+6

@pytest.mark.parametrize('same', ['the same first sixteen letters and %d', '%d, and the same last letters',
                                  'the same first %d and the last ones', '肺炎肺炎肺炎肺炎肺炎%d肺炎肺炎肺炎肺炎'])
def test_ten_names_that_differ_in_one_place(same):
    names = [same%i for i in range(10)]
    got = cut_names(names)
    assert len({*got})==10 and all(width(o)<=18 for o in got)

def test_short_names_are_as_they_are(): assert cut_names(['cat','$x_1$','a|b']) == ['cat','$x_1$','a|b']

def test_a_character_and_its_accent_are_not_parted():
    s = 'e\u0301'*40
    got = cut(s, 18)
    assert got.replace('..', '')==s[:len(got)-2] and width(got)==18

def test_columns_line_up_and_are_not_endless():
    rows = [['肺炎',1],['plain',22],['x'*5000,3],['two\nlines',4]]
    lines = text_table(rows, ['method','n']).split('\n')
    assert len(lines)==5 and len({width(o) for o in lines})==1 and width(lines[0])<120

def _metrics(titles):
    def row(t, v): return dict(training=t, method='', memory=(), scores=dict(accuracy=v))
    return [dict(seed=s, columns=dict(accuracy='acc_$uracy|'), digits=1, titles=titles, remedies=[],
                 rows=[row(t, .5+.01*s) for t in titles]) for s in (1,2)]

def test_results_with_such_names():
    titles = {f't{i}':o or 'empty' for i,o in enumerate(hard) if '\udcff' not in o}
    table,diff = results(_metrics(titles))
    for fmt in (text_table,md_table): assert len(format_results(table, diff, fmt).split('\n'))<=2*len(titles)+5
    got = cells(format_results(table, diff, md_table))
    assert [r[0] for r in got[1:]]==[name_text(o) for o in titles.values()] and got[0][1]=='acc_$uracy|'
    text = table.to_csv(index=False)
    assert [r['method'] for r in csv.DictReader(io.StringIO(text, newline=''))]==[*titles.values()]
    assert pd.read_csv(io.StringIO(text)).method.tolist()==[*titles.values()]
