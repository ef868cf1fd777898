"""Layouts: the order of a feature's axes in the tensor that a module returns.

A layout is a string with one letter for each axis: "bchw" is a (B, C, H, W) feature map, "bhwc" a
channels-last one, and in "bnc" the N tokens are the pixels of an (H, W) grid, row after row. Attention
always sees feature maps.
"""

from __future__ import annotations

from torch import Tensor

from acla_nas.errors import AclaError

LAYOUTS = ("bchw", "bhwc", "bnc", "bcn")


def check_layout(layout: str) -> None:
    """Raise AclaError for what is no layout: the letters b, c, h, w or b, c, n in some order.

    Example:
        >>> check_layout("bhwc")
    """
    if not isinstance(layout, str) or "".join(sorted(layout)) not in ("bchw", "bcn"):
        raise AclaError(
            f"layout {layout!r} is unknown: give the order of the axes, such as {', '.join(LAYOUTS)}"
        )


def to_map(x: Tensor, layout: str, size: tuple[int, int] | None = None) -> Tensor:
    """Return a tensor of some layout as a feature map (B, C, H, W), a view of it.

    Args:
        x: with one axis for each letter of the layout.
        layout: such as "bnc".
        size: (H, W) of the grid of the tokens, where the layout has tokens.

    Example:
        >>> to_map(torch.rand(2, 12, 8), "bnc", (3, 4)).shape
        torch.Size([2, 8, 3, 4])
    """
    if "n" in layout:
        assert size is not None
        at = layout.index("n")
        x = x.reshape(*x.shape[:at], *size, *x.shape[at + 1 :])
        layout = layout.replace("n", "hw")
    return x if layout == "bchw" else x.permute([layout.index(axis) for axis in "bchw"])


def from_map(feature: Tensor, layout: str) -> Tensor:
    """Return a feature map (B, C, H, W) in a layout.

    Example:
        >>> from_map(torch.rand(2, 8, 3, 4), "bnc").shape
        torch.Size([2, 12, 8])
    """
    if layout == "bchw":
        return feature
    x = feature.permute(["bchw".index(axis) for axis in layout.replace("n", "hw")])
    return x.flatten(layout.index("n"), layout.index("n") + 1) if "n" in layout else x
