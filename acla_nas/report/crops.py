"""Crops of test images, degraded, restored by several networks, and as they were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from acla_nas.data import PairDataset, image_to_tensor, tensor_to_image, to_uint8
from acla_nas.evaluation import evaluating
from acla_nas.report.picture import textured_pixel
from acla_nas.tasks import Task

_GRID = 8  # pixels that corners and sides are multiples of: patterns of colour filters, strides of networks


@dataclass(frozen=True)
class Crop:
    """A part of one image.

    Attributes:
        name: of the image.
        corner: (x, y) of its top left pixel in the degraded image.
        degraded: (h, w, C), as the network is given it.
        original: (H, W, C) uint8.
        restored: name of the network, or of the task's baseline -> (H, W, C) uint8.
        psnr: likewise -> PSNR in dB of this crop, under the task's protocol.
    """

    name: str
    corner: tuple[int, int]
    degraded: np.ndarray
    original: np.ndarray
    restored: dict[str, np.ndarray]
    psnr: dict[str, float]


def restore_crop(
    task: Task, path: Path, networks: Mapping[str, nn.Module], *, side: int = 96, device: str = "cpu"
) -> Crop:
    """Degrade an image, cut out a part with much texture, and restore that part.

    Args:
        task: the degradation and the protocol.
        path: of the image.
        networks: name -> what restores.
        side: of the part, in pixels of the degraded image; less where that is smaller.
        device: where the networks run.

    Example:
        >>> from acla_nas.data import embedded_images
        >>> from acla_nas.tasks import SuperResolution
        >>> crop = restore_crop(SuperResolution(2), embedded_images("test")[0], {}, side=32)
        >>> crop.degraded.shape, crop.original.shape, list(crop.restored)
        ((32, 32, 3), (64, 64, 3), ['bicubic'])
    """
    degraded, original = PairDataset(task, [path]).images(0)
    x, y = textured_pixel(degraded)
    left, width = _span(x, side, degraded.shape[1])
    top, height = _span(y, side, degraded.shape[0])
    lq = degraded[top : top + height, left : left + width]
    s = task.scale
    hq = original[s * top : s * (top + height), s * left : s * (left + width)]
    restored = {task.baseline_name: task.baseline(lq)}
    batch = image_to_tensor(lq)[None].to(device)
    for name, network in networks.items():
        with evaluating(network), torch.inference_mode():
            restored[name] = tensor_to_image(network.to(device)(batch)[0])
    psnr = {name: task.psnr(image, hq) for name, image in restored.items()}
    return Crop(path.stem, (left, top), lq, hq, restored, psnr)


def shown(image: np.ndarray, scale: int = 1) -> np.ndarray:
    """Return an image as 8 bits, enlarged to whole blocks of pixels.

    Example:
        >>> shown(np.zeros((2, 3, 1), dtype=np.float32), 2).shape
        (4, 6, 1)
    """
    return to_uint8(image).repeat(scale, 0).repeat(scale, 1)


def _span(centre: int, side: int, length: int) -> tuple[int, int]:
    """Return the start and the length of a part around a centre, within an image."""
    side = min(side, length // _GRID * _GRID or length)
    start = min(max(0, centre - side // 2), length - side)
    return start // _GRID * _GRID, side
