"""RCAN as a search space."""

from __future__ import annotations

import pytest
import torch

from acla_nas import export, search_spaces
from acla_nas.errors import AclaError
from acla_nas.search_spaces.rcan import RCAN

PAPER_POSITIONS = (1, 3, 5, 9)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def tiny(num_groups=4, **options):
    options = {"num_blocks": 2, "num_channels": 8, "reduction": 4, "num_keys": 2, **options}
    return search_spaces.rcan(num_groups=num_groups, **options)


@pytest.mark.parametrize(("scale", "count"), [(2, 15_444_667), (3, 15_629_307), (4, 15_592_379)])
def test_parameter_count_of_the_public_implementation(scale, count):
    with torch.device("meta"):
        network = RCAN(scale)
    assert parameters(network) == count
    assert sum(p.numel() for p in network.parameters() if not p.requires_grad) == 24


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_output_sizes(scale):
    space = tiny(2, scale=scale)
    sample = {"insert/1": True, "insert/2": True, "keys": 2}
    for network in (space, space.freeze(sample)):
        assert network(torch.rand(2, 3, 5, 7)).shape == (2, 3, 5 * scale, 7 * scale)


def test_positions_are_the_residual_groups():
    assert tiny(10, num_blocks=1).positions == tuple(f"body.{i}" for i in range(10))


@pytest.mark.parametrize("attention", ["acla", "cla"])
@pytest.mark.parametrize("positions", [(), (2,), (1, 4), (1, 2, 3, 4)])
def test_freezing_changes_nothing(attention, positions):
    torch.manual_seed(0)
    space = tiny(attention=attention, image_range=1.0).double().eval()
    with torch.no_grad():
        for parameter in space.network.attention.parameters():  # some of which start at zero
            parameter.normal_(std=0.3)
    sample = {**{f"insert/{j}": j in positions for j in range(1, 5)}, "keys": 2}
    x = torch.rand(2, 3, 6, 7, dtype=torch.float64)
    expected = space.network(x, gates={j: j in positions for j in range(1, 5)})
    torch.testing.assert_close(space.freeze(sample)(x), expected, rtol=0, atol=1e-10)
    exported = export(space.arch(sample), weights=space.state_dict()).double().eval()
    torch.testing.assert_close(exported(x), expected, rtol=0, atol=1e-6)  # weights pass through float32
    if positions:
        assert not torch.allclose(expected, space.network.backbone(x), atol=1e-4)


def test_the_architecture_of_the_paper():
    sample = {f"insert/{j}": j in PAPER_POSITIONS for j in range(1, 11)}
    space = tiny(10, num_blocks=1)
    arch = space.arch({**sample, "keys": 2})
    assert arch.positions == PAPER_POSITIONS
    assert arch.paths == {1: "body.0", 3: "body.2", 5: "body.4", 9: "body.8"}
    network = export(arch, weights=space.state_dict())
    assert [list(module.references) for module in network.attention.values()] == [
        [str(j) for j in PAPER_POSITIONS[: i + 1]] for i in range(4)
    ]
    assert network(torch.rand(1, 3, 6, 6)).shape == (1, 3, 12, 12)


def test_options_travel_in_the_architecture():
    space = tiny(2, scale=3, image_range=1.0)
    assert space.source["name"] == "rcan"
    assert space.source["options"] == {
        "scale": 3,
        "num_groups": 2,
        "num_blocks": 2,
        "num_channels": 8,
        "reduction": 4,
        "image_range": 1.0,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 1}, "scale 1 is not one of RCAN's: use 2, 3 or 4"),
        ({"num_groups": 0}, "num_groups 0"),
        ({"num_blocks": 0}, "num_blocks 0"),
        ({"num_channels": 0}, "num_channels 0"),
        ({"reduction": 9}, "reduction 9 must be between 1 and num_channels, 8"),
        ({"reduction": 0}, "reduction 0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(AclaError, match=message):
        tiny(**{"num_groups": 1, **options})
