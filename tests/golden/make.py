"""Made the files in this folder, with memo 0.1.0 (2f7d1b5), whose checkout has to come first on the path:

    PYTHONPATH=CHECKOUT OMP_NUM_THREADS=1 python tests/golden/make.py OUT

`runs.tar.xz`: run folders of small experiments, pictures left out. Most weights of their convolutions are zero and
none is trained, so that the files stay small;
`sparse` below makes the network, and a test that goes on with one of the runs has to make it likewise."""
import json,random,shutil,sys,tarfile,torch
from pathlib import Path

def sparse(small_cnn):
    "A maker of the same network with convolutions that are nearly empty, and stay as they are"
    def make(*args, **kwargs):
        net,g = small_cnn(*args, **kwargs),torch.Generator().manual_seed(0)
        for m in net.modules():
            if isinstance(m, torch.nn.Conv2d):
                draw = torch.rand(m.weight.shape, generator=g)
                m.weight.data.copy_(((draw<.06).float()-(draw>.94).float())/2)
                m.weight.requires_grad_(False)
        return net
    return make

BASE = '''
name: {name}
seeds: [0]
data: {{name: digits_lt, n_max: 20, ratio: 5, valid: 5, test: 8, size: 8}}
memory: {memory}
train: {{epochs: {epochs}, bs: 16, lr: 1e-2}}
compare: {compare}
'''
vote = '{bank: SlotBank, size: 16, policy: fifo, head: vote, k: [3, 5], whiten: [false, true], save_every: 1}'
runs = dict(
    whole=(vote, 2, '[logit_adjusted]'),
    cut=(vote, 2, '[logit_adjusted]'),              # interrupted in its second epoch
    rivals=('{bank: SlotBank, size: 16, policy: reservoir, head: add, k: 3}', 1,
            '[plain, logit_adjusted, balanced_sampling]'),
    watch=('{bank: ClassBank, capacity: 4, head: watch, k: 3}', 1,
           '[logit_adjusted, class_mean, crt, vote, prototype, lda]'),
    replay=('{bank: ClassBank, capacity: 4, head: replay}', 1, '[]'),
    lda=('{bank: ClassBank, capacity: 4, head: lda}', 1, '[]'),
    none=('null', 1, '[logit_adjusted]'))

def make_runs(out):
    from memo import build,recipe
    from memo.config import load_config
    from memo.experiment import run_experiment
    build.small_cnn = sparse(build.small_cnn)
    after_batch = recipe.StageCallback.after_batch if hasattr(recipe.StageCallback, 'after_batch') else None
    def stop(self):
        if self.training and self.epoch==1 and self.iter==1: raise KeyboardInterrupt
    for name,(memory,epochs,compare) in runs.items():
        (out/f'{name}.yaml').write_text(BASE.format(name=name, memory=memory, epochs=epochs, compare=compare).lstrip())
        if name=='cut': recipe.StageCallback.after_batch = stop
        try: run_experiment(load_config(out/f'{name}.yaml', [f'runs={out}/runs']), log=lambda s: None)
        except KeyboardInterrupt: assert name=='cut'
        if name=='cut': del recipe.StageCallback.after_batch
        (out/f'{name}.yaml').unlink()
    assert after_batch is None
    for p in [*(out/'runs').rglob('*.png'),
              *(p for p in (out/'runs').rglob('checkpoints/*.pt') if '/cut/' not in str(p))]: p.unlink()
    # where this was made is nobody's business
    for p in (out/'runs').rglob('config.yaml'): p.write_text(p.read_text().replace(f'{out}/runs', 'runs'))
    for p in (out/'runs').rglob('env.json'):
        p.write_text(json.dumps({**json.loads(p.read_text()), 'platform':'Linux'}, indent=1)+'\n')
    with tarfile.open(out/'runs.tar.xz', 'w:xz') as t:
        for p in sorted(o for o in (out/'runs').rglob('*') if o.is_file()):
            i = t.gettarinfo(p, p.relative_to(out).as_posix())
            i.uid = i.gid = i.mtime = 0
            i.uname = i.gname = ''
            with open(p, 'rb') as f: t.addfile(i, f)
    shutil.rmtree(out/'runs')

def make_banks(out):
    "Banks whose items are positions, as sets without names had; and what they answer"
    from memo.banks import Bank,SlotBank
    from memo.classbank import BankSaver,ClassBank
    g = torch.Generator().manual_seed(0)
    x,y = torch.randn(30,6,generator=g),torch.randint(0,3,(30,),generator=g)
    said = dict(query=x[:4].tolist())
    for name,bank in dict(slots=SlotBank(12, policy='reservoir', momentum=.5, n_classes=3, seed=3),
                          findings=SlotBank(12, policy='fifo'), classes=ClassBank(3, capacity=5),
                          bytes=ClassBank(3, capacity='1kB', dtype='int8')).items():
        t = torch.nn.functional.one_hot(y, 3).float() if name=='findings' else y
        for i in (slice(0,20),slice(20,30)):
            bank.write(x[i], t[i], item=torch.arange(30)[i], group=torch.arange(30)[i]//3)
        bank.save(out/f'{name}.safetensors')
        r = bank.read(x[:4], 2)
        said[name] = dict(text=repr(bank), rows=len(bank), value=r.value.tolist(), index=r.index.tolist(),
                          counts=bank.class_counts().tolist(), items=bank.rows()[3].tolist(),
                          stats={k:v for k,v in bank.stats().items() if isinstance(v, (int,float,str,type(None)))})
        if name=='classes': bank.to_json(out/'classes.json')
    (out/'banks.json').write_text(json.dumps(said)+'\n')

if __name__=='__main__':
    import memo
    assert memo.__version__=='0.1.0', memo.__version__
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    make_banks(out)
    make_runs(out)
    print(memo.__file__, sum(p.stat().st_size for p in out.iterdir()), 'bytes')
