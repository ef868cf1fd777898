"""The record of a run: who made it, with what, and how it ended; and its log."""

from __future__ import annotations

import re
import sys
from importlib import metadata

import pytest
import torch

from acla_nas import __version__
from acla_nas.run_record import load_record, recorded, say


def test_what_a_record_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/acla-nas", "search", "my config.yml", "run=runs/x"])
    with recorded(tmp_path, seed=7, device="cpu"):
        (command,) = load_record(tmp_path)["commands"]
        assert command["ended"] is None and command["end"] is None
    record = load_record(tmp_path)
    assert (record["seed"], record["versions"]["acla-nas"]) == (7, __version__)
    assert record["versions"]["torch"] == metadata.version("torch")
    assert record["device"] == f"cpu ({torch.get_num_threads()} threads)"
    (command,) = record["commands"]
    assert command["command"] == "acla-nas search 'my config.yml' run=runs/x"
    assert command["end"] == "finished" and command["started"] <= command["ended"]


def test_a_failed_run_says_so_and_a_resumed_one_remembers_it(tmp_path):
    with pytest.raises(KeyboardInterrupt), recorded(tmp_path, seed=0, device="cpu"):
        say("first")
        raise KeyboardInterrupt
    with recorded(tmp_path, seed=0, device="cpu", resumed=True):
        say("second")
    assert [c["end"] for c in load_record(tmp_path)["commands"]] == ["KeyboardInterrupt", "finished"]
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [re.sub(r"^\d{4}-\d\d-\d\dT[\d:+]+  ", "", line) for line in lines] == ["first", "second"]
    with recorded(tmp_path, seed=0, device="cpu"):
        say("anew")
    assert len(load_record(tmp_path)["commands"]) == 1
    assert (tmp_path / "log.txt").read_text().endswith("anew\n") and len(lines) == 2


def test_what_is_said_outside_of_a_run_is_in_no_log(tmp_path, capsys):
    inner = tmp_path / "inner"
    inner.mkdir()
    with recorded(tmp_path, seed=0, device="cpu"):
        with recorded(inner, seed=0, device="cpu"):
            say("of the inner run")
        say("of the outer run")
    say("of no run")
    assert (inner / "log.txt").read_text().count("\n") == 1
    assert (tmp_path / "log.txt").read_text().endswith("  of the outer run\n")
    assert capsys.readouterr().out == "of the inner run\nof the outer run\nof no run\n"


def test_no_record(tmp_path):
    assert load_record(tmp_path) == {}
    (tmp_path / "run.json").write_text("{")
    assert load_record(tmp_path) == {}
