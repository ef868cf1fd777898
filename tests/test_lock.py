"""Two runs into one folder: the second refuses, until the first has ended, however it has."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from acla_nas import lock
from acla_nas.errors import AclaError
from acla_nas.lock import locked


def holder(folder: Path) -> int:
    """Return the process that has the lock of a folder."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        with locked(folder):
            os.write(writing, b"x")
            signal.pause()
    os.read(reading, 1)
    os.close(reading)
    os.close(writing)
    return process


def test_the_second_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_PATIENCE", 0.1)
    process = holder(tmp_path)
    try:
        with (
            pytest.raises(
                AclaError, match=rf"run folder {tmp_path} is in use by another run: .* set run=DIR"
            ),
            locked(tmp_path),
        ):
            pass
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    (tmp_path / "weights.safetensors.123.partial").touch()  # over which it was killed
    with locked(tmp_path), locked(tmp_path / "." / "../" / tmp_path.name):  # nested, by another name
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = r"cannot write into run folder .*file/run: .*; set run=DIR"
    with pytest.raises(AclaError, match=message), locked(tmp_path / "file" / "run"):
        pass
