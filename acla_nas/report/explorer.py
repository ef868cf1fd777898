"""The keys of every pixel of a crop, packed small for a page that shows those of the pixel clicked on."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from acla_nas.report.keys import ModuleKeys

STEPS = 16  # offsets are stored in this part of a pixel
SMALLEST = 1e-8  # the smallest weight that is stored; weights are stored to 0.03 %


def crop_side(keys_per_pixel: int, *, limit: float = 3e6, largest: int = 96, smallest: int = 32) -> int:
    """Return the side of a crop whose packed keys take some bytes at most, a multiple of 8.

    Args:
        keys_per_pixel: of all modules and references together.
        limit: bytes.
        largest: side, in pixels.
        smallest: side, whatever it takes.

    Example:
        >>> crop_side(8), crop_side(1000)
        (96, 32)
    """
    side = math.isqrt(int(limit / (6 * max(1, keys_per_pixel)))) // 8 * 8
    return min(largest, max(smallest, side))


def pack_keys(modules: Sequence[ModuleKeys]) -> list[dict[str, Any]]:
    """Return the keys of modules as what JSON can hold: a dict a module.

    ``offsets`` are little-endian int16 in sixteenths of a pixel, [y][x][reference][key][dx, dy]; ``weights``
    uint16, [y][x][reference][key]: 0 where the gate is closed, else 1 .. 65535 on a logarithmic scale from
    :data:`SMALLEST` to 1. Both are in base64.
    """
    packed = []
    for keys in modules:
        offsets = np.round(keys.offsets.permute(3, 4, 0, 1, 2).numpy() * STEPS)
        weights = keys.weights.permute(2, 3, 0, 1).numpy()
        scaled = 1 - np.log(weights.clip(SMALLEST, 1)) / math.log(SMALLEST)
        codes = np.where(keys.open.permute(2, 3, 0, 1).numpy(), 1 + np.round(scaled * 65534), 0)
        packed.append(
            {
                "position": keys.position,
                "path": keys.path,
                "references": [{"position": l, "path": path} for l, path in keys.references.items()],
                "keys": keys.weights.shape[1],
                "height": keys.weights.shape[2],
                "width": keys.weights.shape[3],
                "open": float(keys.open.float().mean()),
                "offsets": _base64(offsets.clip(-32768, 32767).astype("<i2")),
                "weights": _base64(codes.astype("<u2")),
            }
        )
    return packed


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
