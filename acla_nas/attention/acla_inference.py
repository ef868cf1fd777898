"""ACLA without gradients on a CPU: what a derived network runs, with everything fused that can be.

All of a module is one call of a compiled function, which finds features and weights where they lie: to
prepare them by calls of PyTorch takes as long as a good part of the work. Nothing is kept between calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from acla_nas.attention import acla_forward
from acla_nas.attention.acla_blocks import FORWARD, Queries, size_of_plane, strips_of
from acla_nas.attention.open_keys import are_open_keys_counted, count_open_keys
from acla_nas.attention.weighted_keys import as_it_lies, softmax_of
from acla_nas.ops.addresses import addresses
from acla_nas.ops.jit import share_threads
from acla_nas.ops.scratch import scratch

if TYPE_CHECKING:
    from acla_nas.attention.acla import ACLA


def infer(module: ACLA, query: Tensor, references: Mapping[str, Tensor], *, is_added: bool = False) -> Tensor:
    """Return the module's update H y, as its forward does in evaluation, up to rounding.

    Args:
        module: the attention.
        query: (B, C, H, W).
        references: name -> (B, C_l, H, W).
        is_added: return x + H y, as its ``insert`` does.

    Returns:
        (B, C, H, W), in the memory format of the query.

    Raises:
        AclaError: features, or weights that were replaced, of another size or dtype than the module's.
    """
    (batch, _, height, width), dtype = query.shape, query.dtype
    channels, keys = module.channels, module.num_keys
    masks = 0 if not module.adaptive else 1 if module.shared_mask else keys
    features, is_turned = zip(*(as_it_lies(feature) for feature in (query, *references.values())))
    weights: list[Tensor] = []
    of: list[int] = [channels]
    sizes: list[int] = []
    for name in references:
        layer: Any = module.references[name]
        value = layer.value.weight
        mask = layer.mask.weight if masks else value[:0]
        of.append(value.shape[1])
        weights += (layer.offset.weight, layer.logit.weight, mask, value)
        sizes += (2 * keys * channels, keys * channels, masks * of[-1], channels * of[-1])
    weights = [weight.contiguous() for weight in (*weights, module.out.weight)]
    starts = addresses(weights, [*sizes, channels**2], dtype)[:-1].reshape(-1, 4)
    of_features = addresses(features, [batch * size * height * width for size in of], dtype)
    shape = (batch, height, width, channels) if is_turned[0] else (batch, channels, height, width)
    out = query.new_empty(shape)
    queries = Queries(batch, height, width, FORWARD)
    size = size_of_plane(queries)
    tables = scratch("tables", dtype, len(references), size, channels)
    of_masks = scratch("masks", dtype, len(references), masks, size)
    base = module.base.to(dtype).numpy()
    number = base.dtype.type
    share_threads()
    opened = acla_forward.infer(
        queries, strips_of(queries), softmax_of(module, masks, number),
        np.array(of), of_features, np.array(is_turned), starts,
        weights[-1].detach().flatten(1).numpy(), number(layer.mask_scale), base, is_added,
        tables.numpy(), of_masks.numpy(), out.view(-1).numpy(),
    )  # fmt: skip
    if module.adaptive and are_open_keys_counted():
        count_open_keys(query.new_tensor(opened / (batch * len(references) * keys * height * width)))
    return out.permute(0, 3, 1, 2) if is_turned[0] else out
