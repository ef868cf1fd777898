"""Restoring an image of any size in tiles, so that memory does not grow with it and no seam shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from acla_nas.errors import AclaError
from acla_nas.formats.descriptor import Descriptor

BLEND = 32  # pixels that are blended on both sides of a seam, where tiles are not equal to the whole
_ALIGN = 32  # tiles begin at its multiples, as strides, windows and patches inside a network may need

Network = Callable[[Tensor], Tensor]


def restore_tiled(
    network: Network,
    image: np.ndarray,
    descriptor: Descriptor,
    *,
    tile: int,
    overlap: int | None,
    enough: Callable[[int], int] | None = None,
    self_ensemble: bool = False,
) -> np.ndarray:
    """Return the restored image, put together from tiles.

    A tile is cut out with `overlap` more pixels on each side that has them, restored, and cut back. Where
    the overlap is at least as far as the network looks, what is left is what it makes of the whole image.

    Args:
        network: (1, in_channels, h, w) in 0 .. 1 -> (1, out_channels, scale h, scale w), on any device.
        image: (H, W, in_channels), uint8 or uint16.
        descriptor: of the network.
        tile: side of the part that a tile contributes, in pixels of the image; made a multiple of 32.
        overlap: pixels; where None, the network sees the whole image, and tiles are blended over 64 pixels.
        enough: called after each tile with the overlap that it had; returns the one that it needs. A tile
            that had less is restored again.
        self_ensemble: average over the eight flips and turns of each tile.

    Returns:
        (scale H, scale W, out_channels) of the image's dtype.

    Raises:
        AclaError: the network returns NaN or infinity.
    """
    scale, peak = descriptor.scale, np.iinfo(image.dtype).max
    height, width = image.shape[:2]
    align = math.lcm(_ALIGN, descriptor.multiple_of)
    step = -(-tile // align) * align
    feather = BLEND if overlap is None else 0
    margin = 2 * BLEND if overlap is None else overlap
    run = _ensemble(network) if self_ensemble else network
    restored = np.empty((scale * height, scale * width, descriptor.out_channels), image.dtype)
    for top in range(0, height, step):
        begin, end = max(0, top - feather), min(height, top + step + feather)
        strip = np.empty((scale * (end - begin), *restored.shape[1:]), np.float32)
        for left in range(0, width, step):
            while True:
                rows = _window(top, step, height, margin, align)
                columns = _window(left, step, width, margin, align)
                output = _run(run, image[rows, columns], descriptor, peak)
                needed = margin if enough is None else enough(margin)
                if needed <= margin or (_is_whole(rows, height) and _is_whole(columns, width)):
                    break
                margin = needed
            output = output[scale * (begin - rows.start) : scale * (end - rows.start)]
            first = max(0, left - feather)
            output = output[
                :, scale * (first - columns.start) : scale * (left + step + feather - columns.start)
            ]
            _blend(strip, output, 1, scale * first, 2 * scale * feather if left else 0)
        _blend(restored, strip * np.float32(peak), 0, scale * begin, 2 * scale * feather if top else 0)
    return restored


def _window(first: int, step: int, size: int, margin: int, align: int) -> slice:
    """Return what is cut out of an axis for the tile that begins at `first`."""
    return slice(max(0, (first - margin) // align * align), min(size, first + step + margin))


def _is_whole(window: slice, size: int) -> bool:
    return window.start == 0 and window.stop == size


def _run(network: Network, part: np.ndarray, descriptor: Descriptor, peak: int) -> np.ndarray:
    """Return what the network makes of a part of the image: (scale h, scale w, C) float32 in 0 .. 1."""
    height, width = part.shape[:2]
    x = torch.from_numpy(np.ascontiguousarray(part.transpose(2, 0, 1), dtype=np.float32) / peak)[None]
    full = descriptor.valid_size(height, width)
    x = F.pad(x, (0, full[1] - width, 0, full[0] - height), mode="replicate")
    with torch.inference_mode():
        y = network(x)
    y = y[0, :, : descriptor.scale * height, : descriptor.scale * width].float().cpu()
    if not torch.isfinite(y).all():
        raise AclaError("the network returns NaN or infinity for this image: its weights have diverged")
    return y.permute(1, 2, 0).numpy()


def _ensemble(network: Network) -> Network:
    def run(x: Tensor) -> Tensor:
        return torch.stack([_turn_back(network(turned), k) for k, turned in enumerate(_turns(x))]).mean(0)

    return run


def _turns(x: Tensor) -> Iterator[Tensor]:
    """Yield the eight flips and turns of (B, C, H, W) images."""
    for k in range(8):
        yield torch.rot90(x.flip(3) if k >= 4 else x, k % 4, (2, 3))


def _turn_back(y: Tensor, k: int) -> Tensor:
    y = torch.rot90(y, -(k % 4), (2, 3))
    return y.flip(3) if k >= 4 else y


def _blend(into: np.ndarray, new: np.ndarray, axis: int, first: int, blended: int) -> None:
    """Write something into an array, from an index of an axis on; its beginning fades in."""
    place, new = np.moveaxis(into, axis, 0)[first : first + new.shape[axis]], np.moveaxis(new, axis, 0)
    weight = ((np.arange(len(new[:blended]), dtype=np.float32) + 0.5) / max(1, blended))[:, None, None]
    faded = place[:blended] * (1 - weight) + new[:blended] * weight
    for part, values in ((place[:blended], faded), (place[blended:], new[blended:])):
        if np.issubdtype(into.dtype, np.integer):
            values = np.floor(np.clip(values, 0, np.iinfo(into.dtype).max) + 0.5)
        part[:] = values
