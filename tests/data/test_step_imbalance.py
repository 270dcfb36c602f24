"Step imbalance (Buda et al. 2018, Cao et al. 2019) wherever a long tail is drawn"
import pytest, torch
from hypothesis import given, strategies as st
from helpers.errors import err
from memo.data.longtail import digits_lt, fashion_lt, longtail_counts, longtail_dls
from memo.registry import known

def published(cls_num, img_max, imb_factor):
    "As in the authors' code of Cao et al. 2019 (imbalance_cifar.py), for an even number of classes"
    res = []
    for _ in range(cls_num//2): res.append(int(img_max))
    for _ in range(cls_num//2): res.append(int(img_max*imb_factor))
    return res

@pytest.mark.parametrize('n,n_max,factor', [(10,5000,.01), (100,500,.01), (10,5000,.1), (100,500,.02)])
def test_sizes_are_the_published_ones(n, n_max, factor):
    assert longtail_counts(n_max, None, n, factor, True, 'step')==published(n, n_max, factor)

@given(st.integers(1, 60), st.integers(1, 200), st.integers(1, 50))
def test_half_of_the_classes_have_the_smallest_size(n, ratio, times):
    ns = longtail_counts(ratio*times, ratio, n, imb_type='step')
    assert ns==[ratio*times]*(n-n//2)+[times]*(n//2)

def test_what_both_types_refuse():
    assert 'ratio: 100 leaves no example' in err(longtail_counts, 50, 100, imb_type='step')
    for v in ('linear', 'Step', None): assert 'imb_type' in err(longtail_counts, 50, 10, imb_type=v)
    x,y = torch.zeros(40, 1, 8, 8).byte(),torch.arange(40)%2
    assert 'n_max is a list' in err(longtail_dls, x, y, x, y, [9,3], imb_type='step')

@pytest.mark.parametrize('c', [2,3,5,10])
def test_shot_groups_are_the_two_halves(c):
    x,y = torch.randint(256, (60*c,1,4,4)).byte(),torch.arange(60*c)%c
    dls = longtail_dls(x, y, x[:c], y[:c], 40, 10, imb_type='step', device='cpu', seed=4)
    ns = dls.counts
    assert sorted(ns.tolist())==[4]*(c//2)+[40]*(c-c//2) and dls.few<=dls.many+1
    assert ((ns>dls.many)==(ns==40)).all() and ((ns<dls.few)==(ns==4)).all()

def test_digits_and_fashion():
    dls = digits_lt(60, 20, imb_type='step', seed=2)
    assert sorted(dls.counts.tolist())==[3]*5+[60]*5 and dls.counts.tolist()!=sorted(dls.counts.tolist())[::-1]
    assert torch.equal(dls.train.dataset.items, digits_lt(60, 20, imb_type='step', seed=2).train.dataset.items)
    assert not torch.equal(dls.train.dataset.items, digits_lt(60, 20, imb_type='step', seed=3).train.dataset.items)
    assert fashion_lt(n_max=200, ratio=50, imb_type='step').counts.tolist()==[200]*5+[4]*5

def test_every_part_that_draws_a_long_tail_has_it():
    with_ratio = [p for p in known('data').values() if 'imb_factor' in p.keys]
    assert len(with_ratio)>=4 and all('imb_type' in p.keys for p in with_ratio)
