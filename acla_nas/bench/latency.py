"""latency: predicted against measured inference times of random architectures."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

import torch

from acla_nas.bench.positions import random_architectures
from acla_nas.cost import LatencyCost
from acla_nas.cost.timing import device_name, time_in_turns
from acla_nas.errors import AclaError
from acla_nas.space import CrossLayerSpace


@dataclass(frozen=True)
class LatencyRow:
    """One architecture, its times in milliseconds.

    Attributes:
        positions: where modules are inserted, 1-based.
        predicted_ms: of the network: the bare backbone, measured, and the cost model's time of the modules.
        measured_ms: of the network: the median of its runs.
        error: of the prediction, relative to what was measured.
        modules_error: the same difference, relative to the predicted time of the modules alone.
    """

    positions: tuple[int, ...]
    predicted_ms: float
    measured_ms: float
    error: float
    modules_error: float


@dataclass(frozen=True)
class LatencyCheck:
    """How far the latency model is off.

    Attributes:
        device: its name.
        threads: of PyTorch's, on a CPU.
        input_shape: (C, H, W) of the one input.
        backbone_ms: of the bare backbone.
        rows: the architectures.
    """

    device: str
    threads: int
    input_shape: tuple[int, ...]
    backbone_ms: float
    rows: tuple[LatencyRow, ...]

    @property
    def median_error(self) -> float:
        """The median of the rows' errors, without sign."""
        return statistics.median(abs(row.error) for row in self.rows)

    @property
    def median_modules_error(self) -> float:
        """The median of the rows' errors of the modules' time alone, without sign."""
        return statistics.median(abs(row.modules_error) for row in self.rows)

    def text(self) -> str:
        """Return the check as plain text."""
        size = "x".join(map(str, self.input_shape))
        lines = [
            f"latency of one {size} input on {self.device}, {self.threads} threads; "
            f"bare backbone {self.backbone_ms:.2f} ms",
            f"{'predicted':>12}{'measured':>12}{'error':>9}{'of modules':>12}  positions",
        ]
        for row in self.rows:
            positions = ", ".join(map(str, row.positions))
            lines.append(
                f"{row.predicted_ms:>9.2f} ms{row.measured_ms:>9.2f} ms{100 * row.error:>+7.1f} %"
                f"{100 * row.modules_error:>+10.1f} %  {positions}"
            )
        lines.append(
            f"median error {100 * self.median_error:.1f} % of the network's time, "
            f"{100 * self.median_modules_error:.1f} % of the modules'"
        )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as what JSON knows."""
        medians = {"median_error": self.median_error, "median_modules_error": self.median_modules_error}
        return {**asdict(self), **medians}


def check_latency(
    space: CrossLayerSpace, *, device: str = "cpu", architectures: int = 10, runs: int = 15, seed: int = 0
) -> LatencyCheck:
    """Measure random architectures of a space, and compare with what the latency model predicts.

    The number of inserted positions is random, and so are they. The bare backbone and all derived networks
    take turns, so that all meet the same other load; a network's time is the median of its runs.

    Args:
        space: its weights stay as they are.
        device: "cpu" or "cuda".
        architectures: how many.
        runs: of each network at most.
        seed: of the choice of architectures.

    Raises:
        AclaError: fewer architectures in the space than asked for, or a device that is not there.

    Example:
        >>> import acla_nas
        >>> space = acla_nas.search_spaces.edsr(num_blocks=3, num_channels=8, input_shape=(3, 16, 16))
        >>> check = check_latency(space, architectures=2, runs=7)
        >>> len(check.rows), check.backbone_ms > 0
        (2, True)
    """
    count = len(space.positions)
    if architectures >= 2**count:
        raise AclaError(
            f"{count} positions have {2**count - 1} architectures with attention: ask for no more than those"
        )
    chosen = random_architectures(architectures, count, seed, fewest=1)
    positions = sorted(chosen, key=lambda p: (len(p), p))

    model = LatencyCost(device)
    table = model.table(space.network, space.input_shape)
    image = torch.rand(1, *space.input_shape, generator=torch.Generator().manual_seed(0)).to(model.device)

    def run_of(inserted: tuple[int, ...]) -> Any:
        network = space.network.select(inserted).to(model.device).eval()
        return lambda: network(image)

    timings = time_in_turns({str(p): run_of(p) for p in [(), *positions]}, model.device, runs)
    backbone = timings["()"].median_ms
    rows = []
    for inserted in positions:
        modules = table.of([j in inserted for j in range(1, count + 1)])
        measured = timings[str(inserted)].median_ms
        off = backbone + modules - measured
        rows.append(LatencyRow(inserted, backbone + modules, measured, off / measured, off / modules))
    return LatencyCheck(
        device_name(model.device), torch.get_num_threads(), space.input_shape, backbone, tuple(rows)
    )
