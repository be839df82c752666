"""A recipe as a script of its own: what it needs, and that it has our losses."""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from study.design.techniques import BUILT_IN
from vae.data.dataset import Dataset, load
from vae.errors import UserError
from vae.recipe import Recipe
from vae.script.write import script, write_stored
from vae.training import train

ROOT = Path(__file__).resolve().parents[3]
TAU = 600
#: A value of each technique's own knob.
KNOBS: dict[str, Any] = {
    "horizon": 0.7,
    "warmup": 0.05,
    "weight_decay": 0.1,
    "dropout": 0.2,
    "beta_warmup": 0.3,
    "beta": 0.5,
    "free_bits": 0.3,
    "clip_norm": 3.0,
    "ema_decay": 0.95,
}
PLAIN = Recipe(hidden=(32,), latent_size=4, batch_size=64, lr=3e-3)
TECHNIQUES = {
    technique.name: technique.apply(PLAIN).replace(**{knob: KNOBS[knob] for knob in technique.knobs})
    for technique in BUILT_IN
}
BIASED: dict[str, Any] = {"output_bias_from_mean": True, "activation": "tanh", "init": "he_uniform"}
TUNED: dict[str, Any] = {"clip_norm": 5.0, "free_bits": 0.1, "beta_warmup": 0.2, "beta": 0.9, "dropout": 0.1}
NARROWING: dict[str, Any] = {"hidden": (32, 16), "residual": True}
CONV: dict[str, Any] = {"model": "conv", "hidden": (16,)}
#: What no technique comes by, and much at once.
OTHERS = {
    name: PLAIN.replace(**changes)
    for name, changes in {
        "bernoulli": BIASED | {"likelihood": "bernoulli"},
        "dynamic-bernoulli": {"likelihood": "dynamic_bernoulli", "activation": "leaky_relu"},
        "continuous-bernoulli": BIASED | {"likelihood": "continuous_bernoulli"},
        "gaussian": BIASED | {"likelihood": "gaussian"},
        "discretised-logistic": BIASED | {"likelihood": "discretised_logistic"},
        "nesterov": {
            "optimizer": "nesterov",
            "weight_decay": 0.3,
            "lr": 1e-3,
            "lr_schedule": "inverse_sqrt",
            "warmup": 0.1,
            "init": "truncated_normal",
            "activation": "gelu",
        },
        "sgd": {"optimizer": "sgd", "lr": 1e-4, "activation": "elu", "lr_schedule": "linear", "warmup": 0.1},
        "schedule-free, much": NARROWING
        | TUNED
        | {"optimizer": "schedule_free_adamw", "weight_decay": 0.3, "warmup": 0.1, "init": "orthogonal"},
        "muon, much": NARROWING
        | TUNED
        | {
            "optimizer": "muon",
            "weight_decay": 0.3,
            "lr_schedule": "onecycle",
            "warmup": 0.1,
            "ema_decay": 0.9,
            "activation": "silu",
        },
        "conv": CONV | {"model_options": {"channels": [4, 6]}},
        "conv, batch": CONV
        | {"model_options": {"channels": [4], "norm": "batch", "blocks": 1}, "init": "orthogonal"},
        "conv, residual": CONV
        | NARROWING
        | {
            "model_options": {"channels": [4, 6], "norm": "none", "blocks": 1},
            "init": "he_normal",
            "likelihood": "gaussian",
            "dropout": 0.1,
            "output_bias_from_mean": True,
        },
        "conv, batch, averaged": CONV
        | {"model_options": {"channels": [4]}, "ema_decay": 0.9, "dropout": 0.1, "likelihood": "bernoulli"},
        "conv, batch, schedule-free": CONV
        | {"model_options": {"channels": [4], "blocks": 1}, "optimizer": "schedule_free_adamw"},
        "conv, muon": CONV
        | {
            "model_options": {"channels": [4, 6], "blocks": 1},
            "optimizer": "muon",
            "weight_decay": 0.1,
            "init": "xavier_normal",
        },
    }.items()
}
RECIPES = TECHNIQUES | OTHERS


@pytest.fixture(autouse=True)
def _on_its_own() -> Iterator[None]:
    """A script seeds torch's global generator; and one thread is fastest for so little."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        yield
    torch.set_num_threads(threads)


def written(recipe: Recipe, data: Dataset, path: Path) -> Path:
    path.write_text(script(recipe, data, TAU).text)
    return path


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - {"compile"}))
def test_a_script_has_our_losses(name: str, digits: Dataset, tmp_path: Path) -> None:
    """The examples of each evaluation are the same, and the losses to rounding: the script draws the same weights,
    batches, noise and masks."""
    recipe = RECIPES[name]
    ours = [(e.examples, e.valid_loss) for e in train(recipe, digits, TAU)]
    alone = runpy.run_path(str(written(recipe, digits, tmp_path / "script.py")))["train"]
    losses = list(alone(digits.train.base.numpy(), digits.valid.base.numpy()))
    assert [examples for examples, _ in losses] == [examples for examples, _ in ours]
    np.testing.assert_allclose([loss for _, loss in losses], [loss for _, loss in ours], rtol=1e-4)


def test_a_compiled_script_is_the_same_but_for_the_compiler(digits: Dataset) -> None:
    """What trains is torch.compile of the model, and nothing else differs."""
    text = script(RECIPES["compile"], digits, TAU).text
    assert text.count("compiled") == 2
    plain = text.replace("    compiled = torch.compile(model)\n", "").replace("compiled(", "model(")
    assert plain == script(PLAIN, digits, TAU).text


def test_a_script_of_a_technique_is_short(digits: Dataset) -> None:
    """Less than 150 lines for each technique, and for one of each of the usual kinds at once."""
    at_once = PLAIN.replace(
        optimizer="muon",
        init="he_normal",
        output_bias_from_mean=True,
        lr_schedule="onecycle",
        beta_warmup=0.1,
    )
    recipes = [*TECHNIQUES.values(), at_once]
    assert max(len(script(recipe, digits, TAU).text.splitlines()) for recipe in recipes) < 150


def test_scripts_are_clean(digits: Dataset, tmp_path: Path) -> None:
    """Ruff finds nothing in them, by this project's own rules, nor in their layout; torch and numpy are all that they
    need."""
    for number, recipe in enumerate(RECIPES.values()):
        text = written(recipe, digits, tmp_path / f"script_{number}.py").read_text()
        nodes = list(ast.walk(ast.parse(text)))
        imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        imported |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
        needed = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names
        assert needed == {"numpy", "torch"}
    ruff = [sys.executable, "-m", "ruff"]
    options = ["--config", str(ROOT / "pyproject.toml"), "--no-cache", str(tmp_path)]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([*ruff, *command, *options], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_a_script_runs_from_the_files_written_for_it(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stored values go through the files as they are; it prints a line an evaluation, and how it is called."""
    path = str(written(PLAIN, digits, tmp_path / "script.py"))
    files = [write_stored(tmp_path / f"{name}.npy", getattr(digits, name)) for name in ("train", "valid")]
    np.testing.assert_array_equal(np.load(files[0]), digits.train.base.numpy())
    monkeypatch.setattr(sys, "argv", [path, *map(str, files)])
    runpy.run_path(path, run_name="__main__")
    last = capsys.readouterr().out.splitlines()[-1].split()
    *_, ours = train(PLAIN, digits, TAU)
    assert (int(last[0]), float(last[1])) == (ours.examples, pytest.approx(ours.valid_loss, rel=1e-4))
    monkeypatch.setattr(sys, "argv", [path])
    with pytest.raises(SystemExit, match=r"Usage: python .*script\.py TRAIN\.npy VALID\.npy"):
        runpy.run_path(path, run_name="__main__")


def test_images_of_a_file_are_trained_on_as_they_are(tmp_path: Path) -> None:
    """Floats in colour, kept in double precision, with the colours last: a convolution finds them."""
    images = np.random.default_rng(0).random((60, 6, 5, 3))
    np.save(tmp_path / "images.npy", images)
    data = load(str(tmp_path / "images.npy"))
    recipe = OTHERS["conv"].replace(batch_size=8)
    files = [write_stored(tmp_path / f"{name}.npy", getattr(data, name)) for name in ("train", "valid")]
    alone = runpy.run_path(str(written(recipe, data, tmp_path / "script.py")))["train"]
    losses = [loss for _, loss in alone(*map(np.load, files))]
    np.testing.assert_allclose(losses, [e.valid_loss for e in train(recipe, data, TAU)], rtol=1e-4)


def test_what_is_not_equal_is_said(digits: Dataset) -> None:
    """In the script too; a recipe of which all is equal has nothing to say."""
    assert script(PLAIN, digits, TAU).notes == ()
    for changes in (
        {"precision": "bf16"},
        {"optimizer": "muon", "hidden": (128,)},
        {"compile": True, "dropout": 0.1},
    ):
        found = script(PLAIN.replace(**changes), digits, TAU)
        (note,) = found.notes
        assert note in found.text


def test_code_of_ones_own_is_refused(digits: Dataset) -> None:
    """It would need more than torch and numpy."""
    with pytest.raises(UserError, match=r"code of your own, lion\.py:Lion, is no script"):
        script(PLAIN.replace(optimizer="lion.py:Lion"), digits, TAU)
