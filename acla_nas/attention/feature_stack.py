"""Features of a pass on a GPU as one tensor: modules read all of them at once, and add to their gradients."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


class FeatureStack:
    """The features that the modules of a pass refer to, in the order of execution, as rows of C values.

    Features of another size than the first, and those beyond the capacity, are not taken.

    Args:
        capacity: features of a pass at most.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity, self._count = capacity, 0
        self._rows: Tensor | None = None
        self._gradients: Tensor | None = None
        self._task = -1  # what an earlier backward pass left is not of this one

    def push(self, feature: Tensor) -> Place | None:
        """Copy a feature (B, C, H, W) to the top; return where it is, or None if it is not taken."""
        dtype, (batch, channels, height, width) = rows_dtype(feature), feature.shape
        if self._count == 0:
            shape = self._capacity, batch, height * width, channels
            self._rows = torch.empty(shape, dtype=dtype, device=feature.device)
        if self._rows is None or self._count == self._capacity or self._rows.dtype != dtype:
            return None
        if self._rows.shape[1:] != (batch, height * width, channels):
            return None
        into = self._rows[self._count].unflatten(1, (height, width))
        into.copy_(feature.detach().permute(0, 2, 3, 1))
        self._count += 1
        return Place(self, self._count - 1, (height, width))

    def rows(self, count: int) -> Tensor | None:
        """Return the first features, (count, B, P, C), for modules to keep; None once the pass is over."""
        # autograd counts changes of all tensors that share memory, but not from .data on: those that were
        # returned do not change with what is pushed later.
        return None if self._rows is None else self._rows.data[:count]

    def close(self) -> None:
        """Let go of the features: those that were returned live on."""
        self._rows = None

    def gradients(self, like: Tensor) -> Tensor:
        """Return what readers add to in this backward pass, (J, B, P, C), 0 at its beginning.

        Args:
            like: one of the features, as rows.
        """
        total = self._begun()
        if total is None:
            total = self._gradients = like.new_zeros(self._count, *like.shape)
            self._task = torch._C._current_graph_task_id()
        return total

    def take(self, index: int) -> Tensor | None:
        """Return what was added to the gradient of a feature in this backward pass, (B, P, C)."""
        total = self._begun()
        return None if total is None else total[index]

    def _begun(self) -> Tensor | None:
        return self._gradients if self._task == torch._C._current_graph_task_id() else None


class Place:
    """Where in a stack a feature is, of H x W pixels."""

    def __init__(self, stack: FeatureStack, index: int, size: tuple[int, int]) -> None:
        self.stack, self.index, self._size = stack, index, size

    def take(self) -> Tensor | None:
        """Return what readers added to the gradient in this backward pass, (B, C, H, W)."""
        rows = self.stack.take(self.index)
        return None if rows is None else as_maps(rows, self._size)


def place_of(feature: Tensor) -> Place | None:
    """Return where a feature is, if it is in a stack."""
    place = getattr(feature, "_acla_gradient", None)
    return place if isinstance(place, Place) else None


def stack_rows(features: Sequence[Tensor], dtype: torch.dtype) -> tuple[list[Tensor], FeatureStack | None]:
    """Return features as rows (.., B, P, C), in parts, and the stack that the first part is of, if it is.

    All that are in a stack are in the first part: none of them is copied.
    """
    stack, count = _first_in_stack(features)
    held = None if stack is None or count == 0 else stack.rows(count)
    if held is None or held.dtype != dtype:
        return [torch.stack([as_rows(x, dtype) for x in features])], None
    rest = [as_rows(x, dtype) for x in features[count:]]
    return [held, torch.stack(rest)] if rest else [held], stack


def _first_in_stack(features: Sequence[Tensor]) -> tuple[FeatureStack | None, int]:
    """Return the stack whose first features these begin with, and how many of them are there."""
    place = place_of(features[0])
    if place is None:
        return None, 0
    places = (place_of(x) for x in features)
    same = (p is not None and p.stack is place.stack and p.index == i for i, p in enumerate(places))
    return place.stack, sum(itertools.takewhile(bool, same))


def as_rows(feature: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a feature (B, C, H, W) as rows (B, P, C)."""
    return feature.permute(0, 2, 3, 1).to(dtype).flatten(1, 2)


def as_maps(rows: Tensor, size: tuple[int, int]) -> Tensor:
    """Return rows (B, P, C) as a feature (B, C, H, W)."""
    return rows.unflatten(1, size).permute(0, 3, 1, 2)


def rows_dtype(feature: Tensor) -> torch.dtype:
    """Return the dtype that a feature is read in: autocast's, or else its own."""
    kind = feature.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else feature.dtype
