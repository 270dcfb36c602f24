"Which combinations `make test` runs: some, in which each two values meet that meet in any; the others are nightly"
from itertools import combinations, product
import pytest

def cover(rows):
    "Few of `rows` in which each two values at two places meet that meet in any of them; always the same ones"
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

def grid(*axes, rows=None, some=None):
    "Combinations, or `rows`, as pytest's parameters: those of `cover`, or `some`, and the others as `nightly`"
    rows = [*(product(*axes) if rows is None else rows)]
    some = {*(cover(rows) if some is None else some)}
    assert some<={*rows}
    names = ['-'.join(str(getattr(o, '__name__', o)) for o in r) for r in rows]
    return [pytest.param(*r, id=n, marks=[] if r in some else pytest.mark.nightly) for r,n in zip(rows, names)]
