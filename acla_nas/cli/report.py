"""acla-nas report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from acla_nas.config import Config, PathName, load_config
from acla_nas.errors import AclaError, unknown_name

if TYPE_CHECKING:
    from acla_nas.candidate import Candidate

T = TypeVar("T", bound=BaseModel)


class PageOptions(BaseModel):
    """What ``acla-nas report RUN`` takes beside overrides of the run's configuration.

    Attributes:
        images: files to show crops of; the first test images where there are none.
        out: the page; report.html in the run folder where None.
    """

    model_config = ConfigDict(extra="forbid")

    images: list[PathName] = []
    out: PathName | None = None


def run_page(run: str, overrides: Sequence[str]) -> None:
    """Write the report of a run folder, and say where it lies."""
    from acla_nas.report.folder import RunFolder

    folder = RunFolder.read(run)
    config, options = split_overrides(str(folder.path / "config.yml"), overrides, PageOptions)
    from acla_nas.report.page import write_report

    click.echo(f"report: {write_report(run, options.out, images=options.images, config=config)}")


class KeysOptions(BaseModel):
    """What ``acla-nas report keys`` takes beside the configuration.

    Attributes:
        image: a file, degraded by the task as a test image is; the first test image where None.
        query: (x, y) in pixels of the degraded image; the most textured place where None.
        position: of the module that is looked at; the last one where None.
        out: the picture.
    """

    model_config = ConfigDict(extra="forbid")

    image: PathName | None = None
    query: tuple[int, int] | None = None
    position: int | None = Field(None, ge=1)
    out: PathName = "keys.png"


def run_keys(config_path: str, overrides: Sequence[str]) -> None:
    """Draw the keys that each model selects for one query pixel, and say where the picture lies."""
    config, options = split_overrides(config_path, overrides, KeysOptions)
    from acla_nas.report.run import run_report_keys

    click.echo(run_report_keys(config, **options.model_dump()))
    click.echo(f"picture: {Path(options.out)}")


def split_overrides(config_path: str, overrides: Sequence[str], takes: type[T]) -> tuple[Config, T]:
    """Return the configuration, and what belongs to this command alone.

    Args:
        config_path: of the YAML file.
        overrides: of its keys, and of those that the command takes.
        takes: the latter.

    Raises:
        AclaError: a key that neither has, or a value that does not fit.
    """
    import yaml

    own: dict[str, Any] = {}
    others = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if equals and key in takes.model_fields:
            try:
                own[key] = yaml.safe_load(value)
            except (yaml.YAMLError, ValueError):
                raise AclaError(f"the value of override {override!r} is not YAML; put it in quotes") from None
            continue
        section = key.partition(".")[0]
        if section not in Config.model_fields:
            raise unknown_name("key", key, [*Config.model_fields, *takes.model_fields])
        others.append(override)
    try:
        options = takes(**own)
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        needs = {
            "query": "[x, y], two pixels",
            "position": "a number from 1",
            "images": "a list of files, such as [a.png, b.png]",
        }.get(key, "a path")
        raise AclaError(f"{key} must be {needs}, not {own[key]!r}") from None
    return load_config(config_path, others), options


def run_front(run: str, budget: str | None, as_json: bool) -> None:
    """Print the candidates in a run folder; with a budget, write the best of those within it."""
    from acla_nas.candidate import load_candidates, pareto_front
    from acla_nas.report.front import front_table

    candidates = load_candidates(Path(run, "candidates.json"))
    unit = next(iter(candidates[0].arch.cost))
    best = None if budget is None else _best_within(budget, candidates, unit, run)
    path = None if best is None else best.arch.save(Path(run, "within_budget.json"))
    if as_json:
        front = {id(candidate) for candidate in pareto_front(candidates)}
        rows = [{**_as_dict(c), "front": id(c) in front} for c in sorted(candidates, key=lambda c: c.cost)]
        picked = None if best is None else {**_as_dict(best), "architecture": str(path)}
        click.echo(json.dumps({"unit": unit, "candidates": rows, "within_budget": picked}, indent=2))
        return
    click.echo(front_table(candidates, unit))
    if best is not None:
        from acla_nas.arch import shown_positions

        positions = shown_positions(best.arch.positions)
        click.echo(f"\npositions: {positions}; quality {best.quality:.3f}; cost {best.cost:.10g} {unit}")
        click.echo(f"architecture: {path}")


def _best_within(budget: str, candidates: Sequence[Candidate], unit: str, run: str) -> Candidate:
    """Return the candidate with the highest quality within a budget."""
    from acla_nas.budget import Budget

    limit = Budget.parse(budget)
    if limit.unit != unit:
        raise AclaError(f"budget {budget!r} is in {limit.unit}, the search in {run} measured {unit}")
    within = [candidate for candidate in candidates if candidate.cost <= limit.limit]
    if not within:
        raise AclaError(f"no candidate in {run} is within {budget}: search with --budget {budget!r}")
    return max(within, key=lambda candidate: candidate.quality)


def _as_dict(candidate: Candidate) -> dict[str, Any]:
    return {
        "positions": candidate.arch.positions,
        "keys": candidate.arch.attention["num_keys"],
        "quality": candidate.quality,
        "cost": candidate.cost,
    }
