"""A model that `export_model` wrote, behind HTTP: without torch, fastai or memo

    pip install fastapi uvicorn onnxruntime pillow numpy
    MODEL=model.onnx uvicorn service:app --port 8000
    curl --data-binary @image.png localhost:8000/predict        # {"answers":[{"name":"cat","probability":0.93},...]}

Any number of requests at once: a session of onnxruntime and everything here may be used by several threads.
Whoever reaches the port may ask: no password, no encryption, no count of requests. Larger files than MAX_MB (20) and
images than MAX_MEGAPIXELS (50) are refused."""
import io,json,os
import numpy as np, onnxruntime
from fastapi import FastAPI,HTTPException,Request
from fastapi.concurrency import run_in_threadpool
from PIL import Image,ImageOps,UnidentifiedImageError

path = os.environ.get('MODEL', 'model.onnx')
max_mb,max_megapixels = (float(os.environ.get(k, v)) for k,v in (('MAX_MB', 20), ('MAX_MEGAPIXELS', 50)))
if not os.path.isfile(path): raise SystemExit(f'MODEL={path}: no such file; export_model writes it')
session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
about = json.loads(session.get_modelmeta().custom_metadata_map.get('memo', 'null'))
if about is None: raise SystemExit(f'MODEL={path}: not written by export_model')
how,names = about['image'],about['vocab']
Image.MAX_IMAGE_PIXELS = None   # `opened` has a limit of its own
app = FastAPI(title='memo')

def square(im, size):
    "An image as `size` pixels (width, height), as the loader of the training does it"
    (w,h),bilinear = im.size,Image.Resampling.BILINEAR
    if how['fit']=='squash': return im.resize(size, bilinear)
    if how['fit']=='pad': return ImageOps.pad(im, size, bilinear)
    if not how['whole']:
        cw,ch = min(w, h*size[0]/size[1]),min(h, w*size[1]/size[0])
        return im.resize(size, bilinear, ((w-cw)/2, (h-ch)/2, (w+cw)/2, (h+ch)/2))
    s = min(w/size[0], h/size[1])
    cw,ch = int(s*size[0]),int(s*size[1])
    l,t = (w-cw)//2,(h-ch)//2
    return im.crop((l, t, l+cw, t+ch)).resize(size, bilinear)

def prepared(im):
    "The model's input [1,C,H,W] of an image"
    if how is None: raise SystemExit("how an image becomes this model's input is not in the file: write prepared()")
    if im.mode[0] in 'IF': raise ValueError(f'mode {im.mode}: 8 bits a channel are accepted')
    (h,w),(rh,rw) = how['size'],how['resize']
    if how['draft']: im.draft(how['mode'], (rw,rh))
    if how['exif']: im = ImageOps.exif_transpose(im)
    t,l = (rh-h)//2,(rw-w)//2
    x = np.asarray(square(im.convert(how['mode']), (rw,rh)), dtype=np.float32)[t:t+h,l:l+w].reshape(h, w, -1)/255
    x = np.broadcast_to(x, (h, w, how['channels'])).transpose(2, 0, 1)
    mean,std = (np.array(how[o], dtype=np.float32)[:,None,None] for o in ('mean','std'))
    return ((x-mean)/std)[None]

def probabilities(logits):
    kind = about['activation']
    if kind is None: raise SystemExit("what makes probabilities of this model's outputs is not in the file: write "
                                      "probabilities()")
    if kind=='softmax':
        p = np.exp(logits-logits.max())
        return p/p.sum()
    return 1/(1+np.exp(-logits)) if kind=='sigmoid' else logits

def answers(x):
    p = probabilities(session.run(None, {'input':x})[0][0].astype(np.float64))
    out = [dict(name=n, probability=float(v)) for n,v in zip(names or map(str, range(len(p))), p)]
    if about['task']=='multilabel':
        for o,t in zip(out, about['thresholds'] or [.5]*len(out)): o['found'] = o['probability']>t
    return sorted(out, key=lambda o: -o['probability'])

def opened(b):
    try: im = Image.open(io.BytesIO(b))
    except UnidentifiedImageError: raise ValueError('send the file itself as the body: curl --data-binary @image.png')
    if im.width*im.height>max_megapixels*1e6:
        raise HTTPException(413, f'{im.width} x {im.height} pixels: {max_megapixels:g} million are accepted')
    return im

def answer(b):
    try: x = prepared(opened(b))
    except HTTPException: raise
    except Exception as e: raise HTTPException(400, f'not an image that can be read: {str(e)[:100]}') from None
    return dict(answers=answers(x))

async def body(request):
    b,n = bytearray(),0
    async for o in request.stream():    # to its end, or the client does not read the answer
        n += len(o)
        if n<=max_mb*1e6: b += o
    if n>max_mb*1e6: raise HTTPException(413, f'{n/1e6:.0f} MB: {max_mb:g} are accepted')
    return bytes(b)

@app.post('/predict')
async def predict(request: Request): return await run_in_threadpool(answer, await body(request))

@app.get('/about')
def what(): return about

answers(prepared(Image.new('RGB', (64,64))))    # what is amiss shows before the first request
