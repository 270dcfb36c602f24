"Predictions of a model in training mode (dropout switched on) have the memory's part; trainings do not"
import warnings
import pytest, torch
from fastai.callback.preds import MCDropoutCallback
from fastai.vision.all import Callback, CrossEntropyLossFlat, Learner, accuracy, nn, set_seed
from fastcore.basics import AttrDict
from helpers.learners import quietly
from memo.banks.classes import ClassBank
from memo.banks.slots import SlotBank
from memo.data.longtail import digits_lt
from memo.heads.attach import attach
from memo.heads.mixture import VoteHead
from memo.training.memory_callback import MemoryCallback

def net(p=0.): return nn.Sequential(nn.Flatten(), nn.Linear(256,24), nn.ReLU(), nn.Dropout(p), nn.Linear(24,10))
def learner(head='vote', bank=None, p=0., cbs=(), k=5):
    set_seed(0)
    learn = Learner(digits_lt(n_max=30, ratio=5, valid=5, test=5), net(p), loss_func=CrossEntropyLossFlat(),
                    metrics=accuracy,
                    cbs=[MemoryCallback(bank or SlotBank(200, policy='fifo'), head=head, k=k), *cbs])
    quietly(learn, 'fit', 2, 1e-2)
    return learn

class TrainMode(Callback):
    "The whole model in training mode while it predicts"
    order = 20
    def before_validate(self): self.learn.model.train()

@pytest.mark.parametrize('bank,head', [(SlotBank, 'vote'), (ClassBank, 'lda'), (ClassBank, 'prototype')])
def test_a_prediction_without_gradient_votes(bank, head):
    learn = learner(head, SlotBank(200, policy='fifo') if bank is SlotBank else ClassBank(10, capacity=16))
    m,x = learn.model,learn.dls.valid.one_batch()[0]
    with torch.no_grad(): want = m.eval()(x)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter('error')
        torch.testing.assert_close(m.train()(x), want)
    with learn.memory.off(), torch.no_grad(): plain = m(x)
    assert not torch.allclose(plain, want)

def test_one_with_gradient_says_once_that_it_does_not():
    m = learner().model.train()
    x = torch.rand(4,1,16,16)
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('default')    # as Python says a thing: once for each place
        for _ in range(3): m(x).sum().backward()
    w = [o for o in w if 'answers without the vote' in str(o.message)]
    assert len(w)==1 and '\n' not in str(w[0].message)
    with warnings.catch_warnings():         # an empty memory has nothing to leave out
        warnings.simplefilter('error')
        attach(o := net(), VoteHead(SlotBank(5), k=3))
        o.train()(x)

@pytest.mark.parametrize('cb', [TrainMode, MCDropoutCallback])
def test_fastais_predictions_with_dropout(cb):
    learn = learner(p=.3)
    def ask(seed):
        torch.manual_seed(seed)
        return quietly(learn, 'get_preds', cbs=cb())[0]
    a,b = ask(1),ask(2)
    with learn.memory.off(): plain = ask(1)
    assert torch.equal(a, ask(1)) and not torch.equal(a, b)         # dropout is on
    assert (a-plain).abs().max()>.05

@pytest.mark.parametrize('f', ['get_preds','validate'])
def test_nothing_is_replayed_in_predictions(f):
    learn = learner('replay', ClassBank(10, capacity=8), k=3)
    assert int(learn.memory.bank.draws)>0
    draws,seen = int(learn.memory.bank.draws),[]
    class See(TrainMode):
        def after_pred(self): seen.append(len(self.pred)==len(self.y))
    quietly(learn, f, cbs=See())
    assert seen and all(seen) and int(learn.memory.bank.draws)==draws

def test_training_is_of_the_network_alone():
    "Also where a callback runs the model without gradient inside the step"
    class Probe(Callback):
        run_valid = False
        def after_pred(self):
            with torch.no_grad(): got.append(torch.equal(self.learn.model(self.x), self.pred))
    got = []
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        warnings.filterwarnings('ignore', category=FutureWarning)
        learner(cbs=[Probe()])
    assert got and all(got)

def fitted(h, **kw): return h.fit(kw)
def test_rows_that_are_nan_decide_nothing():
    "Neither features nor outputs of a damaged image; where all are, it is said, and a training goes on as it was"
    torch.manual_seed(0)
    y = torch.arange(60)%3
    z = 2*torch.eye(3, 6)[y]+torch.randn(60, 6)
    bank = SlotBank(60, policy='fifo')
    bank.write(z, y)
    lo = torch.randn(60, 3)
    for make in (lambda: VoteHead(bank, k=5), lambda: VoteHead(bank, k=5, whiten=True)):
        want = fitted(make(), logits=lo[1:], z=z[1:], y=y[1:], own_item=y[1:])
        bad = lo.clone()
        bad[0,1] = float('nan')
        assert fitted(h := make(), logits=bad, z=z, y=y, own_item=y)==pytest.approx(want)
        was = h.chosen()
        none = lo*float('nan')
        with pytest.raises(ValueError, match='all 60 validation rows hold NaN'): fitted(h, logits=none, z=z, y=y)
        assert h.refit(AttrDict(logits=lo*float('nan'), z=z, y=y))=={} and h.chosen()==was
        q = z[:4].clone()
        q[2] = float('nan')
        got,alone = h.mixed(lo[:4], q),h.mixed(lo[:4], z[:4])
        torch.testing.assert_close(got[[0,1,3]], alone[[0,1,3]])
        torch.testing.assert_close(got[2], lo[2].log_softmax(0))        # the network's own answer
