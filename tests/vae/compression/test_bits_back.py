"""Bits-back coding: whatever goes in comes out, at the cost that the ELBO says."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vae.checkpoint import TrainedModel
from vae.compression.bits_back import CLOSE, GRID, LATENT, PIXEL, BitsBack, _Noting, _Told
from vae.errors import FailureError, UserError
from vae.likelihoods import discrete, likelihood
from vae.model.mlp import VAE
from vae.recipe import Recipe


def trained(name: str, size: int = 12, latent: int = 3, scale: float = 1.0, seed: int = 0) -> TrainedModel:
    """A model with random weights: bits-back codes with any."""
    torch.manual_seed(seed)
    model = VAE(size, (16,), latent, likelihood(name).parameters_per_pixel)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    recipe = Recipe(hidden=(16,), latent_size=latent, likelihood=name)
    return TrainedModel(model.eval(), recipe, (size,), "none", "")


def images_of(name: str, n: int, size: int = 12, seed: int = 0) -> np.ndarray:
    high = 256 if name == "discretised_logistic" else 2
    return np.random.default_rng(seed).integers(0, high, (n, size)).astype(np.uint8)


@pytest.mark.parametrize("name", ["bernoulli", "dynamic_bernoulli", "discretised_logistic"])
@given(n=st.integers(1, 25), size=st.integers(1, 9), latent=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=6, deadline=None)
def test_whatever_goes_in_comes_out(name: str, n: int, size: int, latent: int, seed: int) -> None:
    """Images of any number and size, with weights of any size, that the model knows nothing of."""
    model = trained(name, size, latent, scale=1.0 + seed / 20, seed=seed)
    images = images_of(name, n, size, seed)
    images[: n // 3] = 0
    images[n // 3 : n // 2] = images.max()
    block = BitsBack(model).encode(images)
    assert sum(block.sizes) == n
    back = BitsBack(model).decode(block)
    assert back is not None
    assert np.array_equal(back, images)


class Shaken(nn.Module):
    """A network with other last digits, as another processor or another number of threads gives them."""

    def __init__(self, inner: nn.Module, noise: float) -> None:
        super().__init__()
        self.inner, self.noise = inner, noise

    def _shake(self, x: Tensor) -> Tensor:
        return x + self.noise * (
            2.0 * torch.rand(x.shape, generator=torch.Generator().manual_seed(len(x))) - 1.0
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = self.inner.encode(x)  # type: ignore[operator]
        return self._shake(mean), self._shake(log_var)

    def decode(self, z: Tensor) -> Tensor:
        return self._shake(self.inner.decode(z))  # type: ignore[operator]


def shaken(model: TrainedModel, noise: float) -> TrainedModel:
    return TrainedModel(Shaken(copy.deepcopy(model.model), noise), model.recipe, model.shape, "none", "")


@pytest.mark.parametrize("name", ["bernoulli", "discretised_logistic"])
def test_other_arithmetic_decodes_the_same(name: str) -> None:
    """A decoder whose networks differ in the last digits decodes every image; one that is further off says that it
    doesn't, and never gives other images for those."""
    model, images = trained(name, 64), images_of(name, 200, 64)
    block = BitsBack(model).encode(images)
    back = BitsBack(shaken(model, 1e-13)).decode(block)
    assert back is not None
    assert np.array_equal(back, images)
    assert BitsBack(shaken(model, 1e-3)).decode(block) is None


def test_a_rounding_near_the_middle_is_told() -> None:
    """A probability just below the middle of two multiples is decoded as it was coded by a machine for which it lies
    just above; one that is clear of the middle needs no note."""
    below, above = (10.5 - CLOSE / 2) / GRID, (10.5 + CLOSE / 2) / GRID
    clear = 77.3 / GRID
    noting = _Noting()
    coded = noting(np.array([clear, below, 0.0, 1.0]), LATENT, 100, 3)
    (notes,) = noting.found
    assert notes["unit"].tolist() == [101]
    told = _Told(notes)
    assert np.array_equal(told(np.array([clear, above, 0.0, 1.0]), LATENT, 100, 3), coded)
    assert (coded * GRID).tolist() == [77, 10, 1, GRID - 1]
    for of, first, bit in ((PIXEL, 100, 3), (LATENT, 100, 2), (LATENT, 102, 3)):
        assert told(np.array([clear, above]), of, first, bit)[1] * GRID == 11


@pytest.mark.parametrize("name", ["bernoulli", "discretised_logistic"])
def test_bits_of_a_level_multiply_to_its_mass(name: str) -> None:
    """The probabilities of a level's bits multiply to what `log_prob` says, in the middle and far out."""
    of = discrete(likelihood(name))
    assert of is not None
    assert of.levels is not None
    n_bits = of.levels.bit_length() - 1
    values = [-3.0, 0.0, 0.4, 1.3]
    parameters = torch.cartesian_prod(*[torch.tensor(values)] * 2).double()[:, : of.parameters_per_pixel] * 2
    level = torch.arange(of.levels).unsqueeze(1)
    for row in parameters:
        total = torch.zeros(len(level), 1, dtype=torch.float64)
        for bit in range(n_bits):
            prefix = level >> (n_bits - bit)
            p = of.bit_probability(row.expand(len(level), -1), prefix, bit)
            one = (level >> (n_bits - 1 - bit)) & 1 == 1
            total += torch.where(one, p, 1 - p).log()
        expected = of.log_prob(row.expand(len(level), -1), level.double() / (of.levels - 1))
        near = expected > -30  # beyond, 1 - p has lost the digits, and a coder clips it
        assert near.any()
        torch.testing.assert_close(total[near, 0], expected[near], rtol=1e-5, atol=1e-5)


def test_it_costs_what_the_elbo_says() -> None:
    """Of images that the model itself drew, the words without the initial take the negative ELBO's bits, to 1 %."""
    model = trained("discretised_logistic", 64, 2)
    network = copy.deepcopy(model.model).double()
    of, generator = likelihood("discretised_logistic"), torch.Generator().manual_seed(0)
    with torch.no_grad():
        z = torch.randn(1000, 2, generator=generator, dtype=torch.float64)
        x = of.sample(network.decode(z), generator)  # type: ignore[operator]
        mean, log_var = network.encode(x)  # type: ignore[operator]
        mean, log_var = mean.clamp(-8, 8), log_var.clamp(-12, 4)
        noise = torch.randn(mean.shape, generator=generator, dtype=torch.float64)
        drawn = mean + torch.exp(0.5 * log_var) * noise
        rate = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum()
        nats = float(rate - of.log_prob(network.decode(drawn), x).sum())  # type: ignore[operator]
    block = BitsBack(model).encode((x * 255).round().to(torch.uint8).numpy())
    bits = 32 * (len(block.words) - block.n_initial)
    assert bits == pytest.approx(nats / math.log(2), rel=0.01)
    assert block.n_initial <= 16


@pytest.mark.parametrize("name", ["cross_entropy", "continuous_bernoulli", "gaussian"])
def test_densities_are_refused(name: str) -> None:
    """A likelihood without probabilities can't compress, and the way out is said."""
    with pytest.raises(UserError, match=r"train one with --set likelihood=discretised_logistic"):
        BitsBack(trained(name))


def test_a_network_that_gives_nan_is_refused() -> None:
    """Before anything is coded."""
    model = trained("bernoulli")
    with torch.no_grad():
        next(model.model.parameters()).fill_(math.nan)
    with pytest.raises(FailureError, match="NaN"):
        BitsBack(model).encode(images_of("bernoulli", 3))
