"""The best model in pictures: reconstructions, samples, a walk through z, and where images lie in latent space."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from study.design.experiment import Experiment
from study.workers.trial import model_path
from vae.checkpoint import TrainedModel, load_model
from vae.data.dataset import Dataset, load
from vae.errors import UserError
from vae.likelihoods import likelihood

#: Images in a row of a sheet, rows of samples, latent dimensions and steps of the walk.
COLUMNS, SAMPLE_ROWS, WALK_ROWS, WALK_STEPS = 16, 4, 8, 9
#: Test images on the latent map, and those that its axes are found from.
MAP_IMAGES = 700
#: Seeds the samples.
SEED = 20_131_220

Pixels = npt.NDArray[np.float64]


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


def best_model(artifacts: Path, name: str, number: int) -> Path | None:
    """The file of search trial `number`, as a worker keeps it, or the copy that `run` and `search` leave; None where
    there is neither."""
    paths = (model_path(artifacts, f"{name}/search", number), artifacts / name / "best.safetensors")
    return next((path for path in paths if path.exists()), None)


def gallery(path: Path, experiment: Experiment, fingerprint: str, data_dir: Path | None) -> Gallery:
    """Make the pictures of a model file. Data that is missing or has changed is named, not fetched.

    Raises UserError for a file that is no model."""
    trained = load_model(path)
    recipe = trained.recipe
    missing: list[str] = []
    data = _data(experiment, fingerprint, data_dir, missing)
    shape = image_shape(trained.shape)
    if shape is None:
        missing.append(f"examples of shape {trained.shape} are not images, so none are drawn")
    with _one_thread(), torch.no_grad():
        means, labels = _posterior(trained, data) if data is not None else (None, None)
        latent, axes = latent_map(means, labels) if means is not None else (_NO_MAP, ("", ""))
        spread = means.var(0).numpy() if means is not None else np.ones(recipe.latent_size)
        dimensions = tuple(int(i) for i in np.argsort(-spread, kind="stable")[:WALK_ROWS])
        start = torch.zeros(recipe.latent_size) if means is None else means[0].float()
        return Gallery(
            recipe_json=recipe.to_json(),
            reconstructions=_reconstructions(trained, data, shape) if data is not None and shape else None,
            samples=_samples(trained, shape) if shape else None,
            walk=_walk(trained, dimensions, start, shape) if shape else None,
            walk_dimensions=dimensions,
            walk_start="the others at 0" if means is None else "the others where the first test image lies",
            latent=latent,
            axes=axes,
            active_units=int((spread > 0.01).sum()) if means is not None else 0,
            missing=tuple(missing),
        )


_NO_MAP = pd.DataFrame({"x": [], "y": [], "label": []}, dtype=np.float64)


def _data(
    experiment: Experiment, fingerprint: str, data_dir: Path | None, missing: list[str]
) -> Dataset | None:
    try:
        data = load(
            experiment.data,
            seed=experiment.seed,
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


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order, so that the same model gives the same bytes on any number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def image_shape(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """(height, width, channels) of an example: (H, W), (H, W, 1 or 3), (1 or 3, H, W); None for anything else."""
    if len(shape) == 2:
        return shape[0], shape[1], 1
    if len(shape) == 3 and shape[2] in (1, 3):
        return shape[0], shape[1], shape[2]
    if len(shape) == 3 and shape[0] in (1, 3):
        return shape[1], shape[2], shape[0]
    return None


def _posterior(trained: TrainedModel, data: Dataset) -> tuple[Tensor, npt.NDArray[np.int64] | None]:
    """Posterior means (n, L) of the first test images, float64, and their labels (n,)."""
    x = data.test.all(MAP_IMAGES)
    mean, _ = trained.model.encode(x)  # type: ignore[operator]
    labels = None if data.test.labels is None else data.test.labels[: len(x)].numpy()
    return mean.double(), labels


def latent_map(means: Tensor, labels: npt.NDArray[np.int64] | None) -> tuple[pd.DataFrame, tuple[str, str]]:
    """Two coordinates of posterior means (n, L): z itself at L <= 2, else their first principal components, whose
    signs are fixed (largest loading positive). Columns x, y, label."""
    z = means.numpy()
    if z.shape[1] == 1:
        x, y, names = z[:, 0], np.zeros(len(z)), ("z 1", "")
    elif z.shape[1] == 2:
        x, y, names = z[:, 0], z[:, 1], ("z 1", "z 2")
    else:
        centred = z - z.mean(0)
        _, singular, axes = np.linalg.svd(centred, full_matrices=False)
        axes = axes[:2] * np.sign(axes[[0, 1], np.abs(axes[:2]).argmax(1)])[:, None]
        x, y = (centred @ axes.T).T
        share = singular**2 / max(float((singular**2).sum()), 1e-12)
        names = (f"first principal component ({share[0]:.0%})", f"second ({share[1]:.0%})")
    label = labels.astype(np.float64) if labels is not None else np.full(len(z), np.nan)
    return pd.DataFrame({"x": x, "y": y, "label": label}), names


def _expected(trained: TrainedModel, z: Tensor) -> Pixels:
    """Expected pixels (n, D) of p(x|z)."""
    parameters = trained.model.decode(z.float())  # type: ignore[operator]
    return likelihood(trained.recipe.likelihood).mean(parameters).double().numpy()


def _reconstructions(trained: TrainedModel, data: Dataset, shape: tuple[int, int, int]) -> bytes:
    """Test images above their expected pixels from the posterior mean."""
    x = data.test.all(COLUMNS)
    mean, _ = trained.model.encode(x)  # type: ignore[operator]
    rows = np.concatenate([x.double().numpy(), _expected(trained, mean)])
    return sheet(rows, len(x), trained.shape, shape, _limits(x.numpy(), trained))


def _samples(trained: TrainedModel, shape: tuple[int, int, int]) -> bytes:
    generator = torch.Generator().manual_seed(SEED)
    z = torch.randn(SAMPLE_ROWS * COLUMNS, trained.recipe.latent_size, generator=generator)
    pixels = _expected(trained, z)
    return sheet(pixels, COLUMNS, trained.shape, shape, _limits(pixels, trained))


def _walk(
    trained: TrainedModel, dimensions: tuple[int, ...], start: Tensor, shape: tuple[int, int, int]
) -> bytes:
    """One latent dimension a row, from -3 to 3, the others at `start`."""
    z = start.repeat(len(dimensions), WALK_STEPS, 1)
    for row, dimension in enumerate(dimensions):
        z[row, :, dimension] = torch.linspace(-3.0, 3.0, WALK_STEPS)
    pixels = _expected(trained, z.flatten(0, 1))
    return sheet(pixels, WALK_STEPS, trained.shape, shape, _limits(pixels, trained))


def _limits(pixels: npt.NDArray[np.floating], trained: TrainedModel) -> tuple[float, float]:
    """What is black and what is white: 0 and 1, or the range shown where pixels have no bounds."""
    if trained.recipe.likelihood != "gaussian":
        return 0.0, 1.0
    return min(0.0, float(pixels.min())), max(1.0, float(pixels.max()))


def sheet(
    pixels: Pixels,
    columns: int,
    stored: tuple[int, ...],
    shape: tuple[int, int, int],
    limits: tuple[float, float],
) -> bytes:
    """Images (n, D) in rows of `columns` as one PNG of real pixels, transparent between them; the page scales it."""
    height, width, channels = shape
    images = pixels.reshape(len(pixels), *stored)
    if len(stored) == 3 and stored[2] not in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    images = images.reshape(len(pixels), height, width, channels)
    scaled = (np.clip(images, *limits) - limits[0]) / (limits[1] - limits[0])
    grey = np.rint(scaled * 255.0).astype(np.uint8)
    gap = max(1, height // 14)
    n_rows = -(-len(pixels) // columns)
    size = (n_rows * (height + gap) - gap, columns * (width + gap) - gap, channels + 1)
    canvas = np.zeros(size, dtype=np.uint8)
    for i, image in enumerate(grey):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        canvas[top : top + height, left : left + width, :channels] = image
        canvas[top : top + height, left : left + width, channels] = 255
    file = io.BytesIO()
    Image.fromarray(canvas, "LA" if channels == 1 else "RGBA").save(file, format="PNG", optimize=False)
    return file.getvalue()
