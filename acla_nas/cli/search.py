"""acla-nas search."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from acla_nas.config import load_config


def run(config_path: str, overrides: Sequence[str], budget: str | None = None) -> None:
    """Search, in a trial of NNI's with the trial's parameters, and say what was found."""
    config = load_config(config_path, [*overrides, *_trial_overrides()])
    if budget is not None:
        config = config.model_copy(update={"budget": budget})
    if _in_nni():
        config = config.model_copy(update={"run": str(_trial_folder(config.run))})
    from acla_nas.experiment import run_search
    from acla_nas.training import is_main

    result = run_search(config)
    if not is_main():
        return
    arch = result.arch
    positions = ", ".join(map(str, arch.positions)) or "none"
    click.echo(f"positions: {positions} of {result.num_positions}")
    click.echo("cost: " + ", ".join(f"{_number(value)} {unit}" for unit, value in arch.cost.items()))
    click.echo(f"architecture: {Path(config.run, 'arch.json')}")
    click.echo(f"weights: {Path(config.run, 'weights.safetensors')}")
    if result.candidates:
        click.echo(f"front: {Path(config.run, 'front.md')}, {Path(config.run, 'front.png')}")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _in_nni() -> bool:
    return bool(os.environ.get("NNI_PLATFORM"))


def _trial_overrides() -> list[str]:
    """Return the parameters that NNI's tuner chose for this trial, whose names are keys of the config."""
    if not _in_nni():
        return []
    import json

    from acla_nas.nni_nas import nni

    parameters = nni.get_next_parameter() or {}
    return [f"{key}={json.dumps(value)}" for key, value in parameters.items()]


def _trial_folder(run: str) -> Path:
    from acla_nas.nni_nas import nni

    return Path(run, nni.get_experiment_id(), f"trial_{nni.get_sequence_id()}")
