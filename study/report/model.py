"""The best model in pictures: reconstructions, samples, a walk through z, and where images lie in latent space."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from study.design.experiment import Experiment
from study.design.own import require_sources
from vae.checkpoint import TrainedModel, load_model
from vae.data.dataset import Dataset, load
from vae.elbo import active_units
from vae.errors import UserError
from vae.images import image_shape
from vae.pictures import (
    WALK_ROWS,
    latent_map,
    one_thread,
    posterior,
    reconstructions,
    samples,
    walk,
)


@dataclass(frozen=True)
class Gallery:
    """Pictures of one model as PNG bytes, and its latent map; None where something is missing, `missing` says
    what."""

    recipe_json: str
    reconstructions: bytes | None
    samples: bytes | None
    walk: bytes | None
    walk_dimensions: tuple[int, ...]
    walk_start: str
    """Where the walk's other dimensions stay, in words."""
    latent: pd.DataFrame
    """Columns x, y, label; empty without data."""
    axes: tuple[str, str]
    active_units: int
    missing: tuple[str, ...]


def gallery(path: Path, experiment: Experiment, fingerprint: str, data_dir: Path | None) -> Gallery:
    """Make the pictures of a model file. Data that is missing or has changed is named, not fetched.

    Raises UserError for a file that is no model."""
    trained = load_model(path)
    recipe = trained.recipe
    missing: list[str] = []
    data = _data(trained, experiment, fingerprint, data_dir, missing)
    drawable = image_shape(trained.shape) is not None
    if not drawable:
        missing.append(f"examples of shape {trained.shape} are not images, so none are drawn")
    latent, axes, n_active = pd.DataFrame({"x": [], "y": [], "label": []}, dtype=np.float64), ("", ""), 0
    spread, start, walk_start = (
        np.ones(recipe.latent_size),
        torch.zeros(recipe.latent_size),
        "the others at 0",
    )
    with one_thread():
        if data is not None:
            means, labels = posterior(trained, data.test)
            mapped = latent_map(means, labels)
            latent = pd.DataFrame({"x": mapped.x, "y": mapped.y, "label": mapped.label})
            axes, n_active = mapped.axes, active_units(means)
            spread, start = means.var(0, correction=0).numpy(), means[0].float()
            walk_start = "the others where the first test image lies"
        dimensions = tuple(int(i) for i in np.argsort(-spread, kind="stable")[:WALK_ROWS])
        return Gallery(
            recipe_json=recipe.to_json(),
            reconstructions=reconstructions(trained, data.test) if data is not None and drawable else None,
            samples=samples(trained) if drawable else None,
            walk=walk(trained, dimensions, start) if drawable else None,
            walk_dimensions=dimensions,
            walk_start=walk_start,
            latent=latent,
            axes=axes,
            active_units=n_active,
            missing=tuple(missing),
        )


def _data(
    trained: TrainedModel,
    experiment: Experiment,
    fingerprint: str,
    data_dir: Path | None,
    missing: list[str],
) -> Dataset | None:
    """The data as the model's training split it: each block has a split of its own."""
    seed = experiment.seed if trained.split_seed is None else trained.split_seed
    if seed != experiment.seed:
        fingerprint = trained.data_fingerprint
    try:
        require_sources(experiment)  # before the code that makes the data would be run
        data = load(
            experiment.data,
            seed=seed,
            likelihood=experiment.recipe.likelihood,
            data_dir=data_dir,
            download=False,
        )
    except UserError as error:
        missing.append(f"the data is not here, so no reconstructions and no latent map ({error})")
        return None
    if data.fingerprint != fingerprint:
        missing.append("the data here is not what was trained on, so no reconstructions and no latent map")
        return None
    return data
