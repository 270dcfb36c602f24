"""How much there is: statements (`ast.stmt` nodes) of each module of two checkouts, as a Markdown table.
`python benchmarks/statements.py OLD [NEW]`: a module that only one of them has stands alone; generated indexes (names
with a
leading underscore) are apart, as nobody writes them."""
import ast,sys
from pathlib import Path

def statements(folder):
    "Module -> statements, of the package `memo` in a checkout"
    def count(p): return sum(isinstance(o, ast.stmt) for o in ast.walk(ast.parse(p.read_text(encoding='utf-8'))))
    root = Path(folder)/'memo'
    return {str(p.relative_to(root)):count(p) for p in sorted(root.rglob('*.py'))}

def table(old, new):
    made = [k for k in {**old, **new} if Path(k).name.startswith('_') and Path(k).name!='__init__.py']
    def row(k, a, b): return f"| {k} | {'' if a is None else a} | {'' if b is None else b} | {(b or 0)-(a or 0):+d} |"
    def total(d, ks): return sum(v for k,v in d.items() if (k in made)==ks)
    rows = [row(k, old.get(k), new.get(k)) for k in sorted({**old, **new}) if k not in made]
    rows.append(row('**all of these**', total(old, False), total(new, False)))
    rows += [row(f'{k} (generated)', old.get(k), new.get(k)) for k in sorted(made)]
    return '\n'.join(['| module | before | after | |','|---|---|---|---|',*rows])

if __name__=='__main__':
    if not 2<=len(sys.argv)<=3: raise SystemExit('statements.py OLD [NEW]: folders of checkouts')
    print(table(statements(sys.argv[1]), statements(sys.argv[2] if len(sys.argv)>2 else Path(__file__).parents[1])))
