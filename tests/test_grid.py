"All-pairs: any two values of two axes are in a row"
from itertools import combinations, product
import pytest
from helpers.grid import grid, pairs

@pytest.mark.parametrize('sizes', [(2,3), (2,3,5,2), (3,3,3), (1,4), (2,2,2,2,2)])
def test_every_pair_is_in_a_row(sizes):
    axes = [[f'{k}{i}' for i in range(n)] for k,n in zip('abcde', sizes)]
    rows = pairs(*axes)
    for p,q in combinations(range(len(axes)), 2): assert {(r[p],r[q]) for r in rows}==set(product(axes[p], axes[q]))
    assert len(set(rows))==len(rows)<=len([*product(*axes)]) and rows==pairs(*axes)

def test_few_rows(): assert len(pairs('ab', 'cde', 'fghij', 'kl'))<=18 and len(pairs(*['ab']*5))<=8

def test_the_others_are_nightly():
    ps = grid([0,1], [0,1], [0,1])
    assert len(ps)==8 and len({p.id for p in ps})==8
    assert {p.values for p in ps if not p.marks}==set(pairs([0,1], [0,1], [0,1]))
    assert all(m.name=='nightly' for p in ps for m in p.marks)
