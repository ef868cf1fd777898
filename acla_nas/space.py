"""CrossLayerSpace: a backbone and its positions as an NNI search space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from acla_nas import attention as attentions
from acla_nas.arch import Arch
from acla_nas.errors import AclaError
from acla_nas.gates import InsertGate, KeyGate
from acla_nas.network import Backbone, CrossLayerNetwork, find_positions, is_glob
from acla_nas.nni_nas import ModelSpace
from acla_nas.one_shot_gates import gate_hooks


class CrossLayerSpace(ModelSpace):
    """All ways to insert attention after some of the positions of a backbone.

    Its mutables are ``insert/<j>``, j = 1 .. P, each False or True, and ``keys``, the number of keys.

    Args:
        backbone: a network, or a callable that returns one; its code and its class are not touched, and it
            computes what it did whenever it is called by itself.
        positions: module paths in the order in which they are run; or a glob such as "body.*", or a list
            with globs, which are put in that order.
        attention: the name of what is inserted: "acla", "cla", "nl", ..; "acla+se" is SE after ACLA.
        num_keys: K, or several K to choose from; the attention's own default where None (ACLA 16,
            CLA 8).
        input_shape: (C, H, W) of an input the backbone takes, to learn the features' sizes.
        layout: the order of the features' axes, "bchw", "bhwc" or "bnc" (tokens, row after row): one for
            all, or module path -> layout; detected where it is not given. See ``layouts``.
        options: further options of the attention module.

    Raises:
        AclaError: positions that do not exist, are not run exactly once, or return no feature; a layout
            that cannot be told; an input_shape that the backbone does not take; num_keys below 1.

    Example:
        >>> from torch import nn
        >>> backbone = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)))
        >>> space = CrossLayerSpace(backbone, ["0", "1", "2"], attention="cla")
        >>> space.positions
        ('0', '1', '2')
        >>> space.layouts
        {'0': 'bchw', '1': 'bchw', '2': 'bchw'}
        >>> derived = space.freeze({"insert/1": True, "insert/2": False, "insert/3": True, "keys": 8})
        >>> derived.positions
        (1, 3)
    """

    def __init__(
        self,
        backbone: Backbone,
        positions: str | Sequence[str],
        *,
        attention: str = "acla",
        num_keys: int | Sequence[int] | None = None,
        input_shape: Sequence[int] = (3, 48, 48),
        layout: str | Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        module = backbone if isinstance(backbone, nn.Module) else backbone()
        choices = None if num_keys is None else np.atleast_1d(num_keys).tolist()
        if choices is not None and (min(choices, default=0) < 1 or len(set(choices)) < len(choices)):
            raise AclaError(
                f"num_keys must be at least 1, or several different such to choose from, not {num_keys}"
            )
        paths = dict(enumerate(find_positions(module, positions), start=1))
        self.network = CrossLayerNetwork.dense(
            module,
            paths,
            attention,
            num_keys=None if choices is None else max(choices),
            input_shape=input_shape,
            layouts=layout,
            sort=any(map(is_glob, [positions] if isinstance(positions, str) else positions)),
            **options,
        )
        # With the defaults, so that an architecture means the same when a default changes.
        self.attention_options = {"name": attention, **attentions.default_options(attention), **options}
        self.input_shape = tuple(input_shape)
        self.source: dict[str, Any] = {"backbone": type(module).__qualname__}
        self.insert_gates = nn.ModuleList(InsertGate(j) for j in self.network.paths)
        own_default = next((int(module.num_keys) for module in self.network.attention.values()), 1)  # type: ignore[arg-type]
        self.key_gate = KeyGate(choices or [own_default])

    _own_init = __init__  # NNI puts one in its place that does not tell its arguments

    @property
    def positions(self) -> tuple[str, ...]:
        """The module paths of all positions; position j of the mathematics is ``positions[j - 1]``."""
        return tuple(self.network.paths.values())

    @property
    def layouts(self) -> dict[str, str]:
        """Module path -> layout of the feature there, as given or detected."""
        return self.network.layouts

    def extra_repr(self) -> str:
        """Return what was found at the positions, one a line."""
        return "\n".join(
            f"position {j}: {place.path}, {place.layout}, {place.feature.channels} channels, "
            f"{place.feature.height} x {place.feature.width}"
            for j, place in self.network.places.items()
        )

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """Run the network with the modules that the gates switch on: none before a search."""
        gates: dict[int, Tensor | bool] = {g.position: g() for g in self.insert_gates}  # type: ignore[misc]
        output = self.network(*inputs, gates=gates, key_gates=self.key_gate(), **kwargs)
        constant = isinstance(output, Tensor) and not output.requires_grad
        if constant and self.training and torch.is_grad_enabled():
            # A frozen backbone, all gates off: a loss must still have a backward.
            output = output + 0 * next(self.network.attention.parameters()).sum()
        return output

    def extra_oneshot_hooks(self, strategy: Any) -> list[Any]:
        """Tell NNI's own one-shot strategies how the gates are searched."""
        return list(gate_hooks(strategy))

    def freeze(self, sample: dict[str, Any]) -> nn.Module:
        """Return the derived network of a sample, with the weights that its parts have here."""
        positions, num_keys = self._chosen(sample)
        return self.network.select(positions, num_keys)

    def arch(self, sample: dict[str, Any]) -> Arch:
        """Return the derived architecture of a sample as data."""
        return Arch.from_sample(self, sample)

    def _chosen(self, sample: dict[str, Any]) -> tuple[list[int], int]:
        expected = {*(f"insert/{j}" for j in self.network.paths), "keys"}
        if set(sample) != expected:
            wrong = sorted(set(sample) ^ expected)
            raise AclaError(
                f"the sample must decide insert/1 .. insert/{len(expected) - 1} and keys: {wrong}"
            )
        for label, choice in sample.items():
            allowed: Sequence[Any] = self.key_gate.num_keys if label == "keys" else (False, True)
            if choice not in allowed:
                raise AclaError(f"{label} is {choice!r} in the sample; it must be one of {list(allowed)}")
        return [j for j in self.network.paths if sample[f"insert/{j}"]], sample["keys"]


CrossLayerSpace.__init__.__wrapped__ = CrossLayerSpace._own_init  # type: ignore[attr-defined]  # now it does
