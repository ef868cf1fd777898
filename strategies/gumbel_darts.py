"""GumbelDARTS: modules weighed by a Gumbel-softmax that cools down, searched with NNI's implementation."""

from __future__ import annotations

from typing import Any

from acla_nas.errors import AclaError
from acla_nas.nni_nas import nni_one_shot
from acla_nas.strategies.darts import Differentiable


class GumbelDARTS(Differentiable, nni_one_shot.GumbelDARTS):
    """As DARTS, with weights that are drawn anew at every step (Xie et al. 2019, SNAS), as NNI has it.

    Args:
        epochs: of the weights alone, then of weights and alphas in turn.
        temperature: of the Gumbel-softmax at the start and at the end.
        options: the other ones of :class:`acla_nas.strategies.darts.Differentiable`.

    Raises:
        AclaError: an argument out of range, or an unknown cost model.

    Example:
        >>> GumbelDARTS(epochs=(1, 2), temperature=(1.0, 0.3)).max_epochs
        3
    """

    def __init__(
        self,
        epochs: tuple[int, int] = (20, 40),
        *,
        temperature: tuple[float, float] = (1.0, 0.33),
        **options: Any,
    ) -> None:
        if len(temperature) != 2 or not temperature[0] >= temperature[1] > 0:
            raise AclaError(f"temperature must be (start, end), start >= end > 0, not {tuple(temperature)}")
        super().__init__(epochs, **options)
        self.temperature = (float(temperature[0]), float(temperature[1]))
