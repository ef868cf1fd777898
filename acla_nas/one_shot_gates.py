"""The gates as NNI's own one-shot strategies search them: relaxed, sampled by path, or drawn evenly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from acla_nas.gates import InsertGate, KeyGate, opened_keys
from acla_nas.nni_nas import BaseSuperNetModule, nni_one_shot

Hook = Callable[[nn.Module, str, dict[str, Any], dict[str, Any]], "nn.Module | None"]


def gate_hooks(strategy: Any) -> list[Hook]:
    """Return the mutation hook that makes a space's gates what one of NNI's strategies searches.

    DARTS and GumbelDARTS weigh a module by the softmax of its two alphas; Proxyless runs one sampled path
    and passes gradients through the probability; RandomOneShot draws every gate evenly.
    """
    if isinstance(strategy, nni_one_shot.Proxyless):
        return [_hook(_PathGate)]
    if isinstance(strategy, nni_one_shot.DARTS):
        return [_hook(_RelaxedGate)]
    if isinstance(strategy, nni_one_shot.RandomOneShot):
        return [_hook(_EvenGate)]
    return []


def _hook(gate_class: type[_SearchedGate]) -> Hook:
    def hook(
        module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]
    ) -> nn.Module | None:
        if isinstance(module, (InsertGate, KeyGate)):
            return gate_class(module, memo.get(module.label), mutate_kwargs.get("softmax"))
        return None

    return hook


class _SearchedGate(BaseSuperNetModule):
    """A choice with one sampling parameter (alpha) per alternative, as NNI's strategies make them.

    Args:
        gate: an InsertGate, whose alternatives are False and True, or a KeyGate, with numbers of keys.
        alpha: (alternatives,), the strategy's parameters; None where it has none.
        softmax: from alpha to weights.
    """

    def __init__(self, gate: InsertGate | KeyGate, alpha: nn.Parameter | None, softmax: Any) -> None:
        super().__init__()
        self.label, self.softmax = gate.label, softmax
        self.choices: tuple[Any, ...]
        if isinstance(gate, KeyGate):
            self.choices = self.num_keys = gate.num_keys
            self.register_buffer("weights_of", opened_keys(gate.num_keys), persistent=False)
        else:
            self.choices, self.position = (False, True), gate.position
            self.register_buffer("weights_of", torch.tensor([0.0, 1.0]), persistent=False)
        self.alpha = alpha
        self.sampled = 0

    weights_of: Tensor  # alternatives x .., the gates that each stands for

    def forward(self) -> Tensor | bool | None:
        """Return the gates: what the derived architecture has, in evaluation."""
        if len(self.choices) == 1:
            return None
        if self.training:
            return self._searched()
        return self._fixed(self._best())

    def _searched(self) -> Tensor | bool | None:
        raise NotImplementedError

    def _fixed(self, index: int) -> Tensor | bool:
        chosen = self.choices[index]
        return chosen if isinstance(chosen, bool) else self.weights_of[index]

    def _best(self) -> int:
        return self.sampled if self.alpha is None else int(self.alpha.argmax())

    def probabilities(self) -> Tensor:
        """Return the probability of each alternative, with its gradient."""
        if self.alpha is None:
            return torch.full((len(self.choices),), 1 / len(self.choices))
        return self.alpha.softmax(0)

    def probability(self) -> Tensor:
        """Return the probability of insertion, or of each number of keys."""
        return self.probabilities() if hasattr(self, "num_keys") else self.probabilities()[1]

    def arch_parameters(self) -> list[nn.Parameter]:
        """Return the alphas; none where there is no choice."""
        return [self.alpha] if self.alpha is not None and len(self.choices) > 1 else []

    def resample(self, memo: dict[str, Any]) -> dict[str, Any]:
        """Draw one alternative."""
        with torch.no_grad():
            self.sampled = int(torch.multinomial(self.probabilities(), 1))
        return {self.label: self.choices[self.sampled]}

    def export(self, memo: dict[str, Any]) -> dict[str, Any]:
        """Return the derived decision: the likeliest alternative."""
        return {self.label: self.choices[self._best()]}

    def export_probs(self, memo: dict[str, Any]) -> dict[str, Any]:
        """Return the probability of each alternative."""
        return {self.label: dict(zip(self.choices, self.probabilities().detach().tolist()))}


class _RelaxedGate(_SearchedGate):
    """All alternatives at once, weighed by the strategy's softmax (DARTS, GumbelDARTS)."""

    def _searched(self) -> Tensor:
        return self.softmax(self.alpha) @ self.weights_of


class _PathGate(_SearchedGate):
    """One alternative, drawn by its probability, through which the gradient passes (Proxyless)."""

    def _searched(self) -> Tensor | bool:
        assert self.alpha is not None
        if not self.alpha.requires_grad:  # while the weights alone are trained
            return self._fixed(self.sampled)
        soft = self.probabilities() @ self.weights_of
        return self.weights_of[self.sampled] + (soft - soft.detach())


class _EvenGate(_SearchedGate):
    """One alternative, each as likely as the others (RandomOneShot)."""

    def _searched(self) -> Tensor | bool:
        return self._fixed(self.sampled)
