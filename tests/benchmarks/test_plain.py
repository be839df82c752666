"""The plain loop of `python -m benchmarks study`: it trains what the harness trained."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest

from benchmarks import plain
from vae.data.dataset import load
from vae.grid import evaluation_grid
from vae.recipe import Recipe
from vae.training import train

RECIPE = Recipe(hidden=(32,), latent_size=4, batch_size=64)
RECIPES = [
    RECIPE.replace(lr=3e-3, init="he_normal", output_bias_from_mean=True),
    RECIPE.replace(lr=1e-2, lr_schedule="cosine", horizon=0.9, weight_decay=0.01, beta_warmup=0.3),
    RECIPE.replace(lr=3e-2, optimizer="momentum", clip_norm=1.0),
    RECIPE.replace(lr=3e-3, optimizer="rmsprop"),
    RECIPE.replace(lr=1e-2, optimizer="muon"),
]


def test_the_plain_loop_learns_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each recipe ends within seed noise of the harness's loss at equal examples, and Optuna has the trials."""
    data, budget = load("digits"), 3.0
    tau = round(budget * len(data.train))
    storage = f"sqlite:///{tmp_path}/plain.db"
    trials = [
        {
            "study": f"plain/{i // 3}",
            "params": {"lr": recipe.lr, "optimizer": recipe.optimizer, "batch_size": 64},
            "recipe": recipe.to_json(),
            "examples": int(evaluation_grid(tau)[-1]),
        }
        for i, recipe in enumerate(RECIPES)
    ]
    plan = {"data": "digits", "budget": budget, "threads": 1, "storage": storage, "trials": trials}
    plan["choices"] = {"optimizer": ["adam", "momentum", "muon", "rmsprop"]}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan), encoding="utf-8")
    plain.main(path)
    told = json.loads(capsys.readouterr().out)
    ours = [min(e.valid_loss for e in train(recipe, data, tau)) for recipe in RECIPES]
    assert told["losses"] == pytest.approx(ours, rel=0.06)
    assert told["seconds"] > 0
    study = optuna.load_study(study_name="plain/0", storage=storage)
    assert [trial.params["lr"] for trial in study.trials] == [3e-3, 1e-2, 3e-2]
    assert study.best_value == pytest.approx(min(told["losses"][:3]))
