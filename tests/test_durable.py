"""Files are whole: the old content or the new, on the disk, whatever happens in between."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from acla_nas import durable
from acla_nas.durable import append_line, replacing, write_text
from acla_nas.errors import AclaError
from acla_nas.exporter import save_weights


def test_a_file_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    assert write_text(path, "one") == path
    write_text(path, "two")
    assert path.read_text() == "two" and list(path.parent.iterdir()) == [path]


def test_the_order_is_flush_rename_flush_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, Any]] = []
    monkeypatch.setattr(
        os, "fsync", lambda handle: done.append(("fsync", os.readlink(f"/proc/self/fd/{handle}")))
    )
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(("rename", str(b))), replace(a, b)))
    path = tmp_path / "file"
    with replacing(path) as partial:
        partial.write_text("x")
    assert done == [("fsync", str(partial)), ("rename", str(path)), ("fsync", str(tmp_path))]


@pytest.mark.parametrize("where", ["write", "fsync"])
def test_disk_full(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_text(tmp_path / "file", "before")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    message = rf"cannot write {path}: No space left on device; mend that"
    with pytest.raises(AclaError, match=message), replacing(path) as partial:
        partial.write_text("half")
        if where == "write":
            full()
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_an_interruption_leaves_what_was_there(tmp_path: Path) -> None:
    path = write_text(tmp_path / "file", "before")
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_lines_are_added_after_a_torn_one_too(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, "1")
    append_line(path, "2")
    assert path.read_text() == "1\n2\n"
    path.write_text('1\n{"to')
    append_line(path, "3")
    assert path.read_text() == '1\n{"to\n3\n'


def test_weights_on_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files, which the system enforces, in a process of its own."""
    path = tmp_path / "weights.safetensors"
    save_weights({"w": torch.zeros(4)}, path)
    before = path.read_bytes()
    process = os.fork()
    if process == 0:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            save_weights({"w": torch.zeros(100_000)}, path)
        except AclaError as error:
            os._exit(0 if "File too large" in str(error) and "weights.safetensors" in str(error) else 2)
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_names_of_unfinished_files_differ_by_process(tmp_path: Path) -> None:
    with replacing(tmp_path / "file") as partial:
        assert str(os.getpid()) in partial.name and partial.name.endswith(durable.PARTIAL)
        partial.touch()
