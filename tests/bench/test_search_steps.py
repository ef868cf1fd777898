"""bench space: that its peers compute the same, and what it says. How fast it is, machines say."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from acla_nas.attention import ACLA
from acla_nas.bench import space
from acla_nas.bench.memory import can_measure, in_fresh_process, peak_bytes
from acla_nas.bench.space import Case, Literal, check_space, make_step
from acla_nas.cli import cli
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


def test_a_step_in_lower_precision(monkeypatch):
    seen, loss = [], space.F.l1_loss
    monkeypatch.setattr(space.F, "l1_loss", lambda x, y: seen.append(x.dtype) or loss(x, y))
    for dtype in ("float32", "bfloat16"):
        make_step(Case(2, 8, 1, 12, dtype), "weight step", torch.device("cpu"))()
    assert seen == [torch.float32, torch.bfloat16]


def test_the_largest_literal_form_that_fits(monkeypatch):
    cases = (Case(32, 8, 1, 12), Case(4, 8, 1, 12), Case(2, 8, 1, 12))
    assert space._largest_that_fits(cases) == cases[0]
    monkeypatch.setattr(space.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10**6}))
    assert space._largest_that_fits(cases) in cases[1:]
    monkeypatch.setattr(space.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 0}))
    assert space._largest_that_fits(cases) == cases[-1]


@pytest.mark.skipif(not can_measure(), reason="the system does not say a process's peak")
def test_a_fresh_process_has_its_own_peak():
    torch.rand(1 << 26)  # 256 MB here
    assert in_fresh_process(peak_bytes) < peak_bytes() - (1 << 27)


def test_text_and_json(monkeypatch):
    defaults = {"device": "cpu", "runs": 7, "case": SMALL, "literal_cases": (SMALL,), "search_case": SMALL}
    monkeypatch.setattr(check_space, "__kwdefaults__", defaults)
    monkeypatch.setattr(space, "step_peak", None)
    monkeypatch.setattr(space, "in_fresh_process", lambda function, case, kind: len(kind))
    check = check_space()
    assert 0 < check.other_seconds < check.search_seconds
    assert [row.peak_bytes for row in check.rows] == [4, 11, 10]
    assert "3x8, 1 patches" in check.text() and "outside forward" in check.text()
    monkeypatch.setattr(space, "check_space", lambda **_: check)
    output = CliRunner().invoke(cli, ["bench", "space", "--json"], catch_exceptions=False).output
    [bare, weights, _] = json.loads(output)["rows"]
    assert weights["ratio"] == weights["median_ms"] / bare["median_ms"]
    assert weights["peak_ratio"] == pytest.approx(11 / 4)
