"""How networks are trained: the Lightning module, the evaluator for searches, and retraining."""

from acla_nas.training.epoch_report import EpochReport
from acla_nas.training.evaluator import epoch_history, make_evaluator
from acla_nas.training.restoration import RestorationModule
from acla_nas.training.train import train

__all__ = ["EpochReport", "RestorationModule", "epoch_history", "make_evaluator", "train"]
