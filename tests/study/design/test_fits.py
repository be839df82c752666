"""Batches and budgets that don't fit the data: ours are cut, a user's are refused at the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from study.design.build import Request, build
from study.design.experiment import Experiment
from study.design.fits import require_batches
from study.place import Place
from study.protocol.plan import article_recipe, cut_to_fit
from study.session import Session, check
from study.store.locations import Local
from vae.errors import UserError

N_TRAIN = 96


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(f"sqlite:///{tmp_path / 'optuna.db'}", Local(tmp_path / "artifacts"), None, "cpu", 1)


@pytest.fixture
def small(tmp_path: Path) -> str:
    """A file of 120 images, of which 96 are for training."""
    path = tmp_path / "small.npy"
    np.save(path, np.random.default_rng(0).random((120, 4, 4), dtype=np.float32))
    return str(path)


def asked(small: str, **values: Any) -> Request:
    return Request({"data": small, "name": "small"} | values)


def test_built_in_choices_are_cut_to_fit(place: Place, small: str) -> None:
    """On 96 images the search samples batches of 32 and 64, and the default arms are those that fit."""
    request = Request({"data": small, "name": "small"}, defaults={"arms": "default", "search": {"trials": 5}})
    experiment, data = check(place, request)
    assert len(data.train) == N_TRAIN
    assert experiment.search.space["batch_size"].choices == (32, 64)
    assert "batch-double" not in experiment.arms
    assert "batch-half" in experiment.arms
    said = cut_to_fit(experiment, experiment.workload(N_TRAIN))
    assert [line.split(":")[0] for line in said] == ["article", "batch-double"]
    assert article_recipe(experiment, experiment.workload(N_TRAIN)).batch_size == N_TRAIN
    assert article_recipe(experiment, experiment.workload(50_000)).batch_size == 256
    assert cut_to_fit(experiment, experiment.workload(50_000)) == []


@pytest.mark.parametrize("n_train", [1, 20, 63, 1_000])
def test_the_default_batch_fits(n_train: int) -> None:
    """However few examples there are."""
    experiment = build(Request({"data": "digits", "search": {"trials": 1}}), n_train, None)
    assert experiment.recipe.batch(n_train) <= n_train
    assert max(experiment.search.space["batch_size"].choices or ()) <= max(64, n_train)


@pytest.mark.parametrize(
    ("values", "place_of_it"),
    [
        ({"recipe": {"batch_size": 97}}, "recipe: batch_size 97 is more than the 96 training examples"),
        ({"arms": ["batch-double"]}, "arm 'batch-double': batch_size 128"),
        ({"space": {"batch_size": [32, 512]}, "arms": ["he"]}, "space: batch_size 512"),
        (
            {"search": {"trials": 2, "space": {"batch_size": {"low": 8, "high": 100_000}}}},
            "search.space: batch_size 100000",
        ),
        (
            {"arms": ["own"], "techniques": {"own": {"knobs": {"batch_size": [8, 128]}}}},
            "techniques.own: batch_size 128",
        ),
    ],
)
def test_what_a_user_asked_for_is_refused_at_the_start(
    place: Place, small: str, values: dict[str, Any], place_of_it: str, tmp_path: Path
) -> None:
    """With the place, the batch and the way out, and with nothing written."""
    with pytest.raises(UserError, match=place_of_it):
        Session.prepare(place, asked(small, **values))
    assert not (tmp_path / "optuna.db").exists()


def test_an_earlier_search_goes_on_with_its_space(place: Place, small: str) -> None:
    """What was stored before such spaces were refused is topped up as it is."""
    session = Session.prepare(place, asked(small, search={"trials": 1}))
    session.store.close()
    space = {"batch_size": {"choices": [32, 64, 128]}}
    values = session.experiment.to_json()
    values["search"]["space"] |= space
    stored = Experiment.from_values(values, "test")
    require_batches(stored, stored, N_TRAIN, "test")
    with pytest.raises(UserError, match="128"):
        require_batches(stored, None, N_TRAIN, "test")


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        ({"budget": 0.01}, False),
        ({"budget": 1.3}, False),  # 64 examples are more than half of 125
        ({"budget": 1.34}, True),
        ({"budget": 0.7, "target": 50.0}, True),  # a given target may be reached anywhere
        ({"budget": 0.6, "target": 50.0}, False),
    ],
)
def test_a_budget_without_an_evaluation_is_refused(
    place: Place, small: str, values: dict[str, Any], fits: bool
) -> None:
    """The target is looked for in the first half of the budget: a batch that is longer says the smallest that fits."""
    if fits:
        check(place, asked(small, arms=["he"], **values))
        return
    with pytest.raises(
        UserError, match=r"one batch of 64 doesn't fit into .*: give at least (0.667|1.334) epochs"
    ):
        check(place, asked(small, arms=["he"], **values))


def test_a_search_s_budget_may_be_too_short_to_compare(place: Place, small: str) -> None:
    """It is said when arms are first asked for, though the experiment is there already."""
    Session.prepare(place, asked(small, budget=0.01, search={"trials": 1})).store.close()
    with pytest.raises(UserError, match="doesn't fit into"):
        check(place, asked(small, arms=["he"]))


def test_arms_that_nobody_asked_for_are_not_said_to_be_left_out(place: Place, small: str) -> None:
    """With arms by name only what is changed in these is said."""
    experiment, _ = check(place, asked(small, arms=["he"]))
    assert [line.split(":")[0] for line in cut_to_fit(experiment, experiment.workload(N_TRAIN))] == [
        "article"
    ]
