"""Restorer and restore: a derived network put to work on images of any size and kind."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acla_nas.arch import Arch
from acla_nas.data.images import SUFFIXES, check_targets, list_images
from acla_nas.data.imresize import imresize
from acla_nas.data.picture import Picture, check_suffix, load_picture, save_picture
from acla_nas.errors import AclaError, AclaWarning
from acla_nas.exporter import load_model
from acla_nas.formats import describe, load
from acla_nas.memory_format import to_channels_last
from acla_nas.metrics import luma
from acla_nas.network import CrossLayerNetwork
from acla_nas.receptive_field import backbone_reach, largest_offsets, total_reach
from acla_nas.tiling import BLEND, restore_tiled

_MOST_OVERLAP = 512  # pixels


class Restorer:
    """Restores images by a network, in tiles.

    Tiles overlap as far as the network looks, so that the result is that of the whole image: its backbone's
    receptive field, measured, and the offsets of its attention. These are learned functions of the image
    without a bound, so they are watched: a tile that used larger ones than its overlap allows is restored
    again with more. Of an exported program (.pt2, .ts, .onnx, .py) the inside cannot be watched; its overlap
    is the one in its descriptor, of offsets seen on example images. Where every output pixel depends on the
    whole image, as with RCAN's channel attention, tiles differ from the whole a little, and are blended.

    Args:
        model: a run folder, or a file that export wrote.
        tile: side of a tile without its overlap, in pixels of the image; 256, or four overlaps where that
            is more, if None.
        self_ensemble: average over the eight flips and turns of each tile: usually better, and eight times
            slower.
        device: "cpu", or "cuda" for a run folder or a .safetensors file.

    Raises:
        AclaError: the model cannot be read, tile is not above 0, or the device is not there or not for it.

    Attributes:
        descriptor: what the network takes and returns.
        overlap: pixels, of the tile that needed most so far; None where tiles are blended.

    Example:
        >>> import acla_nas
        >>> space = acla_nas.search_spaces.edsr(scale=2, num_blocks=2, num_channels=8)
        >>> arch = space.arch({"insert/1": True, "insert/2": False, "keys": 16})
        >>> _ = acla_nas.formats.save(acla_nas.export(arch), "deploy", arch, formats=["safetensors"])
        >>> restorer = Restorer("deploy/model.safetensors")
        >>> restorer(np.zeros((30, 40, 3), dtype=np.uint8)).shape
        (60, 80, 3)
        >>> restorer.overlap
        11
    """

    def __init__(
        self,
        model: str | Path,
        *,
        tile: int | None = None,
        self_ensemble: bool = False,
        device: str | torch.device = "cpu",
    ) -> None:
        if tile is not None and tile < 1:
            raise AclaError(f"tile must be above 0, not {tile}")
        if Path(model).is_dir():
            self.network: torch.nn.Module = load_model(model).eval()
            assert isinstance(self.network, CrossLayerNetwork)
            arch = Arch.load(Path(model, "arch.json"))
            to_channels_last(self.network, arch.input_shape)
            self.descriptor = describe(self.network, arch)
        else:
            self.network, self.descriptor = load(model)
        self.device = torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise AclaError("device cuda, but PyTorch sees no GPU: use cpu")
        if self.device.type != "cpu":
            if not isinstance(self.network, CrossLayerNetwork):
                raise AclaError(
                    f"{model} runs on the CPU: for {device} give a run folder or a .safetensors file"
                )
            on_device: Any = self.network.to
            on_device(self.device, memory_format=torch.contiguous_format)
        if self_ensemble and (self.descriptor.task or {}).get("name") == "demosaicing":
            raise AclaError("the self-ensemble turns images, which changes a mosaic's pattern: leave it out")
        self.self_ensemble = self_ensemble
        self.tile = tile
        self.overlap = self.descriptor.overlap
        self._reach: int | None = None  # of the backbone, where offsets are watched
        self._farthest = 0
        if isinstance(self.network, CrossLayerNetwork) and self.overlap is not None:
            channels, multiple = self.descriptor.in_channels, self.descriptor.multiple_of
            self._reach = backbone_reach(self.network, channels, multiple)
            self.overlap = min(self.overlap, _MOST_OVERLAP)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the restored image.

        Grey is restored by a network for RGB as three equal channels, whose mean is the result. Of a colour
        image a network for one channel restores the luma; the colours are scaled by bicubic interpolation.

        Args:
            image: (H, W), (H, W, 1) grey or (H, W, 3) RGB, uint8 or uint16.

        Returns:
            (scale H, scale W[, C]) of the same dtype and channels.

        Raises:
            AclaError: not such an array, or the network's channels are neither 1 nor 3.
        """
        if image.dtype not in (np.uint8, np.uint16) or image.ndim not in (2, 3) or 0 in image.shape:
            raise AclaError(
                f"cannot restore an array of shape {image.shape}, {image.dtype}: give uint8 or uint16"
            )
        if image.ndim == 2:
            return self(image[..., None])[..., 0]
        given, wanted = image.shape[2], self.descriptor.in_channels
        if given not in (1, 3) or wanted not in (1, 3):
            raise AclaError(f"cannot restore {given} channels by a network for {wanted}: give grey or RGB")
        if given == wanted:
            restored = self._restore(image)
        elif given == 1:
            restored = self._restore(np.repeat(image, 3, 2))
        else:
            return self._restore_luma(image)
        if given == 1 and restored.shape[2] == 3:
            restored = np.round(restored.mean(2, keepdims=True, dtype=np.float32)).astype(image.dtype)
        return restored

    def restore_picture(self, picture: Picture) -> Picture:
        """Return the restored picture; transparency is scaled by bicubic interpolation."""
        alpha = picture.alpha
        if alpha is not None and self.descriptor.scale > 1:
            alpha = _scaled(alpha, self.descriptor.scale)
        return Picture(self(picture.pixels), alpha, picture.exif, picture.icc_profile)

    def _restore(self, image: np.ndarray) -> np.ndarray:
        tile = self.tile or max(256, 4 * (self.overlap or 0))
        with largest_offsets(self.network) as offsets:

            def enough(overlap: int) -> int:
                assert isinstance(self.network, CrossLayerNetwork)
                shape = self.descriptor.arch.input_shape
                reach = total_reach(self.network, self._reach, offsets, shape) or 0
                offsets.clear()
                self._farthest = max(self._farthest, reach)
                needed = min(reach, _MOST_OVERLAP)
                self.overlap = max(needed, self.overlap or 0)
                return needed

            return restore_tiled(
                lambda x: self.network(x.to(self.device)),
                image,
                self.descriptor,
                tile=tile,
                overlap=self.overlap,
                enough=None if self._reach is None else enough,
                self_ensemble=self.self_ensemble,
            )

    def _restore_luma(self, image: np.ndarray) -> np.ndarray:
        """Restore the luma of a colour image: a change of luma alone is the same change of R, G and B."""
        peak = np.iinfo(image.dtype).max
        grey = luma(image.astype(np.float32) * (255 / peak)) * (peak / 255)
        restored = self._restore(_quantized(grey, image.dtype)).astype(np.float32)
        colours = _scaled(image, self.descriptor.scale).astype(np.float32)
        change = restored - (luma(colours * (255 / peak)) * (peak / 255)).astype(np.float32)
        return _quantized(colours + change * np.float32(255 / 219), image.dtype)

    def guarantee(self) -> str:
        """Return in one line how what was restored so far compares with the whole image in one piece."""
        if self.overlap is None:
            return (
                "every output pixel depends on the whole image: tiles are close to that, not equal, "
                f"and blended over {2 * BLEND} pixels"
            )
        if self._reach is None:
            return (
                f"tiles overlap by {self.overlap} pixels, as example images needed: equal to the whole image "
                "where attention looks no further"
            )
        if self._farthest > _MOST_OVERLAP:
            return (
                f"attention looked {self._farthest} pixels far, more than tiles overlap ({_MOST_OVERLAP}): "
                "they may differ from the whole image there"
            )
        return (
            f"tiles overlap by {self.overlap} pixels, {self._reach} for the receptive field and "
            f"{self.overlap - self._reach} for attention: equal to the whole image"
        )


def restore(
    model: str | Path | Restorer,
    source: str | Path,
    target: str | Path,
    *,
    existing: str = "fail",
    tile: int | None = None,
    self_ensemble: bool = False,
    device: str = "cpu",
) -> list[Path]:
    """Restore an image file, or all those in a folder, and return the files that were written.

    They are shown as the originals are: upright, with their transparency, grey as grey, 16 bits as 16 bits
    (in .png files), and with their EXIF data and colour profile. A file is whole, or is not there.

    Args:
        model: a run folder, a file that export wrote, or a Restorer.
        source: an image file, or a folder.
        target: of a file: the file to write, or a folder; of a folder: a folder, where files get the
            original's name with .png.
        existing: what to do where a file to write is there already: "fail", before anything is done; "skip"
            it; or "replace" it.
        tile: see :class:`Restorer`.
        self_ensemble: see :class:`Restorer`.
        device: see :class:`Restorer`.

    Raises:
        AclaError: the model or the image cannot be read; there are no images; a file is there already, or
            two would get the same name. In a folder, an image that cannot be restored is warned of and
            skipped; it is an error if none can.

    Example:
        >>> import acla_nas
        >>> space = acla_nas.search_spaces.edsr(scale=2, num_blocks=2, num_channels=8)
        >>> arch = space.arch({"insert/1": True, "insert/2": False, "keys": 16})
        >>> _ = acla_nas.formats.save(acla_nas.export(arch), "deploy", arch, formats=["safetensors"])
        >>> acla_nas.data.save_image(np.zeros((30, 40, 3), dtype=np.uint8), "small.png")
        >>> [path.name for path in restore("deploy/model.safetensors", "small.png", "large.png")]
        ['large.png']
    """
    pairs = plan(source, target, existing=existing)
    if isinstance(model, Restorer):
        restorer = model
    elif pairs:
        restorer = Restorer(model, tile=tile, self_ensemble=self_ensemble, device=device)
    else:
        return []
    return list(run(restorer, pairs))


def plan(source: str | Path, target: str | Path, *, existing: str = "fail") -> list[tuple[Path, Path]]:
    """Return which image file goes to which, see :func:`restore`; nothing is read or written."""
    if existing not in ("fail", "skip", "replace"):
        raise AclaError(f"existing must be 'fail', 'skip' or 'replace', not {existing!r}")
    is_folder = str(target).endswith(("/", os.sep))
    source, target = Path(os.path.expanduser(source)), Path(os.path.expanduser(target))
    if source.is_dir():
        if target.suffix.lower() in SUFFIXES or target.is_file():
            raise AclaError(
                f"{source} is a folder, so the restored images need one: {target} is a file's name"
            )
        pairs = [(path, target / f"{path.stem}.png") for path in list_images(source, "test")]
    elif not source.exists():
        raise AclaError(f"there is no image or folder {source}")
    else:
        into_folder = is_folder or target.is_dir() or not target.suffix
        pairs = [(source, target / f"{source.stem}.png" if into_folder else target)]
    check_targets(pairs)
    for path, to in pairs:
        if to.exists() and to.samefile(path):
            raise AclaError(
                f"{to} is the image itself, which is never overwritten: give another file or folder"
            )
    there = [to for _, to in pairs if to.exists()]
    if there and existing == "fail":
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise AclaError(
            f"{there[0]}{more} exists already: give another target, or let existing files be skipped or "
            "replaced (--existing, in Python existing=)"
        )
    return [(path, to) for path, to in pairs if existing != "skip" or not to.exists()]


def run(restorer: Restorer, pairs: Sequence[tuple[Path, Path]]) -> Iterator[Path]:
    """Restore files as planned, one after the other, and yield each that was written."""
    failed = 0
    for path, to in pairs:
        try:
            picture = load_picture(path)
            check_suffix(to, alpha=picture.alpha is not None, deep=picture.pixels.dtype == np.uint16)
            save_picture(restorer.restore_picture(picture), to)
        except AclaError as error:
            failed += 1
            if failed == len(pairs):
                raise
            warnings.warn(f"not restored: {error}", AclaWarning, stacklevel=2)
            continue
        yield to


def _scaled(image: np.ndarray, scale: int) -> np.ndarray:
    """Return an image enlarged by bicubic interpolation, of its own dtype."""
    if scale == 1:
        return image
    return _quantized(imresize(image.astype(np.float32), scale), image.dtype)


def _quantized(image: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return np.floor(np.clip(image, 0, np.iinfo(dtype).max) + 0.5).astype(dtype)
