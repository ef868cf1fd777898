"""The Gumbel binary gate: a 0/1 decision that gradients pass through."""

from __future__ import annotations

import torch
from torch import Tensor


def gumbel_gate(logits: Tensor, temperature: float = 1.0, noise: bool = True) -> Tensor:
    """Return hard 0/1 gates whose gradient is that of the noisy sigmoid (Eq. 7, 9 and 10).

    Forward: ``1`` where ``sigmoid((logits + g1 - g2) / temperature) > 0.5``, else ``0``, with g1 and g2
    standard Gumbel noise; so a gate is open with probability ``sigmoid(logits)`` at any temperature.
    Backward: the gradient of that sigmoid (straight-through, Bengio et al. 2013).

    Args:
        logits: sampling parameters, any shape; the gate has the same shape and dtype.
        temperature: of the sigmoid, above 0; it shapes the gradient only.
        noise: add Gumbel noise; without it (evaluation) a gate is open where its logit is above 0.

    Example:
        >>> gumbel_gate(torch.tensor([-2.0, 0.0, 2.0]), noise=False)
        tensor([0., 0., 1.])
    """
    if noise:
        # The difference of two Gumbel variables is a logistic one.
        uniform = torch.rand_like(logits, dtype=torch.promote_types(logits.dtype, torch.float32))
        uniform = uniform.clamp(1e-7, 1 - 1e-7)
        logits = logits + (uniform.log() - torch.log1p(-uniform)).to(logits.dtype)
    soft = torch.sigmoid(logits / temperature)
    hard = (logits > 0).to(soft.dtype)
    return hard + (soft - soft.detach())
