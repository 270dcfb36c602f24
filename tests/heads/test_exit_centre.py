"""Early features have a large part in common: a memory that is there to let rows leave takes it off them, whatever its
bank"""
import copy, pytest, timm, torch
from fastai.vision.all import CrossEntropyLossFlat,DataLoaders,Learner,set_seed
from torch.nn import functional as F
from memo.banks.base import Bank
from memo.banks.classes import ClassBank
from memo.banks.key_value import CachedBank,TrainableBank
from memo.banks.slots import SlotBank
from memo.data.tensors import TensorDL
from memo.heads.gate import ExitHead,GateHead
from memo.training.memory_callback import MemoryCallback

banks = dict(cached=lambda: CachedBank(8, n_classes=2, dim=5), slots=lambda: SlotBank(8, n_classes=2, policy='fifo'),
             trainable=lambda: TrainableBank(8, n_classes=2, dim=5), classes=lambda: ClassBank(2, capacity=8))

@pytest.fixture(params=banks)
def head(request): return ExitHead(banks[request.param]()).eval()

def offered(head, raw, item=None):
    "What a training step does: features as the head gives them go to the bank, and the head is told"
    z = head.features(raw)
    head.bank.write(z, torch.arange(len(z))%2, item=item)
    head.wrote(z)
    return z

def test_nothing_is_taken_off_before_anything_is_written(head):
    x = torch.randn(3, 5)
    assert head.features(x) is x and head.bank.centre is None
    assert not hasattr(GateHead(CachedBank(8)).bank, 'centre')

def test_the_mean_of_what_was_written_is_taken_off(head):
    "The first batch's mean at once, then it moves by a tenth of the way at least, as a running mean that starts there"
    g,want = torch.Generator().manual_seed(0),torch.zeros(5)
    for i in range(1, 15):
        raw = 7+torch.randn(4, 5, generator=g)
        offered(head, raw)
        want = want+max(1/i, .1)*(raw.mean(0)-want)
        assert torch.allclose(head.features(raw), raw-want, atol=1e-5)

def test_features_that_are_not_finite_move_nothing(head):
    head.bank.write(torch.ones(1, 5), torch.tensor([0]))
    head.wrote(torch.tensor([[1.]*5, [float('nan')]*5]))
    assert torch.equal(head.bank.centre, torch.ones(5))
    head.wrote(torch.full((1,5), float('inf')))
    assert torch.equal(head.bank.centre, torch.ones(5))

def test_it_goes_along_in_states_and_copies(head):
    early = copy.deepcopy(head)         # made before there was one: a tool pairs buffers by position
    offered(head, torch.full((2,5), 3.))
    assert [k for k,_ in early.named_buffers()]==[k for k,_ in head.named_buffers()]
    new = ExitHead(type(head.bank)(**head.bank.config()))
    new.load_state_dict(head.state_dict())
    for o in (new, copy.deepcopy(head)): assert torch.equal(o.bank.centre, torch.full((5,), 3.))

@pytest.mark.parametrize('every', [True, False])
@pytest.mark.parametrize('kind', ['cached','slots','trainable'])
def test_rows_that_are_all_encoded_anew_get_a_new_centre(kind, every):
    "Of some of them it cannot be another: the others would be left with the old one"
    head = ExitHead(banks[kind]())
    g = torch.Generator().manual_seed(0)
    raw,item = 3+torch.randn(6, 5, generator=g),torch.arange(6)
    offered(head, raw, item)
    was,now = head.bank.centre.clone(),5+torch.randn(6, 5, generator=g)
    n = 6 if every else 4
    assert head.bank.rekey(head.before_rekey(head.features(now[:n]), item[:n]), item[:n])==n
    assert torch.allclose(head.bank.centre, now.mean(0) if every else was, atol=1e-5)
    assert torch.allclose(F.normalize(head.bank.stored()[0][:n]), F.normalize(now[:n]-head.bank.centre), atol=1e-5)

def learner(head, at, bank=None, **kwargs):
    set_seed(0)
    g = torch.Generator().manual_seed(0)
    x,y = torch.rand(64, 3, 32, 32, generator=g),torch.arange(64)%2
    dls = DataLoaders(TensorDL(x, y, bs=16, shuffle=True), TensorDL(x[:16], y[:16], bs=16, vocab=range(2)),
                      device='cpu')
    bank = CachedBank(64) if bank is None else bank
    return Learner(dls, timm.create_model('resnet10t', num_classes=2), loss_func=CrossEntropyLossFlat(),
                   cbs=MemoryCallback(bank, head=head, at=at, loss_weight=.2, **kwargs))

@pytest.mark.parametrize('bank', [CachedBank(64), SlotBank(64, policy='fifo')], ids=['cached','slots'])
def test_an_early_exit_stores_and_looks_up_centred_features(bank):
    """Cosines at layer1 are near 1 in an untrained network; centred they have a mean near 0, and an image finds its own
    row in the bank"""
    learn = learner('exit', 'layer1', copy.deepcopy(bank))
    with learn.no_bar(),learn.no_logging(): learn.fit(2, 1e-4)
    learn.memory.rekey()
    z,head = learn.memory.collect(learn.dls.train, memory=True).z,learn.memory.head
    def mean_cosine(o): return float((F.normalize(o)@F.normalize(o).T).mean())
    assert mean_cosine(z+head.bank.centre)>.8 and abs(mean_cosine(z))<.3
    nearest = head.bank.read(z, 1).similarity       # each finds its own row
    assert torch.allclose(nearest, torch.ones_like(nearest), atol=1e-3)

def test_a_gate_in_front_of_the_classifier_takes_cosines_of_features_as_they_are():
    learn = learner('dual', None)
    with learn.no_bar(),learn.no_logging(): learn.fit(1, 1e-4)
    x = torch.rand(2, 512)
    assert learn.memory.head.features(x) is x

def test_an_averaged_copy_takes_the_mean_off_that_its_rows_are_without():
    "The first forward of a copy that a tool averaged into is as the second"
    learn = learner('exit', 'layer1', threshold=.5)
    with learn.no_bar(),learn.no_logging(): learn.fit(1, 1e-3)
    copied = torch.optim.swa_utils.AveragedModel(learn.model, use_buffers=True)
    with learn.no_bar(),learn.no_logging(): learn.fit(1, 1e-2)
    copied.update_parameters(learn.model)
    x = learn.dls.valid.one_batch()[0]
    with torch.no_grad(): a,b = copied.eval()(x),copied(x)
    assert torch.equal(a, b)

def test_a_copy_made_before_the_first_batch_can_be_averaged_into():
    learn = learner('exit', 'layer1')
    copied = torch.optim.swa_utils.AveragedModel(learn.model, use_buffers=True)
    with learn.no_bar(),learn.no_logging(): learn.fit(1, 1e-3)
    copied.update_parameters(learn.model)
    with torch.no_grad(): assert copied.eval()(learn.dls.valid.one_batch()[0]).isfinite().all()

@pytest.mark.parametrize('kind', banks)
def test_it_goes_where_the_rows_go(kind, tmp_path):
    "Into files, from which a new head takes it, and into compressed banks; other rows bring their own, or none"
    head = ExitHead(banks[kind]())
    raw = 3+torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    offered(head, raw)
    head.bank.save(tmp_path/'b.safetensors')
    for b in (Bank.load(tmp_path/'b.safetensors'), head.bank.compress(mb=8)):
        assert torch.equal(ExitHead(b).features(raw), head.features(raw))
    other = ExitHead(banks[kind]())
    other.bank.load_state_dict(head.bank.state_dict())
    assert torch.equal(other.features(raw), head.features(raw))
    plain = banks[kind]()
    plain.write(raw, torch.arange(6)%2)
    head.bank.load_state_dict(plain.state_dict())
    assert torch.equal(head.features(raw), raw) and len(head.bank)==len(plain)

def test_a_state_without_it_leaves_the_bank_empty(head):
    offered(head, torch.randn(4, 5))
    state = head.bank.state_dict()
    del state['centre']
    with pytest.warns(UserWarning, match='lacks centre'): banks_like(head).load_state_dict(state, strict=False)

def banks_like(head): return type(head.bank)(**head.bank.config())
