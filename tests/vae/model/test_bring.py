"""Networks of one's own: what doesn't fit is one line before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vae.data.dataset import load
from vae.errors import UserError
from vae.recipe import Recipe
from vae.training import train

RECIPE = Recipe(latent_size=3, batch_size=64)


class Network(nn.Module):
    """One layer each way; the sizes may be wrong."""

    def __init__(self, latent_size: int = 3, outputs: int = 64, inputs: int = 64) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(inputs, 2 * latent_size), nn.Linear(latent_size, outputs)

    def encode(self, x: Tensor) -> Any:
        return self.encoder(x).chunk(2, dim=-1)

    def decode(self, z: Tensor) -> Tensor:
        found: Tensor = self.decoder(z)
        return found


class MeanOnly(Network):
    def encode(self, x: Tensor) -> Any:
        return self.encoder(x)


class Noisy(Network):
    """Draws of its own and keeps a mode."""

    def encode(self, x: Tensor) -> Any:
        torch.rand(1)
        return super().encode(x)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (
            nn.Linear(64, 6),
            r"Linear has no method encode: a network has encode\(x\) -> \(mean, log_var\) and decode",
        ),
        (
            Network(latent_size=4),
            r"Network.encode's mean is of shape \(2, 4\); it must be \(2, 3\): images x latent_size",
        ),
        (Network(outputs=63), r"Network.decode's output is of shape \(2, 63\); it must be \(2, 64\)"),
        (
            Network(inputs=50),
            r"Network fails on images of shape \(2, 64\) and latent_size 3: RuntimeError: mat1",
        ),
        (MeanOnly(), r"MeanOnly.encode must give a pair, mean and log_var, not of shape \(2, 6\)"),
    ],
    ids=["no-method", "latent", "outputs", "inputs", "mean-only"],
)
def test_a_network_that_does_not_fit(network: nn.Module, words: str) -> None:
    """The message names the method, the shape found and the shape wanted."""
    with pytest.raises(UserError, match=words) as error:
        train(RECIPE, load("digits"), 1_000, model=network)
    assert "\n" not in str(error.value)


def test_the_look_changes_nothing() -> None:
    """Neither the caller's random numbers nor the network's mode: a network with a frozen part keeps it in training."""
    network = Noisy()
    torch.manual_seed(0)
    expected = torch.get_rng_state()
    train(RECIPE, load("digits"), 1_000, model=network)
    assert torch.equal(torch.get_rng_state(), expected)
    assert network.training
