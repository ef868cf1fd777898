"""What every attention module that can be inserted after a position has in common."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from acla_nas.errors import AclaError


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

    A subclass is constructed as ``cls(channels, num_keys, reference_channels=..., **options)`` and holds
    everything that belongs to one reference in ``self.references[name]``, so that dropping a reference
    drops exactly its parameters. ``num_keys`` is K where keys are sampled, and 1 where they are not: the
    argument then has the default 1 and takes no other value, and key gates change nothing.

    :func:`acla_nas.testing.check_attention` tests a subclass for all that is expected of it.
    """

    num_keys: int = 1
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

    def insert(
        self,
        query: Tensor,
        references: Mapping[str, Tensor],
        reference_gates: Mapping[str, Tensor] | None = None,
        key_gates: Tensor | None = None,
    ) -> Tensor:
        """Return what insertion makes of the query feature, x + H y (Eq. 2): of its shape and dtype.

        Args:
            query, references, reference_gates, key_gates: as for :meth:`forward`.
        """
        return query + self(query, references, reference_gates, key_gates).to(query.dtype)

    def select(self, references: Sequence[str], num_keys: int) -> Attention:
        """Return a copy that keeps the weights of these references and of the first keys only.

        A module with keys extends this to drop the other keys.
        """
        if num_keys > self.num_keys:
            raise AclaError(f"num_keys {num_keys} is more than the {self.num_keys} of the search space")
        chosen = copy.copy(self)  # so that what is dropped is not copied first
        chosen._modules = dict(self._modules)
        kept = {name: self.references[name] for name in references if name in self.references}
        chosen.references = nn.ModuleDict(kept)
        return copy.deepcopy(chosen)

    @abstractmethod
    def macs(self, query: Feature) -> int:
        """Multiply-accumulates of one image that do not depend on the references."""

    @abstractmethod
    def reference_macs(self, query: Feature, reference: Feature) -> int:
        """Multiply-accumulates of one image that one reference adds."""


class OwnLayerAttention(Attention):
    """Attention within the layer that it is inserted after: no references, no keys.

    A subclass implements ``update(query)`` and ``macs(query)``.

    Args:
        num_keys: 1, for there are none to choose.

    Raises:
        AclaError: another num_keys.
    """

    def __init__(self, num_keys: int = 1) -> None:
        super().__init__()
        refuse_keys(num_keys)
        self.references = nn.ModuleDict()

    @abstractmethod
    def update(self, query: Tensor) -> Tensor:
        """Return what is added to the query feature, of its shape (B, C, H, W)."""

    def forward(
        self,
        query: Tensor,
        references: Mapping[str, Tensor],
        reference_gates: Mapping[str, Tensor] | None = None,
        key_gates: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`Attention.forward`: the update depends on the query alone."""
        return self.update(query)

    def reference_macs(self, query: Feature, reference: Feature) -> int:
        """See :meth:`Attention.reference_macs`: none."""
        return 0


def refuse_keys(num_keys: int) -> None:
    """Raise AclaError where a module without sampled keys is given a number of them."""
    if num_keys != 1:
        raise AclaError(f"this attention samples no keys, so num_keys cannot be {num_keys}: leave it out")


def projection(inputs: int, outputs: int, *, zero: bool = False) -> nn.Conv2d:
    """Return a 1x1 convolution without bias, which starts at zero if asked to."""
    conv = nn.Conv2d(inputs, outputs, 1, bias=False)
    if zero:
        nn.init.zeros_(conv.weight)
    return conv
