"""One speed-up measured by a plain PyTorch script that imports nothing of this project.

Digits, 64-128-8, batch 64, Adam at a constant lr, binary cross-entropy on grey pixels: with and without the
decoder's output bias started at the mean image. Prints the ratio of mean examples to target with a paired t
interval, to be held against the `output-bias` row of `python -m study compare`. Pass the lr of both winners and
the target of that comparison.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from scipy import stats
from sklearn.datasets import load_digits
from torch import nn


def main(
    lr: Annotated[float, typer.Option(help="Learning rate of the baseline.")],
    lr_arm: Annotated[float, typer.Option(help="Learning rate of the arm with the output bias.")],
    target: Annotated[float, typer.Option(help="Validation loss to reach, nats per example.")],
    seeds: Annotated[int, typer.Option(min=2, help="Paired seeds.")] = 10,
    epochs: Annotated[int, typer.Option(min=1, help="Budget.")] = 40,
) -> None:
    """Measure the output bias's speed-up by hand."""
    torch.set_num_threads(1)
    images = torch.tensor(load_digits().data / 16.0, dtype=torch.float32)
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    train, valid = images[:1197], images[1197:1497]
    needed = {
        name: np.array([examples_to(target, train, valid, seed, epochs, rate, bias) for seed in range(seeds)])
        for name, rate, bias in (("baseline", lr, False), ("output bias", lr_arm, True))
    }
    for name, E in needed.items():
        typer.echo(
            f"{name}: hits {np.isfinite(E).sum()}/{seeds}, mean {E.mean() / len(train):.2f} epochs to {target}"
        )
    B, A = needed["baseline"], needed["output bias"]
    if not (np.isfinite(B).all() and np.isfinite(A).all()):
        typer.echo("Not every seed reached the target: no ratio.")
        return
    se = (B / B.mean() - A / A.mean()).std(ddof=1) / math.sqrt(seeds)
    half = stats.t.ppf(0.975, seeds - 1) * se
    theta = math.log(B.mean() / A.mean())
    typer.echo(
        f"by hand: {math.exp(theta):.2f}x [{math.exp(theta - half):.2f}, {math.exp(theta + half):.2f}]"
    )


def examples_to(
    target: float, train: torch.Tensor, valid: torch.Tensor, seed: int, epochs: int, lr: float, bias: bool
) -> float:
    """Examples until the validation loss is at or below the target, interpolated; infinite if never."""
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 16))
    decoder = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 64))
    if bias:
        decoder[2].bias.data = torch.logit(train.mean(0).clamp(1e-3, 1 - 1e-3))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=lr)
    noise = torch.randn(len(valid), 8, generator=torch.Generator().manual_seed(1))

    def loss(x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        mean, log_var = encoder(x).chunk(2, dim=1)
        logits = decoder(mean + torch.exp(log_var / 2) * eps)
        distortion = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
        kl = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(1)
        mean_loss: torch.Tensor = (distortion + kl).mean()
        return mean_loss

    seen, before = 0, (0.0, math.inf)
    next_look = 0.005 * epochs * len(train)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(train)), 64):
            if len(rows) < 64:
                continue
            optimizer.zero_grad()
            torch.autograd.backward(loss(train[rows], torch.randn(64, 8)))
            optimizer.step()
            seen += 64
            if seen >= next_look:
                next_look = seen * 1.03
                with torch.no_grad():
                    now = float(loss(valid, noise))
                if now <= target:
                    share = (before[1] - target) / (before[1] - now)
                    return float(before[0] * (seen / before[0]) ** share) if before[0] else float(seen)
                before = (float(seen), now)
    return math.inf


if __name__ == "__main__":
    typer.run(main)
