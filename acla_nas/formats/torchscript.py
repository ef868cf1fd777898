"""model.ts: TorchScript, for what still runs it: ``torch.jit.load(path)``, C++ and mobile runtimes."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from acla_nas.errors import AclaError
from acla_nas.formats.descriptor import Descriptor
from acla_nas.network import Backbone

_ATTACHED = "descriptor.json"


def write(
    network: nn.Module, descriptor: Descriptor, path: Path, *, backbone: Backbone | None = None
) -> None:
    """Write a network as it runs on an example; sizes that its code takes from the image stay free."""
    height, width = descriptor.valid_size(24, 32)
    example = torch.rand(2, descriptor.in_channels, height, width)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what depends on sizes is checked by running it on others
        program = torch.jit.trace(network, (example,), check_trace=False)
        torch.jit.save(program, path, _extra_files={_ATTACHED: descriptor.model_dump_json()})


def read(path: Path, backbone: Backbone | None = None) -> tuple[nn.Module, Descriptor]:
    """Return the program and its descriptor."""
    attached = {_ATTACHED: ""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.jit.load(path, map_location="cpu", _extra_files=attached)
    except Exception as error:
        raise AclaError(
            f"cannot read {path}: {str(error).splitlines()[0]}; give a TorchScript file"
        ) from None
    return program, Descriptor.parse(attached[_ATTACHED], path)
