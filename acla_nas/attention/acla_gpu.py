"""ACLA on a GPU: all of a module as one function, with a backward pass of its own.

Keys near their query are read by products of matrices, see :mod:`acla_nas.attention.acla_triton`; those that
are far, one by one: forward by a kernel that ends at once where there are none, and backward by the kernels
of the operator, which are only called for references that have any. Features and what is made of them are
rows of C values a pixel, so that each projection of a batch is one product of matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from acla_nas.attention import acla_triton as kernels
from acla_nas.attention.feature_stack import (
    FeatureStack,
    as_maps,
    as_rows,
    place_of,
    rows_dtype,
    stack_rows,
)
from acla_nas.attention.weighted_keys import SMALL
from acla_nas.ops import gather_triton
from acla_nas.ops.launch import launch

if TYPE_CHECKING:
    from acla_nas.attention.acla import ACLA

_SIDE = 8  # pixels of a tile
_QUERIES, _PIXELS = 64, 256  # of a tile and of its window
_BLOCK = 32  # queries of a program that works on keys
_AWAY = 1e6  # pixels: where a key is put that is not to be read


def attend(
    module: ACLA,
    query: Tensor,
    references: Sequence[Tensor],
    layers: Sequence[Any],
    inside: Tensor,
    outside: Tensor,
    on: int,
) -> tuple[Tensor, Tensor]:
    """Return the module's update H y, and the share of the keys that are open.

    Arguments are those of :func:`acla_nas.attention.acla_training.attend`. Under autocast its dtype is used,
    otherwise that of the query. Features that are in a stack are not copied.
    """
    kinds = ("value", "offset", "logit", "mask")[: 3 if layers[0].mask is None else 4]
    weights = [_weight(layer._modules[kind]) for kind in kinds for layer in layers]
    result: tuple[Tensor, Tensor] = _Attend.apply(
        module, on, inside.float(), outside.float(), module.out.weight, query, *references, *weights
    )
    return result


def _weight(projection: Any) -> Tensor:
    """Return the weight of a convolution, in a tenth of the time that modules take to look it up."""
    weight: Tensor | None = projection._parameters.get("weight")
    return projection.weight if weight is None else weight  # which may be computed, by a parametrization


class _Attend(torch.autograd.Function):
    """See :func:`attend`."""

    @staticmethod
    def forward(
        ctx: Any, module: ACLA, on: int, inside: Tensor, outside: Tensor, out: Tensor, query: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        number, size = len(inside), (query.shape[2], query.shape[3])
        references, weights = tensors[:number], tensors[number:]
        with torch.cuda.device_of(query):
            asked, rows, ctx.held = _take_rows(query, references[:on])
            group = _Group(module, size, asked, rows, inside[:on], outside[:on])
            group.compute([weights[first : first + on] for first in range(0, len(weights), number)], out)
            y = group.sum()
            update = group.project(y, planes=query.is_contiguous())
            has_gates = on < number and any(ctx.needs_input_grad[2:4])
            more = (*stack_rows(references[on:], asked.dtype)[0], *weights, out) if has_gates else ()
        ctx.set_materialize_grads(False)
        ctx.module, ctx.on, ctx.size, ctx.find_far = module, on, size, group.find_far
        ctx.parts = len(rows), len(more) - len(weights) - 1
        ctx.save_for_backward(y, *group.computed, asked, inside, outside, *rows, *more)
        return update, group.share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_update: Tensor | None, of_share: Tensor | None) -> tuple[Tensor | None, ...]:
        y, *saved = ctx.saved_tensors
        computed, (asked, inside, outside, *more) = _Computed(*saved[:_COMPUTED]), saved[_COMPUTED:]
        module, on, number = ctx.module, ctx.on, len(inside)
        of_on, of_off = ctx.parts
        rows, more = more[:of_on], more[of_on:]
        with torch.cuda.device_of(y):
            if more:  # gates of references that are off have gradients, too
                off, weights, out = more[:of_off], more[of_off:-1], more[-1]
                group = _Group(module, ctx.size, asked, (*rows, *off), inside, outside)
                parts = [weights[first : first + number] for first in range(0, len(weights), number)]
                group.compute(parts, out)
            else:
                group = _Group(module, ctx.size, asked, rows, inside[:on], outside[:on])
                group.computed, group.find_far = computed, ctx.find_far
            if of_update is None:
                of_update = as_maps(torch.zeros_like(y), ctx.size)
            needed = _Needed(ctx.needs_input_grad[2:], number, on, ctx.held)
            return (None, None, *group.differentiate(of_update, y, of_share, needed))


class _Held(NamedTuple):
    """The stack that features are in: how many of the references, and which of it the query is, if any."""

    stack: FeatureStack | None
    references: int
    query: int | None


def _take_rows(query: Tensor, references: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], _Held]:
    """Return query (B, P, C) and references as rows, see :func:`stack_rows`, and which are in a stack."""
    dtype = rows_dtype(query)
    rows, held = stack_rows(references, dtype)
    if held is None:
        return as_rows(query, dtype), rows, _Held(None, 0, None)
    place = place_of(query)
    if place is None or place.stack is not held or place.index >= len(rows[0]):
        return as_rows(query, dtype), rows, _Held(held, len(rows[0]), None)
    return rows[0][place.index], rows, _Held(held, len(rows[0]), place.index)


class _Needed:
    """Which gradients a backward pass is to find.

    Args:
        needed: of the gates inside and outside, of H, of the query, and of the references and weights.
        number: R, references, whether on or off.
        on: how many of them are on.
        held: features to whose gradient in a stack that is added.
    """

    def __init__(self, needed: Sequence[bool], number: int, on: int, held: _Held) -> None:
        self.all, self.number, self.on, self.held = needed, number, on, held
        self.inside, self.outside, self.out, self.query = needed[:4]
        self.kinds = [slice(first, first + on) for first in range(4, len(needed), number)]
        of = [any(needed[kind]) for kind in self.kinds]
        self.references, self.values, self.scores, self.masks = of[0], of[1], of[2] or of[3], any(of[4:])

    @property
    def gates(self) -> bool:
        """Whether those of gates are."""
        return self.inside or self.outside


class _Group:
    """The query pixels of a batch, each with K keys in each of R references.

    Args:
        module: the attention.
        size: H and W.
        asked: the query as rows (B, P, C).
        rows: the references, in parts (.., B, P, C_l).
        inside: gates (R, K), see :func:`attend`.
        outside: gates (R,).

    Attributes:
        computed: what others are computed from.
        find_far: returns the references that have keys which are far.
        share: of the keys that are open.
    """

    computed: _Computed
    find_far: Callable[[], list[int]]
    share: Tensor

    def __init__(
        self,
        module: ACLA,
        size: tuple[int, int],
        asked: Tensor,
        rows: Sequence[Tensor],
        inside: Tensor,
        outside: Tensor,
    ) -> None:
        self.module, self.asked, self.rows, self.inside, self.outside = module, asked, rows, inside, outside
        layer: Any = next(iter(module.references.values()))
        self.count, self.keys_each = sum(map(len, rows)), module.num_keys
        self.masks = 0 if layer.mask is None else layer.mask.out_channels
        self.mask_scale = float(layer.mask_scale)  # the same in all references
        self.batch, self.pixels, self.channels = asked.shape
        self.height, self.width = size
        self.dtype, self.device = asked.dtype, asked.device
        self.down, self.across = _cdiv(self.height, _SIDE), _cdiv(self.width, _SIDE)
        self.tiles = self.down * self.across

    def compute(self, weights: Sequence[Sequence[Tensor]], out: Tensor) -> None:
        """Find where keys lie and what they weigh.

        Args:
            weights: of each reference G, W_off, W_att, and M if there is any.
            out: H.
        """
        scores, matrices, out = self._take_weights(weights, out)
        found = torch.mm(scores.flatten(0, 1), self.asked.flatten(0, 1).t())
        tables = self._empty(self.count, self.batch, self.pixels, self.channels + self.masks)
        first, into = 0, tables.flatten(1, 2)
        for part in self.rows:
            last = first + len(part)
            torch.bmm(part.flatten(1, 2), matrices[first:last].mT, out=into[first:last])
            first = last
        keys, log_sums, far = self._weigh(found, tables)
        self.computed = _Computed(
            scores, matrices, out, found, tables, keys, log_sums, far, self._spread(keys)
        )

    def _take_weights(
        self, weights: Sequence[Sequence[Tensor]], out: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return W_off with W_att below it, (R, 3 K, C), G with M below it, (R, C + masks, C_l), and H."""
        scores = self._empty(self.count, 3 * self.keys_each, self.channels)
        matrices = self._empty(self.count, self.channels + self.masks, self.rows[0].shape[3])
        own = self._empty(self.channels, self.channels)
        values, masks = matrices[..., None, None].split((self.channels, self.masks), 1)
        offsets, logits = scores[..., None, None].split((2 * self.keys_each, self.keys_each), 1)
        parts = [part for kind in (values, offsets, logits, masks)[: len(weights)] for part in kind.unbind()]
        torch._foreach_copy_([*parts, own], [*(w for kind in weights for w in kind), out.flatten(1)])
        return scores, matrices, own

    def project(self, y: Tensor, *, planes: bool) -> Tensor:
        """Return H y, (B, C, H, W), of which the pixels of a channel lie together, or else the channels."""
        if planes:
            return torch.bmm(self._out_of_images, y.mT).unflatten(2, (self.height, self.width))
        update = torch.mm(y.flatten(0, 1), self.computed.out.t()).view_as(y)
        return as_maps(update, (self.height, self.width))

    @property
    def _out_of_images(self) -> Tensor:
        """H for each image."""
        return self.computed.out.expand(self.batch, -1, -1)

    def _weigh(self, found: Tensor, tables: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return keys with their weights, log sums, and how many keys of a block of queries are far."""
        keys = found.new_empty(self.batch, self.count, self.keys_each, 3, self.pixels, dtype=torch.float32)
        log_sums = keys.new_empty(self.batch, self.pixels)
        grid = self.batch, _cdiv(self.pixels, _BLOCK)
        opened, far = keys.new_empty(grid), keys.new_empty(*grid, self.count, dtype=torch.int32)
        launch(
            kernels._weigh, grid,
            *self._key_arguments(found, tables), keys, log_sums, opened, far,
            self.count, self.keys_each, *self._map(tables), self.height, self.width,
            *self._softmax, **self._key_options, num_warps=4,
        )  # fmt: skip
        self.share, self.find_far = opened.sum(), _later(far)
        return keys, log_sums, far

    def _key_arguments(self, found: Tensor, tables: Tensor) -> tuple[Tensor, ...]:
        return found, self._base, self.inside, self.outside, tables[..., self.channels :]

    @property
    def _base(self) -> Tensor:
        return self.module.base.float()

    @property
    def _softmax(self) -> tuple[float, float, float]:
        share = SMALL if self.module.renormalize else 1.0
        return share, self.mask_scale, float(self.module.gate_bias)

    @property
    def _key_options(self) -> dict[str, Any]:
        return {
            "JOINT": self.module.softmax == "joint",
            "RENORMALIZE": self.module.renormalize,
            "MASKS": min(self.masks, 2),
            "KEYS": _next_power_of_2(self.keys_each),
            "BLOCK": _BLOCK,
        }

    def _spread(self, keys: Tensor) -> Tensor:
        """Return S: (B tiles, R, 64, 256)."""
        shares = self._empty(self.batch * self.tiles, self.count, _QUERIES, _PIXELS)
        rows = 16
        launch(
            kernels._spread, (self.batch * self.tiles, self.count, _QUERIES // rows),
            keys, shares, self.count, self.keys_each, self.height, self.width, self.tiles, self.across,
            LOW=self._is_low, KEYS=max(16, _next_power_of_2(self.keys_each)), ROWS=rows, num_warps=4,
        )  # fmt: skip
        return shares

    def sum(self) -> Tensor:
        """Return y of Eq. 6, (B, P, C)."""
        computed, tables = self.computed, self.computed.tables
        y = self._empty(self.batch, self.pixels, self.channels)
        block, part = self._block(256), 64 if self._is_low else 32
        launch(
            kernels._multiply, (self.batch * self.tiles, _cdiv(self.channels, block)),
            computed.shares, tables, y, self.count, self.channels, *self._map(tables),
            self.height, self.width, self.tiles, self.across,
            PARTS=_PIXELS // part, PART=part, BLOCK=block,
            num_warps=8 if block > 128 else 4,
        )  # fmt: skip
        block = self._block(64)
        launch(
            kernels._add_far, (self.batch, computed.far.shape[1], _cdiv(self.channels, block)),
            computed.found, self._base, computed.keys, computed.far, tables, y,
            self.count, self.keys_each, self.channels, *self._map(tables), self.height, self.width,
            QUERIES=_BLOCK, BLOCK=block, num_warps=8,
        )  # fmt: skip
        return y

    def differentiate(
        self, of_update: Tensor, y: Tensor, of_share: Tensor | None, needed: _Needed
    ) -> list[Tensor | None]:
        """Return the gradients of what is needed, None where something is not.

        Args:
            of_update: dL/d(H y), (B, C, H, W).
            y: (B, P, C).
            of_share: gradient of the share of open keys.
            needed: which gradients are.
        """
        on, held, kinds = needed.on, needed.held, needed.kinds
        of: list[Tensor | None] = [None] * len(needed.all)
        of_update = of_update.to(self.dtype)
        if of_update.is_contiguous():  # its pixels lie together, and need not be moved
            planes = of_update.flatten(2)
            of_y = torch.bmm(planes.mT, self._out_of_images)
        else:
            planes = as_rows(of_update, self.dtype).mT
            of_y = torch.mm(planes.mT.flatten(0, 1), self.computed.out).view_as(y)
        if needed.out:
            of[2] = _as_weights(torch.bmm(planes, y).sum(0, dtype=torch.float32))
        far = {r: self._differentiate_far(of_y, r) for r in self.find_far()}
        of_found, of_masks, of_inside, of_outside = self._differentiate_keys(of_y, y, of_share, far, needed)
        for i, gradient in ((0, of_inside), (1, of_outside)):
            if needed.all[i]:  # of those that were not looked at there is none
                of[i] = F.pad(gradient, (0,) * (2 * gradient.dim() - 1) + (needed.number - self.count,))
        of_found = of_found[: 3 * self.keys_each * on]
        if needed.query:
            scores = self.computed.scores[:on].flatten(0, 1)
            if held.stack is not None and held.query is not None:
                held.stack.gradients(self.rows[0][0])[held.query].flatten(0, 1).addmm_(of_found.t(), scores)
            else:
                of[3] = as_maps(torch.mm(of_found.t(), scores).view_as(y), (self.height, self.width))
        if needed.references or needed.values or needed.masks:
            of_tables = self._collect(of_y, of_masks, far, on).flatten(1, 2)
            if needed.references:
                of[kinds[0]] = self._of_references(of_tables, held)
            if needed.values or needed.masks:
                of_matrices = self._of_matrices(of_tables)
                of[kinds[1]] = of_matrices[:, : self.channels].unbind()
                if self.masks > 0:
                    of[kinds[4]] = of_matrices[:, self.channels :].unbind()
        if needed.scores:
            of_scores = _as_weights(torch.mm(of_found, self.asked.flatten(0, 1))).unflatten(0, (on, -1))
            offsets, logits = of_scores.split((2 * self.keys_each, self.keys_each), 1)
            of[kinds[2]], of[kinds[3]] = offsets.unbind(), logits.unbind()
        return of

    def _of_references(self, of_tables: Tensor, held: _Held) -> list[Tensor | None]:
        """Return the gradients of references, None of those to whose gradient in the stack it is added."""
        on, matrices = len(of_tables), self.computed.matrices
        if held.stack is not None:
            sums = held.stack.gradients(self.rows[0][0])[: held.references].flatten(1, 2)
            sums.baddbmm_(of_tables[: held.references], matrices[: held.references])
        if held.references == on:
            return [None] * on
        rest = torch.bmm(of_tables[held.references :], matrices[held.references : on])
        rest = rest.unflatten(1, (self.batch, self.height, self.width)).permute(0, 1, 4, 2, 3)
        return [*[None] * held.references, *rest.unbind()]

    def _of_matrices(self, of_tables: Tensor) -> Tensor:
        """Return the gradients of G with those of M below, of the references that are on."""
        found, first = [], 0
        for part in self.rows:
            last = min(first + len(part), len(of_tables))
            if first < last:
                found.append(torch.bmm(of_tables[first:last].mT, part[: last - first].flatten(1, 2)))
            first += len(part)
        return _as_weights(torch.cat(found) if len(found) > 1 else found[0])

    def _differentiate_keys(
        self, of_y: Tensor, y: Tensor, of_share: Tensor | None, far: Mapping[int, _Far], needed: _Needed
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of found, of what is read of masks, and of the gates inside and outside."""
        found, tables, keys, log_sums = self.computed[3:7]
        products = keys.new_empty(self.batch * self.tiles, self.count, _QUERIES, _PIXELS)
        totals = torch.empty_like(log_sums)
        part = 256 if self._is_low and self.channels % 8 == 0 else 64  # other rows are read value by value
        launch(
            kernels._take_products, (self.batch * self.tiles, self.count, _PIXELS // part),
            of_y, y, tables, products, totals, self.count, self.channels, *self._map(tables),
            self.height, self.width, self.tiles, self.across,
            PART=part, BLOCK=self._block(64 if self._is_low else 32),
            num_warps=8 if part > 128 else 4,
        )  # fmt: skip
        of_far = torch.zeros_like(keys) if far else keys
        for r, of in far.items():
            of_far[:, r] = of.keys
        grid = self.batch, _cdiv(self.pixels, _BLOCK)
        of_found, of_masks = torch.empty_like(found), torch.empty_like(keys[:, :, :, 0])
        of_inside, of_outside = self.inside, self.outside
        if needed.gates:
            of_inside = keys.new_empty(*grid, self.count, self.keys_each)
            of_outside = keys.new_zeros(*grid, self.count)
        launch(
            kernels._differentiate, grid,
            *self._key_arguments(found, tables), products, of_far,
            log_sums, totals, totals if of_share is None else of_share,
            of_found, of_masks, of_inside, of_outside,
            self.count, needed.on, self.keys_each, *self._map(tables), self.height, self.width,
            self.tiles, self.across, *self._softmax, float(self.module.gate_temperature),
            FAR=bool(far), OF_SHARE=of_share is not None, OF_GATES=needed.gates,
            **self._key_options, num_warps=4,
        )  # fmt: skip
        if needed.gates:
            of_inside, of_outside = of_inside.sum((0, 1)), of_outside.sum((0, 1))
        return of_found, of_masks, of_inside, of_outside

    def _collect(self, of_y: Tensor, of_masks: Tensor, far: Mapping[int, _Far], on: int) -> Tensor:
        """Return the gradients of the tables of the references that are on."""
        tables, keys, shares = self.computed.tables, self.computed.keys, self.computed.shares
        of_tables = torch.empty_like(tables[:on])
        size = self.count, self.channels, *self._map(tables), self.height, self.width
        block = self._block(256 if self._is_low else 64)
        blocks = self.batch * (self.down + 1) * (self.across + 1)
        launch(
            kernels._collect, (blocks, on, _cdiv(self.channels, block)),
            shares, of_y, of_tables, *size, self.tiles, self.down, self.across,
            BLOCK=block, num_warps=8 if block > 128 else 4,
        )  # fmt: skip
        if self.masks > 0:
            sums = keys.new_empty(self.batch * self.tiles, self.count, self.masks, _PIXELS)
            launch(
                kernels._collect_masks, (self.batch * self.tiles, on),
                keys, of_masks, sums, self.count, self.keys_each, self.height, self.width,
                self.tiles, self.across,
                PRECISION="tf32" if self._is_low else "ieee", MANY=self.masks > 1, num_warps=2,
            )  # fmt: skip
            launch(
                kernels._sum_masks, (self.batch, on, _cdiv(self.pixels, 64)),
                sums, of_tables[..., self.channels :], self.count, self.masks, *self._map(tables),
                self.height, self.width, self.tiles, self.down, self.across,
                MASKS=_next_power_of_2(self.masks), BLOCK=64, num_warps=4,
            )  # fmt: skip
        for r, of in far.items():
            if r < on:
                of_tables[r, ..., : self.channels] += of.values
                if self.masks > 0:
                    of_tables[r, ..., self.channels :] += self._of_far_masks(of_masks[:, r], of.offsets)
        return of_tables

    # Keys that are far: all others are put outside the image, where the operator reads nothing.

    def _values(self, r: int) -> Tensor:
        """Return the values of a reference, (B, C, H, W)."""
        maps = self.computed.tables[r, ..., : self.channels]
        return maps.unflatten(1, (self.height, self.width)).permute(0, 3, 1, 2)

    def _far_keys(self, r: int) -> tuple[Tensor, Tensor]:
        """Return offsets (B, 1, K, 2, H, W) and weights (B, 1, K, H, W) in a reference."""
        found = self.computed.found.unflatten(0, (self.count, -1))[r, : 2 * self.keys_each]
        offsets = found.view(self.keys_each, 2, self.batch, -1).movedim(2, 0) + self._base.unsqueeze(-1)
        keys = self.computed.keys[:, r : r + 1].unflatten(-1, (self.height, self.width))
        offsets = offsets.view_as(keys[:, :, :, :2])
        return offsets.masked_fill(keys[:, :, :, :1] >= 0, _AWAY), keys[:, :, :, 2]

    def _differentiate_far(self, of_y: Tensor, r: int) -> _Far:
        offsets, weights = self._far_keys(r)
        grad = of_y.unflatten(1, (self.height, self.width)).permute(0, 3, 1, 2)
        of: list[Any] = gather_triton.backward(grad, [self._values(r)], offsets, weights, [True] * 3)
        of_keys = torch.cat((of[0], of[1].unsqueeze(3)), 3)[:, 0].flatten(-2)
        return _Far(of_keys, offsets[:, 0], of[2].permute(0, 2, 3, 1).flatten(1, 2))

    def _of_far_masks(self, of_masks: Tensor, offsets: Tensor) -> Tensor:
        """Return the gradients of masks, (B, P, masks), from those of what keys read of them (B, K, P).

        That of the k-th mask is the gradient of an image which only the k-th keys read.
        """
        weights = of_masks.unflatten(-1, (self.height, self.width))
        if self.masks > 1:
            weights, offsets = weights.flatten(0, 1).unsqueeze(1), offsets.flatten(0, 1).unsqueeze(1)
        ones, needed = weights.new_ones(len(weights), 1, self.height, self.width), [False, False, True]
        offsets, weights = offsets.unsqueeze(1), weights.unsqueeze(1)
        of: list[Any] = gather_triton.backward(ones, [ones], offsets, weights, needed)
        return of[2].view(self.batch, self.masks, self.pixels).mT

    @property
    def _is_low(self) -> bool:
        return self.dtype != torch.float32

    def _block(self, most: int) -> int:
        """Return how many channels a program works on."""
        return min(max(16, _next_power_of_2(self.channels)), most if self._is_low else min(most, 64))

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    @staticmethod
    def _map(tables: Tensor) -> tuple[int, int]:
        """Return the steps from one row of tables to the next, and from one map."""
        return tables.stride(2), tables.stride(1)


class _Computed(NamedTuple):
    """What is kept for the backward pass: the weights W_off with W_att below, and G with M below it, for each
    reference, and H; what they make of the query, (R 3 K, B P), and of the references, (R, B, P, C + masks);
    the keys; the log sums of the softmax (B, P); of far keys the number; and S."""

    scores: Tensor
    matrices: Tensor
    out: Tensor
    found: Tensor
    tables: Tensor
    keys: Tensor
    log_sums: Tensor
    far: Tensor
    shares: Tensor


_COMPUTED = len(_Computed._fields)


class _Far(NamedTuple):
    """What keys of a reference that are far have part in: gradients of keys (B, K, 3, P), their offsets
    (B, K, 2, H, W), and gradients of values (B, P, C)."""

    keys: Tensor
    offsets: Tensor
    values: Tensor


def _cdiv(number: int, by: int) -> int:  # Triton's takes microseconds
    return -(-number // by)


def _next_power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _as_weights(gradients: Tensor) -> Tensor:
    """Return gradients of weights, (.., outputs, inputs), in float32 as those of 1x1 convolutions."""
    return gradients.float()[..., None, None]


def _later(numbers: Tensor) -> Callable[[], list[int]]:
    """Return a function that says in which of the last columns any number is above 0.

    It waits for what the GPU was given until now, and not for later work.
    """
    largest = numbers.flatten(0, -2).amax(0)
    if numbers.device.type != "cuda":
        return lambda: largest.nonzero().flatten().tolist()
    host = torch.empty(largest.shape, dtype=largest.dtype, pin_memory=True)
    host.copy_(largest, non_blocking=True)
    done = torch.cuda.Event()
    done.record()

    def columns() -> list[int]:
        done.synchronize()
        return host.nonzero().flatten().tolist()

    return columns
