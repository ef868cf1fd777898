"""The paper's tables regenerated: our parameters, MACs and times beside the paper's."""

from __future__ import annotations

import statistics
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from acla_nas.attention import ACLA
from acla_nas.bench.counts import INPUT_SHAPE, backbone_macs, count_parameters, inserted_macs
from acla_nas.bench.paper_tables import EDSR_POSITIONS, INFERENCE_MS, RCAN_POSITIONS, TABLES, PaperRow
from acla_nas.errors import AclaError
from acla_nas.network import CrossLayerNetwork, copy_backbone, trace_features
from acla_nas.search_spaces.edsr import EDSR
from acla_nas.search_spaces.rcan import RCAN

_CONVENTION = (
    "MACs executed: the multiply-accumulates of all convolutions and matrix products, and four weighted rows "
    "for each sampled key (bilinear reading). Elementwise work (biases, skips, activations, softmax) is "
    "not counted.",
    "MACs w/o sampling: the same without the rows of the sampled keys, which counters that look at layers, "
    "as papers use them, do not see. Most of the paper's figures are nearer to these.",
    "The paper's bare EDSR, 93.97 G, has 0.12 G more than its convolutions. Biases, ReLUs, skips and "
    "residual scaling, counted as one each, make 0.10 G of that; what the rest is it does not say.",
)


@dataclass(frozen=True)
class Quantity:
    """A number of ours and the paper's.

    Example:
        >>> round(Quantity(97.362941, 96.93).difference, 4)
        0.0045
    """

    ours: float
    paper: float

    @property
    def difference(self) -> float:
        """Ours relative to the paper's: 0.01 is one percent more."""
        return self.ours / self.paper - 1


@dataclass(frozen=True)
class SizeRow:
    """A network's size beside the paper's.

    Attributes:
        method: as the paper calls it.
        positions: where modules are inserted, 1-based.
        parameters: of the network.
        macs: multiply-accumulates that it executes, with every key open.
        macs_without_sampling: those of its convolutions and matrix products.
    """

    method: str
    positions: tuple[int, ...]
    parameters: Quantity
    macs: Quantity
    macs_without_sampling: Quantity


@dataclass(frozen=True)
class SizeTable:
    """One of the tables 4 to 8 and 11."""

    number: int
    title: str
    rows: tuple[SizeRow, ...]
    notes: tuple[str, ...]

    def text(self) -> str:
        """Return the table and its notes as plain text."""
        groups = ["", "parameters (M)", "", "", "MACs executed (G)", "", "", "MACs w/o sampling (G)", "", ""]
        lines = [["method", *("ours", "paper", "difference") * 3]]
        for row in self.rows:
            cells = [row.method]
            for quantity, unit in ((row.parameters, 1e6), (row.macs, 1e9), (row.macs_without_sampling, 1e9)):
                cells += [f"{quantity.ours / unit:.2f}", f"{quantity.paper / unit:.2f}", _percent(quantity)]
            lines.append(cells)
        title = f"Table {self.number}: {self.title}; {_SUBJECT}"
        return f"{title}\n\n{_aligned(lines, groups)}\n\n{_listed(self.notes)}"

    def as_dict(self) -> dict[str, Any]:
        """Return everything as what JSON knows; numbers are not rounded."""
        quantities = ("parameters", "macs", "macs_without_sampling")
        rows = [
            {"method": row.method, "positions": list(row.positions)}
            | {name: _with_difference(getattr(row, name)) for name in quantities}
            for row in self.rows
        ]
        return {
            "table": self.number,
            "title": self.title,
            "input_shape": list(INPUT_SHAPE),
            "rows": rows,
            "notes": list(self.notes),
        }


_SUBJECT = "EDSR x2, 32 blocks, 256 channels, input 48x48"


def size_table(number: int) -> SizeTable:
    """Return one of the tables 4, 5, 6, 7, 8 and 11; the networks are built without memory for weights.

    Raises:
        AclaError: another number.

    Example:
        >>> table = size_table(4)
        >>> [(row.method, row.parameters.ours) for row in table.rows][-1]
        ('ACLA', 42286107)
    """
    if number not in TABLES:
        raise AclaError(
            f"table {number} cannot be counted: use {', '.join(map(str, TABLES))}, or 12 for inference times"
        )
    table = TABLES[number]
    with torch.device("meta"):
        backbone = EDSR()
    macs = backbone_macs(backbone)
    rows = tuple(_size(row, backbone, macs) for row in table.rows)
    return SizeTable(number, table.title, rows, (*_CONVENTION, *table.notes))


def _size(row: PaperRow, backbone: nn.Module, of_backbone: int) -> SizeRow:
    with torch.device("meta"):
        network = _insert(backbone, row.attention or "cla", row.positions, row.num_keys)
    macs = of_backbone + inserted_macs(network)
    paper = row.macs_g * 1e9
    return SizeRow(
        method=row.method,
        positions=row.positions,
        parameters=Quantity(count_parameters(network), row.params_m * 1e6),
        macs=Quantity(macs, paper),
        macs_without_sampling=Quantity(macs - sampling_macs(network), paper),
    )


def sampling_macs(network: CrossLayerNetwork, input_shape: Sequence[int] = INPUT_SHAPE) -> int:
    """Return the part of :func:`acla_nas.bench.counts.inserted_macs` that reads keys between pixels.

    Four weighted rows of C values for each key of each reference, and four mask values where keys are
    adaptive.
    """
    features = trace_features(network.backbone, network.paths, input_shape, network.layouts)
    total = 0
    for j, feature in features.items():
        for module in network.attention[str(j)].modules():
            if isinstance(module, ACLA):
                keys = len(module.references) * module.num_keys
                total += 4 * keys * feature.pixels * (feature.channels + module.adaptive)
    return total


def _insert(
    backbone: nn.Module, attention: str, positions: Sequence[int], num_keys: int | None = None
) -> CrossLayerNetwork:
    """Return a network of a copy of the backbone with modules after some of its blocks."""
    paths = {j: f"body.{j - 1}" for j in positions}
    return CrossLayerNetwork.dense(copy_backbone(backbone), paths, attention, num_keys=num_keys)


@dataclass(frozen=True)
class TimeRow:
    """How much longer a backbone takes with ACLA than without.

    Attributes:
        backbone: its name.
        bare_ms: median of the bare backbone in milliseconds.
        acla_ms: median with ACLA.
        ratio: of the two, beside the paper's.
    """

    backbone: str
    bare_ms: float
    acla_ms: float
    ratio: Quantity


@dataclass(frozen=True)
class TimeTable:
    """Table 12, measured on the machine at hand."""

    device: str
    runs: int
    rows: tuple[TimeRow, ...]
    notes: tuple[str, ...] = (
        "The paper's times are means of 1000 runs on a Tesla V100: EDSR 16.2 ms, EDSR+ACLA 19.8 ms, RCAN "
        "32.7 ms, RCAN+ACLA 36.9 ms. Only the ratios can be compared between machines.",
        "Medians of runs that alternate between the two networks, so that both meet the same other load.",
    )

    def text(self) -> str:
        """Return the table and its notes as plain text."""
        lines = [["backbone", "bare (ms)", "with ACLA (ms)", "ratio", "paper", "difference"]]
        for row in self.rows:
            ratio = [f"{row.ratio.ours:.3f}", f"{row.ratio.paper:.3f}", _percent(row.ratio)]
            lines.append([row.backbone, f"{row.bare_ms:.1f}", f"{row.acla_ms:.1f}", *ratio])
        title = f"Table 12: inference time at 48x48 on {self.device}, medians of {self.runs} runs"
        return f"{title}\n\n{_aligned(lines)}\n\n{_listed(self.notes)}"

    def as_dict(self) -> dict[str, Any]:
        """Return everything as what JSON knows."""
        rows = [{**asdict(row), "ratio": _with_difference(row.ratio)} for row in self.rows]
        return {
            "table": 12,
            "device": self.device,
            "runs": self.runs,
            "rows": rows,
            "notes": list(self.notes),
        }


def time_table(*, device: str = "cpu", runs: int = 7) -> TimeTable:
    """Measure Table 12: EDSR and RCAN at full size, each bare and with ACLA at the paper's positions.

    Args:
        device: "cpu" or "cuda".
        runs: of each network, after one that is not counted.
    """
    rows = []
    for name, backbone, positions in (("EDSR", EDSR(), EDSR_POSITIONS), ("RCAN", RCAN(), RCAN_POSITIONS)):
        networks = [backbone, _insert(backbone, "acla", positions)]
        bare, acla = median_seconds(networks, device=device, runs=runs)
        paper = INFERENCE_MS[f"{name}+ACLA"] / INFERENCE_MS[name]
        rows.append(TimeRow(name, 1e3 * bare, 1e3 * acla, Quantity(acla / bare, paper)))
    described = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return TimeTable(described, runs, tuple(rows))


def median_seconds(
    networks: Sequence[nn.Module],
    *,
    device: str = "cpu",
    runs: int = 7,
    input_shape: Sequence[int] = INPUT_SHAPE,
) -> list[float]:
    """Return the median time of a forward pass of each network, their runs taking turns."""
    image = torch.rand(1, *input_shape, device=device)
    times: list[list[float]] = [[] for _ in networks]
    for network in networks:
        network.to(device).eval()
    with torch.inference_mode():
        for run in range(runs + 1):
            for network, own in zip(networks, times):
                start = time.perf_counter()
                network(image)
                if device == "cuda":
                    torch.cuda.synchronize()
                if run:  # the first one warms up
                    own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in times]


def _with_difference(quantity: Quantity) -> Mapping[str, float]:
    return {**asdict(quantity), "difference": quantity.difference}


def _percent(quantity: Quantity) -> str:
    return f"{100 * quantity.difference:+.2f} %"


def _aligned(lines: Sequence[Sequence[str]], groups: Sequence[str] = ()) -> str:
    """Return cells in columns, numbers to the right; titles of groups stand over their first column."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    heading = ""
    for i, title in enumerate(groups):
        if title:
            heading = f"{heading:<{sum(widths[:i]) + 2 * i}}{title}"
    text = [heading] if heading else []
    for first, *others in lines:
        cells = [f"{first:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(others, widths[1:]))]
        text.append("  ".join(cells))
    return "\n".join(text)


def _listed(notes: Sequence[str]) -> str:
    return "\n".join(textwrap.fill(note, 100, initial_indent="- ", subsequent_indent="  ") for note in notes)
