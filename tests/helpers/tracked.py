"What trackers wrote: TensorBoard by its accumulator, W&B from the file of an offline run, MLflow by its client"
import importlib.util, json, os, time
from pathlib import Path

kinds = ['csv','tensorboard',*(k for k in ('wandb','mlflow') if importlib.util.find_spec(k))]

def scalars(folder):
    "Curves of a folder, as name -> (step, value), and tags of all else"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    e = EventAccumulator(str(folder), size_guidance=dict(images=0, scalars=0, tensors=0)).Reload()
    return {k:[(o.step,o.value) for o in e.Scalars(k)] for k in e.Tags()['scalars']},e.Tags()

def records(path):
    "Of a .wandb file, which is whole a moment after its run has finished"
    for _ in range(15):
        res = [*log_records(path)]
        if any(r.WhichOneof('record_type')=='exit' for r in res): break
        time.sleep(.2)
    return res

def log_records(path):
    "Records as LevelDB writes a log, in blocks of 32 KB, behind seven bytes of W&B's own"
    from wandb.proto import wandb_internal_pb2 as pb
    b,at,part = Path(path).read_bytes(),7,b''
    while at+7<=len(b):
        if 32768-at%32768<7:
            at += 32768-at%32768
            continue
        n,kind = int.from_bytes(b[at+4:at+6], 'little'),b[at+6]
        part += b[at+7:at+7+n]
        at += 7+n
        if kind in (1,4):       # whole, or the last part
            r = pb.Record()
            r.ParseFromString(part)
            part = b''
            yield r

def wandb_rows(folder):
    "Of offline runs: rows of the history, configuration, ids, summary"
    rows,config,ids,summary = [],{},set(),{}
    def key(o): return o.key or '/'.join(o.nested_key)
    for p in sorted(Path(folder).glob('wandb/offline-run-*/*.wandb')):
        for r in records(p):
            kind = r.WhichOneof('record_type')
            if kind=='history':
                rows.append({key(o):json.loads(o.value_json) for o in r.history.item} | {'_step':r.history.step.num})
            if kind=='run':
                ids.add(r.run.run_id)
                config |= {key(o):json.loads(o.value_json) for o in r.run.config.update}
            if kind=='summary': summary |= {key(o):json.loads(o.value_json) for o in r.summary.update}
    return [o for o in rows if 'train_loss' in o],config,ids,summary

def mlflow_runs(uri):
    "A client, and the runs there"
    os.environ.setdefault('MLFLOW_ALLOW_FILE_STORE', 'true')
    from mlflow import MlflowClient
    c = MlflowClient(tracking_uri=str(uri) if '://' in str(uri) else (Path(uri)/'mlruns').absolute().as_uri())
    return c,[r for e in c.search_experiments() for r in c.search_runs(e.experiment_id)]

def epochs(folder):
    "Which epochs each tracker has of a training, of one run each"
    import pandas as pd
    folder,res = Path(folder),{}
    if (folder/'epochs.csv').exists(): res['csv'] = pd.read_csv(folder/'epochs.csv').epoch.tolist()
    if (at := folder/'tensorboard').exists(): res['tensorboard'] = [o for o,_ in scalars(at)[0]['train_loss']]
    if (folder/'wandb').exists():
        rows,_,ids,_ = wandb_rows(folder)
        assert len(ids)<=1      # none before it has written
        res['wandb'] = [o['_step'] for o in rows]
    if (folder/'mlruns').exists():
        c,(r,) = mlflow_runs(folder)
        res['mlflow'] = [o.step for o in c.get_metric_history(r.info.run_id, 'train_loss')]
    return res
