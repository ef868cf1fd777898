"""bench: steps of a supernet: that peers compute the same, and what they run."""

from __future__ import annotations

import pytest
import torch

from acla_nas.attention import ACLA
from acla_nas.bench import steps
from acla_nas.bench.steps import Case, Literal, make_step
from tests.random_weights import randomize

SMALL = Case(3, 8, 1, 12)


def test_the_literal_form_computes_the_same():
    torch.manual_seed(0)
    module = randomize(ACLA(5, 4, 2, gate_bias=0.2), 0.4).double().train()
    features = {name: torch.randn(2, 5, 7, 6, dtype=torch.float64).requires_grad_() for name in ("1", "2")}
    weights = [*features.values(), *module.parameters()]
    results = []
    for form in (module, Literal(module)):
        update = form(features["2"], features)
        results.append([update, *torch.autograd.grad(update.square().sum(), weights)])
    for actual, expected in zip(*results):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "modules"),
    [("bare", []), ("weight step", [2]), ("alpha step", [1, 2, 3]), ("literal", [1, 2, 3])],
)
def test_steps_run_what_they_say(kind, modules, monkeypatch):
    network = SMALL.network()
    monkeypatch.setattr(Case, "network", lambda _: network)
    step = make_step(SMALL, kind, torch.device("cpu"))
    ran = []
    for j, module in network.attention.items():
        module.register_forward_hook(lambda *_, j=j: ran.append(int(j)))
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    step()
    assert ran == modules
    changed = {name for name, weight in network.named_parameters() if not torch.equal(weight, before[name])}
    assert bool(changed) == (kind != "alpha step")
    assert any(name.startswith("attention") for name in changed) == (kind in ("weight step", "literal"))


def test_parts_of_the_modules_that_are_on(monkeypatch):
    made, ran = [], []

    def parts_of_module(channels, references, size, batch_size, *, training):
        made.append((channels, references, size, batch_size, training))
        return lambda: ran.append(references)

    monkeypatch.setattr(steps, "parts_of_module", parts_of_module)
    step = make_step(Case(5, 8, 2, 12), "bare + parts", torch.device("cpu"))
    assert made == [(8, 1, 12, 2, True), (8, 2, 12, 2, True)]  # positions 2 and 4, which have no others
    step()
    assert ran == [1, 2]


def test_a_step_in_lower_precision(monkeypatch):
    seen, loss = [], steps.F.l1_loss
    monkeypatch.setattr(steps.F, "l1_loss", lambda x, y: seen.append(x.dtype) or loss(x, y))
    for dtype in ("float32", "bfloat16"):
        make_step(Case(2, 8, 1, 12, dtype), "weight step", torch.device("cpu"))()
    assert seen == [torch.float32, torch.bfloat16]
