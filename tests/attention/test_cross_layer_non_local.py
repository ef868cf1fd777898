"""CLNL against Eq. 3 with gates, written out, with all gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from acla_nas.attention import CrossLayerNonLocal, NonLocal
from acla_nas.errors import AclaError

CHANNELS = {"2": 3, "5": 6, "6": 4}
SIZES = {"2": (6, 8), "5": (3, 4), "6": (3, 4)}


def make(seed=0, **options):
    torch.manual_seed(seed)
    module = CrossLayerNonLocal(4, reference_channels=CHANNELS, **options).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
    features = {
        name: torch.randn(2, c, *SIZES[name], dtype=torch.float64).requires_grad_()
        for name, c in CHANNELS.items()
    }
    return module, features["6"], features


def literal(module, query, references, gates):
    """sum_ln s f g / sum_ln s f, with every affinity in memory."""
    theta = F.conv2d(query, module.theta.weight).flatten(2)
    numerator, denominator = 0.0, 0.0
    for name, feature in references.items():
        layer = module.references[name]
        phi = F.conv2d(feature, layer.phi.weight).flatten(2)
        g = F.conv2d(feature, layer.g.weight).flatten(2)
        f = gates.get(name, 1.0) * torch.einsum("bdi,bdn->bin", theta, phi).exp()
        numerator = numerator + torch.einsum("bin,bdn->bdi", f, g)
        denominator = denominator + f.sum(2).unsqueeze(1)
    return F.conv2d((numerator / denominator).unflatten(2, query.shape[2:]), module.out.weight)


@pytest.mark.parametrize(
    "values", [{}, {"2": 1.0, "5": 1.0}, {"2": 0.0, "5": 1.0}, {"5": 0.0}, {"2": 0.0, "5": 0.0}, {"2": 0.3}]
)
def test_equals_the_equation_with_all_gradients(values):
    module, query, references = make()
    gates = {n: torch.tensor(v, dtype=torch.float64, requires_grad=True) for n, v in values.items()}
    given = [*gates.values(), *references.values(), *module.parameters()]
    results = []
    for function in (module, lambda *a: literal(module, *a)):
        out = function(query, references, gates)
        gradients = torch.autograd.grad((out**2).sum() + out.sum(), given, allow_unused=True)
        results.append([out, *(torch.zeros_like(x) if g is None else g for x, g in zip(given, gradients))])
    for actual, wanted in zip(*results):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-11)
    assert all(g.abs() > 1e-3 for g in results[0][1 : 1 + len(gates)])


def test_with_its_own_layer_alone_it_is_the_non_local_block():
    module = CrossLayerNonLocal(8, reference_channels={"3": 8})
    torch.nn.init.normal_(module.out.weight)
    plain = NonLocal(8)
    plain.load_state_dict({n.removeprefix("references.3."): w for n, w in module.state_dict().items()})
    x = torch.randn(2, 8, 5, 6)
    torch.testing.assert_close(module(x, {"3": x}), plain(x, {"3": x}))


def test_gates_of_0_stay_finite_where_a_closed_layer_dwarfs_the_others():
    module, query, references = make()
    with torch.no_grad():
        module.references["5"].phi.weight.mul_(1e4)
    gate = torch.zeros((), dtype=torch.float64, requires_grad=True)
    actual = module(query, references, {"5": gate})
    expected = module.select(["2", "6"], 1)(query, {n: references[n] for n in ("2", "6")})
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    actual.sum().backward()
    assert torch.isfinite(gate.grad)
    assert gate.grad != 0


def test_parameters():
    module = CrossLayerNonLocal(8, reference_channels={"1": 5, "2": 8}, inner_channels=3)
    assert sum(p.numel() for p in module.parameters()) == 2 * 8 * 3 + 2 * 5 * 3 + 2 * 8 * 3
    assert list(CrossLayerNonLocal(8, num_references=3).references) == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_references": 0}, "at least one reference"),
        ({"inner_channels": 0}, "inner_channels must be at least 1"),
        ({"num_keys": 8}, "num_keys cannot be 8"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(AclaError, match=message):
        CrossLayerNonLocal(8, **options)
