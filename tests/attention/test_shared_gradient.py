"""Gradients that the readers of a feature add up in one place: those that autograd adds up."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from acla_nas import network as networks
from acla_nas.attention.shared_gradient import SharedGradient
from acla_nas.network import CrossLayerNetwork
from tests.random_weights import randomize


@pytest.fixture
def network():
    body = [nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()) for _ in range(4)]
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), *body, nn.Conv2d(6, 3, 3, padding=1))
    paths = {j: str(j) for j in range(1, 5)}
    network = CrossLayerNetwork.dense(backbone, paths, "acla", num_keys=4, zero_masks=False).double().train()
    randomize(network.attention, 0.3)
    return network


@pytest.fixture
def images():
    return torch.rand(2, 3, 9, 8, dtype=torch.float64)


def loss_of(network, images, gates=None):
    return network(images, gates=gates).square().mean()


def gradients(network, loss, **options):
    return torch.autograd.grad(loss, list(network.parameters()), **options)


def assert_equal(found, expected):
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-13)


def test_are_those_without_it(network, images, monkeypatch):
    calls, add = [], SharedGradient.to_add_to
    monkeypatch.setattr(SharedGradient, "to_add_to", lambda *of: calls.append(add(*of)) or calls[-1])
    found = gradients(network, loss_of(network, images))
    assert [is_begun for _, is_begun in calls] == 4 * [False] + 6 * [True]
    monkeypatch.setattr(networks, "share_gradient", lambda feature, stack: feature)
    expected = gradients(network, loss_of(network, images))
    assert all(x.abs().max() > 0 for x in expected)
    assert_equal(found, expected)


def test_with_gates_of_which_some_are_off(network, images, monkeypatch):
    def found():
        gates = {j: torch.tensor(float(j % 2), dtype=torch.float64, requires_grad=True) for j in range(1, 5)}
        wanted = [*gates.values(), *network.backbone.parameters()]
        return torch.autograd.grad(loss_of(network, images, gates), wanted)

    shared = found()
    monkeypatch.setattr(networks, "share_gradient", lambda feature, stack: feature)
    assert_equal(shared, found())


def test_backward_passes_after_another(network, images):
    """Each counts on its own, be it one that did not reach all features."""
    loss = loss_of(network, images)
    expected = gradients(network, loss_of(network, images))
    last = network.attention["4"].references["1"].value.weight
    torch.autograd.grad(loss, last, retain_graph=True)
    assert_equal(gradients(network, loss, retain_graph=True), expected)
    assert_equal(gradients(network, loss), expected)


def test_parts_that_are_run_again(network, images):
    expected = gradients(network, loss_of(network, images))
    network.recompute = True
    assert_equal(gradients(network, loss_of(network, images)), expected)
    network.recompute, network.micro_batch = False, 1
    assert_equal(gradients(network, loss_of(network, images)), expected)


def test_attention_that_knows_nothing_of_it_can_be_transformed():
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1))
    network, image = CrossLayerNetwork.dense(backbone, {1: "0"}, "nl").train(), torch.rand(1, 3, 8, 8)
    randomize(network, 0.3)

    def loss(weights):
        return torch.func.functional_call(network, weights, (image,)).square().sum()

    found = torch.func.grad(loss)({name: w.detach() for name, w in network.named_parameters()})
    loss(dict(network.named_parameters())).backward()
    for name, weight in network.named_parameters():
        torch.testing.assert_close(found[name], weight.grad)
