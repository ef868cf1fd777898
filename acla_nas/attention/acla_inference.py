"""ACLA without gradients on a CPU: what a derived network runs, with everything fused that can be.

H and the G_l are linear, so one matrix H G_l per reference does for both, and the offsets of all references
come from one product. Queries are worked on in strips of rows, so that what belongs to them stays in cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from acla_nas.attention.acla import ACLA

_STRIP_KEYS = 1 << 18  # keys of all references worked on at a time


def infer(module: ACLA, query: Tensor, references: dict[str, Tensor]) -> Tensor:
    """Return the module's update H y, as its forward does in evaluation, up to rounding.

    Args:
        module: the attention.
        query: (B, C, H, W).
        references: name -> (B, C_l, H, W).

    Returns:
        (B, C, H, W), channels last in memory.
    """
    from acla_nas.attention.weighted_keys import WeightedKeys, key_rows, project
    from acla_nas.ops.scratch import scratch

    batch, channels, height, width = query.shape
    layers: list[Any] = [module.references[name] for name in references]
    scores = key_rows(layers)
    values = (
        torch.cat([layer.value.weight for layer in layers], 1).flatten(1).t()
    )  # of all references: C_l x C
    matrix = torch.mm(values, module.out.weight.flatten(1).t())
    masks = 0 if layers[0].mask is None else layers[0].mask.out_channels
    if masks:
        of_masks = torch.cat([layer.mask.weight for layer in layers], 1).flatten(1).t()
        matrix = torch.cat((matrix, layers[0].mask_scale * of_masks), 1)
    matrices = matrix.split([reference.shape[1] for reference in references.values()])
    out = query.new_empty(batch, height, width, channels)
    tables = scratch("tables of references", query.dtype, len(layers), 1, height * width, channels + masks)
    step = max(1, _STRIP_KEYS // (module.num_keys * len(layers) * width))
    for image in range(batch):
        least = 0.0  # what is read lies between the masks and 0: where all masks are open, so is every key
        for matrix, table, reference in zip(matrices, tables, references.values()):
            least = min(least, project(reference[image : image + 1].flatten(2), matrix, table, masks))
        closed = least + module.gate_bias <= 0
        for top in range(0, height, step):
            strip = query[image : image + 1, :, top : top + step]
            keys = WeightedKeys(
                module, strip, scores, tables, masks if closed else 0, skipped=top, height=height
            )
            keys.sum(out[image, top : top + step].view(-1, channels))
    return out.permute(0, 3, 1, 2)
