"""Variational autoencoders: one recipe trained on one data set. Knows nothing of Optuna.

    from vae import Recipe, load, train, evaluate, load_model

    data = load("digits")                              # or a .npy or .npz file, or a folder of images
    for evaluation in train(Recipe(lr=3e-3), data, tau=20_000):
        print(evaluation.examples, evaluation.valid_loss)

`Recipe`: every setting of one training. `load`: a data set in three splits. `train`: a training to iterate over.
`load_model`: a model file, as `python -m vae train` and `python -m study` write it. `evaluate`: its negative ELBO and
its importance-weighted bound on a split. Everything else is in the modules, documented there.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # at run time each is imported when it is first asked for: torch takes seconds
    from vae.checkpoint import load_model
    from vae.data.dataset import load
    from vae.recipe import Recipe
    from vae.training import train
    from vae.use import evaluate

__all__ = ["Recipe", "evaluate", "load", "load_model", "train"]

_HOMES = {
    "Recipe": "vae.recipe",
    "evaluate": "vae.use",
    "load": "vae.data.dataset",
    "load_model": "vae.checkpoint",
    "train": "vae.training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vae' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
