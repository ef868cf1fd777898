"""acla-nas eval."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from acla_nas.config import load_config


def run(config_path: str, overrides: Sequence[str], as_json: bool = False) -> None:
    """Print the scores of the naive baseline and of each model."""
    config = load_config(config_path, overrides)
    from acla_nas.experiment import run_evaluation

    if as_json:
        rows = {name: scores.as_dict() for name, scores in run_evaluation(config)}
        click.echo(json.dumps(rows, indent=2))
        return
    for name, scores in run_evaluation(config):
        click.echo(f"{name}\n{scores.table()}\n")
