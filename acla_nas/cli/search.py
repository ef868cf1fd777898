"""acla-nas search."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import click

from acla_nas.cli import trial
from acla_nas.config import Config, load_config


def run(
    config_path: str,
    overrides: Sequence[str],
    budget: str | None = None,
    dry_run: bool = False,
    as_json: bool = False,
) -> None:
    """Search, in a trial of NNI's with the trial's parameters, and say what was found."""
    config = load_config(config_path, [*overrides, *trial.as_overrides(trial.parameters())])
    if budget is not None:
        config = config.model_copy(update={"budget": budget})
    if dry_run:
        _show_plan(config, as_json)
        return
    config = trial.with_own_folder(config)
    from acla_nas.experiment import run_search
    from acla_nas.training.processes import is_main

    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        result = run_search(config)
    if not is_main():
        return
    files = {
        "architecture": Path(config.run, "arch.json"),
        "weights": Path(config.run, "weights.safetensors"),
    }
    if as_json:
        summary = json.loads(Path(config.run, "summary.json").read_text(encoding="utf-8"))
        more: dict[str, Any] = {name: str(path) for name, path in files.items()}
        if result.candidates:
            more["front"] = [
                {"positions": c.arch.positions, "quality": c.quality, "cost": c.cost} for c in result.front
            ]
        else:
            more["probabilities"] = result.probabilities
        click.echo(json.dumps({**summary, **more}, indent=2))
        return
    click.echo(result.text())
    for name, path in files.items():
        click.echo(f"{name}: {path}")
    if result.candidates:
        click.echo(f"front: {Path(config.run, 'front.md')}, {Path(config.run, 'front.png')}")


def _show_plan(config: Config, as_json: bool) -> None:
    from acla_nas.plan import plan_search

    plan = plan_search(config)
    click.echo(json.dumps(plan.as_dict(), indent=2) if as_json else plan.text())
