"""Charts of a search and of a training, from the rows of metrics.csv."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

_WIDTH = 7.0  # inches
_BLUE, _ORANGE, _GREY = "#1f6feb", "#bc4c00", "#57606a"

Row = Mapping[str, Any]


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """Return the rows of a metrics.csv, without what is empty; none where there is no such file."""
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError:
        return []
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def probabilities(history: Sequence[Row]) -> dict[int, list[float]]:
    """Return position -> its probability of insertion after every epoch.

    Example:
        >>> probabilities([{"epoch": 1, "probability/01": 0.5}, {"epoch": 2, "probability/01": 0.75}])
        {1: [0.5, 0.75]}
    """
    names = sorted({name for row in history for name in row if name.startswith("probability/")})
    return {
        int(name.partition("/")[2]): [float(row.get(name, math.nan)) for row in history] for name in names
    }


def entropy(history: Sequence[Row]) -> list[float]:
    """Return the mean entropy of the insert gates after every epoch, in bits: 1 undecided, 0 decided.

    Example:
        >>> entropy([{"probability/01": 0.5, "probability/02": 1.0}])
        [0.5]
    """
    p = np.array(list(probabilities(history).values())).clip(1e-12, 1 - 1e-12)
    return np.abs((-p * np.log2(p) - (1 - p) * np.log2(1 - p)).mean(0).round(9)).tolist()


def draw_probabilities(history: Sequence[Row], *, warmup: int = 0) -> Figure:
    """Draw the probability of a module at every position over the epochs, as a map: blue out, red in.

    Args:
        history: with the columns ``epoch`` and ``probability/<j>``.
        warmup: epochs of the weights alone, marked where above 0.

    Example:
        >>> figure = draw_probabilities([{"epoch": 1, "probability/01": 0.5, "probability/02": 0.9}])
        >>> figure.axes[0].get_ylabel()
        'position'
    """
    table = probabilities(history)
    grid = np.array(list(table.values()))
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(_WIDTH, min(9.0, max(1.9, 1.0 + 0.24 * len(table)))), layout="constrained")
    axes = figure.subplots()
    extent = (epochs[0] - 0.5, epochs[-1] + 0.5, len(table) + 0.5, 0.5)
    picture = axes.imshow(
        grid, cmap="RdBu_r", vmin=0, vmax=1, aspect="auto", extent=extent, interpolation="nearest"
    )
    axes.set(xlabel="epoch", ylabel="position")
    if len(table) <= 40:
        axes.set_yticks(range(1, len(table) + 1), labels=list(map(str, table)), fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for row, values in enumerate(grid, start=1):
        axes.annotate(
            f"{values[-1]:.2f}",
            (1.01, row),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9 if len(table) <= 40 else 5,
            fontweight="bold" if values[-1] > 0.5 else "normal",
            color="#a40e26" if values[-1] > 0.5 else _GREY,
        )
    if 0 < warmup < epochs[-1]:
        axes.axvline(warmup + 0.5, color="black", linewidth=1, linestyle=":")
    bar = figure.colorbar(picture, ax=axes, pad=0.08, fraction=0.05, ticks=[0, 0.5, 1])
    bar.set_label("probability of a module")
    bar.outline.set_visible(False)
    return figure


def draw_progress(history: Sequence[Row], *, warmup: int = 0, unit: str = "") -> Figure:
    """Draw what changes over the epochs, a panel each: PSNR and loss; and of a search cost and entropy.

    Args:
        history: with the column ``epoch`` and some of ``val_psnr``, ``train_loss``, ``cost``,
            ``derived_cost``, ``probability/<j>``, ``open_keys``.
        warmup: epochs of the weights alone, marked where above 0.
        unit: of the cost.

    Example:
        >>> rows = [{"epoch": 1, "val_psnr": 30.0, "train_loss": 9.0}]
        >>> [axes.get_ylabel() for axes in draw_progress(rows).axes]
        ['PSNR (dB)', 'loss']
    """
    epochs = [row["epoch"] for row in history]
    panels: list[tuple[str, dict[str, list[float]], str]] = []
    columns = {
        "val_psnr": ("PSNR (dB)", "validation PSNR", _BLUE),
        "train_loss": ("loss", "training loss", _GREY),
    }
    for name, (label, words, colour) in columns.items():
        if any(name in row for row in history):
            panels.append((label, {words: _column(history, name)}, colour))
    if any("cost" in row for row in history):
        costs = {"expected": _column(history, "cost")}
        if any("derived_cost" in row for row in history):
            costs["of the derived network"] = _column(history, "derived_cost")
        panels.append((f"cost ({unit})" if unit else "cost", costs, _ORANGE))
    if probabilities(history):
        panels.append(("entropy (bits)", {"of the insert gates": entropy(history)}, _GREY))
    if any(row.get("open_keys", 1.0) < 1 for row in history):
        panels.append(("open keys (%)", {"": [100 * v for v in _column(history, "open_keys")]}, _ORANGE))
    across = 2 if len(panels) > 1 else 1
    rows = math.ceil(len(panels) / across)
    figure = Figure(figsize=(_WIDTH, 1.9 * rows + 0.3), layout="constrained")
    grid = list(figure.subplots(rows, across, squeeze=False).flat)
    for axes, (label, lines, colour) in zip(grid, panels):
        for (words, values), style in zip(lines.items(), ("-", "--")):
            marker = "o" if len(epochs) <= 20 else ""
            axes.plot(epochs, values, style, color=colour, marker=marker, markersize=3, label=words)
        if len(lines) > 1:
            axes.legend(fontsize=8, frameon=False)
        axes.set_ylabel(label)
        axes.set_xlabel("epoch")
        if label.startswith("cost"):
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        elif label.startswith("entropy"):
            axes.set_ylim(0, 1.05)
        _plain(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if 0 < warmup < epochs[-1]:
            axes.axvline(warmup + 0.5, color="black", linewidth=1, linestyle=":")
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    return figure


def draw_trajectory(history: Sequence[Row], unit: str) -> Figure:
    """Draw the quality of the network derived after every epoch against its cost: the way of a search.

    Args:
        history: with the columns ``epoch``, ``derived_cost`` and ``val_psnr``.
        unit: of the cost.
    """
    rows = [row for row in history if "derived_cost" in row and "val_psnr" in row]
    costs, qualities = _column(rows, "derived_cost"), _column(rows, "val_psnr")
    figure = Figure(figsize=(_WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(costs, qualities, "-", color="0.8", linewidth=1, zorder=1)
    dots = axes.scatter(costs, qualities, c=_column(rows, "epoch"), cmap="viridis", s=30, zorder=2)
    for row in {id(row): row for row in (rows[0], rows[-1])}.values():
        axes.annotate(
            f"epoch {row['epoch']:.0f}",
            (row["derived_cost"], row["val_psnr"]),
            xytext=(6, 4),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set(xlabel=f"cost of the derived modules ({unit})", ylabel="validation PSNR (dB)")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(x=0.1, y=0.12)
    bar = figure.colorbar(dots, ax=axes, label="epoch", pad=0.02, fraction=0.05)
    bar.locator = MaxNLocator(integer=True)
    bar.update_ticks()
    bar.outline.set_visible(False)
    _plain(axes)
    return figure


def _column(history: Sequence[Row], name: str) -> list[float]:
    return [float(row.get(name, math.nan)) for row in history]


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.93")
    axes.set_axisbelow(True)
