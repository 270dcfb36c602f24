"A loss of one's own that can be made to explode, as the text of a module"

LOSS = '''
from fastai.losses import CrossEntropyLossFlat
class Scaled(CrossEntropyLossFlat):
    "A loss that can be made to explode"
    def __init__(self, scale:float=1.):
        super().__init__()
        self.scale = scale
    def __call__(self, *args, **kw): return super().__call__(*args, **kw)*self.scale
'''
