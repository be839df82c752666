"""Files of models and states: whole or not at all, exact, and never code."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vae import checkpoint
from vae.checkpoint import load_model, load_state, save_model, save_state, weights_of
from vae.data.dataset import Dataset, load
from vae.errors import FailureError, UserError
from vae.recipe import Recipe
from vae.training import Training, train
from vae.use import evaluate

TAU = 3_000


def recipe_of(**changes: Any) -> Recipe:
    return Recipe(hidden=(32, 16), latent_size=4, batch_size=64).replace(**changes)


def part_run(data: Dataset, **changes: Any) -> Training:
    """A run stopped in its middle."""
    run = train(recipe_of(**changes), data, TAU)
    for evaluation in run:
        if evaluation.examples > TAU / 2:
            break
    return run


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ema_decay": 0.9},
        {"optimizer": "schedule_free_adamw"},
        {"residual": True},
        {"output_bias_from_mean": True},
    ],
)
def test_a_model_comes_back_whole(tmp_path: Path, digits: Dataset, changes: dict[str, Any]) -> None:
    """The loaded model gives bitwise the outputs of the evaluated one (not of the one in training), and brings
    its recipe, shape and data along; saving leaves the run as it was."""
    run = part_run(digits, **changes)
    kept = {key: value.clone() for key, value in run.model.state_dict().items()}
    path = tmp_path / "new folder" / "model.safetensors"
    save_model(path, run, digits)
    assert all(torch.equal(kept[key], value) for key, value in run.model.state_dict().items())
    found = load_model(path)
    assert found.recipe == run.recipe
    assert (found.shape, found.data_name, found.data_fingerprint) == ((8, 8), "digits", digits.fingerprint)
    assert not found.model.training
    x, noise = digits.test.all(50), torch.zeros(50, 4)
    with torch.no_grad():
        with run.evaluated_weights() as model:
            expected = model(x, noise)
        assert all(torch.equal(a, b) for a, b in zip(found.model(x, noise), expected, strict=True))
        if changes.keys() & {"ema_decay", "optimizer"}:
            assert not torch.equal(run.model(x, noise)[0], expected[0])


class Own(nn.Module):
    """A network that no recipe describes."""

    def __init__(self, size: int, latent_size: int) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(size, 2 * latent_size), nn.Linear(latent_size, size)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = self.encoder(x).chunk(2, dim=-1)
        return mean, log_var

    def decode(self, z: Tensor) -> Tensor:
        parameters: Tensor = self.decoder(z)
        return parameters


def test_an_own_network_comes_back(tmp_path: Path, digits: Dataset) -> None:
    """Into a network that the caller gives; without one the message says whose it is and how it is loaded, and with
    another one which weights don't fit, whole."""
    run = train(recipe_of(), digits, 500, model=Own(64, 4))
    assert len(list(run)) > 3
    path = tmp_path / "own.safetensors"
    save_model(path, run, digits)
    found = load_model(path, Own(64, 4))
    assert evaluate(found, digits.test, k=2).scores.loss == pytest.approx(
        run.evaluate(digits.test).loss, rel=1e-6
    )
    with pytest.raises(
        UserError, match=r"network of your own, .*\bOwn, which only Python can build: load_model"
    ):
        load_model(path)
    with pytest.raises(UserError, match=r"don't fit Own: .*encoder.*decoder") as error:
        load_model(path, Own(64, 3))
    assert "\n" not in str(error.value)


def test_the_data_is_known_by_where_it_is(tmp_path: Path) -> None:
    """The model file says by what path or name its data is found, and which seed split it."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (200, 4, 4), dtype=np.uint8))
    for source, seed in (("digits", 0), (os.path.relpath(tmp_path / "x.npy"), 7)):
        data = load(source, seed=seed)
        save_model(tmp_path / "m.safetensors", train(recipe_of(), data, TAU), data)
        found = load_model(tmp_path / "m.safetensors")
        expected = source if source == "digits" else str(tmp_path / "x.npy")
        assert (found.data_source, found.split_seed) == (expected, seed)


def test_a_model_that_began_at_the_mean_image(tmp_path: Path, digits: Dataset) -> None:
    """Its weights are all there is to load: the mean image isn't needed again."""
    run = part_run(digits, output_bias_from_mean=True)
    save_model(tmp_path / "m.safetensors", run, digits)
    found = load_model(tmp_path / "m.safetensors")
    assert found.recipe == run.recipe


@pytest.mark.parametrize("changes", [{"ema_decay": 0.9, "dropout": 0.1}, {"optimizer": "muon"}])
def test_a_state_comes_back_to_the_same_curve(
    tmp_path: Path, digits: Dataset, changes: dict[str, Any]
) -> None:
    """Bitwise, through a file, with the caller's own values beside it."""
    run = part_run(digits, **changes)
    path = tmp_path / "state.pt"
    save_state(path, run, evaluations=17, test_loss=None)
    state = load_state(path)
    assert state is not None
    assert state["extra"] == {"evaluations": 17, "test_loss": None}
    resumed = train(run.recipe, digits, TAU)
    resumed.load_state_dict(state["training"])
    rest, expected = ([replace(e, train_seconds=0.0) for e in r] for r in (resumed, run))
    assert rest == expected
    assert len(rest) > 3


def test_no_state_is_none(tmp_path: Path) -> None:
    """A trial that was never saved starts at its beginning."""
    assert load_state(tmp_path / "none.pt") is None


def test_no_model_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    """It names the path and what writes one."""
    with pytest.raises(UserError, match=r"No model at .*none\.safetensors.*vae train"):
        load_model(tmp_path / "none.safetensors")


class Bomb:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (exec, ("raise SystemExit('code was run')",))


def damaged(tmp_path: Path, whole: bytes) -> list[bytes]:
    """What a file may have become: cut, flipped, empty, text, a pickle with code, torch's file with code."""
    torch.save({"training": Bomb(), "extra": {}}, tmp_path / "bomb.pt")
    flipped = bytearray(whole)
    flipped[len(whole) // 3 : len(whole) // 3 + 64] = bytes(64)
    flipped[:8] = bytes(8)
    return [
        whole[: len(whole) // 2],
        bytes(flipped),
        b"",
        b"lr = 0.1\n",
        pickle.dumps(Bomb()),
        (tmp_path / "bomb.pt").read_bytes(),
    ]


def test_damaged_and_foreign_models_are_refused(tmp_path: Path, digits: Dataset) -> None:
    """With one line that names the file; no code in it is run."""
    path = tmp_path / "model.safetensors"
    save_model(path, part_run(digits), digits)
    for content in damaged(tmp_path, path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(
            UserError, match=r"model\.safetensors is no model written by this project"
        ) as error:
            load_model(path)
        assert "\n" not in str(error.value)


GOOD = {"recipe": recipe_of().to_json(), "shape": "[8, 8]"}


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"recipe": "{}{", "shape": "[8, 8]"},
        GOOD | {"recipe": '{"lr": -1}'},
        GOOD | {"shape": '"8x8"'},
        GOOD | {"shape": "8"},
        GOOD,
    ],
)
def test_another_projects_safetensors_are_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    """Without our metadata, with a recipe or shape that isn't one, or with weights that aren't the recipe's."""
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata=metadata)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_model(path)


def test_damaged_states_are_refused(tmp_path: Path, digits: Dataset) -> None:
    """Likewise."""
    path = tmp_path / "state.pt"
    save_state(path, part_run(digits))
    for content in damaged(tmp_path, path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"state\.pt is no saved state \(\w+\); delete it"):
            load_state(path)


@pytest.mark.parametrize(
    "foreign", [torch.zeros(3), {"model": torch.zeros(3)}, {"training": {}, "extra": 3}], ids=type
)
def test_foreign_states_are_refused(tmp_path: Path, foreign: Any) -> None:
    """A sound file of torch's with something else in it is refused, not met later as a TypeError."""
    torch.save(foreign, tmp_path / "state.pt")
    with pytest.raises(UserError, match=r"state\.pt is no saved state"):
        load_state(tmp_path / "state.pt")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Stopped in the middle of writing, by a signal or a full disk: the file before is still whole and nothing
    else is left in the folder. A full disk is a FailureError of one line."""
    run = part_run(digits)
    model, state = tmp_path / "model.safetensors", tmp_path / "state.pt"
    save_model(model, run, digits)
    save_state(state, run)
    before = model.read_bytes(), state.read_bytes()

    def half(*arguments: Any, **_: Any) -> None:
        target = next(a for a in arguments if isinstance(a, Path))
        target.write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", half)
    monkeypatch.setattr(checkpoint.torch, "save", half)
    expected = FailureError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        save_model(model, run, digits)
    with pytest.raises(expected):
        save_state(state, run)
    assert (model.read_bytes(), state.read_bytes()) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors", "state.pt"]


def test_a_folder_that_cannot_be_is_a_failure(tmp_path: Path, digits: Dataset) -> None:
    """A file where the folder should be."""
    (tmp_path / "taken").write_text("")
    run = part_run(digits)
    with pytest.raises(FailureError, match=r"taken.*can't be written"):
        save_model(tmp_path / "taken" / "model.safetensors", run, digits)
    with pytest.raises(FailureError, match=r"taken.*can't be written"):
        save_state(tmp_path / "taken" / "state.pt", run)


OWN = """
from torch import nn


class Own(nn.Module):
    def __init__(self, data_shape, latent_size, parameters_per_pixel, width=4):
        super().__init__()
        size = data_shape[0] * data_shape[1]
        self.encoder = nn.Sequential(nn.Linear(size, width), nn.ReLU(), nn.Linear(width, 2 * latent_size))
        self.decoder = nn.Sequential(nn.BatchNorm1d(latent_size), nn.Linear(latent_size, parameters_per_pixel * size))

    def encode(self, x):
        return self.encoder(x).chunk(2, dim=-1)

    def decode(self, z):
        return self.decoder(z)
"""


def test_a_network_that_a_recipe_names_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its name, from another folder where it was, and never with another SHA-256; the weights are the trained."""
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(model="own.py:Own", model_options={"width": 6}, latent_size=3, batch_size=64)
    data = load("digits")
    training = train(recipe, data, 1_000)
    training.advance(3)
    path = tmp_path / "own.safetensors"
    save_model(path, training, data)
    (elsewhere := tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    trained = load_model(path)
    for name, weight in weights_of(training).items():
        assert torch.equal(trained.model.state_dict()[name], weight), name
    assert trained.recipe == recipe
    assert [source.path for source in trained.sources] == [tmp_path / "own.py"]

    (tmp_path / "own.py").write_text(OWN + "\nraise SystemExit\n")
    with pytest.raises(UserError, match=r"own.py:Own has SHA-256 .*bring that code back"):
        load_model(path)
    (elsewhere / "own.py").write_text(OWN)
    assert load_model(path).model.encoder[0].out_features == 6
