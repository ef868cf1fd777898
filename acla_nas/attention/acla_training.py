"""ACLA with gradients on a CPU: all of a module but H as one function, with a backward pass of its own.

It keeps its arguments, its result and the softmax's sums. Where the keys lie, their weights and all that
follows from them is worked out again in the backward pass, for a few images and one reference at a time. A
reference that is gated off is looked at in the backward pass only, for the gradient of its gate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from acla_nas.ops.table import Keys, Table

if TYPE_CHECKING:
    from acla_nas.attention.acla import ACLA

_GROUP_KEYS = 1 << 16  # keys of one reference worked on at a time, for each thread
_SMALL = 1e-6  # part of all keys in the sum that renormalised weights are divided by
_HIGHEST = 20.0  # logarithm of a share of the softmax: only what is off could have a larger one


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
    keys = module.num_keys
    offset = torch.stack([layer.offset.weight.view(keys, 2, -1) for layer in layers]).movedim(2, 0)
    logit = torch.stack([layer.logit.weight.flatten(1) for layer in layers])
    scores = torch.cat((offset, logit.unsqueeze(0)))  # (dx, dy, a) x R x K x C
    projections = [layer.projection().flatten(1) for layer in layers]  # (C + masks) x C_l
    result: tuple[Tensor, Tensor] = _Attend.apply(
        module, on, query, scores, inside, outside, *references, *projections
    )
    return result


class _Attend(torch.autograd.Function):
    """See :func:`attend`."""

    @staticmethod
    def forward(ctx: Any, module: ACLA, on: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        query = tensors[0]
        batch, channels, height, width = query.shape
        y = query.new_empty(batch, height, width, channels)
        log_sums = query.new_empty(batch, height, width, 1)
        opened = query.new_zeros(())
        for images in _groups(module, query):
            group = _Group(module, images, tensors, on)
            log_sums[images] = group.forward(y[images].view(-1, channels), opened)
        ctx.module, ctx.on = module, on
        ctx.save_for_backward(y, log_sums, *tensors)
        return y.permute(0, 3, 1, 2), opened / _num_keys(module, query, on)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_y: Tensor, of_share: Tensor) -> tuple[Tensor | None, ...]:
        module, on, (y, log_sums, *tensors) = ctx.module, ctx.on, ctx.saved_tensors
        query, inside = tensors[0], tensors[2]
        needed = ctx.needs_input_grad[2:]
        of = [torch.zeros_like(t) if need else None for t, need in zip(tensors, needed)]
        count = len(inside) if needed[2] or needed[3] else on
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


class _Masks(NamedTuple):
    """What a reference's masks are, and what is read there.

    Attributes:
        maps: of each key those of all pixels, framed as the table of the values is.
        where: are the four pixels around each key in its own map, (1, b, H, W, 4, K).
        four: what is there, likewise.
        gates: which keys are open, 0/1, (b, H, W, K).
        slopes: of the gates.
    """

    maps: Tensor
    where: Tensor
    four: Tensor
    gates: Tensor
    slopes: Tensor


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
        self.module, self.images, self.count = module, images, count
        self.joint = module.softmax == "joint"
        self.inside, self.outside = inside[:count], outside[:count]
        self.references = [x[images] for x in rest[:count]]
        self.projections = rest[len(inside) :][:count]
        _, self.channels, self.height, self.width = query.shape
        self.query = query[images].permute(0, 2, 3, 1).contiguous()
        self.rows = self.query.view(-1, self.channels)  # Q x C
        self.scores = scores[:, :count]
        found = torch.bmm(self.rows.expand(3 * count, -1, -1), self.scores.flatten(0, 1).mT)
        self.found = found.view(3, count, *self.query.shape[:3], -1)  # (dx, dy, a) x R x b x H x W x K
        self.found[:2] += module.base.to(found.dtype).t().view(2, 1, 1, 1, 1, -1)

    def forward(self, y: Tensor, opened: Tensor) -> Tensor:
        """Write y (Q, C), add to the number of open keys, return the log of the joint softmax's sum."""
        largest = torch.stack([self._largest(r) for r in range(self.count)]).amax(0)
        sums = torch.zeros_like(largest)
        y.zero_()
        for r in range(self.count):
            keys, rows = self._read(r)
            gates = self._masks(r, keys, rows).gates if self.module.adaptive else None
            opened += self.found[2, r].numel() if gates is None else gates.sum()
            weights, total = self._exponentials(r, largest, gates) if self.joint else self._softmax(r, gates)
            weights *= self._factor(r) if gates is None else gates * self._factor(r)
            sums += total
            y += keys.sum(weights[None])
        if self.joint:
            y /= sums.view(-1, 1)
        return largest.add_(sums.log_())

    def _factor(self, r: int) -> Tensor:
        return self.inside[r] * self.outside[r]

    def _read(self, r: int) -> tuple[Keys, int]:
        """Return the keys in a table of G x of one reference, and its rows; uses up what was found."""
        reference, weight = self.references[r].flatten(2), self.projections[r][: self.channels]
        values = torch.bmm(reference.mT, weight.t().expand(len(reference), -1, -1))
        table = Table(values.mT.unflatten(2, (self.height, self.width)), values.dtype, whole=True)
        return Keys(self.found[:2, r : r + 1], 0, self.height, [table]), len(table.rows)

    def _masks(self, r: int, keys: Keys, rows: int) -> _Masks:
        """Return M x of one reference and what the keys read of it (Eq. 7, 8)."""
        module, weight = self.module, self.projections[r][self.channels :]
        maps = weight.new_zeros(len(weight), rows)
        inside = self._inside(maps)
        inside.copy_(torch.matmul(weight, self.references[r].flatten(2)).transpose(0, 1).view_as(inside))
        where = keys.index(maps.shape[1] if len(maps) > 1 else 0)
        four = maps.view(-1).index_select(0, where.view(-1)).view(where.shape)
        logits = keys.between(four)[0].add_(module.gate_bias)
        gates = (logits > 0).to(logits.dtype)
        soft = logits.div_(module.gate_temperature).sigmoid_()
        return _Masks(maps, where, four, gates, soft.sub_(soft * soft).div_(module.gate_temperature))

    def _inside(self, maps: Tensor) -> Tensor:
        """Return what is within the frame of mask maps: (K, b, H, W), a view."""
        return maps[:, :-2].view(len(maps), len(self.query), self.height + 4, -1)[..., 2:-2, 2:]

    def _largest(self, r: int) -> Tensor:
        """Return the largest logit of a reference, (b, H, W, 1).

        What is off must not decide the scale, for all else could vanish beside it.
        """
        off = self.inside[r] == 0
        return self.found[2, r].masked_fill(off, -torch.inf).amax(-1, keepdim=True)

    def _exponentials(self, r: int, shift: Tensor, gates: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return exp(a - shift) of a reference, and what they add to the sum that they are divided by."""
        parts = (self.found[2, r] - shift).clamp_(max=_HIGHEST).exp_()
        counted = parts * self.inside[r]
        total = counted.sum(-1, keepdim=True)
        if self.module.renormalize and gates is not None:
            total = counted.mul_(gates).sum(-1, keepdim=True) + _SMALL * total
        return parts, total

    def _softmax(self, r: int, gates: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the softmax within one reference, and its sum."""
        parts, total = self._exponentials(r, self._largest(r), gates)
        return parts.div_(total), total

    def backward(
        self, of_y: Tensor, y: Tensor, log_sums: Tensor, of_open: float, on: int, of: list[Tensor | None]
    ) -> None:
        """Add the gradients of this group to those of all arguments.

        With p the softmax, s the gates in it, m those of the keys, v the values and D = <dL/dy, v>::

            y = sum s m p v,   dL/da = s p (m D - T),   dL/ds = p (m D - T),   dL/dm = s p D,   T = <dL/dy, y>

        Args:
            of_y: dL/dy, (b, C, H, W).
            y: (b, H, W, C).
            log_sums: logarithms of the joint softmax's sums, (b, H, W, 1).
            of_open: gradient of a key's gate, beside that which it has through y.
            on: references that are on.
            of: gradients of what the group was made of.
        """
        of_query, of_scores, of_inside, of_outside, *rest = of
        of_references, of_projections = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        of_y = of_y.permute(0, 2, 3, 1).contiguous()
        total = (of_y * y).sum(-1, keepdim=True)  # T, of the joint softmax
        of_y = of_y.view(-1, self.channels)
        of_found = torch.empty_like(self.found[:, :on])
        for r in range(self.count):
            keys, rows = self._read(r)
            masks = self._masks(r, keys, rows) if self.module.adaptive else None
            gates = None if masks is None else masks.gates
            parts, _ = self._exponentials(r, log_sums, None) if self.joint else self._softmax(r, gates)
            weights = parts * self._factor(r)
            if gates is not None:
                weights *= gates
            of_places, products = keys.gradients(keys.dots(of_y), weights[None])
            of_gates, kept = products[0], products[0] if gates is None else products[0] * gates
            if not self.joint:
                total = (kept * parts).mul_(self.inside[r]).sum(-1, keepdim=True)
            if self.module.renormalize and gates is not None:
                of_gates = of_gates - total
                of_logits = kept.sub_((gates + _SMALL) * total)
            else:
                of_logits = kept - total
            of_logits *= parts
            if of_inside is not None:
                of_inside[r] += of_logits.sum((0, 1, 2)) * self.outside[r]
            if of_outside is not None and not self.joint:
                of_outside[r] += total.sum()
            if r >= on:
                continue
            torch.mul(of_logits, self._factor(r), out=of_found[2, r])
            into = of_y.new_zeros(*self.query.shape[:3], len(self.projections[r]))
            if masks is not None:
                of_masks = (of_gates * parts).mul_(self._factor(r)).add_(of_open).mul_(masks.slopes)
                of_places += keys.gradients(masks.four, of_masks[None])[0]
                self._add_masks(into[..., self.channels :], masks, keys.spread(of_masks[None]))
            of_found[:2, r] = of_places[:, 0]
            keys.add_transposed([into[..., : self.channels]], of_y, weights[None])
            self._add_reference(r, into.flatten(1, 2), of_references[r], of_projections[r])
        self._add_query(of_found.view(3 * on, len(of_y), -1), on, of_query, of_scores)

    def _add_masks(self, into: Tensor, masks: _Masks, of_four: Tensor) -> None:
        """Write the gradients of mask maps (b, H, W, K) from those of the four pixels around each key."""
        maps = torch.zeros_like(masks.maps)
        maps.view(-1).scatter_add_(0, masks.where.view(-1).long(), of_four.view(-1))
        into.copy_(self._inside(maps).permute(1, 2, 3, 0))

    def _add_reference(
        self, r: int, of_pixels: Tensor, of_reference: Tensor | None, of_projection: Tensor | None
    ) -> None:
        """Add the gradients of a reference and its projection from those of what it is projected to.

        Args:
            r: which reference.
            of_pixels: (b, H W, C + masks).
            of_reference: (B, C_l, H, W), written here for these images.
            of_projection: (C + masks, C_l).
        """
        reference, projection = self.references[r], self.projections[r]
        if of_reference is not None:
            pixels = torch.bmm(projection.t().expand(len(reference), -1, -1), of_pixels.mT)
            of_reference[self.images] = pixels.view_as(reference)
        if of_projection is not None:
            of_projection += torch.bmm(of_pixels.mT, reference.flatten(2).mT).sum(0)

    def _add_query(
        self, of_found: Tensor, on: int, of_query: Tensor | None, of_scores: Tensor | None
    ) -> None:
        """Add the gradients of the query and of what projects it from those of (dx, dy, a), (3R, Q, K)."""
        if of_query is not None:
            rows = torch.zeros_like(self.rows)
            for of_one, weight in zip(of_found, self.scores[:, :on].flatten(0, 1)):
                rows.addmm_(of_one, weight)
            of_query[self.images] = rows.view_as(self.query).permute(0, 3, 1, 2)
        if of_scores is not None:
            sums = torch.bmm(of_found.mT, self.rows.expand(len(of_found), -1, -1))
            of_scores[:, :on] += sums.view_as(of_scores[:, :on])
