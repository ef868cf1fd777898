"""trace: run a backbone once or a few times to learn what its modules return, and in which layout."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from acla_nas.attention import Feature
from acla_nas.errors import AclaError
from acla_nas.layout import LAYOUTS, check_layout

Shape = tuple[int, ...]

# How much smaller or larger than a feature map the grid of some tokens may be; the likeliest first.
_SCALES = [Fraction(1), *(Fraction(s) for k in (2, 4, 8, 16, 32, 3) for s in (f"1/{k}", k))]


class Grid(NamedTuple):
    """Where the height and width of a grid of tokens are read: in what a convolution before it returns.

    Attributes:
        source: module path of the convolution; "" for the network's input.
        scale: of the grid's height and width to those found there; what is left over counts as one more.
    """

    source: str
    scale: Fraction

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return (H, W) of the grid, given the height and width of the source."""
        up, down = self.scale.numerator, self.scale.denominator
        if down == 1:
            return height * up, width * up
        return -(-height * up // down), -(-width * up // down)


class Place(NamedTuple):
    """A position of a backbone and what was found there.

    Attributes:
        path: of the module.
        layout: such as "bchw".
        feature: its size for the traced input.
        leaf: which of the tensors and other values that the module returns it is, from 0.
        grid: of its tokens, where the layout has tokens.
    """

    path: str
    layout: str
    feature: Feature
    leaf: int = 0
    grid: Grid | None = None


def trace(
    copies: Callable[[], nn.Module],
    paths: Mapping[int, str],
    input_shape: Sequence[int],
    layouts: Mapping[str, str] | str | None = None,
    *,
    sort: bool = False,
) -> dict[int, Place]:
    """Return what is found at each position, for one input of the given (C, H, W).

    Runs on PyTorch's meta device, so it costs no arithmetic; on the backbone's own device where it cannot
    run there. Besides the given input it tries one of twice the height and one of twice the width: axes
    that grow with the height are H, with the width W, with both N, and the others are B and C. Where the
    backbone takes one size only, the axes are told apart by their lengths.

    Args:
        copies: returns a fresh copy of the backbone each time.
        paths: position -> module path.
        input_shape: (C, H, W) of an input that the backbone takes.
        layouts: module path -> layout, or one for all; those that are not given are detected.
        sort: number the positions in the order in which they are run, from 1.

    Raises:
        AclaError: the backbone does not take such an input; some positions are not run exactly once, or
            return no feature, or their layout cannot be told; they are not in the order in which they
            are run.
    """
    declared = _declared(paths, layouts)
    probes = _probe(copies, paths, input_shape)
    base = probes[0]
    places, problems = {}, []
    for j, path in paths.items():
        found = _place(path, probes, declared.get(path)) if base.count(path) == 1 else _why_not(base, path)
        if isinstance(found, Place):
            places[j] = found
        else:
            problems.append(found)
    if problems:
        usable = [place.path for place in places.values()]
        use = f": positions={usable[:40]}" if usable else ""
        raise AclaError(
            f"{len(problems)} of {len(paths)} positions cannot be used: {'; '.join(problems)}. "
            f"Otherwise leave them out{use}"
        )
    order = [call.path for call in base.calls]
    ordered = sorted(places.values(), key=lambda place: order.index(place.path))
    if sort:
        return dict(enumerate(ordered, start=1))
    if ordered != list(places.values()):
        raise AclaError(
            f"positions must be given in the order in which they are run: {[p.path for p in ordered]}"
        )
    return places


def _declared(paths: Mapping[int, str], layouts: Mapping[str, str] | str | None) -> dict[str, str]:
    if layouts is None:
        return {}
    given = dict.fromkeys(paths.values(), layouts) if isinstance(layouts, str) else dict(layouts)
    for layout in given.values():
        check_layout(layout)
    if unknown := sorted(set(given) - set(paths.values())):
        raise AclaError(f"layout names {unknown[0]!r}, which is not a position: {list(paths.values())[:40]}")
    return given


# -- probing ----------------------------------------------------------------------------------------


@dataclass
class _Call:
    """What one call of a position returned: the shapes of its leaves, None for what is no feature."""

    path: str
    leaves: list[Shape | None]
    shown: str
    before: int  # how many sources were seen before it


@dataclass
class _Probe:
    """What was seen in one forward pass."""

    kinds: dict[str, nn.Module]
    calls: list[_Call] = field(default_factory=list)
    sources: list[tuple[str, tuple[int, int]]] = field(default_factory=list)

    def count(self, path: str) -> int:
        return sum(call.path == path for call in self.calls)

    def call(self, path: str) -> _Call:
        return next(call for call in self.calls if call.path == path)

    def shape(self, path: str, leaf: int) -> Shape | None:
        """Return the shape of a leaf at a position; None where it is not there in this pass."""
        leaves = self.call(path).leaves if self.count(path) == 1 else []
        return leaves[leaf] if leaf < len(leaves) else None

    def source(self, path: str) -> tuple[int, int] | None:
        """Return the size at a source that was run once."""
        sizes = [size for name, size in self.sources if name == path]
        return sizes[0] if len(sizes) == 1 else None


def _probe(
    copies: Callable[[], nn.Module], paths: Mapping[int, str], input_shape: Sequence[int]
) -> list[_Probe]:
    """Run the backbone on the input, twice as high, twice as wide, and odd; drop those that fail."""
    shape = tuple(input_shape)
    if len(shape) < 3 or not all(isinstance(n, int) and n >= 1 for n in shape):
        raise AclaError(f"input_shape must be (C, H, W), each at least 1, not {input_shape!r}")
    height, width = shape[-2:]
    failed: Exception | None = None
    for device in (torch.device("meta"), None):
        backbone = copies().eval()
        try:
            if device is not None:
                backbone = backbone.to(device)
            probes = [_run(backbone, paths, shape)]
        except Exception as error:
            failed = error
            continue
        for other in ((2 * height, width), (height, 2 * width), (height + 5, width + 3)):
            try:
                probes.append(_run(backbone, paths, (*shape[:-2], *other)))
            except Exception:
                probes.append(_Probe(probes[0].kinds))  # nothing was seen
        return probes
    reason = " ".join(str(failed).split())[:200] or type(failed).__name__
    raise AclaError(
        f"the backbone does not run on an input (C, H, W) of {shape}: {reason}; set input_shape to one that "
        "it takes"
    ) from failed


def _run(backbone: nn.Module, paths: Mapping[int, str], input_shape: Shape) -> _Probe:
    probe = _Probe({path: backbone.get_submodule(path) for path in paths.values()})
    probe.sources.append(("", (input_shape[-2], input_shape[-1])))
    hooks = []

    def record_position(path: str) -> Callable[..., None]:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            leaves = [_feature_shape(leaf) for leaf in tree_leaves(output)]
            probe.calls.append(_Call(path, leaves, _show(output), len(probe.sources)))

        return record

    def record_source(path: str) -> Callable[..., None]:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.dim() == 4 and output.shape[0] == 1:
                probe.sources.append((path, (output.shape[2], output.shape[3])))

        return record

    for path, module in backbone.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            hooks.append(module.register_forward_hook(record_source(path)))
    for path in paths.values():
        hooks.append(backbone.get_submodule(path).register_forward_hook(record_position(path)))
    weight = next((p for p in backbone.parameters() if p.is_floating_point()), torch.empty(0))
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            backbone(torch.full((1, *input_shape), 0.5, dtype=weight.dtype, device=weight.device))
    finally:
        for hook in hooks:
            hook.remove()
    return probe


def _feature_shape(leaf: Any) -> Shape | None:
    is_feature = isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() in (3, 4)
    return tuple(leaf.shape) if is_feature else None


def _show(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor {tuple(output.shape)}"
    shapes = [tuple(leaf.shape) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    return f"a {type(output).__name__} with the tensors {shapes}" if shapes else f"a {type(output).__name__}"


# -- judging ----------------------------------------------------------------------------------------


def _why_not(probe: _Probe, path: str) -> str:
    """Say why a position that is not run exactly once cannot be used."""
    module, count = probe.kinds[path], probe.count(path)
    if count:
        twins = [other for other, m in probe.kinds.items() if m is module and other != path]
        why = f"it is the same module as {', '.join(map(repr, twins))}" if twins else "it is in a loop"
        return f"{path!r} is run {count} times in a forward pass, not once: {why}"
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return f"{path!r} is a {type(module).__name__}, which is not run itself: name its members, '{path}.*'"
    return f"{path!r} is run 0 times in a forward pass: unused, or only its forward method is called directly"


def _place(path: str, probes: Sequence[_Probe], declared: str | None) -> Place | str:
    """Return the first feature that a position returns, or why there is none."""
    call = probes[0].call(path)
    for leaf, shape in enumerate(call.leaves):
        if shape is None:
            continue
        if declared is not None:
            choices = [declared] if len(declared) == len(shape) else []
        else:
            choices = _layouts(path, leaf, probes)
        if len(choices) > 1:
            return (
                f"{path!r} returns {call.shown}, which may be {' or '.join(choices)}: "
                f"say which, layout={{{path!r}: {choices[0]!r}}}"
            )
        for layout in choices:
            grid = _find_grid(path, leaf, layout, probes) if "n" in layout else None
            size = dict(zip(layout, shape))
            if grid is not None:
                size["h"], size["w"] = grid.size(*probes[0].source(grid.source))  # type: ignore[misc]
            elif "n" in layout:
                return (
                    f"{path!r} returns {size['n']} tokens, which are not the pixels of what a convolution "
                    "before it returns, nor of the input"
                )
            return Place(path, layout, Feature(size["c"], size["h"], size["w"]), leaf, grid)
    if declared is not None:
        return f"{path!r} returns {call.shown}, which is not {declared!r}"
    return f"{path!r} returns {call.shown}, not a feature such as (B, C, H, W), (B, H, W, C) or (B, N, C)"


def _layouts(path: str, leaf: int, probes: Sequence[_Probe]) -> list[str]:
    """Return the layouts that a leaf may have: one where it is clear, none where it is no feature."""
    base, tall, wide = (probe.shape(path, leaf) for probe in probes[:3])
    assert base is not None
    if base[0] != 1:  # the batch
        return []
    if tall is not None and wide is not None and len(tall) == len(wide) == len(base):
        axes = {(False, False): "c", (True, False): "h", (False, True): "w", (True, True): "n"}
        found = "b" + "".join(axes[t != b, w != b] for b, t, w in zip(base[1:], tall[1:], wide[1:]))
        if tall[0] != 1 or wide[0] != 1:
            return []
        if set(found) != {"b", "c"}:
            return [found] if found in LAYOUTS else []
    return [name for name in LAYOUTS if len(name) == len(base) and _fits(path, leaf, name, probes)]


def _fits(path: str, leaf: int, layout: str, probes: Sequence[_Probe]) -> bool:
    """Whether the axes of a layout have the lengths of some grid, for a backbone of one input size."""
    if "n" in layout:
        return _find_grid(path, leaf, layout, probes) is not None
    shape = dict(zip(layout, probes[0].shape(path, leaf) or ()))
    wanted = (shape["h"], shape["w"])
    sources = probes[0].sources[: probes[0].call(path).before]
    grids = (Grid(source, scale).size(*size) for scale in _SCALES for source, size in sources)
    return wanted != (1, 1) and wanted in grids


def _find_grid(path: str, leaf: int, layout: str, probes: Sequence[_Probe]) -> Grid | None:
    """Return the grid that has as many pixels as there are tokens, in every probe.

    Of several the one of the likeliest scale, and of those the one that was run last.
    """
    at = layout.index("n")
    seen = [(probe, shape[at]) for probe in probes if (shape := probe.shape(path, leaf)) is not None]
    names = [name for name, _ in probes[0].sources[: probes[0].call(path).before]]
    for scale in _SCALES:
        for name in reversed(names):
            grid = Grid(name, scale)
            sizes = [probe.source(name) for probe, _ in seen]
            grids = [None if size is None else grid.size(*size) for size in sizes]
            if all(g is not None and g[0] * g[1] == count for g, (_, count) in zip(grids, seen)):
                return grid
    return None
