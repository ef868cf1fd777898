"""model.pt2: a PyTorch program, which runs without the code of the network: ``torch.export.load(path)``."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

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
    torch.export.save(
        dynamic_program(network, descriptor), path, extra_files={_ATTACHED: descriptor.model_dump_json()}
    )


def dynamic_program(network: nn.Module, descriptor: Descriptor) -> ExportedProgram:
    """Return the program of a network for batches of images of any size.

    Raises:
        AclaError: the network fixes its sizes when it is exported.
    """
    height, width = descriptor.valid_size(24, 32)
    example = torch.rand(2, descriptor.in_channels, height, width + descriptor.multiple_of)
    sizes = {0: Dim("batch"), 2: _side("height", descriptor), 3: _side("width", descriptor)}
    try:
        return torch.export.export(network, (example,), dynamic_shapes=((sizes,),))
    except Exception as error:  # PyTorch raises many kinds
        reason = str(error).split("\n")[0][:160]
        raise AclaError(
            f"the network cannot be written for images of any size: {reason}; write it for one size: "
            "torch.export.save(torch.export.export(network, (image,)), path)"
        ) from error


def _side(name: str, descriptor: Descriptor) -> object:
    m = descriptor.multiple_of
    return Dim(name) if m == 1 else m * Dim(f"{name}_over_{m}")


def read(path: Path, backbone: Backbone | None = None) -> tuple[nn.Module, Descriptor]:
    """Return what runs the program, and its descriptor."""
    attached = {_ATTACHED: ""}
    try:
        module = torch.export.load(path, extra_files=attached).module()
    except Exception as error:
        raise AclaError(f"cannot read {path}: {str(error).splitlines()[0]}; give a .pt2 file") from None
    return module, Descriptor.parse(attached[_ATTACHED], path)
