"""Our own spaces keep the contract of a search space, and the contract notices one that does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from acla_nas import CrossLayerSpace, search_spaces
from acla_nas.network import CrossLayerNetwork
from acla_nas.testing import check_space


@pytest.mark.parametrize(
    "make",
    [
        lambda: search_spaces.edsr(2, 3, 8, num_keys=(2, 3)),
        lambda: search_spaces.edsr(1, 2, 8, attention="cla+se", num_keys=2, reduction=2),
        lambda: search_spaces.rcan(2, 2, 1, 8, reduction=4, num_keys=2),
    ],
    ids=["edsr", "edsr-cla+se", "rcan"],
)
def test_registered_spaces(make):
    space = make()
    before = {name: value.clone() for name, value in space.state_dict().items()}
    check_space(space, torch.rand(1, 3, 8, 10))
    assert all(torch.equal(value, before[name]) for name, value in space.state_dict().items())
    assert space.training


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x):
        for layer in self.body:
            x = layer(x)
        return x


class Remembers(Chain):
    """Adds up what it has seen: another result for the same input."""

    seen: Tensor | float = 0.0

    def forward(self, x):
        self.seen = self.seen + x.mean().detach()
        return super().forward(x) + self.seen


class Draws(Chain):
    def forward(self, x):
        return super().forward(x + 0.01 * torch.rand_like(x))


class DropsTheLast(Chain):
    def forward(self, x):
        x = self.body[1](self.body[0](x))
        self.body[2](x)
        return x


class Detaches(Chain):
    def forward(self, x):
        x = self.body[1](self.body[0](x)).detach()
        return self.body[2](x)


def space_over(backbone):
    return CrossLayerSpace(backbone, "body.*", num_keys=2, input_shape=(3, 8, 8))


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (Remembers, "keeps a state from one forward pass to the next"),
        (Draws, "does not compute the same each time"),
        (DropsTheLast, "after 'body.2' does not change what the backbone returns"),
        (Detaches, "no gradient reaches .* of the attention after 'body.1'"),
    ],
)
def test_a_backbone_that_breaks_the_contract(backbone, message):
    with pytest.raises(AssertionError, match=message):
        check_space(space_over(backbone()))


class LosesALayer(CrossLayerSpace):
    def freeze(self, sample):
        return super().freeze({**sample, "insert/2": False})


class OtherArchitecture(CrossLayerSpace):
    def arch(self, sample):
        return super().arch({**sample, "insert/1": False})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (LosesALayer, "the derived network is not the space with its gates set, .*'body.1'"),
        (OtherArchitecture, "export with the weights of the space|weights"),
    ],
)
def test_a_space_that_breaks_the_contract(kind, message):
    with pytest.raises(AssertionError, match=message):
        check_space(kind(Chain(), "body.*", num_keys=2, input_shape=(3, 8, 8)))


def test_an_input_that_the_backbone_does_not_take():
    with pytest.raises(AssertionError, match=r"bare backbone does not run on an input \(1, 5, 8, 8\)"):
        check_space(space_over(Chain()), torch.rand(1, 5, 8, 8))


def test_copies_that_share(monkeypatch):
    monkeypatch.setattr(CrossLayerNetwork, "__deepcopy__", lambda self, memo: self)
    with pytest.raises(AssertionError, match="deep copy of the space shares"):
        check_space(space_over(Chain()))
