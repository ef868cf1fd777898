"""strategies: what search strategies find in the same wall time, on the same space and data."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev

from acla_nas import strategies
from acla_nas.arch import shown_positions
from acla_nas.config import Config, Named
from acla_nas.durable import append_line
from acla_nas.errors import AclaError
from acla_nas.experiment import run_search, run_training
from acla_nas.multi_trial import MultiTrial
from acla_nas.run_folder import check_run_folder

_ENDLESS = 100_000  # trials: time is what ends the search


@dataclass(frozen=True)
class Found:
    """What one search found.

    Attributes:
        strategy: its name.
        seed: of the search and of the training.
        minutes: that the search took.
        scored: architectures that it compared; 0 of a one-shot strategy.
        positions: that it found, 1-based.
        cost: of the modules there.
        unit: of the cost.
        psnr: in dB on the test images, after a training by the ``train`` recipe.
    """

    strategy: str
    seed: int
    minutes: float
    scored: int
    positions: tuple[int, ...]
    cost: float
    unit: str
    psnr: float


def compare_strategies(config: Config, names: Sequence[str], seeds: Sequence[int]) -> Iterator[Found]:
    """Search with several strategies, each for as long as the first took; train and score what they find.

    The configuration's strategy and its options are the first; the others, by name, are multi-trial ones,
    under the same cost model. ``strategies.jsonl`` in the run folder has a line per search; what is there
    is not run again.

    Args:
        config: of space, data and recipes.
        names: of the other strategies.
        seeds: of the repetitions.
    """
    folder = Path(config.run)
    check_run_folder(config, "comparison of strategies")
    config.save(folder)
    path = folder / "strategies.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [Found(**{**row, "positions": tuple(row["positions"])}) for row in map(json.loads, lines)]
    for seed in seeds:
        for name in (config.strategy.name, *names):
            row = next((r for r in rows if (r.strategy, r.seed) == (name, seed)), None)
            if row is None:
                first = next((r for r in rows if (r.strategy, r.seed) == (config.strategy.name, seed)), None)
                row = _search(config, name, seed, None if first is None else first.minutes)
                rows.append(row)
                append_line(path, json.dumps(asdict(row)))
            yield row


def _search(config: Config, name: str, seed: int, minutes: float | None) -> Found:
    folder = Path(config.run, f"{name}-seed{seed}")
    strategy = config.strategy if minutes is None else _multi_trial(name, config.strategy)
    changes = {"strategy": strategy, "seed": seed, "time_limit": minutes}
    begun = time.monotonic()
    result = run_search(config.model_copy(update={**changes, "run": str(folder / "search")}))
    taken = (time.monotonic() - begun) / 60
    arch = folder / "search" / "arch.json"
    trained = {"arch": str(arch), "seed": seed, "run": str(folder / "model")}
    scores = run_training(config.model_copy(update=trained))
    unit = next(iter(result.arch.cost))
    return Found(
        name,
        seed,
        taken,
        len(result.candidates),
        result.arch.positions,
        result.cost,
        unit,
        scores.psnr,
    )


def _multi_trial(name: str, first: Named) -> Named:
    if not issubclass(strategies.get(name), MultiTrial):
        raise AclaError(
            f"strategy {name!r} has no trials to fill the time with; the others must be multi-trial"
        )
    return Named(name=name, trials=_ENDLESS, cost=first.options.get("cost", "macs"))


def strategies_table(rows: Sequence[Found]) -> str:
    """Return the searches as a Markdown table: mean and standard deviation over seeds."""
    lines = [
        "| strategy | seeds | minutes | scored | positions found | cost | PSNR (dB) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(row.strategy for row in rows):
        own = [row for row in rows if row.strategy == name]
        places = "; ".join(shown_positions(row.positions) for row in own)
        spread = f" ± {stdev(row.psnr for row in own):.3f}" if len(own) > 1 else ""
        lines.append(
            f"| {name} | {len(own)} | {fmean(row.minutes for row in own):.1f} "
            f"| {fmean(row.scored for row in own):.0f} | {places} "
            f"| {fmean(row.cost for row in own):.3g} {own[0].unit} "
            f"| {fmean(row.psnr for row in own):.3f}{spread} |"
        )
    return "\n".join(lines) + "\n"
