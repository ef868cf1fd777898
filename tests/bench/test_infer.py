"""bench infer: what it measures, and that it says so."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from acla_nas.bench import infer
from acla_nas.bench.counts import backbone_macs, inserted_macs
from acla_nas.bench.infer import Case, check_inference
from acla_nas.cli import cli

SMALL = Case(3, 8, (1, 3))


def test_networks_differ_in_their_key_gates_alone():
    networks = SMALL.networks()
    assert list(networks) == ["bare", "all open", "half closed"]
    image = torch.rand(1, 3, 12, 12)
    shares = {}
    for name in ("all open", "half closed"):
        module = networks[name].attention["1"]
        x = torch.rand(1, 8, 12, 12)
        shares[name] = module.keys(x, {"1": x})[2].mean().item()
        assert not torch.equal(networks[name](image), networks["bare"](image))
    assert shares["all open"] == 1
    assert 0.2 < shares["half closed"] < 0.8


def test_offsets_have_a_known_spread():
    torch.manual_seed(2)
    network = SMALL.networks()["half closed"]
    spreads = []

    def note(module, inputs):
        spreads.extend(reference.offset(inputs[0]).std().item() for reference in module.references.values())

    for module in network.attention.values():
        module.register_forward_pre_hook(note)
    network(torch.rand(1, 3, 48, 48))
    assert spreads == pytest.approx([3, 3, 3], rel=0.1)  # pixels


def test_floor_counts_what_is_executed():
    [row, _] = check_inference(size=12, runs=7, cases=[SMALL]).rows
    network = SMALL.networks()["all open"]
    of_h = 2 * 12 * 12 * 8 * 8
    executed = inserted_macs(network, (3, 12, 12)) - of_h
    assert row.floor == pytest.approx(1 + executed / backbone_macs(network.backbone, (3, 12, 12)))
    assert row.bare.runs >= 7 and min(time.median_ms for time in row.times.values()) > 0


def test_text_and_json(monkeypatch):
    monkeypatch.setattr(infer.check_inference, "__kwdefaults__", {**_defaults(), "cases": [SMALL]})
    arguments = ["bench", "infer", "--size", "12"]
    text = CliRunner().invoke(cli, [*arguments, "--runs", "7"], catch_exceptions=False).output
    assert "3x8" in text and "half closed" in text and text.count("x ± ") == 8
    output = CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False).output
    rows = json.loads(output)["rows"]
    assert [row["memory_format"] for row in rows] == ["channels first", "channels last"]
    assert rows[0]["bare"] == rows[0]["default"] == rows[1]["default"] != rows[1]["bare"]
    row = rows[0]
    time = row["times"]["half closed"]
    assert time["ratio"] == time["median_ms"] / row["bare"]["median_ms"]
    assert row["parts"]["ratio"] == row["parts"]["median_ms"] / row["bare"]["median_ms"]
    assert row["case"]["positions"] == [1, 3]


def _defaults():
    return infer.check_inference.__kwdefaults__
