"""search: run a strategy on a space, in this process, and derive the architecture it finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from acla_nas.arch import Arch
from acla_nas.exporter import save_model
from acla_nas.nni_nas import Lightning, OneShotStrategy, RawFormatModelSpace, SequentialExecutionEngine
from acla_nas.space import CrossLayerSpace
from acla_nas.training import epoch_history


@dataclass
class SearchResult:
    """What a search found.

    Attributes:
        arch: the derived architecture.
        cost: what its inserted modules cost, in the unit of the strategy's cost model.
        history: one dict per epoch: epoch, val_psnr (dB), train_loss, expected cost, open gates, ..
        weights: the derived network's part of the supernet's weights.
        probabilities: position -> probability of insertion at the end.
    """

    arch: Arch
    cost: float
    history: list[dict[str, Any]]
    weights: dict[str, Tensor] = field(repr=False)
    probabilities: dict[int, float]

    def save(self, folder: str | Path) -> Path:
        """Write arch.json and weights.safetensors into a folder and return it."""
        return save_model(self.arch, self.weights, folder)


def search(space: CrossLayerSpace, strategy: OneShotStrategy, evaluator: Lightning) -> SearchResult:
    """Search a space with a strategy, in this process; no port is opened.

    Args:
        space: becomes the supernet: its weights are trained in place.
        strategy: such as :class:`acla_nas.strategies.TwoStage`.
        evaluator: data and recipe, from :func:`acla_nas.training.make_evaluator`, or any Lightning
            evaluator of NNI's with training and validation loaders.

    Example:
        >>> import acla_nas
        >>> from acla_nas.strategies import TwoStage
        >>> space = acla_nas.search_spaces.edsr(num_blocks=2, num_channels=8)
        >>> evaluator = acla_nas.training.make_evaluator(
        ...     acla_nas.tasks.SuperResolution(2), steps_per_epoch=1, batch_size=2, progress=False)
        >>> result = search(space, TwoStage(epochs=(1, 1)), evaluator)
        >>> len(result.history)
        2
    """
    strategy(RawFormatModelSpace(space, evaluator), _InProcessEngine())
    module = strategy.oneshot_module
    sample = module.export()
    arch = space.arch(sample)
    table = module.tables[space.key_gate.num_keys.index(sample["keys"])]
    found = table.of([sample[f"insert/{j}"] for j in space.network.paths])
    arch = arch.model_copy(
        update={
            "cost": {table.unit: found},
            "provenance": {**arch.provenance, "strategy": type(strategy).__name__},
        }
    )
    probabilities = module.export_probs()
    return SearchResult(
        arch=arch,
        cost=found,
        history=epoch_history(evaluator),
        weights={name: w.detach().cpu().clone() for name, w in space.freeze(sample).state_dict().items()},
        probabilities={j: probabilities[f"insert/{j}"][True] for j in space.network.paths},
    )


class _InProcessEngine(SequentialExecutionEngine):
    """NNI's in-process engine, which leaves the connection of a trial to NNI's manager alone."""

    def _run_single_model(self, model: Any) -> None:
        model.execute()
