"""SpaceCost: derived architectures and expectations, over numbers of keys too."""

from __future__ import annotations

import itertools

import pytest
import torch

import acla_nas
from acla_nas.cost.space_cost import SpaceCost


@pytest.mark.parametrize("model", ["macs", "paper", "params"])
def test_expected_is_the_mean_over_all_samples(model: str) -> None:
    space = acla_nas.search_spaces.edsr(num_blocks=3, num_channels=4, num_keys=[2, 4])
    cost = SpaceCost(space, acla_nas.cost.get(model))
    inserted = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    of_keys = torch.tensor([0.3, 0.7], dtype=torch.float64)
    mean = 0.0
    for gates in itertools.product([False, True], repeat=3):
        for index, keys in enumerate(space.key_gate.num_keys):
            probability = of_keys[index]
            for gate, p in zip(gates, inserted):
                probability = probability * (p if gate else 1 - p)
            sample = {f"insert/{j}": gate for j, gate in enumerate(gates, start=1)} | {"keys": keys}
            mean += float(probability) * cost.of(sample)
    assert float(cost.expected(inserted, of_keys)) == pytest.approx(mean, rel=1e-9)


def test_the_cost_of_fewer_keys_is_that_of_the_network_that_has_them() -> None:
    space = acla_nas.search_spaces.edsr(num_blocks=2, num_channels=4, num_keys=[2, 4])
    cost = SpaceCost(space, acla_nas.cost.get("params"))
    for keys in (2, 4):
        sample = {"insert/1": True, "insert/2": True, "keys": keys}
        network = space.freeze(sample)
        assert cost.of(sample) == sum(p.numel() for p in network.attention.parameters())
