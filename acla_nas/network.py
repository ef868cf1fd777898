"""CrossLayerNetwork: a backbone, untouched, with attention after some of its modules."""

from __future__ import annotations

import copy
import fnmatch
import functools
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from acla_nas import attention as attentions
from acla_nas.attention import ACLA, Attention, Feature
from acla_nas.attention.feature_stack import FeatureStack
from acla_nas.attention.shared_gradient import share_gradient
from acla_nas.errors import AclaError, unknown_name
from acla_nas.layout import from_map, to_map
from acla_nas.recomputation import in_groups, recomputed_update
from acla_nas.trace import Place, trace

Backbone = nn.Module | Callable[[], nn.Module]


@dataclass(eq=False)
class _Pass:
    """What the hooks keep during one forward pass, and autograd for as long as it may need it."""

    network: CrossLayerNetwork
    gates: Mapping[int, Tensor | bool]
    key_gates: Tensor | None
    with_grad: bool
    features: dict[str, Tensor] = field(default_factory=dict)  # x^j as maps, in the order of execution
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # of what grids of tokens refer to
    off: set[int] = field(default_factory=set)  # positions whose gate is 0
    stacks: tuple[FeatureStack, ...] = ()  # of features that are not off, and of those that are

    def __post_init__(self) -> None:
        drawn = {j: gate.detach() for j, gate in self.gates.items() if isinstance(gate, Tensor)}
        if drawn:  # one look at all of them: a GPU is waited for each time
            values = torch.stack(list(drawn.values())).flatten().tolist()
            self.off = {j for j, value in zip(drawn, values) if not value}
        self.off |= {j for j, gate in self.gates.items() if gate is False}


class _Current(threading.local):
    """The pass that is under way in a thread, None outside of forward, where the hooks do nothing.

    The hooks, which belong to one network, find by it what its shallow copies run, such as the replicas that
    nn.DataParallel makes. A deep copy has its own.
    """

    running: _Pass | None = None

    def __reduce__(self) -> tuple[type[_Current], tuple[()]]:
        return type(self), ()


class _Backward:
    """The pass whose backward pass began last: a checkpointed part of the backbone is run again in it.

    Shallow copies share it, as they do :class:`_Current`, and the threads of a backward pass do.
    """

    def __init__(self) -> None:
        self.running: Callable[[], _Pass | None] = _no_pass

    def __reduce__(self) -> tuple[type[_Backward], tuple[()]]:
        return type(self), ()


class CrossLayerNetwork(nn.Module):
    """A backbone with an attention module after each of the given positions.

    The backbone is not edited: a forward hook at each position keeps the feature x^j found there,
    before attention, and adds the module's update to it. A module refers to all inserted positions up
    to and including its own. Attention sees every feature as a (B, C, H, W) map, whatever its layout in
    the backbone is. Of a module that returns several values the feature is replaced and the others pass.

    Args:
        backbone: any module whose positions are run exactly once per forward pass.
        places: position (1-based, in the order of execution) -> where its feature is found, of the
            inserted positions.
        attention: position -> its attention module, whose references are named by their positions.

    Attributes:
        recompute: run attention modules again in the backward pass of a training, instead of keeping all
            that they compute.
        micro_batch: images that a training runs at a time, each group again in the backward pass; gradients
            are those of the whole batch. All at once where None.

    Raises:
        AclaError: in a pass: a position is run more than once, returns another layout than when it was
            traced, or is run without gradients while the network is trained.

    Example:
        >>> backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1))
        >>> network = CrossLayerNetwork.dense(backbone, {1: "0"}, "cla", num_keys=4)
        >>> network(torch.rand(1, 3, 8, 8)).shape
        torch.Size([1, 3, 8, 8])
    """

    def __init__(
        self, backbone: nn.Module, places: Mapping[int, Place], attention: Mapping[int, Attention]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.places = dict(places)
        self.attention = nn.ModuleDict({str(j): module for j, module in attention.items()})
        self.recompute = False
        self.micro_batch: int | None = None
        self._current, self._backward = _Current(), _Backward()
        for j, place in self.places.items():
            self._hook(place.path, functools.partial(self._insert, str(j)))
        for source in {place.grid.source for place in self.places.values() if place.grid is not None} - {""}:
            self._hook(source, functools.partial(self._measure, source))

    def _hook(self, path: str, hook: Callable[..., Any]) -> None:
        self.backbone.get_submodule(path).register_forward_hook(hook)

    @classmethod
    def dense(
        cls,
        backbone: nn.Module,
        paths: Mapping[int, str],
        attention: str,
        *,
        num_keys: int | None = None,
        input_shape: Sequence[int] = (3, 48, 48),
        layouts: Mapping[str, str] | str | None = None,
        sort: bool = False,
        **options: Any,
    ) -> CrossLayerNetwork:
        """Insert an attention module after every position, each referring to all up to its own.

        The modules get the device and the dtype of the backbone. For layouts and sort see
        :func:`acla_nas.trace.trace`.
        """
        make = attentions.get(attention)
        if _BACKBONE_ONLY.get():
            return cls(backbone, {}, {})
        places = trace(functools.partial(copy_backbone, backbone), paths, input_shape, layouts, sort=sort)
        if num_keys is not None:
            options["num_keys"] = num_keys
        weight = next((p for p in backbone.parameters() if p.is_floating_point()), torch.empty(0))
        modules = {}
        for j, place in places.items():
            channels = {str(l): places[l].feature.channels for l in places if l <= j}
            try:
                module = make(place.feature.channels, reference_channels=channels, **options)
            except TypeError as error:
                raise AclaError(f"attention {attention!r} does not take these options: {error}") from None
            modules[j] = module.to(weight.device, weight.dtype)
        return cls(backbone, places, modules)

    @property
    def positions(self) -> tuple[int, ...]:
        """The inserted positions, 1-based."""
        return tuple(self.places)

    @property
    def paths(self) -> dict[int, str]:
        """Position -> module path in the backbone."""
        return {j: place.path for j, place in self.places.items()}

    @property
    def layouts(self) -> dict[str, str]:
        """Module path -> layout of the feature there, such as "bchw" or "bnc"."""
        return {place.path: place.layout for place in self.places.values()}

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
        kwargs = {**kwargs, "gates": gates, "key_gates": key_gates}
        if self.micro_batch is None or not (self.training and torch.is_grad_enabled()):
            return self._forward(*inputs, **kwargs)
        return in_groups(self._forward, self.micro_batch, inputs, kwargs)

    def _forward(
        self, *inputs: Any, gates: Mapping[int, Tensor | bool] | None, key_gates: Tensor | None, **kwargs: Any
    ) -> Any:
        running = _Pass(self, gates or {}, key_gates, torch.is_grad_enabled())
        if not (torch.compiler.is_compiling() or (self.recompute and self.training)):  # no stack is read then
            off = sum(gate is not False for j, gate in running.gates.items() if j in running.off)
            running.stacks = FeatureStack(len(self.places) - len(running.off)), FeatureStack(off)
        for tensor in tree_leaves((inputs, kwargs)):
            if isinstance(tensor, Tensor) and tensor.dim() >= 4:
                running.sizes[""] = (tensor.shape[-2], tensor.shape[-1])
                break
        self._current.running = running
        try:
            output = self.backbone(*inputs, **kwargs)
        finally:
            self._current.running = None
            for stack in running.stacks:
                stack.close()
        if running.with_grad and not torch.compiler.is_compiling() and not torch.jit.is_tracing():
            for tensor in tree_leaves(output):
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(functools.partial(self._start_backward, running))
        return output

    def _start_backward(self, running: _Pass, grad: Tensor) -> None:
        """Remember whose backward pass it is."""
        self._backward.running = weakref.ref(running)

    def _running(self) -> _Pass | None:
        """Return the pass that a hook is called in: forward, or the backward pass that runs it again."""
        if self._current.running is not None or torch.compiler.is_compiling():
            return self._current.running
        return self._backward.running() if torch._C._current_graph_task_id() != -1 else None

    def _measure(self, source: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if self._current.running is not None:
            self._current.running.sizes[source] = (output.shape[2], output.shape[3])

    def _insert(self, name: str, module: nn.Module, inputs: Any, output: Any) -> Any:
        running = self._running()
        return None if running is None else running.network._insert_in(running, name, output)

    def _insert_in(self, running: _Pass, name: str, output: Any) -> Any:
        gate = running.gates.get(int(name), True)
        if gate is False:
            return None
        leaves, structure = ([output], None) if isinstance(output, Tensor) else tree_flatten(output)
        place = self.places[int(name)]
        found = leaves[place.leaf]
        features = self._seen(name, running, self._as_map(place, found, running))
        if gate is True and not (torch.is_grad_enabled() or torch.jit.is_tracing()):
            attention, query = cast(Attention, self.attention[name]), features[name]
            gates = _gates_of_others(name, running, features)
            result = from_map(attention.insert(query, features, gates, running.key_gates), place.layout)
        else:
            update = from_map(self._update(name, running, features), place.layout).to(found.dtype)
            result = found + (update if gate is True else gate * update)
        if found.is_contiguous():
            result = result.contiguous()  # what follows may rely on it
        if structure is None:
            return result
        leaves[place.leaf] = result
        return tree_unflatten(leaves, structure)

    def _update(self, name: str, running: _Pass, features: Mapping[str, Tensor]) -> Tensor:
        if int(name) not in running.off:
            return self._attend(name, features, _gates_of_others(name, running, features), running.key_gates)
        # Gated off: of all gradients only the gate's own, <dL/dz, H y>, is not zero, and references that are
        # gated off as well have no part in it.
        seen = {l: x for l, x in features.items() if l == name or int(l) not in running.off}
        with torch.no_grad():
            return self._attend(name, seen, {}, running.key_gates)

    def _attend(self, name: str, features: Mapping[str, Tensor], *gates: Any) -> Tensor:
        attention, query = cast(Attention, self.attention[name]), features[name]
        if self.recompute and self.training:
            return recomputed_update(attention, query, features, *gates)
        return cast(Tensor, attention(query, features, *gates))

    def _seen(self, name: str, running: _Pass, query: Tensor) -> dict[str, Tensor]:
        """Return the features of the inserted positions up to this one, and keep this one's."""
        if self._current.running is None:  # run again in the backward pass: those after it are there already
            if not running.features[name].requires_grad:
                raise _no_gradients(self.places[int(name)].path)
            before = list(running.features)[: list(running.features).index(name)]
            return {**{l: running.features[l] for l in before}, name: query}
        path = self.places[int(name)].path
        if name in running.features:
            raise AclaError(
                f"position {path!r} is run more than once for this input: leave it out of positions"
            )
        if self.training and running.with_grad and not torch.is_grad_enabled():
            raise _no_gradients(path)
        running.features[name] = query
        if isinstance(self.attention[name], ACLA):
            stack = running.stacks[int(name) in running.off] if running.stacks else None
            running.features[name] = share_gradient(query, stack)
        return {l: x for l, x in running.features.items() if int(l) <= int(name)}

    def _as_map(self, place: Place, x: Any, running: _Pass) -> Tensor:
        """Return what was found at a place as a (B, C, H, W) map."""
        if not isinstance(x, Tensor) or x.dim() != len(place.layout):
            shown = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise AclaError(
                f"position {place.path!r} returns {shown} for this input, but {place.layout!r} for that of "
                "input_shape: leave it out of positions"
            )
        if place.grid is None:
            return to_map(x, place.layout)
        size = place.grid.size(*running.sizes[place.grid.source])
        tokens = x.shape[place.layout.index("n")]
        if not torch.jit.is_tracing() and size[0] * size[1] != tokens:
            source = f"what {place.grid.source!r} returns" if place.grid.source else "the network's input"
            raise AclaError(
                f"position {place.path!r} returns {tokens} tokens, which are not the {size[0]} x {size[1]} "
                f"pixels that {source} has (times {place.grid.scale}): use inputs like that of input_shape, "
                "or leave the position out"
            )
        return to_map(x, place.layout, size)

    def __deepcopy__(self, memo: dict[int, Any]) -> CrossLayerNetwork:
        memo.update(_computed_tensors(self.backbone))
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(self.__dict__, memo))
        return copied

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
        return CrossLayerNetwork(backbone, {j: self.places[j] for j in positions}, chosen)

    def _attention_at(self, position: int) -> Attention:
        return self.attention[str(position)]  # type: ignore[return-value]


def _gates_of_others(name: str, running: _Pass, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the gates of references: s_l s_j is s_j where l = j, so without the position's own."""
    of_others = {l: running.gates.get(int(l), True) for l in features if l != name}
    return {l: gate for l, gate in of_others.items() if isinstance(gate, Tensor)}


def _no_pass() -> None:
    return None


def _no_gradients(path: str) -> AclaError:
    return AclaError(
        f"position {path!r} is run without gradients, so its attention would not be trained: it is under "
        "torch.no_grad, or under torch.utils.checkpoint with use_reentrant=True; set that to False, switch "
        "checkpointing off, or choose positions outside"
    )


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
    """Return a deep copy of a backbone without the hooks of the network that it belongs to.

    Those of networks that are part of it stay.
    """
    before, own = [], set(backbone.modules())
    for module in own:
        hooks = module._forward_hooks
        before.append((hooks, list(hooks.items())))
        for key, hook in before[-1][1]:
            owner = getattr(getattr(hook, "func", None), "__self__", None)
            if isinstance(owner, CrossLayerNetwork) and owner not in own:
                del hooks[key]
    try:
        return copy.deepcopy(backbone, _computed_tensors(backbone))
    finally:
        for hooks, items in before:
            hooks.clear()
            hooks.update(items)  # in their order


def _computed_tensors(backbone: nn.Module) -> dict[int, Any]:
    """Return copies, by id, of attributes that were computed from weights: PyTorch refuses to copy them."""
    return {
        id(value): value.detach().clone()
        for module in backbone.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }


def find_positions(backbone: nn.Module, positions: str | Sequence[str]) -> tuple[str, ...]:
    """Return the module paths that positions name: paths or globs such as "body.*", one or a list of them.

    ``*`` does not cross a dot: "body.*" names the children of ``body``, not theirs; "body.**.conv" names
    every ``conv`` below ``body``. The order is that of the list, and within a glob that of the module tree.

    Raises:
        AclaError: nothing matches, or a path is not a module of the backbone.
    """
    known = [name for name, _ in backbone.named_modules(remove_duplicate=False) if name]
    found: list[str] = []
    for pattern in [positions] if isinstance(positions, str) else positions:
        if pattern in known:
            found.append(pattern)
        elif not is_glob(pattern):
            raise unknown_name("position", pattern, known[:200])
        else:
            parts = pattern.split(".")
            matched = [name for name in known if _matches(name.split("."), parts)]
            if not matched:
                depth = pattern.count(".")
                raise unknown_name("positions", pattern, [n for n in known if n.count(".") <= depth][:40])
            found.extend(matched)
    if not found or len(set(found)) < len(found):
        raise AclaError(f"positions must be different module paths, at least one: {list(positions)}")
    return tuple(found)


def is_glob(pattern: str) -> bool:
    """Return whether a name of positions is a glob, not the path of one module."""
    return any(c in pattern for c in "*?[")


def _matches(name: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "**":
        return _matches(name, pattern[1:]) or (bool(name) and _matches(name[1:], pattern))
    return bool(name) and fnmatch.fnmatchcase(name[0], pattern[0]) and _matches(name[1:], pattern[1:])


def trace_features(
    backbone: nn.Module,
    paths: Mapping[int, str],
    input_shape: Sequence[int],
    layouts: Mapping[str, str] | str | None = None,
) -> dict[int, Feature]:
    """Return the size of the feature at each position for one input of the given (C, H, W).

    The backbone is left as it is; for how it is run and what is raised see :func:`acla_nas.trace.trace`.
    """
    places = trace(functools.partial(copy_backbone, backbone), paths, input_shape, layouts)
    return {j: place.feature for j, place in places.items()}
