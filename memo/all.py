"The names a user types, for `from memo.all import *`; everything else is imported from its module"
from .core import MemoError,settings
from .schema import Param
from .registry import Section,known,register
from .banks.search import Read,class_votes,read_rows,within_whitener
from .banks.policies import Candidates,Policy,policies
from .banks.slots import Bank,SlotBank
from .banks.classes import BankSaver,ClassBank,latest_bank
from .heads.base import MemoryHead,ReplayHead,RetrievalHead
from .heads.attach import attach,detach,find_head,memories
from .heads.mixture import LDAHead,PrototypeHead,VoteHead,mix_votes
from .training.losses import AsymmetricLoss,LogitAdjustedCE,SigmoidFocalLoss,adjust_logits,pos_weights
from .metrics.multiclass import balanced_accuracy,ece,longtail_scores,paired,shot_groups,shot_metrics
from .metrics.multilabel import calibration_bins,class_ap,class_auc,class_table,macro_ap,macro_auc,multilabel_scores,patient_bootstrap
from .evaluation.tasks import Task,task_of
from .data.items import item_ids
from .data.longtail import BalancedDL,TensorDL,digits_lt,fashion_lt,longtail_counts,longtail_dls,longtail_subset,plain_dl,small_cnn
from .models.backbones import cached_features,chest_head,chest_model,features_dls,load_backbone
from .data.image_lists import cifar10_lt,cifar100_lt,imagenet_lt,inat18,list_dls
from .data.images import FileImages,resize_tree
from .data.chest_xray import abnormal_only,chest_table,chestxray14,findings
from .data.chest_standin import chest_mosaic,chest_tree
from .training.batch_ids import BatchIds
from .training.memory_callback import MemoryCallback,SaveBank
from .training.collect import collect
from .training.stages import Stage,adamw,body_head_splitter,fit_stages
from .evaluation.rivals import nearest_mean,retrain_classifier
from .evaluation.baselines import Baseline
from .plots.results import plot_bank,plot_classes,plot_comparison,plot_counts,plot_history,plot_reliability,plot_results
from .plots.banks import bank_table,open_bank,plot_classbank,plot_similarity,plot_stored
from .evaluation.tables import Row,compare,format_results,results
from .experiment.sections import to_yaml
from .experiment.shipped import experiment_file,shipped
from .experiment.layers import Draft
from .experiment.config import load_config,override
from .experiment.build import build_dls,build_learner
from .evaluation.evaluate import evaluate
from .experiment.report import draw_scores
from .experiment.run_folder import run_config
from .experiment.jobs import trainings
from .experiment.run import evaluate_model,evaluate_run,load_run,run_experiment
from .experiment.compare import compare_runs,run_experiments

# what is registered is there by itself: a new bank, head, data set, network, loss or callback needs no line here
from .registry import find as _find
globals().update({p.symbol:_find(k, n) for k in ('bank','head','data','model','loss','callback') for n,p in known(k).items() if p.module.startswith('memo.')})
