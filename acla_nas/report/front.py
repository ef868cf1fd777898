"""The front of a search, quality against cost, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from acla_nas.arch import shown_positions
from acla_nas.candidate import Candidate, pareto_front
from acla_nas.errors import AclaError


def front_table(candidates: Sequence[Candidate], cost_unit: str) -> str:
    """Return a Markdown table of the candidates, the cheapest first, with those on the front marked.

    On the front are those that no other beats in both quality and cost.

    Args:
        candidates: of one search.
        cost_unit: such as "MACs".

    Example:
        >>> import acla_nas
        >>> space = acla_nas.search_spaces.edsr(num_blocks=2, num_channels=8)
        >>> bare, one = ({"insert/1": inserted, "insert/2": False, "keys": 16} for inserted in (False, True))
        >>> candidates = [Candidate(space.arch(one), 31.4, 5e6), Candidate(space.arch(bare), 31.2, 0.0)]
        >>> print(front_table(candidates, "MACs"))
        | positions | keys | quality | cost (MACs) | front |
        |---|---:|---:|---:|:---:|
        | none | 16 | 31.200 | 0 | yes |
        | 1 | 16 | 31.400 | 5000000 | yes |
    """
    front = {id(candidate) for candidate in pareto_front(candidates)}
    lines = [f"| positions | keys | quality | cost ({cost_unit}) | front |", "|---|---:|---:|---:|:---:|"]
    for candidate in sorted(candidates, key=lambda c: (c.cost, -c.quality)):
        cells = [
            shown_positions(candidate.arch.positions),
            str(candidate.arch.attention["num_keys"]),
            f"{candidate.quality:.3f}",
            f"{candidate.cost:.10g}",
            "yes" if id(candidate) in front else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_front(candidates: Sequence[Candidate], path: str | Path, cost_unit: str) -> Path:
    """Write the picture of :func:`front_figure`.

    Args:
        candidates: of one search.
        path: of the picture, of a format that matplotlib writes.
        cost_unit: such as "MACs".

    Returns:
        The path.

    Raises:
        AclaError: there are no candidates, or the picture cannot be written.
    """
    figure = front_figure(candidates, cost_unit)
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise AclaError(f"cannot write picture {path}: {error}; give FILE.png") from None
    return path


def front_figure(candidates: Sequence[Candidate], cost_unit: str) -> Figure:
    """Draw quality against cost: every candidate a grey dot, the front a line of steps with its positions.

    Below and right of the line is what some candidate on it beats.

    Args:
        candidates: of one search.
        cost_unit: such as "MACs".

    Raises:
        AclaError: there are no candidates.
    """
    if not candidates:
        raise AclaError("there are no candidates to draw: give those of a search")
    front = pareto_front(candidates)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(
        [c.cost for c in candidates],
        [c.quality for c in candidates],
        s=22,
        color="0.65",
        linewidths=0,
        label=f"{len(candidates)} candidates",
    )
    costs, qualities = [c.cost for c in front], [c.quality for c in front]
    end = max(c.cost for c in candidates)
    axes.step(
        [*costs, end], [*qualities, qualities[-1]], where="post", color="tab:blue", label="front", zorder=3
    )
    axes.plot(costs, qualities, "o", color="tab:blue", markersize=5, zorder=4)
    for candidate in front:
        axes.annotate(
            shown_positions(candidate.arch.positions),
            (candidate.cost, candidate.quality),
            xytext=(4, 5),
            textcoords="offset points",
            fontsize=8,
            color="tab:blue",
            zorder=5,
        )
    axes.margins(x=0.08, y=0.12)
    axes.set_xlabel(f"cost of the inserted modules ({cost_unit})")
    axes.set_ylabel("quality (PSNR in dB)")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.93")
    axes.set_axisbelow(True)
    return figure
