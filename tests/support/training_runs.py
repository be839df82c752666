"""Short trainings on digits whose curves are compared to the bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from vae.evaluation import Evaluation
from vae.recipe import Recipe
from vae.training import Training


def recipe_of(**changes: Any) -> Recipe:
    return Recipe(hidden=(32,), latent_size=4, batch_size=64, lr=3e-3).replace(**changes)


def curve(run: Training) -> list[Evaluation]:
    """The rest of a run, without the seconds."""
    return [replace(evaluation, train_seconds=0.0) for evaluation in run]


def weights(run: Training) -> Tensor:
    return nn.utils.parameters_to_vector(run.model.parameters()).detach().clone()
