"""acla-nas export."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from acla_nas.config import load_config

if TYPE_CHECKING:
    from acla_nas.formats import Saved


def run(config_path: str, overrides: Sequence[str], formats: Sequence[str], as_json: bool) -> None:
    """Export each model and say where it lies."""
    config = load_config(config_path, overrides)
    from acla_nas.experiment import run_export

    rows = []
    for model, files in run_export(config, formats or None):
        rows.append({"model": model, "files": {name: _row(file) for name, file in files.items()}})
        for name, file in files.items() if not as_json else ():
            left_out = (
                f", but for {100 * file.undecided:.2g} % of the pixels, where rounding decides a key's gate"
                if file.undecided
                else ""
            )
            click.echo(f"{name:11}  {file.path}  within {file.difference:.1e} of the network{left_out}")
    if as_json:
        click.echo(json.dumps(rows, indent=2))


def _row(file: Saved) -> dict[str, str | float]:
    return {"path": str(file.path), "difference": file.difference, "undecided": file.undecided}
