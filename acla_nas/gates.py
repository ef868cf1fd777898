"""The architecture's decisions as NNI mutables: where a module is inserted, and how many keys it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from acla_nas.gumbel import gumbel_gate
from acla_nas.nni_nas import BaseSuperNetModule, MutableModule, label_scope, nni

__all__ = ["GumbelInsertGate", "GumbelKeyGate", "InsertGate", "KeyGate", "gumbel_gate"]


class InsertGate(MutableModule):
    """s_j: is there an attention module after position j (labelled ``insert/<j>``, [False, True])."""

    def __init__(self, position: int) -> None:
        super().__init__()
        self.position = position
        with label_scope("insert"):
            choice = nni.choice(str(position), [False, True])
        self.label = choice.label
        self.add_mutable(choice)

    def forward(self) -> Tensor | bool:
        """Return False: the unsearched space runs as the bare backbone."""
        return False

    def freeze(self, sample: dict[str, Any]) -> nn.Module:
        """Return itself: :meth:`acla_nas.CrossLayerSpace.freeze` builds the derived network."""
        return self


class KeyGate(MutableModule):
    """Which keys a module may read: the first K of them (labelled ``keys``, one choice by default).

    Within those, the adaptive form gates each key anew for each pixel (Eq. 7-9).
    """

    label = "keys"

    def __init__(self, num_keys: Sequence[int]) -> None:
        super().__init__()
        self.num_keys = tuple(num_keys)
        self.add_mutable(nni.choice(self.label, list(num_keys)))

    def forward(self) -> Tensor | None:
        """Return the (K,) 0/1 gates, or None where every key counts."""
        return None

    def freeze(self, sample: dict[str, Any]) -> nn.Module:
        """Return itself: :meth:`acla_nas.CrossLayerSpace.freeze` builds the derived network."""
        return self


class GumbelInsertGate(BaseSuperNetModule):
    """The searched form of :class:`InsertGate`: a Gumbel gate with the sampling parameter alpha_j (Eq. 10).

    ``differentiable`` tells what calling it returns while training: the straight-through gate of a
    fresh sample, for a step of alpha, or just the sampled decision as a bool, for a step of the
    weights, which then runs what is switched on and nothing else. In evaluation it is the derived
    decision, alpha_j > 0.

    Args:
        gate: the gate of the search space.
        alpha: initial sampling parameter.
    """

    def __init__(self, gate: InsertGate, alpha: float = 0.0) -> None:
        super().__init__()
        self.position, self.label = gate.position, gate.label
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))
        self.temperature = 1.0
        self.differentiable = False

    def forward(self) -> Tensor | bool:
        """Return s_j: a 0/1 tensor with a gradient, or a bool."""
        if not self.training:
            return bool(self.alpha > 0)
        if self.differentiable:
            return gumbel_gate(self.alpha, self.temperature)
        with torch.no_grad():
            return bool(gumbel_gate(self.alpha))

    def probability(self) -> Tensor:
        """Return the probability that the gate is open, with its gradient."""
        return self.alpha.sigmoid()

    def arch_parameters(self) -> list[nn.Parameter]:
        """Return alpha_j."""
        return [self.alpha]

    def resample(self, memo: dict[str, Any]) -> dict[str, Any]:
        """Return nothing: a new sample is drawn at each call."""
        return {}

    def export(self, memo: dict[str, Any]) -> dict[str, Any]:
        """Return the derived decision: inserted where alpha_j > 0."""
        return {self.label: bool(self.alpha > 0)}

    def export_probs(self, memo: dict[str, Any]) -> dict[str, Any]:
        """Return the probability of each choice."""
        p = float(torch.sigmoid(self.alpha.detach()))
        return {self.label: {False: 1 - p, True: p}}


class GumbelKeyGate(BaseSuperNetModule):
    """The searched form of :class:`KeyGate`: a straight-through Gumbel-softmax over the choices of K."""

    def __init__(self, gate: KeyGate) -> None:
        super().__init__()
        self.label, self.num_keys = gate.label, gate.num_keys
        self.alpha = nn.Parameter(torch.zeros(len(gate.num_keys)))
        self.temperature = 1.0
        self.register_buffer("opened", opened_keys(gate.num_keys), persistent=False)

    def forward(self) -> Tensor | None:
        """Return the (K,) 0/1 gates, or None where there is no choice."""
        if len(self.num_keys) == 1:
            return None
        return self.choice() @ self.opened

    def choice(self) -> Tensor:
        """Return a one-hot sample over the choices, with a gradient; the likeliest one in evaluation."""
        if self.training:
            return nn.functional.gumbel_softmax(self.alpha, tau=self.temperature, hard=True)
        return nn.functional.one_hot(self.alpha.argmax(), len(self.num_keys)).to(self.alpha.dtype)

    def probability(self) -> Tensor:
        """Return the probability of each number of keys, with its gradient."""
        return self.alpha.softmax(0)

    def arch_parameters(self) -> list[nn.Parameter]:
        """Return the sampling parameters; none where there is no choice."""
        return [self.alpha] if len(self.num_keys) > 1 else []

    def resample(self, memo: dict[str, Any]) -> dict[str, Any]:
        """Return nothing: a new sample is drawn at each call."""
        return {}

    def export(self, memo: dict[str, Any]) -> dict[str, Any]:
        """Return the likeliest K."""
        return {self.label: self.num_keys[int(self.alpha.argmax())]}

    def export_probs(self, memo: dict[str, Any]) -> dict[str, Any]:
        """Return the probability of each choice."""
        probabilities = self.alpha.detach().softmax(0).tolist()
        return {self.label: dict(zip(self.num_keys, probabilities))}


def opened_keys(num_keys: Sequence[int]) -> Tensor:
    """Return which keys each number of keys opens: 0/1, (choices, largest K)."""
    counts = torch.tensor(list(num_keys)).unsqueeze(1)
    return (torch.arange(max(num_keys)).unsqueeze(0) < counts).to(torch.get_default_dtype())
