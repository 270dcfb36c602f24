"plot_units: what is drawn is what the layer does, and nothing moves for it"
import pytest, torch
from fastai.vision.all import DataLoaders, Learner, nn
from memo.core import MemoError
from memo.data.tensors import TensorDL
from memo.layers.memory_linear import MemoryLinear
from memo.plots.memory_linear import its_inputs, memory_layer, plot_units, winners

def layer_of(n=2, **kw):
    torch.manual_seed(0)
    l = MemoryLinear(n, 3, key_mem_units=5, **kw)
    l(torch.randn(30, n))
    return l
def state(m): return {k:v.clone() for k,v in m.state_dict().items()}
def learner(n=6, shape=()):
    torch.manual_seed(0)
    x,y = torch.randn(20, n),torch.arange(20)%3
    dls = DataLoaders(*(TensorDL(x, y, bs=6, vocab=['a $','b','c']) for _ in range(2)))
    return Learner(dls, nn.Sequential(nn.Linear(n, 4), nn.Dropout(.5), layer_of(4)), loss_func=nn.CrossEntropyLoss())

@pytest.mark.parametrize('kw', [{},dict(distance='euclidean'),dict(shared_keys=False),dict(psi='sign')])
def test_a_plane_a_table_and_wins(kw):
    l,x = layer_of(**kw),torch.randn(50, 2)
    was = state(l)
    assert len(plot_units(l, x).axes)==2
    fig = plot_units(l, x, torch.arange(50)%3)
    titles = [a.get_title() for a in fig.axes]
    assert titles[0].startswith('which unit') and titles[1].startswith('share of each class')
    fig._repr_png_()
    assert l.training and all(torch.equal(was[k], v) for k,v in l.state_dict().items())

def test_the_table_says_who_answers():
    l,x,y = layer_of(),torch.randn(200, 2),torch.arange(200)%3
    ax = plot_units(l, x, y).axes[1]
    won = winners(l, x, 0)
    units = [int(t.get_text()) for t in ax.get_xticklabels()]
    t = ax.images[0].get_array()
    for i,u in enumerate(units):
        for c in range(3): assert t[c,i]==pytest.approx(float((won[y==c]==u).float().mean()), abs=1e-6)
    assert sorted(units)==sorted(won.unique().tolist())

def test_of_a_learner_it_is_what_the_layer_is_given():
    learn = learner()
    want = learn.model[0](torch.cat([b[0] for b in learn.dls.valid]))       # without dropout
    was,rng = state(learn.model),torch.get_rng_state()
    x,y = its_inputs(learn, learn.model[2], learn.dls.valid)
    assert x.shape==(20,4) and torch.equal(y, torch.arange(20)%3)
    torch.testing.assert_close(x, want.detach())
    fig = plot_units(learn)
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()]==['a $','b','c']
    fig._repr_png_()
    assert len(plot_units(learn, learn.dls.train).axes)==3 and learn.model.training
    assert torch.equal(rng, torch.get_rng_state()) and not learn.model[2]._forward_pre_hooks
    assert all(torch.equal(was[k], v) for k,v in learn.model.state_dict().items())

def test_mistakes_are_told():
    learn = learner()
    for args in ((torch.zeros(3, 6),),(torch.zeros(3, 6),torch.zeros(3).long()),(None,torch.zeros(20).long())):
        with pytest.raises(MemoError, match='of a Learner a loader is drawn, with its labels, found Tensor'):
            plot_units(learn, *args)
    l = layer_of()
    for args,line in (((l,),'x is NoneType'), ((l,torch.zeros(3, 4)),r'x is \[3, 4\]; inputs of the layer, \[N,2\]'),
                      ((l,torch.zeros(0, 2)),r'x is \[0, 2\]'), ((nn.Linear(2, 2),torch.zeros(3, 2)),'no MemoryLinear'),
                      ((l,torch.zeros(3, 2),torch.zeros(2)),r'y \[2\]; a class from 0 on for each of 3')):
        with pytest.raises(MemoError, match=line): plot_units(*args)
    with pytest.raises(MemoError, match='output: 3, and the layer has 3; 0 to 2'):
        plot_units(layer_of(shared_keys=False), torch.zeros(3, 2), output=3)
    two = nn.Sequential(layer_of(), layer_of(3))
    with pytest.raises(MemoError, match='2 layers are MemoryLinear'): plot_units(two, torch.zeros(3, 2))
    assert memory_layer(two, '1') is two[1]
