"""NNI's neural-architecture-search API, imported without its warnings about a newer PyTorch."""

from __future__ import annotations

import logging
import warnings

with warnings.catch_warnings():
    # NNI 3.0 lists torch.nn and warns of every class there that it does not know.
    warnings.simplefilter("ignore")
    import nni
    from nni.mutable import label_scope
    from nni.nas.evaluator.pytorch import DataLoader, Lightning, LightningModule, Trainer
    from nni.nas.execution import SequentialExecutionEngine
    from nni.nas.nn.pytorch import ModelSpace, MutableModule
    from nni.nas.oneshot.pytorch import strategy as nni_one_shot
    from nni.nas.oneshot.pytorch.base_lightning import BaseOneShotLightningModule
    from nni.nas.oneshot.pytorch.profiler import ExpectationProfilerPenalty
    from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
    from nni.nas.space import RawFormatModelSpace

OneShotStrategy = nni_one_shot.OneShotStrategy

__all__ = [
    "BaseOneShotLightningModule",
    "BaseSuperNetModule",
    "DataLoader",
    "ExpectationProfilerPenalty",
    "Lightning",
    "LightningModule",
    "ModelSpace",
    "MutableModule",
    "OneShotStrategy",
    "RawFormatModelSpace",
    "SequentialExecutionEngine",
    "Trainer",
    "label_scope",
    "nni",
    "nni_one_shot",
]

# Told at every fit, and no concern of the user's: our loaders and loggers are as we mean them to be.
warnings.filterwarnings("ignore", message=r".*`isinstance\(treespec, LeafSpec\)` is deprecated")
warnings.filterwarnings("ignore", message=r".*does not have many workers which may be a bottleneck")
logging.getLogger("nni.nas.evaluator.pytorch.lightning").setLevel(logging.ERROR)
logging.getLogger("nni.nas.strategy.base").setLevel(logging.CRITICAL)  # what is raised says more
logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
warnings.filterwarnings(
    "ignore", message="Direct export from RandomOneShot returns an arbitrary"
)  # documented
