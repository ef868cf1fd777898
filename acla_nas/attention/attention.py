"""What every attention module that can be inserted after a position has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn


class Feature(NamedTuple):
    """The size of the feature map at a position: channels, and height and width in pixels."""

    channels: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        """Height times width."""
        return self.height * self.width


class Attention(nn.Module, ABC):
    """An attention module with a query feature and the features of the positions it refers to.

    A subclass is constructed as ``cls(channels, reference_channels=..., **options)`` and holds
    everything that belongs to one reference in ``self.references[name]``, so that dropping a reference
    drops exactly its parameters.
    """

    num_keys: int
    references: nn.ModuleDict

    @abstractmethod
    def forward(
        self,
        query: Tensor,
        references: Mapping[str, Tensor],
        reference_gates: Mapping[str, Tensor] | None = None,
        key_gates: Tensor | None = None,
    ) -> Tensor:
        """Return the update ``H y`` (B, C, H, W) that insertion adds to the query feature (Eq. 2).

        Args:
            query: (B, C, H, W), the feature at the module's own position.
            references: name -> (B, C_l, H_l, W_l), in order; the module's own position comes last.
            reference_gates: name -> scalar 0/1 tensor; a reference without one counts in full. A gate
                of 0 gives what the module without that reference gives.
            key_gates: (K,) 0/1 tensor; a gate of 0 gives what the module without that key gives.
        """

    @abstractmethod
    def select(self, references: Sequence[str], num_keys: int) -> Attention:
        """Return a copy that keeps the weights of these references and of the first keys only."""

    @abstractmethod
    def macs(self, query: Feature) -> int:
        """Multiply-accumulates of one image that do not depend on the references."""

    @abstractmethod
    def reference_macs(self, query: Feature, reference: Feature) -> int:
        """Multiply-accumulates of one image that one reference adds."""
