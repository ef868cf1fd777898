"""The diagram of a derived architecture: the backbone, the modules inserted in it, what each refers to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from acla_nas.arch import Arch

_COLOURS = ("#1f6feb", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#0f7b8a", "#9a6700", "#57606a")
_TRUNK = 100  # y of the backbone
_MODULE = 26  # y of the modules
_LARGEST_ARC = 110


def arch_svg(
    arch: Arch,
    *,
    num_positions: int | None = None,
    probabilities: Mapping[int, float] | None = None,
) -> str:
    """Return the architecture as an SVG element: boxes for positions, modules above, references as arcs.

    An arc leads from a layer that is referred to, to the module that reads it, in the colour of that module;
    each module also reads the layer that it stands at. Whatever has a box has a title that says it in words.

    Args:
        arch: the architecture.
        num_positions: of its search space; up to its last module, and on from there, where None.
        probabilities: position -> probability of a module there, shown by how full its box is.

    Example:
        >>> import acla_nas
        >>> space = acla_nas.search_spaces.edsr(num_blocks=3, num_channels=8)
        >>> arch = space.arch({"insert/1": True, "insert/2": False, "insert/3": True, "keys": 16})
        >>> svg = arch_svg(arch)
        >>> svg.count('class="module"'), svg.count('class="reference"')
        (2, 1)
    """
    count = num_positions or max(arch.positions, default=0)
    step = 46 if count <= 20 else 30 if count <= 40 else 20
    box = step - 14 if step > 20 else 12
    xs = {j: 70 + step * j for j in range(count + 1)}  # 0: the input
    width = xs[count] + step + 74
    arcs, depth = _references(arch, xs, _TRUNK + box / 2 + 3)
    height = _TRUNK + box / 2 + depth + 16
    end = xs[count] + step
    parts = [
        f'<line x1="62" y1="{_TRUNK}" x2="{end}" y2="{_TRUNK}" stroke="#57606a" stroke-width="2"/>',
        f'<text x="56" y="{_TRUNK + 4}" text-anchor="end">input</text>',
        f'<text x="{end + 6}" y="{_TRUNK + 4}">{"output" if num_positions else "…"}</text>',
        *arcs,
    ]
    for j in range(1, count + 1):
        parts.append(_box(arch, j, xs[j], box, (probabilities or {}).get(j)))
    parts += [_module(arch, j, xs[j], step) for j in arch.positions]
    title = escape(describe_arch(arch, num_positions))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="arch" role="img" aria-label="{title}" '
        f'viewBox="0 0 {width} {height:.0f}" style="width:100%;max-width:{width}px" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="#24292f">{"".join(parts)}</svg>'
    )


def describe_arch(arch: Arch, num_positions: int | None = None) -> str:
    """Return an architecture in a line of words.

    Example:
        >>> import acla_nas
        >>> space = acla_nas.search_spaces.edsr(num_blocks=2, num_channels=8)
        >>> describe_arch(space.arch({"insert/1": False, "insert/2": True, "keys": 16}), 2)
        'edsr with acla of 16 keys at position 2 of 2'
    """
    backbone = arch.space.get("name") or arch.space.get("backbone")
    if not arch.positions:
        return f"{backbone} without attention"
    where = _positions(arch.positions) + (f" of {num_positions}" if num_positions else "")
    return f"{backbone} with {arch.attention['name']} of {arch.attention['num_keys']} keys at {where}"


def arch_html(
    arch: Arch,
    *,
    num_positions: int | None = None,
    probabilities: Mapping[int, float] | None = None,
    note: str = "",
) -> str:
    """Return the diagram with a line of words below it, for a notebook.

    Args:
        arch: as for :func:`arch_svg`, and so are the next two.
        num_positions: likewise.
        probabilities: likewise.
        note: further words.
    """
    costs = [f"{value:,.10g} {unit}" for unit, value in arch.cost.items()]
    words = escape("; ".join([describe_arch(arch, num_positions), *costs, *([note] if note else [])]))
    svg = arch_svg(arch, num_positions=num_positions, probabilities=probabilities)
    return f"<figure>{svg}<figcaption>{words}</figcaption></figure>"


def _positions(positions: Sequence[int]) -> str:
    return f"{'position' if len(positions) == 1 else 'positions'} {', '.join(map(str, positions))}"


def _colour(arch: Arch, position: int) -> str:
    return _COLOURS[arch.positions.index(position) % len(_COLOURS)]


def _references(arch: Arch, xs: Mapping[int, float], y: float) -> tuple[list[str], float]:
    """Return the arcs, which begin and end at a height, and how far they reach below it."""
    pairs = [(l, j) for j in arch.positions for l in arch.positions if l < j]
    longest = max((xs[j] - xs[l] for l, j in pairs), default=0.0)
    arcs = []
    for l, j in pairs:
        sag = 26 + (_LARGEST_ARC - 26) * (xs[j] - xs[l]) / max(longest, 300)
        start, end, low = xs[l] + 3, xs[j] - 3, y + 1.33 * sag
        words = escape(f"the module at position {j} reads position {l} ({arch.paths[l]})")
        arcs.append(
            f'<path class="reference" d="M{start} {y} C{start} {low:.1f} {end} {low:.1f} {end} {y}" '
            f'fill="none" stroke="{_colour(arch, j)}" stroke-width="1.6" stroke-opacity="0.75">'
            f"<title>{words}</title></path>"
            f'<path d="M{end - 4} {y + 8} L{end} {y + 1} L{end + 4} {y + 8}" fill="none" '
            f'stroke="{_colour(arch, j)}" stroke-width="1.6"/>'
        )
    return arcs, 26 + (_LARGEST_ARC - 26) * longest / max(longest, 300) if pairs else 0.0


def _box(arch: Arch, position: int, x: float, size: float, probability: float | None) -> str:
    inserted = position in arch.positions
    words = f"position {position}"
    if inserted:
        words += f" ({arch.paths[position]}), with a module"
    left, top = x - size / 2, _TRUNK - size / 2
    frame = f'<rect x="{left}" y="{top}" width="{size}" height="{size}" rx="3"'
    fill = ""
    if probability is not None:
        words += f", probability of a module {probability:.2f}"
        full = size * min(max(probability, 0.0), 1.0)
        y = top + size - full
        fill = f'<rect x="{left}" y="{y:.1f}" width="{size}" height="{full:.1f}" fill="#b6d4fe"/>'
    colour, line = (_colour(arch, position), 2) if inserted else ("#8c959f", 1)
    label = ""
    if size > 12 or inserted:
        font = f'font-size="{12 if size > 20 else 9}"' + (' font-weight="600"' if inserted else "")
        label = f'<text x="{x}" y="{_TRUNK + 4}" text-anchor="middle" {font}>{position}</text>'
    return (
        f'<g class="position"><title>{escape(words)}</title>{frame} fill="#f6f8fa"/>{fill}'
        f'{frame} fill="none" stroke="{colour}" stroke-width="{line}"/>{label}</g>'
    )


def _module(arch: Arch, position: int, x: float, step: float) -> str:
    colour = _colour(arch, position)
    name, keys = str(arch.attention["name"]).rpartition(":")[2], arch.attention["num_keys"]
    read = _positions([l for l in arch.positions if l <= position])
    words = f"{name} at position {position} ({arch.paths[position]}): {keys} keys in each of {read}"
    half = min(step - 6, 44) / 2
    text = ""
    if step > 40:
        text = (
            f'<text x="{x}" y="{_MODULE + 4}" text-anchor="middle" fill="#fff" font-size="11">'
            f"{escape(name[:7])}</text>"
        )
    bottom = _TRUNK - step / 2 + 7
    return (
        f'<g class="module"><title>{escape(words)}</title>'
        f'<line x1="{x}" y1="{_MODULE + 12}" x2="{x}" y2="{bottom}" stroke="{colour}" stroke-width="2"/>'
        f'<rect x="{x - half}" y="{_MODULE - 13}" width="{2 * half}" height="26" rx="5" fill="{colour}"/>'
        f"{text}</g>"
    )
