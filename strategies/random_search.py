"""Random search: architectures drawn at random, none of them twice."""

from __future__ import annotations

import optuna

from acla_nas.multi_trial import MultiTrial


class RandomSearch(MultiTrial):
    """Draws each decision with equal chances, without replacement: what others have to beat.

    Args: those of :class:`acla_nas.multi_trial.MultiTrial`.

    Example:
        >>> import acla_nas
        >>> space = acla_nas.search_spaces.edsr(num_blocks=3, num_channels=8)
        >>> run = RandomSearch(trials=4).run(space, lambda network: len(network.positions), show=False)
        >>> len({candidate.arch.positions for candidate in run.candidates})
        4
    """

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """Return Optuna's RandomSampler."""
        return optuna.samplers.RandomSampler(seed)
