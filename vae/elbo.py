"""The ELBO, the training objective, the importance-weighted bound and active units, in nats.

B examples, D pixels, P likelihood parameters per pixel, L latent dimensions. Quantities are summed over pixels
and latent dimensions, never averaged over them, and computed in at least float32. `x` is what the likelihood's
`prepare_train` or `prepare_eval` returned ("prepared").
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vae.errors import UserError
from vae.gaussian import kl_divergence, reparameterise
from vae.likelihoods import Likelihood, at_least_fp32


class Model(Protocol):
    """What the ELBO and the importance-weighted bound need; any network with these two methods plugs in."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) -> mean and log_var of q(z|x), each (B, L)."""

    def decode(self, z: Tensor) -> Tensor:
        """(B, L) -> parameters of p(x|z), (B, P * D) as the likelihood reads them."""


class Terms(NamedTuple):
    """The two halves of the negative ELBO of a batch, and what they came from."""

    distortion: Tensor  # (B,) nats: -log p(x|z) at the one z drawn
    kl: Tensor  # (B, L) nats per latent dimension
    mean: Tensor  # (B, L) posterior mean

    @property
    def rate(self) -> Tensor:
        """KL(q(z|x) || p(z)), (B,) nats."""
        return self.kl.sum(-1)

    @property
    def loss(self) -> Tensor:
        """The negative ELBO at beta = 1, (B,) nats: distortion + rate; lower is better."""
        return self.distortion + self.rate


def elbo_terms(model: Model, likelihood: Likelihood, x: Tensor, noise: Tensor) -> Terms:
    """One-sample estimate of the negative ELBO (Kingma & Welling 2014, eq. 10; KL in closed form).

    x: (B, D), prepared. noise: (B, L), standard normal.
    """
    mean, log_var = model.encode(x)
    parameters = model.decode(reparameterise(mean, log_var, noise))
    return Terms(-likelihood.log_prob(parameters, x), kl_divergence(mean, log_var), mean)


def objective(distortion: Tensor, kl: Tensor, beta: float | Tensor, free_bits: float = 0.0) -> Tensor:
    """The training loss, a scalar in nats per example: mean distortion + beta * KL (Higgins et al. 2017).

    distortion: (B,). kl: (B, L). With free bits the KL of a dimension, averaged over the batch, costs at
    least `free_bits` nats, so pushing it lower gains nothing (Kingma et al. 2016, eq. 15). Not the metric:
    that is `Terms.loss`. A beta that changes in training and is compiled belongs in a tensor.
    """
    per_dimension = kl.mean(0)
    if free_bits > 0:
        per_dimension = per_dimension.clamp(min=free_bits)
    return distortion.mean() + beta * per_dimension.sum()


@torch.no_grad()
def iwae_bound(
    model: Model, likelihood: Likelihood, x: Tensor, k: int, generator: torch.Generator, chunk: int = 8192
) -> Tensor:
    """The k-sample bound on log p(x), (B,) nats: ELBO <= IWAE_k <= log p(x) in expectation.

    Burda et al. 2016, eq. 8; the k samples share one encoder pass. x: (B, D), prepared. At most `chunk` rows
    are encoded or decoded at a time; the draws, and so the value up to rounding, don't depend on it.
    `generator` is on the device of x. The model must be in evaluation mode. Raises UserError if k < 1.
    """
    if k < 1:
        raise UserError(f"The importance-weighted bound needs at least 1 sample, not k = {k}.")
    encoded = [model.encode(part) for part in torch.split(x, chunk)]
    mean = at_least_fp32(torch.cat([part for part, _ in encoded]))
    log_var = at_least_fp32(torch.cat([part for _, part in encoded]))
    total = torch.full(mean.shape[:1], -math.inf, dtype=mean.dtype, device=mean.device)
    samples_at_once = max(1, chunk // max(1, len(x)))
    for start in range(0, k, samples_at_once):
        n_samples = min(samples_at_once, k - start)
        # One draw of (B, L) per sample, whatever the chunk: torch's normals depend on the size of a draw.
        draws = [
            torch.randn(mean.shape, dtype=mean.dtype, device=mean.device, generator=generator)
            for _ in range(n_samples)
        ]
        noise = torch.stack(draws)  # (n_samples, B, L)
        z = reparameterise(mean, log_var, noise)
        # log p(z) - log q(z|x): the constants ln(2 pi) / 2 cancel
        log_ratio = 0.5 * (noise.square() + log_var - z.square()).sum(-1)  # (n_samples, B)
        rows, pixels = z.flatten(0, 1), x.expand(n_samples, *x.shape).reshape(-1, x.shape[-1])
        log_px = torch.cat(
            [
                likelihood.log_prob(model.decode(part), part_pixels)
                for part, part_pixels in zip(
                    torch.split(rows, chunk), torch.split(pixels, chunk), strict=True
                )
            ]
        )
        log_weights = log_px.view(n_samples, -1) + log_ratio
        total = torch.logaddexp(total, log_weights.logsumexp(0))
    return total - math.log(k)


def active_units(means: Tensor) -> int:
    """Latent dimensions whose posterior mean has a variance over the data above 0.01.

    Burda et al. 2016, sec. 5.2. means: (N, L) posterior means of N examples.
    """
    return int((at_least_fp32(means).var(0, correction=0) > 0.01).sum())
