"""Writing files so that neither a kill nor a power cut leaves half of one: the old content or the new."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from acla_nas.errors import AclaError

PARTIAL = ".partial"  # the suffix of a file that is being written, or was when its process was killed


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside a path to write to; the file then takes the path's place.

    It is on the disk before it is renamed, and so is the new name afterwards. Where the writing fails, what
    was there before stays, and the temporary file goes. The folder is made if missing.

    Raises:
        AclaError: the file cannot be written, as when the disk is full.

    Example:
        >>> with replacing("/tmp/acla_nas_example.txt") as partial:
        ...     _ = partial.write_text("whole")
        >>> Path("/tmp/acla_nas_example.txt").read_text()
        'whole'
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            _flush(partial)
            os.replace(partial, path)
            _flush(path.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise AclaError(
            f"cannot write {path}: {error.strerror or error}; mend that and give the command again: the "
            "file is as it was before"
        ) from error


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file as :func:`replacing` does, and return its path."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return Path(path)


def append_line(path: str | Path, line: str) -> None:
    """Add a line to a text file, made if missing, so that there is all of the line or nothing of it."""
    path = Path(path)
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    torn = "\n" if before and not before.endswith("\n") else ""  # by whatever else wrote it
    write_text(path, f"{before}{torn}{line}\n")


def make_run_folder(folder: str | Path) -> Path:
    """Make the folder of a run, if missing, and return it.

    Raises:
        AclaError: it cannot be made.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AclaError(f"cannot write into run folder {folder}: {reason}; set run=DIR") from None
    return Path(folder)


def _flush(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
