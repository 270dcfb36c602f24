"Pictures of a gate: the curves are the figures of the epochs, and of the table of thresholds"
import numpy as np, pandas as pd, pytest
from contracts.made import learner
from helpers.errors import err
from helpers.learners import quietly
from fastai.vision.all import L, accuracy, mk_metric
from memo.banks.key_value import CachedBank
from memo.banks.slots import SlotBank
from memo.plots.gate import plot_coverage, plot_dual_path
from memo.training.memory_callback import MemoryCallback

@pytest.fixture(scope='module')
def learn():
    learn = learner(CachedBank(20), 'dual', threshold=.6, loss_weight=.3)
    learn.metrics = L(accuracy).map(mk_metric)
    quietly(learn, learn.fit, 3, 1e-2)
    return learn

def curves(ax): return {l.get_label():l.get_ydata() for l in ax.lines if not l.get_label().startswith('_')}

def test_four_panels(learn):
    rec = learn.recorder
    df = pd.DataFrame([list(o) for o in rec.values], columns=[o for o in rec.metric_names[1:] if o!='time'])
    fig = plot_dual_path(learn)
    a,b,c,d = map(curves, fig.axes)
    for got,col in ((a['train'],'train_loss'), (a['validation'],'valid_loss'), (b['memory loss'],'memory_loss'),
                    (c['train'],'train_accuracy'), (c['validation'],'accuracy'), (d['memory usage'],'memory_usage')):
        np.testing.assert_allclose(got, df[col].astype(float))
    assert fig._suptitle.get_text()=='CachedBank: 20/20 rows, full'

def test_of_a_history_in_stages(learn, tmp_path):
    df = pd.DataFrame(dict(stage=['a','a','b'], epoch=[0,1,0], train_loss=[3.,2,1], valid_loss=[3.,2,2],
                           train_accuracy=[.1,.2,.3], accuracy=[.1,.3,.4], memory_usage=[0,.5,.6],
                           early_usage=[0,.1,.2]))
    df.to_csv(tmp_path/'history.csv', index=False)
    assert "say which with memory=" in err(plot_dual_path, df)
    assert "did you mean 'early'" in err(plot_dual_path, df, 'erly')
    for o in (df, tmp_path/'history.csv'):
        fig = plot_dual_path(o, 'early')
        assert curves(fig.axes[3])['memory usage'].tolist()==[0,.1,.2] and fig._suptitle is None
        assert 'no memory loss was recorded' in [t.get_text() for t in fig.axes[1].texts]
        assert [l.get_xdata()[0] for l in fig.axes[0].lines if l.get_linestyle()==':']==[2.5]

def test_no_memory_that_answers():
    other = learner(SlotBank(8, policy='fifo'), 'vote')
    quietly(other, other.fit, 1, 1e-2)
    assert "head='dual'" in err(plot_dual_path, other)
    new = learner(SlotBank(8, policy='fifo'), 'dual')
    assert 'no epoch' in plot_dual_path(new).axes[0].texts[0].get_text()

def test_after_a_prediction():
    "fastai's recorder has no epoch of the training then"
    learn = learner(CachedBank(20), 'dual')
    quietly(learn, learn.fit, 1, 1e-2)
    with learn.no_bar(), learn.no_logging(): learn.get_preds()
    assert 'before that' in err(plot_dual_path, learn)

def test_coverage(learn):
    df = learn.memory.coverage()
    a,b = plot_coverage(df).axes
    for label,col in {'gated model, all':'accuracy', 'mixed softly, all':'soft_accuracy',
                      'memory, what it answers':'memory_accuracy', 'network, the same':'network_accuracy'}.items():
        np.testing.assert_allclose(curves(a)[label], df[col])
    assert curves(b)['harmful'].tolist()==df.harmful.tolist() and curves(b)['helpful'].tolist()==df.helpful.tolist()
    at = [l for l in a.lines if l.get_linestyle()==':']
    assert len(at)==1 and at[0].get_xdata()[0]==df.coverage[df.now].iloc[0] and at[0].get_label()=='threshold 0.600'
    assert 'is missing' in err(plot_coverage, pd.DataFrame(dict(a=[1])))
