"""KL, the ELBO and the importance-weighted bound against closed forms and torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vae.elbo import active_units, elbo_terms, iwae_bound, objective
from vae.errors import UserError
from vae.gaussian import kl_divergence, reparameterise
from vae.likelihoods import likelihood


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


# KL


def test_kl_is_torchs() -> None:
    """The closed form is torch.distributions.kl_divergence, dimension by dimension."""
    mean, log_var = randn(50, 7), 3 * randn(50, 7, seed=1)
    normal = torch.distributions.Normal(mean, torch.exp(0.5 * log_var))
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    torch.testing.assert_close(kl_divergence(mean, log_var), torch.distributions.kl_divergence(normal, prior))


def test_kl_is_never_negative() -> None:
    """Rounding does not push the KL below 0 near the prior, in float32 (exp(v) - 1 - v would)."""
    log_var = torch.linspace(-1e-3, 1e-3, 20_001).unsqueeze(1)
    assert (kl_divergence(torch.zeros_like(log_var), log_var) >= 0).all()
    naive = torch.exp(log_var) - 1 - log_var
    assert (naive < 0).any()


def test_bf16_kl_is_float32() -> None:
    """From bfloat16 heads the KL comes in float32, equal to that of the same numbers in float32."""
    low = randn(4, 3).bfloat16()
    assert kl_divergence(low, low).dtype == torch.float32
    assert torch.equal(kl_divergence(low, low), kl_divergence(low.float(), low.float()))


# Objective


def test_objective_is_beta_weighted() -> None:
    """The training loss is mean distortion + beta * mean KL; beta may be a tensor."""
    distortion, kl = randn(5).abs(), randn(5, 3, seed=1).abs()
    expected = distortion.mean() + 0.3 * kl.sum(1).mean()
    torch.testing.assert_close(objective(distortion, kl, 0.3), expected)
    torch.testing.assert_close(objective(distortion, kl, torch.tensor(0.3, dtype=torch.float64)), expected)


def test_free_bits_are_not_penalised() -> None:
    """A dimension whose mean KL is below the free bits costs exactly them and has no gradient."""
    kl = torch.tensor([[0.1, 2.0], [0.3, 4.0]], requires_grad=True)  # means 0.2 and 3
    loss = objective(torch.zeros(2), kl, 1.0, free_bits=0.5)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(3.5)
    torch.testing.assert_close(kl.grad, torch.tensor([[0.0, 0.5], [0.0, 0.5]]))


def test_active_units_vary_over_the_data() -> None:
    """A unit is active when its posterior mean varies over the data by more than 0.01, whatever its size."""
    means = torch.stack([torch.tensor([5.0, 5.0]), torch.tensor([0.0, 0.21]), torch.tensor([0.0, 0.19])], 1)
    assert active_units(means) == 1  # variances 0, 0.011, 0.009
    assert active_units(means[:1]) == 0


# Bounds


class LinearGaussian:
    """x = W z + b + sigma * noise with orthogonal columns of W, so that log p(x) and q(z|x) are exact.

    A model of the protocol by other means than a network; `error` shifts its posterior mean.
    """

    def __init__(self, error: float = 0.0) -> None:
        self.sigma, self.error = 0.5, error
        orthogonal, _ = torch.linalg.qr(randn(6, 2))
        self.W = orthogonal * torch.tensor([1.0, 2.0], dtype=torch.float64)
        self.b = randn(6, seed=1)
        self.posterior_var = 1 / (1 + self.W.square().sum(0) / self.sigma**2)  # (L,): W^T W is diagonal

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = (x - self.b) @ self.W / self.sigma**2 * self.posterior_var + self.error
        return mean, self.posterior_var.log().expand_as(mean)

    def decode(self, z: Tensor) -> Tensor:
        log_var = 2 * math.log(self.sigma)
        above = torch.tensor(log_var + 2 * math.log(255), dtype=torch.float64)
        raw = log_var + torch.log(-torch.expm1(-above))  # the inverse of the Gaussian's soft bound
        mean = z @ self.W.t() + self.b
        return torch.cat([mean, raw.expand_as(mean)], 1)

    def log_px(self, x: Tensor) -> Tensor:
        """(B,) nats, exact."""
        covariance = self.W @ self.W.t() + self.sigma**2 * torch.eye(6, dtype=torch.float64)
        return torch.distributions.MultivariateNormal(self.b, covariance).log_prob(x)


def sampled(model: LinearGaussian, n: int) -> Tensor:
    """(n, 6) draws of p(x)."""
    return randn(n, 2, seed=2) @ model.W.t() + model.b + model.sigma * randn(n, 6, seed=3)


def test_bounds_are_ordered() -> None:
    """With an inexact posterior, ELBO < IWAE_2 < IWAE_64 < log p(x), and IWAE_1 is the ELBO on average."""
    model, p = LinearGaussian(error=0.4), likelihood("gaussian")
    x = sampled(model, 2000)
    elbo = -elbo_terms(model, p, x, randn(2000, 2, seed=4)).loss.mean()
    one, two, many = (iwae_bound(model, p, x, k, seeded(5)).mean() for k in (1, 2, 64))
    exact = model.log_px(x).mean()
    assert elbo < two < many < exact
    assert two - elbo > 0.1
    assert exact - many < 0.2
    assert float(one) == pytest.approx(float(elbo), abs=0.15)


def test_bounds_are_tight_at_the_exact_posterior() -> None:
    """At the exact posterior every importance weight is p(x), and the ELBO's average is log p(x)."""
    model, p = LinearGaussian(), likelihood("gaussian")
    x = sampled(model, 5)
    for k in (1, 7):
        torch.testing.assert_close(iwae_bound(model, p, x, k, seeded(0)), model.log_px(x))
    many = x.repeat_interleave(4000, 0)
    loss = elbo_terms(model, p, many, randn(len(many), 2)).loss.view(5, 4000)
    error = (-loss.mean(1) - model.log_px(x)).abs() / (loss.std(1) / math.sqrt(4000))
    assert error.max() < 4


def test_elbo_is_a_bound_by_its_kl() -> None:
    """log p(x) - ELBO is the KL from the inexact to the exact posterior, for which there is a closed form."""
    model, p = LinearGaussian(error=0.4), likelihood("gaussian")
    x = sampled(model, 20_000)
    loss = elbo_terms(model, p, x, randn(20_000, 2)).loss
    gap = model.log_px(x) + loss
    expected = float((0.4**2 / (2 * model.posterior_var)).sum())
    assert abs(float(gap.mean()) - expected) < 4 * float(gap.std()) / math.sqrt(20_000)


def test_elbo_terms_add_up() -> None:
    """Distortion is -log p(x|z) at the z drawn, the rate sums the KL, and the loss is their sum."""
    model, p = LinearGaussian(error=0.1), likelihood("gaussian")
    x, noise = sampled(model, 4), randn(4, 2)
    terms = elbo_terms(model, p, x, noise)
    mean, log_var = model.encode(x)
    z = reparameterise(mean, log_var, noise)
    torch.testing.assert_close(z, mean + log_var.exp().sqrt() * noise)
    torch.testing.assert_close(terms.distortion, -p.log_prob(model.decode(z), x))
    torch.testing.assert_close(terms.rate, kl_divergence(mean, log_var).sum(1))
    torch.testing.assert_close(terms.loss, terms.distortion + terms.rate)
    assert torch.equal(terms.mean, mean)


def test_collapsed_loss_in_closed_form() -> None:
    """Collapsed to the train mean at unit variance, the squared error is the pixels' summed variance."""
    x = torch.rand(300, 12, generator=seeded(0), dtype=torch.float64)

    train_mean = x.mean(0)

    class Collapsed:
        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.new_zeros(len(x), 3), x.new_zeros(len(x), 3)

        def decode(self, z: Tensor) -> Tensor:
            raw = -2 * math.log(255) + math.log(math.expm1(2 * math.log(255)))  # log variance 0
            mean = train_mean.expand(len(z), -1)
            return torch.cat([mean, torch.full_like(mean, raw)], 1)

    terms = elbo_terms(Collapsed(), likelihood("gaussian"), x, randn(300, 3))
    assert float(terms.rate.abs().max()) == 0
    squared_error = 2 * terms.loss.mean() - 12 * math.log(2 * math.pi)
    torch.testing.assert_close(squared_error, x.var(0, correction=0).sum())


def test_iwae_is_the_formula() -> None:
    """The chunked bound equals log mean_k p(x, z_k) / q(z_k|x), written out with torch.distributions."""
    model, p = LinearGaussian(error=0.3), likelihood("gaussian")
    x = sampled(model, 7)
    mean, log_var = model.encode(x)
    q = torch.distributions.Normal(mean, torch.exp(0.5 * log_var))
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    generator, weights = seeded(9), []
    for _ in range(5):
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
        z = mean + q.scale * noise
        log_joint = p.log_prob(model.decode(z), x) + prior.log_prob(z).sum(1)
        weights.append(log_joint - q.log_prob(z).sum(1))
    expected = torch.stack(weights).exp().mean(0).log()
    torch.testing.assert_close(iwae_bound(model, p, x, 5, seeded(9)), expected)


@pytest.mark.parametrize("chunk", [1, 3, 7, 14, 16])
def test_iwae_does_not_depend_on_the_chunk(chunk: int) -> None:
    """The chunk saves memory and changes nothing; the seed does."""
    model, p = LinearGaussian(error=0.3), likelihood("gaussian")
    x = sampled(model, 7)
    whole = iwae_bound(model, p, x, 5, seeded(1))
    torch.testing.assert_close(iwae_bound(model, p, x, 5, seeded(1), chunk=chunk), whole)
    assert not torch.equal(iwae_bound(model, p, x, 5, seeded(2)), whole)


def test_iwae_needs_a_sample() -> None:
    """k = 0 is refused in one line."""
    with pytest.raises(UserError, match="at least 1 sample, not k = 0"):
        iwae_bound(LinearGaussian(), likelihood("gaussian"), torch.zeros(1, 6).double(), 0, seeded(0))
