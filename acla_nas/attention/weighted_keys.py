"""The weighted sums of what is read at the keys of query pixels, projected, and their gradients, on a CPU.

Tensors are given to the loops of :mod:`.acla_forward` and :mod:`.acla_backward`, and taken from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from acla_nas.attention import acla_backward, acla_forward
from acla_nas.attention.acla_blocks import BACKWARD, FORWARD, Queries, size_of_plane, strips_of
from acla_nas.attention.acla_keys import Softmax
from acla_nas.attention.shared_gradient import SharedGradient
from acla_nas.ops.addresses import addresses
from acla_nas.ops.jit import share_threads
from acla_nas.ops.kernels import lay_out
from acla_nas.ops.scratch import scratch

if TYPE_CHECKING:
    from acla_nas.attention.acla import ACLA

_TASKS = 16  # of the backward pass, at least: images, and references where there are fewer images
SMALL = 1e-6  # part of all keys in the sum that renormalised weights are divided by


def key_rows(layers: Sequence[Any]) -> Tensor:
    """Return what projects a query to the offsets and the logits of its keys: R x (dx, dy, a) x K x C."""
    offsets = torch.stack([layer.offset.weight for layer in layers]).flatten(2).unflatten(1, (-1, 2))
    logits = torch.stack([layer.logit.weight for layer in layers]).flatten(2)
    return torch.cat((offsets.transpose(1, 2), logits.unsqueeze(1)), 1)


def softmax_of(module: ACLA, masks: int, number: Any) -> Softmax:
    """Return how a module's keys are weighed, in numbers of the type that loops work with."""
    share = SMALL if module.renormalize else 1.0
    of_gates = (number(module.gate_bias), number(module.gate_temperature))
    return Softmax(module.softmax == "joint", number(share), masks, *of_gates)


def sum_keys(
    module: ACLA,
    query: Tensor,
    references: Sequence[Tensor],
    projections: Sequence[Tensor],
    rows: Tensor,
    inside: Tensor,
    outside: Tensor,
    out: Tensor,
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return H y, y of Eq. 6, the logarithms of a joint softmax's sums, and how many keys are open.

    Args:
        module: the attention.
        query: (B, C, H, W).
        references: R x (B, C_l, H, W).
        projections: R x (C + M, C_l), G and M below it.
        rows: what projects the query to the keys, see :func:`key_rows`.
        inside, outside: gates, (R, K) within the softmax and (R,) outside of it.
        out: H, (C, C).

    Returns:
        (B, C, H, W), in the memory format of the query; (B H W, C); (B H W,); and a number.

    Raises:
        AclaError: features, or weights that were replaced, of another size or dtype than the module's.
    """
    (batch, _, height, width), dtype, channels = query.shape, query.dtype, module.channels
    count, masks = len(references), len(projections[0]) - channels
    references, projections = ([t.contiguous() for t in of] for of in (references, projections))
    places = _places(references, projections, batch * height * width)
    query, is_turned = as_it_lies(query)
    sizes = [batch * height * width * channels, channels**2, count * 3 * module.num_keys * channels]
    at = addresses([query, out, rows], sizes, dtype)[0]
    queries, base = Queries(batch, height, width, FORWARD), module.base.to(dtype)
    number: Any = base.numpy().dtype.type
    y = query.new_empty(batch * height * width, channels)
    log_sums = query.new_empty(len(y))
    result = query.new_empty(batch, height, width, channels) if is_turned else query.new_empty(query.shape)
    share_threads()
    arrays = (
        rows.mT, base, inside, outside, out,
        scratch("tables", dtype, count, size_of_plane(queries), channels),
        scratch("masks", dtype, count, masks, size_of_plane(queries)),
        y, log_sums, result.view(-1),
    )  # fmt: skip
    opened = acla_forward.sum_keys(
        queries, strips_of(queries), softmax_of(module, masks, number), places, at, is_turned,
        *(t.contiguous().numpy() for t in arrays),
    )  # fmt: skip
    return result.permute(0, 3, 1, 2) if is_turned else result, y, log_sums, opened


def differentiate(
    module: ACLA,
    on: int,
    tensors: Sequence[Tensor],
    needed: Sequence[bool],
    of_result: Tensor,
    y: Tensor,
    log_sums: Tensor,
    of_open: float,
    shared: Sequence[SharedGradient | None],
) -> list[Tensor | None]:
    """Return the gradients of all that H y is made of.

    Args:
        module: the attention.
        on: how many references are on, from the first.
        tensors: query, rows, inside, outside, out, R references and R projections, see :func:`sum_keys`.
        needed: of which of them the gradient is wanted.
        of_result: dL/d(H y), (B, C, H, W).
        y, log_sums: as :func:`sum_keys` returns them.
        of_open: gradient of a key's gate, beside that which it has through y.
        shared: of each reference, what its gradient is added to instead of being returned, if there is such.
    """
    query, rows, inside, outside, out, *rest = tensors
    (batch, channels, height, width), dtype = query.shape, query.dtype
    pixels, every = height * width, len(inside)
    count = every if needed[2] or needed[3] else on
    references, projections = ([t.contiguous() for t in of[:count]] for of in (rest[:every], rest[every:]))
    are_needed, are_weights_needed = needed[5 : 5 + every], needed[5 + every :]
    masks, chunks = len(projections[0]) - channels, min(batch, _TASKS)
    parts = min(count, -(-_TASKS // chunks))
    # Of references that are on, each image is written in its turn.
    of_references: list[Tensor | None] = [None] * every
    places = _places(references, projections, batch * pixels)
    for r, (x, gradient) in enumerate(zip(rest, shared)):
        if not are_needed[r]:
            continue
        if gradient is None:
            of = of_references[r] = (torch.empty if r < on else torch.zeros)(x.shape, dtype=dtype)
        elif r < on:
            of, places[r, 4] = gradient.to_add_to(x)
        if r < on:
            places[r, 3] = of.data_ptr()
    of_scores = rows.new_zeros(chunks, count, 3 * module.num_keys * needed[1], channels)
    most = max(x.shape[1] for x in references)
    of_projections = query.new_zeros(chunks, count, most, len(projections[0]) * any(are_weights_needed))
    of_inside, of_outside = inside.new_zeros(chunks, *inside[:count].shape), outside.new_zeros(chunks, count)
    of_pixels = scratch("gradient of the query", dtype, parts, batch, pixels, channels)
    threads = share_threads()
    grad, totals = scratch("gradient of y", dtype, *y.shape), query.new_empty(len(y))
    of_out = out.new_zeros(_TASKS, channels * needed[4], channels)
    of_result, is_turned = as_it_lies(of_result)
    acla_backward.differentiate_out(
        batch, of_result.data_ptr(), is_turned,
        *(t.contiguous().numpy() for t in (out, y, grad, totals, of_out)),
    )  # fmt: skip
    queries = Queries(batch, height, width, BACKWARD)
    size = size_of_plane(queries)
    tables, of_tables = scratch("tables", dtype, 2, threads, size, channels)
    mask_values, of_masks = scratch("masks", dtype, 2, threads, masks, size)
    base = module.base.to(dtype)
    number: Any = base.numpy().dtype.type
    arrays = (
        _rows(query), rows, base, inside, outside, grad, totals, log_sums, tables, mask_values,
        of_tables, of_masks, of_pixels.flatten(1, 2), of_scores, of_projections, of_inside, of_outside,
    )  # fmt: skip
    acla_backward.differentiate(
        threads, queries, strips_of(queries), softmax_of(module, masks, number), number(of_open), on,
        places,
        *(t.contiguous().numpy() for t in arrays),
    )  # fmt: skip
    of_query = query.new_empty(query.shape)
    acla_backward.turn_to_features(of_pixels.numpy(), of_query.flatten(2).numpy())
    of_each = of_projections.sum(0).mT.contiguous()
    of_weights = [
        of_each[r, :, : rest[r].shape[1]] if need and r < on else None
        for r, need in enumerate(are_weights_needed)
    ]
    of_rows, of_gates, of_outer = (
        _with_others(of.sum(0), every) for of in (of_scores, of_inside, of_outside)
    )
    of_keys = of_rows.view_as(rows) if needed[1] else None
    of_h = of_out.sum(0) if needed[4] else None
    return [of_query, of_keys, of_gates, of_outer, of_h, *of_references, *of_weights]


def _with_others(gradients: Tensor, every: int) -> Tensor:
    """Return the gradients of the first references with zeros for the others: (every, ..)."""
    return torch.cat((gradients, gradients.new_zeros(every - len(gradients), *gradients.shape[1:])))


def _places(references: Sequence[Tensor], projections: Sequence[Tensor], pixels: int) -> Any:
    """Return where the arrays of references of so many pixels are, but for gradients.

    Returns:
        (R, 5), see :class:`acla_nas.attention.acla_blocks.Reference`.
    """
    dtype, channels = references[0].dtype, [x.shape[1] for x in references]
    places = np.zeros((len(references), 5), np.int64)
    places[:, 0] = channels
    places[:, 1] = addresses(references, [c * pixels for c in channels], dtype)
    places[:, 2] = addresses(projections, [len(projections[0]) * c for c in channels], dtype)
    return places


def as_it_lies(features: Tensor) -> tuple[Tensor, bool]:
    """Return (B, C, H, W) in a memory format that loops read, and whether it is (B, H, W, C) in memory."""
    if features.is_contiguous():
        return features, False
    is_turned = features.is_contiguous(memory_format=torch.channels_last)
    return features if is_turned else features.contiguous(), is_turned


def _rows(query: Tensor) -> Tensor:
    """Return (B, C, H, W) as (B H W, C): where it has to be written, in scratch memory."""
    batch, channels, height, width = query.shape
    rows = query.permute(0, 2, 3, 1)
    if not rows.is_contiguous():
        rows = scratch("query", query.dtype, batch, height * width, channels)
        lay_out(query.flatten(2).numpy(), 0, rows.numpy())
    return rows.view(-1, channels)
