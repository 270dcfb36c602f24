"Items whose class is unknown (-1, which the loss leaves out), with every continual method"
import pytest, torch
from fastai.vision.all import Callback, CrossEntropyLossFlat, Learner, SGD, Tensor, set_seed
from helpers.digit_streams import digit_net, digit_stream
from helpers.learners import quietly
from helpers.tensors import close, draw
import memo.continual.stream_fit
from memo.continual.icarl import icarl_loss
from memo.registry import find, known

methods = [k for k,p in known('callback').items() if p.facts.get('continual')]

class Unknown(Callback):
    "Of each fifth item of a batch the class is not known"
    order = -100
    def before_batch(self):
        y = self.y.as_subclass(Tensor)
        if self.training: self.learn.yb = torch.where(torch.arange(len(y))%5==0, -1, y),

def after_stream(**kw):
    stream = digit_stream()
    set_seed(0)
    learn = Learner(stream.dls, digit_net(6), loss_func=CrossEntropyLossFlat(ignore_index=-1), opt_func=SGD, lr=.05,
                    **kw)
    return learn,quietly(learn, 'fit_stream', stream, 1)

@pytest.mark.parametrize('name,kw', [*((o,{}) for o in methods), ('EWC',dict(labels='empirical')),
                                     ('EWC',dict(labels='empirical', every=3))])
def test_a_stream_goes_on(name, kw):
    learn,res = after_stream(cbs=[Unknown(), find('callback', name)(**kw)])
    assert all(p.isfinite().all() for p in learn.model.parameters()) and len(res)==3

def test_they_are_not_in_the_loss_of_icarl():
    z,said,y = draw(5, 6).double(),draw(5, 4, seed=1).double(),torch.tensor([4,-1,1,2,-1])
    old,new,ok = torch.tensor([0,1]),torch.tensor([2,4]),y>=0
    for o in ((), (old,said)):
        close(icarl_loss(z, y, new, *o), icarl_loss(z[ok], y[ok], new, *[o[0],o[1][ok]] if o else ()), 1e-12)
    assert float(icarl_loss(z, torch.full((5,), -1), new))==0
