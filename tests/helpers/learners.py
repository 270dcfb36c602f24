"Learners without progress and log, and states of models"
import torch

def quietly(learn, f, *args, **kwargs):
    "Call `f`, or the method of `learn` of that name"
    with learn.no_bar(), learn.no_logging():
        return (getattr(learn, f) if isinstance(f, str) else f)(*args, **kwargs)

def snap(model): return {k:v.clone() for k,v in model.state_dict().items()}
def same(a, b): return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def plain_part(state): return {k:v for k,v in state.items() if 'memory' not in k}
