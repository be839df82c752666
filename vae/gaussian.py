"""The diagonal Gaussian posterior q(z|x): its divergence from the prior N(0, 1), and draws of it."""

from __future__ import annotations

import torch
from torch import Tensor

from vae.likelihoods import at_least_fp32


def kl_divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, exp(log_var)) || N(0, 1)) of each latent dimension, (B, L) nats.

    Kingma & Welling 2014, app. B.
    """
    mean, log_var = at_least_fp32(mean), at_least_fp32(log_var)
    # expm1: exp(v) - 1 - v near v = 0 without the cancellation that would give a negative KL
    return 0.5 * (mean.square() + torch.expm1(log_var) - log_var)


def reparameterise(mean: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
    """A draw of N(mean, exp(log_var)) from standard normal noise (Kingma & Welling 2014, sec. 2.4)."""
    return mean + torch.exp(0.5 * log_var) * noise
