"""Several attention modules in sequence, by name."""

from __future__ import annotations

import pytest
import torch

from acla_nas import attention as attentions
from acla_nas.attention import ACLA, Combined, SqueezeExcitation
from acla_nas.config import build
from acla_nas.errors import AclaError

CHANNELS = {"1": 8, "2": 8}


def make(name="acla+se", **options):
    torch.manual_seed(0)
    module = attentions.get(name)(8, reference_channels=CHANNELS, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
    return module.eval()


def test_one_after_the_other():
    module = make(num_keys=3, reduction=2, gate_bias=0.5)
    first, second = module.parts
    assert isinstance(module, Combined)
    assert isinstance(first, ACLA)
    assert isinstance(second, SqueezeExcitation)
    assert (first.num_keys, first.gate_bias, second.hidden_channels) == (3, 0.5, 4)
    x1, x2 = torch.randn(2, 2, 8, 5, 6)
    references = {"1": x1, "2": x2}
    z = x2 + first(x2, references)
    z = z + second(z, references)
    torch.testing.assert_close(x2 + module(x2, references), z)


@pytest.mark.parametrize(
    ("name", "given", "keys"),
    [
        ("acla+se", {}, 16),
        ("se+cla", {}, 8),
        ("cla+acla", {}, 16),
        ("cla+acla", {"num_keys": 5}, 5),
        ("nl+se", {}, 1),
        ("nl+se", {"num_keys": 1}, 1),
    ],
)
def test_number_of_keys(name, given, keys):
    module = make(name, **given)
    assert module.num_keys == keys
    assert {part.num_keys for part in module.parts} <= {1, keys}


def test_select_keeps_the_mode_and_fewer_keys():
    module = make("cla+acla", num_keys=5)
    fewer = module.select(["2"], 3)
    assert not fewer.training
    assert fewer.num_keys == 3
    assert [list(part.references) for part in fewer.parts] == [["2"], ["2"]]


def test_a_configuration_may_set_the_options_of_all_parts_and_no_other():
    combined = attentions.get("acla+se")
    options = {"channels": 8, "num_keys": 2, "reduction": 4, "gate_bias": 1}
    assert build("space", combined, options).num_keys == 2
    with pytest.raises(AclaError, match=r"space\.reduktion.*did you mean 'space\.reduction'"):
        build("space", combined, {"channels": 8, "reduktion": 4})
    with pytest.raises(AclaError, match=r"space\.reduction must be"):
        build("space", combined, {"channels": 8, "reduction": "many"})
    with pytest.raises(TypeError, match="none of the combined modules takes 'reduktion'"):
        combined(8, reduktion=4)


def test_keys_where_no_part_samples_any():
    with pytest.raises(AclaError, match="num_keys cannot be 4"):
        make("nl+se", num_keys=4)


@pytest.mark.parametrize("name", ["acla+", "+se", "acla++se", "acla+sé"])
def test_unknown_parts(name):
    with pytest.raises(AclaError, match="unknown attention"):
        attentions.get(name)


def test_plus_is_not_part_of_a_name():
    with pytest.raises(AclaError, match=r"'a\+b' cannot be registered"):
        attentions.register("a+b", ACLA)
