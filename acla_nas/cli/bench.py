"""acla-nas bench."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from acla_nas.config import load_config


def run_table(number: int, as_json: bool, device: str, runs: int) -> None:
    """Print a table of the paper's with our figures."""
    from acla_nas.bench.tables import size_table, time_table

    timed = number == 12
    table: Any = time_table(device=_present_device(device), runs=runs) if timed else size_table(number)
    click.echo(json.dumps(table.as_dict(), indent=2) if as_json else table.text())


def run_latency(
    config_path: str, overrides: Sequence[str], architectures: int, runs: int, as_json: bool
) -> None:
    """Print predicted and measured latencies of random architectures."""
    config = load_config(config_path, overrides)
    from acla_nas.bench.latency import check_latency
    from acla_nas.experiment import choose_device, make_space

    device = choose_device(config)
    check = check_latency(
        make_space(config), device=device, architectures=architectures, runs=runs, seed=config.seed
    )
    click.echo(json.dumps(check.as_dict(), indent=2) if as_json else check.text())


def run_ops(device: str, runs: int, as_json: bool) -> None:
    """Print the operator's times and memory."""
    from acla_nas.bench.ops import check_ops

    check = check_ops(device=_present_device(device), runs=runs)
    click.echo(json.dumps(check.as_dict(), indent=2) if as_json else check.text())


def run_infer(models: Sequence[str], size: int, device: str, runs: int, as_json: bool) -> None:
    """Print the times of models, or of networks with and without attention."""
    from acla_nas.bench.infer import check_inference
    from acla_nas.bench.models import check_models

    present = _present_device(device)
    check: Any
    if models:
        check = check_models(models, size=size, device=present, runs=runs)
    else:
        check = check_inference(size=size, device=present, runs=runs)
    click.echo(json.dumps(check.as_dict(), indent=2) if as_json else check.text())


def run_space(device: str, runs: int, as_json: bool) -> None:
    """Print times and memory of a search's steps."""
    from acla_nas.bench.space import check_space

    check = check_space(device=_present_device(device), runs=runs)
    click.echo(json.dumps(check.as_dict(), indent=2) if as_json else check.text())


def run_data(config_path: str, overrides: Sequence[str], runs: int, as_json: bool) -> None:
    """Print how fast patches are loaded and used up."""
    config = load_config(config_path, overrides)
    from acla_nas.bench.data import check_data

    check = check_data(config, runs=runs)
    click.echo(json.dumps(check.as_dict(), indent=2) if as_json else check.text())


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


def run_ranking(config_path: str, overrides: Sequence[str], architectures: int) -> None:
    """Score random architectures by inherited weights and by training, and print how alike the ranks are."""
    config = load_config(config_path, overrides)
    from acla_nas.arch import shown_positions
    from acla_nas.bench.ranking import Ranking, ranking_table

    ranking = Ranking(config, architectures)
    rows = []
    for row in ranking.run():
        rows.append(row)
        positions = shown_positions(row.positions)
        click.echo(f"positions {positions}: inherited {row.inherited:.3f} dB, trained {row.trained:.3f} dB")
    click.echo(f"\n{ranking_table(rows)}")


def run_strategies(
    config_path: str, overrides: Sequence[str], others: Sequence[str], seeds: Sequence[int]
) -> None:
    """Search with several strategies for the same time, train what they find, and print the table."""
    config = load_config(config_path, overrides)
    from acla_nas.arch import shown_positions
    from acla_nas.bench.strategies import compare_strategies, strategies_table

    rows = []
    for row in compare_strategies(config, others, seeds):
        rows.append(row)
        positions = shown_positions(row.positions)
        click.echo(f"{row.strategy}, seed {row.seed}: positions {positions}, {row.psnr:.3f} dB")
    click.echo(f"\n{strategies_table(rows)}")


def _present_device(device: str) -> str:
    """Return "cpu" or "cuda" for what was asked for, which may be "auto"."""
    import torch

    from acla_nas.errors import AclaError

    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise AclaError("--device cuda, but PyTorch sees no GPU: use cpu, or check CUDA_VISIBLE_DEVICES")
    return "cuda" if available and device != "cpu" else "cpu"
