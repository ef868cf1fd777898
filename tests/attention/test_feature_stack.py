"""Features that a GPU has in one tensor: gradients are those that autograd adds up, and memory is freed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from acla_nas import network as networks
from acla_nas.attention.feature_stack import FeatureStack, place_of, stack_rows
from acla_nas.attention.shared_gradient import share_in_stack
from acla_nas.network import CrossLayerNetwork
from tests.random_weights import randomize

pytest.importorskip("triton")
acla_gpu = pytest.importorskip("acla_nas.attention.acla_gpu")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Body(nn.Module):
    """Three blocks; the second may be run again in the backward pass."""

    checkpointed = False

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(5, 5, 1), nn.Tanh()) for _ in range(3))

    def forward(self, x):
        first, second, third = self.blocks
        x = first(x)
        return third(checkpoint(second, x, use_reentrant=False) if self.checkpointed else second(x))


@pytest.fixture
def network(monkeypatch):
    """A network whose modules are run as on a GPU, wherever it is."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr("acla_nas.attention.acla_training.attend", acla_gpu.attend)
    monkeypatch.setattr(networks, "share_gradient", share_in_stack)
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 5, 1), Body(), nn.Conv2d(5, 3, 1))
    paths = {j: f"1.blocks.{j - 1}" for j in (1, 2, 3)}
    network = CrossLayerNetwork.dense(
        backbone, paths, "acla", num_keys=2, zero_masks=False, input_shape=(3, 4, 3)
    )
    randomize(network.attention, 0.3)
    return network.to(DEVICE).train()


def loss_of(network, gates=None):
    torch.manual_seed(1)
    return network(torch.rand(2, 3, 4, 3).to(DEVICE), gates=gates).square().mean()


def gradients(network, loss, **options):
    return torch.autograd.grad(loss, list(network.parameters()), **options)


def without_stack(network, monkeypatch, found):
    with monkeypatch.context() as patch:
        patch.setattr(networks, "share_gradient", lambda feature, stack: feature)
        return found()


def assert_equal(found, expected):
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-7)


def test_gradients_are_those_without_it(network, monkeypatch):
    expected = without_stack(network, monkeypatch, lambda: gradients(network, loss_of(network)))
    assert all(x.abs().max() > 0 for x in expected)
    stacked = []
    monkeypatch.setattr(
        networks, "share_gradient", lambda x, stack: stacked.append(share_in_stack(x, stack)) or stacked[-1]
    )
    loss = loss_of(network)
    assert [place_of(x).index for x in stacked] == [0, 1, 2]
    assert_equal(gradients(network, loss), expected)


def test_with_gates_of_which_some_are_off(network, monkeypatch):
    def found():
        gates = {j: torch.tensor(float(j != 2), requires_grad=True, device=DEVICE) for j in (1, 2, 3)}
        wanted = [*gates.values(), *network.backbone.parameters()]
        return torch.autograd.grad(loss_of(network, gates), wanted)

    assert_equal(found(), without_stack(network, monkeypatch, found))


@pytest.mark.slow
def test_backward_passes_after_another(network):
    """Each counts on its own, be it one that did not reach all features."""
    expected = gradients(network, loss_of(network))
    loss = loss_of(network)
    last = network.attention["3"].references["1"].value.weight
    torch.autograd.grad(loss, last, retain_graph=True)
    assert_equal(gradients(network, loss, retain_graph=True), expected)
    assert_equal(gradients(network, loss), expected)


@pytest.mark.slow
def test_parts_that_are_run_again(network):
    expected = gradients(network, loss_of(network))
    network.backbone[1].checkpointed = True
    assert_equal(gradients(network, loss_of(network)), expected)
    network.backbone[1].checkpointed = False
    network.micro_batch = 1
    assert_equal(gradients(network, loss_of(network)), expected)


def test_lets_go_of_features_after_the_pass():
    stack = FeatureStack(2)
    features = torch.randn(2, 1, 3, 2, 4)
    shared = [share_in_stack(x, stack) for x in features]
    [rows], of = stack_rows(shared, torch.float32)
    assert of is stack and torch.equal(rows, features.flatten(3).mT)
    stack.close()
    assert stack.rows(2) is None and torch.equal(rows, features.flatten(3).mT)


def test_only_what_is_first_in_a_stack_is_not_copied():
    stack = FeatureStack(2)
    first, second, other = torch.randn(3, 1, 3, 2, 4)
    first, second = share_in_stack(first, stack), share_in_stack(second, stack)
    for features, held in (((first, other), [1, 1]), ((first, second), [2]), ((first,), [1])):
        rows, of = stack_rows(features, torch.float32)
        assert of is stack and [len(part) for part in rows] == held
        assert torch.equal(torch.cat(rows), torch.stack(features).flatten(3).mT)
    single, half = torch.float32, torch.float16
    for features, dtype in (((second,), single), ((other, first), single), ((first,), half)):
        [rows], of = stack_rows(features, dtype)
        assert of is None and torch.equal(rows, torch.stack(features).flatten(3).mT.to(dtype))


def test_does_not_take_what_does_not_fit():
    stack = FeatureStack(2)
    shapes = [(1, 3, 2, 4), (1, 3, 4, 4), (1, 3, 4, 2), (1, 3, 2, 4)]
    places = [place_of(share_in_stack(torch.randn(shape), stack)) for shape in shapes]
    assert [place and place.index for place in places] == [0, None, 1, None]


def test_what_is_pushed_later_does_not_change_what_was_kept():
    stack, weight = FeatureStack(2), torch.ones(3, requires_grad=True)
    stack.push(torch.ones(1, 3, 1, 1))
    product = stack.rows(1) * weight
    stack.push(torch.ones(1, 3, 1, 1))
    product.sum().backward()
    assert torch.equal(weight.grad, torch.ones(3))
