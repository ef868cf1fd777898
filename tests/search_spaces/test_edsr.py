"""EDSR as a search space, and the register of search spaces."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from acla_nas import CrossLayerSpace, export, search_spaces
from acla_nas.errors import AclaError
from acla_nas.search_spaces.edsr import EDSR

PAPER_POSITIONS = (3, 12, 26, 31, 32)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def paper_arch(name, num_keys):
    return {
        "format": "acla_nas.arch",
        "format_version": 1,
        "space": {"backbone": "EDSR"},
        "positions": PAPER_POSITIONS,
        "paths": {j: f"body.{j - 1}" for j in PAPER_POSITIONS},
        "attention": {"name": name, "num_keys": num_keys},
    }


def test_parameter_count_of_the_paper_without_attention():
    with torch.device("meta"):
        assert parameters(EDSR(scale=2)) == 40_729_627


@pytest.mark.parametrize(("name", "num_keys", "count"), [("cla", 8, 42_132_507), ("acla", 16, 42_286_107)])
def test_parameter_counts_of_the_paper(name, num_keys, count):
    with torch.device("meta"):
        model = export(paper_arch(name, num_keys), backbone=EDSR(scale=2))
    assert parameters(model) == count


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_output_sizes(scale):
    space = search_spaces.edsr(scale, num_blocks=2, num_channels=4, num_keys=2)
    for batch, height, width in ((1, 5, 7), (2, 8, 4)):
        assert space(torch.rand(batch, 3, height, width)).shape == (batch, 3, scale * height, scale * width)
    sample = {"insert/1": True, "insert/2": True, "keys": 2}
    assert space.freeze(sample)(torch.rand(1, 3, 5, 7)).shape == (1, 3, 5 * scale, 7 * scale)


@pytest.mark.parametrize("channels", [1, 3])
def test_at_scale_1_it_learns_what_to_add_to_its_input(channels):
    space = search_spaces.edsr(
        1, num_blocks=2, num_channels=4, num_keys=2, in_channels=channels, out_channels=channels
    )
    assert space.input_shape == (channels, 48, 48)
    x = torch.rand(2, channels, 5, 7)
    assert space(x).shape == x.shape and not torch.equal(space(x), x)
    derived = export(space.arch({"insert/1": True, "insert/2": True, "keys": 2}))
    assert derived(x).shape == x.shape
    with torch.no_grad():
        for parameter in space.parameters():
            parameter.zero_()
    assert torch.equal(space(x), x)


def test_parameter_counts_of_the_form_with_16_blocks():
    """Blocks of 128 channels: the paper's 5.430 M is of no width; 135 and 136 give 5.425 M and 5.505 M."""
    with torch.device("meta"):
        assert parameters(EDSR(scale=1, num_blocks=16, num_channels=128)) == 4_877_315
        one = EDSR(scale=1, num_blocks=16, num_channels=128, in_channels=1, out_channels=1)
        assert parameters(one) == 4_872_705
        assert [p.requires_grad for p in one.parameters()].count(False) == 0


@pytest.mark.parametrize(("scale", "channels"), [(1, (4, 3)), (2, (1, 3)), (2, (1, 1))])
def test_other_channels(scale, channels):
    network = EDSR(scale, 1, 4, in_channels=channels[0], out_channels=channels[1])
    x = torch.rand(1, channels[0], 4, 6)
    assert network(x).shape == (1, channels[1], 4 * scale, 6 * scale)


def test_positions_are_the_residual_blocks():
    space = search_spaces.edsr(2, num_blocks=12, num_channels=4, num_keys=1)
    assert space.positions == tuple(f"body.{i}" for i in range(12))


def test_residual_scale_follows_the_channels():
    with torch.device("meta"):
        assert EDSR(num_blocks=1).body[0].residual_scale == 0.1
    assert EDSR(num_blocks=1, num_channels=64).body[0].residual_scale == 1.0
    assert EDSR(num_blocks=1, num_channels=64, residual_scale=0.5).body[0].residual_scale == 0.5
    x = torch.rand(1, 8, 4, 4)
    block = EDSR(num_blocks=1, num_channels=8, residual_scale=0.5).body[0]
    torch.testing.assert_close(block(x), x + 0.5 * block.layers(x))


def test_a_network_that_computes_nothing_returns_the_mean_colour_and_learns_all_but_that():
    network = EDSR(2, 1, 4)
    learnt = [p for p in network.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in learnt:
            parameter.zero_()
    colour = network(torch.rand(1, 3, 4, 4))[0, :, 0, 0]
    torch.testing.assert_close(colour, torch.tensor([0.4488, 0.4371, 0.4040]))
    assert parameters(network) - sum(p.numel() for p in learnt) == 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 5}, "scale 5 is not one of EDSR's: use 1, 2, 3 or 4"),
        ({"scale": 0}, "scale 0"),
        ({"in_channels": 0}, "in_channels 0"),
        ({"out_channels": 0}, "out_channels 0"),
        ({"num_blocks": 0}, "num_blocks 0"),
        ({"num_channels": 0}, "num_channels 0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(AclaError, match=message):
        search_spaces.edsr(**{"num_blocks": 1, "num_channels": 4, **options})


def test_options_travel_in_the_architecture():
    space = search_spaces.edsr(3, num_blocks=2, num_channels=4, image_range=1.0, attention="cla", num_keys=2)
    assert space.source["name"] == "edsr"
    given = {"scale": 3, "num_blocks": 2, "num_channels": 4, "image_range": 1.0}
    assert given.items() <= space.source["options"].items()
    model = export(space.arch({"insert/1": True, "insert/2": False, "keys": 2}))
    assert model.backbone.image_range == 1.0
    assert model(torch.rand(1, 3, 4, 4)).shape == (1, 3, 12, 12)
    assert model.attention["1"].adaptive is False


@pytest.fixture
def registry(monkeypatch):
    entries = dict(search_spaces.registry.REGISTRY.entries)
    monkeypatch.setattr(search_spaces.registry.REGISTRY, "entries", entries)
    return entries


def test_register_makes_a_space_known_under_its_name(registry):
    @search_spaces.register
    def two_layers(channels=4, *, bias=True, **attention):
        """Return two layers."""
        layers = [nn.Conv2d(3, channels, 1, bias=bias), nn.Conv2d(channels, 3, 1)]
        return CrossLayerSpace(nn.Sequential(*layers), ["0"], **attention)

    assert "two_layers" in search_spaces.names()
    assert search_spaces.get("two_layers") is two_layers
    assert (two_layers.__name__, two_layers.__doc__) == ("two_layers", "Return two layers.")
    space = two_layers(6, bias=False, attention="cla", num_keys=3)
    assert space.source["name"] == "two_layers"
    assert {"channels": 6, "bias": False}.items() <= space.source["options"].items()
    assert not {"attention", "num_keys"} & set(space.source["options"])
    model = export(space.arch({"insert/1": True, "keys": 3}))
    assert model.backbone[0].weight.shape == (6, 3, 1, 1)
    assert model.backbone[0].bias is None


def test_options_that_a_space_does_not_take(registry):
    @search_spaces.register
    def fixed(channels=4):
        return CrossLayerSpace(nn.Sequential(nn.Conv2d(3, channels, 1)), ["0"])

    with pytest.raises(AclaError, match=r"search space 'fixed': .*colour.*it is fixed\(channels=4\)"):
        fixed(colour="red")


def test_names_and_an_unknown_name():
    assert "edsr" in search_spaces.names()
    assert search_spaces.get("edsr") is search_spaces.edsr
    with pytest.raises(AclaError, match="unknown search space 'esdr'; did you mean 'edsr'"):
        search_spaces.get("esdr")
