"""ACLA on a GPU: all of a module but H as one function, with a backward pass of its own.

Keys near their query are read by products of matrices, see :mod:`acla_nas.attention.acla_triton`; those that
are far, by the kernels of the operator, which are only called for references that have any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from acla_nas.attention import acla_triton as kernels
from acla_nas.attention.weighted_keys import SMALL
from acla_nas.ops import gather_triton

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
    otherwise that of the query.
    """
    dtype = query.dtype
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
    weights = [layer.value.weight for layer in layers] + [layer.offset.weight for layer in layers]
    weights += [layer.logit.weight for layer in layers]
    weights += [layer.mask.weight for layer in layers if layer.mask is not None]
    result: tuple[Tensor, Tensor] = _Attend.apply(
        module, on, query.to(dtype), inside.float(), outside.float(), module.out.weight,
        *[x.to(dtype) for x in references], *weights,
    )  # fmt: skip
    return result


class _Attend(torch.autograd.Function):
    """See :func:`attend`."""

    @staticmethod
    def forward(ctx: Any, module: ACLA, on: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        with torch.cuda.device_of(tensors[0]):
            group = _Group(module, tensors, on)
            y = group.sum()
            update = group.project(y)
        ctx.module, ctx.on, ctx.find_far = module, on, group.find_far
        ctx.save_for_backward(y, *group.computed, *tensors)
        return update, group.share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_update: Tensor, of_share: Tensor) -> tuple[Tensor | None, ...]:
        module, on = ctx.module, ctx.on
        saved = ctx.saved_tensors
        y, computed, tensors = saved[0], saved[1:_COMPUTED], saved[_COMPUTED:]
        needed = ctx.needs_input_grad[2:]
        with torch.cuda.device_of(of_update):
            count = len(tensors[1])
            if (needed[1] or needed[2]) and count > on:  # of gates that are off, too
                group = _Group(module, tensors, count)
            else:
                group = _Group(module, tensors, on, _Computed(*computed), ctx.find_far)
            of_open = of_share / (on * module.num_keys * y[..., 0].numel())
            return (None, None, *group.differentiate(of_update, y, of_open, on, needed))


class _Group:
    """The query pixels of a batch, each with K keys in each of R references.

    Args:
        module: the attention.
        tensors: query, gates inside and outside, H, references and weights, see :func:`attend`.
        count: R, references that are looked at.
        computed: what a group of the same arguments computed.
        find_far: likewise.

    Attributes:
        computed: what others are computed from.
        find_far: returns the references that have keys which are far.
        share: of the keys that are open.
    """

    def __init__(
        self,
        module: ACLA,
        tensors: Sequence[Tensor],
        count: int,
        computed: _Computed | None = None,
        find_far: Callable[[], list[int]] | None = None,
    ) -> None:
        query, inside, outside, self.out, *rest = tensors
        number = len(inside)
        self.module, self.tensors, self.count = module, tensors, count
        self.batch, self.channels, self.height, self.width = query.shape
        self.pixels, self.keys_each = self.height * self.width, module.num_keys
        self.dtype, self.device = query.dtype, query.device
        self.query, self.references = query.flatten(2), rest[:count]
        self.weights = [rest[first : first + count] for first in range(number, len(rest), number)]
        self.masks = len(self.weights[3][0]) if len(self.weights) > 3 else 0
        self.inside, self.outside = inside[:count].contiguous(), outside[:count].contiguous()
        self.down, self.across = triton.cdiv(self.height, _SIDE), triton.cdiv(self.width, _SIDE)
        self.tiles = self.down * self.across
        if computed is None or find_far is None:
            scores, matrices = self._take_weights()
            found = self._times(scores.flatten(0, 1), self.query)
            tables = torch.matmul(self._stack_references().mT, matrices.mT.unsqueeze(1))
            keys, log_sums, self.share, find_far = self._weigh(found, tables)
            computed = _Computed(scores, matrices, found, tables, keys, log_sums, self._spread(keys))
        self.computed, self.find_far = computed, find_far

    def _take_weights(self) -> tuple[Tensor, Tensor]:
        """Return W_off with W_att below it, (R, 3 K, C), and G with M below it, (R, C + masks, C_l)."""
        scores = self._empty(self.count, 3 * self.keys_each, self.channels)
        matrices = self._empty(self.count, self.channels + self.masks, self.references[0].shape[1])
        values, masks = matrices.split((self.channels, self.masks), 1)
        offsets, logits = scores.split((2 * self.keys_each, self.keys_each), 1)
        parts = [part for kind in (values, offsets, logits, masks)[: len(self.weights)] for part in kind]
        torch._foreach_copy_(parts, [weight.flatten(1) for kind in self.weights for weight in kind])
        masks.mul_(self.mask_scale)
        return scores, matrices

    def _stack_references(self) -> Tensor:
        """Return (R, B, C_l, P)."""
        return torch.stack([x.flatten(2) for x in self.references])

    def _times(self, matrix: Tensor, maps: Tensor) -> Tensor:
        """Return the product of a matrix with each of B maps (B, C, P), whose pixels lie together."""
        return torch.bmm(matrix.expand(self.batch, -1, -1), maps)

    @property
    def mask_scale(self) -> float:
        """Factor of the masks' logits, the same in all references."""
        return float(next(iter(self.module.references.values())).mask_scale)  # type: ignore[arg-type]

    def project(self, y: Tensor) -> Tensor:
        """Return H y, (B, C, H, W)."""
        matrix = self.out.to(self.dtype).flatten(1)
        if self.tensors[0].is_contiguous():
            return self._times(matrix, y.mT).view_as(self.tensors[0])
        return torch.matmul(y, matrix.t()).unflatten(1, (self.height, self.width)).permute(0, 3, 1, 2)

    def _weigh(self, found: Tensor, tables: Tensor) -> tuple[Tensor, Tensor, Tensor, Callable[[], list[int]]]:
        """Return keys with their weights, log sums, the share of open keys, and what finds far ones."""
        keys = found.new_empty(self.batch, self.count, self.keys_each, 3, self.pixels, dtype=torch.float32)
        log_sums = keys.new_empty(self.batch, self.pixels)
        grid = self.batch, triton.cdiv(self.pixels, _BLOCK)
        opened, far = keys.new_empty(grid), keys.new_empty(*grid, self.count, dtype=torch.int32)
        kernels._weigh[grid](
            *self._key_arguments(found, tables), keys, log_sums, opened, far,
            self.count, self.keys_each, *self._map(tables), self.height, self.width,
            *self._softmax, **self._key_options, num_warps=4,
        )  # fmt: skip
        return keys, log_sums, opened.sum() / keys[:, :, :, 0].numel(), _later(far)

    def _key_arguments(self, found: Tensor, tables: Tensor) -> tuple[Tensor, ...]:
        return found, self._base, self.inside, self.outside, tables[..., self.channels :]

    @property
    def _base(self) -> Tensor:
        return self.module.base.float()

    @property
    def _softmax(self) -> tuple[float, float]:
        return SMALL if self.module.renormalize else 1.0, float(self.module.gate_bias)

    @property
    def _key_options(self) -> dict[str, Any]:
        return {
            "JOINT": self.module.softmax == "joint",
            "RENORMALIZE": self.module.renormalize,
            "MASKS": min(self.masks, 2),
            "KEYS": triton.next_power_of_2(self.keys_each),
            "BLOCK": _BLOCK,
        }

    def _spread(self, keys: Tensor) -> Tensor:
        """Return S: (B tiles, R, 64, 256)."""
        shares = self._empty(self.batch * self.tiles, self.count, _QUERIES, _PIXELS)
        rows = 16
        kernels._spread[self.batch * self.tiles, self.count, _QUERIES // rows](
            keys, shares, self.count, self.keys_each, self.height, self.width, self.tiles, self.across,
            LOW=self._is_low, KEYS=max(16, triton.next_power_of_2(self.keys_each)), ROWS=rows, num_warps=4,
        )  # fmt: skip
        return shares

    def sum(self) -> Tensor:
        """Return y of Eq. 6, (B, P, C)."""
        tables, shares = self.computed.tables, self.computed.shares
        y = self._empty(self.batch, self.pixels, self.channels)
        block, part = self._block(256), 64 if self._is_low else 32
        kernels._multiply[self.batch * self.tiles, triton.cdiv(self.channels, block)](
            shares, tables, y, self.count, self.channels, *self._map(tables), self.height, self.width,
            self.tiles, self.across,
            PARTS=_PIXELS // part, PART=part, BLOCK=block,
            num_warps=8 if block > 128 else 4,
        )  # fmt: skip
        for r in self.find_far():
            far = gather_triton.forward([self._values(r)], *self._far_keys(r))
            y += far.permute(0, 2, 3, 1).flatten(1, 2)
        return y

    def differentiate(
        self, of_update: Tensor, y: Tensor, of_open: Tensor, on: int, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """Return the gradients of what the group was made of.

        Args:
            of_update: dL/d(H y), (B, C, H, W).
            y: (B, P, C).
            of_open: gradient of a key's gate, beside that which it has through y.
            on: references that are on, the first.
            needed: which gradients are.
        """
        number = len(self.tensors[1])
        of: list[Tensor | None] = [None] * len(needed)
        of_update = of_update.flatten(2).to(self.dtype)
        of_y = torch.matmul(of_update.mT, self.out.to(self.dtype).flatten(1))  # B x P x C
        if needed[3]:
            of[3] = torch.bmm(of_update, y).sum(0).to(self.out.dtype).view_as(self.out)
        far = {r: self._differentiate_far(of_y, r) for r in self.find_far()}
        of_found, of_masks, of_inside, of_outside = self._differentiate_keys(of_y, y, of_open, far)
        for i, gradient in ((1, of_inside), (2, of_outside)):
            if needed[i]:  # of those that were not looked at there is none
                of[i] = F.pad(gradient, (0,) * (2 * gradient.dim() - 1) + (number - self.count,))
        of_found = of_found[:, : 3 * self.keys_each * on]
        if needed[0]:
            scores = self.computed.scores[:on].flatten(0, 1)
            of[0] = self._times(scores.t(), of_found).view_as(self.tensors[0])
        kinds = [slice(first, first + on) for first in range(4, len(needed), number)]
        if any(any(needed[kind]) for kind in (*kinds[:2], *kinds[4:])):
            of_tables = self._collect(of_y, of_masks, far, on)
            if any(needed[kinds[0]]):
                of_references = torch.matmul(self.computed.matrices[:on].mT.unsqueeze(1), of_tables.mT)
                of[kinds[0]] = [x.view_as(own) for x, own in zip(of_references, self.references)]
            if any(any(needed[kind]) for kind in (kinds[1], *kinds[4:])):
                of_images = torch.matmul(of_tables.mT, self._stack_references()[:on].mT)
                of_matrices = of_images.sum(1, dtype=torch.float32)[..., None, None]
                of[kinds[1]] = of_matrices[:, : self.channels]
                if self.masks > 0:
                    of[kinds[4]] = self.mask_scale * of_matrices[:, self.channels :]
        if any(needed[kinds[2]]) or any(needed[kinds[3]]):
            of_images = torch.bmm(of_found, self.query.mT)
            of_scores = of_images.sum(0, dtype=torch.float32).unflatten(0, (on, -1))[..., None, None]
            of[kinds[2]], of[kinds[3]] = of_scores.split((2 * self.keys_each, self.keys_each), 1)
        return of

    def _differentiate_keys(
        self, of_y: Tensor, y: Tensor, of_open: Tensor, far: Mapping[int, _Far]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of found, of what is read of masks, and of the gates inside and outside."""
        _, _, found, tables, keys, log_sums, _ = self.computed
        products = keys.new_empty(self.batch * self.tiles, self.count, _QUERIES, _PIXELS)
        part = 256 if self._is_low and self.channels % 8 == 0 else 64  # other rows are read value by value
        kernels._take_products[self.batch * self.tiles, self.count, _PIXELS // part](
            of_y, tables, products, self.count, self.channels, *self._map(tables), self.height, self.width,
            self.tiles, self.across,
            PART=part, BLOCK=self._block(64 if self._is_low else 32),
            num_warps=8 if part > 128 else 4,
        )  # fmt: skip
        of_far = torch.zeros_like(keys) if far else keys
        for r, of in far.items():
            of_far[:, r] = of.keys
        grid = self.batch, triton.cdiv(self.pixels, _BLOCK)
        of_found, of_masks = torch.empty_like(found), torch.empty_like(keys[:, :, :, 0])
        of_inside = keys.new_empty(*grid, self.count, self.keys_each)
        of_outside = keys.new_zeros(*grid, self.count)
        kernels._differentiate[grid](
            *self._key_arguments(found, tables), products, of_far,
            log_sums, (of_y.float() * y).sum(-1), of_open, of_found, of_masks, of_inside, of_outside,
            self.count, self.keys_each, *self._map(tables), self.height, self.width, self.tiles, self.across,
            *self._softmax, float(self.module.gate_temperature),
            FAR=bool(far), **self._key_options, num_warps=4,
        )  # fmt: skip
        return of_found, of_masks, of_inside.sum((0, 1)), of_outside.sum((0, 1))

    def _collect(self, of_y: Tensor, of_masks: Tensor, far: Mapping[int, _Far], on: int) -> Tensor:
        """Return the gradients of the tables of the references that are on."""
        tables, keys, shares = self.computed.tables, self.computed.keys, self.computed.shares
        of_tables = torch.empty_like(tables[:on])
        size = self.count, self.channels, *self._map(tables), self.height, self.width
        block = self._block(256 if self._is_low else 64)
        blocks = self.batch * (self.down + 1) * (self.across + 1)
        kernels._collect[blocks, on, triton.cdiv(self.channels, block)](
            shares, of_y, of_tables, *size, self.tiles, self.down, self.across,
            BLOCK=block, num_warps=8 if block > 128 else 4,
        )  # fmt: skip
        if self.masks > 0:
            sums = keys.new_empty(self.batch * self.tiles, self.count, self.masks, _PIXELS)
            kernels._collect_masks[self.batch * self.tiles, on](
                keys, of_masks, sums, self.count, self.keys_each, self.height, self.width,
                self.tiles, self.across,
                PRECISION="tf32" if self._is_low else "ieee", MANY=self.masks > 1, num_warps=2,
            )  # fmt: skip
            kernels._sum_masks[self.batch, on, triton.cdiv(self.pixels, 64)](
                sums, of_tables[..., self.channels :], self.count, self.masks, *self._map(tables),
                self.height, self.width, self.tiles, self.down, self.across,
                MASKS=triton.next_power_of_2(self.masks), BLOCK=64, num_warps=4,
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
        found = self.computed.found.unflatten(1, (self.count, -1))[:, r, : 2 * self.keys_each]
        offsets = found.unflatten(1, (-1, 2)) + self._base.unsqueeze(-1)
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
        return min(max(16, triton.next_power_of_2(self.channels)), most if self._is_low else min(most, 64))

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    @staticmethod
    def _map(tables: Tensor) -> tuple[int, int]:
        """Return the steps from one row of tables to the next, and from one map."""
        return tables.stride(2), tables.stride(1)


class _Computed(NamedTuple):
    """What is kept for the backward pass: the weights W_off with W_att below, and G with M below it, for each
    reference; what they make of the query, (B, R 3 K, P), and of the references, (R, B, P, C + masks); the
    keys; the log sums of the softmax (B, P); and S."""

    scores: Tensor
    matrices: Tensor
    found: Tensor
    tables: Tensor
    keys: Tensor
    log_sums: Tensor
    shares: Tensor


_COMPUTED = 1 + len(_Computed._fields)  # saved tensors before the arguments, y included


class _Far(NamedTuple):
    """What keys of a reference that are far have part in: gradients of keys (B, K, 3, P), their offsets
    (B, K, 2, H, W), and gradients of values (B, P, C)."""

    keys: Tensor
    offsets: Tensor
    values: Tensor


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
