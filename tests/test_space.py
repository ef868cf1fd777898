"""CrossLayerSpace: freeze equivalence, which the whole framework rests on, and its NNI side."""

from __future__ import annotations

import copy
import inspect
import random

import numpy as np
import pytest
import torch
from torch import nn

import acla_nas
from acla_nas import CrossLayerSpace, export, search_spaces
from acla_nas.errors import AclaError
from acla_nas.gates import GumbelInsertGate, GumbelKeyGate

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture
def dtype(request):
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def randomize(module, seed=0, scale=0.15):
    """Random weights, those that start at zero included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(draw * scale)
    return module


def tiny_edsr(num_blocks=4, num_keys=(2, 5), **options):
    space = search_spaces.edsr(2, num_blocks, 6, image_range=1.0, num_keys=num_keys, **options)
    return randomize(space).eval()


def samples(space, count, seed=0):
    rng = random.Random(seed)
    positions = range(1, len(space.positions) + 1)
    for _ in range(count):
        yield {
            **{f"insert/{j}": rng.random() < 0.5 for j in positions},
            "keys": rng.choice(space.key_gate.num_keys),
        }


def image(batch=2):
    return torch.rand(batch, 3, 7, 9, generator=torch.Generator().manual_seed(3))


def searched_forms(space, sample, x):
    """The supernet's output with the sample's gates as bools, as 0/1 tensors, and from its own gates."""
    inserted = {j: sample[f"insert/{j}"] for j in space.network.paths}
    num_keys = sample["keys"]
    key_gates = (torch.arange(max(space.key_gate.num_keys)) < num_keys).to(x)
    yield "bools", space.network(x, gates=inserted, key_gates=key_gates)
    tensors = {j: torch.tensor(float(s)) for j, s in inserted.items()}
    yield "tensors", space.network(x, gates=tensors, key_gates=key_gates)

    supernet = copy.deepcopy(space)
    supernet.insert_gates = nn.ModuleList(
        GumbelInsertGate(g, 1.0 if sample[g.label] else -1.0) for g in space.insert_gates
    )
    supernet.key_gate = GumbelKeyGate(space.key_gate)
    with torch.no_grad():
        supernet.key_gate.alpha[space.key_gate.num_keys.index(num_keys)] += 1
    yield "searched gates in evaluation", supernet.eval()(x)


@pytest.mark.parametrize("dtype", list(TOLERANCE), indirect=True, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"attention": "acla"},
        {"attention": "cla"},
        {"attention": "acla", "shared_mask": True, "softmax": "reference"},
        {"attention": "acla", "renormalize": True, "gate_bias": 0.5},
        {"attention": "cla", "softmax": "reference", "num_keys": None},
        {"attention": "acla", "num_keys": 3},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
@torch.no_grad()
def test_freeze_equivalence(options, dtype):
    space = tiny_edsr(**options)
    x = image()
    assert x.dtype == dtype
    bare = space(x)
    changed = 0
    for sample in samples(space, 6):
        derived = space.freeze(sample)
        expected = derived(x)
        assert expected.dtype == dtype
        assert derived.positions == tuple(j for j in space.network.paths if sample[f"insert/{j}"])
        changed += not torch.allclose(expected, bare, atol=1e-2)
        model = export(space.arch(sample), weights=space.state_dict()).eval()
        assert list(model.state_dict()) == list(derived.state_dict())
        for name, out in [*searched_forms(space, sample, x), ("export", model(x))]:
            assert (out - expected).abs().max() <= TOLERANCE[dtype], (name, sample)
    assert changed >= 4, "the samples must differ from the bare backbone for this test to mean anything"


def test_freeze_shares_no_weight_with_the_space():
    space = tiny_edsr()
    derived = space.freeze({**{f"insert/{j}": True for j in range(1, 5)}, "keys": 2})
    assert not {id(p) for p in space.parameters()} & {id(p) for p in derived.parameters()}
    before = space.network(image(), gates={})
    with torch.no_grad():
        for parameter in derived.parameters():
            parameter.zero_()
    assert torch.equal(space.network(image(), gates={}), before)


def test_freeze_of_fewer_positions_and_keys_has_fewer_parameters():
    space = tiny_edsr()

    def parameters(positions, keys):
        sample = {f"insert/{j}": j in positions for j in range(1, 5)}
        return sum(p.numel() for p in space.freeze({**sample, "keys": keys}).parameters())

    bare = sum(p.numel() for p in space.network.backbone.parameters())
    own, pair = 6 * 6, {k: 6 * 6 + 6 * 4 * k for k in (2, 5)}  # H; G, M, W_off and W_att
    assert parameters((), 5) == parameters((), 2) == bare
    assert parameters((3,), 5) == bare + own + pair[5]
    assert parameters((1, 4), 5) == bare + 2 * own + 3 * pair[5]
    assert parameters((1, 2, 4), 2) == bare + 3 * own + 6 * pair[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"insert/2": None}, "insert/1 .. insert/4 and keys.*insert/2"),
        ({"keys": None}, "'keys'"),
        ({"insert/5": True}, "insert/5"),
        ({"insert/1": "yes"}, "insert/1 is 'yes'.*False, True"),
        ({"keys": 4}, r"keys is 4 .*\[2, 5\]"),
        ({"keys": 16}, "keys is 16"),
    ],
)
def test_wrong_samples(change, message):
    space = tiny_edsr()
    sample = {**{f"insert/{j}": True for j in range(1, 5)}, "keys": 5, **change}
    sample = {label: choice for label, choice in sample.items() if choice is not None}
    for use in (space.freeze, space.arch):
        with pytest.raises(AclaError, match=message):
            use(sample)


def test_simplify_and_contains():
    space = tiny_edsr()
    assert list(space.simplify()) == ["insert/1", "insert/2", "insert/3", "insert/4", "keys"]
    for sample in samples(space, 5):
        space.validate(sample)
        assert space.contains(sample)
    assert not space.contains({**sample, "keys": 3})
    del sample["insert/2"]
    assert not space.contains(sample)


def test_nni_draws_samples_that_freeze():
    space = tiny_edsr()
    drawn = set()
    for seed in range(12):
        sample: dict[str, object] = {}
        model = space.random(sample, random_state=np.random.RandomState(seed))
        assert space.contains(sample)
        assert model.positions == space.arch(sample).positions
        drawn.add((model.positions, sample["keys"]))
    assert len(drawn) > 6
    sample = {}
    assert space.default(sample).positions == ()
    assert sample == {"insert/1": False, "insert/2": False, "insert/3": False, "insert/4": False, "keys": 2}


def test_nni_enumerates_the_whole_space():
    space = tiny_edsr(num_blocks=2)
    found = set()
    for model in space.grid():
        keys = [attention.num_keys for attention in model.attention.values()]
        found.add((model.positions, keys[0] if keys else 0))
    assert found == {((), 0), *((p, k) for p in ((1,), (2,), (1, 2)) for k in (2, 5))}


def test_a_space_runs_as_its_bare_backbone():
    space = tiny_edsr()
    bare = space.freeze({**{f"insert/{j}": False for j in range(1, 5)}, "keys": 2})
    assert torch.equal(space(image()), bare(image()))


def test_a_deep_copy_of_a_space_is_independent():
    space = tiny_edsr()
    copied = copy.deepcopy(space)
    sample = next(iter(samples(space, 1)))
    expected = space.freeze(sample)(image())
    assert torch.equal(copied.freeze(sample)(image()), expected)
    randomize(copied, seed=1)
    assert torch.equal(space.freeze(sample)(image()), expected)
    assert not torch.allclose(copied.freeze(sample)(image()), expected, atol=1e-3)
    assert copied.arch(sample) == space.arch(sample)


def test_a_backbone_or_a_callable_and_positions_of_all_kinds():
    def backbone():
        middle = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
        return nn.Sequential(nn.Conv2d(1, 4, 1), middle, nn.Conv2d(4, 1, 1))

    options = {"num_keys": 2, "input_shape": (1, 8, 8)}
    assert CrossLayerSpace(backbone, ["0", "1"], **options).positions == ("0", "1")
    assert CrossLayerSpace(backbone(), "1.*", **options).positions == ("1.0", "1.1")
    space = CrossLayerSpace(backbone(), "?", **options)
    assert space.positions == ("0", "1", "2")
    assert space.source == {"backbone": "Sequential"}
    sample = {"insert/1": True, "insert/2": False, "insert/3": True, "keys": 2}
    assert space.arch(sample).paths == {1: "0", 3: "2"}
    assert space.arch(sample).input_shape == (1, 8, 8)
    assert space.freeze(sample)(torch.rand(1, 1, 5, 5)).shape == (1, 1, 5, 5)


def test_the_users_backbone_still_computes_what_it_did():
    backbone = randomize(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1)))
    expected = backbone(image())
    space = CrossLayerSpace(backbone, ["0"], num_keys=2)
    with torch.no_grad():
        space.network.attention["1"].out.weight.fill_(1.0)
    assert torch.equal(backbone(image()), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_keys": []}, r"num_keys must be at least 1, .* not \[\]"),
        ({"num_keys": 0}, r"num_keys must be at least 1, .* not 0"),
        ({"num_keys": [0, 8]}, r"num_keys must be at least 1, .* not \[0, 8\]"),
        ({"attention": "nothing"}, "unknown attention 'nothing'"),
        ({"attention": acla_nas.attention.ACLA}, "attention is chosen by its name, not <class .*ACLA"),
        ({"softmax": "both"}, "softmax"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(AclaError, match=message):
        search_spaces.edsr(2, 2, 4, **options)


def test_everything_public_is_found_in_the_package():
    assert acla_nas.CrossLayerSpace is CrossLayerSpace
    assert {"CrossLayerSpace", "export", "cost", "search_spaces"} <= set(dir(acla_nas))
    with pytest.raises(AttributeError, match="no attribute 'exprot'"):
        _ = acla_nas.exprot


def test_help_shows_the_arguments():
    assert list(inspect.signature(CrossLayerSpace).parameters)[:3] == ["backbone", "positions", "attention"]
