"""Published image sets: downloaded with resume, compared with their checksums, and unpacked with care."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from acla_nas.data.images import SUFFIXES
from acla_nas.durable import write_text
from acla_nas.errors import AclaError, unknown_name

_CHUNK = 1 << 16  # bytes: of a broken download, what is left of the last one is lost
_RECORD = "checksums.json"
_MOST_GROWTH = 10  # times the archive's size: images hardly shrink in an archive


class Archive(NamedTuple):
    """A file to download.

    Attributes:
        url: where it is; its last part is the file's name.
        size: in bytes; None where it is not known.
        checksum: "sha256:..." or "md5:..."; None where it is not known.
    """

    url: str
    size: int | None
    checksum: str | None

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]


class Part(NamedTuple):
    """A part of a set: an archive and a folder of images in it, or an image.

    Attributes:
        archive: what is downloaded.
        inside: folder of the images in the archive; None where what is downloaded is an image itself.
        target: name of the folder, or file, that comes of it.
    """

    archive: Archive
    inside: str | None
    target: str


class ImageSet(NamedTuple):
    """A published set of images.

    Attributes:
        summary: what it is.
        licence: on which terms it may be used, as far as its publishers say so.
        homepage: where to read on.
        parts: what it is made of.
    """

    summary: str
    licence: str
    homepage: str
    parts: tuple[Part, ...]


_ETHZ = "https://data.vision.ee.ethz.ch/cvl/DIV2K/"
_RESEARCH_ONLY = "academic research only; the images' copyright stays with their owners: read the homepage"


def _div2k(folder: str, size: int, sha256: str) -> Part:
    return Part(Archive(f"{_ETHZ}{folder}.zip", size, f"sha256:{sha256}"), folder, folder)


# Checksums are copied from where they are published; where none is, it is None, and that of what came first
# is noted. We compared none of them with a download: the servers could not be reached from here.
# Sizes and SHA-256 as TensorFlow Datasets has them.
_TRAIN = _div2k(
    "DIV2K_train_HR", 3530603713, "9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335"
)
_VALID = _div2k(
    "DIV2K_valid_HR", 448993893, "20dd31fd84d777bc1cf5d6b7654a3f569c0aec74458ae094122ad1d0489900fc"
)
# MD5 as torchSR has it (torchsr/datasets).
_BENCHMARK = Archive(
    "https://cv.snu.ac.kr/research/EDSR/benchmark.tar", None, "md5:4ace41d33c2384b97e6b320cd0afd6ba"
)
_KODAK = "https://r0k.us/graphics/kodak/"

SETS: dict[str, ImageSet] = {
    "div2k": ImageSet("DIV2K: 800 images to train, 100 to validate", _RESEARCH_ONLY, _ETHZ, (_TRAIN, _VALID)),
    "div2k_valid": ImageSet("DIV2K: 100 images to validate", _RESEARCH_ONLY, _ETHZ, (_VALID,)),
    "kodak24": ImageSet(
        "Kodak Lossless True Color Image Suite: 24 images of 768x512",
        "released by Kodak for unrestricted use",
        _KODAK,
        tuple(
            Part(Archive(f"{_KODAK}kodak/kodim{i:02}.png", None, None), None, f"Kodak24/kodim{i:02}.png")
            for i in range(1, 25)
        ),
    ),
} | {
    name.lower(): ImageSet(
        f"{name}: test images of super-resolution",
        "none is stated: published for research",
        "https://cv.snu.ac.kr/research/EDSR/",
        (Part(_BENCHMARK, f"benchmark/{name}/HR", name),),
    )
    for name in ("Set5", "Set14", "B100", "Urban100")
}
"""Name -> image set. Addresses and checksums are those that public loaders of these sets use."""


def fetch(
    name: str,
    folder: str | Path,
    *,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> list[Path]:
    """Download an image set and return the folders of images, which are made in the given folder.

    What a broken download left goes on. What is downloaded is compared with the size and checksum that are
    known; where none is, its SHA-256 is noted in checksums.json in the folder, and compared with it the next
    time. Only image files are unpacked, into their own folder, and archives are removed afterwards. What is
    there already is left alone.

    Args:
        name: one of `SETS`.
        folder: where to.
        say: is told what is done, line by line, the licence first.
        progress: is told the bytes that are there, and how many there will be, if known.

    Raises:
        AclaError: unknown name; the download fails, or is something else than expected; the archive has a
            file that would be written outside of its folder, unpacks to far more than its size, or has no
            images; or the disk is too small.

    Example:
        >>> SETS["kodak24"].licence
        'released by Kodak for unrestricted use'
    """
    if name not in SETS:
        raise unknown_name("image set", name, SETS)
    chosen, folder = SETS[name], Path(os.path.expanduser(folder))
    say(f"{chosen.summary}; licence: {chosen.licence}; {chosen.homepage}")
    made: dict[Path, None] = {}
    for part in chosen.parts:
        target = folder / part.target
        made[target if part.inside is not None else target.parent] = None
        if target.exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / part.archive.name
        if not path.exists():
            _download(part.archive, path, progress)
        say(_verify(part.archive, path))
        if part.inside is None:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
        else:
            _unpack(path, part.inside, target)
            path.unlink()
    return list(made)


def _download(archive: Archive, path: Path, progress: Callable[[int, int | None], None]) -> None:
    """Download an archive, going on with what is there of it."""
    import requests

    part = path.with_name(path.name + ".part")
    done = part.stat().st_size if part.exists() else 0
    if archive.size is not None:
        _check_disk(path.parent, 2 * archive.size - done, archive.name)
        if done == archive.size:
            os.replace(part, path)
            return
    headers = {"Range": f"bytes={done}-"} if done else {}
    try:
        with requests.get(archive.url, headers=headers, stream=True, timeout=60) as response:
            if response.status_code == 416:  # nothing is left to send, or it is another file now
                part.unlink()
                raise AclaError(f"{archive.url} cannot be resumed: give the command again, to begin anew")
            response.raise_for_status()
            resumes = response.status_code == 206
            if not resumes:
                done = 0
            left = response.headers.get("Content-Length")
            total = archive.size if archive.size is not None else done + int(left) if left else None
            with part.open("ab" if resumes else "wb") as file:
                for chunk in response.iter_content(_CHUNK):
                    file.write(chunk)
                    done += len(chunk)
                    progress(done, total)
                    if total is not None and done > total:
                        break  # it is refused below
    except requests.RequestException as error:
        raise AclaError(
            f"cannot download {archive.url}: {_why(error)}; {done:,} bytes are here: give the command again, "
            f"which goes on, or download it elsewhere and put it into {path.parent}"
        ) from None
    if total is not None and done != total:
        more = done > total
        if more:
            part.unlink()
        raise AclaError(
            f"{archive.url} ended after {done:,} of {total:,} bytes: "
            + ("it is another file, and was removed" if more else "give the command again, which goes on")
        )
    os.replace(part, path)


def _verify(archive: Archive, path: Path) -> str:
    """Return how an archive compares with its checksum; remove it and raise AclaError where it differs."""
    record = path.with_name(_RECORD)
    noted = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    known = archive.checksum or noted.get(archive.url)
    kind, _, expected = (known or "sha256:").partition(":")
    actual = _digest(path, kind)
    if known is None:
        write_text(record, json.dumps({**noted, archive.url: f"sha256:{actual}"}, indent=2) + "\n")
        return f"no checksum of {archive.name} is known: its sha256, {actual}, was noted in {record}"
    if actual != expected:
        path.unlink()
        raise AclaError(
            f"{archive.url} is not what it was: {kind} {actual} instead of {expected}; it was "
            "removed: give the command again, and if it happens again, do not trust the source"
        )
    return f"{archive.name}: {kind} as {'expected' if archive.checksum else f'noted in {record}'}"


def _digest(path: Path, kind: str) -> str:
    digest = hashlib.new(kind)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _unpack(path: Path, inside: str, target: Path) -> None:
    """Write the images in a folder of an archive into a folder, all of them or none."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    most = _MOST_GROWTH * path.stat().st_size + (1 << 20)
    written = 0
    try:
        for member, size, open_member in _members(path):
            _check_member(path, member)
            if not member.startswith(f"{inside}/") or Path(member).suffix.lower() not in SUFFIXES:
                continue
            written += size
            if written > most:
                raise AclaError(
                    f"{path} unpacks to more than {most:,} bytes, {_MOST_GROWTH} times its size: not done"
                )
            to = partial / member.removeprefix(f"{inside}/")
            to.parent.mkdir(parents=True, exist_ok=True)
            with open_member() as source, to.open("wb") as file:
                _copy(source, file, size, member)
        if not written:
            raise AclaError(f"{path} holds no images in {inside}: it is another archive than expected")
        os.replace(partial, target)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise AclaError(f"{path} is damaged: {error}; remove it and give the command again") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _members(path: Path) -> Iterator[tuple[str, int, Callable[[], IO[bytes]]]]:
    """Yield name, size when unpacked, and what opens it, of each plain file; links are refused."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if (info.external_attr >> 16) & 0o170000 == 0o120000:
                    raise AclaError(f"{path} holds a link, {info.filename!r}: not unpacked")
                if not info.is_dir():
                    yield info.filename, info.file_size, functools.partial(archive.open, info)
        return
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isfile():
                yield member.name, member.size, functools.partial(_opened, tar, member)
            elif not member.isdir():
                raise AclaError(f"{path} holds a link or device, {member.name!r}: not unpacked")


def _opened(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member)
    assert file is not None  # of a plain file
    return file


def _check_member(path: Path, name: str) -> None:
    """Raise AclaError where a file of this name would be written outside of the folder."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in name:
        raise AclaError(f"{path} holds {name!r}, which would be written outside of its folder: not unpacked")


def _copy(source: IO[bytes], file: IO[bytes], size: int, name: str) -> None:
    """Copy a file that says how large it is, and no more than that."""
    left = size
    while chunk := source.read(min(_CHUNK, left + 1)):
        left -= len(chunk)
        if left < 0:
            raise AclaError(f"{name!r} is larger than its archive says: not unpacked")
        file.write(chunk)


def _check_disk(folder: Path, needed: int, name: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise AclaError(
            f"{name} needs {needed / 1e9:.1f} GB to be downloaded and unpacked, and {folder} has "
            f"{free / 1e9:.1f}: give another folder"
        )


def _why(error: Any) -> str:
    """Say in a few words why a download failed; what requests itself says is long, and about its classes."""
    import requests

    if error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy cannot be reached (HTTPS_PROXY)"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate cannot be verified (REQUESTS_CA_BUNDLE)"
    if isinstance(error, requests.Timeout):
        return "the server does not answer"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke"
    if isinstance(error, requests.ConnectionError):
        return "the server cannot be reached from here"
    return f"{type(error).__name__}: {error}"
