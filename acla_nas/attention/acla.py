"""Cross-layer attention (CLA) and its adaptive form (ACLA), the modules of the paper."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acla_nas.attention.attention import Attention, Feature, projection
from acla_nas.attention.forms import HIGHEST, is_fusable
from acla_nas.attention.open_keys import count_open_keys
from acla_nas.errors import AclaError
from acla_nas.gumbel import gumbel_gate
from acla_nas.ops import cross_layer_gather
from acla_nas.ops.sampling import sample_key_maps


class ACLA(Attention):
    """Adaptive cross-layer attention: each query pixel reads a few keys of every layer it refers to.

    With query feature x and references x^l, every convolution 1x1 and without bias::

        offsets  d = base + W_off x       (dx, dy) in pixels; base: K fixed places on rings of 1, 2, .. pixels
        logits   a = W_att x
        mask     b_k = mask_scale (M_l x^l(p + d_k))_k + gate_bias                                (Eq. 8)
        gate     m = [sigmoid((b + g1 - g2) / temperature) > 0.5], straight-through               (Eq. 7, 9)
        y        = sum_lk m exp(a) G_l x^l(p + d) / sum_lk exp(a)                                 (Eq. 6)

    and the module returns ``H y``, to be added to x (Eq. 2). W_off, W_att and H start at zero, so that
    insertion starts as the identity.

    As the paper has it the gates are noisy in training and half of them start closed, which at small size
    does worse than CLA (docs/results.md): ``gate_bias=0, gate_noise=True, zero_masks=False, mask_scale=1``.
    By default they start open and change slowly, without the Gumbel noise g1, g2, so that a module starts
    as CLA and closes the keys that are not worth the ``key_cost`` of a training.

    Because M and G are linear and bilinear reading is too, both are applied before sampling: once per
    reference, not once per key.

    Args:
        channels: C of the query feature.
        num_keys: K, the keys of each reference.
        num_references: R; the references are then called "1" .. "R" and have C channels each.
        reference_channels: instead of num_references, name -> channels of each reference.
        adaptive: gate the keys (ACLA); without it every key counts (CLA).
        gate_bias: constant added to the mask logits; above 0 the gates start open.
        gate_temperature: of the key gates' sigmoid; it shapes their gradient only.
        gate_noise: draw Gumbel noise g1, g2 in training, as the paper does; without it training sees the very
            gates that evaluation uses.
        zero_masks: start M at zero, so that every mask logit starts at gate_bias.
        mask_scale: factor of M x in the mask logit; below 1 the gates change more slowly in training.
        shared_mask: one mask logit per reference instead of one per key.
        softmax: "joint" over all references and keys, or over the keys of each "reference".
        renormalize: divide by the weights of the open keys instead of those of all keys.

    Raises:
        AclaError: num_keys < 1, no reference, or an unknown softmax.

    Example:
        >>> attention = ACLA(8, num_keys=4, num_references=2)
        >>> x1, x2 = torch.randn(2, 1, 8, 6, 6)
        >>> attention(x2, {"1": x1, "2": x2}).shape
        torch.Size([1, 8, 6, 6])
    """

    base: Tensor

    def __init__(
        self,
        channels: int,
        num_keys: int = 16,
        num_references: int = 1,
        *,
        reference_channels: Mapping[str, int] | None = None,
        adaptive: bool = True,
        gate_bias: float = 1.0,
        gate_temperature: float = 1.0,
        gate_noise: bool = False,
        zero_masks: bool = True,
        mask_scale: float = 0.1,
        shared_mask: bool = False,
        softmax: str = "joint",
        renormalize: bool = False,
    ) -> None:
        super().__init__()
        if reference_channels is None:
            reference_channels = {str(r): channels for r in range(1, num_references + 1)}
        if num_keys < 1:
            raise AclaError(f"num_keys must be at least 1, not {num_keys}")
        if not reference_channels:
            raise AclaError("an attention module needs at least one reference")
        if softmax not in ("joint", "reference"):
            raise AclaError(f"softmax must be 'joint' or 'reference', not {softmax!r}")
        self.channels, self.num_keys, self.adaptive = channels, num_keys, adaptive
        self.gate_bias, self.gate_temperature, self.gate_noise = gate_bias, gate_temperature, gate_noise
        self.shared_mask, self.softmax, self.renormalize = shared_mask, softmax, renormalize
        self.references = nn.ModuleDict(
            {
                name: _Reference(
                    channels, c, num_keys, (1 if shared_mask else num_keys) * adaptive, zero_masks, mask_scale
                )
                for name, c in reference_channels.items()
            }
        )
        self.out = projection(channels, channels, zero=True)
        self.register_buffer("base", key_rings(num_keys), persistent=False)

    def forward(
        self,
        query: Tensor,
        references: Mapping[str, Tensor],
        reference_gates: Mapping[str, Tensor] | None = None,
        key_gates: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`Attention.forward`."""
        return update(self, query, references, reference_gates or {}, key_gates)

    def insert(
        self,
        query: Tensor,
        references: Mapping[str, Tensor],
        reference_gates: Mapping[str, Tensor] | None = None,
        key_gates: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`Attention.insert`: the update is not held in memory, unless hooks are to see it."""
        arguments = (query, references, reference_gates, key_gates)
        if self._forward_hooks or self._forward_pre_hooks or not _is_inferred(self, *arguments):
            return super().insert(*arguments)
        from acla_nas.attention.acla_inference import infer

        return infer(self, query, references, is_added=True)

    def keys(self, query: Tensor, references: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return which keys the module reads for every query pixel, for those who want to look at them.

        Returns:
            offsets: (B, R, K, 2, H, W), (dx, dy) in pixels of the query's grid.
            weights: (B, R, K, H, W), m exp(a) / C: 0 where the gate is closed.
            gates: (B, R, K, H, W), m; all 1 where the keys are not adaptive.
        """
        [(keys, weights)] = self._weigh(query, references, {})
        return keys.offsets, weights, torch.ones_like(weights) if keys.gates is None else keys.gates

    def _weigh(
        self,
        query: Tensor,
        references: Mapping[str, Tensor],
        reference_gates: Mapping[str, Tensor],
        key_gates: Tensor | None = None,
    ) -> list[tuple[_Keys, Tensor]]:
        """Return the keys with their weights (B, R, K, H, W): of the references that are on, then off."""
        on, off = _split(references, reference_gates)
        keys = [self._keys(on, query, references)]
        if off:
            with torch.no_grad():
                keys.append(self._keys(off, query, references))

        logits = torch.cat([k.logits for k in keys], 1)
        masks = torch.cat([k.gates for k in keys if k.gates is not None], 1) if self.adaptive else None
        weights = self._softmax(logits, masks, _stack_gates([*on, *off], reference_gates), key_gates)
        return list(zip(keys, weights.split([len(k.values) for k in keys], 1)))

    def _keys(self, names: Sequence[str], query: Tensor, references: Mapping[str, Tensor]) -> _Keys:
        """Project the query and the references, once each, and gate the keys."""
        layers: list[_Reference] = [self.references[name] for name in names]  # type: ignore[misc]
        count, keys = len(names), self.num_keys
        fused = torch.cat([r.offset.weight for r in layers] + [r.logit.weight for r in layers])
        offsets, logits = F.conv2d(query, fused).split((2 * keys * count, keys * count), 1)
        offsets = offsets.unflatten(1, (count, keys, 2)) + self.base.to(query.dtype)[..., None, None]
        values, masks = [], []
        for r, (name, layer) in enumerate(zip(names, layers)):
            value = layer.project(references[name])
            if layer.mask is not None:
                value, mask = value.split((self.channels, layer.mask.out_channels), 1)
                masks.append(sample_key_maps(mask.expand(-1, keys, -1, -1), offsets[:, r]))
            values.append(value)
        gates = self._gate_keys(torch.stack(masks, 1)) if masks else None
        if gates is not None and (gates.requires_grad or not self.training):
            count_open_keys(gates.mean())
        return _Keys(values, offsets, logits.unflatten(1, (count, keys)), gates)

    def _gate_keys(self, mask: Tensor) -> Tensor:
        return gumbel_gate(
            mask + self.gate_bias, self.gate_temperature, noise=self.training and self.gate_noise
        )

    def _softmax(
        self, logits: Tensor, gates: Tensor | None, reference_gates: Tensor | None, key_gates: Tensor | None
    ) -> Tensor:
        """Return s m exp(a) / sum s exp(a): (B, R, K, H, W)."""
        dims = (1, 2) if self.softmax == "joint" else (2,)
        switches = [] if key_gates is None else [key_gates.view(1, 1, -1, 1, 1)]
        if reference_gates is not None and self.softmax == "joint":
            switches.append(reference_gates.view(1, -1, 1, 1, 1))
        largest = logits.detach()
        for switch in switches:  # what is off must not decide the scale: all else could vanish beside it
            largest = largest.masked_fill(switch.detach() == 0, -math.inf)
        scores = logits - largest.amax(dims, keepdim=True)
        if switches:
            scores = scores.clamp(max=HIGHEST)  # above 0 is only what is off
        scores = scores.exp()
        for switch in switches:
            scores = scores * switch
        kept = scores if gates is None else scores * gates
        total = scores.sum(dims, keepdim=True)
        if self.renormalize:  # the small part of all keys is for queries that have no open one
            total = kept.sum(dims, keepdim=True) + 1e-6 * total
        weights = kept / total
        if reference_gates is not None and self.softmax == "reference":
            weights = weights * reference_gates.view(1, -1, 1, 1, 1)
        return weights

    def select(self, references: Sequence[str], num_keys: int) -> ACLA:
        """See :meth:`Attention.select`."""
        chosen = cast(ACLA, super().select(references, num_keys))
        if num_keys < self.num_keys:
            for layer in chosen.references.values():
                layer.keep_keys(num_keys)  # type: ignore[operator]
            chosen.num_keys = num_keys
            chosen.base = self.base[:num_keys].clone()
        return chosen

    def macs(self, query: Feature) -> int:
        """See :meth:`Attention.macs`: the output projection H."""
        return query.pixels * query.channels**2

    def reference_macs(self, query: Feature, reference: Feature) -> int:
        """See :meth:`Attention.reference_macs`.

        The projections of the query (offsets, logits) and of the reference (values, masks), four
        weighted rows per key, and four weighted mask values per key.
        """
        mask = 0 if not self.adaptive else 1 if self.shared_mask else self.num_keys
        project_query = query.pixels * query.channels * 3 * self.num_keys
        project_reference = reference.pixels * reference.channels * (query.channels + mask)
        gather = query.pixels * self.num_keys * 4 * (query.channels + self.adaptive)
        return project_query + project_reference + gather


class _Keys(NamedTuple):
    """The sampled keys of R references: values R x (B, C, H_l, W_l), the others (B, R, K, .., H, W)."""

    values: list[Tensor]
    offsets: Tensor
    logits: Tensor
    gates: Tensor | None


class _Reference(nn.Module):
    """What belongs to one referenced layer: its part of W_off and W_att, and its M and G."""

    def __init__(
        self,
        channels: int,
        reference_channels: int,
        num_keys: int,
        num_masks: int,
        zero_masks: bool,
        mask_scale: float,
    ) -> None:
        super().__init__()
        self.offset = projection(channels, 2 * num_keys, zero=True)
        self.logit = projection(channels, num_keys, zero=True)
        self.mask = projection(reference_channels, num_masks, zero=zero_masks) if num_masks else None
        self.value = projection(reference_channels, channels)
        self.mask_scale = mask_scale

    def project(self, feature: Tensor) -> Tensor:
        """Return G x, and M x behind it where there is a mask, from one convolution."""
        return F.conv2d(feature, self.projection())

    def projection(self) -> Tensor:
        """Return G, and M below it where there is a mask."""
        if self.mask is None:
            return self.value.weight
        return torch.cat((self.value.weight, self.mask_scale * self.mask.weight))

    def keep_keys(self, num_keys: int) -> None:
        """Drop the weights of all but the first keys."""
        _keep_outputs(self.offset, 2 * num_keys)
        _keep_outputs(self.logit, num_keys)
        if self.mask is not None and self.mask.out_channels > 1:
            _keep_outputs(self.mask, num_keys)


def _keep_outputs(projection: nn.Conv2d, outputs: int) -> None:
    projection.out_channels = outputs
    projection.weight = nn.Parameter(projection.weight.detach()[:outputs].clone())


def update(
    module: ACLA,
    query: Tensor,
    references: Mapping[str, Tensor],
    reference_gates: Mapping[str, Tensor],
    key_gates: Tensor | None,
) -> Tensor:
    """Return H y: in a form that is made for the device, where that can be, or else step by step."""
    arguments = (module, query, references, reference_gates, key_gates)
    if _is_inferred(*arguments):
        from acla_nas.attention.acla_inference import infer

        return infer(module, query, references)
    if not is_fusable(query, references.values()) or (
        module.training and module.adaptive and module.gate_noise
    ):
        return update_in_steps(*arguments)
    if module.training or torch.is_grad_enabled() or query.device.type != "cpu":
        return update_at_once(*arguments)
    return update_in_steps(*arguments)


def _is_inferred(
    module: ACLA,
    query: Tensor,
    references: Mapping[str, Tensor],
    reference_gates: Mapping[str, Tensor] | None,
    key_gates: Tensor | None,
) -> bool:
    """Whether one call of a compiled function does all of a module, as where nothing is trained."""
    if module.training or torch.is_grad_enabled() or query.device.type != "cpu":
        return False
    return not reference_gates and key_gates is None and is_fusable(query, references.values())


def update_in_steps(
    module: ACLA,
    query: Tensor,
    references: Mapping[str, Tensor],
    reference_gates: Mapping[str, Tensor],
    key_gates: Tensor | None,
) -> Tensor:
    """Return the same step by step: on any device, of features of any size."""
    keys = module._weigh(query, references, reference_gates, key_gates)
    sums = [cross_layer_gather(k.values, k.offsets, weights) for k, weights in keys]
    return module.out(sums[0] + sums[1] if len(sums) > 1 else sums[0])


def update_at_once(
    module: ACLA,
    query: Tensor,
    references: Mapping[str, Tensor],
    reference_gates: Mapping[str, Tensor],
    key_gates: Tensor | None,
) -> Tensor:
    """Return the same at once, for features that a fused form takes."""
    dtype = query.dtype
    if query.device.type == "cpu":
        from acla_nas.attention.acla_training import attend
    else:
        from acla_nas.attention.acla_gpu import attend

        dtype = torch.float32
    on, off = _split(references, reference_gates)
    count, keys = len(references), module.num_keys
    ones = query.new_ones(count * (keys + 1), dtype=dtype)
    inside, outside = ones[count:].view(count, keys), ones[:count]
    gates = _stack_gates([*on, *off], reference_gates)
    if gates is not None and module.softmax == "joint":
        inside = inside * gates.to(dtype).unsqueeze(1)
    elif gates is not None:
        outside = gates.to(dtype)
    if key_gates is not None:
        inside = inside * key_gates.to(dtype)
    features = [references[name] for name in (*on, *off)]
    layers = [module.references[name] for name in (*on, *off)]
    result, share = attend(module, query, features, layers, inside, outside, len(on))
    if module.adaptive and (share.requires_grad or not module.training):
        count_open_keys(share)
    return result


def _split(references: Mapping[str, Tensor], gates: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Return the references that are on, and those gated off: of these only the gate has a gradient."""
    off = set()
    if gates:  # one look at all of them: a GPU is waited for each time
        values = torch.stack([gate.detach() for gate in gates.values()]).tolist()
        off = {name for name, value in zip(gates, values) if not value}
    return [n for n in references if n not in off], [n for n in references if n in off]


def _stack_gates(names: Sequence[str], gates: Mapping[str, Tensor]) -> Tensor | None:
    if not gates:
        return None
    one = next(iter(gates.values())).new_ones(())
    return torch.stack([gates.get(name, one) for name in names])


def key_rings(num_keys: int) -> Tensor:
    """Return K distinct places around the query, (K, 2) as (dx, dy) in pixels, nearest ring first.

    Eight places a ring, on circles of 1, 2, 3, .. pixels, each ring turned by half a step against the
    one before.

    Example:
        >>> key_rings(2).round(decimals=3)
        tensor([[1.0000, 0.0000],
                [0.7070, 0.7070]])
    """
    places = []
    for k in range(num_keys):
        ring, step = divmod(k, 8)
        angle = 2 * math.pi * (step + 0.5 * (ring % 2)) / 8
        places.append(((ring + 1) * math.cos(angle), (ring + 1) * math.sin(angle)))
    return torch.tensor(places)


def cla(
    channels: int,
    num_keys: int = 8,
    num_references: int = 1,
    *,
    reference_channels: Mapping[str, int] | None = None,
    softmax: str = "joint",
) -> ACLA:
    """Cross-layer attention: :class:`ACLA` with every key counted, K = 8.

    Example:
        >>> cla(16).num_keys
        8
    """
    return ACLA(
        channels,
        num_keys,
        num_references,
        reference_channels=reference_channels,
        adaptive=False,
        softmax=softmax,
    )
