"Predictions and what only looks, in several threads: as one after the other, and nothing else of the process changes"
import random, sys, threading
import matplotlib, numpy as np, pytest, torch
from fastai.vision.all import Learner, accuracy, set_seed
from helpers.learners import quietly, same, snap
from memo.banks.classes import ClassBank
from memo.banks.slots import SlotBank
from memo.core import undisturbed
from memo.data.longtail import digits_lt
from memo.models.small import small_cnn
from memo.plots.figure import _small, drawing
import memo.plots.recall
from memo.plots.training import plot_counts
from memo.training.collect import collect
from memo.training.memory_callback import MemoryCallback

made = dict(vote=lambda: (SlotBank(300, policy='fifo'), dict(head='vote', k=5)),
            white=lambda: (SlotBank(300, policy='fifo'), dict(head='vote', k=5, whiten=True)),
            add=lambda: (SlotBank(300, policy='fifo'), dict(head='add')),
            lda=lambda: (ClassBank(10, capacity=16), dict(head='lda')))

def learner(kind='vote'):
    set_seed(0)
    bank,kw = made[kind]()
    learn = Learner(digits_lt(n_max=40, ratio=4, valid=6, test=10), small_cnn(1, 10), metrics=accuracy,
                    cbs=MemoryCallback(bank, **kw))
    quietly(learn, 'fit', 2, 1e-2)
    if kind!='lda': learn.memory.rekey()
    return learn

def all_at_once(calls, n=8):
    "Run lists of calls, one list a thread; what they give, and what they raise"
    got,start = [None]*len(calls),threading.Barrier(len(calls))
    def go(i):
        start.wait()
        try: got[i] = [f() for f in calls[i]]
        except Exception as e: got[i] = e
    ts = [threading.Thread(target=go, args=(i,)) for i in range(len(calls))]
    for t in ts: t.start()
    for t in ts: t.join()
    for o in got:
        if isinstance(o, Exception): raise o
    return got

def state(learn):
    "All that looking must leave alone"
    return (dict(matplotlib.rcParams), torch.get_rng_state().tolist(), random.getstate(),
            np.random.get_state()[1].tolist(),
            [dl.rng.getstate() for dl in learn.dls.loaders], [m.training for m in learn.model.modules()],
            set(vars(learn)), learn.memory.head._offs)

def drawn(fig):
    return [(t.get_text(),t.get_fontsize()) for a in fig.axes for t in (a.title,*a.texts)],fig.dpi,[
        o.get_visible() for a in fig.axes for o in a.spines.values()]

def looks(learn, n):
    "`n` calls of each kind that looks, with what each says of unequal batches"
    x,res = learn.dls[2].dataset.x,[]
    for i in range(n):
        q = x[i%40:i%40+1+i%5]
        res += [lambda q=q: [o.tolist() for k,o in learn.recall(q, k=3).items() if torch.is_tensor(o)],
                lambda q=q: drawn(learn.explain(q[:2], k=2)), lambda i=i: drawn(learn.show_memories(1+i%2, k=2)),
                lambda i=i: collect(learn, learn.dls[1+i%2], memory=bool(i%3)).logits.tolist()]
    return res

def equal(a, b):
    if isinstance(a, (list,tuple)): return len(a)==len(b) and all(map(equal, a, b))
    return a==pytest.approx(b, abs=1e-5) if isinstance(a, float) else a==b

def predictions(learn, n, i):
    xs = [learn.dls[2].dataset.x[j:j+1+(i+j)%7].float()/255 for j in range(20)]
    m = learn.model
    def one(x):
        with torch.no_grad(): return m(x)
    return [lambda x=xs[(i+j)%20]: one(x) for j in range(n)]

def alongside(learn, n, looked):
    learn.model.eval()
    looking = looks(learn, looked)
    preds = [predictions(learn, n, i) for i in range(8)]
    want,seen = [[f() for f in o[:20]] for o in preds],[f() for f in looking]
    was = state(learn)
    shared = [looking[i::8] for i in range(8)]
    rekeyed = [] if learn.memory.bank.views else [lambda: learn.memory.rekey()]*max(1, looked//2)
    got = all_at_once([*preds, *shared, rekeyed])
    for a,b in zip(got, want):
        for j,o in enumerate(a): torch.testing.assert_close(o, b[j%20], rtol=1e-4, atol=1e-5)
    for i in range(8): assert all(map(equal, got[8+i], seen[i::8]))
    assert state(learn)==was

@pytest.mark.parametrize('kind', made)
def test_what_looks_beside_predictions(kind): alongside(learner(kind), 20, 2)

@pytest.mark.nightly
@pytest.mark.parametrize('kind', made)
def test_a_thousand_predictions_in_each_of_eight_threads(kind):
    "And eight that look, a hundred times each beside the vote"
    alongside(learner(kind), 1000, 200 if kind=='vote' else 25)

def test_a_model_in_training_mode_is_so_again():
    learn = learner()
    learn.model.train()
    learn.model[1].eval()           # frozen statistics, say
    was = state(learn)
    all_at_once([[lambda: learn.recall(n=3), lambda: learn.show_memories(1)]*3 for _ in range(4)])
    assert state(learn)==was and learn.model.training and not learn.model[1].training

def test_pictures_of_one_thread_are_not_the_style_of_another():
    "Sequentially, nested, and where drawing fails"
    was = dict(matplotlib.rcParams)
    one = drawn(plot_counts([5,3,1]))
    got = all_at_once([[lambda: drawn(plot_counts([5,3,1]))]*10 for _ in range(8)])
    assert all(o==one for os in got for o in os) and dict(matplotlib.rcParams)==was
    def fails():
        with pytest.raises(Exception): plot_counts('nonsense')
    all_at_once([[fails, lambda: plot_counts([1,2])]*10 for _ in range(4)])
    with drawing(), drawing(): assert matplotlib.rcParams['font.size']==_small['font.size']
    assert dict(matplotlib.rcParams)==was

def test_what_a_user_sets_meanwhile_stays():
    with matplotlib.rc_context():
        with drawing(): matplotlib.rcParams['lines.linewidth'] = 7.5
        assert matplotlib.rcParams['lines.linewidth']==7.5

def test_off_in_many_threads_is_off_no_longer_than_there():
    learn = learner()
    def go():
        with learn.memory.off(): pass
    was = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try: all_at_once([[go]*300 for _ in range(8)])
    finally: sys.setswitchinterval(was)
    assert learn.memory.head._offs==0 and learn.memory.head.active

def test_own_rows_of_one_thread_are_not_those_of_another():
    learn = learner()
    def ask(): return learn.recall(ds_idx=0, n=4, k=1).row_item.tolist()
    hidden = ask()
    def go():
        with learn.memory.own_rows(): return ask()
    shown = go()
    assert hidden!=shown
    got = all_at_once([[f]*8 for f in (ask, go)*3])
    assert all(o==(hidden,shown)[i%2] for i,os in enumerate(got) for o in os)

def test_random_numbers_are_as_they_were():
    was = torch.get_rng_state().tolist(),random.getstate()
    def go():
        with undisturbed(): torch.rand(3), random.random()
    all_at_once([[go]*50 for _ in range(8)])
    assert (torch.get_rng_state().tolist(),random.getstate())==was
