"""Descriptor: what one must know to run an exported network, as data that every exported file carries."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from acla_nas._version import __version__
from acla_nas.arch import Arch
from acla_nas.attention import ACLA
from acla_nas.data import load_image
from acla_nas.data.embedded import embedded_images
from acla_nas.data.pairs import image_to_tensor
from acla_nas.errors import AclaError
from acla_nas.evaluation import evaluating
from acla_nas.network import CrossLayerNetwork
from acla_nas.receptive_field import backbone_reach, largest_offsets, total_reach
from acla_nas.tasks.task import Task

_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
_SMALLEST = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


class Descriptor(BaseModel):
    """What an exported network takes and returns, what for, and which architecture it is.

    Attributes:
        task: name and options of what it was trained for, such as ``{"name": "denoising", "sigma": 30}``.
        scale: output pixels per input pixel, along each axis.
        in_channels: of the input (B, C, H, W): 3 is RGB, 1 grey or luma.
        out_channels: of the output.
        value_range: what black and white are in the input; the output has the same, and is not clipped.
        multiple_of: H and W of the input must be multiples of it.
        minimum_size: the smallest H and W.
        overlap: input pixels around a tile that decide its output: the receptive field, and the largest
            offsets of attention that were seen on the package's example images. None where every output
            pixel depends on the whole image.
        parameters: how many numbers were trained.
        training: how it was trained, as far as is known: images, patch size, epochs and so on.
        arch: the architecture: backbone, positions and attention.
        acla_nas: version that wrote this.

    Example:
        >>> import acla_nas
        >>> space = acla_nas.search_spaces.edsr(num_blocks=2, num_channels=8)
        >>> arch = space.arch({"insert/1": True, "insert/2": False, "keys": 16})
        >>> descriptor = describe(acla_nas.export(arch), arch, acla_nas.tasks.SuperResolution(2))
        >>> descriptor.scale, descriptor.multiple_of, descriptor.arch.positions
        (2, 1, (1,))
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["acla_nas.descriptor"] = "acla_nas.descriptor"
    format_version: Literal[1] = 1
    task: dict[str, Any] | None = None
    scale: int = Field(ge=1)
    in_channels: int = Field(ge=1)
    out_channels: int = Field(ge=1)
    value_range: tuple[float, float] = (0.0, 1.0)
    multiple_of: int = Field(1, ge=1)
    minimum_size: int = Field(1, ge=1)
    overlap: int | None = Field(None, ge=0)
    parameters: int = Field(ge=0)
    training: dict[str, Any] = Field(default_factory=dict)
    arch: Arch
    acla_nas: str = __version__

    @classmethod
    def parse(cls, text: str | bytes | None, path: str | Path) -> Descriptor:
        """Return the descriptor in the JSON text that a file carries.

        Raises:
            AclaError: there is none, or it is not one that this version reads.
        """
        if not text:
            raise AclaError(f"{path} carries no descriptor of acla_nas; give a file that export wrote")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "it"
            raise AclaError(
                f"the descriptor in {path} cannot be read by acla_nas {__version__}: {where} {first['msg']}; "
                "export it again"
            ) from None

    def valid_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the smallest size that the network takes and that is no smaller than the given one."""
        m = self.multiple_of
        smallest = -(-self.minimum_size // m) * m
        return max(smallest, -(-height // m) * m), max(smallest, -(-width // m) * m)


def describe(
    network: CrossLayerNetwork,
    arch: Arch,
    task: Task | None = None,
    *,
    training: dict[str, Any] | None = None,
) -> Descriptor:
    """Return the descriptor of a derived network; sizes, scale and overlap are measured on it.

    Args:
        network: the derived network.
        arch: the architecture that it was made from.
        task: what it was trained for.
        training: how it was trained.

    Raises:
        AclaError: the network takes inputs of one size only.
    """
    channels = arch.input_shape[0]
    with evaluating(network):
        multiple, scale, out_channels = _sizes(network, channels)
        minimum = next(
            size
            for size in (-(-n // multiple) * multiple for n in (*_SMALLEST, 64 * multiple))
            if _returns(network, (channels, size, size), scale) is not None
        )
        backbone = backbone_reach(network, channels, multiple)
        with largest_offsets(network) as offsets, torch.no_grad():
            if backbone is not None and any(isinstance(m, ACLA) for m in network.modules()):
                side = -(-96 // multiple) * multiple
                for path in embedded_images("test"):
                    image = image_to_tensor(load_image(path)[:side, :side])[None]
                    network(image[:, [0] * channels if channels != 3 else [0, 1, 2]])
        overlap = total_reach(network, backbone, offsets, arch.input_shape)
    return Descriptor(
        task=None if task is None else {"name": task.name, **_options(task)},
        scale=scale,
        in_channels=channels,
        out_channels=out_channels,
        multiple_of=multiple,
        minimum_size=minimum,
        overlap=overlap,
        parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
        training=training or {},
        arch=arch,
    )


def _options(task: Task) -> dict[str, Any]:
    """Return what a task was made with, as far as it keeps that under the same names."""
    names = inspect.signature(type(task)).parameters
    return {name: getattr(task, name) for name in names if hasattr(task, name)}


def _sizes(network: nn.Module, channels: int) -> tuple[int, int, int]:
    """Return what the input's sides must be multiples of, the scale, and the channels of the output."""
    for multiple in _MULTIPLES:
        # Odd multiples, different ones: what they are divisible by is no accident.
        height = next(n for n in range(multiple, 1000, 2 * multiple) if n >= 16)
        found = _returns(network, (channels, height, height + 2 * multiple))
        if found is not None:
            return multiple, *found
    raise AclaError(
        f"the network takes none of the input sizes that are multiples of {', '.join(map(str, _MULTIPLES))}, "
        "as networks of one size do: it cannot be exported for images of any size"
    )


def _returns(
    network: nn.Module, input_shape: Sequence[int], scale: int | None = None
) -> tuple[int, int] | None:
    """Return (scale, output channels) for an input (C, H, W); None where it fails or is cut or padded."""
    weight = next(network.parameters())
    try:
        with torch.no_grad():
            output = network(torch.zeros((1, *input_shape), dtype=weight.dtype, device=weight.device))
        _, channels, height, width = output.shape
    except Exception:  # whatever a network raises for a size that it does not take
        return None
    found = height // input_shape[1]
    fits = found >= 1 and (height, width) == (found * input_shape[1], found * input_shape[2])
    return (found, channels) if fits and scale in (None, found) else None
