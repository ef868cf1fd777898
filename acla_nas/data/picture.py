"""Picture: an image file with all that must survive its restoration: 16 bits, grey, transparency, colours."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from acla_nas.data.images import SUFFIXES
from acla_nas.durable import replacing
from acla_nas.errors import AclaError

_ORIENTATION = 0x0112
_EXIF_IFD = 0x8769
_SIZES = (0xA002, 0xA003)  # width and height in EXIF, which are no longer right
_WITH_ALPHA = (".png", ".tif", ".tiff", ".webp")
_PNG_HEADER = 33  # bytes: the signature and the IHDR chunk


@dataclass(frozen=True)
class Picture:
    """An image as it is shown: upright, with its transparency and the description of its colours.

    Attributes:
        pixels: (H, W, 3) RGB or (H, W, 1) grey, uint8 or uint16.
        alpha: (H, W), of the same dtype, 0 where it is transparent; None where it has none.
        exif: EXIF data as stored in files, without orientation and sizes; empty where there is none.
        icc_profile: what the colours mean; None where it is not said.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    exif: bytes = b""
    icc_profile: bytes | None = None


def load_picture(path: str | Path) -> Picture:
    """Read an image file with nothing lost but what a picture has no place for.

    Palettes become colours, other colour models RGB; the orientation that a camera noted is applied.

    Raises:
        AclaError: the file is missing, no image, damaged, holds several images, or has pixels of a type
            without a fixed range (floats).

    Example:
        >>> from acla_nas.data import embedded_images
        >>> load_picture(embedded_images("test")[0]).pixels.shape
        (300, 451, 3)
    """
    try:
        with Image.open(path) as file:
            if getattr(file, "n_frames", 1) > 1:
                raise ValueError(f"it holds {file.n_frames} images, give them one by one")
            # Looking for EXIF may read the whole of a PNG file, after which its coding is no longer told.
            coding = " ".join(str(tile[3]) for tile in getattr(file, "tile", ()))
            exif = file.getexif()
            orientation = exif.pop(_ORIENTATION, 1)
            for tag in _SIZES:
                exif.get_ifd(_EXIF_IFD).pop(tag, None)
            layers = _layers(file, Path(path), coding)
            layers = np.ascontiguousarray(_upright(layers, orientation))
            pixels, alpha = (
                (layers[..., :-1], layers[..., -1]) if layers.shape[2] in (2, 4) else (layers, None)
            )
            return Picture(pixels, alpha, exif.tobytes() if len(exif) else b"", file.info.get("icc_profile"))
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        reason = str(error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "not an image, or of an unknown format"
        elif isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        raise AclaError(
            f"cannot read image {path}: {reason.splitlines()[0]}; remove or replace it"
        ) from error


def _layers(file: Image.Image, path: Path, coding: str) -> np.ndarray:
    """Return (H, W, C), C being 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA."""
    if file.mode.startswith(("I", "F")):
        grey = np.asarray(file)
        if not np.issubdtype(grey.dtype, np.integer) or grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"pixels of type {grey.dtype} have no fixed range (8 or 16 bits have)")
        return grey.astype(np.uint16)[..., None]
    if ";16" in coding:  # Pillow would keep 8 bits
        import cv2

        deep = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
        if deep is None or deep.dtype != np.uint16:
            raise ValueError(f"16-bit {file.mode} of this kind cannot be read")
        order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}[deep.shape[2]]
        return deep[..., [0, 3]] if "LA" in coding else deep[..., order]
    has_alpha = file.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in file.info
    is_grey = file.mode in ("1", "L", "LA", "La")
    converted = file.convert(("L" if is_grey else "RGB") + ("A" if has_alpha else ""))
    return np.atleast_3d(np.asarray(converted))


def _upright(layers: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and flip pixels as EXIF's orientation, 1 .. 8, says that they are to be shown."""
    if orientation in (5, 6, 7, 8):
        layers = layers.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        layers = layers[::-1]
    if orientation in (2, 3, 6, 7):
        layers = layers[:, ::-1]
    return layers


def save_picture(picture: Picture, path: str | Path) -> None:
    """Write a picture to a file, whole or not at all; missing folders are made.

    Args:
        picture: what to write.
        path: with one of the suffixes of image files; .png keeps everything.

    Raises:
        AclaError: the suffix is unknown or its format cannot hold the picture, or the file cannot be written.

    Example:
        >>> picture = Picture(np.zeros((4, 4, 3), dtype=np.uint8))
        >>> save_picture(picture, "/tmp/black.png")
    """
    path = Path(path)
    check_suffix(path, alpha=picture.alpha is not None, deep=picture.pixels.dtype == np.uint16)
    layers = picture.pixels
    if picture.alpha is not None:
        layers = np.concatenate([layers, picture.alpha[..., None]], 2)
    with replacing(path) as partial:
        if layers.dtype == np.uint16:
            partial.write_bytes(_deep_png(layers, picture))
            return
        options: dict[str, object] = {"icc_profile": picture.icc_profile, "exif": picture.exif}
        options = {name: value for name, value in options.items() if value}
        if path.suffix.lower() in (".jpg", ".jpeg"):
            options |= {"quality": 95, "subsampling": 0}
        elif path.suffix.lower() == ".webp":
            options |= {"lossless": True}
        kind = Image.registered_extensions()[path.suffix.lower()]
        Image.fromarray(layers[..., 0] if layers.shape[2] == 1 else layers).save(partial, kind, **options)


def check_suffix(path: Path, *, alpha: bool, deep: bool) -> None:
    """Raise AclaError where a file of this name cannot hold such a picture.

    Args:
        path: of the file.
        alpha: is there transparency.
        deep: are there 16 bits.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise AclaError(f"cannot write {path}: unknown suffix {suffix!r}; use one of {', '.join(SUFFIXES)}")
    if alpha and suffix not in _WITH_ALPHA:
        raise AclaError(f"cannot write {path}: {suffix} files have no transparency; use .png")
    if deep and suffix != ".png":
        raise AclaError(f"cannot write {path}: 16 bits are written to .png files only; use .png")


def _deep_png(layers: np.ndarray, picture: Picture) -> bytes:
    """Return a 16-bit PNG file, with the chunks that OpenCV leaves out."""
    import cv2

    if layers.shape[2] == 2:  # OpenCV has no grey with alpha
        layers = layers[..., [0, 0, 0, 1]]
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[layers.shape[2]]
    done, encoded = cv2.imencode(".png", np.ascontiguousarray(layers[..., order]))
    if not done:
        raise OSError("it cannot be encoded")
    content = encoded.tobytes()
    chunks = b""
    if picture.icc_profile:
        chunks += _png_chunk(b"iCCP", b"profile\0\0" + zlib.compress(picture.icc_profile))
    if picture.exif:
        chunks += _png_chunk(b"eXIf", picture.exif.removeprefix(b"Exif\0\0"))
    return content[:_PNG_HEADER] + chunks + content[_PNG_HEADER:]


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
