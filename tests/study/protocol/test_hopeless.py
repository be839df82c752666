"""What can't be trained: said with its reason, soon, and never at the cost of what can."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_training
import pytest
from fake_training import FAKE, FakeTraining, Finished, of, rerun

from study.analysis.notes import notes
from study.protocol.selection import winning_recipes
from study.store import records
from study.workers.throughput import time_arms
from study.workers.trial import Trainer
from vae.errors import FailureError, UserError
from vae.recipe import Recipe


def failing(where: Callable[[Recipe], bool], error: Callable[[Recipe], Exception]) -> Any:
    """Trains as FakeTraining does, but raises where it is told to."""

    def train(recipe: Recipe, *arguments: Any) -> Any:
        if where(recipe):
            raise error(recipe)
        return FakeTraining(recipe, *arguments)

    return Trainer(train=train, grid=FAKE.grid)


def test_one_reason_for_every_trial_ends_it_early(tmp_path: Path) -> None:
    """A likelihood that raises in every trial: after four the reason is told, numbers of the trial aside, and the
    other 26 are not tried."""
    trainer = failing(lambda _: True, lambda recipe: ArithmeticError(f"no loss for seed {recipe.seed}"))
    session = fake_training.prepare_search(tmp_path, 30, trainer=trainer)
    with (
        session.store,
        pytest.raises(FailureError, match=r"All of \d+ trials failed .*: ArithmeticError: no loss"),
    ):
        session.run_here()
    ended = records.trials(session.store, "fake")["outcome"]
    assert 4 <= ended.eq("failed").sum() <= 16
    assert len(ended) < 30


def test_a_mended_program_goes_on(tmp_path: Path) -> None:
    """Failures of an earlier command alone don't end the next one."""
    broken = failing(lambda _: True, lambda _: ArithmeticError("no"))
    session = fake_training.prepare_search(tmp_path, 6, trainer=broken)
    with session.store, pytest.raises(FailureError):
        session.run_here()
    mended = fake_training.prepare_search(tmp_path, 9)
    with mended.store as store:
        mended.run_here()
        assert records.trials(store, "fake")["outcome"].isin(["completed", "collapsed", "pruned"]).sum() == 3


def test_a_baseline_that_fails_names_the_reason(tmp_path: Path) -> None:
    """Where every tuning trial of the baseline failed there is no target, and that reason is given."""
    trainer = failing(lambda _: True, lambda _: ArithmeticError("the network has no decoder"))
    session = fake_training.prepare(tmp_path, trainer, arms=["twice"], tune_trials=3)
    reason = r"No target .* failed: ArithmeticError: the network has no decoder\.$"
    with session.store, pytest.raises(UserError, match=reason):
        session.run_here()
    with Finished(tmp_path, {}).open() as (_, state):  # readers see what there is
        assert state.target is None
        assert state.calibration is None
        assert "no decoder" in (state.no_target or "")


def test_a_reference_that_fails_takes_nothing_with_it(tmp_path: Path) -> None:
    """The article's arm fails in every trial: the others are compared and timed, and it is none of those timed."""
    trainer = failing(lambda recipe: recipe.lr == 1e-4, lambda _: UserError("no room for the article"))
    session = fake_training.prepare(tmp_path, trainer, arms=["twice"], seeds=2, target=20.0)
    with session.store as store:
        session.run_here()
        trials = records.trials(store, "fake")
        assert set(of(trials, "confirm", "article")["outcome"]) == {"failed"}
        recipes = winning_recipes(session.experiment, session.planner.observe())
    assert set(recipes) == {"baseline", "twice"}


def test_the_article_s_batch_is_the_data(tmp_path: Path) -> None:
    """On 64 images it trains with 64, not with 256."""
    trials, comparison = rerun(tmp_path, arms=["twice"], seeds=2, target=20.0)
    article = of(trials, "confirm", "article")
    assert {Recipe.from_json(text).batch_size for text in article["recipe"]} == {64}
    assert set(article["outcome"]) == {"completed"}
    with Finished(tmp_path, {}).open() as (_, state):
        said = " ".join(notes(comparison, state))
    assert "batches of 256 are more than the 64 training examples" in said


def test_without_a_baseline_nothing_is_timed(tmp_path: Path) -> None:
    """It is said, and is no error; nor is an arm that can't be trained here."""
    said: list[str] = []
    session = fake_training.prepare_search(tmp_path, 1)
    options: Any = {"tau": 64, "device": None, "slice_seconds": 0.001, "say": said.append}
    recipe = session.experiment.recipe
    with session.store as store:
        time_arms(store, "fake", session.data, {"article": recipe}, **options)
        too_large = recipe.replace(batch_size=10_000)
        time_arms(
            store, "fake", session.data, {"baseline": recipe, "article": too_large, "x": recipe}, **options
        )
        assert {timing.arm for timing in records.throughput(store, "fake")} == {"x"}
    assert "the baseline has no confirmation run" in said[0]
    assert said[1:3] == ["timing article against the baseline", said[2]]
    assert said[2].startswith("article is not timed: batch_size 10000 is more than the 64 training examples")
