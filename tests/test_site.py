"""The documentation: every page has its place, links lead to pages that there are, and the whole site is made without a
warning"""
import importlib.util, json, re
import pytest

@pytest.fixture(scope='module')
def build(repo):
    spec = importlib.util.spec_from_file_location('memo_site_build', repo/'nbs/site/build.py')
    m = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(m)
    return m

@pytest.fixture(scope='module')
def site(build, repo, tmp_path_factory):
    "Pages of the notebooks as they are, which nbdev has not processed"
    s = build.Site(tmp_path_factory.mktemp('site'))
    s.write(repo/'nbs')
    build.pictures(s)
    build.menus(s)
    return s

def test_no_two_files_are_one_page(site):
    pages = [str(o) for o in site.pages.values()]
    assert len(pages)==len({*pages}), sorted(o for o in pages if pages.count(o)>1)

def test_no_link_leads_nowhere(site): assert not site.missing, sorted(site.missing)

def test_links_between_pages(site):
    "Each link to a page of the site is one that was written"
    written = {str(o.relative_to(site.to).with_suffix('')) for e in ('md','ipynb') for o in site.to.rglob(f'*.{e}')}
    bad = []
    for src,page in site.pages.items():
        at = next((o for o in (site.to/f'{page}.md', site.to/f'{page}.ipynb') if o.exists()), None)
        for to in re.findall(r'\]\(([\w./-]+)\.html[#)]', '' if at is None else at.read_text(encoding='utf-8')):
            there = (at.parent/to).resolve().relative_to(site.to.resolve())
            if str(there) not in written: bad.append(f'{page}: {to}')
    assert not bad, bad[:10]

def test_docstrings_lead_to_pages(site, build, repo):
    "The line `Docs:` of each module names a page of the site, as Markdown"
    there = {f'{o}.html.md' for o in site.pages.values()}
    lost = []
    for o in repo.glob('memo/**/*.py'):
        m = re.search(r'^Docs: ([^\s"]+)', o.read_text(encoding='utf-8'), re.M)
        if m and not (m[1].startswith(build.base) and m[1].removeprefix(build.base) in there): lost.append(m[1])
    assert not lost, lost[:5]

def test_every_page_is_in_the_menu(site):
    listed = set()
    for o in [*site.to.rglob('*.md'), site.to/'index.ipynb']:
        if '_extra' in o.parts: continue
        t = o.read_text(encoding='utf-8')
        if o.suffix=='.ipynb': t = json.loads(t)['cells'][-1]['source']
        for block in re.findall(r'```\{toctree\}\n(.*?)```', t, re.S):
            listed |= {str((o.parent/l).resolve().relative_to(site.to.resolve())) for l in block.splitlines()
                       if l and l[0]!=':'}
    assert {str(o) for o in site.pages.values()}-listed=={'index'}

def test_there_are_pictures(site): assert len([*(site.to/'images').glob('*.png')])>20

@pytest.mark.nightly
@pytest.mark.timeout(1000)
def test_the_site_is_made(repo, python, tmp_path):
    pytest.importorskip('sphinx')
    r = python(repo/'nbs/site/build.py', tmp_path/'site', cwd=repo, timeout=900)
    assert r.returncode==0, r.stdout[-2000:]+r.stderr[-2000:]
    assert (tmp_path/'site/html/training/two_phase.html.md').exists()
    assert 'SlotBank' in (tmp_path/'site/html/searchindex.js').read_text(encoding='utf-8')
