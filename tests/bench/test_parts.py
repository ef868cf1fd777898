"""bench: what ACLA cannot do without: that nothing of it is missing, and that nothing is there twice."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from acla_nas.attention import ACLA
from acla_nas.bench import parts
from acla_nas.bench.counts import inserted_macs
from acla_nas.bench.parts import parts_of_module
from acla_nas.network import CrossLayerNetwork
from acla_nas.search_spaces.edsr import EDSR

C, R, SIZE = 8, 3, 6
P = SIZE * SIZE


def macs_of(compute):
    with FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops() / 2


def test_products_are_those_of_a_network():
    """As its cost counts them, but for H, which is multiplied into other matrices, and what is read."""
    paths = {j: f"body.{j - 1}" for j in range(1, R + 1)}
    network = CrossLayerNetwork.dense(EDSR(2, R, C), paths, "acla")
    assert all(isinstance(module, ACLA) for module in network.attention.values())
    alone = sum(macs_of(parts_of_module(C, references, SIZE)) for references in range(1, R + 1))
    of_h, read = P * C * C, 4 * 16 * P * (C + 1)
    assert alone == inserted_macs(network, (3, SIZE, SIZE)) - R * of_h - R * (R + 1) / 2 * read


@pytest.mark.parametrize("batch_size", [1, 2, 4, 6])
def test_a_training_has_all_of_a_batch(batch_size, monkeypatch):
    bags = []

    def bags_alone(case, device):
        assert (case.channels, case.references, case.keys, case.size) == (C, 1, 16, SIZE)
        return lambda: bags.append(case) or [torch.empty(0)]

    monkeypatch.setattr(parts, "bags_alone", bags_alone)
    projections = P * C * (48 * R + (C + 16) * R)
    # Forward, again, and two gradients; of H, which is not computed again, three in all.
    expected = batch_size * (4 * projections + 3 * P * C * C)
    assert macs_of(parts_of_module(C, R, SIZE, batch_size, training=True)) == expected
    assert len(bags) == 3 * batch_size * R
