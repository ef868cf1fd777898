"""acla-nas train."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

import click

from acla_nas.cli import trial
from acla_nas.config import load_config


def run(config_path: str, overrides: Sequence[str], as_json: bool = False) -> None:
    """Retrain an architecture, in a trial of NNI's the one that its parameters make, and print its scores."""
    chosen = trial.parameters()
    decisions = {name: chosen.pop(name) for name in list(chosen) if re.fullmatch("insert/.*|keys", name)}
    config = trial.with_own_folder(load_config(config_path, [*overrides, *trial.as_overrides(chosen)]))
    from acla_nas.experiment import run_training, write_arch
    from acla_nas.training.processes import is_main

    if decisions:
        config = config.model_copy(update={"arch": str(write_arch(config, decisions))})
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        scores = run_training(config)
    if not is_main():
        return
    weights = Path(config.run, "weights.safetensors")
    if as_json:
        click.echo(json.dumps({**scores.as_dict(), "weights": str(weights)}, indent=2))
        return
    click.echo(scores.table())
    click.echo(f"weights: {weights}")
