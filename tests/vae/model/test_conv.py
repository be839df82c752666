"""The convolutional network: any size, either order of colours, its options, its weights, its model file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from vae.checkpoint import load_model, save_model
from vae.data.dataset import Dataset, load
from vae.errors import UserError
from vae.likelihoods import likelihood
from vae.model.bring import build_network, require_fit
from vae.model.conv import ConvVAE, build
from vae.model.init import GAINS, initialise
from vae.networks import ConvOptions
from vae.recipe import Recipe
from vae.training import train

SMALL = {"channels": [4, 6], "blocks": 1, "norm": "group"}


def recipe(**values: Any) -> Recipe:
    settings = {"model": "conv", "hidden": (16,), "latent_size": 3, "batch_size": 16, "model_options": SMALL}
    return Recipe.from_dict(settings | values)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Forty colour images of 7 x 10."""
    path = tmp_path_factory.mktemp("colours") / "colours.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (40, 7, 10, 3), dtype=np.uint8))
    return load(str(path))


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 33),
    width=st.integers(1, 33),
    colours=st.sampled_from(["grey", "first", "last"]),
    likelihood_name=st.sampled_from(["cross_entropy", "gaussian"]),
    norm=st.sampled_from(["none", "batch", "group"]),
    blocks=st.integers(0, 1),
    residual=st.booleans(),
)
def test_any_size_and_number_of_colours(
    height: int, width: int, colours: str, likelihood_name: str, norm: str, blocks: int, residual: bool
) -> None:
    """Sizes even and odd, down to a single pixel, come out of the decoder as they went into the encoder, and every
    parameter gets a gradient."""
    shape = {"grey": (height, width), "first": (3, height, width), "last": (height, width, 3)}[colours]
    options = {"channels": [3, 4, 5], "norm": norm, "blocks": blocks}
    chosen = recipe(likelihood=likelihood_name, model_options=options, residual=residual, activation="tanh")
    images = torch.rand(4, int(np.prod(shape)))
    require_fit(build_network(chosen, shape), likelihood(likelihood_name), images, 3)


def test_colours_first_and_last_are_one_network() -> None:
    """The same weights give the same codes and numbers for (3, H, W) and (H, W, 3), each in its own order."""
    first, last = ConvVAE((3, 9, 6), 2, 2), ConvVAE((9, 6, 3), 2, 2)
    last.load_state_dict(first.state_dict())
    images = torch.rand(5, 3, 9, 6)
    with torch.no_grad():
        ours = first.encode(images.flatten(1))
        theirs = last.encode(images.permute(0, 2, 3, 1).flatten(1))
        assert torch.allclose(ours[0], theirs[0], atol=1e-6)
        z = torch.randn(5, 2)
        planes = first.decode(z).view(5, 2, 3, 9, 6)
        pixels = last.decode(z).view(5, 2, 9, 6, 3)
    assert torch.allclose(planes.permute(0, 1, 3, 4, 2), pixels, atol=1e-6)


def test_a_map_of_one_pixel_passes_something_on() -> None:
    """Normalised alone, the one number of a channel would be 0 whatever the image."""
    model = ConvVAE((8, 8), 2, 1, ConvOptions(channels=(8, 8, 8), norm="group"), hidden=(8,))
    mean, _ = model.encode(torch.rand(2, 64, generator=torch.Generator().manual_seed(0)))
    assert not torch.allclose(mean[0], mean[1])


def test_output_starts_from_the_mean_image(colours: Dataset) -> None:
    """With output_bias_from_mean and nothing from the layers, what is expected of a pixel is its mean."""
    chosen = recipe(output_bias_from_mean=True)
    model = build(chosen, colours.shape, colours.pixel_moments())
    nn.init.zeros_(model.output.weight)
    with torch.no_grad():
        expected = likelihood("cross_entropy").mean(model.decode(torch.randn(1, 3)))
    assert torch.allclose(expected[0], colours.pixel_moments().mean, atol=1e-5)
    with pytest.raises(UserError, match=r"needs the mean training image, \(210,\)"):
        build(chosen, colours.shape)


@pytest.mark.parametrize("scheme", ["xavier_normal", "he_normal", "he_uniform", "orthogonal"])
def test_initialisation_keeps_the_second_moment(scheme: str) -> None:
    """A convolution's outputs keep the second moment of activated inputs, up to its edges; so do a transposed one's,
    of which each output pixel meets a quarter of the kernel; equal seeds agree."""
    wide = 96
    for layer in (
        nn.Conv2d(wide, wide, 3, padding=1),
        nn.ConvTranspose2d(wide, wide, 3, 2, padding=1, output_padding=1),
    ):
        torch.manual_seed(0)
        initialise(nn.Sequential(layer), {}, scheme, "relu")
        first = layer.weight.detach().clone()
        torch.manual_seed(0)
        initialise(nn.Sequential(layer), {}, scheme, "relu")
        assert torch.equal(first, layer.weight)
        assert layer.bias is not None
        assert not layer.bias.any()
        z = torch.randn(8, wide, 16, 16)
        with torch.no_grad():
            out = layer(torch.relu(z))[:, :, 2:-2, 2:-2]
        # xavier's gain is for fan_in = fan_out, which a square convolution has
        assert float(out.square().mean()) == pytest.approx(1.0, rel=0.15)
    assert GAINS["relu"] > 1


def test_trains_resumes_and_is_read_again(colours: Dataset, tmp_path: Path) -> None:
    """A training with batch normalisation and an average is bitwise the same through a saved state, and its file is
    read without a word about the network."""
    chosen = recipe(
        model_options={"channels": [4], "norm": "batch", "blocks": 1}, residual=True, ema_decay=0.5
    )
    whole = train(chosen, colours, 160)
    curve = [evaluation.valid_loss for evaluation in whole]
    begun = train(chosen, colours, 160)
    part = [evaluation.valid_loss for _, evaluation in zip(range(3), begun, strict=False)]
    resumed = train(chosen, colours, 160)
    resumed.load_state_dict(begun.state_dict())
    assert part + [evaluation.valid_loss for evaluation in resumed] == curve
    save_model(tmp_path / "m.safetensors", whole, colours)
    again = load_model(tmp_path / "m.safetensors")
    x = colours.test.all()
    with torch.no_grad(), whole.evaluated_weights() as model:
        assert torch.equal(again.model.encode(x)[0], model.encode(x)[0])  # type: ignore[operator]


def test_bf16_trains_near_fp32(colours: Dataset) -> None:
    """Convolutions and normalisation under bf16 autocast end within a hundredth of the loss in float32."""
    losses = []
    for precision in ("fp32", "bf16"):
        training = train(recipe(precision=precision, model_options={"channels": [4]}), colours, 160)
        training.advance(8)
        losses.append(training.evaluate(colours.valid).loss)
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


def test_a_model_file_of_before_holds_the_network_of_then(colours: Dataset, tmp_path: Path) -> None:
    """A file written while a recipe left the norm out is of group normalisation, and loads as that."""
    options = {"channels": [4], "norm": "group"}
    path = tmp_path / "before.safetensors"
    save_model(path, train(recipe(model_options=options), colours, 16), colours)
    with safe_open(path, framework="pt") as file:
        metadata, weights = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    said = json.loads(metadata["recipe"])
    said["model_options"] = {"channels": [4]}
    save_file(weights, path, metadata=metadata | {"recipe": json.dumps(said)})
    assert load_model(path).recipe.model_options == options | {"blocks": 0}


@pytest.mark.parametrize(
    ("values", "shape", "words"),
    [
        ({"model_options": {"chanels": [4]}}, (8, 8), "has no 'chanels'. Did you mean 'channels'?"),
        ({"model_options": {"channels": [0]}}, (8, 8), "channels.0 = 0: must be greater than or equal to 1"),
        ({"model_options": {"channels": []}}, (8, 8), "channels = []"),
        ({"model_options": {"norm": "layer"}}, (8, 8), "norm = 'layer': must be 'none', 'batch' or 'group'"),
        (
            {"model_options": {"channels": [4, 4, 4], "norm": "batch"}, "batch_size": 1},
            (8, 8),
            "the 3 convolutions leave one pixel of a batch of 1: raise batch_size, or set model_options.norm=group",
        ),
        ({}, (64,), "takes images (H, W), (H, W, 3) or (3, H, W), not examples of shape (64,)"),
        ({}, (8, 8, 4), "not examples of shape (8, 8, 4)"),
    ],
)
def test_what_is_refused(values: dict[str, Any], shape: tuple[int, ...], words: str) -> None:
    """An option or a shape that won't do is one line with the way out."""
    with pytest.raises(UserError) as refused:
        build_network(recipe(**values), shape)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_default_options_are_the_documented_ones() -> None:
    """A recipe that says nothing has two convolutions, of 32 and 64 channels, each with batch normalisation."""
    assert (ConvOptions().channels, ConvOptions().blocks, ConvOptions().norm) == ((32, 64), 0, "batch")
