"""Likelihoods against torch.distributions, quadrature and their own samples; binarisation."""

from __future__ import annotations

import hashlib
import math
from typing import get_args

import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from vae.binarise import binarise
from vae.errors import UserError
from vae.likelihoods import DiscretisedLogistic, Gaussian, PixelMoments, likelihood
from vae.recipe import LikelihoodName

NAMES = [*get_args(LikelihoodName)]
LOGITS = [-40.0, -3.0, -0.26, -0.24, -1e-4, 0.0, 1e-9, 1e-3, 0.24, 0.26, 1.0, 40.0]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


@pytest.mark.parametrize("name", ["cross_entropy", "bernoulli", "dynamic_bernoulli"])
def test_bernoulli_is_torchs(name: str) -> None:
    """On binary pixels the log mass is torch.distributions.Bernoulli's, summed over pixels."""
    logits = 5 * randn(9, 11)
    x = (randn(9, 11, seed=1) > 0).double()
    expected = torch.distributions.Bernoulli(logits=logits).log_prob(x).sum(1)
    torch.testing.assert_close(likelihood(name).log_prob(logits, x), expected)


@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_integrates_to_one(logit: float) -> None:
    """The density integrates to 1 over [0, 1], also at and near lambda = 1/2, and has the stated mean."""
    p = likelihood("continuous_bernoulli")
    parameter = torch.tensor([[logit]], dtype=torch.float64)

    def density(x: float) -> float:
        return float(p.log_prob(parameter, torch.tensor([[x]], dtype=torch.float64)).exp())

    area, _ = integrate.quad(density, 0, 1, epsabs=1e-12)
    first_moment, _ = integrate.quad(lambda x: x * density(x), 0, 1, epsabs=1e-12)
    assert area == pytest.approx(1, abs=1e-9)
    assert first_moment == pytest.approx(float(p.mean(parameter)), abs=1e-9)


def test_grey_cross_entropy_is_no_likelihood() -> None:
    """The grey-pixel cross-entropy does not integrate to 1, and alone says that it is no likelihood."""
    p = likelihood("cross_entropy")
    logit = torch.tensor([[1.0]])
    area, _ = integrate.quad(lambda x: float(p.log_prob(logit, torch.tensor([[x]])).exp()), 0, 1)
    assert area < 0.6
    assert [name for name in NAMES if not likelihood(name).is_likelihood] == ["cross_entropy"]


def test_continuous_bernoulli_is_torchs() -> None:
    """Away from torch's Taylor region, density and mean are torch.distributions.ContinuousBernoulli's."""
    logits = 4 * randn(20, 30)
    x = torch.rand(20, 30, generator=seeded(1), dtype=torch.float64)
    p, theirs = likelihood("continuous_bernoulli"), torch.distributions.ContinuousBernoulli(logits=logits)
    torch.testing.assert_close(p.log_prob(logits, x), theirs.log_prob(x).sum(1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(p.mean(logits), theirs.mean, rtol=1e-8, atol=1e-8)


def test_continuous_bernoulli_gradient() -> None:
    """Its hand-written gradient is the numerical one, on both sides of the series' seam."""
    logits = torch.tensor([LOGITS], dtype=torch.float64, requires_grad=True)
    x = torch.rand(1, len(LOGITS), generator=seeded(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: likelihood("continuous_bernoulli").log_prob(a, x), logits)


def test_continuous_bernoulli_is_exact_in_float32() -> None:
    """Near lambda = 1/2 and far from it, float32 values and gradients are those of float64 to 1e-6."""
    p = likelihood("continuous_bernoulli")
    fine = torch.cat([torch.linspace(-2, 2, 40_001), torch.linspace(-100, 100, 1001)]).unsqueeze(1)
    results = []
    for dtype in (torch.float32, torch.float64):
        logits = fine.to(dtype, copy=True).requires_grad_()
        value = p.log_prob(logits, torch.full_like(logits, 0.5))
        value.sum().backward()
        assert logits.grad is not None
        results.append((value.detach().double(), logits.grad.double()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-6)


def test_gaussian_is_torchs() -> None:
    """The density is torch.distributions.Normal's; far above the bound, raw and real log variance agree."""
    mean, raw = randn(6, 8), randn(6, 8, seed=1)
    x = randn(6, 8, seed=2)
    expected = torch.distributions.Normal(mean, torch.exp(0.5 * raw)).log_prob(x).sum(1)
    actual = likelihood("gaussian").log_prob(torch.cat([mean, raw], 1), x)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)
    _, log_var = Gaussian().moments(torch.cat([mean, raw], 1))
    exact = torch.distributions.Normal(mean, torch.exp(0.5 * log_var)).log_prob(x).sum(1)
    torch.testing.assert_close(actual, exact)


def test_gaussian_cannot_diverge_on_a_constant_pixel() -> None:
    """However low the raw log variance, the standard deviation stays at 1 / 255 and the density finite."""
    parameters = torch.tensor([[0.5, -1e6]], requires_grad=True)
    value = likelihood("gaussian").log_prob(parameters, torch.tensor([[0.5]]))
    value.sum().backward()
    assert float(value.detach()) == pytest.approx(math.log(255) - 0.5 * math.log(2 * math.pi), rel=1e-6)
    assert parameters.grad is not None
    assert parameters.grad.isfinite().all()


GREY = torch.arange(256, dtype=torch.float64).unsqueeze(1) / 255


@pytest.mark.parametrize("location", [-60.0, -0.5, 0.0, 0.3, 0.5 / 255, 1.0, 7.0])
@pytest.mark.parametrize("raw_log_scale", [-40.0, -7.0, -3.0, 0.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_discretised_logistic_sums_to_one(location: float, raw_log_scale: float, dtype: torch.dtype) -> None:
    """The masses of the 256 levels sum to 1, and average to `mean`, wherever the distribution lies and however wide
    or narrow it is."""
    p = likelihood("discretised_logistic")
    parameters = torch.tensor([[location, raw_log_scale]], dtype=dtype)
    mass = p.log_prob(parameters.expand(256, 2), GREY.to(dtype)).double().exp()
    tolerance = 1e-11 if dtype == torch.float64 else 2e-4 if abs(location) > 1 else 2e-5
    assert float(mass.sum()) == pytest.approx(1, abs=tolerance)
    assert float((mass * GREY[:, 0]).sum()) == pytest.approx(float(p.mean(parameters)), abs=tolerance)


def test_discretised_logistic_is_the_difference_of_its_cdf() -> None:
    """Where float64 can subtract, a level's mass is the logistic distribution's between its two edges, all that is
    below for black and all that is above for white."""
    p = DiscretisedLogistic()
    parameters = torch.cat(
        [torch.rand(256, 1, generator=seeded(0)) * 1.2 - 0.1, randn(256, 1) - 3], 1
    ).double()
    location, log_scale = p.location_and_log_scale(parameters)
    edges = torch.cat([GREY - 0.5 / 255, GREY + 0.5 / 255], 1)
    cdf = stats.logistic.cdf(((edges - location) / log_scale.exp()).numpy())
    cdf[0, 0], cdf[-1, 1] = 0.0, 1.0
    expected = torch.from_numpy(cdf[:, 1] - cdf[:, 0])
    assert (expected > 1e-9).sum() > 50
    torch.testing.assert_close(p.log_prob(parameters, GREY).exp(), expected, rtol=1e-6, atol=1e-14)


def test_discretised_logistic_is_safe_in_its_tails() -> None:
    """Black, white and a grey in between have finite log masses, none above 0, and finite gradients in float32 for
    locations and scales far beyond what a training visits; the gradient given is autograd's, up to where the width of a
    level is no float32 any more."""
    p = likelihood("discretised_logistic")
    values = [-1e4, -300.0, -88.0, -7.7, -1.0, 0.0, 0.5, 1.0, 10.0, 88.0, 300.0]
    grid = torch.cartesian_prod(torch.tensor(values), torch.tensor(values))
    for grey in (0.0, 1 / 255, 0.5, 254 / 255, 1.0):
        parameters = grid.clone().requires_grad_()
        log_mass = p.log_prob(parameters, p.prepare_train(torch.full((len(grid), 1), grey)))
        log_mass.sum().backward()
        assert parameters.grad is not None
        assert log_mass.isfinite().all()
        assert float(log_mass.detach().max()) <= 0
        assert parameters.grad.isfinite().all()
        total, gradient = p.total_log_prob_and_gradient(
            grid, p.prepare_train(torch.full((len(grid), 1), grey))
        )
        torch.testing.assert_close(total, log_mass.detach().sum())
        representable = grid[:, 1] < 80
        torch.testing.assert_close(
            gradient[representable], parameters.grad[representable], rtol=1e-4, atol=1e-5
        )
        assert gradient.isfinite().all()


def test_discretised_logistic_gradient() -> None:
    """Its gradient, both ways, is the numerical one, at black and white too."""
    p = likelihood("discretised_logistic")
    parameters = torch.cat([randn(1, 6) / 2 + 0.5, randn(1, 6, seed=1) - 2], 1).requires_grad_()
    x = torch.tensor([[0.0, 1.0, 3 / 255, 128 / 255, 254 / 255, 0.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: p.log_prob(a, x), parameters)
    (expected,) = torch.autograd.grad(p.log_prob(parameters, x).sum(), parameters)
    torch.testing.assert_close(p.total_log_prob_and_gradient(parameters.detach(), x)[1], expected)


def test_discretised_logistic_rounds_to_levels_of_8_bits() -> None:
    """Pixels of 8 bits stay bitwise what they are; others become the nearest level, and so do samples."""
    p = likelihood("discretised_logistic")
    stored = (torch.arange(256).to(torch.uint8).float() / 255).unsqueeze(0)
    assert torch.equal(p.prepare_train(stored), stored)
    assert torch.equal(p.prepare_eval(stored + 0.001, seeded(0)), stored)
    sample = p.sample(randn(50, 20, dtype=torch.float32), seeded(0))
    assert torch.isin(sample, stored).all()


@pytest.mark.parametrize("name", NAMES)
def test_initial_bias_reproduces_the_mean(name: str) -> None:
    """A decoder whose weights are 0 and whose bias is the initial bias predicts the mean training image."""
    pixel_mean = torch.linspace(0.03, 0.97, 40)
    p = likelihood(name)
    bias = p.initial_bias(PixelMoments(pixel_mean, torch.full((40,), 0.1)))
    assert bias.shape == (40 * p.parameters_per_pixel,)
    torch.testing.assert_close(p.mean(bias.unsqueeze(0))[0], pixel_mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_initial_bias_of_constant_pixels(name: str) -> None:
    """A pixel that is always 0 or always 1 gets a finite bias within 0.021 of its mean."""
    pixel_mean = torch.tensor([0.0, 1.0])
    p = likelihood(name)
    bias = p.initial_bias(PixelMoments(pixel_mean, torch.zeros(2)))
    assert bias.abs().max() <= 50
    torch.testing.assert_close(p.mean(bias.unsqueeze(0))[0], pixel_mean, rtol=0, atol=0.021)


@pytest.mark.parametrize(
    ("variance", "expected"),
    [
        ([1.0, 2.0, 0.09], [1.0, 2.0, 0.09]),  # as it is, and not m (1 - m) of a pixel in [0, 1]
        ([1e6, 1.0, 0.25], [1e6, 1.0, 0.25]),  # whatever the units of the others
        ([0.0, 0.001, 1.0], [0.01, 0.01, 1.0]),  # what hardly varies
        ([0.0, 0.03, 0.03], [0.002, 0.03, 0.03]),  # among others that vary little: a tenth of the average
        ([0.0, 0.0, 0.0], [2 / 255**2] * 3),  # twice the least variance that the likelihood has
    ],
)
def test_initial_variance_of_the_gaussian(variance: list[float], expected: list[float]) -> None:
    """Its output bias starts at the data's own mean and variance; where that is next to nothing, above it."""
    pixels = PixelMoments(torch.tensor([-40.0, 0.1, 7.0]), torch.tensor(variance))
    mean, log_var = Gaussian().moments(Gaussian().initial_bias(pixels).unsqueeze(0))
    torch.testing.assert_close(mean[0], pixels.mean)
    torch.testing.assert_close(log_var.exp()[0], torch.tensor(expected), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_samples_have_the_mean(name: str) -> None:
    """Samples average to `mean`; equal seeds give equal samples, unequal seeds others."""
    p = likelihood(name)
    parameters = randn(1, 3 * p.parameters_per_pixel, dtype=torch.float32).expand(20_000, -1)
    if name == "discretised_logistic":  # locations away from where all is black
        parameters = parameters / 5 + 0.5
    sample = p.sample(parameters, seeded(1))
    assert sample.shape == (20_000, 3)
    error = (sample.mean(0) - p.mean(parameters)[0]).abs() / (sample.std(0) / math.sqrt(20_000))
    assert error.max() < 4
    assert torch.equal(sample, p.sample(parameters, seeded(1)))
    assert not torch.equal(sample, p.sample(parameters, seeded(2)))


@pytest.mark.parametrize("logit", [-30.0, -1.0, 0.0, 1e-7, 2.0])
def test_continuous_bernoulli_samples_its_density(logit: float) -> None:
    """Samples follow the cumulative distribution (e^(ax) - 1) / (e^a - 1)."""
    parameters = torch.full((4000, 1), logit, dtype=torch.float64)
    sample = likelihood("continuous_bernoulli").sample(parameters, seeded(0))[:, 0].numpy()
    cdf = stats.uniform.cdf if abs(logit) < 1e-6 else lambda x: _expm1_ratio(logit, x)
    assert stats.kstest(sample, cdf).pvalue > 0.01


def _expm1_ratio(a: float, x: Tensor) -> Tensor:
    return (torch.expm1(a * torch.as_tensor(x)) / math.expm1(a)).numpy()


def test_unknown_likelihood() -> None:
    """A name that no likelihood has is refused, naming those that exist."""
    with pytest.raises(UserError, match=r"No likelihood 'poisson'.*continuous_bernoulli"):
        likelihood("poisson")


# Binarisation


def digits_like(n: int, d: int, seed: int = 0) -> Tensor:
    """(n, d) float32 images of the 17 grey levels k / 16."""
    return torch.randint(0, 17, (n, d), generator=seeded(seed)).float() / 16


def test_static_binarisation_is_a_function_of_the_image() -> None:
    """An image is binarised alike alone, in any batch and any order, and whatever the random state."""
    x = digits_like(100, 64)
    torch.manual_seed(1)
    whole = binarise(x)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    order = torch.randperm(100, generator=seeded(3))
    assert torch.equal(binarise(x[order]), whole[order])
    assert torch.equal(torch.cat([binarise(row.unsqueeze(0)) for row in x]), whole)
    assert torch.equal(binarise(x.t().contiguous().t()), whole)
    assert torch.equal(torch.get_rng_state(), state)
    p = likelihood("bernoulli")
    assert torch.equal(p.prepare_train(x), whole)
    assert torch.equal(p.prepare_eval(x, seeded(0)), whole)
    assert torch.equal(likelihood("dynamic_bernoulli").prepare_eval(x, seeded(1)), whole)


def test_static_binarisation_never_changes() -> None:
    """The hash is pinned: recorded losses on binarised data stay comparable with later ones."""
    x = (torch.arange(50 * 64).reshape(50, 64) * 7 % 256).to(torch.uint8).float() / 255
    bits = binarise(x).to(torch.uint8).numpy().tobytes()
    assert hashlib.sha256(bits).hexdigest()[:16] == "ae886f80657cc59c"


@pytest.mark.parametrize("scale", [16, 255])
def test_binarised_pixels_have_the_probability_of_the_grey_value(scale: int) -> None:
    """A pixel is 1 with probability equal to its grey value, at each grey value; 0 and 1 stay."""
    x = torch.randint(0, scale + 1, (4000, 50), generator=seeded(0)).float() / scale
    binary = binarise(x)
    assert set(binary.unique().tolist()) == {0.0, 1.0}
    assert (binary[x == 0] == 0).all()
    assert (binary[x == 1] == 1).all()
    p_values = [
        stats.binomtest(int(binary[x == level].sum()), int((x == level).sum()), level).pvalue
        for level in (k / scale for k in range(1, scale))
        if (x == level).any()
    ]
    assert len(p_values) >= 15
    assert min(p_values) > 1e-3 / len(p_values)


def test_binarisation_noise_is_independent() -> None:
    """Half-grey pixels come out uncorrelated between pixels and between images that differ in one pixel."""
    x = torch.full((3000, 41), 0.5)
    x[:, 40] = torch.arange(3000) / 3000
    noise = binarise(x)[:, :40] - 0.5
    assert stats.kstest(_correlations(noise) * math.sqrt(3000), stats.norm.cdf).pvalue > 0.001
    assert stats.kstest(_correlations(noise[:200].t()) * math.sqrt(40), stats.norm.cdf).pvalue > 0.001
    assert (noise.mean(0).abs() < 5 * 0.5 / math.sqrt(3000)).all()


def _correlations(noise: Tensor) -> Tensor:
    """Products of distinct columns of +-1/2, scaled to correlations; spread a little to be continuous."""
    n, width = noise.shape
    pairs = torch.triu_indices(width, width, offset=1)
    products = 4 * (noise.t() @ noise / n)[pairs[0], pairs[1]]
    jitter = torch.rand(products.shape, generator=seeded(0)) - 0.5
    return products + jitter * 2 / n


def test_dynamic_binarisation_draws_anew() -> None:
    """Training binarises each batch anew from torch's global generator; the grey value is the probability."""
    p = likelihood("dynamic_bernoulli")
    x = digits_like(500, 64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = p.prepare_train(x), p.prepare_train(x)
        torch.manual_seed(0)
        assert torch.equal(p.prepare_train(x), first)
    assert not torch.equal(first, second)
    assert (first[x == 0] == 0).all()
    assert (first[x == 1] == 1).all()
    assert (first - x).mean().abs() < 4 * 0.5 / math.sqrt(x.numel())


def test_bf16_parameters_have_a_float32_loss() -> None:
    """From bfloat16 parameters the losses come in float32, equal to those of the same numbers in float32."""
    x = torch.rand(4, 10, generator=seeded(0))
    for name in NAMES:
        p = likelihood(name)
        low = randn(4, 10 * p.parameters_per_pixel, dtype=torch.float32).bfloat16()
        assert p.log_prob(low, x).dtype == torch.float32
        assert torch.equal(p.log_prob(low, x), p.log_prob(low.float(), x))
        assert torch.equal(p.mean(low), p.mean(low.float()))
