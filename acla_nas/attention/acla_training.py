"""ACLA with gradients on a CPU: all of a module as one function, with a backward pass of its own.

It keeps its arguments, y and the softmax's sums. Where the keys lie, their weights and all that
follows from them is worked out again in the backward pass, for one reference of an image at a time. A
reference that is gated off is looked at in the backward pass only, for the gradient of its gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from acla_nas.attention.shared_gradient import SharedGradient, shared_gradient
from acla_nas.attention.weighted_keys import differentiate, key_rows, sum_keys

if TYPE_CHECKING:
    from acla_nas.attention.acla import ACLA


def attend(
    module: ACLA,
    query: Tensor,
    references: Sequence[Tensor],
    layers: Sequence[Any],
    inside: Tensor,
    outside: Tensor,
    on: int,
) -> tuple[Tensor, Tensor]:
    """Return the module's update H y (B, C, H, W), and the share of the keys that are open, a scalar.

    Key gates are drawn without noise. Only for features on a CPU, of one size and dtype.

    Args:
        module: the attention.
        query: (B, C, H, W).
        references: R x (B, C_l, H, W); first those that are on.
        layers: what belongs to each of them.
        inside: (R, K), gates that the exponentials are multiplied by; 0 where a reference is off.
        outside: (R,), gates that they are multiplied by when divided by their sum; likewise.
        on: how many references are on.
    """
    projections = [layer.projection().flatten(1) for layer in layers]  # (C + masks) x C_l
    out = module.out.weight.flatten(1)
    result: tuple[Tensor, Tensor] = _Attend.apply(
        module, on, [shared_gradient(x) for x in references], query, key_rows(layers), inside, outside, out,
        *references, *projections,
    )  # fmt: skip
    return result


class _Attend(torch.autograd.Function):
    """See :func:`attend`."""

    @staticmethod
    def forward(
        ctx: Any, module: ACLA, on: int, shared: Sequence[SharedGradient | None], *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        query, rows, inside, outside, out, *rest = tensors
        references, projections = rest[:on], rest[len(inside) :][:on]
        result, y, log_sums, opened = sum_keys(
            module, query, references, projections, rows[:on], inside[:on], outside[:on], out
        )
        ctx.module, ctx.on, ctx.shared = module, on, shared
        ctx.save_for_backward(y, log_sums, *tensors)
        return result, query.new_tensor(opened / _num_keys(module, query, on))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_result: Tensor, of_share: Tensor) -> tuple[Tensor | None, ...]:
        module, on, (y, log_sums, *tensors) = ctx.module, ctx.on, ctx.saved_tensors
        of_open = float(of_share) / _num_keys(module, tensors[0], on)
        needed = ctx.needs_input_grad[3:]
        of = differentiate(module, on, tensors, needed, of_result, y, log_sums, of_open, ctx.shared)
        return (None, None, None, *of)


def _num_keys(module: ACLA, query: Tensor, references: int) -> int:
    batch, _, height, width = query.shape
    return batch * height * width * references * module.num_keys
