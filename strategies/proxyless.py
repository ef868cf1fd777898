"""Proxyless: one sampled path at a time, searched with NNI's implementation."""

from __future__ import annotations

from acla_nas.nni_nas import nni_one_shot
from acla_nas.strategies.darts import Differentiable


class Proxyless(Differentiable, nni_one_shot.Proxyless):
    """Runs the modules that a sample of the gates switches on (Cai et al. 2019), as NNI has it.

    The alphas' gradient passes through the probability of the sampled decision. Takes the arguments of
    :class:`acla_nas.strategies.darts.Differentiable`.

    Example:
        >>> Proxyless(epochs=(1, 2)).max_epochs
        3
    """
