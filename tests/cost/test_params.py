"""The parameters of inserted modules, against those of derived networks."""

from __future__ import annotations

import pytest
from torch import nn

from acla_nas import CrossLayerSpace, attention, cost, search_spaces

SHAPE = (3, 12, 16)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("inserted", [(True, False, False), (True, False, True), (True, True, True)], ids=str)
@pytest.mark.parametrize("name", [*attention.names(), "acla+se", "nl+clnl"])
def test_they_are_those_of_the_derived_network_less_the_backbones(name, inserted):
    backbone = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.Conv2d(24, 16, 1)
    )
    space = CrossLayerSpace(backbone, "?", attention=name, input_shape=SHAPE)
    table = cost.get("params").table(space.network, SHAPE)
    keys = space.key_gate.num_keys[0]
    derived = space.freeze({**{f"insert/{j}": s for j, s in enumerate(inserted, 1)}, "keys": keys})
    assert table.unit == "parameters"
    assert table.of(list(inserted)) == count(derived) - count(backbone)


def test_of_a_space_with_several_numbers_of_keys():
    space = search_spaces.edsr(num_blocks=3, num_channels=8, num_keys=[2, 5])
    for keys in (2, 5):
        derived = space.freeze({"insert/1": True, "insert/2": False, "insert/3": True, "keys": keys})
        table = cost.get("params").table(space.network.select((1, 2, 3), keys))
        assert table.of([True, False, True]) == count(derived) - count(space.network.backbone)
