"""acla-nas train."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from acla_nas.config import load_config


def run(config_path: str, overrides: Sequence[str]) -> None:
    """Retrain an architecture and print its scores."""
    config = load_config(config_path, overrides)
    from acla_nas.experiment import run_training
    from acla_nas.training import is_main

    scores = run_training(config)
    if not is_main():
        return
    click.echo(scores.table())
    click.echo(f"weights: {Path(config.run, 'weights.safetensors')}")
