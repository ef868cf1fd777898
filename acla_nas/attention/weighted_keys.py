"""The keys of some query pixels with their weights, and the weighted sums of what is read there.

For modules of ACLA on a CPU: the loops are those of :mod:`acla_nas.attention.acla_kernels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from acla_nas.attention import acla_kernels as kernels
from acla_nas.ops.gather_numba import Lists
from acla_nas.ops.jit import share_threads
from acla_nas.ops.scratch import scratch

if TYPE_CHECKING:
    from acla_nas.attention.acla import ACLA

_SMALL = 1e-6  # part of all keys in the sum that renormalised weights are divided by
_HIGHEST = 20.0  # logarithm of a share of the softmax: only what is off could have a larger one


def key_rows(layers: Sequence[Any]) -> Tensor:
    """Return what projects a query to the offsets and the logits of its keys: (dx, dy, a) x R x K x C."""
    offsets = torch.stack([layer.offset.weight.flatten(1).unflatten(0, (-1, 2)) for layer in layers])
    logits = torch.stack([layer.logit.weight.flatten(1) for layer in layers])
    return torch.cat((offsets.movedim(2, 0), logits.unsqueeze(0)))


class WeightedKeys:
    """K keys in each of R references for Q query pixels: those of b images, or of some rows of one image.

    They lie in scratch memory: a thread has one of these at a time.

    Args:
        module: the attention.
        query: (b, C, rows, W).
        rows: what projects it to the keys, see :func:`key_rows`.
        inside, outside: gates, (R, K) within the softmax and (R,) outside of it; 1 unless given.
        skipped: rows of the query map before these.
        height: of the query map, if not ``rows``.

    Attributes:
        joint: whether the softmax is over all references.
        is_gated: whether keys are.
        pixels: the query, (Q, C).
        sums: (Q,), what weighted sums are to be divided by where it is.
        of_found: gradients of the offsets and logits, (dx, dy, a) x R x Q x K, after :meth:`differentiate`.
    """

    def __init__(
        self,
        module: ACLA,
        query: Tensor,
        rows: Tensor,
        inside: Tensor | None = None,
        outside: Tensor | None = None,
        skipped: int = 0,
        height: int | None = None,
    ) -> None:
        batch, _, lines, width = query.shape
        references, keys = rows.shape[1:3]
        self.joint, self.is_gated, self._module = module.softmax == "joint", module.adaptive, module
        self._queries = kernels.Queries(batch, lines, width, skipped, height or lines)
        self.pixels = query.permute(0, 2, 3, 1).flatten(0, 2)
        queries, dtype = len(self.pixels), query.dtype
        found = scratch("found", dtype, 3 * references, queries, keys)
        torch.bmm(self.pixels.expand(len(found), -1, -1), rows.flatten(0, 1).mT, out=found)
        self._found = found.view(3, references, queries, keys)
        self._logits = self._found[2]
        self._base = module.base.t().to(query.dtype).contiguous()
        self._inside = query.new_ones(references, keys) if inside is None else inside.contiguous()
        self._outside = query.new_ones(references) if outside is None else outside.contiguous()
        self.sums = query.new_zeros(len(self.pixels))
        self._weights = scratch("weights", dtype, references, queries, keys)
        number: Any = self._weights.numpy().dtype.type
        share = _SMALL if module.renormalize and module.adaptive else 1.0
        self._bias, self._share, self._number = number(module.gate_bias), number(share), number
        self._lists: Lists | None = None

    def exponentiate(self, log_sums: Tensor | None = None) -> Tensor:
        """Take the exponentials of the logits, and return the logarithm of what they are divided by.

        Args:
            log_sums: which logarithm for a joint softmax, (Q,), where it is known.
        """
        logits, off = self._logits, self._inside == 0
        # What is off must not decide the scale, for all else could vanish beside it.
        on = logits.masked_fill(off.unsqueeze(1), -torch.inf) if bool(off.any()) else logits
        if not self.joint:
            shift = on.amax(2, keepdim=True)
            log_sums = torch.zeros_like(self.sums)
            logits -= shift.masked_fill_(shift == -torch.inf, 0)
        else:
            if log_sums is None:
                log_sums = on.amax(2).amax(0)  # one after the other: several times faster
            logits -= log_sums.view(-1, 1)
        if on is not logits:
            logits.clamp_(max=_HIGHEST)
        logits.exp_()
        return log_sums

    def _places(self) -> tuple[Any, Any, Any]:
        return self._found[0].numpy(), self._found[1].numpy(), self._base.numpy()

    def _maps(self, masks: Tensor | None) -> Tensor:
        return self.sums.new_empty(0, 0, 0) if masks is None else masks

    def weigh(self, r: int, masks: Tensor | None) -> int:
        """Work out the weights of a reference's keys, and return how many are open.

        Args:
            r: which reference.
            masks: M x, (b, H W, K or 1); None where all keys count.
        """
        opened = np.empty(self._queries.images * self._queries.rows, np.int64)
        share_threads()
        kernels.weigh(
            self._queries, *self._places(), self._logits.numpy(),
            self._maps(masks).numpy(), self._bias, self._inside.numpy(), self._outside.numpy(), r, self.joint,
            self._share, self._weights.numpy(), self.sums.numpy(), opened,
        )  # fmt: skip
        return int(opened.sum())

    def _list(self, first: int, count: int) -> Lists:
        if self._lists is None:
            _, queries, keys = self._logits.shape
            self._lists = Lists(queries, count * keys, self.sums.dtype)
        begin, index, weight = self._lists.to_fill(len(self.sums))
        share_threads()
        kernels.list_rows(
            self._queries, *self._places(), self._weights.numpy(), first, count,
            begin, index, weight,
        )  # fmt: skip
        return self._lists

    def sum(self, first: int, rows: Tensor, count: int = 1) -> Tensor:
        """Return the weighted sum of what is read of some references, before any division: (Q, C).

        Args:
            first, count: of the references, always as many.
            rows: G x of each, (count b H W, C).
        """
        return self._list(first, count).sum(rows)

    def differentiate(
        self, r: int, rows: Tensor, masks: Tensor | None, of_y: Tensor, totals: Tensor, of_open: float
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Work out the gradients of a reference's offsets and logits.

        Args:
            r: which reference.
            rows: G x, (b H W, C).
            masks: M x, (b, H W, K or 1); None where all keys count.
            of_y: dL/dy, (Q, C).
            totals: <dL/dy, y>, (Q,).
            of_open: gradient of a key's gate, beside that which it has through y.

        Returns:
            The gradients of the masks, of the gates inside (K,), and of that outside.
        """
        if not hasattr(self, "of_found"):
            self.of_found = scratch("gradients", self.sums.dtype, *self._found.shape)
            self._of_masks = scratch("gradients of masks", self.sums.dtype, *self._logits[0].shape)
        lines, (of_dx, of_dy, of_logits) = self._queries.images * self._queries.rows, self.of_found
        of_inside, of_outside = self.sums.new_empty(lines, self._logits.shape[2]), self.sums.new_empty(lines)
        share_threads()
        kernels.differentiate(
            self._queries, of_y.numpy(), rows.numpy(), *self._places(),
            self._logits.numpy(), self._weights.numpy(), self._maps(masks).numpy(), self._bias,
            self._number(self._module.gate_temperature), self._inside.numpy(), self._outside.numpy(), r,
            self.joint, self._share, self._number(of_open), totals.numpy(),
            of_dx.numpy(), of_dy.numpy(), of_logits.numpy(), self._of_masks.numpy(), of_inside.numpy(),
            of_outside.numpy(),
        )  # fmt: skip
        of_maps = None
        if masks is not None:
            of_maps = torch.zeros_like(masks)
            kernels.scatter_masks(
                self._queries, *self._places(), self._of_masks.numpy(), r,
                of_maps.numpy(),
            )  # fmt: skip
        return of_maps, of_inside.sum(0), of_outside.sum()

    def sum_transposed(self, r: int, of_y: Tensor, rows: int) -> Tensor:
        """Return the gradient of what is read of a reference, (b H W, C)."""
        return self._list(r, 1).sum_transposed(of_y, slice(0, rows))


def each(batch: Tensor, matrix: Tensor) -> Tensor:
    """Return the products of each of a batch (b, P, N) with one matrix (N, M)."""
    return torch.bmm(batch, matrix.expand(len(batch), -1, -1))
