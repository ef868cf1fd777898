"""Training in less memory: a part of a network is run again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from acla_nas.attention import Attention
from acla_nas.attention.open_keys import count_open_keys, open_key_shares


def recomputed_update(
    attention: Attention,
    query: Tensor,
    references: Mapping[str, Tensor],
    reference_gates: Mapping[str, Tensor] | None,
    key_gates: Tensor | None,
) -> Tensor:
    """Return what an attention module returns, keeping nothing but its arguments for the backward pass.

    On a CPU images are worked on one after the other, so that the backward pass has one in memory at a time;
    a GPU would idle over single ones, and gets all at once.

    Example:
        >>> import acla_nas
        >>> attention, x = acla_nas.attention.ACLA(8, num_keys=4), torch.randn(2, 8, 6, 6)
        >>> torch.equal(recomputed_update(attention, x, {"1": x}, None, None), attention(x, {"1": x}))
        True
    """

    def update(query: Tensor, *features: Tensor) -> tuple[Tensor, list[Tensor]]:
        with open_key_shares() as shares:
            result = attention(query, dict(zip(references, features)), reference_gates, key_gates)
        return result, shares

    size = 1 if query.device.type == "cpu" else len(query)
    updates, shares = [], []
    for images in zip(query.split(size), *(x.split(size) for x in references.values())):
        if torch.is_grad_enabled():
            result, counted = checkpoint(update, *images, use_reentrant=False)
        else:
            result, counted = update(*images)
        updates.append(result)
        shares.append(counted)
    for of_one_module in zip(*shares):
        count_open_keys(torch.stack(of_one_module).mean())
    return torch.cat(updates)


def in_groups(network: Any, size: int, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run a network on so many images at a time, each group again in the backward pass.

    Args:
        network: a function of `inputs` and `kwargs` that returns a tensor, (B, ...).
        size: images in a group.
        inputs: the tensors among them, (B, ...), are split.
        kwargs: passed to each group as they are.
    """
    batch = next(len(x) for x in inputs if isinstance(x, Tensor))
    outputs = []
    for first in range(0, batch, size):
        group = [x[first : first + size] if isinstance(x, Tensor) else x for x in inputs]
        outputs.append(checkpoint(network, *group, use_reentrant=False, **kwargs))
    return torch.cat(outputs)
