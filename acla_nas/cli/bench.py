"""acla-nas bench."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from acla_nas.config import load_config


def run_table(number: int, as_json: bool, device: str, runs: int) -> None:
    """Print a table of the paper's with our figures."""
    import torch

    from acla_nas.bench.tables import size_table, time_table
    from acla_nas.errors import AclaError

    table: Any
    if number == 12:
        available = torch.cuda.is_available()
        if device == "cuda" and not available:
            raise AclaError("--device cuda, but PyTorch sees no GPU: use cpu, or check CUDA_VISIBLE_DEVICES")
        table = time_table(device="cuda" if available and device != "cpu" else "cpu", runs=runs)
    else:
        table = size_table(number)
    click.echo(json.dumps(table.as_dict(), indent=2) if as_json else table.text())


def run_compare(config_path: str, overrides: Sequence[str]) -> None:
    """Run what is missing of a comparison, and print its table."""
    config = load_config(config_path, overrides)
    from acla_nas.bench.compare import Comparison

    comparison = Comparison(config)
    done = len(comparison.finished())
    if done:
        click.echo(f"{done} runs in {comparison.results} are finished: not run again")
    for run in comparison.run():
        scores = ", ".join(f"{test} {psnr:.2f} dB" for test, psnr in run.psnr.items())
        click.echo(f"{run.variant}, seed {run.seed}: {scores}, {run.seconds:.0f} s")
    click.echo(f"\n{comparison.table()}")
    click.echo(f"results: {comparison.results}")
