"""A small VAE and its batches, for the tests of the training step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vae.model.mlp import VAE, build
from vae.recipe import Recipe
from vae.step.step import Step

PIXELS = 20
#: Plain; residual with an identity and a projected shortcut; a single hidden layer.
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {"hidden": (16, 12)},
    "residual": {"hidden": (16, 16, 12), "residual": True},
    "single": {"hidden": (16,)},
}


class Own(VAE):
    """The same network as a class that the hand-made gradient doesn't know."""


def recipe_of(**changes: Any) -> Recipe:
    return Recipe(hidden=(16, 12), latent_size=3, lr=0.01, batch_size=32).replace(**changes)


def model_of(recipe: Recipe, kind: type[VAE] = VAE) -> VAE:
    torch.manual_seed(recipe.seed)
    model = build(recipe, PIXELS)
    model.__class__ = kind
    return model


def batch_of(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(32, 3, generator=generator) @ torch.rand(3, PIXELS, generator=generator) / 3).clamp(0, 1)
    return x.to(dtype), torch.randn(32, 3, generator=generator).to(dtype)


def take(step: Step, n: int, start: int = 0) -> list[tuple[float, float]]:
    """n steps with a lr and a beta that change: loss and gradient norm of each."""
    taken = []
    for i in range(start, start + n):
        x, noise = batch_of(i)
        torch.manual_seed(i)
        taken.append(tuple(float(t) for t in step.take(x, noise, 0.01 / (1 + i), min(1.0, i / 4))))
    return taken
