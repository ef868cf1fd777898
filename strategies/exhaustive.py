"""Exhaustive search: every architecture of a small space."""

from __future__ import annotations

from typing import Any

from acla_nas.errors import AclaError
from acla_nas.multi_trial import MultiTrialRun
from acla_nas.proposals import LISTED, Decisions
from acla_nas.space import CrossLayerSpace
from acla_nas.strategies.random_search import RandomSearch


class Exhaustive(RandomSearch):
    """Scores all architectures of a space that are within the budget, in random order.

    A space of P positions and k numbers of keys has k * 2^P of them; up to 4096 are searched.

    Args: those of :class:`acla_nas.multi_trial.MultiTrial`, without trials.

    Example:
        >>> import acla_nas
        >>> space = acla_nas.search_spaces.edsr(num_blocks=2, num_channels=8)
        >>> run = Exhaustive().run(space, lambda network: -len(network.positions), show=False)
        >>> len(run.candidates), run.best.arch.positions
        (4, ())
    """

    def __init__(self, **options: Any) -> None:
        if "trials" in options:
            raise AclaError("exhaustive takes no trials: it scores everything; random takes them")
        super().__init__(LISTED, **options)

    def run(self, space: CrossLayerSpace, *args: Any, **options: Any) -> MultiTrialRun:
        """Search a space; see :meth:`acla_nas.multi_trial.MultiTrial.run`.

        Raises:
            AclaError: the space has too many architectures; and what every search raises.
        """
        count = Decisions(space).count
        if count > LISTED:
            raise AclaError(
                f"the space has {count} architectures ({len(space.positions)} positions), exhaustive scores "
                f"up to {LISTED}: use random, tpe or nsga2, or fewer positions"
            )
        return super().run(space, *args, **options)
