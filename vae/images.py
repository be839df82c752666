"""Which examples are images, and how their pixels lie in memory."""

from __future__ import annotations

import math
from typing import NamedTuple


class ImageShape(NamedTuple):
    """Height and width in pixels, and the colours of one."""

    height: int
    width: int
    channels: int


def image_shape(shape: tuple[int, ...]) -> ImageShape | None:
    """What an example is as an image: (H, W), (H, W, 1 or 3), (1 or 3, H, W); None for anything else.

    Where both ends of a shape are 1 or 3 the colours come last."""
    if len(shape) == 2:
        return ImageShape(shape[0], shape[1], 1)
    if len(shape) == 3 and shape[2] in (1, 3):
        return ImageShape(*shape)
    if len(shape) == 3 and shape[0] in (1, 3):
        return ImageShape(shape[1], shape[2], shape[0])
    return None


def in_words(shape: tuple[int, ...]) -> str:
    """What examples of that shape are taken for: "images of 64 pixels", "images of 32 x 32 pixels in colour", "examples
    of 13 numbers"."""
    image = image_shape(shape)
    if image is None:
        what = "" if len(shape) == 1 else ", which are no images"
        return f"examples of {' x '.join(map(str, shape))} numbers{what}"
    if image.channels == 1:
        return f"images of {math.prod(shape)} pixels"
    return f"images of {image.height} x {image.width} pixels in colour"


def colours_first(shape: tuple[int, ...]) -> bool:
    """Whether the pixels of such an image lie colour by colour, (C, H, W), and not pixel by pixel, (H, W, C)."""
    return len(shape) == 2 or shape[2] not in (1, 3)
