"""Attention modules in a search space: freeze equivalence, architecture file, export, cost, search."""

from __future__ import annotations

import random

import pytest
import torch
from planted import CHANNELS, SIZE, make_evaluator
from pytorch_lightning import seed_everything
from random_weights import randomize
from torch import nn

import acla_nas
from acla_nas import CrossLayerSpace, cost, export, formats, search_spaces
from acla_nas.config import parse_config
from acla_nas.errors import AclaError
from acla_nas.experiment import make_space
from acla_nas.strategies import TwoStage
from acla_nas.testing import count_macs

SPACES = {
    "nl": {"inner_channels": 3},
    "clnl": {"inner_channels": 5},
    "se": {"reduction": 2},
    "mha": {"num_heads": 2, "max_distance": 3},
    "acla+se": {"num_keys": (2, 4), "reduction": 2},
    "cla+se": {"num_keys": 3, "reduction": 2},
    "clnl+nl": {},
}
COUNT = 4


@pytest.fixture(params=SPACES)
def space(request):
    space = search_spaces.edsr(
        2, COUNT, 6, image_range=1.0, input_shape=(3, 7, 9), attention=request.param, **SPACES[request.param]
    )
    return randomize(space, 0.2).double().eval()


def image():
    return torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def samples(space, count):
    rng = random.Random(0)
    for _ in range(count):
        inserted = {f"insert/{j}": rng.random() < 0.6 for j in range(1, COUNT + 1)}
        yield {**inserted, "keys": rng.choice(space.key_gate.num_keys)}


def gates_of(sample):
    return {j: torch.tensor(float(sample[f"insert/{j}"]), dtype=torch.float64) for j in range(1, COUNT + 1)}


def test_freeze_equivalence_and_export(space, tmp_path):
    x = image()
    for sample in samples(space, 4):
        derived = space.freeze(sample)
        expected = derived(x)
        key_gates = (torch.arange(max(space.key_gate.num_keys)) < sample["keys"]).to(x)
        arch = acla_nas.Arch.load(space.arch(sample).save(tmp_path / "arch.json"))
        assert arch.attention == {**space.attention_options, "num_keys": sample["keys"]}
        rebuilt = export(arch, weights=space.state_dict()).double().eval()
        found = {
            "bools": space.network(
                x, gates={j: bool(g) for j, g in gates_of(sample).items()}, key_gates=key_gates
            ),
            "tensors": space.network(x, gates=gates_of(sample), key_gates=key_gates),
            "export": rebuilt(x),
        }
        for name, out in found.items():
            tolerance = 1e-6 if name == "export" else 1e-10  # export passes through float32 modules
            assert (out - expected).abs().max() <= tolerance, (name, sample)
    assert (expected - space(x)).abs().max() > 1e-3, "for the test to mean anything"


# Not ACLA's: the gradient of its key gates is straight-through, which no difference shows.
@pytest.mark.parametrize("space", [name for name in SPACES if "acla" not in name], indirect=True)
def test_gates_that_are_off_get_the_gradient_of_gates_that_are_almost_off(space):
    """One-sided differences: what an alpha step needs to know before it opens a gate."""
    open_gates = {j: torch.tensor(1.0, dtype=torch.float64) for j in (1, 4)}
    shut = {j: torch.tensor(0.0, dtype=torch.float64, requires_grad=True) for j in (2, 3)}
    loss = (space.network(image(), gates={**open_gates, **shut}) ** 2).sum()
    loss.backward()
    for j, gate in shut.items():
        assert gate.grad is not None
        assert torch.isfinite(gate.grad)
        assert gate.grad != 0
        own = torch.tensor(1e-6, dtype=torch.float64)
        near = (space.network(image(), gates={**open_gates, **shut, j: own}) ** 2).sum()
        assert gate.grad.item() == pytest.approx((near - loss).item() / 1e-6, rel=1e-3)


def test_costs(space):
    sample = {"insert/1": True, "insert/2": False, "insert/3": True, "insert/4": True}
    inserted = [sample[f"insert/{j}"] for j in range(1, 5)]
    sample["keys"] = max(space.key_gate.num_keys)
    table = cost.get("macs").table(space.network, (3, 7, 9))
    derived = space.freeze(sample)
    one = image()[:1]
    added = count_macs(derived, one) - count_macs(derived.select([]), one)
    assert added == pytest.approx(table.of(inserted), rel=0.01)
    assert table.smallest > 0
    paper = cost.get("paper").table(space.network, (3, 7, 9))
    assert paper.of(inserted) > paper.of([True, False, True, False]) > paper.of([False] * 4) == 0


@pytest.mark.parametrize("attention", ["nl", "clnl", "se", "mha", "cla+se"])
def test_a_two_stage_search_runs_and_its_result_is_the_derived_network(attention):
    seed_everything(0, verbose=False)
    options = {"mha": {"num_heads": 2}, "cla+se": {"num_keys": [2, 4]}}.get(attention, {})
    backbone = nn.Sequential(*(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(3)))
    shape = (CHANNELS, SIZE, SIZE)
    space = CrossLayerSpace(backbone, "?", attention=attention, input_shape=shape, **options)
    result = acla_nas.search(space, TwoStage(epochs=(1, 2), cost_weight=0.0), make_evaluator(0, 4))
    assert all(float(g.alpha.detach()) != 0 for g in space.insert_gates), "each gate got a gradient"
    model = export(result.arch, backbone=space.network.backbone, weights=result.weights)
    x = torch.randn(2, *shape)
    torch.testing.assert_close(space.eval()(x), model.eval()(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["nl", pytest.param("mha", marks=pytest.mark.slow)])
def test_a_derived_network_becomes_a_program(attention, tmp_path):
    space = search_spaces.edsr(2, 2, 8, image_range=1.0, attention=attention)
    sample = {"insert/1": True, "insert/2": True, "keys": 1}
    network = space.freeze(sample)
    with torch.no_grad():
        for module in network.attention.values():
            module.out.weight.normal_(std=0.1)
    files = formats.save(network, tmp_path, space.arch(sample), formats=["pt2", "python"])
    assert len(files) == 2


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"attention": "nl", "inner_channels": 3}, "NonLocal"),
        ({"attention": "mha", "num_heads": 4}, "MultiHeadAttention"),
        ({"attention": "acla+se", "num_keys": [2, 4], "reduction": 4, "gate_bias": 1.0}, "Combined"),
    ],
)
def test_named_in_a_configuration(options, kind):
    space = {"name": "edsr", "num_blocks": 2, "num_channels": 8, **options}
    built = make_space(parse_config({"space": space}, "test"))
    assert {type(module).__name__ for module in built.network.attention.values()} == {kind}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "nl", "num_keys": 16}, "space: .*num_keys cannot be 16: leave it out"),
        ({"attention": "nl", "reduction": 4}, r"space\.reduction"),
        ({"attention": "acla+s"}, "unknown attention 's'.*"),
    ],
)
def test_wrong_in_a_configuration(options, message):
    with pytest.raises(AclaError, match=message):
        make_space(
            parse_config({"space": {"name": "edsr", "num_blocks": 2, "num_channels": 8, **options}}, "test")
        )
