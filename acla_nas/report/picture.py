"""The picture of selected keys, as in Figures 2 and 4 of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.ndimage import uniform_filter

from acla_nas.data import to_uint8
from acla_nas.errors import AclaError
from acla_nas.metrics import luma
from acla_nas.report.keys import LayerKeys

_PANEL = 3.0  # inches
_COLOURS = "plasma"
_SPAN = 1e-4  # weights below this part of a row's largest have the colour of the smallest


def plot_keys(
    image: np.ndarray,
    query: tuple[int, int],
    rows: Mapping[str, Sequence[LayerKeys]],
    *,
    caption: str = "",
) -> Figure:
    """Draw the keys of a query pixel: a row for each kind of attention, a panel for each referenced layer.

    Keys are circles, coloured by their weight on the logarithmic scale of their row; the query is a green
    cross. Keys that are closed or outside the image are not drawn; a panel's title counts them. Where all
    keys of a row lie close to the query, its panels have an enlarged part.

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3) in 0 .. 255: what the network was given.
        query: (x, y) in its pixels.
        rows: what a row is called by -> its keys, as :func:`acla_nas.report.selected_keys` returns them.
        caption: a line below.

    Returns:
        A figure; ``figure.savefig("keys.png")`` writes it.

    Raises:
        AclaError: there is nothing to draw.

    Example:
        >>> keys = LayerKeys(1, "body.0", (20, 30), np.array([[4.0, 5.0]]), np.ones(1), np.ones(1) > 0)
        >>> figure = plot_keys(np.zeros((20, 30, 3), dtype=np.uint8), (5, 5), {"ACLA": [keys]})
        >>> figure.savefig("keys.png")
    """
    columns = max((len(layers) for layers in rows.values()), default=0)
    if columns == 0:
        raise AclaError("there are no keys to draw: rows holds no layer")
    height, width = image.shape[:2]
    panel_height = _PANEL * min(2.0, max(0.5, height / width))
    size = (_PANEL * columns + 1.4, (panel_height + 0.55) * len(rows) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, (name, layers) in zip(axes, rows.items()):
        for panel in row[len(layers) :]:
            panel.set_axis_off()
        weights = np.concatenate([keys.weights[keys.drawn] for keys in layers])
        high = max(float(weights.max(initial=0)), np.finfo(np.float32).tiny)
        low = max(float(weights.min(initial=high)), _SPAN * high)
        scale = LogNorm(low if low < high else _SPAN * high, high)
        places = [_image_places(image, keys) for keys in layers]
        reach = max((float(np.abs(p - query).max(initial=0)) for p in places), default=0.0) + 2
        for panel, keys, place in zip(row, layers, places):
            _draw(panel, image, query, place, keys, scale)
            panel.set_title(f"{keys.path} (position {keys.position})\n{describe(keys)}", fontsize="small")
            if reach < min(height, width) / 8:
                _enlarge(panel, image, query, place, keys, scale, reach)
        row[0].set_ylabel(name)
        bar = figure.colorbar(ScalarMappable(scale, _COLOURS), ax=list(row), fraction=0.04, pad=0.01)
        bar.minorticks_off()
        below = "\u2264 " if weights.min(initial=high) < low else ""
        ticks = (
            {low: f"low {below}{low:.2g}", high: f"high {high:.2g}"} if low < high else {high: f"{high:.2g}"}
        )
        bar.set_ticks(list(ticks), labels=list(ticks.values()), fontsize="small")
        bar.ax.set_title("weight (log)", fontsize="small", pad=10)
    if caption:
        figure.supxlabel(caption, fontsize="small")
    return figure


def _image_places(image: np.ndarray, keys: LayerKeys) -> np.ndarray:
    """Return the (x, y) of the keys that are drawn in pixels of the image."""
    per_pixel = np.array([image.shape[1] / keys.size[1], image.shape[0] / keys.size[0]])
    return (keys.places[keys.drawn] + 0.5) * per_pixel - 0.5


def _draw(
    panel: Axes,
    image: np.ndarray,
    query: tuple[int, int],
    places: np.ndarray,
    keys: LayerKeys,
    scale: LogNorm,
) -> None:
    height, width = image.shape[:2]
    grey = image.ndim == 2 or image.shape[2] == 1
    pixels = to_uint8(image).reshape(height, width, -1)
    panel.imshow(pixels[..., 0] if grey else pixels, cmap="gray" if grey else None, vmin=0, vmax=255)
    panel.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    weights = keys.weights[keys.drawn].clip(scale.vmin, scale.vmax)
    order = weights.argsort()  # the heaviest on top
    panel.scatter(
        places[order, 0],
        places[order, 1],
        c=weights[order],
        norm=scale,
        cmap=_COLOURS,
        s=24,
        edgecolors="white",
        linewidths=0.6,
        clip_on=False,
    )
    panel.scatter(*query, marker="+", c="lime", s=100, linewidths=1.6, clip_on=False)


def _enlarge(
    panel: Axes,
    image: np.ndarray,
    query: tuple[int, int],
    places: np.ndarray,
    keys: LayerKeys,
    scale: LogNorm,
    reach: float,
) -> None:
    """Draw the surroundings of the query once more, enlarged, in the corner farthest from it."""
    height, width = image.shape[:2]
    side = 0.62 * min(height, width)
    x, y = (
        (0.0 if query[0] > width / 2 else 1 - side / width),
        (0.0 if query[1] < height / 2 else 1 - side / height),
    )
    part = panel.inset_axes((x, y, side / width, side / height))
    _draw(part, image, query, places, keys, scale)
    part.set(xlim=(query[0] - reach, query[0] + reach), ylim=(query[1] + reach, query[1] - reach))
    part.set_facecolor("black")  # outside the image
    part.spines[:].set_color("white")
    corner = (query[0] - reach, query[1] - reach)
    panel.add_patch(Rectangle(corner, 2 * reach, 2 * reach, fill=False, edgecolor="white"))


def describe(keys: LayerKeys) -> str:
    """Return how many keys a layer has, and how many of them are not drawn.

    Example:
        >>> places, weights = np.array([[1.0, 1.0], [9.0, 1.0], [0.0, 2.0]]), np.array([0.5, 0.5, 0.0])
        >>> describe(LayerKeys(1, "body.0", (4, 4), places, weights, weights > 0))
        '1 of 3 keys, 1 closed, 1 outside'
    """
    closed, outside = int((~keys.open).sum()), int((keys.open & ~keys.inside).sum())
    counts = [f"{int(keys.drawn.sum())} of {len(keys.open)} keys"]
    counts += [f"{n} {what}" for n, what in ((closed, "closed"), (outside, "outside")) if n]
    return ", ".join(counts)


def textured_pixel(image: np.ndarray) -> tuple[int, int]:
    """Return the (x, y) whose surroundings have the steepest luma, away from the image's border.

    Args:
        image: (H, W, C) in 0 .. 255.

    Example:
        >>> image = np.zeros((40, 60, 3))
        >>> image[18:22, 30:34] = 255
        >>> x, y = textured_pixel(image)
        >>> 24 < x < 40 and 12 < y < 28
        True
    """
    grey = (luma(image) if image.shape[2] == 3 else image.astype(np.float64))[..., 0]
    height, width = grey.shape
    if min(height, width) < 8:
        return width // 2, height // 2
    slope = np.hypot(*np.gradient(grey))
    texture = uniform_filter(slope, size=9)
    top, left = height // 8, width // 8
    inner = texture[top : height - top, left : width - left]
    y, x = np.unravel_index(inner.argmax(), inner.shape)
    return int(x) + left, int(y) + top
