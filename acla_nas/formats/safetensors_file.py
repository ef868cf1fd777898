"""model.safetensors: the weights, and the descriptor from which acla_nas builds the network for them."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from acla_nas.errors import AclaError
from acla_nas.exporter import export, save_weights
from acla_nas.formats.descriptor import Descriptor
from acla_nas.memory_format import to_channels_last
from acla_nas.network import Backbone

_KEY = "acla_nas.descriptor"


def write(
    network: nn.Module, descriptor: Descriptor, path: Path, *, backbone: Backbone | None = None
) -> None:
    """Write the weights, with the descriptor in the file's metadata."""
    save_weights(network.state_dict(), path, {_KEY: descriptor.model_dump_json(), "format": "pt"})


def read(path: Path, backbone: Backbone | None = None) -> tuple[nn.Module, Descriptor]:
    """Return the network, built as its architecture says and laid out for a CPU, and its descriptor.

    Raises:
        AclaError: the file cannot be read, or the architecture names no registered search space and no
            backbone is given.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise AclaError(f"cannot read {path}: {error}; give a .safetensors file that export wrote") from None
    descriptor = Descriptor.parse(metadata.get(_KEY), path)
    network = export(descriptor.arch, backbone=backbone, weights=path).eval()
    to_channels_last(network, descriptor.arch.input_shape)
    return network, descriptor
