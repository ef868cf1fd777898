"""ACLA with gradients on a CPU: all of a module but H as one function, with a backward pass of its own.

It keeps its arguments, its result and the softmax's sums. Where the keys lie, their weights and all that
follows from them is worked out again in the backward pass, for a few images at a time. A reference that is
gated off is looked at in the backward pass only, for the gradient of its gate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from acla_nas.attention.weighted_keys import WeightedKeys, key_rows, project
from acla_nas.ops.scratch import scratch

if TYPE_CHECKING:
    from acla_nas.attention.acla import ACLA

_GROUP_KEYS = 1 << 18  # keys of all references worked on at a time, whatever the threads


def attend(
    module: ACLA,
    query: Tensor,
    references: Sequence[Tensor],
    layers: Sequence[Any],
    inside: Tensor,
    outside: Tensor,
    on: int,
) -> tuple[Tensor, Tensor]:
    """Return the module's update H y (B, C, H, W), and the share of the keys that are open, a scalar.

    Key gates are drawn without noise. Only for features on a CPU, of one size and dtype.

    Args:
        module: the attention.
        query: (B, C, H, W).
        references: R x (B, C_l, H, W); first those that are on.
        layers: what belongs to each of them.
        inside: (R, K), gates that the exponentials are multiplied by; 0 where a reference is off.
        outside: (R,), gates that they are multiplied by when divided by their sum; likewise.
        on: how many references are on.
    """
    projections = [layer.projection().flatten(1) for layer in layers]  # (C + masks) x C_l
    y, share = _Attend.apply(module, on, query, key_rows(layers), inside, outside, *references, *projections)
    return module.out(y), share


class _Attend(torch.autograd.Function):
    """See :func:`attend`."""

    @staticmethod
    def forward(ctx: Any, module: ACLA, on: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        query = tensors[0]
        batch, channels, height, width = query.shape
        y = query.new_empty(batch, height, width, channels)
        log_sums = query.new_empty(batch, height * width)
        opened = 0
        for images in _groups(module, query, on):
            found, count = _Group(module, images, tensors, on).forward(y[images].view(-1, channels))
            log_sums[images] = found.view(-1, height * width)
            opened += count
        ctx.module, ctx.on = module, on
        ctx.save_for_backward(y, log_sums, *tensors)
        return y.permute(0, 3, 1, 2), query.new_tensor(opened / _num_keys(module, query, on))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_y: Tensor, of_share: Tensor) -> tuple[Tensor | None, ...]:
        module, on, (y, log_sums, *tensors) = ctx.module, ctx.on, ctx.saved_tensors
        query, inside, of_y = tensors[0], tensors[2], of_y.permute(0, 2, 3, 1)
        needed = ctx.needs_input_grad[2:]
        # Of the query and of references that are on, each image is written in its turn.
        written = {0, *range(4, 4 + on)}
        of = [
            (t.new_empty if i in written else t.new_zeros)(t.shape) if need else None
            for i, (t, need) in enumerate(zip(tensors, needed))
        ]
        count = len(inside) if needed[2] or needed[3] else on
        of_open = float(of_share) / _num_keys(module, query, on)
        for images in _groups(module, query, count):
            group = _Group(module, images, tensors, count)
            of_rows, rows = (t[images].reshape(-1, t.shape[-1]) for t in (of_y, y))
            group.backward(of_rows, rows, log_sums[images].flatten(), of_open, on, of)
        return (None, None, *of)


def _groups(module: ACLA, query: Tensor, references: int) -> Iterator[slice]:
    """Yield the images that are worked on at a time."""
    batch, _, height, width = query.shape
    size = max(1, _GROUP_KEYS // (module.num_keys * references * height * width))
    for first in range(0, batch, size):
        yield slice(first, min(first + size, batch))


def _num_keys(module: ACLA, query: Tensor, references: int) -> int:
    batch, _, height, width = query.shape
    return batch * height * width * references * module.num_keys


class _Group:
    """What a module computes for a few images: (b, H, W) query pixels, each with K keys in R references.

    Args:
        module: the attention.
        images: of the batch.
        tensors: query, scores, inside, outside, references and projections, see :func:`attend`.
        count: references that are looked at.
    """

    def __init__(self, module: ACLA, images: slice, tensors: Sequence[Tensor], count: int) -> None:
        query, scores, inside, outside, *rest = tensors
        self.images = images
        self.references = [x[images].flatten(2) for x in rest[:count]]  # b x C_l x P
        self.projections = rest[len(inside) :][:count]
        self.scores = scores[:count]
        batch, _, pixels = self.references[0].shape
        channels, width = query.shape[1], len(self.projections[0])
        tables = scratch("tables", query.dtype, count, batch, pixels, channels)
        masks = scratch("masks", query.dtype, count, batch, pixels, width - channels)
        for reference, matrix, *into in zip(self.references, self.projections, tables, masks):
            project(reference, matrix.t(), *into)
        self.keys = WeightedKeys(
            module, query[images], self.scores, tables, masks, inside[:count], outside[:count]
        )

    def forward(self, y: Tensor) -> tuple[Tensor, int]:
        """Write y (Q, C), return the log of the joint softmax's sum (Q,), and the number of open keys."""
        return self.keys.sum(y)

    def backward(
        self, of_y: Tensor, y: Tensor, log_sums: Tensor, of_open: float, on: int, of: list[Tensor | None]
    ) -> None:
        """Write or add the gradients of this group to those of all arguments.

        Args:
            of_y: dL/dy, (Q, C).
            y: (Q, C).
            log_sums: logarithms of the joint softmax's sums, (Q,).
            of_open: gradient of a key's gate, beside that which it has through y.
            on: references that are on.
            of: gradients of what the group was made of.
        """
        of_query, of_scores, of_inside, of_outside, *rest = of
        totals = (of_y * y).sum(-1)  # <dL/dy, y>
        of_found, of_tables, *of_gates = self.keys.differentiate(of_y, log_sums, totals, of_open, on)
        for into, found in zip((of_inside, of_outside), of_gates):
            if into is not None:
                into[: len(found)] += found
        for r, of_table in enumerate(of_tables):
            of_reference, of_projection = rest[r], rest[len(rest) // 2 + r]
            if of_reference is not None:
                matrix = self.projections[r].t().expand(len(of_table), -1, -1)
                torch.bmm(matrix, of_table.mT, out=of_reference[self.images].flatten(2))
            if of_projection is not None:
                of_projection += torch.bmm(of_table.mT, self.references[r].mT).sum(0)
        of_keys, scores = of_found[:, :on].flatten(1), self.scores[:on].flatten(0, 2)
        if of_query is not None:
            into = of_query[self.images].permute(0, 2, 3, 1)
            into.copy_(torch.mm(of_keys, scores).view(into.shape))
        if of_scores is not None:
            of_scores[:on] += torch.mm(of_keys.t(), self.keys.pixels).view_as(of_scores[:on])
