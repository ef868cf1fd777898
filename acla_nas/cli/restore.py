"""acla-nas restore."""

from __future__ import annotations

import json

import click


def run(
    model: str,
    source: str,
    target: str,
    tile: int | None,
    self_ensemble: bool,
    device: str,
    existing: str,
    as_json: bool,
) -> None:
    """Restore images and say where they lie, and how the tiles compare with the whole image."""
    import torch

    from acla_nas import restorer

    pairs = restorer.plan(source, target, existing=existing)
    if not pairs:
        click.echo(json.dumps({"files": []}) if as_json else "nothing to do: all files are there already")
        return
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    made = restorer.Restorer(model, tile=tile, self_ensemble=self_ensemble, device=device)
    files = []
    for path in restorer.run(made, pairs):
        files.append(str(path))
        if not as_json:
            click.echo(f"restored: {path}")
    if as_json:
        row = {"files": files, "overlap": made.overlap, "guarantee": made.guarantee()}
        click.echo(json.dumps(row, indent=2))
    else:
        click.echo(made.guarantee())
