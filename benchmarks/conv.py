"""A step of `--model conv` beside the same network in plain PyTorch, in interleaved slices of one process.

The plain loop is what a careful user writes: `torch.nn` layers, autograd, a permutation a slice indexed in memory,
`torch.optim.Adam(fused=True)`, `zero_grad`, no evaluation. Once as it is and once with network and images in
channels_last. All train Fashion-MNIST (28 x 28, grey) from an initialisation of their own; only the time is compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from vae.data.dataset import load
from vae.recipe import Recipe
from vae.training import train

HIDDEN, LATENT, CHANNELS = 500, 30, (32, 64)
#: The budget: never reached, and with a constant lr it changes nothing.
TAU = 10**9

#: Trains so many steps; the seconds they took.
Slice = Callable[[int], float]


class Plain(nn.Module):
    """The network that `conv` makes by default for 28 x 28 grey pixels, written out."""

    def __init__(self) -> None:
        super().__init__()
        first, second = CHANNELS
        self.encoder = nn.Sequential(
            nn.Conv2d(1, first, 3, 2, 1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, 2, 1, bias=False),
            nn.BatchNorm2d(second),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(second * 49, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, 2 * LATENT),
        )
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, second * 49),
            nn.ReLU(),
            nn.Unflatten(1, (second, 7, 7)),
            nn.ConvTranspose2d(second, first, 4, 2, 1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.ConvTranspose2d(first, 1, 4, 2, 1, bias=False),
        )
        self.output_bias = nn.Parameter(torch.zeros(1, 28, 28))

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, 1, 28, 28), noise (B, L) -> logits (B, 1, 28, 28), mean and log_var (B, L)."""
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        logits = self.decoder(mean + torch.exp(log_var / 2) * noise) + self.output_bias
        return logits, mean, log_var


def plain_loop(images: Tensor, batch: int, memory_format: torch.memory_format) -> tuple[Slice, int]:
    """The plain loop over images (N, 784) in 0..1, and the network's number of weights."""
    model = Plain().to(memory_format=memory_format)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    images = images.view(-1, 1, 28, 28)

    def steps(n: int) -> float:
        began = time.perf_counter()
        for rows in torch.split(torch.randperm(len(images))[: n * batch], batch):
            x = images[rows].contiguous(memory_format=memory_format)
            logits, mean, log_var = model(x, torch.randn(len(x), LATENT))
            distortion = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
            kl = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum()
            optimizer.zero_grad()
            torch.autograd.backward((distortion + kl) / len(x))
            optimizer.step()
        return time.perf_counter() - began

    return steps, sum(p.numel() for p in model.parameters())


def main(
    rounds: Annotated[int, typer.Option(min=2, help="Rounds; one before them isn't counted.")] = 11,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a slice.")] = 40,
    batch: Annotated[int, typer.Option(min=1)] = 256,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Milliseconds a step of our convolutional network and of the same one in plain PyTorch, and their ratio."""
    torch.set_num_threads(threads)
    data = load("fashion-mnist")
    images = torch.as_tensor(data.train.all(steps * batch)).float()
    recipe = Recipe(model="conv", hidden=(HIDDEN,), latent_size=LATENT, batch_size=batch, lr=1e-3)
    ours = train(recipe, data, TAU)
    plain, n_plain = plain_loop(images, batch, torch.contiguous_format)
    last, _ = plain_loop(images, batch, torch.channels_last)
    n_ours = sum(p.numel() for p in ours.model.parameters())
    if n_ours != n_plain:
        raise RuntimeError(f"Not the same network: {n_ours:,} weights here, {n_plain:,} in the plain one.")
    slices: dict[str, Slice] = {"ours": ours.advance, "plain": plain, "plain, channels_last": last}
    seconds = np.array([[take(steps) for take in slices.values()] for _ in range(rounds + 1)][1:])
    typer.echo(
        f"conv {CHANNELS}, {n_ours:,} weights, batch {batch}, {threads} threads, torch {torch.__version__}; medians "
        f"[least, most] of {rounds} rounds of {steps} steps"
    )
    for column, name in enumerate(slices):
        ms, ratio = 1e3 * seconds[:, column] / steps, seconds[:, column] / seconds[:, 0]
        typer.echo(f"{name:21} {_range(ms, 2)} ms a step, {_range(ratio, 2)} x ours")


def _range(values: np.ndarray, digits: int) -> str:
    return f"{np.median(values):.{digits}f} [{values.min():.{digits}f}, {values.max():.{digits}f}]"
