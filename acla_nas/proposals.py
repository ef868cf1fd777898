"""What is scored next: an Optuna sampler's proposal, within the budget and, where possible, a new one."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from acla_nas.budget import Limit

if TYPE_CHECKING:
    from acla_nas.space import CrossLayerSpace

# Spaces up to this many architectures are listed; of a larger one, nobody scores the most.
LISTED = 4096
_DRAWS = 100  # at random, where a sampler knows nothing new

Params = dict[str, Any]


class Decisions:
    """The decisions of a space as Optuna's parameters: ``insert/<j>``, and ``keys`` where there is a choice.

    Args:
        space: whose architectures are searched.
        limit: which of them may be; all where None.

    Attributes:
        distributions: parameter -> what it can be.
        count: of the space's samples, within the limit or not.

    Example:
        >>> import acla_nas
        >>> decisions = Decisions(acla_nas.search_spaces.edsr(num_blocks=2, num_channels=8))
        >>> decisions.count, decisions.sample({"insert/1": True, "insert/2": False})
        (4, {'keys': 16, 'insert/1': True, 'insert/2': False})
    """

    def __init__(self, space: CrossLayerSpace, limit: Limit | None = None) -> None:
        self.limit = limit
        self._num_keys: tuple[int, ...] = tuple(space.key_gate.num_keys)
        self._inserts = [f"insert/{j}" for j in space.network.paths]
        self.distributions = {name: CategoricalDistribution((False, True)) for name in self._inserts}
        if len(self._num_keys) > 1:
            self.distributions["keys"] = CategoricalDistribution(self._num_keys)
        self.count = len(self._num_keys) * 2 ** len(self._inserts)

    def sample(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sample of the space that the parameters are."""
        return {"keys": self._num_keys[0], **params}

    def allows(self, params: Mapping[str, Any]) -> bool:
        """Is what the parameters decide within the budget?"""
        return self.limit is None or self.limit.allows(self.sample(params))

    def fit(self, params: Mapping[str, Any], rng: random.Random) -> Params:
        """Return the parameters cut down to the budget, modules leaving in random order.

        Without any module the number of keys means nothing, and is the first.
        """
        fitted = {name: params[name] for name in self.distributions}
        if self.limit is not None and not self.allows(fitted):
            worth = {int(n.split("/")[1]): rng.random() for n in self._inserts if fitted[n]}
            cut = self.limit.cut(self.sample(fitted), worth)
            fitted = {name: cut[name] for name in self.distributions}
        if "keys" in fitted and not any(fitted[name] for name in self._inserts):
            fitted["keys"] = self._num_keys[0]
        return fitted

    def draw(self, rng: random.Random) -> Params:
        """Return parameters at random, within the budget."""
        return self.fit({name: rng.choice(d.choices) for name, d in self.distributions.items()}, rng)

    def listed(self) -> list[Params] | None:
        """Return the parameters of every architecture within the budget; None if they are too many."""
        if self.count > LISTED:
            return None
        choices = itertools.product(*(d.choices for d in self.distributions.values()))
        every = (dict(zip(self.distributions, choice)) for choice in choices)
        rng = random.Random(0)  # is not drawn from: what is within the budget is not cut
        return [params for params in every if self.allows(params) and self.fit(params, rng) == params]


def counts(trial: FrozenTrial) -> bool:
    """Is the trial one of the search's: scored, failed by its scorer, or under way?

    One that was interrupted is not: it is proposed again.
    """
    return trial.state != TrialState.FAIL or "error" in trial.user_attrs


class Proposals(optuna.samplers.BaseSampler):
    """Asks a fresh sampler for each trial, seeded by the search's seed and the number of trials before.

    So a search is a function of its seed and its trials: no sampler's state has to outlive the process.
    What the sampler proposes is cut down to the budget. Where that has been seen before, the sampler is
    asked again, and if it knows nothing new, an architecture that has not been seen is drawn at random.

    Args:
        make: seed -> sampler.
        decisions: of the space.
        seed: of the search.
        attempts: how often a sampler is asked for something new.
        beat: given the id of a trial that begins, tells the storage that its worker lives.

    Attributes:
        repeats: is the last proposal known to have been seen, as there is nothing new?
    """

    def __init__(
        self,
        make: Callable[[int], optuna.samplers.BaseSampler],
        decisions: Decisions,
        seed: int,
        *,
        attempts: int,
        beat: Callable[[int], None] | None = None,
    ) -> None:
        self.make, self.decisions, self.seed = make, decisions, seed
        self.attempts, self.beat = attempts, beat
        self.listed = decisions.listed()
        self.repeats = False
        self._inner = self._fresh(0)

    def _fresh(self, index: int) -> optuna.samplers.BaseSampler:
        seed = int(np.random.SeedSequence((self.seed, index)).generate_state(1)[0])
        self._rng = random.Random(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return self.make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Make the sampler of this trial."""
        if self.beat is not None:
            self.beat(trial._trial_id)
        self.repeats = False
        before = study.get_trials(deepcopy=False)[: trial.number]
        self._inner = self._fresh(sum(map(counts, before)))
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, optuna.distributions.BaseDistribution]:
        """Return all decisions: they are made together."""
        return dict(self.decisions.distributions)

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, optuna.distributions.BaseDistribution],
    ) -> Params:
        """Return the parameters of the architecture to score next."""
        trials = study.get_trials(deepcopy=False)
        seen = {self._key(t.params) for t in trials if counts(t) and t.number != trial.number}
        for _ in range(self.attempts):
            proposal = self.decisions.fit(self._propose(study, trial), self._rng)
            if self._key(proposal) not in seen:
                return proposal
        drawn = (self.decisions.draw(self._rng) for _ in range(_DRAWS))
        unseen = [p for p in (drawn if self.listed is None else self.listed) if self._key(p) not in seen]
        self.repeats = not unseen
        return self._rng.choice(unseen) if unseen else proposal

    def _propose(self, study: optuna.Study, trial: FrozenTrial) -> Params:
        """Return all decisions of the sampler, in whichever of Optuna's two ways it makes them."""
        known = self._inner.infer_relative_search_space(study, trial)
        proposal = self._inner.sample_relative(study, trial, known)
        return {
            name: proposal[name]
            if name in proposal
            else self._inner.sample_independent(study, trial, name, distribution)
            for name, distribution in self.decisions.distributions.items()
        }

    def _key(self, params: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(params.get(name) for name in self.decisions.distributions)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: optuna.distributions.BaseDistribution,
    ) -> Any:
        """Return one decision: for those that a trial has outside of the space's."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Tell the sampler of this trial that it has ended."""
        self._inner.after_trial(study, trial, state, values)
