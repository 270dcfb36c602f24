"Which of all combinations a bare `make test` runs: some in which each two values meet; the others are nightly"
from itertools import combinations, product
import pytest

def pairs(*axes):
    "Rows of a value of each of `axes`, as few as a greedy search finds, in which any two values of two axes meet; the same ones each time"
    axes = [[*o] for o in axes]
    def meet(row): return {(i,j,row[i],row[j]) for i,j in combinations(range(len(axes)), 2)}
    rows = [*product(*(range(len(o)) for o in axes))]
    left,chosen = set().union(*map(meet, rows)),[]
    while left:
        chosen.append(max(rows, key=lambda o: len(meet(o) & left)))
        left -= meet(chosen[-1])
    return [tuple(o[i] for o,i in zip(axes, row)) for row in chosen]

def grid(*axes, ids=str):
    "All combinations as pytest's parameters: those of `pairs`, and the others behind the marker `nightly`"
    axes = [[*o] for o in axes]
    some = pairs(*axes)
    return [pytest.param(*row, id='-'.join(map(ids, row)), marks=[] if row in some else pytest.mark.nightly) for row in product(*axes)]
