"""acla-nas data."""

from __future__ import annotations

import json
import sys

import click


def run_check(folder: str, against: str | None, as_json: bool) -> None:
    """Print what was found in a folder of images; exit with 1 if something is wrong."""
    from acla_nas.data.check import check_images

    found = check_images(folder, against)
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else found.text())
    if not found.is_clean:
        raise SystemExit(1)


def run_fetch(name: str | None, folder: str) -> None:
    """Download an image set, or list them."""
    from acla_nas.data.image_sets import SETS, fetch

    if name is None:
        width = max(map(len, SETS))
        for known, one in SETS.items():
            click.echo(f"{known:{width}}  {one.summary}; licence: {one.licence}")
        return
    told = -1

    def progress(done: int, total: int | None) -> None:
        nonlocal told
        share = done * 100 // total if total else done // (1 << 20)
        if share > told and sys.stderr.isatty():
            click.echo(f"\r{share:3} {'%' if total else 'MiB'}", nl=done == total, err=True)
        told = share if done != total else -1

    for path in fetch(name, folder, say=click.echo, progress=progress):
        click.echo(f"images: {path}")


def run_lr(folder: str, target: str, scale: int, suffix: str | None, existing: str) -> None:
    """Write low-resolution images and say how many."""
    from acla_nas.data.low_resolution import write_low_resolution

    written = list(write_low_resolution(folder, target, scale, suffix=suffix, existing=existing))
    click.echo(f"written: {len(written)} images to {target}")
