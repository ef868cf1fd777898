"""acla-nas search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from acla_nas.cli import trial
from acla_nas.config import load_config


def run(config_path: str, overrides: Sequence[str], budget: str | None = None) -> None:
    """Search, in a trial of NNI's with the trial's parameters, and say what was found."""
    config = load_config(config_path, [*overrides, *trial.as_overrides(trial.parameters())])
    if budget is not None:
        config = config.model_copy(update={"budget": budget})
    config = trial.with_own_folder(config)
    from acla_nas.arch import shown_positions
    from acla_nas.experiment import run_search
    from acla_nas.training.processes import is_main

    result = run_search(config)
    if not is_main():
        return
    arch = result.arch
    positions = shown_positions(arch.positions)
    click.echo(f"positions: {positions} of {result.num_positions}")
    click.echo("cost: " + ", ".join(f"{_number(value)} {unit}" for unit, value in arch.cost.items()))
    click.echo(f"architecture: {Path(config.run, 'arch.json')}")
    click.echo(f"weights: {Path(config.run, 'weights.safetensors')}")
    if result.candidates:
        click.echo(f"front: {Path(config.run, 'front.md')}, {Path(config.run, 'front.png')}")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
