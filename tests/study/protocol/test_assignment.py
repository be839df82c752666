"""What a trial is told survives the database, also where it was written before there were assignments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fake_training
import optuna
import pytest
from fake_training import Finished

from study.design.space import Dimension
from study.protocol.assignment import Assignment, tuning_hit
from study.store import records
from study.terms import Phase, StudyName
from vae.recipe import Recipe

BASE = Recipe(batch_size=8)
TUNED = Assignment(
    "he",
    Phase.TUNE,
    2,
    3,
    base=BASE,
    seed=7,
    space={"lr": Dimension(low=1e-4, high=1e-2, log=True)},
    target=20.5,
    capped=True,
)
COMBINED = Assignment("combined", Phase.TUNE, 1, 0, base=BASE, seed=1, capped=True, parts=("he", "cosine"))
SEARCHED = Assignment("search", Phase.SEARCH, 1, 11)


@pytest.mark.parametrize("told", [TUNED, COMBINED, SEARCHED], ids=lambda told: told.arm)
def test_attributes_say_it_all(told: Assignment) -> None:
    """To JSON and back it is the same assignment."""
    params = {"lr": 3e-3} if told.base is not None else {}
    attrs = json.loads(json.dumps(told.to_attrs(params)))
    assert Assignment.from_attrs(attrs, StudyName("x", told.arm, told.block)) == told


def test_the_attribute_recipe_is_what_is_trained() -> None:
    """With the trial's parameters and seed in it; what it was made of stands beside it."""
    attrs = TUNED.to_attrs({"lr": 3e-3})
    assert Recipe.from_json(attrs["recipe"]) == BASE.replace(lr=3e-3, seed=7)
    assert Recipe.from_json(attrs["base"]) == BASE


def test_attributes_of_before_are_read_as_they_are() -> None:
    """Where there is no `base`, `recipe` held it."""
    attrs: dict[str, Any] = {"arm": "he", "phase": "tune", "block": 2, "index": 3, "recipe": BASE.to_json()}
    attrs |= {"seed": 7, "space": {"lr": {"low": 1e-4, "high": 1e-2, "log": True}}}
    attrs |= {"target": 20.5, "capped": True, "outcome": "hit", "seconds": 1.0}
    assert Assignment.from_attrs(attrs, StudyName("x", "he", 2)) == TUNED


@pytest.mark.parametrize("attrs", [{}, {"index": 3}, {"phase": "tune"}, {"phase": "mine", "index": 0}])
def test_trials_of_other_programs_are_none_of_ours(attrs: dict[str, Any]) -> None:
    """A study may happen to be called NAME/..."""
    assert Assignment.from_attrs(attrs, StudyName("x", "he")) is None


@pytest.mark.parametrize(
    ("attrs", "hit"),
    [
        ({"phase": "tune", "block": 1, "examples_to_target": 5.0}, 5.0),
        ({"phase": "tune", "block": 2, "examples_to_target": 5.0}, None),
        ({"phase": "final", "block": 1, "examples_to_target": 5.0}, None),
        ({"phase": "tune", "block": 1}, None),
        ({}, None),
    ],
)
def test_only_hits_of_tuning_count(attrs: dict[str, Any], hit: float | None) -> None:
    """What caps others: a tuning trial's hit in the same block."""
    assert tuning_hit(attrs, 1) == hit


def test_the_dashboard_shows_what_was_trained(compared: Finished) -> None:
    """The attribute `recipe` of every trial is the recipe it was trained by, reference and combined arms too."""
    with compared.open() as (store, _):
        rows = records.trials(store, "fake").set_index(["study_name", "number"])["recipe"].to_dict()
        for name in {study for study, _ in rows}:
            for trial in optuna.load_study(study_name=name, storage=store.optuna).trials:
                assert trial.user_attrs["recipe"] == rows[name, trial.number]


def test_a_trial_enqueued_before_goes_on_and_shows_it_too(tmp_path: Path) -> None:
    """Enqueued with its base under `recipe`: it is trained by it, and keeps it as `base` for whoever resumes it."""
    session = fake_training.prepare(tmp_path, arms=["twice"], target=20.0, tune_trials=1, seeds=1)
    with session.store as store:
        assert not session.planner.advance()
        study = optuna.load_study(study_name="fake/baseline", storage=store.optuna)
        waiting = study.trials[0]
        with store.write() as connection:
            connection.exec_driver_sql("DELETE FROM trial_user_attributes WHERE key = 'base'")
            text = json.dumps(waiting.user_attrs["base"])
            connection.exec_driver_sql(
                "UPDATE trial_user_attributes SET value_json = ? WHERE key = 'recipe'", (text,)
            )
        session.run_here()
        trial = optuna.load_study(study_name="fake/baseline", storage=store.optuna).trials[0]
        row = records.trials(store, "fake").iloc[0]
    assert trial.user_attrs["base"] == waiting.user_attrs["base"]
    assert trial.user_attrs["recipe"] == waiting.user_attrs["recipe"] == row["recipe"]
