"""Scoring a network, or a task's naive baseline, on images under the task's protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import nn

from acla_nas.attention.open_keys import open_key_shares
from acla_nas.data.images import save_image
from acla_nas.data.pairs import PairDataset, image_to_tensor, tensor_to_image
from acla_nas.errors import AclaError
from acla_nas.tasks.task import Task


@dataclass(frozen=True)
class ImageScore:
    """The scores of one image: PSNR in dB, SSIM up to 1, both under the task's protocol."""

    name: str
    psnr: float
    ssim: float


@dataclass(frozen=True)
class Evaluation:
    """The scores of a set of images.

    Attributes:
        rows: a score per image.
        open_keys: share of their keys that the adaptive modules left open, the mean over modules and images;
            None where there are no such modules.

    Example:
        >>> scores = Evaluation((ImageScore("baby", 37.07, 0.952), ImageScore("bird", 36.81, 0.972)))
        >>> print(scores.table())
        image  PSNR (dB)    SSIM
        baby       37.07  0.9520
        bird       36.81  0.9720
        mean       36.94  0.9620
    """

    rows: tuple[ImageScore, ...]
    open_keys: float | None = None

    @property
    def psnr(self) -> float:
        """The mean of the images' PSNRs in dB, as papers report it; infinite if one image is perfect."""
        return fmean(row.psnr for row in self.rows)

    @property
    def ssim(self) -> float:
        """The mean of the images' SSIMs."""
        return fmean(row.ssim for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Return the scores as JSON can hold them."""
        images = {row.name: {"psnr": row.psnr, "ssim": row.ssim} for row in self.rows}
        return {"psnr": self.psnr, "ssim": self.ssim, "open_keys": self.open_keys, "images": images}

    def table(self) -> str:
        """Return plain text: a line per image, one with the means, and the share of open keys if any."""
        rows = (*self.rows, ImageScore("mean", self.psnr, self.ssim))
        width = max(len("image"), *(len(row.name) for row in rows))
        lines = [f"{'image':{width}}  PSNR (dB)    SSIM"]
        lines += [f"{row.name:{width}}  {row.psnr:9.2f}  {row.ssim:6.4f}" for row in rows]
        if self.open_keys is not None:
            lines.append(f"open keys {100 * self.open_keys:.1f} %")
        return "\n".join(lines)


def evaluate(
    model: nn.Module | None,
    task: Task,
    paths: Sequence[str | Path],
    *,
    device: str | torch.device = "cpu",
    save_dir: str | Path | None = None,
) -> Evaluation:
    """Degrade images, restore them, and score the result against the originals.

    Args:
        model: given (1, in_channels, H, W) float32 in 0..1, returns (1, out_channels, H * scale, W * scale),
            which is clipped and rounded to 8 bits. It is moved to `device` and runs in evaluation mode;
            afterwards its modules are in the mode they came in. None scores the task's baseline instead.
        task: the degradation and the protocol.
        paths: image files.
        device: where the model runs.
        save_dir: a folder for the restored images, one NAME.png each; made if missing.

    Returns:
        The scores, in the order of the paths.

    Raises:
        AclaError: there are no paths; an image cannot be read, or is too small for the task or its scores; or
            the model's output has another shape than the original, or holds NaN. The image is named.

    Example:
        >>> from acla_nas.data import list_images
        >>> from acla_nas.tasks import SuperResolution
        >>> round(evaluate(None, SuperResolution(2), list_images("embedded", "validation")).psnr, 2)
        30.59
    """
    dataset = PairDataset(task, paths)
    rows = []
    with evaluating(model), torch.inference_mode(), open_key_shares() as shares:
        if model is not None:
            model.to(device)
        for index, name in enumerate(dataset.names):
            lq, hq = dataset.images(index)
            try:
                if model is None:
                    restored, scores = task.baseline(lq), task.baseline_scores(hq, lq)
                else:
                    restored = _restore(model, lq, hq, device)
                    scores = task.psnr(restored, hq), task.ssim(restored, hq)
                rows.append(ImageScore(name, *scores))
            except AclaError as error:
                raise AclaError(f"image {dataset.paths[index]}: {error}") from error
            if save_dir is not None:
                save_image(restored, Path(save_dir, f"{name}.png"))
    return Evaluation(tuple(rows), fmean(map(float, shares)) if shares else None)


def _restore(model: nn.Module, lq: np.ndarray, hq: np.ndarray, device: str | torch.device) -> np.ndarray:
    """Run the model on one image; hq only says which shape must come out."""
    batch = image_to_tensor(lq)[None].to(device)
    output = model(batch)
    expected = (1, hq.shape[2], *hq.shape[:2])
    if tuple(output.shape) != expected:
        raise AclaError(
            f"the model returned shape {tuple(output.shape)} for an input of {tuple(batch.shape)}, "
            f"the task needs {expected}; check the model's scale and channels"
        )
    return tensor_to_image(output[0])


@contextmanager
def evaluating(model: nn.Module | None) -> Iterator[None]:
    """Put the model in evaluation mode; afterwards each module, as some may be frozen, in the mode it had."""
    modes = [(module, module.training) for module in model.modules()] if model is not None else []
    try:
        if model is not None:
            model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
