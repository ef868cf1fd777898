"""What a run folder holds already, so that no run is written over another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from acla_nas.config import Config, load_config
from acla_nas.errors import AclaError
from acla_nas.study_storage import FILE as TRIALS
from acla_nas.training.checkpoint import checkpoint_of, existing

# Kind of run -> the file that is written last, or a line at a time.
_RESULTS = {
    "search": "summary.json",
    "training": "scores.json",
    "comparison": "results.jsonl",
    "ranking": "ranking.jsonl",
    "comparison of strategies": "strategies.jsonl",
}

# Keys that a run does not depend on, or that may be others when it goes on.
_FREE: dict[str, Any] = {
    **dict.fromkeys(("run", "device", "devices", "nodes", "models", "time_limit", "compare"), True),
    **{section: {"nonfinite"} for section in ("search", "train")},
    "data": {"test", "workers"},
    "strategy": {"trials", "storage", "study"},
}
_UNUSED = {
    "search": ("arch", "train"),
    "training": ("strategy", "search", "scoring", "budget"),
    "ranking": ("arch", "strategy", "search", "budget"),
    "comparison of strategies": ("arch",),
}


def is_begun(folder: str | Path, kind: str) -> bool:
    """Whether a run folder has what a run of this kind, "search" or "training", goes on with."""
    return bool(existing(checkpoint_of(folder, kind))) or (kind == "search" and Path(folder, TRIALS).exists())


def check_run_folder(config: Config, kind: str) -> None:
    """See that a run writes over none that was made otherwise.

    Args:
        config: of the run.
        kind: "search", "training", "comparison", ..

    Raises:
        AclaError: the folder holds a run of another kind, or one of this kind, finished or not, of another
            configuration. What may differ between comparisons they say themselves.
    """
    folder = Path(config.run)
    for other in _RESULTS:
        if other != kind and _holds(folder, other):
            raise AclaError(
                f"run folder {folder} holds a {other}, which a {kind} would overwrite; set run=DIR"
            )
    if kind == "comparison" or not (_holds(folder, kind) and (folder / "config.yml").exists()):
        return
    free = {**_FREE, **dict.fromkeys(_UNUSED[kind], True)}
    if existing(checkpoint_of(folder, kind)):  # what a one-shot search has trained fits any budget
        free["budget"] = True
    then, now = (c.model_dump(exclude=free) for c in (load_config(folder / "config.yml"), config))
    different = ", ".join(sorted(key for key in now if then[key] != now[key]))
    if different:
        raise AclaError(
            f"run folder {folder} holds a {kind} with another {different}: set run=DIR, or remove the folder"
        )


def _holds(folder: Path, kind: str) -> bool:
    return (folder / _RESULTS[kind]).exists() or is_begun(folder, kind)
