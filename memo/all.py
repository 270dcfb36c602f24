"The names a user types, for `from memo.all import *`; everything else is imported from its module"
from .core import MemoError,settings
from .schema import Param
from .registry import known,register
from .retrieval import Read,class_votes,read_rows,within_whitener
from .policies import Candidates,Policy,policies
from .banks import Bank,SlotBank
from .classbank import BankSaver,ClassBank,latest_bank
from .heads import MemoryHead,ReplayHead,RetrievalHead
from .attach import attach,detach,find_head,memories
from .votes import LDAHead,PrototypeHead,VoteHead,mix_votes
from .losses import AsymmetricLoss,LogitAdjustedCE,SigmoidFocalLoss,adjust_logits,pos_weights
from .metrics import balanced_accuracy,ece,longtail_scores,paired,shot_groups,shot_metrics
from .multilabel import calibration_bins,class_ap,class_auc,class_table,macro_ap,macro_auc,multilabel_scores,patient_bootstrap
from .tasks import Task,task_of
from .items import item_ids
from .data import BalancedDL,TensorDL,digits_lt,fashion_lt,longtail_counts,longtail_dls,longtail_subset,plain_dl,small_cnn
from .backbones import cached_features,chest_head,chest_model,features_dls,load_backbone
from .longtail import cifar10_lt,cifar100_lt,imagenet_lt,inat18,list_dls
from .files import FileImages,resize_tree
from .chest import abnormal_only,chest_table,chestxray14,findings
from .mosaic import chest_mosaic,chest_tree
from .batch_ids import BatchIds
from .callbacks import MemoryCallback,SaveBank
from .collect import collect
from .recipe import Stage,adamw,body_head_splitter,fit_stages
from .rivals import nearest_mean,retrain_classifier
from .baselines import Baseline
from .plots import plot_bank,plot_classes,plot_comparison,plot_counts,plot_history,plot_reliability,plot_results
from .bankplots import bank_table,open_bank,plot_classbank,plot_similarity,plot_stored
from .results import Row,compare,format_results,results
from .sections import Section
from .layers import Draft
from .config import load_config,override
from .build import build_dls,build_learner
from .evaluation import evaluate
from .runfolder import run_config
from .trainings import trainings
from .experiment import evaluate_model,evaluate_run,load_run,run_experiment
from .comparison import compare_runs,run_experiments

# what is registered is there by itself: a new bank, head, data set, network, loss or callback needs no line here
from .registry import find as _find
globals().update({p.symbol:_find(k, n) for k in ('bank','head','data','model','loss','callback') for n,p in known(k).items() if p.module.startswith('memo.')})
