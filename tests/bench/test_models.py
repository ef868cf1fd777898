"""bench infer MODEL: given networks and files, one beside the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from acla_nas import formats, search_spaces
from acla_nas.bench import models as bench_models
from acla_nas.cli import cli
from acla_nas.cost.timing import Timing
from acla_nas.exporter import save_model


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    """A run folder and a program of it."""
    space = search_spaces.edsr(2, 1, 4, num_keys=2)
    arch = space.arch({"insert/1": True, "keys": 2})
    network = space.freeze({"insert/1": True, "keys": 2})
    save_model(arch, network.state_dict(), tmp_path)
    files = formats.save(network, tmp_path, arch, formats=["torchscript"])
    return [str(tmp_path), str(files["torchscript"].path)]


def test_text_and_json(models: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def time_in_turns(calls, device, runs):
        seen.extend(tuple(call().shape) for call in calls.values())
        return {name: Timing(10.0 + 5.0 * name, 0.6, runs) for name in calls}

    monkeypatch.setattr(bench_models, "time_in_turns", time_in_turns)
    arguments = ["bench", "infer", *models, "--size", "20", "--device", "cpu"]
    text = CliRunner().invoke(cli, arguments, catch_exceptions=False).output
    assert seen == [(1, 3, 40, 40)] * 2
    _, first, second = text.splitlines()
    assert first.split()[0] == models[0] and "1.00x" in first
    assert second.split() == [models[1], "3x20x20", "15.0", "±", "0.6", "1.50x", "±", "0.15"]
    [_, row] = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).output)["rows"]
    assert (row["model"], row["input_shape"], row["ratio"]) == (models[1], [3, 20, 20], 1.5)
    assert row["time"] == {"median_ms": 15.0, "error_ms": 0.6, "runs": 15}


def test_models_that_are_none(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["bench", "infer", str(tmp_path)])
    assert result.exit_code == 1 and "arch.json" in str(result.exception or result.output)
