"""A folder of images as one array: PNG and JPEG files of one size, in the order of their names."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vae.errors import FailureError, UserError

SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")
#: Pixels of an image, at most: a few hundred bytes may promise billions.
MAX_PIXELS = 2**24
#: Pillow's modes that are grey or colour without loss; "1" is black and white, "P" a palette of colours.
GREY, COLOUR = ("1", "L"), ("RGB", "P")


class Folder(NamedTuple):
    """What a folder holds."""

    images: NDArray[np.uint8]  # (N, H, W), or (N, H, W, 3) where any of them has colours
    labels: NDArray[np.int64] | None  # (N,): which of the subfolders, sorted by name; None without subfolders


def read_folder(path: Path, in_memory: int) -> Folder:
    """The images in a folder and its subfolders, sorted by their path. Where each lies in a subfolder of its class, the
    label is the class's number.

    Images are opened one at a time; an array of more than in_memory bytes is on a memory map of a temporary file, which
    ends with the process. Raises UserError where there is none, for sizes that differ, for what is neither 8-bit grey
    nor 8-bit colour, for damaged files and those of more than MAX_PIXELS; FailureError where the disk has no room.
    """
    files = _files(path)
    if not files:
        raise UserError(f"{path} has no images in it: {', '.join(SUFFIXES)}. Or name a .npy or .npz file.")
    has_colours = False
    size: tuple[int, int] | None = None
    for file in files:
        with _opened(file) as image:
            size = size or image.size
            _require_readable(image, file, files[0], size)
            has_colours |= image.mode in COLOUR
    assert size is not None
    width, height = size
    shape = (len(files), height, width, 3) if has_colours else (len(files), height, width)
    images = _empty(shape, in_memory)
    for number, file in enumerate(files):
        with _opened(file) as image:
            # Headers were looked at before: whoever writes to the folder meanwhile is told so, not trusted.
            _require_readable(image, file, files[0], size)
            if image.mode in COLOUR and not has_colours:
                raise UserError(f"{file} has changed while it was read: try again.")
            images[number] = np.asarray(image.convert("RGB" if has_colours else "L"))
    return Folder(images, _labels(path, files))


def _files(path: Path) -> list[Path]:
    """All image files, hidden ones left out, sorted by their path's parts; links to folders are not followed."""
    found = []
    for folder, below, names in os.walk(path):
        below[:] = [name for name in below if not name.startswith(".")]
        found += [
            Path(folder, name)
            for name in names
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    return sorted(found, key=lambda file: file.relative_to(path).parts)


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    try:
        if not file.is_file():  # a pipe would be waited for
            raise OSError("it is no regular file")
        with warnings.catch_warnings():
            # Pillow warns of 89 million pixels; refused are those of fewer.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
        with image:
            yield image
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(file) from None
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "it is no PNG and no JPEG inside"
        raise UserError(f"{file} can't be read ({reason[:200]}): repair it, or take it away.") from None


def _require_readable(image: Image.Image, file: Path, first: Path, size: tuple[int, int]) -> None:
    """Refuse by its header what can't be one of these images."""
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(file)
    if image.size != size:
        raise UserError(
            f"{file} is {_size(image.size)} pixels, {first} is {_size(size)}: a data set has one size; "
            "resize or crop them first."
        )
    if image.mode not in (*GREY, *COLOUR) or "transparency" in image.info:
        if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
            way_out = "it is transparent: put it on a background, for example by Pillow's .convert('RGB')"
        elif image.mode.startswith(("I", "F")):
            way_out = (
                "it has more than 8 bits: divide by the largest there can be and save floats in a .npy file"
            )
        else:
            way_out = "convert it to RGB"
        raise UserError(f"{file} is neither 8-bit grey nor 8-bit RGB but {image.mode}; {way_out}.")


def _too_large(file: Path) -> UserError:
    return UserError(f"{file} promises more than {MAX_PIXELS:,} pixels: scale it down, or take it away.")


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _empty(shape: tuple[int, ...], in_memory: int) -> NDArray[Any]:
    n_bytes = int(np.prod(shape, dtype=np.int64))
    if n_bytes <= in_memory:
        return np.empty(shape, np.uint8)
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise FailureError(
            f"The images unpack to {n_bytes / 2**30:.3g} GiB and {free / 2**30:.3g} GiB are free in {folder}: make "
            "room, or set TMPDIR to a folder with room."
        )
    with tempfile.TemporaryFile(dir=folder) as file:  # the map keeps the file, which has no name
        return np.asarray(np.memmap(file, np.uint8, "w+", shape=shape))


def _labels(path: Path, files: list[Path]) -> NDArray[np.int64] | None:
    """The subfolder's number where every image has one: `cats/1.png`, `dogs/1.png`."""
    parts = [file.relative_to(path).parts for file in files]
    if any(len(part) < 2 for part in parts):
        return None
    classes = sorted({part[0] for part in parts})
    return np.array([classes.index(part[0]) for part in parts], dtype=np.int64)
