"""Recomputation and micro-batches: the same gradients, in less memory."""

from __future__ import annotations

import pytest
import torch

from acla_nas import search_spaces
from acla_nas.attention.open_keys import open_key_shares


def make_network(attention="acla", **options):
    space = search_spaces.edsr(2, 4, 8, image_range=1.0, attention=attention, num_keys=3, **options)
    network = space.network.double().train()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


def gates():
    values = {1: 1.0, 2: 0.0, 3: 1.0}
    return {j: torch.tensor(v, dtype=torch.float64, requires_grad=True) for j, v in values.items()}


def gradients(network, given):
    torch.manual_seed(1)
    with open_key_shares() as shares:
        output = network(torch.rand(4, 3, 8, 8, dtype=torch.float64), gates=given)
    loss = (output**2).mean() + sum(shares) / max(1, len(shares))
    wanted = [p for p in network.parameters() if p.requires_grad] + list(given.values())
    return [output.detach(), *torch.autograd.grad(loss, wanted, allow_unused=True)]


def saved_bytes(network):
    """Count what a training step keeps for its backward pass."""
    seen = {}

    def keep(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    image = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(image)
    del output
    return sum(seen.values())


@pytest.mark.parametrize(
    "options", [{"recompute": True}, {"micro_batch": 2}, {"recompute": True, "micro_batch": 1}]
)
@pytest.mark.parametrize("attention", ["acla", "cla"])
def test_gradients_are_those_of_the_whole_batch(attention, options):
    network = make_network(attention)
    expected = gradients(network, gates())
    for name, value in options.items():
        setattr(network, name, value)
    actual = gradients(network, gates())
    assert sum(x is not None and bool(x.abs().max() > 0) for x in expected) > 10
    for x, y in zip(actual, expected):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("options", [{"recompute": True}, {"micro_batch": 1}])
def test_less_is_kept(options):
    # The general form, which noisy gates need: the fused form keeps hardly anything of itself.
    network = make_network(gate_noise=True)
    before = saved_bytes(network)
    for name, value in options.items():
        setattr(network, name, value)
    assert saved_bytes(network) < before / 2


def test_noise_is_the_same_when_it_is_run_again():
    network = make_network(gate_noise=True, gate_bias=0.0, zero_masks=False, mask_scale=1.0)
    network.recompute = True
    first, second = gradients(network, gates()), gradients(network, gates())
    assert all(x is None or torch.equal(x, y) for x, y in zip(first, second))


def test_evaluation_runs_all_at_once(monkeypatch):
    network = make_network().eval()
    network.recompute, network.micro_batch = True, 1
    monkeypatch.setattr("acla_nas.network.in_groups", None)
    monkeypatch.setattr("acla_nas.network.recomputed_update", None)
    assert network(torch.rand(2, 3, 8, 8, dtype=torch.float64)).shape == (2, 3, 16, 16)
