"""The time that the inserted modules take, measured on the device at hand."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from acla_nas._version import __version__
from acla_nas.attention import Attention, Feature
from acla_nas.cost.cost_model import CostModel, CostTable
from acla_nas.cost.latency_cache import LatencyCache
from acla_nas.cost.timing import Timing, device_name, time_in_turns
from acla_nas.errors import AclaError
from acla_nas.network import CrossLayerNetwork, trace_features

# How far a module's time may be from the straight line, relative; beside the noise of the clock.
_MODEL_ERROR = 0.02


class LatencyCost(CostModel):
    """Milliseconds that the inserted modules take for one input, measured here.

    With n_f references of shape f, a module takes very nearly

        time = own + sum_f n_f pair_f

    so modules with 1, 2, 4, 8, .. references are timed as a derived network runs them (evaluation mode, no
    gates, with the addition to the query feature), their runs taking turns so that all meet the same other
    load, and own and pair are fitted to the medians: least squares of the relative error, none below 0. The
    table's ``own_error`` and ``pair_error`` are half of the 95 % intervals, from the spread of the runs and
    from what the line does not explain.

    Positions with modules and features alike are measured once. Medians are kept in a file for each device,
    in the folder ACLA_NAS_CACHE, or else ~/.cache/acla_nas: what is there for the same PyTorch, number of
    threads, precision, attention, options and feature sizes is not measured again. Delete the file to do so.

    Add the time of the backbone to have the network's; ``acla-nas bench latency`` compares that with
    networks that are run.

    Args:
        device: "cpu", "cuda", or "auto" for the GPU that PyTorch sees, if any.
        runs: at most so many of each module; fewer, but 7 at least, once all medians are known to 2 %.
        cache: read and write the file of medians.

    Raises:
        AclaError: a device that is not there, runs below 7, or a module that cannot be timed.

    Example:
        >>> import acla_nas
        >>> space = acla_nas.search_spaces.edsr(num_blocks=3, num_channels=8)
        >>> table = LatencyCost(device="cpu", runs=7, cache=False).table(space.network, (3, 16, 16))
        >>> 0 < table.of([True, False, False]) < table.of([True, True, True])
        True
        >>> table.unit, tuple(table.pair_error.shape)
        ('ms', (3, 3))
    """

    unit = "ms"

    def __init__(self, device: str = "auto", runs: int = 30, cache: bool = True) -> None:
        if device not in ("auto", "cpu", "cuda"):
            raise AclaError(f"device must be 'auto', 'cpu' or 'cuda', not {device!r}")
        if device == "cuda" and not torch.cuda.is_available():
            raise AclaError(
                "device 'cuda', but PyTorch sees no GPU: use 'cpu', or check CUDA_VISIBLE_DEVICES"
            )
        if runs < 7:
            raise AclaError(f"runs must be at least 7, not {runs}: a median of fewer says little")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device, self.runs = torch.device(device), runs
        self._cache = LatencyCache(device_name(self.device), on_disk=cache)

    def table(self, network: CrossLayerNetwork, input_shape: tuple[int, ...] = (3, 48, 48)) -> CostTable:
        """Return the milliseconds of all positions and pairs, measuring what is not known yet."""
        features = trace_features(network.backbone, network.paths, input_shape, network.layouts)
        alike: dict[tuple[str, Feature], list[int]] = {}
        for j in network.paths:
            module = _module(network, j)
            kind = json.dumps(_kind(module.select([str(j)], module.num_keys)), sort_keys=True)
            alike.setdefault((kind, features[j]), []).append(j)
        # The last position of each group has the most references, of every shape.
        plans = {
            (kind, query): [
                _Point.of(kind, names, features) for names in _references_to_time(members[-1], features)
            ]
            for (kind, query), members in alike.items()
        }
        self._measure(network, features, [point for points in plans.values() for point in points])

        rows = {j: row for row, j in enumerate(network.paths)}
        own, own_error = torch.zeros(2, len(rows), dtype=torch.float64)
        pair, pair_error = torch.zeros(2, len(rows), len(rows), dtype=torch.float64)
        for group, members in alike.items():
            fit = _fit([(point, self._cache.get(point.key)) for point in plans[group]], group[1])
            for j in members:
                own[rows[j]], own_error[rows[j]] = fit.own
                for l in network.paths:
                    if l <= j:
                        pair[rows[j], rows[l]], pair_error[rows[j], rows[l]] = fit.pairs[features[l]]
        return CostTable(own, pair, unit=self.unit, own_error=own_error, pair_error=pair_error)

    def _measure(
        self, network: CrossLayerNetwork, features: Mapping[int, Feature], points: Sequence[_Point]
    ) -> None:
        """Time what the cache does not hold, all in turns."""
        missing = [point for point in points if point.key not in self._cache]
        generator = torch.Generator().manual_seed(0)
        inputs: dict[int, Tensor] = {}
        calls: dict[str, Callable[[], object]] = {}
        for point in missing:
            for l in point.names:
                if l not in inputs:
                    value = torch.randn(1, *features[l], generator=generator)
                    inputs[l] = value.to(self.device, _dtype(_module(network, point.position)))
            module = _module(network, point.position)
            chosen = module.select([str(l) for l in point.names], module.num_keys).to(self.device).eval()
            calls[point.key] = _Insertion(
                chosen, inputs[point.position], {str(l): inputs[l] for l in point.names}
            )
        if not calls:
            return
        try:
            timings = time_in_turns(calls, self.device, self.runs)
        except Exception as error:  # of whatever the modules run
            kinds = ", ".join(sorted({type(_module(network, point.position)).__name__ for point in missing}))
            raise AclaError(
                f"the latency of {kinds} cannot be measured on {self.device} "
                f"({' '.join(str(error).split())[:200]}): use another cost, or mend the attention"
            ) from error
        self._cache.add(timings)


class _Insertion:
    """What a derived network runs at an inserted position."""

    def __init__(self, module: Attention, query: Tensor, references: Mapping[str, Tensor]) -> None:
        self.module, self.query, self.references = module, query, references

    def __call__(self) -> Tensor:
        return self.module.insert(self.query, self.references, {}, None)


class _Point(NamedTuple):
    """A module with some of its references, to be timed.

    Attributes:
        names: the positions that it refers to, its own last.
        counts: shape -> how many of them have it.
        key: everything that its time depends on.
    """

    names: tuple[int, ...]
    counts: dict[Feature, int]
    key: str

    @property
    def position(self) -> int:
        return self.names[-1]

    @classmethod
    def of(cls, kind: str, names: tuple[int, ...], features: Mapping[int, Feature]) -> _Point:
        counts: dict[Feature, int] = {}
        for l in names:
            counts[features[l]] = counts.get(features[l], 0) + 1
        key = {
            **json.loads(kind),
            "query": list(features[names[-1]]),
            "references": [[*shape, count] for shape, count in sorted(counts.items())],
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "acla_nas": __version__,
        }
        return cls(names, counts, json.dumps(key, sort_keys=True))


def _references_to_time(position: int, features: Mapping[int, Feature]) -> list[tuple[int, ...]]:
    """Return which references of a module to time it with: few and many of each shape, its own always.

    Example:
        >>> same = dict.fromkeys(range(1, 7), Feature(8, 4, 4))
        >>> [len(names) for names in _references_to_time(6, same)]
        [1, 2, 3, 5, 6]
    """
    of_shape: dict[Feature, list[int]] = {}
    for l in features:
        if l < position:
            of_shape.setdefault(features[l], []).append(l)
    chosen: dict[tuple[int, ...], None] = {(position,): None}
    for names in of_shape.values():
        powers = [2**i for i in range(len(names).bit_length()) if 2**i < len(names)]
        chosen.update(dict.fromkeys((*names[:count], position) for count in [*powers, len(names)]))
    everything = tuple(l for l in features if l <= position)
    return list({**chosen, everything: None})


class _Fit(NamedTuple):
    """The time of a module once, and for one reference of each shape: (ms, half of the 95 % interval)."""

    own: tuple[float, float]
    pairs: dict[Feature, tuple[float, float]]


def _fit(timed: Sequence[tuple[_Point, Timing]], query: Feature) -> _Fit:
    """Fit own + sum_f n_f pair_f to the medians, each weighed by how well it is known."""
    from scipy.optimize import nnls

    shapes = list(dict.fromkeys(shape for point, _ in timed for shape in point.counts))
    # Where the query's own shape never comes twice, what its reference costs cannot be told from own.
    if all(point.counts[query] == 1 for point, _ in timed):
        shapes.remove(query)
    design = np.array([[1, *(point.counts.get(shape, 0) for shape in shapes)] for point, _ in timed], float)
    times = np.array([timing.median_ms for _, timing in timed])
    noise = np.array([timing.error_ms / 1.96 for _, timing in timed])
    weights = 1 / np.hypot(noise, _MODEL_ERROR * times)
    solution, distance = nnls(design * weights[:, None], times * weights)
    spare = len(timed) - len(solution)
    excess = max(1.0, distance**2 / spare) if spare else 1.0  # what the line does not explain
    covariance = np.linalg.pinv((design * weights[:, None]).T @ (design * weights[:, None])) * excess
    errors = 1.96 * np.sqrt(np.diag(covariance).clip(0))
    if not (np.isfinite(solution).all() and np.isfinite(errors).all()):
        raise AclaError(f"the latency of modules at features of {tuple(query)} is not finite: measure again")
    found = [(float(ms), float(error)) for ms, error in zip(solution, errors)]
    return _Fit(found[0], {query: (0.0, 0.0), **dict(zip(shapes, found[1:]))})


def _module(network: CrossLayerNetwork, position: int) -> Attention:
    return cast(Attention, network.attention[str(position)])


def _dtype(module: nn.Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters()), torch.float32)


def _kind(module: Attention) -> dict[str, Any]:
    """Return what tells modules with other times apart: options, the code, and sizes of the weights."""
    code = hashlib.sha256()
    for part in module.modules():
        settings = sorted((k, repr(v)) for k, v in _settings(part).items())
        sizes = [(tuple(p.shape), str(p.dtype)) for p in part.parameters(recurse=False)]
        code.update(repr((type(part).__qualname__, settings, sizes)).encode())
        if not type(part).__module__.startswith("torch."):
            code.update(_source(type(part)).encode())
    return {
        "attention": type(module).__qualname__,
        "options": _settings(module),
        "dtype": str(_dtype(module)).removeprefix("torch."),
        "digest": code.hexdigest()[:16],
    }


def _settings(module: nn.Module) -> dict[str, Any]:
    """Return a module's options: its plain attributes."""
    plain = (bool, int, str, type(None))
    values = {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "training"}
    return {
        k: v for k, v in values.items() if isinstance(v, plain) or (isinstance(v, float) and math.isfinite(v))
    }


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # it was typed into an interpreter
        return ""
