"""Models and run states on disk: safetensors and tensors-only files, written whole or not at all."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from vae.data.dataset import Dataset
from vae.errors import UserError
from vae.files import write_whole
from vae.model.mlp import build
from vae.recipe import Recipe
from vae.training import Training


@dataclass(frozen=True)
class TrainedModel:
    """A model with what is needed to use it: its recipe and the data it was trained on."""

    model: nn.Module
    recipe: Recipe
    shape: tuple[int, ...]
    """Shape of one example, e.g. (28, 28)."""
    data_name: str
    data_fingerprint: str


def weights_of(training: Training) -> dict[str, torch.Tensor]:
    """A copy of the evaluated weights as they are now, on the CPU."""
    with training.evaluated_weights() as model:
        return {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}


def save_model(
    path: Path, training: Training, data: Dataset, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """Write the evaluated weights (float32), or those that `weights_of` copied earlier in the training, and the
    recipe to one .safetensors file. Raises FailureError."""
    metadata = {
        "recipe": training.recipe.to_json(),
        "shape": json.dumps(data.shape),
        "data_name": data.name,
        "data_fingerprint": data.fingerprint,
    }
    kept = weights_of(training) if weights is None else weights
    _write(path, lambda temporary: save_file(kept, temporary, metadata=metadata))


def load_model(path: Path) -> TrainedModel:
    """The model that `save_model` wrote, in evaluation mode on the CPU. Raises UserError."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        recipe = Recipe.from_json(metadata["recipe"], source=f"the recipe in {path}")
        shape = tuple(int(n) for n in json.loads(metadata["shape"]))
        size = int(torch.tensor(shape).prod())
        # The weights come from the file, the output's bias too: it needs no mean image here.
        model = build(recipe.replace(output_bias_from_mean=False), size)
        model.load_state_dict(weights)
    except FileNotFoundError:
        raise UserError(
            f"No model at {path}. `python -m study search` and `python -m vae train` write one."
        ) from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is no model written by this project: {reason}") from None
    return TrainedModel(
        model=model.eval(),
        recipe=recipe,
        shape=shape,
        data_name=metadata.get("data_name", ""),
        data_fingerprint=metadata.get("data_fingerprint", ""),
    )


def save_state(path: Path, training: Training, **extra: Any) -> None:
    """Write the full state of a run, and plain values of the caller's beside it, to resume it to the same
    curve. Raises FailureError."""
    state = {"training": training.state_dict(), "extra": extra}
    _write(path, lambda temporary: torch.save(state, temporary))


def load_state(path: Path) -> dict[str, Any] | None:
    """{"training", "extra"} as `save_state` wrote them, or None where there is no file. Never unpickles code.

    Raises UserError for a file that is no state, or no longer the one that was written."""
    try:
        if path.exists() and not path.is_file():  # a pipe that nobody writes to would be waited for
            raise TypeError("not a regular file")
        with zipfile.ZipFile(path) as archive:  # torch passes over its own checksums
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if not (isinstance(state, dict) and state.keys() >= {"training", "extra"}):
            raise TypeError("neither a training nor its extra values in it")
        if not ("recipe" in state["training"] and isinstance(state["extra"], dict)):
            raise TypeError("no recipe in it")
    except FileNotFoundError:
        return None
    except Exception as error:  # torch.load raises many kinds for a damaged file
        raise UserError(
            f"{path} is no saved state ({type(error).__name__}); delete it to start again."
        ) from None
    return state


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """`write_whole`, where torch and safetensors have their own errors for a full disk."""

    def fill(temporary: Path) -> None:
        try:
            write(temporary)
        except (RuntimeError, SafetensorError) as error:
            raise OSError(str(error).partition("\n")[0]) from error

    write_whole(path, fill)
