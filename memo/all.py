"The names a user types, for `from memo.all import *`; everything else is imported from its module"
from .core import MemoError,settings
from .retrieval import Read,class_votes,read_rows,within_whitener
from .policies import Candidates,Policy,policies
from .banks import Bank,ClassBank,SlotBank
from .heads import MemoryHead,RetrievalHead,VoteHead,attach,detach,find_head,mix_votes
from .losses import AsymmetricLoss,LogitAdjustedCE,adjust_logits
from .metrics import balanced_accuracy,ece,longtail_scores,paired,shot_groups,shot_metrics
from .data import BalancedDL,TensorDL,digits_lt,fashion_lt,item_ids,longtail_counts,longtail_dls,longtail_subset,plain_dl,small_cnn
from .backbones import cached_features,features_dls,load_backbone
from .callbacks import MemoryCallback
from .recipe import Stage,adamw,body_head_splitter,fit_stages
from .plots import plot_bank,plot_counts,plot_history,plot_results
from .results import format_results,results
from .config import load_config
from .experiment import evaluate_run,load_run,run_experiment
