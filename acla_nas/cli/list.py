"""acla-nas list."""

from __future__ import annotations

import json
from typing import Any

import click
import yaml


def run(kind: str | None, as_json: bool) -> None:
    """Print the names of one kind or of all, with the first lines of their docstrings; or the keys."""
    if kind == "keys":
        _list_keys(as_json)
        return
    from acla_nas import attention, cost, strategies, tasks
    from acla_nas.registry import Registry
    from acla_nas.search_spaces import registry as search_spaces

    kinds: dict[str, tuple[str, Registry[Any]]] = {
        "spaces": ("space.name", search_spaces.REGISTRY),
        "strategies": ("strategy.name", strategies.REGISTRY),
        "attentions": ("space.attention", attention.REGISTRY),
        "costs": ("strategy.cost", cost.REGISTRY),
        "tasks": ("task.name", tasks.REGISTRY),
    }
    chosen = [kind] if kind else list(kinds)
    found = {name: kinds[name][1].summaries() for name in chosen}
    if as_json:
        rows = {
            name: [{"name": part, "summary": line} for part, line in parts.items()]
            for name, parts in found.items()
        }
        click.echo(json.dumps(rows, indent=2))
        return
    width = max(len(part) for parts in found.values() for part in parts)
    for i, (name, parts) in enumerate(found.items()):
        if not kind:
            click.echo(f"{chr(10) if i else ''}{name} ({kinds[name][0]}=NAME)")
        for part, line in parts.items():
            click.echo(f"{'' if kind else '  '}{part:<{width}}  {line}".rstrip())


def _list_keys(as_json: bool) -> None:
    """Print every key of a configuration with its default and meaning."""
    from acla_nas.config import keys

    known = keys()
    if as_json:
        rows = [{"name": name, "default": value, "summary": line} for name, (value, line) in known.items()]
        click.echo(json.dumps({"keys": rows}, indent=2))
        return
    for name, (value, line) in known.items():
        written = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
        click.echo(f"{name}: {written}\n    {line}")
