"""How far a network looks: the input pixels around an output pixel that decide it, measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acla_nas.attention import ACLA, Combined
from acla_nas.network import CrossLayerNetwork

_LARGEST = 1024  # pixels: a network that looks further is taken to see the whole image
_ROWS = 16  # of pixels at a time, whose offsets, more numbers than the pixels have, stay in a cache


def backbone_reach(network: CrossLayerNetwork, channels: int, multiple_of: int = 1) -> int | None:
    """Return how many input pixels away, along an axis, the backbone looks; None where at the whole image.

    It is where the gradient of a few output pixels with respect to a strip of noise is not zero, along the
    width and along the height, with no attention inserted. Convolutions give their exact receptive field;
    a mean over the image, as RCAN's channel attention has, or attention over all pixels gives None.

    Args:
        network: in evaluation mode.
        channels: of its input.
        multiple_of: what its input's sides must be divisible by.

    Example:
        >>> backbone = nn.Sequential(nn.Conv2d(3, 4, 5, padding=2), nn.Conv2d(4, 3, 3, padding=1))
        >>> backbone_reach(CrossLayerNetwork.dense(backbone, {1: "0"}, "cla").eval(), channels=3)
        3
    """
    along_both = [_reach_along(axis, network, channels, multiple_of) for axis in (2, 3)]
    return None if None in along_both else max(n for n in along_both if n is not None)


def _reach_along(axis: int, network: CrossLayerNetwork, channels: int, multiple_of: int) -> int | None:
    generator = torch.Generator().manual_seed(0)
    weight = next(network.parameters())
    none = {j: False for j in network.positions}
    length = 128
    while length <= 4 * _LARGEST:
        length = -(-length // multiple_of) * multiple_of
        shape = [1, channels, 1, 1]
        shape[2:] = [length if a == axis else -(-8 // multiple_of) * multiple_of for a in (2, 3)]
        strip = torch.rand(shape, generator=generator).to(weight.device, weight.dtype).requires_grad_()
        first, count = length // 2, max(8, multiple_of)  # a few, for windows and strides
        with torch.enable_grad():
            output = network(strip, gates=none)
            scale = output.shape[axis] // length
            inner = output.narrow(axis, first * scale, count * scale)
            [slope] = torch.autograd.grad(inner.sum(), strip)  # leaves the weights' gradients alone
        seen = slope.abs().amax([a for a in range(4) if a != axis]).nonzero().flatten()
        nearest, farthest = int(seen.min()), int(seen.max())
        if nearest > 0 and farthest < length - 1:
            return max(first - nearest, farthest - (first + count - 1))
        length *= 4
    return None


@contextmanager
def largest_offsets(network: nn.Module) -> Iterator[dict[str, float]]:
    """Within it, keep the largest offset, in pixels of the feature, that each attention module has used.

    Yields:
        Path of the module -> pixels along an axis, so far.

    Example:
        >>> attention = ACLA(4, num_keys=8)
        >>> with largest_offsets(attention) as seen:
        ...     _ = attention(torch.rand(1, 4, 6, 6), {"1": torch.rand(1, 4, 6, 6)})
        >>> seen
        {'': 1.0}
    """
    seen: dict[str, float] = {}
    hooks = []
    for path, module in network.named_modules():
        if isinstance(module, ACLA):

            def measure(attention: ACLA, inputs: Sequence[Tensor], path: str = path) -> None:
                with torch.no_grad():
                    seen[path] = max(seen.get(path, 0.0), _largest_offset(attention, inputs[0]))

            hooks.append(module.register_forward_pre_hook(measure))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _largest_offset(attention: ACLA, query: Tensor) -> float:
    """Return the largest offset that a module gives one of its keys, in pixels along an axis."""
    layers: list[Any] = list(attention.references.values())
    weights = torch.cat([layer.offset.weight for layer in layers])
    ends = []
    for rows in query.split(_ROWS, 2):
        beyond = F.conv2d(rows, weights)
        ends += [beyond.amin((0, 2, 3)), beyond.amax((0, 2, 3))]
    base = attention.base.to(query.dtype).flatten().repeat(len(layers))
    return float((torch.stack(ends) + base).abs().max())


def total_reach(
    network: CrossLayerNetwork, backbone: int | None, offsets: Mapping[str, float], input_shape: Sequence[int]
) -> int | None:
    """Return how far the whole network looks, given its backbone's reach and the largest offsets.

    A path from an input pixel to an output pixel goes through the backbone, and through each attention
    module at most once, which moves it by an offset and the neighbouring pixel of bilinear reading. So it is
    at most the backbone's reach and all of these together. Offsets are learned functions of the image,
    without a bound; this holds for images whose offsets are no larger than those given.

    Args:
        network: with its attention.
        backbone: see :func:`backbone_reach`.
        offsets: see :func:`largest_offsets`.
        input_shape: (C, H, W) that the network's features were traced for, the architecture's.

    Returns:
        Input pixels; None where the backbone, or attention that is not CLA or ACLA, sees the whole image.

    Example:
        >>> backbone = nn.Sequential(nn.Conv2d(3, 4, 5, padding=2), nn.Conv2d(4, 3, 3, padding=1))
        >>> network = CrossLayerNetwork.dense(backbone, {1: "0"}, "cla", num_keys=8)
        >>> total_reach(network, 3, {"attention.1": 1.0}, (3, 48, 48))
        5
    """
    if backbone is None:
        return None
    reach = float(backbone)
    # Input pixels per pixel of the feature at each position.
    pixels = {
        j: max(1.0, *(n / own for n, own in zip(input_shape[-2:], place.feature[1:])))
        for j, place in network.places.items()
    }
    for name, attention in network.attention.items():
        parts = list(attention.parts) if isinstance(attention, Combined) else [attention]
        if not all(isinstance(part, ACLA) for part in parts):
            return None
        farthest = sum(n for path, n in offsets.items() if f"{path}.".startswith(f"attention.{name}."))
        neighbour = max(n for j, n in pixels.items() if j <= int(name))
        reach += farthest * pixels[int(name)] + neighbour * len(parts)
    return math.ceil(reach)
