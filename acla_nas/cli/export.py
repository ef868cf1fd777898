"""acla-nas export."""

from __future__ import annotations

from collections.abc import Sequence

import click

from acla_nas.config import load_config


def run(config_path: str, overrides: Sequence[str]) -> None:
    """Export each model and say where it lies."""
    config = load_config(config_path, overrides)
    from acla_nas.experiment import run_export

    for path in run_export(config):
        click.echo(f"exported: {path}")
