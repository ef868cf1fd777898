"""infer MODEL ..: how long given networks and exported files take, one beside the other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from acla_nas.bench.memory import keep_freed_memory
from acla_nas.bench.ops import ratio
from acla_nas.cost.timing import Timing, device_name, time_in_turns
from acla_nas.restorer import Restorer


@dataclass(frozen=True)
class ModelRow:
    """A network.

    Attributes:
        model: a run folder or a file that export wrote.
        input_shape: (C, H, W) of the one image.
        time: of it.
    """

    model: str
    input_shape: tuple[int, ...]
    time: Timing


@dataclass(frozen=True)
class ModelCheck:
    """Inference of one image by some networks, on the machine at hand."""

    device: str
    threads: int
    rows: tuple[ModelRow, ...]

    def text(self) -> str:
        """Return the check as plain text."""
        width = max(len(row.model) for row in self.rows)
        first = self.rows[0].time
        lines = [f"one image on {self.device}, {self.threads} threads; medians in ms, times the first"]
        for row in self.rows:
            size, (quotient, off) = "x".join(map(str, row.input_shape)), ratio(row.time, first)
            line = f"{row.model:<{width}}{size:>14}{row.time.median_ms:>10.1f} ± {row.time.error_ms:<5.1f}"
            lines.append(line + f"{quotient:>8.2f}x ± {off:.2f}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as what JSON knows."""
        first, rows = self.rows[0].time, []
        for row in self.rows:
            quotient, off = ratio(row.time, first)
            rows.append({**asdict(row), "time": row.time._asdict(), "ratio": quotient, "ratio_error": off})
        return {**asdict(self), "rows": rows}


def check_models(
    models: Sequence[str | Path], *, size: int = 48, device: str = "cpu", runs: int = 15
) -> ModelCheck:
    """Measure networks as `acla-nas restore` runs them on a tile, in turns.

    Args:
        models: run folders, or files that export wrote.
        size: sides of the image, in pixels; or the next ones that a network takes.
        device: "cpu", or "cuda" for run folders and .safetensors files.
        runs: of each network at most, see :func:`acla_nas.cost.timing.time_in_turns`.

    Raises:
        AclaError: a model cannot be read, or is not for the device.

    Example:
        >>> import acla_nas
        >>> space = acla_nas.search_spaces.edsr(scale=2, num_blocks=2, num_channels=8)
        >>> arch = space.arch({"insert/1": True, "insert/2": False, "keys": 16})
        >>> formats = ["safetensors", "torchscript"]
        >>> _ = acla_nas.formats.save(acla_nas.export(arch), "deploy", arch, formats=formats)
        >>> check = check_models(["deploy/model.safetensors", "deploy/model.ts"], size=24, runs=7)
        >>> [row.input_shape for row in check.rows]
        [(3, 24, 24), (3, 24, 24)]
    """
    keep_freed_memory()
    calls: dict[int, Callable[[], object]] = {}
    shapes: list[tuple[int, ...]] = []
    for index, model in enumerate(models):
        restorer = Restorer(model, device=device)
        descriptor = restorer.descriptor
        shapes.append((descriptor.in_channels, *descriptor.valid_size(size, size)))
        image = torch.rand(1, *shapes[-1], device=device)
        calls[index] = functools.partial(restorer.network, image)
    times = time_in_turns(calls, torch.device(device), runs)
    rows = (ModelRow(str(model), shape, time) for model, shape, time in zip(models, shapes, times.values()))
    return ModelCheck(device_name(torch.device(device)), torch.get_num_threads(), tuple(rows))
