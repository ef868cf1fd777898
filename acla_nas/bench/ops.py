"""ops: the operator's time beside its peers' and its floor's, its growth with the image, its memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from acla_nas.bench.memory import can_measure, in_fresh_process, keep_freed_memory, peak_bytes
from acla_nas.cost.timing import Timing, device_name, time_in_turns
from acla_nas.ops import cross_layer_gather, cross_layer_gather_reference
from acla_nas.ops.gather import _Gather, _has_triton, _Plain

_FLOAT = 4  # bytes
_LITERAL_LIMIT = 1 << 28  # bytes of all sampled values, above which the literal form is left out
REACH = 3.0  # standard deviation of the offsets in pixels
_WINDOWS = 1024  # parts of what a GPU's cache holds, each of which is read from end to end
_PEERS = ("channels_last", "fallback", "grid_sample", "compiled", "literal", "embedding_bag")  # as shown

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """The size of a call: one image, H = W, offsets and weights in float32.

    Attributes:
        channels: C.
        references: R.
        keys: K.
        size: H and W.
        dtype: of values and result.

    Example:
        >>> Case(256, 5, 16, 48).rows_read
        737280
    """

    channels: int
    references: int
    keys: int
    size: int
    dtype: str = "float32"

    @property
    def rows_read(self) -> int:
        """Rows of C values that are weighted and summed: four for each key of each query."""
        return 4 * self.references * self.keys * self.size**2

    @property
    def row_bytes(self) -> int:
        """Of the C values of a pixel."""
        return self.torch_dtype.itemsize * self.channels

    @property
    def input_bytes(self) -> int:
        """Of values, offsets and weights."""
        return self.references * self.size**2 * (self.row_bytes + 3 * _FLOAT * self.keys)

    @property
    def output_bytes(self) -> int:
        """Of the result."""
        return self.row_bytes * self.size**2

    def moved_bytes(self, backward: bool) -> int:
        """Return what crosses the memory bus at least.

        Forward inputs and result do; backward inputs and the gradient of the result in, their gradients out.
        """
        forward = self.input_bytes + self.output_bytes
        return forward + 2 * self.input_bytes + self.output_bytes if backward else forward

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of values and result."""
        return getattr(torch, self.dtype)

    def inputs(
        self, device: torch.device = _CPU, memory_format: torch.memory_format = torch.contiguous_format
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return values, as a 1x1 convolution leaves them, offsets and weights, all with gradients.

        Args:
            device: where they are to be.
            memory_format: of the values.
        """
        generator = torch.Generator().manual_seed(0)
        r, k, n = self.references, self.keys, self.size

        def draw(*shape: int) -> Tensor:
            return torch.randn(1, *shape, n, n, generator=generator)

        values = [
            draw(self.channels).to(device, self.torch_dtype, memory_format=memory_format) for _ in range(r)
        ]
        offsets, weights = draw(r, k, 2).mul_(REACH).to(device), draw(r, k).to(device)
        for tensor in (*values, offsets, weights):
            tensor.requires_grad_()
        return values, offsets, weights


CASES = (Case(256, 5, 16, 48), Case(64, 4, 16, 48), Case(64, 4, 16, 192))
BACKWARD_CASES = CASES[:2]
GROWTH_CASES = (Case(64, 4, 16, 96), Case(64, 4, 16, 192), Case(64, 4, 16, 384))
MEMORY_CASE = Case(64, 4, 16, 512)


def grid_sample_per_level(values: Sequence[Tensor], offsets: Tensor, weights: Tensor) -> Tensor:
    """The same sum as Deformable DETR's fallback in ``transformers`` computes it, with one head.

    Arguments and result are those of :func:`acla_nas.ops.cross_layer_gather`. Values are read in the dtype of
    the offsets, as they are under autocast.
    """
    batch, _, _, _, height, width = offsets.shape
    column, row = (torch.arange(n, device=offsets.device) for n in (width, height))
    pixel = torch.stack(torch.meshgrid(column, row, indexing="xy"))  # 2 x H x W, (x, y)
    size = offsets.new_tensor([width, height]).view(2, 1, 1)
    grids = 2 * (pixel + 0.5 + offsets) / size - 1
    sampled = [
        F.grid_sample(
            value.to(grids.dtype), grids[:, r].permute(0, 3, 4, 1, 2).flatten(1, 2), align_corners=False
        )
        for r, value in enumerate(values)
    ]  # each B x C x HW x K
    weight = weights.flatten(1, 2).flatten(2).transpose(1, 2).unsqueeze(1)  # B x 1 x HW x RK
    sums = (torch.stack(sampled, -2).flatten(-2) * weight).sum(-1).view(batch, -1, height, width)
    return sums.to(values[0].dtype)


def gather_in_plain_pytorch(values: Sequence[Tensor], offsets: Tensor, weights: Tensor) -> Tensor:
    """The operator as it is where neither Triton nor Numba can be used, gradients included.

    Arguments and result are those of :func:`acla_nas.ops.cross_layer_gather`.
    """
    result: Tensor = _Gather.apply(_Plain, offsets, weights, *values)
    return result


@dataclass(frozen=True)
class Ceilings:
    """What this machine can do at most, as PyTorch reaches it.

    Attributes:
        cache_read: bytes per second in which a sum reads 1 MiB per thread again and again; on a GPU 4 MiB,
            which its L2 cache holds.
        memory_copy: bytes per second, read and written, of a copy of 256 MiB; on a GPU of 1 GiB.
        operations: floating point operations per second of a matrix product in float32.
    """

    cache_read: float
    memory_copy: float
    operations: float

    def floor_ms(self, case: Case, *, backward: bool) -> float:
        """Return the least time of a call: the longest of what its rows, its memory and its sums need.

        Forward reads each row once and spends two operations a value on it; backward does the same twice
        more, for the products with the gradient and for the gradient of the values.
        """
        rows = case.rows_read * (3 if backward else 1)
        return max(
            1e3 * rows * case.row_bytes / self.cache_read,
            self.memory_ms(case, backward=backward),
            1e3 * 2 * rows * case.channels / self.operations,
        )

    def memory_ms(self, case: Case, *, backward: bool) -> float:
        """Return how long what must cross the memory bus takes at the rate of a copy."""
        return 1e3 * case.moved_bytes(backward) / self.memory_copy


def measure_ceilings(device: torch.device, runs: int) -> Ceilings:
    """Measure the ceilings of the machine at hand, or of its GPU.

    Args:
        device: which of them.
        runs: of each function at most, see :func:`acla_nas.cost.timing.time_in_turns`.
    """
    copied, side = (1 << 28, 4096) if device.type == "cuda" else (1 << 26, 1024)
    source = torch.rand(copied, device=device)
    target = torch.empty_like(source)
    matrix = torch.rand(side, side, device=device)
    calls: dict[str, Callable[[], object]] = {
        "copy": lambda: target.copy_(source),
        "product": lambda: matrix @ matrix,
    }
    if _on_gpu(device):  # in one launch, of parts that overlap
        windows = torch.rand(1 << 20, device=device).unfold(0, 1 << 19, 1 << 9)[:_WINDOWS]
        calls["read"], read_bytes = lambda: windows.sum(1), _FLOAT * windows.numel()
    else:
        cached = torch.rand((1 << 18) * torch.get_num_threads())
        calls["read"], read_bytes = lambda: [cached.sum() for _ in range(32)], 32 * cached.nbytes
    seconds = {name: t.median_ms / 1e3 for name, t in time_in_turns(calls, device, runs).items()}
    return Ceilings(
        read_bytes / seconds["read"],
        2 * source.nbytes / seconds["copy"],
        2 * side**3 / seconds["product"],
    )


@dataclass(frozen=True)
class OpsRow:
    """One call, ours and the peers' in turns.

    Attributes:
        case: its size.
        backward: with the gradients of values, offsets and weights.
        floor_ms: see :meth:`Ceilings.floor_ms`.
        memory_ms: see :meth:`Ceilings.memory_ms`.
        ours: the operator's time.
        peers: name -> time: "grid_sample" per level. On a CPU also "literal", the equation, where it fits,
            and "embedding_bag", PyTorch's sum of rows alone, over an index that is there already (forward).
            On a GPU also "channels_last", the operator where values lie so and need not be copied,
            "fallback", the operator in plain PyTorch, and "compiled", what ``torch.compile`` makes of
            "grid_sample" where Triton is there.
    """

    case: Case
    backward: bool
    floor_ms: float
    memory_ms: float
    ours: Timing
    peers: dict[str, Timing]

    @property
    def copy_share(self) -> float:
        """The bytes that must cross the memory bus in a second of ours, as a share of those of a copy."""
        return self.memory_ms / self.ours.median_ms

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
        kind: "cpu" or "cuda".
        threads: of PyTorch's.
        ceilings: of the device.
        rows: calls beside their peers'.
        growth: forward calls of ours, each with 4 times the pixels of the one before.
        memory_case: whose memory was measured.
        extra_bytes: its peak beyond inputs and results: "forward", and "forward+backward", whose results are
            the output and all gradients. Empty where the system does not say (Linux does).
    """

    device: str
    kind: str
    threads: int
    ceilings: Ceilings
    rows: tuple[OpsRow, ...]
    growth: tuple[tuple[Case, Timing], ...]
    memory_case: Case
    extra_bytes: dict[str, int]

    def text(self) -> str:
        """Return the check as plain text."""
        c, on_gpu = self.ceilings, self.kind == "cuda"
        unit, scale = ("µs", 1e3) if on_gpu else ("ms", 1.0)
        dtypes = list(dict.fromkeys(row.case.dtype for row in self.rows))
        peers = [peer for peer in _PEERS if any(peer in row.peers for row in self.rows)]
        lines = [
            f"cross_layer_gather on {self.device}, {self.threads} threads: one image, {' or '.join(dtypes)}, "
            f"offsets of {REACH:g} px; medians in {unit}, times ours",
            f"{'C':>4}{'R':>3}{'K':>4}{'H=W':>5}  {'':<17}"
            + (f"{'':<10}{'ours':>16}{'of copy':>9}" if on_gpu else f"{'ours':>16}")
            + "".join(f"{peer:>24}" for peer in peers)
            + f"{'floor':>16}",
        ]
        for row in self.rows:
            lines.append(
                f"{_shown(row.case)}  {_pass(row.backward):<17}"
                + (f"{row.case.dtype:<10}" if on_gpu else "")
                + f"{scale * row.ours.median_ms:>9.2f} ± {scale * row.ours.error_ms:.2f}"
                + (f"{row.copy_share:>9.0%}" if on_gpu else "")
                + "".join(f"{_shown_peer(row, peer, scale):>24}" for peer in peers)
                + f"{scale * row.floor_ms:>9.2f} ({row.floor_ms / row.ours.median_ms:.2f})"
            )
        for (small, before), (large, after) in zip(self.growth, self.growth[1:]):
            quotient, off = ratio(after, before)
            lines.append(
                f"{_shown(large)}  {scale * after.median_ms:.1f} {unit}: {quotient:.2f} ± {off:.2f} times "
                f"that of {small.size}x{small.size}"
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
                "memory_ms": row.memory_ms,
                "copy_share": row.copy_share,
                "ours": row.ours._asdict(),
                "peers": {
                    name: {**time._asdict(), "ratio": row.ratio(name)[0], "ratio_error": row.ratio(name)[1]}
                    for name, time in row.peers.items()
                },
            }
            for row in self.rows
        ]
        growth = [{**asdict(case), **time._asdict()} for case, time in self.growth]
        return {**asdict(self), "rows": rows, "growth": growth, "reach_px": REACH}


def _shown(case: Case) -> str:
    return f"{case.channels:>4}{case.references:>3}{case.keys:>4}{case.size:>5}"


def _pass(backward: bool) -> str:
    return "forward+backward" if backward else "forward"


def _shown_peer(row: OpsRow, peer: str, scale: float) -> str:
    if peer not in row.peers:
        return "-"
    quotient, off = row.ratio(peer)
    return f"{scale * row.peers[peer].median_ms:.1f}: {quotient:.2f}x ± {off:.2f}"


def check_ops(
    *,
    device: str = "cpu",
    runs: int = 15,
    cases: Sequence[Case] = CASES,
    backward_cases: Sequence[Case] = BACKWARD_CASES,
    growth_cases: Sequence[Case] = GROWTH_CASES,
    memory_case: Case = MEMORY_CASE,
) -> OpsCheck:
    """Measure the operator.

    Args:
        device: "cpu" or "cuda".
        runs: of each function at most, see :func:`acla_nas.cost.timing.time_in_turns`.
        cases: of forward passes beside their peers'; on a GPU once more with values in bfloat16.
        backward_cases: of forward and backward passes beside their peers', likewise.
        growth_cases: of forward passes of ours alone.
        memory_case: whose memory is measured, on a CPU in a process of its own.

    Example:
        >>> small = Case(4, 2, 3, 8)
        >>> check = check_ops(runs=7, cases=[small], backward_cases=[], growth_cases=[], memory_case=small)
        >>> sorted(check.rows[0].peers)
        ['embedding_bag', 'grid_sample', 'literal']
    """
    where = torch.device(device)
    extra = {}
    for backward in (False, True):
        if _on_gpu(where):
            extra[_pass(backward)] = extra_bytes(memory_case, backward, where)
        elif can_measure():
            extra[_pass(backward)] = in_fresh_process(extra_bytes, memory_case, backward)
    keep_freed_memory()
    ceilings = measure_ceilings(where, runs)
    passes = [(case, False) for case in cases] + [(case, True) for case in backward_cases]
    if _on_gpu(where):
        passes += [(replace(case, dtype="bfloat16"), backward) for case, backward in passes]
    rows = [_row(case, backward, ceilings, where, runs) for case, backward in passes]
    calls = {str(case): _call(cross_layer_gather, case, False, where) for case in growth_cases}
    growth = time_in_turns(calls, where, runs, cold=True) if calls else {}
    return OpsCheck(
        device_name(where),
        "cuda" if _on_gpu(where) else "cpu",
        torch.get_num_threads(),
        ceilings,
        tuple(rows),
        tuple((case, growth[str(case)]) for case in growth_cases),
        memory_case,
        extra,
    )


def _on_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def _row(case: Case, backward: bool, ceilings: Ceilings, device: torch.device, runs: int) -> OpsRow:
    calls = {
        "ours": _call(cross_layer_gather, case, backward, device),
        "grid_sample": _call(grid_sample_per_level, case, backward, device),
    }
    if _on_gpu(device):
        calls["channels_last"] = _call(cross_layer_gather, case, backward, device, torch.channels_last)
        calls["fallback"] = _call(gather_in_plain_pytorch, case, backward, device)
        if _has_triton(device):
            torch.compiler.reset()  # what was compiled for other sizes
            compiled = torch.compile(grid_sample_per_level, dynamic=False)
            calls["compiled"] = _call(compiled, case, backward, device)
    else:
        if case.rows_read * case.channels * _FLOAT / 4 <= _LITERAL_LIMIT:
            calls["literal"] = _call(cross_layer_gather_reference, case, backward, device)
        if not backward:
            calls["embedding_bag"] = bags_alone(case)
    timings = time_in_turns(calls, device, runs, cold=True)
    ours = timings.pop("ours")
    floor, memory = (of(case, backward=backward) for of in (ceilings.floor_ms, ceilings.memory_ms))
    return OpsRow(case, backward, floor, memory, ours, timings)


def _call(
    function: Callable[..., Tensor],
    case: Case,
    backward: bool,
    device: torch.device,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Callable[[], object]:
    values, offsets, weights = case.inputs(device, memory_format)

    def forward() -> Tensor:
        return function(values, offsets, weights)

    if not backward:
        return forward
    grad = torch.ones(1, case.channels, case.size, case.size, dtype=case.torch_dtype, device=device)

    def forward_and_backward() -> object:
        with torch.inference_mode(False), torch.enable_grad():
            return torch.autograd.grad(forward(), [*values, offsets, weights], grad)

    return forward_and_backward


def bags_alone(case: Case, device: torch.device | None = None) -> Callable[[], list[Tensor]]:
    """Return what sums rows with an index that exists: of four pixels around each key, or of the nearest.

    It returns R sums, (H W, C).
    """
    values, offsets, weights = case.inputs(device or _CPU)
    n, tables, indices = case.size, [], []
    with torch.no_grad():
        for r, value in enumerate(values):
            tables.append(value.flatten(2)[0].t().contiguous())
            left, top = offsets[0, r].floor().long().unbind(1)  # K x H x W
            line = torch.arange(n, device=device)
            column, row = left + line, top + line.view(n, 1)
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


def extra_bytes(case: Case, backward: bool, device: torch.device = _CPU) -> int:
    """Return the peak memory of one call beyond inputs and results; on a CPU where no other came before it.

    Args:
        case: its size.
        backward: with the gradients of values, offsets and weights.
        device: to run on; of a GPU's memory that of tensors is counted.
    """
    small = Case(case.channels, 1, 2, 8)
    _call(cross_layer_gather, small, backward, device)()  # loads what is loaded once
    call = _call(cross_layer_gather, case, backward, device)
    results = case.output_bytes + (case.input_bytes if backward else 0)
    peak: Callable[[], int] = peak_bytes
    if _on_gpu(device):
        torch.cuda.reset_peak_memory_stats(device)
        peak = functools.partial(torch.cuda.max_memory_allocated, device)
    before = peak()
    with torch.inference_mode():
        kept = call()
    extra = peak() - before - results
    del kept
    return extra
