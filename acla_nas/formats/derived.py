"""DerivedNetwork: a backbone with attention, in the few lines that running and training it takes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class DerivedNetwork(nn.Module):
    """A backbone with attention after some of its modules.

    After the module at each of the paths, attention adds its update to the feature map x (B, C, H, W) there.
    It refers to the features of all these places up to its own, as they are before attention. State dicts
    are those of the network that was exported.

    Args:
        backbone: the modules at the paths run once each in a forward pass.
        paths: position -> path of a module of the backbone, in the order in which they run.
        attention: position -> ``module(x, {position: feature, ...})``, which returns the update.
        channels_last: positions whose features are (B, H, W, C).
    """

    def __init__(
        self,
        backbone: nn.Module,
        paths: Mapping[str, str],
        attention: Mapping[str, nn.Module],
        channels_last: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.attention = nn.ModuleDict(attention)
        self.channels_last = channels_last
        self.features: dict[str, Tensor] = {}
        for position, path in paths.items():
            backbone.get_submodule(path).register_forward_hook(functools.partial(self._insert, position))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the backbone returns, with attention inserted."""
        self.features = {}
        try:
            return self.backbone(x)
        finally:
            self.features = {}

    def _insert(self, position: str, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        is_last = position in self.channels_last
        x = output.permute(0, 3, 1, 2) if is_last else output
        self.features[position] = x
        update = self.attention[position](x, dict(self.features))
        return output + (update.permute(0, 2, 3, 1) if is_last else update)


def load_state(network: nn.Module, path: str | Path) -> nn.Module:
    """Load the weights in a .pth file, which are under "params" there, and return the network to run it."""
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["params"])
    return network.eval()
