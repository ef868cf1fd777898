"""The keys of some query pixels, the weighted sums of what is read there, and the gradients of these.

For modules of ACLA on a CPU: the loops are those of :mod:`acla_nas.attention.acla_kernels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from acla_nas.attention import acla_kernels as kernels
from acla_nas.ops.jit import share_threads
from acla_nas.ops.scratch import scratch

if TYPE_CHECKING:
    from acla_nas.attention.acla import ACLA

SMALL = 1e-6  # part of all keys in the sum that renormalised weights are divided by


def key_rows(layers: Sequence[Any]) -> Tensor:
    """Return what projects a query to the offsets and the logits of its keys: R x (dx, dy, a) x K x C."""
    offsets = torch.stack([layer.offset.weight for layer in layers]).flatten(2).unflatten(1, (-1, 2))
    logits = torch.stack([layer.logit.weight for layer in layers]).flatten(2)
    return torch.cat((offsets.transpose(1, 2), logits.unsqueeze(1)), 1)


def softmax_of(module: ACLA, masks: int, number: Any) -> kernels.Softmax:
    """Return how a module's keys are weighed, in numbers of the type that loops work with."""
    share = SMALL if module.renormalize else 1.0
    of_gates = (number(module.gate_bias), number(module.gate_temperature))
    return kernels.Softmax(module.softmax == "joint", number(share), masks, *of_gates)


def project(features: Tensor, matrix: Tensor, table: Tensor, masks: Tensor) -> None:
    """Write the table and the masks of a reference.

    Args:
        features: (b, C, H W).
        matrix: (C, channels + M), what each pixel is multiplied with.
        table: (b, H W, channels), written.
        masks: (b, H W, M), written.
    """
    share_threads()
    arrays = (t.numpy() for t in (features, matrix.contiguous(), table, masks))
    kernels.project(*arrays)


class WeightedKeys:
    """K keys in each of R references for the Q query pixels of b images.

    They lie in scratch memory: a thread has one of these at a time.

    Args:
        module: the attention.
        query: (b, C, H, W).
        rows: what projects it to the keys, see :func:`key_rows`.
        tables: (R, b, H W, C), G x of each reference.
        masks: (R, b, H W, M), M x.
        inside, outside: gates, (R, K) within the softmax and (R,) outside of it.

    Attributes:
        pixels: the query, (Q, C).
    """

    def __init__(
        self,
        module: ACLA,
        query: Tensor,
        rows: Tensor,
        tables: Tensor,
        masks: Tensor,
        inside: Tensor,
        outside: Tensor,
    ) -> None:
        batch, _, height, width = query.shape
        self._tables, self._masks = tables, masks
        self._queries = kernels.Queries(batch, height, width)
        self.pixels = query.permute(0, 2, 3, 1).flatten(0, 2)
        self._scores = rows.mT.contiguous()
        self._base = module.base.to(query.dtype)
        self._inside, self._outside = inside.contiguous(), outside.contiguous()
        number: Any = self._base.numpy().dtype.type
        self._number = number
        self._softmax = softmax_of(module, masks.shape[-1], number)

    @property
    def _arguments(self) -> tuple[Any, Any, Any, Any, Any, Any, Any, Any, Any]:
        """What both loops over queries are given first."""
        return (
            self._queries, self._softmax, self.pixels.numpy(), self._scores.numpy(), self._base.numpy(),
            self._inside.numpy(), self._outside.numpy(), self._tables.numpy(), self._masks.numpy(),
        )  # fmt: skip

    def sum(self, y: Tensor) -> tuple[Tensor, int]:
        """Write y of Eq. 6 (Q, C); return log sums of a joint softmax (Q,), and how many keys are open."""
        log_sums = y.new_empty(len(y))
        opened = np.empty(kernels.count_tasks(self._queries), np.int64)
        share_threads()
        kernels.sum_keys(*self._arguments, y.numpy(), log_sums.numpy(), opened)
        return log_sums, int(opened.sum())

    def differentiate(
        self, of_y: Tensor, log_sums: Tensor, totals: Tensor, of_open: float, on: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of what the keys are made of.

        Args:
            of_y: dL/dy, (Q, C).
            log_sums: which :meth:`sum` returned.
            totals: <dL/dy, y>, (Q,).
            of_open: gradient of a key's gate, beside that which it has through y.
            on: references whose tables' gradients are wanted, from the first.

        Returns:
            The gradients of the projected query, (Q, R, dx dy a, K), of the tables of those references with
            their masks behind, (R, b, H W, C + M), and of the gates inside (R, K) and outside (R,).
        """
        (references, keys), queries = self._inside.shape, len(self.pixels)
        tasks, number = kernels.count_tasks(self._queries), kernels.most_of_block(self._queries) * keys
        dtype = of_y.dtype
        offsets = scratch("offsets", dtype, tasks, references, 2, number)
        of_found = scratch("gradients", dtype, queries, references, 3, keys)
        weights = scratch("weights", dtype, tasks, references, number)
        of_masks = scratch("gradients of masks", dtype, *weights.shape)
        *shape, channels = self._tables.shape[1:]
        of_tables = scratch("gradients of tables", dtype, on, *shape, channels + self._masks.shape[-1])
        of_inside = of_y.new_empty(tasks, references, keys)
        of_outside = of_y.new_empty(tasks, references)
        share_threads()
        kernels.differentiate(
            *self._arguments, of_y.numpy(), log_sums.numpy(), totals.numpy(), self._number(of_open),
            offsets.numpy(), of_found.numpy(), weights.numpy(), of_masks.numpy(), of_inside.numpy(),
            of_outside.numpy(),
        )  # fmt: skip
        if on > 0:
            kernels.scatter(
                self._queries, self._softmax.masks, offsets.numpy(), self._base.numpy(), weights.numpy(),
                of_masks.numpy(), of_y.numpy(), of_tables.numpy(),
            )  # fmt: skip
        return of_found, of_tables, of_inside.sum(0), of_outside.sum(0)
