"""The keys of some query pixels with their weights, and the weighted sums of what is read there.

For modules of ACLA on a CPU: the loops are :mod:`acla_nas.attention.acla_kernels`' and the operator's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from acla_nas.attention.acla_kernels import differentiate_weights, scatter_masks, weigh
from acla_nas.ops.gather_numba import Lists
from acla_nas.ops.jit import share_threads
from acla_nas.ops.kernels import Part, differentiate

if TYPE_CHECKING:
    from acla_nas.attention.acla import ACLA

_SMALL = 1e-6  # part of all keys in the sum that renormalised weights are divided by
_HIGHEST = 20.0  # logarithm of a share of the softmax: only what is off could have a larger one


class Projected:
    """What is read of one reference: G x, a pixel a row, and M x where keys are gated.

    Args:
        rows: (b h w, C).
        masks: (b, K or 1, h w).
        size: (h, w).
    """

    def __init__(self, rows: Tensor, masks: Tensor | None, size: tuple[int, ...]) -> None:
        self.rows, self.size = rows, size
        self.masks = rows.new_empty(0, 0, 0) if masks is None else masks


class WeightedKeys:
    """K keys in each of R references for the query pixels of b images, or of some rows of one image.

    Args:
        module: the attention.
        offsets: (b, R, K, 2, rows, W).
        logits: (b, R, K, rows, W); used up.
        skipped: rows of the query map before these.
        height: of the query map.

    Attributes:
        joint: whether the softmax is over all references.
        sums: (b, rows, W), what weighted sums are to be divided by where it is.
        of_offsets, of_logits: gradients of what keys are made of, after :meth:`start_gradients`.
    """

    def __init__(self, module: ACLA, offsets: Tensor, logits: Tensor, skipped: int, height: int) -> None:
        batch, references, keys, rows, width = logits.shape
        self.joint = module.softmax == "joint"
        self._module, self._offsets, self._logits = module, offsets, logits
        self._skipped, self._height = skipped, height
        self.switch(logits.new_ones(references, keys), logits.new_ones(references))
        self.sums = logits.new_zeros(batch, rows, width)
        self._weights = torch.empty_like(logits)
        self._lists = Lists(batch * rows * width, keys, logits.dtype)
        number: Any = self._weights.numpy().dtype.type
        share = _SMALL if module.renormalize and module.adaptive else 1.0
        self._bias, self._temperature = number(module.gate_bias), number(module.gate_temperature)
        self._share, self._number = number(share), number

    @classmethod
    def of(
        cls,
        module: ACLA,
        query: Tensor,
        offset: Tensor,
        logit: Tensor,
        size: tuple[int, ...],
        skipped: int = 0,
        height: int | None = None,
    ) -> WeightedKeys:
        """Find the keys of query pixels.

        Args:
            module: the attention.
            query: (b, C, rows W).
            offset, logit: what projects it, (2 R K, C) and (R K, C).
            size: (rows, W).
            skipped: rows of the query map before these.
            height: of the query map, if not ``rows``.
        """
        batch, keys = len(query), module.num_keys
        count = len(logit) // keys
        base = module.base.to(query.dtype).repeat(count, 1).view(-1, 1)
        offsets = torch.baddbmm(base, offset.expand(batch, -1, -1), query)
        return cls(
            module,
            offsets.view(batch, count, keys, 2, *size),
            torch.bmm(logit.expand(batch, -1, -1), query).view(batch, count, keys, *size),
            skipped,
            height or size[0],
        )

    def switch(self, inside: Tensor, outside: Tensor) -> None:
        """Multiply by gates, (R, K) within the softmax and (R,) outside of it."""
        self._inside, self._outside = inside.detach().contiguous(), outside.detach().contiguous()

    def exponentiate(self, log_sums: Tensor | None = None) -> Tensor:
        """Take the exponentials of the logits, and return the logarithm of what they are divided by.

        Args:
            log_sums: which logarithm for a joint softmax, (b, rows, W), where it is known.
        """
        logits = self._logits
        off = self._inside == 0
        # What is off must not decide the scale, for all else could vanish beside it.
        on = logits.masked_fill(off[..., None, None], -torch.inf) if bool(off.any()) else logits
        if not self.joint:
            shift = on.amax(2, keepdim=True)
            log_sums = torch.zeros_like(self.sums)
            logits -= torch.where(shift == -torch.inf, 0, shift)
        else:
            if log_sums is None:
                log_sums = on.amax((1, 2))
            logits -= log_sums[:, None, None]
        if on is not logits:
            logits.clamp_(max=_HIGHEST)
        logits.exp_()
        return log_sums

    def _part(self, size: tuple[int, ...]) -> Part:
        share_threads()
        batch, rows, _ = self.sums.shape
        return Part(0, batch, 0, rows, self._skipped, self._height, *size, 0, size[0])

    def weigh(self, r: int, projected: Projected) -> int:
        """Work out the weights of a reference's keys, and return how many are open."""
        batch, rows, _ = self.sums.shape
        opened = np.empty(batch * rows, np.int64)
        weigh(
            self._part(projected.size), self._offsets.numpy(), self._logits.numpy(), projected.masks.numpy(),
            self._bias, self._inside.numpy(), self._outside.numpy(), r, self.joint, self._share,
            self._weights.numpy(), self.sums.numpy(), opened,
        )  # fmt: skip
        return int(opened.sum())

    def sum(self, r: int, projected: Projected) -> Tensor:
        """Return the weighted sum of what is read of a reference, before any division: (Q, C)."""
        self._lists.fill(self._part(projected.size), self._offsets, self._weights, r)
        return self._lists.sum(projected.rows)

    def start_gradients(self) -> None:
        """Make room for the gradients of offsets and logits."""
        self.of_offsets, self.of_logits = torch.empty_like(self._offsets), torch.empty_like(self._logits)
        self._of_masks = self._logits.new_empty(self._logits[:, 0].shape)

    def differentiate(
        self, r: int, projected: Projected, of_y: Tensor, totals: Tensor, of_open: float
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Work out the gradients of a reference's offsets and logits.

        Args:
            r: which reference.
            projected: what is read of it.
            of_y: dL/dy, (b, rows, W, C).
            totals: <dL/dy, y>, (b, rows, W).
            of_open: gradient of a key's gate, beside that which it has through y.

        Returns:
            The gradients of the masks (b, K or 1, h w), of the gates inside (K,), and of that outside.
        """
        part, offsets, masks = self._part(projected.size), self._offsets.numpy(), projected.masks
        batch, rows, _ = self.sums.shape
        differentiate(
            part, of_y.numpy(), projected.rows.numpy(), offsets, self._weights.numpy(), r,
            self.of_offsets.numpy(), self.of_logits.numpy(),
        )  # fmt: skip
        of_gates = self.sums.new_empty(batch * rows, self._logits.shape[2])
        of_gate = self.sums.new_empty(batch * rows)
        differentiate_weights(
            part, offsets, self._logits.numpy(), masks.numpy(), self._bias, self._temperature,
            self._inside.numpy(), self._outside.numpy(), r, self.joint, self._share, self._number(of_open),
            totals.numpy(), self.of_logits.numpy(), self.of_offsets.numpy(), self._of_masks.numpy(),
            of_gates.numpy(), of_gate.numpy(),
        )  # fmt: skip
        of_maps = None
        if masks.numel():
            of_maps = torch.zeros_like(masks)
            scatter_masks(part, offsets, self._of_masks.numpy(), r, of_maps.numpy())
        return of_maps, of_gates.sum(0), of_gate.sum()

    def sum_transposed(self, r: int, projected: Projected, of_y: Tensor) -> Tensor:
        """Return the gradient of what is read of a reference, (b h w, C)."""
        self._lists.fill(self._part(projected.size), self._offsets, self._weights, r)
        return self._lists.sum_transposed(of_y, len(projected.rows))
