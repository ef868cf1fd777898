"""ACLA without gradients on a CPU: what a derived network runs, with everything fused that can be.

H and the G_l are linear, so one matrix H G_l per reference does for both; the offsets of all references come
from one product, and the keys of all references are summed in one bag. All keys of a query pixel are one row
in memory. Pixels are worked on in strips, so that what belongs to them stays in cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from acla_nas.attention.acla import ACLA

_STRIP_ENTRIES = 1 << 17  # index entries (4 corners x keys x references x pixels) worked on at a time


def is_fusable(query: Tensor, references: Iterable[Tensor]) -> bool:
    """Whether the fused forms of ACLA take these features: on a CPU, of one size and dtype, not traced."""
    return (
        query.device.type == "cpu"
        and query.dtype in (torch.float32, torch.float64)
        and min(query.shape[-2:]) >= 2
        and all(x.shape[-2:] == query.shape[-2:] and x.dtype == query.dtype for x in references)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.onnx.is_in_onnx_export()
    )


def infer(module: ACLA, query: Tensor, references: dict[str, Tensor]) -> Tensor:
    """Return the module's update H y, as its forward does in evaluation, up to rounding.

    Args:
        module: the attention.
        query: (B, C, H, W).
        references: name -> (B, C_l, H, W).

    Returns:
        (B, C, H, W), channels last in memory.
    """
    batch, channels, height, width = query.shape
    pixels, keys = height * width, module.num_keys
    count = len(references) * keys
    layers: list[Any] = [module.references[name] for name in references]
    offset = torch.stack([layer.offset.weight.view(keys, 2, -1) for layer in layers])  # R x K x 2 x C
    offset = offset.permute(2, 0, 1, 3).reshape(2 * count, channels).t()
    base = module.base.to(query.dtype).t().repeat(1, len(layers)).flatten()
    logit = torch.cat([layer.logit.weight.flatten(1) for layer in layers]).t()
    of_inputs = [layer.value.weight.flatten(1) for layer in layers]
    value = torch.mm(module.out.weight.flatten(1), torch.cat(of_inputs, 1)).split(
        [weight.shape[1] for weight in of_inputs], 1
    )
    groups = (1, count) if module.softmax == "joint" else (len(layers), keys)
    number = torch.arange(count, dtype=torch.int32)
    corner = torch.tensor([[0], [1], [width], [width + 1]], dtype=torch.int32)
    of_value = corner + number.div(keys, rounding_mode="floor").int() * pixels
    of_mask = corner + number * pixels
    column = torch.arange(width, dtype=query.dtype).repeat(height)[:, None]
    row = torch.arange(height, dtype=query.dtype).repeat_interleave(width)[:, None]

    out = query.new_empty(batch, pixels, channels)
    values = query.new_empty(len(layers), pixels, channels)
    masks = query.new_empty(count, pixels) if module.adaptive else None
    step = max(1, _STRIP_ENTRIES // (4 * count))
    for image in range(batch):
        for r, (layer, x) in enumerate(zip(layers, references.values())):
            x = x[image].flatten(1)
            torch.mm(x.t(), value[r].t(), out=values[r])
            if masks is not None:
                masks[r * keys : (r + 1) * keys] = torch.mm(
                    layer.mask_scale * layer.mask.weight.flatten(1), x
                )
        # What is read lies between the masks and 0: where all masks are open, so is every key.
        gated = masks is not None and not (module.gate_bias > 0 and bool(masks.min() > -module.gate_bias))
        rows = query[image].flatten(1).t()
        for first in range(0, pixels, step):
            strip = slice(first, min(first + step, pixels))
            scores = torch.mm(rows[strip], logit)
            shares = scores.view(len(scores), *groups).softmax(-1)  # Q x 1 x RK, or Q x R x K
            offsets = torch.addmm(base, rows[strip], offset).view(-1, 2, count)
            whole = offsets.floor()
            offsets -= whole
            left, x_weight = _line(whole[:, 0], offsets[:, 0], column[strip], width)
            top, y_weight = _line(whole[:, 1], offsets[:, 1], row[strip], height)
            pixel = top.mul_(width).add_(left).int()[:, None]
            weight = (y_weight[:, :, None] * x_weight[:, None]).flatten(1, 2)  # Q x 4 x RK
            if gated and masks is not None:
                sampled = masks.view(-1).index_select(0, (pixel + of_mask).view(-1)).view_as(weight)
                shares *= sampled.mul_(weight).sum(1).gt_(-module.gate_bias).view_as(shares)
            if module.renormalize:
                shares /= shares.sum(-1, keepdim=True) + 1e-6
            weight *= shares.flatten(1)[:, None]
            out[image, strip] = F.embedding_bag(
                (pixel + of_value).flatten(1),
                values.flatten(0, 1),
                mode="sum",
                per_sample_weights=weight.flatten(1),
            )
    return out.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def _line(whole: Tensor, fraction: Tensor, at: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the first of the two pixels that are read along an axis, and the weights of both.

    Both are inside the image always; what is read outside of it gets weight 0.

    Args:
        whole: (Q, N), offsets rounded down.
        fraction: (Q, N), what is left of them.
        at: (Q, 1), the query pixels.
        size: of the axis.

    Returns:
        (Q, N), and (Q, 2, N).
    """
    place = whole + at
    pixel = place.clamp(0, size - 2)
    beyond = place.sub_(pixel).add_(fraction)
    weights = torch.empty(whole.shape[0], 2, whole.shape[1], dtype=whole.dtype)
    weights[:, 0] = beyond
    torch.sub(beyond, 1, out=weights[:, 1])
    return pixel, weights.abs_().neg_().add_(1).clamp_(min=0)
