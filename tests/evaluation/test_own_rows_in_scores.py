"A test set of items that are stored is scored as predictions of them are: without their own rows"
import torch
from fastai.vision.all import CrossEntropyLossFlat, DataLoaders, Learner, accuracy, set_seed
from helpers.learners import quietly
from memo.banks.slots import SlotBank
from memo.data.longtail import digits_lt
from memo.evaluation.evaluate import Answers, mixture
from memo.experiment.config import load_config
from memo.models.small import small_cnn
from memo.training.memory_callback import MemoryCallback

def test_the_row_of_the_table_is_what_is_predicted(tmp_path):
    set_seed(0)
    dls = digits_lt(n_max=30, ratio=3, valid=5, test=5)
    learn = Learner(dls, small_cnn(1, 10), loss_func=CrossEntropyLossFlat(), metrics=accuracy,
                    cbs=MemoryCallback(SlotBank(300, policy='fifo'), head='vote', k=5))
    quietly(learn, 'fit', 2, 1e-2)
    ds = dls.train.dataset
    learn.dls = DataLoaders(dls.train, dls.valid, dls.valid.new(ds.subset(slice(20, 60), 1)), device='cpu')
    (tmp_path/'e.yaml').write_text('data: {name: digits_lt}\nmodel: small_cnn\n'
                                   'memory: {bank: SlotBank, head: vote, k: 5}\n')
    answers = Answers(learn, load_config(tmp_path/'e.yaml'))
    c = answers.collected('test')
    assert torch.equal(c.own_item, ds.items[20:60]) and answers.collected('valid').own_item is None
    head = learn.memory.head
    got = mixture(head, c.logits, c.z, c.own_item, c.own_group)
    torch.testing.assert_close(got.softmax(1), quietly(learn, 'get_preds', ds_idx=2)[0], rtol=1e-4, atol=1e-5)
    assert (got-mixture(head, c.logits, c.z)).abs().max()>1e-3
