"""cross_layer_gather: for every pixel, the weighted sum of values sampled in several feature maps.

Bilinear sampling is linear, so the K sampled values of a reference need never exist: each output pixel
is a weighted sum of 4K rows of the value map. The sums run over one strip of rows, or a few small images,
at a time, so that what is worked on stays near the cores and does not grow with the image.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from acla_nas.errors import AclaError
from acla_nas.ops.gather_exported import exported_gather
from acla_nas.ops.table import Keys, Table

_STRIP_KEYS = 1 << 16  # keys worked on at a time, for each thread
_LEAST_ROWS = 24  # of a strip where several references share it: each reads the lines around it anew


def cross_layer_gather(values: Sequence[Tensor], offsets: Tensor, weights: Tensor) -> Tensor:
    """Sum ``weights * values`` read at ``pixel + offset`` over all references and keys (Eq. 5, 6).

    ``out[b, :, p] = sum_r sum_k weights[b, r, k, p] * values[r][b, :, p + offsets[b, r, k, :, p]]``,
    with bilinear reading and 0 outside the image. A value map of another resolution than the query's is
    read at the same place in normalised coordinates.

    Args:
        values: R tensors (B, C, H_r, W_r): float32, float64, bfloat16 or float16.
        offsets: (B, R, K, 2, H, W): (dx, dy) in pixels of the query's grid. Coordinates are computed in
            float32, in float64 where offsets are float64.
        weights: (B, R, K, H, W).

    Returns:
        (B, C, H, W), of the dtype of ``values``. Gradients flow to all three arguments.

    Raises:
        AclaError: the shapes do not fit together.

    Example:
        >>> import torch
        >>> value = torch.arange(4.0).view(1, 1, 1, 4)
        >>> right = torch.zeros(1, 1, 1, 2, 1, 4)
        >>> right[:, :, :, 0] = 1.0  # one pixel to the right
        >>> cross_layer_gather([value], right, torch.ones(1, 1, 1, 1, 4)).flatten()
        tensor([1., 2., 3., 0.])
    """
    if torch.compiler.is_exporting() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        return exported_gather(values, offsets, weights)
    _check_shapes(values, offsets, weights)
    if torch.compiler.is_compiling():
        from acla_nas.ops.compiled import gather

        return gather(list(values), offsets, weights)
    # A dispatch mode sees PyTorch's own operations alone, to count them or so.
    form = _Plain if is_in_torch_dispatch_mode() else _form(values, offsets, weights)
    result: Tensor = _Gather.apply(form, offsets, weights, *values)
    return result


def _check_shapes(values: Sequence[Tensor], offsets: Tensor, weights: Tensor) -> None:
    if offsets.dim() != 6 or offsets.shape[3] != 2:
        raise AclaError(f"offsets must be (B, R, K, 2, H, W), not {tuple(offsets.shape)}")
    batch, references, keys, _, height, width = offsets.shape
    if weights.shape != (batch, references, keys, height, width):
        raise AclaError(
            f"weights must be (B, R, K, H, W) = {(batch, references, keys, height, width)} to fit the "
            f"offsets, not {tuple(weights.shape)}"
        )
    if len(values) != references:
        raise AclaError(f"offsets are for {references} references, but {len(values)} value maps were given")
    for value in values:
        if value.dim() != 4 or value.shape[:2] != (batch, values[0].shape[1]):
            raise AclaError(
                f"values must be R tensors (B, C, H_r, W_r) with B = {batch} and one C, "
                f"not {[tuple(v.shape) for v in values]}"
            )


class _Gather(torch.autograd.Function):
    """The operator with a backward of its own, which saves nothing but the arguments."""

    @staticmethod
    def forward(ctx: Any, form: Any, offsets: Tensor, weights: Tensor, *values: Tensor) -> Tensor:
        ctx.form = form
        ctx.save_for_backward(offsets, weights, *values)
        result: Tensor = form.forward(values, offsets, weights)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        offsets, weights, *values = ctx.saved_tensors
        needed = ctx.needs_input_grad[1:]
        return (None, *ctx.form.backward(grad, values, offsets, weights, needed))


def _form(values: Sequence[Tensor], offsets: Tensor, weights: Tensor) -> Any:
    """Return what computes the sum and its gradients: Triton's kernels on a GPU, where they are to be had,
    Numba's loops on a CPU, and plain PyTorch elsewhere."""
    if _has_triton(offsets.device):
        from acla_nas.ops import gather_triton

        if gather_triton.is_supported(values, offsets, weights):
            return gather_triton
    if offsets.device.type == "cpu":
        from acla_nas.ops import gather_numba

        if gather_numba.is_supported(values, offsets, weights):
            return gather_numba
    return _Plain


@functools.cache
def _has_triton(device: torch.device) -> bool:
    return (
        device.type == "cuda"
        and importlib.util.find_spec("triton") is not None
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


class _Plain:
    """The fast form in plain PyTorch, for every device."""

    @staticmethod
    def forward(values: Sequence[Tensor], offsets: Tensor, weights: Tensor) -> Tensor:
        batch, _, _, _, height, width = offsets.shape
        out = values[0].new_empty(batch, height, width, values[0].shape[1])
        for images, group, all_rows in _parts(offsets, values):
            tables = [Table(v[images], out.dtype) for v in values[group]]
            for rows in all_rows:
                keys, weight = _read(offsets[images, group], weights[images, group], rows, tables)
                strip = out[images, rows]
                sums = keys.sum(weight).view(strip.shape)
                if group.start == 0:
                    strip.copy_(sums)
                else:
                    strip += sums
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(
        grad: Tensor, values: Sequence[Tensor], offsets: Tensor, weights: Tensor, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """Return the gradients of offsets, weights and values, in this order; None where not needed."""
        needs_offsets, needs_weights, *needs_values = needed
        batch, channels = values[0].shape[:2]
        compute = torch.promote_types(values[0].dtype, torch.float32)
        grad = grad.permute(0, 2, 3, 1)  # B x H x W x C
        grad_offsets = torch.empty_like(offsets) if needs_offsets else None
        grad_weights = torch.empty_like(weights) if needs_weights else None
        grad_values = [
            v.new_zeros(batch, *v.shape[2:], channels) if needed else None
            for v, needed in zip(values, needs_values)
        ]
        for images, group, all_rows in _parts(offsets, values):
            tables = [Table(v[images], compute) for v in values[group]]
            for rows in all_rows:
                keys, weight = _read(offsets[images, group], weights[images, group], rows, tables)
                strip_grad = grad[images, rows].to(compute).reshape(-1, channels).contiguous()
                if any(needs_values[group]):
                    into = [g if g is None else g[images] for g in grad_values[group]]
                    keys.add_transposed(into, strip_grad, weight)
                if grad_offsets is None and grad_weights is None:
                    continue
                of_offsets, of_weights = keys.gradients(keys.dots(strip_grad), weight)
                if grad_weights is not None:
                    _keys_last(grad_weights[images, group, :, rows]).copy_(of_weights)
                if grad_offsets is not None:
                    _keys_last(grad_offsets[images, group, :, :, rows]).copy_(of_offsets)
        of_values = (g if g is None else g.permute(0, 3, 1, 2) for g in grad_values)
        return [grad_offsets, grad_weights, *of_values]


def _parts(offsets: Tensor, values: Sequence[Tensor]) -> Iterator[tuple[slice, slice, list[slice]]]:
    """Yield images, references of one size, and strips of rows that are worked on together."""
    batch, references, keys, _, height, width = offsets.shape
    at_once = _STRIP_KEYS * torch.get_num_threads()
    most = max(1, at_once // (keys * width * min(height, _LEAST_ROWS)))
    groups, first = [], 0
    for r in range(1, references + 1):
        if r == references or r - first == most or values[r].shape != values[first].shape:
            groups.append(slice(first, r))
            first = r
    in_row = min(most, references) * keys * width
    images, rows = max(1, at_once // (in_row * height)), max(1, at_once // in_row)
    all_rows = [slice(top, min(top + rows, height)) for top in range(0, height, rows)]
    for image in range(0, batch, images):
        for group in groups:
            yield slice(image, min(image + images, batch)), group, all_rows


def _read(offsets: Tensor, weights: Tensor, rows: slice, tables: Sequence[Table]) -> tuple[Keys, Tensor]:
    """Return the keys of a strip in the tables, and their weights (R, b, rows, W, K)."""
    dtype = torch.promote_types(offsets.dtype, torch.float32)
    places = _load(offsets[..., rows, :], dtype)
    return Keys(places, rows.start, offsets.shape[-2], tables), _load(weights[..., rows, :], dtype)


def _keys_last(x: Tensor) -> Tensor:
    """(b, R, K, [2,] H, W) -> ([2,] R, b, H, W, K): the keys of a query lie together, as in bags."""
    return x.permute(*range(3, x.dim() - 2), 1, 0, -2, -1, 2)


def _load(x: Tensor, dtype: torch.dtype) -> Tensor:
    x = _keys_last(x)
    return x.new_empty(x.shape, dtype=dtype).copy_(x)
