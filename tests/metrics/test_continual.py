"Figures of continual learning against loops over their published formulas"
import math
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from memo.core import MemoError
from memo.metrics.continual import *

figures = average_accuracy,forgetting,backward_transfer,forward_transfer,anytime_accuracy

def mean(xs):
    xs = [x for x in xs if x==x]
    return sum(xs)/len(xs) if xs else math.nan

def acc(A, t): return mean(A[t][j] for j in range(t+1))
def loop_forgetting(A):
    t = len(A)-1
    return mean(max(A[i][j] for i in range(t))-A[t][j] for j in range(t)) if t else 0.
def loop_bwt(A): return mean(A[i][j]-A[j][j] for i in range(1, len(A)) for j in range(i))
def loop_last(A): return mean(A[-1][j]-A[j][j] for j in range(len(A)-1))
def loop_fwt(A): return mean(A[i][j] for i in range(len(A)) for j in range(i+1, len(A)))

@st.composite
def matrices(draw, nan=True):
    e = draw(st.integers(1, 6))
    A = draw(arrays(float, (draw(st.integers(1, e)),e), elements=st.floats(0, 1)))
    if nan:
        for j in draw(st.sets(st.integers(0, e-1))): A[:,j] = math.nan
    return A

def close(a, b): assert a==pytest.approx(b, nan_ok=True, abs=1e-12)

@settings(deadline=None)
@given(matrices())
def test_formulas(A):
    L = A.tolist()
    close(average_accuracy(A), acc(L, len(L)-1))
    close(forgetting(A), loop_forgetting(L))
    close(backward_transfer(A, 'signed'), loop_bwt(L))
    close(backward_transfer(A, 'last'), loop_last(L))
    close(backward_transfer(A), max(0., b) if (b := loop_bwt(L))==b else b)
    close(forward_transfer(A), loop_fwt(L))
    close(anytime_accuracy(A), mean(acc(L, t) for t in range(len(L))))
    assert all(isinstance(f(A), float) for f in figures)

def test_the_sums_as_they_are_printed():
    "Spec 2.3, without nan: 2/(T(T-1)) times the sum over i>j, and over i<j"
    A = np.random.default_rng(0).random((5,5))
    T,s = 5,sum(A[i,j]-A[j,j] for i in range(5) for j in range(i))
    assert backward_transfer(A)==pytest.approx(max(0, 2/(T*(T-1))*s))
    assert backward_transfer(np.ones((3,3)))==0
    assert forward_transfer(A)==pytest.approx(2/(T*(T-1))*sum(A[i,j] for j in range(5) for i in range(j)))
    assert backward_transfer([[.2,0],[.7,.5]])==pytest.approx(.5)==backward_transfer([[.2,0],[.7,.5]], 'last')

def test_forgetting_looks_at_rows_before_an_experience_too():
    assert forgetting([[.5,.9,0],[.1,.2,0],[.4,.6,1]])==pytest.approx(((.5-.4)+(.9-.6))/2)
    assert forgetting([[.5,.1],[.8,.9]])==pytest.approx(-.3)      # it got better

def test_one_experience_and_a_stream_that_has_not_ended():
    assert average_accuracy([[.5]])==.5 and forgetting([[.5]])==0
    assert math.isnan(backward_transfer([[.5]])) and math.isnan(forward_transfer([[.5]]))
    A = np.array([[.9,.1,.7],[.5,.8,.3]])
    assert average_accuracy(A)==pytest.approx(.65) and forgetting(A)==pytest.approx(.4)
    assert forward_transfer(A)==pytest.approx(.1)      # of the two that there were

def test_nothing_to_measure(recwarn):
    A = np.full((3,3), np.nan)
    for f in figures: assert math.isnan(f(A))
    assert not recwarn.list

def test_rows_within_experiences():
    A = np.array([[.2,.1],[.4,.1],[.4,.3],[.5,.7]])
    assert anytime_accuracy(A, [0,0,1,1])==pytest.approx(mean([.2,.4,.35,.6]))
    assert anytime_accuracy(A[[1,3]])==pytest.approx(mean([.4,.6]))
    for at in ([0,0,1], [0,0,1,2], [-1,0,1,1], [0.,0.,1.,1.]):
        with pytest.raises(MemoError, match='at:'): anytime_accuracy(A, at)

@pytest.mark.parametrize('A', [[], [[]], [.5,.5], .5, np.zeros((3,2)), np.zeros((1,2,2)), [[.1],[.2,.3]], [['a']],
                               None])
def test_what_is_no_matrix(A):
    for f in figures:
        with pytest.raises(MemoError, match='matrix'): f(A)

def test_percents_are_refused():
    with pytest.raises(MemoError, match='0 to 1'): average_accuracy([[90.]])
    with pytest.raises(MemoError, match='0 to 1'): average_accuracy([[-.1]])
    with pytest.raises(MemoError, match='kind'): backward_transfer([[.5]], 'positve')

def test_other_containers():
    import torch
    A = torch.rand(3,3)
    assert average_accuracy(A)==pytest.approx(float(A[2].mean()))
    assert forgetting(A.tolist())==pytest.approx(forgetting(A.numpy()))
