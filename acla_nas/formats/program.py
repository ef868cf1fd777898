"""model.pt2: a PyTorch program, which runs without the code of the network: ``torch.export.load(path)``."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from acla_nas.errors import AclaError
from acla_nas.formats.descriptor import Descriptor
from acla_nas.network import Backbone

_ATTACHED = "descriptor.json"


def write(
    network: nn.Module, descriptor: Descriptor, path: Path, *, backbone: Backbone | None = None
) -> None:
    """Write a network as a program for batches of images of any size.

    Raises:
        AclaError: the network fixes its sizes when it is exported, as many with windows do.
    """
    example, sizes = example_of(descriptor)
    try:
        program = torch.export.export(network, (example,), dynamic_shapes=sizes, strict=False)
    except Exception as error:  # PyTorch raises many kinds
        raise fixes_its_sizes(error) from error
    torch.export.save(program, path, extra_files={_ATTACHED: descriptor.model_dump_json()})


def example_of(descriptor: Descriptor) -> tuple[Tensor, Any]:
    """Return images to trace a network with, and dynamic shapes: batch, height and width are free."""
    height, width = descriptor.valid_size(24, 32)
    example = torch.rand(2, descriptor.in_channels, height, width + descriptor.multiple_of)
    sizes = {0: Dim("batch"), 2: _side("height", descriptor), 3: _side("width", descriptor)}
    return example, ((sizes,),)


def fixes_its_sizes(error: BaseException) -> AclaError:
    """Return what to raise where a network cannot be traced for all sizes, given what PyTorch raises."""
    reason = str(error).split("\n")[0][:160]
    return AclaError(
        f"the network cannot be written for images of any size: {reason}; write it for one size: "
        "torch.export.save(torch.export.export(network, (image,)), path)"
    )


def _side(name: str, descriptor: Descriptor) -> object:
    m = descriptor.multiple_of
    return Dim(name) if m == 1 else m * Dim(f"{name}_over_{m}")


def read(path: Path, backbone: Backbone | None = None) -> tuple[nn.Module, Descriptor]:
    """Return what runs the program, and its descriptor.

    Raises:
        AclaError: no such program, or one that PyTorch would run code to load.
    """
    _refuse_code(path)
    attached = {_ATTACHED: ""}
    try:
        module = torch.export.load(path, extra_files=attached).module()
    except Exception as error:
        raise AclaError(f"cannot read {path}: {str(error).splitlines()[0]}; give a .pt2 file") from None
    return module, Descriptor.parse(attached[_ATTACHED], path)


def _refuse_code(path: Path) -> None:
    """Raise AclaError where a part of the file is a pickle that holds more than numbers.

    ``torch.export.load`` would run it. What :func:`write` makes has none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                part = archive.read(name)
                if name.endswith("_config.json") and b'"use_pickle": true' in part:
                    raise _holds_code(path, name)
                if name.endswith(".pt") or part.startswith(b"PK\x03\x04"):
                    torch.load(io.BytesIO(part), map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, OSError, RuntimeError, EOFError) as error:
        raise AclaError(f"cannot read {path}: {str(error).splitlines()[0]}; give a .pt2 file") from None
    except pickle.UnpicklingError:
        raise _holds_code(path, name) from None


def _holds_code(path: Path, name: str) -> AclaError:
    return AclaError(f"{path} holds code in {name}, and is not loaded: acla-nas export did not write it")
