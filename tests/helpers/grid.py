"Which combinations `make test` runs: some, in which each two values meet that meet in any; the others are nightly"
from itertools import combinations, product
import pytest

def cover(rows):
    "Few of `rows`, tuples of a length, in which each two values at two places meet that meet in any; always the same ones"
    rows = [*rows]
    ids = [{v:i for i,v in enumerate(dict.fromkeys(col))} for col in zip(*rows)]
    meet = {r:{(i,j,ids[i][r[i]],ids[j][r[j]]) for i,j in combinations(range(len(r)), 2)} for r in rows}
    left,chosen = set().union(*meet.values()),[]
    while left:
        chosen.append(max(rows, key=lambda r: len(meet[r] & left)))
        left -= meet[chosen[-1]]
    return chosen

def pairs(*axes):
    "Rows of a value of each of `axes` in which any two values of two axes meet"
    return cover(product(*axes))

def grid(*axes, rows=None):
    "All combinations, or `rows` of them, as pytest's parameters: those of `cover`, and behind the marker `nightly` the others"
    rows = [*(product(*axes) if rows is None else rows)]
    some = {*cover(rows)}
    names = ['-'.join(str(getattr(o, '__name__', o)) for o in r) for r in rows]
    return [pytest.param(*r, id=n, marks=[] if r in some else pytest.mark.nightly) for r,n in zip(rows, names)]
