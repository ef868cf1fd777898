"""NNI's neural-architecture-search API, imported without its warnings about a newer PyTorch."""

from __future__ import annotations

import logging
import warnings

from acla_nas.errors import AclaWarning
from acla_nas.versions import check_versions

check_versions()

with warnings.catch_warnings():
    # NNI 3.0 lists torch.nn and warns of every class there that it does not know.
    warnings.simplefilter("ignore")
    import nni
    import nni.nas.strategy  # before its other parts, after which it has classes that fail
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


def tell_nni(score: float, *, final: bool = False) -> None:
    """Report a score, in a trial of an NNI experiment and only there.

    Where NNI's manager has died the trial goes on, and warns: its results are in its run folder too.
    """
    if nni.get_current_parameter() is None:
        return
    try:
        (nni.report_final_result if final else nni.report_intermediate_result)(score)
    except Exception as error:  # whatever the channel to the manager raises
        warnings.warn(
            f"the score {score:.2f} does not reach NNI's manager ({type(error).__name__}): the trial goes "
            "on, and its run folder has the results",
            AclaWarning,
            stacklevel=2,
        )


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
    "tell_nni",
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
