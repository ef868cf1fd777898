"""A feature that many modules read: they add its gradient up in one place, instead of a tensor each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from acla_nas.attention.feature_stack import FeatureStack, Place
from acla_nas.attention.forms import is_fusable


class SharedGradient:
    """What the readers of a feature add to its gradient during a backward pass."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._task = -1  # what an earlier backward pass left is not of this one

    def to_add_to(self, feature: Tensor) -> tuple[Tensor, bool]:
        """Return where to add, and whether something is there already: otherwise it is to be written.

        The tensor has the shape and the dtype of the feature, and is contiguous.
        """
        total = self._begun()
        if total is not None:
            return total, True
        self._total = torch.empty(feature.shape, dtype=feature.dtype, device=feature.device)
        self._task = torch._C._current_graph_task_id()
        return self._total, False

    def take(self) -> Tensor | None:
        """Return what was added in this backward pass, and forget it."""
        total, self._total = self._begun(), None
        return total

    def _begun(self) -> Tensor | None:
        return self._total if self._task == torch._C._current_graph_task_id() else None


def share_gradient(feature: Tensor, stack: FeatureStack | None = None) -> Tensor:
    """Return a feature for any number of modules to read, where a fused form may be among them.

    Those that know of it add to the gradient in one place, that of :func:`shared_gradient` on a CPU and a
    stack on a GPU, and return none for the feature; for others it is a tensor like any other.

    Args:
        feature: (B, C, H, W).
        stack: on a GPU, to copy the feature to.

    Example:
        >>> feature = torch.ones(2, requires_grad=True)
        >>> shared = share_gradient(3 * feature)
        >>> shared.sum().backward()
        >>> feature.grad
        tensor([3., 3.])
    """
    on_cpu = feature.device.type == "cpu"
    if (on_cpu and not feature.requires_grad) or not is_fusable(feature, ()):
        return feature
    return _share(feature, SharedGradient()) if on_cpu else share_in_stack(feature, stack)


def share_in_stack(feature: Tensor, stack: FeatureStack | None) -> Tensor:
    """Return a feature that is in a stack, too, and whose gradient readers add to that of the stack."""
    place = None if stack is None else stack.push(feature)
    return feature if place is None else _share(feature, place)


def _share(feature: Tensor, gradient: SharedGradient | Place) -> Tensor:
    shared: Tensor = _Shared.apply(feature, gradient)
    shared._acla_gradient = gradient  # type: ignore[attr-defined]
    return shared


def shared_gradient(feature: Tensor) -> SharedGradient | None:
    """Return where to add to a feature's gradient on a CPU, if it is one of :func:`share_gradient`."""
    return getattr(feature, "_acla_gradient", None)


class _Shared(torch.autograd.Function):
    """The identity; its backward pass comes after those of all who read its result."""

    @staticmethod
    def forward(ctx: Any, feature: Tensor, gradient: SharedGradient | Place) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.gradient = gradient
        return feature.view_as(feature)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        total = ctx.gradient.take()
        if total is None:
            return grad, None
        return total if grad is None else total.add_(grad), None
