"""The operator as one operation of torch.compile, which would else follow every step that is inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from acla_nas.ops.gather import _form


@torch.library.custom_op("acla_nas::cross_layer_gather", mutates_args=())
def gather(values: list[Tensor], offsets: Tensor, weights: Tensor) -> Tensor:
    """See :func:`acla_nas.ops.cross_layer_gather`."""
    return _form(values, offsets, weights).forward(values, offsets, weights)


@gather.register_fake
def _(values: list[Tensor], offsets: Tensor, weights: Tensor) -> Tensor:
    return _empty_map(values[0], *offsets.shape[-2:])


@torch.library.custom_op("acla_nas::cross_layer_gather_backward", mutates_args=())
def gather_backward(
    grad: Tensor, values: list[Tensor], offsets: Tensor, weights: Tensor, needed: list[bool]
) -> list[Tensor]:
    """Return the gradients of offsets, weights and values, in this order; empty where not needed."""
    found = _form(values, offsets, weights).backward(grad, values, offsets, weights, needed)
    return [offsets.new_empty(0) if g is None else g for g in found]


@gather_backward.register_fake
def _(
    grad: Tensor, values: list[Tensor], offsets: Tensor, weights: Tensor, needed: list[bool]
) -> list[Tensor]:
    found = [torch.empty_like(offsets), torch.empty_like(weights)]
    found += [_empty_map(value, *value.shape[2:]) for value in values]
    return [g if wanted else offsets.new_empty(0) for g, wanted in zip(found, needed)]


def _empty_map(value: Tensor, height: int, width: int) -> Tensor:
    """Return (B, C, H, W) like a value map, with the channels of a pixel side by side."""
    return value.new_empty(value.shape[0], height, width, value.shape[1]).permute(0, 3, 1, 2)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, offsets, weights = inputs
    ctx.save_for_backward(offsets, weights, *values)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    offsets, weights, *values = ctx.saved_tensors
    of_values, of_offsets, of_weights = ctx.needs_input_grad
    needed = [of_offsets, of_weights, *of_values]
    found = gather_backward(grad, values, offsets, weights, needed)
    offsets, weights, *values = (g if wanted else None for g, wanted in zip(found, needed))
    return values, offsets, weights


gather.register_autograd(_backward, setup_context=_setup_context)
