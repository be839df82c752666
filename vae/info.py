"""What a model file says of itself, read without running or building anything."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from vae.code import is_reference
from vae.errors import UserError, printable
from vae.recipe import Recipe

#: Characters of a line that a file may have shown.
SHOWN = 400
#: A URL as a path has it, with one of its two slashes.
_URL = re.compile(r"[a-z][a-z0-9+.-]+:/")


@dataclass(frozen=True)
class ModelInfo:
    """A model file. What files of before don't say is None or empty."""

    file: str
    network: str
    """The recipe's `model`; or the class of a network that Python alone can build."""
    sources: dict[str, tuple[str, str]]
    """Code of the user's own: reference -> (path, SHA-256), as it was in training."""
    parameters: int
    tensors: int
    shape: tuple[int, ...]
    """Of one example."""
    data_name: str
    data_fingerprint: str
    data_source: str | None
    split_seed: int | None
    training: dict[str, Any]
    """outcome, tau, examples, steps, train_seconds, device."""
    metrics: dict[str, float]
    """Nats per example: valid_loss, rate, distortion, test_loss, ..."""
    versions: dict[str, str]
    recipe: Recipe

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"recipe": json.loads(self.recipe.to_json())}


def read_info(path: Path) -> ModelInfo:
    """What the file at a path says. Raises UserError where it is no model of this project."""
    with reading(path):
        with safe_open(path, framework="numpy") as file:
            said = file.metadata() or {}
            shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118 - not a dict
        recipe = Recipe.from_json(said["recipe"], source=f"the recipe in {path}")
        seed = said.get("split_seed")
        return ModelInfo(
            file=str(path),
            network=said.get("network") or recipe.model,
            sources={name: (str(where), str(sha)) for name, (where, sha) in _table(said, "sources").items()},
            parameters=sum(prod(shape) for shape in shapes),
            tensors=len(shapes),
            shape=tuple(int(n) for n in json.loads(said["shape"])),
            data_name=said.get("data_name", ""),
            data_fingerprint=said.get("data_fingerprint", ""),
            data_source=said.get("data_source"),
            split_seed=None if seed is None else int(seed),
            training=_table(said, "training"),
            metrics={name: float(value) for name, value in _table(said, "metrics").items()},
            versions={name: str(value) for name, value in _table(said, "versions").items()},
            recipe=recipe,
        )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What is wrong with a model file as a UserError, wherever it is read."""
    try:
        yield
    except FileNotFoundError:
        where = f"No model at {path}. `python -m study search` and `python -m vae train` write one."
        if _URL.match(str(path)):
            where = (
                f"{path} is no file of this machine: copy it here first, as `python -m study export --models` does "
                "with the models of a study."
            )
        raise UserError(where) from None
    except KeyError as error:
        raise UserError(f"{path} is no model written by this project: it has no {error} in it.") from None
    except (OSError, SafetensorError, TypeError, ValueError, RuntimeError) as error:
        line = " ".join(str(error).split())[:SHOWN]
        raise UserError(f"{path} is no model written by this project: {line}") from None


def as_lines(found: ModelInfo) -> list[str]:
    """The same to be read in a terminal."""
    unknown = "not said, a file of before"
    lines = [
        found.file,
        f"network   {found.network}, {found.parameters:,} parameters in {found.tensors} tensors, "
        f"examples of shape {found.shape}",
    ]
    lines += [f"source    {name}: SHA-256 {sha} of {path}" for name, (path, sha) in found.sources.items()]
    splits = f"seed of the split: {unknown if found.split_seed is None else found.split_seed}"
    if found.split_seed is None and is_reference(found.data_source or ""):
        splits = "in splits of its own"
    lines += [
        f"data      {found.data_name}, fingerprint {found.data_fingerprint}",
        f"          from {found.data_source or unknown}; {splits}",
        f"training  {_pairs(found.training) or unknown}",
        f"metrics   {_pairs(found.metrics) or unknown}",
        f"versions  {_pairs(found.versions) or unknown}",
        "recipe",
    ]
    recipe = [f"  {line}" for line in found.recipe.to_toml().splitlines()]
    return [_cut(printable(line)) for line in [*lines, *recipe]]


def _table(said: dict[str, str], key: str) -> dict[str, Any]:
    read = json.loads(said.get(key, "{}"))
    if not isinstance(read, dict):
        raise TypeError(f"its {key} are no table")
    return read


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )


def _cut(line: str) -> str:
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 3]}..."
