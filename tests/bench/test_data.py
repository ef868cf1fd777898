"""bench data: what is loaded beside what is used up."""

from __future__ import annotations

import json

from click.testing import CliRunner

from acla_nas.bench.data import DataCheck
from acla_nas.cli import cli

CONFIG = """
space: {name: edsr, num_blocks: 1, num_channels: 8}
data: {patch_size: 12, batch_size: 4}
device: cpu
"""


def test_a_configuration_is_measured(tmp_path):
    path = tmp_path / "config.yml"
    path.write_text(CONFIG)
    command = ["bench", "data", str(path), "--runs", "7", "--json"]
    check = json.loads(CliRunner().invoke(cli, command, catch_exceptions=False).output)
    assert (check["workers"], check["batch_size"], check["device"]) == (0, 4, "cpu")
    assert check["loaded"] > 0 and check["used"] > 0
    assert check["ratio"] == check["loaded"] / check["used"]


def test_text_says_which_is_faster():
    assert "2.5 times as many are loaded" in DataCheck("cpu", 3, 16, 250.0, 100.0).text()
