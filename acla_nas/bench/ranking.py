"""ranking: do inherited weights rank architectures as a training of each does?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from acla_nas.arch import shown_positions
from acla_nas.bench.positions import random_architectures
from acla_nas.config import Config
from acla_nas.durable import append_line
from acla_nas.errors import AclaError
from acla_nas.experiment import choose_device, make_space, make_task, seed_everything, validation_images
from acla_nas.run_folder import check_run_folder
from acla_nas.scoring import InheritedWeights, ShortTraining, load_supernet
from acla_nas.space import CrossLayerSpace


@dataclass(frozen=True)
class Ranked:
    """One architecture, scored in both ways on the validation images.

    Attributes:
        positions: where modules are inserted, 1-based.
        inherited: PSNR in dB with the supernet's weights.
        trained: PSNR in dB after a training of its own.
    """

    positions: tuple[int, ...]
    inherited: float
    trained: float


class Ranking:
    """Random architectures of a configuration's space, scored by inherited weights and by training.

    The supernet is that of ``scoring.weights``; the training follows the ``train`` recipe, from fresh
    weights that all architectures have in common. ``ranking.jsonl`` in the run folder has a line per
    architecture; what is there is not run again.

    Args:
        config: of the supernet's search, with ``scoring.weights``.
        architectures: how many, at least 2.

    Raises:
        AclaError: no supernet, or more architectures than the space has.
    """

    def __init__(self, config: Config, architectures: int = 12) -> None:
        if config.scoring.weights is None:
            raise AclaError(
                "no supernet to inherit from: give scoring.weights=RUN_FOLDER of a one-shot search"
            )
        self.config, self.task = config, make_task(config)
        self.supernet = make_space(config)
        load_supernet(self.supernet, config.scoring.weights)
        self.samples = _random_samples(self.supernet, architectures, config.seed)
        self.path = Path(config.run, "ranking.jsonl")

    def run(self) -> Iterator[Ranked]:
        """Score what is not scored yet; yield each architecture as it is known."""
        config = self.config
        check_run_folder(config, "ranking")
        config.save(config.run)
        images, device = validation_images(config), choose_device(config)
        inherited = InheritedWeights(self.task, images, device=device)
        recipe = config.train.model_dump()
        data = config.data.model_dump(exclude={"test"})
        trained = ShortTraining(self.task, seed=config.seed, device=device, **data, **recipe)
        finished = {row.positions: row for row in self.finished()}
        for sample in self.samples:
            positions = self.supernet.arch(sample).positions
            if positions not in finished:
                seed_everything(config)
                fresh = make_space(config)
                row = Ranked(
                    positions,
                    inherited(self.supernet.freeze(sample)),
                    trained(fresh.freeze(sample)),
                )
                append_line(self.path, json.dumps(asdict(row)))
                finished[positions] = row
            yield finished[positions]

    def finished(self) -> list[Ranked]:
        """Return the architectures in ranking.jsonl."""
        if not self.path.exists():
            return []
        rows = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        return [Ranked(tuple(row["positions"]), row["inherited"], row["trained"]) for row in rows]


def kendall_tau(rows: list[Ranked]) -> tuple[float, float]:
    """Return Kendall's rank correlation of the two scores, -1 .. 1, and its p-value.

    Example:
        >>> rows = [Ranked((j,), 30.0 + j, 31.0 + j) for j in range(4)]
        >>> kendall_tau(rows)[0]
        1.0
    """
    from scipy.stats import kendalltau

    result = kendalltau([r.inherited for r in rows], [r.trained for r in rows])
    return float(result.statistic), float(result.pvalue)


def ranking_table(rows: list[Ranked]) -> str:
    """Return the architectures as a Markdown table, the best trained first, and the correlation."""
    lines = ["| positions | inherited (dB) | trained (dB) |", "| --- | --- | --- |"]
    for row in sorted(rows, key=lambda row: -row.trained):
        lines.append(f"| {shown_positions(row.positions)} | {row.inherited:.3f} | {row.trained:.3f} |")
    tau, p = kendall_tau(rows)
    return "\n".join(lines) + f"\n\nKendall's tau of {len(rows)} architectures: {tau:.2f} (p = {p:.2g})\n"


def _random_samples(space: CrossLayerSpace, count: int, seed: int) -> list[dict[str, object]]:
    """Return different architectures with the most keys that the space offers."""
    positions = len(space.positions)
    if not 2 <= count <= 2**positions:
        raise AclaError(f"architectures must be 2 .. {2**positions}, of {positions} positions, not {count}")
    keys = max(space.key_gate.num_keys)
    return [
        {**{f"insert/{j}": j in inserted for j in range(1, positions + 1)}, "keys": keys}
        for inserted in random_architectures(count, positions, seed)
    ]
