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

from acla_nas.attention.weighted_keys import WeightedKeys, each, key_rows

if TYPE_CHECKING:
    from acla_nas.attention.acla import ACLA

_GROUP_KEYS = 1 << 17  # keys of one reference worked on at a time, whatever the threads


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
    projections = [layer.projection().flatten(1) for layer in layers]  # (C + masks) x C_l
    result: tuple[Tensor, Tensor] = _Attend.apply(
        module, on, query, key_rows(layers), inside, outside, *references, *projections
    )
    return result


class _Attend(torch.autograd.Function):
    """See :func:`attend`."""

    @staticmethod
    def forward(ctx: Any, module: ACLA, on: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        query = tensors[0]
        batch, channels, height, width = query.shape
        y = query.new_empty(batch, height, width, channels)
        log_sums = query.new_empty(batch, height * width)
        opened = 0
        for images in _groups(module, query):
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
        of = [torch.zeros_like(t) if need else None for t, need in zip(tensors, needed)]
        count = len(inside) if needed[2] or needed[3] else on
        of_open = float(of_share) / _num_keys(module, query, on)
        for images in _groups(module, query):
            group = _Group(module, images, tensors, count)
            of_rows, rows = (t[images].reshape(-1, t.shape[-1]) for t in (of_y, y))
            group.backward(of_rows, rows, log_sums[images].flatten(), of_open, on, of)
        return (None, None, *of)


def _groups(module: ACLA, query: Tensor) -> Iterator[slice]:
    """Yield the images that are worked on at a time."""
    batch, _, height, width = query.shape
    size = max(1, _GROUP_KEYS // (module.num_keys * height * width))
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
        self.images, self.channels = images, query.shape[1]
        self.references = [x[images].flatten(2) for x in rest[:count]]  # b x C_l x P
        self.projections = rest[len(inside) :][:count]
        self.scores = scores[:, :count]
        self.keys = WeightedKeys(module, query[images], self.scores, inside[:count], outside[:count])

    def _read(self, r: int) -> tuple[Tensor, Tensor | None]:
        """Return G x of one reference, (b P, C), and M x, (b, P, masks)."""
        pixels, projection = self.references[r].mT, self.projections[r].t()
        masks = each(pixels, projection[:, self.channels :]) if self.keys.is_gated else None
        return each(pixels, projection[:, : self.channels]).flatten(0, 1), masks

    def forward(self, y: Tensor) -> tuple[Tensor, int]:
        """Write y (Q, C), return the log of the joint softmax's sum (Q,), and the number of open keys."""
        keys = self.keys
        shift = keys.exponentiate()
        opened = 0
        for r in range(len(self.references)):
            rows, masks = self._read(r)
            opened += keys.weigh(r, masks)
            if r == 0:
                y.copy_(keys.sum(r, rows))
            else:
                y += keys.sum(r, rows)
        if keys.joint:
            y /= keys.sums.unsqueeze(-1)
        return shift.add_(keys.sums.log()), opened

    def backward(
        self, of_y: Tensor, y: Tensor, log_sums: Tensor, of_open: float, on: int, of: list[Tensor | None]
    ) -> None:
        """Add the gradients of this group to those of all arguments.

        Args:
            of_y: dL/dy, (Q, C).
            y: (Q, C).
            log_sums: logarithms of the joint softmax's sums, (Q,).
            of_open: gradient of a key's gate, beside that which it has through y.
            on: references that are on.
            of: gradients of what the group was made of.
        """
        of_query, of_scores, of_inside, of_outside, *rest = of
        of_references, of_projections = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        totals = (of_y * y).sum(-1)  # <dL/dy, y>
        keys = self.keys
        keys.exponentiate(log_sums)
        for r, reference in enumerate(self.references):
            rows, masks = self._read(r)
            keys.weigh(r, masks)
            of_masks, of_gates, of_gate = keys.differentiate(r, rows, masks, of_y, totals, of_open)
            if of_inside is not None:
                of_inside[r] += of_gates
            if of_outside is not None and not keys.joint:
                of_outside[r] += of_gate
            if r >= on:
                continue
            of_values = keys.sum_transposed(r, of_y, len(rows)).view(*reference.mT.shape[:2], -1)
            of_reference, of_projection = of_references[r], of_projections[r]
            if of_reference is not None:
                self._add_reference(r, of_values, of_masks, of_reference)
            if of_projection is not None:
                self._add_projection(r, of_values, of_masks, of_projection)
        self._add_query(on, of_query, of_scores)

    def _add_reference(
        self, r: int, of_values: Tensor, of_masks: Tensor | None, of_reference: Tensor
    ) -> None:
        projection = self.projections[r].t().expand(len(of_values), -1, -1)
        pixels = torch.bmm(projection[:, :, : self.channels], of_values.mT)
        if of_masks is not None:
            pixels.baddbmm_(projection[:, :, self.channels :], of_masks.mT)
        of_reference[self.images] = pixels.view_as(of_reference[self.images])

    def _add_projection(
        self, r: int, of_values: Tensor, of_masks: Tensor | None, of_projection: Tensor
    ) -> None:
        pixels = self.references[r].mT
        of_projection[: self.channels] += torch.bmm(of_values.mT, pixels).sum(0)
        if of_masks is not None:
            of_projection[self.channels :] += torch.bmm(of_masks.mT, pixels).sum(0)

    def _add_query(self, on: int, of_query: Tensor | None, of_scores: Tensor | None) -> None:
        """Add the gradients of the query and of what projects it, from those of offsets and logits."""
        pixels, of_found = self.keys.pixels, self.keys.of_found[:, :on].flatten(0, 1)
        if of_query is not None:
            of_pixels = torch.zeros_like(pixels)
            for of_one, weight in zip(of_found, self.scores[:, :on].flatten(0, 1)):
                of_pixels.addmm_(of_one, weight)
            into = of_query[self.images].permute(0, 2, 3, 1)
            into.copy_(of_pixels.view(into.shape))
        if of_scores is not None:
            sums = torch.bmm(of_found.mT, pixels.expand(len(of_found), -1, -1))
            of_scores[:, :on] += sums.view_as(of_scores[:, :on])
