"""What a run folder holds already, so that no run is written over another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from acla_nas.config import Config, load_config
from acla_nas.errors import AclaError
from acla_nas.study_storage import FILE as TRIALS
from acla_nas.training.checkpoint import previous

# Kind of run -> the file that is written last, or a line at a time.
_RESULTS = {
    "search": "summary.json",
    "training": "scores.json",
    "comparison": "results.jsonl",
    "ranking": "ranking.jsonl",
    "comparison of strategies": "strategies.jsonl",
}

# Keys that may be others when an unfinished run goes on.
_FREE: dict[str, Any] = {
    **dict.fromkeys(("run", "device", "devices", "nodes", "models", "time_limit", "budget", "compare"), True),
    **{section: {"nonfinite"} for section in ("search", "train")},
    "data": {"test"},
}


def checkpoint_of(folder: str | Path, kind: str) -> Path:
    """Return where a search or a training keeps its checkpoint: ``search.ckpt``, ``training.ckpt``."""
    return Path(folder, f"{kind}.ckpt")


def is_begun(folder: str | Path, kind: str) -> bool:
    """Whether a run folder has what a run of this kind, "search" or "training", goes on with."""
    return _has_checkpoint(folder, kind) or (kind == "search" and Path(folder, TRIALS).exists())


def check_run_folder(config: Config, kind: str) -> None:
    """See that a run writes over none that was made otherwise.

    Args:
        config: of the run.
        kind: "search", "training", "comparison", ..

    Raises:
        AclaError: the folder holds a run of another kind; or a search or training, unfinished or finished,
            of another configuration.
    """
    folder = Path(config.run)
    for other in _RESULTS:
        if other != kind and _holds(folder, other):
            raise AclaError(
                f"run folder {folder} holds a {other}, which a {kind} would overwrite; set run=DIR"
            )
    if kind not in ("search", "training") or not (_holds(folder, kind) and (folder / "config.yml").exists()):
        return
    then = load_config(folder / "config.yml")
    if kind == "search" and (folder / TRIALS).exists() and then.strategy.name == config.strategy.name:
        return  # the study knows what may differ
    is_unfinished = _has_checkpoint(folder, kind)
    free = {key: value for key, value in _FREE.items() if is_unfinished or key != "budget"}
    before, now = then.model_dump(exclude=free), config.model_dump(exclude=free)
    different = ", ".join(sorted(key for key in now if before[key] != now[key]))
    if different and is_unfinished:
        path = checkpoint_of(folder, kind)
        raise AclaError(
            f"run folder {folder} holds an unfinished run with another {different}: set run=DIR to begin a "
            f"new one, or remove {path.name} and {previous(path).name} there"
        )
    if different:
        raise AclaError(
            f"run folder {folder} holds a {kind} with another {different}: set run=DIR, or remove the folder"
        )


def _holds(folder: Path, kind: str) -> bool:
    return (folder / _RESULTS[kind]).exists() or is_begun(folder, kind)


def _has_checkpoint(folder: str | Path, kind: str) -> bool:
    path = checkpoint_of(folder, kind)
    return path.exists() or previous(path).exists()
