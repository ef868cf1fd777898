"""ops: the operator's time beside its peers' and its floor's, its growth with the image, its memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from acla_nas.bench.memory import can_measure, in_fresh_process, peak_bytes
from acla_nas.cost.timing import Timing, device_name, time_in_turns
from acla_nas.ops import cross_layer_gather, cross_layer_gather_reference

_FLOAT = 4  # bytes
_LITERAL_LIMIT = 1 << 28  # bytes of all sampled values, above which the literal form is left out
_REACH = 3.0  # standard deviation of the offsets in pixels


@dataclass(frozen=True)
class Case:
    """The size of a call: one image, float32, H = W.

    Example:
        >>> Case(256, 5, 16, 48).rows_read
        737280
    """

    channels: int
    references: int
    keys: int
    size: int

    @property
    def rows_read(self) -> int:
        """Rows of C values that are weighted and summed: four for each key of each query."""
        return 4 * self.references * self.keys * self.size**2

    @property
    def input_bytes(self) -> int:
        """Of values, offsets and weights."""
        return _FLOAT * self.references * self.size**2 * (self.channels + 3 * self.keys)

    @property
    def output_bytes(self) -> int:
        """Of the result."""
        return _FLOAT * self.channels * self.size**2

    def inputs(self) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return values, as a 1x1 convolution leaves them, offsets and weights, all with gradients."""
        generator = torch.Generator().manual_seed(0)
        r, k, n = self.references, self.keys, self.size

        def draw(*shape: int) -> Tensor:
            return torch.randn(1, *shape, n, n, generator=generator)

        values = [draw(self.channels).requires_grad_() for _ in range(r)]
        offsets = draw(r, k, 2).mul_(_REACH).requires_grad_()
        return values, offsets, draw(r, k).requires_grad_()


CASES = (Case(256, 5, 16, 48), Case(64, 4, 16, 48), Case(64, 4, 16, 192))
BACKWARD_CASES = CASES[:2]
GROWTH_CASES = (Case(64, 4, 16, 96), Case(64, 4, 16, 192), Case(64, 4, 16, 384))
MEMORY_CASE = Case(64, 4, 16, 512)


def grid_sample_per_level(values: Sequence[Tensor], offsets: Tensor, weights: Tensor) -> Tensor:
    """The same sum as Deformable DETR's fallback in ``transformers`` computes it, with one head.

    Arguments and result are those of :func:`acla_nas.ops.cross_layer_gather`.
    """
    batch, _, _, _, height, width = offsets.shape
    pixel = torch.stack(
        torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    )  # 2 x H x W, (x, y)
    size = offsets.new_tensor([width, height]).view(2, 1, 1)
    grids = 2 * (pixel + 0.5 + offsets) / size - 1
    sampled = [
        F.grid_sample(value, grids[:, r].permute(0, 3, 4, 1, 2).flatten(1, 2), align_corners=False)
        for r, value in enumerate(values)
    ]  # each B x C x HW x K
    weight = weights.flatten(1, 2).flatten(2).transpose(1, 2).unsqueeze(1)  # B x 1 x HW x RK
    return (torch.stack(sampled, -2).flatten(-2) * weight).sum(-1).view(batch, -1, height, width)


@dataclass(frozen=True)
class Ceilings:
    """What this machine can do at most, as PyTorch reaches it.

    Attributes:
        cache_read: bytes per second in which a sum reads 1 MiB per thread again and again.
        memory_copy: bytes per second, read and written, of a copy of 256 MiB.
        operations: floating point operations per second of a matrix product.
    """

    cache_read: float
    memory_copy: float
    operations: float

    def floor_ms(self, case: Case, *, backward: bool) -> float:
        """Return the least time of a call: the longest of what its rows, its memory and its sums need.

        Forward reads each row once and spends two operations a value on it; backward does the same twice
        more, for the products with the gradient and for the gradient of the values.
        """
        passes = 3 if backward else 1
        moved = case.input_bytes + case.output_bytes
        if backward:
            moved += 2 * case.input_bytes + case.output_bytes  # inputs and gradient in, gradients out
        values = passes * case.rows_read * case.channels
        return 1e3 * max(
            values * _FLOAT / self.cache_read, moved / self.memory_copy, 2 * values / self.operations
        )


def measure_ceilings(runs: int) -> Ceilings:
    """Measure the ceilings of the machine at hand."""
    cached = torch.rand((1 << 18) * torch.get_num_threads())
    source = torch.rand(1 << 26)
    target = torch.empty_like(source)
    matrix = torch.rand(1024, 1024)
    calls: dict[str, Callable[[], object]] = {
        "read": lambda: [cached.sum() for _ in range(32)],
        "copy": lambda: target.copy_(source),
        "product": lambda: matrix @ matrix,
    }
    seconds = {name: t.median_ms / 1e3 for name, t in time_in_turns(calls, torch.device("cpu"), runs).items()}
    return Ceilings(
        32 * cached.nbytes / seconds["read"],
        2 * source.nbytes / seconds["copy"],
        2 * 1024**3 / seconds["product"],
    )


@dataclass(frozen=True)
class OpsRow:
    """One call, ours and the peers' in turns.

    Attributes:
        case: its size.
        backward: with the gradients of values, offsets and weights.
        floor_ms: see :meth:`Ceilings.floor_ms`.
        ours: the operator's time.
        peers: name -> time: "grid_sample" per level; "literal", the equation, where it fits; and
            "embedding_bag", PyTorch's sum of rows alone, over an index that is there already (forward).
    """

    case: Case
    backward: bool
    floor_ms: float
    ours: Timing
    peers: dict[str, Timing]

    def ratio(self, peer: str) -> tuple[float, float]:
        """Return how many times longer a peer takes, and half of the interval of that."""
        return ratio(self.peers[peer], self.ours)


def ratio(longer: Timing, shorter: Timing) -> tuple[float, float]:
    """Return the quotient of two medians, and how far it may be off: the two intervals together."""
    quotient = longer.median_ms / shorter.median_ms
    off = longer.error_ms / longer.median_ms + shorter.error_ms / shorter.median_ms
    return quotient, quotient * off


@dataclass(frozen=True)
class OpsCheck:
    """The operator on the machine at hand.

    Attributes:
        device: its name.
        threads: of PyTorch's.
        ceilings: of the machine.
        rows: calls beside their peers'.
        growth: forward calls of ours, each with 4 times the pixels of the one before.
        memory_case: whose memory was measured.
        extra_bytes: its peak beyond inputs and results: "forward", and "forward+backward", whose results are
            the output and all gradients. Empty where the system does not say (Linux does).
    """

    device: str
    threads: int
    ceilings: Ceilings
    rows: tuple[OpsRow, ...]
    growth: tuple[tuple[Case, Timing], ...]
    memory_case: Case
    extra_bytes: dict[str, int]

    def text(self) -> str:
        """Return the check as plain text."""
        c = self.ceilings
        lines = [
            f"cross_layer_gather on {self.device}, {self.threads} threads: one image, float32, offsets of "
            f"{_REACH:g} px; medians in ms, times ours",
            f"{'C':>4}{'R':>3}{'K':>4}{'H=W':>5}  {'':<17}{'ours':>16}{'grid_sample':>24}{'literal':>24}"
            f"{'embedding_bag':>24}{'floor':>16}",
        ]
        for row in self.rows:
            lines.append(
                f"{_shown(row.case)}  {_pass(row.backward):<17}"
                f"{row.ours.median_ms:>9.2f} ± {row.ours.error_ms:.2f}"
                + "".join(
                    f"{_shown_peer(row, peer):>{width}}"
                    for peer, width in (("grid_sample", 24), ("literal", 24), ("embedding_bag", 24))
                )
                + f"{row.floor_ms:>9.2f} ({row.floor_ms / row.ours.median_ms:.2f})"
            )
        for (small, before), (large, after) in zip(self.growth, self.growth[1:]):
            quotient, off = ratio(after, before)
            lines.append(
                f"{_shown(large)}  {after.median_ms:.1f} ms: {quotient:.2f} ± {off:.2f} times that of "
                f"{small.size}x{small.size}"
            )
        for name, extra in self.extra_bytes.items():
            lines.append(
                f"{_shown(self.memory_case)}  {name}: {extra / 1e6:.0f} MB beyond inputs and results"
            )
        lines.append(
            f"ceilings: {c.cache_read / 1e9:.0f} GB/s read from cache, {c.memory_copy / 1e9:.1f} GB/s "
            f"copied, {c.operations / 1e9:.0f} GFLOP/s"
        )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as what JSON knows."""
        rows = [
            {
                **asdict(row.case),
                "backward": row.backward,
                "floor_ms": row.floor_ms,
                "ours": row.ours._asdict(),
                "peers": {
                    name: {**time._asdict(), "ratio": row.ratio(name)[0], "ratio_error": row.ratio(name)[1]}
                    for name, time in row.peers.items()
                },
            }
            for row in self.rows
        ]
        growth = [{**asdict(case), **time._asdict()} for case, time in self.growth]
        return {**asdict(self), "rows": rows, "growth": growth, "reach_px": _REACH}


def _shown(case: Case) -> str:
    return f"{case.channels:>4}{case.references:>3}{case.keys:>4}{case.size:>5}"


def _pass(backward: bool) -> str:
    return "forward+backward" if backward else "forward"


def _shown_peer(row: OpsRow, peer: str) -> str:
    if peer not in row.peers:
        return "-"
    quotient, off = row.ratio(peer)
    return f"{row.peers[peer].median_ms:.1f}: {quotient:.2f}x ± {off:.2f}"


def check_ops(
    *,
    runs: int = 15,
    cases: Sequence[Case] = CASES,
    backward_cases: Sequence[Case] = BACKWARD_CASES,
    growth_cases: Sequence[Case] = GROWTH_CASES,
    memory_case: Case = MEMORY_CASE,
) -> OpsCheck:
    """Measure the operator on the CPU.

    Args:
        runs: of each function at most, see :func:`acla_nas.cost.timing.time_in_turns`.
        cases: of forward passes beside their peers'.
        backward_cases: of forward and backward passes beside their peers'.
        growth_cases: of forward passes of ours alone.
        memory_case: whose memory is measured, in a process of its own.

    Example:
        >>> small = Case(4, 2, 3, 8)
        >>> check = check_ops(runs=7, cases=[small], backward_cases=[], growth_cases=[], memory_case=small)
        >>> sorted(check.rows[0].peers)
        ['embedding_bag', 'grid_sample', 'literal']
    """
    extra = {}
    if can_measure():
        for backward in (False, True):
            extra[_pass(backward)] = in_fresh_process(extra_bytes, memory_case, backward)
    ceilings = measure_ceilings(runs)
    rows = [_row(case, False, ceilings, runs) for case in cases]
    rows += [_row(case, True, ceilings, runs) for case in backward_cases]
    calls = {str(case): _call(cross_layer_gather, case, False) for case in growth_cases}
    growth = time_in_turns(calls, torch.device("cpu"), runs) if calls else {}
    return OpsCheck(
        device_name(torch.device("cpu")),
        torch.get_num_threads(),
        ceilings,
        tuple(rows),
        tuple((case, growth[str(case)]) for case in growth_cases),
        memory_case,
        extra,
    )


def _row(case: Case, backward: bool, ceilings: Ceilings, runs: int) -> OpsRow:
    calls = {
        "ours": _call(cross_layer_gather, case, backward),
        "grid_sample": _call(grid_sample_per_level, case, backward),
    }
    if case.rows_read * case.channels * _FLOAT / 4 <= _LITERAL_LIMIT:
        calls["literal"] = _call(cross_layer_gather_reference, case, backward)
    if not backward:
        calls["embedding_bag"] = _bags_alone(case)
    timings = time_in_turns(calls, torch.device("cpu"), runs)
    ours = timings.pop("ours")
    return OpsRow(case, backward, ceilings.floor_ms(case, backward=backward), ours, timings)


def _call(function: Callable[..., Tensor], case: Case, backward: bool) -> Callable[[], object]:
    values, offsets, weights = case.inputs()

    def forward() -> Tensor:
        return function(values, offsets, weights)

    if not backward:
        return forward
    grad = torch.ones(1, case.channels, case.size, case.size)

    def forward_and_backward() -> object:
        with torch.inference_mode(False), torch.enable_grad():
            return torch.autograd.grad(forward(), [*values, offsets, weights], grad)

    return forward_and_backward


def _bags_alone(case: Case) -> Callable[[], object]:
    """Sum rows with an index that exists: the four pixels around each key, or the nearest in the image."""
    values, offsets, weights = case.inputs()
    n, tables, indices = case.size, [], []
    with torch.no_grad():
        for r, value in enumerate(values):
            tables.append(value.flatten(2)[0].t().contiguous())
            left, top = offsets[0, r].floor().long().unbind(1)  # K x H x W
            column, row = left + torch.arange(n), top + torch.arange(n).view(n, 1)
            index = torch.stack(
                [
                    y.clamp(0, n - 1) * n + x.clamp(0, n - 1)
                    for y in (row, row + 1)
                    for x in (column, column + 1)
                ]
            )
            indices.append(index.flatten(2).flatten(0, 1).t().int().contiguous())  # HW x 4K
        weight = weights[0, 0].flatten(1).t().repeat(1, 4).contiguous()
    return lambda: [
        F.embedding_bag(index, table, mode="sum", per_sample_weights=weight)
        for index, table in zip(indices, tables)
    ]


def extra_bytes(case: Case, backward: bool) -> int:
    """Return the peak memory of one call beyond inputs and results, where no other came before it."""
    _call(cross_layer_gather, Case(case.channels, 1, 2, 8), backward)()  # loads what is loaded once
    call = _call(cross_layer_gather, case, backward)
    results = case.output_bytes + (case.input_bytes if backward else 0)
    before = peak_bytes()
    with torch.inference_mode():
        kept = call()
    extra = peak_bytes() - before - results
    del kept
    return extra
