"Logistic and ridge regression chosen by cross-validation, the nearest mean without validation data, and their folds"
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from sklearn.linear_model import LogisticRegression, RidgeClassifier, RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F
from helpers.errors import err
from helpers.tensors import close, gen
from memo.evaluation.classifiers import item_folds, left_out, logistic_cv, nearest_mean, retrain_classifier, ridge_cv
from memo.evaluation.classifiers import tip_adapter, tip_adapter_trained
from memo.heads.mixture import class_nll

def fast_trained(*args, **kwargs): return tip_adapter_trained(*args, **{'epochs':3, **kwargs})
ALL = nearest_mean,logistic_cv,ridge_cv,tip_adapter,fast_trained

def shots(sizes, d=8, seed=0, noise=1.2):
    "Features of so many items of each class, in a random order"
    y = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    mu = 2*torch.randn(len(sizes), d, generator=gen(99))
    z = mu[y]+noise*torch.randn(len(y), d, generator=gen(seed))
    i = torch.randperm(len(y), generator=gen(seed+1))
    return (z*torch.logspace(-1, 1, d)+3)[i],y[i]

# against scikit-learn

@pytest.mark.parametrize('sizes,seed', [((5,5,5), 0), ((4,9,2,6), 1), ((5,5), 2), ((12,12,12,12), 3)])
def test_logistic_regression_is_a_pipeline_chosen_in_folds(sizes, seed):
    "With scikit-learn's scaler, of each fold; class by class, what is said of items held out"
    z,y = shots(sizes, seed=seed)
    f,got = logistic_cv(z, y, len(sizes))
    fold,losses = item_folds(z, y).numpy(),{}
    x,t = z.double().numpy(),y.numpy()
    def fit(C, at):
        m = LogisticRegression(C=C, max_iter=5000, tol=1e-8)
        return make_pipeline(StandardScaler(), m).fit(x[at], t[at])
    for C in 10.**np.arange(-4, 5):
        p = np.zeros((len(t),len(sizes)))
        for k in range(fold.max()+1): p[fold==k] = fit(C, fold!=k).predict_log_proba(x[fold==k])
        losses[C] = np.mean([-p[t==c,c].mean() for c in range(len(sizes))])
    assert got=={'C':pytest.approx(min(losses, key=losses.get)), 'by':'cross-validation'}
    q,_ = shots(sizes, seed=seed+50)
    close(f(q).exp(), fit(got['C'], t>=0).predict_proba(q.double().numpy()), 5e-3)

@pytest.mark.parametrize('sizes,d', [((5,5,5), 8), ((3,8,4,6), 30), ((6,6), 4), ((40,30,50), 5)])
def test_ridge_is_that_of_scikit_learn(sizes, d):
    z,y = shots(sizes, d)
    f,got = ridge_cv(z, y, len(sizes))
    sk = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=10.**np.arange(-2, 6.5, .5)))
    sk.fit(z.double().numpy(), y)
    assert got['alpha']==pytest.approx(sk[-1].alpha_) and got['by']=='leave-one-out'
    q,_ = shots(sizes, d, seed=50)
    s = sk.decision_function(q.double().numpy())
    if len(sizes)==2: s = np.stack([-s,s], 1)
    close(f(q), torch.tensor(s/got['temperature']).log_softmax(1), 1e-4)

@pytest.mark.parametrize('n,d,alpha', [(9,4,.3), (9,30,2.), (6,6,1e-2)])
def test_what_is_left_out_is_a_fit_without_it(n, d, alpha):
    "Of rows of one item all of them"
    x,t = torch.randn(n, d, generator=gen(0)).double(),torch.randn(n, 3, generator=gen(1)).double()
    units = torch.tensor([0,1,2,2,3,4,4,4,5][:n])
    x = x-x.mean(0)
    u,s,_ = torch.linalg.svd(x, full_matrices=False)
    out = left_out(u, s, t, units, alpha)
    for i in units.unique():
        a,b = units!=i,units==i
        m,mt = x[a].mean(0),t[a].mean(0)
        w = torch.linalg.solve((x[a]-m).T@(x[a]-m)+alpha*torch.eye(d).double(), (x[a]-m).T@(t[a]-mt))
        close(out[b], (x[b]-m)@w+mt, 1e-8)

def test_the_ridge_of_items_that_are_there_twice_is_chosen_without_both():
    "The penalty of a brute-force leave-one-item-out"
    z,y = shots((5,5,5))
    i = torch.arange(15).repeat_interleave(2)
    z = z[i]+.02*torch.randn(30, 8, generator=gen(7))
    f,got = ridge_cv(z, y[i], 3, i)
    x = StandardScaler().fit_transform(z.double().numpy())
    def loss(a):
        res = []
        for k in range(15):
            m = RidgeClassifier(alpha=a).fit(x[i!=k], y[i][i!=k])
            res.append(m.decision_function(x[i==k])-(2*np.eye(3)[y[i][i==k]]-1))
        return np.mean(np.concatenate(res)**2)
    alphas = 10.**np.arange(-2, 6.5, .5)
    assert got['alpha']==pytest.approx(min(alphas, key=loss))!=ridge_cv(z, y[i], 3)[1]['alpha']

# folds

@settings(max_examples=40)
@given(st.data())
def test_folds(data):
    "Each class is dealt evenly, items stay together, the only item of a class stays in"
    n,c = data.draw(st.integers(1, 25)),data.draw(st.integers(1, 4))
    y = torch.tensor(data.draw(st.lists(st.integers(0, c-1), min_size=n, max_size=n)))
    z = torch.randn(n, 3, generator=gen(data.draw(st.integers(0, 99))))
    item = data.draw(st.sampled_from(['none','own','shared']))
    i = torch.arange(n)
    item = None if item=='none' else i if item=='own' else 10*y+i%3-(i%4==0)*99
    if item is not None: item = item.clamp(min=-1)
    k = data.draw(st.integers(2, 6))
    fold = item_folds(z, y, item, k)
    own = torch.arange(n)+1000 if item is None else torch.where(item<0, torch.arange(n)+1000, item)
    assert all(len(fold[own==o].unique())==1 for o in own.unique())
    for j in y.unique():
        of = [int(fold[own==o][0]) for o in own[y==j].unique()]
        if len(of)==1: assert of==[-1]
        else:
            counts = np.bincount(of, minlength=k)
            assert min(of)>=0 and max(of)<k and counts.max()-counts.min()<=1
    p = torch.randperm(n, generator=gen(3))
    assert torch.equal(item_folds(z[p], y[p], None if item is None else item[p], k), fold[p])

def test_an_item_of_two_classes_is_in_one_fold():
    z,y,item = torch.randn(6, 2, generator=gen(0)),torch.tensor([0,0,1,1,2,2]),torch.tensor([1,2,1,3,4,5])
    fold = item_folds(z, y, item)
    assert fold[0]==fold[2] and (fold>=0).all()

# what holds for all of them

@settings(max_examples=12)
@given(st.integers(0, 99), st.lists(st.integers(0, 6), min_size=2, max_size=4).filter(lambda o: sum(o)>0))
@pytest.mark.parametrize('fit', ALL)
def test_order_of_items_and_names_of_classes_say_nothing(fit, seed, sizes):
    z,y = shots(sizes, seed=seed)
    q,_ = shots([4]*len(sizes), seed=seed+100)
    f,got = fit(z, y, len(sizes))
    assert f(q).isfinite().all() and f(q).shape==(len(q),len(sizes))
    none = [c for c,n in enumerate(sizes) if n==0]
    assert not torch.isin(f(q).argmax(1), torch.tensor(none, dtype=torch.long)).any()
    i,c = torch.randperm(len(y), generator=gen(seed)),torch.randperm(len(sizes), generator=gen(seed+1))
    g,other = fit(z[i], c[y[i]], len(sizes))
    assert other==pytest.approx(got)
    close(g(q)[:,c], f(q), 5e-3)

@pytest.mark.parametrize('fit', ALL)
def test_one_of_each_class(fit):
    "Nothing can be held out, and what is taken then is said"
    z,y = shots((1,1,1,1))
    f,got = fit(z, y, 4)
    assert got.pop('by')=='default'
    assert got in (dict(temperature=.1), dict(C=1.), dict(alpha=1., temperature=.5), dict(alpha=1., beta=5.5))
    assert torch.equal(f(z).argmax(1), y)
    if fit is logistic_cv:
        sk = make_pipeline(StandardScaler(), LogisticRegression()).fit(z.numpy(), y)
        close(f(z), sk.predict_log_proba(z.numpy()), 1e-3)
    if fit is ridge_cv:
        sk = make_pipeline(StandardScaler(), RidgeClassifier()).fit(z.numpy(), y)
        close(f(z), torch.tensor(2*sk.decision_function(z.numpy())).log_softmax(1), 1e-4)

@pytest.mark.parametrize('fit', ALL)
def test_doubles_of_one_item_are_no_second_item(fit):
    "With their ids; without, they are taken for items of their own"
    z,y = shots((1,1,1))
    i = torch.arange(3).repeat(3)
    assert fit(z[i], y[i], 3, item=i)[1]['by']=='default'!=fit(z[i], y[i], 3)[1]['by']
    assert fit(z[i], y[i], 3, item=torch.full((9,), -1))[1]==fit(z[i], y[i], 3)[1]

@pytest.mark.parametrize('fit', ALL)
def test_doubles_do_not_leak(fit):
    "Classes that say nothing: a copy on the other side of a fold would be found, and sharpness chosen for that"
    z,y = torch.randn(24, 40, generator=gen(0)),torch.arange(24)%3
    i = torch.arange(24).repeat(2)
    def nll(item):
        f,_ = fit(z[i], y[i], 3, item=item)
        return class_nll(f(torch.randn(300, 40, generator=gen(1))).log_softmax(1), torch.arange(300)%3).item()
    assert nll(i)<nll(None)-.02 and nll(i)<1.25

@pytest.mark.parametrize('fit', ALL)
def test_a_class_with_one_item_among_others(fit):
    z,y = shots((6,1,6,0))
    f,got = fit(z, y, 4)
    assert got['by']!='default' and f(z).isfinite().all()
    assert f(z[y==1]).argmax(1).tolist()==[1] and (f(z).argmax(1)!=3).all()

@pytest.mark.parametrize('fit', ALL)
def test_a_single_class(fit):
    z,y = shots((0,4,0))
    f,_ = fit(z, y, 3)
    assert (f(torch.randn(9, 8, generator=gen(5))+3).argmax(1)==1).all()
    f,_ = fit(z, torch.zeros_like(y), 1)
    assert f(z).shape==(4,1) and f(z).isfinite().all()

@pytest.mark.parametrize('fit', (*ALL, retrain_classifier))
def test_what_cannot_be_fitted_to(fit):
    z,y = shots((3,3))
    v = (z,y) if fit is retrain_classifier else ()
    for bad in (float('nan'),float('inf')):
        x = z.clone()
        x[1,2] = x[4,0] = bad
        assert 'features of 2 of 6 training items are not finite' in err(fit, x, y, 2, *v)
    assert 'there are no features' in err(fit, z[:0], y[:0], 2, *v)
    assert 'classes from -1 to 1; 0 to 1 is accepted' in err(fit, z, y.where(y>0, -1), 2, *v)
    assert 'classes from 0 to 1; 0 to 0' in err(fit, z, y, 1, *v)
    if fit in (nearest_mean, tip_adapter, fast_trained, retrain_classifier):
        assert 'features of 6 of 6 validation items' in err(fit, z, y, 2, z*float('nan'), y)

@pytest.mark.parametrize('fit', ALL)
def test_other_types_are_taken_and_other_shapes_refused(fit):
    z,y = shots((5,5,5))
    f,_ = fit(z.half(), y.int(), 3)
    want = fit(z.half().float(), y, 3)[0](z)
    close(f(z), want)
    for o in (z.half(), z.bfloat16(), z.double()): close(f(o), f(o.float()))
    assert 'training features are (15, 1, 8); a row for each item [N,D]' in err(fit, z[:,None], y, 3)
    assert 'classes are (15, 3), of 15 items; one class an item' in err(fit, z, F.one_hot(y, 3), 3)
    assert 'classes are (4,), of 15 items' in err(fit, z, y[:4], 3)
    if fit is nearest_mean: assert 'validation features are (8,)' in err(fit, z, y, 3, z[0], y)

@pytest.mark.parametrize('fit', ALL)
def test_features_that_do_not_vary(fit):
    "What they are in new items tells nothing; a query without numbers has no answer and spoils no other"
    z,y = shots((4,4,4))
    noise = torch.full((12,1), 7.)
    noise[::2] = noise[::2].nextafter(torch.tensor(8.))         # of rounding
    z = torch.cat([z, noise, torch.zeros(12, 1)], 1)
    f,_ = fit(z, y, 3)
    assert f(z).isfinite().all()
    if fit in (logistic_cv,ridge_cv):
        q = z.clone()
        q[:,8:] += .01
        close(f(q), f(z), 1e-3)
    q = z.clone()
    q[3] = float('nan')
    o = f(q)
    close(o[torch.arange(12)!=3], f(z)[torch.arange(12)!=3], 1e-5)
    assert o[3].isnan().any() or fit is nearest_mean

@pytest.mark.parametrize('fit', ALL)
def test_the_same_again_and_no_random_number_is_used_up(fit):
    z,y = shots((5,5,5))
    was = torch.get_rng_state()
    a,got = fit(z, y, 3)
    assert torch.equal(torch.get_rng_state(), was)
    torch.manual_seed(3)
    with torch.no_grad(): b,again = fit(z, y, 3)
    assert torch.equal(a(z), b(z)) and got==again and not a(z).requires_grad
    assert a(z[:0]).shape==(0,3)

def test_they_are_of_some_use():
    "Five shots, digits: well above the nearest neighbour by luck, each above 70 %"
    from sklearn.datasets import load_digits
    d = load_digits()
    x,y = torch.tensor(d.data).float(),torch.tensor(d.target)
    at = torch.cat([(y==c).nonzero().flatten()[:5] for c in range(10)])
    for fit in ALL: assert (fit(x[at], y[at], 10)[0](x).argmax(1)==y).float().mean()>.7

# the nearest mean without validation data

def test_the_nearest_means_temperature_is_of_items_held_out():
    z,y = shots((5,6,4))
    f,got = nearest_mean(z, y, 3)
    fold,u = item_folds(z, y),F.normalize(z)
    cos = torch.zeros(15, 3)
    for k in range(int(fold.max())+1):
        m = torch.stack([F.normalize(u[(fold!=k) & (y==c)].mean(0), dim=0) for c in range(3)])
        cos[fold==k] = u[fold==k]@m.T
    ts = np.logspace(-2.5, 0, 26)
    assert got=={'temperature':pytest.approx(min(ts, key=lambda t: class_nll((cos/t).log_softmax(1), y).item())),
                 'by':'cross-validation'}
    g,other = nearest_mean(z, y, 3, z, y)
    close(f(z)*got['temperature'], g(z)*other['temperature'], 1e-6)
