"""Cross-layer non-local attention (CLNL): every pixel of every referenced layer is a key (Eq. 3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acla_nas.attention.attention import Attention, Feature, projection, refuse_keys
from acla_nas.attention.forms import HIGHEST
from acla_nas.attention.non_local import attend, inner_width
from acla_nas.errors import AclaError


class CrossLayerNonLocal(Attention):
    """The non-local block with the keys and values of all referenced layers, the paper's "vanilla" form.

    With query pixel i, references x^l gated by s_l, and every convolution 1x1 and without bias::

        f_ln   = exp(theta x_i . phi_l x^l_n)
        y_i    = sum_ln s_l f_ln g_l x^l_n / sum_ln s_l f_ln                                      (Eq. 3)
        update = W y

    W starts at zero, so that insertion starts as the identity. With its own layer as the only reference
    it is :class:`NonLocal`.

    Time grows with pixels times pixels times references; see :class:`NonLocal` for memory and big images.

    Parameters: 2 C inner_channels, and 2 C_l inner_channels a reference. Four modules in EDSR (32 blocks,
    256 channels) make 41.65 M with C / 2 inner channels and 42.56 M with C, where the paper's Table 4 has
    45.87 M, which no choice of inner width, 1x1 or 3x3 kernels and biases gives.

    Args:
        channels: C of the query feature.
        num_keys: 1, for every pixel is a key.
        num_references: R; the references are then called "1" .. "R" and have C channels each.
        reference_channels: instead of num_references, name -> channels of each reference.
        inner_channels: of theta, phi and g; half of C where None.

    Raises:
        AclaError: no reference, inner_channels below 1, or num_keys other than 1.

    Example:
        >>> attention = CrossLayerNonLocal(8, num_references=2)
        >>> x1, x2 = torch.randn(2, 1, 8, 6, 6)
        >>> attention(x2, {"1": x1, "2": x2}).shape
        torch.Size([1, 8, 6, 6])
    """

    def __init__(
        self,
        channels: int,
        num_keys: int = 1,
        num_references: int = 1,
        *,
        reference_channels: Mapping[str, int] | None = None,
        inner_channels: int | None = None,
    ) -> None:
        super().__init__()
        refuse_keys(num_keys)
        if reference_channels is None:
            reference_channels = {str(r): channels for r in range(1, num_references + 1)}
        if not reference_channels:
            raise AclaError("an attention module needs at least one reference")
        self.inner_channels = inner_width(channels, inner_channels)
        self.references = nn.ModuleDict(
            {name: _Reference(c, self.inner_channels) for name, c in reference_channels.items()}
        )
        self.theta = projection(channels, self.inner_channels)
        self.out = projection(self.inner_channels, channels, zero=True)

    def forward(
        self,
        query: Tensor,
        references: Mapping[str, Tensor],
        reference_gates: Mapping[str, Tensor] | None = None,
        key_gates: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`Attention.forward`."""
        gates = reference_gates or {}
        off = [name for name in references if name in gates and not gates[name].detach()]
        on = {name: x for name, x in references.items() if name not in off}
        queries = self.theta(query).flatten(2)
        keys, values = self._project(on)
        if any(name in gates for name in on):
            # s exp(a) is exp(a + log s): one more channel, 1 in the queries and log s in the keys, takes the
            # gates' gradient through the fused kernels. The values get an empty one, for these ask for it.
            row = torch.cat([_log_gates(gates.get(name), x) for name, x in on.items()], 1)
            queries = torch.cat((queries, torch.ones_like(queries[:, :1])), 1)
            keys = torch.cat((keys, row.unsqueeze(1)), 1)
            values = F.pad(values, (0, 0, 0, 1))
        y = attend(queries, keys, values)[:, : self.inner_channels]
        waiting = [name for name in off if gates[name].requires_grad and torch.is_grad_enabled()]
        if waiting:
            slopes = self._slopes({name: references[name] for name in waiting}, queries, keys, y)
            y = y + sum(gates[name] * slope for name, slope in zip(waiting, slopes))
        return self.out(y.unflatten(2, query.shape[2:]))

    def _project(self, references: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the keys and the values of all pixels of some references: (B, D, M) each."""
        layers: list[_Reference] = [self.references[name] for name in references]  # type: ignore[misc]
        keys = [layer.phi(x).flatten(2) for layer, x in zip(layers, references.values())]
        values = [layer.g(x).flatten(2) for layer, x in zip(layers, references.values())]
        return torch.cat(keys, 2), torch.cat(values, 2)

    @torch.no_grad()
    def _slopes(
        self, references: Mapping[str, Tensor], queries: Tensor, keys: Tensor, y: Tensor
    ) -> Iterator[Tensor]:
        """Yield dy/ds_l at s_l = 0 of each reference: (y_l - y) sum_n f_ln / sum_on s f, of y's shape.

        y_l is what attention to that reference alone gives. The value of a reference that is off counts for
        nothing, so this is all that its gate's gradient needs.
        """
        log_sum = (queries.mT @ keys).logsumexp(2)  # B x N
        for name, feature in references.items():
            own_keys, own_values = self._project({name: feature})
            logits = queries[:, : self.inner_channels].mT @ own_keys
            share = (logits.logsumexp(2) - log_sum).clamp(max=HIGHEST).exp()
            yield share.unsqueeze(1) * ((logits.softmax(2) @ own_values.mT).mT - y)

    def macs(self, query: Feature) -> int:
        """See :meth:`Attention.macs`: theta and W."""
        return 2 * query.pixels * query.channels * self.inner_channels

    def reference_macs(self, query: Feature, reference: Feature) -> int:
        """See :meth:`Attention.reference_macs`: phi and g, the affinities and the weighted sums."""
        return 2 * reference.pixels * self.inner_channels * (reference.channels + query.pixels)


class _Reference(nn.Module):
    """What belongs to one referenced layer: its phi and g."""

    def __init__(self, reference_channels: int, inner_channels: int) -> None:
        super().__init__()
        self.phi = projection(reference_channels, inner_channels)
        self.g = projection(reference_channels, inner_channels)


def _log_gates(gate: Tensor | None, reference: Tensor) -> Tensor:
    """Return log s for every pixel of a reference: (B, M)."""
    zeros = reference.new_zeros(reference.shape[0], reference.shape[2] * reference.shape[3])
    return zeros if gate is None else zeros + gate.to(reference.dtype).log()
