"""NNI's neural-architecture-search API, imported without its warnings about a newer PyTorch."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    # NNI 3.0 lists torch.nn and warns of every class there that it does not know.
    warnings.simplefilter("ignore")
    import nni
    from nni.mutable import label_scope
    from nni.nas.evaluator.pytorch import Lightning, LightningModule, Trainer
    from nni.nas.execution import SequentialExecutionEngine
    from nni.nas.nn.pytorch import ModelSpace, MutableModule
    from nni.nas.oneshot.pytorch.base_lightning import BaseOneShotLightningModule
    from nni.nas.oneshot.pytorch.strategy import OneShotStrategy
    from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
    from nni.nas.space import RawFormatModelSpace

__all__ = [
    "BaseOneShotLightningModule",
    "BaseSuperNetModule",
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
]
