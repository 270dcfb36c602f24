"Everything in memo, for `from memo.all import *`"
from .core import *
from .retrieval import *
from .banks import *
from .heads import *
from .losses import *
from .metrics import *
from .data import *
from .callbacks import *
from .recipe import *
from .plots import *
from .experiment import *
