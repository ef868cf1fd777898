"""Downloads from a server on this machine: resumed, verified, unpacked with care."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import socket
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acla_nas.data import fetch
from acla_nas.data.image_sets import SETS, Archive, ImageSet, Part
from acla_nas.errors import AclaError


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; ends after `limit` bytes, if there is one; keeps what was asked for."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.limit: int | None = None
        self.ranges = True
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path[1:], wanted))
        content = self.server.files.get(self.path[1:])
        if content is None:
            self.send_error(404)
            return
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        if first >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        self.wfile.write(content[first : None if self.server.limit is None else first + self.server.limit])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def png(seed=0):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(
        file, "PNG"
    )
    return file.getvalue()


def zipped(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for member, content in members:
            if isinstance(content, bytes):
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content) if content else None)
    return file.getvalue()


def sha(content):
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.fixture
def serve(server, monkeypatch):
    """Make a file on the server the image set "mine", whose images are in HR/ and come to Mine/."""

    def make(name, content, *, size=None, checksum=None):
        server.files[name] = content
        archive = Archive(f"{server.url}/{name}", size, checksum)
        monkeypatch.setitem(
            SETS, "mine", ImageSet("Mine", "all mine", "nowhere", (Part(archive, "HR", "Mine"),))
        )

    return make


GOOD = {"HR/a.png": png(1), "HR/b.png": png(2), "HR/readme.txt": b"hello", "LR/c.png": png(3)}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_set_is_downloaded_verified_and_unpacked(kind, serve, tmp_path):
    tar = [(tarfile.TarInfo(name), content) for name, content in GOOD.items()]
    content = zipped(GOOD) if kind == "zip" else tarred(tar)
    serve(f"mine.{kind}", content, size=len(content), checksum=sha(content))
    said, seen = [], []
    [folder] = fetch("mine", tmp_path, say=said.append, progress=lambda *at: seen.append(at))
    assert folder == tmp_path / "Mine"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "a.png": GOOD["HR/a.png"],
        "b.png": GOOD["HR/b.png"],
    }
    assert said == ["Mine; licence: all mine; nowhere", f"mine.{kind}: sha256 as expected"]
    assert seen[-1] == (len(content), len(content))
    assert [path.name for path in tmp_path.iterdir()] == ["Mine"], "the archive is gone"


def test_what_is_there_is_left_alone(serve, server, tmp_path):
    serve("mine.zip", zipped(GOOD))
    fetch("mine", tmp_path)
    (tmp_path / "Mine" / "a.png").unlink()
    asked = len(server.asked)
    assert fetch("mine", tmp_path) == [tmp_path / "Mine"]
    assert len(server.asked) == asked and not (tmp_path / "Mine" / "a.png").exists()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on(ranges, serve, server, tmp_path):
    content = zipped(GOOD)
    serve("mine.zip", content, size=len(content), checksum=sha(content))
    server.limit = 150_000
    with pytest.raises(AclaError, match="give the command again, which goes on"):
        fetch("mine", tmp_path)
    assert (tmp_path / "mine.zip.part").stat().st_size == 131_072, "whole chunks of 64 KiB"
    server.limit, server.ranges = None, ranges
    fetch("mine", tmp_path)
    assert server.asked[-1] == ("mine.zip", "bytes=131072-")
    assert (tmp_path / "Mine" / "b.png").read_bytes() == GOOD["HR/b.png"]


def test_another_file_than_expected_is_removed(serve, tmp_path):
    content = zipped(GOOD)
    serve("mine.zip", content, checksum=sha(b"another"))
    with pytest.raises(
        AclaError, match=r"is not what it was: sha256 \w+ instead of .*do not trust the source"
    ):
        fetch("mine", tmp_path)
    assert list(tmp_path.iterdir()) == []
    serve("mine.zip", content, size=len(content) - 5, checksum=sha(content))
    with pytest.raises(AclaError, match="it is another file, and was removed"):
        fetch("mine", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_checksum_is_noted_and_kept_to(serve, server, tmp_path):
    content = zipped(GOOD)
    serve("mine.zip", content)
    said = []
    fetch("mine", tmp_path, say=said.append)
    assert said[1].startswith("no checksum of mine.zip is known: its sha256, ")
    assert json.loads((tmp_path / "checksums.json").read_text()) == {f"{server.url}/mine.zip": sha(content)}
    for change, told in (({}, "sha256 as noted in"), ({"HR/a.png": png(9)}, "is not what it was")):
        for path in (tmp_path / "Mine").iterdir():
            path.unlink()
        (tmp_path / "Mine").rmdir()
        server.files["mine.zip"] = zipped({**GOOD, **change}) if change else content
        if change:
            with pytest.raises(AclaError, match=told):
                fetch("mine", tmp_path)
        else:
            fetch("mine", tmp_path, say=said.append)
            assert told in said[-1]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (zipped({"LR/a.png": b"a"}), "holds no images in HR"),
        (b"PK\x03\x04 nothing more", "is damaged"),
    ],
)
def test_archives_that_are_not_unpacked(content, told, serve, tmp_path):
    """For those that mean harm see tests/test_security.py."""
    serve("mine.archive", content)
    inner = tmp_path / "a" / "b"
    with pytest.raises(AclaError, match=told):
        fetch("mine", inner)
    assert not (inner / "Mine").exists()


def test_an_archive_that_unpacks_to_far_more_than_its_size(serve, tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("HR/a.png", bytes(20_000_000))
    serve("mine.zip", file.getvalue())
    with pytest.raises(AclaError, match="10 times its size: not done"):
        fetch("mine", tmp_path)
    assert not (tmp_path / "Mine").exists() and not list(tmp_path.glob(".Mine*"))


def test_a_set_of_single_images(server, monkeypatch, tmp_path):
    parts = []
    for i in (1, 2):
        server.files[f"{i}.png"] = png(i)
        parts.append(Part(Archive(f"{server.url}/{i}.png", None, None), None, f"Mine/{i}.png"))
    monkeypatch.setitem(SETS, "mine", ImageSet("Mine", "all mine", "nowhere", tuple(parts)))
    assert fetch("mine", tmp_path) == [tmp_path / "Mine"]
    assert (tmp_path / "Mine" / "2.png").read_bytes() == png(2)
    assert len(json.loads((tmp_path / "checksums.json").read_text())) == 2


def test_mistakes(serve, server, monkeypatch, tmp_path):
    with pytest.raises(AclaError, match="unknown image set 'div2'; did you mean 'div2k'"):
        fetch("div2", tmp_path)
    serve("mine.zip", b"")
    del server.files["mine.zip"]
    with pytest.raises(AclaError, match=r"cannot download .*: the server answers 404 Not Found; 0 bytes"):
        fetch("mine", tmp_path)
    serve("mine.zip", b"", size=10**18)
    with pytest.raises(AclaError, match=r"needs 2000000000\.0 GB to be downloaded and unpacked"):
        fetch("mine", tmp_path)


def test_a_server_that_cannot_be_reached(monkeypatch, tmp_path):
    """The error is one line whose remedies are true: a file brought by hand is verified and unpacked."""
    with socket.socket() as closed:  # bound, and not listening
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/gone.zip"
        part = Part(Archive(url, None, None), "HR", "Gone")
        monkeypatch.setitem(SETS, "gone", ImageSet("Gone", "all mine", "nowhere", (part,)))
        with pytest.raises(AclaError) as told:
            fetch("gone", tmp_path)
        assert str(told.value) == (
            f"cannot download {url}: the server cannot be reached from here; 0 bytes are here: give the "
            f"command again, which goes on, or download it elsewhere and put it into {tmp_path}"
        )
        (tmp_path / "gone.zip").write_bytes(zipped({"HR/a.png": png(1)}))
        [folder] = fetch("gone", tmp_path)
        assert [path.name for path in folder.iterdir()] == ["a.png"]


def test_every_set_says_where_it_is_from_and_on_which_terms():
    assert {"div2k", "set5"} <= set(SETS)
    for name, one in SETS.items():
        assert one.licence and one.homepage.startswith("https://") and one.parts, name
        for part in one.parts:
            assert part.archive.url.startswith("https://")
            kind, _, digits = (part.archive.checksum or ":").partition(":")
            assert len(digits) == {"sha256": 64, "md5": 32, "": 0}[kind]
            assert not Path(part.target).is_absolute()
