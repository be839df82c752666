"""A model in pictures: sheets of reconstructions and samples, a walk through z, a map of where images lie in it.

Images are PNG bytes. Within `one_thread` the same model gives the same bytes on any number of cores.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from vae.checkpoint import TrainedModel
from vae.data.dataset import Split
from vae.images import colours_first, image_shape
from vae.use import codes_at, decoded, reconstructed

#: Images in a row of a sheet, rows of samples, latent dimensions and steps of the walk.
COLUMNS, SAMPLE_ROWS, WALK_ROWS, WALK_STEPS = 16, 4, 8, 9
#: Test images on the latent map, and those that its axes are found from.
MAP_IMAGES = 700
#: Seeds the samples.
SEED = 20_131_220
#: A browser blurs small pixels: a picture that is looked at by itself is enlarged to about this width.
WIDTH = 640

Pixels = npt.NDArray[np.floating]


class LatentMap(NamedTuple):
    """Two coordinates of N images."""

    x: npt.NDArray[np.float64]  # (N,)
    y: npt.NDArray[np.float64]  # (N,)
    label: npt.NDArray[np.float64]  # (N,), NaN where there are no labels
    axes: tuple[str, str]
    """What x and y are; "" for an axis that means nothing."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def posterior(trained: TrainedModel, split: Split) -> tuple[Tensor, npt.NDArray[np.int64] | None]:
    """Posterior means (N, L) of the first MAP_IMAGES images, float64, and their labels (N,)."""
    mean = codes_at(trained, split, range(min(MAP_IMAGES, len(split))))
    labels = None if split.labels is None else split.labels[: len(mean)].numpy()
    return mean.double(), labels


def latent_map(means: Tensor, labels: npt.NDArray[np.int64] | None) -> LatentMap:
    """Two coordinates of posterior means (N, L), N >= 1: z itself at L <= 2, else their first principal components,
    whose signs are fixed (largest loading positive). A single image lies at the origin of its own axes."""
    z = means.numpy()
    label = labels.astype(np.float64) if labels is not None else np.full(len(z), np.nan)
    if z.shape[1] == 1:
        return LatentMap(z[:, 0], np.zeros(len(z)), label, ("z 1", ""))
    if z.shape[1] == 2:
        return LatentMap(z[:, 0], z[:, 1], label, ("z 1", "z 2"))
    centred = z - z.mean(0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    coordinates, share = np.zeros((2, len(z))), np.zeros(2)
    n_axes = min(2, len(directions))  # one image has one
    first = directions[:n_axes]
    first = first * np.sign(first[np.arange(n_axes), np.abs(first).argmax(1)])[:, None]
    coordinates[:n_axes] = (centred @ first.T).T
    share[:n_axes] = singular[:n_axes] ** 2 / max(float((singular**2).sum()), 1e-12)
    axes = (f"first principal component ({share[0]:.0%})", f"second ({share[1]:.0%})")
    return LatentMap(coordinates[0], coordinates[1], label, axes)


def reconstructions(trained: TrainedModel, split: Split) -> bytes:
    """The first images of a split above their expected pixels from the posterior mean."""
    x = split.all(COLUMNS).numpy()
    rows = np.concatenate([x, reconstructed(trained, split, torch.arange(len(x)))])
    return sheet(rows, len(x), trained.shape, limits(x, trained.recipe.likelihood))


def beside(images: Pixels, found: Pixels, columns: int) -> Pixels:
    """Images (n, D) and what was made of them, (n, D), as the rows of a sheet: a row of one above a row of the other.
    A last row that is not full has black in its place."""
    rows = []
    for start in range(0, len(images), columns):
        for part in (images[start : start + columns], found[start : start + columns]):
            missing = columns - len(part)
            rows.append(np.concatenate([part, np.zeros((missing, part.shape[1]), part.dtype)]))
    return np.concatenate(rows)


def samples(trained: TrainedModel) -> bytes:
    """Expected pixels of draws from the prior."""
    generator = torch.Generator().manual_seed(SEED)
    z = torch.randn(SAMPLE_ROWS * COLUMNS, trained.recipe.latent_size, generator=generator)
    pixels = decoded(trained, z).numpy()
    return sheet(pixels, COLUMNS, trained.shape, limits(pixels, trained.recipe.likelihood))


def walk(trained: TrainedModel, dimensions: tuple[int, ...], start: Tensor) -> bytes:
    """One latent dimension a row, from -3 to 3, the others at `start` (L,)."""
    z = start.repeat(len(dimensions), WALK_STEPS, 1)
    for row, dimension in enumerate(dimensions):
        z[row, :, dimension] = torch.linspace(-3.0, 3.0, WALK_STEPS)
    pixels = decoded(trained, z.flatten(0, 1)).numpy()
    return sheet(pixels, WALK_STEPS, trained.shape, limits(pixels, trained.recipe.likelihood))


def limits(pixels: Pixels, likelihood: str) -> tuple[float, float]:
    """What is black and what is white: 0 and 1, or the range shown where pixels have no bounds."""
    if likelihood != "gaussian":
        return 0.0, 1.0
    return min(0.0, float(pixels.min())), max(1.0, float(pixels.max()))


def sheet(pixels: Pixels, columns: int, stored: tuple[int, ...], limits: tuple[float, float]) -> bytes:
    """Images (N, D) in rows of `columns` as one PNG of real pixels, transparent between them.

    stored: shape of an example, one that `image_shape` knows."""
    shape = image_shape(stored)
    assert shape is not None
    height, width, channels = shape
    images = pixels.reshape(len(pixels), *stored)
    if len(stored) == 3 and colours_first(stored):
        images = images.transpose(0, 2, 3, 1)
    images = images.reshape(len(pixels), height, width, channels)
    scaled = (np.clip(images.astype(np.float64), *limits) - limits[0]) / (limits[1] - limits[0])
    stretched = np.rint(scaled * 255.0).astype(np.uint8)
    gap = max(1, height // 14)
    n_rows = -(-len(pixels) // columns)
    size = (n_rows * (height + gap) - gap, columns * (width + gap) - gap, channels + 1)
    canvas = np.zeros(size, dtype=np.uint8)
    for i, image in enumerate(stretched):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        canvas[top : top + height, left : left + width, :channels] = image
        canvas[top : top + height, left : left + width, channels] = 255
    return _png(Image.fromarray(canvas, "LA" if channels == 1 else "RGBA"))


def enlarged(png: bytes) -> bytes:
    """The picture with every pixel drawn as a square of pixels, about WIDTH wide."""
    with Image.open(io.BytesIO(png)) as picture:
        factor = max(1, round(WIDTH / picture.width))
        size = (picture.width * factor, picture.height * factor)
        return _png(picture.resize(size, Image.Resampling.NEAREST))


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=False)
    return file.getvalue()
