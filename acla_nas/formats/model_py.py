"""model.py: a derived network as one readable file of Python that needs PyTorch alone, with its weights."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import pprint
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from acla_nas._version import __version__
from acla_nas.errors import AclaError
from acla_nas.exporter import export
from acla_nas.formats.construction import expression, recording
from acla_nas.formats.derived import DerivedNetwork, load_state
from acla_nas.formats.descriptor import Descriptor
from acla_nas.formats.source import Source
from acla_nas.network import Backbone, CrossLayerNetwork

# Of the forms of an operator and of a module, the ones that are written with PyTorch's own alone.
_REPLACED = {
    ("acla_nas.ops.gather", "cross_layer_gather"): ("acla_nas.ops.gather_exported", "exported_gather"),
    ("acla_nas.attention.acla", "update"): ("acla_nas.attention.acla", "update_in_steps"),
}
_PLAIN = ("bchw", "bhwc")

_HEADER = '''"""{title}

Written by acla_nas {version}. It needs PyTorch, and nothing else::

    from {module} import load

    network = load()  # with the weights in {weights}; build() has fresh ones
    output = network(image)  # (B, {channels_in}, H, W) -> (B, {channels_out}, {scale}H, {scale}W)

DESCRIPTOR says what the network is and what it takes. The code is that of {origins}.
"""

from __future__ import annotations

'''
_FOOTER = '''

# -- this network ------------------------------------------------------------------------------------

DESCRIPTOR = {descriptor}


def build() -> {network}:
    """Return the network with fresh weights."""
    backbone = {backbone}
    attention = {attention}
    return {network}(backbone, {paths}, attention{channels_last})


def load(path: str | Path = Path(__file__).with_suffix(".pth")) -> {network}:
    """Return the network with the weights of a .pth file, to run it; for training call train()."""
    return {load_state}(build(), path)
'''


def write(
    network: CrossLayerNetwork, descriptor: Descriptor, path: Path, *, backbone: Backbone | None = None
) -> None:
    """Write a network as a file of Python, and its weights, as {"params": state dict}, beside it as .pth.

    Args:
        network: the derived network.
        descriptor: of it.
        path: such as model.py.
        backbone: what makes the backbone, where it is not that of a registered search space.

    Raises:
        AclaError: the backbone is given as a network, or its features are tokens, or its code needs more than
            PyTorch.
    """
    path.write_text(source(network, descriptor, path, backbone=backbone), encoding="utf-8")
    weights = {name: w.contiguous() for name, w in network.state_dict().items()}
    torch.save({"params": weights}, path.with_suffix(".pth"))


def source(
    network: CrossLayerNetwork, descriptor: Descriptor, path: Path, *, backbone: Backbone | None = None
) -> str:
    """Return the text of such a file."""
    for place in network.places.values():
        if place.layout not in _PLAIN or place.leaf:
            raise AclaError(
                f"{path.name} is for networks with feature maps ({', '.join(_PLAIN)}) at the positions, but "
                f"{place.path!r} returns {place.layout!r}: use one of the other formats"
            )
    with recording({type(module) for module in network.modules()}):
        rebuilt = export(descriptor.arch, backbone=backbone)
    collected = Source(_REPLACED, pruned=("acla_nas",))
    try:
        attention = {name: expression(m, collected.name_of) for name, m in rebuilt.attention.items()}
        footer = _FOOTER.format(
            descriptor=_as_python(descriptor),
            network=collected.name_of(DerivedNetwork),
            load_state=collected.name_of(load_state),
            backbone=expression(rebuilt.backbone, collected.name_of),
            attention=_one_a_line(attention),
            paths=repr({str(j): p for j, p in rebuilt.paths.items()}),
            channels_last=_channels_last(rebuilt),
        )
        body = collected.text()
    except AclaError as error:
        raise AclaError(f"{path.name} cannot be written: {error}; or use one of the other formats") from None
    arch = descriptor.arch
    name = str(arch.space.get("name") or arch.space.get("backbone"))
    places = ", ".join(rebuilt.paths.values())
    header = _HEADER.format(
        title=f"{name} with {arch.attention['name']} after {places}." if places else f"{name}.",
        version=__version__,
        module=path.stem,
        weights=path.with_suffix(".pth").name,
        channels_in=descriptor.in_channels,
        channels_out=descriptor.out_channels,
        scale="" if descriptor.scale == 1 else f"{descriptor.scale} ",
        origins=", ".join(_with_licence(package) for package in collected.packages()),
    )
    return header + body + footer


def read(path: Path, backbone: Backbone | None = None) -> tuple[nn.Module, Descriptor]:
    """Return the network and its descriptor; this runs the file."""
    spec = importlib.util.spec_from_file_location(f"acla_nas_exported_{abs(hash(path))}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise AclaError(f"cannot read {path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look it up there
    try:
        spec.loader.exec_module(module)
        network, descriptor = module.load(), json.dumps(module.DESCRIPTOR)
    except (Exception, SystemExit) as error:  # whatever a file's code raises
        reason = (str(error).splitlines() or [""])[0]
        raise AclaError(
            f"cannot run {path} ({type(error).__name__}: {reason}): give a file that acla-nas export wrote, "
            "with its .pth file beside it"
        ) from error
    return network, Descriptor.parse(descriptor, path)


def _as_python(descriptor: Descriptor) -> str:
    data: dict[str, Any] = descriptor.model_dump(mode="json")
    return pprint.pformat(data, width=100, sort_dicts=False)


def _one_a_line(items: dict[str, str]) -> str:
    if not items:
        return "{}"
    lines = "".join(f"        {name!r}: {text},\n" for name, text in items.items())
    return f"{{\n{lines}    }}"


def _channels_last(network: CrossLayerNetwork) -> str:
    last = tuple(str(j) for j, place in network.places.items() if place.layout == "bhwc")
    return f", channels_last={last!r}" if last else ""


def _with_licence(package: str) -> str:
    """Return the name of a package, with its licence where its metadata names one."""
    for name in importlib.metadata.packages_distributions().get(package, []):
        metadata: Any = importlib.metadata.metadata(name)
        licence = metadata.get("License-Expression") or metadata.get("License")
        if licence and len(licence) < 40:
            return f"{package} ({licence})"
    return package
