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


def project(features: Tensor, matrix: Tensor, table: Tensor, masks: int) -> float:
    """Write the table of a reference, and return the least of its masks: infinity without masks.

    Args:
        features: (b, C, H W).
        matrix: (C, W), what each pixel is multiplied with.
        table: (b, H W, W), written.
        masks: behind the values.
    """
    share_threads()
    channels = table.shape[-1] - masks
    least: float = kernels.project(features.numpy(), matrix.contiguous().numpy(), table.numpy(), channels)
    return least


class WeightedKeys:
    """K keys in each of R references for Q query pixels: those of b images, or of some rows of one image.

    They lie in scratch memory: a thread has one of these at a time.

    Args:
        module: the attention.
        query: (b, C, rows, W).
        rows: what projects it to the keys, see :func:`key_rows`.
        tables: (R, b, H W, C + masks), G x of each reference, and M x behind it where there are masks.
        inside, outside: gates, (R, K) within the softmax and (R,) outside of it; 1 unless given.
        masks: of each pixel, 0 where all keys count.
        skipped: rows of the query map before these.
        height: of the query map, if not ``rows``.

    Attributes:
        pixels: the query, (Q, C).
    """

    def __init__(
        self,
        module: ACLA,
        query: Tensor,
        rows: Tensor,
        tables: Tensor,
        masks: int,
        inside: Tensor | None = None,
        outside: Tensor | None = None,
        skipped: int = 0,
        height: int | None = None,
    ) -> None:
        batch, _, lines, width = query.shape
        references, _, keys, _ = rows.shape
        self._tables = tables
        self._queries = kernels.Queries(batch, lines, width, skipped, height or lines)
        self.pixels = query.permute(0, 2, 3, 1).flatten(0, 2)
        self._scores = rows.flatten(0, 2).t().contiguous()
        self._base = module.base.to(query.dtype)
        self._inside = query.new_ones(references, keys) if inside is None else inside.contiguous()
        self._outside = query.new_ones(references) if outside is None else outside.contiguous()
        number: Any = self._base.numpy().dtype.type
        self._number = number
        share = SMALL if module.renormalize else 1.0
        self._softmax = kernels.Softmax(
            module.softmax == "joint",
            *(number(share), masks, number(module.gate_bias), number(module.gate_temperature)),
        )

    @property
    def _arguments(self) -> tuple[Any, Any, Any, Any, Any, Any, Any, Any]:
        """What both loops over queries are given first."""
        return (
            self._queries, self._softmax, self.pixels.numpy(), self._scores.numpy(), self._base.numpy(),
            self._inside.numpy(), self._outside.numpy(), self._tables.numpy(),
        )  # fmt: skip

    def sum(self, y: Tensor) -> tuple[Tensor, int]:
        """Write y of Eq. 6 (Q, C); return log sums of a joint softmax (Q,), and how many keys are open."""
        log_sums = y.new_empty(len(y))
        opened = np.empty(self._queries.images * self._queries.rows, np.int64)
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
            The gradients of the projected query, (Q, R, dx dy a, K), of the tables of those references, and
            of the gates inside (R, K) and outside (R,).
        """
        (references, keys), queries = self._inside.shape, len(self.pixels)
        lines, dtype = self._queries.images * self._queries.rows, of_y.dtype
        found = scratch("found", dtype, queries, references, 3, keys)
        of_found = scratch("gradients", dtype, *found.shape)
        weights = scratch("weights", dtype, lines, references, queries // lines * keys)
        of_masks = scratch("gradients of masks", dtype, *weights.shape)
        of_tables = scratch("gradients of tables", dtype, on, *self._tables.shape[1:])
        of_inside = of_y.new_empty(lines, references, keys)
        of_outside = of_y.new_empty(lines, references)
        share_threads()
        kernels.differentiate(
            *self._arguments, of_y.numpy(), log_sums.numpy(), totals.numpy(), self._number(of_open),
            found.numpy(), of_found.numpy(), weights.numpy(), of_masks.numpy(), of_inside.numpy(),
            of_outside.numpy(),
        )  # fmt: skip
        if on > 0:
            kernels.scatter(
                self._queries, self._softmax.masks, found.numpy(), self._base.numpy(), weights.numpy(),
                of_masks.numpy(), of_y.numpy(), of_tables.numpy(),
            )  # fmt: skip
        return of_found, of_tables, of_inside.sum(0), of_outside.sum(0)
