"""The only reader of image files: any supported format, mode and bit depth becomes 8-bit grey or RGB pixels.

Images are read one batch at a time, so that a folder may hold any number of them and no file stays open. A decision
about a file's content (transparency, several frames) is logged once per kind; an unreadable file is an error that
names it. Colour profiles are not applied.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ardistill.files.pixels import from_bytes
from ardistill.progress import bar as progress_bar

_LOG = logging.getLogger(__name__)

FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI", "TIFF", "WEBP", "TGA",
)  # fmt: skip
"""Pillow's names of the formats that are read; EPS, which runs another program, and formats that are not pictures are
left out."""
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")


def _formats() -> list[str]:
    """The FORMATS that this build of Pillow can open."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def suffixes() -> tuple[str, ...]:
    """Suffixes of files that are read as images, in lower case; a file's suffix may be in any case."""
    formats = _formats()
    return tuple(sorted(suffix for suffix, name in Image.registered_extensions().items() if name in formats))


def named(paths: Sequence[Any], at_most: int = 5) -> str:
    """The first few items and the number of the others, for a message."""
    more = f" and {len(paths) - at_most:,} more" if len(paths) > at_most else ""
    return ", ".join(map(str, paths[:at_most])) + more


def is_grey(image: Image.Image) -> bool:
    """Whether an image's mode has no colour."""
    return image.mode in _GREY_MODES or image.mode.startswith("I;16")


def find_images(folder: str | Path, known: Sequence[str] = ()) -> list[Path]:
    """Find the images in a folder and its subfolders; links to folders are followed.

    Hidden files and folders (``.DS_Store``, ``.ipynb_checkpoints``) are skipped. Other files that are not images are
    logged.

    Args:
        folder: The folder to search.
        known: Names of files at its top level that have another use, such as ``metadata.csv``, and are not logged.

    Returns:
        Paths, sorted.

    Raises:
        ValueError: There is no such folder, or it holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"expected a folder of images, found none at {folder}; give the path of one")
    wanted, found, others = suffixes(), [], []
    for where, folders, files in os.walk(folder, onerror=_refuse_folder, followlinks=True):
        here = Path(where)
        above = [os.path.realpath(x) for x in (here, *here.parents) if x.is_relative_to(folder)]
        if len(set(above)) < len(above):  # a link to a folder that contains it
            folders.clear()
            continue
        folders[:] = sorted(x for x in folders if not x.startswith("."))
        for file in files:
            path = Path(where, file)
            if path.suffix.lower() in wanted and not file.startswith("."):
                found.append(path)
            elif not file.startswith(".") and not (path.parent == folder and file in known):
                others.append(path.relative_to(folder))
    if not found:
        there = f"; it holds {named(sorted(others), 3)}" if others else ""
        raise ValueError(f"expected images ({', '.join(wanted)}) in {folder}, found none{there}")
    if others:
        _LOG.warning("%s: %d files are not read as images: %s", folder, len(others), named(sorted(others)))
    return sorted(found)


def _refuse_folder(error: OSError) -> NoReturn:
    """Refuse an unreadable folder, which `os.walk` would skip silently."""
    raise ValueError(f"{error.filename} cannot be read ({error.strerror}); allow it, or take it out") from error


class ImageReader:
    """Reads images and logs each kind of decision about their content once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def warn_once(self, kind: str, text: str, *arguments: Any) -> None:
        """Log a message unless one of the same kind was logged before."""
        if kind not in self._said:
            self._said.add(kind)
            _LOG.warning(f"{text}; so are all others like it", *arguments)

    def read(self, source: Path | bytes, name: str = "") -> Image.Image:
        """Read an image: upright, in mode ``L`` if the file is grey, else in ``RGB``.

        16-bit pixels are scaled to 8 bits, floating-point pixels must be in 0 to 1, transparent pixels are composed
        with white, and of several frames the first is used.

        Args:
            source: A file or its bytes.
            name: Name for messages; the path if not given.

        Raises:
            ValueError: The file cannot be read as an image, or its pixels have no known range.
        """
        name = name or str(source)
        with _open(source, name) as opened:
            opened.load()
            if getattr(opened, "is_animated", False) and opened.format != "MPO":  # its second frame is a preview
                self.warn_once("frames", "%s has several frames: the first one is taken", name)
            return self._plain(opened, name)

    def _plain(self, opened: Image.Image, name: str) -> Image.Image:
        """Convert an opened image to 8 bits, upright and opaque."""
        image = ImageOps.exif_transpose(opened)
        if opened.mode in ("I", "F") or opened.mode.startswith("I;16"):
            return Image.fromarray(_scaled(np.asarray(image), opened))
        mode = "L" if is_grey(opened) else "RGB"
        if image.mode in _ALPHA_MODES or "transparency" in opened.info:
            layered = image.convert("RGBA")
            if np.asarray(layered.getchannel("A")).min() < 255:
                self.warn_once("alpha", "%s has transparent pixels: they are laid on white", name)
            white = Image.new("RGBA", layered.size, "white")
            return Image.alpha_composite(white, layered).convert(mode)
        if image.mode == "LAB":
            from PIL import ImageCms

            profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
            converted = ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "LAB", "RGB"))
            assert converted is not None
            return converted
        return image.convert(mode)


class _Refused(ValueError):
    """The file could be read, but its content is not accepted."""


@contextlib.contextmanager
def _open(source: Path | bytes, name: str) -> Iterator[Image.Image]:
    """Open an image and read its header; any error inside the block becomes one that names the image.

    Pillow is not given the path: it would map uncompressed TIFF files, and it mixes up the pixels of rotated ones.
    """
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file,
            Image.open(file, formats=_formats()) as image,
        ):
            yield image
    except _Refused as error:
        raise ValueError(f"{name}: {error}") from error
    except Exception as error:  # each decoder raises its own kind
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "it is of no known format" if unknown else " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{name} cannot be read as an image ({reason[:200]}); replace it, or take it out and run this again"
        ) from error


def _scaled(values: np.ndarray, opened: Image.Image) -> np.ndarray:
    """Scale pixels of more than 8 bits to bytes, shape (h, w)."""
    values = values.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    tags: Any = getattr(opened, "tag_v2", {})  # a TIFF file
    save = "save it as a PNG file of 8 or 16 bits"
    if opened.mode == "F":
        top = 1.0
        if not 0 <= low <= high <= 1:
            raise _Refused(f"expected floating-point pixels from 0 to 1, got {low:g} to {high:g}; {save}")
    else:
        bits: Any = tags.get(258, (16,))
        top = 4095.0 if max(bits) == 12 else 65535.0
        narrow = opened.mode == "I" and opened.format == "TIFF" and 0 < high <= 255
        if not 0 <= low <= high <= 65535 or narrow:
            raise _Refused(f"expected 16-bit pixels, got 32-bit ones from {low:g} to {high:g}; {save}")
        clear: Any = opened.info.get("transparency")
        if isinstance(clear, int):
            values[values == clear] = top
    if tags.get(262) == 0:  # white is zero
        values = top - values
    return (values / top * 255).round().astype(np.uint8)


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """Images of one size and mode as tensors in [-1, 1], shape (n, c, h, w)."""
    pixels = np.stack([np.asarray(image) for image in images])
    return _to_tensors(pixels[..., None] if pixels.ndim == 3 else pixels)


def _to_tensors(pixels: np.ndarray) -> Tensor:
    """Bytes, shape (n, h, w, c), as images in [-1, 1], shape (n, c, h, w)."""
    return from_bytes(torch.from_numpy(pixels).permute(0, 3, 1, 2))


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, read one batch at a time; `open_images` makes it."""

    source: str
    """The folder or file, for messages."""
    count: int
    """Number of images."""
    size: tuple[int, int]
    """Width and height, in pixels."""
    channels: int
    """1 for grey, 3 for colour."""
    read: Callable[[int], Iterator[np.ndarray]]
    """Maps a batch size to an iterator over batches of bytes, shape (b, h, w, c)."""
    batch_size: int = 64
    """Images of a batch."""
    progress: bool = True
    """Whether iteration shows a bar."""

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensor]:
        """Iterate over batches of images in [-1, 1], shape (b, c, h, w)."""
        with progress_bar(total=self.count, desc="images", unit="image", disable=not self.progress) as bar:
            for batch in self.read(self.batch_size):
                yield _to_tensors(batch)
                bar.update(len(batch))


def open_images(source: str | Path, channels: int | None = None, *, progress: bool = True) -> ImageSet:
    """Open images of one size in a folder with its subfolders, or in an ``.npz`` file for ADM's evaluation suite.

    All headers are read at once; pixels are read batch by batch during iteration.

    Args:
        source: A folder; or an ``.npz`` file with ``arr_0``, bytes of shape (n, h, w, 3).
        channels: 1 to require grey images, 3 for colour (single grey images among them are converted); if not given,
            all images must be grey or all in colour.
        progress: Show bars.

    Raises:
        ValueError: There are no images, their sizes differ, a file cannot be read, or their colour does not fit
            ``channels``.
    """
    if Path(source).is_file():
        return _open_archive(Path(source), channels, progress)
    return _open_folder(Path(source), channels, progress)


def _header(path: Path) -> tuple[tuple[int, int], bool]:
    """Width and height of an image once it is upright, and whether it is grey."""
    with _open(path, str(path)) as image:
        tags: Any = getattr(image, "tag_v2", {})  # a TIFF file: Pillow may have swapped its size already
        width, height = tags.get(256, image.width), tags.get(257, image.height)
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # the orientation tag
        return ((height, width) if turned else (width, height)), is_grey(image)


def check_headers(paths: Sequence[Path], progress: bool = True) -> list[tuple[tuple[int, int], bool]]:
    """Width and height of every image once it is upright, and whether it is grey, without reading pixels.

    Raises:
        ValueError: A file cannot be read as an image.
    """
    return [
        _header(path) for path in progress_bar(paths, desc="headers", unit="image", disable=not progress, leave=False)
    ]


def _open_folder(folder: Path, channels: int | None, progress: bool) -> ImageSet:
    paths = find_images(folder)
    headers = check_headers(paths, progress)
    for path, (size, _grey) in zip(paths, headers, strict=True):
        if size != headers[0][0]:
            one, another = ("x".join(map(str, x)) for x in (headers[0][0], size))
            raise ValueError(
                f"expected images of one size in {folder}, {paths[0].relative_to(folder)} is {one} and "
                f"{path.relative_to(folder)} is {another}; scale them alike, as the reference of a published figure was"
            )
    greys = [grey for _, grey in headers]
    if channels is None:
        if any(greys) and not all(greys):
            grey, coloured = (paths[greys.index(x)].relative_to(folder) for x in (True, False))
            raise ValueError(
                f"expected images all grey or all in colour in {folder}, {grey} is grey and {coloured} is not; "
                "convert them"
            )
        channels = 1 if greys[0] else 3
    if channels == 3 and all(greys):
        raise ValueError(
            f"the images in {folder} are grey, the images to compare with have colour; give images in colour"
        )
    mode, reader = "L" if channels == 1 else "RGB", ImageReader()

    def read(batch_size: int) -> Iterator[np.ndarray]:
        for first in range(0, len(paths), batch_size):
            batch = [
                np.asarray(_in_mode(reader.read(path), mode, str(path))) for path in paths[first : first + batch_size]
            ]
            pixels = np.stack(batch)
            yield pixels[..., None] if pixels.ndim == 3 else pixels

    return ImageSet(str(folder), len(paths), headers[0][0], channels, read, progress=progress)


def _in_mode(image: Image.Image, mode: str, name: str) -> Image.Image:
    """Convert an image to a mode; an RGB image becomes grey only if its channels are equal."""
    if mode == "L" and image.mode == "RGB":
        red, green, blue = image.split()
        if red.tobytes() != green.tobytes() or red.tobytes() != blue.tobytes():
            raise ValueError(
                f"{name} has colour, the images to compare with are grey; give grey images, or convert them"
            )
    return image.convert(mode)


def _open_archive(path: Path, channels: int | None, progress: bool) -> ImageSet:
    """Open an array of images that is read from its archive batch by batch: published files have 10 GB."""
    wanted = f"expected images in {path}: arr_0, bytes of shape (n, h, w, 3), as ADM's evaluation suite reads them"
    remedy = "give a folder of images or such a file"
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if "arr_0" not in names:
                what = "statistics of another network's features" if "mu" in names else f"{', '.join(names[:5])}"
                raise _Refused(f"{wanted}; found {what}; {remedy}")
            with archive.open("arr_0.npy") as file:
                shape, fortran, dtype = _array_header(file)
    except _Refused:
        raise
    except (OSError, ValueError, zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{wanted}; it cannot be read as one ({error}); {remedy}") from error
    if dtype != np.uint8 or fortran or len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
        raise ValueError(f"{wanted}; found {dtype} of shape {shape}; {remedy}")
    if channels == 3 and shape[3] == 1:
        raise ValueError(f"the images in {path} are grey, the images to compare with have colour; {remedy}")

    def read(batch_size: int) -> Iterator[np.ndarray]:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
            _array_header(file)
            for first in range(0, shape[0], batch_size):
                count = min(batch_size, shape[0] - first)
                raw = file.read(count * int(np.prod(shape[1:])))
                try:
                    batch = np.frombuffer(raw, np.uint8).reshape(count, *shape[1:])
                except ValueError as error:
                    raise ValueError(f"{path} is cut after {first} of {shape[0]} images; download it again") from error
                if channels == 1 and (batch != batch[..., :1]).any():
                    raise ValueError(f"{path} has images in colour, the images to compare with are grey; {remedy}")
                yield (batch[..., :1] if channels == 1 else batch).copy()

    return ImageSet(str(path), shape[0], (shape[2], shape[1]), channels or shape[3], read, progress=progress)


def _array_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)
