"Which way a monitored column is better: known from the metric or said, never guessed from a name"
import pytest, torch, torch.nn.functional as F
from sklearn import metrics as skm
from fastai import metrics as fm
from fastai.vision.all import (AccumMetric, AvgMetric, Callback, CrossEntropyLossFlat, LossMetric, Metric, ValueMetric,
                               accuracy, mk_metric, nn, set_seed, skm_to_fastai)
from fastcore.basics import partialler
from contracts.made import learner as small
from helpers.errors import err
from helpers.learners import quietly
from memo.banks.slots import SlotBank
from memo.metrics.multiclass import balanced_accuracy, ece, shot_metrics
from memo.metrics.multilabel import MultiMetric, macro_ap, macro_auc
from memo.training.monitor import lower_is_better, progress_columns, read_monitor
from memo.training.stages import Stage, check_stages, fit_stages

lower = [fm.error_rate, fm.mse, fm.mae, fm.rmse, fm.msle, fm.exp_rmspe, fm.Perplexity(), fm.HammingLoss(),
         fm.BrierScore(),
         fm.HammingLossMulti(), fm.BrierScoreMulti(), LossMetric('kl'), nn.CrossEntropyLoss(), CrossEntropyLossFlat(),
         F.mse_loss, ece, skm_to_fastai(skm.mean_absolute_error, is_class=False),
         skm_to_fastai(skm.max_error, is_class=False),
         skm_to_fastai(skm.mean_tweedie_deviance, is_class=False), skm_to_fastai(skm.zero_one_loss),
         skm_to_fastai(skm.davies_bouldin_score), partialler(fm.mse)]
higher = [accuracy, fm.accuracy_multi, partialler(fm.top_k_accuracy, k=2), fm.foreground_acc, fm.Dice(), fm.DiceMulti(),
          fm.JaccardCoeff(), fm.JaccardCoeffMulti(), fm.CorpusBLEUMetric(), fm.R2Score(), fm.ExplainedVariance(),
          fm.PearsonCorrCoef(), fm.SpearmanCorrCoef(), fm.F1Score(), fm.FBeta(2), fm.RocAuc(), fm.RocAucMulti(),
          fm.APScoreBinary(), fm.APScoreMulti(), fm.BalancedAccuracy(), fm.CohenKappa(), fm.Jaccard(), fm.Precision(),
          fm.Recall(), fm.MatthewsCorrCoef(), fm.MatthewsCorrCoefMulti(), fm.F1ScoreMulti(), fm.PrecisionMulti(),
          balanced_accuracy, macro_auc, macro_ap, *shot_metrics([200,50,3])]

def test_known_metrics():
    for m in lower: assert lower_is_better(mk_metric(m) if not isinstance(m, nn.Module) else m) is True, m
    for m in higher: assert lower_is_better(mk_metric(m)) is False, getattr(m, 'name', m)

def mae(p, y): return (p.argmax(1)==y).float().mean()          # called so, and better where it is high
def accuracy_error(p, y): return (p.argmax(1)==y).float().mean()
def loss(p, y): return 0.
class Score(Metric):
    value,name = 1.,'score'

@pytest.mark.parametrize('f', [mae, accuracy_error, loss])
def test_a_name_says_nothing(f):
    for m in (AvgMetric(f), AccumMetric(f), skm_to_fastai(f), MultiMetric(f, 'mae'), ValueMetric(f, 'error_rate'),
              Score()):
        assert lower_is_better(m) is None
    assert lower_is_better(AvgMetric(fm.mae)) is True

def test_what_says_so_itself():
    def f(p, y): return 0.
    f.lower_is_better = True
    class G(Score): lower_is_better = False
    class T(Score): higher_is_better = False           # as torchmetrics says it
    assert lower_is_better(AvgMetric(f)) is lower_is_better(AvgMetric(partialler(f))) is True
    assert lower_is_better(G()) is False
    assert lower_is_better(T()) is True

def made(*metrics, cbs=()):
    set_seed(0)
    learn = small(SlotBank(60, policy='fifo'), 'vote', cbs=list(cbs))
    learn.metrics = list(metrics)
    return learn

def test_an_unknown_way_is_refused_before_training():
    learn = made(mae)
    assert "is not known whether low or high is better; 'lowest mae' or 'highest mae' is accepted" in err(
        quietly, learn, fit_stages, learn, [Stage('a', 1, 1e-2, monitor='mae')])
    assert not hasattr(learn.recorder, 'values') or not len(learn.recorder.values)
    assert '\n' not in err(check_stages, learn, [Stage('a', 1, 1e-2, monitor='mae')])
    assert 'did you mean' in err(check_stages, learn, [Stage('a', 1, 1e-2, monitor='lowest ma')])
    for o in ('lowest','highest',''): err(check_stages, learn, [Stage('a', 1, 1e-2, monitor=o)])

@pytest.mark.parametrize('metric,monitor,best', [(fm.mae, 'mae', 'min'), (mae, 'highest mae', 'max'),
                                                 (mae, 'lowest mae', 'min'),
    (fm.rmse, '_rmse', 'min'), (accuracy, 'accuracy', 'max'), (skm_to_fastai(skm.hamming_loss), 'hamming_loss', 'min'),
    (fm.CohenKappa(), 'cohen_kappa_score', 'max'), (accuracy, 'memory_hit', 'max'),
    (accuracy, 'highest valid_loss', 'max')])
def test_the_best_epoch_is_kept(metric, monitor, best):
    if metric in (fm.mae, fm.rmse):       # of one-hot answers
        f = fm.mae if metric is fm.mae else metric.func
        def of(p, y): return f(p.softmax(1), F.one_hot(y, 10).float())
        of.lower_is_better,of.__name__ = lower_is_better(metric if metric is fm.rmse else AvgMetric(metric)),monitor
        metric = of
    learn = made(metric)
    states = []
    class Snap(Callback):
        order = 70
        def after_epoch(self): states.append({k:v.clone() for k,v in self.learn.model.state_dict().items()})
    h = quietly(learn, fit_stages, learn, [Stage('a', 4, 5e-2, monitor=monitor)], cbs=Snap())
    col = h[monitor.split(' ')[-1]].astype(float)
    want = states[int(getattr(col, f'idx{best}')())]
    assert all(torch.equal(v, want[k]) for k,v in learn.model.state_dict().items())

def test_figures_of_training_too():
    "Recorder(train_metrics=True) has other columns: each is read from where it stands"
    learn = made(accuracy)
    learn.recorder.train_metrics = True
    cols = progress_columns(learn)
    assert 'valid_accuracy' in cols and 'accuracy' not in cols
    assert read_monitor('train_accuracy', cols)==('train_accuracy',False)
    h = quietly(learn, fit_stages, learn, [Stage('a', 3, 5e-2, monitor='valid_accuracy')])
    now = quietly(learn, 'validate')
    assert h.valid_accuracy.max()==pytest.approx(float(now[-1]), abs=1e-6)

def test_a_column_that_is_called_so():
    cols = {'lowest mae':AvgMetric(accuracy), 'mae':AvgMetric(mae)}
    assert read_monitor('lowest mae', cols)==('lowest mae',False) and read_monitor('highest mae', cols)==('mae',False)
