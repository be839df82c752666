"""What other lossless formats take for the same images."""

from __future__ import annotations

import bz2
import io
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vae.checkpoint import TrainedModel
from vae.data.dataset import Split
from vae.errors import UserError
from vae.images import colours_first, image_shape
from vae.likelihoods import likelihood

#: Rows of a picture, at most: WebP's limit.
MAX_ROWS = 16_383


class Beside(NamedTuple):
    """Another format's name and its bytes."""

    name: str
    n_bytes: int


def pictures_of(trained: TrainedModel, split: Split) -> NDArray[np.uint8]:
    """A split's images, as the model's likelihood prepares them, of 8 bits: (N, H, W) or (N, H, W, 3). Raises UserError
    for examples that are no images."""
    shape = image_shape(trained.shape)
    if shape is None:
        raise UserError(f"--beside: examples of shape {trained.shape} are no images that PNG and WebP take.")
    x = likelihood(trained.recipe.likelihood).prepare_eval(split.all(), torch.Generator())
    images = (x * 255).round().to(torch.uint8).numpy().reshape(len(split), *trained.shape)
    height, width, channels = shape
    if channels == 3 and colours_first(trained.shape):
        images = images.transpose(0, 2, 3, 1)
    return images.reshape(len(images), height, width) if channels == 1 else images


def beside(images: NDArray[np.uint8], black_and_white: bool) -> Iterator[Beside]:
    """Bytes of images (N, H, W) or (N, H, W, 3) in PNG, WebP, zstd and bz2: as they are usually
    had, since the strongest that WebP has would take minutes.

    The pictures have the images one below the other, which is kinder to them than a file an image. black_and_white:
    the images are of 0 and 255, a bit each for zstd and bz2, and for PNG where they aren't in colour. Raises UserError
    where zstandard isn't there.
    """
    try:
        import zstandard
    except ModuleNotFoundError:
        raise UserError("--beside needs the library zstandard: pip install 'vae-study[compress]'.") from None
    for name, options in (
        ("PNG", {"optimize": True}),
        ("WebP", {"lossless": True}),
    ):
        n_bytes = 0
        for picture in _pictures(images):
            shown = Image.fromarray(picture)
            # A bit a pixel holds no colours.
            shown = shown.convert("1") if black_and_white and name == "PNG" and shown.mode == "L" else shown
            file = io.BytesIO()
            shown.save(file, name, **options)
            n_bytes += file.tell()
        yield Beside(name if name == "PNG" else "WebP lossless", n_bytes)
    raw = (np.packbits(images > 0) if black_and_white else images).tobytes()
    yield Beside("zstd -19", len(zstandard.ZstdCompressor(level=19).compress(raw)))
    yield Beside("bz2 -9", len(bz2.compress(raw, 9)))


def _pictures(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """The images one below the other, as many as a picture has rows for."""
    height = images.shape[1]
    at_once = max(1, MAX_ROWS // height)
    for start in range(0, len(images), at_once):
        part = images[start : start + at_once]
        yield part.reshape(-1, *part.shape[2:])
