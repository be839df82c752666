"""Batch normalisation is evaluated with statistics of the weights that are evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vae.checkpoint import load_model, save_model
from vae.data.dataset import Dataset, load
from vae.model.conv import ConvVAE
from vae.recipe import Recipe
from vae.training import Training, train


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Sixty grey images of 6 x 6."""
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (60, 6, 6), dtype=np.uint8))
    return load(str(path))


def trained(images: Dataset, **values: Any) -> Training:
    settings = {"model": "conv", "hidden": (8,), "latent_size": 2, "batch_size": 8, "lr": 0.05}
    training = train(
        Recipe.from_dict(settings | {"model_options": {"channels": [3], "norm": "batch"}} | values),
        images,
        400,
    )
    training.advance(20)
    return training


def first_mean(model: nn.Module, images: Dataset) -> tuple[Tensor, Tensor]:
    """The mean of the first convolution's outputs over the training images: as its normalisation has it, and as it
    is."""
    first = cast(ConvVAE, model).convolutions[0]
    with torch.no_grad():
        outputs = first.layer(images.train.all().view(-1, 1, 6, 6))  # type: ignore[operator]
    return first.norm.running_mean.clone(), outputs.mean((0, 2, 3))  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("averaged", [{"ema_decay": 0.99}, {"optimizer": "schedule_free_adamw"}])
def test_averaged_weights_have_their_own_statistics(
    images: Dataset, averaged: dict[str, Any], tmp_path: Path
) -> None:
    """An average of weights, which nothing was counted of in training, is evaluated and saved with the means that it
    has; the training goes on with its own."""
    training = trained(images, **averaged)
    before = {name: buffer.clone() for name, buffer in training.model.named_buffers()}
    with training.evaluated_weights() as model:
        normalised, found = first_mean(model, images)
        assert not model.training
    assert torch.allclose(normalised, found, atol=1e-6)
    assert not torch.allclose(normalised, before["convolutions.0.norm.running_mean"], atol=1e-3)
    assert all(torch.equal(buffer, before[name]) for name, buffer in training.model.named_buffers())
    assert all(module.training for module in training.model.modules())
    save_model(tmp_path / "m.safetensors", training, images)
    again = load_model(tmp_path / "m.safetensors")
    assert torch.equal(first_mean(cast(nn.Module, again.model), images)[0], normalised)


def test_the_weights_that_were_trained_keep_what_was_counted(images: Dataset) -> None:
    """Without an average nothing is counted again."""
    training = trained(images)
    counted = training.model.state_dict()["convolutions.0.norm.running_mean"].clone()
    with training.evaluated_weights() as model:
        assert torch.equal(first_mean(model, images)[0], counted)
