"""What a multi-trial search judges candidates by: inherited weights (seconds), or a short training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from acla_nas.errors import AclaError
from acla_nas.evaluation import evaluate
from acla_nas.exporter import load_weights
from acla_nas.tasks import Task
from acla_nas.training import make_evaluator, train

if TYPE_CHECKING:
    from acla_nas.space import CrossLayerSpace


class InheritedWeights:
    """Scores a candidate with the weights that it has from the supernet: the PSNR in dB, without training.

    The space must hold trained weights: after a one-shot search it does, and :func:`load_supernet` brings
    back those of an earlier one.

    Args:
        task: degradation and protocol.
        images: files of the images to restore.
        device: where.

    Attributes:
        settings: what the scores depend on; a search goes on only with the same.

    Raises:
        AclaError: no images; on scoring, what :func:`acla_nas.evaluation.evaluate` raises.

    Example:
        >>> import acla_nas
        >>> space = acla_nas.search_spaces.edsr(num_blocks=2, num_channels=8)
        >>> images = acla_nas.data.list_images("embedded", "validation")[:1]
        >>> scorer = InheritedWeights(acla_nas.tasks.SuperResolution(2), images)
        >>> psnr = scorer(space.freeze({"insert/1": True, "insert/2": False, "keys": 16}))
    """

    def __init__(
        self, task: Task, images: Sequence[str | Path], *, device: str | torch.device = "cpu"
    ) -> None:
        if not images:
            raise AclaError("there are no images to score with: give the paths of some")
        self.task, self.images, self.device = task, tuple(images), device
        self.settings = {"name": "inherited", "task": _told(task), "images": [str(p) for p in images]}

    def __call__(self, network: nn.Module) -> float:
        """Return the mean PSNR of the network."""
        return evaluate(network, self.task, self.images, device=self.device).psnr


class ShortTraining:
    """Trains a candidate for a while, from the weights that the space has, and scores it: the PSNR in dB.

    Every candidate sees the same patches in the same order.

    Args:
        task: degradation and protocol.
        seed: of each training.
        recipe: the other arguments of :func:`acla_nas.training.make_evaluator`: epochs, steps_per_epoch, ..

    Attributes:
        settings: what the scores depend on; a search goes on only with the same.

    Example:
        >>> import acla_nas
        >>> scorer = ShortTraining(acla_nas.tasks.SuperResolution(2), steps_per_epoch=1, batch_size=1)
        >>> scorer.settings["steps_per_epoch"]
        1
    """

    def __init__(self, task: Task, *, seed: int = 0, **recipe: Any) -> None:
        self.task, self.seed = task, seed
        self.recipe = {"progress": False, **recipe}
        self.settings = {"name": "training", "task": _told(task), "seed": seed, **recipe}

    def __call__(self, network: nn.Module) -> float:
        """Train the network in place, and return its PSNR after the last epoch."""
        from pytorch_lightning import seed_everything

        seed_everything(self.seed, verbose=False)
        evaluator = make_evaluator(self.task, seed=self.seed, **self.recipe)
        return float(train(network, evaluator, seed=self.seed)[-1]["val_psnr"])


def load_supernet(space: CrossLayerSpace, weights: str | Path) -> None:
    """Load the weights of a trained supernet into a space.

    Args:
        space: as it was in that search.
        weights: a safetensors file of ``space.state_dict()``, or a run folder with supernet.safetensors.

    Raises:
        AclaError: the file cannot be read, or the weights are of another space.

    Example:
        >>> import acla_nas
        >>> from safetensors.torch import save_file
        >>> space = acla_nas.search_spaces.edsr(num_blocks=2, num_channels=8)
        >>> save_file(space.state_dict(), "supernet.safetensors")
        >>> load_supernet(space, ".")
    """
    path = Path(weights)
    load_weights(space.network, path / "supernet.safetensors" if path.is_dir() else path)


def _told(task: Task) -> dict[str, Any]:
    return {"name": type(task).__name__, **vars(task)}
