"""space: what a step of a search costs beside one of the bare backbone, and beside the literal supernet."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import pytorch_lightning as pl
import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from acla_nas import search_spaces
from acla_nas.attention import ACLA
from acla_nas.bench.memory import can_measure, in_fresh_process, keep_freed_memory
from acla_nas.bench.ops import ratio
from acla_nas.bench.steps import ALPHAS, BARE, LITERAL, PARTS, WEIGHTS, Case, Literal, make_step, step_peak
from acla_nas.cost.timing import Timing, device_name, time_in_turns
from acla_nas.searcher import search
from acla_nas.strategies import TwoStage
from acla_nas.tasks import SuperResolution
from acla_nas.training import make_evaluator
from acla_nas.training.memory import kept_bytes

_USABLE = 0.5  # of the free memory, for what the literal form keeps: gradients need some too

CASE = Case(32, 64, 16, 48)
GPU_CASE = Case(32, 256, 16, 48, "bfloat16")  # of the published size
LITERAL_CASES = tuple(Case(blocks, 64, 1, 48) for blocks in (32, 16, 8, 4))
SEARCH_CASE = Case(8, 64, 8, 48)
SEARCH_STEPS = 10


@dataclass(frozen=True)
class StepRow:
    """A step beside another one, the times in turns.

    Attributes:
        name: of the step.
        time: its time.
        peak_bytes: its memory; None where the system does not say.
    """

    name: str
    time: Timing
    peak_bytes: int | None


@dataclass(frozen=True)
class SpaceCheck:
    """Steps of a search on the machine at hand.

    Attributes:
        device: its name.
        threads: of PyTorch's.
        case: the supernet.
        rows: its steps, that of the bare backbone first; on a CPU also a bare step and then what the modules
            of a weight step cannot do without.
        literal_case: the largest supernet whose literal form fits the memory.
        literal_rows: a weight step of ours, and the literal one.
        search_seconds: of a search.
        other_seconds: of these, what is not forward, backward or the optimizers.
    """

    device: str
    threads: int
    case: Case
    rows: tuple[StepRow, ...]
    literal_case: Case
    literal_rows: tuple[StepRow, ...]
    search_seconds: float
    other_seconds: float

    def text(self) -> str:
        """Return the check as plain text."""
        unit, scale = ("s", 1e-3) if self.rows[0].time.median_ms > 1000 else ("ms", 1.0)
        lines = [f"EDSR supernets on {self.device}, {self.threads} threads; medians in {unit}"]
        for case, rows in ((self.case, self.rows), (self.literal_case, self.literal_rows)):
            patches = f"{case.batch_size} patches of {case.size}x{case.size}"
            shown = f"{case.num_blocks}x{case.num_channels}, {patches}, {case.dtype}"
            first = rows[0]
            lines.append(f"{shown}: times {first.name}")
            for row in rows:
                quotient, off = ratio(row.time, first.time)
                median, error = scale * row.time.median_ms, scale * row.time.error_ms
                line = f"  {row.name:<13}{median:>8.2f} ± {error:<6.2f}"
                line += f"{quotient:>7.2f}x ± {off:<5.2f}"
                if row.peak_bytes is not None and first.peak_bytes is not None:
                    line += f"{row.peak_bytes / 1e6:>8.0f} MB {row.peak_bytes / first.peak_bytes:>6.2f}x"
                lines.append(line)
        share = self.other_seconds / self.search_seconds
        lines.append(
            f"a search of {self.search_seconds:.1f} s spends {100 * share:.1f} % outside forward, backward "
            "and optimizers"
        )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as what JSON knows."""

        def table(rows: tuple[StepRow, ...]) -> list[dict[str, Any]]:
            found = []
            for row in rows:
                quotient, off = ratio(row.time, rows[0].time)
                peaks = (row.peak_bytes, rows[0].peak_bytes)
                memory = None if None in peaks else peaks[0] / peaks[1]  # type: ignore[operator]
                found.append(
                    {
                        "name": row.name,
                        **row.time._asdict(),
                        "ratio": quotient,
                        "ratio_error": off,
                        "peak_bytes": row.peak_bytes,
                        "peak_ratio": memory,
                    }
                )
            return found

        return {**asdict(self), "rows": table(self.rows), "literal_rows": table(self.literal_rows)}


def check_space(
    *,
    device: str = "cpu",
    runs: int = 7,
    case: Case | None = None,
    literal_cases: tuple[Case, ...] = LITERAL_CASES,
    search_case: Case = SEARCH_CASE,
) -> SpaceCheck:
    """Measure the steps of a search, the literal form's, and what a search does beside them.

    Args:
        device: "cpu" or "cuda".
        runs: of each step at most, 7 at least.
        case: the supernet whose steps are measured: unless given one of 64 channels on a CPU, and that of the
            published size, in bfloat16, on a GPU.
        literal_cases: candidates for the comparison with the literal form, the largest first.
        search_case: the supernet that is searched, for 2 epochs.

    Example:
        >>> from acla_nas.bench.steps import Case
        >>> small = Case(2, 8, 1, 12)
        >>> check = check_space(case=small, literal_cases=(small,), search_case=small)
        >>> [row.name for row in check.rows]
        ['bare', 'weight step', 'alpha step', 'bare + parts']
    """
    where = torch.device(device)
    case = case or (GPU_CASE if where.type == "cuda" else CASE)
    keep_freed_memory()
    literal_case = _largest_that_fits(literal_cases, where)
    parts = (PARTS,) if where.type == "cpu" else ()
    rows = _rows(case, (BARE, WEIGHTS, ALPHAS, *parts), where, runs)
    literal_rows = _rows(literal_case, (WEIGHTS, LITERAL), where, runs)
    seconds, other = search_seconds(search_case, device)
    return SpaceCheck(
        device_name(where), torch.get_num_threads(), case, rows, literal_case, literal_rows, seconds, other
    )


def _largest_that_fits(cases: tuple[Case, ...], device: torch.device) -> Case:
    """Return the first case whose literal step fits the device's memory, counted with one pair of layers."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    for case in cases[:-1]:
        one = Literal(ACLA(case.num_channels))
        query = torch.rand(case.batch_size, case.num_channels, case.size, case.size)
        pair = kept_bytes(one, query, {"1": query})
        if pair * case.num_blocks * (case.num_blocks + 1) / 2 <= _USABLE * free:
            return case
    return cases[-1]


def _rows(case: Case, kinds: tuple[str, ...], device: torch.device, runs: int) -> tuple[StepRow, ...]:
    peaks = {kind: None if kind == PARTS else _peak(case, kind, device) for kind in kinds}
    calls = {kind: make_step(case, kind, device) for kind in kinds}
    times = time_in_turns(calls, device, runs, warm_up=1)
    return tuple(StepRow(kind, times[kind], peaks[kind]) for kind in kinds)


def _peak(case: Case, kind: str, device: torch.device) -> int | None:
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step = make_step(case, kind, device)
        step()
        step()
        return torch.cuda.max_memory_allocated(device) - before
    return in_fresh_process(step_peak, case, kind) if can_measure() else None


def search_seconds(case: Case, device: str) -> tuple[float, float]:
    """Return how long a two-stage search takes, and how long of that it does something else than compute.

    That is all but the training steps, which run forward and work out gradients, what is left of the backward
    passes, and the optimizers' steps.
    """
    space = search_spaces.edsr(scale=2, num_blocks=case.num_blocks, num_channels=case.num_channels)
    evaluator = make_evaluator(
        SuperResolution(2),
        device=device,
        steps_per_epoch=SEARCH_STEPS,
        batch_size=case.batch_size,
        patch_size=case.size,
        progress=False,
    )
    clock = _Clock()
    evaluator.trainer.callbacks.append(clock)
    with clock.watching(evaluator.module):
        search(space, TwoStage(epochs=(1, 1)), evaluator)
    return clock.total, clock.total - clock.computing


class _Clock(pl.Callback):
    """Adds up how long a training takes, and how long of that it computes."""

    def __init__(self) -> None:
        self.computing = self.total = 0.0
        self._start = self._begun = 0.0
        self._training = False

    def start(self, *_: Any) -> None:
        """Begin something that is computed."""
        self._start = time.perf_counter()

    def stop(self, *_: Any) -> None:
        """End it."""
        if self._training:
            self.computing += time.perf_counter() - self._start

    @contextmanager
    def watching(self, module: pl.LightningModule) -> Iterator[None]:
        """Within it, the steps of a module and all optimizers are watched."""
        step = module.training_step

        def watched(*batch: Any) -> Any:
            self.start()
            loss = step(*batch)
            self.stop()
            return loss

        module.training_step = watched  # type: ignore[method-assign]
        handles = [
            register_optimizer_step_pre_hook(self.start),
            register_optimizer_step_post_hook(self.stop),
        ]
        try:
            yield
        finally:
            module.training_step = step  # type: ignore[method-assign]
            for handle in handles:
                handle.remove()

    def on_train_epoch_start(self, *_: Any) -> None:
        """Begin with the first epoch: what comes before is not the search's own."""
        if not self._training:
            self._training, self._begun = True, time.perf_counter()

    def on_before_backward(self, *_: Any) -> None:
        """Begin a backward pass."""
        self.start()

    def on_after_backward(self, *_: Any) -> None:
        """End it."""
        self.stop()

    def on_train_end(self, *_: Any) -> None:
        """End the training."""
        self.total, self._training = time.perf_counter() - self._begun, False
