"""A derived network as files, each loaded back and compared with the network before it counts as written.

================  ==================  ===============================================================
format            file                needs, to run
================  ==================  ===============================================================
``safetensors``   model.safetensors   acla_nas; the weights alone: anything that reads safetensors
``pt2``           model.pt2           PyTorch
``torchscript``   model.ts            PyTorch, or its C++ library
``python``        model.py            PyTorch; the weights are in model.pth; to train it elsewhere
``onnx``          model.onnx          onnxruntime, or another runtime
================  ==================  ===============================================================

Every file carries a :class:`Descriptor`, which is in descriptor.json too.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

from acla_nas.arch import Arch
from acla_nas.attention import ACLA, Attention, Combined, SqueezeExcitation
from acla_nas.errors import AclaError, AclaWarning, unknown_name
from acla_nas.evaluation import evaluating
from acla_nas.formats import model_py, onnx_file, program, safetensors_file, torchscript
from acla_nas.formats.descriptor import Descriptor, describe
from acla_nas.memory_format import to_channels_last
from acla_nas.network import Backbone, CrossLayerNetwork
from acla_nas.tasks.task import Task

__all__ = ["FORMATS", "Descriptor", "Saved", "describe", "load", "save"]

FORMATS: dict[str, tuple[str, ModuleType]] = {
    "safetensors": ("model.safetensors", safetensors_file),
    "pt2": ("model.pt2", program),
    "torchscript": ("model.ts", torchscript),
    "python": ("model.py", model_py),
    "onnx": ("model.onnx", onnx_file),
}
"""Format -> name of its file, and the module that writes and reads it."""

TOLERANCE = 1e-5  # of values whose range is 0 .. 1
_SIZES = ((48, 48), (64, 40), (127, 93))
_SMALL_SIZES = ((24, 24), (32, 20), (63, 46))  # where time and memory grow with the square of the pixels
_DRAWS = 3
_MOST_UNDECIDED = 0.01


class Saved(NamedTuple):
    """A file that was written, and how it compares with the network.

    Attributes:
        path: of the file.
        difference: the largest between its outputs and the network's, of values whose range is 0 .. 1.
        undecided: share of the pixels that are left out of it, see :func:`save`.
    """

    path: Path
    difference: float
    undecided: float


def save(
    network: nn.Module,
    folder: str | Path,
    arch: Arch,
    task: Task | None = None,
    *,
    formats: Sequence[str] | None = None,
    backbone: Backbone | None = None,
    training: dict[str, Any] | None = None,
) -> dict[str, Saved]:
    """Write a derived network in several formats, and a descriptor; return each format's file.

    Every file is loaded back and run beside the network on images of three sizes, 48x48, 64x40 and 127x93
    (or the next that it takes; about half of that where attention goes over all pixels, whose time and
    memory grow with their square): the outputs must be equal within 1e-5. Up to three images are tried of a
    size, because the gates of ACLA's keys are open or closed, and one that is on the threshold but for
    rounding falls either way, with all that it changes. If each of the three has such pixels, up to 1 % of
    them are left out, and their share is told.

    Args:
        network: what :func:`acla_nas.export` returned. It is moved to the CPU, in float32, and laid out as
            programs run fastest there, see :func:`acla_nas.memory_format.to_channels_last`.
        folder: where the files go; those of an earlier export there are replaced.
        arch: the architecture that the network was made from.
        task: what it was trained for.
        formats: some of `FORMATS`; all where None, and one that the network does not fit is warned of.
        backbone: what makes the backbone, where it is not that of a registered search space.
        training: how it was trained, for the descriptor.

    Raises:
        AclaError: an unknown format; a format that the network does not fit; or a file that does not give
            what the network gives, which is then removed.

    Example:
        >>> import acla_nas
        >>> space = acla_nas.search_spaces.edsr(num_blocks=2, num_channels=8, attention="cla")
        >>> arch = space.arch({"insert/1": True, "insert/2": True, "keys": 8})
        >>> model = acla_nas.export(arch, weights=space.state_dict())
        >>> files = save(model, "deploy", arch, formats=["safetensors", "python"])
        >>> [file.path.name for file in files.values()]
        ['model.safetensors', 'model.py']
        >>> model, descriptor = load("deploy/model.safetensors")
        >>> descriptor.scale
        2
    """
    for name in formats or ():
        if name not in FORMATS:
            raise unknown_name("format", name, FORMATS)
    if not isinstance(network, CrossLayerNetwork):
        raise AclaError(f"a {type(network).__name__} cannot be saved: give what acla_nas.export returns")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    network = network.cpu().float()
    to_channels_last(network, arch.input_shape)
    with evaluating(network):
        descriptor = describe(network, arch, task, training=training)
        (folder / "descriptor.json").write_text(descriptor.model_dump_json(indent=2) + "\n", encoding="utf-8")
        written = {}
        for name in FORMATS if formats is None else formats:
            file, module = FORMATS[name]
            path = folder / file
            try:
                module.write(network, descriptor, path, backbone=backbone)
                loaded, _ = module.read(path, backbone)
                written[name] = _compare(network, loaded, descriptor, path)
            except BaseException as error:  # what stays has been seen to work
                for left in (path, path.with_suffix(".pth")) if name == "python" else (path,):
                    left.unlink(missing_ok=True)
                if formats is not None or not isinstance(error, AclaError):
                    raise
                warnings.warn(f"not exported as {name}: {error}", AclaWarning, stacklevel=2)
    return written


def load(path: str | Path, *, backbone: Backbone | None = None) -> tuple[nn.Module, Descriptor]:
    """Return what runs an exported file, a module in evaluation mode on the CPU, and its descriptor.

    A .py file is run to load it: load none that you would not run.

    Args:
        path: of a file that :func:`save` wrote.
        backbone: what makes the backbone, for a .safetensors file of an architecture whose backbone is not
            that of a registered search space.

    Raises:
        AclaError: no such file, not one of the formats, or it cannot be read.
    """
    path = Path(path)
    readers = {Path(file).suffix: module for file, module in FORMATS.values()}
    if not path.exists():
        raise AclaError(f"cannot load {path}: there is no such file or run folder")
    if path.suffix not in readers or not path.is_file():
        raise AclaError(f"cannot load {path}: it is no file with one of the suffixes {', '.join(readers)}")
    return readers[path.suffix].read(path, backbone)


def _compare(network: nn.Module, loaded: nn.Module, descriptor: Descriptor, path: Path) -> Saved:
    """Return how what was loaded compares with the network; raise AclaError where it is something else."""
    generator = torch.Generator().manual_seed(0)
    has_gates = any(isinstance(module, ACLA) and module.adaptive for module in network.modules())
    largest, most_undecided = 0.0, 0.0
    linear = all(
        isinstance(m, (ACLA, SqueezeExcitation, Combined))
        for m in network.modules()
        if isinstance(m, Attention)
    )
    for size in _SIZES if linear else _SMALL_SIZES:
        height, width = descriptor.valid_size(*size)
        draws = []
        for _ in range(_DRAWS):
            image = torch.rand(1, descriptor.in_channels, height, width, generator=generator)
            with torch.no_grad():
                expected, actual = network(image), loaded(image)
            if expected.shape != actual.shape:
                raise _not_the_same(path, f"of shape {tuple(actual.shape)}", size)
            difference = (expected - actual).abs().amax((0, 1)) / max(1.0, float(expected.abs().max()))
            beyond = ~(difference <= TOLERANCE)  # NaN is beyond
            draws.append((float(beyond.float().mean()), difference[~beyond]))
            if not beyond.any():
                break
        undecided, equal = min(draws, key=lambda draw: draw[0])
        if undecided > (_MOST_UNDECIDED if has_gates else 0):
            raise _not_the_same(path, f"at {100 * undecided:.1f} % of the pixels", size)
        largest = max(largest, float(equal.max()))
        most_undecided = max(most_undecided, undecided)
    return Saved(path, largest, most_undecided)


def _not_the_same(path: Path, what: str, size: tuple[int, int]) -> AclaError:
    return AclaError(
        f"{path} gives another output than the network, {what}, for an image of {size[0]}x{size[1]}: it was "
        "removed; use another format"
    )
