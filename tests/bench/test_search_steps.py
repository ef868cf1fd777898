"""bench space: what it says. How fast it is, machines say."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from acla_nas.bench import space
from acla_nas.bench.memory import can_measure, in_fresh_process, peak_bytes
from acla_nas.bench.space import check_space
from acla_nas.bench.steps import Case
from acla_nas.cli import cli

SMALL = Case(3, 8, 1, 12)
CPU = torch.device("cpu")


def test_the_largest_literal_form_that_fits(monkeypatch):
    cases = (Case(32, 8, 1, 12), Case(4, 8, 1, 12), Case(2, 8, 1, 12))
    assert space._largest_that_fits(cases, CPU) == cases[0]
    monkeypatch.setattr(space.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10**6}))
    assert space._largest_that_fits(cases, CPU) in cases[1:]
    monkeypatch.setattr(space.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 0}))
    assert space._largest_that_fits(cases, CPU) == cases[-1]


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
    assert [row.peak_bytes for row in check.rows] == [4, 11, 10, None]
    assert "3x8, 1 patches" in check.text() and "outside forward" in check.text()
    monkeypatch.setattr(space, "check_space", lambda **_: check)
    output = CliRunner().invoke(cli, ["bench", "space", "--json"], catch_exceptions=False).output
    [bare, weights, _, parts] = json.loads(output)["rows"]
    assert weights["ratio"] == weights["median_ms"] / bare["median_ms"]
    assert weights["peak_ratio"] == pytest.approx(11 / 4)
    assert parts["name"] == "bare + parts" and parts["median_ms"] > bare["median_ms"]
