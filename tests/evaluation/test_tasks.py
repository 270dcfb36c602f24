"Tasks: what labels ask for; metrics of one's own; a task of one's own"
import math
import pandas as pd, pytest, torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.metrics import accuracy
from fastcore.basics import AttrDict
from helpers.tensors import gen
from memo.core import MemoError
from memo.data.tensors import TensorDL, TensorSet
from memo.metrics.multiclass import longtail_scores
from memo.metrics.multilabel import MultiMetric, macro_auc, multilabel_scores
from memo.metrics.intervals import patient_bootstrap
from memo.registry import register
from memo.evaluation.tasks import Multiclass, Multilabel, Task, class_counts, own_metrics, own_scores, progress
from memo.evaluation.tasks import task_of, titles_of

def loaders(y, dataset=None):
    return DataLoaders(*[TensorDL(torch.randn(len(y), 3, generator=gen()), y, bs=4, dataset=dataset) for _ in range(3)])
def plain(y): return DataLoaders(*[DataLoader(list(zip(torch.randn(len(y), 3), y)), bs=2) for _ in range(3)])
one,many = torch.tensor([0,0,0,1,1,2]),(torch.rand(12, 3, generator=gen(1))<.5).float()
def tailed(y):
    "Loaders whose classes are many-, medium- and few-shot"
    n = y.bincount()
    return loaders(y, TensorSet(torch.zeros(len(y), 3), y, counts=n, many=int(n.max())-1, few=int(n.min())+1))
def probs(n, c, sigmoid=False):
    o = torch.randn(n, c, generator=gen(2))
    return o.sigmoid() if sigmoid else o.softmax(1)
def section(f, **args): return AttrDict(name=f'{f.__module__}.{f.__qualname__}', args=args)

@pytest.mark.parametrize('make', [loaders, plain])
def test_the_type_of_the_targets_decides(make):
    assert type(task_of(make(one))) is Multiclass and type(task_of(make(many))) is Multilabel
    t = task_of(make(many), 'multilabel', threshold=.2, nothing_of_it=1)
    assert (t.threshold,t.name)==(.2,'multilabel')

def test_a_name_that_the_labels_do_not_suit():
    with pytest.raises(MemoError, match=r'labels are float32 \[N, 3\], which do not suit '
                                        r'multiclass, the task of this data set'): task_of(loaders(many), 'multiclass')
    with pytest.raises(MemoError, match='labels are int64'): task_of(loaders(one), 'multilabel')
    with pytest.raises(MemoError, match='did you mean multiclass'): task_of(loaders(one), 'multiclas')

def test_regression_has_none():
    with pytest.raises(MemoError, match=r'labels are float32 \[N\]: class numbers \[N\] or 0/1 '
                                        r'targets \[N,C\] are accepted'): task_of(loaders(torch.rand(6)))

def test_looking_for_the_task_draws_nothing():
    state = torch.get_rng_state()
    task_of(loaders(one))
    assert torch.equal(state, torch.get_rng_state())

def test_multiclass_is_longtail_scores():
    dls,t,p = loaders(one),Multiclass(),probs(6, 3)
    assert class_counts(dls).tolist()==[3,2,1]
    got = t.scores(p, one, dls)
    # repr: nan is nan
    assert repr(got)==repr(longtail_scores(p, one, torch.tensor([3,2,1]))) and set(t.columns)<=set(got)
    assert repr(t.scores(p, one, loaders(one,
                                         dataset=TensorSet(torch.zeros(6,3), one, counts=[9,9,9], many=5,
                                                           few=2))))==repr(longtail_scores(p, one, [9,9,9], 5, 2))
    df = t.predictions({'a':p}, one, dls, torch.arange(6)+10)
    assert list(df.columns)==['item','target','a','a: probability'] and df.item.tolist()==list(range(10,16))
    assert df.a.tolist()==p.argmax(1).tolist() and df['a: probability'].tolist()==p.max(1)[0].tolist()
    torch.testing.assert_close(t.activation(p.log()), p)

def test_multilabel_is_multilabel_scores():
    dls,t,p = loaders(many),Multilabel(threshold=.3, draws=20),probs(12, 3, True)
    got,more = t.scores(p, many, dls),t.details(p, many, dls)
    want = multilabel_scores(p, many, None, .3)
    assert all(a==b or math.isnan(a) and math.isnan(want[k]) for k,a,b in ((k,got[k],want[k]) for k in want))
    # no groups: images are drawn
    assert repr(tuple(more['intervals']['macro_auc']))==repr(patient_bootstrap(p, many, range(12), n=20)['macro_auc'])
    df = t.predictions({'a':p}, many, dls, torch.arange(12))
    assert list(df.columns)==['item',0,1,2,'a: 0','a: 1','a: 2'] and more['table'].finding.tolist()==['0','1','2']
    (name,*rank),(by,*rates) = t.class_texts('a', got, more, lambda v, *_: f'{v:.2f}')
    assert (name,by)==('a','a: threshold 0.3')
    for head,rows in (rank, rates):
        assert len(rows)==4 and all(len(r)==len(head) for r in rows) and rows[-1][0]=='macro over 3 findings'
    assert [r[1] for r in rates[1]]==['0.3']*3+['']

def test_groups_are_what_intervals_draw():
    groups = torch.arange(12)//4
    dls = loaders(many, TensorSet(torch.zeros(12,3), many, groups=groups))
    p = probs(12, 3, True)
    assert torch.equal(class_counts(dls), many.sum(0).long())
    more = Multilabel(draws=50).details(p, many, dls)
    want = patient_bootstrap(p, many, groups, n=50)
    assert repr(tuple(more['intervals']['macro_ap']))==repr(want['macro_ap'])
    assert more['table'].patients.tolist()==[len({*groups[o>0].tolist()}) for o in many.T]

# metrics of one's own

def top(probs, y, k=1): return (probs.topk(k).indices==y[:,None]).any(1).float().mean()
class Sharp:
    def __init__(self, base=0.): self.base = base
    def __call__(self, probs, y): return probs.max(1)[0].mean().item()-self.base
def maker(counts=None):
    return [MultiMetric(lambda p, y: float(counts[0]), 'largest'), MultiMetric(lambda p, y: 0., 'nought')]

def test_a_function_a_class_and_a_maker():
    dls,p = tailed(one),probs(6, 3)
    ss = [section(top, k=2), section(Sharp, base=.1), section(maker)]
    got = own_scores(p, one, dls, ss)
    assert got==dict(top=float(top(p, one, 2)), Sharp=p.max(1)[0].mean().item()-.1, largest=3., nought=0.)
    t = Multiclass()
    assert [m if m is accuracy else m.name for m in progress(t, dls, ss)]==[accuracy,'many','medium','few','top',
        'Sharp','largest','nought']
    assert list(titles_of(t, dls, ss).items())==[*t.columns.items(), *((k,k) for k in got)]

def test_what_the_task_has_is_not_shown_twice():
    def of_ones_own(counts=None): return [MultiMetric(lambda p, y: 1., k) for k in ('few','ece')]
    register('metric', 'of_ones_own')(of_ones_own)
    dls,s = tailed(one),[AttrDict(name='ece', args={})]
    assert [getattr(m, 'name', 'accuracy') for m in progress(Multiclass(), dls, s*2)]==['accuracy','many','medium',
        'few','ece']
    assert list(titles_of(Multiclass(), dls, s))==list(Multiclass.columns)
    with pytest.raises(MemoError, match='of_ones_own is called few, as a column of the task is already'):
        progress(Multiclass(), dls, [AttrDict(name='of_ones_own', args={})])

@pytest.mark.parametrize('counts,many,few', [([5,5,5],100,20), ([5,5,5],0,0), ([900,500,101],100,20), ([8,8,8],8,8)])
def test_where_no_class_is_rarer_there_are_no_columns_of_rarity(counts, many, few):
    "A balanced set, or one whose classes are all on the same side of the thresholds"
    ds = TensorSet(torch.zeros(6, 3), one, counts=torch.tensor(counts), many=many, few=few)
    dls,t = loaders(one, ds),Multiclass()
    assert progress(t, dls)==[accuracy] and [*titles_of(t, dls)]==['accuracy','balanced_accuracy','ece']
    assert [getattr(o, 'name', 'accuracy') for o in progress(t, tailed(one))]==['accuracy','many','medium','few']
    assert [*titles_of(t, tailed(one))]==[*t.columns] and {*t.columns}<={*t.scores(probs(6, 3), one, dls)}

def test_a_group_without_a_class_has_no_column():
    dls = loaders(one, TensorSet(torch.zeros(6, 3), one, counts=torch.tensor([90,50,5]), many=100, few=20))
    assert [getattr(o, 'name', 'accuracy') for o in progress(Multiclass(), dls)]==['accuracy','medium','few']
    assert [*titles_of(Multiclass(), dls)]==['accuracy','medium','few','balanced_accuracy','ece']

def test_over_a_whole_epoch():
    "Not a mean over batches: a metric of one's own sees all of it at once"
    from fastai.learner import Learner
    def batches(probs, y): return float(len(y))
    register('metric', 'batches')(batches)
    dls = loaders(one)
    learn = Learner(dls, torch.nn.Linear(3, 3),
                    metrics=progress(Multiclass(), dls, [AttrDict(name='batches', args={})]),
                    loss_func=torch.nn.CrossEntropyLoss())
    learn.loss_func.activation = lambda x: x.softmax(1)
    with learn.no_bar(), learn.no_logging(): v = learn.validate()
    assert v[-1]==6.

# a task of one's own

class Ordinal(Task):
    columns,digits = dict(mae='mean distance'),3
    def suits(self, y): return y.ndim==1
    def scores(self, probs, y, dls): return dict(mae=float((probs.argmax(1)-y).abs().float().mean()))
    def predictions(self, probs, y, dls, item): return pd.DataFrame({k:p.argmax(1).tolist() for k,p in probs.items()})

def test_a_task_of_ones_own():
    name = f'{__name__}.Ordinal'
    t = task_of(loaders(one), name)
    assert isinstance(t, Ordinal) and t.name==name and titles_of(t,
        None)==dict(mae='mean distance') and t.metrics(None)==[] and t.details(None, None, None)=={}
    assert type(task_of(loaders(one))) is Multiclass        # it has to be named

def test_a_task_is_found_by_its_targets(ours_alone):
    dls = DataLoaders(*[TensorDL(torch.randn(6, 3), torch.rand(6), bs=4, vocab=[0]) for _ in range(3)])
    with pytest.raises(MemoError): task_of(dls)
    @register('task', 'amounts')
    class Amounts(Task):
        "A number an item"
        def suits(self, y): return y.ndim==1 and y.is_floating_point()
    t = task_of(dls)
    assert type(t) is Amounts and t.name=='amounts'

def test_numbers_and_masked_findings_are_no_task():
    "Two measured numbers are no two findings; which findings are masked is said with column and count"
    with pytest.raises(MemoError, match=r'labels are float32 \[N, 2\], but of 0/1 targets 6 of 6 in column 0'):
        task_of(loaders(torch.full((6,2), .3)))
    y = many.clone()
    y[-3:,1] = float('nan')
    for name in (None,'multilabel'):
        with pytest.raises(MemoError, match='3 of 12 in column 1 are NaN'): task_of(loaders(y), name)
    for f in (lambda: Multilabel().scores(probs(12, 3, True), y, None), lambda: macro_auc(probs(12, 3), y)):
        with pytest.raises(MemoError, match='labels 0 and 1 are needed, found 3 of 12 in column 1 are NaN'): f()

def test_what_is_not_known_is_in_no_score():
    "-1, as loaders with uncertain='ignore' give it"
    y,p = many.clone(),probs(12, 3, True)
    y[-3:,1] = -1
    assert type(task_of(loaders(y))) is Multilabel
    assert macro_auc(p[:,1:2], y[:,1:2])==macro_auc(p[:-3,1:2], y[:-3,1:2])
    q = p.clone()
    q[-3:,1] = 1-q[-3:,1]
    assert Multilabel().scores(p, y, None)==pytest.approx(Multilabel().scores(q, y, None), nan_ok=True)
