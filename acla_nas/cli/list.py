"""acla-nas list."""

from __future__ import annotations

import json
from typing import Any

import click


def run(kind: str | None, as_json: bool) -> None:
    """Print the names of one kind, or of all kinds, each with the first line of its docstring."""
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
