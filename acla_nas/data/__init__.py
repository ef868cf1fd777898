"""Images: found, read, resized, degraded, cut into patches; what needs PyTorch is imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from acla_nas.data.embedded import embedded_images
from acla_nas.data.folds import split_fold
from acla_nas.data.images import list_images, load_image, save_image
from acla_nas.data.imresize import imresize, to_uint8

if TYPE_CHECKING:
    from acla_nas.data.check import Check, check_images
    from acla_nas.data.image_sets import fetch
    from acla_nas.data.low_resolution import write_low_resolution
    from acla_nas.data.pairs import PairDataset, image_to_tensor, tensor_to_image
    from acla_nas.data.patches import PatchDataset

__all__ = [
    "Check",
    "PairDataset",
    "PatchDataset",
    "check_images",
    "embedded_images",
    "fetch",
    "image_to_tensor",
    "imresize",
    "list_images",
    "load_image",
    "save_image",
    "split_fold",
    "tensor_to_image",
    "to_uint8",
    "write_low_resolution",
]

_ON_FIRST_USE = {
    "PairDataset": "pairs",
    "PatchDataset": "patches",
    "image_to_tensor": "pairs",
    "tensor_to_image": "pairs",
    "Check": "check",
    "check_images": "check",
    "fetch": "image_sets",
    "write_low_resolution": "low_resolution",
}


def __getattr__(name: str) -> object:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_ON_FIRST_USE[name]}"), name)
