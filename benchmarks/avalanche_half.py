"""Avalanche's half of `avalanche.py`, which starts it with the Python of Avalanche's environment: it answers jobs, one
line of JSON each, with one line each. With `-P`, so that `import avalanche` is the library and not the file beside."""
import json,random,sys,time,warnings
import numpy as np, torch
from torch import nn
from torch.nn import functional as F
warnings.filterwarnings('ignore')
from avalanche.benchmarks import benchmark_from_datasets,tensors_benchmark
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import AGEM,EWC,LwF,Naive,Replay
from avalanche.training.plugins import EvaluationPlugin,EWCPlugin,ReplayPlugin
from avalanche.training.plugins.evaluation import default_evaluator
from avalanche.training.storage_policy import ReservoirSamplingBuffer

class PerSample(EWCPlugin):
    "Squares the gradient of each sample, not that of a batch's mean"
    def compute_importances(self, model, criterion, optimizer, dataset, device, batch_size, **kw):
        return super().compute_importances(model, criterion, optimizer, dataset, device, 1, **kw)

def summed(bs):
    "Loss of the new batch plus loss of the replayed one: Avalanche's is their mean"
    return lambda out, y: F.cross_entropy(out, y, reduction='sum')/bs

def reservoir(size, bs, **kw):
    return ReplayPlugin(size, batch_size=bs, batch_size_mem=bs, storage_policy=ReservoirSamplingBuffer(size), **kw)

# name -> (class, its arguments from the job, plugins, is each batch an experience, do items come as given)
methods = {
    'naive':(Naive, [], [], False, True),
    'naive, online':(Naive, [], [], True, True),
    'replay':(Replay, ['mem_size'], [], False, False),
    'replay, reservoir, sum of losses':(Naive, [], [reservoir], False, False),
    'replay, reservoir after each batch, sum of losses':(Naive, [], [reservoir], True, True),
    'ewc':(EWC, ['ewc_lambda'], [], False, True),
    'ewc, per sample':(Naive, [], [PerSample], False, True),
    'lwf':(LwF, ['alpha','temperature'], [], False, True),
    'agem':(AGEM, ['patterns_per_exp','sample_size'], [], False, True)}

def strategy(job, model, evaluator):
    cls,args,plugins,_,_ = methods[job['method']]
    bs,kw = job['bs'],job['kw']
    loss = summed(bs) if 'sum of losses' in job['method'] else nn.CrossEntropyLoss()
    made = [o(kw['mem_size'], bs) if o is reservoir else o(kw['ewc_lambda'], kw['mode'], kw['decay_factor'])
            for o in plugins]
    return cls(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=job['lr']), criterion=loss,
               train_mb_size=bs, eval_mb_size=500, evaluator=evaluator, plugins=made, **{k:kw[k] for k in args})

def linear(w, b):
    m = nn.Linear(w.shape[1], w.shape[0])
    with torch.no_grad(): m.weight.copy_(w); m.bias.copy_(b)
    return m

def stream(job):
    "Training and test experiences [x,y], in the order of the file, and the model at the start"
    f,d = ({k:torch.from_numpy(v) for k,v in np.load(job[o]).items()} for o in ('features','draw'))
    xs = [F.normalize(f[f'x{k}']-d['mean'])*job['scale'] for k in (0,1)]
    parts = [[(xs[k][d[f'{k}{i}']], f[f'y{k}'][d[f'{k}{i}']]) for i in range(job['n'])] for k in (0,1)]
    return *parts,linear(d['w'], d['b'])

def run(job):
    "Accuracy after each experience on the test items of each"
    random.seed(job['seed']); np.random.seed(job['seed']); torch.manual_seed(job['seed'])
    train,test,model = stream(job)
    scen = tensors_benchmark(train_tensors=train, test_tensors=test, task_labels=[0]*len(train))
    ev = EvaluationPlugin(accuracy_metrics(experience=True), loggers=[])
    s,rows,(_,_,_,online,given) = strategy(job, model, ev),[],methods[job['method']]
    for exp in scen.train_stream:
        if online: s.train(split_online_stream([exp], job['bs'], shuffle=False))
        else: s.train(exp, shuffle=not given)
        res = s.eval(scen.test_stream)
        rows.append([first(v for k,v in res.items() if k.startswith('Top1_Acc_Exp') and k.endswith(f'Exp{i:03d}'))
                     for i in range(len(test))])
    return dict(matrix=rows)

def first(it): return next(iter(it))

class Set(torch.utils.data.TensorDataset):
    @property
    def targets(self): return self.tensors[1].tolist()

def timed(job):
    "CPU seconds of the second of two experiences of random 512-wide features"
    torch.manual_seed(job['seed'])
    n,d = job['steps']*job['bs'],job['d']
    data = [(torch.randn(n, d), torch.randint(10, (n,))) for _ in range(2)]
    if job['quiet']:        # the fastest that was found
        scen = benchmark_from_datasets(train=[as_classification_dataset(Set(*o)) for o in data])
        ev = EvaluationPlugin(loggers=[])
    else: scen,ev = tensors_benchmark(train_tensors=data, test_tensors=data, task_labels=[0,0]),default_evaluator()
    s = strategy(job, nn.Linear(d, 10), ev)
    online = methods[job['method']][3]
    for exp in scen.train_stream:
        start = time.process_time()
        s.train(split_online_stream([exp], job['bs'], shuffle=False) if online else exp)
        res = time.process_time()-start
    return dict(cpu=res)

if __name__=='__main__':
    torch.set_num_threads(1)
    out,sys.stdout = sys.stdout,sys.stderr      # what Avalanche prints is no answer
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(dict(run=run, timed=timed)[job['do']](job)), file=out, flush=True)
