"""ACLA with gradients on a CPU: all of a module but H as one function, with a backward pass of its own.

It keeps its arguments, its result and the softmax's sums. Where the keys lie, their weights and all that
follows from them is worked out again in the backward pass, for a few images and one reference at a time. A
reference that is gated off is looked at in the backward pass only, for the gradient of its gate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from acla_nas.attention.weighted_keys import Projected, WeightedKeys

if TYPE_CHECKING:
    from acla_nas.attention.acla import ACLA

_GROUP_KEYS = 1 << 16  # keys of one reference worked on at a time, for each thread


def attend(
    module: ACLA,
    query: Tensor,
    references: Sequence[Tensor],
    layers: Sequence[Any],
    inside: Tensor,
    outside: Tensor,
    on: int,
) -> tuple[Tensor, Tensor]:
    """Return y of Eq. 6 (B, C, H, W), and the share of the keys that are open, a scalar.

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
    offset = torch.cat([layer.offset.weight.flatten(1) for layer in layers])  # 2 R K x C
    logit = torch.cat([layer.logit.weight.flatten(1) for layer in layers])  # R K x C
    projections = [layer.projection().flatten(1) for layer in layers]  # (C + masks) x C_l
    result: tuple[Tensor, Tensor] = _Attend.apply(
        module, on, query, offset, logit, inside, outside, *references, *projections
    )
    return result


class _Attend(torch.autograd.Function):
    """See :func:`attend`."""

    @staticmethod
    def forward(ctx: Any, module: ACLA, on: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        query = tensors[0]
        batch, channels, height, width = query.shape
        y = query.new_empty(batch, height, width, channels)
        log_sums = query.new_empty(batch, height, width)
        opened = 0
        for images in _groups(module, query):
            log_sums[images], count = _Group(module, images, tensors, on).forward(y[images])
            opened += count
        ctx.module, ctx.on = module, on
        ctx.save_for_backward(y, log_sums, *tensors)
        return y.permute(0, 3, 1, 2), query.new_tensor(opened / _num_keys(module, query, on))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_y: Tensor, of_share: Tensor) -> tuple[Tensor | None, ...]:
        module, on, (y, log_sums, *tensors) = ctx.module, ctx.on, ctx.saved_tensors
        query, inside = tensors[0], tensors[3]
        needed = ctx.needs_input_grad[2:]
        of = [torch.zeros_like(t) if need else None for t, need in zip(tensors, needed)]
        count = len(inside) if needed[3] or needed[4] else on
        of_open = float(of_share) / _num_keys(module, query, on)
        for images in _groups(module, query):
            group = _Group(module, images, tensors, count)
            group.backward(of_y[images], y[images], log_sums[images], of_open, on, of)
        return (None, None, *of)


def _groups(module: ACLA, query: Tensor) -> Iterator[slice]:
    """Yield the images that are worked on at a time."""
    batch, _, height, width = query.shape
    size = max(1, _GROUP_KEYS * torch.get_num_threads() // (module.num_keys * height * width))
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
        tensors: query, offset, logit, inside, outside, references and projections, see :func:`attend`.
        count: references that are looked at.
    """

    def __init__(self, module: ACLA, images: slice, tensors: Sequence[Tensor], count: int) -> None:
        query, offset, logit, inside, outside, *rest = tensors
        keys = module.num_keys
        self.images, self.size = images, query.shape[-2:]
        self.query = query[images].flatten(2)  # b x C x P
        self.references = [x[images].flatten(2) for x in rest[:count]]
        self.projections = rest[len(inside) :][:count]
        self.offset, self.logit = offset[: 2 * keys * count], logit[: keys * count]
        self.keys = WeightedKeys.of(module, self.query, self.offset, self.logit, self.size)
        self.keys.switch(inside[:count], outside[:count])

    def _read(self, r: int) -> Projected:
        """Return G x and M x of one reference."""
        projection, channels = self.projections[r], self.query.shape[1]
        masks = None
        if len(projection) > channels:
            masks = _each(projection[channels:], self.references[r])
        values = torch.bmm(self.references[r].mT, projection[:channels].t().expand(len(self.query), -1, -1))
        return Projected(values.flatten(0, 1), masks, self.size)

    def forward(self, y: Tensor) -> tuple[Tensor, int]:
        """Write y (b, H, W, C), return the log of the joint softmax's sum (b, H, W), and the open keys."""
        keys = self.keys
        shift = keys.exponentiate()
        opened = 0
        for r in range(len(self.references)):
            projected = self._read(r)
            opened += keys.weigh(r, projected)
            sums = keys.sum(r, projected).view_as(y)
            if r == 0:
                y.copy_(sums)
            else:
                y += sums
        if keys.joint:
            y /= keys.sums.unsqueeze(-1)
        return shift.add_(keys.sums.log()), opened

    def backward(
        self, of_y: Tensor, y: Tensor, log_sums: Tensor, of_open: float, on: int, of: list[Tensor | None]
    ) -> None:
        """Add the gradients of this group to those of all arguments.

        Args:
            of_y: dL/dy, (b, C, H, W).
            y: (b, H, W, C).
            log_sums: logarithms of the joint softmax's sums, (b, H, W).
            of_open: gradient of a key's gate, beside that which it has through y.
            on: references that are on.
            of: gradients of what the group was made of.
        """
        of_query, of_offset, of_logit, of_inside, of_outside, *rest = of
        of_references, of_projections = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        of_y = of_y.permute(0, 2, 3, 1).contiguous()
        totals = (of_y * y).sum(-1)  # <dL/dy, y>
        keys = self.keys
        keys.exponentiate(log_sums)
        keys.start_gradients()
        for r, reference in enumerate(self.references):
            projected = self._read(r)
            keys.weigh(r, projected)
            of_masks, of_gates, of_gate = keys.differentiate(r, projected, of_y, totals, of_open)
            if of_inside is not None:
                of_inside[r] += of_gates
            if of_outside is not None and not keys.joint:
                of_outside[r] += of_gate
            if r >= on:
                continue
            of_values = keys.sum_transposed(r, projected, of_y).view(*reference.mT.shape[:2], -1)
            projection, channels = self.projections[r], of_values.shape[-1]
            of_one, of_projection = of_references[r], of_projections[r]
            if of_one is not None:
                pixels = _each(projection[:channels].t(), of_values.mT)
                if of_masks is not None:
                    pixels.baddbmm_(projection[channels:].t().expand(len(of_masks), -1, -1), of_masks)
                of_one[self.images] = pixels.view_as(of_one[self.images])
            if of_projection is not None:
                of_projection[:channels] += torch.bmm(of_values.mT, reference.mT).sum(0)
                if of_masks is not None:
                    of_projection[channels:] += torch.bmm(of_masks, reference.mT).sum(0)
        self._add_query(keys, on, of_query, of_offset, of_logit)

    def _add_query(
        self,
        keys: WeightedKeys,
        on: int,
        of_query: Tensor | None,
        of_offset: Tensor | None,
        of_logit: Tensor | None,
    ) -> None:
        """Add the gradients of the query and of what projects it, from those of offsets and logits."""
        pixels = torch.zeros_like(self.query)
        for weight, of_weight, of_found in (
            (self.offset, of_offset, keys.of_offsets[:, :on]),
            (self.logit, of_logit, keys.of_logits[:, :on]),
        ):
            found = of_found.flatten(1, -3).flatten(2)  # b x (2) R K x P
            rows = found.shape[1]
            if of_query is not None:
                pixels.baddbmm_(weight[:rows].t().expand(len(found), -1, -1), found)
            if of_weight is not None:
                of_weight[:rows] += torch.bmm(found, self.query.mT).sum(0)
        if of_query is not None:
            of_query[self.images] = pixels.view_as(of_query[self.images])


def _each(matrix: Tensor, batch: Tensor) -> Tensor:
    """Return the products of one matrix with each of a batch: (b, N, P)."""
    return torch.bmm(matrix.expand(len(batch), -1, -1), batch)
