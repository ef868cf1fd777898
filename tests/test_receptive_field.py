"""How far a network looks: against receptive fields that are known, and against outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from acla_nas import search_spaces
from acla_nas.network import CrossLayerNetwork
from acla_nas.receptive_field import backbone_reach, largest_offsets, total_reach


def edsr(**options):
    space = search_spaces.edsr(2, 3, 8, image_range=1.0, num_keys=4, **options)
    return space.freeze({"insert/1": True, "insert/2": False, "insert/3": True, "keys": 4}).eval()


def test_convolutions_give_their_receptive_field():
    # head 1, three blocks of 2, body_end 1, upsampler 1, and the last one at twice the resolution: 1/2 -> 1
    assert backbone_reach(edsr(), 3) == 1 + 3 * 2 + 1 + 1 + 1


def test_uneven_kernels_and_strides():
    body = nn.Sequential(nn.Conv2d(1, 4, (1, 9), padding=(0, 4)), nn.Conv2d(4, 1, 3, padding=1))
    assert backbone_reach(CrossLayerNetwork(body, {}, {}).eval(), 1) == 5
    halving = nn.Sequential(nn.Conv2d(1, 4, 2, stride=2), nn.ConvTranspose2d(4, 1, 2, stride=2))
    assert backbone_reach(CrossLayerNetwork(halving, {}, {}).eval(), 1, multiple_of=2) <= 1


def test_a_mean_over_the_image_sees_all_of_it():
    space = search_spaces.rcan(2, 2, 1, 8, 4, num_keys=2)
    network = space.freeze({"insert/1": True, "insert/2": False, "keys": 2}).eval()
    assert backbone_reach(network, 3) is None
    assert total_reach(network, None, {}, (3, 48, 48)) is None


@pytest.mark.parametrize(("attention", "bounded"), [("cla", True), ("acla+cla", True), ("nl", False)])
def test_attention_over_all_pixels_sees_all_of_them(attention, bounded):
    keys = {} if attention == "nl" else {"num_keys": 4}
    space = search_spaces.edsr(2, 2, 8, attention=attention, **keys)
    sample = {"insert/1": True, "insert/2": True, "keys": 4 if keys else 1}
    reach = total_reach(space.freeze(sample), 9, {}, (3, 48, 48))
    assert (reach is not None) == bounded


def test_nothing_further_away_than_the_reach_changes_an_output():
    torch.manual_seed(3)
    network = edsr()
    with torch.no_grad():
        for parameter in network.attention.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.7)
    image = torch.rand(1, 3, 80, 80)
    with torch.no_grad(), largest_offsets(network) as offsets:
        before = network(image)
        reach = total_reach(network, backbone_reach(network, 3), offsets, (3, 48, 48))
        assert set(offsets) == {"attention.1", "attention.3"} and max(offsets.values()) > 1
        image[..., 40, 40] = 1 - image[..., 40, 40]
        changed = (network(image) - before).abs().amax((0, 1)).nonzero()
    farthest = (changed // 2 - 40).abs().max()
    assert 10 < farthest <= reach


def test_the_measuring_hooks_are_taken_off():
    network = edsr()
    with largest_offsets(network):
        pass
    assert not any(m._forward_pre_hooks for m in network.modules())
