"""Models and run states on disk: safetensors and tensors-only files, written whole or not at all."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from platform import python_version
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from vae import code
from vae.data.dataset import Dataset
from vae.errors import UserError
from vae.files import write_whole
from vae.info import reading
from vae.model.bring import build_network
from vae.model.mlp import VAE
from vae.recipe import Recipe
from vae.training import Training
from vae.versions import version_of

#: Distributions whose versions a model file says.
MADE_WITH = ("vae-study", "torch", "numpy")


@dataclass(frozen=True)
class TrainedModel:
    """A model with what is needed to use it: its recipe and the data it was trained on."""

    model: nn.Module
    recipe: Recipe
    shape: tuple[int, ...]
    """Shape of one example, e.g. (28, 28)."""
    data_name: str
    data_fingerprint: str
    data_source: str | None = None
    """The name of a set or the absolute path of a file; None in model files of before."""
    split_seed: int | None = None
    """The seed that split the data; None in model files of before."""
    sources: tuple[code.Source, ...] = ()
    """Code of the user's own that it was trained with, as it was then: the network's, the optimizer's, the data's."""

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.model.parameters()).device


def weights_of(training: Training) -> dict[str, torch.Tensor]:
    """A copy of the evaluated weights as they are now, on the CPU."""
    with training.evaluated_weights() as model:
        return {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}


def save_model(
    path: Path,
    training: Training,
    data: Dataset,
    weights: dict[str, torch.Tensor] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Write the evaluated weights (float32), or those that `weights_of` copied earlier in the training, and the
    recipe to one .safetensors file. metrics: what these weights are worth, nats per example (`Evaluation`'s names, and
    test_loss), for whoever reads the file. Raises FailureError."""
    metadata = {
        "recipe": training.recipe.to_json(),
        "shape": json.dumps(data.shape),
        "data_name": data.name,
        "data_fingerprint": data.fingerprint,
        "training": json.dumps(
            {
                "outcome": training.outcome,
                "tau": training.tau,
                "examples": training.examples,
                "steps": training.steps,
                "train_seconds": training.train_seconds,
                "device": str(training.device),
            }
        ),
        "metrics": json.dumps(dict(metrics or {})),
        "versions": json.dumps({name: version_of(name) for name in MADE_WITH} | {"Python": python_version()}),
    }
    own = [*training.sources.values(), *([data.code] if data.code else [])]
    if own:
        metadata["sources"] = json.dumps({of.reference: [str(of.path), of.sha256] for of in own})
    if type(training.model) is not VAE and training.recipe.model == "mlp":
        metadata["network"] = f"{type(training.model).__module__}.{type(training.model).__qualname__}"
    if data.source:
        metadata["data_source"] = data.source
    if data.seed is not None:
        metadata["split_seed"] = str(data.seed)
    kept = weights_of(training) if weights is None else weights
    _write(path, lambda temporary: save_file(kept, temporary, metadata=metadata))


def load_model(path: Path, network: nn.Module | None = None) -> TrainedModel:
    """The model that `save_model` wrote, in evaluation mode on the CPU.

    network: where a network of one's own was trained that its recipe doesn't name, one built in the same way, whose
    weights are overwritten. A factory that its recipe names is run if its source has the SHA-256 that the file says,
    looked for by its name and where it was then; the optimizer's and the data's code is not run. Nothing is unpickled.
    Raises UserError."""
    with reading(path):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        recipe = Recipe.from_json(metadata["recipe"], source=f"the recipe in {path}")
        shape = tuple(int(n) for n in json.loads(metadata["shape"]))
        seed = metadata.get("split_seed")
        split_seed = None if seed is None else int(seed)
        sources = _sources(metadata.get("sources", "{}"))
    wrote = metadata.get("network")
    if network is None and wrote is not None:
        raise UserError(
            f"{path} holds the weights of a network of your own, {wrote}, which only Python can build: "
            f"load_model(path, {wrote.rpartition('.')[2]}(...))."
        )
    # The weights come from the file, not from the mean training image, which isn't here.
    plain = recipe.replace(output_bias_from_mean=False)
    try:
        model = _build(plain, shape, sources) if network is None else network
    except UserError as error:
        raise UserError(f"The network of {path} can't be built: {error}") from None
    try:
        model.load_state_dict(weights)
    except (TypeError, ValueError, RuntimeError, UserError) as error:
        what = "are not its recipe's" if network is None else f"don't fit {type(network).__name__}"
        raise UserError(f"The weights in {path} {what}: {_one_line(error)}") from None
    return TrainedModel(
        model=model.to("cpu").eval(),
        recipe=recipe,
        shape=shape,
        data_name=metadata.get("data_name", ""),
        data_fingerprint=metadata.get("data_fingerprint", ""),
        data_source=metadata.get("data_source"),
        split_seed=split_seed,
        sources=sources,
    )


def _sources(text: str) -> tuple[code.Source, ...]:
    """What `save_model` wrote of the user's own code. Raises ValueError, TypeError."""
    read = json.loads(text)
    if not isinstance(read, dict):
        raise TypeError("its sources are no table")
    found = []
    for name, (path, sha256) in read.items():
        if not all(isinstance(part, str) for part in (name, path, sha256)):
            raise TypeError("its sources are no names, paths and SHA-256s")
        found.append(code.Source(name, Path(path), sha256))
    return tuple(found)


def _build(recipe: Recipe, shape: tuple[int, ...], sources: tuple[code.Source, ...]) -> nn.Module:
    if not code.is_reference(recipe.model):
        return build_network(recipe, shape)
    then = next((source for source in sources if source.reference == recipe.model), None)
    if then is None:
        raise UserError(f"it doesn't say which {recipe.model} they are of")
    here = code.find_again(then.reference, str(then.path), then.sha256)
    found = recipe.replace(model=here.reference, model_options=recipe.model_options)
    return build_network(found, shape, sha256=then.sha256)


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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """`write_whole`, where torch and safetensors have their own errors for a full disk."""

    def fill(temporary: Path) -> None:
        try:
            write(temporary)
        except (RuntimeError, SafetensorError) as error:
            raise OSError(_one_line(error)) from error

    write_whole(path, fill)
