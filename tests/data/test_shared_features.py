"Features of a frozen network in two processes: each runs half of the batches, and both have what one would compute"
import pytest, torch

pytestmark = pytest.mark.slow

@pytest.fixture(scope='module')
def got(tmp_path_factory, two_ranks, python, repo):
    out = tmp_path_factory.mktemp('features')
    script = repo/'tests/data/shared_features_script.py'
    for r in (two_ranks(script, out, cwd=repo), python(script, out, cwd=repo)):
        assert r.returncode==0, r.stdout[-3000:]+r.stderr[-6000:]
    return out,*(torch.load(out/f'{o}.pt', weights_only=True) for o in ('2-0','2-1','0-0'))

def test_each_ran_about_half(got):
    _,a,b,one = got
    n = one['half']['runs']
    assert a['half']['runs']+b['half']['runs']==n and abs(a['half']['runs']-b['half']['runs'])<=48       # three loaders

def test_features_labels_and_ids_are_those_of_one_process(got):
    _,a,b,one = got
    for k in ('half','again'):
        for o in (a,b):
            for p in ('x','y','items'):
                for u,v in zip(o[k][p], one[k][p], strict=True): assert torch.equal(u, v), (k,p)

def test_they_are_kept_once(got):
    out,a,b,one = got
    assert a['again']['runs']==b['again']['runs']==one['again']['runs']==0
    assert len([*(out/'a2').glob('*.safetensors')])==3 and not [*(out/'a2').glob('*.part')]

def test_a_batch_for_one_of_them(got):
    _,a,b,one = got
    assert (a['few']['runs'],b['few']['runs'])==(one['few']['runs'],0)
    assert torch.equal(a['few']['x'], one['few']['x']) and torch.equal(b['few']['x'], one['few']['x'])

def test_what_fails_in_one_ends_both(got):
    _,a,b,_ = got
    assert b['error']=='one row holds nonsense' and a['error']=='features: process 1 of 2: one row holds nonsense'

def test_networks_that_differ_share_nothing(got):
    _,a,b,one = got
    n = len(one['half']['x'][1])
    assert b['other']['runs']==n and not torch.equal(a['other']['x'], b['other']['x'])
