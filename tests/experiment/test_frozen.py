"A frozen backbone sees every image once: experiments/fashion_lt_frozen.yaml at a small size, as a user runs it"
import json, pytest

pytestmark = pytest.mark.slow

def test_frozen_experiment(tool, repo, tmp_path, few_fashion, lite0_weights):
    (tmp_path/'settings.ini').write_text('[DEFAULT]\ndata = data\nruns = runs\n')
    args = [repo/'experiments/fashion_lt_frozen.yaml', 'data.size=32', 'train.epochs=3', 'compare=[logit_adjusted]',
            'data.n_max=100', 'data.valid=20', f'data.root={few_fashion}']
    def run(*more, **kwargs): return tool('memo-train', *args, *more, cwd=tmp_path, timeout=400, **kwargs)
    r = run('seed=0')
    assert r.returncode==0, r.stderr[-2000:]
    cache = tmp_path/'data/features'
    first = {o.name:o.stat().st_ino for o in cache.iterdir()}
    assert len(first)==3      # train, valid, test
    few = {(r['method'],*r['memory']):r['scores']['few']
           for r in json.loads((tmp_path/'runs/fashion_lt_frozen/metrics.json').read_text())['rows']}
    assert few['','memory'] > few['',]
    for o in ('memories.png','bank.png','history.png','counts.png'):
        assert (tmp_path/'runs/fashion_lt_frozen'/o).stat().st_size>5000
    # the same numbers from the saved run; no image goes through the backbone again
    e = tool('memo-eval', tmp_path/'runs/fashion_lt_frozen', cwd=tmp_path, timeout=200, render=False)
    assert e.returncode==0, e.stderr[-2000:]
    assert {o.name:o.stat().st_ino for o in cache.iterdir()}==first
    # another seed draws other training images; the test set's features are those on disk
    r = run('seed=1', 'name=other', render=False)
    assert r.returncode==0, r.stderr[-2000:]
    second = {o.name:o.stat().st_ino for o in cache.iterdir()}
    assert len(second)==5 and all(second[k]==v for k,v in first.items())
