"""Networks of one's own: what doesn't fit is one line before anything is trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vae.data.dataset import load
from vae.errors import UserError
from vae.model.bring import build_network
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
            r"Network.encode's mean is a tensor of shape \(2, 4\); it must be one of shape \(2, 3\): images x",
        ),
        (
            Network(outputs=63),
            r"Network.decode's output is a tensor of shape \(2, 63\); it must be one of shape \(2, 64\)",
        ),
        (
            Network(inputs=50),
            r"Network fails on images of shape \(2, 64\) and latent_size 3: line \d+: RuntimeError: mat1",
        ),
        (MeanOnly(), r"MeanOnly.encode must give a pair, mean and log_var, not a tensor of shape \(2, 6\)"),
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


class Leaving(Network):
    def decode(self, z: Tensor) -> Tensor:
        sys.exit(len(z) - 2)


class Unused(Network):
    def __init__(self) -> None:
        super().__init__()
        self.forgotten = nn.Linear(2, 2)


class Counting(Network):
    """A batch norm, which counts what it sees in training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(64)

    def encode(self, x: Tensor) -> Any:
        return super().encode(self.norm(x))


class Constant(Network):
    def encode(self, x: Tensor) -> Any:
        with torch.no_grad():
            return super().encode(x)

    def decode(self, z: Tensor) -> Tensor:
        return torch.zeros(len(z), 64)


def with_weight(value: float) -> Network:
    network = Network()
    nn.init.constant_(network.decoder.weight, value)
    return network


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (
            Unused(),
            "Unused's parameter forgotten.weight gets no gradient: use it in encode or decode, or set its",
        ),
        (Constant(), "Constant's output hangs on none of its parameters"),
        (with_weight(float("nan")), "Network.decode's output is NaN or infinite"),
        (Leaving(), r"Leaving fails on images of shape \(2, 64\) .*: line \d+: SystemExit: 0"),
        (Network().requires_grad_(False), "Network has no parameter to train"),
    ],
    ids=["unused", "constant", "nan", "leaving", "frozen"],
)
def test_a_network_that_can_not_be_trained(network: nn.Module, words: str) -> None:
    """A parameter without a gradient and a number that is none are told before the first step."""
    with pytest.raises(UserError, match=words):
        train(RECIPE, load("digits"), 1_000, model=network)


def test_the_gradient_is_tried_without_a_trace() -> None:
    """A batch norm hasn't counted the images that it was tried on, and no gradient is left."""
    network = Counting()
    train(RECIPE, load("digits"), 1_000, model=network)
    assert network.norm.num_batches_tracked == 0
    assert torch.equal(network.norm.running_mean, torch.zeros(64))
    assert not network.encoder.weight.grad.any()


def make(
    data_shape: tuple[int, ...], latent_size: int, parameters_per_pixel: int, width: int = 5
) -> nn.Module:
    assert (data_shape, parameters_per_pixel) == ((8, 8), 1)
    network = Network(latent_size)
    network.encoder = nn.Sequential(nn.Linear(64, width), nn.Linear(width, 2 * latent_size))
    return network


def no_network(*given: Any) -> Any:
    return given


def ending(*given: Any) -> Any:
    sys.exit(f"no {given[0]}")


def failing(*given: Any, a: int) -> Any:
    return nn.Linear(given[0], a)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> str:
    """What names this file."""
    monkeypatch.chdir(Path(__file__).parent)
    return "test_bring.py"


def own(here: str, name: str, **options: Any) -> Recipe:
    return RECIPE.replace(model=f"{here}:{name}", model_options=options)


def test_a_factory_gets_its_options_and_the_seed(here: str) -> None:
    """The recipe's options are its arguments; equal seeds give equal weights, others others."""
    wide = build_network(own(here, "make", width=4), (8, 8))
    assert wide.get_parameter("encoder.0.weight").shape == (4, 64)
    first, again, other = (
        train(own(here, "make").replace(seed=seed), load("digits"), 1_000).model for seed in (0, 0, 1)
    )
    weights = [network.get_parameter("decoder.weight") for network in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("make", {"widht": 4}, r"test_bring.py:make\(.*got an unexpected keyword argument 'widht'"),
        (
            "no_network",
            {},
            "test_bring.py:no_network must give a torch.nn.Module, not an object of type tuple",
        ),
        (
            "failing",
            {"a": 1},
            r"fails for data of shape \(8, 8\).* and model_options a=1: line \d+: TypeError",
        ),
        ("ending", {}, r"test_bring.py:ending fails for .*: line \d+: SystemExit: no \(8, 8\)"),
        ("Unused", {}, r"test_bring.py:Unused\(.*is called with data_shape, latent_size.*no model_options"),
        ("RECIPE", {}, "is a Recipe: name a function or a class"),
    ],
)
def test_a_factory_that_does_not_fit(here: str, name: str, options: dict[str, Any], words: str) -> None:
    """An option it has no argument for, what is no network, and an error of its own, be it sys.exit(), are one line
    each."""
    with pytest.raises(UserError, match=words) as error:
        train(own(here, name, **options), load("digits"), 1_000)
    assert "\n" not in str(error.value)


def test_two_networks_are_one_too_many(here: str) -> None:
    """Nothing is passed over: a recipe's network and another one can't both be meant."""
    with pytest.raises(UserError, match="another is given: leave out one of them"):
        train(own(here, "make"), load("digits"), 1_000, model=Network())
