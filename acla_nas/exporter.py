"""export: from a derived architecture to a plain PyTorch module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from acla_nas import attention as attentions
from acla_nas.arch import Arch
from acla_nas.durable import replacing
from acla_nas.errors import AclaError
from acla_nas.network import Backbone, CrossLayerNetwork, copy_backbone
from acla_nas.search_spaces import backbone as build_backbone

Weights = str | Path | Mapping[str, Tensor]


def export(
    arch: Arch | dict[str, Any] | str | Path,
    *,
    backbone: Backbone | None = None,
    weights: Weights | None = None,
) -> CrossLayerNetwork:
    """Return the derived network as a plain ``nn.Module``, which needs neither NNI nor Lightning.

    Args:
        arch: the architecture, as an Arch, its dict, or the path of its JSON file.
        backbone: the network (or a callable returning one) to insert into, left as it is; needed where
            the architecture does not name a registered search space.
        weights: a safetensors file or a state dict, of the derived network or of the supernet it comes
            from; freshly initialised where None.

    Raises:
        AclaError: an architecture that cannot be read or does not fit the backbone, or weights that do
            not fit.

    Example:
        >>> import acla_nas
        >>> space = acla_nas.search_spaces.edsr(num_blocks=2, num_channels=8)
        >>> arch = space.arch({"insert/1": True, "insert/2": True, "keys": 16})
        >>> model = export(arch, weights=space.state_dict())
        >>> [name for name, _ in model.named_children()]
        ['backbone', 'attention']
    """
    arch = Arch.load(arch)
    if backbone is None:
        if "name" not in arch.space:
            raise AclaError(
                f"the architecture is of the backbone {arch.space.get('backbone')!r}, which is not a "
                "registered search space: give it to export(arch, backbone=...)"
            )
        with _as_the_file_says("space"):
            module = build_backbone(arch.space["name"], arch.space.get("options", {}))
    else:
        module = backbone if isinstance(backbone, nn.Module) else backbone()
    modules = dict(module.named_modules())
    for j, path in arch.paths.items():
        if path not in modules:
            raise AclaError(f"the backbone has no module {path!r}, position {j} of the architecture")
    options = dict(arch.attention)
    attentions.get(options["name"], imports=False)  # no file decides what is imported
    with _as_the_file_says("attention"):
        network = CrossLayerNetwork.dense(
            copy_backbone(module),
            arch.paths,
            options.pop("name"),
            input_shape=arch.input_shape,
            layouts=arch.layouts,
            **options,
        )
    if weights is not None:
        load_weights(network, weights)
    return network


@contextmanager
def _as_the_file_says(part: str) -> Iterator[None]:
    """Turn what values that do not fit raise anywhere in a network's code into an error that names them."""
    try:
        yield
    except AclaError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise AclaError(
            f"the architecture's {part} cannot be built ({type(error).__name__}: {reason}): give the "
            "arch.json of a search as it was written"
        ) from error


def load_weights(network: nn.Module, weights: Weights) -> None:
    """Load a safetensors file or state dict, of this network or of a supernet that it comes from.

    Raises:
        AclaError: the file cannot be read, a weight is missing, or has another shape.
    """
    state = read_weights(weights)
    for wrapper in ("module.", "_orig_mod."):  # of DistributedDataParallel, and of torch.compile
        if all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): weight for name, weight in state.items()}
    try:
        _load_state(network, state)
    except AclaError as error:
        source = "" if isinstance(weights, Mapping) else f"{weights}: "
        raise AclaError(f"{source}{error}; give those saved with the architecture") from None


def _load_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    of_supernet = any(name.startswith("network.") for name in state)
    prefix = "network." if of_supernet else ""
    chosen = {}
    for name, own in network.state_dict().items():
        given = state.get(prefix + name)
        if given is None:
            raise AclaError(f"the weights have no {name!r}: they are of another architecture")
        more_rows = given.dim() == own.dim() and given.shape[1:] == own.shape[1:]
        if prefix and name.startswith("attention.") and more_rows:
            given = given[: own.shape[0]]  # the first keys of a supernet with more of them
        if given.shape != own.shape:
            raise AclaError(
                f"weight {name!r} has shape {tuple(given.shape)}, the network needs {tuple(own.shape)}: "
                "the weights are of another architecture"
            )
        chosen[name] = given
    unused = [] if of_supernet else sorted(set(state) - set(chosen))
    if unused:
        raise AclaError(f"the network has no {unused[0]!r}: the weights are of another architecture")
    network.load_state_dict(chosen)


def read_weights(weights: Weights) -> Mapping[str, Tensor]:
    """Return the tensors of a safetensors file, or the mapping itself."""
    if isinstance(weights, Mapping):
        return weights
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(weights)
    except (OSError, SafetensorError) as error:
        raise AclaError(f"cannot read weights {weights}: {error}; give a .safetensors file") from None


def load_model(folder: str | Path) -> CrossLayerNetwork:
    """Return the network in a run folder, with its weights.

    Raises:
        AclaError: the folder has no arch.json or weights.safetensors, or they do not fit.
    """
    folder = Path(folder)
    for name in ("arch.json", "weights.safetensors"):
        if not (folder / name).is_file():
            raise AclaError(f"model {folder} has no {name}; give the run folder of a search or a training")
    return export(folder / "arch.json", weights=folder / "weights.safetensors")


def save_model(arch: Arch, weights: Mapping[str, Tensor], folder: str | Path) -> Path:
    """Write arch.json and weights.safetensors, which :func:`export` reads, into a folder and return it."""
    folder = Path(folder)
    arch.save(folder / "arch.json")
    save_weights(weights, folder / "weights.safetensors")
    return folder


def save_weights(
    weights: Mapping[str, Tensor], path: str | Path, metadata: dict[str, str] | None = None
) -> Path:
    """Write weights as a safetensors file, with what is to be noted in it, and return its path."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    stored = set()
    for name, weight in weights.items():
        tensor = weight.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        # A file has each of tied weights by itself.
        tensors[name] = tensor.clone() if place in stored else tensor
        stored.add(place)
    with replacing(path) as partial:
        try:
            save_file(tensors, partial, metadata)
        except SafetensorError as error:  # its name for what the system reports
            raise OSError(str(error)) from error
    return Path(path)


def copied_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a network's weights in memory, which its further training leaves alone."""
    return {name: w.detach().cpu().clone() for name, w in network.state_dict().items()}
