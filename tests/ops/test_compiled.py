"""The operator within torch.compile: one operation of the graph, with the same results."""

from __future__ import annotations

import pytest
import torch

import acla_nas
from acla_nas.attention.open_keys import open_key_shares
from acla_nas.ops import cross_layer_gather
from acla_nas.ops.compiled import gather


def make_inputs():
    torch.manual_seed(0)
    values = [torch.randn(2, 3, *size, requires_grad=True) for size in ((5, 4), (3, 2))]
    offsets = torch.randn(2, 2, 3, 2, 5, 4, requires_grad=True)
    return values, offsets, torch.randn(2, 2, 3, 5, 4, requires_grad=True)


def test_a_graph_holds_it_whole():
    values, offsets, weights = make_inputs()

    def run(function):
        out = function(values, offsets, weights)
        return [out, *torch.autograd.grad(out.sin().sum(), [*values, offsets, weights])]

    compiled = torch.compile(cross_layer_gather, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(run(compiled), run(cross_layer_gather)):
        assert torch.equal(actual, expected)


def test_it_keeps_the_rules_of_operations():
    """Shapes without numbers, memory formats and gradients are what they are said to be."""
    torch.library.opcheck(gather, make_inputs())
    values, offsets, weights = make_inputs()
    torch.library.opcheck(gather, (values, offsets.detach(), weights))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{"backend": "eager"}, pytest.param({}, marks=pytest.mark.slow)])
def test_a_network_compiles_into_one_graph(options, training):
    space = acla_nas.search_spaces.edsr(scale=2, num_blocks=2, num_channels=8, num_keys=4)
    network = acla_nas.export(space.arch({"insert/1": True, "insert/2": True, "keys": 4}))
    network.double().train(training)  # exact, as rounding could move a key over the edge of a pixel
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch._dynamo.reset()  # or sizes count as variable where another test has compiled the same code
    image = torch.rand(1, 3, 12, 10, dtype=torch.float64)
    weights = [p for p in network.parameters() if p.requires_grad] if training else []
    results = []
    for model in (network, torch.compile(network, fullgraph=True, **options)):
        with torch.set_grad_enabled(training):
            out = model(image)
        results.append([out, *(torch.autograd.grad(out.square().sum(), weights) if training else [])])
    torch.testing.assert_close(*results)


def test_open_keys_of_a_compiled_module_are_counted():
    module = acla_nas.attention.ACLA(4, 3).eval()
    torch.nn.init.normal_(module.references["1"].mask.weight, std=20)
    x = torch.randn(1, 4, 5, 5)
    counted = []
    for run in (module, torch.compile(module, backend="eager")):
        run(x, {"1": x})  # compiled where nobody counts
        with open_key_shares() as shares:
            run(x, {"1": x})
        counted += shares
        run(x, {"1": x})
    assert len(counted) == 2 and 0 < counted[0] < 1
    torch.testing.assert_close(*counted)
