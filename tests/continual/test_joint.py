"Joint training is measured on each experience, so that its average accuracy is that of the stream's"
import pytest
from helpers.digit_streams import digit_loaders, digit_stream, stream_learner
from helpers.learners import quietly
from helpers.tensors import close
import memo.continual.stream_fit
from memo.data.streams import split_stream

def by_domain():
    dls = digit_loaders(classes=6)
    of = [['a' if i%4 else 'b' for i in range(len(dl.dataset))] for dl in dls.loaders]
    return split_stream(dls, by='domain', domain=of)

@pytest.mark.parametrize('make', [digit_stream, by_domain])
def test_joint_training(make):
    s = make()
    j = s.joint()
    assert len(j)==1 and len(j[0].train.dataset)==300 and j.joint().of is s
    learn = stream_learner(j)
    r = quietly(learn, learn.fit_stream, j, 3, measure=9)
    own = [quietly(learn, learn.get_preds, dl=s[i][2]) for i in range(len(s))]
    each = [float((p.argmax(1)==y).float().mean()) for p,y in own]
    close(r.matrix[0], each)
    close(r.average_accuracy, sum(each)/len(each))
    assert r.names==s.names and r.forgetting==0 and 'all experiences' in repr(r)
    assert max(each)-min(each)>.01 and r.valid_matrix.shape==(1,len(s))
    rows = [a.mean() for *_,a in r.measured()]
    assert len(rows)>2
    close(r.anytime_accuracy, sum(rows)/len(rows))

def test_an_item_of_two_experiences_is_one():
    s = digit_stream()
    s.parts[0][1] = s.parts[0][0].clone()
    assert len(s.joint()[0].train.dataset)==len({*s.parts[0][0].tolist(), *s.parts[0][2].tolist()})
