"""CrossLayerNetwork: a backbone, untouched, with attention after some of its modules."""

from __future__ import annotations

import copy
import fnmatch
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from acla_nas import attention as attentions
from acla_nas.attention import Attention, Feature
from acla_nas.errors import AclaError, unknown_name

Backbone = nn.Module | Callable[[], nn.Module]


class CrossLayerNetwork(nn.Module):
    """A backbone with an attention module after each of the given positions.

    The backbone is not edited: a forward hook at each position keeps the feature x^j found there,
    before attention, and adds the module's update to it. A module refers to all inserted positions up
    to and including its own.

    Args:
        backbone: any module whose positions are run exactly once per forward pass and return a
            (B, C, H, W) tensor.
        paths: position (1-based, in the order of execution) -> module path, of the inserted positions.
        attention: position -> its attention module, whose references are named by their positions.

    Example:
        >>> backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1))
        >>> network = CrossLayerNetwork.dense(backbone, {1: "0"}, "cla", num_keys=4)
        >>> network(torch.rand(1, 3, 8, 8)).shape
        torch.Size([1, 3, 8, 8])
    """

    def __init__(
        self, backbone: nn.Module, paths: Mapping[int, str], attention: Mapping[int, Attention]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.paths = dict(paths)
        self.attention = nn.ModuleDict({str(j): module for j, module in attention.items()})
        self._features: dict[str, Tensor] | None = None  # None outside forward: the hooks do nothing
        self._gates: Mapping[int, Tensor | bool] = {}
        self._key_gates: Tensor | None = None
        for j, path in self.paths.items():
            backbone.get_submodule(path).register_forward_hook(functools.partial(self._insert, str(j)))

    @classmethod
    def dense(
        cls,
        backbone: nn.Module,
        paths: Mapping[int, str],
        attention: str,
        *,
        num_keys: int | None = None,
        input_shape: Sequence[int] = (3, 48, 48),
        **options: Any,
    ) -> CrossLayerNetwork:
        """Insert an attention module after every position, each referring to all up to its own."""
        make = attentions.get(attention)
        if _BACKBONE_ONLY.get():
            return cls(backbone, {}, {})
        features = trace_features(backbone, paths, input_shape)
        if num_keys is not None:
            options["num_keys"] = num_keys
        modules = {}
        for j in paths:
            channels = {str(l): features[l].channels for l in paths if l <= j}
            try:
                modules[j] = make(features[j].channels, reference_channels=channels, **options)
            except TypeError as error:
                raise AclaError(f"attention {attention!r} does not take these options: {error}") from None
        return cls(backbone, paths, modules)

    @property
    def positions(self) -> tuple[int, ...]:
        """The inserted positions, 1-based."""
        return tuple(self.paths)

    def forward(
        self,
        *inputs: Any,
        gates: Mapping[int, Tensor | bool] | None = None,
        key_gates: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the backbone with its attention modules.

        Args:
            inputs: passed to the backbone, as are further keywords; so is what it returns.
            gates: position -> False (leave the module out: neither run nor referred to), True, or a
                scalar 0/1 tensor s_j, for its gradient: run, and counted s_j times (Eq. 11, 13).
                Positions without one are inserted.
            key_gates: (K,) 0/1 tensor, for its gradient: which keys count.
        """
        self._features, self._gates, self._key_gates = {}, gates or {}, key_gates
        try:
            return self.backbone(*inputs, **kwargs)
        finally:
            self._features, self._gates, self._key_gates = None, {}, None

    def _insert(self, name: str, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        gate = self._gates.get(int(name), True)
        features = self._features
        if features is None or gate is False:
            return None
        features[name] = output
        if gate is not True and not gate.detach():
            # Gated off: of all gradients only the gate's own, <dL/dz, H y>, is not zero, and references
            # that are gated off as well have no part in it.
            seen = {l: x for l, x in features.items() if l == name or self._is_on(l)}
            with torch.no_grad():
                update = self.attention[name](output, seen, {}, self._key_gates)
        else:
            # s_l s_j is s_j where l = j, so within its own module the position's gate is left out.
            gates = {
                l: g for l in features if l != name and isinstance(g := self._gates.get(int(l), True), Tensor)
            }
            update = self.attention[name](output, dict(features), gates, self._key_gates)
        return output + (update if gate is True else gate * update)

    def _is_on(self, name: str) -> bool:
        gate = self._gates.get(int(name), True)
        return bool(gate.detach()) if isinstance(gate, Tensor) else gate

    def select(self, positions: Sequence[int], num_keys: int | None = None) -> CrossLayerNetwork:
        """Return a copy with modules at these positions only, with the weights they have here."""
        names = [str(j) for j in positions]
        chosen = {
            j: self._attention_at(j).select(
                [l for l in names if int(l) <= j], num_keys or self._attention_at(j).num_keys
            )
            for j in positions
        }
        backbone = copy_backbone(self.backbone)
        return CrossLayerNetwork(backbone, {j: self.paths[j] for j in positions}, chosen)

    def _attention_at(self, position: int) -> Attention:
        return self.attention[str(position)]  # type: ignore[return-value]


_BACKBONE_ONLY: ContextVar[bool] = ContextVar("backbone_only", default=False)


@contextmanager
def backbone_only() -> Iterator[None]:
    """Within it, :meth:`CrossLayerNetwork.dense` inserts nothing: for who wants a space's backbone alone."""
    token = _BACKBONE_ONLY.set(True)
    try:
        yield
    finally:
        _BACKBONE_ONLY.reset(token)


def copy_backbone(backbone: nn.Module) -> nn.Module:
    """Return a deep copy of a backbone without the hooks of the network that it belongs to."""
    before = []
    for module in backbone.modules():
        hooks = module._forward_hooks
        before.append((hooks, list(hooks.items())))
        for key, hook in before[-1][1]:
            if isinstance(getattr(getattr(hook, "func", None), "__self__", None), CrossLayerNetwork):
                del hooks[key]
    try:
        return copy.deepcopy(backbone)
    finally:
        for hooks, items in before:
            hooks.clear()
            hooks.update(items)  # in their order


def find_positions(backbone: nn.Module, positions: str | Sequence[str]) -> tuple[str, ...]:
    """Return the module paths that positions name: a glob such as "body.*", or a list of paths.

    ``*`` does not cross a dot: "body.*" names the children of ``body``, not theirs. The order is that
    of the module tree for a glob, and as given for a list.

    Raises:
        AclaError: nothing matches, or a path is not a module of the backbone.
    """
    known = [name for name, _ in backbone.named_modules() if name]
    if isinstance(positions, str):
        depth = positions.count(".")
        found = tuple(n for n in known if n.count(".") == depth and fnmatch.fnmatchcase(n, positions))
        if not found:
            raise unknown_name("positions", positions, [n for n in known if n.count(".") <= depth][:40])
        return found
    for path in positions:
        if path not in known:
            raise unknown_name("position", path, known[:200])
    if not positions or len(set(positions)) < len(positions):
        raise AclaError(f"positions must be different module paths, at least one: {list(positions)}")
    return tuple(positions)


def trace_features(
    backbone: nn.Module, paths: Mapping[int, str], input_shape: Sequence[int]
) -> dict[int, Feature]:
    """Return the size of the feature at each position for one input of the given (C, H, W).

    Runs a copy of the backbone on PyTorch's meta device, so it costs no arithmetic; on the backbone's own
    device where it cannot run there.

    Raises:
        AclaError: the backbone does not take such an input; a position is not run, is run more than once
            or out of order, or does not return a (B, C, H, W) tensor.
    """
    own_device = next(backbone.parameters(), torch.empty(0)).device
    try:
        seen = _run_recorded(backbone, paths, input_shape, torch.device("meta"))
    except Exception:
        try:
            seen = _run_recorded(backbone, paths, input_shape, own_device)
        except Exception as error:
            raise AclaError(
                f"the backbone does not run on an input (C, H, W) of {tuple(input_shape)}: "
                f"{' '.join(str(error).split())[:200]}; set input_shape to one that it takes"
            ) from error

    order = [j for j, _ in seen]
    for j, path in paths.items():
        if order.count(j) != 1:
            raise AclaError(
                f"position {path!r} is run {order.count(j)} times in a forward pass, not once: "
                "leave it out of positions"
            )
    if order != sorted(order):
        raise AclaError(
            f"positions must be given in the order in which they are run: {[paths[j] for j in order]}"
        )
    features = {}
    for j, output in seen:
        if not isinstance(output, Tensor) or output.dim() != 4:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise AclaError(
                f"position {paths[j]!r} returns {shape}, not a (B, C, H, W) tensor: leave it out of positions"
            )
        features[j] = Feature(*output.shape[1:])
    return features


def _run_recorded(
    backbone: nn.Module, paths: Mapping[int, str], input_shape: Sequence[int], device: torch.device
) -> list[tuple[int, Any]]:
    """Run a copy of the backbone once; return (position, output) in the order of execution."""
    seen: list[tuple[int, Any]] = []
    copied = copy_backbone(backbone).to(device).eval()
    for j, path in paths.items():

        def record(module: nn.Module, inputs: Any, output: Any, j: int = j) -> None:
            seen.append((j, output))

        copied.get_submodule(path).register_forward_hook(record)
    dtype = next(backbone.parameters(), torch.empty(0)).dtype
    with torch.no_grad():
        copied(torch.zeros(1, *input_shape, dtype=dtype, device=device))
    return seen
