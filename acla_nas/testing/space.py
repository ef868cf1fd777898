"""The contract of a search space: what a search, the derived network and its export rely on."""

from __future__ import annotations

import copy
import json
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from acla_nas.arch import Arch
from acla_nas.exporter import export
from acla_nas.network import CrossLayerNetwork
from acla_nas.space import CrossLayerSpace

_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def check_space(space: CrossLayerSpace, input: Tensor | None = None) -> None:
    """Assert that a search space, and the backbone in it, keep what the framework relies on.

    Checked are: that the backbone computes the same each time; that with all gates off the space is its
    bare backbone; that the space with gates set, the derived network and the exported one compute the same
    (to 1e-5, and to 1e-10 in float64 where the backbone runs in it), relative to the largest output; that
    the architecture survives its JSON; copies and state dicts; that weights and gates get gradients; and
    inputs of other sizes that the bare backbone takes. The space is left as it is.

    Args:
        space: with a backbone of any kind.
        input: (B, C, H, W) that the backbone takes; two random images of the space's ``input_shape``
            where None. It decides the device.

    Raises:
        AssertionError: with what is wrong, and where.

    Example:
        >>> from acla_nas import search_spaces
        >>> check_space(search_spaces.edsr(num_blocks=2, num_channels=4, num_keys=2), torch.rand(1, 3, 8, 6))
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        before = {name: value.clone() for name, value in space.state_dict().items()}
        image = torch.rand(2, *space.input_shape) if input is None else input.detach()
        weight = next(iter(space.network.attention.parameters()))
        image = image.to(weight.device, weight.dtype)
        copied = _with_random_attention(space, image)
        checks: list[Callable[[CrossLayerSpace, Tensor], None]] = [
            _check_backbone,
            _check_freeze,
            _check_arch_and_export,
            _check_copies,
            _check_state_dict,
            _check_gradients,
            _check_other_sizes,
        ]
        for check in checks:
            check(copied, image)
        if (double := _in_double(space, copied, image.double())) is not None:
            _check_freeze(double, image.double())
        for name, value in space.state_dict().items():
            assert torch.equal(value, before[name]), f"using a copy of the space changes its {name}"


@torch.no_grad()
def _with_random_attention(space: CrossLayerSpace, image: Tensor) -> CrossLayerSpace:
    """Return a copy in evaluation whose attention has an effect; a new module starts as the identity."""
    copied = copy.deepcopy(space).eval()
    network = copied.network
    assert _error(network.backbone, image) is None, (
        f"the bare backbone does not run on an input {tuple(image.shape)}: {_error(network.backbone, image)}"
    )
    expected = network.backbone(image)
    assert _tensors(expected), (
        f"the backbone returns no tensor that is found, but a {type(expected).__name__}"
    )
    off = {j: False for j in network.places}
    for j, place in network.places.items():
        for _ in range(8):  # some draws close every key
            for parameter in network.attention[str(j)].parameters():
                parameter.copy_(torch.randn(parameter.shape) * 0.1)
            if _largest_difference(network(image, gates={**off, j: True}), expected) > 0:
                break
        else:
            raise AssertionError(
                f"attention after {place.path!r} does not change what the backbone returns: "
                "leave the position out"
            )
    return copied


def _in_double(space: CrossLayerSpace, copied: CrossLayerSpace, image: Tensor) -> CrossLayerSpace | None:
    """Return a copy in float64 where the backbone runs in it."""
    double = copy.deepcopy(space).train()
    double.network.attention.load_state_dict(copied.network.attention.state_dict())
    try:
        double.double().eval()  # in this order: for evaluation a backbone may fuse its weights
    except Exception:
        return None
    return double if _runs(double, image) else None


def _error(module: Callable[..., Any], image: Tensor, *, backward: bool = False) -> Exception | None:
    """Run a module, and backward from what it returns, and return what it raises."""
    try:
        with torch.set_grad_enabled(backward):
            output = module(image)
        if backward:
            _loss(output).backward()
    except Exception as error:
        return error
    return None


def _runs(module: Callable[..., Any], image: Tensor, *, backward: bool = False) -> bool:
    return _error(module, image, backward=backward) is None


def _samples(space: CrossLayerSpace) -> Iterator[dict[str, Any]]:
    """Yield everything on with the most keys, and half of it at random with the fewest."""
    positions, keys = list(space.network.paths), space.key_gate.num_keys
    half = random.Random(0).sample(positions, (len(positions) + 1) // 2)
    for inserted, num_keys in ((positions, max(keys)), (half, min(keys))):
        yield {**{f"insert/{j}": j in inserted for j in positions}, "keys": num_keys}


def _gates(space: CrossLayerSpace, sample: dict[str, Any], like: Tensor) -> dict[str, Any]:
    gates = {j: sample[f"insert/{j}"] for j in space.network.paths}
    most = max(space.key_gate.num_keys)
    keys = (torch.arange(most, device=like.device) < sample["keys"]).to(like.dtype)
    return {"gates": gates, "key_gates": keys if sample["keys"] < most else None}


def _shown(space: CrossLayerSpace, sample: dict[str, Any]) -> str:
    inserted = [place.path for j, place in space.network.places.items() if sample[f"insert/{j}"]]
    return f"with attention after {inserted} and {sample['keys']} keys"


def _tensors(output: Any) -> list[Tensor]:
    """Return the tensors in what a backbone returns, of whatever type that is."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _largest_difference(actual: Any, expected: Any) -> float:
    """Return the largest difference, relative to the largest value where that is above 1."""
    pairs = list(zip(_tensors(actual), _tensors(expected), strict=True))
    assert pairs, f"the backbone returns no tensor that is found, but a {type(actual).__name__}"
    differences = []
    for a, b in pairs:
        assert a.shape == b.shape, f"the shapes {tuple(a.shape)} and {tuple(b.shape)} differ"
        scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        differences.append(float((a - b).abs().max()) / scale if b.numel() else 0.0)
    return max(differences)


def _assert_same(actual: Any, expected: Any, message: str) -> None:
    tolerance = _TOLERANCE.get(_tensors(expected)[0].dtype, 1e-2)
    difference = _largest_difference(actual, expected)
    assert difference <= tolerance, f"{message}: they differ by {difference:.1e}, more than {tolerance:g}"


@torch.no_grad()
def _check_backbone(space: CrossLayerSpace, image: Tensor) -> None:
    bare = space.network.backbone
    expected = bare(image)
    for _ in range(2):
        assert _largest_difference(bare(image), expected) == 0, (
            "the backbone in evaluation does not compute the same each time for the same input: "
            "it keeps a state from one forward pass to the next, or draws random numbers"
        )
    assert _largest_difference(space(image), expected) == 0, (
        "with all gates off the space is not its bare backbone"
    )
    off = {j: False for j in space.network.paths}
    nothing = space.freeze({**{f"insert/{j}": False for j in off}, "keys": max(space.key_gate.num_keys)})
    assert _largest_difference(nothing.eval()(image), expected) == 0, (
        "with nothing inserted the derived network is not the bare backbone"
    )


@torch.no_grad()
def _check_freeze(space: CrossLayerSpace, image: Tensor) -> None:
    for sample in _samples(space):
        shown = _shown(space, sample)
        derived = space.freeze(sample).eval()
        expected = derived(image)
        given = _gates(space, sample, image)
        actual = space.network(image, **given)
        _assert_same(actual, expected, f"the derived network is not the space with its gates set, {shown}")
        if image.dtype == torch.float64:  # rounding could tip a hard gate over in float32
            given["gates"] = {j: image.new_tensor(float(on)) for j, on in given["gates"].items()}
            actual = space.network(image, **given)
            _assert_same(actual, expected, f"the derived network is not the space with 0/1 gates, {shown}")


@torch.no_grad()
def _check_arch_and_export(space: CrossLayerSpace, image: Tensor) -> None:
    backbone = None if "name" in space.source else space.network.backbone
    for sample, of in zip(_samples(space), ("space", "derived network")):
        shown = _shown(space, sample)
        arch = space.arch(sample)
        loaded = Arch.load(json.loads(arch.model_dump_json()))
        assert loaded == arch, f"the architecture read back from JSON is another one, {shown}"
        derived = space.freeze(sample).eval()
        weights = (space if of == "space" else derived).state_dict()
        exported = export(loaded, backbone=backbone, weights=weights).to(image.device, image.dtype).eval()
        message = f"the export with the weights of the {of} computes something else, {shown}"
        _assert_same(exported(image), derived(image), message)
        layouts = exported.layouts if isinstance(exported, CrossLayerNetwork) else {}
        assert layouts == loaded.layouts, f"the export has the layouts {layouts}, not {loaded.layouts}"


def _all_on(space: CrossLayerSpace) -> dict[str, Any]:
    return next(_samples(space))


@torch.no_grad()
def _check_copies(space: CrossLayerSpace, image: Tensor) -> None:
    sample = _all_on(space)
    for module, what, run in (
        (space, "the space", lambda m: m.network(image)),
        (space.freeze(sample).eval(), "the derived network", lambda m: m(image)),
    ):
        expected = run(module)
        copied = copy.deepcopy(module)
        _assert_same(run(copied), expected, f"a deep copy of {what} computes something else")
        shared = {id(p) for p in module.parameters()} & {id(p) for p in copied.parameters()}
        assert not shared, f"a deep copy of {what} shares {len(shared)} parameters with it"
        for parameter in copied.parameters():
            parameter.zero_()
        _assert_same(run(module), expected, f"changing a deep copy of {what} changes it too")


@torch.no_grad()
def _check_state_dict(space: CrossLayerSpace, image: Tensor) -> None:
    derived = space.freeze(_all_on(space)).eval()
    expected = derived(image)
    other = copy.deepcopy(derived)
    for parameter in other.parameters():
        parameter.copy_(torch.randn(parameter.shape) * 0.1)
    other.load_state_dict({name: value.clone() for name, value in derived.state_dict().items()})
    _assert_same(
        other(image), expected, "the derived network with its state dict loaded computes something else"
    )


def _loss(output: Any) -> Tensor:
    real = [t for t in _tensors(output) if t.is_floating_point() and t.requires_grad]
    assert real, "what the network returns has no gradient"
    return torch.stack([(t.double() ** 2).mean() for t in real]).sum()


def _check_gradients(space: CrossLayerSpace, image: Tensor) -> None:
    bare = copy.deepcopy(space.network.backbone)
    for parameter in bare.parameters():
        parameter.requires_grad_(True)
    train = _runs(bare.train(), image, backward=True)
    mode = "training" if train else "evaluation"
    assert train or _runs(bare.eval(), image, backward=True), (
        "there are no gradients to check: the bare backbone does not run backward, "
        f"{_error(bare, image, backward=True)}"
    )
    network = copy.deepcopy(space).train(train).network
    _loss(network(image)).backward()
    for j, place in network.places.items():
        reached = 0
        for name, parameter in network.attention[str(j)].named_parameters():
            grad, what = parameter.grad, f"{name} of the attention after {place.path!r}"
            assert grad is not None, f"in {mode} no gradient reaches {what}"
            assert torch.isfinite(grad).all(), f"in {mode} the gradient of {what} is not finite"
            reached += int(grad.count_nonzero())
        assert reached, f"in {mode} the gradient of the attention after {place.path!r} is 0"
    for value in (0.0, 1.0):
        gates = {j: image.new_tensor(value, requires_grad=True) for j in network.places}
        _loss(network(image, gates=gates)).backward()
        for j, gate in gates.items():
            where = f"in {mode} the gate of {network.places[j].path!r}, {value:g},"
            assert gate.grad is not None, f"{where} gets no gradient"
            assert torch.isfinite(gate.grad), f"{where} gets the gradient {gate.grad}"
            assert gate.grad != 0, f"{where} gets a gradient of 0"


@torch.no_grad()
def _check_other_sizes(space: CrossLayerSpace, image: Tensor) -> None:
    height, width = image.shape[-2:]
    network, sample = space.network, _all_on(space)
    derived: nn.Module = space.freeze(sample).eval()
    for size in ((2 * height, width), (height, 2 * width), (height + 3, width + 1)):
        other = torch.rand(*image.shape[:-2], *size, dtype=image.dtype).to(image.device)
        if not _runs(network.backbone, other):
            continue
        shown = f"on images of {size[0]} x {size[1]}, which the bare backbone takes,"
        try:
            expected, actual = derived(other), network(other)
        except Exception as error:
            raise AssertionError(f"{shown} the network with attention fails: {error}") from error
        _assert_same(actual, expected, f"{shown} the derived network is not the space")
