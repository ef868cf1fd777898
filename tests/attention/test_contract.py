"""Every registered attention module keeps the contract, and the contract notices one that does not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from acla_nas import attention as attentions
from acla_nas.attention import CrossLayerNonLocal
from acla_nas.testing import check_attention

COMBINATIONS = ["acla+se", "nl+clnl"]


@pytest.mark.parametrize("name", [*attentions.names(), *COMBINATIONS])
def test_every_registered_attention(name):
    check_attention(name)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("acla", {"num_keys": 3, "shared_mask": True, "softmax": "reference"}),
        ("clnl", {"inner_channels": 20}),
        ("se", {"reduction": 2}),
        ("mha", {"num_heads": 2, "max_distance": 3}),
    ],
)
def test_with_options(name, options):
    check_attention(name, **options)


class IgnoresGates(CrossLayerNonLocal):
    def forward(self, query, references, reference_gates=None, key_gates=None):
        return super().forward(query, references)


class ScalesByGates(CrossLayerNonLocal):
    """Weighs a reference by its gate, but not in the denominator."""

    def forward(self, query, references, reference_gates=None, key_gates=None):
        gates = reference_gates or {}
        scaled = {name: x * gates.get(name, 1.0) for name, x in references.items()}
        return super().forward(query, scaled)


class CutsTheGradient(CrossLayerNonLocal):
    def forward(self, query, references, reference_gates=None, key_gates=None):
        detached = {name: gate.detach() for name, gate in (reference_gates or {}).items()}
        return super().forward(query, references, detached)


class StartsElsewhere(CrossLayerNonLocal):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        nn.init.ones_(self.out.weight)


class CannotStart(CrossLayerNonLocal):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        for layer in self.references.values():
            nn.init.zeros_(layer.g.weight)


class SharesOnSelect(CrossLayerNonLocal):
    def select(self, references, num_keys):
        selected = super().select(references, num_keys)
        selected.out = self.out
        return selected


class KeepsAll(CrossLayerNonLocal):
    def select(self, references, num_keys):
        return super().select(list(self.references), num_keys)


class CountsTooFew(CrossLayerNonLocal):
    """Forgets the projections of the reference."""

    def reference_macs(self, query, reference):
        return 2 * query.pixels * reference.pixels * self.inner_channels


class HasAnUnusedWeight(CrossLayerNonLocal):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.unused = nn.Parameter(torch.ones(3))


class DependsOnTheBatch(CrossLayerNonLocal):
    def forward(self, query, references, reference_gates=None, key_gates=None):
        return super().forward(query, references, reference_gates) * query.mean()


class FixesTheSize(CrossLayerNonLocal):
    """What tracing and exporting cannot follow: a size turned into a constant of the program."""

    def forward(self, query, references, reference_gates=None, key_gates=None):
        update = super().forward(query, references, reference_gates)
        return update if torch.compiler.is_exporting() else update * 2


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (IgnoresGates, "gated off.*not what the module without them gives"),
        (ScalesByGates, "gated off.*not what the module without them gives"),
        (CutsTheGradient, "gate of reference 1, 0.0, gets no gradient"),
        (StartsElsewhere, "does not start at 0"),
        (CannotStart, "can never leave it"),
        (SharesOnSelect, "shares the weight out.weight"),
        (KeepsAll, "must drop the weights of the references left out.*references.1.g.weight"),
        (CountsTooFew, "reference_macs.* state .* are executed"),
        (HasAnUnusedWeight, r"no gradient reaches \['unused'\]"),
        (DependsOnTheBatch, "depends on the other images"),
        (FixesTheSize, "torch.export gives something else"),
    ],
)
def test_what_breaks_the_contract_is_noticed(broken, message):
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        check_attention(broken)


def test_one_that_does_not_start_as_the_identity_can_say_so():
    check_attention(StartsElsewhere, starts_as_identity=False)
    with pytest.raises(AssertionError, match="leave starts_as_identity out"):
        check_attention("nl", starts_as_identity=False)


def test_the_random_state_is_left_as_it_was():
    before = torch.get_rng_state()
    check_attention("se")
    assert torch.equal(torch.get_rng_state(), before)
