"""Images: found, read, resized, degraded, cut into patches; what needs PyTorch is imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from acla_nas.data.embedded import embedded_images
from acla_nas.data.folds import split_fold
from acla_nas.data.images import list_images, load_image, save_image
from acla_nas.data.imresize import imresize, to_uint8

if TYPE_CHECKING:
    from acla_nas.data.pairs import PairDataset, image_to_tensor, tensor_to_image
    from acla_nas.data.patches import PatchDataset

__all__ = [
    "PairDataset",
    "PatchDataset",
    "embedded_images",
    "image_to_tensor",
    "imresize",
    "list_images",
    "load_image",
    "save_image",
    "split_fold",
    "tensor_to_image",
    "to_uint8",
]

_NEEDS_TORCH = {
    "PairDataset": "pairs",
    "PatchDataset": "patches",
    "image_to_tensor": "pairs",
    "tensor_to_image": "pairs",
}


def __getattr__(name: str) -> object:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_NEEDS_TORCH[name]}"), name)
