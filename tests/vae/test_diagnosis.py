"""What went wrong is said: where a training diverged, why it collapsed, and what to change."""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vae.__main__ import main
from vae.data.dataset import Dataset
from vae.diagnosis import explain, first_broken_step
from vae.evaluation import Evaluation
from vae.recipe import Recipe
from vae.training import Training, train

TAU = 12_000


def trained(data: Dataset, **fields: Any) -> tuple[Training, list[Evaluation]]:
    recipe = Recipe(hidden=(32,), latent_size=4, batch_size=64).replace(**fields)
    training = train(recipe, data, TAU)
    return training, list(training)


def said(training: Training, rows: list[Evaluation], data: Dataset) -> str:
    return explain(training, rows, data, lambda: train(training.recipe, data, TAU))


def test_the_step_that_broke_is_found(digits: Dataset) -> None:
    """The step named is the first whose loss or gradient isn't finite; what broke first in it is named, and the way
    out, in one line."""
    training, rows = trained(digits, batch_size=8)
    last = next(a.steps for a, b in itertools.pairwise(rows) if b.steps - a.steps > 3)

    def spoilt() -> Training:
        """Its weights become infinite after the first of a stretch of steps without an evaluation."""
        spoiling = train(training.recipe, digits, TAU)
        weight = next(spoiling.model.parameters())

        def spoil(*_: object) -> None:
            if spoiling.steps == last + 1:
                weight.data.fill_(float("inf"))

        spoiling.watch(spoil)
        return spoiling

    again = spoilt()
    broken = list(again)
    assert again.outcome == "diverged"
    found = first_broken_step(spoilt(), broken)
    assert found is not None
    assert (found.step, found.examples, found.lr) == (last + 2, (last + 2) * 8, 1e-3)
    assert found.tensor == "the output of encoder.layers.0"
    assert found.grad_norm > 0
    text = explain(again, broken, digits, spoilt)
    assert f"became NaN or infinite at step {last + 2:,} " in text
    assert "lower lr (now 0.001), set clip_norm" in text
    assert "\n" not in text


def test_the_gradient_before_a_stretch_that_breaks_at_once_is_known(digits: Dataset) -> None:
    """Where its first step breaks, the gradient before is that of the evaluation's last step."""
    recipe = Recipe(hidden=(32,), latent_size=4, batch_size=64)
    *good, after = itertools.islice(train(recipe, digits, TAU), 5)

    def spoilt() -> Training:
        """Its weights become infinite after the last good evaluation."""
        spoiling = train(recipe, digits, TAU)

        def spoil(*_: object) -> None:
            if spoiling.steps == good[-1].steps:
                next(spoiling.model.parameters()).data.fill_(float("inf"))

        spoiling.watch(spoil)
        return spoiling

    rows = [*good, replace(after, valid_loss=math.nan)]
    found = first_broken_step(spoilt(), rows)
    assert found is not None
    assert (found.step, found.grad_norm) == (good[-1].steps + 1, good[-1].grad_norm)
    ended = train(recipe, digits, TAU)
    ended.outcome = "diverged"
    told = f"gradient norm {found.grad_norm:.3g} before, {found.usual_norm:.3g} usually"
    assert told in explain(ended, rows, digits, spoilt)


def test_a_step_too_long_is_said_of_validation_images(digits: Dataset) -> None:
    """Where every step was finite but the weights after the last give no loss, the layer is named all the same."""
    training, rows = trained(digits, optimizer="sgd", lr=20.0)
    assert training.outcome == "diverged"
    text = said(training, rows, digits)
    assert f"on validation images became NaN or infinite at step {rows[-1].steps:,}" in text
    assert "lower lr (now 20), set clip_norm" in text


def test_looking_changes_nothing(digits: Dataset) -> None:
    """A watched training has bitwise the curve of one that nobody watches."""
    recipe = Recipe(hidden=(32,), latent_size=4, batch_size=64)
    plain, watched = train(recipe, digits, 1_000), train(recipe, digits, 1_000)
    watched.watch(lambda *_: None)
    curves = [[(row.valid_loss, row.train_loss, row.grad_norm) for row in run] for run in (plain, watched)]
    assert curves[0] == curves[1]


def test_what_is_not_wrong_is_not_suggested(digits: Dataset) -> None:
    """Clipping that is on isn't proposed again; a training that ended well has nothing to say."""
    training, rows = trained(digits, optimizer="sgd", lr=100.0, clip_norm=1e30)
    assert training.outcome == "diverged"
    assert "clip_norm" not in said(training, rows, digits)
    fine, rows = trained(digits)
    assert fine.outcome == "completed"
    assert said(fine, rows, digits) == ""


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"beta": 500.0}, "Try a lower beta (now 500), beta_warmup=0.3, free_bits=0.1 or a lower lr"),
        (
            {"beta": 500.0, "beta_warmup": 0.01, "free_bits": 0.001},
            "Try a lower beta (now 500) or a lower lr",
        ),
    ],
)
def test_a_collapse_is_explained(digits: Dataset, fields: dict[str, Any], words: str) -> None:
    """The KL, the active units at the end and at their most, dead units, and what weighs the KL."""
    training, rows = trained(digits, lr=3e-3, **fields)
    assert training.outcome == "collapsed"
    text = said(training, rows, digits)
    assert text.startswith(f"KL {rows[-1].rate:.3g} nats at the end")
    assert f"active units {rows[-1].active_units} of 4" in text
    assert "of 64 hidden units dead" in text
    assert words in text


def test_dead_units_ask_for_a_lower_lr(digits: Dataset) -> None:
    """Where most hidden units are dead, that is what is said to be wrong, not the KL's weight."""
    training, rows = trained(digits, beta=500.0)
    with torch.no_grad():
        for name, parameter in training.model.named_parameters():
            if name.endswith("layers.0.bias"):
                parameter.fill_(-1e4)
    text = said(training, rows, digits)
    assert "64 of 64 hidden units dead. Try a lower lr (now 0.001) or activation=leaky_relu." in text


def test_the_command_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After `vae train`: a divergence as its error, a collapse on stderr beside the model that is written."""
    monkeypatch.chdir(tmp_path)
    small = ["--set", "hidden=[32]", "--set", "latent_size=4", "--set", "batch_size=64", "--budget", "8"]
    for sets, code, words in (
        (["--set", "optimizer=sgd", "--set", "lr=50"], 1, "became NaN or infinite at step"),
        (["--set", "beta=500"], 0, "Note: the training collapsed: KL"),
    ):
        monkeypatch.setattr(sys, "argv", ["vae", "train", "--out", "m.safetensors", *small, *sets])
        with pytest.raises(SystemExit) as end:
            main()
        assert int(end.value.code or 0) == code
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
        assert Path("m.safetensors").exists() == (code == 0)
