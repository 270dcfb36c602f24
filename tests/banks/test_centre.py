"""Early features have a large part in common: a memory that is there to let rows leave takes it off them"""
import pytest,timm,torch
from fastai.vision.all import CrossEntropyLossFlat,DataLoaders,Learner,set_seed
from torch.nn import functional as F
from memo.banks.base import Bank
from memo.banks.key_value import CachedBank,TrainableBank
from memo.data.tensors import TensorDL
from memo.training.memory_callback import MemoryCallback

@pytest.fixture(params=[CachedBank, TrainableBank])
def bank(request): return request.param(8, n_classes=2, dim=5)

def test_nothing_is_taken_off_where_nothing_is_followed(bank):
    x = torch.randn(3, 5)
    bank.write(x, torch.tensor([0,1,0]))
    assert bank.centred(x) is x

def test_the_mean_of_what_was_written_is_taken_off(bank):
    "The first batch's mean at once, then it moves by a tenth of the way at least, as a running mean that starts there"
    g,want = torch.Generator().manual_seed(0),torch.zeros(5)
    for i in range(1, 15):
        raw = 7+torch.randn(4, 5, generator=g)
        bank.write(z := bank.centred(raw), torch.tensor([0,1,0,1]))
        bank.recentre(z)
        want = want+max(1/i, .1)*(raw.mean(0)-want)
        assert torch.allclose(bank.centred(raw), raw-want, atol=1e-5)

def test_features_that_are_not_finite_move_nothing(bank):
    bank.write(torch.ones(1, 5), torch.tensor([0]))
    bank.recentre(torch.tensor([[1.]*5, [float('nan')]*5]))
    assert torch.equal(bank.centre, torch.ones(5))
    bank.recentre(torch.full((1,5), float('inf')))
    assert torch.equal(bank.centre, torch.ones(5))

def test_it_is_saved_with_the_rows_and_emptied_with_them(bank, tmp_path):
    bank.write(torch.randn(2, 5), torch.tensor([0,1]))
    bank.recentre(torch.full((2,5), 3.))
    bank.save(tmp_path/'b.safetensors')
    assert torch.equal(Bank.load(tmp_path/'b.safetensors').centre, torch.full((5,), 3.))
    bank.reset()
    assert not bank.centre.any()

@pytest.mark.parametrize('every', [True, False])
def test_rows_that_are_all_encoded_anew_get_a_new_centre(bank, every):
    "Of some of them it cannot be another: the others would be left with the old one"
    g = torch.Generator().manual_seed(0)
    raw,item = 3+torch.randn(6, 5, generator=g),torch.arange(6)
    bank.write(raw, torch.arange(6)%2, item=item)
    bank.recentre(raw)
    was,now = bank.centre.clone(),5+torch.randn(6, 5, generator=g)
    n = 6 if every else 4
    assert bank.rekey(bank.centred(now[:n]), item[:n])==n
    assert torch.allclose(bank.centre, now.mean(0) if every else was, atol=1e-5)
    assert torch.allclose(bank.stored()[0][:n], F.normalize(now[:n]-bank.centre), atol=1e-5)

def learner(head, at, **kwargs):
    set_seed(0)
    g = torch.Generator().manual_seed(0)
    x,y = torch.rand(64, 3, 32, 32, generator=g),torch.arange(64)%2
    dls = DataLoaders(TensorDL(x, y, bs=16, shuffle=True), TensorDL(x[:16], y[:16], bs=16, vocab=range(2)),
                      device='cpu')
    return Learner(dls, timm.create_model('resnet10t', num_classes=2), loss_func=CrossEntropyLossFlat(),
                   cbs=MemoryCallback(CachedBank(64), head=head, at=at, loss_weight=.2, **kwargs))

def test_an_early_exit_stores_and_looks_up_centred_features():
    """Cosines at layer1 are near 1 in an untrained network; centred they have a mean near 0, and an image finds its own
    row in the bank"""
    learn = learner('exit', 'layer1')
    with learn.no_bar(),learn.no_logging(): learn.fit(2, 1e-4)
    learn.memory.rekey()
    z,bank = learn.memory.collect(learn.dls.train, memory=True).z,learn.memory.bank
    raw = z+bank.centre
    def mean_cosine(o): return float((F.normalize(o)@F.normalize(o).T).mean())
    assert mean_cosine(raw)>.8 and abs(mean_cosine(z))<.3
    nearest = bank.read(z, 1).similarity       # each finds its own row
    assert torch.allclose(nearest, torch.ones_like(nearest), atol=1e-3)

def test_a_gate_in_front_of_the_classifier_takes_cosines_of_features_as_they_are():
    learn = learner('dual', None)
    with learn.no_bar(),learn.no_logging(): learn.fit(1, 1e-4)
    assert learn.memory.bank.centre is None
