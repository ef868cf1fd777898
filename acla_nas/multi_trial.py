"""MultiTrial: strategies that propose one architecture after another and learn their scores."""

from __future__ import annotations

import json
import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import optuna
import torch
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor, nn

from acla_nas import cost as costs
from acla_nas.arch import shown_positions
from acla_nas.budget import Limit
from acla_nas.candidate import Candidate
from acla_nas.cost import CostModel
from acla_nas.cost.space_cost import SpaceCost
from acla_nas.errors import AclaError, AclaWarning
from acla_nas.exporter import copied_weights, save_weights
from acla_nas.interruption import stop_if_asked
from acla_nas.live import LiveDisplay, shown_duration
from acla_nas.proposals import Decisions, Proposals, counts
from acla_nas.run_record import say
from acla_nas.study_storage import FILE, open_storage, quiet_optuna

if TYPE_CHECKING:
    from acla_nas.space import CrossLayerSpace

Scorer = Callable[[nn.Module], float]

_HOPELESS = 5  # failures at the beginning of a search, after which it gives up
_POLL = 1.0  # seconds between two looks at what the other workers do


class MultiTrialRun(NamedTuple):
    """What a multi-trial search has found.

    Attributes:
        candidates: every architecture that was scored, in order.
        best: the one with the highest score, the first of several.
        weights: those of the best, as they were when it had been scored.
    """

    candidates: tuple[Candidate, ...]
    best: Candidate
    weights: dict[str, Tensor]


class MultiTrial(ABC):
    """Scores one architecture after another; the proposals come from a sampler of Optuna's, or like them.

    The score to be maximised is

        quality - cost_weight * log(cost + cheapest module)

    with the quality as the scorer returns it, in dB. Where ``multi_objective`` is True, the sampler sees
    two objectives instead, quality (more) and cost (less), and the score only chooses the best at the end.

    A trial is one architecture. The search ends after ``trials`` of them, or when all of a small space have
    been scored. It is a function of its seed and its trials: interrupted at any moment and run again with
    the same storage, it goes on to the result that it would have had. An interrupted trial is proposed anew.

    A strategy of one's own implements :meth:`sampler`; see docs/strategies.md.

    Args:
        trials: architectures to score.
        cost: "macs", "paper", .. or a :class:`acla_nas.cost.CostModel`.
        cost_weight: at least 0, in dB per unit of the logarithm: 1 lets a module set of e times the cost
            be 1 dB better.
        storage: an Optuna storage URL, such as sqlite:///trials.db or postgresql://user@host/database,
            which several processes may share: they then work on one search. A file in the run folder
            where None.
        study: the name of the search in the storage.
        seed: of the proposals, 0 or more.

    Raises:
        AclaError: an argument out of range, or an unknown cost model.
    """

    multi_objective = False
    attempts = 10  # of the sampler to propose an architecture that has not been seen; then one is drawn

    def __init__(
        self,
        trials: int = 50,
        *,
        cost: str | CostModel = "macs",
        cost_weight: float = 0.0,
        storage: str | None = None,
        study: str = "acla_nas",
        seed: int = 0,
    ) -> None:
        if trials < 1:
            raise AclaError(f"trials must be at least 1, not {trials}")
        if not (cost_weight >= 0 and math.isfinite(cost_weight)):
            raise AclaError(f"cost_weight must be 0 or more, not {cost_weight}")
        if seed < 0:
            raise AclaError(f"seed must be 0 or more, not {seed}")
        self.trials, self.seed = trials, seed
        self.cost = costs.get(cost) if isinstance(cost, str) else cost
        self.cost_weight = cost_weight
        self.storage, self.study = storage, study

    @abstractmethod
    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """Return what proposes the next architecture, knowing the study so far.

        Called for each trial, with another seed each time: what the sampler has to remember must be in the
        study, as with most of Optuna's it is. Its parameters are ``insert/<j>``, False or True, and ``keys``
        where the space leaves a choice.
        """

    def run(
        self,
        space: CrossLayerSpace,
        scorer: Scorer,
        *,
        folder: str | Path | None = None,
        limit: Limit | None = None,
        time_limit: float | None = None,
        show: bool = True,
    ) -> MultiTrialRun:
        """Search a space, in this process, and beside any others that share the storage.

        Args:
            space: to search; its weights are what the candidates begin with.
            scorer: given a derived network, returns its quality, higher is better; it may train the
                network. A network that it fails on is left out, with a warning.
            folder: keeps the trials (unless ``storage`` does) and the best network's weights; where it
                holds an unfinished search, that goes on. Memory where None.
            limit: what a candidate may cost; a proposal above it loses modules at random.
            time_limit: minutes after which no further trial is begun; none where None.
            show: print a line per trial, and in a terminal show how far the search is.

        Raises:
            AclaError: the storage cannot be opened or holds another search; the cost cannot be measured;
                nothing could be scored.
        """
        folder = None if folder is None else Path(folder)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        with quiet_optuna():
            return _Search(self, space, scorer, folder, limit, show).run(time_limit)


class _NotScored(Exception):
    """Ends a trial without a score; not an error of the search."""


def _difference(then: dict[str, Any], now: dict[str, Any]) -> tuple[str, Any, Any]:
    """Return the first setting, such as "scorer.epochs", that two searches do not share, and its values."""
    key = next(key for key in {**now, **then} if now.get(key) != then.get(key))
    before, after = then.get(key), now.get(key)
    if isinstance(before, dict) and isinstance(after, dict):
        inner, before, after = _difference(before, after)
        return f"{key}.{inner}", before, after
    return key, before, after


class _Search:
    """One run of a strategy."""

    def __init__(
        self,
        strategy: MultiTrial,
        space: CrossLayerSpace,
        scorer: Scorer,
        folder: Path | None,
        limit: Limit | None,
        show: bool,
    ) -> None:
        self.strategy, self.space, self.scorer = strategy, space, scorer
        self.folder, self.show = folder, show
        self.cost = SpaceCost(space, strategy.cost)
        self.cost.check_weight(strategy.cost_weight)
        self.decisions = Decisions(space, limit)
        storage = open_storage(strategy.storage, folder)
        shared = strategy.storage is not None
        self.proposals = Proposals(
            strategy.sampler,
            self.decisions,
            strategy.seed,
            attempts=strategy.attempts,
            beat=storage.record_heartbeat if isinstance(storage, RDBStorage) and shared else None,
        )
        self.trials = min(strategy.trials, len(self.proposals.listed or range(strategy.trials)))
        self.study = self._create_study(storage)
        if not shared:
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                self.study.tell(trial.number, state=TrialState.FAIL)  # of a process that was killed
        self._check_same_search()
        self._best_weights: tuple[str, dict[str, Tensor]] | None = None
        self._failures = self._scored = self._number = 0
        self._begun = time.monotonic()
        self._display: LiveDisplay | None = None

    def _create_study(self, storage: BaseStorage) -> optuna.Study:
        return optuna.create_study(
            storage=storage,
            study_name=self.strategy.study,
            directions=["maximize", "minimize"] if self.strategy.multi_objective else ["maximize"],
            sampler=self.proposals,
            load_if_exists=True,
        )

    def _check_same_search(self) -> None:
        """Raise AclaError where the study's trials are of a search that differs in more than its length."""
        strategy, limit = self.strategy, self.decisions.limit
        settings = {k: v for k, v in vars(strategy).items() if k not in ("trials", "storage", "study")}
        now: dict[str, Any] = {
            "strategy": type(strategy).__name__,
            **settings,
            "scorer": getattr(self.scorer, "settings", type(self.scorer).__name__),
            "budget": None if limit is None else [limit.limit, limit.cost.unit],
            "space": self.space.source,
            "positions": self.space.positions,
            "keys": self.space.key_gate.num_keys,
            "attention": self.space.attention_options,
        }
        if hasattr(self.scorer, "settings"):  # one of ours, that judges the weights that the space has
            sums = (float(w.detach().double().abs().sum()) for w in self.space.parameters())
            now["weights"] = f"{sum(sums):.8g}"
        now = json.loads(json.dumps(now, default=_name))
        then = self.study.user_attrs.get("search")
        if then is None:
            self.study.set_user_attr("search", now)
        elif then != now:
            key, before, after = _difference(then, now)
            where = f"storage study {strategy.study!r}" if strategy.storage else f"{self.folder}/{FILE}"
            raise AclaError(
                f"{where} holds another search, whose {key} is {before}, not {after}: "
                "give another run folder or study, or the settings that it was begun with"
            )

    def run(self, time_limit: float | None) -> MultiTrialRun:
        done = sum(map(counts, self.study.get_trials(deepcopy=False)))
        if self.show and done:
            say(f"going on after {done} of {self.trials} trials")
        end = math.inf if time_limit is None else time.monotonic() + 60 * time_limit
        self._display = LiveDisplay("trial", self.trials, done=done) if self.show else None
        try:
            while self._wait_for_turn(end):
                try:
                    self.study.optimize(self._objective, n_trials=1, catch=(_NotScored,))
                except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
                    if not self._taken_for_dead():
                        raise
        finally:
            if self._display is not None:
                self._display.close()
        return self._result()

    def _taken_for_dead(self) -> bool:
        """Did this process stand still for so long that its trial was given to another worker?"""
        trial = self.study.get_trials(deepcopy=False)[self._number]
        return trial.state == TrialState.FAIL and "error" not in trial.user_attrs

    def _wait_for_turn(self, end: float) -> bool:
        """Is there something left to do in this process? Waits while only other workers know."""
        while time.monotonic() < end:
            stop_if_asked(f"stopped before trial {len(self.study.get_trials(deepcopy=False)) + 1}")
            optuna.storages.fail_stale_trials(self.study)
            trials = [t for t in self.study.get_trials(deepcopy=False) if counts(t)]
            states = {t.state for t in trials}
            if TrialState.WAITING in states or len(trials) < self.trials:
                return True
            if TrialState.RUNNING not in states:
                return False
            time.sleep(_POLL)  # a worker may die, and leave its trial to this one
        return False

    def _objective(self, trial: optuna.Trial) -> float | tuple[float, float]:
        self._number = trial.number
        for name, distribution in self.decisions.distributions.items():
            trial.suggest_categorical(name, distribution.choices)
        params = trial.params
        before = self._before(trial)
        same = [t for t in before if t.params == params]
        if (
            len(before) >= self.trials  # two workers have begun the last trial
            or (same and not self.proposals.repeats)  # or the same architecture, the other one first
            or not self.decisions.allows(params)  # proposed elsewhere
        ):
            raise _NotScored
        sample = self.decisions.sample(params)
        cost = self.cost.of(sample)
        known = next((t for t in same if t.state == TrialState.COMPLETE), None)
        error = next((t.user_attrs["error"] for t in same if "error" in t.user_attrs), None)
        if known is not None:
            quality = float(known.user_attrs["quality"])
        elif error is not None:
            self._fail(trial, error)
        else:
            quality = self._score(trial, sample, cost, before)
        trial.set_user_attr("quality", quality)
        trial.set_user_attr("cost", cost)
        if self.show:
            self._print(len(before) + 1, params, quality, cost, before)
        return (quality, cost) if self.strategy.multi_objective else self._value(quality, cost)

    def _before(self, trial: optuna.Trial) -> list[FrozenTrial]:
        """Return the search's trials before this one, once all of them have decided what they are."""
        while True:
            before = [t for t in self.study.get_trials(deepcopy=False)[: trial.number] if counts(t)]
            running = [t for t in before if t.state == TrialState.RUNNING]
            if all(len(t.params) == len(self.decisions.distributions) for t in running):
                return before
            optuna.storages.fail_stale_trials(self.study)
            time.sleep(_POLL / 10)

    def _score(
        self, trial: optuna.Trial, sample: dict[str, Any], cost: float, before: list[FrozenTrial]
    ) -> float:
        network = self.space.freeze(sample)
        try:
            quality = float(self.scorer(network))
            if not math.isfinite(quality):
                raise ValueError(f"its score is {quality}")
        except Exception as error:  # whatever a candidate does to its scorer
            told = f"{type(error).__name__}: {error}".splitlines()[0]
            self._failures += 1
            warnings.warn(f"{_shown(sample)} left out: {told}", AclaWarning, stacklevel=2)
            if not self._scored and self._failures >= _HOPELESS:
                trial.set_user_attr("error", told)
                raise AclaError(
                    f"the first {_HOPELESS} architectures could not be scored, the last of them, "
                    f"{_shown(sample)}, with {told}: mend the scorer, and begin again with a new run folder "
                    "or study"
                ) from error
            self._fail(trial, told)
        self._scored += 1
        best = self._best(before)
        if best is None or self._value(quality, cost) > self._value_of(best):
            self._keep_weights(sample, network)
        return quality

    def _fail(self, trial: optuna.Trial, error: str) -> None:
        trial.set_user_attr("error", error)
        raise _NotScored

    def _value(self, quality: float, cost: float) -> float:
        """Return the score."""
        if not self.strategy.cost_weight:
            return quality
        return quality - self.strategy.cost_weight * float(
            self.cost.log(torch.tensor(cost, dtype=torch.float64))
        )

    def _value_of(self, trial: FrozenTrial) -> float:
        return self._value(trial.user_attrs["quality"], trial.user_attrs["cost"])

    def _best(self, trials: list[FrozenTrial]) -> FrozenTrial | None:
        scored = (t for t in trials if t.state == TrialState.COMPLETE)
        return max(scored, key=self._value_of, default=None)

    def _keep_weights(self, sample: dict[str, Any], network: nn.Module) -> None:
        if self.folder is None:
            self._best_weights = _shown(sample), copied_weights(network)
            return
        save_weights(network.state_dict(), self.folder / "best.safetensors", {"architecture": _shown(sample)})

    def _weights(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """Return the weights of the best; it is scored again where another machine has them."""
        if self.folder is not None and (path := self.folder / "best.safetensors").exists():
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("architecture") == _shown(sample):
                    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if self._best_weights is None or self._best_weights[0] != _shown(sample):
            if self.show:
                say(f"scoring {_shown(sample)} again, for its weights: they are not here")
            network = self.space.freeze(sample)
            self.scorer(network)
            self._keep_weights(sample, network)
            return self._weights(sample)
        return self._best_weights[1]

    def _result(self) -> MultiTrialRun:
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        best = self._best(trials)
        if best is None:
            failed = [
                t.user_attrs["error"]
                for t in self.study.get_trials(deepcopy=False)
                if "error" in t.user_attrs
            ]
            why = f"; the last trial ended with: {failed[-1]}" if failed else ": give it more time or trials"
            raise AclaError(f"the search has scored no architecture{why}")
        candidates: dict[str, Candidate] = {}
        for trial in trials:
            sample = self.decisions.sample(trial.params)
            cost = trial.user_attrs["cost"]
            arch = self.space.arch(sample).model_copy(update={"cost": {self.cost.unit: cost}})
            candidates.setdefault(_shown(sample), Candidate(arch, trial.user_attrs["quality"], cost))
        sample = self.decisions.sample(best.params)
        return MultiTrialRun(tuple(candidates.values()), candidates[_shown(sample)], self._weights(sample))

    def _print(
        self, index: int, params: Mapping[str, Any], quality: float, cost: float, before: list[FrozenTrial]
    ) -> None:
        best = self._best(before)
        leads = best is None or self._value(quality, cost) > self._value_of(best)
        so_far = params if best is None or leads else best.params
        if self._display is not None:
            top = {"quality": quality, "cost": cost} if best is None or leads else best.user_attrs
            self._display.update(index, f"best {top['quality']:.2f} at {top['cost']:.3g} {self.cost.unit}")
        each = (time.monotonic() - self._begun) / max(1, self._scored)
        left = self.trials - index
        say(
            f"trial {index}/{self.trials}  {_shown(self.decisions.sample(params))}  quality {quality:.2f}  "
            f"cost {cost:.3g} {self.cost.unit}  best {_shown(self.decisions.sample(so_far))}"
            + (f"  about {shown_duration(each * left)} left" if left else "")
        )


def _shown(sample: Mapping[str, Any]) -> str:
    """Return the architecture in words, the same for the same one."""
    positions = [int(name.split("/")[1]) for name, value in sample.items() if name != "keys" and value]
    return f"positions {shown_positions(positions)} with {sample['keys']} keys"


def _name(thing: object) -> str:
    return type(thing).__qualname__
