"""What ACLA cannot do without, by itself: its products, and its sums of rows."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from acla_nas.bench.ops import Case, bags_alone

_KEYS = 16
_TOGETHER = 4  # images at most in a product of a training step: of one, it is too small for two threads


def parts_of_module(
    channels: int,
    references: int,
    size: int,
    batch_size: int = 1,
    *,
    training: bool = False,
    device: torch.device | None = None,
) -> Callable[[], list[Tensor]]:
    """Return what computes the products and the sums of rows of a module alone, by PyTorch's own functions.

    The query is projected to offsets and logits of 16 keys in each reference, each reference to its values
    and its masks, and each query pixel sums 4 x 16 rows of it. In training there are also H (otherwise it is
    multiplied into the other matrices), two gradients of each product, and twice what takes as long as the
    sums of rows: products of rows with the gradient, and the rows' gradients. Query and references are
    projected twice then: the backward pass has that once more rather than keep it.

    All have the same arguments each time, which so lie in caches that are large enough. Nothing else is
    there: where keys lie, what is read of masks, softmax, gates, and what brings one to the other.

    Args:
        channels: of query and references.
        references: of the module.
        size: H and W.
        batch_size: images.
        training: whether gradients are wanted.
        device: to compute on, the CPU unless given.

    Example:
        >>> parts = parts_of_module(channels=8, references=2, size=12)
        >>> [tuple(result.shape) for result in parts()]  # of the query, a reference, and a sum of rows
        [(144, 96), (1, 144, 24), (144, 8)]
    """
    images, pixels = math.gcd(batch_size, _TOGETHER), size**2

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, device=device)

    query, of_query = random(images * pixels, channels), random(images * pixels, references * 3 * _KEYS)
    reference, of_table = random(images, channels, pixels), random(images, pixels, channels + _KEYS)
    for_query, for_y = random(references * 3 * _KEYS, channels), random(channels, channels)
    for_reference = random(channels + _KEYS, channels).expand(images, -1, -1)
    bags = bags_alone(Case(channels, 1, _KEYS, size), device)

    def project() -> list[Tensor]:
        found = torch.mm(query, for_query.t())
        for _ in range(references):
            table = torch.bmm(reference.mT, for_reference.mT)
        return [found, table]

    def differentiate() -> None:
        torch.mm(of_query, for_query)
        torch.mm(of_query.t(), query)
        for _ in range(references):
            torch.bmm(for_reference.mT, of_table.mT)
            torch.bmm(of_table.mT, reference.mT)
        torch.mm(query, for_y)
        torch.mm(query, for_y.t())
        torch.mm(query.t(), query)

    def compute() -> list[Tensor]:
        for _ in range(batch_size // images):
            projected = project()
            if training:
                project()
                differentiate()
        for _ in range((3 if training else 1) * batch_size * references):
            sums = bags()
        return projected + sums

    return compute
