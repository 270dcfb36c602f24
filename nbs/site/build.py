"""The documentation: nbdev's processed notebooks, made into a site by Sphinx, myst-nb and furo

    make docs           # site/html/index.html

Pages are called as nbdev calls them, so the links in docstrings and in texts lead to them; next to each page stands
its text as Markdown, `page.html.md`."""
import json,os,re,shutil,sys
from pathlib import Path

here = Path(__file__).resolve().parent
nbs = here.parent
root = nbs.parent
base,repo = 'https://fastmemo.github.io/memo/','https://github.com/fastmemo/memo/blob/main/'
def text(o): return o if isinstance(o, str) else ''.join(o)

def page_of(path):
    "What a file's page is called: a notebook without the number in front, a README as its folder"
    rel = path.relative_to(nbs if nbs in path.parents else root).with_suffix('')
    if rel.parts[0]=='site': rel = Path(*rel.parts[1:])
    if rel.name=='README': rel = rel.parent/'overview' if len(rel.parts)==2 else rel.parent
    return rel.with_name(re.sub(r'^\d+[a-z]?_', '', rel.name))

def sources():
    "Files that become pages"
    def some(at, glob):
        return (o for o in sorted(at.glob(glob)) if not any(p[0] in '._' for p in o.relative_to(at).parts))
    return [*some(nbs, '**/*.ipynb'), *some(here, '*/*.md'), *some(root, 'experiments/**/*.md'),
            *some(root, 'benchmarks/*.md'), root/'CHANGELOG.md', root/'CONTRIBUTING.md']

class Site:
    "Pages by their file, written below `to`"
    def __init__(self, to):
        self.to,self.missing = Path(to),set()
        self.pages = {o.resolve():page_of(o) for o in sources() if o.exists()}
        self.names = {str(o) for o in self.pages.values()}

    def local(self, s, src):
        "Links as seen from the page of `src`: to pages of this site, to pictures, else to the repository"
        up = '../'*(len(self.pages[src].parts)-1)
        s = re.sub(re.escape(base)+r'([\w/.-]+?\.html)(?:\.md)?(?=[#)\s])', lambda m: up+m[1], s)
        def to(m):
            at,_,anchor = m[2].partition('#')
            p = (src.parent/at).resolve()
            # of another page, as nbdev writes it
            known = at.endswith('.html') and self.names.intersection([os.path.normpath(self.pages[src].parent/at[:-5])])
            if not at or known or re.match(r'\w+:', at): return m[0]
            if not p.exists():
                self.missing.add(f'{src.relative_to(root)}: {m[2]}')
                return m[0]
            if p.is_dir(): p = p/'README.md' if (p/'README.md').exists() else p
            anchor = f'#{anchor}' if anchor else ''
            if p in self.pages: return f'{m[1]}{up}{self.pages[p]}.html{anchor})'
            rel = p.relative_to(root)
            if p.suffix not in ('.png','.svg','.jpg'): return f'{m[1]}{repo}{rel}{anchor})'
            there = self.to/'images'/'-'.join(rel.parts)
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(p, there)
            return f'{m[1]}{up}images/{there.name})'
        return re.sub(r'(\]\()(?!#)([^)\s]+)\)', to, s)

    def notebook(self, path, src):
        "A processed notebook as myst-nb takes it"
        nb,cells = json.loads(path.read_text(encoding='utf-8')),[]
        # of which nbdev keeps title and summary alone
        top = text(json.loads(src.read_text(encoding='utf-8'))['cells'][0]['source'])
        for c in nb['cells']:
            s = text(c['source'])
            if c['cell_type']=='raw': c = dict(cell_type='markdown', source=top)
            elif c.pop('has_sd', None) or '#| output: asis' in s: c = dict(cell_type='markdown', source=signature(c))
            elif c['cell_type']=='code':
                outs = [o for o in c.get('outputs', ()) if o.get('name')!='stderr']
                c.update(source=re.sub(r'^#\|.*\n?', '', s, flags=re.M), outputs=outs, execution_count=None)
            if not text(c['source']).strip(): continue
            if c['cell_type']=='markdown': c['source'] = self.local(text(c['source']), src)
            cells.append({'metadata':{}, **c, 'id':f'c{len(cells)}'})
        kernel = dict(kernelspec=dict(name='python3', display_name='python3'), language_info=dict(name='python'))
        return json.dumps({**nb, 'cells':cells, 'metadata':kernel})

    def write(self, proc):
        "Write all pages, and their texts as Markdown beside them"
        for src,page in self.pages.items():
            to = self.to/page
            to.parent.mkdir(parents=True, exist_ok=True)
            if src.suffix=='.md':
                body,end = self.local(src.read_text(encoding='utf-8'), src),'.md'
                if not re.search(r'^# ', body, re.M): body = f'# {page_title(src)}\n\n{body}'
            else:
                path = Path(proc)/src.relative_to(nbs)
                if not path.exists(): continue
                body,end = self.notebook(path, src),'.ipynb'
            to.with_name(to.name+end).write_text(body, encoding='utf-8')
            extra = self.to/'_extra'/f'{page}.html.md'
            extra.parent.mkdir(parents=True, exist_ok=True)
            extra.write_text(body if end=='.md' else as_markdown(body), encoding='utf-8')

def page_title(src):
    "What a page without a title is called"
    return (src.parent if src.stem=='README' else src).stem.replace('_', ' ').capitalize()

def signature(cell):
    "What `show_doc` says of a function or a class, with an anchor of the name that links to it have"
    outs = [text(o['data']['text/markdown']) for o in cell.get('outputs', ()) if 'text/markdown' in o.get('data', {})]
    s = re.sub(r'^---\s*', '', '\n\n'.join(outs))
    name = re.match(r'### (.+)', s)
    return f'<a id="{name[1].strip().lower()}"></a>\n\n{s}' if name else s

def as_markdown(nb):
    "A notebook's text, its code and what that prints"
    out = []
    for c in json.loads(nb)['cells']:
        s = text(c['source'])
        if c['cell_type']=='markdown': out.append(s)
        else:
            out.append(f'```python\n{s}\n```')
            said = ''.join(text(o.get('text') or o.get('data', {}).get('text/plain', '')) for o in c['outputs'])
            if said.strip(): out.append(f'```\n{said.rstrip()}\n```')
    return '\n\n'.join(out)+'\n'

def toctree(caption, names):
    "A part of the menu"
    return '\n'.join(['```{toctree}', f':caption: {caption}', ':maxdepth: 1', ':hidden:', '', *names, '```', '', ''])

def drawn_by(source):
    "The line that draws a cell's picture, where one says so, without axes and saving"
    lines = [l.strip().replace('`', '') for l in source.strip().splitlines()]
    line = next((l for l in reversed(lines) if re.search(r'\b(plot|show|explain)\w*\(', l)), lines[-1]).rstrip(';')
    return line if len(line)<80 else f'{line[:78]}…'

def pictures(site):
    "The gallery: each picture in a notebook, with a link to where it is made"
    import base64
    out = ['# Pictures\n\n> What memo draws, and where on these pages\n\n::::{grid} 1 2 2 3\n:gutter: 2\n']
    for src,page in site.pages.items():
        at = site.to/f'{page}.ipynb'
        if not at.exists() or page.name=='index': continue
        nb,n = json.loads(at.read_text(encoding='utf-8')),0
        lines = (l for c in nb['cells'] for l in text(c['source']).splitlines())
        title = next((l[2:] for l in lines if l.startswith('# ')), page.name)
        for c in nb['cells']:
            for o in c.get('outputs', ()):
                if 'image/png' not in o.get('data', {}): continue
                n += 1
                name = f"{'-'.join(page.parts)}-{n}.png"
                (site.to/'images').mkdir(exist_ok=True)
                (site.to/'images'/name).write_bytes(base64.b64decode(text(o['data']['image/png'])))
                card = f'{title}\n:link: {page}.html\n:img-top: images/{name}\n`{drawn_by(text(c["source"]))}`'
                out.append(f':::{{grid-item-card}} {card}\n:::\n')
    (site.to/'gallery.md').write_text('\n'.join([*out, '::::'])+'\n', encoding='utf-8')

def add(path, more):
    "Put text at the end of a page"
    if path.suffix=='.md': return path.write_text(path.read_text(encoding='utf-8')+more, encoding='utf-8')
    nb = json.loads(path.read_text(encoding='utf-8'))
    nb['cells'].append(dict(cell_type='markdown', id='menu', metadata={}, source=more))
    path.write_text(json.dumps(nb), encoding='utf-8')

def menus(site):
    "The menu, on the front page, and one of the pages of each folder"
    made = {p:s for s,p in site.pages.items() if any((site.to/f'{p}{e}').exists() for e in ('.md','.ipynb'))}
    def of(folder): return [p for p in made if p.parent==Path(folder) and p.name!='overview']
    def number(p): return int(made[p].name[:2]) if made[p].name[:2].isdigit() else 0
    top = [p for p in of('.') if made[p].suffix=='.ipynb' and p.name!='index']
    learn = [p for p in top if 50<=number(p)<80]
    folders = sorted({p.parent for p in made if made[p].suffix=='.ipynb'}-{Path('.')})
    for f in folders:
        list_ = '\n'.join(['```{toctree}', ':maxdepth: 1', '', *(f'../{p}' for p in of(f)), '```', ''])
        at = site.to/'modules'/f'{f}.md'
        at.parent.mkdir(exist_ok=True)
        at.write_text(f'# memo.{f}\n\n{list_}', encoding='utf-8')
    for f in ('experiments','benchmarks'):
        add(site.to/f/'overview.md', '\n\n'+toctree(f.capitalize(), [p.name for p in of(f)]))
    modules = [*(p for p in top if p not in learn), *(f'modules/{f}' for f in folders)]
    parts = dict(Learn=[*learn, *of('howto'), 'gallery'], Systems=of('systems'), Modules=modules,
                 Results=['experiments/overview','benchmarks/overview'], Project=['CHANGELOG','CONTRIBUTING'])
    add(site.to/'index.ipynb', ''.join(toctree(k, map(str, v)) for k,v in parts.items() if v))

def main(out):
    "Make the site in `out`/html; a page that cannot be made, or a link within the text that leads nowhere, is an error"
    from nbdev.quarto import proc_nbs
    from sphinx.cmd.build import build_main
    os.chdir(root)
    proc = proc_nbs(n_workers=2)
    pages = Path(out)/'pages'
    shutil.rmtree(pages, ignore_errors=True)
    site = Site(pages)
    site.write(proc)
    pictures(site)
    menus(site)
    (pages/'_static').mkdir()
    shutil.copy(here/'memo.css', pages/'_static')
    shutil.copy(here/'conf.py', pages)
    if missing := sorted(site.missing): sys.exit('\n'.join(['links that lead nowhere:', *missing]))
    return build_main(['-q', '-W', '--keep-going', '-j', '2', '-d', f'{out}/doctrees', str(pages), f'{out}/html'])

if __name__=='__main__': sys.exit(main(sys.argv[1] if len(sys.argv)>1 else 'site'))
