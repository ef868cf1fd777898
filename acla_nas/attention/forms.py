"""What ACLA's forms agree on: which features the fused ones take, and where they all cut off exponents."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from acla_nas.ops.gather import _has_triton

HIGHEST = 10.0
"""Where forms cut off exponents of a softmax, beside the largest of what is on: only what is gated off can
have a higher one. Beside a sum that has but a share of all keys it is higher, by minus its logarithm."""

_MOST = 1 << 30  # numbers of a map, so that places in it fit into 32 bits


def is_fusable(query: Tensor, references: Iterable[Tensor]) -> bool:
    """Whether a fused form takes these features: of one size and dtype, where there is one, not traced."""
    references = list(references)
    return (
        query.numel() > 0
        and _takes(query)
        and all(x.shape[-2:] == query.shape[-2:] and x.dtype == query.dtype for x in references)
        and (query.device.type == "cpu" or len({x.shape[1] for x in references}) <= 1)
        and not is_in_torch_dispatch_mode()  # which sees PyTorch's own operations alone, to count them or so
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.onnx.is_in_onnx_export()
    )


def _takes(query: Tensor) -> bool:
    if query.device.type == "cpu":
        return query.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    return (
        _has_triton(query.device)
        and query.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and 2 * query.numel() < _MOST
        and not torch.cuda.is_current_stream_capturing()  # the form asks the GPU whether any key is far
    )
