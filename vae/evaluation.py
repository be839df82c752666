"""What a model is worth: the one loop that evaluates, in training and afterwards, and what it measures."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vae.data.dataset import Dataset
from vae.elbo import Model, active_units, elbo_terms
from vae.likelihoods import Likelihood

#: Images of the validation split that every evaluation on the grid uses, the same for all recipes.
GRID_IMAGES = 2_000
#: Seeds the evaluation's noise: fixed, so that losses of different recipes and seeds share it.
EVALUATION_SEED = 20_131_220
#: Largest evaluation batch; bounds memory, changes no result beyond rounding.
EVALUATION_BATCH = 2_000


@dataclass(frozen=True)
class Evaluation:
    """What one visit to the grid measured. Losses are nats per example; lower is better."""

    number: int
    """Index of the last grid point passed; strictly increasing, shared by all recipes of one tau."""
    examples: int
    """Training examples seen."""
    steps: int
    """Optimizer steps taken."""
    train_seconds: float
    """Wall seconds spent in training steps; evaluation is off the clock."""
    train_loss: float
    """Mean training objective (with its beta and free bits) since the last evaluation."""
    valid_loss: float
    """Negative ELBO at beta = 1 on the fixed validation images; rate + distortion."""
    rate: float
    """KL(q(z|x) || p(z))."""
    distortion: float
    """-E[log p(x|z)]."""
    active_units: int
    """Latent dimensions whose posterior mean varies over the data by more than 0.01 (Burda et al. 2016)."""
    lr: float
    """Learning rate of the last step."""
    beta: float
    """Weight of the KL term in the last step."""
    grad_norm: float
    """Global L2 norm of the last step's gradient, before clipping."""

    def as_row(self) -> dict[str, Any]:
        """Column name -> value, for the curve table."""
        return asdict(self)


@dataclass(frozen=True)
class Scores:
    """A model's evaluation on one split, nats per example, single-sample ELBO with fixed noise."""

    loss: float
    rate: float
    distortion: float
    active_units: int


def evaluation_inputs(
    likelihood: Likelihood, latent_size: int, images: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Prepared images and noise (n, L) of an evaluation, for images (n, D) on the CPU: the same for every
    recipe of one likelihood and latent size, whatever its seed.

    generator: a fresh `evaluation_generator()`, for a caller that draws on."""
    generator = generator or evaluation_generator()
    x = likelihood.prepare_eval(images, generator)
    return x, torch.randn(len(x), latent_size, generator=generator)


def evaluation_generator() -> torch.Generator:
    """The generator of an evaluation's noise, at its start."""
    return torch.Generator().manual_seed(EVALUATION_SEED)


def scores(model: Model, likelihood: Likelihood, x: Tensor, noise: Tensor) -> Scores:
    """Single-sample negative ELBO of a model in evaluation mode. x: (n, D), prepared; noise: (n, L); both
    where the model is."""
    rate = distortion = 0.0
    means = []
    with torch.inference_mode():
        parts = zip(torch.split(x, EVALUATION_BATCH), torch.split(noise, EVALUATION_BATCH), strict=True)
        for part, eps in parts:
            terms = elbo_terms(model, likelihood, part, eps)
            rate += float(terms.rate.sum())
            distortion += float(terms.distortion.sum())
            means.append(terms.mean)
        units = active_units(torch.cat(means))
    n = len(x)
    return Scores(loss=(rate + distortion) / n, rate=rate / n, distortion=distortion / n, active_units=units)


def bits_per_dim(nats: float, size: int) -> float:
    """Nats per example of `size` dimensions as bits per dimension."""
    return nats / size / math.log(2)


def least_loss(data: Dataset, likelihood: str) -> float:
    """A bound that no model's validation loss is below, nats per example: the entropy of the grey pixels,
    which is what their cross-entropy costs with z for free; -inf for likelihoods without one."""
    if likelihood != "cross_entropy":
        return float("-inf")
    x = data.valid.all(GRID_IMAGES).double()
    return float(torch.special.entr(x).add(torch.special.entr(1 - x)).sum(dim=1).mean())
