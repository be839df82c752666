"""Pictures of a model: which shapes are images, sheets that keep every pixel, maps that stay."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vae.checkpoint import TrainedModel
from vae.data.dataset import load
from vae.images import image_shape, in_words
from vae.model.bring import build_network
from vae.pictures import COLUMNS, latent_map, posterior, reconstructions, sheet
from vae.recipe import Recipe
from vae.use import encoded_batches, reconstructed


@pytest.mark.parametrize(
    ("stored", "shape"),
    [
        ((8, 8), (8, 8, 1)),
        ((28, 28, 1), (28, 28, 1)),
        ((32, 32, 3), (32, 32, 3)),
        ((3, 32, 32), (32, 32, 3)),
        ((64,), None),
        ((2, 5, 7), None),
    ],
)
def test_shapes_that_are_images(stored: tuple[int, ...], shape: tuple[int, int, int] | None) -> None:
    """Grey and colour images are recognised with channels first or last; anything else is no image."""
    assert image_shape(stored) == shape


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ((8, 8), "images of 64 pixels"),
        ((3, 32, 24), "images of 32 x 24 pixels in colour"),
        ((1024,), "examples of 1024 numbers"),
        ((32, 32, 4), "examples of 32 x 32 x 4 numbers, which are no images"),
    ],
)
def test_what_a_shape_is_taken_for_is_said(stored: tuple[int, ...], words: str) -> None:
    """A colour image has as many pixels as a grey one; four channels are no image, and whoever has them reads it."""
    assert in_words(stored) == words


@pytest.mark.parametrize("stored", [(4, 6), (4, 6, 3), (3, 4, 6)])
def test_sheet_keeps_every_pixel(stored: tuple[int, ...]) -> None:
    """A sheet has each image's pixels where they belong, and nothing between them."""
    shape = image_shape(stored)
    assert shape is not None
    pixels = np.linspace(0, 1, 3 * int(np.prod(stored))).reshape(3, -1)
    drawn = np.asarray(Image.open(io.BytesIO(sheet(pixels, 2, stored, (0.0, 1.0)))))
    assert drawn.shape == (4 + 1 + 4, 6 + 1 + 6, shape[2] + 1)
    third = pixels[2].reshape(stored)
    third = third.transpose(1, 2, 0) if stored[0] == 3 else third.reshape(4, 6, shape[2])
    assert (drawn[5:, :6, :-1] == np.rint(third * 255)).all()
    assert (drawn[4, :, -1] == 0).all()
    assert (drawn[5:, 7:, -1] == 0).all()


@given(st.integers(3, 6), st.integers(0, 2**16))
def test_latent_map_does_not_flip(size: int, seed: int) -> None:
    """The axes' signs don't hang on the order of the images: a map is the same every time."""
    z = torch.from_numpy(np.random.default_rng(seed).normal(size=(40, size)) * np.arange(1, size + 1))
    found = latent_map(z, np.arange(40))
    mirrored = latent_map(z.flip(0), np.arange(40)[::-1].copy())
    assert np.allclose(found.x, mirrored.x[::-1])
    assert np.allclose(found.y, mirrored.y[::-1])
    assert "principal" in found.axes[0]


def test_small_latent_spaces_are_their_own_map() -> None:
    """With two latent dimensions the map is z itself; with one, a line."""
    z = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    found = latent_map(z, None)
    assert found.x.tolist() == [1.0, 3.0]
    assert found.axes == ("z 1", "z 2")
    assert np.isnan(found.label).all()
    assert latent_map(z[:, :1], None).y.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("size", [1, 2, 3, 30])
@pytest.mark.parametrize("n", [1, 2])
def test_a_map_of_one_or_two_images(n: int, size: int) -> None:
    """A test split may be that small: one image lies at the origin of its principal components."""
    z = torch.arange(1.0, 1 + n * size, dtype=torch.float64).reshape(n, size)
    found = latent_map(z, np.arange(n))
    assert len(found.x) == len(found.y) == len(found.label) == n
    assert np.isfinite([found.x, found.y]).all()
    if n == 1 and size > 2:
        assert (found.x[0], found.y[0]) == (0.0, 0.0)


def test_a_model_of_black_and_white_is_shown_what_it_takes() -> None:
    """Map and reconstructions are of the images as the likelihood prepares them, as every other command encodes them,
    and not of the grey ones; above a reconstruction stands the image as it is stored."""
    digits, recipe = load("digits"), Recipe(hidden=(16,), latent_size=2, likelihood="bernoulli")
    trained = TrainedModel(build_network(recipe, (8, 8)).eval(), recipe, (8, 8), "digits", "")
    means, _ = posterior(trained, digits.test)
    (codes,) = encoded_batches(trained, digits.test)
    assert torch.equal(means, codes.mean.double())
    images = digits.test.all(COLUMNS).numpy()
    rows = np.concatenate([images, reconstructed(trained, digits.test, torch.arange(COLUMNS))])
    assert reconstructions(trained, digits.test) == sheet(rows, COLUMNS, (8, 8), (0.0, 1.0))
